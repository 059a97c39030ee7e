package uplink

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"fieldgate/internal/mqtt"
)

// fed is a connection from which in can be read; what is written is kept.
type fed struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
	end bool
}

func (f *fed) Read(p []byte) (int, error)       { return f.in.Read(p) }
func (f *fed) Write(p []byte) (int, error)      { return f.out.Write(p) }
func (f *fed) Close() error                     { f.end = true; return nil }
func (f *fed) SetReadDeadline(time.Time) error  { return nil }
func (f *fed) SetWriteDeadline(time.Time) error { return nil }

// feed gives a wire what a broker sends; chunk bytes at a time if not 0.
func feed(in []byte, chunk int) (*wire, *fed, *[]ack) {
	f := &fed{in: bytes.NewReader(in)}
	if chunk > 0 {
		f.in = &slow{r: f.in, n: chunk}
	}
	w := newWire(stream{Conn: f, tcp: f}, 1000, time.Second)
	acks := &[]ack{}
	w.onAcks = func(a []ack) { *acks = append(*acks, a...) }
	return w, f, acks
}

type slow struct {
	r io.Reader
	n int
}

func (s *slow) Read(p []byte) (int, error) { return s.r.Read(p[:min(len(p), s.n)]) }

func TestWire(t *testing.T) {
	connackOK := "\x20\x02\x00\x00"
	publishA := "\x30\x06\x00\x01abcd"
	for _, row := range []struct {
		name, in string
		passed   string // what paho gets
		acks     []ack
		err      string
	}{
		{"nothing", "", "", nil, "EOF"},
		{"accepted", connackOK, connackOK, nil, "EOF"},
		{"refused", "\x20\x02\x00\x05", "", nil, "return code 5"},
		{"refused, its length in two bytes", "\x20\x82\x00\x00\x05", "", nil, "return code 5"},
		{"acknowledged, its length in two bytes", connackOK + "\x40\x82\x00\x04\x01", connackOK, []ack{{4, 0x401}}, "EOF"},
		{"acknowledgements end here", connackOK + "\x40\x02\x04\x01" + publishA + "\x70\x02\x04\x02\x40\x02\x04\x03", connackOK + publishA, []ack{{4, 0x401}, {7, 0x402}, {4, 0x403}}, "EOF"},
		{"PUBREC, SUBACK, PINGRESP pass", connackOK + "\x50\x02\x04\x01\x90\x03\x00\x01\x80\xD0\x00", connackOK + "\x50\x02\x04\x01\x90\x03\x00\x01\x80\xD0\x00", nil, "EOF"},
		{"two-byte length", connackOK + "\x30\x80\x01" + "\x00\x01a" + strings.Repeat("x", 125), connackOK + "\x30\x80\x01\x00\x01a" + strings.Repeat("x", 125), nil, "EOF"},
		{"cut in a header", connackOK + "\x30", connackOK, nil, "EOF"},
		{"cut in a length", connackOK + "\x30\x80", connackOK, nil, "EOF"},
		{"cut in a body", connackOK + "\x30\x06\x00\x01a", connackOK + "\x30\x06\x00\x01a", nil, "EOF"},
		{"cut in an acknowledgement", connackOK + "\x40\x02\x04", connackOK, nil, "EOF"},
		{"no CONNACK first", publishA, "", nil, "PUBLISH out of turn"},
		{"CONNACK twice", connackOK + connackOK, connackOK, nil, "CONNACK out of turn"},
		{"too long", connackOK + "\x31\xE9\x07\x00\x01a" + strings.Repeat("x", 998) + publishA, connackOK + "\x39\x07\x00\x01a\x00\x00\x03\xE6" + publishA, nil, "EOF"},
		{"too long, QoS 1", connackOK + "\x32\xE9\x07\x00\x01a\x12\x34" + strings.Repeat("x", 996) + publishA, connackOK + "\x3A\x09\x00\x01a\x12\x34\x00\x00\x03\xE4" + publishA, nil, "EOF"},
		{"too long, cut", connackOK + "\x30\xE9\x07\x00\x01a" + strings.Repeat("x", 997), connackOK, nil, "EOF"},
		{"too long, nothing but a topic", connackOK + "\x30\xE9\x07\x03\xE8" + strings.Repeat("x", 999), connackOK, nil, "longer than all of it"},
		{"256 MiB announced", connackOK + "\x30\xFF\xFF\xFF\x7F", connackOK, nil, "EOF"},
		{"a repetition", connackOK + "\x3A\x06\x00\x01abcd", connackOK + "\x32\x06\x00\x01abcd", nil, "EOF"},
		{"PUBREC too long", connackOK + "\x50\xE9\x07", connackOK, nil, "PUBREC of 1001 bytes, want 2"},
		{"length without end", connackOK + "\x30\xFF\xFF\xFF\xFF\x01", connackOK, nil, "more than four bytes"},
		{"SUBACK with surplus codes", connackOK + "\x90\x04\x00\x01\x00\x00", connackOK, nil, "SUBACK of 4 bytes, want 3"},
		{"PUBACK too long", connackOK + "\x40\x03\x04\x01\x00", connackOK, nil, "PUBACK of 3 bytes"},
		{"PINGRESP with a body", connackOK + "\xD0\x01x", connackOK, nil, "PINGRESP of 1 bytes"},
		{"QoS 3", connackOK + "\x36\x06\x00\x01abcd", connackOK, nil, "QoS 3"},
		{"CONNECT from a broker", connackOK + "\x10\x00", connackOK, nil, "type 1"},
		{"DISCONNECT from a broker", connackOK + "\xE0\x00", connackOK, nil, "EOF"},
		{"DISCONNECT as of MQTT 5", connackOK + "\xE0\x02\x87\x00", connackOK, nil, "EOF"},
		{"DISCONNECT first", "\xE0\x00", "", nil, "type 14"},
		{"SUBSCRIBE from a broker", connackOK + "\x82\x00", connackOK, nil, "type 8"},
		{"type 0", "\x00\x00", "", nil, "type 0"},
		{"type 15", connackOK + "\xF0\x00", connackOK, nil, "type 15"},
		{"HTTP", "HTTP/1.1 400 Bad Request\r\n\r\n", "", nil, "protocol error"},
	} {
		for _, chunk := range []int{0, 1, 3} {
			w, f, acks := feed([]byte(row.in), chunk)
			got, err := io.ReadAll(w)
			if err == nil {
				err = io.EOF
			}
			if string(got) != row.passed || !slices.Equal(*acks, row.acks) || !strings.Contains(err.Error(), row.err) {
				t.Errorf("%s, %d bytes at a time: passed %q, acks %v, %v\nwant %q, %v, %s", row.name, chunk, got, *acks, err, row.passed, row.acks, row.err)
			}
			if cause := w.cause(); cause == nil || !f.end {
				t.Errorf("%s: the wire has not ended: %v", row.name, cause)
			}
			<-w.lost
		}
	}
}

