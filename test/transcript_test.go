package test

import (
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// transcript is a story of the real program: what is done, and below it what is
// seen. It is compared with a file of testdata; -update writes it anew.
type transcript struct {
	t    *testing.T
	tidy *strings.Replacer // what differs from run to run, beside times and hashes

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each line
	text    strings.Builder
}

func newTranscript(t *testing.T, tidy ...string) *transcript {
	return &transcript{t: t, tidy: strings.NewReplacer(tidy...), changed: make(chan struct{})}
}

// What differs from run to run in messages and in what commands print.
var (
	anyTime  = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`)
	anyHash  = regexp.MustCompile(`\b[0-9a-f]{64}\b`)
	anyMs    = regexp.MustCompile(`"ms":\d+`)
	anySpan  = regexp.MustCompile(`  \d+ ms\b`)
	csvMs    = regexp.MustCompile(`,\d+,HASH,HASH$`)
	unsynced = regexp.MustCompile(`,"time":"unsynced"`) // of a machine whose clock nobody sets
)

// add adds a line.
func (s *transcript) add(format string, args ...any) {
	line := s.tidy.Replace(fmt.Sprintf(format, args...))
	line = anyHash.ReplaceAllString(anyTime.ReplaceAllString(line, "TIME"), "HASH")
	line = anySpan.ReplaceAllString(anyMs.ReplaceAllString(line, `"ms":MS`), "  MS ms")
	line = csvMs.ReplaceAllString(strings.TrimRight(line, " \r\n"), ",MS,HASH,HASH")
	line = unsynced.ReplaceAllString(line, "")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.WriteString(line + "\n")
	close(s.changed)
	s.changed = make(chan struct{})
}

// await returns once want stands in the transcript n times.
func (s *transcript) await(want string, n int) {
	s.t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		s.mu.Lock()
		text, changed := s.text.String(), s.changed
		s.mu.Unlock()
		if strings.Count(text, want) >= n {
			return
		}
		select {
		case <-changed:
		case <-limit.C:
			s.t.Fatalf("%q is not %d times in the transcript after %v:\n%s", want, n, patience, text)
		}
	}
}

// tell runs fieldgate to its end and adds what it prints, in the form of the
// scripts in cmd/fieldgate/testdata.
func (s *transcript) tell(args ...string) {
	s.t.Helper()
	s.add("$ fieldgate %s", strings.Join(args, " "))
	stdout, stderr, code := run(s.t, args...)
	for line := range strings.Lines(stdout) {
		s.add("%s", line)
	}
	for line := range strings.Lines(stderr) {
		s.add("! %s", line)
	}
	if code != 0 {
		s.add("? %d", code)
	}
}

// check compares the transcript with a file.
func (s *transcript) check(path string) {
	s.t.Helper()
	s.mu.Lock()
	got := s.text.String()
	s.mu.Unlock()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			s.t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	if got != string(want) {
		s.t.Errorf("%s is not what was seen:\n%s", path, got)
	}
}

// subscriptions is a wire to a broker that adds to a transcript what is asked of
// the broker on it, and how that answers: connections, and each filter.
func (s *transcript) subscriptions(broker string) (addr string) {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	var all sync.WaitGroup
	s.t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	all.Go(func() { // ends with the listener
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", broker)
			if err != nil {
				near.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, near, far)
			mu.Unlock()
			asked := &sync.Map{} // packet id → what was asked
			for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
				all.Go(func() { // ends with either connection
					_, _ = io.Copy(io.MultiWriter(&packets{take: func(kind byte, body []byte) { s.packet(kind, body, asked) }}, way[0]), way[1])
					way[0].Close()
					way[1].Close()
				})
			}
		}
	})
	return l.Addr().String()
}

// packet adds what an MQTT packet says of subscriptions (MQTT 3.1.1, 3.8 to 3.11).
func (s *transcript) packet(kind byte, body []byte, asked *sync.Map) {
	switch kind {
	case 1:
		s.add("> CONNECT")
	case 8, 10: // SUBSCRIBE, UNSUBSCRIBE with one filter
		n := word(body[2:])
		text := string(body[4 : 4+n])
		if kind == 8 {
			text = fmt.Sprintf("SUBSCRIBE %s q%d", text, body[4+n])
		} else {
			text = "UNSUBSCRIBE " + text
		}
		asked.Store(word(body), text)
	case 9, 11: // SUBACK, UNSUBACK
		text, _ := asked.Load(word(body))
		answer := "UNSUBACK"
		if kind == 9 {
			answer = fmt.Sprintf("SUBACK %02x", body[2])
		}
		s.add("> %v\n< %s", text, answer)
	}
}

// word is a big-endian number of two bytes.
func word(b []byte) int { return int(b[0])<<8 | int(b[1]) }

// packets takes a stream of MQTT packets apart.
type packets struct {
	take func(kind byte, body []byte) // given each, without its fixed header
	held []byte                       // of a packet that is not whole yet
}

func (p *packets) Write(b []byte) (int, error) {
	p.held = append(p.held, b...)
	for {
		n, length := 0, 0 // of the rest of the fixed header, and what that says
		for more := true; more; n++ {
			if len(p.held) < 2+n {
				return len(b), nil
			}
			length |= int(p.held[1+n]&0x7F) << (7 * n)
			more = p.held[1+n]&0x80 != 0
		}
		end := 1 + n + length
		if len(p.held) < end {
			return len(b), nil
		}
		p.take(p.held[0]>>4, p.held[1+n:end])
		p.held = p.held[end:]
	}
}
