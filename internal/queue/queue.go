// Package queue holds the messages for one uplink until the broker upstream
// has acknowledged them: in order, bounded by bytes and by age, the oldest (or
// newest) dropped and counted when it is full. It sends nothing; uplink takes
// messages with Next and says Done for each one that has arrived.
//
// What waits is in memory: a queue lives through every loss of the uplink, and
// ends with the process.
//
// The types are Queue, which is an mqtt.Sink, and Entry.
package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
)

// ErrClosed is what every call answers after Close.
var ErrClosed = errors.New("queue is closed")

// lookEvery is how often Run looks for messages past their age and for a
// change between full and not.
const lookEvery = time.Second

// calm is how long nothing must have been dropped before the queue counts as
// no longer full.
const calm = 10 * time.Second

// Entry is a message that waits, with its place in the order.
type Entry struct {
	Seq          uint64    // from 1, rises by one with each message that the queue took
	Time         time.Time // when the queue took it, UTC
	mqtt.Message           // Payload belongs to the queue; do not change it
}

// Stats is what a queue holds and what became of the rest. Accepted = Done +
// Dropped + Expired + Messages.
type Stats struct {
	Messages int           // that wait, those handed out included
	Bytes    int64         // what they count against max_bytes
	Handed   int           // handed out and not yet done
	Age      time.Duration // of the oldest, 0 for an empty queue

	Accepted uint64 // taken by Deliver
	Done     uint64 // acknowledged
	Dropped  uint64 // given up because the queue was full
	Expired  uint64 // given up because they were older than max_age
}

// Queue is the messages for one uplink. It is safe for use by several
// goroutines, but only one may use Next and Rewind.
type Queue struct {
	cfg   config.Queue
	log   *slog.Logger
	start time.Time // origin of the monotonic clock of records

	mu     sync.Mutex
	chunks []*chunk // never empty; the last one takes new messages
	cur    int      // chunk and record that Next looks at first
	rec    int
	stats  Stats // Messages, Bytes, Handed and the counters
	idle   bool  // Next waits for wake
	closed bool

	wake chan struct{} // holds one token when there may be work for Next
	ends chan struct{} // closed by Close
	out  []Entry       // what Next returned last
}

// Open makes the queue of the uplink called name. It takes the folder in which
// a queue may keep a file, and keeps none.
func Open(dir, name string, cfg config.Queue, log *slog.Logger) (*Queue, error) {
	if cfg.MaxBytes <= 0 || cfg.MaxBytes > config.QueueInMemory {
		cfg.MaxBytes = config.QueueInMemory
	}
	q := &Queue{
		cfg:   cfg,
		log:   log,
		start: time.Now(),
		wake:  make(chan struct{}, 1),
		ends:  make(chan struct{}),
	}
	q.chunks = []*chunk{newChunk(1, 0, 0)}
	return q, nil
}

// Run drops what is past its age and logs when the queue becomes full and when
// that is over. It returns nil once ctx ends; Deliver, Next and Done work with
// or without it.
func (q *Queue) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var full, aged lossLog
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			q.mu.Lock()
			q.expire(time.Since(q.start))
			s := q.stats
			q.mu.Unlock()
			full.look(q.log, now, s.Dropped, "queue is full, messages are lost", "queue has room again")
			aged.look(q.log, now, s.Expired, "messages are older than max_age and are lost", "no more messages past max_age")
		}
	}
}

// lossLog logs the beginning and the end of a loss once each.
type lossLog struct {
	seen   uint64    // the counter at the last look
	before uint64    // the counter when the loss began
	last   time.Time // when the counter last rose; zero: no loss now
}

func (l *lossLog) look(log *slog.Logger, now time.Time, count uint64, began, ended string) {
	switch {
	case count > l.seen:
		if l.last.IsZero() {
			l.before = l.seen
			log.Warn(began, "lost", count-l.seen)
		}
		l.seen, l.last = count, now
	case !l.last.IsZero() && now.Sub(l.last) >= calm:
		log.Info(ended, "lost", count-l.before)
		l.last = time.Time{}
	}
}

// Deliver takes msgs in order and returns at once; it copies what it keeps. A
// message that cannot be published at all is left out and named in the error,
// which wraps mqtt.ErrInvalid. When the queue is full the oldest messages go
// to make room, those that are handed out last of all; with when_full:
// drop_newest, and for a message that is larger than the whole queue, it is
// the new one that goes. Stats counts both; neither is an error.
func (q *Queue) Deliver(_ context.Context, msgs ...mqtt.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	var bad error
	now := time.Now()
	at := now.Sub(q.start)

	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrClosed
	}
	took := false
	for i := range msgs {
		if err := msgs[i].Check(); err != nil {
			bad = errors.Join(bad, fmt.Errorf("queue: %w", err))
			continue
		}
		if q.add(msgs[i], now, at) {
			took = true
		}
	}
	if took && q.idle {
		q.idle = false
		q.wake <- struct{}{} // has room: idle is set by Next alone, which empties it
	}
	return bad
}

// add appends m unless the bound stands against it, and reports whether it did.
func (q *Queue) add(m mqtt.Message, wall time.Time, at time.Duration) bool {
	q.stats.Accepted++
	n := size(m)
	for q.stats.Bytes+n > q.cfg.MaxBytes {
		if q.cfg.DropNewest || n > q.cfg.MaxBytes || !q.dropOldest() {
			q.stats.Dropped++
			return false
		}
		q.stats.Dropped++
	}
	last := q.chunks[len(q.chunks)-1]
	if !last.fits(m) {
		if last.live == 0 {
			last.bytes = nil
		}
		last = newChunk(last.first+uint64(len(last.records)), recordHeader+len(m.Topic)+len(m.Payload), len(last.records))
		q.chunks = append(q.chunks, last)
		q.trim()
	}
	last.add(m, wall, at)
	q.stats.Messages++
	q.stats.Bytes += n
	return true
}

