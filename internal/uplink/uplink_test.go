package uplink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/mqtt/mosquittotest"
)

// check holds what a subscriber received against messages 0 to n-1 of publish:
// none is missing, each topic is in order but for repetitions, and no more
// than most messages came twice.
func check(t *testing.T, got []mosquittotest.Received, n, most int) {
	t.Helper()
	seen := make([]int, n)
	newest := map[string]int{}
	repeats := 0
	var lost []int
	for _, m := range got {
		i, err := strconv.Atoi(m.Payload)
		if err != nil || i < 0 || i >= n {
			t.Fatalf("unexpected message %+v", m)
		}
		if seen[i]++; seen[i] > 1 {
			repeats++
			continue
		}
		if prev, ok := newest[m.Topic]; ok && i <= prev {
			t.Errorf("%s: %d came after %d for the first time", m.Topic, i, prev)
		}
		newest[m.Topic] = i
	}
	for i, times := range seen {
		if times == 0 {
			lost = append(lost, i)
		}
	}
	if len(lost) > 0 {
		t.Errorf("%d messages are lost: %v", len(lost), lost[:min(10, len(lost))])
	}
	if repeats > most {
		t.Errorf("%d repetitions, at most %d", repeats, most)
	}
	t.Logf("%d messages, %d repetitions", n, repeats)
}

// number says that a message is number n.
func number(n int) func(mosquittotest.Received) bool {
	return func(m mosquittotest.Received) bool { return m.Payload == strconv.Itoa(n) }
}

func TestDelivers(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{})
	sub := b.Subscribe([]string{"gw1/#", "fieldgate/#"})
	r := run(t, settings(b.URL()), nil)
	if m := sub.Next(1)[0]; m.Topic != online.Topic || m.Payload != "online" {
		t.Errorf("first message %+v, want the birth", m)
	}
	r.connected(t)
	const n = 1000
	for qos := range uint8(3) {
		r.publish(t, 0, n, qos)
		got := sub.Next(n)
		for _, m := range got {
			if m.QoS != int(qos) {
				t.Fatalf("%+v, want QoS %d", m, qos)
			}
		}
		check(t, got, n, 0)
		r.drained(t)
	}
	s := r.Status()
	if s.Word != "Connected" || s.Version != "" || s.URL != b.URL() || s.Acked != 3*n || s.InFlight != 0 || s.Err != "" || s.Connects != 1 {
		t.Errorf("Status = %+v", s)
	}
	r.publish(t, 0, 100, 1)
	r.stop() // sends what is left
	check(t, sub.Next(100), 100, 0)
	if m := sub.Next(1)[0]; m.Topic != offline.Topic || m.Payload != "offline" {
		t.Errorf("last message %+v, want that we are offline", m)
	}
	if m := b.Subscribe([]string{offline.Topic}).Next(1)[0]; m.Payload != "offline" || m.Retain != 1 {
		t.Errorf("retained state %+v, want offline", m)
	}
	if s := r.Status(); s.Word != "Stopped" || s.Connected {
		t.Errorf("Status after the stop = %+v", s)
	}
	if n := strings.Count(r.log.String(), "\n"); n != 1 {
		t.Errorf("%d log lines, want one:\n%s", n, r.log)
	}
}

func TestFlagsAndSizes(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{})
	sub := b.Subscribe([]string{"big/#"})
	r := run(t, settings(b.URL()), nil)
	long := strings.Repeat("t", 1000)
	msgs := []mqtt.Message{
		{Topic: "big/empty", QoS: 1},
		{Topic: "big/127", Payload: []byte(strings.Repeat("x", 127-2-7-2)), QoS: 1},
		{Topic: "big/128", Payload: []byte(strings.Repeat("x", 128-2-7-2)), QoS: 1},
		{Topic: "big/16384", Payload: []byte(strings.Repeat("x", 16384-2-9-2)), QoS: 1},
		{Topic: "big/" + long, Payload: []byte(strings.Repeat("x", 300_000)), QoS: 1},
		{Topic: "big/0", Payload: []byte(strings.Repeat("x", 2_200_000)), QoS: 0},
		{Topic: "big/retained", Payload: []byte("r"), QoS: 1, Retain: true},
	}
	if err := r.q.Deliver(t.Context(), msgs...); err != nil {
		t.Fatal(err)
	}
	for i, m := range sub.Next(len(msgs)) {
		w := msgs[i]
		if m.Topic != w.Topic || m.Payload != string(w.Payload) || m.QoS != int(w.QoS) {
			t.Errorf("message %d: topic %.40q, %d bytes, QoS %d; want %.40q, %d, %d", i, m.Topic, len(m.Payload), m.QoS, w.Topic, len(w.Payload), w.QoS)
		}
	}
	if m := b.Subscribe([]string{"big/retained"}).Next(1)[0]; m.Retain != 1 {
		t.Errorf("%+v, want it retained", m)
	}
}

