package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fieldgate/internal/audit"
	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
)

// plant is a Field that can be made to fail.
type plant struct {
	points map[point.ID]*point.Point

	mu     sync.Mutex
	values map[point.ID]point.Value
	last   map[point.ID]point.Sample // what a poll has shown
	log    []string                  // executed writes
	took   []string                  // requested writes, in order of the call
	delay  map[string]time.Duration  // of a device
	paused bool                      // nothing is polled: what was read stays as old as it is
	write  func(id point.ID, v point.Value) (done bool, err error)
	read   func(id point.ID) error
}

func (p *plant) wait(ctx context.Context, device string) error {
	p.mu.Lock()
	d := p.delay[device]
	p.mu.Unlock()
	if d == 0 || sleep(ctx, d) {
		return nil
	}
	return context.Cause(ctx)
}

func (p *plant) Write(ctx context.Context, id point.ID, v point.Value) error {
	p.mu.Lock()
	p.took = append(p.took, fmt.Sprintf("%s=%s", id, v))
	p.mu.Unlock()
	if err := p.wait(ctx, id.Device()); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pt := p.points[id]
	if err := pt.CheckWrite(v); err != nil {
		return err
	}
	done, err := true, error(nil)
	if p.write != nil {
		done, err = p.write(id, v)
	}
	if done {
		regs, _ := pt.Encode(v)
		p.values[id], _ = pt.Decode(regs)
		p.log = append(p.log, fmt.Sprintf("%s=%s", id, p.values[id]))
	}
	return err
}

func (p *plant) Read(ctx context.Context, ids ...point.ID) ([]point.Sample, error) {
	if err := p.wait(ctx, ids[0].Device()); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var failed error
	samples := make([]point.Sample, len(ids))
	for i, id := range ids {
		samples[i] = point.Sample{ID: id, Value: p.values[id], Time: time.Now()}
		var err error
		if p.read != nil {
			err = p.read(id)
		}
		if err != nil || p.values[id].IsZero() {
			samples[i].Quality, samples[i].Value = point.Bad, point.Value{}
			if err != nil && failed == nil {
				failed = err
			}
			continue
		}
		p.last[id] = samples[i]
	}
	return samples, failed
}

func (p *plant) Last(id point.ID) (point.Sample, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.last[id]
	if !p.paused {
		s.Time = time.Now() // it is polled
	}
	return s, ok
}

// set changes a value at the device; a poll has not seen it yet.
func (p *plant) set(id point.ID, v point.Value) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.values[id] = v
}

func (p *plant) writes() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.log)
}

const testConfig = `
site: { id: s }
buses: { b: { tcp: 10.0.0.1:502 } }
devices:
  boiler:
    bus: b
    unit: 1
    points:
      temp:     { at: input 0, type: int16, scale: 0.1, unit: "°C" }
      setpoint: { at: holding 0, type: int16, scale: 0.1, unit: "°C", write: { min: 20, max: 90 } }
      level:    { at: holding 1, unit: "%", write: { max: 100, skip_if_equal: false } }
      mode:     { at: holding 2, map: { 0: "off", 1: auto, 2: manual }, write: {} }
      name:     { at: holding 10, type: string(4), write: {} }
      power:    { at: holding 20, type: float32, write: {} }
      blind:    { at: holding 30, write: { verify: false } }
      stop:     { at: coil 0, write: { priority: emergency } }
      slow:     { at: holding 40, write: { rate: 1/10s, skip_if_equal: false } }
      worn:     { at: holding 41, write: { budget: 5/day, skip_if_equal: false } }
  pump-{unit}:
    bus: b
    unit: 2-3
    points:
      speed: { at: holding 0, unit: rpm, write: {} }
      stop:  { at: coil 0, write: { priority: emergency } }
      fixed: { at: holding 1 }
uplinks: { cloud: { url: mqtt://127.0.0.1 } }
broker: { anonymous: true }
`

