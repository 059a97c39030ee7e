package modbus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestCheckRequest(t *testing.T) {
	for _, c := range []struct {
		name      string
		req       string
		exception Exception // 0: the request is right
		text      string    // part of the error
	}{
		{"empty", "", IllegalDataValue, "0 bytes are outside 1-253"},
		{"function 0", "00 0000 0001", IllegalFunction, "code 0 is outside 1-127"},
		{"exception bit", "83 0000 0001", IllegalFunction, "code 131 is outside 1-127"},
		{"too long", "41" + strings.Repeat("00", 253), IllegalDataValue, "254 bytes"},
		{"longest", "41" + strings.Repeat("00", 252), 0, ""},

		{"coils 1", "01 0000 0001", 0, ""},
		{"coils 2000", "01 0000 07D0", 0, ""},
		{"coils 2001", "01 0000 07D1", IllegalDataValue, "quantity 2001 is outside 1-2000"},
		{"coils 0", "01 0000 0000", IllegalDataValue, "quantity 0 is outside 1-2000"},
		{"coils short", "01 0000 00", IllegalDataValue, "4 bytes, want 5"},
		{"coils long", "01 0000 0001 00", IllegalDataValue, "6 bytes, want 5"},
		{"discrete to the end", "02 FFFF 0001", 0, ""},
		{"discrete past the end", "02 FFFF 0002", IllegalDataAddress, "address 65535 and quantity 2 pass 65535"},
		{"holding 125", "03 0000 007D", 0, ""},
		{"holding 126", "03 0000 007E", IllegalDataValue, "quantity 126 is outside 1-125"},
		{"holding to the end", "03 FF83 007D", 0, ""},
		{"holding past the end", "03 FF84 007D", IllegalDataAddress, "pass 65535"},
		{"quantity is judged before address", "03 FFFF 007E", IllegalDataValue, "quantity"},
		{"input 126", "04 0000 007E", IllegalDataValue, "quantity 126"},

		{"coil on", "05 0000 FF00", 0, ""},
		{"coil off", "05 0000 0000", 0, ""},
		{"coil one", "05 0000 0001", IllegalDataValue, "value 0x0001 is neither"},
		{"coil short", "05 0000", IllegalDataValue, "3 bytes, want 5"},
		{"register", "06 FFFF FFFF", 0, ""},
		{"register long", "06 0000 0000 00", IllegalDataValue, "6 bytes, want 5"},

		{"exception status long", "07 00", IllegalDataValue, "2 bytes, want 1"},
		{"event counter long", "0B 00", IllegalDataValue, "2 bytes, want 1"},
		{"event log long", "0C 00", IllegalDataValue, "2 bytes, want 1"},
		{"server id long", "11 00", IllegalDataValue, "2 bytes, want 1"},

		{"diagnostics short", "08 0000", IllegalDataValue, "do not fit"},
		{"diagnostics odd", "08 0000 00 01 02", IllegalDataValue, "do not fit"},
		{"diagnostics loopback of two words", "08 0000 1234 5678", 0, ""},
		{"diagnostics counter of two words", "08 000B 0000 0000", IllegalDataValue, "do not fit"},
		{"diagnostics counter", "08 000B 0000", 0, ""},

		{"write coils 1968", "0F 0000 07B0 F6" + strings.Repeat("FF", 246), 0, ""},
		{"write coils 1969", "0F 0000 07B1 F7" + strings.Repeat("FF", 247), IllegalDataValue, "quantity 1969"},
		{"write coils 0", "0F 0000 0000 00", IllegalDataValue, "quantity 0"},
		{"write coils wrong count", "0F 0000 0009 01 FF", IllegalDataValue, "byte count 1 and 1 bytes of values, want 2"},
		{"write coils count lies", "0F 0000 0009 02 FF", IllegalDataValue, "byte count 2 and 1 bytes"},
		{"write coils past the end", "0F FFFF 0002 01 03", IllegalDataAddress, "pass 65535"},
		{"write registers 123", "10 0000 007B F6" + strings.Repeat("00", 246), 0, ""},
		{"write registers 124", "10 0000 007C F8" + strings.Repeat("00", 247), IllegalDataValue, "quantity 124"},
		{"write registers odd", "10 0000 0001 02 00", IllegalDataValue, "byte count 2 and 1 bytes"},
		{"write registers surplus", "10 0000 0001 02 0000 00", IllegalDataValue, "byte count 2 and 3 bytes"},
		{"write registers short", "10 0000 0001", IllegalDataValue, "5 bytes are too few"},
		{"write registers past the end", "10 FFFF 0002 04 00000000", IllegalDataAddress, "pass 65535"},

		{"read file", "14 07 06 0001 0000 0001", 0, ""},
		{"read file count", "14 06 06 0001 0000 0001", IllegalDataValue, "byte count"},
		{"read file of 8", "14 08 06 0001 0000 0001 00", IllegalDataValue, "no multiple of 7"},
		{"read file type", "14 07 05 0001 0000 0001", IllegalDataAddress, "reference type 5"},
		{"read file 0", "14 07 06 0000 0000 0001", IllegalDataAddress, "file 0"},
		{"read file nothing", "14 07 06 0001 0000 0000", IllegalDataValue, "record length 0"},
		{"read file last record", "14 07 06 0001 270F 0001", 0, ""},
		{"read file past the end", "14 07 06 0001 270F 0002", IllegalDataAddress, "pass 9999"},
		{"read file too much", "14 07 06 0001 0000 007D", IllegalDataValue, "254 bytes, more than 253"},
		{"write file", "15 09 06 0001 0000 0001 1234", 0, ""},
		{"write file count", "15 08 06 0001 0000 0001 1234", IllegalDataValue, "byte count"},
		{"write file cut", "15 09 06 0001 0000 0002 1234", IllegalDataValue, "cut short"},
		{"write file crumbs", "15 0B 06 0001 0000 0001 1234 0600", IllegalDataValue, "cut short"},
		{"write file type", "15 09 07 0001 0000 0001 1234", IllegalDataAddress, "reference type 7"},

		{"mask", "16 FFFF 0000 0000", 0, ""},
		{"mask short", "16 0000 0000", IllegalDataValue, "5 bytes, want 7"},
		{"read write", "17 FFFF 0001 FFFF 0001 02 0000", 0, ""},
		{"read write reads 125, writes 121", "17 0000 007D 0000 0079 F2" + strings.Repeat("00", 242), 0, ""},
		{"read write reads 126", "17 0000 007E 0000 0001 02 0000", IllegalDataValue, "quantity 126 is outside 1-125"},
		{"read write writes 122", "17 0000 0001 0000 007A F4" + strings.Repeat("00", 243), IllegalDataValue, "quantity 122 is outside 1-121"},
		{"read write reads past the end", "17 FFFF 0002 0000 0001 02 0000", IllegalDataAddress, "pass 65535"},
		{"read write writes past the end", "17 0000 0001 FFFF 0002 04 00000000", IllegalDataAddress, "pass 65535"},
		{"read write count", "17 0000 0001 0000 0001 04 0000", IllegalDataValue, "byte count 4"},
		{"read write short", "17 0000 0001 0000 0001", IllegalDataValue, "9 bytes are too few"},
		{"fifo", "18 0000", 0, ""},
		{"fifo short", "18 00", IllegalDataValue, "2 bytes, want 3"},

		{"encapsulated nothing", "2B", IllegalDataValue, "no MEI type"},
		{"encapsulated CANopen", "2B 0D 01 02 03", 0, ""},
		{"device id", "2B 0E 04 80", 0, ""},
		{"device id 0", "2B 0E 00 00", IllegalDataValue, "device id code 0"},
		{"device id 5", "2B 0E 05 00", IllegalDataValue, "device id code 5"},
		{"device id long", "2B 0E 01 00 00", IllegalDataValue, "5 bytes, want 4"},
		{"unknown function", "63 01 02", 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := CheckRequest(unhexed(t, c.req))
			if c.exception == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, ErrInvalidRequest) || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("%v, want one of %q", err, c.text)
			}
			if got := ExceptionFor(err); got != c.exception {
				t.Errorf("a server answers %v, want %v", got, c.exception)
			}
		})
	}
}

