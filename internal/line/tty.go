package line

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"fieldgate/internal/config"

	"go.bug.st/serial"
	"golang.org/x/sys/unix"
)

// spin is how long before a moment the thread stops sleeping and watches the
// clock instead: about what a wake-up costs.
const spin = 40 * time.Microsecond

// tty is an open serial port: two descriptors on one device.
//
// data is ours. It is read and written without blocking and waited for with
// ppoll on the line's own thread: that wakes one thread per chunk of bytes, and
// hears noise while it waits for a silence to end. (os.File would wake the
// runtime's poller first, then this thread.) control belongs to go.bug.st/serial
// and sets the mode; nothing is read or written through it.
type tty struct {
	control  serial.Port
	rs485    config.RS485 // Mode is RS485RTS where the kernel could not
	char     time.Duration
	busyTill time.Time // when the last byte written will have left

	// The owner alone uses data without mu. Others hold mu, and close takes it,
	// so that nobody meets a descriptor with a reused number.
	mu      sync.Mutex
	closed  bool
	data    int
	event   int // an eventfd: readable after wake
	stopped bool
}

// openTTY opens the port of cfg by its path, which may be a link
// (/dev/serial/by-id) that now leads to another device than before.
func openTTY(cfg config.Bus, log *slog.Logger) (*tty, error) {
	t := &tty{rs485: cfg.RS485, char: cfg.Mode.CharTime(), data: -1, event: -1}
	if err := t.open(cfg, log); err != nil {
		t.close()
		return nil, fmt.Errorf("open %s: %w", cfg.Address, err)
	}
	return t, nil
}

func (t *tty) open(cfg config.Bus, log *slog.Logger) (err error) {
	if t.data, err = openData(cfg.Address); err != nil {
		return err
	}
	if _, err := unix.IoctlGetTermios(t.data, unix.TCGETS); err != nil {
		return errors.New("not a serial port")
	}
	if err := unix.Flock(t.data, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errInUse
	}
	if t.control, err = openControl(t.data, cfg.Mode); err != nil {
		return err
	}
	if err := makeRaw(t.data, cfg.Mode); err != nil {
		return err
	}
	if t.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	if err := t.setRS485(cfg.Address, log); err != nil {
		return err
	}
	setLowLatency(t.data)
	if ms, ok := latencyTimer(t.data); ok && ms > 1 {
		log.Info("the adapter holds bytes back; make its latency_timer 1 by a udev rule", "address", cfg.Address, "ms", ms)
	}
	if err := t.control.ResetInputBuffer(); err != nil {
		return fmt.Errorf("reset input: %w", err)
	}
	return nil
}

// errInUse: somebody else holds the port's lock, or opened it for himself alone.
var errInUse = errors.New("in use by another program or another bus")

func openData(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		switch err {
		case nil:
			return fd, nil
		case unix.EINTR:
		case unix.EACCES:
			return -1, fmt.Errorf("%w; add the user to the group that owns the port, usually dialout", err)
		case unix.EBUSY:
			return -1, errInUse
		default:
			return -1, err
		}
	}
}

// openControl opens the device behind data once more, through go.bug.st/serial.
// The way over /proc leads to that very device, whatever became of the path.
func openControl(data int, mode config.SerialMode) (serial.Port, error) {
	m := &serial.Mode{BaudRate: mode.Baud, DataBits: mode.DataBits}
	switch mode.Parity {
	case 'E':
		m.Parity = serial.EvenParity
	case 'O':
		m.Parity = serial.OddParity
	}
	if mode.StopBits == 2 {
		m.StopBits = serial.TwoStopBits
	}
	// The library opens the device and a pipe without close-on-exec. No child
	// may be forked until that is mended.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	p, err := serial.Open("/proc/self/fd/"+strconv.Itoa(data), m)
	if err != nil {
		return nil, fmt.Errorf("set mode %d-%d%c%d: %w", mode.Baud, mode.DataBits, mode.Parity, mode.StopBits, err)
	}
	closeOnExec()
	return p, nil
}

// closeOnExec sets the flag on every descriptor but the standard ones: nothing
// of this process is meant for a child.
func closeOnExec() {
	entries, _ := os.ReadDir("/proc/self/fd") // without /proc the port would not have been opened
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC) // EBADF: closed since
		}
	}
}

// makeRaw clears what the library leaves of an earlier user's settings, such as
// IGNCR, which swallows every 0x0D.
func makeRaw(fd int, mode config.SerialMode) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return os.NewSyscallError("tcgetattr", err)
	}
	want := *t
	want.Iflag, want.Oflag, want.Lflag = 0, 0, 0
	if mode.Parity != 'N' {
		want.Iflag = unix.INPCK
	}
	if want == *t {
		return nil
	}
	return os.NewSyscallError("tcsetattr", unix.IoctlSetTermios(fd, unix.TCSETS, &want))
}

