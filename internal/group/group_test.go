package group

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// A value once read must find the rest of its way open: the last part started
// (the field) is gone before the one it hands values to is told to stop.
func TestStopsInReverseOrderOneAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var got []string
		note := func(s string) { mu.Lock(); got = append(got, s); mu.Unlock() }
		g := New(quiet)
		for _, name := range []string{"uplink", "publish", "bus"} {
			g.Start(name, func(ctx context.Context) error {
				<-ctx.Done()
				note(name + " told")
				time.Sleep(time.Second)
				note(name + " gone")
				return nil
			})
		}
		if err := g.Stop(10 * time.Second); err != nil {
			t.Fatal(err)
		}
		want := []string{"bus told", "bus gone", "publish told", "publish gone", "uplink told", "uplink gone"}
		if !slices.Equal(got, want) {
			t.Errorf("stop order %v, want %v", got, want)
		}
	})
}

func TestPartThatHangsIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		g := New(quiet)
		stopped := false
		g.Start("queue", func(ctx context.Context) error { <-ctx.Done(); stopped = true; return nil })
		g.Start("line", func(context.Context) error { <-free; return nil })
		err := g.Stop(2 * time.Second)
		if err == nil || !strings.Contains(err.Error(), "line did not stop in time") {
			t.Errorf("Stop() = %v, want one that names line", err)
		}
		if !stopped {
			t.Error("the part before the hanging one was not stopped")
		}
		close(free)
	})
}

func TestFirstFailureIsDelivered(t *testing.T) {
	for name, run := range map[string]Run{
		"error":  func(context.Context) error { return errors.New("no wire") },
		"ended":  func(context.Context) error { return nil },
		"panic":  func(context.Context) error { panic("broken") },
		"caused": func(context.Context) error { return context.DeadlineExceeded },
	} {
		t.Run(name, func(t *testing.T) {
			g := New(quiet)
			g.Start("bus", run)
			if err := <-g.Failed(); !strings.HasPrefix(err.Error(), "bus: ") {
				t.Errorf("failure %v does not name its part", err)
			}
			if err := g.Stop(10 * time.Second); err != nil {
				t.Error(err)
			}
		})
	}
}