func TestCheckResponse(t *testing.T) {
	for _, c := range []struct {
		name, req, resp string
		text            string // part of the error; "": none
	}{
		{"empty", "03 0000 0001", "", "empty"},
		{"too long", "63", "63" + strings.Repeat("00", 253), "254 bytes are more than 253"},
		{"another function", "03 0000 0001", "04 02 0000", "function 4 instead of 3"},
		{"exception of another function", "03 0000 0001", "84 02", "function 132 instead of 3"},
		{"exception without code", "03 0000 0001", "83", "malformed exception"},
		{"exception 0", "03 0000 0001", "83 00", "malformed exception"},
		{"exception with more", "03 0000 0001", "83 02 00", "malformed exception"},
		{"one register short", "03 0000 0002", "03 02 0000", "4 bytes, want 6"},
		{"one register more", "03 0000 0002", "03 06 0000 0000 0000", "8 bytes, want 6"},
		{"byte count lies", "03 0000 0002", "03 02 0000 0000", "byte count 2, want 4"},
		{"input of another length", "04 0000 0001", "04 04 0000 0000", "6 bytes, want 4"},
		{"coils one byte short", "01 0000 0009", "01 01 FF", "3 bytes, want 4"},
		{"coils byte count", "01 0000 0008", "01 02 FF", "byte count 2, want 1"},
		{"coils right", "01 0000 0009", "01 02 FF FF", ""},
		{"coil of another address", "05 0001 FF00", "05 0002 FF00", "echo"},
		{"coil of another value", "05 0001 FF00", "05 0001 0000", "echo"},
		{"register of another address", "06 0001 0005", "06 0002 0005", "echo"},
		{"register of another value", "06 0001 0005", "06 0001 0006", "echo"},
		{"register too long", "06 0001 0005", "06 0001 0005 00", "6 bytes, want 5"},
		{"coils of another address", "0F 0001 0001 01 01", "0F 0002 0001", "echo"},
		{"registers of another quantity", "10 0001 0001 02 0000", "10 0001 0002", "echo"},
		{"registers echo the whole request", "10 0001 0001 02 0000", "10 0001 0001 02 0000", "8 bytes, want 5"},
		{"mask of another mask", "16 0001 00FF 0001", "16 0001 00FF 0002", "echo"},
		{"read write too short", "17 0000 0002 0000 0001 02 0000", "17 02 0000", "4 bytes, want 6"},
		{"exception status", "07", "07 00 00", "3 bytes, want 2"},
		{"event counter", "0B", "0B 0000", "3 bytes, want 5"},
		{"event log short", "0C", "0C 05 0000 0108 01", "byte count"},
		{"event log count", "0C", "0C 07 0000 0108 0121", "byte count"},
		{"event log of 64 events", "0C", "0C 46 0000 0108 0121" + strings.Repeat("20", 64), ""},
		{"event log of 65 events", "0C", "0C 47 0000 0108 0121" + strings.Repeat("20", 65), "byte count"},
		{"server id count", "11", "11 03 2A FF", "byte count"},
		{"server id empty", "11", "11 00", "byte count"},
		{"loopback changed", "08 0000 1234", "08 0000 1235", "echo"},
		{"loopback long", "08 0000 1234 5678", "08 0000 1234 5678", ""},
		{"counter", "08 000B 0000", "08 000B 0042", ""},
		{"counter of another kind", "08 000B 0000", "08 000C 0042", "sub-function"},
		{"file header", "14 07 06 0001 0000 0001", "14 04 04 06 1234", "record header"},
		{"file type", "14 07 06 0001 0000 0001", "14 04 03 05 1234", "record header"},
		{"file count", "14 07 06 0001 0000 0001", "14 05 03 06 1234", "byte count"},
		{"fifo of 31", "18 0000", "18 0040 001F" + strings.Repeat("0000", 31), ""},
		{"fifo of 32", "18 0000", "18 0042 0020" + strings.Repeat("0000", 32), "register count 32"},
		{"fifo empty", "18 0000", "18 0002 0000", ""},
		{"fifo short", "18 0000", "18 0002", "too few"},
		{"fifo counts differ", "18 0000", "18 0004 0000 0000", "byte count 4 and register count 0"},
		{"another MEI type", "2B 0E 01 00", "2B 0D 01 01 00 00 00", "MEI type"},
		{"CANopen", "2B 0D 01", "2B 0D 99", ""},
		{"device id objects cut", "2B 0E 01 00", "2B 0E 01 01 00 00 01 00 05 41", "objects do not fit"},
		{"device id more objects", "2B 0E 01 00", "2B 0E 01 01 00 00 01 00 01 41 42", "objects do not fit"},
		{"device id code", "2B 0E 01 00", "2B 0E 02 01 00 00 00", "device id code 2"},
		{"device id more follows", "2B 0E 01 00", "2B 0E 01 01 01 00 00", "more follows"},
		{"device id single", "2B 0E 04 02", "2B 0E 04 81 00 00 01 02 01 41", ""},
		{"device id another single", "2B 0E 04 02", "2B 0E 04 81 00 00 01 01 01 41", "another object than 2"},
		{"device id single with none", "2B 0E 04 02", "2B 0E 04 81 00 00 00", "another object"},
		{"unknown function", "63", "63 01 02 03", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := CheckResponse(unhexed(t, c.req), unhexed(t, c.resp))
			switch {
			case c.text == "" && err != nil:
				t.Error(err)
			case c.text != "" && (!errors.Is(err, ErrBadResponse) || !strings.Contains(err.Error(), c.text)):
				t.Errorf("%v, want one of %q", err, c.text)
			}
		})
	}
	err := CheckResponse(ReadRequest(Coils, 0, 1), PDU{0x81, 0x20})
	if got := Exception(0); !errors.As(err, &got) || got != 0x20 {
		t.Errorf("a vendor's exception 0x20 becomes %v", err)
	}
}

