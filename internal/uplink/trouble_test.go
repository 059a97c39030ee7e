package uplink

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/mqtt/mosquittotest"
)

// TestTrouble runs uplinks side by side that each have another trouble, and a
// healthy one. Each says once what is wrong and what to do, at its step, tries
// again and again, and keeps its messages; the healthy one notices nothing.
func TestTrouble(t *testing.T) {
	t.Parallel()
	certs := mosquittotest.NewCerts(t)
	other := mosquittotest.NewCerts(t)
	mutual := *certs
	mutual.RequireClient = true
	with := func(name string, change func(*x509Certificate)) *mosquittotest.Certs {
		c := *certs
		c.ServerCert, c.ServerKey = certs.Issue(t, name, change)
		return &c
	}
	p12 := filepath.Join(t.TempDir(), "client.p12")
	if out, err := exec.Command("openssl", "pkcs12", "-export", "-in", certs.ClientCert, "-inkey", certs.ClientKey, "-passout", "pass:s3cret", "-out", p12).CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
	secure := mosquittotest.Start(t, mosquittotest.Options{TLS: certs, Users: map[string]string{"gw1": "s3cret"}})
	wantsCert := mosquittotest.Start(t, mosquittotest.Options{TLS: &mutual})
	expired := mosquittotest.Start(t, mosquittotest.Options{TLS: with("expired", func(c *x509Certificate) {
		c.IPAddresses, c.NotAfter = loopback, time.Now().Add(-time.Minute)
	})})
	elsewhere := mosquittotest.Start(t, mosquittotest.Options{TLS: with("elsewhere", func(c *x509Certificate) { c.DNSNames = []string{"elsewhere.example"} })})
	swallow := listen(t) // takes connections and says nothing
	mute := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		if p.kind == 3 {
			return nil, true
		}
		return polite(p, id)
	})
	refuses := newLink(t, secure.Addr())
	refuses.setRefuse(true)

	for _, row := range []struct {
		name, url string
		change    func(*config.Uplink)
		want      string // step, cause and remedy
	}{
		{"wrong password", secure.URL(), func(c *config.Uplink) {
			c.TLS.CA, c.Username, c.Password = certs.CA, "gw1", config.SecretSource{Plain: config.NewSecret("wrong")}
		}, "connect: the broker does not let us in; check username, password"},
		{"expired certificate", expired.URL(), func(c *config.Uplink) { c.TLS.CA = certs.CA }, "clock is outside of that; renew it, or set the clock"},
		{"foreign authority", secure.URL(), func(c *config.Uplink) { c.TLS.CA = other.CA }, "tls: the broker's certificate is signed by an authority this machine does not know"},
		{"wrong host name", elsewhere.URL(), func(c *config.Uplink) { c.TLS.CA = certs.CA }, "use the name in the certificate, in the url or as tls.server_name"},
		{"foreign client certificate", wantsCert.URL(), func(c *config.Uplink) {
			c.TLS.CA, c.TLS.Cert, c.TLS.Key = certs.CA, other.ClientCert, other.ClientKey
		}, "tls: the broker does not accept our client certificate: tls: unknown certificate authority; check tls.cert"},
		{"bundle with a wrong password", wantsCert.URL(), func(c *config.Uplink) {
			c.TLS.CA, c.TLS.Cert, c.TLS.Password = certs.CA, p12, config.SecretSource{Plain: config.NewSecret("wrong")}
		}, "tls.password is not its password; check tls.cert, tls.key and tls.password"},
		{"never acknowledges", mute.url(), nil, "session: the broker accepts messages and does not acknowledge them within 200ms; look at its log and its load"},
		{"proxy that swallows", secure.URL(), func(c *config.Uplink) {
			c.Proxy, c.ConnectTimeout = "http://"+swallow.Addr().String(), 200*time.Millisecond
		}, "did not reach " + secure.Addr() + " within 200ms; check the broker's address, and what the proxy allows"},
		{"broker that swallows", "mqtts://" + swallow.Addr().String(), func(c *config.Uplink) { c.ConnectTimeout = 200 * time.Millisecond },
			"tls: the handshake took longer than 200ms; is this the port for TLS?"},
		{"link that hangs up", "mqtts://" + refuses.l.Addr().String(), nil, "tls: the other end closed the connection during the handshake; is this the port for TLS"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			cfg := settings(row.url)
			if row.change != nil {
				row.change(&cfg)
			}
			r := run(t, cfg, func(u *Uplink) {
				u.ackPatience, u.backoff.least, u.backoff.most = 200*time.Millisecond, 5*time.Millisecond, 50*time.Millisecond
			})
			r.publish(t, 0, 100, 1)
			var at time.Time
			for tries := 0; tries < 4; tries++ {
				eventually(t, "another try", func() bool { return r.Status().ErrAt.After(at) })
				at = r.Status().ErrAt
			}
			r.stop()
			log := r.log.String()
			if strings.Count(log, "\n") != 1 || !strings.Contains(strings.ReplaceAll(log, `\"`, `"`), row.want) {
				t.Errorf("log, want one line with %q:\n%s", row.want, log)
			}
			if s := r.q.Stats(); s.Messages != 100 {
				t.Errorf("queue %+v, want all 100 in it", s)
			}
		})
	}
	t.Run("healthy", func(t *testing.T) {
		t.Parallel()
		sub := secure.Subscribe([]string{"gw1/#"}, "-u", "gw1", "-P", "s3cret")
		cfg := settings(secure.URL())
		cfg.TLS.CA, cfg.Username, cfg.Password = certs.CA, "gw1", config.SecretSource{Plain: config.NewSecret("s3cret")}
		cfg.ClientID = "healthy"
		r := run(t, cfg, nil)
		r.publish(t, 0, 5000, 1)
		check(t, sub.Next(5000), 5000, 0)
		if s := r.Status(); s.Connects != 1 || s.Err != "" {
			t.Errorf("Status = %+v", s)
		}
	})
}

