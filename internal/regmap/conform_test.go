package regmap

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
	"fieldgate/test/mbpoll"
)

// patience bounds what should happen at once.
const patience = 20 * time.Second

// The map of the suite: registers 0 to 199 hold their addresses, coils 0 to 2099
// are on where their address is divisible by three; read-only tables likewise.
// Holding register 150 is half of a 32-bit value, 200 is read only. Everything
// else is a hole.
func conformServer(t testing.TB, listen string) (config.Server, *Memory) {
	t.Helper()
	if !strings.Contains(listen, "unit:") {
		listen += ", unit: 7"
	}
	entries, err := conformMap()
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.LoadBytes("conform", []byte("buses: { plc: { tcp: 10.0.0.10:502 } }\ndevices: { d: { bus: plc, points: { x: { at: coil 0 } } } }\n"+
		"servers: [ { "+listen+", writes: true, map: { coil 0: d.x } } ]\n"))
	if err != nil {
		t.Fatal(err)
	}
	s := cfg.Servers[0]
	s.Map = slices.Clone(entries)
	m := NewMemory([]config.Server{s})
	for i := range 200 {
		m.Set(point.ID(fmt.Sprintf("d.r%d", i)), point.IntValue(int64(i)))
	}
	for i := range 2100 {
		m.Set(point.ID(fmt.Sprintf("d.c%d", i)), point.BoolValue(i%3 == 0))
	}
	m.Set("d.wide", point.IntValue(0x00960097))
	m.Set("d.ro", point.IntValue(200))
	return s, m
}

// conformMap makes the map, once for all.
var conformMap = sync.OnceValues(func() ([]config.Entry, error) {
	var s strings.Builder
	s.WriteString("buses: { plc: { tcp: 10.0.0.10:502 } }\ndevices: { d: { bus: plc, points: {\n  ro: { at: holding 999 }, wide: { at: holding 900, type: uint32, write: {} },\n")
	for i := range 200 {
		fmt.Fprintf(&s, "  r%d: { at: holding %d, write: {} },\n", i, i)
	}
	for i := range 2100 {
		fmt.Fprintf(&s, "  c%d: { at: coil %d, write: {} },\n", i, i)
	}
	s.WriteString("} } }\nservers: [ { listen: tcp://127.0.0.1:0, writes: true, stale_after: 1h, map: {\n  holding 150: d.wide, holding 200: d.ro,\n")
	for i := range 200 {
		if i != 150 && i != 151 {
			fmt.Fprintf(&s, "  holding %d: d.r%d,\n", i, i)
		}
		fmt.Fprintf(&s, "  input %d: d.r%d,\n", i, i)
	}
	for i := range 2100 {
		fmt.Fprintf(&s, "  coil %d: d.c%d, discrete %d: d.c%d,\n", i, i, i, i)
	}
	s.WriteString("} } ]\n")
	cfg, err := config.LoadBytes("conform", []byte(s.String()))
	if err != nil {
		return nil, err
	}
	return cfg.Servers[0].Map, nil
})

// startServer runs a server until the test ends.
func startServer(t testing.TB, listen string) (*Server, *Memory) {
	t.Helper()
	cfg, memory := conformServer(t, listen)
	log := slog.New(slog.DiscardHandler)
	id := modbus.Identity{ServerID: []byte("Fieldgate"), Objects: []modbus.Object{{ID: 0, Value: []byte("Fieldgate")}, {ID: 1, Value: []byte("fg")}, {ID: 2, Value: []byte("1")}}}
	s, err := Listen(cfg, New(cfg, memory.Image(), memory.Gate(), id, log), log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }() // ends with ctx
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("the server does not end")
		}
	})
	return s, memory
}

// exchange is a request PDU and the answer that the specification asks for.
type exchange struct {
	name      string
	req, resp string // hexadecimal; resp may end with … for any rest
}

// words returns n registers from addr on, as the map holds them at first.
func words(addr, n int) string {
	var s strings.Builder
	for i := range n {
		fmt.Fprintf(&s, "%04x", addr+i)
	}
	return s.String()
}

