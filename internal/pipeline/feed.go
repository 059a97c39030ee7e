package pipeline

import (
	"slices"
	"sync/atomic"
)

// Feed is one reader's share of what goes through a Pipeline, in the order of
// Emit. Pipeline.Subscribe makes it.
type Feed struct {
	pipeline *Pipeline
	name     string
	ch       chan *Batch // sent to only under the pipeline's lock
	batches  atomic.Uint64
	samples  atomic.Uint64
}

// Name returns the name given to Subscribe.
func (f *Feed) Name() string { return f.name }

// C returns the channel to read from. It is closed by Close, after the batches
// that were emitted before.
func (f *Feed) C() <-chan *Batch { return f.ch }

// Dropped returns how many batches, and how many samples in them, were lost
// because the reader was too slow.
func (f *Feed) Dropped() (batches, samples uint64) {
	return f.batches.Load(), f.samples.Load()
}

// Close ends the feed. What was emitted before can still be read from C.
// Closing it twice does no harm.
func (f *Feed) Close() {
	f.pipeline.mu.Lock()
	defer f.pipeline.mu.Unlock()
	f.close()
}

// Succeed closes the feed and returns one that goes on where it ends: each batch
// is in one of the two. It goes on counting what was dropped.
func (f *Feed) Succeed() *Feed {
	next := &Feed{pipeline: f.pipeline, name: f.name, ch: make(chan *Batch, cap(f.ch))}
	f.pipeline.mu.Lock()
	defer f.pipeline.mu.Unlock()
	f.close()
	next.batches.Store(f.batches.Load())
	next.samples.Store(f.samples.Load())
	f.pipeline.feeds = append(f.pipeline.feeds, next)
	return next
}

// close is Close with the pipeline's lock held.
func (f *Feed) close() {
	if i := slices.Index(f.pipeline.feeds, f); i >= 0 {
		f.pipeline.feeds = slices.Delete(f.pipeline.feeds, i, i+1)
		close(f.ch)
	}
}

// put hands b to the reader. The lock makes its caller the only sender, so once
// the oldest batch is out there is room.
func (f *Feed) put(b *Batch) {
	select {
	case f.ch <- b:
		return
	default:
	}
	select {
	case old := <-f.ch:
		f.batches.Add(1)
		f.samples.Add(uint64(len(old.Samples)))
		old.Done()
	default: // the reader has just made room
	}
	f.ch <- b
}
