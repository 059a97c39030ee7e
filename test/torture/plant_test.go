package torture

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
	"fieldgate/internal/simulate"
)

// wire is one bus of the torture.
type wire struct {
	name     string
	kind     config.BusKind
	framing  modbus.Framing
	inFlight string // as the configuration says it
	units    []modbus.UnitID
	echo     bool
	takes    int             // requests that the device takes at once; 0: enough
	excess   simulate.Excess // what it does with more
	latency  time.Duration   // of its answers, and up to twice as much more
	faults   []simulate.Fault
	share    int // of all polls
}

// timeout is what every wire gives its devices. It is short, so that many
// answers can be lost in little time, and long enough that what was not meant to
// be late seldom is.
const timeout = 60 * time.Millisecond

// wires returns the lines of one run. No unit of a serial line is the next
// one's neighbour: an answer that says that it is from another unit (fault
// wrong_unit) and is late as well cannot be told from that unit's own.
func wires() []wire {
	serial := []modbus.UnitID{1, 3, 5}
	near := []modbus.UnitID{1, 2, 3}
	noEcho := without(allFaults, simulate.Echo)
	stream := without(allFaults, simulate.WrongID)
	return []wire{
		{name: "tcp", kind: config.TCP, inFlight: "1", units: near, faults: without(noEcho, simulate.Noise), share: 15},
		{name: "tcp_noise", kind: config.TCP, inFlight: "1", units: near, faults: slices.Concat(refusals, noEcho), share: 5},
		{name: "tcp16", kind: config.TCP, inFlight: "16", units: near, faults: without(noEcho, simulate.Noise), share: 10},
		// What is late within the timeout comes in another order than it was asked.
		{name: "tcp16_order", kind: config.TCP, inFlight: "16", units: near, faults: disorder, share: 10},
		{name: "auto", kind: config.TCP, inFlight: "auto", units: near, faults: without(noEcho, simulate.Noise), share: 5},
		{name: "auto_order", kind: config.TCP, inFlight: "auto", units: near, faults: disorder, share: 10},
		{name: "auto_mix", kind: config.TCP, inFlight: "auto", units: near[:1], takes: 3, excess: simulate.Mix, latency: time.Millisecond, share: 5},
		{name: "udp", kind: config.UDP, inFlight: "1", units: near, faults: noEcho, share: 10},
		{name: "rtu_tcp", kind: config.TCP, framing: modbus.FramingRTU, inFlight: "1", units: serial, faults: stream, share: 6},
		{name: "ascii_tcp", kind: config.TCP, framing: modbus.FramingASCII, inFlight: "1", units: serial, faults: slices.Concat(refusals, stream), share: 4},
		{name: "rtu", kind: config.Serial, framing: modbus.FramingRTU, inFlight: "1", units: serial, faults: stream, share: 5},
		{name: "rtu_one", kind: config.Serial, framing: modbus.FramingRTU, inFlight: "1", units: serial[:1], faults: stream, share: 4},
		{name: "rtu_echo", kind: config.Serial, framing: modbus.FramingRTU, inFlight: "1", units: serial, echo: true, faults: without(stream, simulate.Echo), share: 4},
		{name: "ascii", kind: config.Serial, framing: modbus.FramingASCII, inFlight: "1", units: serial, faults: stream, share: 3},
		{name: "rtu_late", kind: config.Serial, framing: modbus.FramingRTU, inFlight: "1", units: near, faults: lateness(), share: 1},
		{name: "late_tcp", kind: config.TCP, framing: modbus.FramingRTU, inFlight: "1", units: near[:1], faults: lateness(), share: 1},
	}
}

