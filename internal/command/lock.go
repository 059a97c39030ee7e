package command

import (
	"errors"
	"fmt"
	"time"

	"fieldgate/internal/point"
)

// locked says why a point may not be written now: someone on site has turned the
// key that locks everybody else out, or it cannot be seen whether. "" if it may.
// The lock itself may be written, where its own settings let it: else nobody
// could open one that is a virtual point.
func (d *Desk) locked(id point.ID) string {
	b := d.book.Load()
	lock := b.rules.Lock
	if lock == "" || id == lock {
		return ""
	}
	s, ok := d.o.Last(lock)
	if !ok || s.Quality == point.Bad || b.lockAge > 0 && time.Since(s.Time) > b.lockAge {
		return fmt.Sprintf("it cannot be seen whether %s locks it on site", lock)
	}
	if on, ok := s.Value.Float64(); !ok || on != 0 {
		return fmt.Sprintf("locked on site by %s", lock)
	}
	return ""
}

// errLocked is why a write was not made for which the key was turned after its
// order had been let through.
var errLocked = errors.New("locked on site")

// checkLock holds an order against the lock.
func (d *Desk) checkLock(j *job) Result {
	if j.emergency {
		return Result{}
	}
	for i := range j.writes {
		if why := d.locked(j.writes[i].place.point.ID); why != "" {
			return refusal(byLock, "%s", why)
		}
	}
	return Result{}
}
