// Package line opens wires and keeps time on them: serial lines, TCP
// connections, UDP, and connections that a device dials in on. It sends one
// request, knows which bytes are the answer to it, and takes no others: no late
// answer, no other unit's, no echo, nothing with a wrong CRC. It does not know
// what a point is, repeats nothing and polls nothing; package bus does that.
//
// Line is the type to know. It is a modbus.Endpoint. A goroutine in Line.Run
// keeps its wire open; callers of Do share it. Below it there are three ways to
// share a wire: turns, for RTU and ASCII, lets one request at a time onto it and
// keeps the silences; solo, for MBAP one at a time, and mux, for MBAP with
// several on their way, match answers by transaction id.
//
// # What is taken for an answer
//
// MBAP: a frame with the id of a request that still waits, the same unit, and a
// PDU that answers the request in every respect (modbus.CheckResponse).
// Everything else is counted and dropped. A broken header closes the connection.
//
// RTU and ASCII have no id. A frame is the answer when unit, function, length,
// byte count, echoed address and CRC (or LRC) are right. What is left is an
// answer that comes after its request was given up, to a later request of the
// very same shape. The rule against it, kept for each unit:
//
//   - A request that got no answer is remembered for ten times the longest time
//     an answer may take.
//   - While an answer to it could be taken for the answer to the next request,
//     that request is not sent. Another goes first (a fence): a shorter read of
//     the same registers, or of some that the unit was read before, or, where
//     there is none, the status request (function 7), which a unit may refuse.
//     Devices answer in order, so once the fence is answered - its length or
//     function tells it apart - the lost answer cannot come any more. Writes of
//     the same place count as the same shape: the answer does not name values.
//   - Where no fence is possible - the unit was seen to ignore function 7, which
//     counts for a day - it is left alone until twice the longest answer time has
//     passed since the lost request; the line serves other units meanwhile.
//   - An exception names nothing but the function. One that could be late is not
//     taken as long as the answer itself may come.
//   - Whatever arrives unasked is discarded before a request is sent, and the
//     silence before the request starts again after it.
//   - A unit that was heard to answer twice gets a fence before each request that
//     looks like the one before, for a minute. So does, once, one that was asked
//     128 times in a row what only the order of answers tells apart.
//
// What remains: a single register (or up to eight bits, or a write) of a unit that
// ignores function 7 and has nothing longer to read, whose answer is later than
// twice the longest answer time; any answer later than ten times of it; and the
// first answers of a unit that begins to answer twice, the second time after more
// than the least silence.
package line

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/health"
	"fieldgate/internal/modbus"
)

// Line is one wire with the devices on it. Make it with New, keep its wire open
// with Run; all other methods are safe for use by several goroutines.
type Line struct {
	cfg    config.Bus
	log    *slog.Logger
	count  counters
	trace  atomic.Pointer[Trace]
	traced sync.Mutex // one call of trace at a time

	share share
	turns *turns // RTU and ASCII: is share; else nil
	keep  bool   // KeepSilent

	up    atomic.Bool  // state == stateUp, without the lock
	doubt atomic.Bool  // news.doubted, likewise
	hurry atomic.Int32 // urgent requests that wait for the wire
	beat  health.Beat  // of Run; requests have limits of their own

	mu      sync.Mutex
	state   state
	err     error // in stateDown: why; wraps modbus.ErrNotConnected
	news    news
	changed chan struct{} // closed when state changes, then replaced
	addr    net.Addr      // of a listener
}

// state is what a caller of Do has to expect of the wire.
type state uint8

const (
	stateOpening state = iota // being opened: a request waits for the outcome
	stateUp
	stateDown // a request fails at once
)

// share is a way to share an open wire among callers.
type share interface {
	// do sends req and waits for the answer, or returns errNotSent.
	do(ctx context.Context, unit modbus.UnitID, req modbus.PDU, timeout, gap time.Duration) (modbus.PDU, error)
	// serve carries requests over w until it fails or ctx ends, and says why.
	// It sets stateUp once it is ready, stateOpening before it returns.
	serve(ctx context.Context, w wire) error
	inFlight() int
}

// errNotSent: there is no wire now, and the request was not sent.
var errNotSent = errors.New("not sent")

// errStopped: Run has ended.
var errStopped = errors.New("stopped")

// lostUnder is what the caller of a request is told whose wire was lost after it
// was sent.
func lostUnder(why error) error {
	return fmt.Errorf("%w: the connection was lost: %w", modbus.ErrNoResponse, cause(why))
}

// tooSilent is why a connection is made anew that nothing came over.
func tooSilent(requests int) error {
	return fmt.Errorf("%d requests in a row without an answer", requests)
}

// Trace sees every frame, and whatever else came in, in the order it passed the
// wire: dir is '>' for bytes sent, '<' for bytes received. b is valid only
// during the call. Calls come one at a time and hold the wire up: Trace must not
// block.
type Trace func(dir byte, b []byte, at time.Time)