// allFaults is everything that a device may do wrong, with the answers that are
// late in front: they are the hard ones.
var allFaults = []simulate.Fault{
	{Kind: simulate.Late, Delay: timeout / 2, Probability: 0.004},
	{Kind: simulate.Late, Delay: timeout - time.Millisecond, Probability: 0.002},
	{Kind: simulate.Late, Delay: timeout + 2*time.Millisecond, Probability: 0.003},
	{Kind: simulate.Late, Delay: timeout + 20*time.Millisecond, Probability: 0.003},
	{Kind: simulate.Late, Delay: 2*timeout + 3*time.Millisecond, Probability: 0.003},
	{Kind: simulate.Late, Delay: 3 * timeout, Probability: 0.001},
	{Kind: simulate.Late, Delay: 5 * timeout, Probability: 0.001},
	{Kind: simulate.Late, Delay: timeout + 5*time.Millisecond, Code: modbus.ServerDeviceFailure, Probability: 0.002},
	{Kind: simulate.Late, Delay: 2 * timeout, Code: modbus.ServerDeviceBusy, Probability: 0.001},
	{Kind: simulate.Silent, Probability: 0.003},
	{Kind: simulate.Mute, Probability: 0.003},
	{Kind: simulate.Refuse, Code: modbus.ServerDeviceBusy, Probability: 0.001},
	{Kind: simulate.Refuse, Code: modbus.ServerDeviceFailure, Probability: 0.003},
	{Kind: simulate.Refuse, Code: modbus.MemoryParityError, Probability: 0.002},
	{Kind: simulate.WrongID, Probability: 0.003},
	{Kind: simulate.WrongUnit, Probability: 0.003},
	{Kind: simulate.CRC, Probability: 0.004},
	{Kind: simulate.Partial, Probability: 0.003},
	{Kind: simulate.Split, Delay: time.Millisecond, Probability: 0.02},
	{Kind: simulate.Split, Delay: timeout / 2, Probability: 0.002},
	{Kind: simulate.Echo, Probability: 0.01},
	{Kind: simulate.Noise, Probability: 0.005},
	{Kind: simulate.Drop, Delay: 5 * time.Millisecond, Probability: 0.0005},
	{Kind: simulate.Slow, Delay: 100 * time.Microsecond, Probability: 0.002},
	{Kind: simulate.Twice, Delay: 0, Probability: 0.01},
}

// refusals make the gateway split its reads.
var refusals = []simulate.Fault{
	{Kind: simulate.Refuse, Code: modbus.IllegalDataAddress, Probability: 0.0005},
	{Kind: simulate.Late, Delay: timeout + 5*time.Millisecond, Code: modbus.IllegalDataValue, Probability: 0.0005},
}

// lateness is answers that are late by everything between a timeout and seven of
// them, every eighth.
func lateness() (faults []simulate.Fault) {
	for _, times := range []float64{0.9, 1.02, 1.1, 1.3, 1.5, 1.9, 2.02, 2.5, 3, 5, 7} {
		faults = append(faults, simulate.Fault{Kind: simulate.Late, Delay: time.Duration(times * float64(timeout)), Probability: 0.008})
	}
	return append(faults,
		simulate.Fault{Kind: simulate.Late, Delay: timeout * 11 / 10, Code: modbus.ServerDeviceFailure, Probability: 0.01},
		simulate.Fault{Kind: simulate.Late, Delay: timeout * 2, Code: modbus.ServerDeviceBusy, Probability: 0.005},
		simulate.Fault{Kind: simulate.Mute, Probability: 0.01})
}

// disorder leaves every answer right, and moves it.
var disorder = []simulate.Fault{
	{Kind: simulate.Late, Delay: timeout / 20, Probability: 0.15},
	{Kind: simulate.Late, Delay: timeout / 5, Probability: 0.05},
	{Kind: simulate.Split, Delay: time.Millisecond, Probability: 0.05},
	{Kind: simulate.Twice, Delay: time.Millisecond, Probability: 0.05},
}

// without is faults but those of the kinds given.
func without(faults []simulate.Fault, kinds ...simulate.FaultKind) []simulate.Fault {
	return slices.DeleteFunc(slices.Clone(faults), func(f simulate.Fault) bool { return slices.Contains(kinds, f.Kind) })
}

// kind is how the truth about a field is known.
type kind uint8

const (
	static  kind = iota // simulate.Pattern, for ever
	counter             // counts how often the device gave it; no two fields of a wire share a number
	written             // what was last written
)

