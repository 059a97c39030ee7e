package line

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"fieldgate/internal/modbus"
)

// ask returns the question of a request in a framing.
func ask(f modbus.Framing, unit modbus.UnitID, req modbus.PDU, echo bool) *question {
	return &question{unit: unit, req: req, adu: f.Append(nil, 0, unit, req), echo: echo}
}

func scanOf(f modbus.Framing) func([]byte, *question, bool) scan {
	if f == modbus.FramingASCII {
		return scanASCII
	}
	return scanRTU
}

// TestScanPrefixes: whatever part of an answer has come, with whatever before
// it, it is taken once it is whole and not before.
func TestScanPrefixes(t *testing.T) {
	requests := []modbus.PDU{
		modbus.ReadRequest(modbus.HoldingRegisters, 0x0201, 1), // its echo begins like an answer
		modbus.ReadRequest(modbus.HoldingRegisters, 7, 125),
		modbus.ReadRequest(modbus.Coils, 7, 9),
		modbus.WriteRegistersRequest(7, []uint16{1, 2}),
		modbus.WriteRegisterRequest(7, 8),
		modbus.ReadWriteRequest(1, 2, 3, []uint16{4}),
	}
	for _, f := range []modbus.Framing{modbus.FramingRTU, modbus.FramingASCII} {
		for _, req := range requests {
			resp := right(request{pdu: req})
			if req.Function() == modbus.ReadWriteRegisters {
				resp = modbus.PDU{byte(modbus.ReadWriteRegisters), 4, 1, 2, 3, 4}
			}
			answer := f.Append(nil, 0, 3, resp)
			for _, echo := range []bool{false, true} {
				q := ask(f, 3, req, echo)
				fronts := map[string][]byte{
					"nothing":      nil,
					"noise":        {0x00, 0xFF},
					"the unit id":  {3},
					"another unit": f.Append(nil, 0, 4, resp),
				}
				if f == modbus.FramingASCII {
					delete(fronts, "the unit id")
				}
				if echo {
					fronts = map[string][]byte{"echo": q.adu}
				}
				for name, front := range fronts {
					all := append(bytes.Clone(front), answer...)
					for n := range all {
						if s := scanOf(f)(all[:n], q, false); s.heard == heardAnswer {
							t.Fatalf("%v %v after %s: taken after %d of %d bytes", f, req.Function(), name, n, len(all))
						}
					}
					s := scanOf(f)(all, q, false)
					if s.heard != heardAnswer || s.start != len(front) || s.end != len(all) || !bytes.Equal(s.pdu, resp) {
						t.Errorf("%v %v after %s: %+v", f, req.Function(), name, s)
					}
				}
			}
		}
	}
}

func TestScanHeard(t *testing.T) {
	read := modbus.ReadRequest(modbus.HoldingRegisters, 0, 2)
	good := rtu(3, right(request{pdu: read}))
	broken := bytes.Clone(good)
	broken[4] ^= 1
	shorter := rtu(3, modbus.PDU{3, 2, 1, 2})
	tests := []struct {
		name string
		req  modbus.PDU
		echo bool
		buf  []byte
		last bool
		want heard
	}{
		{"nothing", read, false, nil, false, heardNothing},
		{"noise", read, false, []byte{1, 2, 4}, false, heardNothing},
		{"unit id", read, false, []byte{3}, false, heardPart},
		{"front", read, false, good[:5], false, heardPart},
		{"broken", read, false, broken, false, heardBroken},
		{"another length", read, false, shorter, false, heardNothing},
		{"another length, broken", read, false, append(shorter[:5:5], 0, 0), false, heardNothing},
		{"exception", read, false, rtu(3, modbus.PDU{0x83, 2}), false, heardAnswer},
		{"exception 0", read, false, rtu(3, modbus.PDU{0x83, 0}), false, heardNothing},
		{"other exception", read, false, rtu(3, modbus.PDU{0x84, 2}), false, heardNothing},
		{"echo of a write", modbus.WriteRegisterRequest(1, 2), true, rtu(3, modbus.WriteRegisterRequest(1, 2)), true, heardNothing},
		{"open, more may come", modbus.PDU{100, 1}, false, rtu(3, modbus.PDU{100, 9, 9}), false, heardOpen},
		{"open, ended by silence", modbus.PDU{100, 1}, false, rtu(3, modbus.PDU{100, 9, 9}), true, heardAnswer},
	}
	for _, tt := range tests {
		if s := scanRTU(tt.buf, ask(modbus.FramingRTU, 3, tt.req, tt.echo), tt.last); s.heard != tt.want {
			t.Errorf("%s: %+v, want heard %d", tt.name, s, tt.want)
		}
	}
	answer := modbus.AppendASCII(nil, 3, right(request{pdu: read}))
	bad := bytes.Clone(answer)
	bad[len(bad)-3] ^= 1
	for _, tt := range []struct {
		name string
		buf  []byte
		want heard
	}{
		{"nothing", nil, heardNothing},
		{"noise", []byte("?\r\n:::"), heardPart},
		{"front", answer[:4], heardPart},
		{"front of another unit", []byte(":0403"), heardNothing},
		{"front of an exception", []byte(":0383"), heardPart},
		{"broken", bad, heardBroken},
		{"broken and of another length", append(bytes.Clone(bad[:7]), "\r\n"...), heardNothing},
	} {
		if s := scanASCII(tt.buf, ask(modbus.FramingASCII, 3, read, false), false); s.heard != tt.want {
			t.Errorf("ASCII %s: %+v, want heard %d", tt.name, s, tt.want)
		}
	}
}

