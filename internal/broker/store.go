package broker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"fieldgate/internal/flash"
)

// The buckets of broker.db. A value is a CRC-32C of key and record, big-endian,
// then the record.
const (
	clientBucket   = "clients"       // client id
	subBucket      = "subscriptions" // client id, NUL, filter
	inflightBucket = "inflight"      // client id, NUL, packet identifier
	retainedBucket = "retained"      // topic
)

func buckets() []string { return []string{clientBucket, subBucket, inflightBucket, retainedBucket} }

const (
	storeFile = "broker.db"
	// maxKey is bbolt's; a longer topic or filter is not saved.
	maxKey = 32768
	// compactFrom is the size in bytes from which a file is made anew at the
	// start if it is mostly empty.
	compactFrom = 4 << 20
	// storeRetry is how long nothing is written after a commit failed.
	storeRetry = 10 * time.Second
)

var (
	errBadRecord = errors.New("checksum does not match")
	errBadFile   = errors.New("damaged")
	errAnew      = errors.New("the file is begun anew")
)

// change is what one commit writes: by bucket and key, nil deletes.
type change map[string]map[string][]byte

func (c change) set(bucket, key string, record []byte) {
	if c[bucket] == nil {
		c[bucket] = make(map[string][]byte)
	}
	c[bucket][key] = record
}

// store is broker.db. Its methods take a nil store, which keeps nothing. It is
// for one goroutine, but for trouble.
type store struct {
	path string
	log  *slog.Logger
	db   *bbolt.DB // nil: it could not be opened

	ledger flash.Ledger // for all

	records map[string]map[string][]byte // what openStore found, until taken
	retry   time.Time
	anew    bool // the file was begun anew since isNew was asked

	// claim is the file while it is empty: it is ours by its lock, and the first
	// commit makes it. Nil: there is one.
	claim *os.File

	mu  sync.Mutex
	bad string // what is wrong, "": nothing
}

// openStore opens broker.db in dir and reads it. A damaged file becomes
// broker.db.damaged and a new one is begun; damaged records are left out and
// deleted. It is an error if another process has the file or dir is not ours
// to write to; when the disk is full or failing, the store tries again later. A
// new file is made by the first commit: that takes six syncs, and the polls
// must not wait for a slow disk.
func openStore(dir string, log *slog.Logger) (*store, error) {
	s := &store{path: filepath.Join(dir, storeFile), log: log}
	_ = os.Remove(s.path + ".new") // of a start that was cut off
	empty, err := s.claimEmpty()
	if !empty {
		if err = s.open(); damaged(err) {
			err = s.begin(err)
		}
	}
	switch {
	case errors.Is(err, bolterrors.ErrTimeout), errors.Is(err, unix.EWOULDBLOCK):
		return nil, fmt.Errorf("%s: another process has it open", s.path)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: %w", s.path, err)
	case err != nil:
		s.failed(err)
	}
	return s, nil
}

// claimEmpty locks the file if it is empty or not there, and reports whether
// that is so.
func (s *store) claimEmpty() (empty bool, err error) {
	info, err := os.Stat(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil, info.Size() > 0:
		return false, nil // open says what is wrong with it
	default: // of a process that was killed before it had anything to save, or lost
		s.log.Warn("the broker's file is empty: sessions and retained messages begin anew", "file", s.path)
	}
	f, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return true, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return true, errors.Join(err, f.Close())
	}
	s.claim = f
	return true, nil
}

// damaged reports whether err says that the file is no good, not the disk.
func damaged(err error) bool {
	var p panicked
	return errors.Is(err, errBadFile) || errors.Is(err, bolterrors.ErrInvalid) || errors.Is(err, bolterrors.ErrChecksum) ||
		errors.Is(err, bolterrors.ErrVersionMismatch) || errors.As(err, &p)
}

