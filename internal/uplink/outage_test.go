package uplink

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"fieldgate/internal/mqtt"
	"fieldgate/internal/mqtt/mosquittotest"
)

// TestOutageWithRestart is an uplink that is away while the gateway is stopped
// and started: all arrives, in order, and while all is well nothing is written.
func TestOutageWithRestart(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{})
	sub := b.Subscribe([]string{"gw1/#"})
	k := newLink(t, b.Addr())
	dir := t.TempDir()
	cfg := settings(k.url())
	cfg.Queue.Commit = time.Second

	r := runIn(t, dir, cfg, nil)
	r.publish(t, 0, 1000, 1)
	r.drained(t)
	if s := r.q.Stats(); s.Flash.Total.Bytes != 0 {
		t.Errorf("queue %+v, want nothing written", s)
	}
	k.setRefuse(true)
	k.cut()
	r.publish(t, 1000, 4000, 1)
	r.stop()
	if err := r.q.Close(); err != nil {
		t.Fatal(err)
	}

	r = runIn(t, dir, cfg, nil)
	r.publish(t, 4000, 6000, 1)
	k.setRefuse(false)
	check(t, sub.Until(number(5999)), 6000, Width)
	r.drained(t)
	if s := r.q.Stats(); s.Found != 3000 {
		t.Errorf("queue %+v, want 3000 found in the file", s)
	}
}

// TestBackAfterHangups has the way to the broker accept connections and end them,
// as a balancer does with nothing behind it: the uplink is back within a second
// of it, since this broker has let it in before.
func TestBackAfterHangups(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{})
	k := newLink(t, b.Addr())
	r := run(t, settings(k.url()), nil)
	r.connected(t)
	k.setRefuse(true)
	k.cut()
	time.Sleep(6 * time.Second) // waits of 1, 2, 4 s and so on would be far along
	k.setRefuse(false)
	begin := time.Now()
	r.connected(t)
	if d := time.Since(begin); d > 4*time.Second {
		t.Errorf("connected %v after the broker was there", d)
	}
}

// TestBackfillFromTheFile drains a backlog that is not in memory, with the
// link cut in the middle of it.
func TestBackfillFromTheFile(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{})
	k := newLink(t, b.Addr())
	k.setRefuse(true)
	cfg := settings(k.url())
	cfg.Queue.Commit = 50 * time.Millisecond
	r := runIn(t, t.TempDir(), cfg, func(u *Uplink) { u.backoff.most = 100 * time.Millisecond })
	const n, batch = 60_000, 500
	for i := 0; i < n; i += batch {
		msgs := make([]mqtt.Message, batch)
		for j := range msgs {
			msgs[j] = mqtt.Message{Topic: "gw1/p", Payload: fmt.Appendf(nil, "%d", i+j), QoS: 1}
		}
		if err := r.q.Deliver(t.Context(), msgs...); err != nil {
			t.Fatal(err)
		}
		if i%5000 == 0 {
			if err := r.q.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "out of memory", func() bool { s := r.q.Stats(); return s.Memory < s.Bytes*4/5 })
	sub := b.Subscribe([]string{"gw1/#"}, "-q", "0")
	k.setRefuse(false)
	r.connected(t)
	eventually(t, "half of it", func() bool { return r.q.Stats().Messages < n/2 })
	k.cut()
	check(t, sub.Until(number(n-1)), n, Width)
	r.drained(t)
}

// BenchmarkBackfill drains a backlog from the file.
func BenchmarkBackfill(b *testing.B) {
	broker := mosquittotest.Start(b, mosquittotest.Options{})
	k := newLink(b, broker.Addr())
	k.setRefuse(true)
	cfg := settings(k.url())
	cfg.Queue.Commit = 50 * time.Millisecond
	dir := b.TempDir()
	r := runIn(b, dir, cfg, func(u *Uplink) { u.backoff.most = 10 * time.Millisecond })
	msgs := make([]mqtt.Message, 500)
	for i := range msgs {
		msgs[i] = mqtt.Message{Topic: "gw1/boiler/temp", Payload: make([]byte, 65), QoS: 1}
	}
	for n := 0; n < b.N; n += len(msgs) {
		if err := r.q.Deliver(b.Context(), msgs[:min(len(msgs), b.N-n)]...); err != nil {
			b.Fatal(err)
		}
		if n%10_000 == 0 {
			if err := r.q.Sync(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := r.q.Sync(b.Context()); err != nil {
		b.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "queue-cloud.db"))
	if err != nil {
		b.Fatal(err)
	}
	k.setRefuse(false)
	r.connected(b)
	b.ResetTimer()
	cpu := cpuTime(b)
	for r.q.Stats().Messages > 0 {
		time.Sleep(time.Millisecond)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/1000/float64(b.N), "cpu-µs/msg")
	b.ReportMetric(float64(info.Size())/float64(b.N), "file-B/msg")
}
