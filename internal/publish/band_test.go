package publish

import (
	"math"
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"fieldgate/internal/config"
	"fieldgate/internal/point"
)

func bandOf(t testing.TB, width string, percent bool) band {
	t.Helper()
	d, err := point.ParseDecimal(width)
	if err != nil {
		t.Fatal(err)
	}
	return newBand(config.When{Band: d, Percent: percent})
}

func TestBand(t *testing.T) {
	f32 := func(f float32) point.Value { return point.Float32Value(f) }
	for _, c := range []struct {
		name    string
		width   string
		percent bool
		ref, v  point.Value
		want    bool
	}{
		{"inside", "0.5", false, decimal("20"), decimal("20.4"), false},
		{"on the edge", "0.5", false, decimal("20"), decimal("20.5"), false},
		{"on the lower edge", "0.5", false, decimal("20"), decimal("19.5"), false},
		{"outside", "0.5", false, decimal("20"), decimal("20.6"), true},
		{"below", "0.5", false, decimal("20"), decimal("19.4"), true},
		{"across zero", "0.5", false, decimal("-0.2"), decimal("0.3"), false},
		{"far across zero", "0.5", false, decimal("-0.2"), decimal("0.31"), true},
		{"edge that floats miss", "0.2", false, decimal("20.1"), decimal("20.3"), false},
		{"edge that floats miss, other way", "0.1", false, decimal("0.3"), decimal("0.2"), false},
		{"float32 edge", "0.2", false, f32(25.4), f32(25.6), false},
		{"float32 outside", "0.2", false, f32(25.4), f32(25.60001), true},
		{"float32 tiny", "1e-45", false, f32(0), f32(1e-45), false},
		{"float32 against decimal", "0.2", false, f32(25.4), decimal("25.6"), false},
		{"float64 beyond decimals", "0.1", false, point.Float64Value(1e200), point.Float64Value(1.1e200), true},
		{"smaller than decimals", "1e-120", false, point.Float64Value(1e-120), point.Float64Value(3e-120), true},
		{"smaller than decimals, inside", "3e-120", false, point.Float64Value(1e-120), point.Float64Value(3e-120), false},
		{"counter", "1", false, point.IntValue(math.MaxInt64 - 2), point.IntValue(math.MaxInt64 - 1), false},
		{"counter over the band", "1", false, point.IntValue(math.MaxInt64 - 2), point.IntValue(math.MaxInt64), true},
		{"largest counter", "1", false, point.UintValue(math.MaxUint64), point.UintValue(math.MaxUint64 - 1), false},
		{"largest counter over the band", "1.9", false, point.UintValue(math.MaxUint64), point.UintValue(math.MaxUint64 - 2), true},
		{"extremes", "1", false, point.IntValue(math.MinInt64), point.UintValue(math.MaxUint64), true},
		{"least and its neighbour", "1", false, point.IntValue(math.MinInt64), point.IntValue(math.MinInt64 + 1), false},

		{"percent inside", "1", true, decimal("200"), decimal("201.9"), false},
		{"percent on the edge", "1", true, decimal("200"), decimal("198"), false},
		{"percent outside", "1", true, decimal("200"), decimal("202.01"), true},
		{"percent of a negative", "1", true, decimal("-200"), decimal("-202"), false},
		{"percent of a negative outside", "1", true, decimal("-200"), decimal("-202.1"), true},
		{"percent of zero", "1", true, decimal("0"), decimal("0.001"), true},
		{"percent of zero unchanged", "1", true, decimal("0"), decimal("0"), false},
		{"percent, large exponent", "1e1", true, decimal("1e100"), decimal("1.1e100"), false},
		{"percent, fine", "0.1", true, decimal("1000"), decimal("1001"), false},

		{"text", "5", false, point.TextValue("a"), point.TextValue("b"), true},
		{"same text", "5", false, point.TextValue("a"), point.TextValue("a"), false},
		{"boolean", "5", false, point.BoolValue(false), point.BoolValue(true), true},
		{"nothing to a number", "5", false, point.Value{}, decimal("1"), true},
		{"number to text", "5", false, decimal("1"), point.TextValue("1"), true},
		{"to NaN", "5", false, f32(1), f32(float32(math.NaN())), true},
		{"from infinity", "5", false, point.Float64Value(math.Inf(1)), point.Float64Value(1), true},
		{"still NaN", "5", false, f32(float32(math.NaN())), f32(float32(math.NaN())), false},
	} {
		b := bandOf(t, c.width, c.percent)
		if got := b.exceeded(c.v, c.ref); got != c.want {
			t.Errorf("%s: band %s from %v to %v: exceeded %v, want %v", c.name, c.width, c.ref, c.v, got, c.want)
		}
	}
}

