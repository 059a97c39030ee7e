package config

import (
	"fmt"
	"math"
	"net"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"fieldgate/internal/config/yamltree"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// This file has the forms of value of the field side: addresses, types, unit
// ids, serial modes.

// place is the address of a point, as if its device counted from zero.
type place struct {
	text    string       // as it is written
	table   modbus.Table // 0: there is no such address, counted from zero
	address uint16
}

// address is the place of a point.
func address() value[place] {
	s := anyOf(
		pattern(`^(coil|discrete|input|holding) +([0-9]+|0[xX][0-9a-fA-F]+)$`),
		pattern(`^[0134][0-9]{4,5}$`),
		integers(10001, 19999), integers(30001, 49999),
		integers(100001, 165536), integers(300001, 365536), integers(400001, 465536),
	)
	return value[place]{s, func(d *decoder, n *node) (place, bool) {
		s, ok := d.scalar(n, "an address such as holding 0 or 40001")
		if !ok {
			return place{}, false
		}
		if digits, rest := span(s); n.Style() == yamltree.Plain && rest == "" && s[0] == '0' && digits > 1 {
			if digits >= 5 {
				d.faultf(n, "%s without quotes is another number to some readers of YAML; write \"%s\", or %s", s, s, spellings(s))
			} else {
				d.faultf(n, "%s begins with 0, which some readers of YAML take for octal; write coil %s or \"0%04s\"", s, strings.TrimLeft(s, "0"), s)
			}
			return place{}, false
		}
		table, addr, err := point.ParseAddress(s)
		if err != nil {
			if _, _, err := point.ParseAddressBase(s, 1); err == nil {
				return place{text: s}, true // the last one, of a device that counts from one
			}
			d.shapef(n, "%v", err)
			return place{}, false
		}
		if strings.Contains(s, " ") && (s != strings.ToLower(s) && !strings.Contains(s, "0x") || s != strings.TrimSpace(s)) {
			d.shapef(n, "%s is spelt another way; write %s", quote(s), point.FormatAddress(table, addr))
			return place{}, false
		}
		return place{s, table, addr}, true
	}}
}

// spellings returns the other spelling of a Modicon number.
func spellings(s string) string {
	t, addr, err := point.ParseAddress(s)
	if err != nil {
		return "holding 0, or a Modicon number such as 40001"
	}
	return point.FormatAddress(t, addr)
}

// pointType is a type with its argument.
type pointType struct {
	is     point.Type
	length uint16
	layout point.Layout
	given  bool
}

// typeWords are other products' words for types.
var typeWords = []struct{ word, is string }{
	{"float", "float32"}, {"real", "float32"}, {"single", "float32"}, {"double", "float64"}, {"lreal", "float64"},
	{"int", "int16"}, {"short", "int16"}, {"sint", "int8"}, {"uint", "uint16"}, {"word", "uint16"}, {"ushort", "uint16"},
	{"dint", "int32"}, {"long", "int32"}, {"udint", "uint32"}, {"dword", "uint32"}, {"ulong", "uint32"},
	{"lint", "int64"}, {"ulint", "uint64"}, {"lword", "uint64"}, {"byte", "uint8"}, {"char", "int8"},
	{"bit", "bool"}, {"boolean", "bool"}, {"bcd", "bcd16"}, {"half", "float16"}, {"hex", "bytes(N)"}, {"time", "datetime(LAYOUT)"},
	{"s16", "int16"}, {"u16", "uint16"}, {"s32", "int32"}, {"u32", "uint32"}, {"s64", "int64"}, {"u64", "uint64"}, {"f32", "float32"}, {"f64", "float64"},
}

func typeOf() value[pointType] {
	all := point.TypeNames()
	var words []string
	for _, w := range all {
		switch w {
		case point.String.String(), point.Bytes.String(), point.Datetime.String():
		default:
			words = append(words, w)
		}
	}
	s := anyOf(
		schema{{"enum", words}},
		pattern(`^(string|bytes)\(([1-9]|[1-9][0-9]|1[01][0-9]|12[0-5])\)$`),
		pattern(`^datetime\((`+strings.Join(point.LayoutNames(), "|")+`)\)$`),
	)
	return value[pointType]{s, func(d *decoder, n *node) (pointType, bool) {
		s, ok := d.scalar(n, "a type such as int16 or float32")
		if !ok {
			return pointType{}, false
		}
		t, length, layout, err := point.ParseType(s)
		if err == nil {
			if is := (point.Point{Type: t, Length: length, Layout: layout}).TypeName(); s != is && n.Text != is {
				d.shapef(n, "%s is spelt another way; write %s", quote(s), is)
				return pointType{}, false
			}
			return pointType{t, length, layout, true}, true
		}
		name, _, bracket := strings.Cut(strings.ToLower(s), "(")
		for _, w := range typeWords {
			if w.word == name && !bracket {
				d.shapef(n, "%s is not a type; it is called %s here", quote(s), w.is)
				return pointType{}, false
			}
		}
		if near := nearest(name, all); near != "" && near != name {
			d.shapef(n, "%s is not a type; did you mean %s?", quote(s), near)
		} else {
			d.shapef(n, "%v", err)
		}
		return pointType{}, false
	}}
}

func order() value[point.Order] {
	var words []word[point.Order]
	for i, w := range point.OrderNames() {
		words = append(words, word[point.Order]{w, point.Order(i)})
	}
	return enum(words...)
}

// interval is how often a point is read.
func interval() value[point.Interval] {
	s := anyOf(schema{{"enum", []string{"once", "never"}}}, pattern(durationPattern), schema{{"const", 0}})
	return value[point.Interval]{s, func(d *decoder, n *node) (point.Interval, bool) {
		switch {
		case isWord(n, "once"):
			return point.Once, true
		case isWord(n, "never"):
			return point.Never, true
		}
		v, ok := d.duration(n, 0, 365*24*time.Hour, wantDuration+", or once or never")
		return point.Interval(v), ok
	}}
}

// every is how often a device's points are read: all, or by group.
type every struct {
	all    point.Interval
	groups []named[point.Interval]
}

func deviceEvery() value[every] {
	one, groups := interval(), names(interval(), "intervals")
	return value[every]{anyOf(one.schema, groups.schema), func(d *decoder, n *node) (every, bool) {
		e := every{all: point.Interval(time.Second)}
		var ok bool
		if n.Kind == yamltree.Map {
			e.groups, ok = groups.read(d, n)
			return e, ok
		}
		e.all, ok = one.read(d, n)
		return e, ok
	}}
}

// unitIDs is one unit id or several: 7, 1-4, 1,3,8-9.
func unitIDs() value[[]unitRange] {
	const want = "a unit id from 0 to 255, or several: 1-4 or \"1,3,8-9\""
	const id = `(0|[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5])`
	one := id + `(-` + id + `)?`
	s := anyOf(integers(0, 255), pattern(`^`+one+`(,`+one+`)*$`))
	return value[[]unitRange]{s, func(d *decoder, n *node) ([]unitRange, bool) {
		s, ok := d.scalar(n, want)
		if !ok {
			return nil, false
		}
		if n.Style() == yamltree.Plain && coreType(n) != coreText {
			v, ok := d.integer(n, 0, 255, want)
			return []unitRange{{modbus.UnitID(v), modbus.UnitID(v)}}, ok
		}
		var out []unitRange
		var used [256]bool
		for part := range strings.SplitSeq(s, ",") {
			a, b, several := strings.Cut(part, "-")
			if !several {
				b = a
			}
			from, err1 := parseID(a)
			to, err2 := parseID(b)
			if err1 != nil || err2 != nil {
				d.shapef(n, "%s is not a unit id; write %s", quote(s), want)
				return nil, false
			}
			if from > to {
				d.faultf(n, "%s runs backwards; write %d-%d", part, to, from)
				return nil, false
			}
			for u := int(from); u <= int(to); u++ {
				if used[u] {
					d.faultf(n, "%s names unit id %d twice; name it once", quote(s), u)
					return nil, false
				}
				used[u] = true
			}
			out = append(out, unitRange{from, to})
		}
		return out, true
	}}
}

// parseID reads a unit id without leading zeros, signs and spaces.
func parseID(s string) (modbus.UnitID, error) {
	v, err := strconv.ParseUint(s, 10, 8)
	if err == nil && len(s) > 1 && s[0] == '0' {
		err = strconv.ErrSyntax
	}
	return modbus.UnitID(v), err
}

// blocks are the longest reads of a device.
type blocks struct{ registers, bits int }

func maxBlock(t *tables) value[blocks] {
	both := newObject("max_block", "The longest reads, for registers and for bits.", blocks{},
		key("registers", func(b *blocks) *int { return &b.registers }, integer(1, modbus.MaxReadRegisters), "Registers in one request.").def("125"),
		key("bits", func(b *blocks) *int { return &b.bits }, integer(1, modbus.MaxReadBits), "Coils or discrete inputs in one request.").def("2000"),
	).value(t, "max_block")
	one := integer(1, modbus.MaxReadRegisters)
	return value[blocks]{anyOf(one.schema, both.schema), func(d *decoder, n *node) (blocks, bool) {
		if n.Kind == yamltree.Map {
			return both.read(d, n)
		}
		v, ok := one.read(d, n)
		return blocks{v, modbus.MaxReadBits}, ok
	}}
}

// timeSpan is a time from one bound to another: 5s..5m.
type timeSpan struct{ from, to time.Duration }

func durations(least, most time.Duration) value[timeSpan] {
	const want = "two durations such as 5s..5m"
	one := strings.TrimSuffix(strings.TrimPrefix(durationPattern, "^"), "$")
	return value[timeSpan]{pattern("^" + one + `\.\.` + one + "$"), func(d *decoder, n *node) (timeSpan, bool) {
		s, ok := d.scalar(n, want)
		if !ok {
			return timeSpan{}, false
		}
		a, b, _ := strings.Cut(s, "..")
		from, ok1 := parseDuration(a)
		to, ok2 := parseDuration(b)
		if !ok1 || !ok2 {
			d.shapef(n, "%s is not a span of time; write %s", quote(s), want)
			return timeSpan{}, false
		}
		if from > to {
			d.faultf(n, "%s runs backwards; write %s..%s", s, b, a)
			return timeSpan{}, false
		}
		return timeSpan{from, to}, d.within(n, from, least, most) && d.within(n, to, least, most)
	}}
}

// serialMode is 19200-8E1.
func serialMode() value[SerialMode] {
	const want = "baud, data bits, parity (N, E, O, M or S) and stop bits, such as 19200-8E1"
	return value[SerialMode]{pattern(`^[1-9][0-9]{1,6}-[78][NEOMS][12]$`), func(d *decoder, n *node) (SerialMode, bool) {
		s, ok := d.scalar(n, want)
		if !ok {
			return SerialMode{}, false
		}
		m, err := ParseMode(s)
		if err != nil {
			d.shapef(n, "%v", err)
			return m, false
		}
		if m.Baud < minBaud || m.Baud > maxBaud {
			d.faultf(n, "%d baud is outside %d to %d", m.Baud, minBaud, maxBaud)
			return m, false
		}
		return m, true
	}}
}

const (
	minBaud = 50
	maxBaud = 4_000_000
)

// ParseMode reads a serial line's mode: baud, data bits, parity and stop bits,
// as in 19200-8E1.
func ParseMode(s string) (SerialMode, error) {
	baud, rest, ok := strings.Cut(s, "-")
	n, err := strconv.ParseUint(baud, 10, 31)
	if !ok || err != nil || baud[0] == '0' || n < 10 || n > 9_999_999 || len(rest) != 3 ||
		rest[0] != '7' && rest[0] != '8' || strings.IndexByte("NEOMS", rest[1]) < 0 || rest[2] != '1' && rest[2] != '2' {
		return SerialMode{}, fmt.Errorf("%s is not a serial mode; write baud, data bits (7 or 8), parity (N, E, O, M or S) and stop bits (1 or 2), such as 19200-8E1", quote(s))
	}
	return SerialMode{Baud: int(n), DataBits: int(rest[0] - '0'), Parity: rest[1], StopBits: int(rest[2] - '0')}, nil
}

// String returns the mode as the configuration spells it.
func (m SerialMode) String() string {
	return fmt.Sprintf("%d-%d%c%d", m.Baud, m.DataBits, m.Parity, m.StopBits)
}

// serialPath is the path of a serial port.
func serialPath() value[string] {
	return value[string]{pattern("^/"), func(d *decoder, n *node) (string, bool) {
		s, ok := d.text(n, "the path of a serial port")
		if ok && !filepath.IsAbs(s) {
			d.shapef(n, "%s is not a whole path; write /dev/%s, or better its path in /dev/serial/by-id", quote(s), strings.TrimPrefix(s, "dev/"))
			ok = false
		}
		return s, ok
	}}
}

// hostPort is HOST:PORT. With listen the host may be missing and the port 0.
func hostPort(standard string, listen bool) value[string] {
	host := `(\[[^\[\]]+\]|[^\[\] :/@?#%]+)`
	if listen {
		host += "?"
	}
	return value[string]{pattern("^" + host + ":[0-9]{1,5}$"), func(d *decoder, n *node) (string, bool) {
		s, ok := d.text(n, "HOST:PORT")
		if !ok {
			return "", false
		}
		if wrong, form := checkHostPort(s, standard, listen); wrong != "" {
			if form {
				d.shapef(n, "%s", wrong)
			} else {
				d.faultf(n, "%s", wrong)
			}
			return "", false
		}
		return s, true
	}}
}

// checkHostPort returns what is wrong with HOST:PORT, "" for nothing, and
// whether it is the form that is wrong.
func checkHostPort(s, standard string, listen bool) (wrong string, form bool) {
	example := "10.0.0.10:" + standard
	if listen {
		example = "0.0.0.0:" + standard
	}
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		return fmt.Sprintf("%s has a scheme (%s://); write only %s", quote(s), scheme, rest), true
	}
	host, port := s, ""
	colon := strings.LastIndexByte(s, ':')
	switch {
	case net.ParseIP(s) != nil && colon >= 0:
		return fmt.Sprintf("%s has no port; write \"[%s]:%s\"", quote(s), s, standard), true
	case colon < 0:
		return fmt.Sprintf("%s has no port; write %s:%s", quote(s), s, standard), true
	}
	host, port = s[:colon], s[colon+1:]
	digits, rest := span(port)
	if digits == 0 || digits > 5 || rest != "" {
		return fmt.Sprintf("%s is not a port in %s; write it like %s", quote(port), quote(s), example), true
	}
	inner, bracket := strings.CutPrefix(host, "[")
	switch {
	case bracket:
		inner, bracket = strings.CutSuffix(inner, "]")
		if !bracket || inner == "" || strings.ContainsAny(inner, "[]") {
			return fmt.Sprintf("%s is not HOST:PORT; write it like \"[fe80::1]:%s\"", quote(s), standard), true
		}
		address, _, _ := strings.Cut(inner, "%") // fe80::1%eth0
		if net.ParseIP(address) == nil {
			return fmt.Sprintf("%s is not an IPv6 address; write it like \"[fe80::1]:%s\"", quote(inner), standard), false
		}
	case host == "" && listen:
	case host == "":
		return fmt.Sprintf("%s names no host; write it like %s", quote(s), example), true
	case strings.ContainsAny(host, "[] :/@?#%*"):
		return fmt.Sprintf("%s is not the name or address of a host; write it like %s", quote(host), example), true
	}
	if n, err := strconv.Atoi(port); err != nil || n > 65535 || n == 0 && !listen {
		return fmt.Sprintf("port %s is outside 1 to 65535", port), false
	}
	return "", false
}

