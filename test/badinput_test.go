package test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/gateway"
	"fieldgate/internal/mqtt/mosquittotest"
	"fieldgate/test/child"
)

// nonsense is a device each that answers wrongly, on one line and on
// connections of their own. All of them hold the value 17.
var nonsense = []struct {
	name   string
	bus    string // line1, or its own
	fault  string
	state  string // that it ends in
	log    string // the one line that says so; "": nothing is wrong with it
	framed func(gateway.FrameStatus) uint64
}{
	{name: "fine", bus: "line1", state: "online"},
	{name: "crc", bus: "line1", fault: "fault: crc", state: "offline", log: "wrong checksum",
		framed: func(f gateway.FrameStatus) uint64 { return f.BadChecksum }},
	{name: "wrong_unit", bus: "line1", fault: "fault: wrong_unit", state: "offline", log: "not an answer of unit 3",
		framed: func(f gateway.FrameStatus) uint64 { return f.Foreign }},
	{name: "noise", bus: "line1", fault: "fault: noise", state: "online",
		framed: func(f gateway.FrameStatus) uint64 { return f.Damaged }},
	// What is heard of these two depends on which neighbour's second answer or
	// noise falls into the gap; alone on a wire, "cut" and "mute" show the words.
	{name: "partial", bus: "line1", fault: "fault: partial", state: "offline", log: "response"},
	{name: "silent", bus: "line1", fault: "fault: silent", state: "offline", log: "response"},
	{name: "twice", bus: "line1", fault: "fault: twice, delay: 20ms", state: "online"},
	{name: "split", bus: "line1", fault: "fault: split, delay: 20ms", state: "online"},
	{name: "failing", bus: "line1", fault: "fault: exception, code: 4", state: "online", log: "exception 4"},
	{name: "good", state: "online"},
	{name: "wrong_id", fault: "fault: wrong_id", state: "offline", log: "no response",
		framed: func(f gateway.FrameStatus) uint64 { return f.Foreign }},
	{name: "drop", fault: "fault: drop", state: "offline", log: "EOF"},
	{name: "cut", fault: "fault: partial", state: "offline", log: "cut short",
		framed: func(f gateway.FrameStatus) uint64 { return f.Damaged }},
	{name: "header", fault: "fault: crc", state: "offline", log: "MBAP protocol id 1 is not 0",
		framed: func(f gateway.FrameStatus) uint64 { return f.Damaged }},
	{name: "mute", fault: "fault: mute", state: "offline", log: "no response",
		framed: func(f gateway.FrameStatus) uint64 { return f.Timeouts }},
	{name: "slow", fault: "fault: slow, delay: 2ms", state: "online"},
}

