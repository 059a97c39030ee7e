package gateway

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/queue"
)

// opened is a gateway that is open and does not run.
func opened(t *testing.T, text string) *Gateway {
	t.Helper()
	return openedIn(t, t.TempDir(), text)
}

// openedIn is opened with a data directory.
func openedIn(t *testing.T, dir, text string) *Gateway {
	t.Helper()
	g := toRun(t, dir, text)
	t.Cleanup(func() {
		if err := g.abandon(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// toRun returns a gateway that the test has to run.
func toRun(t *testing.T, dir, text string) *Gateway {
	t.Helper()
	cfg, err := config.LoadBytes("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	g, err := Open(cfg, nil, dir, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestAlarms(t *testing.T) {
	g := opened(t, "site: { id: s }\nuplinks: { cloud: { url: mqtt://broker.example }, tls: { url: mqtts://127.0.0.1, tls: { insecure: true } }, loop: { url: mqtt://127.0.0.1 } }\n")
	var said []string
	clock := regexp.MustCompile(`"timestamp":"[^"]{24}"`)
	g.siren.say = func(_ context.Context, m mqtt.Message) {
		said = append(said, m.Topic+" "+clock.ReplaceAllString(string(m.Payload), `"timestamp":"T"`))
	}
	now := time.Now()
	want := func(after time.Duration, next time.Duration, lines ...string) {
		t.Helper()
		if got := g.siren.step(t.Context(), now.Add(after)); got.Round(time.Second) != next {
			t.Errorf("next step in %v, want %v", got, next)
		}
		said = slices.DeleteFunc(said, func(s string) bool { return regexp.MustCompile("clock_unsynced").MatchString(s) })
		if !slices.Equal(said, lines) {
			t.Errorf("after %v: %q, want %q", after, said, lines)
		}
		said = nil
	}
	want(0, alarmLook,
		`s/alarms/warning {"alarm":"insecure.tls","state":"raised","severity":"warning","reason":"the broker's certificate is not checked, so anyone on the way can be the broker","timestamp":"T"}`,
		`s/alarms/warning {"alarm":"unencrypted.cloud","state":"raised","severity":"warning","reason":"mqtt://broker.example:1883: anyone on the way can read and change what is sent","timestamp":"T"}`)

	// Told of by the queue, which has its own idea of when it is over.
	g.now.Load().ways[0].queue.OnEvent(queue.Event{Kind: queue.Full, Lost: 3})
	want(time.Second, alarmLook, `s/alarms/critical {"alarm":"queue_full.cloud","state":"raised","severity":"critical","value":3,"reason":"the queue is full, messages are lost","timestamp":"T"}`)
	if a := g.Status().Alarms; len(a) < 3 || !slices.ContainsFunc(a, func(a AlarmStatus) bool { return a.Name == "queue_full.cloud" && a.Severity == "critical" }) {
		t.Errorf("the status has %+v", a)
	}
	g.now.Load().ways[0].queue.OnEvent(queue.Event{Kind: queue.Full, Over: true, Lost: 90_000})
	want(2*time.Minute, alarmLook, `s/alarms/critical {"alarm":"queue_full.cloud","state":"cleared","severity":"critical","value":90000,"reason":"the queue is full, messages are lost","timestamp":"T"}`)
	g.now.Load().ways[0].queue.OnEvent(queue.Event{Kind: queue.FileFault, Reason: "no space left on device"})
	g.now.Load().ways[0].queue.OnEvent(queue.Event{Kind: queue.PutAside, Reason: "file is damaged", File: "/d/x"})
	want(2*time.Minute, alarmLook,
		`s/alarms/warning {"alarm":"queue_file.cloud","state":"raised","severity":"warning","reason":"the queue's file takes nothing, messages stay in memory: no space left on device","timestamp":"T"}`,
		`s/alarms/critical {"alarm":"queue_put_aside.cloud","state":"raised","severity":"critical","reason":"the queue's file was damaged, what was in it is lost: file is damaged; it is now /d/x","timestamp":"T"}`)

	// A certificate runs out, day by day, and is renewed.
	at := 2 * time.Minute
	for _, day := range []struct {
		left  int
		lines []string
	}{
		{31, nil},
		{30, nil},
		{29, []string{`s/alarms/warning {"alarm":"certificate_30_days.cloud","state":"raised","severity":"warning","value":29,"reason":"why","timestamp":"T"}`}},
		{30, nil}, // the clock was set back a little
		{7, nil},
		{6, []string{`s/alarms/critical {"alarm":"certificate_7_days.cloud","state":"raised","severity":"critical","value":6,"reason":"why","timestamp":"T"}`}},
		{-1, nil},
		{89, []string{
			`s/alarms/critical {"alarm":"certificate_7_days.cloud","state":"cleared","severity":"critical","value":89,"reason":"why","timestamp":"T"}`,
			`s/alarms/warning {"alarm":"certificate_30_days.cloud","state":"cleared","severity":"warning","value":89,"reason":"why","timestamp":"T"}`,
		}},
	} {
		g.siren.certificate(now.Add(at), "cloud", day.left, "why")
		at += time.Hour
		slices.Sort(day.lines)
		g.siren.step(t.Context(), now.Add(at))
		slices.Sort(said)
		if !slices.Equal(said, day.lines) {
			t.Errorf("%d days left: %q, want %q", day.left, said, day.lines)
		}
		said = nil
	}
}

// Alarms go to every queue, and to the disk at once.
func TestAlarmsAreUrgent(t *testing.T) {
	g := opened(t, "site: { id: s }\nuplinks: { cloud: { url: mqtt://broker.example, queue: { commit: 1m } } }\n")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	q := g.now.Load().ways[0].queue
	go func() { ended <- q.Run(ctx) }() // ends with cancel
	g.siren.step(t.Context(), time.Now())
	if n := q.Stats().Messages; n == 0 {
		t.Error("the alarm is not in the queue")
	}
	for deadline := time.Now().Add(20 * time.Second); q.Stats().Flash.Total.Syncs == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the alarm is not on disk")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestQueueFileAlarm has a queue whose file cannot be made, and later can: the
// alarm and the status say so as long as it is so, also once nothing waits any more.
func TestQueueFileAlarm(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	inTheWay := filepath.Join(dir, "queue-cloud.db.new")
	if err := os.MkdirAll(filepath.Join(inTheWay, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	g := openedIn(t, dir, "site: { id: s }\nuplinks: { cloud: { url: mqtt://127.0.0.1, queue: { commit: 10ms } } }\n")
	var said []string
	g.siren.say = func(_ context.Context, m mqtt.Message) { said = append(said, string(m.Payload)) }
	q := g.now.Load().ways[0].queue
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- q.Run(ctx) }() // ends with cancel
	faulty := func() bool { return g.Status().Uplinks["cloud"].File != "" }
	until := func(want bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); faulty() != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the status has a fault %t, want %t", faulty(), want)
			}
		}
	}
	raised := func(after time.Duration) bool {
		g.siren.step(t.Context(), time.Now().Add(after))
		return slices.ContainsFunc(g.Status().Alarms, func(a AlarmStatus) bool { return a.Name == "queue_file.cloud" })
	}
	if err := q.Deliver(ctx, mqtt.Message{Topic: "a"}); err != nil {
		t.Fatal(err)
	}
	until(true)
	entries, err := q.Next(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Done(entries[0].Seq); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // nothing waits
	if !raised(0) || !raised(2*alarmHold) || !faulty() {
		t.Error("the file cannot be made, and that is not said")
	}
	if err := os.RemoveAll(inTheWay); err != nil {
		t.Fatal(err)
	}
	until(false)
	for deadline := time.Now().Add(30 * time.Second); raised(2 * alarmHold); time.Sleep(time.Millisecond) { // the event follows the status
		if time.Now().After(deadline) {
			t.Fatal("the file can be made, and the alarm is raised")
		}
	}
	said = slices.DeleteFunc(said, func(s string) bool { return !strings.Contains(s, "queue_file.cloud") })
	if len(said) != 2 || !strings.Contains(said[0], `"raised"`) || !strings.Contains(said[1], `"cleared"`) {
		t.Errorf("said %q", said)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The alarms of a queue end with it, even if its uplink stays.
func TestAlarmsOfReplacedQueue(t *testing.T) {
	g := opened(t, "site: { id: s }\nuplinks: { cloud: { url: mqtt://broker.example } }\n")
	was := g.now.Load()
	for _, kind := range []string{queue.Full, queue.FileFault, queue.PutAside} {
		was.ways[0].queue.OnEvent(queue.Event{Kind: kind})
	}
	next := *was
	next.ways = slices.Clone(was.ways)
	next.ways[0].queue = new(queue.Queue)
	g.siren.reload(was, &next)
	g.siren.board.Step(time.Now())
	g.siren.board.Step(time.Now().Add(2 * alarmHold))
	var raised []string
	for _, a := range g.siren.status() {
		if kind, of, _ := strings.Cut(a.Name, "."); of == "cloud" && strings.HasPrefix(kind, "queue") {
			raised = append(raised, kind)
		}
	}
	if !slices.Equal(raised, []string{queue.PutAside}) {
		t.Errorf("raised: %q", raised)
	}
}
