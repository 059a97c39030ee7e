package line

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fieldgate/internal/config"

	"go.bug.st/serial"
	"golang.org/x/sys/unix"
)

// tty is an open serial port: two descriptors on one device. The file is ours,
// opened first, and carries all bytes; control belongs to go.bug.st/serial and
// sets the mode.
type tty struct {
	source
	file    *os.File
	control serial.Port
	clock   *clock
	rs485   config.RS485 // Mode is RS485RTS where the kernel could not
	char    time.Duration
	sent    time.Time // when the last byte written will have left

	byRTS error // why the kernel does not switch the transmitter; nil: it does, or was not asked
	held  int   // for how many ms the adapter holds bytes back; 0: not at all, or nobody knows
}

// openTTY opens the port of cfg by its path, which may be a link
// (/dev/serial/by-id) that now leads to another device than before.
func openTTY(cfg config.Bus) (*tty, error) {
	t := &tty{rs485: cfg.RS485, char: cfg.Mode.CharTime()}
	if err := t.open(cfg); err != nil {
		t.close()
		return nil, fmt.Errorf("open %s: %w", cfg.Address, err)
	}
	return t, nil
}

func (t *tty) open(cfg config.Bus) error {
	fd, err := openData(cfg.Address)
	if err != nil {
		return err
	}
	t.file = os.NewFile(uintptr(fd), cfg.Address)
	t.source.file = t.file
	if t.raw, err = t.file.SyscallConn(); err != nil {
		return err
	}
	if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
		return errors.New("not a serial port")
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errInUse
	}
	if t.control, err = openControl(fd, cfg.Mode); err != nil {
		return err
	}
	if err := makeRaw(fd, cfg.Mode); err != nil {
		return err
	}
	if t.clock, err = newClock(); err != nil {
		return err
	}
	if err := t.setRS485(); err != nil {
		return err
	}
	setLowLatency(fd)
	if ms, ok := latencyTimer(fd); ok && ms > 1 {
		t.held = ms
	}
	if err := t.control.ResetInputBuffer(); err != nil {
		return fmt.Errorf("reset input: %w", err)
	}
	return nil
}

// tell logs what of the open port is not as it was asked for, or could be better.
func (t *tty) tell(address string, log *slog.Logger) {
	if t.byRTS != nil {
		log.Warn("the driver does not switch RS-485, doing it by RTS", "address", address, "err", t.byRTS)
	}
	if t.held > 0 {
		log.Info("the adapter holds bytes back; make its latency_timer 1 by a udev rule", "address", address, "ms", t.held)
	}
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
	case 'M':
		m.Parity = serial.MarkParity
	case 'S':
		m.Parity = serial.SpaceParity
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
		return nil, fmt.Errorf("set mode %s: %w", mode, err)
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

func (t *tty) hold(until time.Time) { t.clock.sleep(until) }

// write implements wire.
func (t *tty) write(p []byte) (end time.Time, err error) {
	rts := t.rs485.Mode == config.RS485RTS
	if rts {
		if err := t.setRTS(!t.rs485.Invert); err != nil {
			return time.Time{}, err
		}
		t.hold(time.Now().Add(t.rs485.DelayBefore))
	}
	end = later(time.Now(), t.sent).Add(time.Duration(len(p)) * t.char)
	t.sent = end
	// A driver that takes nothing for so long is broken, or held by flow control.
	if err := t.file.SetWriteDeadline(end.Add(time.Second)); err != nil {
		return end, err
	}
	if _, err := t.file.Write(p); err != nil {
		return end, err
	}
	if rts {
		err = t.release(end)
	}
	return end, err
}

// release switches the transmitter off once the last byte has left. Drain sleeps
// in whole ticks of the kernel's clock, too long before an answer that may come
// after 3.5 characters; so it is called one character after the time the bytes
// need, when it mostly has nothing left to wait for.
func (t *tty) release(end time.Time) error {
	t.hold(end.Add(t.char))
	if err := t.control.Drain(); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("drain: %w", err)
	}
	t.hold(time.Now().Add(t.rs485.DelayAfter))
	return t.setRTS(t.rs485.Invert)
}

// stop ends a running read and write for good.
func (t *tty) stop() {
	// Without the flush close waits, up to 30 s, for bytes that a stuck port
	// never sends.
	_ = t.ioctl(func(fd int) error { return unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIOFLUSH) })
	t.file.Close()
}

// close frees both descriptors of the device at once: a held one makes the
// kernel give an adapter that is plugged in again a new name.
func (t *tty) close() {
	if t.file != nil {
		t.stop()
	}
	if t.control != nil {
		t.control.Close()
	}
	if t.clock != nil {
		t.clock.close()
	}
}

// ioctl calls f with the descriptor, which is not closed meanwhile.
func (t *tty) ioctl(f func(fd int) error) (err error) {
	cerr := t.raw.Control(func(fd uintptr) { err = f(int(fd)) })
	if cerr != nil {
		return cerr
	}
	return err
}

// serialErrors reads the driver's counters; zero where it has none.
func (t *tty) serialErrors() (e SerialErrors) {
	_ = t.ioctl(func(fd int) error { // fails on a port that was just closed
		e = icounter(fd)
		return nil
	})
	return e
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