// Devices that answer nonsense: no wrong value is ever published, each is
// reported once, and their neighbours are read as if nothing were.
func TestNonsense(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	sim := "buses:\n  line1: { serial: $dir/line1, mode: 115200-8E1 }\n"
	simDevices := "devices:\n"
	devices := "devices:\n"
	for i, n := range nonsense {
		bus, unit := n.bus, i+1
		if bus == "" {
			bus, unit = n.name, 1
			sim += fmt.Sprintf("  %s: { tcp: 127.0.0.1:0 }\n", bus)
		}
		simDevices += fmt.Sprintf("  %s: { bus: %s, unit: %d, points: { v: { at: holding 0, type: uint32, value: 17 } }", n.name, bus, unit)
		if n.fault != "" {
			simDevices += ", faults: [ { " + n.fault + " } ]"
		}
		simDevices += " }\n"
		devices += fmt.Sprintf("  %s: { bus: %s, unit: %d, every: 100ms, backoff: 100ms..1s, points: { v: { at: holding 0, type: uint32 } } }\n", n.name, bus, unit)
	}
	p := plant(t, dir, sim+simDevices)
	buses := "buses:\n"
	for _, b := range p.Buses {
		kind := "tcp"
		if b.Name == "line1" {
			kind = "serial"
		}
		buses += fmt.Sprintf("  %s: { %s: %q, timeout: 200ms", b.Name, kind, b.Addr())
		if kind == "serial" {
			buses += ", mode: 115200-8E1"
		}
		buses += " }\n"
	}
	local := freePort(t)
	gw := startGateway(t, buses+devices+fmt.Sprintf(`
site: { id: plant }
publish: [ { payload: raw, when: each } ]
broker: { listen: ["mqtt://127.0.0.1:%d"], anonymous: true, persist: false }
status: { every: 1s }
`, local))
	sub := watch(t, local, "#")
	for _, n := range nonsense {
		sub.waitLast("fieldgate/plant/device/"+n.name+"/state", n.state)
	}
	sub.waitMore("plant/good/v", 5) // whatever is still to be said about the others

	gw.quiet("devices that go on answering nonsense", func() {
		begin := time.Now()
		sub.waitMore("plant/good/v", 20)
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("20 polls of the good device at 100 ms took %v", took)
		}
	})
	for _, n := range nonsense {
		if n.log != "" {
			gw.wantLine("level=WARN", "device="+n.name+" ", n.log)
		}
		values := sub.on("plant/" + n.name + "/v")
		for _, v := range values {
			if v != "17" {
				t.Errorf("device %s: published %q, and it holds 17", n.name, v)
			}
		}
		switch {
		case n.state == "online" && n.log == "" && len(values) < 10:
			t.Errorf("device %s: published %d values, want one every 100 ms", n.name, len(values))
		case n.log != "" && len(values) > 0:
			t.Errorf("device %s: published %q although it gave no good answer", n.name, values[0])
		}
	}
	health := sub.status("the next stats", func(gateway.Status) bool { return true })
	for _, n := range nonsense {
		bus := health.Buses[n.bus]
		if n.bus == "" {
			bus = health.Buses[n.name]
		}
		d := bus.Devices[n.name]
		if d.State != n.state || n.log != "" && !strings.Contains(d.Error, n.log) || n.log != "" && d.Failed == 0 {
			t.Errorf("device %s: the status says %+v, want %s with %q", n.name, d, n.state, n.log)
		}
		if n.framed != nil && n.framed(bus.Frames) == 0 {
			t.Errorf("device %s: no frame was counted in %+v", n.name, bus.Frames)
		}
	}
	if got := health.Buses["line1"].Diagnosis; !strings.Contains(got, "devices do not answer") {
		t.Errorf("diagnosis of the line is %q", got)
	}
}

// A serial port that is not there, and a device that nobody listens for: one
// line each, the rest is read, and they are read once they have come.
func TestWireAppearsLater(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tcp, local, later := libmodbus(t), freePort(t), freePort(t)
	port := filepath.Join(dir, "line1")
	gw := startGateway(t, fmt.Sprintf(`
site: { id: plant }
buses:
  line1:  { serial: %s, mode: 115200-8E1 }
  absent: { tcp: "127.0.0.1:%d" }
  plc:    { tcp: "127.0.0.1:%d" }
devices:
  meter: { bus: line1, unit: 7, every: 100ms, points: { v: { at: holding 0 } } }
  drive: { bus: absent, every: 100ms, points: { v: { at: holding 0 } } }
  press: { bus: plc, every: 100ms, points: { v: { at: holding 0 } } }
publish: [ { payload: raw, when: each } ]
broker: { listen: ["mqtt://127.0.0.1:%d"], anonymous: true, persist: false }
status: { every: 1s }
`, port, later, tcp, local))
	sub := watch(t, local, "#")
	sub.waitMore("plant/press/v", 3)
	sub.waitLast("fieldgate/plant/device/meter/state", "offline")
	sub.waitLast("fieldgate/plant/device/drive/state", "offline")
	gw.quiet("two wires that are still not there", func() { sub.waitMore("plant/press/v", 20) })
	gw.wantLine("level=WARN", "line1", port, "no such file or directory")
	gw.wantLine("level=WARN", "absent", fmt.Sprintf("127.0.0.1:%d", later), "connection refused")
	health := sub.status("stats", func(gateway.Status) bool { return true })
	for bus, why := range map[string]string{"line1": "no such file or directory", "absent": "connection refused"} {
		if b := health.Buses[bus]; b.Connected || !strings.Contains(b.Error, why) {
			t.Errorf("bus %s: the status says %+v, want %q", bus, b, why)
		}
	}
	plant(t, dir, fmt.Sprintf(`
buses: { line1: { serial: $dir/line1, mode: 115200-8E1 }, absent: { tcp: "127.0.0.1:%d" } }
devices:
  meter: { bus: line1, unit: 7, points: { v: { at: holding 0, value: 71 } } }
  drive: { bus: absent, points: { v: { at: holding 0, value: 72 } } }
`, later))
	sub.waitLast("fieldgate/plant/device/meter/state", "online")
	sub.waitLast("fieldgate/plant/device/drive/state", "online")
	sub.waitLast("plant/meter/v", "71")
	sub.waitLast("plant/drive/v", "72")
	sub.status("both wires connected", func(s gateway.Status) bool {
		return s.Buses["line1"].Connected && s.Buses["absent"].Connected
	})
	gw.wantLine("line1", "line open")
	gw.wantLine("absent", "line open")
}

