package simulate

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
)

const example = "../../configs/simulate-plant.yaml"

func TestLoadExample(t *testing.T) {
	p, err := Load(example)
	if err != nil {
		t.Fatal(err)
	}
	if p.Seed == 0 || len(p.Buses) != 2 {
		t.Fatalf("seed %d, %d buses", p.Seed, len(p.Buses))
	}
	line, plc := p.Bus("line1"), p.Bus("plc")
	if line.Kind != config.Serial || line.Framing != modbus.FramingRTU || line.Mode.String() != "19200-8E1" || len(line.Devices) != 4 {
		t.Errorf("%+v", line)
	}
	if plc.Kind != config.TCP || plc.InFlight != 4 || plc.Address != "127.0.0.1:1502" || len(plc.Devices) != 1 {
		t.Errorf("%+v", plc)
	}
	meter := p.Device("meter3")
	if meter == nil || meter.Unit() != 3 || len(meter.Settings().Faults) != 3 || meter.Points()[0].ID != "meter3.power" {
		t.Fatalf("%+v", meter)
	}
	if a, b := meter.Settings().Seed, p.Device("meter2").Settings().Seed; a == b {
		t.Error("two devices have one seed")
	}
	press := p.Device("press").Settings()
	if press.MaxRegs != 64 || !press.Fill || len(press.Holes) != 1 || press.Holes[0].String() != "holding 40-49" || press.Latency != 10*time.Millisecond {
		t.Errorf("%+v", press)
	}
	for name, want := range map[string]string{"setpoint": "70", "serial_no": "FG-00042"} {
		if v, err := p.Device("boiler").Value(name); err != nil || v.String() != want {
			t.Errorf("%s is %v, %v; want %s", name, v, err, want)
		}
	}
	for _, b := range p.Buses {
		for _, d := range b.Devices {
			for _, pt := range d.Points() {
				if _, err := d.Value(pt.ID.Name()); err != nil {
					t.Errorf("%s: %v", pt.ID, err)
				}
			}
		}
	}
	if v, err := p.Device("press").Value("enable"); err != nil || v.String() != "1" {
		t.Errorf("enable is %v, %v", v, err)
	}

	// The whole of it runs, on other addresses.
	line.Address, plc.Address = filepath.Join(t.TempDir(), "line1"), "127.0.0.1:0"
	start(t, p.Buses...)
	port := openPort(t, line)
	req := modbus.ReadRequest(modbus.HoldingRegisters, 0, 1)
	exchange(t, port, modbus.AppendRTU(nil, 1, req), modbus.AppendRTU(nil, 1, modbus.PDU{3, 2, 0x02, 0xBC}))
}

