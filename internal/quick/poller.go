package quick

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"fieldgate/internal/health"
)

// Poller waits for many connections in one goroutine, that of Run. What it saves
// beside a goroutine for each is that to wake and to park one, a lock or two and
// a read that finds nothing: half of what a short request costs.
type Poller struct {
	epoll  int
	file   *os.File // the same, as the runtime's poller waits for it
	raw    syscall.RawConn
	events [maxEvents]unix.EpollEvent // of the goroutine of Run
	beat   health.Beat                // of Run

	ticking sync.Mutex // held while the time of the next tick is set

	mu      sync.Mutex
	closed  bool
	sockets map[int32]*Socket // that are watched
}

const (
	// maxEvents is how many connections one look at them finds.
	maxEvents = 64
	// maxRounds is how often Run looks for more before it gives others a turn.
	maxRounds = 32
)

// NewPoller returns a poller of no connections. Close it.
func NewPoller() (*Poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	// An epoll instance is ready when one of its descriptors is, so that it can
	// itself be waited for as a connection is.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make an epoll instance non-blocking: %w", err)
	}
	p := &Poller{epoll: fd, file: os.NewFile(uintptr(fd), "epoll"), sockets: make(map[int32]*Socket)}
	if p.raw, err = p.file.SyscallConn(); err != nil {
		p.file.Close()
		return nil, err
	}
	return p, nil
}

// Run calls the functions of the sockets that are ready, one after the other,
// and tick when it is due: at the start, when Tick was called and at the time
// that it returned last, if that is not zero. It returns when the poller is
// closed.
func (p *Poller) Run(tick func(now time.Time) (next time.Time)) {
	defer p.beat.Stops()
	var again error
	for again == nil || errors.Is(again, os.ErrDeadlineExceeded) {
		p.beat.Works()
		p.ticking.Lock() // a Tick comes before this or after it
		p.file.SetReadDeadline(tick(time.Now()))
		p.ticking.Unlock()
		again = p.raw.Read(p.turn)
		runtime.Gosched() // it may not have waited
	}
}

// Tick has Run call its tick soon. It is safe for use by several goroutines, but
// not within a tick.
func (p *Poller) Tick() {
	p.ticking.Lock()
	defer p.ticking.Unlock()
	p.file.SetReadDeadline(time.Unix(1, 0)) // it has passed; an error would mean that nobody runs
}

// Overdue returns for how long Run has been owing its next step: to wait for the
// sockets, or to look at them anew. It is safe for use by several goroutines.
func (p *Poller) Overdue() time.Duration { return p.beat.Overdue() }

// Close ends Run. The sockets stay as they are.
func (p *Poller) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	return p.file.Close()
}

// turn serves what is ready. Once nothing is, it is not done: what comes next
// wakes it again, and nothing that comes meanwhile is missed.
func (p *Poller) turn(uintptr) (done bool) {
	for range maxRounds {
		n, _, err := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epoll), uintptr(unsafe.Pointer(&p.events)), maxEvents, 0, 0, 0)
		if err != 0 || n == 0 {
			p.beat.Waits()
			return false // EBADF: it is closed, as the runtime's poller will say
		}
		p.beat.Works()
		now := time.Now()
		for i := range p.events[:n] {
			p.mu.Lock()
			s := p.sockets[p.events[i].Fd]
			p.mu.Unlock()
			if s != nil { // or else it was closed a moment ago
				s.ready(now)
			}
		}
	}
	return true
}

// Socket is a TCP connection that a Poller waits for. Its methods never block.
type Socket struct {
	p     *Poller
	ready func(now time.Time)

	mu     sync.Mutex
	fd     int // -1: it is closed
	events uint32
}

// What a socket is watched for.
const (
	Nothing = 0
	Input   = unix.EPOLLIN
	Output  = unix.EPOLLOUT // room for it
)

// Take takes over c, an open TCP connection, and returns nil if it is none. It is
// watched for Nothing at first. Run calls ready whenever what it is watched for is
// there; now is when that was found.
func (p *Poller) Take(c net.Conn, ready func(now time.Time)) *Socket {
	if q, ok := c.(*conn); ok {
		c = q.TCPConn
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	// A descriptor of its own is one that the runtime's poller does not watch.
	fd := -1
	if err := raw.Control(func(own uintptr) { fd, _ = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) }); err != nil || fd < 0 {
		return nil
	}
	c.Close()
	return &Socket{p: p, ready: ready, fd: fd}
}

// Watch says what ready is called for from now on. An error means that the socket
// or the poller is closed.
func (s *Socket) Watch(events uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return net.ErrClosed
	}
	return s.watch(events)
}

// watch is Watch with mu held.
func (s *Socket) watch(events uint32) error {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	op := unix.EPOLL_CTL_MOD
	switch {
	case p.closed:
		return net.ErrClosed // its descriptor may be another's
	case events == s.events:
		return nil
	case events == Nothing:
		// Watched for nothing, an error would still be reported, without end.
		op = unix.EPOLL_CTL_DEL
		delete(p.sockets, int32(s.fd))
	case s.events == Nothing:
		op = unix.EPOLL_CTL_ADD
		p.sockets[int32(s.fd)] = s
	}
	s.events = events
	return unix.EpollCtl(p.epoll, op, s.fd, &unix.EpollEvent{Events: events, Fd: int32(s.fd)})
}

// ErrNotNow is the error of a Read that found nothing, and of a Write that there
// was no room for.
var ErrNotNow error = unix.EAGAIN

// Read reads what has come, and returns io.EOF when nothing will come any more.
func (s *Socket) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return 0, net.ErrClosed
	}
	n, err := read(uintptr(s.fd), b)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// Write writes as much of b as there is room for.
func (s *Socket) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return 0, net.ErrClosed
	}
	return write(uintptr(s.fd), b)
}

// Shutdown ends the connection but keeps the socket, which then is ready and
// reads io.EOF. It is safe for use by several goroutines, as Close is.
func (s *Socket) Shutdown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd >= 0 {
		unix.Shutdown(s.fd, unix.SHUT_RDWR)
	}
}

// Close closes the connection. Ready is not called any more, unless it is already.
func (s *Socket) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return
	}
	s.watch(Nothing)
	unix.Close(s.fd)
	s.fd = -1
}
