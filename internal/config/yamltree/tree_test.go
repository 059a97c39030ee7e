package yamltree

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// What is not YAML is reported once for each section, with its place, and what
// is YAML beside it can still be read.
func TestErrors(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string // how the errors begin, in order
		keys       string   // of the root that could be read
	}{
		{"two sections", "a: [1\nb: 2\nc: d: e\nf: 3\n", []string{
			"x:1:4: this is not YAML: the [ that opens here is not closed before line 2, which is not indented as a part of it; close it", "x:3:5: this is not YAML: a second colon with a space after it; put the text before or after the colon in quotes",
		}, "b f"},
		{"two in one section", "a:\n  b: c: d\n  e: @f\ng: 1\n", []string{"x:2:7: this is not YAML: a second colon"}, "g"},
		{"unknown anchor", "a: *b\nc: 1\n", []string{"x:1:4: this is not YAML: unknown anchor \"b\"; an alias needs its anchor (&name) earlier"}, "c"},
		{"reserved character", "a: @b\nc: `d`\ne: 1\n", []string{
			"x:1:4: this is not YAML: text may not begin with @; put it in quotes",
			"x:2:4: this is not YAML: text may not begin with `; put it in quotes",
		}, "e"},
		{"tabs", "a:\n\tb: 1\n \tc: 2\nd: |\n  x\n\ty\n", []string{"x:2:1: a tab in the indentation", "x:3:2: a tab in the indentation", "x:6:1: a tab in the indentation"}, "-"},
		{"tab that is allowed", "a:\t1\nb: \"x\ty\"\n", nil, "a b"},
		{"quote", "a: \"b\nc: 1\n", []string{"x:1:4: this is not YAML: the \" that opens here is not closed before line 2"}, "c"},
		{"control character", "a: \x01\nb: 1\n", []string{"x:1:4: this is not YAML: the character U+0001 cannot be seen; save the file as UTF-8 text"}, "-"},
		{"Latin-1", "a: b\nc: \xe9\n", []string{"x:2:4: this is not YAML: this is not UTF-8; save the file as UTF-8 text"}, "-"},
		{"two tags", "a: !!str 1\nb: !c 2\n", []string{"x:1:4: the tag !!str has no meaning here; remove it", "x:2:4: the tag !c has no meaning here"}, "a b"},
		{"second document", "a: 1\n---\nb: 2\n---\nc: 3\n", []string{"x:2:1: a second document begins here"}, "a"},
		{"second document, not YAML", "a: 1\n---\nb: [\n", []string{"x:2:1: a second document begins here"}, "a"},
		{"YAML 1.2", "# x\r\n\n%YAML 1.2 # y\n---\na: 1\n", nil, "a"},
		{"YAML 1.1", "%YAML 1.1\n---\na: 1\n", []string{`x:1:1: YAML "1.1" is asked for, and this is read as YAML 1.2; write %YAML 1.2, or remove the line`}, "a"},
		{"map as a key", "{a: 1}: 2\n[b]: 3\nc: 1\n", []string{"x:1:1: a key must be plain text", "x:2:1: a key must be plain text"}, "c"},
		{"alias as a key", "a: &b c\n*b : 2\n", []string{"x:2:1: a key must be plain text"}, "a"},
		{"cycle", "a: &b\n  c: *b\n", []string{"x:2:6: *b stands inside of what it stands for"}, "-"},
		{"deep", "a: " + strings.Repeat("{b: ", 70) + strings.Repeat("}", 70), []string{"x:1:260: nested deeper than 64"}, "-"},
		{"UTF-16", "\xfe\xff\x00a", []string{"x:1:1: the file is UTF-16; save it as UTF-8"}, "-"},
		{"long", strings.Repeat("#", MaxSize+1), []string{"x:1:1: the file has 16777217 bytes, more than 16777216"}, "-"},
		{"nothing", "# a\n", nil, "-"},
		{"block scalars", "a: |\n  b\n   c\nd: >-\n  e\n  f\n", nil, "a d"},
		{"lines of Windows", "a: 1\r\nb: [\r\n", []string{"x:2:4: this is not YAML: the [ that opens here is not closed up to the end"}, "a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s Set
			root, errs := s.Parse("x", []byte(tt.text))
			if len(errs) != len(tt.want) {
				t.Fatalf("%d errors, want %d: %v", len(errs), len(tt.want), errs)
			}
			for i, err := range errs {
				if !strings.HasPrefix(err.Error(), tt.want[i]) {
					t.Errorf("got  %v\nwant %s", err, tt.want[i])
				}
			}
			keys := "-"
			if root != nil {
				var names []string
				for k := range root.Entries {
					names = append(names, k.Text)
				}
				keys = strings.Join(names, " ")
			}
			if keys != tt.keys {
				t.Errorf("keys %q, want %q", keys, tt.keys)
			}
		})
	}
}

