package bus

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// holding returns a point of a holding register; what it is called and how
// often it is read are not at issue.
func holding(addr uint16, typ point.Type) point.Point {
	return point.Point{
		ID: point.ID(fmt.Sprintf("dev.h%d", addr)), Table: modbus.HoldingRegisters,
		Address: addr, Type: typ, Every: point.Interval(time.Second),
	}
}

func coil(addr uint16) point.Point {
	return point.Point{
		ID: point.ID(fmt.Sprintf("dev.c%d", addr)), Table: modbus.Coils,
		Address: addr, Type: point.Bool, Every: point.Interval(time.Second),
	}
}

func grouped(p point.Point, group string) point.Point {
	p.Group = group
	return p
}

func every(p point.Point, e point.Interval) point.Point {
	p.Every = e
	return p
}

// brief is a plan in few words: "holding 0+10 1s".
func brief(reads []Read) []string {
	var s []string
	for _, r := range reads {
		e := time.Duration(r.Every).String()
		switch r.Every {
		case point.Once:
			e = "once"
		case point.Fastest:
			e = "fastest"
		}
		s = append(s, fmt.Sprintf("%s %d+%d %s", r.Table, r.Address, r.Count, e))
	}
	return s
}

func TestPlanReads(t *testing.T) {
	at9600 := LimitsFor(config.Bus{
		Kind: config.Serial, Framing: modbus.FramingRTU, Gap: config.GapAuto,
		Mode: config.SerialMode{Baud: 9600, DataBits: 8, Parity: 'N', StopBits: 1},
	}, config.Device{Holes: config.HolesAuto, Gap: config.GapAuto})
	lan := LimitsFor(config.Bus{Kind: config.TCP}, config.Device{Holes: config.HolesAuto, Gap: config.GapAuto})
	noHoles := lan
	noHoles.Holes = 0
	short := lan
	short.MaxRegs = 20

	var twenty, hundred []point.Point
	for i := range uint16(20) {
		twenty = append(twenty, holding(i, point.Uint16))
	}
	for i := range uint16(100) {
		hundred = append(hundred, holding(i, point.Uint16))
	}
	slow := point.Interval(10 * time.Second)
	tests := []struct {
		name   string
		points []point.Point
		limits Limits
		want   []string
	}{
		{"nothing", nil, lan, nil},
		{"neighbours", twenty, at9600, []string{"holding 0+20 1s"}},
		{"longest read", hundred, short, []string{"holding 0+20 1s", "holding 20+20 1s", "holding 40+20 1s", "holding 60+20 1s", "holding 80+20 1s"}},
		{"a cheap hole", []point.Point{holding(0, point.Uint16), holding(12, point.Uint16)}, at9600, []string{"holding 0+13 1s"}},
		{"a dear hole", []point.Point{holding(0, point.Uint16), holding(40, point.Uint16)}, at9600, []string{"holding 0+1 1s", "holding 40+1 1s"}},
		{"the same hole costs nothing here", []point.Point{holding(0, point.Uint16), holding(40, point.Uint16)}, lan, []string{"holding 0+41 1s"}},
		{"no holes", []point.Point{holding(0, point.Uint16), holding(2, point.Uint16)}, noHoles, []string{"holding 0+1 1s", "holding 2+1 1s"}},
		{
			"what is never read is no hole",
			[]point.Point{holding(0, point.Uint16), every(holding(1, point.Uint16), point.Never), holding(2, point.Uint16)},
			noHoles, []string{"holding 0+3 1s"},
		},
		{"tables apart", []point.Point{coil(0), holding(0, point.Uint16)}, lan, []string{"coil 0+1 1s", "holding 0+1 1s"}},
		{"bits", []point.Point{coil(0), coil(1500)}, lan, []string{"coil 0+1501 1s"}},
		{
			"points overlap", []point.Point{holding(4, point.Float64), holding(5, point.Uint16), holding(7, point.Uint32)},
			noHoles, []string{"holding 4+5 1s"},
		},
		{
			"a slow point rides along",
			[]point.Point{holding(0, point.Uint16), holding(2, point.Uint16), every(holding(1, point.Uint16), slow)},
			at9600, []string{"holding 0+3 1s"},
		},
		{
			"a slow point beside the fast ones pays for itself where bytes are dear",
			append(slices.Clone(twenty), every(holding(20, point.Float64), slow)),
			at9600, []string{"holding 0+20 1s", "holding 20+4 10s"},
		},
		{
			"but not where they are cheap",
			append(slices.Clone(twenty), every(holding(20, point.Float64), slow)),
			lan, []string{"holding 0+24 1s"},
		},
		{
			"once and as fast as can be", []point.Point{every(holding(0, point.Uint16), point.Once), every(holding(0, point.Uint16), point.Fastest)},
			lan, []string{"holding 0+1 fastest", "holding 0+1 once"},
		},
		{
			"a group is one read, though two would be cheaper",
			[]point.Point{grouped(holding(0, point.Uint16), "g"), grouped(holding(60, point.Uint16), "g")},
			at9600, []string{"holding 0+61 1s"},
		},
		{
			"a group is read as its fastest", []point.Point{grouped(every(holding(0, point.Uint16), slow), "g"), grouped(holding(3, point.Uint16), "g")},
			lan, []string{"holding 0+4 1s"},
		},
		{
			"a group that does not fit", []point.Point{grouped(holding(0, point.Uint16), "g"), grouped(holding(19, point.Uint32), "g")},
			short, []string{"holding 0+1 1s", "holding 19+2 1s"},
		},
		{"longer than the longest read", []point.Point{{Table: modbus.HoldingRegisters, Type: point.String, Length: 30, Every: slow}}, short, []string{"holding 0+30 10s"}},
		{
			"within one that is longer than the longest read",
			[]point.Point{holding(40, point.Float64), {Table: modbus.HoldingRegisters, Address: 20, Type: point.String, Length: 30, Every: second}, holding(60, point.Uint16)},
			short, []string{"holding 20+30 1s", "holding 60+1 1s"},
		},
		{"the last address", []point.Point{holding(65535, point.Uint16)}, lan, []string{"holding 65535+1 1s"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := brief(PlanReads(tt.points, tt.limits)); !slices.Equal(got, tt.want) {
				t.Errorf("PlanReads = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestLimitsFor(t *testing.T) {
	serial := func(baud int, f modbus.Framing) config.Bus {
		return config.Bus{
			Kind: config.Serial, Framing: f, Gap: config.GapAuto,
			Mode: config.SerialMode{Baud: baud, DataBits: 8, Parity: 'E', StopBits: 1},
		}
	}
	gap := serial(9600, modbus.FramingRTU)
	gap.Gap = 10 * time.Millisecond
	own := config.Device{Gap: 20 * time.Millisecond}
	usual := config.Device{Gap: config.GapAuto}
	char := 11 * time.Second / 9600
	tests := []struct {
		name   string
		bus    config.Bus
		device config.Device
		want   time.Duration // of 20 registers
	}{
		{"rtu", serial(9600, modbus.FramingRTU), usual, 53*char + 2*35*11*time.Second/96000 + turnaround},
		{"rtu, fast", serial(115200, modbus.FramingRTU), usual, 53*(11*time.Second/115200) + 3500*time.Microsecond + turnaround},
		{"gap of the bus", gap, usual, 53*char + 20*time.Millisecond + turnaround},
		{"gap of the device", gap, own, 53*char + 40*time.Millisecond + turnaround},
		{"ascii", serial(9600, modbus.FramingASCII), usual, (17+11+80)*char + turnaround},
		{"tcp", config.Bus{Kind: config.TCP, Gap: config.GapAuto}, usual, lanRequest + 40*lanByte},
		{
			"rtu over tcp", config.Bus{Kind: config.TCP, Framing: modbus.FramingRTU, Gap: config.GapAuto}, usual,
			53*(11*time.Second/19200) + 2*35*11*time.Second/192000 + tunnelDelay,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := LimitsFor(tt.bus, tt.device).Cost(Read{Table: modbus.HoldingRegisters, Count: 20})
			if d := got - tt.want; d < -time.Microsecond || d > time.Microsecond {
				t.Errorf("20 registers cost %v, want %v", got, tt.want)
			}
		})
	}
}

func TestTornGroups(t *testing.T) {
	points := []point.Point{
		grouped(holding(0, point.Uint16), "whole"), grouped(holding(1, point.Uint16), "whole"),
		grouped(holding(2, point.Uint16), "apart"), grouped(holding(200, point.Uint16), "apart"),
		holding(3, point.Uint16),
	}
	want := []bool{false, false, true, true, false}
	if got := torn(points, PlanReads(points, Limits{Holes: config.HolesAuto})); !slices.Equal(got, want) {
		t.Errorf("torn = %v, want %v", got, want)
	}
}

// drawPoints draws a point list as it might stand in a configuration.
func drawPoints(t *rapid.T, most int) []point.Point {
	types := []point.Type{point.Uint16, point.Int16, point.Float32, point.Uint64, point.String}
	intervals := []point.Interval{point.Interval(time.Second), point.Interval(time.Second), point.Interval(10 * time.Second), point.Fastest, point.Once, point.Never}
	span := rapid.SampledFrom([]int{30, 300, 60000}).Draw(t, "span")
	n := rapid.IntRange(0, most).Draw(t, "n")
	points := make([]point.Point, n)
	for i := range points {
		p := point.Point{
			Table:   modbus.Table(rapid.IntRange(int(modbus.Coils), int(modbus.HoldingRegisters)).Draw(t, "table")),
			Address: uint16(rapid.IntRange(0, span).Draw(t, "address")),
			Every:   rapid.SampledFrom(intervals).Draw(t, "every"),
			Group:   rapid.SampledFrom([]string{"", "", "", "a", "b"}).Draw(t, "group"),
		}
		if p.Table.Bits() {
			p.Type = point.Bool
		} else {
			p.Type = rapid.SampledFrom(types).Draw(t, "type")
			p.Length = uint16(rapid.IntRange(1, 40).Draw(t, "length"))
		}
		points[i] = p
	}
	return points
}

func drawLimits(t *rapid.T) Limits {
	return Limits{
		Request: time.Duration(rapid.IntRange(0, 50).Draw(t, "request")) * time.Millisecond,
		Byte:    time.Duration(rapid.IntRange(0, 1000).Draw(t, "byte")) * time.Microsecond,
		MaxRegs: rapid.IntRange(0, 125).Draw(t, "max regs"),
		MaxBits: rapid.IntRange(0, 2000).Draw(t, "max bits"),
		Holes:   rapid.SampledFrom([]int{config.HolesAuto, 0, 1, 10, 100}).Draw(t, "holes"),
	}
}

// checkPlan tells what is wrong with a plan, however good or bad it is.
func checkPlan(points []point.Point, limits Limits, known *refusals, reads []Read) error {
	every := intervals(points)
	in := make([]int, len(points))
	type place struct {
		t    modbus.Table
		addr int
	}
	covered := make(map[place]bool)
	for i, p := range points {
		if !known.refuses(i) {
			for a := range p.Words() {
				covered[place{p.Table, int(p.Address) + a}] = true
			}
		}
	}
	for n, r := range reads {
		if err := modbus.CheckRequest(r.Request()); err != nil {
			return err
		}
		if len(r.Points) == 0 {
			return fmt.Errorf("read %d is for no point", n)
		}
		longest := 0
		sides := make(map[int]bool)
		own := false
		for _, i := range r.Points {
			p := points[i]
			in[i]++
			longest = max(longest, p.Words())
			sides[known.side(p.Table, int(p.Address))] = true
			own = own || every[i] == r.Every
			switch {
			case p.Table != r.Table || int(p.Address) < int(r.Address) || int(p.Address)+p.Words() > r.end():
				return fmt.Errorf("point %d is not within read %d", i, n)
			case compareInterval(r.Every, every[i]) > 0:
				return fmt.Errorf("point %d, every %v, is in a slower read, every %v", i, every[i], r.Every)
			}
		}
		if !own {
			return fmt.Errorf("read %d is faster than all its points", n)
		}
		if int(r.Count) > limits.max(r.Table) && int(r.Count) > longest {
			return fmt.Errorf("read %d has %d addresses, more than %d", n, r.Count, limits.max(r.Table))
		}
		hole := 0
		for a := int(r.Address); a < r.end(); a++ {
			if hole++; covered[place{r.Table, a}] {
				hole = 0
			}
			if limits.Holes >= 0 && hole > limits.Holes {
				return fmt.Errorf("read %d has a hole longer than %d", n, limits.Holes)
			}
		}
		if len(sides) > 1 {
			// Allowed only to a point that lies within the others anyway.
			alone := func(i int) bool {
				p := points[i]
				return slices.ContainsFunc(r.Points, func(j int) bool {
					q := points[j]
					return j != i && q.Address <= p.Address && int(p.Address)+p.Words() <= int(q.Address)+q.Words()
				}) || p.Group != ""
			}
			if !slices.ContainsFunc(r.Points, alone) {
				return fmt.Errorf("read %d goes across a cut", n)
			}
		}
	}
	for i := range points {
		want := 1
		if every[i] == point.Never || known.refuses(i) {
			want = 0
		}
		if in[i] != want {
			return fmt.Errorf("point %d is in %d reads, want %d", i, in[i], want)
		}
	}
	// A group is whole if a read could hold it.
	apart := torn(points, reads)
	for i, p := range points {
		if !apart[i] || known != nil && known.loose[p.Group] {
			continue
		}
		first, last := 1<<16, 0
		for j, q := range points {
			if q.Group == p.Group && every[j] != point.Never && !known.refuses(j) {
				if q.Table != p.Table {
					first = -1 << 16
				}
				first, last = min(first, int(q.Address)), max(last, int(q.Address)+q.Words())
			}
		}
		hole := 0
		for a, n := first, 0; a < last && first >= 0; a++ {
			if n++; covered[place{p.Table, a}] {
				n = 0
			}
			hole = max(hole, n)
		}
		if last-first <= limits.max(p.Table) && (limits.Holes < 0 || hole <= limits.Holes) {
			return fmt.Errorf("group %q is torn though %d+%d fits", p.Group, first, last-first)
		}
	}
	return nil
}

func TestPlanIsSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		points, limits := drawPoints(t, 40), drawLimits(t)
		known := &refusals{}
		for range rapid.IntRange(0, 5).Draw(t, "cuts") {
			known.cut(modbus.HoldingRegisters, rapid.IntRange(0, 300).Draw(t, "cut"))
		}
		for range rapid.IntRange(0, 3).Draw(t, "refused") {
			known.refuse(rapid.IntRange(0, 40).Draw(t, "which"), errors.New("refused"))
		}
		if rapid.Bool().Draw(t, "loose") {
			known.loosen("a")
		}
		if err := checkPlan(points, limits, known, planReads(points, limits, known)); err != nil {
			t.Fatal(err)
		}
	})
}

// exhaustive returns the least cost, and the fewest reads of that cost, over
// all ways to divide points of one table and interval into reads.
func exhaustive(points []point.Point, limits Limits) (cost time.Duration, reads int) {
	covered := make(map[int]bool)
	for _, p := range points {
		for a := range p.Words() {
			covered[int(p.Address)+a] = true
		}
	}
	price := func(block []int) (time.Duration, bool) {
		first, last, longest := 1<<16, 0, 0
		for _, i := range block {
			p := points[i]
			first, last = min(first, int(p.Address)), max(last, int(p.Address)+p.Words())
			longest = max(longest, p.Words())
		}
		if last-first > max(longest, limits.max(points[0].Table)) {
			return 0, false
		}
		for a, hole := first, 0; a < last; a++ {
			if hole++; covered[a] {
				hole = 0
			}
			if limits.Holes >= 0 && hole > limits.Holes {
				return 0, false
			}
		}
		return limits.cost(points[0].Table, last-first), true
	}
	cost = -1
	var blocks [][]int
	var divide func(i int)
	divide = func(i int) {
		if i == len(points) {
			var sum time.Duration
			for _, b := range blocks {
				c, ok := price(b)
				if !ok {
					return
				}
				sum += c
			}
			if cost < 0 || sum < cost || sum == cost && len(blocks) < reads {
				cost, reads = sum, len(blocks)
			}
			return
		}
		for b := range blocks {
			blocks[b] = append(blocks[b], i)
			divide(i + 1)
			blocks[b] = blocks[b][:len(blocks[b])-1]
		}
		blocks = append(blocks, []int{i})
		divide(i + 1)
		blocks = blocks[:len(blocks)-1]
	}
	divide(0)
	return cost, reads
}

// The plan costs exactly what the best of all plans costs; where only requests
// cost anything, it has exactly the fewest.
func TestPlanIsTheCheapest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var points []point.Point
		for range rapid.IntRange(1, 7).Draw(t, "n") {
			p := holding(uint16(rapid.IntRange(0, 60).Draw(t, "address")), rapid.SampledFrom([]point.Type{point.Uint16, point.Float32, point.Uint64, point.String}).Draw(t, "type"))
			p.Length = uint16(rapid.IntRange(1, 30).Draw(t, "length"))
			points = append(points, p)
		}
		limits := drawLimits(t)
		limits.MaxRegs = rapid.IntRange(1, 80).Draw(t, "longest")
		if rapid.Bool().Draw(t, "count requests") {
			limits.Byte = 0
		}
		cost, fewest := exhaustive(points, limits)
		var got time.Duration
		reads := PlanReads(points, limits)
		for _, r := range reads {
			got += limits.Cost(r)
		}
		if got != cost || len(reads) != fewest {
			t.Fatalf("%d reads cost %v; the best plan has %d and costs %v", len(reads), got, fewest, cost)
		}
	})
}

