package gateway

import (
	"encoding/json"
	"log/slog"
	"slices"
	"testing"

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
		if (g.audit != nil) != want {
			t.Errorf("%s: a log is %v", text, g.audit != nil)
		}
		if g.audit != nil {
			local := &recorder{}
			g.herald.sinks = map[string]mqtt.Sink{config.Local: local}
			r, err := g.audit.Append(t.Context(), audit.Record{Event: audit.Accepted, ID: "a1", Point: "d.p", Value: "5"})
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
