package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/internal/clock"
	"fieldgate/internal/flash"
)

// Bounds of the folder. A write leaves about 1 KB: two records. 64 MiB are then
// some 60,000 writes, a year of one each ten minutes.
const (
	fileBytes = 1 << 20 // a file that is as long is followed by another; only the last is read at a start
	fileCount = 64      // then the oldest goes
)

const (
	// maxWaiting bounds the callers that wait for the disk at once.
	maxWaiting = 4096
	// openPause is how soon a folder that could not be opened is tried again.
	openPause = time.Second
)

// Options may be left zero.
type Options struct {
	FileBytes int64 // default 1 MiB, at least 4 KiB
	Files     int   // kept, at least 2; default 64

	// OnRecord is called for each record once it is on disk, in order. It must
	// not block and must not call the Log.
	OnRecord func(Record)

	// Clock tells the times of records, and whether it was set then. nil
	// believes the machine's.
	Clock *clock.Clock
}

// Stats is what a Log did since the start, and what it cost.
type Stats struct {
	Seq        uint64 // number of the last record of all
	Records    uint64 // written
	Unrecorded uint64 // not taken because the disk took none
	Fault      string // why nothing is taken now; "" if it is
	Suspect    string // what was not as it had been written, when it was last opened; "" if all was
	Flash      flash.Report
}

// Log is the writer's end of the record. It is safe for use by several
// goroutines. One process can have it open; readers need no Log.
type Log struct {
	folder    string
	fileBytes int64
	files     int
	onRecord  func(Record)
	clock     *clock.Clock
	log       *slog.Logger

	mu      sync.Mutex
	waiting []*entry
	busy    bool // commits runs
	closed  bool
	running sync.WaitGroup // of commits

	// The rest belongs to commits, and to Open and Close when that does not run.
	head    head
	open    bool // head is open and locked, the rest is known
	last    place
	file    *os.File // nil: the next group begins one
	number  int      // of file, or of the last there is
	good    int64    // where the next record goes
	size    int64    // of file, dirt behind good included
	notes   []Record // the log's own, to go before the next record
	missed  missed
	retry   time.Time // the folder is not opened again before
	failure error     // what the last try to open it said
	failing bool

	ledger             flash.Ledger // in whole pages
	seq, records, lost atomic.Uint64
	fault, suspect     atomic.Pointer[string]
	cut                atomic.Bool // who had it open before was killed, or lost its power
}

// missed are the records that were not taken since the disk takes none.
type missed struct {
	count       int
	first, last time.Time
	cause       error
}

// entry is a record on its way.
type entry struct {
	record Record
	done   chan error // has room for the one answer
}

// Open opens the record in the data directory dir, or begins one. What it finds
// cut, damaged or missing it leaves or cuts, and notes. A disk that cannot be
// read or written is no error: Append then says so, and tries it again. An
// error means that another process has the record open. Close must follow.
func Open(dir string, o Options, log *slog.Logger) (*Log, error) {
	l := &Log{
		folder: filepath.Join(dir, folderName), fileBytes: o.FileBytes, files: o.Files, onRecord: o.OnRecord, clock: o.Clock, log: log,
		last: place{0, start},
	}
	if l.fileBytes <= 0 {
		l.fileBytes = fileBytes
	}
	if l.files <= 0 {
		l.files = fileCount
	}
	l.fileBytes, l.files = max(l.fileBytes, 4096), max(l.files, 2) // so that a file takes more than the note of a removal
	if err := l.commit(nil); errors.Is(err, errLocked) {
		return nil, fmt.Errorf("audit log %s: %w", l.folder, errLocked)
	}
	return l, nil
}

// Append records r and returns it, numbered and chained, once it is on disk.
// Calls that wait at the same time share a sync. An error wraps ErrNotRecorded:
// what r announces must not happen. When ctx ends first the record may come to
// stand in the file all the same.
func (l *Log) Append(ctx context.Context, r Record) (Record, error) { return l.Start(r)(ctx) }

// Start is Append without the waiting, which is done by what it returns: records
// that one goroutine starts stand in the order in which it does.
func (l *Log) Start(r Record) (wait func(ctx context.Context) (Record, error)) {
	refused := func(err error) func(context.Context) (Record, error) {
		return func(context.Context) (Record, error) { return r, err }
	}
	if r.Event == "" {
		return refused(fmt.Errorf("%w: it names no event", ErrNotRecorded))
	}
	e := &entry{record: r.tidy(l.clock), done: make(chan error, 1)}
	l.mu.Lock()
	switch {
	case l.closed:
		l.mu.Unlock()
		return refused(fmt.Errorf("%w: the log is closed", ErrNotRecorded))
	case len(l.waiting) == maxWaiting:
		l.mu.Unlock()
		return refused(fmt.Errorf("%w: %d records wait for the disk already", ErrNotRecorded, maxWaiting))
	}
	l.waiting = append(l.waiting, e)
	if !l.busy {
		l.busy = true
		l.running.Go(l.commits) // ends when nobody waits; Close waits for that
	}
	l.mu.Unlock()
	return func(ctx context.Context) (Record, error) {
		select {
		case err := <-e.done:
			if err != nil {
				return r, err
			}
			return e.record, nil
		case <-ctx.Done():
			l.withdraw(e)
			return r, fmt.Errorf("%w: the disk takes too long: %w", ErrNotRecorded, ctx.Err())
		}
	}
}

