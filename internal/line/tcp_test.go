package line

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
)

// mbap returns the frame of a response.
func mbap(r request, pdu modbus.PDU) []byte { return modbus.AppendTCP(nil, r.tx, r.unit, pdu) }

func TestTCPReadsAndWrites(t *testing.T) {
	noLeaks(t)
	d := listen(t, modbus.FramingTCP, answerRight)
	l := start(t, tcpBus(d.Addr().String(), modbus.FramingTCP))
	ctx := context.Background()
	for _, unit := range []modbus.UnitID{0, 1, 247, 255} {
		for _, req := range []modbus.PDU{
			modbus.ReadRequest(modbus.HoldingRegisters, 100, 125),
			modbus.ReadRequest(modbus.Coils, 3, 2000),
			modbus.WriteCoilRequest(1, true),
			modbus.WriteRegistersRequest(3, make([]uint16, 123)),
			modbus.MaskWriteRequest(5, 0xF0F0, 0x0F00),
		} {
			resp, err := l.Do(ctx, unit, req)
			if err != nil {
				t.Fatalf("unit %d: %v: %v", unit, req.Function(), err)
			}
			check(t, d.last(), unit, req, resp)
		}
	}
	if _, err := l.Do(ctx, 1, modbus.PDU{3, 0, 0, 0, 126}); !errors.Is(err, modbus.ErrInvalidRequest) {
		t.Errorf("126 registers: %v, want ErrInvalidRequest", err)
	}
	if s := l.Stats(); s.Requests != 20 || s.Responses != 20 || s.Connects != 1 {
		t.Errorf("stats %+v", s)
	}
}

