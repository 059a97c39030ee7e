package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"fieldgate/internal/audit"
	"fieldgate/internal/bus"
	"fieldgate/internal/clock"
	"fieldgate/internal/command"
	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
	"fieldgate/internal/uplink"
)

// This file is how settings are changed from afar (settings in the
// configuration): a message is checked, the whole configuration with it, then it
// is tried, and taken back if the gateway does worse. See docs/settings.md.

// Bounds of what is taken.
const (
	remoteWaits   = 4         // messages that wait; past them one is refused
	remotePayload = 256 << 10 // bytes of a message
	remoteMost    = 200       // settings in all
	remoteIDs     = 256       // that are remembered, of changes that were accepted and of others
	remoteID      = 128       // bytes of an id
	remoteReason  = 2000      // bytes of a reason
)

// remoteEvent is what the audit log calls a change of settings.
const remoteEvent = "settings"

// What is refused is recorded so many times in that span; what is more is counted,
// in one record for the span: a flood must not wear out the flash, nor push what was
// written out of the audit log.
const (
	refusalsMost = 10
	refusalsSpan = time.Minute
)

// trialLook is how often a trial looks whether the gateway moves.
const trialLook = 250 * time.Millisecond

// At its end a trial looks so often, that long apart, before something is worse: a
// connection that is just being made again is not.
const (
	trialLooks = 5
	trialAgain = 2 * time.Second
)

// What was said is safe after that time: the embedded broker has it on disk for the
// sessions of clients that are away. An uplink's queue says so itself, if it can be
// had within that time.
const saidSafe = 3 * time.Second

// restoreAgain is how long it is until what was before a trial is put to work again.
const restoreAgain = 10 * time.Second

// The words of an answer.
const (
	remoteRejected = "rejected"
	remoteAccepted = "accepted"    // it is recorded, and is put to work
	remoteApplied  = "applied"     // it is at work, on trial
	remoteDone     = "confirmed"   // for good
	remoteBack     = "rolled back" // what was before is at work
)

// remote takes changes of settings, one after the other.
type remote struct {
	gateway *Gateway
	source  *Source
	inbox   chan *request

	// The rest but refusals belongs to run.
	accepted answers          // how far changes are that were, and what came of them
	refused  answers          // of others: they push none of the first out
	said     <-chan time.Time // the last answer is safe, and the file of its trial may go; nil: it has gone

	refusals refusals
}

func newRemote(g *Gateway) *remote {
	return &remote{gateway: g, inbox: make(chan *request, remoteWaits), refusals: refusals{news: make(chan struct{}, 1)}}
}

// answers is the last answers, by id. The zero value is empty.
type answers struct {
	byID  map[string]remoteAnswer
	order []string // of the ids, the oldest first
}

// keep remembers the answer to an id, "" for none.
func (s *answers) keep(id string, a remoteAnswer) {
	if id == "" {
		return
	}
	if s.byID == nil {
		s.byID = make(map[string]remoteAnswer)
	}
	if _, known := s.byID[id]; !known {
		s.order = append(s.order, id)
	}
	s.byID[id] = a
	if len(s.order) > remoteIDs {
		delete(s.byID, s.order[0])
		s.order = s.order[1:]
	}
}

// request is a message that asks for a change, and what is needed to answer it.
type request struct {
	ID  string `json:"id"`
	Via string `json:"via"`
	By  string `json:"by"`
	Ack string `json:"ack"`

	payload  []byte // nil if it is longer than remotePayload
	size     int    // of the message
	retained bool
	at       time.Time
}

// remoteAnswer is what the sender is told.
type remoteAnswer struct {
	ID     string        `json:"id,omitempty"`
	Status string        `json:"status"`
	Reason string        `json:"reason,omitempty"`
	Diff   []settingDiff `json:"diff,omitempty"`
	Faults []string      `json:"faults,omitempty"`
	Until  string        `json:"until,omitempty"` // when the trial ends
	By     string        `json:"by,omitempty"`
	Time   string        `json:"timestamp"`
}

