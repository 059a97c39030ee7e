package modbus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// requestError is a request that breaks the specification, with the exception a
// server owes for it.
type requestError struct {
	function  FunctionCode
	exception Exception
	text      string
}

func (e *requestError) Error() string {
	return fmt.Sprintf("%v: %v: %s", ErrInvalidRequest, e.function, e.text)
}

func (e *requestError) Unwrap() error { return ErrInvalidRequest }

// ExceptionFor returns the exception a server answers with when its Endpoint
// failed with err: an Exception itself, what the specification asks for a
// request that CheckRequest refused, 0x0B when the device behind did not
// answer, 0x0A when the way to it is not open, and 4 for everything else.
func ExceptionFor(err error) Exception {
	var refused Exception
	var invalid *requestError
	switch {
	case errors.As(err, &refused):
		return refused
	case errors.As(err, &invalid):
		return invalid.exception
	case errors.Is(err, ErrInvalidRequest):
		return IllegalDataValue
	case errors.Is(err, ErrNoResponse):
		return GatewayTargetNoResponse
	case errors.Is(err, ErrNotConnected):
		return GatewayPathUnavailable
	}
	return ServerDeviceFailure
}

// CheckRequest returns nil when req may be sent: known functions have exactly
// the length, byte count, quantities and values the specification allows, and
// no address passes 65535. Of functions it does not know it checks only the
// size. The error wraps ErrInvalidRequest.
func CheckRequest(req PDU) error {
	f := req.Function()
	if len(req) == 0 || len(req) > MaxPDU {
		return &requestError{f, IllegalDataValue, fmt.Sprintf("%d bytes are outside 1-%d", len(req), MaxPDU)}
	}
	if f == 0 || f&exceptionBit != 0 {
		return &requestError{f, IllegalFunction, fmt.Sprintf("code %d is outside 1-127", uint8(f))}
	}
	switch f {
	case ReadCoils, ReadDiscreteInputs:
		return checkSpan(req, 5, MaxReadBits)
	case ReadHoldingRegisters, ReadInputRegisters:
		return checkSpan(req, 5, MaxReadRegisters)
	case WriteSingleCoil:
		if err := checkLength(req, 5); err != nil {
			return err
		}
		if v := binary.BigEndian.Uint16(req[3:]); v != 0 && v != 0xFF00 {
			return &requestError{f, IllegalDataValue, fmt.Sprintf("value %#04x is neither 0x0000 nor 0xff00", v)}
		}
	case WriteSingleRegister:
		return checkLength(req, 5)
	case ReadExceptionStatus, GetCommEventCounter, GetCommEventLog, ReportServerID:
		return checkLength(req, 1)
	case Diagnostics:
		return checkDiagnostics(req)
	case WriteMultipleCoils:
		return checkWrite(req, MaxWriteBits, bitBytes)
	case WriteMultipleRegisters:
		return checkWrite(req, MaxWriteRegisters, registerBytes)
	case ReadFileRecord:
		_, err := fileReadLen(req)
		return err
	case WriteFileRecord:
		return checkFileWrite(req)
	case MaskWriteRegister:
		return checkLength(req, 7)
	case ReadWriteRegisters:
		return checkReadWrite(req)
	case ReadFIFOQueue:
		return checkLength(req, 3)
	case EncapsulatedInterface:
		return checkEncapsulated(req)
	}
	return nil
}

func registerBytes(n int) int { return 2 * n }

func checkLength(req PDU, want int) error {
	if len(req) != want {
		return &requestError{req.Function(), IllegalDataValue, fmt.Sprintf("%d bytes, want %d", len(req), want)}
	}
	return nil
}

// checkSpan checks the address and quantity in the first five bytes of req;
// length is what req must have, or 0 for any.
func checkSpan(req PDU, length, limit int) error {
	if length != 0 {
		if err := checkLength(req, length); err != nil {
			return err
		}
	}
	return checkRange(req.Function(), req[1:], limit)
}

