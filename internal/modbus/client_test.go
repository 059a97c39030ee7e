package modbus

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestClientHelpers(t *testing.T) {
	ctx, m := context.Background(), newMemory(1000)
	read := func(table Table, addr, n uint16) []uint16 {
		t.Helper()
		v, err := ReadRegisters(ctx, m, 1, table, addr, n)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	check := func(got []uint16, want ...uint16) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	do := func(unit UnitID, req PDU) error { return errOf(Do(ctx, m, unit, req)) }
	ok(do(1, WriteRegisterRequest(5, 0xBEEF)))
	ok(do(1, WriteRegistersRequest(6, []uint16{1, 2})))
	check(read(HoldingRegisters, 4, 4), 0, 0xBEEF, 1, 2)
	ok(do(1, MaskWriteRequest(5, 0x00FF, 0x1200)))
	check(read(HoldingRegisters, 5, 1), 0x12EF)
	ok(do(1, WriteCoilRequest(3, true)))
	ok(do(1, WriteCoilsRequest(4, []bool{false, true, true, true, true, true, true, true, false, true})))
	check(read(Coils, 3, 11), 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1)
	ok(do(1, WriteCoilRequest(3, false)))
	check(read(Coils, 3, 1), 0)
	m.set(DiscreteInputs, 9, 1)
	m.set(InputRegisters, 9, 77)
	check(read(DiscreteInputs, 8, 3), 0, 1, 0)
	check(read(InputRegisters, 9, 1), 77)
	both := ReadWriteRequest(6, 3, 7, []uint16{8, 9})
	resp, err := Do(ctx, m, 1, both)
	ok(err)
	check(Registers(both, resp), 1, 8, 9) // the write comes first

	for name, err := range map[string]error{
		"read":       errOf(ReadRegisters(ctx, m, 1, Coils, 0, 0)),
		"coils":      do(1, WriteCoilsRequest(0, make([]bool, MaxWriteBits+1))),
		"registers":  do(1, WriteRegistersRequest(0, make([]uint16, MaxWriteRegisters+1))),
		"nothing":    do(1, WriteRegistersRequest(0, nil)),
		"read write": do(1, ReadWriteRequest(0, 1, 0, make([]uint16, MaxReadWriteRegisters+1))),
	} {
		if !errors.Is(err, ErrInvalidRequest) {
			t.Errorf("%s: %v, want ErrInvalidRequest", name, err)
		}
	}
	for name, err := range map[string]error{
		"read":       errOf(ReadRegisters(ctx, m, 1, Coils, 999, 2)),
		"write":      do(1, WriteRegisterRequest(1000, 0)),
		"mask":       do(1, MaskWriteRequest(1000, 0, 0)),
		"read write": do(1, ReadWriteRequest(0, 1, 1000, []uint16{0})),
	} {
		if !errors.Is(err, IllegalDataAddress) {
			t.Errorf("%s: %v, want exception 2", name, err)
		}
	}
	broken := endpointFunc(func(context.Context, UnitID, PDU) (PDU, error) { return PDU{3, 2, 0}, nil })
	if _, err := ReadRegisters(ctx, broken, 1, HoldingRegisters, 0, 1); !errors.Is(err, ErrBadResponse) {
		t.Errorf("a wrong answer: %v", err)
	}
	silent := endpointFunc(func(context.Context, UnitID, PDU) (PDU, error) { return nil, nil })
	if _, err := Do(ctx, silent, Broadcast, WriteRegisterRequest(0, 1)); err != nil {
		t.Errorf("a broadcast: %v", err)
	}
	if _, err := Do(ctx, silent, 1, WriteRegisterRequest(0, 1)); !errors.Is(err, ErrBadResponse) {
		t.Errorf("no answer to what is no broadcast: %v", err)
	}
}

func errOf[T any](_ T, err error) error { return err }

func TestReadDeviceID(t *testing.T) {
	ctx, m := context.Background(), newMemory(1)
	for _, c := range []struct {
		code DeviceIDCode
		want []byte // object ids
	}{
		{BasicID, []byte{0, 1, 2}},
		{RegularID, []byte{0, 1, 2, 4}},
		{ExtendedID, []byte{0, 1, 2, 4, 0x80, 0x81}}, // more than one response holds
		{OneID, []byte{0}},
	} {
		objects, err := ReadDeviceID(ctx, m, 1, c.code)
		if err != nil {
			t.Fatal(err)
		}
		var ids []byte
		for _, o := range objects {
			ids = append(ids, o.ID)
		}
		if !reflect.DeepEqual(ids, c.want) {
			t.Errorf("code %d: objects %v, want %v", c.code, ids, c.want)
		}
		if o := objects[0]; o.Name() != "vendor name" || string(o.Value) != "Fieldgate" {
			t.Errorf("object 0 is %s %q", o.Name(), o.Value)
		}
	}
	if name := (Object{ID: 0x81}).Name(); name != "object 0x81" {
		t.Errorf("object 0x81 is named %q", name)
	}
	round := endpointFunc(func(_ context.Context, _ UnitID, req PDU) (PDU, error) {
		return PDU{43, 14, req[2], 1, 0xFF, req[3], 1, req[3], 1, 'x'}, nil
	})
	if _, err := ReadDeviceID(ctx, round, 1, BasicID); !errors.Is(err, ErrBadResponse) {
		t.Errorf("a device that goes round for ever: %v", err)
	}
}

func TestAnswer(t *testing.T) {
	m := newMemory(100)
	for _, c := range []struct{ name, req, want string }{
		{"read past the end of the map", "03 0063 0002", "83 02"},
		{"quantity 0", "03 0000 0000", "83 03"},
		{"past 65535", "03 FFFF 0002", "83 02"},
		{"unknown function", "63", "E3 01"},
		{"diagnostics but loopback", "08 000B 0000", "88 01"},
		{"loopback", "08 0000 0102 0304", "08 0000 0102 0304"},
		{"fifo", "18 0000", "98 01"},
		{"exception status", "07", "87 01"},
		{"server id", "11", "11 05 74657374 FF"},
		{"CANopen", "2B 0D 00", "AB 01"},
		{"one object", "2B 0E 04 01", "2B 0E 04 83 00 00 01 01 02 4647"},
		{"one object that is not there", "2B 0E 04 07", "AB 02"},
		{"a stream from an object that is not there begins anew", "2B 0E 01 07", "2B 0E 01 83 00 00 03 00 09 4669656C6467617465 01 02 4647 02 03 312E30"},
		{"a stream in its middle", "2B 0E 01 02", "2B 0E 01 83 00 00 01 02 03 312E30"},
		{"coils set", "0F 0000 0003 01 05", "0F 0000 0003"},
		{"coils read", "01 0000 0004", "01 01 05"},
	} {
		resp, err := Answer(unhexed(t, c.req), m, testIdentity)
		if err != nil {
			resp = ExceptionResponse(FunctionCode(unhexed(t, c.req)[0]), ExceptionFor(err))
		}
		if want := unhexed(t, c.want); string(resp) != string(want) {
			t.Errorf("%s: % x, want % x", c.name, resp, want)
		}
	}
	for _, req := range []PDU{ServerIDRequest(), DeviceIDRequest(BasicID, 0)} {
		if _, err := Answer(req, m, Identity{}); err != IllegalFunction {
			t.Errorf("%v of a device without identity: %v", req.Function(), err)
		}
	}
	long := Identity{Objects: []Object{{0, []byte(strings.Repeat("x", 300))}}}
	resp, err := Answer(DeviceIDRequest(BasicID, 0), m, long)
	if err != nil || len(resp) != MaxPDU || CheckResponse(DeviceIDRequest(BasicID, 0), resp) != nil {
		t.Errorf("an object longer than a response: %d bytes, %v", len(resp), err)
	}
}
