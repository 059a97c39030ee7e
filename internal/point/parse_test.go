package point

import (
	"regexp"
	"strings"
	"testing"

	"fieldgate/internal/modbus"

	"pgregory.net/rapid"
)

func TestParseAddress(t *testing.T) {
	const (
		coil     = modbus.Coils
		discrete = modbus.DiscreteInputs
		input    = modbus.InputRegisters
		holding  = modbus.HoldingRegisters
	)
	for _, tt := range []struct {
		in    string
		base  uint16
		table modbus.Table
		addr  uint16
		wrong string
	}{
		{"holding 0", 0, holding, 0, ""},
		{"input 0x1F", 0, input, 31, ""},
		{"coil 3", 0, coil, 3, ""},
		{"discrete 9", 0, discrete, 9, ""},
		{"  Holding   65535 ", 0, holding, 65535, ""},
		{"holding 007", 0, holding, 7, ""},
		{"40001", 0, holding, 0, ""},
		{"400001", 0, holding, 0, ""},
		{"465536", 0, holding, 65535, ""},
		{"49999", 0, holding, 9998, ""},
		{"30001", 0, input, 0, ""},
		{"10001", 0, discrete, 0, ""},
		{"00001", 0, coil, 0, ""},
		{"000001", 0, coil, 0, ""},
		{"065536", 0, coil, 65535, ""},
		{"holding 1", 1, holding, 0, ""},
		{"holding 65536", 1, holding, 65535, ""},
		{"40001", 1, holding, 0, ""},
		{"holding 0", 1, 0, 0, "0 is outside 1-65536"},
		{"holding 65536", 0, 0, 0, "65536 is outside 0-65535"},
		{"holding -1", 0, 0, 0, `"-1" is not a register number; write holding 0 or holding 0x1F`},
		{"holding 1.5", 0, 0, 0, "is not a register number"},
		{"holding 0x", 0, 0, 0, "is not a register number"},
		{"1", 0, 0, 0, `1 can be read in two ways: write "holding 1" for protocol address 1, or 40001 for Modicon number 1`},
		{"0", 0, 0, 0, `write "holding 0" for protocol address 0, or 40001`},
		{"9999", 0, 0, 0, `write "holding 9999" for protocol address 9999, or 49999`},
		{"20001", 0, 0, 0, "20001 is not a Modicon number: those begin with 0 (coil), 1 (discrete), 3 (input) or 4 (holding)"},
		{"40000", 0, 0, 0, "40000 is not a Modicon number: those count from 40001 to 465536"},
		{"400000", 0, 0, 0, "those count from 400001 to 465536"},
		{"465537", 0, 0, 0, "those count from 400001 to 465536"},
		{"4000001", 0, 0, 0, "Modicon numbers have five or six digits"},
		{"register 5", 0, 0, 0, "is not an address; write holding 0"},
		{"", 0, 0, 0, "is not an address"},
		{"holding", 0, 0, 0, "is not an address"},
		{"holding 1 2", 0, 0, 0, "is not an address"},
		{"-40001", 0, 0, 0, "is not an address"},
	} {
		table, addr, err := ParseAddressBase(tt.in, tt.base)
		if tt.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), tt.wrong) {
				t.Errorf("ParseAddressBase(%q, %d) = %v %d, %v, want %q", tt.in, tt.base, table, addr, err, tt.wrong)
			}
			continue
		}
		if err != nil || table != tt.table || addr != tt.addr {
			t.Errorf("ParseAddressBase(%q, %d) = %v %d, %v, want %v %d", tt.in, tt.base, table, addr, err, tt.table, tt.addr)
		}
	}
}

func TestAddressRoundTrip(t *testing.T) {
	for table := modbus.Coils; table <= modbus.HoldingRegisters; table++ {
		for addr := range 1 << 16 {
			if addr > 20000 && addr%97 != 0 && addr != 65535 {
				continue
			}
			for _, s := range []string{Modicon(table, uint16(addr)), FormatAddress(table, uint16(addr))} {
				gotTable, gotAddr, err := ParseAddress(s)
				if err != nil || gotTable != table || int(gotAddr) != addr {
					t.Fatalf("%s %d is %q, which is %s %d, %v", table, addr, s, gotTable, gotAddr, err)
				}
			}
		}
	}
	for _, tt := range []struct {
		addr uint16
		want string
	}{{0, "40001"}, {9998, "49999"}, {9999, "410000"}, {65535, "465536"}} {
		if got := Modicon(modbus.HoldingRegisters, tt.addr); got != tt.want {
			t.Errorf("Modicon(holding, %d) = %s, want %s", tt.addr, got, tt.want)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"holding 0", "40001", "00001", "input 0x1F", "9999", "coil 65536"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		table, addr, err := ParseAddress(s)
		if err != nil {
			return
		}
		if again, addr2, err := ParseAddress(FormatAddress(table, addr)); err != nil || again != table || addr2 != addr {
			t.Errorf("%q is %s %d, which reads back as %s %d, %v", s, table, addr, again, addr2, err)
		}
	})
}

