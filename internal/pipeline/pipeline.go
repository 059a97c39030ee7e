// Package pipeline is where batches of samples from the field meet those who
// want them: it runs the stages that make points from points, keeps the last
// sample of every point, and hands each batch on to every feed. It never makes
// a bus wait: a feed whose reader is slow loses its oldest batches, counted.
//
// The types to know are Pipeline, Stage (what makes points from points) and
// Feed (one reader's share). It neither polls nor publishes.
package pipeline

import (
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fieldgate/internal/point"
)

// Stage makes points from points: a rollup, an alarm.
//
// Apply is given each batch in the order of arrival, one at a time, and returns
// what goes on from here: usually in and what it made of it. It must not
// change in, nor keep it after it has returned, and it must not block: a bus
// waits for it.
type Stage interface {
	Apply(now time.Time, in []point.Sample) []point.Sample
}

// Slot numbers the points of one Pipeline from 0, in the order in which they
// were first seen. A point keeps its slot as long as the Pipeline lives or until
// Retain, so a reader may keep what it knows of a point in a slice rather than in
// a map.
type Slot uint32

// Batch is what was emitted together. Every feed is given the same one: nobody
// may change it.
type Batch struct {
	Samples []point.Sample
	Slots   []Slot // of each sample

	readers atomic.Int32 // that have not called Done
	pool    *sync.Pool
}

// Done says that the reader of one feed has finished with the batch and keeps
// nothing of Samples and Slots, so that their memory can be used again: the next
// batch then lies where the caches are warm, and there is no garbage. A reader
// that wants to keep a batch just does not call it. It is called once at most
// by each reader.
func (b *Batch) Done() {
	switch n := b.readers.Add(-1); {
	case n < 0:
		panic("pipeline: batch done more often than it has readers")
	case n == 0:
		clear(b.Samples) // what is used too late is nothing, rather than another's
		b.pool.Put(b)
	}
}

// Pipeline takes batches and fans them out. Make one with New. All methods are
// safe for use by several goroutines.
type Pipeline struct {
	pool  sync.Pool   // of *Batch
	plain atomic.Bool // there are no stages

	// mu is held for the time of a few memory accesses a sample and of the
	// stages; never while anything waits.
	mu     sync.RWMutex
	stages []Stage
	slots  map[point.ID]Slot
	last   []point.Sample        // by slot
	shapes map[point.ID][][]Slot // by the first point
	feeds  []*Feed
}

// maxShapes bounds how many lists that begin with the same point are
// remembered; a device has about one for each of its intervals.
const maxShapes = 8

// New returns a pipeline that applies stages to each batch, in their order.
func New(stages ...Stage) *Pipeline {
	p := &Pipeline{
		slots:  make(map[point.ID]Slot),
		shapes: make(map[point.ID][][]Slot),
	}
	p.SetStages(stages...)
	return p
}

// SetStages makes batches that are emitted from now on go through other stages.
func (p *Pipeline) SetStages(stages ...Stage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stages = stages
	p.plain.Store(len(stages) == 0)
}

// Expect makes room for so many points, so that the first of them are not moved
// about while the others come. It is to be called before the first Emit.
func (p *Pipeline) Expect(points int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slots = make(map[point.ID]Slot, points)
	p.last = make([]point.Sample, 0, points)
}

// Emit takes one batch: what was read together from one device, in the order of
// reading. It copies the samples and never waits for a reader. The caller may
// use batch again at once.
func (p *Pipeline) Emit(batch []point.Sample) {
	b := p.take()
	plain := p.plain.Load()
	if plain {
		b.Samples = append(b.Samples[:0], batch...) // outside the lock
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.stages) > 0 || !plain {
		now := time.Now()
		for _, s := range p.stages {
			batch = s.Apply(now, batch)
		}
		b.Samples = append(b.Samples[:0], batch...)
	}
	b.readers.Store(1) // ourselves
	if len(b.Samples) > 0 {
		b.Slots = p.slotsOf(b.Samples)
		for i, s := range b.Slots {
			p.last[s] = b.Samples[i]
		}
		b.readers.Add(int32(len(p.feeds)))
		for _, f := range p.feeds {
			f.put(b)
		}
	}
	b.Done()
}

