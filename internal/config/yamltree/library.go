package yamltree

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v4"
)

// maxRepairs is how often a text that is not YAML is read again without what
// was wrong.
const maxRepairs = 24

// library reads a text with the YAML library, which stops at the first thing
// that is not YAML. So that one slip does not hide all other faults, what is
// wrong is blanked out and the rest read again.
func (s *Set) library(id uint16, src *source) (*Node, []Error) {
	var errs []Error
	r := repair{src: src, text: []byte(src.text), tried: make(map[int]bool)}
	if from, to, ok := directive(r.text); ok {
		// The library knows only %YAML 1.1, and reads 1.2 all the same.
		if version := strings.TrimSpace(string(r.text[from+len(yamlDirective) : to])); version != "1.2" {
			errs = append(errs, Error{src.place(from), fmt.Sprintf("YAML %.10q is asked for, and this is read as YAML 1.2; write %%YAML 1.2, or remove the line", version)})
		}
		for i := from; i < to; i++ {
			r.text[i] = ' '
		}
	}
	for range maxRepairs {
		root, more, err := s.document(id, src, r.text)
		if err == nil {
			return root, append(errs, more...)
		}
		report, again := r.mend(err)
		errs = append(errs, report...)
		if !again {
			break
		}
	}
	return nil, errs
}

const yamlDirective = "%YAML "

// directive finds the line that says which YAML a text is, if the text begins
// with one, comments apart.
func directive(text []byte) (from, to int, ok bool) {
	for from < len(text) {
		to = from + bytes.IndexAny(text[from:], "\r\n")
		if to < from {
			to = len(text)
		}
		switch line := text[from:to]; {
		case bytes.HasPrefix(line, []byte(yamlDirective)):
			if comment := bytes.Index(line, []byte(" #")); comment >= 0 {
				to = from + comment
			}
			return from, to, true
		case len(line) > 0 && line[0] != '#':
			return 0, 0, false
		}
		from = to + 1
	}
	return 0, 0, false
}

// document reads a text that should be one document. err is what made the
// library stop; errs what the library accepts and we do not.
func (s *Set) document(id uint16, src *source, text []byte) (root *Node, errs []Error, err error) {
	defer func() {
		// The library panics where it meets what it thinks impossible. A text
		// that can do that is a bad text, not a broken program.
		if p := recover(); p != nil {
			root, errs, err = nil, nil, fmt.Errorf("the YAML cannot be read (%v); write it more plainly", p)
		}
	}()
	loader, err := yaml.NewLoader(bytes.NewReader(text))
	if err != nil {
		return nil, nil, err
	}
	var doc yaml.Node
	if err := loader.Load(&doc); errors.Is(err, io.EOF) {
		return nil, nil, nil
	} else if err != nil {
		return nil, nil, err
	}
	c := converter{set: s, id: id, src: src, done: make(map[*yaml.Node]*Node)}
	if len(doc.Content) == 1 {
		root = c.convert(doc.Content[0], 0)
	}
	var second yaml.Node
	switch err := loader.Load(&second); {
	case err == nil:
		c.errs = append(c.errs, Error{src.place(src.offset(second.Line, second.Column)), "a second document begins here and would be ignored; remove the line ---, or put what follows into a file of its own in conf.d"})
	case !errors.Is(err, io.EOF):
		return nil, nil, err
	}
	return root, c.errs, nil
}

// repair is a text from which what is not YAML is blanked out, bit by bit. Its
// length and its lines stay.
type repair struct {
	src   *source
	text  []byte
	tabs  bool         // are spaces now
	tried map[int]bool // sections by their first line; true: all of it is blank
}

