//go:build !soak

package audit

// kills is how often TestKilled kills.
const kills = 10
