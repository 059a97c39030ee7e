package point

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"unicode/utf8"
)

// ErrInvalid is what Decode says of registers that hold no value: one of the
// point's Invalid patterns, a float that is NaN or infinite, BCD with a digit
// above 9, a datetime that is no date. The read worked; the sample is Bad.
var ErrInvalid = errors.New("the device says \"no value\"")

// The kinds of ErrInvalid, made once so that a poll of a broken sensor costs
// no allocation.
var (
	errNotFinite = fmt.Errorf("%w: not a finite number", ErrInvalid)
	errNotBCD    = fmt.Errorf("%w: a BCD digit is above 9", ErrInvalid)
	errNotDate   = fmt.Errorf("%w: not a date and time", ErrInvalid)
)

// Decode makes a value of regs, which are exactly Words() registers as the
// device sent them, or one word of 0 or 1 from the bit tables. It is the
// inverse of Encode. The error wraps ErrInvalid when the registers hold no
// value. The point must pass Validate.
//
// What comes out: a boolean for bool; an exact number for integers, BCD and
// float16 (as the shortest decimal that is the same float16), and for whatever
// has a scale, offset or decimals; float32 and float64 as they are otherwise;
// text for strings, for bytes (hexadecimal) and for datetimes (RFC 3339, UTC).
// With a map it is always text: a raw number that the map does not name comes
// out as its decimal digits.
//
// Numbers do not allocate. Results of more digits than 63 bits hold, which
// only 64-bit types with a scale make, are rounded to 18 digits.
func (p *Point) Decode(regs []uint16) (Value, error) {
	if len(regs) != p.words() {
		return Value{}, fmt.Errorf("%s: %d registers for the %d of %s", p.ID, len(regs), p.words(), p.TypeName())
	}
	switch p.Type {
	case String:
		return TextValue(decodeString(regs, p.Order)), nil
	case Bytes:
		return TextValue(decodeBytes(regs, p.Order)), nil
	case Datetime:
		if p.Layout.count() && p.Invalid != nil && slices.Contains(p.Invalid, join(regs, p.Order)) {
			return Value{}, ErrInvalid
		}
		t, ok := p.decodeClock(regs)
		if !ok {
			return Value{}, errNotDate
		}
		return TextValue(t.Format(p.Layout.format())), nil
	}
	n := join(regs, p.Order)
	if p.Type == Int8 || p.Type == Uint8 {
		if !p.LowByte {
			n >>= 8
		}
		n &= 0xFF
	}
	if p.Invalid != nil && slices.Contains(p.Invalid, n) {
		return Value{}, ErrInvalid
	}
	if p.BitCount > 0 {
		n = n >> p.FirstBit & (1<<p.BitCount - 1)
	}
	return p.fromPattern(n)
}

// fromPattern makes a value of the pattern of a type that has one.
func (p *Point) fromPattern(n uint64) (Value, error) {
	switch p.Type {
	case Bool:
		if p.Map != nil {
			return p.mapped(int64(min(n, 1))), nil
		}
		return BoolValue(n != 0), nil
	case Int8:
		return p.fromInt(int64(int8(n))), nil
	case Int16:
		return p.fromInt(int64(int16(n))), nil
	case Int32:
		return p.fromInt(int64(int32(n))), nil
	case Int64:
		return p.fromInt(int64(n)), nil
	case Float32:
		f := math.Float32frombits(uint32(n))
		if f-f != 0 {
			return Value{}, errNotFinite
		}
		return p.fromFloat(Float32Value(f))
	case Float64:
		f := math.Float64frombits(n)
		if f-f != 0 {
			return Value{}, errNotFinite
		}
		return p.fromFloat(Float64Value(f))
	case Float16:
		d, ok := shortestHalf(uint16(n))
		if !ok {
			return Value{}, errNotFinite
		}
		if !p.scaled() {
			return DecimalValue(d), nil
		}
		return p.scale(d.Mant < 0, magnitude(d.Mant), int(d.Exp)), nil
	case BCD16, BCD32:
		var ok bool
		if n, ok = fromBCD(n); !ok {
			return Value{}, errNotBCD
		}
	}
	if n <= math.MaxInt64 {
		return p.fromInt(int64(n)), nil
	}
	if p.Map != nil {
		return TextValue(strconv.FormatUint(n, 10)), nil // a map's numbers end at int64
	}
	if !p.scaled() {
		return UintValue(n), nil
	}
	return p.scale(false, n, 0), nil
}

// fromInt makes a value of a raw whole number.
func (p *Point) fromInt(n int64) Value {
	if p.Map != nil {
		return p.mapped(n)
	}
	if !p.scaled() {
		return IntValue(n)
	}
	// The usual case: a small raw, a short scale, an offset of no more places
	// than the scale. Everything fits into one word.
	const small = 1 << 31
	s, o := p.Scale, p.Offset
	if s.Mant == 0 {
		s = Decimal{Mant: 1}
	}
	if n > -small && n < small && s.Mant > -small && s.Mant < small {
		m, e := n*s.Mant, s.Exp
		switch shift := int(o.Exp) - int(e); {
		case o.Mant == 0:
		case shift >= 0 && shift <= 9 && o.Mant > -small && o.Mant < small:
			m += o.Mant * int64(pow10[shift])
		default:
			return p.scale(n < 0, magnitude(n), 0)
		}
		if p.Round && -e > p.Decimals {
			return p.scale(n < 0, magnitude(n), 0)
		}
		return small63(m, e)
	}
	return p.scale(n < 0, magnitude(n), 0)
}

