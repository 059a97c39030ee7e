// Package bridge carries messages between the embedded broker and the broker of
// an uplink, by the rules of the configuration. What local clients publish goes
// into the uplink's queue, and their acknowledgement waits until it is safe;
// what the uplink receives is published by the embedded broker. It connects to
// nothing and stores nothing: broker, queue and uplink do.
//
// Nothing goes round. The embedded broker hands out only what its clients
// publish, so what came in by any uplink goes out by none. What comes back from
// the very broker it was sent to, and what comes round by way of other bridges,
// is known by a memory of what went out (memory).
//
// The type is Bridge, one for each uplink that has rules.
package bridge

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"fieldgate/internal/broker"
	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/queue"
	"fieldgate/internal/uplink"
)

// patienceMost bounds how long a connected uplink is given to acknowledge a
// message before it is written to disk.
const patienceMost = time.Second

// tellEvery is how often it is logged that messages go round.
const tellEvery = time.Minute

// Stats is what became of messages since the start.
type Stats struct {
	Out     uint64 // of local clients, into the queue
	In      uint64 // published by the embedded broker
	Echoes  uint64 // that the uplink's broker sent back to us: left out
	Looped  uint64 // that came round by another way: left out
	Refused uint64 // of local clients, because the queue was full or the topic too long
	Ignored uint64 // from upstream, left out: our own state, or older than what we have
}

// Bridge carries messages for one uplink. Its methods are safe for use by
// several goroutines.
type Bridge struct {
	// Connected reports whether the uplink is: then it is given a moment to
	// acknowledge a message before the message is written to disk. It must not
	// block, may be nil, and is set before the broker runs.
	Connected func() bool

	name    string
	rules   []config.BridgeRule
	commit  time.Duration
	status  string   // what the gateway says of itself is below this topic
	clients []string // ids that our own uplinks have
	broker  *broker.Broker
	queue   *queue.Queue
	log     *slog.Logger
	memory  *memory
	never   chan struct{} // never closed
	toldAt  atomic.Int64  // when it was last logged that messages go round, Unix nanoseconds

	out, in, echoes, looped, refused, ignored atomic.Uint64
}

// New makes the bridge of the uplink c, which has rules, between b and the
// uplink's queue q. status is the topic below which the gateway says how it is,
// and clients are the ids of all its uplinks.
func New(c config.Uplink, status string, clients []string, b *broker.Broker, q *queue.Queue, log *slog.Logger) *Bridge {
	return &Bridge{
		name: c.Name, rules: c.Bridge, commit: c.Queue.Commit,
		status: status, clients: clients,
		broker: b, queue: q, log: log,
		memory: newMemory(), never: make(chan struct{}),
	}
}

// Local returns what is to be asked of the embedded broker: nothing for a nil
// Bridge.
func (b *Bridge) Local() (subs []uplink.Subscription) {
	if b == nil {
		return nil
	}
	for _, r := range b.rules {
		if r.Out {
			subs = append(subs, uplink.Subscription{Filter: mqtt.Filter(r.Local()), QoS: r.QoS, Handle: b.sender(r)})
		}
	}
	return subs
}

// Subscriptions returns what the uplink is to ask its broker for: nothing for a
// nil Bridge.
func (b *Bridge) Subscriptions() (subs []uplink.Subscription) {
	if b == nil {
		return nil
	}
	for _, r := range b.rules {
		if r.In {
			subs = append(subs, uplink.Subscription{Filter: mqtt.Filter(r.Remote()), QoS: r.QoS, Handle: b.receiver(r)})
		}
	}
	return subs
}

// Stats returns what the bridge has counted since New.
func (b *Bridge) Stats() Stats {
	return Stats{
		Out: b.out.Load(), In: b.in.Load(), Echoes: b.echoes.Load(), Looped: b.looped.Load(),
		Refused: b.refused.Load(), Ignored: b.ignored.Load(),
	}
}

