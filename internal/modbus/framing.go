package modbus

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Framing is how a PDU is wrapped for its wire.
type Framing uint8

// The three framings. The zero value is MBAP, the framing of Modbus TCP.
const (
	FramingTCP   Framing = iota // MBAP header (APP 4.1)
	FramingRTU                  // unit, PDU, CRC; frames told apart by silence (SER 2.5.1)
	FramingASCII                // ':' hexadecimal LRC CR LF (SER 2.5.2)
)

// String returns the word the configuration uses: tcp, rtu, ascii.
func (f Framing) String() string {
	switch f {
	case FramingRTU:
		return "rtu"
	case FramingASCII:
		return "ascii"
	}
	return "tcp"
}

// Sizes of frames in bytes.
const (
	MBAPLen      = 7                    // the header of Modbus TCP, unit id included
	MaxTCP       = MBAPLen + MaxPDU     // 260
	MinRTU       = 4                    // unit, function, CRC
	MaxRTU       = 1 + MaxPDU + 2       // 256
	ExceptionRTU = 5                    // an exception response on RTU
	MinASCII     = 1 + 2*3 + 2          // ':' unit, function, LRC, CR LF
	MaxASCII     = 1 + 2*(MaxPDU+2) + 2 // 513
)

// ErrBadFrame: bytes that are no whole frame of their framing. The text says
// why: length, protocol id, CRC, LRC, a character that does not belong.
var ErrBadFrame = errors.New("bad frame")

// Causes of ErrBadFrame that are counted apart. Both wrap it.
var (
	ErrCRC = fmt.Errorf("%w: CRC", ErrBadFrame)
	ErrLRC = fmt.Errorf("%w: LRC", ErrBadFrame)
)

// Append appends pdu as a frame of framing f. tx is used by MBAP only.
func (f Framing) Append(dst []byte, tx uint16, unit UnitID, pdu PDU) []byte {
	switch f {
	case FramingRTU:
		return AppendRTU(dst, unit, pdu)
	case FramingASCII:
		return AppendASCII(dst, unit, pdu)
	}
	return AppendTCP(dst, tx, unit, pdu)
}

// AppendTCP appends the frame of Modbus TCP: MBAP header and PDU. pdu must have
// 1 to MaxPDU bytes, as with AppendRTU and AppendASCII.
func AppendTCP(dst []byte, tx uint16, unit UnitID, pdu PDU) []byte {
	dst = binary.BigEndian.AppendUint16(dst, tx)
	dst = append(dst, 0, 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(1+len(pdu)))
	dst = append(dst, byte(unit))
	return append(dst, pdu...)
}

// AppendRTU appends the RTU frame: unit, PDU, CRC with the low byte first.
func AppendRTU(dst []byte, unit UnitID, pdu PDU) []byte {
	start := len(dst)
	dst = append(dst, byte(unit))
	dst = append(dst, pdu...)
	return binary.LittleEndian.AppendUint16(dst, CRC16(dst[start:]))
}

// AppendASCII appends the ASCII frame: ':', then unit, PDU and LRC in upper-case
// hexadecimal, then CR LF.
func AppendASCII(dst []byte, unit UnitID, pdu PDU) []byte {
	const digits = "0123456789ABCDEF"
	lrc := -byte(unit) + LRC(pdu)
	dst = append(dst, ':', digits[unit>>4], digits[unit&15])
	for _, b := range pdu {
		dst = append(dst, digits[b>>4], digits[b&15])
	}
	return append(dst, digits[lrc>>4], digits[lrc&15], '\r', '\n')
}

