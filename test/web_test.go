package test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// ask asks the gateway's web server, once it listens.
func ask(t *testing.T, port int, path string) (status int, body string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
		if err != nil {
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			continue
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
}

// Health and figures of a gateway that reads one device and misses another; and
// a second gateway that wants the same address, which stops neither.
func TestWeb(t *testing.T) {
	device, web := libmodbus(t), freePort(t)
	config := func(site string) string {
		return fmt.Sprintf(`
site: { id: %s }
buses:
  plc:  { tcp: "127.0.0.1:%d" }
  gone: { tcp: "127.0.0.1:%d" }
devices:
  d: { bus: plc, every: 50ms, points: { x: { at: holding 10 } } }
  missing: { bus: gone, points: { x: { at: holding 10 } } }
broker: { listen: "mqtt://127.0.0.1:%d", anonymous: true }
web: { listen: "127.0.0.1:%d" }
`, site, device, freePort(t), freePort(t), web)
	}
	first := startGateway(t, config("first"))
	if status, body := ask(t, web, "/healthz"); status != 200 || body != "ok\n" {
		t.Errorf("healthz: %d %s", status, body)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		status, body := ask(t, web, "/readyz")
		if status == 200 {
			break
		}
		if status != 503 || !strings.HasPrefix(body, "waiting for the first poll of ") || time.Now().After(deadline) {
			t.Fatalf("readyz: %d %s", status, body)
		}
	}
	_, metrics := ask(t, web, "/metrics")
	for _, want := range []string{
		`fieldgate_device_state{bus="plc",device="d",state="online"} 1`,
		`fieldgate_device_state{bus="gone",device="missing",state="online"} 0`,
		`fieldgate_bus_connected{bus="gone"} 0`,
		`fieldgate_broker_clients 0`,
		`# TYPE fieldgate_publish_messages_total counter`,
	} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("the metrics lack %s:\n%s", want, metrics)
		}
	}

	second := startGateway(t, config("second"))
	second.log.waitFor(t, "health and metrics cannot be served, trying again")
	second.log.waitFor(t, "device=d")
	for _, p := range []*process{second, first} {
		if code, _ := p.stop(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}
