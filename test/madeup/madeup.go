// Package madeup runs made-up devices in a test.
package madeup

import (
	"context"
	"testing"

	"fieldgate/internal/simulate"
)

// Run runs the devices of p until the test ends.
func Run(t testing.TB, p *simulate.Plant) {
	t.Helper()
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }() // ends with ctx
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
