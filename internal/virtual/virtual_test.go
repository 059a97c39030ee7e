package virtual

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/point"
)

// rig is a Set of one device v and what it emitted.
type rig struct {
	*Set
	log  *logText
	mu   sync.Mutex
	seen []string
	stop func()
}

// logText is what was logged, for a test that reads while others write.
type logText struct {
	mu   sync.Mutex
	text []byte
}

func (l *logText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b...)
	return len(b), nil
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

func (l *logText) Len() int { return len(l.String()) }

// devices loads the device v with these points.
func devices(t *testing.T, points string) []config.Device {
	t.Helper()
	cfg, err := config.LoadBytes("f", []byte("site: { id: s }\nbroker: { anonymous: true }\nuplinks: { u: { url: mqtts://h } }\ndevices: { v: { points: { "+points+" } } }\n"))
	if err != nil {
		t.Fatal(err)
	}
	return cfg.Devices
}

// start runs a Set with these points.
func start(t *testing.T, dir, points string) *rig {
	t.Helper()
	r := &rig{log: new(logText)}
	r.Set = New(devices(t, points), dir, func(batch []point.Sample) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, s := range batch {
			r.seen = append(r.seen, text(s))
		}
	}, slog.New(slog.NewTextHandler(r.log, nil)))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	r.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	t.Cleanup(r.stop)
	return r
}

// text is a sample in a word: v.p=25.4, v.p=bad, v.p~1 for an uncertain one.
func text(s point.Sample) string {
	switch s.Quality {
	case point.Bad:
		return string(s.ID) + "=bad"
	case point.Uncertain:
		return string(s.ID) + "~" + s.Value.String()
	}
	return string(s.ID) + "=" + s.Value.String()
}

// told returns what was emitted since the last call.
func (r *rig) told() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = nil
	return seen
}

func (r *rig) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := r.told(); !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

func (r *rig) take(payload string) { r.Take("t", config.Local, []byte(payload), false) }

// TestPayloads: what a message says of points of each type.
func TestPayloads(t *testing.T) {
	for _, tt := range []struct{ point, payload, want string }{
		{"{ from: t }", "25.4", "v.p=25.4"},
		{"{ from: t }", " 25.4\r\n", "v.p=25.4"},
		{"{ from: t }", `"25.4"`, "v.p=25.4"},
		{"{ from: t }", `{"value":25.4}`, "v.p=25.4"},
		{"{ from: t }", ` {"value":"25.4","unit":"°C"} `, "v.p=25.4"},
		{"{ from: t }", `{"value":25.4,"quality":"uncertain"}`, "v.p~25.4"},
		{"{ from: t }", `{"value":25.4,"quality":"bad"}`, "v.p=bad"},
		{"{ from: t }", `{"value":null}`, "v.p=bad"},
		{"{ from: t }", `null`, "v.p=bad"},
		{"{ from: t }", `1e400`, `"1e400" is not a number`},
		{"{ from: t }", `NaN`, `"NaN" is not a number`},
		{"{ from: t }", "full", `"full" is not a number`},
		{"{ from: t }", "", "it is empty"},
		{"{ from: t }", "true", "true is no number"},
		{"{ from: t }", `{"value":true}`, "true is no number"},
		{"{ from: t }", `{"value":[1]}`, `its member \"value\" is no single value`},
		{"{ from: t }", `{"val":1}`, `it has no member \"value\"`},
		{"{ from: t }", `{"value":1`, "its JSON is malformed"},
		{"{ from: t }", `[1]`, `"[1]" is not a number`},
		{"{ from: t }", "{" + strings.Repeat(" ", maxPayload), "and at most 65536 are looked at"},
		{"{ from: { topic: t, key: temp } }", `{"timestamp":"2025-11-05T14:30:15.123Z","temp":25.4}`, "v.p=25.4"},
		{"{ from: t, type: uint8 }", "255", "v.p=255"},
		{"{ from: t, type: uint8 }", "256", "256 is outside 0 to 255"},
		{"{ from: t, type: uint8 }", "2.5", "2.5 is not a whole number"},
		{"{ from: t, type: int16, scale: 0.1 }", "25.44", "v.p=25.4"},
		{"{ from: t, type: uint64 }", `{"value":18446744073709551615}`, "v.p=18446744073709551615"},
		{"{ from: t, type: bool }", "on", "v.p=1"},
		{"{ from: t, type: bool }", `{"value":false}`, "v.p=0"},
		{"{ from: t, type: bool }", "2", "2 is not true (1) or false (0)"},
		{"{ from: t, type: string(4) }", " a b ", "v.p= a b"},
		{"{ from: t, type: string(4) }", `"a b"`, "v.p=a b"},
		{"{ from: t, type: string(4) }", "", "v.p="},
		{"{ from: t, type: string(4) }", "null", "v.p=null"},
		{"{ from: t, type: string(4) }", `{"value":"12"}`, "v.p=12"},
		{"{ from: t, type: string(4) }", "{x}", "v.p={x}"},
		{"{ from: t, type: string(4) }", "123456789", "the text has 9 bytes, string(4) holds 8"},
		{"{ from: t, type: string(4) }", "\xff", "the text is not UTF-8"},
		{"{ from: t, type: datetime(EPOCH) }", "2025-11-05T14:30:15Z", "v.p=2025-11-05T14:30:15Z"},
		{"{ from: t, map: { 0: stopped, 1: running }, type: uint16 }", "running", "v.p=running"},
		{"{ from: t, map: { 0: stopped, 1: running }, type: uint16 }", `{"value":0}`, "v.p=stopped"},
		{"{ from: t, map: { 0: stopped, 1: running }, type: uint16 }", "flying", `\"flying\" is not one of stopped, running`},
		{"{ from: t, write: { max: 100 } }", "101", "101 is above the most, 100"},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := start(t, "", "p: "+tt.point)
			r.want(t, "v.p=bad")
			r.take(tt.payload)
			synctest.Wait()
			got := strings.Join(r.told(), " ")
			if r.log.Len() > 0 {
				got = r.log.String()
			}
			if got != tt.want && (r.log.Len() == 0 || !strings.Contains(strings.ReplaceAll(got, `\"`, `"`), strings.ReplaceAll(tt.want, `\"`, `"`))) {
				t.Errorf("%s of %.80q gives %q, want %q", tt.point, tt.payload, got, tt.want)
			}
			r.stop()
		})
	}
}

