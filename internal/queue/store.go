package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/internal/clock"
	"fieldgate/internal/flash"
)

// ErrNotSafe is what Sync answers when the file takes nothing.
var ErrNotSafe = errors.New("messages are in memory only")

// errTaken says that the file, in which there were messages, is not there.
var errTaken = errors.New("file was taken away")

// Times of the file's keeper.
const (
	lookEvery = time.Second // for messages past their age, and between full and not
	pauseMost = time.Minute // after a fault of the file

	// tookFirst is how long the first commit is thought to take: it makes the file.
	tookFirst = 100 * time.Millisecond
)

// A disk counts as full until it has room for so much as was to be written last,
// and no more than roomMost.
const roomMost = 64 << 10

// A file is made anew when it is larger than compactFrom and less than a
// quarter of it, and no more than compactMost, is still wanted.
const (
	compactFrom = 4 << 20
	compactMost = 1 << 20
)

// store is the file under a queue with its faults: opened late, retried,
// replaced. It belongs to Run, but for what says otherwise.
type store struct {
	path   string
	log    *slog.Logger
	most   int64        // bytes that the file may grow to; 0: any
	ledger flash.Ledger // for all

	lock sync.RWMutex // held for reading by fetch while it uses file, for writing to change it
	file *file        // nil: none, or none that can be used

	first, end uint64 // the file may hold messages from first up to end
	dirty      bool   // some of them are done
	since      time.Time

	begun uint64    // number of the first message of this process
	apart bool      // the file could not be read yet; what it holds comes in when it can
	large time.Time // until then it is left as large as it is
	retry time.Time // when failing: not before
	pause time.Duration
	took  time.Duration // the longest commit of late
	short int64         // bytes for which it had no room when it failed; 0: that was not it

	// For all.
	failing    atomic.Bool // it takes nothing: no write has succeeded since one failed
	unreadable atomic.Bool // what is in it cannot be had at the moment
	fault      atomic.Pointer[string]
}

func newStore(dir, name string, log *slog.Logger) *store {
	s := &store{path: filepath.Join(dir, fileName(name)), log: log, took: tookFirst}
	if strconv.IntSize == 32 {
		s.most = addressMost
	}
	return s
}

// trouble returns why the file takes nothing, "" if it does.
func (s *store) trouble() string {
	if text := s.fault.Load(); text != nil {
		return *text
	}
	return ""
}

// use replaces the file and closes the one before.
func (s *store) use(f *file) {
	s.lock.Lock()
	old := s.file
	if s.file = f; f != nil {
		f.most = s.most
	}
	s.lock.Unlock()
	if old != nil && old != f {
		old.close()
	}
}

// reopen closes the file and opens it again; what is in it is known. fetch
// waits for it.
func (s *store) reopen() error {
	s.lock.Lock()
	defer s.lock.Unlock()
	if s.file != nil {
		s.file.close()
	}
	var err error
	if s.file, err = openFile(s.path, &s.ledger, nil); err == nil {
		s.file.most = s.most
	}
	return err
}

// failed notes that the file takes nothing, and reports whether that is new.
// The next try waits for least, and longer each time.
func (s *store) failed(now time.Time, least time.Duration, err error) (isNew bool) {
	s.pause = min(max(2*s.pause, least), pauseMost)
	s.retry = now.Add(s.pause)
	text := err.Error()
	s.fault.Store(&text)
	if s.file == nil && s.holds() {
		s.unreadable.Store(true)
	}
	return !s.failing.Swap(true)
}

// worked notes that the file was written, and reports whether that is new.
func (s *store) worked() (isNew bool) {
	s.pause, s.short = 0, 0
	s.fault.Store(nil)
	return s.failing.Swap(false)
}

// holds reports whether there may be messages in the file.
func (s *store) holds() bool { return s.end > s.first }

// open opens the file for writing, and makes it if there is none.
func (s *store) open() error {
	if s.file != nil && !s.file.readOnly {
		return nil
	}
	if s.file != nil {
		// To open it means to read all of it: not as long as it is of no use.
		if err := s.writable(); err != nil {
			return err
		}
	}
	err := s.reopen()
	switch {
	case err == nil && s.file.readOnly:
		return s.writable()
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case s.holds():
		return errTaken
	}
	f, err := createFile(s.path, &s.ledger)
	if err == nil {
		s.use(f)
	}
	return err
}

