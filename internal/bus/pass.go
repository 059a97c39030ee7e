package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
)

// What requests of others may cost: how many of them wait at most, and for how
// long. They have no claim on the wire but what is left between our own.
const (
	maxPasses    = 64
	passPatience = 10 * time.Second
)

// Do implements modbus.Endpoint for requests of others: of a PLC or an
// engineering tool that a server lets through to the wire. Any unit may be asked.
// Such a request waits for our own writes and reads on demand, takes turns with
// our polls, and the clients of modbus.Client take turns with each other. It is
// made once and has the time limit of the device, or of the bus if the unit is
// none of ours. What comes of it is nothing to the state of a device: a client
// that asks for what is not there does not make it suspect.
//
// A write is fenced as one of ours is (see Write): no value read of what it
// touches before it has ended is emitted. Between the steps of a write of ours
// that changes some bits of a register nothing goes to its device.
//
// Exception 6 (busy) means that the request was not sent because it had waited
// for 10 s, or 64 waited already, not fewer of them this client's than another's.
func (b *Bus) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	if err := modbus.CheckRequest(req); err != nil {
		return nil, err
	}
	p := &pass{unit: unit, req: slices.Clone(req), client: modbus.Client(ctx), done: make(chan error, 1)}
	if err := b.send(p); err != nil {
		return nil, err
	}
	patience := time.NewTimer(passPatience)
	defer patience.Stop()
	late := patience.C
	for {
		select {
		case err := <-p.done:
			return p.resp, err
		case <-late:
			if p.state.CompareAndSwap(writeQueued, writeCancelled) {
				return nil, fmt.Errorf("bus %s: %w: not sent within %v", b.cfg.Name, modbus.ServerDeviceBusy, passPatience)
			}
			late = nil // it is on the wire, which has its own limit
		case <-ctx.Done():
			err := context.Cause(ctx)
			if !p.state.CompareAndSwap(writeQueued, writeCancelled) {
				err = fmt.Errorf("%w: %w", modbus.ErrNoResponse, err)
			}
			return nil, err
		}
	}
}

// pass is a request of somebody else. It belongs to Run's goroutine, but for
// state; resp is its caller's once done has the outcome.
type pass struct {
	unit    modbus.UnitID
	req     modbus.PDU
	client  string
	state   atomic.Int32
	ours    *device // nil: the unit is none of ours
	touched []place
	resp    modbus.PDU
	done    chan error // has room for the outcome
}

// passes is the requests of others that wait.
type passes struct {
	waiting []*pass
	turn    bool              // the next request is theirs, not a poll's
	served  map[string]uint64 // by client: tick of the last request
	guests  map[modbus.UnitID]*device
}

// maxServed bounds how many clients are remembered for their turns.
const maxServed = 256

func (p *pass) admit(b *Bus) {
	if len(b.passes.waiting) >= maxPasses {
		b.dropCancelled()
	}
	if len(b.passes.waiting) >= maxPasses && !b.makeRoom(p.client) {
		p.done <- b.errFull()
		return
	}
	i := slices.IndexFunc(b.devices, func(d *device) bool { return d.cfg.Unit == p.unit })
	if i >= 0 {
		p.ours = b.devices[i]
	}
	if t, addr, n := p.req.WriteSpan(); t != 0 {
		devices := b.devices
		if p.unit != modbus.Broadcast || b.cfg.Framing == modbus.FramingTCP {
			devices = nil
			if p.ours != nil {
				devices = b.devices[i : i+1]
			}
		}
		p.touched = fenceOff(devices, t, int(addr), int(addr)+n)
	}
	b.passes.waiting = append(b.passes.waiting, p)
}

// makeRoom refuses the newest request of the client that has most of the places, if
// another has fewer: one client with many connections must not shut out the rest.
func (b *Bus) makeRoom(client string) bool {
	count := make(map[string]int)
	most := client
	for _, p := range b.passes.waiting {
		count[p.client]++
		if count[p.client] > count[most] {
			most = p.client
		}
	}
	if count[most] <= count[client]+1 {
		return false
	}
	for i := len(b.passes.waiting) - 1; ; i-- { // it has some
		p := b.passes.waiting[i]
		if p.client != most {
			continue
		}
		if p.state.CompareAndSwap(writeQueued, writeCancelled) {
			p.done <- b.errFull()
		}
		b.lift(p.touched)
		b.passes.waiting = slices.Delete(b.passes.waiting, i, i+1)
		return true
	}
}

func (b *Bus) errFull() error {
	return fmt.Errorf("bus %s: %w: %d requests of others wait already", b.cfg.Name, modbus.ServerDeviceBusy, maxPasses)
}

func (p *pass) give(err error) { p.done <- err }

// dropCancelled forgets the requests nobody waits for any more.
func (b *Bus) dropCancelled() {
	b.passes.waiting = slices.DeleteFunc(b.passes.waiting, func(p *pass) bool {
		if p.state.Load() != writeCancelled {
			return false
		}
		b.lift(p.touched)
		return true
	})
}