// TestSaidOnce: the same fault of a topic is logged once until a message fits.
func TestSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, "", "p: { from: t }")
		r.want(t, "v.p=bad")
		for range 3 {
			r.take("x")
		}
		r.take("y")
		r.take("1")
		r.take("y")
		if n := strings.Count(r.log.String(), "message not taken"); n != 3 {
			t.Errorf("logged %d times, want 3:\n%s", n, r.log)
		}
		r.want(t, "v.p=1")
	})
}

// TestStale: values count for so long, by one timer.
func TestStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, "", "p: { from: t, stale: 5s }, q: { from: t, stale: 7s, initial: 3 }, r: { from: t, write: {} }")
		r.want(t, "v.p=bad", "v.q=3", "v.r=bad")
		time.Sleep(time.Hour) // the initial value counts until there is another
		r.want(t)
		r.take("1")
		r.want(t, "v.p=1", "v.q=1", "v.r=1")
		time.Sleep(4 * time.Second)
		r.take("2")
		r.want(t, "v.p=2", "v.q=2", "v.r=2")
		time.Sleep(5*time.Second - time.Millisecond)
		r.want(t)
		time.Sleep(time.Millisecond)
		r.want(t, "v.p=bad")
		time.Sleep(2 * time.Second)
		r.want(t, "v.q=bad")
		time.Sleep(time.Hour)
		r.want(t)
		if s := r.Status(); s.Points != 3 || s.Bad != 2 {
			t.Errorf("Status = %+v", s)
		}
		if n := strings.Count(r.log.String(), "no longer counts"); n != 2 {
			t.Errorf("log:\n%s", r.log)
		}
		// What somebody wrote counts until the next message.
		if err := r.Write(t.Context(), "v.r", point.IntValue(9)); err != nil {
			t.Error(err)
		}
		r.take("3")
		r.want(t, "v.r=9", "v.p=3", "v.q=3", "v.r=3")
		time.Sleep(6 * time.Second) // Read and Run agree
		got, err := r.Read(t.Context(), "v.q", "v.p")
		if err != nil || text(got[0]) != "v.q=3" || text(got[1]) != "v.p=bad" {
			t.Errorf("Read = %v, %v", got, err)
		}
	})
}

