package gateway

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"fieldgate/internal/broker"
	"fieldgate/internal/mqtt"
)

// interimMost is how many messages may wait for the next embedded broker: the
// oldest goes, and is counted.
const interimMost = 1024

// interim keeps what the gateway says to local clients (answers, alarms, events)
// while one embedded broker takes the place of another: the first has ended then,
// and the next is not at work. Its zero value keeps nothing. It is safe for use by
// several goroutines.
type interim struct {
	mu   sync.Mutex
	from *broker.Broker // that is being replaced; nil: none is
	held []mqtt.Message // in order
	lost int
}

// begin keeps what from takes no more, until end.
func (i *interim) begin(from *broker.Broker) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.from = from
}

// keep takes a message that from did not take, and reports whether it has.
func (i *interim) keep(from *broker.Broker, m mqtt.Message) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.from != from {
		return false
	}
	if len(i.held) == interimMost {
		i.held = i.held[1:]
		i.lost++
	}
	m.Payload = bytes.Clone(m.Payload)
	i.held = append(i.held, m)
	return true
}

// end hands what was kept to the broker in its place, nil if there is none, and
// then calls done, before which nobody may have it. lost is how many messages did
// not find their way.
func (i *interim) end(to *broker.Broker, done func()) (lost int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	lost = i.lost
	for _, m := range i.held {
		if to == nil || to.Deliver(context.Background(), m) != nil {
			lost++
		}
	}
	i.from, i.held, i.lost = nil, nil, 0
	done()
	return lost
}

// toLocal publishes a message at the embedded broker, or has the next one do it
// while that takes its place.
func (g *Gateway) toLocal(ctx context.Context, m mqtt.Message) error {
	for {
		b := g.now.Load().broker.Broker
		if b == nil {
			return errGone
		}
		err := b.Deliver(ctx, m)
		switch {
		case !errors.Is(err, broker.ErrClosed):
			return err
		case g.interim.keep(b, m):
			return nil
		case g.now.Load().broker.Broker == b:
			return err // the gateway is stopping
		}
	}
}
