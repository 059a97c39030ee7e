package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fieldgate/internal/simulate"
	"fieldgate/test/child"
)

// clockTick is what /proc counts processor time in (USER_HZ, 100 on Linux).
const clockTick = 10 * time.Millisecond

// process is a program that runs beside the bench.
type process struct {
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan struct{}
}

// start runs a program; its standard output goes to out, if that is not nil.
func start(out io.Writer, name string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.cmd.Stdout = out
	p.cmd.Stderr = &p.log
	if err := child.Start(p.cmd); err != nil {
		return nil, err
	}
	go func() { // ends with the process
		_ = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// stop ends the program and waits for its end.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(12 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// alive returns an error with what the program logged if it has ended.
func (p *process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended: %s", filepath.Base(p.cmd.Path), p.log.String())
	default:
		return nil
	}
}

// cpu returns the processor time the program has used so far.
func (p *process) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The fields after the name, which may hold spaces; utime is the 14th of all.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("/proc/%d/stat: %q", p.cmd.Process.Pid, stat)
	}
	return time.Duration(user+system) * clockTick, nil
}

// memory returns a figure of /proc/PID/status, such as VmRSS, in MiB.
func (p *process) memory(key string) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			return float64(kib) / 1024, err
		}
	}
	return 0, fmt.Errorf("no %s in /proc/%d/status", key, p.cmd.Process.Pid)
}

// gateway starts the program with a configuration.
func (b *bench) gateway(yaml string) (*process, error) {
	dir, err := os.MkdirTemp(b.dir, "gateway-")
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "fieldgate.yaml")
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		return nil, err
	}
	return start(nil, b.binary, "-c", path, "run", "--data", dir)
}

// plant runs simulated devices until the returned function is called.
func plant(p *simulate.Plant) (stop func() error, err error) {
	if err := p.Listen(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }() // ends with ctx
	return func() error {
		cancel()
		return <-done
	}, nil
}

// mosquitto starts an upstream broker and returns its port.
func (b *bench) mosquitto() (*process, int, error) {
	port, err := freePort()
	if err != nil {
		return nil, 0, err
	}
	conf := filepath.Join(b.dir, fmt.Sprintf("mosquitto-%d.conf", port))
	text := fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 100000\nlog_type error\n", port)
	if os.Getuid() == 0 {
		text += "user root\n"
	}
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, 0, err
	}
	name := "mosquitto"
	if _, err := exec.LookPath(name); err != nil {
		name = "/usr/sbin/mosquitto"
	}
	p, err := start(nil, name, "-c", conf)
	if err != nil {
		return nil, 0, err
	}
	return p, port, dialled(port)
}

// dialled returns once something listens on a port.
func dialled(port int) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return c.Close()
		}
		if time.Now().After(end) {
			return err
		}
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// received is a message and when mosquitto_sub printed it.
type received struct {
	at      time.Time
	topic   string
	payload json.RawMessage
}

// subscriber is a running mosquitto_sub.
type subscriber struct {
	*process
	messages chan received
}

// subscribe returns once mosquitto_sub is subscribed to PREFIX/#. It does not
// flush what it says of itself to a pipe, so a message of ours has to show it.
func subscribe(port int, prefix string) (*subscriber, error) {
	r, w := io.Pipe()
	p, err := start(w, "mosquitto_sub", "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-t", prefix+"/#", "-F", "%t %p")
	if err != nil {
		return nil, err
	}
	s := &subscriber{p, make(chan received, 1<<16)}
	go func() { // ends with the process
		<-p.done
		w.Close()
	}()
	go func() { // ends with the process, which closes the pipe
		defer close(s.messages)
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			topic, payload, _ := strings.Cut(lines.Text(), " ")
			s.messages <- received{time.Now(), topic, json.RawMessage(payload)}
		}
	}()
	for range 50 {
		if err := command("mosquitto_pub", "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-t", prefix+"/ready", "-m", "ready"); err != nil {
			return nil, err
		}
		select {
		case _, ok := <-s.messages:
			if !ok {
				return nil, fmt.Errorf("mosquitto_sub ended: %s", p.log.String())
			}
			return s, nil
		case <-time.After(100 * time.Millisecond):
		}
	}
	p.stop()
	return nil, fmt.Errorf("mosquitto_sub is not subscribed after 5 s")
}

// pause waits, or returns early when ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
