package publish

import (
	"math"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/pipeline"
	"fieldgate/internal/point"
)

// moment is a time since the Publisher's start, by the monotonic clock.
type moment = time.Duration

const never moment = math.MaxInt64

// rule is a rule at work.
type rule struct {
	*form
	when    config.When // without heartbeat and gap for a timed rule
	band    band
	change  bool  // any change counts, there is no band
	sinks   []int // in Publisher.sinks
	streams []stream

	nextBeat moment        // no heartbeat is due before
	beatSlot time.Duration // heartbeats due within this time are sent together
	nextGap  moment        // no gap of held ends before
	gapSlot  time.Duration // gaps that end within this time are ended together, at its end
	held     []*stream     // may have something to say when their gap ends
	tick     time.Time     // a timed rule's next time of day
}

// stream is one topic of one rule at work: its messages are numbered, and
// at_most keeps them apart.
// There may be one for each point, so what only a batch needs stands apart.
type stream struct {
	rule   *rule
	name   string   // the topic's
	only   [1]*unit // of a stream that is no batch
	batch  *batch   // nil: it is none
	seq    uint64   // of the last message
	last   moment   // when that was sent
	sent   bool     // there was one
	held   bool     // waits for the end of the gap
	listed bool     // is in rule.held
}

// batch is a stream of several points.
type batch struct {
	units   []*unit
	fresh   []*unit // those that have a reading that may be published
	touched bool    // is in Publisher.touched
	due     bool    // a reading of the current step is to be published
}

// units returns the points of a stream.
func (st *stream) units() []*unit {
	if st.batch != nil {
		return st.batch.units
	}
	return st.only[:]
}

// candidates returns those points of a stream whose newest reading may be
// published.
func (st *stream) candidates() []*unit {
	if st.batch != nil {
		return st.batch.fresh
	}
	return st.only[:]
}

// unit is one point of one stream: what was published of it, and what was read
// since.
type unit struct {
	rule   *rule
	stream *stream
	text   *text

	said  point.Value   // published last
	read  reading       // newest that may be published
	last  moment        // when the last message was sent
	early time.Duration // how much too early a reading may come for a heartbeat

	quality point.Quality // of said
	sent    bool          // there was a message
	silent  bool          // the last sample was Bad, and nobody was told
	back    bool          // there was silence since the last message
	fresh   bool          // a batch: is in batch.fresh
	known   bool          // there is something in read
}

// reading is what is to be said of a sample. When it was is a moment, which
// becomes a time of day only as it is told; unless the sample came with a time
// of day of its own, as one that was kept over a restart does.
type reading struct {
	value   point.Value
	at      int64 // a moment in ns; or, own, the time of day in ms since 1970
	quality point.Quality
	own     bool
}

// take notes what is to be said of s: of a Bad one no value, whatever its source
// left in it. Moments count from start; with a zero start there are none. It fills
// r in where it is: to return a reading would cost as much as all else here.
func (r *reading) take(s *point.Sample, start time.Time) {
	r.value, r.quality = s.Value, s.Quality
	if r.own = start.IsZero() || s.Time == s.Time.Round(0); r.own { // without a monotonic reading
		r.at = s.Time.UnixMilli()
	} else {
		r.at = int64(s.Time.Sub(start))
	}
	if s.Quality == point.Bad {
		r.value = point.Value{}
	}
}

// newRule returns the rule without sinks and streams, at a time of day.
func newRule(f *form, day time.Time) *rule {
	const beatSlots, longestBeatSlot = 64, 5 * time.Second
	const gapSlots, longestGapSlot = 32, 250 * time.Millisecond
	w := f.rule.When
	r := &rule{form: f, nextBeat: never, nextGap: never}
	if f.rule.Every > 0 {
		w = config.When{}
		r.tick = nextTick(day, f.rule.Every)
	}
	r.when = w
	r.band = newBand(w)
	r.change = w.AnyChange || w.Band.IsZero()
	r.beatSlot = min(w.AtLeast/beatSlots, longestBeatSlot)
	r.gapSlot = max(1, min(w.AtMost/gapSlots, longestGapSlot))
	return r
}

// early returns how much too early a reading of a point that is read at this
// interval may come for a heartbeat: with one and a half intervals there is
// always one in time, also when it is half an interval late.
func (r *rule) early(every point.Interval) time.Duration {
	if every <= 0 {
		return 0
	}
	return min(time.Duration(every)*3/2, r.when.AtLeast/2)
}

