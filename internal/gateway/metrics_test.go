package gateway

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/bus"
	"fieldgate/internal/command"
	"fieldgate/internal/flash"
	"fieldgate/internal/metrics"
)

var update = flag.Bool("update", false, "write the table of docs/metrics.md anew")

// families reads what Metrics writes, by family, and holds it to the rules of the
// format: a family in one piece, no two samples alike, counters end with _total.
func families(t *testing.T, text string) map[string][]string {
	t.Helper()
	all := make(map[string][]string)
	sample := regexp.MustCompile(`^([a-z0-9_]+)(\{[a-z]+="([^"\\]|\\.)*"(,[a-z]+="([^"\\]|\\.)*")*\})? (-?[0-9.e+-]+|NaN)$`)
	name, seen, summary := "", make(map[string]bool), false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch f := strings.Fields(line); {
		case strings.HasPrefix(line, "# HELP "):
			name = f[2]
			if all[name] != nil {
				t.Errorf("family %s is written twice", name)
			}
			if !strings.HasPrefix(name, "fieldgate_") || len(f) < 4 {
				t.Errorf("bad help: %s", line)
			}
			all[name] = []string{}
		case strings.HasPrefix(line, "# TYPE "):
			summary = f[3] == "summary"
			if f[2] != name || (f[3] == "counter") != strings.HasSuffix(name, "_total") {
				t.Errorf("bad type: %s", line)
			}
		default:
			m := sample.FindStringSubmatch(line)
			if m == nil || m[1] != name && !(summary && (m[1] == name+"_sum" || m[1] == name+"_count")) {
				t.Errorf("bad sample in %s: %s", name, line)
				continue
			}
			key := m[1] + m[2]
			if seen[key] {
				t.Errorf("%s is there twice", key)
			}
			seen[key] = true
			all[name] = append(all[name], strings.TrimPrefix(line, name))
		}
	}
	return all
}

func TestMetrics(t *testing.T) {
	g := opened(t, `
site: { id: s }
buses: { plc: { tcp: 127.0.0.1:1 } }
devices:
  boiler: { bus: plc, points: { temp: { at: holding 0 } } }
  tank: { bus: plc, unit: 2, points: { level: { at: holding 0 } } }
uplinks: { cloud: { url: mqtt://broker.example } }
broker: { listen: mqtt://127.0.0.1:0, anonymous: true }
`)
	g.siren.step(t.Context(), g.start)
	got := families(t, string(g.Metrics()))
	for name, want := range map[string]string{
		"fieldgate_info":                      `{version="test"} 1`,
		"fieldgate_alarm_raised":              `{alarm="unencrypted.cloud",severity="warning"} 1`,
		"fieldgate_bus_connected":             `{bus="plc"} 1`, // until it is tried
		"fieldgate_device_polls_total":        `{bus="plc",device="tank"} 0`,
		"fieldgate_device_state":              `{bus="plc",device="boiler",state="unknown"} 1`,
		"fieldgate_uplink_connected":          `{uplink="cloud"} 0`,
		"fieldgate_queue_messages":            `{uplink="cloud"} 1`, // the alarm
		"fieldgate_flash_written_bytes_total": `{writer="queue.cloud"} 0`,
		"fieldgate_broker_clients":            ` 0`,
		"fieldgate_publish_samples_total":     ` 0`,
	} {
		if !strings.Contains("\n"+strings.Join(got[name], "\n")+"\n", "\n"+want+"\n") {
			t.Errorf("%s is %q, want %s in it", name, got[name], want)
		}
	}
	if n := got["fieldgate_process_resident_memory_bytes"]; len(n) != 1 || n[0] == " 0" {
		t.Errorf("resident memory is %q", n)
	}
	if len(got) < 60 {
		t.Errorf("%d families, want more", len(got))
	}
}

