package config

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file, or writes it.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test -update writes it)", err)
	}
	if got == string(want) {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(g), len(w)) {
		a, b := "", ""
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b {
			t.Fatalf("%s:%d:\n got %s\nwant %s", file, i+1, a, b)
		}
	}
}

// load fails the test unless text is a configuration.
func load(t *testing.T, text string) *Config {
	t.Helper()
	cfg, err := LoadBytes("fieldgate.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return cfg
}

// faults returns what is wrong with a text, without the file's name.
func faults(t *testing.T, text string) []string {
	t.Helper()
	_, err := LoadBytes("f", []byte(text))
	if err == nil {
		return nil
	}
	var fs Faults
	if !errors.As(err, &fs) {
		t.Fatalf("%T: %v", err, err)
	}
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = strings.TrimPrefix(f.Error(), "f:")
	}
	return lines
}

func TestSmallest(t *testing.T) {
	cfg := load(t, `
buses:   { plc: { tcp: 10.0.0.10:502 } }
devices: { boiler: { bus: plc, unit: 1, points: { temp: { at: 30001, type: int16, scale: 0.1, unit: "°C" } } } }
uplinks: { cloud: { url: mqtt://broker.example:1883 } }
`)
	host, _ := os.Hostname()
	want := Config{
		Site: Site{ID: host},
		Buses: []Bus{{Name: "plc", Kind: TCP, Address: "10.0.0.10:502", Framing: modbus.FramingTCP,
			Timeout: time.Second, ConnectTimeout: 5 * time.Second, Gap: GapAuto, InFlight: 1, Retries: 1}},
		Devices: []Device{{Name: "boiler", Bus: "plc", Unit: 1, Timeout: time.Second, Retries: 1, Gap: GapAuto,
			MaxRegs: 125, MaxBits: 2000, Holes: HolesAuto, BackoffMin: 5 * time.Second, BackoffMax: 5 * time.Minute,
			Points: []point.Point{{ID: "boiler.temp", Table: modbus.InputRegisters, Type: point.Int16,
				Scale: point.Decimal{Mant: 1, Exp: -1}, Unit: "°C", Every: point.Interval(time.Second)}}}},
		Publish: []Rule{{Points: []string{"*"}, Topic: "{site}/{device}/{point}", QoS: 1,
			When: When{AnyChange: true, AtLeast: 5 * time.Minute}}},
		Uplinks: []Uplink{{Name: "cloud", URLs: []string{"mqtt://broker.example:1883"}, ClientID: host + "-cloud",
			Keepalive: time.Minute, ConnectTimeout: 10 * time.Second, CleanSession: true, MaxQoS: 2,
			TLS:   UplinkTLS{MinVersion: 0x0303},
			Queue: Queue{MaxBytes: 256 << 20, MaxAge: 30 * 24 * time.Hour, Commit: time.Second}}},
		Status: Status{Topic: "fieldgate/" + host, Every: time.Minute},
		Web:    Web{Listen: "127.0.0.1:8080"},
		Log:    Log{Format: "auto"},

		CommandRules: CommandRules{MaxAge: 30 * time.Second, DuplicateWindow: 10 * time.Minute, LossAfter: 30 * time.Second},
	}
	got := *cfg
	if len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0].Text, "is not encrypted") {
		t.Errorf("warnings %v", got.Warnings)
	}
	got.Warnings, got.Sums, got.file, got.places, got.files, got.order = nil, Sums{}, "", nil, nil, nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Every kind of mistake at once, in several files: each one line, sorted.
func TestMistakes(t *testing.T) {
	_, err := Load("testdata/mistakes/fieldgate.yaml")
	var fs Faults
	if !errors.As(err, &fs) {
		t.Fatalf("got %v", err)
	}
	if len(fs) < 40 {
		t.Errorf("%d faults", len(fs))
	}
	golden(t, "testdata/mistakes/faults.txt", fs.Error()+"\n")
	if strings.Contains(fs.Error(), "12345") || strings.Contains(fs.Error(), "user:pw") || strings.Contains(fs.Error(), "secret\"") {
		t.Error("a fault shows a password")
	}
}

const tcpBus = "buses: { b: { tcp: 10.0.0.1:502 } }\n"

// one is a configuration with one device, whose only point is given.
func one(point string) string {
	return tcpBus + "devices: { d: { bus: b, points: { p: " + point + " } } }\n"
}

