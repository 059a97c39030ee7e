package modbus

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Server puts an Endpoint on wires of the server side. Set Endpoint; every other
// zero field means what its comment says. The settings must not change once
// something is served. One Server may serve several wires at once, and counts
// them together.
//
// Every request is checked with Knows and CheckRequest before the Endpoint sees it,
// and is refused with the exception that the specification asks for. What the Endpoint
// fails with becomes the exception that ExceptionFor names. The requests of one
// wire are answered one after the other in the order they came.
type Server struct {
	Endpoint Endpoint

	// Units says which unit ids are answered for; nil: all of them. A request
	// for another unit is answered with exception 0x0B on Modbus TCP, whose
	// clients wait for something, and with silence on the other framings.
	Units func(UnitID) bool

	// Knows says whether a unit has an answer to what a request asks for, see
	// Answers; nil: the Endpoint refuses what it does not know. The request may be
	// malformed.
	Knows func(unit UnitID, req PDU) bool

	// Default, unless 0, stands in for the unit ids 0 and 255 on Modbus TCP,
	// which there mean "the device at this address" (APP 4.1), unless Units names
	// them. The answer still bears the id of the request.
	Default UnitID

	// Allow lists who may connect; nil: everyone. Others are closed at once,
	// their datagrams ignored.
	Allow []netip.Prefix

	// MaxClients is how many connections there may be at once; 0: 32. When they
	// are all taken, a new one takes the place of that which has been silent
	// longest - for a second, if it never asked anything, else for 30 s -, or is
	// closed at once.
	MaxClients int
	Idle       time.Duration // a connection without a whole request for so long is closed; 0: 60 s, negative: never

	// Echo says that a serial port hears its own sending, as half-duplex
	// adapters without echo suppression do; it is then dropped.
	Echo bool

	Log *slog.Logger // nil: none

	sessions sessions
	tallies  tallies
	pollers  pollers
	counters struct{ accepted, refused, evicted, requests, exceptions, badFrames atomic.Uint64 }

	strangers [256]atomic.Bool // units that were asked for and are not here, each logged once
}

// Defaults of a Server.
const (
	DefaultMaxClients = 32
	DefaultIdle       = 60 * time.Second
)

// writeTimeout is how long a client may leave an answer untaken.
const writeTimeout = 5 * time.Second

// errRefused ends a connection whose stream cannot be followed any further.
var errRefused = errors.New("connection given up")

// ServerStats counts what a Server saw since it was made.
type ServerStats struct {
	Clients    int    // connections now
	Accepted   uint64 // connections
	Refused    uint64 // connections and datagrams turned away by Allow or MaxClients
	Evicted    uint64 // connections closed to make room for another
	Requests   uint64 // for our units
	Exceptions uint64 // answers that were exceptions
	BadFrames  uint64 // frames with a wrong CRC, LRC or length
}

// Stats returns the counts. It is safe to call at any time.
func (s *Server) Stats() ServerStats {
	c := &s.counters
	return ServerStats{
		Clients:    s.sessions.len(),
		Accepted:   c.accepted.Load(),
		Refused:    c.refused.Load(),
		Evicted:    c.evicted.Load(),
		Requests:   c.requests.Load(),
		Exceptions: c.exceptions.Load(),
		BadFrames:  c.badFrames.Load(),
	}
}

// Overdue returns for how long a goroutine that answers several clients has been
// owing its next step: to answer what has come takes it no time to speak of. It is
// safe to call at any time.
func (s *Server) Overdue() (longest time.Duration) {
	s.pollers.mu.Lock()
	defer s.pollers.mu.Unlock()
	for p := range s.pollers.all {
		longest = max(longest, p.Overdue())
	}
	return longest
}

// Clients returns the counts of each client, by its name. It remembers 64 of
// them, and forgets first who left first. It is safe to call at any time.
func (s *Server) Clients() []ClientStats { return s.tallies.stats() }

