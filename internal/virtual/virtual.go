// Package virtual is the devices without a bus: their points live in memory and
// are set by messages (Take) and by writes (Write). What is set is emitted like
// what a bus has read, so that all that follows treats both alike: a point is
// Bad before its first value and once a value that came by message no longer
// counts, and Uncertain while its age cannot be told.
//
// Points with keep are saved in one small file. It knows nothing of brokers:
// gateway brings the payloads.
//
// The type is Set.
package virtual

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"fieldgate/internal/clock"
	"fieldgate/internal/config"
	"fieldgate/internal/flash"
	"fieldgate/internal/health"
	"fieldgate/internal/point"
)

// ErrUnknownPoint is what Write and Read say of a point that no virtual device
// has.
var ErrUnknownPoint = errors.New("unknown point")

// Set is the virtual devices of a gateway. It is safe for use by several
// goroutines.
type Set struct {
	log  *slog.Logger
	emit func([]point.Sample)
	dir  string // of the data

	// mu is held while a value is set and emitted, so that nobody is told of two
	// values in another order than they have here. emit must not call back.
	mu     sync.Mutex
	path   string // of the file; "": nothing is kept
	cells  []*cell
	of     map[point.ID]*cell
	topics []Topic
	fed    map[string][]*cell // by topic
	wake   chan struct{}      // holds one token when Run has to look at its timer again
	next   time.Time          // when it will look, by itself; zero: never
	begun  bool               // Run has emitted what was there at the start

	ledger  flash.Ledger
	fault   string    // why the file takes nothing; "" if it does
	writeBy time.Time // when the file is to be written; zero: it is as it should be

	beat health.Beat // of Run

	// Clock judges the timestamps of messages. nil believes the machine's. It is
	// to be set before Run.
	Clock *clock.Clock
}

// cell is one point and what it holds.
type cell struct {
	point  point.Point
	source config.Virtual
	sample point.Sample
	kept   point.Value // the last value, whether it counts or not
	until  time.Time   // when a value that came by message stops to count; zero: never
	said   string      // the last thing that was wrong with a message, so as to say it once

	at, atUntil time.Time // when the message was made that set it last, and until when older ones do not count
}

// Topic is a topic of messages that set points.
type Topic struct {
	Name string
	From []string // uplinks, config.Local
}

// How soon a kept value is on disk. One that was written waits for the next;
// those that come by message may do so each second for years.
const (
	saveWritten = time.Second
	saveTaken   = time.Minute
)

// maxPayload is the longest message that is looked at.
const maxPayload = 64 << 10

// New makes the virtual ones of devices, and gives their points what was kept in
// the data directory dir, else their initial value. Run emits it. emit is called
// by whoever sets a value; it must not block, nor call the Set.
func New(devices []config.Device, dir string, emit func([]point.Sample), log *slog.Logger) *Set {
	s := &Set{log: log, emit: emit, dir: dir, wake: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.make(devices)
	return s
}

// make makes the cells of devices. The lock is held.
func (s *Set) make(devices []config.Device) {
	s.cells, s.topics = nil, nil
	s.of, s.fed = make(map[point.ID]*cell), make(map[string][]*cell)
	now := time.Now()
	keep := false
	for i := range devices {
		if !devices[i].Virtual() {
			continue
		}
		for j, p := range devices[i].Points {
			c := &cell{point: p, source: devices[i].Sources[j]}
			c.sample = point.Sample{ID: p.ID, Quality: point.Bad, Time: now}
			if !c.source.Initial.IsZero() {
				c.sample.Value, c.sample.Quality, c.kept = c.source.Initial, point.Good, c.source.Initial
			}
			s.cells = append(s.cells, c)
			s.of[p.ID] = c
			keep = keep || c.source.Keep
			s.listen(c)
		}
	}
	s.path = ""
	if keep && s.dir != "" {
		s.path = filepath.Join(s.dir, fileName)
		s.load(now)
	}
}

// Change makes the devices those of another configuration. A point that stays
// keeps what it holds, if that is a value of it; the others begin as with New,
// and are emitted if Run has begun.
func (s *Set) Change(devices []config.Device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.of
	s.make(devices)
	var fresh []*cell
	for _, c := range s.cells {
		o := was[c.point.ID]
		if o == nil || o.sample.Value.IsZero() || !c.takes(o.sample.Value) {
			fresh = append(fresh, c)
			continue
		}
		c.sample, c.kept, c.until, c.said, c.at, c.atUntil = o.sample, o.kept, o.until, o.said, o.at, o.atUntil
		if stale := c.source.Stale; stale != o.source.Stale {
			c.until = time.Time{}
			if stale > 0 {
				c.until = time.Now().Add(stale)
			}
		}
	}
	if s.path != "" {
		s.writeBy = time.Now().Add(saveWritten)
	}
	if s.begun {
		s.emitAll(fresh)
		signal(s.wake)
	}
}

// takes reports whether a point can hold a value; it can hold none.
func (c *cell) takes(v point.Value) bool {
	if v.IsZero() {
		return true
	}
	if c.point.Write != nil && c.point.CheckWrite(v) != nil {
		return false
	}
	held, err := c.point.Hold(v)
	return err == nil && held == v
}

// listen notes the topic of a point.
func (s *Set) listen(c *cell) {
	name := c.source.Topic
	if name == "" {
		return
	}
	s.fed[name] = append(s.fed[name], c)
	i := slices.IndexFunc(s.topics, func(t Topic) bool { return t.Name == name })
	if i < 0 {
		i = len(s.topics)
		s.topics = append(s.topics, Topic{Name: name})
	}
	for _, from := range c.source.From {
		if t := &s.topics[i]; !slices.Contains(t.From, from) {
			t.From = append(t.From, from)
		}
	}
}

// Devices returns the names of the devices.
func (s *Set) Devices() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.cells {
		if name := c.point.ID.Device(); len(names) == 0 || names[len(names)-1] != name {
			names = append(names, name)
		}
	}
	return names
}

