package health

import (
	"testing"
	"time"
)

func TestBeat(t *testing.T) {
	var b Beat
	if got := b.Overdue(); got != 0 {
		t.Errorf("a loop that has not begun owes since %v", got)
	}
	b.Rests(time.Hour)
	if got := b.Overdue(); got != 0 {
		t.Errorf("a loop at rest owes since %v", got)
	}
	b.Works()
	time.Sleep(2 * time.Millisecond)
	if got := b.Overdue(); got < time.Millisecond {
		t.Errorf("a loop at work owes since %v", got)
	}
	b.Rests(-time.Minute)
	if got := b.Overdue(); got < time.Minute {
		t.Errorf("a loop that rests too long owes since %v", got)
	}
	b.Waits()
	if got := b.Overdue(); got != 0 {
		t.Errorf("a loop that waits owes since %v", got)
	}
	b.Works()
	b.Stops()
	if got := b.Overdue(); got != 0 {
		t.Errorf("a loop that has ended owes since %v", got)
	}
}