// small63 returns the value m × 10^e.
func small63(m int64, e int8) Value {
	if m == 0 {
		return Value{kind: KindInt}
	}
	for e < 0 {
		q := m / 10
		if q*10 != m {
			return Value{kind: KindDecimal, num: uint64(m), exp: e}
		}
		m, e = q, e+1
	}
	if e == 0 {
		return IntValue(m)
	}
	return DecimalValue(Decimal{m, e})
}

// scale applies scale, offset and rounding to a raw number.
func (p *Point) scale(neg bool, mag uint64, exp int) Value {
	s := p.Scale
	if s.Mant == 0 {
		s = Decimal{Mant: 1}
	}
	w := mulWide(neg, mag, exp, s).add(p.Offset)
	if p.Round {
		w = w.round(int(p.Decimals))
	}
	return w.value()
}

// fromFloat makes a value of a finite raw float.
func (p *Point) fromFloat(v Value) (Value, error) {
	if !p.scaled() {
		return v, nil
	}
	neg, mag, exp, _ := v.parts() // finite, at most 17 digits
	v = p.scale(neg, mag, exp)
	if f := v.raw64(); v.kind == KindFloat64 && f-f != 0 {
		return Value{}, errNotFinite
	}
	return v, nil
}

// mapped returns the text of a raw number.
func (p *Point) mapped(n int64) Value {
	for i := range p.Map {
		if p.Map[i].Raw == n {
			return TextValue(p.Map[i].Text)
		}
	}
	return TextValue(strconv.FormatInt(n, 10))
}

// fromBCD reads four bits a digit; ok is false if one is above 9.
func fromBCD(n uint64) (v uint64, ok bool) {
	for shift := 60; shift >= 0; shift -= 4 {
		d := n >> shift & 15
		if d > 9 {
			return 0, false
		}
		v = v*10 + d
	}
	return v, true
}

// toBCD is the inverse of fromBCD for up to 16 digits.
func toBCD(v uint64) (n uint64) {
	for shift := 0; v > 0; shift += 4 {
		n |= v % 10 << shift
		v /= 10
	}
	return n
}

// halfToFloat widens an IEEE 754 binary16, exactly.
func halfToFloat(h uint16) float64 {
	m, e := int(h&0x3FF), int(h>>10&31)
	f := 0.0
	switch e {
	case 0:
		f = math.Ldexp(float64(m), -24)
	case 31:
		f = math.Inf(1)
		if m != 0 {
			f = math.NaN()
		}
	default:
		f = math.Ldexp(float64(m|0x400), e-25)
	}
	return math.Copysign(f, float64(1-2*int(h>>15)))
}

// floatToHalf returns the nearest binary16, ties to even; past 65519.99… it is
// infinite.
func floatToHalf(f float64) uint16 {
	sign := uint16(0)
	if math.Signbit(f) {
		sign, f = 0x8000, -f
	}
	if f >= 65520 {
		return sign | 0x7C00
	}
	e := -14
	if f >= 0x1p-14 {
		_, e = math.Frexp(f)
		e-- // f = 1.xxx × 2^e
	}
	m := uint16(math.RoundToEven(math.Ldexp(f, 10-e))) // 0-2048; the implied bit carries into the exponent
	return sign | uint16(e+14)<<10 + m
}

// shortestHalf returns the decimal of fewest digits that reads back as h, and
// whole numbers as they are; ok is false for NaN and infinities. Zero has no
// sign.
func shortestHalf(h uint16) (d Decimal, ok bool) {
	if h>>10&31 == 31 {
		return Decimal{}, false
	}
	f := halfToFloat(h)
	if f == math.Trunc(f) {
		return Decimal{Mant: int64(f)}.norm(), true
	}
	var buf [24]byte
	for digits := 0; ; digits++ { // 5 digits are always enough for 11 bits
		b := strconv.AppendFloat(buf[:0], f, 'e', digits, 64)
		neg, mag, exp, _ := scanDecimal(b)
		d, _ = makeDecimal(neg, mag, exp)
		if floatToHalf(d.Float64()) == h {
			return d, true
		}
	}
}

// swapsBytes reports whether an order exchanges the bytes of each register.
// That is all an order does to strings and bytes: their registers stay in
// sequence, for it is floats that a device swaps words in, not names.
func (o Order) swapsBytes() bool { return o == DCBA || o == BADC }

// decodeString reads text: up to the first NUL, without trailing spaces. Bytes
// that are no UTF-8 are taken as Latin-1.
func decodeString(regs []uint16, o Order) string {
	var buf [2 * 125]byte
	b := appendBytes(buf[:0], regs, o)
	if i := slices.Index(b, 0); i >= 0 {
		b = b[:i]
	}
	for len(b) > 0 && b[len(b)-1] == ' ' {
		b = b[:len(b)-1]
	}
	if utf8.Valid(b) {
		return string(b)
	}
	runes := make([]rune, len(b))
	for i, c := range b {
		runes[i] = rune(c)
	}
	return string(runes)
}

// decodeBytes returns lower-case hexadecimal digits, two a byte.
func decodeBytes(regs []uint16, o Order) string {
	var raw [2 * 125]byte
	var buf [4 * 125]byte
	return string(hex.AppendEncode(buf[:0], appendBytes(raw[:0], regs, o)))
}

func appendBytes(dst []byte, regs []uint16, o Order) []byte {
	for _, r := range regs {
		if o.swapsBytes() {
			r = bits.ReverseBytes16(r)
		}
		dst = append(dst, byte(r>>8), byte(r))
	}
	return dst
}
