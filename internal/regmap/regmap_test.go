package regmap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// plant is the devices that the maps of the tests show.
const plant = `
buses: { plc: { tcp: 10.0.0.10:502 }, line1: { serial: /dev/ttyS7 } }
broker: { anonymous: true }
devices:
  boiler:
    bus: plc
    points:
      temp:  { at: 30001, type: int16, scale: 0.1 }
      power: { at: holding 0, type: float32, order: CDAB }
      big:   { at: holding 2, type: uint64 }
      mode:  { at: holding 10, map: { 0: stopped, 1: running } }
      code:  { at: holding 20, type: string(4) }
      clock: { at: holding 30, type: datetime(EPOCH), every: once }
      alarm: { at: holding 40, bit: 3 }
      coil:  { at: coil 3, write: {} }
      set:   { at: holding 50, type: int16, scale: 0.1, write: { min: 20, max: 90 } }
      wide:  { at: holding 52, type: float32, write: {} }
      text:  { at: holding 60, type: string(2), write: {} }
      fast:  { at: holding 70, every: 0s }
servers:
`

// load returns the first server of a configuration.
func load(t testing.TB, server string) config.Server {
	t.Helper()
	cfg, err := config.LoadBytes("fieldgate.yaml", []byte(plant+server))
	if err != nil {
		t.Fatal(err)
	}
	return cfg.Servers[0]
}

// rig is a map with its image, and what it asked of the gateway.
type rig struct {
	*Map
	image *Image
	log   bytes.Buffer

	mu     sync.Mutex
	writes []Write
	by     string
	err    error // what Write says
	paused map[string]time.Duration
}

func newRig(t testing.TB, server string) *rig {
	t.Helper()
	cfg := load(t, server)
	r := &rig{image: NewImage([]config.Server{cfg}), paused: make(map[string]time.Duration)}
	r.Map = New(cfg, r.image, Gate{
		Write: func(_ context.Context, by string, w []Write) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.by = by
			if r.err == nil {
				r.writes = append(r.writes, w...)
			}
			return r.err
		},
		Pause:  func(device, _ string, d time.Duration) error { r.paused[device] = d; return nil },
		Paused: func(device string) time.Duration { return r.paused[device] },
		Bus:    func(string) modbus.Endpoint { return nil },
	}, modbus.Identity{ServerID: []byte("x")}, slog.New(slog.NewTextHandler(&r.log, nil)))
	return r
}

// emit puts good samples into the image: "boiler.temp", 25.4, …
func (r *rig) emit(pairs ...string) {
	var batch []point.Sample
	for i := 0; i < len(pairs); i += 2 {
		v := point.ParseValue(pairs[i+1])
		batch = append(batch, point.Sample{ID: point.ID(pairs[i]), Value: v, Time: time.Now().UTC()})
	}
	r.image.Apply(time.Now(), batch)
}

func (r *rig) bad(id point.ID) {
	r.image.Apply(time.Now(), []point.Sample{{ID: id, Quality: point.Bad, Time: time.Now().UTC()}})
}

// ask makes one request and returns the answer as words, or the exception.
func (r *rig) ask(req modbus.PDU) string {
	resp, err := modbus.Do(modbus.WithClient(context.Background(), "plc"), r.Map, 1, req)
	if err != nil {
		return fmt.Sprintf("exception %d", uint8(modbus.ExceptionFor(err)))
	}
	if req.Function() == modbus.WriteSingleCoil || req.Function().Writes() && req.Function() != modbus.ReadWriteRegisters {
		return "ok"
	}
	return strings.Trim(fmt.Sprintf("%x", modbus.Registers(req, resp)), "[]")
}

func (r *rig) read(t modbus.Table, addr, n uint16) string {
	return r.ask(modbus.ReadRequest(t, addr, n))
}

