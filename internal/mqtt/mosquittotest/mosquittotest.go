// Package mosquittotest runs a real mosquitto (Debian's) for tests: on a port
// of its own on 127.0.0.1, with a configuration of its own, nothing kept on
// disk, ended by its process id when the test ends. It also wraps
// mosquitto_sub, the subscriber that is none of ours.
package mosquittotest

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fieldgate/test/child"
	"fieldgate/test/port"
	"fieldgate/test/testlog"
)

// patience is how long mosquitto may take to start, stop or deliver.
const patience = 30 * time.Second

// Options says what the broker is like. The zero value is an open broker on
// plain TCP.
type Options struct {
	TLS        *Certs            // listener with TLS; Certs.RequireClient asks for a client certificate
	WebSocket  bool              // listener speaks WebSocket (path is not looked at)
	Users      map[string]string // name → password; nil: anonymous
	ACL        string            // contents of an acl_file
	Persistent bool              // sessions and retained messages survive Stop and Start
	Lines      []string          // more lines of mosquitto.conf
}

// Broker is one mosquitto process at a time, always on the same port.
type Broker struct {
	Port int

	plain int // a second listener on plain TCP if the first is none, else Port

	dir  string
	opts Options
	t    testing.TB
	subs atomic.Int32 // mosquitto_subs started

	mu     sync.Mutex
	cmd    *exec.Cmd
	ended  chan struct{} // closed when cmd has ended
	output *testlog.Log
}

// Start runs a broker and returns once it takes connections. It fails the test
// if mosquitto is missing or does not come up.
func Start(t testing.TB, opts Options) *Broker {
	t.Helper()
	b := &Broker{dir: t.TempDir(), opts: opts, t: t, output: &testlog.Log{}}
	t.Cleanup(func() {
		b.Kill()
		if t.Failed() {
			t.Logf("mosquitto on port %d said:\n%s", b.Port, b.Output())
		}
	})
	// Another process may take the port between our look and mosquitto's bind.
	for try := 0; ; try++ {
		b.Port = freePort(t)
		b.plain = b.Port
		if opts.TLS != nil || opts.WebSocket {
			b.plain = freePort(t)
		}
		err := b.start()
		if err == nil {
			return b
		}
		if try == 4 {
			t.Fatal(err)
		}
	}
}

// Addr returns host:port of the listener.
func (b *Broker) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(b.Port)) }

// URL returns the listener as an uplink's url: mqtt, mqtts, ws or wss; the
// last two with the path /mqtt.
func (b *Broker) URL() string {
	scheme, path := "mqtt", ""
	if b.opts.WebSocket {
		scheme, path = "ws", "/mqtt"
	}
	if b.opts.TLS != nil {
		scheme += "s"
	}
	return scheme + "://" + b.Addr() + path
}

// Restart runs a stopped broker again, on the same port, and returns once it
// takes connections.
func (b *Broker) Restart() {
	b.t.Helper()
	if err := b.start(); err != nil {
		b.t.Fatal(err)
	}
}

// Kill ends the broker at once (SIGKILL) and returns when it is gone. What it
// had not written is lost. It may be called again.
func (b *Broker) Kill() { b.end(syscall.SIGKILL) }

// Stop ends the broker as an operator would (SIGTERM) and returns when it is gone.
func (b *Broker) Stop() { b.end(syscall.SIGTERM) }

// Signal sends sig to the running broker; SIGSTOP and SIGCONT make one that
// hangs, SIGHUP one that reads its users, ACL and certificates again.
func (b *Broker) Signal(sig syscall.Signal) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cmd == nil {
		b.t.Fatal("mosquittotest: no broker is running")
	}
	if err := b.cmd.Process.Signal(sig); err != nil {
		b.t.Fatal(err)
	}
}

// Output returns everything that the broker has printed so far.
func (b *Broker) Output() string { return b.output.String() }

