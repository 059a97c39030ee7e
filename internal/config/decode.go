package config

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode"

	"fieldgate/internal/config/yamltree"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// node is what the decoder reads.
type node = yamltree.Node

// decoder turns nodes into settings and collects what is wrong. A fault never
// stops it: whatever can still be looked at is.
type decoder struct {
	set      *yamltree.Set
	files    map[string]int // order of the files, for sorting
	path     []step
	found    []found
	warnings []found
	words    map[string]string // texts that are kept, each once
	shared   int               // how many of the nodes around this one have an anchor
	depends  []file            // files that the configuration names
	partial  bool              // parts of the files could not be read: what is missing may stand there
}

// file is a file that the configuration names, and where it does.
type file struct {
	path  string
	at    *node
	where string
}

// step is one step of a path: a key, or an index when key is empty.
type step struct {
	key   string
	index int
}

// found is a fault and what is known of it while loading.
type found struct {
	Fault
	shape bool // the JSON Schema forbids it too
}

// in enters the value of a key; out leaves it.
func (d *decoder) in(key string) { d.path = append(d.path, step{key: key}) }
func (d *decoder) out()          { d.path = d.path[:len(d.path)-1] }

// at returns the path of what is being decoded, with more keys added.
func (d *decoder) at(more ...string) string {
	var b strings.Builder
	add := func(key string) {
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		if strings.ContainsAny(key, ". ") {
			key = strconv.Quote(key)
		}
		b.WriteString(key)
	}
	for _, s := range d.path {
		if s.key == "" {
			fmt.Fprintf(&b, "[%d]", s.index)
			continue
		}
		add(s.key)
	}
	for _, key := range more {
		add(key)
	}
	return b.String()
}

// report files a fault at a node.
func (d *decoder) report(list *[]found, n *node, path, text string, shape bool) {
	p := d.set.Place(n)
	*list = append(*list, found{Fault{p.File, p.Line, p.Col, printable(path), printable(text)}, shape})
}

// printable escapes what would break a fault's line: names of the file may
// hold anything.
func printable(s string) string {
	if strings.IndexFunc(s, unicode.IsControl) < 0 {
		return s
	}
	var b strings.Builder
	for _, c := range s {
		if unicode.IsControl(c) {
			b.WriteString(strings.Trim(strconv.QuoteRune(c), "'"))
		} else {
			b.WriteRune(c)
		}
	}
	return b.String()
}

// shapef reports a fault in the form of a value, which the JSON Schema forbids
// as well.
func (d *decoder) shapef(n *node, format string, args ...any) {
	d.report(&d.found, n, d.at(), fmt.Sprintf(format, args...), true)
}

// faultf reports a fault that the JSON Schema cannot express.
func (d *decoder) faultf(n *node, format string, args ...any) {
	d.report(&d.found, n, d.at(), fmt.Sprintf(format, args...), false)
}

// missingf reports that something is not there, unless it may be in a part of
// the files that could not be read.
func (d *decoder) missingf(n *node, format string, args ...any) {
	if !d.partial {
		d.faultf(n, format, args...)
	}
}

// warnf reports what is accepted, but someone should look at.
func (d *decoder) warnf(n *node, format string, args ...any) {
	d.report(&d.warnings, n, d.at(), fmt.Sprintf(format, args...), false)
}

// keyFault reports a fault at the key of a map that is decoded already; at the
// map itself if the key is not given.
func (d *decoder) keyFault(m *node, key string, format string, args ...any) {
	k, _ := m.Get(key)
	if k == nil {
		d.faultf(m, format, args...)
		return
	}
	d.in(key)
	d.faultf(k, format, args...)
	d.out()
}

// has reports whether a map gives the key.
func has(m *node, key string) bool {
	k, _ := m.Get(key)
	return k != nil
}

