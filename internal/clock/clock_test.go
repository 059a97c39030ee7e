package clock

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fake is a machine whose clocks the test turns.
type fake struct {
	up     time.Duration // monotonic
	day    time.Time
	synced bool
	doubt  string
	asked  int
}

var powerOn = time.Now() // moments only have to have a distance, and a monotonic reading

func (f *fake) source() Source {
	return Source{
		Now: func() (day, moment time.Time) { return f.day, powerOn.Add(f.up) },
		Vouch: func(day time.Time) (bool, string) {
			if f.asked++; day.Before(Epoch) {
				return false, "it is early"
			}
			return f.synced, f.doubt
		},
		Boot: 7,
		Up:   func(m time.Time) time.Duration { return m.Sub(powerOn) },
	}
}

func (f *fake) pass(d time.Duration) {
	f.up += d
	f.day = f.day.Add(d)
}

func newClock(f *fake) (*Clock, *strings.Builder) {
	out := new(strings.Builder)
	return New(f.source(), slog.New(slog.NewTextHandler(out, nil))), out
}

// told says a moment as a message would.
func told(c *Clock, up time.Duration) string {
	ns, set := c.At(powerOn.Add(up))
	text := time.Unix(0, ns).UTC().Format("2006-01-02T15:04:05.000")
	if !set {
		text += " unsynced"
	}
	return text
}

func wantTold(t *testing.T, c *Clock, up time.Duration, want string) {
	t.Helper()
	if got := told(c, up); got != want {
		t.Errorf("%v after the start is told as %s, want %s", up, got, want)
	}
}

func TestStartIn1970(t *testing.T) {
	f := &fake{up: 10 * time.Second, day: time.Unix(10, 0)}
	c, log := newClock(f)
	wantTold(t, c, 15*time.Second, "1970-01-01T00:00:15.000 unsynced")
	before, ok := c.Stamp()
	if !ok {
		t.Fatal("an unset clock gives no stamp")
	}
	if _, ok := c.Shift(before); ok {
		t.Error("an unset clock says how wrong it was")
	}

	// From one wrong time to another: nothing changes.
	f.pass(time.Minute)
	f.day = f.day.Add(365 * 24 * time.Hour)
	c.Look()
	wantTold(t, c, 15*time.Second, "1970-01-01T00:00:15.000 unsynced")

	// To the right one.
	f.pass(time.Minute)
	f.day = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	f.synced = true
	c.Look()
	wantTold(t, c, f.up, "2026-05-04T03:02:01.000")
	wantTold(t, c, 15*time.Second, "2026-05-04T03:00:06.000")
	if later, ok := c.Shift(before); !ok || !time.Unix(15, 0).Add(later).Equal(time.Date(2026, 5, 4, 3, 0, 6, 0, time.UTC)) {
		t.Errorf("shift %v, %v", later, ok)
	}
	if s, unset := c.Stamp(); unset || s != before {
		t.Errorf("stamp %v, %v, want what it was, and set", s, unset)
	}
	if c.State() != Synced || strings.Count(log.String(), "\n") != 2 {
		t.Errorf("state %v, log %s, want two lines", c.State(), log)
	}
	asked := f.asked
	f.pass(24 * time.Hour)
	c.Look()
	if f.asked != asked {
		t.Error("a clock that a time service has set asks on")
	}
}

func TestSteps(t *testing.T) {
	for _, step := range []time.Duration{14 * 24 * time.Hour, -14 * 24 * time.Hour, 50 * time.Millisecond, -50 * time.Millisecond} {
		t.Run(step.String(), func(t *testing.T) {
			f := &fake{day: time.Date(2026, 5, 4, 0, 0, 0, 0, time.UTC)}
			c, _ := newClock(f)
			wantTold(t, c, time.Hour, "2026-05-04T01:00:00.000")
			f.pass(time.Minute)
			f.day = f.day.Add(step)
			c.Look()
			wantTold(t, c, time.Hour, f.day.Add(59*time.Minute).Format("2006-01-02T15:04:05.000"))
			// Moments are told in their order, before and after.
			if a, b := told(c, time.Second), told(c, 2*time.Hour); a >= b {
				t.Errorf("%s before %s", a, b)
			}
			if c.State() != Set || c.Steps() != 1 {
				t.Errorf("state %v, %d steps", c.State(), c.Steps())
			}
			f.pass(time.Minute)
			c.Look()
			if c.Steps() != 1 {
				t.Errorf("%d steps, want 1", c.Steps())
			}
		})
	}
}

// What a clock that is set can still go through.
func TestSetStaysSet(t *testing.T) {
	f := &fake{day: time.Date(2026, 5, 4, 0, 0, 0, 0, time.UTC), synced: true}
	c, log := newClock(f)
	f.pass(time.Minute)
	f.synced, f.doubt = false, "the time service is gone"
	c.Look()
	f.pass(time.Minute)
	f.day = time.Unix(100, 0)
	c.Look()
	c.Look()
	wantTold(t, c, time.Hour, "2026-05-04T01:00:00.000")
	if c.State() != Synced || strings.Count(log.String(), "cannot be") != 1 {
		t.Errorf("state %v, log %s", c.State(), log)
	}
	f.pass(time.Minute)
	f.day = time.Date(2026, 5, 4, 0, 3, 7, 0, time.UTC)
	c.Look()
	wantTold(t, c, time.Hour, "2026-05-04T01:00:07.000")
}

