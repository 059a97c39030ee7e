package yamltree

import (
	"strings"
	"unicode/utf8"
)

// scan reads the usual subset of YAML. ok is false for everything else: text
// that is wrong, and text that is right but uncommon.
//
// What it leaves to the library: tabs, scalars over several lines, block
// scalars (| and >), tags, directives, further documents, keys that are not
// scalars, keys with an anchor, single pairs in lists, escapes other than the
// few common ones, line breaks other than LF and CR LF, control characters.
func scan(set *Set, id uint16, src *source) (root *Node, ok bool) {
	s := scanner{set: set, id: id, text: src.text, lines: make([]uint32, 1, 64)}
	if !s.plainText() {
		return nil, false
	}
	s.nextLine(true)
	if s.bad {
		return nil, false
	}
	if strings.HasPrefix(s.text[s.i:], "---") && s.column() == 0 {
		s.i += 3
		s.endLine()
		if s.end() {
			return nil, false // a document of nothing, which is not no document
		}
	}
	if s.bad || s.end() {
		return nil, !s.bad
	}
	root = s.content(-1, 0)
	if s.bad || !s.end() {
		return nil, false
	}
	src.lines = s.lines
	return root, true
}

// scanner is a position in a text. Once bad is set nothing else counts.
type scanner struct {
	set     *Set
	id      uint16
	text    string
	i       int      // the next byte
	line    int      // the first byte of the line that i is on
	lines   []uint32 // where each line begins
	bad     bool
	anchors map[string]*Node // complete ones only: nil while the node is read
}

func (s *scanner) fail() { s.bad = true }

func (s *scanner) end() bool { return s.i >= len(s.text) }

func (s *scanner) column() int { return s.i - s.line }

// peek returns the byte at offset n from here, 0 past the end.
func (s *scanner) peek(n int) byte {
	if s.i+n < len(s.text) {
		return s.text[s.i+n]
	}
	return 0
}

// blank reports whether the byte at offset n ends a word: a space, a line
// break or the end.
func (s *scanner) blank(n int) bool {
	switch s.peek(n) {
	case ' ', '\n', '\r', 0:
		return true
	}
	return false
}

// plainText reports whether the text has none of the characters that make
// lines, columns or words other than they seem.
func (s *scanner) plainText() bool {
	text := s.text
	for i := 0; i < len(text); {
		c := text[i]
		if c-' ' < 0x7F-' ' || c == '\n' {
			i++
			continue
		}
		if c == '\r' && i+1 < len(text) && text[i+1] == '\n' {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			return false
		}
		r, n := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && n == 1,
			r <= 0x9F, r == '\u2028', r == '\u2029', r == '\uFEFF', r&0xFFFE == 0xFFFE:
			return false
		}
		i += n
	}
	return true
}

// spaces skips spaces.
func (s *scanner) spaces() {
	for s.i < len(s.text) && s.text[s.i] == ' ' {
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
			s.fail() // a comment needs a space before it
			return
		}
		s.nextLine(false)
	default:
		s.fail()
	}
}

// nextLine skips the rest of the line, and lines that are empty or hold only
// a comment, to the next content. With first set the line that i is on counts
// as one of those.
func (s *scanner) nextLine(first bool) {
	for {
		if !first {
			nl := strings.IndexByte(s.text[s.i:], '\n')
			if nl < 0 {
				s.i = len(s.text)
				return
			}
			s.i += nl + 1
			s.line = s.i
			s.lines = append(s.lines, uint32(s.i))
		}
		first = false
		s.spaces()
		switch s.peek(0) {
		case '\n', '\r', '#':
			continue
		case 0:
			return
		case '%', '.', '-':
			// Directives and the marks between documents. The first of the
			// marks is scan's to take.
			if s.column() == 0 && (s.peek(0) == '%' || s.mark() && !s.atStart()) {
				s.fail()
			}
		}
		return
	}
}

// mark reports whether --- or ... stands here.
func (s *scanner) mark() bool {
	rest := s.text[s.i:]
	return (strings.HasPrefix(rest, "---") || strings.HasPrefix(rest, "...")) && s.blank(3)
}

