package command

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"fieldgate/internal/audit"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// What is tried again after a pause: reading back what a device shows not yet,
// and whole writes, of orders that ask for it.
var lookAgain = [...]time.Duration{0, 100 * time.Millisecond, 400 * time.Millisecond}

const (
	retryFirst  = time.Second
	retryUrgent = 200 * time.Millisecond // the first, of an emergency
	retryMost   = 10 * time.Second
)

// unchanged is the reason of a write that was not needed.
const unchanged = "not written, the device shows this value already"

// perform does an order that was let through: it is recorded, waits for its
// turn, is written, read back and recorded again. ctx ends the waiting, grace the
// writing. accepted, if not nil, is called once it is recorded.
func (d *Desk) perform(ctx, grace context.Context, j *job, accepted func()) Result {
	w := d.begin(grace, j)
	close(j.safe)
	var r Result
	if w.err != nil {
		r = refusal(byRecord, unrecorded+"%s", strings.TrimPrefix(w.err.Error(), audit.ErrNotRecorded.Error()+": "))
		for i := range j.writes {
			d.unspend(j.writes[i].place, j.received)
		}
	} else {
		if accepted != nil {
			accepted()
		}
		r = d.execute(ctx, grace, j)
	}
	for _, t := range j.turns {
		d.leave(t)
	}
	r.Took = time.Since(j.received)
	d.end(grace, j, w, &r)
	d.settle(j, r, w.err != nil)
	return r
}

// settle tells those who wait for the answer, and counts it.
func (d *Desk) settle(j *job, r Result, transient bool) {
	switch {
	case errors.Is(r.err, errOvertaken):
		r.class = byEmergency
	case errors.Is(r.err, errLocked):
		r.class = byLock
	}
	d.tally(r)
	if r.Status != Rejected {
		d.timed(j.emergency, r.Took)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting--
	if j.known != nil {
		key := keyOf(j.record)
		j.known.result = r
		close(j.known.done)
		if transient {
			delete(d.ids, key) // nothing was done, and it may be asked for again
		} else {
			d.retire(key, time.Now())
		}
	}
	if r.Status != Written && r.Status != Verified {
		return
	}
	for i := range j.writes {
		if c := &j.writes[i]; c.place.newest == j.serial {
			d.keep(c, &j.order)
		}
	}
}

// execute waits for the order's turn and writes.
func (d *Desk) execute(ctx, grace context.Context, j *job) Result {
	if j.emergency {
		r := d.writeUrgent(ctx, grace, j)
		if (r.Status == Failed || r.Status == Unknown) && j.order.Retry > 0 && len(j.writes) == 1 {
			out, err := d.retry(ctx, grace, j, r.Writes[0], r.err)
			r = Result{Status: out.Status, Reason: out.Reason, Writes: []Outcome{out}, err: err}
		}
		return r
	}
	if err := j.turns[0].wait(ctx); err != nil {
		return d.unwritten(j, refusal(byLoad, "it was not written: %v", stopReason(err)))
	}
	if late := j.order.late(time.Now(), d.o.ClockSet(), j.emergency); late != "" {
		return d.unwritten(j, refusal(byTime, "it waited too long: %s", late))
	}
	if len(j.writes) > 1 {
		return d.writeAll(grace, j)
	}
	out, err := d.writeOne(grace, j, &j.writes[0], j.order.fresh)
	if (out.Status == Failed || out.Status == Unknown) && j.order.Retry > 0 {
		out, err = d.retry(ctx, grace, j, out, err)
	}
	return Result{Status: out.Status, Reason: out.Reason, Writes: []Outcome{out}, err: err}
}

// unwritten is the result of an order whose turn did not come.
func (d *Desk) unwritten(j *job, r Result) Result {
	for i := range j.writes {
		d.unspend(j.writes[i].place, j.received)
	}
	return r
}

// stopReason says why an order's turn did not come.
func stopReason(err error) string {
	if errors.Is(err, context.Canceled) {
		return "the gateway is stopping, or nobody waits for it any more"
	}
	return err.Error()
}

// retry writes again until it has succeeded, the order expires, or another for
// the same point comes. Between the tries others have their turn.
func (d *Desk) retry(ctx, grace context.Context, j *job, out Outcome, err error) (Outcome, error) {
	end := j.received.Add(j.order.Retry)
	if e := j.order.Expires; !e.IsZero() && e.Before(end) {
		end = e
	}
	pause := retryFirst
	if j.emergency {
		pause = retryUrgent
	}
	for tries := 2; refusable(err) && time.Until(end) > pause; tries++ {
		d.noteTry(j, out)
		d.leave(j.turns[0])
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		d.mu.Lock()
		newer := j.writes[0].place.newest != j.serial
		t, ok := d.take(devices(j.writes), j.emergency)
		if ok {
			j.turns[0] = t
		}
		d.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			out.Reason = "the gateway is stopping; before: " + out.Reason
			return out, err
		case newer:
			out.Reason = "superseded by a newer command; before: " + out.Reason
			return out, err
		case !ok || j.turns[0].wait(ctx) != nil || !time.Now().Before(end):
			return out, err
		}
		d.mu.Lock()
		d.spend(j.writes[0].place, time.Now())
		d.mu.Unlock()
		out, err = d.writeOne(grace, j, &j.writes[0], true)
		if err == nil && out.Status != Failed && out.Status != Unknown {
			out.Reason = strings.TrimPrefix(out.Reason+fmt.Sprintf("; after %d tries", tries), "; ")
			return out, nil
		}
		pause = min(2*pause, retryMost)
	}
	return out, err
}