const testCommands = `
commands:
  - { topic: "cmd/{device}/{point}", write: "{device}.{point}", priority: normal }
  - { topic: set/one, structured: ["boiler.*", "*.speed"] }
  - { topic: recipe, recipe: { temp: boiler.setpoint, level: boiler.level, mode: boiler.mode } }
  - { topic: recipe/stop, recipe: { temp: boiler.setpoint, level: boiler.level }, on_error: stop }
  - { topic: emergency/stop, match: EMERGENCY_STOP, write: { boiler.stop: 1, pump-2.stop: 1 }, ack: { topic: status/emergency, text: STOPPED } }
  - { topic: line, match: START, write: { pump-2.speed: 100 } }
  - { topic: line, match: HALT, write: { pump-2.speed: 0 } }
  - { topic: line, match: '{"do": "rest"}', write: { pump-2.speed: 1 } }
  - { topic: line, match: ' "NAP" ', write: { pump-2.speed: 2 } }
  - { topic: all/speed, write: [pump-2.speed, pump-3.speed] }
  - { topic: "config/{unit}/speed", write: "*.speed" }
  - { topic: get/boiler, read: "boiler.*" }
  - { topic: "alerts/#", event: alert }
  - { topic: staged, write: boiler.setpoint, ack: { stages: true } }
  - { topic: held, write: boiler.setpoint, retained: restore }
  - { topic: again, write: boiler.setpoint, retry: 1m }
  - { topic: mine, write: boiler.setpoint, from: local, users: [], need_id: true }
`

// desk is a Desk under test, with all that its answers go through.
type desk struct {
	t     *testing.T
	cfg   *config.Config
	dir   string
	plant *plant
	audit *audit.Log
	*Desk
	options Options
	end     func()
	disk    func(audit.Record) // nil, or called when a record is on disk, which takes as long

	mu      sync.Mutex
	answers []mqtt.Message
}

// newDesk starts a Desk in the bubble of a test. change may change its Options.
func newDesk(t *testing.T, text string, change func(*Options)) *desk {
	t.Helper()
	cfg, err := config.LoadBytes("f", []byte(strings.ReplaceAll(testConfig+text, ", users: []", "")))
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{t: t, cfg: cfg, dir: t.TempDir(), plant: &plant{
		points: make(map[point.ID]*point.Point), values: make(map[point.ID]point.Value),
		last: make(map[point.ID]point.Sample), delay: make(map[string]time.Duration),
	}}
	for i := range cfg.Devices {
		for j := range cfg.Devices[i].Points {
			p := &cfg.Devices[i].Points[j]
			d.plant.points[p.ID] = p
			zero, err := p.Decode(make([]uint16, p.Words()))
			if err != nil {
				t.Fatal(err)
			}
			d.plant.values[p.ID] = zero
		}
	}
	d.options = Options{Devices: cfg.Devices, Commands: cfg.Commands, Rules: cfg.CommandRules, Field: d.plant, Last: d.plant.Last}
	d.options.Answers = map[string]mqtt.Sink{"cloud": sink{d}, config.Local: sink{d}}
	if change != nil {
		change(&d.options)
	}
	d.start()
	return d
}

// sink takes the answers to orders of before a restart.
type sink struct{ d *desk }

func (s sink) Deliver(_ context.Context, msgs ...mqtt.Message) error {
	for _, m := range msgs {
		s.d.keepAnswer(m)
	}
	return nil
}

func (d *desk) keepAnswer(m mqtt.Message) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answers = append(d.answers, m)
}

func (d *desk) start() {
	log, err := audit.Open(d.dir, audit.Options{OnRecord: func(r audit.Record) {
		if d.disk != nil {
			d.disk(r)
		}
	}}, slog.New(slog.DiscardHandler))
	if err != nil {
		d.t.Fatal(err)
	}
	d.audit = log
	d.options.Audit = log
	d.Desk = Open(d.dir, d.options, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { // ends with ctx
		if err := d.Desk.Run(ctx); err != nil {
			d.t.Error(err)
		}
	})
	d.end = func() {
		cancel()
		running.Wait()
		if err := log.Close(); err != nil {
			d.t.Error(err)
		}
	}
}

func (d *desk) restart() {
	d.end()
	d.start()
}

// send hands a message over as a connection's reader does, from the uplink.
func (d *desk) send(topic, payload string) {
	d.sendAs(mqtt.Origin{Via: "cloud"}, mqtt.Message{Topic: topic, Payload: []byte(payload), QoS: 1})
}

