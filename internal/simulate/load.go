package simulate

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/config/yamltree"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Load reads a plant from a YAML file. Everything wrong with it comes at once, a
// config.Fault each, joined: FILE:LINE:COL: path: what is wrong; what to write.
func Load(path string) (*Plant, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("simulate: %w", err)
	}
	return LoadBytes(path, text)
}

// LoadBytes is Load of a text that name stands for in faults.
func LoadBytes(name string, text []byte) (*Plant, error) {
	l := &loader{plant: &Plant{}}
	root, errs := l.set.Parse(name, text)
	for _, e := range errs {
		l.faults = append(l.faults, config.Fault{File: e.Place.File, Line: e.Place.Line, Col: e.Place.Col, Path: "plant", Text: e.Text})
	}
	switch {
	case len(errs) > 0:
	case root == nil:
		l.faults = append(l.faults, config.Fault{File: name, Line: 1, Col: 1, Path: "plant", Text: "the file is empty; write buses and devices"})
	default:
		l.root(root)
	}
	if len(l.faults) == 0 {
		return l.plant, nil
	}
	sort.SliceStable(l.faults, func(i, j int) bool {
		a, b := &l.faults[i], &l.faults[j]
		return a.Line < b.Line || a.Line == b.Line && a.Col < b.Col
	})
	all := make([]error, len(l.faults))
	for i, f := range l.faults {
		all[i] = f
	}
	return nil, errors.Join(all...)
}

// node is what the loader reads.
type node = yamltree.Node

// loader turns nodes into a plant and collects what is wrong.
type loader struct {
	set    yamltree.Set
	path   []string
	faults []config.Fault
	plant  *Plant
	count  uint64 // devices made, for their seeds
}

// faultf reports a fault at a node.
func (l *loader) faultf(n *node, format string, args ...any) {
	p := l.set.Place(n)
	l.faults = append(l.faults, config.Fault{File: p.File, Line: p.Line, Col: p.Col,
		Path: cmp.Or(strings.Join(l.path, "."), "plant"), Text: fmt.Sprintf(format, args...)})
}

// in calls f with one more step of the path.
func (l *loader) in(step string, f func()) {
	l.path = append(l.path, step)
	f()
	l.path = l.path[:len(l.path)-1]
}

// key is one key of a map.
type key struct {
	name string
	read func(n *node)
}

// fields reads a map of known keys and reports all others. It returns false if n
// is no map.
func (l *loader) fields(n *node, what string, keys []key) bool {
	if n.Kind != yamltree.Map {
		l.faultf(n, "is not a map; write the keys of %s", what)
		return false
	}
	given := map[string]bool{}
	for k, v := range n.Entries {
		l.in(k.Text, func() {
			i := slices.IndexFunc(keys, func(f key) bool { return f.name == k.Text })
			switch {
			case i < 0:
				names := make([]string, len(keys))
				for i, f := range keys {
					names[i] = f.name
				}
				l.faultf(k, "is not a key of %s; known: %s", what, strings.Join(names, " "))
			case given[k.Text]:
				l.faultf(k, "is given twice; keep one")
			default:
				given[k.Text] = true
				keys[i].read(v)
			}
		})
	}
	return true
}

// each reads a map from names.
func (l *loader) each(n *node, what string, read func(name string, k, v *node)) {
	if n.Kind != yamltree.Map {
		l.faultf(n, "is not a map; write the names of %s, each with its settings", what)
		return
	}
	given := map[string]bool{}
	for k, v := range n.Entries {
		l.in(k.Text, func() {
			switch {
			case k.Text == "":
				l.faultf(k, "a name is missing")
			case given[k.Text]:
				l.faultf(k, "is given twice; keep one")
			default:
				given[k.Text] = true
				read(strings.Clone(k.Text), k, v)
			}
		})
	}
}

// scalar reads a text through parse, whose error says what to write.
func scalar[T any](l *loader, to *T, parse func(string) (T, error)) func(*node) {
	return func(n *node) {
		if n.Kind != yamltree.Scalar || n.IsNull() {
			l.faultf(n, "is not a plain value; write one")
			return
		}
		v, err := parse(strings.Clone(n.Text))
		if err != nil {
			l.faultf(n, "%v", err)
			return
		}
		*to = v
	}
}

func parseText(s string) (string, error) { return s, nil }

func parseBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", s)
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if s == "0" {
		d, err = 0, nil
	}
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration; write one such as 300ms, 1s or 5m", s)
	}
	return d, nil
}

// number returns a parser of numbers in a range.
func number(least, most float64) func(string) (float64, error) {
	return func(s string) (float64, error) {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil || !(v >= least && v <= most) {
			return 0, fmt.Errorf("%q is not a number in %v-%v", s, least, most)
		}
		return v, nil
	}
}

