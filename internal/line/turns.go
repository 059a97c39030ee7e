package line

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
)

const (
	// turnaround is the pause after a broadcast, in which the devices do what
	// they were told (SER 2.4.1: 100 to 200 ms).
	turnaround = 100 * time.Millisecond
	// settleAfter is the least silence after a request that got no answer,
	// before another unit is asked: an answer that is just beginning is heard
	// out, not talked into.
	settleAfter = 20 * time.Millisecond
	// pauseRTU is how long the bytes of a frame may stay away. Adapters deliver
	// in lumps up to 16 ms apart, networks worse.
	pauseRTU = 100 * time.Millisecond
	// pauseFar is the same for ASCII (SER 2.5.2.1: 1 s) and for every framing
	// over a network.
	pauseFar = time.Second
	// longFrame bounds how long one answer may trickle in beyond its time on
	// the wire.
	longFrame = 6 * time.Second
	// exactly is the end of a silence that is slept through rather than listened
	// to: more than 3.5 characters at 9600 baud, so that most silences are one
	// sleep.
	exactly = 5 * time.Millisecond
	// mostFences is how many fences go before one request.
	mostFences = 4
	// babble is how long the line may keep a request from being sent by never
	// falling silent.
	babble = 3 * time.Second
)

// turns shares a wire that carries one request at a time: RTU and ASCII, on a
// serial port or over a network. Callers queue; the goroutine in serve owns the
// wire and all the fields below jobs.
type turns struct {
	line  *Line
	pool  sync.Pool     // of *job
	gap   time.Duration // least silence before a request where none is asked for
	floor time.Duration // least silence that may be asked for
	pause time.Duration // how long the bytes of a frame may stay away
	quit  time.Duration // how long to wait for silence
	scan  func(buf []byte, q *question, last bool) scan
	char  time.Duration // of a serial port, else 0

	mu     sync.Mutex
	wire   wire // nil while none is open
	idle   bool // serve waits for a job
	closed bool // ctx of serve has ended
	jobs   []*job

	units    map[modbus.UnitID]*ledger
	echo     echo
	last     time.Time // when the wire was last heard or had sent
	notUntil time.Time // nothing is sent before
	stray    []byte    // what arrived unasked since last looked at
	silent   int       // requests in a row to which nothing came
	pace     pace
	marks    []mark // when the bytes in in came
	in, out  []byte
}

// mark is how many bytes had come at a time.
type mark struct {
	n  int
	at time.Time
}

// pace is whether bytes take their time on a serial port. On a real one no
// answer begins before its request has left, so a frame that did is another's: a
// device answered twice, or somebody else spoke. A pseudo terminal delivers at
// once, and every answer is early. So it counts only where many answers came in
// time and none came early.
type pace struct {
	inTime int
	off    bool
}

// inTimeMin is how many answers in time make an early one suspect.
const inTimeMin = 20

func (p *pace) known() bool { return !p.off && p.inTime >= inTimeMin }

// echo is what is known of the wire bringing back what we send.
type echo uint8

const (
	echoUnknown echo = iota
	echoOff
	echoOn
)

// job is a request on its way through serve.
type job struct {
	unit         modbus.UnitID
	timeout, gap time.Duration
	urgent       bool
	req          modbus.PDU // copy, kept by the job

	stage jobStage // guarded by turns.mu

	resp modbus.PDU
	err  error
	done chan struct{} // holds a token when resp and err are set
}

type jobStage uint8

const (
	jobWaiting jobStage = iota
	jobSent             // bytes have left: its outcome belongs to the device
	jobGone             // its caller has left before that
)

func newTurns(l *Line) *turns {
	t := &turns{
		line:  l,
		pause: pauseRTU,
		quit:  babble,
		scan:  scanRTU,
		units: make(map[modbus.UnitID]*ledger),
		in:    make([]byte, 0, 2*modbus.MaxASCII),
		stray: make([]byte, 0, modbus.MaxASCII),
	}
	t.pool.New = func() any { return &job{done: make(chan struct{}, 1)} }
	if l.cfg.Kind == config.Serial {
		t.char = l.cfg.Mode.CharTime()
		t.gap = modbus.ClientSilence(l.cfg.Mode.Baud)
		t.floor = t.gap
	} else {
		t.pause = pauseFar
	}
	if l.cfg.Framing == modbus.FramingASCII {
		t.scan, t.pause, t.floor = scanASCII, pauseFar, 0
	}
	return t
}