// TestAge: how old a value is decides whether it counts, where that is known.
func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, "", "p: { from: t, stale: 10s }, q: { from: t }")
		r.want(t, "v.p=bad", "v.q=bad")
		at := func(ago time.Duration) string {
			return `{"value":1,"timestamp":"` + point.Timestamp(time.Now().Add(-ago)) + `"}`
		}
		r.take(at(4 * time.Second))
		r.want(t, "v.p=1", "v.q=1")
		time.Sleep(6 * time.Second)
		r.want(t, "v.p=bad")
		time.Sleep(4 * time.Second)
		r.take(at(time.Hour)) // clocks that differ, perhaps
		r.want(t, "v.q=1")
		r.take(at(-time.Hour)) // somebody's clock is wrong
		r.want(t, "v.p=1", "v.q=1")
		time.Sleep(10 * time.Second)
		r.want(t, "v.p=bad")
		r.take(`{"value":2,"timestamp":"1970-01-01T00:00:10.000Z","time":"unsynced"}`)
		r.want(t, "v.p=2", "v.q=2")
		// The broker kept it, and nobody knows since when.
		r.Take("t", config.Local, []byte("3"), true)
		r.want(t, "v.p~3", "v.q=3")
		r.Take("t", config.Local, []byte(at(time.Second)), true)
		r.want(t, "v.p=1", "v.q=1")
		if !strings.Contains(r.log.String(), "it says that it is 1h0m0s old, and 10s counts; if it is new, the clocks differ") {
			t.Errorf("log:\n%s", r.log)
		}
	})
}

// A backlog that comes after what is new, as uplinks send it with order: live_first,
// takes nothing from that where values count for a time only.
func TestBacklogAfterLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, "", "p: { from: t, stale: 10s, write: {} }")
		r.want(t, "v.p=bad")
		send := func(value string, ago time.Duration) {
			r.take(`{"value":` + value + `,"timestamp":"` + point.Timestamp(time.Now().Add(-ago)) + `"}`)
		}
		send("1", time.Second)
		r.want(t, "v.p=1")
		for _, old := range []time.Duration{time.Hour, time.Minute, 9 * time.Second, 2 * time.Second} {
			send("7", old)
			send("null", old)
		}
		r.want(t)
		send("2", time.Second) // the same moment, as of what is sent again
		r.want(t, "v.p=2")
		send("3", -time.Hour) // a clock that is wrong
		send("4", 0)          // and right again
		r.want(t, "v.p=3", "v.p=4")
		send("null", 0)
		r.want(t, "v.p=bad")
		send("5", time.Second)
		r.want(t)
		time.Sleep(10 * time.Second) // a clock that was set back, perhaps
		send("5", 9*time.Second)
		send("6", 5*time.Second)
		r.want(t, "v.p=5", "v.p=6")
		if err := r.Write(t.Context(), "v.p", point.IntValue(6)); err != nil {
			t.Fatal(err)
		}
		r.want(t, "v.p=6")
		send("7", time.Minute)
		r.want(t)
		send("8", time.Second)
		r.want(t, "v.p=8")
		if s := r.log.String(); s != "" {
			t.Errorf("log:\n%s", s)
		}
	})
}

// TestTopics: who brings what.
func TestTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, "", "a: { from: t }, b: { from: { topic: t, uplink: u, key: b } }, c: { from: { topic: x, uplink: local } }, d: { initial: 1 }")
		r.want(t, "v.a=bad", "v.b=bad", "v.c=bad", "v.d=1")
		if got, want := fmt.Sprint(r.Topics()), "[{t [local u]} {x [local]}]"; got != want {
			t.Errorf("Topics = %s, want %s", got, want)
		}
		r.Take("t", "u", []byte(`{"value":1,"b":2}`), false)
		r.Take("t", config.Local, []byte(`{"value":3,"b":4}`), false)
		r.Take("x", "u", []byte("5"), false)
		r.Take("y", "u", []byte("6"), false)
		r.want(t, "v.a=1", "v.b=2", "v.a=3")
	})
}

