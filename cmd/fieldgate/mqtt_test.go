package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"fieldgate/internal/mqtt/mosquittotest"
)

// buildProgram builds the real program for a test.
func buildProgram(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "fieldgate")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return program
}

// runProgram runs a command line to its end.
func runProgram(t *testing.T, program, stdin string, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	cmd.Env = append(os.Environ(), env...)
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// TestMQTT runs the real program against mosquitto and its own tools.
func TestMQTT(t *testing.T) {
	program := buildProgram(t)
	certs := mosquittotest.NewCerts(t)
	plain := mosquittotest.Start(t, mosquittotest.Options{})
	locked := mosquittotest.Start(t, mosquittotest.Options{Users: map[string]string{"me": "s3cret"}, TLS: certs})
	socket := mosquittotest.Start(t, mosquittotest.Options{WebSocket: true})
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	password, wrong := file("password", "s3cret\n"), file("wrong", "wrong\n")
	binary := file("binary", "a\x00\xff\n")
	conf := file("fieldgate.yaml", `
buses: { plc: { tcp: 127.0.0.1:1 } }
devices: { d: { bus: plc, points: { p: { at: 40001 } } } }
uplinks:
  cloud:
    url: mqtts://`+locked.Addr()+`
    username: me
    password: { file: `+password+` }
    tls: { ca: `+certs.CA+` }
`)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })

	pub := []struct {
		name   string
		broker *mosquittotest.Broker
		stdin  string
		env    []string
		args   []string
		want   []mosquittotest.Received
	}{
		{"payload", plain, "", nil, []string{plain.URL(), "a/b", "hello world"}, []mosquittotest.Received{{Topic: "a/b", Payload: "hello world", QoS: 1}}},
		{"negative number, QoS 2", plain, "", nil, []string{"--qos", "2", plain.URL(), "a/b", "-5.5"}, []mosquittotest.Received{{Topic: "a/b", Payload: "-5.5", QoS: 2}}},
		{"QoS 0", plain, "", nil, []string{plain.URL(), "a/b", "x", "--qos=0"}, []mosquittotest.Received{{Topic: "a/b", Payload: "x"}}},
		{"empty", plain, "", nil, []string{plain.URL(), "a/b", "--empty"}, []mosquittotest.Received{{Topic: "a/b", QoS: 1}}},
		{"file", plain, "", nil, []string{plain.URL(), "a/b", "--file", password}, []mosquittotest.Received{{Topic: "a/b", Payload: "s3cret\n", QoS: 1}}},
		{"standard input", plain, "one\ntwo\n", nil, []string{plain.URL(), "a/b", "--file", "-"}, []mosquittotest.Received{{Topic: "a/b", Payload: "one\ntwo\n", QoS: 1}}},
		{"lines", plain, "one\ntwo\n\nthree", nil, []string{plain.URL(), "a/b", "--lines"}, []mosquittotest.Received{
			{Topic: "a/b", Payload: "one", QoS: 1}, {Topic: "a/b", Payload: "two", QoS: 1}, {Topic: "a/b", QoS: 1}, {Topic: "a/b", Payload: "three", QoS: 1}}},
		{"websocket", socket, "", nil, []string{socket.URL(), "a/b", "ws"}, []mosquittotest.Received{{Topic: "a/b", Payload: "ws", QoS: 1}}},
		{"password in a file", locked, "", nil, []string{locked.URL(), "a/b", "1", "--ca", certs.CA, "--user", "me", "--password-file", password}, []mosquittotest.Received{{Topic: "a/b", Payload: "1", QoS: 1}}},
		{"password in the environment", locked, "", []string{passwordEnv + "=s3cret"}, []string{locked.URL(), "a/b", "2", "--insecure", "--user", "me"}, []mosquittotest.Received{{Topic: "a/b", Payload: "2", QoS: 1}}},
		{"password in the URL", locked, "", nil, []string{"mqtts://me:s3cret@" + locked.Addr(), "a/b", "3", "--ca", certs.CA}, []mosquittotest.Received{{Topic: "a/b", Payload: "3", QoS: 1}}},
		{"an uplink by its name", locked, "", nil, []string{"-c", conf, "cloud", "a/b", "4"}, []mosquittotest.Received{{Topic: "a/b", Payload: "4", QoS: 1}}},
	}
	subs := map[*mosquittotest.Broker]*mosquittotest.Subscriber{
		plain:  plain.Subscribe([]string{"a/#"}),
		socket: socket.Subscribe([]string{"a/#"}),
		locked: locked.Subscribe([]string{"a/#"}, "-u", "me", "-P", "s3cret"),
	}
	for _, row := range pub {
		t.Run("pub "+row.name, func(t *testing.T) {
			stdout, stderr, code := runProgram(t, program, row.stdin, row.env, append([]string{"mqtt", "pub"}, row.args...)...)
			if stdout != "" || stderr != "" || code != 0 {
				t.Fatalf("exit code %d, printed %q, %q", code, stdout, stderr)
			}
			for i, got := range subs[row.broker].Next(len(row.want)) {
				if got != row.want[i] {
					t.Errorf("got %+v, want %+v", got, row.want[i])
				}
			}
		})
	}

	t.Run("sub", func(t *testing.T) {
		for topic, payload := range map[string]string{"r/1": "22.5", "r/2": "größe", "r/3": "a\nb", "r/4": `{"v":1}`} {
			if out, errs, code := runProgram(t, program, "", nil, "mqtt", "pub", plain.URL(), topic, payload, "--retain"); code != 0 {
				t.Fatalf("pub: %d %s %s", code, out, errs)
			}
		}
		if _, errs, code := runProgram(t, program, "", nil, "mqtt", "pub", plain.URL(), "r/5", "--file", binary, "--retain"); code != 0 {
			t.Fatalf("pub: %d %s", code, errs)
		}
		args := []string{"mqtt", "sub", plain.URL(), "r/1", "r/2", "r/3", "r/4", "r/5", "--count", "5"}
		stdout, stderr, code := runProgram(t, program, "", nil, args...)
		want := "r/1 22.5\nr/2 größe\nr/3 \"a\\nb\"\nr/4 {\"v\":1}\nr/5 \"a\\x00\\xff\\n\"\n"
		if stdout != want || stderr != "" || code != 0 {
			t.Errorf("printed %q, %q, exit code %d; want %q", stdout, stderr, code, want)
		}
		stdout, _, code = runProgram(t, program, "", nil, append(args, "--json", "--qos", "1")...)
		var got []string
		for line := range strings.Lines(stdout) {
			var m map[string]any
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if at, err := time.Parse(time.RFC3339, m["timestamp"].(string)); err != nil || time.Since(at) > time.Minute {
				t.Errorf("timestamp of %q: %v", line, err)
			}
			delete(m, "timestamp")
			text, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(text))
		}
		want = `{"payload":"22.5","qos":1,"retain":true,"topic":"r/1"}
{"payload":"größe","qos":1,"retain":true,"topic":"r/2"}
{"payload":"a\nb","qos":1,"retain":true,"topic":"r/3"}
{"payload":"{\"v\":1}","qos":1,"retain":true,"topic":"r/4"}
{"payload_base64":"YQD/Cg==","qos":1,"retain":true,"topic":"r/5"}`
		if strings.Join(got, "\n") != want || code != 0 {
			t.Errorf("printed\n%s\nexit code %d; want\n%s", strings.Join(got, "\n"), code, want)
		}
	})

	t.Run("sub until stopped", func(t *testing.T) {
		var out bytes.Buffer
		cmd := exec.Command(program, "mqtt", "sub", plain.URL(), "r/1")
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 64)
		n, err := pipe.Read(line) // printed at once, though it goes to a pipe
		if err != nil || string(line[:n]) != "r/1 22.5\n" {
			t.Errorf("printed %q, %v", line[:n], err)
		}
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if _, err := out.ReadFrom(pipe); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("after Ctrl-C: %v", err)
		}
	})

	for _, row := range []struct {
		name string
		code int
		want string // part of what goes to standard error
		args []string
	}{
		{"no command", 2, "Usage: fieldgate mqtt COMMAND", nil},
		{"unknown command", 2, `did you mean sub?`, []string{"subscribe"}},
		{"no topic", 2, "wants a broker and a topic", []string{"pub", plain.URL()}},
		{"no payload", 2, "the payload is missing", []string{"pub", plain.URL(), "a"}},
		{"two payloads", 2, "give one payload", []string{"pub", plain.URL(), "a", "x", "--empty"}},
		{"wildcard", 2, "holds no wildcard", []string{"pub", plain.URL(), "a/#", "x"}},
		{"QoS", 2, "--qos 3 is not 0, 1 or 2", []string{"pub", plain.URL(), "a", "x", "--qos", "3"}},
		{"key alone", 2, "need --cert", []string{"pub", plain.URL(), "a", "x", "--key", "k"}},
		{"scheme", 2, "begins with mqtt://", []string{"pub", "tcp://h", "a", "x"}},
		{"no such file", 1, "no such file", []string{"pub", plain.URL(), "a", "--file", "/no/such"}},
		{"no such password file", 2, "no such file", []string{"pub", plain.URL(), "a", "x", "--password-file", "/no/such"}},
		{"no such authority", 2, "tls.ca: open /no/such", []string{"pub", locked.URL(), "a", "x", "--ca", "/no/such"}},
		{"no such uplink", 2, `"clout" is neither a URL such as mqtt://HOST nor an uplink in`, []string{"pub", "-c", conf, "clout", "a", "x"}},
		{"no such configuration", 2, "so it should be an uplink in /no/such.yaml", []string{"pub", "-c", "/no/such.yaml", "cloud", "a", "x"}},
		{"wrong password", 1, "the broker does not let us in", []string{"pub", locked.URL(), "a", "x", "--insecure", "--user", "me", "--password-file", wrong}},
		{"unknown authority", 4, "give the authority's certificate as tls.ca", []string{"pub", locked.URL(), "a", "x"}},
		{"nothing there", 4, "connection refused", []string{"pub", "mqtt://" + closed.Addr().String(), "a", "x"}},
		{"no answer", 4, "no answer to CONNECT within 100ms", []string{"sub", "mqtt://" + silent.Addr().String(), "a", "--timeout", "100ms"}},
		{"no filter", 2, "wants a broker and a filter", []string{"sub", plain.URL()}},
		{"bad filter", 2, `"#" must be the last level`, []string{"sub", plain.URL(), "a/#/b"}},
		{"too few messages", 4, "0 of 1 messages came within 50ms", []string{"sub", plain.URL(), "nothing/here", "--count", "1", "--for", "50ms"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			stdout, stderr, code := runProgram(t, program, "", nil, append([]string{"mqtt"}, row.args...)...)
			if code != row.code || !strings.Contains(stderr, row.want) || stdout != "" || strings.Contains(stderr, "s3cret") {
				t.Errorf("exit code %d, %q, %q; want %d and %q", code, stdout, stderr, row.code, row.want)
			}
		})
	}

	t.Run("for a time", func(t *testing.T) {
		stdout, stderr, code := runProgram(t, program, "", nil, "mqtt", "sub", plain.URL(), "nothing/here", "--for", "50ms")
		if stdout+stderr != "" || code != 0 {
			t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
		}
	})

	t.Run("help", func(t *testing.T) {
		for _, args := range [][]string{{"-h"}, {"pub", "-h"}, {"sub", "-h"}} {
			stdout, stderr, code := runProgram(t, program, "", nil, append([]string{"mqtt"}, args...)...)
			if code != 0 || stderr != "" || !strings.Contains(stdout, "fieldgate mqtt pub mqtt") && !strings.Contains(stdout, "fieldgate mqtt sub mqtt") {
				t.Errorf("%v: exit code %d, %q, %q", args, code, stdout, stderr)
			}
		}
	})

	t.Run("sub of a broker that ends", func(t *testing.T) {
		var errs bytes.Buffer
		cmd := exec.Command(program, "mqtt", "sub", plain.URL(), "r/1")
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := pipe.Read(make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
		plain.Kill()
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != exitNoPeer || !strings.Contains(errs.String(), "the broker closed the connection") {
			t.Errorf("exit code %d, %q", code, errs.String())
		}
	})
}