func FuzzPlanReads(f *testing.F) {
	f.Add(uint64(1), uint8(20), uint8(125), int8(-1))
	f.Fuzz(func(t *testing.T, seed uint64, n, longest uint8, holes int8) {
		r := rand.New(rand.NewPCG(seed, 0))
		points := make([]point.Point, n)
		for i := range points {
			p := holding(uint16(r.Uint32()>>(16+r.IntN(16))), point.Type(r.IntN(int(point.Datetime))))
			p.Length = uint16(1 + r.IntN(modbus.MaxReadRegisters))
			p.Every = point.Interval(r.IntN(5) - 2)
			p.Group = []string{"", "", "g", "h"}[r.IntN(4)]
			if int(p.Address)+p.Words() > 1<<16 {
				p.Address -= uint16(p.Words())
			}
			points[i] = p
		}
		limits := Limits{
			Request: time.Duration(r.IntN(100)), Byte: time.Duration(r.IntN(10)),
			MaxRegs: int(longest), Holes: max(int(holes), config.HolesAuto),
		}
		if err := checkPlan(points, limits, nil, PlanReads(points, limits)); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkPlanReads(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	var points []point.Point
	for range 1000 {
		points = append(points, holding(uint16(r.IntN(4000)), point.Float32))
	}
	limits := Limits{Request: 25 * time.Millisecond, Byte: time.Millisecond, Holes: config.HolesAuto}
	for b.Loop() {
		PlanReads(points, limits)
	}
}
