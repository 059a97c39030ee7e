package uplink

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"fieldgate/internal/mqtt"
	"fieldgate/internal/mqtt/mosquittotest"
)

func TestParseURL(t *testing.T) {
	for _, row := range []struct{ in, want string }{
		{"mqtt://h", "mqtt://h:1883"},
		{"mqtt://h:1884/", "mqtt://h:1884/"},
		{"mqtts://h", "mqtts://h:8883"},
		{"ws://h", "ws://h:80/mqtt"},
		{"ws://h:9001/", "ws://h:9001/mqtt"},
		{"wss://h/a/b?x=y", "wss://h:443/a/b?x=y"},
		{"mqtt://[::1]", "mqtt://[::1]:1883"},
		{"mqtt://[fe80::1%25eth0]:1884", "mqtt://[fe80::1%25eth0]:1884"},
		{"MQTT://H", "mqtt://H:1883"},
		{"", "begins with mqtt://"},
		{"h:1883", "begins with mqtt://"},
		{"tcp://h", "begins with mqtt://"},
		{"ws://::", "in brackets"},
		{"mqtt://::1:1883", "in brackets"},
		{"mqtt://", "no host"},
		{"mqtt://:1883", "no host"},
		{"mqtt://h/x", "only ws:// and wss:// have a path"},
		{"mqtt://h:port", "invalid port"},
		{"mqtt://h h", "invalid character"},
	} {
		u, err := ParseURL(row.in)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = u.String()
		}
		if got != row.want && (err == nil || !strings.Contains(got, row.want)) {
			t.Errorf("ParseURL(%q) = %s, want %s", row.in, got, row.want)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("wss://user:pass@h:1/x?y#z")
	f.Add("ws://::")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := ParseURL(text)
		if err != nil {
			return
		}
		again, err := ParseURL(u.String())
		if err != nil || again.String() != u.String() {
			t.Errorf("ParseURL(%q) = %s, which parses as %v, %v", text, u, again, err)
		}
	})
}

// httpProxy is a proxy that wants a password and forbids some hosts.
func httpProxy(t *testing.T, count *atomic.Int32) string {
	t.Helper()
	return connectProxy(t, count, nil, func(r *http.Request) int {
		switch {
		case r.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte("me:s3cret")):
			return http.StatusProxyAuthRequired
		case r.Method != http.MethodConnect || strings.HasPrefix(r.Host, "forbidden."):
			return http.StatusForbidden
		}
		return http.StatusOK
	})
}

// connectProxy is an HTTP proxy that knows CONNECT, and counts what it connects. It
// answers with what status says, and is spoken to with TLS if it has certificates.
func connectProxy(t *testing.T, count *atomic.Int32, certificates []tls.Certificate, status func(*http.Request) int) string {
	t.Helper()
	var wg sync.WaitGroup
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if code := status(r); code != http.StatusOK {
			http.Error(w, "no", code)
			return
		}
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
		count.Add(1)
		_, _ = near.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n"))
		splice(&wg, near, far)
	})}
	l := listen(t)
	wg.Go(func() { // ends with s
		if certificates == nil {
			_ = s.Serve(l)
			return
		}
		s.TLSConfig = &tls.Config{Certificates: certificates, NextProtos: []string{"http/1.1"}}
		_ = s.ServeTLS(l, "", "")
	})
	t.Cleanup(func() {
		_ = s.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// splice copies both ways until either end closes.
func splice(wg *sync.WaitGroup, a, b net.Conn) {
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			_ = a.Close()
			_ = b.Close()
		})
	}
}

