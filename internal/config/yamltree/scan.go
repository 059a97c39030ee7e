package yamltree

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// scan reads a text that should be one document. errs is what is wrong with it
// beside what stands in the tree; slip is what made the scanner stop, nil if
// nothing did.
func scan(set *Set, id uint16, src *source, text string) (root *Node, errs []Error, slip *slip) {
	s := scanner{set: set, id: id, src: src, text: text, lines: make([]uint32, 1, 64)}
	if s.plainText() {
		root = s.document()
	}
	if s.bad {
		return nil, nil, &s.slip
	}
	if len(s.text) == len(text) {
		src.lines = s.lines
	}
	return root, s.errs, nil
}

// slip is a place at which a text cannot be read on.
type slip struct {
	off  int    // where what is wrong begins
	at   int    // how far the scanner had come
	text string // what is wrong; what to write
	all  bool   // the text is not YAML from there on, nor repairable
}

// scanner is a position in a text. Once bad is set nothing else counts.
type scanner struct {
	set     *Set
	id      uint16
	src     *source
	text    string
	i       int      // the next byte
	line    int      // the first byte of the line that i is on
	lines   []uint32 // where each line begins
	began   bool     // the marks that may precede a document are behind
	bad     bool
	slip    slip
	errs    []Error
	anchors map[string]*Node // nil while the node is read
}

// What helps where something follows that does not fit.
const (
	restRemedy = "put the whole text in quotes, or remove the rest"
	flowRemedy = "look at the brackets, quotes and commas; text that begins with [ or { or has a comma in it needs quotes"
)

// fail stops the scanner because of what stands at off. The first reason counts.
func (s *scanner) fail(off int, what, remedy string) {
	if s.bad {
		return
	}
	s.bad = true
	from := strings.LastIndexByte(s.text[:off], '\n') + 1
	line, _, _ := strings.Cut(s.text[from:], "\n")
	if (remedy == restRemedy || remedy == flowRemedy) && (strings.Contains(line, "[:") || strings.Contains(line, "]:")) {
		remedy = `put an IPv6 address in quotes: "[::1]:502"`
	}
	s.slip = slip{off: off, at: s.i, text: "this is not YAML: " + what + "; " + remedy}
}

// refuse stops the scanner because of what is YAML, but is not taken.
func (s *scanner) refuse(off int, text string) {
	if !s.bad {
		s.bad = true
		s.slip = slip{off: off, at: s.i, text: text}
	}
}

// tooDeep reports whether depth is more than can be read.
func (s *scanner) tooDeep(depth int) bool {
	if depth > maxDepth {
		s.refuse(s.i, fmt.Sprintf("nested deeper than %d levels; write it flatter", maxDepth))
	}
	return s.bad
}

// mostErrors is how many errors of one sort are told of a text: whoever has not
// seen by then what is wrong with it will not by more of them, and each costs as
// much as its line is long.
const mostErrors = 100

// report goes on after what is wrong at off.
func (s *scanner) report(off int, text string) {
	if len(s.errs) == mostErrors {
		return
	}
	s.errs = append(s.errs, Error{s.src.place(off), text})
}

func (s *scanner) end() bool { return s.i >= len(s.text) }

func (s *scanner) column() int { return s.i - s.line }

// lineNumber returns the number of the line that i is on, from 1.
func (s *scanner) lineNumber() int { return len(s.lines) }

// peek returns the byte at offset n from here, 0 past the end.
func (s *scanner) peek(n int) byte {
	if s.i+n < len(s.text) {
		return s.text[s.i+n]
	}
	return 0
}

// blank reports whether the byte at offset n ends a word: a space, a tab, a
// line break or the end.
func (s *scanner) blank(n int) bool {
	switch s.peek(n) {
	case ' ', '\n', '\r', '\t', 0:
		return true
	}
	return false
}

// breakAt returns the length of the line break at i, 0 if there is none.
func (s *scanner) breakAt(i int) int {
	switch {
	case i >= len(s.text):
		return 0
	case s.text[i] == '\n':
		return 1
	case s.text[i] == '\r':
		return 2 // plainText has seen the line feed
	}
	return 0
}

