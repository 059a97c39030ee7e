package modbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// charTime of 19200 baud, 8E1.
const charTime = 11 * time.Second / 19200

// openPTY returns both ends of a pseudo-terminal in raw mode, the path of the
// second one too.
func openPTY(t *testing.T) (master, slave *os.File, path string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	control, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = control.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err != nil {
			return
		}
		var n uint32
		if n, err = unix.IoctlGetUint32(int(fd), unix.TIOCGPTN); err != nil {
			return
		}
		path = fmt.Sprintf("/dev/pts/%d", n)
		var raw *unix.Termios
		if raw, err = unix.IoctlGetTermios(int(fd), unix.TCGETS); err != nil {
			return
		}
		raw.Iflag, raw.Oflag, raw.Lflag = 0, 0, 0
		raw.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL
		raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
		err = unix.IoctlSetTermios(int(fd), unix.TCSETS, raw)
	})
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave, path
}

func TestServerAgainstMbpollRTU(t *testing.T) {
	m := newMemory(2000)
	master, _, path := openPTY(t)
	s := &Server{Endpoint: m}
	run(t, func(ctx context.Context) error {
		return s.ServeSerial(ctx, master, FramingRTU, func(u UnitID) bool { return u == 1 }, charTime)
	})
	mbpollSession(t, m, path, "-m", "rtu", "-b", "19200", "-P", "even")
	if st := s.Stats(); st.BadFrames != 0 || st.Exceptions != 0 {
		t.Errorf("%+v", st)
	}
}

func TestServeSerialEnds(t *testing.T) {
	t.Run("told to", func(t *testing.T) {
		master, slave, _ := openPTY(t)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		s := &Server{Endpoint: newMemory(10)}
		go func() { done <- s.ServeSerial(ctx, master, FramingASCII, nil, charTime) }()
		req, resp := AppendASCII(nil, 1, ReadRequest(Coils, 0, 1)), AppendASCII(nil, 1, PDU{1, 1, 0})
		slave.Write(req)
		slave.SetDeadline(time.Now().Add(patience))
		got := make([]byte, len(resp))
		if _, err := io.ReadFull(slave, got); err != nil || !bytes.Equal(got, resp) {
			t.Errorf("%q, %v; want %q", got, err, resp)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := master.Write(req); !errors.Is(err, os.ErrClosed) {
			t.Errorf("the port is not closed: %v", err)
		}
	})
	t.Run("unplugged", func(t *testing.T) {
		master, slave, _ := openPTY(t)
		done := make(chan error)
		s := &Server{Endpoint: newMemory(10)}
		go func() { done <- s.ServeSerial(context.Background(), slave, FramingRTU, nil, charTime) }()
		master.Close()
		if err := <-done; err == nil {
			t.Error("no error")
		}
		if _, err := slave.Write([]byte{1}); !errors.Is(err, os.ErrClosed) {
			t.Errorf("the port is not closed: %v", err)
		}
	})
	t.Run("answer cannot be sent", func(t *testing.T) {
		s := &Server{Endpoint: newMemory(10)}
		req := AppendRTU(nil, 1, ReadRequest(Coils, 0, 1))
		err := s.ServeSerial(context.Background(), &deafPort{in: bytes.NewReader(req)}, FramingRTU, nil, charTime)
		if !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%v, want that of the write", err)
		}
	})
}

// deafPort gives what is in it, then the end, and takes nothing.
type deafPort struct{ in io.Reader }

func (p *deafPort) Read(b []byte) (int, error)  { return p.in.Read(b) }
func (p *deafPort) Write(b []byte) (int, error) { return 0, io.ErrClosedPipe }
func (p *deafPort) Close() error                { return nil }

