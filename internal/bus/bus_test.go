package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

func TestFirstValuesComeAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2)
		w.turnaround = time.Millisecond
		r := start(t, tcpBus(1), append([]config.Device{}, dev("a", 1, registers(0, 10, second)...), dev("b", 2, registers(5, 300, second)...)), w)
		time.Sleep(10 * time.Millisecond)
		got := r.since(0)
		if len(got) != 2 || len(got[0].samples) != 10 || len(got[1].samples) != 300 {
			t.Fatalf("batches %v, want one of 10 samples, one of 300", got)
		}
		if last := got[1].at; last > 4*time.Millisecond {
			t.Errorf("the last value came after %v, want 4 requests of 1ms", last)
		}
		for _, s := range got[1].samples {
			at, _ := r.bus.find(s.ID)
			want := point.IntValue(1000 + int64(at.d.points[at.i].Address))
			if s.Value != want || s.Quality != point.Good || s.Time.IsZero() {
				t.Errorf("sample %v, want %v", s, want)
			}
		}
		if states, logged := r.take(); !slices.Equal(states, []string{"a online", "b online"}) || len(logged) != 2 {
			t.Errorf("states %q, log %q", states, logged)
		}
	})
}

// Polls keep their interval to the instant, and start at slots that several
// buses share, though not all of them at the same one.
func TestPollsKeepTheirInterval(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2, 3, 4, 5)
		time.Sleep(1234567 * time.Microsecond) // begin off the grid
		var devices []config.Device
		for u := range 5 {
			devices = append(devices, dev(fmt.Sprint("d", u), modbus.UnitID(u+1), append(registers(0, 10, second), registers(500, 3, 5*second)...)...))
		}
		r := start(t, tcpBus(1), devices, w)
		time.Sleep(60 * time.Second)
		slots := make(map[time.Duration]int)
		for u := range 5 {
			var fast, slow []time.Duration
			for _, b := range r.since(0) {
				switch {
				case b.samples[0].ID.Device() != fmt.Sprint("d", u):
				case len(b.samples) == 13:
					slow = append(slow, b.at)
					fallthrough
				case len(b.samples) == 10:
					fast = append(fast, b.at)
				default:
					t.Errorf("a batch of %d", len(b.samples))
				}
			}
			if len(fast) < 60 || len(slow) < 12 {
				t.Fatalf("device %d: %d polls, %d slow ones, want 60, 12", u, len(fast), len(slow))
			}
			for i := 2; i < len(fast); i++ {
				if d := fast[i] - fast[i-1]; d != time.Second {
					t.Errorf("device %d: polls %v apart", u, d)
				}
			}
			for i := 2; i < len(slow); i++ {
				if d := slow[i] - slow[i-1]; d != 5*time.Second {
					t.Errorf("device %d: slow polls %v apart", u, d)
				}
			}
			at := w.started.Add(fast[5])
			slot := time.Duration(at.UnixNano()) % time.Second
			if slot%slotWidth != 0 {
				t.Errorf("device %d polls at %v of the second, want a multiple of %v", u, slot, slotWidth)
			}
			slots[slot]++
		}
		if len(slots) != int(second)/int(slotWidth) {
			t.Errorf("5 devices use the slots %v, want all of them", slots)
		}
		for _, d := range r.bus.Status().Devices {
			if d.Polls.Missed != 0 || d.Polls.LateMax > time.Millisecond || d.Polls.Failed != 0 || d.Polls.Begun < 60 {
				t.Errorf("%s: %+v", d.Name, d.Polls)
			}
		}
	})
}

func TestIntervals(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		w.turnaround = 10 * time.Millisecond
		r := start(t, tcpBus(1), []config.Device{dev("d", 1,
			every(holding(0, point.Uint16), second),
			every(holding(1, point.Uint16), 3*second), // rides along
			every(holding(2, point.Uint16), second),
			every(holding(300, point.Uint16), point.Once),
			every(holding(500, point.Uint16), point.Never),
		)}, w)
		time.Sleep(30 * time.Second)
		n := make(map[point.ID]int)
		for _, b := range r.since(0) {
			for _, s := range b.samples {
				n[s.ID]++
			}
		}
		if n["d.h0"] < 30 || n["d.h1"] < 10 || n["d.h1"] > 11 || n["d.h300"] != 1 || n["d.h500"] != 0 {
			t.Errorf("samples %v, want 30, 10, 30, once, never", n)
		}
		if reads := r.device("d").Reads; reads != 2 {
			t.Errorf("%d reads, want 2", reads)
		}
		got, err := r.bus.Read(context.Background(), "d.h500", "d.h0")
		if err != nil || len(got) != 2 || got[0].Value != point.IntValue(1500) || got[1].Value != point.IntValue(1000) {
			t.Errorf("Read = %v, %v", got, err)
		}
		if s := r.last()["d.h500"]; s.Value != point.IntValue(1500) {
			t.Errorf("a read on demand emitted %v", s)
		}
	})
}

