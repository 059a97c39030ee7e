package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"fieldgate/internal/config/yamltree"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// This file has all of the Modbus servers: what they are, how they are written
// and how they are checked.

// Server is one Modbus server for local PLCs.
type Server struct {
	Name    string  // its listen, as it is written: tcp://0.0.0.0:502
	Kind    BusKind // Serial, TCP or UDP
	Address string  // HOST:PORT, or path of the port
	Framing modbus.Framing
	Mode    SerialMode // serial only
	RS485   RS485      // serial only

	Unit       modbus.UnitID  // 0: any
	Allow      []netip.Prefix // nil: everyone, which only a loopback address and a serial port have
	MaxClients int
	Idle       time.Duration
	Writes     bool
	Map        []Entry // by table and address
	Pass       []Pass
	PassWrites PassWrites
}

// Show is what an Entry shows of its point, or does.
type Show uint8

// What an entry shows: the value; its status, 0 good, 1 uncertain, 2 bad or
// stale, 3 never read (of a bit: whether it is good or uncertain); its age in
// seconds; or for how many seconds the polling of a device still pauses.
const (
	ShowValue Show = iota
	ShowStatus
	ShowAge
	ShowPause
)

// Entry is what stands at one place of a server's map.
type Entry struct {
	Show Show

	// Point is the point as the PLC sees it: ID is that of the point itself,
	// everything else is how it stands in the map.
	Point    point.Point
	Writable bool   // the point itself has write settings, and the table may be written
	Device   string // of ShowPause

	Stale      Stale
	Pattern    uint64        // of StaleValue: the bits of the raw value
	StaleAfter time.Duration // a value this old is stale; 0: none is
}

// Stale is what a server answers in place of a value that is bad or stale.
type Stale uint8

// The choices: exception 0x0B, the last good value, zero, or a value.
const (
	StaleException Stale = iota
	StaleLast
	StaleZero
	StaleValue
)

// Pass is units of a server whose requests go on to a bus.
type Pass struct {
	From, To modbus.UnitID
	Bus      string
}

// PassWrites says which writes go on to a bus: all, or those that lie in one of
// the spans.
type PassWrites struct {
	All   bool
	Spans []Span
}

// Span is a run of coils or registers, To included.
type Span struct {
	Table    modbus.Table
	From, To uint16
}

// The shortest times after which a value is stale when nothing else is said: a
// poll may be late by the width of a start slot, and how long a poll takes "as
// fast as the bus allows" depends on the bus.
const (
	stalePolls   = 3
	staleLeast   = time.Second
	staleFastest = 10 * time.Second
)

type (
	rawServer struct {
		Server
		listen     rawListen
		allow      []netip.Prefix
		stale      rawStale
		staleAfter time.Duration // unsetDuration: three polls
		entries    []rawPlaced
		pass       []rawPass
		at         *node

		ownAfter map[string]time.Duration // stale_after of the points in the map; unsetDuration: none of its own, or several
	}
	rawListen struct {
		text    string
		kind    BusKind
		address string
		framing modbus.Framing // of the scheme
	}
	rawStale struct {
		is    Stale
		value raw
		given bool
	}
	rawPlaced struct {
		place place
		key   *node
		at    *node
		is    rawEntry
	}
	rawEntry struct {
		point, status, age, pause string
		kind                      pointType
		order                     point.Order
		scale, offset             *point.Decimal
		stale                     rawStale
		staleAfter                time.Duration
	}
	rawPass struct {
		units []unitRange
		bus   string
		key   *node
		at    *node
	}
)

