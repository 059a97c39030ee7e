package gateway

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"fieldgate/internal/bridge"
	"fieldgate/internal/broker"
	"fieldgate/internal/bus"
	"fieldgate/internal/config"
	"fieldgate/internal/group"
	"fieldgate/internal/line"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/pipeline"
	"fieldgate/internal/point"
	"fieldgate/internal/publish"
	"fieldgate/internal/uplink"
	"fieldgate/internal/web"
)

// This file is how one configuration follows another while the gateway runs: the
// same list is made again, what has the same settings is taken over as it is.

// reloadLimit is how long all parts that go have to stop.
const reloadLimit = 20 * time.Second

// Changes names the parts that a reload has touched, as the log names them. Changed
// are Modbus servers that run on with another map.
type Changes struct{ Started, Replaced, Changed, Stopped []string }

// String returns "nothing", or what was done.
func (c Changes) String() string {
	var all []string
	for _, did := range []struct {
		what  string
		parts []string
	}{{"started", c.Started}, {"replaced", c.Replaced}, {"changed", c.Changed}, {"stopped", c.Stopped}} {
		if len(did.parts) > 0 {
			all = append(all, did.what+" "+strings.Join(did.parts, ", "))
		}
	}
	if len(all) == 0 {
		return "nothing"
	}
	return strings.Join(all, "; ")
}

// ErrNotRunning is what Reload says of a gateway that does not run, or is about
// to stop.
var ErrNotRunning = errors.New("the gateway does not run")

// Reload puts another configuration in place of that which is at work; cfg and
// topics are as for Open. Parts whose settings are the same are left as they are:
// a bus with its back-off, an uplink with its connection and queue, the clients of
// the broker and of Modbus servers, commands that are being done. What needs the
// world, a port to listen on above all, is opened before anything is touched: after
// an error all is as it was.
//
// Nothing that is read is lost. A queue that is gone stays on disk. When ctx ends,
// or Run is to stop, nobody is waited for any more.
func (g *Gateway) Reload(ctx context.Context, cfg *config.Config, topics []publish.Topic) (Changes, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.ending, cancel)()
	select {
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	case <-ctx.Done():
		if g.ending.Err() != nil {
			return Changes{}, ErrNotRunning
		}
		return Changes{}, ctx.Err()
	}
	if !g.running || g.ending.Err() != nil {
		return Changes{}, ErrNotRunning
	}
	was := g.now.Load()
	next, err := g.assemble(cfg, topics)
	if err != nil {
		return Changes{}, err
	}
	next.publish.Succeed(was.publish.Publisher, g.pipeline)
	before := g.list(was.ways, was)

	// From here on nothing fails that could be undone. First the field and what
	// publishes change places: the feed keeps what is read meanwhile. Uplinks come
	// last, since it may take them seconds to send what they have.
	g.feed(next, was)
	b := next.broker.Broker
	follows := b != nil && was.broker.Broker != nil && b != was.broker.Broker
	if follows {
		g.interim.begin(was.broker.Broker)
	}
	failed := g.parts.Stop(ctx, reloadLimit, g.list(was.ways, next)...)
	if follows {
		if err := b.Begin(g.dir); err != nil {
			failed = errors.Join(failed, g.silence(next, err))
		}
	}
	failed = errors.Join(failed, g.install(cfg, next))
	g.parts.Start(g.list(was.ways, next)...)
	failed = errors.Join(failed, g.parts.Stop(ctx, reloadLimit, g.list(next.ways, next)...))
	for _, w := range was.ways {
		if w.queue == next.way(w.name).queue {
			continue
		}
		failed = errors.Join(failed, w.queue.Close())
		if n := w.queue.Stats().Messages; next.way(w.name).queue == nil && n > 0 {
			g.log.Warn("the queue of an uplink that is gone stays on disk", "uplink", w.name, "messages", n)
		}
	}
	after := g.list(next.ways, next)
	g.parts.Start(after...)
	if failed != nil {
		g.log.Error("reload", "err", failed)
	}
	done := changes(before, after)
	for _, s := range next.servers {
		if slices.ContainsFunc(was.servers, func(old server) bool { return old.part == s.part && old.serves != s.serves }) {
			done.Changed = append(done.Changed, s.part.Name())
		}
	}
	return done, nil
}