// Again has a disk that took nothing be tried again, if there is one: else a fault
// would last until the next record. It does not wait.
func (l *Log) Again() {
	if l.fault.Load() == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy || l.closed {
		return
	}
	l.busy = true
	l.running.Go(func() { // ends as commits does
		_ = l.commit(nil) // it says itself what it missed, or goes on failing
		l.commits()
	})
}

// withdraw takes back an entry that is not on its way to the disk yet.
func (l *Log) withdraw(e *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, w := range l.waiting {
		if w == e {
			l.waiting = append(l.waiting[:i], l.waiting[i+1:]...)
			return
		}
	}
}

// commits writes what waits, all of it with one sync each time, until nothing
// does.
func (l *Log) commits() {
	for {
		l.mu.Lock()
		group := l.waiting
		l.waiting = nil
		if len(group) == 0 {
			l.busy = false
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		err := l.commit(group)
		for _, e := range group {
			e.done <- err
		}
	}
}

// commit brings a group of records to the disk, after what the log has to say
// of itself.
func (l *Log) commit(group []*entry) error {
	err := l.write(group)
	if err == nil {
		l.worked()
		return nil
	}
	err = fmt.Errorf("%w: %w", ErrNotRecorded, err)
	l.failed(err, len(group))
	return err
}

func (l *Log) write(group []*entry) error {
	if err := l.ensure(); err != nil {
		return err
	}
	notes := l.notes
	if l.missed.count > 0 {
		notes = append(notes, l.missed.note())
	}
	if len(notes)+len(group) == 0 {
		return nil
	}
	records := make([]Record, 0, len(notes)+len(group))
	for _, n := range notes {
		records = append(records, n.tidy(l.clock))
	}
	for _, e := range group {
		records = append(records, e.record)
	}
	last := l.last
	var data []byte
	for i := range records {
		last = records[i].seal(last)
		data = append(append(data, records[i].JSON()...), '\n')
	}
	fresh := l.file == nil || l.good >= l.fileBytes
	if fresh {
		if err := l.begin(data, last); err != nil {
			return err
		}
	} else if err := l.extend(data); err != nil {
		return err
	}
	// From here on the records are there, whatever the head says.
	if err := l.head.write(last); err != nil {
		l.log.Warn("audit log: a missing end would not be seen", "err", err)
	}
	l.ledger.Add(int64(os.Getpagesize()), 0) // at most: the head is written when the system likes
	l.last, l.notes, l.missed = last, nil, missed{}
	l.seq.Store(last.seq)
	l.records.Add(uint64(len(records)))
	for i := range group {
		group[i].record = records[len(notes)+i]
	}
	if l.onRecord != nil {
		for _, r := range records {
			l.onRecord(r)
		}
	}
	if fresh {
		l.retire()
	}
	return nil
}

// extend writes data behind the last record. What was torn there is overwritten
// by what says so, and then cut: a power cut between leaves it torn again.
func (l *Log) extend(data []byte) error {
	end := l.good + int64(len(data))
	_, err := l.file.WriteAt(data, l.good)
	if err == nil && l.size > end {
		err = l.file.Truncate(end)
	}
	if err == nil {
		err = unix.Fdatasync(int(l.file.Fd()))
	}
	if err != nil {
		// Half of it may be there, and all may be read although it is not on the
		// disk. It is written over next time, and gone until then if possible.
		l.size = math.MaxInt64
		_ = l.file.Truncate(l.good)
		var wrong *fs.PathError // it names the path that the file had when it was begun
		if errors.As(err, &wrong) {
			err = wrong.Err
		}
		return fmt.Errorf("write %s: %w", filepath.Join(l.folder, fileName(l.number)), err)
	}
	l.spent(l.good, end, 1)
	l.good, l.size = end, end
	return nil
}

// begin makes the next file with data in it. It gets its name once that is on
// disk, so that there is no file without a record.
func (l *Log) begin(data []byte, last place) error {
	name := fileName(l.number + 1)
	path := filepath.Join(l.folder, name)
	f, err := os.OpenFile(path+temporary, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return fmt.Errorf("begin %s: %w", name, err)
	}
	// Room for the whole file is taken at once: what others do to the disk then
	// stops no command before it is full. Not every file system can.
	_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, l.fileBytes)
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	syncs := int64(3)
	if l.last.seq == 0 {
		// A process that ends before the head names these first records must
		// not leave them looking as if the head were gone.
		if err := l.head.write(l.last); err == nil {
			_ = l.head.file.Sync()
		}
		syncs++
	}
	if err == nil {
		err = os.Rename(path+temporary, path)
	}
	if err == nil {
		err = flash.SyncFolder(l.folder)
	}
	if err != nil {
		// If it has its name already, the records in it were not promised, and
		// must not stand there beside those that are.
		_ = os.Remove(path + temporary)
		_ = os.Remove(path)
		return errors.Join(fmt.Errorf("begin %s: %w", name, err), f.Close())
	}
	if l.file != nil {
		_ = l.file.Close() // all of it is on disk
	}
	l.file, l.number = f, l.number+1
	l.good, l.size = int64(len(data)), int64(len(data))
	// The head is synced once a file, so that a power cut never leaves none.
	if err := l.head.write(last); err == nil {
		_ = l.head.file.Sync()
	}
	l.spent(0, l.good, syncs)
	return nil
}

