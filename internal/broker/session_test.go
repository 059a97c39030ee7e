package broker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
)

func TestQoS(t *testing.T) {
	for _, version := range []byte{4, 5} {
		for pub := range byte(3) {
			for sub := range byte(3) {
				t.Run(fmt.Sprintf("MQTT %d %d to %d", version, pub, sub), func(t *testing.T) {
					b := run(t, everybody(), "")
					s := connect(t, b.addr(), hello{id: "s", version: version})
					if c := s.subscribe(sub, "t"); c[0] != sub {
						t.Fatalf("granted %d", c[0])
					}
					p := connect(t, b.addr(), hello{id: "p", version: version})
					if code := p.publish("t", "x", pub, false); code != 0 {
						t.Fatalf("code %#x", code)
					}
					if pub == 2 { // once more: it must not come twice
						if code := p.publish("t", "x", pub, false); code != 0 {
							t.Fatalf("code %#x", code)
						}
						p.ack(0x62, 7)
						if head, _ := p.read(); head != 0x70 {
							t.Fatalf("%#x instead of a PUBCOMP", head)
						}
					}
					r := s.parse(s.read())
					if r.payload != "x" || r.qos != min(pub, sub) || r.retain || r.dup {
						t.Errorf("got %v", r)
					}
					switch r.qos {
					case 1:
						s.ack(0x40, r.id)
					case 2:
						s.ack(0x50, r.id)
						if head, _ := s.read(); head != 0x62 {
							t.Fatalf("%#x instead of a PUBREL", head)
						}
						s.ack(0x70, r.id)
					}
					s.ping()
					wait(t, "nothing is under way", func() bool {
						b.tracks.mu.Lock()
						defer b.tracks.mu.Unlock()
						return b.tracks.total == 0
					})
				})
			}
		}
	}
}

