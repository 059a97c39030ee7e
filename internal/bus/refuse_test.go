package bus

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// unmapped refuses reads that touch an address that has is not true of.
func unmapped(has func(addr int) bool) func(modbus.Table, int, int) modbus.Exception {
	return func(_ modbus.Table, addr, n int) modbus.Exception {
		for a := addr; a < addr+n; a++ {
			if !has(a) {
				return modbus.IllegalDataAddress
			}
		}
		return 0
	}
}

// F3: whatever a device refuses, all that it answers is read, in the very first
// poll, and from then on with as few requests as it allows.
func TestRefusals(t *testing.T) {
	at := func(addrs ...int) []point.Point {
		var ps []point.Point
		for _, a := range addrs {
			ps = append(ps, holding(uint16(a), point.Uint16))
		}
		return ps
	}
	tests := []struct {
		name    string
		points  []point.Point
		refuse  func(t modbus.Table, addr, n int) modbus.Exception
		refused []point.ID
		reads   int // in the end
		learn   int // requests of the first poll, at most
	}{
		{"a hole", at(0, 1, 2, 10, 11, 12), unmapped(func(a int) bool { return a < 3 || a >= 10 }), nil, 2, 6},
		{"many holes", at(0, 10, 20, 30, 40), unmapped(func(a int) bool { return a%10 == 0 }), nil, 5, 15},
		{"a longest read", registers(0, 100, second), func(_ modbus.Table, _, n int) modbus.Exception {
			if n > 20 {
				return modbus.IllegalDataValue
			}
			return 0
		}, nil, 5, 20},
		{"one register that is not there", registers(0, 100, second), unmapped(func(a int) bool { return a != 37 }), []point.ID{"d.h37"}, 2, 20},
		{"the first and the last", registers(0, 30, second), unmapped(func(a int) bool { return a > 0 && a < 29 }), []point.ID{"d.h0", "d.h29"}, 1, 20},
		{"nothing", registers(0, 10, second), func(modbus.Table, int, int) modbus.Exception { return modbus.IllegalDataAddress },
			[]point.ID{"d.h0", "d.h1", "d.h2", "d.h3", "d.h4", "d.h5", "d.h6", "d.h7", "d.h8", "d.h9"}, 0, 21},
		{"a table", append(registers(0, 10, second), coil(0), coil(1)), func(t modbus.Table, _, _ int) modbus.Exception {
			if t == modbus.Coils {
				return modbus.IllegalFunction
			}
			return 0
		}, []point.ID{"d.c0", "d.c1"}, 1, 2},
		{"coils from 0 on only", []point.Point{coil(0), coil(8), coil(100)}, func(t modbus.Table, addr, _ int) modbus.Exception {
			if addr != 0 {
				return modbus.IllegalDataAddress
			}
			return 0
		}, nil, 1, 1},
		{"a bound within", registers(90, 20, second), func(_ modbus.Table, addr, n int) modbus.Exception {
			if addr < 100 && addr+n > 100 {
				return modbus.IllegalDataAddress
			}
			return 0
		}, nil, 2, 10},
		{"some other exception", registers(0, 10, second), func(_ modbus.Table, addr, n int) modbus.Exception {
			switch {
			case addr <= 5 && addr+n > 5 && n > 1:
				return modbus.IllegalDataAddress
			case addr == 5:
				return modbus.ServerDeviceFailure
			}
			return 0
		}, []point.ID{"d.h5"}, 2, 14},
	}
	for _, tt := range tests {
		for _, inFlight := range []int{1, 4} {
			t.Run(fmt.Sprint(tt.name, "/", inFlight), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					w := newWire(1)
					w.turnaround = time.Millisecond
					w.units[1].refuse = tt.refuse
					r := start(t, tcpBus(inFlight), []config.Device{dev("d", 1, tt.points...)}, w)
					time.Sleep(200 * time.Millisecond) // one poll
					if n := len(w.requests(0)); n > tt.learn {
						t.Errorf("%d requests to learn, want at most %d", n, tt.learn)
					}
					last := r.last()
					if len(last) != len(tt.points) {
						t.Errorf("samples of %d points, want %d", len(last), len(tt.points))
					}
					for id, s := range last {
						if want := slices.Contains(tt.refused, id); (s.Quality == point.Bad) != want {
							t.Errorf("%v, refused: %v", s, want)
						}
					}
					bs := r.since(0)
					if len(bs) != 1 || len(bs[0].samples) != len(tt.points) {
						t.Errorf("%d batches, the first of %d samples, want one of all", len(bs), len(bs[0].samples))
					}

					from := time.Since(w.started)
					time.Sleep(40 * time.Second)
					if d := r.device("d"); !slices.Equal(d.Refused, tt.refused) || d.Reads != tt.reads || d.State != Online {
						t.Errorf("refused %q in %d reads, %v, want %q in %d", d.Refused, d.Reads, d.State, tt.refused, tt.reads)
					}
					for _, q := range w.requests(from) {
						if q.err != nil {
							t.Fatalf("% x: %v although it was refused before", q.req, q.err)
						}
					}
					if tt.reads > 0 {
						if want := len(tt.points) - len(tt.refused); r.good(from)["d"] < 40*want {
							t.Errorf("%d good samples in 40 s, want %d", r.good(from)["d"], 40*want)
						}
					}

					// A read on demand knows it, too.
					var ids []point.ID
					for _, p := range tt.points {
						if id := point.ID(fmt.Sprintf("d.%c%d", p.Table.String()[0], p.Address)); !slices.Contains(tt.refused, id) {
							ids = append(ids, id)
						}
					}
					from = time.Since(w.started)
					if samples, err := r.bus.Read(t.Context(), ids...); err != nil {
						t.Errorf("Read of %d: %v", len(samples), err)
					}
					if n := len(w.requests(from)); n > 2*tt.reads { // a poll may come between
						t.Errorf("%d requests to read what is polled in %d", n, tt.reads)
					}

					// It is tried anew, seldom, without a word; and believed.
					r.take()
					w.set(func() { w.units[1].refuse = nil })
					time.Sleep(2 * time.Minute)
					if d := r.device("d"); d.Refused != nil || d.Split {
						t.Errorf("still refused %q, split %v", d.Refused, d.Split)
					}
					for _, p := range tt.points {
						id := point.ID(fmt.Sprintf("d.%c%d", p.Table.String()[0], p.Address))
						if s := r.last()[id]; s.Quality != point.Good {
							t.Errorf("%v, want it to be good", s)
						}
					}
					if _, logged := r.take(); logged != nil {
						t.Errorf("log %q", logged)
					}
				})
			})
		}
	}
}

