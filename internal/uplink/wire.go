package uplink

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/internal/mqtt"
)

// wire is the connection that paho is given. It stands between it and the
// network for three reasons.
//
// What comes in is checked before paho sees it: paho panics on a SUBACK with
// more codes than filters, takes 256 MiB of memory on the word of four bytes,
// and takes any return code above 5 for a success. A PUBLISH that is too long is
// read past, and paho is given a short one in its place: the broker would send it
// again on each connection, and what else it has for us would never come.
//
// Acknowledgements end here: PUBACK and PUBCOMP go to the window by their type
// and identifier, and on to nobody. paho's tokens complete without one, its
// store cannot tell a PUBACK from a SUBACK, and it reads three times from the
// network for each.
//
// What goes out has a deadline of its own for each write, which grows with the
// length, so that a link that is slow is not taken for one that is dead.
type wire struct {
	net.Conn
	most    int           // longest packet taken from the broker
	patient time.Duration // for one write, beside its length at slowest

	tcp   syscall.RawConn // below Conn; nil if it is no TCP socket
	hurry func() bool     // reports whether to ask the kernel to acknowledge at once

	heard   atomic.Int64 // when something came last, in nanoseconds since born
	born    time.Time
	in      *bufio.Reader
	pass    int    // bytes of a packet that are still to go to paho
	made    []byte // a packet in place of one that was too long, still to go to paho
	greeted bool
	acks    []ack
	onAcks  func([]ack) // called by the reader, keeps nothing

	out sync.Mutex // held by one writer at a time

	mu   sync.Mutex
	err  error // why it ended
	lost chan struct{}
}

// lastWordsPatience is how long a wire whose first write failed is listened to.
const lastWordsPatience = 100 * time.Millisecond

// slowest is the speed in bytes per second at which a link still counts as alive.
const slowest = 1024

func newWire(s stream, most int, patient time.Duration) *wire {
	w := &wire{Conn: s.Conn, most: most, patient: patient, born: time.Now(), lost: make(chan struct{})}
	w.in = bufio.NewReaderSize(ear{w}, 4096)
	if tcp, ok := s.tcp.(syscall.Conn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			w.tcp = raw
		}
	}
	return w
}

// ear reads from the network for a wire, and notes when something comes.
type ear struct{ w *wire }

func (e ear) Read(p []byte) (int, error) {
	n, err := e.w.Conn.Read(p)
	if n > 0 {
		e.w.heard.Store(int64(time.Since(e.w.born)))
	}
	return n, err
}

// silent returns how long nothing has come.
func (w *wire) silent() time.Duration {
	return time.Since(w.born) - time.Duration(w.heard.Load())
}

// unsent returns how many bytes wait in the kernel, or are on their way and not
// acknowledged by the other end's TCP.
func (w *wire) unsent() (n int) {
	if w.tcp != nil {
		_ = w.tcp.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	}
	return n
}

// end closes the wire because of err; the first cause stays.
func (w *wire) end(err error) {
	w.mu.Lock()
	if w.err != nil {
		w.mu.Unlock()
		return
	}
	w.err = err
	close(w.lost)
	w.mu.Unlock()
	_ = w.Conn.Close()
}

// cause returns why the wire ended, nil while it has not.
func (w *wire) cause() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Close ends the wire from our side.
func (w *wire) Close() error {
	w.end(net.ErrClosed)
	return nil
}

// SetDeadline sets the read deadline; writes have their own.
func (w *wire) SetDeadline(t time.Time) error { return w.SetReadDeadline(t) }

// SetWriteDeadline does nothing: Write sets its own.
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// Write sends p, one or more whole packets.
func (w *wire) Write(p []byte) (int, error) {
	w.out.Lock()
	defer w.out.Unlock()
	limit := w.patient + time.Duration(len(p))*time.Second/slowest
	err := w.Conn.SetWriteDeadline(time.Now().Add(limit))
	n := 0
	if err == nil {
		n, err = w.Conn.Write(p)
	}
	if err != nil {
		w.end(w.lastWords(err))
	}
	return n, err
}

// lastWords returns why the other end closed the connection before it ever said
// anything to us, if it says so now, else err. With TLS 1.3 a client certificate
// is judged after the handshake; the alert that refuses it lies there unread while
// CONNECT meets a connection that is closed already.
func (w *wire) lastWords(err error) error {
	if w.heard.Load() > 0 || !isHangup(err) {
		return err
	}
	_ = w.Conn.SetReadDeadline(time.Now().Add(lastWordsPatience))
	if _, said := w.in.Peek(1); alertOf(said) != "" {
		return said
	}
	return err
}

// Read gives paho the bytes of packets that are well-formed and for it.
func (w *wire) Read(p []byte) (int, error) {
	for w.pass == 0 && len(w.made) == 0 {
		if err := w.packet(); err != nil {
			w.end(err)
			return 0, err
		}
	}
	if len(w.made) > 0 {
		n := copy(p, w.made)
		w.made = w.made[n:]
		return n, nil
	}
	if w.in.Buffered() == 0 {
		w.settle()
	}
	n, err := w.in.Read(p[:min(len(p), w.pass)])
	w.pass -= n
	if err != nil {
		w.end(err)
	}
	return n, err
}

// settle is called before each wait for the network. It hands on the
// acknowledgements seen so far.
//
// With QoS 2 in flight the broker's next packet waits for nothing but the
// kernel's acknowledgement of its last one (Nagle's algorithm against delayed
// acknowledgement): 220 messages a second to mosquitto, 48,000 if the kernel is
// told not to delay. It forgets that, so it is told each time.
func (w *wire) settle() {
	if w.tcp != nil && w.hurry() {
		_ = w.tcp.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
		})
	}
	if len(w.acks) > 0 {
		w.onAcks(w.acks)
		w.acks = w.acks[:0]
	}
}

