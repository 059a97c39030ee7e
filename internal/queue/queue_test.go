package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/flash"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/mqtt/sinktest"
)

func open(t testing.TB, cfg config.Queue) *Queue {
	t.Helper()
	q, err := Open("", "cloud", cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	return q
}

// counts is s without what depends on how it is kept.
func counts(s Stats) Stats {
	s.Memory, s.Flash, s.Age = 0, flash.Report{}, 0
	return s
}

func msg(i int) mqtt.Message {
	return mqtt.Message{Topic: fmt.Sprintf("t/%d", i%3), Payload: []byte(fmt.Sprint(i)), QoS: 1}
}

// bulky is msg with a topic that cannot be deflated to less than half of its n bytes.
func bulky(i, n int) mqtt.Message {
	return mqtt.Message{Topic: noise(i, n), Payload: msg(i).Payload, QoS: 1}
}

// noise returns n bytes of text that are different for each i.
func noise(i, n int) string {
	rnd := rand.New(rand.NewPCG(uint64(i), 9))
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = fmt.Appendf(b, "%016x", rnd.Uint64())
	}
	return string(b[:n])
}

func deliver(t testing.TB, q *Queue, msgs ...mqtt.Message) {
	t.Helper()
	if err := q.Deliver(t.Context(), msgs...); err != nil {
		t.Fatal(err)
	}
}

// next returns what is there now, at most max, as sequence numbers.
func next(t testing.TB, q *Queue, max int) []uint64 {
	t.Helper()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	entries, err := q.Next(ended, max)
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	var seqs []uint64
	for _, e := range entries {
		seqs = append(seqs, e.Seq)
	}
	return seqs
}

func done(t testing.TB, q *Queue, seqs ...uint64) {
	t.Helper()
	if err := q.Done(seqs...); err != nil {
		t.Fatal(err)
	}
}

func want(t testing.TB, what string, got, want []uint64) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}

func TestSink(t *testing.T) {
	t.Run("memory", func(t *testing.T) { testSink(t, func(t *testing.T) *Queue { return open(t, config.Queue{}) }) })
	t.Run("file", func(t *testing.T) {
		testSink(t, func(t *testing.T) *Queue {
			return start(t, t.TempDir(), config.Queue{Commit: 20 * time.Millisecond}).Queue
		})
	})
}

func testSink(t *testing.T, open func(t *testing.T) *Queue) {
	sinktest.Run(t, func(t *testing.T) sinktest.Peer {
		q := open(t)
		return sinktest.Peer{
			Sink:       q,
			Close:      q.Close,
			KeepsFlags: true,
			Received: func(t *testing.T, n int) []mqtt.Message {
				ctx, cancel := context.WithTimeout(t.Context(), sinktest.Patience)
				defer cancel()
				var got []mqtt.Message
				for len(got) < n {
					entries, err := q.Next(ctx, n-len(got))
					if err != nil {
						t.Fatalf("after %d of %d messages: %v", len(got), n, err)
					}
					for _, e := range entries {
						got = append(got, e.Message)
						done(t, q, e.Seq)
					}
				}
				return got
			},
		}
	})
}

func TestEachEntryOnceUntilRewind(t *testing.T) {
	q := open(t, config.Queue{})
	for i := range 6 {
		deliver(t, q, msg(i))
	}
	want(t, "Next(2)", next(t, q, 2), []uint64{1, 2})
	want(t, "Next(2)", next(t, q, 2), []uint64{3, 4})
	done(t, q, 2)
	want(t, "Next(9)", next(t, q, 9), []uint64{5, 6})
	want(t, "Next(9)", next(t, q, 9), nil)
	done(t, q, 4)
	q.Rewind()
	deliver(t, q, msg(6))
	want(t, "Next after Rewind", next(t, q, 9), []uint64{1, 3, 5, 6, 7})
	done(t, q, 1, 3, 5, 6, 7, 7, 1, 99, 0)
	if s := q.Stats(); counts(s) != (Stats{Accepted: 7, Done: 7}) {
		t.Errorf("Stats = %+v, want all 7 done and nothing else", s)
	}
}

func TestNextWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := open(t, config.Queue{})
		got := make(chan string, 10)
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			for {
				entries, err := q.Next(ctx, 2)
				if err != nil {
					got <- err.Error()
					return
				}
				for _, e := range entries {
					got <- string(e.Payload)
				}
			}
		})
		synctest.Wait()
		deliver(t, q, msg(1))
		deliver(t, q, msg(2), msg(3))
		for _, w := range []string{"1", "2", "3"} {
			if g := <-got; g != w {
				t.Errorf("got %s, want %s", g, w)
			}
		}
		synctest.Wait()
		cancel()
		if g := <-got; g != context.Canceled.Error() {
			t.Errorf("Next with an ended context = %s", g)
		}
		wg.Wait()

		wg.Go(func() { _, err := q.Next(t.Context(), 1); got <- err.Error() })
		synctest.Wait()
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
		if g := <-got; g != ErrClosed.Error() {
			t.Errorf("Next of a queue that is closed = %s", g)
		}
		wg.Wait()
		if err := q.Done(1); !errors.Is(err, ErrClosed) {
			t.Errorf("Done after Close = %v", err)
		}
		q.Rewind()
		if s := q.Stats(); s.Messages != 3 {
			t.Errorf("Stats after Close = %+v", s)
		}
		if err := q.Close(); err != nil {
			t.Errorf("Close again = %v", err)
		}
	})
}

func TestFullDropsTheOldestThatWaits(t *testing.T) {
	one := size(msg(0))
	q := open(t, config.Queue{MaxBytes: 4 * one})
	for i := range 4 {
		deliver(t, q, msg(i))
	}
	want(t, "Next(2)", next(t, q, 2), []uint64{1, 2}) // on their way: not to be dropped
	deliver(t, q, msg(4))
	if s := q.Stats(); s.Dropped != 1 || s.Messages != 4 || s.Bytes != 4*one || s.Handed != 2 {
		t.Errorf("Stats = %+v, want one dropped and four left, two of them handed out", s)
	}
	want(t, "Next(9)", next(t, q, 9), []uint64{4, 5})
	deliver(t, q, msg(5)) // all are handed out: the oldest of them goes
	q.Rewind()
	want(t, "Next after Rewind", next(t, q, 9), []uint64{2, 4, 5, 6})
	done(t, q, 1, 2, 3, 4, 5, 6)
	if s := q.Stats(); counts(s) != (Stats{Accepted: 6, Done: 4, Dropped: 2}) {
		t.Errorf("Stats = %+v", s)
	}
}

func TestFullDropsTheNewest(t *testing.T) {
	q := open(t, config.Queue{MaxBytes: 2 * size(msg(0)), DropNewest: true})
	for i := range 4 {
		deliver(t, q, msg(i))
	}
	want(t, "Next(9)", next(t, q, 9), []uint64{1, 2})
	done(t, q, 1)
	deliver(t, q, msg(4))
	want(t, "Next(9)", next(t, q, 9), []uint64{3})
	if s := q.Stats(); s.Dropped != 2 || s.Accepted != 5 {
		t.Errorf("Stats = %+v, want 2 of 5 dropped", s)
	}
}

func TestTooLargeForTheQueue(t *testing.T) {
	q := open(t, config.Queue{MaxBytes: 1000})
	deliver(t, q, msg(0))
	deliver(t, q, mqtt.Message{Topic: "t", Payload: make([]byte, 1000)})
	if s := q.Stats(); s.Messages != 1 || s.Dropped != 1 {
		t.Errorf("Stats = %+v, want the large message dropped and the other kept", s)
	}
}

func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := open(t, config.Queue{MaxAge: time.Minute})
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { _ = q.Run(ctx) })
		deliver(t, q, msg(0), msg(1), msg(2))
		want(t, "Next(1)", next(t, q, 1), []uint64{1})
		time.Sleep(40 * time.Second)
		deliver(t, q, msg(3))
		if s := q.Stats(); s.Age != 40*time.Second {
			t.Errorf("Age = %v, want 40s", s.Age)
		}
		time.Sleep(25 * time.Second)
		// What is on its way is not given up.
		if s := q.Stats(); s.Expired != 2 || s.Messages != 2 {
			t.Errorf("Stats = %+v, want 2 of 4 expired", s)
		}
		want(t, "Next(9)", next(t, q, 9), []uint64{4})
		q.Rewind()
		want(t, "Next(9)", next(t, q, 9), []uint64{4})
		cancel()
		wg.Wait()
	})
}