func TestForms(t *testing.T) {
	r := newRig(t, `
  - listen: tcp://127.0.0.1:0
    map:
      holding 0: boiler.temp
      holding 1: { point: boiler.temp, type: float32 }
      holding 3: { point: boiler.temp, type: uint16 }
      holding 4: { point: boiler.temp, type: int16, scale: 0.01, offset: 1 }
      holding 5: { point: boiler.temp, type: bcd16 }
      holding 6: boiler.power
      holding 8: { point: boiler.power, type: float32 }
      holding 10: { point: boiler.power, type: int32, order: DCBA, scale: 0.001 }
      holding 12: { point: boiler.power, order: ABCD }
      holding 20: boiler.big
      holding 24: { point: boiler.big, order: BADC }
      holding 30: boiler.mode
      holding 31: { point: boiler.mode, type: int32 }
      holding 40: boiler.code
      holding 44: { point: boiler.temp, type: string(3) }
      holding 50: boiler.clock
      holding 52: { point: boiler.clock, type: datetime(DT6) }
      holding 58: { point: boiler.clock, type: string(12) }
      holding 80: boiler.alarm
      holding 81: boiler.coil
      coil 0: boiler.alarm
      discrete 0: boiler.coil
`)
	r.emit("boiler.temp", "25.4", "boiler.power", "1234.5", "boiler.big", "0x0102030405060708", "boiler.mode", "running",
		"boiler.code", "AB12", "boiler.clock", "2025-11-05T14:30:15Z", "boiler.alarm", "true", "boiler.coil", "true")
	for _, row := range []struct {
		t       modbus.Table
		addr, n uint16
		want    string
	}{
		{modbus.HoldingRegisters, 0, 1, "fe"},
		{modbus.HoldingRegisters, 1, 2, "41cb 3333"},
		{modbus.HoldingRegisters, 3, 1, "19"}, // the nearest
		{modbus.HoldingRegisters, 4, 1, "988"},
		{modbus.HoldingRegisters, 5, 1, "25"},
		{modbus.HoldingRegisters, 6, 2, "5000 449a"},
		{modbus.HoldingRegisters, 8, 2, "449a 5000"},
		{modbus.HoldingRegisters, 10, 2, "44d6 1200"},
		{modbus.HoldingRegisters, 12, 2, "449a 5000"},
		{modbus.HoldingRegisters, 20, 4, "102 304 506 708"},
		{modbus.HoldingRegisters, 24, 4, "201 403 605 807"},
		{modbus.HoldingRegisters, 30, 3, "1 0 1"},
		{modbus.HoldingRegisters, 40, 4, "4142 3132 0 0"},
		{modbus.HoldingRegisters, 44, 3, "3235 2e34 0"},
		{modbus.HoldingRegisters, 50, 2, "690b 5f77"},
		{modbus.HoldingRegisters, 52, 6, "7e9 b 5 e 1e f"},
		{modbus.HoldingRegisters, 80, 2, "1 1"},
		{modbus.HoldingRegisters, 0, 14, "fe 41cb 3333 19 988 25 5000 449a 449a 5000 44d6 1200 449a 5000"},
		{modbus.Coils, 0, 1, "1"},
		{modbus.DiscreteInputs, 0, 1, "1"},
	} {
		if got := r.read(row.t, row.addr, row.n); got != row.want {
			t.Errorf("%v %d+%d: %s, want %s", row.t, row.addr, row.n, got, row.want)
		}
	}
}

