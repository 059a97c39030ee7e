package main

import (
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt/mosquittotest"
)

// TestMQTTTest runs testdata/mqtt/test.txt with mosquittos of every kind. Words in capitals stand for their addresses and for
// files; times, days and fingerprints are taken out.
func TestMQTTTest(t *testing.T) {
	certs := mosquittotest.NewCerts(t)
	issue := func(name string, change func(*x509.Certificate)) mosquittotest.Options {
		c := *certs
		c.ServerCert, c.ServerKey = certs.Issue(t, name, change)
		return mosquittotest.Options{TLS: &c}
	}
	mutual := *certs
	mutual.RequireClient = true
	dir := t.TempDir()
	bundle := filepath.Join(dir, "gw1.p12")
	if out, err := exec.Command("openssl", "pkcs12", "-export", "-in", certs.ClientCert, "-inkey", certs.ClientKey, "-passout", "pass:right", "-out", bundle).CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
	closed, silent := listener(t), listener(t)
	_ = closed.Close()
	words := map[string]string{
		"PLAIN":  mosquittotest.Start(t, mosquittotest.Options{}).Addr(),
		"TLS":    mosquittotest.Start(t, mosquittotest.Options{TLS: certs}).Addr(),
		"WSS":    mosquittotest.Start(t, mosquittotest.Options{TLS: certs, WebSocket: true}).Addr(),
		"MUTUAL": mosquittotest.Start(t, mosquittotest.Options{TLS: &mutual}).Addr(),
		"OLD": mosquittotest.Start(t, issue("old", func(c *x509.Certificate) {
			c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
			c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
		})).Addr(),
		"FOREIGN": mosquittotest.Start(t, issue("elsewhere", func(c *x509.Certificate) { c.DNSNames = []string{"elsewhere.example"} })).Addr(),
		"LOCKED":  mosquittotest.Start(t, mosquittotest.Options{Users: map[string]string{"me": "s3cret"}}).Addr(),
		"ACL":     mosquittotest.Start(t, mosquittotest.Options{ACL: "topic readwrite open/#\n"}).Addr(),
		"CLOSED":  closed.Addr().String(),
		"SILENT":  silent.Addr().String(),
		"PROXY":   tunnel(t),
		"CA":      certs.CA,
		"BUNDLE":  bundle,
		"NONE":    filepath.Join(dir, "none.pem"),
		"CONF":    filepath.Join(dir, "fieldgate.yaml"),
	}
	conf := `
site: { id: plant1 }
buses: { plc: { tcp: 127.0.0.1:1 } }
devices: { d: { bus: plc, points: { p: { at: 40001 } } } }
uplinks:
  mutual: { url: mqtts://` + words["MUTUAL"] + `, client_id: client, tls: { ca: ` + certs.CA + `, cert: ` + certs.ClientCert + `, key: ` + certs.ClientKey + ` } }
  own: { url: mqtt://` + words["PLAIN"] + `, status: false }
  pfx: { url: mqtts://` + words["MUTUAL"] + `, client_id: gw1, tls: { ca: ` + certs.CA + `, cert: ` + bundle + `, password: { env: PATH } } }
  two: { url: [mqtt://` + words["CLOSED"] + `, mqtt://` + words["PLAIN"] + `] }
`
	if err := os.WriteFile(words["CONF"], []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	replace := func(s string, back bool) string {
		for word, is := range words {
			if back {
				s = regexp.MustCompile(regexp.QuoteMeta(is)+`\b`).ReplaceAllLiteralString(s, word)
			} else {
				s = regexp.MustCompile(`\b`+word+`\b`).ReplaceAllLiteralString(s, is)
			}
		}
		return s
	}
	script{
		run:  inProcessWith,
		fill: func(command string) string { return replace(command, false) },
		tidy: func(output string) string { return maskProbe(replace(output, true)) },
	}.check(t, "testdata/mqtt/test.txt")
}

// maskProbe takes out of what "mqtt test" prints all that differs from run to
// run.
func maskProbe(out string) string {
	for _, mask := range []struct{ is, as string }{
		{` +\d+\.\d ms`, "  N ms"},
		{`"ms":[0-9.]+`, `"ms":N`},
		{`([0-9A-F]{2}:){31}[0-9A-F]{2}`, "HEX"},
		{`\d{4}-\d\d-\d\d(T[0-9:]+Z)?`, "DATE"},
		{`fieldgate-cli-[0-9a-z]+`, "ID"},
	} {
		out = regexp.MustCompile(mask.is).ReplaceAllString(out, mask.as)
	}
	return out
}

// TestConnectPage holds docs/connect.md to what the program does: what the test
// prints is in testdata/mqtt/test.txt, and the configurations load.
func TestConnectPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/connect.md")
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile("testdata/mqtt/test.txt")
	if err != nil {
		t.Fatal(err)
	}
	words := strings.NewReplacer("10.0.0.20:8883", "TLS", "10.0.0.21:1883", "ACL", "ca.crt", "CA", "$ fieldgate ", "$ ")
	days := regexp.MustCompile(`in \d+ days`)
	tests, configs := 0, 0
	for _, block := range regexp.MustCompile("(?s)```(console|yaml)\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		text := block[2]
		switch {
		case block[1] == "yaml":
			configs++
			const plant = "buses: { plc: { tcp: 10.0.0.10:502 } }\ndevices: { boiler: { bus: plc, points: { temp: { at: 30001 } } } }\n"
			if _, err := config.LoadBytes("connect.md", []byte(plant+text)); err != nil {
				t.Errorf("%v in\n%s", err, text)
			}
		case strings.Contains(text, "mqtt test"):
			tests++
			want := days.ReplaceAllString(maskProbe(words.Replace(text)), "in 0 days")
			if !strings.Contains(string(script), want) {
				t.Errorf("the program does not print\n%s", want)
			}
		}
	}
	if tests != 3 || configs != 5 {
		t.Errorf("%d tests and %d configurations in the page, want 3 and 5", tests, configs)
	}
}

func listener(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// tunnel runs an HTTP proxy that knows nothing but CONNECT.
func tunnel(t *testing.T) string {
	t.Helper()
	l := listener(t)
	var wg sync.WaitGroup
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		far, err := net.Dial("tcp", r.Host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		near, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(near, "HTTP/1.1 200 Connection established\r\n\r\n")
		for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
			wg.Go(func() {
				_, _ = io.Copy(pair[0], pair[1])
				_, _ = near.Close(), far.Close()
			})
		}
	})}
	wg.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		_ = s.Close()
		wg.Wait()
	})
	return l.Addr().String()
}