// bitField is one of a register's fields, with its name.
type bitField struct {
	first, count uint8
}

// bitFields is a map from names to bits: {fault: 0, mode: 4-6}.
func bitFields() value[[]named[bitField]] {
	const bit = `([0-9]|1[0-5])`
	one := value[bitField]{anyOf(integers(0, 15), pattern("^"+bit+"(-"+bit+")?$")), func(d *decoder, n *node) (bitField, bool) {
		const want = "a bit from 0 to 15, or several: 4-6"
		s, ok := d.scalar(n, want)
		if !ok {
			return bitField{}, false
		}
		if n.Style() == yamltree.Plain && coreType(n) != coreText {
			v, ok := d.integer(n, 0, 15, want)
			return bitField{uint8(v), 1}, ok
		}
		a, b, several := strings.Cut(s, "-")
		if !several {
			b = a
		}
		from, err1 := parseID(a)
		to, err2 := parseID(b)
		switch {
		case err1 != nil || err2 != nil || from > 15 || to > 15:
			d.shapef(n, "%s is not a bit; write %s", quote(s), want)
			return bitField{}, false
		case from > to:
			d.faultf(n, "%s runs backwards; write %d-%d", s, to, from)
			return bitField{}, false
		}
		return bitField{uint8(from), uint8(to - from + 1)}, true
	}}
	all := names(one, "bits")
	return value[[]named[bitField]]{append(slices.Clone(all.schema), member{"minProperties", 1}), func(d *decoder, n *node) ([]named[bitField], bool) {
		if n.Kind == yamltree.Map && n.Len() == 0 {
			d.shapef(n, "is an empty map, so that there would be no point; write names with their bits, such as {fault: 0, mode: 4-6}, or remove the key")
			return nil, false
		}
		return all.read(d, n)
	}}
}

