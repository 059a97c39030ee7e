package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Read calls each for every record in the data directory dir, the oldest first,
// until each returns an error. It may be called while a Log writes there. Lines
// that are no records are left out and counted in the error that Read then
// returns at the end; it wraps ErrUnreadable. Whether the chain holds is for
// Verify to say.
func Read(dir string, each func(Record) error) error { return ReadSince(dir, time.Time{}, each) }

// ReadSince is Read for what was recorded at since or later, or at a time that
// the clock did not know. Files that hold only what is older it does not read.
func ReadSince(dir string, since time.Time, each func(Record) error) error {
	bad := 0
	err := scan(dir, since, false, func(r Record, l line) error {
		switch {
		case l.err != nil && !l.last:
			bad++
		case l.err == nil && (r.Unset || !r.Time.Before(since)):
			return each(r)
		}
		return nil
	})
	if err == nil && bad > 0 {
		err = fmt.Errorf("%w: %d lines are no records", ErrUnreadable, bad)
	}
	return err
}

// LastTime returns when the last record in the data directory dir was made whose
// time is known, the zero time if there is none.
func LastTime(dir string) (time.Time, error) {
	folder := filepath.Join(dir, folderName)
	numbers, err := list(folder)
	if err != nil {
		return time.Time{}, err
	}
	for i := len(numbers) - 1; i >= 0; i-- {
		var last []byte
		f, err := os.Open(filepath.Join(folder, fileName(numbers[i])))
		if err != nil {
			return time.Time{}, err
		}
		err = lines(f, func(text []byte, whole bool) error {
			if stamp, unset := stampOf(text); whole && stamp != nil && !unset {
				last = append(last[:0], stamp...)
			}
			return nil
		})
		if err = errors.Join(err, f.Close()); err != nil {
			return time.Time{}, err
		}
		if at, err := time.Parse(timeFormat, string(last)); err == nil {
			return at, nil
		}
	}
	return time.Time{}, nil
}

// ErrUnreadable says that not all of the record can be read.
var ErrUnreadable = errors.New("audit log is damaged")

// line is where a record stands.
type line struct {
	file  string
	line  int
	sound bool  // it gives its hash; false if that was not looked at
	err   error // it is no record
	last  bool  // it has no end, and stands at the end of the last file: it is being written, or was cut
}

