package line

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/quick"

	"golang.org/x/sys/unix"
)

// userTimeout is how long sent bytes may stay unacknowledged before the kernel
// gives the connection up.
const userTimeout = 10 * time.Second

// keepAlive finds a dead peer while nothing is sent.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}
}

// dialer opens TCP and UDP "connections".
type dialer struct{ line *Line }

func (d dialer) open(ctx context.Context) (wire, error) {
	cfg := d.line.cfg
	nd := net.Dialer{Timeout: cfg.ConnectTimeout, KeepAliveConfig: keepAlive()}
	c, err := nd.DialContext(ctx, cfg.Kind.String(), cfg.Address)
	if err != nil {
		return nil, err
	}
	return newStream(c, cfg.Kind == config.UDP), nil
}

func (d dialer) close() {}

// listener waits for the device to dial in. The newest connection wins: a modem
// that lost its connection without a word dials again, and the one it lost
// would be kept for minutes otherwise.
type listener struct {
	line *Line
	l    net.Listener
	done chan struct{} // closed when accept has ended

	mu      sync.Mutex
	waiting net.Conn      // accepted, not yet taken by open
	news    chan struct{} // holds one token while waiting is set
	current net.Conn      // taken by open
}

// errNobody: the listener stands, no device has dialled in.
var errNobody = errors.New("no device has dialled in")

func (l *listener) open(ctx context.Context) (wire, error) {
	if l.l == nil {
		lc := net.ListenConfig{KeepAliveConfig: keepAlive()}
		nl, err := lc.Listen(ctx, "tcp", l.line.cfg.Address)
		if err != nil {
			return nil, err
		}
		l.l, l.news, l.done = nl, make(chan struct{}, 1), make(chan struct{})
		l.line.setAddr(nl.Addr())
		go l.accept() // ends when close closes the listener
	}
	select {
	case <-l.news:
	default:
		l.line.set(stateDown, errNobody)
		select {
		case <-l.news:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current, l.waiting = l.waiting, nil
	return newStream(l.current, false), nil
}

// accept takes connections and closes the one before.
func (l *listener) accept() {
	defer close(l.done)
	for {
		c, err := l.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors, or the peer went away again: neither ends
			// the listener.
			time.Sleep(100 * time.Millisecond)
			continue
		}
		l.line.log.Debug("device dialled in", "from", c.RemoteAddr().String())
		l.mu.Lock()
		if l.waiting != nil {
			l.waiting.Close()
		}
		if l.current != nil {
			l.current.Close() // its owner sees the error and comes back to open
		}
		l.waiting = c
		select {
		case l.news <- struct{}{}:
		default:
		}
		l.mu.Unlock()
	}
}

func (l *listener) close() {
	if l.l == nil {
		return
	}
	l.l.Close()
	<-l.done
	if l.waiting != nil {
		l.waiting.Close()
	}
}

// stream is a connection as a wire. On UDP a read returns one datagram.
type stream struct {
	source
	conn net.Conn
}

func newStream(c net.Conn, udp bool) *stream {
	s := &stream{conn: c}
	s.source = source{datagrams: udp}
	if sc, ok := c.(syscall.Conn); ok {
		s.raw, _ = sc.SyscallConn() // fails on a closed connection only
	}
	if !udp && s.raw != nil {
		s.conn = quick.Conn(c)
		_ = s.raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout/time.Millisecond))
		})
	}
	s.source.file = s.conn
	return s
}

func (s *stream) write(p []byte) (time.Time, error) {
	_, err := s.conn.Write(p)
	if s.datagrams && errors.Is(err, unix.ECONNREFUSED) {
		_, err = s.conn.Write(p) // the error belonged to what was sent before
	}
	return time.Now(), err
}

// hold is no more exact than the runtime's timers: no time on a network is.
func (s *stream) hold(until time.Time) { time.Sleep(time.Until(until)) }

func (s *stream) stop() { s.conn.Close() }

func (s *stream) close() { s.conn.Close() }

func (l *Line) setAddr(a net.Addr) {
	l.mu.Lock()
	l.addr = a
	l.mu.Unlock()
}
