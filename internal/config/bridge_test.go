package config

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// bridging returns a configuration with these bridge rules.
func bridging(rules string) string {
	return tcpBus + "site: { id: gw1 }\nbroker: { anonymous: true }\nuplinks: { u: { url: mqtts://h, bridge: " + rules + " } }"
}

// commanded is bridging with a command on set/p.
func commanded(rules, more string) string {
	return strings.Replace(bridging(rules), "buses:", "devices: { d: { bus: b, points: { p: { at: holding 0, write: {} } } } }\ncommands: [{ topic: set/p, write: d.p"+more+" }]\nbuses:", 1)
}

func TestBridgeRules(t *testing.T) {
	cfg, err := LoadBytes("f", []byte(bridging(`[{ in: cmd/# }, { out: "data/+", local_prefix: "m/", remote_prefix: "{site}/", qos: 2, retain: drop, ack: fast }, { both: set }]`)))
	if err != nil {
		t.Fatal(err)
	}
	want := []BridgeRule{
		{In: true, Filter: "cmd/#", QoS: 1},
		{Out: true, Filter: "data/+", LocalPrefix: "m/", RemotePrefix: "gw1/", QoS: 2, DropRetain: true, Fast: true},
		{In: true, Out: true, Filter: "set", QoS: 1},
	}
	if got := cfg.Uplinks[0].Bridge; !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if l, r := want[1].Local(), want[1].Remote(); l != "m/data/+" || r != "gw1/data/+" {
		t.Errorf("filters %s and %s", l, r)
	}
}

func TestBridgeFaults(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"none", bridging("[]"), "uplinks.u.bridge: is an empty list; write bridge rules, or remove the key"},
		{"no direction", bridging("[{ qos: 0 }]"), "uplinks.u.bridge[0]: says no direction; write one of in, out and both, with a topic filter"},
		{"two directions", bridging("[{ in: a, out: b }]"), "uplinks.u.bridge[0]: write one of in, out and both; for several filters write several rules"},
		{"no filter", bridging("[{ in: a/b+ }]"), `uplinks.u.bridge[0].in: "a/b+" is not a topic filter: + and # must each be a level of its own`},
		{"another product's key", bridging("[{ in: a, max_qos: 1 }]"), "uplinks.u.bridge[0].max_qos: is not a key of a bridge rule; it is called qos here"},
		{"no broker", tcpBus + "uplinks: { u: { url: mqtts://h, bridge: [{ in: a }] } }", "uplinks.u.bridge: there is no embedded broker to carry topics from or to; add broker: {}, or remove this"},
		{"wildcard in a prefix", bridging("[{ in: a, local_prefix: x/+/ }]"), "uplinks.u.bridge[0].local_prefix: '+' is a wildcard"},
		{"placeholder", bridging(`[{ in: a, remote_prefix: "{name}/" }]`), `uplinks.u.bridge[0].remote_prefix: "{name}" is not a placeholder`},
		{"prefix without its slash", bridging(`[{ out: "#", remote_prefix: gw1 }]`), `uplinks.u.bridge[0].remote_prefix: with the filter it makes "gw1#", which is no topic filter; end it with a slash`},
		{"what a broker says of itself", bridging("[{ in: $SYS/# }]"), "uplinks.u.bridge[0].in: local topics do not begin with $"},
		{"shared subscription", bridging("[{ in: $share/g/a, local_prefix: x/ }]"), "uplinks.u.bridge[0].in: a shared subscription would give the gateway some of the messages only"},
		{"ack of what comes in", bridging("[{ in: a, ack: fast }]"), "uplinks.u.bridge[0].ack: is about messages that go out, so it has no effect here; remove it"},
		{"in twice", bridging("[{ in: a/#, local_prefix: x/ }, { out: b }, { both: a/+ }]"), "uplinks.u.bridge[2]: a/+ and a/# of bridge[0] have topics in common, and a broker may send their messages once for each"},
		{"out twice", bridging("[{ out: a/+/c }, { out: +/b/# }]"), "uplinks.u.bridge[1]: +/b/# and a/+/c of bridge[0] have topics in common, and their messages would go out twice"},
		{"our own broker", tcpBus + "broker: { anonymous: true, listen: mqtt://127.0.0.1:1884 }\nuplinks: { u: { url: mqtt://localhost:1884, bridge: [{ out: a }] } }", "uplinks.u.bridge: the uplink leads to this gateway's own broker (mqtt://localhost:1884), so that messages would go round for ever"},
		{"in meets a command", commanded("[{ in: set/# }]", ""), "uplinks.u.bridge[0]: set/# and the command set/p have topics in common, and a broker may send their messages once for each, so that a command could be carried out twice"},
		{"out comes back as a command", commanded("[{ out: p, remote_prefix: set/ }]", ""), "uplinks.u.bridge[0]: what local clients publish would come back by the command set/p; write filters that do not overlap, or from: without u"},
		{"out comes back as settings", bridging("[{ both: config/# }]") + "\nsettings: { from: u, allow: devices.*.every }", "uplinks.u.bridge[0]: what local clients publish would come back by config/gw1/update as a change of settings from u; write filters that do not overlap, or another settings.topic"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := LoadBytes("f", []byte(tt.text))
			var faults Faults
			if !errors.As(err, &faults) || len(faults) != 1 || !strings.Contains(faults[0].Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
	if _, err := LoadBytes("f", []byte(commanded("[{ both: set/# }]", ", from: local"))); err != nil {
		t.Errorf("a command of local clients only: %v", err)
	}
	for _, rest := range []string{"config/#, local_prefix: x/ }]|u", "config/# }]|local"} {
		way, from, _ := strings.Cut(rest, "|")
		text := bridging("[{ in: "+way) + "\nsettings: { from: " + from + ", allow: devices.*.every }"
		if from == Local {
			text = strings.Replace(text, "in:", "out:", 1)
		}
		if _, err := LoadBytes("f", []byte(text)); err != nil {
			t.Errorf("settings from %s: %v", from, err)
		}
	}
	for _, rules := range []string{
		"[{ out: a/# }, { out: a/b, remote_prefix: x/ }]",                       // twice on purpose, by two names
		"[{ both: a/# }, { in: b/# }, { out: b/# }]",                            // as good as both
		"[{ in: $SYS/#, local_prefix: up/ }, { out: a, remote_prefix: $aws/ }]", // $ on the other side
	} {
		if _, err := LoadBytes("f", []byte(bridging(rules))); err != nil {
			t.Errorf("%s: %v", rules, err)
		}
	}
}

func TestFiltersMeet(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a/#", "a", true}, {"a/#", "a/b/c", true}, {"a/+", "a", false}, {"a/+", "+/b", true},
		{"a/+/c", "+/b/d", false}, {"#", "x/y", true}, {"a/b/#", "a/+", true}, {"a/b/#", "a", false}, {"a/b/#", "a/c/#", false}, {"+", "a/#", true},
	} {
		if filtersMeet(tt.a, tt.b) != tt.want || filtersMeet(tt.b, tt.a) != tt.want {
			t.Errorf("%s and %s: want %t", tt.a, tt.b, tt.want)
		}
	}
}
