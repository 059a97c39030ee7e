package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"fieldgate/internal/audit"
	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
)

// Events of the record beside those of package audit: writes that are not the
// outcome of an order.
const (
	tried      = "tried"      // one more try will follow
	restored   = "restored"   // the value of before was written back
	reasserted = "reasserted" // a held value was written again
	budgetLow  = "budget"     // most of a day's writes are used up
)

const (
	// maxNoting bounds the records on their way to the disk that nobody waits
	// for.
	maxNoting = 64
	// refusalsPerSecond bounds the records of refusals: a flood must not wear
	// out the flash. What is left out is counted in the next.
	refusalsPerSecond = 20
	// lostPerSecond bounds what the log says of them and of others when the disk
	// takes none. All are counted.
	lostPerSecond = 5
	// eventsPerMinute bounds the messages that go to the event log, so that a
	// flood of them does not push the writes out of the record.
	eventsPerMinute = 600
)

// limiter bounds how often something is said, and counts what is not. The zero
// value is ready.
type limiter struct {
	mu      sync.Mutex
	span    int64 // of those counted, numbered since 1970
	count   int
	skipped int
}

// allow reports whether it may be said once more when that may be so many times
// in a span of time, and how often it was not since it last was.
func (l *limiter) allow(most int, in time.Duration) (ok bool, skipped int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if span := time.Now().UnixNano() / int64(in); span != l.span {
		l.span, l.count = span, 0
	}
	if l.count++; l.count > most {
		l.skipped++
		return false, 0
	}
	skipped, l.skipped = l.skipped, 0
	return true, skipped
}

// writing is the recording of one order.
type writing struct {
	err  error             // it could not be announced
	rest chan audit.Record // of an emergency: what follows is recorded behind it
}

// begin records that the order will be done. An emergency does not wait for it,
// and is done also if the disk takes nothing.
func (d *Desk) begin(ctx context.Context, j *job) writing {
	if !j.emergency {
		return writing{err: d.append(ctx, j.record)}
	}
	select {
	case d.noting <- struct{}{}:
	default:
		d.lostRecord(j.record, fmt.Errorf("%d records wait for the disk already", maxNoting))
		return writing{}
	}
	w := writing{rest: make(chan audit.Record, len(j.writes))}
	w.rest <- j.record
	go func() { // ends when end closes rest, and the disk has taken or refused it
		defer func() { <-d.noting }()
		for r := range w.rest {
			if err := d.append(context.Background(), r); err != nil {
				d.lostRecord(r, err)
			}
		}
	}()
	return w
}

// end records what came of the order, before it is answered.
func (d *Desk) end(ctx context.Context, j *job, w writing, r *Result) {
	switch {
	case errors.Is(w.err, context.DeadlineExceeded):
		d.note(j.refused(*r)) // always: the announcement may be on disk all the same
		return
	case w.err != nil:
		d.noteRefusal(j.refused(*r))
		return
	}
	records := make([]audit.Record, 0, len(j.writes))
	for _, out := range r.Writes {
		records = append(records, j.result(out, audit.Result))
	}
	if len(records) == 0 {
		records = append(records, j.refused(*r))
		records[0].Event = audit.Result
	}
	if j.emergency {
		if w.rest == nil {
			return
		}
		go func() { // ends when the disk has taken what was before; begin holds the token
			for _, rec := range records {
				w.rest <- rec
			}
			close(w.rest)
		}()
		return
	}
	for _, rec := range records {
		if err := d.append(context.WithoutCancel(ctx), rec); err != nil {
			d.lostRecord(rec, err)
			r.Reason = strings.TrimPrefix(r.Reason+"; the outcome is not recorded", "; ")
			return
		}
	}
}

// refused returns the record of an order of which nothing was written.
func (j *job) refused(r Result) audit.Record {
	rec := j.record
	rec.Event, rec.Status, rec.Reason, rec.Ms = audit.Refused, string(r.Status), r.Reason, r.Took.Milliseconds()
	return rec
}

// append records r, within recordLimit.
func (d *Desk) append(ctx context.Context, r audit.Record) error {
	limit, cancel := context.WithTimeout(ctx, recordLimit)
	defer cancel()
	_, err := d.o.Audit.Append(limit, r)
	return err
}

