package gateway

import (
	"context"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/queue"
)

// recorder is a sink that keeps what it is given.
type recorder struct{ lines []string }

func (r *recorder) Deliver(_ context.Context, msgs ...mqtt.Message) error {
	for _, m := range msgs {
		r.lines = append(r.lines, m.Topic+" "+string(m.Payload))
	}
	return nil
}

func TestQueueEvents(t *testing.T) {
	cloud, local := &recorder{}, &recorder{}
	g := &Gateway{log: slog.New(slog.DiscardHandler)}
	g.now.Store(&assembly{status: config.Status{Topic: "fieldgate/s"}, told: map[string]mqtt.Sink{"cloud": cloud, config.Local: local}})
	h := newHerald(g)
	tell := h.queueEvent("cloud")
	tell(queue.Event{Kind: queue.Full, Lost: 3})
	tell(queue.Event{Kind: queue.Full, Over: true, Lost: 90_000})
	tell(queue.Event{Kind: queue.FileFault, Reason: "write: no space left on device"})
	tell(queue.Event{Kind: queue.PutAside, Reason: "file is damaged", File: "/d/queue-cloud.db.damaged"})
	h.tell(t.Context())
	want := []string{
		`fieldgate/s/event {"event":"queue_full","state":"begins","uplink":"cloud","lost":3,"timestamp":"T"}`,
		`fieldgate/s/event {"event":"queue_full","state":"ends","uplink":"cloud","lost":90000,"timestamp":"T"}`,
		`fieldgate/s/event {"event":"queue_file","state":"begins","uplink":"cloud","reason":"write: no space left on device","timestamp":"T"}`,
		`fieldgate/s/event {"event":"queue_put_aside","uplink":"cloud","reason":"file is damaged","file":"/d/queue-cloud.db.damaged","timestamp":"T"}`,
	}
	stamp := regexp.MustCompile(`"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"`)
	for name, sink := range map[string]*recorder{"cloud": cloud, "local": local} {
		for i, line := range sink.lines {
			sink.lines[i] = stamp.ReplaceAllString(line, `"T"`)
		}
		if !slices.Equal(sink.lines, want) {
			t.Errorf("%s was told\n%s\nwant\n%s", name, strings.Join(sink.lines, "\n"), strings.Join(want, "\n"))
		}
	}

	// Nobody publishes them: the newest are kept.
	for i := range 3 * eventsMost {
		tell(queue.Event{Kind: queue.Full, Lost: uint64(i)})
	}
	if n := len(h.events); n != eventsMost {
		t.Errorf("%d events wait, want %d", n, eventsMost)
	}
}