// A read spans points, but neither holes nor parts of values; what it asked for
// in vain is remembered, and logged once.
func TestHolesAndCuts(t *testing.T) {
	r := newRig(t, `
  - listen: tcp://127.0.0.1:0
    stale: zero
    map: { 40001: boiler.temp, 40002: boiler.power, 40004: boiler.temp, 40006: boiler.temp, 465533: boiler.big }
`)
	for _, row := range []struct {
		addr, n uint16
		want    string
	}{
		{0, 4, "0 0 0 0"}, {0, 1, "0"}, {1, 2, "0 0"}, {65532, 4, "0 0 0 0"},
		{0, 2, "exception 2"}, {2, 1, "exception 2"}, {2, 2, "exception 2"}, // cut
		{0, 6, "exception 2"}, {4, 1, "exception 2"}, {5, 2, "exception 2"}, {100, 1, "exception 2"}, {65531, 5, "exception 2"}, // holes
		{65535, 1, "exception 2"},
	} {
		if got := r.read(modbus.HoldingRegisters, row.addr, row.n); got != row.want {
			t.Errorf("%d+%d: %s, want %s", row.addr, row.n, got, row.want)
		}
	}
	r.read(modbus.HoldingRegisters, 100, 1)
	if got := r.read(modbus.InputRegisters, 0, 1); got != "exception 2" {
		t.Errorf("another table: %s", got)
	}
	list, more := r.Unmapped()
	if len(list) != 10 || more != 0 {
		t.Fatalf("%d asked in vain, %d more: %+v", len(list), more, list)
	}
	if u := list[0]; !u.Cut || u.Count != 2 || u.Client != "plc" || u.Times != 1 {
		t.Errorf("%+v", u)
	}
	if u := list[6]; u.Cut || u.Address != 100 || u.Times != 2 {
		t.Errorf("%+v", u)
	}
	if n := strings.Count(r.log.String(), "address=\"holding 100\""); n != 1 {
		t.Errorf("logged %d times:\n%s", n, &r.log)
	}
	for i := range uint16(400) {
		r.read(modbus.HoldingRegisters, 1000+i, 1)
	}
	if list, more := r.Unmapped(); len(list) != maxUnmapped || more != 400-(maxUnmapped-10) {
		t.Errorf("%d asked in vain and %d more", len(list), more)
	}
}

// What is bad or old is never served as if it were good.
func TestStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, `
  - listen: tcp://127.0.0.1:0
    map:
      holding 0: boiler.temp
      holding 1: { point: boiler.temp, stale: last }
      holding 2: { point: boiler.temp, stale: zero }
      holding 3: { point: boiler.temp, stale: 0x8000 }
      holding 4: { point: boiler.temp, stale: -1 }
      holding 5: { point: boiler.temp, type: float32, stale: -9999 }
      holding 7: { point: boiler.temp, type: float32, order: CDAB, stale: 0x7FC00000 }
      holding 9: { point: boiler.temp, stale_after: 1h }
      holding 10: { status: boiler.temp }
      holding 11: { age: boiler.temp }
      holding 12: { age: boiler.temp, type: uint32 }
      holding 14: { point: boiler.clock, stale: last }
      holding 16: boiler.fast
      discrete 0: { status: boiler.temp }
      discrete 1: { point: boiler.alarm, stale: 1 }
`)
		want := func(when string, words map[uint16]string) {
			t.Helper()
			n := map[uint16]uint16{5: 2, 7: 2, 12: 2, 14: 2}
			for addr, w := range words {
				if got := r.read(modbus.HoldingRegisters, addr, max(n[addr], 1)); got != w {
					t.Errorf("%s: holding %d is %s, want %s", when, addr, got, w)
				}
			}
		}
		bits := func(when, want string) {
			t.Helper()
			if got := r.read(modbus.DiscreteInputs, 0, 2); got != want {
				t.Errorf("%s: discrete inputs %s, want %s", when, got, want)
			}
		}
		none := map[uint16]string{0: "exception 11", 1: "exception 11", 2: "0", 3: "8000", 4: "ffff", 5: "c61c 3c00", 7: "0 7fc0", 9: "exception 11",
			10: "3", 11: "ffff", 12: "ffff ffff", 14: "exception 11", 16: "exception 11"}
		want("before the first value", none)
		bits("before the first value", "0 1")

		r.emit("boiler.temp", "25.4", "boiler.clock", "2025-11-05T14:30:15Z", "boiler.fast", "7")
		good := map[uint16]string{0: "fe", 1: "fe", 2: "fe", 3: "fe", 4: "fe", 5: "41cb 3333", 7: "3333 41cb", 9: "fe", 10: "0", 11: "0", 12: "0 0", 14: "690b 5f77", 16: "7"}
		want("at once", good)
		bits("at once", "1 1")
		time.Sleep(3 * time.Second)
		good[11], good[12] = "3", "0 3"
		want("after three polls", good)
		time.Sleep(time.Millisecond)
		old := map[uint16]string{0: "exception 11", 1: "fe", 2: "0", 3: "8000", 9: "fe", 10: "2", 11: "3", 14: "690b 5f77", 16: "7"}
		want("later than three polls", old)
		bits("later than three polls", "0 1")
		if got := r.read(modbus.HoldingRegisters, 0, 3); got != "exception 11" {
			t.Errorf("a read with a stale value among others: %s", got)
		}
		time.Sleep(time.Hour)
		want("after an hour", map[uint16]string{9: "exception 11", 14: "690b 5f77", 16: "exception 11", 11: "e13"})

		r.emit("boiler.temp", "-1")
		want("fresh again", map[uint16]string{0: "fff6", 10: "0", 11: "0"})
		time.Sleep(time.Second)
		r.bad("boiler.temp")
		want("a bad sample", map[uint16]string{0: "exception 11", 1: "fff6", 2: "0", 9: "exception 11", 10: "2", 11: "1"})
		r.image.Apply(time.Now(), []point.Sample{{ID: "boiler.temp", Value: point.IntValue(5), Quality: point.Uncertain, Time: time.Now().UTC()}})
		want("an uncertain sample", map[uint16]string{0: "32", 10: "1"})
		bits("an uncertain sample", "1 1")
	})
}

