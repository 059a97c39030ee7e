package test

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fieldgate/internal/gateway"
	"fieldgate/internal/mqtt/mosquittotest"
	"fieldgate/test/mbpoll"
)

// Our made-up devices, seen by a client that is none of ours, on TCP and on a
// serial line; and what that client writes, seen by ours.
func TestMbpollReadsSimulatedDevices(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tcp := freePort(t)
	const points = `{
      word:  { at: holding 0, value: 4711 },
      more:  { at: holding 1, value: 65535 },
      float: { at: holding 2, type: float32, value: 12.5 },
      long:  { at: holding 4, type: uint32, value: 305419896 },
      input: { at: input 7, type: int16, value: -40 },
      coil:  { at: coil 3, value: on },
      door:  { at: discrete 9, value: on } }`
	sim := start(t, binary, "simulate", writeFile(t, "plant.yaml", fmt.Sprintf(`
buses: { line1: { serial: %s/line1, mode: 115200-8E1 }, plc: { tcp: "127.0.0.1:%d" } }
devices:
  meter: { bus: line1, unit: 17, points: %s }
  press: { bus: plc, unit: 1, points: %s }
`, dir, tcp, points, points)))
	sim.out.waitFor(t, "try:")
	for _, wire := range []struct {
		name string
		args []string
		url  string
		unit string
	}{
		{"serial", []string{"-m", "rtu", "-b", "115200", "-P", "even", "-a", "17", dir + "/line1"}, "rtu://" + dir + "/line1?mode=115200-8E1", "17"},
		{"tcp", []string{"-m", "tcp", "-p", strconv.Itoa(tcp), "-a", "1", "127.0.0.1"}, fmt.Sprintf("tcp://127.0.0.1:%d", tcp), "1"},
	} {
		t.Run(wire.name, func(t *testing.T) {
			read := func(args ...string) []string { return mbpoll.Must(t, append(args, wire.args...)...) }
			for _, row := range []struct {
				args, want string
			}{
				{"-0 -t 4 -r 0 -c 2", "4711|65535 (-1)"},
				{"-0 -t 4:float -B -r 2 -c 1", "12.5"},
				{"-0 -t 4:int -B -r 4 -c 1", "305419896"},
				{"-0 -t 3 -r 7 -c 1", "65496 (-40)"},
				{"-0 -t 0 -r 3 -c 2", "1|0"},
				{"-0 -t 1 -r 9 -c 1", "1"},
				{"-t 4:hex -r 1 -c 1", "0x1267"},
			} {
				if got := strings.Join(read(strings.Fields(row.args)...), "|"); got != row.want {
					t.Errorf("mbpoll %s: %s, want %s", row.args, got, row.want)
				}
			}
			write := func(value string, args ...string) {
				t.Helper()
				mbpoll.Must(t, append(append(args, wire.args...), value)...)
			}
			write("99", "-0", "-t", "4", "-r", "0")
			write("0", "-0", "-t", "0", "-r", "3")
			write("2.25", "-0", "-t", "4:float", "-B", "-r", "2")
			for _, row := range []struct{ address, kind, want string }{
				{"holding 0", "uint16", "holding 0 (40001)  99\n"},
				{"coil 3", "bool", "coil 3 (00004)  0\n"},
				{"holding 2", "float32", "holding 2 (40003)  2.25\n"},
			} {
				args := append([]string{"modbus", "read", wire.url, "--unit", wire.unit}, strings.Fields(row.address)...)
				out, stderr, code := run(t, append(args, "--type", row.kind)...)
				if out != row.want || code != 0 {
					t.Errorf("%s after mbpoll's write: %q, %q, exit code %d, want %q", row.address, out, stderr, code, row.want)
				}
			}
		})
	}
	if code, _ := sim.stop(); code != 0 {
		t.Errorf("simulate: exit code %d", code)
	}
	sim.out.waitFor(t, "3 writes")
}

