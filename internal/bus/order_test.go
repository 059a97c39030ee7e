package bus

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// A read on demand in the middle of a poll is newer than what the poll read
// before it: what is emitted of a point never goes back in time.
func TestNothingGoesBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		w.turnaround = 10 * time.Millisecond
		var count uint16 // of readings
		w.units[1].onReads = func(_ modbus.Table, _ uint16, dst []uint16) bool {
			for i := range dst {
				count++
				dst[i] = count
			}
			return true
		}
		d := dev("d", 1, every(holding(0, point.Uint16), point.Fastest), every(holding(1000, point.Uint16), point.Fastest),
			every(holding(2000, point.Uint16), point.Fastest), every(holding(3000, point.Uint16), point.Fastest))
		d.Holes = 0
		r := start(t, tcpBus(1), []config.Device{d}, w)
		for range 200 {
			if _, err := r.bus.Read(context.Background(), "d.h0", "d.h2000"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
		}
		last := make(map[point.ID]int64)
		for _, b := range r.since(0) {
			for _, s := range b.samples {
				if n, _ := s.Value.Int64(); n <= last[s.ID] {
					t.Fatalf("%v after %d", s, last[s.ID])
				} else {
					last[s.ID] = n
				}
			}
		}
	})
}
