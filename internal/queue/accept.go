package queue

import (
	"errors"
	"time"

	"fieldgate/internal/mqtt"
)

// ErrFull is what Accept answers when there is no room for the message.
var ErrFull = errors.New("queue is full")

// promise is what Accept gave for a message: all below are safe.
type promise struct {
	below uint64
	due   time.Time // when the file is asked for them
	safe  chan struct{}
}

// Accept takes one message as Deliver does and waits for nothing. safe is closed
// once the message and all before it are in the file or gone (acknowledged, or
// given up as Deliver says): who sent it may forget it. The file is asked only
// after patience, so that a message which is acknowledged sooner writes nothing;
// all that wait by then share one transaction, and those that come meanwhile the
// next. While the file takes nothing, or without one, only the acknowledgement
// closes safe; after Close nothing does. With a patience below 0 nobody wants to
// know, and safe is nil.
//
// A message that finds no room is counted as dropped and ErrFull returned.
func (q *Queue) Accept(m mqtt.Message, patience time.Duration) (safe <-chan struct{}, err error) {
	took, bad, err := q.take([]mqtt.Message{m}, false)
	switch {
	case err != nil:
		return nil, err
	case bad != nil:
		return nil, bad
	case took == 0:
		return nil, ErrFull
	case patience < 0:
		return nil, nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	p := promise{below: q.next(), due: time.Now().Add(patience), safe: make(chan struct{})}
	q.promises = append(q.promises, p)
	if q.wanted.IsZero() || p.due.Before(q.wanted) {
		q.wantFile(p.due)
	}
	return p.safe, nil
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
	left := copy(q.promises, q.promises[n:])
	clear(q.promises[left:])
	q.promises = q.promises[:left]
	if q.wanted = (time.Time{}); left > 0 {
		q.wantFile(q.promises[0].due)
	}
}
