package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Values are what one write sends. They are made by Encode.
type Values struct {
	point    point.Point // the first of them
	regs     []uint16    // or bits
	function modbus.FunctionCode
}

// ErrPart is what Encode says of several values that are each a part of a
// register: such a value is written alone.
var ErrPart = errors.New("a part of a register is written alone")

// Encode turns values, as a person writes them, into those of one write to p and
// what follows it. The function is 5, 6, 15 or 16; with 0 it is 5 or 6 for one
// coil or register, 15 or 16 for several. The error says which value p cannot
// hold, or what one write cannot do; then nothing is to be sent.
func Encode(p point.Point, texts []string, function modbus.FunctionCode) (Values, error) {
	v := Values{point: p, function: function}
	for _, text := range texts {
		regs, err := p.Encode(p.Parse(text))
		if err != nil {
			return Values{}, err
		}
		v.regs = append(v.regs, regs...)
	}
	several := len(v.regs) > 1
	if function == 0 {
		v.function = usual(p.Table, several)
	}
	p.Write = &point.Write{Function: v.function}
	if err := p.Validate(); err != nil {
		return Values{}, err
	}
	single := v.function == modbus.WriteSingleCoil || v.function == modbus.WriteSingleRegister
	switch {
	case single && several:
		return Values{}, fmt.Errorf("function %d writes one value, not %d", v.function, len(v.regs))
	case v.partly() && several:
		return Values{}, ErrPart
	case len(v.regs) > p.Table.MaxWrite():
		return Values{}, fmt.Errorf("one request writes %d at most, not %d", p.Table.MaxWrite(), len(v.regs))
	case int(p.Address)+len(v.regs) > 1<<16:
		return Values{}, fmt.Errorf("%d from %s on end past address 65535", len(v.regs), point.FormatAddress(p.Table, p.Address))
	}
	return v, nil
}

// usual is the function that nearly every device takes.
func usual(t modbus.Table, several bool) modbus.FunctionCode {
	switch {
	case t == modbus.Coils && several:
		return modbus.WriteMultipleCoils
	case t == modbus.Coils:
		return modbus.WriteSingleCoil
	case several:
		return modbus.WriteMultipleRegisters
	}
	return modbus.WriteSingleRegister
}

// partly reports whether only a part of a register is written.
func (v Values) partly() bool { return v.point.EncodeMask() != 0xFFFF }

// request returns the request that writes regs where v goes.
func (v Values) request(regs []uint16) modbus.PDU {
	addr := v.point.Address
	switch v.function {
	case modbus.WriteSingleCoil:
		return modbus.WriteCoilRequest(addr, regs[0] != 0)
	case modbus.WriteMultipleCoils:
		on := make([]bool, len(regs))
		for i, r := range regs {
			on[i] = r != 0
		}
		return modbus.WriteCoilsRequest(addr, on)
	case modbus.WriteSingleRegister:
		return modbus.WriteRegisterRequest(addr, regs[0])
	}
	return modbus.WriteRegistersRequest(addr, regs)
}

// shownIn reports whether regs are what v writes.
func (v Values) shownIn(regs []uint16) bool {
	mask := v.point.EncodeMask()
	return slices.EqualFunc(v.regs, regs, func(a, b uint16) bool { return a&mask == b&mask })
}

// Outcome says what became of a write.
type Outcome uint8

// The outcomes.
const (
	Failed   Outcome = iota // the device has not done it
	Unknown                 // it may have done it
	Written                 // it has said so, and was not asked what it shows, or has not told
	Verified                // it shows what was written
	Differs                 // it has said so, but shows another value
)

// Result is what a write came to.
type Result struct {
	Outcome Outcome
	// Shown is what the device shows after the write, or, where it was not
	// asked, what was sent. It is nil if neither is known.
	Shown []Reading
	// Err is why the write Failed or is Unknown; with Written, why it could not
	// be read back; with Verified, why the write itself looked as if it had
	// gone wrong.
	Err error
}

// Write writes v and, with verify, reads it back: nobody has to trust an answer,
// and where that is lost it can still be seen what the device did. A broadcast
// is not read back, because no unit answers it.
//
// A part of a register is written by function 22, and where the device does not
// know that, by reading the register, changing the part and writing it back;
// what the device itself changes in between is lost. Errors of the result are
// of type Error.
func (u Unit) Write(ctx context.Context, v Values, verify bool) Result {
	answered, err := u.send(ctx, v)
	switch {
	case err == nil && !(verify && answered):
		return Result{Outcome: Written, Shown: decodeAll(v.point, v.regs)}
	case err != nil && (!Unanswered(err) || errors.Is(err, modbus.ErrNotConnected)):
		return Result{Outcome: Failed, Err: err}
	case err != nil && !verify:
		return Result{Outcome: Unknown, Err: err}
	}
	regs, readErr := u.readBack(ctx, v)
	same := readErr == nil && v.shownIn(regs)
	switch {
	case same:
		return Result{Outcome: Verified, Shown: decodeAll(v.point, regs), Err: err}
	case err != nil:
		return Result{Outcome: Unknown, Err: err}
	case readErr != nil:
		return Result{Outcome: Written, Err: readErr}
	}
	return Result{Outcome: Differs, Shown: decodeAll(v.point, regs)}
}

// send writes v. answered is false for a broadcast.
func (u Unit) send(ctx context.Context, v Values) (answered bool, err error) {
	if !v.partly() {
		return u.sendOne(ctx, v, v.request(v.regs))
	}
	t, addr, mask := v.point.Table, v.point.Address, v.point.EncodeMask()
	answered, err = u.sendOne(ctx, v, modbus.MaskWriteRequest(addr, ^mask, v.regs[0]))
	if !errors.Is(err, modbus.IllegalFunction) {
		return answered, err
	}
	old, err := u.read(ctx, t, addr, 1)
	if err != nil {
		return false, &Error{u.ID, modbus.ReadRequest(t, addr, 1).Function(), "read " + point.FormatAddress(t, addr), err}
	}
	return u.sendOne(ctx, v, v.request([]uint16{old[0]&^mask | v.regs[0]}))
}

// sendOne makes one request of the write of v.
func (u Unit) sendOne(ctx context.Context, v Values, req modbus.PDU) (answered bool, err error) {
	resp, err := modbus.Do(ctx, u.Endpoint, u.ID, req)
	if err != nil {
		what := fmt.Sprintf("write %s+%d", point.FormatAddress(v.point.Table, v.point.Address), len(v.regs))
		return false, &Error{u.ID, req.Function(), what, err}
	}
	return len(resp) > 0, nil
}

// readBack reads what the device shows where v was written.
func (u Unit) readBack(ctx context.Context, v Values) ([]uint16, error) {
	var shown []uint16
	err := u.Read(ctx, v.point, len(v.regs)/v.point.Words(), func(r Reading) error {
		shown = append(shown, r.Raw...)
		return nil
	})
	return shown, err
}
