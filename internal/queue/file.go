package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"fieldgate/internal/flash"
)

// ErrCorrupt is wrapped by errors about a queue's file that cannot be used.
var ErrCorrupt = errors.New("file is damaged")

// The file is a bbolt database with one bucket: sequence number (8 bytes, big
// endian) → the records from that number on, as block.go has them. The bucket's
// own sequence is the head: records below are done, and gone from the file when
// all of their block are.
const (
	bucketName = "messages"

	// txRecords and txBytes bound one transaction, which bbolt builds in memory.
	txRecords = 20_000
	txBytes   = 4 << 20

	lockPatience = 2 * time.Second // for another process to let go of the file

	// addressMost bounds the file where addresses have 32 bits: bbolt maps the
	// whole of it in one piece.
	addressMost = 512 << 20
)

// errLimit says that the file would grow past its limit.
var errLimit = errors.New("file is as large as it may become")

// file is the disk under a queue. It keeps records by their sequence numbers
// and knows nothing of messages. commit, rewrite and close are for one
// goroutine; load may run beside them.
//
// Everything that touches bbolt is guarded: a page that goes bad while it is
// open makes it panic, one that cannot be read faults. After an error that
// wraps ErrCorrupt the file must not be used again.
type file struct {
	path     string
	head     uint64   // that it had when it was opened
	old      bool     // there were values then with nothing from the head on
	packs    packer   // of commit
	unpacks  unpacker // of load
	db       *bolt.DB
	raw      *os.File // what db reads and writes
	readOnly bool
	most     int64       // bytes that it may grow to; 0: any
	broken   atomic.Bool // bbolt has panicked: its locks may be held for ever
	ledger   *flash.Ledger
}

// openFile opens the file at path, which must exist (fs.ErrNotExist); for
// reading only where it may not be written. It reads all of it and calls each, if
// not nil, for every record in order; ok is false for one that cannot be read.
// record is valid during the call.
func openFile(path string, l *flash.Ledger, each func(seq uint64, record []byte, ok bool)) (*file, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", path, corrupt("it is no file"))
	}
	var head uint64
	old := false
	look := func(f *os.File) error {
		info, err := f.Stat()
		if err != nil {
			return err
		}
		head, old, err = undone(f, info.Size(), func(seq uint64, record []byte, ok bool) error {
			if each != nil {
				each(seq, record, ok)
			}
			return nil
		})
		return err
	}
	f, err := mapFile(path, l, false, look)
	if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		f, err = mapFile(path, l, true, look)
	}
	if err != nil {
		return nil, err
	}
	f.head, f.old = head, old
	return f, nil
}

// undone inspects the bbolt file of size bytes in r and calls each, until it
// returns an error, for every record that is not done, in order, as unpack does.
// old says that there are values with none of them.
//
// Nothing but the records has a checksum: a head above them all, which no commit
// leaves behind, is damaged, and counts as 0. What was done comes again then, which
// is better than to lose what was not.
func undone(r io.ReaderAt, size int64, each func(seq uint64, record []byte, ok bool) error) (head uint64, old bool, err error) {
	var u unpacker
	above := false
	head, err = inspect(r, size, func(head uint64, key, value []byte) (err error) {
		old = old || last(key, value) < head
		above = headAbove(head, key, value)
		u.unpack(key, value, head, func(seq uint64, record []byte, ok bool) {
			if err == nil {
				err = each(seq, record, ok)
			}
		})
		return err
	})
	if err != nil || !above {
		return head, old, err
	}
	_, err = inspect(r, size, func(head uint64, key, value []byte) (err error) {
		u.unpack(key, value, 0, func(seq uint64, record []byte, ok bool) {
			if err == nil && seq < head { // the others have been told
				err = each(seq, record, ok)
			}
		})
		return err
	})
	return 0, false, err
}

