package point

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"fieldgate/internal/modbus"
)

// typeNames are the types by their number; String, Bytes and Datetime take an
// argument in brackets.
var typeNames = [...]string{
	Uint16: "uint16", Bool: "bool", Int8: "int8", Uint8: "uint8", Int16: "int16",
	Int32: "int32", Uint32: "uint32", Int64: "int64", Uint64: "uint64",
	Float16: "float16", Float32: "float32", Float64: "float64",
	BCD16: "bcd16", BCD32: "bcd32",
	String: "string", Bytes: "bytes", Datetime: "datetime",
}

var orderNames = [...]string{ABCD: "ABCD", DCBA: "DCBA", CDAB: "CDAB", BADC: "BADC"}

var layoutNames = [...]string{
	DOS: "DOS", WIN: "WIN", EPOCH: "EPOCH", EPOCHMS: "EPOCHMS",
	DT2: "DT2", DT3: "DT3", DT4: "DT4", DT4P: "DT4P", DT6: "DT6", DT7: "DT7",
}

// TypeNames returns the words of the types, without arguments, in the order of
// their numbers.
func TypeNames() []string { return slices.Clone(typeNames[:]) }

// OrderNames returns the words of the orders.
func OrderNames() []string { return slices.Clone(orderNames[:]) }

// LayoutNames returns the words of the datetime layouts.
func LayoutNames() []string { return slices.Clone(layoutNames[:]) }

// String returns the type's word: "uint16", "string". See Point.TypeName for
// the word with its argument.
func (t Type) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return "type?"
}

// String returns the order's letters.
func (o Order) String() string {
	if int(o) < len(orderNames) {
		return orderNames[o]
	}
	return "order?"
}

// String returns the layout's word.
func (l Layout) String() string {
	if int(l) < len(layoutNames) {
		return layoutNames[l]
	}
	return "layout?"
}

// TypeName returns the type as the configuration spells it: "uint16",
// "string(8)", "datetime(DT4)".
func (p Point) TypeName() string {
	switch p.Type {
	case String, Bytes:
		return p.Type.String() + "(" + strconv.Itoa(int(p.Length)) + ")"
	case Datetime:
		return "datetime(" + p.Layout.String() + ")"
	}
	return p.Type.String()
}

// ParseType reads a type as the configuration spells it, in any case:
// "uint16", "string(8)" with its length in registers (1-125), "bytes(4)",
// "datetime(DT4)". length is 0 and layout DOS where the type has none.
func ParseType(s string) (t Type, length uint16, layout Layout, err error) {
	name, arg, bracket := strings.Cut(strings.ToLower(strings.TrimSpace(s)), "(")
	name = strings.TrimSpace(name)
	i := slices.Index(typeNames[:], name)
	if i < 0 {
		return 0, 0, 0, fmt.Errorf("%q is not a type; known: %s string(N) bytes(N) datetime(LAYOUT)",
			s, strings.Join(typeNames[:String], " "))
	}
	t = Type(i)
	if bracket {
		var closed bool
		if arg, closed = strings.CutSuffix(arg, ")"); !closed {
			return 0, 0, 0, fmt.Errorf("%q has no closing bracket", s)
		}
		arg = strings.TrimSpace(arg)
	}
	switch t {
	case String, Bytes:
		n, err := strconv.ParseUint(arg, 10, 16)
		if err != nil || n < 1 || n > modbus.MaxReadRegisters {
			return 0, 0, 0, fmt.Errorf("%q: %s takes its length in registers, 1-%d: %s(8)", s, name, modbus.MaxReadRegisters, name)
		}
		return t, uint16(n), 0, nil
	case Datetime:
		l, err := ParseLayout(arg)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("%q: datetime takes a layout, as in datetime(EPOCH); known: %s",
				s, strings.Join(layoutNames[:], " "))
		}
		return t, 0, l, nil
	}
	if bracket {
		return 0, 0, 0, fmt.Errorf("%q: %s takes nothing in brackets", s, name)
	}
	return t, 0, 0, nil
}

// ParseOrder reads ABCD, DCBA, CDAB or BADC, in any case.
func ParseOrder(s string) (Order, error) {
	if i := slices.Index(orderNames[:], strings.ToUpper(s)); i >= 0 {
		return Order(i), nil
	}
	return 0, fmt.Errorf("%q is not an order; known: ABCD (big endian), DCBA (little endian), CDAB (words swapped), BADC (bytes swapped)", s)
}

// ParseLayout reads the name of a datetime layout, in any case.
func ParseLayout(s string) (Layout, error) {
	if i := slices.Index(layoutNames[:], strings.ToUpper(s)); i >= 0 {
		return Layout(i), nil
	}
	return 0, fmt.Errorf("%q is not a datetime layout; known: %s", s, strings.Join(layoutNames[:], " "))
}