// silence takes the broker out of an assembly: it could not be made ready in place
// of the one before. Only a fresh start can mend that.
func (g *Gateway) silence(next *assembly, err error) error {
	delete(next.sinks, config.Local)
	delete(next.told, config.Local)
	err = fmt.Errorf("broker: %w", err)
	next.broker = localBroker{part: group.NewPart("broker", func(context.Context) error { return err })}
	return err
}

// install puts the assembly next at work, in place of the one before; its parts
// are to be started after that.
func (g *Gateway) install(cfg *config.Config, next *assembly) error {
	was := g.now.Load()
	if was.publish.feed == nil { // the first
		g.feed(next, was)
	} else if !reflect.DeepEqual(was.memory, next.memory) {
		g.plant.virtual.Change(cfg.Devices)
	}
	g.retain(cfg.Devices)
	for _, w := range was.wires {
		if w.bus != next.wire(w.name).bus {
			g.comings.forget(w.devices)
		}
	}
	for _, s := range next.servers {
		s.Change(s.serves)
	}
	g.setDesk(cfg, next)
	buses := make([]*bus.Bus, len(next.wires))
	for i, w := range next.wires {
		buses[i] = w.bus
	}
	if lost := g.interim.end(next.broker.Broker, func() { g.now.Store(next) }); lost > 0 {
		g.log.Error("messages for local clients are lost", "count", lost)
	}
	g.plant.setBuses(bus.NewSet(buses...))
	for _, w := range next.ways {
		w.uplink.Subscribe(append(g.subscriptions(next, w.name), w.bridge.Subscriptions()...))
	}
	err := g.tap(was, next)
	if g.running {
		g.herald.reload(context.Background(), was, next)
	}
	g.siren.reload(was, next)
	return err
}

// feed gives the publisher of next a feed, which goes on where that of was ends.
func (g *Gateway) feed(next, was *assembly) {
	p := &next.publish
	if was.publish.feed == nil {
		p.feed = g.pipeline.Subscribe("publish", feedDepth)
	} else {
		p.feed = was.publish.feed.Succeed()
	}
	publisher, feed := p.Publisher, p.feed
	p.part = group.NewPart("publish", func(ctx context.Context) error {
		err := publisher.Run(ctx, feed)
		if err == nil {
			<-ctx.Done() // the feed ends before it when another one follows
		}
		return err
	})
}

// retain forgets the points that are in no configuration any more.
func (g *Gateway) retain(devices []config.Device) {
	known := make(map[point.ID]bool)
	for i := range devices {
		for j := range devices[i].Points {
			known[devices[i].Points[j].ID] = true
		}
	}
	keep := func(id point.ID) bool { return known[id] }
	g.pipeline.Retain(keep)
	g.image.Retain(keep)
}

// changes compares two lists of parts. The publisher is always another one.
func changes(before, after []*group.Part) (c Changes) {
	named := func(list []*group.Part, name string) *group.Part {
		if i := slices.IndexFunc(list, func(p *group.Part) bool { return p.Name() == name }); i >= 0 {
			return list[i]
		}
		return nil
	}
	for _, p := range after {
		switch old := named(before, p.Name()); {
		case old == p, p.Name() == "publish":
		case old == nil:
			c.Started = append(c.Started, p.Name())
		default:
			c.Replaced = append(c.Replaced, p.Name())
		}
	}
	for _, p := range before {
		if named(after, p.Name()) == nil {
			c.Stopped = append(c.Stopped, p.Name())
		}
	}
	return c
}