// open opens the file, making it if there is none, and reads all of it.
func (s *store) open() error {
	s.records = nil
	s.db = nil
	switch err := checkFile(s.path); {
	case errors.Is(err, fs.ErrNotExist):
		if err := createFile(s.path, &s.ledger); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	var dropped int
	err := guarded(func() error {
		db, err := bbolt.Open(s.path, 0o640, boltOptions())
		if err != nil {
			return err
		}
		if s.records, dropped, err = readAll(db, &s.ledger); err != nil {
			return errors.Join(err, db.Close())
		}
		s.db = db
		return nil
	})
	if err != nil {
		return err // after a panic the database stays open: its locks are held for ever
	}
	if dropped > 0 {
		s.log.Error("damaged records of the broker are left out", "file", s.path, "records", dropped)
	}
	return s.compact()
}

// boltOptions keep the list of free pages in the file. Without it bbolt looks
// for them in a goroutine of its own when it opens the file, and a damaged page
// makes that one panic, which ends the process.
func boltOptions() *bbolt.Options {
	return &bbolt.Options{Timeout: 2 * time.Second, FreelistType: bbolt.FreelistMapType}
}

// begin moves a file that cause says is damaged aside and starts a new one.
func (s *store) begin(cause error) error {
	aside := s.path + ".damaged"
	if err := os.Rename(s.path, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(cause, err)
	}
	s.log.Error("the broker's file is damaged: moved aside, sessions and retained messages begin anew",
		"file", s.path, "moved to", aside, "err", cause)
	return s.open()
}

// compact makes the file anew if it is large and mostly empty: bbolt never
// shrinks it.
func (s *store) compact() error {
	info, err := os.Stat(s.path)
	if err != nil {
		return err
	}
	var live int64
	for _, records := range s.records {
		for key, record := range records {
			live += int64(len(key) + len(record) + 64)
		}
	}
	if info.Size() < compactFrom || info.Size() < 4*live {
		return nil
	}
	c := make(change)
	for bucket, records := range s.records {
		for key, record := range records {
			c.set(bucket, key, record)
		}
	}
	tmp := s.path + ".new"
	err = writeFile(tmp, c, &s.ledger)
	if err == nil {
		err = s.db.Close()
		s.db = nil
	}
	if err == nil {
		err = rename(tmp, s.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	s.log.Info("broker's file compacted", "file", s.path, "bytes before", info.Size())
	return guarded(func() (err error) {
		s.db, err = bbolt.Open(s.path, 0o640, boltOptions())
		return err
	})
}

// take returns the records of a bucket that openStore found, by key.
func (s *store) take(bucket string) map[string][]byte {
	if s == nil {
		return nil
	}
	records := s.records[bucket]
	delete(s.records, bucket)
	return records
}

// ready reports whether it is time to write: not soon after a failure.
func (s *store) ready(now time.Time) bool { return s != nil && !now.Before(s.retry) }

// commit writes c in one transaction. After an error nothing of c is written;
// it may be that nothing written before is in the file any more, see isNew.
func (s *store) commit(c change) error {
	if len(c) == 0 {
		return nil
	}
	var err error
	switch {
	case s.claim != nil: // the first of all
		if err = createFile(s.path, &s.ledger); err == nil {
			_ = s.claim.Close()
			s.claim = nil
			err = s.open()
		}
		if err == nil {
			err = guarded(func() error { return write(s.db, c, &s.ledger) })
		}
	case s.db == nil:
		if err = s.open(); err == nil {
			s.anew, err = true, errAnew
		}
	default:
		err = guarded(func() error { return write(s.db, c, &s.ledger) })
	}
	var p panicked
	if errors.As(err, &p) {
		s.db = nil // its locks are held for ever
		s.anew = true
		err = errors.Join(err, s.begin(err))
	}
	if err != nil {
		s.failed(err)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bad != "" {
		s.log.Info("the broker's sessions and retained messages are saved again", "file", s.path)
	}
	s.bad = ""
	return nil
}

// failed notes that nothing can be written for a while.
func (s *store) failed(err error) {
	s.retry = time.Now().Add(storeRetry)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bad == "" {
		s.log.Error("the broker's sessions and retained messages are not saved", "file", s.path, "err", err)
	}
	s.bad = err.Error()
}

// isNew reports whether a commit had to begin the file anew.
func (s *store) isNew() bool {
	anew := s.anew
	if anew {
		s.anew, s.retry = false, time.Time{}
	}
	return anew
}

// trouble returns why nothing is saved at present, "" if it is.
func (s *store) trouble() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bad
}

func (s *store) close() error {
	switch {
	case s == nil:
		return nil
	case s.claim != nil: // nothing was ever saved
		return errors.Join(os.Remove(s.path), s.claim.Close())
	case s.db == nil:
		return nil
	}
	return guarded(s.db.Close)
}

// panicked is a panic of bbolt, or a fault of the memory it maps.
type panicked struct{ value any }

func (p panicked) Error() string { return fmt.Sprintf("damaged: %v", p.value) }

// guarded runs f. Where bbolt meets a damaged page or a short file it panics or
// faults; that becomes a panicked error.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = panicked{p}
		}
	}()
	return f()
}

