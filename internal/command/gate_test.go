package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"fieldgate/internal/audit"
	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
)

// stamp is a time for a payload.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func TestTimes(t *testing.T) {
	set := true
	change := func(o *Options) {
		o.ClockSet = func() bool { return set }
		o.Kept = []string{"cloud"}
	}
	bubble(t, testCommands, change, func(t *testing.T, d *desk) {
		now := time.Now()
		at := func(ago time.Duration, more string) string {
			return fmt.Sprintf(`{"value":5,"timestamp":"%s"%s}`, stamp(time.Now().Add(-ago)), more)
		}
		const level = "cmd/boiler/level"
		d.want(level, at(10*time.Second, ""), `"verified"`)
		d.want(level, at(31*time.Second, ""), `s old, at most 30s are allowed`)
		d.want(level, at(-9*time.Second, ""), `"verified"`)
		d.want(level, at(-11*time.Second, ""), `ahead of this gateway's clock`)
		d.want(level, at(-48*time.Hour, ""), `ahead of this gateway's clock`)
		d.want(level, at(20*time.Second, `,"ttl":30`), `"verified"`)
		d.want(level, at(20*time.Second, `,"ttl":10`), `it expired at`)
		d.want(level, at(0, `,"expires":"`+stamp(now.Add(-time.Hour))+`"`), `it expired at`)
		d.want(level, `{"value":5}`, `"rejected","point":"boiler.level","reason":"it has no timestamp: the broker keeps messages`)
		d.want("emergency/stop", "EMERGENCY_STOP", "STOPPED")
		d.want("emergency/stop", fmt.Sprintf(`{"value":"EMERGENCY_STOP","timestamp":"%s"}`, stamp(now.Add(-time.Hour))), "STOPPED")
		d.want("emergency/stop", fmt.Sprintf(`{"value":"EMERGENCY_STOP","timestamp":"%s","ttl":5}`, stamp(now.Add(-time.Hour))), "it expired")
		set = false
		d.want("set/one", `{"point":"boiler.level","value":6,"ttl":30}`, "it has no timestamp")
		d.want(level, at(0, ""), `the clock of this gateway was never set`)
		d.want("emergency/stop", fmt.Sprintf(`{"value":"EMERGENCY_STOP","timestamp":"%s","ttl":5}`, stamp(now.Add(-time.Hour))), "STOPPED")
		if n := len(d.plant.writes()); n != 3+3*2 {
			t.Errorf("%d writes: %q", n, d.plant.writes())
		}
	})
}

// A time to live that counts from the arrival needs no clock.
func TestTTLWithoutClock(t *testing.T) {
	bubble(t, testCommands, func(o *Options) { o.ClockSet = func() bool { return false } }, func(t *testing.T, d *desk) {
		d.want("cmd/boiler/level", `{"value":6,"ttl":30}`, `"verified"`)
		d.plant.delay["boiler"] = 20 * time.Second
		d.send("cmd/boiler/level", "1")
		d.send("cmd/boiler/level", `{"value":7,"ttl":30}`)
		time.Sleep(time.Minute)
		if got := d.take(); len(got) != 2 || !strings.Contains(strings.Join(got, " "), "it waited too long: it expired at") {
			t.Errorf("answered %q", got)
		}
		d.want("cmd/pump-2/speed", fmt.Sprintf(`{"value":6,"timestamp":"%s"}`, stamp(time.Now())), `the clock of this gateway was never set`)
	})
}

func TestSource(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		one := func(from mqtt.Origin, m mqtt.Message, want string) {
			t.Helper()
			d.sendAs(from, m)
			time.Sleep(time.Second)
			if got := d.take(); len(got) != 1 || !strings.Contains(got[0], want) {
				t.Errorf("%s: answered %q, want %s", m.Topic, got, want)
			}
		}
		local := mqtt.Origin{Via: config.Local, User: "operator", Client: "panel"}
		one(local, mqtt.Message{Topic: "mine", Payload: []byte(`{"value":50,"id":"1"}`)}, `"verified","point":"boiler.setpoint","value":50,"previous":0,"by":"operator"`)
		one(local, mqtt.Message{Topic: "mine", Payload: []byte(`50`)}, `it has no id, and this command needs one`)
		if subs := d.Subscriptions("cloud"); slices.ContainsFunc(subs, func(s Subscription) bool { return s.Filter == "mine" }) {
			t.Error("mine is subscribed to at cloud")
		}
		kept := mqtt.Message{Topic: "cmd/boiler/setpoint", Payload: []byte("60"), Retain: true}
		one(mqtt.Origin{Via: "cloud"}, kept, `"rejected","point":"boiler.setpoint","reason":"it was retained: nobody knows when it was sent`)
		kept = mqtt.Message{Topic: "emergency/stop", Payload: []byte("EMERGENCY_STOP"), Retain: true}
		one(mqtt.Origin{Via: "cloud"}, kept, `it was retained`)
		// A setpoint that may be restored is, once.
		kept = mqtt.Message{Topic: "held", Payload: []byte(`{"value":70,"timestamp":"1999-01-01T00:00:00Z"}`), Retain: true}
		one(mqtt.Origin{Via: "cloud"}, kept, `"verified"`)
		one(mqtt.Origin{Via: "cloud"}, kept, `it is the retained message that was taken before`)
		one(mqtt.Origin{Via: "cloud"}, mqtt.Message{Topic: "held", Payload: []byte("71")}, `"verified"`)
		one(mqtt.Origin{Via: "cloud"}, mqtt.Message{Topic: "held", Payload: []byte("71"), Retain: true}, `taken before`)
		if got, want := d.plant.writes(), []string{"boiler.setpoint=50", "boiler.setpoint=70", "boiler.setpoint=71"}; !slices.Equal(got, want) {
			t.Errorf("written %q, want %q", got, want)
		}
	})
}

