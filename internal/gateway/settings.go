package gateway

import (
	"bytes"
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
	"fieldgate/internal/publish"
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
	remoteIDs     = 256       // that are remembered
	remoteID      = 128       // bytes of an id
	remoteReason  = 2000      // bytes of a reason
)

// remoteEvent is what the audit log calls a change of settings.
const remoteEvent = "settings"

// trialLook is how often a trial looks whether the gateway moves.
const trialLook = 250 * time.Millisecond

// At its end a trial looks so often, that long apart, before something is worse: a
// connection that is just being made again is not.
const (
	trialLooks = 5
	trialAgain = 2 * time.Second
)

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
	inbox   chan request
	answers map[string]remoteAnswer // last ones, by id
	order   []string                // of the ids, the oldest first
}

// request is a message that asks for a change, and what is needed to answer it.
type request struct {
	ID  string `json:"id"`
	Via string `json:"via"`
	By  string `json:"by"`
	Ack string `json:"ack"`

	payload  []byte
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
		r := request{Via: via, By: from.User, Ack: s.Ack, payload: bytes.Clone(m.Payload), retained: m.Retain, at: time.Now()}
		if r.By == "" {
			r.By = from.Client
		}
		if via == config.Local && len(s.Users) > 0 && !slices.Contains(s.Users, from.User) {
			g.remote.say(r, remoteAnswer{Status: remoteRejected, Reason: fmt.Sprintf("the user %q may not send it", from.User)})
			return nil
		}
		select {
		case g.remote.inbox <- r:
		default:
			g.remote.say(r, remoteAnswer{Status: remoteRejected, Reason: "busy: too many changes wait already"})
		}
		return nil
	}
	return []uplink.Subscription{{Filter: mqtt.Filter(s.Topic), QoS: 1, Handle: take}}
}

// say answers.
func (r *remote) say(to request, a remoteAnswer) {
	g := r.gateway
	a.Reason = short(a.Reason)
	a.ID, a.By, a.Time = to.ID, to.By, point.Timestamp(g.clock.Day(time.Now()))
	if a.By == "" {
		a.By = to.Via
	}
	payload, err := json.Marshal(a)
	if err != nil {
		g.log.Error("write answer", "err", err)
		return
	}
	g.answer(to.Via, g.dated(mqtt.Message{Topic: to.Ack, QoS: 1, Payload: payload}))
}

// run takes what comes until ctx ends.
func (r *remote) run(ctx context.Context) error {
	if r.source != nil {
		r.remember()
		if lost := r.source.cutOff; lost != nil && lost.ID != "" {
			r.end(ctx, *lost, remoteAnswer{Status: remoteBack, Reason: "the gateway was stopped while the change was on trial"})
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case q := <-r.inbox:
			r.handle(ctx, q)
		}
	}
}

// remember reads the last answers of before the start.
func (r *remote) remember() {
	since := time.Now().Add(-30 * 24 * time.Hour)
	_ = audit.ReadSince(r.gateway.dir, since, func(rec audit.Record) error { // what cannot be read is logged by the desk
		if rec.Event == remoteEvent && rec.ID != "" && rec.Status != remoteAccepted {
			r.keep(rec.ID, remoteAnswer{Status: rec.Status, Reason: rec.Reason})
		}
		return nil
	})
}

// keep remembers the answer to an id.
func (r *remote) keep(id string, a remoteAnswer) {
	if _, known := r.answers[id]; !known {
		r.order = append(r.order, id)
	}
	r.answers[id] = a
	if len(r.order) > remoteIDs {
		delete(r.answers, r.order[0])
		r.order = r.order[1:]
	}
}

// end says and records what came of a request.
func (r *remote) end(ctx context.Context, q request, a remoteAnswer) {
	a.Reason = short(a.Reason)
	if q.ID != "" {
		r.keep(q.ID, a)
	}
	if err := r.record(ctx, q, a); err != nil {
		r.gateway.log.Error("not recorded", "event", remoteEvent, "id", q.ID, "status", a.Status, "err", err)
	}
	r.say(q, a)
}

