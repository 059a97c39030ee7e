package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"fieldgate/internal/config/yamltree"
	"fieldgate/internal/point"
)

// text is a string. what says what is wanted ("a topic").
func text(what string) value[string] {
	return value[string]{schema{{"type", "string"}, {"minLength", 1}}, func(d *decoder, n *node) (string, bool) {
		return d.text(n, what)
	}}
}

// text reads a string. A plain scalar that YAML takes for something else is a
// fault: which text 0123 or 1e3 stands for is a matter of opinion.
func (d *decoder) text(n *node, what string) (string, bool) {
	s, ok := d.scalar(n, what)
	if !ok {
		return "", false
	}
	if is := coreType(n); is != coreText {
		kind := "a number"
		if is == coreBool {
			kind = "a boolean"
		}
		d.shapef(n, "%s is %s to YAML, and %s is wanted; write \"%s\" in quotes", s, kind, what, s)
		return "", false
	}
	if s == "" {
		d.shapef(n, "is empty; write %s, or remove the key", what)
		return "", false
	}
	if strings.IndexFunc(s, unicode.IsControl) >= 0 {
		d.faultf(n, "there is a control character in it; remove that") // not shown: there may be a password in it
		return "", false
	}
	return d.keep(s), true
}

// anyText is text that may also be written as a number or boolean, and then is
// what stands there, letter for letter.
func anyText(what string) value[string] {
	return value[string]{schema{{"type", []string{"string", "number", "boolean"}}}, func(d *decoder, n *node) (string, bool) {
		s, ok := d.scalar(n, what)
		return d.keep(s), ok
	}}
}

// boolean is true or false, and none of YAML 1.1's other words for them.
func boolean() value[bool] {
	return value[bool]{schema{{"type", "boolean"}}, func(d *decoder, n *node) (bool, bool) {
		s, ok := d.scalar(n, "true or false")
		if !ok {
			return false, false
		}
		if n.Style() == yamltree.Plain {
			switch s {
			case "true", "True", "TRUE":
				return true, true
			case "false", "False", "FALSE":
				return false, true
			}
		}
		switch word := strings.ToLower(s); word {
		case "true", "false":
			if n.Style() != yamltree.Plain {
				d.shapef(n, "the quotes make it text; write %s without them", word)
			} else {
				d.shapef(n, "%s is not a boolean here; write %s", s, word)
			}
		case "yes", "on", "y", "1":
			d.shapef(n, "%s is not a boolean here; write true", s)
		case "no", "off", "n", "0":
			d.shapef(n, "%s is not a boolean here; write false", s)
		default:
			d.shapef(n, "%s is not true or false; write one of them", quote(s))
		}
		return false, false
	}}
}

// integer is a whole number from least to most.
func integer(least, most int) value[int] {
	want := fmt.Sprintf("a whole number from %d to %d", least, most)
	return value[int]{integers(least, most), func(d *decoder, n *node) (int, bool) {
		return d.integer(n, least, most, want)
	}}
}

func (d *decoder) integer(n *node, least, most int, want string) (int, bool) {
	neg, mag, ok := d.whole(n, want)
	if !ok {
		return 0, false
	}
	v := int(min(mag, math.MaxInt))
	if neg {
		v = -v
	}
	if v < least || v > most {
		d.shapef(n, "%s is outside %d to %d", n.Text, least, most)
		return 0, false
	}
	return v, true
}

// whole reads a whole number of up to 64 bits and a sign.
func (d *decoder) whole(n *node, want string) (neg bool, mag uint64, ok bool) {
	s, ok := d.scalar(n, want)
	if !ok {
		return false, 0, false
	}
	if n.Style() != yamltree.Plain {
		if is := coreType(n.Unquoted()); is == coreInt {
			d.shapef(n, "the quotes make it text; write %s without them", s)
		} else {
			d.shapef(n, "%s is not %s; write that", quote(s), want)
		}
		return false, 0, false
	}
	body := unsigned(s)
	neg = s[0] == '-'
	digits, rest := span(body)
	switch {
	case digits > 1 && rest == "" && body[0] == '0':
		n8, err := strconv.ParseUint(body, 8, 64)
		plain := strings.TrimLeft(body, "0")
		if plain == "" {
			plain = "0"
		}
		if err == nil && n8 > 7 {
			d.faultf(n, "%s is %d to some readers of YAML and %s to others; write %s, or 0o%s", s, n8, plain, plain, plain)
		} else {
			d.faultf(n, "%s begins with 0, which some readers of YAML take for octal; write %s", s, plain)
		}
		return false, 0, false
	case coreType(n) == coreFloat:
		d.shapef(n, "%s is not a whole number; write %s", s, want)
		return false, 0, false
	case coreType(n) != coreInt:
		if under := strings.ReplaceAll(s, "_", ""); under != s && under != "" && coreType(&node{Text: under}) == coreInt {
			d.shapef(n, "%s has _ in it, which YAML 1.2 does not know; write %s", s, under)
		} else {
			d.shapef(n, "%s is not %s; write that", quote(s), want)
		}
		return false, 0, false
	}
	mag, err := parseUint(body)
	if err != nil {
		d.shapef(n, "%s has more than 64 bits; write %s", s, want)
		return false, 0, false
	}
	return neg, mag, true
}