// The users of the embedded broker that a command names.
func TestUsers(t *testing.T) {
	c := config.Command{Topic: "a", Filter: "a", Kind: config.ValueCommand, From: []string{config.Local}, Users: []string{"operator"},
		Targets: []config.Target{{Filter: "a", Point: "boiler.level"}}}
	bubble(t, "", func(o *Options) { o.Commands = []config.Command{c} }, func(t *testing.T, d *desk) {
		for user, want := range map[string]string{"operator": `"verified"`, "guest": `the user \"guest\" may not send it`} {
			d.sendAs(mqtt.Origin{Via: config.Local, User: user}, mqtt.Message{Topic: "a", Payload: []byte("5")})
			time.Sleep(time.Second)
			if got := d.take(); len(got) != 1 || !strings.Contains(got[0], want) {
				t.Errorf("%s: %q, want %s", user, got, want)
			}
		}
	})
}

func TestRateAndBudget(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		d.want("cmd/boiler/slow", "1", `"verified"`)
		d.want("cmd/boiler/slow", "2", `too soon: boiler.slow may be written once in 10s, next in 5s`)
		time.Sleep(5 * time.Second)
		d.want("cmd/boiler/slow", "3", `"verified"`)

		for i := range 3 {
			d.want("cmd/boiler/worn", fmt.Sprint(i), `"verified"`)
		}
		d.restart() // what was written today still counts
		d.want("cmd/boiler/worn", "3", `"verified"`)
		d.want("cmd/boiler/worn", "4", `"verified"`)
		d.want("cmd/boiler/worn", "5", `the budget of boiler.worn is used up: 5 writes a day`)
		warned := 0
		for _, r := range d.records() {
			if r.Event == "budget" {
				warned++
			}
		}
		if warned != 1 {
			t.Errorf("warned %d times of the budget", warned)
		}
		time.Sleep(24 * time.Hour)
		d.want("cmd/boiler/worn", "6", `"verified"`)
	})
}

// A write that is not needed costs no budget, and is not left out over an old
// reading.
func TestSkipIfEqual(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		d.want("cmd/boiler/setpoint", "60", `"verified"`)
		d.want("cmd/boiler/setpoint", "60", `not written, the device shows this value already`)
		d.plant.set("boiler.setpoint", point.IntValue(30)) // at the panel, not polled yet
		d.want("cmd/boiler/setpoint", "60", `"verified","point":"boiler.setpoint","value":60,"previous":30`)
		d.want("cmd/boiler/level", "0", `"status":"verified"`) // skip_if_equal: false
		// Right after a start nothing was polled yet: what a broker repeats at each
		// start must not be written at each.
		d.plant.set("pump-3.speed", point.IntValue(700))
		d.want("cmd/pump-3/speed", "700", `"value":700,"previous":700,"reason":"not written, the device shows this value already"`)
		if got := d.plant.writes(); len(got) != 3 {
			t.Errorf("written %q", got)
		}
		if n := d.book.Load().points["boiler.setpoint"].writes; n != 2 {
			t.Errorf("%d writes are counted, want 2", n)
		}
	})
}

// What is known of the outcome decides the word.
func TestOutcomes(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		how := func(done bool, err, readErr error) {
			d.plant.mu.Lock()
			defer d.plant.mu.Unlock()
			d.plant.write = func(point.ID, point.Value) (bool, error) { return done, err }
			d.plant.read = func(point.ID) error { return readErr }
		}
		refused := fmt.Errorf("unit 1: %w", modbus.IllegalDataValue)
		away := fmt.Errorf("line: %w", modbus.ErrNotConnected)
		for i, row := range []struct {
			done        bool
			err, read   error
			topic, want string
		}{
			{true, nil, nil, "level", `"status":"verified"`},
			{true, nil, errDead, "level", `"status":"written","point":"boiler.level","value":2,"previous":1,"reason":"the device has confirmed it, but it could not be read back: unit 1: no response within 1s"`},
			{false, nil, nil, "level", `"status":"failed","point":"boiler.level","value":3,"previous":1,"reason":"the device has confirmed the write, but shows 2"`},
			{true, errDead, nil, "level", `"status":"verified","point":"boiler.level","value":4,"previous":2,"reason":"no answer to the write, but the device shows the value"`},
			{false, errDead, nil, "level", `"status":"unknown","point":"boiler.level","value":5,"previous":4,"reason":"unit 1: no response within 1s; the device shows 4"`},
			{false, errDead, errDead, "level", `"status":"unknown","point":"boiler.level","value":6,"previous":4,"reason":"unit 1: no response within 1s"`},
			{false, refused, nil, "level", `"status":"failed","point":"boiler.level","value":7,"previous":4,"reason":"unit 1: exception 3: illegal data value"`},
			{false, away, nil, "level", `"status":"failed","point":"boiler.level","value":8,"previous":4,"reason":"line: not connected"`},
			{true, nil, errDead, "blind", `"status":"written","point":"boiler.blind","value":9`},
			{false, errDead, errDead, "blind", `"status":"unknown","point":"boiler.blind","value":10`},
		} {
			how(row.done, row.err, row.read)
			d.want("cmd/boiler/"+row.topic, fmt.Sprint(i+1), row.want)
		}
		// A stop is not called done before the read-back agrees.
		how(true, nil, errDead)
		d.want("emergency/stop", "EMERGENCY_STOP", `status/emergency {"status":"written"`)
		how(false, errDead, errDead)
		d.want("emergency/stop", "EMERGENCY_STOP", `status/emergency {"status":"unknown"`)
		how(false, refused, nil)
		d.want("emergency/stop", "EMERGENCY_STOP", `status/emergency {"status":"failed"`)
	})
}