// atStart reports whether --- stands here with nothing but comments before it.
func (s *scanner) atStart() bool {
	if s.peek(0) != '-' {
		return false
	}
	for _, line := range strings.Split(s.text[:s.line], "\n") {
		line = strings.TrimLeft(line, " \r")
		if line != "" && line[0] != '#' {
			return false
		}
	}
	return true
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

// value reads what belongs to a key or to the mark of a list item, which end
// here. parent is the column of that key or mark. indentless: a list may stand
// at that same column. compact: a map or list may begin on this line.
// Afterwards the scanner stands at the first content of a later line.
func (s *scanner) value(parent int, indentless, compact bool, depth int) *Node {
	if s.bad || depth > maxDepth {
		s.fail()
		return nil
	}
	start := s.i
	s.spaces()
	off, anchor := s.i, ""
	if s.peek(0) == '&' {
		if anchor = s.name(); s.bad {
			return nil
		}
		s.spaces()
		compact = false // an anchor before a key would be the key's
	}
	switch s.peek(0) {
	case '\n', '\r', 0, '#':
		if s.peek(0) == '#' && s.text[s.i-1] != ' ' {
			s.fail()
			return nil
		}
		s.nextLine(false)
		col := s.column()
		switch {
		case s.bad:
			return nil
		case s.end(), col < parent, col == parent && !(indentless && s.dash()):
			if anchor != "" {
				s.fail()
			}
			return s.set.node(Scalar, s.id, start) // nothing: null
		case s.dash():
			if anchor != "" && col == parent {
				s.fail()
				return nil
			}
			return s.anchored(s.list(col, depth+1), off, anchor)
		}
		if anchor != "" && !s.keyAhead() {
			s.fail()
			return nil
		}
		return s.anchored(s.inline(parent, true, depth+1, s.i, ""), off, anchor)
	case '-':
		if s.dash() {
			if !compact {
				s.fail()
				return nil
			}
			return s.list(s.column(), depth+1)
		}
	}
	return s.inline(parent, compact, depth+1, off, anchor)
}

// keyAhead reports whether the line that begins here looks like a map.
func (s *scanner) keyAhead() bool {
	line, _, _ := strings.Cut(s.text[s.i:], "\n")
	switch line[0] {
	case '&', '*', '[', '{', '!', '|', '>':
		return false
	}
	return strings.Contains(line, ": ") || strings.HasSuffix(strings.TrimRight(line, " \r"), ":")
}

// inline reads a node that begins on this line: a flow collection, an alias, a
// scalar, or, with mapOK, a map whose first key stands here.
func (s *scanner) inline(parent int, mapOK bool, depth, off int, anchor string) *Node {
	if s.bad || depth > maxDepth {
		s.fail()
		return nil
	}
	col := s.column()
	var n *Node
	switch s.peek(0) {
	case '*':
		n = s.alias()
		if anchor != "" {
			s.fail()
		}
	case '[', '{':
		n = s.flow(depth)
	default:
		n = s.scalar(false)
		if !s.bad && s.peek(0) == ':' && s.blank(1) {
			if !mapOK || anchor != "" {
				s.fail()
				return nil
			}
			return s.blockMap(col, n, depth)
		}
	}
	if s.bad {
		return nil
	}
	s.endLine()
	if !s.end() && s.column() > parent {
		s.fail() // a scalar that goes on, or something that does not belong here
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
		if s.column() > col {
			s.fail()
			return nil
		}
		switch s.peek(0) {
		case '*', '[', '{':
			s.fail()
			return nil
		}
		key = s.scalar(false)
		if s.bad || s.peek(0) != ':' || !s.blank(1) {
			s.fail()
			return nil
		}
	}
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

// maxKey is the longest scalar that is taken for a key. YAML has 1024
// characters; what comes near is left to the library.
const maxKey = 512

// scalar reads a scalar on one line, up to its end or a colon.
func (s *scanner) scalar(flow bool) *Node {
	start := s.i
	c := s.peek(0)
	var n *Node
	switch c {
	case '"', '\'':
		n = s.quoted(c)
	case '-', '?', ':':
		d := s.peek(1)
		if d < '-' || d > 'z' || d == ':' || d == '?' || d == '[' || d == ']' {
			s.fail()
			return nil
		}
		n = s.plain(flow)
	case '&', '*', '!', '|', '>', '%', '@', '`', ',', '[', ']', '{', '}', '#', 0, '\n', '\r', ' ':
		s.fail()
		return nil
	default:
		n = s.plain(flow)
	}
	if !s.bad && s.peek(0) == ':' && s.i-start > maxKey {
		s.fail()
	}
	return n
}

// ordinary are the bytes that mean nothing special anywhere in a plain scalar.
var ordinary = func() (is [256]bool) {
	for c := range is {
		is[c] = c > ' ' && strings.IndexByte("#:,[]{}", byte(c)) < 0
	}
	return is
}()

// plain reads a scalar without quotes.
func (s *scanner) plain(flow bool) *Node {
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
		case ' ':
			continue
		case 0, '\n', '\r':
			s.i = i
		case '#':
			if end == i {
				end = i + 1
				continue
			}
			s.i = i
		case ':':
			s.i = i
			if !s.blank(1) {
				if flow && strings.IndexByte(",[]{}?", s.peek(1)) >= 0 {
					s.fail()
					return nil
				}
				end = i + 1
				continue
			}
			if end != i {
				s.fail() // a space before the colon
				return nil
			}
		case ',', '[', ']', '{', '}':
			if !flow {
				end = i + 1
				continue
			}
			s.i = i
		default:
			end = i + 1
			continue
		}
		break
	}
	if s.peek(0) != ':' {
		s.i = end
	}
	n := s.set.node(Scalar, s.id, start)
	n.Text = s.text[start:end]
	return n
}

