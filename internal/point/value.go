package point

import (
	"math"
	"strconv"
	"unicode/utf8"
)

// Value is one value: a number (64-bit integers are exact), a boolean or text.
// The zero Value is no value. Values are copied without allocation.
//
// Values compare with ==. Exact numbers have one form each, whatever they were
// made from: IntValue(25), UintValue(25) and DecimalValue of 25.0 are ==. Floating-point values
// compare by their bits and are never == to an exact number; Equal compares
// those as numbers.
type Value struct {
	kind Kind
	exp  int8
	num  uint64
	text string
}

// Kind says what a Value holds.
type Kind uint8

// The kinds. None is the zero Value's. An exact whole number is KindInt if it
// fits into an int64, KindUint if only a uint64 holds it, and KindDecimal past
// that; every exact number with decimal places is KindDecimal.
const (
	None Kind = iota
	KindInt
	KindUint
	KindFloat32
	KindFloat64
	KindDecimal
	KindBool
	KindText
)

// String returns a word for messages: "number", "boolean", "text", "no value".
func (k Kind) String() string {
	switch k {
	case None:
		return "no value"
	case KindBool:
		return "boolean"
	case KindText:
		return "text"
	}
	return "number"
}

// IntValue returns the value n.
func IntValue(n int64) Value { return Value{kind: KindInt, num: uint64(n)} }

// UintValue returns the value n.
func UintValue(n uint64) Value {
	if n <= math.MaxInt64 {
		return Value{kind: KindInt, num: n}
	}
	return Value{kind: KindUint, num: n}
}

// Float32Value returns the value f, which prints in the shortest form that reads
// back as the same float32: 25.4, not 25.399999618530273.
func Float32Value(f float32) Value { return Value{kind: KindFloat32, num: uint64(math.Float32bits(f))} }

// Float64Value returns the value f.
func Float64Value(f float64) Value { return Value{kind: KindFloat64, num: math.Float64bits(f)} }

// BoolValue returns the value b.
func BoolValue(b bool) Value {
	if b {
		return Value{kind: KindBool, num: 1}
	}
	return Value{kind: KindBool}
}

// TextValue returns the value s.
func TextValue(s string) Value { return Value{kind: KindText, text: s} }

// DecimalValue returns the value d.
func DecimalValue(d Decimal) Value {
	d = d.norm()
	if d.Exp < 0 {
		return Value{kind: KindDecimal, num: uint64(d.Mant), exp: d.Exp}
	}
	return exact(d.Mant < 0, magnitude(d.Mant), int(d.Exp))
}

// exact returns (-1)^neg × mag × 10^exp for a normalized decimal with exp >= 0.
func exact(neg bool, mag uint64, exp int) Value {
	if whole, ok := scaleUp(mag, exp); ok {
		switch {
		case !neg:
			return UintValue(whole)
		case whole <= 1<<63:
			return IntValue(-int64(whole))
		}
	}
	m := int64(mag)
	if neg {
		m = -m
	}
	return Value{kind: KindDecimal, num: uint64(m), exp: int8(exp)}
}

// scaleUp returns mag × 10^exp if 64 bits hold it; exp >= 0.
func scaleUp(mag uint64, exp int) (uint64, bool) {
	if exp >= len(pow10) || mag > math.MaxUint64/pow10[exp] {
		return 0, mag == 0
	}
	return mag * pow10[exp], true
}

// ParseValue reads text as a person or a program writes a value: a decimal
// number ("75.5", "-3", "1e3", "0x1F"), true or false; everything else,
// surrounding space included, is text. Numbers with more digits than an exact
// value holds become the nearest float64. See Point.Parse for text that is
// meant for one point.
func ParseValue(text string) Value {
	switch text {
	case "true":
		return BoolValue(true)
	case "false":
		return BoolValue(false)
	}
	if v, ok := parseNumber(text); ok {
		return v
	}
	return TextValue(text)
}