// Serve answers the clients of l in framing f until ctx ends, then closes l and
// all connections, waits for them and returns nil. It returns an error when l is
// closed by somebody else. A client that sends what cannot be a frame - MBAP
// with a wrong protocol id or length, RTU with a wrong CRC - is disconnected,
// because nothing says where the next frame would begin.
func (s *Server) Serve(ctx context.Context, l net.Listener, f Framing) error {
	running, cancel := context.WithCancel(ctx)
	var open sync.WaitGroup
	defer open.Wait()
	defer cancel()
	defer context.AfterFunc(running, func() { l.Close() })()
	defer l.Close()

	many := s.many(f)
	refusing, failing := false, false
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("modbus server: accept on %v: %w", l.Addr(), err)
		case err != nil:
			// Out of descriptors, or a client that left again: neither is a
			// reason to stop serving those who are there.
			if !failing {
				s.log().Warn("cannot accept clients", "address", l.Addr().String(), "err", err)
			}
			failing = true
			wait(ctx, 100*time.Millisecond)
			continue
		}
		failing = false
		c := &session{conn: conn, from: conn.RemoteAddr(), since: time.Now(), hangUp: func() { conn.Close() }}
		shared := many.take(running, &open, c)
		if reason := s.admit(c); reason != "" {
			s.counters.refused.Add(1) // first: a client that sees the end finds it counted
			c.hangUp()
			if shared {
				c.socket.Close()
			}
			if !refusing {
				s.log().Warn("client refused", "client", c.from.String(), "reason", reason)
			}
			refusing = true
			continue
		}
		refusing = false
		s.counters.accepted.Add(1)
		if shared {
			many.begin(running, c)
			continue
		}
		open.Go(func() { // ends when the client leaves, is idle, or running ends
			defer s.sessions.leave(c)
			s.serve(running, c, f)
		})
	}
}

// admit counts a new connection in and returns "", or says why it must go.
func (s *Server) admit(c *session) string {
	if !s.allowed(c.from) {
		return "not in the allow list"
	}
	limit := s.maxClients()
	entered, instead := s.sessions.enter(c, limit)
	if instead != nil {
		s.counters.evicted.Add(1)
		instead.hangUp()
	}
	if !entered {
		return fmt.Sprintf("%d clients are connected already", limit)
	}
	return ""
}

func (s *Server) maxClients() int {
	if s.MaxClients == 0 {
		return DefaultMaxClients
	}
	return s.MaxClients
}

