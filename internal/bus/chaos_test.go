package bus

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Devices that fail in every way at random, a wire that comes and goes, writes
// and reads on demand all the while: no good sample is ever wrong, nothing hangs,
// and when the faults end everything is read again.
func TestChaos(t *testing.T) {
	for _, inFlight := range []int{1, 1, 1, 3, 16} {
		seed := rand.Uint64()
		bubble(t, func(t *testing.T) {
			t.Logf("seed %d, %d in flight", seed, inFlight)
			rnd := rand.New(rand.NewPCG(seed, 1))
			w := newWire(1, 2, 3)
			w.turnaround = 20 * time.Millisecond
			faults := true
			ail := func(modbus.PDU) (modbus.PDU, error) {
				if !faults {
					return nil, nil
				}
				switch rnd.IntN(12) {
				case 0:
					return nil, modbus.ErrNoResponse
				case 1:
					return nil, fmt.Errorf("%w: CRC", modbus.ErrBadResponse)
				case 2:
					return nil, modbus.Exception(1 + rnd.IntN(11))
				case 3:
					return modbus.PDU{3, 2, 0}, nil // a lie
				}
				return nil, nil
			}
			for _, u := range w.units {
				u.before = ail
			}
			var devices []config.Device
			intervals := []point.Interval{point.Fastest, second, second, 3 * second, point.Once, point.Never}
			for u := range 3 {
				var points []point.Point
				for a := range 20 {
					p := every(holding(uint16(a*(1+rnd.IntN(3))*7), point.Float32), intervals[rnd.IntN(len(intervals))])
					p.Type = point.Uint32
					p.Group = []string{"", "", "g"}[rnd.IntN(3)]
					points = append(points, p)
				}
				d := dev(fmt.Sprint("d", u+1), modbus.UnitID(u+1), points...)
				for i := range d.Points {
					d.Points[i].ID = point.ID(fmt.Sprintf("%s.p%d", d.Name, i))
				}
				w := writable(every(holding(900, point.Uint32), second), 0)
				w.ID = point.ID(d.Name + ".w")
				d.Points = append(d.Points, w)
				devices = append(devices, d)
			}
			r := start(t, tcpBus(inFlight), devices, w)

			ctx, cancel := context.WithCancel(t.Context())
			var all sync.WaitGroup
			for u := range 3 {
				all.Go(func() {
					for n := int64(0); ctx.Err() == nil; n++ {
						limited, cancel := context.WithTimeout(ctx, rand.N(5*time.Second))
						_ = r.bus.Write(limited, point.ID(fmt.Sprintf("d%d.w", u+1)), point.IntValue(n<<16|n))
						_, _ = r.bus.Read(limited, point.ID(fmt.Sprintf("d%d.p3", u+1)), point.ID(fmt.Sprintf("d%d.w", u%3+1)))
						cancel()
						time.Sleep(rand.N(time.Second))
					}
				})
			}
			for range 20 {
				time.Sleep(rand.N(5 * time.Second))
				w.set(func() {
					w.down = rnd.IntN(5) == 0
					for _, u := range w.units {
						u.dead = rnd.IntN(5) == 0
					}
				})
			}
			w.set(func() {
				faults, w.down = false, false
				w.turnaround = 400 * time.Millisecond // spares the test some work
				for _, u := range w.units {
					u.dead = false
				}
			})
			cancel()
			all.Wait()
			// All that was learned from the faults is forgotten within a time
			// that doubled not very often.
			time.Sleep(40 * time.Minute)
			r.stop()

			for _, b := range r.since(0) {
				for _, s := range b.samples {
					at, _ := r.bus.find(s.ID)
					p := &at.d.points[at.i]
					n, _ := s.Value.Int64()
					lower := n & 0xFFFF
					switch {
					case s.Quality == point.Bad:
						if !s.Value.IsZero() {
							t.Errorf("%v", s)
						}
					case s.ID.Name() == "w" && (n>>16 == lower || n == 1900<<16|1901):
					case n != int64(p.Address+1000)<<16|int64(p.Address+1001):
						t.Errorf("%v is wrong", s)
					}
				}
			}
			last := r.last()
			for _, d := range devices {
				for _, p := range d.Points {
					if s := last[p.ID]; p.Every != point.Never && (s.Quality == point.Bad || s.ID == "") {
						t.Errorf("%s, every %d, is not read again: %v, %+v", p.ID, p.Every, s, r.device(d.Name))
					}
				}
			}
			if n := len(r.bus.asks) + len(r.bus.writes) + r.bus.out; n != 0 {
				t.Errorf("%d requests left over", n)
			}
			for _, d := range r.bus.devices {
				if len(d.polls) != 0 || d.writes != 0 || d.writer != nil {
					t.Errorf("left over at %s: %d polls, %d fences", d.cfg.Name, len(d.polls), d.writes)
				}
			}
		})
	}
}
