package modbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// staleAfter is the pause, beyond 3.5 characters, after which the rest of an
// unfinished RTU frame cannot follow any more. Adapters deliver in lumps up to
// 16 ms apart, so silence is not judged more finely than this.
const staleAfter = 50 * time.Millisecond

// adapterPause is how long an adapter holds bytes back, at most, and some more.
const adapterPause = 20 * time.Millisecond

// mostSame is how many requests in a row may be like the answer before.
const mostSame = 30

// asciiPause is the longest pause within an ASCII frame (SER 2.5.2).
const asciiPause = time.Second

// ServeSerial answers the requests for units (nil: Server.Units) that come over
// rw, an open serial port, until ctx ends; then it closes rw and returns nil.
// charTime is how long one character takes on the wire. f is FramingRTU or
// FramingASCII.
//
// On a line shared with other devices it passes over their requests and
// responses. It executes broadcasts and answers none, and answers no frame with
// a wrong CRC or LRC. It counts them under the Client of ctx. An answer leaves 3.5
// characters after the request at the earliest, and not at all once the client has
// asked something else, which it would be taken to answer. The error is that of rw,
// which is then closed; an adapter that was unplugged is the common one.
func (s *Server) ServeSerial(ctx context.Context, rw io.ReadWriteCloser, f Framing, units func(UnitID) bool, charTime time.Duration) error {
	if units == nil {
		units = s.Units
	}
	running, cancel := context.WithCancel(ctx)
	// The reader stamps what comes while an answer is being made, so that
	// silences are seen where they were. It ends when rw is closed.
	reads, free := make(chan serialRead), make(chan []byte, 2)
	free <- make([]byte, MaxASCII)
	free <- make([]byte, MaxASCII)
	done := make(chan struct{})
	defer func() { <-done }()
	defer rw.Close()
	defer context.AfterFunc(running, func() { rw.Close() })()
	defer cancel()
	go func() {
		defer close(done)
		for {
			var buf []byte
			select {
			case buf = <-free:
			case <-running.Done():
				return
			}
			n, err := rw.Read(buf[:cap(buf)])
			select {
			case reads <- serialRead{buf[:n], time.Now(), err}:
			case <-running.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()

	p := &serialPort{server: s, framing: f, units: units, tally: s.tallies.get(Client(ctx)), silence: Silence(charTime), char: charTime}
	late := false // the last answer was not sent, and more that was given up may follow
	for {
		var r serialRead
		select {
		case r = <-reads:
		case <-ctx.Done():
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		p.feed(r.b, r.at)
		free <- r.b
		for {
			answer, ok := p.next(ctx)
			if !ok {
				break
			}
			if len(answer) == 0 {
				continue
			}
			asked := r.at
			if late = (late || time.Since(asked) >= staleAfter) && p.overtaken(ctx, reads, free, &r); late {
				s.log().Debug("answer not sent, the client has asked something else", "client", p.tally.client, "after", time.Since(asked))
				continue
			}
			wait(ctx, time.Until(r.at.Add(p.silence)))
			if _, err := rw.Write(answer); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("modbus server: write: %w", err)
			}
			p.tally.out.Add(uint64(len(answer)))
			p.sent(answer, time.Now())
		}
		if r.err != nil {
			if errors.Is(r.err, io.EOF) {
				r.err = io.ErrUnexpectedEOF // nobody asked for the end
			}
			return fmt.Errorf("modbus server: read: %w", r.err)
		}
	}
}

// serialRead is what a serial port has brought.
type serialRead struct {
	b   []byte
	at  time.Time
	err error
}

// overtaken reports whether the client has given up an answer that took its time,
// the one to what r brought, and asked something else. It waits as long as what has
// come may become that; r is then the newest read.
func (p *serialPort) overtaken(ctx context.Context, reads <-chan serialRead, free chan<- []byte, r *serialRead) bool {
	if p.whole() {
		return true
	}
	for until := time.Now().Add(time.Millisecond); r.err == nil; until = r.at.Add(p.patience()) {
		next, ok := readUntil(ctx, reads, until)
		if !ok {
			return false
		}
		*r = next
		p.feed(r.b, r.at)
		free <- r.b
		if p.whole() {
			return true
		}
	}
	return false
}

// readUntil returns what has been read, or will be until a time.
func readUntil(ctx context.Context, reads <-chan serialRead, until time.Time) (r serialRead, ok bool) {
	select {
	case r = <-reads:
		return r, true
	default:
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case r = <-reads:
		return r, true
	case <-timer.C:
	case <-ctx.Done():
	}
	return r, false
}

// Silence returns the least pause between two RTU frames for a character time:
// 3.5 characters, and a fixed 1.75 ms above 19200 baud, that is for characters
// shorter than 10 bits are at that rate (SER 2.5.1.1).
func Silence(charTime time.Duration) time.Duration {
	const bits, baud = 10, 19200
	if charTime < bits*time.Second/baud {
		return 1750 * time.Microsecond
	}
	return charTime * 7 / 2
}

// ClientSilence returns the pause that a client keeps before an RTU request at a
// baud rate: 3.5 characters of 11 bits, and 1.75 ms above 19200 baud (SER
// 2.5.1.1). Where the mode has characters of 10 bits, devices that count 11 are
// given their silence all the same.
func ClientSilence(baud int) time.Duration {
	if baud > 19200 {
		return 1750 * time.Microsecond
	}
	return 35 * 11 * time.Second / 10 / time.Duration(baud)
}

// serialPort follows the bytes of a serial line. It has no clock and no wire:
// feed takes bytes with the time they came, next yields answers.
type serialPort struct {
	server  *Server
	framing Framing
	units   func(UnitID) bool
	tally   *tally
	silence time.Duration
	char    time.Duration

	buf    []byte
	starts []int // offsets in buf before which there was a silence, ascending
	last   time.Time
	echo   []byte // of ours, still to be heard
	out    []byte

	answer []byte    // the last one
	heard  time.Time // when its echo would have been heard, if nobody said that there is one
	same   int       // requests in a row that were the very answer before, and came by then
}

// feed takes bytes that were read at a time.
func (p *serialPort) feed(b []byte, at time.Time) {
	pause := at.Sub(p.last)
	p.last = at
	if b = p.dropEcho(b); len(b) == 0 {
		return
	}
	if p.framing == FramingASCII {
		if pause > p.patience() {
			p.buf = p.buf[:0]
		}
		p.buf = append(p.buf, b...)
		return
	}
	switch {
	case pause > p.patience():
		p.drop(len(p.buf))
	case pause >= p.silence && len(p.buf) > 0:
		p.starts = append(p.starts, len(p.buf))
	}
	p.buf = append(p.buf, b...)
}

// patience is the longest pause within a frame.
func (p *serialPort) patience() time.Duration {
	if p.framing == FramingASCII {
		return asciiPause
	}
	return p.silence + staleAfter
}

// whole reports whether what was fed and not worked off has a whole frame in it.
func (p *serialPort) whole() bool {
	if p.framing == FramingASCII {
		return bytes.IndexByte(p.buf, '\n') >= 0
	}
	return p.frame(p.buf) > 0 || p.restart(0) > 0
}

// sent notes what was written, whose echo the line may bring back.
func (p *serialPort) sent(b []byte, at time.Time) {
	p.answer = append(p.answer[:0], b...)
	p.heard = at.Add(time.Duration(len(b))*p.char + adapterPause)
	if p.server.Echo {
		p.echo = append(p.echo[:0], b...)
	}
}

// dropEcho takes the echo of our own sending off the front of b. The first byte
// that differs ends the expectation.
func (p *serialPort) dropEcho(b []byte) []byte {
	n := min(len(b), len(p.echo))
	if n == 0 {
		return b
	}
	if !bytes.Equal(b[:n], p.echo[:n]) {
		p.echo = p.echo[:0]
		return b
	}
	p.echo = p.echo[n:]
	return b[n:]
}

// circles reports whether a request is to be passed over because it may be our own
// answer, and that to it again, without end: the answer to a single write is the
// request. That is so where a port hears its own sending and nobody said so.
func (p *serialPort) circles(adu []byte) bool {
	if !bytes.Equal(adu, p.answer) || p.last.After(p.heard) {
		p.same = 0
		return false
	}
	if p.same++; p.same < mostSame {
		return false
	}
	p.same = 0
	p.server.log().Warn("one request again and again: does the port hear its own sending?", "client", p.tally.client)
	p.server.badFrame(p.tally)
	return true
}

// next works off one frame of what was fed. ok is false when no whole frame is
// left; answer is empty for a frame that gets none. The answer is valid until
// the next call.
func (p *serialPort) next(ctx context.Context) (answer []byte, ok bool) {
	p.out = p.out[:0]
	if p.framing == FramingASCII {
		return p.nextASCII(ctx)
	}
	for len(p.buf) > 0 {
		n := p.frame(p.buf)
		if n > 0 {
			adu := p.buf[:n]
			if unit, req, err := DecodeRTU(adu); err == nil && p.ours(unit) && !p.circles(adu) {
				p.tally.came(n, p.last)
				if resp := p.server.answerSerial(ctx, p.tally, p.units, unit, req); len(resp) > 0 {
					p.out = AppendRTU(p.out, unit, resp)
				}
			}
			p.drop(n)
			return p.out, true
		}
		start := p.restart(n)
		if start == 0 {
			return nil, false
		}
		p.server.badFrame(p.tally)
		p.drop(start)
	}
	return nil, false
}

// restart returns where to look for the next frame when the front of buf is
// none: n is 0 for one that may still become a frame, -1 for one that cannot.
// It returns 0 when there is nothing to do but wait for more bytes.
func (p *serialPort) restart(n int) int {
	if n < 0 {
		if len(p.starts) > 0 {
			return p.starts[0]
		}
		return len(p.buf)
	}
	// A whole request for us after a silence: the rest of what stands before
	// it will never come.
	for _, start := range p.starts {
		if p.ours(UnitID(p.buf[start])) && p.frame(p.buf[start:]) > 0 {
			return start
		}
	}
	return 0
}

// drop forgets the first n bytes.
func (p *serialPort) drop(n int) {
	p.buf = p.buf[:copy(p.buf, p.buf[n:])]
	kept := p.starts[:0]
	for _, s := range p.starts {
		if s > n {
			kept = append(kept, s-n)
		}
	}
	p.starts = kept
}

func (p *serialPort) ours(unit UnitID) bool {
	return unit == Broadcast || p.units == nil || p.units(unit)
}

// frame returns the length of the whole frame at the front of b, 0 while it may
// still become one, and -1 when it cannot.
func (p *serialPort) frame(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	n, known := RTURequestLen(b)
	if known && len(b) >= n && CRC16(b[:n]) == 0 {
		return n
	}
	if p.ours(UnitID(b[0])) && (known || n > 0) {
		if known && len(b) >= n || len(b) >= MaxRTU {
			return -1
		}
		return 0
	}
	// A response of another device, or a function we do not know: it ends
	// where its CRC comes out right.
	if n, found := RTUFrameEnd(b); found {
		return n
	}
	if len(b) >= MaxRTU {
		return -1
	}
	return 0
}

// nextASCII works off one line.
func (p *serialPort) nextASCII(ctx context.Context) (answer []byte, ok bool) {
	end := bytes.IndexByte(p.buf, '\n')
	if end < 0 {
		if len(p.buf) > MaxASCII {
			p.server.badFrame(p.tally)
			p.buf = p.buf[:0]
		}
		return nil, false
	}
	if p.circles(p.buf[:end+1]) {
		p.drop(end + 1)
		return nil, true
	}
	p.tally.came(end+1, p.last)
	p.out = p.server.answerASCII(ctx, p.tally, p.units, p.buf[:end+1], p.out)
	p.drop(end + 1)
	return p.out, true
}