// socksProxy is a SOCKS 5 proxy without a password, for IPv4 addresses.
func socksProxy(t *testing.T, count *atomic.Int32) string {
	t.Helper()
	var wg sync.WaitGroup
	l := listen(t)
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			in := bufio.NewReader(near)
			head := make([]byte, 2)
			_, _ = io.ReadFull(in, head)
			_, _ = in.Discard(int(head[1]))
			_, _ = near.Write([]byte{5, 0})
			req := make([]byte, 10)
			if _, err := io.ReadFull(in, req); err != nil || req[3] != 1 {
				t.Errorf("SOCKS request %v, %v", req, err)
				_ = near.Close()
				continue
			}
			far, err := net.Dial("tcp", fmt.Sprintf("%v:%d", net.IP(req[4:8]), int(req[8])<<8|int(req[9])))
			if err != nil {
				_, _ = near.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
				_ = near.Close()
				continue
			}
			count.Add(1)
			_, _ = near.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
			splice(&wg, near, far)
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func TestProxy(t *testing.T) {
	certs := mosquittotest.NewCerts(t)
	plain := mosquittotest.Start(t, mosquittotest.Options{})
	secure := mosquittotest.Start(t, mosquittotest.Options{TLS: certs, WebSocket: true})
	var count atomic.Int32
	web, socks := httpProxy(t, &count), socksProxy(t, &count)
	for _, via := range []string{"http://me:s3cret@" + web, "socks5://" + socks} {
		for _, b := range []*mosquittotest.Broker{plain, secure} {
			before := count.Load()
			cfg := settings()
			cfg.TLS.CA, cfg.Proxy = certs.CA, via
			c, err := Connect(t.Context(), cfg, b.URL(), ConnOptions{})
			if err != nil {
				t.Errorf("%s through %s: %v", b.URL(), via, err)
				continue
			}
			if err := c.Publish(t.Context(), mqtt.Message{Topic: "a", QoS: 1}); err != nil {
				t.Error(err)
			}
			c.Close()
			if count.Load() != before+1 {
				t.Errorf("%s did not go through %s", b.URL(), via)
			}
		}
	}
	closed := listen(t)
	_ = closed.Close()
	for _, row := range []struct{ via, url, want string }{
		{"http://" + web, plain.URL(), "407 Proxy Authentication Required for " + plain.Addr() + "; write the proxy as http://USER:PASSWORD@HOST:PORT"},
		{"http://me:s3cret@" + web, "mqtt://forbidden.example", "403 Forbidden for forbidden.example:1883; check what the proxy allows"},
		{"http://me:s3cret@" + web, "mqtt://" + closed.Addr().String(), "502 Bad Gateway"},
		{"socks5://" + socks, "mqtt://" + closed.Addr().String(), "connection refused"},
		{"https://" + web, plain.URL(), "TLS with proxy"},
	} {
		cfg := settings()
		cfg.Proxy = row.via
		_, err := Connect(t.Context(), cfg, row.url, ConnOptions{})
		var f *Fault
		if !errors.As(err, &f) || f.Step != StepProxy || !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s through %s: %v, want %q and no password", row.url, row.via, err, row.want)
		}
	}
}

func TestProxyFromEnvironment(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"} {
		t.Setenv(name, "")
		t.Setenv(strings.ToLower(name), "")
	}
	look := func(set, broker, want string) {
		t.Helper()
		u, err := ParseURL(broker)
		if err != nil {
			t.Fatal(err)
		}
		via, err := proxyFor(set, u)
		got := ""
		if via != nil {
			got = via.String()
		}
		if err != nil {
			got = err.Error()
		}
		if got != want && (err == nil || !strings.Contains(got, want)) {
			t.Errorf("proxyFor(%q, %s) = %q, want %q", set, broker, got, want)
		}
	}
	look("", "wss://h", "")
	t.Setenv("all_proxy", "all:3")
	look("", "ws://h", "http://all:3")
	look("", "mqtts://h", "http://all:3")
	t.Setenv("HTTP_PROXY", "http://plain:1")
	t.Setenv("https_proxy", "https://secure:2")
	t.Setenv("NO_PROXY", "local.example, .dot.example,*.star.example,10.0.0.0/8,192.168.1.1,fd00::/8,[::2]:1883,port.example:8883")
	for _, row := range [][2]string{
		{"ws://h", "http://plain:1"},
		{"wss://h", "https://secure:2"},
		{"mqtt://h", "http://all:3"},
		{"mqtts://local.example", ""},
		{"mqtts://a.Local.example", ""},
		{"mqtts://notlocal.example", "http://all:3"},
		{"mqtts://dot.example", ""},
		{"mqtts://a.dot.example", ""},
		{"mqtts://a.b.star.example", ""},
		{"mqtts://port.example", ""},
		{"mqtts://port.example:1", "http://all:3"},
		{"wss://10.1.2.3", ""},
		{"wss://11.1.2.3", "https://secure:2"},
		{"wss://192.168.1.1", ""},
		{"wss://192.168.1.2", "https://secure:2"},
		{"mqtt://[fd00::1]", ""},
		{"mqtt://[::2]", ""},
		{"mqtt://[::2]:1884", "http://all:3"},
		{"mqtt://127.0.0.1", ""},
		{"mqtt://[::1]", ""},
		{"mqtt://localhost", ""},
	} {
		look("", row[0], row[1])
	}
	look("http://mine:4", "mqtt://127.0.0.1", "http://mine:4")
	t.Setenv("NO_PROXY", "*")
	look("", "wss://h", "")
	t.Setenv("NO_PROXY", "")
	t.Setenv("HTTP_PROXY", "http://user:s3cret@h:port")
	look("", "ws://h", "HTTP_PROXY is no address of a proxy; write http://HOST:PORT")
}