func anyNumber(s string) (float64, error) {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	return v, nil
}

// whole returns a parser of whole numbers in a range.
func whole[T ~int | ~uint8 | ~uint64](least, most T) func(string) (T, error) {
	return func(s string) (T, error) {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil || v < uint64(least) || v > uint64(most) || len(s) > 1 && s[0] == '0' {
			return 0, fmt.Errorf("%q is not a whole number in %d-%d", s, least, most)
		}
		return T(v), nil
	}
}

// oneOf returns a parser of words, whose places in the list are their values.
func oneOf[T ~uint8](words []string) func(string) (T, error) {
	return func(s string) (T, error) {
		if i := slices.Index(words, s); i >= 0 {
			return T(i), nil
		}
		return 0, fmt.Errorf("%q is not known; write one of: %s", s, strings.Join(words, " "))
	}
}

func (l *loader) root(n *node) {
	var buses, devices *node
	ok := l.fields(n, "a plant", []key{
		{"seed", scalar(l, &l.plant.Seed, whole[uint64](1, math.MaxUint64))},
		{"buses", func(n *node) { buses = n }},
		{"devices", func(n *node) { devices = n }},
	})
	if !ok {
		return
	}
	if l.plant.Seed == 0 {
		l.plant.Seed = rand.Uint64() | 1
	}
	if buses == nil || devices == nil {
		l.faultf(n, "a plant needs buses and devices; add what is missing")
		return
	}
	l.path = append(l.path, "buses")
	l.each(buses, "buses", func(name string, k, v *node) {
		if b := l.bus(name, k, v); b != nil {
			l.plant.Buses = append(l.plant.Buses, b)
		}
	})
	l.path[0] = "devices"
	l.each(devices, "devices", l.device)
	l.path = nil
}

// framings are the words of framing in the order of their values.
var framings = []string{modbus.FramingTCP.String(), modbus.FramingRTU.String(), modbus.FramingASCII.String()}

func (l *loader) bus(name string, k, n *node) *Bus {
	b := &Bus{Name: name, Mode: config.SerialMode{Baud: 19200, DataBits: 8, Parity: 'E', StopBits: 1}}
	kinds, framed := 0, false
	address := func(kind config.BusKind, parse func(string) (string, error)) func(*node) {
		return func(n *node) {
			kinds++
			b.Kind = kind
			scalar(l, &b.Address, parse)(n)
		}
	}
	ok := l.fields(n, "a bus", []key{
		{"serial", address(config.Serial, parseText)},
		{"tcp", address(config.TCP, parseHostPort)},
		{"udp", address(config.UDP, parseHostPort)},
		{"framing", func(n *node) { framed = true; scalar(l, &b.Framing, oneOf[modbus.Framing](framings))(n) }},
		{"mode", scalar(l, &b.Mode, config.ParseMode)},
		{"strict_silence", scalar(l, &b.StrictSilence, parseBool)},
		{"lump", scalar(l, &b.Lump, whole(1, modbus.MaxASCII))},
		{"echo", scalar(l, &b.Echo, parseBool)},
		{"in_flight", scalar(l, &b.InFlight, whole(1, 1000))},
		{"excess", scalar(l, &b.Excess, oneOf[Excess](excessNames[:]))},
		{"max_clients", scalar(l, &b.MaxClients, whole(1, 100000))},
	})
	if !ok {
		return nil
	}
	if kinds != 1 {
		l.faultf(k, "has %d of serial, tcp and udp; write one, such as serial: /tmp/line1 (the link to make) or tcp: 127.0.0.1:1502", kinds)
		return nil
	}
	if !framed && b.Kind == config.Serial {
		b.Framing = modbus.FramingRTU
	}
	if b.Kind == config.Serial && b.Framing == modbus.FramingTCP {
		l.faultf(k, "a serial bus needs the framing rtu or ascii")
		return nil
	}
	return b
}

func parseHostPort(s string) (string, error) {
	_, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return "", fmt.Errorf("%q is not HOST:PORT; write one such as 127.0.0.1:1502", s)
	}
	return s, nil
}

