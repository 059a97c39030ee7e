package publish

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
)

// placeholder is what may stand in braces in a rule's topic.
type placeholder uint8

const (
	literal placeholder = iota
	phSite
	phBus
	phDevice
	phPoint
	phUnit
	phType
	phAddress
	phTag
	phValue
)

// placeholders holds every spelling but {tag.X}, in the order of SPEC. The
// short ones of the second line are those of older products; UnitID and Name
// mean the same as unit and point.
var placeholders = []struct {
	name string
	is   placeholder
}{
	{"site", phSite}, {"bus", phBus}, {"device", phDevice}, {"point", phPoint}, {"unit", phUnit}, {"type", phType},
	{"UnitID", phUnit}, {"Address", phAddress}, {"Name", phPoint}, {"Value", phValue},
}

const tagPrefix = "tag."

// template is a rule's topic taken apart.
type template []segment

// segment is literal text, a placeholder, or {tag.text}.
type segment struct {
	is   placeholder
	text string
}

// parseTemplate takes a topic apart. All that is wrong with its braces is in
// the error.
func parseTemplate(topic string) (template, error) {
	var t template
	for rest := topic; rest != ""; {
		i := strings.IndexAny(rest, "{}")
		if i < 0 {
			return append(t, segment{text: rest}), nil
		}
		if rest[i] == '}' {
			return nil, fmt.Errorf(`"}" without a "{" before it`)
		}
		if i > 0 {
			t = append(t, segment{text: rest[:i]})
		}
		name, after, ok := strings.Cut(rest[i+1:], "}")
		if !ok {
			return nil, fmt.Errorf(`%q lacks its "}"`, rest[i:])
		}
		seg, err := parsePlaceholder(name)
		if err != nil {
			return nil, err
		}
		t = append(t, seg)
		rest = after
	}
	return t, nil
}

func parsePlaceholder(name string) (segment, error) {
	for _, p := range placeholders {
		if p.name == name {
			return segment{is: p.is}, nil
		}
	}
	if tag, ok := strings.CutPrefix(name, tagPrefix); ok && tag != "" {
		return segment{phTag, tag}, nil
	}
	known := make([]string, len(placeholders), len(placeholders)+1)
	for i, p := range placeholders {
		known[i] = "{" + p.name + "}"
	}
	known = append(known, "{tag.NAME}")
	for _, p := range placeholders {
		if strings.EqualFold(p.name, name) {
			return segment{}, fmt.Errorf("{%s} is not a placeholder; write {%s}", name, p.name)
		}
	}
	return segment{}, fmt.Errorf("{%s} is not a placeholder; known: %s", name, strings.Join(known, " "))
}

// has reports whether the placeholder stands in the template.
func (t template) has(is placeholder) bool {
	return slices.ContainsFunc(t, func(s segment) bool { return s.is == is })
}

// place is a point and all that a topic or payload may say of where it is.
type place struct {
	site   *config.Site
	device *config.Device
	point  *point.Point
}

// virtual reports whether the point lives in memory, without an address.
func (p place) virtual() bool { return p.point.Table == 0 }

// tag returns the point's tag, or the site's.
func (p place) tag(name string) (string, bool) {
	if v, ok := p.point.Tags[name]; ok {
		return v, true
	}
	v, ok := p.site.Tags[name]
	return v, ok
}

// expand appends the topic of a point to dst; {Value} stays as it is written.
func (t template) expand(dst []byte, p place) ([]byte, error) {
	for _, s := range t {
		switch s.is {
		case literal:
			dst = append(dst, s.text...)
		case phSite:
			dst = append(dst, mqtt.CleanSegment(p.site.ID)...)
		case phBus:
			if p.device.Bus == "" {
				return dst, fmt.Errorf("%s has no {bus}: its device is virtual", p.point.ID)
			}
			dst = append(dst, mqtt.CleanSegment(p.device.Bus)...)
		case phDevice:
			dst = append(dst, mqtt.CleanSegment(p.point.ID.Device())...)
		case phPoint:
			dst = append(dst, mqtt.CleanSegment(p.point.ID.Name())...)
		case phType:
			dst = append(dst, p.point.TypeName()...)
		case phUnit:
			if p.device.Bus == "" {
				return dst, fmt.Errorf("%s has no unit id: its device is virtual", p.point.ID)
			}
			dst = strconv.AppendUint(dst, uint64(p.device.Unit), 10)
		case phAddress:
			if p.virtual() {
				return dst, fmt.Errorf("%s has no {Address}: its device is virtual", p.point.ID)
			}
			dst = append(dst, point.Modicon(p.point.Table, p.point.Address)...)
		case phTag:
			v, ok := p.tag(s.text)
			if !ok {
				return dst, fmt.Errorf("%s has no tag %q, nor has the site; give it one, or take {tag.%s} out", p.point.ID, s.text, s.text)
			}
			dst = append(dst, mqtt.CleanSegment(v)...)
		case phValue:
			dst = append(dst, valueMark...)
		}
	}
	return dst, nil
}

// valueMark stands for the value in a topic that is known but for it.
const valueMark = "{Value}"

// nameWithValue returns the topic for one value. No value stands as null, as in
// payloads, and empty text as "_": a level of its own would be lost in it.
func nameWithValue(name string, v point.Value) string {
	text := "null"
	if !v.IsZero() {
		text = mqtt.CleanSegment(v.String())
	}
	if text == "" {
		text = "_"
	}
	topic := strings.ReplaceAll(name, valueMark, text)
	if strings.HasPrefix(topic, "$") {
		return "_" + topic[1:] // those topics are the broker's own (clause 4.7.2)
	}
	return topic
}

// sixDigits returns the address in the six-digit numbering, which is one number
// for each address of each table: 400001, 300001, 100001, 1.
func sixDigits(t modbus.Table, addr uint16) uint32 {
	n := uint32(addr) + 1
	switch t {
	case modbus.DiscreteInputs:
		n += 100000
	case modbus.InputRegisters:
		n += 300000
	case modbus.HoldingRegisters:
		n += 400000
	}
	return n
}