// TestServeSerialWaits: an answer leaves 3.5 characters after the request. At
// 300 baud that is 117 ms, which no scheduling noise hides.
func TestServeSerialWaits(t *testing.T) {
	master, slave, _ := openPTY(t)
	s := &Server{Endpoint: newMemory(10)}
	char := 10 * time.Second / 300
	run(t, func(ctx context.Context) error { return s.ServeSerial(ctx, master, FramingRTU, nil, char) })
	slave.SetDeadline(time.Now().Add(patience))
	sent := time.Now()
	slave.Write(AppendRTU(nil, 1, ReadRequest(Coils, 0, 1)))
	if _, err := io.ReadFull(slave, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(sent); d < Silence(char) {
		t.Errorf("answered after %v, want %v at least", d, Silence(char))
	}
}

// lump is bytes that a serial port delivers at once, after a pause.
type lump struct {
	pause time.Duration
	b     []byte
}

func TestSerialPort(t *testing.T) {
	const (
		none  = 0
		short = 5 * time.Millisecond   // a silence, but an adapter may have made it
		long  = 100 * time.Millisecond // the end of whatever came before
	)
	read := ReadRequest(HoldingRegisters, 0, 1)
	values := PDU{3, 2, 0, 11}
	rtu := func(u UnitID, p PDU) []byte { return AppendRTU(nil, u, p) }
	req, answer := rtu(1, read), rtu(1, values)
	broken := bytes.Clone(req)
	broken[5] ^= 1
	longResponse := rtu(2, append(PDU{3, 250}, bytes.Repeat([]byte{0x11}, 250)...))
	cases := []struct {
		name  string
		lumps []lump
		want  []byte // all answers
		bad   uint64 // frames counted bad
	}{
		{"a request", []lump{{none, req}}, answer, 0},
		{"two at once", []lump{{none, join(req, req)}}, join(answer, answer), 0},
		{"byte by byte", bytewise(req, none), answer, 0},
		{"byte by byte with an adapter's pauses", bytewise(req, 16*time.Millisecond), answer, 0},
		{"wrong CRC", []lump{{none, broken}}, nil, 1},
		{"wrong CRC, then right", []lump{{none, broken}, {short, req}}, answer, 1},
		{"noise, silence, a request in one lump each", []lump{{none, []byte{1, 0xFF, 0x80}}, {short, req}}, answer, 1},
		{"half a request, then a whole one", []lump{{none, req[:5]}, {long, req}}, answer, 0},
		{"half a request, then soon a whole one", []lump{{none, req[:5]}, {short, req}}, answer, 1},
		{"the head of a long write, then a request", []lump{{none, []byte{1, 16, 0, 0, 0, 100, 200, 1, 2}}, {short, req}}, answer, 1},
		{"another device's request and response", []lump{{none, rtu(2, read)}, {short, rtu(2, values)}, {short, req}}, answer, 0},
		{"the same in one lump", []lump{{none, join(rtu(2, read), rtu(2, values), req)}}, answer, 0},
		{"another device's long response, in parts", []lump{{none, longResponse[:100]}, {none, longResponse[100:]}, {short, req}}, answer, 0},
		{"another device's exception", []lump{{none, join(rtu(2, read), rtu(2, PDU{0x83, 2}), req)}}, answer, 0},
		{"another device's unknown function", []lump{{none, join(rtu(2, PDU{0x65, 1, 2, 3, 4}), req)}}, answer, 0},
		{"another device's broken response", []lump{{none, broken2(longResponse)}, {short, req}}, answer, 1},
		{"our unknown function", []lump{{none, rtu(1, PDU{0x63, 9})}}, rtu(1, PDU{0xE3, 1}), 0},
		{"our loopback of any length", []lump{{none, rtu(1, DiagnosticsRequest(0, 1, 2, 3, 4))}}, rtu(1, DiagnosticsRequest(0, 1, 2, 3, 4)), 0},
		{"a broadcast", []lump{{none, join(rtu(0, WriteRegisterRequest(0, 77)), req)}}, rtu(1, PDU{3, 2, 0, 77}), 0},
		{"a broadcast that reads", []lump{{none, join(rtu(0, read), req)}}, answer, 0},
		{"an illegal address", []lump{{none, rtu(1, ReadRequest(HoldingRegisters, 99, 2))}}, rtu(1, PDU{0x83, 2}), 0},
		{"noise for ever", []lump{{none, bytes.Repeat([]byte{1, 0x63, 0x55}, 100)}, {short, req}}, answer, 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory(100)
			m.set(HoldingRegisters, 0, 11)
			p := &serialPort{server: &Server{Endpoint: m}, framing: FramingRTU, tally: new(tally), silence: Silence(charTime),
				units: func(u UnitID) bool { return u == 1 }}
			if got := feed(p, c.lumps); !bytes.Equal(got, c.want) {
				t.Errorf("answers % x, want % x", got, c.want)
			}
			if got := p.server.Stats().BadFrames; got != c.bad {
				t.Errorf("%d bad frames, want %d", got, c.bad)
			}
		})
	}
}

// bytewise delivers each byte by itself.
func bytewise(b []byte, pause time.Duration) (lumps []lump) {
	for i := range b {
		lumps = append(lumps, lump{pause, b[i : i+1]})
	}
	return lumps
}

// broken2 is b with its last byte changed.
func broken2(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-1] ^= 0xFF
	return b
}

// feed plays lumps to p and returns all it answers.
func feed(p *serialPort, lumps []lump) (answers []byte) {
	at := time.Unix(1e9, 0)
	for _, l := range lumps {
		at = at.Add(l.pause)
		p.feed(l.b, at)
		for {
			answer, ok := p.next(context.Background())
			if !ok {
				break
			}
			if len(answer) > 0 {
				answers = append(answers, answer...)
				p.sent(answer, at)
			}
		}
	}
	return answers
}

func TestSerialPortEcho(t *testing.T) {
	m := newMemory(100)
	p := &serialPort{server: &Server{Endpoint: m, Echo: true}, framing: FramingRTU, tally: new(tally), silence: Silence(charTime),
		units: func(u UnitID) bool { return u == 1 }}
	// The answer to a single write is the request again: heard as an echo it
	// must not be executed and answered for ever.
	write := AppendRTU(nil, 1, WriteRegisterRequest(0, 5))
	if got := feed(p, []lump{{0, write}}); !bytes.Equal(got, write) {
		t.Fatalf("% x", got)
	}
	if got := feed(p, []lump{{0, write[:3]}, {0, write[3:]}}); len(got) != 0 {
		t.Errorf("the echo is answered % x", got)
	}
	if got := feed(p, []lump{{0, write}}); !bytes.Equal(got, write) {
		t.Errorf("the same request after the echo is answered % x", got)
	}
	other := AppendRTU(nil, 1, WriteRegisterRequest(0, 6))
	if got := feed(p, []lump{{0, other}}); !bytes.Equal(got, other) {
		t.Errorf("a request in place of the echo is answered % x", got)
	}
}