func (d *Desk) lostRecord(r audit.Record, err error) {
	d.count.unrecorded.Add(1)
	ok, skipped := d.lost.allow(lostPerSecond, time.Second)
	if !ok {
		return
	}
	if skipped > 0 {
		d.log.Error("more were not recorded", "count", skipped)
	}
	d.log.Error("not recorded", "event", r.Event, "id", r.ID, "point", r.Point, "value", r.Value, "status", r.Status, "err", err)
}

// note records what nobody waits for. It does not block.
func (d *Desk) note(r audit.Record) {
	select {
	case d.noting <- struct{}{}:
	default:
		d.lostRecord(r, fmt.Errorf("%d records wait for the disk already", maxNoting))
		return
	}
	go func() { // ends when the disk has taken or refused it
		defer func() { <-d.noting }()
		if err := d.append(context.Background(), r); err != nil {
			d.lostRecord(r, err)
		}
	}()
}

// noteRefusal is note for refusals, of which a flood is only counted.
func (d *Desk) noteRefusal(r audit.Record) {
	if d.ended.Load() {
		return // the gateway is stopping, and who asked has been told
	}
	ok, skipped := d.refusals.allow(refusalsPerSecond, time.Second)
	if !ok {
		return
	}
	if skipped > 0 {
		r.Reason += fmt.Sprintf(" (and %d more were refused before)", skipped)
	}
	d.note(r)
}

// orphan is an order of before the restart whose sender may not know the outcome.
type orphan struct {
	record audit.Record
	result Result
	ended  bool // the record has it
}

// Between the record of an outcome and the answer that is safe lie some
// milliseconds. After a kill or a power cut the orders are answered again that
// ended in the last answerTime of the record, at most maxAgain: better twice than
// not at all.
const (
	answerTime = 500 * time.Millisecond
	maxAgain   = 64
)

// past is an order that the record tells of.
type past struct {
	record  audit.Record
	points  []string
	results []audit.Record
	kept    bool // among those whose ids may come again
	undone  bool // it was announced too late, and not done
}

// waits reports whether r may be the outcome of one of its writes, or of all, and
// whether it is of the value that was asked for: a sender without ids may have
// several orders for one point under way.
func (p *past) waits(r *audit.Record) (may, same bool) {
	if r.Point == p.record.Point {
		return true, r.Value == p.record.Value
	}
	i := slices.Index(p.points, r.Point)
	if i < 0 || slices.ContainsFunc(p.results, func(o audit.Record) bool { return o.Point == r.Point }) {
		return false, false
	}
	values := p.values()
	return true, values != nil && values[i] == r.Value
}

// values returns the values that were asked for, nil if they cannot be told from
// each other.
func (p *past) values() []string {
	values := strings.Split(p.record.Value, between)
	if len(values) != len(p.points) {
		return nil
	}
	return values
}

// outcomeOf returns the index of the order in open that r is the outcome of, -1 if
// there is none.
func outcomeOf(open []*past, r *audit.Record) int {
	first := -1
	for i, p := range open {
		may, same := p.waits(r)
		if same {
			return i
		}
		if may && first < 0 {
			first = i
		}
	}
	return first
}

// ended reports whether it is known what became of all of it.
func (p *past) ended() bool {
	return len(p.results) >= len(p.points) || slices.ContainsFunc(p.results, func(r audit.Record) bool { return r.Point == p.record.Point })
}

// inFlight is how long before the end of the record an order may have been
// accepted that had no outcome yet: a retry may last a day.
const inFlight = 24 * time.Hour

