package simulate

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// pty is a pseudo-terminal: what one end writes the other reads. Ours is the
// master; the gateway opens the other one by its path, as it would a port.
type pty struct {
	master int    // non-blocking
	slave  int    // kept open, so that a gateway may come and go without a hang-up
	path   string // of the gateway's end
}

// openPTY makes a pseudo-terminal that passes every byte unchanged.
func openPTY() (p pty, err error) {
	const flags = unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC
	p.slave = -1
	if p.master, err = unix.Open("/dev/ptmx", flags|unix.O_NONBLOCK, 0); err != nil {
		return pty{}, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if err = unix.IoctlSetPointerInt(p.master, unix.TIOCSPTLCK, 0); err != nil {
		return p, fmt.Errorf("unlock pseudo-terminal: %w", err)
	}
	n, err := unix.IoctlGetUint32(p.master, unix.TIOCGPTN)
	if err != nil {
		return p, fmt.Errorf("number of pseudo-terminal: %w", err)
	}
	p.path = fmt.Sprintf("/dev/pts/%d", n)
	if p.slave, err = unix.Open(p.path, flags, 0); err != nil {
		return p, fmt.Errorf("open %s: %w", p.path, err)
	}
	t, err := unix.IoctlGetTermios(p.slave, unix.TCGETS)
	if err != nil {
		return p, fmt.Errorf("mode of %s: %w", p.path, err)
	}
	// Raw before anybody opens it: the terminal's own echo would answer every
	// request with itself.
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8 | unix.CREAD | unix.CLOCAL
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err = unix.IoctlSetTermios(p.slave, unix.TCSETS, t); err != nil {
		return p, fmt.Errorf("mode of %s: %w", p.path, err)
	}
	return p, nil
}

// close frees both ends. The gateway's reads then end with an error, as when an
// adapter is unplugged.
func (p *pty) close() {
	unix.Close(p.master)
	if p.slave >= 0 {
		unix.Close(p.slave)
	}
	p.master, p.slave = -1, -1
}

// linkTo makes link a symbolic link to path in one step. It replaces a link that
// is there, and nothing else.
func linkTo(path, link string) error {
	if st, err := os.Lstat(link); err == nil && st.Mode()&os.ModeSymlink == 0 {
		return fmt.Errorf("link %s: there is something else than a link; remove it or name another path", link)
	}
	temp := fmt.Sprintf("%s.%d", link, os.Getpid())
	if err := os.Symlink(path, temp); err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	if err := os.Rename(temp, link); err != nil {
		os.Remove(temp)
		return fmt.Errorf("link %s: %w", link, err)
	}
	return nil
}

// unlink removes link if it still leads to path.
func unlink(path, link string) error {
	if to, err := os.Readlink(link); err != nil || to != path {
		return nil
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove link %s: %w", link, err)
	}
	return nil
}