// valueMap is a map from raw numbers to texts: {0: stopped, 1: running}.
func valueMap() value[[]point.MapEntry] {
	v := anyText("a text")
	s := schema{{"type", "object"}, {"propertyNames", schema{{"pattern", `^[+-]?[0-9]+$|^0x[0-9a-fA-F]+$|^0o[0-7]+$`}}}, {"additionalProperties", v.schema}, {"minProperties", 1}}
	return value[[]point.MapEntry]{s, func(d *decoder, n *node) ([]point.MapEntry, bool) {
		switch {
		case n.Kind != yamltree.Map:
			d.wrongKind(n, "a map from raw numbers to texts, such as {0: stopped, 1: running}", "")
			return nil, false
		case n.Len() == 0:
			d.shapef(n, "is an empty map; write raw numbers with their texts, such as {0: stopped, 1: running}, or remove the key")
			return nil, false
		}
		entries, all := make([]point.MapEntry, 0, n.Len()), true
		keys := make([]*node, 0, n.Len())
		for k, val := range n.Entries {
			d.in(k.Text)
			raw, ok := d.rawNumber(k)
			t, ok2 := v.read(d, val)
			if ok && ok2 {
				if i := slices.IndexFunc(entries, func(e point.MapEntry) bool { return e.Raw == raw }); i >= 0 {
					d.faultf(k, "is given twice, first at %s; keep one", d.set.Place(keys[i]))
					ok = false
				}
				entries, keys = append(entries, point.MapEntry{Raw: raw, Text: t}), append(keys, k)
			}
			all = all && ok && ok2
			d.out()
		}
		sort.SliceStable(entries, func(i, j int) bool { return entries[i].Raw < entries[j].Raw })
		return entries, all
	}}
}