// New returns the line that cfg describes. It opens nothing: Run does.
func New(cfg config.Bus, log *slog.Logger) *Line {
	l := &Line{cfg: cfg, log: log, changed: make(chan struct{})}
	switch {
	case cfg.Framing != modbus.FramingTCP:
		l.turns = newTurns(l)
		l.share = l.turns
	case cfg.InFlight == 1 && cfg.Kind != config.UDP:
		l.share = newSolo(l)
	default:
		l.share = newMux(l)
	}
	return l
}

// Do implements modbus.Endpoint with the timeout and gap of the bus. While the
// wire is being opened it waits for the outcome, no longer than the bus's
// connect timeout; while it is down Do fails at once. Requests are served in
// the order they arrive.
func (l *Line) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	return l.DoTimeout(ctx, unit, req, 0, config.GapAuto)
}

// DoTimeout is Do with a timeout of its own, from the request's last byte to the
// response's first (0 or less: the bus's), and a least silence before the
// request (config.GapAuto: the bus's). On an RTU line a gap under 3.5
// characters is 3.5 characters.
//
// A request whose ctx ends before it was sent is not sent. When ctx ends later
// the error wraps modbus.ErrNoResponse beside the context's error: the device
// may have done what it was asked.
func (l *Line) DoTimeout(ctx context.Context, unit modbus.UnitID, req modbus.PDU, timeout, gap time.Duration) (modbus.PDU, error) {
	return l.request(ctx, unit, req, timeout, gap, false)
}

// DoUrgent is DoTimeout for a request that is better sent at once and its outcome
// doubted than sent after others: nothing goes over an RTU or ASCII line before
// it. Where its answer could then be another's - the late one to the same
// request, or its own echo on a line not known yet -, it is taken for no answer
// (modbus.ErrNoResponse).
func (l *Line) DoUrgent(ctx context.Context, unit modbus.UnitID, req modbus.PDU, timeout, gap time.Duration) (modbus.PDU, error) {
	return l.request(ctx, unit, req, timeout, gap, true)
}

// Hurry says that an urgent request waits for the wire (1), or waits no longer
// (-1). Meanwhile requests that others would have to go before, or that would be
// held, are given up (modbus.ErrNoResponse): the wire is free once the exchange
// on it has ended.
func (l *Line) Hurry(by int) {
	l.hurry.Add(int32(by))
	if l.turns != nil {
		l.turns.look()
	}
}

// request is DoTimeout, or DoUrgent.
func (l *Line) request(ctx context.Context, unit modbus.UnitID, req modbus.PDU, timeout, gap time.Duration, urgent bool) (resp modbus.PDU, err error) {
	if err := modbus.CheckRequest(req); err != nil {
		return nil, err
	}
	if timeout <= 0 {
		timeout = l.cfg.Timeout
	}
	if gap < 0 {
		gap = l.cfg.Gap
	}
	if l.turns != nil && unit == modbus.Broadcast && !req.Function().Broadcasts() {
		return nil, fmt.Errorf("%w: %v to the broadcast unit 0: no device answers it", modbus.ErrInvalidRequest, req.Function())
	}
	// A request the wire was lost under before it was sent waits for the next
	// wire, but not for ever.
	for range 3 {
		if !l.up.Load() {
			if err := l.await(ctx); err != nil {
				return nil, err
			}
		}
		if urgent && l.turns != nil {
			resp, err = l.turns.doUrgent(ctx, unit, req, timeout, gap)
		} else {
			resp, err = l.share.do(ctx, unit, req, timeout, gap)
		}
		if err != errNotSent {
			return resp, err
		}
	}
	return nil, l.down()
}

// Connected reports whether the wire is open. A device behind it may be silent
// all the same.
func (l *Line) Connected() bool { return l.up.Load() }

// InFlight returns how many requests the line carries at once at present: 1 for
// RTU and ASCII, and what in_flight allows for MBAP.
func (l *Line) InFlight() int {
	return l.share.inFlight()
}

// Stats returns the counters since New, each exact, though not all of the same
// moment.
func (l *Line) Stats() Stats {
	s := l.count.stats()
	if l.turns != nil {
		s.Serial = l.turns.serialErrors()
	}
	return s
}

// KeepSilent makes l keep a TCP connection that nothing comes over, which it
// would make anew after mostSilent requests: for a search among units and
// registers most of which are not there. Call it before Run and Do.
func (l *Line) KeepSilent() { l.keep = true }

// Addr returns the address that devices dial in to, nil on other kinds of bus
// and before Run listens.
func (l *Line) Addr() net.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addr
}

// SetTrace makes t see the bytes on the wire from now on; nil ends that.
func (l *Line) SetTrace(t Trace) {
	if t == nil {
		l.trace.Store(nil)
		return
	}
	l.trace.Store(&t)
}

// wireTap shows bytes to the trace and, at debug level, to the log. at is zero
// for now.
func (l *Line) wireTap(dir byte, b []byte, at time.Time) {
	if t := l.trace.Load(); t != nil {
		if at.IsZero() {
			at = time.Now()
		}
		l.traced.Lock()
		(*t)(dir, b, at)
		l.traced.Unlock()
	}
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		msg := "bytes sent"
		if dir == '<' {
			msg = "bytes received"
		}
		l.log.Debug(msg, "bytes", fmt.Sprintf("% x", b))
	}
}