// allowed reports whether from may talk to us.
func (s *Server) allowed(from net.Addr) bool {
	if s.Allow == nil {
		return true
	}
	ap, err := netip.ParseAddrPort(from.String())
	if err != nil {
		return false
	}
	addr := ap.Addr().Unmap().WithZone("")
	for _, p := range s.Allow {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// serve answers one client until it leaves or must.
func (s *Server) serve(ctx context.Context, c *session, f Framing) {
	conn := c.conn
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	ctx = s.connected(ctx, c)
	defer c.tally.conns.Add(-1)
	step := s.stepTCP
	switch f {
	case FramingRTU:
		step = s.stepRTU
	case FramingASCII:
		step = s.stepASCII
	}
	// One frame always fits, so that a reader may peek at a whole one.
	in, out := bufio.NewReaderSize(conn, MaxASCII), make([]byte, 0, MaxASCII)
	limits := limits{conn: conn, idle: s.idle()}
	late := false // the last answer was not sent, and more that was given up may follow
	for {
		if err := limits.request(); err != nil {
			return
		}
		answer, err := step(ctx, c, in, out)
		if err != nil {
			s.log().Debug("client gone", "client", c.from.String(), "err", err)
			return
		}
		if len(answer) == 0 {
			continue
		}
		if late = f != FramingTCP && (late || c.silence() > staleAfter) && limits.overtaken(in); late {
			s.log().Debug("answer not sent, the client has asked something else", "client", c.from.String())
			continue
		}
		c.tally.out.Add(uint64(len(answer)))
		if err := limits.answer(); err != nil {
			return
		}
		if _, err := conn.Write(answer); err != nil {
			s.log().Debug("client gone", "client", c.from.String(), "err", err)
			return
		}
	}
}

// connected notes a new client, and returns the context of its requests.
func (s *Server) connected(ctx context.Context, c *session) context.Context {
	host := hostOf(c.from)
	c.tally = s.tallies.get(host)
	c.tally.conns.Add(1)
	s.log().Debug("client connected", "client", c.from.String())
	return WithClient(ctx, host)
}

// limits keeps the deadlines of a connection. To set one costs more than to
// answer a read, so they are set anew only once an eighth of their time has
// passed, and are that much too short at worst: what is set is an eighth more.
type limits struct {
	conn        net.Conn
	idle        time.Duration // 0: none
	read, write time.Time     // when the deadlines were set
}

// request is called before the next request is waited for.
func (l *limits) request() error {
	now := time.Now()
	if l.idle == 0 || now.Sub(l.read) < l.idle/8 {
		return nil
	}
	l.read = now
	return l.conn.SetReadDeadline(now.Add(l.idle + l.idle/8))
}

// overtaken reports whether the client has sent something else while an answer was
// made that took its time. Without transaction ids it would take that for the answer
// to the newer request.
func (l *limits) overtaken(in *bufio.Reader) bool {
	// Whatever is wrong with the connection, the next read says it.
	_ = l.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, _ = in.Peek(in.Buffered() + 1)
	l.read = time.Time{} // is set anew
	_ = l.conn.SetReadDeadline(l.read)
	return in.Buffered() > 0
}

// answer is called before an answer is written.
func (l *limits) answer() error {
	now := time.Now()
	if now.Sub(l.write) < writeTimeout/8 {
		return nil
	}
	l.write = now
	return l.conn.SetWriteDeadline(now.Add(writeTimeout + writeTimeout/8))
}

// idle returns how long a connection may be silent; 0: for ever.
func (s *Server) idle() time.Duration {
	switch {
	case s.Idle == 0:
		return DefaultIdle
	case s.Idle < 0:
		return 0
	}
	return s.Idle
}

// stepTCP reads one MBAP frame and returns what to answer, appended to out.
func (s *Server) stepTCP(ctx context.Context, c *session, in *bufio.Reader, out []byte) ([]byte, error) {
	hdr, err := in.Peek(MBAPLen)
	if err != nil {
		return nil, err
	}
	tx, n, unit, err := ParseMBAP(hdr)
	if err != nil {
		s.badFrame(c.tally)
		return nil, err
	}
	adu, err := in.Peek(MBAPLen + n)
	if err != nil {
		return nil, err
	}
	c.came(len(adu), time.Now())
	if resp := s.answerTCP(ctx, c.tally, unit, PDU(adu[MBAPLen:])); len(resp) > 0 {
		out = AppendTCP(out, tx, unit, resp)
	}
	_, err = in.Discard(MBAPLen + n)
	return out, err
}

// stepRTU reads one RTU frame from a stream, in which silence means nothing:
// the frame ends by its length, or where its CRC comes out right.
func (s *Server) stepRTU(ctx context.Context, c *session, in *bufio.Reader, out []byte) ([]byte, error) {
	n, known := MinRTU, false
	for !known {
		prefix, err := in.Peek(n)
		if err != nil {
			return nil, err
		}
		n, known = RTURequestLen(prefix)
		if !known && n == 0 { // a function we do not know
			if n, known = RTUFrameEnd(prefix); !known {
				n = len(prefix) + 1
			}
		}
		if n > MaxRTU {
			s.badFrame(c.tally)
			return nil, fmt.Errorf("%w: no frame in %d bytes", errRefused, len(prefix))
		}
	}
	adu, err := in.Peek(n)
	if err != nil {
		return nil, err
	}
	unit, req, err := DecodeRTU(adu)
	if err != nil {
		s.badFrame(c.tally)
		return nil, err
	}
	c.came(n, time.Now())
	if resp := s.answerSerial(ctx, c.tally, s.Units, unit, req); len(resp) > 0 {
		out = AppendRTU(out, unit, resp)
	}
	_, err = in.Discard(n)
	return out, err
}

// RTUFrameEnd returns the shortest length at which b is a frame with a right CRC.
// The CRC over a frame and its own CRC is 0.
func RTUFrameEnd(b []byte) (n int, found bool) {
	crc := uint16(0xFFFF)
	for i, v := range b[:min(len(b), MaxRTU)] {
		crc = crc>>8 ^ crcTable[byte(crc)^v]
		if crc == 0 && i+1 >= MinRTU {
			return i + 1, true
		}
	}
	return 0, false
}

// stepASCII reads up to the end of the next ASCII frame. A frame with a wrong LRC
// gets no answer; the next ':' begins anew.
func (s *Server) stepASCII(ctx context.Context, c *session, in *bufio.Reader, out []byte) ([]byte, error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			s.badFrame(c.tally)
		}
		return nil, err
	}
	c.came(len(line), time.Now())
	return s.answerASCII(ctx, c.tally, s.Units, line, out), nil
}