func newServer(t *tables) value[rawServer] {
	entry := newObject("an entry", "A point as the PLC sees it; or its status, its age, or the pause of a device's polling: exactly one of point, status, age and pause.", rawEntry{order: unsetOrder, staleAfter: unsetDuration},
		key("point", func(e *rawEntry) *string { return &e.point }, pointName(), "The point whose value stands here.").aka("value", "source"),
		key("status", func(e *rawEntry) *string { return &e.status }, pointName(), "The point whose status stands here: 0 good, 1 uncertain, 2 bad or stale, 3 never read; as a coil or discrete input: whether there is a value.").aka("quality"),
		key("age", func(e *rawEntry) *string { return &e.age }, pointName(), "The point whose value's age stands here, in seconds; the greatest number of the type for older ones and before the first value."),
		key("pause", func(e *rawEntry) *string { return &e.pause }, text("the name of a device"), "The device whose polling pauses for as many seconds as are written here, at most 3600; 0 ends it. Reads as what is left."),
		key("type", func(e *rawEntry) *pointType { return &e.kind }, typeOf(), "How it is laid out here. Default: as in the device, with its order, scale and offset; bool in coils and discrete inputs.").aka("datatype", "data_type", "format"),
		key("order", func(e *rawEntry) *point.Order { return &e.order }, order(), "Order of bytes and words here. Default: as in the device; ABCD where type is given.").aka("byte_order", "word_order", "endian", "swap", "byteswap"),
		key("scale", func(e *rawEntry) **point.Decimal { return &e.scale }, optionalDecimal(), "What stands here = (value - offset) / scale. Default: as in the device; 1 where type is given.").aka("gain", "factor", "multiplier"),
		key("offset", func(e *rawEntry) **point.Decimal { return &e.offset }, optionalDecimal(), "What stands here = (value - offset) / scale. Default: as in the device; 0 where type is given."),
		key("stale", func(e *rawEntry) *rawStale { return &e.stale }, staleOf(), "As of the server, whose it is by default."),
		key("stale_after", func(e *rawEntry) *time.Duration { return &e.staleAfter }, duration(10*time.Millisecond, maxWait), "As of the server, whose it is by default."),
	)
	entry.extra = schema{{"oneOf", []schema{{{"required", []string{"point"}}}, {{"required", []string{"status"}}}, {{"required", []string{"age"}}}, {{"required", []string{"pause"}}}}}}
	return newObject("a server", "A Modbus server for local PLCs.", rawServer{staleAfter: unsetDuration},
		key("listen", func(s *rawServer) *rawListen { return &s.listen }, serverListen(), "tcp://HOST:PORT, udp://HOST:PORT or serial:PATH; rtu+tcp://, rtu+udp://, ascii+tcp:// and ascii+udp:// have the frames of a serial line.").must().aka("port", "address", "url", "bind"),
		key("framing", func(s *rawServer) *modbus.Framing { return &s.Framing }, enum(
			word[modbus.Framing]{"rtu", modbus.FramingRTU}, word[modbus.Framing]{"ascii", modbus.FramingASCII}), "How requests are wrapped on a serial port. Default: rtu.").aka("protocol"),
		key("mode", func(s *rawServer) *SerialMode { return &s.Mode }, serialMode(), "Baud, data bits, parity and stop bits of a serial port.").def("19200-8E1").aka("baud", "baudrate", "speed", "parity"),
		key("rs485", func(s *rawServer) *RS485Mode { return &s.RS485.Mode }, enum(
			word[RS485Mode]{"off", RS485Off}, word[RS485Mode]{"kernel", RS485Kernel}, word[RS485Mode]{"rts", RS485RTS}),
			"Who switches the transmitter of a serial port, as of a bus.").def("off"),
		key("unit", func(s *rawServer) *modbus.UnitID { return &s.Unit }, unitID(), "Unit id that the map answers to; 0 = any.").def("1").aka("slave", "slave_id", "unit_id", "id", "station"),
		key("allow", func(s *rawServer) *[]netip.Prefix { return &s.allow }, oneOrList(cidr(), "addresses"), "Who may connect: addresses and networks such as 10.0.0.0/24. Required unless it listens on a loopback address.").aka("allowed", "clients", "whitelist"),
		key("max_clients", func(s *rawServer) *int { return &s.MaxClients }, integer(1, 1000), "Most connections at once.").def("32").aka("max_connections"),
		key("idle", func(s *rawServer) *time.Duration { return &s.Idle }, duration(time.Second, 24*time.Hour), "A connection that asks nothing for so long is closed.").def("60s").aka("timeout", "idle_timeout"),
		key("map", func(s *rawServer) *[]rawPlaced { return &s.entries }, entries(entry.value(t, "entry")), "What stands where: Modicon numbers (in quotes where they begin with 0), or holding 0 and so on, each with device.point or {point, type, order, scale}.").aka("registers", "points", "table"),
		key("stale", func(s *rawServer) *rawStale { return &s.stale }, staleOf(), "What is answered in place of a value that is bad or older than stale_after: exception (0x0B), last (the last good value), zero, or a raw value such as 0x8000.").def("exception"),
		key("stale_after", func(s *rawServer) *time.Duration { return &s.staleAfter }, duration(10*time.Millisecond, maxWait), "How old a value may be. Default: three polls of its point, at least 1s; 10s for points read as fast as the bus allows; no limit for those read once or never, and of virtual devices.").aka("max_age"),
		key("writes", func(s *rawServer) *bool { return &s.Writes }, boolean(), "The PLC may write points that have write settings.").def("false").aka("writable", "write"),
		key("pass", func(s *rawServer) *[]rawPass { return &s.pass }, passes(), "Units whose requests go on to a bus, after our own writes: {\"2-10\": line1}.").aka("passthrough", "pass_through", "forward"),
		key("pass_writes", func(s *rawServer) *PassWrites { return &s.PassWrites }, passWrites(), "Which writes go on to a bus: false, true, or only those that lie within a list such as [holding 100-120, coil 3].").def("false"),
	).value(t, "server")
}