func TestLoadFaults(t *testing.T) {
	const bus = "buses: {a: {tcp: \"127.0.0.1:0\"}, s: {serial: /tmp/x}}\n"
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", `f:1:1: plant: the file is empty; write buses and devices`},
		{"no YAML", "a: [", `f:1:4: plant: this is not YAML`},
		{"a list", "- a", `f:1:1: plant: is not a map; write the keys of a plant`},
		{"no devices", bus, `f:1:1: plant: a plant needs buses and devices`},
		{"unknown key", bus + "devices: {}\nbusses: {}", `f:3:1: busses: is not a key of a plant; known: seed buses devices`},
		{"key twice", bus + "devices: {}\ndevices: {}", `f:3:1: devices: is given twice; keep one`},
		{"name twice", bus + "devices: {d: {bus: a}, d: {bus: a}}", `f:2:24: devices.d: is given twice`},
		{"seed", bus + "devices: {}\nseed: 0", `f:3:7: seed: "0" is not a whole number in 1-18446744073709551615`},
		{"octal", bus + "devices: {d: {bus: a, unit: 010}}", `f:2:29: devices.d.unit: "010" are not unit ids`},
		{"two kinds", "buses: {a: {tcp: \"h:1\", udp: \"h:1\"}}\ndevices: {}", `f:1:9: buses.a: has 2 of serial, tcp and udp; write one`},
		{"no kind", "buses: {a: {}}\ndevices: {}", `f:1:9: buses.a: has 0 of serial, tcp and udp`},
		{"no host", "buses: {a: {tcp: \"1502\"}}\ndevices: {}", `f:1:18: buses.a.tcp: "1502" is not HOST:PORT; write one such as 127.0.0.1:1502`},
		{"no bus map", "buses: 3\ndevices: {}", `f:1:8: buses: is not a map; write the names of buses`},
		{"a bus of text", "buses: {a: x}\ndevices: {}", `f:1:12: buses.a: is not a map; write the keys of a bus`},
		{"mode", "buses: {a: {serial: /x, mode: 9600}}\ndevices: {}", `f:1:31: buses.a.mode: "9600" is not a serial mode`},
		{"MBAP on serial", "buses: {a: {serial: /x, framing: tcp}}\ndevices: {}", `f:1:9: buses.a: a serial bus needs the framing rtu or ascii`},
		{"framing", "buses: {a: {tcp: \"h:1\", framing: mbap}}\ndevices: {}", `f:1:34: buses.a.framing: "mbap" is not known; write one of: tcp rtu ascii`},
		{"no such bus", bus + "devices: {d: {bus: b}}", `f:2:11: devices.d: is on bus "b", which does not exist; write bus: and one of: a s`},
		{"unit twice", bus + "devices: {d: {bus: a}, e: {bus: a}}", `f:2:24: devices.e: has unit id 1 on bus a, as has d; write another`},
		{"units without a name", bus + "devices: {d: {bus: a, unit: 1-2}}", `f:2:11: devices.d: stands for 2 devices; write {unit} in its name`},
		{"duration", bus + "devices: {d: {bus: a, latency: 5}}", `f:2:32: devices.d.latency: "5" is not a duration`},
		{"negative duration", bus + "devices: {d: {bus: a, latency: -5s}}", `"-5s" is not a duration`},
		{"boolean", bus + "devices: {d: {bus: a, strict: yes}}", `f:2:31: devices.d.strict: "yes" is neither true nor false`},
		{"null", bus + "devices: {d: {bus: a, latency: }}", `devices.d.latency: is not a plain value`},
		{"base", bus + "devices: {d: {bus: a, base: 2}}", `devices.d.base: "2" is neither 0 nor 1`},
		{"hole", bus + "devices: {d: {bus: a, holes: [holding 5-3]}}", `f:2:31: devices.d.holes.0: "holding 5-3" is not a range`},
		{"hole nowhere", bus + "devices: {d: {bus: a, holes: [there]}}", `f:2:31: devices.d.holes.0: `},
		{"holes no list", bus + "devices: {d: {bus: a, holes: holding 5}}", `f:2:30: devices.d.holes: is not a list`},
		{"fault without kind", bus + "devices: {d: {bus: a, faults: [{nth: 2}]}}", `f:2:32: devices.d.faults.0: fault is missing; write one of: silent`},
		{"unknown fault", bus + "devices: {d: {bus: a, faults: [{fault: dead}]}}", `f:2:40: devices.d.faults.0.fault: "dead" is not a fault; known: silent`},
		{"fault's window", bus + "devices: {d: {bus: a, faults: [{fault: silent, every: 1m, from: 2m, to: 3m}]}}", `f:2:32: devices.d.faults.0: the window`},
		{"probability", bus + "devices: {d: {bus: a, faults: [{fault: silent, probability: 2}]}}", `"2" is not a number in 0-1`},
		{"wrong id on serial", bus + "devices: {d: {bus: s, faults: [{fault: wrong_id}]}}", `f:2:11: devices.d: has the fault wrong_id, but the rtu frames of bus s bear no transaction id`},
		{"no address", bus + "devices: {d: {bus: a, points: {p: {type: int16}}}}", `f:2:32: devices.d.points.p: at is missing`},
		{"bad address", bus + "devices: {d: {bus: a, points: {p: {at: 7}}}}", `f:2:36: devices.d.points.p: `},
		{"bad type", bus + "devices: {d: {bus: a, points: {p: {at: holding 0, type: int17}}}}", `f:2:51: devices.d.points.p: "int17" is not a type`},
		{"bad wave", bus + "devices: {d: {bus: a, points: {p: {at: holding 0, wave: sinus}}}}", `f:2:57: devices.d.points.p.wave: "sinus" is not a wave`},
		{"bad number", bus + "devices: {d: {bus: a, points: {p: {at: holding 0, min: low}}}}", `f:2:56: devices.d.points.p.min: "low" is not a number`},
		{"hz and period", bus + "devices: {d: {bus: a, points: {p: {at: holding 0, wave: sine, period: 1s, hz: 2}}}}", `f:2:75: devices.d.points.p: hz and period both say`},
		{"wave and value", bus + "devices: {d: {bus: a, points: {p: {at: holding 0, wave: sine, value: 2}}}}", `f:2:63: devices.d.points.p: a value stands still and a wave does not`},
		{"wave too high", bus + "devices: {d: {bus: a, points: {p: {at: holding 0, wave: sine, max: 1e6}}}}", `f:2:32: devices.d.points.p: the wave reaches 1e+06`},
		{"no point name", bus + "devices: {d: {bus: a, points: {\"\": {at: holding 0}}}}", `a name is missing`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := LoadBytes("f", []byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant %s", err, c.want)
			}
		})
	}

	// All faults come at once, in the order of their places, each a config.Fault.
	_, err := LoadBytes("f", []byte("buses: {a: {tcp: x, odd: 1}}\ndevices: {d: {bus: a, unit: 900, latency: x}}\n"))
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 4 {
		t.Fatalf("%d faults, want 4:\n%v", len(lines), err)
	}
	for i, place := range []string{"f:1:18:", "f:1:21:", "f:2:29:", "f:2:43:"} {
		if !strings.HasPrefix(lines[i], place) {
			t.Errorf("fault %d is %s, want it at %s", i, lines[i], place)
		}
	}
	var f config.Fault
	if !errors.As(err, &f) || f.Path != "buses.a.tcp" {
		t.Errorf("%+v", f)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestLoadDetails(t *testing.T) {
	p, err := LoadBytes("f", []byte(`
seed: 7
buses:
  u: { udp: "127.0.0.1:0", framing: rtu }
  s: { serial: "/tmp/l", mode: 9600-8N1, framing: ascii, strict_silence: true, lump: 1 }
  t: { tcp: "127.0.0.1:0", excess: mix, max_clients: 1, in_flight: 2 }
devices:
  "d{unit}":
    bus: t
    unit: 1,3,8-9
    base: 1
    max_bits: 16
    jitter: 0
    holes: [coil 5, input 0x10-0x1F]
    points:
      low: { at: holding 1, type: uint8, byte: low, value: 5, label: "the low half" }
      fine: { at: input 2, type: int32, order: DCBA, scale: 0.5, offset: 10, wave: square, min: 10, max: 20, hz: 0.25, step: 1 }
`))
	if err != nil {
		t.Fatal(err)
	}
	u, s, b := p.Bus("u"), p.Bus("s"), p.Bus("t")
	if u.Kind != config.UDP || u.Framing != modbus.FramingRTU || s.Framing != modbus.FramingASCII || !s.StrictSilence || s.Lump != 1 ||
		b.Excess != Mix || b.MaxClients != 1 || b.InFlight != 2 || p.Seed != 7 {
		t.Errorf("%+v %+v %+v", u, s, b)
	}
	var units []modbus.UnitID
	for _, d := range b.Devices {
		units = append(units, d.Unit())
	}
	if len(units) != 4 || units[0] != 1 || units[1] != 3 || units[2] != 8 || units[3] != 9 || p.Device("d8") == nil {
		t.Errorf("units %v", units)
	}
	d := p.Device("d3").Settings()
	if d.Holes[0].String() != "coil 4" || d.Holes[1].String() != "input 15-30" || d.MaxBits != 16 {
		t.Errorf("holes %v", d.Holes)
	}
	fine := d.Points[1]
	if fine.Address != 1 || fine.Wave.Period != 4*time.Second || fine.Scale.String() != "0.5" || d.Points[0].Address != 0 {
		t.Errorf("%+v", fine)
	}
	if got := read(t, p.Device("d3"), modbus.HoldingRegisters, 0, 1); got[0] != 5 {
		t.Errorf("the low half is %v", got)
	}
	// The same seed makes the same devices.
	again, err := LoadBytes("f", []byte("seed: 7\nbuses: {t: {tcp: \"127.0.0.1:0\"}}\ndevices: {d: {bus: t}}"))
	if err != nil || again.Devices()[0].Settings().Seed != p.Devices()[0].Settings().Seed {
		t.Errorf("%v", err)
	}
}

// FuzzLoad: whatever a file says, it loads or is refused with a place.
func FuzzLoad(f *testing.F) {
	text, err := os.ReadFile(example)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("buses: {a: {tcp: \"h:1\"}}\ndevices: {d: {bus: a, unit: 1-3, faults: [{fault: late}], points: {p: {at: 40001, wave: sine}}}}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := LoadBytes("f", text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Errorf("%v", err)
			}
			return
		}
		for _, b := range p.Buses {
			if err := b.validate(); err != nil {
				t.Errorf("loads, but: %v", err)
			}
		}
		ended, cancel := context.WithCancel(context.Background())
		cancel() // a latency of hours is allowed
		for _, d := range p.Devices() {
			if _, err := d.Do(ended, 1, modbus.ReadRequest(modbus.HoldingRegisters, 0, 125)); !errors.Is(err, context.Canceled) {
				t.Errorf("%v, want the context's error", err)
			}
		}
	})
}

