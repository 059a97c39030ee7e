package bus

import (
	"cmp"
	"slices"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Limits says what one read may hold and what it costs, for one device on one
// wire. LimitsFor makes them; the zero value allows the longest reads, no
// holes, and finds every plan equally cheap but for the number of requests.
type Limits struct {
	Request time.Duration // one read without its data: both frames, silences, the device's turn-around
	Byte    time.Duration // one byte of data in the answer
	MaxRegs int           // longest read of registers; 0: modbus.MaxReadRegisters
	MaxBits int           // longest read of bits; 0: modbus.MaxReadBits

	// Holes is the longest run of addresses that no point covers and that a
	// read may yet span. config.HolesAuto: as long as reading them costs less
	// than another request.
	Holes int
}

// What a wire is taken to cost where the configuration does not say it.
const (
	// turnaround is a serial device's usual time between request and answer.
	turnaround = 5 * time.Millisecond
	// lanRequest and lanByte are a request to a controller on a local network
	// and a byte of its answer: holes cost nearly nothing there.
	lanRequest = time.Millisecond
	lanByte    = time.Microsecond
	// tunnelDelay is added to a serial framing carried over a network, where
	// the wire behind is taken to have the default mode, 19200 baud, 8E1.
	tunnelDelay = 20 * time.Millisecond
	tunnelBaud  = 19200
)

// LimitsFor returns the limits of device d on bus b.
func LimitsFor(b config.Bus, d config.Device) Limits {
	w := wireOf(b, d)
	return Limits{
		Request: w.request + w.delay, Byte: w.dataByte,
		MaxRegs: d.MaxRegs, MaxBits: d.MaxBits, Holes: d.Holes,
	}
}

// wire is the time that characters take, which no device can shorten.
type wire struct {
	request  time.Duration // both frames of a read without its data, and the silences
	dataByte time.Duration // one byte of data
	delay    time.Duration // what is guessed for the device and the way to it
}

func wireOf(b config.Bus, d config.Device) wire {
	if b.Framing == modbus.FramingTCP {
		return wire{dataByte: lanByte, delay: lanRequest}
	}
	baud, char, delay := tunnelBaud, 11*time.Second/tunnelBaud, tunnelDelay
	if b.Kind == config.Serial && b.Mode.Baud > 0 {
		baud, char, delay = b.Mode.Baud, b.Mode.CharTime(), turnaround
	}
	gap := modbus.ClientSilence(baud)
	if d.Gap >= 0 {
		gap = d.Gap
	} else if b.Gap >= 0 {
		gap = b.Gap
	}
	if b.Framing == modbus.FramingASCII {
		// ':' and CR LF, two characters for each byte, no silences needed
		// (SER 2.5.2): 3 + 2×7 characters there, 3 + 2×4 back.
		return wire{request: 28 * char, dataByte: 2 * char, delay: delay}
	}
	return wire{request: 13*char + 2*gap, dataByte: char, delay: delay}
}

func (l Limits) max(t modbus.Table) int {
	n := l.MaxRegs
	if t.Bits() {
		n = l.MaxBits
	}
	if n <= 0 || n > t.MaxRead() {
		return t.MaxRead()
	}
	return n
}

// Cost returns the time r takes on the wire, the device's turn-around included.
func (l Limits) Cost(r Read) time.Duration { return l.cost(r.Table, int(r.Count)) }

func (l Limits) cost(t modbus.Table, n int) time.Duration {
	return l.Request + time.Duration(dataBytes(t, n))*l.Byte
}

func dataBytes(t modbus.Table, n int) int {
	if t.Bits() {
		return (n + 7) / 8
	}
	return 2 * n
}

// Read is one read request of a plan and what it is made for.
type Read struct {
	Table   modbus.Table
	Address uint16
	Count   uint16         // registers or bits
	Every   point.Interval // never point.Never

	// Points are indexes into the slice that was planned, by address. A
	// slower point may ride along in a read that covers it anyway; it is then
	// in no other read.
	Points []int
}

// end is the address after the last one read.
func (r Read) end() int { return int(r.Address) + int(r.Count) }

// Request returns the read as a PDU.
func (r Read) Request() modbus.PDU { return modbus.ReadRequest(r.Table, r.Address, r.Count) }

// PlanReads returns the reads that fetch points at the least cost in time on
// the wire, and of equal plans the one with the fewest requests. It is pure,
// and the same for the same points.
//
// Points of one table and interval share reads; each lies whole in one read. A
// point may have more registers than limits allow: it gets a read of its own,
// up to the specification's limit. The points of a group are in one read, at
// the interval of the fastest of them; where table, limits or holes forbid
// that, they are read like points without a group. A slower point is moved
// into a faster read where that saves time. Points whose interval is
// point.Never are in no read, but their addresses are known to exist and are
// not counted as holes.
func PlanReads(points []point.Point, limits Limits) []Read {
	return planReads(points, limits, nil)
}

// refusals is what a device has been found to refuse. The zero value and nil
// hold nothing.
type refusals struct {
	// cuts are addresses that divide a table: a read has only points that
	// begin below a cut or only points that begin at it or above. Sorted.
	cuts    [modbus.HoldingRegisters + 1][]int
	refused map[int]error   // points no longer asked for, and why
	loose   map[string]bool // groups that the device does not answer in one read
}

func (f *refusals) refuses(i int) bool { return f != nil && f.refused[i] != nil }

// empty reports whether nothing was refused.
func (f *refusals) empty() bool {
	for _, c := range f.cuts {
		if len(c) > 0 {
			return false
		}
	}
	return len(f.refused) == 0 && len(f.loose) == 0
}

// side returns on which side of how many cuts addr lies.
func (f *refusals) side(t modbus.Table, addr int) int {
	if f == nil {
		return 0
	}
	n, found := slices.BinarySearch(f.cuts[t], addr)
	if found {
		n++
	}
	return n
}

func (f *refusals) cut(t modbus.Table, addr int) {
	if n, found := slices.BinarySearch(f.cuts[t], addr); !found {
		f.cuts[t] = slices.Insert(f.cuts[t], n, addr)
	}
}

func (f *refusals) refuse(i int, err error) {
	if f.refused == nil {
		f.refused = make(map[int]error)
	}
	f.refused[i] = err
}

func (f *refusals) loosen(group string) {
	if f.loose == nil {
		f.loose = make(map[string]bool)
	}
	f.loose[group] = true
}

// item is what a plan keeps in one read: a point, points that cover exactly the
// same addresses, or a group.
type item struct {
	start, end int // addresses; end is past the last
	points     []int
}

// planReads is PlanReads for a device that has refused something.
func planReads(points []point.Point, limits Limits, known *refusals) []Read {
	every := intervals(points)
	var reads []Read
	for t := modbus.Coils; t <= modbus.HoldingRegisters; t++ {
		p := planner{points: points, limits: limits, known: known, table: t, max: limits.max(t)}
		p.cover()
		reads = append(reads, p.plan(every)...)
	}
	return reads
}

// intervals returns how often each point is read: its own interval, or that of
// the fastest of its group.
func intervals(points []point.Point) []point.Interval {
	every := make([]point.Interval, len(points))
	fastest := make(map[string]point.Interval)
	for i := range points {
		every[i] = points[i].Every
		if g := points[i].Group; g != "" && every[i] != point.Never {
			if f, ok := fastest[g]; !ok || compareInterval(every[i], f) < 0 {
				fastest[g] = every[i]
			}
		}
	}
	for i := range points {
		if g := points[i].Group; g != "" && every[i] != point.Never {
			every[i] = fastest[g]
		}
	}
	return every
}

// compareInterval orders intervals from the fastest to once.
func compareInterval(a, b point.Interval) int {
	if (a == point.Once) != (b == point.Once) {
		return cmp.Compare(b, a) // once is negative, but the slowest
	}
	return cmp.Compare(a, b)
}

// planner plans one table.
type planner struct {
	points  []point.Point
	limits  Limits
	known   *refusals
	table   modbus.Table
	max     int
	covered []item // the addresses that points cover, merged, by address
}

// planned is a read in the making.
type planned struct {
	start, end int
	last       int // where the last of its items begins
	every      point.Interval
	points     []int
}

func (p *planner) cover() {
	for i := range p.points {
		pt := &p.points[i]
		if pt.Table != p.table || p.known.refuses(i) {
			continue
		}
		start, end := int(pt.Address), int(pt.Address)+pt.Words()
		if n := len(p.covered); n > 0 && p.covered[n-1].start <= start && start <= p.covered[n-1].end {
			p.covered[n-1].end = max(p.covered[n-1].end, end) // mostly they stand in order
		} else {
			p.covered = append(p.covered, item{start: start, end: end})
		}
	}
	slices.SortStableFunc(p.covered, compareItems)
	merged := p.covered[:0]
	for _, it := range p.covered {
		if n := len(merged); n > 0 && it.start <= merged[n-1].end {
			merged[n-1].end = max(merged[n-1].end, it.end)
		} else {
			merged = append(merged, it)
		}
	}
	p.covered = merged
}

// hole returns the longest run of addresses from from to before to that no
// point covers.
func (p *planner) hole(from, to int) int {
	longest := 0
	i, _ := slices.BinarySearchFunc(p.covered, from, func(it item, addr int) int { return cmp.Compare(it.end, addr) })
	for ; i < len(p.covered) && p.covered[i].start < to; i++ {
		longest = max(longest, p.covered[i].start-from)
		from = p.covered[i].end
	}
	return max(longest, to-from)
}

func (p *planner) mayspan(hole int) bool { return p.limits.Holes < 0 || hole <= p.limits.Holes }

// plan plans one interval after the other, the fastest first, so that the
// slower ones can ride along.
func (p *planner) plan(every []point.Interval) []Read {
	byInterval := make(map[point.Interval][]int)
	var order []point.Interval
	for i := range p.points {
		if p.points[i].Table != p.table || every[i] == point.Never || p.known.refuses(i) {
			continue
		}
		if byInterval[every[i]] == nil {
			order = append(order, every[i])
		}
		byInterval[every[i]] = append(byInterval[every[i]], i)
	}
	slices.SortFunc(order, compareInterval)

	var all []planned
	for _, e := range order {
		items := p.items(byInterval[e])
		if e != point.Once { // read but once, it is not worth a thought
			items = ride(all, items)
		}
		for _, r := range p.cheapest(items) {
			r.every = e
			if host := p.host(all, r); host >= 0 {
				all[host].take(r)
			} else {
				all = append(all, r)
			}
		}
	}

	reads := make([]Read, len(all))
	for i, r := range all {
		slices.SortFunc(r.points, func(a, b int) int {
			return cmp.Or(cmp.Compare(p.points[a].Address, p.points[b].Address), cmp.Compare(a, b))
		})
		reads[i] = Read{Table: p.table, Address: uint16(r.start), Count: uint16(r.end - r.start), Every: r.every, Points: r.points}
	}
	slices.SortStableFunc(reads, func(a, b Read) int {
		return cmp.Or(compareInterval(a.Every, b.Every), cmp.Compare(a.Address, b.Address))
	})
	return reads
}

// items returns what must stay together of the points in which.
func (p *planner) items(which []int) []item {
	items := make([]item, 0, len(which))
	groups := make(map[string]*item)
	var names []string
	for n, i := range which {
		start := int(p.points[i].Address)
		it := item{start: start, end: start + p.points[i].Words(), points: which[n : n+1 : n+1]}
		g := p.points[i].Group
		if g == "" || p.known != nil && p.known.loose[g] {
			items = append(items, it)
			continue
		}
		if whole := groups[g]; whole != nil {
			whole.start, whole.end = min(whole.start, it.start), max(whole.end, it.end)
			whole.points = append(whole.points, i)
		} else {
			groups[g] = &it
			names = append(names, g)
		}
	}
	for _, g := range names {
		whole := groups[g]
		if len(whole.points) == 1 || whole.end-whole.start <= p.max && p.mayspan(p.hole(whole.start, whole.end)) {
			items = append(items, *whole)
			continue
		}
		for _, i := range whole.points {
			start := int(p.points[i].Address)
			items = append(items, item{start: start, end: start + p.points[i].Words(), points: []int{i}})
		}
	}
	return mergeEqual(items)
}

func compareItems(a, b item) int {
	return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.end, b.end))
}

