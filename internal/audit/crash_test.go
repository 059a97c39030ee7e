package audit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/test/smalldisk"
)

// TestPrefixes opens the file cut at every byte after the record that the head
// names, as a power cut in the middle of a write leaves it, and with the rest
// of the page zero or noise.
func TestPrefixes(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	from := t.TempDir()
	l := open(t, from, Options{})
	add(t, l, 0, 3)
	promised := len(load(t, file(from, 1)))
	head := load(t, filepath.Join(from, folderName, headName))
	add(t, l, 3, 5)
	shut(t, l)
	data := load(t, file(from, 1))
	for n := promised; n <= len(data); n++ {
		for tail := range 3 {
			image := bytes.Clone(data[:n])
			switch tail {
			case 1:
				image = append(image, make([]byte, 1+rnd.IntN(4096))...)
			case 2:
				noise := make([]byte, 1+rnd.IntN(100))
				for i := range noise {
					noise[i] = byte(rnd.Uint32())
				}
				if noise[0] == '\n' {
					noise[0] = 0 // else a line that was cut before its very end is whole
				}
				image = append(image, noise...)
			}
			if n%7 != 0 && tail > 0 {
				continue // a sample of those is enough
			}
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, folderName), 0o750); err != nil {
				t.Fatal(err)
			}
			save(t, file(dir, 1), image)
			save(t, filepath.Join(dir, folderName, headName), head)
			if r := verify(t, dir); tail == 0 && len(r.Breaks) > 0 {
				t.Fatalf("cut at %d: Verify = %+v", n, r)
			}
			l := open(t, dir, Options{})
			add(t, l, 7, 8)
			shut(t, l)
			whole(t, dir)
			got := read(t, dir)
			kept := 3 + bytes.Count(data[promised:n], []byte("\n"))
			want := ids(0, kept)
			if tail > 0 || image[len(image)-1] != '\n' {
				want = append(want, Torn)
			}
			if want = append(want, "id7"); !slices.Equal(got, want) {
				t.Fatalf("cut at %d of %d, tail %d: %q, want %q", n, len(data), tail, got, want)
			}
		}
	}
}

// TestSteps opens what a process leaves that ends between any two steps of
// beginning a file and removing the oldest.
func TestSteps(t *testing.T) {
	t.Parallel()
	o := Options{FileBytes: 4096, Files: 2}
	// A folder about to begin its fourth file, and one that has.
	dir := t.TempDir()
	l := open(t, dir, o)
	i := 0
	for l.number < 4 {
		if l.number == 3 && l.good >= l.fileBytes {
			break
		}
		add(t, l, i, i+1)
		i++
	}
	before := image(t, dir)
	add(t, l, i, i+1)
	shut(t, l)
	after := image(t, dir)
	fresh := fileName(4)
	group := after[fresh][:bytes.IndexByte(after[fresh], '\n')+1] // the removal's note follows it

	with := func(base map[string][]byte, change func(map[string][]byte)) map[string][]byte {
		m := make(map[string][]byte)
		for k, v := range base {
			m[k] = v
		}
		change(m)
		return m
	}
	steps := []struct {
		name  string
		files map[string][]byte
		newer bool // the record is there
	}{
		{"nothing done", before, false},
		{"file made", with(before, func(m map[string][]byte) { m[fresh+temporary] = nil }), false},
		{"half written", with(before, func(m map[string][]byte) { m[fresh+temporary] = group[:50] }), false},
		{"written", with(before, func(m map[string][]byte) { m[fresh+temporary] = group }), false},
		{"renamed", with(before, func(m map[string][]byte) { m[fresh] = group }), true},
		{"head written", with(before, func(m map[string][]byte) { m[fresh], m[headName] = group, after[headName] }), true},
		{"removal half noted", with(before, func(m map[string][]byte) { m[fresh] = after[fresh][:len(group)+30] }), true},
		{"removal noted", with(before, func(m map[string][]byte) { m[fresh], m[headName] = after[fresh], after[headName] }), true},
		{"removed", after, true},
	}
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			if s.name == "head written" { // it names the note, which is not there
				seq, _ := firstSeq(file(dir, 4))
				r, _, err := parse(bytes.TrimSuffix(group, []byte("\n")))
				if err != nil || r.Seq != seq {
					t.Fatal(err)
				}
				s.files[headName] = fmt.Appendf(nil, "%020d %s\n", r.Seq, r.Hash)
			}
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, folderName), 0o750); err != nil {
				t.Fatal(err)
			}
			for name, data := range s.files {
				save(t, filepath.Join(dir, folderName, name), data)
			}
			l := open(t, dir, o)
			if _, err := os.Stat(filepath.Join(dir, folderName, fresh+temporary)); err == nil {
				t.Error("the unfinished file is still there")
			}
			for k := 1000; k < 1030; k++ { // and through the next files
				add(t, l, k, k+1)
				whole(t, dir)
			}
			got := read(t, dir)
			shut(t, l)
			if slices.Contains(got, Damaged) || slices.Contains(got, Missing) || slices.Contains(got, Replaced) {
				t.Errorf("Read: %q", got)
			}
		})
	}
}

// TestFirstSteps opens what a process leaves that ends when the first records of
// all are there and the head does not name them yet.
func TestFirstSteps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir, Options{})
	if err := os.Mkdir(file(dir, 1), 0o750); err != nil { // what is to have this name stays without
		t.Fatal(err)
	}
	if _, err := l.Append(t.Context(), record(0)); !errors.Is(err, ErrNotRecorded) {
		t.Fatalf("Append = %v", err)
	}
	path := filepath.Join(dir, folderName, headName)
	head := load(t, path)
	add(t, l, 0, 3)
	shut(t, l)
	save(t, path, head)
	whole(t, dir)
	l = open(t, dir, Options{})
	add(t, l, 3, 4)
	shut(t, l)
	whole(t, dir)
	if got, want := read(t, dir), append([]string{Unrecorded}, ids(0, 4)...); !slices.Equal(got, want) {
		t.Errorf("Read: %q, want %q", got, want)
	}
}

