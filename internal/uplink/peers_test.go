package uplink

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// link is a wire between uplink and broker that a test can cut, block and
// black-hole.
type link struct {
	l      net.Listener
	target string

	mu      sync.Mutex
	conns   map[net.Conn]bool
	refuse  bool
	blocked chan struct{} // closed while bytes flow
	left    [2]int64      // bytes from and towards the broker until the link cuts itself; 0: no limit
	wg      sync.WaitGroup
}

func newLink(t testing.TB, target string) *link {
	t.Helper()
	k := &link{l: listen(t), target: target, conns: map[net.Conn]bool{}, blocked: make(chan struct{})}
	close(k.blocked)
	k.wg.Go(k.accept) // ends with the listener
	t.Cleanup(func() {
		_ = k.l.Close()
		k.flow()
		k.cut()
		k.wg.Wait()
	})
	return k
}

func (k *link) url() string { return "mqtt://" + k.l.Addr().String() }

func (k *link) accept() {
	for {
		near, err := k.l.Accept()
		if err != nil {
			return
		}
		k.mu.Lock()
		refuse := k.refuse
		k.mu.Unlock()
		if refuse {
			_ = near.Close()
			continue
		}
		far, err := net.Dial("tcp", k.target)
		if err != nil {
			_ = near.Close()
			continue
		}
		k.mu.Lock()
		k.conns[near], k.conns[far] = true, true
		k.mu.Unlock()
		k.wg.Go(func() { k.pump(far, near, 1) })
		k.wg.Go(func() { k.pump(near, far, 0) })
	}
}

func (k *link) pump(to, from net.Conn, way int) {
	defer func() {
		k.mu.Lock()
		delete(k.conns, to)
		delete(k.conns, from)
		k.mu.Unlock()
		_ = to.Close()
		_ = from.Close()
	}()
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			k.mu.Lock()
			gate := k.blocked
			left := &k.left[way]
			cut := *left > 0 && *left <= int64(n)
			if cut {
				n, *left = int(*left), 0
			} else if *left > 0 {
				*left -= int64(n)
			}
			k.mu.Unlock()
			<-gate
			if _, werr := to.Write(buf[:n]); werr != nil || cut {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// cut closes every connection.
func (k *link) cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.conns {
		_ = c.Close()
	}
}

// cutAfter closes the connection in the middle of what n more bytes carry.
func (k *link) cutAfter(n int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.left[1] = n
}

// cutAnswersAfter does the same in the middle of what comes from the broker.
func (k *link) cutAnswersAfter(n int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.left[0] = n
}

// uncut reports whether a cut is still to come.
func (k *link) uncut() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.left != [2]int64{}
}

// setRefuse makes the link hang up on new connections.
func (k *link) setRefuse(on bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refuse = on
}

// hole lets nothing through, and says nothing of it.
func (k *link) hole() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.blocked = make(chan struct{})
}

// flow ends hole.
func (k *link) flow() {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.blocked:
	default:
		close(k.blocked)
	}
}

// packetIn is what a fakeBroker has read.
type packetIn struct {
	kind   byte
	topic  string // of PUBLISH
	qos    byte
	retain bool
	body   []byte // payload of PUBLISH, else what follows the fixed header
}

// fakeBroker is a broker that misbehaves as a real one cannot be made to.
type fakeBroker struct {
	l        net.Listener
	connects atomic.Int32

	// answer returns what to send back, and false to hang up then.
	answer func(p packetIn, id uint16) (out []byte, ok bool)

	wg sync.WaitGroup
}

func newFakeBroker(t testing.TB, answer func(p packetIn, id uint16) ([]byte, bool)) *fakeBroker {
	t.Helper()
	b := &fakeBroker{l: listen(t), answer: answer}
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	b.wg.Go(func() { // ends with the listener
		for {
			c, err := b.l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			b.wg.Go(func() {
				defer func() { _ = c.Close() }()
				b.serve(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = b.l.Close()
		mu.Lock()
		for c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		b.wg.Wait()
	})
	return b
}

func (b *fakeBroker) url() string { return "mqtt://" + b.l.Addr().String() }

// polite answers as a broker should, with no subscribers.
func polite(p packetIn, id uint16) ([]byte, bool) {
	ack := func(kind byte, more ...byte) []byte {
		out := []byte{kind, byte(2 + len(more))}
		out = binary.BigEndian.AppendUint16(out, id)
		return append(out, more...)
	}
	switch {
	case p.kind == 1:
		return []byte{0x20, 2, 0, 0}, true
	case p.kind == 3 && p.qos == 1:
		return ack(0x40), true
	case p.kind == 3 && p.qos == 2:
		return ack(0x50), true
	case p.kind == 6:
		return ack(0x70), true
	case p.kind == 8:
		return ack(0x90, 0), true
	case p.kind == 12:
		return []byte{0xD0, 0}, true
	}
	return nil, p.kind != 14
}

func (b *fakeBroker) serve(c net.Conn) {
	in := bufio.NewReader(c)
	for {
		p, id, err := readPacket(in)
		if err != nil {
			return
		}
		if p.kind == 1 {
			b.connects.Add(1)
		}
		out, ok := b.answer(p, id)
		if _, err := c.Write(out); err != nil || !ok {
			return
		}
	}
}

func readPacket(in *bufio.Reader) (p packetIn, id uint16, err error) {
	first, err := in.ReadByte()
	if err != nil {
		return p, 0, err
	}
	length := 0
	for shift := 0; ; shift += 7 {
		b, err := in.ReadByte()
		if err != nil {
			return p, 0, err
		}
		length |= int(b&0x7F) << shift
		if b < 0x80 {
			break
		}
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(in, body); err != nil {
		return p, 0, err
	}
	p = packetIn{kind: first >> 4, body: body}
	switch p.kind {
	case 3:
		p.qos, p.retain = first>>1&3, first&1 != 0
		n := int(binary.BigEndian.Uint16(body))
		p.topic, body = string(body[2:2+n]), body[2+n:]
		if p.qos > 0 {
			id, body = binary.BigEndian.Uint16(body), body[2:]
		}
		p.body = body
	case 6, 8:
		if len(body) < 2 {
			return p, 0, errors.New("short packet")
		}
		id = binary.BigEndian.Uint16(body)
	}
	return p, id, nil
}
