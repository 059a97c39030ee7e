package uplink

import (
	"sync"
	"time"
)

// Packet identifiers of our PUBLISH packets. Those below are left to paho, for
// SUBSCRIBE.
const (
	firstID = 1024
	ids     = 65535 - firstID + 1
)

// Kinds of packets that end the flow of a PUBLISH (clause 2.2.1).
const (
	puback  = 4
	pubcomp = 7
)

// slot is one PUBLISH that was sent and is not acknowledged.
type slot struct {
	seq   uint64 // in the queue; 0: not from the queue
	bytes int
	ends  byte          // kind of the packet that acknowledges it
	acked bool          // but an older one is not
	wait  chan struct{} // closed when acknowledged; nil: nobody waits
}

// window is the PUBLISH packets in flight on one connection, QoS 1 and 2. It
// slides: the oldest must be acknowledged before there is room at the other
// end. Brokers acknowledge in order (clause 4.6), so it costs nothing, and no
// more messages than it is wide can ever go twice.
type window struct {
	mu    sync.Mutex
	slots []slot
	head  uint64 // number of the oldest PUBLISH in flight
	tail  uint64 // number of the next PUBLISH
	exact int    // of those in flight, with QoS 2
	bytes int
	moved time.Time // last acknowledgement, or first PUBLISH after none was in flight

	acked int // that came from the queue, in all

	room chan struct{} // holds one token when something was acknowledged
	idle chan struct{} // holds one token when nothing was in flight any more
}

func newWindow(width int) *window {
	return &window{slots: make([]slot, width), room: make(chan struct{}, 1), idle: make(chan struct{}, 1)}
}

func id(n uint64) uint16 { return uint16(firstID + n%ids) }

// take gives the next PUBLISH its packet identifier. There must be room.
func (w *window) take(s slot) uint16 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.head == w.tail {
		w.moved = time.Now()
	}
	n := w.tail
	w.slots[n%uint64(len(w.slots))] = s
	w.tail++
	w.bytes += s.bytes
	if s.ends == pubcomp {
		w.exact++
	}
	return id(n)
}

// free returns how many PUBLISH packets may be sent now.
func (w *window) free() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.slots) - int(w.tail-w.head)
}

// exactRoom reports whether one more PUBLISH with QoS 2 may be sent.
func (w *window) exactRoom() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.exact < exactWidth
}

// ack is one packet that acknowledges a PUBLISH.
type ack struct {
	kind byte
	id   uint16
}

// ack settles acks and appends the sequence numbers of those that came from
// the queue to seqs. An identifier that is not in flight, or is but in a flow
// that another packet ends, is passed over: it acknowledges nothing.
func (w *window) ack(acks []ack, seqs []uint64) []uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range acks {
		off := (uint64(a.id) + ids - uint64(id(w.head))) % ids
		if a.id < firstID || off >= w.tail-w.head {
			continue
		}
		s := &w.slots[(w.head+off)%uint64(len(w.slots))]
		if s.acked || s.ends != a.kind {
			continue
		}
		s.acked = true
		w.bytes -= s.bytes
		if a.kind == pubcomp {
			w.exact--
		}
		if s.seq != 0 {
			w.acked++
			seqs = append(seqs, s.seq)
		}
		if s.wait != nil {
			close(s.wait)
		}
		w.moved = time.Now()
	}
	for w.head < w.tail && w.slots[w.head%uint64(len(w.slots))].acked {
		w.head++
	}
	signal(w.room)
	if w.head == w.tail {
		signal(w.idle)
	}
	return seqs
}

// signal puts a token into c, which has room for one, unless it holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// flight is what is on its way.
type flight struct {
	n     int           // PUBLISH packets
	exact int           // of them, with QoS 2
	bytes int           // their bytes
	still time.Duration // how long none of them has been acknowledged
	acked int           // acknowledged so far, of those that came from the queue
}

func (w *window) flight() flight {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := flight{n: int(w.tail - w.head), exact: w.exact, bytes: w.bytes, acked: w.acked}
	if f.n > 0 {
		f.still = time.Since(w.moved)
	}
	return f
}