// spent counts what the disk had to take: the pages from one offset up to
// another, and syncs.
func (l *Log) spent(from, to int64, syncs int64) {
	page := int64(os.Getpagesize())
	l.ledger.Add((to+page-1)/page*page-from/page*page, syncs)
}

// retire removes the oldest files, above the bound, after a record of that.
func (l *Log) retire() {
	numbers, err := list(l.folder)
	if err != nil || len(numbers) <= l.files {
		return
	}
	old, rest := numbers[:len(numbers)-l.files], numbers[len(numbers)-l.files:]
	first, err := firstSeq(filepath.Join(l.folder, fileName(rest[0])))
	if err != nil {
		l.log.Warn("audit log: the oldest files stay", "err", err)
		return
	}
	l.notes = append(l.notes, Record{Event: Self, Status: Removed, Value: strconv.FormatUint(first-1, 10),
		Reason: fmt.Sprintf("%s was removed, with the records up to %d: %d files are kept", fileName(old[len(old)-1]), first-1, l.files)})
	if err := l.write(nil); err != nil {
		return // the note waits for the next record, the files for the next file
	}
	for _, n := range old {
		if err := os.Remove(filepath.Join(l.folder, fileName(n))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.log.Warn("audit log: the oldest files stay", "err", err)
		}
	}
}

// ensure opens the folder unless it is open, and again if somebody took it away.
func (l *Log) ensure() error {
	if l.open && l.file != nil {
		var s unix.Stat_t
		if err := unix.Fstat(int(l.file.Fd()), &s); err == nil && s.Nlink == 0 {
			l.shut()
		}
	}
	if l.open {
		return nil
	}
	now := time.Now()
	if now.Before(l.retry) {
		return l.failure
	}
	if l.failure = l.load(); l.failure != nil {
		l.shut()
		l.retry = now.Add(openPause)
		return l.failure
	}
	l.open = true
	return nil
}

// shut closes what is open. What is known of the chain stays known.
func (l *Log) shut() {
	if l.file != nil {
		_ = l.file.Close()
	}
	if l.head.file != nil {
		_ = l.head.file.Close()
	}
	l.file, l.head, l.open = nil, head{}, false
}