// A value that the served type cannot hold is not cut.
func TestDoesNotFit(t *testing.T) {
	r := newRig(t, `
  - listen: tcp://127.0.0.1:0
    map:
      holding 0: { point: boiler.big, type: uint16 }
      holding 1: { point: boiler.big, type: uint16, stale: last }
      holding 2: { point: boiler.big, type: uint16, stale: zero }
      holding 3: { point: boiler.big, type: uint16, stale: 0xFFFF }
`)
	r.emit("boiler.big", "65535")
	if got := r.read(modbus.HoldingRegisters, 0, 4); got != "ffff ffff ffff ffff" {
		t.Errorf("what fits: %s", got)
	}
	r.emit("boiler.big", "65536")
	for addr, want := range []string{"exception 4", "exception 4", "0", "ffff"} {
		for range 3 {
			if got := r.read(modbus.HoldingRegisters, uint16(addr), 1); got != want {
				t.Errorf("holding %d: %s, want %s", addr, got, want)
			}
		}
	}
	if n := strings.Count(r.log.String(), "value does not fit"); n != 4 {
		t.Errorf("logged %d times, want once for each place:\n%s", n, &r.log)
	}
	r.emit("boiler.big", "1")
	if got := r.read(modbus.HoldingRegisters, 0, 4); got != "1 1 1 1" {
		t.Errorf("what fits again: %s", got)
	}
}

