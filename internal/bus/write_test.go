package bus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

func writable(p point.Point, f modbus.FunctionCode) point.Point {
	p.Write = &point.Write{Function: f}
	return p
}

func emergency(p point.Point) point.Point {
	p.Write = &point.Write{Emergency: true}
	return p
}

func bit(addr uint16, first, count uint8) point.Point {
	p := holding(addr, point.Uint16)
	if count == 1 {
		p.Type = point.Bool
	}
	p.FirstBit, p.BitCount = first, count
	return p
}

func TestWriteRequests(t *testing.T) {
	low := holding(3, point.Uint8)
	low.LowByte = true
	text := holding(10, point.String)
	text.Length = 2
	tests := []struct {
		name  string
		point point.Point
		value point.Value
		want  []string // requests
	}{
		{"coil", writable(coil(7), 0), point.BoolValue(true), []string{"05 00 07 ff 00"}},
		{"coil off", writable(coil(7), 5), point.IntValue(0), []string{"05 00 07 00 00"}},
		{"coil by 15", writable(coil(7), 15), point.BoolValue(true), []string{"0f 00 07 00 01 01 01"}},
		{"register", writable(holding(3, point.Uint16), 0), point.IntValue(258), []string{"06 00 03 01 02"}},
		{"register by 16", writable(holding(3, point.Uint16), 16), point.IntValue(258), []string{"10 00 03 00 01 02 01 02"}},
		{"float", writable(holding(3, point.Float32), 0), point.IntValue(1), []string{"10 00 03 00 02 04 3f 80 00 00"}},
		{"float by 6", writable(holding(3, point.Float32), 6), point.IntValue(1), []string{"06 00 03 3f 80", "06 00 04 00 00"}},
		{"text", writable(text, 0), point.TextValue("abc"), []string{"10 00 0a 00 02 04 61 62 63 00"}},
		{"bit", writable(bit(3, 4, 1), 0), point.BoolValue(true), []string{"16 00 03 ff ef 00 10"}},
		{"bits", writable(bit(3, 4, 3), 0), point.IntValue(5), []string{"16 00 03 ff 8f 00 50"}},
		{"half", writable(low, 0), point.IntValue(0xAA), []string{"16 00 03 ff 00 00 aa"}},
		{"bit by 6", writable(bit(3, 4, 1), 6), point.BoolValue(true), []string{"03 00 03 00 01", "06 00 03 03 fb"}},
		{"bit by 16", writable(bit(3, 0, 1), 16), point.BoolValue(false), []string{"03 00 03 00 01", "10 00 03 00 01 02 03 ea"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWire(1)
				w.turnaround = time.Millisecond
				tt.point.Every = point.Never
				d := dev("d", 1, tt.point)
				r := start(t, tcpBus(1), []config.Device{d}, w)
				if err := r.bus.Write(t.Context(), d.Points[0].ID, tt.value); err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, q := range w.requests(0) {
					got = append(got, fmt.Sprintf("% x", []byte(q.req)))
				}
				if !slices.Equal(got, tt.want) {
					t.Errorf("requests %q, want %q", got, tt.want)
				}
				back, err := r.bus.Read(t.Context(), d.Points[0].ID)
				if err != nil || !point.Equal(back[0].Value, tt.value) {
					t.Errorf("read back %v, %v", back, err)
				}
			})
		})
	}
}

// A device that does not know function 22 has its register read, changed and
// written back; it is not asked again.
func TestMaskWriteUnknown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		w.units[1].before = func(req modbus.PDU) (modbus.PDU, error) {
			if req.Function() == modbus.MaskWriteRegister {
				return nil, modbus.IllegalFunction
			}
			return nil, nil
		}
		d := dev("d", 1, every(writable(bit(0, 0, 1), 0), point.Never), every(writable(bit(1, 15, 1), 0), point.Never))
		r := start(t, tcpBus(1), []config.Device{d}, w)
		for range 2 {
			if err := r.bus.Write(t.Context(), d.Points[0].ID, point.BoolValue(true)); err != nil {
				t.Fatal(err)
			}
			if err := r.bus.Write(t.Context(), d.Points[1].ID, point.BoolValue(true)); err != nil {
				t.Fatal(err)
			}
		}
		var got []modbus.FunctionCode
		for _, q := range w.requests(0) {
			got = append(got, q.req.Function())
		}
		if want := []modbus.FunctionCode{22, 3, 6, 3, 6, 3, 6, 3, 6}; !slices.Equal(got, want) {
			t.Errorf("functions %v, want %v", got, want)
		}
		if regs := w.units[1].regs[modbus.HoldingRegisters]; regs[0] != 1001 || regs[1] != 1001|0x8000 {
			t.Errorf("registers %v", regs)
		}
	})
}

