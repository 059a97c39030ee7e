package publish

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

func TestPlaceholders(t *testing.T) {
	for _, c := range []struct{ topic, id, want string }{
		{"plant/reactor1/temperature", "boiler.temp", "plant/reactor1/temperature"},
		{"{site}/{device}/{point}", "boiler.temp", "HOSTNAME/boiler/temp"},
		{"{site}/{bus}/{unit}/{type}", "boiler.temp", "HOSTNAME/plc/3/int16"},
		{"{UnitID}/holding/{Address}", "boiler.status.mode", "3/holding/40005"},
		{"factory/line-{UnitID}/temperature", "boiler.temp", "factory/line-3/temperature"},
		{"{Address}", "boiler.temp", "30001"},
		{"{Address}", "boiler.energy", "310001"},
		{"{Address}", "boiler.pump", "00001"},
		{"{Name}", "boiler.status.mode", "status.mode"},
		{"{tag.line}/{tag.plant}/{tag.a\"b}", "boiler.temp", `7/north/c_d`},
		{"{tag.line}/{point}", "boiler.flow", "0/flow"},
		{"{type}", "boiler.status.mode", "string(8)"},
		{"x/{Value}/{Value}", "boiler.temp", "x/{Value}/{Value}"},
		{"$aws/things/{site}", "boiler.temp", "$aws/things/HOSTNAME"},
	} {
		topics, faults := Topics(site, []config.Rule{{Points: []string{c.id}, Topic: c.topic}}, []config.Device{boiler()})
		if len(faults) != 0 || len(topics) != 1 || topics[0].Name != c.want {
			t.Errorf("%s of %s: got %v, %v, want %s", c.topic, c.id, topics, faults, c.want)
			continue
		}
		if got := topics[0].Points(); !slices.Equal(got, []point.ID{point.ID(c.id)}) {
			t.Errorf("%s: points %v, want %s", c.topic, got, c.id)
		}
	}
}

func TestPlaceholdersAreCleaned(t *testing.T) {
	d := config.Device{Name: "a/b+c", Bus: "b#\x00", Unit: 1, Points: []point.Point{
		{ID: "a/b+c.p/q", Table: modbus.HoldingRegisters, Tags: map[string]string{"t": "+/#"}},
	}}
	topics, faults := Topics(config.Site{ID: "s/+"}, []config.Rule{{Points: []string{"*"}, Topic: "{site}/{bus}/{device}/{point}/{tag.t}"}}, []config.Device{d})
	if len(faults) != 0 || len(topics) != 1 || topics[0].Name != "s__/b__/a_b_c/p_q/___" {
		t.Errorf("got %v, %v", topics, faults)
	}
}

