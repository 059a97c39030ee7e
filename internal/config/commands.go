package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"fieldgate/internal/config/yamltree"
	"fieldgate/internal/point"
)

// This file is the way down: commands, the rules for all of them, and what a
// device or a point does without being asked. Which point a topic means is
// settled here, once, so that nothing is left to be guessed when a message
// comes.

// CommandKind is what the payload of a command's messages is.
type CommandKind uint8

// The kinds of command.
const (
	ValueCommand      CommandKind = iota + 1 // the value of the point, or of each that is listed
	MatchCommand                             // one fixed text that stands for given values
	StructuredCommand                        // an object that says which of the listed points, and the value
	RecipeCommand                            // an object with a value for each of its keys
	ReadCommand                              // anything: the points are read and answered
	EventCommand                             // anything: it goes to the event log
)

// Command is one kind of message that asks for something.
type Command struct {
	Topic  string // as it is written
	Filter string // what to subscribe to: + stands where Topic has a placeholder
	Kind   CommandKind
	Match  string // the payload of a MatchCommand
	Event  string // what an EventCommand is called in the event log

	// Targets are the points, each with the topics on which it is meant. A
	// message on a topic that is none's is for no point. A value goes to every
	// target of its topic; of a wildcard that is always one.
	Targets []Target

	StopOnError bool // a recipe that fails half-way is left as it is; otherwise what was written is restored
	Ack         CommandAck
	From        []string // names of uplinks, Local: who may send it; never empty
	Users       []string // of the embedded broker; nil: any
	Emergency   bool     // neither age, rate nor a full disk hold it up
	Restore     bool     // a retained message is taken too
	NeedID      bool
	MaxAge      time.Duration // a message with an older timestamp is refused; 0: of any age
	Retry       time.Duration // how long a write that did not succeed is tried again; 0: not
	QoS         uint8         // of the subscription
}

// Target is a point that a command writes or reads.
type Target struct {
	Filter string // topics on which it is meant
	Point  point.ID
	Ack    string      // topic of the answer; "": that of the message, with /ack
	Key    string      // of a RecipeCommand
	Value  point.Value // of a MatchCommand
}

// CommandAck says where and how a command is answered.
type CommandAck struct {
	Topic  string // "": that of the message, with /ack; Target.Ack has its placeholders filled in
	Text   string // published, once the read-back agrees, instead of the JSON
	Stages bool   // that the command was accepted is told too
}

// CommandRules hold for all commands.
type CommandRules struct {
	Restore         bool          // retained messages are taken
	MaxAge          time.Duration // of a message with a timestamp; 0: of any age
	DuplicateWindow time.Duration // how long an id is remembered
	NeedID          bool
	LossAfter       time.Duration // how long an uplink is away before it counts as lost
	Lock            point.ID      // while it is on, nothing but emergencies is written; "": there is none
}

// Setting is a value that a device is given whenever it comes back.
type Setting struct {
	Point point.ID
	Value point.Value
}

// commandPlaceholders may stand in a command's topic and in that of its
// answer, bound to the point that is written.
var commandPlaceholders = []string{"device", "point", "unit", "site", "bus", "type", "tag.NAME", "UnitID", "Address", "Name"}

// pointPlaceholders may stand in the name of a point to write.
var pointPlaceholders = []string{"device", "point"}

type rawCommand struct {
	Command
	at         *node
	write      rawTargets
	match      string
	structured []string
	recipe     []named[string]
	read       []string
	ack        rawAck
	emergency  *bool
	restore    *bool
	needID     *bool
	maxAge     time.Duration // unsetDuration: that of the rules
}

type rawAck struct {
	CommandAck
	at *node
}

// rawTargets is what stands at write: names of points, or names with values.
type rawTargets struct {
	points []string
	values []named[point.Value]
	list   bool // given as a list
}

// rawSetting is an entry of a device's setup.
type rawSetting struct {
	at    place
	point string
	value point.Value
	node  *node
}

func newCommandRules(t *tables) value[CommandRules] {
	return newObject("command_rules", "Rules for all commands.", CommandRules{},
		key("retained", func(c *CommandRules) *bool { return &c.Restore }, retained(), "What becomes of a message that the broker had kept: refuse, or restore: it is taken. Better set it at single commands.").def("refuse"),
		key("max_age", func(c *CommandRules) *time.Duration { return &c.MaxAge }, duration(0, maxWait), "A message with an older timestamp is refused; 0 = of any age.").def("30s").aka("expiry"),
		key("duplicate_window", func(c *CommandRules) *time.Duration { return &c.DuplicateWindow }, duration(time.Second, 30*24*time.Hour), "How long an id is remembered: a second message with it gets the first one's answer and does nothing.").def("10m"),
		key("need_id", func(c *CommandRules) *bool { return &c.NeedID }, boolean(), "Refuse messages without an id.").def("false"),
		key("loss_after", func(c *CommandRules) *time.Duration { return &c.LossAfter }, duration(time.Second, maxWait), "How long an uplink must be away before it counts as lost (on_uplink_loss of a point).").def("30s"),
		key("lock", func(c *CommandRules) *point.ID { return &c.Lock }, lockPoint(), "A point, such as a key switch on an input: while it is on, or cannot be read, every write but an emergency is refused. Default: none.").aka("local_lock", "interlock"),
	).value(t, "command_rules")
}

