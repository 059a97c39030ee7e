package pipeline

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fieldgate/internal/point"
)

var noon = time.Date(2025, 11, 5, 12, 0, 0, 0, time.UTC)

func sample(id string, n int64) point.Sample {
	return point.Sample{ID: point.ID(id), Value: point.IntValue(n), Time: noon}
}

// drain returns what waits in the feed now.
func drain(f *Feed) []*Batch {
	var all []*Batch
	for {
		select {
		case b, ok := <-f.C():
			if !ok {
				return all
			}
			all = append(all, b)
		default:
			return all
		}
	}
}

func TestFeedGetsBatchesInOrder(t *testing.T) {
	p := New()
	f := p.Subscribe("a", 8)
	p.Emit([]point.Sample{sample("d.x", 1), sample("d.y", 2)})
	p.Emit(nil)
	p.Emit([]point.Sample{sample("d.y", 3)})
	got := drain(f)
	if len(got) != 2 || len(got[0].Samples) != 2 || got[1].Samples[0] != sample("d.y", 3) {
		t.Fatalf("got %v", got)
	}
	if !slices.Equal(got[0].Slots, []Slot{0, 1}) || !slices.Equal(got[1].Slots, []Slot{1}) {
		t.Errorf("slots %v and %v, want [0 1] and [1]", got[0].Slots, got[1].Slots)
	}
}

func TestEmitCopies(t *testing.T) {
	p := New()
	f := p.Subscribe("a", 8)
	mine := []point.Sample{sample("d.x", 1)}
	p.Emit(mine)
	mine[0].Value = point.IntValue(99)
	if got := (<-f.C()).Samples[0].Value; got != point.IntValue(1) {
		t.Errorf("feed has %v after the caller changed its batch, want 1", got)
	}
	if got, _ := p.Last("d.x"); got.Value != point.IntValue(1) {
		t.Errorf("last is %v after the caller changed its batch, want 1", got.Value)
	}
}

func TestFullFeedDropsTheOldest(t *testing.T) {
	p := New()
	slow, fast := p.Subscribe("slow", 3), p.Subscribe("fast", 100)
	for i := range 10 {
		p.Emit([]point.Sample{sample("d.x", int64(i)), sample("d.y", int64(i))})
	}
	var kept []int64
	for _, b := range drain(slow) {
		n, _ := b.Samples[0].Value.Int64()
		kept = append(kept, n)
	}
	if !slices.Equal(kept, []int64{7, 8, 9}) {
		t.Errorf("kept %v, want the newest three", kept)
	}
	if batches, samples := slow.Dropped(); batches != 7 || samples != 14 {
		t.Errorf("dropped %d batches, %d samples, want 7 and 14", batches, samples)
	}
	if n := len(drain(fast)); n != 10 {
		t.Errorf("the other feed has %d batches, want all 10", n)
	}
	if batches, samples := fast.Dropped(); batches != 0 || samples != 0 {
		t.Errorf("the other feed dropped %d, %d", batches, samples)
	}
}

func TestSubscribeDepthIsAtLeastOne(t *testing.T) {
	p := New()
	f := p.Subscribe("a", 0)
	p.Emit([]point.Sample{sample("d.x", 1)})
	p.Emit([]point.Sample{sample("d.x", 2)})
	if got := drain(f); len(got) != 1 || got[0].Samples[0].Value != point.IntValue(2) {
		t.Errorf("got %v, want the newest batch", got)
	}
}

func TestCloseKeepsWhatWasEmitted(t *testing.T) {
	p := New()
	f := p.Subscribe("a", 4)
	p.Emit([]point.Sample{sample("d.x", 1)})
	if len(p.Feeds()) != 1 || p.Feeds()[0].Name() != "a" {
		t.Errorf("feeds %v, want a", p.Feeds())
	}
	f.Close()
	f.Close()
	p.Emit([]point.Sample{sample("d.x", 2)})
	var got []*Batch
	for b := range f.C() {
		got = append(got, b)
	}
	if len(got) != 1 || got[0].Samples[0].Value != point.IntValue(1) {
		t.Errorf("got %v, want the batch from before Close", got)
	}
	if len(p.Feeds()) != 0 {
		t.Errorf("feeds %v after Close, want none", p.Feeds())
	}
}

