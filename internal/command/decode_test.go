package command

import (
	"strings"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

func TestConvert(t *testing.T) {
	for _, row := range []struct{ v, from, to, want string }{
		{"140", "°F", "°C", "60"},
		{"1250", "F", "C", "676.666666666667"},
		{"60", "°C", "°F", "140"},
		{"-40", "°C", "degF", "-40"},
		{"0", "K", "°C", "-273.15"},
		{"25.4", "°C", "C", "25.4"},
		{"1", "bar", "psi", "14.5037737730209"},
		{"14.5037737730209", "psi", "bar", "0.999999999999999"},
		{"1", "psi", "Pa", "6894.75729316836"},
		{"1013.25", "mbar", "kPa", "101.325"},
		{"1", "atm", "bar", "1.01325"},
		{"90", "l/min", "m³/h", "5.4"},
		{"1", "m³/s", "l/s", "1000"},
		{"1", "in", "mm", "25.4"},
		{"1", "kWh", "MJ", "3.6"},
		{"1500", "rpm", "Hz", "25"},
		{"1", "h", "s", "3600"},
		{"0.1", "kW", "W", "100"},
		{"5", "mW", "MW", "error"}, // case matters
		{"5", "bar", "°C", "error"},
		{"5", "parsec", "m", "error"},
		{"5", "°C", "", "error"},
		{"much", "bar", "Pa", "error"},
		{"5", "%", "%", "5"},
	} {
		got, err := convert(point.ParseValue(row.v), row.from, row.to)
		text := got.String()
		if err != nil {
			text = "error"
		}
		if text != row.want {
			t.Errorf("%s %s in %s = %s (%v), want %s", row.v, row.from, row.to, text, err, row.want)
		}
	}
}

// What was converted is rounded to what the point can hold.
func TestSettle(t *testing.T) {
	dec := func(text string) point.Decimal {
		d, err := point.ParseDecimal(text)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	step, least := dec("0.5"), dec("20.1")
	for _, row := range []struct {
		v    string
		p    point.Point
		want string
	}{
		{"676.666666666667", point.Point{Type: point.Int16}, "677"},
		{"-676.5", point.Point{Type: point.Int16}, "-677"},
		{"676.666666666667", point.Point{Type: point.Int16, Scale: dec("0.1")}, "676.7"},
		{"676.666666666667", point.Point{Type: point.Int16, Scale: dec("0.1"), Offset: dec("0.05")}, "676.65"},
		{"676.666666666667", point.Point{Type: point.Float32}, "676.666666666667"},
		{"676.666666666667", point.Point{Type: point.Float32, Write: &point.Write{Step: &step}}, "676.5"},
		{"676.666666666667", point.Point{Type: point.Float32, Write: &point.Write{Step: &step, Min: &least}}, "676.6"},
	} {
		if row.p.Write == nil {
			row.p.Write = &point.Write{}
		}
		if got := settle(point.ParseValue(row.v), &row.p); got.String() != row.want {
			t.Errorf("%s settles at %s, want %s", row.v, got, row.want)
		}
	}
}

// There and back is the same number, and no spelling is two units.
func TestUnits(t *testing.T) {
	seen := make(map[string]bool)
	for _, u := range units {
		for _, n := range u.names {
			if seen[n] {
				t.Errorf("%s is two units", n)
			}
			seen[n] = true
		}
		for _, w := range units {
			if w.quantity != u.quantity {
				continue
			}
			v, err := convert(point.IntValue(12345), u.names[0], w.names[0])
			if err == nil {
				v, err = convert(v, w.names[0], u.names[0])
			}
			f, _ := v.Float64()
			if err != nil || f < 12345-1e-7 || f > 12345+1e-7 {
				t.Errorf("%s to %s and back: %s %v", u.names[0], w.names[0], v, err)
			}
		}
	}
}

// Whatever comes, decode returns or refuses it; what it returns names only
// targets, each at most once, and has an id that can be recorded.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"75.5", `"on"`, `{"value":75.5}`, `{"register":"40001","value":1250,"unit":"°F","timestamp":"2025-11-05T14:30:15Z","id":"1","ttl":30}`,
		`{"point":"a.b","value":true}`, `{"temp":1,"level":{"value":2,"unit":"bar"}}`, `{"RegName":"b","RegAddress":400001,"RegUnitID":1,"RegValue":"5"}`,
		`{"RegAddress":-1,"RegValue":1,"OneBased":false}`, "STOP", "", "{", `{"":{}}`, `{"a":{"a":{"a":1}}}`, strings.Repeat("[", 100), `{"id":1e999,"value":-0}`,
	} {
		f.Add(s, byte(0))
	}
	targets := []config.Target{{Filter: "t", Point: "a.b", Key: "temp", Value: point.IntValue(1)}, {Filter: "t", Point: "a.c", Key: "level", Value: point.IntValue(0)}}
	p := &point.Point{Table: modbus.HoldingRegisters, Address: 0, Write: &point.Write{}}
	look := func(point.ID) (*point.Point, modbus.UnitID) { return p, 1 }
	f.Fuzz(func(t *testing.T, payload string, kind byte) {
		c := config.Command{Kind: config.CommandKind(kind%5) + config.ValueCommand, Match: "STOP"}
		r, err := decode(&c, targets, []byte(payload), look, time.Unix(1e9, 0))
		if len(r.id) > maxID {
			t.Errorf("id of %d bytes", len(r.id))
		}
		if err != nil {
			if text := err.Error(); len(text) > 1000 || text == "" {
				t.Errorf("error of %d bytes", len(text))
			}
			return
		}
		seen := make(map[point.ID]bool)
		for _, w := range r.writes {
			if w.Point != "a.b" && w.Point != "a.c" || seen[w.Point] {
				t.Errorf("%q writes %s", payload, w.Point)
			}
			seen[w.Point] = true
		}
		if len(r.writes) == 0 && c.Kind != config.ReadCommand {
			t.Errorf("%q as kind %d is nothing, and no error", payload, c.Kind)
		}
	})
}

func FuzzConvert(f *testing.F) {
	f.Add("1250", "°F", "°C")
	f.Add("1e30", "psi", "Pa")
	f.Fuzz(func(t *testing.T, v, from, to string) {
		got, err := convert(point.ParseValue(v), from, to)
		if _, ok := got.Float64(); err == nil && from != to && !ok && got.Kind() != point.KindText {
			t.Errorf("%s %s in %s = %s", v, from, to, got)
		}
	})
}
