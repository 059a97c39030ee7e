package line

import (
	"time"

	"fieldgate/internal/config"
)

const (
	// firstRight is how many answers in a row make one at a time two.
	firstRight = 8
	// penaltyMin and penaltyMax bound how long the window stays at one after a
	// slip; the time doubles with each.
	penaltyMin = time.Minute
	penaltyMax = time.Hour
)

// window is how many requests may be on their way at once. A fixed one only
// keeps the number. With in_flight auto it doubles as long as answers to
// requests that overlapped come under the right ids, and falls to one at the
// first that does not. Pure but for the times it is given.
type window struct {
	size    int
	auto    bool
	proven  bool      // fully grown: the device keeps its ids apart
	score   int       // right answers since size changed
	until   time.Time // no growth before
	penalty time.Duration
}

func newWindow(inFlight int) window {
	if inFlight == config.InFlightAuto {
		return window{size: 1, auto: true}
	}
	return window{size: min(max(inFlight, 1), mostInFlight)}
}

// right notes an answer that came as it should; overlapped says that another
// request was on its way at the same time.
func (w *window) right(overlapped bool, now time.Time) {
	if !w.auto || w.proven || w.size > 1 && !overlapped || now.Before(w.until) {
		return
	}
	w.score++
	if w.size == 1 && w.score < firstRight || w.size > 1 && w.score < 4*w.size {
		return
	}
	w.score = 0
	if w.proven = w.size == mostInFlight; !w.proven {
		w.size *= 2
	}
}

// slip notes that the device lost a request, or mixed up two.
func (w *window) slip(now time.Time) {
	if !w.auto {
		return
	}
	if w.size > 1 {
		w.penalty = min(max(2*w.penalty, penaltyMin), penaltyMax)
		w.until = now.Add(w.penalty)
	}
	w.size, w.score, w.proven = 1, 0, false
}

// trial reports whether answers of requests that overlapped are not to be
// believed one by one yet.
func (w *window) trial() bool { return w.auto && !w.proven }
