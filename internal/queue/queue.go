// Package queue holds the messages for one uplink until the broker upstream
// has acknowledged them: in order, bounded by bytes and by age, the oldest (or
// newest) dropped and counted when it is full. It sends nothing; uplink takes
// messages with Next and says Done for each one that has arrived.
//
// Messages are in memory first. What is still there when it is as old as
// "commit" goes to a file, all of it in one transaction; so nothing is written
// while the uplink is healthy, and a power cut loses at most the last commit
// interval, never the order and never an older message. What the file cannot
// take (it is full, read-only, damaged, slow) stays in memory, within a bound;
// a fault of the file delays and counts, but stops nobody.
//
// What a person answered for goes to the file at once, with DeliverNow; who must
// know that it is there waits for that with Sync.
//
// The types are Queue, which is an mqtt.Sink, and Entry. Files, Export and Purge
// look at the files of a gateway that is stopped.
package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"fieldgate/internal/clock"
	"fieldgate/internal/config"
	"fieldgate/internal/flash"
	"fieldgate/internal/health"
	"fieldgate/internal/mqtt"
)

// ErrClosed is what every call answers after Close.
var ErrClosed = errors.New("queue is closed")

// bounds are those of one queue with a file.
type bounds struct {
	most int64 // of memory, also when the file takes nothing
	keep int64 // of what is in the file too
	full int64 // unwritten messages that are written before their time

	pause   time.Duration // after a fault of the file, doubled with each up to pauseMost
	patient time.Duration // for the file, with commit: 0
}

// usual is what fits a machine with 512 MB and several uplinks.
func usual() bounds {
	return bounds{most: 8 << 20, keep: 2 << 20, full: 2 << 20, pause: 5 * time.Second, patient: 500 * time.Millisecond}
}

// bareMost bounds a queue without a file, whatever max_bytes says.
const bareMost = 64 << 20

// defaultBytes is SPEC's max_bytes, for a configuration without one.
const defaultBytes = 256 << 20

// Entry is a message that waits, with its place in the order.
type Entry struct {
	Seq          uint64    // rises by one with each message that the queue took; never 0. After a start it goes on behind what is in the file
	Time         time.Time // when the queue took it, UTC, to the millisecond, by the clock as it is known now
	mqtt.Message           // Payload belongs to the queue: it is not to be changed, and valid until Done
}

// Stats is what a queue holds and what became of the rest. Accepted + Found =
// Done + Dropped + Expired + Damaged + Messages.
type Stats struct {
	Messages int           // that wait, those handed out included
	Bytes    int64         // what they count against max_bytes
	Handed   int           // handed out and not yet done
	Age      time.Duration // of the oldest, 0 for an empty queue
	Memory   int64         // bytes of memory that they take

	Accepted uint64 // taken by Deliver
	Found    uint64 // in the file at the start
	Done     uint64 // acknowledged, or given up by the uplink
	Dropped  uint64 // given up because the queue was full
	Expired  uint64 // given up because they were older than max_age
	Damaged  uint64 // were in the file and cannot be read

	Flash flash.Report // what was written to the file
	Fault string       // why the file does not take messages now; "" if it does
}

// Queue is the messages for one uplink. It is safe for use by several
// goroutines, but only one may use Next and Rewind.
type Queue struct {
	// Clock, if not nil, puts right what was told while it was not set. It is to
	// be set before Run.
	Clock *clock.Clock

	// OnEvent is told when messages begin to be lost and when that is over, and
	// of faults of the file. It is called by Run, must not block, and may be nil;
	// it is set before Run.
	OnEvent func(Event)

	cfg   config.Queue
	log   *slog.Logger
	start time.Time // origin of the monotonic clock of records
	store *store    // nil: memory only
	bounds

	mu     sync.Mutex
	ready  bool     // the file has been read; numbers are final
	chunks []*chunk // by sequence number; never empty, the last one takes new messages
	pos    uint64   // Next hands out from here on
	live   uint64   // and, live first, from here on
	from   uint64   // messages from here on came since the last Rewind
	purse  purse    // what may be handed out of older ones
	synced uint64   // messages below are in the file, or gone
	memory int64    // of chunks
	spares spares   // for the next ones; not counted in memory
	hasty  uint64   // messages below are to be written at once
	stale  []uint64 // in the file, done, and not at its head: to be deleted
	behind bool     // with commit: 0, the file is slower than Deliver waits
	stats  Stats    // Messages, Bytes, Handed and the counters
	idle   bool     // Next waits for wake
	closed bool
	waits  []syncWait

	promises []promise   // of Accept, in order
	wanted   time.Time   // when the first of them asks for the file; zero: there is none
	alarm    *time.Timer // rings then

	keeping sync.Mutex    // held by Run
	beat    health.Beat   // of Run
	wake    chan struct{} // holds one token when there may be work for Next
	kick    chan struct{} // holds one token when there may be work for Run
	ends    chan struct{} // closed by Close
	out     []Entry       // what Next returned last
}

