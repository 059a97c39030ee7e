//go:build soak

package test

import (
	"strconv"
	"testing"
	"time"
)

// TestSoakKillWhileCommanding is the figure: two hundred kills, no command done
// twice, none called done that was not.
func TestSoakKillWhileCommanding(t *testing.T) {
	for i := range 4 {
		t.Run(strconv.Itoa(i+1), func(t *testing.T) {
			t.Parallel()
			killCommands(t, 50)
		})
	}
}

// TestSoakEmergency is the figure: ten thousand stops, none later than the worst
// case of docs/safety.md and what a machine without other load adds. On four
// lines at once, which have nothing in common but the gateway, it takes about
// five minutes.
func TestSoakEmergency(t *testing.T) { emergencies(t, 4, 2500, 100*time.Millisecond) }
