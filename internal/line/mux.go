package line

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"

	"golang.org/x/sys/unix"
)

const (
	// mostInFlight is the largest window (SPEC, in_flight).
	mostInFlight = 16
	// stallMin and stallMax bound how long the rest of a frame may stay away
	// once it has begun; between them it is the timeout of the bus.
	stallMin = 200 * time.Millisecond
	stallMax = time.Second
	// mostSilent is how many requests in a row may go unanswered before the
	// connection is made anew: the peer may have forgotten it.
	mostSilent = 3
	// recent is how many ids back an unexpected transaction id counts as that of
	// a late answer rather than as one that was never used.
	recent = 1 << 12
	// muxBuffer holds the answers of a full window that arrive at once.
	muxBuffer = 2048
)

// stallOf returns how long the rest of a frame may stay away.
func stallOf(cfg config.Bus) time.Duration { return min(max(cfg.Timeout, stallMin), stallMax) }

// What solo and mux say alike.
var errSwallowed = fmt.Errorf("%w: the front of another frame in it", modbus.ErrBadFrame)

func cutShort(n int) error {
	return fmt.Errorf("%w: a frame cut short after %d bytes", modbus.ErrBadResponse, n)
}

func wrongUnit(got, want modbus.UnitID) error {
	return fmt.Errorf("%w: from unit %d, not %d", modbus.ErrBadResponse, got, want)
}

// mux shares a connection that carries several MBAP requests: up to a window of requests are on
// their way at once, and each answer finds its request by the transaction id.
// The goroutine in serve only reads; a caller writes its request itself.
//
// While a window that finds itself (in_flight auto) still grows, an answer that
// could belong to another request on its way at the same time is held back until
// all of them are answered: a device that mixes up ids shows it by then.
type mux struct {
	line  *Line
	stall time.Duration

	mu      sync.Mutex
	wire    *stream // nil while none is open
	free    []*slot
	queue   []*slot // wait for the window, in order
	flying  []*slot // on their way
	held    []*slot // answered, held back
	window  window
	tx      uint16    // transaction id of the last request
	last    time.Time // when a frame last passed
	part    time.Time // when bytes of an unfinished frame last came; zero: there is none
	silent  int       // requests in a row without an answer
	why     error     // why we closed wire ourselves
	missing missing
}

// slot is one request from do's call to its return.
type slot struct {
	tx    uint16
	unit  modbus.UnitID
	adu   []byte        // header and request
	turn  chan struct{} // holds a token once the slot has left the queue for flying
	done  chan struct{} // holds a token once resp and err are set
	resp  modbus.PDU
	err   error
	timer *time.Timer
}

func (s *slot) req() modbus.PDU { return modbus.PDU(s.adu[modbus.MBAPLen:]) }

func (s *slot) finish(resp modbus.PDU, err error) {
	s.resp, s.err = resp, err
	s.done <- struct{}{}
}

func newMux(l *Line) *mux {
	return &mux{
		line:   l,
		stall:  stallOf(l.cfg),
		window: newWindow(l.cfg.InFlight),
	}
}

func (m *mux) inFlight() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.window.size
}

// do implements share.
func (m *mux) do(ctx context.Context, unit modbus.UnitID, req modbus.PDU, timeout, gap time.Duration) (modbus.PDU, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	s, w := m.enter(unit, req)
	if w == nil {
		select {
		case <-s.turn:
		case <-s.done:
			return m.leave(s)
		case <-ctx.Done():
			return m.abandon(s, context.Cause(ctx), false)
		}
		if w = m.current(); w == nil {
			<-s.done // the wire was lost, and everything on it finished
			return m.leave(s)
		}
	}
	if gap > 0 {
		if !m.wait(ctx, gap) {
			return m.abandon(s, context.Cause(ctx), false)
		}
	}
	m.send(w, s)
	s.timer.Reset(timeout)
	for {
		select {
		case <-s.done:
			return m.leave(s)
		case <-s.timer.C:
			if more := m.expire(s, timeout); more > 0 {
				s.timer.Reset(more)
			}
		case <-ctx.Done():
			return m.abandon(s, context.Cause(ctx), true)
		}
	}
}