// plainText reports whether the text has none of the characters that make
// lines, columns or words other than they seem.
func (s *scanner) plainText() bool {
	text := s.text
	for i := 0; i < len(text); {
		c := text[i]
		if c-' ' < 0x7F-' ' || c == '\n' || c == '\t' {
			i++
			continue
		}
		if c == '\r' && i+1 < len(text) && text[i+1] == '\n' {
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(text[i:])
		what, remedy := "", ""
		switch {
		case c == '\r':
			what, remedy = "a carriage return without a line feed", "save the file with the line ends of Linux or Windows"
		case r == utf8.RuneError && n == 1:
			what, remedy = "this is not UTF-8", "save the file as UTF-8 text"
		case r <= 0x9F, r == '\u2028', r == '\u2029', r == '\uFEFF', r&0xFFFE == 0xFFFE:
			what, remedy = fmt.Sprintf("the character U+%04X cannot be seen", r), fmt.Sprintf("save the file as UTF-8 text, and write the character as \"\\u%04X\" where it is meant", r)
		default:
			i += n
			continue
		}
		s.fail(i, what, remedy)
		s.slip.at, s.slip.all = i, true
		return false
	}
	return true
}

// spaces skips spaces and tabs between words.
func (s *scanner) spaces() {
	for s.i < len(s.text) && (s.text[s.i] == ' ' || s.text[s.i] == '\t') {
		s.i++
	}
}

// endLine wants nothing but spaces and a comment before the end of the line,
// and goes on to the next content.
func (s *scanner) endLine() {
	from := s.i
	s.spaces()
	switch s.peek(0) {
	case '\n', '\r', 0:
		s.nextLine(false)
	case '#':
		if s.i == from {
			s.fail(s.i, "a comment follows without a space", "write a space before the #, or put the text in quotes")
			return
		}
		s.nextLine(false)
	default:
		s.fail(s.i, "what follows here does not belong to what stands before it", restRemedy)
	}
}

// nextLine skips the rest of the line, and lines that are empty or hold only
// a comment, to the next content. With first set the line that i is on counts
// as one of those.
func (s *scanner) nextLine(first bool) {
	for {
		if !first && !s.newLine() {
			return
		}
		first = false
		for s.i < len(s.text) && s.text[s.i] == ' ' {
			s.i++
		}
		indent := s.i
		s.spaces()
		switch s.peek(0) {
		case '\n', '\r', '#':
			continue
		case 0:
			return
		}
		if s.i > indent {
			s.refuse(indent, "a tab in the indentation, which YAML forbids; write spaces")
			return
		}
		if s.began && s.mark() {
			s.over()
		}
		return
	}
}

// newLine goes to the first byte of the next line. It returns false at the
// last one.
func (s *scanner) newLine() bool {
	nl := strings.IndexByte(s.text[s.i:], '\n')
	if nl < 0 {
		s.i = len(s.text)
		return false
	}
	s.i += nl + 1
	s.line = s.i
	s.lines = append(s.lines, uint32(s.i))
	return true
}

// mark reports whether --- or ... stands here, at the beginning of a line.
func (s *scanner) mark() bool {
	if c := s.peek(0); s.column() != 0 || c != '-' && c != '.' {
		return false
	}
	rest := s.text[s.i:]
	return (strings.HasPrefix(rest, "---") || strings.HasPrefix(rest, "...")) && s.blank(3)
}

// over ends the text at the mark that stands here. Nothing may follow it.
func (s *scanner) over() {
	here := s.i
	if s.peek(0) == '.' {
		s.began = false
		s.i += 3
		s.endLine()
		if s.bad {
			return
		}
	}
	if !s.end() {
		s.report(s.i, "a second document begins here and would be ignored; remove the line ---, or put what follows into a file of its own in conf.d")
	}
	s.i, s.text = here, s.text[:here]
}

// document reads all of the text.
func (s *scanner) document() *Node {
	s.nextLine(true)
	directives := false
	for ; !s.bad && s.peek(0) == '%' && s.column() == 0; s.nextLine(false) {
		directives = true
		s.directive()
	}
	marked := !s.bad && s.mark() && s.peek(0) == '-'
	if marked {
		s.i += 3
		s.spaces()
		if c := s.peek(0); c != 0 && c != '\n' && c != '\r' && c != '#' {
			s.refuse(s.i, "what follows --- stands on its line; write it on the next")
		}
		s.began = true
		s.nextLine(false)
	} else if directives {
		s.fail(s.i, "no line --- follows the line that begins with %", "write it, or remove that line")
	}
	if s.bad {
		return nil
	}
	if !s.began {
		if s.began = true; s.mark() {
			s.over()
		}
	}
	if s.end() {
		if marked {
			return s.set.node(Scalar, s.id, s.i) // a document of nothing, which is not no document
		}
		return nil
	}
	root := s.content(-1, 0)
	if !s.bad && !s.end() {
		s.fail(s.i, "the indentation here is not that of the first line", "move it under what it belongs to")
	}
	return root
}

// directive reads a line that begins with %.
func (s *scanner) directive() {
	line, _, _ := strings.Cut(s.text[s.i:], "\n")
	line, _, _ = strings.Cut(line, " #")
	name, version, _ := strings.Cut(strings.TrimRight(line, " \t\r"), " ")
	switch {
	case name != "%YAML":
		s.report(s.i, fmt.Sprintf("%.20q has no meaning here; remove the line", name))
	case strings.TrimSpace(version) != "1.2":
		s.report(s.i, fmt.Sprintf("YAML %.10q is asked for, and this is read as YAML 1.2; write %%YAML 1.2, or remove the line", version))
	}
}

// content reads the block that begins here, the first of its line, inside of
// a block at column parent.
func (s *scanner) content(parent, depth int) *Node {
	if s.dash() {
		return s.list(s.column(), depth)
	}
	return s.inline(parent, true, depth, s.i, "")
}

// dash reports whether the mark of a list item stands here.
func (s *scanner) dash() bool { return s.peek(0) == '-' && s.blank(1) }

// properties skips the anchor and the tag that may stand before a node. It
// returns the anchor's name, which is "" if there is none.
func (s *scanner) properties() (anchor string) {
	for !s.bad {
		switch s.peek(0) {
		case '&':
			if anchor != "" {
				s.fail(s.i, "a second anchor for the same value", "keep one")
				return ""
			}
			anchor = s.name()
		case '!':
			from := s.i
			for !s.blank(0) && strings.IndexByte(",[]{}", s.peek(0)) < 0 {
				s.i++
			}
			s.report(from, fmt.Sprintf("the tag %.40s has no meaning here; remove it", s.text[from:s.i]))
		default:
			return anchor
		}
		s.spaces()
	}
	return ""
}

const anchorOfNothing = "the anchor (&) names nothing"

// value reads what belongs to a key or to the mark of a list item, which end
// here. parent is the column of that key or mark. indentless: a list may stand
// at that same column. compact: a map or list may begin on this line.
// Afterwards the scanner stands at the first content of a later line.
func (s *scanner) value(parent int, indentless, compact bool, depth int) *Node {
	if s.bad || s.tooDeep(depth) {
		return nil
	}
	start := s.i
	s.spaces()
	off := s.i
	anchor := s.properties()
	if s.bad {
		return nil
	}
	if anchor != "" || strings.IndexByte(s.text[start:s.i], '\t') >= 0 {
		// An anchor before a key would be the key's; and tabs do not indent.
		compact = false
	}
	switch s.peek(0) {
	case '\n', '\r', 0, '#':
		if s.peek(0) == '#' && s.i == start {
			s.fail(s.i, "a comment follows without a space", "write a space before the #, or put the text in quotes")
			return nil
		}
		s.nextLine(false)
		col := s.column()
		switch {
		case s.bad:
			return nil
		case s.end(), col < parent, col == parent && !(indentless && s.dash()):
			if anchor != "" {
				s.fail(off, anchorOfNothing, "write a value behind it")
			}
			return s.set.node(Scalar, s.id, start) // nothing: null
		case s.dash():
			return s.anchored(s.list(col, depth+1), off, anchor)
		}
		if c := s.peek(0); anchor != "" && (c == '&' || c == '*') {
			s.fail(off, anchorOfNothing, "keep one anchor or alias")
			return nil
		}
		return s.anchored(s.inline(parent, true, depth+1, s.i, ""), off, anchor)
	case '-':
		if s.dash() {
			if !compact {
				s.fail(s.i, "a list begins on the line of its key or anchor", "write it on the next line")
				return nil
			}
			return s.list(s.column(), depth+1)
		}
	}
	return s.inline(parent, compact, depth+1, off, anchor)
}

// keyRemedy is what helps where a key is not a plain one.
const keyRemedy = "a key must be plain text; write it out"

// inline reads a node that begins on this line: a flow collection, an alias, a
// scalar, or, with mapOK, a map whose first key stands here.
func (s *scanner) inline(parent int, mapOK bool, depth, off int, anchor string) *Node {
	if s.bad || s.tooDeep(depth) {
		return nil
	}
	col := s.column()
	if anchor == "" {
		if anchor = s.properties(); s.bad {
			return nil
		}
	}
	from, line := s.i, s.line
	var n *Node
	switch c := s.peek(0); c {
	case '*':
		if anchor != "" {
			s.fail(off, "an anchor stands before an alias", "keep one of the two")
			return nil
		}
		n = s.alias()
	case '[', '{':
		n = s.flow(parent, depth)
	case '|', '>':
		n = s.block(parent)
		return s.anchored(n, off, anchor)
	case '\n', '\r', 0, '#':
		s.fail(off, "what is meant by this does not stand on its line", "write both on one line")
		return nil
	default:
		n = s.scalar(parent, false)
	}
	if s.bad {
		return nil
	}
	end := s.i
	if s.spaces(); s.peek(0) == ':' && s.blank(1) {
		switch {
		case n.Kind != Scalar:
			s.refuse(from, keyRemedy)
		case anchor != "":
			s.refuse(off, "the anchor stands before a key, and names only that; write it behind the key before it, and the keys below")
		case !mapOK:
			s.fail(s.i, "a second colon with a space after it", "put the text before or after the colon in quotes, or look at the indentation")
		case s.line != line:
			s.fail(from, "a key goes on over several lines, or text over a line with a colon", "put the text before or after the colon in quotes, or look at the indentation")
		case s.i-from > maxKey:
			s.refuse(from, fmt.Sprintf("a key of more than %d bytes; write a shorter one", maxKey))
		default:
			return s.blockMap(col, n, depth)
		}
		return nil
	}
	s.i = end
	s.endLine()
	if !s.bad && !s.end() && s.column() > parent {
		s.fail(s.i, "this line is indented, but what stands before it has ended", "look at the indentation and the comment before it, or put the text in quotes")
	}
	return s.anchored(n, off, anchor)
}

// anchored gives a complete node its anchor, which began at off.
func (s *scanner) anchored(n *Node, off int, anchor string) *Node {
	if anchor == "" || s.bad {
		return n
	}
	n.off = uint32(off)
	n.form |= shared
	s.anchors[anchor] = n
	return n
}

// blockMap reads the map at column col whose first key has been read.
func (s *scanner) blockMap(col int, key *Node, depth int) *Node {
	n := s.set.node(Map, s.id, int(key.off))
	tail := &n.first
	for {
		s.i++ // the colon
		v := s.value(col, true, false, depth)
		if s.bad {
			return nil
		}
		key.next = v
		*tail, tail = key, &v.next
		if s.end() || s.column() < col {
			return n
		}
		if key = s.nextKey(col); s.bad {
			return nil
		}
	}
}

// nextKey reads a key of the map at column col, up to its colon.
func (s *scanner) nextKey(col int) *Node {
	from, line := s.i, s.line
	if s.column() > col {
		s.fail(s.i, "the indentation here fits nothing above", "move it under what it belongs to")
		return nil
	}
	switch s.peek(0) {
	case '*', '[', '{':
		s.refuse(from, keyRemedy)
		return nil
	case '&':
		s.refuse(from, "an anchor before a key names only that; write it behind the colon")
		return nil
	case '!':
		s.properties()
	}
	if s.dash() {
		s.fail(s.i, "an item of a list among the keys of a map", "look at the indentation, or remove the dash")
		return nil
	}
	key := s.scalar(col, false)
	if s.bad {
		return nil
	}
	s.spaces()
	switch {
	case s.peek(0) != ':' || !s.blank(1):
		s.fail(from, "a key without a colon", "write a colon and a space after the key, or indent it as a part of the line before")
	case s.line != line:
		s.fail(from, "a key without a colon on its line", "write a colon and a space after the key, or indent it as a part of the line before")
	case s.i-from > maxKey:
		s.refuse(from, fmt.Sprintf("a key of more than %d bytes; write a shorter one", maxKey))
	}
	return key
}

// list reads the list whose first mark stands here, at column col.
func (s *scanner) list(col, depth int) *Node {
	n := s.set.node(List, s.id, s.i)
	tail := &n.first
	for {
		s.i++ // the dash
		v := s.value(col, false, true, depth)
		if s.bad {
			return nil
		}
		*tail, tail = v, &v.next
		if s.end() || s.column() != col || !s.dash() {
			// Anything but a smaller column, or the next key of the map that
			// this list stands in, is found out by the caller.
			return n
		}
	}
}

// maxKey is the longest scalar that is taken for a key, in bytes.
const maxKey = 1000

// scalar reads a scalar in quotes or a plain one, up to its end or a colon.
// What goes on in later lines is indented more than parent.
func (s *scanner) scalar(parent int, flow bool) *Node {
	switch c := s.peek(0); c {
	case '"', '\'':
		return s.quoted(c, parent)
	case '?', ':', '-':
		if d := s.peek(1); !s.blank(1) && !(flow && strings.IndexByte(",[]{}", d) >= 0) {
			break
		}
		switch c {
		case '?':
			s.refuse(s.i, "a key that begins with ? is not taken; write KEY: VALUE")
		case ':':
			s.fail(s.i, "no key stands before the colon", "write one, or put the text in quotes")
		default:
			s.fail(s.i, "a list with dashes stands where none may begin", "write it on lines of its own, or put the dash in quotes")
		}
		return nil
	case '&', '*', '!', '|', '>', '%', '@', '`', ',', '[', ']', '{', '}', '#':
		s.fail(s.i, fmt.Sprintf("text may not begin with %c", c), "put it in quotes")
		return nil
	}
	return s.plain(parent, flow)
}

// ordinary are the bytes that mean nothing special anywhere in a plain scalar.
var ordinary = func() (is [256]bool) {
	for c := range is {
		is[c] = c > ' ' && strings.IndexByte("#:,[]{}", byte(c)) < 0
	}
	return is
}()

// plain reads a scalar without quotes.
func (s *scanner) plain(parent int, flow bool) *Node {
	n := s.set.node(Scalar, s.id, s.i)
	n.Text = s.plainLine(flow)
	if s.bad || s.peek(0) == ':' {
		return n
	}
	var lines []byte // the text, once it has several
	for breaks := s.more(parent, flow); breaks > 0; breaks = s.more(parent, flow) {
		if lines == nil {
			lines = append(lines, n.Text...)
		}
		lines = append(lines, fold(breaks)...)
		lines = append(lines, s.plainLine(flow)...)
		if s.peek(0) == ':' && !s.bad {
			s.fail(s.i, "a colon with a space after it, in text that began on a line before", "put the text in quotes, or look at the indentation")
		}
		if s.bad {
			return nil
		}
	}
	if lines != nil {
		n.Text = string(lines)
	}
	return n
}

// plainLine reads what belongs to a plain scalar on this line. The scanner then
// stands at the colon after a key, else behind the text's last byte.
func (s *scanner) plainLine(flow bool) string {
	start, end := s.i, s.i // end: after the last byte that is no space
	for i := s.i; ; i++ {
		var c byte
		for ; i < len(s.text); i++ {
			if c = s.text[i]; !ordinary[c] {
				break
			}
			end = i + 1
		}
		if i == len(s.text) {
			c = 0
		}
		switch c {
		case ' ', '\t':
			continue
		case '#':
			if end == i {
				end = i + 1
				continue
			}
		case ':':
			if s.i = i; !s.blank(1) {
				if flow && strings.IndexByte(",[]{}", s.peek(1)) >= 0 {
					s.fail(i, "a colon without a space after it", "write a space, or put the text in quotes")
					return ""
				}
				end = i + 1
				continue
			}
			return s.text[start:end]
		case ',', '[', ']', '{', '}':
			if !flow {
				end = i + 1
				continue
			}
		}
		s.i = end
		return s.text[start:end]
	}
}

// more goes to the next line of a plain scalar that has text. It returns how many
// line breaks are before that, and 0 if there is none.
func (s *scanner) more(parent int, flow bool) (breaks int) {
	ahead := *s
	ahead.spaces()
	for ahead.breakAt(ahead.i) > 0 {
		ahead.i += ahead.breakAt(ahead.i)
		ahead.line = ahead.i
		breaks++
		ahead.spaces()
	}
	if breaks == 0 || ahead.end() || ahead.indent() <= parent {
		return 0
	}
	switch c := ahead.peek(0); {
	case c == '#', flow && strings.IndexByte(",[]{}", c) >= 0, c == ':' && ahead.blank(1):
		return 0
	}
	if ahead.i = ahead.line; ahead.mark() {
		return 0
	}
	for range breaks {
		s.newLine()
	}
	s.spaces()
	return breaks
}

// indent returns how many spaces the line begins with.
func (s *scanner) indent() int {
	rest := s.text[s.line:]
	return len(rest) - len(strings.TrimLeft(rest, " "))
}

// fold returns what so many line breaks are in folded text.
func fold(breaks int) string {
	if breaks == 1 {
		return " "
	}
	return strings.Repeat("\n", breaks-1)
}

// quoted reads a scalar in quotes.
func (s *scanner) quoted(quote byte, parent int) *Node {
	n := s.set.node(Scalar, s.id, s.i)
	n.form = uint8(SingleQuoted)
	if quote == '"' {
		n.form = uint8(DoubleQuoted)
	}
	s.i++
	start := s.i
	var out []byte // what the text means, once that is not what stands there
	changed := false
	change := func() {
		if !changed {
			out = append(out, s.text[start:s.i]...)
			changed = true
		}
	}
	blanks := 0 // how much of out are spaces that stand there as such, at its end
	for !s.end() {
		c := s.text[s.i]
		switch {
		case c == '\'' && quote == '\'' && s.peek(1) == '\'':
			change()
			s.i++
		case c == quote:
			n.Text = s.text[start:s.i]
			if changed {
				n.Text = string(out)
			}
			s.i++
			return n
		case c == '\n', c == '\r':
			if !changed {
				change()
				blanks = len(out) - len(strings.TrimRight(string(out), " \t"))
			}
			out = out[:len(out)-blanks]
			blanks = 0
			breaks, ok := s.pass(parent)
			if !ok {
				s.unclosed(int(n.off))
				return nil
			}
			out = append(out, fold(breaks)...)
			continue
		case c == '\\' && quote == '"':
			change()
			blanks = 0
			if s.i++; s.breakAt(s.i) > 0 {
				breaks, ok := s.pass(parent)
				if !ok {
					s.unclosed(int(n.off))
					return nil
				}
				out = append(out, strings.Repeat("\n", breaks-1)...)
				continue
			}
			if out = s.escape(out); s.bad {
				return nil
			}
			continue
		}
		if changed {
			out = append(out, c)
			if blanks++; c != ' ' && c != '\t' {
				blanks = 0
			}
		}
		s.i++
	}
	s.unclosed(int(n.off))
	return nil
}

// unclosed fails because what opened at off ends nowhere.
func (s *scanner) unclosed(off int) {
	where := fmt.Sprintf("before line %d, which is not indented as a part of it", s.lineNumber())
	if s.end() {
		where = "up to the end"
	}
	s.fail(off, fmt.Sprintf("the %c that opens here is not closed %s", s.text[off], where), "close it, or put text that begins with it in quotes")
}

// pass goes over line breaks and the blanks after them, inside of quotes. It
// returns how many breaks there were, and false if the text ends there.
func (s *scanner) pass(parent int) (breaks int, ok bool) {
	for s.breakAt(s.i) > 0 {
		s.newLine()
		breaks++
		if s.mark() {
			return breaks, false
		}
		s.spaces()
	}
	return breaks, !s.end() && s.indent() > parent
}

// escape reads what follows a backslash.
func (s *scanner) escape(out []byte) []byte {
	c := s.peek(0)
	digits := 0
	switch c {
	case 'x':
		digits = 2
	case 'u':
		digits = 4
	case 'U':
		digits = 8
	default:
		const names, meanings = "0abt\tnvfre \"/\\N_LP", "\x00\a\b\t\t\n\v\f\r\x1b \"/\\\u0085\u00a0\u2028\u2029"
		i := strings.IndexByte(names, c)
		if i < 0 || c == 0 {
			s.fail(s.i-1, "the backslash in double quotes means nothing before this character", `write \\ for a backslash, or use single quotes`)
			return nil
		}
		s.i++
		return append(out, string([]rune(meanings)[i])...)
	}
	var r rune
	for i := 1; i <= digits; i++ {
		digit := strings.IndexByte("0123456789abcdef", s.peek(i)|0x20)
		if d := s.peek(i); digit < 0 || d < '0' {
			s.fail(s.i-1, fmt.Sprintf(`\%c wants %d hexadecimal digits`, c, digits), `write \\ for a backslash, or use single quotes`)
			return nil
		}
		r = r<<4 | rune(digit)
	}
	if !utf8.ValidRune(r) {
		s.fail(s.i-1, "there is no such character", `write \\ for a backslash, or use single quotes`)
		return nil
	}
	s.i += 1 + digits
	return utf8.AppendRune(out, r)
}

// block reads a scalar that stands in the lines below, literal or folded. The
// scanner then stands at the first content after it.
func (s *scanner) block(parent int) *Node {
	n := s.set.node(Scalar, s.id, s.i)
	n.form = uint8(Block)
	folded := s.peek(0) == '>'
	keep, strip, indent := false, false, 0
header:
	for s.i++; ; s.i++ {
		switch c := s.peek(0); {
		case (c == '+' || c == '-') && !keep && !strip:
			keep, strip = c == '+', c == '-'
		case c >= '1' && c <= '9' && indent == 0:
			indent = max(parent, 0) + int(c-'0')
		default:
			break header
		}
	}
	from := s.i
	s.spaces()
	switch c := s.peek(0); {
	case c == '#' && s.i > from, c == '\n', c == '\r', c == 0:
	default:
		s.fail(int(n.off), "text follows on the line of | or >", "write it on the lines below, or in quotes")
		return nil
	}
	var out strings.Builder
	breaks := 0     // since the last line of text
	seen := false   // there is one
	spaced := false // it begins with a space
	most := 0       // the longest line of spaces before the first
	for more := s.newLine(); more && !s.end(); more = s.newLine() {
		for s.i < len(s.text) && s.text[s.i] == ' ' && (indent == 0 || s.column() < indent) {
			s.i++
		}
		if s.breakAt(s.i) > 0 {
			most = max(most, s.column())
			breaks++
			continue
		}
		if s.end() && s.column() <= indent || s.end() && indent == 0 {
			break
		}
		if indent == 0 {
			if s.column() <= parent || s.mark() {
				break
			}
			indent = max(s.column(), 1)
			if s.peek(0) == '\t' {
				s.refuse(s.i, "a tab in the indentation, which YAML forbids; write spaces")
				return nil
			}
			if s.column() < indent {
				break
			}
			if most > indent {
				s.fail(s.i, "an empty line above has more spaces than the first line of text", "remove them")
				return nil
			}
		}
		if s.column() < indent {
			break
		}
		starts := s.peek(0) == ' ' || s.peek(0) == '\t'
		switch {
		case !seen:
			out.WriteString(strings.Repeat("\n", breaks))
		case folded && !spaced && !starts:
			out.WriteString(fold(breaks))
		default:
			out.WriteString(strings.Repeat("\n", breaks))
		}
		seen = true
		spaced = starts
		line, _, _ := strings.Cut(s.text[s.i:], "\n")
		line = strings.TrimSuffix(line, "\r")
		out.WriteString(line)
		s.i += len(line)
		breaks = 0
		if s.breakAt(s.i) > 0 {
			breaks = 1
		}
	}
	switch {
	case strip:
	case keep:
		out.WriteString(strings.Repeat("\n", breaks))
	case seen && breaks > 0:
		out.WriteByte('\n')
	}
	n.Text = out.String()
	if !s.end() {
		s.i = s.line
		if s.nextLine(true); !s.bad && !s.end() && s.column() > parent {
			s.fail(s.i, "this line is indented less than the text above it", "indent all lines of that text alike")
		}
	}
	return n
}

// name reads the name of an anchor or alias, with its mark.
func (s *scanner) name() string {
	s.i++
	start := s.i
	for !s.blank(0) && strings.IndexByte(",[]{}", s.text[s.i]) < 0 {
		s.i++
	}
	name := s.text[start:s.i]
	for i := range len(name) {
		if c := name[i]; c != '_' && c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			name = ""
			break
		}
	}
	if name == "" || s.text[start-1] == '&' && !s.blank(0) {
		s.fail(start-1, "this is not the name of an anchor", "write letters, digits, _ and - after & or *; put text that begins with one in quotes")
		return ""
	}
	if s.text[start-1] == '&' {
		// Until the node is complete the name stands for nothing.
		if s.anchors == nil {
			s.anchors = make(map[string]*Node)
		}
		s.anchors[name] = nil
	}
	return name
}