func newCommand(t *tables) value[rawCommand] {
	ackForm := newObject("ack", "Where and how the command is answered.", rawAck{},
		key("topic", func(a *rawAck) *string { return &a.Topic }, template("a topic", commandPlaceholders, true), "Default: the topic of the command with /ack behind it."),
		key("text", func(a *rawAck) *string { return &a.Text }, anyText("a text"), "Published instead of the JSON, and only once the read-back agrees."),
		key("stages", func(a *rawAck) *bool { return &a.Stages }, boolean(), "Tell also that the command was accepted, before the write.").def("false"),
	).value(t, "ack")
	topic := template("a topic", commandPlaceholders, true)
	ack := value[rawAck]{anyOf(topic.schema, ackForm.schema), func(d *decoder, n *node) (rawAck, bool) {
		if n.Kind == yamltree.Map {
			a, ok := ackForm.read(d, n)
			a.at = n
			return a, ok
		}
		s, ok := topic.read(d, n)
		return rawAck{CommandAck{Topic: s}, n}, ok
	}}
	return newObject("a command", "A message that asks for a write: topic, and one of write, match with write, structured, recipe, read and event.", rawCommand{maxAge: unsetDuration},
		key("topic", func(c *rawCommand) *string { return &c.Topic }, commandTopic(), "Filter of its topics. {device} {point} {unit} and the other placeholders of rules are bound to the point that is written.").must().aka("subscribe", "filter"),
		key("write", func(c *rawCommand) *rawTargets { return &c.write }, writeTargets(), "The point whose value the payload is: device.point, in which {device}, {point} and * take what the topic says; a list of points; or, with match, points with their values.").aka("point", "to", "target"),
		key("match", func(c *rawCommand) *string { return &c.match }, anyText("the payload"), "The payload that stands for the values at write.").aka("payload", "equals"),
		key("structured", func(c *rawCommand) *[]string { return &c.structured }, oneOrList(glob(), "patterns"), "Points that a JSON payload may name: {\"point\": \"boiler.setpoint\", \"value\": 55} or {\"register\": \"40001\", …}.").aka("json"),
		key("recipe", func(c *rawCommand) *[]named[string] { return &c.recipe }, recipe(), "Keys of a JSON payload with the points they are for; all are checked before the first is written."),
		key("read", func(c *rawCommand) *[]string { return &c.read }, oneOrList(glob(), "patterns"), "Points that are read and answered.").aka("get"),
		key("event", func(c *rawCommand) *string { return &c.Event }, eventName(), "The message is written to the event log under this name, and to no point.").aka("log"),
		key("on_error", func(c *rawCommand) *bool { return &c.StopOnError }, enum(word[bool]{"restore", false}, word[bool]{"stop", true}), "What a recipe that fails half-way does: restore what it has written, or stop.").def("restore"),
		key("ack", func(c *rawCommand) *rawAck { return &c.ack }, ack, "Topic of the answer, or {topic, text, stages}. Default: the command's topic with /ack behind it.").aka("reply", "response", "answer"),
		key("from", func(c *rawCommand) *[]string { return &c.From }, oneOrList(text("the name of an uplink, or local"), "names of uplinks, or local"), "Who may send it: names of uplinks; local is the embedded broker. Default: all of them.").aka("uplink", "source"),
		key("users", func(c *rawCommand) *[]string { return &c.Users }, oneOrList(text("a user name"), "user names"), "Users of the embedded broker who may send it. Default: all that may publish there.").aka("user"),
		key("priority", func(c *rawCommand) **bool { return &c.emergency }, pointer(enum(word[bool]{"normal", false}, word[bool]{"emergency", true})), "emergency: neither its age, a rate nor a full disk hold it up. Default: emergency if all its points are."),
		key("retained", func(c *rawCommand) **bool { return &c.restore }, pointer(retained()), "As in command_rules, whose it is by default."),
		key("max_age", func(c *rawCommand) *time.Duration { return &c.maxAge }, duration(0, maxWait), "As in command_rules, whose it is by default; an emergency has none by default."),
		key("need_id", func(c *rawCommand) **bool { return &c.needID }, pointer(boolean()), "As in command_rules, whose it is by default; an emergency needs none by default."),
		key("retry", func(c *rawCommand) *time.Duration { return &c.Retry }, duration(0, 24*time.Hour), "How long a write that did not succeed is tried again, unless the command expires or a newer one comes before.").def("0s").aka("retries", "retry_for"),
		key("qos", func(c *rawCommand) *uint8 { return &c.QoS }, qos(), "Of the subscription.").def("1"),
	).value(t, "command")
}