// TestHostile reads texts that take minutes as soon as anything in them is gone
// through once for each of its parts. What counts is that it ends.
func TestHostile(t *testing.T) {
	const size = 2 << 20
	t.Run("lines of a scalar", func(t *testing.T) {
		const line = " x\n"
		const n = size / len(line)
		var s Set
		root, errs := s.Parse("x", []byte("a:\n"+strings.Repeat(line, n)+"b: 1\n"))
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		if _, a := root.Get("a"); a == nil || a.Text != strings.TrimSuffix(strings.Repeat("x ", n), " ") {
			t.Error("the text of many lines is not what stands there")
		}
		if _, b := root.Get("b"); b == nil || b.Text != "1" {
			t.Errorf("what follows is %v", b)
		}
	})
	t.Run("errors in a line", func(t *testing.T) {
		const item = "!t ä, "
		var s Set
		root, errs := s.Parse("x", []byte("a: ["+strings.Repeat(item, size/len(item))+"]\nb: 1\n"))
		if len(errs) != mostErrors {
			t.Fatalf("%d errors, want %d", len(errs), mostErrors)
		}
		for i, err := range errs {
			want := fmt.Sprintf("x:1:%d: the tag !t has no meaning here; remove it", 5+6*i)
			if err.Error() != want {
				t.Errorf("error %d: %v, want %s", i, err, want)
			}
		}
		if _, a := root.Get("a"); a.Len() != size/len(item) {
			t.Errorf("%d items, want %d", a.Len(), size/len(item))
		}
	})
	t.Run("lines with a tab", func(t *testing.T) {
		const line = "\tb: 1\n"
		var s Set
		root, errs := s.Parse("x", []byte("a:\n"+strings.Repeat(line, size/len(line))+"c: @\nd: 1\n"))
		if len(errs) != mostErrors+1 {
			t.Fatalf("%d errors, want %d", len(errs), mostErrors+1)
		}
		for i, err := range errs[:mostErrors] {
			if want := fmt.Sprintf("x:%d:1: a tab in the indentation", i+2); !strings.HasPrefix(err.Error(), want) {
				t.Errorf("error %d: %v, want %s", i, err, want)
			}
		}
		if err := errs[mostErrors]; err.Place.Line != size/len(line)+2 {
			t.Errorf("after the tabs: %v", err)
		}
		if _, a := root.Get("a"); a == nil || a.Len() != size/len(line) {
			t.Errorf("a has not the %d keys that stand there", size/len(line))
		}
	})
}

func TestNodes(t *testing.T) {
	var s Set
	root, errs := s.Parse("x", []byte("a: &m {b: 'it''s', c: \"x\\n\"}\nd: [1, ~, *m, null]\ne: |\n  y\n"))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	_, a := root.Get("a")
	_, b := a.Get("b")
	_, c := a.Get("c")
	_, d := root.Get("d")
	_, e := root.Get("e")
	if !a.Shared() || b.Shared() || root.Len() != 3 || a.Len() != 2 || d.Len() != 4 {
		t.Errorf("shared %t %t, lengths %d %d %d", a.Shared(), b.Shared(), root.Len(), a.Len(), d.Len())
	}
	if b.Text != "it's" || b.Style() != SingleQuoted || c.Text != "x\n" || c.Style() != DoubleQuoted || e.Text != "y\n" || e.Style() != Block {
		t.Errorf("texts %q %d, %q %d, %q %d", b.Text, b.Style(), c.Text, c.Style(), e.Text, e.Style())
	}
	var kinds []string
	for item := range d.Items {
		kinds = append(kinds, fmt.Sprint(item.Kind, item.IsNull(), item == a))
	}
	if got := strings.Join(kinds, ", "); got != "0 false false, 0 true false, 1 false true, 0 true false" {
		t.Errorf("items %s", got)
	}
	for range d.Items {
		break
	}
	if k, v := d.Get("x"); k != nil || v != nil {
		t.Error("a list has no keys")
	}
	if k, v := root.Get("x"); k != nil || v != nil {
		t.Error("there is no x")
	}
	if got := s.Place(c).String(); got != "x:1:23" || s.Name(c) != "x" {
		t.Errorf("c is at %s", got)
	}
	if !s.Before(b, c) || s.Before(c, b) {
		t.Error("b comes before c")
	}
	if u := b.Unquoted(); u.Style() != Plain || u.Text != b.Text || s.Place(u) != s.Place(b) {
		t.Errorf("without quotes: %+v", u)
	}
}

