package command

import (
	"context"
	"encoding/hex"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"fieldgate/internal/audit"
	"fieldgate/internal/clock"
	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
)

// Subscription is a filter whose messages are commands.
type Subscription struct {
	Filter mqtt.Filter
	QoS    uint8
	Handle mqtt.Handler

	// TooLong is to be given a message of which only the topic came, because its
	// payload, of so many bytes, is too long for the connection.
	TooLong func(msg mqtt.Message, length int, from mqtt.Origin)
}

// Subscriptions returns what to subscribe to at an uplink, or at the embedded
// broker (config.Local), each filter once.
func (d *Desk) Subscriptions(via string) []Subscription {
	var subs []Subscription
	of := make(map[string][]*config.Command)
	b := d.book.Load()
	for i := range b.commands {
		c := &b.commands[i]
		if !slices.Contains(c.From, via) {
			continue
		}
		if of[c.Filter] == nil {
			subs = append(subs, Subscription{Filter: mqtt.Filter(c.Filter), QoS: c.QoS})
		}
		of[c.Filter] = append(of[c.Filter], c)
	}
	for i := range subs {
		h := handler{d: d, commands: of[string(subs[i].Filter)], kept: slices.Contains(b.kept, via)}
		for _, c := range h.commands {
			subs[i].QoS = max(subs[i].QoS, c.QoS)
		}
		subs[i].Handle, subs[i].TooLong = h.take, h.tooLong
	}
	return subs
}

// handler takes the messages of one filter.
type handler struct {
	d        *Desk
	commands []*config.Command // several only if each matches another text
	kept     bool              // the broker keeps messages while we are away
}

// message is one that a handler has taken.
type message struct {
	mqtt.Message
	from    mqtt.Origin
	command *config.Command
	targets []config.Target // that are meant on its topic
	meant   point.ID        // the one point that it writes; "": several, or it cannot be told
	long    int             // bytes of a payload that is not here because of its length
	at      time.Time
	clock   *clock.Clock
}

// take is an mqtt.Handler: it reads and checks the message and hands the rest
// to Run. Every message gets one answer in the end.
func (h handler) take(msg mqtt.Message, from mqtt.Origin) (safe <-chan struct{}) {
	return h.handle(message{Message: msg, from: from})
}

// tooLong is take for a message whose payload, of so many bytes, did not come.
func (h handler) tooLong(msg mqtt.Message, length int, from mqtt.Origin) {
	h.handle(message{Message: msg, from: from, long: length})
}

func (h handler) handle(m message) (safe <-chan struct{}) {
	msg := m.Message
	m.at, m.clock, m.command = time.Now(), h.d.o.Clock, h.choose(msg)
	if !fitsLevels(m.command.Topic, msg.Topic) {
		return nil // + took what only a placeholder inside of a level would not
	}
	for _, t := range m.command.Targets {
		if mqtt.Filter(t.Filter).Match(msg.Topic) {
			m.targets = append(m.targets, t)
		}
	}
	if len(m.targets) == 1 {
		m.meant = m.targets[0].Point
	}
	switch m.command.Kind {
	case config.EventCommand:
		return h.d.event(m)
	case config.ReadCommand:
		return h.d.readCommand(m)
	}
	return h.d.writeCommand(m, h)
}

// choose returns the command that a message is: of several, the one whose text
// it is, or the first, which will refuse it.
func (h handler) choose(msg mqtt.Message) *config.Command {
	if len(h.commands) > 1 && len(msg.Payload) <= maxPayload {
		for _, c := range h.commands {
			if r, err := decode(c, c.Targets, msg.Payload, h.d.find, time.Now()); err == nil && len(r.writes) > 0 {
				return c
			}
		}
	}
	return h.commands[0]
}

// fitsLevels reports whether a topic has, in each level with a placeholder, the
// text that stands around it.
func fitsLevels(pattern, topic string) bool {
	ps, ts := strings.Split(pattern, "/"), strings.Split(topic, "/")
	for i, p := range ps {
		first, last := strings.IndexByte(p, '{'), strings.LastIndexByte(p, '}')
		if first < 0 || i >= len(ts) {
			continue
		}
		if before, after := p[:first], p[last+1:]; len(ts[i]) < len(before)+len(after) ||
			!strings.HasPrefix(ts[i], before) || !strings.HasSuffix(ts[i], after) {
			return false
		}
	}
	return true
}

