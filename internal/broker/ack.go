package broker

import (
	"errors"
	"slices"
	"sync/atomic"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"fieldgate/internal/mqtt"
)

// This file is the way of a client's PUBACK or PUBREC. The library writes it
// before it passes the message on, and for QoS 2 notes it in the session. What
// a handler says is not safe yet is held back in the guard, already encoded,
// while the client's reader goes on; the guard's writer sends it once it is
// safe, in the order the messages came (clause 4.6). A connection that ends
// before takes its held acknowledgements with it: the client sends those
// messages again.

// maxHeld is how many acknowledgements of one client may be held back: as many
// as CONNACK says it may have in flight (MQTT 5, 3.2.2.3.3). When there are more
// its packets are left unread until some have gone.
const maxHeld = 1024

// errFull ends the connection of a client whose message was lost, or, with MQTT
// 3, refused: it has no other way to be told (clause 3.3.5 leaves no third choice).
var errFull = errors.New("its message cannot be kept, a queue is full")

// heldAck is an acknowledgement that waits.
type heldAck struct {
	packet []byte
	waits  []<-chan struct{} // it may go once all are closed
}

// open removes from waits those that are closed and returns what is left.
func open(waits []<-chan struct{}) []<-chan struct{} {
	return slices.DeleteFunc(waits, func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	})
}

// Stages of a message: handlers have it, one of them has refused it, none has.
const (
	handing int32 = iota
	refused
	taken
)

// receive hands a client's message to those who want it, and notes for its
// acknowledgement what they say. The error is for the library: it answers a
// client of MQTT 5 with it.
func (h *hook) receive(cl *mochi.Client, pk *packets.Packet) error {
	from, id, qos := h.b.origin(cl), pk.PacketID, pk.FixedHeader.Qos
	var stage atomic.Int32
	from.Refuse = func() {
		if !stage.CompareAndSwap(handing, refused) && stage.Load() == taken {
			h.b.lost(cl.ID, id, qos)
		}
	}
	waits := open(h.b.handOut(pk, from))
	refused := !stage.CompareAndSwap(handing, taken)
	g := guardOf(cl)
	if g == nil || pk.FixedHeader.Qos == 0 {
		return nil
	}
	g.waits, g.refusal = waits, 0
	switch {
	case refused && cl.Properties.ProtocolVersion == 5:
		g.waits, g.refusal = nil, pk.FixedHeader.Qos
		return packets.ErrQuotaExceeded
	case refused:
		g.waits, g.refusal = nil, pk.FixedHeader.Qos
	case pk.FixedHeader.Qos == 2:
		h.b.tracks.promise(cl, pk.PacketID, waits)
	}
	return nil
}

// lost ends the connection of a client whose message was taken and cannot be
// kept after all. On its return the message is taken anew.
func (b *Broker) lost(client string, id uint16, qos byte) {
	if qos == 0 {
		return
	}
	if cl, ok := b.server.Clients.Get(client); ok && qos == 2 {
		if pk, ok := cl.State.Inflight.Get(id); ok && pk.FixedHeader.Type == packets.Pubrec && cl.State.Inflight.Delete(id) {
			atomic.AddInt64(&b.server.Info.Inflight, -1)
			b.tracks.done(cl, id)
		}
	}
	b.mu.Lock()
	g := b.live[client]
	b.mu.Unlock()
	if g != nil {
		g.kill(errFull)
	}
}