func TestWriteErrors(t *testing.T) {
	input := holding(5, point.Uint16)
	input.Table = modbus.InputRegisters
	limit := writable(holding(6, point.Uint16), 0)
	limit.Write.Max = &point.Decimal{Mant: 10}
	long := writable(holding(100, point.String), 0)
	long.Length = 125
	refused := func(e modbus.Exception) func(w *wireFake) {
		return func(w *wireFake) {
			w.units[1].before = func(modbus.PDU) (modbus.PDU, error) { return nil, e }
		}
	}
	tests := []struct {
		name    string
		point   point.Point
		ail     func(w *wireFake)
		want    error
		unknown bool
		text    string
	}{
		{"read only", holding(4, point.Uint16), nil, point.ErrReadOnly, false, "bus plc: unit 1: write d.h4 (holding 4): "},
		{"input", writable(input, 0), nil, nil, false, "input table is read only"},
		{"too large", limit, nil, nil, false, "11 is above the most, 10"},
		{"too long", long, nil, nil, false, "125 registers are more than the 123"},
		{"refused", writable(holding(1, point.Uint16), 0), refused(modbus.IllegalDataValue), modbus.IllegalDataValue, false, "exception 3"},
		{"always busy", writable(holding(1, point.Uint16), 0), refused(modbus.ServerDeviceBusy), modbus.ServerDeviceBusy, false, "exception 6"},
		{"still at it", writable(holding(1, point.Uint16), 0), refused(modbus.Acknowledge), modbus.Acknowledge, true, "exception 5"},
		{"gateway sent it", writable(holding(1, point.Uint16), 0), refused(modbus.GatewayTargetNoResponse), modbus.GatewayTargetNoResponse, true, "exception 11"},
		{"gateway did not", writable(holding(1, point.Uint16), 0), refused(modbus.GatewayPathUnavailable), modbus.GatewayPathUnavailable, false, "exception 10"},
		{"no answer", writable(holding(1, point.Uint16), 0), func(w *wireFake) { w.units[1].dead = true }, modbus.ErrNoResponse, true, "no response within 500ms"},
		{"damaged", writable(holding(1, point.Uint16), 0), func(w *wireFake) {
			w.units[1].after = func(_, _ modbus.PDU) (modbus.PDU, error) { return nil, fmt.Errorf("%w: CRC", modbus.ErrBadResponse) }
		}, modbus.ErrBadResponse, true, "CRC"},
		{"another's answer", writable(holding(1, point.Uint16), 0), func(w *wireFake) {
			w.units[1].after = func(_, resp modbus.PDU) (modbus.PDU, error) { resp[4]++; return resp, nil }
		}, modbus.ErrBadResponse, true, ""},
		{"no wire", writable(holding(1, point.Uint16), 0), func(w *wireFake) { w.down = true }, modbus.ErrNotConnected, false, "the cable is out"},
		{"half-way", writable(holding(1, point.Uint64), 6), func(w *wireFake) {
			w.units[1].before = func(req modbus.PDU) (modbus.PDU, error) {
				if req[2] == 3 {
					return nil, modbus.ServerDeviceFailure
				}
				return nil, nil
			}
		}, modbus.ServerDeviceFailure, false, "only 2 of 4 registers written"},
		{"register not read", writable(bit(1, 3, 1), 6), func(w *wireFake) { w.units[1].dead = true }, nil, false, "not sent, because its register could not be read: no response"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWire(1)
				if tt.ail != nil {
					tt.ail(w)
				}
				tt.point.Every = point.Never
				d := dev("d", 1, tt.point)
				r := start(t, tcpBus(1), []config.Device{d}, w)
				v := point.IntValue(11)
				switch tt.point.Type {
				case point.Bool:
					v = point.BoolValue(true)
				case point.String:
					v = point.TextValue("x")
				}
				err := r.bus.Write(t.Context(), d.Points[0].ID, v)
				if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
					t.Fatalf("error %v, want %v, %q", err, tt.want, tt.text)
				}
				if unknown := errors.Is(err, modbus.ErrNoResponse); unknown != tt.unknown {
					t.Errorf("%v: unknown %v, want %v", err, unknown, tt.unknown)
				}
				n := 0
				for _, q := range w.requests(0) {
					if q.req.Function().Writes() && !errors.Is(q.err, modbus.ServerDeviceBusy) {
						n++
					}
				}
				if n > 1 && tt.name != "half-way" {
					t.Errorf("%d writes sent", n)
				}
				if s := r.bus.Status(); tt.unknown != (s.Unknown == 1) {
					t.Errorf("status counts %d unknown outcomes", s.Unknown)
				}
			})
		})
	}
	bubble(t, func(t *testing.T) {
		r := start(t, tcpBus(1), []config.Device{dev("d", 1)}, newWire(1))
		if err := r.bus.Write(t.Context(), "d.none", point.IntValue(1)); !errors.Is(err, ErrUnknownPoint) {
			t.Errorf("error %v, want %v", err, ErrUnknownPoint)
		}
		if _, err := r.bus.Read(t.Context(), "d.none"); !errors.Is(err, ErrUnknownPoint) {
			t.Errorf("error %v, want %v", err, ErrUnknownPoint)
		}
	})
}