func TestStopsAtOnceWithoutABroker(t *testing.T) {
	l := listen(t)
	_ = l.Close()
	r := run(t, settings("mqtt://"+l.Addr().String()), nil)
	r.publish(t, 0, 10, 1)
	eventually(t, "fault", func() bool { return r.Status().Err != "" })
	start := time.Now()
	r.stop()
	if d := time.Since(start); d > stopPatience*4/5 {
		t.Errorf("the stop took %v", d)
	}
	if n := r.q.Stats().Messages; n != 10 {
		t.Errorf("%d messages in the queue, want 10", n)
	}
}

func TestSecondURL(t *testing.T) {
	t.Parallel()
	l := listen(t)
	_ = l.Close()
	b := mosquittotest.Start(t, mosquittotest.Options{})
	r := run(t, settings("mqtt://"+l.Addr().String(), "mqtt://user:secret@"+b.Addr()), nil)
	r.connected(t)
	if s := r.Status(); s.URL != "mqtt://"+b.Addr() {
		t.Errorf("URL = %q", s.URL)
	}
	b.Kill()
	eventually(t, "both are reported", func() bool { return strings.Contains(r.Status().Err, l.Addr().String()+": connection refused") })
	if err := r.Status().Err; !strings.Contains(err, b.Addr()+": connection refused") || strings.Contains(err, "secret") {
		t.Errorf("Err = %q, want both brokers and no secret", err)
	}
}

// TestTransports connects by every way there is, and with every kind of
// certificate file.
func TestTransports(t *testing.T) {
	t.Parallel()
	certs := mosquittotest.NewCerts(t)
	mutual := *certs
	mutual.RequireClient = true
	p12 := filepath.Join(t.TempDir(), "client.p12")
	out, err := exec.Command("openssl", "pkcs12", "-export", "-in", certs.ClientCert, "-inkey", certs.ClientKey, "-certfile", certs.CA, "-passout", "pass:s3cret", "-out", p12).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
	both := filepath.Join(t.TempDir(), "both.pem")
	var pair []byte
	for _, f := range []string{certs.ClientCert, certs.ClientKey} {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		pair = append(pair, data...)
	}
	if err := os.WriteFile(both, pair, 0o600); err != nil {
		t.Fatal(err)
	}
	brokers := map[string]*mosquittotest.Broker{}
	start := func(name string, opts mosquittotest.Options) { brokers[name] = mosquittotest.Start(t, opts) }
	start("mqtt", mosquittotest.Options{Users: map[string]string{"gw1": "s3cret"}})
	start("ws", mosquittotest.Options{WebSocket: true})
	start("mqtts", mosquittotest.Options{TLS: certs})
	start("mutual", mosquittotest.Options{TLS: &mutual, Lines: []string{"use_identity_as_username true"}})
	start("wss", mosquittotest.Options{TLS: certs, WebSocket: true})

	for _, row := range []struct {
		name, broker, word string
		change             func(*config.Uplink)
	}{
		{"tcp with password", "mqtt", "Connected", func(c *config.Uplink) {
			c.Username, c.Password = "gw1", config.SecretSource{Plain: config.NewSecret("s3cret")}
		}},
		{"websocket", "ws", "Connected (WS)", nil},
		{"tls", "mqtts", "Connected (TLS)", func(c *config.Uplink) { c.TLS.CA = certs.CA }},
		{"tls, authority in DER", "mqtts", "Connected (TLS)", func(c *config.Uplink) { c.TLS.CA = certs.CADER }},
		{"tls, host by name", "mqtts", "Connected (TLS)", func(c *config.Uplink) {
			c.TLS.CA = certs.CA
			c.URLs[0] = strings.Replace(c.URLs[0], "127.0.0.1", "localhost", 1)
		}},
		{"tls, server name", "mqtts", "Connected (TLS)", func(c *config.Uplink) { c.TLS.CA, c.TLS.ServerName = certs.CA, "localhost" }},
		{"tls, not verified", "mqtts", "Connected (TLS)", func(c *config.Uplink) { c.TLS.Insecure = true }},
		{"tls, client certificate in PEM", "mutual", "Connected (TLS)", func(c *config.Uplink) {
			c.TLS.CA, c.TLS.Cert, c.TLS.Key = certs.CA, certs.ClientCert, certs.ClientKey
		}},
		{"tls, certificate and key in one file", "mutual", "Connected (TLS)", func(c *config.Uplink) { c.TLS.CA, c.TLS.Cert = certs.CA, both }},
		{"tls, client certificate in PKCS#12", "mutual", "Connected (TLS)", func(c *config.Uplink) {
			c.TLS.CA, c.TLS.Cert, c.TLS.Password = certs.CA, p12, config.SecretSource{Plain: config.NewSecret("s3cret")}
		}},
		{"websocket over tls", "wss", "Connected (WSS)", func(c *config.Uplink) { c.TLS.CA = certs.CA }},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := brokers[row.broker]
			cfg := settings(b.URL())
			if row.change != nil {
				row.change(&cfg)
			}
			args := []string{}
			if row.broker == "mqtt" {
				args = []string{"-u", "gw1", "-P", "s3cret"}
			}
			sub := b.Subscribe([]string{"gw1/#"}, args...)
			r := run(t, cfg, nil)
			r.publish(t, 0, 300, 1)
			check(t, sub.Next(300), 300, 0)
			s := r.Status()
			if s.Word != row.word || strings.Contains(row.name, "tls") != (s.Version == "TLS 1.3" && strings.HasPrefix(s.Cipher, "TLS_")) {
				t.Errorf("Status = %+v, want %s", s, row.word)
			}
		})
	}
}

