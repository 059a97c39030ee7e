package clock

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// memory is what a clock knows over a restart of the process. Nothing of it is
// needed; it is for machines on which nobody else knows it.
type memory struct {
	Boot  uint32 `json:"boot"`  // start of the machine
	Set   bool   `json:"set"`   // in which the clock was set
	First uint64 `json:"first"` // that this process began to number from
}

const memoryFile = "clock.json"

// apart is how far the numbers of two processes are apart that begin while the
// clock cannot tell: 50 days of a thousand a second.
const apart = 1 << 32

// Open returns the clock of this machine. In the folder dir it remembers that
// the clock was set, which nobody else does where it was set by hand; and where
// numbers began.
func Open(dir string, log *slog.Logger) *Clock { return openAt(Machine(), dir, log) }

func openAt(src Source, dir string, log *slog.Logger) *Clock {
	path := filepath.Join(dir, memoryFile)
	m, err := recall(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("what is known of the clock cannot be read, going on without it", "err", err)
	}
	if m.Set && m.Boot == src.Boot && m.Boot != 0 {
		vouch := src.Vouch
		src.Vouch = func(day time.Time) (synced bool, doubt string) {
			if synced, doubt = vouch(day); day.Before(Epoch) {
				return synced, doubt
			}
			return synced, ""
		}
	}
	c := New(src, log)
	c.path = path
	_, set := c.At(c.origin)
	if !set || c.number <= m.First {
		c.number = max(c.number, m.First+apart)
	}
	return c
}

func recall(path string) (m memory, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return memory{}, err
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return memory{}, err
	}
	return m, nil
}

// First returns the number from which this process may number what it sends:
// the milliseconds since 1970, or more, so that it is above all numbers of
// earlier processes, whatever the clock said then or says now, as long as none
// sends more than a thousand a second.
func (c *Clock) First() uint64 { return c.number }

// Run writes down what a later process should know, now and when the clock gets
// set, until ctx ends. It returns nil. Only clocks of Open have something to
// write.
func (c *Clock) Run(ctx context.Context) error {
	failed := false
	defer c.beat.Stops()
	for last := false; ; {
		c.beat.Works()
		if err := c.remember(); err != nil && !failed {
			failed = true
			c.log.Warn("what is known of the clock cannot be written", "err", err)
		}
		if last {
			return nil
		}
		c.beat.Waits()
		select {
		case <-c.news:
		case <-ctx.Done():
			select {
			case <-c.news: // came just before the end
				last = true
			default:
				return nil
			}
		}
	}
}

// Overdue returns for how long Run has been owing its next step; more than some
// seconds means that the disk takes its time, or hangs.
func (c *Clock) Overdue() time.Duration { return c.beat.Overdue() }

// remember writes the file anew: under another name, so that a power cut leaves
// the old one or the new one.
func (c *Clock) remember() error {
	text, err := json.Marshal(memory{Boot: c.src.Boot, Set: c.State() != Unset, First: c.number})
	if err != nil {
		return err
	}
	temp := c.path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(temp, c.path)
	}
	return err
}
