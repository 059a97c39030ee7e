package gateway

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"fieldgate/internal/audit"
	"fieldgate/internal/bus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/uplink"
	"fieldgate/test/testlog"
)

// afar is a gateway whose settings a test changes by its embedded broker.
type afar struct {
	*reloading
	c    *uplink.Conn
	got  func() []mqtt.Message
	path string
	stop func()
}

// follow runs a gateway that follows its file.
func follow(t *testing.T, dir, text string) *afar {
	t.Helper()
	a := &afar{reloading: &reloading{t: t, dir: dir, log: new(testlog.Log)}, path: filepath.Join(dir, "fieldgate.yaml")}
	if err := os.WriteFile(a.path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	source, err := NewSource(a.path, dir)
	if err != nil {
		t.Fatal(err)
	}
	cfg, topics, err := source.Load()
	if err != nil {
		t.Fatal(err)
	}
	g, err := Open(cfg, topics, dir, "test", slog.New(slog.NewTextHandler(a.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	a.Gateway = g
	g.Follow(source)
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- g.Run(ctx, func() { close(ready) }) }() // ends with stop
	<-ready
	stopped := false
	a.stop = func() {
		if stopped {
			return
		}
		stopped = true
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() {
		a.stop()
		if t.Failed() {
			t.Logf("log:\n%s", a.log)
		}
	})
	a.c, a.got = a.client("office", "config/s/update/ack")
	return a
}

// send asks for a change.
func (a *afar) send(payload string, retain bool) {
	a.t.Helper()
	if err := a.c.Publish(a.t.Context(), mqtt.Message{Topic: "config/s/update", Payload: []byte(payload), QoS: 1, Retain: retain}); err != nil {
		a.t.Fatal(err)
	}
}

// answers returns the answers to an id.
func (a *afar) answers(id string) (all []remoteAnswer) {
	for _, m := range a.got() {
		var r remoteAnswer
		if err := json.Unmarshal(m.Payload, &r); err != nil {
			a.t.Error(err)
		}
		if r.ID == id {
			all = append(all, r)
		}
	}
	return all
}

// last waits for an answer and returns it.
func (a *afar) last(id, status string) (is remoteAnswer) {
	a.t.Helper()
	a.until(id+" is "+status, func() bool {
		for _, r := range a.answers(id) {
			if r.Status == status {
				is = r
				return true
			}
		}
		return false
	})
	return is
}

const afarText = `
site: { id: s }
buses: { a: { tcp: "PLC", connect_timeout: 5s } }
devices: { x: { bus: a, every: 20ms, timeout: 5s, points: { p: { at: holding 0, type: uint32 } } } }
uplinks: { cloud: { url: "mqtt://127.0.0.1:1", username: u, password: { env: NONE } } }
broker: { listen: mqtt://127.0.0.1:0, anonymous: true }
settings: { from: local, allow: [devices.*.every, buses.*.tcp, uplinks, publish], confirm: 3s }
web: false
`

func (a *afar) every() string {
	w := a.now.Load().wires[0]
	return IntervalName(w.devices[0].Points[0].Every)
}

// A change is answered at each step, kept, known by its id, and taken back.
func TestSettings(t *testing.T) {
	t.Parallel()
	addr := plc(t, new(counting))
	text := strings.Replace(afarText, "PLC", addr, 1)
	a := follow(t, t.TempDir(), text)

	for name, c := range map[string]struct{ payload, why string }{
		"no object":   {`x`, "it is not such an object"},
		"other keys":  {`{"id":"k","sett":{}}`, "sett"},
		"no id":       {`{"set":{"devices.x.every":"1s"}}`, "it needs an id"},
		"nothing":     {`{"id":"n","set":{}}`, "there is nothing in set"},
		"old":         {`{"id":"o","set":{"devices.x.every":"1s"},"timestamp":"2020-01-01T00:00:00Z"}`, "old"},
		"expired":     {`{"id":"e","set":{"devices.x.every":"1s"},"expires":"2020-01-01T00:00:00Z"}`, "expired"},
		"not allowed": {`{"id":"d","set":{"devices.x.unit":2}}`, "devices.x.unit: is not allowed"},
		"itself":      {`{"id":"i","set":{"settings.allow":["devices"]}}`, "not allowed"},
		"secret":      {`{"id":"p","set":{"uplinks.cloud.password":"x"}}`, "is or holds uplinks.*.password"},
		"all of it":   {`{"id":"w","set":{"uplinks.cloud":{"url":"mqtt://127.0.0.1:2"}}}`, "is or holds"},
		"no key":      {`{"id":"y","set":{"devices..every":"1s"}}`, "is no key"},
		"faults":      {`{"id":"f","set":{"devices.x.every":"soon","publish":[{"qos":7}]}}`, "no good"},
		"no change":   {`{"id":"z","set":{"devices.x.every":"20ms"}}`, "changes nothing"},
	} {
		n := len(a.got())
		a.send(c.payload, false)
		a.until(name+" is answered", func() bool { return len(a.got()) > n })
		if got := string(a.got()[n].Payload); !strings.Contains(got, `"rejected"`) || !strings.Contains(got, c.why) {
			t.Errorf("%s: %s", name, got)
		}
	}
	if f := a.answers("f")[0].Faults; len(f) != 2 || !strings.Contains(f[0], "devices.x.every") && !strings.Contains(f[1], "devices.x.every") {
		t.Errorf("faults: %q", f)
	}
	if _, err := os.Stat(filepath.Join(a.dir, trialFile)); err == nil {
		t.Error("something is left on trial")
	}

	a.send(`{"id":"one","set":{"devices.x.every":"10ms"}}`, false)
	done := a.last("one", remoteDone)
	if want := []settingDiff{{"devices.x.every", "20ms", "10ms"}}; !slices.Equal(done.Diff, want) {
		t.Errorf("diff %v, want %v", done.Diff, want)
	}
	var steps []string
	for _, r := range a.answers("one") {
		steps = append(steps, r.Status)
	}
	if !slices.Equal(steps, []string{remoteAccepted, remoteApplied, remoteDone}) || a.every() != "10ms" {
		t.Errorf("answered %q, every %s", steps, a.every())
	}
	a.send(`{"id":"one","set":{"devices.x.every":"15ms"}}`, false)
	a.until("it is answered again", func() bool { return len(a.answers("one")) == 4 })
	if a.every() != "10ms" {
		t.Error("an id was done twice")
	}
	if w := a.Status().Warnings; !slices.ContainsFunc(w, func(s string) bool { return strings.Contains(s, "devices.x.every: was changed from afar") }) {
		t.Errorf("warnings: %q", w)
	}
	var recorded []string
	if err := audit.Read(a.dir, func(r audit.Record) error {
		if r.ID == "one" {
			recorded = append(recorded, r.Status+" "+r.Value+" "+r.Previous)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if want := []string{`accepted devices.x.every: 10ms devices.x.every: 20ms`, `confirmed devices.x.every: 10ms devices.x.every: 20ms`}; !slices.Equal(recorded, want) {
		t.Errorf("recorded %q, want %q", recorded, want)
	}

	// It outlives a start, and what was said with it.
	a.stop()
	a = follow(t, a.dir, text)
	if a.every() != "10ms" {
		t.Error("a confirmed change is gone after a start")
	}
	a.send(`{"id":"one","set":{"devices.x.every":"15ms"}}`, false)
	a.last("one", remoteDone)
	a.send(`{"id":"two","reset":true}`, false)
	if d := a.last("two", remoteDone).Diff; len(d) != 1 || d[0] != (settingDiff{"devices.x.every", "10ms", "20ms"}) || a.every() != "20ms" {
		t.Errorf("diff %v, every %s", d, a.every())
	}
}

// What makes the gateway worse is taken back, and what was stopped on trial too.
func TestSettingsAreTakenBack(t *testing.T) {
	t.Parallel()
	addr := plc(t, new(counting))
	text := strings.Replace(afarText, "PLC", addr, 1)
	a := follow(t, t.TempDir(), text)
	a.until("the device is online", func() bool { return a.Status().Buses["a"].Devices["x"].State == "online" })
	a.send(`{"id":"bad","set":{"buses.a.tcp":"127.0.0.1:1","devices.x.every":"10ms"}}`, false)
	a.last("bad", remoteApplied)
	a.send(`{"id":"busy","set":{"devices.x.every":"10ms"}}`, false)
	if r := a.last("busy", remoteRejected); !strings.HasPrefix(r.Reason, "busy: a change is on trial") {
		t.Errorf("meanwhile: %s", r.Reason)
	}
	r := a.last("bad", remoteBack)
	if !strings.Contains(r.Reason, "bus a is not connected") && !strings.Contains(r.Reason, "device x is ") || len(r.Diff) != 2 {
		t.Errorf("taken back: %+v", r)
	}
	if a.every() != "20ms" || a.now.Load().wires[0].cfg.Address != addr {
		t.Errorf("every %s of %s", a.every(), a.now.Load().wires[0].cfg.Address)
	}
	a.until("the device is online again", func() bool { return a.Status().Buses["a"].Devices["x"].State == "online" })

	a.send(`{"id":"cut","set":{"devices.x.every":"10ms"}}`, false)
	a.last("cut", remoteApplied)
	a.stop()
	a = follow(t, a.dir, text)
	if a.every() != "20ms" {
		t.Error("a change that was on trial is at work after a start")
	}
	a.until("that is recorded", func() (said bool) {
		_ = audit.Read(a.dir, func(r audit.Record) error { // the log may be writing
			said = said || r.ID == "cut" && r.Status == remoteBack
			return nil
		})
		return said
	})
}

// A file on site has the last word: a layer that it does not allow, or that does
// not fit it, is not at work, and a broken one stops nothing.
func TestLayerGivesWay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, layer := filepath.Join(dir, "f.yaml"), Layer(dir)
	for name, c := range map[string]struct{ settings, layer, every, warning string }{
		"at work":     {"settings: { from: local, allow: devices.*.every }", `{"devices.x.every": "5s"}`, "5s", "was changed from afar"},
		"not allowed": {"settings: { from: local, allow: devices.*.unit }", `{"devices.x.every": "5s"}`, "1s", "not allowed by settings.allow"},
		"no settings": {"", `{"devices.x.every": "5s"}`, "1s", "settings: is not in the configuration"},
		"no fit":      {"settings: { from: local, allow: devices.*.every }", `{"devices.y.every": "5s"}`, "1s", "does not fit the configuration"},
		"broken":      {"settings: { from: local, allow: devices.*.every }", `{"devices.y.every": `, "1s", "does not fit the configuration"},
	} {
		text := "site: { id: s }\nbuses: { b: { tcp: 127.0.0.1:1 } }\ndevices: { x: { bus: b, points: { p: { at: holding 0 } } } }\nbroker: { anonymous: true }\n" + c.settings + "\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(layer, []byte("#{}\n"+c.layer+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, _, err := LoadLayer(path, layer)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var warned bool
		for _, w := range cfg.Warnings {
			warned = warned || strings.Contains(w.Error(), layer) && strings.Contains(w.Error(), c.warning)
		}
		if got := IntervalName(cfg.Devices[0].Points[0].Every); got != c.every || !warned {
			t.Errorf("%s: every %s, warnings %v", name, got, cfg.Warnings)
		}
	}
}

// What a sender makes long is not kept so.
func TestLongRequests(t *testing.T) {
	if got := short(strings.Repeat("ü", remoteReason)); len(got) > remoteReason || len(got) < remoteReason-4 || !utf8.ValidString(got) || !strings.HasSuffix(got, "ü…") {
		t.Errorf("%d bytes: %q", len(got), got)
	}
	a := follow(t, t.TempDir(), strings.Replace(afarText, "PLC", "127.0.0.1:1", 1))
	a.send(`{"id":"`+strings.Repeat("x", 100_000)+`","set":{"devices.x.every":"1s"}}`, false)
	a.send(`{"id":"u","`+strings.Repeat("x", 100_000)+`":1}`, false)
	a.until("both are answered", func() bool { return len(a.answers("")) == 2 })
	for i, why := range []string{"it needs an id, of 128 bytes at most", "it is not such an object"} {
		if r := a.answers("")[i]; r.Status != remoteRejected || !strings.HasPrefix(r.Reason, why) || len(r.Reason) > remoteReason {
			t.Errorf("%+v", r)
		}
	}
}

// A device is worse when it is gone, not when it missed a poll or is not asked yet.
func TestWorse(t *testing.T) {
	with := func(state bus.State, polls uint64) Status {
		return Status{Buses: map[string]BusStatus{"b": {Connected: true, Devices: map[string]DeviceStatus{"d": {State: state.String(), Polls: polls}}}}}
	}
	for _, c := range []struct {
		state bus.State
		polls uint64
		worse bool
	}{{bus.Online, 1, false}, {bus.Suspect, 1, false}, {bus.Offline, 1, true}, {bus.Unknown, 0, false}, {bus.Unknown, 1, true}} {
		if why := worse(with(bus.Online, 9), with(c.state, c.polls), "local"); (why != "") != c.worse {
			t.Errorf("%s after %d polls: %q", c.state, c.polls, why)
		}
	}
}

// What was before a trial comes back though somebody is editing the file.
func TestRestoreWithoutFile(t *testing.T) {
	t.Parallel()
	addr := plc(t, new(counting))
	a := follow(t, t.TempDir(), strings.Replace(afarText, "PLC", addr, 1))
	a.until("the bus is there", func() bool { return a.Status().Buses["a"].Connected })
	a.send(`{"id":"bad","set":{"buses.a.tcp":"127.0.0.1:1"}}`, false)
	a.last("bad", remoteApplied)
	if err := os.WriteFile(a.path, []byte("buses: ["), 0o600); err != nil {
		t.Fatal(err)
	}
	a.last("bad", remoteBack)
	if got := a.now.Load().wires[0].cfg.Address; got != addr {
		t.Errorf("the bus is at %s", got)
	}
	a.send(`{"id":"next","set":{"devices.x.every":"10ms"}}`, false)
	if r := a.last("next", remoteRejected); !strings.HasPrefix(r.Reason, "the configuration is no good as it stands") {
		t.Error(r.Reason)
	}
}