// TestFaults makes everything go wrong that can before a connection is up, and
// looks whether the user is told what and how to mend it.
func TestFaults(t *testing.T) {
	certs := mosquittotest.NewCerts(t)
	other := mosquittotest.NewCerts(t)
	mutual := *certs
	mutual.RequireClient = true
	old := *certs
	old.ServerCert, old.ServerKey = certs.Issue(t, "old", func(c *x509Certificate) {
		c.IPAddresses = loopback
		c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
	})
	foreign := *certs
	foreign.ServerCert, foreign.ServerKey = certs.Issue(t, "foreign", func(c *x509Certificate) { c.DNSNames = []string{"elsewhere.example"} })
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	p12 := filepath.Join(dir, "client.p12")
	out, err := exec.Command("openssl", "pkcs12", "-export", "-in", certs.ClientCert, "-inkey", certs.ClientKey, "-passout", "pass:s3cret", "-out", p12).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
	locked := filepath.Join(dir, "locked.key")
	out, err = exec.Command("openssl", "pkcs8", "-topk8", "-in", certs.ClientKey, "-passout", "pass:s3cret", "-out", locked).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}

	closed := listen(t)
	_ = closed.Close()
	silent := listen(t) // takes connections and says nothing
	plain := mosquittotest.Start(t, mosquittotest.Options{Users: map[string]string{"gw1": "s3cret"}}).Addr()
	secure := mosquittotest.Start(t, mosquittotest.Options{TLS: certs}).Addr()
	mutualAddr := mosquittotest.Start(t, mosquittotest.Options{TLS: &mutual}).Addr()
	oldAddr := mosquittotest.Start(t, mosquittotest.Options{TLS: &old}).Addr()
	foreignAddr := mosquittotest.Start(t, mosquittotest.Options{TLS: &foreign}).Addr()
	web := webServer(t)
	answering := func(connack ...byte) string {
		b := newFakeBroker(t, func(packetIn, uint16) ([]byte, bool) { return connack, len(connack) > 0 })
		return b.url()
	}

	for _, row := range []struct {
		name   string
		url    string
		change func(*config.Uplink)
		step   Step // "": mosquitto may close before its reason is read
		want   string
	}{
		{"no such scheme", "http://h", nil, StepFiles, "begins with mqtt://, mqtts://, ws:// or wss://"},
		{"no such host", "mqtt://no-such-host.invalid", nil, StepDNS, "no-such-host.invalid"},
		{"nothing there", "mqtt://" + closed.Addr().String(), nil, StepTCP, "connection refused by " + closed.Addr().String() + "; is the broker running, and is this its port?"},
		{"says nothing", "mqtt://" + silent.Addr().String(), nil, StepConnect, "no answer to CONNECT within 300ms; is this the port of an MQTT broker?"},
		{"says nothing, tls", "mqtts://" + silent.Addr().String(), nil, StepTLS, "longer than 300ms; is this the port for TLS?"},
		{"says nothing, ws", "ws://" + silent.Addr().String(), nil, StepWebSocket, "did not answer within 300ms"},
		{"wrong password", "mqtt://" + plain, func(c *config.Uplink) {
			c.Username, c.Password = "gw1", config.SecretSource{Plain: config.NewSecret("wrong")}
		}, StepConnect, "the broker does not let us in; check username, password"},
		{"password not there", "mqtt://" + plain, func(c *config.Uplink) { c.Password.Env = "FIELDGATE_TEST_NOT_SET" }, StepFiles, "FIELDGATE_TEST_NOT_SET"},
		{"tls on a plain port", "mqtts://" + plain, nil, StepTLS, ""},
		{"plain on a tls port", "mqtt://" + secure, nil, StepConnect, "is this a port for TLS (mqtts://)?"},
		{"tls on a web server", "mqtts://" + web, nil, StepTLS, "does not speak TLS; is this the port for TLS"},
		{"plain on a web server", "mqtt://" + web, nil, StepConnect, "is this the port of an MQTT broker?"},
		{"web server without the path", "ws://" + web, nil, StepWebSocket, "the server has no /mqtt; check the path"},
		{"web server that is no broker", "ws://" + web + "/page", nil, StepWebSocket, "the server answers 200 OK"},
		{"unknown authority", "mqtts://" + secure, nil, StepTLS, `authority this machine does not know (issuer "CN=Test Authority"); give the authority's certificate as tls.ca`},
		{"other authority", "mqtts://" + secure, func(c *config.Uplink) { c.TLS.CA = other.CA }, StepTLS, "does not know"},
		{"expired", "mqtts://" + oldAddr, func(c *config.Uplink) { c.TLS.CA = certs.CA }, StepTLS, "clock is outside of that; renew it, or set the clock"},
		{"wrong host", "mqtts://" + foreignAddr, func(c *config.Uplink) { c.TLS.CA = certs.CA }, StepTLS, "is not for 127.0.0.1"},
		{"no client certificate", "mqtts://" + mutualAddr, func(c *config.Uplink) { c.TLS.CA = certs.CA }, StepTLS, "the broker wants a client certificate; give it"},
		{"foreign client certificate", "mqtts://" + mutualAddr, func(c *config.Uplink) {
			c.TLS.CA, c.TLS.Cert, c.TLS.Key = certs.CA, other.ClientCert, other.ClientKey
		}, StepTLS, "the broker does not accept our client certificate"},
		{"no such ca file", "mqtts://" + secure, func(c *config.Uplink) { c.TLS.CA = "/no/such.pem" }, StepFiles, "tls.ca: open /no/such.pem"},
		{"ca file of nonsense", "mqtts://" + secure, func(c *config.Uplink) { c.TLS.CA = file("ca.txt", "nonsense") }, StepFiles, "neither PEM nor DER"},
		{"key for a ca", "mqtts://" + secure, func(c *config.Uplink) { c.TLS.CA = certs.ClientKey }, StepFiles, `a PEM block "EC PRIVATE KEY"`},
		{"key of another", "mqtts://" + secure, func(c *config.Uplink) { c.TLS.Cert, c.TLS.Key = certs.ClientCert, other.ClientKey }, StepFiles, "private key does not match"},
		{"key with a password", "mqtts://" + secure, func(c *config.Uplink) { c.TLS.Cert, c.TLS.Key = certs.ClientCert, locked }, StepFiles, "the key is encrypted; decrypt it"},
		{"pkcs12 with another password", "mqtts://" + secure, func(c *config.Uplink) {
			c.TLS.Cert, c.TLS.Password = p12, config.SecretSource{Plain: config.NewSecret("wrong")}
		}, StepFiles, "tls.password is not its password"},
		{"pkcs12 of nonsense", "mqtts://" + secure, func(c *config.Uplink) { c.TLS.Cert = file("x.p12", "nonsense") }, StepFiles, "neither PEM nor a PKCS#12 file"},
		{"old protocol only", answering(0x20, 2, 0, 1), nil, StepConnect, "does not speak MQTT 3.1.1"},
		{"client id refused", answering(0x20, 2, 0, 2), nil, StepConnect, `does not accept the client id "gw1-cloud"; set client_id`},
		{"unavailable", answering(0x20, 2, 0, 3), nil, StepConnect, "MQTT is unavailable"},
		{"bad user", answering(0x20, 2, 0, 4), nil, StepConnect, "user name or password are wrong"},
		{"unknown code", answering(0x20, 2, 0, 99), nil, StepConnect, "unknown return code 99"},
		{"hangs up", answering(), nil, StepConnect, "closed the connection instead of an answer to CONNECT"},
		{"bad proxy", "mqtt://" + plain, func(c *config.Uplink) { c.Proxy = "nonsense" }, StepProxy, "no address of a proxy; write http://HOST:PORT"},
		{"unknown proxy", "mqtt://" + plain, func(c *config.Uplink) { c.Proxy = "ftp://h" }, StepProxy, "no kind of proxy"},
		{"proxy not there", "mqtt://" + plain, func(c *config.Uplink) { c.Proxy = "http://" + closed.Addr().String() }, StepTCP, "is the proxy running"},
		{"proxy says nothing", "mqtt://" + plain, func(c *config.Uplink) { c.Proxy = "http://" + silent.Addr().String() }, StepProxy, "did not reach " + plain + " within 300ms"},
		{"no proxy but a broker", "mqtt://" + plain, func(c *config.Uplink) { c.Proxy = "http://" + plain }, StepProxy, "is this an HTTP proxy?"},
		{"no proxy but a web server", "mqtt://" + plain, func(c *config.Uplink) { c.Proxy = "http://" + web }, StepProxy, "answers 404 Not Found"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			cfg := settings(row.url)
			if strings.Contains(row.name, "says nothing") {
				cfg.ConnectTimeout = 300 * time.Millisecond
			}
			if row.change != nil {
				row.change(&cfg)
			}
			c, err := Connect(t.Context(), cfg, row.url, ConnOptions{})
			if err == nil {
				c.Close()
				t.Fatal("connected")
			}
			var f *Fault
			if !errors.As(err, &f) || row.step != "" && f.Step != row.step || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v\nwant step %s and %q", err, row.step, row.want)
			}
		})
	}
}

