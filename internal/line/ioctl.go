package line

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"fieldgate/internal/config"

	"golang.org/x/sys/unix"
)

// ioctl calls a serial driver with a pointer to one of the kernel's structs.
func ioctl(fd int, req uint, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(arg))
	if errno != 0 {
		return errno
	}
	return nil
}

// rs485 is struct serial_rs485 of linux/serial.h.
type rs485 struct {
	flags  uint32
	before uint32 // ms
	after  uint32 // ms
	_      [5]uint32
}

// Flags of rs485.
const (
	rs485Enabled      = 1 << 0
	rs485RTSOnSend    = 1 << 1
	rs485RTSAfterSend = 1 << 2
)

// setRS485 arranges for the transmitter to be switched on while we send: by the
// driver where asked and possible, else by RTS.
func (t *tty) setRS485() error {
	if t.rs485.Mode == config.RS485Kernel {
		err := t.ioctl(func(fd int) error { return kernelRS485(fd, t.rs485) })
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
			return fmt.Errorf("rs485: kernel: %w", err)
		}
		t.rs485.Mode, t.byRTS = config.RS485RTS, err
	}
	if t.rs485.Mode == config.RS485RTS {
		// RTS rose when the port was opened; the line must be let go of.
		if err := t.setRTS(t.rs485.Invert); err != nil {
			return fmt.Errorf("rs485: %w; an adapter that switches by itself needs rs485: off", err)
		}
	}
	return nil
}

// kernelRS485 makes the driver switch, and looks whether it took the setting.
func kernelRS485(fd int, c config.RS485) error {
	set := rs485{
		flags:  rs485Enabled | rs485RTSOnSend,
		before: milliseconds(c.DelayBefore),
		after:  milliseconds(c.DelayAfter),
	}
	if c.Invert {
		set.flags = rs485Enabled | rs485RTSAfterSend
	}
	if err := ioctl(fd, unix.TIOCSRS485, unsafe.Pointer(&set)); err != nil {
		return os.NewSyscallError("TIOCSRS485", err)
	}
	var got rs485
	if err := ioctl(fd, unix.TIOCGRS485, unsafe.Pointer(&got)); err == nil && got.flags&rs485Enabled == 0 {
		return os.NewSyscallError("TIOCSRS485", unix.EINVAL)
	}
	return nil
}

// milliseconds rounds up: a delay is a least one.
func milliseconds(d time.Duration) uint32 {
	return uint32((d + time.Millisecond - 1) / time.Millisecond)
}

func (t *tty) setRTS(on bool) error {
	req := uint(unix.TIOCMBIC)
	if on {
		req = unix.TIOCMBIS
	}
	err := t.ioctl(func(fd int) error { return unix.IoctlSetPointerInt(fd, req, unix.TIOCM_RTS) })
	if err != nil {
		return fmt.Errorf("the port has no RTS to switch: %w", os.NewSyscallError("TIOCMSET", err))
	}
	return nil
}

// serialStruct is struct serial_struct of linux/serial.h.
type serialStruct struct {
	kind, line          int32
	port                uint32
	irq, flags          int32
	fifo, divisor, base int32
	closeDelay          uint16
	ioType, _           byte
	hub6                int32
	closingWait         uint16
	closingWait2        uint16
	iomem               uintptr
	regShift            uint16
	portHigh            uint32
	iomap               uintptr
}

const asyncLowLatency = 1 << 13

// setLowLatency asks the driver to hand every byte on at once; with FTDI
// adapters that also sets their latency timer to 1 ms. Drivers that know no such
// thing refuse, which costs nothing but the latency.
func setLowLatency(fd int) {
	var s serialStruct
	if ioctl(fd, unix.TIOCGSERIAL, unsafe.Pointer(&s)) != nil || s.flags&asyncLowLatency != 0 {
		return
	}
	s.flags |= asyncLowLatency
	_ = ioctl(fd, unix.TIOCSSERIAL, unsafe.Pointer(&s))
}

// icounter reads struct serial_icounter_struct of linux/serial.h.
func icounter(fd int) SerialErrors {
	var c struct {
		cts, dsr, rng, dcd, rx, tx                 int32
		frame, overrun, parity, brk, bufferOverrun int32
		_                                          [9]int32
	}
	if ioctl(fd, unix.TIOCGICOUNT, unsafe.Pointer(&c)) != nil {
		return SerialErrors{}
	}
	return SerialErrors{
		Framing:       uint32(c.frame),
		Parity:        uint32(c.parity),
		Overrun:       uint32(c.overrun),
		BufferOverrun: uint32(c.bufferOverrun),
		Break:         uint32(c.brk),
	}
}
