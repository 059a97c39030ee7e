package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fieldgate/internal/audit"
	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/mqtt/mosquittotest"
	"fieldgate/internal/uplink"
	"fieldgate/test/child"
	"fieldgate/test/testlog"
)

// What the process that is killed is told.
const (
	killedDir  = "FIELDGATE_TEST_TRIAL"
	killedStep = "FIELDGATE_TEST_STEP" // before which it ends
	killedEdit = "FIELDGATE_TEST_EDIT" // somebody on site writes settings.yaml during the trial
)

// onTrial is a step that is none: some time after the change is at work.
const onTrial = "on trial"

// killedGateway is the process that TestTrialKilled kills.
func killedGateway(dir string) error {
	source, err := NewSource(filepath.Join(dir, "fieldgate.yaml"), dir)
	if err != nil {
		return err
	}
	kill := func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }
	last := os.Getenv(killedStep)
	source.step = func(step string) {
		if step == last {
			kill()
			select {} // it takes a moment
		}
		if step != "say applied" {
			return
		}
		if os.Getenv(killedEdit) != "" {
			_ = os.WriteFile(Layer(dir), []byte("{}\n"), 0o600)
		}
		if last == onTrial {
			time.AfterFunc(100*time.Millisecond, kill)
		}
	}
	cfg, topics, err := source.Load()
	if err != nil {
		return err
	}
	g, err := Open(cfg, topics, dir, "test", slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	g.Follow(source)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return g.Run(ctx, func() {})
}

// far is the other end of all gateways of TestTrialKilled: it sends, and takes down
// what comes on each topic.
type far struct {
	*uplink.Conn
	mu  sync.Mutex
	got map[string][]string
}

func (f *far) on(topic string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.got[topic])
}

// victim is a gateway that is killed during a trial, and started again.
type victim struct {
	*testing.T
	far  *far
	name string
	dir  string
	log  testlog.Log
}

// start runs the gateway until the process ends, by another program if one is given,
// and returns once it is connected.
func (v *victim) start(env []string, by ...string) *exec.Cmd {
	v.Helper()
	before := v.online()
	cmd := v.begin(env, by...)
	v.until("it is connected", func() bool { return v.online() > before })
	return cmd
}

// begin is start without waiting.
func (v *victim) begin(env []string, by ...string) *exec.Cmd {
	v.Helper()
	args := append(by, os.Args[0], "-test.run=^TestTrialKilled$")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(append(os.Environ(), killedDir+"="+v.dir, "GORACE=atexit_sleep_ms=0"), env...)
	cmd.Stdout, cmd.Stderr = &v.log, &v.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := child.Start(cmd); err != nil {
		v.Fatal(err)
	}
	v.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // if a test has failed
	return cmd
}

// online returns how often the gateway was connected, and has subscribed.
func (v *victim) online() int { return strings.Count(v.log.String(), `msg="uplink connected"`) }

func (v *victim) until(what string, ok func() bool) {
	v.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			v.Fatalf("%s: not within a minute; answers:\n%s", what, strings.Join(v.answers(), "\n"))
		}
	}
}

func (v *victim) answers() []string { return v.far.on("config/" + v.name + "/update/ack") }

// last returns the last answers to an id: those after which none comes.
func (v *victim) last(id string) (payloads []string, all []remoteAnswer) {
	for _, p := range v.answers() {
		var a remoteAnswer
		if err := json.Unmarshal([]byte(p), &a); err != nil {
			v.Error(err)
		}
		if a.ID == id && a.Status != remoteAccepted && a.Status != remoteApplied {
			payloads, all = append(payloads, p), append(all, a)
		}
	}
	return payloads, all
}

func (v *victim) send(payload string) {
	v.Helper()
	if err := v.far.Publish(v.Context(), mqtt.Message{Topic: "config/" + v.name + "/update", Payload: []byte(payload), QoS: 1}); err != nil {
		v.Fatal(err)
	}
}

