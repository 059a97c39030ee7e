// Package command is the gate before every write: messages of brokers, the PLCs
// at our Modbus servers and the command line all come through the same checks,
// are recorded before the register is written, are written in order, read back
// and answered. It knows points and messages, not wires: what writes is a Field.
//
// The rule is: refused with a reason, or done and seen done, or said to be
// unknown. Never silent.
//
// The types to know are Desk, the gate; Order, what is asked for; and Result,
// what came of it.
//
// # The way of an order
//
// It is refused (rejected) if its message was kept by the broker, comes from
// someone who may not send it, is too old, from the future, or dated while the
// clock was never set; if its id was let through before for something else; if the
// point may not be written, or not with this value; if somebody on site has
// locked the rest out; if it comes too soon after
// another, or the day's budget is used up; if too much waits already; if it
// cannot be recorded. An id that was seen before gets the first answer.
//
// Then it is on disk, and its message is acknowledged. It waits for its turn:
// orders for one device are done one after the other, in the order in which
// they came, and devices do not wait for each other. Emergencies have a turn of
// their own, so they wait for other emergencies of their device alone, and not
// for the disk. An emergency ends what came before it for its device and is not
// on the wire yet: nothing older is written after a stop.
//
// Then it is written, unless the device shows the value already, and read back.
// written says that the device has confirmed the write; verified, that it shows
// the value; failed, that it has not taken it; unknown, that it may have.
//
// # What survives a restart
//
// The record holds every id before its register is written. A Desk that is
// opened reads it: ids of the duplicate window are known again, with their
// answers, and an order without a result is unknown, which is said then to
// whoever sent it. What was written on this day counts against the budgets.
package command

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fieldgate/internal/audit"
	"fieldgate/internal/clock"
	"fieldgate/internal/config"
	"fieldgate/internal/health"
	"fieldgate/internal/modbus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
)

// Bounds of what waits. Past them an order is refused: busy.
const (
	maxWaiting   = 1024 // orders in all
	maxPerDevice = 32
	maxUrgent    = 16 // emergencies of one device
	maxIDs       = 50_000
	maxReads     = 32   // commands that read
	maxEvents    = 4096 // messages for the event log; one client sends at most 1,024 ahead
	maxText      = 1000 // bytes of a value; the longest text that fits into a write has 246
)

const (
	// aheadMost is how far a sender's clock may be ahead of ours.
	aheadMost = 10 * time.Second
	// stopGrace is how long what is being written may go on when Run is told
	// to stop.
	stopGrace = 3 * time.Second
	// writeLimit bounds one write or read of the field, far above what any bus
	// needs for its repeats.
	writeLimit = 2 * time.Minute
	// recordLimit is how long the disk may take to record an order.
	recordLimit = 10 * time.Second
)

// Status is what became of an order.
type Status string

// The words of SPEC's acknowledgement, and Read, of a command that reads.
const (
	Accepted Status = "accepted" // recorded; more will follow
	Written  Status = "written"
	Verified Status = "verified"
	Rejected Status = "rejected" // by a check; nothing was written
	Failed   Status = "failed"   // the device has not taken it
	Unknown  Status = "unknown"  // the device may have taken it
	Read     Status = "read"
)

// Write is a value for a point.
type Write struct {
	Point point.ID
	Value point.Value // none: Text says it, as a person writes it
	Text  string
	Unit  string // of the value; "": the point's
}

// Order is what is asked for: one write, or several that belong together. Of
// several all are checked before the first is written, in their order.
type Order struct {
	ID     string // "": it has none
	By     string // user or client
	Via    string // name of the uplink, or local, modbus, cli
	Writes []Write

	Issued  time.Time     // zero: it does not say
	Expires time.Time     // not written later; zero: it does not expire
	MaxAge  time.Duration // refused when Issued is longer ago; 0: of any age
	Retry   time.Duration // how long a single write that did not succeed is tried again
	NoRush  bool          // no emergency, although all its points are
	Stop    bool          // of several, when one fails: leave those before, rather than restore them

	counted bool   // Expires counts from the arrival: our own clock is right for it
	fresh   bool   // look at the device before writing what it shows already
	answer  string // topic of the answer
}

