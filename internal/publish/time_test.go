package publish

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"fieldgate/internal/clock"
	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
)

// stepper is a publisher whose steps and clock a test turns. (In a synctest
// bubble times have no monotonic reading.)
type stepper struct {
	*Publisher
	gone time.Duration // since the start
	day  time.Time     // at the start
	sent []mqtt.Message
	when []time.Duration
}

func newStepper(rule config.Rule, day time.Time) *stepper {
	s := &stepper{day: day}
	s.Publisher = newPublisher(site, []config.Rule{rule}, []config.Device{device(0, "x")}, nil, slog.New(slog.DiscardHandler))
	s.units[0].stream.seq = 0
	s.Clock = clock.New(clock.Source{
		Now: func() (day, moment time.Time) { return s.day.Add(s.gone), s.start.Add(s.gone) },
		Vouch: func(day time.Time) (bool, string) {
			return false, map[bool]string{true: "it is early"}[day.Before(clock.Epoch)]
		},
		Boot: 7,
		Up:   func(time.Time) time.Duration { return 0 },
	}, slog.New(slog.DiscardHandler))
	return s
}

// emit is a step with a reading.
func (s *stepper) emit(n int64) {
	s.begin()
	s.look(s.gone, &s.units[0], &point.Sample{ID: "d.x", Value: point.IntValue(n), Time: s.start.Add(s.gone)})
	s.settle(s.gone)
	s.collect()
}

// pass lets time pass, with a step at its end.
func (s *stepper) pass(d time.Duration) {
	s.gone += d
	s.begin()
	s.wake(s.start.Add(s.gone))
	s.collect()
}

func (s *stepper) collect() {
	for _, o := range s.out {
		s.sent = append(s.sent, mqtt.Message{Payload: slices.Clone(s.buf[o.from:o.to]), Stamp: uint32(o.stamp)})
		s.when = append(s.when, s.gone)
	}
	s.out, s.buf = s.out[:0], s.buf[:0]
}

func (s *stepper) lines() (all []string) {
	for i, m := range s.sent {
		all = append(all, fmt.Sprintf("%v %s", s.when[i], m.Payload))
	}
	return all
}

// What is told before the clock is set, while it is set, and after.
func TestTimeIsSet(t *testing.T) {
	may := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	change := config.When{AnyChange: true, AtLeast: 40 * time.Second}
	for _, c := range []struct {
		payload config.Payload
		first   time.Time
		then    time.Time
		want    []string
	}{
		{config.JSON, time.Unix(100, 0), may, []string{
			`0s {"value":1,"timestamp":"1970-01-01T00:01:40.000Z","time":"unsynced","seq":1}`,
			`10s {"value":2,"timestamp":"2026-05-04T03:02:01.000Z","seq":2}`,
			`50s {"value":2,"timestamp":"2026-05-04T03:02:01.000Z","seq":3}`, // the heartbeat of a reading, with its own time
		}},
		{config.Batch, time.Unix(100, 0), may, []string{
			`0s {"timestamp":"1970-01-01T00:01:40.000Z","time":"unsynced","x":1,"seq":1}`,
			`10s {"timestamp":"2026-05-04T03:02:01.000Z","x":2,"seq":2}`,
			`50s {"timestamp":"2026-05-04T03:02:01.000Z","x":2,"seq":3}`,
		}},
		{config.Raw, time.Unix(100, 0), may, []string{"0s 1", "10s 2", "50s 2"}},
		{config.JSON, may, may.Add(-14 * 24 * time.Hour), []string{
			`0s {"value":1,"timestamp":"2026-05-04T03:02:01.000Z","seq":1}`,
			`10s {"value":2,"timestamp":"2026-04-20T03:02:01.000Z","seq":2}`,
			`50s {"value":2,"timestamp":"2026-04-20T03:02:01.000Z","seq":3}`,
		}},
		{config.JSON, may, may.Add(14 * 24 * time.Hour), []string{
			`0s {"value":1,"timestamp":"2026-05-04T03:02:01.000Z","seq":1}`,
			`10s {"value":2,"timestamp":"2026-05-18T03:02:01.000Z","seq":2}`,
			`50s {"value":2,"timestamp":"2026-05-18T03:02:01.000Z","seq":3}`,
		}},
	} {
		t.Run(fmt.Sprint(c.payload, " ", c.then), func(t *testing.T) {
			rule := config.Rule{Points: []string{"*"}, Topic: "{device}", Payload: c.payload, When: change}
			if c.payload != config.Raw {
				rule.Fields = []config.Field{config.FieldSeq}
			}
			s := newStepper(rule, c.first)
			s.emit(1)
			s.pass(10 * time.Second)
			s.day = c.then.Add(-s.gone)
			s.emit(2)
			s.pass(39 * time.Second)
			s.pass(time.Second)
			if got := s.lines(); !slices.Equal(got, c.want) {
				t.Errorf("got\n%q\nwant\n%q", got, c.want)
			}
			for i, m := range s.sent {
				at, stamped := int(m.Stamp), i == 0 && c.first.Before(clock.Epoch) && c.payload != config.Raw
				if stamped != (at > 0) || stamped && string(m.Payload[at:at+10]) != "1970-01-01" {
					t.Errorf("message %d has the stamp %d", i, at)
				}
			}
		})
	}
}

// A reading of before the clock was set that was not told by then is told right.
func TestHeldOverTheSetting(t *testing.T) {
	s := newStepper(config.Rule{Points: []string{"*"}, Topic: "t", When: config.When{AnyChange: true, AtMost: time.Minute}}, time.Unix(100, 0))
	s.emit(1)
	s.pass(10 * time.Second)
	s.emit(2) // held back
	s.pass(10 * time.Second)
	s.day = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC).Add(-s.gone)
	s.pass(40 * time.Second)
	want := `1m0s {"value":2,"timestamp":"2026-05-04T03:01:51.000Z"}`
	if got := s.lines(); len(got) != 2 || got[1] != want {
		t.Errorf("got %q, want %s", got, want)
	}
}

// A timed rule keeps to the time of day as it is told: what is due is said once
// when the clock is set forward, and again at the right times when it is set back.
func TestTimedRuleWhenTheClockIsSet(t *testing.T) {
	may := time.Date(2026, 5, 4, 3, 2, 0, 0, time.UTC)
	s := newStepper(config.Rule{Points: []string{"*"}, Topic: "t", Payload: config.Raw, Every: time.Minute}, may.Add(30*time.Second))
	s.rules[0].tick = nextTick(may.Add(30*time.Second), time.Minute)
	s.emit(1)
	for range 4 {
		s.pass(15 * time.Second)
	}
	s.day = s.day.Add(14 * 24 * time.Hour)
	for range 4 {
		s.pass(15 * time.Second)
	}
	s.day = s.day.Add(-28 * 24 * time.Hour)
	for range 4 {
		s.pass(15 * time.Second)
	}
	want := []string{"30s 1", "1m15s 1", "1m30s 1", "2m30s 1"}
	if got := s.lines(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A sample with a time of day of its own keeps it.
func TestOwnTime(t *testing.T) {
	s := newStepper(config.Rule{Points: []string{"*"}, Topic: "t", When: config.When{Each: true}}, time.Unix(100, 0))
	s.begin()
	s.look(0, &s.units[0], &point.Sample{ID: "d.x", Value: point.IntValue(1), Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)})
	if want := `{"value":1,"timestamp":"2026-01-02T03:04:05.000Z"}`; string(s.buf) != want || s.out[0].stamp != 0 {
		t.Errorf("got %s, %d, want %s", s.buf, s.out[0].stamp, want)
	}
}
