package line

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

	"fieldgate/internal/modbus"
)

// How long a lost answer is reckoned with, as multiples of the longest time an
// answer may take; the package comment has the rule.
const (
	holdTimes   = 2  // no request that it could be taken for is sent
	fenceTimes  = 10 // a fence goes before such a request
	mostOwed    = 16 // answers remembered for one unit; a unit that owes more is held
	mostFence   = 8  // lengths tried for a fence
	bitsPerByte = 8

	// mostAlike is how many requests in a row may be answered that only their
	// order tells apart.
	mostAlike = 128
	// repeatsFor is how long a unit is mistrusted that has answered twice.
	repeatsFor = time.Minute
	// mostDisputed is how many refusals in a row are taken for those of requests
	// given up. A unit that refuses all it is asked would have every one
	// disputed, and each would cost its whole timeout.
	mostDisputed = 3
	// deafFor is how long the status request is not made to a unit that was seen
	// to ignore it.
	deafFor = 24 * time.Hour
)

// owed is an answer that did not come.
type owed struct {
	req   modbus.PDU
	sent  time.Time     // when the request had left
	limit time.Duration // the longest an answer may take
}

// ledger is what one unit owes. Only requests the unit alone can answer are in
// it. The zero value owes nothing. It is pure but for the times it is given.
type ledger struct {
	owed    []owed        // oldest first
	slowest time.Duration // the longest answer time seen lately, late answers included

	good    [modbus.ReadInputRegisters + 1]modbus.PDU // by function: the longest read that was answered
	last    modbus.PDU                                // the last request answered
	alike   int                                       // requests in a row whose answers only their order told apart
	repeats time.Time                                 // until then the unit is expected to answer twice

	disputes int // refusals in a row that were disputed

	deaf     time.Time // until then it gets no status requests
	deafness time.Time // an answer until then shows that it ignored the last one; zero: it did not
}

// owe notes that req, sent at sent, was given up; timeout is what it was given.
func (g *ledger) owe(req modbus.PDU, sent time.Time, timeout time.Duration) {
	if len(g.owed) == mostOwed {
		g.owed = append(g.owed[:0], g.owed[1:]...)
	}
	g.owed = append(g.owed, owed{append(modbus.PDU(nil), req...), sent, max(timeout, g.slowest)})
	if req.Function() == modbus.ReadExceptionStatus {
		g.deafness = sent.Add(holdTimes * max(timeout, g.slowest))
	}
}

// answered notes that the unit answered req, sent at sent, at a time; refused
// says that it did so by an exception. It answers in order, so what it owed from
// before cannot come any more. The longest answer time fades, so that one bad
// minute is not held against a unit for ever.
func (g *ledger) answered(req modbus.PDU, refused bool, sent, at time.Time) {
	took := at.Sub(sent)
	g.disputes = 0
	f := req.Function()
	switch {
	case f == modbus.ReadExceptionStatus:
		g.deaf, g.deafness = time.Time{}, time.Time{}
		// All answers to it are alike: it may be that to an earlier one.
		if i := slices.IndexFunc(g.owed, func(o owed) bool { return o.req.Function() == f }); i >= 0 {
			limit := g.owed[i].limit
			g.owed = append(append(g.owed[:0], g.owed[i+1:]...), owed{bytes.Clone(req), sent, limit})
			return
		}
	case !g.deafness.IsZero():
		if at.Before(g.deafness) {
			g.deaf = at.Add(deafFor)
		}
		g.deafness = time.Time{}
	}
	g.owed = g.owed[:0]
	g.slowest = max(g.slowest-g.slowest/8, took)
	if step(req) > 0 {
		switch known := g.good[f]; {
		case refused && bytes.Equal(known, req):
			g.good[f] = nil
		case !refused && (known == nil || quantity(known) < quantity(req)):
			g.good[f] = bytes.Clone(req)
		}
	}
	if confusable(g.last, req) {
		g.alike++
	} else {
		g.alike = 0
	}
	g.last = append(g.last[:0], req...)
}

// owes returns which of the requests given up resp answers, -1 for none.
func (g *ledger) owes(resp modbus.PDU) int {
	return slices.IndexFunc(g.owed, func(o owed) bool { return answers(modbus.CheckResponse(o.req, resp)) })
}

// pay looks whether resp, which came at at without being asked for, answers a
// request that was given up. Then that one and those before it are paid.
func (g *ledger) pay(resp modbus.PDU, at time.Time) bool {
	i := g.owes(resp)
	if i < 0 {
		return false
	}
	g.slowest = max(g.slowest, at.Sub(g.owed[i].sent))
	g.owed = append(g.owed[:0], g.owed[i+1:]...)
	return true
}

// disputed reports whether a refusal of req could be that of a request given up,
// and takes it for that. Not for ever: when each of several requests in a row was
// refused once within its own time, they were refused, and nothing is owed.
func (g *ledger) disputed(req modbus.PDU) bool {
	if g.disputes >= mostDisputed || req.Function() == modbus.ReadExceptionStatus {
		return false
	}
	for i, o := range g.owed {
		if o.req.Function() == req.Function() {
			g.owed = append(g.owed[:0], g.owed[i+1:]...)
			g.disputes++
			return true
		}
	}
	return false
}