// alias reads an alias to a complete node.
func (s *scanner) alias() *Node {
	n := s.set.node(alias, s.id, s.i)
	name := s.name()
	target, known := s.anchors[name]
	switch {
	case s.bad:
		return nil
	case !known:
		s.fail(int(n.off), fmt.Sprintf("unknown anchor %q", name), "an alias needs its anchor (&name) earlier in the same file; put the text in quotes if no alias is meant")
	case target == nil:
		s.refuse(int(n.off), fmt.Sprintf("*%s stands inside of what it stands for; write that out", name))
	}
	n.first = target
	return n
}

// gap skips spaces, comments and line breaks inside of a flow collection that
// opened at open.
func (s *scanner) gap(parent, open int) {
	line := s.line
	s.spaces()
	if c := s.text[s.i-1]; s.peek(0) == '#' && c != ' ' && c != '\t' {
		s.fail(s.i, "a comment follows without a space", "write a space before the #, or put the text in quotes")
		return
	}
	for s.peek(0) == '#' || s.breakAt(s.i) > 0 {
		if !s.newLine() {
			break
		}
		if s.mark() {
			s.unclosed(open)
			return
		}
		s.spaces()
	}
	if s.end() || s.line != line && s.indent() <= parent && strings.IndexByte("]},", s.peek(0)) < 0 {
		s.unclosed(open)
	}
}

