package bus

import (
	"context"
	"fmt"
	"time"

	"fieldgate/internal/point"
)

// Set is the buses of a gateway, by their devices. The zero value has none. Its
// methods are safe for use by several goroutines.
type Set struct {
	buses []*Bus
	of    map[string]*Bus // by device
}

// NewSet returns the set of buses. No device may be on two of them.
func NewSet(buses ...*Bus) *Set {
	s := &Set{buses: buses, of: make(map[string]*Bus)}
	for _, b := range buses {
		for _, d := range b.devices {
			s.of[d.cfg.Name] = b
		}
	}
	return s
}

// Write writes v to the point id on its bus, see Bus.Write.
func (s *Set) Write(ctx context.Context, id point.ID, v point.Value) error {
	b := s.of[id.Device()]
	if b == nil {
		return fmt.Errorf("write %s: %w", id, ErrUnknownPoint)
	}
	return b.Write(ctx, id, v)
}

// Read reads points on their buses, see Bus.Read, on one bus after the other.
// The samples are in the order of ids.
func (s *Set) Read(ctx context.Context, ids ...point.ID) ([]point.Sample, error) {
	samples := make([]point.Sample, len(ids))
	where := make(map[*Bus][]int)
	var order []*Bus
	for n, id := range ids {
		b := s.of[id.Device()]
		if b == nil {
			return nil, fmt.Errorf("read %s: %w", id, ErrUnknownPoint)
		}
		if where[b] == nil {
			order = append(order, b)
		}
		where[b] = append(where[b], n)
	}
	var failed error
	for _, b := range order {
		part := make([]point.ID, len(where[b]))
		for k, n := range where[b] {
			part[k] = ids[n]
		}
		got, err := b.Read(ctx, part...)
		if err != nil && failed == nil {
			failed = err
		}
		for k, n := range where[b] {
			samples[n] = got[k]
		}
	}
	return samples, failed
}

// Pause stops the polling of a device for a time, see Bus.Pause.
func (s *Set) Pause(device string, d time.Duration) error {
	b := s.of[device]
	if b == nil {
		return fmt.Errorf("pause: no bus has a device %s", device)
	}
	return b.Pause(device, d)
}

// Paused returns for how long the polling of a device still pauses.
func (s *Set) Paused(device string) time.Duration {
	if b := s.of[device]; b != nil {
		return b.Paused(device)
	}
	return 0
}

// Bus returns the bus of a name, nil if there is none.
func (s *Set) Bus(name string) *Bus {
	for _, b := range s.buses {
		if b.cfg.Name == name {
			return b
		}
	}
	return nil
}

// Status returns the status of each bus, in the order of NewSet.
func (s *Set) Status() []Status {
	all := make([]Status, len(s.buses))
	for i, b := range s.buses {
		all[i] = b.Status()
	}
	return all
}
