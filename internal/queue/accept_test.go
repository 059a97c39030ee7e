package queue

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/flash"
	"fieldgate/internal/mqtt"
)

func accept(t testing.TB, q *Queue, m mqtt.Message, patience time.Duration) <-chan struct{} {
	t.Helper()
	safe, err := q.Accept(m, patience, nil)
	if err != nil {
		t.Fatalf("Accept = %v", err)
	}
	return safe
}

func isSafe(safe <-chan struct{}) bool {
	select {
	case <-safe:
		return true
	default:
		return false
	}
}

func awaitSafe(t testing.TB, safe <-chan struct{}) {
	t.Helper()
	select {
	case <-safe:
	case <-time.After(30 * time.Second):
		t.Fatal("never safe")
	}
}

// What is acknowledged in time is safe without a byte written.
func TestAcceptAcknowledged(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir(), config.Queue{Commit: time.Minute})
	for i := range 100 {
		safe := accept(t, r.Queue, msg(i), time.Minute)
		if isSafe(safe) {
			t.Fatal("safe at once")
		}
		entries, err := r.Next(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		if isSafe(safe) {
			t.Fatal("safe when handed out")
		}
		done(t, r.Queue, entries[0].Seq)
		if !isSafe(safe) {
			t.Fatal("acknowledged and not safe")
		}
	}
	if s := r.Stats(); s.Flash.Total != (flash.Figures{}) {
		t.Errorf("stats %+v", s)
	}
}

// What is not acknowledged in time goes to the file, many in one transaction.
func TestAcceptToFile(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir(), config.Queue{Commit: time.Hour})
	awaitSafe(t, accept(t, r.Queue, msg(0), 0)) // the file is there
	before := r.Stats().Flash.Total.Syncs
	const n = 1000
	var all []<-chan struct{}
	for i := range n {
		all = append(all, accept(t, r.Queue, msg(1+i), 50*time.Millisecond))
	}
	for _, safe := range all {
		awaitSafe(t, safe)
	}
	if s := r.Stats(); s.Flash.Total.Syncs-before > n/10 {
		t.Errorf("%d syncs for %d messages", s.Flash.Total.Syncs-before, n)
	}
	cut := start(t, r.snapshot(), config.Queue{Commit: time.Hour})
	if got := cut.all(n + 1); got[n] != string(msg(n).Payload) {
		t.Errorf("the last is %s", got[n])
	}
}

// A message with patience is made safe along with one without.
func TestAcceptTogether(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir(), config.Queue{Commit: time.Hour})
	patient := accept(t, r.Queue, msg(0), time.Hour)
	awaitSafe(t, accept(t, r.Queue, msg(1), 0))
	awaitSafe(t, patient)
}

func TestAcceptRefuses(t *testing.T) {
	t.Parallel()
	m := msg(0)
	r := start(t, t.TempDir(), config.Queue{Commit: time.Hour, MaxBytes: size(m), DropNewest: true})
	if safe := accept(t, r.Queue, m, -1); safe != nil {
		t.Error("a promise nobody wants")
	}
	r.sync()
	done(t, r.Queue, next(t, r.Queue, 1)...)
	first := accept(t, r.Queue, m, time.Hour)
	if _, err := r.Accept(msg(1), 0, nil); !errors.Is(err, ErrFull) {
		t.Errorf("Accept = %v", err)
	}
	if _, err := r.Accept(mqtt.Message{Topic: "a/+"}, 0, nil); !errors.Is(err, mqtt.ErrInvalid) {
		t.Errorf("Accept = %v", err)
	}
	if isSafe(first) {
		t.Error("safe")
	}
	r.end()
	awaitSafe(t, first) // the end wrote it
	if _, err := r.Accept(m, 0, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Accept = %v", err)
	}
}

// What is given up before it is safe, because newer messages took its room, is
// never called safe; who waits is told.
func TestAcceptLost(t *testing.T) {
	t.Parallel()
	const n, room = 9, 2
	r := start(t, t.TempDir(), config.Queue{Commit: time.Hour, MaxBytes: room * size(msg(0))})
	lost := make(chan int, n)
	var all []<-chan struct{}
	for i := range n {
		safe, err := r.Accept(msg(i), time.Hour, func() { lost <- i })
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, safe)
	}
	told := make(map[int]bool)
	for range n - room {
		told[<-lost] = true
	}
	r.sync()
	for i, safe := range all {
		if is := i >= n-room; isSafe(safe) != is || told[i] == is {
			t.Errorf("message %d: safe %t, lost %t", i, isSafe(safe), told[i])
		}
	}
	accept(t, r.Queue, msg(n), 0) // the oldest goes, which is in the file
	r.sync()
	if len(lost) > 0 {
		t.Errorf("message %d was safe, and is called lost", <-lost)
	}
}

// Without a file that takes anything, only the acknowledgement makes safe.
func TestAcceptWithoutFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", filepath.Join(file, "no folder")} {
		t.Run(fmt.Sprintf("memory only %t", dir == ""), func(t *testing.T) {
			r := start(t, dir, config.Queue{Commit: time.Millisecond})
			safe := accept(t, r.Queue, msg(0), 0)
			time.Sleep(20 * time.Millisecond) // some of Run's looks
			if isSafe(safe) {
				t.Error("safe in memory")
			}
			entries, err := r.Next(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			done(t, r.Queue, entries[0].Seq)
			awaitSafe(t, safe)
		})
	}
}

// Messages that came before Run had read the file wait for their own.
func TestAcceptBeforeRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := start(t, dir, config.Queue{Commit: time.Hour})
	for i := range 5 {
		deliver(t, r.Queue, msg(i))
	}
	r.end()
	q, err := Open(dir, "cloud", config.Queue{Commit: time.Hour}, r.Queue.log)
	if err != nil {
		t.Fatal(err)
	}
	safe := accept(t, q, msg(5), time.Hour)
	q.index()
	defer func() { _ = q.Close() }()
	for i := range 6 {
		if isSafe(safe) {
			t.Fatalf("safe after %d", i)
		}
		done(t, q, next(t, q, 1)...)
	}
	awaitSafe(t, safe)
}