// TestWrite: what a write is refused for.
func TestWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, "", "p: { type: int16, scale: 0.1, write: { min: 0, max: 100 } }, q: { initial: 1 }")
		r.want(t, "v.p=bad", "v.q=1")
		done, cancel := context.WithCancel(t.Context())
		cancel()
		for _, tt := range []struct {
			ctx  context.Context
			id   point.ID
			v    point.Value
			want string
		}{
			{t.Context(), "v.p", point.ParseValue("75.5"), ""},
			{t.Context(), "v.p", point.TextValue("75.6"), ""},
			{t.Context(), "v.p", point.IntValue(101), "write v.p: 101 is above the most, 100"},
			{t.Context(), "v.p", point.TextValue("x"), `write v.p: "x" is not a number`},
			{t.Context(), "v.p", point.BoolValue(true), "write v.p: true is no number"},
			{t.Context(), "v.q", point.IntValue(1), "write v.q: the point is read only"},
			{t.Context(), "v.x", point.IntValue(1), "write v.x: unknown point"},
			{done, "v.p", point.IntValue(1), "write v.p: context canceled"},
		} {
			err := r.Write(tt.ctx, tt.id, tt.v)
			if got := fmt.Sprint(err); err == nil && tt.want != "" || err != nil && got != tt.want {
				t.Errorf("Write(%s, %s) = %v, want %s", tt.id, tt.v, err, tt.want)
			}
		}
		r.want(t, "v.p=75.5", "v.p=75.6")
		if got, err := r.Read(t.Context(), "v.q", "v.p"); err != nil || text(got[0]) != "v.q=1" || text(got[1]) != "v.p=75.6" {
			t.Errorf("Read = %v, %v", got, err)
		}
		if _, err := r.Read(t.Context(), "v.x"); !errors.Is(err, ErrUnknownPoint) {
			t.Errorf("Read = %v", err)
		}
		if !r.Has("v.p") || r.Has("v.x") || !slices.Equal(r.Devices(), []string{"v"}) || r.Status().Points != 2 {
			t.Errorf("Has, Devices or Len: %v", r.Devices())
		}
	})
}

const keeping = "a: { keep: true, initial: 50, type: uint64, write: {} }, b: { keep: true, from: t, stale: 5s }, c: { keep: true, type: string(8), write: {} }, d: { keep: true, type: bool, write: {} }, e: { write: {} }"

// TestKeep: values survive a restart, and cost few writes.
func TestKeep(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, fileName)
	synctest.Test(t, func(t *testing.T) {
		r := start(t, dir, keeping)
		r.want(t, "v.a=50", "v.b=bad", "v.c=bad", "v.d=bad", "v.e=bad")
		for id, v := range map[point.ID]point.Value{"v.a": point.UintValue(1<<64 - 1), "v.c": point.TextValue(`"é` + "\x01"), "v.d": point.BoolValue(true), "v.e": point.IntValue(5)} {
			if err := r.Write(t.Context(), id, v); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(file); err == nil {
			t.Error("written at once")
		}
		time.Sleep(saveWritten)
		synctest.Wait()
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
		for i := range 120 { // one each second: three more files in two minutes
			r.take(fmt.Sprint(i))
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if n := r.Status().Flash.Total.Syncs; n > 8 {
			t.Errorf("%d syncs", n)
		}
		r.take("25.25")
		time.Sleep(10 * time.Second) // it no longer counts, and is kept all the same
		synctest.Wait()
		r.stop()
	})
	synctest.Test(t, func(t *testing.T) {
		r := start(t, dir, keeping)
		r.want(t, "v.a=18446744073709551615", "v.b~25.25", "v.c=\"é\x01", "v.d=1", "v.e=bad")
		time.Sleep(5 * time.Second)
		r.want(t, "v.b=bad")
		if r.Status().Flash.Total.Syncs > 0 || r.log.Len() > 0 && !strings.Contains(r.log.String(), "no longer counts") {
			t.Errorf("%+v, log:\n%s", r.Status(), r.log)
		}
	})
	synctest.Test(t, func(t *testing.T) { // another configuration
		r := start(t, dir, "a: { keep: true, type: uint8, write: {} }, c: { type: string(8), initial: x }, d: { keep: true, type: bool, write: { only: [off] } }")
		r.want(t, "v.a=bad", "v.c=x", "v.d=bad")
		if strings.Count(r.log.String(), "does not fit its point any more") != 2 {
			t.Errorf("log:\n%s", r.log)
		}
	})
}

// TestDamagedFile: every cut and every changed byte puts the file aside, or
// changes nothing.
func TestDamagedFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, fileName)
	whole := []byte(`{"crc32c":"` + checksum([]byte(`{"v.a":7}`)) + `","values":{"v.a":7}}` + "\n")
	check := func(image []byte) {
		t.Helper()
		if err := os.WriteFile(file, image, 0o640); err != nil {
			t.Fatal(err)
		}
		s := New(devices(t, "a: { keep: true, initial: 5, write: {} }"), dir, func([]point.Sample) {}, slog.New(slog.DiscardHandler))
		got, err := s.Read(t.Context(), "v.a")
		if err != nil {
			t.Fatal(err)
		}
		_, rerr := os.Stat(file)
		switch text(got[0]) {
		case "v.a=7":
		case "v.a=5":
			if rerr == nil && !bytes.Contains(image, []byte(`"values":`)) {
				t.Errorf("%q was left in place", image)
			}
		default:
			t.Errorf("%q gives %s", image, text(got[0]))
		}
	}
	check(whole)
	for i := range whole {
		check(whole[:i])
		for _, b := range []byte{0, '8', whole[i] ^ 1} {
			image := bytes.Clone(whole)
			image[i] = b
			check(image)
		}
	}
}