// pointName is device.point.
func pointName() value[string] { return text("a point, device.point") }

// unitID is one unit id; 0 stands for any.
func unitID() value[modbus.UnitID] {
	v := integer(0, 255)
	return value[modbus.UnitID]{v.schema, func(d *decoder, n *node) (modbus.UnitID, bool) {
		got, ok := v.read(d, n)
		return modbus.UnitID(got), ok
	}}
}

// cidr is a network, or the address of one host.
func cidr() value[netip.Prefix] {
	const want = "an address or a network such as 10.0.0.0/24"
	v := text(want)
	return value[netip.Prefix]{v.schema, func(d *decoder, n *node) (netip.Prefix, bool) {
		s, ok := v.read(d, n)
		if !ok {
			return netip.Prefix{}, false
		}
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), true
		}
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			d.faultf(n, "%s is not %s; write that", quote(s), want)
			return p, false
		case p.Masked() != p:
			d.faultf(n, "%s has bits beyond its network; write %s", quote(s), p.Masked())
			return p, false
		case p.Addr().Is4In6():
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96) // IPv4, as which its clients are seen
		}
		return p, true
	}}
}

// serverListen is where a server listens.
func serverListen() value[rawListen] {
	const want = "tcp://0.0.0.0:502, rtu+tcp://…, udp://… or serial:/dev/ttyUSB0"
	schemes := map[string]rawListen{
		"tcp": {kind: TCP}, "rtu+tcp": {kind: TCP, framing: modbus.FramingRTU}, "ascii+tcp": {kind: TCP, framing: modbus.FramingASCII},
		"udp": {kind: UDP}, "rtu+udp": {kind: UDP, framing: modbus.FramingRTU}, "ascii+udp": {kind: UDP, framing: modbus.FramingASCII},
	}
	return value[rawListen]{pattern(`^(((rtu|ascii)\+)?(tcp|udp)://.*|serial:/.*)$`), func(d *decoder, n *node) (rawListen, bool) {
		s, ok := d.text(n, want)
		if !ok {
			return rawListen{}, false
		}
		if path, is := strings.CutPrefix(s, "serial:"); is && strings.HasPrefix(path, "/") {
			l := rawListen{text: s, kind: Serial, address: strings.TrimPrefix(path, "//"), framing: modbus.FramingRTU}
			if l.address == "/" || l.address == "" {
				d.faultf(n, "names no port; write one such as serial:/dev/ttyUSB0")
				return l, false
			}
			return l, true
		}
		scheme, rest, found := strings.Cut(s, "://")
		l := schemes[scheme]
		if l.text, l.address = s, rest; !found || l.kind == 0 {
			d.shapef(n, "%s does not say where to listen; write %s", quote(s), want)
			return l, false
		}
		if wrong, _ := checkHostPort(rest, "502", true); wrong != "" {
			d.faultf(n, "%s", wrong)
			return l, false
		}
		return l, true
	}}
}

// staleOf is what is answered in place of a value that is stale.
func staleOf() value[rawStale] {
	known := same("exception", "last", "zero")
	s := anyOf(schema{{"enum", []string{"exception", "last", "zero"}}}, rawValue().schema)
	words := enum(known...)
	return value[rawStale]{s, func(d *decoder, n *node) (rawStale, bool) {
		if n.Kind == yamltree.Scalar && coreType(n) != coreInt {
			w, ok := words.read(d, n)
			is := map[string]Stale{"exception": StaleException, "last": StaleLast, "zero": StaleZero}[w]
			return rawStale{is: is, given: true}, ok
		}
		v, ok := rawValue().read(d, n)
		return rawStale{StaleValue, v, true}, ok
	}}
}