// settingDiff is one key before and after, as YAML in one line; "" is what the
// configuration does not give.
type settingDiff struct {
	Path string `json:"path"`
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// Follow has the gateway take changes of settings by messages, where its
// configuration, which source has loaded, says so. It is to be called before Run.
func (g *Gateway) Follow(source *Source) {
	g.remote.source = source
}

// settings returns what an uplink, or the embedded broker, brings for changes of
// settings.
func (g *Gateway) settings(a *assembly, via string) []uplink.Subscription {
	s := a.settings
	if s == nil || !slices.Contains(s.From, via) {
		return nil
	}
	take := func(m mqtt.Message, from mqtt.Origin) <-chan struct{} {
		q := &request{Via: via, By: from.User, Ack: s.Ack, size: len(m.Payload), retained: m.Retain, at: time.Now()}
		if q.size <= remotePayload {
			q.payload = bytes.Clone(m.Payload)
		}
		if q.By == "" {
			q.By = from.Client
		}
		if via == config.Local && len(s.Users) > 0 && !slices.Contains(s.Users, from.User) {
			g.remote.turnAway(q, fmt.Sprintf("the user %q may not send it", from.User))
			return nil
		}
		select {
		case g.remote.inbox <- q:
		default:
			g.remote.turnAway(q, "busy: too many changes wait already")
		}
		return nil
	}
	return []uplink.Subscription{{Filter: mqtt.Filter(s.Topic), QoS: 1, Handle: take}}
}

// message returns an answer as it is sent.
func (r *remote) message(to *request, a remoteAnswer) mqtt.Message {
	g := r.gateway
	a.Reason = short(a.Reason)
	a.ID, a.By, a.Time = to.ID, to.By, point.Timestamp(g.clock.Day(time.Now()))
	if a.By == "" {
		a.By = to.Via
	}
	payload, err := json.Marshal(a)
	if err != nil {
		g.log.Error("write answer", "err", err)
	}
	return g.dated(mqtt.Message{Topic: to.Ack, QoS: 1, Payload: payload})
}

// say answers.
func (r *remote) say(to *request, a remoteAnswer) { r.gateway.answer(to.Via, r.message(to, a)) }

// step answers how far a change is that was accepted.
func (r *remote) step(to *request, a remoteAnswer) {
	r.accepted.keep(to.ID, a)
	r.source.at("say " + a.Status)
	r.say(to, a)
}

// turnAway refuses a message unread. Its id is not taken for seen, and stands in
// the record's words only: anybody may name the id of another. It does not block.
func (r *remote) turnAway(q *request, reason string) {
	q.ID = idOf(q.payload)
	a := remoteAnswer{Status: remoteRejected, Reason: reason}
	r.tell(q, a)
	if q.ID != "" {
		a.Reason += fmt.Sprintf(" (id %q)", q.ID)
		q.ID = ""
	}
	r.refusals.note(q, &a)
}

// tell answers what a power cut may take, that nothing is changed above all: a flood
// of what is refused costs the flash nothing.
func (r *remote) tell(to *request, a remoteAnswer) {
	r.gateway.tell(to.Via, r.message(to, a))
}

// run takes what comes until ctx ends.
func (r *remote) run(ctx context.Context) error {
	if r.source != nil {
		r.remember(ctx)
	}
	span := time.NewTicker(refusalsSpan)
	defer span.Stop()
	defer r.recordRefusals(ctx, true)
	defer func() {
		if r.said != nil {
			r.settle() // the broker writes all that waits when it ends, after this
		}
	}()
	for {
		r.recordRefusals(ctx, false)
		select {
		case <-ctx.Done():
			return nil
		case q := <-r.inbox:
			r.handle(ctx, q)
		case <-r.said:
			r.settle()
		case <-r.refusals.news:
		case <-span.C:
		}
	}
}

// cutOff is what is said of a trial that the end of the process has ended.
const cutOff = "the gateway was stopped while the change was on trial"

// remember reads what became of changes before the start. What an earlier process
// has not said to the end it says: of a trial that it has left behind, and of a
// change that it has accepted and that is on no trial any more.
func (r *remote) remember(ctx context.Context) {
	s, g := r.source, r.gateway
	since := time.Now().Add(-30 * 24 * time.Hour)
	open := make(map[string]*request)                                // accepted, and no more is recorded
	_ = audit.ReadSince(g.dir, since, func(rec audit.Record) error { // what cannot be read is logged by the desk
		if rec.Event != remoteEvent || rec.ID == "" {
			return nil
		}
		a := remoteAnswer{Status: rec.Status, Reason: rec.Reason}
		_, tried := open[rec.ID]
		switch {
		case rec.Status == remoteAccepted:
			open[rec.ID] = &request{ID: rec.ID, Via: rec.Via, By: rec.By, at: time.Now()}
			r.accepted.keep(rec.ID, a)
		case rec.Status == remoteRejected && !tried:
			r.refused.keep(rec.ID, a)
		default:
			delete(open, rec.ID)
			r.accepted.keep(rec.ID, a)
		}
		return nil
	})
	var last head // of the layer
	if text, err := read(Layer(s.dir)); err == nil && text != nil {
		last, _ = headOf(text) // else somebody has written it by hand
	}
	var a remoteAnswer
	if last.ID != "" && json.Unmarshal(last.Answer, &a) == nil {
		r.accepted.keep(last.ID, a) // with all that it says
	}
	if h := s.left; h != nil {
		_, unrecorded := open[h.ID]
		_, known := r.accepted.byID[h.ID]
		delete(open, h.ID)
		r.resume(ctx, h, unrecorded || !known)
	}
	for _, id := range slices.Sorted(maps.Keys(open)) { // of a program that left nothing else behind, or a file that somebody has removed
		q := open[id]
		if g.now.Load().settings != nil {
			q.Ack = g.now.Load().settings.Ack
		}
		a := remoteAnswer{Status: remoteBack, Reason: cutOff}
		if last.ID == id {
			a = remoteAnswer{Status: remoteDone}
		}
		r.accepted.keep(id, a)
		r.record(ctx, recordOf(q, &a))
		if q.Ack != "" {
			r.say(q, a)
		}
	}
}

// resume brings a trial to its end that an earlier process has left behind. What was
// decided then is said as it was to be said: that may have been done, so it must be
// the very same message.
func (r *remote) resume(ctx context.Context, h *head, unrecorded bool) {
	h.at = time.Now()
	text := r.source.outcome(h)
	var a remoteAnswer
	if text == nil || json.Unmarshal(text, &a) != nil {
		r.conclude(ctx, h, &remoteAnswer{Status: remoteBack, Reason: cutOff}, unrecorded)
		return
	}
	r.finish(ctx, &h.request, &a, mqtt.Message{Topic: h.Ack, QoS: 1, Payload: text}, unrecorded)
}

// conclude decides what came of a trial that has failed, and says it.
func (r *remote) conclude(ctx context.Context, h *head, a *remoteAnswer, unrecorded bool) {
	m := r.message(&h.request, *a)
	if err := r.source.note(h, m.Payload); err != nil {
		r.gateway.log.Error("the answer to a change of settings may be another one after a crash", "id", h.ID, "err", err)
	}
	r.finish(ctx, &h.request, a, m, unrecorded)
}

// finish records and says what was decided of a trial, and forgets the trial.
func (r *remote) finish(ctx context.Context, q *request, a *remoteAnswer, m mqtt.Message, unrecorded bool) {
	r.accepted.keep(q.ID, *a)
	if unrecorded {
		r.source.at("record " + a.Status)
		r.record(ctx, recordOf(q, a))
	}
	r.source.at("say " + a.Status)
	g := r.gateway
	g.answer(q.Via, m)
	w := g.now.Load().way(q.Via)
	if w.queue == nil {
		r.said = time.After(saidSafe)
		return
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), saidSafe)
	defer cancel()
	if err := w.queue.Sync(limit); err != nil {
		g.log.Warn("the last answer to a change of settings is in memory only, it is given again with the next start", "id", q.ID, "err", err)
		return
	}
	r.settle()
}

