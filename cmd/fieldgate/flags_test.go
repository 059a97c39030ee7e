package main

import (
	"strings"
	"testing"
)

// What is wrong with an option is said with the remedy, exit code 2.
func TestOptions(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"modbus read tcp://127.0.0.1 holding 0 --timeout 300", `--timeout: "300" is not a time; write one such as 300ms, 10s or 5m`},
		{"demo --for 10", `--for: "10" is not a time`},
		{"modbus read tcp://127.0.0.1 holding 0 --unit one", `--unit: "one" is not a whole number`},
		{"check --verbose", "unknown option: -verbose"},
		{"check -c", "flag needs an argument: -c"},
	} {
		_, stderr, code := inProcess(strings.Fields(tt.line))
		if code != exitUsage || !strings.Contains(stderr, tt.want) {
			t.Errorf("%s: exit code %d, %s, want %s", tt.line, code, stderr, tt.want)
		}
	}
}

// The texts of the options stand below each other, however long a name is.
func TestHelpColumns(t *testing.T) {
	stdout, _, _ := inProcess([]string{"mqtt", "pub", "-h"})
	_, options, _ := strings.Cut(stdout, "Options:\n")
	texts := map[int]bool{}
	for line := range strings.Lines(options) {
		body := strings.TrimLeft(line, " ")
		texts[len(line)-len(strings.TrimLeft(body[strings.Index(body, "  "):], " "))] = true
	}
	if len(texts) != 1 {
		t.Errorf("texts begin in %d columns:\n%s", len(texts), options)
	}
	for _, args := range [][]string{{"schema", "-h"}, {"passwd", "-h"}} {
		stdout, _, _ := inProcess(args)
		if first, _, _ := strings.Cut(stdout, "\n"); strings.HasSuffix(first, " ") {
			t.Errorf("%s: %q ends with a space", args, first)
		}
	}
}