// writable returns why the file may not be written.
func (s *store) writable() error {
	if err := unix.Access(s.path, unix.W_OK); err != nil {
		return fmt.Errorf("write %s: %w", s.path, err)
	}
	return nil
}

// fileFailed notes that the file takes nothing, and tells it once.
func (q *Queue) fileFailed(now time.Time, err error) {
	if q.store.failed(now, q.pause, err) {
		q.log.Error("queue file takes nothing, messages stay in memory", "err", err)
		q.tell(Event{Kind: FileFault, Reason: err.Error()})
	}
}

// fileWorked notes that the file was written, and tells when that is the first
// time after it took nothing. That it can be read says nothing: so can a file on a
// disk that has become read-only, and so can none at all.
func (q *Queue) fileWorked() {
	if q.store.worked() {
		q.log.Info("queue file takes messages again", "file", q.store.path)
		q.tell(Event{Kind: FileFault, Over: true})
	}
}

// Run keeps the file: it reads what an earlier process left, writes what waits
// longer than the commit interval, forgets what is done, and logs when
// messages are lost and when that is over. It returns nil once ctx has ended
// and all that waits is in the file. A queue with a file hands nothing out
// before Run has read it.
func (q *Queue) Run(ctx context.Context) error {
	q.keeping.Lock()
	defer q.keeping.Unlock()
	if q.store != nil {
		q.index()
	}
	period := q.period()
	tick := time.NewTimer(q.untilLook(period))
	defer tick.Stop()
	var losses losses
	var looked time.Time
	defer q.beat.Stops()
	for {
		q.beat.Rests(period)
		select {
		case <-ctx.Done():
			q.persist(true)
			return nil
		case <-q.kick:
			q.persist(false)
			continue
		case <-tick.C:
		}
		q.persist(false)
		tick.Reset(q.untilLook(period))
		now := time.Now()
		if now.Sub(looked) < lookEvery {
			continue
		}
		looked = now
		q.Clock.Look()
		q.lookForLosses(now, &losses)
	}
}

// period is the time between two looks at what waits.
func (q *Queue) period() time.Duration {
	if q.cfg.Commit == 0 {
		return lookEvery
	}
	return min(lookEvery, max(q.cfg.Commit/4, 10*time.Millisecond))
}

// ripe is how old a message must be at a look to be written: at the next look, and
// with the time that the disk takes, it would be older than the commit interval.
// A disk that is slower than half of it is not written without a pause.
func (q *Queue) ripe() time.Duration {
	return q.cfg.Commit - q.period() - min(q.store.took, q.cfg.Commit/2)
}

// untilLook returns how long it is to the next look: at a multiple of period, or
// while nothing waits of two periods, by the wall clock of the start. Polls begin
// at such times, too (see package bus): a process that sleeps wakes up once for
// both.
func (q *Queue) untilLook(period time.Duration) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stats.Messages == 0 {
		period = min(2*period, lookEvery)
	}
	return period - time.Duration((q.start.UnixNano()+int64(time.Since(q.start)))%int64(period))
}

// index reads which messages the file holds, puts them before those that came
// meanwhile, and lets Next begin. If the file cannot be opened now, because
// another process has it or the disk stumbles, Next begins without it, with
// numbers above all that it can hold, and it is read later.
func (q *Queue) index() {
	s := q.store
	_ = os.Remove(s.path + ".new") // of a process that ended while it made a file
	err := q.read(func(end uint64) bool {
		q.shift(end - q.chunks[0].first)
		q.synced, q.from = end, end
		return true
	})
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil {
		s.apart = true
		// A million for each millisecond since 1970: no process comes near.
		q.shift(uint64(max(1, time.Now().UnixMilli())) << 20)
		s.begun = q.chunks[0].first
	}
	q.pos, q.live = 0, 0
	q.ready = true
	q.rouse()
}

// shift adds to the numbers of all messages in memory, of which none has been
// handed out. q.mu is held.
func (q *Queue) shift(by uint64) {
	for _, c := range q.chunks {
		c.first += by
	}
	for i := range q.waits {
		q.waits[i].below += by
	}
	for i := range q.promises {
		q.promises[i].below += by
	}
	if q.hasty > 0 {
		q.hasty += by
	}
}