// Every figure that a part may have, and names that need quoting.
func TestMetricsOfEverything(t *testing.T) {
	var w metrics.Writer
	writeBuses(&w, map[string]BusStatus{
		"a": {Connected: true, Load: 12.5, count: bus.Counters{Requests: 3}, Devices: map[string]DeviceStatus{`x "1"\`: {State: "online", Answer: 1.5}}},
		"b": {Devices: map[string]DeviceStatus{"y": {State: "offline"}}},
	})
	writeUplinks(&w, map[string]UplinkStatus{"cloud": {
		Status: "Connected (TLS)", File: "disk full",
		Certificates: []CertificateStatus{{Whose: "broker", DaysLeft: 29}, {Whose: "own", DaysLeft: -1}},
	}})
	writeFlash(&w, FlashStatus{Queues: map[string]flash.Report{"cloud": {}}, Broker: &flash.Report{}, Audit: &flash.Report{Day: flash.Figures{Bytes: 7, Syncs: 1}}})
	writeServers(&w, map[string]ServerStatus{"tcp://127.0.0.1:502": {Clients: 2}})
	writeCommands(&w, *commandStatus(command.Stats{
		Verified: 4, RejectedBy: map[string]uint64{"value": 2, "time": 0},
		Usual: command.Durations{Count: 3, Sum: 300 * time.Millisecond, Most: 250 * time.Millisecond},
	}))
	got := families(t, string(w.Bytes()))
	for name, want := range map[string]string{
		"fieldgate_bus_load_ratio":               `{bus="a"} 0.125`,
		"fieldgate_bus_requests_total":           `{bus="a"} 3`,
		"fieldgate_device_state":                 `{bus="a",device="x \"1\"\\",state="online"} 1`,
		"fieldgate_device_answer_seconds":        `{bus="a",device="x \"1\"\\"} 0.0015`,
		"fieldgate_uplink_connected":             `{uplink="cloud"} 1`,
		"fieldgate_uplink_certificate_days_left": `{uplink="cloud",whose="own"} -1`,
		"fieldgate_queue_file_fault":             `{uplink="cloud"} 1`,
		"fieldgate_flash_written_last_day_bytes": `{writer="audit"} 7`,
		"fieldgate_server_clients":               `{server="tcp://127.0.0.1:502"} 2`,
		"fieldgate_command_outcomes_total":       `{outcome="verified"} 4`,
		"fieldgate_command_rejected_total":       `{check="value"} 2`,
		"fieldgate_command_duration_seconds":     `_sum{lane="usual"} 0.3`,
		"fieldgate_command_duration_max_seconds": `{lane="usual"} 0.25`,
	} {
		if !strings.Contains("\n"+strings.Join(got[name], "\n")+"\n", "\n"+want+"\n") {
			t.Errorf("%s is %q, want %s in it", name, got[name], want)
		}
	}
}

// docs/metrics.md has every family, in the order in which they are served.
func TestMetricsPage(t *testing.T) {
	g := opened(t, "site: { id: s }\nuplinks: { cloud: { url: mqtt://broker.example } }\n")
	g.siren.step(t.Context(), g.start)
	var w metrics.Writer
	writeAlarms(&w, g.siren.board.All())
	writeBuses(&w, map[string]BusStatus{"a": {Devices: map[string]DeviceStatus{"x": {}}}})
	writeUplinks(&w, map[string]UplinkStatus{"cloud": {Certificates: []CertificateStatus{{}}, Bridge: &BridgeStatus{}}})
	writeFlash(&w, FlashStatus{Broker: &flash.Report{}})
	writeBroker(&w, BrokerStatus{})
	writeServers(&w, map[string]ServerStatus{"s": {}})
	writeCommands(&w, CommandStatus{RejectedBy: map[string]uint64{"value": 0}})
	writeFigures(&w, only(AuditStatus{}), auditFigures)
	writeFigures(&w, only(PublishStatus{}), publishFigures)
	writeProcess(&w)
	text := string(w.Bytes())
	w = metrics.Writer{}
	writeGateway(&w, g.Status())
	text = string(w.Bytes()) + text

	labels := regexp.MustCompile(`([a-z]+)="`)
	var table strings.Builder
	help, kind, family := "", "", ""
	for line := range strings.Lines(text) {
		switch f := strings.SplitN(strings.TrimSpace(line), " ", 4); {
		case f[1] == "HELP":
			help = f[3]
		case f[1] == "TYPE":
			family, kind = f[2], f[3]
		case family != "":
			var names []string
			for _, m := range labels.FindAllStringSubmatch(line, -1) {
				names = append(names, m[1])
			}
			fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", family, kind, strings.Join(names, ", "), help)
			family = ""
		}
	}
	const page, head = "../../docs/metrics.md", "| name | kind | labels | what |\n|---|---|---|---|\n"
	have, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(have), head)
	_, after, _ := strings.Cut(rest, "\n\n")
	if want := before + head + table.String() + "\n" + after; !ok || string(have) != want {
		if !ok || !*update {
			t.Fatal("the table is not that of the program (go test ./internal/gateway -update writes it)")
		}
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Before Run nothing owes anything, and the first polls are waited for.
func TestHealthyAndReady(t *testing.T) {
	g := opened(t, `
site: { id: s }
buses: { plc: { tcp: 127.0.0.1:1 } }
devices:
  boiler: { bus: plc, points: { temp: { at: holding 0 } } }
  spare: { bus: plc, unit: 2, points: { x: { at: holding 0, every: never } } }
uplinks: { cloud: { url: mqtts://broker.example } }
`)
	if err := g.Healthy(); err != nil {
		t.Errorf("not healthy: %v", err)
	}
	if err := g.Ready(); err == nil || err.Error() != "waiting for the first poll of boiler" {
		t.Errorf("ready: %v", err)
	}
}