// retained is what becomes of a retained message: whether it is taken.
func retained() value[bool] {
	return enum(word[bool]{"refuse", false}, word[bool]{"restore", true})
}

// commandTopic is a topic filter with placeholders.
func commandTopic() value[string] {
	v := template("a topic filter such as plant/commands/+", commandPlaceholders, false)
	return value[string]{v.schema, func(d *decoder, n *node) (string, bool) {
		s, ok := v.read(d, n)
		if !ok {
			return "", false
		}
		if wrong := checkFilter(plainFilter(s, "x")); wrong != "" {
			d.faultf(n, "%s is not a topic filter: %s", quote(s), wrong)
			return "", false
		}
		return s, true
	}}
}

// plainFilter puts with in the place of each placeholder of s.
func plainFilter(s, with string) string {
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(s, "{")
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		b.WriteString(with)
		_, s, _ = strings.Cut(rest, "}")
	}
}

// eventName is what a kind of message is called in the event log.
func eventName() value[string] {
	return value[string]{pattern("^[a-z][a-z0-9_-]*$"), func(d *decoder, n *node) (string, bool) {
		s, ok := d.text(n, "a word such as broadcast")
		if ok && (s[0] < 'a' || s[0] > 'z' || strings.IndexFunc(s, func(c rune) bool {
			return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '-'
		}) >= 0) {
			d.shapef(n, "%s is not a word of small letters, digits, _ and -; write one such as broadcast", quote(s))
			return "", false
		}
		return s, ok
	}}
}

// targetName is the name of a point, with placeholders and wildcards.
func targetName() value[string] {
	v := template("the name of a point, device.point", pointPlaceholders, false)
	return value[string]{v.schema, func(d *decoder, n *node) (string, bool) {
		s, ok := v.read(d, n)
		if ok && !strings.ContainsAny(s, ".*") {
			d.faultf(n, "%s is no point, whose names are device.point; write %s.NAME", quote(s), s)
			return "", false
		}
		return s, ok
	}}
}

// recipe is a map from keys of a payload to points.
func recipe() value[[]named[string]] {
	all := names(targetName(), "points")
	return value[[]named[string]]{append(slices.Clone(all.schema), member{"minProperties", 1}), func(d *decoder, n *node) ([]named[string], bool) {
		if n.Kind == yamltree.Map && n.Len() == 0 {
			d.shapef(n, "is an empty map; write keys with their points, such as {temp: oven.setpoint}")
			return nil, false
		}
		return all.read(d, n)
	}}
}

// writeTargets is one point, a list of them, or a map from points to values.
func writeTargets() value[rawTargets] {
	one := targetName()
	several := list(one, "points")
	to := anyValue()
	values := schema{{"type", "object"}, {"additionalProperties", to.schema}, {"minProperties", 1}}
	return value[rawTargets]{anyOf(one.schema, several.schema, values), func(d *decoder, n *node) (rawTargets, bool) {
		switch n.Kind {
		case yamltree.List:
			points, ok := several.read(d, n)
			return rawTargets{points: points, list: true}, ok
		case yamltree.Scalar:
			s, ok := one.read(d, n)
			return rawTargets{points: []string{s}}, ok
		}
		if n.Len() == 0 {
			d.shapef(n, "is an empty map; write points with their values, such as {\"boiler.stop\": 1}")
			return rawTargets{}, false
		}
		var out rawTargets
		all := true
		seen := make(map[string]bool, n.Len())
		for k, val := range n.Entries {
			d.in(k.Text)
			name, ok := one.read(d, k)
			v, ok2 := to.read(d, val)
			if seen[k.Text] {
				d.twice(k, n)
				ok = false
			}
			seen[k.Text] = true
			all = all && ok && ok2
			out.values = append(out.values, named[point.Value]{name: name, key: k, at: val, is: v})
			d.out()
		}
		return out, all
	}}
}

// lossValue is what on_uplink_loss may say: hold, which is no value, or a value.
func lossValue() value[point.Value] {
	v := anyValue()
	return value[point.Value]{v.schema, func(d *decoder, n *node) (point.Value, bool) {
		if isWord(n, "hold") {
			return point.Value{}, true
		}
		return v.read(d, n)
	}}
}

// setup is a list of values that a device is given whenever it comes back.
func setup(t *tables) value[[]rawSetting] {
	one := newObject("a setting", "A value that the device is given whenever it comes back.", rawSetting{},
		key("at", func(s *rawSetting) *place { return &s.at }, address(), "The register, as a point of this device has it; or write point."),
		key("point", func(s *rawSetting) *string { return &s.point }, text("the name of a point of this device"), "The point, without the device's name.").aka("name"),
		key("value", func(s *rawSetting) *point.Value { return &s.value }, anyValue(), "What is written.").must(),
	).value(t, "setting")
	return list(located(one, func(s *rawSetting) **node { return &s.node }), "settings")
}

