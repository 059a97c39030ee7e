package uplink

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/mqtt"
	"fieldgate/internal/queue"
)

func TestBackoff(t *testing.T) {
	start := time.Now()
	for _, row := range []struct {
		name    string
		refused bool
		after   []time.Duration // since the first failure
		bounds  []time.Duration
	}{
		{"a network that is away", false,
			[]time.Duration{0, time.Second, 20 * time.Second, time.Minute, 20 * time.Minute, 2 * time.Hour},
			[]time.Duration{time.Second, time.Second, time.Second, 3 * time.Second, time.Minute, 2 * time.Minute}},
		{"a refusal", true,
			[]time.Duration{0, 0, 0, 0, 0, 0, 0, 0, 0},
			[]time.Duration{1e9, 2e9, 4e9, 8e9, 16e9, 32e9, 64e9, 120e9, 120e9}},
	} {
		b := backoff{least: waitLeast, most: waitMost}
		for i, after := range row.after {
			sum, largest := time.Duration(0), time.Duration(0)
			const n = 2000
			var bound time.Duration
			for range n {
				try := b
				d := try.next(start.Add(after), row.refused)
				sum, largest, bound = sum+d, max(largest, d), try.bound
			}
			b.next(start.Add(after), row.refused)
			if want := row.bounds[i]; bound != want || largest > want || largest < want*9/10 || sum/n < want*4/10 || sum/n > want*6/10 {
				t.Errorf("%s, try %d: bound %v, largest %v, mean %v; want them from 0 to %v", row.name, i, bound, largest, sum/n, want)
			}
		}
		b.reset()
		if b.next(start.Add(5*time.Hour), false); b.bound != time.Second {
			t.Errorf("%s: bound after reset = %v, want 1s", row.name, b.bound)
		}
	}
}

func entry(seq uint64, topic string) queue.Entry {
	return queue.Entry{Seq: seq, Message: mqtt.Message{Topic: topic, QoS: 1}}
}

func TestQuarrel(t *testing.T) {
	now := time.Now()
	var q quarrel
	birth := true
	end := func(hangup bool, acked, inFlight int, seq uint64, topic string) bool {
		return q.ended(now, time.Second, hangup, birth, acked, inFlight, entry(seq, topic))
	}
	// A restart of the broker, a link that dies: nothing.
	if end(true, 100, 64, 0, "") || end(false, 0, 64, 0, "") || q.width() != Width {
		t.Fatalf("suspicion without a reason: %+v", q)
	}
	// Nothing at all taken: one at a time, three strikes for the same message.
	if end(true, 0, 64, 0, "") || q.width() != 1 {
		t.Fatalf("no suspicion: %+v", q)
	}
	if end(true, 2, 1, 7, "bad") || end(false, 0, 1, 7, "bad") || end(true, 0, 1, 7, "bad") {
		t.Fatal("given up too soon")
	}
	if q.banned("bad", now) || !end(true, 0, 1, 7, "bad") || q.banned("bad", now) {
		t.Fatal("message 7 is not given up at the third strike")
	}
	// Another message between begins the count again.
	for i, strike := range []struct {
		acked int
		seq   uint64
	}{{0, 8}, {0, 8}, {1, 9}, {0, 9}} {
		if end(true, strike.acked, 1, strike.seq, "bad") {
			t.Fatalf("given up too soon, at strike %d", i)
		}
	}
	if !end(true, 0, 1, 9, "bad") || !q.banned("bad", now) || q.banned("good", now) {
		t.Fatal("the topic is not given up with its second message")
	}
	if !q.banned("bad", now.Add(topicBan-1)) || q.banned("bad", now.Add(topicBan)) {
		t.Error("the topic is not tried again after its time")
	}
	// Enough taken: suspicion ends.
	q.ended(now, 2*time.Hour, true, birth, 2*Width, 1, entry(300, "good"))
	if q.width() != Width {
		t.Errorf("suspicion does not end: %+v", q)
	}
	// QoS 0 leaves nothing in flight: short connections alone are suspicious.
	for i := range strikesMost {
		if q.width() != Width {
			t.Errorf("suspicion after %d short connections", i)
		}
		end(true, 5, 0, 0, "")
	}
	if q.width() != 1 {
		t.Error("no suspicion after short connections in a row")
	}
	// A broker that takes nothing, not even the birth, is ill: it costs some
	// messages, not all of them, and no topic.
	q, birth = quarrel{}, false
	given := 0
	for range 10 * untakenMost * strikesMost {
		if end(true, 0, 1, uint64(given), "p") {
			given++
		}
	}
	if given != untakenMost || q.banned("p", now) {
		t.Errorf("%d messages given up, want %d; topic given up: %v", given, untakenMost, q.banned("p", now))
	}
	// One that takes others is particular.
	for range topicFaults {
		end(true, 1, 1, 0, "q")
		for range strikesMost {
			end(true, 0, 1, uint64(1000+given), "p")
		}
		given++
	}
	if !q.banned("p", now) {
		t.Error("the topic is not given up by a broker that takes others")
	}
}

func TestNews(t *testing.T) {
	var out bytes.Buffer
	n := news{log: slog.New(slog.NewTextHandler(&out, nil))}
	lines := func(want ...string) {
		t.Helper()
		got := strings.Split(strings.TrimSpace(out.String()), "\n")
		if out.Len() == 0 {
			got = nil
		}
		out.Reset()
		ok := len(got) == len(want)
		for i := 0; ok && i < len(want); i++ {
			ok = strings.Contains(got[i], want[i])
		}
		if !ok {
			t.Errorf("logged %q, want %q", got, want)
		}
	}
	refused, dead := errors.New("refused"), errors.New("dead")
	up := Status{URL: "mqtts://h:8883", Word: "Connected (TLS)", Version: "TLS 1.3", Cipher: "TLS_X"}
	for range 50 {
		n.failed(refused, 0)
	}
	n.failed(dead, 0)
	n.failed(refused, 0)
	lines("refused", "dead")
	n.connected(up)
	n.lasting(up)
	lines(`as="Connected (TLS)" tls="TLS 1.3" cipher=TLS_X`)
	n.failed(dead, time.Hour)
	n.connected(up)
	lines("dead", "connected")
	// It comes and goes: once each way, then silence until it lasts.
	for range 50 {
		n.failed(dead, time.Second)
		n.connected(up)
	}
	lines("dead", "connected", "dead")
	n.lasting(up)
	lines("connected")
	n.failed(dead, 2*time.Minute)
	lines("dead")
	for i := range 100 {
		n.failed(errors.New(strings.Repeat("x", i+1)), 0)
	}
	if got := strings.Count(out.String(), "\n"); got != newsMost-1 {
		t.Errorf("%d different faults logged, want %d", got, newsMost-1)
	}
}