// refusable reports whether another try may have another outcome: a device that
// has said that there is no such register, or that it does not take the value,
// says so again.
func refusable(err error) bool {
	if errors.Is(err, errOvertaken) || errors.Is(err, errLocked) {
		return false
	}
	for _, e := range []modbus.Exception{modbus.IllegalFunction, modbus.IllegalDataAddress, modbus.IllegalDataValue} {
		if errors.Is(err, e) {
			return false
		}
	}
	return true
}

// writeOne does one write, with all that belongs to it. The error is why it
// failed or is unknown.
func (d *Desk) writeOne(ctx context.Context, j *job, c *checked, fresh bool) (Outcome, error) {
	out, open, err := d.send(ctx, j, c, fresh)
	if open {
		return d.readBack(ctx, c, out, err)
	}
	return out, err
}

// send does a write up to its reading back, which is left to do if it is open:
// the error is then why it was not confirmed.
func (d *Desk) send(ctx context.Context, j *job, c *checked, fresh bool) (out Outcome, open bool, err error) {
	p := c.place.point
	out = Outcome{Point: p.ID, Value: c.expect, Previous: d.previous(p.ID)}
	if !j.emergency && d.overtaken(j, c.place.device.Name) { // no look at the device either
		out, err = d.giveWay(c, out)
		return out, false, err
	}
	if p.Write.SkipIfEqual && !j.emergency || j.again {
		// What a poll has shown may be old: nothing is left out over that alone. A
		// point that was never seen, as right after a start, is looked at as well,
		// for which an emergency does not wait.
		known := !out.Previous.IsZero()
		_, seen := d.o.Last(p.ID)
		if fresh || known && point.Equal(out.Previous, c.expect) || !known && (!seen && !j.emergency || p.Every == point.Never) {
			if shown, err := d.read(ctx, p.ID); err == nil {
				out.Previous = shown
				if point.Equal(shown, c.expect) {
					d.unspend(c.place, time.Now())
					d.count.unchanged.Add(1)
					out.Status, out.Reason = Verified, unchanged
					return out, false, nil
				}
			}
		}
	}
	limit, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	if !j.emergency {
		if why := d.locked(p.ID); why != "" { // since it was let through
			d.unspend(c.place, time.Now())
			out.Status, out.Reason = Rejected, "not written: "+why
			return out, false, errLocked
		}
		handed, done, ok := d.handOver(limit, j, c.place.device.Name)
		defer done()
		if limit = handed; !ok {
			out, err = d.giveWay(c, out)
			return out, false, err
		}
	}
	err = d.o.Field.Write(limit, p.ID, c.value)
	out.touched = true
	lost := errors.Is(err, modbus.ErrNoResponse) || errors.Is(err, modbus.ErrBadResponse)
	if lost && !j.emergency && limit.Err() != nil && d.overtaken(j, c.place.device.Name) {
		err = errCutShort
	}
	switch {
	case err != nil && !lost && !j.emergency && d.overtaken(j, c.place.device.Name):
		out.touched = false
		out, err = d.giveWay(c, out)
		return out, false, err
	case err != nil && !lost:
		out.Status, out.Reason, out.touched = Failed, err.Error(), false
		return out, false, err
	case !p.Write.Verify && lost:
		out.Status, out.Reason = Unknown, err.Error()
		return out, false, err
	case !p.Write.Verify:
		out.Status = Written
		return out, false, nil
	}
	return out, true, err
}