func (b *Broker) start() error {
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto" // not on every user's PATH
		if _, err := os.Stat(path); err != nil {
			b.t.Fatal("mosquitto is not installed: apt-get install mosquitto mosquitto-clients")
		}
	}
	conf, err := b.configure()
	if err != nil {
		return err
	}
	// Its own word counts: on a port that another process has taken meanwhile a
	// connection would succeed. It says so once all listeners are bound.
	const running = " running\n"
	before := strings.Count(b.Output(), running)
	cmd := exec.Command(path, "-c", conf)
	cmd.Stdout, cmd.Stderr = b.output, b.output
	if err := child.Start(cmd); err != nil {
		return fmt.Errorf("mosquitto: %w", err)
	}
	ended := make(chan struct{})
	go func() { // ends with the process
		_ = cmd.Wait()
		close(ended)
	}()
	deadline := time.Now().Add(patience)
	for strings.Count(b.Output(), running) == before {
		select {
		case <-ended:
			return fmt.Errorf("mosquitto ended at once:\n%s", b.Output())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			<-ended
			return fmt.Errorf("mosquitto does not listen after %v:\n%s", patience, b.Output())
		}
	}
	b.mu.Lock()
	b.cmd, b.ended = cmd, ended
	b.mu.Unlock()
	return nil
}

func (b *Broker) end(sig syscall.Signal) {
	b.mu.Lock()
	cmd, ended := b.cmd, b.ended
	b.cmd = nil
	b.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(sig)
	_ = cmd.Process.Signal(syscall.SIGCONT) // it may have been stopped
	select {
	case <-ended:
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		<-ended
	}
}

// configure writes the files of the broker and returns the path of its configuration.
func (b *Broker) configure() (string, error) {
	var c strings.Builder
	fmt.Fprintf(&c, "listener %d 127.0.0.1\n", b.Port)
	if b.opts.WebSocket {
		c.WriteString("protocol websockets\n")
	}
	if tls := b.opts.TLS; tls != nil {
		fmt.Fprintf(&c, "certfile %s\nkeyfile %s\n", tls.ServerCert, tls.ServerKey)
		if tls.RequireClient {
			fmt.Fprintf(&c, "cafile %s\nrequire_certificate true\n", tls.CA)
		}
	}
	if b.plain != b.Port {
		fmt.Fprintf(&c, "listener %d 127.0.0.1\n", b.plain)
	}
	if os.Getuid() == 0 {
		c.WriteString("user root\n") // else it drops to a user who cannot read our files
	}
	if b.opts.Persistent {
		fmt.Fprintf(&c, "persistence true\npersistence_location %s/\n", b.dir)
	} else {
		c.WriteString("persistence false\n")
	}
	c.WriteString("max_queued_messages 100000\nlog_dest stderr\nlog_type error\nlog_type warning\nlog_type notice\nlog_type information\nlog_type subscribe\n")
	if b.opts.Users == nil {
		c.WriteString("allow_anonymous true\n")
	} else {
		passwords := filepath.Join(b.dir, "passwords")
		var p strings.Builder
		for name, password := range b.opts.Users {
			fmt.Fprintf(&p, "%s:%s\n", name, password)
		}
		if err := os.WriteFile(passwords, []byte(p.String()), 0o600); err != nil {
			return "", err
		}
		if out, err := exec.Command("mosquitto_passwd", "-U", passwords).CombinedOutput(); err != nil {
			return "", fmt.Errorf("mosquitto_passwd: %w: %s", err, out)
		}
		fmt.Fprintf(&c, "allow_anonymous false\npassword_file %s\n", passwords)
	}
	if b.opts.ACL != "" {
		acl := filepath.Join(b.dir, "acl")
		if err := os.WriteFile(acl, []byte(b.opts.ACL), 0o600); err != nil {
			return "", err
		}
		fmt.Fprintf(&c, "acl_file %s\n", acl)
	}
	for _, line := range b.opts.Lines {
		c.WriteString(line + "\n")
	}
	conf := filepath.Join(b.dir, "mosquitto.conf")
	return conf, os.WriteFile(conf, []byte(c.String()), 0o600)
}

// Received is one message as mosquitto_sub saw it.
type Received struct {
	Topic   string `json:"topic"`
	Payload string `json:"payload"`
	QoS     int    `json:"qos"`
	Retain  int    `json:"retain"`
}

// Subscriber is a running mosquitto_sub. It holds all that was printed until
// Next or Until take it.
type Subscriber struct {
	t testing.TB

	mu   sync.Mutex
	msgs []Received
	more chan struct{} // holds one token when msgs has grown
}

