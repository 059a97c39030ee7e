package bus

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Counters count requests and what came of them. They only grow.
type Counters struct {
	Requests  uint64 // sent
	Responses uint64 // that gave what was asked for
	Errors    uint64 // everything else: Exceptions, Silent and Damaged

	Exceptions uint64 // refusals
	Silent     uint64 // no answer
	Damaged    uint64 // an answer, but not to this request, or with a wrong CRC
}

// String returns the counters in the short form T125R089E003.
func (c Counters) String() string {
	return fmt.Sprintf("T%03dR%03dE%03d", c.Requests, c.Responses, c.Errors)
}

func (c *Counters) add(o Counters) {
	c.Requests += o.Requests
	c.Responses += o.Responses
	c.Errors += o.Errors
	c.Exceptions += o.Exceptions
	c.Silent += o.Silent
	c.Damaged += o.Damaged
}

// Answer is how long requests took to be answered, from handing them to the
// line to the answer. All are 0 before the first answer.
type Answer struct {
	Min, Avg, P99 time.Duration // P99 to a quarter of an octave
}

// Polls counts polls of one device since New; probes are none.
type Polls struct {
	Begun   uint64        // ended or under way
	Failed  uint64        // that did not get all they asked for
	Missed  uint64        // left out because the wire was busy for a whole interval
	LateMax time.Duration // the longest that a poll began after its time
	LateAvg time.Duration // likewise, of all that began
}

// DeviceStatus is the status of one device.
type DeviceStatus struct {
	Name  string
	Unit  modbus.UnitID
	State State
	Since time.Time // of the state; zero while Unknown

	Answered  time.Time // when it last answered; zero: never
	Error     string    // the last that went wrong; "": nothing yet
	ErrorTime time.Time

	Points  int        // configured
	Reads   int        // requests in its plan
	Refused []point.ID // points no longer asked for, see the package comment
	Split   bool       // the plan has been changed because the device refuses some reads

	Counters Counters
	Answer   Answer
	Polls    Polls
}

// Status is the status of a bus: how it is now, and counters since New.
type Status struct {
	Bus       string
	Connected bool          // the wire was there at the last request
	Busy      time.Duration // sum of the time that requests took
	Up        time.Duration // since New
	Writes    uint64        // writes ended
	Unknown   uint64        // of them with an unknown outcome
	Passed    uint64        // requests of others (Bus.Do)
	Counters  Counters      // of all devices
	Error     string        // why the wire is not there; "" while Connected
	Devices   []DeviceStatus
}

// tally is Status in the making.
type tally struct {
	down    bool
	err     error
	busy    time.Duration
	writes  uint64
	unknown uint64
	passed  uint64
}

type deviceTally struct {
	state    State
	since    time.Time
	answered time.Time
	err      error
	errTime  time.Time
	reads    int
	refused  []point.ID
	split    bool
	counters Counters
	polls    Polls
	late     time.Duration // sum
	times    histogram

	pausedTill instant
	// In a row, up to now:
	silent, damaged uint64
}

// Status returns what is known now. It may be called at any time.
func (b *Bus) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Status{
		Bus: b.cfg.Name, Connected: !b.tally.down, Busy: b.tally.busy, Up: b.now(),
		Writes: b.tally.writes, Unknown: b.tally.unknown, Passed: b.tally.passed,
		Devices: make([]DeviceStatus, len(b.devices)),
	}
	if b.tally.err != nil {
		s.Error = b.tally.err.Error()
	}
	for i, d := range b.devices {
		t := &d.tally
		s.Devices[i] = DeviceStatus{
			Name: d.cfg.Name, Unit: d.cfg.Unit, State: t.state, Since: t.since,
			Answered: t.answered, ErrorTime: t.errTime,
			Points: len(d.points), Reads: t.reads, Refused: slices.Clone(t.refused), Split: t.split,
			Counters: t.counters, Answer: t.times.answer(), Polls: t.polls,
		}
		if t.err != nil {
			s.Devices[i].Error = t.err.Error()
		}
		if t.polls.Begun > 0 {
			s.Devices[i].Polls.LateAvg = t.late / time.Duration(t.polls.Begun)
		}
		s.Counters.add(t.counters)
	}
	return s
}

