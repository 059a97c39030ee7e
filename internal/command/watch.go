package command

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/point"
)

// This file is what is written without being asked: the value for the loss of
// the uplink, a commanded value once more, the setup of a device that is back.

// Who is said to have ordered these.
const (
	viaGateway = "gateway"
	byLoss     = "on_uplink_loss"
	bySetup    = "setup"
	byReassert = "reassert"
)

const (
	lossTick  = time.Second      // how often the uplinks are looked at
	lossAgain = 10 * time.Second // before a value that could not be written is tried again
	awayAgain = time.Minute      // before a held one is, of a point that has no value
)

// holding is a commanded value that is written again and again.
type holding struct {
	value   point.Value // none: nothing is
	expires time.Time   // zero: until the next order
	next    time.Time
	tried   time.Time
	busy    bool
}

// keep begins to write a value again, if its point says so. mu is held.
func (d *Desk) keep(c *checked, o *Order) {
	every := c.place.point.Write.Reassert
	if every == 0 || o.Via == viaGateway {
		return
	}
	c.place.hold = holding{value: c.value, expires: o.Expires, next: time.Now().Add(every)}
}

// lossPoint is a point that is written when its uplinks are lost.
type lossPoint struct {
	place *place
	value point.Value
	from  []string  // the uplinks that may command it
	done  bool      // it was written since the loss
	next  time.Time // not before
	busy  chan bool // holds the outcome of the write under way
}

// lossOf returns what a point does when the uplinks are lost that may command it.
func lossOf(p *place, commands []config.Command) lossPoint {
	l := lossPoint{place: p, value: p.point.Write.OnLoss, busy: make(chan bool, 1)}
	for i := range commands {
		c := &commands[i]
		if !slices.ContainsFunc(c.Targets, func(t config.Target) bool { return t.Point == p.point.ID }) {
			continue
		}
		for _, name := range c.From {
			if name != config.Local && !slices.Contains(l.from, name) {
				l.from = append(l.from, name)
			}
		}
	}
	return l
}

// watch writes what nobody asks for, until ctx ends.
func (d *Desk) watch(ctx, grace context.Context, work *sync.WaitGroup) {
	away := make(map[string]time.Time) // uplinks, since when
	var looked time.Time
	defer d.watching.Stops()
	b := d.book.Load()
	for {
		if newest := d.book.Load(); newest != b {
			newest.inherit(b)
			b = newest
		}
		if len(b.held) == 0 && len(b.losses) == 0 {
			d.watching.Waits() // for another configuration
			select {
			case <-ctx.Done():
				return
			case <-d.turned:
				continue
			}
		}
		d.watching.Works()
		now := time.Now()
		wake := now.Add(lossTick)
		if len(b.losses) > 0 && now.Sub(looked) >= lossTick {
			looked = now
			d.watchLosses(ctx, grace, now, b, away, work)
		}
		for _, p := range b.held {
			if next := d.reassertDue(ctx, grace, p, now, work); !next.IsZero() && next.Before(wake) {
				wake = next
			}
		}
		d.watching.Rests(lossTick)
		if !sleep(ctx, max(time.Until(wake), time.Millisecond)) {
			return
		}
	}
}

// watchLosses looks once at the uplinks and at what depends on them.
func (d *Desk) watchLosses(ctx, grace context.Context, now time.Time, b *book, away map[string]time.Time, work *sync.WaitGroup) {
	lost := func(name string) bool {
		if d.o.Connected(name) {
			delete(away, name)
			return false
		}
		if since, ok := away[name]; ok {
			return now.Sub(since) >= b.rules.LossAfter
		}
		away[name] = now
		return false
	}
	state := make(map[string]bool)
	for i := range b.losses {
		for _, name := range b.losses[i].from {
			if _, known := state[name]; !known {
				state[name] = lost(name)
			}
		}
	}
	for i := range b.losses {
		l := &b.losses[i]
		select {
		case l.done = <-l.busy:
			l.next = now.Add(lossAgain)
		default:
		}
		if slices.ContainsFunc(l.from, func(name string) bool { return !state[name] }) {
			l.done, l.next = false, time.Time{}
			continue
		}
		if l.done || now.Before(l.next) || d.locked(l.place.point.ID) != "" {
			continue
		}
		l.next = now.Add(24 * time.Hour) // until the outcome is there
		d.log.Warn("uplinks lost, writing what the point has for that", "point", l.place.point.ID, "value", l.value.String(), "uplinks", l.from)
		o := Order{By: byLoss, Via: viaGateway, Writes: []Write{{Point: l.place.point.ID, Value: l.value}}, fresh: true}
		work.Go(func() { // ends with the order
			r := d.own(ctx, grace, o)
			l.busy <- r.Status == Written || r.Status == Verified
		})
	}
}

