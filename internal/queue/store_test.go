package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/flash"
	"fieldgate/internal/mqtt"
	"fieldgate/test/testlog"
)

// running is a queue with a file, kept by Run.
type running struct {
	*Queue
	t    testing.TB
	log  *testlog.Log
	dir  string
	stop func() // ends Run, as a stop of the gateway does
}

// start opens a queue in dir and runs it until the test ends.
func start(t testing.TB, dir string, cfg config.Queue) *running {
	return startWith(t, dir, cfg, usual())
}

func startWith(t testing.TB, dir string, cfg config.Queue, b bounds) *running {
	t.Helper()
	r := &running{t: t, log: &testlog.Log{}, dir: dir}
	q, err := Open(dir, "cloud", cfg, slog.New(slog.NewTextHandler(r.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	q.bounds = b
	q.OnEvent = func(e Event) { fmt.Fprintf(r.log, "event %s over=%t\n", e.Kind, e.Over) }
	r.Queue = q
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = q.Run(ctx) })
	r.stop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(func() {
		r.stop()
		if err := q.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		if t.Failed() {
			t.Logf("stats %+v, log:\n%s", q.Stats(), r.log)
		}
	})
	return r
}

// end stops Run and closes the queue.
func (r *running) end() {
	r.t.Helper()
	r.stop()
	if err := r.Close(); err != nil {
		r.t.Errorf("Close = %v", err)
	}
}

// snapshot returns a folder with a copy of the file as it is now: what a power
// cut would leave.
func (r *running) snapshot() (dir string) {
	r.t.Helper()
	data, err := os.ReadFile(r.file())
	if err != nil {
		r.t.Fatal(err)
	}
	dir = r.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, filepath.Base(r.file())), data, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return dir
}

func (r *running) file() string { return filepath.Join(r.dir, "queue-cloud.db") }

func (r *running) sync() {
	r.t.Helper()
	if err := r.Sync(r.t.Context()); err != nil {
		r.t.Fatalf("Sync = %v", err)
	}
}

// all takes n messages out and returns their payloads.
func (r *running) all(n int) (got []string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	for len(got) < n {
		entries, err := r.Next(ctx, min(64, n-len(got)))
		if err != nil {
			r.t.Fatalf("Next after %d of %d messages: %v", len(got), n, err)
		}
		for _, e := range entries {
			got = append(got, string(e.Payload))
			done(r.t, r.Queue, e.Seq)
		}
	}
	return got
}