// headAbove reports whether a head is above all records of the last value, so that
// it cannot be the head.
func headAbove(head uint64, key, value []byte) bool {
	most := last(key, value)
	if !sound(key, value) { // nor can what it says be believed
		most = max(most, binary.BigEndian.Uint64(key)+blockSpan)
	}
	return head > most
}

// createFile makes an empty file at path and opens it. Until it is whole and on
// disk it has another name, so that a power cut leaves either nothing or a file.
func createFile(path string, l *flash.Ledger) (*file, error) {
	f, err := writeFile(path, l, nil)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	return f, nil
}

// writeFile makes a file with the records that fill puts into it (nil: none),
// gives it the name path and opens it.
func writeFile(path string, l *flash.Ledger, fill func(*bolt.Bucket) error) (*file, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := mapFile(temp, l, false, func(*os.File) error { return nil })
	if err != nil {
		return nil, err
	}
	err = guard(func() error {
		return f.db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte(bucketName))
			if err != nil || fill == nil {
				return err
			}
			return fill(b)
		})
	})
	if err == nil {
		err = f.db.Sync()
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err == nil {
		err = flash.SyncFolder(dir)
	}
	if err != nil {
		f.close()
		_ = os.Remove(temp)
		return nil, err
	}
	f.path = path
	l.Add(f.size(), 4)
	return f, nil
}