// conformance is what the Modbus Application Protocol V1.1b3 asks of a server,
// section by section. The requests leave the map as it was.
func conformance() []exchange {
	long := func(n int) string { return strings.Repeat("00", n) }
	return []exchange{
		// 6.1, 6.2: read coils, read discrete inputs
		{"coils", "01 0000 000a", "01 02 4902"},
		{"one coil", "01 0003 0001", "01 01 01"},
		{"most coils", "01 0000 07d0", "01 fa…"},
		{"too many coils", "01 0000 07d1", "81 03"},
		{"no coils", "01 0000 0000", "81 03"},
		{"coils past the map", "01 0833 0002", "81 02"},
		{"coils past 65535", "01 ffff 0002", "81 02"},
		{"the last coil of all", "01 ffff 0001", "81 02"},
		{"quantity comes before address", "01 ffff 07d1", "81 03"},
		{"coils, short", "01 0000 00", "81 03"},
		{"coils, long", "01 0000 0001 00", "81 03"},
		{"nothing but the function", "01", "81 03"},
		{"discrete inputs", "02 0000 000a", "02 02 4902"},
		{"too many discrete inputs", "02 0000 07d1", "82 03"},
		// 6.3, 6.4: read holding registers, read input registers
		{"registers", "03 0001 0003", "03 06 0001 0002 0003"},
		{"most registers", "03 0000 007d", "03 fa " + words(0, 125)},
		{"too many registers", "03 0000 007e", "83 03"},
		{"no registers", "03 0000 0000", "83 03"},
		{"a quantity beyond a byte", "03 0000 0100", "83 03"},
		{"a wide value", "03 0096 0002", "03 04 0096 0097"},
		{"half of it", "03 0096 0001", "83 02"},
		{"over it", "03 0095 0004", "03 08 " + words(0x95, 4)},
		{"a hole", "03 00c8 0002", "83 02"},
		{"beyond", "03 1000 0001", "83 02"},
		{"past 65535", "03 ffff 0002", "83 02"},
		{"input registers", "04 00c7 0001", "04 02 00c7"},
		{"too many input registers", "04 0000 007e", "84 03"},
		// 6.5: write single coil
		{"a coil on", "05 0000 ff00", "05 0000 ff00"},
		{"neither on nor off", "05 0000 0001", "85 03"},
		{"neither on nor off either", "05 0000 ff01", "85 03"},
		{"a coil that is not there", "05 0834 ff00", "85 02"},
		{"a coil, short", "05 0000 ff", "85 03"},
		// 6.6: write single register
		{"a register", "06 0005 0005", "06 0005 0005"},
		{"half of a wide value", "06 0097 0001", "86 02"},
		{"a read-only register", "06 00c8 0001", "86 02"},
		{"a register that is not there", "06 00c9 0001", "86 02"},
		// 6.8: diagnostics
		{"return query data", "08 0000 a537", "08 0000 a537"},
		{"another diagnosis", "08 0001 0000", "88 01"},
		{"another diagnosis, short", "08 000a", "88 01"},
		{"half of a word of query data", "08 0000 a5", "88 03"},
		// 6.11: write multiple coils
		{"coils written", "0f 0000 000a 02 4902", "0f 0000 000a"},
		{"no coils written", "0f 0000 0000 00", "8f 03"},
		{"too many coils written", "0f 0000 07b1 f7" + long(247), "8f 03"},
		{"too few bytes for coils", "0f 0000 0009 01 ff", "8f 03"},
		{"a byte count that lies", "0f 0000 0008 02 49", "8f 03"},
		{"coils past the map written", "0f 0833 0002 01 03", "8f 02"},
		// 6.12: write multiple registers
		{"registers written", "10 0001 0002 04 0001 0002", "10 0001 0002"},
		{"most registers written", "10 0000 007b f6 " + words(0, 123), "10 0000 007b"},
		{"too many registers written", "10 0000 007c f6 " + words(0, 123), "90 03"},
		{"no registers written", "10 0000 0000 00", "90 03"},
		{"a wrong byte count", "10 0000 0001 04 0000 0000", "90 03"},
		{"too few bytes", "10 0000 0002 04 0000", "90 03"},
		{"a wide value written", "10 0096 0002 04 0096 0097", "10 0096 0002"},
		{"half of a wide value and others", "10 0094 0003 06 0094 0095 0096", "90 02"},
		{"a read-only register among others", "10 00c7 0002 04 00c7 00c8", "90 02"},
		// 6.13: report server id
		{"server id", "11", "11 0a 4669656c6467617465 ff"},
		// 6.16: mask write register
		{"some bits", "16 0012 ffff 0000", "16 0012 ffff 0000"},
		{"some bits, short", "16 0012 ffff", "96 03"},
		{"some bits of a hole", "16 00c9 ffff 0000", "96 02"},
		// 6.17: read/write multiple registers
		{"write, then read", "17 0000 0002 0005 0001 02 0005", "17 04 0000 0001"},
		{"most read", "17 0000 007d 0000 0001 02 0000", "17 fa…"},
		{"too many read", "17 0000 007e 0000 0001 02 0000", "97 03"},
		{"too many written", "17 0000 0001 0000 007a f2 " + words(0, 121), "97 03"},
		{"most written", "17 0000 0001 0000 0079 f2 " + words(0, 121), "17 02 0000"},
		{"read of a hole, nothing is written", "17 00c9 0001 0005 0001 02 ffff", "97 02"},
		{"write of a hole", "17 0000 0001 00c9 0001 02 ffff", "97 02"},
		// 6.21: read device identification
		{"device identification", "2b 0e 01 00", "2b 0e 01 81 00 00 03 00 09 4669656c6467617465 01 02 6667 02 01 31"},
		{"one object", "2b 0e 04 01", "2b 0e 04 81 00 00 01 01 02 6667"},
		{"an object that is not there", "2b 0e 04 09", "ab 02"},
		{"no category", "2b 0e 05 00", "ab 03"},
		{"another MEI", "2b 0d 0000", "ab 01"},
		{"no MEI", "2b", "ab 03"},
		// 5.1, 7: functions that are not there
		{"a function that is not there", "07", "87 01"},
		{"file records", "14 07 06 0001 0000 0001", "94 01"},
		{"a user's function", "41", "c1 01"},
		{"the fifo", "18 0000", "98 01"},
		// that comes before the length of the rest (6, state diagrams)
		{"a function that is not there, long", "07 00", "87 01"},
		{"the event counter, long", "0b 0000", "8b 01"},
		{"file records, short", "14", "94 01"},
		{"file records with a wrong byte count", "15 09 06", "95 01"},
		{"the fifo, short", "18", "98 01"},
	}
}

