package line

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"

	"golang.org/x/sys/unix"
)

// pty is a pseudo terminal: master is the device's end, path the port's.
type pty struct {
	master *os.File
	path   string
}

func openPTY(t testing.TB) *pty {
	t.Helper()
	// Not through the file descriptor later: os.File.Fd would make it blocking.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal("open /dev/ptmx:", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal("pty:", err)
	}
	p := &pty{os.NewFile(uintptr(fd), "ptmx"), fmt.Sprintf("/dev/pts/%d", n)}
	t.Cleanup(func() { p.master.Close() })
	return p
}

// peer is the device's end of a wire. It hands each request to answer, which
// writes what it likes.
type peer struct {
	t       testing.TB
	rw      io.ReadWriteCloser
	framing modbus.Framing
	answer  func(p *peer, r request)
	done    chan struct{}

	mu     sync.Mutex
	seen   []request
	timers int // calls of after that have not run
}

// request is one that a peer received.
type request struct {
	n    int // from 1
	tx   uint16
	unit modbus.UnitID
	pdu  modbus.PDU
	adu  []byte
	at   time.Time
}

// startPeer serves rw until it is closed, which the test's end does.
func startPeer(t testing.TB, rw io.ReadWriteCloser, f modbus.Framing, answer func(*peer, request)) *peer {
	p := &peer{t: t, rw: rw, framing: f, answer: answer, done: make(chan struct{})}
	go p.run()
	t.Cleanup(p.stop)
	return p
}

func (p *peer) stop() {
	p.wait()
	p.rw.Close() // a second time does no harm
	<-p.done
}

func (p *peer) run() {
	defer close(p.done)
	var buf []byte
	chunk := make([]byte, 1024)
	for {
		n, err := p.rw.Read(chunk)
		if err != nil {
			return
		}
		at := time.Now()
		buf = append(buf, chunk[:n]...)
		for {
			r, n := p.next(buf)
			if n == 0 {
				break
			}
			buf = buf[n:]
			r.at = at
			p.mu.Lock()
			p.seen = append(p.seen, r)
			r.n = len(p.seen)
			p.mu.Unlock()
			p.answer(p, r)
		}
	}
}

// next takes a whole request off the front of buf.
func (p *peer) next(buf []byte) (r request, n int) {
	switch p.framing {
	case modbus.FramingTCP:
		if len(buf) < modbus.MBAPLen {
			return r, 0
		}
		tx, length, unit, err := modbus.ParseMBAP(buf)
		if err != nil {
			p.t.Errorf("the line sent % x: %v", buf, err)
			return r, 0
		}
		if n = modbus.MBAPLen + length; n > len(buf) {
			return r, 0
		}
		r = request{tx: tx, unit: unit, pdu: modbus.PDU(buf[modbus.MBAPLen:n])}
	case modbus.FramingRTU:
		want, known := modbus.RTURequestLen(buf)
		if !known || len(buf) < want {
			return r, 0
		}
		unit, pdu, err := modbus.DecodeRTU(buf[:want])
		if err != nil {
			p.t.Errorf("the line sent % x: %v", buf, err)
		}
		r, n = request{unit: unit, pdu: pdu}, want
	case modbus.FramingASCII:
		i := strings.IndexByte(string(buf), '\n')
		if i < 0 {
			return r, 0
		}
		unit, pdu, err := modbus.DecodeASCII(buf[:i+1])
		if err != nil {
			p.t.Errorf("the line sent %q: %v", buf, err)
		}
		r, n = request{unit: unit, pdu: pdu}, i+1
	}
	r.adu = append([]byte(nil), buf[:n]...)
	r.pdu = append(modbus.PDU(nil), r.pdu...)
	return r, n
}

// write sends bytes; a line that has gone is not the peer's business.
func (p *peer) write(b []byte) { _, _ = p.rw.Write(b) }

// reply sends a response PDU in the framing of the wire.
func (p *peer) reply(r request, pdu modbus.PDU) {
	p.write(p.framing.Append(nil, r.tx, r.unit, pdu))
}

// after runs f later, before the peer stops.
func (p *peer) after(d time.Duration, f func()) {
	p.mu.Lock()
	p.timers++
	p.mu.Unlock()
	time.AfterFunc(d, func() {
		f()
		p.mu.Lock()
		p.timers--
		p.mu.Unlock()
	})
}

// wait waits until nothing is left that after was given.
func (p *peer) wait() {
	eventually(p.t, "the peer's timers run", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.timers == 0
	})
}

// requests returns what the peer has seen so far.
func (p *peer) requests() []request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]request(nil), p.seen...)
}

// right returns the right answer to r: of a read, the number of the request in
// the first register and the address in all others; of a write, its echo.
func right(r request) modbus.PDU {
	switch f := r.pdu.Function(); f {
	case modbus.ReadHoldingRegisters, modbus.ReadInputRegisters:
		addr, n := binary.BigEndian.Uint16(r.pdu[1:]), binary.BigEndian.Uint16(r.pdu[3:])
		resp := modbus.PDU{byte(f), byte(2 * n)}
		resp = binary.BigEndian.AppendUint16(resp, uint16(r.n))
		for i := uint16(1); i < n; i++ {
			resp = binary.BigEndian.AppendUint16(resp, addr+i)
		}
		return resp
	case modbus.ReadCoils, modbus.ReadDiscreteInputs:
		n := int(binary.BigEndian.Uint16(r.pdu[3:])+7) / 8
		resp := modbus.PDU{byte(f), byte(n)}
		for i := range n {
			resp = append(resp, byte(r.n+i))
		}
		return resp
	case modbus.WriteMultipleRegisters, modbus.WriteMultipleCoils:
		return r.pdu[:5]
	}
	return r.pdu
}