// ackTopic is where the message is answered.
func (m *message) ackTopic() string {
	switch {
	case len(m.targets) > 0 && m.targets[0].Ack != "":
		return m.targets[0].Ack
	case m.command.Ack.Topic != "" && !strings.Contains(m.command.Ack.Topic, "{"):
		return m.command.Ack.Topic
	}
	return m.Topic + "/ack"
}

// reply publishes an answer where the message came from.
func (m *message) reply(payload []byte, stamp uint32) {
	m.from.Reply(mqtt.Message{Topic: m.ackTopic(), Payload: payload, QoS: 1, Stamp: stamp})
}

// sender is who sent the message, for the record.
func (m *message) sender() string {
	if m.from.User != "" {
		return m.from.User
	}
	return m.from.Client
}

// answer answers with a Result.
func (m *message) answer(id string, r Result) {
	if text := m.command.Ack.Text; text != "" && r.Status == Verified {
		m.reply([]byte(text), 0)
		return
	}
	a := answer{id: id, by: by(m.from.User, m.from.Via), point: string(m.meant), result: r}
	m.reply(a.json(m.clock))
}

// barred says why a message may not be a command at all; "" if it may.
func (h handler) barred(m *message) (class, string) {
	switch {
	case !m.permitted():
		return bySender, fmt.Sprintf("the user %s may not send it", quote(m.from.User))
	case m.Retain && !m.command.Restore:
		return byRetained, "it was retained: nobody knows when it was sent; send commands without retain"
	case len(m.targets) == 0:
		return byPoint, fmt.Sprintf("no point that may be written is meant by the topic %s", quote(m.Topic))
	case m.long > 0:
		return byMessage, errTooLong(m.long).Error()
	}
	return 0, ""
}

// permitted reports whether the command is open to the user who sent it.
func (m *message) permitted() bool {
	return len(m.command.Users) == 0 || m.from.Via != config.Local || slices.Contains(m.command.Users, m.from.User)
}

// writeCommand takes a message that asks for a write.
func (d *Desk) writeCommand(m message, h handler) (safe <-chan struct{}) {
	c := m.command
	refuse := func(c class, id, reason string) {
		d.count.received.Add(1)
		j := &job{order: Order{ID: id, By: m.sender(), Via: m.from.Via}, received: m.at}
		j.record.Point = string(m.meant)
		j.record.Value = cut(m.Payload)
		m.answer(id, d.refuse(j, refusal(c, "%s", reason)).result)
	}
	if c, why := h.barred(&m); why != "" {
		refuse(c, "", why)
		return nil
	}
	r, err := decode(c, m.targets, m.Payload, d.find, m.at)
	if len(r.writes) == 1 {
		m.meant = r.writes[0].Point
	}
	o := Order{
		ID: r.id, By: m.sender(), Via: m.from.Via, Writes: r.writes,
		Issued: r.issued, Expires: r.expires, counted: r.counted, MaxAge: c.MaxAge, Retry: c.Retry,
		NoRush: !c.Emergency, Stop: c.StopOnError, answer: m.ackTopic(),
	}
	switch {
	case err != nil:
		refuse(byMessage, r.id, err.Error())
		return nil
	case strings.HasPrefix(o.ID, dated):
		refuse(byID, r.id, "an id must not begin with "+dated)
		return nil
	case c.NeedID && o.ID == "":
		refuse(byID, "", "it has no id, and this command needs one")
		return nil
	case h.kept && o.Issued.IsZero() && !c.Emergency:
		refuse(byTime, r.id, "it has no timestamp: the broker keeps messages while this gateway is away, and nobody could tell how old it is")
		return nil
	}
	if c.Restore {
		if m.Retain && !d.news(m) {
			refuse(byRetained, r.id, "it is the retained message that was taken before")
			return nil
		}
		if !m.Retain {
			d.news(m)
		} else {
			o.Issued = time.Time{} // a setpoint that is restored may be old
		}
	}
	j, v := d.admit(o, m.at)
	switch {
	case j == nil && v.first == nil:
		m.answer(o.ID, v.result)
		return nil
	case j == nil:
		select {
		case <-v.first.done:
			m.answer(o.ID, v.first.result)
		default:
			if !d.submit(func(_, grace context.Context) { m.answer(o.ID, d.await(grace, v)) }) {
				m.answer(o.ID, refusal(byLoad, busy+"the first message with this id has not ended yet"))
			}
		}
		return nil
	}
	var accepted func()
	if c.Ack.Stages {
		accepted = func() { m.answer(o.ID, d.accepted(j)) }
	}
	if !d.submit(func(ctx, grace context.Context) { m.answer(o.ID, d.perform(ctx, grace, j, accepted)) }) {
		m.answer(o.ID, d.withdraw(j))
		return nil
	}
	return j.safe
}

