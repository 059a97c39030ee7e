package regmap

import (
	"sync"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/point"
)

// Image keeps the newest samples of the points that servers show. It is a stage
// of the pipeline that changes nothing: what has been emitted stands in it at
// once, and the samples of one batch all at the same moment. Its methods are safe
// for use by several goroutines.
type Image struct {
	slots map[point.ID]int32 // never changed
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
	m := &Image{slots: make(map[point.ID]int32), start: time.Now()}
	for _, s := range servers {
		for i := range s.Map {
			e := &s.Map[i]
			if _, known := m.slots[e.Point.ID]; e.Show != config.ShowPause && !known {
				m.slots[e.Point.ID] = int32(len(m.slots))
			}
		}
	}
	m.vitals, m.values = make([]vital, len(m.slots)), make([]point.Value, len(m.slots))
	return m
}

// Apply implements pipeline.Stage: it takes note of the samples and returns them
// as they are.
func (m *Image) Apply(_ time.Time, in []point.Sample) []point.Sample {
	locked := false
	for i := range in {
		slot, shown := m.slots[in[i].ID]
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
		v.version++
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
