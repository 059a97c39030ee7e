package point

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
)

// Decimal is the exact number Mant × 10^Exp. The zero value is 0.
//
// Every function of this package returns decimals in their one normal form, in
// which Mant has no trailing zero, so equal numbers compare equal with ==.
type Decimal struct {
	Mant int64
	Exp  int8
}

// pow10 holds the powers of ten that fit into 64 bits.
var pow10 = [20]uint64{
	1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9,
	1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19,
}

// ParseDecimal reads "0.1", "-40", "1e-3", "+5" or ".5". Text that is no
// number, or has more digits or a larger exponent than a Decimal holds
// (18 digits always fit), is an error; nothing is rounded.
func ParseDecimal(s string) (Decimal, error) {
	if neg, mag, exp, ok := scanDecimal(s); ok {
		if d, ok := makeDecimal(neg, mag, exp); ok {
			return d, nil
		}
	}
	if _, ok := parseNumber(s); ok && !strings.ContainsAny(s, "xX") {
		return Decimal{}, fmt.Errorf("%q has more digits than the 18 that are computed with", s)
	}
	return Decimal{}, fmt.Errorf("%q is not a number", s)
}

// scanDecimal reads a decimal number as (-1)^neg × mag × 10^exp. ok is false
// for anything else, and for magnitudes past 64 bits.
func scanDecimal[T string | []byte](s T) (neg bool, mag uint64, exp int, ok bool) {
	i := 0
	if i < len(s) && (s[i] == '-' || s[i] == '+') {
		neg = s[i] == '-'
		i++
	}
	digits, point := 0, false
	zeros := 0 // seen, but not yet part of mag: trailing zeros cost no precision
	for ; i < len(s); i++ {
		c := s[i]
		if c == '.' && !point {
			point = true
			continue
		}
		if c < '0' || c > '9' {
			break
		}
		digits++
		if point {
			exp--
		}
		if c == '0' && mag != 0 {
			zeros++
			continue
		}
		if c != '0' {
			for ; zeros > 0; zeros-- {
				if mag > math.MaxUint64/10 {
					return false, 0, 0, false
				}
				mag *= 10
			}
			hi, lo := bits.Mul64(mag, 10)
			sum, carry := bits.Add64(lo, uint64(c-'0'), 0)
			if hi != 0 || carry != 0 {
				return false, 0, 0, false
			}
			mag = sum
		}
	}
	exp += zeros
	if digits == 0 {
		return false, 0, 0, false
	}
	if i < len(s) && (s[i] == 'e' || s[i] == 'E') {
		i++
		eneg := false
		if i < len(s) && (s[i] == '-' || s[i] == '+') {
			eneg = s[i] == '-'
			i++
		}
		e, start := 0, i
		for ; i < len(s) && s[i] >= '0' && s[i] <= '9'; i++ {
			if e < 100000 {
				e = e*10 + int(s[i]-'0')
			}
		}
		if i == start {
			return false, 0, 0, false
		}
		if eneg {
			e = -e
		}
		exp += e
	}
	return neg, mag, exp, i == len(s)
}

// makeDecimal normalizes; ok is false when the number does not fit exactly.
func makeDecimal(neg bool, mag uint64, exp int) (Decimal, bool) {
	if mag == 0 {
		return Decimal{}, true
	}
	for mag%10 == 0 {
		mag /= 10
		exp++
	}
	for exp > math.MaxInt8 && mag <= math.MaxInt64/10 {
		mag *= 10
		exp--
	}
	if exp < math.MinInt8 || exp > math.MaxInt8 {
		return Decimal{}, false
	}
	if neg {
		if mag > 1<<63 {
			return Decimal{}, false
		}
		return Decimal{-int64(mag), int8(exp)}, true
	}
	if mag > math.MaxInt64 {
		return Decimal{}, false
	}
	return Decimal{int64(mag), int8(exp)}, true
}

// norm returns d in normal form.
func (d Decimal) norm() Decimal {
	if d.Mant == 0 {
		return Decimal{}
	}
	for d.Mant%10 == 0 && d.Exp < math.MaxInt8 {
		d.Mant /= 10
		d.Exp++
	}
	return d
}

