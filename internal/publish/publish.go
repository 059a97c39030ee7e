// Package publish turns samples into messages by the rules of the
// configuration: which points, on which topics, in which form, and when. It
// knows words, not machines: whatever takes the messages is an mqtt.Sink.
//
// The types to know are Publisher, which follows a feed of the pipeline, and
// Topic, one topic of one rule with its points, whose Render is pure.
//
// # When a sample is published
//
// A rule looks at each of its points by itself.
//
//   - change: any publishes a value or a quality that differs from the one
//     published last. With a dead band a number has to differ by more than the
//     band, so slow drift gets through once it adds up. A change of quality,
//     text or a boolean always counts.
//   - each publishes every reading.
//   - at_least publishes again what has not been published for that long, and
//     never later: a reading that comes within one and a half poll intervals of
//     that time is taken for it; if none comes, the last reading is said again,
//     with its own time.
//   - at_most keeps the messages of one topic that far apart. What changed
//     meanwhile is published at the end of the gap if it still differs then.
//   - every publishes the last readings at whole multiples of the interval in
//     UTC, by the time of day. If the clock is set forward past such a time it
//     publishes once, if it is set back it begins anew.
//
// A batch is published whole: once one point of a poll is due, everything that
// the poll read for this topic goes into the object.
//
// A Bad sample publishes nothing, stops the heartbeat of its point, and makes
// the next good one count as a change: the first reading after an outage is
// always published. With "bad: null" it is published like any other, as null.
package publish

import (
	"context"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"fieldgate/internal/clock"
	"fieldgate/internal/config"
	"fieldgate/internal/health"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/pipeline"
	"fieldgate/internal/point"
)

// Publisher applies rules to a feed. Make one with New, then call Run.
type Publisher struct {
	// Clock, if not nil, knows the time of day, and whether it can be believed.
	// It is to be set before Run.
	Clock *clock.Clock

	log    *slog.Logger
	start  time.Time         // moments count from here, by the monotonic clock
	rules  []*rule           // those that have topics
	units  []unit            // of all points and rules; those of one point stand together
	points map[point.ID]span // nil once all of them have been seen
	unmet  int               // of points: not seen yet
	slots  []slot            // by pipeline.Slot; grows as points are seen
	sinks  []*outlet
	first  uint64 // where new topics begin to number

	// Until Run has begun: the Publisher before, and where the newest samples are.
	old  *Publisher
	from *pipeline.Pipeline

	// What the current step has to say, until flush.
	out     []outgoing
	buf     []byte    // payloads, one after the other
	touched []*stream // batches that the step has readings for
	picks   []pick
	tell    teller

	alive     health.Beat
	dropped   uint64 // batches, by the feed when last looked at
	droppedAt time.Time
	behind    bool // the feed has dropped batches lately

	samples, unknown, messages, bytes atomic.Uint64
}

// span is a run of units.
type span struct{ first, count int32 }

// slot is what is known of a point of the pipeline.
type slot struct {
	span
	seen bool // the point has been looked up
}

// outgoing is a message whose payload still lies in Publisher.buf.
type outgoing struct {
	stream   *stream
	topic    string
	from, to int
	stamp    int // as mqtt.Message.Stamp
}

// outlet is a sink with what is known of it.
type outlet struct {
	name             string
	sink             mqtt.Sink
	msgs             []mqtt.Message // scratch of flush
	failing          bool           // a delivery was refused, lately
	refused          time.Time      // when one was, last
	messages, errors atomic.Uint64
}

