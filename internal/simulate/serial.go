package simulate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/internal/modbus"
)

const (
	// spin is how long before an instant the thread stops sleeping and watches
	// the clock: about what the kernel needs to wake it.
	spin = 40 * time.Microsecond
	// stale is the pause after which the rest of a request cannot follow.
	stale = 50 * time.Millisecond
	// fifo is how many characters a usual UART gathers before it interrupts.
	fifo = 14
)

// lump is bytes of an answer that become readable together.
type lump struct {
	begin time.Time // of the first one's time on the wire
	at    time.Time // end of the last one's: when they may be read
	bytes []byte
}

// serialLine is an emulated wire with devices at its end. A pseudo-terminal
// carries bytes in no time; this makes each take its time:
//
//   - the gateway's bytes count as received one character time after the other
//     from the instant they were written;
//   - an answer begins a silence of 3.5 characters and the device's latency
//     after that, and no byte of it becomes readable before its own time.
//
// All of it belongs to the thread of run.
type serialLine struct {
	bus     *Bus
	pty     pty
	plugged bool          // pty is open
	char    time.Duration // of one character
	silence time.Duration // owed between frames; 0 for ASCII and without a baud rate
	lump    int

	in     []byte                // of an unfinished request
	inEnd  time.Time             // when the wire time of in is over
	broken bool                  // the silence before in was too short
	used   bool                  // something has been on the wire
	busy   time.Time             // end of what was last on the wire
	out    []lump                // by time
	ends   map[*Device]time.Time // when each has said what it has to say
	drop   time.Time             // unplug then; zero: do not
	back   time.Duration
	buf    [4096]byte
}

