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
		var parts []*Part
		for _, name := range []string{"uplink", "publish", "bus"} {
			parts = append(parts, NewPart(name, func(ctx context.Context) error {
				<-ctx.Done()
				note(name + " told")
				time.Sleep(time.Second)
				note(name + " gone")
				return nil
			}))
		}
		g.Start(parts...)
		if err := g.Stop(t.Context(), 10*time.Second); err != nil {
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
		g.Start(
			NewPart("queue", func(ctx context.Context) error { <-ctx.Done(); stopped = true; return nil }),
			NewPart("line", func(context.Context) error { <-free; return nil }),
		)
		err := g.Stop(t.Context(), 2*time.Second)
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
			g.Start(NewPart("bus", run))
			if err := <-g.Failed(); !strings.HasPrefix(err.Error(), "bus: ") {
				t.Errorf("failure %v does not name its part", err)
			}
			if err := g.Stop(t.Context(), 10*time.Second); err != nil {
				t.Error(err)
			}
		})
	}
}

// Parts that stay run on while others are replaced, and all are stopped in the
// order of the newest list.
func TestReplacesPartsWhileOthersRun(t *testing.T) {
	var mu sync.Mutex
	var got []string
	note := func(s string) { mu.Lock(); got = append(got, s); mu.Unlock() }
	made := func(name string) *Part {
		return NewPart(name, func(ctx context.Context) error {
			<-ctx.Done()
			note(name)
			return nil
		})
	}
	g := New(quiet)
	uplink, publish, bus := made("uplink"), made("publish"), made("bus")
	g.Start(uplink, publish, bus)
	other := made("other uplink")
	if err := g.Stop(t.Context(), time.Minute, other, publish, bus); err != nil {
		t.Fatal(err)
	}
	g.Start(other, publish, bus)
	if err := g.Stop(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if want := []string{"uplink", "bus", "publish", "other uplink"}; !slices.Equal(got, want) {
		t.Errorf("stopped %v, want %v", got, want)
	}
	select {
	case err := <-g.Failed():
		t.Error(err)
	default:
	}
}

// Whoever stops the process does not wait for a reload that takes its time.
func TestHurriesWhenTheContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(quiet)
		g.Start(NewPart("uplink", func(ctx context.Context) error { <-ctx.Done(); time.Sleep(5 * time.Second); return nil }))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := g.Stop(ctx, time.Minute); err == nil || time.Since(start) != time.Second+grace {
			t.Errorf("Stop() = %v after %v", err, time.Since(start))
		}
		time.Sleep(time.Minute)
	})
}