func (d *desk) sendAs(from mqtt.Origin, m mqtt.Message) (safe <-chan struct{}) {
	d.t.Helper()
	from.Reply = d.keepAnswer
	handled := 0
	for _, s := range d.Subscriptions(from.Via) {
		if s.Filter.Match(m.Topic) {
			handled++
			safe = s.Handle(m, from)
		}
	}
	if handled != 1 {
		d.t.Errorf("%d subscriptions take %s", handled, m.Topic)
	}
	return safe
}

// take returns the answers so far, as "TOPIC PAYLOAD" without what differs from
// run to run.
func (d *desk) take() []string {
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, m := range d.answers {
		text := string(m.Payload)
		if strings.HasPrefix(text, "{") {
			if !json.Valid(m.Payload) {
				d.t.Errorf("answer %s is not JSON", text)
			}
			for _, key := range []string{`,"ms":`, `,"timestamp":"`} {
				if i := strings.LastIndex(text, key); i >= 0 && !strings.Contains(text[i:], "]") {
					text = text[:i] + "}"
				}
			}
			text = strings.TrimSuffix(text, `,"by":"cloud"}`)
		}
		out = append(out, m.Topic+" "+text)
	}
	d.answers = nil
	return out
}

// want sends a message and compares the one answer.
func (d *desk) want(topic, payload, want string) {
	d.t.Helper()
	d.send(topic, payload)
	time.Sleep(5 * time.Second)
	got := d.take()
	if len(got) != 1 || !strings.Contains(got[0], want) {
		d.t.Errorf("%s %s\nanswered %q\nwant      %s", topic, payload, got, want)
	}
}

func (d *desk) records() []audit.Record {
	synctest.Wait()
	var all []audit.Record
	if err := audit.Read(d.dir, func(r audit.Record) error { all = append(all, r); return nil }); err != nil {
		d.t.Error(err)
	}
	return all
}

// bubble runs a test with a Desk in a bubble.
func bubble(t *testing.T, text string, change func(*Options), f func(t *testing.T, d *desk)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, text, change)
		f(t, d)
		d.end()
		if r, err := audit.Verify(d.dir); err != nil || len(r.Breaks) > 0 {
			t.Errorf("audit: %+v %v", r, err)
		}
	})
}

