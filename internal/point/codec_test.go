package point

import (
	"errors"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"

	"fieldgate/internal/modbus"

	"pgregory.net/rapid"
)

func dec(s string) Decimal {
	d, err := ParseDecimal(s)
	if err != nil {
		panic(err)
	}
	return d
}

// reg returns a holding register point of type t.
func reg(t Type) Point {
	return Point{ID: "d.p", Table: modbus.HoldingRegisters, Type: t}
}

func (p Point) with(change func(*Point)) Point {
	change(&p)
	return p
}

func TestDecodeVectors(t *testing.T) {
	scale := func(typ Type, s string) Point { return reg(typ).with(func(p *Point) { p.Scale = dec(s) }) }
	order := func(typ Type, o Order) Point { return reg(typ).with(func(p *Point) { p.Order = o }) }
	str := func(n uint16, o Order) Point {
		return reg(String).with(func(p *Point) { p.Length = n; p.Order = o })
	}
	modes := []MapEntry{{0, "stopped"}, {1, "running"}}
	for _, tt := range []struct {
		name string
		p    Point
		regs []uint16
		want string // as JSON
	}{
		{"uint16", reg(Uint16), []uint16{17}, "17"},
		{"uint16 high", reg(Uint16), []uint16{0xFFFF}, "65535"},
		{"uint16 ignores the order", order(Uint16, DCBA), []uint16{0x0102}, "258"},
		{"int16", reg(Int16), []uint16{0xFFFE}, "-2"},
		{"int16 × 0.1", scale(Int16, "0.1"), []uint16{254}, "25.4"},
		{"int16 × 0.1 negative", scale(Int16, "0.1"), []uint16{0xFFF5}, "-1.1"},
		{"int16 × 0.1 whole", scale(Int16, "0.1"), []uint16{250}, "25"},
		{"no 0.30000000000000004", scale(Int16, "0.1"), []uint16{3}, "0.3"},
		{"scale and offset", scale(Uint16, "0.5").with(func(p *Point) { p.Offset = dec("-40") }), []uint16{101}, "10.5"},
		{"offset finer than scale", scale(Uint16, "1").with(func(p *Point) { p.Offset = dec("0.25") }), []uint16{3}, "3.25"},
		{"offset coarser than scale", scale(Uint16, "0.01").with(func(p *Point) { p.Offset = dec("1000") }), []uint16{3}, "1000.03"},
		{"scale 1000", scale(Uint16, "1000"), []uint16{65535}, "65535000"},
		{"scale 1/3-ish", scale(Uint16, "0.333"), []uint16{3}, "0.999"},
		{"decimals", scale(Uint16, "0.125").with(func(p *Point) { p.Round, p.Decimals = true, 1 }), []uint16{7}, "0.9"},
		{"decimals half away", scale(Int16, "0.05").with(func(p *Point) { p.Round, p.Decimals = true, 1 }), []uint16{0xFFFF}, "-0.1"},
		{"high byte", reg(Uint8), []uint16{0xAB12}, "171"},
		{"low byte", reg(Uint8).with(func(p *Point) { p.LowByte = true }), []uint16{0xAB12}, "18"},
		{"high byte signed", reg(Int8), []uint16{0xFF12}, "-1"},
		{"int32 ABCD", reg(Int32), []uint16{0xFFFF, 0xFFFE}, "-2"},
		{"uint32 ABCD", order(Uint32, ABCD), []uint16{0x0102, 0x0304}, "16909060"},
		{"uint32 CDAB", order(Uint32, CDAB), []uint16{0x0304, 0x0102}, "16909060"},
		{"uint32 BADC", order(Uint32, BADC), []uint16{0x0201, 0x0403}, "16909060"},
		{"uint32 DCBA", order(Uint32, DCBA), []uint16{0x0403, 0x0201}, "16909060"},
		{"uint64 ABCD", order(Uint64, ABCD), []uint16{0x0102, 0x0304, 0x0506, 0x0708}, "72623859790382856"},
		{"uint64 CDAB", order(Uint64, CDAB), []uint16{0x0708, 0x0506, 0x0304, 0x0102}, "72623859790382856"},
		{"uint64 BADC", order(Uint64, BADC), []uint16{0x0201, 0x0403, 0x0605, 0x0807}, "72623859790382856"},
		{"uint64 DCBA", order(Uint64, DCBA), []uint16{0x0807, 0x0605, 0x0403, 0x0201}, "72623859790382856"},
		{"uint64 exact", reg(Uint64), []uint16{0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF}, "18446744073709551615"},
		{"int64 exact", reg(Int64), []uint16{0x8000, 0, 0, 1}, "-9223372036854775807"},
		{"uint64 × 0.001", scale(Uint64, "0.001"), []uint16{0x0020, 0, 0, 1}, "9007199254740.993"},
		{"float32", reg(Float32), []uint16{0x41CB, 0x3333}, "25.4"},
		{"float32 CDAB", order(Float32, CDAB), []uint16{0x3333, 0x41CB}, "25.4"},
		{"float32 × 0.001", scale(Float32, "0.001"), []uint16{0x41CB, 0x3333}, "0.0254"},
		{"float32 + decimals", reg(Float32).with(func(p *Point) { p.Round, p.Decimals = true, 2 }), []uint16{0x4049, 0x0FDB}, "3.14"},
		{"float32 large", reg(Float32), []uint16{0x7F7F, 0xFFFF}, "3.4028235e+38"},
		{"float32 minus zero", reg(Float32), []uint16{0x8000, 0}, "0"},
		{"float64", reg(Float64), []uint16{0x4009, 0x21FB, 0x5444, 0x2D18}, "3.141592653589793"},
		{"float64 scaled past decimals", scale(Float64, "10"), []uint16{0x7E37, 0xE43C, 0x8800, 0x759C}, "1e+301"},
		{"float16", reg(Float16), []uint16{0x2E66}, "0.1"},
		{"float16 third", reg(Float16), []uint16{0x3555}, "0.3333"},
		{"float16 most", reg(Float16), []uint16{0x7BFF}, "65504"},
		{"float16 least", reg(Float16), []uint16{0x8001}, "-6e-8"},
		{"bcd16", reg(BCD16), []uint16{0x1234}, "1234"},
		{"bcd32", reg(BCD32), []uint16{0x1234, 0x5678}, "12345678"},
		{"bcd32 CDAB × 0.01", order(BCD32, CDAB).with(func(p *Point) { p.Scale = dec("0.01") }), []uint16{0x5678, 0x1234}, "123456.78"},
		{"coil", Point{Table: modbus.Coils, Type: Bool}, []uint16{1}, "true"},
		{"one bit", reg(Bool).with(func(p *Point) { p.FirstBit, p.BitCount = 15, 1 }), []uint16{0x8000}, "true"},
		{"bits", reg(Uint16).with(func(p *Point) { p.FirstBit, p.BitCount = 4, 3 }), []uint16{0x0050}, "5"},
		{"all bits", reg(Uint16).with(func(p *Point) { p.FirstBit, p.BitCount = 0, 16 }), []uint16{0xFFFF}, "65535"},
		{"map", reg(Uint16).with(func(p *Point) { p.Map = modes }), []uint16{1}, `"running"`},
		{"map, unknown number", reg(Uint16).with(func(p *Point) { p.Map = modes }), []uint16{7}, `"7"`},
		{"map over a coil", Point{Table: modbus.Coils, Type: Bool, Map: modes}, []uint16{1}, `"running"`},
		{"map over bits", reg(Uint16).with(func(p *Point) { p.Map, p.FirstBit, p.BitCount = modes, 3, 2 }), []uint16{8}, `"running"`},
		{"string", str(4, ABCD), []uint16{0x4142, 0x4320, 0x0041, 0x4141}, `"ABC"`},
		{"string, bytes swapped", str(2, BADC), []uint16{0x4241, 0x4443}, `"ABCD"`},
		{"string keeps its registers in sequence", str(2, CDAB), []uint16{0x4142, 0x4344}, `"ABCD"`},
		{"string UTF-8", str(2, ABCD), []uint16{0xC2B0, 0x4300}, `"°C"`},
		{"string Latin-1", str(1, ABCD), []uint16{0xB043}, `"°C"`},
		{"string empty", str(1, ABCD), []uint16{0}, `""`},
		{"bytes", reg(Bytes).with(func(p *Point) { p.Length = 2 }), []uint16{0x00AB, 0xCDEF}, `"00abcdef"`},
		{"bytes swapped", reg(Bytes).with(func(p *Point) { p.Length, p.Order = 2, DCBA }), []uint16{0xAB00, 0xEFCD}, `"00abcdef"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.p.Validate(); err != nil {
				t.Fatalf("Validate: %v", err)
			}
			v, err := tt.p.Decode(tt.regs)
			if err != nil {
				t.Fatalf("Decode(%#x): %v", tt.regs, err)
			}
			if got := string(v.AppendJSON(nil)); got != tt.want {
				t.Errorf("Decode(%#x) = %s, want %s", tt.regs, got, tt.want)
			}
			regs, err := tt.p.Encode(v)
			if err != nil {
				t.Fatalf("Encode(%s): %v", tt.want, err)
			}
			if back, err := tt.p.Decode(regs); err != nil || back != v {
				t.Errorf("Decode(Encode(%s)) = %s, %v", v, back, err)
			}
		})
	}
}

func TestDecodeInvalid(t *testing.T) {
	inv := func(typ Type, n ...uint64) Point { return reg(typ).with(func(p *Point) { p.Invalid = n }) }
	for _, tt := range []struct {
		name string
		p    Point
		regs []uint16
	}{
		{"pattern", inv(Int16, 0x8000), []uint16{0x8000}},
		{"one of two", inv(Uint16, 1, 2), []uint16{2}},
		{"pattern in the device's order", inv(Uint32, 0x80000000).with(func(p *Point) { p.Order = CDAB }), []uint16{0, 0x8000}},
		{"half", inv(Int8, 0x80), []uint16{0x8001}},
		{"whole register under a bit", inv(Bool, 0xFFFF).with(func(p *Point) { p.BitCount = 1 }), []uint16{0xFFFF}},
		{"float32 NaN", reg(Float32), []uint16{0x7FC0, 0}},
		{"float32 Inf", reg(Float32), []uint16{0xFF80, 0}},
		{"float64 NaN", reg(Float64), []uint16{0x7FF8, 0, 0, 0}},
		{"float16 Inf", reg(Float16), []uint16{0x7C00}},
		{"float64 that the scale makes infinite", reg(Float64).with(func(p *Point) { p.Scale = dec("1000") }), []uint16{0x7FEF, 0xFFFF, 0xFFFF, 0xFFFF}},
		{"bcd16", reg(BCD16), []uint16{0x12A4}},
		{"bcd32", reg(BCD32), []uint16{0xF000, 0}},
		{"datetime", reg(Datetime).with(func(p *Point) { p.Layout, p.Invalid = EPOCH, []uint64{0xFFFFFFFF} }), []uint16{0xFFFF, 0xFFFF}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.p.Validate(); err != nil {
				t.Fatalf("Validate: %v", err)
			}
			if v, err := tt.p.Decode(tt.regs); !errors.Is(err, ErrInvalid) || !v.IsZero() {
				t.Errorf("Decode(%#x) = %q, %v, want ErrInvalid", tt.regs, v, err)
			}
			if n := testing.AllocsPerRun(10, func() { tt.p.Decode(tt.regs) }); n > 0 && !tt.p.scaled() {
				t.Errorf("%v allocations for no value", n)
			}
		})
	}
}

func TestDecodeWrongLength(t *testing.T) {
	p := reg(Uint32)
	_, err := p.Decode([]uint16{1})
	if err == nil || !strings.Contains(err.Error(), "1 registers for the 2 of uint32") {
		t.Errorf("error %v", err)
	}
}

func TestEncode(t *testing.T) {
	tenth := reg(Uint16).with(func(p *Point) { p.Scale = dec("0.1") })
	modes := reg(Uint16).with(func(p *Point) { p.Map = []MapEntry{{0, "stopped"}, {1, "running"}} })
	str := reg(String).with(func(p *Point) { p.Length = 2 })
	for _, tt := range []struct {
		name  string
		p     Point
		v     Value
		want  []uint16
		wrong string
	}{
		{"uint16", reg(Uint16), IntValue(17), []uint16{17}, ""},
		{"decimal without places", reg(Uint16), ParseValue("17.0"), []uint16{17}, ""},
		{"float noise", reg(Uint16), Float64Value(16.999999999999996), []uint16{17}, ""},
		{"number as text", reg(Uint16), TextValue(" 17 "), []uint16{17}, ""},
		{"bool into a number", reg(Uint16), BoolValue(true), []uint16{1}, ""},
		{"fraction", reg(Uint16), ParseValue("75.5"), nil, "75.5 is not a whole number, and uint16 holds nothing else"},
		{"too large", reg(Uint16), IntValue(65536), nil, "65536 is outside 0 to 65535 (uint16)"},
		{"too small", reg(Uint16), IntValue(-1), nil, "-1 is outside 0 to 65535 (uint16)"},
		{"int16 negative", reg(Int16), IntValue(-32768), []uint16{0x8000}, ""},
		{"int16 below", reg(Int16), IntValue(-32769), nil, "-32769 is outside -32768 to 32767 (int16)"},
		{"huge", reg(Uint64), Float64Value(1e300), nil, "1e+300 is outside 0 to 18446744073709551615 (uint64)"},
		{"text", reg(Uint16), TextValue("fast"), nil, `"fast" is not a number`},
		{"comma", reg(Uint16), TextValue("1,5"), nil, `"1,5" is not a number`},
		{"no value", reg(Uint16), Value{}, nil, "no value to write"},
		{"NaN", reg(Float32), Float64Value(math.NaN()), nil, "NaN cannot be written: it is not a finite number"},
		{"Inf", reg(Float32), Float32Value(float32(math.Inf(1))), nil, "Inf cannot be written: it is not a finite number"},
		{"nan as text", reg(Float32), TextValue("NaN"), nil, `"NaN" is not a number`},
		{"scaled", tenth, ParseValue("25.4"), []uint16{254}, ""},
		{"scaled float32", tenth, Float32Value(25.4), []uint16{254}, ""},
		{"between two steps", tenth, ParseValue("25.46"), []uint16{255}, ""},
		{"scaled too large", tenth, ParseValue("6553.6"), nil, "6553.6 is outside 0 to 6553.5 (uint16)"},
		{"negative scale", tenth.with(func(p *Point) { p.Scale = dec("-0.1") }), IntValue(1), nil, "1 is outside -6553.5 to 0 (uint16)"},
		{"float32", reg(Float32), ParseValue("42.5"), []uint16{0x422A, 0}, ""},
		{"float32 of a double", reg(Float32), Float64Value(0.1), []uint16{0x3DCC, 0xCCCD}, ""},
		{"float64 of a float32", reg(Float64), Float32Value(25.4), []uint16{0x4039, 0x6666, 0x6666, 0x6666}, ""},
		{"float32 too large", reg(Float32), ParseValue("1e39"), nil, "is outside the range of float32, ±3.4028e+38"},
		{"float64", reg(Float64), IntValue(1), []uint16{0x3FF0, 0, 0, 0}, ""},
		{"float64 bits", reg(Float64), Float64Value(0.1), []uint16{0x3FB9, 0x9999, 0x9999, 0x999A}, ""},
		{"float32 of a huge double", reg(Float32), Float64Value(1e300), nil, "1e+300 is outside the range of float32"},
		{"float32 scaled", reg(Float32).with(func(p *Point) { p.Scale = dec("0.001") }), ParseValue("0.0254"), []uint16{0x41CB, 0x3333}, ""},
		{"float32 scaled too large", reg(Float32).with(func(p *Point) { p.Scale = dec("0.001") }), ParseValue("1e36"), nil, "is outside the range of float32, ±3.4028e+38 before scale and offset"},
		{"float64 scaled too large", reg(Float64).with(func(p *Point) { p.Scale = dec("0.001") }), Float64Value(1e307), nil, "is outside the range of float64"},
		{"float64 largest, scaled", reg(Float64).with(func(p *Point) { p.Scale, p.Offset, p.Round = dec("1"), dec("1"), true }), Float64Value(math.MaxFloat64), []uint16{0x7FEF, 0xFFFF, 0xFFFF, 0xFFFF}, ""},
		{"float16 too large", reg(Float16), IntValue(65520), nil, "65520 is outside the range of float16, ±65504"},
		{"bcd16", reg(BCD16), IntValue(1234), []uint16{0x1234}, ""},
		{"bcd16 too large", reg(BCD16), IntValue(10000), nil, "10000 is outside 0 to 9999 (bcd16)"},
		{"low half", reg(Int8).with(func(p *Point) { p.LowByte = true }), IntValue(-2), []uint16{0x00FE}, ""},
		{"high half", reg(Int8), IntValue(-2), []uint16{0xFE00}, ""},
		{"bits", reg(Uint16).with(func(p *Point) { p.FirstBit, p.BitCount = 4, 3 }), IntValue(5), []uint16{0x50}, ""},
		{"bits too large", reg(Uint16).with(func(p *Point) { p.FirstBit, p.BitCount = 4, 3 }), IntValue(8), nil, "8 is outside 0 to 7 (3 bits)"},
		{"one bit", reg(Bool).with(func(p *Point) { p.FirstBit, p.BitCount = 15, 1 }), BoolValue(true), []uint16{0x8000}, ""},
		{"coil on", Point{Table: modbus.Coils, Type: Bool}, TextValue("ON"), []uint16{1}, ""},
		{"coil 1.0", Point{Table: modbus.Coils, Type: Bool}, Float64Value(1), []uint16{1}, ""},
		{"coil 2", Point{Table: modbus.Coils, Type: Bool}, IntValue(2), nil, "2 is not true (1) or false (0)"},
		{"coil off", Point{Table: modbus.Coils, Type: Bool}, TextValue("off"), []uint16{0}, ""},
		{"coil map, unknown text", Point{Table: modbus.Coils, Type: Bool, Map: []MapEntry{{0, "shut"}, {1, "open"}}}, TextValue("ajar"), nil, `"ajar" is not one of shut, open`},
		{"map number out of range", modes, IntValue(70000), nil, "70000 is outside 0 to 65535 (uint16); one of stopped, running"},
		{"string Latin-1 without room", str, TextValue("äöüßé"), nil, "the text has 10 bytes, string(2) holds 4"},
		{"string neither", str, TextValue("€uro"), nil, "the text has 6 bytes, string(2) holds 4"},
		{"coil text", Point{Table: modbus.Coils, Type: Bool}, TextValue("open"), nil, `"open" is not true or false`},
		{"map text", modes, TextValue("running"), []uint16{1}, ""},
		{"map text in other case", modes, TextValue("Running"), []uint16{1}, ""},
		{"map number", modes, IntValue(1), []uint16{1}, ""},
		{"map unknown text", modes, TextValue("flying"), nil, `"flying" is not one of stopped, running`},
		{"the pattern of no value", reg(Int16).with(func(p *Point) { p.Invalid = []uint64{0x8000} }), IntValue(-32768), nil, `-32768 would be written as 0x8000, which means "no value" here`},
		{"string", str, TextValue("AB"), []uint16{0x4142, 0}, ""},
		{"string of a number", str, ParseValue("75.5"), []uint16{0x3735, 0x2E35}, ""},
		{"string padded", str, TextValue("A  "), []uint16{0x4100, 0}, ""},
		{"string too long", str, TextValue("ABCDE"), nil, "the text has 5 bytes, string(2) holds 4"},
		{"string Latin-1 where UTF-8 has no room", str, TextValue("äöü"), []uint16{0xE4F6, 0xFC00}, ""},
		{"string with NUL", str, TextValue("A\x00"), nil, "the text holds a NUL"},
		{"string not UTF-8", str, TextValue("\xff"), nil, "the text is not UTF-8"},
		{"bytes", reg(Bytes).with(func(p *Point) { p.Length = 2 }), TextValue("0x00AB CDEF"), []uint16{0xAB, 0xCDEF}, ""},
		{"bytes too short", reg(Bytes).with(func(p *Point) { p.Length = 2 }), TextValue("00AB"), nil, "2 bytes for the 4 of bytes(2)"},
		{"bytes wrong", reg(Bytes).with(func(p *Point) { p.Length = 2 }), TextValue("hello"), nil, `"hello" is not hexadecimal digits, two a byte`},
		{"datetime wrong", reg(Datetime), TextValue("yesterday"), nil, `"yesterday" is not a date and time; write 2025-11-05T14:30:15Z`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.p.Encode(tt.v)
			if tt.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wrong) {
					t.Fatalf("Encode(%s) = %#x, %v, want error %q", tt.v, got, err, tt.wrong)
				}
				return
			}
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("Encode(%s) = %#x, %v, want %#x", tt.v, got, err, tt.want)
			}
		})
	}
}

func TestEncodeMask(t *testing.T) {
	for _, tt := range []struct {
		p    Point
		want uint16
	}{
		{reg(Uint16), 0xFFFF},
		{reg(Float32), 0xFFFF},
		{Point{Table: modbus.Coils, Type: Bool}, 0xFFFF},
		{reg(Int8), 0xFF00},
		{reg(Int8).with(func(p *Point) { p.LowByte = true }), 0x00FF},
		{reg(Bool).with(func(p *Point) { p.FirstBit, p.BitCount = 3, 1 }), 0x0008},
		{reg(Uint16).with(func(p *Point) { p.FirstBit, p.BitCount = 4, 3 }), 0x0070},
		{reg(Uint16).with(func(p *Point) { p.BitCount = 16 }), 0xFFFF},
	} {
		if got := tt.p.EncodeMask(); got != tt.want {
			t.Errorf("%s bits %d+%d: EncodeMask() = %#x, want %#x", tt.p.TypeName(), tt.p.FirstBit, tt.p.BitCount, got, tt.want)
		}
	}
}

// drawPoint draws a valid point of any type, order and setting.
func drawPoint(t *rapid.T) Point {
	decimal := func(name string) Decimal {
		return Decimal{
			Mant: rapid.OneOf(rapid.Int64Range(-1000, 1000), rapid.SampledFrom([]int64{1, 0, 25, -1}), rapid.Int64Range(-1e12, 1e12)).Draw(t, name),
			Exp:  int8(rapid.IntRange(-9, 6).Draw(t, name+" exponent")),
		}.norm()
	}
	p := Point{
		ID:    "d.p",
		Table: modbus.HoldingRegisters,
		Type:  rapid.SampledFrom([]Type{Uint16, Bool, Int8, Uint8, Int16, Int32, Uint32, Int64, Uint64, Float16, Float32, Float64, BCD16, BCD32, String, Bytes, Datetime}).Draw(t, "type"),
		Order: Order(rapid.IntRange(0, 3).Draw(t, "order")),
	}
	c := p.Type.class()
	switch {
	case c == classText:
		p.Length = uint16(rapid.IntRange(1, 6).Draw(t, "length"))
	case c == classClock:
		p.Layout = Layout(rapid.IntRange(0, int(DT7)).Draw(t, "layout"))
	case p.Type == Bool && rapid.Bool().Draw(t, "coil"):
		p.Table = modbus.Coils
	case p.Type == Bool:
		p.FirstBit, p.BitCount = uint8(rapid.IntRange(0, 15).Draw(t, "bit")), 1
	case p.Type == Uint16 && rapid.Bool().Draw(t, "bits"):
		p.FirstBit = uint8(rapid.IntRange(0, 15).Draw(t, "first"))
		p.BitCount = uint8(rapid.IntRange(1, 16-int(p.FirstBit)).Draw(t, "count"))
	case p.Type == Int8 || p.Type == Uint8:
		p.LowByte = rapid.Bool().Draw(t, "low")
	}
	switch c {
	case classUnsigned, classSigned, classBCD, classFloat:
		switch rapid.IntRange(0, 2).Draw(t, "meaning") {
		case 1:
			p.Scale, p.Offset = decimal("scale"), decimal("offset")
			if p.Round = rapid.Bool().Draw(t, "round"); p.Round {
				p.Decimals = int8(rapid.IntRange(0, 8).Draw(t, "decimals"))
			}
		case 2:
			if c != classFloat {
				p.Map = []MapEntry{{0, "off"}, {1, "on"}}
				if p.BitCount != 1 {
					p.Map = append(p.Map, MapEntry{3, "7"})
				}
				if p.BitCount == 2 || p.BitCount == 1 {
					p.Map = p.Map[:2]
				}
			}
		}
	}
	if w := p.width(); w > 1 && p.BitCount == 0 && rapid.Bool().Draw(t, "has invalid") {
		p.Invalid = []uint64{1 << (w - 1)}
	}
	if err := p.Validate(); err != nil {
		t.Fatalf("the generator made %+v: %v", p, err)
	}
	return p
}

// TestLaw is the law of the package: whatever registers a device sends, the
// value made of them can be written and reads back as the same value.
func TestLaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPoint(t)
		for range 20 {
			regs := rapid.SliceOfN(rapid.OneOf(rapid.Uint16(), rapid.Uint16Range(0, 40), rapid.SampledFrom([]uint16{0x8000, 0xFFFF, 0x7FFF, 0x2020, 0x4142})), p.Words(), p.Words()).Draw(t, "regs")
			if p.Table.Bits() {
				regs[0] &= 1
			}
			checkLaw(t, p, regs)
		}
	})
}

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func checkLaw(t fataler, p Point, regs []uint16) {
	t.Helper()
	v, err := p.Decode(regs)
	if err != nil {
		if !errors.Is(err, ErrInvalid) {
			t.Fatalf("Decode(%#x): %v", regs, err)
		}
		return
	}
	if v.IsZero() {
		t.Fatalf("Decode(%#x) gives neither value nor error", regs)
	}
	again, err := p.Encode(v)
	if err != nil {
		t.Fatalf("%+v: Decode(%#x) = %s, but Encode: %v", p, regs, v, err)
	}
	if len(again) != p.Words() {
		t.Fatalf("Encode(%s) gives %d registers for %d", v, len(again), p.Words())
	}
	if again[0]&^p.EncodeMask() != 0 {
		t.Fatalf("Encode(%s) = %#x, outside its mask %#x", v, again, p.EncodeMask())
	}
	back, err := p.Decode(again)
	if err != nil || back != v {
		t.Fatalf("%+v: Decode(%#x) = %s, Encode gives %#x, which reads as %s, %v", p, regs, v, again, back, err)
	}
	if c := p.Type.class(); !p.scaled() && p.Map == nil && (c == classUnsigned || c == classSigned || c == classBCD || p.Type == Bytes || p.Type == Float32 || p.Type == Float64) {
		for i := range regs {
			if mask := p.EncodeMask(); regs[i]&mask != again[i]&mask {
				t.Fatalf("%+v: registers %#x came back as %#x", p, regs, again)
			}
		}
	}
}

// TestScaleExact: value = raw × scale + offset without any error, in whatever
// way Decode computes it, up to the 18 digits that a Value holds.
func TestScaleExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := reg(rapid.SampledFrom([]Type{Int16, Uint16, Int32, Uint32}).Draw(t, "type"))
		p.Scale = Decimal{rapid.Int64Range(-1e5, 1e5).Draw(t, "scale"), int8(rapid.IntRange(-6, 3).Draw(t, "e"))}.norm()
		p.Offset = Decimal{rapid.Int64Range(-1e6, 1e6).Draw(t, "offset"), int8(rapid.IntRange(-6, 3).Draw(t, "oe"))}.norm()
		if p.Scale.Mant == 0 {
			p.Scale = Decimal{Mant: 1}
		}
		regs := rapid.SliceOfN(rapid.Uint16(), p.Words(), p.Words()).Draw(t, "regs")
		raw := p
		raw.Scale, raw.Offset = Decimal{}, Decimal{}
		n, _ := raw.Decode(regs)
		i, _ := n.Int64()
		want := new(big.Rat).SetInt64(i)
		want.Mul(want, p.Scale.rat()).Add(want, p.Offset.rat())
		v, err := p.Decode(regs)
		d, ok := v.Decimal()
		if err != nil || !ok || !closeTo(d.rat(), want) {
			t.Fatalf("%d × %s + %s = %s, want %s (%v)", i, p.Scale, p.Offset, v, want.FloatString(12), err)
		}
		if d != d.norm() || DecimalValue(d) != v {
			t.Fatalf("%s is not in normal form: %+v", v, v)
		}
	})
}

// TestRoundExact holds rounding to what big.Rat says, half away from zero, also
// where 128 bits are needed.
func TestRoundExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := reg(Int64)
		p.Scale = Decimal{rapid.Int64Range(1, 1e6).Draw(t, "scale"), int8(rapid.IntRange(-12, 0).Draw(t, "e"))}.norm()
		p.Offset = Decimal{rapid.Int64().Draw(t, "offset"), int8(rapid.IntRange(-12, 0).Draw(t, "oe"))}.norm()
		p.Round, p.Decimals = true, int8(rapid.IntRange(0, 4).Draw(t, "decimals"))
		regs := rapid.SliceOfN(rapid.Uint16(), 4, 4).Draw(t, "regs")
		want := rat(int64(join(regs, ABCD)) < 0, magnitude(int64(join(regs, ABCD))), 0)
		want.Mul(want, p.Scale.rat()).Add(want, p.Offset.rat())
		ten := Decimal{1, p.Decimals}.rat()
		want.SetInt(nearest(want.Mul(want, ten))).Quo(want, ten)
		v, err := p.Decode(regs)
		neg, mag, exp, ok := v.parts()
		if err != nil || !ok {
			t.Fatalf("Decode = %s, %v", v, err)
		}
		if !closeTo(rat(neg, mag, exp), want) {
			t.Fatalf("Decode = %s, want %s", v, want.FloatString(6))
		}
	})
}

// closeTo reports whether got is want, or, where want has more digits than 63
// bits hold, its first 18.
func closeTo(got, want *big.Rat) bool {
	if got.Cmp(want) == 0 {
		return true
	}
	unscaled := new(big.Rat).Set(want)
	for range 40 { // the digits of want as one whole number
		if unscaled.IsInt() {
			break
		}
		unscaled.Mul(unscaled, big.NewRat(10, 1))
	}
	if unscaled.Num().IsInt64() {
		return false
	}
	diff := new(big.Rat).Sub(got, want)
	diff.Quo(diff.Abs(diff), new(big.Rat).Abs(want))
	f, _ := diff.Float64()
	return f < 1e-18
}

// TestEncodeNearest: what Encode takes is the nearest value the point can show.
func TestEncodeNearest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := reg(rapid.SampledFrom([]Type{Int16, Uint16, Int32, BCD16}).Draw(t, "type"))
		p.Scale = Decimal{rapid.Int64Range(1, 500).Draw(t, "scale"), int8(rapid.IntRange(-3, 1).Draw(t, "e"))}.norm()
		p.Offset = Decimal{rapid.Int64Range(-500, 500).Draw(t, "offset"), int8(rapid.IntRange(-3, 1).Draw(t, "oe"))}.norm()
		if p.scaleIsOne() {
			return
		}
		v := Float64Value(rapid.Float64Range(-1e6, 1e6).Draw(t, "v"))
		regs, err := p.Encode(v)
		least, most := p.limits()
		lo, _ := p.scale(least < 0, magnitude(least), 0).Float64()
		hi, _ := p.scale(false, most, 0).Float64()
		f, _ := v.Float64()
		step := p.Scale.Float64()
		if err != nil {
			if f > lo-step/2 && f < hi+step/2 {
				t.Fatalf("Encode(%s) of %s to %s by %s: %v", v, p.scale(least < 0, magnitude(least), 0), p.scale(false, most, 0), p.Scale, err)
			}
			return
		}
		back, err := p.Decode(regs)
		g, _ := back.Float64()
		if err != nil || math.Abs(g-f) > step/2+1e-9 {
			t.Fatalf("Encode(%s) reads back as %s, step %s, %v", v, back, p.Scale, err)
		}
	})
}

func TestHalf(t *testing.T) {
	for h := range 1 << 16 {
		f := halfToFloat(uint16(h))
		if f != f {
			continue
		}
		if got := floatToHalf(f); got != uint16(h) {
			t.Fatalf("floatToHalf(%v) = %#x, want %#x", f, got, h)
		}
		if math.IsInf(f, 0) {
			continue
		}
		d, ok := shortestHalf(uint16(h))
		if !ok || floatToHalf(d.Float64()) != uint16(h)&^(0x8000*b2u(f == 0)) || magnitude(d.Mant) > 99999 {
			t.Fatalf("shortestHalf(%#x) = %s, %v", h, d, ok)
		}
	}
	// Ties go to even, as IEEE 754 has it.
	for f, want := range map[float64]uint16{2049: 0x6800, 2051: 0x6802, 65519.99: 0x7BFF, 65520: 0x7C00, 0x1p-25: 0, 0x1.8p-25: 1, 0: 0} {
		if got := floatToHalf(f); got != want {
			t.Errorf("floatToHalf(%v) = %#x, want %#x", f, got, want)
		}
	}
}

func b2u(b bool) uint16 {
	if b {
		return 1
	}
	return 0
}

func TestValidate(t *testing.T) {
	two, one, zero := dec("2"), dec("1"), dec("0")
	for _, tt := range []struct {
		name  string
		p     Point
		wrong string
	}{
		{"zero", Point{}, "no table"},
		{"uint16 coil", Point{Table: modbus.Coils}, "type uint16 does not fit coil 0, which is one bit"},
		{"bits of a coil", Point{Table: modbus.Coils, Type: Bool, BitCount: 1}, "coil 0 is one bit already"},
		{"bool register", reg(Bool), "type bool on a register needs bit: 0-15"},
		{"bits of a float", reg(Float32).with(func(p *Point) { p.BitCount = 2 }), "cut a single register (uint16), not float32"},
		{"bits past 15", reg(Uint16).with(func(p *Point) { p.FirstBit, p.BitCount = 14, 3 }), "bits 14-16 are outside the register's 0-15"},
		{"string(0)", reg(String), "string(0) is outside 1-125 registers"},
		{"past the end", reg(Uint32).with(func(p *Point) { p.Address = 65535 }), "holding 65535 with 2 registers ends past address 65535"},
		{"low byte", reg(Uint16).with(func(p *Point) { p.LowByte = true }), "byte: low is for int8 and uint8"},
		{"scaled text", reg(Bytes).with(func(p *Point) { p.Length, p.Scale = 1, dec("0.1") }), "scale, offset and decimals need a number, not bytes(1)"},
		{"scale", reg(Uint16).with(func(p *Point) { p.Scale = Decimal{1, 31} }), "scale 1e+31 and offset 0: both are 0 or between"},
		{"decimals", reg(Uint16).with(func(p *Point) { p.Round, p.Decimals = true, -1 }), "decimals -1 is outside 0-15"},
		{"map of floats", reg(Float32).with(func(p *Point) { p.Map = []MapEntry{{0, "a"}} }), "map needs whole numbers, not float32"},
		{"map and scale", reg(Uint16).with(func(p *Point) { p.Map, p.Scale = []MapEntry{{0, "a"}}, dec("0.1") }), "map names raw numbers"},
		{"map twice", reg(Uint16).with(func(p *Point) { p.Map = []MapEntry{{0, "a"}, {0, "b"}} }), "map has 0 twice"},
		{"map out of range", reg(Uint16).with(func(p *Point) { p.Map = []MapEntry{{70000, "a"}} }), "map: 70000 is outside 0 to 65535 (uint16)"},
		{"map of a bit", reg(Bool).with(func(p *Point) { p.BitCount, p.Map = 1, []MapEntry{{2, "a"}} }), "map: 2 is outside 0 to 1 (1 bit)"},
		{"invalid text", reg(String).with(func(p *Point) { p.Length, p.Invalid = 1, []uint64{0} }), "invalid has no meaning for string(1)"},
		{"invalid too wide", reg(Int16).with(func(p *Point) { p.Invalid = []uint64{0x18000} }), "invalid: 0x18000 is wider than the 16 bits of int16"},
		{"write an input", Point{Table: modbus.InputRegisters, Write: &Write{}}, "write: input 0 can only be read"},
		{"write with 5", reg(Uint16).with(func(p *Point) { p.Write = &Write{Function: 5} }), "function 5 does not write holding registers"},
		{"write with 16", Point{Table: modbus.Coils, Type: Bool, Write: &Write{Function: 16}}, "function 16 does not write coils"},
		{"write two with 6", reg(Float32).with(func(p *Point) { p.Write = &Write{Function: 6} }), "function 6 writes one register, float32 has 2"},
		{"write 124", reg(String).with(func(p *Point) { p.Length, p.Write = 124, &Write{} }), "longer than the 123 registers"},
		{"min above max", reg(Uint16).with(func(p *Point) { p.Write = &Write{Min: &two, Max: &one} }), "write: min 2 is above max 1"},
		{"step 0", reg(Uint16).with(func(p *Point) { p.Write = &Write{Step: &zero} }), "write: step 0 is not above 0"},
		{"max outside the type", reg(Int16).with(func(p *Point) { p.Write = &Write{Max: &Decimal{Mant: 40000}} }), "write: max: 40000 is outside"},
		{"min outside the type", reg(Uint16).with(func(p *Point) { p.Write = &Write{Min: &Decimal{Mant: -1}} }), "write: min: -1 is outside"},
		{"min of a text", reg(String).with(func(p *Point) { p.Length, p.Write = 1, &Write{Min: &one} }), "write: min, max and step need a number"},
		{"only what does not fit", reg(Uint16).with(func(p *Point) { p.Write = &Write{Only: []Value{IntValue(-1)}} }), "write: only: -1 is outside"},
		{"good", reg(Uint16).with(func(p *Point) { p.Write = &Write{Min: &one, Max: &two, Step: &one, Function: 6} }), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.p.Validate()
			if tt.wrong == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.wrong) {
				t.Errorf("Validate() = %v, want %q", err, tt.wrong)
			}
		})
	}
}

func TestCheckWrite(t *testing.T) {
	ten, ninety, half, odd, odder, tenth := dec("10"), dec("90"), dec("0.5"), dec("10.3"), dec("10.36"), dec("0.1")
	ranged := reg(Int16).with(func(p *Point) {
		p.Scale, p.Write = dec("0.1"), &Write{Min: &ten, Max: &ninety, Step: &half}
	})
	modes := reg(Uint16).with(func(p *Point) {
		p.Map, p.Write = []MapEntry{{0, "stopped"}, {1, "running"}, {2, "service"}}, &Write{Only: []Value{TextValue("stopped"), IntValue(1)}}
	})
	for _, tt := range []struct {
		name  string
		p     Point
		v     Value
		wrong string
	}{
		{"read only", reg(Uint16), IntValue(1), "the point is read only"},
		{"in range", ranged, ParseValue("75.5"), ""},
		{"number as text", ranged, TextValue("75.5"), ""},
		{"float noise", ranged, Float64Value(75.50000000000001), ""},
		{"at the least", ranged, IntValue(10), ""},
		{"below", ranged, ParseValue("9.5"), "9.5 is below the least, 10"},
		{"above", ranged, ParseValue("90.5"), "90.5 is above the most, 90"},
		{"a little above", ranged, ParseValue("90.04"), "90.04 is above the most, 90"},
		{"rounded past the most", reg(Uint16).with(func(p *Point) { p.Scale, p.Write = half, &Write{Max: &odd} }), ParseValue("10.3"), "10.3 would be written as 10.5: 10.5 is above the most, 10.3"},
		{"rounded past the least", reg(Uint16).with(func(p *Point) { p.Scale, p.Write = half, &Write{Min: &odd} }), ParseValue("10.3"), ""},
		{"rounded below the most", reg(Uint16).with(func(p *Point) { p.Scale, p.Write = half, &Write{Max: &odd} }), ParseValue("10.2"), ""},
		{"a float at the most", reg(Float32).with(func(p *Point) { p.Write = &Write{Max: &tenth} }), ParseValue("0.1"), ""},
		{"a scaled float at the most", reg(Float32).with(func(p *Point) { p.Scale, p.Write = dec("1.8"), &Write{Max: &odd} }), ParseValue("10.3"), ""},
		{"a scaled float at the least", reg(Float64).with(func(p *Point) { p.Scale, p.Write = dec("3"), &Write{Min: &odd} }), ParseValue("10.3"), ""},
		{"a short float at the least", reg(Float16).with(func(p *Point) { p.Write = &Write{Min: &odd} }), ParseValue("10.3"), ""},
		{"shown rounded past the most", reg(Int16).with(func(p *Point) {
			p.Scale, p.Round, p.Decimals, p.Write = dec("0.01"), true, 1, &Write{Max: &odder}
		}), ParseValue("10.36"), ""},
		{"a bit field at the most", reg(Uint16).with(func(p *Point) { p.FirstBit, p.BitCount, p.Write = 4, 4, &Write{Max: &ten} }), IntValue(10), ""},
		{"the low byte at the most", reg(Int8).with(func(p *Point) { p.LowByte, p.Write = true, &Write{Max: &ten} }), IntValue(10), ""},
		{"between steps", ranged, ParseValue("75.3"), "75.3 is not a multiple of the step 0.5 from 10"},
		{"not a number", ranged, TextValue("high"), `"high" is not a number`},
		{"past the register", ranged, IntValue(5000), "5000 is outside -3276.8 to 3276.7 (int16)"},
		{"map text", modes, TextValue("Stopped"), ""},
		{"map number for an allowed text", modes, IntValue(0), ""},
		{"map text for an allowed number", modes, TextValue("running"), ""},
		{"map, not allowed", modes, TextValue("service"), "service is not one of stopped, 1"},
		{"map, unknown number", modes, IntValue(7), `"7" is not one of stopped, running, service`},
		{"bool only on", Point{Table: modbus.Coils, Type: Bool, Write: &Write{Only: []Value{BoolValue(true)}}}, TextValue("on"), ""},
		{"bool only on, off", Point{Table: modbus.Coils, Type: Bool, Write: &Write{Only: []Value{BoolValue(true)}}}, IntValue(0), "0 is not one of 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.p.Validate(); err != nil {
				t.Fatalf("Validate: %v", err)
			}
			err := tt.p.CheckWrite(tt.v)
			if tt.wrong == "" {
				if err != nil {
					t.Errorf("CheckWrite(%s): %v", tt.v, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.wrong) {
				t.Errorf("CheckWrite(%s) = %v, want %q", tt.v, err, tt.wrong)
			}
		})
	}
	if err := reg(Uint16).CheckWrite(IntValue(1)); !errors.Is(err, ErrReadOnly) {
		t.Errorf("read only: %v", err)
	}
}

func TestCheck(t *testing.T) {
	one, ten := dec("1"), dec("10")
	w := &Write{Max: &ten, Step: &one, Only: []Value{IntValue(2), IntValue(30)}}
	for v, wrong := range map[Value]string{
		IntValue(2):              "",
		Float64Value(2):          "",
		IntValue(3):              "3 is not one of 2, 30",
		IntValue(30):             "30 is above the most, 10",
		TextValue("2"):           "2 is not one of 2, 30", // no point, so no reading of text
		Float64Value(math.NaN()): "NaN is not one of",
	} {
		if err := w.Check(v); (err == nil) != (wrong == "") || err != nil && !strings.Contains(err.Error(), wrong) {
			t.Errorf("Check(%s) = %v, want %q", v, err, wrong)
		}
	}
	if err := (&Write{Max: &ten}).Check(Float64Value(math.Inf(1))); err == nil || !strings.Contains(err.Error(), "not a finite number") {
		t.Errorf("Check(Inf) = %v", err)
	}
	if err := (&Write{Step: &ten}).Check(IntValue(15)); err == nil || err.Error() != "15 is not a multiple of the step 10" {
		t.Errorf("Check(15) = %v", err)
	}
	if err := new(Write).Check(TextValue("anything")); err != nil {
		t.Error(err)
	}
}

func TestWords(t *testing.T) {
	for in, want := range map[string]string{
		Good.String(): "good", Uncertain.String(): "uncertain", Bad.String(): "bad",
		KindInt.String(): "number", KindBool.String(): "boolean", KindText.String(): "text", None.String(): "no value",
		Type(99).String(): "type?", Order(99).String(): "order?", Layout(99).String(): "layout?",
	} {
		if in != want {
			t.Errorf("%q, want %q", in, want)
		}
	}
}

func TestParsePoint(t *testing.T) {
	modes := reg(Uint16).with(func(p *Point) { p.Map = []MapEntry{{0, "0.5"}, {1, "true"}} })
	for _, tt := range []struct {
		p    Point
		text string
		want Value
	}{
		{reg(Uint16), "75.5", DecimalValue(dec("75.5"))},
		{reg(Uint16), "true", BoolValue(true)},
		{reg(String), "007", TextValue("007")},
		{reg(Bytes), "0011", TextValue("0011")},
		{modes, "true", TextValue("true")},
		{modes, "0.5", TextValue("0.5")},
		{modes, "1", IntValue(1)},
	} {
		if got := tt.p.Parse(tt.text); got != tt.want {
			t.Errorf("%s: Parse(%q) = %+v, want %+v", tt.p.TypeName(), tt.text, got, tt.want)
		}
	}
}

// Decode and the text of a value cost no allocation on the usual points.
func TestNoAllocations(t *testing.T) {
	buf := make([]byte, 0, 64)
	for _, tt := range hotPoints() {
		if n := testing.AllocsPerRun(100, func() {
			v, err := tt.p.Decode(tt.regs)
			if err != nil {
				t.Fatal(err)
			}
			buf = v.AppendJSON(buf[:0])
			buf = v.AppendText(buf[:0])
		}); n != 0 {
			t.Errorf("%s: %v allocations", tt.name, n)
		}
	}
}

type hotPoint struct {
	name string
	p    Point
	regs []uint16
}

func hotPoints() []hotPoint {
	scaled := func(typ Type, s, o string) Point {
		return reg(typ).with(func(p *Point) { p.Scale, p.Offset = dec(s), dec(o) })
	}
	return []hotPoint{
		{"uint16", reg(Uint16), []uint16{1234}},
		{"int16x0.1", scaled(Int16, "0.1", "0"), []uint16{254}},
		{"int16x0.1-40", scaled(Int16, "0.1", "-40"), []uint16{654}},
		{"uint32x0.001", scaled(Uint32, "0.001", "0"), []uint16{0x0102, 0x0304}},
		{"uint64x0.001", scaled(Uint64, "0.001", "0"), []uint16{0, 1, 0x0102, 0x0304}},
		{"float32", reg(Float32), []uint16{0x41CB, 0x3333}},
		{"float32x0.001", scaled(Float32, "0.001", "0"), []uint16{0x41CB, 0x3333}},
		{"float16", reg(Float16), []uint16{0x2E66}},
		{"bit", reg(Bool).with(func(p *Point) { p.BitCount = 1 }), []uint16{1}},
		{"map", reg(Uint16).with(func(p *Point) { p.Map = []MapEntry{{0, "a"}, {1, "b"}, {2, "c"}} }), []uint16{2}},
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, tt := range hotPoints() {
		b.Run(tt.name, func(b *testing.B) {
			for b.Loop() {
				tt.p.Decode(tt.regs)
			}
		})
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	for _, tt := range hotPoints() {
		v, _ := tt.p.Decode(tt.regs)
		buf := make([]byte, 0, 64)
		b.Run(tt.name, func(b *testing.B) {
			for b.Loop() {
				buf = v.AppendJSON(buf[:0])
			}
		})
	}
}

// FuzzLaw takes a point and its registers from raw bytes and holds TestLaw.
func FuzzLaw(f *testing.F) {
	f.Add(uint8(Int16), uint8(0), uint8(0), int64(1), int8(-1), int64(0), int8(0), uint8(255), []byte{0, 254})
	f.Add(uint8(Uint64), uint8(3), uint8(0), int64(25), int8(-4), int64(-1), int8(5), uint8(2), []byte{255, 255, 255, 255, 255, 255, 255, 255})
	f.Add(uint8(Float64), uint8(0), uint8(0), int64(3), int8(100), int64(7), int8(-100), uint8(255), []byte{0x7F, 0xE0, 1, 2, 3, 4, 5, 6})
	f.Add(uint8(Float32), uint8(2), uint8(0), int64(-123456789), int8(-9), int64(1e18), int8(-9), uint8(9), []byte{0x41, 0xCB, 0x33, 0x33})
	f.Add(uint8(Datetime), uint8(0), uint8(DT4), int64(0), int8(0), int64(0), int8(0), uint8(255), []byte{0, 25, 11, 5, 14, 30, 1, 2})
	// An underflow, and a result at the edge of Decimal's exponents: found by fuzzing.
	f.Add(uint8(Float64), uint8(0), uint8(0), int64(-27), int8(-26), int64(0), int8(0), uint8(255), []byte{0x80, 0x30, 0x30, 0x30, 0x30, 0x30, 0x30, 0x30})
	f.Add(uint8(Float64), uint8(0), uint8(0), int64(50), int8(0), int64(0), int8(0), uint8(255), []byte{0x28, 0x39, 0x30, 0x37, 0x37, 0x30, 0x32, 0x30})
	f.Add(uint8(String), uint8(1), uint8(0), int64(0), int8(0), int64(0), int8(0), uint8(255), []byte("\xb0C  \x00x"))
	f.Fuzz(func(t *testing.T, typ, order, layout uint8, scale int64, scaleExp int8, offset int64, offsetExp int8, decimals uint8, data []byte) {
		p := Point{
			ID: "d.p", Table: modbus.HoldingRegisters,
			Type: Type(typ % (uint8(Datetime) + 1)), Order: Order(order % 4), Layout: Layout(layout % (uint8(DT7) + 1)),
			LowByte: false,
			Scale:   Decimal{scale, scaleExp}.norm(), Offset: Decimal{offset, offsetExp}.norm(),
			Length: uint16(len(data) / 2),
		}
		if decimals < 16 {
			p.Round, p.Decimals = true, int8(decimals)
		}
		if p.Type == Bool {
			p.FirstBit, p.BitCount = layout%16, 1
		}
		if c := p.Type.class(); c == classText || c == classClock || c == classBool {
			p.Scale, p.Offset, p.Round = Decimal{}, Decimal{}, false
		}
		if p.Validate() != nil || len(data) < 2*p.Words() {
			t.Skip()
		}
		regs := make([]uint16, p.Words())
		for i := range regs {
			regs[i] = uint16(data[2*i])<<8 | uint16(data[2*i+1])
		}
		checkLaw(t, p, regs)
	})
}
