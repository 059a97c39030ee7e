package modbus

import "encoding/binary"

// Memory is what a device keeps in its four tables. Coils and discrete inputs
// are words 0 and 1 here.
//
// Read fills dst with what stands from addr on; Write sets what stands from addr
// on and is only called for writable tables. Both get ranges that end at 65535
// at the latest, keep no reference to the slice and return an Exception to
// refuse: IllegalDataAddress for addresses that do not exist.
type Memory interface {
	Read(t Table, addr uint16, dst []uint16) error
	Write(t Table, addr uint16, src []uint16) error
}

// Identity is what a device says of itself to functions 17 and 43/14.
type Identity struct {
	ServerID []byte   // function 17 with the run indicator ON; nil: exception 1
	Objects  []Object // function 43/14, ascending ids; nil: exception 1
}

// Answers reports whether Answer has an answer to what req asks for, be it asked
// rightly or wrongly: a function, a diagnosis, an encapsulated interface that a
// server does not have is refused before anything else of the request is looked
// at (APP 6, state diagrams).
func Answers(req PDU, id Identity) bool {
	switch f := req.Function(); f {
	case ReadCoils, ReadDiscreteInputs, ReadHoldingRegisters, ReadInputRegisters,
		WriteSingleCoil, WriteSingleRegister, WriteMultipleCoils, WriteMultipleRegisters,
		MaskWriteRegister, ReadWriteRegisters:
		return true
	case Diagnostics:
		return len(req) < 3 || binary.BigEndian.Uint16(req[1:]) == 0
	case ReportServerID:
		return len(id.ServerID) > 0 && len(id.ServerID) < MaxPDU-2
	case EncapsulatedInterface:
		return len(id.Objects) > 0 && (len(req) < 2 || req[1] == ReadDeviceIdentification)
	}
	return false
}

// Answer answers req out of m, functions 1-6, 15, 16, 22, 23 and 8/0, and out of
// id functions 17 and 43/14. It makes every check the specification asks of a
// server and returns an Exception where it refuses. Function 22 reads and then
// writes, function 23 writes and then reads (APP 6.17): hold a lock around
// Answer to make each request one step.
func Answer(req PDU, m Memory, id Identity) (PDU, error) {
	if !Answers(req, id) {
		return nil, IllegalFunction
	}
	if err := CheckRequest(req); err != nil {
		return nil, ExceptionFor(err)
	}
	f := req.Function()
	switch f {
	case ReadCoils, ReadDiscreteInputs, ReadHoldingRegisters, ReadInputRegisters:
		return answerRead(req, m)
	case WriteSingleCoil, WriteSingleRegister, WriteMultipleCoils, WriteMultipleRegisters:
		t, addr, _, _ := req.Span()
		if err := m.Write(t, addr, Written(req)); err != nil {
			return nil, err
		}
		return append(PDU(nil), req[:5]...), nil
	case MaskWriteRegister:
		return answerMask(req, m)
	case ReadWriteRegisters:
		if err := m.Write(HoldingRegisters, binary.BigEndian.Uint16(req[5:]), Written(req)); err != nil {
			return nil, err
		}
		return answerRead(req, m)
	case ReportServerID:
		resp := append(PDU{byte(f), byte(len(id.ServerID) + 1)}, id.ServerID...)
		return append(resp, 0xFF), nil
	case EncapsulatedInterface:
		return answerDeviceID(req, id.Objects)
	}
	return append(PDU(nil), req...), nil // the query data of function 8
}

// Written returns the values a checked write request carries: bits as words 0
// and 1. Function 22 and functions that do not write have none.
func Written(req PDU) []uint16 {
	switch req.Function() {
	case WriteSingleCoil:
		return []uint16{uint16(req[3] & 1)}
	case WriteSingleRegister:
		return []uint16{binary.BigEndian.Uint16(req[3:])}
	case WriteMultipleCoils:
		n := int(binary.BigEndian.Uint16(req[3:]))
		return AppendBits(make([]uint16, 0, n), req[4:], n)
	case WriteMultipleRegisters:
		return appendRegisterBytes(nil, req[6:])
	case ReadWriteRegisters:
		return appendRegisterBytes(nil, req[10:])
	}
	return nil
}

func appendRegisterBytes(dst []uint16, b []byte) []uint16 {
	for ; len(b) >= 2; b = b[2:] {
		dst = append(dst, binary.BigEndian.Uint16(b))
	}
	return dst
}

func answerRead(req PDU, m Memory) (PDU, error) {
	t, addr, n, _ := req.Span()
	values := make([]uint16, n)
	if err := m.Read(t, addr, values); err != nil {
		return nil, err
	}
	if t.Bits() {
		resp := make(PDU, 2+bitBytes(n))
		resp[0], resp[1] = req[0], byte(bitBytes(n))
		for i, v := range values {
			if v != 0 {
				resp[2+i/8] |= 1 << (i % 8)
			}
		}
		return resp, nil
	}
	return appendWords(append(make(PDU, 0, 2+2*n), req[0], byte(2*n)), values), nil
}

func answerMask(req PDU, m Memory) (PDU, error) {
	addr, and, or := binary.BigEndian.Uint16(req[1:]), binary.BigEndian.Uint16(req[3:]), binary.BigEndian.Uint16(req[5:])
	var v [1]uint16
	if err := m.Read(HoldingRegisters, addr, v[:]); err != nil {
		return nil, err
	}
	v[0] = v[0]&and | or&^and
	if err := m.Write(HoldingRegisters, addr, v[:]); err != nil {
		return nil, err
	}
	return append(PDU(nil), req...), nil
}

// answerDeviceID streams the objects of the asked category, as many as one
// response holds; the client asks for the rest (APP 6.21).
func answerDeviceID(req PDU, objects []Object) (PDU, error) {
	code, from := DeviceIDCode(req[2]), req[3]
	last := map[DeviceIDCode]byte{BasicID: 0x02, RegularID: 0x7F, ExtendedID: 0xFF, OneID: from}[code]
	start := indexObject(objects, from)
	if start < 0 {
		if code == OneID {
			return nil, IllegalDataAddress
		}
		start = 0 // an unknown first object begins the stream anew (APP 6.21)
	}
	// Conformity: the widest category there is, with access to single objects.
	conformity := byte(0x81)
	switch top := objects[len(objects)-1].ID; {
	case top >= 0x80:
		conformity = 0x83
	case top > 0x02:
		conformity = 0x82
	}
	resp := PDU{req[0], req[1], req[2], conformity, 0, 0, 0}
	for _, o := range objects[start:] {
		if o.ID > last {
			break
		}
		// An object never is in parts; a longer value is cut.
		value := o.Value[:min(len(o.Value), MaxPDU-9)]
		if len(resp)+2+len(value) > MaxPDU {
			resp[4], resp[5] = 0xFF, o.ID
			break
		}
		resp = append(append(resp, o.ID, byte(len(value))), value...)
		resp[6]++
	}
	return resp, nil
}

func indexObject(objects []Object, id byte) int {
	for i, o := range objects {
		if o.ID == id {
			return i
		}
	}
	return -1
}
