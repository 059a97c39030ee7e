package web

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"fieldgate/test/port"
	"fieldgate/test/testlog"
)

// free returns an address that nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	n, err := port.Free()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", n)
}

// run runs s until the test ends.
func run(t *testing.T, s *Server) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }() // ends with cancel
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// get asks until somebody listens.
func get(t *testing.T, url string) (status int, kind, body string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		resp, err := http.Get(url)
		if err != nil {
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			continue
		}
		text, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header.Get("Content-Type"), string(text)
	}
}

func answers() Answers {
	return Answers{
		Healthy: func() error { return nil },
		Ready:   func() error { return errors.New("waiting for the first poll of boiler") },
		Metrics: func() []byte { return []byte("a 1\n") },
	}
}

func TestAnswers(t *testing.T) {
	addr := free(t)
	run(t, New(addr, true, answers(), slog.New(slog.DiscardHandler)))
	for _, c := range []struct {
		path   string
		status int
		kind   string
		body   string
	}{
		{"/healthz", 200, "text/plain; charset=utf-8", "ok\n"},
		{"/readyz", 503, "text/plain; charset=utf-8", "waiting for the first poll of boiler\n"},
		{"/metrics", 200, "text/plain; version=0.0.4; charset=utf-8", "a 1\n"},
		{"/", 404, "text/plain; charset=utf-8", "not found; there are /healthz, /readyz and /metrics\n"},
	} {
		if status, kind, body := get(t, "http://"+addr+c.path); status != c.status || kind != c.kind || body != c.body {
			t.Errorf("%s: %d %s %q, want %d %s %q", c.path, status, kind, body, c.status, c.kind, c.body)
		}
	}
	for _, c := range []struct {
		request string
		want    string
	}{
		{"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", "405 "},
		{"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421 "},
		{"GET /metrics HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", "200 "},
		{"GET /metrics HTTP/1.1\r\nHost: localhost:8080\r\n\r\n", "200 "},
		{"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 20<<10) + "\r\n\r\n", "431 "},
		{"\x16\x03\x01\x00\xa5\x01\r\n\r\n", "400 "},
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, err = conn.Write([]byte(c.request))
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(conn).ReadString('\n')
		if !strings.Contains(line, " "+c.want) {
			t.Errorf("%.40q is answered %q, %v, want %s", c.request, line, err, c.want)
		}
		_ = conn.Close()
	}
}

// An address that is taken is told of once and tried again.
func TestAddressTaken(t *testing.T) {
	for _, given := range []bool{true, false} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		log := &testlog.Log{}
		s := New(l.Addr().String(), given, answers(), slog.New(slog.NewTextHandler(log, nil)))
		s.retry = time.Millisecond
		run(t, s)
		for deadline := time.Now().Add(20 * time.Second); log.String() == ""; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("nothing is said")
			}
		}
		time.Sleep(20 * time.Millisecond) // and some tries more
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if status, _, _ := get(t, "http://"+l.Addr().String()+"/healthz"); status != 200 {
			t.Errorf("status %d", status)
		}
		level := map[bool]string{true: "level=WARN", false: "level=INFO"}[given]
		if text := log.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, level+` msg="health and metrics cannot be served, trying again"`) || !strings.Contains(text, "listening at last") {
			t.Errorf("given %v: the log is %s", given, text)
		}
	}
}