// Every form of command, and what is wrong with it.
func TestForms(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		for _, row := range [][3]string{
			// Simple values, S33.
			{"cmd/boiler/setpoint", "75.5", `cmd/boiler/setpoint/ack {"status":"verified","point":"boiler.setpoint","value":75.5`},
			{"cmd/boiler/setpoint", ` {"value":60,"id":"a","unit":"C"} `, `{"id":"a","status":"verified","point":"boiler.setpoint","value":60`},
			{"cmd/boiler/setpoint", `{"value":140,"unit":"°F"}`, `"status":"verified","point":"boiler.setpoint","value":60,"previous":60,"reason":"not written, the device shows this value already"`},
			{"cmd/boiler/setpoint", `{"value":333.15,"unit":"K"}`, `"value":60,`},
			{"cmd/boiler/setpoint", `{"value":60,"unit":"bar"}`, `"rejected","point":"boiler.setpoint","reason":"the unit is °C, and \"bar\" cannot be converted to it"`},
			{"cmd/boiler/power", `{"value":60,"unit":"kW"}`, `"reason":"the point has no unit, so that \"kW\" cannot be held against it"`},
			{"cmd/boiler/mode", "auto", `"status":"verified","point":"boiler.mode","value":"auto"`},
			{"cmd/boiler/mode", `"manual"`, `"value":"manual"`},
			{"cmd/boiler/mode", `2`, `"reason":"not written`},
			{"cmd/boiler/mode", `7`, `"reason":"\"7\" is not one of off, auto, manual"`},
			{"cmd/boiler/mode", `on`, `"reason":"\"on\" is not one of off, auto, manual"`},
			{"cmd/boiler/name", `"Kiln 7"`, `"value":"Kiln 7"`},
			{"cmd/boiler/name", `much too long`, `"reason":"the text has 13 bytes, string(4) holds 8"`},
			{"cmd/boiler/stop", `on`, `"status":"verified","point":"boiler.stop","value":true`},
			{"cmd/boiler/stop", `false`, `"value":false,"previous":true`},
			{"cmd/boiler/stop", `2`, `"reason":"2 is not true (1) or false (0)"`},
			{"cmd/boiler/blind", `5`, `"status":"written","point":"boiler.blind","value":5`},
			{"cmd/boiler/power", `1e3`, `"value":1000`},
			{"cmd/boiler/power", `NaN`, `"reason":"\"NaN\" is not a number"`},
			{"cmd/boiler/power", `1e999`, `"reason":"\"1e999\" is not a number"`},
			{"cmd/boiler/power", `{"value":1e999}`, `is not a number`},
			{"cmd/boiler/level", `-1`, `"reason":"-1 is outside 0 to 65535 (uint16)"`},
			{"cmd/boiler/level", `101`, `"reason":"101 is above the most, 100"`},
			{"cmd/boiler/level", `5.5`, `5.5 is not a whole number`},
			{"cmd/boiler/level", ``, `"reason":"the payload is empty; it must be the value"`},
			{"cmd/boiler/level", `true`, `"rejected","point":"boiler.level","reason":"\"true\" is a boolean, and the type of the point is uint16"`},
			{"cmd/boiler/power", `{"value":false}`, `"reason":"\"false\" is a boolean, and the type of the point is float32"`},
			{"cmd/boiler/name", `{"value":true}`, `"reason":"\"true\" is a boolean, and the type of the point is string(4)"`},
			{"cmd/boiler/mode", `{"value":true}`, `"reason":"\"true\" is a boolean`},
			{"cmd/boiler/level", `null`, `"reason":"\"null\" is not a number"`},
			{"cmd/boiler/level", `{"value":null}`, `"reason":"value is null, which is no value to write"`},
			{"cmd/boiler/level", `{"value":[1]}`, `\"value\" is a list or nested too deep`},
			{"cmd/boiler/level", `{"value":{"a":1}}`, `value is an object, and a single value is wanted`},
			{"cmd/boiler/level", `{"value":{"a":{}}}`, `nested too deep`},
			{"cmd/boiler/level", `{"vlaue":1}`, `"reason":"value is missing"`},
			{"cmd/boiler/level", `{"value":1,"expire":"x"}`, `"reason":"\"expire\" is not known here; known: value unit id timestamp expires ttl"`},
			{"cmd/boiler/level", `{"value":1,"value":2}`, `\"value\" is given twice`},
			{"cmd/boiler/level", `{"value":1} 2`, `something follows it`},
			{"cmd/boiler/level", `{"value":1`, `unexpected EOF`},
			{"cmd/boiler/level", `{value:1}`, `not a JSON object that can be read`},
			{"cmd/boiler/level", `[1]`, `"\"[1]\" is not a number"`},
			{"cmd/boiler/level", `"5`, `begins like a JSON string, but is none`},
			{"cmd/boiler/level", "\xff\xfe", `"reason":"the payload is not UTF-8 text"`},
			{"cmd/boiler/level", strings.Repeat("5", 1<<20), `"reason":"the payload has 1048576 bytes, at most 65536 are taken"`},
			{"cmd/boiler/level", `{"value":1,"id":"` + strings.Repeat("x", 200) + `"}`, `id has 200 bytes, at most 128`},
			{"cmd/boiler/level", `{"value":1,"id":true}`, `"reason":"id must be a text or a number"`},
			{"cmd/boiler/level", `{"value":1,"id":""}`, `"reason":"id is empty"`},
			{"cmd/boiler/level", `{"value":1,"id":"@x"}`, `an id must not begin with @`},
			{"cmd/boiler/level", `{"value":1,"id":77}`, `{"id":"77","status":"verified"`},
			{"cmd/boiler/level", `{"value":1,"timestamp":"today"}`, `timestamp: \"today\" is not a time`},
			{"cmd/boiler/level", `{"value":1,"ttl":-1}`, `ttl must be a number of seconds above 0`},
			{"cmd/boiler/level", `{"value":1,"ttl":1e300}`, `ttl must be a number of seconds above 0 and up to 31622400, a year`},
			{"cmd/boiler/level", `{"value":1,"timestamp":"9999-12-31T23:59:59Z"}`, `its timestamp 9999-12-31T23:59:59.000Z is 2921939 days ahead of this gateway's clock`},
			{"cmd/boiler/level", `{"value":1,"timestamp":"1975-01-01T00:00:00Z"}`, `is 9131 days old, at most 30s are allowed`},
			{"cmd/boiler/level", `{"value":1,"expires":"1999-12-30T00:00:01Z"}`, `it expired at 1999-12-30T00:00:01.000Z, 2 days ago`},
			{"cmd/boiler/temp", `5`, `"reason":"no point that may be written is meant by the topic \"cmd/boiler/temp\""`},
			{"cmd/kiln/temp", `5`, `cmd/kiln/temp/ack {"status":"rejected","reason":"no point that may be written is meant`},

			// Structured, S34, and the full record, S30.
			{"set/one", `{"register":"40001","device":"boiler","value":140,"unit":"°F","timestamp":"2000-01-01T00:00:05Z"}`, `timestamp 2000-01-01T00:00:05.000Z is`},
			{"set/one", `{"register":"40002","value":12}`, `"status":"verified","point":"boiler.level","value":12`},
			{"set/one", `{"register":"holding 1","value":13}`, `"value":13`},
			{"set/one", `{"register":400002,"value":14}`, `"value":14`},
			{"set/one", `{"register":"40001","value":1}`, `\"40001\" is boiler.setpoint and pump-2.speed; say by point which is meant`},
			{"set/one", `{"register":"40001","device":"pump-3","value":7}`, `"point":"pump-3.speed","value":7`},
			{"set/one", `{"point":"boiler.setpoint","value":50}`, `"point":"boiler.setpoint","value":50`},
			{"set/one", `{"point":"boiler.setpoint","value":10}`, `"rejected","point":"boiler.setpoint","reason":"10 is below the least, 20"`},
			{"set/one", `{"register":"40002","value":15,"timestamp":"2001-01-01T00:00:00Z"}`, `"rejected","point":"boiler.level","reason":"its timestamp 2001-01-01T00:00:00.000Z is`},
			{"set/one", `{"point":"level","value":15}`, `"point":"boiler.level","value":15`},
			{"set/one", `{"point":"speed","value":15}`, `\"speed\" is pump-2.speed and pump-3.speed`},
			{"set/one", `{"point":"boiler.temp","value":15}`, `\"boiler.temp\" is not one of the points that this command may write`},
			{"set/one", `{"register":"40099","value":15}`, `\"40099\" is not one of the points`},
			{"set/one", `{"register":"5","value":15}`, `can be read in two ways`},
			{"set/one", `{"register":"much","value":15}`, `is not an address`},
			{"set/one", `{"value":15}`, `neither point nor register says what to write`},
			{"set/one", `{"point":"level"}`, `value is missing`},
			{"set/one", `15`, `"reason":"the payload \"15\" is not a JSON object"`},
			{"set/one", `{"RegName":"level","RegAddress":400002,"RegUnitID":1,"RegGain":1,"RegOffset":0,"RegType":"UINT16","RegByteSwap":"ABCD_BE","RegValue":"25","OneBased":true,"HasError":false}`, `"point":"boiler.level","value":25`},
			{"set/one", `{"RegAddress":1,"RegUnitID":1,"RegValue":"0"}`, `"point":"boiler.stop","value":false`},
			{"set/one", `{"RegAddress":400001,"RegUnitID":3,"OneBased":false,"RegValue":"0"}`, `is not one of the points`},
			{"set/one", `{"RegAddress":400000,"RegUnitID":3,"OneBased":false,"RegValue":"8"}`, `"point":"pump-3.speed","value":8`},
			{"set/one", `{"RegAddress":400002,"RegUnitID":1,"RegValue":null}`, `RegValue is null`},
			{"set/one", `{"RegAddress":400002,"RegValue":"5","HasError":true}`, `HasError is true`},
			{"set/one", `{"RegAddress":400002,"RegValue":"5","RegFoo":1}`, `\"RegFoo\" is not known here`},

			// Recipes, S35.
			{"recipe", `{"temp":55,"level":30,"mode":"auto","id":"r1"}`, `recipe/ack {"id":"r1","status":"verified","writes":[{"status":"verified","point":"boiler.setpoint","value":55,"previous":50},{"status":"verified","point":"boiler.level","value":30,"previous":25},{"status":"verified","point":"boiler.mode","value":"auto","previous":"manual"}]`},
			{"recipe", `{"temp":{"value":131,"unit":"°F"},"level":30,"mode":1}`, `"status":"verified"`},
			{"recipe", `{"temp":55,"level":30}`, `"reason":"mode is missing; a recipe is written as a whole"`},
			{"recipe", `{"temp":55,"level":300,"mode":1}`, `"reason":"boiler.level: 300 is above the most, 100; nothing was written"`},
			{"recipe", `{"temp":55,"level":30,"mode":1,"x":1}`, `\"x\" is not known here; known: temp level mode id timestamp`},
			{"recipe", `{"temp":{"value":1,"x":2},"level":30,"mode":1}`, `temp: \"x\" is not known here; known: value unit`},

			// Texts that stand for values, S36, and lists.
			{"emergency/stop", `EMERGENCY_STOP`, `status/emergency STOPPED`},
			{"emergency/stop", `"EMERGENCY_STOP"`, `status/emergency STOPPED`},
			{"emergency/stop", `{"value":"EMERGENCY_STOP","id":"e1"}`, `status/emergency STOPPED`},
			{"emergency/stop", `emergency_stop`, `status/emergency {"status":"rejected","reason":"the payload \"emergency_stop\" is not \"EMERGENCY_STOP\""`},
			{"line", `START`, `"point":"pump-2.speed","value":100`},
			{"line", `HALT`, `"point":"pump-2.speed","value":0`},
			{"line", `{"do": "rest"}`, `"point":"pump-2.speed","value":1`},
			{"line", ` "NAP" `, `"point":"pump-2.speed","value":2`},
			{"line", `"NAP"`, `"point":"pump-2.speed","value":2`},
			{"line", `NAP`, `"rejected"`},
			{"line", `GO`, `"rejected"`},
			{"all/speed", `500`, `all/speed/ack {"status":"verified","writes":[{"status":"verified","point":"pump-2.speed","value":500`},

			// Bound to the unit id, S32.
			{"config/3/speed", `700`, `"point":"pump-3.speed","value":700`},
			{"config/1/speed", `700`, `no point that may be written is meant by the topic`},

			// Reading.
			{"get/boiler", `{"id":"q","point":"setpoint"}`, `get/boiler/ack {"id":"q","status":"read","values":[{"point":"boiler.setpoint","value":55,"unit":"°C","quality":"good"`},
			{"get/boiler", `{"point":"x"}`, `"rejected","reason":"no point that may be read is meant by \"x\""`},
			{"get/boiler", `{"x":1}`, `\"x\" is not known here; known: point id`},
		} {
			d.want(row[0], row[1], row[2])
		}
		if got := d.plant.writes(); len(got) < 20 {
			t.Errorf("only %d writes", len(got))
		}
	})
}

