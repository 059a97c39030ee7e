package bus

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// instantEndpoint answers reads at once, out of one buffer.
type instantEndpoint struct{ resp modbus.PDU }

func (e *instantEndpoint) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	return e.DoTimeout(ctx, unit, req, 0, 0)
}

func (e *instantEndpoint) DoTimeout(_ context.Context, _ modbus.UnitID, req modbus.PDU, _, _ time.Duration) (modbus.PDU, error) {
	n := int(binary.BigEndian.Uint16(req[3:]))
	if len(e.resp) != 2+2*n {
		e.resp = make(modbus.PDU, 2+2*n)
		e.resp[0], e.resp[1] = req[0], byte(2*n)
	}
	return e.resp, nil
}

// stepper is a bus whose polls the caller makes one by one.
func stepper(points []point.Point, emit func([]point.Sample)) *Bus {
	return New(tcpBus(1), []config.Device{dev("d", 1, points...)}, new(instantEndpoint), emit, quiet)
}

// poll makes one poll.
func (b *Bus) pollOnce(ctx context.Context) {
	for {
		b.admit()
		o, _ := b.next(b.now())
		b.do(ctx, o)
		b.finish(ctx, o)
		if len(b.devices[0].polls) == 0 {
			return
		}
	}
}

// A poll of 100 points costs no memory and little time beyond the wire.
func TestPollAllocatesNothing(t *testing.T) {
	got := 0
	b := stepper(registers(0, 100, point.Fastest), func(s []point.Sample) { got += len(s) })
	b.pollOnce(t.Context())
	least := 1.0 // what other goroutines of the process allocate is counted too
	for range 5 {
		least = min(least, testing.AllocsPerRun(100, func() { b.pollOnce(context.Background()) }))
	}
	if least > 0 {
		t.Errorf("%v allocations a poll", least)
	}
	if got < 10000 {
		t.Errorf("%d samples", got)
	}
}

func BenchmarkPoll100(b *testing.B) {
	for name, points := range map[string][]point.Point{
		"uint16":  registers(0, 100, point.Fastest),
		"scaled":  scaled(registers(0, 100, point.Fastest)),
		"1 point": registers(0, 1, point.Fastest),
	} {
		b.Run(name, func(b *testing.B) {
			bus := stepper(points, func([]point.Sample) {})
			b.ReportAllocs()
			for b.Loop() {
				bus.pollOnce(b.Context())
			}
		})
	}
}

func scaled(points []point.Point) []point.Point {
	for i := range points {
		points[i].Type = point.Int16
		points[i].Scale = point.Decimal{Mant: 1, Exp: -1}
	}
	return points
}