// Devices whose programs are killed, and a serial port that vanishes: one line
// each, their neighbour is read as before, and they are read again once they are
// back - the port with another number behind its name.
func TestDevicesKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	gatewaySide, deviceSide := serialCable(t)
	tcp, local, plc := libmodbus(t), freePort(t), freePort(t)
	server := filepath.Join(peers, "server")
	file := writeFile(t, "plant.yaml", fmt.Sprintf(`
buses: { usb: { serial: %s/usb, mode: 115200-8E1 } }
devices: { valve: { bus: usb, unit: 7, points: { v: { at: holding 0, value: 1 } } } }
`, dir))
	begin := func() (programs []*process) {
		for _, args := range [][]string{
			{server, "rtu", deviceSide, "19200", "7"},
			{server, "tcp", strconv.Itoa(plc)},
			{binary, "simulate", file},
		} {
			programs = append(programs, start(t, args[0], args[1:]...))
		}
		programs[0].out.waitFor(t, "ready")
		programs[1].out.waitFor(t, "ready")
		programs[2].out.waitFor(t, "try:")
		return programs
	}
	programs := begin()
	gw := startGateway(t, fmt.Sprintf(`
site: { id: plant }
buses:
  line1: { serial: %s, mode: 19200-8N1, timeout: 200ms }
  plc:   { tcp: "127.0.0.1:%d", timeout: 200ms }
  usb:   { serial: %s/usb, mode: 115200-8E1, timeout: 200ms }
  other: { tcp: "127.0.0.1:%d" }
devices:
  meter: { bus: line1, unit: 7, every: 100ms, backoff: 100ms..1s, points: { v: { at: holding 0 } } }
  drive: { bus: plc, every: 100ms, points: { v: { at: holding 0 } } }
  valve: { bus: usb, unit: 7, every: 100ms, points: { v: { at: holding 0 } } }
  press: { bus: other, every: 100ms, points: { v: { at: holding 0 } } }
publish: [ { payload: raw, when: each } ]
broker: { listen: ["mqtt://127.0.0.1:%d"], anonymous: true, persist: false }
`, gatewaySide, plc, dir, tcp, local))
	sub := watch(t, local, "#")
	lost := []string{"meter", "drive", "valve"}
	for _, d := range lost {
		sub.waitLast("fieldgate/plant/device/"+d+"/state", "online")
	}
	for _, p := range programs[:2] {
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	// This one takes the port's name away. Killed it would leave a name for a
	// number that is soon another port's.
	if code, _ := programs[2].stop(); code != 0 {
		t.Errorf("simulate: exit code %d", code)
	}
	for _, d := range lost {
		sub.waitLast("fieldgate/plant/device/"+d+"/state", "offline")
	}
	for _, words := range [][]string{{"device=meter", "no response"}, {"line plc", "connection refused"}, {"line usb", "no such file or directory"}} {
		gw.log.wait(t, fmt.Sprintf("%q", words), func(string) bool { return len(gw.logLines(words...)) > 0 })
	}
	gw.quiet("devices that stay away", func() { sub.waitMore("plant/press/v", 20) })
	gw.wantLine("level=WARN", "device=meter", "no response")
	gw.wantLine("level=WARN", "line plc", fmt.Sprintf("127.0.0.1:%d", plc), "connection refused")
	gw.wantLine("level=WARN", "line usb", dir+"/usb", "no such file or directory")

	begin()
	for _, d := range lost {
		sub.waitLast("fieldgate/plant/device/"+d+"/state", "online")
		sub.waitMore("plant/"+d+"/v", 3)
	}
	for _, m := range sub.messages() {
		if strings.HasSuffix(m.topic, "/v") && m.payload != "1" {
			t.Errorf("%s %s, and every device holds 1", m.topic, m.payload)
		}
	}
}