// A device that is busy gets the write later; it is still one write.
func TestWriteToBusy(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		busy := 3
		w.units[1].before = func(req modbus.PDU) (modbus.PDU, error) {
			if busy--; busy >= 0 {
				return nil, modbus.ServerDeviceBusy
			}
			return nil, nil
		}
		d := dev("d", 1, every(writable(bit(0, 1, 1), 6), point.Never))
		r := start(t, tcpBus(1), []config.Device{d}, w)
		begun := time.Now()
		if err := r.bus.Write(t.Context(), "d.h0", point.BoolValue(true)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took < 600*time.Millisecond || took > 800*time.Millisecond {
			t.Errorf("took %v", took)
		}
		// Given up while the device is busy: it is not sent behind our back.
		w.set(func() { busy = 1 << 30 })
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		defer cancel()
		err := r.bus.Write(ctx, "d.h0", point.BoolValue(false))
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, modbus.ErrNoResponse) {
			t.Errorf("error %v", err)
		}
		n := len(w.requests(0))
		w.set(func() { busy = 0 })
		time.Sleep(time.Minute)
		if got := len(w.requests(0)); got != n {
			t.Errorf("%d requests after the writer has gone", got-n)
		}
	})
}

// A write waits for the request on the wire and nothing else; an emergency passes
// other writes.
func TestWritesGoFirst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2).baud(9600)
		var points []point.Point
		for a := range 5 {
			points = append(points, every(writable(holding(uint16(1000+a), point.Uint16), 0), point.Never))
		}
		points = append(points, every(emergency(coil(0)), point.Never))
		r := start(t, serialBus(9600), []config.Device{
			dev("d", 1, append(registers(0, 600, point.Fastest), points...)...),
			dev("e", 2, append(registers(0, 600, point.Fastest), emergency(every(holding(2000, point.Uint16), point.Never)))...),
		}, w)
		time.Sleep(30 * time.Second)
		one := 2*w.gap + time.Duration(8+5+250)*w.char

		for range 20 {
			time.Sleep(rand.N(time.Second))
			begun := time.Now()
			if err := r.bus.Write(t.Context(), "d.h1000", point.IntValue(5)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begun); took > one+50*time.Millisecond {
				t.Errorf("a write took %v, a read takes %v", took, one)
			}
		}

		from := time.Since(w.started)
		var all sync.WaitGroup
		for a := range 5 {
			all.Go(func() {
				if err := r.bus.Write(t.Context(), point.ID(fmt.Sprint("d.h", 1000+a)), point.IntValue(7)); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		for _, id := range []point.ID{"d.c0", "e.h2000"} {
			all.Go(func() {
				if err := r.bus.Write(t.Context(), id, point.IntValue(1)); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		all.Wait()
		var got []string
		for _, q := range w.requests(from) {
			if q.req.Function().Writes() {
				got = append(got, fmt.Sprintf("%d:%x", q.unit, []byte(q.req[1:3])))
			}
		}
		if want := []string{"1:0000", "2:07d0", "1:03e8", "1:03e9", "1:03ea", "1:03eb", "1:03ec"}; !slices.Equal(got, want) {
			t.Errorf("writes %q, want %q", got, want)
		}
	})
}

// A flood of reads on demand does not end the polling.
func TestManyReadsOnDemand(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1).baud(9600)
		extra := every(holding(500, point.Uint16), point.Never)
		set := every(writable(holding(600, point.Uint16), 0), point.Never)
		r := start(t, serialBus(9600), []config.Device{dev("d", 1, append(registers(0, 10, point.Fastest), extra, set)...)}, w)
		time.Sleep(5 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		from := time.Since(w.started)
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				for ctx.Err() == nil {
					_, _ = r.bus.Read(ctx, "d.h500") // the last end with ctx
				}
			})
		}
		time.Sleep(time.Second)
		begun := time.Now()
		if err := r.bus.Write(ctx, "d.h600", point.IntValue(1)); err != nil {
			t.Error(err)
		}
		if _, err := r.bus.Read(ctx, "d.h600"); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took > 200*time.Millisecond { // an exchange takes 30
			t.Errorf("writing and reading back took %v", took)
		}
		all.Wait()
		asks, polls := 0, 0
		for _, q := range w.requests(from) {
			switch _, addr, _, _ := q.req.Span(); {
			case addr == 500:
				asks++
			case addr < 500:
				polls++
			}
		}
		if polls < asks/mostAsked-1 || polls > asks/mostAsked+2 || asks < 100 {
			t.Errorf("%d reads on demand and %d polls, want %d for one", asks, polls, mostAsked)
		}
	})
}

