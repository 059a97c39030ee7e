package config

import (
	"net"
	"net/url"
	"slices"
	"strings"

	"fieldgate/internal/config/yamltree"
)

// BridgeRule carries topics between the embedded broker and the broker of an
// uplink. The two sides may call them differently: Filter is over what both
// names have in common, after the prefix of each side.
type BridgeRule struct {
	In, Out      bool // from the uplink's broker; to it
	Filter       string
	LocalPrefix  string // {site} replaced
	RemotePrefix string // likewise
	QoS          uint8  // the highest that messages pass with
	DropRetain   bool   // messages pass without the retain flag
	Fast         bool   // clients are acknowledged before their messages are safe
}

// Local returns the filter of the rule's topics at the embedded broker.
func (r BridgeRule) Local() string { return r.LocalPrefix + r.Filter }

// Remote returns the filter of the rule's topics at the uplink's broker.
func (r BridgeRule) Remote() string { return r.RemotePrefix + r.Filter }

// rawBridge is a rule as it is written.
type rawBridge struct {
	BridgeRule
	in, out, both string
	at            *node
}

func bridgeKey(t *tables) *field[*rawUplink] {
	rule := newObject("a bridge rule", "Topics carried between the embedded broker and the uplink's: exactly one of in, out and both.", rawBridge{},
		key("in", func(b *rawBridge) *string { return &b.in }, filter(), "Messages of the uplink's broker that the embedded one gets.").aka("from", "subscribe", "remote"),
		key("out", func(b *rawBridge) *string { return &b.out }, filter(), "Messages of local clients that the uplink's broker gets.").aka("to", "publish", "forward", "topic", "filter"),
		key("both", func(b *rawBridge) *string { return &b.both }, filter(), "Both ways; what was sent does not come back."),
		key("local_prefix", func(b *rawBridge) *string { return &b.LocalPrefix }, template("a prefix", statusPlaceholders, true), "What stands before the filter at the embedded broker only; {site} is the gateway. Default: nothing.").aka("local"),
		key("remote_prefix", func(b *rawBridge) *string { return &b.RemotePrefix }, template("a prefix", statusPlaceholders, true), "What stands before the filter at the uplink's broker only; {site} is the gateway. Default: nothing.").aka("prefix"),
		key("qos", func(b *rawBridge) *uint8 { return &b.QoS }, qos(), "The highest QoS that messages pass with.").def("1").aka("max_qos"),
		key("retain", func(b *rawBridge) *bool { return &b.DropRetain }, enum(word[bool]{"keep", false}, word[bool]{"drop", true}), "drop: messages pass without their retain flag, and what is retained already does not pass.").def("keep"),
		key("ack", func(b *rawBridge) *bool { return &b.Fast }, enum(word[bool]{"safe", false}, word[bool]{"fast", true}), "safe: a local client's PUBACK says that its message is on our disk or acknowledged upstream; fast: that we have it in memory.").def("safe"),
	)
	rule.extra = schema{{"oneOf", []schema{{{"required", []string{"in"}}}, {{"required", []string{"out"}}}, {{"required", []string{"both"}}}}}}
	v := located(rule.value(t, "bridge_rule"), func(b *rawBridge) **node { return &b.at })
	return key("bridge", func(u *rawUplink) *[]rawBridge { return &u.bridge }, list(v, "bridge rules"), "Topics carried between the embedded broker and this one. Default: none.").aka("bridges", "forwards")
}

// bridges resolves the bridge rules of all uplinks.
func (r *resolver) bridges() {
	for i := range r.raw.uplinks {
		u := &r.raw.uplinks[i]
		if !u.ok || len(u.is.bridge) == 0 {
			continue
		}
		r.in(u.name)
		key, _ := u.at.Get("bridge")
		r.in("bridge")
		if r.raw.broker == nil {
			r.missingf(key, "there is no embedded broker to carry topics from or to; add broker: {}, or remove this")
		}
		for _, url := range u.is.urls {
			if url != nil && r.isOurs(url) {
				r.faultf(key, "the uplink leads to this gateway's own broker (%s), so that messages would go round for ever; write another url, or remove this", url)
			}
		}
		up := &r.cfg.Uplinks[i]
		for j := range u.is.bridge {
			r.path = append(r.path, step{index: j})
			if rule, ok := r.bridge(&u.is.bridge[j]); ok {
				for k, other := range up.Bridge {
					r.bridgesMeet(u.is.bridge[j].at, rule, other, k)
				}
				up.Bridge = append(up.Bridge, rule)
			} else {
				up.Bridge = append(up.Bridge, BridgeRule{}) // keeps the numbers
			}
			r.out()
		}
		r.out()
		r.out()
	}
}

// isOurs reports whether a client that connects to u meets the embedded broker.
func (r *resolver) isOurs(u *url.URL) bool {
	if r.raw.broker == nil || !loopback(u.Hostname()) {
		return false
	}
	for _, l := range r.raw.broker.listen {
		if l == nil || l.Port() != u.Port() {
			continue
		}
		ip := net.ParseIP(l.Hostname())
		if l.Hostname() == "" || loopback(l.Hostname()) || ip != nil && ip.IsUnspecified() {
			return true
		}
	}
	return false
}

