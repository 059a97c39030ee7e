// Package quick makes TCP connections cheap to use for a process that sleeps most
// of the time. It is nothing but that: it opens nothing, and knows no protocol.
//
// What Conn returns reads and writes by system calls that Go's scheduler is not
// told of. They never block, for the socket is non-blocking and the runtime's
// poller does the waiting. Of the usual ones, the first after a sleep wakes the
// runtime's monitor thread, which then looks every 20 µs, for some milliseconds,
// whether a thread is stuck. A gateway that polls a hundred devices a second, in
// a few bursts, spent a sixth of its processor time on that, and a single request
// costs a quarter less without.
//
// A Poller serves many connections in one goroutine.
package quick

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Conn returns c, an open TCP connection, with cheap Read and Write. It takes c
// over: use and close what is returned. Everything else is as with c, the
// SyscallConn of package net included. A connection that has no descriptor of its
// own, such as one with TLS, is returned as it is.
func Conn(c net.Conn) net.Conn {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return c // closed, as its own Read will say
	}
	q := &conn{TCPConn: t, raw: raw}
	q.in.do = func(fd uintptr) bool {
		q.in.n, q.in.err = read(fd, q.in.p)
		return q.in.err != unix.EAGAIN
	}
	q.out.do = func(fd uintptr) bool {
		n, err := write(fd, q.out.p[q.out.n:])
		q.out.n += n
		q.out.err = err
		return err != unix.EAGAIN && (err != nil || q.out.n == len(q.out.p))
	}
	return q
}

type conn struct {
	*net.TCPConn
	raw     syscall.RawConn
	in, out transfer
}

// transfer is one direction of a connection.
type transfer struct {
	sync.Mutex // guards the rest

	p   []byte
	n   int // done of p
	err error
	do  func(fd uintptr) (done bool) // made once: a call costs no memory
}

// Read implements net.Conn.
func (q *conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return q.TCPConn.Read(p)
	}
	t := &q.in
	t.Lock()
	defer t.Unlock()
	t.p, t.n, t.err = p, 0, nil
	err := q.raw.Read(t.do)
	t.p = nil
	switch {
	case err != nil || t.err != nil:
		return 0, q.failure("read", err, t.err)
	case t.n == 0:
		return 0, io.EOF
	}
	return t.n, nil
}

// Write implements net.Conn.
func (q *conn) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return q.TCPConn.Write(p)
	}
	t := &q.out
	t.Lock()
	defer t.Unlock()
	t.p, t.n, t.err = p, 0, nil
	err := q.raw.Write(t.do)
	t.p = nil
	if err != nil || t.err != nil {
		return t.n, q.failure("write", err, t.err)
	}
	return t.n, nil
}

// ReadFrom and WriteTo would go around Read and Write.

// ReadFrom implements io.ReaderFrom by Write.
func (q *conn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(writer{q}, r) }

// WriteTo implements io.WriterTo by Read.
func (q *conn) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, reader{q}) }

type writer struct{ io.Writer }

type reader struct{ io.Reader }

// failure is the error that package net would return: waited is that of the
// poller, called that of the system call.
func (q *conn) failure(op string, waited, called error) error {
	err := waited
	if waited == nil {
		err = os.NewSyscallError(op, called)
	} else if e := (*net.OpError)(nil); errors.As(waited, &e) {
		err = e.Err // its Op is "raw-read"
	}
	return &net.OpError{Op: op, Net: "tcp", Source: q.LocalAddr(), Addr: q.RemoteAddr(), Err: err}
}
