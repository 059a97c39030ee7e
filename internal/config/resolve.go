package config

import (
	"cmp"
	"math"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"fieldgate/internal/config/yamltree"
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

	cfg    Config
	points int                        // so far
	cache  map[cacheKey][]point.Point // of lists with an anchor; the IDs lack the device
	uses   map[string]int             // devices on each bus
	taken  []listener                 // addresses that are listened on

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
	every     *node // the device's own node of it, nil: the default
	order     point.Order
	base      int
	broadcast bool
	blocks    blocks
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
	r.section("publish", r.publish)
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
	for _, l := range r.taken {
		if l.port == port && port != "0" && (l.host == host || anyHost(l.host) || anyHost(host)) {
			r.faultf(at, "%s listens on port %s too (%s); write another port", l.by, port, r.set.Place(l.at))
			return
		}
	}
	r.taken = append(r.taken, listener{host: host, port: port, by: by, at: at})
}

// anyHost reports whether a host stands for every address.
func anyHost(host string) bool { return host == "" || host == "0.0.0.0" || host == "::" }

// expandName puts a unit id in the place of {unit}.
func expandName(name string, unit modbus.UnitID) string {
	return strings.ReplaceAll(name, "{unit}", strconv.Itoa(int(unit)))
}

// taken is what devices have used up, and where.
type taken struct {
	names map[string]*node
	units map[string]map[modbus.UnitID]*node // by bus
}

func (r *resolver) devices() {
	t := taken{make(map[string]*node), make(map[string]map[modbus.UnitID]*node)}
	for i := range r.raw.devices {
		v := &r.raw.devices[i]
		r.place("devices."+v.name, v.key)
		if !v.ok {
			continue
		}
		r.in(v.name)
		if len(r.cfg.Devices) >= maxDevices || r.points > maxPoints {
			r.faultf(v.key, "there are more than %d devices or %d points before it; spread them over several gateways", maxDevices, maxPoints)
			r.out()
			return
		}
		r.entry(v, &t)
		r.out()
	}
}

// entry resolves one entry of devices, which may stand for several. The path
// is at it.
func (r *resolver) entry(v *named[rawDevice], t *taken) {
	bus := r.busOf(v)
	ids, known := v.is.unit, bus != nil
	several := len(ids) > 1 || len(ids) == 1 && ids[0].from != ids[0].to
	switch {
	case len(ids) == 0: // reported; the points are looked at all the same
		ids, known = []unitRange{{1, 1}}, false
	case several && !strings.Contains(v.name, "{unit}"):
		r.faultf(v.key, "several unit ids need a name for each; write %s-{unit}", v.name)
		ids, known = []unitRange{{ids[0].from, ids[0].from}}, false
	}
	var first Device // whose points the others of a range copy
	for _, span := range ids {
		for u := int(span.from); u <= int(span.to); u++ {
			unit := modbus.UnitID(u)
			name := v.name
			if strings.Contains(name, "{unit}") {
				name = r.keep(expandName(name, unit))
			}
			if other := t.names[name]; other != nil {
				r.faultf(v.key, "makes the device %s, which is there already (%s); write another name", name, r.set.Place(other))
				continue
			}
			t.names[name] = v.key
			if bus != nil {
				r.uses[bus.Name]++
			}
			if known {
				r.takeUnit(v, bus, unit, t)
			}
			dev := r.device(v, bus, name, unit)
			if first.Points == nil || broadcast(bus, unit) != broadcast(bus, first.Unit) {
				dev.Points = r.devicePoints(v, &dev, bus)
				first = dev
			} else {
				dev.Points = slices.Clone(first.Points)
				rename(dev.Points, len(first.Name)+1, name)
			}
			r.points += len(dev.Points)
			r.cfg.Devices = append(r.cfg.Devices, dev)
		}
	}
}

