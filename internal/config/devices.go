package config

import (
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"

	"fieldgate/internal/config/yamltree"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// This file resolves devices and their points.

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
		if r.virtual(v) {
			r.virtualDevice(v, &t)
		} else {
			r.entry(v, &t)
		}
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
			r.settings(v.is.setup, &dev, v.is.base)
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
	r.missingf(at, "there is no bus %s; %s", quote(v.is.bus), Suggest(v.is.bus, known))
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
	ctx := pointContext{order: v.is.order, base: v.is.base, broadcast: broadcast(bus, dev.Unit), every: v.is.every.all, blocks: v.is.block, holes: v.is.holes}
	if v.is.every.groups != nil {
		_, ctx.groups = v.at.Get("every")
	}
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
		if v.is.bus == "" && val.Kind == yamltree.Map && !has(val, "at") {
			seen[k.Text] = k
			r.out()
			continue // that there is no bus is reported, and says it all
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
				if q.BitCount == 1 && q.Type == point.Uint16 { // others are faults
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
	if ctx.base != 0 || p.Table == 0 {
		var err error
		if p.Table, p.Address, err = point.ParseAddressBase(raw.at.text, uint16(ctx.base)); err != nil {
			r.keyFault(m, "at", "%v", err)
			return p, false
		}
	}
	if v.is.bus != "" && !r.onlyVirtual(m, raw) {
		return p, false
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
	case p.Write != nil && r.ambiguous(m, p.Map):
		return p, false
	case p.Scale.IsZero():
		r.keyFault(m, "scale", "0 makes every value the same; write another number, or remove the key")
		return p, false
	case raw.half != "" && p.Type != point.Int8 && p.Type != point.Uint8:
		r.keyFault(m, "byte", "is only for int8 and uint8; remove it, or write one of those types")
		return p, false
	}
	if raw.order != unsetOrder && raw.order != point.ABCD && !p.Ordered() {
		_, at := m.Get("order")
		r.in("order")
		r.warnf(at, "has no effect on %s, which is a single register or bit", p.TypeName())
		r.out()
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
	if n := p.Words(); !p.Table.Bits() && n > ctx.blocks.registers && r.valid(m, &p) {
		r.keyFault(m, "type", "%s is %d registers, and max_block lets one request read %d; write a larger max_block, or another type", p.TypeName(), n, ctx.blocks.registers)
		return p, false
	}
	if raw.bits != nil {
		return p, true // each field is checked by itself
	}
	return p, r.valid(m, &p)
}

// ambiguous reports a text that stands for two raw numbers. That is good for
// reading: many codes may all be "fault".
func (r *resolver) ambiguous(m *node, entries []point.MapEntry) bool {
	raws := make(map[string]int64, len(entries))
	for _, e := range entries {
		if other, twice := raws[e.Text]; twice {
			r.keyFault(m, "map", "%s stands for %d and for %d, so that a write of it would be a guess; write another text for one, or remove write", quote(e.Text), other, e.Raw)
			return true
		}
		raws[e.Text] = e.Raw
	}
	return false
}

// valid reports what makes no sense in a point, at the key that is to blame
// where that can be told.
func (r *resolver) valid(m *node, p *point.Point) bool {
	err := p.Validate()
	if err == nil {
		return p.Write == nil || p.Write.OnLoss.IsZero() || !r.badLoss(m, p)
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
	case point.Float16, point.Float32, point.Float64:
		if x.neg || !strings.HasPrefix(x.at.Text, "0x") {
			return floatPattern(x, p.Type)
		}
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

// floatPattern returns the bits of a float that is written as a number: the
// -9999 of a float32 is 0xC61C3C00.
func floatPattern(x raw, t point.Type) (uint64, bool) {
	v := point.UintValue(x.mag)
	if x.neg {
		v = point.IntValue(-int64(x.mag))
	}
	regs, err := point.Point{Table: modbus.HoldingRegisters, Type: t}.Encode(v)
	var n uint64
	for _, r := range regs {
		n = n<<16 | uint64(r)
	}
	return n, err == nil
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
			r.missingf(g.key, "no point of this device has the group %s; %s", g.name, Suggest(g.name, order))
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
	sort.SliceStable(written, func(i, j int) bool {
		p, q := &points[written[i]], &points[written[j]]
		return p.Table < q.Table || p.Table == q.Table && p.Address < q.Address
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