// settings resolves the setup of a device. The path is at the device.
func (r *resolver) settings(raw []rawSetting, dev *Device, base int) {
	for i := range raw {
		s := &raw[i]
		if s.node == nil {
			continue // reported
		}
		r.in("setup")
		r.path = append(r.path, step{index: i})
		if p := r.settingPoint(s, dev, base); p != nil {
			if err := p.CheckWrite(s.value); err != nil {
				r.keyFault(s.node, "value", "%s: %v", p.ID.Name(), err)
			} else {
				dev.Setup = append(dev.Setup, Setting{p.ID, s.value})
			}
		}
		r.out()
		r.out()
	}
}

// settingPoint returns the point of a setting, nil after a fault.
func (r *resolver) settingPoint(s *rawSetting, dev *Device, base int) *point.Point {
	byName, byPlace := has(s.node, "point"), has(s.node, "at")
	if byName == byPlace {
		r.shapef(s.node, "gives %s of at and point; write one of them", map[bool]string{true: "both", false: "neither"}[byName])
		return nil
	}
	table, addr := s.at.table, s.at.address
	if byPlace && (base != 0 || table == 0) {
		var err error
		if table, addr, err = point.ParseAddressBase(s.at.text, uint16(base)); err != nil {
			r.keyFault(s.node, "at", "%v", err)
			return nil
		}
	}
	known := make([]string, 0, len(dev.Points))
	var found []*point.Point
	for i := range dev.Points {
		p := &dev.Points[i]
		known = append(known, p.ID.Name())
		if byName && p.ID.Name() == s.point || byPlace && p.Table == table && p.Address == addr {
			found = append(found, p)
		}
	}
	switch {
	case len(found) == 1 && found[0].Write == nil:
		r.faultf(s.node, "%s is read only; give it write:", found[0].ID)
	case len(found) == 1:
		return found[0]
	case len(found) > 1:
		r.keyFault(s.node, "at", "%s and %s are both at %s; write point: with the name of one", found[0].ID.Name(), found[1].ID.Name(), point.FormatAddress(table, addr))
	case byPlace:
		r.keyFault(s.node, "at", "no point of %s is at %s; add one with write:", dev.Name, point.FormatAddress(table, addr))
	default:
		r.keyFault(s.node, "point", "%s has no point %s; %s", dev.Name, quote(s.point), Suggest(s.point, known))
	}
	return nil
}

// writable is a point with its device.
type writable struct {
	device *Device
	bus    *Bus // nil: the device is virtual
	point  *point.Point
}

// commands resolves the commands, after devices, uplinks and the broker.
func (r *resolver) commands() {
	r.cfg.CommandRules = r.raw.commandRules
	all := r.everyPoint()
	known := make([]string, 0, len(r.cfg.Uplinks)+1)
	for _, u := range r.cfg.Uplinks {
		known = append(known, u.Name)
	}
	if r.cfg.Broker != nil {
		known = append(known, Local)
	}
	before := len(r.found)
	for i := range r.raw.commands {
		raw := &r.raw.commands[i]
		if raw.at == nil || raw.at.Kind != yamltree.Map || raw.Topic == "" {
			continue // reported
		}
		r.path = append(r.path, step{index: i})
		r.place(r.at(), raw.at)
		for k, v := range raw.at.Entries {
			r.place(r.at()+"."+k.Text, v)
		}
		if c, ok := r.command(raw, all, known); ok {
			r.cfg.Commands = append(r.cfg.Commands, c)
		}
		r.out()
	}
	if len(r.found) == before {
		r.echoes()
	}
	r.losses()
}

// everyPoint returns all points of all devices.
func (r *resolver) everyPoint() []writable {
	var all []writable
	for i := range r.cfg.Devices {
		d := &r.cfg.Devices[i]
		var bus *Bus
		for j := range r.cfg.Buses {
			if r.cfg.Buses[j].Name == d.Bus {
				bus = &r.cfg.Buses[j]
			}
		}
		for j := range d.Points {
			all = append(all, writable{d, bus, &d.Points[j]})
		}
	}
	return all
}