func parseNumber(text string) (Value, bool) {
	if neg, mag, exp, ok := scanDecimal(text); ok {
		if d, ok := makeDecimal(neg, mag, exp); ok {
			return DecimalValue(d), true
		}
		if exp >= 0 && !neg {
			if n, ok := scaleUp(mag, exp); ok {
				return UintValue(n), true
			}
		}
	}
	if len(text) > 2 && text[0] == '0' && (text[1] == 'x' || text[1] == 'X') {
		n, err := strconv.ParseUint(text[2:], 16, 64)
		return UintValue(n), err == nil
	}
	if text == "" || !(text[0] == '-' || text[0] == '+' || text[0] == '.' || text[0] >= '0' && text[0] <= '9') {
		return Value{}, false // also keeps "inf" and "nan" text
	}
	for i := range len(text) {
		switch c := text[i]; {
		case c >= '0' && c <= '9', c == '.', c == '-', c == '+', c == 'e', c == 'E':
		default:
			return Value{}, false // no "0x1p-2", no "+Inf", no "1_000"
		}
	}
	f, err := strconv.ParseFloat(text, 64)
	return Float64Value(f), err == nil
}

// Kind says what v holds.
func (v Value) Kind() Kind { return v.kind }

// IsZero reports whether v is no value.
func (v Value) IsZero() bool { return v.kind == None }

// Float64 returns the float64 nearest to the number v; booleans count as 1 and
// 0. ok is false for text, no value, NaN and infinities.
func (v Value) Float64() (f float64, ok bool) {
	switch v.kind {
	case KindInt, KindBool:
		return float64(int64(v.num)), true
	case KindUint:
		return float64(v.num), true
	case KindFloat32:
		f = float64(math.Float32frombits(uint32(v.num)))
		return f, f-f == 0
	case KindFloat64:
		f = math.Float64frombits(v.num)
		return f, f-f == 0
	case KindDecimal:
		return v.dec().Float64(), true
	}
	return 0, false
}

// dec returns the decimal that a KindDecimal holds.
func (v Value) dec() Decimal { return Decimal{int64(v.num), v.exp} }

// Int64 returns v if it is a whole number in the range of an int64, whatever
// its kind; booleans count as 1 and 0.
func (v Value) Int64() (n int64, ok bool) {
	switch v.kind {
	case KindInt, KindBool:
		return int64(v.num), true
	case KindFloat32, KindFloat64:
		f, ok := v.Float64()
		if !ok || f != math.Trunc(f) || f < -1<<63 || f >= 1<<63 {
			return 0, false
		}
		return int64(f), true
	}
	return 0, false
}

// Uint64 returns v if it is a whole number in the range of a uint64, whatever
// its kind; booleans count as 1 and 0.
func (v Value) Uint64() (n uint64, ok bool) {
	switch v.kind {
	case KindInt, KindBool:
		return v.num, int64(v.num) >= 0
	case KindUint:
		return v.num, true
	case KindFloat32, KindFloat64:
		f, ok := v.Float64()
		if !ok || f != math.Trunc(f) || f < 0 || f >= 1<<64 {
			return 0, false
		}
		return uint64(f), true
	}
	return 0, false
}

// Decimal returns the number v exactly; a floating-point value counts as the
// shortest decimal number that reads back as the same float, booleans as 1 and
// 0. ok is false for text, no value, NaN, infinities, and numbers that a
// Decimal cannot hold (a uint64 above the int64 range, a float below 1e-110).
func (v Value) Decimal() (d Decimal, ok bool) {
	neg, mag, exp, ok := v.parts()
	if !ok {
		return Decimal{}, false
	}
	return makeDecimal(neg, mag, exp)
}

// parts returns the number v as (-1)^neg × mag × 10^exp.
func (v Value) parts() (neg bool, mag uint64, exp int, ok bool) {
	switch v.kind {
	case KindInt, KindBool:
		return int64(v.num) < 0, magnitude(int64(v.num)), 0, true
	case KindUint:
		return false, v.num, 0, true
	case KindDecimal:
		return int64(v.num) < 0, magnitude(int64(v.num)), int(v.exp), true
	case KindFloat32, KindFloat64:
		f, ok := v.Float64()
		if !ok {
			return false, 0, 0, false
		}
		size := 64
		if v.kind == KindFloat32 {
			size = 32
		}
		var buf [32]byte
		return scanDecimal(strconv.AppendFloat(buf[:0], f, 'e', -1, size))
	}
	return false, 0, 0, false
}

// Bool returns the boolean v; ok is false for every other kind.
func (v Value) Bool() (b, ok bool) { return v.num != 0, v.kind == KindBool }

// Text returns the text v; ok is false for every other kind.
func (v Value) Text() (s string, ok bool) { return v.text, v.kind == KindText }

// Equal reports whether a and b are the same number, the same text or both no
// value. Numbers of different kinds are compared as the decimal numbers they
// print as, so the float32 25.4 equals the decimal 25.4. Booleans equal the
// numbers 1 and 0. NaN equals nothing.
func Equal(a, b Value) bool {
	if a.kind == KindText || b.kind == KindText || a.kind == None || b.kind == None {
		return a == b
	}
	c, ok := Compare(a, b)
	return ok && c == 0
}