// device reads one device, or several of the same kind, and puts it on its bus.
func (l *loader) device(name string, k, n *node) {
	s := Settings{Identity: modbus.Identity{
		ServerID: []byte("fieldgate simulate"),
		Objects:  []modbus.Object{{ID: 0, Value: []byte("Fieldgate")}, {ID: 1, Value: []byte("simulated")}, {ID: 2, Value: []byte("1")}},
	}}
	units := []modbus.UnitID{1}
	var bus string
	var base uint16
	var order point.Order
	var points, faults, holes *node
	ok := l.fields(n, "a device", []key{
		{"bus", scalar(l, &bus, parseText)},
		{"unit", scalar(l, &units, parseUnits)},
		{"points", func(n *node) { points = n }},
		{"fill", scalar(l, &s.Fill, parseBool)},
		{"strict", scalar(l, &s.Strict, parseBool)},
		{"holes", func(n *node) { holes = n }},
		{"max_registers", scalar(l, &s.MaxRegs, whole(1, modbus.MaxReadRegisters))},
		{"max_bits", scalar(l, &s.MaxBits, whole(1, modbus.MaxReadBits))},
		{"latency", scalar(l, &s.Latency, parseDuration)},
		{"jitter", scalar(l, &s.Jitter, parseDuration)},
		{"faults", func(n *node) { faults = n }},
		{"base", scalar(l, &base, parseBase)},
		{"order", scalar(l, &order, point.ParseOrder)},
	})
	if !ok {
		return
	}
	if holes != nil {
		l.in("holes", func() {
			l.list(holes, func(n *node) {
				var span Span
				scalar(l, &span, func(s string) (Span, error) { return parseSpan(s, base) })(n)
				s.Holes = append(s.Holes, span)
			})
		})
	}
	if faults != nil {
		l.in("faults", func() { l.list(faults, func(n *node) { s.Faults = append(s.Faults, l.fault(n)) }) })
	}
	if points != nil {
		l.in("points", func() {
			l.each(points, "points", func(pointName string, k, n *node) {
				if p, ok := l.point(k, n, base, order); ok {
					p.ID = point.ID(name + "." + pointName)
					s.Points = append(s.Points, p)
				}
			})
		})
	}
	on := l.plant.Bus(bus)
	if on == nil {
		names := make([]string, len(l.plant.Buses))
		for i, b := range l.plant.Buses {
			names[i] = b.Name
		}
		l.faultf(k, "is on bus %q, which does not exist; write bus: and one of: %s", bus, strings.Join(names, " "))
		return
	}
	if len(units) > 1 && !strings.Contains(name, "{unit}") {
		l.faultf(k, "stands for %d devices; write {unit} in its name", len(units))
		return
	}
	for _, unit := range units {
		l.place(k, on, name, unit, s)
	}
}

// place makes one device and puts it on its bus.
func (l *loader) place(k *node, on *Bus, name string, unit modbus.UnitID, s Settings) {
	s.Name = strings.ReplaceAll(name, "{unit}", strconv.Itoa(int(unit)))
	s.Unit = unit
	s.Seed = rand.New(rand.NewPCG(l.plant.Seed, l.count)).Uint64()
	l.count++
	s.Points = slices.Clone(s.Points)
	for i := range s.Points {
		s.Points[i].ID = point.ID(s.Name + "." + s.Points[i].ID.Name())
	}
	if other := on.Devices.find(unit); other != nil {
		l.faultf(k, "has unit id %d on bus %s, as has %s; write another", unit, on.Name, other.Name())
		return
	}
	for _, f := range s.Faults {
		if f.Kind == WrongID && on.Framing != modbus.FramingTCP {
			l.faultf(k, "has the fault %v, but the %v frames of bus %s bear no transaction id; write wrong_unit or late", f.Kind, on.Framing, on.Name)
			return
		}
	}
	on.Devices = append(on.Devices, New(s))
}

// list reads the items of a list.
func (l *loader) list(n *node, read func(*node)) {
	if n.Kind != yamltree.List {
		l.faultf(n, "is not a list; write [ … ] or lines that begin with -")
		return
	}
	i := 0
	for item := range n.Items {
		l.in(strconv.Itoa(i), func() { read(item) })
		i++
	}
}

func parseBase(s string) (uint16, error) {
	switch s {
	case "0":
		return 0, nil
	case "1":
		return 1, nil
	}
	return 0, fmt.Errorf("%q is neither 0 nor 1", s)
}

// parseUnits reads unit ids: 7, or 1-4, or 1,3,8-9.
func parseUnits(s string) (units []modbus.UnitID, err error) {
	parse := whole(1, 247)
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		a, errA := parse(from)
		b, errB := parse(to)
		if errA != nil || errB != nil || a > b {
			return nil, fmt.Errorf("%q are not unit ids; write 1 to 247, or several as in 1-4 or 1,3,8-9", s)
		}
		for u := a; u <= b; u++ {
			units = append(units, modbus.UnitID(u))
		}
	}
	return units, nil
}