// New returns a Publisher of the topics that Topics has laid out for the
// devices; it keeps neither. sinks holds what the rules' To names: the uplinks by
// their names, and the local broker as config.Local.
func New(topics []Topic, devices []config.Device, sinks map[string]mqtt.Sink, log *slog.Logger) *Publisher {
	p := &Publisher{log: log, start: time.Now()}
	p.tell.zero = p.start.UnixNano()
	for _, name := range slices.Sorted(maps.Keys(sinks)) {
		p.sinks = append(p.sinks, &outlet{name: name, sink: sinks[name]})
	}

	// Units in the order of the points, so that what is read together lies
	// together.
	for i := range devices {
		p.unmet += len(devices[i].Points)
	}
	points := make([]*point.Point, 0, p.unmet)
	for i := range devices {
		for j := range devices[i].Points {
			points = append(points, &devices[i].Points[j])
		}
	}
	p.points = make(map[point.ID]span, len(points))
	p.slots = make([]slot, 0, len(points))
	spans := make([]span, len(points))
	for i := range topics {
		for j := range topics[i].members {
			spans[topics[i].members[j].index].count++
		}
	}
	total := int32(0)
	for i := range spans {
		spans[i].first = total
		total += spans[i].count
		p.points[points[i].ID] = spans[i]
		spans[i].count = 0 // counts again below, as the units are made
	}
	p.units = make([]unit, total)

	streams := make([]stream, len(topics))
	first := 0 // of the rule's streams
	for i := range topics {
		t := &topics[i]
		if len(p.rules) == 0 || p.rules[len(p.rules)-1].form != t.form {
			p.rules = append(p.rules, p.newRule(t.form))
			first = i
		}
		r := p.rules[len(p.rules)-1]
		r.streams = streams[first : i+1]
		// Numbers begin at the milliseconds since 1970, or where the clock says,
		// so that those after a restart are above those before: nothing is
		// published a thousand times a second for long.
		st := &streams[i]
		*st = stream{name: t.Name, rule: r, seq: uint64(max(p.start.UnixMilli(), 0))}
		units := st.only[:]
		if r.batch() {
			units = make([]*unit, len(t.members))
			st.batch = &batch{units: units}
		}
		for j := range t.members {
			m := &t.members[j]
			sp := &spans[m.index]
			u := &p.units[sp.first+sp.count]
			sp.count++
			*u = unit{rule: r, stream: st, text: m.text, early: r.early(points[m.index].Every)}
			units[j] = u
		}
	}
	return p
}

// newRule returns a rule without streams.
func (p *Publisher) newRule(f *form) *rule {
	r := newRule(f, p.start.UTC())
	for i, o := range p.sinks {
		if f.rule.To == nil || slices.Contains(f.rule.To, o.name) {
			r.sinks = append(r.sinks, i)
		}
	}
	return r
}

// Run publishes what comes out of feed until the feed is closed or ctx ends;
// then it still publishes what the feed holds, and what at_most held back, and
// returns nil. It never waits for anything but its feed and its sinks. It may
// be called once.
func (p *Publisher) Run(ctx context.Context, feed *pipeline.Feed) error {
	p.dropped, _ = feed.Dropped()
	if p.old == nil {
		p.number(nil)
	}
	// The sinks are open until this has returned, so the end of ctx must not
	// keep the last messages from them.
	deliver := context.WithoutCancel(ctx)
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer p.alive.Stops()
	p.inherit()
	p.flush(deliver)
	for open := true; open; {
		select {
		case b, ok := <-feed.C():
			if open = ok; ok {
				p.begin()
				p.take(p.now(), b)
				runtime.Gosched() // what is about to emit goes in the same step
				open = p.takeWaiting(feed)
			}
		case <-timer.C:
			p.begin()
			p.wake(time.Now())
		case <-ctx.Done():
			for p.takeWaiting(feed) && len(feed.C()) > 0 {
				p.flush(deliver)
			}
			open = false
		}
		p.flush(deliver)
		p.watch(feed)
		wait := p.next(time.Now())
		timer.Reset(wait)
		p.alive.Rests(wait)
	}
	p.release(p.now())
	p.flush(deliver)
	return nil
}

// begin begins a step: it notices that the clock was set. All times of a step are
// told by the same clock.
func (p *Publisher) begin() {
	p.Clock.Look()
	p.alive.Works()
	zero, set := p.Clock.At(p.start)
	p.tell.zero, p.tell.unset = zero, !set
}

// now returns the moment it is.
func (p *Publisher) now() moment { return time.Since(p.start) }

// enough ends a step, in messages and in bytes of payload.
const (
	enoughMessages = 1024
	enoughBytes    = 256 << 10
)