// field is one point of a device, on both sides.
type field struct {
	kind
	name  string
	table modbus.Table
	addr  uint16
	words int
	low   uint64 // of a counter: its numbers go round from low to high
	high  uint64
	write string // of the configuration
	bits  string
}

// fields is what every device has. Many reads have the same shape, so that the
// answer to one could be taken for that to another; every word tells whose it is.
// n numbers the devices of a wire.
func fields(n int) (all []field) {
	id := uint64(n * 16) // of counters
	add := func(f field) {
		if f.words == 0 {
			f.words = 1
		}
		if f.kind == counter {
			id++
			size := uint64(1000) // of a counter in one register: 65 of them
			if f.words == 2 {
				size = 10_000_000
			}
			f.low, f.high = id*size, id*size+size-1
		}
		all = append(all, f)
	}
	block := func(t modbus.Table, addr uint16) {
		add(field{kind: counter, name: fmt.Sprintf("%v%d_n", t, addr), table: t, addr: addr, words: 2})
		for a := addr + 2; a < addr+10; a++ {
			add(field{name: fmt.Sprintf("%v%d", t, a), table: t, addr: a})
		}
	}
	block(modbus.HoldingRegisters, 0)
	block(modbus.HoldingRegisters, 200)
	block(modbus.HoldingRegisters, 400)
	block(modbus.InputRegisters, 0)
	block(modbus.InputRegisters, 200)
	for a := uint16(1000); a < 1600; a += 200 { // single registers
		add(field{kind: counter, name: fmt.Sprintf("single%d", a), table: modbus.HoldingRegisters, addr: a})
	}
	add(field{name: "alone", table: modbus.HoldingRegisters, addr: 1600})
	for _, at := range []uint16{0, 3000} { // 8 and 24 of them
		for a := at; a < at+8+at/3000*16; a++ {
			add(field{name: fmt.Sprintf("coil%d", a), table: modbus.Coils, addr: a})
			add(field{name: fmt.Sprintf("discrete%d", a), table: modbus.DiscreteInputs, addr: a})
		}
	}
	add(field{kind: written, name: "w6", table: modbus.HoldingRegisters, addr: 5000, write: "{ verify: false }"})
	add(field{kind: written, name: "w16", table: modbus.HoldingRegisters, addr: 5200, words: 2, write: "{ verify: false }"})
	add(field{kind: written, name: "w16one", table: modbus.HoldingRegisters, addr: 5400, write: "{ function: 16 }"})
	add(field{kind: written, name: "w22", table: modbus.HoldingRegisters, addr: 5600, bits: "w: 4-11", write: "{ verify: false }"})
	add(field{kind: written, name: "modify", table: modbus.HoldingRegisters, addr: 5800, bits: "w: 4-11", write: "{ function: 6 }"})
	add(field{kind: written, name: "w5", table: modbus.Coils, addr: 6000, write: "{ verify: false }"})
	add(field{kind: written, name: "w15", table: modbus.Coils, addr: 7000, write: "{ function: 15 }"})
	return all
}

// yaml is the field as a user would configure it.
func (f field) yaml() string {
	at := point.FormatAddress(f.table, f.addr)
	s := fmt.Sprintf("%s: { at: %s", f.name, at)
	if f.words == 2 {
		s += ", type: uint32"
	}
	if f.bits != "" {
		s += ", bits: { " + f.bits + " }"
	}
	if f.write != "" {
		s += ", write: " + f.write
	}
	return s + " }"
}

// id is the name of the point that the field is, on a device.
func (f field) id(device string) point.ID {
	if f.bits != "" {
		return point.ID(device + "." + f.name + ".w")
	}
	return point.ID(device + "." + f.name)
}

// target is one simulated device, and what is true of it.
type target struct {
	*simulate.Device
	name   string
	fields []field
	at     map[place]int // fields by each of their addresses
	byID   map[point.ID]int
	last   []uint64 // by field: the counter in the last good sample; of Run's goroutine

	mu      sync.Mutex
	asked   []map[uint64]exchange // by field: how each of its counter's last numbers was got
	history [][]uint64            // by field: the values that a register had, from its first
	floor   []int                 // by field: the entry of history that a write last reported as done
}