// TestTCPFaults: what a device may do wrong in its answer to one request, on a
// connection that goes on or on one that has to be closed.
func TestTCPFaults(t *testing.T) {
	tests := []struct {
		name     string
		fault    func(p *peer, r request)
		want     error
		connects uint64 // after the second read
		count    func(Stats) uint64
	}{
		{"silent", func(p *peer, r request) {}, modbus.ErrNoResponse, 1, func(s Stats) uint64 { return s.Timeouts }},
		{"late", func(p *peer, r request) { p.after(patience+40*time.Millisecond, func() { answerRight(p, r) }) },
			modbus.ErrNoResponse, 1, func(s Stats) uint64 { return s.Late }},
		{"another id", func(p *peer, r request) { r.tx += 30000; answerRight(p, r) },
			modbus.ErrNoResponse, 1, func(s Stats) uint64 { return s.UnknownID }},
		{"another id, then right", func(p *peer, r request) {
			wrong := r
			wrong.tx += 30000
			wrong.n = 99
			answerRight(p, wrong)
			answerRight(p, r)
		}, nil, 1, func(s Stats) uint64 { return s.UnknownID }},
		{"answered twice", func(p *peer, r request) { answerRight(p, r); answerRight(p, r) },
			nil, 1, func(s Stats) uint64 { return s.Late }},
		{"another unit", func(p *peer, r request) { r.unit++; answerRight(p, r) },
			modbus.ErrBadResponse, 1, func(s Stats) uint64 { return s.WrongUnit }},
		{"another function", func(p *peer, r request) { b := right(r); b[0]++; p.reply(r, b) },
			modbus.ErrBadResponse, 1, func(s Stats) uint64 { return s.WrongAnswer }},
		{"too short", func(p *peer, r request) { b := right(r); b[1] -= 2; p.reply(r, b[:len(b)-2]) },
			modbus.ErrBadResponse, 1, func(s Stats) uint64 { return s.WrongAnswer }},
		{"single bytes", func(p *peer, r request) {
			for _, b := range cut(mbap(r, right(r)), 1) {
				p.write(b)
				time.Sleep(5 * time.Millisecond)
			}
		}, nil, 1, nil},
		{"exception", func(p *peer, r request) { p.reply(r, modbus.ExceptionResponse(3, modbus.ServerDeviceBusy)) },
			modbus.ServerDeviceBusy, 1, func(s Stats) uint64 { return s.Exceptions }},
		{"length 0", func(p *peer, r request) { b := mbap(r, right(r)); b[5] = 0; p.write(b) },
			modbus.ErrNoResponse, 2, func(s Stats) uint64 { return s.BadHeader }},
		{"length 255", func(p *peer, r request) { b := mbap(r, right(r)); b[5] = 255; p.write(b) },
			modbus.ErrNoResponse, 2, func(s Stats) uint64 { return s.BadHeader }},
		{"protocol 1", func(p *peer, r request) { b := mbap(r, right(r)); b[3] = 1; p.write(b) },
			modbus.ErrNoResponse, 2, func(s Stats) uint64 { return s.BadHeader }},
		{"longer than it says", func(p *peer, r request) { p.write(append(mbap(r, right(r)), 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF)) },
			modbus.ErrNoResponse, 2, func(s Stats) uint64 { return s.BadHeader }},
		{"closed", func(p *peer, r request) { p.rw.Close() }, modbus.ErrNoResponse, 2, nil},
		{"closed in the frame", func(p *peer, r request) { p.write(mbap(r, right(r))[:12]); p.rw.Close() },
			modbus.ErrNoResponse, 2, func(s Stats) uint64 { return s.Partial }},
	}
	for i := range 2 * len(tests) {
		tt, inFlight := tests[i/2], 1+i%2
		t.Run(fmt.Sprint(tt.name, ", in flight ", inFlight), func(t *testing.T) {
			t.Parallel()
			var first atomic.Bool
			faulted := make(chan struct{})
			d := listen(t, modbus.FramingTCP, func(p *peer, r request) {
				if first.CompareAndSwap(false, true) {
					tt.fault(p, r)
					close(faulted)
					return
				}
				answerRight(p, r)
			})
			cfg := tcpBus(d.Addr().String(), modbus.FramingTCP)
			if tt.want == modbus.ErrNoResponse && tt.connects == 1 {
				cfg.Timeout = patience
			}
			cfg.InFlight = inFlight
			l := start(t, cfg)
			eventually(t, "connected", l.Connected)
			eventually(t, "accepted", func() bool { return len(d.all()) == 1 })
			if err := read(t, l, d.last(), 3, 100, 10); !errors.Is(err, tt.want) {
				t.Errorf("first read: %v, want %v", err, tt.want)
			}
			<-faulted
			d.last().wait()
			req := modbus.ReadRequest(modbus.HoldingRegisters, 200, 10)
			eventually(t, "a read after it", func() bool {
				resp, err := l.Do(context.Background(), 3, req)
				if err == nil {
					check(t, d.last(), 3, req, resp)
				}
				return err == nil
			})
			s := l.Stats()
			if s.Connects != tt.connects {
				t.Errorf("%d connects, want %d", s.Connects, tt.connects)
			}
			if tt.count != nil && tt.count(s) == 0 {
				t.Errorf("not counted: %+v", s)
			}
		})
	}
}

// TestTCPFrameNeverEnds: half a frame closes the connection, and does not keep
// its request for ever.
func TestTCPFrameNeverEnds(t *testing.T) {
	t.Parallel()
	for _, inFlight := range []int{1, 2} {
		d := listen(t, modbus.FramingTCP, func(p *peer, r request) { p.write(mbap(r, right(r))[:9]) })
		cfg := tcpBus(d.Addr().String(), modbus.FramingTCP)
		cfg.Timeout, cfg.InFlight = patience, inFlight
		l := start(t, cfg)
		began := time.Now()
		err := read(t, l, nil, 1, 0, 2)
		if !errors.Is(err, modbus.ErrNoResponse) || !strings.Contains(err.Error(), "cut short") {
			t.Errorf("error %v, want no response, cut short", err)
		}
		if d := time.Since(began); d < stallMin || d > 25*stallMin {
			t.Errorf("it took %v, want about %v", d, stallMin)
		}
	}
}

// TestBlackHole: a peer that accepts and says nothing is dialled again after a
// few requests.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		framing  modbus.Framing
		inFlight int
	}{{modbus.FramingTCP, 1}, {modbus.FramingTCP, 2}, {modbus.FramingRTU, 1}} {
		d := listen(t, tt.framing, func(p *peer, r request) {})
		cfg := tcpBus(d.Addr().String(), tt.framing)
		cfg.Timeout, cfg.InFlight = 10*time.Millisecond, tt.inFlight
		l := start(t, cfg)
		unit := modbus.UnitID(0)
		eventually(t, "a second connection", func() bool {
			unit++
			_, err := l.Do(context.Background(), unit, modbus.ReadRequest(modbus.Coils, 0, 1))
			if !errors.Is(err, modbus.ErrNoResponse) && !errors.Is(err, modbus.ErrNotConnected) {
				t.Errorf("error %v", err)
			}
			return l.Stats().Connects == 2
		})
	}
}