// nextTick returns the first multiple of every in UTC after a time of day.
func nextTick(day time.Time, every time.Duration) time.Time {
	return day.Truncate(every).Add(every)
}

// take looks at one batch of the feed.
func (p *Publisher) take(now moment, b *pipeline.Batch) {
	p.samples.Add(uint64(len(b.Samples)))
	for i, n := range b.Slots {
		if int(n) >= len(p.slots) || !p.slots[n].seen {
			p.meet(n, b.Samples[i].ID)
		}
		sp := p.slots[n].span
		units := p.units[sp.first : sp.first+sp.count]
		for j := range units {
			p.look(now, &units[j], &b.Samples[i])
		}
	}
	b.Done()
	p.settle(now)
}

// meet looks up a point that is seen for the first time.
func (p *Publisher) meet(n pipeline.Slot, id point.ID) {
	for int(n) >= len(p.slots) {
		p.slots = append(p.slots, slot{})
	}
	sp, ok := p.points[id]
	p.slots[n] = slot{sp, ok}
	if !ok {
		// Looked up again each time; it is no part of the configuration.
		p.unknown.Add(1)
		return
	}
	if p.unmet--; p.unmet == 0 {
		p.points = nil // nobody will ask again
	}
}

// look decides what one sample is to one rule.
func (p *Publisher) look(now moment, u *unit, s *point.Sample) {
	r := u.rule
	if s.Quality == point.Bad && !r.rule.BadNull {
		u.silent = true
		return
	}
	u.read.take(s, p.start)
	u.known = true
	if u.silent {
		u.silent, u.back = false, true
	}
	if r.rule.Every > 0 {
		return // until wake
	}
	due := u.differs() || r.when.AtLeast > 0 && now >= u.last+r.when.AtLeast-u.early
	switch {
	case r.batch():
		p.touch(u, due)
	case due:
		p.offer(now, u.stream)
	}
}

// differs reports whether the newest reading has to be published for what it
// says, whenever that was published last.
func (u *unit) differs() bool {
	r := u.rule
	if !u.sent || u.back || r.when.Each || u.read.quality != u.quality {
		return true
	}
	if r.change {
		return u.read.value != u.said
	}
	return r.band.exceeded(u.read.value, u.said)
}

// touch notes the newest reading of a point of a batch until settle.
func (p *Publisher) touch(u *unit, due bool) {
	b := u.stream.batch
	if !b.touched {
		b.touched = true
		p.touched = append(p.touched, u.stream)
	}
	if !u.fresh {
		u.fresh = true
		b.fresh = append(b.fresh, u)
	}
	b.due = b.due || due
}

// settle ends a step for the batches it has touched.
func (p *Publisher) settle(now moment) {
	for i, st := range p.touched {
		b := st.batch
		if b.due {
			p.offer(now, st)
		} else if !st.held {
			b.forget()
		}
		b.touched, b.due = false, false
		p.touched[i] = nil
	}
	p.touched = p.touched[:0]
}

// forget drops the readings of a batch that need not be published.
func (b *batch) forget() {
	for _, u := range b.fresh {
		u.fresh = false
	}
	b.fresh = b.fresh[:0]
}

// offer sends a message, or holds it back to the end of the gap.
func (p *Publisher) offer(now moment, st *stream) {
	r := st.rule
	end := st.last + r.when.AtMost
	if !st.sent || r.when.AtMost == 0 || now >= end {
		p.send(now, st)
		return
	}
	st.held = true
	if !st.listed {
		st.listed = true
		r.held = append(r.held, st)
		r.nextGap = min(r.nextGap, r.gapEnd(end))
	}
}

// gapEnd returns when a gap that ends at end is ended, together with others.
func (r *rule) gapEnd(end moment) moment { return (end + r.gapSlot - 1).Truncate(r.gapSlot) }

// send renders the message of a stream: of a batch its fresh readings, else the
// newest reading of its point.
func (p *Publisher) send(now moment, st *stream) {
	units := st.candidates()
	p.picks = p.picks[:0]
	for _, u := range units {
		p.picks = append(p.picks, pick{u.text, &u.read})
	}
	st.seq++
	from := len(p.buf)
	p.tell.stamp = 0
	p.buf = st.rule.append(p.buf, &p.tell, st.seq, p.picks)
	stamp := 0
	if p.tell.stamp > 0 {
		stamp = p.tell.stamp - from
	}
	p.out = append(p.out, outgoing{st, st.rule.topic(st.name, p.picks[0].reading), from, len(p.buf), stamp})

	for _, u := range units {
		u.said, u.quality, u.last = u.read.value, u.read.quality, now
		u.sent, u.back, u.fresh = true, false, false
	}
	if st.batch != nil {
		st.batch.fresh = st.batch.fresh[:0]
	}
	st.last, st.sent, st.held = now, true, false
	if r := st.rule; r.when.AtLeast > 0 {
		r.nextBeat = min(r.nextBeat, now+r.when.AtLeast)
	}
}