// Every trap of YAML and every check that needs more than one value: the text,
// and what the fault must say.
func TestFaults(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"nothing", "", `1:1: there is nothing in it; "fieldgate init"`},
		{"comments only", "# x\n", `1:1: there is nothing in it`},
		{"no map", "- a\n", "1:1: is not a configuration, which is a map"},
		{"octal or not", one("{ at: holding 0, bit: 010 }"), "devices.d.points.p.bit: 010 is 8 to some readers of YAML and 10 to others; write 10, or 0o10"},
		{"leading zero", one("{ at: holding 0, bit: 07 }"), "bit: 07 begins with 0, which some readers of YAML take for octal; write 7"},
		{"fraction", one("{ at: holding 0, decimals: 1.5 }"), "decimals: 1.5 is not a whole number; write a whole number from 0 to 15"},
		{"exponent", one("{ at: holding 0, decimals: 1e1 }"), "1e1 is not a whole number"},
		{"underscore", tcpBus + "devices: { d: { bus: b, unit: 1_0, points: {} } }", `"1_0" is not a unit id`},
		{"underscore in a number", one("{ at: holding 0, decimals: 1_0 }"), "1_0 has _ in it, which YAML 1.2 does not know; write 10"},
		{"quoted number", one(`{ at: holding 0, decimals: "1" }`), "the quotes make it text; write 1 without them"},
		{"coil without quotes", one("{ at: 00001 }"), `00001 without quotes is another number to some readers of YAML; write "00001", or coil 0`},
		{"coil with too few digits", one("{ at: 0017 }"), `0017 begins with 0`},
		{"bare number", one("{ at: 100 }"), `100 can be read in two ways: write "holding 100" for protocol address 100, or 40100`},
		{"yes", one("{ at: holding 0, write: { verify: yes } }"), "yes is not a boolean here; write true"},
		{"off", one("{ at: holding 0, write: { verify: off } }"), "off is not a boolean here; write false"},
		{"true in quotes", one(`{ at: holding 0, write: { verify: "true" } }`), "the quotes make it text; write true without them"},
		{"boolean for a word", "buses: { b: { serial: /dev/a, rs485: false } }", "false is a boolean; write off"},
		{"decimal comma", one(`{ at: holding 0, scale: "0,1" }`), "write a point, not a comma: 0.1"},
		{"scale of 0", one("{ at: holding 0, scale: 0.0 }"), "points.p.scale: 0 makes every value the same"},
		{"decimal comma in braces", one("{ at: holding 0, scale: 0,1 }"), "points.p.1: is not a key of a point; if it is what follows a decimal comma, write a point instead"},
		{"no unit of a long time", "uplinks: { u: { url: mqtts://h, queue: { max_age: 30 } } }", "30 has no unit; write 30s or 30d"},
		{"no unit", "buses: { b: { tcp: 10.0.0.1:502, timeout: 500 } }", "500 has no unit; write 500s or 500ms"},
		{"no space", "buses: { b: {tcp:10.0.0.1:502} }", "write a space after the colon: tcp: 10.0.0.1:502"},
		{"number for a text", tcpBus + "uplinks: { u: { url: mqtts://h, username: 0123 } }", `0123 is a number to YAML, and a user name is wanted; write "0123" in quotes`},
		{"boolean for a text", tcpBus + "uplinks: { u: { url: mqtts://h, username: true } }", `true is a boolean to YAML`},
		{"empty value", "buses:\n", "1:7: buses: is empty; write a map from names to buses, or {} for the defaults, or remove the key"},
		{"null for a map", one("{ at: holding 0, write: }"), "write: is empty; write a map of the keys of write (min, max, step, …), or {} for the defaults"},
		{"true for write", one("{ at: holding 0, write: true }"), `write: "true" is not a map of the keys of write`},
		{"merge key", "buses:\n  a: &a { tcp: 10.0.0.1:502 }\n  b: { <<: *a, timeout: 2s }\n", "3:8: buses.b.<<: merge keys (<<) are not part of YAML 1.2"},
		{"tag", "log: { level: !!str info }\n", "the tag !!str has no meaning here; remove it"},
		{"second document", "log: {}\n---\nlog: {}\n", "2:1: a second document begins here"},
		{"tab", "log:\n\tlevel: info\n", "2:1: a tab in the indentation, which YAML forbids; write spaces"},
		{"key twice", "log: { level: info, level: warn }\n", "1:21: log.level: is given twice, first at f:1:8; keep one"},
		{"name twice", "buses:\n  a: { tcp: 10.0.0.1:502 }\n  a: { tcp: 10.0.0.2:502 }\n", "3:3: buses.a: is given twice, first at f:2:3"},
		{"cycle", "devices: &d { a: *d }\n", "*d stands inside of what it stands for; write that out"},
		{"no YAML", "log: [\n", "this is not YAML"},
		{"IPv6 without quotes", "buses: { b: { tcp: [::1]:502 } }\n", `put an IPv6 address in quotes: "[::1]:502"`},
		{"IPv6 without brackets", `buses: { b: { tcp: "fe80::1" } }`, `"fe80::1" has no port; write "[fe80::1]:502"`},
		{"list for a text", "log: { level: [info] }\n", "is a list; write one of debug, info, warn, error"},
		{"text for a list", "publish: all\n", `"all" is not a list of rules`},
		{"empty list", "publish: []\n", "publish: is an empty list; write rules, or remove the key"},
		{"control character", "site: { id: \"a\\x01\" }\n", "there is a control character in it"},
		{"nearest key", "buses: { b: { tcp: 10.0.0.1:502, retrys: 1 } }", "buses.b.retrys: is not a key of a bus; did you mean retries?"},
		{"another product's key", "buses: { b: { host: 10.0.0.1:502 } }", "buses.b.host: is not a key of a bus; it is called tcp here"},
		{"another product's type", one("{ at: holding 0, type: dint }"), `"dint" is not a type; it is called int32 here`},
		{"type in capitals", one("{ at: holding 0, type: FLOAT32 }"), `"FLOAT32" is spelt another way; write float32`},
		{"no kind of bus", "buses: { b: { timeout: 1s } }", "gives 0 of serial, tcp, udp and listen; write exactly one"},
		{"no port", "buses: { b: { tcp: 10.0.0.1 } }", `"10.0.0.1" has no port; write 10.0.0.1:502`},
		{"port 0", "buses: { b: { tcp: 10.0.0.1:0 } }", "port 0 is outside 1 to 65535"},
		{"no host", `buses: { b: { tcp: ":502" } }`, "names no host"},
		{"scheme", "buses: { b: { tcp: tcp://10.0.0.1:502 } }", "has a scheme (tcp://); write only 10.0.0.1:502"},
		{"serial key on tcp", "buses: { b: { tcp: 10.0.0.1:502, mode: 9600-8N1 } }", "buses.b.mode: is only for a serial line; remove it"},
		{"tcp key on serial", "buses: { b: { serial: /dev/a, connect_timeout: 1s } }", "is only for tcp; remove it"},
		{"rs485 key without it", "buses: { b: { serial: /dev/a, delay_after: 1ms } }", "is only for rs485: kernel or rts"},
		{"7 bits", "buses: { b: { serial: /dev/a, mode: 9600-7E1 } }", "RTU needs 8 data bits; write 9600-8E1, or framing: ascii"},
		{"baud", "buses: { b: { serial: /dev/a, mode: 9999999-8E1 } }", "9999999 baud is outside 50 to 4000000"},
		{"in flight on serial", "buses: { b: { serial: /dev/a, in_flight: 4 } }", "in_flight: only a TCP connection with framing tcp tells answers apart; write 1"},
		{"in flight on rtu over tcp", "buses: { b: { tcp: 10.0.0.1:502, framing: rtu, in_flight: auto } }", "only a TCP connection with framing tcp"},
		{"one port twice", "buses: { a: { serial: /dev/a }, b: { serial: /dev//a } }", "/dev//a is the port of bus a too (f:1:10)"},
		{"listen twice", `buses: { a: { listen: "0.0.0.0:5020" }, b: { listen: "127.0.0.1:5020" } }`, "bus a listens on port 5020 too"},
		{"unknown bus", tcpBus + "devices: { d: { bus: bb, points: {} } }", `devices.d.bus: there is no bus "bb"; did you mean b?`},
		{"no bus", "devices: { d: { points: { p: { initial: 5, keep: true }, q: { type: float32 }, r: { at: holding 0, from: a/b } } } }", "devices.d: bus is missing, and r has an address; add bus: NAME, or remove at from its points"},
		{"no points", tcpBus + "devices: { d: { bus: b } }", "points is missing; add it"},
		{"unit twice", tcpBus + "devices: { d: { bus: b, points: {} }, e: { bus: b, unit: 1, points: {} } }", "devices.e.unit: unit id 1 is that of device d on bus b already"},
		{"unit in a range", tcpBus + `devices: { "d{unit}": { bus: b, unit: 1-4, points: {} }, e: { bus: b, unit: 3, points: {} } }`, "unit id 3 is that of device d3 on bus b already"},
		{"range without a name", tcpBus + "devices: { d: { bus: b, unit: 1-4, points: {} } }", "several unit ids need a name for each; write d-{unit}"},
		{"range meets a name", tcpBus + `devices: { d2: { bus: b, unit: 9, points: {} }, "d{unit}": { bus: b, unit: 1-4, points: {} } }`, "makes the device d2, which is there already"},
		{"reserved unit", "buses: { b: { serial: /dev/a } }\ndevices: { d: { bus: b, unit: 250, points: {} } }", "unit id 250 is reserved; on a serial line write 1 to 247"},
		{"broadcast read", "buses: { b: { serial: /dev/a } }\ndevices: { d: { bus: b, unit: 0, points: { p: { at: holding 0 } } } }", "unit id 0 is everyone, and nobody answers"},
		{"broadcast polled", "buses: { b: { serial: /dev/a } }\ndevices: { d: { bus: b, unit: 0, points: { p: { at: holding 0, every: 1s, write: {} } } } }", "nobody answers unit id 0; remove it"},
		{"base", tcpBus + "devices: { d: { bus: b, base: 1, points: { p: { at: holding 0 } } } }", `"holding 0": 0 is outside 1-65536`},
		{"base 0", one("{ at: holding 65536 }"), `points.p.at: "holding 65536": 65536 is outside 0-65535`},
		{"base 1", tcpBus + "devices: { d: { bus: b, base: 1, points: { o: { at: holding 65536 }, p: { at: holding 65537 } } } }", `points.p.at: "holding 65537": 65537 is outside `},
		{"device name", tcpBus + "devices: { a.b: { bus: b, points: {} } }", "may not hold a dot, which stands between device and point"},
		{"point name", tcpBus + "devices: { d: { bus: b, points: { a/b: { at: holding 0 } } } }", `the name "a/b" may not hold '/' there`},
		{"point twice", tcpBus + "devices: { d: { bus: b, points: { s: { at: holding 0, bits: { a: 1 } }, s.a: { at: holding 1 } } } }", "there are two points s.a, the other at f:2:63"},
		{"bits backwards", one("{ at: holding 0, bits: { a: 6-4 } }"), "bits.a: 6-4 runs backwards; write 4-6"},
		{"bits of a long", one("{ at: holding 0, type: int32, bits: { a: 0 } }"), "bits.a: bit and bits cut a single register (uint16), not int32"},
		{"bit of a coil", one("{ at: coil 0, bits: { a: 1 } }"), "cuts a register, and a coil is one bit already"},
		{"byte of a word", one("{ at: holding 0, byte: low }"), "is only for int8 and uint8"},
		{"bool register", one("{ at: holding 0, type: bool }"), "points.p.type: type bool on a register needs bit: 0-15"},
		{"end of the table", one("{ at: holding 65535, type: float32 }"), "ends past address 65535"},
		{"wide invalid", one("{ at: holding 0, invalid: 0x10000 }"), "0x10000 is wider than uint16"},
		{"write to an input", one("{ at: input 0, write: {} }"), "write: input 0 can only be read"},
		{"function", one("{ at: holding 0, write: { function: 5 } }"), "function 5 does not write holding registers; write 6 or 16"},
		{"map twice", one("{ at: holding 0, map: { 0: a, 0x0: b } }"), "map.0x0: is given twice"},
		{"text twice that is written", one("{ at: holding 0, map: { 0: ok, 1: fault, 2: fault }, write: {} }"), `points.p.map: "fault" stands for 1 and for 2, so that a write of it would be a guess`},
		{"map key", one("{ at: holding 0, map: { a: b } }"), `the key "a" is not a raw number`},
		{"group over two tables", tcpBus + "devices: { d: { bus: b, points: { p: { at: holding 0, group: g }, q: { at: input 0, group: g } } } }", "q is in another table than p"},
		{"group at two intervals", tcpBus + "devices: { d: { bus: b, points: { p: { at: holding 0, group: g }, q: { at: holding 1, group: g, every: 5s } } } }", "q is read at another interval than p"},
		{"wide group", tcpBus + "devices: { d: { bus: b, max_block: 10, points: { p: { at: holding 0, group: g }, q: { at: holding 10, group: g } } } }", "group g spans 11 registers, from 0 to 10, and one request reads at most 10"},
		{"group with a hole", tcpBus + "devices: { d: { bus: b, holes: 2, points: { p: { at: holding 0, group: g }, q: { at: holding 8, type: uint32, group: g }, r: { at: holding 4 } } } }", "group g has a hole of 3 registers, from 1 to 3, and holes: 2 forbids to read them; write holes: 3"},
		{"wide point", tcpBus + "devices: { d: { bus: b, max_block: 1, points: { p: { at: holding 0 }, q: { at: holding 2, type: float32 } } } }", "devices.d.points.q.type: float32 is 2 registers, and max_block lets one request read 1"},
		{"unknown group", tcpBus + "devices: { d: { bus: b, every: { fats: 1s }, points: { p: { at: holding 0, group: fast } } } }", "devices.d.every.fats: no point of this device has the group fats; did you mean fast?"},
		{"backoff", tcpBus + "devices: { d: { bus: b, backoff: 5m..5s, points: {} } }", "5m..5s runs backwards; write 5s..5m"},
		{"unknown uplink", tcpBus + "uplinks: { cloud: { url: mqtts://h } }\npublish: [{ to: clod }]", `publish[0].to: there is no uplink "clod"; did you mean cloud?`},
		{"no broker", "publish: [{ to: [local] }]", "publish[0].to[0]: local is the embedded broker, and there is none; add broker: {}"},
		{"placeholder", "publish: [{ topic: \"{Nmae}\" }]", `"{Nmae}" is not a placeholder; did you mean {Name}?`},
		{"brace", "publish: [{ topic: \"a/{site\" }]", "has a brace without its other half"},
		{"wildcard", "publish: [{ topic: a/+/b }]", "'+' is a wildcard"},
		{"when and every", "publish: [{ when: each, every: 5s }]", "every: stands beside when"},
		{"template", "publish: [{ payload: { template: {} } }]", "template is not in this version yet"},
		{"held heartbeat", "publish: [{ when: { at_least: 1m, at_most: 2m } }]", "at_most 2m would hold back the heartbeat at_least 1m"},
		{"scheme of an uplink", "uplinks: { u: { url: ssl://h } }", "the scheme ssl is called mqtts here; write mqtts://h"},
		{"no scheme", "uplinks: { u: { url: h:1883 } }", `"h:1883" is not a URL; write mqtt://h:1883 or mqtts://h:1883`},
		{"user in the URL", "uplinks: { u: { url: mqtts://me:pw@h } }", `"mqtts://***@h" has a user in it`},
		{"user in a URL of another scheme", "uplinks: { u: { url: tcp://me:pw@h } }", "write mqtt://***@h"},
		{"user in no URL", "uplinks: { u: { url: \"me:pw@h\" } }", "\"***@h\" is not a URL; write mqtt://***@h"},
		{"path", "uplinks: { u: { url: mqtts://h/x } }", "has a path, which only ws:// and wss:// have"},
		{"password alone", "uplinks: { u: { url: mqtts://h, password: { env: A } } }", "stands without username"},
		{"azure and a password", "uplinks: { u: { url: mqtts://h, username: u, password: { env: A }, azure_sas: { key: { env: B } } } }", "uplinks.u.password: stands beside azure_sas, which makes the password; remove one of them"},
		{"azure in the open", "uplinks: { u: { url: mqtt://localhost, azure_sas: { key: { env: B } } } }", "an Azure IoT Hub takes encrypted connections only; write url: mqtts://NAME.azure-devices.net"},
		{"azure with a key that is none", "uplinks: { u: { url: mqtts://h, azure_sas: { key: s3cret-s3cret } } }", "the key is not base64; copy it from the device's page in the portal"},
		{"azure without a key", "uplinks: { u: { url: mqtts://h, azure_sas: { ttl: 1h } } }", "uplinks.u.azure_sas: key is missing"},
		{"azure for a moment", "uplinks: { u: { url: mqtts://h, azure_sas: { key: { env: B }, ttl: 1m } } }", "uplinks.u.azure_sas.ttl: "},
		{"no quality at all", "uplinks: { u: { url: mqtts://h, max_qos: 0 } }", "uplinks.u.max_qos: 0 is outside 1 to 2"},
		{"two sources", "uplinks: { u: { url: mqtts://h, username: a, password: { env: A, file: b } } }", "write exactly one of file, env and credential"},
		{"tls without tls", "uplinks: { u: { url: mqtt://localhost, tls: {} } }", "no url is encrypted, so this has no effect"},
		{"key without cert", "uplinks: { u: { url: mqtts://h, tls: { key: a.pem } } }", "uplinks.u.tls.key: stands without cert"},
		{"key of a bundle", "uplinks: { u: { url: mqtts://h, tls: { cert: a.pfx, key: a.pem } } }", "a PKCS#12 file holds its key"},
		{"password of a PEM file", "uplinks: { u: { url: mqtts://h, tls: { cert: a.pem, password: { env: A } } } }", "is only for PKCS#12 files"},
		{"same client id", "uplinks: { a: { url: mqtts://h, client_id: x }, b: { url: mqtts://h, client_id: x } }", "uplink a is x at mqtts://h:8883 too"},
		{"reserved uplink", "uplinks: { local: { url: mqtts://h } }", "local is the embedded broker's name"},
		{"open broker", "broker: { listen: mqtt://0.0.0.0:1883, anonymous: true }", "everyone who reaches mqtt://0.0.0.0:1883 could publish and subscribe"},
		{"broker without certificate", "broker: { listen: mqtts://127.0.0.1, anonymous: true }", "need a certificate"},
		{"plain password of a user", "broker: { users: [{ name: a, password: hunter2 }] }", "is not a password's hash"},
		{"comma in a password", "uplinks: { u: { url: mqtts://h, username: a, password: hunter,secret2 } }", "1:63: uplinks.u: the password before it has a comma in it; put it in quotes"},
		{"user twice", "broker: { users: [{ name: a, password: '" + hash + "' }, { name: a, password: '" + hash + "' }] }", "broker.users[1].name: there is a user \"a\" already"},
		{"later", "tests: []\n", "1:8: tests: is not in this version yet; remove it"},
		{"later profile", tcpBus + "devices: { d: { bus: b, profile: x, points: {} } }", "profile: is not in this version yet; remove it"},
		{"later aggregate", "publish: [{ every: 1m, aggregate: { power: avg } }]", "aggregate: is not in this version yet; remove it"},
		{"web for others", "web: { listen: 0.0.0.0:8080 }\n", "web.listen: \"0.0.0.0:8080\" is open to other machines, which needs users"},
		{"web on a port alone", "web: { listen: \":8080\" }\n", "web.listen: \":8080\" is open to other machines"},
		{"web without a port", "web: { listen: 127.0.0.1 }\n", "web.listen: \"127.0.0.1\" has no port; write 127.0.0.1:8080"},
		{"web with users", "web: { users: [] }\n", "web.users: is not in this version yet; remove it"},
		{"web as a word", "web: on\n", "web: "},
		{"web with what is to come", "web: { page: true }\n", "web.page: "},
		{"web on a port that is taken", "broker: { listen: mqtt://127.0.0.1:8080, anonymous: true }\nweb: { listen: 127.0.0.1:8080 }\n", "web.listen: the broker listens on port 8080 too"},
		{"UTF-16", "\xff\xfea\x00", "the file is UTF-16; save it as UTF-8"},
		{"Latin-1", "site: { id: K\xe4lte }", "save the file as UTF-8 text"},
		{"decimal in words", one("{ at: holding 0, scale: ten }"), "\"ten\" is not a number; write a number"},
		{"decimal with a leading zero", one("{ at: holding 0, offset: 010 }"), "offset: 010 is 8 to some readers"},
		{"decimal with too many digits", one("{ at: holding 0, scale: 1234567890123456789012 }"), "has more digits than"},
		{"decimal list", one("{ at: holding 0, scale: [1] }"), "scale: is a list; write a number"},
		{"too many bits", one("{ at: holding 0, decimals: 99999999999999999999 }"), "has more than 64 bits"},
		{"word for a number", one("{ at: holding 0, decimals: two }"), "\"two\" is not a whole number from 0 to 15"},
		{"word in quotes for a number", one("{ at: holding 0, decimals: \"two\" }"), "\"two\" is not a whole number from 0 to 15"},
		{"empty text", "site: { id: \"\" }", "site.id: is empty; write a name for this gateway"},
		{"boolean word", one("{ at: holding 0, write: { verify: maybe } }"), "\"maybe\" is not true or false"},
		{"duration of words", "buses: { b: { tcp: 10.0.0.1:502, timeout: soon } }", "\"soon\" is not a duration; write a duration such as 300ms, 1s, 5m or 30d"},
		{"duration that is long", "buses: { b: { tcp: 10.0.0.1:502, timeout: 99999999999d } }", "is outside 1ms to 10m"},
		{"size of words", "broker: { anonymous: true, max_packet: big }", "\"big\" is not a size; write a size such as 64KiB or 256MiB"},
		{"size below 0", "broker: { anonymous: true, max_packet: -1 }", "-1 is below 0"},
		{"size that is small", "broker: { anonymous: true, max_packet: 12B }", "12B is outside 1KiB to 256MiB"},
		{"size with a fraction", "broker: { anonymous: true, max_packet: 1.5 }", "1.5 is not a whole number"},
		{"long name", "buses: { " + strings.Repeat("b", 101) + ": { tcp: 10.0.0.1:502 } }", "is longer than 100 bytes"},
		{"empty name", "buses: { \"\": { tcp: 10.0.0.1:502 } }", "is empty; write a name"},
		{"names from a list", "buses: [a]", "buses: is a list; write a map from names to buses"},
		{"merge key among names", "uplinks: { <<: { url: mqtts://h } }", "merge keys (<<) are not part of YAML 1.2"},
		{"merge key in a map", one("{ at: holding 0, map: { <<: a } }"), "merge keys (<<) are not part of YAML 1.2"},
		{"map list", one("{ at: holding 0, map: [a] }"), "map: is a list; write a map from raw numbers to texts"},
		{"map key in octal", one("{ at: holding 0, map: { 010: a } }"), "010 is 8 to some readers"},
		{"map key of 64 bits", one("{ at: holding 0, map: { 9223372036854775808: a } }"), "has more than 63 bits"},
		{"address list", one("{ at: [1] }"), "at: is a list; write an address such as holding 0 or 40001"},
		{"address in capitals", one("{ at: Holding 3 }"), "\"Holding 3\" is spelt another way; write holding 3"},
		{"address without leading table", one("{ at: 0x10 }"), "\"0x10\" is not an address"},
		{"bad Modicon number in octal", one("{ at: 000000 }"), "000000 without quotes is another number to some readers of YAML"},
		{"type list", one("{ at: holding 0, type: [a] }"), "type: is a list; write a type such as int16 or float32"},
		{"type without length", one("{ at: holding 0, type: string }"), "string takes its length in registers"},
		{"unit list", tcpBus + "devices: { d: { bus: b, unit: [1], points: {} } }", "unit: is a list; write a unit id from 0 to 255"},
		{"unit in words", tcpBus + "devices: { d: { bus: b, unit: one, points: {} } }", "\"one\" is not a unit id"},
		{"unit id twice in a range", tcpBus + "devices: { \"d{unit}\": { bus: b, unit: \"1-3,2\", points: {} } }", "names unit id 2 twice"},
		{"backoff in words", tcpBus + "devices: { d: { bus: b, backoff: 5s, points: {} } }", "\"5s\" is not a span of time; write two durations such as 5s..5m"},
		{"backoff list", tcpBus + "devices: { d: { bus: b, backoff: [], points: {} } }", "backoff: is a list"},
		{"mode in words", "buses: { b: { serial: /dev/a, mode: 9600 } }", "\"9600\" is not a serial mode"},
		{"relative port", "buses: { b: { serial: ttyUSB0 } }", "\"ttyUSB0\" is not a whole path; write /dev/ttyUSB0"},
		{"bad port", "buses: { b: { tcp: \"10.0.0.1:http\" } }", "\"http\" is not a port"},
		{"bad brackets", "buses: { b: { tcp: \"[::1:502\" } }", "is not HOST:PORT"},
		{"no IPv6 address", "buses: { b: { tcp: \"[zz]:502\" } }", "\"zz\" is not an IPv6 address"},
		{"bad host", "buses: { b: { tcp: \"a b:502\" } }", "\"a b\" is not the name or address of a host"},
		{"bit of a word", one("{ at: holding 0, bits: { a: 16-17 } }"), "\"16-17\" is not a bit; write a bit from 0 to 15"},
		{"no bits", one("{ at: holding 0, bits: {} }"), "points.p.bits: is an empty map, so that there would be no point"},
		{"empty map", one("{ at: holding 0, map: {} }"), "points.p.map: is an empty map; write raw numbers with their texts"},
		{"bit and bits", one("{ at: holding 0, bit: 1, bits: { a: 1 } }"), "bits: stands beside bit"},
		{"wide negative invalid", one("{ at: holding 0, type: int16, invalid: -32769 }"), "-32769 is wider than int16"},
		{"invalid of text", one("{ at: holding 0, type: string(9), invalid: 1 }"), "1 is wider than string(9)"},
		{"huge invalid", one("{ at: holding 0, type: int64, invalid: -9223372036854775809 }"), "has more than 64 bits"},
		{"rate in words", one("{ at: holding 0, write: { rate: often } }"), "\"often\" is not a rate; write how often at most"},
		{"rate over no time", one("{ at: holding 0, write: { rate: 1/0s } }"), "\"1/0s\" is over no time"},
		{"budget in words", one("{ at: holding 0, write: { budget: 200 } }"), "\"200\" is not a budget; write a number of writes a day"},
		{"function that reads", one("{ at: holding 0, write: { function: 3 } }"), "3 is not a function that writes"},
		{"min above max", one("{ at: holding 0, write: { min: 2, max: 1 } }"), "write: min 2 is above max 1"},
		{"only in octal", one("{ at: holding 0, write: { only: [010] } }"), "only[0]: 010 is 8 to some readers"},
		{"only out of range", one("{ at: holding 0, write: { only: [-1] } }"), "points.p.write: only: "},
		{"only list", one("{ at: holding 0, write: { only: [[]] } }"), "only[0]: is a list; write a value"},
		{"verified broadcast", "buses: { b: { serial: /dev/a } }\ndevices: { d: { bus: b, unit: 0, points: { p: { at: holding 0, write: { verify: true } } } } }", "points.p.write.verify: nobody answers unit id 0; write false"},
		{"slash in the site", "site: { id: a/b }", "\"/\" cannot be part of it"},
		{"glob without a dot", "publish: [{ points: boiler }]", "\"boiler\" fits no point, whose names are device.point; write boiler.*"},
		{"filter", "broker: { users: [{ name: a, password: '" + hash + "', publish: [a/#/b] }] }", "publish[0]: \"a/#/b\" is not a topic filter: # must be the last level"},
		{"filter with a wildcard in a level", "broker: { users: [{ name: a, password: '" + hash + "', subscribe: [a+] }] }", "+ and # must each be a level of its own"},
		{"payload", "publish: [{ payload: josn }]", "\"josn\" is none of the words known here; did you mean json?"},
		{"when in words", "publish: [{ when: always }]", "when: \"always\" is not each, or a map such as {change: 0.2, at_least: 5m}"},
		{"change in words", "publish: [{ when: { change: some } }]", "\"some\" is not a number; write any, a dead band such as 0.2"},
		{"change in percent", "publish: [{ when: { change: x% } }]", "\"x%\" is not a dead band"},
		{"change below 0", "publish: [{ when: { change: -1 } }]", "-1 is below 0"},
		{"change list", "publish: [{ when: { change: [] } }]", "change: is a list; write any, a dead band"},
		{"bad that is empty", "publish: [{ bad: }]", "bad: is empty; write null or nothing"},
		{"bad in words", "publish: [{ bad: skip }]", "does not say what becomes of a failed read"},
		{"unknown scheme", "uplinks: { u: { url: ftp://h } }", "the scheme \"ftp\" is not known; write mqtt, mqtts, ws or wss"},
		{"fragment", "uplinks: { u: { url: \"wss://h/x#y\" } }", "has a ? or # in it"},
		{"escape in a URL", "uplinks: { u: { url: \"mqtts://%zz\" } }", "\"mqtts://%zz\" is not a URL"},
		{"port of a URL", "uplinks: { u: { url: mqtts://h:99999 } }", "port 99999 is outside 1 to 65535"},
		{"proxy", "uplinks: { u: { url: mqtts://h, proxy: \"me:pw@h\" } }", "is not the URL of a proxy"},
		{"proxy without host", "uplinks: { u: { url: mqtts://h, proxy: \"http://:3128\" } }", "\"http://:3128\" is not the URL of a proxy"},
		{"credential path", "uplinks: { u: { url: mqtts://h, username: a, password: { credential: a/b } } }", "a credential is a name, not a path"},
		{"password list", "uplinks: { u: { url: mqtts://h, username: a, password: [x] } }", "password: is a list; write {file: PATH}"},
		{"empty password", "uplinks: { u: { url: mqtts://h, username: a, password: \"\" } }", "password: is empty; write {file: PATH}"},
		{"old TLS", "uplinks: { u: { url: mqtts://h, tls: { min: 1.0 } } }", "\"1.0\" is not a version of TLS that is safe"},
		{"empty password hash", "broker: { users: [{ name: a, password: }] }", "password: is empty; write its argon2id hash"},
		{"odd password hash", "broker: { users: [{ name: a, password: \"$argon2id$v=19$m=1,t=x,p=1$a$b\" }] }", "is not a password's hash"},
		{"lan without anonymous", "broker: { users: [{ name: a, password: '" + hash + "' }], anonymous_lan: true }", "has no effect without anonymous: true"},
		{"broker tls without tls", "broker: { anonymous: true, tls: { cert: a, key: b } }", "no listener is encrypted"},
		{"two brokers on a port", "broker: { anonymous: true, listen: [mqtt://127.0.0.1:1883, ws://127.0.0.1:1883] }", "the broker listens on port 1883 too"},
		{"points list", tcpBus + "devices: { d: { bus: b, points: [a] } }", "devices.d.points: is a list; write a map from names to points"},
		{"long value", "log: { level: " + strings.Repeat("x", 100) + " }", "…\" is none of the words"},
		{"long key", "log: { " + strings.Repeat("x", 100) + ": 1 }", "is not a key of log; known: level, format"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := faults(t, tt.text)
			if len(got) != 1 || !strings.Contains(got[0], tt.want) {
				t.Errorf("got\n  %s\nwant one fault with\n  %s\nfor\n%s", strings.Join(got, "\n  "), tt.want, tt.text)
			}
		})
	}
}