// TestDiskGone: a folder that takes nothing is told once, and tried again.
func TestDiskGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	synctest.Test(t, func(t *testing.T) {
		r := start(t, dir, keeping)
		if err := r.Write(t.Context(), "v.a", point.IntValue(1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if r.Status().Fault == "" || strings.Count(r.log.String(), "kept values are not saved") != 1 {
			t.Errorf("%+v, log:\n%s", r.Status(), r.log)
		}
		if err := os.Mkdir(dir, 0o750); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if r.Status().Fault != "" || !strings.Contains(r.log.String(), "kept values are saved again") {
			t.Errorf("%+v, log:\n%s", r.Status(), r.log)
		}
		if _, err := os.Stat(filepath.Join(dir, fileName)); err != nil {
			t.Error(err)
		}
	})
}

// FuzzTake: no payload panics, and what is taken can be held.
func FuzzTake(f *testing.F) {
	for _, seed := range []string{"25.4", `{"value":25.4,"timestamp":"2025-11-05T14:30:15.123Z"}`, `"on"`, `{"value":{}}`, "{", "", "null", `{"value":nul}`, "\xff", `{"value":1e999}`} {
		f.Add([]byte(seed), false)
	}
	cfg, err := config.LoadBytes("f", []byte(`
site: { id: s }
broker: { anonymous: true }
devices: { v: { points: { a: { from: t }, b: { from: t, type: bool, stale: 5s }, c: { from: t, type: string(4) }, d: { from: t, type: int16, scale: 0.1, write: { max: 9 } }, e: { from: t, type: uint16, map: { 1: one } }, g: { from: t, type: datetime(DT4) }, h: { from: t, type: bytes(2) } } } }
`))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, payload []byte, retained bool) {
		s := New(cfg.Devices, "", func(batch []point.Sample) {
			for _, b := range batch {
				if (b.Quality == point.Bad) != b.Value.IsZero() {
					t.Errorf("%q gives %+v", payload, b)
				}
			}
		}, slog.New(slog.DiscardHandler))
		s.begun = true
		s.Take("t", config.Local, payload, retained)
		for _, c := range s.cells {
			if c.sample.Quality == point.Bad {
				continue
			}
			if again, err := c.point.Hold(c.sample.Value); err != nil || again != c.sample.Value {
				t.Errorf("%q: %s holds %s, and not again: %s, %v", payload, c.point.ID, c.sample.Value, again, err)
			}
		}
	})
}

// FuzzKept: no file panics.
func FuzzKept(f *testing.F) {
	f.Add([]byte(`{"crc32c":"00000000","values":{"v.a":7}}`))
	f.Add([]byte(`{"crc32c":"` + checksum([]byte(`{"v.a":7}`)) + `","values":{"v.a":7}}`))
	f.Fuzz(func(t *testing.T, text []byte) { _, _ = decodeKept(text) })
}

// Another configuration leaves points what they hold, as long as they can.
func TestChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, t.TempDir(), "a: { initial: 1, write: {} }, b: { write: {} }, c: { write: {} }, gone: { initial: 9 }")
		synctest.Wait()
		for id, v := range map[point.ID]int64{"v.a": 5, "v.b": 500} {
			if err := r.Write(t.Context(), id, point.IntValue(v)); err != nil {
				t.Fatal(err)
			}
		}
		r.seen = nil
		r.Change(devices(t, "a: { initial: 2, write: {} }, b: { type: uint8, initial: 7, write: {} }, c: { initial: 3, write: {} }, new: { from: t }"))
		synctest.Wait()
		r.want(t, "v.b=7", "v.c=3", "v.new=bad")
		if s, err := r.Read(t.Context(), "v.a"); err != nil || text(s[0]) != "v.a=5" {
			t.Errorf("v.a: %v, %v", s, err)
		}
		if r.Has("v.gone") || len(r.Topics()) != 1 {
			t.Errorf("v.gone: %t, topics: %v", r.Has("v.gone"), r.Topics())
		}
		r.Take("t", config.Local, []byte("4"), false)
		if s, err := r.Read(t.Context(), "v.new"); err != nil || text(s[0]) != "v.new=4" {
			t.Errorf("v.new: %v, %v", s, err)
		}
	})
}
