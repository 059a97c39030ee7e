package simulate

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// at makes a point from its address and type as a file spells them.
func at(t testing.TB, name, address, kind string, v any) Point {
	t.Helper()
	var p Point
	var err error
	p.ID = point.ID("device." + name)
	if p.Table, p.Address, err = point.ParseAddress(address); err != nil {
		t.Fatal(err)
	}
	if p.Type, p.Length, p.Layout, err = point.ParseType(kind); err != nil {
		t.Fatal(err)
	}
	switch v := v.(type) {
	case Wave:
		p.Wave = v
	case string:
		p.Value = p.Parse(v)
	case nil:
	default:
		t.Fatalf("%T is neither a wave nor a text", v)
	}
	return p
}

// device makes a device of settings that must be right.
func device(t testing.TB, s Settings) *Device {
	t.Helper()
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return New(s)
}

func read(t testing.TB, ep modbus.Endpoint, table modbus.Table, addr, n uint16) []uint16 {
	t.Helper()
	v, err := modbus.ReadRegisters(context.Background(), ep, 1, table, addr, n)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestDeviceRegisters(t *testing.T) {
	d := device(t, Settings{Name: "device", Unit: 1, Points: []Point{
		at(t, "a", "holding 0", "uint16", "17"),
		at(t, "b", "holding 1", "float32", "42.5"),
		at(t, "c", "input 3", "string(2)", "abc"),
		at(t, "d", "coil 5", "bool", "1"),
		at(t, "e", "discrete 9", "bool", "true"),
		at(t, "f", "input 10", "datetime(EPOCH)", nil),
		at(t, "g", "holding 300", "int64", "-2"),
	}})
	for _, c := range []struct {
		table   modbus.Table
		addr, n uint16
		want    []uint16
	}{
		{modbus.HoldingRegisters, 0, 4, []uint16{17, 0x422A, 0, 0}},
		{modbus.InputRegisters, 3, 2, []uint16{0x6162, 0x6300}},
		{modbus.Coils, 4, 3, []uint16{0, 1, 0}},
		{modbus.DiscreteInputs, 9, 1, []uint16{1}},
		{modbus.InputRegisters, 10, 2, []uint16{0, 0}},
		{modbus.HoldingRegisters, 299, 5, []uint16{0, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFE}},
		{modbus.HoldingRegisters, 65535, 1, []uint16{0}},
	} {
		if got := read(t, d, c.table, c.addr, c.n); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v %d+%d: %v, want %v", c.table, c.addr, c.n, got, c.want)
		}
	}
	for name, want := range map[string]string{"a": "17", "b": "42.5", "c": "abc", "d": "1", "g": "-2"} {
		if v, err := d.Value(name); err != nil || v.String() != want {
			t.Errorf("%s is %v, %v; want %s", name, v, err, want)
		}
	}
	if err := d.Set("b", point.Float64Value(-1)); err != nil {
		t.Error(err)
	}
	if got := read(t, d, modbus.HoldingRegisters, 1, 2); got[0] != 0xBF80 {
		t.Errorf("after Set: %x", got)
	}
	if _, all := d.Writes(); all != 0 {
		t.Error("Set counts as a write")
	}
	for name, err := range map[string]error{
		"no such point": d.Set("zz", point.IntValue(1)),
		"too large":     d.Set("a", point.IntValue(70000)),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := d.Value("zz"); err == nil {
		t.Error("a point that is not there has a value")
	}
	if len(d.Points()) != 7 || d.Points()[1].ID != "device.b" || d.Name() != "device" || d.Unit() != 1 || d.Settings().Name != "device" {
		t.Errorf("%+v", d.Points())
	}
}

// write asks unit 1 for one write.
func write(d *Device, req modbus.PDU) error {
	_, err := modbus.Do(context.Background(), d, 1, req)
	return err
}

func TestDeviceWrites(t *testing.T) {
	ctx := context.Background()
	readOnly := at(t, "fixed", "holding 8", "uint16", "1")
	readOnly.ReadOnly = true
	stuck := at(t, "stuck", "holding 2", "uint16", "3")
	stuck.Stuck = true
	d := device(t, Settings{Unit: 1, Points: []Point{
		at(t, "set", "holding 0", "uint16", "5"), at(t, "moves", "holding 4", "uint32", Wave{Shape: Linear, Max: 100}), readOnly, stuck,
	}})
	for name, err := range map[string]error{
		"register":  write(d, modbus.WriteRegisterRequest(0, 6)),
		"registers": write(d, modbus.WriteRegistersRequest(1, []uint16{7, 8})),
		"coil":      write(d, modbus.WriteCoilRequest(3, true)),
		"coils":     write(d, modbus.WriteCoilsRequest(4, []bool{true, false, true})),
		"mask":      write(d, modbus.MaskWriteRequest(0, 0xFFF0, 0x0001)),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	both := modbus.ReadWriteRequest(0, 3, 1, []uint16{9})
	if resp, err := modbus.Do(ctx, d, 1, both); err != nil || modbus.Registers(both, resp)[1] != 9 {
		t.Errorf("read/write: % x, %v", resp, err)
	}
	if v, err := d.Value("stuck"); err != nil || v.String() != "3" {
		t.Errorf("what is stuck has the value %v, %v after registers 1 and 2 were written", v, err)
	}
	for name, err := range map[string]error{
		"what moves":         write(d, modbus.WriteRegisterRequest(4, 0)),
		"half of what moves": write(d, modbus.WriteRegisterRequest(5, 0)),
		"across what moves":  write(d, modbus.WriteRegistersRequest(3, []uint16{1, 2})),
		"read only":          write(d, modbus.WriteRegisterRequest(8, 0)),
	} {
		if !errors.Is(err, modbus.IllegalDataAddress) {
			t.Errorf("%s: %v, want exception 2", name, err)
		}
	}
	writes, all := d.Writes()
	if all != 6 || len(writes) != 6 {
		t.Fatalf("%d writes of %d are remembered, want 6", len(writes), all)
	}
	functions := map[modbus.FunctionCode]bool{}
	for _, w := range writes {
		functions[w.Function] = true
		if w.Function == modbus.MaskWriteRegister && (w.Address != 0 || len(w.Values) != 1) {
			t.Errorf("%+v", w)
		}
	}
	if len(functions) != 6 {
		t.Errorf("functions %v", functions)
	}
	for i := range maxWrites + 10 {
		if err := write(d, modbus.WriteRegisterRequest(20, uint16(i))); err != nil {
			t.Fatal(err)
		}
	}
	writes, all = d.Writes()
	if all != maxWrites+16 || len(writes) != maxWrites {
		t.Fatalf("%d of %d writes are remembered", len(writes), all)
	}
	for i, w := range writes {
		if w.Values[0] != uint16(i+10) {
			t.Fatalf("write %d in the order of time is %v", i, w.Values)
		}
	}
}

func TestDeviceLimits(t *testing.T) {
	ctx := context.Background()
	d := device(t, Settings{
		Strict: true, MaxRegs: 10, MaxBits: 16, Fill: true,
		Points: []Point{
			at(t, "a", "holding 0", "uint32", nil), at(t, "b", "holding 2", "uint16", nil), at(t, "c", "holding 3", "string(20)", nil),
			at(t, "d", "holding 30", "uint16", nil), at(t, "e", "coil 0", "bool", nil),
		},
		Holes: []Span{{modbus.HoldingRegisters, 20, 2}},
	})
	for _, c := range []struct {
		table   modbus.Table
		addr, n uint16
		want    error
	}{
		{modbus.HoldingRegisters, 0, 10, nil},
		{modbus.HoldingRegisters, 1, 5, nil},
		{modbus.HoldingRegisters, 0, 11, modbus.IllegalDataValue},
		{modbus.HoldingRegisters, 16, 4, nil},
		{modbus.HoldingRegisters, 16, 5, modbus.IllegalDataAddress}, // a hole
		{modbus.HoldingRegisters, 21, 1, modbus.IllegalDataAddress},
		{modbus.HoldingRegisters, 22, 1, nil},
		{modbus.HoldingRegisters, 22, 2, modbus.IllegalDataAddress}, // past the last point
		{modbus.HoldingRegisters, 30, 1, nil},
		{modbus.HoldingRegisters, 29, 2, modbus.IllegalDataAddress},
		{modbus.InputRegisters, 0, 1, modbus.IllegalDataAddress}, // nothing there
		{modbus.Coils, 0, 1, nil},
		{modbus.Coils, 0, 17, modbus.IllegalDataValue},
	} {
		_, err := modbus.ReadRegisters(ctx, d, 1, c.table, c.addr, c.n)
		if !errors.Is(err, c.want) {
			t.Errorf("%v %d+%d: %v, want %v", c.table, c.addr, c.n, err, c.want)
		}
	}
	if err := write(d, modbus.WriteRegisterRequest(20, 1)); !errors.Is(err, modbus.IllegalDataAddress) {
		t.Errorf("a write into a hole: %v", err)
	}
	if s := (Span{modbus.HoldingRegisters, 10, 10}).String(); s != "holding 10-19" {
		t.Error(s)
	}
	if s := (Span{modbus.Coils, 10, 1}).String(); s != "coil 10" {
		t.Error(s)
	}
}

func TestPattern(t *testing.T) {
	seen := map[uint16]int{}
	for addr := range 20000 {
		seen[Pattern(1, modbus.HoldingRegisters, uint16(addr))]++
	}
	if len(seen) < 15000 {
		t.Errorf("20000 addresses have %d values", len(seen))
	}
	same := 0
	for addr := range uint16(10000) {
		if Pattern(1, modbus.HoldingRegisters, addr) == Pattern(2, modbus.HoldingRegisters, addr) ||
			Pattern(1, modbus.InputRegisters, addr) == Pattern(1, modbus.HoldingRegisters, addr) {
			same++
		}
		if b := Pattern(1, modbus.Coils, addr); b > 1 {
			t.Fatalf("a coil has the value %d", b)
		}
	}
	if same > 20 {
		t.Errorf("%d of 10000 addresses are the same in another unit or table", same)
	}
	d := device(t, Settings{Unit: 7, Fill: true, Points: []Point{at(t, "a", "holding 100", "uint16", "1")}})
	for _, table := range []modbus.Table{modbus.Coils, modbus.DiscreteInputs, modbus.InputRegisters, modbus.HoldingRegisters} {
		for i, v := range read(t, d, table, 50, 125) {
			addr := uint16(50 + i)
			want := Pattern(7, table, addr)
			if table == modbus.HoldingRegisters && addr == 100 {
				want = 1
			}
			if v != want {
				t.Fatalf("%v %d: %d, want %d", table, addr, v, want)
			}
		}
	}
}

func TestDeviceMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bit := at(t, "bit", "holding 20", "bool", Wave{Shape: Square, Period: 10 * time.Second})
		bit.FirstBit, bit.BitCount = 3, 1
		scaled := at(t, "scaled", "input 0", "int16", Wave{Shape: Linear, Min: -5, Max: 5, Period: 10 * time.Second})
		scaled.Scale = point.Decimal{Mant: 1, Exp: -1}
		d := device(t, Settings{Name: "device", Points: []Point{
			scaled,
			at(t, "float", "input 1", "float32", Wave{Shape: Linear, Min: 0, Max: 10, Period: 10 * time.Second}),
			at(t, "big", "input 4", "uint64", Wave{Shape: Linear, Min: 0, Max: 1e19, Period: 10 * time.Second}),
			at(t, "count", "input 8", "uint16", Wave{Shape: Count}),
			at(t, "walk", "input 9", "uint16", Wave{Shape: RandomWalk, Min: 1, Max: 9}),
			at(t, "clock", "input 10", "datetime(EPOCH)", Wave{Shape: Clock}),
			bit,
			at(t, "mode", "discrete 0", "bool", Wave{Shape: Square, Period: 10 * time.Second}),
		}})
		check := func(table modbus.Table, addr, n uint16, want ...uint16) {
			t.Helper()
			if got := read(t, d, table, addr, n); !reflect.DeepEqual(got, want) {
				t.Errorf("%v: %v %d+%d: %v, want %v", time.Since(d.start), table, addr, n, got, want)
			}
		}
		epoch := uint32(time.Now().Unix())
		check(modbus.InputRegisters, 0, 3, 0xFFCE, 0, 0)
		check(modbus.DiscreteInputs, 0, 1, 1)
		check(modbus.HoldingRegisters, 19, 3, 0, 8, 0)
		check(modbus.InputRegisters, 8, 1, 0)
		check(modbus.InputRegisters, 10, 2, uint16(epoch>>16), uint16(epoch))
		time.Sleep(7500 * time.Millisecond)
		check(modbus.InputRegisters, 0, 3, 25, 0x40F0, 0) // 2.5 and 7.5
		check(modbus.DiscreteInputs, 0, 1, 0)
		check(modbus.HoldingRegisters, 20, 1, 0)
		check(modbus.InputRegisters, 8, 1, 1)
		check(modbus.InputRegisters, 2, 1, 0) // the second half of float alone
		epoch += 7
		check(modbus.InputRegisters, 11, 1, uint16(epoch))
		big := read(t, d, modbus.InputRegisters, 4, 4)
		if got := uint64(big[0])<<48 | uint64(big[1])<<32 | uint64(big[2])<<16 | uint64(big[3]); got != 75e17 {
			t.Errorf("the large number is %d, want 7.5e18", got)
		}
		if v, err := d.Value("count"); err != nil || v.String() != "1" {
			t.Errorf("a look counts as a read: %v, %v", v, err)
		}
		if v, err := d.Value("scaled"); err != nil || v.String() != "2.5" {
			t.Errorf("scaled is %v, %v", v, err)
		}
		if d.Set("float", point.IntValue(1)) == nil {
			t.Error("what moves can be set")
		}
		d.restart(time.Now())
		check(modbus.InputRegisters, 0, 1, 0xFFCE)
	})
}

