package line

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"

	"golang.org/x/sys/unix"
)

// solo shares a connection that carries one MBAP request at a time, the usual
// case. The caller writes and reads itself: to hand the answer from a reader to
// the caller would wake another thread of the runtime for every transaction. The
// goroutine in serve only waits for the peer to hang up, so that a lost
// connection is known, and made anew, while nobody asks.
type solo struct {
	line  *Line
	stall time.Duration
	turn  chan struct{} // who has put a token in has all the fields below

	wire    *stream // nil while none is open
	hangup  *hangup
	why     error // why a caller gave wire up
	tx      uint16
	out     []byte
	in      []byte    // read and not taken: the front of a frame, or frames nobody asked for
	last    time.Time // when an answer last came
	silent  int       // requests in a row without an answer
	missing missing

	watched <-chan struct{} // Done of the context whose end makes a read end
	unwatch func() bool     // ends that
}

func newSolo(l *Line) *solo {
	return &solo{line: l, stall: stallOf(l.cfg), turn: make(chan struct{}, 1), in: make([]byte, 0, 2*modbus.MaxTCP), unwatch: func() bool { return false }}
}

func (s *solo) inFlight() int { return 1 }

// do implements share.
func (s *solo) do(ctx context.Context, unit modbus.UnitID, req modbus.PDU, timeout, gap time.Duration) (modbus.PDU, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-s.turn }()
	if s.wire == nil {
		return nil, errNotSent
	}
	if gap > 0 && !sleep(ctx, time.Until(s.last.Add(gap))) {
		return nil, context.Cause(ctx)
	}
	if err := s.send(unit, req); err != nil {
		return nil, err
	}
	return s.receive(ctx, unit, req, timeout)
}

func (s *solo) send(unit modbus.UnitID, req modbus.PDU) error {
	s.tx++
	s.out = modbus.AppendTCP(s.out[:0], s.tx, unit, req)
	s.line.count.requests.Add(1)
	s.line.count.bytesSent.Add(uint64(len(s.out)))
	s.line.wireTap('>', s.out, time.Time{})
	n, err := s.wire.conn.Write(s.out)
	if err == nil {
		return nil
	}
	lost := s.lose(err)
	if n == 0 {
		return errNotSent
	}
	return lost
}

// receive waits for the answer to the request just sent.
func (s *solo) receive(ctx context.Context, unit modbus.UnitID, req modbus.PDU, timeout time.Duration) (modbus.PDU, error) {
	c, conn := &s.line.count, s.wire.conn
	limit := time.Now().Add(timeout)
	if err := s.waitUntil(ctx, limit); err != nil {
		return nil, s.lose(err)
	}
	for {
		n, err := conn.Read(s.in[len(s.in):cap(s.in)])
		if n > 0 {
			c.bytesReceived.Add(uint64(n))
			s.in = s.in[:len(s.in)+n]
			pdu, done, err := s.frames(unit, req)
			if done {
				_ = conn.SetReadDeadline(time.Time{}) // fails on a lost wire, which the next request meets
				return pdu, err
			}
			if err != nil {
				return nil, s.lose(err)
			}
		}
		switch {
		case err == nil:
			if len(s.in) == 0 {
				continue
			}
			// The rest of a frame has its own time.
			limit = later(limit, time.Now().Add(s.stall))
		case !errors.Is(err, os.ErrDeadlineExceeded):
			if errors.Is(err, io.EOF) && len(s.in) > 0 {
				c.partial.Add(1)
				err = io.ErrUnexpectedEOF
			}
			return nil, s.lose(err)
		case ctx.Err() != nil:
			s.missing.add(s.tx, unit, req, timeout)
			return nil, fmt.Errorf("%w: %w", modbus.ErrNoResponse, context.Cause(ctx))
		case time.Now().Before(limit):
			// It was meant for the request before, whose context ended as its
			// answer came.
		case s.wire.pending():
			limit = time.Now().Add(10 * time.Millisecond) // we are late, not the device
		case len(s.in) > 0:
			c.partial.Add(1)
			return nil, s.lose(cutShort(len(s.in)))
		default:
			return nil, s.nothing(unit, req, timeout)
		}
		if err := s.waitUntil(ctx, limit); err != nil {
			return nil, s.lose(err)
		}
	}
}

// waitUntil makes the next read end at limit, or with ctx. A caller mostly comes
// with the same context each time, so that it is watched on from request to
// request: to begin and end that takes memory and a lock shared by all lines.
func (s *solo) waitUntil(ctx context.Context, limit time.Time) error {
	conn := s.wire.conn
	if s.watched != ctx.Done() {
		s.unwatch()
		s.watched = ctx.Done()
		s.unwatch = context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(past) })
	}
	if err := conn.SetReadDeadline(limit); err != nil || ctx.Err() == nil {
		return err
	}
	return conn.SetReadDeadline(past) // ctx ended before limit was set
}