// Subscribe runs mosquitto_sub for the filters at QoS 2, over plain TCP
// whatever the broker's main listener speaks, and returns once it is
// subscribed. args are more arguments, such as "-u", "name". It ends with the
// test.
func (b *Broker) Subscribe(filters []string, args ...string) *Subscriber {
	b.t.Helper()
	path, err := exec.LookPath("mosquitto_sub")
	if err != nil {
		b.t.Fatal("mosquitto_sub is not installed: apt-get install mosquitto-clients")
	}
	id := fmt.Sprintf("mosquitto_sub-%d", b.subs.Add(1))
	full := []string{"-h", "127.0.0.1", "-p", strconv.Itoa(b.plain), "-i", id, "-q", "2", "-F", "%j"}
	for _, f := range filters {
		full = append(full, "-t", f)
	}
	cmd := exec.Command(path, append(full, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	var errs testlog.Log
	cmd.Stderr = &errs
	if err := child.Start(cmd); err != nil {
		b.t.Fatal(err)
	}
	s := &Subscriber{t: b.t, more: make(chan struct{}, 1)}
	ends := make(chan struct{})
	go func() { // ends with the process
		defer close(ends)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 4<<20)
		for lines.Scan() {
			var m Received
			if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
				continue // not a message: something it says of itself
			}
			s.mu.Lock()
			s.msgs = append(s.msgs, m)
			s.mu.Unlock()
			select {
			case s.more <- struct{}{}:
			default:
			}
		}
	}()
	b.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ends
		_ = cmd.Wait()
	})
	// mosquitto_sub does not flush what it says of itself to a pipe; the
	// broker's log tells when the last subscription is in force.
	done := regexp.MustCompile(fmt.Sprintf(": %s [012] %s\n", id, regexp.QuoteMeta(filters[len(filters)-1])))
	for deadline := time.Now().Add(patience); !done.MatchString(b.Output()); {
		select {
		case <-ends:
			b.t.Fatalf("mosquitto_sub ended: %s", errs.String())
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("mosquitto_sub is not subscribed after %v: %s", patience, errs.String())
		}
	}
	return s
}

// Next returns the next n messages and fails the test if none comes within
// patience.
func (s *Subscriber) Next(n int) []Received {
	s.t.Helper()
	i := 0
	return s.Until(func(Received) bool { i++; return i == n })
}

// Until returns all messages up to and including the first that last says yes
// to, and fails the test if none comes within patience.
func (s *Subscriber) Until(last func(Received) bool) []Received {
	s.t.Helper()
	var got []Received
	for {
		s.mu.Lock()
		for i, m := range s.msgs {
			if last(m) {
				got = append(got, s.msgs[:i+1]...)
				s.msgs = s.msgs[i+1:]
				s.mu.Unlock()
				return got
			}
		}
		got = append(got, s.msgs...)
		s.msgs = nil
		s.mu.Unlock()
		select {
		case <-s.more:
		case <-time.After(patience):
			s.t.Fatalf("mosquitto_sub has printed %d messages, then none for %v", len(got), patience)
		}
	}
}

// Certs are the files of a small certificate authority made for one test.
type Certs struct {
	CA, CADER             string // the authority, PEM and DER
	ServerCert, ServerKey string // for 127.0.0.1 and localhost
	ClientCert, ClientKey string // common name "client"

	RequireClient bool // the broker asks for a client certificate

	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
	dir    string
	serial int64
}

// NewCerts makes an authority, a server's and a client's certificate, valid
// for a day, in a folder of the test.
func NewCerts(t testing.TB) *Certs {
	t.Helper()
	c := &Certs{dir: t.TempDir(), serial: 1}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "Test Authority"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if c.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	c.caKey = key
	c.CADER = c.write(t, "ca.der", der)
	c.CA = c.write(t, "ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	c.ServerCert, c.ServerKey = c.Issue(t, "server", func(tmpl *x509.Certificate) {
		tmpl.DNSNames = []string{"localhost"}
		tmpl.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	})
	c.ClientCert, c.ClientKey = c.Issue(t, "client", nil)
	return c
}

// Issue writes a certificate for name, signed by the authority, and its key,
// both PEM, to NAME.crt and NAME.key. change may alter it before it is signed.
func (c *Certs) Issue(t testing.TB, name string, change func(*x509.Certificate)) (cert, key string) {
	t.Helper()
	c.serial++
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(c.serial),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.ca, &k.PublicKey, c.caKey)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert = c.write(t, name+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	key = c.write(t, name+".key", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kder}))
	return cert, key
}

func (c *Certs) write(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func freePort(t testing.TB) int {
	t.Helper()
	n, err := port.Free()
	if err != nil {
		t.Fatal(err)
	}
	return n
}
