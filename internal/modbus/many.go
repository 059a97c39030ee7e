package modbus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"fieldgate/internal/quick"
)

// Quick is an Endpoint that answers some requests at once, without waiting for
// anything. The Modbus TCP clients of a Server with such an Endpoint share one
// goroutine, which answers those; other requests get one for as long as they take.
type Quick interface {
	Endpoint
	// Quick reports whether a request for a unit is answered at once.
	Quick(unit UnitID, req PDU) bool
	// AppendQuick answers such a request, which CheckRequest has passed, as Do
	// does, and appends the response to dst. It keeps neither.
	AppendQuick(ctx context.Context, dst []byte, unit UnitID, req PDU) ([]byte, error)
}

// maxJoined bounds the answers that leave together, in bytes.
const maxJoined = 16 * MaxTCP

// errSilent is why a client is disconnected that asks nothing, or takes nothing.
var errSilent = errors.New("silent for too long")

// many is the clients of a listener that share a goroutine, that of the poller.
type many struct {
	server *Server
	quick  Quick
	poller *quick.Poller    // nil: there was no client yet
	over   atomic.Bool      // run has ended: who comes now is served on its own
	busy   sync.WaitGroup   // those who answer what takes longer
	in     [4 * MaxTCP]byte // of the goroutine of the poller, as out is
	out    [maxJoined]byte

	mu  sync.Mutex
	all map[*session]struct{}
}

// one is what a session has that is one of many. It is the poller's goroutine's
// while it is not away.
type one struct {
	socket  *quick.Socket
	turn    func(now time.Time)
	watched uint32    // what the socket is watched for
	in      []byte    // has come and is not answered yet
	out     []byte    // is answered and not taken yet
	waits   time.Time // since when the client is waited for: to ask, or to take out
	away    bool      // another goroutine has it; guarded by many.mu
}

// pollers is those of a Server that run. The zero value is ready.
type pollers struct {
	mu  sync.Mutex
	all map[*quick.Poller]struct{}
}

func (p *pollers) add(q *quick.Poller) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil {
		p.all = make(map[*quick.Poller]struct{})
	}
	p.all[q] = struct{}{}
}

func (p *pollers) remove(q *quick.Poller) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.all, q)
}

// many returns what serves the clients of a listener together; nil: they cannot be.
// On one processor they are not: as long as a goroutine has something to do there,
// the runtime looks for what came for all others every 10 ms only, and clients that
// ask without a pause would slow down the polling.
func (s *Server) many(f Framing) *many {
	q, ok := s.Endpoint.(Quick)
	if !ok || f != FramingTCP || runtime.GOMAXPROCS(0) == 1 {
		return nil
	}
	return &many{server: s, quick: q, all: make(map[*session]struct{})}
}

// take takes over the connection of a new client; false: it cannot be one of many.
// What serves them all until ctx ends is counted by open.
func (m *many) take(ctx context.Context, open *sync.WaitGroup, c *session) bool {
	if _, tcp := c.from.(*net.TCPAddr); m == nil || !tcp || m.over.Load() {
		return false
	}
	if m.poller == nil {
		var err error
		if m.poller, err = quick.NewPoller(); err != nil {
			m.server.log().Warn("a client is served on its own", "client", c.from.String(), "err", err)
			return false
		}
		m.server.pollers.add(m.poller)
		open.Go(func() { m.run(ctx) }) // ends with ctx
	}
	if c.socket = m.poller.Take(c.conn, func(now time.Time) { c.turn(now) }); c.socket == nil {
		return false
	}
	c.conn, c.hangUp = nil, c.socket.Shutdown
	return true
}

// run serves all who were taken until ctx ends.
func (m *many) run(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { m.poller.Close() })()
	m.poller.Run(m.tick)
	m.server.pollers.remove(m.poller)
	m.over.Store(true)
	m.busy.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.all {
		m.drop(c, ctx.Err())
	}
}

