package point

import (
	"fmt"
	"math"
	"math/bits"

	"fieldgate/internal/modbus"
)

// class says how the pattern of a type is read.
type class uint8

const (
	classUnsigned class = iota
	classSigned
	classBool
	classFloat
	classBCD
	classText  // String, Bytes: no pattern
	classClock // Datetime
)

func (t Type) class() class {
	switch t {
	case Bool:
		return classBool
	case Int8, Int16, Int32, Int64:
		return classSigned
	case Float16, Float32, Float64:
		return classFloat
	case BCD16, BCD32:
		return classBCD
	case String, Bytes:
		return classText
	case Datetime:
		return classClock
	}
	return classUnsigned
}

// Words returns how many registers the point covers from its Address, or 1 on
// the bit tables.
func (p Point) Words() int { return p.words() }

func (p *Point) words() int {
	switch p.Type {
	case Int32, Uint32, Float32, BCD32:
		return 2
	case Int64, Uint64, Float64:
		return 4
	case String, Bytes:
		return int(p.Length)
	case Datetime:
		return p.Layout.words()
	}
	return 1
}

// width returns the bits of the point's pattern; 0 if it has none, because it
// is text or a datetime made of fields.
func (p *Point) width() int {
	switch {
	case p.BitCount > 0:
		return 16 // Invalid looks at the whole register
	case p.Type == Bool:
		return 1
	case p.Type == Int8 || p.Type == Uint8:
		return 8
	case p.Type.class() == classText:
		return 0
	case p.Type == Datetime && !p.Layout.count():
		return 0
	}
	return 16 * p.words()
}

// join makes one pattern of 1, 2 or 4 registers. The order goes over values
// wider than a register only.
func join(regs []uint16, o Order) uint64 {
	switch len(regs) {
	case 1:
		return uint64(regs[0])
	case 2:
		a, b := regs[0], regs[1]
		if o == DCBA || o == CDAB {
			a, b = b, a
		}
		if o == DCBA || o == BADC {
			a, b = bits.ReverseBytes16(a), bits.ReverseBytes16(b)
		}
		return uint64(a)<<16 | uint64(b)
	}
	n := uint64(0)
	for i := range regs {
		w := regs[i]
		if o == DCBA || o == CDAB {
			w = regs[len(regs)-1-i]
		}
		if o == DCBA || o == BADC {
			w = bits.ReverseBytes16(w)
		}
		n = n<<16 | uint64(w)
	}
	return n
}

// split is the inverse of join.
func split(n uint64, words int, o Order) []uint16 {
	regs := make([]uint16, words)
	if words == 1 {
		regs[0] = uint16(n)
		return regs
	}
	for i := range regs {
		w := uint16(n >> (16 * (words - 1 - i)))
		if o == DCBA || o == BADC {
			w = bits.ReverseBytes16(w)
		}
		if o == DCBA || o == CDAB {
			regs[words-1-i] = w
		} else {
			regs[i] = w
		}
	}
	return regs
}

// Ordered reports whether Order has an effect on the point: on values wider
// than a register, and on text.
func (p *Point) Ordered() bool {
	switch {
	case p.Table.Bits() || p.BitCount > 0:
		return false
	case p.Type == Datetime:
		return p.Layout.count()
	}
	return p.Type.class() == classText || p.words() > 1
}

// EncodeMask returns the bits of its register that a bit field or an 8-bit
// half owns, and 0xFFFF for everything else. A point whose mask is not 0xFFFF
// is written by function 22 (mask write) or by reading the register, changing
// these bits and writing it back.
func (p Point) EncodeMask() uint16 {
	switch {
	case p.Table.Bits():
		return 0xFFFF
	case p.BitCount > 0:
		return uint16(1<<p.BitCount-1) << p.FirstBit
	case p.Type == Int8 || p.Type == Uint8:
		if p.LowByte {
			return 0x00FF
		}
		return 0xFF00
	}
	return 0xFFFF
}

// scaled reports whether raw and value differ by scale, offset or rounding.
func (p *Point) scaled() bool {
	return p.Round || p.Offset.Mant != 0 || !p.scaleIsOne()
}

func (p *Point) scaleIsOne() bool {
	return p.Scale.Mant == 0 || p.Scale == Decimal{Mant: 1}
}

