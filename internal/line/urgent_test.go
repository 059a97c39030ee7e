package line

import (
	"context"
	"errors"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
)

// An urgent request is not kept waiting by what its unit owes: no fence goes
// before it, and an answer that may be the late one to the same request counts
// as none.
func TestUrgentWithoutFence(t *testing.T) {
	t.Parallel()
	stop := modbus.WriteCoilRequest(0, true)
	l, p := serialPeer(t, patience, func(p *peer, r request) {
		if r.n == 2 || r.pdu.Function() == modbus.ReadExceptionStatus {
			return // the first stop is lost, and what would be a fence
		}
		answerRight(p, r)
	})
	if err := read(t, l, p, 1, 0, 1); err != nil {
		t.Fatal(err)
	}
	for i, want := range []error{modbus.ErrNoResponse, modbus.ErrNoResponse} {
		if _, err := l.DoUrgent(context.Background(), 1, stop, 0, config.GapAuto); !errors.Is(err, want) {
			t.Errorf("stop %d: error %v, want %v", i, err, want)
		}
	}
	if err := read(t, l, p, 1, 0, 1); err != nil {
		t.Fatal(err)
	}
	if r := p.requests(); len(r) != 4 || r[2].pdu.Function() != modbus.WriteSingleCoil {
		t.Errorf("requests %+v, want both stops and nothing between", r)
	}
	if s := l.Stats(); s.Fences != 0 {
		t.Errorf("%d fences", s.Fences)
	}
}

// On a line of which nobody knows whether it echoes, an urgent request is the
// first all the same, and its echo is not taken for the answer.
func TestUrgentOnUnknownLine(t *testing.T) {
	t.Parallel()
	l, p := serialPeer(t, patience, answerRight)
	if _, err := l.DoUrgent(context.Background(), 1, modbus.WriteCoilRequest(0, true), 0, config.GapAuto); !errors.Is(err, modbus.ErrNoResponse) {
		t.Errorf("error %v", err)
	}
	if r := p.requests(); len(r) != 1 {
		t.Errorf("requests %+v", r)
	}
}

// What is held, because its unit owes an answer that it could be taken for, does
// not keep the line while an urgent request waits.
func TestHurryEndsHold(t *testing.T) {
	t.Parallel()
	l, p := serialPeer(t, patience, func(p *peer, r request) {
		if r.n > 1 {
			answerRight(p, r)
		}
	})
	l.turns.units[1] = &ledger{slowest: time.Hour, deaf: time.Now().Add(time.Hour)}
	if err := read(t, l, p, 1, 0, 1); !errors.Is(err, modbus.ErrNoResponse) {
		t.Fatal(err)
	}
	held := make(chan error, 1)
	go func() { held <- read(t, l, p, 1, 0, 1) }() // ends with the hold
	eventually(t, "the held request is queued", func() bool {
		l.turns.mu.Lock()
		defer l.turns.mu.Unlock()
		return len(l.turns.jobs) == 1
	})
	l.Hurry(1)
	defer l.Hurry(-1)
	select {
	case err := <-held:
		if !errors.Is(err, errOwing) {
			t.Errorf("error %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("still held")
	}
}