// Has reports whether the point is one of these.
func (s *Set) Has(id point.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of[id] != nil
}

// Topics returns the topics of messages that Take wants, each once.
func (s *Set) Topics() []Topic {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.topics
}

// Write sets a point, at once. An error is one of point.CheckWrite, ErrUnknownPoint,
// or ctx's before anything was done. A point that is kept is on disk about a
// second later.
func (s *Set) Write(ctx context.Context, id point.ID, v point.Value) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.of[id]
	if c == nil {
		return fmt.Errorf("write %s: %w", id, ErrUnknownPoint)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("write %s: %w", id, err)
	}
	if err := c.point.CheckWrite(v); err != nil {
		return fmt.Errorf("write %s: %w", id, err)
	}
	held, err := c.point.Hold(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", id, err)
	}
	s.set(c, held, point.Good, time.Time{}, saveWritten)
	return nil
}

// Read returns what points hold, in the order of ids. A point that is Bad is
// one without a value. The error is ErrUnknownPoint.
func (s *Set) Read(_ context.Context, ids ...point.ID) ([]point.Sample, error) {
	samples := make([]point.Sample, len(ids))
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for i, id := range ids {
		c := s.of[id]
		if c == nil {
			return nil, fmt.Errorf("read %s: %w", id, ErrUnknownPoint)
		}
		s.age(c, now)
		samples[i] = c.sample
	}
	return samples, nil
}

// set gives a point a value that counts until a time, or no value if it is Bad,
// and emits it.
func (s *Set) set(c *cell, v point.Value, q point.Quality, until time.Time, save time.Duration) {
	now := time.Now()
	c.sample = point.Sample{ID: c.point.ID, Value: v, Quality: q, Time: now}
	c.until, c.at = until, time.Time{}
	if s.begun {
		s.emit([]point.Sample{c.sample})
	}
	if c.source.Keep && !v.IsZero() && c.kept != v {
		if by := now.Add(save); s.writeBy.IsZero() || by.Before(s.writeBy) {
			s.writeBy = by
			s.rouse(by)
		}
	}
	if !v.IsZero() {
		c.kept = v
	}
	s.rouse(until)
}

// rouse has Run look at its timer, if it would come too late for at. A value
// that is renewed in time costs nothing here.
func (s *Set) rouse(at time.Time) {
	if at.IsZero() || !s.next.IsZero() && !at.Before(s.next) {
		return
	}
	s.next = at
	signal(s.wake)
}

// signal puts a token into c, which has room for one, unless it holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// age takes a point's value from it if that no longer counts.
func (s *Set) age(c *cell, now time.Time) {
	if c.until.IsZero() || now.Before(c.until) {
		return
	}
	c.until = time.Time{}
	c.sample = point.Sample{ID: c.point.ID, Quality: point.Bad, Time: now}
	s.log.Info("no message for too long, the value no longer counts", "point", c.point.ID, "topic", c.source.Topic, "after", c.source.Stale)
	c.said = ""
	if s.begun {
		s.emit([]point.Sample{c.sample})
	}
}

// Run emits what the points hold at the start, then takes from them what no
// longer counts, and keeps the file, until ctx ends. It returns nil once the
// file is as it should be, or cannot be.
func (s *Set) Run(ctx context.Context) error {
	s.beat.Works()
	defer s.beat.Stops()
	s.mu.Lock()
	s.begun = true
	s.emitAll(s.cells)
	s.mu.Unlock()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next := s.step(time.Now())
		if next < 0 {
			timer.Stop()
			s.beat.Waits()
		} else {
			timer.Reset(next)
			s.beat.Rests(next)
		}
		select {
		case <-ctx.Done():
			s.beat.Works()
			s.save(true)
			return nil
		case <-s.wake:
		case <-timer.C:
		}
		s.beat.Works()
	}
}

// Overdue returns for how long Run has been owing its next step: a disk may take
// seconds, minutes mean that it hangs.
func (s *Set) Overdue() time.Duration { return s.beat.Overdue() }

// emitAll emits what points hold, those of a device as a batch.
func (s *Set) emitAll(cells []*cell) {
	for from := 0; from < len(cells); {
		var batch []point.Sample
		device := cells[from].point.ID.Device()
		for from < len(cells) && cells[from].point.ID.Device() == device {
			batch = append(batch, cells[from].sample)
			from++
		}
		s.emit(batch)
	}
}

// step does what is due and returns how long it is until something else is; -1:
// nothing will be.
func (s *Set) step(now time.Time) time.Duration {
	s.mu.Lock()
	var next time.Time
	soonest := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, c := range s.cells {
		s.age(c, now)
		soonest(c.until)
	}
	s.next = time.Time{} // until it is known; who sets a value meanwhile wakes Run
	due := !s.writeBy.IsZero() && !now.Before(s.writeBy)
	s.mu.Unlock()
	if due {
		s.save(false)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	soonest(s.writeBy)
	s.next = next
	if next.IsZero() {
		return -1
	}
	return max(0, time.Until(next))
}

// Status is how the points are doing, and what keeping them cost.
type Status struct {
	Points int
	Bad    int    // without a value that counts
	Fault  string // why values are not saved; "" if they are
	Flash  flash.Report
}

// Status may be called at any time.
func (s *Set) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Points: len(s.cells), Fault: s.fault, Flash: s.ledger.Report()}
	for _, c := range s.cells {
		if c.sample.Quality == point.Bad {
			st.Bad++
		}
	}
	return st
}
