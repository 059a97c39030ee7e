package alarm

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"fieldgate/internal/point"
)

var start = time.Now()

// told steps the board and returns what it says.
func told(b *Board, at time.Duration) (lines []string, next time.Duration) {
	changed, next := b.Step(start.Add(at))
	for _, a := range changed {
		lines = append(lines, string(a.Payload("T")))
	}
	return lines, next
}

func wantTold(t *testing.T, b *Board, at time.Duration, wantNext time.Duration, want ...string) {
	t.Helper()
	if got, next := told(b, at); !slices.Equal(got, want) || next != wantNext {
		t.Errorf("after %v: %v, next in %v; want %v, %v", at, got, next, want, wantNext)
	}
}

func TestRaiseAndClear(t *testing.T) {
	b := New(time.Minute)
	full := Condition{Name: "queue_full.cloud", Severity: Critical, Value: point.IntValue(3), Reason: "messages are lost"}
	b.Clear(start, full.Name, point.Value{})
	wantTold(t, b, 0, 0)
	b.Raise(start, full)
	b.Raise(start, Condition{Name: "clock_unsynced"})
	wantTold(t, b, time.Second, 0,
		`{"alarm":"clock_unsynced","state":"raised","severity":"info","timestamp":"T"}`,
		`{"alarm":"queue_full.cloud","state":"raised","severity":"critical","value":3,"reason":"messages are lost","timestamp":"T"}`)
	b.Raise(start, full) // again, which is no news
	wantTold(t, b, time.Second, 0)

	b.Clear(start.Add(10*time.Second), full.Name, point.IntValue(90_000))
	wantTold(t, b, 20*time.Second, 50*time.Second)
	b.Clear(start.Add(60*time.Second), full.Name, point.IntValue(90_000))
	wantTold(t, b, 70*time.Second, 0,
		`{"alarm":"queue_full.cloud","state":"cleared","severity":"critical","value":90000,"reason":"messages are lost","timestamp":"T"}`)
	all := b.All()
	if len(all) != 2 || !all[0].Raised || all[1].Raised || all[1].Since != start.Add(70*time.Second) || all[1].Count != 1 {
		t.Errorf("all: %+v", all)
	}
}

// A condition that comes and goes is one alarm.
func TestNoFlood(t *testing.T) {
	b := New(time.Minute)
	var all []string
	for i := range 3600 {
		at := time.Duration(i) * time.Second
		if i%3 == 0 {
			b.Raise(start.Add(at), Condition{Name: "a", Value: point.IntValue(int64(i))})
		} else {
			b.Clear(start.Add(at), "a", point.IntValue(int64(i)))
		}
		lines, _ := told(b, at)
		all = append(all, lines...)
	}
	lines, _ := told(b, 2*time.Hour)
	all = append(all, lines...)
	want := []string{
		`{"alarm":"a","state":"raised","severity":"info","value":0,"timestamp":"T"}`,
		`{"alarm":"a","state":"cleared","severity":"info","value":3598,"timestamp":"T"}`,
	}
	if !slices.Equal(all, want) {
		t.Errorf("%d messages: %q, want %q", len(all), all, want)
	}
}

// What was raised and over between two steps is told as both.
func TestShortAlarmIsTold(t *testing.T) {
	b := New(time.Minute)
	b.Raise(start, Condition{Name: "a"})
	b.Clear(start.Add(time.Second), "a", point.Value{})
	wantTold(t, b, time.Hour, 0,
		`{"alarm":"a","state":"raised","severity":"info","timestamp":"T"}`,
		`{"alarm":"a","state":"cleared","severity":"info","timestamp":"T"}`)
}

// The example of docs/alarms.md.
func ExampleAlarm_Payload() {
	a := Alarm{Condition: Condition{Name: "certificate_30_days.cloud", Severity: Warning, Value: point.IntValue(29)}, Raised: true}
	fmt.Println(string(a.Payload("2026-05-04T03:02:01.000Z")))
	// Output: {"alarm":"certificate_30_days.cloud","state":"raised","severity":"warning","value":29,"timestamp":"2026-05-04T03:02:01.000Z"}
}
