package yamltree

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// dump writes a tree with all that both readers must agree on.
func dump(s *Set, n *Node) string {
	var b strings.Builder
	var walk func(n *Node, indent string)
	walk = func(n *Node, indent string) {
		p := s.Place(n)
		fmt.Fprintf(&b, "%s%d:%d kind %d style %d shared %t %q\n", indent, p.Line, p.Col, n.Kind, n.Style(), n.Shared(), n.Text)
		if n.Kind == alias {
			// Where it points, not what is there.
			p := s.Place(n.first)
			fmt.Fprintf(&b, "%s-> %d:%d\n", indent, p.Line, p.Col)
			return
		}
		for c := n.first; c != nil; c = c.next {
			walk(c, indent+"  ")
		}
	}
	if n != nil {
		walk(n, "")
	}
	return b.String()
}

// ownFaults are what we call a fault and the library does not: what is more
// likely a slip than meant.
var ownFaults = []string{"not indented as a part of it", "no key stands before the colon",
	"the colon of a key stands on the next line", "this is not the name of an anchor", "the anchor (&) names nothing",
	"indented less than the text above it",
	"does not stand on its line", "a colon without a space after it", "text may not begin with |", "text may not begin with >",
	"the indentation here is not that of the first line", "cannot be seen", "a carriage return without a line feed",
}

// compare fails unless the scanner reads text as the library does, or says by
// name what it does not take.
func compare(t *testing.T, text string) (read bool) {
	t.Helper()
	if strings.HasSuffix(text, " ") || strings.HasSuffix(text, "\t") {
		text += "\n" // the library adds that to a literal scalar
	}
	var ours, theirs Set
	src := &source{name: "x", text: strings.TrimPrefix(text, "\uFEFF")}
	ours.sources = []*source{src}
	root, errs, slip := scan(&ours, 0, src, src.text)
	// The library knows no YAML but 1.1, and reads 1.2 all the same.
	want, refused, err := judge(&theirs, "x", strings.Replace(src.text, "%YAML 1.2", "%YAML 1.1", 1))
	if slip != nil || len(errs) > 0 {
		deliberate := slip == nil || !strings.HasPrefix(slip.text, "this is not YAML")
		for _, what := range ownFaults {
			deliberate = deliberate || strings.Contains(slip.text, what)
		}
		if err == nil && len(refused) == 0 && !deliberate {
			t.Fatalf("the library reads %q as\n%sthe scanner says %s: %s", text, dump(&theirs, want), src.place(slip.off), slip.text)
		}
		return false
	}
	if err != nil || len(refused) > 0 {
		t.Fatalf("the scanner read what the library refuses: %v %v\n%q\n%s", err, refused, text, dump(&ours, root))
	}
	if lines := src.lines; lines != nil {
		src.lines = nil
		if !slices.Equal(lines, src.lineStarts()) {
			t.Fatalf("the scanner has lines %v, there are %v\n%q", lines, src.lineStarts(), text)
		}
	}
	if got, want := dump(&ours, root), dump(&theirs, want); got != want {
		t.Fatalf("the scanner read\n%sthe library\n%s%q", got, want, text)
	}
	return true
}

func FuzzScan(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 {
			return
		}
		if strings.HasPrefix(text, "\xFF\xFE") || strings.HasPrefix(text, "\xFE\xFF") {
			return // Parse sees to that
		}
		compare(t, text)
	})
}