// takeUnit reports a unit id that cannot be, or that another device has.
func (r *resolver) takeUnit(v *named[rawDevice], bus *Bus, unit modbus.UnitID, t *taken) {
	const lastUnit = 247 // SER 2.2
	if bus.Kind != 0 && bus.Framing != modbus.FramingTCP && unit > lastUnit {
		r.keyFault(v.at, "unit", "unit id %d is reserved; on a serial line write 1 to %d", unit, lastUnit)
	}
	units := t.units[bus.Name]
	if units == nil {
		units = make(map[modbus.UnitID]*node)
		t.units[bus.Name] = units
	}
	if other := units[unit]; other != nil {
		r.keyFault(v.at, "unit", "unit id %d is that of device %s on bus %s already (%s); write another, or put the points into one device", unit, expandName(other.Text, unit), bus.Name, r.set.Place(other))
		return
	}
	units[unit] = v.key
}

// busOf returns the bus that a device names, nil after a fault.
func (r *resolver) busOf(v *named[rawDevice]) *Bus {
	for i := range r.cfg.Buses {
		if r.cfg.Buses[i].Name == v.is.bus {
			return &r.cfg.Buses[i]
		}
	}
	if v.is.bus == "" {
		return nil // reported
	}
	known := make([]string, len(r.cfg.Buses))
	for i := range r.cfg.Buses {
		known[i] = r.cfg.Buses[i].Name
	}
	_, at := v.at.Get("bus")
	r.in("bus")
	r.missingf(at, "there is no bus %s; %s", quote(v.is.bus), suggest(v.is.bus, known))
	r.out()
	return nil
}

// broadcast reports whether unit 0 reaches every device of a bus and none
// answers. A device that speaks MBAP may simply have that id.
func broadcast(bus *Bus, unit modbus.UnitID) bool {
	return bus != nil && unit == modbus.Broadcast && bus.Framing != modbus.FramingTCP
}

// device resolves one device but for its points.
func (r *resolver) device(v *named[rawDevice], bus *Bus, name string, unit modbus.UnitID) Device {
	d := Device{
		Name: name, Bus: v.is.bus, Unit: unit,
		Timeout: v.is.timeout, Retries: v.is.retries, Gap: v.is.gap,
		MaxRegs: v.is.block.registers, MaxBits: v.is.block.bits, Holes: v.is.holes,
		BackoffMin: v.is.backoff.from, BackoffMax: v.is.backoff.to,
	}
	if bus != nil {
		if d.Timeout == unsetDuration {
			d.Timeout = bus.Timeout
		}
		if d.Retries < 0 {
			d.Retries = bus.Retries
		}
	}
	return d
}

// devicePoints resolves the points of a device. Points that an alias brings to
// several devices are resolved once and then copied.
func (r *resolver) devicePoints(v *named[rawDevice], dev *Device, bus *Bus) []point.Point {
	if v.is.points == nil {
		return nil // reported as missing
	}
	ctx := pointContext{order: v.is.order, base: v.is.base, broadcast: broadcast(bus, dev.Unit), blocks: v.is.block}
	_, ctx.every = v.at.Get("every")
	if v.at.Shared() {
		r.shared++
		defer func() { r.shared-- }()
	}
	key := cacheKey{v.is.points, ctx}
	points, cached := r.cache[key]
	if cached {
		points = slices.Clone(points)
	} else {
		r.in("points")
		points = r.resolvePoints(v, ctx)
		r.out()
		if v.is.points.Shared() || r.shared > 0 {
			r.cache[key] = slices.Clone(points)
		}
	}
	rename(points, 0, dev.Name)
	return points
}

// rename puts points under a device: what stands before offset from in their
// IDs is replaced. All IDs are cut out of one text.
func rename(points []point.Point, from int, device string) {
	size := 0
	for i := range points {
		size += len(device) + 1 + len(points[i].ID) - from
	}
	var b strings.Builder
	b.Grow(size)
	for i := range points {
		b.WriteString(device)
		b.WriteByte('.')
		b.WriteString(string(points[i].ID[from:]))
	}
	text := b.String()
	for i := range points {
		n := len(device) + 1 + len(points[i].ID) - from
		points[i].ID, text = point.ID(text[:n]), text[n:]
	}
}