// ParseMBAP reads the first MBAPLen bytes of hdr. n is the length of the PDU
// that follows, 1 to MaxPDU. An error (ErrBadFrame: wrong protocol id, length
// outside 2-254, too few bytes) means the stream cannot be trusted any further.
func ParseMBAP(hdr []byte) (tx uint16, n int, unit UnitID, err error) {
	if len(hdr) < MBAPLen {
		return 0, 0, 0, fmt.Errorf("%w: MBAP header of %d bytes", ErrBadFrame, len(hdr))
	}
	if p := binary.BigEndian.Uint16(hdr[2:]); p != 0 {
		return 0, 0, 0, fmt.Errorf("%w: MBAP protocol id %d is not 0", ErrBadFrame, p)
	}
	length := int(binary.BigEndian.Uint16(hdr[4:]))
	if length < 2 || length > 1+MaxPDU {
		return 0, 0, 0, fmt.Errorf("%w: MBAP length %d is outside 2-%d", ErrBadFrame, length, 1+MaxPDU)
	}
	return binary.BigEndian.Uint16(hdr), length - 1, UnitID(hdr[6]), nil
}

// DecodeTCP takes one whole Modbus TCP frame, as a datagram holds it. The PDU
// shares adu's memory.
func DecodeTCP(adu []byte) (tx uint16, unit UnitID, pdu PDU, err error) {
	tx, n, unit, err := ParseMBAP(adu)
	if err != nil {
		return 0, 0, nil, err
	}
	if len(adu) != MBAPLen+n {
		return 0, 0, nil, fmt.Errorf("%w: MBAP length %d in a frame of %d bytes", ErrBadFrame, n+1, len(adu))
	}
	return tx, unit, PDU(adu[MBAPLen:]), nil
}

// DecodeRTU takes one whole RTU frame. The PDU shares adu's memory. The error is
// ErrCRC or another that wraps ErrBadFrame.
func DecodeRTU(adu []byte) (UnitID, PDU, error) {
	if len(adu) < MinRTU || len(adu) > MaxRTU {
		return 0, nil, fmt.Errorf("%w: %d bytes are outside %d-%d", ErrBadFrame, len(adu), MinRTU, MaxRTU)
	}
	end := len(adu) - 2
	if binary.LittleEndian.Uint16(adu[end:]) != CRC16(adu[:end]) {
		return 0, nil, ErrCRC
	}
	return UnitID(adu[0]), PDU(adu[1:end:end]), nil
}

// DecodeASCII takes one whole ASCII frame, from ':' to LF; hexadecimal digits
// may be lower case. The PDU is newly made. The error is ErrLRC or another that
// wraps ErrBadFrame.
func DecodeASCII(adu []byte) (UnitID, PDU, error) {
	n := len(adu)
	if n < MinASCII || n > MaxASCII || n%2 == 0 {
		return 0, nil, fmt.Errorf("%w: %d characters", ErrBadFrame, n)
	}
	if adu[0] != ':' || adu[n-2] != '\r' || adu[n-1] != '\n' {
		return 0, nil, fmt.Errorf("%w: not from ':' to CR LF", ErrBadFrame)
	}
	digits := adu[1 : n-2]
	b := make([]byte, len(digits)/2)
	for i := range b {
		hi, lo := unhex(digits[2*i]), unhex(digits[2*i+1])
		if hi > 15 || lo > 15 {
			return 0, nil, fmt.Errorf("%w: %q is not hexadecimal", ErrBadFrame, digits[2*i:2*i+2])
		}
		b[i] = hi<<4 | lo
	}
	end := len(b) - 1
	if b[end] != LRC(b[:end]) {
		return 0, nil, ErrLRC
	}
	return UnitID(b[0]), PDU(b[1:end:end]), nil
}

// unhex returns the value of a hexadecimal digit, 255 for anything else.
func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}

// RTUResponseLen tells how long the RTU frame is that begins with prefix, given
// the request it should answer. When known, n is the whole frame's length. When
// not, n is the number of bytes needed before it makes sense to ask again, or 0
// when nothing but silence ends this frame: a function that does not belong to
// req, or one whose length nothing tells.
func RTUResponseLen(prefix []byte, req PDU) (n int, known bool) {
	if len(prefix) < 2 {
		return 2, false
	}
	f := req.Function()
	switch FunctionCode(prefix[1]) {
	case f | exceptionBit:
		return ExceptionRTU, true
	case f:
	default:
		return 0, false
	}
	if n, ok := ResponseLen(req); ok {
		return rtuLen(n, true)
	}
	return rtuLen(countedLen(prefix[1:], len(req) > 1 && req[1] == ReadDeviceIdentification))
}