// A point that is read once is tried until it is had.
func TestOnceUntilItIsRead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		busy := true
		w.units[1].before = func(req modbus.PDU) (modbus.PDU, error) {
			if busy {
				return nil, modbus.ServerDeviceFailure
			}
			return nil, nil
		}
		r := start(t, tcpBus(1), []config.Device{dev("d", 1, every(holding(7, point.Uint16), point.Once))}, w)
		time.Sleep(2500 * time.Millisecond)
		if s := r.last()["d.h7"]; s.Quality != point.Bad {
			t.Fatalf("sample %v, want a bad one", s)
		}
		w.set(func() { busy = false })
		time.Sleep(time.Minute)
		good := 0
		for _, b := range r.since(0) {
			for _, s := range b.samples {
				if s.Quality == point.Good {
					good++
				}
			}
		}
		if good != 1 {
			t.Errorf("%d good samples, want 1", good)
		}
	})
}

// Devices read as fast as possible take turns and leave no gap on the wire.
func TestBackToBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2, 3, 4, 5).baud(9600)
		var devices []config.Device
		for u := range 5 {
			devices = append(devices, dev(fmt.Sprint("d", u+1), modbus.UnitID(u+1), registers(0, 20, point.Fastest)...))
		}
		r := start(t, serialBus(9600), devices, w)
		time.Sleep(10 * time.Second)
		r.stop()
		log := w.requests(0)
		one := 2*w.gap + time.Duration(8+45)*w.char
		if want := int(10*time.Second/one) - 1; len(log) < want {
			t.Errorf("%d requests in 10 s, want %d", len(log), want)
		}
		for i, q := range log {
			if int(q.unit) != i%5+1 {
				t.Fatalf("request %d goes to unit %d, out of turn", i, q.unit)
			}
		}
	})
}

// Timed polls go before and between those read as fast as possible, and are
// left out, not piled up, when the wire cannot carry them.
func TestTimedBesideFastest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2).baud(9600)
		r := start(t, serialBus(9600), []config.Device{
			dev("fast", 1, registers(0, 100, point.Fastest)...),
			dev("timed", 2, registers(0, 10, second/2)...),
		}, w)
		time.Sleep(20 * time.Second)
		timed := r.device("timed").Polls
		if timed.Begun < 39 || timed.Missed != 0 || timed.LateMax > 400*time.Millisecond {
			t.Errorf("timed: %+v", timed)
		}
		if n := r.device("fast").Polls.Begun; n < 70 {
			t.Errorf("fast: %d polls", n)
		}
	})
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2, 3).baud(9600)
		var devices []config.Device
		for u := range 3 {
			devices = append(devices, dev(fmt.Sprint("d", u), modbus.UnitID(u+1), registers(0, 100, second/4)...))
		}
		r := start(t, serialBus(9600), devices, w) // asks for three times what fits
		time.Sleep(20 * time.Second)
		for _, d := range r.bus.Status().Devices {
			if d.Polls.Begun < 25 || d.Polls.Begun > 32 || d.Polls.Missed < 40 || d.Polls.LateMax > time.Second {
				t.Errorf("%s: %+v", d.Name, d.Polls)
			}
		}
	})
}

// A device with a great deal to read now and then does not hold up another that
// is read often.
func TestLongPollGivesWay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2).baud(9600)
		r := start(t, serialBus(9600), []config.Device{
			dev("long", 1, registers(0, 1000, 10*second)...), // 2.3 s of reading
			dev("short", 2, registers(0, 5, second/2)...),
		}, w)
		time.Sleep(time.Minute)
		short, long := r.device("short").Polls, r.device("long").Polls
		if short.LateMax > 320*time.Millisecond || short.Missed > 0 || long.Begun < 6 || long.Missed > 0 {
			t.Errorf("short %+v, long %+v", short, long)
		}
		for _, b := range r.since(0) {
			if n := len(b.samples); n != 5 && n != 1000 {
				t.Errorf("a batch of %d", n)
			}
		}
	})
}

