package gateway

import (
	"math"
	"testing"

	"fieldgate/internal/config"
	"fieldgate/internal/publish"
)

func plan(t *testing.T, text string) Plan {
	t.Helper()
	cfg, err := config.LoadBytes("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	topics, _ := publish.Topics(cfg.Site, cfg.Publish, cfg.Devices)
	return MakePlan(cfg, topics)
}

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-6*math.Max(math.Abs(a), math.Abs(b)) }

// The time on a serial line is that of its characters, and what is sent in a
// day follows from the intervals alone where the rules leave nothing open.
func TestPlan(t *testing.T) {
	p := plan(t, `
site: { id: s }
buses: { line: { serial: /dev/ttyS7, mode: 9600-8N1, gap: 4ms }, idle: { tcp: 10.0.0.1:502 } }
devices:
  "m{unit}": { bus: line, unit: 1-2, every: 2s, points: { a: { at: holding 0 }, b: { at: holding 9 }, c: { at: coil 0, every: once }, d: { at: holding 2, every: never } } }
publish:
  - { points: "m1.*", when: each, to: up, qos: 0, payload: raw }
  - { points: "m2.*", topic: "{device}", payload: batch, every: 10s }
uplinks: { up: { url: mqtts://h } }
broker: { anonymous: true }
`)
	if len(p.Buses) != 2 || p.Buses[1].Devices != 0 || p.Buses[1].Load != 0 {
		t.Fatalf("buses %+v", p.Buses)
	}
	b := p.Buses[0]
	if b.Wire != "serial /dev/ttyS7 9600-8N1 rtu" || b.Devices != 2 || b.Points != 8 || b.Endless {
		t.Errorf("bus %+v", b)
	}
	if len(b.Requests) != 4 {
		t.Fatalf("requests %+v", b.Requests)
	}
	r := b.Requests[0]
	if r.Device != "m1" || r.Unit != 1 || r.Table != "holding" || r.Address != 0 || r.Count != 10 || r.Every != "2s" || len(r.Points) != 2 {
		t.Errorf("request %+v", r)
	}
	// 8 characters there, 5 and 20 of data back, of 10 bits at 9600 baud; two
	// gaps; 5 ms for the device.
	if want := 33*10/9.6 + 2*4 + 5; math.Abs(r.MS-want) > 0.01 {
		t.Errorf("%.3f ms, want %.3f", r.MS, want)
	}
	if want := 2 * r.MS / 2000 * 100; !near(b.Load, want) {
		t.Errorf("load %.3f %%, want %.3f", b.Load, want)
	}
	if len(b.Cycles) != 2 || b.Cycles[0].Every != "2s" || b.Cycles[0].Requests != 2 || b.Cycles[1].Every != "once" {
		t.Errorf("cycles %+v", b.Cycles)
	}

	// m1.a and m1.b with each poll: s/m1/a 2345.
	up, local := p.Outlets[0], p.Outlets[1]
	const perMessage = 2 + 2 + len("s/m1/a") + len("2345")
	each := Traffic{2 * 43200, 2 * 43200 * float64(perMessage)}
	// m2 in one message each ten seconds: m2 {"timestamp":"…","a":2345,"b":2345}
	const batch = 2 + 2 + 2 + len("m2") + len(`{"timestamp":"2025-11-05T14:30:15.123Z","a":2345,"b":2345}`)
	timed := Traffic{8640, 8640 * float64(batch)}
	both := each
	both.add(timed)
	if up.Least != both || up.Most != both {
		t.Errorf("up gets %+v, want %+v", up, both)
	}
	if local.Name != config.Local || local.Least != timed || local.Most != timed {
		t.Errorf("local gets %+v, want %+v", local, timed)
	}
}

// On change, the truth lies between the heartbeat and every poll.
func TestPlanOnChange(t *testing.T) {
	p := plan(t, `
site: { id: s }
buses: { b: { tcp: 10.0.0.1:502, in_flight: 4 } }
devices: { d: { bus: b, points: { a: { at: holding 0 }, f: { at: input 0, every: 0 } } } }
publish:
  - { points: d.a, when: { at_least: 1m } }
  - { points: d.f, when: { at_most: 10s, at_least: 0 } }
broker: { anonymous: true }
`)
	b, local := p.Buses[0], p.Outlets[0]
	if !b.Endless || b.Load <= 0 || b.Load > 1 {
		t.Errorf("bus %+v", b)
	}
	if local.Least.Messages != 1440 || local.Most.Messages != 86400+8640 {
		t.Errorf("local %+v", local)
	}
}

// Every type has a typical value.
func TestPlanTypes(t *testing.T) {
	types := []string{
		"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64",
		"bcd16", "bcd32", "string(4)", "string(20)", "bytes(2)", "datetime(DOS)", "datetime(WIN)", "datetime(DT3)", "datetime(DT7)",
	}
	for _, typ := range types {
		p := plan(t, "site: { id: s }\nbuses: { b: { tcp: 10.0.0.1:502 } }\ndevices: { d: { bus: b, points: { p: { at: holding 0, type: "+typ+" } } } }\nbroker: { anonymous: true }\n")
		if n := p.Outlets[0].Most.Messages; n != 86400 {
			t.Errorf("%s: %v messages", typ, n)
		}
	}
}
