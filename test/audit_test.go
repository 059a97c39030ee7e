package test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// The record of every command (S40), with the real program: it is published as it
// is written, read and checked while the gateway runs, outlives a kill in the
// middle of a line, and shows what somebody changes in it. What is seen stands in
// testdata/audit.txt.
func TestAuditTrail(t *testing.T) {
	t.Parallel()
	local, dir := freePort(t), t.TempDir()
	data := filepath.Join(dir, "data")
	config := writeFile(t, "fieldgate.yaml", fmt.Sprintf(`
site: { id: plant }
devices: { tank: { points: { level: { write: { max: 100 } }, valve: { type: bool, write: {} } } } }
broker: { listen: "mqtt://127.0.0.1:%d", anonymous: true }
publish: [ { points: "none.*" } ]
commands:
  - { topic: "set/{point}", write: "tank.{point}" }
  - { topic: "alerts/#", event: alert }
web: false
`, local))
	story := newTranscript(t, data, "DATA")
	story.add("The record of commands (S40), and of messages for people (S42). What comes on\nfieldgate/plant/event is published by the gateway.")
	begin := func() *process {
		t.Helper()
		p := start(t, binary, "-c", config, "run", "--data", data)
		p.log.waitFor(t, "msg=started")
		return p
	}
	gw := begin()
	says := watch(t, local, "fieldgate/plant/event")
	records := 0
	send := func(topic, payload string, more int) {
		t.Helper()
		story.add("\nsub %s %s", topic, payload)
		if err := execute("mosquitto_pub", "-p", strconv.Itoa(local), "-i", "panel", "-q", "1", "-t", topic, "-m", payload); err != nil {
			t.Fatal(err)
		}
		says.wait("the record of it", func() bool { return len(says.messages()) >= records+more })
		for _, m := range says.messages()[records:] {
			story.add("pub %s %s", m.topic, m.payload)
		}
		records = len(says.messages())
	}
	send("set/level", `{"value":55,"id":"job-1"}`, 2)
	send("set/level", "101", 1)
	send("alerts/storm", "secure the roof", 1)
	story.add("")
	story.tell("audit", "ls", "--data", data)
	story.tell("audit", "verify", "--data", data)

	// A kill in the middle of a line.
	if err := gw.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-gw.done
	file := filepath.Join(data, "audit", "audit-000001.jsonl")
	change := func(from, to string) {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(text, []byte(from)) {
			t.Fatalf("%s has no %q:\n%s", file, from, text)
		}
		if err := os.WriteFile(file, bytes.Replace(text, []byte(from), []byte(to), 1), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	story.add("\nkilled in the middle of record 5, and started again")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	whole := text[:bytes.LastIndexByte(text, '\n')+1]
	if err := os.WriteFile(file, append(whole, `{"seq":5,"timestamp":"20`...), 0o640); err != nil {
		t.Fatal(err)
	}
	gw = begin()
	story.tell("audit", "ls", "--data", data)
	story.tell("audit", "verify", "--data", data)
	if code, _ := gw.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}

	story.add("\nsomebody makes 55 a 95 in the file")
	change(`"value":"55"`, `"value":"95"`)
	story.tell("audit", "verify", "--data", data)
	change(`"value":"95"`, `"value":"55"`)
	story.tell("audit", "export", "--data", data, "--format", "csv", "-")
	story.check("testdata/audit.txt")
}
