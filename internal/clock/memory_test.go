package clock

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// process is the life of one process on f, until end.
func process(t *testing.T, f *fake, dir string) (c *Clock, end func()) {
	t.Helper()
	c = openAt(f.source(), dir, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }() // ends with cancel
	return c, func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// Who set the clock by hand need not do it again because the gateway restarts.
func TestSetByHandIsRemembered(t *testing.T) {
	dir := t.TempDir()
	f := &fake{day: time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC), doubt: "no clock"}
	c, end := process(t, f, dir)
	f.pass(time.Minute)
	f.day = f.day.Add(time.Hour)
	c.Look()
	end()
	c, end = process(t, f, dir)
	if c.State() != Set {
		t.Errorf("the next process finds it %v", c.State())
	}
	end()
	src := f.source()
	src.Boot = 8
	if c := openAt(src, dir, slog.New(slog.DiscardHandler)); c.State() != Unset {
		t.Errorf("after the next start of the machine it is %v", c.State())
	}
	f.day = time.Unix(5, 0)
	if c := openAt(f.source(), dir, slog.New(slog.DiscardHandler)); c.State() != Unset {
		t.Errorf("in 1970 it is %v", c.State())
	}
}

// Numbers of a process are above those of all before.
func TestFirst(t *testing.T) {
	dir := t.TempDir()
	last := uint64(0)
	for i, day := range []time.Time{
		time.Unix(5, 0),
		time.Unix(5, 0),
		time.Date(2026, 5, 4, 0, 0, 0, 0, time.UTC),
		time.Date(2026, 5, 4, 0, 0, 1, 0, time.UTC),
		time.Date(2026, 4, 4, 0, 0, 0, 0, time.UTC),
		time.Unix(5, 0),
		time.Date(2026, 5, 4, 0, 1, 0, 0, time.UTC),
		time.Date(2027, 5, 4, 0, 0, 0, 0, time.UTC),
	} {
		c, end := process(t, &fake{day: day}, dir)
		if c.First() <= last {
			t.Errorf("process %d begins at %d, the one before at %d", i, c.First(), last)
		}
		last = c.First()
		end()
	}
	if want := time.Date(2027, 5, 4, 0, 0, 0, 0, time.UTC).UnixMilli(); last != uint64(want) {
		t.Errorf("the last begins at %d, want the time of day, %d", last, want)
	}
}

func TestMemoryIsNotNeeded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	f := &fake{day: time.Date(2026, 5, 4, 0, 0, 0, 0, time.UTC)}
	_, end := process(t, f, dir)
	end()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "{", `{"boot":"x"}`, "\x00\x00\x00"} {
		if err := os.WriteFile(filepath.Join(dir, memoryFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if c := openAt(f.source(), dir, slog.New(slog.DiscardHandler)); c.State() != Set || c.First() != uint64(f.day.UnixMilli()) {
			t.Errorf("after %q: %v, %d", text, c.State(), c.First())
		}
	}
}
