package clock

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
)

func TestRestamp(t *testing.T) {
	later := time.Date(2026, 5, 4, 3, 0, 6, 0, time.UTC).Sub(time.Unix(15, 0))
	const good = `{"value":25.4,"timestamp":"1970-01-01T00:00:15.000Z","time":"unsynced","unit":"C"}`
	at := strings.Index(good, "1970")
	got, ok := Restamp([]byte(good), at, later)
	if want := `{"value":25.4,"timestamp":"2026-05-04T03:00:06.000Z","unit":"C"}`; !ok || string(got) != want {
		t.Errorf("%s, %v, want %s", got, ok, want)
	}
	page, err := os.ReadFile("../../docs/time.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(page, []byte(good)) || !bytes.Contains(page, got) {
		t.Error("docs/time.md shows something else")
	}
	for name, payload := range map[string]string{
		"no mark":    `{"value":25.4,"timestamp":"1970-01-01T00:00:15.000Z","unit":"C"}`,
		"no time":    `{"value":25.4,"timestamp":"1970-13-01T00:00:15.000Z","time":"unsynced"}`,
		"cut short":  good[:at+10],
		"cut behind": good[:at+30],
	} {
		if got, ok := Restamp([]byte(payload), at, later); ok || string(got) != payload {
			t.Errorf("%s: %s, %v", name, got, ok)
		}
	}
	for _, at := range []int{-1, 0, len(good), 1 << 30} {
		if _, ok := Restamp([]byte(good), at, later); ok {
			t.Errorf("a time at %d", at)
		}
	}
	if _, ok := Restamp([]byte(good), at, 200*365*24*time.Hour); !ok {
		t.Error("two centuries are too much")
	}
}

// What Dated marks, Restamp puts right.
func TestDated(t *testing.T) {
	f := &fake{day: time.Unix(15, 0)}
	c, _ := newClock(f)
	payload := func() []byte {
		return []byte(`{"id":"7","timestamp":"` + c.Day(powerOn).Format(Layout) + `"}`)
	}
	marked, stamp := c.Dated(payload())
	if want := `{"id":"7","timestamp":"1970-01-01T00:00:15.000Z","time":"unsynced"}`; string(marked) != want {
		t.Errorf("got %s, want %s", marked, want)
	}
	before, _ := c.Stamp()
	f.day = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	c.Look()
	later, ok := c.Shift(before)
	if !ok {
		t.Fatal("the clock is not set")
	}
	right, ok := Restamp(marked, int(stamp), later)
	if want, none := c.Dated(payload()); !ok || string(right) != string(want) || none != 0 {
		t.Errorf("put right it is %s (%v), want %s (%d)", right, ok, want, none)
	}
}

func FuzzRestamp(f *testing.F) {
	f.Add([]byte(`{"timestamp":"1970-01-01T00:00:15.000Z","time":"unsynced"}`), 14, int64(1e18))
	f.Fuzz(func(t *testing.T, payload []byte, at int, later int64) {
		before := bytes.Clone(payload)
		got, ok := Restamp(payload, at, time.Duration(later))
		if !bytes.Equal(payload, before) {
			t.Fatal("the payload was changed")
		}
		if want := len(payload) - len(Unsynced); ok && len(got) != want || !ok && !bytes.Equal(got, payload) {
			t.Fatalf("%q, %v", got, ok)
		}
	})
}
