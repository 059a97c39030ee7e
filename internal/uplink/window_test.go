package uplink

import (
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestWindow(t *testing.T) {
	w := newWindow(4)
	waited := make(chan struct{})
	a := w.take(slot{seq: 11, bytes: 10, ends: puback})
	b := w.take(slot{seq: 12, bytes: 20, ends: pubcomp})
	c := w.take(slot{bytes: 30, ends: puback, wait: waited})
	if a != firstID || b != firstID+1 || c != firstID+2 || w.free() != 1 {
		t.Fatalf("ids %d %d %d, free %d", a, b, c, w.free())
	}
	settle := func(want []uint64, free int, acks ...ack) {
		t.Helper()
		if got := w.ack(acks, nil); !slices.Equal(got, want) || w.free() != free {
			t.Errorf("ack(%v) = %v, free %d; want %v, %d", acks, got, w.free(), want, free)
		}
	}
	// What acknowledges nothing: another kind, an id of paho's, one not in flight.
	settle(nil, 1, ack{pubcomp, a}, ack{puback, b}, ack{puback, 1}, ack{puback, 0}, ack{puback, firstID + 3}, ack{puback, 65535})
	settle([]uint64{12}, 1, ack{pubcomp, b}, ack{pubcomp, b})
	if f := w.flight(); f.n != 3 || f.exact != 0 || f.bytes != 40 || f.acked != 1 {
		t.Errorf("flight = %+v", f)
	}
	settle([]uint64{11}, 3, ack{puback, a})
	select {
	case <-waited:
		t.Error("a message counts as acknowledged that is not")
	default:
	}
	settle(nil, 4, ack{puback, c}) // not from the queue
	<-waited
	<-w.room
	<-w.idle
	if f := w.flight(); f.n != 0 || f.bytes != 0 || f.still != 0 {
		t.Errorf("flight = %+v", f)
	}
}

// TestWindowIDs sends far more than there are identifiers, acknowledged in any
// order: no identifier is in flight twice, none is paho's.
func TestWindowIDs(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	w := newWindow(Width)
	inFlight := map[uint16]uint64{}
	acked := map[uint64]bool{}
	seq := uint64(0)
	for range 6_000 {
		for range r.IntN(w.free() + 1) {
			seq++
			id := w.take(slot{seq: seq, bytes: 1, ends: puback})
			if id < firstID || inFlight[id] != 0 {
				t.Fatalf("id %d for message %d, in flight with %d", id, seq, inFlight[id])
			}
			inFlight[id] = seq
		}
		for id, s := range inFlight { // in random order
			if r.IntN(3) == 0 {
				continue
			}
			if got := w.ack([]ack{{puback, id}}, nil); len(got) != 1 || got[0] != s {
				t.Fatalf("ack of id %d = %v, want message %d", id, got, s)
			}
			acked[s] = true
			delete(inFlight, id)
		}
		if n := w.flight().bytes; n != len(inFlight) {
			t.Fatalf("%d bytes in flight, want %d", n, len(inFlight))
		}
	}
	if seq < ids+2*Width {
		t.Errorf("only %d messages, want identifiers used again", seq)
	}
}

func TestWindowKnowsHowLongItIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(2)
		time.Sleep(time.Hour)
		a := w.take(slot{ends: puback})
		time.Sleep(time.Second)
		b := w.take(slot{ends: puback})
		time.Sleep(time.Second)
		if f := w.flight(); f.still != 2*time.Second {
			t.Errorf("still = %v, want 2s", f.still)
		}
		w.ack([]ack{{puback, a}}, nil)
		time.Sleep(3 * time.Second)
		if f := w.flight(); f.still != 3*time.Second {
			t.Errorf("still = %v, want 3s", f.still)
		}
		w.ack([]ack{{puback, b}}, nil)
		if f := w.flight(); f.still != 0 {
			t.Errorf("still = %v with nothing in flight", f.still)
		}
	})
}
