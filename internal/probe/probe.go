// Package probe asks devices that one does not know yet: it reads and writes
// values and looks what became of them, finds the units of a bus and the
// registers of a unit, shows registers in every type and order, and says in
// words what the answer to a raw request means. It prints nothing, knows no
// configuration and opens no wire; all it needs is a modbus.Endpoint.
//
// It is not the way of a gateway, which package bus is: there is no schedule
// here, no repeat and no order among callers. What asks for many things waits
// between two requests, so that the bus stays usable for others.
//
// The types to know are Unit (whom to ask), Reading (a value with its registers)
// and Error (a request that failed).
package probe

import (
	"context"
	"errors"
	"fmt"
	"time"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Unit is one unit id at an endpoint.
type Unit struct {
	Endpoint modbus.Endpoint
	ID       modbus.UnitID
}

// Error is a request that failed, with what it was for. Errors of a caller's own
// function and of what could not be asked at all are none.
type Error struct {
	Unit     modbus.UnitID
	Function modbus.FunctionCode
	What     string // "read holding 0+2"
	Err      error  // the Endpoint's
}

// Error implements error: "unit 7: read holding 0+2: no response".
func (e *Error) Error() string { return fmt.Sprintf("unit %d: %s: %v", e.Unit, e.What, e.Err) }

// Unwrap returns the Endpoint's error.
func (e *Error) Unwrap() error { return e.Err }

// Unanswered reports whether err means that the device itself gave no answer:
// none came, only a damaged one, there is no wire, or a gateway on the way
// answered in its place. The device may have done what it was asked, but for
// modbus.ErrNotConnected.
func Unanswered(err error) bool {
	var refused modbus.Exception
	if errors.As(err, &refused) {
		return refused == modbus.GatewayPathUnavailable || refused == modbus.GatewayTargetNoResponse
	}
	return errors.Is(err, modbus.ErrNoResponse) || errors.Is(err, modbus.ErrNotConnected) || errors.Is(err, modbus.ErrBadResponse)
}

// read makes one request for n registers or bits.
func (u Unit) read(ctx context.Context, t modbus.Table, addr uint16, n int) ([]uint16, error) {
	return modbus.ReadRegisters(ctx, u.Endpoint, u.ID, t, addr, uint16(n))
}

// readFailed returns the Error of a read.
func (u Unit) readFailed(t modbus.Table, addr uint16, n int, err error) error {
	return &Error{u.ID, modbus.ReadRequest(t, addr, 1).Function(), fmt.Sprintf("read %s+%d", point.FormatAddress(t, addr), n), err}
}

// missing reports whether a device refuses a read because it lacks some of the
// registers.
func missing(err error) bool {
	return errors.Is(err, modbus.IllegalDataAddress) || errors.Is(err, modbus.IllegalDataValue)
}

// pause waits between two requests. The error is ctx's.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