func TestDemo(t *testing.T) {
	p := Demo(1)
	start(t, p.Buses...)
	if len(p.Buses) != 3 || p.Bus("line1").Kind != config.Serial || len(p.Bus("line1").Devices) != 3 {
		t.Fatalf("%+v", p.Buses)
	}
	shapes := map[Shape]bool{}
	for _, d := range p.Devices() {
		if err := d.Settings().Validate(); err != nil {
			t.Errorf("%s: %v", d.Name(), err)
		}
		for i, pt := range d.Points() {
			shapes[d.Settings().Points[i].Wave.Shape] = true
			if pt.ID.Device() != d.Name() {
				t.Errorf("point %s is on device %s", pt.ID, d.Name())
			}
			regs := read(t, d, pt.Table, pt.Address, uint16(pt.Words()))
			if _, err := pt.Decode(regs); err != nil {
				t.Errorf("%s: %v", pt.ID, err)
			}
		}
	}
	for s := Constant; s <= RandomWalk; s++ {
		if !shapes[s] {
			t.Errorf("no point shows the wave %v", s)
		}
	}
	port := openPort(t, p.Bus("line1"))
	exchange(t, port, modbus.AppendRTU(nil, 1, modbus.ReadRequest(modbus.HoldingRegisters, 0, 1)), modbus.AppendRTU(nil, 1, modbus.PDU{3, 2, 0x02, 0xBC}))
	for _, name := range []string{"chiller", "meter"} {
		c := connect(t, p.Bus(name))
		exchange(t, c, modbus.AppendTCP(nil, 1, 1, modbus.DiagnosticsRequest(0, 5)), modbus.AppendTCP(nil, 1, 1, modbus.DiagnosticsRequest(0, 5)))
	}
}