// TestTCPRefusedThenBack: the device is off, comes, goes and comes back.
func TestTCPRefusedThenBack(t *testing.T) {
	noLeaks(t)
	nl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := nl.Addr().String()
	nl.Close()
	l := start(t, tcpBus(address, modbus.FramingTCP))
	_, err = l.Do(context.Background(), 1, modbus.ReadRequest(modbus.Coils, 0, 1))
	if !errors.Is(err, modbus.ErrNotConnected) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("device off: %v", err)
	}
	for range 2 {
		eventually(t, "the address is free", func() bool {
			nl, err = net.Listen("tcp", address)
			return err == nil
		})
		d := serveOn(t, nl, modbus.FramingTCP, answerRight)
		eventually(t, "connected", func() bool { return l.Connected() && len(d.all()) > 0 })
		if err := read(t, l, d.last(), 1, 0, 9); err != nil {
			t.Error(err)
		}
		d.stop()
		eventually(t, "disconnected", func() bool { return !l.Connected() })
	}
}

// TestTCPCancel: a request whose caller leaves does not hold the others up, and
// its answer is nobody's.
func TestTCPCancel(t *testing.T) {
	for _, inFlight := range []int{1, 2} {
		release := make(chan struct{})
		d := listen(t, modbus.FramingTCP, func(p *peer, r request) {
			if r.n <= inFlight {
				<-release
			}
			answerRight(p, r)
		})
		cfg := tcpBus(d.Addr().String(), modbus.FramingTCP)
		cfg.InFlight = inFlight
		l := start(t, cfg)
		ctx, cancel := context.WithCancel(context.Background())
		errs := make(chan error, 3)
		do := func() {
			_, err := l.Do(ctx, 1, modbus.ReadRequest(modbus.HoldingRegisters, 0, 5))
			errs <- err
		}
		for range inFlight {
			go do()
		}
		eventually(t, "sent", func() bool { return l.Stats().Requests == uint64(inFlight) })
		go do() // waits for the window
		if m, ok := l.share.(*mux); ok {
			eventually(t, "the last waits", func() bool {
				m.mu.Lock()
				defer m.mu.Unlock()
				return len(m.queue) == 1
			})
		}
		cancel()
		sent := 0
		for range inFlight + 1 {
			err := <-errs
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v, want canceled", err)
			}
			if errors.Is(err, modbus.ErrNoResponse) {
				sent++
			}
		}
		if sent != inFlight {
			t.Errorf("%d of %d errors say that the request was sent", sent, inFlight)
		}
		close(release)
		if err := read(t, l, d.last(), 1, 50, 5); err != nil {
			t.Error(err)
		}
		if s := l.Stats(); s.Requests != uint64(inFlight+1) || s.Late != uint64(inFlight) {
			t.Errorf("stats %+v, want %d late answers", s, inFlight)
		}
	}
}

// TestTCPWindow: as many requests as configured are on their way at once, no
// more, and answers in any order find their requests.
func TestTCPWindow(t *testing.T) {
	noLeaks(t)
	var mu sync.Mutex
	var waiting []request
	most := 0
	d := listen(t, modbus.FramingTCP, func(p *peer, r request) {
		mu.Lock()
		defer mu.Unlock()
		waiting = append(waiting, r)
		most = max(most, len(waiting))
		if len(waiting) == 1 {
			p.after(3*time.Millisecond, func() {
				mu.Lock()
				defer mu.Unlock()
				rand.Shuffle(len(waiting), func(i, j int) { waiting[i], waiting[j] = waiting[j], waiting[i] })
				for _, r := range waiting {
					answerRight(p, r)
				}
				waiting = waiting[:0]
			})
		}
	})
	cfg := tcpBus(d.Addr().String(), modbus.FramingTCP)
	cfg.InFlight = 5
	cfg.Timeout = time.Second
	l := start(t, cfg)
	if l.InFlight() != 5 {
		t.Errorf("InFlight %d, want 5", l.InFlight())
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for k := range 10 {
				addr := uint16(1000*i + k)
				resp, err := l.Do(context.Background(), 1, modbus.ReadRequest(modbus.HoldingRegisters, addr, 2))
				if err != nil {
					t.Error(err)
				} else if got := binary.BigEndian.Uint16(resp[4:]); got != addr+1 {
					t.Errorf("WRONG VALUE: %d, want %d", got, addr+1)
				}
			}
		})
	}
	wg.Wait()
	if most != 5 {
		t.Errorf("%d at once, want 5", most)
	}
}