// sender returns what takes a local client's message for rule r.
func (b *Bridge) sender(r config.BridgeRule) mqtt.Handler {
	return func(m mqtt.Message, from mqtt.Origin) <-chan struct{} {
		if m.Retain && r.DropRetain {
			return nil // it is from before the start
		}
		was, now := m.Topic, time.Now()
		waits := !r.Fast && m.QoS > 0 && !m.Retain // somebody, for its acknowledgement
		m.Topic = r.RemotePrefix + strings.TrimPrefix(m.Topic, r.LocalPrefix)
		m.QoS = min(m.QoS, r.QoS)
		key := b.memory.key(m.Topic, m.Payload)
		// What was retained before the start has no client, and is no repetition.
		if !m.Retain && (slices.Contains(b.clients, from.Client) || b.memory.published(key, from.Client, now)) {
			b.looped.Add(1)
			b.tell(was, from.Client)
			return nil
		}
		m.Retain = (m.Retain || from.Kept) && !r.DropRetain
		if m.Retain && b.comesIn(m.Topic) {
			b.memory.waits(m.Topic, key, now)
		}
		patience, lost := time.Duration(-1), func() {}
		if waits {
			patience = b.patience()
			lost = func() {
				b.refused.Add(1)
				if from.Refuse != nil {
					from.Refuse()
				}
			}
		}
		safe, err := b.queue.Accept(m, patience, lost)
		switch {
		case errors.Is(err, queue.ErrClosed):
			return b.never // the client sends it again after the stop
		case errors.Is(err, queue.ErrFull):
			b.refused.Add(1) // the queue logs it
			if waits && from.Refuse != nil {
				from.Refuse()
			}
			return nil
		case err != nil:
			b.refused.Add(1)
			b.log.Warn("message not sent out", "topic", was, "client", from.Client, "err", err)
			return nil
		}
		b.out.Add(1)
		return safe // nil if nobody waits
	}
}

// patience is how long a message may wait for its acknowledgement before it is
// written to disk.
func (b *Bridge) patience() time.Duration {
	if b.Connected == nil || !b.Connected() {
		return 0
	}
	return min(b.commit/2, patienceMost)
}

// comesIn reports whether what is sent on a topic of the uplink's broker comes
// back to us.
func (b *Bridge) comesIn(remote string) bool {
	return slices.ContainsFunc(b.rules, func(r config.BridgeRule) bool { return r.In && mqtt.Filter(r.Remote()).Match(remote) })
}

// goesOut reports whether a local message may have this topic at the uplink's
// broker.
func (b *Bridge) goesOut(remote string) bool {
	return slices.ContainsFunc(b.rules, func(r config.BridgeRule) bool { return r.Out && mqtt.Filter(r.Remote()).Match(remote) })
}

// Sent is to be told what the uplink is about to send, the gateway's own
// messages too.
func (b *Bridge) Sent(entries []queue.Entry) {
	now := time.Now()
	for i := range entries {
		e := &entries[i]
		comes := b.comesIn(e.Topic)
		if !comes && !b.goesOut(e.Topic) {
			continue
		}
		key := b.memory.key(e.Topic, e.Payload)
		b.memory.sent(key, comes, now)
		if comes && e.Retain {
			b.memory.waitsNot(e.Topic, key, now)
		}
	}
}

// receiver returns what takes a message of the uplink's broker for rule r. When
// it returns, the embedded broker has the message.
func (b *Bridge) receiver(r config.BridgeRule) mqtt.Handler {
	return func(m mqtt.Message, _ mqtt.Origin) <-chan struct{} {
		remote, now := m.Topic, time.Now()
		if !m.Retain && b.memory.echo(b.memory.key(remote, m.Payload), now) {
			b.echoes.Add(1)
			return nil
		}
		m.Topic = r.LocalPrefix + strings.TrimPrefix(remote, r.RemotePrefix)
		state, kept := b.broker.Retained(m.Topic)
		switch {
		case strings.HasPrefix(m.Topic, "$"), strings.HasPrefix(m.Topic, b.status+"/"):
			b.ignored.Add(1) // what a broker, or the gateway, says of itself
			return nil
		case m.Retain && (r.DropRetain || kept && bytes.Equal(state, m.Payload) || b.memory.newer(remote, now)):
			b.ignored.Add(1) // nothing new: it was retained before we subscribed
			return nil
		}
		// MQTT 3.1.1 does not say of a new message whether it is retained (clause
		// 3.3.1.3). Where one is retained here already, this is the newer state.
		m.Retain = (m.Retain || kept) && !r.DropRetain
		m.QoS = min(m.QoS, r.QoS)
		switch err := b.broker.Deliver(context.Background(), m); {
		case errors.Is(err, broker.ErrClosed):
			return b.never // it comes again after the stop
		case err != nil:
			b.ignored.Add(1)
			b.log.Warn("message from upstream not published", "topic", m.Topic, "err", err)
			return nil
		}
		b.in.Add(1)
		return nil
	}
}

// tell logs that messages go round, now and then.
func (b *Bridge) tell(topic, client string) {
	now := time.Now().UnixNano()
	told := b.toldAt.Load()
	if ago := now - told; told != 0 && ago >= 0 && ago < int64(tellEvery) || // below 0: the clock was set
		!b.toldAt.CompareAndSwap(told, now) {
		return
	}
	b.log.Warn("messages go round by way of another bridge, they are not sent out again", "topic", topic, "client", client, "so_far", b.looped.Load())
}
