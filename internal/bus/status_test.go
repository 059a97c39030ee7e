package bus

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
)

func TestCounters(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2)
		w.turnaround = 3 * time.Millisecond
		n := 0
		w.units[2].before = func(modbus.PDU) (modbus.PDU, error) {
			if n++; n%10 == 0 {
				return nil, modbus.MemoryParityError
			}
			return nil, nil
		}
		r := start(t, tcpBus(1), []config.Device{dev("a", 1, registers(0, 3, second)...), dev("b", 2, registers(0, 3, second)...)}, w)
		time.Sleep(100500 * time.Millisecond)
		s := r.bus.Status()
		a, b := s.Devices[0], s.Devices[1]
		if a.State != Online || a.Unit != 1 || a.Points != 3 || a.Reads != 1 || a.Error != "" || time.Since(a.Answered) > time.Second || a.Since.IsZero() {
			t.Errorf("a: %+v", a)
		}
		if a.Counters.Requests < 100 || a.Counters.Requests != a.Counters.Responses || a.Counters.Errors != 0 {
			t.Errorf("a: %+v", a.Counters)
		}
		if a.Answer.Min != 3*time.Millisecond || a.Answer.Avg != 3*time.Millisecond || a.Answer.P99 < 3*time.Millisecond || a.Answer.P99 > 4*time.Millisecond {
			t.Errorf("a: %+v", a.Answer)
		}
		if b.Counters.Exceptions != 10 || b.Counters.Errors != 10 || b.Polls.Failed != 10 || b.Error != "exception 8: memory parity error" || b.ErrorTime.IsZero() || b.State != Online {
			t.Errorf("b: %+v", b)
		}
		if want := a.Counters.Requests + b.Counters.Requests; s.Counters.Requests != want || s.Busy != time.Duration(want)*3*time.Millisecond || !s.Connected || s.Up != 100500*time.Millisecond {
			t.Errorf("bus: %+v", s)
		}
	})
	c := Counters{Requests: 125, Responses: 89, Errors: 3}
	if got := c.String(); got != "T125R089E003" {
		t.Errorf("String = %s", got)
	}
}

func TestHistogram(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(1000, int64(time.Hour)).Draw(t, "d"))
		i := bucketOf(d)
		if over := above(i); over < d-time.Microsecond || float64(over) > 1.25*float64(d)+1000 {
			t.Fatalf("%v is in bucket %d, up to %v", d, i, over)
		}
		if i > 0 && above(i-1) > d {
			t.Fatalf("%v is in bucket %d, but less than %v", d, i, above(i-1))
		}
	})
	var h histogram
	if h.answer() != (Answer{}) {
		t.Error("an answer time without an answer")
	}
	for range 98 {
		h.add(time.Millisecond)
	}
	h.add(time.Second)
	h.add(time.Second)
	if a := h.answer(); a.P99 < time.Second || a.P99 > 1300*time.Millisecond || a.Min != time.Millisecond {
		t.Errorf("%+v", a)
	}
	h.add(0)
	h.add(-time.Second)
	h.add(1000 * time.Hour)
}
