package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/queue"
)

// waitFor leaves messages in the queue of an uplink, as a gateway does that is
// stopped while the uplink is away.
func waitFor(t *testing.T, dir, uplink string, msgs ...mqtt.Message) {
	t.Helper()
	q, stop := runQueue(t, dir, uplink)
	if err := q.Deliver(t.Context(), msgs...); err != nil {
		t.Fatal(err)
	}
	stop()
}

func runQueue(t *testing.T, dir, uplink string) (*queue.Queue, func()) {
	t.Helper()
	q, err := queue.Open(dir, uplink, config.Queue{Commit: time.Second}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = q.Run(ctx) })
	return q, func() {
		cancel()
		wg.Wait()
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestQueue runs the script of testdata/queue. DIR stands for a data directory with
// a few messages, RUNNING for that of a gateway that runs, EMPTY for one without a
// queue, TIME for a time.
func TestQueue(t *testing.T) {
	dir, running, empty := t.TempDir(), t.TempDir(), t.TempDir()
	waitFor(t, dir, "cloud",
		mqtt.Message{Topic: "plant/boiler/temp", Payload: []byte(`{"value":25.4}`), QoS: 1},
		mqtt.Message{Topic: "plant/boiler/pump", Payload: []byte("on"), QoS: 1, Retain: true},
		mqtt.Message{Topic: "plant/raw", Payload: []byte{0xFF, 0x00}},
		mqtt.Message{Topic: "fieldgate/plant/stats", Payload: []byte(`{"x":"<a>"}`)})
	waitFor(t, dir, "backup", mqtt.Message{Topic: "plant/boiler/temp", Payload: []byte("25.4"), QoS: 2})
	if err := os.WriteFile(filepath.Join(dir, "queue-old.db"), []byte("no queue"), 0o600); err != nil {
		t.Fatal(err)
	}
	q, stop := runQueue(t, running, "cloud")
	defer stop()
	if err := q.Deliver(t.Context(), mqtt.Message{Topic: "t"}); err != nil {
		t.Fatal(err)
	}
	if err := q.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}

	stamp := regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`)
	script{
		run:  inProcessWith,
		fill: strings.NewReplacer("DIR", dir, "RUNNING", running, "EMPTY", empty).Replace,
		tidy: func(output string) string {
			return stamp.ReplaceAllString(strings.NewReplacer(dir, "DIR", running, "RUNNING", empty, "EMPTY").Replace(output), "TIME")
		},
	}.check(t, "testdata/queue/queue.txt")
}
