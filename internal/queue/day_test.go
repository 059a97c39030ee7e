package queue

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
)

// TestDayOfOutage lets 24 hours pass without an uplink, at a thousand messages
// a second in make soak, until the queue is full many times over: the oldest are
// dropped and counted exactly, what is left is in order, it gets neither slower
// nor larger, and no more is written for a message at the end of the day than at
// its beginning.
func TestDayOfOutage(t *testing.T) {
	step, each, bound := 4*time.Minute, 1000, int64(8<<20)
	if *long {
		step, bound = time.Second, 64<<20
	}
	// A day has 86,400 commits: the time they take is the disk's, not ours.
	dir, _ := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		q, err := Open(dir, "cloud", config.Queue{Commit: time.Second, MaxBytes: bound}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = q.Run(ctx) })
		batch := make([]mqtt.Message, each)
		n, quarters := 0, [4]struct {
			took    time.Duration
			written int64
			heap    int64
		}{}
		steps := int(24 * time.Hour / step)
		for quarter := range quarters {
			begin, written := cpuTime(), q.Stats().Flash.Total.Bytes
			for range steps / len(quarters) {
				for i := range batch {
					batch[i] = mqtt.Message{Topic: "gw1/boiler1/temp", QoS: 1, Payload: fmt.Appendf(nil, `{"value":%d,"timestamp":"2025-11-05T14:30:15.123Z"}`, n)}
					n++
				}
				if err := q.Deliver(ctx, batch...); err != nil {
					t.Fatal(err)
				}
				time.Sleep(step)
			}
			quarters[quarter].took = cpuTime() - begin
			quarters[quarter].written = q.Stats().Flash.Total.Bytes - written
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			quarters[quarter].heap = int64(m.HeapAlloc)
		}
		s := q.Stats()
		if int(s.Dropped)+s.Messages != n || s.Bytes > bound || s.Bytes < bound/10*9 || s.Expired+s.Damaged > 0 {
			t.Errorf("of %d messages: %+v", n, s)
		}
		first, second, last := quarters[0], quarters[1], quarters[3]
		t.Logf("%d messages, %d dropped; %v, %v, %v, %v of the processor a quarter of the day; %d and %d B written a message, first and last; %d and %d KiB of heap",
			n, s.Dropped, first.took, second.took, quarters[2].took, last.took,
			first.written/int64(n/4), last.written/int64(n/4), second.heap>>10, last.heap>>10)
		if grown := last.heap - first.heap; grown > 32<<20 {
			t.Errorf("the heap has grown by %d bytes", grown)
		}
		if *long && last.took > 2*second.took {
			t.Errorf("the last quarter of the day took %v, the second %v", last.took, second.took)
		}
		if perMessage := last.written / int64(n/4); perMessage > 150 {
			t.Errorf("%d bytes written a message in the last quarter", perMessage)
		}
		for want := n - s.Messages; want < n; {
			entries, err := q.Next(ctx, 1000)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				var got int
				if _, err := fmt.Sscanf(string(e.Payload), `{"value":%d,`, &got); err != nil || got != want {
					t.Fatalf("message %q, want number %d", e.Payload, want)
				}
				want++
				done(t, q, e.Seq)
			}
		}
		cancel()
		wg.Wait()
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
}

// cpuTime is what the process has used of the processors. It goes on inside of a
// synctest bubble, too, and does not while others use them.
func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // cannot fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
