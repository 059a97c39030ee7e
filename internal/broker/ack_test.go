package broker

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/mqtt"
)

// desk is a handler that says safe when the test does. Payloads that begin with
// "hold" wait for it, "refuse" is refused.
type desk struct {
	mu    sync.Mutex
	came  []string
	holds map[string]chan struct{}
	lose  map[string]func()
}

func (d *desk) handle(m mqtt.Message, from mqtt.Origin) <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	text := string(m.Payload)
	d.came = append(d.came, text)
	switch {
	case strings.HasPrefix(text, "hold"):
		c := make(chan struct{})
		d.holds[text], d.lose[text] = c, from.Refuse
		return c
	case text == "refuse":
		from.Refuse()
	}
	return nil
}

// safe says of a message that it is safe.
func (d *desk) safe(payload string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.holds[payload])
}

// times returns how often a message came.
func (d *desk) times(payload string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.came {
		if p == payload {
			n++
		}
	}
	return n
}

func newDesk(t *testing.T, b *testBroker) *desk {
	t.Helper()
	d := &desk{holds: make(map[string]chan struct{}), lose: make(map[string]func())}
	if _, err := b.Subscribe("safe/#", d.handle); err != nil {
		t.Fatal(err)
	}
	return d
}

// expect reads an acknowledgement: the first byte and the identifier.
func (p *peer) expect(head byte, id uint16) {
	p.t.Helper()
	h, body := p.read()
	if h != head || binary.BigEndian.Uint16(body) != id {
		p.t.Fatalf("packet %#x % x instead of %#x for %d", h, body, head, id)
	}
}

func bothVersions(t *testing.T, f func(t *testing.T, version byte)) {
	for _, version := range []byte{4, 5} {
		t.Run(fmt.Sprintf("MQTT %d", version), func(t *testing.T) { f(t, version) })
	}
}

// While a message is not safe its client goes on, and the message goes to
// subscribers; acknowledgements leave in the order of the messages.
func TestAcknowledgementsWait(t *testing.T) {
	bothVersions(t, func(t *testing.T, version byte) {
		b := run(t, everybody(), "")
		d := newDesk(t, b)
		s := connect(t, b.addr(), hello{id: "s"})
		s.subscribe(0, "#")
		p := connect(t, b.addr(), hello{id: "p", version: version})
		for i, payload := range []string{"hold 1", "hold 2", "at once", "hold 4"} {
			p.write(publishPacket(version, "safe/a", payload, 1+byte(i)%2, false, uint16(i+1)))
			if r := s.take(); r.payload != payload {
				t.Fatalf("the subscriber got %v", r)
			}
		}
		p.ping() // nothing but its answer has come
		d.safe("hold 2")
		p.ping()
		d.safe("hold 1")
		p.expect(0x40, 1)
		p.expect(0x50, 2)
		p.expect(0x40, 3)
		p.ping()
		d.safe("hold 4")
		p.expect(0x50, 4)
		for _, id := range []uint16{2, 4} {
			p.ack(0x62, id)
			p.expect(0x70, id)
		}
		p.write(publishPacket(version, "safe/a", "last", 1, false, 5))
		p.expect(0x40, 5)
	})
}

// A client that leaves before its message is safe gets no acknowledgement, and
// may send it again; with QoS 2 it is taken once all the same.
func TestGoneBeforeSafe(t *testing.T) {
	bothVersions(t, func(t *testing.T, version byte) {
		b := run(t, everybody(), "")
		d := newDesk(t, b)
		p := connect(t, b.addr(), hello{id: "p", version: version, keep: true})
		p.write(publishPacket(version, "safe/a", "hold 1", 1, false, 1))
		p.write(publishPacket(version, "safe/a", "hold 2", 2, false, 2))
		p.ping()
		_ = p.conn.Close()
		p = connect(t, b.addr(), hello{id: "p", version: version, keep: true})
		p.ping() // no PUBREC by itself
		again := publishPacket(version, "safe/a", "hold 2", 2, false, 2)
		again[0] |= 8
		p.write(again)
		p.ping()
		d.safe("hold 2")
		p.expect(0x50, 2) // by itself
		p.expect(0x50, 2) // the answer
		p.ack(0x62, 2)
		p.expect(0x70, 2)
		if n := d.times("hold 2"); n != 1 {
			t.Errorf("QoS 2: taken %d times", n)
		}
		p.write(publishPacket(version, "safe/a", "hold 1", 1, false, 1))
		p.ping()
		d.safe("hold 1")
		p.expect(0x40, 1)
		if n := d.times("hold 1"); n != 2 {
			t.Errorf("QoS 1: taken %d times", n)
		}
	})
}