func TestParseType(t *testing.T) {
	for _, name := range TypeNames() {
		spell := map[string]string{"string": "string(8)", "bytes": "bytes(8)", "datetime": "datetime(DT4)"}[name]
		if spell == "" {
			spell = name
		}
		typ, length, layout, err := ParseType(spell)
		p := Point{Type: typ, Length: length, Layout: layout}
		if err != nil || typ.String() != name || p.TypeName() != spell {
			t.Errorf("ParseType(%q) = %s, %v", spell, p.TypeName(), err)
		}
	}
	for _, l := range LayoutNames() {
		if typ, _, layout, err := ParseType("datetime(" + strings.ToLower(l) + ")"); err != nil || typ != Datetime || layout.String() != l {
			t.Errorf("datetime(%s): %s, %v", l, layout, err)
		}
	}
	if typ, n, _, err := ParseType(" String( 8 ) "); err != nil || typ != String || n != 8 {
		t.Errorf("spaces and case: %v %d %v", typ, n, err)
	}
	for in, wrong := range map[string]string{
		"":             "is not a type; known: uint16 bool int8",
		"word":         "is not a type",
		"string":       "string takes its length in registers, 1-125: string(8)",
		"string()":     "takes its length in registers",
		"string(0)":    "takes its length in registers",
		"string(126)":  "takes its length in registers",
		"bytes(-1)":    "takes its length in registers",
		"string(8":     "has no closing bracket",
		"uint16(2)":    "uint16 takes nothing in brackets",
		"datetime":     "datetime takes a layout, as in datetime(EPOCH)",
		"datetime(XY)": "known: DOS WIN EPOCH EPOCHMS DT2 DT3 DT4 DT4P DT6 DT7",
	} {
		if _, _, _, err := ParseType(in); err == nil || !strings.Contains(err.Error(), wrong) {
			t.Errorf("ParseType(%q): %v, want %q", in, err, wrong)
		}
	}
}

func TestParseWords(t *testing.T) {
	for _, name := range OrderNames() {
		if o, err := ParseOrder(strings.ToLower(name)); err != nil || o.String() != name {
			t.Errorf("ParseOrder(%q) = %s, %v", name, o, err)
		}
	}
	if _, err := ParseOrder("big"); err == nil || !strings.Contains(err.Error(), "ABCD (big endian)") {
		t.Errorf("ParseOrder: %v", err)
	}
	if _, err := ParseLayout("ISO"); err == nil || !strings.Contains(err.Error(), "known: DOS") {
		t.Errorf("ParseLayout: %v", err)
	}
	for table := modbus.Coils; table <= modbus.HoldingRegisters; table++ {
		if got, err := ParseTable(strings.ToUpper(table.String())); err != nil || got != table {
			t.Errorf("ParseTable(%s) = %s, %v", table, got, err)
		}
	}
	if _, err := ParseTable("hr"); err == nil || !strings.Contains(err.Error(), "known: coil discrete input holding") {
		t.Errorf("ParseTable: %v", err)
	}
}

func TestID(t *testing.T) {
	id := ID("boiler.status.fault")
	if id.Device() != "boiler" || id.Name() != "status.fault" {
		t.Errorf("%q, %q", id.Device(), id.Name())
	}
}

func TestGlob(t *testing.T) {
	for _, tt := range []struct {
		pattern string
		id      ID
		want    bool
	}{
		{"*", "boiler.temp", true},
		{"boiler.*", "boiler.temp", true},
		{"boiler.*", "boiler.status.fault", true},
		{"boiler.*", "boiler2.temp", false},
		{"*.temp", "boiler.temp", true},
		{"*.temp", "boiler.temperature", false},
		{"boiler.temp", "boiler.temp", true},
		{"boiler.temp", "boiler.tempo", false},
		{"boiler?.temp", "boiler1.temp", true},
		{"boiler?.temp", "boiler.temp", false},
		{"b*r.*p", "boiler.temp", true},
		{"b*r.*p", "boiler.tempo", false},
		{"*.*.fault", "boiler.status.fault", true},
		{"", "", true},
		{"", "a", false},
		{"**", "a", true},
		{"a*b*c", "abc", true},
		{"a*b*c", "acb", false},
	} {
		if got := ParseGlob(tt.pattern).Match(tt.id); got != tt.want {
			t.Errorf("ParseGlob(%q).Match(%q) = %v", tt.pattern, tt.id, got)
		}
	}
	if !ParseGlob("a.b").Literal() || ParseGlob("a.*").Literal() || ParseGlob("a?*").String() != "a?*" {
		t.Error("Literal or String")
	}
	if n := testing.AllocsPerRun(10, func() { _ = ParseGlob("b*r.*p").Match("boiler.temp") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestGlobLaw compares with the regular expression that means the same.
func TestGlobLaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringMatching(`[ab.*?]{0,8}`).Draw(t, "pattern")
		id := ID(rapid.StringMatching(`[ab.]{0,10}`).Draw(t, "id"))
		re := strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(pattern))
		want := regexp.MustCompile("^(?s:" + re + ")$").MatchString(string(id))
		if got := ParseGlob(pattern).Match(id); got != want {
			t.Fatalf("ParseGlob(%q).Match(%q) = %v", pattern, id, got)
		}
	})
}