// An emergency does not wait for the rest of a write that takes several requests,
// and that rest is not sent after it.
func TestEmergencyBetweenRequests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1).baud(9600)
		text := every(writable(holding(100, point.String), modbus.WriteSingleRegister), point.Never)
		text.Length = 20
		part := every(writable(bit(200, 1, 1), modbus.WriteSingleRegister), point.Never)
		stop := every(emergency(coil(0)), point.Never)
		r := start(t, serialBus(9600), []config.Device{dev("d", 1, text, part, stop)}, w)
		one := 2*w.gap + 2*8*w.char
		for _, old := range []struct {
			id    point.ID
			value point.Value
			err   string
			lost  bool
		}{
			{"d.h100", point.TextValue("a long text that takes twenty writes"), "of 20 registers written: no response: an emergency write came between", true},
			{"d.h200", point.BoolValue(true), "not sent, an emergency write came before", false},
		} {
			from := time.Since(w.started)
			var both sync.WaitGroup
			both.Go(func() {
				err := r.bus.Write(t.Context(), old.id, old.value)
				if err == nil || !strings.Contains(err.Error(), old.err) || errors.Is(err, modbus.ErrNoResponse) != old.lost {
					t.Errorf("%s: error %v", old.id, err)
				}
			})
			time.Sleep(one / 2)
			begun := time.Now()
			if err := r.bus.Write(t.Context(), "d.c0", point.BoolValue(true)); err != nil {
				t.Error(err)
			}
			if took := time.Since(begun); took > 2*one {
				t.Errorf("%s: the emergency took %v, an exchange takes %v", old.id, took, one)
			}
			both.Wait()
			time.Sleep(time.Second)
			if q := w.requests(from); len(q) == 0 || q[len(q)-1].req.Function() != modbus.WriteSingleCoil {
				t.Errorf("%s: the emergency was not the last of %d requests", old.id, len(q))
			}
		}
	})
}

func TestWriteGivenUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1).baud(9600)
		d := dev("d", 1, append(registers(0, 100, point.Fastest), writable(holding(50, point.Uint16), 0))...)
		d.Points[100].ID = "d.w"
		r := start(t, serialBus(9600), []config.Device{d}, w)
		time.Sleep(5 * time.Second)

		// Before it was sent: it is not.
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		err := r.bus.Write(ctx, "d.w", point.IntValue(1))
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, modbus.ErrNoResponse) {
			t.Errorf("error %v", err)
		}
		time.Sleep(5 * time.Second)
		for _, q := range w.requests(0) {
			if q.req.Function().Writes() {
				t.Errorf("sent % x", q.req)
			}
		}
		if s := r.last()["d.h50"]; s.Quality != point.Good || s.Time.Before(time.Now().Add(-time.Second)) {
			t.Errorf("the fence of a write that was given up still stands: %v", s)
		}

		// While it is on the wire: nobody knows.
		w.set(func() { w.units[1].dead = true })
		time.Sleep(20 * time.Second) // nothing else is on the wire
		ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err = r.bus.Write(ctx, "d.w", point.IntValue(1))
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, modbus.ErrNoResponse) {
			t.Errorf("error %v", err)
		}

		// The bus stops: the one that is on the wire is waited for, the others are not sent.
		time.Sleep(time.Second)
		var all sync.WaitGroup
		var sent atomic.Int32
		for range 3 {
			all.Go(func() {
				switch err := r.bus.Write(t.Context(), "d.w", point.IntValue(2)); {
				case errors.Is(err, modbus.ErrNoResponse):
					sent.Add(1)
				case !errors.Is(err, ErrStopped):
					t.Errorf("error %v", err)
				}
			})
		}
		synctest.Wait()
		r.stop()
		all.Wait()
		if n := sent.Load(); n != 1 {
			t.Errorf("%d were sent, want 1", n)
		}
		if err := r.bus.Write(t.Context(), "d.w", point.IntValue(2)); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

// A write to a device that is offline is sent, and finds out that it is back.
func TestWriteToOffline(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		w.units[1].dead = true
		r := start(t, tcpBus(1), []config.Device{dev("d", 1, append(registers(0, 3, second), writable(holding(9, point.Uint16), 0))...)}, w)
		time.Sleep(time.Hour)
		if d := r.device("d"); d.State != Offline {
			t.Fatal(d.State)
		}
		w.set(func() { w.units[1].dead = false })
		if err := r.bus.Write(t.Context(), "d.h9", point.IntValue(1)); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if s := r.last()["d.h9"]; s.Value != point.IntValue(1) {
			t.Errorf("%v right after the write", s)
		}
	})
}

// N9: an old value is never seen after a write has ended, whatever was under way
// at the time, and whatever else lies over the same register.
func TestFence(t *testing.T) {
	for _, inFlight := range []int{1, 2, 16} {
		t.Run(fmt.Sprint(inFlight), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWire(1)
				r := rand.New(rand.NewPCG(uint64(inFlight), 1))
				// The device takes a value some time after the request has come,
				// and an answer some time to come back.
				late := func() {
					d := time.Duration(r.IntN(20000)) * time.Microsecond
					w.mu.Unlock()
					time.Sleep(d)
					w.mu.Lock()
				}
				w.units[1].before = func(modbus.PDU) (modbus.PDU, error) { late(); return nil, nil }
				w.units[1].after = func(_, resp modbus.PDU) (modbus.PDU, error) {
					if resp == nil {
						return nil, modbus.ServerDeviceFailure
					}
					late()
					return resp, nil
				}
				wide := every(holding(50, point.Uint32), point.Fastest)
				d := dev("d", 1, append(registers(0, 500, point.Fastest), writable(every(holding(50, point.Uint16), point.Fastest), 0), wide)...)
				d.Points[500].ID, d.Points[501].ID = "d.w", "d.wide"
				rig := start(t, tcpBus(inFlight), []config.Device{d}, w)
				time.Sleep(time.Second)
				for n := range int64(200) {
					if err := rig.bus.Write(t.Context(), "d.w", point.IntValue(n)); err != nil {
						t.Fatal(err)
					}
					ended := time.Since(w.started)
					time.Sleep(rand.N(100 * time.Millisecond))
					for _, b := range rig.since(ended) {
						for _, s := range b.samples {
							v, _ := s.Value.Int64()
							if s.ID == "d.wide" {
								v >>= 16
							}
							if (s.ID == "d.w" || s.ID == "d.wide" || s.ID == "d.h50") && v != n {
								t.Fatalf("%v emitted after %d was written", s, n)
							}
						}
					}
				}
				seen := 0
				for _, b := range rig.since(0) {
					for _, s := range b.samples {
						if s.ID == "d.w" {
							seen++
						}
					}
				}
				if seen < 20 {
					t.Errorf("%d samples of the point between 200 writes", seen)
				}
			})
		})
	}
}