// entries is a server's map.
func entries(entry value[rawEntry]) value[[]rawPlaced] {
	one := pointName()
	s := schema{{"type", "object"},
		{"propertyNames", pattern(`^(((coil|discrete|input|holding) +([0-9]+|0[xX][0-9a-fA-F]+))|[0134][0-9]{4,5})$`)},
		{"additionalProperties", anyOf(one.schema, entry.schema)}, {"minProperties", 1}}
	where := address()
	return value[[]rawPlaced]{s, func(d *decoder, n *node) ([]rawPlaced, bool) {
		if n.Kind != yamltree.Map {
			d.wrongKind(n, "a map from Modicon numbers to points", "")
			return nil, false
		}
		if n.Len() == 0 {
			d.shapef(n, "is an empty map; write Modicon numbers with points, such as {40001: boiler.temp}, or remove the key")
			return nil, false
		}
		out, all := make([]rawPlaced, 0, n.Len()), true
		seen := make(map[string]bool, n.Len())
		for k, val := range n.Entries {
			d.in(k.Text)
			e := rawPlaced{key: k, at: val, is: rawEntry{order: unsetOrder, staleAfter: unsetDuration}}
			var ok1, ok2 bool
			if d.once(k, n, seen) {
				e.place, ok1 = where.read(d, k)
				if ok1 && e.place.table == 0 {
					d.faultf(k, "there is no such address; they end with 65535")
					ok1 = false
				}
			}
			if val.Kind == yamltree.Map {
				e.is, ok2 = entry.read(d, val)
			} else {
				e.is.point, ok2 = one.read(d, val)
			}
			if ok1 && ok2 {
				out = append(out, e)
			}
			all = all && ok1 && ok2
			d.out()
		}
		return out, all || len(out) > 0
	}}
}

// passes is units and the buses that their requests go on to.
func passes() value[[]rawPass] {
	const id = `(0|[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5])`
	const one = id + `(-` + id + `)?`
	bus := text("the name of a bus")
	s := schema{{"type", "object"}, {"propertyNames", pattern(`^` + one + `(,` + one + `)*$`)}, {"additionalProperties", bus.schema}, {"minProperties", 1}}
	ids := unitIDs()
	return value[[]rawPass]{s, func(d *decoder, n *node) ([]rawPass, bool) {
		if n.Kind != yamltree.Map || n.Len() == 0 {
			d.wrongKind(n, `a map from units to buses, such as {"2-10": line1}`, "")
			if n.Kind == yamltree.Map {
				d.shapef(n, `is an empty map; write units with the bus they are on, such as {"2-10": line1}, or remove the key`)
			}
			return nil, false
		}
		out := make([]rawPass, 0, n.Len())
		seen := make(map[string]bool, n.Len())
		for k, val := range n.Entries {
			d.in(k.Text)
			if d.once(k, n, seen) {
				units, ok1 := ids.read(d, k.Unquoted())
				name, ok2 := bus.read(d, val)
				if ok1 && ok2 {
					out = append(out, rawPass{units, name, k, val})
				}
			}
			d.out()
		}
		return out, len(out) > 0
	}}
}

// passWrites is which writes go on.
func passWrites() value[PassWrites] {
	const want = "a span such as holding 100-120 or coil 3"
	span := value[Span]{pattern(`^(coil|holding) [0-9]+(-[0-9]+)?$`), func(d *decoder, n *node) (Span, bool) {
		s, ok := d.text(n, want)
		if !ok {
			return Span{}, false
		}
		name, numbers, _ := strings.Cut(s, " ")
		a, b, several := strings.Cut(numbers, "-")
		if !several {
			b = a
		}
		_, rest1 := span(a)
		_, rest2 := span(b)
		if name != "coil" && name != "holding" || a == "" || b == "" || rest1 != "" || rest2 != "" {
			d.shapef(n, "%s is not %s; write that", quote(s), want)
			return Span{}, false
		}
		t, from, err1 := point.ParseAddress(name + " " + a)
		_, to, err2 := point.ParseAddress(name + " " + b)
		switch {
		case err1 != nil || err2 != nil:
			d.faultf(n, "%s is outside 0-65535", quote(s))
			return Span{}, false
		case from > to:
			d.faultf(n, "%s runs backwards; write %s %d-%d", s, name, to, from)
			return Span{}, false
		}
		return Span{t, from, to}, true
	}}
	all, spans := boolean(), list(span, "spans")
	return value[PassWrites]{anyOf(all.schema, spans.schema), func(d *decoder, n *node) (PassWrites, bool) {
		if n.Kind == yamltree.List {
			got, ok := spans.read(d, n)
			return PassWrites{Spans: got}, ok
		}
		is, ok := all.read(d, n)
		return PassWrites{All: is}, ok
	}}
}

// sources is the points that servers may show.
type sources struct {
	points  map[point.ID]*point.Point
	virtual map[string]bool // devices
	devices []string
}