// Of a recipe that fails half-way, what was written is restored, or left.
func TestRecipeFails(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		d.plant.set("boiler.setpoint", point.IntValue(40))
		d.plant.set("boiler.level", point.IntValue(10))
		fail := errors.New("the valve is stuck")
		d.plant.write = func(id point.ID, v point.Value) (bool, error) {
			if id == "boiler.level" && point.Equal(v, point.IntValue(77)) {
				return false, fail
			}
			return true, nil
		}
		d.want("recipe", `{"temp":55,"level":77,"mode":1}`, `{"status":"failed","reason":"boiler.level: the valve is stuck; 1 of 3 written before; what was written is restored","writes":[`+
			`{"status":"failed","point":"boiler.setpoint","value":55,"previous":40,"reason":"restored"},`+
			`{"status":"failed","point":"boiler.level","value":77,"previous":10,"reason":"the valve is stuck"},`+
			`{"status":"rejected","point":"boiler.mode","value":"auto","reason":"not written, because one before it failed"}]`)
		d.want("recipe/stop", `{"temp":56,"level":77}`, `"status":"failed","reason":"boiler.level: the valve is stuck; 1 of 2 written before","writes":[{"status":"verified","point":"boiler.setpoint","value":56`)
		// What cannot be read could not be restored.
		d.plant.read = func(id point.ID) error {
			if id == "boiler.level" {
				return errDead
			}
			return nil
		}
		d.want("recipe", `{"temp":55,"level":7,"mode":1}`, `"status":"rejected","reason":"boiler.level could not be restored, because it cannot be read: unit 1: no response within 1s; nothing was written"`)
		d.plant.read = nil
		// Neither written nor restored for certain.
		d.plant.write = func(id point.ID, v point.Value) (bool, error) {
			switch {
			case id == "boiler.level":
				return false, errDead
			case point.Equal(v, point.IntValue(56)):
				return false, errDead
			}
			return true, nil
		}
		d.want("recipe", `{"temp":57,"level":7,"mode":1}`, `could not be restored`)
		if got, want := d.plant.writes(), []string{"boiler.setpoint=55", "boiler.setpoint=40", "boiler.setpoint=56", "boiler.setpoint=57"}; !slices.Equal(got, want) {
			t.Errorf("written %q, want %q", got, want)
		}
		agree(t, d)
	})
}

// agree holds the device's own list of writes against the record: each stands
// there, as verified, restored or the like.
func agree(t *testing.T, d *desk) {
	t.Helper()
	recorded := make(map[string]int)
	for _, r := range d.records() {
		switch {
		case r.Event == audit.Accepted, r.Event == audit.Refused, r.Reason == unchanged, r.Status == string(Rejected):
		default:
			recorded[r.Point+"="+r.Value]++
		}
	}
	for _, w := range d.plant.writes() {
		if recorded[w]--; recorded[w] < 0 {
			t.Errorf("the device was written %s, which is not in the record", w)
		}
	}
}

// Orders for one device are done in order, and others do not wait for it.
func TestTurns(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		d.plant.delay["boiler"] = 10 * time.Second // for each request
		for i := range 40 {
			d.send("cmd/boiler/level", fmt.Sprint(i))
		}
		d.send("cmd/pump-2/speed", "900")
		got := d.take()
		if len(got) != 9 || !strings.Contains(got[8], `"point":"pump-2.speed","value":900`) {
			t.Errorf("answered at once: %q", got)
		}
		for _, a := range got[:8] {
			if !strings.Contains(a, "busy: too many orders wait for this device already") {
				t.Errorf("answered %q", a)
			}
		}
		// An emergency does not wait for the others of its device; those of other
		// devices do not wait for that one.
		began := time.Now()
		d.send("emergency/stop", "EMERGENCY_STOP")
		synctest.Wait()
		if w := d.plant.writes(); !slices.Contains(w, "pump-2.stop=1") {
			t.Errorf("pump-2 was not stopped at once: %q", w)
		}
		for !slices.Contains(d.plant.writes(), "boiler.stop=1") {
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took > 12*time.Second {
			t.Errorf("the stop took %v", took)
		}
		time.Sleep(40 * 25 * time.Second)
		if n := len(d.take()); n != 33 {
			t.Errorf("%d answers, want 33", n)
		}
		level := slices.DeleteFunc(d.plant.writes(), func(w string) bool { return !strings.HasPrefix(w, "boiler.level=") })
		for i, w := range level {
			if w != fmt.Sprintf("boiler.level=%d", i) {
				t.Errorf("write %d is %s", i, w)
			}
		}
	})
}

// A flood is refused message by message, costs the disk next to nothing, and does
// not keep an emergency from being done.
func TestFlood(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		d.plant.delay["boiler"] = time.Second
		const n = 3000
		for i := range n {
			d.send([]string{"cmd/boiler/level", "cmd/boiler/power", "set/one"}[i%3], fmt.Sprintf(`{"value":%d,"id":"f%d"}`, i%50, i))
			if i == n/2 {
				d.send("emergency/stop", "EMERGENCY_STOP")
			}
		}
		time.Sleep(2 * time.Second)
		if w := d.plant.writes(); !slices.Contains(w, "boiler.stop=1") || !slices.Contains(w, "pump-2.stop=1") {
			t.Errorf("not stopped: %q", w)
		}
		time.Sleep(5 * time.Minute)
		if got := len(d.take()); got != n+1 {
			t.Errorf("%d answers to %d messages", got, n+1)
		}
		refusals := 0
		for _, r := range d.records() {
			if r.Event == audit.Refused {
				refusals++
			}
		}
		if refusals == 0 || refusals > 3*refusalsPerSecond {
			t.Errorf("%d refusals were recorded", refusals)
		}
		agree(t, d)
	})
}

// Nothing that was asked for before a stop is written after it: not the write that
// the bus has and has not sent, nor what waits, nor the rest of a recipe, nor
// another try.
func TestEmergencyEndsOlder(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		d.plant.delay["boiler"] = 10 * time.Second
		d.send("cmd/boiler/level", "5") // handed over
		d.send("cmd/boiler/stop", "0")  // waits
		d.send("recipe/stop", `{"temp":50,"level":6}`)
		d.send("cmd/pump-3/speed", "7")
		synctest.Wait()
		d.send("emergency/stop", "EMERGENCY_STOP")
		time.Sleep(5 * time.Minute)
		got := d.take()
		if len(got) != 5 {
			t.Errorf("answered %q", got)
		}
		refused := 0
		for _, a := range got {
			if strings.Contains(a, `"status":"rejected"`) && strings.Contains(a, "an emergency for its device came after it") {
				refused++
			}
		}
		if refused != 3 {
			t.Errorf("%d of 3 gave way: %q", refused, got)
		}
		if w := d.plant.writes(); len(w) != 3 || !slices.Contains(w, "boiler.stop=1") || !slices.Contains(w, "pump-3.speed=7") {
			t.Errorf("written %q", w)
		}
		// What comes after it is done.
		d.send("cmd/boiler/stop", "0")
		time.Sleep(time.Minute)
		if got := d.take(); len(got) != 1 || !strings.Contains(got[0], `"verified","point":"boiler.stop","value":false`) {
			t.Errorf("answered %q", got)
		}

		// In the middle of a recipe: what was written stays.
		d.send("recipe", `{"temp":50,"level":60,"mode":1}`)
		for !slices.Contains(d.plant.writes(), "boiler.setpoint=50") {
			time.Sleep(time.Second)
		}
		d.send("emergency/stop", "EMERGENCY_STOP")
		time.Sleep(5 * time.Minute)
		if got := d.take(); len(got) != 2 || !strings.Contains(strings.Join(got, " "), `"status":"failed","reason":"boiler.level: not written, an emergency`) {
			t.Errorf("answered %q", got)
		}
		if w := d.plant.writes(); w[len(w)-1] != "boiler.stop=1" {
			t.Errorf("written after the stop: %q", w)
		}
		d.plant.delay["boiler"] = 0
		agree(t, d)
	})
}