// IsZero reports whether d is 0.
func (d Decimal) IsZero() bool { return d.Mant == 0 }

// Places returns the number of decimal places d needs: 2 for 0.25, 0 for 40.
func (d Decimal) Places() int {
	return max(0, -int(d.norm().Exp))
}

// Float64 returns the nearest float64.
func (d Decimal) Float64() float64 {
	const exact = 1 << 53 // both operands exact, so one correctly rounded operation
	if d.Mant > -exact && d.Mant < exact && d.Exp >= -22 && d.Exp <= 22 {
		if d.Exp < 0 {
			return float64(d.Mant) / math.Pow10(-int(d.Exp))
		}
		return float64(d.Mant) * math.Pow10(int(d.Exp))
	}
	var buf [32]byte
	b := strconv.AppendInt(buf[:0], d.Mant, 10)
	b = append(b, 'e')
	b = strconv.AppendInt(b, int64(d.Exp), 10)
	f, _ := strconv.ParseFloat(string(b), 64) // well formed, and far below the range's end
	return f
}

// Cmp returns -1, 0 or 1 as d is less than, equal to or greater than e.
func (d Decimal) Cmp(e Decimal) int {
	switch {
	case sign(d.Mant) != sign(e.Mant):
		if d.Mant < e.Mant {
			return -1
		}
		return 1
	case d.Mant < 0:
		return -cmpMag(magnitude(d.Mant), int(d.Exp), magnitude(e.Mant), int(e.Exp))
	}
	return cmpMag(magnitude(d.Mant), int(d.Exp), magnitude(e.Mant), int(e.Exp))
}

func sign(n int64) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

// magnitude returns |n|, for the least int64 too.
func magnitude(n int64) uint64 {
	if n < 0 {
		return -uint64(n)
	}
	return uint64(n)
}

// cmpMag compares a × 10^ae with b × 10^be.
func cmpMag(a uint64, ae int, b uint64, be int) int {
	if a == 0 || b == 0 {
		switch {
		case a > b:
			return 1
		case a < b:
			return -1
		}
		return 0
	}
	flip := 1
	if ae < be {
		a, ae, b, be, flip = b, be, a, ae, -1
	}
	// a × 10^k against b, with k >= 0. b has at most 20 digits.
	k := ae - be
	if k > 19 {
		return flip
	}
	hi, lo := bits.Mul64(a, pow10[k])
	switch {
	case hi > 0 || lo > b:
		return flip
	case lo < b:
		return -flip
	}
	return 0
}

// String returns the shortest plain spelling: "25.4", "-40", "1e+30".
func (d Decimal) String() string {
	var buf [40]byte
	return string(d.AppendText(buf[:0]))
}

// AppendText appends String's spelling, which is a JSON number too.
func (d Decimal) AppendText(dst []byte) []byte {
	d = d.norm()
	if d.Mant < 0 {
		dst = append(dst, '-')
	}
	return appendMag(dst, magnitude(d.Mant), int(d.Exp))
}

// appendMag appends mag × 10^exp, plain where that stays readable: up to 21
// digits before the point and down to 1e-7, as JavaScript and JSON do.
func appendMag(dst []byte, mag uint64, exp int) []byte {
	var buf [20]byte
	digits := strconv.AppendUint(buf[:0], mag, 10)
	point := len(digits) + exp // digits before the decimal point
	switch {
	case point > 21 || point < -6:
		dst = append(dst, digits[0])
		if len(digits) > 1 {
			dst = append(dst, '.')
			dst = append(dst, digits[1:]...)
		}
		dst = append(dst, 'e')
		if point > 0 {
			dst = append(dst, '+')
		}
		return strconv.AppendInt(dst, int64(point-1), 10)
	case exp >= 0:
		dst = append(dst, digits...)
		for range exp {
			dst = append(dst, '0')
		}
		return dst
	case point > 0:
		dst = append(dst, digits[:point]...)
		dst = append(dst, '.')
		return append(dst, digits[point:]...)
	}
	dst = append(dst, '0', '.')
	for range -point {
		dst = append(dst, '0')
	}
	return append(dst, digits...)
}
