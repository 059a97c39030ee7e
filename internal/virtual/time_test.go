package virtual

import (
	"log/slog"
	"testing"
	"time"

	"fieldgate/internal/point"
)

// Samples keep their monotonic reading, as those of a bus do: their time of day
// is told late, and may be put right.
func TestTimesAreMoments(t *testing.T) {
	s := New(devices(t, "x: { type: uint16, initial: 3, write: {} }"), t.TempDir(), func(batch []point.Sample) {
		for _, sample := range batch {
			if sample.Time == sample.Time.Round(0) {
				t.Errorf("%v has no monotonic reading", sample)
			}
		}
	}, slog.New(slog.DiscardHandler))
	s.mu.Lock()
	s.begun = true
	s.emitAll(s.cells)
	s.set(s.cells[0], point.IntValue(4), point.Good, time.Time{}, time.Hour)
	s.mu.Unlock()
	if got, err := s.Read(t.Context(), "v.x"); err != nil || got[0].Time == got[0].Time.Round(0) {
		t.Errorf("%v, %v", got, err)
	}
}
