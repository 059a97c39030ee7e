package uplink

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
)

// TestSASToken holds a token against openssl, put together as Microsoft's
// documentation of IoT Hub says ("Control access to IoT Hub by using shared
// access signatures"), and against one made with Python's hmac module.
func TestSASToken(t *testing.T) {
	key := []byte("0123456789abcdef0123456789abcdef")
	const fixed = "SharedAccessSignature sr=plant.azure-devices.net%2Fdevices%2Fgw1&sig=L54Iv1NvO86EHdI3GeQnnz3fJ4IMF1QtIn523RUJdjk%3D&se=1767225600"
	if got := sasToken(key, "plant.azure-devices.net/devices/gw1", time.Unix(1767225600, 0)); got != fixed {
		t.Errorf("token %s\nwant  %s", got, fixed)
	}
	for i := range 20 {
		ends := time.Unix(1767225600+int64(i), 999)
		out, err := func() ([]byte, error) {
			cmd := exec.Command("openssl", "dgst", "-sha256", "-binary", "-mac", "HMAC", "-macopt", "hexkey:"+hex.EncodeToString(key))
			cmd.Stdin = strings.NewReader(fmt.Sprintf("plant.azure-devices.net%%2Fdevices%%2Fgw+1%d\n%d", i, ends.Unix()))
			return cmd.Output()
		}()
		if err != nil {
			t.Fatalf("openssl: %v", err)
		}
		want := fmt.Sprintf("SharedAccessSignature sr=plant.azure-devices.net%%2Fdevices%%2Fgw+1%d&sig=%s&se=%d", i, url.QueryEscape(base64.StdEncoding.EncodeToString(out)), ends.Unix())
		if got := sasToken(key, fmt.Sprintf("plant.azure-devices.net/devices/gw 1%d", i), ends); got != want {
			t.Errorf("token %s\nwant  %s", got, want)
		}
	}
}

// TestAzure connects as to an IoT Hub, with tokens that last a moment, and
// looks at what the hub is told.
func TestAzure(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var logins []string
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		mu.Lock()
		defer mu.Unlock()
		if p.kind == 1 {
			logins = append(logins, string(p.body))
		}
		return polite(p, id)
	})
	cfg := settings(b.url())
	cfg.ClientID = "gw1"
	cfg.NoStatus = true
	cfg.AzureSAS = &config.AzureSAS{Key: config.SecretSource{Plain: config.NewSecret("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n")}, TTL: 1200 * time.Millisecond}
	r := run(t, cfg, func(u *Uplink) { u.lookEvery = 10 * time.Millisecond })
	r.connected(t)
	const n = 500
	for i := 0; i < n; i += 10 {
		r.publish(t, i, i+10, 1)
		time.Sleep(time.Millisecond)
	}
	eventually(t, "another token", func() bool { return b.connects.Load() >= 2 })
	r.drained(t)
	r.stop()
	mu.Lock()
	defer mu.Unlock()
	for _, l := range logins {
		if !strings.Contains(l, "\x00\x03gw1") || !strings.Contains(l, "127.0.0.1/gw1/?api-version=2021-04-12") ||
			!strings.Contains(l, "SharedAccessSignature sr=127.0.0.1%2Fdevices%2Fgw1&sig=") {
			t.Errorf("CONNECT %q", l)
		}
	}
	if logins[0] == logins[1] {
		t.Errorf("one token twice: %q", logins[0])
	}
	if s := r.Status(); s.Err != "" || s.Acked != n {
		t.Errorf("Status = %+v", s)
	}
	if log := r.log.String(); strings.Count(log, "\n") != 1 {
		t.Errorf("log, want one line:\n%s", log)
	}

	now := time.Unix(1e9, 0)
	for ttl, early := range map[time.Duration]time.Duration{time.Hour: 5 * time.Minute, 20 * time.Minute: 2 * time.Minute, 24 * time.Hour: 5 * time.Minute} {
		if at := (login{ends: now.Add(ttl)}).renewAt(now); at != now.Add(ttl-early) {
			t.Errorf("a token for %v is renewed after %v", ttl, at.Sub(now))
		}
	}
	closed := newFakeBroker(t, func(packetIn, uint16) ([]byte, bool) { return []byte{0x20, 2, 0, 5}, false })
	if _, err := Connect(t.Context(), cfg, closed.url(), ConnOptions{}); err == nil || !strings.Contains(err.Error(), "check azure_sas.key, that client_id is the device's id, and the clock of this machine") {
		t.Errorf("a hub that lets nobody in: %v", err)
	}
	cfg.AzureSAS.Key = config.SecretSource{Plain: config.NewSecret("s3cret!")}
	if _, err := Connect(t.Context(), cfg, b.url(), ConnOptions{}); err == nil || !strings.Contains(err.Error(), "the key is not base64") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("with a key that is none: %v", err)
	}
}

// TestLimitedBroker sends to a broker that takes neither retained messages nor
// QoS 2 nor topics that are not its own.
func TestLimitedBroker(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var seen []string
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		mu.Lock()
		defer mu.Unlock()
		switch p.kind {
		case 1:
			seen = append(seen, fmt.Sprintf("connect %08b", p.body[7]))
		case 8:
			seen = append(seen, fmt.Sprintf("subscribe q%d", p.body[len(p.body)-1]))
		case 3:
			seen = append(seen, fmt.Sprintf("%s q%d retain=%v", p.topic, p.qos, p.retain))
		}
		return polite(p, id)
	})
	for _, status := range []bool{true, false} {
		mu.Lock()
		seen = nil
		mu.Unlock()
		cfg := settings(b.url())
		cfg.NoRetain, cfg.MaxQoS, cfg.NoStatus = true, 1, !status
		r := run(t, cfg, func(u *Uplink) {
			u.will.QoS = 2
			subscribe(u, Subscription{Filter: "cmd", QoS: 2, Handle: new(collector).handle})
		})
		r.connected(t)
		if err := r.q.Deliver(t.Context(), mqtt.Message{Topic: "a", QoS: 2, Retain: true}); err != nil {
			t.Fatal(err)
		}
		r.drained(t)
		r.stop()
		want := "connect 00000010, subscribe q1, a q1 retain=false"
		if status { // will flag, will QoS 1, no will retain
			want = "connect 00001110, subscribe q1, fieldgate/gw1/state q1 retain=false, a q1 retain=false, fieldgate/gw1/state q1 retain=false"
		}
		mu.Lock()
		if got := strings.Join(seen, ", "); got != want {
			t.Errorf("the broker saw %s\nwant %s", got, want)
		}
		mu.Unlock()
	}
}