func TestWrites(t *testing.T) {
	r := newRig(t, `
  - listen: tcp://127.0.0.1:0
    writes: true
    map:
      holding 0: boiler.set
      holding 1: boiler.wide
      holding 3: { point: boiler.set, type: float32, order: CDAB }
      holding 5: boiler.temp
      holding 6: boiler.text
      holding 8: { status: boiler.set }
      holding 9: { pause: boiler }
      holding 11: boiler.coil
      input 0: boiler.set
      coil 0: boiler.coil
      coil 1: boiler.alarm
`)
	r.emit("boiler.set", "50", "boiler.wide", "1", "boiler.temp", "2")
	regs := modbus.WriteRegistersRequest
	for _, row := range []struct {
		name   string
		req    modbus.PDU
		want   string
		writes string
	}{
		{"function 6", modbus.WriteRegisterRequest(0, 555), "ok", "[{boiler.set 55.5}]"},
		{"function 16", regs(1, []uint16{0x41cb, 0x3333}), "ok", "[{boiler.wide 25.4}]"},
		{"an order", regs(3, []uint16{0x3333, 0x41cb}), "ok", "[{boiler.set 25.4}]"},
		{"several points", regs(0, []uint16{300, 0, 0, 0, 0}), "ok", "[{boiler.set 30} {boiler.wide 0} {boiler.set 0}]"},
		{"a coil", modbus.WriteCoilRequest(0, true), "ok", "[{boiler.coil 1}]"},
		{"function 15", modbus.WriteCoilsRequest(0, []bool{false}), "ok", "[{boiler.coil 0}]"},
		{"text", regs(6, []uint16{0x4142, 0}), "ok", "[{boiler.text AB}]"},
		{"a boolean in a register", modbus.WriteRegisterRequest(11, 1), "ok", "[{boiler.coil 1}]"},
		{"function 22", modbus.MaskWriteRequest(0, 0xFF00, 0x0034), "ok", "[{boiler.set 30.8}]"}, // 500 = 0x1f4
		{"function 23", modbus.ReadWriteRequest(5, 1, 0, []uint16{1}), "14", "[{boiler.set 0.1}]"},
		{"half of a value", modbus.WriteRegisterRequest(1, 1), "exception 2", "[]"},
		{"the other half", regs(2, []uint16{1, 2, 3}), "exception 2", "[]"},
		{"half at the end", regs(0, []uint16{1, 2}), "exception 2", "[]"},
		{"a hole", modbus.WriteRegisterRequest(10, 1), "exception 2", "[]"},
		{"read only", modbus.WriteRegisterRequest(5, 1), "exception 2", "[]"},
		{"one of them read only", regs(3, []uint16{0, 0, 1}), "exception 2", "[]"},
		{"a read-only coil", modbus.WriteCoilRequest(1, true), "exception 2", "[]"},
		{"a status", modbus.WriteRegisterRequest(8, 1), "exception 2", "[]"},
		{"no number", regs(1, []uint16{0x7fc0, 0}), "exception 3", "[]"},
		{"half of a value by mask", modbus.MaskWriteRequest(1, 0, 1), "exception 2", "[]"},
		{"function 23 that reads a hole", modbus.ReadWriteRequest(99, 1, 0, []uint16{1}), "exception 2", "[]"},
		{"a pause", modbus.WriteRegisterRequest(9, 90), "ok", "[]"},
		{"too long a pause", modbus.WriteRegisterRequest(9, 3601), "exception 3", "[]"},
	} {
		r.writes = nil
		if got := r.ask(row.req); got != row.want {
			t.Errorf("%s: %s, want %s", row.name, got, row.want)
		}
		if got := fmt.Sprint(r.writes); got != row.writes {
			t.Errorf("%s: wrote %s, want %s", row.name, got, row.writes)
		}
	}
	if r.by != "plc" {
		t.Errorf("by %q", r.by)
	}
	if got := r.paused["boiler"]; got != 90*time.Second {
		t.Errorf("paused for %v", got)
	}
	if got := r.read(modbus.HoldingRegisters, 9, 1); got != "5a" {
		t.Errorf("the pause reads as %s", got)
	}
	for _, row := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("boiler.set: %w: below 20", ErrRefused), "exception 3"},
		{point.ErrReadOnly, "exception 2"},
		{fmt.Errorf("x: %w", modbus.ServerDeviceBusy), "exception 6"},
		{fmt.Errorf("x: %w", modbus.ErrNoResponse), "exception 11"},
		{fmt.Errorf("x: %w", modbus.ErrNotConnected), "exception 10"},
		{errors.New("disk full"), "exception 4"},
	} {
		r.err = row.err
		if got := r.ask(modbus.WriteRegisterRequest(0, 300)); got != row.want {
			t.Errorf("%v: %s, want %s", row.err, got, row.want)
		}
	}
	r.err = nil
	r.bad("boiler.set")
	if got := r.ask(modbus.MaskWriteRequest(0, 0xFF00, 1)); got != "exception 11" {
		t.Errorf("some bits of a value that is not known: %s", got)
	}
	if got := r.ask(modbus.WriteRegisterRequest(0, 300)); got != "ok" {
		t.Errorf("the whole of it: %s", got)
	}

	closed := newRig(t, "  - { listen: tcp://127.0.0.1:0, map: { 40001: boiler.set, \"00001\": boiler.coil } }\n")
	for _, req := range []modbus.PDU{
		modbus.WriteCoilRequest(0, true), modbus.WriteRegisterRequest(0, 1), modbus.WriteCoilsRequest(0, []bool{true}),
		regs(0, []uint16{1}), modbus.MaskWriteRequest(0, 1, 1), modbus.ReadWriteRequest(0, 1, 0, []uint16{1}),
	} {
		if got := closed.ask(req); got != "exception 1" || closed.writes != nil {
			t.Errorf("%v without writes: %s, %v", req.Function(), got, closed.writes)
		}
	}
}