func TestLastAndMatch(t *testing.T) {
	p := New()
	if _, ok := p.Last("boiler.temp"); ok {
		t.Error("Last knows a point that was never emitted")
	}
	p.Emit([]point.Sample{sample("boiler.temp", 1), sample("boiler.flow", 2)})
	p.Emit([]point.Sample{sample("tank.temp", 3)})
	bad := point.Sample{ID: "boiler.temp", Quality: point.Bad, Time: noon}
	p.Emit([]point.Sample{bad})
	if got, ok := p.Last("boiler.temp"); !ok || got != bad {
		t.Errorf("Last = %v, %v, want the Bad sample", got, ok)
	}
	if p.Len() != 3 {
		t.Errorf("Len = %d, want 3", p.Len())
	}
	for pattern, want := range map[string][]point.ID{
		"*":        {"boiler.temp", "boiler.flow", "tank.temp"},
		"*.temp":   {"boiler.temp", "tank.temp"},
		"boiler.*": {"boiler.temp", "boiler.flow"},
		"none.*":   nil,
	} {
		var got []point.ID
		for s := range p.Match(pattern) {
			got = append(got, s.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("Match(%q) = %v, want %v", pattern, got, want)
		}
	}
	for range p.Match("*") {
		break // a reader may stop, and may emit meanwhile
	}
	for range p.Match("*") {
		p.Emit([]point.Sample{sample("tank.temp", 4)})
	}
}

// A bus emits the same lists of points over and over, but any mixture must get
// the right slots.
func TestSlotsBelongToPoints(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	p := New()
	p.Expect(4) // of the six that come
	f := p.Subscribe("a", 1)
	slots := make(map[point.ID]Slot)
	for range 2000 {
		batch := make([]point.Sample, 1+r.IntN(4))
		for i := range batch {
			batch[i] = sample(fmt.Sprintf("d.%d", r.IntN(6)), r.Int64())
		}
		p.Emit(batch)
		got := <-f.C()
		for i, s := range got.Samples {
			if s != batch[i] {
				t.Fatalf("sample %d is %v, want %v", i, s, batch[i])
			}
			slot, ok := slots[s.ID]
			if !ok {
				slot = Slot(len(slots))
				slots[s.ID] = slot
			}
			if got.Slots[i] != slot {
				t.Fatalf("%s has slot %d, want %d", s.ID, got.Slots[i], slot)
			}
		}
		for i := len(batch) - 1; i >= 0; i-- {
			if slices.ContainsFunc(batch[i+1:], func(s point.Sample) bool { return s.ID == batch[i].ID }) {
				continue
			}
			if last, _ := p.Last(batch[i].ID); last != batch[i] {
				t.Fatalf("Last(%s) = %v, want %v", batch[i].ID, last, batch[i])
			}
		}
	}
	for first, shapes := range p.shapes {
		if len(shapes) > maxShapes {
			t.Errorf("%d lists remembered for %s, want at most %d", len(shapes), first, maxShapes)
		}
	}
}

// A batch is one reader's until that reader is done with it, whatever the others
// and the emitters do.
func TestBatchStaysUntilDone(t *testing.T) {
	p := New()
	a, b, full := p.Subscribe("a", 100), p.Subscribe("b", 100), p.Subscribe("full", 1)
	for i := range 50 {
		p.Emit([]point.Sample{sample("d.x", int64(i)), sample("d.y", int64(i))})
	}
	for range 50 {
		(<-a.C()).Done()
	}
	for i := 50; i < 100; i++ {
		p.Emit([]point.Sample{sample("d.z", int64(i))})
	}
	for i := range 50 {
		got := <-b.C()
		want := []point.Sample{sample("d.x", int64(i)), sample("d.y", int64(i))}
		if !slices.Equal(got.Samples, want) || !slices.Equal(got.Slots, []Slot{0, 1}) {
			t.Fatalf("batch %d is %v %v, want %v", i, got.Samples, got.Slots, want)
		}
		got.Done()
	}
	if got := <-full.C(); got.Samples[0] != sample("d.z", 99) {
		t.Errorf("the feed that dropped has %v, want the newest", got.Samples)
	}
}

func TestDoneTooOften(t *testing.T) {
	p := New()
	f := p.Subscribe("a", 1)
	p.Emit([]point.Sample{sample("d.x", 1)})
	b := <-f.C()
	b.Done()
	if len(b.Samples) != 1 || b.Samples[0] != (point.Sample{}) {
		t.Errorf("after Done there is still %v", b.Samples)
	}
	defer func() {
		if recover() == nil {
			t.Error("a second Done goes unnoticed")
		}
	}()
	b.Done()
}

// double is a stage that makes a point from each point.
type double struct{ nows []time.Time }

func (d *double) Apply(now time.Time, in []point.Sample) []point.Sample {
	d.nows = append(d.nows, now)
	out := slices.Clone(in)
	for _, s := range in {
		n, _ := s.Value.Int64()
		out = append(out, sample(string(s.ID)+".double", 2*n))
	}
	return out
}

// mute is a stage that lets nothing through.
type mute struct{}

func (mute) Apply(time.Time, []point.Sample) []point.Sample { return nil }

func TestStages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stage := new(double)
		p := New(stage, new(double))
		f := p.Subscribe("a", 4)
		p.Emit([]point.Sample{sample("d.x", 1)})
		var got []string
		for _, s := range (<-f.C()).Samples {
			got = append(got, fmt.Sprintf("%s=%s", s.ID, s.Value))
		}
		want := []string{"d.x=1", "d.x.double=2", "d.x.double=2", "d.x.double.double=4"}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if s, ok := p.Last("d.x.double.double"); !ok || s.Value != point.IntValue(4) {
			t.Errorf("Last of a made point = %v, %v", s, ok)
		}
		if len(stage.nows) != 1 || !stage.nows[0].Equal(time.Now()) {
			t.Errorf("stage was told %v, want now", stage.nows)
		}
	})
	p := New(mute{})
	f := p.Subscribe("a", 4)
	p.Emit([]point.Sample{sample("d.x", 1)})
	if got := drain(f); len(got) != 0 {
		t.Errorf("got %v after a stage that lets nothing through", got)
	}
}