// Outcome is what became of one write.
type Outcome struct {
	Point    point.ID
	Status   Status
	Value    point.Value // none if it could not even be read
	Previous point.Value // none if it is not known
	Reason   string

	touched bool // the write was sent
}

// Result is what became of an order.
type Result struct {
	Status Status
	Reason string
	Writes []Outcome // none of an order that was refused as a whole
	Took   time.Duration

	err   error // why, for errors.Is
	class class // of one that was rejected
}

// ErrRejected is wrapped by Result.Err of an order that was refused by a check.
var ErrRejected = errors.New("rejected")

// Err returns nil if the order was written or verified, else an error with the
// reason: it wraps ErrRejected, the device's modbus.Exception, or, of an order
// that is unknown, modbus.ErrNoResponse.
func (r Result) Err() error {
	switch r.Status {
	case Written, Verified, Read:
		return nil
	case Rejected:
		return fmt.Errorf("%w: %s", ErrRejected, r.Reason)
	case Unknown:
		return fmt.Errorf("%s: %w", r.Reason, modbus.ErrNoResponse)
	}
	if r.err != nil {
		return r.err
	}
	return errors.New(r.Reason)
}

// Field writes and reads points, as bus.Set does: Write returns when the device
// has answered, with an error that wraps modbus.ErrNoResponse when it may have
// taken the value, and Read returns a sample for each id.
type Field interface {
	Write(ctx context.Context, id point.ID, v point.Value) error
	Read(ctx context.Context, ids ...point.ID) ([]point.Sample, error)
}

// Options is what a Desk is made of. Field, Last and Audit must be given.
type Options struct {
	Devices  []config.Device
	Commands []config.Command
	Rules    config.CommandRules

	Field Field
	Last  func(point.ID) (point.Sample, bool) // the newest sample; ok is false before the first
	Audit *audit.Log

	// ClockSet reports whether the clock of this machine has ever been set. Nil:
	// it is.
	ClockSet func() bool
	// Clock tells the times of answers. Nil: the machine's does.
	Clock *clock.Clock
	// Connected reports whether an uplink is connected. Nil: all are.
	Connected func(uplink string) bool
	// Kept names the uplinks whose broker keeps messages while we are away: of
	// those only commands with a timestamp are taken.
	Kept []string
	// Answers is where to answer orders of before a restart, by Order.Via.
	Answers map[string]mqtt.Sink
}

// Desk is the gate. Its methods are safe for use by several goroutines.
type Desk struct {
	o      Options // without what is in the book
	log    *slog.Logger
	book   atomic.Pointer[book]
	turned chan struct{} // holds a token when the book is new

	inbox    chan func(ctx, grace context.Context) // work for Run's goroutines
	noting   chan struct{}                         // a token for each record on its way that nobody waits for
	ended    atomic.Bool                           // nothing is recorded any more
	refusals limiter                               // of their records
	alerts   limiter                               // of the records of messages for the event log
	lost     limiter                               // of what the log says of records that were not taken
	reads    atomic.Int32                          // commands that read, under way
	events   atomic.Int32                          // messages on their way to the event log
	orphans  []orphan                              // of before the restart; Run's
	lastDay  int64                                 // of the newest record of before the start that knows it, in days since 1970; 0: none
	began    time.Time                             // when that was read
	seed     maphash.Seed

	mu       sync.Mutex
	stopped  bool
	waiting  int
	restored map[string]uint64  // by topic: hash of the newest message, of commands that take retained ones
	turns    map[string][]*turn // by device, in order
	ids      map[string]*known
	retired  []expiry          // of ids, the next to forget first
	serial   uint64            // numbers orders
	urgent   map[string]uint64 // by device: serial of its newest emergency
	writing  map[*writeUnderWay]bool

	count counters

	beat, watching health.Beat // of Run and of watch
}

