package config

import (
	"slices"
	"strings"
	"testing"
	"time"
)

const commandPlant = `
site: { id: s, tags: { area: north } }
buses: { b: { tcp: 10.0.0.1:502 }, l: { serial: /dev/ttyS9 } }
devices:
  boiler:
    bus: b
    points:
      temp:     { at: input 0 }
      setpoint: { at: holding 0, write: {} }
      level:    { at: holding 1, write: { max: 100 } }
      stop:     { at: coil 0, write: { priority: emergency } }
      blind:    { at: holding 2, write: { verify: false } }
  "pump-{unit}": { bus: b, unit: 2-3, points: { speed: { at: holding 0, write: {} }, stop: { at: coil 0, write: { priority: emergency } } } }
  all: { bus: l, unit: 0, points: { speed: { at: holding 0, write: {} } } }
uplinks: { cloud: { url: mqtt://127.0.0.1 } }
broker: { anonymous: true }
`

// Each mistake in a command, and what the fault must say.
func TestCommandFaults(t *testing.T) {
	for _, row := range [][2]string{
		{`{ topic: a }`, `commands[0]: does not say what it is for; write one of write, match with write, structured, recipe, read and event`},
		{`{ write: boiler.setpoint }`, `commands[0]: topic is missing`},
		{`{ topic: a, write: boiler.setpoint, read: "*" }`, `commands[0].read: stands beside write, and a command is for one thing; make two of it`},
		{`{ topic: a, match: x }`, `commands[0].match: stands without write`},
		{`{ topic: a, match: x, write: boiler.stop }`, `commands[0].write: with match, the points need their values`},
		{`{ topic: a, write: { boiler.stop: 1 } }`, `commands[0].write: gives values, which the payload does; add match:`},
		{`{ topic: a, match: x, write: { boiler.level: 101 } }`, `commands[0].write: boiler.level: 101 is above the most, 100`},
		{`{ topic: a, match: x, write: {} }`, `is an empty map; write points with their values`},
		{`{ topic: a, match: x, write: { boiler.stop: 1, "boiler.stop": 0 } }`, `is given twice`},
		{`{ topic: a, write: boiler.setpiont }`, `commands[0].write: there is no point "boiler.setpiont"; did you mean boiler.setpoint?`},
		{`{ topic: a, write: setpoint }`, `"setpoint" is no point, whose names are device.point`},
		{`{ topic: a, write: boiler.temp }`, `commands[0].write: boiler.temp is read only; give it write:`},
		{`{ topic: a, write: "*.speed" }`, `commands[0].write: pump-2.speed and pump-3.speed would both be written by a message on a; put {device}, {point} or {unit} into the topic`},
		{`{ topic: "a/{device}", write: "{device}.{point}" }`, `boiler.setpoint and boiler.level would both be written by a message on a/boiler`},
		{`{ topic: "a/{device}", write: "{device}.temp" }`, `no point that may be written fits "{device}.temp"`},
		{`{ topic: a, write: ["*.speed"] }`, `"*.speed" stands for several points, and a list names each`},
		{`{ topic: a, write: [pump-2.speed, pump-2.speed] }`, `pump-2.speed is named twice`},
		{`{ topic: a, write: "{site}.x" }`, `"{site}" is not a placeholder`},
		{`{ topic: "a/{tag.floor}", write: boiler.setpoint }`, `boiler.setpoint has no tag "floor", nor has the site`},
		{`{ topic: "a/{devcie}", write: boiler.setpoint }`, `"{devcie}" is not a placeholder; did you mean {device}?`},
		{`{ topic: "a/#/b", write: boiler.setpoint }`, `is not a topic filter: # must be the last level`},
		{`{ topic: "a/b{device}+", write: boiler.setpoint }`, `+ and # must each be a level of its own`},
		{`{ topic: a, structured: boiler.temp }`, `commands[0].structured: boiler.temp is read only`},
		{`{ topic: a, structured: "*.temp" }`, `"*.temp" fits no point that may be written`},
		{`{ topic: a, read: "all.*" }`, `"all.*" fits no point that may be read`},
		{`{ topic: a, recipe: { id: boiler.setpoint } }`, `commands[0].recipe: id is the key of a command's own id`},
		{`{ topic: a, recipe: { x: boiler.setpoint, y: boiler.setpoint } }`, `boiler.setpoint is named twice`},
		{`{ topic: a, recipe: {} }`, `is an empty map; write keys with their points`},
		{`{ topic: a, write: boiler.setpoint, on_error: stop }`, `commands[0].on_error: is only for commands that write several points`},
		{`{ topic: a, read: "*", retry: 1m }`, `commands[0].retry: is only for commands that write`},
		{`{ topic: a, recipe: { x: boiler.setpoint, y: boiler.level }, retry: 1m }`, `commands[0].retry: is for single writes`},
		{`{ topic: a, event: x, ack: b }`, `commands[0].ack: is only for commands that are answered`},
		{`{ topic: a, event: Big }`, `"Big" is not a word of small letters`},
		{`{ topic: a, write: boiler.setpoint, from: clod }`, `there is no uplink "clod"; did you mean cloud?`},
		{`{ topic: a, write: boiler.setpoint, from: cloud, users: x }`, `are those of the embedded broker, and it does not come from there`},
		{`{ topic: a, write: boiler.setpoint, users: x }`, `the embedded broker has no user "x"; there is none`},
		{`{ topic: a, write: boiler.setpoint, priority: emergency }`, `boiler.setpoint does not have priority: emergency`},
		{`{ topic: a, match: x, write: { boiler.stop: 1 }, retained: restore }`, `restore is for setpoints`},
		{`{ topic: a, write: boiler.stop, retained: restore }`, `restore is for setpoints`},
		{`{ topic: a, write: boiler.blind, ack: { text: DONE } }`, `the text is sent only once the read-back agrees, and boiler.blind is not read back`},
		{`{ topic: a, structured: "boiler.*", ack: "b/{point}" }`, `which point it is for may not be known when it is answered`},
		{`{ topic: a, write: boiler.setpoint, ack: "b/+" }`, `is a wildcard, and nothing can be published on those`},
		{`{ topic: "a/#", write: boiler.setpoint }`, `commands[0].topic: answers are published on a/#, and would come back as messages of this command`},
		{`{ topic: a, write: boiler.setpoint, ack: a }`, `answers are published on a, and would come back`},
		{`{ topic: a, write: boiler.setpoint, ack: b }, { topic: "+", write: boiler.level, ack: c/d }`, `commands[1].topic: answers are published on b, and would come back`},
		{`{ topic: a/b, write: boiler.setpoint }, { topic: "a/+", write: boiler.level }`, `commands[1].topic: a message may fit this and the topic a/b of commands[0] too`},
		{`{ topic: a, match: x, write: { boiler.stop: 1 } }, { topic: a, match: x, write: { boiler.stop: 0 } }`, `a message may fit this and the topic a`},
		{`{ topic: a, event: x }, { topic: a, write: boiler.level }`, `a broker may deliver a message twice that fits two filters`},
		{`{ topic: "#", event: x, from: local }`, ``},
		{`{ topic: "#", event: x }`, `the event log itself is published on fieldgate/s/event`},
	} {
		got := faults(t, commandPlant+"commands: [ "+row[0]+" ]\n")
		if row[1] == "" && len(got) > 0 || row[1] != "" && !slices.ContainsFunc(got, func(f string) bool { return strings.Contains(f, row[1]) }) {
			t.Errorf("%s\n got %q\nwant %s", row[0], got, row[1])
		}
	}
	for _, row := range [][2]string{
		{"commands: []\n", "is an empty list"},
		{"command_rules: { lock: boiler.stopp }\n", `command_rules.lock: there is no point "boiler.stopp"; did you mean boiler.stop?`},
		{"command_rules: { lock: all.speed }\n", `command_rules.lock: all.speed is not polled, so that nobody would notice the key being turned`},
		{"command_rules: { retained: yes }\n", `"yes" is none of the words known here; known: refuse, restore`},
	} {
		if got := faults(t, commandPlant+row[0]); !strings.Contains(strings.Join(got, "\n"), row[1]) {
			t.Errorf("%s: %q", row[0], got)
		}
	}
}

// What a device and a point do without being asked.
func TestUnaskedFaults(t *testing.T) {
	point := func(write string) string { return one("{ at: holding 0, write: { " + write + " } }") }
	device := func(more string) string {
		return tcpBus + "devices: { d: { bus: b, points: { p: { at: holding 0, write: { max: 9 } }, q: { at: coil 0, write: {} }, r: { at: holding 1 }, s: { at: coil 0 } }, " + more + " } }\n"
	}
	for _, row := range [][2]string{
		{point("on_uplink_loss: 70000"), `devices.d.points.p.write.on_uplink_loss: 70000 is outside 0 to 65535`},
		{point("on_uplink_loss: 5"), `on_uplink_loss has no effect: no command from an uplink writes d.p`},
		{point("on_uplink_loss: hold"), ``},
		{point("reassert: 1ms"), `is outside 100ms to`},
		{point("reassert: 1s, budget: 100/day, skip_if_equal: false"), `reassert: 1s uses up the budget of 100 writes a day`},
		{device("setup: [ { value: 5 } ]"), `devices.d.setup[0]: gives neither of at and point; write one of them`},
		{device("setup: [ { point: p, at: holding 0, value: 5 } ]"), `gives both of at and point`},
		{device("setup: [ { point: p } ]"), `value is missing`},
		{device("setup: [ { point: x, value: 5 } ]"), `devices.d.setup[0].point: d has no point "x"`},
		{device("setup: [ { point: p, value: 10 } ]"), `devices.d.setup[0].value: p: 10 is above the most, 9`},
		{device("setup: [ { point: r, value: 10 } ]"), `d.r is read only; give it write:`},
		{device("setup: [ { at: holding 7, value: 10 } ]"), `no point of d is at holding 7; add one with write:`},
		{device("setup: [ { at: coil 0, value: 1 } ]"), `q and s are both at coil 0`},
		{device("setup: [ { at: 40001, value: 5 }, { point: q, value: true } ]"), ``},
	} {
		got := faults(t, row[0])
		if row[1] == "" && len(got) > 0 || row[1] != "" && !strings.Contains(strings.Join(got, "\n"), row[1]) {
			t.Errorf("%s\n got %q\nwant %s", row[0], got, row[1])
		}
	}
}

// What commands come to.
func TestCommands(t *testing.T) {
	cfg := load(t, commandPlant+`
command_rules: { max_age: 1m, need_id: true, duplicate_window: 1h, loss_after: 5s, lock: boiler.temp }
commands:
  - { topic: "{site}/{tag.area}/{device}/{point}", write: "{device}.{point}", from: cloud, ack: "acks/{device}/{point}" }
  - { topic: "line-{unit}/stop", match: STOP, write: { "*.stop": 1 }, ack: { topic: st, text: OK, stages: true }, from: local }
  - { topic: "x/{UnitID}/{Address}", structured: ["pump-*.*", "*.speed"], need_id: false, max_age: 0 }
`)
	if got := cfg.CommandRules; got != (CommandRules{MaxAge: time.Minute, DuplicateWindow: time.Hour, NeedID: true, LossAfter: 5 * time.Second, Lock: "boiler.temp"}) {
		t.Errorf("%+v", got)
	}
	var targets []string
	for _, c := range cfg.Commands {
		for _, x := range c.Targets {
			targets = append(targets, x.Filter+" "+string(x.Point)+" "+x.Ack+" "+x.Value.String())
		}
	}
	want := []string{
		"s/north/boiler/setpoint boiler.setpoint acks/boiler/setpoint ", "s/north/boiler/level boiler.level acks/boiler/level ",
		"s/north/boiler/stop boiler.stop acks/boiler/stop ", "s/north/boiler/blind boiler.blind acks/boiler/blind ",
		"s/north/pump-2/speed pump-2.speed acks/pump-2/speed ", "s/north/pump-2/stop pump-2.stop acks/pump-2/stop ",
		"s/north/pump-3/speed pump-3.speed acks/pump-3/speed ", "s/north/pump-3/stop pump-3.stop acks/pump-3/stop ",
		"line-1/stop boiler.stop st 1", "line-2/stop pump-2.stop st 1", "line-3/stop pump-3.stop st 1",
		"x/2/40001 pump-2.speed  ", "x/2/00001 pump-2.stop  ", "x/3/40001 pump-3.speed  ", "x/3/00001 pump-3.stop  ",
	}
	if !slices.Equal(targets, want) {
		t.Errorf("targets\n got %q\nwant %q", targets, want)
	}
	a, b, c := cfg.Commands[0], cfg.Commands[1], cfg.Commands[2]
	if a.Filter != "s/+/+/+" || a.Emergency || a.MaxAge != time.Minute || !a.NeedID || !slices.Equal(a.From, []string{"cloud"}) {
		t.Errorf("%+v", a)
	}
	if b.Filter != "+/stop" || !b.Emergency || b.MaxAge != 0 || b.Ack != (CommandAck{"st", "OK", true}) || b.Match != "STOP" {
		t.Errorf("%+v", b)
	}
	if c.Filter != "x/+/+" || c.NeedID || c.MaxAge != 0 || !slices.Equal(c.From, []string{"cloud", "local"}) || c.QoS != 1 {
		t.Errorf("%+v", c)
	}
}

func TestOverlap(t *testing.T) {
	for _, row := range []struct {
		a, b string
		want bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a/+", "a/b", true}, {"a/+", "+/b", true}, {"a/#", "a", true},
		{"a/#", "a/b/c", true}, {"a/b", "a", false}, {"#", "x/y", true}, {"a/+/c", "a/b/d", false}, {"+/+", "a", false},
		{"a/b/#", "a/+/c/d", true}, {"a/b/#", "a/c/#", false},
	} {
		if got := Overlap(row.a, row.b); got != row.want || Overlap(row.b, row.a) != got {
			t.Errorf("Overlap(%s, %s) = %v", row.a, row.b, got)
		}
	}
}
