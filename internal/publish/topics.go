package publish

import (
	"fmt"
	"slices"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
)

// Topic is one topic that one rule publishes on, and the points it says there:
// a single one, or with payload batch all that share the topic. Topics makes
// them; they do not change.
type Topic struct {
	Rule int    // index of the rule
	Name string // "{Value}" is still in it where the value is part of the topic

	form    *form
	members []member
	same    int32 // the topic before this one with the same name, -1: none
	newest  int32 // match of the point that joined last, while Topics is at work
}

// member is a point on a topic.
type member struct {
	id    point.ID
	index int32 // of the point among all points of the devices, in order
	text  *text
}

// text is what never changes of a point's part of a payload. Points that are
// worded alike share one; a bare value has none.
type text struct {
	head string // what stands before the value
	tail string // what stands after it, timestamp and counters apart
}

// Points returns the points of the topic, in the order of the configuration.
func (t *Topic) Points() []point.ID {
	ids := make([]point.ID, len(t.members))
	for i := range t.members {
		ids[i] = t.members[i].id
	}
	return ids
}

// Fault is something wrong with a rule that shows only where it meets the
// points: two points on one topic, a tag that a point lacks, a pattern that
// finds nothing.
type Fault struct {
	Rule    int    // index of the rule
	Key     string // of the rule: points, topic, fields
	Text    string // what is wrong; what to write
	Warning bool   // the rule works all the same

	// The first two points that meet, where two points meet on one topic.
	// OtherRule is the rule of the first one, often the same rule.
	Points    [2]point.ID
	OtherRule int
}

// Error implements error: publish[0].topic: what is wrong; what to write.
func (f Fault) Error() string { return fmt.Sprintf("publish[%d].%s: %s", f.Rule, f.Key, f.Text) }

// Topics lays out every topic that the rules come to, in the order of rules and
// points, and says what is wrong with them. It is pure. A point whose topic is
// at fault is left out of that rule; the rest stands. A rule has at most one
// fault of each sort; its text counts the others.
func Topics(site config.Site, rules []config.Rule, devices []config.Device) ([]Topic, []Fault) {
	points := 0
	for i := range devices {
		points += len(devices[i].Points)
	}
	l := layout{site: site, devices: devices}
	for i := range rules {
		l.matches = slices.Grow(l.matches, points)
		topics := points
		if rules[i].Payload == config.Batch {
			topics = len(devices)
		}
		l.topics = slices.Grow(l.topics, topics)
		if l.names == nil {
			l.names = make(map[string]int32, topics)
		}
		l.rule(i, rules[i])
	}
	return l.finish(), l.faults
}

// layout is the work of Topics.
type layout struct {
	site    config.Site
	devices []config.Device
	topics  []Topic
	matches []match          // points on topics, in the order of rules and points
	names   map[string]int32 // newest topic of each name
	faults  []Fault
	buf     []byte
}

// match is a point that goes on a topic.
type match struct {
	topic  int32
	index  int32 // of the point among all points
	device int32
	point  int32
	older  int32 // match of the point that joined the topic before, -1: none
}

// tally is one sort of fault of one rule: the first of it and how many more.
type tally struct {
	fault Fault
	more  int
}

func (t *tally) add(f Fault) {
	if t.fault.Text == "" {
		t.fault = f
		return
	}
	t.more++
}

// list appends the fault, if any, to faults.
func (t *tally) list(faults *[]Fault, more string) {
	if t.fault.Text == "" {
		return
	}
	if t.more > 0 {
		t.fault.Text += fmt.Sprintf(" (and %d more %s)", t.more, more)
	}
	*faults = append(*faults, t.fault)
}

