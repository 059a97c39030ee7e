package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// simulated runs "fieldgate simulate" on a plant and gives its standard output
// line by line. stop ends it and returns what was left, and its error.
func simulated(t *testing.T, plant string, args ...string) (lines *bufio.Scanner, stop func() (rest []string, err error)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "plant.yaml")
	if err := os.WriteFile(file, []byte(plant), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		a := &app{stdin: strings.NewReader(""), stdout: w, stderr: io.Discard}
		err := cmdSimulate(ctx, a, append([]string{file}, args...))
		w.Close()
		done <- err
	}()
	lines = bufio.NewScanner(r)
	return lines, func() (rest []string, err error) {
		cancel()
		for lines.Scan() {
			rest = append(rest, lines.Text())
		}
		return rest, <-done
	}
}

func next(t *testing.T, lines *bufio.Scanner) string {
	t.Helper()
	if !lines.Scan() {
		t.Fatalf("the output ends: %v", lines.Err())
	}
	return lines.Text()
}

// TestSimulate reads and writes a simulated plant with the modbus commands, on
// TCP and on a serial line.
func TestSimulate(t *testing.T) {
	link := filepath.Join(t.TempDir(), "line1")
	lines, stop := simulated(t, `
buses:
  plc: { tcp: "127.0.0.1:0" }
  line1: { serial: "`+link+`", mode: 115200-8N1 }
devices:
  press: { bus: plc, points: { force: { at: holding 0, value: 17 } } }
  meter: { bus: line1, unit: 3, points: { power: { at: input 4, type: float32, value: 42.5 } } }
`, "--json")
	var urls []string
	for range 2 {
		var o struct {
			URL  string
			Seed uint64
		}
		if err := json.Unmarshal([]byte(next(t, lines)), &o); err != nil || o.URL == "" || o.Seed == 0 {
			t.Fatalf("%+v, %v", o, err)
		}
		urls = append(urls, o.URL)
	}
	for _, c := range []struct{ command, want string }{
		{"modbus read " + urls[0] + " holding 0", "holding 0 (40001)  17\n"},
		{"modbus write " + urls[0] + " holding 0 18", "holding 0 (40001)  18\n"},
		{"modbus read " + urls[1] + " --unit 3 input 4 --type float32", "input 4 (30005)  42.5\n"},
	} {
		stdout, stderr, code := inProcess(strings.Fields(c.command))
		if code != exitDone || stdout != c.want {
			t.Errorf("%s: %d %q %s, want %q", c.command, code, stdout, stderr, c.want)
		}
	}
	rest, err := stop()
	if err != nil || len(rest) != 2 {
		t.Fatalf("%q, %v", rest, err)
	}
	var press struct {
		Bus      string
		Requests int
		Devices  []struct {
			Name   string
			Writes int
		}
	}
	if err := json.Unmarshal([]byte(rest[0]), &press); err != nil || press.Bus != "plc" || press.Requests < 3 || press.Devices[0].Writes != 1 {
		t.Errorf("%s: %+v, %v", rest[0], press, err)
	}
	if _, err := os.Lstat(link); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the link is left: %v", err)
	}
}

func TestSimulateText(t *testing.T) {
	lines, stop := simulated(t, `
buses: { plc: { tcp: "127.0.0.1:0", framing: rtu }, spare: { udp: "127.0.0.1:0" } }
devices: { press: { bus: plc, unit: 7, points: { force: { at: holding 0, type: int32, order: CDAB, scale: 0.1, offset: -2, value: 17 } } } }
`)
	first, second, hint := next(t, lines), next(t, lines), next(t, lines)
	if !strings.HasPrefix(first, "plc    rtu+tcp://127.0.0.1:") || !strings.HasSuffix(first, "press (7)") || !strings.HasPrefix(second, "spare  udp://127.0.0.1:") {
		t.Errorf("%q\n%q", first, second)
	}
	// What is suggested works as it stands.
	command, ok := strings.CutPrefix(strings.ReplaceAll(hint, "'", ""), "try:  fieldgate ")
	if !ok {
		t.Fatalf("%q", hint)
	}
	if stdout, stderr, code := inProcess(strings.Fields(command)); code != exitDone || stdout != "holding 0 (40001)  17\n" {
		t.Errorf("%s: %d %q %s", command, code, stdout, stderr)
	}
	rest, err := stop()
	if got := strings.Join(rest, "\n"); err != nil || !strings.Contains(got, "plc      1 request  0 bad frames") {
		t.Errorf("%s, %v", got, err)
	}
}

func TestSimulateRefuses(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("buses: {a: {tcp: x}}\ndevices: {d: {bus: b}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "fieldgate: simulate takes one FILE"},
		{[]string{"a", "b"}, "fieldgate: simulate takes one FILE"},
		{[]string{filepath.Join(t.TempDir(), "none.yaml")}, "fieldgate: simulate: open "},
		{[]string{bad}, bad + ":1:18: buses.a.tcp: \"x\" is not HOST:PORT; write one such as 127.0.0.1:1502\n" + bad + ":2:11: devices.d: is on bus \"b\""},
	} {
		_, stderr, code := inProcess(append([]string{"simulate"}, c.args...))
		if code != exitUsage || !strings.HasPrefix(stderr, c.want) {
			t.Errorf("%v: exit code %d, %s, want 2 and %q", c.args, code, stderr, c.want)
		}
	}
}