// begin has run serve a client that was taken over until it leaves or must.
func (m *many) begin(ctx context.Context, c *session) {
	ctx = m.server.connected(ctx, c)
	c.turn = func(now time.Time) { m.turn(ctx, c, now) }
	c.waits = time.Now()
	m.mu.Lock()
	m.all[c] = struct{}{}
	m.mu.Unlock()
	c.watched = quick.Input
	if err := c.socket.Watch(quick.Input); err != nil {
		m.gone(c, err)
		return
	}
	m.poller.Tick()
}

// gone ends a connection, if that has not been done.
func (m *many) gone(c *session, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drop(c, err)
}

// drop is gone with mu held.
func (m *many) drop(c *session, err error) {
	if _, here := m.all[c]; !here {
		return
	}
	delete(m.all, c)
	c.tally.conns.Add(-1) // first: a client that sees the end finds it counted
	m.server.sessions.leave(c)
	c.socket.Close()
	m.server.log().Debug("client gone", "client", c.from.String(), "err", err)
}

// tick ends the connections of clients that have been silent for too long, and
// returns when the next may have been. As with limits, that may take an eighth
// longer than it should.
func (m *many) tick(now time.Time) (next time.Time) {
	idle := m.server.idle()
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.all {
		limit, waits := idle, now // it waits for us, if it is away
		if !c.away {
			waits = c.waits
			if len(c.out) > 0 {
				limit = writeTimeout
			}
		}
		if limit == 0 {
			continue
		}
		due := waits.Add(limit)
		if !due.After(now) {
			m.drop(c, errSilent)
			continue
		}
		if soon := now.Add(limit / 8); due.Before(soon) {
			due = soon
		}
		if next.IsZero() || due.Before(next) {
			next = due
		}
	}
	return next
}

// turn is called when a client has asked something, or has room for answers.
func (m *many) turn(ctx context.Context, c *session, now time.Time) {
	if len(c.out) > 0 {
		n, err := c.socket.Write(c.out)
		if err != nil && err != quick.ErrNotNow {
			m.gone(c, err)
			return
		}
		if c.out = c.out[n:]; len(c.out) > 0 {
			return
		}
		c.out, c.waits = nil, now
		m.serve(ctx, c, c.in, now)
		return
	}
	k := copy(m.in[:], c.in) // less than a frame
	n, err := c.socket.Read(m.in[k:])
	switch {
	case err == quick.ErrNotNow:
	case err != nil:
		m.gone(c, err)
	default:
		m.serve(ctx, c, m.in[:k+n], now)
	}
}

// serve answers the frames in, and has the rest kept.
func (m *many) serve(ctx context.Context, c *session, in []byte, now time.Time) {
	for {
		n, out, next, err := m.answer(ctx, c, in, now)
		in = in[n:]
		if failed := m.send(c, out, now); failed != nil {
			err = failed
		}
		if err != nil {
			m.gone(c, err)
			return
		}
		if next == nextLater && len(c.out) == 0 {
			continue
		}
		c.keep(in)
		if next == nextSlow && len(c.out) == 0 {
			m.slow(ctx, c)
		} else if err := m.watch(c); err != nil {
			m.gone(c, err)
		}
		return
	}
}

// What comes after the frames that were answered.
const (
	nextNothing = iota // a part of a frame at most
	nextLater          // frames for which there is no room among the answers
	nextSlow           // a frame that is not answered at once
)

// answer answers the first frames in, of n bytes in all. Frames that have come
// together are answered together, since to write costs more than to answer.
func (m *many) answer(ctx context.Context, c *session, in []byte, now time.Time) (n int, out []byte, next int, err error) {
	out = m.out[:0]
	for {
		tx, unit, req, err := cutTCP(in[n:])
		switch {
		case err != nil:
			m.server.badFrame(c.tally)
			return n, out, nextNothing, err
		case req == nil:
			return n, out, nextNothing, nil
		case len(out) > maxJoined-MaxTCP:
			return n, out, nextLater, nil
		}
		of, ours := m.server.unit(unit)
		if ours && !m.quick.Quick(of, req) {
			return n, out, nextSlow, nil
		}
		c.waits = now
		c.came(MBAPLen+len(req), now)
		n += MBAPLen + len(req)
		if ours {
			out = m.append(ctx, c.tally, out, tx, unit, of, req)
		} else {
			out = AppendTCP(out, tx, unit, m.server.answerTCP(ctx, c.tally, unit, req))
		}
	}
}