// settle forgets the trial that the last answer was about.
func (r *remote) settle() {
	r.said = nil
	if err := r.source.settle(); err != nil {
		r.gateway.log.Error("the file of a trial is not taken away", "err", err)
	}
}

// record is append where nothing depends on it.
func (r *remote) record(ctx context.Context, rec audit.Record) {
	if err := r.append(ctx, rec); err != nil {
		r.gateway.log.Error("not recorded", "event", rec.Event, "id", rec.ID, "status", rec.Status, "err", err)
	}
}

// append puts a record into the audit log, and so on the topic of events.
func (r *remote) append(ctx context.Context, rec audit.Record) error {
	log := r.gateway.now.Load().audit
	if log == nil {
		return nil // settings is gone from the configuration meanwhile
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err := log.Append(limit, rec)
	return err
}

// recordOf returns the record of an answer that is given now.
func recordOf(q *request, a *remoteAnswer) audit.Record {
	var from, to []string
	for _, d := range a.Diff {
		from, to = append(from, d.Path+": "+d.From), append(to, d.Path+": "+d.To)
	}
	reason := a.Reason
	if len(a.Faults) > 0 {
		reason += ": " + strings.Join(a.Faults, "; ")
	}
	return audit.Record{
		Time: time.Now(), Event: remoteEvent, ID: q.ID, By: q.By, Via: q.Via, Status: a.Status, Reason: short(reason),
		Value: strings.Join(to, ", "), Previous: strings.Join(from, ", "), Ms: time.Since(q.at).Milliseconds(),
	}
}

// refusals is what was refused and is to be recorded. It is safe for use by several
// goroutines.
type refusals struct {
	news chan struct{} // holds one token when there is something to record

	mu      sync.Mutex
	since   time.Time // when the span began
	count   int       // in it
	records []audit.Record
	more    int // that are not recorded one by one
	first   time.Time
	last    time.Time
}

// note has a refusal recorded, or counted.
func (s *refusals) note(q *request, a *remoteAnswer) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.since) >= refusalsSpan && s.more == 0 {
		s.since, s.count = now, 0
	}
	if s.count++; s.count > refusalsMost {
		if s.more++; s.more == 1 {
			s.first = now
		}
		s.last = now
		return
	}
	s.records = append(s.records, recordOf(q, a))
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// take returns what is to be recorded now. The count of what is not recorded one by
// one comes when its span is over, or at the end.
func (s *refusals) take(ended bool) []audit.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	records := s.records
	s.records = nil
	if now := time.Now(); s.more > 0 && (ended || now.Sub(s.since) >= refusalsSpan) {
		records = append(records, audit.Record{
			Time: now, Event: remoteEvent, Status: remoteRejected,
			Reason: fmt.Sprintf("%d more were refused from %s to %s, and are not recorded one by one", s.more, point.Timestamp(s.first), point.Timestamp(s.last)),
		})
		s.since, s.count, s.more = now, 0, 0
	}
	return records
}

