package broker

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/gorilla/websocket"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/mqtt/mosquittotest"
	"fieldgate/test/testlog"
)

// everywhere is a broker with all four kinds of listener, in the order mqtt,
// mqtts, ws, wss.
func everywhere(t testing.TB, change func(*config.Broker)) (*testBroker, *mosquittotest.Certs) {
	t.Helper()
	certs := mosquittotest.NewCerts(t)
	cfg := everybody()
	cfg.Listen = nil
	for _, scheme := range []string{"mqtt", "mqtts", "ws", "wss"} {
		l := config.BrokerListener{Scheme: scheme, Address: "127.0.0.1:0"}
		if strings.HasPrefix(scheme, "ws") {
			l.Path = "/mqtt"
		}
		cfg.Listen = append(cfg.Listen, l)
	}
	// Two listeners cannot have one URL.
	cfg.Listen[2].Address, cfg.Listen[3].Address = "localhost:0", "localhost:0"
	cfg.TLS = config.BrokerTLS{Cert: certs.ServerCert, Key: certs.ServerKey}
	if change != nil {
		change(&cfg)
	}
	return run(t, cfg, ""), certs
}

func trust(t testing.TB, certs *mosquittotest.Certs) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(certs.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: pool, ServerName: "localhost"}
}

// paho, which the uplinks use, works over every kind of listener.
func TestPaho(t *testing.T) {
	b, certs := everywhere(t, nil)
	for i, url := range []string{"tcp://%s", "ssl://%s", "ws://%s/mqtt", "wss://%s/mqtt"} {
		t.Run(b.cfg.Listen[i].Scheme, func(t *testing.T) {
			opts := paho.NewClientOptions().AddBroker(fmt.Sprintf(url, b.Addrs()[i])).SetClientID(fmt.Sprint("paho", i)).
				SetTLSConfig(trust(t, certs)).SetProtocolVersion(4).SetAutoReconnect(false).SetConnectTimeout(patience)
			c := paho.NewClient(opts)
			ok := func(tok paho.Token) {
				t.Helper()
				if !tok.WaitTimeout(patience) || tok.Error() != nil {
					t.Fatalf("%v", tok.Error())
				}
			}
			ok(c.Connect())
			defer c.Disconnect(0)
			got := make(chan paho.Message, 10)
			ok(c.Subscribe("paho/#", 2, func(_ paho.Client, m paho.Message) { got <- m }))
			large := strings.Repeat("x", 200_000)
			for qos := range byte(3) {
				ok(c.Publish("paho/up", qos, false, large))
				b.deliver(t, "paho/down", large, qos, false)
				for range 2 {
					select {
					case m := <-got:
						if m.Qos() != qos || string(m.Payload()) != large {
							t.Errorf("%s q%d %d bytes", m.Topic(), m.Qos(), len(m.Payload()))
						}
					case <-time.After(patience):
						t.Fatal("no message")
					}
				}
			}
		})
	}
}

// mosquitto's clients are the outside truth.
func TestMosquittoClients(t *testing.T) {
	b, certs := everywhere(t, nil)
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s %s: %v: %s (Debian package mosquitto-clients)", name, strings.Join(args, " "), err, &errs)
		}
		return out.String()
	}
	for i, version := range []string{"mqttv31", "mqttv311", "mqttv5"} {
		for listener := range 2 {
			for qos := range 3 {
				t.Run(fmt.Sprintf("%s %s QoS %d", version, b.cfg.Listen[listener].Scheme, qos), func(t *testing.T) {
					_, port, _ := net.SplitHostPort(b.Addrs()[listener].String())
					at := []string{"-h", "localhost", "-p", port, "-V", version, "-q", fmt.Sprint(qos)}
					if listener == 1 {
						at = append(at, "--cafile", certs.CA)
					}
					topic := fmt.Sprintf("m/%d/%d/%d", i, listener, qos)
					run("mosquitto_pub", append(at, "-t", topic, "-m", "retained", "-r")...)
					got := run("mosquitto_sub", append(at, "-t", topic, "-C", "1", "-W", "60", "-F", "%p %q %r")...)
					if want := fmt.Sprintf("retained %d 1\n", qos); got != want {
						t.Errorf("mosquitto_sub printed %q, want %q", got, want)
					}
				})
			}
		}
	}
	_, port, _ := net.SplitHostPort(b.Addrs()[0].String())
	// 1000 lines, as published by one client to another, in order; never more at
	// once than may wait for a client that the machine has no time for.
	sub := exec.Command("mosquitto_sub", "-h", "127.0.0.1", "-p", port, "-V", "mqttv5", "-q", "1", "-t", "many", "-C", "1000", "-W", "60")
	var out bytes.Buffer
	sub.Stdout = &out
	if err := sub.Start(); err != nil {
		t.Fatal(err)
	}
	wait(t, "it has subscribed", func() bool { return b.Stats().Subscriptions == 1 })
	pub := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", port, "-q", "1", "-t", "many", "-l")
	in, err := pub.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := pub.Start(); err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	before := b.Stats().Out
	for i := range 1000 {
		fmt.Fprintln(&lines, i)
		fmt.Fprintln(in, i)
		if n := uint64(i + 1); n%(writesPending/2) == 0 {
			wait(t, "half of what may wait is sent", func() bool { return b.Stats().Out-before >= n })
		}
	}
	_ = in.Close()
	if err := pub.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := sub.Wait(); err != nil || out.String() != lines.String() {
		t.Errorf("%v: %d bytes of %d", err, out.Len(), lines.Len())
	}
}