// accepted is the first of two answers to an order.
func (d *Desk) accepted(j *job) Result {
	r := Result{Status: Accepted, Took: time.Since(j.received)}
	for i := range j.writes {
		r.Writes = append(r.Writes, Outcome{Point: j.writes[i].place.point.ID, Status: Accepted, Value: j.writes[i].expect})
	}
	return r
}

// withdraw takes back an order that Run takes no more.
func (d *Desk) withdraw(j *job) Result {
	r := refusal(byLoad, busy+"too much waits already, or the gateway is stopping")
	r.Took = time.Since(j.received)
	for i := range j.writes {
		d.unspend(j.writes[i].place, j.received)
	}
	for _, t := range j.turns {
		d.leave(t)
	}
	close(j.safe)
	d.noteRefusal(j.refused(r))
	d.settle(j, r, true)
	return r
}

// news notes what was last taken on a topic, and reports whether that differs.
// A broker sends its retained message again at each connection.
func (d *Desk) news(m message) bool {
	sum := maphash.Bytes(d.seed, m.Payload)
	d.mu.Lock()
	defer d.mu.Unlock()
	old, known := d.restored[m.Topic]
	if known && old == sum || !known && len(d.restored) >= maxIDs {
		return false
	}
	d.restored[m.Topic] = sum
	return true
}

// event writes a message to the event log.
func (d *Desk) event(m message) (safe <-chan struct{}) {
	if !m.permitted() || m.Retain {
		return nil // what was retained was told when it was sent
	}
	d.count.events.Add(1)
	rec := audit.Record{
		Event: m.command.Event, By: m.sender(), Via: m.from.Via, Point: m.Topic, Value: cut(m.Payload),
	}
	ok, skipped := d.alerts.allow(eventsPerMinute, time.Minute)
	if !ok {
		d.lostRecord(rec, fmt.Errorf("%d messages for the event log came within a minute", eventsPerMinute))
		return nil
	}
	if m.long > 0 {
		rec.Reason = errTooLong(m.long).Error()
	}
	if skipped > 0 {
		rec.Reason = strings.TrimPrefix(rec.Reason+fmt.Sprintf("; %d more came before and were not kept", skipped), "; ")
	}
	if d.events.Add(1) > maxEvents {
		d.events.Add(-1)
		d.lostRecord(rec, fmt.Errorf("%d messages for the event log wait already", maxEvents))
		return nil
	}
	done := make(chan struct{})
	wait := d.o.Audit.Start(rec) // here, so that they stand in the order in which they came
	ok = d.submit(func(_, grace context.Context) {
		defer close(done)
		defer d.events.Add(-1)
		limit, cancel := context.WithTimeout(grace, recordLimit)
		defer cancel()
		if _, err := wait(limit); err != nil {
			d.lostRecord(rec, err)
		}
	})
	if !ok { // it is on its way all the same
		d.events.Add(-1)
		return nil
	}
	return done
}

// cut shows a payload in a record: its beginning, in hexadecimal digits if it is
// no text.
func cut(payload []byte) string {
	const most = 500
	if !utf8.Valid(payload) {
		return "0x" + hex.EncodeToString(payload[:min(len(payload), most/2)])
	}
	if len(payload) <= most {
		return string(payload)
	}
	return strings.ToValidUTF8(string(payload[:most]), "") + "…"
}

