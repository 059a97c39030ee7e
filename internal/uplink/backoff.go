package uplink

import (
	"math/rand/v2"
	"time"
)

// Limits of the wait between two tries to connect.
const (
	waitLeast = time.Second
	waitMost  = 2 * time.Minute
	healthy   = time.Minute // a connection that lasts so long begins the waits again from waitLeast
)

// backoff says how long to wait before the next try: at random between nothing
// and a bound (full jitter), so that a thousand gateways do not come back to
// their broker at the same moment.
type backoff struct {
	least, most time.Duration

	since time.Time // of the first failure in a row
	bound time.Duration
}

// next returns the wait after a failure at now.
//
// While the network or the broker is away, the bound is a twentieth of the time
// that it has been: someone who restarts a broker for 20 s finds the gateway
// back within a second, one that is away for an hour is looked for every two
// minutes. So does a broker that let us in before and ends the connection instead
// of an answer. After a refusal (a wrong password, a bad certificate) the bound
// doubles with each try, because a retry is no cure and may lock an account.
func (b *backoff) next(now time.Time, refused bool) time.Duration {
	if b.since.IsZero() {
		b.since = now
	}
	away := now.Sub(b.since) / 20
	if refused {
		away = 2 * b.bound
	}
	b.bound = min(max(b.least, b.bound, away), b.most)
	return rand.N(b.bound)
}

// reset is called once a connection has proved itself.
func (b *backoff) reset() { b.since, b.bound = time.Time{}, 0 }