// remember reads what the record says of before: ids with their answers, orders
// without an outcome, and what was written on this day.
func (d *Desk) remember(dir string, now time.Time) {
	window := d.book.Load().rules.DuplicateWindow
	since := now
	switch last, err := audit.LastTime(dir); {
	case err != nil || !d.o.ClockSet():
		since = time.Time{} // nobody knows how long ago that is
	case !last.IsZero() && last.Before(now): // the machine may have been off for long
		since = last
	}
	if !since.IsZero() {
		since = since.Add(-max(window, inFlight))
	}
	recent := func(r *audit.Record) bool { return !d.o.ClockSet() || r.Unset || now.Sub(r.Time) <= window }
	var ids []*past // whose ids may come again, in order
	keep := func(p *past) {
		if !p.kept && keyOf(p.record) != "" {
			p.kept = true
			if len(ids) == maxIDs { // there is no use for more
				ids = slices.Delete(ids, 0, maxIDs/2)
			}
			ids = append(ids, p)
		}
	}
	open := make(map[string][]*past) // without an outcome, by who and which id
	drop := func(key string, i int) {
		if open[key] = slices.Delete(open[key], i, i+1); len(open[key]) == 0 {
			delete(open, key)
		}
	}
	var ended []*past // the last of them
	var newest time.Time
	day := int64(0) // of the newest record that knows it
	err := audit.ReadSince(dir, since, func(r audit.Record) error {
		if r.Time.After(newest) {
			newest = r.Time
		}
		if !r.Unset {
			day = today(r.Time)
		}
		key := strings.Join([]string{r.ID, r.By, r.Via}, "\n")
		switch r.Event {
		case audit.Accepted:
			p := &past{record: r, points: strings.Split(r.Point, between)}
			open[key] = append(open[key], p)
			if recent(&r) {
				keep(p)
			}
		case audit.Result:
			i := outcomeOf(open[key], &r)
			if i < 0 {
				return nil
			}
			p := open[key][i]
			p.results = append(p.results, r)
			d.recount(p, &r, day)
			if recent(&r) {
				keep(p)
			}
			if p.ended() {
				drop(key, i)
				if len(ended) == maxAgain {
					ended = slices.Delete(ended, 0, 1)
				}
				ended = append(ended, p)
			}
		case audit.Refused:
			i := outcomeOf(open[key], &r)
			switch {
			case strings.HasPrefix(r.Reason, unrecorded) && i >= 0 && len(open[key][i].results) == 0:
				open[key][i].undone = true
				drop(key, i)
			case r.ID != "" && !passing(r.Reason) && recent(&r):
				keep(&past{record: r, points: []string{r.Point}, results: []audit.Record{r}})
			}
		case tried, restored, reasserted:
			d.spendAgain(r.Point, day)
		}
		return nil
	})
	if err != nil {
		d.log.Error("the record of before cannot be read as a whole, ids of before the start may be taken again", "err", err)
	}
	d.lastDay, d.began = day, now
	left := slices.Concat(slices.Collect(maps.Values(open))...)
	slices.SortFunc(left, func(a, b *past) int { return cmp.Compare(a.record.Seq, b.record.Seq) })
	for _, p := range left {
		keep(p)
		d.orphans = append(d.orphans, orphan{record: p.record, result: p.answer()})
		if len(p.results) == 0 {
			for _, id := range p.points {
				d.spendAgain(id, day)
			}
		}
	}
	for _, p := range ended {
		if last := p.results[len(p.results)-1]; d.o.Audit.Cut() && newest.Sub(last.Time) < answerTime {
			d.orphans = append(d.orphans, orphan{p.record, p.answer(), true})
		}
	}
	for _, p := range ids[max(0, len(ids)-maxIDs/2):] { // the newest, and there is room for more
		key := keyOf(p.record)
		first := d.ids[key]
		if p.undone || first != nil && !(first.refused() && (p.record.Event == audit.Accepted || first.content != contentOf(p.record))) {
			continue
		}
		k := &known{content: contentOf(p.record), done: make(chan struct{}), result: p.answer()}
		close(k.done)
		d.ids[key] = k
		d.retire(key, now)
	}
}

// answer is what who sent the order is told, of its results: one for each point, or
// one for all that was not done.
func (p *past) answer() Result {
	switch {
	case len(p.results) == 0 && len(p.points) == 1:
		return Result{Status: Unknown, Reason: "the gateway was stopped before it was known what became of it"}
	case !p.ended():
		return p.half()
	}
	last := p.results[len(p.results)-1]
	r := Result{Status: Status(last.Status), Reason: last.Reason, Took: time.Duration(last.Ms) * time.Millisecond}
	if last.Event == audit.Refused || r.Status == Rejected && len(p.results) == 1 || len(p.points) > 1 && last.Point == p.record.Point {
		return r
	}
	rank := map[Status]int{Verified: 0, Written: 1, Rejected: 2, Failed: 3, Unknown: 4}
	r.Status = Verified
	for _, rec := range p.results {
		s := Status(rec.Status)
		if rank[s] >= rank[r.Status] {
			r.Status, r.Reason = s, rec.Reason
		}
		r.Writes = append(r.Writes, Outcome{
			Point: point.ID(rec.Point), Status: s, Reason: rec.Reason,
			Value: valueOf(rec.Value), Previous: valueOf(rec.Previous),
		})
	}
	if r.Status == Rejected {
		r.Status = Failed
	}
	return r
}

