package modbus

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	goburrow "github.com/goburrow/modbus"
)

// unhexed turns "03 006B 0003" into bytes.
func unhexed(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// examples are the request and response of every example in APP 6, and of SER
// where APP has none.
var examples = []struct {
	name      string
	req       PDU
	wire      string // of the request
	resp      string
	values    []uint16
	exception Exception
}{
	{"6.1 read coils", ReadRequest(Coils, 19, 19), "01 0013 0013", "01 03 CD6B05",
		[]uint16{1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0, 1}, 0},
	{"6.2 read discrete inputs", ReadRequest(DiscreteInputs, 196, 22), "02 00C4 0016", "02 03 ACDB35",
		[]uint16{0, 0, 1, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1, 1}, 0},
	{"6.3 read holding registers", ReadRequest(HoldingRegisters, 107, 3), "03 006B 0003", "03 06 022B 0000 0064", []uint16{0x22B, 0, 100}, 0},
	{"6.4 read input registers", ReadRequest(InputRegisters, 8, 1), "04 0008 0001", "04 02 000A", []uint16{10}, 0},
	{"6.5 write single coil", WriteCoilRequest(172, true), "05 00AC FF00", "05 00AC FF00", nil, 0},
	{"6.6 write single register", WriteRegisterRequest(1, 3), "06 0001 0003", "06 0001 0003", nil, 0},
	{"6.7 read exception status", ExceptionStatusRequest(), "07", "07 6D", nil, 0},
	{"6.8 return query data", DiagnosticsRequest(0, 0xA537), "08 0000 A537", "08 0000 A537", nil, 0},
	{"6.9 get comm event counter", CommEventCounterRequest(), "0B", "0B FFFF 0108", nil, 0},
	{"6.10 get comm event log", CommEventLogRequest(), "0C", "0C 08 0000 0108 0121 20 00", nil, 0},
	{"6.11 write multiple coils", WriteCoilsRequest(19, []bool{true, false, true, true, false, false, true, true, true, false}),
		"0F 0013 000A 02 CD01", "0F 0013 000A", nil, 0},
	{"6.12 write multiple registers", WriteRegistersRequest(1, []uint16{10, 0x102}), "10 0001 0002 04 000A 0102", "10 0001 0002", nil, 0},
	{"6.13 report server id", ServerIDRequest(), "11", "11 03 2A 07 FF", nil, 0},
	{"6.14 read file record", PDU("\x14\x0e\x06\x00\x04\x00\x01\x00\x02\x06\x00\x03\x00\x09\x00\x02"),
		"14 0E 06 0004 0001 0002 06 0003 0009 0002", "14 0C 05 06 0DFE 0020 05 06 33CD 0040", nil, 0},
	{"6.15 write file record", PDU("\x15\x0d\x06\x00\x04\x00\x07\x00\x03\x06\xaf\x04\xbe\x10\x0d"),
		"15 0D 06 0004 0007 0003 06AF 04BE 100D", "15 0D 06 0004 0007 0003 06AF 04BE 100D", nil, 0},
	{"6.16 mask write register", MaskWriteRequest(4, 0xF2, 0x25), "16 0004 00F2 0025", "16 0004 00F2 0025", nil, 0},
	{"6.17 read/write registers", ReadWriteRequest(3, 6, 14, []uint16{255, 255, 255}),
		"17 0003 0006 000E 0003 06 00FF 00FF 00FF", "17 0C 00FE 0ACD 0001 0003 000D 00FF",
		[]uint16{0xFE, 0xACD, 1, 3, 13, 255}, 0},
	{"6.18 read fifo queue", ReadFIFORequest(0x4DE), "18 04DE", "18 0006 0002 01B8 1284", nil, 0},
	{"6.21 read device id", DeviceIDRequest(BasicID, 0), "2B 0E 01 00",
		"2B 0E 01 01 00 00 03 00 16 436F6D70616E79206964656E74696669636174696F6E" +
			"01 0D 50726F6475637420636F646520 02 05 56322E3131", nil, 0},
	{"7 exception", ReadRequest(Coils, 0x4A1, 1), "01 04A1 0001", "81 02", nil, IllegalDataAddress},
}

func TestSpecificationExamples(t *testing.T) {
	for _, e := range examples {
		t.Run(e.name, func(t *testing.T) {
			if want := unhexed(t, e.wire); !bytes.Equal(e.req, want) {
				t.Errorf("request % x, want % x", e.req, want)
			}
			if err := CheckRequest(e.req); err != nil {
				t.Errorf("CheckRequest: %v", err)
			}
			// The specification prints "Company identification" with a
			// length of 0x16, 22 characters, and "Product code XX" cut short.
			resp := PDU(unhexed(t, e.resp))
			err := CheckResponse(e.req, resp)
			if e.exception != 0 {
				var got Exception
				if !errors.As(err, &got) || got != e.exception {
					t.Fatalf("CheckResponse: %v, want %v", err, e.exception)
				}
				return
			}
			if err != nil {
				t.Fatalf("CheckResponse: %v", err)
			}
			if n, ok := ResponseLen(e.req); ok && n != len(resp) {
				t.Errorf("ResponseLen = %d, want %d", n, len(resp))
			}
			if e.values != nil {
				if got := Registers(e.req, resp); !reflect.DeepEqual(got, e.values) {
					t.Errorf("Registers = %v, want %v", got, e.values)
				}
			}
			checkLengths(t, e.req, resp)
		})
	}
}

// checkLengths holds RTURequestLen and RTUResponseLen to the promise that every
// prefix either tells the length or how many bytes to wait for, never too many.
func checkLengths(t *testing.T, req, resp PDU) {
	t.Helper()
	for _, side := range []struct {
		name string
		adu  []byte
		tell func([]byte) (int, bool)
	}{
		{"request", AppendRTU(nil, 7, req), RTURequestLen},
		{"response", AppendRTU(nil, 7, resp), func(b []byte) (int, bool) { return RTUResponseLen(b, req) }},
	} {
		told := false
		for i := range len(side.adu) + 1 {
			n, known := side.tell(side.adu[:i])
			switch {
			case known && n != len(side.adu):
				t.Errorf("%s: %d of %d bytes tell a length of %d", side.name, i, len(side.adu), n)
			case !known && (n <= i || n > len(side.adu)):
				t.Errorf("%s: %d of %d bytes ask for %d", side.name, i, len(side.adu), n)
			case told && !known:
				t.Errorf("%s: %d bytes tell less than fewer did", side.name, i)
			}
			told = told || known
		}
		if !told {
			t.Errorf("%s: the whole frame tells no length", side.name)
		}
	}
}

// captured is a goburrow transporter that keeps the request and answers with a
// prepared ADU.
type captured struct {
	req    []byte
	answer func(req []byte) []byte
}

func (c *captured) Send(adu []byte) ([]byte, error) {
	c.req = append([]byte(nil), adu...)
	return c.answer(adu), nil
}

// TestAgainstGoburrow sends the same requests through goburrow's packagers in
// all three framings and compares every byte, then has goburrow decode our
// frames.
func TestAgainstGoburrow(t *testing.T) {
	const unit = 17
	tcp := goburrow.NewTCPClientHandler("")
	tcp.SlaveId = unit
	rtu := goburrow.NewRTUClientHandler("")
	rtu.SlaveId = unit
	ascii := goburrow.NewASCIIClientHandler("")
	ascii.SlaveId = unit
	packagers := map[Framing]goburrow.Packager{FramingTCP: tcp, FramingRTU: rtu, FramingASCII: ascii}
	coils := []bool{true, false, true, true, false, false, true, true, true, false}
	calls := []struct {
		ours PDU
		resp PDU
		call func(goburrow.Client) ([]byte, error)
		want string
	}{
		{ReadRequest(Coils, 19, 19), PDU{1, 3, 0xCD, 0x6B, 5}, func(c goburrow.Client) ([]byte, error) { return c.ReadCoils(19, 19) }, "cd6b05"},
		{ReadRequest(DiscreteInputs, 65535, 1), PDU{2, 1, 1}, func(c goburrow.Client) ([]byte, error) { return c.ReadDiscreteInputs(65535, 1) }, "01"},
		{ReadRequest(HoldingRegisters, 107, 2), PDU{3, 4, 1, 2, 3, 4}, func(c goburrow.Client) ([]byte, error) { return c.ReadHoldingRegisters(107, 2) }, "01020304"},
		{ReadRequest(InputRegisters, 8, 1), PDU{4, 2, 0, 10}, func(c goburrow.Client) ([]byte, error) { return c.ReadInputRegisters(8, 1) }, "000a"},
		{WriteCoilRequest(172, true), nil, func(c goburrow.Client) ([]byte, error) { return c.WriteSingleCoil(172, 0xFF00) }, "ff00"},
		{WriteCoilRequest(172, false), nil, func(c goburrow.Client) ([]byte, error) { return c.WriteSingleCoil(172, 0) }, "0000"},
		{WriteRegisterRequest(1, 0xABCD), nil, func(c goburrow.Client) ([]byte, error) { return c.WriteSingleRegister(1, 0xABCD) }, "abcd"},
		{WriteCoilsRequest(19, coils), PDU{15, 0, 19, 0, 10}, func(c goburrow.Client) ([]byte, error) { return c.WriteMultipleCoils(19, 10, []byte{0xCD, 1}) }, "000a"},
		{WriteRegistersRequest(1, []uint16{10, 258}), PDU{16, 0, 1, 0, 2}, func(c goburrow.Client) ([]byte, error) {
			return c.WriteMultipleRegisters(1, 2, []byte{0, 10, 1, 2})
		}, "0002"},
		{MaskWriteRequest(4, 0xF2, 0x25), nil, func(c goburrow.Client) ([]byte, error) { return c.MaskWriteRegister(4, 0xF2, 0x25) }, "00f20025"},
		{ReadWriteRequest(3, 2, 14, []uint16{255}), PDU{23, 4, 9, 8, 7, 6}, func(c goburrow.Client) ([]byte, error) {
			return c.ReadWriteMultipleRegisters(3, 2, 14, 1, []byte{0, 255})
		}, "09080706"},
	}
	for f, packager := range packagers {
		for _, call := range calls {
			t.Run(fmt.Sprintf("%v/%v", f, call.ours.Function()), func(t *testing.T) {
				c := &captured{}
				c.answer = func(req []byte) []byte {
					resp := call.resp
					if resp == nil {
						resp = call.ours // an echo
					}
					var tx uint16
					if f == FramingTCP {
						tx = binary.BigEndian.Uint16(req)
					}
					return f.Append(nil, tx, unit, resp)
				}
				got, err := call.call(goburrow.NewClient2(packager, c))
				if err != nil || hex.EncodeToString(got) != call.want {
					t.Errorf("goburrow reads %x, %v out of our response, want %s", got, err, call.want)
				}
				var tx uint16
				if f == FramingTCP {
					tx = binary.BigEndian.Uint16(c.req)
				}
				if ours := f.Append(nil, tx, unit, call.ours); !bytes.Equal(ours, c.req) {
					t.Errorf("we send    % x\ngoburrow's % x", ours, c.req)
				}
				gotUnit, pdu := decodeOne(t, f, c.req)
				if gotUnit != unit || !bytes.Equal(pdu, call.ours) {
					t.Errorf("we read unit %d, % x out of goburrow's frame, want %d, % x", gotUnit, pdu, unit, call.ours)
				}
			})
		}
	}
}

func decodeOne(t *testing.T, f Framing, adu []byte) (UnitID, PDU) {
	t.Helper()
	var unit UnitID
	var pdu PDU
	var err error
	switch f {
	case FramingTCP:
		_, unit, pdu, err = DecodeTCP(adu)
	case FramingRTU:
		unit, pdu, err = DecodeRTU(adu)
	case FramingASCII:
		unit, pdu, err = DecodeASCII(adu)
	}
	if err != nil {
		t.Fatalf("decode % x: %v", adu, err)
	}
	return unit, pdu
}

func TestWords(t *testing.T) {
	for _, f := range []struct {
		f                  FunctionCode
		name               string
		writes, broadcasts bool
	}{
		{ReadCoils, "read coils", false, false},
		{ReadDiscreteInputs, "read discrete inputs", false, false},
		{ReadHoldingRegisters, "read holding registers", false, false},
		{ReadInputRegisters, "read input registers", false, false},
		{WriteSingleCoil, "write single coil", true, true},
		{WriteSingleRegister, "write single register", true, true},
		{ReadExceptionStatus, "read exception status", false, false},
		{Diagnostics, "diagnostics", false, false},
		{GetCommEventCounter, "get comm event counter", false, false},
		{GetCommEventLog, "get comm event log", false, false},
		{WriteMultipleCoils, "write multiple coils", true, true},
		{WriteMultipleRegisters, "write multiple registers", true, true},
		{ReportServerID, "report server id", false, false},
		{ReadFileRecord, "read file record", false, false},
		{WriteFileRecord, "write file record", true, true},
		{MaskWriteRegister, "mask write register", true, true},
		{ReadWriteRegisters, "read/write multiple registers", true, false},
		{ReadFIFOQueue, "read fifo queue", false, false},
		{EncapsulatedInterface, "encapsulated interface", false, false},
		{99, "function 99", false, false},
		{ReadCoils | exceptionBit, "read coils", false, false},
	} {
		if got := f.f.String(); got != f.name {
			t.Errorf("FunctionCode(%d) = %q, want %q", f.f, got, f.name)
		}
		if f.f.Writes() != f.writes || f.f.Broadcasts() != f.broadcasts {
			t.Errorf("%v: Writes %v, Broadcasts %v", f.f, f.f.Writes(), f.f.Broadcasts())
		}
	}
	for table, word := range map[Table]string{Coils: "coil", DiscreteInputs: "discrete", InputRegisters: "input", HoldingRegisters: "holding", 0: "table?"} {
		if table.String() != word {
			t.Errorf("Table(%d) = %q, want %q", table, table, word)
		}
	}
	for table, limits := range map[Table][2]int{Coils: {2000, 1968}, DiscreteInputs: {2000, 0}, InputRegisters: {125, 0}, HoldingRegisters: {125, 123}} {
		if table.MaxRead() != limits[0] || table.MaxWrite() != limits[1] {
			t.Errorf("%v: reads %d, writes %d, want %v", table, table.MaxRead(), table.MaxWrite(), limits)
		}
		if table.Writable() != (limits[1] > 0) || table.Bits() != (limits[0] == 2000) {
			t.Errorf("%v: Writable %v, Bits %v", table, table.Writable(), table.Bits())
		}
	}
	for f, word := range map[Framing]string{FramingTCP: "tcp", FramingRTU: "rtu", FramingASCII: "ascii"} {
		if f.String() != word {
			t.Errorf("Framing(%d) = %q, want %q", f, f, word)
		}
	}
	if got := Exception(2).Error(); got != "exception 2: illegal data address" {
		t.Errorf("Exception(2) = %q", got)
	}
	if got := Exception(77).Error(); got != "exception 77: unknown" {
		t.Errorf("Exception(77) = %q", got)
	}
	if f := PDU(nil).Function(); f != 0 {
		t.Errorf("the function of an empty PDU is %d", f)
	}
}

func TestSpan(t *testing.T) {
	for _, c := range []struct {
		req   PDU
		table Table
		addr  uint16
		n     int
		ok    bool
	}{
		{ReadRequest(Coils, 1, 2), Coils, 1, 2, true},
		{ReadRequest(DiscreteInputs, 1, 2), DiscreteInputs, 1, 2, true},
		{ReadRequest(InputRegisters, 1, 2), InputRegisters, 1, 2, true},
		{ReadRequest(HoldingRegisters, 65535, 1), HoldingRegisters, 65535, 1, true},
		{WriteCoilRequest(5, true), Coils, 5, 1, true},
		{WriteRegisterRequest(5, 9), HoldingRegisters, 5, 1, true},
		{WriteCoilsRequest(5, make([]bool, 9)), Coils, 5, 9, true},
		{WriteRegistersRequest(5, make([]uint16, 9)), HoldingRegisters, 5, 9, true},
		{MaskWriteRequest(5, 1, 2), HoldingRegisters, 5, 1, true},
		{ReadWriteRequest(1, 2, 3, []uint16{4}), HoldingRegisters, 1, 2, true},
		{ServerIDRequest(), 0, 0, 0, false},
		{DiagnosticsRequest(0, 1), 0, 0, 0, false},
		{PDU{3, 0, 1}, 0, 0, 0, false},
	} {
		table, addr, n, ok := c.req.Span()
		if table != c.table || addr != c.addr || n != c.n || ok != c.ok {
			t.Errorf("% x: Span = %v %d+%d %v, want %v %d+%d %v", c.req, table, addr, n, ok, c.table, c.addr, c.n, c.ok)
		}
	}
}
