// Package regmap is what a local PLC sees: the Modbus servers of the
// configuration. It puts points of the gateway into the four tables, each in a
// form of its own, answers reads out of memory and hands writes on to whoever
// may decide about them. It polls nothing and writes nothing itself.
//
// The types to know are Image, the newest samples of all points that are shown;
// Map, one server's tables (a modbus.Endpoint); and Server, a Map on a socket or
// a serial port.
//
// # What is answered
//
// A read may span points, but no holes (exception 2), and begins and ends with
// whole points: half of a 32-bit value is exception 2 too, since its other half
// would come from another moment. All values of one answer are of one moment: of
// a batch that is emitted together either all samples are in it or none.
//
// A value that is bad or older than its limit is never served as if it were
// good: by the entry's choice the whole read is answered with exception 0x0B, or
// the last good value, zero or a given value stands in its place; status and age
// can be mapped beside it. A value that the served type cannot hold is answered
// with exception 4, where a zero or a given value was not asked for: it is
// neither cut nor bent.
//
// Writes are refused with exception 1 unless the server allows them, with 2 where
// a register is no part of the map, cannot be written or is only half of a value,
// and with 3 where the value is none or is not allowed. A request that writes
// several points is checked whole before anything is written; they are then
// written one after the other.
package regmap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sort"
	"sync"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Write is a value that a PLC wants a point to have.
type Write struct {
	ID    point.ID
	Value point.Value
}

// ErrRefused is what a Gate says of a write that a check forbids: nothing was
// written. The PLC is answered with exception 3.
var ErrRefused = errors.New("refused")

// Gate is what a Map asks of the gateway. Functions that are nil refuse.
type Gate struct {
	// Write writes points for the client by, in this order, and returns when
	// the devices have answered. It checks all of them before it writes the
	// first. The error decides what the PLC is told: an error that wraps
	// ErrRefused is exception 3, point.ErrReadOnly 2, a modbus.Exception
	// itself, modbus.ErrNoResponse 0x0B (the outcome is unknown),
	// modbus.ErrNotConnected 0x0A, anything else 4.
	Write func(ctx context.Context, by string, writes []Write) error

	// Pause stops the polling of a device for a time; 0 lets it go on.
	Pause func(device, by string, d time.Duration) error
	// Paused returns for how long the polling of a device still pauses.
	Paused func(device string) time.Duration

	// Bus returns the way to a bus for requests that are passed on, for good.
	Bus func(name string) modbus.Endpoint
	// Record records a write that goes on to a bus. What cannot be recorded is
	// not sent.
	Record func(ctx context.Context, p Passage) error
}

// maxPause is the longest pause in seconds: who forgets to end one shall not
// leave a plant blind for days.
const maxPause = 3600

// Map is the tables of one server. Make it with New; it is safe for use by
// several goroutines.
type Map struct {
	cfg      config.Server
	image    *Image
	gate     Gate
	identity modbus.Identity
	log      *slog.Logger
	tables   [modbus.HoldingRegisters + 1]table
	pass     [256]modbus.Endpoint
	ask      unmapped

	mu      sync.Mutex // guards what changes in places and entries, and what follows
	scratch []pending
	words   [modbus.MaxReadBits]uint16
}

// table is one table of a map, sorted by address.
type table struct {
	places  []place
	entries []entry // of each place
}

// place is what is looked at whenever an entry is read.
type place struct {
	after   time.Duration // a value is stale then; 0: never
	slot    int32         // in the image
	version uint32        // of the value that the words are of
	addr, n uint16
	word    uint16 // the words, where there is one
	ready   bool   // the words are of version
}

// entry is the rest of it.
type entry struct {
	*config.Entry
	stale []uint16 // what stands in place of a stale value; nil: an exception or the last

	// The newest value in words, made when it is asked for.
	words []uint16
	unfit bool   // the type cannot hold it
	told  string // how the newest write failed, as the log has it

	writing *sync.Mutex // held by who changes some bits of the value
}

// run is neighbouring places of a table.
type run struct {
	places  []place
	entries []entry
}