// exchange is a request and its answer.
type exchange struct{ began, ended time.Time }

// mostAsked is how many exchanges are remembered of a counter.
const mostAsked = 256

type place struct {
	table modbus.Table
	addr  uint16
}

func newTarget(w wire, n int, unit modbus.UnitID, seed uint64) *target {
	t := &target{
		name: fmt.Sprintf("%s-%d", w.name, unit), fields: fields(n),
		at: make(map[place]int), byID: make(map[point.ID]int),
	}
	s := simulate.Settings{Name: t.name, Unit: unit, Fill: true, Faults: w.faults, Seed: seed, Latency: w.latency, Jitter: 2 * w.latency, OnWrite: t.onWrite}
	for i, f := range t.fields {
		for a := range f.words {
			t.at[place{f.table, f.addr + uint16(a)}] = i
		}
		t.byID[f.id(t.name)] = i
		p := simulate.Point{Point: point.Point{ID: point.ID(t.name + "." + f.name), Table: f.table, Address: f.addr}}
		if f.words == 2 {
			p.Type = point.Uint32
		}
		if f.table.Bits() {
			p.Type = point.Bool
		}
		switch f.kind {
		case static:
			continue
		case counter:
			p.Wave = simulate.Wave{Shape: simulate.Count, Min: float64(f.low), Max: float64(f.high)}
		}
		s.Points = append(s.Points, p)
	}
	t.history = make([][]uint64, len(t.fields))
	t.floor = make([]int, len(t.fields))
	t.last = make([]uint64, len(t.fields))
	t.asked = make([]map[uint64]exchange, len(t.fields))
	for i := range t.history {
		t.history[i] = []uint64{0}
		t.asked[i] = make(map[uint64]exchange)
	}
	t.Device = simulate.New(s)
	return t
}

// onWrite keeps what a register had.
func (t *target) onWrite(w simulate.Write) {
	i, ok := t.at[place{w.Table, w.Address}]
	if !ok || t.fields[i].kind != written || len(w.Values) != t.fields[i].words {
		panic(fmt.Sprintf("a write to %v that nobody asked for: %+v", t.name, w))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.history[i] = append(t.history[i], join(w.Values))
}

// join makes one number of a field's words.
func join(words []uint16) (v uint64) {
	for _, w := range words {
		v = v<<16 | uint64(w)
	}
	return v
}

// count returns what a counter stands at.
func (t *target) count(i int) uint64 {
	v, err := t.Value(t.fields[i].name)
	if err != nil {
		panic(err)
	}
	n, _ := v.Uint64()
	return n
}

// newer reports whether a counter's number v came after was and not after now.
func (f field) newer(v, was, now uint64) bool {
	size := f.high - f.low + 1
	if v < f.low || v > f.high {
		return false
	}
	d := (v - was + size) % size
	return d > 0 && d <= (now-was+size)%size
}

// moment is when a request was made, and the state of the fields that it covers
// then.
type moment struct {
	at    time.Time
	state []uint64
}

// before notes the state of the fields that a read covers.
func (t *target) before(table modbus.Table, addr uint16, n int) moment {
	m := moment{at: time.Now()}
	for a := range n {
		i, ok := t.at[place{table, addr + uint16(a)}]
		if !ok || t.fields[i].addr != addr+uint16(a) {
			continue
		}
		switch t.fields[i].kind {
		case counter:
			m.state = append(m.state, t.count(i))
		case written:
			t.mu.Lock()
			m.state = append(m.state, uint64(len(t.history[i])-1))
			t.mu.Unlock()
		}
	}
	return m
}

// check compares an answer with the truth: right is what a device with this
// memory may have said since the moment m.
func (t *target) check(table modbus.Table, addr uint16, words []uint16, m moment) error {
	for a := range words {
		at := addr + uint16(a)
		i, ok := t.at[place{table, at}]
		if !ok {
			if want := simulate.Pattern(t.Unit(), table, at); words[a] != want {
				return fmt.Errorf("%s is %d, not %d", point.FormatAddress(table, at), words[a], want)
			}
			continue
		}
		f := t.fields[i]
		switch {
		case f.addr != at && f.kind != static:
		case f.kind == static:
			if want := simulate.Pattern(t.Unit(), table, at); words[a] != want {
				return fmt.Errorf("%s is %d, not %d", point.FormatAddress(table, at), words[a], want)
			}
		case a+f.words > len(words):
			return fmt.Errorf("%s is torn", f.name)
		case f.kind == counter:
			v, was, now := join(words[a:a+f.words]), m.state[0], t.count(i)
			m.state = m.state[1:]
			if !f.newer(v, was, now) {
				return fmt.Errorf("%s is %d; it was %d before the request and is %d now", f.name, v, was, now)
			}
			t.note(i, v, exchange{m.at, time.Now()})
		case f.kind == written:
			v, from := join(words[a:a+f.words]), int(m.state[0])
			m.state = m.state[1:]
			if !t.had(i, v, from) {
				return fmt.Errorf("%s is %d, which it has not been since the request", f.name, v)
			}
		}
	}
	return nil
}

// note remembers how a counter's number was got.
func (t *target) note(i int, v uint64, e exchange) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked[i][v] = e
	delete(t.asked[i], v-mostAsked)
}

