package bus

import (
	"bytes"
	"cmp"
	"math/bits"
	"slices"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// State is what is known of a device's reachability.
type State uint8

// The states. A device is Unknown until the first poll has succeeded or failed.
const (
	Unknown State = iota
	Online        // it answers
	Suspect       // the last poll and the probe after it got no answer
	Offline       // it has not answered for a while, or its wire is not there
)

// String returns the word of the state topics: online, suspect, offline; or
// unknown, which is not published.
func (s State) String() string {
	switch s {
	case Online:
		return "online"
	case Suspect:
		return "suspect"
	case Offline:
		return "offline"
	}
	return "unknown"
}

// The pace of probes and of forgetting (see the package comment).
const (
	suspectProbes = 3 // without answer make a device offline
	probeShare    = 4 // the pause after a probe without answer, in times of what it took
	suspectWait   = 500 * time.Millisecond
	absenceShare  = 16

	// lateWait is how many timeouts after a request that got no answer the line
	// lets pass before one like it, where nothing else tells their answers apart.
	lateWait = 2

	defaultBackoffMin = 5 * time.Second
	defaultBackoffMax = 5 * time.Minute

	forgetFirst = time.Minute
	forgetLast  = 24 * time.Hour
)

// The time limit of a probe: probeFactor times the longest usual answer time,
// and what a busy computer and a USB adapter add at times.
const (
	probeFactor      = 3
	probeMargin      = 15 * time.Millisecond
	probeFloorSerial = 25 * time.Millisecond
	probeFloorNet    = 100 * time.Millisecond
)

// unhurried is the time in which what has no interval should be done: polls as
// fast as possible, probes. Since it is the same for all of them, they take turns.
const unhurried = time.Second

// slotWidth is the distance of the start slots of polls. What a poll costs is
// mostly what it costs to wake up for it, the processor's caches included: with
// 100 devices at one second it is a sixth less than with 250 ms, and a wave of 50
// polls ends within 3 ms.
const slotWidth = 500 * time.Millisecond

// device is one unit of a bus. It belongs to Run's goroutine, but for tally.
type device struct {
	cfg       config.Device
	slot      int // spreads the devices over the start slots
	broadcast bool
	limits    Limits
	wire      wire
	serial    bool          // framed without transaction ids
	lateLimit time.Duration // the longest timeout the line reckons with
	floor     time.Duration // of a probe's time limit
	points    []point.Point
	unix      int64 // wall clock at the beginning of the bus's, nanoseconds

	plan    *plan
	version int     // of plan
	polls   []*poll // under way
	spare   *poll   // for the next
	hold    instant // it is busy until then, by its own account

	pausedTill instant // no polls and probes until then; 0: none

	// Learning.
	known     refusals
	forgetAt  instant // 0: nothing to forget
	forgets   time.Duration
	hasSilent bool            // some of it was learned from silence
	proved    map[shape]bool  // what was ever answered
	told      map[string]bool // what the log has said of refusals

	had     []bool // by point: of those to be read once, the ones that were
	emitted []span // by point: the exchange that the newest sample emitted is of

	// Reachability.
	state   State
	probing bool // polling has stopped
	probed  bool // a probe is under way
	probes  int  // without answer
	probeAt instant
	lostAt  instant
	lost    uint64        // tick of the loss
	blame   *read         // the read that got no answer
	usual   time.Duration // decaying maximum of the answer time, the wire's share taken off
	seen    bool          // usual is known
	cutOff  bool          // it is offline because the wire is
	allBad  bool          // Bad samples of all points were emitted, and nothing since

	// The fence (see write.go).
	writing []int32         // by point: writes not ended; nil before the first write
	fence   []uint64        // by point: tick of the last write's end; likewise
	writes  int             // sum of writing
	fenced  uint64          // the newest of fence
	writer  *write          // the write under way, from its first request to its end
	written map[int]instant // points, until when reading one is reading it back
	noMask  bool            // it does not know function 22

	tally deviceTally // guarded by Bus.mu
}

func newDevice(b config.Bus, c config.Device, slot int, unix int64) *device {
	d := &device{
		cfg: c, slot: slot, unix: unix,
		broadcast: c.Unit == modbus.Broadcast && b.Framing != modbus.FramingTCP,
		limits:    LimitsFor(b, c),
		wire:      wireOf(b, c),
		floor:     probeFloorNet,
		points:    c.Points,
		proved:    make(map[shape]bool),
		told:      make(map[string]bool),
		had:       make([]bool, len(c.Points)),
		emitted:   make([]span, len(c.Points)),
	}
	if b.Kind == config.Serial {
		d.floor = probeFloorSerial
	}
	if d.cfg.Timeout <= 0 {
		d.cfg.Timeout = cmp.Or(max(b.Timeout, 0), time.Second)
	}
	d.serial = b.Framing != modbus.FramingTCP
	d.lateLimit = max(b.Timeout, d.cfg.Timeout)
	if d.cfg.BackoffMin <= 0 {
		d.cfg.BackoffMin = defaultBackoffMin
	}
	d.cfg.BackoffMax = max(cmp.Or(d.cfg.BackoffMax, defaultBackoffMax), d.cfg.BackoffMin)
	d.replan(0)
	return d
}

// plan is what is read of a device, and how often. It is replaced, not changed,
// but for what its reads and classes remember; polls under way keep theirs.
type plan struct {
	reads   []*read
	classes []*class
	probe   *read // the smallest thing to ask for; nil: there is nothing
	fastest bool  // some of it is read back to back
}

// class is the points that are due together.
type class struct {
	every   point.Interval
	host    point.Interval // what it rides along with; every itself if it has reads of its own
	due     instant
	aligned bool // due is on the grid of start slots
}

// read is a request of the plan.
type read struct {
	Read
	req    modbus.PDU
	slots  []slot
	class  int
	silent int  // times in a row that it alone got no answer
	proved bool // it has been answered
}

// How often in a row a read gets no answer, beside others that do, before the
// device is said to be silent to it: one that never got any, and one that did,
// whose answers are more likely lost on the way. The last time it is not
// repeated.
const (
	silentMost = 2
	lostMost   = 5
)

func (r *read) silentMost() int {
	if r.proved {
		return lostMost
	}
	return silentMost
}

// suspect reports whether r is given up if it gets no answer once more.
func (r *read) suspect() bool { return r.silent >= r.silentMost()-1 }

// shape is what is the same in two reads that ask for the same.
type shape struct {
	table          modbus.Table
	address, count uint16
}

func (r Read) shape() shape { return shape{r.Table, r.Address, r.Count} }

// slot is a point's place in the answer to a read.
type slot struct {
	point      int32
	offset, n  uint16 // words
	class      int16
	incoherent bool // part of a torn group
}

// slotOf returns the place of point i in r.
func slotOf(r Read, points []point.Point, i int) slot {
	return slot{point: int32(i), offset: points[i].Address - r.Address, n: uint16(points[i].Words())}
}

// replan makes the plan anew from what is known of the device.
func (d *device) replan(now instant) {
	old := d.plan
	p := new(plan)
	d.plan = p
	d.version++
	if d.broadcast {
		return // nobody answers
	}
	reads := planReads(d.points, d.limits, &d.known)
	apart := torn(d.points, reads)
	wanted := intervals(d.points)
	for _, r := range reads {
		x := p.newRead(r, d.points, wanted, apart)
		x.proved = d.proved[r.shape()]
		p.reads = append(p.reads, x)
		p.fastest = p.fastest || r.Every == point.Fastest
	}
	for i, c := range p.classes {
		c.due = now
		if old == nil {
			continue
		}
		for _, o := range old.classes {
			if o.every == c.every && o.host == c.host {
				p.classes[i] = o // polls under way may still have to move it on
			}
		}
	}
	d.readOnce(now)
	p.probe = d.probeRead(reads)
}

// wantsOnce reports whether there are points to be read once that were not yet.
func (d *device) wantsOnce() bool {
	for _, r := range d.plan.reads {
		if r.Every != point.Once {
			continue
		}
		for _, i := range r.Points {
			if !d.had[i] {
				return true
			}
		}
	}
	return false
}

// readOnce makes due what is to be read once and was not yet.
func (d *device) readOnce(now instant) {
	for _, c := range d.plan.classes {
		if c.every == point.Once && d.wantsOnce() {
			c.due = min(c.due, now)
		}
	}
}

// newRead makes a read of p of r.
func (p *plan) newRead(r Read, points []point.Point, wanted []point.Interval, apart []bool) *read {
	x := &read{Read: r, req: r.Request(), class: p.classOf(r.Every, r.Every), slots: make([]slot, len(r.Points))}
	for n, i := range r.Points {
		s := slotOf(r, points, i)
		s.class, s.incoherent = int16(p.classOf(wanted[i], r.Every)), apart[i]
		x.slots[n] = s
	}
	return x
}

func (p *plan) classOf(every, host point.Interval) int {
	for i, c := range p.classes {
		if c.every == every && c.host == host {
			return i
		}
	}
	p.classes = append(p.classes, &class{every: every, host: host})
	return len(p.classes) - 1
}

// probeRead returns the smallest read of a single point: of those that are
// polled, else of those read on demand, else of those refused. A refusal is an
// answer, too.
func (d *device) probeRead(reads []Read) *read {
	polled := make([]bool, len(d.points))
	for _, r := range reads {
		for _, i := range r.Points {
			polled[i] = true
		}
	}
	best, rank := -1, [2]int{}
	for i := range d.points {
		pt := &d.points[i]
		r := [2]int{2, dataBytes(pt.Table, pt.Words())}
		switch {
		case polled[i]:
			r[0] = 0
		case !d.known.refuses(i):
			r[0] = 1
		}
		if best < 0 || slices.Compare(r[:], rank[:]) < 0 {
			best, rank = i, r
		}
	}
	if best < 0 {
		return nil
	}
	pt := &d.points[best]
	r := Read{Table: pt.Table, Address: pt.Address, Count: uint16(pt.Words()), Points: []int{best}}
	return &read{Read: r, req: r.Request()}
}

// itemsOf returns what of a read must stay together, by address.
func (d *device) itemsOf(r Read) []item {
	p := planner{points: d.points, limits: d.limits, known: &d.known, table: r.Table, max: d.limits.max(r.Table)}
	p.cover()
	return p.items(r.Points)
}

// readOf makes a read of neighbouring items of r.
func (d *device) readOf(r *read, items []item) *read {
	part := Read{Table: r.Table, Address: uint16(items[0].start), Every: r.Every}
	end := 0
	for _, it := range items {
		end = max(end, it.end)
		part.Points = append(part.Points, it.points...)
	}
	part.Count = uint16(end - items[0].start)
	x := &read{Read: part, req: part.Request(), class: r.class}
	for _, s := range r.slots {
		if slices.Contains(part.Points, int(s.point)) {
			s.offset = d.points[s.point].Address - part.Address
			x.slots = append(x.slots, s)
		}
	}
	return x
}

// ready returns when the device has a request to make, never if it waits for
// something else to happen, and by when that should be made: of the requests
// that may be made the one with the earliest deadline goes first. overlap: a poll
// may begin before the last has ended.
func (d *device) ready(overlap bool) (at, by instant) {
	if d.probing {
		if d.probed || d.plan.probe == nil {
			return never, never
		}
		return d.probeAt, d.probeAt + unhurried
	}
	for _, p := range d.polls {
		if p.wants() {
			return d.hold, p.by
		}
	}
	if len(d.polls) > 0 && !(overlap && d.plan.fastest && !d.polls[len(d.polls)-1].learning()) {
		return never, never
	}
	at, by = never, never
	for _, c := range d.plan.classes {
		if c.every == c.host && c.due != never { // the others ride along
			at, by = min(at, c.due), min(by, c.deadline())
		}
	}
	if at == never && d.forgetAt != 0 {
		at, by = d.forgetAt, d.forgetAt+unhurried // it refuses everything
	}
	return max(at, d.hold), by
}

// deadline is when what is due should have been read: when it is due again.
func (c *class) deadline() instant {
	if c.every > 0 {
		return c.due + time.Duration(c.every)
	}
	return c.due + unhurried
}

// resume makes everything due now: after an absence nothing is up to date.
func (d *device) resume(now instant) {
	for _, c := range d.plan.classes {
		if c.due != never || c.every != point.Once {
			c.due, c.aligned = now, false
		}
	}
}

// advance moves c, which is polled now, on to its next time. It returns how late
// the poll is and how many have been left out before it.
func (d *device) advance(c *class, now instant, overlap bool) (late time.Duration, missed int) {
	every := time.Duration(c.every)
	switch {
	case c.every == point.Once:
		c.due = never // unless the poll fails
	case c.every == point.Fastest:
		if c.due = never; overlap { // else when the poll has ended
			c.due = now
		}
	case !c.aligned:
		c.aligned = true
		c.due = d.nextSlot(now+every/2, every)
	default:
		late = now - c.due
		missed = int(late / every)
		c.due += time.Duration(missed+1) * every
	}
	return late, missed
}

// nextSlot returns the first start slot for an interval at or after t.
func (d *device) nextSlot(t instant, every time.Duration) instant {
	shortest := every
	for _, c := range d.plan.classes {
		if c.every > 0 {
			shortest = min(shortest, time.Duration(c.every))
		}
	}
	// All intervals of a device share its slot, so that those that are multiples
	// of each other meet.
	slots := max(int(shortest/slotWidth), 1)
	phase := time.Duration(d.slot%slots) * slotWidth
	past := (time.Duration(d.unix%int64(every)) + (t-phase)%every) % every
	if past < 0 {
		past += every
	}
	if past == 0 {
		return t
	}
	return t + every - past
}

// learn notes how long the device took to answer o. What took longer than its
// time limit had to wait for something else: the wire had to be opened, or the
// line let it wait for a lost answer.
func (d *device) learn(o *op) {
	took := o.ended.Sub(o.began) - d.wire.request
	if n := len(o.resp); n > 2 {
		took -= time.Duration(n-2) * d.wire.dataByte
	}
	if took > o.timeout {
		return
	}
	took = max(took, 0)
	if took >= d.usual {
		d.usual = took
	} else {
		d.usual -= (d.usual - took) / 16
	}
	d.seen = true
}

// patience is the time limit of a short probe.
func (d *device) patience() time.Duration {
	return min(max(probeFactor*d.usual+probeMargin, d.floor), d.cfg.Timeout)
}

// patience is the time limit of the n-th probe of d, counted from 1.
func (b *Bus) patience(d *device, n int) time.Duration {
	short := d.cfg.Timeout
	if d.seen {
		short = d.patience()
	} else {
		// Never seen: it will not be much slower than the slowest beside it.
		slowest := time.Duration(0)
		for _, o := range b.devices {
			if o.seen {
				slowest = max(slowest, o.patience())
			}
		}
		short = cmp.Or(min(slowest, short), short)
	}
	for range bits.TrailingZeros(uint(n)) {
		short = min(2*short, d.cfg.Timeout)
	}
	return short
}

// clearOf returns the time from which on a line without transaction ids sends r
// to the device again when it got no answer to it, sent at an instant. Longer
// reads go at once, behind a still shorter one; but there is nothing shorter than
// a single register, whose late answer could be taken for the new one's (see
// package line). Waiting for the line would hold up the others, so the wait is
// made here.
func (d *device) clearOf(r Read, sent instant) instant {
	if !d.serial || dataBytes(r.Table, int(r.Count)) > 2 || r.Table.Bits() && r.Count > 8 {
		return sent
	}
	return sent + lateWait*d.lateLimit
}

// nextOf returns the request that d is ready for; nil: none after all.
func (b *Bus) nextOf(d *device, now instant) *op {
	if d.probing {
		d.probed = true
		o := b.newOp(d, d.plan.probe.req)
		o.probe = true
		o.timeout = b.patience(d, d.probes+1)
		return o
	}
	for _, p := range d.polls {
		if p.wants() {
			return b.pollOp(p, now)
		}
	}
	p := b.beginPoll(d, now)
	if p.wants() {
		return b.pollOp(p, now)
	}
	b.endPolls(d, now)
	return nil
}

// answered notes that d has answered something.
func (b *Bus) answered(d *device, now instant) {
	if d.state == Online && !d.probing {
		return
	}
	if d.probing {
		d.probing = false
		if d.state == Offline {
			// It may have been changed for another one.
			d.forgets = 0
			if d.forgetAt != 0 {
				d.forgetAt = min(d.forgetAt, now+forgetFirst)
			}
		}
		d.resume(now)
	}
	b.setState(d, Online, now, nil)
}

// lose notes that a poll of d got no answer to a request sent at tick: polling
// stops, probes begin. blame is the read that got none.
func (b *Bus) lose(d *device, sent uint64, blame *read, now instant, err error) {
	if d.probing || sent <= d.lost {
		return // old news: a request that was under way with the first
	}
	d.probing = true
	d.probes = 0
	d.probeAt = now
	if blame != nil && bytes.Equal(blame.req, d.plan.probe.req) {
		d.probeAt = max(now, d.clearOf(blame.Read, now-d.cfg.Timeout))
	}
	if d.state == Unknown {
		d.probeAt = max(d.probeAt, now+suspectWait) // those that may be there go first
	}
	d.lostAt = now
	d.lost = b.tick
	d.blame = blame
	for _, p := range d.polls {
		p.fail(err)
	}
}

// finishProbe takes the outcome of a probe.
func (b *Bus) finishProbe(o *op, now instant, stopping bool) {
	d := o.d
	d.probed = false
	if stopping {
		return
	}
	if !d.probing { // it has answered; perhaps to something else
		switch blame := d.blame; {
		case blame == nil || !slices.Contains(d.plan.reads, blame):
		case bytes.Equal(blame.req, o.req):
			blame.silent = 0 // this is its answer; the others were lost
		default:
			if blame.silent++; blame.silent >= blame.silentMost() {
				b.splitSilent(d, blame, now)
			}
		}
		d.blame = nil
		return
	}
	if b.link.down {
		d.probeAt = now
		return
	}
	d.probes++
	soonest := max(now+suspectWait, d.clearOf(d.plan.probe.Read, o.began.Sub(b.start)))
	d.probeAt = soonest
	if slices.ContainsFunc(b.devices, func(o *device) bool { return !o.probing && len(o.plan.reads) > 0 }) {
		b.probesFrom = now + probeShare*o.ended.Sub(o.began)
	}
	switch {
	case d.probes >= suspectProbes && d.state != Offline:
		b.setState(d, Offline, now, o.err)
		b.emitAllBad(d)
	case d.probes == 1 && d.state != Offline:
		b.setState(d, Suspect, now, o.err)
	}
	if d.probes >= suspectProbes {
		d.probeAt = max(soonest, now+min(max((now-d.lostAt)/absenceShare, d.cfg.BackoffMin), d.cfg.BackoffMax))
	}
}

// setState changes what d is known as, and says so once.
func (b *Bus) setState(d *device, s State, now instant, err error) {
	if d.state == s {
		return
	}
	was := d.state
	d.state = s
	b.mu.Lock()
	d.tally.state, d.tally.since = s, b.start.Add(now)
	b.mu.Unlock()
	log := b.log.With("device", d.cfg.Name, "unit", d.cfg.Unit)
	switch {
	case b.link.down || s == Online && d.cutOff: // one line is enough for all of them
	case s == Online && was == Unknown:
		log.Info("device online")
	case s == Online && was == Offline:
		log.Info("device back", "after", (now - d.lostAt).Round(time.Millisecond))
	case s == Online:
		log.Debug("device answers again", "after", (now - d.lostAt).Round(time.Millisecond))
	case s == Suspect: // in a second it is back, or offline
		log.Debug("device does not answer", "err", err)
	case s == Offline:
		log.Warn("device offline", "after", (now - d.lostAt).Round(time.Millisecond), "err", err)
	}
	d.cutOff = b.link.down
	if s == Online {
		d.allBad = false
	}
	if b.OnState != nil {
		b.OnState(d.cfg.Name, s)
	}
}

// emitAllBad says of every point of d that it has no value now. What is read
// once is read again when d is back: it may be another device then.
func (b *Bus) emitAllBad(d *device) {
	d.allBad = true
	clear(d.had)
	d.readOnce(b.now())
	if len(d.points) == 0 || d.broadcast {
		return
	}
	now := time.Now()
	s := b.Scratch.take(len(d.points))
	for i := range d.points {
		s.batch = append(s.batch, point.Sample{ID: d.points[i].ID, Quality: point.Bad, Time: now})
	}
	b.emitBatch(s)
}

// forget drops what was learned of d's refusals, to try again.
func (b *Bus) forget(d *device, now instant) {
	d.known = refusals{}
	d.forgetAt = 0
	d.replan(now)
	b.notePlan(d)
	if d.hasSilent {
		// The reads that got no answer are tried with the shorter time limit.
		for _, r := range d.plan.reads {
			if !r.proved {
				r.silent = silentMost - 1
			}
		}
	}
	d.hasSilent = false
}

// learned makes a new plan of what was just learned, and sets the time to
// doubt it.
func (b *Bus) learned(d *device, now instant) {
	if d.forgetAt == 0 {
		d.forgets = min(max(2*d.forgets, forgetFirst), forgetLast)
		d.forgetAt = now + d.forgets
	}
	was := d.plan.reads
	d.replan(now)
	for _, r := range d.plan.reads { // a part of what was silent is under suspicion, too
		for _, o := range was {
			if !r.proved && o.silent > 0 && o.Table == r.Table && o.Address <= r.Address && r.end() <= o.end() {
				r.silent = silentMost - 1
			}
		}
	}
	b.notePlan(d)
}

// splitSilent halves a read to which alone d gives no answer; a single point is
// given up.
func (b *Bus) splitSilent(d *device, r *read, now instant) {
	d.hasSilent = true
	items := d.itemsOf(r.Read)
	if at := middle(items); at > 0 {
		d.known.cut(r.Table, items[at].start)
		b.tellRefusal(d, r.Read, "device is silent to a read, splitting it", modbus.ErrNoResponse)
	} else {
		last := items[len(items)-1] // the longest, if there are several
		b.refuseItem(d, last, modbus.ErrNoResponse)
	}
	b.learned(d, now)
}

// middle returns the index of the item before which a read is best divided: at
// the hole nearest to the middle, else nearest to the middle; 0 if nowhere.
func middle(items []item) int {
	best, rank := 0, [2]int{}
	center := (items[0].start + items[len(items)-1].end) / 2
	end := items[0].end
	for i := 1; i < len(items); i++ {
		if items[i].start > items[i-1].start {
			r := [2]int{1, max(items[i].start-center, center-items[i].start)}
			if items[i].start > end {
				r[0] = 0
			}
			if best == 0 || slices.Compare(r[:], rank[:]) < 0 {
				best, rank = i, r
			}
		}
		end = max(end, items[i].end)
	}
	return best
}

// refuseItem notes that d does not answer for an item even alone. It reports
// whether the item is a group, whose points are asked for one by one from now on.
func (b *Bus) refuseItem(d *device, it item, err error) (torn bool) {
	if g := d.points[it.points[0]].Group; g != "" && len(it.points) > 1 && !d.known.loose[g] {
		d.known.loosen(g) // perhaps one by one
		b.tellRefusal(d, d.span(it), "device does not answer a group in one read, its values may not belong together", err)
		return true
	}
	for _, i := range it.points {
		d.known.refuse(i, err)
	}
	b.tellRefusal(d, d.span(it), "device refuses a point, no longer asking for it", err)
	return false
}

func (d *device) span(it item) Read {
	return Read{Table: d.points[it.points[0]].Table, Address: uint16(it.start), Count: uint16(it.end - it.start), Points: it.points}
}

// tellFailure logs that d answers a read with an exception that says nothing
// about the read: it has failed, or is busy all the time. Once for each
// exception, for it may be so at each poll.
func (b *Bus) tellFailure(d *device, r Read, err error) {
	key := err.Error()
	if d.told[key] {
		return
	}
	d.told[key] = true
	b.log.Warn("device answers, but not with values", "device", d.cfg.Name, "unit", d.cfg.Unit, "point", d.points[r.Points[0]].ID, "err", err)
}

// tellRefusal logs a refusal, once for each read: it is learned anew time and
// again.
func (b *Bus) tellRefusal(d *device, r Read, msg string, err error) {
	key := msg + string(r.Request())
	if d.told[key] {
		return
	}
	d.told[key] = true
	b.log.Warn(msg, "device", d.cfg.Name, "unit", d.cfg.Unit, "point", d.points[r.Points[0]].ID,
		"table", r.Table, "address", r.Address, "count", r.Count, "err", err)
}