// resolvePoints decodes and resolves a device's points. Their IDs are names as
// yet, and share memory with the file's text.
func (r *resolver) resolvePoints(v *named[rawDevice], ctx pointContext) []point.Point {
	m := v.is.points
	if m.Kind != yamltree.Map {
		r.wrongKind(m, "a map from names to points", "")
		return nil
	}
	if m.Len() == 0 {
		r.warnf(m, "there are no points in it")
	}
	if m.Shared() {
		r.shared++
		defer func() { r.shared-- }()
	}
	count := m.Len()
	points := make([]point.Point, 0, count)
	at := make([]*node, 0, count) // the key of each
	seen := r.seen
	clear(seen)
	add := func(p point.Point, name string, k *node) {
		if other := seen[name]; other != nil {
			r.faultf(k, "there are two points %s, the other at %s; write another name", name, r.set.Place(other))
			return
		}
		seen[name] = k
		p.ID = point.ID(name)
		points = append(points, p)
		at = append(at, k)
	}
	for k, val := range m.Entries {
		r.in(k.Text)
		if goodName(k.Text) != "" && !r.checkName(k, goodPointName(k.Text)) {
			r.out()
			continue
		}
		if other := seen[k.Text]; other != nil && other.Text == k.Text {
			r.twice(k, m)
			r.out()
			continue
		}
		raw, before := &r.scratch, len(r.found)
		*raw = r.tables.point.zero
		r.tables.point.fill(r.decoder, val, raw)
		if len(r.found) > before {
			seen[k.Text] = k
			r.out()
			continue // what it comes to is a guess
		}
		p, ok := r.point(val, raw, v, ctx)
		switch {
		case !ok:
			seen[k.Text] = k
		case raw.bits == nil:
			add(p, k.Text, k)
		default:
			for _, f := range raw.bits {
				q := p
				q.FirstBit, q.BitCount = f.is.first, f.is.count
				if q.BitCount == 1 {
					q.Type = point.Bool
				}
				r.in("bits")
				r.in(f.name)
				if r.valid(val, &q) {
					add(q, k.Text+"."+f.name, f.key)
				}
				r.out()
				r.out()
			}
		}
		r.out()
	}
	r.groups(v, ctx, points, at)
	r.overlaps(points, at)
	return points
}

// point resolves one point. The path is at it.
func (r *resolver) point(m *node, raw *rawPoint, v *named[rawDevice], ctx pointContext) (point.Point, bool) {
	p := point.Point{
		Type: raw.kind.is, Length: raw.kind.length, Layout: raw.kind.layout,
		Order: raw.order, LowByte: raw.half == "low",
		Scale: raw.scale, Offset: raw.offset, Map: raw.vmap,
		Unit: raw.unit, Label: raw.label, Tags: raw.tags,
		Every: raw.every, Group: raw.group, Write: raw.write,
	}
	p.Table, p.Address = raw.at.table, raw.at.address
	if ctx.base != 0 {
		var err error
		if p.Table, p.Address, err = point.ParseAddressBase(raw.at.text, uint16(ctx.base)); err != nil {
			r.keyFault(m, "at", "%v", err)
			return p, false
		}
	}
	if p.Order == unsetOrder {
		p.Order = ctx.order
	}
	if raw.decimals >= 0 {
		p.Round, p.Decimals = true, int8(raw.decimals)
	}
	if !raw.kind.given && p.Table.Bits() {
		p.Type = point.Bool
	}
	if raw.bit >= 0 {
		p.FirstBit, p.BitCount = uint8(raw.bit), 1
		if !raw.kind.given {
			p.Type = point.Bool
		}
	}
	switch {
	case raw.bits != nil && raw.bit >= 0:
		r.keyFault(m, "bits", "stands beside bit; write one of the two")
		return p, false
	case raw.bits != nil && p.Table.Bits():
		r.keyFault(m, "bits", "cuts a register, and a %s is one bit already; remove it", p.Table)
		return p, false
	case raw.half != "" && p.Type != point.Int8 && p.Type != point.Uint8:
		r.keyFault(m, "byte", "is only for int8 and uint8; remove it, or write one of those types")
		return p, false
	}
	r.interval(m, &p, v, ctx)
	for _, x := range raw.invalid {
		pattern, ok := invalidPattern(x, p)
		if !ok {
			r.in("invalid")
			r.faultf(x.at, "%s is wider than %s; write a raw value of that type", x.at.Text, p.TypeName())
			r.out()
			return p, false
		}
		p.Invalid = append(p.Invalid, pattern)
	}
	if ctx.broadcast {
		r.broadcastPoint(m, &p)
	}
	if raw.bits != nil {
		return p, true // each field is checked by itself
	}
	return p, r.valid(m, &p)
}