// numbered checks that got is from, from+1, ...
func numbered(t testing.TB, got []string, from int) {
	t.Helper()
	for i, p := range got {
		if p != fmt.Sprint(from+i) {
			t.Fatalf("message %d is %q, want %d", i, p, from+i)
		}
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

const soon = 20 * time.Millisecond

// TestNothingIsWrittenWhileHealthy is the usual day: everything is acknowledged
// before the commit interval is over.
func TestNothingIsWrittenWhileHealthy(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir(), config.Queue{Commit: 300 * time.Millisecond})
	for i := range 100 {
		deliver(t, r.Queue, msg(i))
		numbered(t, r.all(1), i)
		time.Sleep(5 * time.Millisecond)
	}
	if s := r.Stats(); s.Flash.Total.Bytes != 0 || s.Flash.Total.Syncs != 0 {
		t.Errorf("Stats = %+v, want nothing written", s)
	}
	if _, err := os.Stat(r.file()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a file: %v", err)
	}
}

func TestSurvivesRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := start(t, dir, config.Queue{Commit: soon})
	want := []mqtt.Message{
		{Topic: "a", Payload: []byte("0"), QoS: 1},
		{Topic: "größe/µ", Payload: []byte("1"), QoS: 2, Retain: true},
		{Topic: strings.Repeat("t", mqtt.MaxTopic), Payload: nil, QoS: 0},
		{Topic: "big", Payload: make([]byte, 100_000), Retain: true},
	}
	deliver(t, r.Queue, want...)
	before := time.Now()
	r.sync()
	dir = r.snapshot()
	r = start(t, dir, config.Queue{Commit: soon})
	var got []Entry
	for len(got) < len(want) {
		entries, err := r.Next(t.Context(), 2)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, entries...)
	}
	for i, e := range got {
		if e.Topic != want[i].Topic || string(e.Payload) != string(want[i].Payload) || e.QoS != want[i].QoS || e.Retain != want[i].Retain {
			t.Errorf("message %d: %.60v", i, e)
		}
		if age := before.Sub(e.Time); age < 0 || age > time.Minute || e.Time.Location() != time.UTC {
			t.Errorf("message %d was taken at %v", i, e.Time)
		}
	}
	if s := r.Stats(); s.Found != 4 || s.Messages != 4 || s.Handed != 4 {
		t.Errorf("Stats = %+v", s)
	}
	// What is done is gone after the next start; the rest comes again, and new
	// messages come after it.
	done(t, r.Queue, got[0].Seq, got[1].Seq)
	eventually(t, "forgotten", func() bool { return r.Stats().Flash.Total.Syncs > 0 })
	r.end()
	r = start(t, dir, config.Queue{Commit: soon})
	deliver(t, r.Queue, mqtt.Message{Topic: "new", Payload: []byte("new")})
	if got := r.all(3); len(got[0]) != 0 || len(got[1]) != 100_000 || got[2] != "new" {
		t.Errorf("after the restart: %.60q", got)
	}
}

// TestStopWritesWhatWaits stops the gateway with the uplink down.
func TestStopWritesWhatWaits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := start(t, dir, config.Queue{Commit: time.Hour})
	const n = 50_000 // more than one transaction
	for i := range n {
		deliver(t, r.Queue, msg(i))
	}
	r.end()
	r = start(t, dir, config.Queue{Commit: time.Hour})
	numbered(t, r.all(n), 0)
	r.end()
	r = start(t, dir, config.Queue{Commit: time.Hour})
	deliver(t, r.Queue, msg(7))
	numbered(t, r.all(1), 7)
}

// TestMessagesBeforeTheFileIsRead come after those that it holds.
func TestMessagesBeforeTheFileIsRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := start(t, dir, config.Queue{Commit: time.Hour})
	for i := range 100 {
		deliver(t, r.Queue, msg(i))
	}
	r.end()
	q, err := Open(dir, "cloud", config.Queue{Commit: time.Hour}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		deliver(t, q, msg(100+i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = q.Run(ctx) })
	r = &running{Queue: q, t: t}
	numbered(t, r.all(150), 0)
	cancel()
	wg.Wait()
	if err := q.Close(); err != nil {
		t.Error(err)
	}
}

func TestSync(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir(), config.Queue{Commit: time.Hour})
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for i := range 10 {
				deliver(t, r.Queue, mqtt.Message{Topic: "t", Payload: []byte(fmt.Sprint(w*10 + i))})
				r.sync()
			}
		})
	}
	wg.Wait()
	s := r.Stats()
	if s.Flash.Total.Syncs > 250 {
		t.Errorf("%d syncs for 200 messages of 20 callers, want them shared", s.Flash.Total.Syncs)
	}
	t.Logf("200 messages, %d syncs, %d bytes", s.Flash.Total.Syncs, s.Flash.Total.Bytes)
	r = start(t, r.snapshot(), config.Queue{Commit: time.Hour})
	eventually(t, "read", func() bool { return r.Stats().Found == 200 })

	// What is acknowledged needs no file.
	r.all(200)
	deliver(t, r.Queue, msg(1))
	released := make(chan error)
	r.mu.Lock() // so that Run cannot be first
	go func() { released <- r.Sync(t.Context()) }()
	r.mu.Unlock()
	r.all(1)
	if err := <-released; err != nil {
		t.Errorf("Sync = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	deliver(t, r.Queue, msg(1))
	if err := r.Sync(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Sync = %v", err)
	}
}

// TestCommitZero loses nothing that Deliver has taken.
func TestCommitZero(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir(), config.Queue{})
	for i := range 20 {
		deliver(t, r.Queue, msg(i))
		if i%5 == 4 {
			numbered(t, start(t, r.snapshot(), config.Queue{}).all(i+1), 0)
		}
	}
}