// Without a time service somebody may set the clock of a board by hand.
func TestSetByHand(t *testing.T) {
	f := &fake{day: time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC), doubt: "no clock"}
	c, _ := newClock(f)
	f.pass(time.Minute)
	f.day = f.day.Add(30 * time.Millisecond)
	c.Look()
	if c.State() != Unset {
		t.Errorf("%v after a small step", c.State())
	}
	f.pass(time.Second)
	f.day = f.day.Add(time.Hour)
	c.Look()
	wantTold(t, c, 0, "2025-01-01T01:00:00.030")
}

// A goroutine that is interrupted between the readings makes no step.
func TestInterruptedReading(t *testing.T) {
	f := &fake{day: time.Date(2026, 5, 4, 0, 0, 0, 0, time.UTC)}
	src := f.source()
	slow := 0
	src.Now = func() (day, moment time.Time) {
		if slow > 0 {
			slow--
			return f.day, powerOn.Add(f.up + 20*time.Millisecond)
		}
		return f.day, powerOn.Add(f.up)
	}
	c := New(src, slog.New(slog.DiscardHandler))
	f.pass(time.Second)
	slow = 3
	c.Look()
	if c.Steps() != 0 {
		t.Errorf("%d steps", c.Steps())
	}
}

func TestShiftOfAnotherBoot(t *testing.T) {
	f := &fake{day: time.Date(2026, 5, 4, 0, 0, 0, 0, time.UTC)}
	c, _ := newClock(f)
	if later, ok := c.Shift(Stamp{Boot: 8}); ok {
		t.Errorf("a time of another boot is %v wrong, it is said", later)
	}
	// Another process in the same boot.
	f.up, f.day = 5*time.Second, time.Unix(5, 0)
	first, _ := newClock(f)
	s, _ := first.Stamp()
	f.pass(time.Hour)
	f.day = time.Date(2026, 5, 4, 0, 0, 0, 0, time.UTC)
	second, _ := newClock(f)
	later, ok := second.Shift(s)
	if want := time.Date(2026, 5, 3, 23, 0, 0, 0, time.UTC); !ok || !time.Unix(5, 0).Add(later).Equal(want) {
		t.Errorf("told %v, %v, want %v", time.Unix(5, 0).Add(later).UTC(), ok, want)
	}
}

func TestNoClock(t *testing.T) {
	var c *Clock
	c.Look()
	now := time.Now()
	if ns, set := c.At(now); ns != now.UnixNano() || !set || c.State() != Set {
		t.Errorf("%v, %v", ns, set)
	}
	if _, ok := c.Stamp(); ok {
		t.Error("it gives stamps")
	}
}

func TestVouch(t *testing.T) {
	day := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	const rtc = "sys/class/rtc/rtc0/since_epoch"
	for name, tc := range map[string]struct {
		day   time.Time
		board bool
		sync  bool
		files map[string]string
		want  State
	}{
		"a PC that shows nothing":          {day: day, want: Set},
		"a board that shows nothing":       {day: day, board: true, want: Unset},
		"the kernel vouches":               {day: day, board: true, sync: true, want: Synced},
		"the kernel vouches for 1970":      {day: time.Unix(100, 0), sync: true, want: Unset},
		"timesyncd vouches":                {day: day, board: true, files: map[string]string{"run/systemd/timesync/synchronized": ""}, want: Synced},
		"a hardware clock agrees":          {day: day, board: true, files: map[string]string{rtc: fmt.Sprintln(day.Unix() + 2)}, want: Set},
		"a hardware clock on local time":   {day: day, files: map[string]string{rtc: fmt.Sprintln(day.Unix() - 11*3600)}, want: Set},
		"a hardware clock without battery": {day: day, files: map[string]string{rtc: "946684800\n"}, want: Unset},
		"a hardware clock that is broken":  {day: day, files: map[string]string{rtc: ""}, want: Unset},
		"the second hardware clock agrees": {day: day, files: map[string]string{rtc: "5", "sys/class/rtc/rtc1/since_epoch": fmt.Sprint(day.Unix())}, want: Set},
	} {
		t.Run(name, func(t *testing.T) {
			m := machine{root: t.TempDir(), board: tc.board, sync: func() bool { return tc.sync }}
			for path, text := range tc.files {
				path = filepath.Join(m.root, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			synced, doubt := m.source().Vouch(tc.day)
			if got := stateOf(synced, doubt); got != tc.want {
				t.Errorf("%v (%q), want %v", got, doubt, tc.want)
			}
		})
	}
}

// The clock of the machine that the test runs on.
func TestMachine(t *testing.T) {
	c := New(Machine(), slog.New(slog.DiscardHandler))
	c.Look()
	at := time.Now()
	if ns, set := c.At(at); set && time.Unix(0, ns).Sub(at.Round(0)).Abs() > time.Second {
		t.Errorf("%v is told as %v", at, time.Unix(0, ns))
	}
	if src := Machine(); src.Boot == 0 || src.Up(time.Now()) <= 0 {
		t.Errorf("boot %d, up %v", src.Boot, src.Up(time.Now()))
	}
	if c.State() == Unset {
		t.Log("this machine's clock is unset")
	}
}

func BenchmarkLook(b *testing.B) {
	c := New(Machine(), slog.New(slog.DiscardHandler))
	for b.Loop() {
		c.Look()
	}
}
