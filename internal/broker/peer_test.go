package broker

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/test/testlog"
)

// patience is how long anything that should happen at once may take on a
// loaded machine.
const patience = 30 * time.Second

// everybody is a broker on a free port of the loopback, for everybody.
func everybody() config.Broker {
	return config.Broker{
		Listen:        []config.BrokerListener{{Scheme: "mqtt", Address: "127.0.0.1:0"}},
		Anonymous:     true,
		MaxClients:    64,
		MaxPacket:     256 << 10,
		KeepaliveMax:  time.Minute,
		SessionExpiry: time.Hour,
	}
}

// testBroker is a running broker and what it logged.
type testBroker struct {
	*Broker
	log  *testlog.Log
	stop func()
}

// run starts a broker; it is stopped with the test, or by stop.
func run(t testing.TB, cfg config.Broker, dir string) *testBroker {
	t.Helper()
	return runTimes(t, cfg, dir, testTimes())
}

func testTimes() times {
	t := usualTimes()
	t.tick = 100 * time.Millisecond
	return t
}

func runTimes(t testing.TB, cfg config.Broker, dir string, times times) *testBroker {
	t.Helper()
	log := &testlog.Log{}
	b, err := listen(cfg, dir, slog.New(slog.NewTextHandler(log, nil)), times)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- b.Run(ctx) }()
	tb := &testBroker{Broker: b, log: log, stop: sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-over:
			if err != nil {
				t.Errorf("Run = %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})}
	t.Cleanup(func() {
		tb.stop()
		if t.Failed() {
			t.Logf("the broker said:\n%s", log)
		}
	})
	return tb
}

func (b *testBroker) addr() string { return b.Addrs()[0].String() }

func (b *testBroker) deliver(t testing.TB, topic, payload string, qos uint8, retain bool) {
	t.Helper()
	if err := b.Deliver(t.Context(), mqtt.Message{Topic: topic, Payload: []byte(payload), QoS: qos, Retain: retain}); err != nil {
		t.Fatal(err)
	}
}

// wait fails the test unless ok becomes true.
func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

// peer is a client that writes and reads bytes as the test says: none of the
// libraries' code, and none of its kindness.
type peer struct {
	t       testing.TB
	conn    net.Conn
	in      *bufio.Reader
	version byte
	session bool // session present
}

// hello is a CONNECT.
type hello struct {
	id         string
	version    byte // 0: 4
	keep       bool // clean session off; MQTT 5: kept for an hour as well
	user       string
	password   string
	keepalive  uint16
	receiveMax uint16
	will       *mqtt.Message
	delay      uint32 // of the will
}

func (h hello) packet() []byte {
	if h.version == 0 {
		h.version = 4
	}
	var flags byte
	if !h.keep {
		flags |= 0x02
	}
	if h.will != nil {
		flags |= 0x04 | h.will.QoS<<3
		if h.will.Retain {
			flags |= 0x20
		}
	}
	if h.user != "" {
		flags |= 0xC0
	}
	b := append(str(nil, "MQTT"), h.version, flags)
	b = binary.BigEndian.AppendUint16(b, h.keepalive)
	if h.version == 5 {
		var p []byte
		if h.keep {
			p = append(p, 17, 0, 0, 14, 16)
		}
		if h.receiveMax > 0 {
			p = binary.BigEndian.AppendUint16(append(p, 33), h.receiveMax)
		}
		b = append(append(b, byte(len(p))), p...)
	}
	b = str(b, h.id)
	if h.will != nil {
		if h.version == 5 {
			b = binary.BigEndian.AppendUint32(append(b, 5, 24), h.delay)
		}
		b = str(str(b, h.will.Topic), string(h.will.Payload))
	}
	if h.user != "" {
		b = str(str(b, h.user), h.password)
	}
	return packet(0x10, b)
}

func str(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

func packet(head byte, body []byte) []byte {
	b := []byte{head}
	for n := len(body); ; {
		if n < 128 {
			b = append(b, byte(n))
			break
		}
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, body...)
}

func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// connect dials and says hello; it fails the test unless it is let in.
func connect(t testing.TB, addr string, h hello) *peer {
	t.Helper()
	return greet(t, dial(t, addr), h)
}

func greet(t testing.TB, c net.Conn, h hello) *peer {
	t.Helper()
	p, code := try(t, c, h)
	if code != 0 {
		t.Fatalf("CONNACK code %#x for %+v", code, h)
	}
	return p
}

// try says hello and returns the code of the CONNACK.
func try(t testing.TB, c net.Conn, h hello) (*peer, byte) {
	t.Helper()
	p := &peer{t: t, conn: c, in: bufio.NewReader(c), version: max(4, h.version)}
	p.write(h.packet())
	head, body := p.read()
	if head != 0x20 {
		t.Fatalf("packet %#x instead of a CONNACK", head)
	}
	p.session = body[0] == 1
	return p, body[1]
}

func (p *peer) write(b []byte) {
	p.t.Helper()
	if _, err := p.conn.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// read returns the next packet; it fails the test when none comes.
func (p *peer) read() (head byte, body []byte) {
	p.t.Helper()
	head, body, err := p.next(patience)
	if err != nil {
		p.t.Fatalf("waiting for a packet: %v", err)
	}
	return head, body
}

func (p *peer) next(limit time.Duration) (head byte, body []byte, err error) {
	_ = p.conn.SetReadDeadline(time.Now().Add(limit))
	if head, err = p.in.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(p.in)
	if err != nil {
		return 0, nil, err
	}
	body = make([]byte, n)
	_, err = io.ReadFull(p.in, body)
	return head, body, err
}

// subscribe returns the codes of the SUBACK.
func (p *peer) subscribe(qos byte, filters ...string) []byte {
	p.t.Helper()
	b := []byte{0, 1}
	if p.version == 5 {
		b = append(b, 0)
	}
	for _, f := range filters {
		b = append(str(b, f), qos)
	}
	p.write(packet(0x82, b))
	head, body := p.read()
	if head != 0x90 || body[0] != 0 || body[1] != 1 {
		p.t.Fatalf("packet %#x % x instead of the SUBACK", head, body)
	}
	return body[len(body)-len(filters):]
}

func publishPacket(version byte, topic, payload string, qos byte, retain bool, id uint16) []byte {
	head := 0x30 | qos<<1
	if retain {
		head |= 1
	}
	b := str(nil, topic)
	if qos > 0 {
		b = binary.BigEndian.AppendUint16(b, id)
	}
	if version == 5 {
		b = append(b, 0)
	}
	return packet(head, append(b, payload...))
}

// publish sends a message and, above QoS 0, returns the code of the PUBACK or
// PUBREC.
func (p *peer) publish(topic, payload string, qos byte, retain bool) byte {
	p.t.Helper()
	p.write(publishPacket(p.version, topic, payload, qos, retain, 7))
	if qos == 0 {
		return 0
	}
	head, body := p.read()
	if want := byte(0x40); head != want+(qos-1)<<4 {
		p.t.Fatalf("packet %#x % x instead of the acknowledgement", head, body)
	}
	if len(body) > 2 {
		return body[2]
	}
	return 0
}

// received is a PUBLISH.
type received struct {
	topic, payload string
	qos            byte
	retain, dup    bool
	id             uint16
}

func (r received) String() string {
	return fmt.Sprintf("%s=%.60s q%d retain=%t dup=%t", r.topic, r.payload, r.qos, r.retain, r.dup)
}

func (p *peer) parse(head byte, body []byte) received {
	p.t.Helper()
	if head>>4 != 3 {
		p.t.Fatalf("packet %#x % x instead of a PUBLISH", head, body)
	}
	r := received{qos: head >> 1 & 3, retain: head&1 > 0, dup: head&8 > 0}
	n := int(binary.BigEndian.Uint16(body))
	r.topic, body = string(body[2:2+n]), body[2+n:]
	if r.qos > 0 {
		r.id, body = binary.BigEndian.Uint16(body), body[2:]
	}
	if p.version == 5 {
		body = body[1+int(body[0]):]
	}
	r.payload = string(body)
	return r
}

// take returns the next message, and acknowledges a QoS 1 one.
func (p *peer) take() received {
	p.t.Helper()
	r := p.parse(p.read())
	if r.qos == 1 {
		p.ack(0x40, r.id)
	}
	return r
}

func (p *peer) ack(head byte, id uint16) {
	p.t.Helper()
	p.write(binary.BigEndian.AppendUint16([]byte{head, 2}, id))
}

// ping makes sure that all sent before has been acted on.
func (p *peer) ping() {
	p.t.Helper()
	p.write([]byte{0xC0, 0})
	if head, body := p.read(); head != 0xD0 {
		p.t.Fatalf("packet %#x % x instead of a PINGRESP", head, body)
	}
}

func (p *peer) disconnect() {
	p.t.Helper()
	p.write([]byte{0xE0, 0})
	p.closed()
}

// closed waits until the broker has closed the connection, reading what comes
// before, and returns the last packet's first byte and body.
func (p *peer) closed() (head byte, body []byte) {
	p.t.Helper()
	for {
		h, b, err := p.next(patience)
		if err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				p.t.Fatal("the connection stays open")
			}
			return head, body
		}
		head, body = h, b
	}
}