// read takes in what the file holds, which Next gives first. fits is asked, with
// q.mu held, whether it may be, by the number after the last of it. It returns an
// error if the file cannot be opened now; one that is damaged is put aside, and an
// error if it cannot.
func (q *Queue) read(fits func(end uint64) bool) error {
	s := q.store
	var found []*chunk
	var damaged uint64
	f, err := q.scan(&found, &damaged)
	switch {
	case err == nil:
		s.use(f)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, ErrCorrupt):
		return q.setAside(err)
	default:
		q.fileFailed(time.Now(), err)
		return err
	}
	if !q.takeIn(found, damaged, fits) {
		return q.setAside(corrupt("its numbers are not below those of this run"))
	}
	return nil
}

// takeIn puts what was found in the file before what is in memory, and reports
// whether it fits there.
func (q *Queue) takeIn(found []*chunk, damaged uint64, fits func(end uint64) bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.Damaged += damaged
	q.stats.Found += damaged
	s := q.store
	end := s.file.head
	if len(found) > 0 {
		end = max(end, found[len(found)-1].end())
	}
	if end > 0 && !fits(end) {
		return false
	}
	switch {
	case s.file.old:
		s.first, s.end = 0, end
	case len(found) > 0:
		s.first, s.end = found[0].first, end
	}
	if len(found) == 0 {
		return true
	}
	for _, c := range found {
		q.stats.Messages += c.live
		q.stats.Bytes += c.size
		q.stats.Found += uint64(c.live)
	}
	q.chunks = append(found, q.chunks...)
	for q.stats.Bytes > q.cfg.MaxBytes && q.dropOldest() {
	}
	q.pos = 0
	q.log.Info("queue file holds messages of an earlier run", "messages", q.stats.Found, "file", s.path)
	q.rouse()
	return true
}

// readLate reads a file that could not be opened at the start, and reports
// whether it is out of the way now: read, gone or put aside.
func (q *Queue) readLate() bool {
	// Its numbers are below ours, unless the clock stood in another year at such
	// a start before.
	s := q.store
	if err := q.read(func(end uint64) bool { return end <= s.begun }); err != nil {
		return false
	}
	s.apart = false
	return true
}

// scan opens the file and makes chunks, all away, for what is in it.
func (q *Queue) scan(found *[]*chunk, damaged *uint64) (*file, error) {
	*found, *damaged = nil, 0
	now := time.Now()
	var c *chunk
	return openFile(q.store.path, &q.store.ledger, func(seq uint64, b []byte, ok bool) {
		if !ok || !wellFormed(b) {
			*damaged++
			return
		}
		at := q.took(b, now)
		n := int64(len(b)-extra(b)) - recordHeader + overhead
		if c == nil || c.size+n > chunkBytes || seq-c.first >= chunkSpan {
			c = &chunk{first: seq, away: true, oldest: at}
			*found = append(*found, c)
		}
		c.n, c.newest = int(seq-c.first)+1, max(c.newest, at)
		c.oldest = min(c.oldest, at)
		c.live++
		c.size += n
	})
}

// took says when the message of record b was taken, on the monotonic clock.
// Where either clock was not set, and it cannot be known by how much it was
// wrong, it counts as taken now: a board that woke up in 1970 must not find all
// it kept too old.
func (q *Queue) took(b []byte, now time.Time) time.Duration {
	wall, known := wallTime(b), true
	if s, _, unsynced := stampOf(b); unsynced {
		var later time.Duration
		later, known = q.Clock.Shift(s)
		wall = wall.Add(later)
	}
	day, set := q.Clock.At(now)
	age := time.Duration(day - wall.UnixNano())
	if !known || !set || wall.Before(clock.Epoch) || day < clock.Epoch.UnixNano() || age < 0 {
		age = 0
	}
	return now.Sub(q.start) - age
}