// sorted returns faults in the order of their places, each once.
func (d *decoder) sorted(list []found) []Fault {
	faults := make([]Fault, len(list))
	for i, f := range list {
		faults[i] = f.Fault
	}
	sortFaults(faults, d.files)
	// A fault inside of what an alias stands for is found at each use, with
	// another path each time.
	return slices.CompactFunc(faults, func(a, b Fault) bool {
		return a.File == b.File && a.Line == b.Line && a.Col == b.Col && a.Text == b.Text && a.Line > 0
	})
}

// sortFaults sorts by place; files gives the order of the files. The sort of
// slices would be in the program once more for this, with 6 kB.
func sortFaults(faults []Fault, files map[string]int) {
	sort.SliceStable(faults, func(i, j int) bool {
		a, b := &faults[i], &faults[j]
		return cmp.Or(
			cmp.Compare(files[a.File], files[b.File]),
			cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Col, b.Col),
			cmp.Compare(a.Text, b.Text),
		) < 0
	})
}

// keep returns s as a text of its own, so that the file's need not be kept.
func (d *decoder) keep(s string) string {
	if s == "" {
		return ""
	}
	if kept, ok := d.words[s]; ok {
		return kept
	}
	kept := strings.Clone(s)
	d.words[kept] = kept
	return kept
}

// value is one form of a setting: how it is read and what the JSON Schema says
// of it. What is generic and reads by another value keeps its read alone: all
// that such a closure holds is code for each V.
type value[V any] struct {
	schema schema
	// read returns the setting that stands in n. After a fault it reports that
	// and returns false.
	read func(d *decoder, n *node) (V, bool)
}

// spec is what is known of one key, whatever its value goes into: the one
// description that decoding, suggestions and the JSON Schema share.
type spec struct {
	name     string
	doc      string
	standard string // the default, as YAML
	required bool
	later    bool     // of the contract, but not in this version
	hidden   bool     // its value is never shown
	also     []string // what others call it, for suggestions
	schema   schema
}

// field is one key of an object that is decoded into what a P points to.
//
// What is generic here is so over the pointer and not over the T it points to:
// all pointers share one copy of the code, and there are about thirty Ts.
type field[P any] struct {
	spec
	read func(d *decoder, to P, n *node)
}

// key describes a key: its name, where its value goes, the form of that value,
// and what it is for.
func key[P, V any](name string, to func(P) *V, v value[V], doc string) *field[P] {
	read := v.read
	return newField(name, doc, v.schema, func(d *decoder, p P, n *node) {
		if got, ok := read(d, n); ok {
			*to(p) = got
		}
	})
}

// newField is what key does whatever the value is.
func newField[P any](name, doc string, s schema, read func(d *decoder, to P, n *node)) *field[P] {
	return &field[P]{spec{name: name, doc: doc, schema: s}, read}
}

// def gives a key its default, written as in the file.
func (f *field[P]) def(text string) *field[P] { f.standard = text; return f }

// must makes a key required.
func (f *field[P]) must() *field[P] { f.required = true; return f }

// hide keeps a key's value out of every fault.
func (f *field[P]) hide() *field[P] { f.hidden = true; return f }

// aka names what other products call a key.
func (f *field[P]) aka(words ...string) *field[P] { f.also = words; return f }

// later describes a key that this version does not have yet. It is refused
// rather than ignored.
func later[P any](name, doc string) *field[P] {
	return &field[P]{spec{name: name, doc: doc, later: true, schema: schema{{"not", schema{}}}},
		func(d *decoder, _ P, n *node) { d.shapef(n, "is not in this version yet; remove it") }}
}

// form is a map with known keys, whatever it is decoded into. What can be done
// with that alone is done here, what needs the keys in layout, and only the rest
// in object, whose code there is once for each T.
type form struct {
	name  string // what a person calls it: "a bus"
	doc   string
	keys  []*spec
	extra schema // what else the JSON Schema says
}

// layout is a form and where its values go: into what a P points to.
type layout[P any] struct {
	form
	fields []*field[P] // of form.keys
}

// object is a map with known keys that is decoded into a T.
type object[T any] struct {
	layout[*T]
	zero T // with the defaults
}

