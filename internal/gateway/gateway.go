// Package gateway is the assembly: it names every part of the running gateway
// once, connects them, and starts and stops them in order. Follow a value
// through it: line → bus → pipeline → publish → queue → uplink, or broker.
//
// The type to know is Gateway.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"fieldgate/internal/audit"
	"fieldgate/internal/bridge"
	"fieldgate/internal/broker"
	"fieldgate/internal/bus"
	"fieldgate/internal/clock"
	"fieldgate/internal/command"
	"fieldgate/internal/config"
	"fieldgate/internal/group"
	"fieldgate/internal/line"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/pipeline"
	"fieldgate/internal/publish"
	"fieldgate/internal/queue"
	"fieldgate/internal/regmap"
	"fieldgate/internal/uplink"
	"fieldgate/internal/virtual"
	"fieldgate/internal/web"
)

const (
	// feedDepth is how many batches the publisher may be behind the field
	// before the oldest are dropped and counted: some seconds of a large plant.
	feedDepth = 4096
	// stopLimit leaves a margin below the ten seconds that SIGTERM promises.
	stopLimit = 9 * time.Second
)

// Gateway is one gateway made from one configuration.
type Gateway struct {
	log     *slog.Logger
	version string
	start   time.Time

	warnings []string // of the configuration
	clock    *clock.Clock
	pipeline *pipeline.Pipeline
	feed     *pipeline.Feed
	wires    []wire
	servers  []*regmap.Server
	ways     []way
	broker   *broker.Broker // nil: none
	publish  *publish.Publisher
	audit    *audit.Log // nil: nothing can be written
	plant    *plant
	desk     *command.Desk // nil: nothing can be written
	comings  comings
	herald   *herald
	siren    *siren
	web      *web.Server // nil: none
}

// wire is a bus and the line it owns.
type wire struct {
	name string
	line *line.Line
	bus  *bus.Bus
}

// way is an uplink, its queue, and what it carries for local clients.
type way struct {
	name   string
	queue  *queue.Queue
	uplink *uplink.Uplink
	bridge *bridge.Bridge // nil: nothing
}

// Open makes a gateway from cfg and its topics, as Load returns them. It opens
// the local broker's listeners and the queues in the folder dir; nothing runs
// before Run, which must follow. version is what the gateway says of itself.
// After an error nothing stays open.
func Open(cfg *config.Config, topics []publish.Topic, dir, version string, log *slog.Logger) (*Gateway, error) {
	g := &Gateway{log: log, version: version, start: time.Now(), clock: clock.Open(dir, part(log, "clock", "")), plant: new(plant)}
	for _, w := range cfg.Warnings {
		g.warnings = append(g.warnings, w.Path+": "+w.Text)
	}
	sinks := make(map[string]mqtt.Sink)
	told := make(map[string]mqtt.Sink) // of sinks, those that the herald speaks to
	g.herald = newHerald(cfg.Status, g, told)
	if writable(cfg.Devices) || len(cfg.Commands) > 0 || passesWrites(cfg.Servers) {
		l, err := audit.Open(dir, audit.Options{OnRecord: g.herald.record, Clock: g.clock}, part(log, "audit", ""))
		if err != nil {
			return nil, err
		}
		g.audit = l
		g.openDesk(cfg, dir, sinks)
	}

	points := 0
	devices := make(map[string][]config.Device)
	for _, d := range cfg.Devices {
		devices[d.Bus] = append(devices[d.Bus], d)
		points += len(d.Points)
	}
	image := regmap.NewImage(cfg.Servers)
	if len(cfg.Servers) > 0 {
		g.pipeline = pipeline.New(image)
	} else {
		g.pipeline = pipeline.New()
	}
	g.pipeline.Expect(points)
	g.feed = g.pipeline.Subscribe("publish", feedDepth)
	g.plant.virtual = virtual.New(cfg.Devices, dir, g.pipeline.Emit, part(log, "virtual", ""))
	g.plant.virtual.Clock = g.clock

	if cfg.Broker != nil {
		b, err := broker.Listen(*cfg.Broker, dir, part(log, "broker", ""))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("broker: %w", err), g.abandon())
		}
		g.broker = b
		sinks[config.Local], told[config.Local] = b, b
	}
	state := cfg.Status.Topic + "/state"
	for _, c := range cfg.Uplinks {
		q, err := queue.Open(dir, c.Name, c.Queue, part(log, "queue", c.Name))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("queue %s: %w", c.Name, err), g.abandon())
		}
		q.Clock = g.clock
		br, err := g.bridgeOf(cfg, c, q)
		if err != nil {
			return nil, errors.Join(err, q.Close(), g.abandon())
		}
		u := uplink.New(c, q, stateMessage(state, offline), stateMessage(state, online), append(g.subscriptions(c.Name), br.Subscriptions()...), part(log, "uplink", c.Name))
		if br != nil {
			u.OnSend, br.Connected = br.Sent, u.Connected
		}
		g.ways = append(g.ways, way{c.Name, q, u, br})
		if sinks[c.Name] = q; !c.NoStatus {
			told[c.Name] = q
		}
	}
	g.siren = newSiren(cfg, g)
	for _, w := range g.ways {
		tell := g.herald.queueEvent(w.name)
		w.queue.OnEvent = func(e queue.Event) {
			tell(e)
			g.siren.queueEvent(w.name, e)
		}
	}

	g.publish = publish.New(topics, cfg.Devices, sinks, part(log, "publish", ""))
	g.publish.Clock = g.clock

	scratch, passed := new(bus.Scratch), passedTo(cfg.Servers)
	var buses []*bus.Bus
	for _, c := range cfg.Buses {
		if len(devices[c.Name]) == 0 && !passed[c.Name] {
			continue // a bus without devices has nothing to say; check warns
		}
		l := line.New(c, part(log, "line", c.Name))
		b := bus.New(c, devices[c.Name], l, g.pipeline.Emit, part(log, "bus", c.Name))
		b.OnState, b.Scratch = g.deviceState, scratch
		g.wires = append(g.wires, wire{c.Name, l, b})
		buses = append(buses, b)
	}
	g.plant.buses = bus.NewSet(buses...)
	if err := g.subscribeLocal(); err != nil {
		return nil, errors.Join(err, g.abandon())
	}
	if err := g.openServers(cfg.Servers, image); err != nil {
		return nil, errors.Join(err, g.abandon())
	}
	if w := cfg.Web; w.Listen != "" {
		g.web = web.New(w.Listen, w.Given, web.Answers{Healthy: g.Healthy, Ready: g.Ready, Metrics: g.Metrics}, part(log, "web", ""))
	}
	return g, nil
}