// TestCertificateRenewed changes the files of an uplink that cannot connect.
func TestCertificateRenewed(t *testing.T) {
	t.Parallel()
	certs := mosquittotest.NewCerts(t)
	mutual := *certs
	mutual.RequireClient = true
	b := mosquittotest.Start(t, mosquittotest.Options{TLS: &mutual})
	stranger := mosquittotest.NewCerts(t)
	cfg := settings(b.URL())
	cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key = certs.CA, stranger.ClientCert, stranger.ClientKey
	r := run(t, cfg, func(u *Uplink) { u.backoff.most = 200 * time.Millisecond })
	r.publish(t, 0, 10, 1)
	eventually(t, "refusal", func() bool { return strings.Contains(r.Status().Err, "client certificate") })
	for from, to := range map[string]string{certs.ClientCert: stranger.ClientCert, certs.ClientKey: stranger.ClientKey} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.drained(t)
}

// TestBrokerKilled kills the broker (SIGKILL) in the middle of a stream, again
// and again, and starts it anew.
func TestBrokerKilled(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{})
	k := newLink(t, b.Addr())
	k.setRefuse(true)
	r := run(t, settings(k.url()), nil)
	const n, kills = 2000, 3
	var published atomic.Int32
	var wg sync.WaitGroup
	// At a pace that mosquitto passes on at once: what it has acknowledged is
	// then on its way to the subscriber, and does not die with it.
	wg.Go(func() {
		for i := 0; i < n; i += 10 {
			r.publish(t, i, i+10, 1)
			published.Store(int32(i + 10))
			time.Sleep(3 * time.Millisecond)
		}
	})
	var got []mosquittotest.Received
	for round := range kills + 1 {
		// The link lets the uplink in once somebody looks on.
		var mu sync.Mutex
		cfg := settings()
		cfg.ClientID = "subscriber"
		sub, err := Connect(t.Context(), cfg, b.URL(), ConnOptions{Handler: func(m mqtt.Message) []<-chan struct{} {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, mosquittotest.Received{Topic: m.Topic, Payload: string(m.Payload)})
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sub.Subscribe(t.Context(), "gw1/#", 0); err != nil {
			t.Fatal(err)
		}
		k.setRefuse(false)
		if round == kills {
			wg.Wait()
			r.drained(t)
			eventually(t, "last message", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return len(got) > 0 && number(n-1)(got[len(got)-1])
			})
			sub.Close()
			break
		}
		r.connected(t)
		eventually(t, "some messages", func() bool { return published.Load() > int32((round+1)*n/(kills+2)) })
		k.setRefuse(true)
		b.Kill()
		<-sub.Lost()
		sub.Close() // has handed on all that was read
		b.Restart()
	}
	check(t, got, n, kills*Width)
}