func TestTopicFaults(t *testing.T) {
	two := func(name string) config.Device {
		d := config.Device{Name: name, Bus: "plc", Unit: 1}
		for i, p := range []string{"x", "y"} {
			d.Points = append(d.Points, point.Point{ID: point.ID(name + "." + p), Table: modbus.HoldingRegisters, Address: uint16(i)})
		}
		return d
	}
	virtual := config.Device{Name: "v", Points: []point.Point{{ID: "v.x"}}}
	real := []config.Device{two("a"), two("b")}
	every := func(topic string) config.Rule { return config.Rule{Points: []string{"*"}, Topic: topic} }
	batch := func(topic string) config.Rule {
		return config.Rule{Points: []string{"*"}, Topic: topic, Payload: config.Batch}
	}
	only := func(r config.Rule, points ...string) config.Rule { r.Points = points; return r }
	to := func(r config.Rule, names ...string) config.Rule { r.To = names; return r }

	for _, c := range []struct {
		name    string
		rules   []config.Rule
		devices []config.Device
		want    []string
		topics  int
	}{
		{"none", []config.Rule{every("{device}/{point}")}, real, nil, 4},
		{"one topic for all", []config.Rule{every("plant")}, real, []string{
			`publish[0].topic: a.x and a.y would both be published on "plant"; tell them apart by {device} and {point}, or set payload: batch (and 2 more points share a topic)`}, 1},
		{"one topic for each device", []config.Rule{every("{device}")}, real, []string{
			`publish[0].topic: a.x and a.y would both be published on "a"; tell them apart by {device} and {point}, or set payload: batch (and 1 more points share a topic)`}, 2},
		{"same address of two devices", []config.Rule{only(every("{Address}"), "*.x")}, real, []string{
			`publish[0].topic: a.x and b.x would both be published on "40001"; tell them apart by {device} and {point}, or set payload: batch`}, 1},
		{"one topic by cleaning", []config.Rule{only(every("{device}"), "*.x")}, []config.Device{two("a+"), two("a#")}, []string{
			`publish[0].topic: a+.x and a#.x would both be published on "a_"; tell them apart by {device} and {point}, or set payload: batch`}, 1},
		{"values in a topic do not tell points apart", []config.Rule{only(every("s/{Value}"), "a.*")}, real, []string{
			`publish[0].topic: a.x and a.y would both be published on "s/{Value}"; tell them apart by {device} and {point}, or set payload: batch`}, 1},
		{"batch", []config.Rule{batch("plant")}, real, nil, 1},
		{"two rules", []config.Rule{only(every("t"), "a.x"), only(every("t"), "b.y")}, real, []string{
			`publish[1].topic: a.x of publish[0] and b.y of this rule would both be published on "t"; tell them apart by {device} and {point}, or give both rules payload: batch`}, 1},
		{"two rules, one a batch", []config.Rule{only(every("t"), "a.x"), only(batch("t"), "a.*")}, real, []string{
			`publish[1].topic: a.x of publish[0] and a.y of this rule would both be published on "t"; tell them apart by {device} and {point}, or give both rules payload: batch`}, 2},
		{"a batch, then another rule", []config.Rule{only(batch("t"), "a.*"), only(every("t"), "a.x")}, real, []string{
			`publish[1].topic: a.y of publish[0] and a.x of this rule would both be published on "t"; tell them apart by {device} and {point}, or give both rules payload: batch`}, 1},
		{"two batches", []config.Rule{only(batch("t"), "a.*"), only(batch("t"), "b.*")}, real, nil, 2},
		{"two rules, one point", []config.Rule{every("{device}/{point}"), only(every("a/x"), "a.x")}, real, nil, 5},
		{"two rules that never meet", []config.Rule{to(only(every("t"), "a.x"), "cloud"), to(only(every("t"), "b.y"), "local")}, real, nil, 2},
		{"two rules that meet at one", []config.Rule{to(only(every("t"), "a.x"), "cloud", "local"), to(only(every("t"), "b.y"), "local")}, real, []string{
			`publish[1].topic: a.x of publish[0] and b.y of this rule would both be published on "t"; tell them apart by {device} and {point}, or give both rules payload: batch`}, 1},
		{"a third rule meets the first", []config.Rule{to(only(every("t"), "a.x"), "cloud"), to(only(every("t"), "b.y"), "local"), only(every("t"), "b.y")}, real, []string{
			`publish[2].topic: a.x of publish[0] and b.y of this rule would both be published on "t"; tell them apart by {device} and {point}, or give both rules payload: batch`}, 2},
		{"a rule for nobody", []config.Rule{to(only(every("t"), "a.*"), []string{}...)}, real, []string{
			`publish[0].topic: a.x and a.y would both be published on "t"; tell them apart by {device} and {point}, or set payload: batch`}, 1},

		{"unknown placeholder", []config.Rule{every("{Nmae}")}, real, []string{
			`publish[0].topic: {Nmae} is not a placeholder; known: {site} {bus} {device} {point} {unit} {type} {UnitID} {Address} {Name} {Value} {tag.NAME}`}, 0},
		{"placeholder in other letters", []config.Rule{every("{device}/{name}")}, real, []string{`publish[0].topic: {name} is not a placeholder; write {Name}`}, 0},
		{"tag without a name", []config.Rule{every("{tag.}")}, real, []string{
			`publish[0].topic: {tag.} is not a placeholder; known: {site} {bus} {device} {point} {unit} {type} {UnitID} {Address} {Name} {Value} {tag.NAME}`}, 0},
		{"no end", []config.Rule{every("a/{point")}, real, []string{`publish[0].topic: "{point" lacks its "}"`}, 0},
		{"no beginning", []config.Rule{every("a/point}")}, real, []string{`publish[0].topic: "}" without a "{" before it`}, 0},
		{"nested", []config.Rule{every("{a{point}}")}, real, []string{
			`publish[0].topic: {a{point} is not a placeholder; known: {site} {bus} {device} {point} {unit} {type} {UnitID} {Address} {Name} {Value} {tag.NAME}`}, 0},
		{"missing tag", []config.Rule{every("{tag.hall}/{device}/{point}")}, real, []string{
			`publish[0].topic: a.x has no tag "hall", nor has the site; give it one, or take {tag.hall} out (and 3 more points likewise)`}, 0},
		{"wildcard", []config.Rule{only(every("a/+"), "a.x")}, real, []string{
			`publish[0].topic: invalid topic "a/+": a topic to publish on holds no wildcard, this has "+"`}, 0},
		{"empty", []config.Rule{only(every(""), "a.x")}, real, []string{`publish[0].topic: invalid topic "": it is empty`}, 0},
		{"virtual has no bus", []config.Rule{every("{bus}")}, []config.Device{virtual}, []string{`publish[0].topic: v.x has no {bus}: its device is virtual`}, 0},
		{"virtual has no unit", []config.Rule{every("{UnitID}")}, []config.Device{virtual}, []string{`publish[0].topic: v.x has no unit id: its device is virtual`}, 0},
		{"virtual has no address", []config.Rule{every("{Address}")}, []config.Device{virtual}, []string{`publish[0].topic: v.x has no {Address}: its device is virtual`}, 0},
		{"value in a batch", []config.Rule{batch("{Value}")}, real, []string{`publish[0].topic: {Value} cannot be part of a batch's topic, which has many values; take it out`}, 0},
		{"pattern without points", []config.Rule{only(every("{device}/{point}"), "a.*", "boilr.*")}, real, []string{
			`publish[0].points: "boilr.*" fits no point; "fieldgate check -v" lists them`}, 2},
		{"no devices at all", []config.Rule{every("{device}/{point}")}, nil, nil, 0},
		{"fields of raw", []config.Rule{{Points: []string{"a.x"}, Topic: "t", Payload: config.Raw, Fields: []config.Field{config.FieldSeq}}}, real, []string{
			`publish[0].fields: payload raw is the bare value and has no place for "seq"; set payload: json`}, 1},
		{"fields of full", []config.Rule{{Points: []string{"a.x"}, Topic: "t", Payload: config.Full, Fields: []config.Field{config.FieldTags}}}, real, []string{
			`publish[0].fields: payload full has fixed members and no place for "tags"; set payload: json`}, 1},
		{"fields of batch", []config.Rule{{Points: []string{"*"}, Topic: "t", Payload: config.Batch, Fields: []config.Field{config.FieldSeq, config.FieldDevice}}}, real, []string{
			`publish[0].fields: payload batch takes the fields quality and seq, not "device", which differs from point to point; put it into the topic`}, 1},
		{"all at once", []config.Rule{every("t"), every("{x}"), only(every("{device}/{point}"), "q")}, real, []string{
			`publish[0].topic: a.x and a.y would both be published on "t"; tell them apart by {device} and {point}, or set payload: batch (and 2 more points share a topic)`,
			`publish[1].topic: {x} is not a placeholder; known: {site} {bus} {device} {point} {unit} {type} {UnitID} {Address} {Name} {Value} {tag.NAME}`,
			`publish[2].points: "q" fits no point; "fieldgate check -v" lists them`}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			topics, faults := Topics(site, c.rules, c.devices)
			var got []string
			for _, f := range faults {
				got = append(got, f.Error())
				if f.Warning != (f.Key == "points") {
					t.Errorf("%v: Warning %v", f, f.Warning)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			if len(topics) != c.topics {
				t.Errorf("%d topics, want %d", len(topics), c.topics)
			}
			again, _ := Topics(site, c.rules, c.devices)
			if !reflect.DeepEqual(topics, again) {
				t.Error("the same question has another answer the second time")
			}
		})
	}
}

func TestCollisionNamesBothPoints(t *testing.T) {
	rules := []config.Rule{{Points: []string{"boiler.temp"}, Topic: "t"}, {Points: []string{"boiler.pump"}, Topic: "t"}}
	_, faults := Topics(site, rules, []config.Device{boiler()})
	if len(faults) != 1 || faults[0].Rule != 1 || faults[0].OtherRule != 0 || faults[0].Points != [2]point.ID{"boiler.temp", "boiler.pump"} {
		t.Errorf("got %+v", faults)
	}
}

// What is left after a collision: the first point keeps the topic.
func TestTopicsWithoutTheFaulty(t *testing.T) {
	topics, _ := Topics(site, []config.Rule{{Points: []string{"*"}, Topic: "t"}}, []config.Device{boiler()})
	if len(topics) != 1 || !slices.Equal(topics[0].Points(), []point.ID{"boiler.temp"}) {
		t.Errorf("got %v", topics)
	}
}

// Two rules over ten thousand points on the same topics must not take a time
// that grows with the square.
func TestManyPointsTwoRules(t *testing.T) {
	rule := config.Rule{Points: []string{"*"}, Topic: "{device}/{point}"}
	devices := plant(100, 100)
	topics, faults := Topics(site, []config.Rule{rule, rule}, devices)
	if len(topics) != 20000 || len(faults) != 0 {
		t.Errorf("%d topics, %d faults", len(topics), len(faults))
	}
	for _, i := range []int{0, 9999, 10000, 19999} {
		want := fmt.Sprintf("device%d/point%d", i%10000/100, i%100)
		if topics[i].Name != want || topics[i].Rule != i/10000 {
			t.Errorf("topic %d is %q of rule %d, want %q", i, topics[i].Name, topics[i].Rule, want)
		}
	}
}