// record puts an answer into the audit log, and so on the topic of events.
func (r *remote) record(ctx context.Context, q request, a remoteAnswer) error {
	log := r.gateway.now.Load().audit
	if log == nil {
		return nil // settings is gone from the configuration meanwhile
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	var from, to []string
	for _, d := range a.Diff {
		from, to = append(from, d.Path+": "+d.From), append(to, d.Path+": "+d.To)
	}
	reason := a.Reason
	if len(a.Faults) > 0 {
		reason += ": " + strings.Join(a.Faults, "; ")
	}
	_, err := log.Append(limit, audit.Record{
		Event: remoteEvent, ID: q.ID, By: q.By, Via: q.Via, Status: a.Status, Reason: short(reason),
		Value: strings.Join(to, ", "), Previous: strings.Join(from, ", "), Ms: time.Since(q.at).Milliseconds(),
	})
	return err
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
	case len(q.payload) > remotePayload:
		return c, fmt.Errorf("it has %d bytes, at most %d are taken", len(q.payload), remotePayload)
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

// handle does what a request asks for, and answers it.
func (r *remote) handle(ctx context.Context, q request) {
	c, err := r.read(&q)
	if first, known := r.answers[q.ID]; known && q.ID != "" {
		r.say(q, first)
		return
	}
	if err != nil {
		r.end(ctx, q, remoteAnswer{Status: remoteRejected, Reason: err.Error()})
		return
	}
	release := sync.OnceFunc(r.source.Hold())
	defer release()
	a, was, next := r.prepare(q, c)
	if a.Status == remoteRejected {
		r.end(ctx, q, a)
		return
	}
	if err := r.record(ctx, q, a); err != nil {
		r.back(&a, "it cannot be recorded: "+err.Error(), remoteRejected)
		r.end(ctx, q, a)
		return
	}
	r.say(q, a)
	r.try(ctx, q, a, was, next, release)
}

// loaded is a configuration as Load returns it.
type loaded struct {
	cfg    *config.Config
	topics []publish.Topic
}

// prepare loads the configuration as it is, stages a change, and loads it with
// that.
func (r *remote) prepare(q request, c change) (a remoteAnswer, was, next loaded) {
	a.Status = remoteRejected
	s := r.source
	layer, err := s.layer()
	if err != nil {
		a.Reason = "what was changed before cannot be read: " + err.Error()
		return a, was, next
	}
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
		return a, was, next
	}
	slices.Sort(keys)
	if was.cfg, was.topics, err = s.Load(); err != nil {
		a.Reason = "the configuration is no good as it stands, so that nothing can be tried: " + err.Error()
		return a, was, next
	}
	before, err := config.Values(s.path, Layer(s.dir), keys)
	if err == nil {
		err = s.stage(q, layer)
	}
	if err != nil {
		a.Reason = "it cannot be staged: " + err.Error()
		return a, was, next
	}
	after, err := config.Values(s.path, s.trial(), keys)
	if err == nil {
		next.cfg, next.topics, err = s.Load()
	}
	for _, key := range keys {
		if before[key] != after[key] || config.IsSecret(key) {
			a.Diff = append(a.Diff, settingDiff{key, before[key], after[key]})
		}
	}
	var faults config.Faults
	if errors.As(err, &faults) {
		for _, f := range faults {
			f.File, f.Line, f.Col = "", 0, 0
			a.Faults = append(a.Faults, strings.TrimPrefix(f.Error(), ": "))
		}
		r.back(&a, "the configuration would be no good with it", remoteRejected)
		return a, was, next
	}
	if err != nil {
		r.back(&a, err.Error(), remoteRejected)
		return a, was, next
	}
	if len(a.Diff) == 0 || next.cfg.Settings == nil { // the file may have changed just now
		r.back(&a, "it changes nothing", remoteRejected)
		return a, was, next
	}
	a.Status = remoteAccepted
	return a, was, next
}

// back ends a trial, or what was staged for one, without it.
func (r *remote) back(a *remoteAnswer, reason, status string) {
	a.Status, a.Reason, a.Until = status, reason, ""
	if err := r.source.end(false); err != nil {
		r.gateway.log.Error("what was staged is not taken away", "err", err)
	}
}

// try puts a change to work, and confirms it or takes it back. The source is held
// until it is at work.
func (r *remote) try(ctx context.Context, q request, a remoteAnswer, was, next loaded, release func()) {
	g := r.gateway
	well := g.Status()
	_, err := g.Reload(ctx, next.cfg, next.topics)
	release()
	if err != nil {
		r.back(&a, "it cannot be put to work: "+err.Error(), remoteRejected)
		r.end(ctx, q, a)
		return
	}
	over := time.Now().Add(next.cfg.Settings.Confirm)
	a.Status, a.Until = remoteApplied, point.Timestamp(g.clock.Day(over))
	r.say(q, a)
	g.log.Info("settings changed from afar, on trial", "id", q.ID, "by", q.By, "via", q.Via, "until", a.Until)

	why := r.watch(ctx, well, q.Via, over)
	if ctx.Err() != nil {
		return // the next start takes it back, and says so
	}
	if why != "" {
		r.back(&a, why, remoteBack)
		r.restore(ctx, was, func(err error) {
			told := a
			told.Reason += "; what was before cannot be put to work yet: " + err.Error()
			r.say(q, told)
		})
		g.log.Warn("settings from afar taken back", "id", q.ID, "reason", why)
		r.end(ctx, q, a)
		return
	}
	a.Status, a.Until = remoteDone, ""
	if err := r.source.end(true); err != nil {
		a.Reason = "but it is lost with the next start: " + err.Error()
	}
	g.log.Info("settings from afar confirmed", "id", q.ID)
	r.end(ctx, q, a)
}

// restore puts the configuration without the trial to work, as it stands now, or
// was as it stood before it if there are faults in it meanwhile. It goes on until
// that is so, or the gateway stops, and tells of the first failure.
func (r *remote) restore(ctx context.Context, was loaded, tell func(error)) {
	g := r.gateway
	for first := true; ; first = false {
		next, release := was, r.source.Hold()
		if cfg, topics, err := r.source.Load(); err == nil {
			next = loaded{cfg, topics}
		} else {
			g.log.Warn("the configuration is no good, what it was before the trial is put to work", "err", err)
		}
		_, err := g.Reload(ctx, next.cfg, next.topics)
		release()
		if err == nil || errors.Is(err, ErrNotRunning) || ctx.Err() != nil {
			return
		}
		g.log.Error("what was before the trial cannot be put to work", "err", err, "again", restoreAgain)
		if first {
			tell(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(restoreAgain):
		}
	}
}

// watch looks on until a trial is over, and says why it has failed: something
// hangs, or at its end, and for some seconds after it, something is not as well as
// it was before.
func (r *remote) watch(ctx context.Context, was Status, via string, over time.Time) (why string) {
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
			q.ID = idOf(q.payload)
			r.say(q, remoteAnswer{Status: remoteRejected, Reason: "busy: a change is on trial, until " + point.Timestamp(r.gateway.clock.Day(over))})
		case <-look.C:
		}
		if err := r.gateway.Healthy(); err != nil {
			return err.Error()
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
