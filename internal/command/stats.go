package command

import (
	"sync/atomic"
	"time"
)

// class is the kind of check that has refused an order, for the figures: the
// reason itself is for people.
type class uint8

const (
	byMessage  class = iota // it cannot be read as a command
	bySender                // who may not send it
	byRetained              // kept by a broker
	byPoint                 // there is no such point, or it may not be written
	byValue                 // its type, range, step or unit
	byID                    // used before for something else, too long, or missing
	byTime                  // too old, expired, from the future, or dated without a clock
	byRate
	byBudget
	byLoad      // too much waits, or the gateway is stopping
	byRecord    // the disk has not taken its record
	byEmergency // one came after it
	byLock      // by the key on site
	byDevice    // a value that could not be restored cannot be read
	classes
)

func (c class) String() string {
	return [...]string{"message", "sender", "retained", "point", "value", "id", "time", "rate", "budget", "busy", "unrecorded", "overtaken", "locked", "unreadable"}[c]
}

type counters struct {
	received, accepted, duplicates                atomic.Uint64
	written, verified, failed, unknown, unchanged atomic.Uint64
	events, unrecorded                            atomic.Uint64

	rejected [classes]atomic.Uint64
	took     [2]struct{ n, sum, most atomic.Int64 } // by emergency; sum and most in ns
}

// Durations are how long orders took that were let through, from their arrival
// to their outcome.
type Durations struct {
	Count     uint64
	Sum, Most time.Duration
}

// Stats counts since the start.
type Stats struct {
	Received   uint64 // messages and orders
	Accepted   uint64 // of them
	Duplicates uint64 // answered with the first answer
	Written    uint64 // by outcome
	Verified   uint64
	Unchanged  uint64 // of the verified: not written, because the device showed the value already
	Rejected   uint64
	Failed     uint64
	Unknown    uint64
	Events     uint64 // to the event log
	Unrecorded uint64 // emergencies and outcomes that the disk did not take
	Waiting    int    // orders

	// RejectedBy counts the rejected by the kind of check that has refused them;
	// every kind is there.
	RejectedBy map[string]uint64

	Usual, Emergency Durations
}

// Stats returns the figures.
func (d *Desk) Stats() Stats {
	n := &d.count
	d.mu.Lock()
	waiting := d.waiting
	d.mu.Unlock()
	s := Stats{
		Received: n.received.Load(), Accepted: n.accepted.Load(), Duplicates: n.duplicates.Load(),
		Written: n.written.Load(), Verified: n.verified.Load(), Unchanged: n.unchanged.Load(),
		Failed: n.failed.Load(), Unknown: n.unknown.Load(),
		Events: n.events.Load(), Unrecorded: n.unrecorded.Load(), Waiting: waiting,
		RejectedBy: make(map[string]uint64, classes),
		Usual:      d.durations(false), Emergency: d.durations(true),
	}
	for c := range classes {
		k := n.rejected[c].Load()
		s.RejectedBy[c.String()] = k
		s.Rejected += k
	}
	return s
}

// tally counts an outcome.
func (d *Desk) tally(r Result) {
	switch r.Status {
	case Written:
		d.count.written.Add(1)
	case Verified:
		d.count.verified.Add(1)
	case Rejected:
		d.count.rejected[r.class].Add(1)
	case Failed:
		d.count.failed.Add(1)
	case Unknown:
		d.count.unknown.Add(1)
	}
}

// lane is the index of counters.took.
func lane(emergency bool) int {
	if emergency {
		return 1
	}
	return 0
}

// timed counts how long an order took.
func (d *Desk) timed(emergency bool, took time.Duration) {
	t := &d.count.took[lane(emergency)]
	t.n.Add(1)
	t.sum.Add(int64(took))
	for most := t.most.Load(); int64(took) > most && !t.most.CompareAndSwap(most, int64(took)); most = t.most.Load() {
	}
}

func (d *Desk) durations(emergency bool) Durations {
	t := &d.count.took[lane(emergency)]
	return Durations{uint64(t.n.Load()), time.Duration(t.sum.Load()), time.Duration(t.most.Load())}
}