// readCommand answers with the values of points, read now.
func (d *Desk) readCommand(m message) (safe <-chan struct{}) {
	d.count.received.Add(1)
	refuse := func(c class, id string, reason string) {
		rejected := refusal(c, "%s", reason)
		rejected.Took = time.Since(m.at)
		d.tally(rejected)
		m.answer(id, rejected)
	}
	r, err := decode(m.command, m.targets, m.Payload, d.find, m.at)
	if m.long > 0 {
		err = errTooLong(m.long)
	}
	if err != nil {
		refuse(byMessage, r.id, err.Error())
		return nil
	}
	var ids []point.ID
	for _, t := range m.targets {
		if r.only == "" || string(t.Point) == r.only || t.Point.Name() == r.only {
			ids = append(ids, t.Point)
		}
	}
	o := Order{Issued: r.issued, Expires: r.expires, counted: r.counted, MaxAge: m.command.MaxAge}
	switch late := o.late(m.at, d.o.ClockSet(), false); {
	case !m.permitted():
		refuse(bySender, r.id, fmt.Sprintf("the user %s may not send it", quote(m.from.User)))
		return nil
	case m.Retain:
		refuse(byRetained, r.id, "it was retained: nobody knows when it was sent")
		return nil
	case len(ids) == 0:
		meant := r.only
		if meant == "" {
			meant = m.Topic
		}
		refuse(byPoint, r.id, fmt.Sprintf("no point that may be read is meant by %s", quote(meant)))
		return nil
	case m.command.NeedID && r.id == "":
		refuse(byID, "", "it has no id, and this command needs one")
		return nil
	case late != "":
		refuse(byTime, r.id, late)
		return nil
	}
	if d.reads.Add(1) > maxReads {
		d.reads.Add(-1)
		refuse(byLoad, r.id, fmt.Sprintf(busy+"%d reads wait already", maxReads))
		return nil
	}
	ok := d.submit(func(_, grace context.Context) {
		defer d.reads.Add(-1)
		d.answerRead(grace, m, r.id, ids)
	})
	if !ok {
		d.reads.Add(-1)
		refuse(byLoad, r.id, busy+"too much waits already")
	}
	return nil
}

// answerRead reads and answers {"id":…,"status":"read","values":[…]}.
func (d *Desk) answerRead(ctx context.Context, m message, id string, ids []point.ID) {
	limit, cancel := context.WithTimeout(ctx, writeLimit)
	samples, err := d.o.Field.Read(limit, ids...)
	cancel()
	good := slices.ContainsFunc(samples, func(s point.Sample) bool { return s.Quality != point.Bad })
	b := []byte{'{'}
	if id != "" {
		b = append(point.AppendJSONString(append(b, `"id":`...), id), ',')
	}
	status := Read
	if !good {
		status = Failed
		d.tally(Result{Status: Failed})
	}
	b = point.AppendJSONString(append(b, `"status":`...), string(status))
	b = append(b, `,"values":[`...)
	for i, s := range samples {
		if i > 0 {
			b = append(b, ',')
		}
		b = point.AppendJSONString(append(b, `{"point":`...), string(s.ID))
		b = s.Value.AppendJSON(append(b, `,"value":`...))
		if p := d.book.Load().points[s.ID]; p != nil && p.point.Unit != "" {
			b = point.AppendJSONString(append(b, `,"unit":`...), p.point.Unit)
		}
		b = point.AppendJSONString(append(b, `,"quality":`...), s.Quality.String())
		b = append(point.AppendJSONString(append(b, `,"timestamp":`...), point.Timestamp(d.o.Clock.Day(s.Time))), '}')
	}
	b = append(b, ']')
	if err != nil {
		b = point.AppendJSONString(append(b, `,"reason":`...), err.Error())
	}
	b = point.AppendJSONString(append(b, `,"by":`...), by(m.from.User, m.from.Via))
	b = fmt.Appendf(b, `,"ms":%d,"timestamp":`, time.Since(m.at).Milliseconds())
	m.reply(d.o.Clock.Dated(append(point.AppendJSONString(b, point.Timestamp(d.o.Clock.Day(time.Now()))), '}')))
}
