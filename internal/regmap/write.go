package regmap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// store takes the words that a PLC writes to entries, which cover them exactly.
func (m *Map) store(ctx context.Context, entries []entry, src []uint16) error {
	var writes []Write
	var pauses []pause
	var first *entry // of those written
	for i := range entries {
		e := &entries[i]
		var words []uint16
		words, src = src[:len(e.words)], src[len(e.words):]
		switch {
		case e.Show == config.ShowPause:
			if words[0] > maxPause {
				return modbus.IllegalDataValue
			}
			pauses = append(pauses, pause{e.Device, time.Duration(words[0]) * time.Second})
		case !e.Writable:
			return modbus.IllegalDataAddress
		default:
			v, err := e.Point.Decode(words)
			if err != nil {
				return modbus.IllegalDataValue // not a number, no date
			}
			if first == nil {
				first = e
			}
			writes = append(writes, Write{e.Point.ID, v})
		}
	}
	by := modbus.Client(ctx)
	if len(writes) > 0 {
		if m.gate.Write == nil {
			return modbus.ServerDeviceFailure
		}
		err := m.gate.Write(ctx, by, writes)
		m.tell(first, by, len(writes), err)
		if err != nil {
			return exceptionOf(err)
		}
	}
	for _, p := range pauses {
		if err := m.gate.Pause(p.device, by, p.d); err != nil {
			return err
		}
	}
	return nil
}

// tell logs what became of a write, once for each way in which it fails: a PLC
// writes on and on.
func (m *Map) tell(e *entry, by string, points int, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	m.mu.Lock()
	news := e.told != text
	e.told = text
	m.mu.Unlock()
	if news && err != nil {
		m.log.Info("write refused or failed", "client", by, "point", string(e.Point.ID), "points", points, "err", err)
	}
}

type pause struct {
	device string
	d      time.Duration
}

// exceptionOf turns what Gate.Write says into what modbus.ExceptionFor does not
// know by itself.
func exceptionOf(err error) error {
	var e modbus.Exception
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, ErrRefused):
		return modbus.IllegalDataValue
	case errors.Is(err, point.ErrReadOnly):
		return modbus.IllegalDataAddress
	}
	return err
}

// passOn hands a request on to a bus, if it may go there. What writes is recorded
// first, and when it has failed.
func (m *Map) passOn(ctx context.Context, bus modbus.Endpoint, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	writes, err := m.mayPass(req)
	if err != nil {
		return nil, err
	}
	p := Passage{By: modbus.Client(ctx), Bus: m.busOf(unit), Unit: unit, Request: req}
	if writes {
		if err := m.gate.Record(ctx, p); err != nil {
			return nil, err
		}
	}
	resp, err := bus.Do(ctx, unit, req)
	if err == nil {
		return resp, nil
	}
	if writes {
		p.Err = err
		if e := m.gate.Record(ctx, p); e != nil {
			m.log.Warn("the failure of a passed write is not recorded", "unit", uint8(unit), "err", e)
		}
	}
	return nil, fmt.Errorf("unit %d: %v: %w", unit, req.Function(), err)
}

// busOf returns the name of the bus that a unit's requests go on to.
func (m *Map) busOf(unit modbus.UnitID) string {
	for _, p := range m.cfg.Pass {
		if p.From <= unit && unit <= p.To {
			return p.Bus
		}
	}
	return ""
}

// Passage is a write that goes on to a bus as it is.
type Passage struct {
	By      string // client
	Bus     string
	Unit    modbus.UnitID
	Request modbus.PDU
	Err     error // why it failed; nil: it is about to be sent
}

// mayEver reports whether a request may go on to a bus as far as what it asks for
// tells. It may be malformed.
func (m *Map) mayEver(req modbus.PDU) bool {
	w, f := &m.cfg.PassWrites, req.Function()
	return onlyReads(req) || w.All || len(w.Spans) > 0 && f.Writes() && f != modbus.WriteFileRecord
}

// mayPass reports whether a checked request may go on to a bus: what only reads
// always may; what writes, or changes the state of the device, only as pass_writes
// says.
func (m *Map) mayPass(req modbus.PDU) (writes bool, err error) {
	switch {
	case onlyReads(req):
		return false, nil
	case m.cfg.PassWrites.All:
		return true, nil
	case !m.mayEver(req):
		return false, modbus.IllegalFunction
	}
	t, from, n := req.WriteSpan()
	for _, s := range m.cfg.PassWrites.Spans {
		if s.Table == t && s.From <= from && int(from)+n-1 <= int(s.To) {
			return true, nil
		}
	}
	return false, modbus.IllegalDataAddress
}

// onlyReads reports whether a request changes nothing in the device, be it as it
// should be or malformed.
func onlyReads(req modbus.PDU) bool {
	switch req.Function() {
	case modbus.ReadCoils, modbus.ReadDiscreteInputs, modbus.ReadHoldingRegisters, modbus.ReadInputRegisters,
		modbus.ReadExceptionStatus, modbus.GetCommEventCounter, modbus.GetCommEventLog, modbus.ReportServerID,
		modbus.ReadFileRecord, modbus.ReadFIFOQueue:
		return true
	case modbus.Diagnostics: // others restart the device, or silence it
		return len(req) < 3 || req[1] == 0 && req[2] == 0
	case modbus.EncapsulatedInterface:
		return len(req) < 2 || req[1] == modbus.ReadDeviceIdentification
	}
	return false
}
