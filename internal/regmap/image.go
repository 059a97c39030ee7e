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

	mu    sync.RWMutex // held for some memory accesses a sample
	cells []cell
}

// cell is what is known of one point.
type cell struct {
	value   point.Value // the newest good one; None: there was none yet
	at      time.Time   // of value
	quality point.Quality
	seen    bool   // there was a sample
	version uint32 // counts changes of value
}

// NewImage returns the image of all points that servers show.
func NewImage(servers []config.Server) *Image {
	m := &Image{slots: make(map[point.ID]int32)}
	for _, s := range servers {
		for i := range s.Map {
			e := &s.Map[i]
			if _, known := m.slots[e.Point.ID]; e.Show != config.ShowPause && !known {
				m.slots[e.Point.ID] = int32(len(m.slots))
			}
		}
	}
	m.cells = make([]cell, len(m.slots))
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
		m.cells[slot].take(&in[i])
	}
	if locked {
		m.mu.Unlock()
	}
	return in
}

func (c *cell) take(s *point.Sample) {
	c.seen, c.quality = true, s.Quality
	if s.Quality == point.Bad || s.Value.IsZero() {
		c.quality = point.Bad
		return // the last good value stays for those who ask for it
	}
	c.at = s.Time
	if c.value != s.Value {
		c.value = s.Value
		c.version++
	}
}

// The status of a point, as a PLC reads it.
const (
	statusGood = iota
	statusUncertain
	statusBad
	statusNever
)

// status judges a cell at a time: what is older than after, unless that is 0, is
// as bad as what could not be read.
func (c *cell) status(now time.Time, after time.Duration) uint16 {
	switch {
	case !c.seen:
		return statusNever
	case c.quality == point.Bad, after > 0 && now.Sub(c.at) > after:
		return statusBad
	case c.quality == point.Uncertain:
		return statusUncertain
	}
	return statusGood
}

// age returns the age of the value in whole seconds; ok is false before the
// first.
func (c *cell) age(now time.Time) (seconds uint64, ok bool) {
	if c.value.IsZero() {
		return 0, false
	}
	return uint64(max(now.Sub(c.at), 0) / time.Second), true
}