// mend blanks out what err is about. It returns the errors to report and
// whether it is worth reading again. The second error in one section is most
// likely a consequence of the first, and is not reported.
func (r *repair) mend(err error) (report []Error, again bool) {
	if !r.tabs {
		r.tabs = true
		if tabs := r.src.tabs(); len(tabs) > 0 {
			for _, start := range r.src.lineStarts() {
				for i := int(start); i < len(r.text) && (r.text[i] == ' ' || r.text[i] == '\t'); i++ {
					r.text[i] = ' '
				}
			}
			for _, tab := range tabs {
				from, _ := r.section(tab.Place.Line - 1)
				r.tried[from] = false
			}
			return tabs, true
		}
	}
	report = []Error{r.src.explain(err)}
	var le *yaml.LoadError
	if !errors.As(err, &le) || le.Mark.Line == 0 {
		return report, false
	}
	first := min(openedAt(le).Line, len(r.src.lineStarts())) - 1
	from, to := r.section(first)
	whole, before := r.tried[from]
	switch {
	case whole:
		return nil, false
	case before:
		r.tried[from] = true
		r.blank(from, to)
		return nil, true
	}
	r.tried[from] = false
	r.blank(first, max(first+1, min(le.Mark.Line, to)))
	return report, true
}

// openedAt returns where what an error is about begins: the bracket or quote
// that is not closed, which may be many lines before the library gives up.
func openedAt(le *yaml.LoadError) yaml.Mark {
	if le.ContextMark.Line > 0 && le.ContextMark.Line < le.Mark.Line &&
		(strings.Contains(le.ContextMsg, "flow") || strings.Contains(le.ContextMsg, "quoted")) {
		return le.ContextMark
	}
	return le.Mark
}

// section returns the lines, from 0, of the top-level key that a line belongs
// to, the last one excluded.
func (r *repair) section(line int) (from, to int) {
	starts := r.src.lineStarts()
	head := func(i int) bool {
		if int(starts[i]) >= len(r.src.text) {
			return false
		}
		switch r.src.text[starts[i]] {
		case ' ', '\t', '\r', '\n', '#', '-', ']', '}':
			return false
		}
		return true
	}
	for from = line; from > 0 && !head(from); from-- {
	}
	for to = line + 1; to < len(starts) && !head(to); to++ {
	}
	return from, to
}

// blank fills lines with spaces.
func (r *repair) blank(from, to int) {
	starts := r.src.lineStarts()
	end := len(r.text)
	if to < len(starts) {
		end = int(starts[to])
	}
	for i := int(starts[from]); i < end; i++ {
		if r.text[i] != '\n' && r.text[i] != '\r' {
			r.text[i] = ' '
		}
	}
}

// explain turns the library's error into ours.
func (src *source) explain(err error) Error {
	var le *yaml.LoadError
	if !errors.As(err, &le) {
		return Error{Place{src.name, 1, 1}, err.Error()}
	}
	mark := openedAt(le)
	off := src.offset(mark.Line, mark.Column)
	if mark.Line == 0 {
		off = mark.Index // the reader knows only the byte
	}
	text := le.Message
	if le.ContextMsg != "" {
		text += " " + le.ContextMsg
	}
	if mark.Line < le.Mark.Line {
		text += fmt.Sprintf(" up to line %d", le.Mark.Line)
	} else if le.ContextMark.Line > 0 && le.ContextMark.Line != mark.Line {
		text += fmt.Sprintf(" that begins on line %d", le.ContextMark.Line)
	}
	return Error{src.place(off), "this is not YAML: " + text + "; " + src.remedy(le.Message, off)}
}

