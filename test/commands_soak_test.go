//go:build soak

package test

import "testing"

// TestSoakKillWhileCommanding is the figure: two hundred kills, no command done
// twice, none called done that was not.
func TestSoakKillWhileCommanding(t *testing.T) {
	t.Parallel()
	killCommands(t, 200)
}

// TestSoakEmergency is the figure: ten thousand stops, none later than the worst
// case of docs/safety.md.
func TestSoakEmergency(t *testing.T) {
	t.Parallel()
	emergencies(t, 10_000)
}
