package yamltree

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// judge reads a text with the YAML library. refused is what it takes and we do
// not; err why it does not take the text.
func judge(s *Set, name, text string) (root *Node, refused []Error, err error) {
	defer func() {
		if p := recover(); p != nil { // it panics where it meets what it thinks impossible
			root, refused, err = nil, nil, fmt.Errorf("panic: %v", p)
		}
	}()
	src := &source{name: name, text: text}
	id := uint16(len(s.sources))
	s.sources = append(s.sources, src)
	loader, err := yaml.NewLoader(bytes.NewReader([]byte(text)))
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
		c.errs = append(c.errs, Error{src.place(src.offset(second.Line, second.Column)), "a second document"})
	case !errors.Is(err, io.EOF):
		return nil, nil, err
	}
	return root, c.errs, nil
}

// offset is the inverse of place. What lies outside of the text is moved to
// the nearest place inside.
func (src *source) offset(line, col int) int {
	lines := src.lineStarts()
	if line < 1 {
		return 0
	}
	if line > len(lines) {
		return len(src.text)
	}
	off := int(lines[line-1])
	for ; col > 1 && off < len(src.text); col-- {
		_, n := utf8.DecodeRuneInString(src.text[off:])
		off += n
	}
	return off
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