// Every emitter's batches come in its own order, and each batch is either read
// or counted as dropped, whatever the others do.
func TestManyEmittersAndReaders(t *testing.T) {
	const emitters, each = 8, 500
	p := New()
	feeds := []*Feed{p.Subscribe("small", 2), p.Subscribe("large", emitters*each)}
	var readers, writers sync.WaitGroup
	got := make([]uint64, len(feeds))
	for i, f := range feeds {
		readers.Go(func() {
			newest := make(map[point.ID]int64)
			for b := range f.C() {
				got[i]++
				s := b.Samples[0]
				if i == 0 || got[i]%3 == 0 {
					b.Done()
				}
				n, _ := s.Value.Int64()
				if last, ok := newest[s.ID]; ok && n <= last {
					t.Errorf("feed %s: %s went from %d back to %d", f.Name(), s.ID, last, n)
				}
				newest[s.ID] = n
			}
		})
	}
	for e := range emitters {
		writers.Go(func() {
			id := fmt.Sprintf("d%d.x", e)
			for n := range int64(each) {
				p.Emit([]point.Sample{sample(id, n)})
				if s, ok := p.Last(point.ID(id)); !ok || s.Value != point.IntValue(n) {
					t.Errorf("Last(%s) = %v, %v, want %d", id, s.Value, ok, n)
				}
				if n%64 == 0 {
					for range p.Match("*.x") {
						runtime.Gosched()
					}
				}
			}
		})
	}
	writers.Wait()
	for _, f := range feeds {
		f.Close()
	}
	readers.Wait()
	for i, f := range feeds {
		if batches, _ := f.Dropped(); batches+got[i] != emitters*each {
			t.Errorf("feed %s: %d read, %d dropped, want %d in all", f.Name(), got[i], batches, emitters*each)
		}
	}
	if got[1] != emitters*each {
		t.Errorf("the large feed has %d batches, want all", got[1])
	}
}

// A hundred devices of a hundred points each, and one reader.
func BenchmarkEmit(b *testing.B) {
	const devices, points = 100, 100
	p := New()
	f := p.Subscribe("a", 1)
	batches := make([][]point.Sample, devices)
	for d := range batches {
		for i := range points {
			batches[d] = append(batches[d], sample(fmt.Sprintf("device%d.point%d", d, i), int64(i)))
		}
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		p.Emit(batches[i%devices])
		(<-f.C()).Done()
		i++
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/points, "ns/point")
}

// Of a feed and its successor each batch is in one.
func TestFeedSucceeds(t *testing.T) {
	p := New()
	f := p.Subscribe("a", 2)
	for i := range 3 {
		p.Emit([]point.Sample{sample("d.x", int64(i))})
	}
	next := f.Succeed()
	p.Emit([]point.Sample{sample("d.x", 3)})
	if a, b := len(drain(f)), len(drain(next)); a != 2 || b != 1 {
		t.Errorf("%d and %d batches, want 2 and 1", a, b)
	}
	if batches, _ := next.Dropped(); batches != 1 || len(p.Feeds()) != 1 {
		t.Errorf("%d dropped, %d feeds", batches, len(p.Feeds()))
	}
}

// A point that is forgotten has no value, and is a new one when it is seen again.
func TestRetain(t *testing.T) {
	p := New()
	p.Emit([]point.Sample{sample("d.x", 1), sample("d.y", 2)})
	p.Retain(func(id point.ID) bool { return id == "d.y" })
	if _, ok := p.Last("d.x"); ok || p.Len() != 1 {
		t.Errorf("d.x is still there, of %d", p.Len())
	}
	for s := range p.Match("*") {
		if s.ID != "d.y" {
			t.Errorf("Match gives %v", s)
		}
	}
	p.Emit([]point.Sample{sample("d.x", 3), sample("d.y", 4)})
	if s, _ := p.Last("d.x"); s.Value != point.IntValue(3) {
		t.Errorf("d.x is %v", s)
	}
	if slot, ok := p.Slot("d.x"); !ok || slot != 2 {
		t.Errorf("its slot is %d", slot)
	}
}
