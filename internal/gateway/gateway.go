// Package gateway is the assembly: it names every part of the running gateway
// once, connects them, and starts and stops them in order. Follow a value
// through it: line → bus → pipeline → publish → queue → uplink, or broker.
//
// The type to know is Gateway.
package gateway

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
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

// Gateway is one gateway. What is here lives as long as the process; what is made
// of the configuration is its assembly, which Reload replaces.
type Gateway struct {
	log     *slog.Logger
	version string
	dir     string
	start   time.Time

	clock    *clock.Clock
	pipeline *pipeline.Pipeline
	image    *regmap.Image
	scratch  *bus.Scratch
	plant    *plant
	comings  comings
	herald   *herald
	siren    *siren
	remote   *remote
	lasting  lasting
	interim  interim

	now atomic.Pointer[assembly]

	turn    chan struct{} // holds a token while parts are started, replaced or stopped
	parts   *group.Group
	taps    []*tap
	running bool

	ending context.Context // ends when Run is to stop, and a reload with it
	end    context.CancelFunc
}

// lasting is the parts that are the same in every assembly.
type lasting struct{ clock, status, alarms, virtual, settings *group.Part }

// assembly is what is made of one configuration. It does not change once it is at
// work. The next one takes over what has the same settings there.
type assembly struct {
	status   config.Status
	alarms   string // topic of alarms, before the severity
	warnings []string
	settings *config.Settings // nil: nothing is changed by messages
	sums     config.Sums      // of what the configuration was read from
	maxAge   time.Duration    // of messages with a timestamp
	memory   []config.Device  // the virtual ones
	points   int

	audit   *audit.Log // nil: nothing can be written
	desk    desk
	broker  localBroker
	ways    []way
	sinks   map[string]mqtt.Sink // where messages go, by the names of rules
	told    map[string]mqtt.Sink // of these, those that are told how the gateway is
	publish publisher
	wires   []wire
	servers []server
	web     page
}

// desk is the gate before all writes.
type desk struct {
	*command.Desk // nil: nothing can be written
	part          *group.Part
}

// localBroker is the embedded broker.
type localBroker struct {
	*broker.Broker // nil: none
	cfg            config.Broker
	part           *group.Part
}

// way is an uplink, its queue, and what it carries for local clients.
type way struct {
	cfg    config.Uplink
	state  string   // topic of the gateway's state
	peers  []string // client ids of all uplinks
	name   string
	queue  *queue.Queue
	uplink *uplink.Uplink
	bridge *bridge.Bridge // nil: nothing

	queuePart, uplinkPart *group.Part
}

// publisher applies the rules to what comes out of a feed.
type publisher struct {
	*publish.Publisher
	feed *pipeline.Feed
	part *group.Part
}

// wire is a bus and the line it owns.
type wire struct {
	cfg     config.Bus
	devices []config.Device
	name    string
	line    *line.Line
	bus     *bus.Bus

	linePart, busPart *group.Part
}

// server is a Modbus server, and the map that it is to have.
type server struct {
	*regmap.Server
	serves *regmap.Map
	part   *group.Part
}

// page is what is served over HTTP.
type page struct {
	*web.Server // nil: nothing
	cfg         config.Web
	part        *group.Part
}

// Open makes a gateway from cfg and its topics, as Load returns them. It opens
// the local broker's listeners and the queues in the folder dir; nothing runs
// before Run, which must follow. version is what the gateway says of itself.
// After an error nothing stays open.
func Open(cfg *config.Config, topics []publish.Topic, dir, version string, log *slog.Logger) (*Gateway, error) {
	g := &Gateway{
		log: log, version: version, dir: dir, start: time.Now(),
		clock: clock.Open(dir, part(log, "clock", "")), pipeline: pipeline.New(),
		image: regmap.NewImage(nil), scratch: new(bus.Scratch), plant: new(plant), parts: group.New(log), turn: make(chan struct{}, 1),
	}
	g.ending, g.end = context.WithCancel(context.Background())
	g.herald, g.siren = newHerald(g), newSiren(g)
	g.remote = newRemote(g)
	g.plant.virtual = virtual.New(cfg.Devices, dir, g.pipeline.Emit, part(log, "virtual", ""))
	g.plant.virtual.Clock = g.clock
	g.lasting = lasting{
		clock: group.NewPart("clock", g.clock.Run), status: group.NewPart("status", g.herald.run),
		alarms: group.NewPart("alarms", g.siren.run), virtual: group.NewPart("virtual", g.plant.virtual.Run),
		settings: group.NewPart("settings", g.remote.run),
	}
	g.now.Store(new(assembly))
	next, err := g.assemble(cfg, topics)
	if err != nil {
		return nil, err
	}
	g.pipeline.Expect(next.points)
	if err := g.install(cfg, next); err != nil {
		return nil, errors.Join(err, g.abandon())
	}
	return g, nil
}