// A payload that is too long for the connection does not come at all: it is
// refused, or noted, by its topic.
func TestTooLong(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		for _, row := range [][2]string{
			{"cmd/boiler/setpoint", `cmd/boiler/setpoint/ack {"status":"rejected","point":"boiler.setpoint","reason":"the payload has 2000000 bytes, at most 65536 are taken"`},
			{"emergency/stop", `status/emergency {"status":"rejected","reason":"the payload has 2000000 bytes`},
			{"line", `line/ack {"status":"rejected","point":"pump-2.speed","reason":"the payload has 2000000 bytes`},
			{"get/boiler", `get/boiler/ack {"status":"rejected","reason":"the payload has 2000000 bytes`},
			{"alerts/fire", ""},
		} {
			for _, s := range d.Subscriptions("cloud") {
				if s.Filter.Match(row[0]) {
					s.TooLong(mqtt.Message{Topic: row[0], QoS: 1}, 2_000_000, mqtt.Origin{Via: "cloud", Reply: d.keepAnswer})
				}
			}
			if got := strings.Join(d.take(), " "); !strings.HasPrefix(got, row[1]) || got != "" && row[1] == "" {
				t.Errorf("%s answered %q, want %s", row[0], got, row[1])
			}
		}
		if r := d.records(); len(r) == 0 || r[len(r)-1].Event != "alert" || !strings.Contains(r[len(r)-1].Reason, "2000000 bytes") {
			t.Errorf("records %+v", r)
		}
		if n := len(d.plant.writes()); n > 0 {
			t.Errorf("%d writes", n)
		}
	})
}

