package queue

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/internal/config"
	"fieldgate/internal/flash"
	"fieldgate/internal/mqtt"
	"fieldgate/test/smalldisk"
)

// -long runs what make soak runs: as many crashes as the figures ask for.
var long = flag.Bool("long", false, "run the long form of the crash tests")

// many returns short, or most with -long.
func many(short, most int) int {
	if *long {
		return most
	}
	return short
}

// memoryDir returns a folder in memory, where a sync takes no time; it is for tests
// in which the disk is played.
func memoryDir(t testing.TB) (dir string, remove func()) {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "fieldgate-queue-")
	if err != nil {
		dir = t.TempDir()
	}
	remove = func() { _ = os.RemoveAll(dir) }
	t.Cleanup(remove)
	return dir, remove
}

// contents opens a queue on a file with these bytes and returns what it hands
// out, and what became of the file. It fails the test if that takes more than
// the five seconds in which a gateway must be up.
func contents(t *testing.T, dir string, image []byte) (got []string, s Stats) {
	t.Helper()
	path := filepath.Join(dir, "queue-cloud.db")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(path + ".damaged")
	return contentsOf(t, dir)
}

// contentsOf is contents for a folder as it is.
func contentsOf(t *testing.T, dir string) (got []string, s Stats) {
	t.Helper()
	q, err := Open(dir, "cloud", config.Queue{Commit: time.Hour}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var still time.Duration // in which the machine did other things
	wg.Go(func() {          // ends with ctx
		const nap = 2 * time.Millisecond
		for ctx.Err() == nil {
			at := time.Now()
			time.Sleep(nap)
			still += time.Since(at) - nap
		}
	})
	wg.Go(func() { _ = q.Run(ctx) })
	deliver(t, q, mqtt.Message{Topic: "end", Payload: []byte("end")}) // comes last, and is always taken
	for len(got) == 0 || got[len(got)-1] != "end" {
		entries, err := q.Next(t.Context(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			got = append(got, string(e.Payload))
			done(t, q, e.Seq)
		}
	}
	up := time.Since(begin)
	s = q.Stats()
	cancel()
	wg.Wait()
	if up-still > 5*time.Second {
		t.Errorf("up after %v, of which the machine stood still for %v", up, still)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	return got[:len(got)-1], s
}

// image returns the bytes of a file with messages 0 to n-1.
func image(t *testing.T, n int) []byte {
	t.Helper()
	r := start(t, t.TempDir(), config.Queue{Commit: time.Hour})
	for i := range n {
		deliver(t, r.Queue, bulky(i, 64))
		if i%100 == 99 {
			r.sync()
		}
	}
	r.sync()
	data, err := os.ReadFile(r.file())
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// ascending checks that got are numbers that rise.
func ascending(t *testing.T, what string, got []string) {
	t.Helper()
	last := -1
	for _, p := range got {
		i, err := strconv.Atoi(p)
		if err != nil || i <= last {
			t.Fatalf("%s: %q after %d", what, p, last)
		}
		last = i
	}
}

// TestDamagedFile opens files that were cut, overwritten and turned to noise:
// never a panic, never a wrong message, and the queue works.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 3))
	const n = 1000
	whole := image(t, n)
	dir, _ := memoryDir(t)
	if got, _ := contents(t, dir, whole); len(got) != n {
		t.Fatalf("%d messages in the whole file, want %d", len(got), n)
	}
	t.Run("cut", func(t *testing.T) {
		sizes := []int{0, 1, 16, 80, 4095, 4096, 4097, 8191, 8192, 8193, 12288, 16383, 16384, 16385, 20480, len(whole) - 1, len(whole) - 4096}
		for range many(50, 500) {
			sizes = append(sizes, r.IntN(len(whole)))
		}
		for _, size := range sizes {
			got, _ := contents(t, dir, whole[:size])
			ascending(t, fmt.Sprintf("cut to %d bytes", size), got)
			if aside, err := os.ReadFile(filepath.Join(dir, "queue-cloud.db.damaged")); len(got) < n && (err != nil || len(aside) != size) {
				t.Errorf("cut to %d bytes: the file was not put aside: %v", size, err)
			}
		}
	})
	t.Run("overwritten", func(t *testing.T) {
		lost, aside := 0, 0
		for range many(150, 1500) {
			bad := bytes.Clone(whole)
			for range 1 + r.IntN(3) {
				at := r.IntN(len(bad))
				length := min(1+r.IntN(1<<r.IntN(14)), len(bad)-at)
				for i := range length {
					switch r.IntN(3) {
					case 0:
						bad[at+i] = 0
					default:
						bad[at+i] = byte(r.Uint32())
					}
				}
			}
			got, s := contents(t, dir, bad)
			ascending(t, "overwritten", got)
			switch {
			case len(got) == 0:
				aside++
			case len(got) < n:
				lost++
				// With the newest meta page gone the commit before it is what
				// there is.
				if last, _ := strconv.Atoi(got[len(got)-1]); s.Damaged == 0 && last != len(got)-1 {
					t.Errorf("%d of %d messages and none counted as damaged", len(got), n)
				}
			}
		}
		t.Logf("%d files put aside, %d with some messages lost", aside, lost)
	})
	t.Run("noise", func(t *testing.T) {
		for range many(20, 200) {
			bad := make([]byte, r.IntN(1<<r.IntN(18)))
			for i := range bad {
				bad[i] = byte(r.Uint32())
			}
			if got, _ := contents(t, dir, bad); len(got) != 0 {
				t.Errorf("messages out of noise: %q", got)
			}
		}
	})
	t.Run("a folder", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "queue-cloud.db"), 0o700); err != nil {
			t.Fatal(err)
		}
		q := start(t, dir, config.Queue{Commit: time.Hour})
		deliver(t, q.Queue, msg(0))
		q.sync()
		numbered(t, q.all(1), 0)
	})
}