// fetch reads a chunk that is away. It is called by Next, beside Run.
func (q *Queue) fetch(c *chunk) {
	s := q.store
	var f fetched
	now := time.Now()
	err := errors.New("it is not open")
	s.lock.RLock()
	if s.file != nil {
		err = s.file.load(c.first, c.end()-1, func(seq uint64, b []byte, ok bool) {
			if ok && wellFormed(b) {
				f.take(c.first, seq, b, q.took(b, now))
			}
		})
	}
	s.lock.RUnlock()
	if err != nil {
		// Run looks at the file, and puts it aside if it has to; until then what
		// is in it is passed over.
		s.unreadable.Store(true)
		signal(q.kick)
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if !c.away || c.live == 0 {
		return // dropped meanwhile
	}
	lost, size := c.bringBack(f)
	q.memory += c.memory()
	q.stats.Messages -= lost
	q.stats.Bytes -= size
	q.stats.Damaged += uint64(lost)
	q.putAway(q.keep)
	q.trim()
}

// Sync returns nil once every message that was delivered before is in the file
// or gone (acknowledged, dropped): they survive a power cut. Calls share one
// transaction. It returns ErrNotSafe if the file takes nothing, or ctx's error.
func (q *Queue) Sync(ctx context.Context) error {
	if q.store == nil || q.store.failing.Load() {
		return ErrNotSafe
	}
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return ErrClosed
	}
	w := syncWait{below: q.next(), safe: make(chan bool, 1)}
	q.waits = append(q.waits, w)
	q.release()
	q.mu.Unlock()
	signal(q.kick)
	select {
	case safe := <-w.safe:
		if !safe {
			return ErrNotSafe
		}
		return nil
	case <-q.ends:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// release ends the waits of Sync and Accept that are fulfilled.
func (q *Queue) release() {
	q.unsynced()
	q.keepPromises()
	left := q.waits[:0]
	for _, w := range q.waits {
		if w.below <= q.synced {
			w.safe <- true
			continue
		}
		left = append(left, w)
	}
	q.waits = left
}

// unsynced moves synced past what is gone, and returns the oldest message that
// is not in the file.
func (q *Queue) unsynced() (c *chunk, i int, ok bool) {
	for ci := q.locate(q.synced); ci < len(q.chunks); ci++ {
		c := q.chunks[ci]
		if c.end() <= q.synced {
			continue
		}
		if c.live > 0 && !c.away {
			for i := int(max(q.synced, c.first) - c.first); i < len(c.records); i++ {
				if c.records[i].state != gone {
					q.synced = c.first + uint64(i)
					return c, i, true
				}
			}
		}
		q.synced = c.end()
	}
	return nil, 0, false
}

// persist brings the file up to date as far as it is time: with all, in any case.
func (q *Queue) persist(all bool) {
	s := q.store
	if s == nil {
		q.giveUpWaits()
		return
	}
	now := time.Now()
	if resting := s.failing.Load() && now.Before(s.retry); resting && !all {
		q.giveUpWaits()
		return
	}
	if s.apart && !q.readLate() || s.unreadable.Load() && !q.mend(now) {
		q.giveUpWaits()
		return
	}
	const rounds = 32 // then Run has a look at its other work
	for i := 0; all || i < rounds; i++ {
		q.mu.Lock()
		puts, upTo, bytes := q.due(all, now)
		below := q.head()
		stale := len(q.stale)
		if len(puts) == 0 {
			q.behind = false
		}
		q.mu.Unlock()
		if len(puts) == 0 && !q.forgettable(all, below, stale > 0, now) {
			if s.failing.Load() && !all {
				q.tryFile(now)
			}
			return
		}
		begin := time.Now()
		more, err := q.write(below, q.takeStale(below), puts)
		s.took = max(time.Since(begin), s.took*7/8)
		if err != nil {
			if q.writeFailed(now, err, bytes) {
				continue
			}
			q.giveUpWaits()
			return
		}
		if len(puts) > 0 || s.short == 0 { // a full disk takes what only deletes
			q.fileWorked()
		}
		if s.first, s.end = below, max(s.end, upTo); more {
			s.first = 0
		}
		s.dirty = more
		q.mu.Lock()
		q.synced = max(q.synced, upTo)
		q.release()
		q.putAway(q.keep)
		q.mu.Unlock()
		q.compact(below)
	}
	signal(q.kick)
}

// due returns what is to be written now, the number after the last of it, and
// its bytes: nothing, or all that is not in the file (within the bounds of a
// transaction), once the oldest of it will soon be as old as the commit interval,
// Sync or Accept waits for it, DeliverNow brought some of it, it takes too much memory,
// or with all.
func (q *Queue) due(all bool, now time.Time) (puts []put, upTo uint64, bytes int64) {
	if !q.ready {
		return nil, 0, 0
	}
	c, i, ok := q.unsynced()
	if !ok {
		q.release() // of what was dropped, too
		return nil, q.synced, 0
	}
	age := now.Sub(q.start) - c.records[i].at
	if !all && age < q.ripe() && len(q.waits) == 0 && !q.late(now) && q.hasty <= q.synced && q.unwritten() < q.full {
		return nil, q.synced, 0
	}
	for ci := q.locate(q.synced); ci < len(q.chunks); ci++ {
		c := q.chunks[ci]
		if c.away || c.live == 0 {
			continue
		}
		for i, r := range c.records {
			seq := c.first + uint64(i)
			if r.state == gone || seq < q.synced {
				continue
			}
			if len(puts) == txRecords || bytes > txBytes {
				return puts, upTo, bytes
			}
			c.lent = true
			puts = append(puts, put{seq: seq, bytes: c.bytes[r.off : r.off+r.len : r.off+r.len]})
			upTo = seq + 1
			bytes += int64(r.len)
		}
	}
	return puts, upTo, bytes
}

// unwritten is how much of the memory taken is not in the file.
func (q *Queue) unwritten() (n int64) {
	for ci := q.locate(q.synced); ci < len(q.chunks); ci++ {
		n += q.chunks[ci].memory()
	}
	return n
}

// forgettable reports whether it is time to delete what is done from the file.
func (q *Queue) forgettable(all bool, below uint64, stale bool, now time.Time) bool {
	s := q.store
	if (!s.holds() || below <= s.first) && !stale {
		return false
	}
	if !s.dirty {
		s.dirty, s.since = true, now
	}
	wait := max(q.cfg.Commit, lookEvery) * 3 / 4
	if below >= s.end {
		wait /= 4 // the outage is over: what a kill brings again need not be all of it
	}
	return all || now.Sub(s.since) >= wait
}

// takeStale returns the messages from a sequence number on that are to be
// deleted from the file, and forgets them: should that fail they may come again.
func (q *Queue) takeStale(from uint64) []uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	gone := q.stale[:0]
	for _, seq := range q.stale {
		if seq >= from {
			gone = append(gone, seq)
		}
	}
	q.stale = nil
	return gone
}

// write opens the file if it must, and commits.
func (q *Queue) write(below uint64, gone []uint64, puts []put) (more bool, err error) {
	if err := q.store.open(); err != nil {
		return false, err
	}
	return q.store.file.commit(below, gone, puts)
}

// tryFile finds out whether a file that took nothing does now, while there is
// nothing to write: else its alarm would stand until the next outage. It comes as
// seldom as every try does.
func (q *Queue) tryFile(now time.Time) {
	s := q.store
	err := s.open()
	if err == nil {
		err = s.file.try(s.short)
	}
	if err != nil {
		q.writeFailed(now, err, 0)
		return
	}
	q.fileWorked()
}

// writeFailed deals with a commit of so many bytes that failed, and reports
// whether to try again at once.
func (q *Queue) writeFailed(now time.Time, err error, bytes int64) (again bool) {
	s := q.store
	if errors.Is(err, errTaken) {
		q.forgetFile()
		return true
	}
	if !errors.Is(err, ErrCorrupt) && s.file != nil && !s.file.readOnly {
		// bbolt may hold half of what failed in its own books: it begins anew.
		switch rerr := s.reopen(); {
		case errors.Is(rerr, ErrCorrupt):
			err = rerr
		case rerr == nil && noSpace(err) && !q.cfg.DropNewest && q.makeSpace(bytes):
			return true
		}
	}
	if errors.Is(err, ErrCorrupt) {
		return q.setAside(err) == nil
	}
	if noSpace(err) {
		s.short = max(s.short, min(bytes, roomMost))
	}
	q.fileFailed(now, err)
	return false
}

// makeSpace drops the oldest messages in the file, to about the size of so many
// bytes, and deletes them: their pages are then free for new ones. It reports
// whether it could.
func (q *Queue) makeSpace(bytes int64) bool {
	s := q.store
	q.mu.Lock()
	dropped := false
	for bytes > 0 {
		ci, _, ok := q.find(0, false)
		if !ok || q.chunks[ci].end() > q.synced {
			break
		}
		bytes -= q.chunks[ci].size
		q.dropChunk(ci)
		dropped = true
	}
	below := q.head()
	q.mu.Unlock()
	if !dropped {
		return false
	}
	if _, err := s.file.commit(below, nil, nil); err != nil {
		_ = s.reopen() // whoever needs it next says what is wrong
		return false
	}
	return true
}

// mend looks at the file after it could not be read, and reports whether it can
// be read now, or what was in it is known to be lost.
func (q *Queue) mend(now time.Time) bool {
	s := q.store
	switch err := s.reopen(); {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist): // somebody took it away
		q.forgetFile()
	case errors.Is(err, ErrCorrupt):
		if q.setAside(err) != nil {
			return false
		}
	default:
		q.fileFailed(now, err)
		return false
	}
	s.unreadable.Store(false)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pos, q.live = 0, 0 // what was passed over comes now
	q.rouse()
	return true
}