// Diagnosis says in words what the bus as a whole looks like: "" when its
// devices answer, otherwise what is likely to be wrong, for whoever stands
// before the cabinet.
func (b *Bus) Diagnosis() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tally.down {
		return fmt.Sprintf("no wire: %v", b.tally.err)
	}
	asked, silent, damaged := 0, 0, 0
	var last *device
	for _, d := range b.devices {
		t := &d.tally
		if t.counters.Requests == 0 {
			continue
		}
		asked++
		switch {
		case t.damaged > 2:
			damaged++
			last = d
		case t.silent > 2:
			silent++
			last = d
		}
	}
	serial := b.cfg.Framing != modbus.FramingTCP
	switch {
	case silent+damaged == 0:
		return ""
	case damaged == asked && serial:
		return "all answers are damaged: look at parity, baud rate and wiring, and for a second client on the line"
	case silent == asked && serial:
		return "no device answers: look at power, wiring (A and B swapped?), baud rate and unit ids"
	case silent == asked:
		return "the connection is open but no unit answers: look at the unit ids, and for a limit on clients"
	case silent+damaged == asked:
		return "every device is silent or damaged: look at wiring, baud rate and termination"
	case damaged > 0 && silent == 0 && damaged == 1:
		return fmt.Sprintf("unit %d alone answers damaged frames: look at its parity and wiring, and for a second device with its id", last.cfg.Unit)
	case silent == 1 && damaged == 0:
		return fmt.Sprintf("unit %d alone does not answer: look at its power, id and cable", last.cfg.Unit)
	}
	return fmt.Sprintf("%d of %d devices do not answer, %d answer damaged frames: look at the cable between them and the others", silent, asked, damaged)
}

// noteOp counts a request that was made.
func (b *Bus) noteOp(o *op) {
	b.mu.Lock()
	defer b.mu.Unlock()
	took := o.ended.Sub(o.began)
	b.tally.busy += took
	t := &o.d.tally
	t.counters.Requests++
	if isAnswer(o.err) && !o.d.broadcast {
		t.silent, t.damaged = 0, 0
		t.answered = o.ended
		t.times.add(took)
	}
	if o.err == nil {
		t.counters.Responses++
		return
	}
	t.counters.Errors++
	t.err, t.errTime = o.err, o.ended
	var e modbus.Exception
	switch {
	case errors.As(o.err, &e):
		t.counters.Exceptions++
		if !isAnswer(o.err) {
			t.silent++
		}
	case errors.Is(o.err, modbus.ErrBadResponse):
		t.counters.Damaged++
		t.damaged++
		t.silent = 0
	default:
		t.counters.Silent++
		t.silent++
		t.damaged = 0
	}
}

// noteWire takes note of the wire's state.
func (b *Bus) noteWire(down bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tally.down, b.tally.err = down, err
}

func (b *Bus) noteWrite(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tally.writes++
	if errors.Is(err, modbus.ErrNoResponse) {
		b.tally.unknown++
	}
}

func (b *Bus) notePoll(d *device, late time.Duration, missed int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := &d.tally.polls
	p.Begun++
	p.Missed += uint64(missed)
	p.LateMax = max(p.LateMax, late)
	d.tally.late += late
}

func (b *Bus) noteEnd(p *poll) {
	if p.failed {
		b.mu.Lock()
		defer b.mu.Unlock()
		p.d.tally.polls.Failed++
	}
}

// notePlan takes note of a device's plan.
func (b *Bus) notePlan(d *device) {
	var refused []point.ID
	for i := range d.points {
		if d.known.refuses(i) {
			refused = append(refused, d.points[i].ID)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	d.tally.reads, d.tally.refused = len(d.plan.reads), refused
	d.tally.split = !d.known.empty()
}

// histogram counts durations in buckets of a quarter of an octave each, from
// 1 µs to about 70 minutes.
type histogram struct {
	n       uint64
	sum     time.Duration
	min     time.Duration
	buckets [4 * 32]uint32
}

func (h *histogram) add(d time.Duration) {
	if h.n == 0 || d < h.min {
		h.min = d
	}
	h.n++
	h.sum += d
	i := bucketOf(d)
	if h.buckets[i]++; h.buckets[i] == 0 {
		h.buckets[i]-- // full: the shape stays
	}
}

func bucketOf(d time.Duration) int {
	us := uint64(max(d/time.Microsecond, 1))
	octave := bits.Len64(us) - 1
	quarter := us << 2 >> octave & 3
	return min(4*octave+int(quarter), len(histogram{}.buckets)-1)
}

// above is the first duration past bucket i.
func above(i int) time.Duration {
	return time.Duration((4+i%4+1)<<(i/4)) * time.Microsecond / 4
}

func (h *histogram) answer() Answer {
	if h.n == 0 {
		return Answer{}
	}
	a := Answer{Min: h.min, Avg: h.sum / time.Duration(h.n)}
	var all, upto uint64
	for _, n := range h.buckets {
		all += uint64(n)
	}
	for i, n := range h.buckets {
		if upto += uint64(n); upto*100 >= all*99 {
			a.P99 = above(i)
			break
		}
	}
	return a
}
