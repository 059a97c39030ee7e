package gateway

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fieldgate/internal/audit"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/queue"
)

// What is published where commands come from would come back as a command.
func TestCommandEchoes(t *testing.T) {
	const plant = `
site: { id: s }
buses: { b: { tcp: 127.0.0.1:9 } }
devices: { d: { bus: b, points: { p: { at: holding 0, write: {} } } } }
uplinks: { cloud: { url: mqtt://127.0.0.1 }, other: { url: mqtt://127.0.0.2 } }
broker: { anonymous: true }
`
	for _, row := range []struct{ rest, want string }{
		{`commands: [ { topic: "s/{device}/{point}", write: "{device}.{point}" } ]`,
			`publish[0].topic: d.p is published on "s/d/p", which is a topic of commands[0] too, so that it would come back as a command; write another topic`},
		{`commands: [ { topic: "s/+/p", write: d.p, from: local } ]`, ""}, // what we publish does not come back from there
		{`{commands: [ { topic: "s/+/p", write: d.p, from: cloud } ], publish: [ { to: [other, local] } ]}`, ""},
		{`{commands: [ { topic: "v/5", write: d.p } ], publish: [ { topic: "v/{Value}" } ]}`, `published on "v/{Value}", which is a topic of commands[0] too`},
		{`{settings: { from: cloud, topic: s/d/p, allow: publish }, publish: [ { topic: "s/{device}/{point}" } ]}`, `d.p is published on "s/d/p", where settings come`},
		{`{settings: { from: local, topic: s/d/p, allow: publish }, publish: [ { topic: "s/{device}/{point}" } ]}`, ""},
		{`commands: [ { topic: "cmd/{device}/{point}", write: "{device}.{point}" } ]`, ""},
	} {
		path := filepath.Join(t.TempDir(), "f.yaml")
		text := plant + row.rest
		if rest, ok := strings.CutPrefix(row.rest, "{"); ok {
			text = plant + strings.Replace(strings.TrimSuffix(rest, "}"), ", publish:", "\npublish:", 1)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := Load(path)
		if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s\n got %v\nwant %s", row.rest, err, row.want)
		}
	}
}

// An answer that meets a queue which a reload has just replaced goes to the next.
func TestAnswerMeetsReload(t *testing.T) {
	const text = "site: { id: s }\nuplinks: { cloud: { url: \"mqtt://127.0.0.1:1\", status: false, queue: { max_bytes: 1MiB } } }\nweb: false\n"
	r := running(t, text)
	was := r.now.Load().way("cloud").queue
	err := r.deliver(t.Context(), "cloud", mqtt.Message{Topic: "t", QoS: 1}, func(q *queue.Queue, ctx context.Context, m ...mqtt.Message) error {
		if q == was {
			r.to(strings.Replace(text, "1MiB", "2MiB", 1), "replaced queue cloud, uplink cloud")
		}
		return q.DeliverNow(ctx, m...)
	})
	if n := r.now.Load().way("cloud").queue.Stats().Messages; err != nil || n != 1 {
		t.Errorf("%v, %d messages", err, n)
	}
}

// An answer to an order of before the start is in the queue's file at once: it is
// recorded as given.
func TestOrphansAnswerIsSafe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log, err := audit.Open(dir, audit.Options{}, slog.New(slog.DiscardHandler))
	if err == nil {
		_, err = log.Append(t.Context(), audit.Record{Event: audit.Accepted, ID: "x", Via: "cloud", Point: "v.p", Value: "1", Reason: "answer on cmd/ack"})
	}
	if err == nil {
		err = log.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	const text = "site: { id: s }\nuplinks: { cloud: { url: \"mqtt://127.0.0.1:1\", status: false, queue: { commit: 1m } } }\nbroker: { listen: mqtt://127.0.0.1:0, anonymous: true }\nbuses: { b: { tcp: 127.0.0.1:1 } }\ndevices: { v: { bus: b, points: { p: { at: holding 0, write: {} } } } }\ncommands: [ { topic: cmd, write: v.p, ack: cmd/ack } ]\nweb: false\n"
	a := follow(t, dir, text)
	a.until("it is in the file", func() bool {
		copied := t.TempDir() // as a power cut would leave it
		data, err := os.ReadFile(filepath.Join(dir, "queue-cloud.db"))
		if err == nil {
			err = os.WriteFile(filepath.Join(copied, "queue-cloud.db"), data, 0o600)
		}
		if err != nil {
			return false // it is not there yet
		}
		files, err := queue.Files(copied) // an error: it was just being written
		return err == nil && len(files) == 1 && files[0].Messages == 1
	})
}