// TestTCPAuto: the window grows on a device that can, falls to one on a device
// that answers under the wrong ids, and no value is wrong meanwhile.
func TestTCPAuto(t *testing.T) {
	var swap atomic.Bool
	var mu sync.Mutex
	var kept *request
	d := listen(t, modbus.FramingTCP, func(p *peer, r request) {
		if !swap.Load() {
			p.after(500*time.Microsecond, func() { answerRight(p, r) })
			return
		}
		// A device with one header for all: every answer bears the id of the
		// newest request.
		mu.Lock()
		defer mu.Unlock()
		if kept == nil {
			first := r
			kept = &r
			p.after(2*time.Millisecond, func() {
				mu.Lock()
				defer mu.Unlock()
				first.tx = kept.tx
				answerRight(p, first)
				kept = nil
			})
			return
		}
		kept.tx = r.tx
		answerRight(p, r)
	})
	cfg := tcpBus(d.Addr().String(), modbus.FramingTCP)
	cfg.InFlight, cfg.Timeout = config.InFlightAuto, patience
	l := start(t, cfg)
	if l.InFlight() != 1 {
		t.Errorf("InFlight %d at first, want 1", l.InFlight())
	}
	poll := func(callers, times int) {
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				for k := range times {
					addr := uint16(1000*i + k)
					resp, err := l.Do(context.Background(), 1, modbus.ReadRequest(modbus.HoldingRegisters, addr, 2))
					if err == nil && binary.BigEndian.Uint16(resp[4:]) != addr+1 {
						t.Errorf("WRONG VALUE: % x for address %d", []byte(resp), addr)
					}
				}
			})
		}
		wg.Wait()
	}
	poll(16, 20)
	if l.InFlight() != mostInFlight {
		t.Errorf("InFlight %d with a device that can, want %d", l.InFlight(), mostInFlight)
	}

	// A device like the other from the start.
	swap.Store(true)
	l = start(t, cfg)
	grew := false
	for range 20 {
		poll(1, 1)
		grew = grew || l.InFlight() > 1
	}
	if !grew {
		t.Error("the window never grew")
	}
	poll(4, 3)
	if l.InFlight() != 1 {
		t.Errorf("InFlight %d after a slip, want 1", l.InFlight())
	}
}

// TestTCPBrokenOffInFlight: with several requests on their way, an answer that
// breaks off takes in the front of the next one. Nothing of it is a value.
func TestTCPBrokenOffInFlight(t *testing.T) {
	t.Parallel()
	for _, missing := range []int{1, 5, 8, 14, 20, 29, 40} {
		var mu sync.Mutex
		var first *request
		d := listen(t, modbus.FramingTCP, func(p *peer, r request) {
			mu.Lock()
			defer mu.Unlock()
			if first == nil {
				first = &r
				return
			}
			a := mbap(*first, right(*first))
			p.write(append(a[:max(len(a)-missing, 1)], mbap(r, right(r))...))
			first = nil
		})
		cfg := tcpBus(d.Addr().String(), modbus.FramingTCP)
		cfg.InFlight, cfg.Timeout = 2, patience
		l := start(t, cfg)
		var wg sync.WaitGroup
		for i, n := range []uint16{20, 10} {
			wg.Go(func() {
				req := modbus.ReadRequest(modbus.HoldingRegisters, uint16(100*i), n)
				resp, err := l.Do(context.Background(), 1, req)
				if err == nil && !bytes.Equal(resp[4:], right(request{pdu: req})[4:]) {
					t.Errorf("%d bytes missing: WRONG VALUE % x", missing, []byte(resp))
				}
			})
		}
		wg.Wait()
	}
}