// Validate returns what makes no sense in the combination of the point's
// settings, or nil. Decode and Encode rely on it.
func (p Point) Validate() error {
	if p.Table < modbus.Coils || p.Table > modbus.HoldingRegisters {
		return fmt.Errorf("no table; write coil, discrete, input or holding")
	}
	if int(p.Type) >= len(typeNames) || int(p.Order) >= len(orderNames) || int(p.Layout) >= len(layoutNames) {
		return fmt.Errorf("type, order or layout is out of range")
	}
	c := p.Type.class()
	switch {
	case p.Table.Bits() && p.Type != Bool:
		return fmt.Errorf("type %s does not fit %s, which is one bit; leave type out or write bool", p.TypeName(), FormatAddress(p.Table, p.Address))
	case p.Table.Bits() && p.BitCount != 0:
		return fmt.Errorf("bit and bits cut a register; %s is one bit already", FormatAddress(p.Table, p.Address))
	case !p.Table.Bits() && p.Type == Bool && p.BitCount != 1:
		return fmt.Errorf("type bool on a register needs bit: 0-15; for a whole register use uint16 with map: {0: off, 1: on}")
	case p.BitCount > 0 && p.Type != Bool && p.Type != Uint16:
		return fmt.Errorf("bit and bits cut a single register (uint16), not %s", p.TypeName())
	case int(p.FirstBit)+int(p.BitCount) > 16:
		return fmt.Errorf("bits %d-%d are outside the register's 0-15", p.FirstBit, int(p.FirstBit)+int(p.BitCount)-1)
	case c == classText && (p.Length < 1 || p.Length > modbus.MaxReadRegisters):
		return fmt.Errorf("%s is outside 1-%d registers", p.TypeName(), modbus.MaxReadRegisters)
	case int(p.Address)+p.words() > 1<<16:
		return fmt.Errorf("%s with %d registers ends past address 65535", FormatAddress(p.Table, p.Address), p.words())
	case p.LowByte && p.Type != Int8 && p.Type != Uint8:
		return fmt.Errorf("byte: low is for int8 and uint8, not %s", p.TypeName())
	case p.scaled() && (c == classText || c == classClock || c == classBool):
		return fmt.Errorf("scale, offset and decimals need a number, not %s", p.TypeName())
	case !sensible(p.Scale) || !sensible(p.Offset):
		return fmt.Errorf("scale %s and offset %s: both are 0 or between 1e-30 and 1e+30", p.Scale, p.Offset)
	case p.Round && (p.Decimals < 0 || p.Decimals > 15):
		return fmt.Errorf("decimals %d is outside 0-15", p.Decimals)
	case p.Map != nil && (c == classText || c == classClock || c == classFloat):
		return fmt.Errorf("map needs whole numbers, not %s", p.TypeName())
	case p.Map != nil && p.scaled():
		return fmt.Errorf("map names raw numbers; leave out scale, offset and decimals")
	}
	for i, e := range p.Map {
		if i > 0 && p.Map[i-1].Raw == e.Raw {
			return fmt.Errorf("map has %d twice", e.Raw)
		}
		if i > 0 && p.Map[i-1].Raw > e.Raw {
			return fmt.Errorf("map is not sorted by its raw numbers")
		}
		if _, err := p.fromRaw(e.Raw < 0, magnitude(e.Raw)); err != nil {
			return fmt.Errorf("map: %w", err)
		}
	}
	w := p.width()
	for _, n := range p.Invalid {
		if w == 0 {
			return fmt.Errorf("invalid has no meaning for %s", p.TypeName())
		}
		if w < 64 && n>>w != 0 {
			return fmt.Errorf("invalid: %#x is wider than the %d bits of %s", n, w, p.TypeName())
		}
	}
	if p.Write != nil {
		return p.validateWrite()
	}
	return nil
}

// sensible reports whether d is of a size that physics has a use for. Past
// that, results would leave the exponents of a Decimal.
func sensible(d Decimal) bool {
	f := math.Abs(d.Float64())
	return f == 0 || f >= 1e-30 && f <= 1e30
}

func (p *Point) validateWrite() error {
	w := p.Write
	if !p.Table.Writable() {
		return fmt.Errorf("write: %s can only be read", FormatAddress(p.Table, p.Address))
	}
	if p.words() > modbus.MaxWriteRegisters {
		return fmt.Errorf("write: %s is longer than the %d registers one request writes", p.TypeName(), modbus.MaxWriteRegisters)
	}
	switch {
	case w.Function == 0:
	case p.Table == modbus.Coils && w.Function != modbus.WriteSingleCoil && w.Function != modbus.WriteMultipleCoils:
		return fmt.Errorf("write: function %d does not write coils; write 5 or 15", w.Function)
	case p.Table == modbus.HoldingRegisters && w.Function != modbus.WriteSingleRegister && w.Function != modbus.WriteMultipleRegisters:
		return fmt.Errorf("write: function %d does not write holding registers; write 6 or 16", w.Function)
	case w.Function == modbus.WriteSingleRegister && p.words() > 1:
		return fmt.Errorf("write: function 6 writes one register, %s has %d", p.TypeName(), p.words())
	}
	if w.Min != nil || w.Max != nil || w.Step != nil {
		switch c := p.Type.class(); {
		case c == classText || c == classClock || c == classBool || p.Map != nil:
			return fmt.Errorf("write: min, max and step need a number; use only: […]")
		case w.Min != nil && w.Max != nil && w.Min.Cmp(*w.Max) > 0:
			return fmt.Errorf("write: min %s is above max %s", w.Min, w.Max)
		case w.Step != nil && w.Step.Mant <= 0:
			return fmt.Errorf("write: step %s is not above 0", w.Step)
		}
		// A limit that the registers cannot hold is a slip, in it or in the type.
		for _, l := range []struct {
			name string
			at   *Decimal
		}{{"min", w.Min}, {"max", w.Max}} {
			if l.at == nil {
				continue
			}
			if _, err := p.encode(DecimalValue(*l.at)); err != nil {
				return fmt.Errorf("write: %s: %w", l.name, err)
			}
		}
	}
	for _, v := range w.Only {
		if _, err := p.encode(v); err != nil {
			return fmt.Errorf("write: only: %w", err)
		}
	}
	return nil
}
