package point

import (
	"encoding/json"
	"math"
	"math/big"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseDecimal(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Decimal
		text string
	}{
		{"0", Decimal{}, "0"},
		{"-0.00", Decimal{}, "0"},
		{"0.1", Decimal{1, -1}, "0.1"},
		{"25.40", Decimal{254, -1}, "25.4"},
		{"-40", Decimal{-4, 1}, "-40"},
		{"+5", Decimal{5, 0}, "5"},
		{".5", Decimal{5, -1}, "0.5"},
		{"5.", Decimal{5, 0}, "5"},
		{"1e-3", Decimal{1, -3}, "0.001"},
		{"1.5E+2", Decimal{15, 1}, "150"},
		{"1e-9", Decimal{1, -9}, "1e-9"},
		{"0.000001", Decimal{1, -6}, "0.000001"},
		{"1e30", Decimal{1, 30}, "1e+30"},
		{"123456789012345678", Decimal{123456789012345678, 0}, "123456789012345678"},
		{"9223372036854775807", Decimal{math.MaxInt64, 0}, "9223372036854775807"},
		{"-9223372036854775808", Decimal{math.MinInt64, 0}, "-9223372036854775808"},
		{"-9223372036854.775808", Decimal{math.MinInt64, -6}, "-9223372036854.775808"},
		{"100000000000000000000", Decimal{1, 20}, "100000000000000000000"},
	} {
		got, err := ParseDecimal(tt.in)
		if err != nil || got != tt.want || got.String() != tt.text {
			t.Errorf("ParseDecimal(%q) = %+v %q, %v, want %+v %q", tt.in, got, got, err, tt.want, tt.text)
		}
	}
	for in, wrong := range map[string]string{
		"": "is not a number", "-": "is not a number", ".": "is not a number", "1e": "is not a number",
		"1,5": "is not a number", "0x1F": "is not a number", " 1": "is not a number", "NaN": "is not a number",
		"1.2.3": "is not a number", "1e5.5": "is not a number", "1_000": "is not a number",
		"9223372036854775808": "has more digits", "1e200": "has more digits", "1e-200": "has more digits",
		"3.14159265358979323846": "has more digits",
	} {
		if got, err := ParseDecimal(in); err == nil || !strings.Contains(err.Error(), wrong) {
			t.Errorf("ParseDecimal(%q) = %+v, %v, want %q", in, got, err, wrong)
		}
	}
}

func drawDecimal(t *rapid.T, name string) Decimal {
	return Decimal{
		rapid.OneOf(rapid.Int64(), rapid.Int64Range(-1e6, 1e6)).Draw(t, name),
		rapid.OneOf(rapid.Int8(), rapid.Int8Range(-9, 9)).Draw(t, name+" exponent"),
	}
}

func TestDecimal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, e := drawDecimal(t, "d"), drawDecimal(t, "e")
		if got, want := d.Cmp(e), d.rat().Cmp(e.rat()); got != want {
			t.Fatalf("%+v.Cmp(%+v) = %d, want %d", d, e, got, want)
		}
		if f, _ := d.rat().Float64(); d.Float64() != f {
			t.Fatalf("%+v.Float64() = %v, want %v", d, d.Float64(), f)
		}
		back, err := ParseDecimal(d.String())
		if err != nil || back.Cmp(d) != 0 || back != d.norm() {
			t.Fatalf("%+v prints as %q, which is %+v, %v", d, d, back, err)
		}
		if !json.Valid([]byte(d.String())) {
			t.Fatalf("%q is no JSON number", d)
		}
		if d.rat().IsInt() != (d.Places() == 0) {
			t.Fatalf("%s has %d places", d, d.Places())
		}
	})
}

