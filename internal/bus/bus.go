// Package bus reads and writes the devices of one wire. It owns the wire's
// time: which request goes next, so that every point is read as often as it
// should be, a write waits for nothing but the request that is on the wire, and
// a device that is dead, slow or refuses takes next to nothing from its
// neighbours. It knows registers and values; frames, sockets and silences are
// package line's, and what becomes of the samples is package pipeline's.
//
// The types to know are Bus, one wire with its devices; Set, the buses of a
// gateway; and Read, one request of the plan that PlanReads makes.
//
// # How often
//
// Points of one device and interval are polled together. A poll begins at a
// start slot: multiples of its interval on the wall clock, moved by a multiple
// of 500 ms that differs from device to device, so that a process with a
// hundred buses wakes up twice a second and not a thousand times. The first
// poll is made at once. A poll that is late is made when the wire is free; one
// that is late by a whole interval is left out and counted. Of the requests that
// may be made the one with the earliest deadline goes first - the deadline of a
// poll is when it is due again -, so that a long poll of some device does not
// hold up the short intervals of others, and devices that are read as fast as
// possible take turns. Points
// that are read once are read again when their device was offline.
//
// # What refuses
//
// A read that the device refuses (exceptions 1, 2 and 3) is split by halves
// until all that can be read is read, in the same poll, with as few requests as
// the device allows. The split is remembered; single points that are refused
// alone are no longer asked for. A device that says nothing to some read, twice
// in a row, but answers others, has it split in the same way, one halving a poll;
// five times in a row, if it has ever answered that read, since on a bad line
// answers get lost. What was learned is forgotten after a minute, then two, four,
// and so on up to a day, in case it was a passing state of the device, and learned
// anew if it was not.
//
// # Who does not answer
//
// A device is online while it answers, whatever it answers. When a poll gets no
// answer, repeats included, polling stops and a short probe - the device's
// smallest read, with a time limit of three times its usual answer time - is
// tried at once. Without an answer the device is suspect, and probed every half
// second (on RTU and ASCII lines after two timeouts: sooner a late answer could
// be taken for the new one's); after the third probe it is offline, and probed every 5 s at first,
// later at a sixteenth of the time it has been away, at most every 5 min (the
// bounds are the device's backoff). So it is read again after no more than a
// sixteenth of its absence, and costs its neighbours less than 2 % of the wire.
// Every second probe has twice the time limit, every fourth four times, and so
// on up to the configured timeout, in case the device has become slower. The
// first answer starts a full poll. A device that was never seen is probed with
// the time limit of the slowest beside it.
//
// A wire that is not there is no proof against its devices: they are called
// offline, but polled as before as soon as it is back.
package bus

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// maxInFlight bounds the requests that are under way at once on one bus.
const maxInFlight = 16

// mostAsked is how many requests of reads on demand may be made while polls are
// due.
const mostAsked = 4

// wireGrace is how long the wire may be away before the devices are called
// offline: a connection that is opened again at once is not news.
const wireGrace = time.Second

// instant is a time on the bus's own clock, which no clock setting moves: since
// New.
type instant = time.Duration

const never = instant(math.MaxInt64)

// Requester is an Endpoint that bounds one request's time: timeout runs from the
// request's last byte to the response's first, gap is the least silence before
// the request (config.GapAuto: the usual one). A line is one; with any other
// Endpoint the timeout bounds the whole exchange.
type Requester interface {
	modbus.Endpoint
	DoTimeout(ctx context.Context, unit modbus.UnitID, req modbus.PDU, timeout, gap time.Duration) (modbus.PDU, error)
}

// Hurrier is a Requester that sends an emergency at once: DoUrgent is DoTimeout
// with nothing going over the wire before, and between Hurry(1) and Hurry(-1)
// other requests are given up that would need more than one exchange. A line is
// one.
type Hurrier interface {
	Requester
	Hurry(by int)
	DoUrgent(ctx context.Context, unit modbus.UnitID, req modbus.PDU, timeout, gap time.Duration) (modbus.PDU, error)
}

