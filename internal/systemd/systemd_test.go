package systemd

import (
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

func TestNotifyReachesTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)

	n := New(slog.New(slog.NewTextHandler(io.Discard, nil)))
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() { n.Ready("2 buses\nREADY=0") }, "READY=1\nSTATUS=2 buses READY=0"},
		{func() { n.Status("cloud: Connected") }, "STATUS=cloud: Connected"},
		{n.Stopping, "STOPPING=1"},
	} {
		step.do()
		buf := make([]byte, 256)
		m, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(buf[:m]); got != step.want {
			t.Errorf("sent %q, want %q", got, step.want)
		}
	}
}

func TestOutsideSystemdNothingHappens(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	New(slog.New(slog.NewTextHandler(io.Discard, nil))).Ready("fine")
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
