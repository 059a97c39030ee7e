package uplink

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt/mosquittotest"
)

// replace puts what is in the file from in the place of to, as certificate
// managers do.
func replace(t *testing.T, to, from string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	rewrite(t, to, string(data))
}

func rewrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// TestCertificateReplaced changes the client certificate under a stream of
// messages: one new connection, nothing lost, nobody is told that we are away.
func TestCertificateReplaced(t *testing.T) {
	t.Parallel()
	certs := mosquittotest.NewCerts(t)
	certs.RequireClient = true
	other, otherKey := certs.Issue(t, "gw1-renewed", nil)
	b := mosquittotest.Start(t, mosquittotest.Options{TLS: certs})
	sub := b.Subscribe([]string{"gw1/#", offline.Topic})
	cfg := settings(b.URL())
	cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key = certs.CA, certs.ClientCert, certs.ClientKey
	r := run(t, cfg, func(u *Uplink) { u.lookEvery = 50 * time.Millisecond })
	r.connected(t)
	own := func() string { return r.Status().Certs[1].Subject }
	if s := r.Status(); len(s.Certs) != 2 || s.Certs[0].Whose != WhoseBroker || s.Certs[0].Subject != "CN=server" || s.Certs[0].Issuer != "CN=Test Authority" || s.Chain != 2 || own() != "CN=client" {
		t.Errorf("certificates %+v, chain %d", s.Certs, s.Chain)
	}
	const n = 3000
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; i < n; i += 10 {
			r.publish(t, i, i+10, 1)
			time.Sleep(time.Millisecond)
		}
	})
	replace(t, certs.ClientCert, other)
	time.Sleep(10 * time.Millisecond) // may be seen half done, and is waited for
	replace(t, certs.ClientKey, otherKey)
	eventually(t, "another certificate", func() bool { return own() == "CN=gw1-renewed" })
	wg.Wait()
	r.drained(t)
	var data []mosquittotest.Received
	for _, m := range sub.Until(number(n - 1)) {
		switch {
		case m.Topic != offline.Topic:
			data = append(data, m)
		case m.Payload != "online":
			t.Errorf("%+v while the certificate was replaced", m)
		}
	}
	check(t, data, n, 0)
	if s := r.Status(); s.Connects != 2 || s.Err != "" {
		t.Errorf("Status = %+v, want 2 connections and no fault", s)
	}

	// The same once more is no change; what cannot be used is said once.
	replace(t, certs.ClientCert, other)
	time.Sleep(250 * time.Millisecond)
	rewrite(t, certs.ClientCert, "nonsense")
	eventually(t, "a line", func() bool { return strings.Contains(r.log.String(), "neither PEM nor") })
	time.Sleep(250 * time.Millisecond)
	replace(t, certs.ClientCert, other)
	eventually(t, "good again", func() bool { return r.Status().Connects == 3 })
	var lines []string
	for line := range strings.Lines(r.log.String()) {
		// The test's certificates last a day; and a machine that stands still between
		// certificate and key has them seen half done.
		if !strings.Contains(line, "whose=") && !strings.Contains(line, "private key does not match") {
			lines = append(lines, line)
		}
	}
	if len(lines) != 4 || !strings.Contains(lines[0], "uplink connected") || !strings.Contains(lines[0], `certificate="CN=server" issuer="CN=Test Authority" fingerprint=`) ||
		!strings.Contains(lines[1], "files have changed") || !strings.Contains(lines[2], "neither PEM nor a PKCS#12 file") || !strings.Contains(lines[3], "files have changed") {
		t.Errorf("log:\n%s", strings.Join(lines, ""))
	}
}

func TestPasswordReplaced(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "password")
	rewrite(t, file, "before\n")
	var mu sync.Mutex
	var connects []string
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		mu.Lock()
		defer mu.Unlock()
		if p.kind == 1 {
			connects = append(connects, string(p.body))
		}
		return polite(p, id)
	})
	cfg := settings(b.url())
	cfg.Username, cfg.Password.File = "gw1", file
	r := run(t, cfg, func(u *Uplink) { u.lookEvery = 10 * time.Millisecond })
	r.connected(t)
	rewrite(t, file, "after\n")
	eventually(t, "another connection", func() bool { return b.connects.Load() == 2 })
	r.publish(t, 0, 10, 1)
	r.drained(t)
	mu.Lock()
	defer mu.Unlock()
	if len(connects) != 2 || !strings.HasSuffix(connects[0], "before") || !strings.HasSuffix(connects[1], "after") {
		t.Errorf("CONNECT %q", connects)
	}
}

// TestStopWhileRenewing has a broker that has ceased to acknowledge.
func TestStopWhileRenewing(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "password")
	rewrite(t, file, "before")
	var deaf atomic.Bool
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		if p.kind == 3 && deaf.Load() {
			return nil, true
		}
		return polite(p, id)
	})
	cfg := settings(b.url())
	cfg.Username, cfg.Password.File = "gw1", file
	r := run(t, cfg, func(u *Uplink) { u.lookEvery, u.stopPatience = 10*time.Millisecond, 200*time.Millisecond })
	r.connected(t)
	deaf.Store(true)
	r.publish(t, 0, 10, 1)
	eventually(t, "in flight", func() bool { return r.Status().InFlight > 0 })
	rewrite(t, file, "after")
	eventually(t, "noticed", func() bool { return strings.Contains(r.log.String(), "have changed") })
	start := time.Now()
	r.stop()
	if d := time.Since(start); d > 4*time.Second {
		t.Errorf("the stop took %v", d)
	}
	if n := r.q.Stats().Messages; n != 10 {
		t.Errorf("%d messages in the queue, want 10", n)
	}
}