// Run opens the wire and keeps it open until ctx ends; then it returns nil. A
// wire that fails is closed at once and opened again after a wait that grows,
// with jitter, as long as nothing useful comes over it.
func (l *Line) Run(ctx context.Context) error {
	o := l.opener()
	defer o.close()
	defer l.set(stateDown, errStopped)
	defer l.beat.Stops()
	dials := l.cfg.Kind != config.Listen // else the device does
	wait := newBackoff(l.cfg.Kind)
	for {
		opened, useful, err := l.session(ctx, o)
		if ctx.Err() != nil {
			return nil
		}
		if useful {
			wait.reset()
		}
		switch {
		case useful && dials:
			l.set(stateOpening, err)
		case opened && useful:
			l.change(stateDown, err)
		case opened:
			l.useless(err)
		default:
			l.set(stateDown, err)
		}
		if opened && !dials {
			continue // the next connection may be waiting already
		}
		pause := wait.next()
		l.beat.Rests(pause)
		if !sleep(ctx, pause) {
			return nil
		}
		if dials {
			l.set(stateOpening, err)
		}
	}
}

// session opens the wire once and serves it until it fails or ctx ends. A
// session was useful when a device answered, or when it just lasted: nobody may
// have asked anything.
func (l *Line) session(ctx context.Context, o opener) (opened, useful bool, err error) {
	const lasted = 10 * time.Second
	if l.cfg.Kind == config.Listen {
		l.beat.Waits() // for the device
	} else {
		l.beat.Rests(l.cfg.ConnectTimeout)
	}
	w, err := o.open(ctx)
	if err != nil {
		return false, false, err
	}
	defer w.close()
	l.beat.Rests(l.cfg.Settle)
	began, answered := time.Now(), l.count.responses.Load()
	if !sleep(ctx, l.cfg.Settle) {
		return true, false, ctx.Err()
	}
	l.count.connects.Add(1)
	l.beat.Waits() // for requests
	err = l.share.serve(ctx, w)
	l.beat.Works()
	return true, l.count.responses.Load() != answered || time.Since(began) > lasted, err
}

// await waits while the wire is being opened.
func (l *Line) await(ctx context.Context) error {
	limit := time.NewTimer(l.cfg.ConnectTimeout + l.cfg.Settle + time.Second)
	defer limit.Stop()
	for {
		l.mu.Lock()
		state, changed, err := l.state, l.changed, l.err
		l.mu.Unlock()
		switch state {
		case stateUp:
			return nil
		case stateDown:
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-limit.C:
			return fmt.Errorf("%w: still being opened", modbus.ErrNotConnected)
		}
	}
}

// down returns why a request cannot be sent just now.
func (l *Line) down() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	return fmt.Errorf("%w: lost again and again", modbus.ErrNotConnected)
}

// Overdue returns for how long Run has been owing its next step: opening or
// closing the wire, or the pause before the next try. More than some seconds
// means that the system hangs; a device that does not answer is no reason.
func (l *Line) Overdue() time.Duration { return l.beat.Overdue() }

// set changes the state and logs what is news about it; err is why the wire is
// not open.
func (l *Line) set(s state, err error) {
	l.change(s, err)
	l.mu.Lock()
	say := s == stateUp && l.news.opened() ||
		s == stateDown && !errors.Is(err, errStopped) && l.news.failed(cause(err).Error())
	l.mu.Unlock()
	switch {
	case say && s == stateUp:
		l.logOpen()
	case say:
		l.logNotOpen(err)
	}
}

// useless is set for a wire that was open and is lost, of no use to anybody.
func (l *Line) useless(err error) {
	l.change(stateDown, err)
	l.mu.Lock()
	say := l.news.useless(cause(err).Error())
	l.doubt.Store(true)
	l.mu.Unlock()
	if say {
		l.logNotOpen(err)
	}
}

// answered counts a right answer, which shows that the wire is good.
func (l *Line) answered() {
	l.count.responses.Add(1)
	if !l.doubt.Load() {
		return
	}
	l.mu.Lock()
	l.news.doubted = false
	l.doubt.Store(false)
	say := l.news.opened()
	l.mu.Unlock()
	if say {
		l.logOpen()
	}
}

func (l *Line) logOpen() { l.log.Info("line open", "address", l.cfg.Address) }

func (l *Line) logNotOpen(err error) {
	l.log.Warn("line not open, trying again", "address", l.cfg.Address, "err", cause(err))
}

// change changes the state.
func (l *Line) change(s state, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state, l.err = s, nil
	l.up.Store(s == stateUp)
	close(l.changed)
	l.changed = make(chan struct{})
	if s == stateDown {
		l.err = fmt.Errorf("%w: %w", modbus.ErrNotConnected, cause(err))
	}
}

// cause takes the addresses, which change with every attempt, off an error of
// package net.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return fmt.Errorf("%s: %w", op.Op, op.Err)
	}
	return err
}