// TestBrokerRestarted restarts the broker as an operator would, under a backlog.
func TestBrokerRestarted(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{Persistent: true})
	sub := b.Subscribe([]string{"gw1/#"}, "-c")
	r := run(t, settings(b.URL()), nil)
	const n, restarts = 9000, 2
	for i := range restarts + 1 {
		r.connected(t)
		r.publish(t, i*n/3, (i+1)*n/3, 1)
		if i < restarts {
			b.Stop()
			b.Restart()
		}
	}
	// mosquitto itself repeats messages to a subscriber that it had no answer
	// from: only losses and order are ours.
	check(t, sub.Until(number(n-1)), n, n)
	r.drained(t)
}

// TestLinkCut cuts the link at many positions in the bytes.
func TestLinkCut(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{})
	sub := b.Subscribe([]string{"gw1/#"})
	k := newLink(t, b.Addr())
	r := run(t, settings(k.url()), func(u *Uplink) { u.backoff.least = time.Millisecond })
	const n, cuts = 3000, 40
	for i := range cuts {
		r.connected(t)
		before := r.Status().Connects
		k.cutAfter(int64(1 + 23*i)) // less than a batch takes
		r.publish(t, i*n/cuts, (i+1)*n/cuts, 1)
		eventually(t, "cut", func() bool { return r.Status().Connects > before })
	}
	r.drained(t)
	check(t, sub.Until(number(n-1)), n, cuts*Width)
}

// TestBlackHole lets the link swallow everything: the watchdog ends the
// connection and the next one delivers.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{})
	sub := b.Subscribe([]string{"gw1/#", offline.Topic})
	k := newLink(t, b.Addr())
	r := run(t, settings(k.url()), func(u *Uplink) { u.ackPatience = 400 * time.Millisecond })
	if m := sub.Next(1)[0]; m.Payload != "online" {
		t.Fatalf("%+v, want the birth", m)
	}
	r.connected(t)
	k.hole()
	r.publish(t, 0, 500, 1)
	eventually(t, "noticed", func() bool { return strings.Contains(r.Status().Err, "does not acknowledge") })
	k.cut()
	k.flow()
	got := sub.Until(number(499))
	var data []mosquittotest.Received
	var states []string
	for _, m := range got {
		if m.Topic == offline.Topic {
			states = append(states, m.Payload)
			continue
		}
		data = append(data, m)
	}
	check(t, data, 500, Width)
	if s := fmt.Sprint(states); s != "[offline online]" {
		t.Errorf("states %v, want the will and then the birth", states)
	}
}

// TestBrokerHangs stops the process of the broker: connections are taken by the
// kernel and nothing is answered.
func TestBrokerHangs(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{})
	sub := b.Subscribe([]string{"gw1/#"})
	cfg := settings(b.URL())
	cfg.ConnectTimeout = 300 * time.Millisecond
	r := run(t, cfg, func(u *Uplink) { u.ackPatience = 300 * time.Millisecond })
	r.connected(t)
	b.Signal(syscall.SIGSTOP)
	r.publish(t, 0, 500, 1)
	eventually(t, "CONNECT unanswered", func() bool { return strings.Contains(r.Status().Err, "no answer to CONNECT") })
	b.Signal(syscall.SIGCONT)
	check(t, sub.Until(number(499)), 500, 2*Width)
	r.drained(t)
}