// parseSpan reads addresses such as "holding 10" and "holding 10-19".
func parseSpan(s string, base uint16) (Span, error) {
	from, to, isRange := strings.Cut(s, "-")
	t, addr, err := point.ParseAddressBase(from, base)
	if err != nil {
		return Span{}, err
	}
	span := Span{t, addr, 1}
	if isRange {
		table, _, _ := strings.Cut(from, " ")
		_, last, err := point.ParseAddressBase(table+" "+to, base)
		if err != nil || last < addr {
			return Span{}, fmt.Errorf("%q is not a range; write one such as holding 10-19", s)
		}
		span.Count = int(last-addr) + 1
	}
	return span, nil
}

func (l *loader) fault(n *node) Fault {
	var f Fault
	ok := l.fields(n, "a fault", []key{
		{"fault", scalar(l, &f.Kind, ParseFault)},
		{"delay", scalar(l, &f.Delay, parseDuration)},
		{"code", scalar(l, &f.Code, whole[modbus.Exception](1, 255))},
		{"probability", scalar(l, &f.Probability, number(0, 1))},
		{"nth", scalar(l, &f.Nth, whole(1, math.MaxInt32))},
		{"every", scalar(l, &f.Every, parseDuration)},
		{"from", scalar(l, &f.From, parseDuration)},
		{"to", scalar(l, &f.To, parseDuration)},
	})
	if _, given := n.Get("fault"); ok && given == nil {
		l.faultf(n, "fault is missing; write one of: %s", strings.Join(faultNames[1:], " "))
	} else if err := f.Validate(); ok && f.Kind != 0 && err != nil {
		l.faultf(n, "%v", err)
	}
	return f
}

func (l *loader) point(k, n *node, base uint16, order point.Order) (p Point, ok bool) {
	p.Order = order
	before := len(l.faults)
	var at, value, kind string
	var hz float64
	var bit = -1
	var half uint8
	ok = l.fields(n, "a point", []key{
		{"at", scalar(l, &at, parseText)},
		{"type", scalar(l, &kind, parseText)},
		{"order", scalar(l, &p.Order, point.ParseOrder)},
		{"byte", scalar(l, &half, oneOf[uint8]([]string{"high", "low"}))},
		{"bit", scalar(l, &bit, whole(0, 15))},
		{"scale", scalar(l, &p.Scale, point.ParseDecimal)},
		{"offset", scalar(l, &p.Offset, point.ParseDecimal)},
		{"unit", scalar(l, &p.Unit, parseText)},
		{"label", scalar(l, &p.Label, parseText)},
		{"value", scalar(l, &value, parseText)},
		{"wave", scalar(l, &p.Wave.Shape, ParseShape)},
		{"min", scalar(l, &p.Wave.Min, anyNumber)},
		{"max", scalar(l, &p.Wave.Max, anyNumber)},
		{"period", scalar(l, &p.Wave.Period, parseDuration)},
		{"hz", scalar(l, &hz, number(1e-9, 1e6))},
		{"phase", scalar(l, &p.Wave.Phase, number(0, 1))},
		{"duty", scalar(l, &p.Wave.Duty, number(0, 1))},
		{"step", scalar(l, &p.Wave.Step, number(0, math.MaxFloat64))},
		{"read_only", scalar(l, &p.ReadOnly, parseBool)},
		{"stuck", scalar(l, &p.Stuck, parseBool)},
	})
	if !ok || len(l.faults) > before {
		return p, false
	}
	fail := func(key, format string, args ...any) (Point, bool) {
		at, _ := n.Get(key)
		if at == nil {
			at = k
		}
		l.faultf(at, format, args...)
		return p, false
	}
	var err error
	if at == "" {
		return fail("at", "at is missing; write where the point lives, such as at: holding 0")
	}
	if p.Table, p.Address, err = point.ParseAddressBase(at, base); err != nil {
		return fail("at", "%v", err)
	}
	switch {
	case kind != "":
		if p.Type, p.Length, p.Layout, err = point.ParseType(kind); err != nil {
			return fail("type", "%v", err)
		}
	case p.Table.Bits() || bit >= 0:
		p.Type = point.Bool
	}
	if bit >= 0 {
		p.FirstBit, p.BitCount = uint8(bit), 1
	}
	p.LowByte = half == 1
	if hz > 0 {
		if p.Wave.Period > 0 {
			return fail("hz", "hz and period both say how fast the wave is; keep one")
		}
		p.Wave.Period = time.Duration(float64(time.Second) / hz)
	}
	if value != "" {
		if p.Wave.moves() {
			return fail("value", "a value stands still and a wave does not; keep one")
		}
		p.Value = p.Parse(value)
	}
	if err := p.validate(); err != nil {
		return fail("", "%v", err)
	}
	return p, true
}
