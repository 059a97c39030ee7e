package gateway

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCheck: what may change while the gateway runs is looked at too, each fault
// is said once and at its place.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "fieldgate.yaml")
	text := `
buses: { line: { serial: /dev/ttyS7, mode: 1200-8N1 }, plc: { tcp: 10.0.0.1:502 } }
devices:
  slow: { bus: line, every: 20ms, points: { a: { at: holding 0 } } }
  quick: { bus: plc, points: { a: { at: holding 0 } } }
uplinks:
  unset: { url: mqtts://h, username: me, password: { env: FIELDGATE_TEST_UNSET } }
  gone: { url: mqtts://h, tls: { ca: none.pem } }
  broken: { url: mqtts://h, tls: { ca: broken.pem } }
  plain: { url: mqtt://h }
`
	for name, text := range map[string]string{"fieldgate.yaml": text, "broken.pem": "no certificate"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, topics, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	faults, warnings := Check(cfg, topics, time.Now())
	var got []string
	for _, f := range faults {
		got = append(got, "fault "+f.Path)
	}
	for _, w := range warnings {
		got = append(got, "warning "+w.Path)
	}
	want := "fault uplinks.gone.tls.ca, fault uplinks.broken.tls.ca, " +
		"warning buses.line, warning uplinks.unset.password, warning uplinks.plain.url"
	if text := strings.Join(got, ", "); text != want {
		t.Errorf("Check finds %s\nwant        %s\n%v\n%v", text, want, faults, warnings)
	}
}
