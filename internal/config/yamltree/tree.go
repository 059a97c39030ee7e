// Package yamltree reads YAML text into a small tree that knows the place of
// every word, so that whoever decodes the tree can say where a fault is. It
// knows nothing of any configuration.
//
// It is a reader of its own because the YAML library is a fifteenth of the
// program, takes ten times as long and five times the memory, stops at the first
// fault and knows its line only. The library is its judge: the tests hold that
// whatever text one of them takes the other reads alike, but for what is refused
// here by name.
//
// It takes YAML 1.2: block and flow maps and lists, plain, quoted, literal and
// folded scalars over any number of lines, comments, anchors and aliases. Refused
// are tags (!!str), a second document, keys that are no plain or quoted text on one
// line, anchors of keys, and a pair in a list without braces. Merge keys (<<) are
// left to the caller, as a key of that name.
package yamltree

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxSize is the longest text that Parse takes, in bytes.
const MaxSize = 16 << 20

// maxDepth is how deep maps and lists may be nested.
const maxDepth = 64

// Kind is what a Node is.
type Kind uint8

// The kinds. An alias never appears: Children returns what it stands for.
const (
	Scalar Kind = iota
	Map
	List
	alias // first is the node it stands for
)

// Style is how a scalar was written.
type Style uint8

// Plain scalars may be numbers, booleans or null; the others are text.
const (
	Plain Style = iota
	SingleQuoted
	DoubleQuoted
	Block // literal or folded
)

// shared is the bit of Node.form that says the node has an anchor.
const shared = 1 << 7

// Node is a scalar, a map or a list. Text shares memory with the text it was
// read from: clone what is kept.
type Node struct {
	Kind   Kind
	form   uint8 // the style, and shared
	source uint16
	off    uint32 // of the first byte, in bytes
	Text   string // of a scalar

	first *Node // a map's first key, a list's first item
	next  *Node // a key's value, a value's next key; a list's next item
}

// Style returns how a scalar was written.
func (n *Node) Style() Style { return Style(n.form &^ shared) }

// Shared reports whether the node has an anchor, so that it may be reached
// from several places.
func (n *Node) Shared() bool { return n.form&shared != 0 }

// resolve follows an alias to what it stands for.
func (n *Node) resolve() *Node {
	if n.Kind == alias {
		return n.first
	}
	return n
}

// IsNull reports whether n is a plain scalar that means no value: nothing at
// all, ~ or null.
func (n *Node) IsNull() bool {
	if n.Kind != Scalar || n.Style() != Plain {
		return false
	}
	switch n.Text {
	case "", "~", "null", "Null", "NULL":
		return true
	}
	return false
}

// Entries calls f for each key and value of a map, in order. Keys are always
// scalars.
func (n *Node) Entries(yield func(key, value *Node) bool) {
	for k := n.first; k != nil; k = k.next.next {
		if !yield(k, k.next.resolve()) {
			return
		}
	}
}

// Items calls f for each item of a list, in order.
func (n *Node) Items(yield func(item *Node) bool) {
	for i := n.first; i != nil; i = i.next {
		if !yield(i.resolve()) {
			return
		}
	}
}

// Len returns the number of entries of a map or items of a list.
func (n *Node) Len() int {
	count := 0
	for c := n.first; c != nil; c = c.next {
		count++
	}
	if n.Kind == Map {
		count /= 2
	}
	return count
}

// Get returns the first entry of a map whose key is key, or nils.
func (n *Node) Get(key string) (k, v *Node) {
	if n == nil || n.Kind != Map {
		return nil, nil
	}
	for k, v := range n.Entries {
		if k.Text == key {
			return k, v
		}
	}
	return nil, nil
}

// Place is where a node begins. Lines and columns count from 1; columns count
// characters, not bytes.
type Place struct {
	File      string
	Line, Col int
}

// String returns FILE:LINE:COL.
func (p Place) String() string { return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col) }

