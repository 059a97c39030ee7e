package modbus

import (
	"encoding/binary"
	"fmt"
)

// Function codes of APP 6.14 and 6.15, which the rest of the gateway does not
// use but whose frames are measured and checked like any other.
const (
	ReadFileRecord  FunctionCode = 20
	WriteFileRecord FunctionCode = 21
)

// ReadDeviceIdentification is the MEI type of function 43 that this package
// knows (APP 6.21).
const ReadDeviceIdentification = 14

// exceptionBit marks the function code of an exception response (APP 7).
const exceptionBit FunctionCode = 0x80

// MaxFIFO is the largest number of registers a FIFO queue answers (APP 6.18).
const MaxFIFO = 31

// String returns the function's name in the specification's words: "read
// holding registers". The exception bit is left out of account.
func (f FunctionCode) String() string {
	switch f &^ exceptionBit {
	case ReadCoils:
		return "read coils"
	case ReadDiscreteInputs:
		return "read discrete inputs"
	case ReadHoldingRegisters:
		return "read holding registers"
	case ReadInputRegisters:
		return "read input registers"
	case WriteSingleCoil:
		return "write single coil"
	case WriteSingleRegister:
		return "write single register"
	case ReadExceptionStatus:
		return "read exception status"
	case Diagnostics:
		return "diagnostics"
	case GetCommEventCounter:
		return "get comm event counter"
	case GetCommEventLog:
		return "get comm event log"
	case WriteMultipleCoils:
		return "write multiple coils"
	case WriteMultipleRegisters:
		return "write multiple registers"
	case ReportServerID:
		return "report server id"
	case ReadFileRecord:
		return "read file record"
	case WriteFileRecord:
		return "write file record"
	case MaskWriteRegister:
		return "mask write register"
	case ReadWriteRegisters:
		return "read/write multiple registers"
	case ReadFIFOQueue:
		return "read fifo queue"
	case EncapsulatedInterface:
		return "encapsulated interface"
	}
	return fmt.Sprintf("function %d", uint8(f&^exceptionBit))
}

// Writes reports whether a request of this function changes the device: after
// a lost answer its outcome is unknown and it must not be repeated in silence.
func (f FunctionCode) Writes() bool {
	switch f {
	case WriteSingleCoil, WriteSingleRegister, WriteMultipleCoils, WriteMultipleRegisters,
		WriteFileRecord, MaskWriteRegister, ReadWriteRegisters:
		return true
	}
	return false
}

// Broadcasts reports whether a request of this function may go to Broadcast: it
// writes and asks for nothing back (SER 2.1).
func (f FunctionCode) Broadcasts() bool { return f.Writes() && f != ReadWriteRegisters }

// readFunctions holds the function that reads each table.
var readFunctions = [...]FunctionCode{
	Coils:            ReadCoils,
	DiscreteInputs:   ReadDiscreteInputs,
	InputRegisters:   ReadInputRegisters,
	HoldingRegisters: ReadHoldingRegisters,
}

// MaxRead returns how many coils, inputs or registers of table t one request
// can read.
func (t Table) MaxRead() int {
	if t.Bits() {
		return MaxReadBits
	}
	return MaxReadRegisters
}

// MaxWrite returns how many coils or registers of table t one request can
// write, 0 for the tables that cannot be written.
func (t Table) MaxWrite() int {
	switch t {
	case Coils:
		return MaxWriteBits
	case HoldingRegisters:
		return MaxWriteRegisters
	}
	return 0
}

// ReadRequest asks for n coils, inputs or registers of t from addr on
// (functions 1-4). Like every request builder it checks nothing: CheckRequest
// does. It panics when t is none of the four tables.
func ReadRequest(t Table, addr, n uint16) PDU {
	return words(readFunctions[t], addr, n)
}