// rawNumber reads a key that is a raw number.
func (d *decoder) rawNumber(k *node) (int64, bool) {
	if k.Text == "<<" {
		d.unknown(k, "", "")
		return 0, false
	}
	if k.Text == "" || coreType(k.Unquoted()) != coreInt {
		d.shapef(k, "the key %s is not a raw number; write a whole number, such as 0", quote(k.Text))
		return 0, false
	}
	neg, mag, ok := d.whole(k.Unquoted(), "a whole number")
	if !ok {
		return 0, false
	}
	if mag > math.MaxInt64 {
		d.faultf(k, "%s has more than 63 bits", k.Text)
		return 0, false
	}
	if neg {
		return -int64(mag), true
	}
	return int64(mag), true
}

// raw is a raw value as it is written: with a sign it is a number of the
// point's type, without one it is that or its bit pattern, which differ for a
// float: there 0x is the pattern.
type raw struct {
	neg bool
	mag uint64
	at  *node
}

func rawValues() value[[]raw] { return oneOrList(rawValue(), "raw values") }

func rawValue() value[raw] {
	s := schema{{"type", "integer"}, {"minimum", -math.Pow(2, 63)}, {"maximum", uint64(math.MaxUint64)}}
	return value[raw]{s, func(d *decoder, n *node) (raw, bool) {
		neg, mag, ok := d.whole(n, "a raw value such as 0x8000 or -1")
		if ok && neg && mag > 1<<63 {
			d.shapef(n, "%s has more than 64 bits", n.Text)
			ok = false
		}
		return raw{neg, mag, n}, ok
	}}
}