// quoted reads a scalar in quotes that ends on this line.
func (s *scanner) quoted(quote byte) *Node {
	n := s.set.node(Scalar, s.id, s.i)
	n.form = uint8(SingleQuoted)
	if quote == '"' {
		n.form = uint8(DoubleQuoted)
	}
	s.i++
	start := s.i
	var out []byte // what the text means, once that is not what stands there
	escaped := false
	for ; ; s.i++ {
		c := s.peek(0)
		switch {
		case c == 0, c == '\n', c == '\r':
			s.fail()
			return nil
		case c == '\'' && quote == '\'' && s.peek(1) == '\'':
			if !escaped {
				out = append(out, s.text[start:s.i]...)
				escaped = true
			}
			s.i++
		case c == quote:
			n.Text = s.text[start:s.i]
			if escaped {
				n.Text = string(out)
			}
			s.i++
			return n
		case c == '\\' && quote == '"':
			if !escaped {
				out = append(out, s.text[start:s.i]...)
				escaped = true
			}
			s.i++
			switch s.peek(0) {
			case '"', '\\', '/':
				c = s.peek(0)
			case 'n':
				c = '\n'
			case 't':
				c = '\t'
			case 'r':
				c = '\r'
			default:
				s.fail()
				return nil
			}
		}
		if escaped {
			out = append(out, c)
		}
	}
}

// name reads the name of an anchor or alias, with its mark.
func (s *scanner) name() string {
	s.i++
	start := s.i
	for !s.end() {
		c := s.text[s.i]
		if c != '_' && c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			break
		}
		s.i++
	}
	name := s.text[start:s.i]
	if name == "" || s.text[start-1] == '&' && !s.blank(0) {
		s.fail()
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
	n.first = s.anchors[s.name()]
	if n.first == nil {
		s.fail()
	}
	return n
}

// gap skips spaces, comments and line breaks inside of a flow collection. It
// reports whether it came to another line.
func (s *scanner) gap() bool {
	from, line := s.i, s.line
	s.spaces()
	switch s.peek(0) {
	case '#':
		if s.i == from {
			s.fail()
			return false
		}
		s.nextLine(false)
	case '\n', '\r':
		s.nextLine(false)
	}
	if s.line != line && !s.end() && s.column() == 0 {
		s.fail() // allowed only in part, and only at the outermost level
	}
	return s.line != line
}

// flow reads a list in brackets or a map in braces.
func (s *scanner) flow(depth int) *Node {
	if s.bad || depth > maxDepth {
		s.fail()
		return nil
	}
	kind, closing := Map, byte('}')
	if s.peek(0) == '[' {
		kind, closing = List, ']'
	}
	n := s.set.node(kind, s.id, s.i)
	tail := &n.first
	s.i++
	for {
		s.gap()
		if s.bad {
			return nil
		}
		if s.peek(0) == closing {
			s.i++
			return n
		}
		if kind == Map {
			key := s.scalar(true)
			if s.bad {
				return nil
			}
			key.next = s.flowValue(key, depth)
			if s.bad {
				return nil
			}
			*tail, tail = key, &key.next.next
		} else {
			item := s.flowNode(depth)
			if s.bad {
				return nil
			}
			*tail, tail = item, &item.next
		}
		s.gap()
		if s.bad {
			return nil
		}
		switch s.peek(0) {
		case ',':
			s.i++
		case closing:
		default:
			s.fail()
			return nil
		}
	}
}

// flowValue reads what follows a key in braces: a colon and a value, or
// nothing.
func (s *scanner) flowValue(key *Node, depth int) *Node {
	if key.Style() != Plain {
		s.spaces()
	}
	if s.peek(0) == ':' && (s.blank(1) || key.Style() != Plain) {
		s.i++
		s.gap()
	} else if s.gap(); s.peek(0) != ',' && s.peek(0) != '}' {
		s.fail()
	}
	if s.bad {
		return nil
	}
	if c := s.peek(0); c == ',' || c == '}' {
		return s.set.node(Scalar, s.id, s.i)
	}
	return s.flowNode(depth)
}

// flowNode reads a value inside of a flow collection.
func (s *scanner) flowNode(depth int) *Node {
	off, anchor := s.i, ""
	if s.peek(0) == '&' {
		anchor = s.name()
		if s.bad {
			return nil
		}
		s.spaces()
	}
	var n *Node
	switch s.peek(0) {
	case '*':
		n = s.alias()
		if anchor != "" {
			s.fail()
		}
	case '[', '{':
		n = s.flow(depth + 1)
	default:
		n = s.scalar(true)
	}
	if s.bad {
		return nil
	}
	return s.anchored(n, off, anchor)
}