func unhexed(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// answers reports whether resp is what is wanted.
func answers(t testing.TB, resp []byte, want string) bool {
	if head, any := strings.CutSuffix(want, "…"); any {
		return bytes.HasPrefix(resp, unhexed(t, head))
	}
	return bytes.Equal(resp, unhexed(t, want))
}

// asker has one request answered by unit 7.
type asker func(t *testing.T, req []byte) []byte

// overStream asks over a connection with framing f; the request is sent in parts
// that a seed decides.
func overStream(c net.Conn, f modbus.Framing) asker {
	rng := rand.New(rand.NewPCG(3, 4))
	tx := uint16(0)
	return func(t *testing.T, req []byte) []byte {
		t.Helper()
		tx++
		c.SetDeadline(time.Now().Add(patience))
		adu := f.Append(nil, tx, 7, req)
		for len(adu) > 0 {
			n := 1 + rng.IntN(len(adu))
			if _, err := c.Write(adu[:n]); err != nil {
				t.Fatal(err)
			}
			adu = adu[n:]
		}
		unit, id, resp := readFrame(t, c, f, req)
		if unit != 7 || f == modbus.FramingTCP && id != tx {
			t.Errorf("the answer is of unit %d and id %d, want 7 and %d", unit, id, tx)
		}
		return resp
	}
}

// readFrame reads the answer to req.
func readFrame(t *testing.T, r io.Reader, f modbus.Framing, req []byte) (modbus.UnitID, uint16, []byte) {
	t.Helper()
	var b []byte
	more := func(n int) {
		part := make([]byte, n)
		if _, err := io.ReadFull(r, part); err != nil {
			t.Fatalf("% x is answered % x, %v", req, b, err)
		}
		b = append(b, part...)
	}
	switch f {
	case modbus.FramingTCP:
		more(modbus.MBAPLen)
		_, n, _, err := modbus.ParseMBAP(b)
		if err != nil {
			t.Fatal(err)
		}
		more(n)
		tx, unit, pdu, err := modbus.DecodeTCP(b)
		if err != nil {
			t.Fatal(err)
		}
		return unit, tx, pdu
	case modbus.FramingASCII:
		for len(b) == 0 || b[len(b)-1] != '\n' {
			more(1)
		}
		unit, pdu, err := modbus.DecodeASCII(b)
		if err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		return unit, 0, pdu
	}
	for n, known := 3, false; !known; {
		more(n - len(b))
		if n, known = modbus.RTUResponseLen(b, req); known {
			more(n - len(b))
		} else if n == 0 {
			n = len(b) + 1 // its CRC alone ends it
			known = len(b) >= modbus.MinRTU && modbus.CRC16(b) == 0
		}
	}
	unit, pdu, err := modbus.DecodeRTU(b)
	if err != nil {
		t.Fatal(err)
	}
	return unit, 0, pdu
}

// One suite for every wire.
func TestConformance(t *testing.T) {
	dial := func(t *testing.T, listen string) net.Conn {
		s, _ := startServer(t, "listen: "+listen)
		c, err := net.Dial(s.Addr().Network(), s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	wires := []struct {
		name string
		open func(t *testing.T) asker
	}{
		{"tcp", func(t *testing.T) asker { return overStream(dial(t, "tcp://127.0.0.1:0"), modbus.FramingTCP) }},
		{"rtu over tcp", func(t *testing.T) asker { return overStream(dial(t, "rtu+tcp://127.0.0.1:0"), modbus.FramingRTU) }},
		{"ascii over tcp", func(t *testing.T) asker { return overStream(dial(t, "ascii+tcp://127.0.0.1:0"), modbus.FramingASCII) }},
		{"udp", func(t *testing.T) asker { return overDatagrams(dial(t, "udp://127.0.0.1:0"), modbus.FramingTCP) }},
		{"rtu in datagrams", func(t *testing.T) asker { return overDatagrams(dial(t, "rtu+udp://127.0.0.1:0"), modbus.FramingRTU) }},
		{"ascii in datagrams", func(t *testing.T) asker {
			return overDatagrams(dial(t, "ascii+udp://127.0.0.1:0"), modbus.FramingASCII)
		}},
		{"rtu", func(t *testing.T) asker { return overPTY(t, modbus.FramingRTU) }},
		{"ascii", func(t *testing.T) asker { return overPTY(t, modbus.FramingASCII) }},
	}
	for _, w := range wires {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			ask := w.open(t)
			for _, e := range conformance() {
				req := unhexed(t, e.req)
				adu := modbus.AppendRTU(nil, 7, req)
				if n, known := modbus.RTURequestLen(adu); strings.HasPrefix(w.name, "rtu") && !strings.Contains(w.name, "datagrams") && (known && n != len(adu) || !known && n != 0) {
					continue // RTU cannot tell where a request of a wrong length ends
				}
				if resp := ask(t, req); !answers(t, resp, e.resp) {
					t.Errorf("%s: % x is answered % x, want %s", e.name, req, resp, e.resp)
				}
			}
		})
	}
}

// pty is a pseudo-terminal: the server opens path, the test holds the other end.
type pty struct {
	*os.File
	path string
}

func openPTY(t testing.TB) pty {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal("open /dev/ptmx:", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	p := pty{os.NewFile(uintptr(fd), "ptmx"), fmt.Sprintf("/dev/pts/%d", n)}
	t.Cleanup(func() { p.Close() })
	// Held open, so that the line is there before the server and after it.
	slave, err := os.OpenFile(p.path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	raw, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	raw.Iflag, raw.Oflag, raw.Lflag = 0, 0, 0
	raw.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, raw); err != nil {
		t.Fatal(err)
	}
	return p
}

// awake returns once the server has opened the port, and so dropped what was sent
// to it before.
func awake(t *testing.T, p pty, f modbus.Framing) {
	t.Helper()
	defer p.SetDeadline(time.Time{})
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, err := p.Write(f.Append(nil, 0, 7, modbus.ReadRequest(modbus.Coils, 0, 1))); err != nil {
			t.Fatal(err)
		}
		p.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		buf := make([]byte, 100)
		if n, err := p.Read(buf); err == nil && n > 0 {
			for { // to its end
				p.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				if _, err := p.Read(buf); err != nil {
					return
				}
			}
		}
	}
	t.Fatal("the server does not open its port")
}

// overPTY asks over a serial line.
func overPTY(t *testing.T, f modbus.Framing) asker {
	p := openPTY(t)
	startServer(t, fmt.Sprintf("listen: 'serial:%s', framing: %s, mode: 115200-8E1", p.path, f))
	awake(t, p, f)
	return func(t *testing.T, req []byte) []byte {
		t.Helper()
		p.SetDeadline(time.Now().Add(patience))
		time.Sleep(2 * time.Millisecond) // the silence between two frames
		if _, err := p.Write(f.Append(nil, 0, 7, req)); err != nil {
			t.Fatal(err)
		}
		unit, _, resp := readFrame(t, p, f, req)
		if unit != 7 {
			t.Errorf("the answer is of unit %d", unit)
		}
		return resp
	}
}

// Rules of the serial line (MODBUS over Serial Line V1.02): who is not meant says
// nothing, what is damaged is not answered, broadcasts are done in silence, and
// none of it disturbs the next request.
func TestSerialSilence(t *testing.T) {
	for _, f := range []modbus.Framing{modbus.FramingRTU, modbus.FramingASCII} {
		t.Run(f.String(), func(t *testing.T) {
			t.Parallel()
			p := openPTY(t)
			_, memory := startServer(t, fmt.Sprintf("listen: 'serial:%s', framing: %s, mode: 115200-8E1", p.path, f))
			awake(t, p, f)
			var mu sync.Mutex
			var wrote []string
			memory.OnWrite = func(by string, w Write) {
				mu.Lock()
				defer mu.Unlock()
				wrote = append(wrote, fmt.Sprintf("%s=%s by %s", w.ID, w.Value, by))
			}
			read := modbus.ReadRequest(modbus.HoldingRegisters, 3, 1)
			damaged := f.Append(nil, 0, 7, read)
			damaged[4] ^= 1
			response := f.Append(nil, 0, 9, modbus.PDU{3, 4, 0, 1, 0, 2})
			for _, silent := range []struct {
				name string
				adu  []byte
			}{
				{"another unit", f.Append(nil, 0, 8, read)},
				{"a response of another", response},
				{"a conversation of others", append(f.Append(nil, 0, 9, modbus.ReadRequest(modbus.HoldingRegisters, 0, 2)), response...)},
				{"a wrong checksum", damaged},
				{"noise", []byte{0x55, 0xAA, 0x00}},
				{"a broadcast", f.Append(nil, 0, modbus.Broadcast, modbus.WriteRegisterRequest(5, 77))},
				{"a broadcast that reads", f.Append(nil, 0, modbus.Broadcast, read)},
				{"half of a request", f.Append(nil, 0, 7, read)[:4]},
				{"a request for another, unknown function", f.Append(nil, 0, 9, modbus.PDU{0x41, 1, 2, 3})},
			} {
				if _, err := p.Write(silent.adu); err != nil {
					t.Fatal(err)
				}
				p.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // silence ends what is left of it too
				if n, err := p.Read(make([]byte, 100)); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s: %d bytes, %v; want silence", silent.name, n, err)
				}
				p.SetDeadline(time.Now().Add(patience))
				if _, err := p.Write(f.Append(nil, 0, 7, read)); err != nil {
					t.Fatal(err)
				}
				if _, _, resp := readFrame(t, p, f, read); fmt.Sprintf("%x", resp) != "03020003" {
					t.Errorf("after %s: % x", silent.name, resp)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if want := "[d.r5=77 by serial:" + p.path + "]"; fmt.Sprint(wrote) != want {
				t.Errorf("written: %v, want %s", wrote, want)
			}
		})
	}
}

// What cannot be a frame ends its connection, and nobody else's.
func TestLiesEndTheirConnection(t *testing.T) {
	s, _ := startServer(t, "listen: tcp://127.0.0.1:0")
	dial := func() net.Conn {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		return c
	}
	healthy := overStream(dial(), modbus.FramingTCP)
	for name, lie := range map[string]string{
		"another protocol":  "0001 0001 0006 07 03 0000 0001",
		"no length":         "0001 0000 0000 07 03 0000 0001",
		"only the unit":     "0001 0000 0001 07",
		"too long":          "0001 0000 00ff 07 03 0000 0001",
		"far too long":      "0001 0000 ffff 07 03 0000 0001",
		"another's request": "474554202f20485454502f312e310d0a0d0a",
	} {
		c := dial()
		if _, err := c.Write(unhexed(t, lie)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %d bytes, %v; want the end", name, n, err)
		}
		if resp := healthy(t, unhexed(t, "03 0001 0001")); !answers(t, resp, "03 02 0001") {
			t.Errorf("after %s a healthy client is told % x", name, resp)
		}
	}
	if resp := overStreamUnit(t, dial(), 8); !answers(t, resp, "83 0b") {
		t.Errorf("another unit: % x", resp)
	}
	for _, unit := range []byte{0, 255} { // "the device at this address"
		if resp := overStreamUnit(t, dial(), unit); !answers(t, resp, "03 02 0001") {
			t.Errorf("unit %d: % x", unit, resp)
		}
	}
}

// overStreamUnit reads register 1 of a unit over Modbus TCP.
func overStreamUnit(t *testing.T, c net.Conn, unit byte) []byte {
	t.Helper()
	req := unhexed(t, "03 0001 0001")
	if _, err := c.Write(modbus.AppendTCP(nil, 1, modbus.UnitID(unit), req)); err != nil {
		t.Fatal(err)
	}
	got, _, resp := readFrame(t, c, modbus.FramingTCP, req)
	if got != modbus.UnitID(unit) {
		t.Errorf("the answer is of unit %d, want %d", got, unit)
	}
	return resp
}

// hostileLimit is how long a healthy client may wait for an answer among hostile
// ones. Usually it is a millisecond; a loaded machine takes its share.
const hostileLimit = 2 * time.Second

// A healthy client keeps its service while hundreds of half-open connections
// come, and others send whatever they like: it gets the right answer to each
// request, and soon.
func TestHealthyAmongHostile(t *testing.T) {
	for _, kind := range []struct {
		listen, network string
		framing         modbus.Framing
	}{{"tcp", "tcp", modbus.FramingTCP}, {"rtu+tcp", "tcp", modbus.FramingRTU}, {"udp", "udp", modbus.FramingTCP}} {
		t.Run(kind.listen, func(t *testing.T) {
			s, _ := startServer(t, "listen: '"+kind.listen+"://127.0.0.1:0'")
			dial := func() (net.Conn, error) { return net.Dial(kind.network, s.Addr().String()) }
			c, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			healthy := overStream(c, kind.framing)
			if kind.network == "udp" {
				healthy = overDatagrams(c, kind.framing)
			}
			ask := func() time.Duration {
				begin := time.Now()
				// Nobody can write this register.
				if resp := healthy(t, unhexed(t, "03 00c8 0001")); !answers(t, resp, "03 02 00c8") {
					t.Fatalf("a healthy client is told % x", resp)
				}
				return time.Since(begin)
			}
			ask()
			stop := make(chan struct{})
			var hostile sync.WaitGroup
			for i := range 4 {
				hostile.Go(func() { bother(dial, kind.framing, i, stop) }) // ends when stop is closed
			}
			var waits []time.Duration
			for end := time.Now().Add(time.Second); time.Now().Before(end) || len(waits) < 50; time.Sleep(time.Millisecond) {
				waits = append(waits, ask())
			}
			close(stop)
			hostile.Wait()
			slices.Sort(waits)
			most := waits[len(waits)-1]
			st := s.Stats()
			t.Logf("%d answers after %v, at most %v; %+v", len(waits), waits[len(waits)/2], most, st.ServerStats)
			if most > hostileLimit {
				t.Errorf("an answer took %v", most)
			}
			if kind.network == "tcp" && (st.Refused+st.Evicted < 50 || st.Clients > 32) {
				t.Errorf("%+v", st.ServerStats)
			}
		})
	}
}

// bother makes one connection after the other and sends nonsense, of one of four
// kinds, until stop is closed. It holds a hundred of them open.
func bother(dial func() (net.Conn, error), f modbus.Framing, kind int, stop <-chan struct{}) {
	rng := rand.New(rand.NewPCG(uint64(kind), 9))
	var held []net.Conn
	defer func() {
		for _, h := range held {
			h.Close()
		}
	}()
	for {
		select {
		case <-stop:
			return
		default:
		}
		h, err := dial()
		if err != nil {
			continue
		}
		junk := make([]byte, rng.IntN(300))
		for k := range junk {
			junk[k] = byte(rng.Uint32())
		}
		switch {
		case kind == 0: // half-open
			junk = junk[:0]
		case kind == 1: // half of a header, or of a frame
			junk = f.Append(nil, 1, 7, []byte{3, 0, 1, 0, 1})[:5]
		case kind == 2 && len(junk) > 2: // a right frame, and any request
			junk[0] = byte(rng.IntN(45))
			junk = f.Append(nil, 1, 7, junk[:min(len(junk), 2+rng.IntN(20))])
		}
		h.SetDeadline(time.Now().Add(50 * time.Millisecond))
		h.Write(junk)
		if held = append(held, h); len(held) > 100 {
			held[0].Close()
			held = held[1:]
		}
		time.Sleep(time.Millisecond)
	}
}

// overDatagrams asks unit 7 over UDP, one frame in framing f a datagram, again when
// nothing has come: datagrams are lost where many come.
func overDatagrams(c net.Conn, f modbus.Framing) asker {
	tx := uint16(0)
	return func(t *testing.T, req []byte) []byte {
		t.Helper()
		tx++
		buf := make([]byte, modbus.MaxASCII)
		for end := time.Now().Add(patience); time.Now().Before(end); {
			if _, err := c.Write(f.Append(nil, tx, 7, req)); err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			for {
				n, err := c.Read(buf)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				r := bytes.NewReader(buf[:n])
				unit, id, resp := readFrame(t, r, f, req)
				if unit != 7 || r.Len() > 0 {
					t.Fatalf("% x", buf[:n])
				}
				if id == tx || f != modbus.FramingTCP {
					return resp
				}
			}
		}
		t.Fatalf("no answer to % x", req)
		return nil
	}
}

// mbpoll is the libmodbus client of Debian; it reads and writes on TCP and on a
// serial line.
func TestMbpoll(t *testing.T) {
	for _, wire := range []string{"tcp", "rtu"} {
		t.Run(wire, func(t *testing.T) {
			t.Parallel()
			var args []string
			if wire == "tcp" {
				s, _ := startServer(t, "listen: tcp://127.0.0.1:0")
				_, port, _ := net.SplitHostPort(s.Addr().String())
				args = []string{"-m", "tcp", "-p", port, "127.0.0.1"}
			} else {
				ours, theirs := openPTY(t), openPTY(t)
				startServer(t, fmt.Sprintf("listen: 'serial:%s', mode: 115200-8E1", ours.path))
				awake(t, ours, modbus.FramingRTU)
				go io.Copy(ours, theirs) // end with the ends of the line
				go io.Copy(theirs, ours)
				args = []string{"-m", "rtu", "-b", "115200", "-P", "even", theirs.path}
			}
			poll := func(flags string, values ...string) string {
				t.Helper()
				a := append([]string{"-0", "-a", "7"}, strings.Fields(flags)...)
				got, err := mbpoll.Run(append(append(a, args...), values...)...)
				if err != nil {
					return "error: " + err.Error()
				}
				return strings.Join(got, " ")
			}
			for _, row := range []struct {
				flags  string
				values []string
				want   string
			}{
				{"-t 4 -r 10 -c 3", nil, "10 11 12"},
				{"-t 4 -r 0 -c 125", nil, strings.Join(numbers(125), " ")},
				{"-t 3 -r 199 -c 1", nil, "199"},
				{"-t 0 -r 0 -c 4", nil, "1 0 0 1"},
				{"-t 1 -r 2 -c 2", nil, "0 1"},
				{"-t 4:int -B -r 150 -c 1", nil, "9830551"},
				{"-t 4 -r 10", []string{"4711"}, ""},
				{"-t 4 -r 10 -c 1", nil, "4711"},
				{"-t 4 -r 20", []string{"1", "2", "3"}, ""},
				{"-t 4 -r 20 -c 3", nil, "1 2 3"},
				{"-t 0 -r 1", []string{"1"}, ""},
				{"-t 0 -r 0 -c 3", nil, "1 1 0"},
				{"-t 4:int -B -r 150", []string{"70000"}, ""},
				{"-t 4:int -B -r 150 -c 1", nil, "70000"},
				{"-t 4 -r 150 -c 1", nil, "error: Read output (holding) register failed: Illegal data address"},
				{"-t 4 -r 200", []string{"1"}, "error: Write output (holding) register failed: Illegal data address"},
			} {
				if got := poll(row.flags, row.values...); got != row.want {
					t.Errorf("mbpoll %s %v: %s, want %s", row.flags, row.values, got, row.want)
				}
			}
		})
	}
}

// A bare libmodbus client, as fast as it can, on TCP and on a serial line: not one
// request fails.
func TestLibmodbus(t *testing.T) {
	program := filepath.Join(t.TempDir(), "poll")
	if out, err := exec.Command("gcc", "-std=c11", "-O2", "-D_DEFAULT_SOURCE", "-o", program, "../../test/peers/poll.c", "-I/usr/include/modbus", "-lmodbus").CombinedOutput(); err != nil {
		t.Fatalf("gcc (Debian packages gcc, libmodbus-dev): %v\n%s", err, out)
	}
	poll := func(t *testing.T, s *Server, args ...string) {
		t.Helper()
		out, err := exec.Command(program, args...).CombinedOutput()
		var reads, failures int
		if _, e := fmt.Sscan(string(out), &reads, &failures); err != nil || e != nil || reads == 0 || failures > 0 {
			t.Errorf("poll %v: %v: %s", args, err, out)
		}
		if st := s.Stats(); st.BadFrames+st.Exceptions > 0 || st.Requests < uint64(reads) {
			t.Errorf("%d reads, %+v", reads, st.ServerStats)
		}
	}
	t.Run("tcp", func(t *testing.T) {
		s, _ := startServer(t, "listen: tcp://127.0.0.1:0, unit: 1")
		_, port, _ := net.SplitHostPort(s.Addr().String())
		poll(t, s, "tcp", port, "125", "0.3")
	})
	t.Run("rtu", func(t *testing.T) {
		ours, theirs := openPTY(t), openPTY(t)
		s, _ := startServer(t, fmt.Sprintf("listen: 'serial:%s', mode: 115200-8N1", ours.path))
		awake(t, ours, modbus.FramingRTU)
		go io.Copy(ours, theirs) // end with the ends of the line
		go io.Copy(theirs, ours)
		poll(t, s, "rtu", theirs.path, "115200", "10", "0.3", "7")
	})
}

func numbers(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprint(i)
	}
	return all
}

// FuzzServer sends any requests to a map whose healthy client keeps its service.
func FuzzServer(f *testing.F) {
	for _, e := range conformance() {
		f.Add(modbus.AppendTCP(modbus.AppendTCP(nil, 1, 7, unhexed(f, e.req)), 2, 7, unhexed(f, "03 0001 0001")))
	}
	s, _ := startServer(f, "listen: tcp://127.0.0.1:0")
	healthy, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { healthy.Close() })
	ask := overStream(healthy, modbus.FramingTCP)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		c.Write(b)
		c.(*net.TCPConn).CloseWrite()
		got, _ := io.ReadAll(c)
		c.Close()
		for len(got) > 0 { // whole frames, whatever was asked
			_, n, _, err := modbus.ParseMBAP(got)
			if err != nil || len(got) < modbus.MBAPLen+n {
				t.Fatalf("% x", got)
			}
			got = got[modbus.MBAPLen+n:]
		}
		begin := time.Now()
		if resp := ask(t, unhexed(t, "03 00c8 0001")); !answers(t, resp, "03 02 00c8") {
			t.Fatalf("a healthy client is told % x", resp)
		}
		if took := time.Since(begin); took > hostileLimit {
			t.Fatalf("a healthy client waits %v", took)
		}
	})
}

// A serial port that vanishes, as an adapter does that is unplugged, is opened
// again when it is back, under the same path.
func TestPortComesBack(t *testing.T) {
	link := filepath.Join(t.TempDir(), "port")
	first := openPTY(t)
	if err := os.Symlink(first.path, link); err != nil {
		t.Fatal(err)
	}
	s, _ := startServer(t, fmt.Sprintf("listen: 'serial:%s', mode: 115200-8E1", link))
	awake(t, first, modbus.FramingRTU)
	first.Close() // the server's side hangs up
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	time.Sleep(150 * time.Millisecond) // a try or two fail
	second := openPTY(t)
	if err := os.Symlink(second.path, link); err != nil {
		t.Fatal(err)
	}
	awake(t, second, modbus.FramingRTU)
	if c := s.Stats().ByClient; len(c) != 1 || c[0].Client != "serial:"+link || c[0].Requests() < 2 {
		t.Errorf("%+v", c)
	}
}