// scan calls each for every line of the files. Unless it is told to check them it
// does not look at hashes.
func scan(dir string, since time.Time, check bool, each func(Record, line) error) error {
	folder := filepath.Join(dir, folderName)
	numbers, err := list(folder)
	if err != nil {
		return err
	}
	from, early := 0, since.UTC().Format(timeFormat)
	for i := len(numbers) - 1; i > 0 && !since.IsZero(); i-- {
		if first, err := firstTime(filepath.Join(folder, fileName(numbers[i]))); err == nil && first.Before(since) {
			from = i
			break
		}
	}
	for i := from; i < len(numbers); i++ {
		at := line{file: fileName(numbers[i])}
		f, err := os.Open(filepath.Join(folder, at.file))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile, as the oldest
		}
		if err != nil {
			return err
		}
		err = lines(f, func(text []byte, whole bool) error {
			at.line++
			if whole && !since.IsZero() && older(text, early) {
				return nil
			}
			r, known := Record{}, false
			if !check {
				r, known = quick(text)
			}
			if at.sound, at.err = false, nil; !known {
				r, at.sound, at.err = parse(text)
			}
			if !whole && at.err == nil {
				at.err = errors.New("the line has no end")
			}
			at.last = !whole && i == len(numbers)-1
			return each(r, at)
		})
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// older reports, by a glance, that a record says a time before since and that
// its clock was set.
func older(line []byte, since string) bool {
	stamp, unset := stampOf(line)
	return stamp != nil && !unset && string(stamp) < since
}

// stampOf returns the time that a record says, by a glance, nil if it is not where
// it should be, and whether the clock was not set.
func stampOf(line []byte) (stamp []byte, unset bool) {
	const before, after = `,"timestamp":"`, `","time":`
	i := bytes.Index(line, []byte(before)) // all before it is the number
	if i < 0 || i > len(`{"seq":18446744073709551615`) || len(line) < i+len(before)+len(timeFormat)+len(after) {
		return nil, false
	}
	rest := line[i+len(before):]
	return rest[:len(timeFormat)], bytes.HasPrefix(rest[len(timeFormat):], []byte(after))
}

// firstTime returns the time of the first record in a file that knows it.
func firstTime(path string) (at time.Time, err error) {
	f, err := os.Open(path)
	if err != nil {
		return at, err
	}
	defer f.Close()
	err = lines(f, func(text []byte, _ bool) error {
		if r, _, err := parse(text); err == nil && !r.Unset {
			at = r.Time
			return errEnough
		}
		return nil // the next one will do
	})
	if errors.Is(err, errEnough) {
		return at, nil
	}
	return at, errors.Join(err, fmt.Errorf("%s: no record in it knows its time", path))
}

// maxBreaks bounds what a Report lists.
const maxBreaks = 100

// Report is what Verify found.
type Report struct {
	Records     uint64
	Files       int
	First, Last uint64    // numbers
	From, To    time.Time // their times
	Head        string    // hash of the last record
	Removed     uint64    // last number that went with the oldest files, by the bound; 0: none
	Unfinished  bool      // the last line has no end: it is being written, or was cut by a power failure and will be noted at the next start
	Breaks      []Break   // where the chain does not hold, at most 100
	More        int       // breaks beyond those
}

// Break is a place at which the chain does not hold.
type Break struct {
	File string
	Line int    // from 1; 0: the file as a whole
	Seq  uint64 // of the record there; 0: it cannot be told
	What string
}

// String returns the place and what is wrong there.
func (b Break) String() string {
	text := b.File
	if b.Line > 0 {
		text += ":" + strconv.Itoa(b.Line)
	}
	if b.Seq > 0 {
		text += ": record " + strconv.FormatUint(b.Seq, 10)
	}
	return text + ": " + b.What
}

// Verify reads the whole record in the data directory dir and checks each link
// of the chain. It may run while a Log writes there. Its error says that the
// files cannot be read; what is wrong in them is in the Report.
func Verify(dir string) (Report, error) {
	var v verifier
	for range 2 {
		v = verifier{}
		// The head is read first: the files are then as long or longer.
		var err error
		if v.known, err = peekHead(dir); err != nil {
			return v.Report, err
		}
		if err := scan(dir, time.Time{}, true, v.step); err != nil {
			return v.Report, err
		}
		if v.known.hash != "" || v.Records == 0 {
			break
		} // else the log may have begun since the head was read
	}
	v.end()
	return v.Report, nil
}

// peekHead reads the head of a folder, the zero place if there is none or
// nothing in it.
func peekHead(dir string) (place, error) {
	f, err := os.Open(filepath.Join(dir, folderName, headName))
	if errors.Is(err, fs.ErrNotExist) {
		return place{}, nil
	}
	if err != nil {
		return place{}, err
	}
	p, err := readHead(f)
	return p, errors.Join(err, f.Close())
}

// verifier follows the chain.
type verifier struct {
	Report
	known  place  // by the head
	before place  // the record before
	held   string // hash of the record with the head's number
	file   string
	lost   uint64 // lines since the record before that are no records
}

func (v *verifier) broken(l line, seq uint64, format string, args ...any) {
	if len(v.Breaks) == maxBreaks {
		v.More++
		return
	}
	v.Breaks = append(v.Breaks, Break{l.file, l.line, seq, fmt.Sprintf(format, args...)})
}

// step looks at one line. What is wrong with it is said once: the next line is
// held against what it claims to be.
func (v *verifier) step(r Record, l line) error {
	if l.file != v.file {
		v.Files++
		v.file = l.file
	}
	if l.last {
		v.Unfinished = true
		return nil
	}
	if l.err != nil {
		v.lost++
		v.broken(l, 0, "is no record: %v", l.err)
		return nil
	}
	v.Records++
	next := v.before.seq + 1
	switch {
	case v.before.seq == 0:
		v.First, v.From = r.Seq, r.Time
		if r.Seq == 1 && r.Prev != start {
			v.broken(l, r.Seq, "is not the first of all: it names one before it")
		}
	case r.Seq == next && r.Prev != v.before.hash:
		v.broken(l, r.Seq, "does not follow the record %d that stands before it: that one was changed, or is another", v.before.seq)
	case r.Seq == next, r.Seq == next+v.lost: // the lines between have been named
	case r.Seq > next:
		v.broken(l, r.Seq, "%s missing before it", spanOf(next, r.Seq-1))
	default:
		v.broken(l, r.Seq, "stands after record %d: it was moved or put in", v.before.seq)
	}
	if !l.sound {
		v.broken(l, r.Seq, "was changed: its line does not give its hash")
	}
	if r.Event == Self {
		switch r.Status {
		case Removed:
			if n, err := strconv.ParseUint(r.Value, 10, 64); err == nil {
				v.Removed = n
			}
		case Damaged, Missing, Replaced:
			v.broken(l, r.Seq, "notes: %s", r.Reason)
		}
	}
	if r.Seq == v.known.seq {
		v.held = r.Hash
	}
	v.before, v.lost = place{r.Seq, r.Hash}, 0
	v.Last, v.To, v.Head = r.Seq, r.Time, r.Hash
	return nil
}

// end looks at what the lines cannot tell: whether the beginning and the end
// are there.
func (v *verifier) end() {
	head := line{file: headName}
	switch {
	case v.known.hash == "" && v.Records > 0:
		v.broken(head, 0, "is missing or empty: whether records are missing at the end cannot be told")
	case v.known.seq > v.Last:
		v.broken(head, v.known.seq, "was the last; %s missing at the end", spanOf(v.Last+1, v.known.seq))
	case v.held != "" && v.held != v.known.hash:
		v.broken(head, v.known.seq, "is not the one that was written last: it was replaced")
	}
	if v.First > v.Removed+1 {
		v.broken(line{file: fileName(1)}, 0, "%s missing at the beginning, and there is no record of their removal", spanOf(v.Removed+1, v.First-1))
	}
}

func spanOf(from, to uint64) string {
	if from == to {
		return fmt.Sprintf("record %d is", from)
	}
	return fmt.Sprintf("the records %d to %d are", from, to)
}