// What is learned is doubted after a minute, then 2, 4 … and at last once a day.
func TestForgetting(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		w.turnaround = time.Millisecond
		w.units[1].refuse = unmapped(func(a int) bool { return a != 3 })
		r := start(t, tcpBus(1), []config.Device{dev("d", 1, registers(0, 6, 60*second)...)}, w)
		time.Sleep(7 * 24 * time.Hour)
		var whole []time.Duration
		for _, q := range w.requests(0) {
			if q.req[4] == 6 {
				whole = append(whole, q.at)
			}
		}
		if n := len(whole); n < 14 || n > 19 {
			t.Fatalf("the whole was tried %d times in a week: %v", n, whole)
		}
		for i := 2; i < len(whole); i++ {
			now, before := whole[i]-whole[i-1], whole[i-1]-whole[i-2]
			if now < min(2*before-2*time.Minute, 24*time.Hour) || now > 24*time.Hour+2*time.Minute {
				t.Errorf("tried after %v, then after %v", before, now)
			}
		}
		if _, logged := r.take(); len(logged) != 3 {
			t.Errorf("log %q, want: online, a read refused, a point refused", logged)
		}
		if n := r.good(0)["d"]; n < 5*7*24*60-50 {
			t.Errorf("%d good samples", n)
		}
	})
}

// A group that a device refuses in one read is read in parts, and its values say
// that they may not belong together.
func TestRefusedGroup(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		w.units[1].refuse = func(_ modbus.Table, _, n int) modbus.Exception {
			if n > 4 {
				return modbus.IllegalDataValue
			}
			return 0
		}
		points := registers(0, 8, second)
		for i := range points[:6] {
			points[i].Group = "g"
		}
		r := start(t, tcpBus(1), []config.Device{dev("d", 1, points...)}, w)
		time.Sleep(20 * time.Second)
		for id, s := range r.last() {
			want := point.Uncertain
			if id == "d.h6" || id == "d.h7" {
				want = point.Good
			}
			if s.Quality != want {
				t.Errorf("%v, want %v", s, want)
			}
		}
		if _, logged := r.take(); !slices.ContainsFunc(logged, func(s string) bool { return strings.Contains(s, "may not belong together") }) {
			t.Errorf("log %q", logged)
		}
	})
	// A point between those of the group shares a read with one of them.
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		w.units[1].refuse = func(_ modbus.Table, _, n int) modbus.Exception {
			if n > 4 {
				return modbus.IllegalDataValue
			}
			return 0
		}
		points := append(registers(0, 2, second), registers(6, 1, second)...)
		points[0].Group, points[2].Group = "g", "g"
		r := start(t, tcpBus(1), []config.Device{dev("d", 1, points...)}, w)
		time.Sleep(20 * time.Second)
		if d := r.device("d"); d.Reads != 2 || len(d.Refused) > 0 {
			t.Errorf("%d reads, refused %q; want 2, none", d.Reads, d.Refused)
		}
	})
}

