package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"fieldgate/internal/bus"
	"fieldgate/internal/clock"
	"fieldgate/internal/command"
	"fieldgate/internal/config"
	"fieldgate/internal/group"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/publish"
	"fieldgate/internal/queue"
	"fieldgate/internal/uplink"
)

// setDesk makes the gate before all writes, or has the one that there is work by
// cfg. Without an audit log there is none.
func (g *Gateway) setDesk(cfg *config.Config, next *assembly) {
	var kept []string
	for _, u := range cfg.Uplinks {
		if !u.CleanSession {
			kept = append(kept, u.Name)
		}
	}
	switch {
	case next.audit == nil:
		return
	case next.desk.Desk != nil:
		next.desk.Change(cfg.Devices, cfg.Commands, cfg.CommandRules, kept)
		return
	}
	answers := maps.Clone(next.sinks)
	for _, w := range next.ways {
		answers[w.name] = prompt{w.queue}
	}
	d := command.Open(g.dir, command.Options{
		Devices: cfg.Devices, Commands: cfg.Commands, Rules: cfg.CommandRules,
		Field: g.plant, Audit: next.audit,
		Last:      g.pipeline.Last,
		ClockSet:  func() bool { return g.clock.State() != clock.Unset },
		Clock:     g.clock,
		Connected: g.connected, Kept: kept, Answers: answers,
	}, part(g.log, "commands", ""))
	next.desk = desk{d, group.NewPart("commands", d.Run)}
}

// prompt is a queue whose messages are in its file at once: an answer that the next
// power cut took would not be given a third time.
type prompt struct{ *queue.Queue }

// Deliver implements mqtt.Sink.
func (p prompt) Deliver(ctx context.Context, msgs ...mqtt.Message) error {
	return p.DeliverNow(ctx, msgs...)
}

// connected reports whether an uplink is connected.
func (g *Gateway) connected(name string) bool {
	u := g.now.Load().way(name).uplink
	return u != nil && u.Connected()
}

// subscriptions returns what the desk and the points in memory want of an
// uplink, or the embedded broker.
func (g *Gateway) subscriptions(a *assembly, name string) []uplink.Subscription {
	subs := append(g.feeds(name), g.settings(a, name)...)
	if a.desk.Desk == nil {
		return subs
	}
	for _, s := range a.desk.Subscriptions(name) {
		take, refuse := s.Handle, s.TooLong
		reply := func(m mqtt.Message) { g.answer(name, m) }
		s.Handle = func(m mqtt.Message, from mqtt.Origin) <-chan struct{} {
			from.Reply = reply
			return take(m, from)
		}
		s.TooLong = func(m mqtt.Message, length int, from mqtt.Origin) {
			from.Reply = reply
			refuse(m, length, from)
		}
		subs = append(subs, uplink.Subscription(s))
	}
	return subs
}

// answer sends an answer where the command came from: to what has that name by
// now. It answers for something that was done: no power cut may take it.
func (g *Gateway) answer(via string, m mqtt.Message) { g.send(via, m, (*queue.Queue).DeliverNow) }

// tell is answer for what a power cut may take. It waits for no disk.
func (g *Gateway) tell(via string, m mqtt.Message) {
	deliver := (*queue.Queue).Deliver
	if g.now.Load().way(via).cfg.Queue.Commit == 0 {
		deliver = (*queue.Queue).DeliverNow // the other waits then
	}
	g.send(via, m, deliver)
}

func (g *Gateway) send(via string, m mqtt.Message, deliver deliver) {
	if err := g.deliver(context.Background(), via, m, deliver); err != nil {
		g.log.Error("answer is lost", "to", via, "topic", m.Topic, "err", err)
	}
}

// deliver is how a queue is given a message.
type deliver func(*queue.Queue, context.Context, ...mqtt.Message) error

// deliver sends a message to an uplink or to local clients. One that meets what was
// just replaced by a reload goes to what is in its place.
func (g *Gateway) deliver(ctx context.Context, via string, m mqtt.Message, deliver deliver) error {
	q := g.now.Load().way(via).queue
	for q != nil {
		err := deliver(q, ctx, m)
		next := g.now.Load().way(via).queue
		if !errors.Is(err, queue.ErrClosed) || next == q {
			return err
		}
		q = next
	}
	if via == config.Local {
		return g.toLocal(ctx, m)
	}
	return errGone
}

var errGone = errors.New("it is not in the configuration any more")

// comings tells the desk which devices have come back.
type comings struct {
	mu     sync.Mutex
	states map[string]bus.State
}

// deviceState takes each change of a device's state. It never blocks.
func (g *Gateway) deviceState(name string, state bus.State) {
	g.herald.device(name, state)
	desk := g.now.Load().desk
	if desk.Desk == nil {
		return
	}
	c := &g.comings
	c.mu.Lock()
	before := c.states[name]
	if c.states == nil {
		c.states = make(map[string]bus.State)
	}
	if state != bus.Suspect { // from there it may come back without having been away
		c.states[name] = state
	}
	c.mu.Unlock()
	if state == bus.Online && before != bus.Online {
		desk.Online(name)
	}
}

// forget makes the next answer of some devices the first.
func (c *comings) forget(devices []config.Device) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range devices {
		delete(c.states, devices[i].Name)
	}
}

// echoes returns a fault for each rule that publishes, on an uplink, where
// commands or settings come from there: each value would come back as a command to
// write it, or as a change of settings.
func echoes(cfg *config.Config, topics []publish.Topic) []config.Fault {
	var faults []config.Fault
	said := -1
	for i := range topics {
		t := &topics[i]
		if t.Rule == said {
			continue
		}
		to := cfg.Publish[t.Rule].To
		if s := cfg.Settings; s != nil && meets(to, s.From) && config.Overlap(s.Topic, config.LevelFilter(t.Name, "{Value}")) {
			said = t.Rule
			faults = append(faults, cfg.Fault(fmt.Sprintf("publish[%d].topic", t.Rule),
				fmt.Sprintf("%s is published on %q, where settings come, so that it would come back as a change of them; write another topic", t.Points()[0], t.Name)))
			continue
		}
		for j := range cfg.Commands {
			c := &cfg.Commands[j]
			if !meets(to, c.From) || !config.Overlap(c.Filter, config.LevelFilter(t.Name, "{Value}")) {
				continue
			}
			said = t.Rule
			faults = append(faults, cfg.Fault(fmt.Sprintf("publish[%d].topic", t.Rule),
				fmt.Sprintf("%s is published on %q, which is a topic of commands[%d] too, so that it would come back as a command; write another topic", t.Points()[0], t.Name, j)))
			break
		}
	}
	return faults
}

// meets reports whether what a rule publishes reaches an uplink that commands
// come from. to is nil for all.
func meets(to, from []string) bool {
	for _, name := range from {
		if name != config.Local && (to == nil || slices.Contains(to, name)) {
			return true
		}
	}
	return false
}