// Error is one reason why a text is not a tree, and where.
type Error struct {
	Place Place
	Text  string // what is wrong; what to write
}

// Error implements error.
func (e Error) Error() string { return e.Place.String() + ": " + e.Text }

// Set is the texts that one tree is made from. The zero value is ready.
type Set struct {
	sources []*source
	slab    []Node // where the next nodes come from
	grow    int    // how many those were last time
}

// source is one text and where its lines begin.
type source struct {
	name  string
	text  string
	lines []uint32 // offset of each line's first byte; nil until asked for
}

// Parse reads one text, which name stands for in places. It returns nil and
// no error for a text without content. When there are errors the node, if any,
// is what could still be read.
func (s *Set) Parse(name string, text []byte) (*Node, []Error) {
	src := &source{name: name}
	id := uint16(len(s.sources))
	s.sources = append(s.sources, src)
	if len(text) > MaxSize {
		return nil, []Error{{Place{name, 1, 1}, fmt.Sprintf("the file has %d bytes, more than %d; split it into several files in conf.d", len(text), MaxSize)}}
	}
	if len(s.sources) > 1<<16-1 {
		return nil, []Error{{Place{name, 1, 1}, "too many files; join some of them"}}
	}
	if len(text) >= 2 && (text[0] == 0xFF && text[1] == 0xFE || text[0] == 0xFE && text[1] == 0xFF) {
		return nil, []Error{{Place{name, 1, 1}, "the file is UTF-16; save it as UTF-8"}}
	}
	src.text = strings.TrimPrefix(string(text), "\uFEFF") // a byte order mark, from Windows
	return s.read(id, src)
}

// node returns a new node from the slab.
func (s *Set) node(kind Kind, source uint16, off int) *Node {
	if len(s.slab) == 0 {
		s.grow = min(max(2*s.grow, 8), 512)
		s.slab = make([]Node, s.grow)
	}
	n := &s.slab[0]
	s.slab = s.slab[1:]
	n.Kind, n.source, n.off = kind, source, uint32(off)
	return n
}

// Place returns where n begins.
func (s *Set) Place(n *Node) Place {
	return s.sources[n.source].place(int(n.off))
}

// Before reports whether a begins before b: in an earlier text, or earlier in
// the same one.
func (s *Set) Before(a, b *Node) bool {
	if a.source != b.source {
		return a.source < b.source
	}
	return a.off < b.off
}

// Name returns the name of the text that n is from.
func (s *Set) Name(n *Node) string { return s.sources[n.source].name }

// lineStarts returns the offset of each line's first byte.
func (src *source) lineStarts() []uint32 {
	if src.lines == nil {
		src.lines = append(src.lines, 0)
		for i := range len(src.text) {
			if src.text[i] == '\n' {
				src.lines = append(src.lines, uint32(i+1))
			}
		}
	}
	return src.lines
}

// place turns an offset into a line and a column.
func (src *source) place(off int) Place {
	off = min(off, len(src.text))
	lines := src.lineStarts()
	i := sort.Search(len(lines), func(i int) bool { return int(lines[i]) > off }) - 1
	return Place{src.name, i + 1, utf8.RuneCountInString(src.text[lines[i]:off]) + 1}
}

// Clash is a key that two texts both give, where at most one may.
type Clash struct {
	Path []string // keys from the root, the clashing one last
	A, B *Node    // the two keys, in the order of their texts
}

// Merge adds the entries of b, a map, to a, another, and returns the result
// and every key that both have, unless its value is a map in both: then those
// are merged in the same way. Neither tree may be used on its own afterwards.
func (s *Set) Merge(a, b *Node) (*Node, []Clash) {
	var clashes []Clash
	merged := s.merge(a, b, nil, &clashes)
	return merged, clashes
}