// Floats that lie a band apart as printed lie a little less or more apart as
// floats, which must not show.
func TestBandOfFloatsOnTheEdge(t *testing.T) {
	b := bandOf(t, "0.2", false)
	for tenths := range 100000 {
		ref, edge, over := float32(tenths)/10, float32(tenths+2)/10, float32(tenths+3)/10
		if b.exceeded(point.Float32Value(edge), point.Float32Value(ref)) {
			t.Fatalf("from %v to %v is more than 0.2", ref, edge)
		}
		if !b.exceeded(point.Float32Value(over), point.Float32Value(ref)) {
			t.Fatalf("from %v to %v is not more than 0.2", ref, over)
		}
	}
}

// rat returns the number as it is published.
func rat(v point.Value) *big.Rat {
	r, ok := new(big.Rat).SetString(v.String())
	if !ok {
		panic("not a number: " + v.String())
	}
	return r
}

// beyond is the plain definition of a dead band, over all rational numbers.
func beyond(v, ref point.Value, width point.Decimal, percent bool) bool {
	diff := new(big.Rat).Sub(rat(v), rat(ref))
	edge := rat(point.DecimalValue(width))
	if percent {
		edge.Mul(edge, new(big.Rat).Abs(rat(ref)))
		edge.Quo(edge, big.NewRat(100, 1))
	}
	return diff.Abs(diff).Cmp(edge) > 0
}

// numbers generates numbers of every kind, often close to each other and often
// just a band apart.
func numbers(width point.Decimal) *rapid.Generator[point.Value] {
	return rapid.Custom(func(t *rapid.T) point.Value {
		switch rapid.IntRange(0, 6).Draw(t, "kind") {
		case 0:
			return point.IntValue(rapid.Int64().Draw(t, "int"))
		case 1:
			return point.UintValue(rapid.Uint64().Draw(t, "uint"))
		case 2:
			return point.Float32Value(rapid.Float32().Filter(func(f float32) bool { return f-f == 0 }).Draw(t, "float32"))
		case 3:
			return point.Float64Value(rapid.Float64Range(-1e30, 1e30).Filter(func(f float64) bool {
				return f == 0 || math.Abs(f) > 1e-100 // smaller ones are compared as floats
			}).Draw(t, "float64"))
		case 4:
			return point.DecimalValue(point.Decimal{Mant: rapid.Int64().Draw(t, "mant"), Exp: int8(rapid.IntRange(-40, 40).Draw(t, "exp"))})
		case 5:
			return point.Float32Value(float32(rapid.IntRange(-300, 300).Draw(t, "tenths")) / 10)
		}
		n := rapid.Int64Range(-20, 20).Draw(t, "bands")
		return point.DecimalValue(point.Decimal{Mant: n * (width.Mant % 1e6), Exp: width.Exp})
	})
}

func widths() *rapid.Generator[point.Decimal] {
	return rapid.Custom(func(t *rapid.T) point.Decimal {
		mant := rapid.OneOf(rapid.Int64Range(1, 30), rapid.Int64Range(1, math.MaxInt64)).Draw(t, "mant")
		return point.Decimal{Mant: mant, Exp: int8(rapid.IntRange(-20, 20).Draw(t, "exp"))}
	})
}

func TestBandIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		width, percent := widths().Draw(t, "width"), rapid.Bool().Draw(t, "percent")
		g := numbers(width)
		v, ref := g.Draw(t, "v"), g.Draw(t, "ref")
		b := newBand(config.When{Band: width, Percent: percent})
		if got, want := b.exceeded(v, ref), beyond(v, ref, width, percent); got != want {
			t.Fatalf("band %v (percent %v) from %v to %v: exceeded %v, want %v", width, percent, ref, v, got, want)
		}
	})
}