// recordRefusals records what was refused.
func (r *remote) recordRefusals(ctx context.Context, ended bool) {
	for _, rec := range r.refusals.take(ended) {
		r.record(ctx, rec)
	}
}

// short cuts a reason to remoteReason bytes: it may hold what a sender wrote.
func short(reason string) string {
	if len(reason) <= remoteReason {
		return reason
	}
	const cut = "…"
	return strings.ToValidUTF8(reason[:remoteReason-len(cut)], "") + cut
}

// change is a request that was read.
type change struct {
	ID        string                     `json:"id"`
	Set       map[string]json.RawMessage `json:"set"`
	Reset     bool                       `json:"reset"`
	Timestamp *time.Time                 `json:"timestamp"`
	Expires   *time.Time                 `json:"expires"`
}

// read reads a request and holds it against the gate: an error says why it is
// refused.
func (r *remote) read(q *request) (c change, err error) {
	g := r.gateway
	a := g.now.Load()
	switch {
	case r.source == nil:
		return c, errors.New("this gateway is not run from a file")
	case a.settings == nil:
		return c, errors.New("settings are not changed by messages any more")
	case q.retained:
		return c, errors.New("it was retained: nobody knows when it was sent; send it without retain")
	case q.size > remotePayload:
		return c, fmt.Errorf("it has %d bytes, at most %d are taken", q.size, remotePayload)
	}
	dec := json.NewDecoder(bytes.NewReader(q.payload))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return c, fmt.Errorf(`it is not such an object: %w; write {"id":"…","set":{"devices.boiler.every":"5s"}}`, err)
	}
	if len(c.ID) <= remoteID { // no more of a sender's making is kept and recorded
		q.ID = c.ID
	}
	o := command.Order{MaxAge: a.maxAge}
	if c.Timestamp != nil {
		o.Issued = *c.Timestamp
	}
	if c.Expires != nil {
		o.Expires = *c.Expires
	}
	kept := !a.way(q.Via).cfg.CleanSession && q.Via != config.Local
	switch late := o.Late(q.at, g.clock.State() != clock.Unset); {
	case dec.More():
		return c, errors.New("more than one object is in it")
	case c.ID == "" || len(c.ID) > remoteID:
		return c, fmt.Errorf("it needs an id, of %d bytes at most", remoteID)
	case late != "":
		return c, errors.New(late)
	case kept && o.Issued.IsZero():
		return c, errors.New("it has no timestamp: the broker keeps messages while this gateway is away, and nobody could tell how old it is")
	case len(c.Set) == 0 && !c.Reset:
		return c, errors.New("there is nothing in set")
	case len(c.Set) > remoteMost:
		return c, fmt.Errorf("it has %d settings, at most %d are taken", len(c.Set), remoteMost)
	}
	for _, key := range slices.Sorted(maps.Keys(c.Set)) {
		if why := a.settings.Refuses(key); why != "" {
			return c, fmt.Errorf("%s: %s", key, why)
		}
	}
	return c, nil
}