// WriteCoilRequest sets one coil (function 5).
func WriteCoilRequest(addr uint16, on bool) PDU {
	var v uint16
	if on {
		v = 0xFF00
	}
	return words(WriteSingleCoil, addr, v)
}

// WriteRegisterRequest sets one holding register (function 6).
func WriteRegisterRequest(addr, v uint16) PDU {
	return words(WriteSingleRegister, addr, v)
}

// WriteCoilsRequest sets coils from addr on (function 15), at most MaxWriteBits.
func WriteCoilsRequest(addr uint16, values []bool) PDU {
	n := bitBytes(len(values))
	p := make(PDU, 6+n)
	p[0] = byte(WriteMultipleCoils)
	binary.BigEndian.PutUint16(p[1:], addr)
	binary.BigEndian.PutUint16(p[3:], uint16(len(values)))
	p[5] = byte(n)
	for i, on := range values {
		if on {
			p[6+i/8] |= 1 << (i % 8)
		}
	}
	return p
}

// WriteRegistersRequest sets holding registers from addr on (function 16), at
// most MaxWriteRegisters.
func WriteRegistersRequest(addr uint16, values []uint16) PDU {
	p := make(PDU, 0, 6+2*len(values))
	p = append(p, byte(WriteMultipleRegisters))
	p = binary.BigEndian.AppendUint16(p, addr)
	p = binary.BigEndian.AppendUint16(p, uint16(len(values)))
	p = append(p, byte(2*len(values)))
	return appendWords(p, values)
}

// MaskWriteRequest sets one holding register to (value AND and) OR (or AND NOT
// and) (function 22).
func MaskWriteRequest(addr, and, or uint16) PDU {
	return words(MaskWriteRegister, addr, and, or)
}

// ReadWriteRequest writes values to holding registers from waddr on, then reads
// rn holding registers from raddr on (function 23).
func ReadWriteRequest(raddr, rn, waddr uint16, values []uint16) PDU {
	p := make(PDU, 0, 10+2*len(values))
	p = append(p, byte(ReadWriteRegisters))
	for _, w := range [...]uint16{raddr, rn, waddr, uint16(len(values))} {
		p = binary.BigEndian.AppendUint16(p, w)
	}
	p = append(p, byte(2*len(values)))
	return appendWords(p, values)
}

// ReadFIFORequest reads the FIFO queue behind the holding register addr
// (function 24).
func ReadFIFORequest(addr uint16) PDU { return words(ReadFIFOQueue, addr) }

// ExceptionStatusRequest reads the eight exception status outputs (function 7).
func ExceptionStatusRequest() PDU { return PDU{byte(ReadExceptionStatus)} }

// DiagnosticsRequest sends a diagnostic sub-function with its data (function 8).
// Sub-function 0 takes any number of words, the others one.
func DiagnosticsRequest(sub uint16, data ...uint16) PDU {
	return appendWords(words(Diagnostics, sub), data)
}

// CommEventCounterRequest reads the status word and event count (function 11).
func CommEventCounterRequest() PDU { return PDU{byte(GetCommEventCounter)} }

// CommEventLogRequest reads the event log (function 12).
func CommEventLogRequest() PDU { return PDU{byte(GetCommEventLog)} }

// ServerIDRequest asks what the device says of itself (function 17).
func ServerIDRequest() PDU { return PDU{byte(ReportServerID)} }

// DeviceIDCode says how much of its identification a device is asked for (APP
// 6.21, "Read Device ID code").
type DeviceIDCode uint8

// The four ways to ask. The first three stream objects from the given one to
// the end of their category, the last reads that one alone.
const (
	BasicID    DeviceIDCode = 1 // to object 0x02: vendor, product code, revision
	RegularID  DeviceIDCode = 2 // to 0x7F: URL, product name, model, application
	ExtendedID DeviceIDCode = 3 // to 0xFF: the vendor's own
	OneID      DeviceIDCode = 4
)

