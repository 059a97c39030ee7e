package simulate

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
)

// patience bounds what should happen at once.
const patience = 30 * time.Second

// start runs a plant until the test ends.
func start(t *testing.T, buses ...*Bus) *Plant {
	t.Helper()
	p := &Plant{Buses: buses, Seed: 1, Log: slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not return")
		}
	})
	return p
}

func tcpBus(framing modbus.Framing, devices ...*Device) *Bus {
	return &Bus{Name: "tcp", Kind: config.TCP, Address: "127.0.0.1:0", Framing: framing, Devices: devices}
}

func serialBus(baud int, devices ...*Device) *Bus {
	return &Bus{Name: "line", Kind: config.Serial, Framing: modbus.FramingRTU, Devices: devices,
		Mode: config.SerialMode{Baud: baud, DataBits: 8, Parity: 'E', StopBits: 1}}
}

// connect dials a TCP or UDP bus.
func connect(t *testing.T, b *Bus) net.Conn {
	t.Helper()
	c, err := net.Dial(b.Kind.String(), b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// openPort opens the gateway's end of a serial bus.
func openPort(t *testing.T, b *Bus) *os.File {
	t.Helper()
	f, err := os.OpenFile(b.Addr(), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	f.SetDeadline(time.Now().Add(patience))
	return f
}

// exchange sends req and expects want.
func exchange(t *testing.T, rw io.ReadWriter, req, want []byte) {
	t.Helper()
	if _, err := rw.Write(req); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	n, err := io.ReadFull(rw, got)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("% x is answered % x, %v; want % x", req, got[:n], err, want)
	}
}

// hush expects that nothing more comes for a while, and that the peer is there.
func hush(t *testing.T, c interface {
	io.Reader
	SetReadDeadline(time.Time) error
}, d time.Duration) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(d))
	defer c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 64)
	if n, err := c.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("% x, %v; want silence", b[:n], err)
	}
}

// await waits for what should happen soon.
func await(t *testing.T, happened func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

var (
	readTwo = modbus.ReadRequest(modbus.HoldingRegisters, 0, 2)
	twoRegs = modbus.PDU{3, 4, 0, 17, 0, 18}
)

// seventeen is a device whose first two holding registers are 17 and 18.
func seventeen(t *testing.T, s Settings) *Device {
	t.Helper()
	if s.Unit == 0 {
		s.Unit = 1
	}
	s.Points = append(s.Points, at(t, "a", "holding 0", "uint16", "17"), at(t, "b", "holding 1", "uint16", "18"))
	return device(t, s)
}

func TestTCP(t *testing.T) {
	one, two := seventeen(t, Settings{}), device(t, Settings{Unit: 2})
	b := tcpBus(modbus.FramingTCP, one, two)
	start(t, b)
	c := connect(t, b)
	req := modbus.AppendTCP(nil, 7, 1, readTwo)
	resp := modbus.AppendTCP(nil, 7, 1, twoRegs)
	exchange(t, c, req, resp)
	exchange(t, c, append(bytes.Clone(req), req...), append(bytes.Clone(resp), resp...))
	exchange(t, c, req[:5], nil)
	exchange(t, c, req[5:], resp)
	for unit, want := range map[modbus.UnitID]modbus.PDU{
		2: {3, 4, 0, 0, 0, 0}, 0: twoRegs, 255: twoRegs, 3: {0x83, 0x0B},
	} {
		exchange(t, c, modbus.AppendTCP(nil, 8, unit, readTwo), modbus.AppendTCP(nil, 8, unit, want))
	}
	exchange(t, c, modbus.AppendTCP(nil, 9, 1, modbus.PDU{3, 0, 0, 0, 0}), modbus.AppendTCP(nil, 9, 1, modbus.PDU{0x83, 3}))
	if st := b.Stats(); st.Clients != 1 || st.Requests != 9 || st.BadFrames != 0 || st.BytesIn != 9*12 {
		t.Errorf("%+v", st)
	}
	// A header that cannot be closes the connection.
	exchange(t, c, []byte{0, 1, 0, 9, 0, 6}, nil)
	exchange(t, c, []byte{1, 3, 0, 0, 0, 1}, nil)
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want a closed connection", err)
	}
	if st := b.Stats(); st.BadFrames != 1 {
		t.Errorf("%+v", st)
	}
}

