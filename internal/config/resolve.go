package config

import (
	"net"
	"os"
	"path/filepath"
	"strings"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Limits that keep a mistake from eating the memory: an alias makes large
// things cheap to write.
const (
	maxDevices = 10_000
	maxPoints  = 200_000
)

// resolver makes a Config of what stands in the files: it fills in what one
// section takes from another, and checks them against each other.
type resolver struct {
	*decoder
	tables *tables
	root   *node
	raw    *rawConfig

	cfg       Config
	points    int                        // so far
	cache     map[cacheKey][]point.Point // of lists with an anchor; the IDs lack the device
	uses      map[string]int             // devices on each bus
	listeners []listener                 // addresses that are listened on
	takes     []taking                   // points that messages set

	// Reused for each point and each device.
	scratch rawPoint
	seen    map[string]*node // the points of a device
}

// cacheKey is a list of points and all of a device that goes into them.
type cacheKey struct {
	points *node
	device pointContext
}

// pointContext is what points take from their device.
type pointContext struct {
	every     point.Interval
	groups    *node // where intervals of groups stand, nil: there are none
	order     point.Order
	base      int
	broadcast bool
	blocks    blocks
	holes     int
}

// listener is an address that is listened on, and who does.
type listener struct {
	host, port string
	by         string
	at         *node
}

func (r *resolver) resolve() *Config {
	r.uses = make(map[string]int)
	r.seen = make(map[string]*node)
	r.cache = make(map[cacheKey][]point.Point)
	r.cfg.places = make(map[string]Fault)
	r.cfg.file = r.set.Name(r.root)
	r.place("", r.root)

	r.site()
	r.section("buses", r.buses)
	r.section("devices", r.devices)
	r.section("uplinks", r.uplinks)
	r.section("broker", r.broker)
	r.section("uplinks", r.bridges)
	r.section("servers", r.servers)
	r.sources()
	r.section("publish", r.publish)
	r.section("commands", r.commands)
	r.section("command_rules", r.lock)
	r.section("uplinks", r.bridgedCommands)
	r.section("web", r.web)
	r.section("settings", r.settingsKey)
	r.section("uplinks", r.bridgedSettings)
	r.cfg.Status = r.raw.status
	r.cfg.Status.Topic = r.fillIn(r.raw.status.Topic, "")
	r.cfg.Log = r.raw.log
	r.usefulness()
	cfg := r.cfg // the resolver, and with it all that was read, is not to be kept
	return &cfg
}

// section runs a check with the path at a top-level key.
func (r *resolver) section(key string, check func()) {
	r.in(key)
	check()
	r.out()
}

// place remembers where a node stands, for Config.Fault.
func (r *resolver) place(path string, n *node) {
	p := r.set.Place(n)
	r.cfg.places[path] = Fault{File: p.File, Line: p.Line, Col: p.Col}
}

func (r *resolver) site() {
	r.cfg.Site = Site{ID: r.raw.site.id, Tags: r.raw.site.tags}
	if r.cfg.Site.ID != "" {
		return
	}
	name, err := os.Hostname()
	name = strings.Map(func(c rune) rune {
		if strings.ContainsRune("+#/{}", c) {
			return '_'
		}
		return c
	}, name)
	if err != nil || name == "" {
		r.faultf(r.root, "this machine has no host name to call the gateway by; write site: {id: NAME}")
		return
	}
	r.cfg.Site.ID = name
}

// fillIn replaces {site} and {name}.
func (r *resolver) fillIn(text, name string) string {
	return strings.NewReplacer("{site}", r.cfg.Site.ID, "{name}", name).Replace(text)
}

func (r *resolver) buses() {
	serial := make(map[string]*named[rawBus])
	peers := make(map[string]*named[rawBus])
	for i := range r.raw.buses {
		b := &r.raw.buses[i]
		r.place("buses."+b.name, b.key)
		if !b.ok {
			r.cfg.Buses = append(r.cfg.Buses, Bus{Name: b.name}) // so that devices find it
			continue
		}
		r.in(b.name)
		bus := r.bus(b)
		switch bus.Kind {
		case Serial:
			path := filepath.Clean(bus.Address)
			if real, err := filepath.EvalSymlinks(path); err == nil {
				path = real // by-id and ttyUSB0 are the same port
			}
			if other := serial[path]; other != nil {
				r.keyFault(b.at, "serial", "%s is the port of bus %s too (%s), and a port has one owner; give the devices that bus", bus.Address, other.name, r.set.Place(other.key))
			}
			serial[path] = b
		case TCP, UDP:
			peer := bus.Kind.String() + " " + strings.ToLower(bus.Address)
			if other := peers[peer]; other != nil {
				_, at := b.at.Get(bus.Kind.String())
				r.warnf(at, "bus %s connects to %s too (%s); many devices take only one connection", other.name, bus.Address, r.set.Place(other.key))
			} else {
				peers[peer] = b
			}
		case Listen:
			_, at := b.at.Get("listen")
			r.listen(bus.Address, "bus "+b.name, at)
		}
		r.out()
		r.cfg.Buses = append(r.cfg.Buses, bus)
	}
}

// bus resolves one bus. The path is at it.
func (r *resolver) bus(b *named[rawBus]) Bus {
	bus := b.is.Bus
	bus.Name = b.name
	given := 0
	for _, k := range []struct {
		kind    BusKind
		address string
	}{{Serial, b.is.serial}, {TCP, b.is.tcp}, {UDP, b.is.udp}, {Listen, b.is.listen}} {
		if has(b.at, k.kind.String()) {
			given++
			bus.Kind, bus.Address = k.kind, k.address
		}
	}
	if given != 1 {
		bus.Kind = 0
		if given == 0 && (r.partial || b.bad) {
			return bus
		}
		r.shapef(b.at, "gives %d of serial, tcp, udp and listen; write exactly one", given)
		return bus
	}
	bus.Framing = b.is.framing.is
	if !b.is.framing.given && (bus.Kind == Serial || bus.Kind == Listen) {
		bus.Framing = modbus.FramingRTU
	}
	if bus.Kind == Serial {
		if bus.Framing == modbus.FramingTCP {
			r.keyFault(b.at, "framing", "tcp needs a connection, and this is a serial line; write rtu or ascii")
		}
		if bus.Framing == modbus.FramingRTU && bus.Mode.DataBits == 7 {
			r.keyFault(b.at, "mode", "RTU needs 8 data bits; write %s, or framing: ascii", SerialMode{bus.Mode.Baud, 8, bus.Mode.Parity, bus.Mode.StopBits})
		}
		if bus.RS485.Mode == RS485Off {
			r.onlyFor(b.at, "rs485: kernel or rts", "rts_invert", "delay_before", "delay_after")
		}
	} else {
		r.onlyFor(b.at, "a serial line", "mode", "rs485", "rts_invert", "delay_before", "delay_after")
		bus.Mode, bus.RS485 = SerialMode{}, RS485{}
	}
	if bus.Kind != TCP {
		r.onlyFor(b.at, "tcp", "connect_timeout")
	}
	if bus.InFlight != 1 && (bus.Framing != modbus.FramingTCP || bus.Kind != TCP && bus.Kind != Listen) {
		r.keyFault(b.at, "in_flight", "only a TCP connection with framing tcp tells answers apart; write 1")
	}
	return bus
}

// onlyFor reports keys that mean nothing here.
func (r *resolver) onlyFor(m *node, what string, keys ...string) {
	for _, k := range keys {
		if has(m, k) {
			r.keyFault(m, k, "is only for %s; remove it", what)
		}
	}
}

// listen reports an address that is listened on already.
func (r *resolver) listen(address, by string, at *node) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || at == nil {
		return // reported where it was read
	}
	for _, l := range r.listeners {
		if l.port == port && port != "0" && (l.host == host || anyHost(l.host) || anyHost(host)) {
			r.faultf(at, "%s listens on port %s too (%s); write another port", l.by, port, r.set.Place(l.at))
			return
		}
	}
	r.listeners = append(r.listeners, listener{host: host, port: port, by: by, at: at})
}

// anyHost reports whether a host stands for every address.
func anyHost(host string) bool { return host == "" || host == "0.0.0.0" || host == "::" }

// usefulness warns of parts that lead nowhere.
func (r *resolver) usefulness() {
	for i := range r.raw.buses {
		b := &r.raw.buses[i]
		if r.uses[b.name] == 0 && b.ok {
			r.in("buses")
			r.in(b.name)
			r.warnf(b.key, "no device is on it")
			r.out()
			r.out()
		}
	}
	switch ends := len(r.cfg.Uplinks) > 0 || r.cfg.Broker != nil || len(r.cfg.Servers) > 0; {
	case !ends && len(r.raw.buses)+len(r.cfg.Devices)+len(r.found) == 0:
		r.warnf(r.root, "there is nothing to do; add buses: and devices:, and uplinks: or broker: for their values")
	case !ends && len(r.cfg.Devices) > 0:
		r.warnf(r.root, "values go nowhere: there are no uplinks, no broker and no servers; add uplinks: or broker:")
	}
	if has(r.root, "publish") && len(r.cfg.Devices) == 0 && len(r.found) == 0 {
		r.warnf(r.root, "there are rules to publish by, but no devices; add devices:")
	}
}