// do implements share.
func (t *turns) do(ctx context.Context, unit modbus.UnitID, req modbus.PDU, timeout, gap time.Duration) (modbus.PDU, error) {
	return t.ask(ctx, unit, req, timeout, gap, false)
}

// doUrgent is do for Line.DoUrgent.
func (t *turns) doUrgent(ctx context.Context, unit modbus.UnitID, req modbus.PDU, timeout, gap time.Duration) (modbus.PDU, error) {
	return t.ask(ctx, unit, req, timeout, gap, true)
}

func (t *turns) ask(ctx context.Context, unit modbus.UnitID, req modbus.PDU, timeout, gap time.Duration, urgent bool) (modbus.PDU, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	j := t.pool.Get().(*job)
	if gap < 0 {
		gap = t.gap
	}
	j.unit, j.timeout, j.gap, j.urgent = unit, timeout, max(gap, t.floor), urgent
	j.req = append(j.req[:0], req...)
	j.stage, j.resp, j.err = jobWaiting, nil, nil
	if !t.push(j) {
		t.pool.Put(j)
		return nil, errNotSent
	}
	select {
	case <-j.done:
		resp, err := j.resp, j.err
		t.pool.Put(j)
		return resp, err
	case <-ctx.Done():
		return nil, t.leave(j, context.Cause(ctx))
	}
}

// push queues j and wakes the owner if it waits for one.
func (t *turns) push(j *job) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.wire == nil {
		return false
	}
	t.jobs = append(t.jobs, j)
	if t.idle {
		t.idle = false
		t.wire.wake()
	}
	return true
}

// look makes serve look at the queue again.
func (t *turns) look() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.wire != nil && t.idle {
		t.idle = false
		t.wire.wake()
	}
}

// leave takes back a job whose caller waits no longer.
func (t *turns) leave(j *job, cause error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if j.stage == jobSent {
		return fmt.Errorf("%w: %w", modbus.ErrNoResponse, cause)
	}
	j.stage = jobGone
	if i := slices.Index(t.jobs, j); i >= 0 {
		t.jobs = slices.Delete(t.jobs, i, i+1)
	}
	return cause
}

// serve implements share.
func (t *turns) serve(ctx context.Context, w wire) error {
	t.mu.Lock()
	t.wire, t.closed = w, false
	t.mu.Unlock()
	t.echo, t.silent, t.pace = echoUnknown, 0, pace{}
	t.last = time.Now()
	t.stray = t.stray[:0]
	defer context.AfterFunc(ctx, t.stop)()
	defer t.end()
	t.line.set(stateUp, nil)
	for {
		j, err := t.next()
		if err == nil {
			err = t.run(j)
		}
		if err != nil {
			return err
		}
	}
}

// stop ends serve: it is told that ctx has ended.
func (t *turns) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.wire != nil {
		t.wire.stop()
	}
}

// end gives the jobs that were not sent back to their callers.
func (t *turns) end() {
	t.line.set(stateOpening, nil)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wire = nil
	for _, j := range t.jobs {
		j.finish(nil, errNotSent)
	}
	t.jobs = t.jobs[:0]
}

func (j *job) finish(resp modbus.PDU, err error) {
	j.resp, j.err = resp, err
	j.done <- struct{}{}
}

// next waits for the job to be served now: the first in the queue whose unit is
// not held. Meanwhile it listens, so that a wire that is lost is closed at once.
func (t *turns) next() (*job, error) {
	for {
		t.mu.Lock()
		if t.closed {
			t.mu.Unlock()
			return nil, errStopped
		}
		j, wait := t.pick(time.Now())
		t.idle = j == nil
		t.mu.Unlock()
		if j != nil {
			return j, nil
		}
		if err := t.listen(wait); err != nil {
			return nil, err
		}
	}
}

// pick takes the first job out of the queue that may be sent at now, urgent ones
// before all. When there is none it says when the first may, zero: when another
// job comes. What would be held while an urgent one waits is given up.
func (t *turns) pick(now time.Time) (*job, time.Time) {
	if i := slices.IndexFunc(t.jobs, func(j *job) bool { return j.urgent }); i >= 0 {
		return t.takeOut(i), time.Time{}
	}
	var first time.Time
	for i := 0; i < len(t.jobs); {
		j := t.jobs[i]
		_, wait := t.ledger(j.unit).next(j.req, now)
		switch {
		case wait.IsZero():
			return t.takeOut(i), time.Time{}
		case t.hurried():
			t.takeOut(i).finish(nil, errOwing)
			continue
		case first.IsZero() || wait.Before(first):
			first = wait
		}
		i++
	}
	return nil, first
}

