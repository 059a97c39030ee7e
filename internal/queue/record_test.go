package queue

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
)

// A write recorder: strace writes down every call by which a process of ours
// changes its folder, in order, and what the process says it has promised. From
// that the folder is rebuilt as it was at any moment, or as a power cut at that
// moment may have left it, and a queue is opened on it.

// call is one step of the record.
type call struct {
	kind string // create, write, truncate, sync, rename, remove, sync folder, says
	file int    // which file; it keeps its number when it is renamed
	name string // create, remove: its name; rename: the new one
	old  string // rename
	data []byte // write
	at   int64  // write: where; truncate: to what length
	said string // says: a word and a number
}

// trace runs the test named recorded in a process of its own under strace, and
// returns what that did to dir.
func trace(t *testing.T, dir, recorded string, env ...string) []call {
	t.Helper()
	log := filepath.Join(t.TempDir(), "strace")
	cmd := exec.Command("strace", "-f", "-qq", "-y", "-xx", "-s", "100000000", "--seccomp-bpf", "-e", "signal=none",
		"-e", "trace=openat,pwrite64,write,ftruncate,fdatasync,fsync,renameat,unlinkat", "-o", log,
		os.Args[0], "-test.run=^"+recorded+"$")
	cmd.Env = append(os.Environ(), append(env, "FIELDGATE_TEST_QUEUE="+dir)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		if bytes.Contains(out, []byte("not permitted")) {
			t.Skipf("strace may not trace here: %s", out)
		}
		t.Fatalf("strace (Debian's package strace): %v\n%s", err, out)
	}
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	calls, err := parseCalls(f, dir)
	if err != nil {
		t.Fatal(err)
	}
	return calls
}