// TestLossIsToldOnceEachWay has a queue overflow, come near to it again before it
// has room, and its messages grow too old: one line and one event for the
// beginning and for the end of each loss, with exact counts.
func TestLossIsToldOnceEachWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		q, err := Open("", "cloud", config.Queue{MaxBytes: 16 * size(msg(10)), MaxAge: time.Hour}, slog.New(slog.NewTextHandler(&out, nil)))
		if err != nil {
			t.Fatal(err)
		}
		var events []Event
		q.OnEvent = func(e Event) { events = append(events, e) }
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { _ = q.Run(ctx) })
		time.Sleep(lookEvery / 2) // between two looks
		for i := range 20 {
			deliver(t, q, msg(10+i))
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute) // full, and quiet
		for i := range 3 {
			deliver(t, q, msg(30+i))
			time.Sleep(time.Second)
		}
		done(t, q, next(t, q, 16)...)
		time.Sleep(time.Minute)
		deliver(t, q, msg(33), msg(34), msg(35))
		time.Sleep(2 * time.Hour)
		cancel()
		wg.Wait()
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(out.String()) {
			_, text, _ := strings.Cut(line, "level=")
			lines = append(lines, strings.TrimSpace(text))
		}
		wantLines := []string{
			`WARN msg="queue is full, messages are lost" lost=1`,
			`INFO msg="queue has room again" lost=7`,
			`WARN msg="messages are older than max_age and are lost" lost=3`,
			`INFO msg="no more messages past max_age" lost=3`,
		}
		if got, want := strings.Join(lines, "\n"), strings.Join(wantLines, "\n"); got != want {
			t.Errorf("logged:\n%s\nwant:\n%s", got, want)
		}
		wantEvents := []Event{{Kind: Full, Lost: 1}, {Kind: Full, Over: true, Lost: 7}, {Kind: Expired, Lost: 3}, {Kind: Expired, Over: true, Lost: 3}}
		if !slices.Equal(events, wantEvents) {
			t.Errorf("told %+v, want %+v", events, wantEvents)
		}
	})
}

func TestCloseCountsWhatIsLost(t *testing.T) {
	var out bytes.Buffer
	q, err := Open("", "cloud", config.Queue{}, slog.New(slog.NewTextHandler(&out, nil)))
	if err != nil {
		t.Fatal(err)
	}
	deliver(t, q, msg(0), msg(1))
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "lost=2") {
		t.Errorf("logged %q, want lost=2", out.String())
	}
}

// TestAgainstModel compares the queue with the plainest one that could be, over
// random calls, messages of all sizes and bounds that are reached.
func TestAgainstModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for round := range 20 {
		cfg := config.Queue{MaxBytes: int64(200 + r.IntN(200_000)), DropNewest: round%3 == 0}
		q := open(t, cfg)
		var m model
		m.cfg = cfg
		for range 400 {
			switch k := r.IntN(10); {
			case k < 5:
				var msgs []mqtt.Message
				for range 1 + r.IntN(40) {
					msgs = append(msgs, mqtt.Message{
						Topic:   strings.Repeat("x", 1+r.IntN(50)),
						Payload: bytes.Repeat([]byte{byte(r.Uint32())}, min(r.IntN(1<<r.IntN(17)), 100_000)),
						QoS:     uint8(r.IntN(3)),
						Retain:  r.IntN(2) == 0,
					})
				}
				deliver(t, q, msgs...)
				m.deliver(msgs...)
			case k < 7:
				max := 1 + r.IntN(100)
				ended, cancel := context.WithCancel(t.Context())
				cancel()
				got, _ := q.Next(ended, max)
				exp := m.next(max)
				if len(got) != len(exp) {
					t.Fatalf("round %d: Next(%d) returned %d entries, want %d", round, max, len(got), len(exp))
				}
				for i := range got {
					g, w := got[i], exp[i]
					if g.Seq != w.seq || g.Topic != w.msg.Topic || !bytes.Equal(g.Payload, w.msg.Payload) || g.QoS != w.msg.QoS || g.Retain != w.msg.Retain {
						t.Fatalf("round %d: Next gave %d %+v, want %d %+v", round, g.Seq, g.Message, w.seq, w.msg)
					}
				}
			case k < 9:
				var seqs []uint64
				for _, e := range m.entries {
					if e.handed && r.IntN(3) > 0 {
						seqs = append(seqs, e.seq)
					}
				}
				r.Shuffle(len(seqs), func(i, j int) { seqs[i], seqs[j] = seqs[j], seqs[i] })
				done(t, q, seqs...)
				m.done(seqs...)
			default:
				q.Rewind()
				m.rewind()
			}
			if got, exp := q.Stats(), m.stats(); got.Messages != exp.Messages || got.Bytes != exp.Bytes || got.Handed != exp.Handed || got.Accepted != exp.Accepted || got.Done != exp.Done || got.Dropped != exp.Dropped {
				t.Fatalf("round %d: Stats = %+v, want %+v", round, got, exp)
			}
			if s := q.Stats(); s.Accepted != s.Done+s.Dropped+s.Expired+uint64(s.Messages) {
				t.Fatalf("round %d: %+v does not add up", round, s)
			}
		}
	}
}

type modelEntry struct {
	seq    uint64
	msg    mqtt.Message
	handed bool
}

type model struct {
	cfg     config.Queue
	entries []modelEntry
	last    uint64
	s       Stats
}

func (m *model) bytes() (n int64) {
	for _, e := range m.entries {
		n += size(e.msg)
	}
	return n
}

