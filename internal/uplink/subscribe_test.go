package uplink

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fieldgate/internal/mqtt"
	"fieldgate/internal/mqtt/mosquittotest"
)

// collector is a handler that keeps what it is given.
type collector struct {
	mu   sync.Mutex
	msgs []mqtt.Message
}

func (c *collector) handle(m mqtt.Message, _ mqtt.Origin) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.msgs = append(c.msgs, m)
	return nil
}

// texts returns topic=payload of all messages so far, sorted.
func (c *collector) texts() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, m := range c.msgs {
		out = append(out, m.Topic+"="+string(m.Payload))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// client connects to url as somebody else.
func client(t *testing.T, url string) *Conn {
	t.Helper()
	cfg := settings()
	cfg.ClientID = "somebody-else"
	c, err := Connect(t.Context(), cfg, url, ConnOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestSubscriptions(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{Lines: []string{"allow_duplicate_messages false"}})
	k := newLink(t, b.Addr())
	other := client(t, b.URL())
	all, one, again := &collector{}, &collector{}, &collector{}
	r := run(t, settings(k.url()), func(u *Uplink) {
		u.backoff.least = time.Millisecond
		subscribe(u,
			Subscription{Filter: "cmd/#", QoS: 2, Handle: all.handle},
			Subscription{Filter: "cmd/+/set", QoS: 1, Handle: one.handle},
			Subscription{Filter: "cmd/#", QoS: 0, Handle: again.handle},
		)
	})
	for round := range 3 {
		r.connected(t)
		for qos, topic := range []string{"cmd", "cmd/pump/set", "cmd/pump"} {
			if err := other.Publish(t.Context(), mqtt.Message{Topic: topic, Payload: fmt.Appendf(nil, "%d", round), QoS: uint8(qos)}); err != nil {
				t.Fatal(err)
			}
		}
		var wantAll, wantOne []string
		for i := range round + 1 {
			wantAll = append(wantAll, fmt.Sprintf("cmd=%d", i), fmt.Sprintf("cmd/pump=%d", i), fmt.Sprintf("cmd/pump/set=%d", i))
			wantOne = append(wantOne, fmt.Sprintf("cmd/pump/set=%d", i))
		}
		slices.Sort(wantAll)
		eventually(t, "each subscription has its messages, once", func() bool {
			return all.texts() == strings.Join(wantAll, " ") && again.texts() == all.texts() && one.texts() == strings.Join(wantOne, " ")
		})
		connects := r.Status().Connects
		k.cut()
		eventually(t, "connected again", func() bool { return r.Status().Connects > connects })
	}
	for _, m := range all.msgs {
		if want := map[string]uint8{"cmd": 0, "cmd/pump/set": 1, "cmd/pump": 2}[m.Topic]; m.QoS != want && m.QoS != 1 {
			t.Errorf("%s came with QoS %d, want %d", m.Topic, m.QoS, want)
		}
	}
	if s := r.Status(); s.Unsubscribed != nil {
		t.Errorf("Unsubscribed = %v", s.Unsubscribed)
	}
}

// TestTooLong has a broker send what is longer than is taken, retained and at each
// QoS: it is named to who subscribed, acknowledged, and costs nothing else.
func TestTooLong(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{})
	other := client(t, b.URL())
	long := make([]byte, MaxPacket)
	if err := other.Publish(t.Context(), mqtt.Message{Topic: "cmd/kept", Payload: long, QoS: 1, Retain: true}); err != nil {
		t.Fatal(err)
	}
	got, named := &collector{}, &collector{}
	r := run(t, settings(b.URL()), func(u *Uplink) {
		subscribe(u, Subscription{Filter: "cmd/#", QoS: 2, Handle: got.handle, TooLong: func(m mqtt.Message, length int, from mqtt.Origin) {
			m.Payload = fmt.Appendf(m.Payload, "%d %v via %s", length, m.Retain, from.Via)
			named.handle(m, from)
		}})
	})
	r.connected(t)
	for qos := range uint8(3) {
		for _, p := range [][]byte{long[:len(long)-100], long, {'x'}} {
			if err := other.Publish(t.Context(), mqtt.Message{Topic: fmt.Sprint("cmd/", qos), Payload: p, QoS: qos}); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "what can be taken, and the names of the rest", func() bool {
		return strings.Count(got.texts(), "cmd/") == 6 &&
			named.texts() == "cmd/0=1048576 false via cloud cmd/1=1048576 false via cloud cmd/2=1048576 false via cloud cmd/kept=1048576 true via cloud"
	})
	if s := r.Status(); !s.Connected || s.Connects != 1 {
		t.Errorf("connected %v, %d times", s.Connected, s.Connects)
	}
}

// TestTooLongIsKept is a session that the broker keeps, to which one connects who
// is not told of what is too long, as Test does: it stays for who is.
func TestTooLongIsKept(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{})
	other := client(t, b.URL())
	cfg := settings(b.URL())
	cfg.CleanSession = false
	came := make(chan string, 10)
	connect := func(o ConnOptions) *Conn {
		o.MaxPacket = 1000
		o.Handler = func(m mqtt.Message) []<-chan struct{} {
			came <- string(m.Payload)
			return []<-chan struct{}{make(chan struct{})}
		}
		c, err := Connect(t.Context(), cfg, b.URL(), o)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := connect(ConnOptions{})
	if _, err := c.Subscribe(t.Context(), "cmd/#", 1); err != nil {
		t.Fatal(err)
	}
	c.Close()
	for _, p := range []string{strings.Repeat("x", 2000), "short"} {
		if err := other.Publish(t.Context(), mqtt.Message{Topic: "cmd/kept", Payload: []byte(p), QoS: 1}); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		o    ConnOptions
		want []string
	}{
		{ConnOptions{}, []string{"short"}},
		{ConnOptions{TooLong: func(_ mqtt.Message, length int) { came <- fmt.Sprint(length) }}, []string{"2000", "short"}},
	} {
		c := connect(row.o)
		for _, want := range row.want {
			select {
			case got := <-came:
				if got != want {
					t.Errorf("%q came, want %q", got, want)
				}
			case <-time.After(patience):
				t.Fatalf("%q does not come", want)
			}
		}
		c.Close()
	}
}

// TestSubscriptionsKept is a session that the broker keeps while we are away.
func TestSubscriptionsKept(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{})
	k := newLink(t, b.Addr())
	other := client(t, b.URL())
	got := &collector{}
	cfg := settings(k.url())
	cfg.CleanSession = false
	r := run(t, cfg, func(u *Uplink) {
		u.backoff.least, u.backoff.most = time.Millisecond, 20*time.Millisecond
		subscribe(u, Subscription{Filter: "cmd/#", QoS: 1, Handle: got.handle})
	})
	r.connected(t)
	k.setRefuse(true)
	k.cut()
	eventually(t, "disconnected", func() bool { return !r.Status().Connected })
	for i := range 3 {
		if err := other.Publish(t.Context(), mqtt.Message{Topic: "cmd/x", Payload: fmt.Appendf(nil, "%d", i), QoS: 1}); err != nil {
			t.Fatal(err)
		}
	}
	k.setRefuse(false)
	eventually(t, "what was kept", func() bool { return got.texts() == "cmd/x=0 cmd/x=1 cmd/x=2" })
}

// TestSubscribedFirst looks at what a broker is sent, in order.
func TestSubscribedFirst(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var order []string
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, fmt.Sprintf("%d%s", p.kind, p.topic))
		return polite(p, id)
	})
	r := run(t, settings(b.url()), func(u *Uplink) {
		var subs []Subscription
		for i := range 40 {
			subs = append(subs, Subscription{Filter: mqtt.Filter(fmt.Sprintf("cmd/%d", i)), QoS: 1, Handle: new(collector).handle})
		}
		subscribe(u, subs...)
	})
	r.publish(t, 0, 1, 1)
	r.drained(t)
	mu.Lock()
	defer mu.Unlock()
	want := "1" + strings.Repeat(" 8", 40) + " 3fieldgate/gw1/state 3gw1/p0"
	if got := strings.Join(order, " "); got != want {
		t.Errorf("sent %s\nwant %s", got, want)
	}
}