// Faults of virtual devices.
func TestVirtualFaults(t *testing.T) {
	v := func(points string) string {
		return "site: { id: s }\nbroker: { anonymous: true }\ndevices: { v: { points: { " + points + " } } }"
	}
	for _, tt := range []struct{ name, text, want string }{
		{"on a bus", one("{ at: holding 0, initial: 3 }"), "p.initial: is for devices without a bus, whose values live in memory; remove it, or the device's bus"},
		{"on a bus, too", one("{ at: holding 0, from: a/b }"), "p.from: is for devices without a bus"},
		{"no address on a bus", one("{ type: int16 }"), "p: at is missing; add it"},
		{"key of a bus", "devices: { v: { unit: 3, points: { p: { initial: 1 } } } }", "devices.v.unit: is only for devices on a bus, and this one has none; remove it"},
		{"interval", "devices: { v: { every: 1s, points: { p: { initial: 1 } } } }", "devices.v.every: is only for devices on a bus"},
		{"unit in the name", `devices: { "v{unit}": { points: { p: { initial: 1 } } } }`, "a device without a bus has no unit id; write a name without {unit}"},
		{"name", tcpBus + `devices: { "v{unit}": { bus: b, points: {} }, v1: { points: {} } }`, "makes the device v1, which is there already"},
		{"bit", v("p: { initial: 1, bit: 3 }"), "p.bit: is only for points of a device on a bus; remove it"},
		{"invalid", v("p: { initial: 1, invalid: [0] }"), "p.invalid: is only for points of a device on a bus"},
		{"function", v("p: { write: { function: 6 } }"), "p.write.function: is for registers of a device on a bus; remove it"},
		{"initial that does not fit", v("p: { type: uint8, initial: 300 }"), "p.initial: 300 is outside 0 to 255 (uint8); write another value, or another type"},
		{"initial of another kind", v("p: { initial: true }"), "p.initial: true is no number; write another value, or another type"},
		{"initial in words", v("p: { initial: full }"), `p.initial: "full" is not a number`},
		{"initial past a limit", v("p: { initial: 120, write: { max: 100 } }"), "p.initial: 120 is above the most, 100, by its own write settings"},
		{"initial list", v("p: { initial: [1] }"), "p.initial: is a list; write a value"},
		{"wildcard", v("p: { from: a/+/b }"), "p.from: '+' is a wildcard"},
		{"placeholder", v("p: { from: \"a/{unit}\" }"), `p.from: "{unit}" is not a placeholder`},
		{"no topic", v("p: { from: { key: x } }"), "p.from: topic is missing"},
		{"stale alone", v("p: { initial: 1, stale: 5s }"), "p.stale: is how long a value from a topic counts, and there is none; add from: TOPIC, or remove it"},
		{"keep alone", v("p: { initial: 1, keep: true }"), "p.keep: nothing changes the value, so there is nothing to save"},
		{"unknown uplink", v("p: { from: { topic: a, uplink: clod } }"), `p.from.uplink: there is no uplink "clod"; known: local`},
		{"no broker", "uplinks: { u: { url: mqtts://h } }\ndevices: { v: { points: { p: { from: { topic: a, uplink: local } } } } }", "p.from.uplink: local is the embedded broker, and there is none; add broker: {}"},
		{"nobody", "devices: { v: { points: { p: { from: a } } } }", "nobody brings messages for v.p: there are no uplinks and no broker; add uplinks: or broker:"},
		{"scale of text", v("p: { type: string(4), scale: 2 }"), "p.scale: scale, offset and decimals need a number"},
		{"scale 0", v("p: { initial: 1, scale: 0 }"), "p.scale: 0 makes every value the same"},
		{"points list", "devices: { v: { points: [a] } }", "devices.v.points: is a list; write a map from names to points"},
		{"twice", v("p: { initial: 1 }, p: { initial: 2 }"), "p: is given twice"},
		{"name of a point", v("\"a/b\": { initial: 1 }"), "may not hold '/' there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := faults(t, tt.text)
			if len(got) != 1 || !strings.Contains(got[0], tt.want) {
				t.Errorf("got\n  %s\nwant one fault with\n  %s\nfor\n%s", strings.Join(got, "\n  "), tt.want, tt.text)
			}
		})
	}
}

