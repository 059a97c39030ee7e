package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"fieldgate/internal/broker"
	"fieldgate/internal/bus"
	"fieldgate/internal/config"
	"fieldgate/internal/health"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/queue"
)

// The words of the state topics (SPEC 4).
const (
	online  = "online"
	offline = "offline"
)

func stateMessage(topic, state string) mqtt.Message {
	return mqtt.Message{Topic: topic, Payload: []byte(state), QoS: 1, Retain: true}
}

// herald publishes what the gateway says of itself: its own state on the local
// broker (uplinks have birth and will), the state of each device, events, and
// figures.
type herald struct {
	gateway *Gateway
	beat    health.Beat

	mu      sync.Mutex
	states  map[string]bus.State // devices whose state is still to be told
	events  []mqtt.Message       // still to be published
	unsaid  uint64               // events that found no room there
	changed chan struct{}        // holds one token when states or events is not empty
}

func newHerald(g *Gateway) *herald {
	return &herald{gateway: g, states: make(map[string]bus.State), changed: make(chan struct{}, 1)}
}

// device notes a change of a device's state. It never blocks: only the newest
// state of a device is kept.
func (h *herald) device(name string, state bus.State) {
	h.mu.Lock()
	h.states[name] = state
	h.mu.Unlock()
	h.wake()
}

// readWithin is how long after the start a device may be without a state.
const readWithin = 2 * time.Second

// unread says of the devices that nothing is known of yet that they are offline:
// brokers may have kept another word of before a crash.
func (h *herald) unread() {
	for _, w := range h.gateway.now.Load().wires {
		for _, d := range w.bus.Status().Devices {
			if d.State != bus.Unknown {
				continue
			}
			h.mu.Lock()
			if _, newer := h.states[d.Name]; !newer {
				h.states[d.Name] = bus.Offline
			}
			h.mu.Unlock()
		}
	}
	h.wake()
}

func (h *herald) wake() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

func (h *herald) run(ctx context.Context) error {
	a := h.gateway.now.Load()
	h.local(ctx, a, online)
	every := a.status.Every
	tick := time.NewTicker(every)
	defer tick.Stop()
	unread := time.NewTimer(readWithin)
	defer unread.Stop()
	defer h.beat.Stops()
	for {
		if e := h.gateway.now.Load().status.Every; e != every {
			every = e
			tick.Reset(every)
		}
		h.beat.Rests(every)
		select {
		case <-ctx.Done():
			last := context.WithoutCancel(ctx) // what is left to say is quick
			h.devices(last)
			h.tell(last)
			h.local(last, h.gateway.now.Load(), offline)
			return nil
		case <-h.changed:
			h.devices(ctx)
			h.tell(ctx)
		case <-unread.C:
			h.unread()
		case <-tick.C:
			h.stats(ctx)
		}
	}
}

func (h *herald) local(ctx context.Context, a *assembly, state string) {
	if b := a.broker.Broker; b != nil {
		h.deliver(ctx, config.Local, b, stateMessage(a.status.Topic+"/state", state))
	}
}

// reload takes note that the assembly next is in the place of was.
func (h *herald) reload(ctx context.Context, was, next *assembly) {
	moved := was.status.Topic != next.status.Topic
	if moved && was.broker.Broker == next.broker.Broker {
		h.local(ctx, was, offline)
	}
	if moved || was.broker.Broker != next.broker.Broker {
		h.local(ctx, next, online)
	}
	all := moved // say everything again
	for name, sink := range next.told {
		all = all || was.told[name] != sink
	}
	states := make(map[string]bus.State)
	next.eachDevice(func(name string, state bus.State) { states[name] = state })
	was.eachDevice(func(name string, state bus.State) {
		if now, there := states[name]; !there {
			h.device(name, bus.Offline) // nobody asks it any more
		} else if !all && now == state {
			delete(states, name)
		}
	})
	for name, state := range states {
		if state != bus.Unknown {
			h.device(name, state)
		}
	}
	h.wake()
}

// eachDevice calls f with the state of each device.
func (a *assembly) eachDevice(f func(name string, state bus.State)) {
	for _, w := range a.wires {
		for _, d := range w.bus.Status().Devices {
			f(d.Name, d.State)
		}
	}
	for _, d := range a.memory {
		f(d.Name, bus.Online)
	}
}

func (h *herald) devices(ctx context.Context) {
	topic := h.gateway.now.Load().status.Topic
	h.mu.Lock()
	states := h.states
	h.states = make(map[string]bus.State)
	h.mu.Unlock()
	for name, state := range states {
		h.all(ctx, stateMessage(topic+"/device/"+name+"/state", state.String()))
	}
}

func (h *herald) stats(ctx context.Context) {
	payload, err := json.Marshal(h.gateway.Status())
	if err != nil {
		h.gateway.log.Error("write status", "err", err)
		return
	}
	h.all(ctx, mqtt.Message{Topic: h.gateway.now.Load().status.Topic + "/stats", Payload: payload})
}

func (h *herald) all(ctx context.Context, m mqtt.Message) {
	for name, sink := range h.gateway.now.Load().told {
		h.deliver(ctx, name, sink, m)
	}
}

func (h *herald) deliver(ctx context.Context, name string, sink mqtt.Sink, m mqtt.Message) {
	err := sink.Deliver(ctx, m)
	if errors.Is(err, broker.ErrClosed) || errors.Is(err, queue.ErrClosed) { // another one takes its place
		err = h.gateway.deliver(ctx, name, m, (*queue.Queue).Deliver)
	}
	if err != nil {
		h.gateway.log.Debug("status not delivered", "to", name, "topic", m.Topic, "err", err)
	}
}