// Where a port hears its own sending, and nobody said so, a single write is done some
// times, not for ever. A client that writes the same ten times a second is served.
func TestSerialPortCircles(t *testing.T) {
	for _, f := range []Framing{FramingRTU, FramingASCII} {
		write := f.Append(nil, 0, 1, WriteRegisterRequest(0, 5))
		p := &serialPort{server: &Server{Endpoint: newMemory(100)}, framing: f, tally: new(tally), silence: Silence(charTime), char: charTime,
			units: func(u UnitID) bool { return u == 1 }}
		times := 0
		for b := write; len(b) > 0 && times <= mostSame; times++ {
			at := p.last.Add(12 * time.Millisecond)
			p.feed(b, at)
			answer, _ := p.next(context.Background())
			if b = bytes.Clone(answer); len(b) > 0 {
				p.sent(b, at)
			}
		}
		if times != mostSame+1 { // the last is passed over
			t.Errorf("%v: the answer went round %d times", f, times)
		}
		var own []lump
		for range 2 * mostSame {
			own = append(own, lump{100 * time.Millisecond, write})
		}
		if got := feed(p, own); len(got) != len(own)*len(write) {
			t.Errorf("%v: %d of %d requests answered", f, len(got)/len(write), len(own))
		}
	}
}

func TestSerialPortASCII(t *testing.T) {
	m := newMemory(100)
	m.set(HoldingRegisters, 0, 11)
	req, answer := AppendASCII(nil, 1, ReadRequest(HoldingRegisters, 0, 1)), AppendASCII(nil, 1, PDU{3, 2, 0, 11})
	for _, c := range []struct {
		name  string
		lumps []lump
		want  []byte
		bad   uint64
	}{
		{"a request", []lump{{0, req}}, answer, 0},
		{"byte by byte, slowly", bytewise(req, 900*time.Millisecond), answer, 0},
		{"too slowly", []lump{{0, req[:9]}, {1100 * time.Millisecond, req[9:]}}, nil, 1},
		{"begun twice", []lump{{0, join(req[:9], req)}}, answer, 0},
		{"another unit", []lump{{0, AppendASCII(nil, 2, PDU{1, 1, 0})}, {0, req}}, answer, 0},
		{"noise for ever", []lump{{0, []byte(strings.Repeat("0", 600))}, {0, req}}, answer, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &serialPort{server: &Server{Endpoint: m}, framing: FramingASCII, tally: new(tally), units: func(u UnitID) bool { return u == 1 }}
			if got := feed(p, c.lumps); !bytes.Equal(got, c.want) {
				t.Errorf("answers %q, want %q", got, c.want)
			}
			if got := p.server.Stats().BadFrames; got != c.bad {
				t.Errorf("%d bad frames, want %d", got, c.bad)
			}
		})
	}
}

// FuzzSerialPort plays any bytes with any pauses to a port: it must survive,
// keep no more than a frame, and after a long silence answer a right request.
func FuzzSerialPort(f *testing.F) {
	for _, e := range examples {
		f.Add(byte(FramingRTU), byte(9), AppendRTU(nil, 1, e.req))
		f.Add(byte(FramingRTU), byte(3), append(AppendRTU(nil, 2, e.req), AppendRTU(nil, 2, unhexed(f, e.resp))...))
		f.Add(byte(FramingASCII), byte(9), AppendASCII(nil, 1, e.req))
	}
	f.Fuzz(func(t *testing.T, framing, size byte, b []byte) {
		fr := FramingRTU + Framing(framing%2)
		m := newMemory(100)
		p := &serialPort{server: &Server{Endpoint: m}, framing: fr, tally: new(tally), silence: Silence(charTime),
			units: func(u UnitID) bool { return u == 1 }}
		var lumps []lump
		for len(b) > 0 {
			n := min(len(b), 1+int(size))
			lumps = append(lumps, lump{time.Duration(b[0]) * time.Millisecond / 8, b[:n]})
			b = b[n:]
		}
		feed(p, lumps)
		if limit := MaxASCII + 256; len(p.buf) > limit {
			t.Fatalf("%d bytes kept", len(p.buf))
		}
		p.last = time.Time{} // long ago
		req := fr.Append(nil, 0, 1, ReadRequest(Coils, 0, 1))
		want := fr.Append(nil, 0, 1, PDU{1, 1, byte(m.get(Coils, 0))})
		if got := feed(p, []lump{{0, req}}); !bytes.Equal(got, want) {
			t.Fatalf("a right request after a silence is answered % x, want % x", got, want)
		}
	})
}