// dropOldest gives up the oldest message that waits, or if all are handed out
// the oldest of those, and reports whether there was one.
func (q *Queue) dropOldest() bool {
	if q.seek() {
		q.remove(q.cur, q.rec)
		return true
	}
	for ci, c := range q.chunks {
		for i := range c.records {
			if c.records[i].state != gone {
				q.remove(ci, i)
				return true
			}
		}
	}
	return false
}

// seek moves the cursor to the next record that waits and reports whether
// there is one.
func (q *Queue) seek() bool {
	for {
		c := q.chunks[q.cur]
		if c.live > 0 {
			for ; q.rec < len(c.records); q.rec++ {
				if c.records[q.rec].state == waiting {
					return true
				}
			}
		}
		if q.cur == len(q.chunks)-1 {
			q.rec = len(c.records)
			return false
		}
		q.cur, q.rec = q.cur+1, 0
	}
}

// remove takes record i of chunk ci out of the queue.
func (q *Queue) remove(ci, i int) {
	c := q.chunks[ci]
	r := &c.records[i]
	if r.state == handed {
		q.stats.Handed--
	}
	r.state = gone
	q.stats.Messages--
	q.stats.Bytes -= c.size(i)
	c.live--
	if c.live == 0 && ci < len(q.chunks)-1 {
		c.bytes = nil // entries that were handed out keep what they point to
	}
	q.trim()
}

// trim forgets the chunks at the head of which nothing is left.
func (q *Queue) trim() {
	n := 0
	for n < len(q.chunks)-1 && q.chunks[n].live == 0 {
		q.chunks[n] = nil
		n++
	}
	if n == 0 {
		return
	}
	q.chunks = q.chunks[n:]
	if q.cur -= n; q.cur < 0 {
		q.cur, q.rec = 0, 0
	}
}

// expire drops what waits and was taken longer than max_age before now.
func (q *Queue) expire(now time.Duration) {
	if q.cfg.MaxAge <= 0 {
		return
	}
	for q.seek() && now-q.chunks[q.cur].records[q.rec].at > q.cfg.MaxAge {
		q.remove(q.cur, q.rec)
		q.stats.Expired++
	}
}

// Next returns up to max messages in order, the oldest that have not been
// handed out since the last Rewind. If there is none it waits for one, until
// ctx ends (ctx's error) or Close (ErrClosed); what is there is returned even
// if ctx has ended. The slice is valid until the next call.
func (q *Queue) Next(ctx context.Context, max int) ([]Entry, error) {
	for {
		if out, err := q.take(max); err != nil || len(out) > 0 {
			return out, err
		}
		select {
		case <-q.wake:
		case <-q.ends:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (q *Queue) take(max int) ([]Entry, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, ErrClosed
	}
	q.expire(time.Since(q.start))
	clear(q.out) // they hold chunks in memory
	q.out = q.out[:0]
	for len(q.out) < max && q.seek() {
		c := q.chunks[q.cur]
		c.records[q.rec].state = handed
		q.out = append(q.out, c.entry(q.rec))
		q.rec++
	}
	q.stats.Handed += len(q.out)
	if len(q.out) == 0 && !q.idle {
		q.idle = true
		select {
		case <-q.wake: // a token of an earlier wait that ended otherwise
		default:
		}
	}
	return q.out, nil
}

// Rewind makes Next begin again with the oldest message that is not done. A
// new connection begins with it: what the last one sent without an
// acknowledgement goes again, in order.
func (q *Queue) Rewind() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	for _, c := range q.chunks[:q.cur+1] {
		if c.live == 0 {
			continue
		}
		for i := range c.records {
			if c.records[i].state == handed {
				c.records[i].state = waiting
			}
		}
	}
	q.cur, q.rec, q.stats.Handed = 0, 0, 0
}

// Done takes the messages with these sequence numbers out of the queue: they
// were acknowledged (PUBACK, PUBCOMP) or, with QoS 0, written. Numbers that
// the queue does not hold any more are ignored.
func (q *Queue) Done(seqs ...uint64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrClosed
	}
	for _, seq := range seqs {
		ci := 0
		if next := q.chunks[0].first + uint64(len(q.chunks[0].records)); seq >= next {
			ci = sort.Search(len(q.chunks), func(i int) bool { return q.chunks[i].first > seq }) - 1
		}
		c := q.chunks[ci]
		if seq < c.first || seq-c.first >= uint64(len(c.records)) {
			continue
		}
		if i := int(seq - c.first); c.records[i].state != gone {
			q.remove(ci, i)
			q.stats.Done++
		}
	}
	return nil
}

// Stats returns what the queue holds now.
func (q *Queue) Stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.stats
	for _, c := range q.chunks {
		if c.live == 0 {
			continue
		}
		for i := range c.records {
			if c.records[i].state != gone {
				s.Age = time.Since(q.start) - c.records[i].at
				return s
			}
		}
	}
	return s
}

// Close ends the queue: a waiting Next returns, and every later call answers
// ErrClosed. Messages that are still in it are lost with the process; their
// number is logged.
func (q *Queue) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil
	}
	q.closed = true
	close(q.ends)
	if q.stats.Messages > 0 {
		q.log.Error("queue closed with messages that were not acknowledged", "lost", q.stats.Messages)
	}
	q.chunks, q.out = nil, nil
	return nil
}