// mergeEqual sorts items and makes one of those that cover the same addresses.
func mergeEqual(items []item) []item {
	slices.SortStableFunc(items, compareItems)
	merged := items[:0]
	for _, it := range items {
		if n := len(merged); n > 0 && compareItems(merged[n-1], it) == 0 {
			merged[n-1].points = append(merged[n-1].points, it.points...)
		} else {
			merged = append(merged, it)
		}
	}
	return merged
}

// ride puts the items that lie in a read already planned into that read and
// returns the others.
func ride(reads []planned, items []item) []item {
	rest := items[:0]
next:
	for _, it := range items {
		for i := range reads {
			if r := &reads[i]; r.start <= it.start && it.end <= r.end {
				r.points = append(r.points, it.points...)
				continue next
			}
		}
		rest = append(rest, it)
	}
	return rest
}

// cheapest divides items, sorted, into reads of the least cost.
//
// It is enough to look at runs of neighbours in the order of their first
// address. Take two reads of any plan, the second beginning later: what the
// first holds from there on either ends within the second, and can be moved
// there without making it longer; or the first contains the whole second, and
// can take it in. Either costs nothing, and the runs that holes, cuts and the
// longest read allow stay allowed when they get shorter.
func (p *planner) cheapest(items []item) []planned {
	reads, items := p.oversized(items)
	n := len(items)
	if n == 0 {
		return reads
	}
	gap := make([]int, n)  // the longest hole before an item
	side := make([]int, n) // of the cuts
	first, end, unasked := items[0].start, items[0].start, 0
	whole := true // one read may have all of them
	for i := range items {
		if items[i].start > end {
			gap[i] = p.hole(end, items[i].start)
			unasked += items[i].start - end
		}
		end = max(end, items[i].end)
		side[i] = p.known.side(p.table, items[i].start)
		whole = whole && side[i] == side[0] && p.mayspan(gap[i])
	}
	// Two reads or more take a request more and save the holes at most. Mostly
	// that decides it, and there is nothing to weigh.
	if span := end - first; whole && span <= p.max && p.limits.cost(p.table, span) <= p.limits.Request+p.limits.cost(p.table, span-unasked) {
		return append(reads, joined(items))
	}
	type way struct {
		cost  time.Duration
		reads int
		next  int // the first item of the next read
	}
	best := make([]way, n+1) // for the items from an index on
	for i := n - 1; i >= 0; i-- {
		best[i] = way{cost: -1}
		for j, end := i, items[i].end; j < n; j++ {
			end = max(end, items[j].end)
			if j > i && (end-items[i].start > p.max || side[j] != side[i] || !p.mayspan(gap[j])) {
				break
			}
			w := way{p.limits.cost(p.table, end-items[i].start) + best[j+1].cost, 1 + best[j+1].reads, j + 1}
			if b := best[i]; b.cost < 0 || w.cost < b.cost || w.cost == b.cost && w.reads < b.reads {
				best[i] = w
			}
		}
	}
	for i := 0; i < n; i = best[i].next {
		reads = append(reads, joined(items[i:best[i].next]))
	}
	return reads
}