// newObject describes a map with known keys. zero holds what is to stand where a
// key without a default is not given.
func newObject[T any](name, doc string, zero T, fields ...*field[*T]) *object[T] {
	o := &object[T]{zero: zero}
	o.describe(name, doc, &o.zero, fields)
	return o
}

// describe is what newObject does whatever the object is decoded into.
func (o *layout[P]) describe(name, doc string, zero P, fields []*field[P]) {
	o.name, o.doc = name, doc
	o.add(zero, fields...)
}

// add appends keys, whose defaults go into zero.
func (o *layout[P]) add(zero P, fields ...*field[P]) {
	for _, f := range fields {
		o.fields = append(o.fields, f)
		o.know(&f.spec, func(d *decoder, n *node) { f.read(d, zero, n) })
	}
}

// know appends a key, whose default goes where read puts it.
func (o *form) know(k *spec, read func(d *decoder, n *node)) {
	if o.keys = append(o.keys, k); len(o.keys) > 64 {
		panic("config: too many keys in " + o.name) // see seen in fill
	}
	if k.standard == "" {
		return
	}
	d := decoder{set: new(yamltree.Set), words: make(map[string]string)}
	n, errs := d.set.Parse("default", []byte(k.standard))
	if len(errs) == 0 {
		read(&d, n)
	}
	if len(errs) > 0 || len(d.found) > 0 {
		panic(fmt.Sprintf("config: the default of %s in %s is wrong: %v %v", k.name, o.name, errs, d.found))
	}
}

// names returns the known keys.
func (o *form) names() []string {
	names := make([]string, 0, len(o.keys))
	for _, f := range o.keys {
		if !f.later {
			names = append(names, f.name)
		}
	}
	return names
}

// suggest returns what to write in place of an unknown key.
func (o *form) suggest(word string) string {
	for _, f := range o.keys {
		for _, a := range f.also {
			if strings.EqualFold(plain(a), plain(word)) {
				return "it is called " + f.name + " here"
			}
		}
	}
	if digits, rest := span(word); digits > 0 && rest == "" {
		return "if it is what follows a decimal comma, write a point instead"
	}
	if i := strings.IndexByte(word, ':'); i > 0 {
		for _, f := range o.keys {
			if f.name == word[:i] {
				return fmt.Sprintf("write a space after the colon: %s: %s", word[:i], word[i+1:])
			}
		}
	}
	return Suggest(word, o.names())
}

// fill decodes n into what to points to, which holds the defaults. It returns
// false if n is no map, which it has reported.
func (o *layout[P]) fill(d *decoder, n *node, to P) bool {
	return o.each(d, n, func(i int, v *node) { o.fields[i].read(d, to, v) })
}

// each calls read for each known key of n with its index and value, and reports
// the others. It returns false if n is no map, which it has reported.
func (o *form) each(d *decoder, n *node, read func(i int, v *node)) bool {
	if n.Kind != yamltree.Map {
		names := o.names()
		d.wrongKind(n, fmt.Sprintf("a map of the keys of %s (%s, …)", o.name, strings.Join(names[:min(3, len(names))], ", ")), "{}")
		return false
	}
	if n.Shared() {
		d.shared++
		defer func() { d.shared-- }()
	}
	var seen uint64
	next := 0 // where the next key is likely to be found
	strange := false
	for k, v := range n.Entries {
		i := o.find(k.Text, next)
		if i < 0 {
			strange = true
			if next > 0 && o.keys[next-1].hidden && k.Style() == yamltree.Plain && v.IsNull() {
				// {password: a,b}: the key is a part of the password.
				d.shapef(k, "the %s before it has a comma in it; put it in quotes", o.keys[next-1].name)
				continue
			}
			d.in(k.Text)
			d.unknown(k, o.name, o.suggest(k.Text))
			d.out()
			continue
		}
		next = i + 1
		f := o.keys[i]
		d.in(f.name)
		if seen&(1<<i) != 0 {
			d.twice(k, n)
		} else {
			seen |= 1 << i
			read(i, v)
		}
		d.out()
	}
	for i, f := range o.keys {
		if f.required && seen&(1<<i) == 0 && !d.partial && !strange {
			d.shapef(n, "%s is missing; add it: %s", f.name, f.doc)
		}
	}
	return true
}