// mapFile opens path with bbolt, which makes it if it does not exist. look is
// called once the file is locked and before bbolt reads it.
func mapFile(path string, l *flash.Ledger, readOnly bool, look func(*os.File) error) (*file, error) {
	f := &file{path: path, readOnly: readOnly, ledger: l}
	err := guard(func() error {
		var err error
		f.db, err = bolt.Open(path, 0o600, &bolt.Options{
			Timeout:      lockPatience,
			FreelistType: bolt.FreelistMapType,
			ReadOnly:     readOnly,
			// In a file that is half empty the list would be written with each
			// commit, a quarter of a megabyte. Without it bbolt looks for the free
			// pages when it opens the file, where it ends the process over a page
			// that is no good: inspect has seen to it that there is none.
			NoFreelistSync: true,
			OpenFile: func(path string, flag int, mode os.FileMode) (*os.File, error) {
				raw, err := os.OpenFile(path, flag, mode)
				if err != nil {
					return nil, err
				}
				if err = lockFile(raw); err == nil {
					err = look(raw)
				}
				if err != nil {
					return nil, errors.Join(err, raw.Close())
				}
				f.raw = raw
				return raw, nil
			},
		})
		return err
	})
	if err != nil {
		if f.raw != nil {
			f.abandon()
		}
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return f, nil
}

// lockFile waits a while for another process to let go of the file.
func lockFile(f *os.File) error {
	for deadline := time.Now().Add(lockPatience); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return exists(f)
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if time.Now().After(deadline) {
			return ErrLocked
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// exists returns fs.ErrNotExist if the file was deleted while it was waited for.
func exists(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Nlink == 0 {
		return fs.ErrNotExist
	}
	return nil
}

// ErrLocked says that another process uses the file.
var ErrLocked = errors.New("another process uses it")

// guard runs do and turns a panic, and a fault in mapped memory, into an error
// that wraps ErrCorrupt.
func guard(do func() error) (err error) {
	before := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(before)
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, r)
		}
	}()
	err = do()
	if errors.Is(err, bolterrors.ErrInvalid) || errors.Is(err, bolterrors.ErrChecksum) || errors.Is(err, bolterrors.ErrVersionMismatch) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

// guarded is guard for an open file.
func (f *file) guarded(do func() error) error {
	err := guard(do)
	if errors.Is(err, ErrCorrupt) {
		f.broken.Store(true)
	}
	return err
}

// load calls each for the records from first to last, as openFile does.
func (f *file) load(first, last uint64, each func(seq uint64, record []byte, ok bool)) error {
	return f.guarded(func() error {
		return f.db.View(func(tx *bolt.Tx) error {
			b := tx.Bucket([]byte(bucketName))
			if b == nil {
				return corrupt("no bucket in it")
			}
			c := b.Cursor()
			for k, v := seek(c, first); k != nil; k, v = c.Next() {
				if len(k) != 8 {
					return corrupt("a key of %d bytes", len(k))
				}
				if seq := binary.BigEndian.Uint64(k); seq > last {
					return nil
				}
				f.unpacks.unpack(k, v, first, func(seq uint64, record []byte, ok bool) {
					if seq <= last {
						each(seq, record, ok)
					}
				})
			}
			return nil
		})
	})
}

// seek returns the value in which a number is or would be, or the first if there
// is none before it.
func seek(c *bolt.Cursor, seq uint64) (key, value []byte) {
	key, value = c.Seek(binary.BigEndian.AppendUint64(nil, seq))
	switch {
	case key == nil:
		return c.Last()
	case len(key) == 8 && binary.BigEndian.Uint64(key) == seq:
		return key, value
	}
	if key, value = c.Prev(); key != nil {
		return key, value
	}
	return c.First()
}

// commit deletes the records below a sequence number and those of gone, and
// adds puts, in order and above all that are there, in one transaction. It
// returns whether there is more to delete: one transaction takes only so much.
func (f *file) commit(below uint64, gone []uint64, puts []put) (more bool, err error) {
	var alloc int64
	err = f.guarded(func() error {
		return f.db.Update(func(tx *bolt.Tx) error {
			b := tx.Bucket([]byte(bucketName))
			if b == nil {
				return corrupt("no bucket in it")
			}
			b, more, err = f.forget(tx, b, below)
			if err != nil {
				return err
			}
			b.FillPercent = 1 // keys only rise: pages are filled to the end
			if err := f.takeOut(b, gone, below); err != nil {
				return err
			}
			if err := f.room(tx, puts); err != nil {
				return err
			}
			if err := f.packs.pack(puts, b.Put); err != nil {
				return err
			}
			tx.OnCommit(func() {
				s := tx.Stats()
				alloc = s.GetPageAlloc()
			})
			return nil
		})
	})
	if err != nil {
		return false, fmt.Errorf("write %s: %w", f.path, err)
	}
	f.ledger.Add(alloc+int64(os.Getpagesize()), 2) // and a meta page; one sync each
	return more, nil
}

// takeOut deletes single records: the rest of their blocks is written again.
func (f *file) takeOut(b *bolt.Bucket, gone []uint64, below uint64) error {
	slices.Sort(gone)
	for len(gone) > 0 {
		k, v := seek(b.Cursor(), gone[0])
		if k == nil {
			return nil
		}
		end := max(last(k, v), gone[0])
		n, _ := slices.BinarySearch(gone, end+1)
		var left []put
		found, damaged := false, false
		var u unpacker
		u.unpack(k, v, below, func(seq uint64, record []byte, ok bool) {
			_, is := slices.BinarySearch(gone[:n], seq)
			if found, damaged = found || is, damaged || !ok; !is {
				left = append(left, put{seq, append(make([]byte, crcBytes), record...)})
			}
		})
		gone = gone[n:]
		if damaged || !found { // damaged it is left as it is, and counted
			continue
		}
		if err := b.Delete(bytes.Clone(k)); err != nil {
			return err
		}
		if err := f.packs.pack(left, b.Put); err != nil {
			return err
		}
	}
	return nil
}

// try writes to the file without changing what is in it. A disk that is full takes
// that, since nothing grows: it must have room for so many bytes more, too.
func (f *file) try(bytes int64) error {
	info, err := f.raw.Stat()
	if err != nil {
		return err
	}
	if bytes > 0 {
		fd := int(f.raw.Fd())
		err := unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, info.Size(), bytes)
		if err == nil {
			err = unix.Ftruncate(fd, info.Size()) // gives it back
		}
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("write %s: %w", f.path, err)
		}
	}
	_, err = f.commit(0, nil, nil)
	return err
}

