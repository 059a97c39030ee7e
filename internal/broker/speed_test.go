package broker

import (
	"fmt"
	"io"
	"testing"
	"time"

	"fieldgate/internal/mqtt"
)

// A burst of messages, far more than the library's queue holds, reaches a
// subscriber that reads.
func TestBurst(t *testing.T) {
	for _, qos := range []byte{0, 1} {
		t.Run(fmt.Sprint("QoS ", qos), func(t *testing.T) {
			b := run(t, everybody(), "")
			p := connect(t, b.addr(), hello{id: "reader"})
			p.subscribe(qos, "#")
			const n = 10_000
			go func() {
				for i := range n {
					b.deliver(t, fmt.Sprintf("burst/%d", i), "12345678901234567890", qos, false)
				}
			}()
			for i := range n {
				if r := p.take(); r.topic != fmt.Sprintf("burst/%d", i) {
					t.Fatalf("message %d is %v; dropped %d", i, r, b.Stats().Dropped)
				}
			}
		})
	}
}

// So do bursts of several publishers at once.
func TestBursts(t *testing.T) {
	b := run(t, everybody(), "")
	p := connect(t, b.addr(), hello{id: "reader"})
	p.subscribe(1, "#")
	const publishers, each = 8, 1000
	for w := range publishers {
		var client *peer
		if w%2 == 1 {
			client = connect(t, b.addr(), hello{id: fmt.Sprint("p", w)})
		}
		go func() {
			for i := range each {
				if client == nil {
					b.deliver(t, fmt.Sprint(w), fmt.Sprint(i), 1, false)
				} else {
					client.write(publishPacket(4, fmt.Sprint(w), fmt.Sprint(i), 0, false, 0))
				}
			}
		}()
	}
	next := make(map[string]int)
	for range publishers * each {
		r := p.take()
		if r.payload != fmt.Sprint(next[r.topic]) {
			t.Fatalf("got %v, want %d; dropped %d", r, next[r.topic], b.Stats().Dropped)
		}
		next[r.topic]++
	}
}

func BenchmarkDeliver(b *testing.B) {
	payload := []byte(`{"value":25.4,"timestamp":"2025-11-05T14:30:15.123Z","unit":"C"}`)
	for _, subs := range []int{0, 1, 4} {
		for _, retain := range []bool{false, true} {
			b.Run(fmt.Sprintf("subscribers=%d/retain=%t", subs, retain), func(b *testing.B) {
				br := run(b, everybody(), "")
				for i := range subs {
					p := connect(b, br.addr(), hello{id: fmt.Sprint("s", i)})
					p.subscribe(0, "#")
					_ = p.conn.SetReadDeadline(time.Time{})
					go func() { _, _ = io.Copy(io.Discard, p.conn) }()
				}
				m := mqtt.Message{Topic: "site/boiler/temp", Payload: payload, Retain: retain}
				b.ReportAllocs()
				for b.Loop() {
					if err := br.Deliver(b.Context(), m); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(br.Stats().Dropped)/float64(b.N), "dropped/op")
			})
		}
	}
}
