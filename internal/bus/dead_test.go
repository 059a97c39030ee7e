package bus

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// share returns how much of the wire's limit the good samples of the devices
// took from a time on for a while: 1 is a wire without a pause.
func (r *rig) share(from, lasting time.Duration, registers int, devices ...string) float64 {
	n := 0
	for _, b := range r.since(from) {
		if b.at < from+lasting && slices.Contains(devices, b.samples[0].ID.Device()) && b.samples[0].Quality == point.Good {
			n++
		}
	}
	one := 2*r.wire.gap + time.Duration(8+5+2*registers)*r.wire.char
	return float64(n) * float64(one) / float64(lasting)
}

// F2: with one of five devices dead, the others keep the wire; the one that
// comes back is read again soon.
func TestOneDeadOfFive(t *testing.T) {
	for _, tt := range []struct {
		baud      int
		want      float64
		fromStart bool
	}{{9600, 0.97, false}, {115200, 0.97, false}, {9600, 0.97, true}, {115200, 0.97, true}} {
		t.Run(fmt.Sprintf("%d/%v", tt.baud, tt.fromStart), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWire(1, 2, 3, 4, 5).baud(tt.baud)
				w.units[3].dead = tt.fromStart
				var devices []config.Device
				var alive []string
				for u := range 5 {
					name := fmt.Sprint("d", u+1)
					devices = append(devices, dev(name, modbus.UnitID(u+1), registers(0, 20, point.Fastest)...))
					if u != 2 {
						alive = append(alive, name)
					}
				}
				r := start(t, serialBus(tt.baud), devices, w)
				died := time.Duration(0)
				if !tt.fromStart {
					time.Sleep(10 * time.Second)
					if s := r.share(time.Second, 9*time.Second, 20, append(alive, "d3")...); s < 0.999 {
						t.Errorf("%.1f %% of the wire with all alive", 100*s)
					}
					w.set(func() { w.units[3].dead = true })
					died = 10 * time.Second
				}
				time.Sleep(75 * time.Second)
				for from := died + 5*time.Second; from < died+75*time.Second; from += 10 * time.Second {
					s := r.share(from, 10*time.Second, 20, alive...)
					t.Logf("%v after the death: %.1f %%", from-died, 100*s)
					if s < tt.want-0.02 {
						t.Errorf("%v after the death: %.1f %% of the wire, want %.1f %%", from-died, 100*s, 100*tt.want)
					}
				}
				if s := r.share(died+5*time.Second, 70*time.Second, 20, alive...); s < tt.want {
					t.Errorf("%.1f %% of the wire in the long run, want %.1f %%", 100*s, 100*tt.want)
				}
				w.set(func() { w.units[3].dead = false })
				back := time.Since(w.started)
				time.Sleep(10 * time.Second)
				if n := r.good(back)["d3"]; n == 0 {
					t.Errorf("not read within 10 s of its return")
				}
				states, _ := r.take()
				states = slices.DeleteFunc(states, func(s string) bool { return !strings.HasPrefix(s, "d3") })
				want := []string{"d3 online", "d3 suspect", "d3 offline", "d3 online"}
				if tt.fromStart {
					want = want[1:]
				}
				if !slices.Equal(states, want) {
					t.Errorf("states %q, want %q", states, want)
				}
			})
		})
	}
}