// write makes c in one transaction and enters in l what that wrote: the pages
// that it took, and a meta page, with a sync after each.
func write(db *bbolt.DB, c change, l *flash.Ledger) error {
	return db.Update(func(tx *bbolt.Tx) error {
		tx.OnCommit(func() {
			s := tx.Stats()
			l.Add(s.GetPageAlloc()+int64(db.Info().PageSize), 2)
		})
		for name, records := range c {
			b, err := tx.CreateBucketIfNotExists([]byte(name))
			if err != nil {
				return err
			}
			for key, record := range records {
				if record == nil {
					err = b.Delete([]byte(key))
				} else {
					err = b.Put([]byte(key), seal(key, record))
				}
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// readAll returns all good records by bucket and key, and how many were bad.
func readAll(db *bbolt.DB, l *flash.Ledger) (all map[string]map[string][]byte, bad int, err error) {
	all = make(map[string]map[string][]byte)
	var drop = make(change)
	err = db.View(func(tx *bbolt.Tx) error {
		for _, name := range buckets() {
			b := tx.Bucket([]byte(name))
			if b == nil {
				continue
			}
			all[name] = make(map[string][]byte)
			err := b.ForEach(func(k, v []byte) error {
				record, err := unseal(string(k), v)
				if err != nil {
					bad++
					drop.set(name, string(k), nil)
					return nil
				}
				all[name][string(k)] = record
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && bad > 0 {
		err = write(db, drop, l)
	}
	return all, bad, err
}

func seal(key string, record []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, sumOf(key, record)), record...)
}

// unseal returns a copy of the record in a value.
func unseal(key string, value []byte) ([]byte, error) {
	if len(value) < 4 || binary.BigEndian.Uint32(value) != sumOf(key, value[4:]) {
		return nil, errBadRecord
	}
	return append([]byte{}, value[4:]...), nil
}

func sumOf(key string, record []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum([]byte(key), table), table, record)
}

// createFile makes an empty database under another name first: one that is cut
// while it is made cannot be opened again.
func createFile(path string, l *flash.Ledger) error {
	tmp := path + ".new"
	if err := writeFile(tmp, nil, l); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return rename(tmp, path)
}

// writeFile makes a database of c, which is synced when it returns.
func writeFile(path string, c change, l *flash.Ledger) error {
	return guarded(func() error {
		db, err := bbolt.Open(path, 0o640, boltOptions())
		if err != nil {
			return err
		}
		l.Add(4*int64(db.Info().PageSize), 2) // an empty file is four pages; and the sync below
		return errors.Join(write(db, c, l), db.Sync(), db.Close())
	})
}

// rename replaces path by tmp and has the folder on disk when it returns.
func rename(tmp, path string) error {
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	err = dir.Sync()
	if errors.Is(err, syscall.EINVAL) { // a file system that has no such thing
		err = nil
	}
	return errors.Join(err, dir.Close())
}

// Layout of a bbolt file (its internal/common/meta.go): two meta pages of
// pageSize bytes, each a header of 16 bytes and the meta.
const (
	metaHeader = 16
	metaSize   = 64
	metaMagic  = 0xED0CDAED
	metaMinor  = 2 // version
)

// checkFile looks whether bbolt may map the file: at least one good meta page,
// and for the newer of them all the pages it speaks of. A file that is shorter
// would end the process.
func checkFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := uint64(info.Size())
	var newest *metaPage
	for _, at := range []int64{0, int64(os.Getpagesize())} {
		m, err := readMeta(f, at)
		if err != nil {
			return err
		}
		// A file from a machine of another page size has its second page elsewhere.
		if m != nil && at == 0 && m.pageSize != uint64(os.Getpagesize()) {
			second, err := readMeta(f, int64(m.pageSize))
			if err != nil {
				return err
			}
			if second != nil && second.txid > m.txid {
				m = second
			}
			newest = m
			break
		}
		if m != nil && (newest == nil || m.txid > newest.txid) {
			newest = m
		}
	}
	switch {
	case newest == nil:
		return fmt.Errorf("%w: %d bytes without a good meta page", errBadFile, size)
	case newest.pages < 4 || newest.pages > size/newest.pageSize:
		return fmt.Errorf("%w: %d bytes, but %d pages of %d", errBadFile, size, newest.pages, newest.pageSize)
	}
	return nil
}

type metaPage struct{ pageSize, pages, txid uint64 }

// readMeta returns the meta page at an offset, nil if it is none or damaged.
func readMeta(f *os.File, at int64) (*metaPage, error) {
	var page [metaHeader + metaSize]byte
	if _, err := f.ReadAt(page[:], at); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, err
	}
	b, ne := page[metaHeader:], binary.NativeEndian
	h := fnv.New64a()
	_, _ = h.Write(b[:metaSize-8])
	m := &metaPage{pageSize: uint64(ne.Uint32(b[8:])), pages: ne.Uint64(b[40:]), txid: ne.Uint64(b[48:])}
	// Without a list of free pages it would be as boltOptions says.
	good := ne.Uint64(b[32:]) != math.MaxUint64 && ne.Uint32(b) == metaMagic && ne.Uint32(b[4:]) == metaMinor && ne.Uint64(b[56:]) == h.Sum64() &&
		m.pageSize >= 1024 && m.pageSize <= 64<<10
	if !good {
		return nil, nil
	}
	return m, nil
}