func drawValue(t *rapid.T, name string) Value {
	return rapid.OneOf(
		rapid.Map(rapid.Int64(), IntValue),
		rapid.Map(rapid.Uint64(), UintValue),
		rapid.Map(rapid.Float32(), Float32Value),
		rapid.Map(rapid.Float64(), Float64Value),
		rapid.Map(rapid.Bool(), BoolValue),
		rapid.Map(rapid.String(), TextValue),
		rapid.Map(rapid.Float64Range(-100, 100), func(f float64) Value { return ParseValue(Float64Value(math.Round(f*10) / 10).String()) }),
		rapid.Just(Value{}),
		rapid.Just(Float64Value(math.NaN())),
		rapid.Just(Float64Value(math.Inf(-1))),
	).Draw(t, name)
}

// TestValueJSON: every value is one JSON value, and reads back as itself.
func TestValueJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := drawValue(t, "v")
		out := v.AppendJSON([]byte("x"))[1:]
		if !json.Valid(out) {
			t.Fatalf("%+v is %q in JSON", v, out)
		}
		switch text, isText := v.Text(); {
		case isText:
			var s string
			if err := json.Unmarshal(out, &s); err != nil || s != strings.ToValidUTF8(text, "\ufffd") && s != text {
				t.Fatalf("%q reads back as %q, %v", text, s, err)
			}
		case v.Kind() == KindBool, v.Kind() == None:
		default:
			if f, ok := v.Float64(); !ok {
				if string(out) != "null" {
					t.Fatalf("%v is %q in JSON, want null", f, out)
				}
				return
			}
			if back := ParseValue(string(out)); !Equal(back, v) {
				t.Fatalf("%+v is %q in JSON, which reads back as %+v", v, out, back)
			}
			if string(out) != v.String() {
				t.Fatalf("%+v: JSON %q, text %q", v, out, v)
			}
		}
	})
}

func TestValueText(t *testing.T) {
	for _, tt := range []struct {
		v          Value
		text, json string
	}{
		{Value{}, "", "null"},
		{IntValue(-5), "-5", "-5"},
		{UintValue(math.MaxUint64), "18446744073709551615", "18446744073709551615"},
		{Float32Value(25.4), "25.4", "25.4"},
		{Float64Value(0.30000000000000004), "0.30000000000000004", "0.30000000000000004"},
		{Float64Value(1e21), "1e+21", "1e+21"},
		{Float64Value(123456789), "123456789", "123456789"},
		{Float64Value(1e-7), "1e-07", "1e-07"},
		{Float64Value(math.Copysign(0, -1)), "0", "0"},
		{Float64Value(math.NaN()), "NaN", "null"},
		{Float32Value(float32(math.Inf(1))), "Inf", "null"},
		{Float64Value(math.Inf(-1)), "-Inf", "null"},
		{DecimalValue(Decimal{254, -1}), "25.4", "25.4"},
		{DecimalValue(Decimal{1, 40}), "1e+40", "1e+40"},
		{BoolValue(true), "1", "true"},
		{BoolValue(false), "0", "false"},
		{TextValue("a\"b\\c\n\r\t\x01é<\xff>"), "a\"b\\c\n\r\t\x01é<\xff>", `"a\"b\\c\n\r\t\u0001é<\ufffd>"`},
	} {
		if got := tt.v.String(); got != tt.text {
			t.Errorf("%+v.String() = %q, want %q", tt.v, got, tt.text)
		}
		if got, err := tt.v.MarshalJSON(); string(got) != tt.json || err != nil {
			t.Errorf("%+v in JSON = %s, want %s", tt.v, got, tt.json)
		}
	}
}