func TestGroups(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		torn := config.Device(dev("d", 1,
			grouped(holding(0, point.Uint16), "whole"), grouped(holding(40, point.Uint16), "whole"),
			grouped(holding(100, point.Uint16), "torn"), grouped(holding(300, point.Uint16), "torn"),
		))
		r := start(t, serialBus(9600), []config.Device{torn}, w)
		time.Sleep(time.Second)
		for id, want := range map[point.ID]point.Quality{"d.h0": point.Good, "d.h40": point.Good, "d.h100": point.Uncertain, "d.h300": point.Uncertain} {
			if s := r.last()[id]; s.Quality != want || s.Value.IsZero() {
				t.Errorf("%v, want %v", s, want)
			}
		}
	})
}

func TestNoValue(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		p := holding(5, point.Uint16)
		p.Invalid = []uint64{1005}
		r := start(t, tcpBus(1), []config.Device{dev("d", 1, p, holding(6, point.Uint16))}, w)
		time.Sleep(time.Second)
		if s := r.last()["d.h5"]; s.Quality != point.Bad || !s.Value.IsZero() {
			t.Errorf("%v, want a bad sample without a value", s)
		}
		if s := r.last()["d.h6"]; s.Quality != point.Good {
			t.Errorf("%v, want a good sample", s)
		}
	})
}

// With several requests under way a long list is read in the time of one.
func TestInFlight(t *testing.T) {
	for _, tt := range []struct{ configured, said, want int }{{1, 16, 1}, {4, 16, 4}, {16, 1, 16}, {0, 8, 8}, {0, 0, 1}, {0, 99, 16}} {
		t.Run(fmt.Sprintf("%d/%d", tt.configured, tt.said), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWire(1, 2)
				w.turnaround = 10 * time.Millisecond
				w.inFlight = tt.said
				r := start(t, tcpBus(tt.configured), []config.Device{
					dev("a", 1, registers(0, 2000, point.Fastest)...),
					dev("b", 2, registers(0, 2000, second)...),
				}, w)
				time.Sleep(3 * time.Second)
				r.stop()
				if w.most != tt.want {
					t.Errorf("%d requests under way at once, want %d", w.most, tt.want)
				}
				if n := len(w.requests(0)); n < 300*tt.want-tt.want {
					t.Errorf("%d requests in 3 s, want %d", n, 300*tt.want)
				}
				if polls := r.device("b").Polls; polls.Begun < 2 || polls.Missed > 0 { // the first two may be 1.5 s apart
					t.Errorf("timed polls %+v", polls)
				}
				for _, b := range r.since(0) {
					if len(b.samples) != 2000 && b.at < 3*time.Second {
						t.Errorf("a batch of %d samples, want 2000", len(b.samples))
					}
				}
			})
		})
	}
}

// A short list read as fast as possible fills the window, too; an answer that
// was overtaken does not bring an old value back.
func TestInFlightOverlaps(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		n := uint16(0)
		w.units[1].onReads = func(_ modbus.Table, _ uint16, dst []uint16) bool {
			n++
			dst[0] = n
			return true
		}
		late := 0
		w.units[1].before = func(modbus.PDU) (modbus.PDU, error) {
			late = (late + 7919) % 10007 // never two at the same instant
			return nil, nil
		}
		w.units[1].after = func(_, resp modbus.PDU) (modbus.PDU, error) {
			d := 10*time.Millisecond + time.Duration(late)*time.Microsecond // overtakes
			w.mu.Unlock()
			time.Sleep(d)
			w.mu.Lock()
			return resp, nil
		}
		r := start(t, tcpBus(8), []config.Device{dev("d", 1, every(holding(0, point.Uint16), point.Fastest))}, w)
		time.Sleep(5 * time.Second)
		r.stop()
		if w.most != 8 {
			t.Errorf("%d requests under way at once, want 8", w.most)
		}
		last := int64(0)
		for _, b := range r.since(0) {
			v, _ := b.samples[0].Value.Int64()
			if v <= last && last > 8 { // the first eight leave at the same instant
				t.Errorf("value %d after %d", v, last)
			}
			last = v
		}
		if last < 1000 {
			t.Errorf("%d values in 5 s", last)
		}
	})
}