func (t *turns) takeOut(i int) *job {
	j := t.jobs[i]
	t.jobs = slices.Delete(t.jobs, i, i+1)
	return j
}

// hurried reports whether an urgent request waits.
func (t *turns) hurried() bool { return t.line.hurry.Load() > 0 }

func (t *turns) ledger(u modbus.UnitID) *ledger {
	g := t.units[u]
	if g == nil {
		g = new(ledger)
		t.units[u] = g
	}
	return g
}

// listen waits until a moment, or for one lot of bytes that nobody asked for.
func (t *turns) listen(until time.Time) error {
	var buf [256]byte
	n, err := t.wire.read(buf[:], until)
	if n > 0 {
		t.last = time.Now()
		t.line.count.bytesReceived.Add(uint64(n))
		t.stray = append(t.stray, buf[:n]...)
		if len(t.stray) >= modbus.MaxASCII || t.whole(t.stray) {
			t.discard()
		}
	}
	return err
}

// whole reports whether b is one frame: perhaps the late answer a held unit
// waits for, which need not wait for silence.
func (t *turns) whole(b []byte) bool {
	if t.line.cfg.Framing == modbus.FramingASCII {
		_, _, err := modbus.DecodeASCII(b)
		return err == nil
	}
	_, _, err := modbus.DecodeRTU(b)
	return err == nil
}

// discard drops what arrived unasked, and counts it.
func (t *turns) discard() {
	if len(t.stray) == 0 {
		return
	}
	t.line.wireTap('<', t.stray, t.last)
	t.account(t.stray, nil)
	t.stray = t.stray[:0]
}

// account counts what was not taken for an answer, and pays off what units owe.
// q is the request it came after, nil for none. It returns the number of frames.
func (t *turns) account(b []byte, q *question) (frames int) {
	c := &t.line.count
	split := splitRTU
	if t.line.cfg.Framing == modbus.FramingASCII {
		split = splitASCII
	}
	noise := split(b, func(unit modbus.UnitID, pdu modbus.PDU) {
		frames++
		g := t.units[unit]
		switch {
		case q != nil && unit != q.unit && (g == nil || g.owes(pdu) < 0):
			c.wrongUnit.Add(1)
		case q != nil && unit != q.unit:
			// Or it is the answer to q with a wrong unit: so it pays nothing.
			c.late.Add(1)
		case g != nil && g.pay(pdu, t.last):
			c.late.Add(1)
		case q != nil && g != nil && g.repeated(pdu, t.last):
			c.repeated.Add(1)
		default:
			c.wrongAnswer.Add(1)
		}
	})
	c.noise.Add(uint64(noise))
	return frames
}

// lostError ends serve: the wire cannot be used any more.
type lostError struct {
	cause error // why
	err   error // what the caller of the request is told
}

func (e *lostError) Error() string { return e.cause.Error() }

// lost returns the error for a wire that failed under a request, before or after
// that was sent.
func lost(cause error, sent bool) error {
	if !sent {
		return &lostError{cause, errNotSent}
	}
	return &lostError{cause, lostUnder(cause)}
}

// run serves one job. The error is that of the wire.
func (t *turns) run(j *job) error {
	resp, err := t.answer(j)
	var l *lostError
	if errors.As(err, &l) {
		j.finish(nil, l.err)
		return l.cause
	}
	j.finish(resp, err)
	return nil
}

// answer gets the answer to a job. What has to go over the wire first does.
func (t *turns) answer(j *job) (modbus.PDU, error) {
	if j.unit == modbus.Broadcast {
		return t.exchange(j, j.req, true)
	}
	if t.echo == echoUnknown && selfEqual(j.req) {
		// Its answer would look like its echo. A read tells the two apart, and
		// shows whether there is an echo; that the device refuses it, or is
		// silent, does not matter.
		if j.urgent {
			return t.doubted(j)
		}
		_, err := t.exchange(j, echoProbe(j.req), false)
		if l := (*lostError)(nil); errors.As(err, &l) || t.echo == echoUnknown {
			return nil, err
		}
	}
	for range mostFences {
		fence, wait := t.ledger(j.unit).next(j.req, time.Now())
		switch {
		case fence == nil && wait.IsZero():
			return t.exchange(j, j.req, true)
		case j.urgent:
			return t.doubted(j)
		case fence == nil || t.hurried():
			return nil, errOwing
		}
		t.line.count.fences.Add(1)
		if _, err := t.exchange(j, fence, false); !answers(err) {
			return nil, err
		}
	}
	return nil, errOwing
}

