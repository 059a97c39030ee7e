// Package clock says what time of day it was at a moment of the monotonic
// clock, and whether the time of day can be believed.
//
// Intervals are measured by the monotonic clock, which nobody sets; what order
// things happened in is known from it too. The time of day is needed for people
// only, and is made late: zero + moment, where zero is the time of day at which
// the monotonic clock stood at nought. When the clock is set, zero changes and
// nothing else does. A clock that is only adjusted (slewed) changes neither,
// since the kernel adjusts both clocks alike.
//
// # Whether the clock is set
//
// Many boards have no clock that runs without power. They start in 1970, or
// where they were when the power went, until a time service sets them. A clock
// is
//
//   - Synced, once a time service has set it: the kernel says so (adjtimex(2),
//     STA_UNSYNC is clear), or systemd-timesyncd does
//     (/run/systemd/timesync/synchronized);
//   - Set, if nobody vouches for it, but nothing speaks against it either:
//     there is a hardware clock and it agrees; or somebody set it while we ran;
//     or the machine is a PC or a virtual one, whose clock comes from its host;
//   - Unset, if it is before Epoch, or the hardware clock says something else, or
//     the machine is a board without one.
//
// A plant without a time service and with a good hardware clock is thus Set for
// ever. It only gets better: once Set or Synced it stays so for the life of the
// process, since the monotonic clock carries the time on, whatever becomes of
// the time service; and it does not follow a step to before Epoch.
//
// While it is Unset, zero does not change: one wrong time is as good as another,
// and what was said in it can be put right by one number, Shift.
//
// The type to know is Clock; Stamp is what one has to keep of it beside a time.
package clock

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"fieldgate/internal/health"
)

// Epoch is before every moment at which Fieldgate can have run with its clock
// set.
var Epoch = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// State is how far the time of day can be believed.
type State uint8

// The states, from bad to good.
const (
	Unset State = iota
	Set
	Synced
)

func (s State) String() string { return [...]string{"unsynced", "set", "synchronised"}[s] }

// Source is where a Clock gets its time from. Machine returns the usual one.
type Source struct {
	// Now returns the time of day and the moment at which it was read.
	Now func() (day, moment time.Time)
	// Vouch says whether a time service has set the clock, and if not, what
	// speaks against it ("": nothing).
	Vouch func(day time.Time) (synced bool, doubt string)
	// Boot tells this start of the machine from others; 0: not known.
	Boot uint32
	// Up is how long the machine had been up when Now returned moment.
	Up func(moment time.Time) time.Duration
}

const (
	// slack is how far the clocks may be apart before it is a step: times are
	// said in milliseconds, and reading two clocks one after the other takes a
	// moment.
	slack = 2 * time.Millisecond
	// large is a step by which somebody sets a clock, rather than adjusts it.
	large = time.Minute
	// askUnset and askSet are how often Vouch is asked, until it vouches.
	askUnset = time.Second
	askSet   = time.Minute
)

// Clock knows the time of day. Make one with New. A nil *Clock believes what
// the machine says and notices nothing. All methods are safe for use by
// several goroutines.
type Clock struct {
	src    Source
	log    *slog.Logger
	origin time.Time     // moments count from here
	up     time.Duration // of the machine at origin
	unset  Stamp         // of what is told while the clock is Unset

	number uint64 // see First
	path   string // of the file that Run writes

	view atomic.Pointer[view]
	news chan struct{} // holds one token when the state has changed
	ask  atomic.Int64  // no question to Vouch before this moment, in ns since origin
	seen atomic.Int64  // zero by the last reading, believed or not
	beat health.Beat   // of Run

	mu sync.Mutex // for the change of all three
}

// view is what a clock knows at the moment.
type view struct {
	zero  int64 // time of day at origin, in ns since 1970
	state State
	steps uint64
}

// never is a moment that does not come.
const never = int64(^uint64(0) >> 1)

// New returns a clock that has had its first look at src.
func New(src Source, log *slog.Logger) *Clock {
	day, moment := src.Now()
	c := &Clock{src: src, log: log, origin: moment, up: src.Up(moment), news: make(chan struct{}, 1)}
	zero := day.UnixNano()
	c.seen.Store(zero)
	v := &view{zero: zero}
	c.unset = c.stamp(v)
	c.number = uint64(max(0, floorDiv(zero, int64(time.Millisecond))))
	synced, doubt := src.Vouch(day)
	v.state = stateOf(synced, doubt)
	if v.state == Unset {
		log.Warn("the clock has not been set, messages say \"unsynced\" until it is", "reason", doubt)
	}
	c.view.Store(v)
	c.ask.Store(nextAsk(0, v.state))
	return c
}

func stateOf(synced bool, doubt string) State {
	switch {
	case synced:
		return Synced
	case doubt == "":
		return Set
	}
	return Unset
}

