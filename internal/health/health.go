// Package health is how a loop shows that it moves: it says when it goes to work
// and when it rests, and for how long at most. Who looks sees for how long it has
// been owing its next word. That costs the loop a store each time and nobody a
// wake-up.
//
// The type is Beat.
package health

import (
	"math"
	"sync/atomic"
	"time"
)

// origin is before every beat.
var origin = time.Now()

const never = math.MaxInt64

// Beat is the beat of one loop. The zero value is that of a loop that has not
// begun, which owes nothing. Only the loop itself may call Works, Rests, Waits
// and Stops; Overdue is for everybody.
type Beat struct {
	due atomic.Int64 // ns since origin; 0: not begun
}

// Works says that the loop is at work, which should not take long.
func (b *Beat) Works() { b.due.Store(int64(time.Since(origin)) + 1) }

// Rests says that the loop waits for something, and for no longer than limit.
func (b *Beat) Rests(limit time.Duration) {
	b.due.Store(int64(time.Since(origin)+limit) + 1)
}

// Waits says that the loop waits for what may never come: a request, a client.
func (b *Beat) Waits() { b.due.Store(never) }

// Stops says that the loop has ended.
func (b *Beat) Stops() { b.due.Store(never) }

// Overdue returns for how long the loop has been owing its next word: how long
// its work takes already, or how much too long it waits.
func (b *Beat) Overdue() time.Duration {
	due := b.due.Load()
	if due == 0 {
		return 0
	}
	return max(time.Since(origin)-time.Duration(due), 0)
}
