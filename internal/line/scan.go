package line

import (
	"bytes"

	"fieldgate/internal/modbus"
)

// heard says what the bytes received so far may be.
type heard uint8

const (
	heardNothing heard = iota // nothing that could become the answer
	heardPart                 // the front of what may become the answer
	heardOpen                 // the same, of a length that only silence ends
	heardBroken               // the whole answer by its front and length, but the checksum is wrong
	heardAnswer               // the answer
)

// scan is one look at what a serial line brought after a request.
type scan struct {
	heard      heard
	missing    int        // with heardPart: bytes of the answer still to come, 0 if unknown
	start, end int        // of the answer
	pdu        modbus.PDU // of the answer; shares the buffer with RTU, not with ASCII
	err        error      // the outcome of modbus.CheckResponse: nil or an Exception
}

// question is what a scan compares with.
type question struct {
	unit modbus.UnitID
	req  modbus.PDU
	adu  []byte // the frame as it was sent
	// echo: the wire is known to bring back what we send. The answer to some
	// writes is equal to the request, so the first copy is not taken for it.
	echo bool
}

// selfEqual reports whether the normal answer to req is req itself.
func selfEqual(req modbus.PDU) bool {
	switch req.Function() {
	case modbus.WriteSingleCoil, modbus.WriteSingleRegister, modbus.MaskWriteRegister,
		modbus.Diagnostics, modbus.WriteFileRecord:
		return true
	}
	return false
}

// heardEcho returns where our own request ends in buf, 0 when it is not there.
func (q *question) heardEcho(buf []byte) int {
	if i := bytes.Index(buf, q.adu); i >= 0 {
		return i + len(q.adu)
	}
	return 0
}

// skip returns how many bytes at the front of buf are our own request, or may
// become it with more bytes (whole is false then). Where the answer may equal
// the request, only an echo that is known of is skipped.
func (q *question) skip(buf []byte, last bool) (n int, whole bool) {
	if selfEqual(q.req) && !q.echo {
		return 0, true
	}
	if end := q.heardEcho(buf); end > 0 {
		return end, true
	}
	switch {
	case q.echo && selfEqual(q.req):
		return len(buf), false
	case len(buf) < len(q.adu) && bytes.HasPrefix(q.adu, buf):
		return 0, last && !q.echo
	}
	return 0, true
}

// scanRTU looks for the answer in buf. Noise may stand before it, and whole
// frames of others. last says that nothing more will come.
func scanRTU(buf []byte, q *question, last bool) scan {
	from, whole := q.skip(buf, last)
	s := scan{}
	if !whole {
		if len(buf) > 0 {
			s.heard = heardPart
		}
		return s
	}
	for i := from; i < len(buf); i++ {
		b := buf[i:]
		if modbus.UnitID(b[0]) != q.unit {
			continue
		}
		if len(b) == 1 {
			s.heard = max(s.heard, heardPart)
			break
		}
		if b[1]&0x7F != byte(q.req.Function()) {
			continue
		}
		n, known := responseLen(b, q.req)
		switch {
		case n == 0 && !last:
			s.heard = max(s.heard, heardOpen)
			continue
		case n == 0:
			n = len(b) // silence has ended it
		case !known || len(b) < n:
			if s.heard = max(s.heard, heardPart); known {
				s.missing = n - len(b)
			}
			continue
		}
		_, pdu, err := modbus.DecodeRTU(b[:n])
		if err != nil {
			if want, known := modbus.RTUResponseLen(b, q.req); known && want == n {
				s.heard = max(s.heard, heardBroken)
			}
			continue
		}
		if err := modbus.CheckResponse(q.req, pdu); answers(err) {
			return scan{heard: heardAnswer, start: i, end: i + n, pdu: pdu, err: err}
		}
		i += n - 1 // a whole frame, but not the answer
	}
	return s
}

// responseLen is modbus.RTUResponseLen, but believes the byte count of a read
// rather than the request: a count that does not fit belongs to another frame,
// perhaps a late one, which ends where its count says.
func responseLen(b []byte, req modbus.PDU) (n int, known bool) {
	switch modbus.FunctionCode(b[1]) {
	case modbus.ReadCoils, modbus.ReadDiscreteInputs, modbus.ReadHoldingRegisters,
		modbus.ReadInputRegisters, modbus.ReadWriteRegisters:
		if len(b) < 3 {
			return 3, false
		}
		return 3 + int(b[2]) + 2, true
	}
	return modbus.RTUResponseLen(b, req)
}

// scanASCII looks for the answer in buf.
func scanASCII(buf []byte, q *question, last bool) scan {
	from, whole := q.skip(buf, last)
	s := scan{}
	if !whole {
		if len(buf) > 0 {
			s.heard = heardPart
		}
		return s
	}
	for i := from; ; {
		colon := bytes.IndexByte(buf[i:], ':')
		if colon < 0 {
			return s
		}
		i += colon
		n := bytes.IndexByte(buf[i:], '\n') + 1
		if again := bytes.LastIndexByte(buf[i:max(i+n, i)], ':'); again > 0 {
			i += again // ':' begins a frame wherever it comes (SER 2.5.2.1)
			continue
		}
		if n == 0 {
			if asciiFront(buf[i:], q) {
				s.heard = heardPart
			}
			i++
			continue
		}
		unit, pdu, err := modbus.DecodeASCII(buf[i : i+n])
		switch {
		case err != nil:
			if asciiFront(buf[i:i+n], q) && asciiWhole(n, q) {
				s.heard = max(s.heard, heardBroken)
			}
		case unit == q.unit:
			if err := modbus.CheckResponse(q.req, pdu); answers(err) {
				return scan{heard: heardAnswer, start: i, end: i + n, pdu: pdu, err: err}
			}
		}
		i += n
	}
}

// asciiFront reports whether b, from its ':', may be the front of the answer or
// of an exception.
func asciiFront(b []byte, q *question) bool {
	f := byte(q.req.Function())
	for _, f := range [2]byte{f, f | 0x80} {
		adu := modbus.AppendASCII(make([]byte, 0, modbus.MinASCII), q.unit, modbus.PDU{f})
		n := min(len(b), 5) // ':', unit, function
		if bytes.EqualFold(b[:n], adu[:n]) {
			return true
		}
	}
	return false
}

// asciiWhole reports whether n characters are as many as the answer or an
// exception has.
func asciiWhole(n int, q *question) bool {
	const around = 1 + 2 + 2 + 2 // ':', unit, LRC, CR LF
	want, known := modbus.ResponseLen(q.req)
	return !known || n == around+2*want || n == around+2*2
}

// splitRTU calls each with every frame in b, which is what no answer was found
// in, and returns how many bytes belong to none. A frame ends where its CRC
// comes out right.
func splitRTU(b []byte, each func(modbus.UnitID, modbus.PDU)) (noise int) {
	for len(b) > 0 {
		n, found := modbus.RTUFrameEnd(b)
		if !found {
			b = b[1:]
			noise++
			continue
		}
		each(modbus.UnitID(b[0]), modbus.PDU(b[1:n-2]))
		b = b[n:]
	}
	return noise
}

// splitASCII does the same with ASCII frames.
func splitASCII(b []byte, each func(modbus.UnitID, modbus.PDU)) (noise int) {
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte{'\n'})
		end := len(b) - len(rest)
		start := max(bytes.LastIndexByte(line, ':'), 0)
		if unit, pdu, err := modbus.DecodeASCII(b[start:end]); err == nil {
			each(unit, pdu)
			noise += start
		} else {
			noise += end
		}
		b = b[end:]
	}
	return noise
}