// meet is the other end of some victims, until the test ends.
func meet(t *testing.T, url string) *far {
	t.Helper()
	f := &far{got: make(map[string][]string)}
	c, err := uplink.Connect(t.Context(), config.Uplink{ClientID: "far", Keepalive: time.Minute, ConnectTimeout: 20 * time.Second}, url, uplink.ConnOptions{
		Handler: func(m mqtt.Message) []<-chan struct{} {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.got[m.Topic] = append(f.got[m.Topic], string(m.Payload))
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	f.Conn = c
	if _, err := c.Subscribe(t.Context(), "config/+/update/ack", 1); err != nil {
		t.Fatal(err)
	}
	return f
}

// A process that is killed between any two steps of a trial leaves behind what the
// next one tells: the configuration is that of before, or the one that was confirmed;
// the sender has one last answer, which is true, and gets it again when it asks
// again; and it stands in the audit log, whose chain holds.
func TestTrialKilled(t *testing.T) {
	if dir := os.Getenv(killedDir); dir != "" {
		if err := killedGateway(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	up := mosquittotest.Start(t, mosquittotest.Options{})
	f := meet(t, up.URL())
	accepted := []string{"stage", "record accepted", "say accepted"}
	var all sync.WaitGroup
	defer all.Wait()
	room := make(chan struct{}, 8) // so many at a time
	n := 0
	for _, way := range []struct {
		name, set string
		ends      string // if it is not killed
		edit      bool
		steps     []string
		again     []string // of the next process, after a kill in the first
	}{
		{"confirmed", `"status.every":"5s"`, remoteDone, false, []string{"say applied", onTrial, "keep", "record confirmed", "say confirmed", "settle", ""}, nil},
		{"rolled back", `"status.every":"5s"`, remoteBack, true, []string{"say applied", "note", "record rolled back", "say rolled back", "settle", ""}, nil},
		{"rejected", `"broker.listen":"mqtt://` + taken.Addr().String() + `"`, remoteRejected, false, []string{"note", "record rejected", "say rejected", "settle", ""}, nil},
		{"twice", `"status.every":"5s"`, remoteDone, false, []string{onTrial}, []string{"note", "record rolled back", "say rolled back", "settle"}},
		{"twice", `"status.every":"5s"`, remoteDone, false, []string{"record confirmed"}, []string{"record confirmed", "say confirmed", "settle"}},
		{"twice", `"status.every":"5s"`, remoteBack, true, []string{"record rolled back"}, []string{"record rolled back", "say rolled back", "settle"}},
	} {
		steps := way.steps
		if way.name == "confirmed" {
			steps = append(accepted, steps...)
		}
		for _, step := range steps {
			for _, again := range append(way.again, "")[:max(len(way.again), 1)] {
				n++
				v := &victim{far: f, name: fmt.Sprintf("s%d", n), dir: t.TempDir()}
				room <- struct{}{}
				all.Go(func() { // ends with its test
					defer func() { <-room }()
					t.Run(way.name+" before "+step+" "+again, func(t *testing.T) {
						v.T = t
						v.kill(up.Port, way.set, way.ends, step, again, way.edit)
					})
				})
			}
		}
	}
}

// A process that is killed at any of the calls that change a file of a trial leaves
// behind the same.
func TestTrialKilledAtCalls(t *testing.T) {
	t.Parallel()
	strace := []string{"strace", "-f", "-qq", "-o", "/dev/null"}
	if out, err := exec.Command(strace[0], append(strace[1:], "true")...).CombinedOutput(); err != nil {
		if strings.Contains(string(out), "not permitted") {
			t.Skipf("strace may not trace here: %s", out)
		}
		t.Fatalf("strace (Debian's package strace): %v\n%s", err, out)
	}
	up := mosquittotest.Start(t, mosquittotest.Options{})
	f := meet(t, up.URL())
	var all sync.WaitGroup
	defer all.Wait()
	room := make(chan struct{}, 4) // so many at a time
	n := 0
	for _, file := range []struct {
		name  string
		calls []string
	}{
		{trialFile + ".new", []string{"openat", "write", "fsync", "renameat"}},
		{"audit/audit-000001.jsonl.new", []string{"openat", "write", "fsync", "renameat"}}, // of accepted
		{"queue-cloud.db", []string{"pwrite64", "fdatasync"}},                              // of its answer
		{layerFile + ".new", []string{"openat", "write", "fsync", "renameat"}},
		{"audit/audit-000001.jsonl", []string{"pwrite64", "fdatasync"}}, // of confirmed
		{trialFile, []string{"unlinkat"}},
	} {
		for _, call := range file.calls {
			n++
			v := &victim{far: f, name: fmt.Sprintf("c%d", n), dir: t.TempDir()}
			room <- struct{}{}
			all.Go(func() { // ends with its test
				defer func() { <-room }()
				t.Run(call+" "+filepath.Base(file.name), func(t *testing.T) {
					v.T = t
					by := append(slices.Clone(strace), "-P", filepath.Join(v.dir, file.name), "-e", "inject="+call+":signal=KILL")
					v.killAt(up.Port, by)
				})
			})
		}
	}
}

// asking is what a victim is sent.
func asking(set string) string { return `{"id":"x","set":{` + set + `}}` }

// killAt changes settings while another program looks on, which kills the gateway, and
// holds what the next one does against what the files say.
func (v *victim) killAt(port int, by []string) {
	v.configure(port)
	first := v.start(nil, by...)
	v.send(asking(`"status.every":"5s"`))
	v.killed(first)
	there := func(name string) bool { _, err := os.Stat(filepath.Join(v.dir, name)); return err == nil }
	staged, kept := there(trialFile), there(layerFile)
	_, said := v.last("x")
	second := v.start(nil)
	want := remoteBack
	switch {
	case kept:
		want = remoteDone
	case !staged && len(said) == 0:
		v.send(asking(`"status.every":"5s"`))
		want = remoteDone
	}
	v.hold(second, asking(`"status.every":"5s"`), want, kept)
}

// configure writes the configuration of a victim.
func (v *victim) configure(port int) {
	v.Helper()
	text := fmt.Sprintf(`
site: { id: %s }
status: { every: 60s }
uplinks: { cloud: { url: "mqtt://127.0.0.1:%d" } }
broker: { listen: mqtt://127.0.0.1:0, anonymous: true }
settings: { from: cloud, allow: [status, broker.listen], confirm: 1s }
web: false
`, v.name, port)
	if err := os.WriteFile(filepath.Join(v.dir, "fieldgate.yaml"), []byte(text), 0o600); err != nil {
		v.Fatal(err)
	}
	v.Cleanup(func() {
		if v.Failed() {
			v.Logf("answers:\n%s\nlog:\n%s", strings.Join(v.answers(), "\n"), v.log.String())
		}
	})
}

// killed waits until the gateway was killed.
func (v *victim) killed(first *exec.Cmd) {
	v.Helper()
	ended := make(chan error, 1)
	go func() { ended <- first.Wait() }() // ends with the process, which the test's end kills
	select {
	case <-ended:
	case <-time.After(time.Minute):
		v.Fatal("it was not killed within a minute")
	}
	if s, ok := first.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
		v.Fatalf("it has ended with %v", first.ProcessState)
	}
}

// kill changes settings, kills the gateway before a step of that, "" at the very end,
// and the next one before a step of what it still has to do, and holds what comes then
// against what should.
func (v *victim) kill(port int, set, ends, step, again string, edit bool) {
	v.configure(port)
	env := []string{killedStep + "=" + step}
	if edit {
		env = append(env, killedEdit+"=1")
	}
	first := v.start(env)
	v.send(asking(set))
	if step == "" {
		v.until("it is over", func() bool {
			_, all := v.last("x")
			_, err := os.Stat(filepath.Join(v.dir, trialFile))
			return len(all) > 0 && err != nil
		})
		_ = first.Process.Kill()
	}
	v.killed(first)
	if again != "" {
		v.killed(v.begin([]string{killedStep + "=" + again}))
	}

	second := v.start(nil)
	want := remoteBack
	switch step {
	case "record " + ends, "say " + ends, "settle", "":
		want = ends
	case "stage":
		v.send(asking(set)) // nobody knows of the first
		want = ends
	}
	v.hold(second, asking(set), want, step == "settle" || again == "settle" || step == "")
}

// hold waits for the last answer of the gateway, asks for it again, and stops the
// gateway. said is whether the one before may have answered already.
func (v *victim) hold(second *exec.Cmd, change, want string, said bool) {
	v.until("the last answer", func() bool { _, all := v.last("x"); return len(all) > 0 })
	v.send(change)
	distinct := func() []string {
		payloads, _ := v.last("x")
		return slices.Compact(slices.Sorted(slices.Values(payloads)))
	}
	v.until("it is said again", func() bool { return len(distinct()) > 1 }) // with another time
	payloads, all := v.last("x")
	for i, a := range all {
		if a.Status != want || a.Reason != all[0].Reason || a.Diff != nil && !slices.Equal(a.Diff, all[0].Diff) {
			v.Errorf("answer %d: %+v, want %s", i, a, want)
		}
	}
	if most := len(distinct()); most != 2 || len(payloads) > most && !said {
		v.Errorf("answered %d times, with %d messages", len(payloads), most) // what was on its way may come twice
	}

	every := "60s"
	if want == remoteDone {
		every = "5s"
	}
	v.send(`{"id":"probe","set":{"status.every":"` + every + `"}}`)
	v.until("the probe is answered", func() bool { _, all := v.last("probe"); return len(all) > 0 })
	if _, all := v.last("probe"); all[0].Reason != "it changes nothing" {
		v.Errorf("status.every is not %s: %+v", every, all[0])
	}
	_ = second.Process.Signal(syscall.SIGTERM)
	if err := second.Wait(); err != nil {
		v.Error(err)
	}
	source, err := NewSource(filepath.Join(v.dir, "fieldgate.yaml"), v.dir)
	if err != nil || source.left != nil {
		v.Errorf("left behind: %+v, %v", source.left, err)
	}
	if cfg, _, err := source.Load(); err != nil || config.FormatDuration(cfg.Status.Every) != config.FormatDuration(map[string]time.Duration{"60s": time.Minute, "5s": 5 * time.Second}[every]) {
		v.Errorf("the next start has %v, %v", cfg, err)
	}
	report, err := audit.Verify(v.dir)
	if err != nil || len(report.Breaks) > 0 {
		v.Errorf("audit: %+v, %v", report, err)
	}
	var is []string
	if err := audit.Read(v.dir, func(r audit.Record) error {
		if r.ID == "x" {
			is = append(is, r.Status)
		}
		return nil
	}); err != nil {
		v.Error(err)
	}
	if len(is) > 0 && is[0] == remoteAccepted { // else it was killed before
		is = is[1:]
	}
	if !slices.Equal(is, []string{want}) {
		v.Errorf("recorded %q and no more than accepted before, want %s", is, want)
	}
}

// What a program of before left without a last answer, and without the file of a trial,
// is said by what the layer says of itself.
func TestSettingsLeftUnsaid(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ layer, want string }{
		{`#{"id":"x","via":"local","by":"office","ack":"config/s/update/ack"}` + "\n" + `{"status.every":"5s"}`, remoteDone},
		{`#{"id":"older","via":"local","by":"office","ack":"config/s/update/ack"}` + "\n" + `{"status.every":"5s"}`, remoteBack},
		{`{"status.every":"5s"}`, remoteBack},
	} {
		dir := t.TempDir()
		log, err := audit.Open(dir, audit.Options{}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := log.Append(t.Context(), audit.Record{Event: remoteEvent, ID: "x", By: "office", Via: "local", Status: remoteAccepted}); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(log.Close(), os.WriteFile(Layer(dir), []byte(c.layer+"\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
		const text = "site: { id: s }\nbroker: { listen: mqtt://127.0.0.1:0, anonymous: true }\nsettings: { from: local, allow: status }\nweb: false\n"
		for range 2 { // starts
			a := follow(t, dir, text)
			a.send(`{"id":"x","set":{"status.every":"6s"}}`, false)
			a.until("it is answered", func() bool { return len(a.answers("x")) > 0 })
			if is := a.answers("x")[0].Status; is != c.want {
				t.Errorf("%s: %s, want %s", c.layer, is, c.want)
			}
			a.stop()
		}
		var recorded []string
		if err := audit.Read(dir, func(r audit.Record) error { recorded = append(recorded, r.Status); return nil }); err != nil {
			t.Error(err)
		}
		if want := []string{remoteAccepted, c.want}; !slices.Equal(recorded, want) {
			t.Errorf("recorded %q, want %q", recorded, want)
		}
	}
}