// checkRange checks the address and quantity in the first four bytes of b.
// Quantity comes before address, as in the state diagrams of APP 6.
func checkRange(f FunctionCode, b []byte, limit int) error {
	addr, n := int(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
	if n < 1 || n > limit {
		return &requestError{f, IllegalDataValue, fmt.Sprintf("quantity %d is outside 1-%d", n, limit)}
	}
	if addr+n > 1<<16 {
		return &requestError{f, IllegalDataAddress, fmt.Sprintf("address %d and quantity %d pass 65535", addr, n)}
	}
	return nil
}

func checkWrite(req PDU, limit int, size func(int) int) error {
	f := req.Function()
	if len(req) < 6 {
		return &requestError{f, IllegalDataValue, fmt.Sprintf("%d bytes are too few", len(req))}
	}
	if err := checkSpan(req, 0, limit); err != nil {
		return err
	}
	return checkCount(f, req[5:], size(int(binary.BigEndian.Uint16(req[3:]))))
}

// checkCount checks that b is a byte count and as many bytes, both want.
func checkCount(f FunctionCode, b []byte, want int) error {
	if count := int(b[0]); count != want || len(b)-1 != want {
		return &requestError{f, IllegalDataValue,
			fmt.Sprintf("byte count %d and %d bytes of values, want %d", count, len(b)-1, want)}
	}
	return nil
}

func checkReadWrite(req PDU) error {
	f := req.Function()
	if len(req) < 10 {
		return &requestError{f, IllegalDataValue, fmt.Sprintf("%d bytes are too few", len(req))}
	}
	if err := checkRange(f, req[1:], MaxReadWriteRead); err != nil {
		return err
	}
	if err := checkRange(f, req[5:], MaxReadWriteRegisters); err != nil {
		return err
	}
	return checkCount(f, req[9:], 2*int(binary.BigEndian.Uint16(req[7:])))
}

// checkDiagnostics: only sub-function 0 takes more than one word of data (APP 6.8).
func checkDiagnostics(req PDU) error {
	if len(req) < 5 || len(req)%2 == 0 || len(req) > 5 && binary.BigEndian.Uint16(req[1:]) != 0 {
		return &requestError{Diagnostics, IllegalDataValue, fmt.Sprintf("%d bytes do not fit the sub-function", len(req))}
	}
	return nil
}

func checkEncapsulated(req PDU) error {
	if len(req) < 2 {
		return &requestError{EncapsulatedInterface, IllegalDataValue, "no MEI type"}
	}
	if req[1] != ReadDeviceIdentification {
		return nil
	}
	if err := checkLength(req, 4); err != nil {
		return err
	}
	if c := DeviceIDCode(req[2]); c < BasicID || c > OneID {
		return &requestError{EncapsulatedInterface, IllegalDataValue, fmt.Sprintf("device id code %d is outside 1-4", c)}
	}
	return nil
}

// fileReadLen checks a function 20 request (APP 6.14) and returns the length of
// its normal response.
func fileReadLen(req PDU) (int, error) {
	bad := func(text string) (int, error) {
		return 0, &requestError{ReadFileRecord, IllegalDataValue, text}
	}
	if len(req) < 2 || int(req[1]) != len(req)-2 {
		return bad("byte count does not match")
	}
	if n := int(req[1]); n < 7 || n > 245 || n%7 != 0 {
		return bad(fmt.Sprintf("byte count %d is no multiple of 7 in 7-245", n))
	}
	length := 2
	for b := req[2:]; len(b) > 0; b = b[7:] {
		if err := checkRecord(ReadFileRecord, b); err != nil {
			return 0, err
		}
		length += 2 + 2*int(binary.BigEndian.Uint16(b[5:]))
	}
	if length > MaxPDU {
		return bad(fmt.Sprintf("the response would have %d bytes, more than %d", length, MaxPDU))
	}
	return length, nil
}

// checkRecord checks the seven bytes that name a file record: reference type,
// file, record, length (APP 6.14).
func checkRecord(f FunctionCode, b []byte) error {
	file, record, n := binary.BigEndian.Uint16(b[1:]), binary.BigEndian.Uint16(b[3:]), int(binary.BigEndian.Uint16(b[5:]))
	const lastRecord = 9999
	switch {
	case b[0] != 6:
		return &requestError{f, IllegalDataAddress, fmt.Sprintf("reference type %d is not 6", b[0])}
	case file == 0:
		return &requestError{f, IllegalDataAddress, "file 0 does not exist"}
	case n == 0:
		return &requestError{f, IllegalDataValue, "record length 0"}
	case int(record)+n > lastRecord+1:
		return &requestError{f, IllegalDataAddress, fmt.Sprintf("record %d and length %d pass %d", record, n, lastRecord)}
	}
	return nil
}

func checkFileWrite(req PDU) error {
	if len(req) < 11 || int(req[1]) != len(req)-2 {
		return &requestError{WriteFileRecord, IllegalDataValue, "byte count does not match"}
	}
	for b := []byte(req[2:]); len(b) > 0; {
		if len(b) < 9 {
			return &requestError{WriteFileRecord, IllegalDataValue, "record cut short"}
		}
		if err := checkRecord(WriteFileRecord, b); err != nil {
			return err
		}
		end := 7 + 2*int(binary.BigEndian.Uint16(b[5:]))
		if end > len(b) {
			return &requestError{WriteFileRecord, IllegalDataValue, "record cut short"}
		}
		b = b[end:]
	}
	return nil
}

// ResponseLen returns the length of the normal response PDU to req where the
// request alone fixes it. An exception response has 2 bytes always.
func ResponseLen(req PDU) (n int, ok bool) {
	switch f := req.Function(); f {
	case ReadCoils, ReadDiscreteInputs:
		if len(req) >= 5 {
			return 2 + bitBytes(int(binary.BigEndian.Uint16(req[3:]))), true
		}
	case ReadHoldingRegisters, ReadInputRegisters, ReadWriteRegisters:
		if len(req) >= 5 {
			return 2 + 2*int(binary.BigEndian.Uint16(req[3:])), true
		}
	case WriteSingleCoil, WriteSingleRegister, WriteMultipleCoils, WriteMultipleRegisters, GetCommEventCounter:
		return 5, true
	case ReadExceptionStatus:
		return 2, true
	case Diagnostics:
		// Sub-function 0 returns what it was sent; all others have one word.
		return len(req), len(req) >= 5
	case ReadFileRecord:
		n, err := fileReadLen(req)
		return n, err == nil
	case WriteFileRecord, MaskWriteRegister:
		return len(req), true
	}
	return 0, false
}

// CheckResponse tells what resp is to req, which CheckRequest has passed. It
// returns nil for a normal response that answers req in every respect - the
// function, the length and byte count that the quantity asks for, the address,
// value and quantity that a write echoes; the Exception of a well-formed
// exception response; and an error that wraps ErrBadResponse for anything else.
func CheckResponse(req, resp PDU) error {
	f, got := req.Function(), resp.Function()
	switch {
	case len(resp) == 0:
		return bad(f, "empty")
	case len(resp) > MaxPDU:
		return bad(f, "%d bytes are more than %d", len(resp), MaxPDU)
	case got == f|exceptionBit:
		if len(resp) != 2 || resp[1] == 0 {
			return bad(f, "malformed exception % x", []byte(resp))
		}
		return Exception(resp[1])
	case got != f:
		return bad(f, "function %d instead of %d", uint8(got), uint8(f))
	}
	if want, ok := ResponseLen(req); ok && len(resp) != want {
		return bad(f, "%d bytes, want %d", len(resp), want)
	}
	switch f {
	case ReadCoils, ReadDiscreteInputs, ReadHoldingRegisters, ReadInputRegisters, ReadWriteRegisters:
		if int(resp[1]) != len(resp)-2 {
			return bad(f, "byte count %d, want %d", resp[1], len(resp)-2)
		}
	case WriteSingleCoil, WriteSingleRegister, WriteFileRecord, MaskWriteRegister:
		return checkEcho(req, resp, len(req))
	case WriteMultipleCoils, WriteMultipleRegisters:
		return checkEcho(req, resp, 5)
	case Diagnostics:
		return checkDiagnosticsEcho(req, resp)
	case GetCommEventLog:
		// Status, event count and message count, then at most 64 events (APP 6.10).
		if len(resp) < 8 || len(resp) > 72 || int(resp[1]) != len(resp)-2 {
			return bad(f, "byte count does not fit %d bytes", len(resp))
		}
	case ReportServerID:
		if len(resp) < 3 || int(resp[1]) != len(resp)-2 {
			return bad(f, "byte count does not fit %d bytes", len(resp))
		}
	case ReadFileRecord:
		return checkFileRead(req, resp)
	case ReadFIFOQueue:
		return checkFIFO(resp)
	case EncapsulatedInterface:
		return checkEncapsulatedResponse(req, resp)
	}
	return nil
}

func bad(f FunctionCode, format string, args ...any) error {
	return fmt.Errorf("%w: %v: %s", ErrBadResponse, f, fmt.Sprintf(format, args...))
}

// checkEcho checks that resp repeats the first n bytes of req and is no longer.
func checkEcho(req, resp PDU, n int) error {
	if !bytes.Equal(req[:n], resp) {
		return bad(req.Function(), "echo % x, want % x", []byte(resp), []byte(req[:n]))
	}
	return nil
}

// checkDiagnosticsEcho: the sub-function comes back, and with sub-functions
// that report nothing the data too (APP 6.8.1).
func checkDiagnosticsEcho(req, resp PDU) error {
	switch binary.BigEndian.Uint16(req[1:]) {
	case 0, 1, 3, 10, 20:
		return checkEcho(req, resp, len(req))
	}
	if !bytes.Equal(req[:3], resp[:3]) {
		return bad(Diagnostics, "sub-function % x, want % x", []byte(resp[1:3]), []byte(req[1:3]))
	}
	return nil
}

func checkFileRead(req, resp PDU) error {
	if int(resp[1]) != len(resp)-2 {
		return bad(ReadFileRecord, "byte count %d, want %d", resp[1], len(resp)-2)
	}
	r := resp[2:]
	for q := req[2:]; len(q) >= 7; q = q[7:] {
		n := 1 + 2*int(binary.BigEndian.Uint16(q[5:]))
		if int(r[0]) != n || r[1] != 6 {
			return bad(ReadFileRecord, "record header % x, want % x", []byte(r[:2]), []byte{byte(n), 6})
		}
		r = r[1+n:]
	}
	return nil
}

func checkFIFO(resp PDU) error {
	if len(resp) < 5 {
		return bad(ReadFIFOQueue, "%d bytes are too few", len(resp))
	}
	count, n := int(binary.BigEndian.Uint16(resp[1:])), int(binary.BigEndian.Uint16(resp[3:]))
	if n > MaxFIFO || count != 2+2*n || len(resp) != 3+count {
		return bad(ReadFIFOQueue, "byte count %d and register count %d in %d bytes", count, n, len(resp))
	}
	return nil
}

func checkEncapsulatedResponse(req, resp PDU) error {
	if len(resp) < 2 || resp[1] != req[1] {
		return bad(EncapsulatedInterface, "MEI type is not %d", req[1])
	}
	if req[1] != ReadDeviceIdentification {
		return nil
	}
	if n, known := deviceIDLen(resp); !known || n != len(resp) {
		return bad(EncapsulatedInterface, "objects do not fit %d bytes", len(resp))
	}
	if resp[2] != req[2] {
		return bad(EncapsulatedInterface, "device id code %d, want %d", resp[2], req[2])
	}
	if more := resp[4]; more != 0 && more != 0xFF {
		return bad(EncapsulatedInterface, "more follows is %#02x", more)
	}
	if DeviceIDCode(req[2]) == OneID && (resp[6] != 1 || resp[7] != req[3]) {
		return bad(EncapsulatedInterface, "answers another object than %d", req[3])
	}
	return nil
}

// deviceIDLen returns the length of a 43/14 response PDU out of its first
// bytes; when they do not tell yet, n is how many are needed to ask again.
func deviceIDLen(p []byte) (n int, known bool) {
	if len(p) < 7 {
		return 7, false
	}
	n = 7
	for range p[6] {
		if len(p) < n+2 {
			return n + 2, false
		}
		n += 2 + int(p[n+1])
	}
	return n, true
}