// isWord reports whether a scalar is a word, in quotes or not.
func isWord(n *node, s string) bool { return n.Kind == yamltree.Scalar && n.Text == s }

// decimal is a number, kept as it is written.
func decimal() value[point.Decimal] {
	return value[point.Decimal]{schema{{"type", "number"}}, func(d *decoder, n *node) (point.Decimal, bool) {
		return d.decimal(n, "a number")
	}}
}

func (d *decoder) decimal(n *node, want string) (point.Decimal, bool) {
	s, ok := d.scalar(n, want)
	if !ok {
		return point.Decimal{}, false
	}
	is := coreType(n.Unquoted())
	switch {
	case is != coreInt && is != coreFloat && strings.Contains(s, ","):
		d.shapef(n, "%s is not a number; write a point, not a comma: %s", quote(s), strings.Replace(s, ",", ".", 1))
		return point.Decimal{}, false
	case is != coreInt && is != coreFloat:
		d.shapef(n, "%s is not a number; write %s", quote(s), want)
		return point.Decimal{}, false
	case n.Style() != yamltree.Plain:
		d.shapef(n, "the quotes make it text; write %s without them", s)
		return point.Decimal{}, false
	}
	if body := unsigned(s); is == coreInt && len(body) > 1 && body[0] == '0' {
		_, _, ok := d.whole(n, want) // says why a leading 0 is a trap
		if !ok {
			return point.Decimal{}, false
		}
		mag, err := parseUint(body)
		if err != nil || mag > math.MaxInt64 {
			d.faultf(n, "%s has too many digits", s)
			return point.Decimal{}, false
		}
		s = s[:len(s)-len(body)] + strconv.FormatUint(mag, 10)
	}
	v, err := point.ParseDecimal(s)
	if err != nil {
		d.faultf(n, "%v; write %s", err, want)
		return point.Decimal{}, false
	}
	return v, true
}

const durationPattern = `^([0-9]+(\.[0-9]+)?(us|µs|ms|s|m|h|d))+$`

var durationUnits = []struct {
	name string
	is   time.Duration
}{
	// Longer names first, where one begins like another.
	{"us", time.Microsecond}, {"µs", time.Microsecond}, {"ms", time.Millisecond},
	{"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}, {"d", 24 * time.Hour},
}

// parseDuration reads 300ms, 1.5s, 5m, 12h, 30d, and several of them in a row.
func parseDuration(s string) (time.Duration, bool) {
	if s == "" {
		return 0, false
	}
	var sum float64 // of nanoseconds: exact up to 104 days, and whole units far beyond
	for s != "" {
		digits, rest := span(s)
		if digits == 0 {
			return 0, false
		}
		if strings.HasPrefix(rest, ".") {
			var fraction int
			if fraction, rest = span(rest[1:]); fraction == 0 {
				return 0, false
			}
		}
		n, err := strconv.ParseFloat(s[:len(s)-len(rest)], 64)
		if err != nil {
			return 0, false
		}
		found := false
		for _, u := range durationUnits {
			after, ok := strings.CutPrefix(rest, u.name)
			if ok && (after == "" || after[0] >= '0' && after[0] <= '9') {
				sum += n * float64(u.is)
				s, found = after, true
				break
			}
		}
		if !found {
			return 0, false
		}
	}
	if sum > math.MaxInt64/2 {
		return math.MaxInt64 / 2, true // 146 years, past every limit
	}
	return time.Duration(math.Round(sum)), true
}

// FormatDuration writes a duration as parseDuration reads it.
func FormatDuration(v time.Duration) string {
	if v == 0 {
		return "0s"
	}
	var b strings.Builder
	for _, i := range []int{6, 5, 4, 3, 2, 0} {
		u := durationUnits[i]
		if n := v / u.is; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			v -= n * u.is
		}
	}
	return b.String()
}

// duration is a time from least to most; 0 is always allowed when least is 0,
// and then needs no unit.
func duration(least, most time.Duration) value[time.Duration] {
	s := pattern(durationPattern)
	if least == 0 {
		s = anyOf(s, schema{{"const", 0}})
	}
	return value[time.Duration]{s, func(d *decoder, n *node) (time.Duration, bool) {
		return d.duration(n, least, most, wantDuration)
	}}
}

const wantDuration = "a duration such as 300ms, 1s, 5m or 30d"

