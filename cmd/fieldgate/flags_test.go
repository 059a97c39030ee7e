package main

import (
	"strings"
	"testing"

	"fieldgate/internal/point"
)

// What is wrong with an option is said with the remedy, exit code 2.
func TestOptions(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"modbus read tcp://127.0.0.1 holding 0 --timeout 300", `--timeout: "300" is not a time; write one such as 300ms, 10s or 5m`},
		{"demo --for 10", `--for: "10" is not a time`},
		{"modbus read tcp://127.0.0.1 holding 0 --unit one", `--unit: "one" is not a whole number`},
		{"check --verbose", "unknown option: -verbose"},
		{"demo --for -1s", "--for: -1s is below zero; write one such as 10s or 5m"},
		{"simulate x.yaml --for -1s", "--for: -1s is below zero"},
		{"staus", `"staus" is not a command of fieldgate`},
		{"frobnicate", "known: run, demo, init, check, plan, schema, audit, queue, modbus, mqtt, simulate, passwd, version\n"},
		{"chekc", "did you mean check?"},
		{"--version now", "version takes no arguments"},
		{"check -c", "flag needs an argument: -c"},
	} {
		_, stderr, code := inProcess(strings.Fields(tt.line))
		if code != exitUsage || !strings.Contains(stderr, tt.want) {
			t.Errorf("%s: exit code %d, %s, want %s", tt.line, code, stderr, tt.want)
		}
	}
}

// The version is asked for in two ways.
func TestVersionOption(t *testing.T) {
	want, _, _ := inProcess([]string{"version"})
	if got, _, code := inProcess([]string{"--version"}); code != exitDone || got != want || got == "" {
		t.Errorf("--version prints %q, want %q", got, want)
	}
}

// What the demo shows of a boolean is a word.
func TestShown(t *testing.T) {
	for want, v := range map[string]point.Value{"true": point.BoolValue(true), "false": point.BoolValue(false), "1": point.IntValue(1), "open": point.TextValue("open")} {
		if got := shown(v); got != want {
			t.Errorf("shown(%v) = %q, want %q", v, got, want)
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