// answerASCII appends the answer to the frame that ends line to out.
func (s *Server) answerASCII(ctx context.Context, t *tally, units func(UnitID) bool, line, out []byte) []byte {
	for i := len(line) - 1; i >= 0; i-- {
		if line[i] == ':' {
			line = line[i:]
			break
		}
	}
	unit, req, err := DecodeASCII(line)
	if err != nil {
		s.badFrame(t)
		return out
	}
	if resp := s.answerSerial(ctx, t, units, unit, req); len(resp) > 0 {
		out = AppendASCII(out, unit, resp)
	}
	return out
}

// maxDatagrams is how many requests of one UDP client may wait.
const maxDatagrams = 8

// ServeUDP answers the datagrams of pc, each of which holds one frame in framing f,
// until ctx ends; then it closes pc and returns nil. Anything else in a datagram is
// counted and ignored. The requests of one address are answered in
// the order they came, and those of another do not wait for them; what comes
// while eight of an address wait, or MaxClients addresses, is ignored and
// counted as refused. As on a line, an answer that took its time is not sent once
// its client has asked something else, which it would be taken to answer. It
// returns an error when pc fails.
func (s *Server) ServeUDP(ctx context.Context, pc net.PacketConn, f Framing) error {
	running, cancel := context.WithCancel(ctx)
	u := &datagrams{server: s, conn: pc, framing: f, waiting: make(map[string][]datagram)}
	defer u.answering.Wait()
	defer cancel()
	defer pc.Close()
	defer context.AfterFunc(ctx, func() { pc.Close() })()
	in := make([]byte, MaxASCII+1)
	for {
		n, from, err := pc.ReadFrom(in)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("modbus server: read on %v: %w", pc.LocalAddr(), err)
		}
		if !s.allowed(from) || !u.take(running, from, in[:n]) {
			s.counters.refused.Add(1)
		}
	}
}

// datagrams is the requests of a UDP socket that wait for their turn.
type datagrams struct {
	server    *Server
	conn      net.PacketConn
	framing   Framing
	answering sync.WaitGroup

	mu      sync.Mutex
	waiting map[string][]datagram // behind the one being answered, by address
}

// datagram is one that has come.
type datagram struct {
	b  []byte
	at time.Time
}

// take has one datagram answered; false: there are too many.
func (u *datagrams) take(ctx context.Context, from net.Addr, b []byte) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	key := from.String()
	queue, busy := u.waiting[key]
	if busy && len(queue) >= maxDatagrams || !busy && len(u.waiting) >= u.server.maxClients() {
		return false
	}
	d := datagram{bytes.Clone(b), time.Now()}
	if busy {
		u.waiting[key] = append(queue, d)
		return true
	}
	u.waiting[key] = nil
	u.answering.Go(func() { // ends when nothing of this address waits, or with ctx
		host := hostOf(from)
		t := u.server.tallies.get(host)
		ctx := WithClient(ctx, host)
		for more := true; more; d, more = u.next(ctx, key) {
			u.answer(ctx, t, from, d)
		}
	})
	return true
}

// next returns the next datagram of an address.
func (u *datagrams) next(ctx context.Context, key string) (d datagram, more bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	queue := u.waiting[key]
	if len(queue) == 0 || ctx.Err() != nil {
		delete(u.waiting, key)
		return datagram{}, false
	}
	u.waiting[key] = queue[1:]
	return queue[0], true
}

func (u *datagrams) answer(ctx context.Context, t *tally, from net.Addr, d datagram) {
	out := u.reply(ctx, t, d.b)
	if len(out) == 0 {
		return
	}
	if u.framing != FramingTCP && time.Since(d.at) > staleAfter && u.waits(from.String()) {
		u.server.log().Debug("answer not sent, the client has asked something else", "client", from.String())
		return
	}
	t.out.Add(uint64(len(out)))
	if _, err := u.conn.WriteTo(out, from); err != nil {
		u.server.log().Debug("answer not sent", "client", from.String(), "err", err)
	}
}