// duration reads a time; want says what may stand there.
func (d *decoder) duration(n *node, least, most time.Duration, want string) (time.Duration, bool) {
	s, ok := d.scalar(n, want)
	if !ok {
		return 0, false
	}
	if is := coreType(n); is == coreInt || is == coreFloat {
		if s == "0" && least == 0 {
			return 0, true
		}
		other := "ms"
		if most > maxWait { // what is kept for days
			other = "d"
		}
		d.shapef(n, "%s has no unit; write %ss or %s%s", s, s, s, other)
		return 0, false
	}
	v, ok := parseDuration(s)
	if !ok {
		d.shapef(n, "%s is not a duration; write %s", quote(s), want)
		return 0, false
	}
	return v, d.within(n, v, least, most)
}

// within reports a duration that is out of its range.
func (d *decoder) within(n *node, v, least, most time.Duration) bool {
	if v < least || v > most {
		d.faultf(n, "%s is outside %s to %s", n.Text, FormatDuration(least), FormatDuration(most))
		return false
	}
	return true
}

// size is a number of bytes from least to most.
func size(least, most int64) value[int64] {
	const want = "a size such as 64KiB or 256MiB"
	s := anyOf(pattern(`^[0-9]+(B|KiB|MiB|GiB|TiB|kB|KB|MB|GB|TB)$`), schema{{"type", "integer"}, {"minimum", 0}})
	return value[int64]{s, func(d *decoder, n *node) (int64, bool) {
		s, ok := d.scalar(n, want)
		if !ok {
			return 0, false
		}
		var v uint64
		if n.Style() == yamltree.Plain && coreType(n) != coreText {
			var neg bool
			if neg, v, ok = d.whole(n, want); !ok {
				return 0, false
			}
			if neg {
				d.shapef(n, "%s is below 0; write %s", s, want)
				return 0, false
			}
		} else {
			digits, unit := span(s)
			scale := map[string]float64{
				"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
				"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
			}[unit]
			f, err := strconv.ParseFloat(s[:digits], 64)
			if err != nil || scale == 0 {
				d.shapef(n, "%s is not a size; write %s", quote(s), want)
				return 0, false
			}
			v = uint64(min(f*scale, math.MaxInt64/2))
		}
		if v < uint64(least) || v > uint64(most) {
			d.faultf(n, "%s is outside %s to %s", s, formatSize(least), formatSize(most))
			return 0, false
		}
		return int64(v), true
	}}
}

func formatSize(v int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for v >= 1024 && v%1024 == 0 && i < len(units)-1 {
		v /= 1024
		i++
	}
	return strconv.FormatInt(v, 10) + units[i]
}

// word is one of an enum's, and what it stands for.
type word[V any] struct {
	text string
	is   V
}

// enum is one of some words.
func enum[V any](words ...word[V]) value[V] {
	known := make([]string, len(words))
	for i, w := range words {
		known[i] = w.text
	}
	want := "one of " + strings.Join(known, ", ")
	return value[V]{schema{{"enum", known}}, func(d *decoder, n *node) (V, bool) {
		i := d.oneOf(n, known, want)
		if i < 0 {
			var none V
			return none, false
		}
		return words[i].is, true
	}}
}

// oneOf reads one of the known words and returns its index, -1 after a fault.
func (d *decoder) oneOf(n *node, known []string, want string) int {
	s, ok := d.scalar(n, want)
	if !ok {
		return -1
	}
	i := slices.Index(known, s)
	switch {
	case i >= 0 && coreType(n) == coreText:
		return i
	case s == "false" && slices.Contains(known, "off"):
		d.shapef(n, "false is a boolean; write off")
	default:
		d.shapef(n, "%s is none of the words known here; %s", quote(s), Suggest(s, known))
	}
	return -1
}

// same makes an enum's words stand for themselves.
func same(words ...string) []word[string] {
	list := make([]word[string], len(words))
	for i, w := range words {
		list[i] = word[string]{w, w}
	}
	return list
}

// or is a word in place of another form of value.
func or[V any](w string, is V, v value[V]) value[V] {
	return value[V]{anyOf(schema{{"const", w}}, v.schema), func(d *decoder, n *node) (V, bool) {
		if isWord(n, w) {
			return is, true
		}
		return v.read(d, n)
	}}
}

// list is a list of values, at least one.
func list[V any](v value[V], what string) value[[]V] {
	read := v.read
	return value[[]V]{listSchema(v.schema), func(d *decoder, n *node) ([]V, bool) {
		out := make([]V, 0, n.Len())
		ok := d.items(n, what, func(item *node) bool {
			got, ok := read(d, item)
			out = append(out, got)
			return ok
		})
		return out, ok
	}}
}

func listSchema(item schema) schema {
	return schema{{"type", "array"}, {"items", item}, {"minItems", 1}}
}

