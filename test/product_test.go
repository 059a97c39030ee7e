package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/mqtt/mosquittotest"
	"fieldgate/test/mbpoll"
	"fieldgate/test/port"
)

// freePort returns a port on 127.0.0.1 that stays free until a program takes it.
func freePort(t *testing.T) int {
	t.Helper()
	n, err := port.Free()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// libmodbus starts a device made with libmodbus on a TCP port.
func libmodbus(t *testing.T) (port int) {
	t.Helper()
	port = freePort(t)
	start(t, filepath.Join(peers, "server"), "tcp", strconv.Itoa(port)).out.waitFor(t, "ready")
	return port
}

// serialCable lays a cable between two serial ports and returns their paths.
func serialCable(t *testing.T) (a, b string) {
	t.Helper()
	dir := t.TempDir()
	a, b = filepath.Join(dir, "a"), filepath.Join(dir, "b")
	start(t, "socat", "pty,raw,echo=0,link="+a, "pty,raw,echo=0,link="+b)
	for _, path := range []string{a, b} {
		for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(path); err == nil {
				break
			} else if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	return a, b
}

// byTopic collects messages until each of the topics was seen.
func byTopic(t *testing.T, s *mosquittotest.Subscriber, topics ...string) map[string]string {
	t.Helper()
	missing := make(map[string]bool)
	for _, topic := range topics {
		missing[topic] = true
	}
	got := make(map[string]string)
	s.Until(func(m mosquittotest.Received) bool {
		if _, seen := got[m.Topic]; !seen {
			got[m.Topic] = m.Payload
		}
		delete(missing, m.Topic)
		return len(missing) == 0
	})
	return got
}

// The main job against peers that are none of ours: libmodbus devices on a
// serial line and on TCP, mosquitto upstream, mosquitto_sub on both brokers.
func TestWireToSubscriber(t *testing.T) {
	gatewaySide, deviceSide := serialCable(t)
	start(t, filepath.Join(peers, "server"), "rtu", deviceSide, "19200", "7").out.waitFor(t, "ready")
	tcp := libmodbus(t)
	upstream := mosquittotest.Start(t, mosquittotest.Options{})
	sub := upstream.Subscribe([]string{"#"})
	local := freePort(t)

	const points = `
      h10:   { at: holding 10 }
      i4:    { at: 30005, type: int16, scale: 0.1, unit: "°C" }
      wide:  { at: holding 100, type: uint32 }
      swap:  { at: holding 100, type: uint32, order: CDAB }
      coil3: { at: coil 3, type: bool }
      coil4: { at: "00005" }
      in2:   { at: discrete 2 }
      bit0:  { at: holding 10, bit: 0 }
      text:  { at: holding 10, map: { 31: running } }
`
	startGateway(t, fmt.Sprintf(`
site: { id: plant }
buses:
  line1: { serial: %s, mode: 19200-8N1 }
  plc:   { tcp: 127.0.0.1:%d }
devices:
  meter: { bus: line1, unit: 7, every: 100ms, points: {%s} }
  press: { bus: plc, unit: 1, every: 100ms, points: {%s} }
publish:
  - { topic: "{site}/{device}/{point}", payload: raw, when: each }
uplinks: { cloud: { url: "mqtt://127.0.0.1:%d" } }
broker:  { listen: ["mqtt://127.0.0.1:%d"], anonymous: true, persist: false }
`, gatewaySide, tcp, flow(points), flow(points), upstream.Port, local))

	want := map[string]string{
		"h10": "31", "i4": "2.2", "wide": strconv.Itoa(301<<16 | 304), "swap": strconv.Itoa(304<<16 | 301),
		"coil3": "1", "coil4": "0", "in2": "1", "bit0": "1", "text": "running",
	}
	var topics []string
	for _, device := range []string{"meter", "press"} {
		for point := range want {
			topics = append(topics, "plant/"+device+"/"+point)
		}
	}
	atBroker := start(t, "mosquitto_sub", "-h", "127.0.0.1", "-p", strconv.Itoa(local), "-t", "plant/#", "-v")
	got := byTopic(t, sub, append(topics, "fieldgate/plant/state", "fieldgate/plant/device/meter/state")...)
	for _, topic := range topics {
		if w := want[topic[strings.LastIndex(topic, "/")+1:]]; got[topic] != w {
			t.Errorf("upstream: %s = %q, want %q", topic, got[topic], w)
		}
		atBroker.out.waitFor(t, topic+" "+want[topic[strings.LastIndex(topic, "/")+1:]]+"\n")
	}
	for _, topic := range []string{"fieldgate/plant/state", "fieldgate/plant/device/meter/state"} {
		if got[topic] != "online" {
			t.Errorf("%s = %q, want online", topic, got[topic])
		}
	}
}

// flow turns lines of "key: value" into the inside of a flow mapping.
func flow(lines string) string {
	return strings.Join(strings.FieldsFunc(strings.TrimSpace(lines), func(r rune) bool { return r == '\n' }), ",")
}

// The smallest file of the manual publishes what the manual says.
func TestSmallestFile(t *testing.T) {
	tcp := libmodbus(t)
	upstream := mosquittotest.Start(t, mosquittotest.Options{})
	sub := upstream.Subscribe([]string{"#"})
	startGateway(t, fmt.Sprintf(`
buses:   { plc: { tcp: 127.0.0.1:%d } }
devices: { boiler: { bus: plc, unit: 1, points: { temp: { at: 30051, type: int16, scale: 0.1, unit: "°C" } } } }
uplinks: { cloud: { url: mqtt://127.0.0.1:%d } }
`, tcp, upstream.Port))
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	got := byTopic(t, sub, host+"/boiler/temp")[host+"/boiler/temp"]
	pattern := `^\{"value":25\.2,"timestamp":"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z","unit":"°C"\}$`
	if !regexp.MustCompile(pattern).MatchString(got) {
		t.Errorf("published %s, want %s", got, pattern)
	}
}

// With the uplink down since boot the gateway polls at once and serves the
// local broker; what it read reaches the uplink when that comes.
func TestPollsWithTheUplinkDown(t *testing.T) {
	tcp := libmodbus(t)
	local := freePort(t)
	upstream := mosquittotest.Start(t, mosquittotest.Options{})
	upstream.Kill()
	startGateway(t, fmt.Sprintf(`
site: { id: plant }
buses:   { plc: { tcp: 127.0.0.1:%d } }
devices: { press: { bus: plc, every: 100ms, points: { a: { at: holding 0 } } } }
publish: [ { when: each, fields: [seq] } ]
uplinks: { cloud: { url: "mqtt://127.0.0.1:%d" } }
broker:  { listen: ["mqtt://127.0.0.1:%d"], anonymous: true, persist: false }
`, tcp, upstream.Port, local))
	atBroker := start(t, "mosquitto_sub", "-h", "127.0.0.1", "-p", strconv.Itoa(local), "-t", "plant/press/a", "-C", "5")
	atBroker.out.wait(t, "five values at the local broker", func(s string) bool { return strings.Count(s, "\n") == 5 })

	upstream.Restart()
	sub := upstream.Subscribe([]string{"plant/press/a"})
	var last float64
	for i, m := range sub.Next(15) {
		var p struct{ Value, Seq float64 }
		if err := json.Unmarshal([]byte(m.Payload), &p); err != nil {
			t.Fatalf("payload %s: %v", m.Payload, err)
		}
		if i > 0 && p.Seq != last+1 {
			t.Errorf("seq %v after %v, want no gap and no double", p.Seq, last)
		}
		last = p.Seq
	}
}

// A second client polls the same devices at the same time: mbpoll sees what
// the gateway sees, and neither disturbs the other.
func TestSecondClientOnTheSameDevice(t *testing.T) {
	tcp := libmodbus(t)
	local := freePort(t)
	gw := startGateway(t, fmt.Sprintf(`
site: { id: plant }
buses:   { plc: { tcp: 127.0.0.1:%d } }
devices: { press: { bus: plc, every: 0s, points: { a: { at: holding 0 }, b: { at: holding 9 } } } }
publish: [ { when: { change: any, at_least: 1s }, payload: raw, retain: true } ]
broker:  { listen: ["mqtt://127.0.0.1:%d"], anonymous: true, persist: false }
`, tcp, local))
	for range 5 {
		if got := mbpoll.Must(t, "-m", "tcp", "-p", strconv.Itoa(tcp), "-t", "4", "-0", "-r", "9", "127.0.0.1"); !slices.Equal(got, []string{"28"}) {
			t.Fatalf("mbpoll reads %v", got)
		}
	}
	sub := start(t, "mosquitto_sub", "-h", "127.0.0.1", "-p", strconv.Itoa(local), "-t", "plant/press/b", "-C", "1")
	sub.out.waitFor(t, "28\n")
	if code, took := gw.stop(); code != 0 || took > 10*time.Second {
		t.Errorf("stopped with code %d after %v, want 0 within 10 s", code, took)
	}
}
