package main

import (
	"bufio"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// startServe runs "modbus serve" until the test ends and returns its lines.
func startServe(t *testing.T, args ...string) *bufio.Scanner {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	var errs strings.Builder
	done := make(chan int, 1)
	go func() { // ends with ctx
		a := &app{stdin: strings.NewReader(""), stdout: w, stderr: &errs}
		done <- a.main(ctx, append([]string{"modbus", "serve"}, args...))
		w.Close()
	}()
	t.Cleanup(func() {
		cancel()
		go io.Copy(io.Discard, r) // what is still to be said; ends with the pipe
		if code := <-done; code != 0 {
			t.Errorf("exit code %d: %s", code, errs.String())
		}
	})
	return bufio.NewScanner(r)
}

func nextLine(t *testing.T, lines *bufio.Scanner) string {
	t.Helper()
	if !lines.Scan() {
		t.Fatalf("no more lines: %v", lines.Err())
	}
	return lines.Text()
}

func TestModbusServe(t *testing.T) {
	lines := startServe(t, strings.Fields("tcp://127.0.0.1:0 holding 0 12.5 -3 coil 7 1 0 --type int16 --scale 0.1 --unit 9")...)
	first, ok := strings.CutPrefix(nextLine(t, lines), "serving ")
	url, rest, _ := strings.Cut(first, "  ")
	if !ok || rest != "unit 9, 4 values" {
		t.Fatalf("%q", first)
	}
	if got, want := nextLine(t, lines), "try:  fieldgate modbus read '"+url+"' --unit 9 holding 0 --type 'int16'"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for _, row := range []struct{ args, want string }{
		{"read URL holding 0 2 --unit 9 --type int16 --scale 0.1", "holding 0 (40001)  12.5\nholding 1 (40002)  -3\n"},
		{"read URL coil 7 2 --unit 9", "coil 7 (00008)  1\ncoil 8 (00009)  0\n"},
		{"read URL coil 7 2 --unit 0", "coil 7 (00008)  1\ncoil 8 (00009)  0\n"},
	} {
		out, errs, code := inProcess(append([]string{"modbus"}, strings.Fields(strings.ReplaceAll(row.args, "URL", url))...))
		if out != row.want || code != 0 {
			t.Errorf("%s: %q, %q, exit code %d", row.args, out, errs, code)
		}
	}
	wrote := make(chan string, 1)
	go func() { wrote <- nextLine(t, lines) }() // ends with the line
	out, errs, code := inProcess([]string{"modbus", "write", url, "holding", "1", "7.5", "--unit", "9", "--type", "int16", "--scale", "0.1"})
	if out != "holding 1 (40002)  7.5\n" || code != 0 {
		t.Errorf("%q, %q, exit code %d", out, errs, code)
	}
	if got := <-wrote; got != "holding 1  7.5  by 127.0.0.1" {
		t.Errorf("%q", got)
	}
	if out, errs, code := inProcess([]string{"modbus", "read", url, "holding", "0", "3", "--unit", "9"}); code != 1 || !strings.Contains(errs, "exception 2") {
		t.Errorf("%q, %q, exit code %d", out, errs, code)
	}
}

// The servers of a configuration, before its plant is there.
func TestModbusServeConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plant.yaml")
	if err := os.WriteFile(path, []byte(`
buses: { plc: { tcp: 127.0.0.1:1 } }
devices: { boiler: { bus: plc, points: { temp: { at: 30001, type: int16, scale: 0.1 }, mode: { at: holding 0, map: { 3: off, 5: on } }, set: { at: holding 1, write: {} }, name: { at: holding 9, type: string(2) } } } }
servers:
  - { listen: tcp://127.0.0.1:0, writes: true, map: { 40001: boiler.temp, 40002: boiler.mode, 40003: boiler.set, 40004: boiler.name, 40010: { status: boiler.temp } }, pass: { 2: plc } }
  - { listen: tcp://127.0.0.1:0, map: { 40001: boiler.set } }
`), 0o600); err != nil {
		t.Fatal(err)
	}
	lines := startServe(t, "-c", path, "--json")
	url := func() string {
		_, after, _ := strings.Cut(nextLine(t, lines), `"url":"`)
		is, rest, _ := strings.Cut(after, `"`)
		if !strings.HasPrefix(rest, `,"unit":1,"values":`) {
			t.Fatalf("%q", rest)
		}
		return is
	}
	one, two := url(), url()
	wrote := make(chan string, 1)
	go func() { wrote <- nextLine(t, lines) }() // ends with the line
	for _, row := range []struct{ args, want string }{
		{"read ONE holding 0 5", "holding 0 (40001)  0\nholding 1 (40002)  3\nholding 2 (40003)  0\nholding 3 (40004)  0\nholding 4 (40005)  0\n"},
		{"write ONE 40003 42", "holding 2 (40003)  42\n"},
		{"read TWO 40001", "holding 0 (40001)  42\n"},
		{"read ONE 40010", "holding 9 (40010)  0\n"},
	} {
		args := strings.NewReplacer("ONE", one, "TWO", two).Replace(row.args)
		out, errs, code := inProcess(append([]string{"modbus"}, strings.Fields(args)...))
		if out != row.want || code != 0 {
			t.Errorf("%s: %q, %q, exit code %d", row.args, out, errs, code)
		}
	}
	if got := <-wrote; !strings.HasSuffix(got, `"point":"boiler.set","value":42,"by":"127.0.0.1"}`) {
		t.Errorf("%q", got)
	}
	if _, errs, code := inProcess([]string{"modbus", "read", one, "holding", "0", "--unit", "2"}); code != 4 && code != 1 || !strings.Contains(errs, "exception 10") {
		t.Errorf("a unit that goes on to a bus: %q, exit code %d", errs, code)
	}
}