// Bus polls the devices of one wire and writes to them. Make it with New; Run
// does the work. Write, Read and Status are safe for use by several goroutines,
// before, during and after Run.
type Bus struct {
	// OnState is told each change of a device's state, by Run's goroutine: it
	// must not block. Set it before Run. Nil: nobody is.
	OnState func(device string, state State)

	// Scratch may be shared between buses, to save memory: set it before Run.
	Scratch *Scratch

	cfg     config.Bus
	ep      modbus.Endpoint
	timed   Requester // ep, if it is one
	hurrier Hurrier   // likewise
	emit    func([]point.Sample)
	log     *slog.Logger
	devices []*device

	start time.Time     // when the bus was made
	kick  chan struct{} // holds one token when there is something new in inbox
	news  atomic.Bool   // there is
	limit atomic.Int64  // the instant by which the next step is to be made

	// The rest belongs to Run's goroutine, up to mu.
	tick    uint64        // numbers requests sent and writes ended, in order
	order   atomic.Uint64 // numbers beginnings and ends of exchanges, in order
	out     int           // requests under way
	writes  []*write
	asks    []*ask
	asked   int // requests of reads on demand since the last poll's
	passes  passes
	jobs    chan *op // to the workers; nil while requests are done in turn
	done    chan *op // from the workers
	workers int
	working sync.WaitGroup
	free    []*op
	regs    []uint16 // scratch
	link    link

	// probesFrom keeps the probes of many dead devices from taking turns at the
	// wire while others are alive.
	probesFrom instant

	mu      sync.Mutex
	inbox   []errand
	stopped bool
	tally   tally // and each device's
}

// place is where a point is.
type place struct {
	d *device
	i int
}

// link is what is known of the wire.
type link struct {
	down    bool
	told    bool    // the devices have been called offline for it
	since   instant // when it went down
	retryAt instant
	wait    time.Duration
	err     error
}

// errand is what another goroutine wants of Run's.
type errand interface {
	admit(b *Bus)   // Run's goroutine takes it on
	give(err error) // it will not be done
}

// New returns the bus of the wire cfg, whose requests ep answers, with its
// devices. Both are valid settings: every default filled in, every point passed
// by Validate.
//
// emit takes the samples of one poll of one device at a time, in the order of
// their addresses within each read. It is called by Run's goroutine, must not
// block, and may use the slice only until it returns. A poll that failed emits
// Bad samples; so does a device that goes offline, once, for all its points.
func New(cfg config.Bus, devices []config.Device, ep modbus.Endpoint, emit func([]point.Sample), log *slog.Logger) *Bus {
	b := &Bus{
		cfg: cfg, ep: ep, emit: emit, log: log, Scratch: new(Scratch),
		start: time.Now(),
		kick:  make(chan struct{}, 1),
	}
	b.timed, _ = ep.(Requester)
	b.hurrier, _ = ep.(Hurrier)
	b.limit.Store(int64(never))
	h := fnv.New32a()
	h.Write([]byte(cfg.Name))
	for i, c := range devices {
		d := newDevice(cfg, c, int(h.Sum32()%1000)+i, b.start.UnixNano())
		b.devices = append(b.devices, d)
		b.notePlan(d)
	}
	return b
}

// find returns where a point is. Who writes, or reads on demand, waits for a
// device; a search of its points is nothing to that, and an index of all points
// would be large.
func (b *Bus) find(id point.ID) (place, error) {
	name := id.Device()
	for _, d := range b.devices {
		if d.cfg.Name != name {
			continue
		}
		for i := range d.points {
			if d.points[i].ID == id {
				return place{d, i}, nil
			}
		}
	}
	return place{}, ErrUnknownPoint
}

// Scratch is memory for batches while they are collected and emitted. A bus
// needs it for a moment a poll, so many buses get by with a few pieces. The zero
// value is ready.
type Scratch struct{ pool sync.Pool }

type scratch struct{ batch []point.Sample }

// take returns an empty batch with room for n samples.
func (s *Scratch) take(n int) *scratch {
	x, ok := s.pool.Get().(*scratch)
	if !ok {
		x = new(scratch)
	}
	x.batch = slices.Grow(x.batch[:0], n)
	return x
}

// emitBatch emits a batch, if there is something in it, and gives it back.
func (b *Bus) emitBatch(s *scratch) {
	if len(s.batch) > 0 {
		b.emit(s.batch)
	}
	b.Scratch.pool.Put(s)
}

// Name returns the bus's name.
func (b *Bus) Name() string { return b.cfg.Name }

