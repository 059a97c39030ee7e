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
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
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

	// Bus returns the way to a bus for requests that are passed on.
	Bus func(name string) modbus.Endpoint
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
	tables   [modbus.HoldingRegisters + 1][]entry // sorted by address
	pass     [256]modbus.Endpoint
	ask      unmapped

	mu      sync.Mutex // guards what changes in entries, and what follows
	scratch []pending
	words   [modbus.MaxReadBits]uint16
}

// entry is one place of the map.
type entry struct {
	*config.Entry
	addr, n uint16
	show    config.Show
	last    bool          // a stale value is shown as it was
	after   time.Duration // it is stale then; 0: never
	slot    int32         // in the image
	stale   []uint16      // what stands in place of a stale value; nil: an exception or the last

	// The newest value in words, made when it is asked for.
	version uint32
	known   bool
	fits    bool // false: the type cannot hold the value
	words   []uint16
	told    string // how the newest write failed, as the log has it

	writing *sync.Mutex // held by who changes some bits of the value
}

// New returns the map of a server. identity is what it says of itself.
func New(cfg config.Server, image *Image, gate Gate, identity modbus.Identity, log *slog.Logger) *Map {
	m := &Map{cfg: cfg, image: image, gate: gate, identity: identity, log: log}
	room := 0
	for i := range cfg.Map {
		room += cfg.Map[i].Point.Words()
	}
	words := make([]uint16, room)
	for i := range cfg.Map {
		c := &m.cfg.Map[i]
		e := entry{Entry: c, addr: c.Point.Address, n: uint16(c.Point.Words()), slot: image.slots[c.Point.ID],
			show: c.Show, last: c.Stale == config.StaleLast, after: c.StaleAfter}
		e.words, words = words[:e.n:e.n], words[e.n:]
		e.stale = staleWords(c)
		if c.Writable {
			e.writing = new(sync.Mutex)
		}
		m.tables[c.Point.Table] = append(m.tables[c.Point.Table], e)
	}
	for t := range m.tables {
		slices.SortFunc(m.tables[t], func(a, b entry) int { return cmp.Compare(a.addr, b.addr) })
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

// Units reports whether requests for a unit id are for this server.
func (m *Map) Units(u modbus.UnitID) bool {
	return m.cfg.Unit == 0 || u == m.cfg.Unit || m.pass[u] != nil
}

// Quick implements modbus.Quick: reads of the map wait for nothing.
func (m *Map) Quick(unit modbus.UnitID, req modbus.PDU) bool {
	f := req.Function()
	return m.pass[unit] == nil && f >= modbus.ReadCoils && f <= modbus.ReadInputRegisters
}

// Do implements modbus.Endpoint. Whose request it is, modbus.Client tells by ctx.
func (m *Map) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	if bus := m.pass[unit]; bus != nil {
		return m.passOn(ctx, bus, unit, req)
	}
	switch f := req.Function(); f {
	case modbus.ReadCoils, modbus.ReadDiscreteInputs, modbus.ReadHoldingRegisters, modbus.ReadInputRegisters:
		return m.read(ctx, req)
	case modbus.ReadWriteRegisters:
		// The write comes first (APP 6.17), but not when the read is refused.
		t, addr, n, _ := req.Span()
		if _, err := m.find(ctx, f, t, addr, n); err != nil && m.cfg.Writes {
			return nil, err
		}
	}
	if f := req.Function(); f.Writes() && !m.cfg.Writes {
		return nil, modbus.IllegalFunction
	}
	if req.Function() == modbus.MaskWriteRegister {
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
	entries, err := r.m.find(r.ctx, r.f, t, addr, len(dst))
	if err != nil {
		return err
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	return r.m.load(entries, dst)
}

// Write implements modbus.Memory.
func (r memory) Write(t modbus.Table, addr uint16, src []uint16) error {
	entries, err := r.m.find(r.ctx, r.f, t, addr, len(src))
	if err != nil {
		return err
	}
	return r.m.store(r.ctx, entries, src)
}

// modify makes ready for a change of some bits of a register (function 22), which
// is read and then written: nobody else may change bits of it meanwhile, and what
// stands in place of a stale value is nothing to start from.
func (m *Map) modify(ctx context.Context, req modbus.PDU) (unlock func(), err error) {
	t, addr, n, _ := req.Span()
	entries, err := m.find(ctx, req.Function(), t, addr, n)
	if err != nil {
		return nil, err
	}
	e := &entries[0]
	if e.writing == nil {
		return func() {}, nil // refused when it is written, or the seconds of a pause
	}
	e.writing.Lock()
	m.image.mu.RLock()
	status := m.image.cells[e.slot].status(time.Now(), e.StaleAfter)
	m.image.mu.RUnlock()
	if status > statusUncertain {
		e.writing.Unlock()
		return nil, modbus.GatewayTargetNoResponse
	}
	return e.writing.Unlock, nil
}

// find returns the entries that a request covers: all of them whole, and without
// holes between them.
func (m *Map) find(ctx context.Context, f modbus.FunctionCode, t modbus.Table, addr uint16, n int) ([]entry, error) {
	all := m.tables[t]
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
		return nil, modbus.IllegalDataAddress
	}
	return all[i:j], nil
}

// read answers functions 1 to 4.
func (m *Map) read(ctx context.Context, req modbus.PDU) (modbus.PDU, error) {
	t, addr, n, _ := req.Span()
	entries, err := m.find(ctx, req.Function(), t, addr, n)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	words := m.words[:n]
	if err := m.load(entries, words); err != nil {
		return nil, err
	}
	if t.Bits() {
		resp := make(modbus.PDU, 2+(n+7)/8)
		resp[0], resp[1] = req[0], byte((n+7)/8)
		for i, w := range words {
			resp[2+i/8] |= byte(w&1) << (i % 8)
		}
		return resp, nil
	}
	resp := make(modbus.PDU, 2+2*n)
	resp[0], resp[1] = req[0], byte(2*n)
	for i, w := range words {
		binary.BigEndian.PutUint16(resp[2+2*i:], w)
	}
	return resp, nil
}

// pending is an entry whose value is to be put into words.
type pending struct {
	e       *entry
	dst     []uint16
	value   point.Value
	version uint32
}

// load fills dst with the words of entries, which cover it exactly. All are of
// one moment. mu is held.
func (m *Map) load(entries []entry, dst []uint16) error {
	now := time.Now()
	m.scratch = m.scratch[:0]
	m.image.mu.RLock()
	var err error
	for i := range entries {
		e := &entries[i]
		var to []uint16
		to, dst = dst[:e.n], dst[e.n:]
		if err = m.loadOne(e, to, now); err != nil {
			break
		}
	}
	m.image.mu.RUnlock()
	if err != nil {
		return err
	}
	// Putting values into words may take microseconds each, for which no bus
	// shall wait. Other clients of this server do.
	for _, p := range m.scratch {
		p.e.encode(p.value, p.version, m.log)
		if !p.e.fits {
			if p.e.stale == nil {
				return modbus.ServerDeviceFailure
			}
			copy(p.dst, p.e.stale)
			continue
		}
		copy(p.dst, p.e.words)
	}
	return nil
}

// loadOne fills dst with the words of one entry, or leaves that for later in
// scratch. The image is locked.
func (m *Map) loadOne(e *entry, dst []uint16, now time.Time) error {
	if e.show == config.ShowPause {
		dst[0] = uint16(min((m.gate.Paused(e.Device)+time.Second-1)/time.Second, maxPause))
		return nil
	}
	c := &m.image.cells[e.slot]
	status := c.status(now, e.after)
	switch e.show {
	case config.ShowStatus:
		if e.Point.Table.Bits() {
			dst[0] = 0
			if status <= statusUncertain {
				dst[0] = 1
			}
			return nil
		}
		number(e, uint64(status), dst)
		return nil
	case config.ShowAge:
		seconds, ok := c.age(now)
		if !ok {
			seconds = 1<<32 - 1
		}
		number(e, seconds, dst)
		return nil
	}
	if status > statusUncertain {
		switch {
		case e.stale != nil:
			copy(dst, e.stale)
			return nil
		case !e.last || c.value.IsZero():
			return modbus.GatewayTargetNoResponse
		}
	}
	if e.known && e.fits && e.version == c.version {
		if len(dst) == 1 {
			dst[0] = e.words[0]
		} else {
			copy(dst, e.words)
		}
		return nil
	}
	m.scratch = append(m.scratch, pending{e, dst, c.value, c.version})
	return nil
}

// number puts a whole number into an entry of type uint16 or uint32, at most the
// greatest that it holds.
func number(e *entry, n uint64, dst []uint16) {
	if len(dst) == 1 {
		dst[0] = uint16(min(n, 1<<16-1))
		return
	}
	n = min(n, 1<<32-1)
	dst[0], dst[1] = uint16(n>>16), uint16(n)
}

// encode puts a value into words, once for each version.
func (e *entry) encode(v point.Value, version uint32, log *slog.Logger) {
	if e.known && e.version == version {
		return
	}
	did := !e.known || e.fits
	words, err := e.Point.Encode(v)
	e.known, e.version, e.fits = true, version, err == nil
	if err == nil {
		copy(e.words, words)
	} else if did {
		log.Warn("value does not fit where a plc reads it", "point", string(e.Point.ID),
			"address", point.FormatAddress(e.Point.Table, e.addr), "type", e.Point.TypeName(), "err", err)
	}
}