// TestSubscriptionRefusedByACL has mosquitto refuse one filter of two.
func TestSubscriptionRefusedByACL(t *testing.T) {
	t.Parallel()
	const plugin = "/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so"
	if _, err := os.Stat(plugin); err != nil {
		t.Skip("mosquitto's own access lists refuse no subscription, and its plugin is not there: ", err)
	}
	file := filepath.Join(t.TempDir(), "security.json")
	rules := `{"defaultACLAccess":{"publishClientSend":true,"publishClientReceive":true,"subscribe":false,"unsubscribe":true},
		"clients":[],"anonymousGroup":"any","groups":[{"groupname":"any","roles":[{"rolename":"any"}]}],
		"roles":[{"rolename":"any","acls":[{"acltype":"subscribePattern","topic":"cmd/#","allow":true}]}]}`
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	b := mosquittotest.Start(t, mosquittotest.Options{Lines: []string{"plugin " + plugin, "plugin_opt_config_file " + file}})
	got := &collector{}
	r := run(t, settings(b.URL()), func(u *Uplink) {
		subscribe(u, Subscription{Filter: "secret/#", QoS: 1, Handle: got.handle}, Subscription{Filter: "cmd/#", QoS: 1, Handle: got.handle})
	})
	r.connected(t)
	want := []Unsubscribed{{"secret/#", "session: the broker refuses the subscription to secret/#; check the broker's access rules"}}
	if s := r.Status(); !slices.Equal(s.Unsubscribed, want) || s.Err != "" {
		t.Errorf("Status = %+v, want %v and no other fault", s, want)
	}
	if err := client(t, b.URL()).Publish(t.Context(), mqtt.Message{Topic: "cmd/x", Payload: []byte("1"), QoS: 1}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other filter is served", func() bool { return got.texts() == "cmd/x=1" })
	r.publish(t, 0, 100, 1)
	r.drained(t)
}

// TestSubscriptionFaults are brokers that do not serve the filter "bad". All
// else goes on, and one line says so however often the link comes and goes.
func TestSubscriptionFaults(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		bad  func(id uint16) ([]byte, bool)
		want string
	}{
		{"refused", func(id uint16) ([]byte, bool) { return []byte{0x90, 3, byte(id >> 8), byte(id), 0x80}, true }, "the broker refuses the subscription to bad; check the broker's access rules"},
		{"not answered", func(uint16) ([]byte, bool) { return nil, true }, "the broker does not answer the subscription to bad; look at its log"},
		{"hangs up", func(uint16) ([]byte, bool) { return nil, false }, "the broker closes the connection over the subscription to bad; check its access rules"},
		{"surplus codes", func(id uint16) ([]byte, bool) { return []byte{0x90, 5, byte(id >> 8), byte(id), 0, 0, 0}, true }, "SUBACK of 5 bytes, want 3"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var mend atomic.Bool
			var subscribed atomic.Int32
			b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
				if p.kind == 8 && strings.Contains(string(p.body), "bad") && !mend.Load() {
					return row.bad(id)
				}
				if p.kind == 8 {
					subscribed.Add(1)
				}
				return polite(p, id)
			})
			k := newLink(t, b.l.Addr().String())
			r := run(t, settings(k.url()), func(u *Uplink) {
				u.backoff.least, u.backoff.most = time.Millisecond, 5*time.Millisecond
				if row.name == "not answered" {
					u.ackPatience = time.Second
				}
				subscribe(u, Subscription{Filter: "bad", Handle: new(collector).handle}, Subscription{Filter: "good", Handle: new(collector).handle})
			})
			if row.name == "surplus codes" { // nobody knows what such a broker means: not connected
				eventually(t, "fault", func() bool { return strings.Contains(r.Status().Err, row.want) })
				return
			}
			for range 3 {
				r.connected(t)
				if s := r.Status(); len(s.Unsubscribed) != 1 || s.Unsubscribed[0].Filter != "bad" || !strings.Contains(s.Unsubscribed[0].Err, row.want) {
					t.Fatalf("Unsubscribed = %v", s.Unsubscribed)
				}
				connects := r.Status().Connects
				k.cut()
				eventually(t, "connected again", func() bool { return r.Status().Connects > connects })
			}
			r.publish(t, 0, 10, 1)
			r.drained(t)
			if subscribed.Load() == 0 {
				t.Error("the good filter was not asked for")
			}
			if n := strings.Count(r.log.String(), "not subscribed"); n != 1 {
				t.Errorf("%d log lines, want one:\n%s", n, r.log)
			}
			if row.name == "hangs up" {
				return // it rests for an hour
			}
			mend.Store(true)
			k.cut()
			eventually(t, "subscribed after all", func() bool { return r.Status().Unsubscribed == nil })
		})
	}
}