// A flood of reads is bounded, and so are messages for the event log.
func TestManyReads(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		d.plant.delay["boiler"] = 10 * time.Second
		for range 100 {
			d.send("get/boiler", "")
		}
		if got := d.take(); len(got) != 100-maxReads || !strings.Contains(got[0], `"rejected","reason":"busy: 32 reads wait already"`) {
			t.Errorf("%d were refused, such as %q", len(got), got)
		}
		time.Sleep(time.Minute)
		if got := d.take(); len(got) != maxReads || !strings.Contains(got[0], `"status":"read"`) {
			t.Errorf("%d were answered", len(got))
		}
		d.plant.delay["boiler"] = 0
		d.want("get/boiler", "", `"status":"read"`)
	})
}

// An emergency does not wait until the one before it has been read back, and one
// that may be tried again is.
func TestEmergencyGoesOn(t *testing.T) {
	bubble(t, testCommands+"  - { topic: sure, match: STOP, write: { boiler.stop: 1 }, retry: 1m }\n", nil, func(t *testing.T, d *desk) {
		d.plant.delay["boiler"] = 10 * time.Second
		d.send("sure", "STOP")
		d.send("sure", "STOP")
		time.Sleep(21 * time.Second)
		if w := d.plant.writes(); len(w) != 2 {
			t.Errorf("after two writes took their time, written %q", w)
		}
		time.Sleep(time.Minute)
		if got := d.take(); len(got) != 2 {
			t.Errorf("answered %q", got)
		}
		d.plant.delay["boiler"] = 0
		n := 0
		d.plant.mu.Lock()
		d.plant.write = func(point.ID, point.Value) (bool, error) {
			if n++; n < 3 {
				return false, modbus.ErrNotConnected
			}
			return true, nil
		}
		d.plant.mu.Unlock()
		d.want("sure", "STOP", `"verified","point":"boiler.stop","value":true,"previous":true,"reason":"after 3 tries"`)
		agree(t, d)
	})
}

// A stop with an id that was seen before is not answered out of the past: what the
// device shows decides.
func TestEmergencyAgain(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		const stop = `{"value":"EMERGENCY_STOP","id":"stop"}`
		d.want("emergency/stop", stop, "STOPPED")
		d.want("emergency/stop", stop, "STOPPED")
		d.restart()
		d.want("emergency/stop", stop, "STOPPED")
		if w := d.plant.writes(); len(w) != 2 {
			t.Errorf("written %q", w)
		}
		d.plant.set("boiler.stop", point.BoolValue(false)) // someone has started it again
		d.plant.set("pump-2.stop", point.BoolValue(false))
		d.want("emergency/stop", stop, "STOPPED")
		d.plant.mu.Lock()
		stopped, _ := d.plant.values["boiler.stop"].Bool()
		d.plant.mu.Unlock()
		if w := d.plant.writes(); len(w) != 4 || !stopped {
			t.Errorf("written %q", w)
		}
		d.want("cmd/boiler/level", `{"value":5,"id":"x"}`, `"verified"`)
		d.want("emergency/stop", `{"value":"EMERGENCY_STOP","id":"x"}`, "STOPPED")
		agree(t, d)
	})
}

// It does not wait for that look where nothing says that the device stands still:
// right after a start a stop that comes again is written at once.
func TestEmergencyAgainUnseen(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		const stop = `{"value":"EMERGENCY_STOP","id":"stop"}`
		d.want("emergency/stop", stop, "STOPPED")
		d.restart()
		clear(d.plant.last)
		looked := make(map[point.ID]bool)
		d.plant.read = func(id point.ID) error { looked[id] = true; return nil }
		d.plant.write = func(id point.ID, _ point.Value) (bool, error) {
			if looked[id] {
				t.Errorf("%s was read before it was written", id)
			}
			return true, nil
		}
		d.want("emergency/stop", stop, "STOPPED")
		if w := d.plant.writes(); len(w) != 4 {
			t.Errorf("written %q", w)
		}
	})
}

// What waited too long is not written any more.
func TestExpiresInTurn(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		d.plant.delay["boiler"] = 20 * time.Second
		d.send("cmd/boiler/level", "1")
		d.send("cmd/boiler/level", fmt.Sprintf(`{"value":2,"expires":"%s"}`, stamp(time.Now().Add(30*time.Second))))
		time.Sleep(2 * time.Minute)
		// Both are answered at the same moment, in whatever order.
		late := func(s string) bool {
			return strings.Contains(s, `"rejected","point":"boiler.level","reason":"it waited too long: it expired at`)
		}
		if got := d.take(); len(got) != 2 || !slices.ContainsFunc(got, late) {
			t.Errorf("answered %q", got)
		}
	})
}

