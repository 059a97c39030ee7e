package gateway

import (
	"encoding/json"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"fieldgate/internal/config"
)

// What goes out on the topic …/stats has one kind of name throughout.
func TestStatusNames(t *testing.T) {
	since := "2025-11-05T14:30:15.123Z"
	text, err := json.Marshal(Status{
		Buses: map[string]BusStatus{"plc": {
			Error: "x", Diagnosis: "x",
			Devices: map[string]DeviceStatus{"boiler": {Since: &since, Error: "x", Refused: 1}},
		}},
		Uplinks: map[string]UplinkStatus{"cloud": {URL: "x", TLS: "x", Since: &since, Error: "x"}},
		Broker:  &BrokerStatus{StoreError: "x"},
		Alarms:  []AlarmStatus{{Name: "x", Reason: "x", Since: &since}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	count := 0
	var walk func(any)
	walk = func(v any) {
		m, ok := v.(map[string]any)
		if !ok {
			return
		}
		for k, inner := range m {
			if count++; !name.MatchString(k) {
				t.Errorf("%q is not a name like the others", k)
			}
			walk(inner)
		}
	}
	walk(tree)
	if count < 60 {
		t.Errorf("%d names in %s, want more than 60", count, text)
	}
}

// A standing warning is in the stats too, not only in the log at the start.
func TestStatusWarns(t *testing.T) {
	cfg, err := config.LoadBytes("f", []byte("site: { id: s }\nuplinks: { cloud: { url: mqtt://broker.example } }\n"))
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
	if w := g.Status().Warnings; len(w) != 1 || !strings.HasPrefix(w[0], "uplinks.cloud.url: mqtt://broker.example:1883 is not encrypted") {
		t.Errorf("the warnings are %q", w)
	}
}
