package gateway

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"fieldgate/internal/bus"
)

// stuckAfter is how long a part may owe its next step until it counts as stuck;
// stuckSlow the same of one whose step a disk, a port or a network may hold up.
const (
	stuckAfter = 15 * time.Second
	stuckSlow  = 2 * time.Minute
)

// moving is a part that shows that it moves.
type moving struct {
	name  string
	part  interface{ Overdue() time.Duration }
	limit time.Duration
}

// moving returns the parts whose loops might get stuck. One that is told to do
// something by others alone, as the audit log and the bridges are, is not among
// them: who waits for it has a limit.
func (g *Gateway) moving() []moving {
	a := g.now.Load()
	all := []moving{
		{"clock", g.clock, stuckSlow},
		{"publish", a.publish, stuckAfter},
		{"status", &g.herald.beat, stuckSlow},
		{"alarms", &g.siren.beat, stuckSlow},
		{"virtual", g.plant.virtual, stuckSlow},
	}
	for _, w := range a.wires {
		all = append(all, moving{"bus " + w.name, w.bus, stuckAfter}, moving{"line " + w.name, w.line, stuckSlow})
	}
	for _, w := range a.ways {
		all = append(all, moving{"queue " + w.name, w.queue, stuckSlow}, moving{"uplink " + w.name, w.uplink, stuckSlow})
	}
	if b := a.broker.Broker; b != nil {
		all = append(all, moving{"broker", b, stuckSlow})
	}
	if d := a.desk.Desk; d != nil {
		all = append(all, moving{"commands", d, stuckAfter})
	}
	for _, s := range a.servers {
		all = append(all, moving{"server " + s.Name(), s, stuckSlow})
	}
	return all
}

// Healthy returns nil while every part of the gateway moves: what waits for a
// device, a broker or a disk does; what has not come to its next step long after
// it should have does not, and only a new start helps. The error names it. It
// may be called while Run runs and never blocks.
func (g *Gateway) Healthy() error {
	var stuck []error
	for _, m := range g.moving() {
		if owes := m.part.Overdue(); owes > m.limit {
			stuck = append(stuck, fmt.Errorf("%s has not moved for %v", m.name, owes.Truncate(time.Second)))
		}
	}
	return errors.Join(stuck...)
}

// Summary says in a line how the gateway stands: buses that have a wire, devices
// that answer, uplinks that are connected, alarms that are raised. It may be
// called while Run runs.
func (g *Gateway) Summary() string {
	a := g.now.Load()
	var wires, devices, answer, up int
	for _, w := range a.wires {
		s := w.bus.Status()
		if s.Connected {
			wires++
		}
		for _, d := range s.Devices {
			if devices++; d.State == bus.Online {
				answer++
			}
		}
	}
	for _, w := range a.ways {
		if w.uplink.Connected() {
			up++
		}
	}
	text := fmt.Sprintf("%d/%d buses, %d/%d devices, %d/%d uplinks", wires, len(a.wires), answer, devices, up, len(a.ways))
	if n := len(g.siren.status()); n > 0 {
		text += fmt.Sprintf(", alarms: %d", n)
	}
	return text
}

// Ready returns nil once the configuration is at work and every device that is
// polled has been, with or without an answer. The error says what is waited for.
func (g *Gateway) Ready() error {
	var waited []string
	for _, w := range g.now.Load().wires {
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
