package regmap

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// A read out of a map of 10,000 registers, a point each.
func BenchmarkRead(b *testing.B) {
	var s strings.Builder
	s.WriteString("buses: { plc: { tcp: 10.0.0.10:502 } }\ndevices: { d: { bus: plc, every: 1h, points: {\n")
	for i := range 10_000 {
		fmt.Fprintf(&s, "  p%d: { at: holding %d },\n", i, i)
	}
	s.WriteString("  } } }\nservers: [ { listen: tcp://127.0.0.1:0, map: {\n")
	for i := range 10_000 {
		fmt.Fprintf(&s, "  holding %d: d.p%d,\n", i, i)
	}
	s.WriteString("  } } ]\n")
	cfg, err := config.LoadBytes("bench", []byte(s.String()))
	if err != nil {
		b.Fatal(err)
	}
	image := NewImage(cfg.Servers)
	m := New(cfg.Servers[0], image, Gate{}, modbus.Identity{}, nil)
	now := time.Now()
	batch := make([]point.Sample, 10_000)
	for i := range batch {
		batch[i] = point.Sample{ID: cfg.Devices[0].Points[i].ID, Value: point.IntValue(int64(i)), Time: now}
	}
	image.Apply(now, batch)
	for _, n := range []uint16{1, 10, 125} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			req := modbus.ReadRequest(modbus.HoldingRegisters, 5000, n)
			for b.Loop() {
				if _, err := m.Do(context.Background(), 1, req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("emit", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			image.Apply(now, batch[:100])
		}
	})
}
