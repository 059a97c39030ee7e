package config

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// large returns a configuration of 100 devices with 100 points each, written
// in one of three ways.
func large(way string) string {
	var b strings.Builder
	b.WriteString("site: { id: plant1 }\nbuses:\n")
	for d := range 100 {
		fmt.Fprintf(&b, "  plc%d: { tcp: 10.0.0.%d:502 }\n", d, d+1)
	}
	b.WriteString("uplinks: { cloud: { url: mqtts://broker.example } }\n")
	points := func(indent string) {
		for p := range 100 {
			fmt.Fprintf(&b, "%spower_%03d: { at: holding %d, type: float32, scale: 0.1, unit: kW }\n", indent, p, 2*p)
		}
	}
	b.WriteString("devices:\n")
	for d := range 100 {
		switch way {
		case "spelled":
			fmt.Fprintf(&b, "  meter%03d:\n    bus: plc%d\n    points:\n", d, d)
			points("      ")
		case "alias":
			if d > 0 {
				fmt.Fprintf(&b, "  meter%03d: { bus: plc%d, every: 2s, points: *meter }\n", d, d)
				continue
			}
			b.WriteString("  meter000:\n    bus: plc0\n    points: &meter\n")
			points("      ")
		case "range":
			b.WriteString("  meter{unit}:\n    bus: plc0\n    unit: 1-100\n    points:\n")
			points("      ")
			return b.String()
		}
	}
	return b.String()
}

func BenchmarkLoad(b *testing.B) {
	for _, way := range []string{"spelled", "alias", "range"} {
		text := []byte(large(way))
		b.Run(way, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				cfg, err := LoadBytes("f", text)
				if err != nil || len(cfg.Devices) != 100 || len(cfg.Devices[99].Points) != 100 {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSmallest is what every start and every check costs.
func BenchmarkSmallest(b *testing.B) {
	text := []byte(`{ buses: { plc: { tcp: 10.0.0.10:502 } }, devices: { boiler: { bus: plc, points: { temp: { at: 30001 } } } } }`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := LoadBytes("f", text); err != nil {
			b.Fatal(err)
		}
	}
}

// A configuration of 10,000 points keeps less than 4 MB, whichever way it is
// written: neither the text nor what was read on the way.
func TestRetained(t *testing.T) {
	for _, way := range []string{"spelled", "alias", "range"} {
		text := []byte(large(way))
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		cfg, err := LoadBytes("f", text)
		if err != nil {
			t.Fatal(err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if kept := int64(after.HeapAlloc) - int64(before.HeapAlloc); kept > 4_000_000 {
			t.Errorf("%s: %d bytes are kept", way, kept)
		} else {
			t.Logf("%s: %d bytes are kept", way, kept)
		}
		runtime.KeepAlive(text)
		runtime.KeepAlive(cfg)
	}
}
