package test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// What each package of ours may import of ours. A package that is not named
// here fails the test: say where it belongs first.
var mayImport = map[string]string{
	"modbus":   "quick",
	"point":    "modbus",
	"mqtt":     "",
	"config":   "modbus point config/yamltree",
	"line":     "health modbus config quick",
	"bus":      "modbus point config",
	"simulate": "modbus point config",
	"probe":    "modbus point",
	"regmap":   "health modbus point config line quick socket",
	"pipeline": "point",
	"publish":  "health clock modbus point pipeline mqtt config",
	"clock":    "health",
	"virtual":  "health point config clock flash",
	"flash":    "",
	"alarm":    "point",
	"health":   "",
	"metrics":  "",
	"web":      "metrics",
	"queue":    "health clock mqtt config flash",
	"uplink":   "health mqtt queue config quick",
	"broker":   "mqtt config flash health socket",
	"bridge":   "mqtt config queue uplink broker",
	"audit":    "clock flash",
	"command":  "health clock modbus point mqtt config audit",
	"quick":    "health",
	"socket":   "",
	"group":    "",
	"systemd":  "",
	"gateway":  "clock modbus point config line bus regmap pipeline publish mqtt queue uplink broker bridge audit command virtual group systemd flash alarm health metrics web",
}

// The one door of each foreign package.
var doors = map[string]string{
	"github.com/goburrow/modbus": "modbus bench", // a peer in the benchmark

	"go.bug.st/serial":                      "line",
	"go.etcd.io/bbolt":                      "queue broker",
	"github.com/eclipse/paho.mqtt.golang":   "uplink",
	"github.com/mochi-mqtt/server":          "broker",
	"github.com/coreos/go-systemd":          "systemd",
	"go.yaml.in/yaml":                       "", // the judge in the tests of config/yamltree
	"software.sslmate.com/src/go-pkcs12":    "uplink",
	"github.com/gorilla/websocket":          "uplink broker",
	"golang.org/x/crypto":                   "broker",
	"golang.org/x/net":                      "uplink web",
	"github.com/santhosh-tekuri/jsonschema": "",
}

// Only these may be imported by cmd alone and by nobody else's package.
var assembly = []string{"gateway", "systemd", "group", "web"}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func listPackages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "fieldgate/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// The field half never reaches the MQTT half, nor back, and foreign packages
// come in by one door each (docs/architecture.md).
func TestImports(t *testing.T) {
	const ours = "fieldgate/internal/"
	field := []string{"modbus", "point", "line", "bus", "simulate", "probe", "regmap", "virtual"}
	mqttHalf := []string{"mqtt", "queue", "uplink", "broker", "publish", "command", "bridge"}
	for _, p := range listPackages(t) {
		name, internal := strings.CutPrefix(p.ImportPath, ours)
		top, _, _ := strings.Cut(name, "/")
		if internal && top == name {
			allowed, known := mayImport[name]
			if !known {
				t.Errorf("%s is not in the picture: add it to docs/architecture.md and to this test", name)
			}
			for _, imp := range p.Imports {
				to, ok := strings.CutPrefix(imp, ours)
				to, _, _ = strings.Cut(to, "/")
				if ok && to != name && !slices.Contains(strings.Fields(allowed), to) {
					t.Errorf("%s imports %s, which it may not", name, to)
				}
			}
		}
		if internal {
			for _, dep := range p.Deps {
				to, _ := strings.CutPrefix(dep, ours)
				if slices.Contains(field, name) && slices.Contains(mqttHalf, to) {
					t.Errorf("%s of the field half reaches %s of the MQTT half", name, to)
				}
				if slices.Contains(mqttHalf, name) && slices.Contains([]string{"line", "bus", "simulate", "probe", "regmap", "virtual"}, to) {
					t.Errorf("%s of the MQTT half reaches %s of the field half", name, to)
				}
				if slices.Contains(assembly, to) && name != "gateway" {
					t.Errorf("%s reaches %s, which only gateway and cmd may", name, to)
				}
			}
		}
		for _, imp := range p.Imports {
			place := top
			if !internal {
				place = path.Base(p.ImportPath)
			}
			for foreign, through := range doors {
				if imp != foreign && !strings.HasPrefix(imp, foreign+"/") {
					continue
				}
				if !slices.Contains(strings.Fields(through), place) {
					t.Errorf("%s imports %s; its door is %s", p.ImportPath, imp, through)
				}
			}
		}
	}
}