// command resolves one command. The path is at it.
func (r *resolver) command(raw *rawCommand, all []writable, known []string) (Command, bool) {
	before := len(r.found)
	c := raw.Command
	c.Topic = strings.ReplaceAll(c.Topic, "{site}", cleanLevel(r.cfg.Site.ID))
	c.Filter = LevelFilter(c.Topic, "{")
	c.Ack = raw.ack.CommandAck
	c.Ack.Topic = strings.ReplaceAll(c.Ack.Topic, "{site}", cleanLevel(r.cfg.Site.ID))
	if c.Kind = r.commandKind(raw); c.Kind == 0 {
		return c, false
	}
	r.senders(raw, &c, known)
	x := targeting{resolver: r, raw: raw, c: &c, all: all}
	switch c.Kind {
	case ValueCommand:
		for _, name := range raw.write.points {
			x.add("write", name, Target{})
		}
	case MatchCommand:
		c.Match = raw.match
		for _, v := range raw.write.values {
			x.add("write", v.name, Target{Value: v.is})
		}
	case RecipeCommand:
		for _, k := range raw.recipe {
			x.add("recipe", k.is, Target{Key: k.name})
		}
	case StructuredCommand:
		for _, pattern := range raw.structured {
			x.list("structured", pattern, true)
		}
	case ReadCommand:
		for _, pattern := range raw.read {
			x.list("read", pattern, false)
		}
	}
	if len(r.found) > before {
		return c, false
	}
	r.commandRules(raw, &c, all)
	return c, len(r.found) == before
}

// LevelFilter puts + in the place of each level of a topic that holds mark, which
// stands for a placeholder.
func LevelFilter(topic, mark string) string {
	levels := strings.Split(topic, "/")
	for i, l := range levels {
		if strings.Contains(l, mark) {
			levels[i] = "+"
		}
	}
	return strings.Join(levels, "/")
}

// commandKind tells by the keys what a command is, 0 after a fault.
func (r *resolver) commandKind(raw *rawCommand) CommandKind {
	var kinds []CommandKind
	var given []string
	for _, k := range []struct {
		key  string
		kind CommandKind
	}{{"match", MatchCommand}, {"write", ValueCommand}, {"structured", StructuredCommand}, {"recipe", RecipeCommand}, {"read", ReadCommand}, {"event", EventCommand}} {
		if has(raw.at, k.key) && !(k.key == "write" && len(kinds) == 1 && kinds[0] == MatchCommand) {
			kinds, given = append(kinds, k.kind), append(given, k.key)
		}
	}
	switch {
	case len(kinds) == 0:
		r.faultf(raw.at, "does not say what it is for; write one of write, match with write, structured, recipe, read and event")
		return 0
	case len(kinds) > 1:
		r.keyFault(raw.at, given[1], "stands beside %s, and a command is for one thing; make two of it", given[0])
		return 0
	}
	kind := kinds[0]
	switch {
	case kind == MatchCommand && !has(raw.at, "write"):
		r.keyFault(raw.at, "match", "stands without write; add the points with their values, such as write: {\"boiler.stop\": 1}")
		return 0
	case kind == MatchCommand && len(raw.write.values) == 0:
		r.keyFault(raw.at, "write", "with match, the points need their values; write them as a map, such as {\"boiler.stop\": 1}")
		return 0
	case kind == ValueCommand && len(raw.write.values) > 0:
		r.keyFault(raw.at, "write", "gives values, which the payload does; add match: with the payload that stands for them, or write only the name of the point")
		return 0
	}
	if kind != RecipeCommand && kind != MatchCommand && !(kind == ValueCommand && raw.write.list) {
		r.onlyFor(raw.at, "commands that write several points", "on_error")
	}
	if kind == ReadCommand || kind == EventCommand {
		r.onlyFor(raw.at, "commands that write", "priority", "retained", "retry")
	}
	if kind == EventCommand {
		r.onlyFor(raw.at, "commands that are answered", "ack", "max_age", "need_id")
	}
	return kind
}

// senders resolves who may send a command.
func (r *resolver) senders(raw *rawCommand, c *Command, known []string) {
	_, from := raw.at.Get("from")
	r.in("from")
	for _, name := range c.From {
		switch {
		case name == "" || slices.Contains(known, name):
		case name == Local:
			r.missingf(from, "local is the embedded broker, and there is none; add broker: {}")
		default:
			r.missingf(from, "there is no uplink %s; %s", quote(name), Suggest(name, known))
		}
	}
	r.out()
	if c.From == nil {
		c.From = known
	}
	if len(c.From) == 0 {
		r.missingf(raw.at, "nobody can send it: there are no uplinks and no broker; add uplinks: or broker:")
	}
	if len(c.Users) == 0 {
		return
	}
	_, users := raw.at.Get("users")
	r.in("users")
	switch {
	case !slices.Contains(c.From, Local):
		r.faultf(users, "are those of the embedded broker, and it does not come from there; remove it, or add local to from")
	case r.cfg.Broker != nil:
		var names []string
		for _, u := range r.cfg.Broker.Users {
			names = append(names, u.Name)
		}
		for _, u := range c.Users {
			if u != "" && !slices.Contains(names, u) {
				r.missingf(users, "the embedded broker has no user %s; %s", quote(u), Suggest(u, names))
			}
		}
	}
	r.out()
}

// targeting finds the targets of one command.
type targeting struct {
	*resolver
	raw *rawCommand
	c   *Command
	all []writable
}