func TestClientCertificate(t *testing.T) {
	var certs *mosquittotest.Certs
	b, own := everywhere(t, func(cfg *config.Broker) { certs = mosquittotest.NewCerts(t); cfg.TLS.ClientCA = certs.CA })
	with := func(cert, key string) error {
		cfg := trust(t, own)
		if cert != "" {
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err != nil {
				t.Fatal(err)
			}
			cfg.Certificates = []tls.Certificate{pair}
		}
		c, err := tls.Dial("tcp", b.Addrs()[1].String(), cfg)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write(hello{id: "x"}.packet()); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, 4)) // TLS 1.3: the refusal comes here
		return err
	}
	if err := with(certs.ClientCert, certs.ClientKey); err != nil {
		t.Errorf("a good certificate: %v", err)
	}
	if with("", "") == nil {
		t.Error("let in without a certificate")
	}
	if with(own.ClientCert, own.ClientKey) == nil {
		t.Error("let in with a certificate of another authority")
	}
	wait(t, "it is logged", func() bool { return strings.Contains(b.log.String(), "TLS handshake failed") })
}

// A renewed certificate is taken up; one that is broken is not.
func TestRenewedCertificate(t *testing.T) {
	b, certs := everywhere(t, nil)
	serial := func() string {
		t.Helper()
		c, err := tls.Dial("tcp", b.Addrs()[1].String(), trust(t, certs))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	later := time.Now().Add(time.Minute)
	certs.Issue(t, "server", func(tmpl *x509.Certificate) { tmpl.DNSNames = []string{"localhost"} })
	for _, f := range []string{certs.ServerCert, certs.ServerKey} {
		if err := os.Chtimes(f, later, later); err != nil {
			t.Fatal(err)
		}
	}
	after := serial()
	if after == before {
		t.Error("the old certificate is still shown")
	}
	if err := os.WriteFile(certs.ServerCert, []byte("half a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != after {
		t.Errorf("serial %s, want %s", got, after)
	}
	if !strings.Contains(b.log.String(), "the old one stays") {
		t.Error("nothing is logged")
	}
}

func TestWebSocket(t *testing.T) {
	b, _ := everywhere(t, nil)
	at := b.Addrs()[2].String()
	t.Run("handshake", func(t *testing.T) {
		host, port, _ := net.SplitHostPort(at)
		for _, tt := range []struct {
			name, path, origin string
			code               int
		}{
			{"good", "/mqtt", "", 101},
			{"page of this host on another port", "/mqtt", "http://" + host + ":8080", 101},
			{"page of another host", "/mqtt", "http://evil.example", 403},
			{"page of another host on our port", "/mqtt", "http://evil.example:" + port, 403},
			{"no host at all", "/mqtt", "null", 403},
			{"another path", "/", "", 404},
			{"below the path", "/mqtt/x", "", 404},
		} {
			t.Run(tt.name, func(t *testing.T) {
				header := http.Header{}
				if tt.origin != "" {
					header.Set("Origin", tt.origin)
				}
				d := websocket.Dialer{Subprotocols: []string{"mqtt"}, HandshakeTimeout: patience}
				c, r, err := d.Dial("ws://"+at+tt.path, header)
				if r == nil || r.StatusCode != tt.code {
					t.Fatalf("%v %v, want %d", r, err, tt.code)
				}
				if c != nil {
					if c.Subprotocol() != "mqtt" {
						t.Errorf("subprotocol %q", c.Subprotocol())
					}
					_ = c.Close()
				}
			})
		}
		if r, err := http.Get("http://" + at + "/mqtt"); err != nil || r.StatusCode != http.StatusBadRequest {
			t.Errorf("plain GET: %v %v", r, err)
		}
	})
	open := func(t *testing.T) *websocket.Conn {
		t.Helper()
		c, _, err := websocket.DefaultDialer.Dial("ws://"+at+"/mqtt", nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetReadDeadline(time.Now().Add(patience))
		return c
	}
	t.Run("packets across messages", func(t *testing.T) {
		c := open(t)
		stream := append(hello{id: "w"}.packet(), 0xC0, 0, 0xC0, 0)
		for i, one := range stream {
			if i == len(stream)-3 {
				if err := c.WriteMessage(websocket.BinaryMessage, stream[i:]); err != nil {
					t.Fatal(err)
				}
				break
			}
			if err := c.WriteMessage(websocket.BinaryMessage, []byte{one}); err != nil {
				t.Fatal(err)
			}
		}
		var got []byte
		for len(got) < 8 {
			_, m, err := c.ReadMessage()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, m...)
		}
		if want := []byte{0x20, 2, 0, 0, 0xD0, 0, 0xD0, 0}; !bytes.Equal(got, want) {
			t.Errorf("got % x, want % x", got, want)
		}
	})
	t.Run("text is no MQTT", func(t *testing.T) {
		c := open(t)
		if err := c.WriteMessage(websocket.TextMessage, hello{id: "w"}.packet()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.ReadMessage(); err == nil {
			t.Error("it was answered")
		}
	})
	t.Run("oversize message", func(t *testing.T) {
		c := open(t)
		_ = c.WriteMessage(websocket.BinaryMessage, make([]byte, 1<<20))
		if _, _, err := c.ReadMessage(); err == nil {
			t.Error("it was answered")
		}
	})
	t.Run("one that stops reading", func(t *testing.T) {
		limits := testTimes()
		limits.write = 300 * time.Millisecond
		cfg := everybody()
		cfg.Listen = append(cfg.Listen, config.BrokerListener{Scheme: "ws", Address: "127.0.0.1:0", Path: "/"})
		b := runTimes(t, cfg, "", limits)
		c, _, err := websocket.DefaultDialer.Dial("ws://"+b.Addrs()[1].String()+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_ = c.WriteMessage(websocket.BinaryMessage, append(hello{id: "w"}.packet(), packet(0x82, append(str([]byte{0, 1}, "#"), 0))...))
		wait(t, "it has subscribed", func() bool { return b.Stats().Subscriptions == 1 })
		payload := strings.Repeat("x", 100_000)
		for range 100 {
			b.deliver(t, "t", payload, 0, false)
		}
		wait(t, "it is cut off", func() bool { return b.Stats().Stuck == 1 && b.Stats().Clients == 0 })
	})
	t.Run("half a handshake", func(t *testing.T) {
		limits := testTimes()
		limits.connect = 200 * time.Millisecond
		cfg := everybody()
		cfg.Listen = []config.BrokerListener{{Scheme: "ws", Address: "127.0.0.1:0", Path: "/"}}
		b := runTimes(t, cfg, "", limits)
		for _, start := range []string{"", "GET / HTTP/1.1\r\nHost: x\r\n"} {
			c := dial(t, b.addr())
			_, _ = c.Write([]byte(start))
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, c); err != nil {
				t.Errorf("%q: %v", start, err)
			}
		}
		// An upgrade without a CONNECT after it.
		c, _, err := websocket.DefaultDialer.Dial("ws://"+b.addr()+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, _, err := c.ReadMessage(); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("it stays open: %v", err)
		}
		_ = c.Close()
	})
}

func TestListenErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	certs := mosquittotest.NewCerts(t)
	empty := t.TempDir() + "/empty.pem"
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := config.BrokerListener{Scheme: "mqtt", Address: "127.0.0.1:0"}
	secure := config.BrokerListener{Scheme: "mqtts", Address: "127.0.0.1:0"}
	for _, tt := range []struct {
		name   string
		listen []config.BrokerListener
		tls    config.BrokerTLS
		users  []config.User
		want   []string
	}{
		{"address in use", []config.BrokerListener{good, {Scheme: "mqtt", Address: taken.Addr().String()}}, config.BrokerTLS{}, nil,
			[]string{"mqtt://" + taken.Addr().String(), "another program has it"}},
		{"no port", []config.BrokerListener{{Scheme: "mqtt", Address: "127.0.0.1"}}, config.BrokerTLS{}, nil, []string{"missing port"}},
		{"none", nil, config.BrokerTLS{}, nil, []string{"no listener"}},
		{"scheme", []config.BrokerListener{{Scheme: "http", Address: "127.0.0.1:0"}}, config.BrokerTLS{}, nil, []string{"unknown scheme"}},
		{"no certificate", []config.BrokerListener{secure}, config.BrokerTLS{}, nil, []string{"mqtts://", "tls"}},
		{"missing certificate", []config.BrokerListener{secure}, config.BrokerTLS{Cert: "/nowhere.crt", Key: "/nowhere.key"}, nil, []string{"/nowhere.crt"}},
		{"key of another", []config.BrokerListener{secure}, config.BrokerTLS{Cert: certs.ServerCert, Key: certs.ClientKey}, nil, []string{"private key does not match"}},
		{"client_ca without one", []config.BrokerListener{secure}, config.BrokerTLS{Cert: certs.ServerCert, Key: certs.ServerKey, ClientCA: empty}, nil,
			[]string{"client_ca", "no certificate"}},
		{"hash", []config.BrokerListener{good}, config.BrokerTLS{}, []config.User{{Name: "hmi", Password: "plain"}}, []string{"user hmi", "fieldgate passwd"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Listen(config.Broker{Listen: tt.listen, TLS: tt.tls, Users: tt.users}, "", slog.New(slog.DiscardHandler))
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
	// What an error left open could not be opened again.
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	_ = taken.Close()
	cfg := everybody()
	cfg.Listen = []config.BrokerListener{{Scheme: "mqtt", Address: "127.0.0.1:" + port}, {Scheme: "mqtt", Address: "127.0.0.1:" + port}}
	if _, err := Listen(cfg, "", slog.New(slog.DiscardHandler)); err == nil {
		t.Fatal("no error")
	}
	cfg.Listen = cfg.Listen[:1]
	run(t, cfg, "")
}

// An address that the machine does not have yet keeps the others from nothing.
func TestListenBeforeTheNetwork(t *testing.T) {
	cfg := everybody()
	cfg.Listen = append(cfg.Listen, config.BrokerListener{Scheme: "ws", Address: "192.0.2.1:1883", Path: "/mqtt"})
	log := &testlog.Log{}
	b, err := Listen(cfg, "", slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if len(b.Addrs()) != 2 || b.Addrs()[1].String() != "192.0.2.1:1883" || !strings.Contains(log.String(), "listen=ws://192.0.2.1:1883/mqtt") {
		t.Errorf("listens on %v; log:\n%s", b.Addrs(), log)
	}
}

// A broker that is not run lets nobody in, takes messages, and can be closed.
func TestListenWithoutRun(t *testing.T) {
	cfg := everybody()
	cfg.Persist = true
	dir := t.TempDir()
	b, err := Listen(cfg, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, b.Addrs()[0].String())
	_, _ = c.Write(hello{id: "early"}.packet())
	if err := b.Deliver(t.Context(), mqtt.Message{Topic: "t", Payload: []byte("x"), Retain: true}); err != nil {
		t.Error(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, _ := c.Read(make([]byte, 1)); n > 0 {
		t.Error("it was answered")
	}
	for range 2 {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	b2 := run(t, cfg, dir)
	p := connect(t, b2.addr(), hello{id: "p"})
	p.subscribe(0, "t")
	if r := p.take(); r.payload != "x" {
		t.Errorf("got %v", r)
	}
}

func TestOrigin(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7:1234": "192.0.2.7", "[::ffff:192.0.2.7]:1": "192.0.2.7",
		"[2001:db8:1:2:3:4:5:6]:1": "2001:db8:1:2::/64", "[fe80::1%eth0]:1": "fe80::/64", "@": "@",
	} {
		if got := origin(address(in)); got != want {
			t.Errorf("origin(%s) = %s, want %s", in, got, want)
		}
	}
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }
