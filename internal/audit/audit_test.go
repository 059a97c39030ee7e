package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/clock"
)

var quiet = slog.New(slog.DiscardHandler)

func open(t *testing.T, dir string, o Options) *Log {
	t.Helper()
	l, err := Open(dir, o, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func shut(t *testing.T, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// record is the i-th of a test.
func record(i int) Record {
	return Record{Event: Accepted, ID: fmt.Sprint("id", i), By: "cloud", Via: "cloud", Point: "boiler.setpoint", Value: fmt.Sprint(i)}
}

func add(t *testing.T, l *Log, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if _, err := l.Append(t.Context(), record(i)); err != nil {
			t.Fatal(err)
		}
	}
}

// read returns what Read does, each record in a word: its id, or its status
// where the log speaks of itself.
func read(t *testing.T, dir string) (words []string) {
	t.Helper()
	if err := Read(dir, func(r Record) error {
		words = append(words, word(r))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return words
}

func word(r Record) string {
	if r.Event == Self {
		return r.Status
	}
	return r.ID
}

func verify(t *testing.T, dir string) Report {
	t.Helper()
	r, err := Verify(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// whole fails the test unless the chain holds.
func whole(t *testing.T, dir string) Report {
	t.Helper()
	r := verify(t, dir)
	if len(r.Breaks) > 0 || r.Unfinished {
		t.Fatalf("Verify = %+v", r)
	}
	return r
}

func ids(from, to int) (words []string) {
	for i := from; i < to; i++ {
		words = append(words, fmt.Sprint("id", i))
	}
	return words
}

func file(dir string, number int) string { return filepath.Join(dir, folderName, fileName(number)) }

func load(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func save(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o640); err != nil {
		t.Fatal(err)
	}
}

// TestChain writes, reads and checks a record over two runs, and computes the
// hashes as the documentation tells a stranger to.
func TestChain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if r := whole(t, dir); r.Records != 0 {
		t.Errorf("Verify of nothing = %+v", r)
	}
	var seen []Record
	l := open(t, dir, Options{OnRecord: func(r Record) { seen = append(seen, r) }})
	want := Record{
		Time: time.Date(2025, 11, 5, 14, 30, 15, 123456789, time.FixedZone("", 3600)), Event: Result, ID: "a \"b\"\n\x00<é>", By: "hmi", Via: "local",
		Point: "boiler.setpoint", Value: "75.5", Previous: "70", Status: "verified", Reason: "°F", Ms: 12,
	}
	first, err := l.Append(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	add(t, l, 1, 3)
	shut(t, l)
	l = open(t, dir, Options{})
	add(t, l, 3, 5)
	shut(t, l)

	want.Time = want.Time.UTC().Truncate(time.Millisecond)
	want.Seq, want.Prev, want.Hash = 1, strings.Repeat("0", 64), first.Hash
	if first != want {
		t.Errorf("Append = %+v\nwant     %+v", first, want)
	}
	var all []Record
	if err := Read(dir, func(r Record) error { all = append(all, r); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(all) != 5 || all[0] != want || !slices.Equal(all[:3], seen) {
		t.Errorf("Read = %+v\nOnRecord saw %+v", all, seen)
	}
	data := load(t, file(dir, 1))
	before := strings.Repeat("0", 64)
	for i, text := range bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n")) {
		if !bytes.Equal(all[i].JSON(), text) {
			t.Errorf("JSON() = %s\nfile     %s", all[i].JSON(), text)
		}
		body := regexp.MustCompile(`,"hash":"[0-9a-f]{64}"}$`).ReplaceAll(text, nil)
		sum := sha256.Sum256(body)
		if got := hex.EncodeToString(sum[:]); got != all[i].Hash || all[i].Prev != before {
			t.Errorf("record %d: hash %s, by hand %s; names %s before it, want %s", i, all[i].Hash, got, all[i].Prev, before)
		}
		before = all[i].Hash
	}
	if r := whole(t, dir); r.Records != 5 || r.First != 1 || r.Last != 5 || r.Head != before || r.Files != 1 || !r.From.Equal(want.Time) {
		t.Errorf("Verify = %+v", r)
	}
	if _, err := l.Append(t.Context(), record(9)); !errors.Is(err, ErrNotRecorded) {
		t.Errorf("Append after Close = %v", err)
	}
}

// A record can hold whatever a payload brings.
func TestOddTexts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir, Options{})
	if _, err := l.Append(t.Context(), Record{}); !errors.Is(err, ErrNotRecorded) {
		t.Errorf("Append of nothing = %v", err)
	}
	long := strings.Repeat("\x01", 1<<20) + "é"
	odd := []Record{
		{Event: Accepted, ID: "bad \xff\xfe utf", Reason: "\u2028\ufeff\U0001F600"},
		{Event: long, ID: long, By: long, Via: long, Point: long, Value: long, Previous: long, Status: long, Reason: long, Ms: -1 << 63},
		{Event: "e", Reason: strings.Repeat("é", MaxText), Time: time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC)},
	}
	for _, r := range odd {
		got, err := l.Append(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if p, before, ok := glance(got.JSON()); !ok || p != (place{got.Seq, got.Hash}) || before != got.Prev {
			t.Errorf("glance(%.100q…) = %v, %s, %v", got.JSON(), p, before, ok)
		}
		back, sound, err := parse(got.JSON())
		if err != nil || !sound || back != got || len(got.Reason) > MaxText {
			t.Errorf("%.100q… comes back as %.100q…, sound %v: %v", got.JSON(), back.JSON(), sound, err)
		}
	}
	shut(t, l)
	whole(t, dir)
	if got := read(t, dir); len(got) != 3 || got[0] != "bad \uFFFD utf" {
		t.Errorf("Read: %.100q", got)
	}
}

// tampering is what somebody does to the files of two with records 1 to 8 and 9
// to 16, and what Verify says to it.
type tampering struct {
	name string
	do   func(t *testing.T, dir string, lines [][]byte) [][]byte // of the second file; nil: as do left it
	want []string
}

func TestTamper(t *testing.T) {
	t.Parallel()
	forge := func(text []byte, change func(*Record)) []byte {
		r, _, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		change(&r)
		r.Hash = hash(r.body())
		return r.JSON()
	}
	for _, c := range []tampering{
		{"nothing", nil, nil},
		{"change", func(_ *testing.T, _ string, l [][]byte) [][]byte {
			l[2] = bytes.Replace(l[2], []byte(`"value":"10"`), []byte(`"value":"99"`), 1)
			return l
		}, []string{"audit-000002.jsonl:3: record 11: was changed"}},
		{"change the hash too", func(_ *testing.T, _ string, l [][]byte) [][]byte {
			l[2] = forge(l[2], func(r *Record) { r.Value = "99" })
			return l
		}, []string{"audit-000002.jsonl:4: record 12: does not follow the record 11 that stands before it"}},
		{"change the last and its hash", func(_ *testing.T, _ string, l [][]byte) [][]byte {
			l[7] = forge(l[7], func(r *Record) { r.By = "somebody else" })
			return l
		}, []string{"head: record 16: is not the one that was written last"}},
		{"delete", func(_ *testing.T, _ string, l [][]byte) [][]byte {
			return slices.Delete(l, 2, 4)
		}, []string{"audit-000002.jsonl:3: record 13: the records 11 to 12 are missing before it"}},
		{"delete over the edge of files", func(_ *testing.T, _ string, l [][]byte) [][]byte {
			return l[1:]
		}, []string{"audit-000002.jsonl:1: record 10: record 9 is missing before it"}},
		{"delete and close the gap", func(_ *testing.T, _ string, l [][]byte) [][]byte {
			l = slices.Delete(l, 2, 3)
			l[2] = forge(l[2], func(r *Record) { r.Seq-- })
			return l
		}, []string{
			"audit-000002.jsonl:3: record 11: does not follow the record 10", "audit-000002.jsonl:4: record 13: record 12 is missing before it"}},
		{"insert", func(_ *testing.T, _ string, l [][]byte) [][]byte {
			return slices.Insert(l, 2, forge(l[2], func(r *Record) { r.Value = "99" }))
		}, []string{"audit-000002.jsonl:4: record 11: stands after record 11: it was moved or put in"}},
		{"reorder", func(_ *testing.T, _ string, l [][]byte) [][]byte {
			l[2], l[3] = l[3], l[2]
			return l
		}, []string{
			"audit-000002.jsonl:3: record 12: record 11 is missing before it", "audit-000002.jsonl:4: record 11: stands after record 12",
			"audit-000002.jsonl:5: record 13: record 12 is missing before it"}},
		{"truncate", func(_ *testing.T, _ string, l [][]byte) [][]byte {
			return l[:5]
		}, []string{"head: record 16: was the last; the records 14 to 16 are missing at the end"}},
		{"truncate a whole file", func(t *testing.T, dir string, _ [][]byte) [][]byte {
			if err := os.Remove(file(dir, 2)); err != nil {
				t.Fatal(err)
			}
			return nil
		}, []string{"head: record 16: was the last; the records 9 to 16 are missing at the end"}},
		{"remove the first file", func(t *testing.T, dir string, _ [][]byte) [][]byte {
			if err := os.Remove(file(dir, 1)); err != nil {
				t.Fatal(err)
			}
			return nil
		}, []string{"audit-000001.jsonl: the records 1 to 8 are missing at the beginning"}},
		{"remove the head", func(t *testing.T, dir string, _ [][]byte) [][]byte {
			if err := os.Remove(filepath.Join(dir, folderName, headName)); err != nil {
				t.Fatal(err)
			}
			return nil
		}, []string{"head: is missing or empty"}},
		{"noise in a line", func(_ *testing.T, _ string, l [][]byte) [][]byte {
			l[2] = []byte("noise")
			return l
		}, []string{"audit-000002.jsonl:3: is no record"}},
		{"an endless line", func(_ *testing.T, _ string, l [][]byte) [][]byte {
			l[2] = bytes.Repeat([]byte("noise"), maxLine)
			return l
		}, []string{"audit-000002.jsonl:3: is no record"}},
		{"an empty line", func(_ *testing.T, _ string, l [][]byte) [][]byte {
			l[2] = nil
			return l
		}, []string{"audit-000002.jsonl:3: is no record"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, dir, Options{})
			for i := range 16 {
				if i == 8 {
					l.good = l.fileBytes // the next one is another file's
				}
				add(t, l, i, i+1)
			}
			shut(t, l)
			if c.do != nil {
				lines := bytes.Split(bytes.TrimSuffix(load(t, file(dir, 2)), []byte("\n")), []byte("\n"))
				if lines = c.do(t, dir, lines); lines != nil {
					save(t, file(dir, 2), append(bytes.Join(lines, []byte("\n")), '\n'))
				}
			}
			check := func(report Report, want []string) {
				t.Helper()
				bad := len(report.Breaks) < len(want)
				for i := 0; i < len(want) && !bad; i++ {
					bad = !strings.HasPrefix(report.Breaks[i].String(), want[i])
				}
				if bad || len(want) == 0 && len(report.Breaks) > 0 {
					t.Errorf("Verify says %q\nwant        %q", report.Breaks, want)
				}
			}
			report := verify(t, dir)
			check(report, c.want)
			if len(report.Breaks) != len(c.want) {
				t.Errorf("%d breaks, want %d: %q", len(report.Breaks), len(c.want), report.Breaks)
			}
			// The log goes on, and does not cover it up.
			l = open(t, dir, Options{})
			add(t, l, 20, 22)
			// What cannot be seen in the last file and the head is for Verify.
			if seen := l.Stats().Suspect != ""; seen && len(c.want) == 0 || !seen && len(c.want) > 0 && strings.HasPrefix(c.want[0], "head") {
				t.Errorf("Suspect = %q", l.Stats().Suspect)
			}
			shut(t, l)
			report = verify(t, dir)
			if (len(c.want) > 0) != (len(report.Breaks) > 0) {
				t.Errorf("after another run Verify says %q", report.Breaks)
			}
			got, n := []string(nil), 0
			_ = Read(dir, func(r Record) error { got, n = append(got, word(r)), n+1; return nil })
			if want := ids(20, 22); n < 2 || !slices.Equal(got[n-2:], want) {
				t.Errorf("Read gives %q, want %q at the end", got, want)
			}
		})
	}
}

// TestRotate fills many files: the chain goes through them, the oldest go, and
// say so.
func TestRotate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var log bytes.Buffer
	o := Options{FileBytes: 4096, Files: 3}
	l, err := Open(dir, o, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	const n = 200
	begin := time.Now()
	for i := range n {
		if i == n/2 {
			shut(t, l)
			l = open(t, dir, o)
		}
		add(t, l, i, i+1)
		if r := whole(t, dir); r.Files > 4 {
			t.Fatalf("%d files", r.Files)
		}
	}
	shut(t, l)
	r := whole(t, dir)
	if r.First != r.Removed+1 || r.First < 100 || r.Files != 3 {
		t.Errorf("Verify = %+v", r)
	}
	got := read(t, dir)
	if last := fmt.Sprint("id", n-1); got[len(got)-1] != last || !slices.Contains(got, Removed) {
		t.Errorf("Read: %q", got)
	}
	s := l.Stats()
	t.Logf("%d records in %v: %+v", n, time.Since(begin), s)
	if s.Flash.Total.Bytes == 0 || s.Flash.Total.Syncs < n/2 {
		t.Errorf("Stats = %+v", s)
	}
	if strings.Contains(log.String(), "level=") {
		t.Errorf("log: %s", log.String())
	}
}

// Only the files that may hold something new are read.
func TestReadSince(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir, Options{FileBytes: 4096})
	day := time.Date(2025, 11, 5, 0, 0, 0, 0, time.UTC)
	for i := range 100 {
		r := record(i)
		r.Time = day.Add(time.Duration(i) * time.Minute)
		if _, err := l.Append(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, l)
	save(t, file(dir, 1), []byte("noise\n"))
	var got []string
	if err := ReadSince(dir, day.Add(50*time.Minute), func(r Record) error { got = append(got, r.ID); return nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, ids(50, 100)) {
		t.Errorf("ReadSince: %q", got)
	}
	if at, err := LastTime(dir); err != nil || !at.Equal(day.Add(99*time.Minute)) {
		t.Errorf("LastTime = %v, %v", at, err)
	}
	if at, err := LastTime(t.TempDir()); err != nil || !at.IsZero() {
		t.Errorf("LastTime of nothing = %v, %v", at, err)
	}
	if err := Read(dir, func(Record) error { return nil }); !errors.Is(err, ErrUnreadable) {
		t.Errorf("Read = %v", err)
	}
	enough := errors.New("enough")
	if err := Read(dir, func(Record) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("Read = %v", err)
	}
}

// Most records are read without a look at all of JSON, none as another.
func TestQuick(t *testing.T) {
	t.Parallel()
	full := Record{
		Seq: 7, Time: time.Date(2025, 11, 5, 14, 30, 15, 123e6, time.UTC), Event: Result, ID: "a1", By: "hmi", Via: "local", Point: "boiler.temp",
		Value: "75.5 °C", Previous: "70", Status: "verified", Reason: "in words", Ms: 12, Prev: start, Hash: start,
	}
	unset, least, odd := full, Record{Seq: 1, Time: full.Time, Event: "x", Prev: start, Hash: start}, full
	unset.Unset, odd.Value = true, `{"a":1}`
	for i, r := range []Record{full, unset, least} {
		if got, ok := quick(r.JSON()); !ok || got != r {
			t.Errorf("%d: quick(%s) = %+v, %v", i, r.JSON(), got, ok)
		}
	}
	line := string(full.JSON())
	for _, text := range []string{
		"", "{}", string(odd.JSON()), line[1:], line[:len(line)-1], line + " ", strings.Replace(line, `"id"`, `"ID"`, 1), strings.Replace(line, "12,", "-12,", 1),
		strings.Replace(line, `"seq":7`, `"seq":07`, 1), strings.Replace(line, `"seq":7`, `"seq":0`, 1), strings.Replace(line, "hmi", "h\x01i", 1), strings.Replace(line, "hmi", "h\xffi", 1),
		strings.Replace(line, "2025-11", "2025-13", 1), strings.Replace(line, start, "0", 1), strings.Replace(line, `,"ms":12`, `,"ms":9223372036854775808`, 1),
	} {
		if r, ok := quick([]byte(text)); ok {
			t.Errorf("quick(%q) = %+v", text, r)
		}
	}
}

// FuzzQuick holds what is read quickly against what is read as JSON.
func FuzzQuick(f *testing.F) {
	r := record(1)
	r.Seq, r.Prev, r.Hash, r.Reason, r.Status, r.Ms, r.Unset = 1, start, start, "ü", "failed", 5, true
	f.Add(r.JSON())
	f.Fuzz(func(t *testing.T, line []byte) {
		r, ok := quick(line)
		if !ok {
			return
		}
		if want, _, err := parse(line); err != nil || r != want {
			t.Errorf("read quickly, %q is %+v, else %+v, %v", line, r, want, err)
		}
	})
}

func BenchmarkReadSince(b *testing.B) {
	dir := b.TempDir()
	l, err := Open(dir, Options{}, quiet)
	if err != nil {
		b.Fatal(err)
	}
	const records = 2000
	for i := range records {
		if _, err := l.Append(b.Context(), record(i)); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := Read(dir, func(Record) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/records, "ns/record")
}

// A clock that is not set is said to be so, and what it told is not taken for old.
func TestUnsetClock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	state := &clockState{day: time.Date(1970, 1, 1, 0, 1, 40, 0, time.UTC)}
	c := clock.New(clock.Source{Now: state.now, Vouch: state.vouch, Up: func(time.Time) time.Duration { return 0 }}, quiet)
	l := open(t, dir, Options{Clock: c, FileBytes: 4096})
	add(t, l, 0, 20)
	state.set(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	c.Look()
	add(t, l, 20, 22)
	shut(t, l)
	var all []Record
	if err := ReadSince(dir, time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC), func(r Record) error { all = append(all, r); return nil }); err != nil {
		t.Fatal(err)
	}
	if at, err := LastTime(dir); err != nil || at.Year() != 2026 {
		t.Errorf("LastTime = %v, %v", at, err)
	}
	if len(all) != 22 || !all[0].Unset || all[0].Time.Year() != 1970 || all[21].Unset || all[21].Time.Year() != 2026 {
		t.Errorf("%d records, %+v to %+v", len(all), all[0], all[len(all)-1])
	}
	if !bytes.Contains(all[0].JSON(), []byte(`"timestamp":"1970-01-01T00:01:40.`)) || !bytes.Contains(all[0].JSON(), []byte(`"time":"unsynced"`)) {
		t.Errorf("JSON() = %s", all[0].JSON())
	}
	whole(t, dir)
}

// clockState is a time of day that somebody sets.
type clockState struct {
	mu  sync.Mutex
	day time.Time
}

func (s *clockState) now() (day, moment time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.day, time.Now()
}

func (s *clockState) vouch(day time.Time) (bool, string) {
	if day.Before(clock.Epoch) {
		return false, "it is 1970"
	}
	return true, ""
}

func (s *clockState) set(day time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.day = day
}

// TestShared has many callers at once: they share syncs.
func TestShared(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var mu sync.Mutex
	var seen []uint64
	l := open(t, dir, Options{OnRecord: func(r Record) {
		mu.Lock()
		seen = append(seen, r.Seq)
		mu.Unlock()
	}})
	const callers, each = 32, 20
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			last := uint64(0)
			for i := range each {
				r, err := l.Append(context.Background(), record(c*each+i))
				if err != nil || r.ID != fmt.Sprint("id", c*each+i) || r.Seq <= last {
					t.Errorf("Append = %+v, %v", r, err)
				}
				last = r.Seq
			}
		})
	}
	wg.Wait()
	shut(t, l)
	if r := whole(t, dir); r.Records != callers*each {
		t.Errorf("Verify = %+v", r)
	}
	if s := l.Stats(); s.Flash.Total.Syncs > callers*each/2 {
		t.Errorf("%d syncs for %d records", s.Flash.Total.Syncs, s.Records)
	} else {
		t.Logf("%d syncs, %d bytes for %d records", s.Flash.Total.Syncs, s.Flash.Total.Bytes, s.Records)
	}
	if !slices.IsSorted(seen) || len(seen) != callers*each {
		t.Errorf("OnRecord saw %v", seen)
	}
}

// A caller whose time is up is told so, and the next one is served.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	block := make(chan struct{})
	l := open(t, dir, Options{OnRecord: func(r Record) {
		if r.ID == "id0" {
			<-block
		}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			if _, err := l.Append(ctx, record(i)); !errors.Is(err, ErrNotRecorded) || !errors.Is(err, context.Canceled) {
				t.Errorf("Append = %v", err)
			}
		})
		for i == 0 && l.Stats().Records == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	for { // until the second one waits
		l.mu.Lock()
		n := len(l.waiting)
		l.mu.Unlock()
		if n == 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	wg.Wait()
	close(block)
	add(t, l, 2, 3)
	if got := read(t, dir); !slices.Equal(got, []string{"id0", "id2"}) {
		t.Errorf("Read: %q", got)
	}
}

func TestLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir, Options{})
	if _, err := Open(dir, Options{}, quiet); err == nil || !strings.Contains(err.Error(), "another process writes it") {
		t.Errorf("Open = %v", err)
	}
	shut(t, l)
	l = open(t, dir, Options{})
	add(t, l, 0, 1)
}

// TestTakenAway removes the files under a running log.
func TestTakenAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := open(t, dir, Options{})
	add(t, l, 0, 3)
	if err := os.RemoveAll(filepath.Join(dir, folderName)); err != nil {
		t.Fatal(err)
	}
	add(t, l, 3, 5)
	shut(t, l)
	if got := read(t, dir); !slices.Equal(got, []string{Missing, "id3", "id4"}) {
		t.Errorf("Read: %q", got)
	}
	if r := verify(t, dir); len(r.Breaks) != 2 || r.First != 4 {
		t.Errorf("Verify = %+v", r)
	}
}

