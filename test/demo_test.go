package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/test/child"
)

// The points of the demonstration, all of which are to be seen.
var demoPoints = strings.Fields(`
	boiler.supply_temp boiler.return_temp boiler.pressure boiler.burner boiler.setpoint
	pump.speed pump.current pump.enable flow.rate flow.total
	chiller.outlet chiller.load chiller.defrost chiller.setpoint meter.voltage meter.power meter.energy`)

// startDemo runs the demonstration with a folder of its own for what it needs,
// which has to be empty again when it has ended.
func startDemo(t *testing.T, program []string, args ...string) *process {
	t.Helper()
	dir := t.TempDir()
	p := startIn(t, []string{"TMPDIR=" + dir}, program[0], append(append(program[1:], "demo"), args...)...)
	t.Cleanup(func() { // before the process is killed, see start
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("the demo leaves %v behind (%v)", left, err)
		}
	})
	return p
}

// wantEnd waits for the end of a process and checks its exit code.
func (p *process) wantEnd(code int) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("no end after %v", patience)
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Errorf("exit code %d, want %d", got, code)
	}
}

// demoSample is a line of "demo --json".
type demoSample struct {
	Timestamp time.Time
	Point     string
	Value     any
	Quality   string
	Unit      string
}

// demoSamples reads what "demo --json" has printed.
func demoSamples(t *testing.T, out string) (all []demoSample) {
	t.Helper()
	for line := range strings.Lines(out) {
		var s demoSample
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&s); err != nil {
			t.Fatalf("not a JSON object a line: %q: %v", line, err)
		}
		all = append(all, s)
	}
	return all
}

// wantAllPoints checks that samples have good values of every point.
func wantAllPoints(t *testing.T, samples []demoSample) {
	t.Helper()
	good := make(map[string]int)
	for _, s := range samples {
		if s.Quality == "good" && s.Value != nil && !s.Timestamp.IsZero() {
			good[s.Point]++
		}
	}
	for _, id := range demoPoints {
		if good[id] == 0 {
			t.Errorf("no good value of %s", id)
		}
		delete(good, id)
	}
	if len(good) > 0 {
		t.Errorf("values of points that nobody knows: %v", good)
	}
}

// The demonstration for scripts: an object a sample, all points, and the flow
// meter's death after six seconds.
func TestDemoJSON(t *testing.T) {
	t.Parallel()
	p := startDemo(t, []string{binary}, "--for", "9s", "--json")
	p.wantEnd(0)
	samples := demoSamples(t, p.out.String())
	wantAllPoints(t, samples)
	dead := 0
	for _, s := range samples {
		switch {
		case s.Quality != "bad":
		case strings.HasPrefix(s.Point, "flow.") && s.Value == nil:
			dead++
		default:
			t.Errorf("%s is bad: %v", s.Point, s.Value)
		}
	}
	if dead == 0 {
		t.Error("nobody noticed that the flow meter died")
	}
	if p.log.String() != "" {
		t.Errorf("it logs %q", p.log.String())
	}
}

// The demonstration for people whose output is no terminal, and mosquitto_sub at
// the broker that it says it has.
func TestDemoText(t *testing.T) {
	t.Parallel()
	p := startDemo(t, []string{binary}, "--for", "4s")
	p.out.waitFor(t, "Watch it from another terminal: ")
	hint := regexp.MustCompile(`mosquitto_sub -h (\S+) -p (\d+) -v -t '#'`).FindStringSubmatch(p.out.String())
	if hint == nil {
		t.Fatalf("no hint how to watch it in %q", p.out.String())
	}
	sub := start(t, "mosquitto_sub", "-h", hint[1], "-p", hint[2], "-v", "-t", "#")
	sub.out.waitFor(t, "demo/boiler/supply_temp {\"value\":")
	sub.out.waitFor(t, "fieldgate/demo/device/pump/state online")
	write := regexp.MustCompile(`(?m)^Write a setpoint: (mosquitto_pub .*)$`).FindStringSubmatch(p.out.String())
	if write == nil {
		t.Fatalf("no hint how to write a setpoint in %q", p.out.String())
	}
	words := strings.Fields(write[1])
	start(t, words[0], words[1:]...)
	sub.out.waitFor(t, `demo/cmd/boiler/setpoint/ack {"status":"verified","point":"boiler.setpoint","value":75,"previous":70,`)
	sub.out.waitFor(t, `demo/boiler/setpoint {"value":75,`)
	p.wantEnd(0)
	for _, want := range []string{"fieldgate demo: 5 simulated devices, broker on 127.0.0.1:", "demo/chiller/load {\"value\":", "# line1: flow is online\n"} {
		if !strings.Contains(p.out.String(), want) {
			t.Errorf("it does not print %q", want)
		}
	}
	if last := p.out.String()[strings.LastIndex(strings.TrimSpace(p.out.String()), "\n")+1:]; !regexp.MustCompile(`^\d+ samples, \d+ messages in 4s\n$`).MatchString(last) {
		t.Errorf("its last line is %q", last)
	}
}