// brokerOf returns the embedded broker: was, if it has the same settings.
func (g *Gateway) brokerOf(cfg *config.Broker, was localBroker) (next localBroker, err error) {
	log := part(g.log, "broker", "")
	switch {
	case cfg == nil:
		return localBroker{}, nil
	case was.Broker != nil && reflect.DeepEqual(was.cfg, *cfg):
		return was, nil
	case was.Broker != nil:
		next.Broker, err = was.Succeed(*cfg, log)
	default:
		next.Broker, err = broker.Listen(*cfg, g.dir, log)
	}
	if err != nil {
		return localBroker{}, fmt.Errorf("broker: %w", err)
	}
	next.cfg, next.part = *cfg, group.NewPart("broker", next.Run)
	return next, nil
}

// wireOf returns the bus c with its devices: that of was, if it has the same
// settings.
func (g *Gateway) wireOf(c config.Bus, devices []config.Device, was *assembly) wire {
	old := was.wire(c.Name)
	if old.bus != nil && old.cfg == c && reflect.DeepEqual(old.devices, devices) {
		return old
	}
	w := wire{cfg: c, devices: devices, name: c.Name}
	w.line = line.New(c, part(g.log, "line", c.Name))
	w.bus = bus.New(c, devices, w.line, g.pipeline.Emit, part(g.log, "bus", c.Name))
	w.bus.OnState, w.bus.Scratch = g.deviceState, g.scratch
	w.linePart, w.busPart = group.NewPart("line "+c.Name, w.line.Run), group.NewPart("bus "+c.Name, w.bus.Run)
	return w
}

// wire returns the bus of a name, none of it set if there is none.
func (a *assembly) wire(name string) wire {
	for _, w := range a.wires {
		if w.name == name {
			return w
		}
	}
	return wire{}
}

// pageOf returns what is served over HTTP: was, if it is the same.
func (g *Gateway) pageOf(cfg config.Web, was page) page {
	switch {
	case cfg.Listen == "":
		return page{}
	case was.Server != nil && was.cfg == cfg:
		return was
	}
	s := web.New(cfg.Listen, cfg.Given, web.Answers{Healthy: g.Healthy, Ready: g.Ready, Metrics: g.Metrics}, part(g.log, "web", ""))
	return page{s, cfg, group.NewPart("web", s.Run)}
}

// tap is something that is wanted of the embedded broker. It outlives a reload: the
// broker would hand over again what is retained.
type tap struct {
	filter mqtt.Filter
	of     *bridge.Bridge // nil: not for a bridge
	handle atomic.Pointer[mqtt.Handler]
	cancel func()
}

// take is an mqtt.Handler.
func (t *tap) take(m mqtt.Message, from mqtt.Origin) <-chan struct{} {
	return (*t.handle.Load())(m, from)
}

// tap asks the embedded broker of next for what is wanted of it.
func (g *Gateway) tap(was, next *assembly) error {
	before := g.taps
	g.taps = nil
	if was.broker.Broker != next.broker.Broker {
		before = nil // they have ended with their broker
	}
	var errs []error
	ask := func(of *bridge.Bridge, subs []uplink.Subscription) {
		for _, s := range subs {
			if i := slices.IndexFunc(before, func(t *tap) bool { return t.of == of && t.filter == s.Filter }); i >= 0 {
				before[i].handle.Store(&s.Handle)
				g.taps = append(g.taps, before[i])
				before = slices.Delete(before, i, i+1)
				continue
			}
			t := &tap{filter: s.Filter, of: of}
			t.handle.Store(&s.Handle)
			cancel, err := next.broker.Subscribe(s.Filter, t.take)
			if err != nil {
				errs = append(errs, fmt.Errorf("broker: subscribe %s: %w", s.Filter, err))
				continue
			}
			t.cancel = cancel
			g.taps = append(g.taps, t)
		}
	}
	if next.broker.Broker != nil {
		ask(nil, g.subscriptions(next, config.Local))
		for _, w := range next.ways {
			ask(w.bridge, w.bridge.Local())
		}
	}
	for _, t := range before {
		t.cancel()
	}
	return errors.Join(errs...)
}

// Pipeline returns the stream of samples and the last values.
func (g *Gateway) Pipeline() *pipeline.Pipeline { return g.pipeline }