// Brokers that refuse, each in its own way. One line for each, and the broker
// that is well gets everything.
func TestBrokersRefuse(t *testing.T) {
	t.Parallel()
	tcp := libmodbus(t)
	locked := mosquittotest.Start(t, mosquittotest.Options{Users: map[string]string{"gateway": "right"}})
	open := mosquittotest.Start(t, mosquittotest.Options{})
	well := open.Subscribe([]string{"plant/#"})
	secret := writeFile(t, "secret", "wrong")
	right := writeFile(t, "right", "right")

	// Mosquitto acknowledges what its access list forbids, so nobody could know.
	// Our own broker hangs up, as MQTT 3.1.1 has it.
	hash, _, code := runWith(t, "right\n", "passwd")
	if code != 0 {
		t.Fatalf("passwd: exit code %d", code)
	}
	strict, local := freePort(t), freePort(t)
	far := startGateway(t, fmt.Sprintf(`
site: { id: far }
buses: { plc: { tcp: "127.0.0.1:%d" } }
devices: { idle: { bus: plc, every: never, points: { v: { at: holding 0 } } } }
broker:
  listen: ["mqtt://127.0.0.1:%d"]
  persist: false
  users:
    - { name: gateway, password: '%s', publish: ["plant/press/#", "fieldgate/#"], subscribe: ["#"] }
`, tcp, strict, strings.TrimSpace(hash)))
	nobody := freePort(t)
	gw := startGateway(t, fmt.Sprintf(`
site: { id: plant }
buses: { plc: { tcp: "127.0.0.1:%d" } }
devices:
  press: { bus: plc, every: 100ms, points: { v: { at: holding 0 } } }
  safe:  { bus: plc, unit: 2, every: 500ms, points: { v: { at: holding 1 } } }
publish: [ { when: each, fields: [seq] } ]
uplinks:
  well:    { url: "mqtt://127.0.0.1:%d" }
  refused: { url: "mqtt://127.0.0.1:%d" }
  locked:  { url: "mqtt://127.0.0.1:%d", username: gateway, password: { file: %s } }
  strict:  { url: "mqtt://127.0.0.1:%d", username: gateway, password: { file: %s } }
broker: { listen: ["mqtt://127.0.0.1:%d"], anonymous: true, persist: false }
status: { every: 1s }
`, tcp, open.Port, nobody, locked.Port, secret, strict, right, local))
	sub := watch(t, local, "#")
	health := sub.status("a message refused and given up", func(s gateway.Status) bool {
		return s.Uplinks["strict"].Refused > 0 && s.Uplinks["well"].Acked > 0
	})
	for name, want := range map[string]string{
		"refused": fmt.Sprintf("connection refused by 127.0.0.1:%d; is the broker running", nobody),
		"locked":  "does not let us in; check username, password",
	} {
		if u := health.Uplinks[name]; u.Status != "Connecting" || !strings.Contains(u.Error, want) || u.Queued == 0 {
			t.Errorf("uplink %s: the status says %+v, want %q and messages that wait", name, u, want)
		}
		gw.wantLine("level=WARN", "uplink "+name, want)
	}
	if u := health.Uplinks["well"]; u.Status != "Connected" || u.Error != "" || u.Dropped > 0 {
		t.Errorf("the uplink that is well: %+v", u)
	}
	// The second message on a topic that is given up bans the topic.
	if got := gw.logLines("level=ERROR", "uplink strict", "plant/safe/v", "message given up"); len(got) < 1 || len(got) > 2 {
		t.Errorf("%d lines say that a message was given up, want 1 or 2: %q", len(got), got)
	}
	far.log.wait(t, "who is refused", func(string) bool { return len(far.logLines("plant/safe/v")) > 0 })

	inOrder(t, well.Next(20), "plant/press/v", 0)
}

