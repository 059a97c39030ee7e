//go:build soak

package audit

import "testing"

// kills is how often TestKilled kills.
const kills = 200

// TestSoakKilled is TestKilled, often.
func TestSoakKilled(t *testing.T) { TestKilled(t) }