// TestDeliverNow has its messages in the file at once, with all before them,
// and those after them wait as ever.
func TestDeliverNow(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir(), config.Queue{Commit: time.Hour})
	deliver(t, r.Queue, msg(0))
	if err := r.DeliverNow(t.Context(), msg(1)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "written", func() bool { return r.Stats().Flash.Total.Bytes > 0 })
	deliver(t, r.Queue, msg(2))
	time.Sleep(2 * lookEvery)
	numbered(t, start(t, r.snapshot(), config.Queue{}).all(2), 0)
	if err := r.DeliverNow(t.Context(), mqtt.Message{Topic: "#"}); !errors.Is(err, mqtt.ErrInvalid) {
		t.Errorf("DeliverNow of a bad topic = %v", err)
	}
}

// TestLiveMessagesDoNotComeAgain sends live messages while old ones wait, with a
// link slower than the commit interval: those that are done are not in the file.
func TestLiveMessagesDoNotComeAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := startWith(t, dir, config.Queue{Commit: soon, LiveFirst: true}, small())
	const old, live = 5000, 3000
	for i := range old {
		deliver(t, r.Queue, msg(i))
	}
	r.sync()
	r.Rewind() // the connection is up
	for i := 0; i < live; i += 500 {
		for j := range 500 {
			deliver(t, r.Queue, msg(old+i+j))
		}
		r.sync()
		numbered(t, r.all(500), old+i)
	}
	eventually(t, "deleted", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.stale) == 0 })
	time.Sleep(50 * time.Millisecond)
	r = startWith(t, r.snapshot(), config.Queue{Commit: soon}, small())
	deliver(t, r.Queue, msg(old))
	numbered(t, r.all(old+1), 0)
}

// TestFileLimit fills a file that may not grow any further: the oldest messages
// make room in it, as they do on a disk that is full.
func TestFileLimit(t *testing.T) {
	t.Parallel()
	r := startWith(t, t.TempDir(), config.Queue{Commit: soon}, small())
	deliver(t, r.Queue, msg(0))
	r.sync()
	const most = 1 << 20
	r.store.most, r.store.file.most = most, most // Run looks at them after the next message
	const n = 60_000
	for i := 1; i < n; i++ {
		deliver(t, r.Queue, bulky(i, 64))
		if i%1000 == 0 {
			r.sync()
		}
	}
	r.sync()
	info, err := os.Stat(r.file())
	if err != nil {
		t.Fatal(err)
	}
	s := r.Stats()
	if info.Size() > most*5/4 || s.Dropped == 0 || s.Messages < 5000 || int(s.Dropped)+s.Messages != n {
		t.Errorf("file of %d bytes, Stats %+v", info.Size(), s)
	}
	numbered(t, r.all(s.Messages), n-s.Messages)
}

// small makes chunks go away at once.
func small() bounds { return bounds{most: 400_000, keep: 100_000, full: 50_000, pause: time.Second} }

// TestBacklog holds far more than fits in memory, and gives it back in order.
func TestBacklog(t *testing.T) {
	t.Parallel()
	r := startWith(t, t.TempDir(), config.Queue{Commit: soon}, small())
	const n = 60_000
	for i := range n {
		deliver(t, r.Queue, msg(i))
		if i%5000 == 0 {
			r.sync()
		}
	}
	r.sync()
	eventually(t, "given back", func() bool { return r.Stats().Memory <= small().most })
	if s := r.Stats(); s.Messages != n || s.Dropped != 0 {
		t.Errorf("Stats = %+v", s)
	}
	next(t, r.Queue, 500) // sent, and the connection is lost
	r.Rewind()
	numbered(t, r.all(n), 0)
	if s := r.Stats(); s.Messages != 0 || s.Bytes != 0 || s.Memory > small().most {
		t.Errorf("Stats = %+v", s)
	}
}