// joined makes one read of items, sorted.
func joined(items []item) planned {
	r := planned{start: items[0].start, last: items[len(items)-1].start, points: make([]int, 0, len(items))}
	for _, it := range items {
		r.end = max(r.end, it.end)
		r.points = append(r.points, it.points...)
	}
	return r
}

// oversized gives each item that is longer than the longest read a read of its
// own, in which the items within it ride along, and returns the others.
func (p *planner) oversized(items []item) (reads []planned, rest []item) {
	fits := func(it item) bool { return it.end-it.start <= p.max }
	if !slices.ContainsFunc(items, func(it item) bool { return !fits(it) }) {
		return nil, items
	}
	rest = slices.Clone(items)
	slices.SortStableFunc(rest, func(a, b item) int { return cmp.Compare(b.end-b.start, a.end-a.start) })
	for len(rest) > 0 && !fits(rest[0]) {
		it := rest[0]
		rest = rest[1:]
		if it.end-it.start > p.table.MaxRead() {
			continue // no request can ask for it
		}
		reads = append(reads, planned{start: it.start, end: it.end, last: it.start, points: it.points})
		rest = ride(reads, rest)
	}
	slices.SortStableFunc(rest, compareItems)
	return reads, rest
}

// host returns the faster read that r should be made part of, because the
// longer answers cost less than r's own request, or -1. Each is weighed by how
// often it is read.
func (p *planner) host(reads []planned, r planned) int {
	best, saved := -1, 0.0
	if r.every <= 0 {
		return best // there is no saying how often it is read
	}
	own := float64(p.limits.cost(p.table, r.end-r.start)) / float64(r.every)
	for i, f := range reads {
		start, end := min(f.start, r.start), max(f.end, r.end)
		if f.every <= 0 || end-start > p.max ||
			p.known.side(p.table, start) != p.known.side(p.table, max(f.last, r.last)) ||
			!p.mayspan(p.hole(start, end)) {
			continue
		}
		more := p.limits.cost(p.table, end-start) - p.limits.cost(p.table, f.end-f.start)
		if s := own - float64(more)/float64(f.every); s > saved {
			best, saved = i, s
		}
	}
	return best
}

func (r *planned) take(o planned) {
	r.start, r.end, r.last = min(r.start, o.start), max(r.end, o.end), max(r.last, o.last)
	r.points = append(r.points, o.points...)
}

// torn reports for each point whether it belongs to a group that reads fetch in
// more than one request, so that its values may not belong together.
func torn(points []point.Point, reads []Read) []bool {
	in := make(map[string]int) // the read that has a group's points
	apart := make(map[string]bool)
	for n, r := range reads {
		for _, i := range r.Points {
			if g := points[i].Group; g != "" {
				if first, ok := in[g]; ok && first != n {
					apart[g] = true
				}
				in[g] = n
			}
		}
	}
	t := make([]bool, len(points))
	for i := range points {
		t[i] = apart[points[i].Group]
	}
	return t
}