// own does an order of our own.
func (d *Desk) own(ctx, grace context.Context, o Order) Result {
	j, v := d.admit(o, time.Now())
	if j == nil {
		d.log.Warn("own write refused", "by", o.By, "point", o.Writes[0].Point, "reason", v.result.Reason)
		return v.result
	}
	r := d.perform(ctx, grace, j, nil)
	if r.Status != Written && r.Status != Verified {
		d.log.Warn("own write failed", "by", o.By, "point", o.Writes[0].Point, "status", string(r.Status), "reason", r.Reason)
	}
	return r
}

// away reports whether a point was last found to have no value, mostly because
// its device does not answer. To write to it again and again would fill the record.
func (d *Desk) away(id point.ID) bool {
	s, ok := d.o.Last(id)
	return ok && s.Quality == point.Bad
}

// reassertDue writes a held value again if it is time, and returns when to look
// again; zero: nothing is held.
func (d *Desk) reassertDue(ctx, grace context.Context, p *place, now time.Time, work *sync.WaitGroup) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := &p.hold
	switch {
	case h.value.IsZero():
		return time.Time{}
	case !h.expires.IsZero() && !now.Before(h.expires):
		*h = holding{}
		return time.Time{}
	case h.busy || now.Before(h.next):
		return h.next
	case d.locked(p.point.ID) != "", now.Sub(h.tried) < awayAgain && d.away(p.point.ID):
		h.next = now.Add(p.point.Write.Reassert)
		return h.next
	}
	budget := p.point.Write.Budget
	if budget > 0 && d.spent(p, now) >= budget {
		h.next = now.Add(time.Minute)
		return h.next
	}
	t, ok := d.take([]string{p.device.Name}, false)
	h.next = now.Add(p.point.Write.Reassert)
	if !ok {
		return h.next
	}
	h.busy, h.tried = true, now
	value, serial := h.value, p.newest
	work.Go(func() { // ends with the write
		d.reassert(ctx, grace, p, t, value, serial)
	})
	return h.next
}

// reassert writes a held value again, unless the device still shows it or a
// newer order has come.
func (d *Desk) reassert(ctx, grace context.Context, p *place, t *turn, value point.Value, serial uint64) {
	defer d.leave(t)
	over := func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if p.newest == serial {
			p.hold.busy = false
		}
	}
	defer over()
	if t.wait(ctx) != nil {
		return
	}
	d.mu.Lock()
	newer := p.newest != serial
	if !newer {
		d.spend(p, time.Now())
	}
	d.mu.Unlock()
	if newer {
		return
	}
	c, err := d.checkWrite(Write{Point: p.point.ID, Value: value})
	if err != nil {
		return // it was good before
	}
	j := &job{order: Order{By: byReassert, Via: viaGateway}, received: time.Now(), serial: serial}
	out, err := d.writeOne(grace, j, &c, true)
	if out.Reason == unchanged || errors.Is(err, errOvertaken) || errors.Is(err, errLocked) {
		return
	}
	d.note(j.result(out, reasserted))
	if out.Status == Failed || out.Status == Unknown {
		d.log.Info("value not written again", "point", p.point.ID, "status", string(out.Status), "reason", out.Reason)
	}
}

// Online is to be called when a device answers for the first time, or again
// after it was offline: its setup is written. It does not block.
func (d *Desk) Online(device string) {
	settings := d.book.Load().setups[device]
	if len(settings) == 0 {
		return
	}
	ok := d.submit(func(ctx, grace context.Context) {
		for _, s := range settings { // one that fails does not keep the others from being written
			d.own(ctx, grace, Order{By: bySetup, Via: viaGateway, Writes: []Write{{Point: s.Point, Value: s.Value}}, fresh: true, NoRush: true})
		}
	})
	if !ok {
		d.log.Error("setup not written: too much waits already", "device", device)
	}
}