// Some devices say nothing at all to a read that they do not like. The others
// of their reads go on, and it is split, too.
func TestSilentReads(t *testing.T) {
	t.Run("some answers are lost", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			w := newWire(1).baud(19200)
			chance := rand.New(rand.NewPCG(1, 2))
			w.units[1].silent = func(modbus.Table, int, int) bool { return chance.IntN(100) < 15 }
			points := append(registers(0, 4, second), registers(500, 1, second)...)
			r := start(t, serialBus(19200), []config.Device{dev("d", 1, points...)}, w)
			time.Sleep(2 * time.Hour)
			good := make(map[point.ID]int)
			for _, b := range r.since(0) {
				for _, s := range b.samples {
					if s.Quality == point.Good {
						good[s.ID]++
					}
				}
			}
			for _, id := range []point.ID{"d.h0", "d.h3", "d.h500"} { // polls are cut short now and then
				if good[id] < 2*60*60*90/100 {
					t.Errorf("%s: %d good samples in two hours", id, good[id])
				}
			}
			if d := r.device("d"); len(d.Refused) > 0 || d.Split {
				t.Errorf("refused %q, split: %v", d.Refused, d.Split)
			}
		})
	})
	t.Run("most answers are lost", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			w := newWire(1).baud(19200)
			asked := 0
			w.units[1].silent = func(modbus.Table, int, int) bool {
				asked++
				return asked%3 != 0 // the request and its repeat; the probe is answered
			}
			r := start(t, serialBus(19200), []config.Device{dev("d", 1, registers(0, 1, second)...)}, w)
			time.Sleep(20 * time.Second)
			if d := r.device("d"); d.State != Online || len(d.Refused) > 0 {
				t.Errorf("%v, refused %q: the very read that is answered now and then", d.State, d.Refused)
			}
		})
	})

	for _, tt := range []struct {
		name   string
		points []point.Point
		bad    func(addr, n int) bool
		lost   []point.ID
	}{
		{"across a hole", append(registers(0, 4, second), registers(10, 4, second)...), func(addr, n int) bool { return addr < 4 && addr+n > 4 || addr < 10 && addr+n > 4 }, nil},
		{"one register", registers(0, 16, second), func(addr, n int) bool { return addr <= 5 && addr+n > 5 }, []point.ID{"d.h5"}},
		{"one of several reads", append(registers(0, 4, second), registers(500, 4, second)...), func(addr, n int) bool { return addr >= 500 }, []point.ID{"d.h500", "d.h501", "d.h502", "d.h503"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWire(1, 2).baud(19200)
				w.units[1].silent = func(_ modbus.Table, addr, n int) bool { return tt.bad(addr, n) }
				r := start(t, serialBus(19200), []config.Device{dev("d", 1, tt.points...), dev("other", 2, registers(0, 10, second)...)}, w)
				time.Sleep(30 * time.Second)
				from := time.Since(w.started)
				time.Sleep(25 * time.Second)
				for id, s := range r.last() {
					if want := slices.Contains(tt.lost, id); (s.Quality == point.Bad) != want {
						t.Errorf("%v, silent: %v", s, want)
					}
				}
				if n := r.good(from); n["d"] < 25*(len(tt.points)-len(tt.lost)) || n["other"] < 250 {
					t.Errorf("good samples in 25 s: %v", n)
				}
				for _, q := range w.requests(from) {
					if q.err != nil {
						t.Errorf("%v: % x: %v", q.at, q.req, q.err)
					}
				}
				if d := r.device("d"); d.State != Online || !slices.Equal(d.Refused, tt.lost) {
					t.Errorf("%v, refused %q", d.State, d.Refused)
				}

				// Doubted now and then, at little cost, and without flapping.
				r.take()
				time.Sleep(80 * time.Minute)
				states, _ := r.take()
				if len(states) > 0 {
					t.Errorf("states %q", states)
				}
				if d := r.device("other"); d.Polls.Missed > 3 || d.Polls.Failed > 0 {
					t.Errorf("other: %+v", d.Polls)
				}
				if n := r.good(from)["d"]; n < 80*60*(len(tt.points)-len(tt.lost))*99/100 {
					t.Errorf("%d good samples in 80 min", n)
				}
			})
		})
	}
}