// repeated looks whether resp, which came at at after another request had been
// sent, is the last answer once more.
func (g *ledger) repeated(resp modbus.PDU, at time.Time) bool {
	if len(g.last) == 0 || modbus.CheckResponse(g.last, resp) != nil {
		return false
	}
	g.repeats = at.Add(repeatsFor)
	return true
}

// forget drops what is so long ago that it will not come.
func (g *ledger) forget(now time.Time) {
	n := 0
	for _, o := range g.owed {
		if now.Sub(o.sent) < fenceTimes*max(o.limit, g.slowest) {
			g.owed[n] = o
			n++
		}
	}
	g.owed = g.owed[:n]
}

// next says what has to happen before req may be sent at now: nothing (nil and
// a zero time), a fence first, or nothing until a time.
func (g *ledger) next(req modbus.PDU, now time.Time) (fence modbus.PDU, wait time.Time) {
	if len(g.owed) == 0 {
		switch {
		case now.Before(g.repeats) && confusable(g.last, req):
			return g.fence(req, now), time.Time{}
		case g.alike >= mostAlike && confusable(g.last, req):
			return g.shorter(req, quantity(req), req), time.Time{}
		}
		return nil, time.Time{}
	}
	g.forget(now)
	if !g.confuses(req) {
		return nil, time.Time{}
	}
	if len(g.owed) < mostOwed {
		if fence = g.fence(req, now); fence != nil {
			return fence, time.Time{}
		}
	}
	for _, o := range g.owed {
		if confusable(o.req, req) {
			wait = later(wait, o.sent.Add(holdTimes*max(o.limit, g.slowest)))
		}
	}
	if !wait.After(now) {
		wait = time.Time{}
	}
	return nil, wait
}

// confuses reports whether something owed could be taken for the answer to req.
func (g *ledger) confuses(req modbus.PDU) bool {
	for _, o := range g.owed {
		if confusable(o.req, req) {
			return true
		}
	}
	return false
}

// fence returns a request whose answer is like none that is owed and unlike that
// of req, and that does no harm: a read of fewer of the registers or bits that
// req reads, or of some that the unit was read before, or else the status
// request (function 7), unless the unit is known to ignore it. An answer to that
// is worth as many as there were (see answered). Nil when there is none.
func (g *ledger) fence(req modbus.PDU, now time.Time) modbus.PDU {
	status := modbus.PDU{byte(modbus.ReadExceptionStatus)}
	if now.Before(g.deaf) || confusable(status, req) {
		status = nil
	}
	if status != nil && g.disputes > 0 && !g.confuses(status) {
		return status // a read would be refused too, and disputed again
	}
	if f := g.shorter(req, quantity(req), req); f != nil {
		return f
	}
	for _, read := range g.good {
		by := step(read)
		if f := g.shorter(read, min(quantity(read), mostFence*by)+by, req); f != nil {
			return f
		}
	}
	return status
}

// shorter returns read with a quantity of less than n for a fence before req; nil
// when there is none.
func (g *ledger) shorter(read modbus.PDU, n int, req modbus.PDU) modbus.PDU {
	by := step(read)
	if by == 0 || n <= by {
		return nil
	}
	f := append(modbus.PDU(nil), read[:5]...)
	for range mostFence {
		if n <= by {
			return nil
		}
		n -= by
		binary.BigEndian.PutUint16(f[3:], uint16(n))
		if !confusable(f, req) && !g.confuses(f) {
			return f
		}
	}
	return nil
}

// step is by how much the quantity of a read has to change for its answer to have
// another length: fewer bits in as many bytes look the same. 0: it is no read.
func step(req modbus.PDU) int {
	switch req.Function() {
	case modbus.ReadCoils, modbus.ReadDiscreteInputs:
		return bitsPerByte
	case modbus.ReadHoldingRegisters, modbus.ReadInputRegisters:
		return 1
	}
	return 0
}

// quantity is that of a read, 0 of anything else.
func quantity(req modbus.PDU) int {
	if step(req) == 0 {
		return 0
	}
	return int(binary.BigEndian.Uint16(req[3:]))
}

// confusable reports whether the normal answer to old could be taken for that to
// req, both to one unit; see disputed for exceptions. The answer to a write names
// what was written, all of it or the place.
func confusable(old, req modbus.PDU) bool {
	f := req.Function()
	if old.Function() != f {
		return false
	}
	const place = 5 // function, address, quantity
	switch f {
	case modbus.WriteSingleCoil, modbus.WriteSingleRegister, modbus.MaskWriteRegister, modbus.WriteFileRecord:
		return bytes.Equal(old, req)
	case modbus.WriteMultipleCoils, modbus.WriteMultipleRegisters:
		return bytes.Equal(old[:place], req[:place])
	}
	a, knownA := modbus.ResponseLen(old)
	b, knownB := modbus.ResponseLen(req)
	return !knownA || !knownB || a == b
}

// answers reports whether the outcome of modbus.CheckResponse is an answer: a
// normal response or an exception.
func answers(err error) bool {
	if err == nil {
		return true
	}
	_, refused := err.(modbus.Exception)
	return refused
}