// enter makes a slot for a request. The wire is nil when the slot has to wait,
// for its turn or for having been refused.
func (m *mux) enter(unit modbus.UnitID, req modbus.PDU) (*slot, *stream) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var s *slot
	if n := len(m.free); n > 0 {
		s = m.free[n-1]
		m.free = m.free[:n-1]
	} else {
		s = &slot{turn: make(chan struct{}, 1), done: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
	}
	m.tx++
	s.tx, s.unit = m.tx, unit
	s.adu = modbus.AppendTCP(s.adu[:0], s.tx, unit, req)
	switch {
	case m.wire == nil:
		s.finish(nil, errNotSent)
		return s, nil
	case len(m.queue) > 0 || !m.admits():
		m.queue = append(m.queue, s)
		return s, nil
	}
	m.flying = append(m.flying, s)
	return s, m.wire
}

func (m *mux) admits() bool {
	return len(m.flying)+len(m.held) < m.window.size && len(m.held) == 0
}

// admit lets in who waits, as far as the window allows.
func (m *mux) admit() {
	for len(m.queue) > 0 && m.admits() {
		s := m.queue[0]
		m.queue = slices.Delete(m.queue, 0, 1)
		m.flying = append(m.flying, s)
		s.turn <- struct{}{}
	}
}

// leave ends do: it takes the outcome out of a finished slot.
func (m *mux) leave(s *slot) (modbus.PDU, error) {
	resp, err := s.resp, s.err
	s.resp, s.err = nil, nil
	s.timer.Stop()
	select {
	case <-s.turn:
	default:
	}
	m.mu.Lock()
	m.free = append(m.free, s)
	m.mu.Unlock()
	return resp, err
}

// abandon ends do before its time. An answer that comes at this moment counts.
func (m *mux) abandon(s *slot, cause error, sent bool) (modbus.PDU, error) {
	if sent {
		cause = fmt.Errorf("%w: %w", modbus.ErrNoResponse, cause)
	}
	m.mu.Lock()
	for _, list := range []*[]*slot{&m.queue, &m.flying, &m.held} {
		if remove(list, s) {
			if sent {
				m.missing.add(s.tx, s.unit, s.req(), m.line.cfg.Timeout)
			}
			s.finish(nil, cause)
			m.settle()
			break
		}
	}
	m.mu.Unlock()
	<-s.done
	return m.leave(s)
}

// remove takes s out of list.
func remove(list *[]*slot, s *slot) bool {
	i := slices.Index(*list, s)
	if i < 0 {
		return false
	}
	*list = slices.Delete(*list, i, i+1)
	return true
}

func (m *mux) current() *stream {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wire
}

// wait keeps the least silence before a request.
func (m *mux) wait(ctx context.Context, gap time.Duration) bool {
	m.mu.Lock()
	at := m.last.Add(gap)
	m.mu.Unlock()
	return sleep(ctx, time.Until(at))
}

// send writes the request of s, which is in flying. A wire that fails is closed;
// then serve finishes s.
func (m *mux) send(w *stream, s *slot) {
	c := &m.line.count
	c.requests.Add(1)
	c.bytesSent.Add(uint64(len(s.adu)))
	m.line.wireTap('>', s.adu, time.Time{})
	if _, err := w.write(s.adu); err != nil {
		m.mu.Lock()
		m.drop(w, err)
		m.mu.Unlock()
	}
}

// drop closes w for a reason of ours.
func (m *mux) drop(w *stream, why error) {
	if m.wire == w && m.why == nil {
		m.why = why
	}
	w.stop()
}

