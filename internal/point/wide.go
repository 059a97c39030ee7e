package point

import (
	"math"
	"math/bits"
	"strconv"
)

// wide is (-1)^neg × (hi:lo) × 10^exp, an exact product of a raw value and a
// scale before it is rounded into a Value.
type wide struct {
	neg    bool
	hi, lo uint64
	exp    int
}

// mulWide returns a × d exactly, where a is (-1)^neg × mag × 10^exp.
func mulWide(neg bool, mag uint64, exp int, d Decimal) wide {
	hi, lo := bits.Mul64(mag, magnitude(d.Mant))
	return wide{neg != (d.Mant < 0), hi, lo, exp + int(d.Exp)}
}

// mul64 returns w × n and whether it fits.
func (w wide) mul64(n uint64) (wide, bool) {
	h1, l1 := bits.Mul64(w.lo, n)
	h2, l2 := bits.Mul64(w.hi, n)
	hi, carry := bits.Add64(l2, h1, 0)
	w.hi, w.lo = hi, l1
	return w, h2 == 0 && carry == 0
}

// div64 returns w / n and the remainder.
func (w wide) div64(n uint64) (wide, uint64) {
	q, r := bits.Div64(0, w.hi, n)
	lo, r := bits.Div64(r, w.lo, n)
	w.hi, w.lo = q, lo
	return w, r
}

// drop rounds away the last k decimal digits, half away from zero.
func (w wide) drop(k int) wide {
	w.exp += k
	for ; k > 19; k -= 19 { // only the last step decides the rounding, up to a digit in the 19th place behind it
		w, _ = w.div64(pow10[19])
	}
	if k == 0 {
		return w
	}
	w, r := w.div64(pow10[k])
	if r >= pow10[k]-pow10[k]/2 {
		var carry uint64
		w.lo, carry = bits.Add64(w.lo, 1, 0)
		w.hi += carry
	}
	return w
}

// upTo scales w to the smaller exponent exp as far as 128 bits hold it.
func (w wide) upTo(exp int) wide {
	for w.exp > exp {
		k := min(w.exp-exp, 19)
		for k > 0 {
			if n, ok := w.mul64(pow10[k]); ok {
				n.exp -= k
				w = n
				break
			}
			k--
		}
		if k == 0 {
			break
		}
	}
	return w
}

// add returns w + d. Digits more than 38 places below the larger one are
// rounded away.
func (w wide) add(d Decimal) wide {
	e := wide{d.Mant < 0, 0, magnitude(d.Mant), int(d.Exp)}
	switch {
	case d.Mant == 0:
		return w
	case w.hi == 0 && w.lo == 0:
		return e
	case w.exp > e.exp:
		w = w.upTo(e.exp)
	default:
		e = e.upTo(w.exp)
	}
	if w.exp > e.exp {
		e = e.drop(w.exp - e.exp)
	} else if e.exp > w.exp {
		w = w.drop(e.exp - w.exp)
	}
	if w.neg == e.neg {
		for {
			lo, carry := bits.Add64(w.lo, e.lo, 0)
			hi, over := bits.Add64(w.hi, e.hi, carry)
			if over == 0 {
				w.lo, w.hi = lo, hi
				return w
			}
			w, e = w.drop(1), e.drop(1)
		}
	}
	lo, borrow := bits.Sub64(w.lo, e.lo, 0)
	hi, under := bits.Sub64(w.hi, e.hi, borrow)
	if under != 0 {
		w.neg = e.neg
		lo, borrow = bits.Sub64(e.lo, w.lo, 0)
		hi, _ = bits.Sub64(e.hi, w.hi, borrow)
	}
	w.lo, w.hi = lo, hi
	return w
}

// round rounds to places decimal places, half away from zero.
func (w wide) round(places int) wide {
	if k := -places - w.exp; k > 0 {
		return w.drop(min(k, 60))
	}
	return w
}

// fits reports whether a Value holds all digits of w.
func (w wide) fits() bool {
	if w.hi != 0 {
		return false
	}
	return w.lo <= math.MaxInt64 || w.neg && w.lo == 1<<63 || w.exp == 0 && !w.neg
}

// value returns w as a Value, rounded to the 18 or 19 digits that an int64
// holds; only numbers past Decimal's exponents become the nearest float64.
func (w wide) value() Value {
	for !w.fits() {
		n, r := w.div64(10)
		if r != 0 {
			break
		}
		w = n
		w.exp++
	}
	if !w.fits() {
		k := max(1, (bits.Len64(w.hi)+64-63)*1233>>12) // digits above 63 bits, rounded down
		n := w.drop(k)
		for ; !n.fits(); n = w.drop(k) {
			k++
		}
		w = n
	}
	if w.lo == 0 {
		return Value{kind: KindInt}
	}
	for w.lo%10 == 0 {
		w.lo /= 10
		w.exp++
	}
	if w.exp > math.MaxInt8 || w.exp < math.MinInt8 {
		var buf [32]byte
		b := buf[:0]
		if w.neg {
			b = append(b, '-')
		}
		b = strconv.AppendUint(b, w.lo, 10)
		b = append(b, 'e')
		b = strconv.AppendInt(b, int64(w.exp), 10)
		f, _ := strconv.ParseFloat(string(b), 64) // well formed; out of range is Inf, which Decode refuses
		if d, ok := Float64Value(f).Decimal(); ok {
			return DecimalValue(d) // zero, or short enough after all: one form for equal numbers
		}
		return Float64Value(f)
	}
	if w.exp >= 0 {
		return exact(w.neg, w.lo, w.exp)
	}
	m := int64(w.lo)
	if w.neg {
		m = -m
	}
	return Value{kind: KindDecimal, num: uint64(m), exp: int8(w.exp)}
}