func answerRight(p *peer, r request) { p.reply(r, right(r)) }

// read asks for n holding registers at addr and fails the test on a wrong value.
func read(t testing.TB, l *Line, p *peer, unit modbus.UnitID, addr, n uint16) error {
	t.Helper()
	req := modbus.ReadRequest(modbus.HoldingRegisters, addr, n)
	resp, err := l.Do(context.Background(), unit, req)
	if err != nil {
		return err
	}
	check(t, p, unit, req, resp)
	return nil
}

// check fails the test when resp is not the answer to the newest request that p
// has seen, or that is not req.
func check(t testing.TB, p *peer, unit modbus.UnitID, req, resp modbus.PDU) {
	t.Helper()
	seen := p.requests()
	r := seen[len(seen)-1]
	r.n = len(seen)
	if r.unit != unit || string(r.pdu) != string(req) {
		t.Errorf("the newest request is % x to unit %d, want % x to unit %d", []byte(r.pdu), r.unit, []byte(req), unit)
	}
	if want := right(r); string(resp) != string(want) {
		t.Errorf("WRONG VALUE: request %d got % x, want % x", r.n, []byte(resp), []byte(want))
	}
}

// quietLog logs to the test.
func quietLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// patience is the timeout of lines whose device is to let them down; ample is
// that of lines whose device is not, however busy the machine.
const (
	patience = 200 * time.Millisecond
	ample    = 3 * time.Second
)

// serialBus is a bus on a serial port.
func serialBus(path string) config.Bus {
	return config.Bus{
		Name: "line1", Kind: config.Serial, Address: path, Framing: modbus.FramingRTU,
		Mode:    config.SerialMode{Baud: 115200, DataBits: 8, Parity: 'N', StopBits: 1},
		Timeout: ample, ConnectTimeout: time.Second, Gap: config.GapAuto, InFlight: 1,
	}
}

// tcpBus is a bus on a connection.
func tcpBus(address string, f modbus.Framing) config.Bus {
	return config.Bus{
		Name: "plc", Kind: config.TCP, Address: address, Framing: f,
		Timeout: ample, ConnectTimeout: time.Second, Gap: config.GapAuto, InFlight: 1,
	}
}

// start runs a line until the test ends and sees that its goroutine ends.
func start(t testing.TB, cfg config.Bus) *Line {
	t.Helper()
	l := New(cfg, quietLog(t))
	run(t, l)
	return l
}

func run(t testing.TB, l *Line) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Run = %v, want nil", err)
				}
			case <-time.After(20 * time.Second):
				t.Error("Run does not end")
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// serialPeer starts a device on a pty and a line to it.
func serialPeer(t testing.TB, timeout time.Duration, answer func(*peer, request)) (*Line, *peer) {
	t.Helper()
	pt := openPTY(t)
	p := startPeer(t, pt.master, modbus.FramingRTU, answer)
	cfg := serialBus(pt.path)
	cfg.Timeout = timeout
	return start(t, cfg), p
}

// device is a listening TCP device; each connection has a peer of its own.
type device struct {
	net.Listener
	framing modbus.Framing
	answer  func(*peer, request)

	mu    sync.Mutex
	peers []*peer
	done  chan struct{}
}

func listen(t testing.TB, f modbus.Framing, answer func(*peer, request)) *device {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, f, answer)
}

func serveOn(t testing.TB, l net.Listener, f modbus.Framing, answer func(*peer, request)) *device {
	d := &device{Listener: l, framing: f, answer: answer, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p := &peer{t: t, rw: c, framing: f, answer: answer, done: make(chan struct{})}
			d.mu.Lock()
			d.peers = append(d.peers, p)
			d.mu.Unlock()
			go p.run()
		}
	}()
	t.Cleanup(d.stop)
	return d
}

func (d *device) stop() {
	d.Close()
	<-d.done
	for _, p := range d.all() {
		p.stop()
	}
}

func (d *device) all() []*peer {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]*peer(nil), d.peers...)
}

// last returns the peer of the newest connection.
func (d *device) last() *peer {
	all := d.all()
	return all[len(all)-1]
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%s: not within 5 s", what)
		}
	}
}

// noLeaks checks that the test leaves no goroutine of this package behind.
func noLeaks(t *testing.T) {
	t.Cleanup(func() {
		eventually(t, "goroutines end", func() bool {
			buf := make([]byte, 1<<20)
			stacks := string(buf[:runtime.Stack(buf, true)])
			for _, g := range strings.Split(stacks, "\n\n")[1:] {
				if strings.Contains(g, "internal/line.(") && !strings.Contains(g, "testing.tRunner(") {
					return false
				}
			}
			return true
		})
	})
}

// link makes a symbolic link like those of /dev/serial/by-id.
func link(t testing.TB) (path string, to func(target string)) {
	path = filepath.Join(t.TempDir(), "usb-adapter-if00")
	return path, func(target string) {
		_ = os.Remove(path)
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
}
