package command

import (
	"flag"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
)

var update = flag.Bool("update", false, "write the answers of docs/commands.md anew")

// TestPage keeps docs/commands.md true: what stands behind ">" is sent to the
// example configuration, what stands behind "<" is what it answers.
func TestPage(t *testing.T) {
	const page = "../../docs/commands.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(time.Date(2025, 11, 5, 14, 30, 15, 0, time.UTC)))
		cfg, err := config.Load("../../configs/commands.yaml")
		if err != nil {
			t.Fatal(err)
		}
		d := newDesk(t, testCommands, func(o *Options) {
			o.Devices, o.Commands, o.Rules = cfg.Devices, cfg.Commands, cfg.CommandRules
		})
		d.plant.delay["boiler"] = 6 * time.Millisecond
		for i := range cfg.Devices[0].Points {
			p := &cfg.Devices[0].Points[i]
			d.plant.points[p.ID] = p
		}
		for name, v := range map[point.ID]int64{"setpoint": 55, "temp": 54, "time": 1800, "pressure": 4, "stop": 0} {
			d.plant.set("boiler."+name, point.IntValue(v))
		}
		d.plant.set("boiler.mode", point.TextValue("local"))
		if _, err := d.plant.Read(t.Context(), "boiler.setpoint", "boiler.mode", "boiler.time", "boiler.pressure", "boiler.stop"); err != nil {
			t.Fatal(err)
		}
		d.plant.write = func(id point.ID, v point.Value) (bool, error) {
			if id == "boiler.pressure" {
				return false, modbus.ServerDeviceFailure
			}
			return true, nil
		}
		for line := range strings.Lines(string(text)) {
			sent, isSent := strings.CutPrefix(line, "> ")
			switch {
			case strings.HasPrefix(line, "< "):
				continue
			case !isSent || !strings.Contains(sent, "/"):
				out.WriteString(line)
				continue
			}
			out.WriteString(line)
			topic, payload, _ := strings.Cut(strings.TrimSuffix(sent, "\n"), " ")
			d.sendAs(mqtt.Origin{Via: "cloud"}, mqtt.Message{Topic: topic, Payload: []byte(payload)})
			time.Sleep(2 * time.Second)
			synctest.Wait()
			d.mu.Lock()
			for _, m := range d.answers {
				out.WriteString("< " + m.Topic + " " + string(m.Payload) + "\n")
			}
			d.answers = nil
			d.mu.Unlock()
		}
		d.end()
	})
	if *update {
		if err := os.WriteFile(page, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if out.String() != string(text) {
		t.Errorf("%s is not what is answered (go test -update writes it); got:\n%s", page, out.String())
	}
}