func nextAsk(now int64, s State) int64 {
	switch s {
	case Unset:
		return now + int64(askUnset)
	case Set:
		return now + int64(askSet)
	}
	return never
}

// Look notices whether the clock was set since the last look. It is to be
// called whenever there is something to do anyway, at least every few seconds;
// it takes about as long as time.Now.
func (c *Clock) Look() {
	if c == nil {
		return
	}
	day, moment := c.src.Now()
	now := int64(moment.Sub(c.origin))
	off := day.UnixNano() - now - c.seen.Load()
	if off < int64(slack) && off > -int64(slack) && now < c.ask.Load() {
		return
	}
	c.look()
}

// look is a look that may find something.
func (c *Clock) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Whoever is interrupted between the two readings finds the difference too
	// small, never too large.
	const tries = 5
	var zero, now int64
	var day time.Time
	for i := range tries {
		d, moment := c.src.Now()
		n := int64(moment.Sub(c.origin))
		if z := d.UnixNano() - n; i == 0 || z > zero {
			zero, now, day = z, n, d
		}
	}
	v := *c.view.Load()
	step := time.Duration(zero - c.seen.Load())
	stepped := step.Abs() >= slack
	if stepped {
		c.seen.Store(zero)
	}
	if !stepped && now < c.ask.Load() {
		return // another goroutine was here first
	}
	state := v.state
	if state != Synced {
		state = stateOf(c.src.Vouch(day))
		if state == Unset && step.Abs() >= large {
			state = Set // somebody set it
		}
	}
	believed := !day.Before(Epoch)
	if !believed {
		state = Unset
	}
	c.ask.Store(nextAsk(now, max(v.state, state)))
	switch {
	case v.state == Unset && state != Unset:
		c.log.Info("the clock is set", "by", time.Duration(zero-v.zero).Round(time.Millisecond), "time", day.UTC(), "state", state.String())
		v.zero, v.state = zero, state
	case v.state == Unset:
		return
	case stepped && !believed:
		c.log.Warn("the clock was set to a time that cannot be, going on without it", "time", day.UTC())
		return
	case stepped:
		if step.Abs() >= large {
			c.log.Info("the clock was set", "by", step.Round(time.Millisecond), "time", day.UTC())
		}
		v.zero, v.state = zero, max(v.state, state)
		v.steps++
	case state > v.state:
		v.state = state
	default:
		return
	}
	changed := v.state != c.view.Load().state
	c.view.Store(&v)
	if changed {
		select {
		case c.news <- struct{}{}:
		default:
		}
	}
}

// State returns how far the time of day can be believed now.
func (c *Clock) State() State {
	if c == nil {
		return Set
	}
	return c.view.Load().state
}

// Steps counts how often the clock was set since New, the first setting of one
// that was Unset not included.
func (c *Clock) Steps() uint64 {
	if c == nil {
		return 0
	}
	return c.view.Load().steps
}

// At returns the time of day at the moment t, in nanoseconds since 1970, and
// whether the clock is set. t is of time.Now in this process; if it has lost its
// monotonic reading, it is taken for a time of day that is known.
func (c *Clock) At(t time.Time) (ns int64, set bool) {
	if c == nil || t == t.Round(0) {
		return t.UnixNano(), true
	}
	v := c.view.Load()
	return v.zero + int64(t.Sub(c.origin)), v.state != Unset
}

// Day returns the time of day at the moment t, as At does, in UTC.
func (c *Clock) Day(t time.Time) time.Time {
	ns, _ := c.At(t)
	return time.Unix(0, ns).UTC()
}

// Stamp says by which clock a time of day was told while it was Unset: in which
// start of the machine, and when that was by the clock.
type Stamp struct {
	Boot uint32
	Zero int64 // time of day at the machine's start, in ms since 1970
}

// Stamp returns the stamp of what this process tells, or told, while its clock
// is Unset; unset reports whether it is now.
func (c *Clock) Stamp() (s Stamp, unset bool) {
	if c == nil {
		return Stamp{}, false
	}
	return c.unset, c.view.Load().state == Unset
}

func (c *Clock) stamp(v *view) Stamp {
	const ms = int64(time.Millisecond)
	return Stamp{Boot: c.src.Boot, Zero: floorDiv(v.zero-int64(c.up), ms)}
}

// Shift returns how much later than it says a time was that was told by the
// clock of s. ok is false if that is not known: the clock is still Unset, or s
// is of another start of the machine.
func (c *Clock) Shift(s Stamp) (later time.Duration, ok bool) {
	if c == nil {
		return 0, false
	}
	v := c.view.Load()
	if v.state == Unset || s.Boot != c.src.Boot || s.Boot == 0 {
		return 0, false
	}
	return time.Duration(c.stamp(v).Zero-s.Zero) * time.Millisecond, true
}

// floorDiv divides and rounds down.
func floorDiv(a, b int64) int64 {
	if a < 0 {
		return -((-a + b - 1) / b)
	}
	return a / b
}