// setAside gets a damaged file out of the way; what was in it is lost. If that
// fails, as it does on a disk that is read-only, the file takes nothing, and is
// put aside at a later try.
func (q *Queue) setAside(err error) error {
	s := q.store
	s.use(nil)
	aside, rerr := putAside(s.path)
	if rerr != nil {
		err = errors.Join(err, fmt.Errorf("put aside: %w", rerr))
		q.forgetFile()
		q.fileFailed(time.Now(), err)
		return err
	}
	s.log.Error("queue file is damaged and was put aside, going on with an empty one", "err", err, "file", aside)
	q.tell(Event{Kind: PutAside, Reason: err.Error(), File: aside})
	q.forgetFile()
	return nil
}

// forgetFile counts what was in the file only as lost; what is in memory too
// is to be written again.
func (q *Queue) forgetFile() {
	s := q.store
	s.first, s.end, s.dirty = 0, 0, false
	q.mu.Lock()
	defer q.mu.Unlock()
	for ci := 0; ci < len(q.chunks); ci++ {
		if c := q.chunks[ci]; c.away && c.live > 0 {
			q.stats.Damaged += uint64(c.live)
			q.stats.Messages -= c.live
			q.stats.Bytes -= c.size
			c.live, c.size, c.done = 0, 0, nil
		}
	}
	q.trim()
	q.synced, q.stale = 0, nil
	q.rouse()
}

