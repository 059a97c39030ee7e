package queue

import "time"

// Kinds of events.
const (
	Full      = "queue_full"      // messages are lost: the queue is full
	Expired   = "queue_expired"   // messages are lost: they are older than max_age
	Damaged   = "queue_damaged"   // messages are lost: they cannot be read from the file
	FileFault = "queue_file"      // the file takes nothing, messages stay in memory
	PutAside  = "queue_put_aside" // the file was damaged and is out of the way; it is never over
)

// Event is something that happened to a queue, at its beginning or its end.
type Event struct {
	Kind   string // one of the words above
	Over   bool   // it has ended
	Lost   uint64 // messages, so far or in all; 0 for what loses none, or no one knows how many
	Reason string // of what has to do with the file
	File   string // that was put aside
}

func (q *Queue) tell(e Event) {
	if q.OnEvent != nil {
		q.OnEvent(e)
	}
}

// calm is how long nothing must be lost until a loss may count as over.
const calm = 10 * time.Second

// losses is the losses of a queue that are under way.
type losses struct{ full, aged, damaged loss }

// loss is one of them.
type loss struct {
	seen   uint64    // the counter at the last look
	before uint64    // the counter when the loss began
	last   time.Time // when the counter last rose; zero: no loss now
}

// look compares the counter with the last look: it returns how many messages
// are lost at the beginning of a loss, and in all at its end. A loss is over
// when none was for a while and none is to be expected (safe).
func (l *loss) look(now time.Time, count uint64, safe bool) (began, over bool, lost uint64) {
	switch {
	case count > l.seen:
		if began = l.last.IsZero(); began {
			l.before = l.seen
		}
		l.seen, l.last = count, now
	case !l.last.IsZero() && safe && now.Sub(l.last) >= calm:
		over = true
		l.last = time.Time{}
	}
	return began, over, count - l.before
}

// lookForLosses expires what is too old, and tells of losses that have begun or
// are over, once each.
func (q *Queue) lookForLosses(now time.Time, l *losses) {
	q.mu.Lock()
	q.expire(now.Sub(q.start))
	s, age := q.stats, q.age()
	// A queue that has been full has room again when an eighth of it is free.
	room := s.Bytes < q.cfg.MaxBytes/8*7 && (q.store == nil || !q.store.failing.Load() || q.memory < q.most/8*7)
	q.mu.Unlock()
	for _, k := range []struct {
		loss         *loss
		kind         string
		count        uint64
		safe         bool
		began, ended string
	}{
		{&l.full, Full, s.Dropped, room, "queue is full, messages are lost", "queue has room again"},
		{&l.aged, Expired, s.Expired, age < q.cfg.MaxAge/8*7, "messages are older than max_age and are lost", "no more messages past max_age"},
		{&l.damaged, Damaged, s.Damaged, true, "messages in the queue file cannot be read and are lost", "queue file can be read again"},
	} {
		began, over, lost := k.loss.look(now, k.count, k.safe)
		switch {
		case began:
			q.log.Warn(k.began, "lost", lost)
		case over:
			q.log.Info(k.ended, "lost", lost)
		default:
			continue
		}
		q.tell(Event{Kind: k.kind, Over: over, Lost: lost})
	}
}