func TestDeviceFunctions(t *testing.T) {
	ctx := context.Background()
	d := device(t, Settings{Identity: identity("x")})
	for _, req := range []modbus.PDU{
		modbus.ExceptionStatusRequest(), modbus.CommEventCounterRequest(), modbus.CommEventLogRequest(), modbus.ServerIDRequest(),
		modbus.DiagnosticsRequest(0, 0x1234), modbus.DeviceIDRequest(modbus.BasicID, 0),
	} {
		resp, err := d.Do(ctx, 1, req)
		if err != nil {
			t.Errorf("%v: %v", req.Function(), err)
		} else if err := modbus.CheckResponse(req, resp); err != nil {
			t.Errorf("%v: %v", req.Function(), err)
		}
	}
	for _, req := range []modbus.PDU{modbus.ReadFIFORequest(0), {0x63}} {
		if _, err := d.Do(ctx, 1, req); !errors.Is(err, modbus.IllegalFunction) {
			t.Errorf("%v: %v", req.Function(), err)
		}
	}
	if _, err := d.Do(ctx, 1, modbus.ReadRequest(modbus.Coils, 0, 0)); !errors.Is(err, modbus.ErrInvalidRequest) {
		t.Errorf("a request that breaks the specification: %v", err)
	}
	if n := d.Requests(); n != 8 {
		t.Errorf("%d requests, want 8", n)
	}
}

