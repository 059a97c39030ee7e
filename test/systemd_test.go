package test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A service manager is told that the gateway runs and, again and again, that it
// moves. When the watchdog ends it (SIGABRT), that is no exit with code 2, which
// means a bad configuration and keeps the unit from being started again.
func TestWatchdog(t *testing.T) {
	dir := t.TempDir()
	socket, path := filepath.Join(dir, "notify"), filepath.Join(dir, "fieldgate.yaml")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	yaml := fmt.Sprintf("buses: { gone: { tcp: \"127.0.0.1:%d\" } }\ndevices: { d: { bus: gone, points: { x: { at: holding 0 } } } }\nweb: false\n", freePort(t))
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startIn(t, []string{"NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=600000"}, binary, "-c", path, "run", "--data", dir)
	heard := func(want string) string {
		t.Helper()
		if err := manager.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		for {
			buf := make([]byte, 1024)
			n, err := manager.Read(buf)
			if err != nil {
				t.Fatalf("%s: %v", want, err)
			}
			if text := string(buf[:n]); strings.HasPrefix(text, want) {
				return text
			}
		}
	}
	heard("READY=1\nSTATUS=")
	for range 3 {
		if got := heard("WATCHDOG=1\n"); !strings.Contains(got, "\nSTATUS=") || !strings.HasSuffix(got, "/1 buses, 0/1 devices, 0/0 uplinks") {
			t.Errorf("told %q", got)
		}
	}
	if err := p.cmd.Process.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatal("it goes on after SIGABRT")
	}
	if how := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !how.Signaled() || how.Signal() != syscall.SIGABRT {
		t.Errorf("it ended with %v, want a signal", p.cmd.ProcessState)
	}
	p.log.waitFor(t, "goroutine ") // what hung is in the journal
}
