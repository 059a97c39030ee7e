package broker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"fieldgate/internal/mqtt"
)

// healthy is a subscriber that must keep its service whatever others do.
func healthy(t testing.TB, b *testBroker) func() {
	t.Helper()
	p := connect(t, b.addr(), hello{id: "healthy"})
	p.subscribe(0, "healthy/#")
	n := 0
	return func() {
		t.Helper()
		n++
		b.deliver(t, "healthy/topic", fmt.Sprint(n), 0, false)
		if r := p.take(); r.payload != fmt.Sprint(n) {
			t.Fatalf("got %v, want %d", r, n)
		}
		if err := b.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// One packet of 13 bytes is enough to make the library's decoder panic.
func TestPacketThatPanics(t *testing.T) {
	b := run(t, everybody(), "")
	check := healthy(t, b)
	watcher := connect(t, b.addr(), hello{id: "watcher"})
	watcher.subscribe(0, "wills")
	truncated := []byte{0x82, 6, 0, 1, 0, 0, 1, 'a'} // MQTT 5: the options byte is missing
	for i, h := range []hello{
		{id: "p", version: 5, will: &mqtt.Message{Topic: "wills", Payload: []byte("gone")}},
		{id: "p", version: 5, keep: true, will: &mqtt.Message{Topic: "wills", Payload: []byte("gone")}},
	} {
		p := connect(t, b.addr(), h)
		p.subscribe(1, "healthy/#", "x")
		p.write(truncated)
		p.closed()
		check()
		if r := watcher.take(); r.payload != "gone" {
			t.Errorf("the will is %v", r)
		}
		wait(t, "the broker has cleared up", func() bool {
			st := b.Stats()
			return st.Panics == uint64(i+1) && st.Malformed == uint64(i+1) && st.Clients == 2
		})
	}
	// The first client's session has ended with it, the second's is kept.
	wait(t, "one session more than clients, with its two subscriptions", func() bool {
		st := b.Stats()
		return st.Sessions == 3 && st.Subscriptions == 4
	})
	if p := connect(t, b.addr(), hello{id: "p", version: 5, keep: true}); !p.session {
		t.Error("the session that was to be kept is gone")
	}
	if !strings.Contains(b.log.String(), "a packet caused a panic") {
		t.Error("nothing is logged")
	}
}

// Whatever bytes come, before or after a good CONNECT, a healthy client keeps
// its service.
func TestMalformedPackets(t *testing.T) {
	b := run(t, everybody(), "")
	check := healthy(t, b)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	good := func(version byte) [][]byte {
		sub := []byte{0, 9}
		if version == 5 {
			sub = append(sub, 2, 11, 5)
		}
		return [][]byte{
			hello{id: "m", version: version, will: &mqtt.Message{Topic: "w", Payload: []byte("x")}}.packet(),
			publishPacket(version, "some/topic", "payload", 2, true, 9),
			packet(0x82, append(str(sub, "a/+/b"), 1)),
			packet(0xA2, str(sub[:2:2], "a/+/b")),
			{0x40, 2, 0, 9}, {0x50, 2, 0, 9}, {0x62, 2, 0, 9}, {0x70, 2, 0, 9}, {0xC0, 0}, {0xE0, 0},
			{0xF0, 2, 0, 0},
		}
	}
	for i := range 600 {
		version := byte(4 + i%2)
		c := dial(t, b.addr())
		if i%3 > 0 {
			greet(t, c, hello{id: fmt.Sprint("m", i%7), version: version, keep: i%5 == 0})
		}
		all := good(version)
		p := append([]byte(nil), all[rnd.IntN(len(all))]...)
		switch rnd.IntN(4) {
		case 0: // cut, with a length that says so
			p = packet(p[0], p[2:2+rnd.IntN(len(p)-1)])
		case 1:
			for range 1 + rnd.IntN(4) {
				p[rnd.IntN(len(p))] = byte(rnd.Uint32())
			}
		case 2:
			p = append(p, all[rnd.IntN(len(all))]...)
			p[rnd.IntN(len(p))] ^= 1 << rnd.IntN(8)
		case 3:
			p = make([]byte, 1+rnd.IntN(40))
			for j := range p {
				p[j] = byte(rnd.Uint32())
			}
		}
		_, _ = c.Write(p)
		if i%2 == 0 {
			_ = c.(*net.TCPConn).CloseWrite()
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, syscall.ETIMEDOUT) {
				t.Fatalf("% x leaves the connection open", p)
			}
		}
		_ = c.Close()
		if i%20 == 0 {
			check()
		}
	}
	check()
	wait(t, "only the healthy client is left", func() bool { return b.Stats().Clients == 1 })
}

// FuzzBytes sends whatever bytes to a broker, as they are and after a CONNECT.
func FuzzBytes(f *testing.F) {
	f.Add([]byte{0x82, 6, 0, 1, 0, 0, 1, 'a'}, byte(5))
	f.Add(publishPacket(5, "a", "b", 1, true, 1), byte(5))
	f.Add(publishPacket(4, "a", "b", 2, false, 1), byte(4))
	f.Add(hello{id: "x", version: 5, will: &mqtt.Message{Topic: "w"}}.packet(), byte(0))
	b := run(f, everybody(), "")
	f.Fuzz(func(t *testing.T, data []byte, version byte) {
		c := dial(t, b.addr())
		if version == 4 || version == 5 {
			greet(t, c, hello{id: "fuzz", version: version})
		}
		_, _ = c.Write(data)
		_ = c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(patience))
		_, _ = io.Copy(io.Discard, c)
		if err := b.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// A subscriber that stops reading is cut off; nobody waits for it, neither our
// own publish, nor another subscriber, nor a client that publishes, nor the one
// that takes its place, nor the end of the broker.
func TestSubscriberThatStopsReading(t *testing.T) {
	for _, qos := range []byte{0, 1} {
		for _, version := range []byte{4, 5} {
			t.Run(fmt.Sprintf("QoS %d MQTT %d", qos, version), func(t *testing.T) {
				t.Parallel()
				limits := testTimes()
				limits.write = 5 * time.Second // who waits for it takes about as long
				b := runTimes(t, everybody(), "", limits)
				good := connect(t, b.addr(), hello{id: "good", version: version})
				good.subscribe(qos, "#")
				stuck := connect(t, b.addr(), hello{id: "stuck", version: version, keep: true})
				stuck.subscribe(qos, "#")
				payload := strings.Repeat("x", 60_000)
				var worst time.Duration
				const n = 300
				go func() {
					for i := range n {
						start := time.Now()
						_ = b.Deliver(t.Context(), mqtt.Message{Topic: fmt.Sprint(i), Payload: []byte(payload), QoS: qos})
						worst = max(worst, time.Since(start))
					}
					b.deliver(t, "last", worst.String(), 1, false)
				}()
				for i := range n {
					if r := good.take(); r.topic != fmt.Sprint(i) {
						t.Fatalf("message %d is %s", i, r.topic)
					}
				}
				d, err := time.ParseDuration(good.take().payload)
				if err != nil || d > limits.write*4/5 {
					t.Errorf("the longest Deliver took %v %v", d, err)
				}
				wait(t, "the stuck client is cut off", func() bool { return b.Stats().Stuck == 1 })
				if back := connect(t, b.addr(), hello{id: "stuck", version: version, keep: true}); !back.session {
					t.Error("its session is gone")
				}
				if !strings.Contains(b.log.String(), "client cut off") {
					t.Error("it is not logged")
				}
			})
		}
	}
}

func TestTakeoverOfStuckClient(t *testing.T) {
	t.Parallel()
	b := run(t, everybody(), "")
	stuck := connect(t, b.addr(), hello{id: "c"})
	stuck.subscribe(1, "#")
	payload := strings.Repeat("x", 200_000)
	wait(t, "its network takes nothing more", func() bool {
		for range 10 {
			b.deliver(t, "t", payload, 1, false)
		}
		before := b.backlog.Load()
		time.Sleep(20 * time.Millisecond)
		return before > 1<<20 && b.backlog.Load() >= before
	})
	start := time.Now()
	p := connect(t, b.addr(), hello{id: "c"})
	if d := time.Since(start); d > usualTimes().write*4/5 {
		t.Errorf("the new connection waited %v", d)
	}
	p.subscribe(0, "new")
	b.deliver(t, "new", "1", 0, false)
	if r := p.take(); r.payload != "1" {
		t.Errorf("got %v", r)
	}
	stuck2 := connect(t, b.addr(), hello{id: "d"})
	stuck2.subscribe(0, "#")
	for range 40 {
		b.deliver(t, "t", payload, 0, false)
	}
	start = time.Now()
	b.stop()
	if d := time.Since(start); d > usualTimes().write*4/5 {
		t.Errorf("the end took %v", d)
	}
}

// A client that sends and never reads the answers is cut off too, and what
// waits for it is bounded.
func TestClientThatNeverReadsAnswers(t *testing.T) {
	t.Parallel()
	limits := testTimes()
	limits.write = 300 * time.Millisecond
	b := runTimes(t, everybody(), "", limits)
	check := healthy(t, b)
	b.deliver(t, "large", strings.Repeat("x", 100_000), 0, true)
	c := dial(t, b.addr())
	greet(t, c, hello{id: "asker"})
	ask := packet(0x82, append(str([]byte{0, 1}, "large"), 0))
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	for {
		if _, err := c.Write(ask); err != nil {
			if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
				break
			}
			t.Fatal(err)
		}
		time.Sleep(100 * time.Microsecond)
	}
	check()
	wait(t, "nothing waits any more", func() bool { return b.Stats().BacklogBytes == 0 })
}

// Hundreds of connections that never say CONNECT keep nobody out.
func TestHalfOpenClients(t *testing.T) {
	b := run(t, everybody(), "")
	check := healthy(t, b)
	for i := range 300 {
		c := dial(t, b.addr())
		if i%2 == 0 {
			_, _ = c.Write([]byte{0x10, 50, 0, 4, 'M'})
		}
		if i%50 == 0 {
			connect(t, b.addr(), hello{id: "newcomer"}).disconnect()
		}
	}
	check()
	connect(t, b.addr(), hello{id: "newcomer"})
	wait(t, "what is pending is bounded", func() bool {
		b.wires.mu.Lock()
		defer b.wires.mu.Unlock()
		return len(b.wires.pending) <= maxPendingFrom && len(b.wires.all) <= maxPendingFrom+2
	})
	if n := b.Stats().Evicted; n < 200 {
		t.Errorf("%d evicted", n)
	}
	if n := strings.Count(b.log.String(), "without a CONNECT"); n > noticeBurst+1 {
		t.Errorf("%d lines about it", n)
	}
}

// The whole CONNECT has to come in time, however slowly its bytes do.
func TestSlowConnect(t *testing.T) {
	t.Parallel()
	limits := testTimes()
	limits.connect = 300 * time.Millisecond
	b := runTimes(t, everybody(), "", limits)
	start := time.Now()
	c := dial(t, b.addr())
	for _, one := range (hello{id: strings.Repeat("x", 200)}).packet() {
		if _, err := c.Write([]byte{one}); err != nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if n, err := c.Read(make([]byte, 1)); err == nil || n > 0 {
		t.Error("it was answered")
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it was closed after %v", d)
	}
	if st := b.Stats(); st.Connects != 0 {
		t.Errorf("stats %+v", st)
	}
	// In time it is let in, and stays longer than that.
	p := connect(t, b.addr(), hello{id: "x"})
	time.Sleep(2 * limits.connect)
	p.ping()
}

func TestOversizePacket(t *testing.T) {
	cfg := everybody()
	cfg.MaxPacket = 1000
	b := run(t, cfg, "")
	check := healthy(t, b)
	p := connect(t, b.addr(), hello{id: "a", version: 5})
	if code := p.publish("t", strings.Repeat("x", 980), 1, false); code != 0 {
		t.Errorf("a packet of almost the limit: %#x", code)
	}
	before := b.Stats().BytesIn
	p.write([]byte{0x30, 0xFF, 0xFF, 0xFF, 0x7F}) // 256 MiB to come
	p.closed()
	if got := b.Stats().BytesIn - before; got > 100 {
		t.Errorf("%d bytes were read", got)
	}
	check()
	// Our own messages may be longer.
	q := connect(t, b.addr(), hello{id: "b"})
	q.subscribe(0, "big")
	b.deliver(t, "big", strings.Repeat("x", 5000), 0, false)
	if r := q.take(); len(r.payload) != 5000 {
		t.Errorf("%d bytes", len(r.payload))
	}
}

func TestMaxClients(t *testing.T) {
	cfg := everybody()
	cfg.MaxClients = 3
	b := run(t, cfg, "")
	var ps []*peer
	for i := range 3 {
		ps = append(ps, connect(t, b.addr(), hello{id: fmt.Sprint(i)}))
	}
	if _, code := try(t, dial(t, b.addr()), hello{id: "more"}); code != 3 {
		t.Errorf("MQTT 3.1.1 code %#x", code)
	}
	if _, code := try(t, dial(t, b.addr()), hello{id: "more", version: 5}); code != 0x89 {
		t.Errorf("MQTT 5 code %#x", code)
	}
	again := connect(t, b.addr(), hello{id: "1"}) // it has a place already
	ps[1].closed()
	again.disconnect()
	wait(t, "its place is free", func() bool { return b.Stats().Clients == 2 })
	connect(t, b.addr(), hello{id: "more"})
	if st := b.Stats(); st.RefusedConnects != 2 || st.Clients != 3 {
		t.Errorf("stats %+v", st)
	}
}

// Sessions that are kept are bounded too: a client with a new id each time
// must not fill the memory.
func TestTooManySessions(t *testing.T) {
	cfg := everybody()
	cfg.MaxClients = 4
	b := run(t, cfg, "")
	for i := range 40 {
		p := connect(t, b.addr(), hello{id: fmt.Sprint("keep", i), keep: true})
		p.subscribe(1, "a")
		p.disconnect()
		wait(t, "it has left", func() bool { return b.Stats().Clients == 0 })
	}
	if st := b.Stats(); st.Sessions > 4*4+1 || st.Subscriptions != st.Sessions {
		t.Errorf("stats %+v", st)
	}
}

// Broker, clients and all they started leave no goroutine behind.
func TestNothingIsLeftRunning(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 3 {
		cfg := everybody()
		cfg.Persist = true
		b := run(t, cfg, t.TempDir())
		for i := range 10 {
			p := connect(t, b.addr(), hello{id: fmt.Sprint(i), keep: i%2 == 0, version: byte(4 + i%2)})
			p.subscribe(1, "#")
			if i%3 == 0 {
				p.disconnect()
			}
		}
		dial(t, b.addr())
		b.deliver(t, "x", "1", 1, true)
		b.stop()
		if err := b.Deliver(t.Context(), mqtt.Message{Topic: "x"}); !errors.Is(err, ErrClosed) {
			t.Errorf("Deliver after the end = %v", err)
		}
		if _, err := b.Subscribe("x", nil); !errors.Is(err, ErrClosed) {
			t.Errorf("Subscribe after the end = %v", err)
		}
	}
	wait(t, "the goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
}

// A client whose packet identifiers are the broker's as well is served all the
// same.
func TestPacketIdentifiersMeet(t *testing.T) {
	for _, version := range []byte{4, 5} {
		b := run(t, everybody(), "")
		p := connect(t, b.addr(), hello{id: "p", version: version, keep: true})
		p.subscribe(1, "a")
		b.deliver(t, "a", "1", 1, false)
		r := p.parse(p.read()) // and no PUBACK: its identifier stays taken
		sub := binary.BigEndian.AppendUint16(nil, r.id)
		if version == 5 {
			sub = append(sub, 0)
		}
		p.write(packet(0x82, append(str(sub, "b"), 1)))
		head, body := p.read()
		if head != 0x90 || binary.BigEndian.Uint16(body) != r.id || body[len(body)-1] != 1 {
			t.Errorf("MQTT %d: %#x % x instead of a SUBACK for %d", version, head, body, r.id)
		}
		p.write(packet(0xA2, str(sub, "b")))
		if head, body = p.read(); head != 0xB0 || binary.BigEndian.Uint16(body) != r.id {
			t.Errorf("MQTT %d: %#x % x instead of an UNSUBACK for %d", version, head, body, r.id)
		}
		b.stop()
	}
}