// giveWay is the outcome of a write that an emergency has overtaken.
func (d *Desk) giveWay(c *checked, out Outcome) (Outcome, error) {
	d.unspend(c.place, time.Now())
	out.Status, out.Reason = Rejected, errOvertaken.Error()
	return out, errOvertaken
}

// readBack looks whether the device shows what was written. lost is nil if it
// has confirmed the write.
func (d *Desk) readBack(ctx context.Context, c *checked, out Outcome, lost error) (Outcome, error) {
	var shown point.Value
	var err error
	for _, pause := range lookAgain {
		if pause > 0 && !sleep(ctx, pause) {
			break
		}
		if shown, err = d.read(ctx, out.Point); err == nil && point.Equal(shown, c.expect) {
			out.Status = Verified
			switch {
			case errors.Is(lost, errCutShort):
				out.Reason = lost.Error() + ", but the device shows the value"
			case lost != nil:
				out.Reason = "no answer to the write, but the device shows the value"
			}
			return out, nil
		}
		if lost != nil && err != nil {
			break // it does not answer at all
		}
	}
	switch {
	case lost != nil && err == nil:
		out.Status = Unknown
		out.Reason = fmt.Sprintf("%v; the device shows %s", lost, shown)
		return out, lost
	case lost != nil:
		out.Status, out.Reason = Unknown, lost.Error()
		return out, lost
	case err != nil:
		out.Status = Written
		out.Reason = fmt.Sprintf("the device has confirmed it, but it could not be read back: %v", err)
		return out, nil
	}
	out.Status = Failed
	out.Reason = fmt.Sprintf("the device has confirmed the write, but shows %s", shown)
	return out, errors.New(out.Reason)
}

// read reads one point now.
func (d *Desk) read(ctx context.Context, id point.ID) (point.Value, error) {
	limit, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	samples, err := d.o.Field.Read(limit, id)
	switch {
	case err != nil:
		return point.Value{}, err
	case len(samples) != 1 || samples[0].Quality == point.Bad:
		return point.Value{}, errors.New("the device has no value there")
	}
	return samples[0].Value, nil
}

// previous returns the value that a point was last seen with, none if it was
// not.
func (d *Desk) previous(id point.ID) point.Value {
	if s, ok := d.o.Last(id); ok && s.Quality != point.Bad {
		return s.Value
	}
	return point.Value{}
}