func TestTCPGapAndSettle(t *testing.T) {
	for _, tt := range []struct {
		framing  modbus.Framing
		inFlight int
	}{{modbus.FramingTCP, 1}, {modbus.FramingTCP, 2}, {modbus.FramingRTU, 1}} {
		d := listen(t, tt.framing, answerRight)
		cfg := tcpBus(d.Addr().String(), tt.framing)
		cfg.Gap, cfg.Settle, cfg.InFlight = 20*time.Millisecond, 40*time.Millisecond, tt.inFlight
		began := time.Now()
		l := start(t, cfg)
		for range 2 {
			if _, err := l.Do(context.Background(), 1, modbus.ReadRequest(modbus.Coils, 0, 1)); err != nil {
				t.Fatal(err)
			}
		}
		r := d.last().requests()
		if d := r[0].at.Sub(began); d < cfg.Settle {
			t.Errorf("first request after %v, want at least %v", d, cfg.Settle)
		}
		if d := r[1].at.Sub(r[0].at); d < cfg.Gap {
			t.Errorf("%v between requests, want at least %v", d, cfg.Gap)
		}
	}
}

// TestOverTCP: RTU and ASCII over a connection. Pauses mean nothing; a wrong
// checksum or half a frame closes.
func TestOverTCP(t *testing.T) {
	for _, f := range []modbus.Framing{modbus.FramingRTU, modbus.FramingASCII} {
		t.Run(f.String(), func(t *testing.T) {
			t.Parallel()
			noLeaks(t)
			fault := make(chan func(p *peer, r request), 1)
			d := listen(t, f, func(p *peer, r request) {
				select {
				case f := <-fault:
					f(p, r)
				default:
					answerRight(p, r)
				}
			})
			cfg := tcpBus(d.Addr().String(), f)
			cfg.Timeout = patience
			l := start(t, cfg)
			eventually(t, "connected", func() bool { return l.Connected() && len(d.all()) == 1 })
			steps := []struct {
				name     string
				fault    func(p *peer, r request)
				want     error
				connects uint64
			}{
				{"right", answerRight, nil, 1},
				{"pieces with long pauses", func(p *peer, r request) {
					b := f.Append(nil, 0, r.unit, right(r))
					p.write(b[:6])
					time.Sleep(150 * time.Millisecond)
					p.write(b[6:])
				}, nil, 1},
				{"late", func(p *peer, r request) { time.Sleep(patience + 40*time.Millisecond); answerRight(p, r) }, modbus.ErrNoResponse, 1},
				{"right after late", answerRight, nil, 1},
				{"another unit", func(p *peer, r request) { r.unit++; answerRight(p, r) }, modbus.ErrBadResponse, 1},
				{"right", answerRight, nil, 1},
				{"checksum", func(p *peer, r request) {
					b := f.Append(nil, 0, r.unit, right(r))
					b[len(b)-3] ^= 1
					p.write(b)
				}, modbus.ErrBadResponse, 2},
				{"right on a new connection", answerRight, nil, 2},
			}
			for _, s := range steps {
				fault <- s.fault
				var p *peer
				eventually(t, "connected", func() bool {
					p = d.last()
					return l.Connected() && uint64(len(d.all())) == l.Stats().Connects
				})
				if err := read(t, l, p, 1, 5, 6); !errors.Is(err, s.want) {
					t.Errorf("%s: %v, want %v", s.name, err, s.want)
				}
				if s.want != nil {
					p.wait()
				}
				eventually(t, s.name+": connects", func() bool { return l.Stats().Connects == s.connects })
				select {
				case <-fault: // a fence came first and was answered with the fault
				default:
				}
			}
		})
	}
}