// A disk that takes nothing refuses writes, but not an emergency.
func TestDiskFull(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		if err := d.audit.Close(); err != nil {
			t.Fatal(err)
		}
		d.want("cmd/boiler/level", "5", `"rejected","point":"boiler.level","reason":"it cannot be recorded, so it was not done: the log is closed`)
		d.want("cmd/boiler/level", `{"value":5,"id":"a"}`, `it cannot be recorded`)
		d.want("emergency/stop", "EMERGENCY_STOP", "STOPPED")
		if got := d.plant.writes(); len(got) != 2 {
			t.Errorf("written %q", got)
		}
		if s := d.Stats(); s.Unrecorded == 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Under an id of which nothing was done the right command may follow, before a
// restart and after, and what was done then is what is remembered.
func TestPutRight(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		for i, restart := range []bool{false, true} {
			value := 50 + i // the device does not show it yet
			wrong, right := fmt.Sprintf(`{"id":"i%d","point":"boiler.setpoint","value":999}`, i), fmt.Sprintf(`{"id":"i%d","point":"boiler.setpoint","value":%d}`, i, value)
			old := fmt.Sprintf(`{"id":"o%d","point":"boiler.setpoint","value":%d,"timestamp":%q}`, i, value, point.Timestamp(time.Now().Add(-time.Hour)))
			fresh := fmt.Sprintf(`{"id":"o%d","point":"boiler.setpoint","value":%d}`, i, value+10)
			d.want("set/one", wrong, `"rejected"`)
			d.want("set/one", old, `"rejected"`)
			if restart {
				d.restart()
			}
			d.want("set/one", right, `"verified"`)
			d.want("set/one", fresh, `"verified"`)
			d.want("set/one", old, `"reason":"the id`) // as it was used since
			d.restart()
			d.want("set/one", right, `"verified"`)
			d.want("set/one", fresh, `"verified"`)
			if got := d.plant.writes(); len(got) != 2*(i+1) {
				t.Errorf("written %q", got)
			}
		}
	})
}

// A disk that is too slow for an order may have taken its record all the same:
// who was told that nothing was done is not told something else after a restart.
func TestRecordedTooLate(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		d.disk = func(r audit.Record) {
			if r.Event == audit.Accepted {
				time.Sleep(recordLimit + time.Second)
			}
		}
		d.send("set/one", `{"id":"a","point":"boiler.level","value":7}`)
		time.Sleep(time.Minute)
		if got := d.take(); len(got) != 1 || !strings.Contains(got[0], `"rejected"`) || !strings.Contains(got[0], "cannot be recorded") {
			t.Errorf("answered %q", got)
		}
		d.disk = nil
		d.restart()
		if got := d.take(); len(got) > 0 {
			t.Errorf("after the restart answered %q", got)
		}
		d.want("set/one", `{"id":"a","point":"boiler.level","value":7}`, `"verified"`) // as nothing was done
		if got := d.plant.writes(); len(got) != 1 {
			t.Errorf("written %q", got)
		}
	})
}

// An order that the last run has left behind is unknown, and said to be.
func TestOrphans(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		for _, r := range []audit.Record{
			{Event: audit.Accepted, ID: "o1", Via: "cloud", Point: "boiler.level", Value: "5", Reason: answerOn + "cmd/boiler/level/ack"},
			{Event: audit.Accepted, ID: "o2", Via: "cloud", Point: "boiler.setpoint, boiler.level", Value: "5, 6", Reason: answerOn + "recipe/stop/ack"},
			{Event: audit.Result, ID: "o2", Via: "cloud", Point: "boiler.setpoint", Value: "5", Status: "verified"},
		} {
			if _, err := d.audit.Append(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		d.restart()
		got := d.take()
		if len(got) != 2 || !strings.HasPrefix(got[0], `cmd/boiler/level/ack {"id":"o1","status":"unknown","point":"boiler.level","value":5,"reason":"the gateway was stopped`) ||
			got[1] != `recipe/stop/ack {"id":"o2","status":"unknown","reason":"the gateway was stopped before it was known what became of all of it","writes":[{"status":"verified","point":"boiler.setpoint","value":5},{"status":"unknown","point":"boiler.level","value":6}]` {
			t.Errorf("answered %q", got)
		}
		d.want("cmd/boiler/level", `{"id":"o1","value":5}`, `{"id":"o1","status":"unknown","point":"boiler.level","reason":"the gateway was stopped`)
		d.want("recipe/stop", `{"id":"o2","temp":5,"level":6}`, `20`)
		d.restart() // it is told once
		if got := d.take(); len(got) != 0 {
			t.Errorf("answered again %q", got)
		}
		if got := d.plant.writes(); len(got) != 0 {
			t.Errorf("written %q", got)
		}
	})
}

// What has an outcome is not told to have none, whether it had an id or not.
func TestNoOrphans(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		d.plant.delay["boiler"] = time.Second
		for i := range 5 { // under way at the same time
			d.send("cmd/boiler/level", fmt.Sprint(i))
		}
		d.send("recipe", `{"temp":55,"level":30,"mode":1}`)
		d.send("recipe", `{"temp":56,"level":31,"mode":2}`)
		d.send("all/speed", "500")
		d.send("emergency/stop", "EMERGENCY_STOP")
		d.send("cmd/boiler/worn", "3")
		time.Sleep(time.Minute)
		if got := d.take(); len(got) != 10 {
			t.Errorf("answered %q", got)
		}
		d.restart()
		if got := d.take(); len(got) != 0 {
			t.Errorf("after the restart answered %q", got)
		}
		if n := d.book.Load().points["boiler.worn"].writes; n != 1 {
			t.Errorf("%d writes are counted, want 1", n)
		}
	})
}