// A wire that is not there: one log line, Bad samples once, no pause when it is
// back.
func TestWireGone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2)
		w.turnaround = time.Millisecond
		r := start(t, tcpBus(1), []config.Device{dev("a", 1, registers(0, 3, second)...), dev("b", 2, registers(0, 3, point.Fastest)...)}, w)
		time.Sleep(5 * time.Second)
		r.take()

		// Away for less than a second: nobody need know.
		w.set(func() { w.down = true })
		time.Sleep(500 * time.Millisecond)
		w.set(func() { w.down = false })
		time.Sleep(5 * time.Second)
		if states, logged := r.take(); states != nil || logged != nil {
			t.Errorf("after a blink: states %q, log %q", states, logged)
		}

		from := time.Since(w.started)
		w.set(func() { w.down = true })
		time.Sleep(time.Minute)
		if n := len(w.requests(from)); n > 80 {
			t.Errorf("%d attempts in a minute", n)
		}
		bad := 0
		for _, b := range r.since(from + time.Second) {
			for _, s := range b.samples {
				if s.Quality != point.Bad {
					t.Errorf("good sample %v without a wire", s)
				}
				bad++
			}
		}
		if bad != 6 {
			t.Errorf("%d bad samples, want one for each of 6 points", bad)
		}
		states, logged := r.take()
		if !slices.Equal(states, []string{"a offline", "b offline"}) || len(logged) != 1 {
			t.Errorf("states %q, log %q", states, logged)
		}
		if s := r.bus.Status(); s.Connected || !strings.Contains(s.Error, "the cable is out") || !strings.Contains(r.bus.Diagnosis(), "no wire") {
			t.Errorf("status %+v, diagnosis %q", s, r.bus.Diagnosis())
		}

		w.set(func() { w.down = false })
		back := time.Since(w.started)
		time.Sleep(2 * time.Second)
		if n := r.good(back); n["a"] < 3 || n["b"] < 1000 {
			t.Errorf("good samples after the wire was back: %v", n)
		}
		if first := r.since(back)[0].at - back; first > 1100*time.Millisecond {
			t.Errorf("first value %v after the wire was back", first)
		}
		states, logged = r.take()
		if len(states) != 2 || len(logged) != 1 || !strings.HasPrefix(logged[0], "wire back") {
			t.Errorf("states %q, log %q", states, logged)
		}
		if d := r.device("a"); d.Polls.Missed != 0 {
			t.Errorf("%+v", d.Polls)
		}
	})
}

// A device that is only read on demand is found to be back with its wire, too;
// of the broadcast unit nothing is ever known.
func TestWireGoneFromDemand(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2).baud(19200)
		r := start(t, serialBus(19200), []config.Device{
			dev("all", 0, writable(holding(0, point.Uint16), 0)),
			dev("asked", 1, registers(0, 2, point.Never)...), dev("polled", 2, registers(0, 2, second)...),
		}, w)
		time.Sleep(2 * time.Second)
		if _, err := r.bus.Read(t.Context(), "asked.h0"); err != nil {
			t.Fatal(err)
		}
		w.set(func() { w.down = true })
		time.Sleep(10 * time.Second)
		w.set(func() { w.down = false })
		time.Sleep(10 * time.Second)
		states, _ := r.take()
		want := []string{"polled online", "asked online", "asked offline", "polled offline"}
		if len(states) != 6 || !slices.Equal(states[:4], want) {
			t.Errorf("states %q", states)
		}
		for _, d := range r.bus.Status().Devices {
			if want := map[string]State{"all": Unknown, "asked": Online, "polled": Online}[d.Name]; d.State != want {
				t.Errorf("%s is %v, want %v", d.Name, d.State, want)
			}
		}
	})
}

// A wire that is not there yet at the start does not delay the first values.
func TestWireComesLate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		w.down = true
		r := start(t, tcpBus(1), []config.Device{dev("a", 1, registers(0, 3, second)...)}, w)
		time.Sleep(20 * time.Millisecond)
		w.set(func() { w.down = false })
		time.Sleep(time.Second)
		if bs := r.since(0); len(bs) == 0 || bs[0].at > 45*time.Millisecond || bs[0].samples[0].Quality != point.Good {
			t.Errorf("batches %v", bs)
		}
		if states, _ := r.take(); !slices.Equal(states, []string{"a online"}) {
			t.Errorf("states %q", states)
		}
	})
}

// What was read when the bus is told to stop is emitted.
func TestStopLosesNothing(t *testing.T) {
	for _, inFlight := range []int{1, 4} {
		bubble(t, func(t *testing.T) {
			w := newWire(1)
			w.turnaround = 100 * time.Millisecond
			r := start(t, tcpBus(inFlight), []config.Device{dev("a", 1, registers(0, 1250, second)...)}, w)
			time.Sleep(250 * time.Millisecond)
			begun := time.Now()
			r.stop()
			if took := time.Since(begun); took > 0 {
				t.Errorf("stopping took %v", took)
			}
			if n := r.good(0)["a"]; n != 2*inFlight*125 {
				t.Errorf("%d samples, want the %d that were read", n, 2*inFlight*125)
			}
			if states, _ := r.take(); !slices.Equal(states, []string{"a online"}) {
				t.Errorf("states %q", states)
			}
			if _, err := r.bus.Read(context.Background(), "a.h0"); err == nil {
				t.Error("a read after the end succeeds")
			}
		})
	}
}

