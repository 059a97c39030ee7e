package line

import (
	"encoding/binary"
	"time"

	"fieldgate/internal/modbus"
)

// How long a lost answer is reckoned with, as multiples of the longest time an
// answer may take; the package comment has the rule.
const (
	holdTimes   = 2  // no request that it could be taken for is sent
	fenceTimes  = 10 // a fence goes before such a request
	mostOwed    = 6  // answers remembered for one unit; a unit that owes more is held
	mostFence   = 8  // lengths tried for a fence
	bitsPerByte = 8
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
}

// owe notes that req, sent at sent, was given up; timeout is what it was given.
func (g *ledger) owe(req modbus.PDU, sent time.Time, timeout time.Duration) {
	if len(g.owed) == mostOwed {
		g.owed = append(g.owed[:0], g.owed[1:]...)
	}
	g.owed = append(g.owed, owed{append(modbus.PDU(nil), req...), sent, max(timeout, g.slowest)})
}

// answered notes that the unit answered a request after took. It answers in
// order, so what it owed from before cannot come any more. The longest answer
// time fades, so that one bad minute is not held against a unit for ever.
func (g *ledger) answered(took time.Duration) {
	g.owed = g.owed[:0]
	g.slowest = max(g.slowest-g.slowest/8, took)
}

// pay looks whether resp, which came at at without being asked for, answers a
// request that was given up. Then that one and those before it are paid.
func (g *ledger) pay(resp modbus.PDU, at time.Time) bool {
	for i, o := range g.owed {
		if answers(modbus.CheckResponse(o.req, resp)) {
			g.slowest = max(g.slowest, at.Sub(o.sent))
			g.owed = append(g.owed[:0], g.owed[i+1:]...)
			return true
		}
	}
	return false
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
		return nil, time.Time{}
	}
	g.forget(now)
	if !g.confuses(req) {
		return nil, time.Time{}
	}
	if len(g.owed) < mostOwed {
		if fence = g.fence(req); fence != nil {
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

// fence returns a read of fewer of the registers or bits that req reads, whose
// answer is like none that is owed and unlike that of req; nil when there is
// none.
func (g *ledger) fence(req modbus.PDU) modbus.PDU {
	step := uint16(1)
	switch req.Function() {
	case modbus.ReadCoils, modbus.ReadDiscreteInputs:
		step = bitsPerByte // fewer bits in as many bytes look the same
	case modbus.ReadHoldingRegisters, modbus.ReadInputRegisters:
	default:
		return nil
	}
	f := append(modbus.PDU(nil), req[:5]...)
	n := binary.BigEndian.Uint16(req[3:])
	for range mostFence {
		if n <= step {
			return nil
		}
		n -= step
		binary.BigEndian.PutUint16(f[3:], n)
		if !confusable(f, req) && !g.confuses(f) {
			return f
		}
	}
	return nil
}

// confusable reports whether the answer to old could be taken for the answer to
// req, both to one unit. An exception always could; that costs a request, never
// a wrong value. The answer to a write names what was written, so it is taken
// for another's only where both wrote the same.
func confusable(old, req modbus.PDU) bool {
	f := req.Function()
	if old.Function() != f || f.Writes() && f != modbus.ReadWriteRegisters {
		return false
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