func TestRetained(t *testing.T) {
	b := run(t, everybody(), "")
	p := connect(t, b.addr(), hello{id: "p"})
	p.publish("r/1", "old", 1, true)
	p.publish("r/1", "new", 1, true)
	p.ping() // the PUBACK comes before the message is passed on
	b.deliver(t, "r/2", "ours", 1, true)
	b.deliver(t, "r/3", "cleared", 1, true)
	b.deliver(t, "r/3", "", 1, true)
	live := connect(t, b.addr(), hello{id: "live"})
	live.subscribe(1, "r/#")
	var got []string
	for range 2 {
		got = append(got, live.take().String())
	}
	slices.Sort(got)
	if want := []string{"r/1=new q1 retain=true dup=false", "r/2=ours q1 retain=true dup=false"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	b.deliver(t, "r/2", "again", 1, true)
	if r := live.take(); r.payload != "again" || r.retain {
		t.Errorf("a live message: %v", r)
	}
	// It outlives its publisher, and a day: the library's default ends it then.
	p.disconnect()
	if n := b.server.Options.Capabilities.MaximumMessageExpiryInterval; n != 0 {
		t.Errorf("messages expire after %d s", n)
	}
}

// All of many retained messages reach a subscriber that reads, at any QoS.
func TestManyRetained(t *testing.T) {
	b := run(t, everybody(), "")
	const n = 5000
	for i := range n {
		b.deliver(t, fmt.Sprintf("r/%d", i), "12345678901234567890", 1, true)
	}
	for qos := range byte(2) {
		p := connect(t, b.addr(), hello{id: fmt.Sprint("p", qos)})
		p.write(packet(0x82, append(str([]byte{0, 1}, "r/#"), qos)))
		got := make(map[string]bool)
		for len(got) < n {
			head, body := p.read()
			if head == 0x90 {
				continue
			}
			r := p.parse(head, body)
			got[r.topic] = true
			if r.qos == 1 {
				p.ack(0x40, r.id)
			}
		}
	}
	if d := b.Stats().Dropped; d != 0 {
		t.Errorf("%d dropped", d)
	}
}

// A client that is away finds its QoS 1 messages in their order when it comes
// back, and those it has not acknowledged once more.
func TestQueuedInOrder(t *testing.T) {
	for _, version := range []byte{4, 5} {
		b := run(t, everybody(), "")
		p := connect(t, b.addr(), hello{id: "p", version: version, keep: true})
		p.subscribe(1, "q")
		const n = 200
		for i := range n / 2 {
			b.deliver(t, "q", fmt.Sprint(i), 1, false)
		}
		for i := range 10 { // taken, the rest never
			if r := p.take(); r.payload != fmt.Sprint(i) {
				t.Fatalf("got %v, want %d", r, i)
			}
		}
		p.ping2()
		_ = p.conn.Close()
		wait(t, "it is gone", func() bool { return b.Stats().Clients == 0 })
		for i := n / 2; i < n; i++ {
			b.deliver(t, "q", fmt.Sprint(i), 1, false)
		}
		b.deliver(t, "q", "at most once", 0, false)
		p = connect(t, b.addr(), hello{id: "p", version: version, keep: true})
		if !p.session {
			t.Error("no session")
		}
		for i := 10; i < n; i++ {
			if r := p.take(); r.payload != fmt.Sprint(i) || !r.dup {
				t.Fatalf("MQTT %d: got %v, want %d", version, r, i)
			}
		}
		p.ping()
		b.stop()
	}
}

// ping2 is ping for a peer with messages still to be read.
func (p *peer) ping2() {
	p.t.Helper()
	p.write([]byte{0xC0, 0})
	for {
		if head, _ := p.read(); head == 0xD0 {
			return
		}
	}
}

// What waits for clients that are away is bounded in memory.
func TestQueueIsBounded(t *testing.T) {
	b := run(t, everybody(), "")
	p := connect(t, b.addr(), hello{id: "p", keep: true})
	p.subscribe(1, "q")
	p.disconnect()
	wait(t, "it is gone", func() bool { return b.Stats().Clients == 0 })
	payload := strings.Repeat("x", 100_000)
	for range 200 {
		b.deliver(t, "q", payload, 1, false)
	}
	b.tracks.mu.Lock()
	total := b.tracks.total
	b.tracks.mu.Unlock()
	cl, _ := b.server.Clients.Get("p")
	if n := cl.State.Inflight.Len(); total > maxInflight || n != maxInflight/101_024-0 && n*101_025 > maxInflight {
		t.Errorf("%d messages, %d bytes", n, total)
	}
	if st := b.Stats(); st.Dropped != 200-uint64(cl.State.Inflight.Len()) {
		t.Errorf("%d dropped, %d wait", st.Dropped, cl.State.Inflight.Len())
	}
	if n := strings.Count(b.log.String(), "dropped"); n != 1 {
		t.Errorf("%d lines about it", n)
	}
}

// A newer connection with the same client id gets the service, each time, and
// the older one is told if it speaks MQTT 5.
func TestTakeover(t *testing.T) {
	for _, version := range []byte{4, 5} {
		for _, keep := range []bool{false, true} {
			t.Run(fmt.Sprintf("MQTT %d keep %t", version, keep), func(t *testing.T) {
				b := run(t, everybody(), "")
				h := hello{id: "same", version: version, keep: keep}
				old := connect(t, b.addr(), h)
				for i := range 50 {
					p := connect(t, b.addr(), h)
					if p.session != keep {
						t.Fatalf("session present: %t", p.session)
					}
					if head, body := old.closed(); version == 5 && (head != 0xE0 || body[0] != 0x8E) {
						t.Fatalf("the old one was told %#x % x", head, body)
					}
					p.subscribe(0, "t")
					b.deliver(t, "t", fmt.Sprint(i), 0, false)
					if r := p.take(); r.payload != fmt.Sprint(i) {
						t.Fatalf("got %v, want %d", r, i)
					}
					old = p
				}
				if st := b.Stats(); st.Clients != 1 || st.Sessions != 1 || st.Subscriptions != 1 {
					t.Errorf("stats %+v", st)
				}
			})
		}
	}
}

// Many connections with one client id at once: in the end one of them is
// served.
func TestTakeoverRace(t *testing.T) {
	b := run(t, everybody(), "")
	for range 10 {
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				c := dial(t, b.addr())
				_, _ = c.Write(hello{id: "same"}.packet())
				time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
			})
		}
		wg.Wait()
	}
	wait(t, "all have had their turn", func() bool {
		b.wires.mu.Lock()
		defer b.wires.mu.Unlock()
		return len(b.wires.pending) == 0 && len(b.wires.all) == 1
	})
	p := connect(t, b.addr(), hello{id: "same"})
	p.subscribe(0, "t")
	b.deliver(t, "t", "1", 0, false)
	p.take()
	wait(t, "one is left", func() bool { st := b.Stats(); return st.Clients == 1 && st.Sessions == 1 && st.Subscriptions == 1 })
}