var (
	callLine   = regexp.MustCompile(`^(\d+) +(\w+)\((.*?)(?:\) += (-?\d+).*| <unfinished \.\.\.>)$`)
	resumeLine = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>.*\) += (-?\d+)`)
	hexText    = regexp.MustCompile(`"((?:\\x[0-9a-f]{2})*)"`)
	hexFile    = regexp.MustCompile(`^\d+<((?:\\x[0-9a-f]{2})*)>`)
)

// parseCalls reads strace's log. A write counts from its beginning, a sync from
// its end.
func parseCalls(r io.Reader, dir string) (calls []call, err error) {
	lines := bufio.NewReaderSize(r, 1<<20)
	names := make(map[string]int) // of the files there are
	files := 0
	waiting := make(map[string]call) // syncs that have begun, by thread
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return calls, nil
		}
		if err != nil {
			return nil, err
		}
		line = strings.TrimSuffix(line, "\n")
		if m := resumeLine.FindStringSubmatch(line); m != nil {
			if c, ok := waiting[m[1]]; ok && m[3] == "0" {
				calls = append(calls, c)
			}
			delete(waiting, m[1])
			continue
		}
		m := callLine.FindStringSubmatch(line)
		if m == nil || strings.HasPrefix(m[4], "-") {
			continue
		}
		thread, name, args := m[1], m[2], m[3]
		texts := hexText.FindAllStringSubmatch(args, -1)
		path := "" // of the descriptor
		if fd := hexFile.FindStringSubmatch(args); fd != nil {
			path = unhex(fd[1])
		}
		inside, ours := strings.CutPrefix(path, dir+"/")
		var c call
		switch {
		case name == "openat" && strings.Contains(args, "O_CREAT"):
			inside, ours := strings.CutPrefix(unhex(texts[len(texts)-1][1]), dir+"/")
			if _, there := names[inside]; !ours || there {
				continue
			}
			c = call{kind: "create", file: files, name: inside}
			names[inside] = files
			files++
		case name == "renameat":
			from, to := texts[0][1], texts[1][1]
			c = call{kind: "rename", old: filepath.Base(unhex(from)), name: filepath.Base(unhex(to))}
			c.file = names[c.old]
			delete(names, c.old)
			names[c.name] = c.file
		case name == "unlinkat":
			c = call{kind: "remove", name: filepath.Base(unhex(texts[0][1]))}
			c.file = names[c.name]
			delete(names, c.name)
		case name == "write" && strings.HasPrefix(args, "1<"):
			for said := range strings.Lines(unhex(texts[0][1])) {
				calls = append(calls, call{kind: "says", said: strings.TrimSpace(said)})
			}
			continue
		case (name == "fsync" || name == "fdatasync") && path == dir:
			c = call{kind: "sync folder"}
		case !ours:
			continue
		case name == "pwrite64":
			numbers := strings.Split(args, ", ")
			at, err := strconv.ParseInt(numbers[len(numbers)-1], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%.200s: %w", line, err)
			}
			c = call{kind: "write", file: names[inside], data: []byte(unhex(texts[0][1])), at: at}
		case name == "ftruncate":
			_, length, _ := strings.Cut(args, ", ")
			at, err := strconv.ParseInt(length, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%.200s: %w", line, err)
			}
			c = call{kind: "truncate", file: names[inside], at: at}
		case name == "fsync" || name == "fdatasync":
			c = call{kind: "sync", file: names[inside]}
		default:
			return nil, fmt.Errorf("%.200s changes the folder in a way that is not understood", line)
		}
		if m[4] == "" && strings.HasPrefix(c.kind, "sync") {
			waiting[thread] = c
			continue
		}
		calls = append(calls, c)
	}
}

func unhex(s string) string {
	b, err := hex.DecodeString(strings.ReplaceAll(s, `\x`, ""))
	if err != nil {
		return ""
	}
	return string(b)
}

// folder is the contents of a folder: files by number, and their names.
type folder struct {
	data  map[int][]byte
	names map[string]int
}

// do makes a call, or of a write only the first bytes of its data.
func (f *folder) do(c call, bytes int) {
	switch c.kind {
	case "create":
		f.names[c.name] = c.file
	case "rename":
		if n, ok := f.names[c.old]; ok && n == c.file {
			delete(f.names, c.old)
			f.names[c.name] = c.file
		}
	case "remove":
		if n, ok := f.names[c.name]; ok && n == c.file {
			delete(f.names, c.name)
		}
	case "truncate":
		f.grow(c.file, c.at)
		f.data[c.file] = f.data[c.file][:c.at]
	case "write":
		f.grow(c.file, c.at+int64(bytes))
		copy(f.data[c.file][c.at:], c.data[:bytes])
	}
}

func (f *folder) grow(file int, length int64) {
	if d := f.data[file]; int64(len(d)) < length {
		f.data[file] = append(d, make([]byte, length-int64(len(d)))...)
	}
}

func (f *folder) clone() *folder {
	c := &folder{make(map[int][]byte, len(f.data)), maps.Clone(f.names)}
	for n, d := range f.data {
		c.data[n] = bytes.Clone(d)
	}
	return c
}

// replay goes through a record, call by call.
type replay struct {
	done    *folder // what all calls so far have made of the folder
	safe    *folder // and those alone that a power cut leaves
	pending []call  // the others

	made, synced, doneBelow int // what the process said of its messages
}

func newReplay() *replay {
	empty := func() *folder { return &folder{make(map[int][]byte), make(map[string]int)} }
	return &replay{done: empty(), safe: empty(), made: -1, synced: -1}
}

func (r *replay) step(c call) {
	r.done.do(c, len(c.data))
	switch c.kind {
	case "says":
		r.hear(c.said)
	case "sync":
		r.settle(func(p call) bool { return p.file == c.file && (p.kind == "write" || p.kind == "truncate") })
	case "sync folder":
		r.settle(func(p call) bool { return p.kind != "write" && p.kind != "truncate" })
	default:
		r.pending = append(r.pending, c)
	}
}

func (r *replay) hear(said string) {
	word, number, _ := strings.Cut(said, " ")
	i, err := strconv.Atoi(number)
	if err != nil {
		return
	}
	switch word {
	case "makes":
		r.made = i
	case "synced":
		r.synced = i
	case "done":
		r.doneBelow = i + 1
	}
}

// settle makes those that are pending safe.
func (r *replay) settle(is func(call) bool) {
	r.pending = slices.DeleteFunc(r.pending, func(c call) bool {
		if !is(c) {
			return false
		}
		r.safe.do(c, len(c.data))
		return true
	})
}

// killed returns the folder with, if the next call is a write, some bytes of that:
// what is there when the process is killed.
func (r *replay) killed(next call, rnd *rand.Rand) *folder {
	f := r.done.clone()
	if next.kind == "write" {
		f.do(next, rnd.IntN(len(next.data)+1))
	}
	return f
}

// cut returns what a power cut may leave: what was synced, and of the rest any of
// it, writes perhaps in part.
func (r *replay) cut(rnd *rand.Rand) *folder {
	f := r.safe.clone()
	for _, c := range r.pending {
		const sector = 512
		switch keep := rnd.IntN(3); {
		case keep == 0:
			f.do(c, len(c.data))
		case keep == 1 && c.kind == "write":
			f.do(c, min(len(c.data), sector*rnd.IntN(len(c.data)/sector+1)))
		}
	}
	return f
}

// write puts the folder on disk.
func (f *folder) write(t *testing.T, dir string) {
	t.Helper()
	for name, n := range f.names {
		if err := os.WriteFile(filepath.Join(dir, name), f.data[n], 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRecordedImages rebuilds the folder of a process from a record of all its
// writes, its file being made included, and with -long its being made smaller: after each call,
// with the last write torn, and as a power cut may leave it. On each image a
// queue opens with all that was promised, in order, and nothing that was not
// delivered.
func TestRecordedImages(t *testing.T) {
	if dir := os.Getenv("FIELDGATE_TEST_QUEUE"); dir != "" {
		recorded(dir)
		return
	}
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 7))
	images, promised := 0, 0
	payloads := []int{1, 100}
	if *long {
		payloads = append(payloads, 60_000)
	}
	for _, payload := range payloads {
		rounds := many(8, 40)
		if payload > 10_000 {
			rounds = 12 // some megabytes, each image
		}
		dir := t.TempDir()
		calls := trace(t, dir, "TestRecordedImages", fmt.Sprintf("FIELDGATE_TEST_PAYLOAD=%d", payload), fmt.Sprintf("FIELDGATE_TEST_ROUNDS=%d", rounds))
		share := many(len(calls)/25, len(calls)/250) // one in so many moments is looked at
		r := newReplay()
		for n := 0; n <= len(calls); n++ {
			next := call{}
			if n < len(calls) {
				next = calls[n]
			}
			if rnd.IntN(max(share, 1)) == 0 || aboutNames(calls, n) {
				folders := []*folder{r.killed(next, rnd)}
				for range many(1, 3) {
					folders = append(folders, r.cut(rnd))
				}
				for _, f := range folders {
					images++
					if checkImage(t, f, r) > 0 {
						promised++
					}
				}
			}
			r.step(next)
		}
	}
	t.Logf("%d images opened, in %d of them messages were promised", images, promised)
	if want := many(60, 2000); images < want || promised < images/3 {
		t.Errorf("%d images, %d with a promise, want %d and a third of them", images, promised, want)
	}
}

// aboutNames reports whether a file is made or renamed about call n: moments
// that are few, and of which none is left out.
func aboutNames(calls []call, n int) bool {
	for _, c := range calls[max(0, n-2):min(n+2, len(calls))] {
		if c.kind == "rename" || c.kind == "create" || c.kind == "sync folder" {
			return true
		}
	}
	return false
}

// checkImage opens a queue on an image and returns how many messages were
// promised at that moment.
func checkImage(t *testing.T, f *folder, before *replay) int {
	t.Helper()
	made, synced, doneBelow := before.made, before.synced, before.doneBelow
	dir, remove := memoryDir(t)
	defer remove()
	f.write(t, dir)
	got, s := contentsOf(t, dir)
	have := make(map[int]bool)
	last := -1
	for _, p := range got {
		i, err := strconv.Atoi(number(p))
		if err != nil || i <= last || i > made {
			t.Fatalf("message %q after %d, the last made is %d", p, last, made)
		}
		have[i], last = true, i
	}
	for i := doneBelow; i <= synced; i++ {
		if !have[i] {
			t.Fatalf("message %d is lost: up to %d were synced, below %d done, %d are in the file, %+v", i, synced, doneBelow, len(got), s)
		}
	}
	if s.Damaged > 0 {
		t.Fatalf("%d damaged", s.Damaged)
	}
	if _, err := os.Stat(filepath.Join(dir, fileName("cloud")+".damaged")); err == nil {
		t.Fatal("the file was put aside")
	}
	return max(0, synced-doneBelow+1)
}

// number returns what a payload of recorded begins with.
func number(payload string) string {
	n, _, _ := strings.Cut(payload, " ")
	return n
}

// recorded is the process that is recorded: it makes messages, has them synced,
// and is done with some, until it has had enough and its file is empty; twice.
// What it says, it says in time: that it makes a message before, that one is
// synced after, that one is done before.
func recorded(dir string) {
	payload, _ := strconv.Atoi(os.Getenv("FIELDGATE_TEST_PAYLOAD"))
	say := func(format string, args ...any) { _, _ = os.Stdout.WriteString(fmt.Sprintf(format, args...) + "\n") }
	rounds, _ := strconv.Atoi(os.Getenv("FIELDGATE_TEST_ROUNDS"))
	made := 0
	for round := range 2 {
		q, err := Open(dir, "cloud", config.Queue{Commit: 5 * time.Millisecond}, slog.New(slog.DiscardHandler))
		if err != nil {
			panic(err)
		}
		q.bounds = bounds{most: 1 << 30, keep: 30_000, full: 1 << 29}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _ = q.Run(ctx) })
		rnd := rand.New(rand.NewPCG(uint64(payload), uint64(round)))
		take := func(most int) {
			ended, cancel := context.WithCancel(context.Background())
			cancel()
			entries, err := q.Next(ended, most)
			if err != nil {
				return
			}
			if len(entries) == 0 {
				return
			}
			say("done %s", number(string(entries[len(entries)-1].Payload)))
			for _, e := range entries {
				_ = q.Done(e.Seq)
			}
		}
		for range rounds {
			n := 1 + rnd.IntN(120)
			if payload > 10_000 {
				n = 1 + rnd.IntN(8)
			}
			say("makes %d", made+n-1)
			for range n {
				_ = q.Deliver(ctx, mqtt.Message{Topic: "t", Payload: fmt.Appendf(nil, "%d %s", made, noise(made, payload))})
				made++
			}
			if q.Sync(ctx) == nil {
				say("synced %d", made-1)
			}
			if rnd.IntN(3) == 0 {
				take(rnd.IntN(2 * n))
			}
		}
		if round == 1 {
			for q.Stats().Messages > 5 {
				take(5)
			}
			time.Sleep(2 * lookEvery) // what is done is forgotten, and the file made smaller
		}
		cancel()
		wg.Wait()
		_ = q.Close()
	}
}
