package bridge

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt/mosquittotest"
)

// BenchmarkSafe measures what a PUBACK costs that means safe: clients publish
// with QoS 1, each the next message once the one before is acknowledged.
func BenchmarkSafe(b *testing.B) {
	for _, away := range []bool{false, true} {
		for _, clients := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("away=%t/clients=%d", away, clients), func(b *testing.B) {
				url := "mqtt://127.0.0.1:1"
				if !away {
					url = mosquittotest.Start(b, mosquittotest.Options{}).URL()
				}
				s := open(b, "gw1")
				s.bridgeTo(url, config.Queue{Commit: time.Second}, config.BridgeRule{Out: true, Filter: "#", QoS: 1})
				if !away {
					s.connected()
				}
				took := make([][]time.Duration, clients)
				var all sync.WaitGroup
				begin := make(chan struct{})
				for i := range clients {
					c := s.client(fmt.Sprint("client", i))
					all.Go(func() {
						<-begin
						for range max(1, b.N/clients) {
							start := time.Now()
							publish(b, c, "machines/count", "20 bytes of payload.", 1, false)
							took[i] = append(took[i], time.Since(start))
						}
					})
				}
				before := s.queue.Stats().Flash.Total
				b.ResetTimer()
				close(begin)
				all.Wait()
				b.StopTimer()
				every := slices.Concat(took...)
				slices.Sort(every)
				after := s.queue.Stats().Flash.Total
				n := float64(len(every))
				b.ReportMetric(n/b.Elapsed().Seconds(), "msg/s")
				b.ReportMetric(float64(every[len(every)*99/100].Microseconds())/1000, "p99-ms")
				b.ReportMetric(float64(after.Syncs-before.Syncs)/n, "syncs/msg")
				b.ReportMetric(float64(after.Bytes-before.Bytes)/n, "B-written/msg")
			})
		}
	}
}