// assemble makes all parts of a configuration, but for those that the assembly at
// work has with the same settings. It opens what they need of the world, and
// changes nothing that is at work. After an error nothing of it stays open.
func (g *Gateway) assemble(cfg *config.Config, topics []publish.Topic) (next *assembly, err error) {
	was := g.now.Load()
	next = &assembly{
		status: cfg.Status, alarms: alarmTopic(cfg.Site), audit: was.audit, desk: was.desk,
		settings: cfg.Settings, sums: cfg.Sums, maxAge: cfg.CommandRules.MaxAge,
		sinks: make(map[string]mqtt.Sink), told: make(map[string]mqtt.Sink),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, next.abandon(was))
		}
	}()
	for _, w := range cfg.Warnings {
		next.warnings = append(next.warnings, w.Path+": "+w.Text)
	}
	devices := make(map[string][]config.Device)
	for _, d := range cfg.Devices {
		devices[d.Bus] = append(devices[d.Bus], d)
		next.points += len(d.Points)
	}
	next.memory = devices[""]
	if was.audit == nil && (writable(cfg.Devices) || len(cfg.Commands) > 0 || cfg.Settings != nil || passesWrites(cfg.Servers)) {
		if next.audit, err = audit.Open(g.dir, audit.Options{OnRecord: g.herald.record, Clock: g.clock}, part(g.log, "audit", "")); err != nil {
			return next, err
		}
	}

	if next.broker, err = g.brokerOf(cfg.Broker, was.broker); err != nil {
		return next, err
	}
	if b := next.broker.Broker; b != nil {
		next.sinks[config.Local], next.told[config.Local] = b, b
	}
	for _, c := range cfg.Uplinks {
		w, err := g.wayOf(cfg, c, next, was)
		if err != nil {
			return next, err
		}
		next.ways = append(next.ways, w)
		if next.sinks[c.Name] = w.queue; !c.NoStatus {
			next.told[c.Name] = w.queue
		}
	}

	next.publish = publisher{Publisher: publish.New(topics, cfg.Devices, next.sinks, part(g.log, "publish", ""))}
	next.publish.Clock = g.clock

	passed := passedTo(cfg.Servers)
	for _, c := range cfg.Buses {
		if len(devices[c.Name]) == 0 && !passed[c.Name] {
			continue // a bus without devices has nothing to say; check warns
		}
		next.wires = append(next.wires, g.wireOf(c, devices[c.Name], was))
	}
	if next.servers, err = g.serversOf(cfg.Servers, was); err != nil {
		return next, err
	}
	next.web = g.pageOf(cfg.Web, was.web)
	return next, nil
}

// list returns the parts of an assembly, with the uplinks of ways, from the cloud
// end to the field end: so they are started, and stopped the other way round.
func (g *Gateway) list(ways []way, a *assembly) []*group.Part {
	parts := []*group.Part{g.lasting.clock}
	if a.broker.part != nil {
		parts = append(parts, a.broker.part)
	}
	for _, w := range ways {
		parts = append(parts, w.queuePart, w.uplinkPart)
	}
	parts = append(parts, g.lasting.status, g.lasting.alarms, a.publish.part, g.lasting.virtual)
	for _, w := range a.wires {
		parts = append(parts, w.linePart, w.busPart)
	}
	if a.desk.Desk != nil {
		parts = append(parts, a.desk.part)
	}
	for _, s := range a.servers {
		parts = append(parts, s.part)
	}
	if a.web.Server != nil {
		parts = append(parts, a.web.part)
	}
	return append(parts, g.lasting.settings)
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
	g.turn <- struct{}{}
	a := g.now.Load()
	for _, name := range g.plant.virtual.Devices() {
		g.herald.device(name, bus.Online) // as long as we are
	}
	g.parts.Start(g.list(a.ways, a)...)
	g.running = true
	<-g.turn
	ready()

	var failed error
	select {
	case <-ctx.Done():
	case failed = <-g.parts.Failed():
		g.log.Error("part failed, stopping", "err", failed)
	}
	g.end()
	g.turn <- struct{}{} // a reload that is under way waits for nobody any more
	defer func() { <-g.turn }()
	g.running = false
	if err := g.parts.Stop(context.Background(), stopLimit); err != nil {
		g.log.Error("stop", "err", err)
	}
	if err := g.now.Load().closeFiles(); err != nil {
		g.log.Error("stop", "err", err)
	}
	return failed
}

// abandon closes what Open has opened, when there will be no Run.
func (g *Gateway) abandon() error { return g.now.Load().abandon(new(assembly)) }

// abandon closes what was opened for the assembly a, when it will not be at work
// in place of was.
func (a *assembly) abandon(was *assembly) (err error) {
	if a.audit != nil && a.audit != was.audit {
		err = a.audit.Close()
	}
	for _, w := range a.ways {
		if w.queue != was.way(w.name).queue {
			err = errors.Join(err, w.queue.Close())
		}
	}
	for _, s := range a.servers {
		if !slices.ContainsFunc(was.servers, func(old server) bool { return old.Server == s.Server }) {
			err = errors.Join(err, s.Close())
		}
	}
	if b := a.broker.Broker; b != nil && b != was.broker.Broker {
		err = errors.Join(err, b.Close())
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

func (a *assembly) closeFiles() (err error) {
	if a.audit != nil {
		err = a.audit.Close()
	}
	for _, w := range a.ways {
		err = errors.Join(err, w.queue.Close())
	}
	return err
}
