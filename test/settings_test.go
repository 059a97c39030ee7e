package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"fieldgate/internal/mqtt/mosquittotest"
)

// Settings are changed from the cloud (S41): the messages of both directions are
// in testdata/settings.txt. A change is tried and kept; one that cuts off its own
// way back is taken back by itself; a kill in the middle of a trial brings back
// what was before.
func TestSettingsFromAfar(t *testing.T) {
	t.Parallel()
	upstream := mosquittotest.Start(t, mosquittotest.Options{})
	answers := upstream.Subscribe([]string{"config/plant/update/ack"})
	device := libmodbus(t)
	dir := t.TempDir()
	path, data := filepath.Join(dir, "fieldgate.yaml"), filepath.Join(dir, "data")
	text := fmt.Sprintf(`
site: { id: plant }
buses: { plc: { tcp: "127.0.0.1:%d" } }
devices: { press: { bus: plc, every: 100ms, points: { h10: { at: holding 10 } } } }
uplinks: { cloud: { url: "mqtt://127.0.0.1:%d" } }
settings: { from: cloud, allow: [devices.*.every, buses.*.tcp, uplinks.*.keepalive, uplinks.*.url], confirm: 4s }
web: false
`, device, upstream.Port)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	begin := func() *process {
		t.Helper()
		p := start(t, binary, "-c", path, "run", "--data", data)
		p.log.waitFor(t, `msg="device online"`)
		p.log.waitFor(t, `msg="uplink connected"`)
		return p
	}
	story := newTranscript(t, ":"+strconv.Itoa(device), ":PLC", ":"+strconv.Itoa(upstream.Port), ":BROKER")
	story.add("Settings are changed from afar (S41): sub is what the gateway is sent, pub what it says.\n")
	cause := regexp.MustCompile(`(is not connected: |is offline: |is suspect: )[^"]*`)
	send := func(payload string) {
		t.Helper()
		story.add("sub config/plant/update %s", payload)
		if err := execute("mosquitto_pub", "-h", "127.0.0.1", "-p", strconv.Itoa(upstream.Port), "-q", "1", "-t", "config/plant/update", "-m", payload); err != nil {
			t.Fatal(err)
		}
	}
	seen := make(map[string]bool)
	until := func(status string) {
		t.Helper()
		answers.Until(func(m mosquittotest.Received) bool {
			if seen[m.Payload] {
				return false // the kill has had it sent again
			}
			seen[m.Payload] = true
			story.add("pub %s %s", m.Topic, cause.ReplaceAllString(m.Payload, "${1}…"))
			var a struct{ Status string }
			if err := json.Unmarshal([]byte(m.Payload), &a); err != nil {
				t.Error(err)
			}
			return a.Status == status
		})
	}

	p := begin()
	send(`{"id":"1","set":{"devices.press.every":"200ms"}}`)
	until("confirmed")
	send(`{"id":"2","set":{"devices.press.unit":7,"devices.press.every":"soon"}}`)
	until("rejected")
	send(`{"id":"3","set":{"devices.press.every":"soon"}}`)
	until("rejected")
	send(`{"id":"4","set":{"buses.plc.tcp":"127.0.0.1:1"}}`)
	until("rolled back")
	send(`{"id":"4b","set":{"uplinks.cloud.url":"mqtt://127.0.0.1:1"}}`)
	until("rolled back")
	send(`{"id":"5","set":{"devices.press.every":"50ms"}}`)
	until("applied")
	if err := p.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.done
	story.add("killed, and started again")
	p = begin()
	until("rolled back")
	if !strings.Contains(p.log.String(), "devices.press.every: was changed from afar") {
		t.Error("the log does not say that settings are changed from afar")
	}
	send(`{"id":"5","set":{"devices.press.every":"50ms"}}`)
	until("rolled back")
	send(`{"id":"6","reset":true}`)
	until("confirmed")
	if code, _ := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}

	story.check("testdata/settings.txt")
}
