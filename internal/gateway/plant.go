package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"fieldgate/internal/bus"
	"fieldgate/internal/modbus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
	"fieldgate/internal/uplink"
	"fieldgate/internal/virtual"
)

// plant is all points that can be read and written, on a bus or in memory. It is
// safe for use by several goroutines.
type plant struct {
	virtual *virtual.Set

	mu    sync.Mutex
	buses *bus.Set
	other chan struct{} // closed when buses are others; nil before the first
}

// set returns the buses.
func (p *plant) set() *bus.Set {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.buses
}

// setBuses puts other buses in place.
func (p *plant) setBuses(buses *bus.Set) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.other != nil {
		close(p.other)
	}
	p.buses, p.other = buses, make(chan struct{})
}

// with calls f with the buses. What comes to a bus that is just being replaced,
// and is not sent there any more, waits for the one that follows.
func (p *plant) with(ctx context.Context, f func(*bus.Set) error) error {
	for {
		p.mu.Lock()
		buses, other := p.buses, p.other
		p.mu.Unlock()
		err := f(buses)
		if !errors.Is(err, bus.ErrStopped) {
			return err
		}
		select {
		case <-other:
		case <-ctx.Done():
			return err
		}
	}
}

// passage is the way to the bus of a name, whichever that is.
type passage struct {
	plant *plant
	bus   string
}

// Do implements modbus.Endpoint.
func (p passage) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (resp modbus.PDU, err error) {
	err = p.plant.with(ctx, func(buses *bus.Set) (err error) {
		b := buses.Bus(p.bus)
		if b == nil {
			return fmt.Errorf("bus %s: %w", p.bus, modbus.ErrNotConnected) // the map is about to go, too
		}
		resp, err = b.Do(ctx, unit, req)
		return err
	})
	return resp, err
}

// Write writes v to the point id, see bus.Write: it returns once the device has
// answered, for a point in memory at once.
func (p *plant) Write(ctx context.Context, id point.ID, v point.Value) error {
	if p.virtual.Has(id) {
		return p.virtual.Write(ctx, id, v)
	}
	return p.with(ctx, func(buses *bus.Set) error { return buses.Write(ctx, id, v) })
}

// Read reads points, see bus.Read. The samples are in the order of ids.
func (p *plant) Read(ctx context.Context, ids ...point.ID) ([]point.Sample, error) {
	var field, memory []point.ID
	for _, id := range ids {
		if p.virtual.Has(id) {
			memory = append(memory, id)
		} else {
			field = append(field, id)
		}
	}
	held, err := p.virtual.Read(ctx, memory...)
	if err != nil || len(field) == 0 {
		return held, err
	}
	var read []point.Sample
	err = p.with(ctx, func(buses *bus.Set) (err error) {
		read, err = buses.Read(ctx, field...)
		return err
	})
	if read == nil || len(memory) == 0 {
		return read, err
	}
	samples := make([]point.Sample, 0, len(ids))
	for _, id := range ids {
		if p.virtual.Has(id) {
			samples, held = append(samples, held[0]), held[1:]
		} else {
			samples, read = append(samples, read[0]), read[1:]
		}
	}
	return samples, err
}

// feeds returns what an uplink, or the embedded broker, is to bring for points
// in memory.
func (g *Gateway) feeds(via string) (subs []uplink.Subscription) {
	take := func(m mqtt.Message, _ mqtt.Origin) <-chan struct{} {
		g.plant.virtual.Take(m.Topic, via, m.Payload, m.Retain)
		return nil
	}
	for _, t := range g.plant.virtual.Topics() {
		for _, from := range t.From {
			if from == via {
				subs = append(subs, uplink.Subscription{Filter: mqtt.Filter(t.Name), QoS: 1, Handle: take})
			}
		}
	}
	return subs
}
