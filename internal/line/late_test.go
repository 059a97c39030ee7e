package line

import (
	"bytes"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
)

func holding(n uint16) modbus.PDU { return modbus.ReadRequest(modbus.HoldingRegisters, 0, n) }

func TestConfusable(t *testing.T) {
	coils := func(n uint16) modbus.PDU { return modbus.ReadRequest(modbus.Coils, 0, n) }
	tests := []struct {
		name     string
		old, req modbus.PDU
		want     bool
	}{
		{"same read", holding(2), holding(2), true},
		{"another length", holding(2), holding(3), false},
		{"another address", modbus.ReadRequest(modbus.HoldingRegisters, 9, 2), holding(2), true},
		{"another table", modbus.ReadRequest(modbus.InputRegisters, 0, 2), holding(2), false},
		{"coils in as many bytes", coils(9), coils(16), true},
		{"coils in more bytes", coils(16), coils(17), false},
		{"same write", modbus.WriteRegisterRequest(1, 2), modbus.WriteRegisterRequest(1, 2), true},
		{"another value", modbus.WriteRegisterRequest(1, 2), modbus.WriteRegisterRequest(1, 3), false},
		{"same place, other values", modbus.WriteRegistersRequest(1, []uint16{1, 2}), modbus.WriteRegistersRequest(1, []uint16{3, 4}), true},
		{"another place", modbus.WriteRegistersRequest(1, []uint16{1, 2}), modbus.WriteRegistersRequest(2, []uint16{1, 2}), false},
		{"read and write", modbus.ReadWriteRequest(0, 2, 0, []uint16{1}), modbus.ReadWriteRequest(0, 2, 0, []uint16{2}), true},
		{"no known length", modbus.ServerIDRequest(), modbus.ServerIDRequest(), true},
	}
	for _, tt := range tests {
		if got := confusable(tt.old, tt.req); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestLedger(t *testing.T) {
	now := time.Now()
	at := func(ms int) time.Time { return now.Add(time.Duration(ms) * time.Millisecond) }
	const timeout = 100 * time.Millisecond
	const status = -1
	quantity := func(p modbus.PDU) int {
		if p.Function() == modbus.ReadExceptionStatus {
			return status
		}
		return quantity(p)
	}
	var g ledger
	next := func(what string, req modbus.PDU, ms, fence, wait int) {
		t.Helper()
		f, w := g.next(req, at(ms))
		var want time.Time
		if wait > 0 {
			want = at(wait)
		}
		if quantity(f) != fence || !w.Equal(want) {
			t.Errorf("%s: fence of %d, wait until %v; want fence of %d, until %v", what, quantity(f), w.Sub(now), fence, want.Sub(now))
		}
	}
	next("nothing owed", holding(5), 0, 0, 0)
	g.owe(holding(5), at(0), timeout)
	next("same shape", holding(5), 100, 4, 0)
	next("another shape", holding(6), 100, 0, 0)
	g.owe(holding(4), at(100), timeout)
	next("the fence was lost too", holding(5), 200, 3, 0)
	next("when all is long past", holding(5), 1200, 0, 0)

	g = ledger{}
	g.owe(holding(1), at(0), timeout)
	next("one register", holding(1), 100, status, 0)
	g.deaf = at(1000)
	next("one register", holding(1), 100, 0, 200)
	next("twice the time later", holding(1), 200, 0, 0)
	next("two registers have another shape", holding(2), 100, 0, 0)
	if !g.pay(modbus.PDU{3, 2, 0, 0}, at(350)) {
		t.Error("the late answer is not known")
	}
	next("paid", holding(1), 360, 0, 0)
	g.owe(holding(1), at(400), timeout)
	next("the unit was seen to take 350 ms", holding(1), 500, 0, 1100)
	g.answered(holding(1), false, at(500), at(510))
	next("answered", holding(1), 510, 0, 0)
	for range 100 {
		g.answered(holding(1), false, at(500), at(510))
	}
	if g.slowest > 20*time.Millisecond {
		t.Errorf("slowest %v does not fade", g.slowest)
	}

	g = ledger{}
	g.answered(modbus.ReadRequest(modbus.InputRegisters, 7, 20), false, at(0), at(1))
	g.owe(holding(1), at(0), timeout)
	f, _ := g.next(holding(1), at(100))
	if want := modbus.ReadRequest(modbus.InputRegisters, 7, 8); !bytes.Equal(f, want) {
		t.Errorf("fence % x, want % x, of what was read before", []byte(f), []byte(want))
	}
	g.owe(f, at(100), timeout)
	next("that fence was lost", holding(1), 200, 7, 0)
	g.answered(modbus.ReadRequest(modbus.InputRegisters, 7, 20), true, at(300), at(301))
	g.owe(holding(1), at(400), timeout)
	next("what it refuses by now is no fence", holding(1), 500, status, 0)
	write := modbus.WriteRegistersRequest(9, []uint16{1})
	g.owe(write, at(500), timeout)
	g.answered(holding(5), false, at(500), at(501))
	g.owe(write, at(600), timeout)
	next("the same write with other values", modbus.WriteRegistersRequest(9, []uint16{2}), 700, 5, 0)

	g = ledger{}
	g.owe(holding(5), at(0), timeout)
	g.owe(holding(3), at(100), timeout)
	if g.disputed(write) || !g.disputed(holding(9)) || len(g.owed) != 1 || !g.disputed(holding(9)) || g.disputed(holding(9)) {
		t.Errorf("refusals of what is owed: %d left", len(g.owed))
	}

	next("a unit that refuses is asked for its status", holding(9), 110, 0, 0)
	g.owe(holding(9), at(200), timeout)
	next("a unit that refuses is asked for its status", holding(9), 210, status, 0)
	if !g.disputed(holding(9)) {
		t.Error("the third refusal is not disputed")
	}
	g.owe(holding(9), at(300), timeout)
	if g.disputed(holding(9)) {
		t.Errorf("%d refusals in a row are disputed", mostDisputed+1)
	}

	g = ledger{}
	ask := modbus.PDU{byte(modbus.ReadExceptionStatus)}
	g.owe(holding(1), at(0), timeout)
	g.owe(ask, at(100), timeout)
	next("a status request got no answer", holding(1), 200, status, 0)
	g.owe(ask, at(200), timeout)
	g.answered(ask, true, at(300), at(310))
	if len(g.owed) != 2 {
		t.Errorf("%d owed, want the other status requests: it was the answer to the first, perhaps", len(g.owed))
	}
	next("but what came before them is done with", holding(1), 310, 0, 0)
	g.owe(holding(1), at(320), timeout)
	next("what comes after them is not", holding(1), 410, status, 0)
	g.answered(ask, true, at(410), at(411))
	next("the second answer, perhaps", holding(1), 410, status, 0)
	g.answered(ask, true, at(420), at(421))
	next("the third", holding(1), 420, status, 0)
	g.answered(ask, true, at(430), at(431))
	next("the fourth", holding(1), 440, 0, 0)

	g = ledger{}
	g.owe(ask, at(0), timeout)
	g.answered(holding(1), false, at(100), at(101))
	g.owe(holding(1), at(300), timeout)
	next("a unit that ignores the status request", holding(1), 310, 0, 500)
	g.owe(ask, at(300), timeout)
	g.answered(ask, true, at(310), at(311))
	g.answered(ask, true, at(320), at(321))
	g.owe(holding(1), at(330), timeout)
	next("and has learned it", holding(1), 340, status, 0)

	g = ledger{}
	for range mostAlike {
		g.answered(holding(5), false, at(0), at(1))
		next("answered in order", holding(5), 2, 0, 0)
	}
	g.answered(holding(5), false, at(0), at(1))
	next("only the order has told them apart for long", holding(5), 2, 4, 0)
	next("another shape", holding(6), 2, 0, 0)
	g.answered(holding(4), false, at(2), at(3))
	next("the fence has been answered", holding(5), 4, 0, 0)
	g.answered(holding(5), false, at(4), at(5))
	if g.repeated(modbus.PDU{3, 8, 0, 0, 0, 0, 0, 0, 0, 0}, at(6)) || !g.repeated(modbus.PDU{3, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, at(6)) {
		t.Error("the last answer, once more, is not known")
	}
	next("a unit that answers twice", holding(5), 1000, 4, 0)
	next("has not lately", holding(5), 60007, 0, 0)

	g = ledger{}
	for n := range uint16(mostOwed + 2) {
		g.owe(holding(20-n), at(int(n)), timeout)
	}
	next("a unit that owes too much is held", holding(18), 100, 0, 202)
	if len(g.owed) != mostOwed {
		t.Errorf("%d owed, want %d", len(g.owed), mostOwed)
	}

	g = ledger{}
	g.owe(modbus.ReadRequest(modbus.Coils, 0, 20), at(0), timeout)
	next("coils", modbus.ReadRequest(modbus.Coils, 0, 24), 10, 16, 0)
	next("eight coils", modbus.ReadRequest(modbus.Coils, 0, 8), 10, 0, 0)
}

func TestWindow(t *testing.T) {
	now := time.Now()
	w := newWindow(config.InFlightAuto)
	grow := func() (answers int) {
		for w.size < mostInFlight || w.trial() {
			w.right(w.size > 1, now)
			if answers++; answers > 1000 {
				t.Fatalf("window %+v does not grow", w)
			}
		}
		return answers
	}
	for range 100 {
		w.right(false, now)
	}
	if w.size != 2 {
		t.Errorf("size %d when nothing overlaps, want 2", w.size)
	}
	if n := grow(); n > 150 {
		t.Errorf("%d answers until the window is open", n)
	}
	for _, penalty := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute} {
		w.slip(now)
		if w.size != 1 || !w.trial() {
			t.Errorf("after a slip: %+v", w)
		}
		w.slip(now) // one at a time is no proof
		now = now.Add(penalty - time.Second)
		for range 100 {
			w.right(false, now)
		}
		if w.size != 1 {
			t.Errorf("size %d before %v have passed", w.size, penalty)
		}
		now = now.Add(time.Second)
		grow()
	}
	for in, want := range map[int]int{1: 1, 5: 5, 16: 16, 17: 16, -3: 1} {
		w := newWindow(in)
		w.right(true, now)
		w.slip(now)
		if w.size != want || w.trial() {
			t.Errorf("in_flight %d: %+v", in, w)
		}
	}
}

func TestBackoff(t *testing.T) {
	for _, k := range []config.BusKind{config.Serial, config.TCP} {
		b := newBackoff(k)
		due := b.first
		for range 12 {
			if d := b.next(); d < due/2 || d > due {
				t.Errorf("%v: wait %v, want between %v and %v", k, d, due/2, due)
			}
			due = min(2*due, b.most)
		}
		b.reset()
		if d := b.next(); d > b.first {
			t.Errorf("%v: wait %v after success", k, d)
		}
	}
}
