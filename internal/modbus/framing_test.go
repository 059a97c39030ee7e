package modbus

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestChecksums(t *testing.T) {
	// The check value of CRC-16/MODBUS in the catalogue of parametrised CRCs.
	if got := CRC16([]byte("123456789")); got != 0x4B37 {
		t.Errorf("CRC16 = %#04x, want 0x4b37", got)
	}
	// SER 6.2.2: the message 02 07 has the CRC 0x1241, sent 41 12.
	if got := AppendRTU(nil, 2, PDU{7}); !bytes.Equal(got, []byte{2, 7, 0x41, 0x12}) {
		t.Errorf("AppendRTU = % x, want 02 07 41 12", got)
	}
	if got := LRC([]byte{0xF7, 3, 0x13, 0x89, 0, 0x0A}); got != 0x60 {
		t.Errorf("LRC = %#02x, want 0x60", got)
	}
	if got := string(AppendASCII(nil, 0xF7, ReadRequest(HoldingRegisters, 0x1389, 10))); got != ":F7031389000A60\r\n" {
		t.Errorf("AppendASCII = %q", got)
	}
	if got := AppendTCP(nil, 0x1501, 0xFF, ReadRequest(HoldingRegisters, 4, 1)); !bytes.Equal(got, []byte{0x15, 1, 0, 0, 0, 6, 0xFF, 3, 0, 4, 0, 1}) {
		t.Errorf("AppendTCP = % x", got)
	}
}

func TestParseMBAP(t *testing.T) {
	tx, n, unit, err := ParseMBAP([]byte{0x12, 0x34, 0, 0, 0, 6, 9, 3})
	if tx != 0x1234 || n != 5 || unit != 9 || err != nil {
		t.Errorf("ParseMBAP = %#x %d %d %v", tx, n, unit, err)
	}
	for name, hdr := range map[string][]byte{
		"protocol":     {0, 0, 0, 1, 0, 6, 1},
		"length 0":     {0, 0, 0, 0, 0, 0, 1},
		"length 1":     {0, 0, 0, 0, 0, 1, 1},
		"length 255":   {0, 0, 0, 0, 0, 255, 1},
		"length 65535": {0, 0, 0, 0, 255, 255, 1},
		"6 bytes":      {0, 0, 0, 0, 0, 6},
	} {
		if _, _, _, err := ParseMBAP(hdr); !errors.Is(err, ErrBadFrame) {
			t.Errorf("%s: %v, want ErrBadFrame", name, err)
		}
	}
	for _, length := range []byte{2, 254} {
		if _, n, _, err := ParseMBAP([]byte{0, 0, 0, 0, 0, length, 1}); err != nil || n != int(length)-1 {
			t.Errorf("length %d: %d, %v", length, n, err)
		}
	}
	for _, adu := range [][]byte{{0, 0, 0, 0, 0, 3, 1, 7}, {0, 0, 0, 0, 0, 2, 1, 7, 0}, nil} {
		if _, _, _, err := DecodeTCP(adu); !errors.Is(err, ErrBadFrame) {
			t.Errorf("DecodeTCP(% x): %v, want ErrBadFrame", adu, err)
		}
	}
}

func TestDecodeFaults(t *testing.T) {
	good := AppendRTU(nil, 1, ReadRequest(Coils, 0, 1))
	for i := range good {
		for bit := range 8 {
			adu := bytes.Clone(good)
			adu[i] ^= 1 << bit
			if _, _, err := DecodeRTU(adu); !errors.Is(err, ErrCRC) || !errors.Is(err, ErrBadFrame) {
				t.Errorf("RTU with bit %d of byte %d turned: %v", bit, i, err)
			}
		}
	}
	for _, adu := range [][]byte{nil, good[:3], make([]byte, MaxRTU+1)} {
		if _, _, err := DecodeRTU(adu); !errors.Is(err, ErrBadFrame) || errors.Is(err, ErrCRC) {
			t.Errorf("RTU of %d bytes: %v", len(adu), err)
		}
	}
	unit, pdu, err := DecodeASCII([]byte(":f7031389000a60\r\n"))
	if unit != 0xF7 || !bytes.Equal(pdu, ReadRequest(HoldingRegisters, 0x1389, 10)) || err != nil {
		t.Errorf("lower case: %d % x %v", unit, pdu, err)
	}
	for _, line := range []string{
		"", ":\r\n", ":F7\r\n", ":F70360\r", "F7031389000A60\r\n", ":F7031389000A60\n\n", ":F7031389000A6\r\n",
		":F7031389000G60\r\n", ":F7 31389000A60\r\n", ":" + strings.Repeat("00", 256) + "\r\n",
	} {
		if _, _, err := DecodeASCII([]byte(line)); !errors.Is(err, ErrBadFrame) || errors.Is(err, ErrLRC) {
			t.Errorf("%q: %v", line, err)
		}
	}
	if _, _, err := DecodeASCII([]byte(":F7031389000A61\r\n")); !errors.Is(err, ErrLRC) {
		t.Errorf("wrong LRC: %v", err)
	}
}

