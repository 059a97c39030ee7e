package gateway

import (
	"fmt"
	"slices"
	"sync"

	"fieldgate/internal/bus"
	"fieldgate/internal/clock"
	"fieldgate/internal/command"
	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
	"fieldgate/internal/publish"
	"fieldgate/internal/uplink"
)

// openDesk makes the gate before all writes. It needs the audit log; the plant
// and uplinks that it speaks of may come later, but before Run.
func (g *Gateway) openDesk(cfg *config.Config, dir string, sinks map[string]mqtt.Sink) {
	var kept []string
	for _, u := range cfg.Uplinks {
		if !u.CleanSession {
			kept = append(kept, u.Name)
		}
	}
	g.desk = command.Open(dir, command.Options{
		Devices: cfg.Devices, Commands: cfg.Commands, Rules: cfg.CommandRules,
		Field: g.plant, Audit: g.audit,
		Last:      func(id point.ID) (point.Sample, bool) { return g.pipeline.Last(id) }, // made later
		ClockSet:  func() bool { return g.clock.State() != clock.Unset },
		Clock:     g.clock,
		Connected: g.connected, Kept: kept, Answers: sinks,
	}, part(g.log, "commands", ""))
}

// connected reports whether an uplink is connected.
func (g *Gateway) connected(name string) bool {
	for _, w := range g.ways {
		if w.name == name {
			return w.uplink.Status().Connected
		}
	}
	return false
}

// subscriptions returns what the desk and the points in memory want of an
// uplink, or the embedded broker.
func (g *Gateway) subscriptions(name string) []uplink.Subscription {
	subs := g.feeds(name)
	if g.desk == nil {
		return subs
	}
	for _, s := range g.desk.Subscriptions(name) {
		subs = append(subs, uplink.Subscription(s))
	}
	return subs
}

// subscribeLocal asks the embedded broker for what is wanted of it.
func (g *Gateway) subscribeLocal() error {
	if g.broker == nil {
		return nil
	}
	for _, s := range g.subscriptions(config.Local) {
		if _, err := g.broker.Subscribe(s.Filter, s.Handle); err != nil {
			return fmt.Errorf("broker: subscribe %s: %w", s.Filter, err)
		}
	}
	return nil
}

// comings tells the desk which devices have come back.
type comings struct {
	mu     sync.Mutex
	states map[string]bus.State
}

// deviceState takes each change of a device's state. It never blocks.
func (g *Gateway) deviceState(name string, state bus.State) {
	g.herald.device(name, state)
	if g.desk == nil {
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
		g.desk.Online(name)
	}
}

// echoes returns a fault for each rule that publishes, on an uplink, where
// commands come from there: each value would come back as a command to write it.
func echoes(cfg *config.Config, topics []publish.Topic) []config.Fault {
	var faults []config.Fault
	said := -1
	for i := range topics {
		t := &topics[i]
		if t.Rule == said {
			continue
		}
		to := cfg.Publish[t.Rule].To
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
