//go:build soak

package torture

import (
	"testing"
	"time"
)

// TestSoakTorture is the figure: a million polls, none wrong.
func TestSoakTorture(t *testing.T) { torture(t, wires(), 1_000_000, 40*time.Minute) }
