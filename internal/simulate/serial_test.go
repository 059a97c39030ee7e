package simulate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/test/mbpoll"
)

// TestPacing holds the emulated line to the clock: no byte of an answer is there
// before its time, and the answer is complete soon after it, at least when the
// machine has time for both ends.
func TestPacing(t *testing.T) {
	for _, c := range []struct {
		baud, exchanges int
		slack           float64 // of the quickest exchange, as a share of the line's time
	}{
		{9600, 8, 0.05},
		{115200, 60, 0.25},
	} {
		t.Run(fmt.Sprint(c.baud), func(t *testing.T) {
			const latency = time.Millisecond
			d := device(t, Settings{Unit: 1, Fill: true, Latency: latency})
			b := serialBus(c.baud, d)
			start(t, b)
			port := openPort(t, b)
			char := b.Mode.CharTime()
			silence := modbus.Silence(char)
			req := modbus.AppendRTU(nil, 1, modbus.ReadRequest(modbus.HoldingRegisters, 0, 20))
			want := time.Duration(8+45)*char + silence + latency
			var took []time.Duration
			buf := make([]byte, 256)
			for range c.exchanges {
				begin := time.Now()
				if _, err := port.Write(req); err != nil {
					t.Fatal(err)
				}
				got := 0
				for got < 45 {
					n, err := port.Read(buf[got:])
					if err != nil {
						t.Fatal(err)
					}
					got += n
					at := time.Since(begin)
					if due := time.Duration(8+got)*char + silence + latency; at < due {
						t.Fatalf("byte %d is there after %v, %v early", got, at, due-at)
					}
				}
				took = append(took, time.Since(begin))
				if _, _, err := modbus.DecodeRTU(buf[:got]); err != nil {
					t.Fatal(err)
				}
				time.Sleep(silence)
			}
			slices.Sort(took)
			least, median := took[0], took[len(took)/2]
			t.Logf("%d baud: least %v of %v (%.4f), median %v", c.baud, least, want, float64(least)/float64(want), median)
			if least > want+time.Duration(float64(want)*c.slack) {
				t.Errorf("an exchange takes %v at least, want about %v", least, want)
			}
			if st := b.Stats(); st.Requests != uint64(c.exchanges) || st.SilenceBroken != 0 || st.BadFrames != 0 || st.Overruns != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// TestSilenceIsCounted plays requests at made-up instants to a line of 1 ms a
// character, on which an answer has been delivered.
func TestSilenceIsCounted(t *testing.T) {
	const char, silence = time.Millisecond, 3500 * time.Microsecond
	req := modbus.AppendRTU(nil, 1, readTwo)
	begin := time.Unix(1e9, 0)
	after := func(chars float64) time.Time { return begin.Add(time.Duration(chars * float64(char))) }
	type input struct {
		at time.Time
		b  []byte
	}
	for _, c := range []struct {
		name             string
		used             bool // something ended at begin
		inputs           []input
		requests, broken uint64
	}{
		{"the first ever", false, []input{{after(0), req}}, 1, 0},
		{"at once", true, []input{{after(0), req}}, 1, 1},
		{"just too early", true, []input{{after(3.4), req}}, 1, 1},
		{"just in time", true, []input{{after(3.5), req}}, 1, 0},
		{"while the line is busy", true, []input{{after(-2), req}}, 1, 1},
		{"in two writes", true, []input{{after(4), req[:3]}, {after(30), req[3:]}}, 1, 0},
		{"two in one write", true, []input{{after(4), append(bytes.Clone(req), req...)}}, 2, 1},
		{"another during the answer", true, []input{{after(4), req}, {after(20), req}}, 2, 1},
		{"another before the answer", true, []input{{after(4), req}, {after(13), req}}, 2, 1},
		{"another long after", true, []input{{after(4), req}, {after(1000), req}}, 2, 0},
		{"after half a request", true, []input{{after(4), req[:3]}, {after(100), req}}, 1, 0},
	} {
		for _, strict := range []bool{false, true} {
			d := seventeen(t, Settings{})
			b := serialBus(0, d)
			b.StrictSilence = strict
			b.log = slog.New(slog.DiscardHandler)
			l := &serialLine{bus: b, char: char, silence: silence, lump: fifo, used: c.used, busy: begin}
			for _, in := range c.inputs {
				for len(l.out) > 0 && !l.out[0].at.After(in.at) { // what deliver does
					l.busy = l.out[0].at
					l.out = l.out[1:]
				}
				l.receive(in.b, in.at)
			}
			if st := b.Stats(); st.Requests != c.requests || st.SilenceBroken != c.broken {
				t.Errorf("%s: %d of %d requests broke the silence, want %d of %d", c.name, st.SilenceBroken, st.Requests, c.broken, c.requests)
			}
			want := int(c.requests)
			if strict {
				want -= int(c.broken)
			}
			if got := d.Requests(); got != want {
				t.Errorf("%s, strict %v: %d requests reach the device, want %d", c.name, strict, got, want)
			}
		}
	}
}

func TestSerialSharedLine(t *testing.T) {
	one, two := seventeen(t, Settings{Unit: 1}), device(t, Settings{Unit: 2, Fill: true})
	b := serialBus(0, one, two)
	b.Mode.Baud = 0 // as fast as it goes
	b.Address = filepath.Join(t.TempDir(), "line")
	p := start(t, b)
	if b.Addr() != b.Address {
		t.Errorf("a gateway would open %s, want the link %s", b.Addr(), b.Address)
	}
	port := openPort(t, b)
	frame := func(u modbus.UnitID, pdu modbus.PDU) []byte { return modbus.AppendRTU(nil, u, pdu) }
	exchange(t, port, frame(1, readTwo), frame(1, twoRegs))
	v := Pattern(2, modbus.HoldingRegisters, 3)
	exchange(t, port, frame(2, modbus.ReadRequest(modbus.HoldingRegisters, 3, 1)), frame(2, modbus.PDU{3, 2, byte(v >> 8), byte(v)}))
	exchange(t, port, frame(3, readTwo), nil)
	exchange(t, port, frame(0, modbus.WriteRegisterRequest(9, 4)), nil)
	exchange(t, port, frame(2, modbus.ReadRequest(modbus.HoldingRegisters, 9, 1)), frame(2, modbus.PDU{3, 2, 0, 4}))
	exchange(t, port, frame(1, modbus.ReadRequest(modbus.HoldingRegisters, 9, 1)), frame(1, modbus.PDU{3, 2, 0, 4}))
	exchange(t, port, frame(1, modbus.PDU{0x63}), frame(1, modbus.PDU{0xE3, 1}))
	broken := frame(1, readTwo)
	broken[7] ^= 1
	exchange(t, port, broken, nil)
	await(t, func() bool { return b.Stats().BadFrames == 1 })
	before := b.Stats().BytesIn
	exchange(t, port, frame(1, readTwo)[:5], nil) // breaks off
	await(t, func() bool { return b.Stats().BytesIn == before+5 })
	time.Sleep(stale + 5*time.Millisecond)
	exchange(t, port, frame(1, readTwo), frame(1, twoRegs))
	exchange(t, port, bytes.Repeat([]byte{1, 0x63}, 200), nil) // no frame at all
	await(t, func() bool { return b.Stats().BadFrames == 3 })
	hush(t, port, 5*time.Millisecond)
	exchange(t, port, frame(1, readTwo), frame(1, twoRegs))
	if st := b.Stats(); st.BadFrames != 3 {
		t.Errorf("%+v", st)
	}
	if p.Device("none") != nil {
		t.Error("a device that is not there")
	}
}

func TestSerialASCII(t *testing.T) {
	b := serialBus(19200, seventeen(t, Settings{}))
	b.Framing = modbus.FramingASCII
	start(t, b)
	port := openPort(t, b)
	req, resp := modbus.AppendASCII(nil, 1, readTwo), modbus.AppendASCII(nil, 1, twoRegs)
	begin := time.Now()
	exchange(t, port, req, resp)
	if d, want := time.Since(begin), time.Duration(len(req)+len(resp))*b.Mode.CharTime(); d < want {
		t.Errorf("answered after %v, want %v at least", d, want)
	}
	exchange(t, port, append([]byte("x:01"), req...), resp)
	exchange(t, port, bytes.Repeat([]byte{'0'}, 600), nil)
	await(t, func() bool { return b.Stats().BadFrames == 1 })
	exchange(t, port, req, resp)
	if st := b.Stats(); st.BadFrames != 1 || st.SilenceBroken != 0 {
		t.Errorf("%+v", st)
	}
}

// TestSerialFaults plays each fault over a pseudo-terminal.
func TestSerialFaults(t *testing.T) {
	for _, framing := range []modbus.Framing{modbus.FramingRTU, modbus.FramingASCII} {
		req, resp := framing.Append(nil, 0, 1, readTwo), framing.Append(nil, 0, 1, twoRegs)
		for kind := Silent; int(kind) < len(faultNames); kind++ {
			if kind == WrongID {
				continue // refused: TestPlantErrors
			}
			t.Run(framing.String()+" "+kind.String(), func(t *testing.T) {
				t.Parallel()
				d := seventeen(t, Settings{Seed: 1, Faults: []Fault{{Kind: kind, Nth: 2, Delay: 30 * time.Millisecond}}})
				b := serialBus(115200, d)
				b.Framing = framing
				b.Address = filepath.Join(t.TempDir(), "line")
				start(t, b)
				port := openPort(t, b)
				exchange(t, port, req, resp)
				sent := time.Now()
				exchange(t, port, req, nil)
				took := func(least time.Duration) {
					t.Helper()
					if d := time.Since(sent); d < least {
						t.Errorf("after %v, want %v at least", d, least)
					}
				}
				switch kind {
				case Silent, Mute:
					hush(t, port, 30*time.Millisecond)
				case Late, Split:
					exchange(t, port, nil, resp)
					took(30 * time.Millisecond)
				case Twice:
					exchange(t, port, nil, append(bytes.Clone(resp), resp...))
					took(30 * time.Millisecond)
				case Slow:
					exchange(t, port, nil, resp)
					took(time.Duration(len(resp)-1) * 30 * time.Millisecond)
				case WrongUnit:
					exchange(t, port, nil, framing.Append(nil, 0, 2, twoRegs))
				case Refuse:
					exchange(t, port, nil, framing.Append(nil, 0, 1, modbus.PDU{0x83, 6}))
				case CRC:
					got := make([]byte, len(resp))
					if _, err := io.ReadFull(port, got); err != nil {
						t.Fatal(err)
					}
					_, _, err := modbus.DecodeRTU(got)
					if framing == modbus.FramingASCII {
						_, _, err = modbus.DecodeASCII(got)
					}
					if !errors.Is(err, modbus.ErrCRC) && !errors.Is(err, modbus.ErrLRC) {
						t.Errorf("% x: %v", got, err)
					}
				case Partial:
					buf := make([]byte, 64)
					n, err := port.Read(buf)
					if err != nil {
						t.Fatal(err)
					}
					port.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
					for {
						m, err := port.Read(buf[n:])
						n += m
						if err != nil {
							break
						}
					}
					port.SetReadDeadline(time.Now().Add(patience))
					if n < 1 || n >= len(resp) || !bytes.HasPrefix(resp, buf[:n]) {
						t.Errorf("% x", buf[:n])
					}
				case Echo:
					exchange(t, port, nil, append(bytes.Clone(req), resp...))
				case Noise:
					buf := make([]byte, 64)
					n, err := io.ReadAtLeast(port, buf, len(resp)+1)
					for !bytes.HasSuffix(buf[:n], resp) && err == nil {
						var m int
						m, err = port.Read(buf[n:])
						n += m
					}
					if err != nil {
						t.Errorf("% x, %v", buf[:n], err)
					}
				case Drop:
					if n, err := port.Read(make([]byte, 64)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
						t.Fatalf("%d bytes, %v; want a port that is gone", n, err)
					}
					port.Close()
					if _, err := os.Lstat(b.Address); !errors.Is(err, os.ErrNotExist) {
						t.Errorf("the link is there without a port: %v", err)
					}
					for {
						f, err := os.OpenFile(b.Address, os.O_RDWR|unix.O_NOCTTY, 0)
						if err == nil {
							port = f
							break
						}
						time.Sleep(time.Millisecond)
					}
					defer port.Close()
					port.SetDeadline(time.Now().Add(patience))
					took(30 * time.Millisecond)
				default:
					t.Fatal("no test of this fault")
				}
				exchange(t, port, req, resp)
			})
		}
	}
}

// TestLateAnswerCollides: a device that answers late talks into the next
// request, and another device's answer waits until the line is free.
func TestLateAnswerCollides(t *testing.T) {
	slow := seventeen(t, Settings{Unit: 1, Latency: 20 * time.Millisecond})
	fast := seventeen(t, Settings{Unit: 2})
	b := serialBus(9600, slow, fast) // 1.1 ms a character
	start(t, b)
	port := openPort(t, b)
	frame := func(u modbus.UnitID, pdu modbus.PDU) []byte { return modbus.AppendRTU(nil, u, pdu) }
	// The late answer is on the wire from 33 to 43 ms, the other would be from
	// 43 on; both come whole and one after the other.
	exchange(t, port, frame(1, readTwo), nil)
	time.Sleep(30 * time.Millisecond)
	exchange(t, port, frame(2, readTwo), append(frame(1, twoRegs), frame(2, twoRegs)...))
	if st := b.Stats(); st.Requests != 2 {
		t.Errorf("%+v", st)
	}
}

func TestSerialOverrun(t *testing.T) {
	d := device(t, Settings{Unit: 1, Fill: true})
	b := serialBus(0, d)
	b.Mode.Baud = 0
	start(t, b)
	port := openPort(t, b)
	req := modbus.AppendRTU(nil, 1, modbus.ReadRequest(modbus.HoldingRegisters, 0, 125))
	for range 300 { // 75 KiB of answers that nobody reads
		exchange(t, port, req, nil)
	}
	await(t, func() bool { return b.Stats().Requests == 300 && b.Stats().Overruns > 0 })
}

func TestSerialAgainstMbpoll(t *testing.T) {
	one, two := seventeen(t, Settings{Unit: 1}), device(t, Settings{Unit: 2})
	b := serialBus(38400, one, two)
	start(t, b)
	args := []string{"-m", "rtu", "-b", "38400", "-P", "even", "-0", "-1", "-t", "4"}
	if got := mbpoll.Must(t, append(args, "-a", "1", "-r", "0", "-c", "2", b.Addr())...); !slices.Equal(got, []string{"17", "18"}) {
		t.Errorf("mbpoll reads %v", got)
	}
	mbpoll.Must(t, append(args, "-a", "2", "-r", "5", b.Addr(), "4711", "4712")...)
	writes, _ := two.Writes()
	if len(writes) != 1 || writes[0].Address != 5 || !slices.Equal(writes[0].Values, []uint16{4711, 4712}) || writes[0].Table != modbus.HoldingRegisters {
		t.Errorf("%+v", writes)
	}
	if st := b.Stats(); st.BadFrames != 0 {
		t.Errorf("%+v", st)
	}
}

// TestLinks: a link is replaced, a file is not, and nobody else's link is
// removed at the end.
func TestLinks(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "line")
	if err := os.Symlink("/nowhere", link); err != nil {
		t.Fatal(err)
	}
	b := serialBus(9600)
	b.Address = link
	p := &Plant{Buses: []*Bus{b}}
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	to, err := os.Readlink(link)
	if err != nil || to != b.pty.path {
		t.Errorf("leads to %s, %v", to, err)
	}
	os.Remove(link)
	if err := os.Symlink("/elsewhere", link); err != nil {
		t.Fatal(err)
	}
	p.Close()
	if to, err := os.Readlink(link); to != "/elsewhere" {
		t.Errorf("another's link leads to %s, %v", to, err)
	}
	if b.Kind != config.Serial {
		t.Error(b.Kind)
	}
}

// TestCloseAfterRun: the numbers of what Run closed may be somebody else's by
// the time Close is called.
func TestCloseAfterRun(t *testing.T) {
	p := &Plant{Buses: []*Bus{serialBus(9600), tcpBus(0)}}
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Run(ctx); err != nil {
		t.Fatal(err)
	}
	var others []*os.File
	for range 20 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		others = append(others, f)
	}
	p.Close()
	for _, f := range others {
		if _, err := f.Stat(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSerialEcho: an adapter that echoes brings back every byte, whatever the
// devices do.
func TestSerialEcho(t *testing.T) {
	for _, baud := range []int{0, 115200} {
		b := serialBus(baud, seventeen(t, Settings{}))
		b.Mode.Baud, b.Echo = baud, true
		start(t, b)
		port := openPort(t, b)
		req, resp := modbus.AppendRTU(nil, 1, readTwo), modbus.AppendRTU(nil, 1, twoRegs)
		exchange(t, port, req, append(bytes.Clone(req), resp...))
		time.Sleep(stale)
		other := modbus.AppendRTU(nil, 9, readTwo)
		exchange(t, port, other, other)
		exchange(t, port, req[:3], req[:3])
		hush(t, port, 5*time.Millisecond)
	}
}

// TestLateAnswersKeepTheirOrder: a device that is late answers what it was asked
// in order; the others do not wait for it.
func TestLateAnswersKeepTheirOrder(t *testing.T) {
	slow := seventeen(t, Settings{Unit: 1, Faults: []Fault{{Kind: Late, Nth: 2, Delay: 60 * time.Millisecond, Code: modbus.ServerDeviceFailure}}})
	fast := seventeen(t, Settings{Unit: 2})
	b := serialBus(0, slow, fast)
	b.Mode.Baud = 0
	start(t, b)
	port := openPort(t, b)
	frame := func(u modbus.UnitID, pdu modbus.PDU) []byte { return modbus.AppendRTU(nil, u, pdu) }
	exchange(t, port, frame(1, readTwo), frame(1, twoRegs))
	exchange(t, port, frame(1, readTwo), nil)
	time.Sleep(5 * time.Millisecond)
	exchange(t, port, frame(1, readTwo), nil)
	exchange(t, port, frame(2, readTwo), frame(2, twoRegs))
	exchange(t, port, nil, append(frame(1, modbus.PDU{0x83, 4}), frame(1, twoRegs)...))
	if n := slow.Requests(); n != 3 {
		t.Errorf("%d requests", n)
	}
}