func TestExceptionFor(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Exception
	}{
		{Acknowledge, Acknowledge},
		{fmt.Errorf("unit 7: %w", IllegalDataAddress), IllegalDataAddress},
		{fmt.Errorf("unit 7: %w", ErrNoResponse), GatewayTargetNoResponse},
		{fmt.Errorf("unit 7: %w", ErrNotConnected), GatewayPathUnavailable},
		{fmt.Errorf("unit 7: %w", ErrBadResponse), ServerDeviceFailure},
		{fmt.Errorf("unit 7: %w", ErrInvalidRequest), IllegalDataValue},
		{CheckRequest(ReadRequest(Coils, 65535, 2)), IllegalDataAddress},
		{context.DeadlineExceeded, ServerDeviceFailure},
	} {
		if got := ExceptionFor(c.err); got != c.want {
			t.Errorf("ExceptionFor(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}

// TestOnlyTheAnswerPasses takes random requests and their right answers, and
// holds that no other length and no change of a byte that is not a value passes.
func TestOnlyTheAnswerPasses(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	m := newMemory(65536)
	for range 2000 {
		req := randomRequest(r)
		resp, err := Answer(req, m, testIdentity)
		if err != nil {
			t.Fatalf("% x: %v", req, err)
		}
		if err := CheckResponse(req, resp); err != nil {
			t.Fatalf("% x: % x: %v", req, resp, err)
		}
		checkLengths(t, req, resp)
		for _, other := range []PDU{resp[:len(resp)-1], append(append(PDU(nil), resp...), byte(r.Uint32()))} {
			if err := CheckResponse(req, other); !errors.Is(err, ErrBadResponse) {
				t.Fatalf("% x: a response of %d bytes instead of %d: %v", req, len(other), len(resp), err)
			}
		}
		head := 2 // function and byte count; behind them stand values
		if req.Function().Writes() && req.Function() != ReadWriteRegisters || req.Function() == Diagnostics {
			head = len(resp) // all of it is an echo
		}
		if req.Function() == ReportServerID || req.Function() == EncapsulatedInterface {
			continue
		}
		for i := range head {
			other := append(PDU(nil), resp...)
			other[i] ^= byte(1 + r.IntN(255))
			if err := CheckResponse(req, other); err == nil {
				t.Fatalf("% x: % x passes for % x", req, other, resp)
			}
		}
	}
}

// randomRequest returns a right request that Answer knows.
func randomRequest(r *rand.Rand) PDU {
	span := func(limit int) (addr, n uint16) {
		n = uint16(1 + r.IntN(limit))
		return uint16(r.IntN(65536 - int(n) + 1)), n
	}
	regs := func(n uint16) []uint16 {
		v := make([]uint16, n)
		for i := range v {
			v[i] = uint16(r.Uint32())
		}
		return v
	}
	switch r.IntN(11) {
	case 0, 1:
		t := Table(1 + r.IntN(4))
		addr, n := span(t.MaxRead())
		return ReadRequest(t, addr, n)
	case 2:
		return WriteCoilRequest(uint16(r.Uint32()), r.IntN(2) == 0)
	case 3:
		return WriteRegisterRequest(uint16(r.Uint32()), uint16(r.Uint32()))
	case 4:
		addr, n := span(MaxWriteBits)
		v := make([]bool, n)
		for i := range v {
			v[i] = r.IntN(2) == 0
		}
		return WriteCoilsRequest(addr, v)
	case 5:
		addr, n := span(MaxWriteRegisters)
		return WriteRegistersRequest(addr, regs(n))
	case 6:
		return MaskWriteRequest(uint16(r.Uint32()), uint16(r.Uint32()), uint16(r.Uint32()))
	case 7:
		raddr, rn := span(MaxReadWriteRead)
		waddr, wn := span(MaxReadWriteRegisters)
		return ReadWriteRequest(raddr, rn, waddr, regs(wn))
	case 8:
		for {
			if req := DiagnosticsRequest(0, regs(uint16(1+r.IntN(4)))...); !endsEarly(req) {
				return req
			}
		}
	case 9:
		return ServerIDRequest()
	}
	return DeviceIDRequest(DeviceIDCode(1+r.IntN(3)), 0)
}

// endsEarly reports whether a loopback request has a part of its data that looks
// like the CRC of what stands before it, in the frames of checkLengths: one of
// 65,536 has, and nothing else says that it goes on.
func endsEarly(req PDU) bool {
	adu := AppendRTU(nil, 7, req)
	for n := 8; n < len(adu); n += 2 {
		if crc := CRC16(adu[:n-2]); adu[n-2] == byte(crc) && adu[n-1] == byte(crc>>8) {
			return true
		}
	}
	return false
}

func FuzzCheckRequest(f *testing.F) {
	for _, e := range examples {
		f.Add([]byte(e.req))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		req := PDU(b)
		if CheckRequest(req) != nil {
			return
		}
		if n, ok := ResponseLen(req); ok && (n < 2 || n > MaxPDU) {
			t.Errorf("% x has a response of %d bytes", req, n)
		}
		if table, addr, n, ok := req.Span(); ok && (n < 1 || int(addr)+n > 1<<16 || table < Coils || table > HoldingRegisters) {
			t.Errorf("% x spans %v %d+%d", req, table, addr, n)
		}
		if resp, err := Answer(req, newMemory(65536), testIdentity); err == nil {
			if err := CheckResponse(req, resp); err != nil {
				t.Errorf("% x: % x: %v", req, resp, err)
			}
		}
	})
}

func FuzzCheckResponse(f *testing.F) {
	for _, e := range examples {
		f.Add([]byte(e.req), unhexed(f, e.resp))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		req, resp := PDU(a), PDU(b)
		if CheckRequest(req) != nil {
			return
		}
		err := CheckResponse(req, resp)
		var refused Exception
		switch {
		case err == nil:
			if resp.Function() != req.Function() {
				t.Errorf("% x passes for an answer to % x", resp, req)
			}
			if _, _, n, ok := req.Span(); ok && !req.Function().Writes() {
				if got := Registers(req, resp); len(got) != n {
					t.Errorf("% x: % x: %d values instead of %d", req, resp, len(got), n)
				}
			}
		case errors.As(err, &refused):
			if len(resp) != 2 || resp[0] != req[0]|0x80 || resp[1] != byte(refused) {
				t.Errorf("% x passes for %v of % x", resp, refused, req)
			}
		case !errors.Is(err, ErrBadResponse):
			t.Errorf("% x: % x: %v", req, resp, err)
		}
	})
}