// append appends the answer to a request that is answered at once.
func (m *many) append(ctx context.Context, t *tally, out []byte, tx uint16, unit, of UnitID, req PDU) []byte {
	s, before := m.server, len(out)
	s.counters.requests.Add(1)
	t.functions[t.function(req.Function())].Add(1)
	out = AppendTCP(out, tx, unit, nil)
	resp, err := out, CheckRequest(req)
	if err == nil {
		resp, err = m.quick.AppendQuick(ctx, out, of, req)
	}
	if err == nil {
		err = CheckResponse(req, PDU(resp[len(out):]))
	}
	if err != nil {
		if ctx.Err() != nil {
			return out[:before] // we are going; the client will see the connection end
		}
		resp = append(out, ExceptionResponse(req.Function(), s.exception(t, err))...)
	}
	binary.BigEndian.PutUint16(resp[before+4:], uint16(1+len(resp)-len(out)))
	return resp
}

// cutTCP returns what the frame is that b begins with; req is nil while a part of
// it is missing.
func cutTCP(b []byte) (tx uint16, unit UnitID, req PDU, err error) {
	if len(b) < MBAPLen {
		return 0, 0, nil, nil
	}
	tx, n, unit, err := ParseMBAP(b)
	if err != nil || len(b) < MBAPLen+n {
		return 0, 0, nil, err
	}
	return tx, unit, PDU(b[MBAPLen : MBAPLen+n : MBAPLen+n]), nil
}

// send sends answers, and keeps what there is no room for.
func (m *many) send(c *session, out []byte, now time.Time) error {
	if len(out) == 0 {
		return nil
	}
	c.tally.out.Add(uint64(len(out)))
	n, err := c.socket.Write(out)
	if err != nil && err != quick.ErrNotNow {
		return err
	}
	if n < len(out) {
		c.out, c.waits = bytes.Clone(out[n:]), now
	}
	return nil
}

// watch waits for what the client does next.
func (m *many) watch(c *session) error {
	events := uint32(quick.Input)
	if len(c.out) > 0 {
		events = quick.Output
	}
	if events == c.watched {
		return nil
	}
	c.watched = events
	if events == quick.Output {
		m.poller.Tick() // it has less time for that
	}
	return c.socket.Watch(events)
}

// keep keeps what has come and is not answered yet.
func (c *one) keep(in []byte) {
	if len(in) == 0 {
		c.in = nil
		return
	}
	c.in = append(c.in[:0], in...)
}

// slow has the frames answered that c.in begins with, however long that takes.
func (m *many) slow(ctx context.Context, c *session) {
	m.mu.Lock()
	c.away = true
	m.mu.Unlock()
	c.watched = quick.Nothing
	if err := c.socket.Watch(quick.Nothing); err != nil {
		m.gone(c, err)
		return
	}
	m.busy.Go(func() { // ends when they are answered
		err := m.answerSlow(ctx, c)
		m.mu.Lock()
		c.away, c.waits = false, time.Now()
		m.mu.Unlock()
		if err == nil {
			err = m.watch(c) // from here on the poller has it
		}
		if err != nil {
			m.gone(c, err)
		}
	})
}

// answerSlow answers the frames that c.in begins with, as far as the answers are
// taken.
func (m *many) answerSlow(ctx context.Context, c *session) error {
	in := c.in
	for len(c.out) == 0 {
		tx, unit, req, err := cutTCP(in)
		if err != nil {
			m.server.badFrame(c.tally)
			return err
		}
		if req == nil {
			break
		}
		c.came(MBAPLen+len(req), time.Now())
		if resp := m.server.answerTCP(ctx, c.tally, unit, req); len(resp) > 0 {
			if err := m.send(c, AppendTCP(nil, tx, unit, resp), time.Now()); err != nil {
				return err
			}
		}
		in = in[MBAPLen+len(req):]
	}
	c.keep(in)
	return nil
}