// known answers a message whose id was seen before, and reports whether it was.
func (r *remote) known(q *request) bool {
	a, known := r.accepted.byID[q.ID]
	if !known {
		a, known = r.refused.byID[q.ID]
	}
	if known {
		r.tell(q, a)
	}
	return known
}

// handle does what a request asks for, and answers it.
func (r *remote) handle(ctx context.Context, q *request) {
	c, err := r.read(q)
	if r.known(q) {
		return
	}
	a := remoteAnswer{Status: remoteRejected}
	refuse := func() {
		r.refused.keep(q.ID, a)
		r.tell(q, a)
		r.refusals.note(q, &a)
	}
	if err != nil {
		a.Reason = err.Error()
		refuse()
		return
	}
	release := sync.OnceFunc(r.source.Hold())
	defer release()
	t := r.prepare(c)
	if a = t.answer; a.Status == remoteRejected {
		refuse()
		return
	}
	h, err := r.source.stage(q, t.body, t.before)
	if err != nil {
		if r.said == nil {
			r.settle() // it may have its name already
		}
		a = remoteAnswer{Status: remoteRejected, Reason: "it cannot be staged: " + err.Error()}
		refuse()
		return
	}
	r.said = nil // its file is written over
	r.source.at("record accepted")
	if err := r.append(ctx, recordOf(q, &a)); err != nil {
		r.source.drop()
		r.settle()
		a = remoteAnswer{Status: remoteRejected, Reason: "it cannot be recorded: " + err.Error()}
		refuse()
		return
	}
	r.step(q, a)
	r.try(ctx, h, t, release)
}

// prepared is a change that can be tried, or the answer that says why not.
type prepared struct {
	answer remoteAnswer
	keys   []string // that it sets
	body   []byte   // the layer with it
	before []byte   // text of the layer's file without it; nil: there is none
	was    loaded
	next   loaded
}

