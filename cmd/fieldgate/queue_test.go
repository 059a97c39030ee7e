package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
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

var updateQueue = flag.Bool("update-queue", false, "write what the commands print into testdata/queue")

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

// TestQueue runs the script of testdata/queue: command lines after "$ ", the
// standard output below, standard error after "! ", an exit code other than 0
// after "? "; "< " is what is typed. DIR stands for a data directory with a few
// messages, RUNNING for that of a gateway that runs, EMPTY for one without a
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

	const path = "testdata/queue/queue.txt"
	script, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	stamp := regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`)
	var got strings.Builder
	lines := strings.Split(string(script), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "#") {
			got.WriteString(line + "\n")
		}
		command, ok := strings.CutPrefix(line, "$ ")
		if !ok {
			continue
		}
		typed := ""
		if i+1 < len(lines) {
			typed, _ = strings.CutPrefix(lines[i+1], "< ")
			if typed == lines[i+1] {
				typed = ""
			}
		}
		var out, errs bytes.Buffer
		a := &app{stdin: strings.NewReader(typed + "\n"), stdout: &out, stderr: &errs}
		words := splitWords(strings.NewReplacer("DIR", dir, "RUNNING", running, "EMPTY", empty).Replace(command))
		code := a.main(t.Context(), words)
		fmt.Fprintf(&got, "$ %s\n", command)
		if typed != "" {
			fmt.Fprintf(&got, "< %s\n", typed)
		}
		text := out.String()
		for line := range strings.Lines(errs.String()) {
			text += "! " + line
		}
		text = strings.NewReplacer(dir, "DIR", running, "RUNNING", empty, "EMPTY").Replace(text)
		got.WriteString(stamp.ReplaceAllString(text, "TIME"))
		if code != 0 {
			fmt.Fprintf(&got, "? %d\n", code)
		}
	}
	if *updateQueue {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got.String() != string(script) {
		t.Errorf("output differs; run with -update-queue and read the change\n--- got\n%s\n--- want\n%s", got.String(), script)
	}
}