// TestCutWhileConnecting cuts a TLS connection at many positions of what goes up
// and of what comes down: in the handshake, in CONNECT, while subscribing, in the
// birth and in the messages.
func TestCutWhileConnecting(t *testing.T) {
	t.Parallel()
	cutWhileConnecting(t, 40, 43)
}

// cutWhileConnecting cuts as often as cuts says, each second time step bytes
// further on.
func cutWhileConnecting(t *testing.T, cuts, step int) {
	n := 10 * cuts
	certs := mosquittotest.NewCerts(t)
	b := mosquittotest.Start(t, mosquittotest.Options{TLS: certs})
	sub := b.Subscribe([]string{"gw1/#"})
	k := newLink(t, b.Addr())
	cfg := settings("mqtts://" + k.l.Addr().String())
	cfg.TLS.CA = certs.CA
	r := run(t, cfg, func(u *Uplink) {
		u.backoff.least, u.backoff.most, u.calm = time.Millisecond, 5*time.Millisecond, time.Millisecond
		subscribe(u, Subscription{Filter: "cmd/a", QoS: 1, Handle: new(collector).handle}, Subscription{Filter: "cmd/b", QoS: 1, Handle: new(collector).handle})
	})
	for i := range cuts {
		r.connected(t)
		before := r.Status().Connects
		pos := int64(1 + step*(i/2))
		if i%2 == 0 {
			k.cutAfter(pos)
		} else {
			k.cutAnswersAfter(pos)
		}
		k.cut() // the next connection is cut at that byte
		r.publish(t, i*n/cuts, (i+1)*n/cuts, 1)
		eventually(t, "cut, and connected again", func() bool { return !k.uncut() && r.Status().Connects > before })
		r.drained(t) // three cuts over one message would be the broker's no to it
	}
	check(t, sub.Until(number(n-1)), n, 2*cuts*Width)
	if s := r.Status(); s.Unsubscribed != nil || s.Refused != 0 {
		t.Errorf("Status = %+v, want every filter served and nothing given up", s)
	}
}

func TestIPv6(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here: ", err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	certs := mosquittotest.NewCerts(t)
	_, port, _ := net.SplitHostPort(addr)
	b := mosquittotest.Start(t, mosquittotest.Options{Lines: []string{"listener " + port + " ::1", "certfile " + certs.ServerCert, "keyfile " + certs.ServerKey, "allow_anonymous true"}})
	sub := b.Subscribe([]string{"gw1/#"})
	cfg := settings("mqtts://" + addr)
	cfg.TLS.CA = certs.CA
	r := run(t, cfg, nil)
	r.publish(t, 0, 10, 1)
	check(t, sub.Next(10), 10, 0)
	if s := r.Status(); s.URL != "mqtts://[::1]:"+port || s.Word != "Connected (TLS)" {
		t.Errorf("Status = %+v", s)
	}
}

// TestHTTPSProxy goes through a proxy that is spoken to with TLS. Its
// certificate must be known to the system.
func TestHTTPSProxy(t *testing.T) {
	certs := mosquittotest.NewCerts(t)
	pair, err := tls.LoadX509KeyPair(certs.ServerCert, certs.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	b := mosquittotest.Start(t, mosquittotest.Options{})
	var count atomic.Int32
	proxy := connectProxy(t, &count, []tls.Certificate{pair}, func(*http.Request) int { return http.StatusOK })
	cfg := settings()
	cfg.Proxy = "https://" + proxy
	if _, err := Connect(t.Context(), cfg, b.URL(), ConnOptions{}); err == nil || !strings.Contains(err.Error(), "proxy: TLS with proxy "+proxy) {
		t.Errorf("a proxy with an unknown certificate: %v", err)
	}
	if os.Getenv("SSL_CERT_FILE") == "" {
		// The pool of the system is read once in a process: another one shows that
		// it works with a certificate that is known.
		cmd := exec.Command(os.Args[0], "-test.run", "^TestThroughHTTPSProxy$", "-test.count", "1")
		cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+certs.CA, "FIELDGATE_TEST_PROXY="+cfg.Proxy, "FIELDGATE_TEST_BROKER="+b.URL())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v:\n%s", err, out)
		}
		if n := count.Load(); n != 1 {
			t.Errorf("%d connections through the proxy, want one", n)
		}
	}
}

// TestThroughHTTPSProxy is the other half of TestHTTPSProxy.
func TestThroughHTTPSProxy(t *testing.T) {
	via, url := os.Getenv("FIELDGATE_TEST_PROXY"), os.Getenv("FIELDGATE_TEST_BROKER")
	if via == "" {
		t.Skip("run by TestHTTPSProxy")
	}
	cfg := settings()
	cfg.Proxy = via
	c, err := Connect(t.Context(), cfg, url, ConnOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Publish(t.Context(), mqtt.Message{Topic: "a", Payload: fmt.Append(nil, 1), QoS: 1}); err != nil {
		t.Fatal(err)
	}
}