// run plays the line until ctx ends, and takes the port away then.
func (l *serialLine) run(ctx context.Context) (err error) {
	defer func() {
		if l.plugged {
			err = errors.Join(err, l.bus.unplug(l.pty))
		}
	}()
	// The thread is this goroutine's for good: it sleeps in the kernel, and its
	// timer slack is no other goroutine's business. It ends with the goroutine.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		l.bus.log.Debug("timers stay coarse", "err", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("simulate: bus %s: eventfd: %w", l.bus.Name, err)
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-woken // it must not write to a number that is somebody else's by then
		}
		unix.Close(wake)
	}()
	for ctx.Err() == nil {
		if err := l.step(wake); err != nil {
			return fmt.Errorf("simulate: bus %s: %w", l.bus.Name, err)
		}
		if !l.drop.IsZero() && !time.Now().Before(l.drop) {
			if err := l.replug(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// step delivers what is due, then waits for the next instant or for bytes.
func (l *serialLine) step(wake int) error {
	l.deliver()
	var timeout *unix.Timespec
	if next, ok := l.next(); ok {
		left := time.Until(next)
		if left <= spin {
			for time.Now().Before(next) {
			}
			return nil
		}
		ts := unix.NsecToTimespec(int64(left - spin))
		timeout = &ts
	}
	fds := []unix.PollFd{{Fd: int32(l.pty.master), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
	if _, err := unix.Ppoll(fds, timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("poll: %w", err)
	}
	if fds[0].Revents == 0 {
		return nil
	}
	now := time.Now()
	n, err := unix.Read(l.pty.master, l.buf[:])
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return fmt.Errorf("read: %w", err)
	}
	l.receive(l.buf[:n], now)
	return nil
}

// next returns the next instant at which something is due.
func (l *serialLine) next() (at time.Time, ok bool) {
	at = l.drop
	if len(l.out) > 0 && (at.IsZero() || l.out[0].at.Before(at)) {
		at = l.out[0].at
	}
	return at, !at.IsZero()
}

// deliver makes readable what is due. What is due at one instant becomes readable
// in one.
func (l *serialLine) deliver() {
	for len(l.out) > 0 {
		now := time.Now()
		if l.out[0].at.After(now) {
			return
		}
		n := 1
		for n < len(l.out) && l.out[n].at.Equal(l.out[0].at) {
			n++
		}
		b := l.out[0].bytes
		if n > 1 {
			b = nil
			for _, u := range l.out[:n] {
				b = append(b, u.bytes...)
			}
		}
		clear(l.out[:n]) // the bytes may go
		l.out = l.out[n:]
		l.busy, l.used = now, true // before the write: nobody can have read it earlier
		w, err := unix.Write(l.pty.master, b)
		if w = max(w, 0); err != nil || w < len(b) {
			// Nobody reads, and the kernel's buffer is full: what overruns it
			// is lost, as in a UART.
			l.bus.counters.overruns.Add(uint64(len(b) - w))
		}
		l.bus.counters.bytesOut.Add(uint64(w))
		l.bus.trace("sent", b)
	}
}

// receive takes bytes that the gateway wrote at an instant.
func (l *serialLine) receive(b []byte, at time.Time) {
	l.bus.counters.bytesIn.Add(uint64(len(b)))
	l.bus.trace("received", b)
	if len(l.in) > 0 && at.Sub(l.inEnd) > l.silence+stale {
		l.bad()
	}
	if len(l.in) == 0 {
		talking := len(l.out) > 0 && !l.out[0].begin.After(at)
		l.broken = l.used && l.silence > 0 && (talking || at.Sub(l.busy) < l.silence)
		l.inEnd = at
	}
	if l.inEnd.Before(at) {
		l.inEnd = at
	}
	l.inEnd = l.inEnd.Add(time.Duration(len(b)) * l.char)
	if l.busy.Before(l.inEnd) {
		l.busy = l.inEnd
	}
	l.used = true
	if l.bus.Echo {
		l.out = append(l.out, lump{at, l.inEnd, bytes.Clone(b)})
		l.sort()
	}
	l.in = append(l.in, b...)
	for len(l.in) > 0 {
		n := l.frame()
		if n == 0 {
			return
		}
		if n < 0 {
			l.bad()
			return
		}
		// The wire time of this frame ends before that of what follows it.
		l.request(l.in[:n], l.inEnd.Add(-time.Duration(len(l.in)-n)*l.char))
		l.in = l.in[:copy(l.in, l.in[n:])]
		l.broken = l.silence > 0 // what follows at once has kept none
	}
}

// bad drops an unfinished or broken request.
func (l *serialLine) bad() {
	l.in = l.in[:0]
	l.bus.counters.badFrames.Add(1)
}

// frame returns the length of the request that in begins with, 0 for not yet
// and -1 for never.
func (l *serialLine) frame() int {
	if l.bus.Framing == modbus.FramingASCII {
		if i := bytes.IndexByte(l.in, '\n'); i >= 0 {
			return i + 1
		}
		if len(l.in) > modbus.MaxASCII {
			return -1
		}
		return 0
	}
	n, known := modbus.RTURequestLen(l.in)
	switch {
	case known && len(l.in) >= n:
		return n
	case !known && n == 0 && len(l.in) >= modbus.MinRTU && modbus.CRC16(l.in) == 0:
		return len(l.in) // of a function without known length
	case len(l.in) >= modbus.MaxRTU:
		return -1
	}
	return 0
}

// request answers one request frame, whose wire time ends at end.
func (l *serialLine) request(adu []byte, end time.Time) {
	unit, req, err := l.bus.decode(adu)
	if err != nil {
		l.bus.counters.badFrames.Add(1)
		return
	}
	l.bus.counters.requests.Add(1)
	if l.broken {
		l.bus.counters.silenceBroken.Add(1)
		if l.bus.StrictSilence {
			return
		}
	}
	if unit == modbus.Broadcast {
		for _, d := range l.bus.Devices {
			d.reply(l.bus.Framing, 0, unit, req, adu, true)
		}
		return
	}
	if d := l.bus.Devices.find(unit); d != nil {
		l.schedule(d, d.reply(l.bus.Framing, 0, unit, req, adu, false), end)
	}
}

// schedule puts an answer of d on the wire after a request that ends at end. A
// device answers in order: behind a late answer comes what it has to say after
// it. What would run into the bytes of another device waits for their end.
func (l *serialLine) schedule(d *Device, r reply, end time.Time) {
	var took time.Duration // from the first byte to the last
	begin := end.Add(l.silence)
	first := true
	for _, p := range r.parts {
		switch {
		case p.echo:
			continue
		case first:
			begin = begin.Add(p.after)
			first = false
		default:
			took += p.after
		}
		took += time.Duration(len(p.bytes)) * l.char
	}
	if before := l.ends[d]; begin.Before(before) {
		begin = before
	}
	for _, u := range l.out { // by time, so that one look is enough
		if u.begin.Before(begin.Add(took)) && begin.Before(u.at) {
			begin = u.at
		}
	}
	at := begin
	first = true
	for _, p := range r.parts {
		if p.echo {
			l.out = append(l.out, lump{end, end, p.bytes})
			continue
		}
		if !first {
			at = at.Add(p.after)
		}
		first = false
		for b := p.bytes; len(b) > 0; {
			n := min(len(b), l.lump)
			done := at.Add(time.Duration(n) * l.char)
			l.out = append(l.out, lump{at, done, b[:n]})
			at, b = done, b[n:]
		}
	}
	if l.ends == nil {
		l.ends = make(map[*Device]time.Time)
	}
	l.ends[d] = at
	if r.drop {
		l.drop, l.back = at, r.back
	}
	l.sort()
}

// sort brings out into order, which only an echo or a late answer upsets.
func (l *serialLine) sort() {
	if !slices.IsSortedFunc(l.out, func(a, b lump) int { return a.at.Compare(b.at) }) {
		sort.SliceStable(l.out, func(i, j int) bool { return l.out[i].at.Before(l.out[j].at) })
	}
}

// replug takes the port away and brings another one after a time, under the
// same link.
func (l *serialLine) replug(ctx context.Context) error {
	l.bus.log.Info("serial port vanishes", "path", l.pty.path, "for", l.back)
	l.plugged = false
	if err := l.bus.unplug(l.pty); err != nil {
		return err
	}
	l.in, l.out, l.drop = l.in[:0], nil, time.Time{}
	clear(l.ends)
	if sleep(ctx, l.back) != nil {
		return nil
	}
	fresh, err := l.bus.plug()
	if err != nil {
		return err
	}
	l.pty, l.plugged, l.used = fresh, true, false
	l.bus.log.Info("serial port is back", "path", l.pty.path)
	return nil
}