// rule lays out the topics of one rule.
func (l *layout) rule(r int, cfg config.Rule) {
	fault := func(key, format string, args ...any) Fault {
		return Fault{Rule: r, Key: key, Text: fmt.Sprintf(format, args...)}
	}
	if f := fieldsFault(cfg); f != "" {
		l.faults = append(l.faults, fault("fields", "%s", f))
	}
	tmpl, err := parseTemplate(cfg.Topic)
	if err != nil {
		l.faults = append(l.faults, fault("topic", "%v", err))
		return
	}
	if cfg.Payload == config.Batch && tmpl.has(phValue) {
		l.faults = append(l.faults, fault("topic", "%s cannot be part of a batch's topic, which has many values; take it out", valueMark))
		return
	}
	form := newForm(cfg, tmpl)

	globs := make([]point.Glob, len(cfg.Points))
	found := make([]bool, len(globs))
	for i, p := range cfg.Points {
		globs[i] = point.ParseGlob(p)
	}
	var collisions, lacking, invalid tally
	index := int32(-1)
	for d := range l.devices {
		dev := &l.devices[d]
		for i := range dev.Points {
			index++
			p := &dev.Points[i]
			if !matches(globs, found, p.ID) {
				continue
			}
			name, first, err := l.name(tmpl, place{&l.site, dev, p})
			if err != nil {
				lacking.add(fault("topic", "%v", err))
				continue
			}
			if err := mqtt.ValidTopic(name); err != nil {
				invalid.add(fault("topic", "%v", err))
				continue
			}
			m := match{index: index, device: int32(d), point: int32(i)}
			if other, rule, clash := l.join(r, name, first, form, m); clash {
				f := fault("topic", "%s", collisionText(other, rule, p.ID, r, name))
				f.Points, f.OtherRule = [2]point.ID{other, p.ID}, rule
				collisions.add(f)
			}
		}
	}
	collisions.list(&l.faults, "points share a topic")
	lacking.list(&l.faults, "points likewise")
	invalid.list(&l.faults, "points likewise")
	for i, g := range globs {
		if !found[i] && g.String() != "*" {
			f := fault("points", "%q fits no point; \"fieldgate check -v\" lists them", g.String())
			f.Warning = true
			l.faults = append(l.faults, f)
		}
	}
}

// matches reports whether one of the globs fits, and notes in found each that does.
func matches(globs []point.Glob, found []bool, id point.ID) bool {
	one := false
	for i, g := range globs {
		if g.Match(id) {
			found[i], one = true, true
		}
	}
	return one
}

func collisionText(a point.ID, ruleA int, b point.ID, ruleB int, name string) string {
	if ruleA != ruleB {
		return fmt.Sprintf("%s of publish[%d] and %s of this rule would both be published on %q; tell them apart by {device} and {point}, or give both rules payload: batch", a, ruleA, b, name)
	}
	return fmt.Sprintf("%s and %s would both be published on %q; tell them apart by {device} and {point}, or set payload: batch", a, b, name)
}

// name returns the topic of a point, and the newest one laid out that has the
// same name, -1 if none has.
func (l *layout) name(t template, p place) (name string, newest int32, err error) {
	b, err := t.expand(l.buf[:0], p)
	l.buf = b
	if err != nil {
		return "", -1, err
	}
	if i, ok := l.names[string(b)]; ok {
		return l.topics[i].Name, i, nil
	}
	return string(b), -1, nil
}

// join puts a point on a topic of rule r, whose name is that of the topic first
// and those before it, or returns the point, and the rule, whose messages it
// would be mixed up with. Rules that share no destination cannot collide;
// batches may share a topic with each other; and a point may be published on one
// topic by several rules.
func (l *layout) join(r int, name string, first int32, f *form, m match) (other point.ID, rule int, clash bool) {
	m.topic, m.older = -1, -1
	for i := first; i >= 0; i = l.topics[i].same {
		t := &l.topics[i]
		if t.Rule == r {
			m.topic, m.older = i, t.newest
		}
		if f.batch() && t.form.batch() || t.Rule != r && !shareSink(f.rule.To, t.form.rule.To) {
			continue
		}
		// One of the two is no batch, so every point must be this one.
		for j := t.newest; j >= 0; j = l.matches[j].older {
			if id := l.id(l.matches[j]); id != l.id(m) {
				return id, t.Rule, true
			}
		}
	}
	if m.topic < 0 {
		m.topic = int32(len(l.topics))
		l.topics = append(l.topics, Topic{Rule: r, Name: name, form: f, same: first})
		l.names[name] = m.topic
	}
	l.topics[m.topic].newest = int32(len(l.matches))
	l.matches = append(l.matches, m)
	return "", 0, false
}

// id returns the point of a match.
func (l *layout) id(m match) point.ID { return l.devices[m.device].Points[m.point].ID }

// shareSink reports whether a message of both rules may reach one destination.
func shareSink(a, b []string) bool {
	if a == nil || b == nil {
		return true
	}
	return slices.ContainsFunc(a, func(name string) bool { return slices.Contains(b, name) })
}

// finish gives each topic its members.
func (l *layout) finish() []Topic {
	count := make([]int, len(l.topics))
	for _, m := range l.matches {
		count[m.topic]++
	}
	slab := make([]member, len(l.matches))
	for i := range l.topics {
		l.topics[i].members, slab = slab[:0:count[i]], slab[count[i]:]
	}
	for _, m := range l.matches {
		t := &l.topics[m.topic]
		dev := &l.devices[m.device]
		p := place{&l.site, dev, &dev.Points[m.point]}
		t.members = append(t.members, member{p.point.ID, m.index, t.form.text(p)})
	}
	for i := range l.topics {
		l.topics[i].form.keys(&l.topics[i])
	}
	return l.topics
}