func TestParseValue(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Value
	}{
		{"75.5", DecimalValue(Decimal{755, -1})},
		{"-3", IntValue(-3)},
		{"25.0", IntValue(25)},
		{"1e3", IntValue(1000)},
		{"0x1F", IntValue(31)},
		{"0xFFFFFFFFFFFFFFFF", UintValue(math.MaxUint64)},
		{"18446744073709551615", UintValue(math.MaxUint64)},
		{"9223372036854775808", UintValue(1 << 63)},
		{"18446744073709551616", Float64Value(1 << 64)},
		{"3.14159265358979323846", Float64Value(math.Pi)},
		{"1e200", Float64Value(1e200)},
		{"true", BoolValue(true)},
		{"false", BoolValue(false)},
		{"True", TextValue("True")},
		{"on", TextValue("on")},
		{"", TextValue("")},
		{" 5", TextValue(" 5")},
		{"1,5", TextValue("1,5")},
		{"NaN", TextValue("NaN")},
		{"inf", TextValue("inf")},
		{"+Inf", TextValue("+Inf")},
		{"1e999", TextValue("1e999")},
		{"0x", TextValue("0x")},
		{"0x1p-2", TextValue("0x1p-2")},
		{"-", TextValue("-")},
		{"12:30", TextValue("12:30")},
	} {
		if got := ParseValue(tt.in); got != tt.want {
			t.Errorf("ParseValue(%q) = %+v, want %+v", tt.in, got, tt.want)
		}
	}
}

func TestEqualAndCompare(t *testing.T) {
	for _, tt := range []struct {
		a, b Value
		cmp  int
		ok   bool
	}{
		{IntValue(25), Float64Value(25), 0, true},
		{Float32Value(25.4), ParseValue("25.4"), 0, true},
		{Float32Value(0.1), Float64Value(0.1), 0, true},
		{UintValue(math.MaxUint64), Float64Value(1 << 64), -1, true},
		{IntValue(9007199254740993), Float64Value(9007199254740992), 1, true},
		{IntValue(-1), UintValue(math.MaxUint64), -1, true},
		{IntValue(-2), IntValue(-1), -1, true},
		{IntValue(-2), ParseValue("-2.5"), 1, true},
		{Float64Value(math.Copysign(0, -1)), IntValue(0), 0, true},
		{BoolValue(true), IntValue(1), 0, true},
		{Float64Value(math.Inf(1)), UintValue(math.MaxUint64), 1, true},
		{Float64Value(math.Inf(-1)), IntValue(0), -1, true},
		{Float64Value(math.NaN()), IntValue(0), 0, false},
		{TextValue("1"), IntValue(1), 0, false},
		{Value{}, IntValue(0), 0, false},
	} {
		if got, ok := Compare(tt.a, tt.b); got != tt.cmp || ok != tt.ok {
			t.Errorf("Compare(%s, %s) = %d, %v, want %d, %v", tt.a, tt.b, got, ok, tt.cmp, tt.ok)
		}
		if got, ok := Compare(tt.b, tt.a); got != -tt.cmp || ok != tt.ok {
			t.Errorf("Compare(%s, %s) = %d, %v, want %d, %v", tt.b, tt.a, got, ok, -tt.cmp, tt.ok)
		}
		if got := Equal(tt.a, tt.b); got != (tt.ok && tt.cmp == 0) {
			t.Errorf("Equal(%s, %s) = %v", tt.a, tt.b, got)
		}
	}
	if !Equal(TextValue("a"), TextValue("a")) || !Equal(Value{}, Value{}) || Equal(Float64Value(math.NaN()), Float64Value(math.NaN())) {
		t.Error("text, no value or NaN")
	}
}

func TestCompareExact(t *testing.T) {
	number := func(v Value) (*big.Rat, bool) {
		neg, mag, exp, ok := v.parts()
		return rat(neg, mag, exp), ok
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawValue(t, "a"), drawValue(t, "b")
		x, xok := number(a)
		y, yok := number(b)
		if !xok || !yok {
			return
		}
		if got, ok := Compare(a, b); !ok || got != x.Cmp(y) {
			t.Fatalf("Compare(%s, %s) = %d, %v, want %d", a, b, got, ok, x.Cmp(y))
		}
		// Exact numbers are == exactly when they are equal.
		floats := a.Kind() == KindFloat32 || a.Kind() == KindFloat64 || b.Kind() == KindFloat32 || b.Kind() == KindFloat64
		bools := a.Kind() == KindBool || b.Kind() == KindBool
		if !floats && !bools && (a == b) != (x.Cmp(y) == 0) {
			t.Fatalf("%+v == %+v is %v", a, b, a == b)
		}
	})
}

