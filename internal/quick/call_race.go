//go:build race

package quick

import "syscall"

// read and write are those that tell the race detector what the kernel has read
// and written, and what happened before.

func read(fd uintptr, p []byte) (int, error)  { return again(syscall.Read, fd, p) }
func write(fd uintptr, p []byte) (int, error) { return again(syscall.Write, fd, p) }

func again(call func(int, []byte) (int, error), fd uintptr, p []byte) (int, error) {
	for {
		n, err := call(int(fd), p)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}