// bridge resolves one rule. The path is at it.
func (r *resolver) bridge(b *rawBridge) (rule BridgeRule, ok bool) {
	if b.at.Kind != yamltree.Map {
		return rule, false
	}
	rule, ok = b.BridgeRule, true
	given, where := 0, ""
	for _, way := range []struct {
		key, filter string
		in, out     bool
	}{{"in", b.in, true, false}, {"out", b.out, false, true}, {"both", b.both, true, true}} {
		if !has(b.at, way.key) {
			continue
		}
		given++
		rule.In, rule.Out, rule.Filter, where = way.in, way.out, way.filter, way.key
	}
	switch {
	case given == 0:
		r.shapef(b.at, "says no direction; write one of in, out and both, with a topic filter")
		return rule, false
	case given > 1:
		r.shapef(b.at, "write one of in, out and both; for several filters write several rules")
		return rule, false
	case rule.Filter == "":
		return rule, false // a fault already
	}
	rule.LocalPrefix, rule.RemotePrefix = r.fillIn(rule.LocalPrefix, ""), r.fillIn(rule.RemotePrefix, "")
	for _, side := range []struct{ key, prefix string }{{"local_prefix", rule.LocalPrefix}, {"remote_prefix", rule.RemotePrefix}} {
		switch whole := side.prefix + rule.Filter; {
		case checkFilter(whole) != "":
			r.keyFault(b.at, side.key, "with the filter it makes %s, which is no topic filter; end it with a slash", quote(whole))
			ok = false
		case len(whole) > 65535:
			r.keyFault(b.at, side.key, "with the filter it makes %d bytes, and a filter has 65535 at most; write a shorter one", len(whole))
			ok = false
		}
	}
	switch {
	case strings.HasPrefix(rule.Local(), "$"):
		r.keyFault(b.at, where, "local topics do not begin with $, which is for what a broker says of itself; write a local_prefix")
		ok = false
	case rule.In && strings.HasPrefix(rule.Remote(), "$share/"):
		r.keyFault(b.at, where, "a shared subscription would give the gateway some of the messages only; write the filter without $share")
		ok = false
	case !rule.Out && has(b.at, "ack"):
		r.keyFault(b.at, "ack", "is about messages that go out, so it has no effect here; remove it")
	}
	return rule, ok
}

// bridgesMeet reports a rule that carries the same messages as an earlier one.
func (r *resolver) bridgesMeet(at *node, rule, other BridgeRule, number int) {
	switch {
	case rule.In && other.In && filtersMeet(rule.Remote(), other.Remote()):
		r.faultf(at, "%s and %s of bridge[%d] have topics in common, and a broker may send their messages once for each; write filters that do not overlap", rule.Remote(), other.Remote(), number)
	case rule.Out && other.Out && rule.LocalPrefix == other.LocalPrefix && rule.RemotePrefix == other.RemotePrefix && filtersMeet(rule.Local(), other.Local()):
		r.faultf(at, "%s and %s of bridge[%d] have topics in common, and their messages would go out twice; write filters that do not overlap", rule.Local(), other.Local(), number)
	}
}

// bridgedCommands holds the bridge rules against the commands: a message that
// comes twice must not be carried out twice.
func (r *resolver) bridgedCommands() {
	for i := range r.raw.uplinks {
		u := &r.raw.uplinks[i]
		r.in(u.name)
		r.in("bridge")
		for j, rule := range r.cfg.Uplinks[i].Bridge {
			r.path = append(r.path, step{index: j})
			for _, c := range r.cfg.Commands {
				if rule.Filter == "" || !slices.Contains(c.From, u.name) || !filtersMeet(rule.Remote(), c.Filter) {
					continue
				}
				at := u.is.bridge[j].at
				if rule.In {
					r.faultf(at, "%s and the command %s have topics in common, and a broker may send their messages once for each, so that a command could be carried out twice; write filters that do not overlap", rule.Remote(), c.Topic)
				} else {
					r.faultf(at, "what local clients publish would come back by the command %s; write filters that do not overlap, or from: without %s in the command", c.Topic, u.name)
				}
			}
			r.out()
		}
		r.out()
		r.out()
	}
}

// bridgedSettings holds the bridge rules against settings: what local clients send
// must not come back as a change from an uplink.
func (r *resolver) bridgedSettings() {
	s := r.cfg.Settings
	if s == nil || s.Topic == "" {
		return
	}
	for i := range r.raw.uplinks {
		u := &r.raw.uplinks[i]
		if !slices.Contains(s.From, u.name) {
			continue
		}
		r.in(u.name)
		r.in("bridge")
		for j, rule := range r.cfg.Uplinks[i].Bridge {
			if rule.Filter == "" || !rule.Out || !filtersMeet(rule.Remote(), s.Topic) {
				continue
			}
			r.path = append(r.path, step{index: j})
			r.faultf(u.is.bridge[j].at, "what local clients publish would come back by %s as a change of settings from %s; write filters that do not overlap, or another settings.topic", s.Topic, u.name)
			r.out()
		}
		r.out()
		r.out()
	}
}

// filtersMeet reports whether there is a topic that both filters match.
func filtersMeet(a, b string) bool {
	for {
		al, arest, amore := strings.Cut(a, "/")
		bl, brest, bmore := strings.Cut(b, "/")
		switch {
		case al == "#" || bl == "#":
			return true
		case al != bl && al != "+" && bl != "+":
			return false
		case !amore && !bmore:
			return true
		case !amore:
			return brest == "#" // a/# matches a
		case !bmore:
			return arest == "#"
		}
		a, b = arest, brest
	}
}
