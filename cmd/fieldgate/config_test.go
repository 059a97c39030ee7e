package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fieldgate/internal/config"
	"fieldgate/internal/config/yamltree"
	"fieldgate/internal/point"
)

// TestConfigCommands runs the scripts of testdata/config with the real program, in
// a folder that holds the files of testdata/config and the examples in configs.
func TestConfigCommands(t *testing.T) {
	program := buildProgram(t)
	for _, path := range scripts(t, "testdata/config/*.txt") {
		t.Run(nameOf(path), func(t *testing.T) {
			dir := t.TempDir()
			copyFiles(t, "testdata/config", dir, "*.yaml")
			copyFiles(t, "../../configs", filepath.Join(dir, "configs"), "*.yaml")
			t.Chdir(dir)
			script{run: func(stdin string, args []string) (string, string, int) {
				return runProgram(t, program, stdin, nil, args...)
			}}.check(t, path)
		})
	}
}

func copyFiles(t *testing.T, from, to, pattern string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(from, pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in %s: %v", from, err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(f)), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// What "schema" prints is JSON, and "plan" and "check" print an object each
// for all examples.
func TestConfigJSON(t *testing.T) {
	examples, err := filepath.Glob("../../configs/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	commands := [][]string{{"schema"}}
	for _, e := range examples {
		if !strings.HasPrefix(filepath.Base(e), "simulate") {
			commands = append(commands, []string{"check", "--json", e}, []string{"plan", "--json", e}, []string{"check", "-v", e}, []string{"plan", e})
		}
	}
	for _, args := range commands {
		stdout, stderr, code := inProcess(args)
		if code != 0 || stdout == "" {
			t.Errorf("%s: exit code %d, %s%s", args, code, stdout, stderr)
		}
		if args[0] == "schema" || args[1] == "--json" {
			if !json.Valid([]byte(stdout)) {
				t.Errorf("%s prints no JSON: %s", args, stdout)
			}
		}
	}
}

// Every preset can be run, and none but plain, which is to be edited, has
// anything to warn of.
func TestPresets(t *testing.T) {
	for _, name := range presets {
		path := filepath.Join(t.TempDir(), "fieldgate.yaml")
		if stdout, stderr, code := inProcess([]string{"init", "--preset", name, "-o", path}); code != 0 || !strings.Contains(stdout, path) {
			t.Fatalf("%s: exit code %d, %s", name, code, stderr)
		}
		cfg, err := config.Load(path)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(cfg.Warnings) > 0 {
			t.Errorf("%s warns: %v", name, cfg.Warnings)
		}
		for _, args := range [][]string{{"check", "-c", path}, {"plan", "-c", path}} {
			if stdout, stderr, code := inProcess(args); code != 0 {
				t.Errorf("%s: %s: exit code %d, %s%s", name, args[0], code, stdout, stderr)
			}
		}
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, stderr, code := inProcess([]string{"init", "-o", path})
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if code != 1 || !strings.Contains(stderr, "exists and is not overwritten") || !bytes.Equal(before, after) {
			t.Errorf("%s was overwritten: exit code %d, %s", path, code, stderr)
		}
	}
}

// TestPresetComments takes the comment off what presets show as the other way.
func TestPresetComments(t *testing.T) {
	for _, row := range []struct{ preset, drop, take string }{
		{"azure", "url: mqtts://HUB", "url: wss://HUB"},
		{"mosquitto", "none", "client_id: plant1"},
		{"mosquitto", "none", "tls: { ca: ca.crt, cert: plant1.crt"},
		{"hivemq", "none", "tls: { ca: ca.pem }"},
		{"emqx", "none", "tls: { ca: emqxsl"},
		{"aws", "none", "cert: plant1"},
		{"plain", "none", "username: plant1"},
	} {
		text, err := presetFiles.ReadFile("presets/" + row.preset + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		taken := false
		for line := range strings.Lines(string(text)) {
			bare := strings.TrimSpace(line)
			if strings.HasPrefix(bare, row.drop) {
				continue
			}
			if strings.HasPrefix(bare, "# "+row.take) {
				line, taken = strings.Replace(line, "# ", "", 1), true
			}
			out = append(out, line)
		}
		if _, err := config.LoadBytes(row.preset, []byte(strings.Join(out, ""))); err != nil || !taken {
			t.Errorf("%s with %s: %v", row.preset, row.take, err)
		}
	}
}

// The demo preset reads what the simulated plant has.
func TestDemoPreset(t *testing.T) {
	plant, err := os.ReadFile("../../configs/simulate-plant.yaml")
	if err != nil {
		t.Fatal(err)
	}
	root, errs := new(yamltree.Set).Parse("plant", plant)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	_, devices := root.Get("devices")
	at := make(map[point.ID]string) // address and type
	for name, device := range devices.Entries {
		_, points := device.Get("points")
		for p, def := range points.Entries {
			_, addr := def.Get("at")
			kind := "uint16"
			if _, typ := def.Get("type"); typ != nil {
				kind = typ.Text
			}
			table, a, err := point.ParseAddress(addr.Text)
			if err != nil {
				t.Fatal(err)
			}
			if _, bit := def.Get("bit"); bit != nil || table.Bits() {
				kind = "bool"
			}
			for _, unit := range []string{"2", "3", "4"} {
				at[point.ID(strings.ReplaceAll(name.Text, "{unit}", unit)+"."+p.Text)] = point.FormatAddress(table, a) + " " + kind
			}
		}
	}
	text, err := presetFiles.ReadFile("presets/demo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.LoadBytes("demo.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range cfg.Devices {
		for _, p := range d.Points {
			got := point.FormatAddress(p.Table, p.Address) + " " + p.TypeName()
			if got != at[p.ID] {
				t.Errorf("%s is %s, in the plant %s", p.ID, got, at[p.ID])
			}
		}
	}
}