func TestWills(t *testing.T) {
	t.Parallel()
	b := run(t, everybody(), "")
	w := connect(t, b.addr(), hello{id: "watcher"})
	w.subscribe(1, "will/#")
	die := func(h hello) *peer {
		h.will = &mqtt.Message{Topic: "will/" + h.id, Payload: []byte("gone"), QoS: 1, Retain: true}
		return connect(t, b.addr(), h)
	}
	quiet := func(what string) {
		t.Helper()
		b.deliver(t, "will/end", what, 0, false)
		if r := w.take(); r.topic != "will/end" {
			t.Errorf("%s: got %v", what, r)
		}
	}
	said := func(id string) {
		t.Helper()
		if r := w.take(); r.topic != "will/"+id || r.payload != "gone" {
			t.Errorf("got %v, want the will of %s", r, id)
		}
	}
	_ = die(hello{id: "lost"}).conn.Close()
	said("lost")
	die(hello{id: "polite"}).disconnect()
	quiet("after a DISCONNECT")
	die(hello{id: "same"})
	connect(t, b.addr(), hello{id: "same"})
	said("same")
	p := die(hello{id: "says so", version: 5})
	p.write([]byte{0xE0, 2, 4, 0})
	said("says so")
	p = die(hello{id: "violates", version: 5})
	p.write([]byte{0x30, 0x80, 0x80, 0x80, 0x80, 1})
	said("violates")
	_ = die(hello{id: "no session", version: 5, delay: 3600}).conn.Close()
	said("no session") // a will does not outwait its session
	_ = die(hello{id: "later", version: 5, keep: true, delay: 1}).conn.Close()
	quiet("before its delay")
	said("later")
	_ = die(hello{id: "back in time", version: 5, keep: true, delay: 2}).conn.Close()
	wait(t, "it is gone", func() bool { return b.Stats().Clients <= 2 })
	connect(t, b.addr(), hello{id: "back in time", version: 5, keep: true})
	quiet("of one who came back")
}

// Who is taken over the moment it is in has its will published, too.
func TestWillOfTakenOver(t *testing.T) {
	t.Parallel()
	b := run(t, everybody(), "")
	w := connect(t, b.addr(), hello{id: "watcher"})
	w.subscribe(1, "will")
	h := hello{id: "same", will: &mqtt.Message{Topic: "will", Payload: []byte("gone"), QoS: 1}}
	connect(t, b.addr(), h)
	for range 300 {
		connect(t, b.addr(), h)
		if r := w.take(); r.topic != "will" {
			t.Fatalf("got %v", r)
		}
	}
}