// The broker upstream is killed and started again in the middle of a stream:
// every message arrives, in order, and no more than a window of them twice.
func TestUpstreamKilledMidStream(t *testing.T) {
	t.Parallel()
	p := plant(t, "", countingPlant)
	upstream := mosquittotest.Start(t, mosquittotest.Options{Persistent: true})
	// The subscriber has a session, which this puts on mosquitto's disk: it
	// misses nothing while it is away itself.
	sub := upstream.Subscribe([]string{"plant/counter/n", "fieldgate/plant/state"}, "-c")
	upstream.Stop()
	upstream.Restart()
	gw := startGateway(t, fmt.Sprintf(`
site: { id: plant }
buses: { plc: { tcp: "%s" } }
devices: { counter: { bus: plc, every: 20ms, points: { n: { at: holding 0, type: uint32 } } } }
publish: [ { when: each, fields: [seq] } ]
uplinks: { cloud: { url: "mqtt://127.0.0.1:%d" } }
`, p.Bus("plc").Addr(), upstream.Port))
	// What mosquitto has acknowledged and not handed on yet, it takes with it: so
	// it is killed when its subscriber has everything.
	handedOn := func(m mosquittotest.Received) bool {
		return m.Topic == "plant/counter/n" && counted(t, m.Payload) >= p.Device("counter").Requests()-2
	}
	got := append(sub.Next(30), sub.Until(handedOn)...)
	for range 2 {
		upstream.Kill()
		before := p.Device("counter").Requests()
		for p.Device("counter").Requests() < before+20 { // the polling goes on
			time.Sleep(5 * time.Millisecond)
		}
		upstream.Restart()
		got = append(got, sub.Next(30)...)
		got = append(got, sub.Until(handedOn)...)
	}
	if code, took := gw.stop(); code != 0 || took > 10*time.Second {
		t.Errorf("stopped with code %d after %v, want 0 within 10 s", code, took)
	}
	got = append(got, sub.Until(isOffline)...)
	const window = 64 // messages in flight, uplink.Width
	first, last := inOrder(t, got, "plant/counter/n", window)
	if n := int(last-first) + 1; n < p.Device("counter").Requests()-1 {
		t.Errorf("%d messages of %d readings", n, p.Device("counter").Requests())
	}
	for _, m := range got {
		if m.Topic == "plant/counter/n" {
			if c := counted(t, m.Payload); c != 0 {
				t.Errorf("the first reading is %d, want 0", c)
			}
			break
		}
	}
	gw.wantLine("level=INFO", "msg=stopped")
}

// isOffline is what the gateway says last.
func isOffline(m mosquittotest.Received) bool {
	return m.Topic == "fieldgate/plant/state" && m.Payload == "offline"
}

// countingPlant has a device whose register says how often it was read before.
const countingPlant = `
buses:   { plc: { tcp: 127.0.0.1:0 }, line1: { serial: $dir/line1, mode: 115200-8E1 } }
devices:
  counter: { bus: plc, points: { n: { at: holding 0, type: uint32, wave: count, max: 1000000 } } }
  tally:   { bus: line1, unit: 2, points: { n: { at: holding 0, type: uint32, wave: count, max: 1000000 } } }
`

// counted returns the value in a payload.
func counted(t *testing.T, payload string) int {
	t.Helper()
	var p struct{ Value int }
	if err := json.Unmarshal([]byte(payload), &p); err != nil {
		t.Fatalf("payload %s: %v", payload, err)
	}
	return p.Value
}

// SIGTERM in full flow, with a backlog: the gateway ends with 0 within ten
// seconds, and everything that was read has been published.
func TestStopDropsNothing(t *testing.T) {
	t.Parallel()
	p := plant(t, t.TempDir(), countingPlant)
	upstream := mosquittotest.Start(t, mosquittotest.Options{})
	sub := upstream.Subscribe([]string{"plant/+/n", "fieldgate/plant/state"})
	gw := startGateway(t, fmt.Sprintf(`
site: { id: plant }
buses: { plc: { tcp: "%s" }, line1: { serial: %s, mode: 115200-8E1 } }
devices:
  counter: { bus: plc, every: 10ms, points: { n: { at: holding 0, type: uint32 } } }
  tally:   { bus: line1, unit: 2, every: 0s, points: { n: { at: holding 0, type: uint32 } } }
publish: [ { when: each, fields: [seq] } ]
uplinks: { cloud: { url: "mqtt://127.0.0.1:%d" } }
`, p.Bus("plc").Addr(), p.Bus("line1").Addr(), upstream.Port))
	got := sub.Next(50)
	upstream.Signal(syscall.SIGSTOP)
	before := p.Device("counter").Requests()
	for p.Device("counter").Requests() < before+100 {
		time.Sleep(5 * time.Millisecond)
	}
	upstream.Signal(syscall.SIGCONT)
	if code, took := gw.stop(); code != 0 || took > 10*time.Second {
		t.Errorf("stopped with code %d after %v, want 0 within 10 s", code, took)
	}
	got = append(got, sub.Until(isOffline)...)
	for _, device := range []string{"counter", "tally"} {
		topic := "plant/" + device + "/n"
		mine := slices.DeleteFunc(slices.Clone(got), func(m mosquittotest.Received) bool { return m.Topic != topic })
		// The device also counts the request that is on the wire at the moment of
		// the stop, and on a serial line the shorter read that goes first once in
		// a hundred requests, to tell answers apart.
		reads, last, others := p.Device(device).Requests(), -1, 1
		if device == "tally" {
			others += 1 + p.Device(device).Requests()/100
		}
		for _, m := range mine {
			c := counted(t, m.Payload)
			if c <= last {
				t.Errorf("%s: reading %d after %d", topic, c, last)
			}
			last = c
		}
		if len(mine) < reads-others || reads < 100 {
			t.Errorf("%s: %d messages, and the device was read %d times", topic, len(mine), reads)
		}
	}
	if bad := gw.logLines("level=ERROR"); bad != nil {
		t.Errorf("errors in the log:\n%s", strings.Join(bad, "\n"))
	}
}