// valid reports what makes no sense in a point, at the key that is to blame
// where that can be told.
func (r *resolver) valid(m *node, p *point.Point) bool {
	err := p.Validate()
	if err == nil {
		return true
	}
	word := err.Error()
	if i := strings.IndexFunc(word, func(c rune) bool { return c < 'a' || c > 'z' }); i >= 0 {
		word = word[:i]
	}
	r.keyFault(m, word, "%s", strings.TrimPrefix(err.Error(), word+": "))
	return false
}

// interval fills in how often a point is read.
func (r *resolver) interval(m *node, p *point.Point, v *named[rawDevice], ctx pointContext) {
	switch {
	case p.Every != unsetInterval:
	case ctx.broadcast:
		p.Every = point.Never
	default:
		p.Every = v.is.every.all
		if p.Group == "" {
			return
		}
		for _, g := range v.is.every.groups {
			if g.name == p.Group {
				p.Every = g.is
			}
		}
	}
}

// broadcastPoint checks a point of unit 0 on a serial line, which nobody
// answers.
func (r *resolver) broadcastPoint(m *node, p *point.Point) {
	if p.Write == nil {
		r.faultf(m, "unit id 0 is everyone, and nobody answers: the point can only be written; add write:, or write the device's own unit id")
		return
	}
	if p.Every != point.Never {
		r.keyFault(m, "every", "nobody answers unit id 0; remove it")
	}
	_, w := m.Get("write")
	if _, verify := w.Get("verify"); verify != nil && verify.Text == "true" {
		r.in("write")
		r.keyFault(w, "verify", "nobody answers unit id 0; write false")
		r.out()
	}
	write := *p.Write
	write.Verify, write.SkipIfEqual = false, false
	p.Write = &write
}

// invalidPattern returns the bits of a raw value in a point's registers.
func invalidPattern(x raw, p point.Point) (uint64, bool) {
	width := 16 * p.Words()
	switch p.Type {
	case point.Int8, point.Uint8:
		width = 8
	}
	if width > 64 {
		return 0, false
	}
	if !x.neg {
		return x.mag, width == 64 || x.mag>>width == 0
	}
	if x.mag > 1<<(width-1) {
		return 0, false
	}
	return -x.mag & (math.MaxUint64 >> (64 - width)), true
}