// TestDeviceDoFaults holds what each fault is to the user of an Endpoint, and
// how long it takes.
func TestDeviceDoFaults(t *testing.T) {
	const latency, timeout = 10 * time.Millisecond, 500 * time.Millisecond
	for _, c := range []struct {
		fault    Fault
		err      error
		took     time.Duration
		executed bool
	}{
		{Fault{Kind: Silent, Nth: 2}, nil, latency, true}, // does not strike
		{Fault{Kind: Silent}, modbus.ErrNoResponse, timeout, false},
		{Fault{Kind: Mute}, modbus.ErrNoResponse, timeout, true},
		{Fault{Kind: Late}, modbus.ErrNoResponse, timeout, true},
		{Fault{Kind: Late, Delay: 100 * time.Millisecond}, nil, 110 * time.Millisecond, true},
		{Fault{Kind: WrongID}, modbus.ErrBadResponse, latency, true},
		{Fault{Kind: WrongUnit}, modbus.ErrBadResponse, latency, true},
		{Fault{Kind: Refuse}, modbus.ServerDeviceBusy, latency, false},
		{Fault{Kind: Refuse, Code: modbus.IllegalDataAddress}, modbus.IllegalDataAddress, latency, false},
		{Fault{Kind: CRC}, modbus.ErrBadResponse, latency, true},
		{Fault{Kind: Partial}, modbus.ErrNoResponse, timeout, true},
		{Fault{Kind: Split}, nil, latency, true},
		{Fault{Kind: Echo}, nil, latency, true},
		{Fault{Kind: Noise}, modbus.ErrBadResponse, latency, true},
		{Fault{Kind: Drop}, modbus.ErrNoResponse, timeout, true},
		{Fault{Kind: Slow}, nil, latency, true},
		{Fault{Kind: Twice}, nil, latency, true},
	} {
		t.Run(c.fault.Kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := device(t, Settings{Latency: latency, Timeout: timeout, Faults: []Fault{c.fault}})
				begin := time.Now()
				_, err := d.Do(context.Background(), 1, modbus.WriteRegisterRequest(0, 1))
				if !errors.Is(err, c.err) {
					t.Errorf("%v, want %v", err, c.err)
				}
				if took := time.Since(begin); took != c.took {
					t.Errorf("took %v, want %v", took, c.took)
				}
				if _, all := d.Writes(); (all == 1) != c.executed {
					t.Errorf("executed %v, want %v", all == 1, c.executed)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		d := device(t, Settings{Latency: time.Hour})
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := d.Do(ctx, 1, modbus.ReadRequest(modbus.Coils, 0, 1)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the context's error", err)
		}
		d = device(t, Settings{Latency: 10 * time.Millisecond, Jitter: 20 * time.Millisecond, Seed: 1})
		var least, most time.Duration = time.Hour, 0
		for range 200 {
			begin := time.Now()
			read(t, d, modbus.Coils, 0, 1)
			least, most = min(least, time.Since(begin)), max(most, time.Since(begin))
		}
		if least < 10*time.Millisecond || least > 12*time.Millisecond || most < 28*time.Millisecond || most > 30*time.Millisecond {
			t.Errorf("jitter spreads from %v to %v", least, most)
		}
	})
}

func TestDevices(t *testing.T) {
	ctx := context.Background()
	a, b := device(t, Settings{Unit: 1}), device(t, Settings{Unit: 2})
	line := Devices{a, b}
	if _, err := modbus.Do(ctx, line, 2, modbus.WriteRegisterRequest(0, 5)); err != nil {
		t.Error(err)
	}
	if _, err := modbus.Do(ctx, line, modbus.Broadcast, modbus.WriteRegisterRequest(1, 6)); err != nil {
		t.Error(err)
	}
	if _, err := modbus.ReadRegisters(ctx, line, 3, modbus.Coils, 0, 1); !errors.Is(err, modbus.ErrNoResponse) {
		t.Errorf("a unit that is not there: %v", err)
	}
	if got, want := fmt.Sprint(read(t, a, modbus.HoldingRegisters, 0, 2), read(t, b, modbus.HoldingRegisters, 0, 2)), "[0 6] [5 6]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := modbus.Do(ended, line, modbus.Broadcast, modbus.WriteRegisterRequest(1, 7)); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

func TestDeviceIsShared(t *testing.T) {
	d := device(t, Settings{Points: []Point{at(t, "a", "input 0", "float32", Wave{Shape: Sine}), at(t, "set", "holding 0", "uint16", nil)}})
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			for i := range 200 {
				read(t, d, modbus.InputRegisters, 0, 2)
				if err := write(d, modbus.WriteRegisterRequest(uint16(g), uint16(i))); err != nil {
					t.Error(err)
				}
				d.Writes()
				if err := d.Set("set", point.IntValue(int64(i))); err != nil {
					t.Error(err)
				}
				if _, err := d.Value("a"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

func TestSettingsValidate(t *testing.T) {
	clock := at(t, "clock", "input 0", "uint16", Wave{Shape: Clock})
	large := at(t, "large", "input 0", "uint16", Wave{Shape: Sine, Max: 70000})
	value := at(t, "value", "input 0", "uint16", nil)
	value.Value = point.IntValue(-1)
	end := at(t, "end", "input 65535", "uint32", nil)
	mad := at(t, "mad", "input 0", "uint16", Wave{Shape: Sine, Period: -1})
	odd := at(t, "odd", "coil 0", "uint16", nil)
	for _, c := range []struct {
		s    Settings
		text string
	}{
		{Settings{Points: []Point{clock}}, "clock needs the type datetime"},
		{Settings{Points: []Point{large}}, "the wave reaches 70000"},
		{Settings{Points: []Point{value}}, "point value:"},
		{Settings{Points: []Point{end}}, "point end:"},
		{Settings{Points: []Point{mad}}, "negative"},
		{Settings{Points: []Point{odd}}, "point odd:"},
		{Settings{Faults: []Fault{{}}}, "fault 1:"},
		{Settings{Holes: []Span{{modbus.Coils, 65535, 2}}}, "hole coil 65535"},
		{Settings{Holes: []Span{{modbus.Coils, 1, 0}}}, "empty"},
		{Settings{Latency: -1}, "negative"},
	} {
		if err := c.s.Validate(); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%v, want one with %q", err, c.text)
		}
	}
}