// expire gives s up, or returns how long to wait on: while a frame is coming in
// that may be its answer, and while its answer is held back.
func (m *mux) expire(s *slot, timeout time.Duration) (more time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.Contains(m.held, s) {
		return m.stall
	}
	if !m.part.IsZero() {
		// The frame that stalls ends the connection, and that is the better
		// word for it; this is only the net below.
		const after = 50 * time.Millisecond
		if more := time.Until(m.part.Add(m.stall + after)); more > 0 {
			return more
		}
	}
	if m.wire != nil && m.wire.pending() {
		return 10 * time.Millisecond // the reader is late, not the device
	}
	if !remove(&m.flying, s) {
		return 0 // it was answered at this moment
	}
	m.line.count.timeouts.Add(1)
	m.missing.add(s.tx, s.unit, s.req(), timeout)
	s.finish(nil, noResponse(timeout))
	m.slip()
	m.settle()
	m.silent++
	if m.silent >= mostSilent && m.wire != nil && !m.wire.datagrams && m.line.cfg.Kind != config.Listen && !m.line.keep {
		m.drop(m.wire, tooSilent(m.silent))
	}
	return 0
}

// slip takes the window back. What was held is not believed.
func (m *mux) slip() {
	m.window.slip(time.Now())
	for _, s := range m.held {
		s.finish(nil, fmt.Errorf("%w: the device mixed up answers or lost one", modbus.ErrBadResponse))
	}
	m.held = m.held[:0]
}

// settle lets go what was held once nothing is on its way, and lets in who waits.
func (m *mux) settle() {
	if len(m.flying) == 0 {
		for _, s := range m.held {
			m.believe(s)
		}
		m.held = m.held[:0]
	}
	m.admit()
}

// believe hands the answer of s to its caller.
func (m *mux) believe(s *slot) {
	m.line.answered()
	if s.err != nil {
		m.line.count.exceptions.Add(1)
	}
	s.done <- struct{}{}
}

// serve implements share: it reads until the wire fails.
func (m *mux) serve(ctx context.Context, wr wire) error {
	w := wr.(*stream)
	m.mu.Lock()
	m.wire, m.why, m.silent, m.part, m.missing = w, nil, 0, time.Time{}, missing{}
	m.last = time.Now()
	m.mu.Unlock()
	defer context.AfterFunc(ctx, w.stop)()
	m.line.set(stateUp, nil)
	err := m.read(w)
	m.line.set(stateOpening, nil)
	return m.end(err)
}

// end finishes all requests on a wire that was lost.
func (m *mux) end(err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wire = nil
	if m.why != nil {
		err = m.why
	}
	if len(m.flying) > 1 {
		m.window.slip(time.Now())
	}
	for _, s := range slices.Concat(m.flying, m.held) {
		s.finish(nil, lostUnder(err))
	}
	for _, s := range m.queue {
		s.finish(nil, errNotSent)
	}
	m.flying, m.held, m.queue = m.flying[:0], m.held[:0], m.queue[:0]
	return err
}

// read takes frames off the wire until that fails.
func (m *mux) read(w *stream) error {
	buf := make([]byte, muxBuffer)
	have, partial := 0, false
	for {
		n, err := w.conn.Read(buf[have:])
		switch {
		case err == nil:
		case w.datagrams && errors.Is(err, unix.ECONNREFUSED):
			continue // nobody listens there now
		case have > 0 && errors.Is(err, os.ErrDeadlineExceeded):
			m.line.count.partial.Add(1)
			return cutShort(have)
		case have > 0 && errors.Is(err, io.EOF):
			m.line.count.partial.Add(1)
			return io.ErrUnexpectedEOF
		default:
			return err
		}
		m.line.count.bytesReceived.Add(uint64(n))
		have += n
		used, err := m.frames(buf[:have])
		have = copy(buf, buf[used:have])
		if w.datagrams && (err != nil || have > 0) {
			// A datagram is whole or wrong.
			m.line.count.badHeader.Add(1)
			have, err = 0, nil
		}
		if err != nil {
			return err
		}
		if have > 0 || partial {
			if err := m.unfinished(w, have > 0); err != nil {
				return err
			}
			partial = have > 0
		}
	}
}