// groups checks that the points of each group can be read in one request.
func (r *resolver) groups(v *named[rawDevice], ctx pointContext, points []point.Point, at []*node) {
	type extent struct {
		first    int // index of its first point
		from, to int // addresses
	}
	extents := make(map[string]*extent)
	var order []string
	for i := range points {
		p := &points[i]
		if p.Group == "" {
			continue
		}
		from, to := int(p.Address), int(p.Address)+p.Words()
		e := extents[p.Group]
		if e == nil {
			extents[p.Group] = &extent{i, from, to}
			order = append(order, p.Group)
			continue
		}
		first := &points[e.first]
		r.in(string(p.ID))
		switch {
		case p.Table != first.Table:
			r.faultf(at[i], "group %s: %s is in another table than %s (%s), and one request reads one table; write another group", p.Group, p.ID, first.ID, first.Table)
		case p.Every != first.Every:
			r.faultf(at[i], "group %s: %s is read at another interval than %s, and they are read together; write the same, or every: {%s: 1s} at the device", p.Group, p.ID, first.ID, p.Group)
		default:
			e.from, e.to = min(e.from, from), max(e.to, to)
		}
		r.out()
	}
	for _, name := range order {
		e := extents[name]
		most, what := ctx.blocks.registers, "registers"
		if points[e.first].Table.Bits() {
			most, what = ctx.blocks.bits, "bits"
		}
		if e.to-e.from > most {
			r.in(string(points[e.first].ID))
			r.faultf(at[e.first], "group %s spans %d %s, from %d to %d, and one request reads at most %d; split the group", name, e.to-e.from, what, e.from, e.to-1, most)
			r.out()
		} else if from, to := hole(points, points[e.first].Table, e.from, e.to); v.is.holes != HolesAuto && to-from > v.is.holes {
			r.in(string(points[e.first].ID))
			r.faultf(at[e.first], "group %s has a hole of %d %s, from %d to %d, and holes: %d forbids to read them; write holes: %d, or split the group", name, to-from, what, from, to-1, v.is.holes, to-from)
			r.out()
		}
	}
	for _, g := range v.is.every.groups {
		if extents[g.name] == nil {
			path := r.path
			r.path = append(path[:len(path)-1:len(path)-1], step{key: "every"}, step{key: g.name})
			r.missingf(g.key, "no point of this device has the group %s; %s", g.name, suggest(g.name, order))
			r.path = path
		}
	}
}

// hole returns the longest run of addresses between two of a table that no
// point covers.
func hole(points []point.Point, table modbus.Table, start, end int) (from, to int) {
	covered := make([]bool, end-start)
	for i := range points {
		p := &points[i]
		if p.Table != table {
			continue
		}
		for a := max(int(p.Address), start); a < min(int(p.Address)+p.Words(), end); a++ {
			covered[a-start] = true
		}
	}
	run := 0
	for a, is := range covered {
		if is {
			run = 0
			continue
		}
		if run++; run > to-from {
			from, to = start+a+1-run, start+a+1
		}
	}
	return from, to
}

// overlaps warns of two points that may both be written and share registers.
func (r *resolver) overlaps(points []point.Point, at []*node) {
	var written []int
	for i := range points {
		if points[i].Write != nil {
			written = append(written, i)
		}
	}
	slices.SortStableFunc(written, func(a, b int) int {
		p, q := &points[a], &points[b]
		return cmp.Or(cmp.Compare(p.Table, q.Table), cmp.Compare(p.Address, q.Address))
	})
	for i, a := range written {
		p := &points[a]
		for _, b := range written[i+1:] {
			q := &points[b]
			if q.Table != p.Table || int(q.Address) >= int(p.Address)+p.Words() {
				break
			}
			if p.Address == q.Address && p.EncodeMask()&q.EncodeMask() == 0 {
				continue // other bits of the same register
			}
			first, second := a, b
			if r.set.Before(at[b], at[a]) {
				first, second = b, a
			}
			r.in(string(points[second].ID))
			r.warnf(at[second], "writes registers that %s (%s) writes too", points[first].ID, r.set.Place(at[first]))
			r.out()
		}
	}
}

