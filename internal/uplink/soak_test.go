//go:build soak

package uplink

import "testing"

// TestSoakCutWhileConnecting cuts a connection at every third byte of the first
// 1,200 that go up and that come down.
func TestSoakCutWhileConnecting(t *testing.T) { cutWhileConnecting(t, 800, 3) }
