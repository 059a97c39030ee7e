package test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"fieldgate/test/mbpoll"
)

// TestPair runs the example of two gateways back to back as it ships, but for
// its ports and times: a made-up plant, the gateway that polls it, the one that
// serves its values, and mbpoll in the place of the PLC.
func TestPair(t *testing.T) {
	t.Parallel()
	plantPort, brokerPort, servePort := freePort(t), freePort(t), freePort(t)
	example := func(name string) string {
		t.Helper()
		text, err := os.ReadFile("../configs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return strings.NewReplacer(
			"127.0.0.1:1502", fmt.Sprintf("127.0.0.1:%d", plantPort),
			"127.0.0.1:1883", fmt.Sprintf("127.0.0.1:%d", brokerPort),
			"127.0.0.1:1503", fmt.Sprintf("127.0.0.1:%d", servePort),
			"at_least: 10s", "at_least: 1s", "stale: 25s", "stale: 4s",
		).Replace(string(text))
	}
	const noWeb = "\nweb: false\n" // other gateways of this machine may have the usual address
	startPlant := func() *process {
		p := start(t, binary, "simulate", writeFile(t, "plant.yaml", example("simulate-pair.yaml")))
		p.log.waitFor(t, "simulated plant starts")
		return p
	}
	data := t.TempDir()
	runPair := func(name string) *process {
		t.Helper()
		p := start(t, binary, "-c", writeFile(t, name+".yaml", example("pair-"+name+".yaml")+noWeb), "run", "--data", filepath.Join(data, name))
		p.log.waitFor(t, "msg=started")
		return p
	}
	plant := startPlant()
	room := runPair("room")
	field := runPair("field")

	// poll asks the room as a PLC does, and returns the values, or what mbpoll
	// says to an exception.
	poll := func(args string, values ...string) string {
		all := append([]string{"-0", "-m", "tcp", "-p", strconv.Itoa(servePort)}, strings.Fields(args)...)
		got, err := mbpoll.Run(append(append(all, "127.0.0.1"), values...)...)
		if err != nil {
			return err.Error()
		}
		return strings.Join(got, " ")
	}
	eventually := func(args, want string) {
		t.Helper()
		got := ""
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if got = poll(args); strings.Contains(got, want) {
				return
			}
		}
		t.Fatalf("mbpoll %s: %s, want %s", args, got, want)
	}
	const temp, noAnswer = "-t 3 -r 0 -c 1", "Target device failed to respond" // exception 0x0B

	// Up: each value in its own form.
	eventually(temp, "654")
	eventually("-t 3:float -B -r 1 -c 1", "12.5")
	eventually("-t 3 -r 9 -c 1", "0")
	eventually("-t 1 -r 0 -c 1", "1")
	eventually("-t 4 -r 1 -c 1", "700")

	// What the room says of itself goes to whoever listens: a device in memory is
	// online, and each record is told with its hash.
	says := start(t, "mosquitto_sub", "-h", "127.0.0.1", "-p", strconv.Itoa(brokerPort), "-v", "-t", "fieldgate/room/event", "-t", "fieldgate/room/device/+/state")
	says.out.waitFor(t, "fieldgate/room/device/boiler/state online")

	// Down: the PLC's write is an order, done and seen done at the far end.
	if out := poll("-t 4 -r 0", "755"); out != "" {
		t.Errorf("the PLC's write: %s", out)
	}
	eventually("-t 4 -r 1 -c 1", "755")
	eventually("-t 4:hex -r 10 -c 4", "0x7665 0x7269 0x6669 0x6564") // verified
	out, stderr, code := run(t, "modbus", "read", fmt.Sprintf("tcp://127.0.0.1:%d", plantPort), "holding", "0")
	if out != "holding 0 (40001)  755\n" {
		t.Errorf("the plant has %s%s, exit code %d", out, stderr, code)
	}
	if out := poll("-t 4 -r 0", "950"); !strings.Contains(out, "Illegal data value") {
		t.Errorf("an order past its limit: %s", out)
	}

	// Both have recorded who wanted what, and can be asked while they run.
	for name, want := range map[string]string{
		"room":  "verified  order.setpoint = 75.5  by 127.0.0.1  via modbus",
		"field": "verified  boiler.setpoint = 75.5 (was 70)  via room",
	} {
		dir := filepath.Join(data, name)
		if out, stderr, code := run(t, "audit", "ls", "--data", dir); !strings.Contains(out, want) || code != 0 {
			t.Errorf("audit ls of the %s: %s%s, want %s", name, out, stderr, want)
		}
		if out, stderr, code := run(t, "audit", "verify", "--data", dir); !strings.Contains(out, "the chain holds") || code != 0 {
			t.Errorf("audit verify of the %s: %s%s", name, out, stderr)
		}
	}

	says.out.waitFor(t, `"event":"result"`)
	told := regexp.MustCompile(`"hash":"([0-9a-f]{64})"`).FindAllStringSubmatch(says.out.String(), -1)
	if len(told) < 2 {
		t.Fatalf("%d records told, want the order and what came of it", len(told))
	}
	for _, hash := range told {
		if out, stderr, code := run(t, "audit", "verify", "--data", filepath.Join(data, "room"), "--has", hash[1]); code != 0 {
			t.Errorf("audit verify --has %s: %s%s", hash[1], out, stderr)
		}
	}

	// The plant is away: the field says so. Then the field is, and silence does.
	if code, _ := plant.stop(); code != 0 {
		t.Errorf("simulate: exit code %d", code)
	}
	eventually(temp, noAnswer)
	eventually("-t 3 -r 9 -c 1", "2")
	startPlant()
	eventually(temp, "654")
	if code, _ := field.stop(); code != 0 {
		t.Errorf("field: exit code %d", code)
	}
	eventually(temp, noAnswer)
	field = runPair("field")
	eventually(temp, "654")

	// The room starts again: its broker kept what the field had said.
	if code, _ := room.stop(); code != 0 {
		t.Errorf("room: exit code %d", code)
	}
	room = runPair("room")
	eventually(temp, "654")
	for _, p := range []*process{field, room} {
		if code, _ := p.stop(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}