// New returns the map of a server whose points image shows. identity is what it says of itself.
func New(cfg config.Server, image *Image, gate Gate, identity modbus.Identity, log *slog.Logger) *Map {
	cfg.Map = slices.Clone(cfg.Map)
	sort.Slice(cfg.Map, func(i, j int) bool {
		a, b := &cfg.Map[i].Point, &cfg.Map[j].Point
		return a.Table < b.Table || a.Table == b.Table && a.Address < b.Address
	})
	m := &Map{cfg: cfg, image: image, gate: gate, identity: identity, log: log}
	room := 0
	for i := range m.cfg.Map {
		room += m.cfg.Map[i].Point.Words()
	}
	words := make([]uint16, room)
	for i := range m.cfg.Map { // by table and address
		c := &m.cfg.Map[i]
		p := place{after: c.StaleAfter, slot: image.slot(c.Point.ID), addr: c.Point.Address, n: uint16(c.Point.Words())}
		e := entry{Entry: c, stale: staleWords(c), words: words[:p.n:p.n]}
		words = words[p.n:]
		if c.Writable {
			e.writing = new(sync.Mutex)
		}
		t := &m.tables[c.Point.Table]
		t.places, t.entries = append(t.places, p), append(t.entries, e)
	}
	for _, p := range cfg.Pass {
		for u := int(p.From); u <= int(p.To); u++ {
			m.pass[u] = gate.Bus(p.Bus)
		}
	}
	return m
}

// staleWords returns what stands in place of a stale value of e, nil where there
// is nothing.
func staleWords(e *config.Entry) []uint16 {
	words := make([]uint16, e.Point.Words())
	switch e.Stale {
	case config.StaleZero:
		return words
	case config.StaleValue:
		// The pattern is as wide as the type: a whole number of that width and
		// order has the same registers.
		p := point.Point{Table: e.Point.Table, Order: e.Point.Order}
		switch len(words) {
		case 1:
			return []uint16{uint16(e.Pattern)}
		case 2:
			p.Type = point.Uint32
		default:
			p.Type = point.Uint64
		}
		words, err := p.Encode(point.UintValue(e.Pattern))
		if err != nil {
			panic(fmt.Sprintf("regmap: stale value %#x of %s: %v", e.Pattern, e.Point.ID, err)) // config has checked it
		}
		return words
	}
	return nil
}

// Is reports whether m was made from these settings.
func (m *Map) Is(cfg config.Server) bool { return reflect.DeepEqual(m.cfg, cfg) }

// len returns the number of entries.
func (m *Map) len() int { return len(m.cfg.Map) }

// Units reports whether requests for a unit id are for this server.
func (m *Map) Units(u modbus.UnitID) bool {
	return m.cfg.Unit == 0 || u == m.cfg.Unit || m.pass[u] != nil
}

// Knows reports whether there is an answer to what a request for a unit asks for,
// which may be malformed. What goes on to a bus is known as far as its device may
// be asked that at all.
func (m *Map) Knows(unit modbus.UnitID, req modbus.PDU) bool {
	switch {
	case m.pass[unit] != nil:
		return m.mayEver(req)
	case req.Function().Writes() && !m.cfg.Writes:
		return false
	}
	return modbus.Answers(req, m.identity)
}

// Quick implements modbus.Quick: reads of the map wait for nothing.
func (m *Map) Quick(unit modbus.UnitID, req modbus.PDU) bool {
	f := req.Function()
	return m.pass[unit] == nil && f >= modbus.ReadCoils && f <= modbus.ReadInputRegisters
}

// AppendQuick implements modbus.Quick.
func (m *Map) AppendQuick(ctx context.Context, dst []byte, _ modbus.UnitID, req modbus.PDU) ([]byte, error) {
	return m.read(ctx, dst, req)
}