func (r *resolver) uplinks() {
	clients := make(map[string]string)
	for i := range r.raw.uplinks {
		u := &r.raw.uplinks[i]
		r.place("uplinks."+u.name, u.key)
		r.in(u.name)
		if u.name == Local {
			r.faultf(u.key, "local is the embedded broker's name; write another")
		}
		up := u.is.Uplink
		up.Name = u.name
		if u.ok {
			r.uplink(u, &up)
			for _, url := range up.URLs {
				client := up.ClientID + "\n" + url
				if other, used := clients[client]; used && other != u.name {
					r.keyFault(u.at, "client_id", "uplink %s is %s at %s too, and a broker disconnects one of two clients with the same id; write another client_id", other, up.ClientID, url)
					break
				}
				clients[client] = u.name
			}
		}
		r.out()
		r.cfg.Uplinks = append(r.cfg.Uplinks, up)
	}
}

// uplink resolves one uplink. The path is at it.
func (r *resolver) uplink(u *named[rawUplink], up *Uplink) {
	up.ClientID = r.fillIn(up.ClientID, u.name)
	_, at := u.at.Get("url")
	encrypted := false
	for _, url := range u.is.urls {
		if url == nil {
			continue
		}
		is, _ := schemeOf(url.Scheme)
		encrypted = encrypted || is.tls
		if !is.tls && !loopback(url.Hostname()) {
			r.in("url")
			r.warnf(at, "%s is not encrypted: anyone on the way can read and change what is sent; better write %ss", url.Scheme+"://"+url.Host, url.Scheme)
			r.out()
		}
		up.URLs = append(up.URLs, url.String())
	}
	if up.Username == "" && !up.Password.IsZero() {
		r.keyFault(u.at, "password", "stands without username, which MQTT 3.1.1 forbids; add username")
	}
	_, m := u.at.Get("tls")
	if m == nil || m.Kind != yamltree.Map {
		return
	}
	if !encrypted && len(up.URLs) > 0 {
		r.keyFault(u.at, "tls", "no url is encrypted, so this has no effect; write mqtts:// or wss://, or remove it")
		return
	}
	r.in("tls")
	defer r.out()
	c := up.TLS
	if c.Insecure {
		r.warnf(m, "insecure: the broker's certificate is not checked, so anyone on the way can be the broker")
	}
	switch ext := strings.ToLower(filepath.Ext(c.Cert)); {
	case c.Cert == "" && c.Key != "":
		r.keyFault(m, "key", "stands without cert; add cert")
	case c.Cert == "" && !c.Password.IsZero():
		r.keyFault(m, "password", "is that of a PKCS#12 file, and there is none; add cert")
	case (ext == ".p12" || ext == ".pfx") && c.Key != "":
		r.keyFault(m, "key", "a PKCS#12 file holds its key; remove this")
	case (ext == ".pem" || ext == ".crt" || c.Key != "") && !c.Password.IsZero():
		r.keyFault(m, "password", "is only for PKCS#12 files (.p12, .pfx); remove it")
	}
}

func (r *resolver) broker() {
	raw := r.raw.broker
	if raw == nil {
		return
	}
	key, _ := r.root.Get("broker")
	r.place("broker", key)
	b := raw.Broker
	urls := raw.listen
	at := raw.at
	_, listenAt := at.Get("listen")
	if listenAt == nil {
		listenAt = at
	}
	needTLS, open := false, ""
	for _, u := range urls {
		if u == nil {
			continue
		}
		is, _ := schemeOf(u.Scheme)
		needTLS = needTLS || is.tls
		if !loopback(u.Hostname()) {
			open = u.Scheme + "://" + u.Host
		}
		b.Listen = append(b.Listen, BrokerListener{Scheme: u.Scheme, Address: u.Host, Path: requestPath(u)})
		r.in("listen")
		r.listen(u.Host, "the broker", listenAt)
		r.out()
	}
	if needTLS && !has(at, "tls") {
		r.keyFault(at, "listen", "mqtts:// and wss:// need a certificate; add tls: {cert: PATH, key: PATH}")
	}
	if !needTLS && has(at, "tls") && len(b.Listen) > 0 {
		r.keyFault(at, "tls", "no listener is encrypted, so this has no effect; write mqtts:// or wss://, or remove it")
	}
	switch {
	case b.Anonymous && open != "" && !raw.lan:
		r.keyFault(at, "anonymous", "everyone who reaches %s could publish and subscribe; add users, listen on 127.0.0.1, or write anonymous_lan: true", open)
	case b.Anonymous && open != "":
		r.in("anonymous_lan")
		k, _ := at.Get("anonymous_lan")
		r.warnf(k, "everyone who reaches %s may publish and subscribe", open)
		r.out()
	case raw.lan && !b.Anonymous:
		r.keyFault(at, "anonymous_lan", "has no effect without anonymous: true; remove it")
	case !b.Anonymous && len(b.Users) == 0:
		r.warnf(at, "nobody can connect: there are no users, and anonymous is false")
	}
	r.users(at)
	r.cfg.Broker = &b
}