// read implements wire. It is exact: when nothing comes it returns within
// microseconds after until.
func (t *tty) read(p []byte, until time.Time) (int, error) {
	fds := [2]unix.PollFd{
		{Fd: int32(t.data), Events: unix.POLLIN},
		{Fd: int32(t.event), Events: unix.POLLIN},
	}
	for {
		var ts *unix.Timespec
		if !until.IsZero() {
			d := time.Until(until)
			if d <= spin {
				for time.Until(until) > 0 {
				}
				return t.readNow(p)
			}
			v := unix.NsecToTimespec(int64(d - spin))
			ts = &v
		}
		n, err := unix.Ppoll(fds[:], ts, nil)
		switch {
		case err == unix.EINTR || err == nil && n == 0:
			continue
		case err != nil:
			return 0, os.NewSyscallError("ppoll", err)
		case fds[0].Revents != 0:
			n, err := t.readNow(p)
			if n > 0 || err != nil {
				return n, err
			}
			if fds[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0 {
				return 0, io.EOF
			}
		case fds[1].Revents != 0:
			t.mu.Lock()
			if !t.stopped {
				var b [8]byte
				_, _ = unix.Read(t.event, b[:]) // resets it
			}
			t.mu.Unlock()
			return 0, nil
		}
	}
}

// readNow takes what has arrived.
func (t *tty) readNow(p []byte) (int, error) {
	for {
		n, err := unix.Read(t.data, p)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return 0, nil
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF // unplugged
		}
		return n, nil
	}
}

// write implements wire.
func (t *tty) write(p []byte) (end time.Time, err error) {
	rts := t.rs485.Mode == config.RS485RTS
	if rts {
		if err := t.setRTS(!t.rs485.Invert); err != nil {
			return time.Time{}, err
		}
		sleepUntil(time.Now().Add(t.rs485.DelayBefore))
	}
	end = later(time.Now(), t.busyTill).Add(time.Duration(len(p)) * t.char)
	t.busyTill = end
	if err := t.writeAll(p, end.Add(time.Second)); err != nil {
		return end, err
	}
	if rts {
		return t.release(end)
	}
	return end, nil
}

// writeAll hands p to the driver. A driver that takes nothing until limit is
// broken, or its flow control is on.
func (t *tty) writeAll(p []byte, limit time.Time) error {
	for len(p) > 0 {
		n, err := unix.Write(t.data, p)
		if n > 0 {
			p = p[n:]
		}
		if err == nil || err == unix.EINTR {
			continue
		}
		if err != unix.EAGAIN {
			return os.NewSyscallError("write", err)
		}
		d := time.Until(limit)
		if d <= 0 {
			return errors.New("write: the port takes no bytes")
		}
		ts := unix.NsecToTimespec(int64(d))
		fds := []unix.PollFd{{Fd: int32(t.data), Events: unix.POLLOUT}}
		if _, err := unix.Ppoll(fds, &ts, nil); err != nil && err != unix.EINTR {
			return os.NewSyscallError("ppoll", err)
		}
	}
	return nil
}

// release switches the transmitter off once the last byte has left. Drain sleeps
// in whole ticks of the kernel's clock, too long before an answer that may come
// after 3.5 characters; so it is called one character after the time the bytes
// need, when it mostly has nothing left to wait for.
func (t *tty) release(end time.Time) (time.Time, error) {
	sleepUntil(end.Add(t.char))
	if err := unix.IoctlSetInt(t.data, unix.TCSBRK, 1); err != nil && err != unix.EINTR {
		return end, os.NewSyscallError("tcdrain", err)
	}
	sleepUntil(time.Now().Add(t.rs485.DelayAfter))
	if err := t.setRTS(t.rs485.Invert); err != nil {
		return end, err
	}
	return time.Now(), nil
}

// sleepUntil holds the thread up to a moment, exactly.
func sleepUntil(at time.Time) {
	for {
		d := time.Until(at)
		if d <= 0 {
			return
		}
		if d > spin {
			ts := unix.NsecToTimespec(int64(d - spin))
			_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil) // EINTR: the loop sees
		}
	}
}

func (t *tty) wake() { t.signal(false) }

func (t *tty) stop() { t.signal(true) }

func (t *tty) signal(stop bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.stopped = t.stopped || stop
	_, _ = unix.Write(t.event, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // fails only when 2^64 wakes are pending
}

// close frees both descriptors of the device at once: a held one makes the
// kernel give an adapter that is plugged in again a new name.
func (t *tty) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.closed = true
	if t.data >= 0 {
		// Else close waits, up to 30 s, for bytes that a stuck port never sends.
		_ = unix.IoctlSetInt(t.data, unix.TCFLSH, unix.TCIOFLUSH)
	}
	if t.control != nil {
		t.control.Close()
	}
	for _, fd := range []int{t.data, t.event} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// serialErrors reads the driver's counters; zero where it has none.
func (t *tty) serialErrors() SerialErrors {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return SerialErrors{}
	}
	return icounter(t.data)
}

// latencyTimer returns how many milliseconds an FTDI adapter may hold back
// received bytes, after trying to make it one.
func latencyTimer(fd int) (ms int, ok bool) {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0, false
	}
	rdev := uint64(st.Rdev)
	name := fmt.Sprintf("/sys/dev/char/%d:%d/device/latency_timer", unix.Major(rdev), unix.Minor(rdev))
	err := os.WriteFile(name, []byte("1"), 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, false
	}
	ms, err = strconv.Atoi(strings.TrimSpace(string(b)))
	return ms, err == nil
}