// TestCertificateEnds looks at what is said of certificates that end soon, and
// at a broker that renews its own under a connection that lasts.
func TestCertificateEnds(t *testing.T) {
	t.Parallel()
	certs := mosquittotest.NewCerts(t)
	ends := func(days int) func(*x509Certificate) {
		return func(c *x509Certificate) {
			c.IPAddresses, c.NotAfter = loopback, time.Now().Add(time.Duration(days)*24*time.Hour+time.Hour)
		}
	}
	certs.ServerCert, certs.ServerKey = certs.Issue(t, "soon", ends(20))
	later, laterKey := certs.Issue(t, "later", ends(25))
	certs.ClientCert, certs.ClientKey = certs.Issue(t, "mine", ends(5))
	b := mosquittotest.Start(t, mosquittotest.Options{TLS: certs})
	cfg := settings(b.URL())
	cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key = certs.CA, certs.ClientCert, certs.ClientKey
	r := run(t, cfg, func(u *Uplink) { u.lookEvery, u.lookAgain = 10*time.Millisecond, 20*time.Millisecond })
	r.connected(t)
	days := func() (left []int) {
		for _, c := range r.Status().Certs {
			left = append(left, c.DaysLeft(time.Now()))
		}
		return left
	}
	if c, left, ok := r.Status().CertDaysLeft(time.Now()); c.Whose != WhoseAuthority || left != 0 || !ok {
		t.Errorf("CertDaysLeft = %+v, %d, %v", c, left, ok)
	}
	if d := days(); len(d) != 3 || d[0] != 20 || d[1] != 0 || d[2] != 5 { // the authority's lasts a day
		t.Errorf("days left %v", d)
	}
	replace(t, certs.ServerCert, later)
	replace(t, certs.ServerKey, laterKey)
	b.Signal(syscall.SIGHUP)
	eventually(t, "the broker's new certificate", func() bool { return days()[0] == 25 })
	eventually(t, "said", func() bool { return strings.Count(r.log.String(), "certificate ends") == 4 })
	time.Sleep(50 * time.Millisecond)
	for _, want := range []string{
		"whose=broker subject=\"CN=soon\" ends=", "whose=authority subject=\"CN=Test Authority\"", "whose=own subject=\"CN=mine\"", "whose=broker subject=\"CN=later\"",
	} {
		if n := strings.Count(r.log.String(), want); n != 1 {
			t.Errorf("%q is said %d times", want, n)
		}
	}
	if s := r.Status(); s.Connects != 1 {
		t.Errorf("%d connections, want one", s.Connects)
	}
}

func TestDaysLeft(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, row := range []struct {
		left time.Duration
		days int
		age  certAge
	}{
		{31 * 24 * time.Hour, 31, certGood},
		{30 * 24 * time.Hour, 30, certGood},
		{30*24*time.Hour - 1, 29, certMonth},
		{7 * 24 * time.Hour, 7, certMonth},
		{7*24*time.Hour - 1, 6, certWeek},
		{time.Hour, 0, certWeek},
		{0, 0, certWeek},
		{-1, -1, certsEnded},
		{-24 * time.Hour, -1, certsEnded},
		{-24*time.Hour - 1, -2, certsEnded},
	} {
		c := Certificate{NotAfter: now.Add(row.left)}
		if days, age := c.DaysLeft(now), ageOf(c, now); days != row.days || age != row.age {
			t.Errorf("%v before its end: %d days left, age %d; want %d, %d", row.left, days, age, row.days, row.age)
		}
	}
}

func TestFilesOfNobody(t *testing.T) {
	f := newFiles(config.Uplink{})
	if f.changed() || len(f.paths) > 0 {
		t.Errorf("files %+v", f)
	}
}

// TestSilence is a link that dies while nothing is sent: the keep-alive says
// when that is noticed. One that lives and is silent stays.
func TestSilence(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{})
	cfg := settings(b.URL())
	cfg.Keepalive = 2 * time.Second
	r := run(t, cfg, nil)
	r.connected(t)
	time.Sleep(4 * time.Second) // longer than a link may be silent
	if s := r.Status(); s.Connects != 1 || s.Err != "" {
		t.Fatalf("Status = %+v, want a connection that lasts", s)
	}
	b.Signal(syscall.SIGSTOP) // its kernel goes on acknowledging, and nothing comes
	start := time.Now()
	eventually(t, "noticed", func() bool {
		return strings.Contains(r.Status().Err, "the link is dead: nothing comes from the broker for 3.5s")
	})
	t.Logf("noticed after %v", time.Since(start))
	b.Signal(syscall.SIGCONT)
	eventually(t, "connected again", func() bool { return r.Status().Connected })

	for keepalive, want := range map[time.Duration]time.Duration{5 * time.Second: 8750 * time.Millisecond, 60 * time.Second: 95 * time.Second, 0: 0} {
		if got := silence(keepalive); got != want {
			t.Errorf("silence(%v) = %v, want %v", keepalive, got, want)
		}
	}
}