// prepare loads the configuration as it is, and with a change. Nothing is written: a
// flood of what is no good costs the flash nothing.
func (r *remote) prepare(c change) *prepared {
	t := new(prepared)
	s, a := r.source, &t.answer
	a.Status, t.keys = remoteRejected, slices.Sorted(maps.Keys(c.Set))
	before, layer, err := s.layer()
	if err != nil {
		a.Reason = "what was changed before cannot be read: " + err.Error()
		return t
	}
	t.before = before
	keys := slices.Collect(maps.Keys(layer))
	if c.Reset {
		clear(layer)
	}
	for key, v := range c.Set {
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
		if string(v) == "null" {
			delete(layer, key)
		} else {
			layer[key] = v
		}
	}
	if len(layer) > remoteMost {
		a.Reason = fmt.Sprintf("%d settings would be changed from afar, at most %d can be; take some of them back", len(layer), remoteMost)
		return t
	}
	slices.Sort(keys)
	if t.was.cfg, t.was.topics, err = s.Load(); err != nil {
		a.Reason = "the configuration is no good as it stands, so that nothing can be tried: " + err.Error()
		return t
	}
	switch is, was := t.was.cfg.Sums, r.gateway.now.Load().sums; {
	case is.Files != was.Files:
		a.Reason = "the configuration on site was edited and is not at work, and would go to work with this change; have it reloaded first"
		return t
	case is.Layer != was.Layer:
		a.Reason = layerFile + " on site was edited or removed and that is not at work, and would go to work with this change; have it reloaded first"
		return t
	}
	values, err := config.Values(s.path, before, keys)
	if err == nil {
		t.body, err = bodyOf(layer)
	}
	var changed map[string]string
	if err == nil {
		changed, err = config.Values(s.path, t.body, keys)
	}
	if err == nil {
		t.next.cfg, t.next.topics, err = loadOver(s.path, s.trialPath(), t.body)
	}
	for _, key := range keys {
		if values[key] != changed[key] || config.IsSecret(key) {
			a.Diff = append(a.Diff, settingDiff{key, values[key], changed[key]})
		}
	}
	var faults config.Faults
	switch {
	case errors.As(err, &faults):
		for _, f := range faults {
			f.File, f.Line, f.Col = "", 0, 0
			a.Faults = append(a.Faults, strings.TrimPrefix(f.Error(), ": "))
		}
		a.Reason = "the configuration would be no good with it"
	case err != nil:
		a.Reason = err.Error()
	case t.next.cfg.Sums.Files != t.was.cfg.Sums.Files:
		a.Reason = "the configuration on site is just being edited; have it reloaded first"
	case len(a.Diff) == 0:
		a.Reason = "it changes nothing"
	default:
		a.Status = remoteAccepted
	}
	return t
}

// try puts a change to work, and confirms it or takes it back. The source is held
// until it is at work.
func (r *remote) try(ctx context.Context, h *head, t *prepared, release func()) {
	g, q, a := r.gateway, &h.request, t.answer
	well := g.Status()
	_, err := g.Reload(ctx, t.next.cfg, t.next.topics)
	if ctx.Err() != nil {
		return // the next start takes it back, and says so
	}
	if err != nil {
		r.source.drop()
		release()
		a.Status, a.Reason = remoteRejected, "it cannot be put to work: "+err.Error()
		r.conclude(ctx, h, &a, true)
		return
	}
	release()
	over := time.Now().Add(t.next.cfg.Settings.Confirm)
	a.Status, a.Until = remoteApplied, point.Timestamp(g.clock.Day(over))
	r.step(q, a)
	g.log.Info("settings changed from afar, on trial", "id", q.ID, "by", q.By, "via", q.Via, "until", a.Until)

	why := r.watch(ctx, well, q.Via, t.keys, over)
	if ctx.Err() != nil {
		return // likewise
	}
	a.Until = ""
	if why == "" {
		a.Status = remoteDone
		m := r.message(q, a)
		if err := r.source.keep(m.Payload); err == nil {
			g.log.Info("settings from afar confirmed", "id", q.ID)
			r.finish(ctx, q, &a, m, true)
			return
		} else {
			why = "it cannot be kept: " + err.Error()
		}
	}
	a.Status, a.Reason = remoteBack, why
	r.source.drop()
	g.log.Warn("settings from afar taken back", "id", q.ID, "reason", why)
	told := false
	r.restore(ctx, t.was, func(err error) {
		told = true
		a.Reason += "; what was before cannot be put to work yet, and is tried again: " + err.Error()
		r.conclude(ctx, h, &a, true)
	})
	if !told && ctx.Err() == nil {
		r.conclude(ctx, h, &a, true)
	}
}

