package gateway

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fieldgate/internal/bus"
	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
)

// The plant finds a point on its bus or in memory, and messages find theirs.
func TestPlant(t *testing.T) {
	cfg, err := config.LoadBytes("f", []byte(`
site: { id: s }
buses: { b: { tcp: "127.0.0.1:1", connect_timeout: 10ms } }
broker: { listen: mqtt://127.0.0.1:0, anonymous: true }
uplinks: { u: { url: "mqtt://127.0.0.1:1" } }
devices:
  d: { bus: b, points: { p: { at: holding 0, write: {} } } }
  v: { points: { p: { initial: 5, from: "in/{point}", write: {} }, q: { from: { topic: x, uplink: u } } } }
`))
	if err != nil {
		t.Fatal(err)
	}
	g, err := Open(cfg, nil, t.TempDir(), "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.abandon(); err != nil {
			t.Error(err)
		}
	}()
	if err := g.plant.Write(t.Context(), "v.p", point.IntValue(7)); err != nil {
		t.Error(err)
	}
	if got, err := g.plant.Read(t.Context(), "v.q", "v.p"); err != nil || got[1].Value != point.Float64Value(7) || got[0].Quality != point.Bad {
		t.Errorf("Read = %v, %v", got, err)
	}
	for _, id := range []point.ID{"d.x", "v.x", "x.x"} {
		if err := g.plant.Write(t.Context(), id, point.IntValue(1)); !errors.Is(err, bus.ErrUnknownPoint) {
			t.Errorf("Write(%s) = %v", id, err)
		}
		if _, err := g.plant.Read(t.Context(), "v.p", id); !errors.Is(err, bus.ErrUnknownPoint) {
			t.Errorf("Read(%s) = %v", id, err)
		}
	}
	for via, want := range map[string]int{config.Local: 1, "u": 2, "w": 0} {
		subs := g.feeds(via)
		if len(subs) != want {
			t.Errorf("%s is to bring %v", via, subs)
		}
		for _, s := range subs {
			s.Handle(mqtt.Message{Topic: string(s.Filter), Payload: []byte(`{"value":9}`)}, mqtt.Origin{Via: via})
		}
	}
	got, err := g.plant.Read(t.Context(), "v.p", "v.q")
	if err != nil || got[0].Value != point.Float64Value(9) || got[1].Value != point.Float64Value(9) {
		t.Errorf("Read = %v, %v", got, err)
	}
	if s := g.Status(); s.Virtual == nil || s.Virtual.Points != 2 || s.Virtual.Bad != 0 {
		t.Errorf("Status: %+v", s.Virtual)
	}
	if modbus.Table(0) != cfg.Devices[1].Points[0].Table {
		t.Error("a point in memory has a table")
	}
}

// A point that its own messages would set is a fault, but on the embedded
// broker, which does not hand them out.
func TestEchoes(t *testing.T) {
	for text, want := range map[string]string{
		"from: s/v/p":                           "devices.v: v.p is set by \"s/v/p\" and published there, so uplink u would bring its own messages back",
		"from: { topic: s/v/p, uplink: local }": "",
		"from: s/v/q":                           "",
	} {
		path := filepath.Join(t.TempDir(), "f.yaml")
		if err := os.WriteFile(path, []byte("site: { id: s }\nbroker: { anonymous: true }\nuplinks: { u: { url: mqtts://h } }\ndevices: { v: { points: { p: { "+text+" } } } }\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := Load(path)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", text, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