// compact makes a file anew that is mostly empty.
func (q *Queue) compact(below uint64) {
	s := q.store
	if s.file == nil || s.dirty || time.Now().Before(s.large) {
		return
	}
	q.mu.Lock()
	wanted := q.stats.Bytes
	q.mu.Unlock()
	size := s.file.size()
	if s.file.readOnly || size < compactFrom || wanted > compactMost || wanted > size/4 {
		return
	}
	fresh, err := s.file.rewrite(below)
	if err != nil {
		s.large = time.Now().Add(10 * pauseMost)
		s.log.Warn("queue file is not made smaller", "err", err)
		return
	}
	s.use(fresh)
}

// giveUpWaits ends the waits of Sync: the file takes nothing.
func (q *Queue) giveUpWaits() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range q.waits {
		w.safe <- false
	}
	q.waits = nil
}

// Close writes what waits to the file and ends the queue: a waiting Next
// returns, and every later call answers ErrClosed. What is in no file is lost
// with the process; its number is logged. If Run hangs on a disk that does not
// answer, the file is left to it.
func (q *Queue) Close() error {
	q.mu.Lock()
	closed := q.closed
	q.closed = true
	ready := q.ready
	q.mu.Unlock()
	if closed {
		return nil
	}
	close(q.ends)
	if q.store != nil && q.keeping.TryLock() {
		if ready {
			q.persist(true)
			q.store.use(nil)
		}
		q.keeping.Unlock()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	lost := 0
	for ci := q.locate(q.synced); ci < len(q.chunks); ci++ {
		for i, r := range q.chunks[ci].records {
			if r.state != gone && (q.store == nil || q.chunks[ci].first+uint64(i) >= q.synced) {
				lost++
			}
		}
	}
	if q.store == nil {
		lost = q.stats.Messages
	}
	if lost > 0 {
		q.log.Error("queue closed with messages that are in no file", "lost", lost)
	}
	return nil
}