func (m *model) deliver(msgs ...mqtt.Message) {
	for _, msg := range msgs {
		m.s.Accepted++
		if m.cfg.DropNewest && m.bytes()+size(msg) > m.cfg.MaxBytes || size(msg) > m.cfg.MaxBytes {
			m.s.Dropped++
			continue
		}
		for m.bytes()+size(msg) > m.cfg.MaxBytes {
			victim := 0
			for i, e := range m.entries {
				if !e.handed {
					victim = i
					break
				}
			}
			m.entries = append(m.entries[:victim:victim], m.entries[victim+1:]...)
			m.s.Dropped++
		}
		m.last++
		m.entries = append(m.entries, modelEntry{seq: m.last, msg: msg})
	}
}

func (m *model) next(max int) (out []modelEntry) {
	for i := range m.entries {
		if e := &m.entries[i]; !e.handed && len(out) < max {
			e.handed = true
			out = append(out, *e)
		}
	}
	return out
}

func (m *model) done(seqs ...uint64) {
	for _, seq := range seqs {
		for i, e := range m.entries {
			if e.seq == seq {
				m.entries = append(m.entries[:i:i], m.entries[i+1:]...)
				m.s.Done++
				break
			}
		}
	}
}

func (m *model) rewind() {
	for i := range m.entries {
		m.entries[i].handed = false
	}
}

func (m *model) stats() Stats {
	s := m.s
	s.Messages, s.Bytes = len(m.entries), m.bytes()
	for _, e := range m.entries {
		if e.handed {
			s.Handed++
		}
	}
	return s
}

// TestMemory fills a queue, keeps it full, and empties it: what it takes stays
// near its bound and is given back.
func TestMemory(t *testing.T) {
	const bound = 8 << 20
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	q := open(t, config.Queue{MaxBytes: bound})
	payload := make([]byte, 100)
	batch := make([]mqtt.Message, 100)
	for i := range batch {
		batch[i] = mqtt.Message{Topic: "gw/boiler/temp", Payload: payload, QoS: 1}
	}
	for range 3000 { // five times what it holds
		deliver(t, q, batch...)
	}
	if used := heap() - before; used > bound*5/4 {
		t.Errorf("a full queue of %d bytes takes %d", bound, used)
	}
	for {
		seqs := next(t, q, 64)
		if len(seqs) == 0 {
			break
		}
		done(t, q, seqs...)
	}
	if used := heap() - before; used > 1<<20 {
		t.Errorf("an empty queue takes %d bytes", used)
	}
	runtime.KeepAlive(q)
}

func BenchmarkThrough(b *testing.B) { through(b, open(b, config.Queue{})) }

// through puts messages in, takes them out, and says that they are done.
func through(b *testing.B, q *Queue) {
	payload := make([]byte, 100)
	batch := make([]mqtt.Message, 50)
	for i := range batch {
		batch[i] = mqtt.Message{Topic: "gw/boiler/temp", Payload: payload, QoS: 1}
	}
	seqs := make([]uint64, 0, len(batch))
	b.ReportAllocs()
	for i := 0; i < b.N; i += len(batch) {
		if err := q.Deliver(b.Context(), batch...); err != nil {
			b.Fatal(err)
		}
		entries, err := q.Next(b.Context(), len(batch))
		if err != nil {
			b.Fatal(err)
		}
		seqs = seqs[:0]
		for _, e := range entries {
			seqs = append(seqs, e.Seq)
		}
		if err := q.Done(seqs...); err != nil {
			b.Fatal(err)
		}
	}
}

// What is handed out stays as it is until Done, also when it is dropped
// meanwhile and what comes after it goes into memory that was used before.
func TestHandedOutStaysAsItIs(t *testing.T) {
	const each = 1000
	q := open(t, config.Queue{MaxBytes: each + overhead}) // one message
	fill := func(b byte) mqtt.Message {
		return mqtt.Message{Topic: "t", Payload: bytes.Repeat([]byte{b}, each-1), QoS: 1}
	}
	deliver(t, q, fill('a'))
	entries, err := q.Next(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 * chunkBytes / each {
		deliver(t, q, fill('x')) // drops the one before
	}
	if got := entries[0].Payload; !bytes.Equal(got, fill('a').Payload) {
		t.Errorf("the payload has become %.3s…", got)
	}
}

// While messages come and go there is next to no garbage, also when many come at
// once.
func TestNoGarbage(t *testing.T) {
	const n, size = 4000, 1000
	for _, burst := range []int{1, 50} {
		q := open(t, config.Queue{})
		msgs := make([]mqtt.Message, burst)
		for i := range msgs {
			msgs[i] = mqtt.Message{Topic: "t", Payload: make([]byte, size)}
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range n / burst {
			deliver(t, q, msgs...)
			done(t, q, next(t, q, burst)...)
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > n*size/2 {
			t.Errorf("%d messages of %d bytes, %d at once, allocated %d bytes", n, size, burst, got)
		}
	}
}