// Places count characters, not bytes, and lines of both kinds.
func TestPlaces(t *testing.T) {
	var s Set
	root, errs := s.Parse("x", []byte("a: [\"ä€\", b]\nc: 1\r\nd: \"°\" #\ne: 2\r\nf: {°: g}\n"))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	var got []string
	var walk func(*Node)
	walk = func(n *Node) {
		if n.Kind == Scalar {
			p := s.Place(n)
			got = append(got, fmt.Sprintf("%s %d:%d", n.Text, p.Line, p.Col))
		}
		for item := range n.Items {
			walk(item)
		}
	}
	walk(root)
	want := []string{"a 1:1", "ä€ 1:5", "b 1:11", "c 2:1", "1 2:4", "d 3:1", "° 3:4", "e 4:1", "2 4:4", "f 5:1", "° 5:5", "g 5:8"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	src := s.sources[0]
	for i := range src.text {
		if p := src.place(i); src.offset(p.Line, p.Col) != i {
			t.Errorf("offset %d is at %v, which is offset %d", i, p, src.offset(p.Line, p.Col))
		}
	}
	if src.offset(0, 0) != 0 || src.offset(99, 1) != len(src.text) {
		t.Error("places outside of the text")
	}
}

// show writes a tree as flow YAML.
func show(n *Node) string {
	var parts []string
	switch n.Kind {
	case Map:
		for k, v := range n.Entries {
			parts = append(parts, k.Text+": "+show(v))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case List:
		for i := range n.Items {
			parts = append(parts, show(i))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	return n.Text
}

func TestMerge(t *testing.T) {
	tests := []struct{ name, a, b, want, clashes string }{
		{"disjoint", "a: 1", "b: 2", "{a: 1, b: 2}", ""},
		{"maps", "a: {b: 1}", "a: {c: 2}\nd: 3", "{a: {b: 1, c: 2}, d: 3}", ""},
		{"deep", "a: {b: {c: 1, d: 2}, e: 3}", "a: {b: {f: 4}, g: 5}", "{a: {b: {c: 1, d: 2, f: 4}, e: 3, g: 5}}", ""},
		{"last of a map", "a: {b: {c: 1}}", "a: {b: {d: 2}, e: 3, f: 4}", "{a: {b: {c: 1, d: 2}, e: 3, f: 4}}", ""},
		{"scalar twice", "a: 1\nb: 2", "c: 3\na: 4", "{a: 1, b: 2, c: 3}", "a x:1:1 y:2:1"},
		{"list twice", "a: [1]", "a: [2]", "{a: [1]}", "a x:1:1 y:1:1"},
		{"map and scalar", "a: {b: 1}", "a: 2", "{a: {b: 1}}", "a x:1:1 y:1:1"},
		{"twice deep", "a: {b: {c: 1}}", "a: {b: {c: 2, d: 3}}", "{a: {b: {c: 1, d: 3}}}", "a.b.c x:1:9 y:1:9"},
		{"shared map", "a: &s {x: 1}\nb: *s", "a: {y: 2}", "{a: {x: 1, y: 2}, b: {x: 1}}", ""},
		{"alias", "a: &s {x: 1}\nb: *s", "b: {y: 2}", "{a: {x: 1}, b: {x: 1, y: 2}}", ""},
		{"alias of the second", "a: {x: 1}", "s: &s {y: 2}\na: *s", "{a: {x: 1, y: 2}, s: {y: 2}}", ""},
		{"empty", "a: {}", "a: {}", "{a: {}}", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s Set
			a, errs := s.Parse("x", []byte(tt.a))
			b, more := s.Parse("y", []byte(tt.b))
			if len(errs)+len(more) > 0 {
				t.Fatal(errs, more)
			}
			root, clashes := s.Merge(a, b)
			if got := show(root); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			var list []string
			for _, c := range clashes {
				list = append(list, fmt.Sprint(strings.Join(c.Path, "."), " ", s.Place(c.A), " ", s.Place(c.B)))
			}
			if got := strings.Join(list, ", "); got != tt.clashes {
				t.Errorf("clashes %q, want %q", got, tt.clashes)
			}
		})
	}
}

// FuzzParse: both readers and the repairs take whatever comes.
func FuzzParse(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 {
			return
		}
		var s Set
		root, errs := s.Parse("x", []byte(text))
		for _, err := range errs {
			if err.Place.Line < 1 || err.Place.Col < 1 || err.Text == "" {
				t.Errorf("an error that is nowhere: %v", err)
			}
		}
		if root != nil {
			_ = s.Place(root)
			other, _ := s.Parse("y", []byte(text))
			if root.Kind == Map && other.Kind == Map {
				_, _ = s.Merge(root, other)
			}
		}
	})
}