func TestStreamFramings(t *testing.T) {
	for _, framing := range []modbus.Framing{modbus.FramingRTU, modbus.FramingASCII} {
		t.Run(framing.String(), func(t *testing.T) {
			one, two := seventeen(t, Settings{}), device(t, Settings{Unit: 2})
			b := tcpBus(framing, one, two)
			start(t, b)
			c := connect(t, b)
			frame := func(u modbus.UnitID, p modbus.PDU) []byte { return framing.Append(nil, 0, u, p) }
			req, resp := frame(1, readTwo), frame(1, twoRegs)
			for cut := range len(req) {
				exchange(t, c, req[:cut], nil)
				exchange(t, c, req[cut:], resp)
			}
			exchange(t, c, frame(1, modbus.PDU{0x63, 1, 2, 3}), frame(1, modbus.PDU{0xE3, 1}))
			// Nobody answers for unit 9, nor to a broadcast, nor to what is broken.
			broken := bytes.Clone(req)
			broken[len(broken)-3] ^= 1
			exchange(t, c, frame(9, readTwo), nil)
			exchange(t, c, frame(modbus.Broadcast, modbus.WriteRegisterRequest(5, 6)), nil)
			exchange(t, c, req, resp)
			exchange(t, c, broken, nil)
			await(t, func() bool { return b.Stats().BadFrames == 1 })
			exchange(t, c, req, resp)
			if read(t, one, modbus.HoldingRegisters, 5, 1)[0] != 6 || read(t, two, modbus.HoldingRegisters, 5, 1)[0] != 6 {
				t.Error("a broadcast is not executed by all")
			}
			if st := b.Stats(); st.BadFrames != 1 {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestUDP(t *testing.T) {
	b := &Bus{Name: "udp", Kind: config.UDP, Address: "127.0.0.1:0", Devices: Devices{seventeen(t, Settings{Latency: time.Millisecond})}}
	rtu := &Bus{Name: "rtu", Kind: config.UDP, Address: "127.0.0.1:0", Framing: modbus.FramingRTU, Devices: Devices{
		seventeen(t, Settings{Faults: []Fault{{Kind: Drop, Nth: 2}}})}}
	start(t, b, rtu)
	c := connect(t, b)
	req, resp := modbus.AppendTCP(nil, 7, 1, readTwo), modbus.AppendTCP(nil, 7, 1, twoRegs)
	exchange(t, c, req[:8], nil)
	exchange(t, c, req, resp)
	if st := b.Stats(); st.BadFrames != 1 || st.Requests != 1 {
		t.Errorf("%+v", st)
	}
	c = connect(t, rtu)
	req, resp = modbus.AppendRTU(nil, 1, readTwo), modbus.AppendRTU(nil, 1, twoRegs)
	exchange(t, c, req, resp)
	exchange(t, c, req, nil) // lost
	exchange(t, c, req, resp)
}

// TestTCPFaults plays each fault over a real connection: what comes, and that
// the device is there again for the next request or the next connection.
func TestTCPFaults(t *testing.T) {
	const tx = 0x0102
	req, resp := modbus.AppendTCP(nil, tx, 1, readTwo), modbus.AppendTCP(nil, tx, 1, twoRegs)
	for kind := Silent; int(kind) < len(faultNames); kind++ {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			d := seventeen(t, Settings{Seed: 1, Faults: []Fault{{Kind: kind, Nth: 2, Delay: 30 * time.Millisecond}}})
			b := tcpBus(modbus.FramingTCP, d)
			start(t, b)
			c := connect(t, b)
			exchange(t, c, req, resp)
			sent := time.Now()
			took := func(least time.Duration) {
				t.Helper()
				if d := time.Since(sent); d < least {
					t.Errorf("after %v, want %v at least", d, least)
				}
			}
			got := func(n int) []byte {
				t.Helper()
				b := make([]byte, n)
				if _, err := io.ReadFull(c, b); err != nil {
					t.Fatal(err)
				}
				return b
			}
			if _, err := c.Write(req); err != nil {
				t.Fatal(err)
			}
			alive := true
			switch kind {
			case Silent, Mute:
				hush(t, c, 20*time.Millisecond)
			case Late, Split, Twice:
				if kind == Twice {
					exchange(t, c, nil, resp)
				}
				exchange(t, c, nil, resp)
				took(30 * time.Millisecond)
			case Slow:
				exchange(t, c, nil, resp)
				took(12 * 30 * time.Millisecond)
			case WrongID:
				if id, u, pdu, err := modbus.DecodeTCP(got(len(resp))); err != nil || id == tx || u != 1 || !bytes.Equal(pdu, twoRegs) {
					t.Errorf("id %#x, unit %d, % x, %v", id, u, pdu, err)
				}
			case WrongUnit:
				exchange(t, c, nil, modbus.AppendTCP(nil, tx, 2, twoRegs))
			case Refuse:
				exchange(t, c, nil, modbus.AppendTCP(nil, tx, 1, modbus.PDU{0x83, 6}))
			case CRC:
				if _, _, _, err := modbus.DecodeTCP(got(len(resp))); !errors.Is(err, modbus.ErrBadFrame) {
					t.Errorf("%v, want a bad frame", err)
				}
			case Partial:
				n, _ := c.Read(make([]byte, len(resp)))
				if n < 1 || n >= len(resp) {
					t.Errorf("%d bytes", n)
				}
				hush(t, c, 20*time.Millisecond)
			case Echo:
				exchange(t, c, nil, append(bytes.Clone(req), resp...))
			case Noise:
				all := make([]byte, 64)
				n, _ := io.ReadAtLeast(c, all, len(resp)+1)
				if !bytes.HasSuffix(all[:n], resp) {
					t.Errorf("% x", all[:n])
				}
			case Drop:
				if n, err := c.Read(make([]byte, 64)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%d bytes, %v", n, err)
				}
				alive = false
			default:
				t.Fatal("no test of this fault")
			}
			if !alive {
				c = connect(t, b)
			}
			exchange(t, c, req, resp)
		})
	}
}

// TestInFlight holds that requests sent together are answered together as far
// as the device takes them at once, and what becomes of the rest.
func TestInFlight(t *testing.T) {
	const latency = 50 * time.Millisecond
	run := func(t *testing.T, inFlight int, excess Excess, requests int) (*Bus, net.Conn) {
		b := tcpBus(modbus.FramingTCP, seventeen(t, Settings{Latency: latency}))
		b.InFlight, b.Excess = inFlight, excess
		start(t, b)
		c := connect(t, b)
		var all []byte
		for tx := range uint16(requests) {
			all = modbus.AppendTCP(all, tx, 1, readTwo)
		}
		if _, err := c.Write(all); err != nil {
			t.Fatal(err)
		}
		return b, c
	}
	resp := func(tx uint16) []byte { return modbus.AppendTCP(nil, tx, 1, twoRegs) }
	t.Run("all", func(t *testing.T) {
		t.Parallel()
		begin := time.Now()
		_, c := run(t, 0, Queue, 16)
		for tx := range uint16(16) {
			exchange(t, c, nil, resp(tx))
		}
		if d := time.Since(begin); d < latency || d > 8*latency {
			t.Errorf("16 at once took %v, want about %v", d, latency)
		}
	})
	t.Run("queue", func(t *testing.T) {
		t.Parallel()
		begin := time.Now()
		_, c := run(t, 2, Queue, 6)
		for tx := range uint16(6) {
			exchange(t, c, nil, resp(tx))
			if d, want := time.Since(begin), latency*time.Duration(1+tx/2); d < want {
				t.Errorf("answer %d after %v, want %v at least", tx, d, want)
			}
		}
	})
	t.Run("ignore", func(t *testing.T) {
		t.Parallel()
		b, c := run(t, 1, Ignore, 3)
		exchange(t, c, nil, resp(0))
		hush(t, c, latency)
		exchange(t, c, modbus.AppendTCP(nil, 9, 1, readTwo), resp(9))
		if n := b.Devices[0].Requests(); n != 2 {
			t.Errorf("%d requests reach the device, want 2", n)
		}
	})
	t.Run("close", func(t *testing.T) {
		t.Parallel()
		_, c := run(t, 1, Close, 2)
		if n, err := c.Read(make([]byte, 64)); n != 0 || err == nil {
			t.Errorf("%d bytes, %v; want a closed connection", n, err)
		}
	})
	t.Run("mix", func(t *testing.T) {
		t.Parallel()
		_, c := run(t, 1, Mix, 3)
		for _, tx := range []uint16{0, 0, 1} {
			exchange(t, c, nil, resp(tx))
		}
	})
	t.Run("clients", func(t *testing.T) {
		b := tcpBus(modbus.FramingTCP, seventeen(t, Settings{}))
		b.MaxClients = 1
		start(t, b)
		first := connect(t, b)
		exchange(t, first, modbus.AppendTCP(nil, 1, 1, readTwo), resp(1))
		second := connect(t, b)
		if n, err := second.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("a second client: %d bytes, %v", n, err)
		}
		first.Close()
		await(t, func() bool { return b.Stats().Clients == 0 })
		exchange(t, connect(t, b), modbus.AppendTCP(nil, 1, 1, readTwo), resp(1))
	})
}

// TestLatency: an answer is never early, and seldom much late: a simulator that
// dawdles would make every figure measured against it worthless. A machine that
// is busy with something else gets several rounds.
func TestLatency(t *testing.T) {
	const latency, late = 3 * time.Millisecond, 500 * time.Microsecond
	b := tcpBus(modbus.FramingTCP, seventeen(t, Settings{Latency: latency}))
	start(t, b)
	c := connect(t, b)
	var median time.Duration
	for range 10 {
		var took []time.Duration
		for range 20 {
			begin := time.Now()
			exchange(t, c, modbus.AppendTCP(nil, 1, 1, readTwo), modbus.AppendTCP(nil, 1, 1, twoRegs))
			took = append(took, time.Since(begin))
		}
		slices.Sort(took)
		if took[0] < latency {
			t.Fatalf("an answer after %v, want %v at least", took[0], latency)
		}
		if median = took[len(took)/2]; median < latency+late {
			return
		}
	}
	t.Errorf("answers take %v, want about %v", median, latency)
}

func TestPlantErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	taken := tcpBus(modbus.FramingTCP)
	start(t, taken)
	with := func(b *Bus, change func(*Bus)) *Bus { change(b); return b }
	for _, c := range []struct {
		name string
		bus  *Bus
		text string
	}{
		{"one unit twice", tcpBus(0, device(t, Settings{Name: "a", Unit: 1}), device(t, Settings{Name: "b", Unit: 1})), "devices a and b both have unit id 1"},
		{"no kind", &Bus{}, "a bus is serial, tcp or udp"},
		{"MBAP on a serial line", with(serialBus(9600), func(b *Bus) { b.Framing = modbus.FramingTCP }), "framing rtu or ascii"},
		{"negative", with(serialBus(9600), func(b *Bus) { b.Lump = -1 }), "negative"},
		{"a wrong device", tcpBus(0, New(Settings{Name: "a", Latency: -1})), "device a:"},
		{"wrong ids without ids", serialBus(9600, New(Settings{Name: "a", Faults: []Fault{{Kind: WrongID}}})), "no transaction id"},
		{"port taken", with(tcpBus(0), func(b *Bus) { b.Address = taken.Addr() }), "in use"},
		{"udp port", with(tcpBus(0), func(b *Bus) { b.Kind, b.Address = config.UDP, "127.0.0.1:99999" }), "99999"},
		{"a file in place of the link", with(serialBus(9600), func(b *Bus) { b.Address = file }), "something else than a link"},
		{"no folder for the link", with(serialBus(9600), func(b *Bus) { b.Address = filepath.Join(dir, "none", "x") }), "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			link := filepath.Join(dir, "earlier")
			earlier, udp, tcp := serialBus(9600), &Bus{Name: "udp", Kind: config.UDP, Address: "127.0.0.1:0"}, tcpBus(0)
			earlier.Address = link
			p := &Plant{Buses: []*Bus{earlier, udp, tcp, c.bus}}
			err := p.Run(context.Background())
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v, want one with %q", err, c.text)
			}
			if _, err := os.Lstat(link); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the link of an earlier bus is left: %v", err)
			}
			if c, err := net.Dial("tcp", tcp.Addr()); err == nil {
				c.Close()
				t.Error("an earlier bus is left open")
			}
		})
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the file is gone: %v", err)
	}

	// A bus that fails ends the others.
	a, b := tcpBus(0), tcpBus(0)
	p := &Plant{Buses: []*Bus{a, b}}
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	a.listener.Close()
	if err := p.Run(context.Background()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want that of the bus", err)
	}

	p = &Plant{Buses: []*Bus{tcpBus(0)}}
	p.Close()
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	p.Close()
	p.Close()
	if p.Bus("tcp") == nil || p.Bus("x") != nil || p.Device("x") != nil {
		t.Error("a bus is not found by its name")
	}
}