// F2: of eight devices polled every second, however many are dead, the others
// keep their second.
func TestPeriodTable(t *testing.T) {
	for dead := 1; dead <= 7; dead++ {
		t.Run(fmt.Sprint(dead), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWire(1, 2, 3, 4, 5, 6, 7, 8).baud(9600)
				w.turnaround = 5 * time.Millisecond
				var devices []config.Device
				for u := range 8 {
					devices = append(devices, dev(fmt.Sprint("d", u+1), modbus.UnitID(u+1), registers(0, 20, second)...))
				}
				r := start(t, serialBus(9600), devices, w)
				time.Sleep(5 * time.Second)
				w.set(func() {
					for u := range dead {
						w.units[modbus.UnitID(u+1)].dead = true
					}
				})
				time.Sleep(70 * time.Second)
				for u := dead; u < 8; u++ {
					name := fmt.Sprint("d", u+1)
					var at []time.Duration
					for _, b := range r.since(20 * time.Second) {
						if b.samples[0].ID.Device() == name {
							at = append(at, b.at)
						}
					}
					worst := time.Duration(0)
					for i := 1; i < len(at); i++ {
						worst = max(worst, at[i]-at[i-1])
					}
					if len(at) < 54 || worst > 1600*time.Millisecond {
						t.Errorf("%s: %d polls in 55 s, up to %v apart", name, len(at), worst)
					}
				}
				for u := range dead {
					bad := 0
					for _, b := range r.since(5 * time.Second) {
						for _, s := range b.samples {
							if s.ID.Device() == fmt.Sprint("d", u+1) {
								bad++
							}
						}
					}
					if bad < 20 || bad > 40 {
						t.Errorf("d%d: %d samples since its death, want its points to go bad once or twice", u+1, bad)
					}
				}
			})
		})
	}
}

// The longer a device has been away, the seldomer it is tried, within bounds;
// and it is tried with the whole timeout at times, so one that has become slow is
// found again.
func TestProbes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2).baud(19200)
		r := start(t, serialBus(19200), []config.Device{
			dev("dead", 1, append(registers(0, 30, second), coil(100))...), dev("alive", 2, registers(0, 30, second)...),
		}, w)
		time.Sleep(5 * time.Second)
		w.set(func() { w.units[1].dead = true })
		from := time.Since(w.started)
		time.Sleep(4 * time.Hour)
		var probes []request
		for _, q := range w.requests(from) {
			if q.unit == 1 {
				probes = append(probes, q)
			}
		}
		for i := 5; i < len(probes); i++ {
			if n := probes[i].req; n.Function() != modbus.ReadCoils || n[4] != 1 {
				t.Fatalf("probe % x, want the smallest read", n)
			}
			gap, away := probes[i].at-probes[i-1].at, probes[i-1].at-from
			low, high := min(max(5*time.Second, away/17), 5*time.Minute), min(max(6*time.Second, away/15), 5*time.Minute+time.Second)
			if gap < low || gap > high+time.Second {
				t.Errorf("probe %d after %v, away for %v", i, gap, away)
			}
		}
		if n := len(probes); n < 110 || n > 150 {
			t.Errorf("%d probes in 4 h", n)
		}

		// It comes back, but takes ten times as long to answer.
		w.set(func() { w.units[1].dead, w.units[1].slow = false, 300*time.Millisecond })
		back := time.Since(w.started)
		time.Sleep(85 * time.Minute)
		if r.good(back)["dead"] == 0 {
			t.Errorf("not found again")
		}
		if s := r.device("dead"); s.State != Online || s.Answer.P99 < 300*time.Millisecond || s.Answer.P99 > 450*time.Millisecond {
			t.Errorf("status %+v", s)
		}
	})
}

// One lost answer is repeated and nobody hears of it; a poll that fails with its
// repeats makes its points bad, and they are good again soon.
func TestLostAnswers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1).baud(19200)
		lose := 0
		w.units[1].silent = func(modbus.Table, int, int) bool {
			lose--
			return lose >= 0
		}
		r := start(t, serialBus(19200), []config.Device{dev("d", 1, registers(0, 10, second)...)}, w)
		time.Sleep(5 * time.Second)
		r.take()
		w.set(func() { lose = 1 })
		time.Sleep(5 * time.Second)
		if states, logged := r.take(); states != nil || logged != nil {
			t.Errorf("states %q, log %q", states, logged)
		}
		if d := r.device("d"); d.Polls.Failed != 0 || d.Counters.Silent != 1 {
			t.Errorf("%+v", d)
		}
		from := time.Since(w.started)
		w.set(func() { lose = 2 })
		time.Sleep(5 * time.Second)
		if states, _ := r.take(); states != nil {
			t.Errorf("states %q, though the probe was answered", states)
		}
		bs := r.since(from)
		if bs[0].samples[0].Quality != point.Bad || bs[1].samples[0].Quality != point.Good || bs[1].at-bs[0].at > 100*time.Millisecond {
			t.Errorf("bad at %v, good at %v", bs[0].at, bs[1].at)
		}
		w.set(func() { lose = 3 })
		time.Sleep(5 * time.Second)
		if states, _ := r.take(); !slices.Equal(states, []string{"d suspect", "d online"}) {
			t.Errorf("states %q", states)
		}
	})
}