// What a virtual device comes to.
func TestVirtual(t *testing.T) {
	cfg, err := LoadBytes("f", []byte(`
site: { id: s }
broker: { anonymous: true }
uplinks: { u: { url: mqtts://h }, w: { url: mqtts://i } }
devices:
  v:
    order: CDAB
    points:
      a: { from: "in/{site}/{device}/{point}", stale: 5s }
      b: { from: { topic: x, key: b, uplink: u }, type: int16, scale: 0.1, initial: 20.04, keep: true }
      c.d: { type: bool, initial: on, write: {} }
      e: { type: string(4), initial: 12, write: {} }
      f: { type: uint16, map: { 0: stopped, 1: running }, initial: running, write: {} }
      g: { type: float32 }
`))
	if err != nil {
		t.Fatal(err)
	}
	d := cfg.Devices[0]
	if !d.Virtual() || len(d.Points) != 6 || len(d.Sources) != 6 {
		t.Fatalf("device %+v", d)
	}
	all := []string{Local, "u", "w"}
	want := []Virtual{
		{Topic: "in/s/v/a", Key: "value", From: all, Stale: 5 * time.Second},
		{Topic: "x", Key: "b", From: []string{"u"}, Initial: point.DecimalValue(point.Decimal{Mant: 20}), Keep: true},
		{Initial: point.BoolValue(true)}, {Initial: point.TextValue("12")}, {Initial: point.TextValue("running")}, {},
	}
	if !reflect.DeepEqual(d.Sources, want) {
		t.Errorf("sources %+v\nwant    %+v", d.Sources, want)
	}
	if p := d.Points[0]; p.ID != "v.a" || p.Type != point.Float64 || p.Table != 0 || p.Every != point.Never || p.Order != point.CDAB {
		t.Errorf("point %+v", p)
	}
	if len(cfg.Warnings) != 1 || cfg.Warnings[0].Text != "nothing sets it; add initial, from or write" {
		t.Errorf("warnings %v", cfg.Warnings)
	}
}

