package queue

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
)

// Of TestCommitInterval: a message each step, and a beat.
const (
	intervalCommit = 600 * time.Millisecond
	intervalStep   = 5 * time.Millisecond
)

// TestCommitInterval kills a process at random moments and compares when each
// message entered the queue with what is in the file: none that entered longer
// than the commit interval before the kill may be missing, on a disk that takes no
// time and on one that takes a quarter of the interval for a commit. The only
// allowance is for how long the process itself was not run by the machine, which
// its beats show, and for what the slow disk took beyond what it was told to. The
// slow disk has made the file before, which takes many more syncs.
func TestCommitInterval(t *testing.T) {
	if dir := os.Getenv("FIELDGATE_TEST_QUEUE"); dir != "" {
		enters(dir)
		return
	}
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 11))
	for _, disk := range []struct {
		name string
		sync time.Duration // there are two in a commit
	}{{"quick", 0}, {"slow", intervalCommit / 8}} {
		t.Run(disk.name, func(t *testing.T) {
			var most, stalled, slower time.Duration
			for range many(2, 40) {
				dir, remove := memoryDir(t)
				age, stall, beyond := intervalKilled(t, dir, disk.sync, time.Duration(rnd.IntN(1200))*time.Millisecond)
				most, stalled, slower = max(most, age), max(stalled, stall), max(slower, beyond)
				// It was not run when it was to look, and when the disk had answered.
				if limit := intervalCommit + 2*stall + 2*beyond; age > limit {
					t.Errorf("a message that entered %v before the kill is lost, want at most %v", age, limit)
				}
				remove()
			}
			t.Logf("lost at most what entered %v before the kill; the process stood still for %v at most, a sync took %v too long at most", most, stalled, slower)
		})
	}
}

// intervalKilled kills a process that has been up for some time and returns how
// long before that the oldest message entered that is lost, for how long the
// process was not run, and by how much the longest sync exceeded sync.
func intervalKilled(t *testing.T, dir string, sync, up time.Duration) (age, stall, beyond time.Duration) {
	t.Helper()
	args := []string{os.Args[0], "-test.run=^TestCommitInterval$"}
	if sync > 0 {
		args = append([]string{"strace", "-f", "-qq", "--seccomp-bpf", "-e", "signal=none", "-o", "/dev/null",
			"-e", "trace=fsync,fdatasync", "-e", fmt.Sprintf("inject=fsync,fdatasync:delay_exit=%d", sync.Microseconds())}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "FIELDGATE_TEST_QUEUE="+dir, "FIELDGATE_TEST_SLOW="+strconv.FormatBool(sync > 0))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", args[0], err)
	}
	var entered []time.Time // by number
	var last time.Time
	kill := make(chan time.Time, 1)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		word, number, _ := strings.Cut(lines.Text(), " ")
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			continue
		}
		switch at := time.Unix(0, n); word {
		case "pid":
			time.AfterFunc(2*intervalCommit+up, func() { // ends with it
				kill <- time.Now()
				_ = syscall.Kill(int(n), syscall.SIGKILL)
			})
		case "synced":
			beyond = max(beyond, time.Duration(n)-sync)
		case "entered":
			entered = append(entered, at)
			if !last.IsZero() {
				stall = max(stall, at.Sub(last)-intervalStep)
			}
			last = at
		}
	}
	err = cmd.Wait()
	var killed time.Time
	select {
	case killed = <-kill:
	default:
		t.Skipf("strace may not trace here: %v", err)
	}
	stall = max(stall, killed.Sub(last)-intervalStep)
	got, s := contentsOf(t, dir)
	if s.Damaged > 0 {
		t.Fatalf("%d damaged", s.Damaged)
	}
	for i, p := range got {
		if p != strconv.Itoa(i) {
			t.Fatalf("message %d is %q", i, p)
		}
	}
	if len(got) < len(entered) {
		age = killed.Sub(entered[len(got)])
	}
	return age, stall, beyond
}

// enters is the process that TestCommitInterval kills.
func enters(dir string) {
	q, err := Open(dir, "cloud", config.Queue{Commit: intervalCommit}, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	go func() { _ = q.Run(context.Background()) }() // ends with the process
	for i := 0; ; i++ {
		_ = q.Deliver(context.Background(), mqtt.Message{Topic: "t", Payload: []byte(strconv.Itoa(i))})
		if i == 0 {
			if os.Getenv("FIELDGATE_TEST_SLOW") == "true" {
				_ = q.Sync(context.Background())
				go syncs(dir) // ends with the process
			}
			fmt.Printf("pid %d\n", os.Getpid())
		}
		fmt.Printf("entered %d\n", time.Now().UnixNano())
		time.Sleep(intervalStep)
	}
}

// syncs says how long the disk takes for a sync.
func syncs(dir string) {
	f, err := os.Create(filepath.Join(dir, "scratch"))
	if err != nil {
		panic(err)
	}
	for {
		began := time.Now()
		if err := f.Sync(); err != nil {
			panic(err)
		}
		fmt.Printf("synced %d\n", time.Since(began))
		time.Sleep(intervalStep)
	}
}