// seeds are texts that the scanner reads.
var seeds = []string{
	"a: 1\nb: 2\n",
	"a:\nb: 1\nc: # x\n\n  # y\nd:\n  - \n  - x: 1\n    y:\n  -\n",
	"e: {a: , b, \"c\":1, d:e}\n",
	"a: °C b\nb: {u: \"°C\", v: x}\n",
	"a:\n- 1\n- 2\nb: 3\n",
	"\xef\xbb\xbfa: 1\n",
	"# x\n---\na: 1\n",
	"--- # x\na: 1",
	"a: &x {b: 1}\nc: *x\nd: [*x, &y 1, *y]\n",
	"a: &x\n  b: 1\nc: *x\n",
	"a: &x\n  - 1\nc: *x # y\n",
	"- a\n- - b\n  - c\n-\n  - d\n- e: 1\n  f:\n  - 1\n",
	"a: [1, 2,\n    # x\n    3 # y\n    ,]\nb: {x: 1,\n  y: 2}\n",
	"a: 'it''s'\nb: \"x\\n\\\"\\\\y\"\n'c': \"d\"\n\"e f\": g h  # i\n",
	"a: b#c\nd: e:f\ng: -1\nh: -x\ni: --\nj: http://x:1/?y\n",
	"a:\r\n  b: c\r\nd: e\r\n",
	"a:\n  'x'\nb:\n  [1]\nc:\n  y\n",
	"", "\n", "# only\n", "x\n", "- x\n", "[a]\n", "{}\n", "'x'\n",
	"a : 1\n", "a: {b : 1}\n", "a: {\"b\" : 1, 'c': 2}\n", "a: -\n", "a: [-]\n", "a: [- 1]\n", "a:\n b:\n  c: 1\n d: 2\ne: 3\n",
	"a: [[1], {b: []}]\n", "a: !!str 1\n", "a: |\n x\n", "a: x\n y\n", "? a\n: b\n", "a: &b\n- 1\n",
	"a: *b\n", "a: {x: [1, 2}\n", "a: 1\n b: 2\n", "a:\n  - b\n - c\n", "a: 'x' y\n", "- a: 1\n   b: 2\n", "a: b: c\n",
	"a: [\n1]\n", "a: [b\n c]\n", "a: {b\n : c}\n", "a: {b:\n c}\n", "a: \"x\ty\"\n", "a:\tb\n", "%YAML 1.2\n---\na\n", "a\n...\n", "a: 1\n---\nb: 2\n",
	"a: %x\n", "a: {b: %c}\n", "a: x%y\n", "a: ?x\n", "a: :x\n", "a: [:x]\n", "?x: 1\n", "a: ,b\n", "a: b, c\n", "a: [b, c d]\n", "&a b: c\n", "- &a b: c\n", "a: &b c\nd: *b\n", "a: &b\n  c\n", "*a : b\n",
	"a: []\nb: {}\n", "a: {x: &y }\n", "a: [&y ]\n", "a: &x &y b\n", "a: &x *x\n", "a: &x\n  *x\n", "<<: 1\n", "a: ~\nb: null\n",
}

func TestScanAgreesWithLibrary(t *testing.T) {
	read := 0
	for _, s := range seeds {
		if compare(t, s) {
			read++
		}
	}
	t.Logf("%d of %d read by the scanner", read, len(seeds))
}

// pieces make texts that are nearly YAML.
var pieces = []string{
	" ", " ", "  ", "    ", "\n", "\n", "\n  ", "\n    ", "- ", "-", ": ", ": ", ":", ",", ", ", "[", "]", "{", "}",
	"&x ", "&y", "*x", "*y", "a", "b", "c d", "1", "'", "\"", "'e'", "\"f\"", "\"\\n\"", "#", " # z", "---", "...", "?", "? ", "|", ">", "!", "!!str ",
	"%", "@", "°", "~", "<<", "\t", "\r\n", "=", "a: 1\n", "b: ", "- a\n", "key:\n", "{a: 1}", "[1, 2]", "x:\n  - ",
}

// TestScanRandom builds texts from pieces: a fuzzer of bytes seldom meets
// what makes YAML hard.
func TestScanRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	read := 0
	for range 30000 {
		var b strings.Builder
		for range 1 + rng.IntN(14) {
			b.WriteString(pieces[rng.IntN(len(pieces))])
		}
		if compare(t, b.String()) {
			read++
		}
	}
	t.Logf("%d read by the scanner", read)
}

// BenchmarkParse reads a text as a large configuration is written: by the
// scanner, and by the library.
func BenchmarkParse(b *testing.B) {
	var text strings.Builder
	for d := range 100 {
		fmt.Fprintf(&text, "meter%03d:\n  bus: plc\n  points:\n", d)
		for p := range 100 {
			fmt.Fprintf(&text, "    power_%03d: { at: holding %d, type: float32, scale: 0.1, unit: kW }\n", p, 2*p)
		}
	}
	b.Run("scanner", func(b *testing.B) {
		b.SetBytes(int64(text.Len()))
		b.ReportAllocs()
		for b.Loop() {
			var s Set
			if n, errs := s.Parse("x", []byte(text.String())); n == nil {
				b.Fatal(errs)
			}
		}
	})
	b.Run("library", func(b *testing.B) {
		b.SetBytes(int64(text.Len()))
		b.ReportAllocs()
		for b.Loop() {
			var s Set
			if n, _, err := judge(&s, "x", text.String()); n == nil {
				b.Fatal(err)
			}
		}
	})
}