// take returns a batch to fill.
func (p *Pipeline) take() *Batch {
	if b, ok := p.pool.Get().(*Batch); ok {
		return b
	}
	return &Batch{pool: &p.pool}
}

// slotsOf returns the slots of the batch's points and gives one to each point
// that has none yet. The result is shared between batches.
//
// A bus emits the same few lists of points over and over. They are remembered,
// so a comparison of names takes the place of a look-up.
func (p *Pipeline) slotsOf(batch []point.Sample) []Slot {
	first := batch[0].ID
	known := p.shapes[first]
	for _, slots := range known {
		if p.fits(slots, batch) {
			return slots
		}
	}
	slots := make([]Slot, len(batch))
	for i := range batch {
		id := batch[i].ID
		slot, ok := p.slots[id]
		if !ok {
			slot = Slot(len(p.last))
			p.slots[id] = slot
			p.last = append(p.last, point.Sample{ID: id})
		}
		slots[i] = slot
	}
	if len(known) < maxShapes {
		p.shapes[first] = append(known, slots)
	}
	return slots
}

// fits reports whether slots are those of the batch's points. The names are
// mostly the very same memory, which makes the comparison cheap.
func (p *Pipeline) fits(slots []Slot, batch []point.Sample) bool {
	if len(slots) != len(batch) {
		return false
	}
	for i, s := range slots {
		if p.last[s].ID != batch[i].ID {
			return false
		}
	}
	return true
}

// Last returns the newest sample of a point; ok is false before the first. It
// is Bad, without a value, while the point cannot be read.
func (p *Pipeline) Last(id point.ID) (s point.Sample, ok bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	slot, ok := p.slots[id]
	if !ok {
		return point.Sample{}, false
	}
	return p.last[slot], true
}

// Slot returns the slot of a point; ok is false before its first sample.
func (p *Pipeline) Slot(id point.ID) (slot Slot, ok bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	slot, ok = p.slots[id]
	return slot, ok
}

// Match goes through the newest samples of all points that fit the pattern
// (see point.ParseGlob), in the order in which the points were first seen. The
// loop's body may take its time; what comes later may be newer.
func (p *Pipeline) Match(pattern string) iter.Seq[point.Sample] {
	return func(yield func(point.Sample) bool) {
		glob := point.ParseGlob(pattern)
		var part [64]point.Sample // so no bus waits for more than that
		for from := 0; ; {
			p.mu.RLock()
			n := copy(part[:], p.last[from:])
			p.mu.RUnlock()
			if n == 0 {
				return
			}
			for i := range part[:n] {
				if part[i].ID != "" && glob.Match(part[i].ID) && !yield(part[i]) {
					return
				}
			}
			from += n
		}
	}
}

// Retain forgets the points that keep does not name: there is no newest sample
// of them any more. One that is emitted again is a new point.
func (p *Pipeline) Retain(keep func(point.ID) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, slot := range p.slots {
		if !keep(id) {
			delete(p.slots, id)
			p.last[slot] = point.Sample{}
			clear(p.shapes) // some may hold the slot
		}
	}
}

// Len returns the number of points seen so far.
func (p *Pipeline) Len() int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return len(p.slots)
}

// Subscribe returns a feed of everything emitted from now on. It holds at most
// depth batches, at least 1. When its reader is slower than the field, the
// oldest batch goes and Dropped counts it. name is for logs and figures. Close
// the feed when done.
func (p *Pipeline) Subscribe(name string, depth int) *Feed {
	f := &Feed{pipeline: p, name: name, ch: make(chan *Batch, max(depth, 1))}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.feeds = append(p.feeds, f)
	return f
}

// Feeds returns the feeds that are open, in the order in which they were made.
func (p *Pipeline) Feeds() []*Feed {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return slices.Clone(p.feeds)
}