// FuzzWire feeds what a broker may send to a wire and what passes to paho's
// decoder, which must survive it.
func FuzzWire(f *testing.F) {
	f.Add([]byte("\x20\x02\x00\x00\x40\x02\x04\x01\x30\x06\x00\x01abcd\x90\x03\x00\x01\x80"))
	f.Add([]byte("\x20\x02\x00\x00\x32\x05\x00\x01a\x00\x01\x50\x02\x00\x01"))
	f.Add([]byte("\x20\x02\x00\x00\x30\x00\x32\x01\x00"))
	f.Add([]byte("\x20\x02\x00\x00\x32\xe9\x07\x00\x01a\x00\x01" + strings.Repeat("b", 996) + "\x40\x02\x00\x01")) // is shortened
	f.Fuzz(func(t *testing.T, in []byte) {
		w, _, acks := feed(in, 0)
		total := 0
		for {
			p, err := packets.ReadPacket(w)
			if err != nil {
				break
			}
			switch p := p.(type) {
			case *packets.PublishPacket:
				total += len(p.Payload)
			case *packets.SubackPacket:
				if len(p.ReturnCodes) != 1 {
					t.Errorf("SUBACK with %d codes", len(p.ReturnCodes))
				}
			case *packets.ConnackPacket:
				if p.ReturnCode != 0 {
					t.Errorf("CONNACK with code %d", p.ReturnCode)
				}
			case *packets.PubackPacket, *packets.PubcompPacket:
				t.Errorf("%v reached paho", p)
			}
		}
		if total > len(in) || 4*len(*acks) > len(in) {
			t.Errorf("%d bytes made %d bytes of payload and %d acknowledgements", len(in), total, len(*acks))
		}
	})
}

func TestAppendPublish(t *testing.T) {
	for _, length := range []int{0, 1, 100, 120, 121, 122, 123, 16370, 16376, 16377, 16378, 2_097_140, 2_097_150} {
		for qos := range uint8(3) {
			m := mqtt.Message{Topic: "a/b", Payload: bytes.Repeat([]byte("x"), length), Retain: length%2 == 0}
			packet := appendPublish([]byte("before"), m, qos, 0x1234)[len("before"):]
			p, err := packets.ReadPacket(bytes.NewReader(packet))
			if err != nil {
				t.Fatal(err)
			}
			got, ok := p.(*packets.PublishPacket)
			if !ok || got.TopicName != m.Topic || !bytes.Equal(got.Payload, m.Payload) || got.Qos != qos || got.Retain != m.Retain || got.Dup || qos > 0 && got.MessageID != 0x1234 {
				t.Errorf("payload of %d bytes, QoS %d: decoded as %v", length, qos, p)
			}
		}
	}
}

// TestWriteDeadline has a peer that does not read.
func TestWriteDeadline(t *testing.T) {
	near, far := net.Pipe()
	defer func() { _ = far.Close() }()
	w := newWire(stream{Conn: near, tcp: near}, 1000, 20*time.Millisecond)
	_, err := w.Write([]byte("x"))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Write = %v", err)
	}
	<-w.lost
	if f := sessionFault(w.cause()); !strings.Contains(f.Text, "link is dead") {
		t.Errorf("fault = %v", f)
	}
}
