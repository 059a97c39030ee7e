package broker

import (
	"errors"
	"log/slog"
	"path/filepath"
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

// A broker that cannot take the place of another says that it is closed to those
// who have it already.
func TestSucceedsInVain(t *testing.T) {
	first := run(t, everybody(), t.TempDir())
	cfg := everybody()
	cfg.Persist = true
	next, err := first.Succeed(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Begin(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Fatal("its file is in a folder that is not there")
	}
	if err := next.Deliver(t.Context(), mqtt.Message{Topic: "t"}); !errors.Is(err, ErrClosed) {
		t.Errorf("Deliver = %v", err)
	}
	if _, err := next.Subscribe("t", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Subscribe = %v", err)
	}
	if _, ok := next.Retained("t"); ok {
		t.Error("something is retained")
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}
