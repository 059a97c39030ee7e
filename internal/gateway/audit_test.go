package gateway

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"fieldgate/internal/audit"
	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
)

// Where a point can be written there is a log, and what is recorded goes out as
// it stands in the file.
func TestAuditEvents(t *testing.T) {
	for text, want := range map[string]bool{
		"at: holding 0":            false,
		"at: holding 0, write: {}": true,
	} {
		cfg, err := config.LoadBytes("f", []byte("site: { id: s }\nbuses: { b: { tcp: 127.0.0.1:9 } }\ndevices: { d: { bus: b, points: { p: { "+text+" } } } }\nbroker: { listen: [mqtt://127.0.0.1:0], anonymous: true }\n"))
		if err != nil {
			t.Fatal(err)
		}
		g, err := Open(cfg, nil, t.TempDir(), "test", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if (g.now.Load().audit != nil) != want {
			t.Errorf("%s: a log is %v", text, g.now.Load().audit != nil)
		}
		if g.now.Load().audit != nil {
			local := &recorder{}
			g.now.Load().told = map[string]mqtt.Sink{config.Local: local}
			r, err := g.now.Load().audit.Append(t.Context(), audit.Record{Event: audit.Accepted, ID: "a1", Point: "d.p", Value: "5"})
			if err != nil {
				t.Fatal(err)
			}
			g.herald.tell(t.Context())
			if want := []string{"fieldgate/s/event " + string(r.JSON())}; !slices.Equal(local.lines, want) || !json.Valid(r.JSON()) {
				t.Errorf("published %q, want %q", local.lines, want)
			}
			if s := g.Status(); s.Audit.Records != 1 || s.Flash.Audit.Total.Syncs == 0 || s.Flash.All.Total.Syncs < s.Flash.Audit.Total.Syncs {
				t.Errorf("Status: %+v, %+v", s.Audit, s.Flash)
			}
		}
		if err := g.abandon(); err != nil {
			t.Error(err)
		}
	}
}

// A record that somebody changed while the gateway was away, and a disk that
// takes none, are alarms.
func TestAuditAlarms(t *testing.T) {
	cfg, err := config.LoadBytes("f", []byte("site: { id: s }\nbuses: { b: { tcp: 127.0.0.1:9 } }\ndevices: { d: { bus: b, points: { p: { at: holding 0, write: {} } } } }\n"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	raised := func(between func(*Gateway)) (names []string) {
		t.Helper()
		g, err := Open(cfg, nil, dir, "test", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		between(g)
		g.siren.say = func(_ context.Context, m mqtt.Message) {
			var a struct{ Alarm, Severity string }
			if err := json.Unmarshal(m.Payload, &a); err != nil {
				t.Error(err)
			}
			if a.Alarm != "clock_unsynced" {
				names = append(names, a.Alarm+" "+a.Severity)
			}
		}
		g.siren.step(t.Context(), time.Now())
		if err := g.abandon(); err != nil {
			t.Error(err)
		}
		return names
	}
	if got := raised(func(g *Gateway) {
		if _, err := g.now.Load().audit.Append(t.Context(), audit.Record{Event: audit.Accepted}); err != nil {
			t.Fatal(err)
		}
	}); len(got) > 0 {
		t.Errorf("raised: %q", got)
	}
	file := filepath.Join(dir, "audit", "audit-000001.jsonl")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := raised(func(*Gateway) {}); !slices.Equal(got, []string{"audit_suspect critical"}) {
		t.Errorf("raised: %q", got)
	}
	if err := os.RemoveAll(filepath.Join(dir, "audit")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "audit"), []byte("no folder"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := raised(func(*Gateway) {}); !slices.Equal(got, []string{"audit_disk critical"}) {
		t.Errorf("raised: %q", got)
	}
}