// A QoS 2 message that is not safe is not saved as received: after a power cut
// it is taken when it comes again.
func TestPowerCutBeforeSafe(t *testing.T) {
	t.Parallel()
	dir, later := t.TempDir(), t.TempDir()
	b := run(t, kept(), dir)
	newDesk(t, b)
	p := connect(t, b.addr(), hello{id: "p", keep: true})
	p.publish("safe/a", "before", 2, false)
	p.write(publishPacket(4, "safe/a", "hold 2", 2, false, 2))
	p.ping()
	time.Sleep(5 * testTimes().tick / 2) // the promise is about time
	cut, err := os.ReadFile(filepath.Join(dir, storeFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(later, storeFile), cut, 0o600); err != nil {
		t.Fatal(err)
	}
	if n := len(saved(t, later)[inflightBucket]); n != 1 {
		t.Errorf("%d messages saved, want the one that was acknowledged", n)
	}
	b = run(t, kept(), later)
	d := newDesk(t, b)
	p = connect(t, b.addr(), hello{id: "p", keep: true})
	p.expect(0x50, 7)
	p.write(publishPacket(4, "safe/a", "hold 2", 2, false, 2))
	p.ping()
	d.safe("hold 2")
	p.expect(0x50, 2)
	if n := d.times("hold 2"); n != 1 {
		t.Errorf("taken %d times", n)
	}
}

// The reader of a client stops when too many of its messages are not safe, and
// that of no other.
func TestHeldAcknowledgementsAreBounded(t *testing.T) {
	b := run(t, everybody(), "")
	d := newDesk(t, b)
	p := connect(t, b.addr(), hello{id: "p"})
	for i := range maxHeld {
		p.write(publishPacket(4, "safe/a", fmt.Sprint("hold ", i), 1, false, uint16(i+1)))
	}
	p.ping()
	p.write(publishPacket(4, "safe/a", "hold more", 1, false, maxHeld+1))
	p.write([]byte{0xC0, 0})
	if head, body, err := p.next(50 * time.Millisecond); err == nil {
		t.Fatalf("packet %#x % x, but the reader was to wait", head, body)
	}
	other := connect(t, b.addr(), hello{id: "other"})
	other.publish("safe/a", "other", 1, false)
	for i := range maxHeld {
		d.safe(fmt.Sprint("hold ", i))
		if i == 0 {
			for first := range 2 { // the PUBACK, and the PINGRESP that was waited for
				if head, _ := p.read(); head != 0x40 && head != 0xD0 {
					t.Fatalf("packet %#x, %d", head, first)
				}
			}
			continue
		}
		p.expect(0x40, uint16(i+1))
	}
	d.safe("hold more")
	p.expect(0x40, maxHeld+1)
}

// A refused message is never acknowledged as if it were taken.
func TestRefusedMessages(t *testing.T) {
	b := run(t, everybody(), "")
	d := newDesk(t, b)
	p := connect(t, b.addr(), hello{id: "5", version: 5})
	for qos := byte(1); qos <= 2; qos++ {
		p.publish("safe/a", "refuse", 0, false)
		for range 2 { // the identifier is free again
			if code := p.publish("safe/a", "refuse", qos, false); code != 0x97 {
				t.Errorf("QoS %d: code %#x", qos, code)
			}
		}
	}
	if code := p.publish("safe/a", "taken", 2, false); code != 0 {
		t.Errorf("code %#x", code)
	}
	p = connect(t, b.addr(), hello{id: "3", keep: true, will: &mqtt.Message{Topic: "safe/will", Payload: []byte("gone")}})
	for qos := byte(1); qos <= 2; qos++ {
		p.write(publishPacket(4, "safe/a", "refuse", qos, false, 9))
		if head, body := p.closed(); head != 0 {
			t.Errorf("QoS %d: packet %#x % x", qos, head, body)
		}
		p = connect(t, b.addr(), hello{id: "3", keep: true})
		p.ping()
	}
	if n := d.times("gone"); n != 1 {
		t.Errorf("%d wills", n)
	}
	if n := d.times("refuse"); n != 8 {
		t.Errorf("%d messages refused", n)
	}
	if log := b.log.String(); !strings.Contains(log, "client cut off") {
		t.Errorf("log:\n%s", log)
	}
}

// A message that is lost before it is safe costs the connection, and is taken
// again when it comes again.
func TestLostMessages(t *testing.T) {
	bothVersions(t, func(t *testing.T, version byte) {
		b := run(t, everybody(), "")
		d := newDesk(t, b)
		for qos := byte(1); qos <= 2; qos++ {
			payload := fmt.Sprint("hold ", qos)
			p := connect(t, b.addr(), hello{id: "p", version: version, keep: true})
			p.write(publishPacket(version, "safe/a", payload, qos, false, 5))
			p.ping()
			d.lose[payload]()
			if head, body := p.closed(); head>>4 == 4 || head>>4 == 5 {
				t.Errorf("packet %#x % x", head, body)
			}
			p = connect(t, b.addr(), hello{id: "p", version: version, keep: true})
			again := publishPacket(version, "safe/a", payload, qos, false, 5)
			again[0] |= 8
			p.write(again)
			p.ping()
			d.safe(payload)
			p.expect(0x30+qos<<4, 5)
			if n := d.times(payload); n != 2 {
				t.Errorf("QoS %d: taken %d times", qos, n)
			}
			p.disconnect()
		}
	})
}