// DeviceIDRequest reads the device's identification from object on (function
// 43/14).
func DeviceIDRequest(code DeviceIDCode, object byte) PDU {
	return PDU{byte(EncapsulatedInterface), ReadDeviceIdentification, byte(code), object}
}

// ExceptionResponse is the refusal of a request of function f.
func ExceptionResponse(f FunctionCode, e Exception) PDU {
	return PDU{byte(f | exceptionBit), byte(e)}
}

// Span returns what a request reads or writes: table, first address and count.
// For function 23 it is the part read. ok is false for functions that name no
// table and for requests too short to tell; it checks no limits.
func (p PDU) Span() (t Table, addr uint16, n int, ok bool) {
	if len(p) < 5 {
		return 0, 0, 0, false
	}
	addr = binary.BigEndian.Uint16(p[1:])
	n = int(binary.BigEndian.Uint16(p[3:]))
	switch p.Function() {
	case ReadCoils, WriteMultipleCoils:
		return Coils, addr, n, true
	case ReadDiscreteInputs:
		return DiscreteInputs, addr, n, true
	case ReadInputRegisters:
		return InputRegisters, addr, n, true
	case ReadHoldingRegisters, WriteMultipleRegisters, ReadWriteRegisters:
		return HoldingRegisters, addr, n, true
	case WriteSingleCoil:
		return Coils, addr, 1, true
	case WriteSingleRegister, MaskWriteRegister:
		return HoldingRegisters, addr, 1, true
	}
	return 0, 0, 0, false
}

// WriteSpan returns what a request writes, as Span does; table 0 for functions that
// write no table. It is Span but for function 23, which reads as well.
func (p PDU) WriteSpan() (t Table, addr uint16, n int) {
	switch f := p.Function(); {
	case f == ReadWriteRegisters && len(p) >= 9:
		return HoldingRegisters, binary.BigEndian.Uint16(p[5:]), int(binary.BigEndian.Uint16(p[7:]))
	case f.Writes() && f != ReadWriteRegisters:
		t, addr, n, _ = p.Span()
	}
	return t, addr, n
}

// AppendRegisters appends the registers of resp, a checked response to function
// 3, 4 or 23.
func AppendRegisters(dst []uint16, resp PDU) []uint16 {
	for b := resp[2:]; len(b) >= 2; b = b[2:] {
		dst = append(dst, binary.BigEndian.Uint16(b))
	}
	return dst
}

// AppendBits appends the first n bits of resp, a checked response to function 1
// or 2, each as a word 0 or 1, so that bits and registers can be handled alike.
func AppendBits(dst []uint16, resp PDU, n int) []uint16 {
	for i := range n {
		dst = append(dst, uint16(resp[2+i/8]>>(i%8)&1))
	}
	return dst
}

// AppendValues appends what the read req asked for out of resp, which
// CheckResponse has found to answer it: registers, or bits as words 0 and 1.
func AppendValues(dst []uint16, req, resp PDU) []uint16 {
	switch req.Function() {
	case ReadCoils, ReadDiscreteInputs:
		return AppendBits(dst, resp, int(binary.BigEndian.Uint16(req[3:])))
	}
	return AppendRegisters(dst, resp)
}

// Registers returns what the read req asked for out of resp, as AppendValues
// does, in a new slice.
func Registers(req, resp PDU) []uint16 {
	_, _, n, _ := req.Span()
	return AppendValues(make([]uint16, 0, n), req, resp)
}

// words builds a PDU out of a function code and words.
func words(f FunctionCode, w ...uint16) PDU {
	p := make(PDU, 1, 1+2*len(w))
	p[0] = byte(f)
	return appendWords(p, w)
}

func appendWords(p PDU, w []uint16) PDU {
	for _, v := range w {
		p = binary.BigEndian.AppendUint16(p, v)
	}
	return p
}

// bitBytes returns the number of bytes that hold n bits.
func bitBytes(n int) int { return (n + 7) / 8 }