// countedLen returns the length of a response PDU that tells it itself; n and
// known are as in RTUResponseLen.
func countedLen(p []byte, deviceID bool) (n int, known bool) {
	switch FunctionCode(p[0]) {
	case ReadCoils, ReadDiscreteInputs, ReadHoldingRegisters, ReadInputRegisters, ReadWriteRegisters,
		GetCommEventLog, ReportServerID, ReadFileRecord, WriteFileRecord:
		if len(p) < 2 {
			return 2, false
		}
		return 2 + int(p[1]), true
	case ReadFIFOQueue:
		if len(p) < 3 {
			return 3, false
		}
		return 3 + int(binary.BigEndian.Uint16(p[1:])), true
	case EncapsulatedInterface:
		if deviceID {
			return deviceIDLen(p)
		}
	}
	return 0, false
}

// rtuLen turns the length of a PDU into that of its RTU frame. A length no frame
// can have is one that nothing tells.
func rtuLen(n int, known bool) (int, bool) {
	switch {
	case known && n <= MaxPDU:
		return n + 3, true
	case known || n == 0 || n > MaxPDU:
		return 0, false
	}
	return n + 1, false
}

// RTURequestLen tells how long the RTU request is that begins with prefix. n and
// known are as in RTUResponseLen.
func RTURequestLen(prefix []byte) (n int, known bool) {
	if len(prefix) < 2 {
		return 2, false
	}
	switch FunctionCode(prefix[1]) {
	case ReadCoils, ReadDiscreteInputs, ReadHoldingRegisters, ReadInputRegisters,
		WriteSingleCoil, WriteSingleRegister:
		return 8, true
	case ReadExceptionStatus, GetCommEventCounter, GetCommEventLog, ReportServerID:
		return MinRTU, true
	case Diagnostics:
		return diagnosticsLen(prefix)
	case WriteMultipleCoils, WriteMultipleRegisters:
		if len(prefix) < 7 {
			return 7, false
		}
		return rtuLen(6+int(prefix[6]), true)
	case ReadFileRecord, WriteFileRecord:
		if len(prefix) < 3 {
			return 3, false
		}
		return rtuLen(2+int(prefix[2]), true)
	case MaskWriteRegister:
		return 10, true
	case ReadWriteRegisters:
		if len(prefix) < 11 {
			return 11, false
		}
		return rtuLen(10+int(prefix[10]), true)
	case ReadFIFOQueue:
		return 6, true
	case EncapsulatedInterface:
		if len(prefix) < 3 {
			return 3, false
		}
		if prefix[2] == ReadDeviceIdentification {
			return 7, true
		}
	}
	return 0, false
}

// diagnosticsLen: sub-function 0 returns query data of any length, which
// nothing but its CRC ends when there is no silence to see.
func diagnosticsLen(prefix []byte) (n int, known bool) {
	if len(prefix) < 4 {
		return 4, false
	}
	if prefix[2] != 0 || prefix[3] != 0 {
		return 8, true
	}
	for n = 8; n <= len(prefix) && n <= MaxRTU; n += 2 {
		if binary.LittleEndian.Uint16(prefix[n-2:]) == CRC16(prefix[:n-2]) {
			return n, true
		}
	}
	if n > MaxRTU {
		return 0, false
	}
	return n, false
}

// LRC returns the longitudinal redundancy check of b: the two's complement of
// the sum of its bytes (SER 6.2.1).
func LRC(b []byte) byte {
	var sum byte
	for _, v := range b {
		sum += v
	}
	return -sum
}

// CRC16 returns the CRC of RTU frames (SER 6.2.2); its low byte is sent first.
func CRC16(b []byte) uint16 {
	crc := uint16(0xFFFF)
	for _, v := range b {
		crc = crc>>8 ^ crcTable[byte(crc)^v]
	}
	return crc
}

// crcTable holds the CRC of every single byte; it is never written to.
var crcTable = func() (t [256]uint16) {
	const polynomial = 0xA001
	for i := range t {
		crc := uint16(i)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ polynomial
			} else {
				crc >>= 1
			}
		}
		t[i] = crc
	}
	return t
}()