// doubted is exchange for an urgent request whose answer might be another's.
func (t *turns) doubted(j *job) (modbus.PDU, error) {
	_, err := t.exchange(j, j.req, true)
	if err == nil {
		t.owe(j, j.req, time.Now()) // then its own is still to come
		err = fmt.Errorf("%w: what came may be the answer to a request before, or an echo", modbus.ErrNoResponse)
	}
	return nil, err
}

// errOwing: what the unit owes has not come yet, and stands in the way.
var errOwing = fmt.Errorf("%w: the unit still owes answers to earlier requests", modbus.ErrNoResponse)

// echoProbe returns a read of what req writes; of register 0 where req names no
// address.
func echoProbe(req modbus.PDU) modbus.PDU {
	switch req.Function() {
	case modbus.WriteSingleCoil:
		return modbus.PDU{byte(modbus.ReadCoils), req[1], req[2], 0, 1}
	case modbus.WriteSingleRegister, modbus.MaskWriteRegister:
		return modbus.PDU{byte(modbus.ReadHoldingRegisters), req[1], req[2], 0, 1}
	}
	return modbus.ReadRequest(modbus.HoldingRegisters, 0, 1)
}

// exchange sends req to the unit of j, once the line has been silent, and waits
// for the answer. own says that req is the request of j itself, not one that
// goes before it.
func (t *turns) exchange(j *job, req modbus.PDU, own bool) (modbus.PDU, error) {
	if err := t.quiet(j.gap); err != nil {
		return nil, err
	}
	if !t.begin(j, own) {
		return nil, errGone
	}
	t.out = t.line.cfg.Framing.Append(t.out[:0], 0, j.unit, req)
	c := &t.line.count
	c.requests.Add(1)
	c.bytesSent.Add(uint64(len(t.out)))
	t.line.wireTap('>', t.out, time.Time{})
	end, err := t.wire.write(t.out)
	t.last = later(end, t.last)
	if err != nil {
		return nil, lost(err, own)
	}
	if j.unit == modbus.Broadcast {
		c.broadcasts.Add(1)
		t.notUntil = end.Add(turnaround)
		t.wire.hold(end) // its caller may close the port next, which drops what has not left
		return modbus.PDU{}, nil
	}
	return t.receive(j, req, end)
}

// errGone: the caller has left; nobody reads the job's outcome.
var errGone = errors.New("caller gone")

// begin marks j as sent. It reports false when its caller has left.
func (t *turns) begin(j *job, own bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if j.stage == jobGone {
		return false
	}
	if own {
		j.stage = jobSent
	}
	return true
}

// quiet waits until the line has been silent for gap, and longer where a request
// before has left something to wait for. What it hears is discarded.
func (t *turns) quiet(gap time.Duration) error {
	var limit time.Time
	for {
		until := t.silentFrom(gap)
		if limit.IsZero() {
			limit = later(until, time.Now()).Add(t.quit)
		}
		// The end of the silence is kept exactly, and not listened into: bytes
		// that came in it are found at its end, and begin it anew.
		switch left := time.Until(until); {
		case left <= exactly:
			t.wire.hold(until)
		case len(t.stray) > 0:
			until = until.Add(exactly - left) // an urgent request may end the wait, see silentFrom
		default:
			until = until.Add(-exactly / 2)
		}
		before := t.last
		if err := t.listen(until); err != nil {
			return lost(err, false)
		}
		now := time.Now()
		switch {
		case t.isClosed():
			return lost(errStopped, false)
		case t.last != before && now.After(limit):
			t.discard()
			return fmt.Errorf("%w: the line is never silent", modbus.ErrNotConnected)
		case t.last == before && !now.Before(t.silentFrom(gap)):
			t.discard()
			return nil
		}
	}
}

// silentFrom returns when the line has been silent for long enough, if nothing more
// is heard: for gap, and for the rest of a late answer that has begun to come. Such
// a one is in lumps, of which each would look like noise.
func (t *turns) silentFrom(gap time.Duration) time.Time {
	at := later(t.last.Add(gap), t.notUntil)
	if len(t.stray) > 0 && !t.hurried() && t.comes(t.stray) {
		return later(at, t.last.Add(t.pause))
	}
	return at
}

