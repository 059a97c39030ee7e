package publish

import (
	"math"
	"math/big"

	"fieldgate/internal/config"
	"fieldgate/internal/point"
)

// band is the dead band of a rule: how far a number may be from the one that
// was published last before it is published again.
type band struct {
	width   point.Decimal // >= 0
	percent bool          // width is in percent of the published number's magnitude
	approx  float64       // width as a fraction of the number, or as it is
}

func newBand(w config.When) band {
	b := band{w.Band, w.Percent, w.Band.Float64()}
	if b.percent {
		b.approx /= 100
	}
	return b
}

// exceeded reports whether v differs from ref by more than the band; a
// difference of just the band is inside. The numbers are taken as the decimal
// numbers they are published as, and compared without rounding, so 20.3 is 0.2
// from 20.1 and not 0.1999999999999993. Where one of the two is no number (text,
// a boolean, NaN), every difference is more than the band.
func (b band) exceeded(v, ref point.Value) bool {
	if v == ref {
		return false
	}
	if !numeric(v) || !numeric(ref) {
		return true
	}
	x, xok := v.Float64()
	y, yok := ref.Float64()
	if !xok || !yok {
		return true
	}
	diff, width := math.Abs(x-y), b.approx
	if b.percent {
		width *= math.Abs(y)
	}
	// Half a unit in the last place of a float32, twice over, is the most by
	// which either number differs from its decimal; the constant is for
	// subnormal ones. Only what is closer to the edge needs arithmetic.
	const slack, least = 0x1p-22, 1e-44
	margin := slack*(math.Abs(x)+math.Abs(y)+width) + least
	switch {
	case diff-width > margin:
		return true
	case width-diff > margin:
		return false
	}
	xn, xok := exactly(v)
	yn, yok := exactly(ref)
	if !xok || !yok {
		return diff > width // magnitudes below 1e-110 or above 1e127
	}
	return b.exceededExactly(xn, yn)
}

// numeric reports whether v is a number rather than a state or text.
func numeric(v point.Value) bool {
	switch v.Kind() {
	case point.KindInt, point.KindUint, point.KindFloat32, point.KindFloat64, point.KindDecimal:
		return true
	}
	return false
}

// exact is the number (-1)^neg × mag × 10^exp.
type exact struct {
	neg bool
	mag uint64
	exp int
}

// exactly returns the number that v is published as.
func exactly(v point.Value) (exact, bool) {
	if v.Kind() == point.KindUint {
		n, ok := v.Uint64()
		return exact{mag: n}, ok
	}
	d, ok := v.Decimal()
	return exactDecimal(d), ok
}

func exactDecimal(d point.Decimal) exact {
	if d.Mant < 0 {
		return exact{true, -uint64(d.Mant), int(d.Exp)}
	}
	return exact{false, uint64(d.Mant), int(d.Exp)}
}

// exceededExactly is exceeded in whole numbers: all three are written with the
// same power of ten.
func (b band) exceededExactly(x, ref exact) bool {
	w := exactDecimal(b.width)
	if b.percent {
		// |x - ref| × 100 > |ref| × w
		e := min(x.exp, ref.exp)
		diff := new(big.Int).Sub(x.times(e), ref.times(e))
		edge := ref.times(e)
		edge.Mul(edge.Abs(edge), w.times(min(w.exp, 0)))
		diff.Mul(diff.Abs(diff), big.NewInt(100))
		return diff.Mul(diff, power(-min(w.exp, 0))).Cmp(edge) > 0
	}
	e := min(x.exp, ref.exp, w.exp)
	if d, ok := x.minus(ref, e); ok {
		if edge, ok := w.scaled(e); ok {
			return d > edge
		}
	}
	diff := new(big.Int).Sub(x.times(e), ref.times(e))
	return diff.Abs(diff).Cmp(w.times(e)) > 0
}

// scaled returns mag × 10^(n.exp-e) if an int64 holds it; e is at most n.exp.
func (n exact) scaled(e int) (int64, bool) {
	m := n.mag
	for range n.exp - e {
		if m > math.MaxInt64/10 {
			return 0, m == 0
		}
		m *= 10
	}
	return int64(m), m <= math.MaxInt64
}

// minus returns |n - o| in units of 10^e if an int64 holds it.
func (n exact) minus(o exact, e int) (int64, bool) {
	a, aok := n.scaled(e)
	b, bok := o.scaled(e)
	if !aok || !bok {
		return 0, false
	}
	if n.neg != o.neg {
		sum := a + b
		return sum, sum >= 0
	}
	return max(a-b, b-a), true
}

// times returns n in units of 10^e; e is at most n.exp.
func (n exact) times(e int) *big.Int {
	m := new(big.Int).SetUint64(n.mag)
	m.Mul(m, power(n.exp-e))
	if n.neg {
		m.Neg(m)
	}
	return m
}

func power(k int) *big.Int {
	return new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(k)), nil)
}
