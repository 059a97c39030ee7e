package bus

import (
	"context"
	"math/rand/v2"
	"sync"
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

// slowStart is a device that counts its readings of holding 0. The worker of a
// read on demand comes to it only after a poll that was begun later has passed,
// as it may happen to any goroutine.
type slowStart struct {
	mu     sync.Mutex
	count  uint16
	asked  chan struct{} // not nil: the next read of holding 0 is the one on demand, and waits for it
	passed chan struct{} // not nil: closed when a poll has read holding 0
}

func (s *slowStart) Do(_ context.Context, _ modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	other := req[1] != 0 || req[2] != 0
	s.mu.Lock()
	asked, passed := s.asked, s.passed
	if other {
		s.passed = nil
	} else {
		s.asked = nil
	}
	s.mu.Unlock()
	switch {
	case other:
		time.Sleep(10 * time.Millisecond)
		if passed != nil {
			close(passed)
		}
		time.Sleep(300 * time.Millisecond) // the poll ends last
		return modbus.PDU{3, 2, 0, 0}, nil
	case asked != nil:
		<-asked
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	return modbus.PDU{3, 2, byte(s.count >> 8), byte(s.count)}, nil
}

// With several requests under way their order on the wire is not the order in
// which they were made.
func TestNothingGoesBackAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var last int64
		emit := func(samples []point.Sample) {
			for _, s := range samples {
				if n, ok := s.Value.Int64(); ok && s.ID == "d.h0" {
					if n <= last {
						t.Errorf("%d emitted after %d", n, last)
					}
					last = n
				}
			}
		}
		d := dev("d", 1, every(holding(0, point.Uint16), second), every(holding(1000, point.Uint16), second))
		d.Holes = 0
		ep := new(slowStart)
		b := New(tcpBus(16), []config.Device{d}, ep, emit, quiet)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = b.Run(ctx) }) // ends with ctx
		for range 5 {
			time.Sleep(1500 * time.Millisecond)
			passed := make(chan struct{})
			ep.mu.Lock()
			ep.asked, ep.passed = passed, passed
			ep.mu.Unlock()
			if _, err := b.Read(ctx, "d.h0"); err != nil {
				t.Error(err)
			}
			<-passed
		}
		cancel()
		running.Wait()
	})
}