// users reports users of the embedded broker with the same name.
func (r *resolver) users(broker *node) {
	_, list := broker.Get("users")
	if list == nil || list.Kind != yamltree.List {
		return
	}
	r.in("users")
	seen := make(map[string]*node)
	i := 0
	for user := range list.Items {
		if _, name := user.Get("name"); name != nil && name.Kind == yamltree.Scalar {
			if other := seen[name.Text]; other != nil {
				r.path = append(r.path, step{index: i}, step{key: "name"})
				r.faultf(name, "there is a user %s already (%s); write another name", quote(name.Text), r.set.Place(other))
				r.path = r.path[:len(r.path)-2]
			}
			seen[name.Text] = name
		}
		i++
	}
	r.out()
}

// requestPath returns the path of a WebSocket URL, with its query.
func requestPath(u *url.URL) string {
	if u.Path == "" {
		return ""
	}
	return u.RequestURI()
}

func (r *resolver) publish() {
	known := make([]string, 0, len(r.cfg.Uplinks)+1)
	for _, u := range r.cfg.Uplinks {
		known = append(known, u.Name)
	}
	if r.cfg.Broker != nil {
		known = append(known, Local)
	}
	_, list := r.root.Get("publish")
	for i := range r.raw.publish {
		rule := r.raw.publish[i].Rule
		if list != nil {
			r.path = append(r.path, step{index: i})
			r.rule(&rule, r.raw.publish[i].at, known)
			r.out()
		}
		r.cfg.Publish = append(r.cfg.Publish, rule)
	}
}

// rule checks one rule. The path is at it.
func (r *resolver) rule(rule *Rule, m *node, known []string) {
	path := r.at()
	r.place(path, m)
	if m.Kind != yamltree.Map {
		return
	}
	for k, v := range m.Entries {
		r.place(path+"."+k.Text, v)
	}
	if has(m, "every") {
		if has(m, "when") {
			r.keyFault(m, "every", "stands beside when, and a rule is either timed or on change; remove one of them")
		}
		rule.When = When{}
	}
	_, to := m.Get("to")
	for i, name := range rule.To {
		if name == "" || slices.Contains(known, name) {
			continue
		}
		at := to
		r.in("to")
		if to.Kind == yamltree.List {
			r.path = append(r.path, step{index: i})
			j := 0
			for item := range to.Items {
				if j == i {
					at = item
				}
				j++
			}
		}
		if name == Local {
			r.missingf(at, "local is the embedded broker, and there is none; add broker: {}")
		} else {
			r.missingf(at, "there is no uplink %s; %s", quote(name), suggest(name, known))
		}
		if to.Kind == yamltree.List {
			r.out()
		}
		r.out()
	}
}

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
	if len(r.cfg.Uplinks) == 0 && r.cfg.Broker == nil && len(r.cfg.Devices) > 0 {
		r.warnf(r.root, "values go nowhere: there are no uplinks and no broker; add uplinks: or broker:")
	}
	if has(r.root, "publish") && len(r.cfg.Devices) == 0 && len(r.found) == 0 {
		r.warnf(r.root, "there are rules to publish by, but no devices; add devices:")
	}
}
