// Package flash keeps the ledger of what the gateway writes to its disk: bytes
// and syncs, since the start, in the last hour and in the last day. A card dies
// of what is written to it, so whoever writes for long keeps one, and …/stats
// shows the sum. WriteFile writes a small file whole.
//
// The type is Ledger.
package flash

import (
	"sync"
	"time"
)

// Figures is what was written in some time.
type Figures struct {
	Bytes int64 `json:"bytes"`
	Syncs int64 `json:"syncs"` // times the disk was asked to finish
}

// Add returns the sum of f and o.
func (f Figures) Add(o Figures) Figures { return Figures{f.Bytes + o.Bytes, f.Syncs + o.Syncs} }

// Report is what a ledger says.
type Report struct {
	Total Figures `json:"total"`     // since the start
	Hour  Figures `json:"last_hour"` // to the minute
	Day   Figures `json:"last_day"`  // to the quarter of an hour
}

// Add returns the sum of r and o.
func (r Report) Add(o Report) Report {
	return Report{r.Total.Add(o.Total), r.Hour.Add(o.Hour), r.Day.Add(o.Day)}
}

// A window is cut into slots: the last hour into minutes, the last day into
// quarters of an hour.
const (
	hourSlots = 60
	daySlots  = 96
	minute    = time.Minute
	quarter   = 15 * time.Minute
)

// Ledger counts writes. The zero value is an empty one. It is safe for use by
// several goroutines; its time is the monotonic clock's.
type Ledger struct {
	mu    sync.Mutex
	start time.Time // of the first entry
	total Figures
	hour  [hourSlots]slot
	day   [daySlots]slot
}

// slot is one minute or quarter of an hour.
type slot struct {
	Figures
	n int64 // which one it is, counted from the start
}

// Add enters bytes written and syncs.
func (l *Ledger) Add(bytes, syncs int64) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.start.IsZero() {
		l.start = now
	}
	f := Figures{bytes, syncs}
	l.total = l.total.Add(f)
	enter(l.hour[:], int64(now.Sub(l.start)/minute), f)
	enter(l.day[:], int64(now.Sub(l.start)/quarter), f)
}

func enter(slots []slot, n int64, f Figures) {
	s := &slots[n%int64(len(slots))]
	if s.n != n {
		*s = slot{n: n}
	}
	s.Figures = s.Figures.Add(f)
}

// Report returns what has been entered so far.
func (l *Ledger) Report() Report {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.start.IsZero() {
		return Report{}
	}
	return Report{
		Total: l.total,
		Hour:  window(l.hour[:], int64(now.Sub(l.start)/minute)),
		Day:   window(l.day[:], int64(now.Sub(l.start)/quarter)),
	}
}

// window adds up the slots that end with number n.
func window(slots []slot, n int64) (sum Figures) {
	for _, s := range slots {
		if s.n > n-int64(len(slots)) {
			sum = sum.Add(s.Figures)
		}
	}
	return sum
}
