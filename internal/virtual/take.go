package virtual

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"fieldgate/internal/point"
)

// Take sets the points that listen to a topic with what a message says, that
// came from an uplink, or config.Local. retained is true for one that the broker
// had kept: how old it is only its timestamp can tell.
//
// The payload is the value itself (25.4, on, text), as text or as JSON, or a
// JSON object that has it in the member that the point names. null means that
// there is no value. A message that does not fit a point changes nothing there;
// that is logged, once as long as the same is wrong.
func (s *Set) Take(topic, from string, payload []byte, retained bool) {
	var m message
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.fed[topic] {
		if !slices.Contains(c.source.From, from) {
			continue
		}
		if m.payload == nil { // looked at once, for all points of the topic
			m = parse(payload)
		}
		if err := s.take(c, &m, retained); err != nil {
			if text := err.Error(); text != c.said {
				c.said = text
				s.log.Warn("message not taken", "point", c.point.ID, "topic", topic, "from", from, "err", err)
			}
			continue
		}
		c.said = ""
	}
}

// take sets one point. Where a value counts for a time only, a message from a
// backlog (an uplink may send what is new first) takes nothing from a newer one.
func (s *Set) take(c *cell, m *message, retained bool) error {
	v, none, err := m.value(&c.point, c.source.Key)
	if err != nil {
		return err
	}
	q, until, at := m.quality, time.Time{}, time.Time{}
	if stale := c.source.Stale; stale > 0 {
		now := time.Now()
		s.age(c, now)
		until = now.Add(stale)
		age, known := time.Duration(0), false
		at, age, known = s.dated(m, now)
		switch counts := c.sample.Quality != point.Bad; {
		case known && (at.Before(c.at) && now.Before(c.atUntil) || age >= stale && counts):
			return nil
		case known && age >= stale:
			return fmt.Errorf("it says that it is %s old, and %s counts; if it is new, the clocks differ", age.Round(time.Second), stale)
		case known:
			until = until.Add(-age)
		case retained && q == point.Good:
			q = point.Uncertain
		}
	}
	if none || q == point.Bad {
		s.set(c, point.Value{}, point.Bad, time.Time{}, saveTaken)
		c.date(at)
		return nil
	}
	if c.point.Write != nil {
		err = c.point.CheckWrite(v)
	}
	if err == nil {
		v, err = c.point.Hold(v)
	}
	if err != nil {
		return err
	}
	s.set(c, v, q, until, saveTaken)
	c.date(at)
	return nil
}

// date notes when the message was made that has just set a point. Not for ever: a
// clock that was set back must not make all that follows old.
func (c *cell) date(at time.Time) { c.at, c.atUntil = at, time.Now().Add(c.source.Stale) }

// dated returns when a message was made by its timestamp, and how long ago that is,
// if it has one and both clocks are set. One from the future is new.
func (s *Set) dated(m *message, now time.Time) (at time.Time, age time.Duration, known bool) {
	ns, set := s.Clock.At(now)
	if m.at.IsZero() || !set {
		return time.Time{}, 0, false
	}
	if at = time.Unix(0, ns); m.at.Before(at) {
		age, at = at.Sub(m.at), m.at
	}
	return at, age, true
}

// message is a payload that has been looked at.
type message struct {
	payload []byte // never nil
	object  map[string]json.RawMessage
	at      time.Time // its timestamp; zero: none that counts
	quality point.Quality
	err     error
}

func parse(payload []byte) message {
	m := message{payload: payload}
	if m.payload == nil {
		m.payload = []byte{}
	}
	if len(payload) > maxPayload {
		m.err = fmt.Errorf("it has %d bytes, and at most %d are looked at", len(payload), maxPayload)
		return m
	}
	if text := bytes.TrimSpace(payload); len(text) > 0 && text[0] == '{' {
		if err := json.Unmarshal(text, &m.object); err != nil {
			m.object = nil // a text may begin with a brace
			m.err = fmt.Errorf("its JSON is malformed: %w", err)
			return m
		}
		// What our own messages say beside the value.
		if at, err := time.Parse(time.RFC3339, m.text("timestamp")); err == nil && m.text("time") != "unsynced" {
			m.at = at
		}
		switch m.text("quality") {
		case point.Uncertain.String():
			m.quality = point.Uncertain
		case point.Bad.String():
			m.quality = point.Bad
		}
	}
	return m
}

// text returns a member that is a text, else "".
func (m *message) text(key string) (text string) {
	if json.Unmarshal(m.object[key], &text) != nil {
		return ""
	}
	return text
}

// value returns what the message says of a point; none if it says that there is
// no value.
func (m *message) value(p *point.Point, key string) (v point.Value, none bool, err error) {
	isText := p.Type == point.String && p.Map == nil
	if m.object == nil {
		if m.err != nil && (!isText || len(m.payload) > maxPayload) {
			return v, false, m.err
		}
		text := string(m.payload)
		trimmed := strings.TrimSpace(text)
		switch {
		case trimmed == "null" && !isText:
			return v, true, nil
		case len(trimmed) > 1 && trimmed[0] == '"':
			var inner string
			if json.Unmarshal([]byte(trimmed), &inner) == nil {
				return p.Parse(inner), false, nil
			}
		case !isText:
			text = trimmed
		}
		if text == "" && !isText {
			return v, false, errors.New("it is empty")
		}
		return p.Parse(text), false, nil
	}
	raw, ok := m.object[key]
	if !ok {
		return v, false, fmt.Errorf("it has no member %q", key)
	}
	switch raw[0] {
	case '{', '[':
		return v, false, fmt.Errorf("its member %q is no single value", key)
	case 'n':
		return v, true, nil
	case 't', 'f':
		return point.BoolValue(raw[0] == 't'), false, nil
	case '"':
		var text string
		if err := json.Unmarshal(raw, &text); err != nil {
			return v, false, fmt.Errorf("its member %q is malformed: %w", key, err)
		}
		return p.Parse(text), false, nil
	}
	return p.Parse(string(raw)), false, nil
}
