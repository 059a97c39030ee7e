package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Read reads points now, after writes but before polls, of which a due one has
// its turn after four requests of this kind; a point that was written in the last
// two seconds before others. It returns their
// samples in the order of ids; they are emitted as well. Points that lie near
// each other share requests. A point that could not be read is Bad; the error
// then says why for the first of them. Read also reads points that are polled
// never or refused. It returns early with ctx's error.
func (b *Bus) Read(ctx context.Context, ids ...point.ID) ([]point.Sample, error) {
	samples := make([]point.Sample, len(ids))
	var asks []*ask
	for n, id := range ids {
		samples[n] = point.Sample{ID: id, Quality: point.Bad, Time: time.Now()}
		at, err := b.find(id)
		if err != nil {
			return samples, fmt.Errorf("bus %s: read %s: %w", b.cfg.Name, id, err)
		}
		if at.d.broadcast {
			return samples, fmt.Errorf("bus %s: read %s: nobody answers the broadcast unit", b.cfg.Name, id)
		}
		i := slices.IndexFunc(asks, func(a *ask) bool { return a.d == at.d })
		if i < 0 {
			i = len(asks)
			asks = append(asks, &ask{d: at.d, done: make(chan struct{})})
		}
		if !slices.Contains(asks[i].points, at.i) {
			asks[i].points = append(asks[i].points, at.i)
		}
	}
	for _, a := range asks {
		if err := b.send(a); err != nil {
			return samples, err
		}
	}
	var failed error
	for _, a := range asks {
		select {
		case <-a.done:
		case <-ctx.Done():
			for _, a := range asks {
				a.gone.Store(true)
			}
			return samples, fmt.Errorf("bus %s: unit %d: read: %w", b.cfg.Name, a.d.cfg.Unit, context.Cause(ctx))
		}
		for _, s := range a.samples {
			for n, id := range ids {
				if id == s.ID {
					samples[n] = s
				}
			}
		}
		if a.err != nil && failed == nil {
			failed = fmt.Errorf("bus %s: unit %d: read: %w", b.cfg.Name, a.d.cfg.Unit, a.err)
		}
	}
	return samples, failed
}

// ask is a read on demand of points of one device. It belongs to Run's
// goroutine until done is closed, then to the caller of Read.
type ask struct {
	d      *device
	points []int
	back   bool        // reads back what was written just now
	gone   atomic.Bool // the caller no longer waits
	done   chan struct{}

	reads   []*read // still to be asked for
	out     int
	tries   int
	at      instant
	busy    int
	samples []point.Sample
	news    []news // of samples
	err     error
}

// news is what a sample of a read on demand is emitted by.
type news struct {
	point int
	sent  uint64 // tick of its request
	span  span
}

// add takes a sample of point i that o has brought.
func (a *ask) add(s point.Sample, i int, o *op) {
	a.samples = append(a.samples, s)
	a.news = append(a.news, news{i, o.sent, o.span})
}

func (a *ask) admit(b *Bus) {
	now := b.now()
	for i, until := range a.d.written {
		if until < now {
			delete(a.d.written, i)
		} else if slices.Contains(a.points, i) {
			a.back = true
		}
	}
	points := make([]point.Point, len(a.points))
	for n, i := range a.points {
		points[n] = a.d.points[i]
		points[n].Every, points[n].Group = point.Once, ""
	}
	learned := refusals{cuts: a.d.known.cuts} // but what was refused is tried
	for _, r := range planReads(points, a.d.limits, &learned) {
		for n := range r.Points {
			r.Points[n] = a.points[r.Points[n]]
		}
		a.reads = append(a.reads, a.d.demand(r))
	}
	b.asks = append(b.asks, a)
}

func (a *ask) give(err error) {
	a.err = err
	close(a.done)
}

// demand makes a read of r, outside any plan.
func (d *device) demand(r Read) *read {
	x := &read{Read: r, req: r.Request()}
	for _, i := range r.Points {
		x.slots = append(x.slots, slotOf(r, d.points, i))
	}
	return x
}

// nextAsk returns the next request of a read on demand: of those that read back
// what was written, first.
func (b *Bus) nextAsk(now instant) (*op, instant) {
	wake := never
	waiting := slices.Clone(b.asks)
	slices.SortStableFunc(waiting, func(x, y *ask) int {
		switch {
		case x.back && !y.back:
			return -1
		case y.back && !x.back:
			return 1
		}
		return 0
	})
	for _, a := range waiting {
		switch {
		case a.gone.Load() && a.out == 0:
			b.endAsk(a, nil)
		case len(a.reads) == 0:
		case a.at > now:
			wake = min(wake, a.at)
		default:
			r := a.reads[0]
			a.reads = a.reads[1:]
			a.out++
			o := b.newOp(a.d, r.req)
			o.ask, o.read = a, r
			return o, 0
		}
	}
	return nil, wake
}

// finishAsk takes the outcome of a request of a read on demand.
func (b *Bus) finishAsk(o *op, now instant) {
	a, d := o.ask, o.d
	a.out--
	repeat := func() { a.reads = append(a.reads, o.read) }
	switch {
	case o.err == nil:
		b.regs = modbus.AppendValues(b.regs[:0], o.req, o.resp)
		for _, s := range o.read.slots {
			if d.fencedOff(int(s.point), o.sent) {
				repeat() // asked for before a write has ended
				return
			}
		}
		for _, s := range o.read.slots {
			pt := &d.points[s.point]
			sample := point.Sample{ID: pt.ID, Quality: point.Bad, Time: o.ended}
			v, err := pt.Decode(b.regs[s.offset : s.offset+s.n])
			if err == nil {
				sample.Value, sample.Quality = v, point.Good
			} else {
				a.note(fmt.Errorf("%s: %w", pt.ID, err))
			}
			a.add(sample, int(s.point), o)
		}
	case isBusy(o.err) && a.busy < busyTries:
		a.at = now + busyDelay(a.busy)
		a.busy++
		repeat()
	case isRefusal(o.err) && len(o.read.Points) > 1:
		for _, i := range o.read.Points {
			pt := &d.points[i]
			a.reads = append(a.reads, d.demand(Read{Table: pt.Table, Address: pt.Address, Count: uint16(pt.Words()), Points: []int{i}}))
		}
	case !isAnswer(o.err) && !errors.Is(o.err, modbus.ErrNotConnected) && !d.probing && a.tries < d.cfg.Retries:
		a.tries++
		repeat()
	default:
		for _, s := range o.read.slots {
			a.add(point.Sample{ID: d.points[s.point].ID, Quality: point.Bad, Time: o.ended}, int(s.point), o)
			d.had[s.point] = false
		}
		d.readOnce(now)
		a.note(fmt.Errorf("%s: %w", d.points[o.read.Points[0]].ID, o.err))
	}
	if len(a.reads) == 0 && a.out == 0 {
		b.endAsk(a, a.err)
	}
}

func (a *ask) note(err error) {
	if a.err == nil {
		a.err = err
	}
}

func (b *Bus) endAsk(a *ask, err error) {
	b.asks = slices.DeleteFunc(b.asks, func(o *ask) bool { return o == a })
	s := b.Scratch.take(len(a.news))
	for k, n := range a.news {
		if !a.d.allBad && !a.d.fencedOff(n.point, n.sent) && !a.d.overtaken(n.point, n.span) {
			s.batch = append(s.batch, a.samples[k])
		}
	}
	b.emitBatch(s)
	a.give(err)
}
