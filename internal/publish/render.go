package publish

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"fieldgate/internal/clock"
	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
)

// form is how a rule's messages look: the rule with all decisions about its
// payload taken.
type form struct {
	rule    config.Rule
	tmpl    template
	dynamic bool // {Value} is in the topic
	quality bool // fields
	seq     bool
	device  bool
	point   bool
	tags    bool

	byUnit map[string]*text // of JSON payloads that say nothing else of a point
}

func newForm(rule config.Rule, tmpl template) *form {
	has := func(f config.Field) bool { return slices.Contains(rule.Fields, f) }
	return &form{
		rule: rule, tmpl: tmpl, dynamic: tmpl.has(phValue),
		quality: has(config.FieldQuality), seq: has(config.FieldSeq),
		device: has(config.FieldDevice), point: has(config.FieldPoint), tags: has(config.FieldTags),
		byUnit: make(map[string]*text),
	}
}

func (f *form) batch() bool { return f.rule.Payload == config.Batch }

// fieldsFault says which of the rule's fields its payload has no place for, ""
// if none.
func fieldsFault(rule config.Rule) string {
	for _, f := range rule.Fields {
		switch rule.Payload {
		case config.Raw:
			return fmt.Sprintf("payload raw is the bare value and has no place for %q; set payload: json", f)
		case config.Full:
			return fmt.Sprintf("payload full has fixed members and no place for %q; set payload: json", f)
		case config.Batch:
			if f != config.FieldQuality && f != config.FieldSeq {
				return fmt.Sprintf("payload batch takes the fields quality and seq, not %q, which differs from point to point; put it into the topic", f)
			}
		}
	}
	return ""
}

// text returns what a payload of this form says of a point at all times. The
// keys of a batch come later, by keys: they depend on who else is in it.
func (f *form) text(p place) *text {
	switch f.rule.Payload {
	case config.JSON:
		return f.jsonText(p)
	case config.Full:
		return &text{head: fullHead(p)}
	}
	return nil
}

func (f *form) jsonText(p place) *text {
	alike := !f.device && !f.point && !f.tags
	if t := f.byUnit[p.point.Unit]; alike && t != nil {
		return t
	}
	t := &text{tail: "}"}
	if p.point.Unit != "" {
		t.head = string(point.AppendJSONString([]byte(`,"unit":`), p.point.Unit))
	}
	if alike {
		f.byUnit[p.point.Unit] = t
	} else {
		t.tail = f.jsonTail(p)
	}
	return t
}

// jsonTail returns the members of a JSON payload that follow its counters.
func (f *form) jsonTail(p place) string {
	var b []byte
	if f.device {
		b = point.AppendJSONString(append(b, `,"device":`...), p.point.ID.Device())
	}
	if f.point {
		b = point.AppendJSONString(append(b, `,"point":`...), p.point.ID.Name())
	}
	if f.tags {
		tags := maps.Clone(p.site.Tags)
		if tags == nil {
			tags = make(map[string]string)
		}
		maps.Copy(tags, p.point.Tags)
		for i, k := range slices.Sorted(maps.Keys(tags)) {
			if i == 0 {
				b = append(b, `,"tags":{`...)
			} else {
				b = append(b, ',')
			}
			b = append(point.AppendJSONString(b, k), ':')
			b = point.AppendJSONString(b, tags[k])
		}
		if len(tags) > 0 {
			b = append(b, '}')
		}
	}
	return string(append(b, '}'))
}

// fullHead returns a full payload up to the value. Its members are spelt as
// Modbus Monitor XPF spells them, so that what reads XPF's records reads ours:
// the address in six digits and counted from one, the value as a string, the
// type and the order by XPF's words.
func fullHead(p place) string {
	b := point.AppendJSONString([]byte(`{"RegName":`), p.point.ID.Name())
	if p.virtual() {
		b = append(b, `,"RegAddress":null,"RegUnitID":null`...)
	} else {
		b = append(b, `,"RegAddress":`...)
		b = strconv.AppendUint(b, uint64(sixDigits(p.point.Table, p.point.Address)), 10)
		b = append(b, `,"RegUnitID":`...)
		b = strconv.AppendUint(b, uint64(p.device.Unit), 10)
	}
	gain := p.point.Scale
	if gain.IsZero() {
		gain = point.Decimal{Mant: 1}
	}
	b = gain.AppendText(append(b, `,"RegGain":`...))
	b = p.point.Offset.AppendText(append(b, `,"RegOffset":`...))
	b = point.AppendJSONString(append(b, `,"RegType":`...), xpfType(p.point))
	b = point.AppendJSONString(append(b, `,"RegByteSwap":`...), xpfOrder(p.point.Order))
	return string(append(b, `,"RegValue":`...))
}

