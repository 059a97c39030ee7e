package queue

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fieldgate/internal/clock"
	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
)

// day is a clock that a test sets: it runs at the pace of the machine's, from
// where the test puts it.
type day struct {
	ahead atomic.Int64 // of the machine's, in ns
	boot  uint32
	began time.Time // of the boot
}

func newDay(boot uint32) *day { return &day{boot: boot, began: time.Now()} }

func (d *day) set(t time.Time) { d.ahead.Store(int64(time.Until(t))) }

func (d *day) clock() *clock.Clock {
	return clock.New(clock.Source{
		Now: func() (day, moment time.Time) {
			now := time.Now()
			return now.Add(time.Duration(d.ahead.Load())), now
		},
		Vouch: func(day time.Time) (bool, string) {
			return false, map[bool]string{true: "it is early"}[day.Before(clock.Epoch)]
		},
		Boot: d.boot,
		Up:   func(m time.Time) time.Duration { return m.Sub(d.began) },
	}, slog.New(slog.DiscardHandler))
}

// with runs a queue with that clock on the file in dir, until stop.
func with(t *testing.T, dir string, cfg config.Queue, c *clock.Clock) (q *Queue, stop func()) {
	t.Helper()
	q, err := Open(dir, "cloud", cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	q.Clock = c
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- q.Run(ctx) }() // ends with cancel
	return q, func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	}
}

// reading is a message as publish makes one, told by c now.
func reading(c *clock.Clock, i int) mqtt.Message {
	now, set := c.At(time.Now())
	head := fmt.Sprintf(`{"value":%d,"timestamp":"`, i)
	m := mqtt.Message{Topic: "t", QoS: 1, Payload: []byte(head + time.Unix(0, now).UTC().Format(clock.Layout) + `"`)}
	if !set {
		m.Stamp = uint32(len(head))
		m.Payload = append(m.Payload, clock.Unsynced...)
	}
	m.Payload = append(m.Payload, '}')
	return m
}

func take(t *testing.T, q *Queue, n int) []Entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all []Entry
	for len(all) < n {
		some, err := q.Next(ctx, n)
		if err != nil {
			t.Fatalf("%d of %d messages: %v", len(all), n, err)
		}
		for _, e := range some {
			e.Payload = append([]byte(nil), e.Payload...)
			all = append(all, e)
		}
	}
	return all
}

// toldAround checks that the messages come in their order, each with a time
// near want and none of them unsynced.
func toldAround(t *testing.T, got []Entry, want time.Time) {
	t.Helper()
	before := ""
	for i, e := range got {
		text := string(e.Payload)
		head := fmt.Sprintf(`{"value":%d,"timestamp":"`, i)
		rest, ok := strings.CutPrefix(text, head)
		told, tail := rest[:min(len(rest), len(clock.Layout))], rest[min(len(rest), len(clock.Layout)):]
		at, err := time.Parse(clock.Layout, told)
		if !ok || err != nil || tail != `"}` || at.Sub(want).Abs() > time.Minute || e.Time.Sub(want).Abs() > time.Minute || told < before || e.Stamp != 0 {
			t.Errorf("message %d is %s of %v, want one of about %v after %s", i, text, e.Time, want, before)
		}
		before = told
	}
}

var may = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

// A board that wakes in 1970, with no uplink: what it keeps is put right once the
// clock is set, in memory, in the file, and after a restart of the process.
func TestStartIn1970(t *testing.T) {
	for _, where := range []string{"memory", "file", "next process", "next process that knows at once"} {
		t.Run(where, func(t *testing.T) {
			cfg := config.Queue{MaxAge: time.Hour, Commit: 10 * time.Millisecond}
			if where == "memory" {
				cfg.Commit = time.Minute
			}
			dir := t.TempDir()
			d := newDay(7)
			d.set(time.Unix(100, 0))
			c := d.clock()
			q, stop := with(t, dir, cfg, c)
			for i := range 3 {
				deliver(t, q, reading(c, i))
			}
			switch where {
			case "file":
				if err := q.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
			case "next process":
				stop()
				c = d.clock()
				q, stop = with(t, dir, cfg, c)
			}
			got := take(t, q, 3)
			if !strings.HasPrefix(string(got[0].Payload), `{"value":0,"timestamp":"1970-01-01T00:01:40.`) || !strings.HasSuffix(string(got[0].Payload), clock.Unsynced+"}") {
				t.Errorf("before the clock is set: %s", got[0].Payload)
			}
			q.Rewind() // they were not acknowledged
			d.set(may)
			if where == "next process that knows at once" {
				stop()
				c = d.clock()
				q, stop = with(t, dir, cfg, c)
			}
			c.Look()
			deliver(t, q, reading(c, 3))
			toldAround(t, take(t, q, 4), may)
			if s := q.Stats(); s.Expired != 0 || s.Dropped != 0 || s.Damaged != 0 {
				t.Errorf("%+v", s)
			}
			stop()
		})
	}
}

