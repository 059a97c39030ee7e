package line

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// spin is how long before a moment the clock is watched instead of slept on:
// about what a wake-up costs.
const spin = 60 * time.Microsecond

// clock sleeps exactly. The runtime's own timers are up to a millisecond late,
// half of the silence at 115200 baud. A system call that sleeps, or ppoll, is
// exact, but keeps a processor of the runtime: its monitor thread looks every
// 20 µs whether to take that away, which doubles what a request costs (0.5 ms
// of processor time a request at 115200 baud against 0.25 ms). A timerfd in the
// runtime's poller is as exact and has no such price.
type clock struct {
	fd   int // of file
	file *os.File
}

func newClock() (*clock, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return &clock{fd, os.NewFile(uintptr(fd), "timerfd")}, nil
}

// sleep returns within microseconds after until, unless the processor is busy.
func (c *clock) sleep(until time.Time) {
	if d := time.Until(until) - spin; d > 0 {
		it := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
		err := unix.TimerfdSettime(c.fd, 0, &it, nil)
		var b [8]byte
		if err == nil {
			_, err = c.file.Read(b[:])
		}
		if err != nil {
			time.Sleep(time.Until(until)) // closed: nobody minds the last sleep
		}
	}
	for time.Until(until) > 0 {
	}
}

func (c *clock) close() { c.file.Close() }