// syncWait is a call of Sync that waits for the messages below a number.
type syncWait struct {
	below uint64
	safe  chan bool // has room for the one answer
}

// Open makes the queue of the uplink called name, with a file in the folder
// dir, or without one if dir is empty. The file is opened by Run, so that
// nothing waits for it; a file that cannot be used is put aside or done
// without.
func Open(dir, name string, cfg config.Queue, log *slog.Logger) (*Queue, error) {
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = defaultBytes
	}
	q := &Queue{
		cfg:    cfg,
		log:    log,
		start:  time.Now(),
		bounds: usual(),
		pos:    1,
		live:   1,
		from:   1,
		synced: 1,
		wake:   make(chan struct{}, 1),
		kick:   make(chan struct{}, 1),
		ends:   make(chan struct{}),
	}
	q.grow(newChunk(1, 0, &q.spares))
	if dir == "" {
		q.cfg.MaxBytes = min(q.cfg.MaxBytes, bareMost)
		q.ready = true
		return q, nil
	}
	q.store = newStore(dir, name, log)
	return q, nil
}

// Deliver takes msgs in order and returns at once; it copies what it keeps. A
// message that cannot be published at all is left out and named in the error,
// which wraps mqtt.ErrInvalid. When the queue is full the oldest messages go
// to make room, those that are handed out last of all; with when_full:
// drop_newest, and for a message that is larger than the whole queue, it is
// the new one that goes. Stats counts both; neither is an error.
//
// With commit: 0 it returns once the messages are in the file or acknowledged,
// or ctx has ended, or the file fails. A file that takes longer than half a
// second is waited for once, until it has caught up: the other ways that the
// sender's messages go must not stand still with it.
func (q *Queue) Deliver(ctx context.Context, msgs ...mqtt.Message) error {
	_, bad, err := q.take(msgs, false, nil)
	if err != nil {
		return err
	}
	if q.cfg.Commit == 0 && q.store != nil && len(msgs) > 0 {
		// The messages are in the queue whatever comes of it.
		if err := q.syncSoon(ctx); err != nil && !errors.Is(err, ErrNotSafe) {
			bad = errors.Join(bad, err)
		}
	}
	return bad
}

// DeliverNow is Deliver for messages that are not to wait for the commit
// interval, such as acknowledgements of commands and alarms: they go to the
// file at once, with all that was delivered before. It returns at once too;
// Sync tells when they are there.
func (q *Queue) DeliverNow(_ context.Context, msgs ...mqtt.Message) error {
	_, bad, err := q.take(msgs, true, nil)
	if err != nil {
		return err
	}
	signal(q.kick)
	return bad
}

// syncSoon is Sync with commit: 0's patience.
func (q *Queue) syncSoon(ctx context.Context) error {
	q.mu.Lock()
	behind := q.behind
	q.mu.Unlock()
	if behind {
		signal(q.kick)
		return nil
	}
	limit, cancel := context.WithTimeout(ctx, q.patient)
	defer cancel()
	err := q.Sync(limit)
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		q.mu.Lock()
		q.behind = true
		q.mu.Unlock()
		return nil
	}
	return err
}

