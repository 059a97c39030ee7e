package systemd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// manager is the socket of a service manager, named in the environment.
func manager(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

// told returns the next thing that the manager was told.
func told(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	buf := make([]byte, 256)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func TestNotifyReachesTheSocket(t *testing.T) {
	conn := manager(t)
	n := New(slog.New(slog.DiscardHandler))
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() { n.Ready("2 buses\nREADY=0") }, "READY=1\nSTATUS=2 buses READY=0"},
		{func() { n.Status("cloud: Connected") }, "STATUS=cloud: Connected"},
		{n.Stopping, "STOPPING=1"},
	} {
		step.do()
		if got := told(t, conn); got != step.want {
			t.Errorf("sent %q, want %q", got, step.want)
		}
	}
}

// What is stuck is not fed, and is said once in the log; what moves again is.
func TestWatchdogIsFedByProgress(t *testing.T) {
	conn := manager(t)
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("WATCHDOG_USEC", "30000")
	var stuck atomic.Bool
	var log strings.Builder
	n := New(slog.New(NewJournalHandler(&log, slog.LevelInfo)))
	ctx, stop := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		n.Watch(ctx, func() error {
			if stuck.Load() {
				return errors.New("bus line1 has not moved for 20s")
			}
			return nil
		}, func() string { return "2/2 buses" })
	})
	const fed = "WATCHDOG=1\nSTATUS=2/2 buses"
	for range 3 {
		if got := told(t, conn); got != fed {
			t.Errorf("told %q, want %q", got, fed)
		}
	}
	stuck.Store(true)
	got := told(t, conn)
	for got == fed { // on its way before
		got = told(t, conn)
	}
	for range 3 {
		if want := "STATUS=stuck: bus line1 has not moved for 20s"; got != want {
			t.Errorf("told %q, want %q", got, want)
		}
		got = told(t, conn)
	}
	stuck.Store(false)
	for got != fed {
		got = told(t, conn)
	}
	stop()
	watching.Wait()
	want := "<3>msg=\"the watchdog is not fed any more\" err=\"bus line1 has not moved for 20s\"\n<6>msg=\"the watchdog is fed again\"\n"
	if log.String() != want {
		t.Errorf("logged\n%swant\n%s", log.String(), want)
	}
}

func TestOutsideSystemdNothingHappens(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	n := New(slog.New(slog.DiscardHandler))
	n.Ready("fine")
	n.Watch(t.Context(), nil, nil) // returns
}

func TestJournalLinesCarryPriority(t *testing.T) {
	var out strings.Builder
	log := slog.New(NewJournalHandler(&out, slog.LevelInfo)).With("bus", "line1")
	log.Debug("not shown")
	log.Info("device back", "unit", 7)
	log.Warn("device lost")
	log.WithGroup("g").Error("queue full", "dropped", 3)
	want := "<6>msg=\"device back\" bus=line1 unit=7\n" +
		"<4>msg=\"device lost\" bus=line1\n" +
		"<3>msg=\"queue full\" bus=line1 g.dropped=3\n"
	if out.String() != want {
		t.Errorf("wrote\n%swant\n%s", out.String(), want)
	}
}