// A wildcard command reaches nothing that may not be written.
func TestOnlyWritable(t *testing.T) {
	cfg, err := config.LoadBytes("f", []byte(testConfig+`
commands: [ { topic: "a/{device}/{point}", write: "{device}.{point}" }, { topic: b, structured: "*" } ]
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cfg.Commands {
		for _, target := range c.Targets {
			if target.Point == "boiler.temp" || strings.HasSuffix(string(target.Point), ".fixed") {
				t.Errorf("%s may be written by %s", target.Point, c.Topic)
			}
		}
	}
}

// A duplicate gets the first answer and does nothing, also after a restart.
func TestDuplicates(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		now := time.Now().UTC().Format(time.RFC3339)
		dated := `{"value":7,"timestamp":"` + now + `"}`
		const first = `"status":"verified","point":"boiler.level","value":`
		d.want("cmd/boiler/level", dated, first+"7")
		d.want("cmd/boiler/level", dated, first+"7")
		d.want("cmd/boiler/level", `{"value":8,"id":"x"}`, first+`8,"previous":7`)
		d.plant.set("boiler.level", point.IntValue(3))
		d.want("cmd/boiler/level", `{"id":"x","value":8}`, first+`8,"previous":7`)
		d.want("cmd/boiler/level", `{"id":"x","value":9}`, `"rejected","point":"boiler.level","reason":"the id \"x\" was used before, for \"boiler.level = 8\""`)
		d.want("cmd/boiler/level", `{"id":"old","value":9,"expires":"2000-01-01T00:00:01Z"}`, `it expired at 2000-01-01T00:00:01.000Z`)
		d.restart()
		d.want("cmd/boiler/level", dated, first+"7")
		d.want("cmd/boiler/level", `{"id":"x","value":8}`, first+`8,"previous":7`)
		d.want("cmd/boiler/level", `{"id":"x","value":9}`, `was used before`)
		d.want("cmd/boiler/level", `{"id":"old","value":9}`, `it expired at 2000-01-01T00:00:01.000Z`)
		d.want("recipe", `{"id":"r","temp":55,"level":30,"mode":"auto"}`, `"status":"verified"`)
		d.restart()
		d.want("recipe", `{"id":"r","temp":55,"level":30,"mode":"auto"}`, `{"id":"r","status":"verified","writes":[{"status":"verified","point":"boiler.setpoint","value":55`)
		if got, want := d.plant.writes(), []string{"boiler.level=7", "boiler.level=8", "boiler.setpoint=55", "boiler.level=30", "boiler.mode=auto"}; !slices.Equal(got, want) {
			t.Errorf("written %q, want %q", got, want)
		}
		// The window ends.
		time.Sleep(10 * time.Minute)
		d.want("cmd/boiler/level", `{"id":"x","value":8}`, first+`8,"previous":30`)
	})
}

var errDead = fmt.Errorf("unit 1: %w within 1s", modbus.ErrNoResponse)

// isRejected is what the Modbus server decides by.
func TestErr(t *testing.T) {
	for _, row := range []struct {
		r    Result
		want error
	}{
		{Result{Status: Written}, nil},
		{Result{Status: Verified}, nil},
		{Result{Status: Rejected, Reason: "x"}, ErrRejected},
		{Result{Status: Unknown, Reason: "x"}, modbus.ErrNoResponse},
		{Result{Status: Failed, Reason: "x", err: fmt.Errorf("x: %w", modbus.IllegalDataValue)}, modbus.IllegalDataValue},
	} {
		if err := row.r.Err(); !errors.Is(err, row.want) {
			t.Errorf("%v: %v, want %v", row.r, err, row.want)
		}
	}
}
