package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Load never panics, says each fault on one line that can be printed, and what
// it accepts is whole.
func FuzzLoad(f *testing.F) {
	files, _ := filepath.Glob("../../configs/*.yaml")
	mistakes, _ := filepath.Glob("testdata/mistakes/*.yaml")
	for _, file := range append(files, mistakes...) {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	for _, text := range []string{
		"\"a\\nb\": 1\n", "devices: { \"a\\nb\": { bus: x, unit: 1-2, points: {} } }", "buses: { \"x\\ny\": { tcp: \"a\\nb\" } }\ndevices: { d: { bus: z, points: {} } }",
	} {
		f.Add(text)
	}
	f.Add(tcpBus + "devices: { \"d{unit}\": &d { bus: b, unit: \"1-3,9\", points: &p { x: { at: holding 0, bits: { a: 1 } } } }, e: *d }")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 16<<10 {
			return
		}
		cfg, err := LoadBytes("f", []byte(text))
		var fs Faults
		if err != nil && !errors.As(err, &fs) {
			t.Fatalf("%T", err)
		}
		if (cfg == nil) != (len(fs) > 0) {
			t.Fatalf("%d faults and %v", len(fs), cfg)
		}
		lines := append(Faults{}, fs...)
		if cfg != nil {
			lines = append(lines, cfg.Warnings...)
		}
		for _, fault := range lines {
			if i := strings.IndexFunc(fault.Error(), unicode.IsControl); i >= 0 || fault.Text == "" {
				t.Errorf("a fault that cannot be printed: %q", fault.Error())
			}
			if fault.Line < 1 || fault.Col < 1 || fault.Line > strings.Count(text, "\n")+strings.Count(text, "\r")+3*strings.Count(text, "\u0085")+3*strings.Count(text, "\u2028")+3*strings.Count(text, "\u2029")+1 {
				t.Errorf("a fault that is nowhere: %v", fault)
			}
		}
		if cfg == nil {
			return
		}
		seen := make(map[point.ID]bool)
		for _, d := range cfg.Devices {
			for _, p := range d.Points {
				if d.Virtual() { // as if it had registers
					if p.Table = modbus.HoldingRegisters; p.Type == point.Bool {
						p.Table = modbus.Coils
					}
				}
				if err := p.Validate(); err != nil {
					t.Errorf("%s: %v", p.ID, err)
				}
				if seen[p.ID] || p.ID.Device() != d.Name {
					t.Errorf("%s is in device %s, or twice", p.ID, d.Name)
				}
				seen[p.ID] = true
			}
		}
		again, err := LoadBytes("f", []byte(text))
		if err != nil || !reflect.DeepEqual(cfg, again) {
			t.Errorf("loads otherwise the second time: %v", err)
		}
	})
}

// Whatever is sent as settings from afar, the file on site decides: what it does
// not allow is not at work, and nothing breaks.
func FuzzLayer(f *testing.F) {
	f.Add(`{"devices.a.every": "5s", "site.id": "x"}`)
	f.Add("devices.a: { every: 1s }\n")
	f.Add(`{"devices.a.points.p.at": [1, {"x": null}], "devices": 3, "": 1}`)
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		path, layer := filepath.Join(dir, "f.yaml"), filepath.Join(dir, "layer.yaml")
		base := "site: { id: s }\nbuses: { b: { tcp: 127.0.0.1:1 } }\ndevices: { a: { bus: b, unit: 3, points: { p: { at: holding 0 } } } }\nbroker: { anonymous: true }\nsettings: { from: local, allow: devices.a.every }\n"
		if err := errors.Join(os.WriteFile(path, []byte(base), 0o600), os.WriteFile(layer, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := Values(path, []byte(text), []string{"devices.a.every", "site.id"}); err != nil {
			t.Fatal(err)
		}
		cfg, err := LoadLayer(path, layer)
		if err != nil {
			return
		}
		if cfg.Site.ID != "s" || len(cfg.Devices) != 1 || cfg.Devices[0].Unit != 3 || len(cfg.Devices[0].Points) != 1 {
			t.Errorf("more than the interval has changed: %+v", cfg.Devices)
		}
	})
}
