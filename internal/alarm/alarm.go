// Package alarm keeps which alarms are raised and says each change once. It does
// not know what an alarm is about: whoever looks at a condition says Raise or
// Clear, as often as it likes. It publishes nothing either; Step returns what
// has changed.
//
// An alarm is raised at once. It is cleared when its condition has been over
// for the whole of a hold time, so a condition that comes and goes is one alarm,
// not many, and no alarm is told of more than twice in a hold time.
//
// The types are Board and Alarm.
package alarm

import (
	"sort"
	"sync"
	"time"

	"fieldgate/internal/point"
)

// Severity is how urgent an alarm is.
type Severity uint8

// The severities.
const (
	Info Severity = iota
	Warning
	Critical
)

func (s Severity) String() string { return [...]string{"info", "warning", "critical"}[s] }

// Condition is what an alarm is about.
type Condition struct {
	Name     string // unique; an alarm keeps its severity for life
	Severity Severity
	Value    point.Value // that the condition was judged by; the zero Value: none
	Reason   string      // in words; "": the name says it
}

// Alarm is a condition that is, or was, raised. Its Value and Reason are the
// newest.
type Alarm struct {
	Condition
	Raised bool
	Since  time.Time // moment of the last change of Raised
	Count  uint64    // times it was raised
}

// Payload returns the message that says the alarm; at is the text of its time.
// The time is the last member.
func (a Alarm) Payload(at string) []byte {
	b := point.AppendJSONString([]byte(`{"alarm":`), a.Name)
	if a.Raised {
		b = append(b, `,"state":"raised","severity":"`...)
	} else {
		b = append(b, `,"state":"cleared","severity":"`...)
	}
	b = append(append(b, a.Severity.String()...), '"')
	if !a.Value.IsZero() {
		b = a.Value.AppendJSON(append(b, `,"value":`...))
	}
	if a.Reason != "" {
		b = point.AppendJSONString(append(b, `,"reason":`...), a.Reason)
	}
	return append(point.AppendJSONString(append(b, `,"timestamp":`...), at), '}')
}

// Board holds alarms. Make one with New. It is safe for use by several
// goroutines; moments given to it are of one clock.
type Board struct {
	hold time.Duration

	mu     sync.Mutex
	alarms map[string]*entry
}

// entry is an alarm on the board.
type entry struct {
	Alarm
	over    bool      // its condition is, since:
	overAt  time.Time // if raised
	changed bool      // not returned by Step yet
}

// New returns an empty board whose alarms are cleared when their condition has
// been over for hold.
func New(hold time.Duration) *Board {
	return &Board{hold: hold, alarms: make(map[string]*entry)}
}

// Raise says that the condition c is so at the moment now.
func (b *Board) Raise(now time.Time, c Condition) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.alarms[c.Name]
	if e == nil {
		e = &entry{}
		b.alarms[c.Name] = e
	}
	e.Condition, e.over = c, false
	if !e.Raised {
		e.Raised, e.Since, e.changed = true, now, true
		e.Count++
	}
}

// Clear says that the condition of this name is not so at the moment now, and
// the value that says it. An alarm that was never raised stays unknown.
func (b *Board) Clear(now time.Time, name string, value point.Value) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.alarms[name]
	if e == nil || !e.Raised || e.over {
		return
	}
	e.over, e.overAt, e.Value = true, now, value
}

// Step returns the alarms that have changed since the last step, by name, and
// how long it is until the next is cleared by itself; 0: none will be.
func (b *Board) Step(now time.Time) (changed []Alarm, next time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.alarms {
		if e.changed { // raised, and told so before it can be cleared
			changed = append(changed, e.Alarm)
			e.changed = false
		}
		if !e.Raised || !e.over {
			continue
		}
		if left := b.hold - now.Sub(e.overAt); left > 0 {
			if next == 0 || left < next {
				next = left
			}
			continue
		}
		e.Raised, e.over, e.Since = false, false, now
		changed = append(changed, e.Alarm)
	}
	sort.SliceStable(changed, func(i, j int) bool { return changed[i].Name < changed[j].Name })
	return changed, next
}

// All returns every alarm that is or was raised, by name.
func (b *Board) All() []Alarm {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]Alarm, 0, len(b.alarms))
	for _, e := range b.alarms {
		all = append(all, e.Alarm)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all
}