// restore puts the configuration without the trial to work: as it stands now, unless
// somebody on site is just editing the file, or as it was. It goes on until that is
// so, or the gateway stops, and tells of the first failure.
func (r *remote) restore(ctx context.Context, was loaded, tell func(error)) {
	g := r.gateway
	for first := true; ; first = false {
		release, fresh := r.source.Hold(), false
		if was, fresh = r.source.without(was, g.now.Load().sums); !fresh {
			g.log.Warn("the configuration on site is being edited, what was loaded of it before is put to work")
		}
		_, err := g.Reload(ctx, was.cfg, was.topics)
		release()
		if err == nil || errors.Is(err, ErrNotRunning) || ctx.Err() != nil {
			return
		}
		g.log.Error("what was before the trial cannot be put to work", "err", err, "again", restoreAgain)
		if first {
			tell(err)
		}
		for again := time.After(restoreAgain); again != nil; {
			select {
			case <-ctx.Done():
				return
			case <-again:
				again = nil
			case q := <-r.inbox:
				r.meanwhile(q, "what was before a change is being put to work")
			}
		}
	}
}

// meanwhile answers a message that comes while a change is on trial.
func (r *remote) meanwhile(q *request, busy string) {
	if q.ID = idOf(q.payload); !r.known(q) {
		r.turnAway(q, "busy: "+busy)
	}
}

// narrowed says which of the keys of a trial a reload meanwhile does not allow any
// more; "" if all are.
func (r *remote) narrowed(keys []string) string {
	s := r.gateway.now.Load().settings
	if s == nil {
		return "settings: was removed on site"
	}
	for _, key := range keys {
		if why := s.Refuses(key); why != "" {
			return key + ": " + why
		}
	}
	return ""
}

// watch looks on until a trial of keys is over, and says why it has failed: something
// hangs, somebody on site has ended it, or at its end, and for some seconds after it, something is not as well as
// it was before.
func (r *remote) watch(ctx context.Context, was Status, via string, keys []string, over time.Time) (why string) {
	look := time.NewTicker(trialLook)
	defer look.Stop()
	for looks := 0; ; {
		if !time.Now().Before(over) {
			looks++
			why = worse(was, r.gateway.Status(), via)
			if why == "" || looks == trialLooks {
				return why
			}
			over = time.Now().Add(trialAgain)
		}
		select {
		case <-ctx.Done():
			return ""
		case q := <-r.inbox:
			r.meanwhile(q, "a change is on trial, until "+point.Timestamp(r.gateway.clock.Day(over)))
		case <-look.C:
		}
		r.recordRefusals(ctx, false)
		if err := r.gateway.Healthy(); err != nil {
			return err.Error()
		}
		if what := cmp.Or(r.source.edited(), r.narrowed(keys)); what != "" {
			return what
		}
	}
}

// idOf returns the id of a message that is refused unread.
func idOf(payload []byte) string {
	var c struct {
		ID string `json:"id"`
	}
	if json.Unmarshal(payload, &c) != nil || len(c.ID) > remoteID {
		return ""
	}
	return c.ID
}

// worse says what was well and is not any more, of what both know; "" if nothing.
// The uplink that a change has come by must be connected.
func worse(was, is Status, via string) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(is.Uplinks)) {
		connected := func(s Status) bool { return strings.HasPrefix(s.Uplinks[name].Status, "Connected") }
		if (connected(was) || name == via) && !connected(is) {
			all = append(all, "uplink "+name+" is not connected: "+is.Uplinks[name].Error)
		}
	}
	if _, there := is.Uplinks[via]; !there && via != config.Local {
		all = append(all, "there is no uplink "+via+" any more, which it came by")
	}
	for _, name := range slices.Sorted(maps.Keys(is.Buses)) {
		before, now := was.Buses[name], is.Buses[name]
		if before.Connected && !now.Connected {
			all = append(all, "bus "+name+" is not connected: "+now.Error)
			continue
		}
		for _, d := range slices.Sorted(maps.Keys(now.Devices)) {
			if is := now.Devices[d]; before.Devices[d].State == bus.Online.String() && gone(is) {
				all = append(all, "device "+d+" is "+is.State+": "+is.Error)
			}
		}
	}
	return strings.Join(all, "; ")
}

// gone reports whether a device does not answer. One that missed a poll may be back
// with the next; one that was not asked yet, or never is, says nothing.
func gone(d DeviceStatus) bool {
	return d.State == bus.Offline.String() || d.State == bus.Unknown.String() && d.Polls > 0
}