// taking is what is the same for all messages of a Deliver.
type taking struct {
	wall     time.Time
	at       time.Duration // on the queue's monotonic clock
	stamp    clock.Stamp
	unsynced bool
}

// take appends msgs, wakes who waits for them and returns how many it took; bad
// names those that cannot be published. hasty says that they are to be written
// at once; p, if not nil, is what is promised for them.
func (q *Queue) take(msgs []mqtt.Message, hasty bool, p *promise) (took int, bad, err error) {
	now := time.Now()
	t := taking{wall: q.Clock.Day(now), at: now.Sub(q.start)}
	t.stamp, t.unsynced = q.Clock.Stamp()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0, nil, ErrClosed
	}
	for i := range msgs {
		if err := msgs[i].Check(); err != nil {
			bad = errors.Join(bad, fmt.Errorf("queue: %w", err))
			continue
		}
		m := msgs[i]
		if m.Stamp != 0 && !t.unsynced { // set since it was told
			if later, ok := q.Clock.Shift(t.stamp); ok {
				m.Payload, _ = clock.Restamp(m.Payload, int(m.Stamp), later)
			}
		}
		if q.add(m, t) {
			took++
		}
	}
	if took > 0 {
		q.rouse()
		if hasty {
			q.hasty = q.next()
		}
		if p != nil {
			q.promise(p)
		}
	}
	return took, bad, nil
}

// rouse wakes Next if it waits.
func (q *Queue) rouse() {
	if q.idle {
		q.idle = false
		signal(q.wake)
	}
}

// signal puts a token into c, which has room for one, unless it holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// add appends m unless a bound stands against it, and reports whether it did.
func (q *Queue) add(m mqtt.Message, t taking) bool {
	q.stats.Accepted++
	n := size(m)
	for q.stats.Bytes+n > q.cfg.MaxBytes {
		if q.cfg.DropNewest || n > q.cfg.MaxBytes || !q.dropOldest() {
			q.stats.Dropped++
			return false
		}
	}
	last := q.last()
	if !last.fits(m) {
		if last.live == 0 {
			q.reclaim(last)
		}
		fresh := newChunk(last.end(), need(m), &q.spares)
		if !q.room(fresh.memory()) {
			q.stats.Dropped++
			return false
		}
		q.grow(fresh)
		q.trim()
		last = fresh
	}
	q.memory -= last.memory()
	last.add(m, t)
	q.memory += last.memory()
	q.stats.Messages++
	q.stats.Bytes += n
	return true
}

func (q *Queue) last() *chunk { return q.chunks[len(q.chunks)-1] }

// next is the sequence number of the next message.
func (q *Queue) next() uint64 { return q.last().end() }

func (q *Queue) grow(c *chunk) {
	q.chunks = append(q.chunks, c)
	q.memory += c.memory()
}

// room makes sure that n more bytes of memory may be taken, and reports
// whether they may: what is in the file too is put away, then, if the file does
// not take what it should, the bounds of memory hold as those of the queue do.
func (q *Queue) room(n int64) bool {
	if q.store == nil {
		return true // MaxBytes bounds it
	}
	if q.memory+n > q.full {
		signal(q.kick)
	}
	most := max(q.most, n+q.keep) // one message may be larger than all else
	for q.memory+n > most {
		if q.putAway(most - n); q.memory+n <= most {
			break
		}
		if q.cfg.DropNewest || !q.dropResident() {
			return false
		}
	}
	return true
}

// putAway gives memory back until no more than most is taken: the newest
// chunks first, since the oldest are the next to be sent.
func (q *Queue) putAway(most int64) {
	if q.memory <= most {
		return
	}
	// What Next comes to first, and after that, stays.
	pos, _, _ := q.find(q.pos, false)
	live, _, _ := q.find(q.live, false)
	for i := len(q.chunks) - 2; i >= 0 && q.memory > most; i-- {
		c := q.chunks[i]
		if c.away || c.live == 0 || c.out > 0 || c.end() > q.synced || i == pos || i == pos+1 || i == live {
			continue
		}
		q.memory -= c.memory()
		c.putAway()
		q.memory += c.memory()
	}
}