func TestUDP(t *testing.T) {
	noLeaks(t)
	for _, f := range []modbus.Framing{modbus.FramingTCP, modbus.FramingRTU} {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var answering atomic.Bool
		p := startPeer(t, &datagrams{PacketConn: pc}, f, func(p *peer, r request) {
			answering.Store(true)
			defer answering.Store(false)
			switch r.n {
			case 2: // lost
			case 3: // a datagram of rubbish before
				p.write([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9})
				answerRight(p, r)
			case 4: // twice
				answerRight(p, r)
				answerRight(p, r)
			default:
				answerRight(p, r)
			}
		})
		cfg := tcpBus(pc.LocalAddr().String(), f)
		cfg.Kind, cfg.Timeout = config.UDP, patience/2
		l := start(t, cfg)
		bad := 0
		for range 6 {
			if err := read(t, l, p, 1, 0, 8); err != nil {
				bad++
				if !errors.Is(err, modbus.ErrNoResponse) {
					t.Errorf("%v: %v", f, err)
				}
			}
			eventually(t, "both of two answers are here before the next request", func() bool { return !answering.Load() })
		}
		if bad != 1 {
			t.Errorf("%v: %d reads failed, want the lost one", f, bad)
		}
		p.stop()
		for range 2 { // nobody listens now
			if err := read(t, l, p, 1, 0, 8); !errors.Is(err, modbus.ErrNoResponse) {
				t.Errorf("%v: %v, want no response", f, err)
			}
		}
	}
}

// datagrams makes a packet connection look like a stream to one client.
type datagrams struct {
	net.PacketConn
	client net.Addr
}

func (d *datagrams) Read(b []byte) (int, error) {
	n, from, err := d.ReadFrom(b)
	d.client = from
	return n, err
}

func (d *datagrams) Write(b []byte) (int, error) { return d.WriteTo(b, d.client) }

// TestDialIn: the device dials in; the newest connection wins.
func TestDialIn(t *testing.T) {
	noLeaks(t)
	for _, f := range []modbus.Framing{modbus.FramingRTU, modbus.FramingTCP} {
		cfg := tcpBus("127.0.0.1:0", f)
		cfg.Kind = config.Listen
		l := New(cfg, quietLog(t))
		stop := run(t, l)
		eventually(t, "listens", func() bool { return l.Addr() != nil })
		eventually(t, "says that nobody has dialled in", func() bool {
			_, err := l.Do(context.Background(), 1, modbus.ReadRequest(modbus.Coils, 0, 1))
			return errors.Is(err, modbus.ErrNotConnected) && strings.Contains(err.Error(), "no device has dialled in")
		})
		dial := func() *peer {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			if f == modbus.FramingRTU {
				_, _ = c.Write([]byte("MODEM-17\r\n")) // who it is, as modems say
			}
			return startPeer(t, c, f, answerRight)
		}
		one := dial()
		eventually(t, "connected", l.Connected)
		if err := read(t, l, one, 1, 0, 3); err != nil {
			t.Errorf("%v: %v", f, err)
		}
		// The modem lost its connection without a word and dials again.
		two := dial()
		eventually(t, "the first is closed", func() bool {
			select {
			case <-one.done:
				return true
			default:
				return false
			}
		})
		eventually(t, "the second serves", func() bool { return read(t, l, two, 1, 0, 3) == nil })
		two.stop()
		eventually(t, "gone", func() bool { return !l.Connected() })
		stop()
		if err := read(t, l, two, 1, 0, 3); !errors.Is(err, modbus.ErrNotConnected) {
			t.Errorf("after the end: %v", err)
		}
	}
}

// TestBeforeRun: a request does not wait for ever for a line that nobody runs.
func TestBeforeRun(t *testing.T) {
	t.Parallel()
	cfg := tcpBus("127.0.0.1:1", modbus.FramingTCP)
	cfg.ConnectTimeout = 10 * time.Millisecond
	_, err := New(cfg, quietLog(t)).Do(context.Background(), 1, modbus.ReadRequest(modbus.Coils, 0, 1))
	if !errors.Is(err, modbus.ErrNotConnected) {
		t.Errorf("error %v, want ErrNotConnected", err)
	}
}