// atOnce reports whether two numbers of a counter were asked for at the same
// time, so that neither is the older.
func (t *target) atOnce(i int, a, b uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	x, known := t.asked[i][a]
	y, also := t.asked[i][b]
	return known && also && x.began.Before(y.ended) && y.began.Before(x.ended)
}

// had reports whether a register had a value since the entry from of its history.
func (t *target) had(i int, v uint64, from int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.history[i][from:] {
		if h == v {
			return true
		}
	}
	return false
}

// build makes the plant of wires, and the targets of each wire. The ports of the
// serial ones are links in dir: a port that vanishes comes back by another number.
func build(wires []wire, dir string, random *rand.Rand) (*simulate.Plant, [][]*target) {
	plant := new(simulate.Plant)
	targets := make([][]*target, len(wires))
	for i, w := range wires {
		b := &simulate.Bus{
			Name: w.name, Kind: w.kind, Framing: w.framing, Echo: w.echo, InFlight: w.takes, Excess: w.excess,
		}
		if b.Address = "127.0.0.1:0"; w.kind == config.Serial {
			b.Address = filepath.Join(dir, w.name)
		}
		for n, unit := range w.units {
			t := newTarget(w, n, unit, random.Uint64())
			targets[i] = append(targets[i], t)
			b.Devices = append(b.Devices, t.Device)
		}
		plant.Buses = append(plant.Buses, b)
	}
	return plant, targets
}

// configuration is what a user would write for wires.
func configuration(wires []wire, plant *simulate.Plant, targets [][]*target) string {
	var s strings.Builder
	s.WriteString("site: { id: torture }\nbuses:\n")
	for i, w := range wires {
		fmt.Fprintf(&s, "  %s: { %v: \"%s\", timeout: %v, retries: 1", w.name, w.kind, plant.Buses[i].Addr(), timeout)
		if w.kind == config.Serial {
			s.WriteString(", mode: 115200-8N1")
		}
		if w.framing != modbus.FramingTCP {
			fmt.Fprintf(&s, ", framing: %v", w.framing)
		} else {
			fmt.Fprintf(&s, ", in_flight: %s", w.inFlight)
		}
		s.WriteString(" }\n")
	}
	s.WriteString("devices:\n")
	for i, w := range wires {
		for n, t := range targets[i] {
			fmt.Fprintf(&s, "  %s:\n    bus: %s\n    unit: %d\n    every: 0s\n    backoff: 100ms..1s\n", t.name, w.name, t.Unit())
			if n > 0 {
				s.WriteString("    holes: 0\n") // else requests are few, and long
			}
			s.WriteString("    points:\n")
			for _, f := range t.fields {
				s.WriteString("      " + f.yaml() + "\n")
			}
		}
	}
	return s.String()
}