// TestAcknowledgedOnceSafe sends messages whose handler takes its time: each is
// acknowledged once it is safe, in order, and nothing else waits.
func TestAcknowledgedOnceSafe(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var acks []string
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		mu.Lock()
		defer mu.Unlock()
		out, ok := polite(p, id)
		switch p.kind {
		case 8:
			for i, qos := range []uint8{1, 2, 1, 0, 1} {
				out = append(out, appendPublish(nil, mqtt.Message{Topic: "cmd", Payload: []byte{byte(i)}}, qos, uint16(1+i))...)
			}
		case 4, 5:
			acks = append(acks, fmt.Sprintf("%d:%d", p.kind, p.body[1]))
			if p.kind == 5 {
				return []byte{0x62, 2, 0, p.body[1]}, true // PUBREL
			}
		case 7:
			acks = append(acks, fmt.Sprintf("7:%d", p.body[1]))
		}
		return out, ok
	})
	safe := make([]chan struct{}, 5)
	for i := range safe {
		safe[i] = make(chan struct{})
	}
	var came atomic.Int32
	r := run(t, settings(b.url()), func(u *Uplink) {
		subscribe(u,
			Subscription{Filter: "cmd", QoS: 2, Handle: func(m mqtt.Message, _ mqtt.Origin) <-chan struct{} {
				came.Add(1)
				return safe[m.Payload[0]]
			}},
			Subscription{Filter: "#", QoS: 0, Handle: func(m mqtt.Message, _ mqtt.Origin) <-chan struct{} {
				return safe[(m.Payload[0]+1)%5]
			}})
	})
	want := func(list string) {
		t.Helper()
		eventually(t, "acknowledged "+list, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return strings.Join(acks, " ") == list
		})
	}
	eventually(t, "all have come", func() bool { return came.Load() == 10 }) // two filters, asked for one after the other
	for _, i := range []int{4, 3, 2} {
		close(safe[i])
	}
	r.publish(t, 0, 200, 1)
	r.drained(t)
	want("")
	close(safe[0])
	r.publish(t, 200, 400, 1)
	r.drained(t)
	want("") // message 0 waits for 1 too
	close(safe[1])
	eventually(t, "all are acknowledged in order", func() bool {
		mu.Lock()
		defer mu.Unlock()
		order := slices.DeleteFunc(slices.Clone(acks), func(a string) bool { return strings.HasPrefix(a, "7:") })
		return strings.Join(order, " ") == "4:1 5:2 4:3 4:5 4:1 5:2 4:3 4:5" && len(acks) == 10
	})
}

