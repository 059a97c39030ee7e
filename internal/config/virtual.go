package config

import (
	"slices"
	"strings"
	"time"

	"fieldgate/internal/config/yamltree"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// This file describes and resolves virtual devices: those without a bus, whose
// points live in memory.

// Virtual says what sets a point of a virtual device, beside writes.
type Virtual struct {
	Initial point.Value   // at the start; the zero Value: none
	Topic   string        // of messages that set it, {site} and the like replaced; "": none do
	Key     string        // member of a JSON object that is the value
	From    []string      // uplinks whose messages are taken, Local; never empty where there is a Topic
	Stale   time.Duration // how long a value from there counts; 0: for ever
	Keep    bool          // saved across restarts
}

// rawFrom is where a value comes from.
type rawFrom struct {
	topic, key string
	uplinks    []string
}

// Virtual reports whether the device lives in memory. It has no bus then, and
// an entry in Sources for each of its Points, whose Table is 0.
func (d *Device) Virtual() bool { return d.Bus == "" }

var fromPlaceholders = []string{"site", "device", "point"}

// virtualKeys are the keys of a point of a virtual device.
func virtualKeys(t *tables) []*field[*rawPoint] {
	topic := template("a topic", fromPlaceholders, true)
	long := newObject("from", "The messages that set a point of a virtual device.", rawFrom{},
		key("topic", func(f *rawFrom) *string { return &f.topic }, topic, "Their topic, without wildcards; placeholders: {site} {device} {point}.").must(),
		key("key", func(f *rawFrom) *string { return &f.key }, text("the name of a member"), "Where the payload is a JSON object: the member that is the value, such as the point's name in a batch.").def("value").aka("member", "field", "path"),
		key("uplink", func(f *rawFrom) *[]string { return &f.uplinks }, oneOrList(text("the name of an uplink, or local"), "names of uplinks, or local"), "Who brings them: names of uplinks; local is the embedded broker. Default: all of them.").aka("uplinks", "broker", "via", "to"),
	).value(t, "from")
	from := value[*rawFrom]{anyOf(topic.schema, long.schema), func(d *decoder, n *node) (*rawFrom, bool) {
		if n.Kind == yamltree.Map {
			f, ok := long.read(d, n)
			return &f, ok
		}
		s, ok := topic.read(d, n)
		return &rawFrom{topic: s, key: "value"}, ok
	}}
	initial := value[*node]{schema{{"type", []string{"string", "number", "boolean"}}}, func(d *decoder, n *node) (*node, bool) {
		_, ok := d.scalar(n, "a value")
		return n, ok
	}}
	return []*field[*rawPoint]{
		key("initial", func(p *rawPoint) **node { return &p.initial }, initial, "Value at the start. Of virtual devices, which have no bus.").aka("default", "start", "init"),
		key("from", func(p *rawPoint) **rawFrom { return &p.from }, from, "Topic of the messages that set it: the value, or a JSON object with a member value; or {topic: T, key: MEMBER, uplink: NAMES}. Of virtual devices.").aka("topic", "source", "subscribe"),
		key("stale", func(p *rawPoint) *time.Duration { return &p.stale }, duration(10*time.Millisecond, maxWait), "How long a value from there counts. Default: until the next one. Of virtual devices.").aka("stale_after", "max_age", "expire", "ttl"),
		key("keep", func(p *rawPoint) *bool { return &p.keep }, boolean(), "Save the value across restarts. Of virtual devices.").def("false").aka("persist", "retain", "save"),
	}
}

// isVirtualKey reports a key that only points of virtual devices have.
func isVirtualKey(key string) bool {
	return key == "initial" || key == "from" || key == "stale" || key == "keep"
}

// onlyVirtual reports keys of virtual devices at a point that has a bus.
func (r *resolver) onlyVirtual(m *node, raw *rawPoint) bool {
	if raw.initial == nil && raw.from == nil && raw.stale == 0 && !has(m, "keep") {
		return true
	}
	for k := range m.Entries {
		if isVirtualKey(k.Text) {
			r.keyFault(m, k.Text, "is for devices without a bus, whose values live in memory; remove it, or the device's bus")
		}
	}
	return false
}

// busKeys are what only a device on a bus, and its points, can have.
var (
	busKeys      = []string{"unit", "every", "timeout", "retries", "gap", "max_block", "holes", "base", "backoff", "profile"}
	registerKeys = []string{"at", "byte", "bit", "bits", "every", "group", "invalid"}
)

// virtual reports whether an entry of devices is meant to be a virtual device:
// it names no bus, and that is no slip.
func (r *resolver) virtual(v *named[rawDevice]) bool {
	if has(v.at, "bus") || r.partial || v.bad || v.is.points == nil {
		return false
	}
	if v.is.points.Kind == yamltree.Map {
		for k, p := range v.is.points.Entries {
			if p.Kind == yamltree.Map && has(p, "at") {
				r.faultf(v.at, "bus is missing, and %s has an address; add bus: NAME, or remove at from its points, whose values then live in memory", k.Text)
				return false
			}
		}
	}
	return true
}

// virtualDevice resolves a device without a bus. The path is at it.
func (r *resolver) virtualDevice(v *named[rawDevice], t *taken) {
	r.onlyFor(v.at, "devices on a bus, and this one has none", busKeys...)
	if strings.Contains(v.name, "{unit}") {
		r.faultf(v.key, "a device without a bus has no unit id; write a name without {unit}")
		return
	}
	if other := t.names[v.name]; other != nil {
		r.faultf(v.key, "makes the device %s, which is there already (%s); write another name", v.name, r.set.Place(other))
		return
	}
	t.names[v.name] = v.key
	dev := Device{Name: v.name}
	m := v.is.points
	if m.Kind != yamltree.Map {
		r.in("points")
		r.wrongKind(m, "a map from names to points", "")
		r.out()
		return
	}
	if m.Len() == 0 {
		r.warnf(m, "there are no points in it")
	}
	if m.Shared() {
		r.shared++
		defer func() { r.shared-- }()
	}
	r.in("points")
	seen := make(map[string]bool, m.Len())
	for k, val := range m.Entries {
		r.in(k.Text)
		switch {
		case goodName(k.Text) != "" && !r.checkName(k, goodPointName(k.Text)):
		case seen[k.Text]:
			r.twice(k, m)
		default:
			seen[k.Text] = true
			if p, source, ok := r.virtualPoint(v, k, val); ok {
				dev.Points, dev.Sources = append(dev.Points, p), append(dev.Sources, source)
			}
		}
		r.out()
	}
	r.out()
	r.points += len(dev.Points)
	r.cfg.Devices = append(r.cfg.Devices, dev)
}

// virtualPoint resolves one point. The path is at it.
func (r *resolver) virtualPoint(v *named[rawDevice], k, m *node) (p point.Point, source Virtual, ok bool) {
	raw, before := &r.scratch, len(r.found)
	*raw = r.tables.virtual.zero
	if !r.tables.virtual.fill(r.decoder, m, raw) {
		return p, source, false
	}
	r.onlyFor(m, "points of a device on a bus", registerKeys...)
	if len(r.found) > before {
		return p, source, false // what it comes to is a guess
	}
	p = point.Point{
		ID: point.ID(r.keep(v.name + "." + k.Text)), Type: raw.kind.is, Length: raw.kind.length, Layout: raw.kind.layout, Order: raw.order,
		Scale: raw.scale, Offset: raw.offset, Map: raw.vmap,
		Unit: raw.unit, Label: raw.label, Tags: raw.tags,
		Every: point.Never, Write: raw.write,
	}
	if !raw.kind.given {
		p.Type = point.Float64
	}
	if p.Order == unsetOrder {
		p.Order = v.is.order
	}
	if raw.decimals >= 0 {
		p.Round, p.Decimals = true, int8(raw.decimals)
	}
	if p.Scale.IsZero() {
		r.keyFault(m, "scale", "0 makes every value the same; write another number, or remove the key")
		return p, source, false
	}
	if p.Write != nil && r.ambiguous(m, p.Map) {
		return p, source, false
	}
	if p.Write != nil && p.Write.Function != 0 {
		_, w := m.Get("write")
		r.in("write")
		r.keyFault(w, "function", "is for registers of a device on a bus; remove it")
		r.out()
		return p, source, false
	}
	checked := p // as if it had registers, which its type is made for
	checked.Table = modbus.HoldingRegisters
	if p.Type == point.Bool {
		checked.Table = modbus.Coils
	}
	if !r.valid(m, &checked) {
		return p, source, false
	}
	source = Virtual{Stale: raw.stale, Keep: raw.keep}
	if raw.initial != nil {
		r.initial(&p, &source, raw.initial)
	}
	if raw.from != nil {
		r.from(&p, &source, raw.from, m)
	}
	switch {
	case raw.stale > 0 && raw.from == nil:
		r.keyFault(m, "stale", "is how long a value from a topic counts, and there is none; add from: TOPIC, or remove it")
	case raw.from == nil && raw.write == nil && raw.initial == nil:
		r.warnf(k, "nothing sets it; add initial, from or write")
	case raw.from == nil && raw.write == nil && raw.keep:
		r.keyFault(m, "keep", "nothing changes the value, so there is nothing to save; add from or write, or remove it")
	}
	return p, source, len(r.found) == before
}

// initial reads the value at the start.
func (r *resolver) initial(p *point.Point, source *Virtual, n *node) {
	r.in("initial")
	defer r.out()
	v := p.Parse(n.Text)
	got, err := p.Hold(v)
	if err != nil {
		r.faultf(n, "%v; write another value, or another type", err)
		return
	}
	if p.Write != nil {
		if err := p.CheckWrite(v); err != nil {
			r.faultf(n, "%v, by its own write settings; write another value", err)
			return
		}
	}
	source.Initial = got
}

// from reads where values come from. Whether the uplinks are there is looked at
// once they are known.
func (r *resolver) from(p *point.Point, source *Virtual, f *rawFrom, m *node) {
	_, at := m.Get("from")
	r.in("from")
	defer r.out()
	source.Topic = strings.NewReplacer("{site}", r.cfg.Site.ID, "{device}", p.ID.Device(), "{point}", p.ID.Name()).Replace(f.topic)
	source.Key, source.From = f.key, f.uplinks
	if wrong := checkFilter(source.Topic); wrong != "" {
		r.faultf(at, "%s is not a topic: %s", quote(source.Topic), wrong)
	}
	if at.Kind == yamltree.Map {
		_, at = at.Get("uplink")
		r.in("uplink")
		defer r.out()
	}
	r.takes = append(r.takes, taking{at, slices.Clone(r.path), p.ID, f.uplinks})
}

// taking is a point that is set by messages, and where that stands.
type taking struct {
	at      *node // nil: no uplinks are named
	path    []step
	id      point.ID
	uplinks []string
}

// sources checks who brings the messages that set points, now that that is
// known, and fills in all of them where none is named.
func (r *resolver) sources() {
	var all []string
	if r.cfg.Broker != nil {
		all = append(all, Local)
	}
	for _, u := range r.cfg.Uplinks {
		all = append(all, u.Name)
	}
	path := r.path
	for _, t := range r.takes {
		r.path = t.path
		at := t.at
		if at == nil {
			at = r.root
		}
		for _, name := range t.uplinks {
			switch {
			case name == "" || slices.Contains(all, name):
			case name == Local:
				r.missingf(at, "local is the embedded broker, and there is none; add broker: {}")
			default:
				r.missingf(at, "there is no uplink %s; %s", quote(name), Suggest(name, all))
			}
		}
		if len(all) == 0 {
			r.missingf(at, "nobody brings messages for %s: there are no uplinks and no broker; add uplinks: or broker:", t.id)
		}
	}
	r.path = path
	for i := range r.cfg.Devices {
		d := &r.cfg.Devices[i]
		for j := range d.Sources {
			if s := &d.Sources[j]; s.Topic != "" && len(s.From) == 0 {
				s.From = all
			}
		}
	}
}
