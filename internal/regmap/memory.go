package regmap

import (
	"context"
	"fmt"
	"sync"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Memory stands for the gateway behind maps that are to be tried without it: its
// points have values that nobody polls, which stay until a client writes them.
type Memory struct {
	// OnWrite is told each value that a client wrote. Set it before the maps
	// are served; it is called by one client at a time. Nil: nobody is.
	OnWrite func(by string, w Write)

	image *Image
	mu    sync.Mutex
}

// NewMemory returns the memory of all points that servers show, each 0, off,
// the empty text, the first text of its map, or now.
func NewMemory(servers []config.Server) *Memory {
	m := &Memory{image: NewImage(servers)}
	for _, s := range servers {
		for i := range s.Map {
			if e := &s.Map[i]; e.Show == config.ShowValue {
				m.Set(e.Point.ID, zero(&e.Point))
			}
		}
	}
	return m
}

// zero returns what a point begins with.
func zero(p *point.Point) point.Value {
	switch {
	case p.Type == point.Datetime:
		return point.TextValue(point.Timestamp(time.Now()))
	case p.Type == point.String:
		return point.TextValue("")
	case p.Type == point.Bytes:
		return point.TextValue(fmt.Sprintf("%0*x", 4*p.Length, 0))
	case p.Map != nil:
		return point.TextValue(p.Map[0].Text)
	case p.Type == point.Bool:
		return point.BoolValue(false)
	}
	return point.IntValue(0)
}

// Image returns the image for the maps.
func (m *Memory) Image() *Image { return m.image }

// Set gives a point a value.
func (m *Memory) Set(id point.ID, v point.Value) {
	now := time.Now()
	m.image.Apply(now, []point.Sample{{ID: id, Value: v, Time: now}})
}

// Gate returns the gate of the maps: every write is done, no device pauses, and
// there are no buses.
func (m *Memory) Gate() Gate {
	return Gate{
		Write: func(_ context.Context, by string, writes []Write) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			for _, w := range writes {
				m.Set(w.ID, w.Value)
				if m.OnWrite != nil {
					m.OnWrite(by, w)
				}
			}
			return nil
		},
		Pause:  func(string, string, time.Duration) error { return nil },
		Paused: func(string) time.Duration { return 0 },
		Bus:    func(string) modbus.Endpoint { return noBus{} },
		Record: func(context.Context, Passage) error { return nil },
	}
}

// noBus is the way to a bus that is not there.
type noBus struct{}

// Do implements modbus.Endpoint.
func (noBus) Do(context.Context, modbus.UnitID, modbus.PDU) (modbus.PDU, error) {
	return nil, modbus.GatewayPathUnavailable
}