// room returns errLimit if puts would make the file larger than it may become.
func (f *file) room(tx *bolt.Tx, puts []put) error {
	if f.most == 0 || len(puts) == 0 {
		return nil
	}
	const perRecord = 8 + elementSize // beside its bytes
	need := int64(64 << 10)           // branches, and pages that are not full
	for _, p := range puts {
		need += int64(len(p.bytes)) + perRecord
	}
	free := int64(f.db.Stats().FreePageN) * int64(f.db.Info().PageSize)
	if tx.Size()+max(0, need-free) > f.most {
		return errLimit
	}
	return nil
}

// forget makes a sequence number the head, and deletes the values that hold
// nothing from there on, as many as one transaction takes.
func (f *file) forget(tx *bolt.Tx, b *bolt.Bucket, below uint64) (_ *bolt.Bucket, more bool, err error) {
	c := b.Cursor()
	k, v := c.Last()
	damaged := k != nil && headAbove(b.Sequence(), k, v)
	if k != nil && last(k, v) < below {
		// Nothing stays: pages are given back without being looked at.
		if err := tx.DeleteBucket([]byte(bucketName)); err != nil {
			return nil, false, err
		}
		if b, err = tx.CreateBucket([]byte(bucketName)); err != nil {
			return nil, false, err
		}
		f.packs = packer{} // the outage is over
		return b, false, b.SetSequence(below)
	}
	// A cursor that deletes as it goes may pass over a record.
	var keys [][]byte
	for k, v := c.First(); k != nil && binary.BigEndian.Uint64(k) < below; {
		if len(keys) == txRecords {
			more = true
			break
		}
		next, w := c.Next()
		if last(k, v) < below || next != nil && binary.BigEndian.Uint64(next) <= below {
			keys = append(keys, bytes.Clone(k))
		}
		k, v = next, w
	}
	for _, k := range keys {
		if err := b.Delete(k); err != nil {
			return nil, false, err
		}
	}
	if below > b.Sequence() || damaged {
		err = b.SetSequence(below)
	}
	return b, more, err
}

// rewrite returns a new file at the same path with the records from a sequence
// number on, which must be few. This one is to be closed then.
func (f *file) rewrite(from uint64) (*file, error) {
	fresh, err := writeFile(f.path, f.ledger, func(to *bolt.Bucket) error {
		to.FillPercent = 1
		if err := to.SetSequence(from); err != nil {
			return err
		}
		return f.db.View(func(tx *bolt.Tx) error {
			c := tx.Bucket([]byte(bucketName)).Cursor()
			for k, v := seek(c, from); k != nil; k, v = c.Next() {
				// Both are in memory that ends with f; bbolt copies the key only.
				if err := to.Put(k, bytes.Clone(v)); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("compact %s: %w", f.path, err)
	}
	return fresh, nil
}

// size returns how many bytes of the file are in use or have been.
func (f *file) size() int64 {
	var n int64
	if err := f.guarded(func() error {
		return f.db.View(func(tx *bolt.Tx) error {
			n = tx.Size()
			return nil
		})
	}); err != nil {
		return 0
	}
	return n
}

// close lets go of the file. Of one that is broken only the lock is freed: its
// mapped memory is lost to the process.
func (f *file) close() {
	if f.broken.Load() {
		f.abandon()
		return
	}
	_ = guard(f.db.Close)
}

// abandon frees the lock, which the mapped memory would hold on to.
func (f *file) abandon() {
	_ = unix.Flock(int(f.raw.Fd()), unix.LOCK_UN)
	_ = f.raw.Close()
}

// noSpace reports whether err says that the disk is full, for all or for us.
func noSpace(err error) bool {
	return errors.Is(err, errLimit) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// putAside renames a damaged file so that it is not in the way, and returns its
// new name. One is kept; an older one goes.
func putAside(path string) (string, error) {
	aside := path + ".damaged"
	if err := os.Rename(path, aside); err != nil {
		return "", err
	}
	return aside, flash.SyncFolder(filepath.Dir(path))
}