// add adds the point, or each of the points, that name stands for.
func (x *targeting) add(key, name string, t Target) {
	pattern := plainFilter(name, "*")
	if name == "" {
		return // reported
	}
	if !strings.ContainsAny(pattern, "*?") {
		for _, w := range x.all {
			if string(w.point.ID) == name {
				x.bind(key, w, t, true)
				return
			}
		}
		names := make([]string, len(x.all))
		for i, w := range x.all {
			names[i] = string(w.point.ID)
		}
		x.missing(key, "there is no point %s; %s", quote(name), Suggest(name, names))
		return
	}
	if x.raw.write.list {
		x.keyFault(x.raw.at, key, "%s stands for several points, and a list names each; write their names out", quote(name))
		return
	}
	g, topics, found := point.ParseGlob(pattern), make(map[string]point.ID), false
	for _, w := range x.all {
		if !g.Match(w.point.ID) || w.point.Write == nil || broadcast(w.bus, w.device.Unit) {
			continue
		}
		filter, ok := x.bind(key, w, t, false)
		if !ok {
			continue
		}
		found = true
		if other, taken := topics[filter]; taken {
			x.keyFault(x.raw.at, key, "%s and %s would both be written by a message on %s; put {device}, {point} or {unit} into the topic, or list the points", other, w.point.ID, filter)
			return
		}
		topics[filter] = w.point.ID
	}
	if !found {
		x.missing(key, "no point that may be written fits %s; give one write:, or write another name", quote(name))
	}
}

// list adds the points that a pattern fits, any of which a message may name.
func (x *targeting) list(key, pattern string, write bool) {
	if pattern == "" {
		return // reported
	}
	g, found := point.ParseGlob(pattern), false
	for _, w := range x.all {
		switch {
		case !g.Match(w.point.ID):
		case write && w.point.Write == nil && g.Literal():
			x.keyFault(x.raw.at, key, "%s is read only; give it write:", w.point.ID)
			return
		case write && (w.point.Write == nil || broadcast(w.bus, w.device.Unit) && !g.Literal()):
		case !write && broadcast(w.bus, w.device.Unit):
		default:
			_, ok := x.bind(key, w, Target{}, g.Literal())
			found = found || ok
		}
	}
	if !found {
		x.missing(key, "%q fits no point that may be %s; \"fieldgate check -v\" lists them", pattern, map[bool]string{true: "written", false: "read"}[write])
	}
}

func (x *targeting) missing(key, format string, args ...any) {
	if !x.partial {
		x.keyFault(x.raw.at, key, format, args...)
	}
}

// bind adds a target with its topics. With must, what keeps it from being one
// is a fault; a point of a wildcard is left out instead.
func (x *targeting) bind(key string, w writable, t Target, must bool) (filter string, ok bool) {
	p := w.point
	fault := func(format string, args ...any) {
		if must {
			x.keyFault(x.raw.at, key, format, args...)
		}
	}
	if x.c.Kind != ReadCommand && p.Write == nil {
		fault("%s is read only; give it write:", p.ID)
		return "", false
	}
	filter, err := x.expand(x.c.Topic, w)
	if err != nil {
		fault("%v", err)
		return "", false
	}
	t.Filter, t.Point = filter, p.ID
	if x.c.Ack.Topic != "" {
		if t.Ack, err = x.expand(x.c.Ack.Topic, w); err != nil {
			x.keyFault(x.raw.at, "ack", "%v", err)
			return "", false
		}
	}
	if x.c.Kind == MatchCommand {
		if err := p.CheckWrite(t.Value); err != nil {
			x.keyFault(x.raw.at, key, "%s: %v", p.ID, err)
			return "", false
		}
	}
	for _, other := range x.c.Targets {
		if other.Point != t.Point || other.Filter != t.Filter {
			continue
		}
		if x.c.Kind == StructuredCommand || x.c.Kind == ReadCommand {
			return filter, true // two patterns fit it
		}
		x.keyFault(x.raw.at, key, "%s is named twice; name it once", p.ID)
		return "", false
	}
	x.c.Targets = append(x.c.Targets, t)
	return filter, true
}

