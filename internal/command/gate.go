package command

import (
	"context"
	"fmt"
	"strings"
	"time"

	"fieldgate/internal/audit"
	"fieldgate/internal/point"
)

// job is an order that has passed the gate.
type job struct {
	order     Order
	writes    []checked
	emergency bool
	again     bool // an emergency whose id was seen before
	serial    uint64
	turns     []*turn // one; of an emergency one for each device
	known     *known  // nil: it cannot be told from another
	received  time.Time
	record    audit.Record  // that announces it
	safe      chan struct{} // closed when that is on disk, or never will be
}

// checked is a write that its point can take.
type checked struct {
	place  *place
	value  point.Value // what is asked for, in the point's unit
	expect point.Value // what the device will show then
}

// known is an id of the duplicate window.
type known struct {
	content string        // of its order
	done    chan struct{} // closed when result is there
	result  Result
}

// refused reports whether its order has ended and was never let through.
func (k *known) refused() bool {
	select {
	case <-k.done:
		return k.result.Status == Rejected && len(k.result.Writes) == 0
	default:
		return false
	}
}

// expiry is when an id is to be forgotten.
type expiry struct {
	key   string
	known *known // not the one that came in its place
	at    time.Time
}

// refusal makes the Result of an order that a check refuses.
func refusal(c class, format string, args ...any) Result {
	return Result{Status: Rejected, Reason: fmt.Sprintf(format, args...), class: c}
}

// admit lets an order through the gate, or says why not. An order that was seen
// before has neither job nor Result: its answer is that of the first one.
func (d *Desk) admit(o Order, now time.Time) (*job, verdict) {
	d.count.received.Add(1)
	j := &job{order: o, received: now, safe: make(chan struct{})}
	if len(o.ID) > maxID {
		return nil, d.refuse(j, refusal(byID, "the id has %d bytes, at most %d are taken", len(o.ID), maxID))
	}
	if r := d.checkWrites(j); r.Status != "" {
		return nil, d.refuse(j, r)
	}
	j.record = announce(j)
	key := keyOf(j.record)
	late := o.late(now, d.o.ClockSet(), j.emergency)

	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(now)
	switch first := d.ids[key]; {
	case first == nil || key == "":
	case first.refused() && first.content != j.content():
		// Nothing was done under the id: what was wrong has been put right.
	case j.emergency:
		// A stop is never answered out of the past, nor refused over its id: the
		// device is looked at, and written again if it shows something else.
		d.count.duplicates.Add(1)
		j.again, key = first.content == j.content(), ""
	default:
		d.count.duplicates.Add(1)
		if first.content != j.content() {
			return nil, d.refuse(j, refusal(byID, "the id %s was used before, for %s", quote(o.ID), quote(first.content)))
		}
		return nil, verdict{first: first}
	}
	if late != "" {
		return nil, d.refuseKnown(key, j, refusal(byTime, "%s", late), now)
	}
	switch {
	case d.stopped:
		return nil, d.refuse(j, refusal(byLoad, "%s", stopping))
	case d.waiting >= maxWaiting && !j.emergency:
		return nil, d.refuse(j, refusal(byLoad, busy+"%d orders wait already", d.waiting))
	case key != "" && len(d.ids) >= maxIDs && !j.emergency:
		return nil, d.refuse(j, refusal(byLoad, busy+"%d ids are remembered already (duplicate_window)", len(d.ids)))
	}
	if r := d.checkLock(j); r.Status != "" {
		return nil, d.refuseKnown(key, j, r, now)
	}
	if r := d.checkPace(j, now); r.Status != "" {
		return nil, d.refuseKnown(key, j, r, now)
	}
	if !d.queue(j) {
		return nil, d.refuse(j, refusal(byLoad, busy+"too many orders wait for this device already"))
	}
	d.waiting++
	d.serial++
	j.serial = d.serial
	for i := range j.writes {
		p := j.writes[i].place
		p.newest, p.accepted = j.serial, now
		p.hold = holding{} // whatever comes of it, the old command is over
		d.spend(p, now)
	}
	if j.emergency {
		d.overtake(j)
	}
	if key != "" {
		j.known = &known{content: j.content(), done: make(chan struct{})}
		d.ids[key] = j.known
	}
	d.count.accepted.Add(1)
	return j, verdict{}
}

