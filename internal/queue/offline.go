package queue

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/internal/flash"
)

// The file of an uplink lies in the data directory as queue-NAME.db.
const (
	filePrefix = "queue-"
	fileSuffix = ".db"
)

func fileName(uplink string) string { return filePrefix + url.PathEscape(uplink) + fileSuffix }

// Summary is what the file of one uplink holds.
type Summary struct {
	Uplink   string    // its name in the configuration
	Path     string    // of the file
	Messages int       // that can be read
	Damaged  int       // messages that cannot be read
	Bytes    int64     // what the messages count against max_bytes
	Oldest   time.Time // when the first and the last of them were taken; zero: there is none
	Newest   time.Time // likewise
	Size     int64     // of the file, in bytes
	Fault    error     // the file cannot be used; then only Uplink, Path and Size are known
}

// Files looks at the queues in the folder dir of a gateway that is stopped, by
// the name of the uplink. It returns an error that wraps ErrLocked if a gateway
// is using one; a file that is damaged has a Fault. It changes nothing.
func Files(dir string) ([]Summary, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []Summary
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), filePrefix)
		if name, ok2 := strings.CutSuffix(name, fileSuffix); ok && ok2 && e.Type().IsRegular() {
			uplink, err := url.PathUnescape(name)
			if err != nil {
				continue // none of ours
			}
			s := Summary{Uplink: uplink, Path: filepath.Join(dir, e.Name())}
			if err := s.read(); err != nil {
				return nil, err
			}
			all = append(all, s)
		}
	}
	return all, nil
}

func (s *Summary) read() error {
	size, damaged, err := readRecords(s.Path, func(seq uint64, b []byte) error {
		at := wallTime(b)
		if s.Messages++; s.Messages == 1 {
			s.Oldest = at
		}
		s.Newest = at
		s.Bytes += int64(len(b)-extra(b)) - recordHeader + overhead
		return nil
	})
	if errors.Is(err, ErrLocked) {
		return err
	}
	if err != nil {
		s.Messages, s.Bytes, s.Oldest, s.Newest = 0, 0, time.Time{}, time.Time{}
	}
	s.Size, s.Damaged, s.Fault = size, damaged, err
	return nil
}

// Export calls each for the messages that wait for an uplink, in order, from
// the file in dir; a Payload is valid during the call. It returns how many
// could not be read. The error wraps fs.ErrNotExist if there is no such queue,
// ErrLocked if a gateway is using it, ErrCorrupt if the file is damaged, or is
// that of each. It changes nothing.
func Export(dir, uplink string, each func(Entry) error) (damaged int, err error) {
	path := filepath.Join(dir, fileName(uplink))
	_, damaged, err = readRecords(path, func(seq uint64, b []byte) error {
		return each(decode(seq, b, nil))
	})
	if errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return damaged, err
}

// readRecords calls each for every record in the file at path, without bbolt
// and without writing to it.
func readRecords(path string, each func(seq uint64, record []byte) error) (size int64, damaged int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return 0, 0, lockError(path, err)
	}
	_, _, err = undone(f, info.Size(), func(seq uint64, record []byte, ok bool) error {
		if !ok || !wellFormed(record) {
			damaged++
			return nil
		}
		return each(seq, record)
	})
	return info.Size(), damaged, err
}

func lockError(path string, err error) error {
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrLocked
	}
	return fmt.Errorf("%s: %w", path, err)
}

// Purge deletes the queue of an uplink in dir, the messages that wait with it.
// The error wraps fs.ErrNotExist if there is none, and ErrLocked if a gateway
// is using it.
func Purge(dir, uplink string) error {
	path := filepath.Join(dir, fileName(uplink))
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return lockError(path, err)
	}
	// Whoever waits for the lock sees then that the file is gone.
	if err := os.Remove(path); err != nil {
		return err
	}
	if err := os.Remove(path + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return flash.SyncFolder(dir)
}