func TestValueAccessors(t *testing.T) {
	for _, tt := range []struct {
		v    Value
		f    float64
		fok  bool
		i    int64
		iok  bool
		u    uint64
		uok  bool
		dtxt string // "" not ok
	}{
		{IntValue(-5), -5, true, -5, true, 0, false, "-5"},
		{UintValue(math.MaxUint64), 1 << 64, true, 0, false, math.MaxUint64, true, ""},
		{Float32Value(0.1), float64(float32(0.1)), true, 0, false, 0, false, "0.1"},
		{Float64Value(1e18), 1e18, true, 1e18, true, 1e18, true, "1000000000000000000"},
		{Float64Value(1 << 63), 1 << 63, true, 0, false, 1 << 63, true, "9223372036854776000"},
		{Float64Value(-1 << 63), -1 << 63, true, math.MinInt64, true, 0, false, "-9223372036854776000"},
		{Float64Value(math.NaN()), 0, false, 0, false, 0, false, ""},
		{Float64Value(1e-120), 1e-120, true, 0, false, 0, false, "1e-120"},
		{ParseValue("2.5"), 2.5, true, 0, false, 0, false, "2.5"},
		{BoolValue(true), 1, true, 1, true, 1, true, "1"},
		{TextValue("5"), 0, false, 0, false, 0, false, ""},
		{Value{}, 0, false, 0, false, 0, false, ""},
	} {
		if f, ok := tt.v.Float64(); ok != tt.fok || ok && f != tt.f {
			t.Errorf("%+v.Float64() = %v, %v", tt.v, f, ok)
		}
		if i, ok := tt.v.Int64(); ok != tt.iok || ok && i != tt.i {
			t.Errorf("%+v.Int64() = %v, %v", tt.v, i, ok)
		}
		if u, ok := tt.v.Uint64(); ok != tt.uok || ok && u != tt.u {
			t.Errorf("%+v.Uint64() = %v, %v", tt.v, u, ok)
		}
		if d, ok := tt.v.Decimal(); ok != (tt.dtxt != "") || ok && d.Cmp(dec(tt.dtxt)) != 0 {
			t.Errorf("%+v.Decimal() = %v, %v", tt.v, d, ok)
		}
	}
	if b, ok := BoolValue(true).Bool(); !b || !ok {
		t.Error("Bool")
	}
	if _, ok := IntValue(1).Bool(); ok {
		t.Error("a number is no boolean")
	}
}

func FuzzParseValue(f *testing.F) {
	for _, s := range []string{"75.5", "0x1F", "1e-300", "-9223372036854775808", "true", "1e999", ".5e1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v := ParseValue(s)
		if text, ok := v.Text(); ok {
			if text != s {
				t.Errorf("text %q became %q", s, text)
			}
			return
		}
		if !json.Valid(v.AppendJSON(nil)) {
			t.Errorf("%q became %+v", s, v)
		}
		if _, ok := v.Float64(); !ok {
			t.Errorf("%q became the number %s", s, v)
		}
		if back := ParseValue(string(v.AppendJSON(nil))); back != v && v.Kind() != KindFloat64 {
			t.Errorf("%q became %+v, then %+v", s, v, back)
		}
		if len(s) > 40 || strings.ContainsAny(s, "eEpP") {
			return // big.Rat would write out a huge power
		}
		if r, ok := new(big.Rat).SetString(s); ok && v.Kind() != KindFloat64 && v.Kind() != KindBool {
			neg, mag, exp, _ := v.parts()
			if rat(neg, mag, exp).Cmp(r) != 0 && !strings.ContainsAny(s, "xX") {
				t.Errorf("%q became %s", s, v)
			}
		}
	})
}
