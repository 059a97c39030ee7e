package line

import (
	"context"
	"errors"
	"testing"
	"time"

	"fieldgate/internal/modbus"
)

// lateBy makes a device late with the answer to request n, and with what it has
// to answer after it; lost names requests that it does not answer at all.
func lateBy(n int, d time.Duration, answer func(*peer, request), lost ...int) func(*peer, request) {
	return func(p *peer, r request) {
		if r.n == n {
			time.Sleep(d)
		}
		for _, l := range lost {
			if r.n == l {
				return
			}
		}
		answer(p, r)
	}
}

// refusing answers request n by an exception, and all unknown functions by
// another.
func refusing(n int) func(*peer, request) {
	return func(p *peer, r request) {
		switch {
		case r.n == n:
			p.reply(r, modbus.ExceptionResponse(r.pdu.Function(), modbus.ServerDeviceBusy))
		case r.pdu.Function() == modbus.ReadExceptionStatus:
			p.reply(r, modbus.ExceptionResponse(r.pdu.Function(), modbus.IllegalFunction))
		default:
			answerRight(p, r)
		}
	}
}

// TestLateWriteConfirmsNoOther: the answer to a write of registers does not say
// which values. That to one that was given up does not confirm the next.
func TestLateWriteConfirmsNoOther(t *testing.T) {
	t.Parallel()
	// Requests: the write, a fence, the other write.
	l, p := serialPeer(t, patience, lateBy(1, patience+50*time.Millisecond, refusing(0), 3))
	write := func(v uint16) error {
		_, err := l.Do(context.Background(), 1, modbus.WriteRegistersRequest(7, []uint16{v, v}))
		return err
	}
	if err := write(1); !errors.Is(err, modbus.ErrNoResponse) {
		t.Fatal(err)
	}
	if err := write(2); !errors.Is(err, modbus.ErrNoResponse) {
		t.Errorf("the second write, which the device lost: %v", err)
	}
	if r := p.requests(); len(r) != 3 || r[1].pdu.Function() != modbus.ReadExceptionStatus {
		t.Errorf("%d requests, want the writes and the status request between them", len(r))
	}
	if err := write(3); err != nil {
		t.Error(err)
	}
}

// TestLateRefusalIsNoOthers: an exception names only its function. A late one
// neither refuses the next request nor lets its answer through to the one after.
func TestLateRefusalIsNoOthers(t *testing.T) {
	t.Parallel()
	l, p := serialPeer(t, patience, lateBy(1, patience+50*time.Millisecond, refusing(1)))
	if err := read(t, l, p, 1, 0, 5); !errors.Is(err, modbus.ErrNoResponse) {
		t.Fatal(err)
	}
	for _, n := range []uint16{6, 6, 6} { // another shape, so without a fence
		if err := read(t, l, p, 1, 10, n); err != nil {
			t.Error(err)
		}
	}
	if s := l.Stats(); s.Late != 1 || s.Fences != 0 || s.Exceptions != 0 {
		t.Errorf("%+v", s)
	}
}

// TestRefusedForGood: when nothing comes but the refusal, it is one, for a read;
// a write may have been done.
func TestRefusedForGood(t *testing.T) {
	t.Parallel()
	refuse := func(p *peer, r request) {
		p.reply(r, modbus.ExceptionResponse(r.pdu.Function(), modbus.IllegalDataAddress))
	}
	l, p := serialPeer(t, patience, lateBy(0, 0, refuse, 1, 3))
	if err := read(t, l, p, 1, 0, 5); !errors.Is(err, modbus.ErrNoResponse) {
		t.Fatal(err)
	}
	if err := read(t, l, p, 1, 0, 6); !errors.Is(err, modbus.IllegalDataAddress) {
		t.Errorf("refused read: %v", err)
	}
	write := func(v uint16) error {
		_, err := l.Do(context.Background(), 1, modbus.WriteRegisterRequest(7, v))
		return err
	}
	if err := write(1); !errors.Is(err, modbus.ErrNoResponse) {
		t.Fatal(err)
	}
	if err := write(2); !errors.Is(err, modbus.ErrNoResponse) || !errors.Is(err, modbus.IllegalDataAddress) {
		t.Errorf("perhaps refused write: %v", err)
	}
}

// TestSingleRegisterBehindStatus: the late answer to a read of one register is
// not taken for the next one's, however late it is.
func TestSingleRegisterBehindStatus(t *testing.T) {
	t.Parallel()
	l, p := serialPeer(t, patience, lateBy(1, 5*patience, refusing(0)))
	answered := 0
	for range 8 {
		if read(t, l, p, 1, 3, 1) == nil { // which knows a wrong value
			answered++
		}
	}
	if answered == 0 {
		t.Error("no answer was taken at all")
	}
}