// A write that is on its way when the bus is told to stop is answered: done, or
// not within the time that is left.
func TestStopWaitsForTheWrite(t *testing.T) {
	for _, inFlight := range []int{1, 4} {
		for _, tt := range []struct{ turnaround, ends time.Duration }{{900 * time.Millisecond, 890 * time.Millisecond}, {time.Minute, lastWrite}} {
			bubble(t, func(t *testing.T) {
				w := newWire(1)
				w.turnaround = tt.turnaround
				d := dev("d", 1, writable(holding(3, point.Uint16), 6))
				d.Points[0].Every, d.Timeout = point.Never, 2*time.Minute
				r := start(t, tcpBus(inFlight), []config.Device{d}, w)
				written := make(chan error, 1)
				go func() { written <- r.bus.Write(context.Background(), d.Points[0].ID, point.IntValue(7)) }()
				time.Sleep(10 * time.Millisecond)
				begun := time.Now()
				r.stop()
				if took := time.Since(begun); took != tt.ends {
					t.Errorf("stopping took %v, want %v", took, tt.ends)
				}
				err := <-written
				if done := tt.ends < lastWrite; (err == nil) != done {
					t.Errorf("the write: %v", err)
				}
				if errors.Is(err, ErrStopped) {
					t.Error("it was sent, and says that it was not")
				}
			})
		}
	}
}

// An Endpoint that knows no timeouts is given the whole exchange's.
func TestPlainEndpoint(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ep := endpointFunc(func(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
			if unit == 1 {
				return modbus.PDU{3, 2, 0, 7}, nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		})
		var got []point.Sample
		one := dev("a", 1, registers(0, 1, 30*second)...)
		two := dev("b", 2, registers(0, 1, 30*second)...)
		two.Timeout, two.BackoffMin, two.BackoffMax = 0, 0, 0
		b := New(tcpBus(0), []config.Device{one, two}, ep, func(s []point.Sample) { got = append(got, s...) }, quiet)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := b.Run(ctx); err != nil {
			t.Error(err)
		}
		if len(got) < 2 || got[0].Value != point.IntValue(7) || got[1].Quality != point.Bad {
			t.Errorf("samples %v", got)
		}
		if d := b.Status().Devices[1]; d.State != Offline || !strings.HasPrefix(d.Error, "no response within ") {
			t.Errorf("%+v", d)
		}
		if b.Name() != "plc" || Unknown.String() != "unknown" {
			t.Error("names")
		}
	})
}

type endpointFunc func(context.Context, modbus.UnitID, modbus.PDU) (modbus.PDU, error)

func (f endpointFunc) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	return f(ctx, unit, req)
}

func TestOverdue(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		r := start(t, tcpBus(1), []config.Device{dev("a", 1, registers(0, 1, 60*second)...)}, w)
		time.Sleep(50 * time.Second)
		if d := r.bus.Overdue(); d != 0 {
			t.Errorf("overdue by %v while waiting for the next poll", d)
		}
		// A line that hangs.
		w.set(func() {
			w.units[1].before = func(modbus.PDU) (modbus.PDU, error) {
				w.mu.Unlock()
				time.Sleep(time.Hour)
				w.mu.Lock()
				return nil, nil
			}
		})
		time.Sleep(30 * time.Minute)
		if d := r.bus.Overdue(); d < 20*time.Minute {
			t.Errorf("overdue by %v while hanging", d)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
	})
}

// What takes the samples, or the news of a device, holds the bus up: that shows
// at once, not when a device could have answered at the latest.
func TestOverdueWhileEmitting(t *testing.T) {
	for _, inFlight := range []int{1, 4} {
		bubble(t, func(t *testing.T) {
			hold := make(chan struct{})
			b := New(tcpBus(inFlight), []config.Device{dev("a", 1, registers(0, 1, 60*second)...)}, newWire(1), func([]point.Sample) { <-hold }, slog.New(slog.DiscardHandler))
			ctx, stop := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { _ = b.Run(ctx) })
			time.Sleep(20 * time.Second)
			if d := b.Overdue(); d < 15*time.Second {
				t.Errorf("in_flight %d: overdue by %v after 20s", inFlight, d)
			}
			close(hold)
			time.Sleep(time.Minute)
			if d := b.Overdue(); d != 0 {
				t.Errorf("in_flight %d: overdue by %v after it went on", inFlight, d)
			}
			stop()
			running.Wait()
		})
	}
}