func TestKeepalive(t *testing.T) {
	cfg := everybody()
	cfg.KeepaliveMax = 30 * time.Second
	b := run(t, cfg, "")
	for _, tt := range []struct {
		version   byte
		asked     uint16
		told      int // server keep-alive, -1: none
		atMost    time.Duration
		unlimited bool
	}{
		{4, 10, -1, 15 * time.Second, false},
		{4, 1, -1, 7 * time.Second, false}, // 5 is the least held against it
		{4, 65535, -1, 65535 * time.Second, false},
		{4, 0, -1, 0, true}, // TCP finds out
		{5, 10, -1, 15 * time.Second, false},
		{5, 0, 30, 45 * time.Second, false},
		{5, 600, 30, 45 * time.Second, false},
	} {
		c := dial(t, b.addr())
		p := &peer{t: t, conn: c, version: tt.version}
		p.in = bufio.NewReader(c)
		p.write(hello{id: "k", version: tt.version, keepalive: tt.asked}.packet())
		_, body := p.read()
		told := -1
		if i := slices.Index(body, 19); tt.version == 5 && i > 2 {
			told = int(body[i+1])<<8 | int(body[i+2])
		}
		if told != tt.told {
			t.Errorf("MQTT %d asked %d: told %d, want %d", tt.version, tt.asked, told, tt.told)
		}
		wait(t, "it is in", func() bool { _, ok := b.server.Clients.Get("k"); return ok })
		b.mu.Lock()
		cl := b.live["k"].client.Load()
		b.mu.Unlock()
		k := cl.State.Keepalive
		if limit := time.Duration(k+k/2) * time.Second; tt.unlimited != (k == 0) || limit > tt.atMost || k > 0 && limit < 5*time.Second {
			t.Errorf("MQTT %d asked %d: limit %v", tt.version, tt.asked, limit)
		}
		_ = c.Close()
		wait(t, "it is out", func() bool { return b.Stats().Clients == 0 })
	}
}