// An outcome that was on disk when the power went may not have been told: it is told
// again then, and only then.
func TestAnsweredAgain(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		d.want("cmd/boiler/level", `{"id":"before","value":3}`, `"verified"`)
		time.Sleep(time.Minute)
		d.send("cmd/boiler/level", `{"id":"last","value":4}`)
		d.send("recipe/stop", `{"temp":50,"level":6}`)
		d.send("cmd/boiler/level", `{"id":"no","value":400}`)
		time.Sleep(100 * time.Millisecond)
		if got := d.take(); len(got) != 3 {
			t.Errorf("answered %q", got)
		}
		d.restart()
		if got := d.take(); len(got) != 0 {
			t.Errorf("after a restart in order answered %q", got)
		}
		d.kill()
		if got := d.take(); len(got) != 2 || !strings.Contains(got[0], `cmd/boiler/level/ack {"id":"last","status":"verified","point":"boiler.level","value":4,"previous":3`) ||
			!strings.Contains(got[1], `recipe/stop/ack {"status":"verified","writes":[{"status":"verified","point":"boiler.setpoint","value":50`) {
			t.Errorf("after a kill answered %q", got)
		}
		if got := d.plant.writes(); len(got) != 4 {
			t.Errorf("written %q", got)
		}
	})
	const texts = `
  - { topic: go, match: GO, write: { boiler.stop: 0 }, ack: { topic: motor, text: GOING } }
  - { topic: halt, match: HALT, write: { boiler.stop: 1 }, ack: { topic: motor, text: HALTED } }
  - { topic: to/+/level, write: boiler.level, ack: { text: LEVELLED } }
`
	for topic, payload := range map[string]string{"emergency/stop": "EMERGENCY_STOP", "halt": "HALT", "go": "GO", "to/x/level": "7"} {
		bubble(t, testCommands+texts, nil, func(t *testing.T, d *desk) {
			d.send(topic, payload)
			time.Sleep(100 * time.Millisecond)
			first := d.take()
			d.kill()
			if again := d.take(); len(first) != 1 || strings.Contains(first[0], "{") || !slices.Equal(again, first) {
				t.Errorf("answered %q, after a kill %q", first, again)
			}
		})
	}
}

// kill is restart after an end that is none.
func (d *desk) kill() {
	d.t.Helper()
	d.end()
	head := filepath.Join(d.dir, "audit", "head")
	text, err := os.ReadFile(head)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(head, bytes.TrimSuffix(text, []byte("closed\n")), 0o600); err != nil {
		d.t.Fatal(err)
	}
	d.start()
}

// What is remembered does not depend on how long the gateway was off, nor on how
// long an order took.
func TestRestartsLater(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		note := func(r audit.Record) {
			if _, err := d.audit.Append(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		note(audit.Record{Event: audit.Accepted, ID: "off", Via: "cloud", Point: "boiler.level", Value: "5", Reason: answerOn + "cmd/boiler/level/ack"})
		time.Sleep(3 * 24 * time.Hour)
		d.restart()
		if got := d.take(); len(got) != 1 || !strings.Contains(got[0], `{"id":"off","status":"unknown"`) {
			t.Errorf("after three days answered %q", got)
		}
		d.want("cmd/boiler/level", `{"id":"off","value":5}`, `{"id":"off","status":"unknown"`)
		note(audit.Record{Event: audit.Accepted, ID: "long", Via: "cloud", Point: "boiler.setpoint", Value: "50"})
		time.Sleep(5 * time.Hour)
		note(audit.Record{Event: audit.Result, ID: "long", Via: "cloud", Point: "boiler.setpoint", Value: "50", Status: "verified"})
		d.restart()
		d.want("again", `{"id":"long","value":50}`, `{"id":"long","status":"verified","point":"boiler.setpoint","value":50`)
		if got := d.plant.writes(); len(got) != 0 {
			t.Errorf("written %q", got)
		}
	})
}

// A board that wakes up without a clock gets no new budget by that, and remembers
// the ids of before, however old they are.
func TestRestartWithoutClock(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		d.want("cmd/boiler/worn", `{"value":0,"id":"w0"}`, `"verified"`)
		for i := range 4 {
			d.want("cmd/boiler/worn", fmt.Sprint(i), `"verified"`)
		}
		time.Sleep(48 * time.Hour) // as far as it knows
		set := false
		d.options.ClockSet = func() bool { return set }
		d.restart()
		d.want("cmd/boiler/worn", "7", `the budget of boiler.worn is used up`)
		d.want("cmd/boiler/worn", `{"value":0,"id":"w0"}`, `{"id":"w0","status":"verified"`)
		time.Sleep(24 * time.Hour) // nobody sets it
		d.want("cmd/boiler/worn", "6", `"verified"`)
		set = true
		d.want("cmd/boiler/worn", "7", `"verified"`)
	})
}

// A retried write succeeds when the device is back, and gives way to a newer one.
func TestRetry(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		var dead atomic.Bool
		dead.Store(true)
		d.plant.write = func(point.ID, point.Value) (bool, error) {
			if dead.Load() {
				return false, errDead
			}
			return true, nil
		}
		d.plant.read = func(point.ID) error {
			if dead.Load() {
				return errDead
			}
			return nil
		}
		d.send("again", "60")
		time.Sleep(5 * time.Second)
		d.want("cmd/pump-2/speed", "5", `"unknown"`)
		dead.Store(false)
		time.Sleep(10 * time.Second)
		if got := d.take(); len(got) != 1 || !strings.Contains(got[0], `"verified","point":"boiler.setpoint","value":60,"previous":0,"reason":"after 5 tries"`) {
			t.Errorf("answered %q", got)
		}
		dead.Store(true)
		d.send("again", "61")
		time.Sleep(2 * time.Second)
		dead.Store(false)
		d.send("cmd/boiler/setpoint", "62")
		time.Sleep(20 * time.Second)
		if got := d.take(); len(got) != 2 || !strings.Contains(strings.Join(got, " "), `"value":62`) || !strings.Contains(strings.Join(got, " "), `"unknown","point":"boiler.setpoint","value":61,"previous":60,"reason":"superseded by a newer command; before: unit 1: no response`) {
			t.Errorf("answered %q", got)
		}
		dead.Store(true)
		d.send("again", "63")
		time.Sleep(2 * time.Minute)
		if got := d.take(); len(got) != 1 || !strings.Contains(got[0], `"unknown","point":"boiler.setpoint","value":63`) {
			t.Errorf("answered %q", got)
		}
		agree(t, d)
	})
}

const lossConfig = `
commands:
  - { topic: a, write: boiler.hold }
  - { topic: b, write: boiler.safe }
  - { topic: c, write: boiler.safe, from: local }
command_rules: { loss_after: 1m }
`

