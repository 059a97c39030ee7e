package uplink

import (
	"syscall"
	"testing"
	"time"

	"fieldgate/internal/mqtt"
	"fieldgate/internal/mqtt/mosquittotest"
)

// BenchmarkDrain empties a queue to mosquitto on loopback. It reports messages
// per second and the CPU time of this process per message, putting in included.
func BenchmarkDrain(b *testing.B) {
	payload := []byte(`{"value":25.4,"timestamp":"2025-11-05T14:30:15.123Z","unit":"°C"}`)
	for _, qos := range []uint8{0, 1, 2} {
		b.Run([]string{"QoS0", "QoS1", "QoS2"}[qos], func(b *testing.B) {
			broker := mosquittotest.Start(b, mosquittotest.Options{})
			r := run(b, settings(broker.URL()), nil)
			r.connected(b)
			batch := make([]mqtt.Message, 100)
			for i := range batch {
				batch[i] = mqtt.Message{Topic: "gw1/boiler/temp", Payload: payload, QoS: qos}
			}
			b.ResetTimer()
			cpu := cpuTime(b)
			for n := 0; n < b.N; n += len(batch) {
				for r.q.Stats().Bytes > 32<<20 {
					time.Sleep(time.Millisecond)
				}
				if err := r.q.Deliver(b.Context(), batch[:min(len(batch), b.N-n)]...); err != nil {
					b.Fatal(err)
				}
			}
			for r.q.Stats().Messages > 0 {
				time.Sleep(100 * time.Microsecond)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
			b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/1000/float64(b.N), "cpu-µs/msg")
		})
	}
}

// BenchmarkPaced puts in a hundred messages every 10 ms, as a hundred devices
// with a hundred points each at 1 s do with one message a point.
func BenchmarkPaced(b *testing.B) {
	broker := mosquittotest.Start(b, mosquittotest.Options{})
	r := run(b, settings(broker.URL()), nil)
	r.connected(b)
	batch := make([]mqtt.Message, 100)
	for i := range batch {
		batch[i] = mqtt.Message{Topic: "gw1/boiler/temp", Payload: make([]byte, 65), QoS: 1}
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	b.ResetTimer()
	cpu := cpuTime(b)
	for n := 0; n < b.N; n += len(batch) {
		<-tick.C
		if err := r.q.Deliver(b.Context(), batch...); err != nil {
			b.Fatal(err)
		}
	}
	for r.q.Stats().Messages > 0 {
		time.Sleep(time.Millisecond)
	}
	b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/1000/float64(b.N), "cpu-µs/msg")
}

func cpuTime(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