// TestOldestGoInBulk keeps a queue full for long: the count is exact, memory
// and file stay within bounds.
func TestOldestGoInBulk(t *testing.T) {
	t.Parallel()
	const bound = 1 << 20
	r := startWith(t, t.TempDir(), config.Queue{Commit: soon, MaxBytes: bound}, small())
	const n = 100_000
	for i := range n {
		deliver(t, r.Queue, msg(i))
		if i%2000 == 0 {
			r.sync()
		}
	}
	s := r.Stats()
	if s.Bytes > bound || s.Bytes < bound*9/10 || s.Dropped+uint64(s.Messages) != n || s.Memory > small().most {
		t.Errorf("Stats = %+v", s)
	}
	numbered(t, r.all(s.Messages), n-s.Messages)
	info, err := os.Stat(r.file())
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 4*bound {
		t.Errorf("the file has %d bytes for a queue of %d", info.Size(), bound)
	}
}

// TestBytesWritten measures the figure of an outage: a message each
// millisecond for a while, with all that its payload can say, then the drain.
func TestBytesWritten(t *testing.T) {
	t.Parallel()
	r := startWith(t, t.TempDir(), config.Queue{Commit: time.Second}, usual())
	begin, rnd := time.Date(2025, 11, 5, 14, 30, 15, 0, time.UTC), rand.New(rand.NewPCG(1, 10))
	const n = 20_000
	for i := range n {
		at := begin.Add(time.Duration(i) * time.Millisecond)
		deliver(t, r.Queue, mqtt.Message{
			Topic: fmt.Sprintf("gw1/boiler%d/temp%d", i/100%10, i%100), QoS: 1,
			Payload: fmt.Appendf(nil, `{"value":%d.%d,"timestamp":"%s","unit":"°C","quality":"good","seq":%d}`,
				rnd.IntN(1000), rnd.IntN(10), at.Format("2006-01-02T15:04:05.000Z"), at.UnixMilli()),
		})
		if i%1000 == 999 {
			r.sync()
		}
	}
	outage := r.Stats()
	seqs := 0
	for seqs < n {
		got := next(t, r.Queue, 64)
		seqs += len(got)
		done(t, r.Queue, got...)
	}
	r.end()
	s := r.Stats()
	t.Logf("outage %d B a message, %d syncs; with the drain %d B, %d syncs", outage.Flash.Total.Bytes/n, outage.Flash.Total.Syncs, s.Flash.Total.Bytes/n, s.Flash.Total.Syncs)
	if s.Flash.Total.Bytes/n > 60 {
		t.Errorf("%d bytes written a message, want at most 60", s.Flash.Total.Bytes/n)
	}
}

func TestFileIsMadeSmaller(t *testing.T) {
	t.Parallel()
	r := startWith(t, t.TempDir(), config.Queue{Commit: soon}, usual())
	for i := range 100 {
		deliver(t, r.Queue, mqtt.Message{Topic: "t", Payload: []byte(noise(i, 200_000))})
		if i%10 == 0 {
			r.sync()
		}
	}
	for i := range 10 {
		deliver(t, r.Queue, msg(i))
	}
	r.sync()
	for r.Stats().Messages > 10 {
		done(t, r.Queue, next(t, r.Queue, 1)...)
	}
	eventually(t, "small", func() bool {
		info, err := os.Stat(r.file())
		return err == nil && info.Size() < compactFrom
	})
	for i := range 10 {
		deliver(t, r.Queue, msg(10+i))
	}
	r.sync()
	r = start(t, r.snapshot(), config.Queue{Commit: soon})
	numbered(t, r.all(20), 0)
}

