package modbus

import (
	"context"
	"fmt"
)

// ReadRegisters reads n coils, inputs or registers of table t from addr on
// through ep; bits come as words 0 and 1. It makes exactly one request.
func ReadRegisters(ctx context.Context, ep Endpoint, unit UnitID, t Table, addr, n uint16) ([]uint16, error) {
	req := ReadRequest(t, addr, n)
	resp, err := Do(ctx, ep, unit, req)
	if err != nil {
		return nil, err
	}
	return Registers(req, resp), nil
}

// Object is one object of a device's identification (APP 6.21).
type Object struct {
	ID    byte
	Value []byte
}

// Name returns the specification's name of the object, or its number.
func (o Object) Name() string {
	names := [...]string{"vendor name", "product code", "revision", "vendor url", "product name", "model name", "application name"}
	if int(o.ID) < len(names) {
		return names[o.ID]
	}
	return fmt.Sprintf("object %#02x", o.ID)
}

// ReadDeviceID reads the device's identification objects of a category
// (function 43/14), with as many requests as the device asks for.
func ReadDeviceID(ctx context.Context, ep Endpoint, unit UnitID, code DeviceIDCode) ([]Object, error) {
	var objects []Object
	next := byte(0)
	for {
		req := DeviceIDRequest(code, next)
		resp, err := Do(ctx, ep, unit, req)
		if err != nil {
			return objects, err
		}
		for b := resp[7:]; len(b) >= 2; b = b[2+int(b[1]):] {
			objects = append(objects, Object{ID: b[0], Value: b[2 : 2+int(b[1])]})
		}
		if resp[4] == 0 {
			return objects, nil
		}
		if resp[5] <= next {
			// Following it would go round for ever.
			return objects, bad(EncapsulatedInterface, "next object %d is not after %d", resp[5], next)
		}
		next = resp[5]
	}
}

// Do checks req, has ep answer it and checks the answer. The second check costs
// little and makes the helpers safe with any Endpoint. A request to Broadcast
// that nobody answers gives a nil PDU and no error.
func Do(ctx context.Context, ep Endpoint, unit UnitID, req PDU) (PDU, error) {
	if err := CheckRequest(req); err != nil {
		return nil, err
	}
	resp, err := ep.Do(ctx, unit, req)
	if err != nil {
		return nil, err
	}
	if unit == Broadcast && len(resp) == 0 && req.Function().Broadcasts() {
		return nil, nil // nobody answers a broadcast
	}
	if err := CheckResponse(req, resp); err != nil {
		return nil, err
	}
	return resp, nil
}