// locate returns the index of the chunk that covers seq, or the next after it
// would be; 0 for what is before all.
func (q *Queue) locate(seq uint64) int {
	lo, hi := 0, len(q.chunks)
	if hi > 1 && seq < q.chunks[1].first {
		return 0 // what is acknowledged is nearly always here
	}
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; q.chunks[mid].first <= seq {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

// find returns the first message from seq on that waits, as chunk and record,
// and false if there is none. The record is -1 if its chunk is away. If skip is
// true chunks that are away are passed over.
func (q *Queue) find(seq uint64, skip bool) (ci, i int, ok bool) {
	for ci = q.locate(seq); ci < len(q.chunks); ci++ {
		c := q.chunks[ci]
		if c.live == c.out || c.end() <= seq || c.away && skip {
			continue
		}
		if c.away {
			return ci, -1, true
		}
		i = 0
		if seq > c.first {
			i = int(seq - c.first)
		}
		for ; i < len(c.records); i++ {
			if c.records[i].state == waiting {
				return ci, i, true
			}
		}
	}
	return 0, 0, false
}

// dropOldest gives up the oldest message that waits, or the oldest chunk of
// them if it is away, or if all are handed out the oldest of those. It reports
// whether there was one.
func (q *Queue) dropOldest() bool {
	ci, i, ok := q.find(0, false)
	switch {
	case ok && i < 0:
		q.dropChunk(ci)
		return true
	case ok:
		q.giveUp(ci, i)
		q.stats.Dropped++
		return true
	}
	for ci, c := range q.chunks {
		for i := range c.records {
			if c.records[i].state == handed {
				c.lent = true // to whoever is sending it
				q.remove(ci, i)
				q.stats.Dropped++
				return true
			}
		}
	}
	return false
}

// dropResident gives up the oldest chunk in memory that has messages waiting.
func (q *Queue) dropResident() bool {
	for ci, c := range q.chunks {
		if !c.away && c.live > c.out && ci < len(q.chunks)-1 {
			q.dropChunk(ci)
			return true
		}
	}
	return false
}

// dropChunk gives up what waits in a chunk.
func (q *Queue) dropChunk(ci int) {
	c := q.chunks[ci]
	q.stats.Dropped += uint64(c.live - c.out)
	q.removeWaiting(ci)
}

// removeWaiting takes what waits in a chunk out of the queue.
func (q *Queue) removeWaiting(ci int) {
	c := q.chunks[ci]
	if c.away { // nothing of it is handed out
		q.stats.Messages -= c.live
		q.stats.Bytes -= c.size
		c.live, c.size, c.done = 0, 0, nil
		q.trim()
		return
	}
	for i := range c.records {
		if c.records[i].state == waiting {
			q.breakPromise(c.first + uint64(i))
			q.settle(c, i)
		}
	}
	q.buried(c)
}

// giveUp is remove for a message that has not arrived.
func (q *Queue) giveUp(ci, i int) {
	q.breakPromise(q.chunks[ci].first + uint64(i))
	q.remove(ci, i)
}

// remove takes record i of chunk ci out of the queue.
func (q *Queue) remove(ci, i int) {
	c := q.chunks[ci]
	q.settle(c, i)
	q.buried(c)
}

// settle makes record i of c gone.
func (q *Queue) settle(c *chunk, i int) {
	r := &c.records[i]
	if r.state == handed {
		q.stats.Handed--
		c.out--
	}
	r.state = gone
	q.stats.Messages--
	q.stats.Bytes -= r.size()
	c.live--
	c.size -= r.size()
}

// buried gives back the memory of a chunk of which nothing is left.
func (q *Queue) buried(c *chunk) {
	if c.live == 0 && c != q.last() {
		q.reclaim(c)
	}
	q.trim()
}

// reclaim takes the memory of a chunk of which nothing is left: while messages
// come and go, always the same pieces are filled, and there is no garbage.
func (q *Queue) reclaim(c *chunk) {
	q.memory -= c.memory()
	if !c.lent && cap(c.bytes) == chunkBytes && len(q.spares) < sparesMost {
		q.spares = append(q.spares, spare{c.bytes[:0], c.records[:0]})
	}
	c.bytes, c.records = nil, nil
	q.memory += c.memory()
}

// trim forgets the chunks at the head of which nothing is left.
func (q *Queue) trim() {
	n := 0
	for n < len(q.chunks)-1 && q.chunks[n].live == 0 {
		q.chunks[n] = nil
		n++
	}
	q.chunks = q.chunks[n:]
}

// head is the sequence number of the oldest message, or of the next if there
// is none.
func (q *Queue) head() uint64 {
	for _, c := range q.chunks {
		if c.live == 0 {
			continue
		}
		if c.away {
			for i := range c.done {
				if !c.done[i] {
					return c.first + uint64(i)
				}
			}
			return c.first
		}
		for i, r := range c.records {
			if r.state != gone {
				return c.first + uint64(i)
			}
		}
	}
	return q.next()
}

// expire drops what waits and was taken longer than max_age before now.
func (q *Queue) expire(now time.Duration) {
	if q.cfg.MaxAge <= 0 {
		return
	}
	limit := now - q.cfg.MaxAge
	for {
		ci, i, ok := q.find(0, false)
		if !ok {
			return
		}
		c := q.chunks[ci]
		switch {
		case i < 0 && c.newest < limit: // the whole of it
			q.stats.Expired += uint64(c.live)
			q.removeWaiting(ci)
		case i >= 0 && c.records[i].at < limit:
			q.giveUp(ci, i)
			q.stats.Expired++
		default:
			return
		}
	}
}

// Next returns up to most messages in order, the oldest that have not been
// handed out since the last Rewind. If there is none it waits for one, until
// ctx ends (ctx's error) or Close (ErrClosed); what is there is returned even
// if ctx has ended. The slice is valid until the next call.
//
// With order: live_first, messages that came after the last Rewind go before
// older ones; with a rate, older ones are handed out no faster than that.
func (q *Queue) Next(ctx context.Context, most int) ([]Entry, error) {
	for {
		q.mu.Lock()
		wait, fetch, err := q.collect(most, time.Now())
		q.mu.Unlock()
		if err != nil || len(q.out) > 0 {
			return q.out, err
		}
		if fetch != nil {
			q.fetch(fetch)
			continue
		}
		if err := q.sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// sleep waits for something to hand out, for no longer than limit if that is
// not 0.
func (q *Queue) sleep(ctx context.Context, limit time.Duration) error {
	var over <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-q.wake:
	case <-over:
	case <-q.ends:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// collect fills q.out. If nothing is there it returns the chunk that must be
// read first, or how long to wait until the rate allows more (0: for ever).
func (q *Queue) collect(most int, now time.Time) (wait time.Duration, fetch *chunk, err error) {
	clear(q.out) // they hold chunks in memory
	q.out = q.out[:0]
	if q.closed {
		return 0, nil, ErrClosed
	}
	if q.ready {
		q.expire(now.Sub(q.start))
		end := ^uint64(0)
		if q.cfg.LiveFirst {
			q.live = max(q.live, q.from)
			fetch = q.handOut(&q.live, end, most, nil)
			end = q.from
		}
		if fetch == nil && len(q.out) < most {
			q.purse.fill(q.cfg.Rate, now)
			fetch = q.handOut(&q.pos, end, most, &q.purse)
			wait = q.purse.wait(q.cfg.Rate)
		}
	}
	if len(q.out) > 0 {
		return 0, nil, nil
	}
	if fetch == nil && !q.idle {
		q.idle = true
		select {
		case <-q.wake: // a token of an earlier wait that ended otherwise
		default:
		}
	}
	return wait, fetch, nil
}

// handOut appends messages that wait from *pos on and before end, and moves
// *pos on. It returns a chunk that is away and comes next. p, if not nil, pays
// for messages older than the last Rewind.
func (q *Queue) handOut(pos *uint64, end uint64, most int, p *purse) *chunk {
	skip := q.store != nil && q.store.unreadable.Load()
	for len(q.out) < most {
		ci, i, ok := q.find(*pos, skip)
		if !ok {
			return nil
		}
		c := q.chunks[ci]
		if i < 0 {
			if c.first >= end {
				return nil
			}
			return c
		}
		seq := c.first + uint64(i)
		if seq >= end || p != nil && seq < q.from && !p.pay(q.cfg.Rate, c.records[i].size()) {
			return nil
		}
		c.records[i].state = handed
		c.out++
		q.stats.Handed++
		q.out = append(q.out, c.entry(i, q.Clock))
		*pos = seq + 1
	}
	return nil
}

// Rewind makes Next begin again with the oldest message that is not done. A
// connection begins and ends with it: what was sent without an acknowledgement
// goes again, in order.
func (q *Queue) Rewind() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	for _, c := range q.chunks {
		if c.out == 0 {
			continue
		}
		for i := range c.records {
			if c.records[i].state == handed {
				c.records[i].state = waiting
			}
		}
		c.out = 0
	}
	q.stats.Handed = 0
	q.pos, q.live, q.from = 0, 0, q.next()
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
		ci := q.locate(seq)
		c := q.chunks[ci]
		if seq < c.first || seq >= c.end() || c.live == 0 {
			continue
		}
		i := int(seq - c.first)
		switch {
		case c.away:
			if !q.doneAway(c, i) {
				continue
			}
		case c.records[i].state != gone:
			q.remove(ci, i)
		default:
			continue
		}
		q.stats.Done++
		// Live messages are done long before the back-fill, and must not come
		// again after a restart. More than so many do.
		if q.cfg.LiveFirst && seq < q.synced && seq >= q.pos && len(q.stale) < txRecords {
			q.stale = append(q.stale, seq)
		}
	}
	if len(q.waits)+len(q.promises) > 0 {
		q.release()
	}
	return nil
}

// doneAway takes message i of a chunk that is away out of the queue. What it
// counted is not known until the chunk is back; the mean stands for it.
func (q *Queue) doneAway(c *chunk, i int) bool {
	if c.done == nil {
		c.done = make([]bool, c.n)
	}
	if c.done[i] {
		return false
	}
	c.done[i] = true
	mean := c.size / int64(c.live)
	c.live--
	c.size -= mean
	q.stats.Messages--
	q.stats.Bytes -= mean
	q.trim()
	return true
}

// Overdue returns for how long Run has been owing its next step: a disk may
// make it wait, or it hangs.
func (q *Queue) Overdue() time.Duration { return q.beat.Overdue() }

// Stats returns what the queue holds now.
func (q *Queue) Stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.stats
	s.Memory = q.memory
	if q.store != nil {
		s.Flash, s.Fault = q.store.ledger.Report(), q.store.trouble()
	}
	s.Age = q.age()
	return s
}

// age returns how long ago the oldest message was taken, 0 if there is none.
func (q *Queue) age() time.Duration {
	for _, c := range q.chunks {
		if c.live == 0 {
			continue
		}
		at := c.oldest
		for _, r := range c.records {
			if r.state != gone {
				at = r.at
				break
			}
		}
		return time.Since(q.start) - at
	}
	return 0
}

// purse is the allowance of the back-fill: bytes that may be handed out now.
// It may be overdrawn once by a message larger than what is in it.
type purse struct {
	bytes float64
	at    time.Time
}

// fill adds what rate bytes per second have made since the last time, up to
// one second's.
func (p *purse) fill(rate int64, now time.Time) {
	if rate > 0 {
		p.bytes = min(p.bytes+now.Sub(p.at).Seconds()*float64(rate), float64(rate))
	}
	p.at = now
}

// pay takes n bytes out and reports whether there was anything in it.
func (p *purse) pay(rate, n int64) bool {
	if rate <= 0 {
		return true
	}
	if p.bytes <= 0 {
		return false
	}
	p.bytes -= float64(n)
	return true
}

// wait returns how long it takes until pay says yes again; 0 if it does now.
func (p *purse) wait(rate int64) time.Duration {
	if rate <= 0 || p.bytes > 0 {
		return 0
	}
	return time.Duration((1-p.bytes)/float64(rate)*float64(time.Second)) + time.Millisecond
}