// TestNeverAcknowledged is a broker that accepts and acknowledges nothing: one
// log line, no message given up, and it never counts as connected.
func TestNeverAcknowledged(t *testing.T) {
	t.Parallel()
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		if p.kind == 3 {
			return nil, true
		}
		return polite(p, id)
	})
	r := run(t, settings(b.url()), func(u *Uplink) {
		u.ackPatience, u.backoff.least, u.backoff.most = 50*time.Millisecond, time.Millisecond, 10*time.Millisecond
	})
	r.publish(t, 0, 100, 1)
	eventually(t, "several tries", func() bool { return b.connects.Load() > 5 })
	r.stop()
	if s := r.q.Stats(); s.Messages != 100 {
		t.Errorf("queue %+v, want all 100 in it", s)
	}
	if log := r.log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "accepts messages and does not acknowledge them") {
		t.Errorf("log, want one line:\n%s", log)
	}
}

// TestStuckWindow is a broker that acknowledges the birth and then stops.
func TestStuckWindow(t *testing.T) {
	t.Parallel()
	var stuck atomic.Bool
	var got sync.Map
	stuck.Store(true)
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		if p.kind == 3 && p.topic != online.Topic {
			if stuck.Load() {
				return nil, true
			}
			got.Store(string(p.body), true)
		}
		return polite(p, id)
	})
	r := run(t, settings(b.url()), func(u *Uplink) {
		u.ackPatience, u.backoff.least = 100*time.Millisecond, time.Millisecond
	})
	r.publish(t, 0, 100, 1)
	eventually(t, "freed by the watchdog", func() bool { return b.connects.Load() > 2 })
	stuck.Store(false)
	r.drained(t)
	for i := range 100 {
		if _, ok := got.Load(strconv.Itoa(i)); !ok {
			t.Errorf("message %d is lost", i)
		}
	}
}

// TestRefusedTopic is a broker that closes the connection over one topic, as
// AWS does: what it refuses is given up and named, all else arrives in order.
func TestRefusedTopic(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name    string
		qos     uint8
		goodbye string // what it sends before it closes the connection
	}{
		{"QoS 0", 0, ""},
		{"QoS 1", 1, ""},
		{"QoS 1, with DISCONNECT", 1, "\xE0\x00"}, // mochi, our own broker
	} {
		t.Run(row.name, func(t *testing.T) {
			var mu sync.Mutex
			var got []string
			b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
				if p.kind == 3 && p.topic == "gw1/secret" {
					return []byte(row.goodbye), false
				}
				if p.kind == 3 && p.topic == "gw1/p" {
					mu.Lock()
					got = append(got, string(p.body))
					mu.Unlock()
				}
				return polite(p, id)
			})
			r := run(t, settings(b.url()), func(u *Uplink) {
				u.backoff.least, u.backoff.most, u.calm = time.Millisecond, 5*time.Millisecond, 20*time.Millisecond
			})
			const n = 300
			for i := range n {
				if i%50 == 25 {
					if err := r.q.Deliver(t.Context(), mqtt.Message{Topic: "gw1/secret", Payload: []byte("x"), QoS: row.qos}); err != nil {
						t.Fatal(err)
					}
				}
				if err := r.q.Deliver(t.Context(), mqtt.Message{Topic: "gw1/p", Payload: []byte(strconv.Itoa(i)), QoS: 1}); err != nil {
					t.Fatal(err)
				}
			}
			r.drained(t)
			mu.Lock()
			defer mu.Unlock()
			next := 0
			for _, p := range got {
				i, err := strconv.Atoi(p)
				if err != nil || i > next {
					t.Fatalf("%s came when %d was due", p, next)
				}
				if i == next {
					next++
				}
			}
			if next != n {
				t.Errorf("messages from %d on are lost", next)
			}
			if row.qos == 0 {
				return // a few go unseen before there is a suspicion
			}
			if s := r.Status(); s.Refused != n/50 {
				t.Errorf("Refused = %d, want %d", s.Refused, n/50)
			}
			if log := r.log.String(); strings.Count(log, "message given up") != topicFaults || !strings.Contains(log, "topic=gw1/secret") {
				t.Errorf("log, want %d messages given up:\n%s", topicFaults, log)
			}
		})
	}
}

// TestRefusedState is a broker that closes the connection over the topic of
// our own state.
func TestRefusedState(t *testing.T) {
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		if p.kind == 3 && p.topic == online.Topic {
			return nil, false
		}
		return polite(p, id)
	})
	r := run(t, settings(b.url()), func(u *Uplink) { u.backoff.least, u.backoff.most = time.Millisecond, 5*time.Millisecond })
	r.publish(t, 0, 100, 1)
	r.drained(t)
	if n := b.connects.Load(); n != stateRefusals+1 {
		t.Errorf("%d connections, want %d", n, stateRefusals+1)
	}
}