// Compare returns -1, 0 or 1 as the number a is less than, equal to or greater
// than b, compared as the decimal numbers they print as; booleans count as 1
// and 0. ok is false if one of them is no number, or NaN.
func Compare(a, b Value) (c int, ok bool) {
	an, am, ae, aok := a.parts()
	bn, bm, be, bok := b.parts()
	if !aok || !bok {
		return compareInf(a, b)
	}
	an, bn = an && am != 0, bn && bm != 0
	switch {
	case an && !bn:
		return -1, true
	case bn && !an:
		return 1, true
	case an:
		return -cmpMag(am, ae, bm, be), true
	}
	return cmpMag(am, ae, bm, be), true
}

// compareInf is Compare where at least one side is no finite number.
func compareInf(a, b Value) (int, bool) {
	x, y := a.raw64(), b.raw64()
	switch {
	case x < y:
		return -1, true
	case x > y:
		return 1, true
	}
	return 0, x == y
}

// raw64 is Float64 with infinities let through; what is no number is NaN.
func (v Value) raw64() float64 {
	switch v.kind {
	case KindFloat32:
		return float64(math.Float32frombits(uint32(v.num)))
	case KindFloat64:
		return math.Float64frombits(v.num)
	}
	if f, ok := v.Float64(); ok {
		return f
	}
	return math.NaN()
}

// String returns AppendText's spelling; "" for no value.
func (v Value) String() string {
	if v.kind == KindText {
		return v.text
	}
	var buf [40]byte
	return string(v.AppendText(buf[:0]))
}

// AppendText appends v as a raw payload has it: 25.4, 1 or 0 for booleans,
// text as it is, nothing for no value. NaN and infinities append NaN, Inf and
// -Inf; Decode never makes those.
func (v Value) AppendText(dst []byte) []byte {
	switch v.kind {
	case KindBool:
		return append(dst, '0'+byte(v.num))
	case KindText:
		return append(dst, v.text...)
	case None:
		return dst
	case KindFloat32, KindFloat64:
		switch f := v.raw64(); {
		case f != f:
			return append(dst, "NaN"...)
		case math.IsInf(f, 1):
			return append(dst, "Inf"...)
		case math.IsInf(f, -1):
			return append(dst, "-Inf"...)
		}
	}
	return v.appendNumber(dst)
}

// AppendJSON appends v as a JSON value: numbers as numbers (64-bit integers
// with all their digits), true and false, text as a string. No value, NaN and
// infinities are null. Bytes of text that are no UTF-8 become U+FFFD.
func (v Value) AppendJSON(dst []byte) []byte {
	switch v.kind {
	case KindBool:
		return strconv.AppendBool(dst, v.num != 0)
	case KindText:
		return AppendJSONString(dst, v.text)
	case None:
		return append(dst, "null"...)
	case KindFloat32, KindFloat64:
		if f := v.raw64(); f-f != 0 {
			return append(dst, "null"...)
		}
	}
	return v.appendNumber(dst)
}

// appendNumber appends a finite number. Every spelling is a JSON number, and a
// negative zero is 0.
func (v Value) appendNumber(dst []byte) []byte {
	switch v.kind {
	case KindInt:
		return strconv.AppendInt(dst, int64(v.num), 10)
	case KindUint:
		return strconv.AppendUint(dst, v.num, 10)
	case KindDecimal:
		return v.dec().AppendText(dst)
	}
	size := 64
	if v.kind == KindFloat32 {
		size = 32
	}
	f := v.raw64()
	if f == 0 {
		return append(dst, '0')
	}
	format := byte('f')
	if a := math.Abs(f); a < 1e-6 || a >= 1e21 {
		format = 'e'
	}
	return strconv.AppendFloat(dst, f, format, -1, size)
}

// MarshalJSON implements json.Marshaler by AppendJSON.
func (v Value) MarshalJSON() ([]byte, error) { return v.AppendJSON(nil), nil }

// AppendJSONString appends s as a JSON string. Unlike encoding/json it leaves
// <, > and & alone; bytes that are no UTF-8 become U+FFFD.
func AppendJSONString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
			dst = append(dst, s[start:i]...)
			dst = append(dst, `\ufffd`...)
			i++
			start = i
			continue
		}
		dst = append(dst, s[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}