// wake does what has become due by the clock.
func (p *Publisher) wake(now time.Time) {
	m := now.Sub(p.start)
	for _, r := range p.rules {
		if m >= r.nextGap {
			p.endGaps(m, r)
		}
		if m >= r.nextBeat {
			p.beat(m, r)
		}
		if r.rule.Every > 0 {
			p.checkTick(p.Clock.Day(now), m, r)
		}
	}
}

// next returns how long it is until wake has something to do.
func (p *Publisher) next(now time.Time) time.Duration {
	// A timed rule looks at the time of day that often: it may be set.
	const look = time.Minute
	first := time.Hour
	m, day := now.Sub(p.start), p.Clock.Day(now)
	for _, r := range p.rules {
		first = min(first, r.nextGap-m, r.nextBeat-m)
		if r.rule.Every > 0 {
			first = min(first, look, r.tick.Sub(day))
		}
	}
	return max(first, time.Millisecond)
}

// endGaps sends what was held back until the end of its gap, if it still has
// something to say.
func (p *Publisher) endGaps(now moment, r *rule) {
	r.nextGap = never
	held := r.held
	r.held = r.held[:0]
	for _, st := range held {
		end := st.last + r.when.AtMost
		switch {
		case st.held && now < end:
			r.held = append(r.held, st)
			r.nextGap = min(r.nextGap, r.gapEnd(end))
			continue
		case st.held:
			p.endGap(now, st)
		}
		st.listed = false
	}
	clear(held[len(r.held):])
}

// endGap sends what a stream held back, if it still has something to say.
func (p *Publisher) endGap(now moment, st *stream) {
	st.held = false
	for _, u := range st.candidates() {
		if u.differs() || st.rule.when.AtLeast > 0 && now >= u.last+st.rule.when.AtLeast-u.early {
			p.send(now, st)
			return
		}
	}
	if st.batch != nil {
		st.batch.forget()
	}
}

// release ends all gaps, at the end of Run.
func (p *Publisher) release(now moment) {
	for _, r := range p.rules {
		for _, st := range r.held {
			if st.held {
				p.endGap(now, st)
			}
		}
	}
}

// beat says again what has not been said for at_least. When one point is due,
// those that would be within beatSlot go with it; it looks at every point of
// the rule, but no more often than one of them may be due.
func (p *Publisher) beat(now moment, r *rule) {
	first := r.firstBeat()
	r.nextBeat = first
	if first > now {
		return // readings came in time
	}
	r.nextBeat = never
	for i := range r.streams {
		st := &r.streams[i]
		for _, u := range st.units() {
			if !u.beats() || now < u.last+r.when.AtLeast-r.beatSlot {
				continue
			}
			if r.batch() {
				p.touch(u, true)
			} else {
				p.offer(now, st)
			}
		}
	}
	p.settle(now)
	// What a gap holds back is due already and is sent at the gap's end.
	r.nextBeat = max(r.firstBeat(), now+r.beatSlot)
}

// beats reports whether a point has a heartbeat: its last reading was published.
func (u *unit) beats() bool { return u.sent && !u.silent }

// firstBeat returns when the first heartbeat of the rule is due.
func (r *rule) firstBeat() moment {
	first := never
	for i := range r.streams {
		st := &r.streams[i]
		for _, u := range st.units() {
			if u.beats() {
				first = min(first, u.last+r.when.AtLeast)
			}
		}
	}
	return first
}

// checkTick sends the last readings of a timed rule once its time has come. If
// the clock was set back, the next time is found anew.
func (p *Publisher) checkTick(day time.Time, m moment, r *rule) {
	left := r.tick.Sub(day)
	if left > 0 && left <= r.rule.Every {
		return
	}
	r.tick = nextTick(day, r.rule.Every)
	if left > 0 {
		return
	}
	for i := range r.streams {
		st := &r.streams[i]
		for _, u := range st.units() {
			if !u.known || u.silent {
				continue
			}
			if r.batch() {
				p.touch(u, true)
			} else {
				p.send(m, st)
			}
		}
	}
	p.settle(m)
}
