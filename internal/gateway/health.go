package gateway

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"fieldgate/internal/bus"
)

// stuckAfter is how long a part may owe its next step until it counts as stuck.
// A disk may take its time with a queue's file.
const (
	stuckAfter = 15 * time.Second
	stuckDisk  = 2 * time.Minute
)

// Healthy returns nil while every part of the gateway moves: what waits for a
// device, a broker or a disk does; what has not come to its next step long after
// it should have does not, and only a new start helps. The error names it. It
// may be called while Run runs.
func (g *Gateway) Healthy() error {
	var stuck []error
	check := func(name string, overdue, limit time.Duration) {
		if overdue > limit {
			stuck = append(stuck, fmt.Errorf("%s has not moved for %v", name, overdue.Truncate(time.Second)))
		}
	}
	for _, w := range g.wires {
		check("bus "+w.name, w.bus.Overdue(), stuckAfter)
	}
	check("publish", g.publish.Overdue(), stuckAfter)
	for _, w := range g.ways {
		check("queue "+w.name, w.queue.Overdue(), stuckDisk)
	}
	if g.broker != nil {
		check("broker", g.broker.Overdue(), stuckDisk)
	}
	check("status", g.herald.beat.Overdue(), stuckDisk)
	check("alarms", g.siren.beat.Overdue(), stuckDisk)
	return errors.Join(stuck...)
}

// Ready returns nil once the configuration is at work and every device that is
// polled has been, with or without an answer. The error says what is waited for.
func (g *Gateway) Ready() error {
	var waited []string
	for _, w := range g.wires {
		for _, d := range w.bus.Status().Devices {
			if d.State == bus.Unknown && d.Reads > 0 {
				waited = append(waited, d.Name)
			}
		}
	}
	slices.Sort(waited)
	const most = 5
	switch n := len(waited); {
	case n > most:
		return fmt.Errorf("waiting for the first poll of %s and %d more devices", strings.Join(waited[:most], ", "), n-most)
	case n > 0:
		return fmt.Errorf("waiting for the first poll of %s", strings.Join(waited, ", "))
	}
	return nil
}