// modiconDigit is the first digit of a table's Modicon numbers.
func modiconDigit(t modbus.Table) byte {
	switch t {
	case modbus.Coils:
		return '0'
	case modbus.DiscreteInputs:
		return '1'
	case modbus.InputRegisters:
		return '3'
	}
	return '4'
}

// ParseAddress reads every spelling of an address: "holding 0", "input 0x1F",
// "coil 3" and "discrete 9" with zero-based protocol addresses, and Modicon
// numbers of five or six digits, where "40001" and "400001" are holding 0.
// addr is the zero-based protocol address.
func ParseAddress(s string) (modbus.Table, uint16, error) { return ParseAddressBase(s, 0) }

// ParseAddressBase is ParseAddress for devices whose documents count registers
// from base: with base 1, "holding 1" is protocol address 0. Modicon numbers
// always count from one.
func ParseAddressBase(s string, base uint16) (modbus.Table, uint16, error) {
	fields := strings.Fields(s)
	switch len(fields) {
	case 1:
		if digits(fields[0]) {
			return parseModicon(fields[0])
		}
	case 2:
		table, ok := parseTable(fields[0])
		if !ok {
			break
		}
		n, err := strconv.ParseUint(fields[1], 10, 32)
		if hex, found := strings.CutPrefix(strings.ToLower(fields[1]), "0x"); found {
			n, err = strconv.ParseUint(hex, 16, 32)
		}
		if err != nil {
			return 0, 0, fmt.Errorf("%q: %q is not a register number; write %s 0 or %s 0x1F", s, fields[1], table, table)
		}
		if n < uint64(base) || n > 65535+uint64(base) {
			return 0, 0, fmt.Errorf("%q: %d is outside %d-%d", s, n, base, 65535+uint64(base))
		}
		return table, uint16(n - uint64(base)), nil
	}
	return 0, 0, fmt.Errorf("%q is not an address; write holding 0, input 0, coil 0 or discrete 0 (zero-based), or a Modicon number such as 40001", s)
}

// ParseTable reads coil, discrete, input or holding, in any case.
func ParseTable(s string) (modbus.Table, error) {
	if t, ok := parseTable(s); ok {
		return t, nil
	}
	return 0, fmt.Errorf("%q is not a table; known: coil discrete input holding", s)
}

func parseTable(s string) (modbus.Table, bool) {
	for t := modbus.Coils; t <= modbus.HoldingRegisters; t++ {
		if strings.EqualFold(s, t.String()) {
			return t, true
		}
	}
	return 0, false
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// parseModicon reads five or six digits: the table's digit, then the number
// from one, up to 9999 or 65536.
func parseModicon(s string) (modbus.Table, uint16, error) {
	if len(s) > 6 {
		return 0, 0, fmt.Errorf("%s is not an address: Modicon numbers have five or six digits", s)
	}
	if len(s) < 5 {
		n, _ := strconv.ParseUint(s, 10, 32) // at most four digits
		return 0, 0, fmt.Errorf("%s can be read in two ways: write \"holding %d\" for protocol address %d, or 4%04d for Modicon number %d (coil, discrete, input: likewise, or 0, 1, 3 in front)",
			s, n, n, max(n, 1), max(n, 1))
	}
	table := modbus.Table(0)
	switch s[0] {
	case '0':
		table = modbus.Coils
	case '1':
		table = modbus.DiscreteInputs
	case '3':
		table = modbus.InputRegisters
	case '4':
		table = modbus.HoldingRegisters
	default:
		return 0, 0, fmt.Errorf("%s is not a Modicon number: those begin with 0 (coil), 1 (discrete), 3 (input) or 4 (holding)", s)
	}
	n, _ := strconv.ParseUint(s[1:], 10, 32) // at most five digits
	if n < 1 || n > 65536 {
		return 0, 0, fmt.Errorf("%s is not a Modicon number: those count from %c%0*d to %c65536", s, s[0], len(s)-1, 1, s[0])
	}
	return table, uint16(n - 1), nil
}

// FormatAddress returns the address as the configuration spells it: "holding 0".
func FormatAddress(t modbus.Table, addr uint16) string {
	return t.String() + " " + strconv.Itoa(int(addr))
}

// Modicon returns the address as people number it: five digits where they
// suffice ("40001", "00001"), else six ("410000").
func Modicon(t modbus.Table, addr uint16) string {
	if addr < 9999 {
		return fmt.Sprintf("%c%04d", modiconDigit(t), int(addr)+1)
	}
	return fmt.Sprintf("%c%05d", modiconDigit(t), int(addr)+1)
}