// flow reads a list in brackets or a map in braces.
func (s *scanner) flow(parent, depth int) *Node {
	if s.bad || s.tooDeep(depth) {
		return nil
	}
	kind, closing, open := Map, byte('}'), s.i
	if s.peek(0) == '[' {
		kind, closing = List, ']'
	}
	n := s.set.node(kind, s.id, s.i)
	tail := &n.first
	s.i++
	for {
		if s.gap(parent, open); s.bad {
			return nil
		}
		if s.peek(0) == closing {
			s.i++
			return n
		}
		if kind == Map {
			key := s.flowKey(parent, open, depth)
			if s.bad {
				return nil
			}
			*tail, tail = key, &key.next.next
		} else {
			item := s.flowNode(parent, depth)
			if s.bad {
				return nil
			}
			*tail, tail = item, &item.next
		}
		if s.gap(parent, open); s.bad {
			return nil
		}
		switch c := s.peek(0); {
		case c == ',':
			s.i++
		case c == closing:
		case c == ':' && kind == List:
			s.refuse(s.i, "a key and its value stand in a list; put them in braces: {key: value}")
			return nil
		default:
			s.fail(s.i, fmt.Sprintf("neither , nor %c follows here, for the %c on line %d", closing, s.text[open], s.src.place(open).Line), flowRemedy)
			return nil
		}
	}
}