// TestRefusedByACL is mosquitto's way: it acknowledges and drops.
func TestRefusedByACL(t *testing.T) {
	b := mosquittotest.Start(t, mosquittotest.Options{ACL: "topic write gw1/p0\ntopic write fieldgate/#\ntopic read #\n"})
	sub := b.Subscribe([]string{"gw1/#"})
	r := run(t, settings(b.URL()), nil)
	r.publish(t, 0, 300, 1)
	for i, m := range sub.Next(100) {
		if m.Topic != "gw1/p0" || m.Payload != strconv.Itoa(3*i) {
			t.Fatalf("%+v, want p0 %d", m, 3*i)
		}
	}
	r.drained(t)
}

// TestHangsUpAfterEachPacket is a broker that takes one message per connection:
// nothing is lost, nothing is given up, the log stays short.
func TestHangsUpAfterEachPacket(t *testing.T) {
	t.Parallel()
	var taken atomic.Int32
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		out, ok := polite(p, id)
		if p.kind == 3 && p.topic != online.Topic {
			taken.Add(1)
			return out, false
		}
		return out, ok
	})
	r := run(t, settings(b.url()), func(u *Uplink) { u.backoff.least, u.backoff.most = time.Millisecond, 2*time.Millisecond })
	r.publish(t, 0, 30, 1)
	r.drained(t)
	r.stop()
	if s := r.Status(); s.Refused != 0 || s.Acked != 30 {
		t.Errorf("Status = %+v, want 30 acknowledged", s)
	}
	if n := strings.Count(r.log.String(), "\n"); n > 6 {
		t.Errorf("%d log lines:\n%s", n, r.log)
	}
}

// TestTakesNothing is a broker that lets everybody in and hangs up over whatever
// is published, and is then mended: a few messages are lost to the suspicion that
// it is they, the rest waits.
func TestTakesNothing(t *testing.T) {
	t.Parallel()
	var ill atomic.Bool
	ill.Store(true)
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		if p.kind == 3 && ill.Load() {
			return nil, false
		}
		return polite(p, id)
	})
	r := run(t, settings(b.url()), func(u *Uplink) {
		u.backoff.least, u.backoff.most, u.calm = time.Microsecond, 2*time.Microsecond, time.Millisecond
	})
	r.publish(t, 0, 300, 1)
	eventually(t, "patience", func() bool { return r.Status().Refused == untakenMost })
	enough := b.connects.Load() + 10*strikesMost
	eventually(t, "further tries", func() bool { return b.connects.Load() >= enough })
	ill.Store(false)
	r.drained(t)
	if s := r.Status(); s.Refused != untakenMost || s.Acked != 300-untakenMost {
		t.Errorf("%d given up and %d acknowledged, want %d and %d", s.Refused, s.Acked, untakenMost, 300-untakenMost)
	}
}

// TestTwoClientsWithOneID lets a second client fight for the id.
func TestTwoClientsWithOneID(t *testing.T) {
	b := mosquittotest.Start(t, mosquittotest.Options{})
	r := run(t, settings(b.URL()), func(u *Uplink) { u.backoff.least = time.Millisecond })
	for range 5 {
		r.connected(t)
		before := r.Status().Connects
		c, err := Connect(t.Context(), settings(), b.URL(), ConnOptions{})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "thrown out and back", func() bool { return r.Status().Connects > before })
		c.Close()
	}
	if err := r.Status().Err; !strings.Contains(err, `does another client use the client id "gw1-cloud"`) {
		t.Errorf("Err = %q", err)
	}
}

// TestStopSendsWhatIsLeft stops in the middle of a backlog.
func TestStopSendsWhatIsLeft(t *testing.T) {
	b := mosquittotest.Start(t, mosquittotest.Options{})
	sub := b.Subscribe([]string{"gw1/#"})
	r := run(t, settings(b.URL()), nil)
	r.connected(t)
	r.publish(t, 0, 5000, 1)
	r.stop()
	if s := r.q.Stats(); s.Messages != 0 {
		t.Errorf("queue %+v, want it empty", s)
	}
	check(t, sub.Next(5000), 5000, 0)
}

// TestStopHasALimit stops with a broker that has ceased to acknowledge.
func TestStopHasALimit(t *testing.T) {
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		if p.kind == 3 && p.topic != online.Topic {
			return nil, true
		}
		return polite(p, id)
	})
	r := run(t, settings(b.url()), func(u *Uplink) { u.stopPatience = 200 * time.Millisecond })
	r.connected(t)
	r.publish(t, 0, 1000, 1)
	start := time.Now()
	r.stop()
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("the stop took %v", d)
	}
	if s := r.q.Stats(); s.Messages != 1000 || s.Handed != 0 {
		t.Errorf("queue %+v, want all 1000 waiting", s)
	}
}