// find returns the index of a key, -1 if it is unknown. Keys mostly come in
// the same order, so it looks from where the one before was found.
func (o *form) find(name string, from int) int {
	for i := range o.keys {
		j := from + i
		if j >= len(o.keys) {
			j -= len(o.keys)
		}
		if o.keys[j].name == name {
			return j
		}
	}
	return -1
}

// unknown reports a key that is not known. The path ends with it.
func (d *decoder) unknown(k *node, where, remedy string) {
	if k.Text == "<<" && k.Style() == yamltree.Plain {
		d.shapef(k, "merge keys (<<) are not part of YAML 1.2; write the keys out, or use an alias for the whole value")
		return
	}
	d.shapef(k, "is not a key of %s; %s", where, remedy)
}

// once reports whether the key k of m may be read: it is no merge key, and not
// among those seen before, to which it is added. The path ends with it.
func (d *decoder) once(k, m *node, seen map[string]bool) bool {
	switch {
	case k.Text == "<<":
		d.unknown(k, "", "")
	case seen[k.Text]:
		d.twice(k, m)
	default:
		seen[k.Text] = true
		return true
	}
	return false
}

// twice reports a key that m has before k. The path ends with it.
func (d *decoder) twice(k, m *node) {
	first, _ := m.Get(k.Text)
	d.faultf(k, "is given twice, first at %s; keep one", d.set.Place(first))
}

// value returns the object as a form of value. Its JSON Schema is put under a
// name, so that it stands there once.
func (o *object[T]) value(t *tables, name string) value[T] {
	return value[T]{t.define(name, &o.form), func(d *decoder, n *node) (T, bool) {
		v := o.zero
		ok := o.fill(d, n, &v)
		return v, ok
	}}
}

// schema returns the JSON Schema of the object.
func (o *form) schema() schema {
	props := make(schema, len(o.keys))
	var required []string
	for i, f := range o.keys {
		doc := f.doc
		if f.later {
			doc = "Not in this version yet: " + doc
		}
		s := append(schema{{"description", doc}}, f.schema...)
		if f.standard != "" {
			s = append(s, member{"default", jsonOf(f.standard)})
		}
		props[i] = member{f.name, s}
		if f.required {
			required = append(required, f.name)
		}
	}
	s := schema{{"description", o.doc}, {"type", "object"}, {"properties", props}, {"additionalProperties", false}}
	if required != nil {
		s = append(s, member{"required", required})
	}
	return append(s, o.extra...)
}

// jsonOf returns YAML text of ours as a value that encodes to JSON.
func jsonOf(text string) any {
	n, errs := new(yamltree.Set).Parse("default", []byte(text))
	if len(errs) > 0 || n == nil {
		panic("config: bad default " + text) // newObject has read it
	}
	return plainValue(n)
}

// plainValue returns a node as encoding/json has it.
func plainValue(n *node) any {
	switch n.Kind {
	case yamltree.Map:
		m := make(map[string]any, n.Len())
		for k, v := range n.Entries {
			m[k.Text] = plainValue(v)
		}
		return m
	case yamltree.List:
		l := make([]any, 0, n.Len())
		for i := range n.Items {
			l = append(l, plainValue(i))
		}
		return l
	}
	switch coreType(n) {
	case coreNull:
		return nil
	case coreBool:
		return strings.EqualFold(n.Text, "true")
	case coreInt:
		if i, err := strconv.ParseInt(n.Text, 0, 64); err == nil && n.Text[0] != '0' {
			return i
		}
		if u, err := parseUint(strings.TrimPrefix(n.Text, "+")); err == nil {
			return u
		}
	case coreFloat:
		if f, err := strconv.ParseFloat(n.Text, 64); err == nil {
			return f
		}
	}
	return n.Text
}