const hash = "$argon2id$v=19$m=16384,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo"

func TestWarnings(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"plain password", "uplinks: { u: { url: mqtts://h, username: a, password: hunter2 } }", "uplinks.u.password: stands here for everyone to read"},
		{"not encrypted", "uplinks: { u: { url: ws://h/x } }", "uplinks.u.url: ws://h:80 is not encrypted"},
		{"insecure", "uplinks: { u: { url: mqtts://h, tls: { insecure: true } } }", "uplinks.u.tls: insecure: the broker's certificate is not checked"},
		{"open broker", "broker: { listen: mqtt://0.0.0.0:1883, anonymous: true, anonymous_lan: true }", "broker.anonymous_lan: everyone who reaches mqtt://0.0.0.0:1883 may publish"},
		{"lonely broker", "broker: {}", "broker: nobody can connect"},
		{"idle bus", tcpBus, "buses.b: no device is on it"},
		{"nothing", "buses: {}", "there is nothing to do; add buses:"},
		{"nowhere", one("{ at: holding 0 }"), "values go nowhere"},
		{"no points", tcpBus + "broker: { anonymous: true }\ndevices: { d: { bus: b, points: {} } }", "devices.d.points: there are no points in it"},
		{"password of a proxy", "uplinks: { u: { url: mqtts://h, proxy: \"http://me:pw@h:1\" } }", "uplinks.u.proxy: has a password in it"},
		{"two ways to one device", "broker: { anonymous: true }\nbuses: { a: { tcp: 10.0.0.1:502 }, b: { tcp: 10.0.0.1:502 } }\ndevices: { d: { bus: a, points: { p: { at: coil 0 } } }, e: { bus: b, points: { p: { at: coil 0 } } } }", "bus a connects to 10.0.0.1:502 too"},
		{"order of one register", "broker: { anonymous: true }\n" + one("{ at: holding 0, type: int16, order: BADC }"), "devices.d.points.p.order: has no effect on int16, which is a single register or bit"},
		{"order of a bit", "broker: { anonymous: true }\n" + one("{ at: coil 0, order: CDAB }"), "has no effect on bool"},
		{"overlapping writes", tcpBus + "broker: { anonymous: true }\ndevices: { d: { bus: b, points: { p: { at: holding 0, type: float32, write: {} }, q: { at: holding 1, write: {} } } } }", "devices.d.points.q: writes registers that p (f:3:35) writes too"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := LoadBytes("f", []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if len(cfg.Warnings) != 1 || !strings.Contains(cfg.Warnings[0].Error(), tt.want) {
				t.Errorf("got %v, want one with %s", cfg.Warnings, tt.want)
			}
		})
	}
	for _, text := range []string{
		"uplinks: { u: { url: [mqtt://localhost, mqtt://127.0.0.1, \"ws://[::1]\"] } }",
		"broker: { anonymous: true }",
		"broker: { anonymous: true }\n" + one("{ at: holding 0, type: string(2), order: BADC }"),
		"broker: { anonymous: true }\n" + one("{ at: holding 0, type: float32, order: DCBA }"),
		"broker: { anonymous: true }\n" + one("{ at: holding 0, order: ABCD }"),
		"broker: { anonymous: true }\n" + one("{ at: holding 0, map: { 0: ok, 1: fault, 2: fault } }"),
		tcpBus + "broker: { anonymous: true }\ndevices: { d: { bus: b, points: { p: { at: holding 0, bit: 0, write: {} }, q: { at: holding 0, bit: 1, write: {} } } } }",
	} {
		cfg, err := LoadBytes("f", []byte(text))
		if err != nil || len(cfg.Warnings) > 0 {
			t.Errorf("%v %v for %s", err, cfg, text)
		}
	}
}