func TestLiveFirst(t *testing.T) {
	t.Parallel()
	r := startWith(t, t.TempDir(), config.Queue{Commit: soon, LiveFirst: true}, small())
	for i := range 30_000 {
		deliver(t, r.Queue, msg(i))
		if i%1000 == 0 {
			r.sync()
		}
	}
	r.Rewind() // the connection is up
	for i := range 10 {
		deliver(t, r.Queue, msg(100_000+i))
	}
	numbered(t, r.all(10), 100_000)
	numbered(t, r.all(100), 0)
	deliver(t, r.Queue, msg(100_010))
	numbered(t, r.all(1), 100_010)
	numbered(t, r.all(29_900), 100)
}

func TestRate(t *testing.T) {
	t.Parallel()
	one := size(mqtt.Message{Topic: "t", Payload: make([]byte, 1000)})
	r := start(t, t.TempDir(), config.Queue{Commit: time.Hour, LiveFirst: true, Rate: 20 * one})
	for range 40 {
		deliver(t, r.Queue, mqtt.Message{Topic: "t", Payload: make([]byte, 1000)})
	}
	r.Rewind()
	begin := time.Now()
	r.all(20) // one second's worth at once
	deliver(t, r.Queue, msg(1))
	numbered(t, r.all(1), 1) // live messages are not held up
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("the first messages took %v", d)
	}
	r.all(10)
	if d := time.Since(begin); d < 400*time.Millisecond || d > 10*time.Second {
		t.Errorf("ten more at twenty a second took %v", d)
	}
}

// TestFileAgainstModel makes random calls on a queue whose messages are mostly
// in the file, with clean restarts and power cuts between, and compares what it
// hands out with a plain list.
func TestFileAgainstModel(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 6))
	cfg := config.Queue{Commit: time.Hour, MaxBytes: 1 << 30}
	b := bounds{most: 1 << 20, keep: 40_000, full: 30_000, pause: time.Second}
	dir, _ := memoryDir(t)
	r := startWith(t, dir, cfg, b)
	var m model
	m.cfg = cfg
	history := map[uint64]mqtt.Message{}
	sent := 0
	for range many(80, 600) {
		switch k := rnd.IntN(20); {
		case k < 9:
			var msgs []mqtt.Message
			for range 1 + rnd.IntN(300) {
				msgs = append(msgs, mqtt.Message{
					Topic:   strings.Repeat("x", 1+rnd.IntN(20)),
					Payload: fmt.Appendf(nil, "%d %s", sent, strings.Repeat("y", rnd.IntN(1<<rnd.IntN(10)))),
					QoS:     uint8(rnd.IntN(3)),
				})
				sent++
			}
			deliver(t, r.Queue, msgs...)
			for i, msg := range msgs {
				history[m.last+1+uint64(i)] = msg
			}
			m.deliver(msgs...)
			if rnd.IntN(3) > 0 {
				r.sync()
			}
		case k < 14:
			most := 1 + rnd.IntN(400)
			want := m.next(most)
			var got []Entry
			for len(got) < len(want) { // a chunk at a time
				entries, err := r.Next(t.Context(), len(want)-len(got))
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, entries...)
			}
			for i := range got {
				if string(got[i].Payload) != string(want[i].msg.Payload) || got[i].Topic != want[i].msg.Topic || got[i].QoS != want[i].msg.QoS {
					t.Fatalf("Next gave %d %.20q, want %d %.20q", got[i].Seq, got[i].Payload, want[i].seq, want[i].msg.Payload)
				}
				if got[i].Seq != want[i].seq {
					t.Fatalf("Next gave number %d, want %d", got[i].Seq, want[i].seq)
				}
			}
		case k < 18:
			var seqs []uint64
			for _, e := range m.entries {
				if e.handed && rnd.IntN(4) > 0 {
					seqs = append(seqs, e.seq)
				}
			}
			rnd.Shuffle(len(seqs), func(i, j int) { seqs[i], seqs[j] = seqs[j], seqs[i] })
			done(t, r.Queue, seqs...)
			m.done(seqs...)
		case k < 19:
			r.Rewind()
			m.rewind()
			var seqs []uint64 // a message may be given up that is not handed out
			for _, e := range m.entries {
				if rnd.IntN(200) == 0 {
					seqs = append(seqs, e.seq)
				}
			}
			done(t, r.Queue, seqs...)
			m.done(seqs...)
		default:
			if len(m.entries) == 0 {
				continue // then numbers begin anew
			}
			r.end()
			// Messages that were done out of order may be in the file still: they
			// come again. What is not done must be there.
			var l flash.Ledger
			inFile := map[uint64]bool{}
			var entries []modelEntry
			f, err := openFile(r.file(), &l, func(seq uint64, _ []byte, ok bool) {
				inFile[seq] = ok
				entries = append(entries, modelEntry{seq: seq, msg: history[seq]})
			})
			if err != nil {
				t.Fatal(err)
			}
			f.close()
			for _, e := range m.entries {
				if !inFile[e.seq] {
					t.Fatalf("message %d is lost", e.seq)
				}
			}
			m.entries, m.last = entries, entries[len(entries)-1].seq
			r = startWith(t, r.dir, cfg, b)
			eventually(t, "read", func() bool { return r.Stats().Messages == len(entries) })
			m.s = Stats{}
		}
		if got, want := r.Stats(), m.stats(); got.Messages != want.Messages || got.Handed != want.Handed || got.Damaged != 0 || got.Dropped != 0 {
			t.Fatalf("Stats = %+v, want %+v", got, want)
		}
	}
}