// A busy device is asked later, and its neighbours meanwhile.
func TestBusy(t *testing.T) {
	for _, e := range []modbus.Exception{modbus.ServerDeviceBusy, modbus.Acknowledge} {
		bubble(t, func(t *testing.T) {
			w := newWire(1, 2)
			w.turnaround = time.Millisecond
			busy := 0
			w.units[1].refuse = func(modbus.Table, int, int) modbus.Exception {
				if busy--; busy >= 0 {
					return e
				}
				return 0
			}
			r := start(t, tcpBus(1), []config.Device{dev("d", 1, registers(0, 3, second)...), dev("other", 2, registers(0, 3, point.Fastest)...)}, w)
			time.Sleep(5 * time.Second)
			w.set(func() { busy = 3 })
			time.Sleep(5 * time.Second)
			if d := r.device("d"); d.Polls.Failed != 0 || d.State != Online || d.Counters.Exceptions != 3 {
				t.Errorf("%+v", d)
			}
			w.set(func() { busy = 1 << 30 })
			time.Sleep(10 * time.Second)
			if d := r.device("d"); d.Polls.Failed < 3 || d.State != Online || r.last()["d.h0"].Quality != point.Bad {
				t.Errorf("%+v", d)
			}
			if n := r.good(10 * time.Second)["other"]; n < 3*9000 {
				t.Errorf("other: %d samples in 10 s", n)
			}
			w.set(func() { busy = 0 })
			time.Sleep(3 * time.Second)
			if r.last()["d.h0"].Quality != point.Good {
				t.Error("not read again")
			}
		})
	}
}

// A device of random refusals: every point that it answers alone is read, and no
// other is; soon there are no refusals any more.
func TestRefusalsConverge(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(rt, "points")
		var points []point.Point
		used := make(map[uint16]bool)
		for range n {
			a := uint16(rapid.IntRange(0, 120).Draw(rt, "address"))
			if used[a] {
				continue
			}
			used[a] = true
			p := holding(a, rapid.SampledFrom([]point.Type{point.Uint16, point.Float32}).Draw(rt, "type"))
			p.Every = rapid.SampledFrom([]point.Interval{second, 2 * second}).Draw(rt, "every")
			p.Group = rapid.SampledFrom([]string{"", "", "", "g"}).Draw(rt, "group")
			points = append(points, p)
		}
		missing := make(map[int]bool)
		for a := range 130 {
			missing[a] = rapid.IntRange(0, 5).Draw(rt, "missing") == 0
		}
		longest := rapid.IntRange(2, 130).Draw(rt, "longest")
		refuse := func(_ modbus.Table, addr, n int) modbus.Exception {
			if n > longest {
				return modbus.IllegalDataValue
			}
			return unmapped(func(a int) bool { return !missing[a] })(0, addr, n)
		}
		inFlight := rapid.SampledFrom([]int{1, 4}).Draw(rt, "in flight")
		var wrong error // rapid must not be told from within the bubble
		bubble(t, func(t *testing.T) {
			w := newWire(1)
			w.turnaround = time.Millisecond
			w.units[1].refuse = refuse
			r := start(t, tcpBus(inFlight), []config.Device{dev("d", 1, points...)}, w)
			time.Sleep(20 * time.Second)
			from := time.Since(w.started)
			time.Sleep(10 * time.Second)
			r.stop()
			for _, q := range w.requests(from) {
				if q.err != nil && !strings.Contains(q.err.Error(), "context") {
					wrong = fmt.Errorf("% x: %v after 20 s", q.req, q.err)
				}
			}
			last := r.last()
			for _, p := range points {
				s := last[point.ID(fmt.Sprintf("d.h%d", p.Address))]
				if alone := refuse(p.Table, int(p.Address), p.Words()) == 0; alone != (s.Quality != point.Bad) || s.ID == "" {
					wrong = fmt.Errorf("%v, answered alone: %v", s, alone)
				}
			}
		})
		if wrong != nil {
			rt.Fatal(wrong)
		}
	})
}