// acknowledge looks at a PUBACK or PUBREC that the client's reader is about to
// write, and decides what it waits for.
func (h *hook) acknowledge(cl *mochi.Client, g *guard, pk packets.Packet) packets.Packet {
	qos := g.refusal
	g.refusal = 0
	switch {
	case qos > 0 && cl.Properties.ProtocolVersion == 5:
		if qos == 2 {
			pk.FixedHeader.Type = packets.Pubrec // the library has one answer for both
		}
	case qos > 0:
		cl.Stop(errFull)
		if cl.State.Inflight.Delete(pk.PacketID) { // else it would be acknowledged on return
			atomic.AddInt64(&h.b.server.Info.Inflight, -1)
			h.b.tracks.done(cl, pk.PacketID)
		}
		return pk // into a closed connection
	case pk.FixedHeader.Type == packets.Pubrec && g.waits == nil:
		g.waits = h.b.tracks.promised(cl.ID, pk.PacketID) // it is sent again
		if pk.ReasonCode == packets.ErrPacketIdentifierInUse.Code {
			// The answer to a message that came again. It is no failure (MQTT 5,
			// 4.3.3): the client would give the identifier up, and what it sends
			// under it next would be taken for the same once more.
			pk.ReasonCode, pk.Properties.ReasonString = 0, ""
		}
	}
	g.awaitTurn()
	return pk
}

// hold keeps p, which acknowledges a message, until it is safe and all before
// it have gone. It reports false if there is nothing to wait for. g.mu is held;
// the caller is the client's reader.
func (g *guard) hold(p []byte) bool {
	waits := open(g.waits)
	g.waits = nil
	if len(waits) == 0 && len(g.acks) == 0 {
		return false
	}
	g.acks = append(g.acks, heldAck{slices.Clone(p), waits})
	return true
}

// awaitTurn waits while too many acknowledgements are held. It is for the
// client's reader.
func (g *guard) awaitTurn() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.acks) >= maxHeld && !g.closed {
		g.room.Wait()
	}
}

// letOut queues the held acknowledgements that are safe, and returns what the
// next one waits for, nil if there is none. g.mu is held.
func (g *guard) letOut() (next <-chan struct{}) {
	n := 0
	for ; n < len(g.acks); n++ {
		a := &g.acks[n]
		if a.waits = open(a.waits); len(a.waits) > 0 {
			next = a.waits[0]
			break
		}
		g.total.Add(int64(len(a.packet)))
		g.queue = append(g.queue, a.packet...)
	}
	g.acks = slices.Delete(g.acks, 0, n)
	return next
}

// owes reports whether acknowledgements are held back.
func (g *guard) owes() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.acks) > 0
}

// promise notes what the PUBREC of a client's QoS 2 message waits for. Until
// then it is not saved: after a power cut the message is to come again.
func (ts *tracks) promise(cl *mochi.Client, id uint16, waits []<-chan struct{}) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.all[cl.ID]
	switch {
	case t == nil:
	case len(waits) == 0:
		delete(t.unsafe, id)
	default:
		if t.unsafe == nil {
			t.unsafe = make(map[uint16][]<-chan struct{})
		}
		t.unsafe[id] = slices.Clone(waits)
	}
}

// promised returns what the PUBREC with this identifier still waits for.
func (ts *tracks) promised(client string, id uint16) []<-chan struct{} {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.all[client]
	if t == nil {
		return nil
	}
	return t.notSafe(id)
}

// notSafe returns a copy of what the message id still waits for, and forgets
// what is safe. ts.mu is held.
func (t *track) notSafe(id uint16) []<-chan struct{} {
	waits := open(slices.Clone(t.unsafe[id]))
	if len(waits) == 0 {
		delete(t.unsafe, id)
		return nil
	}
	return waits
}

// handOut gives a client's message to the handlers that want it, and returns
// what it waits for before it is acknowledged.
func (b *Broker) handOut(pk *packets.Packet, from mqtt.Origin) (waits []<-chan struct{}) {
	from.Kept = pk.FixedHeader.Retain
	for _, r := range *b.handlers.Load() {
		if !r.filter.Match(pk.TopicName) {
			continue
		}
		safe := r.call(mqtt.Message{Topic: pk.TopicName, Payload: pk.Payload, QoS: pk.FixedHeader.Qos}, from)
		if safe != nil {
			waits = append(waits, safe)
		}
	}
	return waits
}