// What is written without being asked: the value for a lost uplink, a value once
// more, the setup of a device that is back.
func TestUnasked(t *testing.T) {
	text := strings.Replace(testConfig, "      worn:", `      safe: { at: holding 50, write: { on_uplink_loss: 20 } }
      hold: { at: holding 51, write: { reassert: 10s } }
      worn:`, 1)
	text = strings.Replace(text, "    unit: 1\n", "    unit: 1\n    setup: [ { point: mode, value: auto }, { at: 40052, value: 9 } ]\n", 1)
	var up atomic.Bool
	up.Store(true)
	synctest.Test(t, func(t *testing.T) {
		cfg, err := config.LoadBytes("f", []byte(text+lossConfig))
		if err != nil {
			t.Fatal(err)
		}
		d := newDesk(t, testCommands, func(o *Options) {
			o.Devices, o.Commands, o.Rules = cfg.Devices, cfg.Commands, cfg.CommandRules
			o.Connected = func(string) bool { return up.Load() }
		})
		for _, dev := range cfg.Devices {
			for i := range dev.Points {
				d.plant.points[dev.Points[i].ID] = &dev.Points[i]
			}
		}
		writes := func() []string {
			synctest.Wait()
			got := d.plant.writes()
			d.plant.mu.Lock()
			defer d.plant.mu.Unlock()
			d.plant.log = nil
			return got
		}
		want := func(what string, want ...string) {
			t.Helper()
			if got := writes(); !slices.Equal(got, want) {
				t.Errorf("%s: written %q, want %q", what, got, want)
			}
		}
		d.plant.set("boiler.safe", point.IntValue(0))
		d.plant.set("boiler.hold", point.IntValue(0))
		d.want("b", "50", `"verified"`)
		time.Sleep(10 * time.Minute)
		want("connected", "boiler.safe=50")
		up.Store(false)
		time.Sleep(50 * time.Second)
		want("away for 50 s")
		time.Sleep(30 * time.Second)
		want("lost", "boiler.safe=20")
		time.Sleep(time.Hour)
		want("lost for long")
		d.sendAs(mqtt.Origin{Via: config.Local}, mqtt.Message{Topic: "c", Payload: []byte("33")})
		time.Sleep(time.Hour)
		want("commanded on site", "boiler.safe=33")
		up.Store(true)
		time.Sleep(time.Minute)
		want("back")
		d.take()

		// A held value.
		d.want("a", fmt.Sprintf(`{"value":5,"expires":"%s"}`, stamp(time.Now().Add(time.Minute))), `"verified"`)
		time.Sleep(20 * time.Second)
		want("held", "boiler.hold=5") // still shown, so not written again
		d.plant.set("boiler.hold", point.IntValue(1))
		time.Sleep(11 * time.Second)
		want("changed at the device", "boiler.hold=5")
		time.Sleep(time.Minute)
		d.plant.set("boiler.hold", point.IntValue(1))
		time.Sleep(time.Minute)
		want("after it has expired")

		// While its device is away it is tried once a minute, and at once when
		// that is back.
		d.want("a", "5", `"verified"`)
		away := true
		var tries []time.Time
		d.plant.mu.Lock()
		d.plant.write = func(point.ID, point.Value) (bool, error) {
			if away {
				tries = append(tries, time.Now())
				return false, modbus.ErrNotConnected
			}
			return true, nil
		}
		d.plant.read = func(point.ID) error {
			if away {
				return modbus.ErrNotConnected
			}
			return nil
		}
		d.plant.values["boiler.hold"] = point.IntValue(1)
		d.plant.last["boiler.hold"] = point.Sample{ID: "boiler.hold", Quality: point.Bad}
		d.plant.mu.Unlock()
		time.Sleep(time.Hour)
		d.plant.mu.Lock()
		if len(tries) < 55 || len(tries) > 61 {
			t.Errorf("%d tries in an hour", len(tries))
		}
		away = false
		d.plant.last["boiler.hold"] = point.Sample{ID: "boiler.hold", Value: point.IntValue(1), Time: time.Now()}
		d.plant.mu.Unlock()
		time.Sleep(11 * time.Second)
		want("back", "boiler.hold=5", "boiler.hold=5")
		d.plant.mu.Lock()
		d.plant.write, d.plant.read = nil, nil
		d.plant.mu.Unlock()
		d.want("a", fmt.Sprintf(`{"value":5,"expires":"%s"}`, stamp(time.Now().Add(time.Second))), `"verified"`)

		// Setup.
		d.Online("boiler")
		time.Sleep(time.Second)
		want("setup", "boiler.mode=auto", "boiler.hold=9")
		d.Online("boiler")
		time.Sleep(time.Second)
		want("setup that is there already")
		agree(t, d)
		d.end()
	})
}

func TestStages(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		d.send("staged", `{"value":60,"id":"s"}`)
		time.Sleep(time.Second)
		got := d.take()
		if len(got) != 2 || !strings.HasPrefix(got[0], `staged/ack {"id":"s","status":"accepted","point":"boiler.setpoint","value":60`) || !strings.Contains(got[1], `"verified"`) {
			t.Errorf("answered %q", got)
		}
	})
}

func TestEvents(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		safe := d.sendAs(mqtt.Origin{Via: "cloud"}, mqtt.Message{Topic: "alerts/storm", Payload: []byte("secure the roof")})
		<-safe
		d.sendAs(mqtt.Origin{Via: "cloud"}, mqtt.Message{Topic: "alerts/storm", Payload: []byte("\xff\x00")})
		synctest.Wait()
		time.Sleep(time.Second)
		if got := d.take(); len(got) != 0 {
			t.Errorf("answered %q", got)
		}
		var got []string
		for _, r := range d.records() {
			got = append(got, r.Event+" "+r.Point+" "+r.Value)
		}
		if want := []string{"alert alerts/storm secure the roof", "alert alerts/storm 0xff00"}; !slices.Equal(got, want) {
			t.Errorf("recorded %q, want %q", got, want)
		}

		// A flood: most are counted only.
		time.Sleep(time.Minute)
		for i := range 1000 {
			d.send("alerts/storm", fmt.Sprint(i))
		}
		time.Sleep(time.Minute)
		d.send("alerts/storm", "last")
		time.Sleep(time.Second)
		all := d.records()
		if last := all[len(all)-1]; len(all) != 2+eventsPerMinute+1 || last.Reason != "400 more came before and were not kept" {
			t.Errorf("%d records, the last %+v", len(all), last)
		}
		for i, r := range all[2 : len(all)-1] {
			if r.Value != fmt.Sprint(i) {
				t.Fatalf("message %s stands in the place of %d", r.Value, i)
			}
		}
	})
}

