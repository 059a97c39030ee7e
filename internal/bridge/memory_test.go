package bridge

import (
	"fmt"
	"testing"
	"time"
)

// at returns a moment so many seconds after the start of a test.
func at(seconds float64) time.Time {
	return time.Unix(1e9, 0).Add(time.Duration(seconds * float64(time.Second)))
}

func TestLoops(t *testing.T) {
	m := newMemory()
	// A client that repeats itself, however fast, is none.
	for i := range 1000 {
		if m.published(1, "plc", at(float64(i)/1000)) {
			t.Fatal("a client that repeats itself is taken for a loop")
		}
	}
	// Nor are two who press the same button in turn.
	for i := range 1000 {
		if m.published(2, fmt.Sprint("panel", i%2), at(float64(i))) {
			t.Fatal("two clients are taken for a loop")
		}
	}
	// Nor one that takes over, second by second.
	m.published(3, "main", at(2000))
	lost := 0
	for i := range 60 {
		if m.published(3, "spare", at(2000.5+float64(i))) {
			lost++
		}
	}
	if lost > 10 {
		t.Errorf("%d messages of the spare are lost", lost)
	}
	// What comes back from another client soon is one.
	m.published(4, "plc", at(3000))
	passed := 0
	for i := range 100 {
		now := at(3000 + float64(i)/50)
		if m.published(4, "ring", now) {
			break
		}
		m.sent(4, false, now)
		passed++
	}
	if passed != passesMost {
		t.Errorf("a loop passes %d times", passed)
	}
	// So is what waited for hours, of which nobody knows any more whose it was.
	m.sent(5, false, at(4000))
	passed = 0
	for i := range 1000 {
		now := at(4000 + float64(i)/50)
		if m.published(5, "ring", now) {
			break
		}
		m.sent(5, false, now)
		passed++
	}
	if passed != passesUnknown {
		t.Errorf("a loop of what waited passes %d times", passed)
	}
}

func TestEchoes(t *testing.T) {
	m := newMemory()
	if m.echo(1, at(0)) {
		t.Error("an echo of nothing")
	}
	m.sent(1, true, at(1))
	m.sent(1, true, at(2))
	for i, want := range []bool{true, true, false} {
		if m.echo(1, at(3)) != want {
			t.Errorf("echo %d: not %t", i, want)
		}
	}
	m.sent(1, true, at(4))
	if m.echo(1, at(15)) {
		t.Error("an echo after the window")
	}
	m.sent(1, true, at(16)) // the one that never came is forgotten
	if !m.echo(1, at(17)) || m.echo(1, at(17)) {
		t.Error("one was sent, and one echo is expected")
	}
	m.sent(2, false, at(18))
	if m.echo(2, at(18)) {
		t.Error("an echo of what no filter brings back")
	}
}

func TestNewerState(t *testing.T) {
	m := newMemory()
	m.waits("t", 1, at(0))
	m.waits("t", 2, at(1))
	m.waitsNot("t", 1, at(2)) // the older one is sent
	if !m.newer("t", at(3600)) || m.newer("other", at(2)) {
		t.Error("the state waits")
	}
	m.waitsNot("t", 2, at(3600))
	if !m.newer("t", at(3605)) || m.newer("t", at(3620)) {
		t.Error("it is newer for a while after it is sent")
	}
}

func TestMemoryIsBounded(t *testing.T) {
	m := newMemory()
	now := at(0)
	for i := range 5 * mostTraces {
		m.sent(uint64(i), true, now)
		m.waits(fmt.Sprint(i), 1, now)
	}
	if n := len(m.young) + len(m.old); n > 2*mostTraces {
		t.Errorf("%d traces", n)
	}
	if n := len(m.state); n > mostWaiting {
		t.Errorf("%d topics", n)
	}
	if !m.echo(5*mostTraces-1, now) || !m.echo(4*mostTraces, now) || m.echo(0, now) {
		t.Error("the newest are kept")
	}
	for i := range mostWaiting { // those that are sent make room
		m.waitsNot(fmt.Sprint(i), 1, now)
	}
	m.waits("new", 1, at(60))
	if !m.newer("new", at(60)) {
		t.Error("no room")
	}
}
