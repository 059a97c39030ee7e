package queue

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"fieldgate/internal/mqtt"
)

// ErrFull is what Accept answers when there is no room for the message.
var ErrFull = errors.New("queue is full")

// promise is what Accept gave for a message: it and all before it are safe.
type promise struct {
	below    uint64 // its number, and one
	patience time.Duration
	due      time.Time // when the file is asked for it
	safe     chan struct{}
	lost     func()
}

// Accept takes one message as Deliver does and waits for nothing. safe is closed
// once the message is in the file or acknowledged, and so is every message
// before it, or given up: who sent it may forget it. The file is asked only
// after patience, so that a message which is acknowledged sooner writes nothing;
// all that wait by then share one transaction, and those that come meanwhile the
// next. While the file takes nothing, or without one, only the acknowledgement
// closes safe; after Close nothing does. With a patience below 0 nobody wants to
// know, and safe is nil.
//
// A message that is given up before it is safe, because the queue is full or it
// is too old, is lost: safe is never closed, and lost is called, if not nil, in a
// goroutine of its own. One that finds no room to begin with is counted as
// dropped and ErrFull returned.
func (q *Queue) Accept(m mqtt.Message, patience time.Duration, lost func()) (safe <-chan struct{}, err error) {
	var p *promise
	if patience >= 0 {
		p = &promise{patience: patience, safe: make(chan struct{}), lost: lost}
	}
	took, bad, err := q.take([]mqtt.Message{m}, false, p)
	switch {
	case err != nil:
		return nil, err
	case bad != nil:
		return nil, bad
	case took == 0:
		return nil, ErrFull
	case p == nil:
		return nil, nil
	}
	return p.safe, nil
}

// promise promises the message that was taken last. q.mu is held.
func (q *Queue) promise(p *promise) {
	p.below, p.due = q.next(), time.Now().Add(p.patience)
	q.promises = append(q.promises, *p)
	if q.wanted.IsZero() || p.due.Before(q.wanted) {
		q.wantFile(p.due)
	}
}

// breakPromise ends the promise for a message that is given up, unless it is in
// the file. q.mu is held.
func (q *Queue) breakPromise(seq uint64) {
	if len(q.promises) == 0 || seq < q.synced {
		return
	}
	i, ok := slices.BinarySearchFunc(q.promises, seq+1, func(p promise, below uint64) int { return cmp.Compare(p.below, below) })
	if !ok {
		return
	}
	if lost := q.promises[i].lost; lost != nil {
		go lost() // ends with lost, which may need locks of its own
	}
	q.promises = slices.Delete(q.promises, i, i+1)
}

// wantFile makes Run look at due whether anybody still waits for the file.
// q.mu is held.
func (q *Queue) wantFile(due time.Time) {
	q.wanted = due
	wait := max(0, time.Until(due))
	if q.alarm == nil {
		q.alarm = time.AfterFunc(wait, func() { signal(q.kick) })
		return
	}
	q.alarm.Reset(wait)
}

// late reports whether Accept has promised the file by now. q.mu is held.
func (q *Queue) late(now time.Time) bool { return !q.wanted.IsZero() && !now.Before(q.wanted) }

// keepPromises closes what is safe. q.mu is held, and q.synced up to date.
func (q *Queue) keepPromises() {
	n := 0
	for n < len(q.promises) && q.promises[n].below <= q.synced {
		close(q.promises[n].safe)
		n++
	}
	if n == 0 {
		return
	}
	q.promises = slices.Delete(q.promises, 0, n)
	if q.wanted = (time.Time{}); len(q.promises) > 0 {
		q.wantFile(q.promises[0].due)
	}
}
