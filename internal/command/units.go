package command

import (
	"fmt"
	"math/big"
	"strings"

	"fieldgate/internal/point"
)

// unit is a unit of measure: base = value × factor + offset, where the units of
// one quantity share their base.
type unit struct {
	quantity string
	factor   string // of big.Rat: 1/3, 0.001
	offset   string
	names    []string // every spelling
}

// units are the pairs that are known. Their factors are exact by definition: an
// inch is 25.4 mm, a pound 0.45359237 kg, standard gravity 9.80665 m/s².
var units = []unit{
	{"temperature", "1", "0", []string{"K", "kelvin"}},
	{"temperature", "1", "273.15", []string{"°C", "℃", "C", "degC", "deg C", "celsius"}},
	{"temperature", "5/9", "45967/180", []string{"°F", "℉", "F", "degF", "deg F", "fahrenheit"}},

	{"pressure", "1", "0", []string{"Pa"}},
	{"pressure", "100", "0", []string{"hPa", "mbar"}},
	{"pressure", "1000", "0", []string{"kPa"}},
	{"pressure", "1000000", "0", []string{"MPa"}},
	{"pressure", "100000", "0", []string{"bar"}},
	{"pressure", "8896443230521/1290320000", "0", []string{"psi", "lbf/in²"}},
	{"pressure", "101325", "0", []string{"atm"}},

	{"flow", "1", "0", []string{"m³/h", "m3/h"}},
	{"flow", "3600", "0", []string{"m³/s", "m3/s"}},
	{"flow", "0.001", "0", []string{"l/h", "L/h"}},
	{"flow", "0.06", "0", []string{"l/min", "L/min", "lpm"}},
	{"flow", "3.6", "0", []string{"l/s", "L/s"}},

	{"length", "1", "0", []string{"m"}},
	{"length", "0.001", "0", []string{"mm"}},
	{"length", "0.01", "0", []string{"cm"}},
	{"length", "1000", "0", []string{"km"}},
	{"length", "0.0254", "0", []string{"in", "inch"}},
	{"length", "0.3048", "0", []string{"ft"}},

	{"volume", "1", "0", []string{"m³", "m3"}},
	{"volume", "0.001", "0", []string{"l", "L"}},
	{"volume", "0.000001", "0", []string{"ml", "mL"}},

	{"mass", "1", "0", []string{"kg"}},
	{"mass", "0.001", "0", []string{"g"}},
	{"mass", "1000", "0", []string{"t"}},
	{"mass", "0.45359237", "0", []string{"lb"}},

	{"power", "1", "0", []string{"W"}},
	{"power", "1000", "0", []string{"kW"}},
	{"power", "1000000", "0", []string{"MW"}},

	{"energy", "1", "0", []string{"Wh"}},
	{"energy", "1000", "0", []string{"kWh"}},
	{"energy", "1000000", "0", []string{"MWh"}},
	{"energy", "1/3600", "0", []string{"J", "Ws"}},
	{"energy", "5/18", "0", []string{"kJ"}},
	{"energy", "2500/9", "0", []string{"MJ"}},

	{"voltage", "1", "0", []string{"V"}},
	{"voltage", "0.001", "0", []string{"mV"}},
	{"voltage", "1000", "0", []string{"kV"}},

	{"current", "1", "0", []string{"A"}},
	{"current", "0.001", "0", []string{"mA"}},
	{"current", "1000", "0", []string{"kA"}},

	{"frequency", "1", "0", []string{"Hz"}},
	{"frequency", "1000", "0", []string{"kHz"}},
	{"frequency", "1/60", "0", []string{"rpm", "1/min", "min⁻¹"}},

	{"time", "1", "0", []string{"s", "sec"}},
	{"time", "0.001", "0", []string{"ms"}},
	{"time", "60", "0", []string{"min"}},
	{"time", "3600", "0", []string{"h"}},
}

// findUnit returns the unit of a spelling. Case matters: mW is not MW.
func findUnit(name string) (unit, bool) {
	for _, u := range units {
		for _, n := range u.names {
			if n == name {
				return u, true
			}
		}
	}
	return unit{}, false
}

// convert returns the value v, in the unit from, in the unit to. What has more
// than 15 digits is rounded to that many.
func convert(v point.Value, from, to string) (point.Value, error) {
	from, to = strings.TrimSpace(from), strings.TrimSpace(to)
	if from == to {
		return v, nil
	}
	if to == "" {
		return v, fmt.Errorf("the point has no unit, so that %s cannot be held against it", quote(from))
	}
	a, ok1 := findUnit(from)
	b, ok2 := findUnit(to)
	if !ok1 || !ok2 || a.quantity != b.quantity {
		return v, fmt.Errorf("the unit is %s, and %s cannot be converted to it", to, quote(from))
	}
	if a.factor == b.factor && a.offset == b.offset {
		return v, nil // another spelling
	}
	if text, ok := v.Text(); ok {
		v = point.ParseValue(strings.TrimSpace(text))
	}
	number, ok := v.Decimal()
	if !ok || v.Kind() == point.KindBool {
		return v, fmt.Errorf("%s is not a number, and %s is converted to %s", quote(v.String()), from, to)
	}
	x, ok := new(big.Rat).SetString(number.String())
	if !ok {
		return v, fmt.Errorf("%s cannot be converted", number)
	}
	x.Mul(x, rat(a.factor)).Add(x, rat(a.offset))
	x.Sub(x, rat(b.offset)).Quo(x, rat(b.factor))
	d, err := point.ParseDecimal(digits(x))
	if err != nil {
		return v, fmt.Errorf("%s %s in %s: %w", number, from, to, err)
	}
	return point.DecimalValue(d), nil
}

// settle rounds a converted value to what the point can hold: a multiple of its
// step, or of its scale. 1250 °F are no whole number of °C.
func settle(v point.Value, p *point.Point) point.Value {
	number, ok := v.Decimal()
	step, from := p.Scale, p.Offset
	switch {
	case p.Write.Step != nil:
		step, from = *p.Write.Step, point.Decimal{}
		if p.Write.Min != nil {
			from = *p.Write.Min
		}
	case p.Type == point.Float16 || p.Type == point.Float32 || p.Type == point.Float64:
		return v
	case step.IsZero():
		step = point.Decimal{Mant: 1}
	}
	if !ok || step.IsZero() {
		return v
	}
	x, unit, base := rat(number.String()), rat(step.String()), rat(from.String())
	x.Sub(x, base).Quo(x, unit)
	half := big.NewRat(int64(x.Sign()), 2)
	n := x.Add(x, half)
	whole := new(big.Int).Quo(n.Num(), n.Denom()) // towards zero
	d, err := point.ParseDecimal(digits(new(big.Rat).Add(base, new(big.Rat).Mul(new(big.Rat).SetInt(whole), unit))))
	if err != nil {
		return v
	}
	return point.DecimalValue(d)
}

func rat(s string) *big.Rat {
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		panic("command: " + s + " is no number") // of the table above, or of a Decimal
	}
	return r
}

// digits writes x exactly where 15 digits do, else rounded to as many.
func digits(x *big.Rat) string {
	const most = 15
	f := new(big.Float).SetPrec(200).SetRat(x)
	return f.Text('g', most)
}
