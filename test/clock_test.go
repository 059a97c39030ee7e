package test

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"fieldgate/internal/clock"
	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/pipeline"
	"fieldgate/internal/point"
	"fieldgate/internal/publish"
	"fieldgate/internal/queue"
)

// timeMachine is the clock of a machine that a test sets: it runs at the pace of
// the real one.
type timeMachine struct{ ahead atomic.Int64 }

func (m *timeMachine) set(t time.Time) { m.ahead.Store(int64(time.Until(t))) }

func (m *timeMachine) source() clock.Source {
	began := time.Now()
	return clock.Source{
		Now: func() (day, moment time.Time) {
			now := time.Now()
			return now.Add(time.Duration(m.ahead.Load())), now
		},
		Vouch: func(day time.Time) (bool, string) {
			if day.Before(clock.Epoch) {
				return false, "it is early"
			}
			return true, ""
		},
		Boot: 7,
		Up:   func(t time.Time) time.Duration { return t.Sub(began) },
	}
}

// half is the upper half of a gateway, from samples to what an uplink would
// send.
type half struct {
	t    *testing.T
	line *pipeline.Pipeline
	feed *pipeline.Feed
	q    *queue.Queue
	stop func()
}

func startHalf(t *testing.T, dir string, src clock.Source) *half {
	t.Helper()
	cfg, err := config.LoadBytes("f", []byte(`
site: { id: s }
buses: { plc: { tcp: 127.0.0.1:1 } }
devices: { d: { bus: plc, points: { n: { at: holding 0, type: uint32 } } } }
publish: [{ when: each, fields: [seq] }]
uplinks: { cloud: { url: mqtts://127.0.0.1, queue: { commit: 0, max_age: 1h } } }
`))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	h := &half{t: t, line: pipeline.New()}
	clk := clock.New(src, log)
	if h.q, err = queue.Open(dir, "cloud", cfg.Uplinks[0].Queue, log); err != nil {
		t.Fatal(err)
	}
	h.q.Clock = clk
	topics, _ := publish.Topics(cfg.Site, cfg.Publish, cfg.Devices)
	p := publish.New(topics, cfg.Devices, map[string]mqtt.Sink{"cloud": h.q}, log)
	p.Clock = clk
	h.feed = h.line.Subscribe("publish", 1000)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- h.q.Run(ctx) }()       // ends with cancel
	go func() { ended <- p.Run(ctx, h.feed) }() // ends with the feed
	h.stop = func() {
		t.Helper()
		h.feed.Close()
		if err := <-ended; err != nil { // the publisher, when it has said all
			t.Error(err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := h.q.Close(); err != nil {
			t.Error(err)
		}
	}
	return h
}

// read is a poll.
func (h *half) read(n int) {
	h.line.Emit([]point.Sample{{ID: "d.n", Value: point.IntValue(int64(n)), Time: time.Now()}})
}

// wait waits until the queue holds so many messages.
func (h *half) wait(n int) {
	h.t.Helper()
	for deadline := time.Now().Add(patience); h.q.Stats().Messages < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("%d messages, want %d", h.q.Stats().Messages, n)
		}
	}
}

// The uplink is away from the start. The board wakes in 1970, the process is
// restarted, the clock is set, stepped forward and back by two weeks: nothing is
// lost, all is in order, and each message has the time that was known when it was
// made, or if none was, the one that is known when it is sent.
func TestClockIsSetWhileMessagesWait(t *testing.T) {
	const each, fortnight = 20, 14 * 24 * time.Hour
	may := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	dir := t.TempDir()
	var m timeMachine
	m.set(time.Unix(30, 0))
	src := m.source()
	n := 0
	fill := func(h *half) {
		for range each {
			h.read(n)
			n++
		}
		h.wait(n)
	}

	h := startHalf(t, dir, src)
	fill(h)
	h.stop()
	h = startHalf(t, dir, src) // still 1970
	fill(h)
	m.set(may)
	fill(h)
	m.set(may.Add(fortnight))
	fill(h)
	m.set(may.Add(-fortnight))
	fill(h)

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	lastSeq := uint64(0)
	for i := 0; i < n; {
		entries, err := h.q.Next(ctx, n)
		if err != nil {
			t.Fatalf("%d of %d messages: %v", i, n, err)
		}
		for _, e := range entries {
			want := []time.Time{may.Add(-fortnight), may.Add(-fortnight), may, may.Add(fortnight), may.Add(-fortnight)}[i/each]
			var got struct {
				Value     int
				Timestamp time.Time
				Time      *string
				Seq       uint64
			}
			if err := json.Unmarshal(e.Payload, &got); err != nil {
				t.Fatal(err)
			}
			if got.Value != i || got.Timestamp.Sub(want).Abs() > time.Minute || got.Time != nil {
				t.Errorf("message %d is %s, want one of about %v", i, e.Payload, want)
			}
			if i != 0 && i != each && got.Seq != lastSeq+1 { // a process begins anew
				t.Errorf("message %d has seq %d after %d", i, got.Seq, lastSeq)
			}
			lastSeq = got.Seq
			i++
		}
	}
	if s := h.q.Stats(); s.Dropped+s.Expired+s.Damaged != 0 {
		t.Errorf("%+v", s)
	}
	h.stop()
}