// part returns the log of one part, with its name on every line.
func part(log *slog.Logger, kind, name string) *slog.Logger {
	if name == "" {
		return log.With("part", kind)
	}
	return log.With("part", kind+" "+name)
}

// Run runs the gateway until ctx ends, then stops it within ten seconds: the
// field first, so that a value once read finds the rest of its way open. ready
// is called when every part has been started. Run returns nil when it was told
// to stop, and an error when a part failed in a way that only a fresh start
// of the process can mend. It may be called once.
func (g *Gateway) Run(ctx context.Context, ready func()) error {
	parts := group.New(g.log)
	parts.Start("clock", g.clock.Run)
	if g.broker != nil {
		parts.Start("broker", g.broker.Run)
	}
	for _, w := range g.ways {
		parts.Start("queue "+w.name, w.queue.Run)
		parts.Start("uplink "+w.name, w.uplink.Run)
	}
	parts.Start("status", g.herald.run)
	parts.Start("alarms", g.siren.run)
	parts.Start("publish", func(ctx context.Context) error { return g.publish.Run(ctx, g.feed) })
	if v := g.plant.virtual; v.Len() > 0 {
		for _, name := range v.Devices() {
			g.herald.device(name, bus.Online) // as long as we are
		}
		parts.Start("virtual", v.Run)
	}
	for _, w := range g.wires {
		parts.Start("line "+w.name, w.line.Run)
		parts.Start("bus "+w.name, w.bus.Run)
	}
	if g.desk != nil {
		parts.Start("commands", g.desk.Run)
	}
	for _, s := range g.servers {
		parts.Start("server "+s.Name(), s.Run)
	}
	if g.web != nil {
		parts.Start("web", g.web.Run)
	}
	ready()

	var failed error
	select {
	case <-ctx.Done():
	case failed = <-parts.Failed():
		g.log.Error("part failed, stopping", "err", failed)
	}
	if err := parts.Stop(stopLimit); err != nil {
		g.log.Error("stop", "err", err)
	}
	if err := g.closeFiles(); err != nil {
		g.log.Error("stop", "err", err)
	}
	return failed
}

// abandon closes what Open has opened, when there will be no Run.
func (g *Gateway) abandon() error {
	err := errors.Join(g.closeFiles(), g.closeServers())
	if g.broker != nil {
		err = errors.Join(err, g.broker.Close())
	}
	return err
}

// writable reports whether any point may be written.
func writable(devices []config.Device) bool {
	for _, d := range devices {
		for i := range d.Points {
			if d.Points[i].Write != nil {
				return true
			}
		}
	}
	return false
}

func (g *Gateway) closeFiles() (err error) {
	if g.audit != nil {
		err = g.audit.Close()
	}
	for _, w := range g.ways {
		err = errors.Join(err, w.queue.Close())
	}
	return err
}

// Pipeline returns the stream of samples and the last values.
func (g *Gateway) Pipeline() *pipeline.Pipeline { return g.pipeline }