func (r *resolver) servers() {
	if len(r.raw.servers) == 0 {
		return
	}
	src := sources{points: make(map[point.ID]*point.Point, r.points), virtual: make(map[string]bool)}
	for i := range r.cfg.Devices {
		d := &r.cfg.Devices[i]
		src.virtual[d.Name] = d.Bus == ""
		src.devices = append(src.devices, d.Name)
		for k := range d.Points {
			src.points[d.Points[k].ID] = &d.Points[k]
		}
	}
	ports := make(map[string]string) // who has a serial port
	for i := range r.cfg.Buses {
		if b := &r.cfg.Buses[i]; b.Kind == Serial {
			ports[portOf(b.Address)] = "bus " + b.Name
		}
	}
	udp := make(map[string]*node)
	for i := range r.raw.servers {
		raw := &r.raw.servers[i]
		r.path = append(r.path, step{index: i})
		r.place(r.at(), raw.at)
		if raw.at.Kind == yamltree.Map && raw.listen.kind != 0 {
			s := r.server(raw, &src)
			_, at := raw.at.Get("listen")
			r.in("listen")
			switch s.Kind {
			case Serial:
				port := portOf(s.Address)
				if by := ports[port]; by != "" {
					r.faultf(at, "%s is the port of %s too, and a port has one owner; give the server another port", s.Address, by)
				}
				ports[port] = "server " + s.Name
			case TCP:
				r.listen(s.Address, "server "+s.Name, at)
			case UDP:
				if other := udp[s.Address]; other != nil && !strings.HasSuffix(s.Address, ":0") {
					r.faultf(at, "another server listens there too (%s); write another port", r.set.Place(other))
				}
				udp[s.Address] = at
			}
			r.out()
			r.cfg.Servers = append(r.cfg.Servers, s)
		}
		r.out()
	}
}

// portOf returns the path of a serial port by which two names of it are found
// to be the same.
func portOf(path string) string {
	path = filepath.Clean(path)
	if is, err := filepath.EvalSymlinks(path); err == nil {
		return is // by-id and ttyUSB0 are the same port
	}
	return path
}

// server resolves one server. The path is at it.
func (r *resolver) server(raw *rawServer, src *sources) Server {
	s := raw.Server
	s.Name, s.Kind, s.Address = raw.listen.text, raw.listen.kind, raw.listen.address
	if s.Kind == Serial {
		r.onlyFor(raw.at, "tcp and udp", "allow", "max_clients", "idle")
		if !has(raw.at, "framing") {
			s.Framing = raw.listen.framing
		}
		if s.Framing == modbus.FramingRTU && s.Mode.DataBits == 7 {
			r.keyFault(raw.at, "mode", "RTU needs 8 data bits; write %s, or framing: ascii", SerialMode{s.Mode.Baud, 8, s.Mode.Parity, s.Mode.StopBits})
		}
		const lastUnit = 247 // SER 2.2
		if s.Unit > lastUnit {
			r.keyFault(raw.at, "unit", "unit id %d is reserved; on a serial line write 1 to %d", s.Unit, lastUnit)
		}
		if s.Unit == 0 {
			k, _ := raw.at.Get("unit")
			r.in("unit")
			r.warnf(k, "0 answers for every unit id, also for those of other devices on this line; write the one that is meant, unless nobody else is on it")
			r.out()
		}
	} else {
		r.onlyFor(raw.at, "a serial port", "framing", "mode", "rs485")
		s.Mode, s.RS485, s.Framing = SerialMode{}, RS485{}, raw.listen.framing
		s.Allow = raw.allow
		host, _, _ := net.SplitHostPort(s.Address)
		if !loopback(host) && !has(raw.at, "allow") {
			r.keyFault(raw.at, "listen", "everyone who reaches %s could connect, and Modbus knows no passwords; add allow: [10.0.0.0/24] with who may, or listen on 127.0.0.1", raw.listen.text)
		}
		for _, p := range s.Allow {
			if p.Bits() == 0 && (s.Writes || s.PassWrites.All || s.PassWrites.Spans != nil) {
				r.in("allow")
				k, _ := raw.at.Get("allow")
				r.warnf(k, "everyone who reaches %s may write", raw.listen.text)
				r.out()
			}
		}
	}
	if !has(raw.at, "map") && !has(raw.at, "pass") {
		r.faultf(raw.at, "has nothing to show; add map: {40001: device.point}, or pass")
	}
	r.in("map")
	raw.ownAfter = make(map[string]time.Duration)
	for i := range raw.entries {
		name, after := raw.entries[i].is.point, raw.entries[i].is.staleAfter // name is empty where no value stands
		if other, twice := raw.ownAfter[name]; twice && other != after {
			after = unsetDuration
		}
		raw.ownAfter[name] = after
	}
	for i := range raw.entries {
		r.in(raw.entries[i].key.Text)
		if e, ok := r.serverEntry(raw, &raw.entries[i], src); ok {
			s.Map = append(s.Map, e)
		}
		r.out()
	}
	r.entryOverlaps(raw, s.Map)
	r.out()
	r.passes(raw, &s)
	if (s.PassWrites.All || s.PassWrites.Spans != nil) && !has(raw.at, "pass") {
		r.keyFault(raw.at, "pass_writes", "has no effect without pass; remove it")
	}
	return s
}