// sleep returns false when ctx ended first.
func sleep(ctx context.Context, t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// writeUrgent does the writes of an emergency, those of each device by
// themselves: a device that does not answer holds up no other, and a stop that
// fails at one goes on. All of a device are written before the first is read
// back, and the next emergency's before that too: nothing urgent waits for a look
// at what was done.
func (d *Desk) writeUrgent(ctx, grace context.Context, j *job) Result {
	outs := make([]Outcome, len(j.writes))
	errs := make([]error, len(j.writes))
	var all sync.WaitGroup
	for _, t := range j.turns {
		all.Go(func() { // ends with the writes of one device
			err := t.wait(ctx)
			var open []int
			for i := range j.writes {
				c := &j.writes[i]
				if !t.of(c.place.device.Name) {
					continue
				}
				if err != nil {
					outs[i] = Outcome{Point: c.place.point.ID, Value: c.expect, Status: Failed, Reason: "it was not written: " + stopReason(err)}
					errs[i] = err
					continue
				}
				var unread bool
				if outs[i], unread, errs[i] = d.send(grace, j, c, false); unread {
					open = append(open, i)
				}
			}
			d.leave(t)
			for _, i := range open {
				outs[i], errs[i] = d.readBack(grace, &j.writes[i], outs[i], errs[i])
			}
		})
	}
	all.Wait()
	r := Result{Status: Verified, Writes: outs}
	rank := []Status{Verified, Written, Failed, Unknown}
	for i, out := range outs {
		if slices.Index(rank, out.Status) > slices.Index(rank, r.Status) {
			r.Status, r.err = out.Status, errs[i]
		}
		if out.Reason != "" && len(outs) > 1 {
			r.Reason = strings.TrimPrefix(r.Reason+fmt.Sprintf("; %s: %s", out.Point, out.Reason), "; ")
		} else {
			r.Reason = out.Reason
		}
	}
	return r
}

// writeAll does the writes of an order one after the other. When one fails,
// those before are restored, or left as they are.
func (d *Desk) writeAll(ctx context.Context, j *job) Result {
	before := make([]point.Value, len(j.writes))
	if !j.order.Stop {
		if r := d.readAll(ctx, j, before); r.Status != "" {
			return d.unwritten(j, r)
		}
	}
	r := Result{Status: Verified}
	for i := range j.writes {
		out, err := d.writeOne(ctx, j, &j.writes[i], false)
		if !before[i].IsZero() {
			out.Previous = before[i]
		}
		r.Writes = append(r.Writes, out)
		if out.Status == Written && r.Status == Verified {
			r.Status = Written
		}
		if err == nil {
			continue
		}
		r.Status, r.err = out.Status, err
		if out.Status == Rejected && i > 0 {
			r.Status = Failed
		}
		r.Reason = fmt.Sprintf("%s: %s; %d of %d written before", out.Point, out.Reason, i, len(j.writes))
		for k := i + 1; k < len(j.writes); k++ {
			d.unspend(j.writes[k].place, time.Now())
			r.Writes = append(r.Writes, Outcome{Point: j.writes[k].place.point.ID, Status: Rejected, Value: j.writes[k].expect, Reason: "not written, because one before it failed"})
		}
		if !j.order.Stop && !errors.Is(err, errOvertaken) && !errors.Is(err, errLocked) {
			d.restore(ctx, j, &r, before, i)
		}
		return r
	}
	return r
}

// readAll reads what all points show before the first is written. One that
// cannot be read could not be restored.
func (d *Desk) readAll(ctx context.Context, j *job, before []point.Value) Result {
	ids := make([]point.ID, 0, len(j.writes))
	for i := range j.writes {
		if p := j.writes[i].place.point; p.Write.Verify { // others nobody can read
			ids = append(ids, p.ID)
		}
	}
	if len(ids) == 0 {
		return Result{}
	}
	limit, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	samples, err := d.o.Field.Read(limit, ids...)
	for _, s := range samples {
		if s.Quality == point.Bad {
			continue
		}
		for i := range j.writes {
			if j.writes[i].place.point.ID == s.ID {
				before[i] = s.Value
			}
		}
	}
	for i := range j.writes {
		if p := j.writes[i].place.point; before[i].IsZero() && slices.Contains(ids, p.ID) {
			why := "the device has no value there"
			if err != nil {
				why = err.Error()
			}
			return refusal(byDevice, "%s could not be restored, because it cannot be read: %s; nothing was written", p.ID, why)
		}
	}
	return Result{}
}

// restore writes back what was there before writes 0 to last, the newest first.
func (d *Desk) restore(ctx context.Context, j *job, r *Result, before []point.Value, last int) {
	failed := 0
	for i := last; i >= 0; i-- {
		out := &r.Writes[i]
		if !out.touched {
			continue // nothing was changed there
		}
		c := j.writes[i]
		if before[i].IsZero() {
			failed++
			out.Reason = strings.TrimPrefix(out.Reason+"; what was there before is not known", "; ")
			continue
		}
		c.value, c.expect = before[i], before[i]
		d.mu.Lock()
		d.spend(c.place, time.Now())
		d.mu.Unlock()
		back, _ := d.writeOne(ctx, j, &c, true)
		d.note(j.result(back, restored))
		if back.Status == Verified {
			out.Status, out.Reason = Failed, "restored"
			continue
		}
		failed++
		out.Reason = strings.TrimPrefix(out.Reason+"; not restored: "+back.Reason, "; ")
	}
	if failed == 0 {
		r.Status = Failed
		r.Reason += "; what was written is restored"
		return
	}
	r.Reason += fmt.Sprintf("; %d could not be restored", failed)
}

// result returns the record of what became of one write.
func (j *job) result(out Outcome, event string) audit.Record {
	return audit.Record{
		Event: event, ID: j.record.ID, By: j.order.By, Via: j.order.Via,
		Point: string(out.Point), Value: out.Value.String(), Previous: out.Previous.String(),
		Status: string(out.Status), Reason: out.Reason, Ms: time.Since(j.received).Milliseconds(),
	}
}

// noteTry records a try that will be followed by another.
func (d *Desk) noteTry(j *job, out Outcome) { d.note(j.result(out, tried)) }