// Two gateways that were given one client id push each other out of the broker
// for ever. Each says so, with the remedy, and what it has arrives all the same.
func TestTwins(t *testing.T) {
	t.Parallel()
	tcp := libmodbus(t)
	upstream := mosquittotest.Start(t, mosquittotest.Options{})
	sub := upstream.Subscribe([]string{"+/press/v"})
	var twins []*process
	for _, site := range []string{"one", "two"} {
		twins = append(twins, startGateway(t, fmt.Sprintf(`
site: { id: %s }
buses: { plc: { tcp: "127.0.0.1:%d" } }
devices: { press: { bus: plc, every: 250ms, points: { v: { at: holding 0 } } } }
publish: [ { payload: raw, when: each } ]
uplinks: { cloud: { url: "mqtt://127.0.0.1:%d", client_id: gateway } }
`, site, tcp, upstream.Port)))
	}
	const remedy = `does another client use the client id`
	for _, p := range twins {
		p.log.waitFor(t, remedy)
	}
	seen := map[string]int{}
	for _, m := range sub.Next(40) {
		seen[m.Topic]++
	}
	if seen["one/press/v"] == 0 || seen["two/press/v"] == 0 {
		t.Errorf("messages by topic: %v, want some of both", seen)
	}
	for _, p := range twins {
		p.wantLine("level=WARN", remedy)
		if lines := p.logLines("uplink"); len(lines) > 8 {
			t.Errorf("%d lines about the uplink:\n%s", len(lines), strings.Join(lines, "\n"))
		}
	}
}

