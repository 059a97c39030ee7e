package test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"fieldgate/internal/gateway"
	"fieldgate/internal/point"
	"fieldgate/test/mbpoll"
)

// A PLC, which is mbpoll, at a gateway whose uplink is away: an emergency stop by
// the PLC and on site (S36), who may connect (S46), what was asked for in vain (S50)
// and what is counted (S52). What is seen stands in testdata/plc.txt.
func TestPLCWithTheUplinkDown(t *testing.T) {
	t.Parallel()
	plc, closed, local, nowhere := freePort(t), freePort(t), freePort(t), freePort(t)
	device := plant(t, t.TempDir(), `
buses: { plc: { tcp: "127.0.0.1:0" } }
devices: { press: { bus: plc, points: { speed: { at: holding 0, value: 20 }, stop: { at: coil 0, value: off } } } }
`)
	gw := startGateway(t, fmt.Sprintf(`
site: { id: plant }
buses: { plc: { tcp: "%s" } }
devices:
  press: { bus: plc, every: 50ms, points: { speed: { at: holding 0, write: { max: 100 } }, stop: { at: coil 0, write: { priority: emergency } } } }
uplinks: { cloud: { url: "mqtt://127.0.0.1:%d" } }
broker: { listen: "mqtt://127.0.0.1:%d", anonymous: true }
publish: [ { points: "none.*" } ]
status: { every: 1s }
commands:
  - { topic: emergency/stop, match: EMERGENCY_STOP, write: { press.stop: 1 }, ack: { topic: status/emergency, text: STOPPED } }
servers:
  - { listen: "tcp://127.0.0.1:%d", writes: true, map: { 40001: press.speed, "000001": press.stop } }
  - { listen: "tcp://127.0.0.1:%d", allow: [127.0.0.2], map: { 40001: press.speed } }
`, device.Bus("plc").Addr(), nowhere, local, plc, closed))
	gw.log.waitFor(t, "device online")
	gw.log.waitFor(t, "uplink not connected")
	sub := watch(t, local, "status/emergency", "fieldgate/plant/stats")
	story := newTranscript(t, fmt.Sprint(":", closed), ":CLOSED")
	story.add("A PLC, which is mbpoll, at a gateway whose uplink is away (S36, S46, S50, S52).")
	ask := func(port int, args string, values ...string) {
		t.Helper()
		got, err := mbpoll.Run(append(append([]string{"-m", "tcp", "-0", "-p", strconv.Itoa(port)}, append(strings.Fields(args), "127.0.0.1")...), values...)...)
		story.add("$ mbpoll %s", strings.Join(append(strings.Fields(args), values...), " "))
		if err != nil {
			story.add("! %v", err)
		}
		if len(got) > 0 {
			story.add("%s", strings.Join(got, " "))
		}
	}
	shows := func(name string) {
		t.Helper()
		v, err := device.Device("press").Value(name)
		if err != nil {
			t.Fatal(err)
		}
		story.add("the device has %s %s", name, v)
	}
	story.add("\n# It reads and writes; the stop is done and seen done.")
	ask(plc, "-t 4 -r 0 -c 1")
	ask(plc, "-t 4 -r 0", "30")
	ask(plc, "-t 4 -r 0 -c 1")
	shows("speed")
	ask(plc, "-t 0 -r 0", "1")
	ask(plc, "-t 0 -r 0 -c 1")
	shows("stop")
	story.add("\n# Somebody on site asks for the stop.")
	if err := device.Device("press").Set("stop", point.BoolValue(false)); err != nil {
		t.Fatal(err)
	}
	story.add("sub emergency/stop EMERGENCY_STOP")
	if err := execute("mosquitto_pub", "-p", strconv.Itoa(local), "-q", "1", "-t", "emergency/stop", "-m", "EMERGENCY_STOP"); err != nil {
		t.Fatal(err)
	}
	sub.waitLast("status/emergency", "STOPPED")
	story.add("pub status/emergency STOPPED")
	shows("stop")
	story.add("\n# Too much, what is not in the map, and the server that takes only 127.0.0.2.")
	ask(plc, "-t 4 -r 0", "101")
	ask(plc, "-t 4 -r 7 -c 3")
	ask(plc, "-t 3 -r 0 -c 1")
	ask(closed, "-t 4 -r 0 -c 1")

	story.add("\n# What the gateway says of its servers.")
	server := fmt.Sprintf("tcp://127.0.0.1:%d", plc)
	status := sub.status("all is counted", func(s gateway.Status) bool {
		is := s.Servers[server]
		return len(is.ByClient) == 1 && is.ByClient[0].Exceptions[3] == 1 && is.ByClient[0].Exceptions[2] == 2 && is.ByClient[0].Connections == 0 && len(is.Unmapped) == 2
	})
	for _, is := range []any{status.Servers[server].ByClient, status.Servers[server].Unmapped, status.Servers[fmt.Sprintf("tcp://127.0.0.1:%d", closed)]} {
		text, err := json.Marshal(is)
		if err != nil {
			t.Fatal(err)
		}
		story.add("%s", text)
	}
	story.check("testdata/plc.txt")
}