// frames takes the whole frames off the front of in, up to the answer to req;
// done says that it was among them. An error without it means that the stream
// cannot be trusted any further.
func (s *solo) frames(unit modbus.UnitID, req modbus.PDU) (resp modbus.PDU, done bool, err error) {
	c, now := &s.line.count, time.Now()
	for !done && len(s.in) >= modbus.MBAPLen {
		tx, n, from, err := modbus.ParseMBAP(s.in)
		end := modbus.MBAPLen + n
		if err == nil && end > len(s.in) {
			break
		}
		if err == nil && (!header(s.in[end:]) || s.missing.within(s.in, end, now)) {
			err = errSwallowed
		}
		if err != nil {
			c.badHeader.Add(1)
			s.line.wireTap('<', s.in, now)
			return nil, false, fmt.Errorf("%w: %w", modbus.ErrBadResponse, err)
		}
		s.line.wireTap('<', s.in[:end], now)
		switch {
		case tx == s.tx:
			done = true
			resp, err = s.take(unit, req, from, modbus.PDU(s.in[modbus.MBAPLen:end]))
		case s.tx-tx < recent:
			s.missing.came(tx)
			c.late.Add(1)
		default:
			c.unknownID.Add(1)
		}
		s.in = s.in[:copy(s.in, s.in[end:])]
		if done {
			s.last, s.silent = now, 0
			return resp, true, err
		}
	}
	return nil, false, nil
}

// take looks whether a frame with the right id is the answer.
func (s *solo) take(unit modbus.UnitID, req modbus.PDU, from modbus.UnitID, pdu modbus.PDU) (modbus.PDU, error) {
	c := &s.line.count
	if from != unit {
		c.wrongUnit.Add(1)
		return nil, wrongUnit(from, unit)
	}
	err := modbus.CheckResponse(req, pdu)
	switch {
	case err == nil:
		s.line.answered()
		return bytes.Clone(pdu), nil
	case answers(err):
		s.line.answered()
		c.exceptions.Add(1)
	default:
		c.wrongAnswer.Add(1)
	}
	return nil, err
}

// nothing notes that a request got no answer.
func (s *solo) nothing(unit modbus.UnitID, req modbus.PDU, timeout time.Duration) error {
	s.missing.add(s.tx, unit, req, timeout)
	s.line.count.timeouts.Add(1)
	s.silent++
	if s.silent >= mostSilent && s.line.cfg.Kind == config.TCP && !s.line.keep {
		_ = s.lose(tooSilent(s.silent))
	}
	return noResponse(timeout)
}

// lose gives the wire up, so that serve returns. It returns what to tell the
// caller, whose request was sent.
func (s *solo) lose(why error) error {
	s.line.set(stateOpening, nil)
	s.unwatch()
	s.wire.stop()
	s.hangup.close()
	s.wire, s.watched, s.why, s.in = nil, nil, why, s.in[:0]
	return lostUnder(why)
}

// serve implements share: it waits until the peer hangs up, or a caller found
// the wire of no use.
func (s *solo) serve(ctx context.Context, wr wire) error {
	w := wr.(*stream)
	h, err := newHangup(w.raw)
	if err != nil {
		return err
	}
	defer h.close()
	s.turn <- struct{}{}
	s.wire, s.hangup, s.why, s.silent, s.missing = w, h, nil, 0, missing{}
	<-s.turn
	defer context.AfterFunc(ctx, func() {
		w.stop()
		h.close()
	})()
	s.line.set(stateUp, nil)
	h.wait()
	// A caller may still read the last answer.
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.wire != nil {
		_ = s.lose(errHungUp)
	}
	return s.why
}

// past is a deadline that is over.
var past = time.Unix(1, 0)

// errHungUp: the peer closed the connection.
var errHungUp = errors.New("closed by the device")

// hangup waits for the peer of a connection to close it, without reading: an
// epoll of its own, in the runtime's poller, that no data wakes.
type hangup struct {
	file *os.File
	raw  syscall.RawConn
}

func newHangup(conn syscall.RawConn) (*hangup, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	err = unix.SetNonblock(fd, true) // what os.NewFile looks at; epoll itself never blocks here
	if cerr := conn.Control(func(c uintptr) {
		if err == nil {
			err = unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, int(c), &unix.EpollEvent{Events: unix.EPOLLRDHUP})
		}
	}); cerr != nil {
		err = cerr
	}
	h := &hangup{file: os.NewFile(uintptr(fd), "epoll")}
	if err == nil {
		h.raw, err = h.file.SyscallConn()
	}
	if err != nil {
		h.close()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return h, nil
}

// wait returns when the peer has closed its side, the connection failed, or
// close was called.
func (h *hangup) wait() {
	_ = h.raw.Read(func(fd uintptr) bool { // fails after close
		var events [1]unix.EpollEvent
		n, err := unix.EpollWait(int(fd), events[:], 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

func (h *hangup) close() { h.file.Close() }

// header reports whether b may be the front of an MBAP header, as far as it goes.
func header(b []byte) bool {
	switch {
	case len(b) >= modbus.MBAPLen:
		_, _, _, err := modbus.ParseMBAP(b)
		return err == nil
	case len(b) >= 4:
		return binary.BigEndian.Uint16(b[2:]) == 0
	}
	return true
}