// A value that the fence held back is not missing until the next poll, which may
// be long off.
func TestFencedIsReadAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		w.turnaround = 100 * time.Millisecond
		points := []point.Point{
			writable(every(holding(0, point.Uint16), 3600*second), 0),
			writable(every(holding(200, point.Uint16), point.Once), 0),
		}
		r := start(t, tcpBus(1), []config.Device{dev("d", 1, points...)}, w)
		time.Sleep(50 * time.Millisecond) // the first poll is under way
		for _, id := range []point.ID{"d.h0", "d.h200"} {
			if err := r.bus.Write(t.Context(), id, point.IntValue(5)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		for _, id := range []point.ID{"d.h0", "d.h200"} {
			if s := r.last()[id]; s.Value != point.IntValue(5) {
				t.Errorf("%s: %v", id, s)
			}
		}
		if n := r.good(0)["d"]; n != 2 {
			t.Errorf("%d samples, want 2", n)
		}
	})
}

// A broadcast is sent and not waited for, fences what it may have changed on
// every device, and does not make the broadcast unit a device that answers.
func TestBroadcast(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2).baud(19200)
		r := start(t, serialBus(19200), []config.Device{
			dev("all", 0, writable(holding(3, point.Uint16), 0), writable(bit(4, 0, 1), 0)),
			dev("a", 1, registers(0, 100, point.Fastest)...), dev("b", 2, registers(0, 100, point.Fastest)...),
		}, w)
		time.Sleep(time.Second)
		for n := range int64(20) {
			if err := r.bus.Write(t.Context(), "all.h3", point.IntValue(n)); err != nil {
				t.Fatal(err)
			}
			if err := r.bus.Write(t.Context(), "all.h4", point.BoolValue(true)); err != nil {
				t.Fatal(err)
			}
			ended := time.Since(w.started)
			time.Sleep(time.Second)
			for _, b := range r.since(ended) {
				for _, s := range b.samples {
					if s.ID.Name() == "h3" && s.Value != point.IntValue(n) {
						t.Errorf("%v after %d was broadcast", s, n)
					}
				}
			}
		}
		if d := r.device("all"); d.State != Unknown || d.Reads != 0 || d.Counters.Requests != 40 {
			t.Errorf("%+v", d)
		}
		if _, err := r.bus.Read(t.Context(), "all.h3"); err == nil {
			t.Error("the broadcast unit was read")
		}
		for _, q := range w.requests(0) {
			if q.unit == 0 && !q.req.Function().Writes() {
				t.Errorf("broadcast % x", q.req)
			}
		}
	})
}

