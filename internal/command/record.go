package command

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"fieldgate/internal/audit"
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

// orphan is an order of before the restart without a result.
type orphan struct {
	record audit.Record
	result Result
}

// remember reads what the record says of before: ids with their answers, and
// what was written on this day.
func (d *Desk) remember(dir string, now time.Time) {
	since := now.Add(-max(d.book.Load().rules.DuplicateWindow, 24*time.Hour))
	if !d.o.ClockSet() {
		since = time.Time{} // nobody knows how long ago that is
	}
	type order struct {
		record  audit.Record
		results []audit.Record
		undone  bool // it was announced too late, and not done
	}
	var orders []*order
	open := make(map[string]*order) // by who, when it has no id
	err := audit.ReadSince(dir, since, func(r audit.Record) error {
		key := strings.Join([]string{r.ID, r.By, r.Via}, "\n")
		switch r.Event {
		case audit.Accepted:
			o := &order{record: r}
			orders = append(orders, o)
			open[key+"\n"+r.Point] = o
			if r.ID != "" {
				open[key] = o
			}
		case audit.Result:
			o := open[key+"\n"+r.Point]
			if o == nil && r.ID != "" {
				o = open[key]
			}
			if o != nil {
				o.results = append(o.results, r)
			}
		case audit.Refused:
			o := open[key+"\n"+r.Point]
			switch {
			case strings.HasPrefix(r.Reason, unrecorded) && o != nil && len(o.results) == 0:
				o.undone = true
			case r.ID != "" && !passing(r.Reason):
				orders = append(orders, &order{record: r, results: []audit.Record{r}})
			}
		case tried, restored, reasserted:
			d.spendAgain(r, now)
		}
		return nil
	})
	if err != nil {
		d.log.Error("the record of before cannot be read as a whole, ids of before the start may be taken again", "err", err)
	}
	for _, o := range orders {
		if o.undone {
			continue
		}
		points := strings.Split(o.record.Point, between)
		r := Result{Status: Unknown, Reason: "the gateway was stopped before it was known what became of it"}
		if len(o.results) > 0 {
			r = fromRecords(o.results, len(points))
		}
		if o.record.Event == audit.Accepted {
			d.recount(o.record, points, o.results, now)
			if len(o.results) == 0 {
				d.orphans = append(d.orphans, orphan{o.record, r})
			}
		}
		key := keyOf(o.record)
		if key == "" || d.o.ClockSet() && now.Sub(o.record.Time) > d.book.Load().rules.DuplicateWindow || len(d.ids) >= maxIDs {
			continue
		}
		if first := d.ids[key]; first != nil && !(first.refused() && (o.record.Event == audit.Accepted || first.content != contentOf(o.record))) {
			continue
		}
		k := &known{content: contentOf(o.record), done: make(chan struct{}), result: r}
		close(k.done)
		d.ids[key] = k
		d.retire(key, now)
	}
}

// fromRecords makes the answer to an order of its results, one for each point,
// or one for all that was not done.
func fromRecords(results []audit.Record, points int) Result {
	last := results[len(results)-1]
	r := Result{Status: Status(last.Status), Reason: last.Reason, Took: time.Duration(last.Ms) * time.Millisecond}
	if last.Event == audit.Refused || r.Status == Rejected && len(results) == 1 {
		return r
	}
	rank := map[Status]int{Verified: 0, Written: 1, Rejected: 2, Failed: 3, Unknown: 4}
	r.Status = Verified
	for _, rec := range results {
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
	if len(results) < points {
		r.Status, r.Reason = Unknown, "the gateway was stopped before it was known what became of all of it"
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

// spendAgain counts a write of before that is not the outcome of an order.
func (d *Desk) spendAgain(r audit.Record, now time.Time) {
	if p := d.book.Load().points[point.ID(r.Point)]; p != nil && today(r.Time) == today(now) {
		p.day = today(now)
		p.writes++
	}
}

// recount counts the writes of an order of before against the budgets.
func (d *Desk) recount(r audit.Record, points []string, results []audit.Record, now time.Time) {
	if len(results) == 0 {
		for _, id := range points {
			d.spendAgain(audit.Record{Point: id, Time: r.Time}, now)
		}
	}
	for _, res := range results {
		if res.Reason != unchanged && res.Status != string(Rejected) {
			d.spendAgain(res, now)
		}
	}
}

// answerOrphans says of the orders that the last run has left behind that their
// outcome is unknown.
func (d *Desk) answerOrphans(ctx context.Context) {
	for _, o := range d.orphans {
		d.beat.Works() // each may wait for the disk
		rec := o.record
		rec.Event, rec.Status, rec.Reason = audit.Result, string(o.result.Status), o.result.Reason
		d.note(rec)
		topic, ok := strings.CutPrefix(o.record.Reason, answerOn)
		sink := d.o.Answers[o.record.Via]
		if !ok || sink == nil {
			continue
		}
		a := answer{id: o.record.ID, by: by(o.record.By, o.record.Via), result: o.result, value: valueOf(o.record.Value)}
		if !strings.Contains(o.record.Point, between) {
			a.point = o.record.Point
		}
		m := mqtt.Message{Topic: topic, QoS: 1}
		m.Payload, m.Stamp = a.json(d.o.Clock)
		if err := sink.Deliver(ctx, m); err != nil {
			d.log.Error("answer not delivered", "to", o.record.Via, "topic", topic, "err", err)
		}
	}
	d.orphans = nil
}
