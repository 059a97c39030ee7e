package point

import "fmt"

// Hold returns v as the point holds it: what a device would show after v was
// written to it, as Decode of Encode, without a look at the write settings. The
// kinds must fit: a number, or text that is one, for numbers; a boolean, 0, 1 or
// their words for a bool; text for texts.
//
// It is for points that live in memory, whose Table may be 0.
func (p *Point) Hold(v Value) (Value, error) {
	switch _, isText := v.Text(); {
	case v.IsZero():
		return Value{}, fmt.Errorf("no value")
	case v.Kind() == KindBool && p.Type != Bool:
		word := "false"
		if v.num != 0 {
			word = "true"
		}
		return Value{}, fmt.Errorf("%s is no %s", word, p.holds())
	case !isText && (p.Type == Bytes || p.Type == Datetime):
		return Value{}, fmt.Errorf("%s is no %s", v, p.holds())
	}
	regs, err := p.encode(v)
	if err != nil {
		return Value{}, err
	}
	return p.Decode(regs)
}

// holds is what a point holds, in a word.
func (p *Point) holds() string {
	switch {
	case p.Map != nil:
		return "text of its map"
	case p.Type == Datetime:
		return "date and time"
	case p.Type == String || p.Type == Bytes:
		return "text"
	}
	return "number"
}