// rate is a number of times in a span: 1/s, 10/m. It is kept as the least time
// between two.
func rate() value[time.Duration] {
	const want = "how often at most, such as 1/s, 6/m or 1/10s"
	return value[time.Duration]{pattern(`^[1-9][0-9]{0,5}/([0-9]+)?(ms|s|m|h|d)$`), func(d *decoder, n *node) (time.Duration, bool) {
		s, ok := d.scalar(n, want)
		if !ok {
			return 0, false
		}
		count, per, ok := strings.Cut(s, "/")
		times, err := strconv.ParseUint(count, 10, 20)
		if per != "" && (per[0] < '0' || per[0] > '9') {
			per = "1" + per
		}
		span, ok2 := parseDuration(per)
		if !ok || !ok2 || err != nil || count[0] == '0' || times == 0 || !oneUnit(per) {
			d.shapef(n, "%s is not a rate; write %s", quote(s), want)
			return 0, false
		}
		if span == 0 {
			d.faultf(n, "%s is over no time; write %s", quote(s), want)
			return 0, false
		}
		return span / time.Duration(times), true
	}}
}

// oneUnit reports whether a duration is one number and one unit, not smaller
// than a millisecond.
func oneUnit(s string) bool {
	_, unit := span(s)
	return slices.Contains([]string{"ms", "s", "m", "h", "d"}, unit)
}