// All values of one answer are of one batch, and no wide value is torn, however
// many read while it changes.
func TestOneMoment(t *testing.T) {
	r := newRig(t, `
  - listen: tcp://127.0.0.1:0
    map:
      holding 0: boiler.big
      holding 4: { point: boiler.temp, type: uint64 }
      holding 8: { point: boiler.big, type: uint64, order: CDAB }
`)
	r.emit("boiler.big", "0", "boiler.temp", "0")
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() { // ends when stop is closed
		for k := uint64(0); ; k++ {
			select {
			case <-stop:
				return
			default:
			}
			v := point.UintValue(k % (1 << 16) * 0x0001_0001_0001_0001) // four times the same word
			r.image.Apply(time.Now(), []point.Sample{{ID: "boiler.big", Value: v, Time: time.Now()}, {ID: "boiler.temp", Value: v, Time: time.Now()}})
		}
	})
	var reading sync.WaitGroup
	for range 4 {
		reading.Go(func() { // ends with the reads
			for range 1000 {
				w := strings.Fields(r.read(modbus.HoldingRegisters, 0, 12))
				if len(slices.Compact(w)) != 1 {
					t.Errorf("torn: %v", w)
					return
				}
			}
		})
	}
	reading.Wait()
	close(stop)
	done.Wait()
}

