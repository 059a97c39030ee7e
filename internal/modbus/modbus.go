// Package modbus is the Modbus protocol without any wire: protocol data units
// (PDU), their framing on TCP (MBAP), RTU and ASCII, the checks a client and a
// server owe each other, and the server side. It opens nothing and keeps no
// time; package line does that.
//
// The types to know are PDU (one request or response), Endpoint (whatever
// answers a request) and Exception (a device's refusal).
//
// Clause numbers in this package are those of the "MODBUS Application Protocol
// Specification V1.1b3" (APP) and of "MODBUS over Serial Line V1.02" (SER).
package modbus

import (
	"context"
	"errors"
	"fmt"

	goburrow "github.com/goburrow/modbus"
)

// UnitID addresses one device on a bus: 1-247 on serial lines, 0 is broadcast
// there (SER 2.2). TCP devices also use 248-255 (APP MBAP, "Unit Identifier").
type UnitID uint8

// Broadcast reaches every device of a serial line; none of them answers.
const Broadcast UnitID = 0

// Table is one of the four primary tables of a device (APP 4.3).
type Table uint8

// The four tables. The zero value is none of them.
const (
	Coils            Table = iota + 1 // one bit, read and write
	DiscreteInputs                    // one bit, read only
	InputRegisters                    // 16 bits, read only
	HoldingRegisters                  // 16 bits, read and write
)

// String returns the word the configuration uses: coil, discrete, input, holding.
func (t Table) String() string {
	switch t {
	case Coils:
		return "coil"
	case DiscreteInputs:
		return "discrete"
	case InputRegisters:
		return "input"
	case HoldingRegisters:
		return "holding"
	}
	return "table?"
}

// Bits reports whether the table holds single bits rather than 16-bit registers.
func (t Table) Bits() bool { return t == Coils || t == DiscreteInputs }

// Writable reports whether a client may write the table.
func (t Table) Writable() bool { return t == Coils || t == HoldingRegisters }

// FunctionCode names the operation of a PDU (APP 5).
type FunctionCode uint8

// The function codes this package knows in both directions.
const (
	ReadCoils              FunctionCode = goburrow.FuncCodeReadCoils
	ReadDiscreteInputs     FunctionCode = goburrow.FuncCodeReadDiscreteInputs
	ReadHoldingRegisters   FunctionCode = goburrow.FuncCodeReadHoldingRegisters
	ReadInputRegisters     FunctionCode = goburrow.FuncCodeReadInputRegisters
	WriteSingleCoil        FunctionCode = goburrow.FuncCodeWriteSingleCoil
	WriteSingleRegister    FunctionCode = goburrow.FuncCodeWriteSingleRegister
	ReadExceptionStatus    FunctionCode = 7
	Diagnostics            FunctionCode = 8
	GetCommEventCounter    FunctionCode = 11
	GetCommEventLog        FunctionCode = 12
	WriteMultipleCoils     FunctionCode = goburrow.FuncCodeWriteMultipleCoils
	WriteMultipleRegisters FunctionCode = goburrow.FuncCodeWriteMultipleRegisters
	ReportServerID         FunctionCode = 17
	MaskWriteRegister      FunctionCode = goburrow.FuncCodeMaskWriteRegister
	ReadWriteRegisters     FunctionCode = goburrow.FuncCodeReadWriteMultipleRegisters
	ReadFIFOQueue          FunctionCode = goburrow.FuncCodeReadFIFOQueue
	EncapsulatedInterface  FunctionCode = 43 // 43/14 = read device identification
)

// Limits of one request (APP 6.1-6.17).
const (
	MaxPDU                = 253  // bytes, function code included (APP 4.1)
	MaxReadBits           = 2000 // coils or discrete inputs in one read
	MaxReadRegisters      = 125
	MaxWriteBits          = 1968
	MaxWriteRegisters     = 123
	MaxReadWriteRead      = 125 // FC 23, registers read
	MaxReadWriteRegisters = 121 // FC 23, registers written
)

// PDU is a protocol data unit: the function code and its data, 1-253 bytes.
// Whoever receives a PDU from a call owns it.
type PDU []byte

// Function returns the function code, or 0 for an empty PDU. In an exception
// response the high bit is set (APP 7).
func (p PDU) Function() FunctionCode {
	if len(p) == 0 {
		return 0
	}
	return FunctionCode(p[0])
}

// Exception is a device's refusal, the one data byte of an exception response
// (APP 7). As an error it says what the code means.
type Exception uint8

// The exceptions of APP 7.
const (
	IllegalFunction         Exception = goburrow.ExceptionCodeIllegalFunction
	IllegalDataAddress      Exception = goburrow.ExceptionCodeIllegalDataAddress
	IllegalDataValue        Exception = goburrow.ExceptionCodeIllegalDataValue
	ServerDeviceFailure     Exception = goburrow.ExceptionCodeServerDeviceFailure
	Acknowledge             Exception = goburrow.ExceptionCodeAcknowledge
	ServerDeviceBusy        Exception = goburrow.ExceptionCodeServerDeviceBusy
	MemoryParityError       Exception = goburrow.ExceptionCodeMemoryParityError
	GatewayPathUnavailable  Exception = goburrow.ExceptionCodeGatewayPathUnavailable
	GatewayTargetNoResponse Exception = goburrow.ExceptionCodeGatewayTargetDeviceFailedToRespond
)

// Error implements error: "exception 2: illegal data address".
func (e Exception) Error() string {
	name := "unknown"
	switch e {
	case IllegalFunction:
		name = "illegal function"
	case IllegalDataAddress:
		name = "illegal data address"
	case IllegalDataValue:
		name = "illegal data value"
	case ServerDeviceFailure:
		name = "server device failure"
	case Acknowledge:
		name = "acknowledge, the device needs more time"
	case ServerDeviceBusy:
		name = "server device busy"
	case MemoryParityError:
		name = "memory parity error"
	case GatewayPathUnavailable:
		name = "gateway path unavailable"
	case GatewayTargetNoResponse:
		name = "gateway target device failed to respond"
	}
	return fmt.Sprintf("exception %d: %s", uint8(e), name)
}

// What an Endpoint may answer beside a PDU and an Exception. Test with errors.Is.
var (
	// ErrNoResponse: the request was sent and nothing usable came back in
	// time. For a write this means unknown, not failed.
	ErrNoResponse = errors.New("no response")
	// ErrBadResponse: bytes came back that are no valid answer to this
	// request (CRC, wrong unit, wrong function, wrong length). For a write
	// this means unknown, not failed.
	ErrBadResponse = errors.New("bad response")
	// ErrNotConnected: the wire is not open; the request was not sent.
	ErrNotConnected = errors.New("not connected")
	// ErrInvalidRequest: the request breaks the specification and was not sent.
	ErrInvalidRequest = errors.New("invalid request")
)

// Endpoint answers one request. A serial line, a TCP connection, a served
// register map and a simulated device are all Endpoints; so pass-through is
// Serve(listener, line).
//
// Do returns the response to req, already checked against it (function,
// lengths, echoed address), or an error: an Exception when the device refused,
// otherwise one that wraps ErrNoResponse, ErrBadResponse, ErrNotConnected,
// ErrInvalidRequest or the context's error. A request to Broadcast on a serial
// line returns an empty PDU and no error once it is sent. Do keeps no
// reference to req. It is safe for use by several goroutines.
type Endpoint interface {
	Do(ctx context.Context, unit UnitID, req PDU) (PDU, error)
}