// budget is a number of writes a day: 200/day.
func budget() value[int] {
	const want = "a number of writes a day, such as 200/day"
	return value[int]{pattern(`^[1-9][0-9]{0,8}/(day|d)$`), func(d *decoder, n *node) (int, bool) {
		s, ok := d.scalar(n, want)
		if !ok {
			return 0, false
		}
		count, per, _ := strings.Cut(s, "/")
		v, err := strconv.Atoi(count)
		if err != nil || v < 1 || len(count) > 9 || count[0] < '1' || count[0] > '9' || per != "day" && per != "d" {
			d.shapef(n, "%s is not a budget; write %s", quote(s), want)
			return 0, false
		}
		return v, true
	}}
}

// writeFunction is auto or the number of a function that writes.
func writeFunction() value[modbus.FunctionCode] {
	codes := []int{5, 6, 15, 16}
	return value[modbus.FunctionCode]{schema{{"enum", []any{"auto", 5, 6, 15, 16}}}, func(d *decoder, n *node) (modbus.FunctionCode, bool) {
		if isWord(n, "auto") {
			return 0, true
		}
		neg, v, ok := d.whole(n, "auto, 5, 6, 15 or 16")
		if ok && (neg || v > 16 || !slices.Contains(codes, int(v))) {
			d.shapef(n, "%s is not a function that writes; write auto, 5, 6, 15 or 16", n.Text)
			ok = false
		}
		return modbus.FunctionCode(v), ok
	}}
}

// anyValue is a value of a point: a number, a boolean or a text.
func anyValue() value[point.Value] {
	return value[point.Value]{schema{{"type", []string{"string", "number", "boolean"}}}, func(d *decoder, n *node) (point.Value, bool) {
		s, ok := d.scalar(n, "a value")
		if !ok {
			return point.Value{}, false
		}
		switch coreType(n) {
		case coreBool:
			return point.BoolValue(strings.EqualFold(s, "true")), true
		case coreInt:
			neg, mag, ok := d.whole(n, "a number")
			switch {
			case !ok:
				return point.Value{}, false
			case neg && mag <= 1<<63:
				return point.IntValue(-int64(mag)), true
			case !neg:
				return point.UintValue(mag), true
			}
			d.faultf(n, "%s has more than 64 bits", s)
			return point.Value{}, false
		case coreFloat:
			v, ok := d.decimal(n, "a number")
			return point.DecimalValue(v), ok
		}
		return point.TextValue(d.keep(s)), true
	}}
}

// optionalDecimal is decimal for a setting that may be absent.
func optionalDecimal() value[*point.Decimal] {
	v := decimal()
	return value[*point.Decimal]{v.schema, func(d *decoder, n *node) (*point.Decimal, bool) {
		got, ok := v.read(d, n)
		return &got, ok
	}}
}