// write makes files in a new folder and returns it.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestConfD(t *testing.T) {
	dir := write(t, map[string]string{
		"fieldgate.yaml":      "site: { id: s }\nbuses: { b: { tcp: 10.0.0.1:502 } }\ndevices:\n  a: { bus: b, points: &p { x: { at: holding 0 } } }\n  c: { bus: b, unit: 2, points: *p }\nbroker: { anonymous: true }\n",
		"conf.d/20-two.yaml":  "devices: { c: { points: { y: { at: holding 1 } } }, d: { bus: b, unit: 3, points: { z: { at: coil 0 } } } }\n",
		"conf.d/10-one.yaml":  "log: { level: debug }\n",
		"conf.d/.hidden.yaml": "no: no\n",
		"conf.d/old.yml":      "no: no\n",
		"conf.d/README":       "no: no\n",
	})
	cfg, err := Load(filepath.Join(dir, "fieldgate.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, d := range cfg.Devices {
		for _, p := range d.Points {
			ids = append(ids, string(p.ID))
		}
	}
	// What is added to c is not added to a, although they share their points.
	if got, want := strings.Join(ids, " "), "a.x c.x c.y d.z"; got != want {
		t.Errorf("points %s, want %s", got, want)
	}
	if cfg.Log.Level.String() != "DEBUG" {
		t.Errorf("level %s", cfg.Log.Level)
	}
	if len(cfg.Warnings) != 1 || !strings.Contains(cfg.Warnings[0].Error(), "old.yml: is not read; rename it") {
		t.Errorf("warnings %v", cfg.Warnings)
	}
}

func TestConfDTwice(t *testing.T) {
	dir := write(t, map[string]string{
		"fieldgate.yaml": "log: { level: info }\npublish: [{ qos: 0 }]\n",
		"conf.d/a.yaml":  "log: { level: warn, format: text }\npublish: [{ qos: 1 }]\n",
		"conf.d/b.yaml":  "log: { format: json }\n",
	})
	_, err := Load(filepath.Join(dir, "fieldgate.yaml"))
	want := strings.ReplaceAll(`DIR/conf.d/a.yaml:1:8: log.level: is given twice, first at DIR/fieldgate.yaml:1:8; keep one
DIR/conf.d/a.yaml:2:1: publish: is given twice, first at DIR/fieldgate.yaml:2:1; keep one
DIR/conf.d/b.yaml:1:8: log.format: is given twice, first at DIR/conf.d/a.yaml:1:21; keep one`, "DIR", dir)
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.yaml")
	_, err := Load(path)
	if err == nil || !strings.HasPrefix(err.Error(), path+": there is no such file; \"fieldgate init") {
		t.Errorf("got %v", err)
	}
}