// Everything that is wrong with a file is said at once, a line each, and nothing
// runs.
func TestFortyMistakes(t *testing.T) {
	const file, golden = "testdata/forty-mistakes.yaml", "testdata/forty-mistakes.txt"
	for _, command := range []string{"check", "run"} {
		stdout, stderr, code := run(t, "-c", file, command)
		if code != 2 || stdout != "" {
			t.Errorf("%s: exit code %d, printed %q, want 2 and nothing", command, code, stdout)
		}
		if *update && command == "check" {
			if err := os.WriteFile(golden, []byte(stderr), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if stderr != string(want) {
			t.Errorf("%s says\n%s\nwant\n%s", command, stderr, want)
		}
	}
	lines := strings.Split(strings.TrimSuffix(readFile(t, golden), "\n"), "\n")
	if len(lines) < 40 {
		t.Errorf("%d faults, want at least 40", len(lines))
	}
	for _, line := range lines {
		if !placed.MatchString(line) {
			t.Errorf("not FILE:LINE:COL: path: what; what to write: %s", line)
		}
	}
}

// What shows only where two parts of a file meet is one line, with both places.
func TestTwoOfOneKind(t *testing.T) {
	for _, test := range []struct{ name, yaml, want string }{
		{"a unit id twice on one bus", `
buses: { line1: { serial: /dev/ttyUSB0 } }
devices:
  meter1: { bus: line1, unit: 7, points: { v: { at: holding 0 } } }
  meter2: { bus: line1, unit: 7, points: { v: { at: holding 0 } } }
uplinks: { cloud: { url: mqtt://127.0.0.1 } }
`, `fieldgate.yaml:5:25: devices.meter2.unit: unit id 7 is that of device meter1 on bus line1 already (fieldgate.yaml:4:3); write another, or put the points into one device`},
		{"a topic that two points share", `
buses: { plc: { tcp: 10.0.0.1:502 } }
devices:
  meter: { bus: plc, points: { a: { at: holding 0 }, b: { at: holding 1 } } }
publish:
  - { topic: "{site}/{device}" }
uplinks: { cloud: { url: mqtt://127.0.0.1 } }
`, `fieldgate.yaml:6:14: publish[0].topic: `},
		{"a port with two owners", `
buses:
  line1: { serial: /dev/ttyUSB0 }
  line2: { serial: /dev/ttyUSB0 }
devices:
  meter1: { bus: line1, unit: 7, points: { v: { at: holding 0 } } }
  meter2: { bus: line2, unit: 7, points: { v: { at: holding 0 } } }
uplinks: { cloud: { url: mqtt://127.0.0.1 } }
`, `fieldgate.yaml:4:12: buses.line2.serial: /dev/ttyUSB0 is the port of bus line1 too (fieldgate.yaml:3:3), and a port has one owner; give the devices that bus`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := writeFile(t, "fieldgate.yaml", test.yaml)
			_, stderr, code := run(t, "-c", path, "run", "--data", t.TempDir())
			line := strings.ReplaceAll(strings.TrimSuffix(stderr, "\n"), filepath.Dir(path)+"/", "")
			if code != 2 || !strings.HasPrefix(line, test.want) || strings.Contains(line, "\n") {
				t.Errorf("exit code %d, says %q, want 2 and one line: %s", code, line, test.want)
			}
		})
	}
}

// What the gateway cannot do without at the start ends it with one line.
func TestCannotStart(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	config := func(broker string) string {
		return writeFile(t, "fieldgate.yaml", fmt.Sprintf(`
buses: { plc: { tcp: 127.0.0.1:1 } }
devices: { press: { bus: plc, points: { v: { at: holding 0 } } } }
broker: { listen: ["mqtt://%s"], anonymous: true, persist: false }
`, broker))
	}
	notDir := writeFile(t, "file", "")
	for _, test := range []struct {
		name, config, data string
		code               int
		want               []string
	}{
		{"listen address in use", config(taken.Addr().String()), t.TempDir(), 1, []string{"broker", taken.Addr().String(), "address already in use"}},
		{"data directory is a file", config("127.0.0.1:0"), notDir, 1, []string{"data directory", notDir, "--data DIR"}},
		{"data directory cannot be made", config("127.0.0.1:0"), "/proc/fieldgate", 1, []string{"data directory", "/proc/fieldgate", "--data DIR"}},
		{"data directory is not writable", config("127.0.0.1:0"), "/proc/self", 1, []string{"data directory", "/proc/self", "--data DIR"}},
		{"no configuration", filepath.Join(t.TempDir(), "none.yaml"), t.TempDir(), 2, []string{"none.yaml", "there is no such file", "fieldgate init"}},
		{"configuration is a folder", t.TempDir(), t.TempDir(), 2, []string{"is a directory"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, stderr, code := run(t, "-c", test.config, "run", "--data", test.data)
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if strings.Count(stderr, "\n") != 1 {
				t.Errorf("says %q, want one line", stderr)
			}
			for _, w := range test.want {
				if !strings.Contains(stderr, w) {
					t.Errorf("says %q, want %q in it", stderr, w)
				}
			}
		})
	}
}

// A second gateway in one data directory would be each broker's client twice, so
// that the two throw each other out for ever. The first goes on; when it has
// ended, even by a kill, the next one may have the directory.
func TestDataDirectoryInUse(t *testing.T) {
	t.Parallel()
	config := writeFile(t, "fieldgate.yaml", `
buses: { plc: { tcp: 127.0.0.1:1 } }
devices: { press: { bus: plc, points: { v: { at: holding 0 } } } }
uplinks: { cloud: { url: mqtt://127.0.0.1:1 } }
web: false
`)
	data := t.TempDir()
	first := start(t, binary, "-c", config, "run", "--data", data)
	first.log.waitFor(t, "msg=started")
	_, stderr, code := run(t, "-c", config, "run", "--data", data)
	if want := "fieldgate: data directory " + data + ": another gateway runs in it; stop that, or name another with --data DIR\n"; code != 1 || stderr != want {
		t.Errorf("exit code %d, says %q, want 1, %q", code, stderr, want)
	}
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-first.done
	next := start(t, binary, "-c", config, "run", "--data", data)
	next.log.waitFor(t, "msg=started")
	if code, _ := next.stop(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// placed is what every fault of a file looks like.
var placed = regexp.MustCompile(`^testdata/[a-z-]+\.yaml:[1-9]\d*:[1-9]\d*: [A-Za-z0-9_.\[\]-]+: \S.*$`)

// runWith is run with something on standard input.
func runWith(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	var out, errs strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := child.Start(cmd); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the code says it
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}
