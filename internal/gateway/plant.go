package gateway

import (
	"context"

	"fieldgate/internal/bus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
	"fieldgate/internal/uplink"
	"fieldgate/internal/virtual"
)

// plant is all points that can be read and written, on a bus or in memory. It is
// safe for use by several goroutines.
type plant struct {
	buses   *bus.Set
	virtual *virtual.Set
}

// Write writes v to the point id, see bus.Write: it returns once the device has
// answered, for a point in memory at once.
func (p *plant) Write(ctx context.Context, id point.ID, v point.Value) error {
	if p.virtual.Has(id) {
		return p.virtual.Write(ctx, id, v)
	}
	return p.buses.Write(ctx, id, v)
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
	read, err := p.buses.Read(ctx, field...)
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