// passes resolves the units that go on to buses.
func (r *resolver) passes(raw *rawServer, s *Server) {
	known := make([]string, len(r.cfg.Buses))
	for i := range r.cfg.Buses {
		known[i] = r.cfg.Buses[i].Name
	}
	var taken [256]*node
	r.in("pass")
	for _, p := range raw.pass {
		r.in(p.key.Text)
		i := slices.Index(known, p.bus)
		if i < 0 {
			r.missingf(p.at, "there is no bus %s; %s", quote(p.bus), Suggest(p.bus, known))
		} else {
			r.uses[p.bus]++
		}
		for _, u := range p.units {
			for id := int(u.from); id <= int(u.to); id++ {
				switch {
				case taken[id] != nil:
					r.faultf(p.key, "unit id %d goes elsewhere already (%s); name it once", id, r.set.Place(taken[id]))
				case s.Unit != 0 && modbus.UnitID(id) == s.Unit:
					r.faultf(p.key, "unit id %d is the server's own; write another unit for it", id)
				case i >= 0 && broadcast(&r.cfg.Buses[i], modbus.UnitID(id)) && !s.PassWrites.All && s.PassWrites.Spans == nil:
					r.faultf(p.key, "unit id 0 is everyone, who can only be written to; add pass_writes, or leave it out")
				}
				taken[id] = p.key
			}
			s.Pass = append(s.Pass, Pass{u.from, u.to, p.bus})
		}
		r.out()
	}
	r.out()
}

// serverEntry resolves one entry of a map. The path is at it.
func (r *resolver) serverEntry(s *rawServer, placed *rawPlaced, src *sources) (Entry, bool) {
	is, m := &placed.is, placed.at
	e := Entry{}
	p := &e.Point
	p.Table, p.Address = placed.place.table, placed.place.address
	name, k := "", ""
	given := 0
	for _, one := range []struct {
		key  string
		name string
		show Show
	}{{"point", is.point, ShowValue}, {"status", is.status, ShowStatus}, {"age", is.age, ShowAge}, {"pause", is.pause, ShowPause}} {
		if one.name != "" {
			given++
			name, k, e.Show = one.name, one.key, one.show
		}
	}
	if given != 1 {
		if m.Kind == yamltree.Map {
			r.shapef(m, "gives %d of point, status, age and pause; write exactly one", given)
		}
		return e, false
	}
	blame := func(format string, args ...any) (Entry, bool) {
		if m.Kind == yamltree.Map {
			r.keyFault(m, k, format, args...)
		} else {
			r.faultf(m, format, args...)
		}
		return e, false
	}
	if e.Show == ShowPause {
		if !slices.Contains(src.devices, name) {
			if r.partial || len(r.found) > 0 && len(src.devices) == 0 {
				return e, false
			}
			return blame("there is no device %s; %s", quote(name), Suggest(name, src.devices))
		}
		if src.virtual[name] {
			return blame("%s is a virtual device, which nobody polls; name one on a bus", name)
		}
		if p.Table != modbus.HoldingRegisters {
			return blame("the seconds of a pause are written, so they need a holding register; write 4%04d, or another", min(int(p.Address)+1, 9999))
		}
		r.onlyValue(m)
		if has(m, "type") {
			r.keyFault(m, "type", "a pause is one register, uint16; remove it")
		}
		if !s.Writes {
			r.warnf(m, "the seconds of a pause are written, and this server takes no writes; add writes: true to it")
		}
		e.Device = name
		return e, true
	}
	of := src.points[point.ID(name)]
	if of == nil {
		if r.partial || r.broken(name) {
			return e, false // reported where the device is
		}
		return blame("there is no point %s; %s", quote(name), r.suggestPoint(name, src))
	}
	if e.Show != ShowValue {
		p.ID, p.Type = of.ID, point.Uint16
		if p.Table.Bits() {
			p.Type = point.Bool
			if e.Show == ShowAge {
				return blame("an age in seconds does not fit one bit; write an input or holding register")
			}
		}
		r.onlyValue(m)
		if is.kind.given {
			p.Type, p.Length, p.Layout = is.kind.is, is.kind.length, is.kind.layout
			if !p.Table.Bits() && p.Type != point.Uint16 && p.Type != point.Uint32 {
				r.keyFault(m, "type", "%s does not fit a number of %s; write uint16 or uint32", p.TypeName(), map[Show]string{ShowStatus: "a status", ShowAge: "seconds"}[e.Show])
				return e, false
			}
		}
		e.StaleAfter = r.staleAfter(s, is, of, src.virtual[of.ID.Device()])
		if own, shown := s.ownAfter[name]; shown && own != unsetDuration && is.staleAfter == unsetDuration {
			e.StaleAfter = own
		}
		if !r.valid(m, p) {
			return e, false
		}
		return e, true
	}
	if !r.servedForm(m, is, p, of) {
		return e, false
	}
	e.Writable = of.Write != nil && p.Table.Writable()
	e.StaleAfter = r.staleAfter(s, is, of, src.virtual[of.ID.Device()])
	return e, r.staleEntry(s, is, placed, &e)
}