func TestUnitRanges(t *testing.T) {
	cfg := load(t, tcpBus+`broker: { anonymous: true }
devices:
  "meter-{unit}": { bus: b, unit: "1,3,8-9", order: CDAB, points: { u: { at: holding 0, type: float32 }, s: { at: holding 9, bits: { fault: 0, mode: 4-6 } } } }
`)
	var got []string
	for _, d := range cfg.Devices {
		for _, p := range d.Points {
			got = append(got, string(p.ID))
			if p.Order != point.CDAB {
				t.Errorf("%s has order %s", p.ID, p.Order)
			}
		}
	}
	want := "meter-1.u meter-1.s.fault meter-1.s.mode meter-3.u meter-3.s.fault meter-3.s.mode meter-8.u meter-8.s.fault meter-8.s.mode meter-9.u meter-9.s.fault meter-9.s.mode"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got %s", s)
	}
	fault, mode := cfg.Devices[1].Points[1], cfg.Devices[1].Points[2]
	if fault.Type != point.Bool || fault.FirstBit != 0 || fault.BitCount != 1 || mode.Type != point.Uint16 || mode.FirstBit != 4 || mode.BitCount != 3 {
		t.Errorf("bits %+v %+v", fault, mode)
	}
}

// A fault inside of shared points is said once, whatever the number of devices.
func TestSharedFault(t *testing.T) {
	got := faults(t, tcpBus+"devices:\n  a: { bus: b, points: &p { x: { at: holding 0, type: flaot32 } } }\n  c: { bus: b, unit: 2, points: *p }\n  e: { bus: b, unit: 3, order: CDAB, points: *p }\n")
	if len(got) != 1 || !strings.Contains(got[0], `3:55: devices.a.points.x.type: "flaot32" is not a type; did you mean float32?`) {
		t.Errorf("got %q", got)
	}
}

// What an alias makes cheap to write stays bounded in memory.
func TestTooMany(t *testing.T) {
	var b strings.Builder
	b.WriteString("buses: { b: { tcp: 10.0.0.1:502 }")
	for i := range 20 {
		fmt.Fprintf(&b, ", b%d: { tcp: 10.0.%d.1:502 }", i, i)
	}
	b.WriteString(" }\ndevices:\n  first: { bus: b, points: &p {")
	for i := range 200 {
		fmt.Fprintf(&b, " p%d: { at: holding %d },", i, i)
	}
	b.WriteString(" } }\n")
	for i := range 20 {
		fmt.Fprintf(&b, "  \"d%d-{unit}\": { bus: b%d, unit: 1-200, points: *p }\n", i, i)
	}
	got := faults(t, b.String())
	if len(got) != 1 || !strings.Contains(got[0], "there are more than 10000 devices or 200000 points before it") {
		t.Errorf("got %q", got)
	}
}

// The same points mean something else in a device with other settings.
func TestSharedPoints(t *testing.T) {
	cfg := load(t, tcpBus+`broker: { anonymous: true }
devices:
  a: { bus: b, points: &p { x: { at: holding 5, type: float32 } } }
  c: { bus: b, unit: 2, points: *p }
  e: { bus: b, unit: 3, order: CDAB, base: 1, every: 5s, points: *p }
`)
	a, c, e := cfg.Devices[0].Points[0], cfg.Devices[1].Points[0], cfg.Devices[2].Points[0]
	if c.ID != "c.x" || c.Address != 5 || c.Every != a.Every {
		t.Errorf("c has %+v", c)
	}
	if e.ID != "e.x" || e.Address != 4 || e.Order != point.CDAB || e.Every != point.Interval(5*time.Second) {
		t.Errorf("e has %+v", e)
	}
}