// TestDamageWhileRunning overwrites pages of the file under a queue that has
// most of its messages only there.
func TestDamageWhileRunning(t *testing.T) {
	t.Parallel()
	r := startWith(t, t.TempDir(), config.Queue{Commit: time.Hour}, small())
	const n = 20_000
	for i := range n {
		deliver(t, r.Queue, msg(i))
		if i%1000 == 999 {
			r.sync()
		}
	}
	f, err := os.OpenFile(r.file(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(5 * 4096); at+4096 < info.Size(); at += 4096 {
		if _, err := f.WriteAt(make([]byte, 2048), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	deliver(t, r.Queue, mqtt.Message{Topic: "t", Payload: []byte("999999")})
	var got []string
	for len(got) == 0 || got[len(got)-1] != "999999" {
		got = append(got, r.all(1)...)
	}
	ascending(t, "damaged", got)
	eventually(t, "counted", func() bool { return r.Stats().Messages == 0 })
	s := r.Stats()
	if s.Damaged == 0 || int(s.Damaged)+len(got) != n+1 || s.Messages != 0 || s.Bytes != 0 {
		t.Errorf("%d messages came, Stats %+v; want the others counted as damaged", len(got), s)
	}
	deliver(t, r.Queue, msg(1))
	r.sync() // there is a new file
	if !strings.Contains(r.log.String(), "put aside") {
		t.Errorf("log:\n%s", r.log)
	}
}

// TestCrashImages rebuilds, for commit after commit, what a power cut at any
// moment of it may leave: pages are written in any order, and half, before the
// sync; then the meta page. Every image must hold what was committed before,
// or after it.
func TestCrashImages(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 4))
	dir, _ := memoryDir(t)
	q := startWith(t, dir, config.Queue{Commit: time.Hour}, small())
	dir, _ = memoryDir(t)
	read := func() []byte {
		data, err := os.ReadFile(q.file())
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	sent, images := 0, 0
	step := func() {
		for range 1 + rnd.IntN(300) {
			deliver(t, q.Queue, bulky(sent, 40))
			sent++
		}
		if images > 0 && rnd.IntN(3) > 0 {
			done(t, q.Queue, next(t, q.Queue, rnd.IntN(250))...)
		}
		q.persist(true) // in the one transaction that Run would make
	}
	q.stop()
	step()
	before := read()
	wantBefore, _ := contents(t, dir, before)
	for images < many(250, 2500) {
		step()
		after := read()
		wantAfter, _ := contents(t, dir, after)
		const page = 4096
		var data, meta []int
		for at := 0; at < len(after); at += page {
			if at < len(before) && bytes.Equal(before[at:at+page], after[at:at+page]) {
				continue
			}
			if at < 2*page {
				meta = append(meta, at)
			} else {
				data = append(data, at)
			}
		}
		if len(wantBefore)+len(wantAfter) == 0 && bytes.Equal(before, after) {
			continue // all that came was done at once: there was nothing to write
		}
		if len(meta) != 1 {
			t.Fatalf("%d meta pages changed in one commit", len(meta))
		}
		try := func(name string, image []byte, wants ...[]string) {
			t.Helper()
			images++
			got, s := contents(t, dir, image)
			for _, want := range wants {
				if slices.Equal(got, want) && s.Damaged == 0 {
					return
				}
			}
			t.Fatalf("%s: %d messages, %d damaged; want %d or %d", name, len(got), s.Damaged, len(wantBefore), len(wantAfter))
		}
		grown := func() []byte { // the size is set, and synced, before anything is written
			image := make([]byte, len(after))
			copy(image, before)
			return image
		}
		write := func(image []byte, at, length int) { copy(image[at:at+length], after[at:]) }
		try("nothing written", before, wantBefore)
		for range 4 {
			image := grown()
			stop := rnd.IntN(len(data) + 1)
			for _, at := range data[:stop] {
				write(image, at, page)
			}
			if stop < len(data) {
				write(image, data[stop], rnd.IntN(page))
			}
			try("a prefix, the last one torn", image, wantBefore)
		}
		for range 4 {
			image := grown()
			for _, at := range data {
				switch rnd.IntN(3) {
				case 0:
					write(image, at, page)
				case 1:
					write(image, at, 512*rnd.IntN(8))
				}
			}
			try("some of it, torn", image, wantBefore)
		}
		for _, length := range []int{0, 8, 16, 24, 40, 56, 64, 72, 79, 80, 512, page} {
			image := grown()
			for _, at := range data {
				write(image, at, page)
			}
			write(image, meta[0], length)
			try(fmt.Sprintf("%d bytes of the meta page", length), image, wantBefore, wantAfter)
		}
		before, wantBefore = after, wantAfter
	}
	t.Logf("%d images", images)
}

// TestKilled kills a process that delivers and syncs, at random moments, its
// file being made included. What Sync promised must be there, in order.
func TestKilled(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv("FIELDGATE_TEST_QUEUE"); dir != "" {
		killed(dir)
		return
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 5))
	dir := t.TempDir()
	look, _ := memoryDir(t)
	synced, doneBelow := 0, 0 // over all rounds, in the same file
	for round := range many(12, 200) {
		from := (round + 1) * 1_000_000
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "FIELDGATE_TEST_QUEUE="+dir, fmt.Sprintf("FIELDGATE_TEST_FROM=%d", from))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(rnd.IntN(120))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			word, number, _ := strings.Cut(lines.Text(), " ")
			i, err := strconv.Atoi(number)
			if err != nil {
				continue
			}
			switch word {
			case "synced":
				synced = i
			case "done":
				doneBelow = i + 1
			}
		}
		_ = cmd.Wait()
		timer.Stop()
		data, err := os.ReadFile(filepath.Join(dir, "queue-cloud.db"))
		if errors.Is(err, os.ErrNotExist) {
			if synced >= max(from, doneBelow) {
				t.Fatalf("message %d was synced, and there is no file", synced)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		got, s := contents(t, look, data)
		ascending(t, "after a kill", got)
		if s.Damaged > 0 {
			t.Fatalf("%d damaged", s.Damaged)
		}
		have := map[string]bool{}
		for _, p := range got {
			have[p] = true
		}
		for i := max(from, doneBelow); i <= synced; i++ {
			if !have[fmt.Sprint(i)] {
				t.Fatalf("message %d was synced and is lost; from %d, done below %d, %d in the file", i, from, doneBelow, len(got))
			}
		}
	}
}

// killed is the process that TestKilled kills.
func killed(dir string) {
	q, err := Open(dir, "cloud", config.Queue{Commit: 5 * time.Millisecond}, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	q.bounds = bounds{most: 400_000, keep: 30_000, full: 20_000}
	go func() { _ = q.Run(context.Background()) }() // ends with the process
	from, _ := strconv.Atoi(os.Getenv("FIELDGATE_TEST_FROM"))
	go func() { // ends with the process
		for {
			entries, err := q.Next(context.Background(), 7)
			if err != nil {
				return
			}
			time.Sleep(3 * time.Millisecond)
			for _, e := range entries {
				fmt.Printf("done %s\n", e.Payload) // about to be: it may be gone
				_ = q.Done(e.Seq)
			}
		}
	}()
	for i := from; ; i++ {
		_ = q.Deliver(context.Background(), bulky(i, 40))
		if i%20 == 0 {
			if err := q.Sync(context.Background()); err == nil {
				fmt.Printf("synced %d\n", i)
			}
		}
	}
}

// TestDiskFull fills the file system: the oldest go, new ones are kept, and
// once there is space again all is well.
func TestDiskFull(t *testing.T) {
	smalldisk.Run(t, 1<<20, func(t *testing.T, dir string) {
		b := small()
		b.pause = 10 * time.Millisecond
		r := startWith(t, dir, config.Queue{Commit: 5 * time.Millisecond}, b)
		const n = 60_000 // 3 MB
		for i := range n {
			deliver(t, r.Queue, bulky(i, 80))
			if i%500 == 0 {
				time.Sleep(2 * time.Millisecond)
			}
		}
		s := r.Stats()
		if s.Dropped == 0 || s.Memory > small().most+chunkBytes || s.Messages+int(s.Dropped) != n {
			t.Errorf("Stats = %+v", s)
		}
		var got []string
		for r.Stats().Messages > 0 {
			got = append(got, r.all(1)...)
		}
		ascending(t, "full disk", got)
		if got[len(got)-1] != fmt.Sprint(n-1) || len(got)+int(r.Stats().Dropped+r.Stats().Damaged) != n {
			t.Errorf("%d messages, the last %s; Stats %+v", len(got), got[len(got)-1], r.Stats())
		}
	})
}

// TestReadOnly starts on a file system that is read-only, as a failing card
// becomes, and later is not: messages flow, from the file and from memory.
func TestReadOnly(t *testing.T) {
	smalldisk.Run(t, 16<<20, func(t *testing.T, dir string) {
		cfg, b := config.Queue{Commit: 5 * time.Millisecond}, small()
		b.pause = 10 * time.Millisecond
		r := startWith(t, dir, cfg, b)
		const n = 10_000
		for i := range n {
			deliver(t, r.Queue, msg(i))
			if i%500 == 499 {
				r.sync()
			}
		}
		r.end()
		remount(t, dir, unix.MS_RDONLY)
		r = startWith(t, dir, cfg, b)
		for i := range 100 {
			deliver(t, r.Queue, msg(n+i))
		}
		eventually(t, "noticed", func() bool { return strings.Contains(r.Stats().Fault, "read-only file system") })
		if err := r.Sync(t.Context()); !errors.Is(err, ErrNotSafe) {
			t.Errorf("Sync = %v", err)
		}
		numbered(t, r.all(n+50), 0)
		remount(t, dir, 0)
		eventually(t, "written again", func() bool { return r.Sync(t.Context()) == nil })
		r.end()
		r.fileEvents(1, 1)
		r = startWith(t, dir, cfg, b)
		numbered(t, r.all(50), n+50)
	})
}

// remount changes the flags of the file system on dir.
func remount(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
		t.Fatal(err)
	}
}

// fileEvents checks how often it was said, in the log and as an event, that the
// file takes nothing, and that it takes messages again.
func (r *running) fileEvents(fails, works int) {
	r.t.Helper()
	log := r.log.String()
	for text, want := range map[string]int{
		"takes nothing": fails, "event queue_file over=false": fails,
		"takes messages again": works, "event queue_file over=true": works,
	} {
		if got := strings.Count(log, text); got != want {
			r.t.Errorf("%q %d times, want %d; log:\n%s", text, got, want, log)
		}
	}
}

// TestReadOnlyFromTheStart has no file, and a folder in which none can be made: that
// is told once, and not taken back before one is made, with messages waiting or
// without.
func TestReadOnlyFromTheStart(t *testing.T) {
	for _, waiting := range []bool{true, false} {
		t.Run(fmt.Sprintf("messages wait %t", waiting), func(t *testing.T) {
			smalldisk.Run(t, 16<<20, func(t *testing.T, dir string) {
				cfg, b := config.Queue{Commit: 5 * time.Millisecond}, small()
				b.pause = 10 * time.Millisecond
				remount(t, dir, unix.MS_RDONLY)
				r := startWith(t, dir, cfg, b)
				for i := range 10 {
					deliver(t, r.Queue, msg(i))
				}
				eventually(t, "noticed", func() bool { return strings.Contains(r.Stats().Fault, "read-only file system") })
				if !waiting {
					numbered(t, r.all(10), 0)
				}
				for range 50 { // tries, and more messages
					if err := r.Sync(t.Context()); !errors.Is(err, ErrNotSafe) || r.Stats().Fault == "" {
						t.Fatalf("Sync = %v, Fault %q", err, r.Stats().Fault)
					}
					time.Sleep(10 * time.Millisecond)
				}
				r.fileEvents(1, 0)
				if s := r.Stats(); s.Flash.Total != (flash.Figures{}) {
					t.Errorf("Stats = %+v, want nothing written", s)
				}
				remount(t, dir, 0)
				eventually(t, "works", func() bool { return r.Stats().Fault == "" })
				r.fileEvents(1, 1)
				deliver(t, r.Queue, msg(10))
				r.sync()
				if waiting {
					numbered(t, start(t, r.snapshot(), cfg).all(11), 0)
				} else {
					numbered(t, start(t, r.snapshot(), cfg).all(1), 10)
				}
				r.fileEvents(1, 1)
				written := r.Stats().Flash.Total
				time.Sleep(2 * lookEvery)
				if now := r.Stats().Flash.Total; now != written {
					t.Errorf("%+v written, then %+v, with nothing to write", written, now)
				}
			})
		})
	}
}

// TestFullIsTold fills the disk under a queue whose messages are all gone by the
// next try: it takes messages again only when there is room for some.
func TestFullIsTold(t *testing.T) {
	smalldisk.Run(t, 1<<20, func(t *testing.T, dir string) {
		b := small()
		b.pause = 10 * time.Millisecond
		r := startWith(t, dir, config.Queue{Commit: 5 * time.Millisecond}, b)
		deliver(t, r.Queue, msg(0))
		r.sync()
		numbered(t, r.all(1), 0)
		ballast := filepath.Join(dir, "ballast")
		if err := os.WriteFile(ballast, make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("fill the disk: %v", err)
		}
		for i := range 20 {
			deliver(t, r.Queue, mqtt.Message{Topic: "t", Payload: []byte(noise(i, 20_000))})
		}
		eventually(t, "noticed", func() bool { return strings.Contains(r.Stats().Fault, "no space left") })
		for r.Stats().Messages > 0 {
			done(t, r.Queue, next(t, r.Queue, 1)...)
		}
		time.Sleep(500 * time.Millisecond) // some tries
		r.fileEvents(1, 0)
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		eventually(t, "works", func() bool { return r.Stats().Fault == "" })
		r.fileEvents(1, 1)
	})
}

// TestDamagedAndReadOnly has a damaged file that cannot be put aside: messages flow,
// and it is put aside once it can be.
func TestDamagedAndReadOnly(t *testing.T) {
	smalldisk.Run(t, 16<<20, func(t *testing.T, dir string) {
		cfg, b := config.Queue{Commit: 5 * time.Millisecond}, small()
		b.pause = 10 * time.Millisecond
		if err := os.WriteFile(filepath.Join(dir, "queue-cloud.db"), make([]byte, 20_000), 0o600); err != nil {
			t.Fatal(err)
		}
		remount(t, dir, unix.MS_RDONLY)
		r := startWith(t, dir, cfg, b)
		deliver(t, r.Queue, msg(0), msg(1))
		numbered(t, r.all(1), 0)
		eventually(t, "noticed", func() bool { return strings.Contains(r.Stats().Fault, "put aside") })
		remount(t, dir, 0)
		eventually(t, "written again", func() bool { return r.Sync(t.Context()) == nil })
		r.fileEvents(1, 1)
		if log := r.log.String(); strings.Count(log, "event queue_put_aside") != 1 {
			t.Errorf("log:\n%s", log)
		}
		numbered(t, start(t, r.snapshot(), cfg).all(1), 1)
	})
}

// TestLocked has another process use the file at the start.
func TestLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := start(t, dir, config.Queue{Commit: soon})
	deliver(t, r.Queue, msg(0))
	r.end()
	var l flash.Ledger
	other, err := openFile(r.file(), &l, func(uint64, []byte, bool) {})
	if err != nil {
		t.Fatal(err)
	}
	r = start(t, dir, config.Queue{Commit: soon})
	deliver(t, r.Queue, msg(1)) // does not wait
	other.close()
	numbered(t, r.all(2), 0)
}

// TestLockedForLong has another process use the file for longer than the start
// waits: messages flow without it, and what is in it comes in once it is free.
func TestLockedForLong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := usual()
	b.pause = 10 * time.Millisecond
	r := startWith(t, dir, config.Queue{Commit: soon}, b)
	for i := range 100 {
		deliver(t, r.Queue, msg(i))
	}
	r.end()
	other, err := openFile(r.file(), new(flash.Ledger), func(uint64, []byte, bool) {})
	if err != nil {
		t.Fatal(err)
	}
	r = startWith(t, dir, config.Queue{Commit: soon}, b)
	for i := range 3 {
		deliver(t, r.Queue, msg(1000+i))
	}
	numbered(t, r.all(2), 1000) // sent, and one waits
	if err := r.Sync(t.Context()); !errors.Is(err, ErrNotSafe) || !strings.Contains(r.Stats().Fault, "another process uses it") {
		t.Errorf("Sync = %v, Stats = %+v", err, r.Stats())
	}
	other.close()
	eventually(t, "read", func() bool { return r.Stats().Found == 100 })
	numbered(t, r.all(100), 0)
	eventually(t, "written", func() bool { return r.Sync(t.Context()) == nil })
	r.fileEvents(1, 1)
	if s := r.Stats(); s.Messages != 1 || s.Fault != "" {
		t.Errorf("Stats = %+v", s)
	}
	r.end()
	r = startWith(t, dir, config.Queue{Commit: soon}, b)
	deliver(t, r.Queue, msg(1003))
	numbered(t, r.all(2), 1002)
}