// unfinished notes whether part of a frame waits for its rest, which must come
// soon.
func (m *mux) unfinished(w *stream, is bool) error {
	var now, limit time.Time
	if is {
		now = time.Now()
		limit = now.Add(m.stall)
	}
	m.mu.Lock()
	m.part = now
	m.mu.Unlock()
	return w.conn.SetReadDeadline(limit)
}

// frames takes the whole frames off the front of b and returns their length. An
// error means that the stream cannot be trusted any further.
func (m *mux) frames(b []byte) (used int, err error) {
	now := time.Now()
	for len(b)-used >= modbus.MBAPLen {
		tx, n, unit, err := modbus.ParseMBAP(b[used:])
		end := used + modbus.MBAPLen + n
		switch {
		case err != nil:
		case end > len(b):
			return used, nil
		case !m.sound(tx, b[used:], end-used, now):
			err = errSwallowed
		}
		if err != nil {
			m.line.wireTap('<', b[used:], now)
			m.line.count.badHeader.Add(1)
			return used, fmt.Errorf("%w: %w", modbus.ErrBadResponse, err)
		}
		m.line.wireTap('<', b[used:end], now)
		m.deliver(tx, unit, modbus.PDU(b[used+modbus.MBAPLen:end]), now)
		used = end
	}
	return used, nil
}

// sound reports whether a frame is what it seems. One that a device broke off
// takes in the front of the next answer, and nothing in MBAP says so; but then
// that answer's header is in it, or what follows is none of a request's.
func (m *mux) sound(tx uint16, b []byte, end int, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	rest := b[end:]
	if !header(rest) || len(rest) >= 2 && m.tx-binary.BigEndian.Uint16(rest) >= recent {
		return false
	}
	for _, o := range m.flying {
		if h := headOf(o.tx, o.unit, o.req()); o.tx != tx && h.within(b, end) {
			return false
		}
	}
	return !m.missing.within(b, end, now)
}

// deliver gives a frame to the request it answers.
func (m *mux) deliver(tx uint16, unit modbus.UnitID, pdu modbus.PDU, now time.Time) {
	c := &m.line.count
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = now
	i := slices.IndexFunc(m.flying, func(s *slot) bool { return s.tx == tx })
	if i < 0 {
		if m.tx-tx < recent {
			m.missing.came(tx)
			c.late.Add(1)
			return
		}
		c.unknownID.Add(1)
		m.slip()
		m.admit()
		return
	}
	s := m.flying[i]
	m.flying = slices.Delete(m.flying, i, i+1)
	m.silent = 0
	err := modbus.CheckResponse(s.req(), pdu)
	switch {
	case unit != s.unit:
		c.wrongUnit.Add(1)
		err = wrongUnit(unit, s.unit)
	case answers(err):
		m.right(s, pdu, err, now)
		return
	default:
		c.wrongAnswer.Add(1)
	}
	s.finish(nil, err)
	m.slip()
	m.settle()
}

// right takes the answer of s, or holds it back while it could be another's.
func (m *mux) right(s *slot, pdu modbus.PDU, err error, now time.Time) {
	overlapped := len(m.flying)+len(m.held) > 0
	if s.err = err; err == nil {
		s.resp = bytes.Clone(pdu)
	}
	m.window.right(overlapped, now)
	if m.window.trial() && m.confusable(s) {
		m.held = append(m.held, s)
	} else {
		m.believe(s)
	}
	m.settle()
}

// confusable reports whether the answer of s could belong to another request
// that was on its way at the same time.
func (m *mux) confusable(s *slot) bool {
	for _, list := range [][]*slot{m.flying, m.held} {
		for _, o := range list {
			if o.unit == s.unit && confusable(o.req(), s.req()) {
				return true
			}
		}
	}
	return false
}