// expand fills the placeholders of a topic in for a point.
func (x *targeting) expand(topic string, w writable) (string, error) {
	if !strings.Contains(topic, "{") {
		return topic, nil
	}
	p := w.point
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(topic, "{")
		b.WriteString(before)
		if !ok {
			return b.String(), nil
		}
		var name string
		name, topic, _ = strings.Cut(rest, "}")
		tag, isTag := strings.CutPrefix(name, "tag.")
		virtual := w.device.Bus == ""
		switch {
		case virtual && (name == "bus" || name == "unit" || name == "UnitID" || name == "Address"):
			return "", fmt.Errorf("%s has no {%s}: its device is virtual", p.ID, name)
		case name == "bus":
			b.WriteString(cleanLevel(w.device.Bus))
		case name == "device":
			b.WriteString(cleanLevel(p.ID.Device()))
		case name == "point" || name == "Name":
			b.WriteString(cleanLevel(p.ID.Name()))
		case name == "unit" || name == "UnitID":
			b.WriteString(strconv.Itoa(int(w.device.Unit)))
		case name == "type":
			b.WriteString(p.TypeName())
		case name == "Address":
			b.WriteString(point.Modicon(p.Table, p.Address))
		case isTag:
			v, ok := p.Tags[tag]
			if !ok {
				v, ok = x.cfg.Site.Tags[tag]
			}
			if !ok {
				return "", fmt.Errorf("%s has no tag %q, nor has the site; give it one, or take {tag.%s} out", p.ID, tag, tag)
			}
			b.WriteString(cleanLevel(v))
		}
	}
}

// cleanLevel makes a text fit to stand in one level of a topic, as
// mqtt.CleanSegment does, which config must not know.
func cleanLevel(text string) string {
	return strings.Map(func(c rune) rune {
		if c == '+' || c == '#' || c == '/' || c < 0x20 || c >= 0x7F && c <= 0x9F || c >= 0xFDD0 && c <= 0xFDEF || c&0xFFFE == 0xFFFE {
			return '_'
		}
		return c
	}, text)
}

// commandRules fills in what a command takes from the rules for all, and checks
// what its points have to do with it. The path is at the command.
func (r *resolver) commandRules(raw *rawCommand, c *Command, all []writable) {
	points := make(map[point.ID]*point.Point, len(c.Targets))
	for _, w := range all {
		points[w.point.ID] = w.point
	}
	emergency := len(c.Targets) > 0 && c.Kind != ReadCommand
	for _, t := range c.Targets {
		p := points[t.Point]
		emergency = emergency && p.Write != nil && p.Write.Emergency
		if c.Ack.Text != "" && (p.Write == nil || !p.Write.Verify) {
			r.keyFault(raw.at, "ack", "the text is sent only once the read-back agrees, and %s is not read back; remove verify: false there, or text here", t.Point)
			return
		}
	}
	if raw.emergency != nil {
		if *raw.emergency && !emergency {
			for _, t := range c.Targets {
				if !points[t.Point].Write.Emergency {
					r.keyFault(raw.at, "priority", "%s does not have priority: emergency, so that its write would wait; add it to its write:", t.Point)
					return
				}
			}
		}
		emergency = emergency && *raw.emergency
	}
	c.Emergency = emergency
	rules := r.cfg.CommandRules
	c.MaxAge = raw.maxAge
	if c.MaxAge == unsetDuration {
		c.MaxAge = rules.MaxAge
		if c.Emergency {
			c.MaxAge = 0
		}
	}
	c.NeedID = rules.NeedID && !c.Emergency // a stop is a bare text as a rule
	if raw.needID != nil {
		c.NeedID = *raw.needID
	}
	setpoint := c.Kind == ValueCommand || c.Kind == StructuredCommand
	switch {
	case raw.restore == nil:
		c.Restore = rules.Restore && setpoint && !c.Emergency
	case *raw.restore && (!setpoint || c.Emergency):
		r.keyFault(raw.at, "retained", "restore is for setpoints: what starts or stops something must not happen again at each connection; write refuse")
		return
	default:
		c.Restore = *raw.restore
	}
	if setpoint || c.Kind == MatchCommand || c.Kind == RecipeCommand {
		r.reserved(raw, c)
	}
	if c.Retry > 0 && (c.Kind == RecipeCommand || c.Kind == MatchCommand && len(c.Targets) > 1 || raw.write.list) {
		r.keyFault(raw.at, "retry", "is for single writes; remove it")
	}
	if c.Kind == RecipeCommand || c.Kind == StructuredCommand {
		if strings.Contains(c.Ack.Topic, "{") {
			r.keyFault(raw.at, "ack", "which point it is for may not be known when it is answered; write a topic without placeholders")
		}
	}
}

// envelope is what a JSON payload may say beside its values.
var envelope = []string{"id", "timestamp", "expires", "ttl"}

// reserved reports keys of a recipe that mean something else.
func (r *resolver) reserved(raw *rawCommand, c *Command) {
	for _, t := range c.Targets {
		if slices.Contains(envelope, t.Key) {
			r.keyFault(raw.at, "recipe", "%s is the key of a command's own %s; write another", t.Key, t.Key)
		}
	}
}

// ackFilter is the filter of all topics that a command is answered on, "" for
// none.
func (c *Command) ackFilter() string {
	switch {
	case c.Kind == EventCommand:
		return ""
	case c.Ack.Topic != "":
		return LevelFilter(c.Ack.Topic, "{")
	case strings.HasSuffix(c.Filter, "#"):
		return c.Filter
	}
	return c.Filter + "/ack"
}

