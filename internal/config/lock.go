package config

import (
	"fieldgate/internal/config/yamltree"
	"fieldgate/internal/point"
)

// lockPoint is the name of the point that locks commands out.
func lockPoint() value[point.ID] {
	v := text("the name of a point, device.point")
	return value[point.ID]{v.schema, func(d *decoder, n *node) (point.ID, bool) {
		s, ok := v.read(d, n)
		return point.ID(s), ok
	}}
}

// lock checks that the point which locks commands out can be on and off, and is
// looked at. The path is at command_rules.
func (r *resolver) lock() {
	id := r.cfg.CommandRules.Lock
	if id == "" {
		return
	}
	_, rules := r.root.Get("command_rules")
	if rules == nil || rules.Kind != yamltree.Map {
		return // reported
	}
	all := r.everyPoint()
	names := make([]string, len(all))
	for i, w := range all {
		if names[i] = string(w.point.ID); w.point.ID != id {
			continue
		}
		switch p := w.point; {
		case p.Map != nil || p.Type == point.String || p.Type == point.Bytes || p.Type == point.Datetime:
			r.keyFault(rules, "lock", "%s has texts as its values, and is neither on nor off; write a point that is a bit or a number", id)
		case w.device.Bus != "" && (p.Every == point.Never || p.Every == point.Once):
			r.keyFault(rules, "lock", "%s is not polled, so that nobody would notice the key being turned; give it an every:", id)
		}
		return
	}
	if !r.partial { // else it may stand where nothing could be read
		r.keyFault(rules, "lock", "there is no point %s; %s", quote(string(id)), Suggest(string(id), names))
	}
}