// TestTrace: every frame is seen, with its direction, in order.
func TestTrace(t *testing.T) {
	d := listen(t, modbus.FramingTCP, answerRight)
	l := New(tcpBus(d.Addr().String(), modbus.FramingTCP), quietLog(t))
	var got strings.Builder
	l.SetTrace(func(dir byte, b []byte, at time.Time) {
		if at.IsZero() {
			t.Error("no time")
		}
		got.WriteByte(dir)
		got.Write(b[modbus.MBAPLen:])
	})
	run(t, l)
	if _, err := l.Do(context.Background(), 1, modbus.WriteRegisterRequest(0x4142, 0x4344)); err != nil {
		t.Fatal(err)
	}
	l.SetTrace(nil)
	if _, err := l.Do(context.Background(), 1, modbus.WriteRegisterRequest(1, 2)); err != nil {
		t.Fatal(err)
	}
	if want := ">\x06ABCD<\x06ABCD"; got.String() != want {
		t.Errorf("trace %q, want %q", got.String(), want)
	}
}

// TestDebugLog: at debug level the log has the bytes.
func TestDebugLog(t *testing.T) {
	d := listen(t, modbus.FramingRTU, answerRight)
	var out bytes.Buffer
	l := New(tcpBus(d.Addr().String(), modbus.FramingRTU), slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	stop := run(t, l)
	if _, err := l.Do(context.Background(), 1, modbus.WriteRegistersRequest(1, []uint16{2})); err != nil {
		t.Fatal(err)
	}
	stop()
	for _, want := range []string{`msg="bytes sent" bytes="01 10 00 01 00 01 02 00 02 26 40"`, `msg="bytes received" bytes="01 10 00 01 00 01 50 09"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, out.String())
		}
	}
}

// TestTCPRandomFaults: no value is ever wrong, whatever mixture of faults.
func TestTCPRandomFaults(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const timeout = 10 * time.Millisecond
	var mu, sending sync.Mutex // sending: frames do not come within each other
	rnd := rand.New(rand.NewPCG(seed, 1))
	intn := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rnd.IntN(n)
	}
	d := listen(t, modbus.FramingTCP, func(p *peer, r request) {
		b := mbap(r, right(r))
		switch intn(48) {
		case 0: // late
			p.after(time.Duration(intn(30))*time.Millisecond, func() {
				sending.Lock()
				defer sending.Unlock()
				p.write(b)
			})
		case 1: // any byte of the header or the function changed
			b[intn(9)] ^= 1 << intn(8)
			p.write(b)
		case 2:
			p.write(b[:intn(len(b))])
			p.rw.Close()
		case 3:
			sending.Lock()
			defer sending.Unlock()
			for _, piece := range cut(b, 1+intn(4)) {
				p.write(piece)
				time.Sleep(50 * time.Microsecond)
			}
		case 4:
			p.write(append(b, b...))
		case 5:
			r.tx++
			p.write(mbap(r, right(r)))
		case 6:
			r.tx--
			p.write(mbap(r, right(r)))
		case 7: // silent
		default:
			p.write(b)
		}
	})
	cfg := tcpBus(d.Addr().String(), modbus.FramingTCP)
	cfg.Timeout = timeout
	l := start(t, cfg)
	good := 0
	for limit := time.Now().Add(700 * time.Millisecond); time.Now().Before(limit); {
		unit, addr, n := modbus.UnitID(1+intn(3)), uint16(intn(3)), uint16(1+intn(4))
		req := modbus.ReadRequest(modbus.HoldingRegisters, addr, n)
		resp, err := l.Do(context.Background(), unit, req)
		if err == nil {
			check(t, d.last(), unit, req, resp)
			good++
		}
	}
	t.Logf("%d right values, %+v", good, l.Stats())
	if good < 20 {
		t.Errorf("only %d reads came through", good)
	}
}

// BenchmarkTCP is the cost of one transaction, device included.
func BenchmarkTCP(b *testing.B) {
	for _, inFlight := range []int{1, 2} {
		b.Run(fmt.Sprint("window", inFlight), func(b *testing.B) { benchmarkTCP(b, inFlight) })
	}
}

func benchmarkTCP(b *testing.B, inFlight int) {
	d := listen(b, modbus.FramingTCP, func(p *peer, r request) {
		p.mu.Lock()
		p.seen = p.seen[:0]
		p.mu.Unlock()
		answerRight(p, r)
	})
	cfg := tcpBus(d.Addr().String(), modbus.FramingTCP)
	cfg.InFlight = inFlight
	l := start(b, cfg)
	req := modbus.ReadRequest(modbus.HoldingRegisters, 0, 100)
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.Do(ctx, 1, req); err != nil {
			b.Fatal(err)
		}
	}
}