// image returns the files of a folder.
func image(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	entries, err := os.ReadDir(filepath.Join(dir, folderName))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		files[e.Name()] = load(t, filepath.Join(dir, folderName, e.Name()))
	}
	return files
}

// TestKilled kills a process that appends, at random moments, and checks that
// every record it was promised is there and the chain holds.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("FIELDGATE_TEST_AUDIT"); dir != "" {
		appendForEver(dir)
		return
	}
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	dir := t.TempDir()
	promised := 0
	for round := range kills {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "FIELDGATE_TEST_AUDIT="+dir, fmt.Sprintf("FIELDGATE_TEST_FROM=%d", round*1_000_000))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(rnd.IntN(150))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		var want []string
		for lines := bufio.NewScanner(out); lines.Scan(); {
			want = append(want, lines.Text())
		}
		_ = cmd.Wait()
		timer.Stop()
		promised += len(want)
		if r := verify(t, dir); len(r.Breaks) > 0 {
			t.Fatalf("round %d: Verify = %+v", round, r)
		}
		have := make(map[string]bool)
		_ = Read(dir, func(r Record) error { have[r.ID] = true; return nil })
		for _, id := range want[max(0, len(want)-50):] { // older ones may have gone with their file
			if !have[id] {
				t.Fatalf("round %d: %s was promised and is not there", round, id)
			}
		}
	}
	t.Logf("%d kills, %d records", kills, promised)
}

// appendForEver is the process that TestKilled kills.
func appendForEver(dir string) {
	l, err := Open(dir, Options{FileBytes: 8 << 10, Files: 8}, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	from, _ := strconv.Atoi(os.Getenv("FIELDGATE_TEST_FROM"))
	for c := range 3 {
		go func() { // ends with the process
			for i := from + c; ; i += 3 {
				if r, err := l.Append(context.Background(), record(i)); err == nil {
					fmt.Println(r.ID)
				}
			}
		}()
	}
	select {}
}

// TestDiskFull fills the disk under the log: what cannot be recorded is
// refused, readers read on, and when there is room again the gap is noted.
func TestDiskFull(t *testing.T) {
	smalldisk.Run(t, 256<<10, func(t *testing.T, dir string) {
		var log bytes.Buffer
		l, err := Open(dir, Options{FileBytes: 16 << 10}, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		add(t, l, 0, 1)
		ballast := filepath.Join(dir, "ballast")
		f, err := os.Create(ballast)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		n := 1
		for ; n < 1000; n++ {
			if _, err = l.Append(t.Context(), record(n)); err != nil {
				break
			}
		}
		if !errors.Is(err, ErrNotRecorded) || !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("Append = %v", err)
		}
		if n < 30 {
			t.Errorf("%d records found room; the file's is taken when it is begun", n)
		}
		for range 4 {
			if _, err := l.Append(t.Context(), record(n)); !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("Append = %v", err)
			}
		}
		if got := read(t, dir); !slices.Equal(got, ids(0, n)) {
			t.Errorf("Read: %q", got)
		}
		whole(t, dir)
		if s := l.Stats(); s.Unrecorded != 5 || !strings.Contains(s.Fault, "no space left") {
			t.Errorf("Stats = %+v", s)
		}
		l.Again()
		l.Again()
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		// The fault ends although nobody writes anything.
		for deadline := time.Now().Add(10 * time.Second); l.Stats().Fault != "" && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			l.Again()
		}
		if s := l.Stats(); s.Fault != "" || s.Unrecorded != 5 {
			t.Errorf("Stats = %+v", s)
		}
		add(t, l, n, n+1)
		shut(t, l)
		whole(t, dir)
		want := append(ids(0, n), Unrecorded, fmt.Sprint("id", n))
		if got := read(t, dir); !slices.Equal(got, want) {
			t.Errorf("Read: %q, want %q", got, want)
		}
		text := log.String()
		if l.Stats().Fault != "" || strings.Count(text, "takes nothing") != 1 || strings.Count(text, "takes records again") != 1 {
			t.Errorf("log:\n%s", text)
		}
	})
}

// TestReadOnly starts on a disk that may only be read, as a failing card
// becomes, and later is not.
func TestReadOnly(t *testing.T) {
	smalldisk.Run(t, 4<<20, func(t *testing.T, dir string) {
		l := open(t, dir, Options{})
		add(t, l, 0, 2)
		remount := func(flags uintptr) {
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
				t.Fatal(err)
			}
		}
		shut(t, l)
		remount(unix.MS_RDONLY)
		l = open(t, dir, Options{})
		if _, err := l.Append(t.Context(), record(2)); !errors.Is(err, ErrNotRecorded) || !errors.Is(err, unix.EROFS) {
			t.Errorf("Append = %v", err)
		}
		if got := read(t, dir); !slices.Equal(got, ids(0, 2)) {
			t.Errorf("Read: %q", got)
		}
		whole(t, dir)
		remount(0)
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			if _, err := l.Append(t.Context(), record(2)); err == nil {
				break
			} else if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		shut(t, l)
		whole(t, dir)
		if got := read(t, dir); !slices.Equal(got, append(ids(0, 2), Unrecorded, "id2")) {
			t.Errorf("Read: %q", got)
		}
	})
}
