package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"fieldgate/internal/audit"
	"fieldgate/internal/bus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/queue"
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

	steps atomic.Int32                 // that outlive the process
	look  atomic.Pointer[func(string)] // called before each of them
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
	source.step = func(step string) {
		a.steps.Add(1)
		if look := a.look.Load(); look != nil {
			(*look)(step)
		}
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
settings: { from: local, allow: [devices.*.every, buses.*.tcp, buses.*.gap, uplinks, publish], confirm: 3s }
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
	a.send(`{"id":"bad","set":{"devices.x.every":"10ms"}}`, false)
	a.until("it is answered how far it is", func() bool { return len(a.answers("bad")) == 3 })
	if all := a.answers("bad"); all[2].Status != remoteApplied || all[2].Until != all[1].Until || !slices.Equal(all[2].Diff, all[1].Diff) {
		t.Errorf("asked again: %+v", all[2])
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

// What somebody on site does to settings.yaml during a trial stays done, and ends it.
func TestLayerIsEditedDuringTrial(t *testing.T) {
	t.Parallel()
	a := follow(t, t.TempDir(), strings.Replace(afarText, "PLC", plc(t, new(counting)), 1))
	layer := Layer(a.dir)
	a.send(`{"id":"one","set":{"devices.x.every":"10ms"}}`, false)
	a.last("one", remoteDone)
	a.send(`{"id":"two","set":{"devices.x.every":"15ms"}}`, false)
	a.last("two", remoteApplied)
	if err := os.WriteFile(layer, []byte(`{"devices.x.every":"12ms"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := a.last("two", remoteBack); r.Reason != "settings.yaml was edited on site" || a.every() != "12ms" {
		t.Errorf("edited: %+v, every %s", r, a.every())
	}
	a.send(`{"id":"three","set":{"devices.x.every":"15ms"}}`, false)
	a.last("three", remoteApplied)
	if err := os.Remove(layer); err != nil {
		t.Fatal(err)
	}
	if r := a.last("three", remoteBack); r.Reason != "settings.yaml was removed on site" || a.every() != "20ms" {
		t.Errorf("removed: %+v, every %s", r, a.every())
	}
	if _, err := os.Stat(layer); err == nil {
		t.Error("it has come back")
	}
	a.send(`{"id":"four","set":{"devices.x.every":"15ms"}}`, false)
	a.last("four", remoteApplied)
	if err := os.Remove(a.remote.source.trialPath()); err != nil {
		t.Fatal(err)
	}
	if r := a.last("four", remoteBack); r.Reason != "settings.trial.yaml was removed on site" || a.every() != "20ms" {
		t.Errorf("removed: %+v, every %s", r, a.every())
	}
}

// reload is what a SIGHUP does.
func (a *afar) reload() {
	a.t.Helper()
	defer a.remote.source.Hold()()
	cfg, topics, err := a.remote.source.Load()
	if err == nil {
		_, err = a.Reload(a.t.Context(), cfg, topics)
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

// edit writes the file on site, with another interval.
func (a *afar) edit(every string) {
	a.t.Helper()
	text, err := os.ReadFile(a.path)
	if err == nil {
		text = regexp.MustCompile(`every: [0-9a-z]+`).ReplaceAll(text, []byte("every: "+every))
		err = os.WriteFile(a.path, text, 0o600)
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

// An edit of the file on site that was not reloaded does not go to work with a
// change from afar, nor with the end of its trial.
func TestEditsWaitForReload(t *testing.T) {
	t.Parallel()
	a := follow(t, t.TempDir(), strings.Replace(afarText, "PLC", plc(t, new(counting)), 1))
	a.edit("30ms")
	a.send(`{"id":"one","set":{"publish":[{"qos":0}]}}`, false)
	if r := a.last("one", remoteRejected); !strings.HasPrefix(r.Reason, "the configuration on site was edited and is not at work") || a.every() != "20ms" {
		t.Errorf("%+v, every %s", r, a.every())
	}
	a.reload()
	if err := os.WriteFile(Layer(a.dir), []byte(`{"devices.x.every":"5s"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	a.send(`{"id":"two","set":{"publish":[{"qos":0}]}}`, false)
	if r := a.last("two", remoteRejected); !strings.HasPrefix(r.Reason, "settings.yaml on site was edited or removed and that is not at work") || a.every() != "30ms" {
		t.Errorf("%+v, every %s", r, a.every())
	}
	if err := os.Remove(Layer(a.dir)); err != nil {
		t.Fatal(err)
	}

	end := func(id string) { // of a trial, by hand
		t.Helper()
		if err := os.Remove(a.remote.source.trialPath()); err != nil {
			t.Fatal(err)
		}
		a.last(id, remoteBack)
	}
	a.send(`{"id":"three","set":{"buses.a.gap":"5ms"}}`, false)
	a.last("three", remoteApplied)
	a.edit("40ms")
	end("three")
	if a.every() != "30ms" {
		t.Errorf("every %s, as it was edited during the trial", a.every())
	}
	a.reload()
	a.send(`{"id":"four","set":{"buses.a.gap":"5ms"}}`, false)
	a.last("four", remoteApplied)
	a.edit("50ms")
	a.reload()
	a.edit("60ms")
	end("four")
	gap := a.now.Load().wires[0].cfg.Gap
	if a.every() != "50ms" || gap == 5*time.Millisecond {
		t.Errorf("every %s, gap %v, as it was edited after the last reload", a.every(), gap)
	}

	// What does not fit the file any more ends with its reload.
	a.reload()
	a.send(`{"id":"renamed","set":{"devices.x.every":"5ms"}}`, false)
	a.last("renamed", remoteApplied)
	text, err := os.ReadFile(a.path)
	if err == nil {
		err = os.WriteFile(a.path, bytes.Replace(text, []byte("x: { bus"), []byte("y: { bus"), 1), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	a.reload()
	if r := a.last("renamed", remoteBack); r.Reason != "it does not fit the configuration that was reloaded" || a.every() != "60ms" {
		t.Errorf("%+v, every %s", r, a.every())
	}

	// What a reload does not allow any more is not confirmed.
	a.send(`{"id":"five","set":{"buses.a.gap":"5ms"}}`, false)
	a.last("five", remoteApplied)
	if text, err = os.ReadFile(a.path); err == nil {
		err = os.WriteFile(a.path, bytes.Replace(text, []byte("buses.*.gap, "), nil, 1), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	a.reload()
	if r := a.last("five", remoteBack); r.Reason != "buses.a.gap: is not allowed by settings.allow of this gateway" {
		t.Errorf("%+v", r)
	}
}

// A flood of what is refused leaves ten records a minute and their count, writes no
// file, and does not push the answer to a change out of memory.
func TestRefusalsAreBounded(t *testing.T) {
	t.Parallel()
	a := follow(t, t.TempDir(), strings.Replace(afarText, "PLC", plc(t, new(counting)), 1))
	a.send(`{"id":"one","set":{"devices.x.every":"10ms"}}`, false)
	a.last("one", remoteDone)
	a.until("its trial is settled", func() bool { _, err := os.Stat(filepath.Join(a.dir, trialFile)); return err != nil })
	steps := a.steps.Load()
	const n = remoteIDs + 50
	for i := range n {
		a.send(fmt.Sprintf(`{"id":"r%d","set":{"devices.x.every":"soon"}}`, i), false)
		a.until("it is answered", func() bool { return len(a.answers(fmt.Sprint("r", i))) == 1 })
	}
	if is := a.steps.Load(); is != steps {
		t.Errorf("%d steps for what is refused", is-steps)
	}
	a.send(`{"id":"one","set":{"devices.x.every":"15ms"}}`, false)
	a.until("it is known", func() bool { return len(a.answers("one")) == 4 })
	if r := a.answers("one")[3]; r.Status != remoteDone || len(r.Diff) != 1 {
		t.Errorf("asked again: %+v", r)
	}
	if a.remote.turnAway(&request{Via: "local", Ack: "nowhere", payload: []byte(`{"id":"one"}`)}, "not you"); len(a.remote.refused.byID) != remoteIDs {
		t.Errorf("%d refusals are remembered", len(a.remote.refused.byID))
	}
	a.stop()
	var refused int
	var last audit.Record
	if err := audit.Read(a.dir, func(r audit.Record) error {
		if r.Event == remoteEvent && r.Status == remoteRejected {
			refused++
			last = r
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if want := fmt.Sprintf("%d more were refused from ", n-refusalsMost+1); last.ID != "" || refused > refusalsMost+1 || !strings.HasPrefix(last.Reason, want) {
		t.Errorf("%d records, the last: %+v, want %s", refused, last, want)
	}
}

// The file of a trial goes once its last answer is on the disk, in the queue of the
// uplink that it goes to; that for a local client some seconds later, or with the end.
func TestTrialStaysUntilItsAnswerIsSafe(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	const text = "site: { id: s }\nuplinks: { cloud: { url: \"mqtt://127.0.0.1:1\", status: false, queue: { commit: 1m } } }\nbroker: { listen: mqtt://127.0.0.1:0, anonymous: true }\nsettings: { from: [cloud, local], allow: [broker.listen, status] }\nweb: false\n"
	a := follow(t, t.TempDir(), text)
	settled := make(chan string, 1)
	look := func(step string) {
		if step != "settle" {
			return
		}
		copied := t.TempDir() // as a kill would leave it
		data, err := os.ReadFile(filepath.Join(a.dir, "queue-cloud.db"))
		if err == nil {
			err = os.WriteFile(filepath.Join(copied, "queue-cloud.db"), data, 0o600)
		}
		if err != nil {
			settled <- err.Error()
			return
		}
		files, err := queue.Files(copied)
		if err != nil || len(files) != 1 {
			settled <- fmt.Sprint(files, err)
			return
		}
		settled <- fmt.Sprint(files[0].Messages)
	}
	a.look.Store(&look)
	a.remote.inbox <- &request{Via: "cloud", Ack: "ack", at: time.Now(), payload: []byte(`{"id":"x","timestamp":"` + time.Now().UTC().Format(time.RFC3339) + `","set":{"broker.listen":"mqtt://` + taken.Addr().String() + `"}}`)}
	if is := <-settled; is != "2" {
		t.Errorf("%s messages of 2 in the queue's file", is)
	}
	a.look.Store(nil)

	a.send(`{"id":"y","set":{"broker.listen":"mqtt://`+taken.Addr().String()+`"}}`, false)
	a.last("y", remoteRejected)
	file := filepath.Join(a.dir, trialFile)
	if _, err := os.Stat(file); err != nil {
		t.Errorf("just when it was said: %v", err)
	}
	a.stop()
	if _, err := os.Stat(file); err == nil {
		t.Error("it is still there after the end")
	}
}

// What is refused past ten times a minute is counted, in one record at its end.
func TestRefusalsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := refusals{news: make(chan struct{}, 1)}
		refuse := func(n int) {
			for range n {
				s.note(&request{ID: "x", at: time.Now()}, &remoteAnswer{Status: remoteRejected, Reason: "no"})
				time.Sleep(time.Second)
			}
		}
		taken := func(want ...string) {
			t.Helper()
			var is []string
			for _, rec := range s.take(false) {
				is = append(is, rec.ID+": "+rec.Reason)
			}
			if !slices.Equal(is, want) {
				t.Errorf("%q, want %q", is, want)
			}
		}
		ten := slices.Repeat([]string{"x: no"}, refusalsMost)
		refuse(refusalsMost + 5)
		taken(ten...)
		refuse(5)
		taken()
		time.Sleep(time.Minute)
		taken(": 10 more were refused from 2000-01-01T00:00:10.000Z to 2000-01-01T00:00:19.000Z, and are not recorded one by one")
		refuse(1)
		taken("x: no")
		time.Sleep(time.Minute)
		taken()
		refuse(refusalsMost)
		taken(ten...)
	})
}

// The record of what is refused unread does not say of an id that it was seen.
func TestTurnedAway(t *testing.T) {
	r := &remote{gateway: &Gateway{log: slog.New(slog.DiscardHandler)}, refusals: refusals{news: make(chan struct{}, 1)}}
	r.gateway.now.Store(new(assembly))
	r.turnAway(&request{Via: "cloud", payload: []byte(`{"id":"x"}`)}, "busy")
	if recs := r.refusals.take(false); len(recs) != 1 || recs[0].ID != "" || recs[0].Reason != `busy (id "x")` {
		t.Errorf("%+v", recs)
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

// A change that cannot be staged leaves nothing of the one before it, whose last
// answer was given just then, nor of its own.
func TestUnstaged(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	a := follow(t, t.TempDir(), "site: { id: s }\nbroker: { listen: mqtt://127.0.0.1:0, anonymous: true }\nsettings: { from: local, allow: [broker.listen] }\nweb: false\n")
	change := func(id, reason string) {
		t.Helper()
		a.send(`{"id":"`+id+`","set":{"broker.listen":"mqtt://`+taken.Addr().String()+`"}}`, false)
		if r := a.last(id, remoteRejected); !strings.Contains(r.Reason, reason) {
			t.Errorf("%s: %+v", id, r)
		}
	}
	file := filepath.Join(a.dir, trialFile)
	gone := func() bool {
		_, err := os.Stat(file)
		return errors.Is(err, fs.ErrNotExist)
	}
	change("x", "it cannot be put to work")
	if gone() {
		t.Error("the file of a trial is gone just when it was answered")
	}
	if err := os.Mkdir(file+".new", 0o700); err != nil { // as a disk that takes nothing
		t.Fatal(err)
	}
	change("y", "it cannot be staged")
	a.until("the file of the first trial is gone", gone)

	if err := os.WriteFile(file, nil, 0o600); err != nil { // as one that fails late
		t.Fatal(err)
	}
	change("z", "it cannot be staged")
	a.until("what was written of the last is gone", gone)
}

// A reload that a trial does not fit may come just when it is to be kept.
func TestKeepAfterReload(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := &Source{path: filepath.Join(dir, "fieldgate.yaml"), dir: dir}
	if _, err := s.stage(&request{ID: "x"}, []byte("{}\n"), []byte{}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(Layer(dir), 0o600); err != nil { // whoever reads it waits for us
		t.Fatal(err)
	}
	kept := make(chan error, 1)
	go func() { kept <- s.keep([]byte("{}")) }() // ends once the file is closed
	f, err := os.OpenFile(Layer(dir), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.drop() // as Load does then
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-kept; err == nil || !strings.Contains(err.Error(), "does not fit") {
		t.Errorf("kept: %v", err)
	}
}

// What is said by the goroutine that receives waits for no disk, also where a queue
// says nothing else is taken: commands come behind it.
func TestTellWaitsForNoDisk(t *testing.T) {
	t.Parallel()
	a := follow(t, t.TempDir(), "site: { id: s }\nuplinks: { cloud: { url: \"mqtt://127.0.0.1:1\", status: false, queue: { commit: 0 } } }\nbroker: { listen: mqtt://127.0.0.1:0, anonymous: true }\nsettings: { from: cloud, allow: [status] }\nweb: false\n")
	q := a.now.Load().way("cloud").queue
	before := q.Stats().Flash.Total.Syncs
	const n = 300
	for range n {
		a.remote.turnAway(&request{Via: "cloud", Ack: "ack", at: time.Now()}, "busy")
	}
	if is := q.Stats().Flash.Total.Syncs - before; is >= n {
		t.Errorf("%d syncs for %d answers: each waits for its own", is, n)
	}
}