// now is the time on the bus's clock.
func (b *Bus) now() instant { return time.Since(b.start) }

// Run polls and writes until ctx ends, then returns nil. What was read by then
// is emitted; a write that was sent is given three seconds more to be answered;
// writes that were not sent fail. It may be called once.
func (b *Bus) Run(ctx context.Context) error {
	if b.cfg.InFlight != 1 && b.cfg.Kind != config.Serial {
		b.jobs = make(chan *op)
		b.done = make(chan *op, maxInFlight)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var owed instant // when what is on its way has ended at the latest
	for ctx.Err() == nil {
		b.admit()
		now := b.now()
		o, wake := b.next(now)
		switch {
		case o != nil && b.jobs == nil:
			b.limit.Store(int64(b.doneBy(now, o)))
			b.do(ctx, o)
			b.finish(ctx, o)
			continue
		case o != nil:
			b.dispatch(ctx, o)
			select {
			case o := <-b.done:
				b.finish(ctx, o)
			default:
			}
			owed = max(owed, b.doneBy(now, o))
			b.limit.Store(int64(owed))
			continue
		}
		if b.out > 0 {
			b.limit.Store(int64(owed))
		} else {
			b.limit.Store(int64(wake))
		}
		var alarm <-chan time.Time
		if wake != never {
			timer.Reset(wake - now)
			alarm = timer.C
		}
		select {
		case <-ctx.Done():
		case <-b.kick:
		case <-alarm:
		case o := <-b.done:
			b.finish(ctx, o)
		}
	}
	b.stop(ctx)
	return nil
}

// doneBy is when the request o, made now, has ended at the latest.
func (b *Bus) doneBy(now instant, o *op) instant {
	return now + b.cfg.ConnectTimeout + b.cfg.Settle + 20*o.timeout + time.Minute
}

// Overdue returns for how long the bus has been owing its next step: 0 while it
// waits for a device or for a time to come. More than some seconds means that it
// hangs; a device that does not answer is no reason.
func (b *Bus) Overdue() time.Duration {
	return max(b.now()-time.Duration(b.limit.Load()), 0)
}

// stop waits for what is under way, emits what was read and refuses the rest.
func (b *Bus) stop(ctx context.Context) {
	for b.out > 0 {
		b.finish(ctx, <-b.done)
	}
	if b.jobs != nil {
		close(b.jobs)
		b.working.Wait()
	}
	b.limit.Store(int64(never))
	b.mu.Lock()
	b.stopped = true
	inbox := b.inbox
	b.inbox = nil
	b.mu.Unlock()
	for _, e := range inbox {
		e.give(b.errStopped())
	}
	for _, w := range b.writes {
		w.give(b.errStopped())
	}
	for _, a := range b.asks {
		a.give(b.errStopped())
	}
	for _, p := range b.passes.waiting {
		p.give(b.errStopped())
	}
	for _, d := range b.devices {
		for _, p := range d.polls {
			p.cutShort()
		}
		b.endPolls(d, b.now())
	}
}

// ErrStopped is what a bus says of that which it was asked for and has not sent,
// because Run has ended.
var ErrStopped = fmt.Errorf("stopped: %w", context.Canceled)

func (b *Bus) errStopped() error { return fmt.Errorf("bus %s: %w", b.cfg.Name, ErrStopped) }

// send hands e to Run's goroutine.
func (b *Bus) send(e errand) error {
	b.mu.Lock()
	if b.stopped {
		b.mu.Unlock()
		return b.errStopped()
	}
	b.inbox = append(b.inbox, e)
	b.news.Store(true)
	b.mu.Unlock()
	select {
	case b.kick <- struct{}{}:
	default:
	}
	return nil
}

// admit takes on what other goroutines have sent.
func (b *Bus) admit() {
	if !b.news.Load() {
		return
	}
	b.mu.Lock()
	inbox := b.inbox
	b.inbox = nil
	b.news.Store(false)
	b.mu.Unlock()
	for _, e := range inbox {
		e.admit(b)
	}
}

// span is when an exchange took place, in the order of all beginnings and ends
// on the bus. The tick of a request does not tell: of several under way, the
// workers may begin the later one first.
type span struct{ from, to uint64 }

// moment is a span of no length: now.
func (b *Bus) moment() span {
	n := b.order.Add(1)
	return span{n, n}
}

// op is one request on its way to a device and back.
type op struct {
	d       *device
	req     modbus.PDU
	timeout time.Duration
	sent    uint64 // its tick
	span    span

	began, ended time.Time
	resp         modbus.PDU
	err          error

	// For whom: one of these.
	poll  *poll
	index int // of the poll's result, or searching
	probe bool
	write *write
	ask   *ask
	read  *read // of an ask
	pass  *pass
}

func (b *Bus) newOp(d *device, req modbus.PDU) *op {
	var o *op
	if n := len(b.free); n > 0 {
		o = b.free[n-1]
		b.free = b.free[:n-1]
	} else {
		o = new(op)
	}
	b.tick++
	b.out++
	*o = op{d: d, req: req, timeout: d.cfg.Timeout, sent: b.tick}
	return o
}

// do makes the request and waits for its outcome. It is the only thing that
// workers do; it touches nothing but o.
func (b *Bus) do(ctx context.Context, o *op) {
	o.began = time.Now()
	o.span.from = b.order.Add(1)
	unit := o.d.cfg.Unit
	if o.write != nil {
		lasting, cancel := outlast(ctx, lastWrite)
		defer cancel()
		ctx = lasting
	}
	if b.hurrier != nil && o.write != nil && o.write.emergency {
		o.resp, o.err = b.hurrier.DoUrgent(ctx, unit, o.req, o.timeout, o.d.cfg.Gap)
	} else if b.timed != nil {
		o.resp, o.err = b.timed.DoTimeout(ctx, unit, o.req, o.timeout, o.d.cfg.Gap)
	} else {
		limited, cancel := context.WithTimeout(ctx, o.timeout)
		o.resp, o.err = b.ep.Do(limited, unit, o.req)
		cancel()
		if ctx.Err() == nil && errors.Is(o.err, context.DeadlineExceeded) {
			o.err = fmt.Errorf("%w within %v", modbus.ErrNoResponse, o.timeout)
		}
	}
	o.ended = time.Now()
	o.span.to = b.order.Add(1)
	if o.err == nil && !(len(o.resp) == 0 && o.d.broadcast) {
		// What decodes it relies on this, whatever answered.
		o.err = modbus.CheckResponse(o.req, o.resp)
	}
}

// lastWrite is how long a write that is on its way when Run is to end has to be
// answered: without it nobody would know whether the device has acted.
const lastWrite = 3 * time.Second

// outlast returns a context that ends d after ctx does.
func outlast(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(ctx, func() {
		t := time.AfterFunc(d, cancel)
		context.AfterFunc(lasting, func() { t.Stop() })
	})
	return lasting, func() { unhook(); cancel() }
}

// dispatch has a worker do o.
func (b *Bus) dispatch(ctx context.Context, o *op) {
	if b.workers < b.out {
		b.workers++
		b.working.Go(func() { // ends when stop closes jobs
			for o := range b.jobs {
				b.do(ctx, o)
				b.done <- o // has room for all of them
			}
		})
	}
	b.jobs <- o
}

// window is how many requests may be under way now.
func (b *Bus) window() int {
	switch {
	case b.jobs == nil || b.link.down:
		return 1
	case b.cfg.InFlight > 0:
		return min(b.cfg.InFlight, maxInFlight)
	}
	if e, ok := b.ep.(interface{ InFlight() int }); ok {
		return min(max(e.InFlight(), 1), maxInFlight)
	}
	return 1
}

// next returns the request to make now, or nil and when there will be one
// unless something happens before.
func (b *Bus) next(now instant) (*op, instant) {
	if b.out >= b.window() {
		return nil, never
	}
	wake := never
	if o, at := b.nextWrite(now); o != nil {
		return o, 0
	} else {
		wake = at
	}
	if b.link.down {
		if o := b.nextPass(); o != nil {
			return o, 0 // the line says at once that there is no wire
		}
		if now < b.link.retryAt {
			return nil, min(wake, b.link.retryAt)
		}
	}
	// Reads on demand go before polls, but a flood of them must not blind us.
	if b.asked < mostAsked {
		o, at := b.nextAsk(now)
		if o != nil {
			b.asked++
			return o, 0
		}
		wake = min(wake, at)
	}
	// Requests of others take turns with polls.
	if b.passes.turn {
		if o := b.nextPass(); o != nil {
			b.passes.turn = false
			return o, 0
		}
	}
	for {
		var first *device
		soonest := never
		for _, d := range b.devices {
			switch {
			case d.pauses(now):
				wake = min(wake, d.pausedTill)
				continue
			case d.pausedTill > 0 && d.pausedTill <= now:
				b.goOn(d, now)
			}
			at, deadline := d.ready(b.jobs != nil)
			if d.probing {
				at = max(at, b.probesFrom)
			}
			if at > now {
				wake = min(wake, at)
			} else if first == nil || deadline < soonest {
				first, soonest = d, deadline
			}
		}
		if first == nil {
			if b.asked == mostAsked {
				if o := b.nextPass(); o != nil {
					b.asked = 0 // so many of those, then one of these
					return o, 0
				}
				o, at := b.nextAsk(now)
				if o != nil {
					return o, 0
				}
				wake = min(wake, at)
			}
			if o := b.nextPass(); o != nil {
				return o, 0
			}
			return nil, wake
		}
		if o := b.nextOf(first, now); o != nil {
			b.passes.turn, b.asked = true, 0
			return o, 0
		}
	}
}

// finish takes the outcome of o to where it belongs.
func (b *Bus) finish(ctx context.Context, o *op) {
	b.out--
	d := o.d
	now := o.ended.Sub(b.start)
	b.limit.Store(int64(now)) // what follows waits for nothing
	b.admit()                 // a write that came meanwhile fences what was read before it
	stopping := ctx.Err() != nil && !isAnswer(o.err)
	switch {
	case stopping:
	case errors.Is(o.err, modbus.ErrNotConnected):
		b.wireDown(now, o.err)
	case o.pass != nil:
		b.wireUp(now)
	default:
		b.wireUp(now)
		b.noteOp(o)
		if isAnswer(o.err) && !d.broadcast {
			d.learn(o)
			b.answered(d, now)
		}
	}
	switch {
	case o.poll != nil:
		b.finishPollOp(o, now, stopping)
	case o.probe:
		b.finishProbe(o, now, stopping)
	case o.write != nil:
		b.finishWrite(o, now)
	case o.ask != nil:
		b.finishAsk(o, now)
	case o.pass != nil:
		b.finishPass(o, stopping)
	}
	b.endPolls(d, now)
	*o = op{}
	b.free = append(b.free, o)
}

// isAnswer reports whether the device itself has said something usable.
func isAnswer(err error) bool {
	if err == nil {
		return true
	}
	var e modbus.Exception
	return errors.As(err, &e) && e != modbus.GatewayPathUnavailable && e != modbus.GatewayTargetNoResponse
}

// wireDown notes that there is no wire. Requests wait meanwhile; when it lasts,
// the devices are called offline. What is wrong with the wire is the line's to
// report, once for all of them.
func (b *Bus) wireDown(now instant, err error) {
	l := &b.link
	if !l.down {
		*l = link{down: true, since: now, wait: time.Millisecond}
	}
	l.err = err
	b.noteWire(true, err)
	l.retryAt = now + l.wait
	l.wait = min(2*l.wait, time.Second)
	if l.told || now-l.since < wireGrace {
		return
	}
	l.told = true
	b.log.Debug("devices out of reach: no wire", "devices", len(b.devices), "err", err)
	for _, d := range b.devices {
		if d.broadcast {
			continue // nothing was ever known of it
		}
		for _, p := range d.polls {
			p.drop()
		}
		b.endPolls(d, now)
		b.setState(d, Offline, now, err)
		b.emitAllBad(d)
		d.resume(now)
	}
}

// wireUp notes that there is one.
func (b *Bus) wireUp(now instant) {
	l := &b.link
	if !l.down {
		return
	}
	if l.told {
		b.log.Debug("wire back", "after", (now - l.since).Round(time.Millisecond))
		for _, d := range b.devices {
			d.resume(now)
			// What is never polled would not be found to be back.
			d.probing = d.probing || len(d.plan.reads) == 0 && d.plan.probe != nil
			if d.probing {
				d.probes, d.probeAt, d.lostAt = 0, now, now
			}
		}
	}
	*l = link{}
	b.noteWire(false, nil)
}