// xpfType returns XPF's word for the point's type; a type that XPF does not
// have keeps our own, in capitals.
func xpfType(p *point.Point) string {
	switch p.Type {
	case point.Bool:
		return "BIT"
	case point.Float64:
		return "DOUBLE64"
	case point.Bytes:
		return "HEX"
	}
	name, _, _ := strings.Cut(p.TypeName(), "(")
	return strings.ToUpper(name)
}

// xpfOrder returns XPF's word for an order of bytes.
func xpfOrder(o point.Order) string {
	switch o {
	case point.DCBA:
		return "DCBA_LE"
	case point.CDAB:
		return "CDAB_LEBS"
	case point.BADC:
		return "BADC_BEBS"
	}
	return "ABCD_BE"
}

// keys gives the members of a batch their keys: the name of the point where the
// topic names the device, else device.point.
func (f *form) keys(t *Topic) {
	if !f.batch() {
		return
	}
	short := f.tmpl.has(phDevice)
	for _, m := range t.members {
		// Two devices may differ only in what a topic cannot hold.
		short = short && m.id.Device() == t.members[0].id.Device()
	}
	texts := make([]text, len(t.members))
	for i := range t.members {
		m := &t.members[i]
		key := string(m.id)
		if short && !reserved(m.id) {
			key = m.id.Name()
		}
		texts[i].head = string(append(point.AppendJSONString([]byte{','}, key), ':'))
		m.text = &texts[i]
	}
}

// reserved reports whether a point's name is a key that a batch may have
// itself, or one that stands in for such a name: where seq has to be
// boiler.seq, a point boiler.boiler.seq has to keep its full name too.
func reserved(id point.ID) bool {
	name := id.Name()
	for prefix := id.Device() + "."; strings.HasPrefix(name, prefix); {
		name = name[len(prefix):]
	}
	return name == "timestamp" || name == "time" || name == "quality" || name == "seq"
}

// Render returns the message that says the samples, of points of t, on t; seq
// is the message's number, for payloads that carry it. It is pure. ok is false
// when there is nothing to say: no sample is of a point of t, or all are Bad
// and the rule does not publish those. A topic that is no batch says the first
// sample.
func (t *Topic) Render(seq uint64, samples ...point.Sample) (msg mqtt.Message, ok bool) {
	var picks []pick
	for i := range samples {
		s := &samples[i]
		if s.Quality == point.Bad && !t.form.rule.BadNull {
			continue
		}
		for j := range t.members {
			if t.members[j].id == s.ID {
				r := new(reading)
				r.take(s, time.Time{})
				picks = append(picks, pick{t.members[j].text, r})
			}
		}
	}
	if len(picks) == 0 {
		return mqtt.Message{}, false
	}
	var c teller
	return mqtt.Message{
		Topic:   t.form.topic(t.Name, picks[0].reading),
		Payload: t.form.append(nil, &c, seq, picks),
		QoS:     t.form.rule.QoS,
		Retain:  t.form.rule.Retain,
	}, true
}

// topic returns the topic of a message that says r on the topic of this name.
func (f *form) topic(name string, r *reading) string {
	if !f.dynamic {
		return name
	}
	return nameWithValue(name, r.value)
}

// pick is a reading chosen for a message.
type pick struct {
	text    *text
	reading *reading
}

