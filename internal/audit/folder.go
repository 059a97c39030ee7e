package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The folder in the data directory: audit-000001.jsonl and so on, of which only
// the last is written, and head.
const (
	folderName = "audit"
	headName   = "head"
	prefix     = "audit-"
	suffix     = ".jsonl"
	temporary  = ".new" // until its first records are on disk
)

func fileName(number int) string { return fmt.Sprintf("%s%06d%s", prefix, number, suffix) }

// list returns the numbers of the files in folder, the oldest first. A folder
// that is not there has none.
func list(folder string) ([]int, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), prefix)
		digits, end := strings.CutSuffix(digits, suffix)
		if n, err := strconv.Atoi(digits); ok && end && err == nil && n > 0 && e.Name() == fileName(n) {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// lines calls each for every line of r, without its end. It stops at the first
// error of each. whole is false for a last line without an end. Of a line longer
// than a record can be only the beginning is given. text is valid during the
// call.
func lines(r io.Reader, each func(text []byte, whole bool) error) error {
	b := bufio.NewReaderSize(r, maxLine)
	for {
		text, err := b.ReadSlice('\n')
		switch {
		case err == nil:
			err = each(text[:len(text)-1], true)
		case errors.Is(err, io.EOF):
			if len(text) > 0 {
				err = each(text, false)
			} else {
				err = nil
			}
			return err
		case errors.Is(err, bufio.ErrBufferFull):
			err = each(text, true)
			for rest := bufio.ErrBufferFull; err == nil && rest != nil; {
				if _, rest = b.ReadSlice('\n'); rest != nil && !errors.Is(rest, bufio.ErrBufferFull) {
					if errors.Is(rest, io.EOF) {
						return nil
					}
					return rest
				}
			}
		}
		if err != nil {
			return err
		}
	}
}

// ending is what a writer has to know of a file.
type ending struct {
	last    place  // the last sound record; seq 0: none
	good    int64  // where the first line ends that is not as it should be, or the file
	badLine int    // that line; 0: none
	later   bool   // a sound record follows it
	held    string // hash of the record with the number that was asked for
}

// look reads the file at path. held is asked for the record number held.
func look(path string, held uint64) (e ending, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return e, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return e, 0, err
	}
	number := 0
	err = lines(f, func(text []byte, whole bool) error {
		number++
		at, before, good := glance(text)
		good = good && whole
		if good && e.last.seq > 0 && e.badLine == 0 && (at.seq != e.last.seq+1 || before != e.last.hash) {
			good = false
			e.later = true
		}
		switch {
		case good:
			e.last = at
			if at.seq == held {
				e.held = at.hash
			}
			if e.badLine > 0 {
				e.later = true
			} else {
				e.good += int64(len(text)) + 1
			}
		case e.badLine == 0:
			e.badLine = number
		}
		return nil
	})
	if err != nil { // what can be read of it is what there is
		e.later = true
		if e.badLine == 0 {
			e.badLine = number + 1
		}
	}
	return e, info.Size(), nil
}

// head is the file that names the last record. It is written in place after
// each group of records, and not synced: it is never ahead of them, and behind
// only after a power cut or a kill. Before the first record of all it names the
// one before, which there is not. Its lock says that the folder has a writer.
type head struct{ file *os.File }

// headSize is the length of what head holds: a number, a space, a hash and the
// end of the line.
const headSize = 20 + 1 + hashLen + 1

// lockPatience is how long another process may take to let go of the folder: a
// service that is restarted has ended by then.
const lockPatience = 2 * time.Second

var errLocked = errors.New("another process writes it")

// openHead opens or makes the head of a folder, locks it and reads it. was is
// false if it was not there, closed if the log was left open.
func openHead(folder string) (h head, p place, was, closed bool, err error) {
	path := filepath.Join(folder, headName)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	was = err == nil
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	}
	if err != nil {
		return head{}, place{}, false, false, err
	}
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(50 * time.Millisecond) {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		if time.Now().After(deadline) {
			err = errLocked
			break
		}
	}
	if err == nil {
		p, err = readHead(f)
	}
	if err == nil {
		mark := make([]byte, len(closedMark))
		_, _ = f.ReadAt(mark, headSize) // what cannot be read is no mark
		if closed = string(mark) == closedMark; closed {
			err = f.Truncate(headSize)
		}
		closed = closed || !was
	}
	if err != nil {
		return head{}, place{}, false, false, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return head{f}, p, was, closed, nil
}

// closedMark stands behind what head holds while nobody has the log open: whoever
// had it has come to its end in order.
const closedMark = "closed\n"

// close marks the end of a log, whose last record is at p.
func (h head) close(p place) error {
	err := h.write(p)
	if err == nil {
		_, err = h.file.WriteAt([]byte(closedMark), headSize)
	}
	return errors.Join(err, h.file.Sync())
}

// readHead returns what a head holds, the zero place if that is nothing. The
// head of a folder without records has a hash.
func readHead(r io.ReaderAt) (place, error) {
	var text [headSize]byte
	if n, err := r.ReadAt(text[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return place{}, err
	} else if n < headSize {
		return place{}, nil
	}
	seq, err := strconv.ParseUint(string(text[:20]), 10, 64)
	hash := string(text[21 : headSize-1])
	if err != nil || text[20] != ' ' || text[headSize-1] != '\n' || strings.Trim(hash, "0123456789abcdef") != "" {
		return place{}, nil
	}
	return place{seq, hash}, nil
}

func (h head) write(p place) error {
	_, err := h.file.WriteAt(fmt.Appendf(nil, "%020d %s\n", p.seq, p.hash), 0)
	return err
}