// queue puts an order in line at its devices, or returns false where a line is
// full. mu is held.
func (d *Desk) queue(j *job) bool {
	names := devices(j.writes)
	if !j.emergency {
		t, ok := d.take(names, false)
		j.turns = []*turn{t}
		return ok
	}
	for i := range names {
		t, ok := d.take(names[i:i+1], true)
		if !ok {
			for _, t := range j.turns {
				d.quit(t)
			}
			return false
		}
		j.turns = append(j.turns, t)
	}
	return true
}

// verdict is what the gate says of an order that it does not let through: a
// Result, or the first order with its id.
type verdict struct {
	result Result
	first  *known
}

// refuse counts and records a refusal.
func (d *Desk) refuse(j *job, r Result) verdict {
	d.tally(r)
	r.Took = time.Since(j.received)
	rec := j.record
	rec.Event, rec.Status, rec.Reason, rec.Ms = audit.Refused, string(r.Status), r.Reason, r.Took.Milliseconds()
	rec.ID, rec.By, rec.Via = j.order.ID, j.order.By, j.order.Via
	if ws := j.order.Writes; len(j.writes) == 0 && len(ws) > 0 {
		points, values := make([]string, len(ws)), make([]string, len(ws))
		for i, w := range ws {
			if points[i], values[i] = string(w.Point), w.Text; w.Text == "" {
				values[i] = w.Value.String()
			}
		}
		rec.Point, rec.Value = strings.Join(points, between), strings.Join(values, between)
	}
	d.noteRefusal(rec)
	return verdict{result: r}
}

// What begins the reason of a refusal that another time may be none: the id is
// not used up by it.
const (
	busy       = "busy: "
	stopping   = "the gateway is stopping"
	unrecorded = "it cannot be recorded, so it was not done: "
)

// passing reports whether a reason is one of those.
func passing(reason string) bool {
	return strings.HasPrefix(reason, busy) || strings.HasPrefix(reason, stopping) || strings.HasPrefix(reason, unrecorded)
}

// refuseKnown is refuse for an order whose id is remembered, so that its next
// message gets the same answer. mu is held.
func (d *Desk) refuseKnown(key string, j *job, r Result, now time.Time) verdict {
	v := d.refuse(j, r)
	if key != "" && len(d.ids) < maxIDs/2 {
		k := &known{content: j.content(), done: make(chan struct{}), result: v.result}
		close(k.done)
		d.ids[key] = k
		d.retire(key, now)
	}
	return v
}

// retire lets an id be forgotten after the duplicate window. mu is held.
func (d *Desk) retire(key string, now time.Time) {
	d.retired = append(d.retired, expiry{key, d.ids[key], now.Add(d.book.Load().rules.DuplicateWindow)})
}

// forget forgets the ids whose time is over. mu is held.
func (d *Desk) forget(now time.Time) {
	n := 0
	for n < len(d.retired) && !d.retired[n].at.After(now) {
		if e := &d.retired[n]; d.ids[e.key] == e.known {
			delete(d.ids, e.key)
		}
		n++
	}
	if n > 0 {
		d.retired = append(d.retired[:0], d.retired[n:]...)
	}
}

// await returns the answer of a verdict, which may still be to come.
func (d *Desk) await(ctx context.Context, v verdict) Result {
	if v.first == nil {
		return v.result
	}
	select {
	case <-v.first.done:
		return v.first.result
	case <-ctx.Done():
		return Result{Status: Unknown, Reason: "the first order with this id has not ended yet"}
	}
}