// What goes on to a bus, and what is refused with which exception.
func TestPass(t *testing.T) {
	asked := 0
	bus := endpoint(func(unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
		asked++
		return nil, modbus.MemoryParityError // an answer of the device's
	})
	var records []Passage
	var full error
	record := func(_ context.Context, p Passage) error {
		records = append(records, p)
		return full
	}
	pass := func(writes string) *Map {
		cfg := load(t, "  - { listen: tcp://127.0.0.1:0, unit: 9, pass: { 0: line1, 2-4: line1 }, pass_writes: "+writes+" }\n")
		return New(cfg, NewImage(nil), Gate{Bus: func(string) modbus.Endpoint { return bus }, Record: record}, modbus.Identity{}, slog.New(slog.DiscardHandler))
	}
	read, all, some := "through", "through", "through"
	for _, row := range []struct {
		name            string
		req             modbus.PDU
		none, all, some string // by pass_writes
	}{
		{"coils", modbus.ReadRequest(modbus.Coils, 0, 1), read, all, some},
		{"registers", modbus.ReadRequest(modbus.HoldingRegisters, 0, 1), read, all, some},
		{"loopback", modbus.DiagnosticsRequest(0, 1), read, all, some},
		{"restart", modbus.DiagnosticsRequest(1, 0), "exception 1", all, "exception 1"},
		{"listen only", modbus.DiagnosticsRequest(4, 0), "exception 1", all, "exception 1"},
		{"server id", modbus.ServerIDRequest(), read, all, some},
		{"identification", modbus.DeviceIDRequest(modbus.BasicID, 0), read, all, some},
		{"a user's function", modbus.PDU{0x41, 1}, "exception 1", all, "exception 1"},
		{"in the span", modbus.WriteRegisterRequest(100, 1), "exception 1", all, some},
		{"the whole span", modbus.WriteRegistersRequest(100, make([]uint16, 21)), "exception 1", all, some},
		{"over its end", modbus.WriteRegistersRequest(120, make([]uint16, 2)), "exception 1", all, "exception 2"},
		{"before it", modbus.WriteRegisterRequest(99, 1), "exception 1", all, "exception 2"},
		{"bits of it", modbus.MaskWriteRequest(110, 1, 1), "exception 1", all, some},
		{"read and write", modbus.ReadWriteRequest(0, 1, 120, []uint16{1}), "exception 1", all, some},
		{"read and write elsewhere", modbus.ReadWriteRequest(110, 1, 121, []uint16{1}), "exception 1", all, "exception 2"},
		{"the coil", modbus.WriteCoilRequest(3, true), "exception 1", all, some},
		{"another coil", modbus.WriteCoilRequest(4, true), "exception 1", all, "exception 2"},
		{"coils over it", modbus.WriteCoilsRequest(3, []bool{true, true}), "exception 1", all, "exception 2"},
		{"a coil of a register's number", modbus.WriteCoilRequest(110, true), "exception 1", all, "exception 2"},
	} {
		for writes, want := range map[string]string{"true": row.all, "[holding 100-120, coil 3]": row.some} {
			asked = 0
			_, err := pass(writes).Do(t.Context(), 3, row.req)
			got := fmt.Sprintf("exception %d", uint8(modbus.ExceptionFor(err)))
			if asked == 1 && errors.Is(err, modbus.MemoryParityError) {
				got = "through"
			}
			if got != want {
				t.Errorf("%s with pass_writes %s: %s, want %s", row.name, writes, got, want)
			}
		}
		cfg := load(t, "  - { listen: tcp://127.0.0.1:0, pass: { 2-4: line1 } }\n")
		m := New(cfg, NewImage(nil), Gate{Bus: func(string) modbus.Endpoint { return bus }, Record: record}, modbus.Identity{}, slog.New(slog.DiscardHandler))
		asked = 0
		_, err := m.Do(t.Context(), 3, row.req)
		if got := fmt.Sprintf("exception %d", uint8(modbus.ExceptionFor(err))); asked == 0 && got != row.none || asked == 1 && row.none != read {
			t.Errorf("%s without pass_writes: %s, want %s", row.name, got, row.none)
		}
	}
	m := pass("true")
	records = nil
	if _, err := m.Do(modbus.WithClient(t.Context(), "tool"), 3, modbus.WriteRegisterRequest(5, 1)); !errors.Is(err, modbus.MemoryParityError) ||
		len(records) != 2 || records[0].Err != nil || records[1].Err == nil || records[0].By != "tool" || records[0].Bus != "line1" || records[0].Unit != 3 {
		t.Errorf("%v; recorded %+v", err, records)
	}
	records, asked = nil, 0
	m.Do(t.Context(), 3, modbus.ReadRequest(modbus.Coils, 0, 1))
	if len(records) > 0 {
		t.Errorf("a read is recorded: %+v", records)
	}
	full, asked = errors.New("disk full"), 0
	if _, err := m.Do(t.Context(), 3, modbus.WriteRegisterRequest(5, 1)); err == nil || asked > 0 {
		t.Errorf("what cannot be recorded was sent: %v", err)
	}
	for unit, want := range map[modbus.UnitID]bool{0: true, 1: false, 2: true, 4: true, 5: false, 9: true} {
		if m.Units(unit) != want {
			t.Errorf("unit %d: %v", unit, !want)
		}
	}
	if m.Quick(3, modbus.ReadRequest(modbus.Coils, 0, 1)) || !m.Quick(9, modbus.ReadRequest(modbus.Coils, 0, 1)) || m.Quick(9, modbus.WriteCoilRequest(0, true)) {
		t.Error("what waits for a bus is not answered at once")
	}
}