// TestHandlerAndReply is the way down: a message to the handler, an answer
// through the queue.
func TestHandlerAndReply(t *testing.T) {
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		out, ok := polite(p, id)
		if p.kind == 1 {
			out = append(out, appendPublish(nil, mqtt.Message{Topic: "cmd/x", Payload: []byte("55")}, 1, 7)...)
			out = append(out, appendPublish(nil, mqtt.Message{Topic: "cmd/\xff", Payload: []byte("bad")}, 0, 0)...)
		}
		return out, ok
	})
	got := make(chan mqtt.Message, 10)
	r := run(t, settings(b.url()), func(u *Uplink) {
		subscribe(u, Subscription{Filter: "cmd/#", QoS: 1, Handle: func(m mqtt.Message, from mqtt.Origin) <-chan struct{} {
			from.Reply(mqtt.Message{Topic: m.Topic + "/ack", QoS: 1})
			got <- m
			return nil
		}})
	})
	if m := <-got; m.Topic != "cmd/x" || string(m.Payload) != "55" || m.QoS != 1 {
		t.Errorf("handler was given %+v", m)
	}
	eventually(t, "reply is acknowledged", func() bool { return r.Status().Acked == 1 })
}

// TestNothingIsLeftBehind reconnects many times and counts goroutines.
func TestNothingIsLeftBehind(t *testing.T) {
	b := mosquittotest.Start(t, mosquittotest.Options{})
	k := newLink(t, b.Addr())
	before := runtime.NumGoroutine()
	r := run(t, settings(k.url()), func(u *Uplink) { u.backoff.least = time.Millisecond })
	for i := range 30 {
		r.connected(t)
		connects := r.Status().Connects
		r.publish(t, i*10, i*10+10, uint8(i%3))
		k.cut()
		eventually(t, "connected again", func() bool { return r.Status().Connects > connects })
	}
	r.drained(t)
	r.stop()
	k.cut()
	eventually(t, "goroutines ended", func() bool { return runtime.NumGoroutine() <= before })
}

func TestConn(t *testing.T) {
	b := mosquittotest.Start(t, mosquittotest.Options{})
	got := make(chan mqtt.Message, 10)
	c, err := Connect(t.Context(), settings(), b.URL(), ConnOptions{Handler: func(m mqtt.Message) []<-chan struct{} { got <- m; return nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if qos, err := c.Subscribe(t.Context(), "a/+", 2); err != nil || qos != 2 {
		t.Fatalf("Subscribe = %d, %v", qos, err)
	}
	if _, err := c.Subscribe(t.Context(), "a#", 0); !errors.Is(err, mqtt.ErrInvalid) {
		t.Errorf("Subscribe to a# = %v", err)
	}
	for qos := range uint8(3) {
		want := mqtt.Message{Topic: "a/b", Payload: []byte{qos}, QoS: qos}
		if err := c.Publish(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if m := <-got; m.Topic != want.Topic || m.QoS != qos || len(m.Payload) != 1 || m.Payload[0] != qos {
			t.Errorf("got %+v, want %+v", m, want)
		}
	}
	if err := c.Publish(t.Context(), mqtt.Message{Topic: "a/#"}); !errors.Is(err, mqtt.ErrInvalid) {
		t.Errorf("Publish on a/# = %v", err)
	}
	if c.Err() != nil {
		t.Errorf("Err = %v", c.Err())
	}
	b.Kill()
	<-c.Lost()
	var f *Fault
	if err := c.Err(); !errors.As(err, &f) || f.Step != StepSession || !strings.Contains(f.Text, "closed the connection") {
		t.Errorf("Err = %v", err)
	}
	if err := c.Publish(t.Context(), mqtt.Message{Topic: "a/b", QoS: 1}); err == nil {
		t.Error("Publish on a connection that is lost = nil")
	}
	if _, err := c.Subscribe(t.Context(), "a/+", 0); err == nil {
		t.Error("Subscribe on a connection that is lost = nil")
	}
}

func TestSubscriptionRefused(t *testing.T) {
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		if p.kind == 8 {
			return []byte{0x90, 3, byte(id >> 8), byte(id), 0x80}, true
		}
		return polite(p, id)
	})
	c, err := Connect(t.Context(), settings(), b.url(), ConnOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Subscribe(t.Context(), "a", 1); !errors.Is(err, ErrSubscriptionRefused) {
		t.Errorf("Subscribe = %v", err)
	}
}

// TestPublishGivesUpWithItsContext has a broker that does not acknowledge.
func TestPublishGivesUpWithItsContext(t *testing.T) {
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		if p.kind == 3 {
			return nil, true
		}
		return polite(p, id)
	})
	c, err := Connect(t.Context(), settings(), b.url(), ConnOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Publish(ctx, mqtt.Message{Topic: "a", QoS: 1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Publish = %v", err)
	}
}

// TestPersistentSession connects without a clean session: what has QoS 2 goes
// with QoS 1.
func TestPersistentSession(t *testing.T) {
	b := mosquittotest.Start(t, mosquittotest.Options{})
	sub := b.Subscribe([]string{"gw1/#"})
	cfg := settings(b.URL())
	cfg.CleanSession = false
	r := run(t, cfg, nil)
	r.publish(t, 0, 100, 2)
	got := sub.Next(100)
	check(t, got, 100, 0)
	if got[0].QoS != 1 {
		t.Errorf("QoS %d, want 1", got[0].QoS)
	}
	r.drained(t)
}