// One of two uplinks leads to a peer that accepts and never answers. The other
// gets everything as soon as it is read, and so does the embedded broker.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	p := plant(t, "", countingPlant)
	hole, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts for it
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	upstream := mosquittotest.Start(t, mosquittotest.Options{})
	local := freePort(t)
	gw := startGateway(t, fmt.Sprintf(`
site: { id: plant }
buses: { plc: { tcp: "%s" } }
devices: { counter: { bus: plc, every: 50ms, points: { n: { at: holding 0, type: uint32 } } } }
publish: [ { when: each, fields: [seq] } ]
uplinks:
  hole: { url: "mqtt://%s", connect_timeout: 1s, queue: { max_bytes: 64KiB } }
  well: { url: "mqtt://127.0.0.1:%d" }
broker: { listen: ["mqtt://127.0.0.1:%d"], anonymous: true, persist: false }
status: { every: 1s }
`, p.Bus("plc").Addr(), hole.Addr(), upstream.Port, local))
	far, near := watch(t, upstream.Port, "#"), watch(t, local, "#")
	health := near.status("the black hole given up once", func(s gateway.Status) bool {
		return strings.Contains(s.Uplinks["hole"].Error, "no answer to CONNECT within 1s")
	})
	near.waitMore("plant/counter/n", 40)
	far.waitMore("plant/counter/n", 1)
	if u := health.Uplinks["hole"]; u.Status != "Connecting" || u.Queued == 0 {
		t.Errorf("the black hole's status: %+v", u)
	}
	if u := health.Uplinks["well"]; u.Status != "Connected" || u.Error != "" {
		t.Errorf("the good uplink's status: %+v", u)
	}
	for name, w := range map[string]*watcher{"upstream": far, "embedded broker": near} {
		var late []time.Duration
		next := -1
		for _, m := range w.messages() {
			if m.topic != "plant/counter/n" {
				continue
			}
			var v struct {
				Value     int
				Timestamp time.Time
			}
			if err := json.Unmarshal([]byte(m.payload), &v); err != nil {
				t.Fatal(err)
			}
			if next >= 0 && v.Value != next {
				t.Errorf("%s: reading %d where %d was due", name, v.Value, next)
			}
			next = v.Value + 1
			late = append(late, m.at.Sub(v.Timestamp))
		}
		slices.Sort(late)
		if len(late) < 40 {
			t.Fatalf("%s: only %d messages", name, len(late))
		}
		// Half of them, so that a busy machine does not count.
		if typical := late[len(late)/2]; typical > 300*time.Millisecond {
			t.Errorf("%s: messages arrive %v after they were read", name, typical)
		}
	}
	if d := p.Device("counter").Requests(); d < 40 {
		t.Errorf("the device was read %d times", d)
	}
	gw.wantLine("level=WARN", "uplink hole")
}

// Thirteen bytes that make the embedded broker's decoder panic cost their sender
// the connection and nobody else anything.
func TestTruncatedSubscribe(t *testing.T) {
	t.Parallel()
	tcp, local := libmodbus(t), freePort(t)
	gw := startGateway(t, fmt.Sprintf(`
site: { id: plant }
buses: { plc: { tcp: "127.0.0.1:%d" } }
devices: { press: { bus: plc, every: 50ms, points: { v: { at: holding 0 } } } }
publish: [ { when: each, payload: raw } ]
broker: { listen: ["mqtt://127.0.0.1:%d"], anonymous: true, persist: false }
status: { every: 1s }
`, tcp, local))
	sub := watch(t, local, "#")
	sub.waitMore("plant/press/v", 3)
	const attacks = 3
	for range attacks {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", local))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		connect := []byte("\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x04evil")
		if _, err := conn.Write(connect); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 256)
		if n, err := conn.Read(answer); err != nil || n < 4 || answer[0] != 0x20 {
			t.Fatalf("CONNACK % x, %v", answer[:n], err)
		}
		if _, err := conn.Write([]byte{0x82, 6, 0, 1, 0, 0, 1, 'a'}); err != nil { // the options are missing
			t.Fatal(err)
		}
		for err == nil { // until it hangs up
			_, err = conn.Read(answer)
		}
		sub.waitMore("plant/press/v", 3)
	}
	health := sub.status("the attacks counted", func(s gateway.Status) bool { return s.Broker.Panics == attacks })
	if health.Broker.Clients != 1 {
		t.Errorf("%d clients, want the subscriber", health.Broker.Clients)
	}
	if code, took := gw.stop(); code != 0 || took > 10*time.Second {
		t.Errorf("stopped with code %d after %v, want 0 within 10 s", code, took)
	}
	if said := sub.log.String(); strings.Contains(said, "protocol error") {
		t.Errorf("the broker's goodbye makes mosquitto_sub say %q", said)
	}
}