// checkWrites checks each write of an order against its point. A zero Result
// means that all are good.
func (d *Desk) checkWrites(j *job) Result {
	if len(j.order.Writes) == 0 {
		return refusal(byMessage, "there is nothing to write")
	}
	j.emergency = !j.order.NoRush
	several := len(j.order.Writes) > 1
	writes := make([]checked, 0, len(j.order.Writes))
	for _, w := range j.order.Writes {
		c, err := d.checkWrite(w)
		if err != nil {
			why := byValue
			if pl := d.book.Load().points[w.Point]; pl == nil || pl.point.Write == nil {
				why = byPoint
			}
			if several {
				return refusal(why, "%s: %v; nothing was written", w.Point, err)
			}
			return refusal(why, "%v", err)
		}
		j.emergency = j.emergency && c.place.point.Write.Emergency
		writes = append(writes, c)
	}
	j.writes = writes
	return Result{}
}

func (d *Desk) checkWrite(w Write) (checked, error) {
	pl := d.book.Load().points[w.Point]
	if pl == nil {
		return checked{}, fmt.Errorf("there is no point %s", quote(string(w.Point)))
	}
	p := pl.point
	if p.Write == nil {
		return checked{}, point.ErrReadOnly
	}
	if len(w.Text) > maxText {
		return checked{}, fmt.Errorf("the value has %d bytes, and no point takes more than %d", len(w.Text), maxText)
	}
	v := w.Value
	if v.IsZero() {
		v = p.Parse(w.Text)
	}
	if v.Kind() == point.KindBool && p.Type != point.Bool && w.Text != "" {
		return checked{}, fmt.Errorf("%s is a boolean, and the type of the point is %s", quote(w.Text), p.TypeName())
	}
	if w.Unit != "" {
		converted, err := convert(v, w.Unit, p.Unit)
		if err != nil {
			return checked{}, err
		}
		if converted != v {
			converted = settle(converted, p)
		}
		v = converted
	}
	if err := p.CheckWrite(v); err != nil {
		return checked{}, err
	}
	c := checked{place: pl, value: v, expect: v}
	if regs, err := p.Encode(v); err == nil {
		if shown, err := p.Decode(regs); err == nil {
			c.expect = shown
		}
	}
	return c, nil
}

// Late says why an order comes too late, or too early, at the time now; "" if it
// does not. clockSet says that our own clock is set.
func (o *Order) Late(now time.Time, clockSet bool) string { return o.late(now, clockSet, false) }

// late says why an order comes too late, or too early; "" if it does not. Of
// an emergency only an end that it names itself counts, and not while our own
// clock is in doubt.
func (o *Order) late(now time.Time, clockSet, emergency bool) string {
	if o.Issued.IsZero() && o.Expires.IsZero() {
		return ""
	}
	if !clockSet && !o.counted {
		if emergency {
			return ""
		}
		return "it is dated, and the clock of this gateway was never set"
	}
	switch {
	case !o.Expires.IsZero() && !now.Before(o.Expires):
		return fmt.Sprintf("it expired at %s, %s ago", point.Timestamp(o.Expires), span(o.Expires, now))
	case o.Issued.IsZero():
		return ""
	case o.MaxAge > 0 && now.Sub(o.Issued) > o.MaxAge:
		return fmt.Sprintf("its timestamp %s is %s old, at most %s are allowed", point.Timestamp(o.Issued), span(o.Issued, now), o.MaxAge)
	case o.Issued.Sub(now) > aheadMost && !emergency:
		return fmt.Sprintf("its timestamp %s is %s ahead of this gateway's clock", point.Timestamp(o.Issued), span(now, o.Issued))
	}
	return ""
}

// span says for a message how long it is from one time to another: thousands of
// years, too, which are no Duration.
func span(from, to time.Time) string {
	if days := (to.Unix() - from.Unix()) / (24 * 3600); days >= 2 {
		return fmt.Sprintf("%d days", days)
	}
	return ago(to.Sub(from)).String()
}