func (s *Set) merge(a, b *Node, path []string, clashes *[]Clash) *Node {
	// A map with an anchor may stand in other places too, and those must not
	// change: what is merged is a copy. The keys of the copy are copies as
	// well, because a key is also the link to its neighbour.
	out := s.node(Map, a.source, int(a.off))
	tail := &out.first
	add := func(k, v *Node) {
		nk, nv := s.node(0, 0, 0), s.node(0, 0, 0)
		*nk, *nv = *k, *v
		nk.next, nv.next = nv, nil
		*tail, tail = nk, &nv.next
	}
	index := make(map[string]*Node, a.Len())
	for k := a.first; k != nil; k = k.next.next {
		add(k, k.next)
	}
	for k := out.first; k != nil; k = k.next.next {
		if _, twice := index[k.Text]; !twice {
			index[k.Text] = k
		}
	}
	for k := b.first; k != nil; k = k.next.next {
		old := index[k.Text]
		if old == nil {
			add(k, k.next)
			continue
		}
		// A copy, because the paths of all clashes would share one array.
		here := append(append([]string(nil), path...), k.Text)
		va, vb := old.next.resolve(), k.next.resolve()
		if va.Kind != Map || vb.Kind != Map {
			*clashes = append(*clashes, Clash{here, old, k})
			continue
		}
		m := s.merge(va, vb, here, clashes)
		m.next = old.next.next
		old.next = m
		if m.next == nil {
			tail = &m.next
		}
	}
	return out
}

// Put returns the tree root, a map or nil, with the value v at a path of keys: in
// place of what is there, or new. What is no map on the way gives way to one. key
// stands for the places of keys that are new. root may not be used on its own
// afterwards.
func (s *Set) Put(root *Node, path []string, key, v *Node) *Node {
	// A copy, since a map with an anchor may stand in other places too.
	out := s.node(Map, key.source, int(key.off))
	tail := &out.first
	add := func(k, v *Node) {
		nk, nv := s.node(0, 0, 0), s.node(0, 0, 0)
		*nk, *nv = *k, *v
		nk.next, nv.next = nv, nil
		*tail, tail = nk, &nv.next
	}
	below := func(n *Node) *Node {
		if len(path) == 1 {
			return v
		}
		return s.Put(n, path[1:], key, v)
	}
	found := false
	if root != nil && root.Kind == Map {
		out.source, out.off = root.source, root.off
		for k := root.first; k != nil; k = k.next.next {
			if found || k.Text != path[0] {
				add(k, k.next)
				continue
			}
			found = true
			add(k, below(k.next.resolve()))
		}
	}
	if !found {
		k := s.node(Scalar, key.source, int(key.off))
		k.Text = path[0]
		add(k, below(nil))
	}
	return out
}

// Find returns the value at a path of keys, nil if there is none.
func (n *Node) Find(path []string) *Node {
	for _, key := range path {
		if _, n = n.Get(key); n == nil {
			return nil
		}
	}
	return n
}

// AppendFlow appends n as YAML in one line.
func (n *Node) AppendFlow(b []byte) []byte {
	switch n.Kind {
	case Map:
		b = append(b, '{')
		for k, v := range n.Entries {
			if b[len(b)-1] != '{' {
				b = append(b, ", "...)
			}
			b = v.AppendFlow(append(k.AppendFlow(b), ": "...))
		}
		return append(b, '}')
	case List:
		b = append(b, '[')
		for v := range n.Items {
			if b[len(b)-1] != '[' {
				b = append(b, ", "...)
			}
			b = v.AppendFlow(b)
		}
		return append(b, ']')
	}
	if n.Style() == Plain {
		if n.IsNull() {
			return append(b, "null"...)
		}
		return append(b, n.Text...)
	}
	return strconv.AppendQuote(b, n.Text)
}

// Unquoted returns a scalar at the same place with the same text, as if it had
// been written without quotes.
func (n *Node) Unquoted() *Node {
	return &Node{source: n.source, off: n.off, Text: n.Text}
}