func TestReadOnDemand(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2).baud(9600)
		w.units[1].refuse = unmapped(func(a int) bool { return a != 1005 })
		lose := 0
		w.units[1].silent = func(_ modbus.Table, addr, _ int) bool {
			if addr >= 1000 {
				lose--
				return lose >= 0
			}
			return false
		}
		points := append(registers(0, 500, point.Fastest), registers(1000, 10, point.Never)...)
		r := start(t, serialBus(9600), []config.Device{dev("a", 1, points...), dev("b", 2, registers(0, 500, point.Fastest)...)}, w)
		time.Sleep(10 * time.Second)

		begun := time.Now()
		got, err := r.bus.Read(t.Context(), "a.h1001", "b.h7", "a.h1002", "a.h1001")
		if err != nil || len(got) != 4 || got[0].Value != point.IntValue(2001) || got[1].Value != point.IntValue(1007) || got[2].ID != "a.h1002" || got[3] != got[0] {
			t.Errorf("Read = %v, %v", got, err)
		}
		if took := time.Since(begun); took > 450*time.Millisecond {
			t.Errorf("took %v", took)
		}
		time.Sleep(time.Millisecond)
		if last := r.last()["a.h1001"]; last != got[0] {
			t.Errorf("emitted %v", last)
		}

		got, err = r.bus.Read(t.Context(), "a.h1004", "a.h1005", "a.h1006")
		if !errors.Is(err, modbus.IllegalDataAddress) || !strings.Contains(err.Error(), "a.h1005") || got[0].Quality != point.Good || got[1].Quality != point.Bad || got[2].Quality != point.Good {
			t.Errorf("Read = %v, %v", got, err)
		}
		w.set(func() { lose = 1 })
		if got, err = r.bus.Read(t.Context(), "a.h1000"); err != nil || got[0].Quality != point.Good {
			t.Errorf("Read = %v, %v after one lost answer", got, err)
		}
		w.set(func() { lose = 2 })
		if got, err = r.bus.Read(t.Context(), "a.h1000"); !errors.Is(err, modbus.ErrNoResponse) || got[0].Quality != point.Bad {
			t.Errorf("Read = %v, %v after two lost answers", got, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if got, err = r.bus.Read(ctx, "a.h1000"); !errors.Is(err, context.DeadlineExceeded) || len(got) != 1 {
			t.Errorf("Read = %v, %v", got, err)
		}
	})
}

func TestSet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		wa, wb := newWire(1), newWire(1)
		a := start(t, tcpBus(1), []config.Device{dev("a", 1, writable(holding(0, point.Uint16), 0))}, wa)
		b := start(t, tcpBus(1), []config.Device{dev("b", 1, writable(holding(0, point.Uint16), 0), holding(1, point.Uint16))}, wb)
		s := NewSet(a.bus, b.bus)
		if err := s.Write(t.Context(), "b.h0", point.IntValue(3)); err != nil {
			t.Fatal(err)
		}
		got, err := s.Read(t.Context(), "b.h1", "a.h0", "b.h0")
		if err != nil || len(got) != 3 || got[0].ID != "b.h1" || got[1].Value != point.IntValue(1000) || got[2].Value != point.IntValue(3) {
			t.Errorf("Read = %v, %v", got, err)
		}
		for _, err := range []error{
			s.Write(t.Context(), "c.h0", point.IntValue(3)),
			s.Write(t.Context(), "b.h9", point.IntValue(3)),
			func() error { _, err := s.Read(t.Context(), "a.h0", "c.h0"); return err }(),
		} {
			if !errors.Is(err, ErrUnknownPoint) {
				t.Errorf("error %v, want %v", err, ErrUnknownPoint)
			}
		}
		if st := s.Status(); len(st) != 2 || st[1].Writes != 1 {
			t.Errorf("status %+v", st)
		}
	})
}

// A write whose caller has given it up is not sent, whoever of the two comes
// first: neither its caller to say so, nor the bus to send it.
func TestWriteGivenUpBefore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		w.turnaround = time.Millisecond
		p := writable(holding(3, point.Uint16), 0)
		p.Every = point.Never
		d := dev("d", 1, p)
		r := start(t, tcpBus(1), []config.Device{d}, w)
		for range 200 {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			err := r.bus.Write(ctx, d.Points[0].ID, point.IntValue(1))
			if !errors.Is(err, context.Canceled) || errors.Is(err, modbus.ErrNoResponse) {
				t.Fatalf("Write: %v", err)
			}
			synctest.Wait()
		}
		if n := len(w.requests(0)); n != 0 {
			t.Errorf("%d requests were made", n)
		}
	})
}