// comes reports whether b, which has a byte at least, is the front of an answer that
// a unit owes.
func (t *turns) comes(b []byte) bool {
	if t.line.cfg.Framing == modbus.FramingASCII {
		if b[0] != ':' || bytes.IndexByte(b, '\n') >= 0 {
			return false
		}
		for _, g := range t.units {
			if len(g.owed) > 0 {
				return true
			}
		}
		return false
	}
	g := t.units[modbus.UnitID(b[0])]
	return g != nil && slices.ContainsFunc(g.owed, func(o owed) bool {
		if len(b) == 1 {
			return true
		}
		n, known := responseLen(b, o.req)
		return b[1]&0x7F == byte(o.req.Function()) && len(b) < n && (!known || n <= modbus.MaxRTU)
	})
}

func (t *turns) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// receive waits for the answer to req, which left at sent.
func (t *turns) receive(j *job, req modbus.PDU, sent time.Time) (modbus.PDU, error) {
	q := &question{unit: j.unit, req: req, adu: t.out, echo: t.echo == echoOn}
	deadline := sent.Add(j.timeout)
	end := deadline.Add(longFrame + modbus.MaxASCII*t.char)
	buf, until := t.in[:0], deadline
	t.marks = t.marks[:0]
	early := false
	var refusal error // that may be the answer to a request given up
	var s scan
scanning:
	for s.heard != heardAnswer {
		n, err := t.wire.read(buf[len(buf):cap(buf)], until)
		now := time.Now()
		if n == 0 && t.isClosed() {
			err = errStopped
		}
		if err != nil {
			t.owe(j, req, sent)
			return nil, lost(err, true)
		}
		if n > 0 {
			t.last = now
			t.line.count.bytesReceived.Add(uint64(n))
			buf = buf[:len(buf)+n]
			t.marks = append(t.marks, mark{len(buf), now})
			s = t.scan(buf, q, false)
			for s.heard == heardAnswer {
				switch {
				case t.tooEarly(s, sent):
					early = true
				case s.err != nil && t.ledger(q.unit).disputed(req):
					refusal = s.err
				default:
					break scanning
				}
				t.line.count.late.Add(1)
				t.line.wireTap('<', buf[:s.end], now)
				buf = buf[:copy(buf, buf[s.end:])]
				t.marks = append(t.marks[:0], mark{len(buf), now})
				s = t.scan(buf, q, false)
			}
			until = t.patience(s.heard, deadline)
			if len(buf) == cap(buf) && s.heard != heardAnswer {
				until = now // babble: no answer is that long
			}
			t.rest(n, s)
		}
		if s.heard != heardAnswer && (!now.Before(until) || now.After(end)) {
			s = t.scan(buf, q, true)
			break
		}
	}
	if s.heard != heardAnswer {
		if len(buf) > 0 {
			t.line.wireTap('<', buf, t.last)
		}
		if early {
			// No answer but the early one: perhaps this line has no pace.
			t.pace.off = true
		}
		err := t.failed(j, q, buf, s, sent)
		if refusal != nil && !errors.As(err, new(*lostError)) {
			return nil, settled(req, refusal)
		}
		return nil, err
	}
	t.line.wireTap('<', buf[:s.end], t.last)
	return t.accept(q, buf, s, sent)
}

// settled returns what the caller of req is told when nothing came but a refusal
// that may have been meant for a request before: a read has not got its values
// either way, but a write may have been done.
func settled(req modbus.PDU, refusal error) error {
	if req.Function().Writes() {
		return fmt.Errorf("%w: %w, but perhaps to a request before", modbus.ErrNoResponse, refusal)
	}
	return refusal
}

// tooEarly reports whether the frame that a scan found began before the request
// had left, on a line that is known to have a pace. The first n bytes of a frame
// that are there at a time began at least n characters before.
func (t *turns) tooEarly(s scan, sent time.Time) bool {
	if t.char == 0 || t.pace.off {
		return false
	}
	const slack = 64 // a 64th for clocks that differ, and one character
	for _, m := range t.marks {
		n := min(m.n, s.end) - s.start
		if n <= 0 {
			continue
		}
		took := time.Duration(n) * t.char
		if m.at.Add(-took + took/slack + t.char).Before(sent) {
			if t.pace.known() {
				return true
			}
			t.pace.off = true
			return false
		}
	}
	t.pace.inTime++
	return false
}

