// Package simulate is made-up Modbus devices for tests, the demonstration and
// "fieldgate simulate": registers that move in waveforms and can be written, on
// TCP, UDP and serial lines that are as slow as real ones, with every fault a
// real device has been seen to have, on schedule.
//
// A Device is an Endpoint and can be used without any wire. A Plant is devices
// on buses; it is built in code, or by Load from a file.
package simulate

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"strconv"
	"sync"
	"time"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Point is one value of a device: where it lives and how it is encoded there,
// and how it moves.
type Point struct {
	point.Point
	Wave     Wave
	Value    point.Value // of a Constant at the start; none: 0, false or ""
	ReadOnly bool        // refuse writes to a Constant with exception 2; what moves always does
	Stuck    bool        // confirm writes to a Constant and keep the value, as an output that does not pull
}

// Span is Count addresses of a table from Address on.
type Span struct {
	Table   modbus.Table
	Address uint16
	Count   int
}

func (s Span) overlaps(t modbus.Table, addr uint16, n int) bool {
	return s.Table == t && int(s.Address) < int(addr)+n && int(addr) < int(s.Address)+s.Count
}

// Settings make a Device. Only Unit matters to a bus; the zero value is a device
// of 65536 zeros in each table.
type Settings struct {
	Name   string
	Unit   modbus.UnitID
	Points []Point

	// Fill gives every register that no point covers, and the coils and inputs
	// too, the value that Pattern says, instead of 0.
	Fill bool
	// Strict refuses addresses that no point covers with exception 2.
	Strict bool
	Holes  []Span // refused with exception 2 in any case

	// MaxRegs and MaxBits are the longest block that is read or written; longer
	// ones are refused with exception 3. 0: what the specification allows.
	MaxRegs, MaxBits int

	Latency time.Duration // from the request's end to the answer's beginning
	Jitter  time.Duration // at most so much more, at random
	Faults  []Fault       // the first that holds strikes
	Timeout time.Duration // how long Do waits before it returns ErrNoResponse

	Identity modbus.Identity
	Seed     uint64 // of everything random

	// OnWrite is told each write when it is executed, in order. It must not
	// call the device. Nil: nobody is.
	OnWrite func(Write)
}

// Validate returns what makes no sense.
func (s Settings) Validate() error {
	for _, p := range s.Points {
		if err := p.validate(); err != nil {
			return fmt.Errorf("point %s: %w", p.ID.Name(), err)
		}
	}
	for i, f := range s.Faults {
		if err := f.Validate(); err != nil {
			return fmt.Errorf("fault %d: %w", i+1, err)
		}
	}
	for _, h := range s.Holes {
		if h.Count < 1 || int(h.Address)+h.Count > 1<<16 {
			return fmt.Errorf("hole %v+%d passes 65535 or is empty", point.FormatAddress(h.Table, h.Address), h.Count)
		}
	}
	if s.MaxRegs < 0 || s.MaxBits < 0 || s.Latency < 0 || s.Jitter < 0 || s.Timeout < 0 {
		return fmt.Errorf("limits and times must not be negative")
	}
	return nil
}

func (p Point) validate() error {
	if err := p.Point.Validate(); err != nil {
		return err
	}
	if err := p.Wave.Validate(); err != nil {
		return err
	}
	if _, err := p.encode(p.Value); p.Wave.Shape == Constant && err != nil {
		return err
	}
	if p.Wave.Shape == Clock && p.Type != point.Datetime {
		return fmt.Errorf("a clock needs the type datetime, not %s", p.TypeName())
	}
	if p.Wave.moves() && p.Wave.Shape != Clock {
		low, high := p.Wave.limits()
		for _, v := range []float64{low, high} {
			if _, err := p.encode(p.number(v)); err != nil {
				return fmt.Errorf("the wave reaches %v: %w", v, err)
			}
		}
	}
	return nil
}

// encode is Encode, with zeros for no value.
func (p *Point) encode(v point.Value) ([]uint16, error) {
	if v.IsZero() {
		return make([]uint16, p.Words()), nil
	}
	return p.Encode(v)
}

