package publish

import (
	"cmp"
	"maps"
	"reflect"
	"slices"

	"fieldgate/internal/pipeline"
	"fieldgate/internal/point"
)

// Succeed makes p go on where old, another Publisher of the same pipeline, has
// ended, so that a new configuration is not as if everything had been read for
// the first time: what a rule has published, and what it knows of a point, stays
// so as long as rule, topic and wording are the same, and all numbers stay above
// those before. What is new is published at once, from the pipeline's newest
// sample. It is to be called before Run; old must have returned from its Run
// when Run is called.
func (p *Publisher) Succeed(old *Publisher, from *pipeline.Pipeline) { p.old, p.from = old, from }

// inherit is Succeed at the beginning of Run.
func (p *Publisher) inherit() {
	old, from := p.old, p.from
	p.old, p.from = nil, nil
	if old == nil {
		return
	}
	p.start = old.start // moments stay comparable
	p.number(old)
	p.recount(old)
	p.begin()

	h := heritage{p, old, make(map[[2]*rule]bool)}
	now := p.now()
	points := p.points
	for _, id := range slices.SortedFunc(maps.Keys(points), func(a, b point.ID) int { return cmp.Compare(points[a].first, points[b].first) }) {
		n, seen := from.Slot(id)
		if !seen {
			continue
		}
		p.meet(n, id)
		sp := points[id]
		var before []unit
		if int(n) < len(old.slots) {
			b := old.slots[n].span
			before = old.units[b.first : b.first+b.count]
		}
		newest, ok := from.Last(id)
		units := p.units[sp.first : sp.first+sp.count]
		for i := range units {
			u := &units[i]
			j := slices.IndexFunc(before, func(o unit) bool { return h.same(&o, u) })
			switch {
			case j >= 0:
				u.inherit(&before[j])
			case ok:
				p.look(now, u, &newest)
			}
		}
	}
	p.settle(now)
	for _, r := range p.rules {
		if r.when.AtLeast > 0 {
			r.nextBeat = r.firstBeat()
		}
	}
}

// heritage holds the units of two Publishers against each other.
type heritage struct {
	p, old *Publisher
	rules  map[[2]*rule]bool // whether two rules are the same
}

// same reports whether what was said of a unit is said of another one too: the
// same words, in the same place, to nobody new.
func (h *heritage) same(o, u *unit) bool {
	if o.stream.name != u.stream.name || (o.text == nil) != (u.text == nil) || o.text != nil && *o.text != *u.text {
		return false
	}
	pair := [2]*rule{o.rule, u.rule}
	same, known := h.rules[pair]
	if !known {
		same = reflect.DeepEqual(o.rule.rule, u.rule.rule) && !slices.ContainsFunc(u.rule.sinks, func(i int) bool {
			return !slices.ContainsFunc(o.rule.sinks, func(j int) bool { return h.old.sinks[j].name == h.p.sinks[i].name })
		})
		h.rules[pair] = same
	}
	return same
}

// inherit takes over what is known of a point.
func (u *unit) inherit(o *unit) {
	u.said, u.quality, u.read = o.said, o.quality, o.read
	u.last, u.sent, u.silent, u.back, u.known = o.last, o.sent, o.silent, o.back, o.known
	u.stream.last, u.stream.sent = o.stream.last, o.stream.sent
}

// number moves the numbers of all topics to where the clock says, and above
// those of old, if there is one.
func (p *Publisher) number(old *Publisher) {
	if p.Clock == nil && old == nil {
		return
	}
	if p.Clock != nil {
		p.first = p.Clock.First()
	}
	before := make(map[string]uint64)
	if old != nil {
		p.first = max(p.first, old.first)
		for _, r := range old.rules {
			for i := range r.streams {
				st := &r.streams[i]
				before[st.name] = max(before[st.name], st.seq)
				p.first = max(p.first, st.seq)
			}
		}
	}
	for _, r := range p.rules {
		for i := range r.streams {
			st := &r.streams[i]
			if seq, ok := before[st.name]; ok {
				st.seq = seq
			} else {
				st.seq = p.first
			}
		}
	}
}

// recount goes on counting where old has ended.
func (p *Publisher) recount(old *Publisher) {
	p.samples.Store(old.samples.Load())
	p.unknown.Store(old.unknown.Load())
	p.messages.Store(old.messages.Load())
	p.bytes.Store(old.bytes.Load())
	for _, o := range p.sinks {
		for _, b := range old.sinks {
			if b.name == o.name {
				o.messages.Store(b.messages.Load())
				o.errors.Store(b.errors.Load())
			}
		}
	}
}
