package uplink

import (
	"encoding/binary"
	"fmt"
	"sync"

	"fieldgate/internal/mqtt"
)

// inboxMost is how many messages of the broker may wait to be safe. Brokers send
// 10 to 100 ahead of our acknowledgements; one that knows no limit, while our
// disk stands still, gets to this many. Then the connection ends, and the broker
// sends again what was not acknowledged.
const inboxMost = 4096

// Kinds of packets that we answer a PUBLISH with (clause 2.2.1).
const pubrec = 5

// arrival is a PUBLISH with QoS 1 or 2 that came and is not acknowledged.
type arrival struct {
	id   uint16
	kind byte              // of the packet that acknowledges it
	safe []<-chan struct{} // it may be, once all are closed
}

// inbox is the messages of the broker that are not acknowledged yet, oldest
// first. Acknowledgements go out in the order the messages came (clause 4.6), so
// one that is not safe holds up those behind it. paho's own way to acknowledge
// keeps each payload until then, and takes a write for each.
type inbox struct {
	mu      sync.Mutex
	waiting []arrival
	open    int           // of waiting, and of those taken and not acknowledged yet
	more    chan struct{} // holds one token when waiting has grown
}

func newInbox() *inbox { return &inbox{more: make(chan struct{}, 1)} }

// add appends an arrival and reports whether there was room for it.
func (b *inbox) add(a arrival) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open == inboxMost {
		return false
	}
	b.open++
	b.waiting = append(b.waiting, a)
	signal(b.more)
	return true
}

// take returns all that waits, into the memory of a slice that it returned
// before, and notes that done of the earlier ones are acknowledged.
func (b *inbox) take(spare []arrival, done int) []arrival {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open -= done
	taken := b.waiting
	clear(spare)
	b.waiting = spare[:0]
	return taken
}

// arrived hands a message to the handler and notes that it is to be
// acknowledged. long says that it stands for one that was too long. paho's router
// calls it, one message at a time.
func (c *Conn) arrived(m mqtt.Message, id uint16, long bool) {
	var safe []<-chan struct{}
	switch valid := mqtt.ValidTopic(m.Topic) == nil; {
	case !valid:
	case long && c.tooLong == nil:
		return // the broker keeps it for who is told of it
	case long:
		length := int(binary.BigEndian.Uint32(m.Payload))
		m.Payload = nil
		c.tooLong(m, length)
	case !long && c.handler != nil:
		safe = c.handler(m)
	}
	a := arrival{id: id, kind: puback, safe: safe}
	switch m.QoS {
	case 0:
		return
	case 2:
		a.kind = pubrec
	}
	if !c.inbox.add(a) {
		c.abort(&Fault{
			Step:   StepSession,
			Text:   fmt.Sprintf("%d messages from the broker wait to be safe on disk", inboxMost),
			Remedy: "look at the disk of this machine, and limit what the broker sends ahead (max_inflight_messages)",
		})
	}
}

// acknowledge sends PUBACK and PUBREC, as many as may be in one write, until
// the connection has ended.
func (c *Conn) acknowledge() {
	var batch []arrival
	var out []byte
	for {
		batch = c.inbox.take(batch, len(batch))
		if len(batch) == 0 {
			select {
			case <-c.inbox.more:
				continue
			case <-c.Lost():
				return
			}
		}
		for _, a := range batch {
			for _, safe := range a.safe {
				select {
				case <-safe:
					continue
				default:
				}
				out = c.flushAcks(out)
				select {
				case <-safe:
				case <-c.Lost():
					return
				}
			}
			out = append(out, a.kind<<4, 2)
			out = binary.BigEndian.AppendUint16(out, a.id)
		}
		out = c.flushAcks(out)
	}
}

// flushAcks writes out and returns it empty. A write that fails ends the wire.
func (c *Conn) flushAcks(out []byte) []byte {
	if len(out) > 0 {
		_, _ = c.wire.Write(out)
	}
	return out[:0]
}
