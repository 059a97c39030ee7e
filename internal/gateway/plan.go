package gateway

import (
	"cmp"
	"slices"
	"sort"
	"time"

	"fieldgate/internal/bus"
	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
	"fieldgate/internal/publish"
)

// Plan is what a configuration comes to before it goes live: the requests on
// each wire and the time they take there, and the messages and bytes that each
// broker gets in a day. The requests are those that the buses will send. Times
// are estimates: exact for the characters on a serial line, guessed for how
// long a device thinks (5 ms) or a network takes (1 ms).
type Plan struct {
	Buses   []BusPlan    `json:"buses"`
	Outlets []OutletPlan `json:"brokers"`

	// Memory is how many points are in memory: their messages are not counted,
	// since nobody knows how often they are set.
	Memory int `json:"points_in_memory,omitempty"`
}

// BusPlan is what one bus has to do.
type BusPlan struct {
	Name     string        `json:"name"`
	Wire     string        `json:"wire"` // serial /dev/ttyS7 19200-8E1
	Devices  int           `json:"devices"`
	Points   int           `json:"points"`
	Requests []RequestPlan `json:"requests"`
	Cycles   []CyclePlan   `json:"cycles"` // the fastest first

	// Load is the share of time, in percent, that polls with an interval take
	// of the bus. More than 100 cannot be kept: polls will be left out.
	Load float64 `json:"load_percent"`
	// Endless: some points are read as fast as the bus allows, which takes
	// what the others leave.
	Endless bool `json:"endless"`
}

// RequestPlan is one request.
type RequestPlan struct {
	Device  string     `json:"device"`
	Unit    uint8      `json:"unit"`
	Table   string     `json:"table"`   // coil, discrete, input, holding
	Address uint16     `json:"address"` // zero-based
	Count   uint16     `json:"count"`
	Every   string     `json:"every"` // 1s, 0s (as fast as possible), once
	Points  []point.ID `json:"points"`
	MS      float64    `json:"ms"` // on the wire, the device's turn-around included
}

// CyclePlan is all requests of one interval.
type CyclePlan struct {
	Every    string  `json:"every"`
	Requests int     `json:"requests"`
	MS       float64 `json:"ms"` // one after the other

	interval point.Interval
}

// OutletPlan is what one broker gets in a day. Least is when no value changes,
// Most when every value changes with every poll. Bytes are those of MQTT,
// without TCP, TLS and acknowledgements.
type OutletPlan struct {
	Name  string  `json:"name"`
	Least Traffic `json:"least"`
	Most  Traffic `json:"most"`
}

// Traffic is a day's messages.
type Traffic struct {
	Messages float64 `json:"messages_per_day"`
	Bytes    float64 `json:"bytes_per_day"`
}

// day is what the figures of an OutletPlan are for.
const day = 24 * time.Hour

// MakePlan returns what a valid configuration and its topics, as Load returns
// them, come to. It is pure.
func MakePlan(cfg *config.Config, topics []publish.Topic) Plan {
	var p Plan
	polls := make(map[point.ID]time.Duration)
	for _, b := range cfg.Buses {
		p.Buses = append(p.Buses, planBus(b, cfg.Devices, polls))
	}
	p.Outlets = planOutlets(cfg, topics, polls)
	for i := range cfg.Devices {
		p.Memory += len(cfg.Devices[i].Sources)
	}
	return p
}

// planBus plans one bus and notes how often each of its points is read; not at
// all, if that is not regularly.
func planBus(b config.Bus, devices []config.Device, polls map[point.ID]time.Duration) BusPlan {
	p := BusPlan{Name: b.Name, Wire: WireName(b)}
	atOnce := time.Duration(max(b.InFlight, 1))
	var spare time.Duration // one round of what is read as fast as possible
	cycles := make(map[point.Interval]time.Duration)
	var fastest []point.ID
	for _, d := range devices {
		if d.Bus != b.Name {
			continue
		}
		p.Devices++
		p.Points += len(d.Points)
		limits := bus.LimitsFor(b, d)
		reads := bus.PlanReads(d.Points, limits)
		sort.SliceStable(reads, func(i, j int) bool { return compareIntervals(reads[i].Every, reads[j].Every) < 0 })
		for _, r := range reads {
			cost := limits.Cost(r)
			req := RequestPlan{
				Device: d.Name, Unit: uint8(d.Unit),
				Table: r.Table.String(), Address: r.Address, Count: r.Count,
				Every: IntervalName(r.Every), MS: ms(cost),
			}
			for _, i := range r.Points {
				id := d.Points[i].ID
				req.Points = append(req.Points, id)
				switch {
				case r.Every > 0:
					polls[id] = time.Duration(r.Every)
				case r.Every == point.Fastest:
					fastest = append(fastest, id)
				}
			}
			p.Requests = append(p.Requests, req)
			p.count(r.Every)
			cycles[r.Every] += cost
			switch {
			case r.Every == point.Fastest:
				p.Endless = true
				spare += cost / atOnce
			case r.Every > 0:
				p.Load += 100 * float64(cost/atOnce) / float64(r.Every)
			}
		}
	}
	for i := range p.Cycles {
		p.Cycles[i].MS = ms(cycles[p.Cycles[i].interval])
	}
	sort.Slice(p.Cycles, func(i, j int) bool { return compareIntervals(p.Cycles[i].interval, p.Cycles[j].interval) < 0 })
	if p.Load < 100 {
		// What is read as fast as possible shares the time that is left.
		spare = time.Duration(float64(spare) / (1 - p.Load/100))
	}
	for _, id := range fastest {
		polls[id] = max(spare, time.Microsecond)
	}
	return p
}

