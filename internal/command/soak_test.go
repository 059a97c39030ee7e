//go:build soak

package command

import "testing"

// TestSoakRandom is the figure: ten thousand commands of random form, one answer
// each, and a record that agrees with the device to the last write.
func TestSoakRandom(t *testing.T) { random(t, 10_000) }