// FuzzScan: of any bytes, what is taken for an answer is a frame with a right
// checksum, of the unit, that answers the request, and never the echo alone.
func FuzzScan(f *testing.F) {
	read := modbus.ReadRequest(modbus.HoldingRegisters, 0, 2)
	f.Add([]byte(read), rtu(3, right(request{pdu: read})), true, false, true)
	f.Add([]byte(read), modbus.AppendASCII(nil, 3, right(request{pdu: read})), false, true, true)
	f.Add([]byte(modbus.WriteCoilRequest(1, true)), rtu(3, modbus.WriteCoilRequest(1, true)), true, true, true)
	f.Add([]byte{43, 14, 1, 0}, rtu(3, modbus.PDU{43, 14, 1, 1, 0, 0, 1, 0, 1, 'x'}), true, false, false)
	f.Fuzz(func(t *testing.T, req, buf []byte, isRTU, echo, last bool) {
		if modbus.CheckRequest(req) != nil {
			return
		}
		framing := modbus.FramingASCII
		if isRTU {
			framing = modbus.FramingRTU
		}
		q := ask(framing, 3, req, echo)
		s := scanOf(framing)(buf, q, last)
		if s.heard == heardAnswer {
			adu := buf[s.start:s.end]
			var unit modbus.UnitID
			var pdu modbus.PDU
			var err error
			if isRTU {
				unit, pdu, err = modbus.DecodeRTU(adu)
			} else {
				unit, pdu, err = modbus.DecodeASCII(adu)
			}
			var refused modbus.Exception
			check := modbus.CheckResponse(req, pdu)
			if err != nil || unit != 3 || !bytes.Equal(pdu, s.pdu) || check != nil && !errors.As(check, &refused) || check != s.err {
				t.Errorf("% x taken for the answer to % x: unit %d, % x, %v, %v", adu, req, unit, []byte(pdu), err, check)
			}
			if echo && selfEqual(req) && bytes.Equal(adu, q.adu) && bytes.Count(buf, q.adu) < 2 {
				t.Errorf("the echo was taken for the answer: % x", buf)
			}
		}
		n, frames := 0, 0
		count := func(_ modbus.UnitID, pdu modbus.PDU) { n += len(pdu); frames++ }
		if noise := splitRTU(buf, count); noise+n+3*frames != len(buf) {
			t.Errorf("splitRTU: %d of noise and %d of %d frames are not %d", noise, n, frames, len(buf))
		}
		n, frames = 0, 0
		if noise := splitASCII(buf, count); noise+2*n+7*frames != len(buf) {
			t.Errorf("splitASCII: %d of noise and %d of %d frames are not %d", noise, n, frames, len(buf))
		}
	})
}

// FuzzMBAP: of any bytes from a device, nothing but the answer to a request on
// its way is delivered, and no frame is read past.
func FuzzMBAP(f *testing.F) {
	read := modbus.ReadRequest(modbus.HoldingRegisters, 0, 2)
	good := modbus.AppendTCP(nil, 1, 3, right(request{pdu: read}))
	f.Add(good)
	f.Add(append(bytes.Clone(good[:4]), good...))
	f.Add(append(modbus.AppendTCP(nil, 9, 3, read), good...))
	l := New(tcpBus("", modbus.FramingTCP), quietLog(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		one := newSolo(l)
		one.tx, one.in = 1, bytes.Clone(b)
		if resp, done, err := one.frames(3, read); done && err == nil &&
			(modbus.CheckResponse(read, resp) != nil || !bytes.Contains(b, good[:4])) {
			t.Errorf("% x taken out of % x", []byte(resp), b)
		}
		m := newMux(l)
		m.wire = &stream{}
		s, _ := m.enter(3, read)
		used, err := m.frames(b)
		if used > len(b) || err == nil && len(b)-used >= modbus.MaxTCP {
			t.Errorf("used %d of %d: %v", used, len(b), err)
		}
		select {
		case <-s.done:
		default:
			return
		}
		if s.err == nil && (modbus.CheckResponse(read, s.resp) != nil ||
			!bytes.Contains(b, append(binary.BigEndian.AppendUint16(nil, s.tx), 0, 0))) {
			t.Errorf("% x delivered out of % x", []byte(s.resp), b)
		}
	})
}