// Do implements modbus.Endpoint. Whose request it is, modbus.Client tells by ctx.
func (m *Map) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	if bus := m.pass[unit]; bus != nil {
		return m.passOn(ctx, bus, unit, req)
	}
	if !m.Knows(unit, req) {
		return nil, modbus.IllegalFunction
	}
	switch f := req.Function(); f {
	case modbus.ReadCoils, modbus.ReadDiscreteInputs, modbus.ReadHoldingRegisters, modbus.ReadInputRegisters:
		return m.read(ctx, nil, req)
	case modbus.ReadWriteRegisters:
		// The write comes first (APP 6.17), but not when the read is refused.
		t, addr, n, _ := req.Span()
		if _, err := m.find(ctx, f, t, addr, n); err != nil {
			return nil, err
		}
	case modbus.MaskWriteRegister:
		unlock, err := m.modify(ctx, req)
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	return modbus.Answer(req, memory{m, ctx, req.Function()}, m.identity)
}

// memory is the map in the course of one request.
type memory struct {
	m   *Map
	ctx context.Context
	f   modbus.FunctionCode
}

// Read implements modbus.Memory.
func (r memory) Read(t modbus.Table, addr uint16, dst []uint16) error {
	found, err := r.m.find(r.ctx, r.f, t, addr, len(dst))
	if err != nil {
		return err
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	return r.m.load(found, dst)
}

// Write implements modbus.Memory.
func (r memory) Write(t modbus.Table, addr uint16, src []uint16) error {
	found, err := r.m.find(r.ctx, r.f, t, addr, len(src))
	if err != nil {
		return err
	}
	return r.m.store(r.ctx, found.entries, src)
}

// modify makes ready for a change of some bits of a register (function 22), which
// is read and then written: nobody else may change bits of it meanwhile, and what
// stands in place of a stale value is nothing to start from.
func (m *Map) modify(ctx context.Context, req modbus.PDU) (unlock func(), err error) {
	t, addr, n, _ := req.Span()
	found, err := m.find(ctx, req.Function(), t, addr, n)
	if err != nil {
		return nil, err
	}
	p, e := &found.places[0], &found.entries[0]
	if e.writing == nil {
		return func() {}, nil // refused when it is written, or the seconds of a pause
	}
	e.writing.Lock()
	m.image.mu.RLock()
	status := m.image.vitals[p.slot].status(m.image.now(), p.after)
	m.image.mu.RUnlock()
	if status > statusUncertain {
		e.writing.Unlock()
		return nil, modbus.GatewayTargetNoResponse
	}
	return e.writing.Unlock, nil
}

// find returns the entries that a request covers: all of them whole, and without
// holes between them.
func (m *Map) find(ctx context.Context, f modbus.FunctionCode, t modbus.Table, addr uint16, n int) (run, error) {
	all := m.tables[t].places
	i := sort.Search(len(all), func(i int) bool { return all[i].addr >= addr }) // reads nothing that mu guards
	found := i < len(all) && all[i].addr == addr
	end, j := int(addr), i
	for found && end < int(addr)+n && j < len(all) && int(all[j].addr) == end {
		end += int(all[j].n)
		j++
	}
	if !found || end != int(addr)+n {
		cut := end > int(addr)+n || !found && i > 0 && int(all[i-1].addr)+int(all[i-1].n) > int(addr)
		m.ask.note(m.log, Unmapped{Function: f, Table: t, Address: addr, Count: n, Cut: cut, Client: modbus.Client(ctx)})
		return run{}, modbus.IllegalDataAddress
	}
	return run{all[i:j], m.tables[t].entries[i:j]}, nil
}

// read appends the answer to functions 1 to 4 to dst.
func (m *Map) read(ctx context.Context, dst []byte, req modbus.PDU) ([]byte, error) {
	t, addr, n, _ := req.Span()
	found, err := m.find(ctx, req.Function(), t, addr, n)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	words := m.words[:n]
	if err := m.load(found, words); err != nil {
		return nil, err
	}
	if !t.Bits() {
		dst = append(slices.Grow(dst, 2+2*n), req[0], byte(2*n))
		for _, w := range words {
			dst = binary.BigEndian.AppendUint16(dst, w)
		}
		return dst, nil
	}
	dst = append(slices.Grow(dst, 2+(n+7)/8), req[0], byte((n+7)/8))
	for i := 0; i < n; i += 8 {
		var b byte
		for k, w := range words[i:min(i+8, n)] {
			b |= byte(w&1) << k
		}
		dst = append(dst, b)
	}
	return dst, nil
}

// pending is an entry whose value is to be put into words.
type pending struct {
	i       int // in the run
	dst     []uint16
	value   point.Value
	version uint32
}

// load fills dst with the words of found, which covers it exactly. All are of one
// moment. mu is held.
func (m *Map) load(found run, dst []uint16) error {
	now := m.image.now()
	m.scratch = m.scratch[:0]
	m.image.mu.RLock()
	var err error
	for i := range found.places {
		p := &found.places[i]
		v := &m.image.vitals[p.slot]
		if p.ready && p.version == v.version && v.quality != point.Bad && (p.after == 0 || now-v.at <= p.after) {
			if p.n == 1 {
				dst[0] = p.word
			} else {
				copy(dst, found.entries[i].words)
			}
		} else if err = m.loadOne(found, i, dst[:p.n], now); err != nil {
			break
		}
		dst = dst[p.n:]
	}
	m.image.mu.RUnlock()
	if err != nil {
		return err
	}
	// Putting values into words may take microseconds each, for which no bus
	// shall wait. Other clients of this server do.
	for _, x := range m.scratch {
		p, e := &found.places[x.i], &found.entries[x.i]
		m.encode(p, e, x.value, x.version)
		switch {
		case !e.unfit:
			copy(x.dst, e.words)
		case e.stale != nil:
			copy(x.dst, e.stale)
		default:
			return modbus.ServerDeviceFailure
		}
	}
	return nil
}

// loadOne fills dst with the words of one entry, or leaves that for later in
// scratch. The image is locked.
func (m *Map) loadOne(found run, i int, dst []uint16, now time.Duration) error {
	p, e := &found.places[i], &found.entries[i]
	if e.Show == config.ShowPause {
		dst[0] = uint16(min((m.gate.Paused(e.Device)+time.Second-1)/time.Second, maxPause))
		return nil
	}
	v := &m.image.vitals[p.slot]
	status := v.status(now, p.after)
	switch e.Show {
	case config.ShowStatus:
		if e.Point.Table.Bits() {
			dst[0] = 0
			if status <= statusUncertain {
				dst[0] = 1
			}
			return nil
		}
		number(uint64(status), dst)
		return nil
	case config.ShowAge:
		seconds, ok := v.age(now)
		if !ok {
			seconds = 1<<32 - 1
		}
		number(seconds, dst)
		return nil
	}
	if status > statusUncertain {
		switch {
		case e.stale != nil:
			copy(dst, e.stale)
			return nil
		case e.Stale != config.StaleLast || v.version == 0:
			return modbus.GatewayTargetNoResponse
		}
	}
	m.scratch = append(m.scratch, pending{i, dst, m.image.values[p.slot], v.version})
	return nil
}

// number puts a whole number into one or two registers, at most the greatest that
// they hold.
func number(n uint64, dst []uint16) {
	if len(dst) == 1 {
		dst[0] = uint16(min(n, 1<<16-1))
		return
	}
	n = min(n, 1<<32-1)
	dst[0], dst[1] = uint16(n>>16), uint16(n)
}

// encode puts a value into words, once for each version.
func (m *Map) encode(p *place, e *entry, v point.Value, version uint32) {
	if p.version == version && (p.ready || e.unfit) {
		return
	}
	words, err := e.Point.Encode(v)
	if err != nil && !e.unfit {
		m.log.Warn("value does not fit where a plc reads it", "point", string(e.Point.ID),
			"address", point.FormatAddress(e.Point.Table, p.addr), "type", e.Point.TypeName(), "err", err)
	}
	p.version, p.ready, e.unfit = version, err == nil, err != nil
	if err == nil {
		copy(e.words, words)
		p.word = words[0]
	}
}
