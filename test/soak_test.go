//go:build soak

package test

import "testing"

// TestSoakKillWhileBridging is the figure: two hundred kills, nothing lost.
func TestSoakKillWhileBridging(t *testing.T) { killLoop(t, 200) }
