package bus

import (
	"errors"
	"slices"
	"time"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

const (
	// busyTries is how often a request is made again that the device has put
	// off (exceptions 5 and 6), first after busyWait, then after twice that.
	busyTries = 5
	busyWait  = 100 * time.Millisecond
	busyMost  = time.Second

	// searchRun is how many requests a search makes before it lets others go
	// first.
	searchRun = 8

	// refetch is the interval from which on a value that the fence held back
	// is read again at once, and not at the next poll.
	refetch = 2 * time.Second

	// onceWait is the wait before a point is tried again that is read once.
	onceWait = time.Second
)

// poll is one round of reading a device: what is due at one time.
type poll struct {
	d       *device
	plan    *plan
	by      instant // its deadline
	due     []bool  // by class
	version int     // of what is known of the device
	results []result
	found   []result // what searches found, in place of results
	next    int      // the first result not asked for
	again   []int    // results to ask for again
	out     int      // requests under way
	dead    bool     // no more requests
	failed  bool
	heard   uint64 // the newest request answered

	fenced []int // points whose values a write has made old

	refused []int // results that the device refused, still to be searched
	search  *searching
}

// result is what became of one read of a poll.
type result struct {
	r     *read // nil: nothing is to be said of it, or others take its place
	resp  modbus.PDU
	at    time.Time
	sent  uint64
	span  span
	err   error
	tries int
	busy  int
}

// searching is a search under way.
type searching struct {
	*search
	index    int // the result of the read that was refused
	keep     int // found before the search
	items    []item
	taken    int    // runs made into results
	from, to int    // the run to ask for
	out      bool   // it is under way
	last     result // of the longest run answered
	err      error  // the newest refusal
	requests int
	silent   int // times that the run got no answer
	busy     int
}

const searchIndex = -1

// wants reports whether the poll has a request to make.
func (p *poll) wants() bool {
	return !p.dead && (len(p.again) > 0 || p.next < len(p.results) || p.search != nil && !p.search.out)
}

// learning reports whether it is finding out what the device refuses.
func (p *poll) learning() bool { return p.search != nil || len(p.refused) > 0 }

// fail ends the poll: what it has not read by now has failed with err.
func (p *poll) fail(err error) {
	if p.dead {
		return
	}
	p.dead, p.failed = true, true
	p.abandonSearch(err)
	for i := range p.results {
		if res := &p.results[i]; res.resp == nil && res.err == nil {
			res.err = err
		}
	}
}

// drop ends the poll and forgets what it has read.
func (p *poll) drop() {
	p.dead, p.failed = true, true
	p.search, p.results, p.found = nil, p.results[:0], p.found[:0]
}

// cutShort ends the poll without a word about what it has not read.
func (p *poll) cutShort() {
	if !p.dead {
		p.fail(nil)
	}
	p.results = slices.DeleteFunc(p.results, func(res result) bool { return res.resp == nil })
}

// abandonSearch ends a search without a result.
func (p *poll) abandonSearch(err error) {
	for _, i := range p.refused {
		p.results[i].err = err
	}
	p.refused = p.refused[:0]
	if s := p.search; s != nil {
		p.found = p.found[:s.keep]
		p.results[s.index].err = err
		p.search = nil
	}
}

// beginPoll starts the poll of what is due.
func (b *Bus) beginPoll(d *device, now instant) *poll {
	if d.forgetAt != 0 && now >= d.forgetAt && !slices.ContainsFunc(d.polls, (*poll).learning) {
		b.forget(d, now)
	}
	p := b.newPoll(d)
	overlap := b.jobs != nil
	p.by = never
	var late time.Duration
	var missed int
	for i, c := range p.plan.classes {
		if c.every == c.host && c.due <= now {
			p.due[i] = true
			p.by = min(p.by, c.deadline())
			l, m := d.advance(c, now, overlap)
			late, missed = max(late, l), missed+m
		}
	}
	for i, c := range p.plan.classes {
		if c.every == c.host || c.due > now+time.Duration(c.host)/2 {
			continue
		}
		// The poll of the host nearest to its time.
		if h := p.plan.classOf(c.host, c.host); p.due[h] {
			p.due[i] = true
			d.advance(c, now, overlap)
		}
	}
	for _, suspect := range []bool{true, false} { // see finishRead
		for _, r := range p.plan.reads {
			if p.due[r.class] && r.suspect() == suspect {
				p.results = append(p.results, result{r: r})
			}
		}
	}
	d.polls = append(d.polls, p)
	b.notePoll(d, late, missed)
	return p
}

func (b *Bus) newPoll(d *device) *poll {
	p := d.spare
	d.spare = nil
	if p == nil {
		p = new(poll)
	}
	*p = poll{
		d: d, plan: d.plan, version: d.version,
		due: slices.Grow(p.due[:0], len(d.plan.classes))[:len(d.plan.classes)], results: p.results[:0],
		found: p.found[:0], fenced: p.fenced[:0], again: p.again[:0], refused: p.refused[:0],
	}
	clear(p.due)
	return p
}

// pollOp returns the next request of a poll that wants one.
func (b *Bus) pollOp(p *poll, now instant) *op {
	p.out++
	i := p.next
	switch {
	case len(p.again) > 0:
		i = p.again[len(p.again)-1]
		p.again = p.again[:len(p.again)-1]
	case p.next < len(p.results):
		p.next++
	default:
		return b.searchOp(p, now)
	}
	res := &p.results[i]
	o := b.newOp(p.d, res.r.req)
	o.poll, o.index = p, i
	if res.r.suspect() && len(res.r.slots) > 1 { // before a point is given up, it gets all its time
		o.timeout = b.patience(p.d, 2)
	}
	res.sent, res.span = o.sent, b.moment()
	return o
}

// finishPollOp takes the outcome of a request of a poll.
func (b *Bus) finishPollOp(o *op, now instant, stopping bool) {
	p := o.poll
	p.out--
	if isAnswer(o.err) {
		p.heard = max(p.heard, o.sent)
	}
	switch {
	case p.dead:
	case stopping:
		p.cutShort()
	case o.index == searchIndex:
		b.finishSearchOp(o, now)
	default:
		b.finishRead(o, now)
	}
}

// endPolls ends the polls of d that have nothing more to wait for.
func (b *Bus) endPolls(d *device, now instant) {
	for i := 0; i < len(d.polls); {
		if p := d.polls[i]; p.out > 0 || p.wants() {
			i++
		} else {
			b.endPoll(p, now)
			i = 0 // that may have ended others
		}
	}
}

// finishRead takes the outcome of a planned read.
func (b *Bus) finishRead(o *op, now instant) {
	p, d := o.poll, o.d
	res := &p.results[o.index]
	res.span = o.span
	switch {
	case o.err == nil:
		res.resp, res.at, res.sent = o.resp, o.ended, o.sent
		res.r.silent = 0
		if !res.r.proved {
			res.r.proved = true
			d.proved[res.r.shape()] = true
		}
	case errors.Is(o.err, modbus.ErrNotConnected):
		p.again = append(p.again, o.index)
	case isBusy(o.err) && res.busy < busyTries:
		d.putOff(now, res.busy)
		res.busy++
		p.again = append(p.again, o.index)
	case isRefusal(o.err):
		res.err = o.err
		others := slices.ContainsFunc(d.polls, func(q *poll) bool { return q != p && q.learning() })
		if p.version != d.version || others {
			// That is being taken care of; then it is read again.
			c := p.plan.classes[res.r.class]
			c.due, c.aligned = now, false
			res.r = nil
			return
		}
		p.refused = append(p.refused, o.index)
		b.search(p, now)
	case isAnswer(o.err) || errors.Is(o.err, modbus.ErrInvalidRequest):
		res.err = o.err
		p.failed = true
		b.tellFailure(d, res.r.Read, o.err)
	default:
		res.tries++
		switch {
		case res.r.suspect():
			// Perhaps only this read gets no answer: what comes after it
			// will tell, see endPoll.
			res.err = o.err
			p.failed = true
		case res.tries <= d.cfg.Retries && d.state != Unknown:
			p.again = append(p.again, o.index)
			d.hold = max(d.hold, d.clearOf(res.r.Read, now-o.timeout))
		default:
			res.err = o.err
			b.lose(d, o.sent, res.r, now, o.err)
			p.fail(o.err)
		}
	}
}

// putOff makes the device's requests wait because it said that it is busy.
func (d *device) putOff(now instant, times int) {
	d.hold = now + busyDelay(times)
}

// busyDelay is the wait after the device has said times before that it is busy.
func busyDelay(times int) time.Duration { return min(busyWait<<min(times, 10), busyMost) }

func isBusy(err error) bool {
	return errors.Is(err, modbus.Acknowledge) || errors.Is(err, modbus.ServerDeviceBusy)
}

// isRefusal reports whether the device will not answer this read, ever.
func isRefusal(err error) bool {
	return errors.Is(err, modbus.IllegalDataAddress) || errors.Is(err, modbus.IllegalDataValue) || errors.Is(err, modbus.IllegalFunction)
}

// search goes on with finding out what the device answers, until a request is
// needed or all is found out.
func (b *Bus) search(p *poll, now instant) {
	for {
		if p.search == nil {
			if len(p.refused) == 0 {
				return
			}
			b.beginSearch(p)
		}
		s := p.search
		for ; s.taken < len(s.settled); s.taken++ {
			r := s.settled[s.taken]
			res := s.last
			if r.refused {
				res = result{err: s.err}
				p.failed = true
			}
			res.r = p.d.readOf(p.results[s.index].r, s.items[r.from:r.to])
			p.found = append(p.found, res)
		}
		var more bool
		if s.from, s.to, more = s.next(); more {
			return
		}
		b.endSearch(p, now)
	}
}

func (b *Bus) beginSearch(p *poll) {
	i := p.refused[0]
	p.refused = slices.Delete(p.refused, 0, 1)
	res := &p.results[i]
	items := p.d.itemsOf(res.r.Read)
	p.search = &searching{search: newSearch(len(items)), index: i, keep: len(p.found), items: items, err: res.err}
	b.tellRefusal(p.d, res.r.Read, "device refuses a read", res.err)
	if errors.Is(res.err, modbus.IllegalFunction) {
		p.search.refuseAll() // no part of the table will do
	}
}

// endSearch remembers what a search has found out.
func (b *Bus) endSearch(p *poll, now instant) {
	d, s := p.d, p.search
	r := p.results[s.index].r
	torn := false
	for _, run := range s.settled {
		if run.refused && b.refuseItem(d, s.items[run.from], s.err) {
			torn = true
		}
	}
	for _, run := range s.settled {
		if run.from > 0 && !torn { // with a group in parts the bounds are others
			d.known.cut(r.Table, s.items[run.from].start)
		}
	}
	p.results[s.index].r = nil
	p.search = nil
	b.learned(d, now)
	p.version = d.version // what is still to be searched of this poll is not old
}

// searchOp returns the next request of the poll's search.
func (b *Bus) searchOp(p *poll, now instant) *op {
	s := p.search
	if s.requests++; s.requests%searchRun == 0 {
		p.by = now + unhurried
	}
	s.out = true
	r := p.d.readOf(p.results[s.index].r, s.items[s.from:s.to])
	o := b.newOp(p.d, r.req)
	o.poll, o.index = p, searchIndex
	return o
}

// finishSearchOp takes the outcome of a request of a search.
func (b *Bus) finishSearchOp(o *op, now instant) {
	p, d := o.poll, o.d
	s := p.search
	s.out = false
	switch {
	case o.err == nil:
		s.silent, s.busy = 0, 0
		s.last = result{resp: o.resp, at: o.ended, sent: o.sent, span: o.span}
		s.answered()
		b.search(p, now)
	case errors.Is(o.err, modbus.ErrNotConnected):
	case isBusy(o.err) && s.busy < busyTries:
		d.putOff(now, s.busy)
		s.busy++
	case isBusy(o.err):
		p.failed = true
		p.abandonSearch(o.err)
	case isAnswer(o.err): // whatever it says, it does not give the values
		s.silent, s.busy = 0, 0
		s.err = o.err
		s.refused()
		b.search(p, now)
	default:
		if s.silent++; s.silent > d.cfg.Retries {
			b.lose(d, o.sent, nil, now, o.err)
			p.fail(o.err)
		}
	}
}

// endPoll emits what the poll has read and failed to read.
func (b *Bus) endPoll(p *poll, now instant) {
	d := p.d
	if !p.dead {
		b.judgeSilence(p, now)
	}
	d.polls = slices.DeleteFunc(d.polls, func(q *poll) bool { return q == p })

	n := 0
	for _, found := range [][]result{p.results, p.found} {
		for i := range found {
			if r := found[i].r; r != nil {
				n += len(r.slots)
			}
		}
	}
	s := b.Scratch.take(n)
	for i := range p.results {
		s.batch = b.collect(s.batch, p, &p.results[i], now)
	}
	for i := range p.found {
		s.batch = b.collect(s.batch, p, &p.found[i], now)
	}
	for i, c := range p.plan.classes {
		switch {
		case !p.due[i]:
		case c.every == point.Once && !d.wantsOnce():
			c.due = never
		case c.every == point.Once:
			c.due = min(c.due, now+onceWait)
		case c.every == point.Fastest && c.due == never:
			c.due = now
		}
	}
	b.emitBatch(s)
	if len(p.fenced) > 0 && !d.probing {
		again := &ask{d: d, points: slices.Clone(p.fenced), done: make(chan struct{})}
		again.admit(b)
	}
	b.noteEnd(p)
	clear(p.results)
	clear(p.found)
	d.spare = p
}

// judgeSilence decides about reads that are known to get no answer at times: if
// the device has answered a later one, they are split; if not, it is lost.
func (b *Bus) judgeSilence(p *poll, now instant) {
	d := p.d
	for i := range p.results {
		res := &p.results[i]
		if res.r == nil || res.err == nil || isAnswer(res.err) || errors.Is(res.err, modbus.ErrInvalidRequest) {
			continue
		}
		switch {
		case p.heard < res.sent:
			b.lose(d, res.sent, res.r, now, res.err)
		case slices.Contains(d.plan.reads, res.r):
			b.splitSilent(d, res.r, now)
		}
	}
}

// collect appends the samples of one read to a batch.
func (b *Bus) collect(batch []point.Sample, p *poll, res *result, now instant) []point.Sample {
	d := p.d
	if res.r == nil || res.resp == nil && (res.err == nil || d.allBad) {
		return batch
	}
	if res.sent == 0 {
		res.sent, res.span = b.tick, b.moment() // never asked for: it is known now that there is no value
	}
	if res.resp != nil {
		b.regs = modbus.AppendValues(b.regs[:0], res.r.req, res.resp)
	} else {
		res.at = b.start.Add(now)
	}
	at := res.at
	for _, s := range res.r.slots {
		if !p.due[s.class] {
			continue
		}
		i := int(s.point)
		once := p.plan.classes[s.class].every == point.Once
		if once && d.had[i] {
			continue
		}
		pt := &d.points[i]
		if d.fencedOff(i, res.sent) {
			switch c := p.plan.classes[s.class]; {
			case once:
				c.due = now
			case time.Duration(c.every) >= refetch:
				p.fenced = append(p.fenced, i)
			}
			continue
		}
		if d.overtaken(i, res.span) {
			continue
		}
		batch = append(batch, point.Sample{})
		sample := &batch[len(batch)-1] // filled in where it is, which is cheaper
		sample.ID, sample.Quality, sample.Time = pt.ID, point.Bad, at
		if res.resp != nil {
			d.had[i] = d.had[i] || once
			// What the registers hold may be no value: then it is Bad, too.
			if v, err := pt.Decode(b.regs[s.offset : s.offset+s.n]); err == nil {
				sample.Value, sample.Quality = v, point.Good
				if s.incoherent {
					sample.Quality = point.Uncertain
				}
			}
		}
	}
	return batch
}

// overtaken reports whether what an exchange has said of point i may be old
// news: a read on demand, or another poll, has emitted what an exchange said that
// began or ended later. If not, it is the newest now. Of two that were under way
// at once either may be the older, so the first to be emitted stands.
func (d *device) overtaken(i int, s span) bool {
	if e := d.emitted[i]; s.from < e.from || s.to < e.to {
		return true
	}
	d.emitted[i] = s
	return false
}