// items calls read for each item of a list. It returns false if n is no list,
// or an empty one, which it has reported; or if read does for any item.
func (d *decoder) items(n *node, what string, read func(*node) bool) bool {
	if n.Kind != yamltree.List {
		d.wrongKind(n, "a list of "+what+" ([…], or a line with - for each)", "")
		return false
	}
	if n.Len() == 0 {
		d.shapef(n, "is an empty list; write %s, or remove the key", what)
		return false
	}
	all := true
	i := 0
	for item := range n.Items {
		d.path = append(d.path, step{index: i})
		ok := read(item)
		d.out()
		all = all && ok
		i++
	}
	return all
}

// oneOrList is a value, or a list of them.
func oneOrList[V any](v value[V], what string) value[[]V] {
	l := list(v, what)
	return value[[]V]{anyOf(v.schema, l.schema), func(d *decoder, n *node) ([]V, bool) {
		if n.Kind == yamltree.List {
			return l.read(d, n)
		}
		got, ok := v.read(d, n)
		return []V{got}, ok
	}}
}

// named is a value with its name, in the order of the file.
type named[V any] struct {
	name string
	key  *node // where the name stands
	at   *node // the value
	is   V
	ok   bool // the value could be read at all
	bad  bool // there were faults in it
}

// maxName is the longest name, in bytes.
const maxName = 100

// nameWord is what a name is made of, as a regular expression: letters, digits
// and _, and inside of it also spaces and -.
const nameWord = `[\p{L}\p{N}_]([\p{L}\p{M}\p{N}_ -]*[\p{L}\p{M}\p{N}_-])?`

// goodName reports whether s may be a name, and what is wrong with it if not.
func goodName(s string) string {
	switch {
	case s == "":
		return "is empty; write a name"
	case len(s) > maxName:
		return fmt.Sprintf("is longer than %d bytes; write a shorter name", maxName)
	}
	for i, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_':
		case r == '-' && i > 0, r == ' ' && i > 0 && i < len(s)-1:
		case r >= 0x80 && (unicode.IsLetter(r) || unicode.IsNumber(r) || i > 0 && unicode.IsMark(r)):
		default:
			return fmt.Sprintf("may not hold %q there; write letters, digits, _ and -", r)
		}
	}
	return ""
}

// names is a map from names to values.
func names[V any](v value[V], what string) value[[]named[V]] {
	read := v.read
	return value[[]named[V]]{namesSchema(v.schema), func(d *decoder, n *node) ([]named[V], bool) {
		return readNames(d, n, read, what, goodName)
	}}
}

func namesSchema(is schema) schema {
	return schema{{"type", "object"}, {"propertyNames", schema{{"pattern", "^" + nameWord + "$"}, {"maxLength", maxName}}}, {"additionalProperties", is}}
}

// readNames reads a map from names to what read reads. wrong says what is wrong
// with a name, "" for nothing.
func readNames[V any](d *decoder, n *node, read func(*decoder, *node) (V, bool), what string, wrong func(string) string) ([]named[V], bool) {
	out := make([]named[V], 0, n.Len())
	ok := d.entries(n, what, wrong, func(k, val *node) {
		before := len(d.found)
		got, ok := read(d, val)
		out = append(out, named[V]{d.keep(k.Text), k, val, got, ok, len(d.found) > before})
	})
	return out, ok
}

// entries calls read for each name of a map and its value. It returns false if n
// is no map, which it has reported.
func (d *decoder) entries(n *node, what string, wrong func(string) string, read func(k, val *node)) bool {
	if n.Kind != yamltree.Map {
		d.wrongKind(n, "a map from names to "+what, "{}")
		return false
	}
	seen := make(map[string]bool, n.Len())
	for k, val := range n.Entries {
		d.in(k.Text)
		d.checkName(k, wrong(k.Text))
		if seen[k.Text] {
			d.twice(k, n)
		} else {
			seen[k.Text] = true
			read(k, val)
		}
		d.out()
	}
	return true
}

// checkName reports what is wrong with a name, and a merge key by its name.
func (d *decoder) checkName(k *node, wrong string) bool {
	switch {
	case wrong == "":
		return true
	case k.Text == "<<":
		d.unknown(k, "", "")
	default:
		d.shapef(k, "the name %s %s", quote(k.Text), wrong)
	}
	return false
}

// tags is a map from names to texts.
func tags() value[map[string]string] {
	v := anyText("a text")
	all := names(v, "texts")
	return value[map[string]string]{all.schema, func(d *decoder, n *node) (map[string]string, bool) {
		list, ok := all.read(d, n)
		if len(list) == 0 {
			return nil, ok
		}
		m := make(map[string]string, len(list))
		for _, t := range list {
			m[t.name] = t.is
		}
		return m, ok
	}}
}