// place is a point, and what is known of its writes.
type place struct {
	point  *point.Point
	device *config.Device
	*account
}

// account is what is known of the writes of a point. It lives on when the
// configuration changes. It is guarded by Desk.mu.
type account struct {
	newest   uint64    // serial of the newest order for it
	accepted time.Time // when an order for it was last accepted
	day      int64     // of writes, in days since 1970
	writes   int       // on that day, those under way included
	warned   bool      // of its budget, on that day
	hold     holding   // what is written again
}

// Open makes a Desk and reads what the record in the folder dir says of before.
// What cannot be read there is logged and done without.
func Open(dir string, o Options, log *slog.Logger) *Desk {
	if o.ClockSet == nil {
		o.ClockSet = func() bool { return true }
	}
	if o.Connected == nil {
		o.Connected = func(string) bool { return true }
	}
	d := &Desk{
		o: o, log: log, turned: make(chan struct{}, 1),
		inbox:  make(chan func(ctx, grace context.Context), maxWaiting),
		noting: make(chan struct{}, maxNoting),
		turns:  make(map[string][]*turn),
		ids:    make(map[string]*known),
		urgent: make(map[string]uint64), writing: make(map[*writeUnderWay]bool),
		restored: make(map[string]uint64), seed: maphash.MakeSeed(),
	}
	d.o.Devices, d.o.Commands, d.o.Rules, d.o.Kept = nil, nil, config.CommandRules{}, nil
	d.Change(o.Devices, o.Commands, o.Rules, o.Kept)
	d.remember(dir, time.Now())
	return d
}

// Run does what is asked for until ctx ends. Then it refuses what waits, lets
// what is being written end within three seconds, and returns nil. It may be
// called once.
func (d *Desk) Run(ctx context.Context) error {
	grace, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var work sync.WaitGroup
	d.beat.Works()
	defer d.beat.Stops()
	d.answerOrphans(grace)
	work.Go(func() { d.watch(ctx, grace, &work) }) // ends with ctx
	for ctx.Err() == nil {
		d.beat.Waits()
		select {
		case f := <-d.inbox:
			d.beat.Works()
			work.Go(func() { f(ctx, grace) }) // ends when the order has, or with grace
		case <-ctx.Done():
		}
	}
	d.beat.Rests(stopGrace)
	d.mu.Lock()
	d.stopped = true
	d.mu.Unlock()
	for len(d.inbox) > 0 {
		f := <-d.inbox
		work.Go(func() { f(ctx, grace) })
	}
	late := time.AfterFunc(stopGrace, cancel)
	work.Wait()
	late.Stop()
	for range maxNoting { // what is still to be recorded
		d.noting <- struct{}{}
	}
	d.ended.Store(true)
	return nil
}

// Overdue returns for how long Run has been owing its next step; more than some
// seconds means that it hangs. What an order waits for is another part's.
func (d *Desk) Overdue() time.Duration { return max(d.beat.Overdue(), d.watching.Overdue()) }

// Do does what o asks for and returns what became of it. When ctx ends before
// the write was sent, nothing is written; when it ends later, the outcome is
// unknown.
func (d *Desk) Do(ctx context.Context, o Order) Result {
	j, r := d.admit(o, time.Now())
	if j == nil {
		return d.await(ctx, r)
	}
	return d.perform(ctx, ctx, j, nil)
}

// submit hands work to Run. It returns false if Run does not take any.
func (d *Desk) submit(f func(ctx, grace context.Context)) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped {
		return false
	}
	select {
	case d.inbox <- f:
		return true
	default:
		return false
	}
}

// find returns a point and the unit id of its device, for decode.
func (d *Desk) find(id point.ID) (*point.Point, modbus.UnitID) {
	p := d.book.Load().points[id]
	if p == nil {
		return nil, 0
	}
	return p.point, p.device.Unit
}

// devices returns the devices of some writes, each once.
func devices(writes []checked) []string {
	var names []string
	for i := range writes {
		if name := writes[i].place.device.Name; !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