// A reader that has had enough, as in "demo | head", ends it: at once, with 0, and
// with nothing left behind.
func TestDemoNobodyReads(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"demo"}, {"demo", "--json"}} {
		dir := t.TempDir()
		var log bytes.Buffer
		cmd := exec.Command(binary, args...)
		cmd.Env = append(os.Environ(), "TMPDIR="+dir, "GORACE=atexit_sleep_ms=0")
		cmd.Stderr = &log
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 10)); err != nil {
			t.Error(err)
		}
		out.Close()
		limit := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		if err := cmd.Wait(); err != nil || !limit.Stop() {
			t.Errorf("%v ends with %v, want 0 within %v", args, err, patience)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%v leaves %v behind (%v)", args, left, err)
		}
		if log.Len() > 0 {
			t.Errorf("%v says %q", args, log.String())
		}
	}
}

// Ctrl-C ends the live view in a terminal: with 0, nothing left behind, and the
// cursor back. Each page fits the terminal: a line more, and the first ones would
// be pushed out of sight.
func TestDemoInterrupted(t *testing.T) {
	for _, size := range []struct {
		width, height uint16
		last          string // of the points that there is room for
	}{
		{110, 45, "meter.energy"},
		{80, 24, "boiler.return_temp"},
		{60, 8, "chiller"},
	} {
		t.Run(fmt.Sprintf("%dx%d", size.width, size.height), func(t *testing.T) {
			t.Parallel()
			demoInterrupted(t, size.width, size.height, size.last)
		})
	}
}

func demoInterrupted(t *testing.T, width, height uint16, last string) {
	t.Helper()
	screen, terminal := openTerminal(t, width, height)
	dir := t.TempDir()
	var log bytes.Buffer
	cmd := exec.Command(binary, "demo")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "GORACE=atexit_sleep_ms=0")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := child.Start(cmd); err != nil {
		t.Fatal(err)
	}
	terminal.Close()
	out, done := newOutput(), make(chan struct{})
	go func() { // ends when the program closes the terminal
		defer close(done)
		_, _ = screen.WriteTo(out)
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the program
	for _, want := range []string{"\x1b[?25l", "fieldgate demo   up ", last, "up 1s"} {
		out.waitFor(t, want)
	}
	if _, err := screen.WriteString("\x03"); err != nil { // Ctrl-C, as typed
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("Ctrl-C ends it with %v, want 0", err)
		}
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		t.Fatalf("Ctrl-C does not end it within %v", patience)
	}
	<-done
	if page := out.String(); !strings.HasSuffix(strings.ReplaceAll(page, "\r", ""), "\x1b[?25h\n") {
		t.Errorf("the cursor is not brought back: %q", page[max(0, len(page)-200):])
	}
	for _, page := range strings.Split(out.String(), "\x1b[H")[1:] {
		if feeds := strings.Count(strings.TrimSuffix(page, "\x1b[?25h\r\n"), "\n"); feeds >= int(height) {
			t.Errorf("a page has %d lines, want %d at most: %q", feeds+1, height, page)
			break
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it leaves %v behind (%v)", left, err)
	}
	if log.Len() > 0 {
		t.Errorf("it logs %q", log.String())
	}
}

// A terminal that is closed, or a session that is lost, ends it as Ctrl-C does.
// Under nohup it goes on.
func TestDemoHungUp(t *testing.T) {
	t.Parallel()
	for _, run := range [][]string{{binary}, {"nohup", binary}} {
		p := startDemo(t, run, "--for", "3s", "--json")
		p.out.waitFor(t, "meter.energy")
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		p.wantEnd(0)
		begin := demoSamples(t, p.out.String())[0].Timestamp
		if lived := time.Since(begin); run[0] == "nohup" && lived < 2*time.Second {
			t.Errorf("nohup: it ended after %v", lived)
		}
	}
}

// openTerminal returns the two ends of a terminal of a size in characters.
func openTerminal(t *testing.T, width, height uint16) (screen, terminal *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { screen.Close() })
	raw, err := screen.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number uint32
	err = raw.Control(func(fd uintptr) {
		for _, step := range []func() error{
			func() error { return unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0) },
			func() (err error) { number, err = unix.IoctlGetUint32(int(fd), unix.TIOCGPTN); return err },
			func() error {
				return unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height})
			},
		} {
			if err := step(); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return screen, terminal
}
