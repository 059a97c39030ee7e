package config

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// served is what the servers of the tests may show.
const served = `
buses: { plc: { tcp: 10.0.0.10:502 }, line1: { serial: /dev/ttyS7 } }
broker: { anonymous: true }
devices:
  boiler: { bus: plc, every: 500ms, points: {
    temp: { at: 30001, type: int16, scale: 0.1 }, half: { at: holding 2, type: int8 }, on: { at: holding 1, bit: 3 }, mode: { at: holding 3, bits: { a: 4-6 } },
    code: { at: holding 20, type: string(4) }, raw: { at: holding 30, type: bytes(2) }, clock: { at: holding 40, type: datetime(DT4), every: once },
    fast: { at: holding 50, every: 0s }, set: { at: holding 60, type: float32, order: CDAB, write: { max: 100000 } } } }
  pump-{unit}: { bus: line1, unit: 1-2, every: 10ms, points: { x: { at: holding 0, map: { 0: off, 1: on } } } }
servers:
`

func TestServerSettings(t *testing.T) {
	cfg := load(t, served+`
  - listen: tcp://0.0.0.0:1502
    allow: [10.0.0.0/8, "fd00::1", "::ffff:10.9.0.0/112", "::ffff:192.168.1.2"]
    map:
      40001: boiler.temp
      holding 2: boiler.set
      "000001": boiler.on
      30001: { point: boiler.on }
      30002: { point: boiler.half, stale: -1, stale_after: 1m }
      30003: { point: boiler.set, type: int32 }
      30005: { point: boiler.set, type: uint16, scale: 0.5, order: DCBA }
      30006: { status: pump-2.x }
      30007: { age: boiler.clock, type: uint32 }
      30012: { status: boiler.half }
      30013: { status: boiler.half, stale_after: 2m }
      30009: boiler.fast
      30010: boiler.mode.a
      40010: { pause: pump-1 }
    pass: { 2-4: line1, "7,9": plc }
    pass_writes: [holding 100-120, coil 3]
  - { listen: "serial:/dev/ttyS8", mode: 9600-7S1, framing: ascii, unit: 7, stale: last, stale_after: 2s, map: { 400010: pump-1.x } }
  - { listen: "udp://localhost:0", unit: 0, map: { 40001: boiler.raw }, writes: true }
  - { listen: "rtu+tcp://127.0.0.1:0", pass: { 1: plc }, unit: 2, pass_writes: true }
`)
	s := cfg.Servers
	if len(s) != 4 {
		t.Fatalf("%d servers", len(s))
	}
	a := s[0]
	if a.Kind != TCP || a.Address != "0.0.0.0:1502" || a.Framing != modbus.FramingTCP || a.Unit != 1 || a.MaxClients != 32 || a.Idle != time.Minute || a.Writes ||
		fmt.Sprint(a.Allow) != "[10.0.0.0/8 fd00::1/128 10.9.0.0/16 192.168.1.2/32]" || fmt.Sprint(a.Pass) != "[{2 4 line1} {7 7 plc} {9 9 plc}]" ||
		fmt.Sprint(a.PassWrites) != "{false [{holding 100 120} {coil 3 3}]}" {
		t.Errorf("%+v", a)
	}
	want := []string{
		"coil 0 boiler.on bool ABCD 1 after 1.5s writable false",
		"input 0 boiler.on uint16 ABCD 1 after 1.5s writable false",
		"input 1 boiler.half int16 ABCD 1 after 1m0s writable false",
		"input 2 boiler.set int32 ABCD 1 after 1.5s writable false",
		"input 4 boiler.set uint16 DCBA 0.5 after 1.5s writable false",
		"input 5 pump-2.x uint16 ABCD 0 after 1s writable false",
		"input 6 boiler.clock uint32 ABCD 0 after 0s writable false",
		"input 8 boiler.fast uint16 ABCD 1 after 10s writable false",
		"input 9 boiler.mode.a uint16 ABCD 1 after 1.5s writable false",
		"input 11 boiler.half uint16 ABCD 0 after 1m0s writable false",
		"input 12 boiler.half uint16 ABCD 0 after 2m0s writable false",
		"holding 0 boiler.temp int16 ABCD 0.1 after 1.5s writable false",
		"holding 2 boiler.set float32 CDAB 1 after 1.5s writable true",
		"holding 9  uint16 ABCD 0 after 0s writable false",
	}
	var got []string
	for _, e := range a.Map {
		p := e.Point
		got = append(got, fmt.Sprintf("%s %s %s %s %s after %v writable %v", point.FormatAddress(p.Table, p.Address), p.ID, p.TypeName(), point.OrderNames()[p.Order], p.Scale, e.StaleAfter, e.Writable))
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if e := a.Map[2]; e.Stale != StaleValue || e.Pattern != 0xFFFF {
		t.Errorf("%+v", e)
	}
	if b := s[1]; b.Kind != Serial || b.Address != "/dev/ttyS8" || b.Framing != modbus.FramingASCII || b.Mode.Baud != 9600 || b.Mode.Parity != 'S' || b.Unit != 7 ||
		b.Map[0].Stale != StaleLast || b.Map[0].StaleAfter != 2*time.Second || b.Map[0].Point.Map == nil {
		t.Errorf("%+v", b)
	}
	if c := s[2]; c.Kind != UDP || c.Unit != 0 || !c.Writes || c.Allow != nil {
		t.Errorf("%+v", c)
	}
	if d := s[3]; d.Kind != TCP || d.Framing != modbus.FramingRTU || !d.PassWrites.All || d.Map != nil {
		t.Errorf("%+v", d)
	}
	if p := netip.MustParsePrefix("10.0.0.0/8"); a.Allow[0] != p {
		t.Errorf("%v", a.Allow)
	}
}

func TestServerFaults(t *testing.T) {
	for _, row := range []struct{ name, server, want string }{
		{"nowhere", "{ map: { 40001: boiler.temp } }", "listen is missing"},
		{"another scheme", "{ listen: http://x, map: { 40001: boiler.temp } }", "does not say where to listen; write tcp://"},
		{"no port", "{ listen: tcp://x, map: { 40001: boiler.temp } }", `"x" has no port; write x:502`},
		{"open to all", "{ listen: tcp://0.0.0.0:502, map: { 40001: boiler.temp } }", "Modbus knows no passwords; add allow"},
		{"allow", "{ listen: tcp://0.0.0.0:502, allow: [10.0.0.1/8], map: { 40001: boiler.temp } }", "has bits beyond its network; write 10.0.0.0/8"},
		{"any host", "{ listen: 'tcp://*:502', allow: 10.0.0.1, map: { 40001: boiler.temp } }", "is not the name or address of a host; write it like 0.0.0.0:502"},
		{"not an address", "{ listen: tcp://0.0.0.0:502, allow: plc, map: { 40001: boiler.temp } }", "is not an address or a network"},
		{"a polled port", "{ listen: serial:/dev/ttyS7, map: { 40001: boiler.temp } }", "is the port of bus line1 too, and a port has one owner"},
		{"allow on a port", "{ listen: serial:/dev/ttyS8, allow: 10.0.0.1, map: { 40001: boiler.temp } }", "is only for tcp and udp; remove it"},
		{"mode on tcp", "{ listen: tcp://127.0.0.1:1, mode: 9600-8N1, map: { 40001: boiler.temp } }", "is only for a serial port; remove it"},
		{"reserved unit", "{ listen: serial:/dev/ttyS8, unit: 250, map: { 40001: boiler.temp } }", "unit id 250 is reserved; on a serial line write 1 to 247"},
		{"7 bits", "{ listen: serial:/dev/ttyS8, mode: 9600-7E1, map: { 40001: boiler.temp } }", "RTU needs 8 data bits; write 9600-8E1, or framing: ascii"},
		{"nothing", "{ listen: tcp://127.0.0.1:1 }", "has nothing to show; add map"},
		{"an empty map", "{ listen: tcp://127.0.0.1:1, map: {} }", "is an empty map; write Modicon numbers with points"},
		{"a short number", "{ listen: tcp://127.0.0.1:1, map: { 1: boiler.temp } }", `1 can be read in two ways: write "holding 1"`},
		{"without quotes", "{ listen: tcp://127.0.0.1:1, map: { 00001: boiler.on } }", `write "00001", or coil 0`},
		{"an unknown point", "{ listen: tcp://127.0.0.1:1, map: { 40001: boiler.tmp } }", `there is no point "boiler.tmp"; did you mean boiler.temp?`},
		{"an unknown device", "{ listen: tcp://127.0.0.1:1, map: { 40001: boilr.temp } }", `there is no device "boilr": did you mean boiler?`},
		{"no point", "{ listen: tcp://127.0.0.1:1, map: { 40001: boiler } }", "write device.point"},
		{"two of them", "{ listen: tcp://127.0.0.1:1, map: { 40001: { point: boiler.temp, age: boiler.temp } } }", "gives 2 of point, status, age and pause"},
		{"none of them", "{ listen: tcp://127.0.0.1:1, map: { 40001: { type: int16 } } }", "gives 0 of point, status, age and pause"},
		{"overlap", "{ listen: tcp://127.0.0.1:1, map: { 40001: boiler.set, 40002: boiler.temp } }", "boiler.set at 40001 is float32 and goes on to 40002; write a number from 40003 on (f:11:41)"},
		{"the same twice", "{ listen: tcp://127.0.0.1:1, map: { 40001: boiler.set, 400001: boiler.temp } }", "holding 0 stands there already, as 40001"},
		{"a number in a bit", `{ listen: tcp://127.0.0.1:1, map: { "00001": boiler.temp } }`, "boiler.temp is int16, and this is one bit"},
		{"a text in a bit", `{ listen: tcp://127.0.0.1:1, map: { "00001": boiler.code } }`, "boiler.code is string(4), and this is one bit"},
		{"a type in a bit", `{ listen: tcp://127.0.0.1:1, map: { "00001": { point: boiler.on, type: uint16 } } }`, "uint16 does not fit coil 0; remove it"},
		{"a text as a number", "{ listen: tcp://127.0.0.1:1, map: { 40001: { point: boiler.code, type: uint16 } } }", "boiler.code is string(4), which uint16 does not hold; write string(4)"},
		{"a text cut short", "{ listen: tcp://127.0.0.1:1, map: { 40001: { point: boiler.code, type: string(3) } } }", "which string(3) does not hold; write string(4)"},
		{"a number as a date", "{ listen: tcp://127.0.0.1:1, map: { 40001: { point: boiler.temp, type: datetime(DT4) } } }", "boiler.temp is a number; write a type of numbers"},
		{"a scaled text", "{ listen: tcp://127.0.0.1:1, map: { 40001: { point: boiler.code, scale: 2 } } }", "is only for a number; remove it"},
		{"past the end", "{ listen: tcp://127.0.0.1:1, map: { 465536: boiler.set } }", "ends past address 65535"},
		{"scale 0", "{ listen: tcp://127.0.0.1:1, map: { 40001: { point: boiler.temp, scale: 0 } } }", "0 makes every value the same"},
		{"an age in a bit", `{ listen: tcp://127.0.0.1:1, map: { "00001": { age: boiler.temp } } }`, "an age in seconds does not fit one bit"},
		{"a status in a float", "{ listen: tcp://127.0.0.1:1, map: { 40001: { status: boiler.temp, type: float32 } } }", "float32 does not fit a number of a status; write uint16 or uint32"},
		{"a scaled age", "{ listen: tcp://127.0.0.1:1, map: { 40001: { age: boiler.temp, scale: 2 } } }", "is only for a point's value; remove it"},
		{"a pause of nobody", "{ listen: tcp://127.0.0.1:1, map: { 40001: { pause: bioler } } }", `there is no device "bioler"; did you mean boiler?`},
		{"a pause in an input", "{ listen: tcp://127.0.0.1:1, map: { 30001: { pause: boiler } } }", "so they need a holding register; write 40001"},
		{"a stale value too wide", "{ listen: tcp://127.0.0.1:1, stale: 70000, map: { 40001: boiler.temp } }", "stale: 70000 is no value of int16"},
		{"a stale text", "{ listen: tcp://127.0.0.1:1, stale: 0, map: { 40001: boiler.code } }", "stale: 0 is no value of string(4)"},
		{"stale what", "{ listen: tcp://127.0.0.1:1, stale: old, map: { 40001: boiler.temp } }", `"old" is none of the words known here`},
		{"pass to nowhere", "{ listen: tcp://127.0.0.1:1, pass: { 2: line2 } }", `there is no bus "line2"; did you mean line1?`},
		{"pass our own unit", "{ listen: tcp://127.0.0.1:1, pass: { 1-3: line1 } }", "unit id 1 is the server's own"},
		{"pass twice", "{ listen: tcp://127.0.0.1:1, pass: { 2-3: line1, 3: plc } }", "unit id 3 goes elsewhere already (f:11:42)"},
		{"pass everyone", "{ listen: tcp://127.0.0.1:1, pass: { 0: line1 } }", "unit id 0 is everyone, who can only be written to; add pass_writes"},
		{"writes without pass", "{ listen: tcp://127.0.0.1:1, map: { 40001: boiler.temp }, pass_writes: true }", "has no effect without pass"},
		{"no span", "{ listen: tcp://127.0.0.1:1, pass: { 2: plc }, pass_writes: [input 3] }", `"input 3" is not a span such as holding 100-120`},
		{"a span backwards", "{ listen: tcp://127.0.0.1:1, pass: { 2: plc }, pass_writes: [coil 9-3] }", "runs backwards; write coil 3-9"},
		{"a port in use", "{ listen: tcp://127.0.0.1:1883, map: { 40001: boiler.temp } }", "the broker listens on port 1883 too"},
	} {
		found := faults(t, served+"  - "+row.server)
		if len(found) != 1 || !strings.Contains(found[0], row.want) || !strings.Contains(found[0], "servers[0]") {
			t.Errorf("%s: %s\nwant one with: %s", row.name, strings.Join(found, "\n"), row.want)
		}
	}
	two := faults(t, served+`
  - { listen: "serial:/dev/ttyS8", map: { 40001: boiler.temp } }
  - { listen: "serial:/dev/../dev/ttyS8", map: { 40001: boiler.temp } }
  - { listen: "udp://127.0.0.1:1502", map: { 40001: boiler.temp } }
  - { listen: "udp://127.0.0.1:1502", map: { 40001: boiler.temp } }
  - { listen: "tcp://127.0.0.1:1502", map: { 40001: boiler.temp } }
  - { listen: "tcp://127.0.0.1:1502", map: { 40001: boiler.temp } }
`)
	if len(two) != 3 || !strings.Contains(two[0], "the port of server serial:/dev/ttyS8 too") || !strings.Contains(two[1], "another server listens there too") ||
		!strings.Contains(two[2], "server tcp://127.0.0.1:1502 listens on port 1502 too") {
		t.Errorf("%s", strings.Join(two, "\n"))
	}
	cfg := load(t, served+`
  - { listen: "tcp://0.0.0.0:502", allow: 0.0.0.0/0, writes: true, map: { 40001: boiler.temp } }
  - { listen: "serial:/dev/ttyS8", unit: 0, map: { 40001: boiler.temp } }
  - { listen: "tcp://127.0.0.1:503", map: { 40001: { pause: boiler } } }
`)
	if w := fmt.Sprint(cfg.Warnings); len(cfg.Warnings) != 3 || !strings.Contains(w, "this server takes no writes") || !strings.Contains(w, "everyone who reaches tcp://0.0.0.0:502 may write") || !strings.Contains(w, "answers for every unit id") {
		t.Errorf("%v", w)
	}
}
