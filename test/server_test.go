package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/gateway"
	"fieldgate/test/mbpoll"
)

// A PLC, which is mbpoll, at a gateway with a device, a virtual device, a second
// unit behind the same connection, and an engineering tool: what it reads and
// writes, when the device goes and comes back, and after a restart.
func TestModbusServer(t *testing.T) {
	t.Parallel()
	tcp, plc, tool, local := freePort(t), freePort(t), freePort(t), freePort(t)
	plant := writeFile(t, "plant.yaml", fmt.Sprintf(`
buses: { plc: { tcp: "127.0.0.1:%d" } }
devices:
  boiler: { bus: plc, unit: 1, points: { temp: { at: 30001, type: int16, scale: 0.1, value: 25.4 }, set: { at: holding 10, type: int16, scale: 0.1, value: 50 }, power: { at: holding 20, type: float32, order: CDAB, value: 12.5 } } }
  other:  { bus: plc, unit: 2, points: { a: { at: holding 100, value: 7 }, b: { at: holding 200, value: 8 } } }
`, tcp))
	sim := start(t, binary, "simulate", plant)
	sim.out.waitFor(t, "try:")
	dir := t.TempDir()
	config := filepath.Join(dir, "fieldgate.yaml")
	if err := os.WriteFile(config, []byte(fmt.Sprintf(`
site: { id: s }
web: false
buses: { plc: { tcp: "127.0.0.1:%d", timeout: 200ms } }
devices:
  boiler:
    bus: plc
    every: 50ms
    points:
      temp:  { at: 30001, type: int16, scale: 0.1 }
      set:   { at: holding 10, type: int16, scale: 0.1, write: { min: 20, max: 90 } }
      power: { at: holding 20, type: float32, order: CDAB }
  recipe: { points: { speed: { type: uint16, initial: 5, keep: true, write: {} } } }
broker: { listen: "mqtt://127.0.0.1:%d", anonymous: true }
status: { every: 1s }
servers:
  - listen: tcp://127.0.0.1:%d
    writes: true
    map:
      30001: boiler.temp
      30002: { point: boiler.power, type: int32, scale: 0.1 }
      30004: { status: boiler.temp }
      30005: { age: boiler.temp }
      30006: { point: boiler.temp, stale: last }
      40001: boiler.set
      40002: recipe.speed
      40009: { pause: boiler }
  - listen: tcp://127.0.0.1:%d
    pass: { 2: plc }
    pass_writes: [holding 100-120]
    unit: 9
`, tcp, local, plc, tool)), 0o600); err != nil {
		t.Fatal(err)
	}
	begin := func() *process {
		p := start(t, binary, "-c", config, "run", "--data", filepath.Join(dir, "data"))
		p.log.waitFor(t, "msg=started")
		p.log.waitFor(t, "device online")
		return p
	}
	gw := begin()
	poll := func(port int, flags string, values ...string) string {
		args := append([]string{"-0", "-m", "tcp", "-p", strconv.Itoa(port)}, strings.Fields(flags)...)
		got, err := mbpoll.Run(append(append(args, "127.0.0.1"), values...)...)
		if err != nil {
			_, why, _ := strings.Cut(err.Error(), "failed: ")
			return why
		}
		return strings.Join(got, " ")
	}
	// until waits for an answer that takes a poll or more.
	until := func(port int, flags, want string) {
		t.Helper()
		var got string
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if got = poll(port, flags); got == want {
				return
			}
		}
		t.Errorf("mbpoll %s: %s, want %s", flags, got, want)
	}
	check := func(port int, flags, want string, values ...string) {
		t.Helper()
		if got := poll(port, flags, values...); got != want {
			t.Errorf("mbpoll %s %v: %s, want %s", flags, values, got, want)
		}
	}
	until(plc, "-t 3 -r 0 -c 4", "254 0 125 0")
	check(plc, "-t 4 -r 0 -c 2", "500 5")
	check(plc, "-t 3 -r 0 -c 2", "Illegal data address")
	check(plc, "-t 3 -r 0 -c 7", "Illegal data address")

	check(plc, "-t 4 -r 0", "", "555")
	check(plc, "-t 4 -r 0 -c 1", "555") // the read-back has been seen
	check(plc, "-t 4 -r 0", "Illegal data value", "1000")
	check(plc, "-t 4 -r 0", "", "600", "77")
	check(plc, "-t 4 -r 0 -c 2", "600 77")
	check(plc, "-t 4 -r 1", "", "78")

	check(tool, "-a 2 -t 4 -r 100 -c 1", "7")
	check(tool, "-a 2 -t 4 -r 100", "", "70")
	check(tool, "-a 2 -t 4 -r 100 -c 1", "70")
	check(tool, "-a 2 -t 4 -r 200", "Illegal data address", "1")
	check(tool, "-a 2 -t 4 -r 200 -c 1", "8")
	check(tool, "-a 3 -t 4 -r 200 -c 1", "Target device failed to respond")

	check(plc, "-t 4 -r 8", "", "600")
	gw.log.waitFor(t, "polling pauses")
	until(plc, "-t 3 -r 4 -c 1", "1") // its age grows
	check(plc, "-t 4 -r 8", "", "0")
	until(plc, "-t 3 -r 4 -c 1", "0")

	audited, _, code := run(t, "audit", "ls", "--data", filepath.Join(dir, "data"))
	for _, want := range []string{"verified  boiler.set = 55.5 (was 50)  by 127.0.0.1  via modbus", "rejected  boiler.set = 100  by 127.0.0.1  via modbus: 100 is above the most, 90", "plc unit 2 = 06 00 64 00 46  by 127.0.0.1  via modbus"} {
		if code != 0 || !strings.Contains(audited, want) {
			t.Errorf("the audit record lacks %q:\n%s", want, audited)
		}
	}

	sim.stop()
	until(plc, "-t 3 -r 0 -c 1", "Target device failed to respond")
	check(plc, "-t 3 -r 0 -c 4", "Target device failed to respond")
	check(plc, "-t 3 -r 3 -c 1", "2")
	check(plc, "-t 3 -r 5 -c 1", "254")
	check(plc, "-t 4 -r 1 -c 1", "78")
	if got := poll(plc, "-t 4 -r 0", "500"); got == "" {
		t.Error("a write to a device that is gone succeeded")
	}
	sim = start(t, binary, "simulate", plant)
	sim.out.waitFor(t, "try:")
	until(plc, "-t 3 -r 0 -c 4", "254 0 125 0")

	stats, err := exec.Command("mosquitto_sub", "-h", "127.0.0.1", "-p", strconv.Itoa(local), "-t", "fieldgate/s/stats", "-C", "1", "-W", "20").Output()
	var s gateway.Status
	if err != nil || json.Unmarshal(stats, &s) != nil {
		t.Fatalf("%v: %s", err, stats)
	}
	is := s.Servers[fmt.Sprintf("tcp://127.0.0.1:%d", plc)]
	if len(is.ByClient) != 1 || is.ByClient[0].Client != "127.0.0.1" || is.ByClient[0].Functions[6] < 3 || is.ByClient[0].Exceptions[2] != 2 ||
		is.ByClient[0].Exceptions[11] == 0 || len(is.Unmapped) != 2 || is.Unmapped[1].Address != "30001" || is.Unmapped[1].Count != 7 || !is.Unmapped[0].Cut {
		t.Errorf("%+v", is)
	}
	time.Sleep(1500 * time.Millisecond) // what is kept is saved a second later
	gw.stop()
	begin()
	until(plc, "-t 4 -r 1 -c 1", "78")
	until(plc, "-t 4 -r 0 -c 1", "500")
}