func TestReceiveMaximum(t *testing.T) {
	b := run(t, everybody(), "")
	p := connect(t, b.addr(), hello{id: "p", version: 5, keep: true, receiveMax: 3})
	p.subscribe(2, "t")
	const n = 200
	for i := range n {
		b.deliver(t, "t", fmt.Sprint(i), uint8(1+i%2), false)
	}
	var open []received
	for got := 0; got < n; {
		for len(open) < min(3, n-got) {
			r := p.parse(p.read())
			if r.payload != fmt.Sprint(got+len(open)) {
				t.Fatalf("got %v, want %d", r, got+len(open))
			}
			open = append(open, r)
		}
		if _, _, err := p.next(2 * time.Millisecond); err == nil {
			t.Fatalf("more than 3 under way")
		}
		r := open[0]
		open = open[1:]
		got++
		if r.qos == 1 {
			p.ack(0x40, r.id)
			continue
		}
		p.ack(0x50, r.id)
		if head, body := p.read(); head != 0x62 {
			t.Fatalf("%#x % x instead of a PUBREL", head, body)
		}
		p.ack(0x70, r.id)
	}
	p.ping()
	// Another publisher and Deliver at once do not lock up.
	var wg sync.WaitGroup
	for i := range 3 {
		q := connect(t, b.addr(), hello{id: fmt.Sprint("q", i)})
		wg.Go(func() {
			for range 200 {
				q.publish("t", "x", 1, false)
			}
		})
	}
	for range 600 {
		p.take()
	}
	wg.Wait()
	if err := b.Probe(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSessionExpires(t *testing.T) {
	t.Parallel()
	cfg := everybody()
	cfg.SessionExpiry = time.Second
	cfg.Persist = true
	dir := t.TempDir()
	b := run(t, cfg, dir)
	for _, version := range []byte{4, 5} {
		p := connect(t, b.addr(), hello{id: fmt.Sprint(version), version: version, keep: true})
		p.subscribe(1, "a", "b")
		p.disconnect()
	}
	b.deliver(t, "a", "x", 1, false)
	wait(t, "nothing is left of them", func() bool {
		b.tracks.mu.Lock()
		defer b.tracks.mu.Unlock()
		st := b.Stats()
		return st.Sessions == 0 && st.Subscriptions == 0 && len(b.tracks.all) == 0 && b.tracks.total == 0
	})
	b.stop()
	b = run(t, cfg, dir)
	if st := b.Stats(); st.Sessions != 0 || st.Subscriptions != 0 {
		t.Errorf("after a restart: %+v", st)
	}
}

func TestHandlers(t *testing.T) {
	b := run(t, everybody(), "")
	p := connect(t, b.addr(), hello{id: "p", will: &mqtt.Message{Topic: "cmd/will", Payload: []byte("stop")}})
	p.publish("cmd/retained", "before", 1, true)
	b.deliver(t, "cmd/ours", "retained by the gateway", 0, true)
	got := make(chan mqtt.Message, 100)
	cancel, err := b.Subscribe("cmd/#", func(m mqtt.Message, from mqtt.Origin) <-chan struct{} {
		got <- m
		from.Reply(mqtt.Message{Topic: "ack/" + m.Topic, Payload: m.Payload})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := func(topic, payload string, qos uint8, retain bool) {
		t.Helper()
		select {
		case m := <-got:
			if m.Topic != topic || string(m.Payload) != payload || m.QoS != qos || m.Retain != retain {
				t.Errorf("got %+v", m)
			}
		case <-time.After(patience):
			t.Fatalf("%s has not come", topic)
		}
	}
	want("cmd/retained", "before", 1, true)
	acks := connect(t, b.addr(), hello{id: "acks"})
	acks.subscribe(0, "ack/#")
	p.publish("cmd/a", "1", 1, true)
	if len(got) != 1 {
		t.Error("the PUBACK came before the handler was called")
	}
	want("cmd/a", "1", 1, false)
	if r := acks.take(); r.topic != "ack/cmd/a" || r.payload != "1" {
		t.Errorf("reply %v", r)
	}
	p.publish("other", "1", 1, false)
	b.deliver(t, "cmd/ours", "live", 1, false)
	_ = p.conn.Close()
	want("cmd/will", "stop", 0, false)
	if len(got) > 0 {
		t.Errorf("more has come: %+v", <-got)
	}
	cancel()
	q := connect(t, b.addr(), hello{id: "q"})
	q.publish("cmd/a", "2", 1, false)
	if len(got) > 0 {
		t.Error("called after cancel")
	}
	for _, filter := range []mqtt.Filter{"", "a+", "a/#/b"} {
		if _, err := b.Subscribe(filter, nil); !errors.Is(err, mqtt.ErrInvalid) {
			t.Errorf("Subscribe(%q) = %v", filter, err)
		}
	}
}

// The probe tells when a publish inside the broker does not come back.
func TestProbe(t *testing.T) {
	b := run(t, everybody(), "")
	for range 100 {
		if err := b.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	p := connect(t, b.addr(), hello{id: "p", version: 5})
	p.subscribe(1, "#")
	cl, _ := b.server.Clients.Get("p")
	cl.State.Inflight.Lock() // as the library's lock inversion does
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.Probe(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Probe = %v while a client's lock is held", err)
	}
	if err := b.Probe(t.Context()); err == nil {
		t.Error("a second probe beside the first")
	}
	cl.State.Inflight.Unlock()
	wait(t, "the probe answers again", func() bool { return b.Probe(t.Context()) == nil })
}

func TestSys(t *testing.T) {
	b := run(t, everybody(), "")
	p := connect(t, b.addr(), hello{id: "p"})
	p.subscribe(0, "$SYS/broker/version")
	if r := p.take(); r.payload != "mochi "+mochi.Version || !r.retain {
		t.Errorf("got %v", r)
	}
	p.subscribe(0, "#")
	p.ping() // no $SYS topic for a wildcard
}

// A session that expires in the moment its client comes back is either there
// or not; the client is served in both cases.
func TestExpiryMeetsReturn(t *testing.T) {
	b := run(t, everybody(), "")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				b.endAway("c")
			}
		}
	})
	for i := range 200 {
		p := connect(t, b.addr(), hello{id: "c", keep: true, version: byte(4 + i%2)})
		p.subscribe(1, "t")
		b.deliver(t, "t", fmt.Sprint(i), 1, false)
		if r := p.take(); r.payload != fmt.Sprint(i) {
			t.Fatalf("got %v, want %d", r, i)
		}
		if i%3 == 0 {
			p.disconnect()
		}
	}
	close(stop)
	wg.Wait()
	if st := b.Stats(); st.Subscriptions > 1 {
		t.Errorf("stats %+v", st)
	}
}

// A subscriber that reads too slowly loses messages, keeps its connection, and
// holds up nobody.
func TestSlowSubscriber(t *testing.T) {
	b := run(t, everybody(), "")
	slow := connect(t, b.addr(), hello{id: "slow"})
	slow.subscribe(0, "t")
	payload := strings.Repeat("x", 20_000)
	const n = 1500
	start := time.Now()
	for range n {
		b.deliver(t, "t", payload, 0, false)
	}
	if d := time.Since(start); d > usualTimes().write*4/5 {
		t.Errorf("%d messages took %v", n, d)
	}
	got := uint64(0)
	for {
		if _, _, err := slow.next(500 * time.Millisecond); err != nil {
			break
		}
		got++
	}
	st := b.Stats()
	if got < 100 || st.Dropped == 0 || st.Dropped+got != n || st.Stuck != 0 || st.Clients != 1 {
		t.Errorf("%d came, stats %+v", got, st)
	}
	if lines := strings.Count(b.log.String(), "dropped"); lines != 1 {
		t.Errorf("%d lines about it", lines)
	}
}

func TestMessageExpiry(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := kept()
	b := run(t, cfg, dir)
	p := connect(t, b.addr(), hello{id: "p", version: 5})
	for _, s := range []uint8{2, 100} {
		topic := fmt.Sprint("expires/", s)
		p.write(packet(0x31, append(append(str(nil, topic), 5, 2, 0, 0, 0, s), "x"...)))
	}
	p.ping()
	b.stop()
	b = run(t, cfg, dir)
	retained := func(topic string) bool { _, ok := b.server.Topics.Retained.Get(topic); return ok }
	if !retained("expires/2") || !retained("expires/100") {
		t.Fatal("not there after a restart")
	}
	wait(t, "the first has expired", func() bool { return !retained("expires/2") })
	s := connect(t, b.addr(), hello{id: "s", version: 5})
	s.subscribe(0, "expires/#")
	if r := s.take(); r.topic != "expires/100" {
		t.Errorf("got %v", r)
	}
	s.ping()
	b.stop()
	if n := len(saved(t, dir)[retainedBucket]); n != 1 {
		t.Errorf("%d on disk", n)
	}
}

// Wills that wait are published when their sessions end, and at the latest when
// the broker does.
func TestWaitingWills(t *testing.T) {
	dir := t.TempDir()
	b := run(t, kept(), dir)
	w := connect(t, b.addr(), hello{id: "w"})
	w.subscribe(0, "will/#")
	for _, id := range []string{"clean start", "ended", "end of the broker"} {
		p := connect(t, b.addr(), hello{id: id, version: 5, keep: true, delay: 3000,
			will: &mqtt.Message{Topic: "will/" + id, Payload: []byte("gone"), Retain: true}})
		_ = p.conn.Close()
	}
	wait(t, "they are gone", func() bool { return b.Stats().Clients == 1 })
	connect(t, b.addr(), hello{id: "clean start", version: 5})
	if r := w.take(); r.topic != "will/clean start" {
		t.Errorf("got %v", r)
	}
	b.endAway("ended")
	if r := w.take(); r.topic != "will/ended" {
		t.Errorf("got %v", r)
	}
	b.stop()
	b = run(t, kept(), dir)
	if _, ok := b.server.Topics.Retained.Get("will/end of the broker"); !ok {
		t.Error("the last one was never published")
	}
}

func TestTooManyRetained(t *testing.T) {
	b := run(t, everybody(), "")
	p := connect(t, b.addr(), hello{id: "p"})
	p.publish("mine", "1", 1, true)
	for i := range maxRetained {
		b.deliver(t, fmt.Sprint("r/", i), "x", 0, true)
	}
	p.publish("another", "1", 1, true)
	p.publish("mine", "2", 1, true)
	if _, ok := b.server.Topics.Retained.Get("another"); ok {
		t.Error("one more is retained")
	}
	if pk, _ := b.server.Topics.Retained.Get("mine"); string(pk.Payload) != "2" {
		t.Errorf("the one that was there is %q", pk.Payload)
	}
	if st := b.Stats(); st.RefusedRetained != 1 {
		t.Errorf("stats %+v", st)
	}
}

// What an MQTT 5 client sends beside the payload reaches another.
func TestProperties(t *testing.T) {
	b := run(t, everybody(), "")
	s := connect(t, b.addr(), hello{id: "s", version: 5})
	s.write(packet(0x82, append(str([]byte{0, 1, 2, 11, 99}, "t"), 1)))
	s.read()
	p := connect(t, b.addr(), hello{id: "p", version: 5})
	props := str([]byte{8}, "answers/here")
	props = str(append(props, 9), "id-1")
	props = str(append(props, 3), "application/json")
	props = str(str(append(props, 38), "key"), "value")
	p.write(packet(0x32, append(append(append(str(nil, "t"), 0, 7, byte(len(props))), props...), "{}"...)))
	if head, body := p.read(); head != 0x40 || len(body) > 2 && body[2] != 0 {
		t.Errorf("%#x % x instead of a PUBACK without properties", head, body)
	}
	_, body := s.read()
	for _, want := range []string{"answers/here", "id-1", "application/json", "key", "value", "\x0b\x63"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("%q is not in %q", want, body)
		}
	}
}