// TestFramesRoundTrip holds that each framing gives back what it was given, at
// every length a PDU can have, and appends to what is there.
func TestFramesRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := 1; n <= MaxPDU; n++ {
		pdu := make(PDU, n)
		for i := range pdu {
			pdu[i] = byte(r.Uint32())
		}
		unit := UnitID(r.Uint32())
		for f, limit := range map[Framing]int{FramingTCP: MaxTCP, FramingRTU: MaxRTU, FramingASCII: MaxASCII} {
			adu := f.Append([]byte("kept"), 7, unit, pdu)
			if string(adu[:4]) != "kept" || len(adu)-4 > limit {
				t.Fatalf("%v: %d bytes of PDU make % x", f, n, adu)
			}
			gotUnit, got := decodeOne(t, f, adu[4:])
			if gotUnit != unit || !bytes.Equal(got, pdu) {
				t.Fatalf("%v: %d bytes: unit %d % x, want %d % x", f, n, gotUnit, got, unit, pdu)
			}
		}
	}
}

func TestRTULengths(t *testing.T) {
	read := ReadRequest(HoldingRegisters, 0, 2)
	for _, c := range []struct {
		name   string
		prefix []byte
		req    PDU
		n      int
		known  bool
	}{
		{"nothing", nil, read, 2, false},
		{"unit alone", []byte{1}, read, 2, false},
		{"normal", []byte{1, 3}, read, 9, true},
		{"exception", []byte{1, 0x83}, read, 5, true},
		{"exception of a function of unknown length", []byte{1, 0xE3}, PDU{0x63}, 5, true},
		{"another function", []byte{1, 4}, read, 0, false},
		{"unknown function", []byte{1, 0x63, 1, 2}, PDU{0x63}, 0, false},
		{"server id", []byte{1, 17, 3}, ServerIDRequest(), 8, true},
		{"server id too long", []byte{1, 17, 255}, ServerIDRequest(), 0, false},
		{"fifo too long", []byte{1, 24, 255, 255}, ReadFIFORequest(0), 0, false},
		{"CANopen", []byte{1, 43, 13, 0, 0}, PDU{43, 13}, 0, false},
	} {
		if n, known := RTUResponseLen(c.prefix, c.req); n != c.n || known != c.known {
			t.Errorf("response, %s: %d %v, want %d %v", c.name, n, known, c.n, c.known)
		}
	}
	for _, c := range []struct {
		name   string
		prefix []byte
		n      int
		known  bool
	}{
		{"nothing", nil, 2, false},
		{"read", []byte{1, 3}, 8, true},
		{"write before its count", []byte{1, 16, 0, 0, 0, 1}, 7, false},
		{"write", []byte{1, 16, 0, 0, 0, 1, 2}, 11, true},
		{"write too long", []byte{1, 16, 0, 0, 0, 1, 255}, 0, false},
		{"read write", []byte{1, 23, 0, 0, 0, 1, 0, 0, 0, 1, 2}, 15, true},
		{"counter", []byte{1, 8, 0, 11}, 8, true},
		{"loopback before its CRC", []byte{1, 8, 0, 0, 1, 2, 3, 4}, 10, false},
		{"loopback of one word", AppendRTU(nil, 1, DiagnosticsRequest(0, 1)), 8, true},
		{"loopback of three words", AppendRTU(nil, 1, DiagnosticsRequest(0, 1, 2, 3)), 12, true},
		{"loopback without end", append([]byte{1, 8, 0, 0}, make([]byte, 300)...), 0, false},
		{"CANopen", []byte{1, 43, 13}, 0, false},
		{"unknown function", []byte{1, 0x63}, 0, false},
	} {
		if n, known := RTURequestLen(c.prefix); n != c.n || known != c.known {
			t.Errorf("request, %s: %d %v, want %d %v", c.name, n, known, c.n, c.known)
		}
	}
}

func TestClientSilence(t *testing.T) {
	for baud, want := range map[int]time.Duration{
		1200:   32083333 * time.Nanosecond,
		9600:   4010416 * time.Nanosecond,
		19200:  2005208 * time.Nanosecond,
		19201:  1750 * time.Microsecond,
		115200: 1750 * time.Microsecond,
	} {
		if got := ClientSilence(baud); got != want {
			t.Errorf("ClientSilence(%d) = %v, want %v", baud, got, want)
		}
	}
}

