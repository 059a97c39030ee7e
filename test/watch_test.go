package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/gateway"
	"fieldgate/internal/mqtt/mosquittotest"
	"fieldgate/internal/simulate"
	"fieldgate/test/madeup"
)

// message is what mosquitto_sub has received.
type message struct {
	at      time.Time // when mosquitto_sub had it
	topic   string
	payload string
}

// watcher is a mosquitto_sub at a broker on 127.0.0.1.
type watcher struct {
	t   *testing.T
	out *output
	log *output // what mosquitto_sub complains of

	mu   sync.Mutex
	read int // bytes of out parsed
	msgs []message
}

// watch subscribes to filters at the broker on a port.
func watch(t *testing.T, port int, filters ...string) *watcher {
	t.Helper()
	args := []string{"-h", "127.0.0.1", "-p", strconv.Itoa(port), "-q", "1", "-F", "%U %t %p"}
	for _, f := range filters {
		args = append(args, "-t", f)
	}
	p := start(t, "mosquitto_sub", args...)
	return &watcher{t: t, out: p.out, log: p.log}
}

// messages returns everything received so far, in order.
func (w *watcher) messages() []message {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := w.out.String()[w.read:]
	for {
		line, rest, whole := strings.Cut(text, "\n")
		if !whole {
			return w.msgs
		}
		w.read += len(line) + 1
		text = rest
		stamp, line, _ := strings.Cut(line, " ")
		seconds, err := strconv.ParseFloat(stamp, 64)
		if err != nil {
			w.t.Errorf("mosquitto_sub printed %q", line)
			continue
		}
		topic, payload, _ := strings.Cut(line, " ")
		w.msgs = append(w.msgs, message{time.UnixMicro(int64(seconds * 1e6)), topic, payload})
	}
}

// on returns the payloads received on a topic.
func (w *watcher) on(topic string) []string {
	var payloads []string
	for _, m := range w.messages() {
		if m.topic == topic {
			payloads = append(payloads, m.payload)
		}
	}
	return payloads
}

// last returns the newest payload on a topic, "" for none.
func (w *watcher) last(topic string) string {
	if p := w.on(topic); len(p) > 0 {
		return p[len(p)-1]
	}
	return ""
}

// wait returns once ok says yes to what was received.
func (w *watcher) wait(what string, ok func() bool) {
	w.t.Helper()
	w.out.wait(w.t, what, func(string) bool { return ok() })
}

// waitLast returns once the newest payload on a topic is the one wanted.
func (w *watcher) waitLast(topic, payload string) {
	w.t.Helper()
	w.wait(topic+" "+payload, func() bool { return w.last(topic) == payload })
}

// waitMore returns once n more messages have come on a topic.
func (w *watcher) waitMore(topic string, n int) {
	w.t.Helper()
	before := len(w.on(topic))
	w.wait(fmt.Sprintf("%d more messages on %s", n, topic), func() bool { return len(w.on(topic)) >= before+n })
}

// status waits for what the gateway of site "plant" says of itself, until ok
// says yes to it. It is asked about news only.
func (w *watcher) status(what string, ok func(gateway.Status) bool) (s gateway.Status) {
	w.t.Helper()
	before := len(w.on("fieldgate/plant/stats"))
	w.wait(what, func() bool {
		all := w.on("fieldgate/plant/stats")
		if len(all) <= before {
			return false
		}
		s = gateway.Status{}
		if err := json.Unmarshal([]byte(all[len(all)-1]), &s); err != nil {
			w.t.Fatalf("stats are no JSON: %v", err)
		}
		return ok(s)
	})
	return s
}

// plant runs a simulated plant until the test ends. $dir in its file is dir.
func plant(t *testing.T, dir, yaml string) *simulate.Plant {
	t.Helper()
	p, err := simulate.LoadBytes("plant", []byte(strings.ReplaceAll(yaml, "$dir", dir)))
	if err != nil {
		t.Fatal(err)
	}
	madeup.Run(t, p)
	return p
}

// writeFile writes a file of the test and returns its path.
func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// inOrder checks that the messages on one topic carry sequence numbers (seq)
// without a gap. A number may come again, within window messages of its first
// time. It returns the first and the last number.
func inOrder(t *testing.T, msgs []mosquittotest.Received, topic string, window int) (first, last int64) {
	t.Helper()
	first, last = -1, -1
	repeats := 0
	for _, m := range msgs {
		if m.Topic != topic {
			continue
		}
		var p struct{ Seq *int64 }
		if err := json.Unmarshal([]byte(m.Payload), &p); err != nil || p.Seq == nil {
			t.Fatalf("%s: payload %s has no seq: %v", topic, m.Payload, err)
		}
		switch n := *p.Seq; {
		case first < 0:
			first, last = n, n
		case n == last+1:
			last = n
		case n <= last && n > last-int64(window):
			repeats++
		default:
			t.Errorf("%s: seq %d after %d", topic, n, last)
			last = n
		}
	}
	if repeats > window {
		t.Errorf("%s: %d repeats, want at most %d", topic, repeats, window)
	}
	return first, last
}

// logLines returns the lines that a process has logged so far and that hold all
// of the words.
func (p *process) logLines(words ...string) []string {
	var found []string
next:
	for line := range strings.Lines(p.log.String()) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		found = append(found, strings.TrimSuffix(line, "\n"))
	}
	return found
}

// wantLine checks that a process has logged exactly one line with all of the
// words.
func (p *process) wantLine(words ...string) {
	p.t.Helper()
	if got := p.logLines(words...); len(got) != 1 {
		p.t.Errorf("%d lines of the log have %q, want 1:\n%s", len(got), words, strings.Join(got, "\n"))
	}
}

// quiet checks that a process logs nothing while wait runs.
func (p *process) quiet(what string, wait func()) {
	p.t.Helper()
	before := p.log.String()
	wait()
	if more := strings.TrimPrefix(p.log.String(), before); more != "" {
		p.t.Errorf("%s: nothing changes, but is logged:\n%s", what, more)
	}
}