// number is v in a form that the point's type takes.
func (p *Point) number(v float64) point.Value {
	switch p.Type {
	case point.Bool:
		return point.BoolValue(v >= 0.5)
	case point.Float16, point.Float32, point.Float64:
		return point.Float64Value(v)
	}
	const beyond = 1 << 63 // what an int64 cannot hold; the type will say so, or take it
	if s := p.Scale.Float64(); s == math.Trunc(s) && math.Abs(v) < beyond {
		return point.IntValue(int64(math.Round(v)))
	}
	return point.Float64Value(v)
}

// Write is one write that a device executed.
type Write struct {
	Time     time.Time
	Function modbus.FunctionCode
	Table    modbus.Table
	Address  uint16
	Values   []uint16 // bits as 0 and 1; after a mask write the register's new value
}

// maxWrites is how many writes a device remembers.
const maxWrites = 10000

// Device is one made-up device. It is safe for use by several goroutines.
type Device struct {
	settings Settings

	mu       sync.Mutex
	start    time.Time
	random   *rand.Rand
	memory   memory
	requests int
	writes   []Write // the last maxWrites, a ring from next on once full
	next     int
	written  int
	function modbus.FunctionCode // of the request being answered
}

// New makes a device of settings that Validate has passed. Its clock starts now.
func New(s Settings) *Device {
	d := &Device{settings: s, start: time.Now(), random: rand.New(rand.NewPCG(s.Seed, uint64(s.Unit)))}
	d.memory = newMemory(d)
	return d
}

// Name returns the device's name.
func (d *Device) Name() string { return d.settings.Name }

// Unit returns the device's unit id.
func (d *Device) Unit() modbus.UnitID { return d.settings.Unit }

// Settings returns what the device was made of. The slices are shared.
func (d *Device) Settings() Settings { return d.settings }

// Points returns where the device's values live and how they are encoded, as a
// gateway's configuration would say it.
func (d *Device) Points() []point.Point {
	points := make([]point.Point, len(d.settings.Points))
	for i, p := range d.settings.Points {
		points[i] = p.Point
	}
	return points
}

// restart sets the device's clock to 0.
func (d *Device) restart(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.start = now
}

// Requests returns how many requests reached the device, answered or not.
func (d *Device) Requests() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.requests
}

// Writes returns the last 10000 writes the device executed, oldest first, and
// how many there were in all.
func (d *Device) Writes() (last []Write, all int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append(slices.Clone(d.writes[d.next:]), d.writes[:d.next]...), d.written
}

