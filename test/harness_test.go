// Package test holds the tests of the whole product: the real program against
// peers that are none of ours - mosquitto, mosquitto_sub, libmodbus, mbpoll -
// and what holds over the tree as a whole.
package test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fieldgate/test/child"
)

// patience is how long anything that should happen at once may take on a
// loaded machine before a test gives up.
const patience = 20 * time.Second

var (
	binary string // fieldgate, built with -race
	peers  string // folder of the programs built from peers/*.c
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "fieldgate-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary, peers = filepath.Join(dir, "fieldgate"), dir
		if err := build(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

func build() error {
	if err := execute("go", "build", "-race", "-o", binary, "fieldgate/cmd/fieldgate"); err != nil {
		return err
	}
	sources, err := filepath.Glob("peers/*.c")
	if err != nil {
		return err
	}
	for _, src := range sources {
		out := filepath.Join(peers, strings.TrimSuffix(filepath.Base(src), ".c"))
		if err := execute("gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-D_DEFAULT_SOURCE",
			"-o", out, src, "-I/usr/include/modbus", "-lmodbus"); err != nil {
			return err
		}
	}
	return nil
}

func execute(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// process is a program a test started. It is ended with the test.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *output // standard output
	log  *output // standard error
	done chan struct{}
}

// start runs a program until the test ends.
func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	return startIn(t, nil, name, args...)
}

// startIn is start with more in the environment: NAME=VALUE.
func startIn(t *testing.T, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(name, args...), out: newOutput(), log: newOutput(), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // else each run ends a second later
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.log
	if err := child.Start(p.cmd); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		ended := "with the test"
		select {
		case <-p.done:
			ended = "before, with " + p.cmd.ProcessState.String()
		default:
			_ = p.cmd.Process.Kill()
			<-p.done
		}
		if t.Failed() {
			t.Logf("%s %s\nprinted: %s\nlogged: %s\nended: %s", filepath.Base(name), strings.Join(args, " "), p.out.String(), p.log.String(), ended)
		}
		if strings.Contains(p.log.String(), "DATA RACE") {
			t.Errorf("data race in %s:\n%s", filepath.Base(name), p.log.String())
		}
	})
	return p
}

// stop asks the program to stop and returns its exit code and how long it took.
func (p *process) stop() (code int, took time.Duration) {
	p.t.Helper()
	begin := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("did not stop within %v", patience)
	}
	return p.cmd.ProcessState.ExitCode(), time.Since(begin)
}

// output collects what a program prints, and lets a test wait for a text.
type output struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{} // closed and replaced at each write
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf.Write(p)
	close(o.changed)
	o.changed = make(chan struct{})
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// wait returns once ok says yes to what was printed so far.
func (o *output) wait(t *testing.T, what string, ok func(string) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		o.mu.Lock()
		text, changed := o.buf.String(), o.changed
		o.mu.Unlock()
		if ok(text) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("%s: not after %v; printed so far:\n%s", what, patience, text)
		}
	}
}

// waitFor returns once text was printed.
func (o *output) waitFor(t *testing.T, text string) {
	t.Helper()
	o.wait(t, fmt.Sprintf("%q", text), func(s string) bool { return strings.Contains(s, text) })
}

// run runs fieldgate to its end and returns what it printed and its exit code.
func run(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	p := start(t, binary, args...)
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("fieldgate %s: no end after %v", strings.Join(args, " "), patience)
	}
	return p.out.String(), p.log.String(), p.cmd.ProcessState.ExitCode()
}

// startGateway starts fieldgate with a configuration and returns once it runs.
// Without web of its own it gets none: other gateways of this machine may have
// the usual address.
func startGateway(t *testing.T, yaml string) *process {
	t.Helper()
	if !strings.Contains(yaml, "\nweb:") {
		yaml += "\nweb: false\n"
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "fieldgate.yaml")
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, binary, "-c", path, "run", "--data", filepath.Join(dir, "data"))
	p.log.waitFor(t, "msg=started")
	return p
}
