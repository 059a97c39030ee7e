package publish

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/pipeline"
	"fieldgate/internal/point"
)

// nowhere is a sink that counts.
type nowhere struct{ messages, bytes int }

func (n *nowhere) Deliver(_ context.Context, msgs ...mqtt.Message) error {
	n.messages += len(msgs)
	for i := range msgs {
		n.bytes += len(msgs[i].Payload)
	}
	return nil
}

// plant is devices of the same number of points, all int16 scaled by 0.1.
func plant(devices, points int) []config.Device {
	ds := make([]config.Device, devices)
	for d := range ds {
		ds[d] = config.Device{Name: fmt.Sprintf("device%d", d), Bus: "plc", Unit: modbus.UnitID(d + 1)}
		for i := range points {
			ds[d].Points = append(ds[d].Points, point.Point{
				ID:    point.ID(fmt.Sprintf("device%d.point%d", d, i)),
				Table: modbus.InputRegisters, Address: uint16(i), Type: point.Int16,
				Scale: point.Decimal{Mant: 1, Exp: -1}, Unit: "°C", Every: point.Interval(time.Second),
			})
		}
	}
	return ds
}

// BenchmarkPipelineToSink measures the way of a sample from Emit to Deliver for
// a hundred devices of a hundred points, every value new at every poll.
func BenchmarkPipelineToSink(b *testing.B) {
	change := config.When{AnyChange: true, AtLeast: 5 * time.Minute}
	for _, c := range []struct {
		name string
		rule config.Rule
	}{
		{"batch", config.Rule{Points: []string{"*"}, Topic: "{site}/{device}", Payload: config.Batch, When: change}},
		{"json", config.Rule{Points: []string{"*"}, Topic: "{site}/{device}/{point}", When: change}},
		{"raw", config.Rule{Points: []string{"*"}, Topic: "{site}/{device}/{point}", Payload: config.Raw, When: change}},
		{"band", config.Rule{Points: []string{"*"}, Topic: "{site}/{device}/{point}", When: config.When{Band: point.Decimal{Mant: 1, Exp: 3}}}},
	} {
		b.Run(c.name, func(b *testing.B) {
			const devices, points = 100, 100
			plant := plant(devices, points)
			line := pipeline.New()
			feed := line.Subscribe("publish", 4)
			sink := new(nowhere)
			p := newPublisher(config.Site{ID: "site"}, []config.Rule{c.rule}, plant, map[string]mqtt.Sink{"cloud": sink}, slog.New(slog.DiscardHandler))
			batches := make([][]point.Sample, devices)
			for d := range batches {
				for _, pt := range plant[d].Points {
					batches[d] = append(batches[d], point.Sample{ID: pt.ID})
				}
			}
			at := time.Date(2025, 11, 5, 14, 30, 15, 0, time.UTC)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				batch := batches[i%devices]
				at = at.Add(10 * time.Millisecond)
				for j := range batch {
					batch[j].Value = point.DecimalValue(point.Decimal{Mant: int64(2000 + (i/devices+j*7)%1000), Exp: -1})
					batch[j].Time = at
				}
				line.Emit(batch)
				p.take(p.now(), <-feed.C())
				p.flush(context.Background())
				i++
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/points, "ns/point")
			b.ReportMetric(float64(sink.messages)/float64(b.N), "msgs/poll")
		})
	}
}

// BenchmarkNew measures what a start costs with 10,000 points.
func BenchmarkNew(b *testing.B) {
	devices := plant(100, 100)
	rules := []config.Rule{{Points: []string{"*"}, Topic: "{site}/{device}/{point}"}}
	b.ReportAllocs()
	for b.Loop() {
		newPublisher(config.Site{ID: "site"}, rules, devices, nil, slog.New(slog.DiscardHandler))
	}
}