// FuzzRead gives the reader, the checker and the writer a file of foreign bytes.
func FuzzRead(f *testing.F) {
	dir := f.TempDir()
	l, err := Open(dir, Options{}, quiet)
	if err != nil {
		f.Fatal(err)
	}
	for i := range 3 {
		if _, err := l.Append(context.Background(), record(i)); err != nil {
			f.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(file(dir, 1))
	if err != nil {
		f.Fatal(err)
	}
	head, err := os.ReadFile(filepath.Join(dir, folderName, headName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, head)
	f.Add(good[:len(good)-5], head)
	f.Add(append(bytes.Clone(good), 0, 0, 0), []byte{})
	f.Add([]byte("{}\nnull\n[1]\n\n\x00"), []byte("00000000000000000003 x"))
	f.Fuzz(func(t *testing.T, data, head []byte) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, folderName), 0o750); err != nil {
			t.Fatal(err)
		}
		save(t, file(dir, 1), data)
		save(t, filepath.Join(dir, folderName, headName), head)
		before := verify(t, dir)
		for line := range bytes.Lines(data) {
			if p, before, ok := glance(bytes.TrimSuffix(line, []byte("\n"))); ok {
				if r, sound, err := parse(bytes.TrimSuffix(line, []byte("\n"))); err == nil && (!sound || r.Seq != p.seq || r.Hash != p.hash || r.Prev != before) {
					t.Errorf("a glance at %q gives %v, %s", line, p, before)
				}
			}
		}
		_ = Read(dir, func(r Record) error {
			if r.Seq == 0 || r.Event == "" {
				t.Errorf("a record out of noise: %+v", r)
			}
			return nil
		})
		l := open(t, dir, Options{})
		add(t, l, 7, 8)
		shut(t, l)
		after := verify(t, dir)
		if after.Records == 0 || after.Unfinished && !before.Unfinished {
			t.Errorf("after a run Verify = %+v, before %+v", after, before)
		}
		got := []string(nil)
		_ = Read(dir, func(r Record) error { got = append(got, word(r)); return nil })
		if got[len(got)-1] != "id7" {
			t.Errorf("Read: %q", got)
		}
	})
}

// TestCut asks for how the log was left. A power cut may bring back the head of
// before the start, with its mark: it is written, and cut, when the system likes.
func TestCut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, folderName, headName)
	want := func(what string, want bool) *Log {
		t.Helper()
		l := open(t, dir, Options{})
		if is := l.Cut(); is != want {
			t.Errorf("%s: Cut = %v, want %v", what, is, want)
		}
		return l
	}
	l := want("the first start", false)
	add(t, l, 0, 3)
	shut(t, l)
	closed := load(t, path)
	l = want("closed", false)
	open := load(t, path)
	shut(t, l)
	save(t, path, open)
	l = want("killed", true)
	shut(t, l)
	l = want("closed, nothing written", false)
	add(t, l, 3, 5)
	shut(t, l)
	save(t, path, closed)
	shut(t, want("power cut", true))
	shut(t, want("closed after that", false))
	whole(t, dir)
}