// TestCommitZeroOnASlowDisk waits for the disk once, and then for nothing until it
// has caught up: whoever delivers has others to serve.
func TestCommitZeroOnASlowDisk(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir(), config.Queue{})
	deliver(t, r.Queue, msg(0))
	tx, err := r.store.file.db.Begin(true) // Run's next commit waits for it
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	const n = 2000
	for i := 1; i < n; i++ {
		deliver(t, r.Queue, msg(i))
	}
	if d := time.Since(begin); d < usual().patient || d > 20*usual().patient {
		t.Errorf("%d messages took %v, want one wait of %v", n, d, usual().patient)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "caught up", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return !r.behind })
	deliver(t, r.Queue, msg(n))
	numbered(t, start(t, r.snapshot(), config.Queue{}).all(n+1), 0)
}

// TestCloseBesideAHungDisk ends in time though Run waits for the disk.
func TestCloseBesideAHungDisk(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir(), config.Queue{Commit: soon})
	deliver(t, r.Queue, msg(0))
	r.sync()
	tx, err := r.store.file.db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	deliver(t, r.Queue, msg(1))
	closed := make(chan error)
	go func() { closed <- r.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("Close waits for the disk")
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
}

// TestSlowDisk holds up the file for as long as messages come and go: neither
// Deliver nor Next nor Done may notice.
func TestSlowDisk(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir(), config.Queue{Commit: soon})
	deliver(t, r.Queue, msg(0))
	r.sync()
	tx, err := r.store.file.db.Begin(true) // Run's next commit waits for it
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	const n = 5000
	for i := 1; i < n; i++ {
		deliver(t, r.Queue, msg(i))
	}
	numbered(t, r.all(n), 0)
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("took %v", d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	deliver(t, r.Queue, msg(n))
	if err := r.Sync(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Sync = %v, want it to wait for the disk", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	r.sync()
}

// BenchmarkThroughFile is BenchmarkThrough for a queue with a file, healthy.
func BenchmarkThroughFile(b *testing.B) {
	through(b, start(b, b.TempDir(), config.Queue{Commit: time.Second}).Queue)
}