// core is what a plain scalar is in the core schema of YAML 1.2.
type core uint8

const (
	coreText core = iota
	coreNull
	coreBool
	coreInt
	coreFloat
)

// coreType returns what a scalar is.
func coreType(n *node) core {
	if n.Kind != yamltree.Scalar || n.Style() != yamltree.Plain {
		return coreText
	}
	s := n.Text
	switch {
	case n.IsNull():
		return coreNull
	case s[0] > '9':
		switch s {
		case "true", "True", "TRUE", "false", "False", "FALSE":
			return coreBool
		}
		return coreText
	case len(s) > 2 && (s[:2] == "0x" || s[:2] == "0o"):
		if _, err := parseUint(s); err == nil {
			return coreInt
		}
		return coreText
	}
	body := unsigned(s)
	switch body {
	case ".inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN":
		return coreFloat
	}
	digits, rest := span(body)
	if digits > 0 && rest == "" {
		return coreInt
	}
	fraction := 0
	if strings.HasPrefix(rest, ".") {
		fraction, rest = span(rest[1:])
	}
	if digits+fraction == 0 {
		return coreText
	}
	if rest != "" && (rest[0] == 'e' || rest[0] == 'E') {
		exponent := rest[1:]
		if exponent != "" && (exponent[0] == '+' || exponent[0] == '-') {
			exponent = exponent[1:]
		}
		var n int
		if n, rest = span(exponent); n == 0 {
			return coreText
		}
	}
	if rest != "" {
		return coreText
	}
	return coreFloat
}

// unsigned cuts the sign off a number, if it has one.
func unsigned(s string) string {
	if s != "" && (s[0] == '+' || s[0] == '-') {
		return s[1:]
	}
	return s
}

// span counts the digits that s begins with and returns what follows them.
func span(s string) (digits int, rest string) {
	for digits < len(s) && s[digits] >= '0' && s[digits] <= '9' {
		digits++
	}
	return digits, s[digits:]
}

// parseUint reads decimal, 0x and 0o numbers without sign.
func parseUint(s string) (uint64, error) {
	switch {
	case strings.HasPrefix(s, "0x"), strings.HasPrefix(s, "0X"):
		return strconv.ParseUint(s[2:], 16, 64)
	case strings.HasPrefix(s, "0o"):
		return strconv.ParseUint(s[2:], 8, 64)
	}
	return strconv.ParseUint(s, 10, 64)
}

// wrongKind reports a map, list or scalar where want is wanted. empty is what
// to write for none of it, if that is possible.
func (d *decoder) wrongKind(n *node, want, empty string) {
	switch {
	case n.IsNull() && d.partial: // it may have stood where nothing could be read
	case n.IsNull() && empty != "":
		d.shapef(n, "is empty; write %s, or %s for the defaults, or remove the key", want, empty)
	case n.IsNull():
		d.shapef(n, "is empty; write %s, or remove the key", want)
	case n.Kind == yamltree.Map:
		d.shapef(n, "is a map; write %s", want)
	case n.Kind == yamltree.List:
		d.shapef(n, "is a list; write %s", want)
	case empty != "":
		d.shapef(n, "%s is not %s; write that, or %s for the defaults", quote(n.Text), want, empty)
	default:
		d.shapef(n, "%s is not %s; write that", quote(n.Text), want)
	}
}

// quote shows a text of the file in a fault, cut to a length that can be read.
func quote(s string) string {
	const most = 60
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strconv.Quote(s)
}

// scalar returns the text of a scalar that is not null; want says what is
// wanted instead of anything else.
func (d *decoder) scalar(n *node, want string) (string, bool) {
	if n.Kind != yamltree.Scalar || n.IsNull() {
		d.wrongKind(n, want, "")
		return "", false
	}
	return n.Text, true
}

// unitRange is a run of unit ids.
type unitRange struct{ from, to modbus.UnitID }

// unset stands for "not given" where a default comes from elsewhere.
const (
	unsetInterval point.Interval = -3
	unsetOrder    point.Order    = 0xFF
)