// TestInboxHasALimit is a broker that sends and sends while nothing is safe.
func TestInboxHasALimit(t *testing.T) {
	t.Parallel()
	b := newFakeBroker(t, func(p packetIn, id uint16) ([]byte, bool) {
		out, ok := polite(p, id)
		if p.kind == 8 {
			for i := range inboxMost + 1 {
				out = append(out, appendPublish(nil, mqtt.Message{Topic: "cmd"}, 1, uint16(1+i))...)
			}
		}
		return out, ok
	})
	never := make(chan struct{})
	c, err := Connect(t.Context(), settings(), b.url(), ConnOptions{Handler: func(mqtt.Message) []<-chan struct{} { return []<-chan struct{}{never} }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Subscribe(t.Context(), "cmd", 1)
	select {
	case <-c.Lost():
	case <-time.After(patience):
		t.Fatal("the connection has not ended")
	}
	var f *Fault
	if err := c.Err(); !errors.As(err, &f) || !strings.Contains(err.Error(), "wait to be safe on disk; look at the disk") {
		t.Errorf("Err = %v", err)
	}
}

// Other subscriptions take the place of those of a connection, which goes on.
func TestSubscriptionsChange(t *testing.T) {
	t.Parallel()
	b := mosquittotest.Start(t, mosquittotest.Options{})
	other := client(t, b.URL())
	old, kept, fresh := &collector{}, &collector{}, &collector{}
	r := run(t, settings(b.URL()), func(u *Uplink) {
		subscribe(u, Subscription{Filter: "old/#", QoS: 1, Handle: old.handle}, Subscription{Filter: "kept", QoS: 1, Handle: old.handle})
	})
	r.connected(t)
	send := func(topic string) {
		t.Helper()
		if err := other.Publish(t.Context(), mqtt.Message{Topic: topic, Payload: []byte("x"), QoS: 1}); err != nil {
			t.Fatal(err)
		}
	}
	send("old/a")
	eventually(t, "the old one is served", func() bool { return old.texts() == "old/a=x" })
	r.Subscribe([]Subscription{{Filter: "kept", QoS: 1, Handle: kept.handle}, {Filter: "new", QoS: 1, Handle: fresh.handle}})
	eventually(t, "the new one is served", func() bool { send("new"); return fresh.texts() != "" })
	send("old/b")
	send("kept")
	eventually(t, "the kept one is served by another", func() bool { return kept.texts() == "kept=x" })
	if old.texts() != "old/a=x" {
		t.Errorf("the old one is still served: %s", old.texts())
	}
	if s := r.Status(); s.Connects != 1 {
		t.Errorf("it connected %d times", s.Connects)
	}
}