func TestPoints(t *testing.T) {
	cfg := load(t, tcpBus+`broker: { anonymous: true }
devices:
  d:
    bus: b
    every: { fast: 100ms, slow: once }
    max_block: { registers: 20, bits: 16 }
    holes: 0
    backoff: 1s..10m
    timeout: 300ms
    retries: 0
    gap: 5ms
    points:
      a: { at: 40001, type: float64, offset: -40, decimals: 2, group: fast }
      b: { at: "00001", write: { function: 15, priority: emergency } }
      c: { at: input 0x1F, type: int8, byte: low, invalid: [-1, 0x80], every: never }
      d: { at: 465536, type: string(1), group: slow }
      e: { at: holding 7, map: { 0: off, 1: on, -2: 3 }, type: int16, tags: { floor: 2 }, label: Pump }
      f: { at: holding 8, type: int16, scale: 0.5, write: { min: -10, max: 1e2, step: 0.5, only: [1, 2.5], rate: 10/m, budget: 200/day, verify: false } }
      g: { at: discrete 9, every: 0 }
      h: { at: holding 20, bit: 15 }
`)
	dec := func(mant int64, exp int8) *point.Decimal { return &point.Decimal{Mant: mant, Exp: exp} }
	one := point.Decimal{Mant: 1}
	second := point.Interval(time.Second)
	want := Device{
		Name: "d", Bus: "b", Unit: 1, Timeout: 300 * time.Millisecond, Gap: 5 * time.Millisecond,
		MaxRegs: 20, MaxBits: 16, BackoffMin: time.Second, BackoffMax: 10 * time.Minute,
		Points: []point.Point{
			{ID: "d.a", Table: modbus.HoldingRegisters, Type: point.Float64, Scale: one, Offset: *dec(-4, 1), Round: true, Decimals: 2, Every: point.Interval(100 * time.Millisecond), Group: "fast"},
			{ID: "d.b", Table: modbus.Coils, Type: point.Bool, Scale: one, Every: second,
				Write: &point.Write{Verify: true, SkipIfEqual: true, Emergency: true, Function: modbus.WriteMultipleCoils}},
			{ID: "d.c", Table: modbus.InputRegisters, Address: 31, Type: point.Int8, LowByte: true, Scale: one, Invalid: []uint64{0xFF, 0x80}, Every: point.Never},
			{ID: "d.d", Table: modbus.HoldingRegisters, Address: 65535, Type: point.String, Length: 1, Scale: one, Every: point.Once, Group: "slow"},
			{ID: "d.e", Table: modbus.HoldingRegisters, Address: 7, Type: point.Int16, Scale: one, Every: second, Label: "Pump", Tags: map[string]string{"floor": "2"},
				Map: []point.MapEntry{{Raw: -2, Text: "3"}, {Raw: 0, Text: "off"}, {Raw: 1, Text: "on"}}},
			{ID: "d.f", Table: modbus.HoldingRegisters, Address: 8, Type: point.Int16, Scale: *dec(5, -1), Every: second,
				Write: &point.Write{Min: dec(-1, 1), Max: dec(1, 2), Step: dec(5, -1), SkipIfEqual: true, RateEvery: 6 * time.Second, Budget: 200,
					Only: []point.Value{point.UintValue(1), point.DecimalValue(*dec(25, -1))}}},
			{ID: "d.g", Table: modbus.DiscreteInputs, Address: 9, Type: point.Bool, Scale: one, Every: point.Fastest},
			{ID: "d.h", Table: modbus.HoldingRegisters, Address: 20, Type: point.Bool, FirstBit: 15, BitCount: 1, Scale: one, Every: second},
		},
	}
	got := cfg.Devices[0]
	for i := range want.Points {
		if !reflect.DeepEqual(got.Points[i], want.Points[i]) {
			t.Errorf("got  %+v\nwant %+v", got.Points[i], want.Points[i])
		}
	}
	got.Points, want.Points = nil, nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// What means "no value" of a float is a number; its bits are hexadecimal.
func TestInvalidFloat(t *testing.T) {
	tests := []struct {
		kind, invalid string
		want          uint64
	}{
		{"float16", "-9984", 0xF0E0},
		{"float32", "-9999", 0xC61C3C00},
		{"float32", "9999", 0x461C3C00},
		{"float32", "0x7F7FFFFF", 0x7F7FFFFF},
		{"float64", "-1", 0xBFF0000000000000},
		{"uint32", "9999", 9999},
		{"int32", "-1", 0xFFFFFFFF},
	}
	for _, tt := range tests {
		cfg := load(t, one("{ at: holding 0, type: "+tt.kind+", invalid: ["+tt.invalid+"] }"))
		if got := cfg.Devices[0].Points[0].Invalid; len(got) != 1 || got[0] != tt.want {
			t.Errorf("%s, invalid: %s is %#x, want %#x", tt.kind, tt.invalid, got, tt.want)
		}
	}
}

// The rest of the sections, with nothing left at its default.
func TestSections(t *testing.T) {
	dir := write(t, map[string]string{"fieldgate.yaml": `
site: { id: plant1, tags: { area: north } }
buses:
  line1: { serial: /dev/ttyS7, framing: ascii, mode: 9600-7E1, rs485: rts, rts_invert: true, delay_before: 1ms, delay_after: 2ms, timeout: 300ms, gap: 20ms, settle: 1s, retries: 3 }
  plc: { tcp: "[fe80::1]:502", framing: rtu, connect_timeout: 2s }
  gw: { listen: ":5020", framing: tcp, in_flight: auto }
  u: { udp: meter.example:502 }
devices: {}
publish:
  - { points: [a.*, "*.b"], topic: "x/{tag.area}/{point}", payload: full, when: each, qos: 0, retain: true, to: [cloud, local], bad: null }
  - { payload: batch, every: 10s }
  - { payload: raw, when: { change: 1.5%, at_most: 10m }, fields: [seq], bad: nothing, to: local }
  - { when: { change: 0.2, at_least: 0 } }
uplinks:
  cloud:
    url: [mqtts://a.example, "wss://b.example:8084/x?y=1", ws://127.0.0.1]
    client_id: "{site}/{name}"
    username: me
    password: { file: pw }
    keepalive: 30s
    connect_timeout: 3s
    clean_session: false
    proxy: socks5://10.0.0.1:1080
    retain: false
    max_qos: 1
    status: false
    tls: { ca: ca.pem, cert: /etc/me.p12, password: { credential: p12 }, server_name: x, alpn: [mqtt], min: 1.3 }
    queue: { max_bytes: 10MB, max_age: 12h, when_full: drop_newest, commit: 0, order: live_first, rate: 64KiB }
broker:
  listen: [mqtt://127.0.0.1:0, wss://0.0.0.0:8884/ws]
  tls: { cert: cert.pem, key: key.pem, client_ca: ca.pem }
  users: [{ name: plc, password: "` + hash + `", publish: [a/#], subscribe: ["+/b"] }]
  persist: false
  max_clients: 3
  max_packet: 1MiB
  keepalive_max: 5m
  session_expiry: 1d
status: { topic: "st/{site}", every: 10s }
log: { level: error, format: journal }
web: false
`})
	path := filepath.Join(dir, "fieldgate.yaml")
	cfg, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	want := Config{
		Site: Site{ID: "plant1", Tags: map[string]string{"area": "north"}},
		Buses: []Bus{
			{Name: "line1", Kind: Serial, Address: "/dev/ttyS7", Framing: modbus.FramingASCII, Mode: SerialMode{9600, 7, 'E', 1},
				RS485:   RS485{RS485RTS, true, time.Millisecond, 2 * time.Millisecond},
				Timeout: 300 * time.Millisecond, ConnectTimeout: 5 * time.Second, Gap: 20 * time.Millisecond, Settle: time.Second, InFlight: 1, Retries: 3},
			{Name: "plc", Kind: TCP, Address: "[fe80::1]:502", Framing: modbus.FramingRTU, Timeout: time.Second, ConnectTimeout: 2 * time.Second, Gap: GapAuto, InFlight: 1, Retries: 1},
			{Name: "gw", Kind: Listen, Address: ":5020", Timeout: time.Second, ConnectTimeout: 5 * time.Second, Gap: GapAuto, InFlight: InFlightAuto, Retries: 1},
			{Name: "u", Kind: UDP, Address: "meter.example:502", Timeout: time.Second, ConnectTimeout: 5 * time.Second, Gap: GapAuto, InFlight: 1, Retries: 1},
		},
		Publish: []Rule{
			{Points: []string{"a.*", "*.b"}, Topic: "x/{tag.area}/{point}", Payload: Full, When: When{Each: true}, Retain: true, To: []string{"cloud", "local"}, BadNull: true},
			{Points: []string{"*"}, Topic: "{site}/{device}/{point}", Payload: Batch, Every: 10 * time.Second, QoS: 1},
			{Points: []string{"*"}, Topic: "{site}/{device}/{point}", Payload: Raw, Fields: []Field{FieldSeq}, QoS: 1, To: []string{"local"},
				When: When{Band: point.Decimal{Mant: 15, Exp: -1}, Percent: true, AtLeast: 10 * time.Minute, AtMost: 10 * time.Minute}},
			{Points: []string{"*"}, Topic: "{site}/{device}/{point}", QoS: 1, When: When{Band: point.Decimal{Mant: 2, Exp: -1}}},
		},
		Uplinks: []Uplink{{
			Name: "cloud", URLs: []string{"mqtts://a.example:8883", "wss://b.example:8084/x?y=1", "ws://127.0.0.1:80/mqtt"},
			ClientID: "plant1/cloud", Username: "me", Password: SecretSource{File: in("pw")},
			Keepalive: 30 * time.Second, ConnectTimeout: 3 * time.Second, Proxy: "socks5://10.0.0.1:1080", MaxQoS: 1, NoRetain: true, NoStatus: true,
			TLS:   UplinkTLS{CA: in("ca.pem"), Cert: "/etc/me.p12", Password: SecretSource{Credential: "p12"}, ServerName: "x", ALPN: []string{"mqtt"}, MinVersion: 0x0304},
			Queue: Queue{MaxBytes: 10e6, MaxAge: 12 * time.Hour, DropNewest: true, LiveFirst: true, Rate: 64 << 10},
		}},
		Broker: &Broker{
			Listen:     []BrokerListener{{"mqtt", "127.0.0.1:0", ""}, {"wss", "0.0.0.0:8884", "/ws"}},
			TLS:        BrokerTLS{in("cert.pem"), in("key.pem"), in("ca.pem")},
			Users:      []User{{"plc", hash, []string{"a/#"}, []string{"+/b"}}},
			MaxClients: 3, MaxPacket: 1 << 20, KeepaliveMax: 5 * time.Minute, SessionExpiry: 24 * time.Hour,
		},
		Status: Status{"st/plant1", 10 * time.Second},
		Log:    Log{8, "journal"},

		CommandRules: CommandRules{MaxAge: 30 * time.Second, DuplicateWindow: 10 * time.Minute, LossAfter: 30 * time.Second},
	}
	got := *cfg
	got.Warnings, got.Sums, got.file, got.places, got.files, got.order = nil, Sums{}, "", nil, nil, nil
	if !reflect.DeepEqual(got, want) {
		g, w := reflect.ValueOf(got), reflect.ValueOf(want)
		for i := range g.NumField() {
			if f := g.Type().Field(i); f.IsExported() && !reflect.DeepEqual(g.Field(i).Interface(), w.Field(i).Interface()) {
				t.Errorf("%s:\n got %+v\nwant %+v", f.Name, g.Field(i).Interface(), w.Field(i).Interface())
			}
		}
	}

	// The files that are named, and only those that are not there.
	if err := os.WriteFile(in("ca.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(in("cert.pem"), 0o700); err != nil {
		t.Fatal(err)
	}
	var missing []string
	for _, f := range cfg.CheckFiles() {
		missing = append(missing, strings.TrimPrefix(f.Error(), path+":"))
	}
	list := strings.ReplaceAll(strings.Join(missing, "\n"), dir, "DIR")
	const wantMissing = `19:23: uplinks.cloud.password.file: there is no file DIR/pw; put it there, or write another path
27:30: uplinks.cloud.tls.cert: there is no file /etc/me.p12; put it there, or write another path
31:16: broker.tls.cert: DIR/cert.pem is not a file; write the path of one
31:31: broker.tls.key: there is no file DIR/key.pem; put it there, or write another path`
	if list != wantMissing {
		t.Errorf("files\n%s\nwant\n%s", list, wantMissing)
	}

	// Faults that are found later have their place.
	for path, want := range map[string]string{
		"publish[0].topic":    ":10:36: publish[0].topic: x",
		"publish[1].topic":    ":11:5: publish[1].topic: x",
		"uplinks.cloud.queue": ":15:3: uplinks.cloud.queue: x",
		"nothing":             ":2:1: nothing: x",
	} {
		if got := cfg.Fault(path, "x").Error(); !strings.HasSuffix(got, want) {
			t.Errorf("%s is at %s, want %s", path, got, want)
		}
	}
}