// A gateway that says that a unit behind it is down (exceptions 10, 11) speaks
// for itself, not for the unit.
func TestGatewayException(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2)
		w.turnaround = time.Millisecond
		w.units[1].refuse = func(modbus.Table, int, int) modbus.Exception { return modbus.GatewayTargetNoResponse }
		r := start(t, tcpBus(1), []config.Device{dev("gone", 1, registers(0, 10, second)...), dev("there", 2, registers(0, 10, second)...)}, w)
		time.Sleep(time.Minute)
		if d := r.device("gone"); d.State != Offline || !strings.Contains(d.Error, "exception 11") || d.Refused != nil {
			t.Errorf("%+v", d)
		}
		if d := r.device("there"); d.State != Online {
			t.Errorf("%+v", d)
		}
		if d := r.bus.Diagnosis(); !strings.Contains(d, "unit 1 alone") {
			t.Errorf("diagnosis %q", d)
		}
	})
}

func TestDiagnosis(t *testing.T) {
	damaged := func(modbus.PDU) (modbus.PDU, error) { return nil, fmt.Errorf("%w: CRC", modbus.ErrBadResponse) }
	tests := []struct {
		name string
		ail  func(w *wireFake)
		want string
	}{
		{"fine", func(*wireFake) {}, ""},
		{"all silent", func(w *wireFake) { w.units[1].dead, w.units[2].dead, w.units[3].dead = true, true, true }, "no device answers"},
		{"one silent", func(w *wireFake) { w.units[2].dead = true }, "unit 2 alone does not answer"},
		{"all damaged", func(w *wireFake) { w.units[1].before, w.units[2].before, w.units[3].before = damaged, damaged, damaged }, "parity, baud rate and wiring"},
		{"one damaged", func(w *wireFake) { w.units[3].before = damaged }, "unit 3 alone answers damaged frames"},
		{"mixed", func(w *wireFake) { w.units[1].before, w.units[3].dead = damaged, true }, "1 of 3 devices do not answer, 1 answer damaged"},
		{"all ill", func(w *wireFake) { w.units[1].before, w.units[2].before, w.units[3].dead = damaged, damaged, true }, "termination"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWire(1, 2, 3).baud(19200)
				tt.ail(w)
				r := start(t, serialBus(19200), []config.Device{
					dev("a", 1, registers(0, 3, second)...), dev("b", 2, registers(0, 3, second)...), dev("c", 3, registers(0, 3, second)...),
				}, w)
				time.Sleep(30 * time.Second)
				if got := r.bus.Diagnosis(); !strings.Contains(got, tt.want) || (got == "") != (tt.want == "") {
					t.Errorf("diagnosis %q, want %q", got, tt.want)
				}
			})
		})
	}
}

// On one connection with several requests under way, a dead unit does not make
// the others wait, and one loss is counted once.
func TestDeadInFlight(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2)
		w.turnaround = 10 * time.Millisecond
		r := start(t, tcpBus(8), []config.Device{
			dev("a", 1, registers(0, 2000, point.Fastest)...), dev("b", 2, registers(0, 1000, second)...),
		}, w)
		time.Sleep(5 * time.Second)
		w.set(func() { w.units[1].dead = true })
		time.Sleep(30 * time.Second)
		if polls := r.device("b").Polls; polls.Missed > 0 || polls.Failed > 0 || polls.LateMax > time.Second {
			t.Errorf("b: %+v", polls)
		}
		states, _ := r.take()
		if want := []string{"a online", "b online", "a suspect", "a offline"}; !slices.Equal(states, want) {
			t.Errorf("states %q, want %q", states, want)
		}
		w.set(func() { w.units[1].dead = false })
		back := time.Since(w.started)
		time.Sleep(10 * time.Second)
		if r.good(back)["a"] == 0 {
			t.Error("not read again")
		}
	})
}