// compareIntervals orders intervals from the fastest to once.
func compareIntervals(a, b point.Interval) int {
	if (a == point.Once) != (b == point.Once) {
		return cmp.Compare(b, a) // once is negative
	}
	return cmp.Compare(a, b)
}

// count adds a request to the cycle of its interval.
func (p *BusPlan) count(every point.Interval) {
	for i := range p.Cycles {
		if p.Cycles[i].interval == every {
			p.Cycles[i].Requests++
			return
		}
	}
	p.Cycles = append(p.Cycles, CyclePlan{Every: IntervalName(every), Requests: 1, interval: every})
}

func ms(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
}

// IntervalName returns an interval as the configuration spells it.
func IntervalName(i point.Interval) string {
	switch i {
	case point.Once:
		return "once"
	case point.Never:
		return "never"
	}
	return config.FormatDuration(time.Duration(i))
}

// WireName says what a bus is made of: the kind, where it is, the mode of a serial
// port, and the framing where the kind does not say it.
func WireName(b config.Bus) string {
	name := b.Kind.String() + " " + b.Address
	if b.Kind == config.Serial {
		name += " " + b.Mode.String()
	}
	if b.Framing != modbus.FramingTCP { // which is that of tcp and udp
		name += " " + b.Framing.String()
	}
	return name
}

// planOutlets adds up what the rules send to each broker.
func planOutlets(cfg *config.Config, topics []publish.Topic, polls map[point.ID]time.Duration) []OutletPlan {
	var outlets []OutletPlan
	for _, u := range cfg.Uplinks {
		outlets = append(outlets, OutletPlan{Name: u.Name})
	}
	if cfg.Broker != nil {
		outlets = append(outlets, OutletPlan{Name: config.Local})
	}
	e := estimate{places: make(map[point.ID]*point.Point), polls: polls}
	for i := range cfg.Devices {
		for j := range cfg.Devices[i].Points {
			p := &cfg.Devices[i].Points[j]
			e.places[p.ID] = p
		}
	}
	for i := range topics {
		rule := cfg.Publish[topics[i].Rule]
		least, most := e.topic(&topics[i], rule)
		for j := range outlets {
			if rule.To == nil || slices.Contains(rule.To, outlets[j].Name) {
				outlets[j].Least.add(least)
				outlets[j].Most.add(most)
			}
		}
	}
	return outlets
}

func (t *Traffic) add(u Traffic) {
	t.Messages += u.Messages
	t.Bytes += u.Bytes
}

// estimate weighs topics.
type estimate struct {
	places map[point.ID]*point.Point
	polls  map[point.ID]time.Duration // how often a point is read; 0: not regularly
}

// topic returns the traffic of one topic. A batch says the points of one
// device and interval in one message, or all of them at a rule's own interval.
func (e *estimate) topic(t *publish.Topic, rule config.Rule) (least, most Traffic) {
	type poll struct {
		device string
		every  time.Duration
	}
	samples := make(map[poll][]point.Sample)
	var order []poll
	for _, id := range t.Points() {
		p := poll{id.Device(), e.polls[id]}
		if p.every == 0 {
			continue // once after a start, or when asked
		}
		if rule.Every > 0 {
			p = poll{every: rule.Every} // whoever was read
		}
		if samples[p] == nil {
			order = append(order, p)
		}
		samples[p] = append(samples[p], typical(e.places[id]))
	}
	for _, p := range order {
		msg, ok := t.Render(1, samples[p]...)
		if !ok {
			continue
		}
		bytes := float64(packetSize(len(msg.Topic), len(msg.Payload), msg.QoS))
		add := func(to *Traffic, every time.Duration) {
			n := float64(day) / float64(every)
			to.add(Traffic{n, n * bytes})
		}
		switch when := rule.When; {
		case rule.Every > 0, when.Each:
			add(&least, p.every)
			add(&most, p.every)
		default:
			add(&most, max(p.every, when.AtMost))
			if when.AtLeast > 0 {
				add(&least, max(p.every, when.AtLeast))
			}
		}
	}
	return least, most
}

// packetSize returns the length of a PUBLISH packet (MQTT 3.1.1, 3.3).
func packetSize(topic, payload int, qos uint8) int {
	n := 2 + topic + payload
	if qos > 0 {
		n += 2
	}
	header := 2
	for rest := n; rest >= 128; rest /= 128 {
		header++
	}
	return n + header
}

// typical returns a sample of a point whose text is as long as usual.
func typical(p *point.Point) point.Sample {
	bare := *p // without what changes the value
	bare.Scale, bare.Offset, bare.Round = point.Decimal{}, point.Decimal{}, false
	bare.Map, bare.Invalid, bare.Write = nil, nil, nil
	value := point.Value{}
	for _, v := range []point.Value{
		point.IntValue(1234567), point.IntValue(2345), point.IntValue(42), point.IntValue(1),
		point.BoolValue(true), point.TextValue("2025-11-05T14:30:15.123Z"), point.TextValue("0123"), point.TextValue("0"),
	} {
		if p.Type == point.Float16 || p.Type == point.Float32 || p.Type == point.Float64 {
			v = point.Float32Value(123.4)
		}
		regs, err := bare.Encode(v)
		if err != nil {
			continue
		}
		if value, err = p.Decode(regs); err == nil {
			break
		}
	}
	if len(p.Map) > 0 {
		value = point.TextValue(p.Map[len(p.Map)-1].Text)
	}
	if value.IsZero() {
		value = point.IntValue(0)
	}
	return point.Sample{ID: p.ID, Value: value, Time: time.Date(2025, 11, 5, 14, 30, 15, 123e6, time.UTC)}
}
