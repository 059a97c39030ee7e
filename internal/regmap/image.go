package regmap

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/point"
)

// Image keeps the newest samples of the points that servers show. It is a stage
// of the pipeline that changes nothing: what has been emitted stands in it at
// once, and the samples of one batch all at the same moment. Its methods are safe
// for use by several goroutines.
type Image struct {
	slots atomic.Pointer[map[point.ID]int32] // which is never changed, but replaced
	start time.Time

	mu     sync.RWMutex  // held for some memory accesses a sample
	vitals []vital       // by slot
	values []point.Value // likewise: the newest good one; None: there was none yet
}

// vital is what is looked at whenever a point is read. It is kept apart from the
// values, and small, because a PLC reads hundreds of points at once.
type vital struct {
	at      time.Duration // of the value, since the image's start
	version uint32        // counts changes of the value
	quality point.Quality
	seen    bool // there was a sample
}

// NewImage returns the image of all points that servers show.
func NewImage(servers []config.Server) *Image {
	m := &Image{start: time.Now()}
	m.slots.Store(new(map[point.ID]int32))
	m.Show(servers, func(point.ID) (point.Sample, bool) { return point.Sample{}, false })
	return m
}

// Show makes the image show the points of servers too. last returns the newest
// sample of a point, ok is false if there is none.
func (m *Image) Show(servers []config.Server, last func(point.ID) (s point.Sample, ok bool)) {
	slots := maps.Clone(*m.slots.Load())
	if slots == nil {
		slots = make(map[point.ID]int32)
	}
	m.mu.Lock()
	var added []point.ID
	for _, s := range servers {
		for i := range s.Map {
			e := &s.Map[i]
			if _, known := slots[e.Point.ID]; e.Show != config.ShowPause && !known {
				slots[e.Point.ID] = int32(len(m.vitals) + len(added))
				added = append(added, e.Point.ID)
			}
		}
	}
	m.vitals = append(slices.Grow(m.vitals, len(added)), make([]vital, len(added))...)
	m.values = append(slices.Grow(m.values, len(added)), make([]point.Value, len(added))...)
	m.mu.Unlock()
	m.slots.Store(&slots)
	for _, id := range added {
		s, ok := last(id)
		if !ok {
			continue
		}
		m.mu.Lock()
		if slot := slots[id]; !m.vitals[slot].seen { // else a newer one has come meanwhile
			m.take(slot, &s)
		}
		m.mu.Unlock()
	}
}

// Retain forgets the points that keep does not name. No map may show them.
func (m *Image) Retain(keep func(point.ID) bool) {
	slots := maps.Clone(*m.slots.Load())
	maps.DeleteFunc(slots, func(id point.ID, _ int32) bool { return !keep(id) })
	m.slots.Store(&slots)
}

// slot returns the slot of a point.
func (m *Image) slot(id point.ID) int32 { return (*m.slots.Load())[id] }

// Apply implements pipeline.Stage: it takes note of the samples and returns them
// as they are.
func (m *Image) Apply(_ time.Time, in []point.Sample) []point.Sample {
	locked, slots := false, *m.slots.Load()
	for i := range in {
		slot, shown := slots[in[i].ID]
		if !shown {
			continue
		}
		if !locked { // most batches are of devices that no server shows
			m.mu.Lock()
			locked = true
		}
		m.take(slot, &in[i])
	}
	if locked {
		m.mu.Unlock()
	}
	return in
}

func (m *Image) take(slot int32, s *point.Sample) {
	v := &m.vitals[slot]
	v.seen, v.quality = true, s.Quality
	if s.Quality == point.Bad || s.Value.IsZero() {
		v.quality = point.Bad
		return // the last good value stays for those who ask for it
	}
	v.at = s.Time.Sub(m.start) // by the monotonic clock, which nobody sets
	if m.values[slot] != s.Value {
		m.values[slot] = s.Value
		v.version = max(v.version+1, 1) // 0: there was none
	}
}

// now returns the time since the image's start.
func (m *Image) now() time.Duration { return time.Since(m.start) }

// The status of a point, as a PLC reads it.
const (
	statusGood = iota
	statusUncertain
	statusBad
	statusNever
)

// status judges a point at a time: what is older than after, unless that is 0, is
// as bad as what could not be read.
func (v *vital) status(now, after time.Duration) uint16 {
	switch {
	case !v.seen:
		return statusNever
	case v.quality == point.Bad, after > 0 && now-v.at > after:
		return statusBad
	case v.quality == point.Uncertain:
		return statusUncertain
	}
	return statusGood
}

// age returns the age of the value in whole seconds; ok is false before the
// first.
func (v *vital) age(now time.Duration) (seconds uint64, ok bool) {
	if v.version == 0 {
		return 0, false
	}
	return uint64(max(now-v.at, 0) / time.Second), true
}