// Value returns what the registers of the named point now mean.
func (d *Device) Value(name string) (point.Value, error) {
	p, err := d.point(name)
	if err != nil {
		return point.Value{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	regs := make([]uint16, p.Words())
	if p.Wave.Shape != Count { // which this is no read to
		d.memory.refresh(p.Table, p.Address, len(regs))
	}
	d.memory.load(p.Table, p.Address, regs)
	return p.Decode(regs)
}

// Set changes the value of a Constant point from within, as an operator at the
// device would.
func (d *Device) Set(name string, v point.Value) error {
	p, err := d.point(name)
	if err != nil {
		return err
	}
	if p.Wave.moves() {
		return fmt.Errorf("simulate: %s moves by itself (%v)", p.ID, p.Wave.Shape)
	}
	regs, err := p.Encode(v)
	if err != nil {
		return fmt.Errorf("simulate: %s: %w", p.ID, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.memory.store(p, regs)
	return nil
}

func (d *Device) point(name string) (*Point, error) {
	for i := range d.settings.Points {
		if p := &d.settings.Points[i]; p.ID.Name() == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("simulate: device %s has no point %q", d.settings.Name, name)
}

// Do implements modbus.Endpoint for every unit id. Faults show as they would
// through a line: what would leave a client without an answer is ErrNoResponse
// after Settings.Timeout, what no client may take for an answer is
// ErrBadResponse, and what a good client sees through changes nothing.
func (d *Device) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	if err := modbus.CheckRequest(req); err != nil {
		return nil, err
	}
	fault, latency := d.begin()
	kind := FaultKind(0)
	if fault != nil {
		kind = fault.Kind
	}
	var resp modbus.PDU
	var err error
	switch {
	case kind == Silent:
		latency, err = d.settings.Timeout, modbus.ErrNoResponse
	case kind == Refuse, kind == Late && fault.Code != 0:
		err = fault.code()
	default:
		resp, err = d.answer(req)
	}
	switch kind {
	case Mute, Partial, Drop:
		latency, err = d.settings.Timeout, modbus.ErrNoResponse
	case WrongID, WrongUnit, CRC, Noise:
		err = modbus.ErrBadResponse
	case Late:
		latency += fault.delay()
	}
	if t := d.settings.Timeout; t > 0 && latency > t {
		latency, err = t, modbus.ErrNoResponse
	}
	if waitErr := sleep(ctx, latency); waitErr != nil {
		return nil, fmt.Errorf("simulate: %s: %w", d.settings.Name, waitErr)
	}
	if err != nil {
		return nil, fmt.Errorf("simulate: %s: %w", d.settings.Name, err)
	}
	if unit == modbus.Broadcast {
		return nil, nil
	}
	return resp, nil
}

// reply plans what the device sends for a request frame. A broadcast is executed
// and gets no reply.
func (d *Device) reply(framing modbus.Framing, tx uint16, unit modbus.UnitID, req modbus.PDU, adu []byte, broadcast bool) reply {
	fault, latency := d.begin()
	if fault != nil && fault.Kind == Silent {
		return reply{}
	}
	var resp modbus.PDU
	var err error
	if fault != nil && (fault.Kind == Refuse || fault.Kind == Late && fault.Code != 0) {
		err = fault.code()
	} else {
		resp, err = d.answer(req)
	}
	if err != nil {
		resp = modbus.ExceptionResponse(req.Function(), modbus.ExceptionFor(err))
	}
	if broadcast {
		return reply{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return fault.frame(framing, tx, unit, resp, adu, latency, d.random)
}

// begin counts a request and says what strikes it and how long the device takes.
func (d *Device) begin() (*Fault, time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests++
	latency := d.settings.Latency
	if d.settings.Jitter > 0 {
		latency += time.Duration(d.random.Int64N(int64(d.settings.Jitter) + 1))
	}
	return strike(d.settings.Faults, d.requests, time.Since(d.start), d.random), latency
}

// answer executes a request, unless it breaks the specification.
func (d *Device) answer(req modbus.PDU) (modbus.PDU, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch req.Function() {
	case modbus.ReadExceptionStatus, modbus.GetCommEventCounter, modbus.GetCommEventLog:
		if err := modbus.CheckRequest(req); err != nil {
			return nil, err
		}
	}
	switch req.Function() {
	case modbus.ReadExceptionStatus:
		return modbus.PDU{byte(modbus.ReadExceptionStatus), 0}, nil
	case modbus.GetCommEventCounter:
		return modbus.PDU{byte(modbus.GetCommEventCounter), 0, 0, byte(d.requests >> 8), byte(d.requests)}, nil
	case modbus.GetCommEventLog:
		n := byte(min(len(d.settings.Faults), 255))
		return modbus.PDU{byte(modbus.GetCommEventLog), 6, 0, 0, byte(d.requests >> 8), byte(d.requests), 0, n}, nil
	}
	d.function = req.Function()
	return modbus.Answer(req, &d.memory, d.settings.Identity)
}

// note remembers an executed write.
func (d *Device) note(t modbus.Table, addr uint16, values []uint16) {
	w := Write{time.Now(), d.function, t, addr, slices.Clone(values)}
	d.written++
	if d.settings.OnWrite != nil {
		d.settings.OnWrite(w)
	}
	if len(d.writes) < maxWrites {
		d.writes = append(d.writes, w)
		return
	}
	d.writes[d.next] = w
	d.next = (d.next + 1) % maxWrites
}

// Pattern is the value that Settings.Fill gives to an address: another one for
// nearly every unit, table and address, so that a value that was read from
// anywhere else is recognised. Bits have 0 or 1.
func Pattern(unit modbus.UnitID, t modbus.Table, addr uint16) uint16 {
	x := uint32(unit)<<24 ^ uint32(t)<<20 ^ uint32(addr)
	x *= 0x9E3779B1 // Knuth's multiplicative hash, and a mix of its high bits
	x ^= x >> 15
	x *= 0x85EBCA6B
	x ^= x >> 13
	if t.Bits() {
		return uint16(x & 1)
	}
	return uint16(x)
}

// Devices is several devices that share a line, as one Endpoint: each answers
// its own unit id, all execute a broadcast, and nobody answers for the rest.
type Devices []*Device

// Do implements modbus.Endpoint.
func (ds Devices) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	if unit == modbus.Broadcast {
		for _, d := range ds {
			if _, err := d.Do(ctx, unit, req); ctx.Err() != nil {
				return nil, err
			}
		}
		return nil, nil
	}
	if d := ds.find(unit); d != nil {
		return d.Do(ctx, unit, req)
	}
	return nil, fmt.Errorf("simulate: unit %d: %w", unit, modbus.ErrNoResponse)
}

func (ds Devices) find(unit modbus.UnitID) *Device {
	for _, d := range ds {
		if d.settings.Unit == unit {
			return d
		}
	}
	return nil
}

// sleep waits for d with the runtime's timers.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// memory is the four tables of a device, in pages that are made when something
// is stored in them. It implements modbus.Memory; its device's lock is held.
type memory struct {
	device *Device
	pages  [4][256]*[256]uint16
	moving [4][]*mover // by address
	fixed  [4][]Span   // refuse writes
	stuck  [4][]Span   // confirm writes and keep what they hold
	legal  [4][]Span   // joined spans of points; only with Strict
}

// mover is a point that moves by itself.
type mover struct {
	*Point
	walker
}

func newMemory(d *Device) memory {
	m := memory{device: d}
	for i := range d.settings.Points {
		p := &d.settings.Points[i]
		t := p.Table - 1
		span := Span{p.Table, p.Address, p.Words()}
		if p.Wave.moves() || p.ReadOnly {
			m.fixed[t] = append(m.fixed[t], span)
		}
		if p.Stuck {
			m.stuck[t] = append(m.stuck[t], span)
		}
		if d.settings.Strict {
			m.legal[t] = append(m.legal[t], span)
		}
		if p.Wave.moves() {
			seed := rand.NewPCG(d.settings.Seed, uint64(i)+1)
			m.moving[t] = append(m.moving[t], &mover{p, walker{random: rand.New(seed)}})
			continue
		}
		if regs, err := p.encode(p.Value); err == nil {
			m.store(p, regs)
		}
	}
	for t := range m.moving {
		slices.SortStableFunc(m.moving[t], func(a, b *mover) int { return int(a.Address) - int(b.Address) })
		m.legal[t] = join(m.legal[t])
	}
	return m
}

// join joins spans of one table that touch or overlap.
func join(spans []Span) []Span {
	sort.Slice(spans, func(i, j int) bool { return spans[i].Address < spans[j].Address })
	var out []Span
	for _, s := range spans {
		if n := len(out); n > 0 && int(s.Address) <= int(out[n-1].Address)+out[n-1].Count {
			last := &out[n-1]
			last.Count = max(last.Count, int(s.Address)+s.Count-int(last.Address))
			continue
		}
		out = append(out, s)
	}
	return out
}

// allowed returns the exception that an access to n addresses deserves.
func (m *memory) allowed(t modbus.Table, addr uint16, n int) error {
	s := &m.device.settings
	limit := s.MaxRegs
	if t.Bits() {
		limit = s.MaxBits
	}
	if limit > 0 && n > limit {
		return modbus.IllegalDataValue
	}
	for _, h := range s.Holes {
		if h.overlaps(t, addr, n) {
			return modbus.IllegalDataAddress
		}
	}
	if !s.Strict {
		return nil
	}
	for _, l := range m.legal[t-1] {
		if addr >= l.Address && int(addr)+n <= int(l.Address)+l.Count {
			return nil
		}
	}
	return modbus.IllegalDataAddress
}

// Read implements modbus.Memory.
func (m *memory) Read(t modbus.Table, addr uint16, dst []uint16) error {
	if err := m.allowed(t, addr, len(dst)); err != nil {
		return err
	}
	m.refresh(t, addr, len(dst))
	m.load(t, addr, dst)
	return nil
}

// Write implements modbus.Memory.
func (m *memory) Write(t modbus.Table, addr uint16, src []uint16) error {
	if err := m.allowed(t, addr, len(src)); err != nil {
		return err
	}
	for _, f := range m.fixed[t-1] {
		if f.overlaps(t, addr, len(src)) {
			return modbus.IllegalDataAddress
		}
	}
	for i, v := range src {
		a := addr + uint16(i)
		if !slices.ContainsFunc(m.stuck[t-1], func(s Span) bool { return s.overlaps(t, a, 1) }) {
			*m.cell(t, a) = v
		}
	}
	m.device.note(t, addr, src)
	return nil
}

// load copies what stands from addr on.
func (m *memory) load(t modbus.Table, addr uint16, dst []uint16) {
	for i := range dst {
		a := addr + uint16(i)
		page := m.pages[t-1][a>>8]
		switch {
		case page != nil:
			dst[i] = page[a&0xFF]
		case m.device.settings.Fill:
			dst[i] = Pattern(m.device.settings.Unit, t, a)
		default:
			dst[i] = 0
		}
	}
}

// cell returns the place of one word, and makes its page if need be.
func (m *memory) cell(t modbus.Table, addr uint16) *uint16 {
	page := &m.pages[t-1][addr>>8]
	if *page == nil {
		*page = new([256]uint16)
		if m.device.settings.Fill {
			for i := range *page {
				(*page)[i] = Pattern(m.device.settings.Unit, t, addr&0xFF00|uint16(i))
			}
		}
	}
	return &(*page)[addr&0xFF]
}

// store puts the registers of a point, leaving other bits of a shared register.
func (m *memory) store(p *Point, regs []uint16) {
	mask := uint16(0xFFFF)
	if len(regs) == 1 && !p.Table.Bits() {
		mask = p.EncodeMask()
	}
	for i, v := range regs {
		c := m.cell(p.Table, p.Address+uint16(i))
		*c = *c&^mask | v&mask
	}
}

// refresh brings the points that move within a range up to now.
func (m *memory) refresh(t modbus.Table, addr uint16, n int) {
	moving := m.moving[t-1]
	if len(moving) == 0 {
		return
	}
	now := time.Now()
	first := sort.Search(len(moving), func(i int) bool { return int(moving[i].Address)+modbus.MaxReadRegisters > int(addr) })
	for _, p := range moving[first:] {
		if int(p.Address) >= int(addr)+n {
			return
		}
		if int(p.Address)+p.Words() <= int(addr) {
			continue
		}
		regs, err := p.Encode(p.at(now, now.Sub(m.device.start)))
		if err == nil { // Validate has tried the limits of the wave
			m.store(p.Point, regs)
		}
	}
}

// at returns the point's value at a time.
func (p *mover) at(now time.Time, since time.Duration) point.Value {
	switch p.Wave.Shape {
	case RandomWalk:
		return p.number(p.walk(p.Wave, since))
	case Count:
		return p.number(p.count(p.Wave))
	case Clock:
		return point.TextValue(now.UTC().Format(time.RFC3339Nano))
	}
	return p.number(p.Wave.At(since))
}

// String names the span as the plant's file does: "holding 10-19".
func (s Span) String() string {
	if s.Count == 1 {
		return point.FormatAddress(s.Table, s.Address)
	}
	return point.FormatAddress(s.Table, s.Address) + "-" + strconv.Itoa(int(s.Address)+s.Count-1)
}