// The last words before the end arrive: the gateway says there that it goes.
func TestLastMessages(t *testing.T) {
	for _, version := range []byte{4, 5} {
		b := run(t, everybody(), "")
		p := connect(t, b.addr(), hello{id: "p", version: version})
		p.subscribe(1, "#")
		for i := range 200 {
			b.deliver(t, "t", fmt.Sprint(i), 1, false)
		}
		b.stop()
		for i := range 200 {
			if r := p.parse(p.read()); r.payload != fmt.Sprint(i) {
				t.Fatalf("got %v, want %d", r, i)
			}
		}
		if head, body := p.closed(); version == 5 && (head != 0xE0 || body[0] != 0x8B) || version == 4 && head != 0 {
			t.Errorf("MQTT %d: %#x % x at the end", version, head, body)
		}
	}
}

// "a/#" is about "a" too, as soon as it is subscribed to.
func TestRetainedOfParent(t *testing.T) {
	b := run(t, plantAnd(t), "")
	for _, topic := range []string{"a", "a/b", "x/a", "y/a"} {
		b.deliver(t, topic, topic, 2, true)
	}
	for qos := range byte(2) {
		for _, tt := range []struct {
			filter string
			want   []string
		}{
			{"a/#", []string{"a", "a/b"}}, {"+/a/#", []string{"x/a", "y/a"}}, {"a", []string{"a"}}, {"none/#", nil}, {"$share/g/a/#", nil},
		} {
			p := connect(t, b.addr(), hello{id: "p", version: 5, receiveMax: 1})
			p.write(packet(0x82, append(str([]byte{0, 1, 0}, tt.filter), qos)))
			p.write([]byte{0xC0, 0})
			var got []string
			for {
				head, body := p.read()
				if head == 0xD0 {
					break
				}
				if head == 0x90 {
					continue
				}
				r := p.parse(head, body)
				if !r.retain {
					t.Errorf("got %v", r)
				}
				if r.qos == 1 {
					p.ack(0x40, r.id)
				}
				got = append(got, r.topic)
			}
			for len(got) < len(tt.want) { // those that waited for an acknowledgement
				got = append(got, p.take().topic)
			}
			slices.Sort(got)
			if !slices.Equal(got, tt.want) {
				t.Errorf("%s QoS %d: got %q, want %q", tt.filter, qos, got, tt.want)
			}
		}
	}
	// Retain handling 1: not for a subscription that was there.
	p := connect(t, b.addr(), hello{id: "p", version: 5})
	for _, want := range []bool{true, false} {
		p.write(packet(0x82, append(str([]byte{0, 1, 0}, "a/b/#"), 0x10)))
		if head, _ := p.read(); head != 0x90 {
			t.Fatal("no SUBACK")
		}
		if want {
			p.take()
		}
		p.ping()
	}
	if q := connect(t, b.addr(), hello{id: "q", user: "hmi", password: "hmi's"}); q.subscribe(0, "a/#")[0] != 0x80 {
		t.Error("allowed")
	} else {
		q.ping()
	}
}

// plantAnd is plant with anonymous clients beside.
func plantAnd(t *testing.T) config.Broker {
	t.Helper()
	cfg := plant()
	cfg.Anonymous = true
	return cfg
}