// append appends the payload that says picks, of which there is at least one.
func (f *form) append(dst []byte, c *teller, seq uint64, picks []pick) []byte {
	t, r := picks[0].text, picks[0].reading
	v := r.value
	switch f.rule.Payload {
	case config.Batch:
		return f.appendBatch(dst, c, seq, picks)
	case config.Raw:
		if v.IsZero() {
			return append(dst, "null"...)
		}
		return v.AppendText(dst)
	case config.Full:
		dst = append(dst, t.head...)
		switch _, text := v.Text(); {
		case v.IsZero():
			dst = append(dst, "null"...)
		case text:
			dst = v.AppendJSON(dst)
		default:
			dst = append(v.AppendText(append(dst, '"')), '"')
		}
		dst = append(dst, `,"OneBased":true,"HasError":`...)
		dst = strconv.AppendBool(dst, r.quality == point.Bad)
		return append(dst, '}')
	}
	dst = v.AppendJSON(append(dst, `{"value":`...))
	dst = c.append(append(dst, `,"timestamp":"`...), c.told(r))
	dst = append(dst, t.head...)
	if f.quality || r.quality == point.Bad {
		dst = append(dst, `,"quality":"`...)
		dst = append(dst, r.quality.String()...)
		dst = append(dst, '"')
	}
	if f.seq {
		dst = strconv.AppendUint(append(dst, `,"seq":`...), seq, 10)
	}
	return append(dst, t.tail...)
}

// appendBatch appends one object with all picks. Its time is that of the newest.
func (f *form) appendBatch(dst []byte, c *teller, seq uint64, picks []pick) []byte {
	newest := c.told(picks[0].reading)
	doubtful := false
	for i := range picks {
		r := picks[i].reading
		if at := c.told(r); at.ms > newest.ms {
			newest = at
		}
		doubtful = doubtful || r.quality == point.Bad || f.quality && r.quality != point.Good
	}
	dst = c.append(append(dst, `{"timestamp":"`...), newest)
	for i := range picks {
		dst = append(dst, picks[i].text.head...)
		dst = picks[i].reading.value.AppendJSON(dst)
	}
	if doubtful {
		dst = f.appendDoubts(dst, picks)
	}
	if f.seq {
		dst = strconv.AppendUint(append(dst, `,"seq":`...), seq, 10)
	}
	return append(dst, '}')
}

// appendDoubts appends the quality of the picks of a batch that have to state
// it: of all Bad ones, and with the field quality of the Uncertain ones.
func (f *form) appendDoubts(dst []byte, picks []pick) []byte {
	dst = append(dst, `,"quality":{`...)
	first := true
	for i := range picks {
		q := picks[i].reading.quality
		if q == point.Good || q == point.Uncertain && !f.quality {
			continue
		}
		head := picks[i].text.head // ,"key":
		if first {
			head, first = head[1:], false
		}
		dst = append(dst, head...)
		dst = append(dst, '"')
		dst = append(dst, q.String()...)
		dst = append(dst, '"')
	}
	return append(dst, '}')
}

// teller writes times and remembers the text of the last second: samples that
// are published together mostly were read together. The zero value tells what
// has its own time of day.
type teller struct {
	zero  int64 // time of day at moment 0, in ns since 1970
	unset bool  // nobody knows how wrong that is
	stamp int   // where the last time was written, if that was while unset; else 0

	second int64
	text   []byte // 2025-11-05T14:30:15.
}

// told is a time of day as it is known now.
type told struct {
	ms    int64 // since 1970
	unset bool
}

func (c *teller) told(r *reading) told {
	if r.own {
		return told{ms: r.at}
	}
	ns := c.zero + r.at
	ms := ns / int64(time.Millisecond)
	if ns < 0 && ms*int64(time.Millisecond) != ns { // before 1970
		ms--
	}
	return told{ms, c.unset}
}

// append appends a time in UTC with milliseconds, and the quotation mark that
// ends it: 2025-11-05T14:30:15.123Z". What was told by a clock that was not set
// says so after it.
func (c *teller) append(dst []byte, t told) []byte {
	c.stamp = 0
	if t.unset {
		c.stamp = len(dst)
	}
	sec, ms := t.ms/1000, t.ms%1000
	if ms < 0 { // before 1970
		sec, ms = sec-1, ms+1000
	}
	if sec != c.second || c.text == nil {
		c.second = sec
		c.text = time.Unix(c.second, 0).UTC().AppendFormat(c.text[:0], "2006-01-02T15:04:05.")
	}
	dst = append(dst, c.text...)
	dst = append(dst, byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10), 'Z', '"')
	if t.unset {
		dst = append(dst, clock.Unsynced...)
	}
	return dst
}