// Do is for those who wait for the outcome.
func TestDo(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		o := Order{By: "10.0.0.7", Via: "modbus", Writes: []Write{{Point: "boiler.level", Value: point.IntValue(5)}, {Point: "boiler.mode", Text: "auto"}}, Stop: true}
		if r := d.Do(t.Context(), o); r.Err() != nil || r.Status != Verified || len(r.Writes) != 2 {
			t.Errorf("%+v", r)
		}
		if r := d.Do(t.Context(), Order{}); r.Status != Rejected {
			t.Errorf("%+v", r)
		}
		o.Writes[0].Value = point.IntValue(500)
		if r := d.Do(t.Context(), o); !errors.Is(r.Err(), ErrRejected) {
			t.Errorf("%+v", r)
		}
		d.plant.delay["boiler"] = time.Minute
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		o.Writes[0].Value = point.IntValue(6)
		if r := d.Do(ctx, o); r.Err() == nil {
			t.Errorf("%+v", r)
		}
	})
}

// Everything that is under way has an answer when the gateway stops.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, testCommands, nil)
		d.plant.delay["boiler"] = 30 * time.Second
		for i := range 10 {
			d.send("cmd/boiler/level", fmt.Sprint(i))
		}
		time.Sleep(time.Second)
		began := time.Now()
		d.end()
		if took := time.Since(began); took > stopGrace+time.Second {
			t.Errorf("stopping took %v", took)
		}
		if got := d.take(); len(got) != 10 {
			t.Errorf("%d answers: %q", len(got), got)
		}
		d.send("cmd/boiler/level", "5")
		if got := d.take(); len(got) != 1 || !strings.Contains(got[0], "the gateway is stopping") {
			t.Errorf("answered %q", got)
		}
	})
}

// Commands of random legal and illegal form, from several connections: each gets
// one answer, nothing is done twice, and the record agrees with the device.
func TestRandom(t *testing.T) {
	n := 1500
	if testing.Short() {
		n = 300
	}
	random(t, n)
}

func random(t *testing.T, n int) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		var mu sync.Mutex
		faults := rand.New(rand.NewPCG(seed, 99))
		d.plant.write = func(point.ID, point.Value) (bool, error) {
			mu.Lock()
			defer mu.Unlock()
			switch faults.IntN(20) {
			case 0:
				return true, errDead
			case 1:
				return false, errDead
			case 2:
				return false, modbus.IllegalDataValue
			}
			return true, nil
		}
		d.plant.read = func(point.ID) error {
			mu.Lock()
			defer mu.Unlock()
			if faults.IntN(30) == 0 {
				return errDead
			}
			return nil
		}
		for _, name := range []string{"boiler", "pump-2", "pump-3"} {
			d.plant.delay[name] = 10 * time.Millisecond
		}
		var senders sync.WaitGroup
		const connections = 4
		for k := range connections {
			r := rand.New(rand.NewPCG(seed, uint64(k)))
			senders.Go(func() { // ends with its messages
				for i := range n / connections {
					topic, payload := randomCommand(r, fmt.Sprintf("c%d-%d", k, i))
					d.send(topic, payload)
					time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
				}
			})
		}
		senders.Wait()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		d.mu.Lock()
		answers := len(d.answers)
		ids := make(map[string]int)
		for _, m := range d.answers {
			var a struct{ ID string }
			if json.Unmarshal(m.Payload, &a) == nil && a.ID != "" {
				ids[a.ID]++
			}
		}
		d.mu.Unlock()
		if want := n / connections * connections; answers != want {
			t.Errorf("%d answers to %d commands", answers, want)
		}
		for id, times := range ids {
			if times != 1 && !strings.HasPrefix(id, "dup") {
				t.Errorf("%s was answered %d times", id, times)
			}
		}
		agree(t, d)
		if s := d.Stats(); s.Verified == 0 || s.Rejected == 0 || s.Unknown == 0 || s.Duplicates == 0 || s.Waiting != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func randomCommand(r *rand.Rand, id string) (topic, payload string) {
	if r.IntN(20) == 0 {
		id = fmt.Sprintf("dup%d", r.IntN(5))
	}
	v := []string{"5", "55.5", "-3", "1e3", `"auto"`, "true", "null", "[1]", `{"a":1}`, "99999999999999999999", `"x"`, "0.001", "NaN"}[r.IntN(13)]
	topic = []string{"cmd/boiler/level", "cmd/boiler/setpoint", "cmd/boiler/mode", "cmd/pump-2/speed", "cmd/pump-3/speed", "cmd/boiler/power", "cmd/nowhere/x", "cmd/boiler/temp"}[r.IntN(8)]
	switch r.IntN(8) {
	case 0:
		return topic, v
	case 1:
		return topic, fmt.Sprintf(`{"value":%s,"id":"%s","timestamp":"%s"}`, v, id, stamp(time.Now().Add(time.Duration(r.IntN(80)-60)*time.Second)))
	case 2:
		return "set/one", fmt.Sprintf(`{"register":"4000%d","value":%s,"id":"%s"}`, r.IntN(5), v, id)
	case 3:
		return "recipe", fmt.Sprintf(`{"temp":%d,"level":%d,"mode":%s,"id":"%s"}`, r.IntN(120), r.IntN(120), v, id)
	case 4:
		return "all/speed", fmt.Sprintf(`{"value":%d,"id":"%s"}`, r.IntN(70000), id)
	case 5:
		b := fmt.Appendf(nil, `{"value":%s,"id":"dup-%s"}`, v, id) // whose id may become another's
		b[r.IntN(len(b))] = byte(r.IntN(256))
		return topic, string(b)
	case 6:
		return "line", []string{"START", "HALT", "GO"}[r.IntN(3)]
	}
	return topic, fmt.Sprintf(`{"value":%s,"id":"%s","ttl":%d}`, v, id, r.IntN(60)-5)
}