// broken reports whether the device of a point has faults of its own, so that
// the point may only be missing for those.
func (r *resolver) broken(name string) bool {
	device, _, _ := strings.Cut(name, ".")
	for i := range r.raw.devices {
		v := &r.raw.devices[i]
		if v.name == device || strings.Contains(v.name, "{unit}") {
			path := "devices." + v.name
			for _, f := range r.found {
				if f.Path == path || strings.HasPrefix(f.Path, path+".") {
					return true
				}
			}
		}
	}
	return false
}

// suggestPoint returns what to write in place of an unknown point.
func (r *resolver) suggestPoint(name string, src *sources) string {
	device, _, dotted := strings.Cut(name, ".")
	if !dotted {
		return "write device.point"
	}
	if !slices.Contains(src.devices, device) {
		return fmt.Sprintf("there is no device %s: %s", quote(device), Suggest(device, src.devices))
	}
	var known []string
	for id := range src.points {
		if id.Device() == device {
			known = append(known, string(id))
		}
	}
	slices.Sort(known)
	return Suggest(name, known)
}

// onlyValue reports keys that mean something for a value only.
func (r *resolver) onlyValue(m *node) {
	r.onlyFor(m, "a point's value", "order", "scale", "offset", "stale")
}

// servedForm fills in how a point stands in the map.
func (r *resolver) servedForm(m *node, is *rawEntry, p, of *point.Point) bool {
	table, addr := p.Table, p.Address
	*p = *of
	p.Table, p.Address = table, addr
	p.Invalid, p.Tags, p.Label, p.Unit, p.Group, p.Every, p.Write = nil, nil, "", "", "", 0, nil
	p.LowByte, p.FirstBit = false, 0
	// What is a part of a register in the device is a whole one here.
	switch {
	case p.Type == point.Int8:
		p.Type = point.Int16
	case p.Type == point.Uint8:
		p.Type = point.Uint16
	case p.Type == point.Bool && !table.Bits():
		p.Type = point.Uint16
	}
	p.BitCount = 0
	if is.kind.given {
		p.Type, p.Length, p.Layout = is.kind.is, is.kind.length, is.kind.layout
		p.Order, p.Scale, p.Offset, p.Round, p.Decimals = point.ABCD, point.Decimal{Mant: 1}, point.Decimal{}, false, 0
		if table.Bits() && p.Type != point.Bool || !table.Bits() && p.Type == point.Bool {
			r.keyFault(m, "type", "%s does not fit %s; remove it", p.TypeName(), point.FormatAddress(table, addr))
			return false
		}
	} else if table.Bits() {
		p.Type = point.Bool
	}
	if is.order != unsetOrder {
		p.Order = is.order
	}
	if is.scale != nil {
		if is.scale.IsZero() {
			r.keyFault(m, "scale", "0 makes every value the same; write another number, or remove the key")
			return false
		}
		p.Scale = *is.scale
	}
	if is.offset != nil {
		p.Offset = *is.offset
	}
	if text := of.Type == point.String || of.Type == point.Bytes || of.Type == point.Datetime; text || p.Type == point.String {
		if wrong := textForm(p, of); wrong != "" {
			at := m
			if _, t := m.Get("type"); t != nil {
				at = t
			}
			r.faultf(at, "%s", wrong)
			return false
		}
		p.Map, p.Scale, p.Offset, p.Round, p.Decimals = nil, point.Decimal{Mant: 1}, point.Decimal{}, false, 0
		r.onlyNumber(m)
		return r.validServed(m, p)
	}
	switch p.Type {
	case point.Bytes, point.Datetime:
		r.keyFault(m, "type", "%s is a number; write a type of numbers, or string(N)", of.ID)
		return false
	case point.Bool:
		if of.Type != point.Bool && of.BitCount != 1 {
			r.faultf(m, "%s is %s, and this is one bit; put it into a register", of.ID, of.TypeName())
			return false
		}
	case point.Float16, point.Float32, point.Float64:
		p.Map = nil
	default:
		// A PLC that asks for whole numbers gets the nearest.
		if p.Map == nil && !p.Round {
			p.Round, p.Decimals = true, int8(min(max(p.Scale.Places(), p.Offset.Places(), 0), 15))
		}
	}
	if p.Map != nil {
		p.Scale, p.Offset, p.Round, p.Decimals = point.Decimal{Mant: 1}, point.Decimal{}, false, 0
	}
	return r.validServed(m, p)
}