// In another start of the machine nobody knows how wrong the clock was.
func TestUnsyncedOfAnotherBoot(t *testing.T) {
	dir := t.TempDir()
	cfg := config.Queue{MaxAge: time.Hour, Commit: time.Second}
	d := newDay(7)
	d.set(time.Unix(100, 0))
	c := d.clock()
	q, stop := with(t, dir, cfg, c)
	m := reading(c, 0)
	deliver(t, q, m)
	stop()
	d = newDay(8)
	d.set(may)
	q, stop = with(t, dir, cfg, d.clock())
	defer stop()
	if got := take(t, q, 1)[0]; string(got.Payload) != string(m.Payload) || got.Stamp != m.Stamp {
		t.Errorf("got %s (%d), want it as it was told: %s (%d)", got.Payload, got.Stamp, m.Payload, m.Stamp)
	}
	if s := q.Stats(); s.Expired != 0 {
		t.Errorf("%d expired", s.Expired)
	}
}

// What was told just before the clock was set may come just after.
func TestSetBetweenTellingAndTaking(t *testing.T) {
	d := newDay(7)
	d.set(time.Unix(100, 0))
	c := d.clock()
	q := open(t, config.Queue{})
	q.Clock = c
	m := reading(c, 0)
	d.set(may)
	c.Look()
	deliver(t, q, m)
	toldAround(t, take(t, q, 1), may)
}

// A clock that is believed is set by two weeks: nothing is too old, nothing
// changes places.
func TestStepLosesNothing(t *testing.T) {
	const fortnight = 14 * 24 * time.Hour
	for _, step := range []time.Duration{fortnight, -fortnight} {
		t.Run(step.String(), func(t *testing.T) {
			d := newDay(7)
			d.set(may)
			c := d.clock()
			q, stop := with(t, t.TempDir(), config.Queue{MaxAge: time.Hour, Commit: 10 * time.Millisecond}, c)
			defer stop()
			for i := range 6 {
				if i == 3 {
					d.set(may.Add(step))
					c.Look()
				}
				deliver(t, q, reading(c, i))
			}
			if err := q.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			for i, e := range take(t, q, 6) {
				if !strings.HasPrefix(string(e.Payload), fmt.Sprintf(`{"value":%d,`, i)) {
					t.Errorf("message %d is %s", i, e.Payload)
				}
			}
			if s := q.Stats(); s.Expired != 0 || s.Age > time.Minute {
				t.Errorf("%d expired, the oldest is %v old", s.Expired, s.Age)
			}
		})
	}
}

// A file of a version that knew no clock is read as it was.
func TestRecordBeforeStamps(t *testing.T) {
	old := append([]byte{1 | flagRetain, 0, 0, 0, 0, 0, 5, 0, 1}, "tpayload"...)
	if !wellFormed(old) {
		t.Fatal("not well-formed")
	}
	c := newChunk(1, 0, new(spares))
	c.bytes = append(append(c.bytes, 0, 0, 0, 0), old...)
	c.append(record{len: uint32(len(c.bytes))})
	if e := c.entry(0, nil); e.Topic != "t" || string(e.Payload) != "payload" || e.QoS != 1 || !e.Retain {
		t.Errorf("got %+v", e)
	}
	stamped := append(append([]byte{flagUnsynced, 0, 0, 0, 0, 0, 5, 0, 1}, "tp"...), make([]byte, stampBytes)...)
	binary.BigEndian.PutUint32(stamped[len(stamped)-4:], 1<<31)
	if !wellFormed(stamped) || wellFormed(stamped[:len(stamped)-3]) {
		t.Error("the stamp is not looked at")
	}
}

// Records come from a file that anything may have happened to.
func FuzzRecord(f *testing.F) {
	f.Add(append([]byte{1 | flagRetain, 0, 0, 0, 0, 0, 5, 0, 1}, "tpayload"...))
	f.Add(append([]byte{flagUnsynced, 0, 0, 0, 0, 0, 5, 0, 1}, "tp\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"...))
	d := newDay(7)
	d.set(may)
	clk := d.clock()
	f.Fuzz(func(t *testing.T, b []byte) {
		if !wellFormed(b) {
			return
		}
		c := newChunk(1, len(b)+crcBytes, new(spares))
		c.bytes = append(append(c.bytes, 0, 0, 0, 0), b...)
		c.append(record{len: uint32(len(c.bytes)), extra: uint8(extra(b))})
		e := c.entry(0, clk)
		if n := len(e.Topic) + len(e.Payload) + recordHeader + extra(b); n != len(b) && n != len(b)-len(clock.Unsynced) {
			t.Errorf("%d bytes of a record of %d", n, len(b))
		}
		if c.records[0].size() != int64(len(b)-extra(b)-recordHeader+overhead) {
			t.Errorf("size %d", c.records[0].size())
		}
	})
}