func TestSilence(t *testing.T) {
	for _, c := range []struct {
		baud, bits int
		want       time.Duration
	}{
		{9600, 10, 3645831 * time.Nanosecond},
		{19200, 11, 2005206 * time.Nanosecond},
		{19200, 10, 1822915 * time.Nanosecond},
		{38400, 11, 1750 * time.Microsecond},
		{115200, 10, 1750 * time.Microsecond},
	} {
		char := time.Duration(c.bits) * time.Second / time.Duration(c.baud)
		if got := Silence(char); got.Round(time.Microsecond) != c.want.Round(time.Microsecond) {
			t.Errorf("%d baud, %d bits: %v, want %v", c.baud, c.bits, got, c.want)
		}
	}
}

// TestHotPathAllocatesNothing: framing, checking and unpacking run for every
// poll of every device.
func TestHotPathAllocatesNothing(t *testing.T) {
	req := ReadRequest(HoldingRegisters, 0, 100)
	resp := append(PDU{3, 200}, make([]byte, 200)...)
	adu, regs := make([]byte, 0, MaxASCII), make([]uint16, 0, 125)
	if n := testing.AllocsPerRun(100, func() {
		for _, f := range [...]Framing{FramingTCP, FramingRTU, FramingASCII} {
			adu = f.Append(adu[:0], 1, 2, req)
		}
		adu = AppendRTU(adu[:0], 1, resp)
		_, got, err := DecodeRTU(adu)
		if err != nil || CheckRequest(req) != nil || CheckResponse(req, got) != nil {
			t.Fatal("not accepted")
		}
		RTUResponseLen(adu, req)
		regs = AppendValues(regs[:0], req, got)
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func FuzzDecodeRTU(f *testing.F) {
	for _, e := range examples {
		f.Add(AppendRTU(nil, 1, e.req))
	}
	f.Fuzz(func(t *testing.T, adu []byte) {
		unit, pdu, err := DecodeRTU(adu)
		if err != nil {
			if !errors.Is(err, ErrBadFrame) {
				t.Error(err)
			}
			return
		}
		if again := AppendRTU(nil, unit, pdu); !bytes.Equal(again, adu) {
			t.Errorf("% x decodes to what encodes as % x", adu, again)
		}
	})
}

func FuzzDecodeASCII(f *testing.F) {
	for _, e := range examples {
		f.Add(AppendASCII(nil, 1, e.req))
	}
	f.Fuzz(func(t *testing.T, adu []byte) {
		unit, pdu, err := DecodeASCII(adu)
		if err != nil {
			if !errors.Is(err, ErrBadFrame) {
				t.Error(err)
			}
			return
		}
		if again := AppendASCII(nil, unit, pdu); !bytes.Equal(again, bytes.ToUpper(adu)) {
			t.Errorf("%q decodes to what encodes as %q", adu, again)
		}
	})
}

func FuzzDecodeTCP(f *testing.F) {
	for _, e := range examples {
		f.Add(AppendTCP(nil, 1, 1, e.req))
	}
	f.Fuzz(func(t *testing.T, adu []byte) {
		tx, unit, pdu, err := DecodeTCP(adu)
		if err != nil {
			if !errors.Is(err, ErrBadFrame) {
				t.Error(err)
			}
			return
		}
		if again := AppendTCP(nil, tx, unit, pdu); !bytes.Equal(again, adu) {
			t.Errorf("% x decodes to what encodes as % x", adu, again)
		}
	})
}

// FuzzRTULengths holds that a length once told stays the same however much more
// arrives, fits a frame, and that the bytes asked for are always more than there
// are.
func FuzzRTULengths(f *testing.F) {
	for _, e := range examples {
		f.Add([]byte(e.req), AppendRTU(nil, 1, unhexed(f, e.resp)))
		f.Add([]byte(e.req), AppendRTU(nil, 1, e.req))
	}
	f.Fuzz(func(t *testing.T, req, b []byte) {
		for _, tell := range []func([]byte) (int, bool){RTURequestLen, func(b []byte) (int, bool) { return RTUResponseLen(b, req) }} {
			told := 0
			for i := range len(b) + 1 {
				n, known := tell(b[:i])
				if known && (n < MinRTU || n > MaxRTU) || !known && n != 0 && n <= i {
					t.Fatalf("% x: %d %v", b[:i], n, known)
				}
				if told != 0 && (!known || n != told) {
					t.Fatalf("% x: %d %v after %d was told", b[:i], n, known, told)
				}
				if known {
					told = n
				}
			}
		}
	})
}