// waits reports whether a datagram of an address waits.
func (u *datagrams) waits(key string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.waiting[key]) > 0
}

// reply returns the frame that answers the one in a datagram, empty for none.
func (u *datagrams) reply(ctx context.Context, t *tally, b []byte) []byte {
	s := u.server
	var tx uint16
	var unit UnitID
	var req PDU
	var err error
	switch u.framing {
	case FramingRTU:
		unit, req, err = DecodeRTU(b)
	case FramingASCII:
		unit, req, err = DecodeASCII(b)
	default:
		tx, unit, req, err = DecodeTCP(b)
	}
	if err != nil {
		s.badFrame(t)
		return nil
	}
	t.came(len(b), time.Now())
	var resp PDU
	if u.framing == FramingTCP {
		resp = s.answerTCP(ctx, t, unit, req)
	} else {
		resp = s.answerSerial(ctx, t, s.Units, unit, req)
	}
	if len(resp) == 0 {
		return nil
	}
	return u.framing.Append(nil, tx, unit, resp)
}

// answerTCP answers a request with the unit rules of Modbus TCP.
func (s *Server) answerTCP(ctx context.Context, t *tally, unit UnitID, req PDU) PDU {
	unit, ours := s.unit(unit)
	if !ours {
		if s.strangers[unit].CompareAndSwap(false, true) {
			s.log().Info("asked for a unit that is not here", "client", t.client, "unit", unit)
		}
		t.exception(GatewayTargetNoResponse)
		return ExceptionResponse(req.Function(), GatewayTargetNoResponse)
	}
	return s.answer(ctx, t, unit, req)
}

// unit returns the unit that a request of Modbus TCP is for, and whether it is one
// of ours.
func (s *Server) unit(unit UnitID) (of UnitID, ours bool) {
	if s.Default != 0 && (unit == 0 || unit == 255) && (s.Units == nil || !s.Units(unit)) {
		unit = s.Default
	}
	return unit, s.Units == nil || s.Units(unit)
}

// answerSerial answers a request with the unit rules of serial lines: nobody
// answers a broadcast, and what is not for us is for somebody else.
func (s *Server) answerSerial(ctx context.Context, t *tally, units func(UnitID) bool, unit UnitID, req PDU) PDU {
	if unit == Broadcast {
		if req.Function().Broadcasts() {
			s.answer(ctx, t, Broadcast, req)
		}
		return nil
	}
	if units != nil && !units(unit) {
		return nil
	}
	return s.answer(ctx, t, unit, req)
}

// answer returns the response to req, empty for none. It never is longer than a
// PDU may be.
func (s *Server) answer(ctx context.Context, t *tally, unit UnitID, req PDU) PDU {
	s.counters.requests.Add(1)
	t.functions[t.function(req.Function())].Add(1)
	err := s.check(unit, req)
	var resp PDU
	if err == nil {
		resp, err = s.Endpoint.Do(ctx, unit, req)
	}
	if err == nil && len(resp) == 0 && unit == Broadcast {
		return nil
	}
	if err == nil {
		// An Endpoint that answers something else is broken; a client must
		// not take its bytes for values.
		err = CheckResponse(req, resp)
	}
	if err == nil {
		return resp
	}
	if ctx.Err() != nil {
		return nil // we are going; the client will see the connection end
	}
	return ExceptionResponse(req.Function(), s.exception(t, err))
}

// check returns why a request is refused without the Endpoint: what is asked for
// comes before how (APP 6).
func (s *Server) check(unit UnitID, req PDU) error {
	if s.Knows != nil && !s.Knows(unit, req) {
		return IllegalFunction
	}
	return CheckRequest(req)
}

// exception counts and returns the exception that an error is answered with.
func (s *Server) exception(t *tally, err error) Exception {
	e := ExceptionFor(err)
	s.counters.exceptions.Add(1)
	t.exception(e)
	return e
}

func (s *Server) badFrame(t *tally) {
	s.counters.badFrames.Add(1)
	t.bad.Add(1)
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// wait returns after d, or sooner when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
