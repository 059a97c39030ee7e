package command

import (
	"context"
	"errors"
	"slices"
)

// turn is an order's place in the lines of its devices. It is ready when it
// stands first in all of them. Since it is put into all of them at once, no two
// orders can wait for each other.
type turn struct {
	lines []string
	ready chan struct{}
}

// urgent is added to a device's name for the line of its emergencies. No name
// holds it.
const urgent = "\x00"

// take puts an order in line, or returns false where a line is full.
// mu is held.
func (d *Desk) take(devices []string, emergency bool) (*turn, bool) {
	t := &turn{ready: make(chan struct{})}
	most := maxPerDevice
	for _, name := range devices {
		if emergency {
			name += urgent
			most = maxUrgent
		}
		if len(d.turns[name]) >= most {
			return nil, false
		}
		t.lines = append(t.lines, name)
	}
	for _, name := range t.lines {
		d.turns[name] = append(d.turns[name], t)
	}
	d.check(t)
	return t, true
}

// check makes t ready if it is first in all its lines. mu is held.
func (d *Desk) check(t *turn) {
	for _, name := range t.lines {
		if d.turns[name][0] != t {
			return
		}
	}
	select {
	case <-t.ready:
	default:
		close(t.ready)
	}
}

// leave takes t out of its lines, whose next may be ready then.
func (d *Desk) leave(t *turn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.quit(t)
}

// quit is leave with mu held.
func (d *Desk) quit(t *turn) {
	for _, name := range t.lines {
		line := d.turns[name]
		for i, other := range line {
			if other == t {
				line = append(line[:i:i], line[i+1:]...)
				break
			}
		}
		if len(line) == 0 {
			delete(d.turns, name)
		} else {
			d.turns[name] = line
		}
	}
	for _, name := range t.lines {
		if line := d.turns[name]; len(line) > 0 {
			d.check(line[0])
		}
	}
}

// wait returns nil when it is t's turn, else ctx's error.
func (t *turn) wait(ctx context.Context) error {
	select {
	case <-t.ready:
		return nil
	default:
	}
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// of reports whether t waits for the emergencies of a device.
func (t *turn) of(device string) bool { return slices.Contains(t.lines, device+urgent) }

// errOvertaken is why an order is not done for whose device an emergency came
// after it: the start that was asked for before the stop.
var errOvertaken = errors.New("not written, an emergency for its device came after it")

// errCutShort is why nobody waited for the answer to a write that was on the wire.
var errCutShort = errors.New("an emergency for its device came before the answer to the write")

// writeUnderWay is a write that is handed to the field.
type writeUnderWay struct {
	device string
	cancel context.CancelFunc
}

// handOver makes the context of a write that is not an emergency. It ends when
// an emergency for the device comes: then the write is not sent, unless it is on
// the wire already, before the emergency. ok is false if one has come.
func (d *Desk) handOver(ctx context.Context, j *job, device string) (limit context.Context, done func(), ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.urgent[device] > j.serial {
		return ctx, func() {}, false
	}
	limit, cancel := context.WithCancel(ctx)
	w := &writeUnderWay{device, cancel}
	d.writing[w] = true
	return limit, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.writing, w)
		cancel()
	}, true
}

// overtaken reports whether an emergency for the device came after the order.
func (d *Desk) overtaken(j *job, device string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.urgent[device] > j.serial
}

// overtake ends what came before the emergency j for its devices: writes that
// are not on the wire, and values that are written again. mu is held.
func (d *Desk) overtake(j *job) {
	for _, device := range devices(j.writes) {
		d.urgent[device] = j.serial
		for w := range d.writing {
			if w.device == device {
				w.cancel()
			}
		}
		for _, p := range d.book.Load().points { // a value held may sleep while its point has no reassert
			if p.device.Name == device {
				p.hold = holding{}
			}
		}
	}
}