// takeWaiting takes the batches that wait already, as far as one step goes:
// they cost no wake-up and no delivery of their own. It returns false when the
// feed is closed and empty.
func (p *Publisher) takeWaiting(feed *pipeline.Feed) (open bool) {
	for len(p.out) < enoughMessages && len(p.buf) < enoughBytes {
		select {
		case b, ok := <-feed.C():
			if !ok {
				return false
			}
			p.take(p.now(), b)
		default:
			return true
		}
	}
	return true
}

// watch logs when the feed begins to drop batches and when that is over.
func (p *Publisher) watch(feed *pipeline.Feed) {
	batches, samples := feed.Dropped()
	switch {
	case batches != p.dropped:
		p.dropped, p.droppedAt = batches, time.Now()
		if !p.behind {
			p.behind = true
			p.log.Error("publishing is slower than the field, oldest samples dropped", "batches", batches, "samples", samples)
		}
	case p.behind && time.Since(p.droppedAt) >= quietAfter:
		p.behind = false
		p.log.Info("publishing keeps up again", "batches", batches, "samples", samples)
	}
}

// flush delivers what the steps since the last one have to say.
func (p *Publisher) flush(ctx context.Context) {
	if len(p.out) == 0 {
		return
	}
	p.messages.Add(uint64(len(p.out)))
	p.bytes.Add(uint64(len(p.buf)))
	for i := range p.out {
		o := &p.out[i]
		f := o.stream.rule.form
		msg := mqtt.Message{Topic: o.topic, Payload: p.buf[o.from:o.to:o.to], QoS: f.rule.QoS, Retain: f.rule.Retain, Stamp: uint32(o.stamp)}
		for _, s := range o.stream.rule.sinks {
			p.sinks[s].msgs = append(p.sinks[s].msgs, msg)
		}
	}
	for _, s := range p.sinks {
		if len(s.msgs) > 0 {
			s.deliver(ctx, p.log)
		}
	}
	clear(p.out)
	p.out, p.buf = p.out[:0], p.buf[:0]
}

// quietAfter is how long nothing must be lost before the trouble counts as over:
// one odd message in each poll is one trouble, not many.
const quietAfter = time.Minute

// deliver hands the messages to the sink. What a sink refuses is its loss
// alone: it is counted, and logged when it begins and ends.
func (o *outlet) deliver(ctx context.Context, log *slog.Logger) {
	err := o.sink.Deliver(ctx, o.msgs...)
	switch {
	case err != nil:
		o.errors.Add(1)
		o.refused = time.Now()
		if !o.failing {
			o.failing = true
			log.Error("messages refused", "to", o.name, "messages", len(o.msgs), "err", err)
		}
	default:
		o.messages.Add(uint64(len(o.msgs)))
		if o.failing && time.Since(o.refused) >= quietAfter {
			o.failing = false
			log.Info("messages taken again", "to", o.name, "refused", o.errors.Load())
		}
	}
	clear(o.msgs)
	o.msgs = o.msgs[:0]
}

// Overdue returns for how long Run has been owing its next step; more than some
// seconds means that it hangs.
func (p *Publisher) Overdue() time.Duration { return p.alive.Overdue() }

// Stats counts since New.
type Stats struct {
	Samples  uint64 // taken from the feed
	Unknown  uint64 // of them, of points that no device of the configuration has
	Messages uint64 // rendered; each goes to one or more sinks
	Bytes    uint64 // of their payloads
	Sinks    []SinkStats
}

// SinkStats counts deliveries to one sink.
type SinkStats struct {
	Name     string
	Messages uint64 // delivered without an error
	Errors   uint64 // deliveries, of one or more messages, that had one
}

// Stats returns the counters. It may be called at any time from any goroutine.
func (p *Publisher) Stats() Stats {
	s := Stats{Samples: p.samples.Load(), Unknown: p.unknown.Load(), Messages: p.messages.Load(), Bytes: p.bytes.Load()}
	for _, o := range p.sinks {
		s.Sinks = append(s.Sinks, SinkStats{o.name, o.messages.Load(), o.errors.Load()})
	}
	return s
}