// rest sleeps while the rest of an answer is on a serial line, when the port
// delivers byte by byte (n at last): a wake-up for each byte is more than a small
// processor can do at 115200 baud.
func (t *turns) rest(n int, s scan) {
	const few, early = 4, time.Millisecond
	d := min(time.Duration(s.missing)*t.char-early, t.pause)
	if s.heard == heardPart && n <= few && d > early {
		t.wire.hold(t.last.Add(d))
	}
}

// patience returns how long to wait for more bytes after the last ones.
func (t *turns) patience(h heard, deadline time.Time) time.Time {
	switch h {
	case heardPart:
		return later(deadline, t.last.Add(t.pause))
	case heardOpen:
		return t.last.Add(t.pause)
	case heardBroken:
		if t.line.cfg.Kind != config.Serial {
			return t.last // the connection will be closed
		}
		return t.last.Add(t.pause)
	}
	return deadline
}

// accept takes the answer that a scan found in buf.
func (t *turns) accept(q *question, buf []byte, s scan, sent time.Time) (modbus.PDU, error) {
	c := &t.line.count
	front := buf[:s.start]
	if n := q.heardEcho(front); n > 0 {
		t.echo = echoOn
		c.echoes.Add(1)
		front = front[n:]
	} else if !selfEqual(q.req) {
		t.echo = echoOff
	}
	t.account(front, q)
	t.stray = append(t.stray[:0], buf[s.end:]...)
	t.silent = 0
	t.ledger(q.unit).answered(q.req, s.err != nil, sent, t.last)
	t.line.answered()
	if s.err != nil {
		c.exceptions.Add(1)
		return nil, s.err
	}
	return bytes.Clone(s.pdu), nil
}

// failed counts what came instead of an answer and says what it was.
func (t *turns) failed(j *job, q *question, buf []byte, s scan, sent time.Time) error {
	c := &t.line.count
	t.notUntil = time.Now().Add(settleAfter)
	if s.heard == heardBroken {
		// The unit did answer: it owes nothing.
		c.badChecksum.Add(1)
		err := fmt.Errorf("%w: wrong checksum", modbus.ErrBadResponse)
		if t.line.cfg.Kind != config.Serial {
			return &lostError{err, err} // no telling where the next frame begins
		}
		return err
	}
	t.owe(j, q.req, sent)
	rest := buf
	if n := q.heardEcho(buf); n > 0 && (q.echo || !selfEqual(q.req)) {
		t.echo = echoOn
		c.echoes.Add(1)
		rest = buf[n:]
	} else if t.echo == echoUnknown && len(buf) == 0 {
		t.echo = echoOff // an adapter that echoes does so whether a device answers or not
	}
	if len(rest) == 0 {
		c.timeouts.Add(1)
		err := noResponse(j.timeout)
		t.silent++
		if t.silent >= mostSilent && t.line.cfg.Kind == config.TCP && !t.line.keep {
			return &lostError{tooSilent(t.silent), err}
		}
		return err
	}
	if s.heard == heardPart {
		c.partial.Add(1)
		err := fmt.Errorf("%w: cut short after %d bytes", modbus.ErrBadResponse, len(rest))
		if t.line.cfg.Kind != config.Serial {
			return &lostError{err, err}
		}
		return err
	}
	if frames := t.account(rest, q); frames > 0 {
		return fmt.Errorf("%w: not an answer of unit %d to this request", modbus.ErrBadResponse, q.unit)
	}
	return fmt.Errorf("%w: %d bytes of noise", modbus.ErrBadResponse, len(rest))
}

// owe notes that the unit of j may still answer req.
func (t *turns) owe(j *job, req modbus.PDU, sent time.Time) {
	t.ledger(j.unit).owe(req, sent, max(j.timeout, t.line.cfg.Timeout))
}

// noResponse is the error for a request to which nothing came in the time given.
type noResponse time.Duration

func (e noResponse) Error() string {
	// A patience that was learned from a device has nanoseconds that tell nobody anything.
	return fmt.Sprintf("%v within %v", modbus.ErrNoResponse, time.Duration(e).Round(100*time.Microsecond))
}

func (e noResponse) Unwrap() error { return modbus.ErrNoResponse }

func (t *turns) inFlight() int { return 1 }

// serialErrors returns the counters of the port's driver.
func (t *turns) serialErrors() SerialErrors {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.wire.(*tty); ok {
		return p.serialErrors()
	}
	return SerialErrors{}
}