// echoes reports commands that would get their own answers, and messages that
// would be two commands.
func (r *resolver) echoes() {
	cs := r.cfg.Commands
	for i := range cs {
		a := &cs[i]
		r.path = append(r.path, step{index: i})
		at := r.raw.commands[i].at
		log := r.fillIn(r.raw.status.Topic, "") + "/event"
		if a.Kind == EventCommand && shareUplink(a.From, a.From) && Overlap(a.Filter, log) {
			r.keyFault(at, "topic", "the event log itself is published on %s, so that each event would make another; write a narrower topic", log)
		}
		for j := range cs {
			b := &cs[j]
			if !shareUplink(a.From, b.From) && (i == j || !shareAny(a.From, b.From)) {
				continue
			}
			if ack := b.ackFilter(); ack != "" && shareUplink(a.From, b.From) && Overlap(a.Filter, ack) {
				r.keyFault(at, "topic", "answers are published on %s, and would come back as messages of this command; write ack: with another topic, or a narrower topic", ack)
				break
			}
			if j >= i || !Overlap(a.Filter, b.Filter) {
				continue
			}
			if a.Kind == EventCommand || b.Kind == EventCommand {
				if shareUplink(a.From, b.From) {
					r.keyFault(at, "topic", "a broker may deliver a message twice that fits two filters, this and %s of commands[%d]; write another topic, or other uplinks at from", b.Topic, j)
					break
				}
				continue
			}
			if a.Kind == MatchCommand && b.Kind == MatchCommand && a.Topic == b.Topic && a.Match != b.Match {
				continue
			}
			r.keyFault(at, "topic", "a message may fit this and the topic %s of commands[%d] too, and it can be only one command; write another topic", b.Topic, j)
			break
		}
		r.out()
	}
}

// Overlap reports whether there is a topic that both filters match.
func Overlap(a, b string) bool {
	as, bs := strings.Split(a, "/"), strings.Split(b, "/")
	for i := 0; ; i++ {
		switch {
		case i < len(as) && as[i] == "#", i < len(bs) && bs[i] == "#":
			return true
		case i == len(as) || i == len(bs):
			return len(as) == len(bs)
		case as[i] != "+" && bs[i] != "+" && as[i] != bs[i]:
			return false
		}
	}
}

func shareAny(a, b []string) bool {
	return slices.ContainsFunc(a, func(name string) bool { return slices.Contains(b, name) })
}

// shareUplink reports whether there is an uplink in both lists: what we publish
// comes back from there, but not from the embedded broker.
func shareUplink(a, b []string) bool {
	return slices.ContainsFunc(a, func(name string) bool { return name != Local && slices.Contains(b, name) })
}

// losses reports points that would wait for the loss of an uplink which cannot
// write them. The path is at the commands.
func (r *resolver) losses() {
	commanded := make(map[point.ID]bool)
	upstream := func(name string) bool { return name != Local }
	for _, c := range r.cfg.Commands {
		for _, t := range c.Targets {
			commanded[t.Point] = commanded[t.Point] || slices.ContainsFunc(c.From, upstream)
		}
	}
	for i := range r.cfg.Devices {
		d := &r.cfg.Devices[i]
		for j := range d.Points {
			p := &d.Points[j]
			if p.Write == nil || p.Write.OnLoss.IsZero() && p.Write.Reassert == 0 {
				continue
			}
			path, at := r.path, r.deviceKey(d)
			r.path = []step{{key: "devices"}, {key: at.Text}, {key: "points"}, {key: p.ID.Name()}, {key: "write"}}
			switch {
			case !p.Write.OnLoss.IsZero() && !commanded[p.ID]:
				r.missingf(at, "on_uplink_loss has no effect: no command from an uplink writes %s; add one, or remove the key", p.ID)
			case p.Write.Reassert > 0 && p.Write.Budget > 0 && !p.Write.SkipIfEqual && time.Duration(p.Write.Budget)*p.Write.Reassert < 24*time.Hour:
				r.faultf(at, "reassert: %s uses up the budget of %d writes a day; write a longer one, or skip_if_equal: true", FormatDuration(p.Write.Reassert), p.Write.Budget)
			}
			r.path = path
		}
	}
}

// deviceKey returns where the name of a device stands.
func (r *resolver) deviceKey(d *Device) *node {
	for i := range r.raw.devices {
		v := &r.raw.devices[i]
		if v.name == d.Name || strings.Contains(v.name, "{unit}") && expandName(v.name, d.Unit) == d.Name {
			return v.key
		}
	}
	return r.root
}

// badLoss reports a value for the loss of the uplink that the point cannot take.
func (r *resolver) badLoss(m *node, p *point.Point) bool {
	err := p.CheckWrite(p.Write.OnLoss)
	if err == nil {
		return false
	}
	_, w := m.Get("write")
	r.in("write")
	r.keyFault(w, "on_uplink_loss", "%v", err)
	r.out()
	return true
}