// flowKey reads a key in braces and what follows it: a colon and a value, or
// nothing.
func (s *scanner) flowKey(parent, open, depth int) *Node {
	from, line := s.i, s.line
	switch s.peek(0) {
	case '*', '[', '{':
		s.refuse(from, keyRemedy)
		return nil
	case '&':
		s.refuse(from, "an anchor before a key names only that; write it behind the colon")
		return nil
	case '!':
		if s.properties(); s.bad {
			return nil
		}
	}
	key := s.scalar(parent, true)
	if s.bad {
		return nil
	}
	s.spaces()
	if s.peek(0) != ':' || !s.blank(1) && key.Style() == Plain {
		key.next = s.set.node(Scalar, s.id, s.i)
		if s.gap(parent, open); s.bad {
			return nil
		}
		if c := s.peek(0); c == ':' {
			s.fail(s.i, "the colon of a key stands on the next line", "write it behind the key")
		} else if c != ',' && c != '}' {
			s.fail(s.i, fmt.Sprintf("neither , nor } follows here, for the { on line %d", s.src.place(open).Line), flowRemedy)
		}
		key.next.off = uint32(s.i)
		return key
	}
	if s.line != line {
		s.fail(from, "a key goes on over several lines", "write it on one line, or look at the commas")
		return nil
	}
	if s.i-from > maxKey {
		s.refuse(from, fmt.Sprintf("a key of more than %d bytes; write a shorter one", maxKey))
		return nil
	}
	s.i++
	if s.gap(parent, open); s.bad {
		return nil
	}
	if c := s.peek(0); c == ',' || c == '}' {
		key.next = s.set.node(Scalar, s.id, s.i)
		return key
	}
	key.next = s.flowNode(parent, depth)
	return key
}

// flowNode reads a value inside of a flow collection.
func (s *scanner) flowNode(parent, depth int) *Node {
	off := s.i
	anchor := s.properties()
	if s.bad {
		return nil
	}
	var n *Node
	switch c := s.peek(0); c {
	case '*':
		if anchor != "" {
			s.fail(off, "an anchor stands before an alias", "keep one of the two")
			return nil
		}
		n = s.alias()
	case '[', '{':
		n = s.flow(parent, depth+1)
	case ',', ']', '}', '\n', '\r', 0, '#':
		if anchor != "" {
			s.fail(off, anchorOfNothing, "write a value behind it, on the same line")
			return nil
		}
		if off == s.i { // no tag either
			s.fail(s.i, fmt.Sprintf("no value stands before the %c", c), "write one, or remove the comma")
			return nil
		}
		return s.set.node(Scalar, s.id, s.i)
	default:
		n = s.scalar(parent, true)
	}
	return s.anchored(n, off, anchor)
}