// remedy says what usually helps against one of the library's messages.
func (src *source) remedy(message string, off int) string {
	rest := src.text[min(off, len(src.text)):]
	line := rest[:max(0, strings.IndexByte(rest+"\n", '\n'))]
	if start := strings.LastIndexByte(src.text[:min(off, len(src.text))], '\n') + 1; start <= off {
		line = src.text[start:min(off, len(src.text))] + line
	}
	switch {
	case strings.Contains(line, "[:") || strings.Contains(line, "]:"):
		return "put an IPv6 address in quotes: \"[::1]:502\""
	case strings.Contains(message, "mapping values are not allowed"):
		return "put the text before or after the colon in quotes, or look at the indentation"
	case strings.Contains(message, "unknown anchor"):
		return "an alias needs its anchor (&name) earlier in the same file; put the text in quotes if no alias is meant"
	case strings.Contains(message, "cannot start any token"):
		if rest != "" && (rest[0] == '@' || rest[0] == '`' || rest[0] == '%') {
			return fmt.Sprintf("put text that begins with %c in quotes", rest[0])
		}
		return "put the text in quotes"
	case strings.Contains(message, "control characters"), strings.Contains(message, "UTF-8"):
		return "save the file as UTF-8 text"
	case strings.Contains(message, "did not find expected"):
		return "look at the brackets, quotes and commas here and at the indentation; text that begins with [ or { needs quotes"
	}
	return "look at the quotes and the indentation here and on the line before"
}

// tabs returns an error for each line whose indentation has a tab.
func (src *source) tabs() []Error {
	var errs []Error
	for i, start := range src.lineStarts() {
		rest := src.text[start:]
		indent := rest[:len(rest)-len(strings.TrimLeft(rest, " \t"))]
		tab := strings.IndexByte(indent, '\t')
		if tab < 0 || len(rest) == len(indent) || strings.ContainsRune("\r\n#", rune(rest[len(indent)])) {
			continue
		}
		errs = append(errs, Error{Place{src.name, i + 1, tab + 1}, "a tab in the indentation, which YAML forbids; write spaces"})
	}
	return errs
}

// converter makes our nodes from the library's.
type converter struct {
	set  *Set
	id   uint16
	src  *source
	errs []Error
	deep bool                 // has been reported
	done map[*yaml.Node]*Node // those with an anchor; nil while in the making
}

func (c *converter) fail(n *yaml.Node, text string) *Node {
	off := c.src.offset(n.Line, n.Column)
	c.errs = append(c.errs, Error{c.src.place(off), text})
	return c.set.node(Scalar, c.id, off)
}

func (c *converter) convert(y *yaml.Node, depth int) *Node {
	if depth > maxDepth {
		if c.deep {
			return c.set.node(Scalar, c.id, 0)
		}
		c.deep = true
		return c.fail(y, fmt.Sprintf("nested deeper than %d levels; write it flatter", maxDepth))
	}
	if y.Style&yaml.TaggedStyle != 0 {
		c.fail(y, fmt.Sprintf("the tag %s has no meaning here; remove it", y.Tag))
	}
	off := c.src.offset(y.Line, y.Column)
	var n *Node
	switch y.Kind {
	case yaml.AliasNode:
		target, known := c.done[y.Alias]
		if !known || target == nil {
			return c.fail(y, fmt.Sprintf("*%s stands inside of what it stands for; write that out", y.Value))
		}
		n = c.set.node(alias, c.id, off)
		n.first = target
		return n
	case yaml.ScalarNode:
		n = c.set.node(Scalar, c.id, off)
		n.Text = y.Value
		switch {
		case y.Style&yaml.SingleQuotedStyle != 0:
			n.form = uint8(SingleQuoted)
		case y.Style&yaml.DoubleQuotedStyle != 0:
			n.form = uint8(DoubleQuoted)
		case y.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
			n.form = uint8(Block)
		}
	case yaml.MappingNode, yaml.SequenceNode:
		if y.Anchor != "" {
			c.done[y] = nil
		}
		kind := List
		if y.Kind == yaml.MappingNode {
			kind = Map
		}
		n = c.set.node(kind, c.id, off)
		tail := &n.first
		for i, child := range y.Content {
			if kind == Map && i%2 == 0 && child.Kind != yaml.ScalarNode {
				child = &yaml.Node{Kind: yaml.ScalarNode, Line: child.Line, Column: child.Column}
				c.fail(child, "a key must be plain text; write it out")
			}
			k := c.convert(child, depth+1)
			*tail, tail = k, &k.next
		}
	default:
		return c.fail(y, "this is not YAML")
	}
	if y.Anchor != "" {
		n.form |= shared
		c.done[y] = n
	}
	return n
}
