package broker

import (
	"testing"

	"fieldgate/internal/mqtt"
	"fieldgate/internal/mqtt/sinktest"
)

func TestSink(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Peer {
		b := run(t, everybody(), t.TempDir())
		p := connect(t, b.addr(), hello{id: "other end"})
		if c := p.subscribe(1, "sinktest/#"); c[0] != 1 {
			t.Fatalf("SUBACK % x", c)
		}
		return sinktest.Peer{
			Sink: b,
			Received: func(t *testing.T, n int) []mqtt.Message {
				var got []mqtt.Message
				for range n {
					r := p.take()
					got = append(got, mqtt.Message{Topic: r.topic, Payload: []byte(r.payload), QoS: r.qos, Retain: r.retain})
				}
				return got
			},
			Close: func() error { b.stop(); return nil },
		}
	})
}