// half is the answer to an order of several writes when it is not known what
// became of each.
func (p *past) half() Result {
	r := Result{Status: Unknown, Reason: "the gateway was stopped before it was known what became of all of it"}
	values := p.values()
	for i, id := range p.points {
		out := Outcome{Point: point.ID(id), Status: Unknown}
		if values != nil {
			out.Value = valueOf(values[i])
		}
		for _, rec := range p.results {
			if rec.Point == id {
				out.Status, out.Reason, out.Value, out.Previous = Status(rec.Status), rec.Reason, valueOf(rec.Value), valueOf(rec.Previous)
			}
		}
		r.Writes = append(r.Writes, out)
	}
	return r
}

// valueOf reads a value that a record holds, none for an empty text.
func valueOf(text string) point.Value {
	if text == "" {
		return point.Value{}
	}
	return point.ParseValue(text)
}

// spendAgain counts a write of before, on the day that it was made.
func (d *Desk) spendAgain(id string, day int64) {
	p := d.book.Load().points[point.ID(id)]
	if p == nil {
		return
	}
	if p.day != day {
		p.day, p.writes = day, 0
	}
	p.writes++
}

// recount counts a write of an order of before against the budget, if it was made.
func (d *Desk) recount(p *past, r *audit.Record, day int64) {
	switch {
	case r.Reason == unchanged, r.Status == string(Rejected):
	case len(p.points) > 1 && r.Point == p.record.Point:
		for _, id := range p.points {
			d.spendAgain(id, day)
		}
	default:
		d.spendAgain(r.Point, day)
	}
}

// answerOrphans says of the orders that the last run has left behind that their
// outcome is unknown, and of the last that it knew what that was.
func (d *Desk) answerOrphans(ctx context.Context) {
	for _, o := range d.orphans {
		d.beat.Works()
		if !o.ended {
			rec := o.record
			rec.Time = time.Time{} // now
			rec.Event, rec.Status, rec.Reason = audit.Result, string(o.result.Status), o.result.Reason
			d.note(rec)
		}
		topic, ok := strings.CutPrefix(o.record.Reason, answerOn)
		sink := d.o.Answers[o.record.Via]
		if !ok || sink == nil {
			continue
		}
		a := answer{id: o.record.ID, by: by(o.record.By, o.record.Via), result: o.result}
		if !strings.Contains(o.record.Point, between) {
			a.point, a.value = o.record.Point, valueOf(o.record.Value)
		}
		m := mqtt.Message{Topic: topic, QoS: 1}
		if text := d.textOf(&o.record, topic); text != "" && o.result.Status == Verified {
			m.Payload = []byte(text)
		} else {
			m.Payload, m.Stamp = a.json(d.o.Clock)
		}
		if err := sink.Deliver(ctx, m); err != nil {
			d.log.Error("answer not delivered", "to", o.record.Via, "topic", topic, "err", err)
		}
	}
	d.orphans = nil
}

// textOf returns the text that the order of a record is answered with on topic, once
// it is seen done, in place of the JSON; "" if there is none.
func (d *Desk) textOf(r *audit.Record, topic string) string {
	commands := d.book.Load().commands
	for i := range commands {
		c := &commands[i]
		if c.Ack.Text == "" || !slices.Contains(c.From, r.Via) {
			continue
		}
		var points, values []string
		for _, t := range c.Targets {
			m := message{Message: mqtt.Message{Topic: strings.TrimSuffix(topic, "/ack")}, command: c, targets: []config.Target{t}}
			if m.ackTopic() == topic && (c.Ack.Topic != "" || mqtt.Filter(t.Filter).Match(m.Topic)) {
				points, values = append(points, string(t.Point)), append(values, t.Value.String())
			}
		}
		if strings.Join(points, between) == r.Point && (c.Kind != config.MatchCommand || strings.Join(values, between) == r.Value) {
			return c.Ack.Text
		}
	}
	return ""
}