// nextPass returns the next request of somebody else: of the client whose last
// one is longest ago.
func (b *Bus) nextPass() *op {
	if len(b.passes.waiting) == 0 {
		return nil
	}
	b.dropCancelled()
	var first *pass
	for _, p := range b.passes.waiting {
		if p.ours != nil && p.ours.writer != nil {
			continue // nothing goes between the steps of a write
		}
		if first == nil || b.passes.served[p.client] < b.passes.served[first.client] {
			first = p
		}
	}
	if first == nil || !first.state.CompareAndSwap(writeQueued, writeStarted) {
		return nil // cancelled just now; the next step sees it
	}
	b.passes.waiting = slices.DeleteFunc(b.passes.waiting, func(p *pass) bool { return p == first })
	o := b.newOp(b.guest(first), first.req)
	o.pass = first
	if len(b.passes.served) >= maxServed {
		clear(b.passes.served)
	}
	if b.passes.served == nil {
		b.passes.served = make(map[string]uint64)
	}
	b.passes.served[first.client] = b.tick
	return o
}

// guest returns what stands for the unit of a request of others: a device
// without points, whose failures are no device's of ours.
func (b *Bus) guest(p *pass) *device {
	if g := b.passes.guests[p.unit]; g != nil {
		return g
	}
	g := &device{broadcast: p.unit == modbus.Broadcast && b.cfg.Framing != modbus.FramingTCP}
	g.cfg = config.Device{Unit: p.unit, Timeout: b.cfg.Timeout, Gap: config.GapAuto}
	if p.ours != nil {
		g.cfg.Timeout, g.cfg.Gap = p.ours.cfg.Timeout, p.ours.cfg.Gap
	}
	if g.cfg.Timeout <= 0 {
		g.cfg.Timeout = time.Second
	}
	if b.passes.guests == nil {
		b.passes.guests = make(map[modbus.UnitID]*device)
	}
	b.passes.guests[p.unit] = g
	return g
}

// finishPass takes the outcome of a request of somebody else.
func (b *Bus) finishPass(o *op, stopping bool) {
	p := o.pass
	b.lift(p.touched)
	b.mu.Lock()
	b.tally.busy += o.ended.Sub(o.began)
	b.tally.passed++
	b.mu.Unlock()
	err := o.err
	if stopping && errors.Is(err, context.Canceled) {
		err = b.errStopped()
	}
	p.resp = o.resp
	p.done <- err
}

// fenceOff fences the points of devices that lie from start up to end of a table,
// and returns them. lift ends that.
func fenceOff(devices []*device, t modbus.Table, start, end int) (touched []place) {
	for _, d := range devices {
		if d.fence == nil {
			d.writing, d.fence = make([]int32, len(d.points)), make([]uint64, len(d.points))
		}
		for i := range d.points {
			if p := &d.points[i]; p.Table == t && int(p.Address) < end && start < int(p.Address)+p.Words() {
				touched = append(touched, place{d, i})
				d.writing[i]++
				d.writes++
			}
		}
	}
	return touched
}

// lift lets through what is asked for from now on.
func (b *Bus) lift(touched []place) {
	b.tick++
	for _, t := range touched {
		t.d.writing[t.i]--
		t.d.writes--
		t.d.fence[t.i], t.d.fenced = b.tick, b.tick
	}
}

// Pause stops the polling of a device for a time, for an engineering tool that
// wants the wire for itself; 0 lets it go on at once. What is being read is
// finished, and writes, reads on demand and requests of others go on. The values
// grow old meanwhile: they become neither bad nor offline by it.
func (b *Bus) Pause(name string, length time.Duration) error {
	i := slices.IndexFunc(b.devices, func(d *device) bool { return d.cfg.Name == name })
	if i < 0 {
		return fmt.Errorf("bus %s: there is no device %s", b.cfg.Name, name)
	}
	return b.send(&pauseFor{b.devices[i], length})
}

// pauseFor is a pause on its way to Run's goroutine.
type pauseFor struct {
	d      *device
	length time.Duration
}

func (p *pauseFor) admit(b *Bus) {
	d, now := p.d, b.now()
	d.pausedTill = 0
	if p.length > 0 {
		d.pausedTill = now + p.length
		b.log.Info("polling pauses", "device", d.cfg.Name, "unit", d.cfg.Unit, "for", p.length)
	} else {
		b.goOn(d, now)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	d.tally.pausedTill = d.pausedTill
}

func (p *pauseFor) give(error) {}

// pauses reports whether d begins nothing now because of a pause.
func (d *device) pauses(now instant) bool {
	return d.pausedTill > now && !slices.ContainsFunc(d.polls, (*poll).wants)
}

// goOn ends the pause of a device.
func (b *Bus) goOn(d *device, now instant) {
	d.pausedTill = 0
	d.resume(now)
	if d.probing {
		d.probeAt = now
	}
	b.log.Info("polling goes on", "device", d.cfg.Name, "unit", d.cfg.Unit)
}

// Paused returns for how long the polling of a device still pauses.
func (b *Bus) Paused(name string) time.Duration {
	for _, d := range b.devices {
		if d.cfg.Name == name {
			b.mu.Lock()
			defer b.mu.Unlock()
			return max(d.tally.pausedTill-b.now(), 0)
		}
	}
	return 0
}