// ago rounds a time for a message.
func ago(t time.Duration) time.Duration {
	if t < time.Second {
		return t.Round(time.Millisecond)
	}
	return t.Round(time.Second)
}

// checkPace holds an order against rates and budgets. mu is held.
func (d *Desk) checkPace(j *job, now time.Time) Result {
	if j.emergency {
		return Result{}
	}
	for i := range j.writes {
		pl := j.writes[i].place
		w := pl.point.Write
		if wait := w.RateEvery - now.Sub(pl.accepted); w.RateEvery > 0 && !pl.accepted.IsZero() && wait > 0 {
			return refusal(byRate, "too soon: %s may be written once in %s, next in %s", pl.point.ID, w.RateEvery, ago(wait))
		}
		if w.Budget > 0 && d.spent(pl, now) >= w.Budget {
			return refusal(byBudget, "the budget of %s is used up: %d writes a day, until 00:00 UTC", pl.point.ID, w.Budget)
		}
	}
	return Result{}
}

// today numbers the days in UTC.
func today(now time.Time) int64 { return now.Unix() / (24 * 3600) }

// today is the day of the budgets. Until the clock is set it is that of the last
// record, so that a restart gives no new budget, and the next after each 24 hours.
func (d *Desk) today(now time.Time) int64 {
	if d.lastDay > 0 && !d.o.ClockSet() {
		return d.lastDay + int64(now.Sub(d.began)/(24*time.Hour))
	}
	return today(now)
}

// spent returns the writes of this day.
func (d *Desk) spent(p *place, now time.Time) int {
	if p.day != d.today(now) {
		return 0
	}
	return p.writes
}

// spend counts a write against the point's budget, and warns when it runs out.
// mu is held.
func (d *Desk) spend(p *place, now time.Time) {
	if day := d.today(now); p.day != day {
		p.day, p.writes, p.warned = day, 0, false
	}
	p.writes++
	budget := p.point.Write.Budget
	if budget == 0 || p.warned || p.writes*5 < budget*4 {
		return
	}
	p.warned = true
	d.log.Warn("budget of writes nearly used up", "point", p.point.ID, "writes", p.writes, "budget", budget)
	d.note(audit.Record{
		Event: budgetLow, Via: viaGateway, Point: string(p.point.ID),
		Reason: fmt.Sprintf("%d of the day's %d writes are used up", p.writes, budget),
	})
}

// unspend gives back what was not written after all.
func (d *Desk) unspend(p *place, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.day == d.today(now) && p.writes > 0 {
		p.writes--
	}
}

// announce returns the record that stands on disk before anything is written.
func announce(j *job) audit.Record {
	points := make([]string, len(j.writes))
	values := make([]string, len(j.writes))
	for i := range j.writes {
		points[i], values[i] = string(j.writes[i].place.point.ID), j.writes[i].value.String()
	}
	o := &j.order
	r := audit.Record{
		Event: audit.Accepted, ID: o.ID, By: o.By, Via: o.Via,
		Point: strings.Join(points, between), Value: strings.Join(values, between),
	}
	if r.ID == "" && !o.Issued.IsZero() && !j.emergency { // a stop is better done twice
		r.ID = dated + o.Issued.UTC().Format(time.RFC3339Nano)
	}
	if o.answer != "" {
		r.Reason = answerOn + o.answer
	}
	return r
}

const (
	between  = ", "         // several points or values of one record; no point's name holds it
	dated    = "@"          // before the time of an order without an id, by which a second copy is known
	answerOn = "answer on " // before the topic of the answer
)

// content is what an order asks for, by which two with the same id are held
// against each other.
func (j *job) content() string { return contentOf(j.record) }

func contentOf(r audit.Record) string { return r.Point + " = " + r.Value }

// keyOf returns what an order is remembered by: its id, or its time and content;
// "" if it has neither.
func keyOf(r audit.Record) string {
	if strings.HasPrefix(r.ID, dated) {
		return r.ID + " " + contentOf(r)
	}
	return r.ID
}