// onlyNumber reports keys that mean something for a number only.
func (r *resolver) onlyNumber(m *node) { r.onlyFor(m, "a number", "scale", "offset") }

// textForm returns what is wrong with how a text stands in the map, "" for
// nothing.
func textForm(p, of *point.Point) string {
	switch {
	case p.Table.Bits():
		return fmt.Sprintf("%s is %s, and this is one bit; put it into registers", of.ID, of.TypeName())
	case of.Type == point.String && (p.Type != point.String || p.Length < of.Length):
		return fmt.Sprintf("%s is %s, which %s does not hold; write %s", of.ID, of.TypeName(), p.TypeName(), of.TypeName())
	case of.Type == point.Bytes && (p.Type != point.Bytes || p.Length != of.Length):
		return fmt.Sprintf("%s is %s, which %s does not hold; write %s", of.ID, of.TypeName(), p.TypeName(), of.TypeName())
	case of.Type == point.Datetime && p.Type != point.Datetime && (p.Type != point.String || p.Length < 12):
		return fmt.Sprintf("%s is %s, which %s does not hold; write datetime(LAYOUT), or string(12)", of.ID, of.TypeName(), p.TypeName())
	}
	return ""
}

// validServed is valid for a point of a map, whose entry may be a bare name.
func (r *resolver) validServed(m *node, p *point.Point) bool {
	if m.Kind == yamltree.Map {
		return r.valid(m, p)
	}
	if err := p.Validate(); err != nil {
		r.faultf(m, "%v", err)
		return false
	}
	return true
}

// staleAfter returns how old a value may be; 0: as old as it likes.
func (r *resolver) staleAfter(s *rawServer, is *rawEntry, of *point.Point, virtual bool) time.Duration {
	switch {
	case is.staleAfter != unsetDuration:
		return is.staleAfter
	case s.staleAfter != unsetDuration:
		return s.staleAfter
	case virtual || of.Every < 0:
		return 0
	case of.Every == point.Fastest:
		return staleFastest
	}
	return max(stalePolls*time.Duration(of.Every), staleLeast)
}

// staleEntry fills in what is answered in place of a stale value.
func (r *resolver) staleEntry(s *rawServer, is *rawEntry, placed *rawPlaced, e *Entry) bool {
	stale := s.stale
	if is.stale.given {
		stale = is.stale
	}
	e.Stale = stale.is
	if stale.is != StaleValue {
		return true
	}
	pattern, ok := invalidPattern(stale.value, e.Point)
	switch e.Point.Type {
	case point.String, point.Bytes, point.Datetime:
		ok = false
	case point.Bool:
		ok = ok && pattern <= 1
	}
	if !ok {
		r.faultf(placed.at, "stale: %s is no value of %s; write stale: exception, last, zero or another value here", stale.value.at.Text, e.Point.TypeName())
		return false
	}
	e.Pattern = pattern
	return true
}

// entryOverlaps sorts a map by table and address, and reports places that
// belong to two entries.
func (r *resolver) entryOverlaps(raw *rawServer, entries []Entry) {
	at := make(map[[2]uint16]*node, len(raw.entries))
	for i := range raw.entries {
		p := &raw.entries[i]
		where := [2]uint16{uint16(p.place.table), p.place.address}
		if other := at[where]; other != nil {
			r.in(p.key.Text)
			r.faultf(p.key, "%s stands there already, as %s (%s); write another number", point.FormatAddress(p.place.table, p.place.address), other.Text, r.set.Place(other))
			r.out()
			continue
		}
		at[where] = p.key
	}
	sort.SliceStable(entries, func(i, j int) bool {
		a, b := &entries[i].Point, &entries[j].Point
		return a.Table < b.Table || a.Table == b.Table && a.Address < b.Address
	})
	for i := 1; i < len(entries); i++ {
		a, b := &entries[i-1].Point, &entries[i].Point
		end := int(a.Address) + a.Words()
		if a.Table != b.Table || a.Address == b.Address || end <= int(b.Address) {
			continue
		}
		key := at[[2]uint16{uint16(b.Table), b.Address}]
		first := at[[2]uint16{uint16(a.Table), a.Address}]
		r.in(key.Text)
		r.faultf(key, "%s at %s is %s and goes on to %s; write a number from %s on (%s)", a.ID, first.Text, a.TypeName(),
			point.Modicon(a.Table, uint16(end-1)), point.Modicon(a.Table, uint16(min(end, 65535))), r.set.Place(first))
		r.out()
	}
}