// What a unit has no answer to is exception 1 however it is asked, and nothing that
// the map is asked for in vain.
func TestKnows(t *testing.T) {
	const served = "  - { listen: tcp://127.0.0.1:0, unit: 9, map: { 40001: boiler.temp }, pass: { 3: line1 }, "
	bus := endpoint(func(modbus.UnitID, modbus.PDU) (modbus.PDU, error) { return nil, modbus.MemoryParityError })
	for _, row := range []struct {
		settings string
		unit     modbus.UnitID
		known    string // functions that are answered, right or wrong
	}{
		{"writes: false", 9, "1 2 3 4 8 17 43"},
		{"writes: true", 9, "1 2 3 4 5 6 8 15 16 17 22 23 43"},
		{"pass_writes: false", 3, "1 2 3 4 7 8 11 12 17 20 24 43"},
		{"pass_writes: [coil 1]", 3, "1 2 3 4 5 6 7 8 11 12 15 16 17 20 22 23 24 43"},
	} {
		cfg := load(t, served+row.settings+" }\n")
		id := modbus.Identity{ServerID: []byte("x"), Objects: []modbus.Object{{ID: 0, Value: []byte("x")}}}
		m := New(cfg, NewImage([]config.Server{cfg}), Gate{Bus: func(string) modbus.Endpoint { return bus }}, id, slog.New(slog.DiscardHandler))
		s, err := Listen(cfg, m, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var serving sync.WaitGroup
		serving.Go(func() { _ = s.Run(ctx) }) // ends with ctx
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		var known []string
		for f := range 128 {
			req := modbus.PDU{byte(f)} // too short for all but some
			if _, err := c.Write(modbus.AppendTCP(nil, 1, row.unit, req)); err != nil {
				t.Fatal(err)
			}
			if _, _, resp := readFrame(t, c, modbus.FramingTCP, req); !bytes.Equal(resp, []byte{byte(f) | 0x80, 1}) {
				known = append(known, fmt.Sprint(f))
			}
		}
		c.Close()
		cancel()
		serving.Wait()
		if got := strings.Join(known, " "); got != row.known {
			t.Errorf("%s: unit %d knows %s, want %s", row.settings, row.unit, got, row.known)
		}
		if list, _ := m.Unmapped(); len(list) > 0 {
			t.Errorf("%s: asked in vain: %+v", row.settings, list)
		}
	}
	cfg := load(t, served+"writes: false }\n")
	m := New(cfg, NewImage([]config.Server{cfg}), Gate{Bus: func(string) modbus.Endpoint { return bus }}, modbus.Identity{}, slog.New(slog.DiscardHandler))
	if _, err := m.Do(t.Context(), 9, modbus.ReadWriteRequest(77, 1, 0, []uint16{1})); !errors.Is(err, modbus.IllegalFunction) {
		t.Errorf("function 23 without writes: %v", err)
	}
	if list, _ := m.Unmapped(); len(list) > 0 {
		t.Errorf("function 23 without writes is asked in vain: %+v", list)
	}
}

// endpoint is a function that is an Endpoint.
type endpoint func(unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error)

func (f endpoint) Do(_ context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	return f(unit, req)
}

// A server gets another map, and another server its place, without a client
// noticing more than it must.
func TestServerSucceeds(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	old := load(t, "- listen: tcp://127.0.0.1:0\n  map: { holding 0: boiler.temp }\n")
	image := NewImage([]config.Server{old})
	image.Apply(time.Now(), []point.Sample{{ID: "boiler.temp", Value: point.IntValue(4), Time: time.Now()}})
	s, err := Listen(old, New(old, image, Gate{}, modbus.Identity{}, log), log)
	if err != nil {
		t.Fatal(err)
	}
	next := load(t, "- listen: tcp://127.0.0.1:0\n  map: { holding 1: boiler.temp, holding 2: boiler.set }\n")
	if !s.Serves(next) {
		t.Error("another map makes another server")
	}
	image.Show([]config.Server{next}, func(id point.ID) (point.Sample, bool) {
		return point.Sample{ID: id, Value: point.IntValue(7), Time: time.Now()}, true
	})
	s.Change(New(next, image, Gate{}, modbus.Identity{}, log))
	resp, err := s.Do(t.Context(), 1, modbus.ReadRequest(modbus.HoldingRegisters, 1, 2))
	if err != nil || resp[3] != 40 || resp[5] != 70 { // tenths
		t.Errorf("reads % x, %v", []byte(resp), err)
	}

	next.MaxClients++
	if s.Serves(next) {
		t.Error("another limit makes no other server")
	}
	after, err := s.Succeed(next, New(next, image, Gate{}, modbus.Identity{}, log), log)
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if after.Addr().String() != s.Addr().String() {
		t.Errorf("it listens on %v, before on %v", after.Addr(), s.Addr())
	}
	image.Retain(func(id point.ID) bool { return id != "boiler.temp" })
	image.Show([]config.Server{old}, func(point.ID) (point.Sample, bool) { return point.Sample{}, false })
	if resp, err := New(old, image, Gate{}, modbus.Identity{}, log).Do(t.Context(), 1, modbus.ReadRequest(modbus.HoldingRegisters, 0, 1)); err == nil {
		t.Errorf("a point that was forgotten reads % x", []byte(resp))
	}
}
