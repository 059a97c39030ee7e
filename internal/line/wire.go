package line

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"fieldgate/internal/config"

	"golang.org/x/sys/unix"
)

// wire is an open serial port or connection. One goroutine owns it; only wake
// and stop may be called by others, and not after close.
type wire interface {
	// read waits until bytes arrive, until passes or wake is called; n is 0 in
	// the last two cases, which the caller tells apart by the clock. A zero
	// until never passes, one that has passed takes what is there. An error
	// means that the wire is lost.
	read(p []byte, until time.Time) (n int, err error)
	// write sends p and returns when its last byte will have left: at once on a
	// connection, by the baud rate on a serial port, which has only taken p
	// over when write returns.
	write(p []byte) (end time.Time, err error)
	// hold waits until a moment, exactly on a serial port, and does not read.
	hold(until time.Time)
	// wake ends a running read, or the next one.
	wake()
	// stop is wake for good: no read or write waits any more.
	stop()
	close()
}

// source is the reading side of a wire, waited for by the runtime's poller.
type source struct {
	file interface {
		Read(p []byte) (int, error)
		SetReadDeadline(at time.Time) error
	}
	raw       syscall.RawConn // of file
	datagrams bool
	woken     atomic.Bool
}

func (s *source) read(p []byte, until time.Time) (int, error) {
	if !until.IsZero() && !time.Now().Before(until) {
		return s.readNow(p)
	}
	if err := s.file.SetReadDeadline(until); err != nil {
		return 0, err
	}
	// A wake before this line is seen here, one after it in Read.
	if s.woken.Swap(false) {
		return 0, nil
	}
	n, err := s.file.Read(p)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.woken.Store(false)
		// On a busy machine the bytes may have been in time and we late.
		return s.readNow(p)
	case s.datagrams && errors.Is(err, unix.ECONNREFUSED):
		err = nil // nobody listens there now: no answer, not the end of the socket
	}
	return n, err
}

// readNow takes what has arrived and waits for nothing.
func (s *source) readNow(p []byte) (n int, err error) {
	cerr := s.raw.Control(func(fd uintptr) {
		for {
			n, err = unix.Read(int(fd), p)
			if err != unix.EINTR {
				return
			}
		}
	})
	switch {
	case cerr != nil:
		return 0, cerr
	case err == unix.EAGAIN, s.datagrams && err == unix.ECONNREFUSED:
		return 0, nil
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	case n == 0 && !s.datagrams:
		return 0, io.EOF
	}
	return n, nil
}

// pending reports whether bytes have arrived that nobody has read yet.
func (s *source) pending() bool {
	n := 0
	_ = s.raw.Control(func(fd uintptr) { // fails on a closed file, in which nothing is pending
		n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
	})
	return n > 0
}

func (s *source) wake() {
	s.woken.Store(true)
	_ = s.file.SetReadDeadline(past) // fails on a closed file, which wakes too
}

// opener opens the wire of a line again and again.
type opener interface {
	open(ctx context.Context) (wire, error)
	// close ends what open left behind; not the wires it returned.
	close()
}

func (l *Line) opener() opener {
	switch l.cfg.Kind {
	case config.Serial:
		return &portOpener{line: l}
	case config.Listen:
		return &listener{line: l}
	}
	return dialer{l}
}

// portOpener opens a serial port.
type portOpener struct {
	line *Line
	told bool // what is to be said of the port has been
}

func (o *portOpener) open(context.Context) (wire, error) {
	t, err := openTTY(o.line.cfg)
	if err != nil {
		return nil, err
	}
	if !o.told {
		o.told = true
		t.tell(o.line.cfg.Address, o.line.log)
	}
	return t, nil
}

func (o *portOpener) close() {}

// backoff is the wait before the wire is opened again.
type backoff struct{ first, most, cur time.Duration }

// newBackoff returns short waits for a serial port, which costs nothing to look
// for, and longer ones for a host.
func newBackoff(k config.BusKind) *backoff {
	b := &backoff{first: 100 * time.Millisecond, most: 5 * time.Second}
	if k == config.Serial {
		b.most = time.Second
	}
	b.reset()
	return b
}

// reset makes the next wait the shortest again.
func (b *backoff) reset() { b.cur = b.first }

// next returns a random wait between half and all of what is due, which doubles.
func (b *backoff) next() time.Duration {
	d := b.cur
	b.cur = min(2*b.cur, b.most)
	return d/2 + rand.N(d/2+1)
}

// sleep waits for d and reports whether ctx still runs.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// later returns the later of two times.
func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
