//go:build !race

package quick

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// read and write are those of the kernel, for a descriptor that does not block.

func read(fd uintptr, p []byte) (int, error)  { return call(unix.SYS_READ, fd, p) }
func write(fd uintptr, p []byte) (int, error) { return call(unix.SYS_WRITE, fd, p) }

func call(trap, fd uintptr, p []byte) (int, error) {
	for {
		n, _, err := unix.RawSyscall(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch err {
		case unix.EINTR:
		case 0:
			return int(n), nil
		default:
			return 0, err
		}
	}
}