// peek returns the next n bytes without taking them. Before it waits for the
// network it settles.
func (w *wire) peek(n int) ([]byte, error) {
	if w.in.Buffered() < n {
		w.settle()
	}
	return w.in.Peek(n)
}

// packet looks at the next packet. One that acknowledges a PUBLISH is taken;
// of another, w.pass says how many bytes Read may hand on.
func (w *wire) packet() error {
	head, length := 2, 0 // bytes of the fixed header; what follows it
	b, err := w.peek(head)
	if err != nil {
		return err
	}
	for shift := 0; ; shift += 7 {
		length |= int(b[head-1]&0x7F) << shift
		if b[head-1] < 0x80 {
			break
		}
		if head++; head > 5 {
			return fmt.Errorf("%w: the broker sent a length of more than four bytes", errProtocol)
		}
		if b, err = w.peek(head); err != nil {
			return err
		}
	}
	kind, flags := b[0]>>4, b[0]&0x0F
	name, fixed := packetKind(kind)
	switch {
	case kind == disconnect && w.greeted:
		// MQTT 3.1.1 leaves DISCONNECT to clients (clause 3.14), but brokers that
		// speak MQTT 5 too send it before they hang up. It says no more than that.
		return io.EOF
	case name == "":
		return fmt.Errorf("%w: the broker sent a packet of type %d, which is not for brokers to send", errProtocol, kind)
	case fixed >= 0 && length != fixed:
		return fmt.Errorf("%w: the broker sent a %s of %d bytes, want %d", errProtocol, name, length, fixed)
	case length > w.most && kind != publish:
		return fmt.Errorf("%w: the broker sent a %s of %d bytes, more than the %d that are taken", errProtocol, name, length, w.most)
	case kind == publish && flags>>1&3 == 3:
		return fmt.Errorf("%w: the broker sent a PUBLISH with QoS 3", errProtocol)
	case (kind == connack) == w.greeted:
		return fmt.Errorf("%w: the broker sent a %s out of turn", errProtocol, name)
	}
	switch kind {
	case connack:
		if b, err = w.peek(head + 2); err != nil {
			return err
		}
		if code := b[head+1]; code != 0 {
			return refusal(code)
		}
		w.greeted = true
	case puback, pubcomp:
		if b, err = w.peek(head + 2); err != nil {
			return err
		}
		w.acks = append(w.acks, ack{kind: kind, id: binary.BigEndian.Uint16(b[head:])})
		_, err = w.in.Discard(head + 2)
		return err
	case publish:
		if length > w.most {
			return w.shorten(b[0], head, length)
		}
		b[0] &^= shortened // nobody asks whether it is a repetition
	}
	w.pass = head + length
	return nil
}

// shortened marks a PUBLISH that stands in the place of a longer one. It is the
// DUP flag (clause 3.3.1.1), which is taken out of all others.
const shortened = 1 << 3

// shorten reads past a PUBLISH that is too long, whose fixed header has head
// bytes, and makes one with the same topic whose payload is the length of its
// own: four bytes, the highest first.
func (w *wire) shorten(first byte, head, length int) error {
	b, err := w.peek(head + 2)
	if err != nil {
		return err
	}
	before := 2 + int(binary.BigEndian.Uint16(b[head:])) // what stands before the payload
	if first>>1&3 > 0 {
		before += 2
	}
	if before > length {
		return fmt.Errorf("%w: the broker sent a PUBLISH whose topic is longer than all of it", errProtocol)
	}
	made := appendLength([]byte{first | shortened}, before+4)
	begin := len(made)
	made = append(made, make([]byte, before)...)
	w.settle() // what follows may take long
	if _, err := w.in.Discard(head); err != nil {
		return err
	}
	if _, err := io.ReadFull(w.in, made[begin:]); err != nil {
		return err
	}
	if _, err := w.in.Discard(length - before); err != nil {
		return err
	}
	w.made = binary.BigEndian.AppendUint32(made, uint32(length-before))
	return nil
}

// Kinds of packets beside puback and pubcomp (clause 2.2.1).
const (
	connack    = 2
	publish    = 3
	disconnect = 14
)

// packetKind returns the name of a packet that a broker may send to a client
// that subscribes to one filter at a time, and the bytes that follow its fixed
// header, -1 where they vary; "" for any other packet.
func packetKind(kind byte) (name string, length int) {
	switch kind {
	case connack:
		return "CONNACK", 2
	case publish:
		return "PUBLISH", -1
	case puback:
		return "PUBACK", 2
	case 5:
		return "PUBREC", 2
	case 6:
		return "PUBREL", 2
	case pubcomp:
		return "PUBCOMP", 2
	case 9:
		return "SUBACK", 3
	case 11:
		return "UNSUBACK", 2
	case 13:
		return "PINGRESP", 0
	}
	return "", 0
}

// appendLength appends the length of what follows a fixed header (clause 2.2.3).
func appendLength(b []byte, length int) []byte {
	for ; length >= 0x80; length >>= 7 {
		b = append(b, byte(length)|0x80)
	}
	return append(b, byte(length))
}

// appendPublish appends m as a PUBLISH packet (clause 3.3). id is not written
// with QoS 0.
func appendPublish(b []byte, m mqtt.Message, qos uint8, id uint16) []byte {
	length := 2 + len(m.Topic) + len(m.Payload)
	if qos > 0 {
		length += 2
	}
	first := byte(publish<<4) | qos<<1
	if m.Retain {
		first |= 1
	}
	b = appendLength(append(b, first), length)
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Topic)))
	b = append(b, m.Topic...)
	if qos > 0 {
		b = binary.BigEndian.AppendUint16(b, id)
	}
	return append(b, m.Payload...)
}