// load finds out where the chain ends and whether it is whole there.
func (l *Log) load() error {
	if err := os.MkdirAll(l.folder, 0o750); err != nil {
		return err
	}
	numbers, err := list(l.folder)
	if err != nil {
		return err
	}
	h, known, was, closed, err := openHead(l.folder)
	if err != nil {
		return err
	}
	if !closed {
		l.cut.Store(true)
	}
	named := known.seq
	l.head, l.notes = h, nil
	if l.last.seq > known.seq {
		known = l.last // this process wrote it
	}
	note := func(status, format string, args ...any) {
		what := fmt.Sprintf(format, args...)
		l.notes = append(l.notes, Record{Event: Self, Status: status, Reason: what})
		if status == Torn { // a power cut does that, and nothing promised is lost
			l.log.Warn("audit log had an unfinished line", "what", what)
			return
		}
		l.suspect.Store(&what)
		l.log.Error("audit log is not as it was written", "found", status, "what", what)
	}
	if len(numbers) == 0 {
		l.number = 0
		if known.seq > 0 {
			note(Missing, "the records up to %d are missing: there is no file", known.seq)
			l.last = known
		}
		return nil
	}
	l.number = numbers[len(numbers)-1]
	_ = os.Remove(filepath.Join(l.folder, fileName(l.number+1)+temporary)) // of a process that ended while it made it
	name := fileName(l.number)
	path := filepath.Join(l.folder, name)
	e, size, err := look(path, known.seq)
	if err != nil {
		return err
	}
	if !was || known.hash == "" {
		note(Missing, "the file %s was missing or empty: whether records are missing at the end cannot be told", headName)
	}
	fresh := true
	switch {
	case e.badLine > 0 && (e.later || known.seq > e.last.seq):
		note(Damaged, "%s is damaged from line %d on; it was left as it is", name, e.badLine)
	case known.seq > e.last.seq:
		note(Missing, "the records from %d to %d are missing at the end of %s", e.last.seq+1, known.seq, name)
	case e.badLine > 0:
		note(Torn, "%d bytes of an unfinished line were cut off at the end of %s: %s", size-e.good, name, glimpse(path, e.good))
		fresh = false
	case e.held != "" && e.held != known.hash:
		note(Replaced, "record %d in %s is not the one that was written", known.seq, name)
	default:
		fresh = false
	}
	for i := len(numbers) - 2; i >= 0 && e.last.seq == 0 && known.seq == 0; i-- {
		if e, _, err = look(filepath.Join(l.folder, fileName(numbers[i])), 0); err != nil {
			return err
		}
	}
	if e.last.seq > known.seq { // else the head's hash stands: a record that was replaced stays a break
		known = e.last
	}
	if e.last.seq > named { // the head is of before a power cut, and so may be the mark in it
		l.cut.Store(true)
	}
	if known.seq > 0 {
		l.last = known
		l.seq.Store(known.seq)
	}
	if fresh {
		return nil
	}
	l.file, err = os.OpenFile(path, os.O_RDWR, 0)
	l.good, l.size = e.good, size
	return err
}

// glimpse returns the beginning of what stands at an offset, quoted.
func glimpse(path string, at int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	var text [300]byte
	n, _ := f.ReadAt(text[:], at) // what can be had of it
	return strconv.QuoteToASCII(string(text[:n]))
}

// firstSeq returns the number of the first record in a file.
func firstSeq(path string) (seq uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = lines(f, func(text []byte, _ bool) error {
		r, _, err := parse(text)
		if err != nil {
			return nil // the next one will do
		}
		seq = r.Seq
		return errEnough
	})
	if errors.Is(err, errEnough) {
		return seq, nil
	}
	return 0, errors.Join(err, fmt.Errorf("%s: no record in it", path))
}

// errEnough ends a reading.
var errEnough = errors.New("enough")

func (m missed) note() Record {
	return Record{Event: Self, Status: Unrecorded, Reason: fmt.Sprintf("%d records were not taken from %s to %s: %s",
		m.count, m.first.UTC().Format(timeFormat), m.last.UTC().Format(timeFormat), strings.TrimPrefix(m.cause.Error(), ErrNotRecorded.Error()+": "))}
}

// failed notes that the disk takes nothing, and logs it if that is new.
func (l *Log) failed(err error, records int) {
	if records > 0 {
		now := time.Now()
		if l.missed.count == 0 {
			l.missed.first = now
		}
		l.missed.count += records
		l.missed.last, l.missed.cause = now, err
		l.lost.Add(uint64(records))
	}
	text := err.Error()
	l.fault.Store(&text)
	if !l.failing {
		l.failing = true
		l.log.Error("audit log takes nothing, so nothing is written that must be recorded", "err", err)
	}
}

// worked notes that the disk took what it was given.
func (l *Log) worked() {
	if l.failing {
		l.failing = false
		l.fault.Store(nil)
		l.log.Info("audit log takes records again", "folder", l.folder)
	}
}

// Stats may be called at any time.
func (l *Log) Stats() Stats {
	s := Stats{
		Seq: l.seq.Load(), Records: l.records.Load(), Unrecorded: l.lost.Load(),
		Flash: l.ledger.Report(),
	}
	if text := l.fault.Load(); text != nil {
		s.Fault = *text
	}
	if text := l.suspect.Load(); text != nil {
		s.Suspect = *text
	}
	return s
}

// Cut reports whether the log was not closed by who had it open before: what the
// last records say may not have been told to anybody.
func (l *Log) Cut() bool { return l.cut.Load() }

// Close waits for what is on its way and lets go of the folder. Later calls of
// Append are refused.
func (l *Log) Close() error {
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	l.mu.Unlock()
	if closed {
		return nil
	}
	l.running.Wait()
	var err error
	if l.missed.count+len(l.notes) > 0 {
		err = l.commit(nil) // what it still has to say of itself
	}
	if l.head.file != nil {
		err = errors.Join(err, l.head.close(l.last))
	}
	l.shut()
	return err
}
