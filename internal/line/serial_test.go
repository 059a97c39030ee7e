package line

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"

	"golang.org/x/sys/unix"
)

func TestSerialReadsAndWrites(t *testing.T) {
	noLeaks(t)
	l, p := serialPeer(t, ample, answerRight)
	ctx := context.Background()
	for _, n := range []uint16{1, 2, 20, 125} {
		if err := read(t, l, p, 7, 100, n); err != nil {
			t.Errorf("read of %d: %v", n, err)
		}
	}
	for _, req := range []modbus.PDU{
		modbus.ReadRequest(modbus.Coils, 3, 2000),
		modbus.ReadRequest(modbus.DiscreteInputs, 0, 1),
		modbus.ReadRequest(modbus.InputRegisters, 65535, 1),
		modbus.WriteCoilRequest(1, true),
		modbus.WriteRegisterRequest(2, 0xBEEF),
		modbus.WriteRegistersRequest(3, make([]uint16, 123)),
		modbus.WriteCoilsRequest(4, make([]bool, 1968)),
		modbus.MaskWriteRequest(5, 0xF0F0, 0x0F00),
		modbus.DiagnosticsRequest(0, 0x1234),
	} {
		resp, err := l.Do(ctx, 9, req)
		if err != nil {
			t.Errorf("%v: %v", req.Function(), err)
			continue
		}
		check(t, p, 9, req, resp)
	}
	s := l.Stats()
	if s.Responses != 13 || s.Requests != 13 || s.Timeouts+s.Noise+s.Late+s.Fences+s.WrongAnswer != 0 {
		t.Errorf("stats %+v", s)
	}
	if !l.Connected() || l.InFlight() != 1 {
		t.Errorf("Connected %v, InFlight %d", l.Connected(), l.InFlight())
	}
}

func TestSerialException(t *testing.T) {
	l, _ := serialPeer(t, ample, func(p *peer, r request) {
		p.reply(r, modbus.ExceptionResponse(r.pdu.Function(), modbus.IllegalDataAddress))
	})
	_, err := l.Do(context.Background(), 1, modbus.ReadRequest(modbus.HoldingRegisters, 0, 1))
	if err != modbus.IllegalDataAddress {
		t.Errorf("error %v, want %v", err, modbus.IllegalDataAddress)
	}
	if s := l.Stats(); s.Responses != 1 || s.Exceptions != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestSerialBroadcast(t *testing.T) {
	l, p := serialPeer(t, ample, func(p *peer, r request) {
		if r.unit != modbus.Broadcast {
			answerRight(p, r)
		}
	})
	ctx := context.Background()
	sent := time.Now()
	resp, err := l.Do(ctx, modbus.Broadcast, modbus.WriteRegistersRequest(1, make([]uint16, 100)))
	if err != nil || len(resp) != 0 {
		t.Fatalf("broadcast = % x, %v, want an empty PDU", []byte(resp), err)
	}
	if took, least := time.Since(sent), 209*l.cfg.Mode.CharTime(); took < least {
		t.Errorf("the broadcast took %v, but its 209 characters take %v: it is not sent yet", took, least)
	}
	if err := read(t, l, p, 1, 0, 2); err != nil {
		t.Fatal(err)
	}
	if pause := p.requests()[1].at.Sub(sent); pause < turnaround {
		t.Errorf("the next request came %v after the broadcast, want at least %v", pause, turnaround)
	}
	if _, err := l.Do(ctx, modbus.Broadcast, modbus.ReadRequest(modbus.Coils, 0, 1)); !errors.Is(err, modbus.ErrInvalidRequest) {
		t.Errorf("broadcast read: %v, want ErrInvalidRequest", err)
	}
}

func TestSerialKeepsSilence(t *testing.T) {
	for _, baud := range []int{4800, 9600, 19200, 115200} {
		pt := openPTY(t)
		var last time.Time
		least := time.Hour
		p := startPeer(t, pt.master, modbus.FramingRTU, func(p *peer, r request) {
			if !last.IsZero() {
				least = min(least, r.at.Sub(last))
			}
			last = time.Now()
			answerRight(p, r)
		})
		cfg := serialBus(pt.path)
		cfg.Mode.Baud = baud
		l := New(cfg, quietLog(t))
		stop := run(t, l)
		for range 10 {
			if _, err := l.Do(context.Background(), 1, modbus.ReadRequest(modbus.HoldingRegisters, 0, 2)); err != nil {
				t.Fatal(err)
			}
		}
		stop()
		p.stop()
		want := 1750 * time.Microsecond
		if baud <= 19200 {
			want = 35 * 11 * time.Second / 10 / time.Duration(baud)
		}
		if least < want {
			t.Errorf("%d baud: %v of silence before a request, want %v", baud, least, want)
		}
	}
}

func TestSerialGapOfARequest(t *testing.T) {
	l, p := serialPeer(t, ample, answerRight)
	for range 2 {
		if _, err := l.DoTimeout(context.Background(), 1, modbus.ReadRequest(modbus.Coils, 0, 1), 0, 30*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	if r := p.requests(); r[1].at.Sub(r[0].at) < 30*time.Millisecond {
		t.Errorf("%v between two requests, want at least 30ms", r[1].at.Sub(r[0].at))
	}
}

// cut splits b into pieces.
func cut(b []byte, size int) (pieces [][]byte) {
	for len(b) > size {
		pieces = append(pieces, b[:size])
		b = b[size:]
	}
	return append(pieces, b)
}

func rtu(unit modbus.UnitID, pdu modbus.PDU) []byte { return modbus.AppendRTU(nil, unit, pdu) }

// TestSerialFaults: what a device may do wrong in its answer to one request. The
// first answer is the faulty one, the second right; both reads are of the same
// shape, and no value may be wrong.
func TestSerialFaults(t *testing.T) {
	tests := []struct {
		name  string
		fault func(p *peer, r request)
		want  error // of the first read; nil: a right value
		count func(Stats) uint64
	}{
		{"silent", func(p *peer, r request) {}, modbus.ErrNoResponse, func(s Stats) uint64 { return s.Timeouts }},
		{"wrong unit", func(p *peer, r request) { p.write(rtu(r.unit+1, right(r))) },
			modbus.ErrBadResponse, func(s Stats) uint64 { return s.WrongUnit }},
		{"wrong unit, then right", func(p *peer, r request) { p.write(rtu(r.unit+1, right(r))); answerRight(p, r) },
			nil, func(s Stats) uint64 { return s.WrongUnit }},
		{"wrong function", func(p *peer, r request) {
			b := right(r)
			b[0] = byte(modbus.ReadInputRegisters)
			p.write(rtu(r.unit, b))
		}, modbus.ErrBadResponse, func(s Stats) uint64 { return s.WrongAnswer }},
		{"wrong count", func(p *peer, r request) { b := right(r); b[1] -= 2; p.write(rtu(r.unit, b[:len(b)-2])) },
			modbus.ErrBadResponse, func(s Stats) uint64 { return s.WrongAnswer }},
		{"bad CRC", func(p *peer, r request) { b := rtu(r.unit, right(r)); b[4] ^= 1; p.write(b) },
			modbus.ErrBadResponse, func(s Stats) uint64 { return s.BadChecksum }},
		{"bad CRC in a long trickle", func(p *peer, r request) {
			b := rtu(r.unit, right(r))
			b[len(b)-1] ^= 0x80
			for _, piece := range cut(b, 7) {
				p.write(piece)
				time.Sleep(2 * time.Millisecond)
			}
		}, modbus.ErrBadResponse, func(s Stats) uint64 { return s.BadChecksum }},
		{"cut short", func(p *peer, r request) { b := rtu(r.unit, right(r)); p.write(b[:len(b)-3]) },
			modbus.ErrBadResponse, func(s Stats) uint64 { return s.Partial }},
		{"only noise", func(p *peer, r request) { p.write([]byte{0xFF, 0x00, 0xFE}) },
			modbus.ErrBadResponse, func(s Stats) uint64 { return s.Noise }},
		{"noise before", func(p *peer, r request) { p.write(append([]byte{0x00, 0xFF, byte(r.unit)}, rtu(r.unit, right(r))...)) },
			nil, func(s Stats) uint64 { return s.Noise }},
		{"noise that looks like the front", func(p *peer, r request) {
			p.write(append([]byte{byte(r.unit), 3, right(r)[1], 0x55}, rtu(r.unit, right(r))...))
		}, nil, func(s Stats) uint64 { return s.Noise }},
		{"noise behind", func(p *peer, r request) { p.write(append(rtu(r.unit, right(r)), 0xA5)) },
			nil, func(s Stats) uint64 { return s.Noise }},
		{"single bytes", func(p *peer, r request) {
			for i, b := range rtu(r.unit, right(r)) {
				p.write([]byte{b})
				if i < 12 {
					time.Sleep(20 * time.Millisecond)
				}
			}
		}, nil, nil},
		{"echo", func(p *peer, r request) { p.write(r.adu); answerRight(p, r) },
			nil, func(s Stats) uint64 { return s.Echoes }},
		{"echo alone", func(p *peer, r request) { p.write(r.adu) },
			modbus.ErrNoResponse, func(s Stats) uint64 { return s.Echoes }},
		{"answered twice", func(p *peer, r request) { answerRight(p, r); answerRight(p, r) },
			nil, func(s Stats) uint64 { return s.WrongAnswer }},
		// What comes meanwhile waits: a device answers in order.
		{"late", func(p *peer, r request) { time.Sleep(patience + 40*time.Millisecond); answerRight(p, r) },
			modbus.ErrNoResponse, func(s Stats) uint64 { return s.Late }},
		{"very late", func(p *peer, r request) { time.Sleep(5 * patience / 2); answerRight(p, r) },
			modbus.ErrNoResponse, func(s Stats) uint64 { return s.Late }},
		{"late exception", func(p *peer, r request) {
			time.Sleep(patience + 40*time.Millisecond)
			p.reply(r, modbus.ExceptionResponse(3, modbus.ServerDeviceBusy))
		}, modbus.ErrNoResponse, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			timeout := patience
			if tt.want == nil {
				timeout = ample
			}
			l, p := serialPeer(t, timeout, func(p *peer, r request) {
				if r.n == 1 {
					tt.fault(p, r)
					return
				}
				answerRight(p, r)
			})
			err := read(t, l, p, 3, 100, 10)
			if !errors.Is(err, tt.want) {
				t.Errorf("first read: %v, want %v", err, tt.want)
			}
			for i := 0; ; i++ {
				err := read(t, l, p, 3, 200, 10)
				if err == nil {
					break
				}
				if i == 3 {
					t.Fatalf("the device is right again, but: %v", err)
				}
			}
			if tt.count != nil && tt.count(l.Stats()) == 0 {
				t.Errorf("not counted: %+v", l.Stats())
			}
		})
	}
}

// TestSerialFence: after a lost answer a shorter read goes before the next of
// the same shape, and no other.
func TestSerialFence(t *testing.T) {
	t.Parallel()
	lose := true
	l, p := serialPeer(t, patience, func(p *peer, r request) {
		if lose {
			lose = false
			return
		}
		answerRight(p, r)
	})
	if err := read(t, l, p, 1, 10, 5); !errors.Is(err, modbus.ErrNoResponse) {
		t.Fatal(err)
	}
	if err := read(t, l, p, 2, 10, 5); err != nil { // another unit
		t.Fatal(err)
	}
	if err := read(t, l, p, 1, 10, 5); err != nil {
		t.Fatal(err)
	}
	if err := read(t, l, p, 1, 10, 5); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range p.requests() {
		got = append(got, string(rune('0'+r.unit))+":"+string(rune('0'+r.pdu[4])))
	}
	if s := strings.Join(got, " "); s != "1:5 2:5 1:4 1:5 1:5" {
		t.Errorf("unit:quantity of the requests: %s", s)
	}
	if s := l.Stats(); s.Fences != 1 {
		t.Errorf("%d fences, want 1", s.Fences)
	}
}

// TestSerialLateInPieces: an adapter delivers a late answer in lumps, and the next
// request is due after the first of them. The rest is waited for, so that the answer
// is known for what it is, and nobody talks into it.
func TestSerialLateInPieces(t *testing.T) {
	for _, first := range []int{1, 2, 7} { // bytes in the first lump
		t.Run(fmt.Sprint(first), func(t *testing.T) {
			t.Parallel()
			begun := make(chan struct{})
			l, p := serialPeer(t, patience, func(p *peer, r request) {
				if r.n > 1 {
					answerRight(p, r)
					return
				}
				time.Sleep(patience + 40*time.Millisecond)
				b := rtu(r.unit, right(r))
				p.write(b[:first])
				close(begun)
				time.Sleep(10 * time.Millisecond)
				p.write(b[first:])
			})
			if err := read(t, l, p, 3, 100, 10); !errors.Is(err, modbus.ErrNoResponse) {
				t.Fatal(err)
			}
			<-begun
			if err := read(t, l, p, 4, 100, 10); err != nil { // another unit
				t.Error(err)
			}
			if s := l.Stats(); s.Late != 1 || s.Noise != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestSerialHold: with one register there is no shorter read, and this unit does
// not know the status request; it is held, the others are not.
func TestSerialHold(t *testing.T) {
	t.Parallel()
	var first time.Time
	l, p := serialPeer(t, patience, func(p *peer, r request) {
		if r.n == 1 {
			first = time.Now()
			p.after(patience+60*time.Millisecond, func() { answerRight(p, r) })
			return // unit 2 is another device
		}
		answerRight(p, r)
	})
	l.turns.units[1] = &ledger{deaf: time.Now().Add(time.Hour)}
	if err := read(t, l, p, 1, 0, 1); !errors.Is(err, modbus.ErrNoResponse) {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		req := modbus.ReadRequest(modbus.HoldingRegisters, 0, 1)
		if resp, err := l.Do(context.Background(), 1, req); err != nil || resp[3] == 1 {
			t.Errorf("unit 1: % x, %v; request 1 was given up", []byte(resp), err)
		}
	})
	eventually(t, "the held request is queued", func() bool {
		l.turns.mu.Lock()
		defer l.turns.mu.Unlock()
		return len(l.turns.jobs) == 1
	})
	if _, err := l.Do(context.Background(), 2, modbus.ReadRequest(modbus.HoldingRegisters, 0, 1)); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	r := p.requests()
	if len(r) != 3 || r[1].unit != 2 || r[2].unit != 1 {
		t.Fatalf("requests %+v, want unit 2 before unit 1", r)
	}
	if d := r[2].at.Sub(first); d < patience+55*time.Millisecond {
		t.Errorf("unit 1 was asked again %v after the lost request, before its late answer", d)
	}
	if s := l.Stats(); s.Late != 1 || s.Fences != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestSerialAnsweredTwiceLate: on a line that has a pace, the second copy of an
// answer comes while the next request is being sent. It cannot be the answer.
func TestSerialAnsweredTwiceLate(t *testing.T) {
	t.Parallel()
	const times = inTimeMin + 10
	pt := openPTY(t)
	cfg := serialBus(pt.path)
	cfg.Mode.Baud = 19200
	char := cfg.Mode.CharTime()
	p := startPeer(t, pt.master, modbus.FramingRTU, func(p *peer, r request) {
		answer := rtu(r.unit, right(r))
		time.Sleep(time.Until(r.at.Add(modbus.ClientSilence(19200) + time.Duration(len(r.adu)+len(answer))*char)))
		p.write(answer)
		if r.n == times {
			p.after(time.Duration(len(answer))*char, func() { p.write(answer) })
		}
	})
	l := start(t, cfg)
	for range times + 3 {
		if err := read(t, l, p, 1, 0, 2); err != nil {
			t.Fatal(err)
		}
	}
	if s := l.Stats(); s.Late+s.WrongAnswer != 1 {
		t.Errorf("stats %+v, want one late answer", s)
	}
}

// TestSerialByteByByte: a port without a buffer, at the pace of its line.
func TestSerialByteByByte(t *testing.T) {
	t.Parallel()
	pt := openPTY(t)
	cfg := serialBus(pt.path)
	cfg.Mode.Baud = 9600
	p := startPeer(t, pt.master, modbus.FramingRTU, func(p *peer, r request) {
		for _, b := range rtu(r.unit, right(r)) {
			time.Sleep(cfg.Mode.CharTime())
			p.write([]byte{b})
		}
	})
	l := start(t, cfg)
	for range 3 {
		if err := read(t, l, p, 1, 0, 20); err != nil {
			t.Error(err)
		}
	}
}

// TestSerialNoPace: a virtual port that happened to be slow is not held to it.
func TestSerialNoPace(t *testing.T) {
	t.Parallel()
	l, p := serialPeer(t, patience, func(p *peer, r request) {
		if r.n <= inTimeMin {
			time.Sleep(3 * time.Millisecond)
		}
		answerRight(p, r)
	})
	failed := 0
	for range inTimeMin + 5 {
		if err := read(t, l, p, 1, 0, 2); err != nil {
			failed++
		}
	}
	if failed > 1 {
		t.Errorf("%d reads failed, want at most the first fast one", failed)
	}
}

// TestSerialRefusesAll: a unit that refuses whatever it is asked, after one
// answer was lost, does not cost the line a timeout for each request.
func TestSerialRefusesAll(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status bool // it refuses the status request too, rather than ignore it
	}{{"all functions", true}, {"all it knows", false}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l, p := serialPeer(t, patience, func(p *peer, r request) {
				if r.n > 1 && (tt.status || r.pdu.Function() != modbus.ReadExceptionStatus) {
					p.reply(r, modbus.ExceptionResponse(r.pdu.Function(), modbus.ServerDeviceBusy))
				}
			})
			req := modbus.ReadRequest(modbus.HoldingRegisters, 0, 10)
			for range 5 {
				_, err := l.Do(context.Background(), 1, req)
				if err != modbus.ServerDeviceBusy && !errors.Is(err, modbus.ErrNoResponse) {
					t.Errorf("error %v", err)
				}
			}
			before := len(p.requests())
			for range 10 {
				if _, err := l.Do(context.Background(), 1, req); err != modbus.ServerDeviceBusy {
					t.Errorf("error %v, want busy", err)
				}
			}
			if n := len(p.requests()) - before; n != 10 || l.Stats().Responses < 10 {
				t.Errorf("%d requests for 10 refusals, %+v", n, l.Stats())
			}
		})
	}
}

// TestSerialWriteAndEcho: the answer to a write of one register is the request
// again. On an adapter that echoes, a dead device must not look alive.
func TestSerialWriteAndEcho(t *testing.T) {
	tests := []struct {
		name        string
		echo, alive bool
	}{
		{"no echo, alive", false, true},
		{"no echo, dead", false, false},
		{"echo, alive", true, true},
		{"echo, dead", true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			timeout := ample
			if !tt.alive {
				timeout = patience
			}
			l, p := serialPeer(t, timeout, func(p *peer, r request) {
				if tt.echo {
					p.write(r.adu)
				}
				if tt.alive {
					answerRight(p, r)
				}
			})
			for range 2 {
				_, err := l.Do(context.Background(), 1, modbus.WriteRegisterRequest(4, 5))
				if tt.alive && err != nil || !tt.alive && !errors.Is(err, modbus.ErrNoResponse) {
					t.Errorf("write: %v", err)
				}
			}
			if r := p.requests()[0]; r.pdu.Function() != modbus.ReadHoldingRegisters {
				t.Errorf("the first request is %v; want a read, which shows whether there is an echo", r.pdu.Function())
			}
		})
	}
}

// TestSerialBabble: a line that is never silent does not hold a request for ever.
func TestSerialBabble(t *testing.T) {
	t.Parallel()
	pt := openPTY(t)
	cfg := serialBus(pt.path)
	cfg.Gap = 100 * time.Millisecond // longer than a busy machine holds the babble up
	l := New(cfg, quietLog(t))
	l.turns.quit = 100 * time.Millisecond
	run(t, l)
	eventually(t, "open", l.Connected)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(500 * time.Microsecond):
				_, _ = pt.master.Write([]byte{0x55})
			}
		}
	}()
	_, err := l.Do(context.Background(), 1, modbus.WriteRegistersRequest(0, []uint16{1}))
	if !errors.Is(err, modbus.ErrNotConnected) || !strings.Contains(err.Error(), "never silent") {
		t.Errorf("error %v, want not connected, never silent: it was not sent", err)
	}
	close(stop)
	<-done
	if s := l.Stats(); s.Requests != 0 || s.Noise == 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestEchoProbe(t *testing.T) {
	tests := []struct {
		req, want modbus.PDU
	}{
		{modbus.WriteCoilRequest(0x102, true), modbus.ReadRequest(modbus.Coils, 0x102, 1)},
		{modbus.WriteRegisterRequest(0x102, 7), modbus.ReadRequest(modbus.HoldingRegisters, 0x102, 1)},
		{modbus.MaskWriteRequest(0x102, 7, 8), modbus.ReadRequest(modbus.HoldingRegisters, 0x102, 1)},
		{modbus.DiagnosticsRequest(0, 1), modbus.ReadRequest(modbus.HoldingRegisters, 0, 1)},
	}
	for _, tt := range tests {
		if got := echoProbe(tt.req); !selfEqual(tt.req) || !bytes.Equal(got, tt.want) {
			t.Errorf("%v: % x, want % x", tt.req.Function(), []byte(got), []byte(tt.want))
		}
	}
}

func TestSerialCancel(t *testing.T) {
	release := make(chan struct{})
	l, p := serialPeer(t, ample, func(p *peer, r request) {
		<-release
		answerRight(p, r)
	})
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan error, 1)
	go func() {
		_, err := l.Do(ctx, 1, modbus.WriteRegistersRequest(0, []uint16{1}))
		first <- err
	}()
	eventually(t, "the first request is on the wire", func() bool { return len(p.requests()) == 1 })
	second := make(chan error, 1)
	go func() {
		_, err := l.Do(ctx, 2, modbus.WriteRegistersRequest(0, []uint16{2}))
		second <- err
	}()
	eventually(t, "the second waits", func() bool {
		l.turns.mu.Lock()
		defer l.turns.mu.Unlock()
		return len(l.turns.jobs) == 1
	})
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) || !errors.Is(err, modbus.ErrNoResponse) {
		t.Errorf("sent: %v, want canceled and no response: it may have been done", err)
	}
	if err := <-second; !errors.Is(err, context.Canceled) || errors.Is(err, modbus.ErrNoResponse) {
		t.Errorf("not sent: %v, want canceled alone", err)
	}
	close(release)
	if err := read(t, l, p, 3, 0, 2); err != nil {
		t.Error(err)
	}
	if r := p.requests(); len(r) != 2 {
		t.Errorf("%d requests, want the first and the read", len(r))
	}
	if _, err := l.Do(ctx, 3, modbus.ReadRequest(modbus.Coils, 0, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled context: %v", err)
	}
}

func TestSerialManyCallers(t *testing.T) {
	noLeaks(t)
	l, _ := serialPeer(t, ample, answerRight)
	var wg sync.WaitGroup
	for u := range 8 {
		wg.Go(func() {
			req := modbus.ReadRequest(modbus.HoldingRegisters, uint16(100*u), uint16(u+2))
			for range 10 {
				resp, err := l.Do(context.Background(), modbus.UnitID(u+1), req)
				if err != nil {
					t.Error(err)
				} else if got := uint16(resp[4])<<8 | uint16(resp[5]); len(resp) != 2+2*(u+2) || got != uint16(100*u+1) {
					t.Errorf("unit %d got % x", u+1, []byte(resp))
				}
			}
		})
	}
	wg.Wait()
	if s := l.Stats(); s.Responses != 80 || s.Requests != 80 {
		t.Errorf("stats %+v", s)
	}
}

// TestSerialReplug: the adapter goes and comes back as another device under the
// same name. Requests fail at once meanwhile.
func TestSerialReplug(t *testing.T) {
	noLeaks(t)
	path, to := link(t)
	one := openPTY(t)
	to(one.path)
	p := startPeer(t, one.master, modbus.FramingRTU, answerRight)
	l := start(t, serialBus(path))
	if err := read(t, l, p, 1, 0, 3); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	p.stop()
	eventually(t, "the line notices", func() bool { return !l.Connected() })
	eventually(t, "requests fail at once", func() bool {
		began := time.Now()
		_, err := l.Do(context.Background(), 1, modbus.ReadRequest(modbus.Coils, 0, 1))
		return errors.Is(err, modbus.ErrNotConnected) && time.Since(began) < 50*time.Millisecond
	})
	// The descriptors are free: nothing holds the old device's number.
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.HasPrefix(to, one.path) {
			t.Errorf("descriptor %s is still open on %s", e.Name(), to)
		}
	}
	two := openPTY(t)
	to(two.path)
	p = startPeer(t, two.master, modbus.FramingRTU, answerRight)
	eventually(t, "the line is open again", l.Connected)
	if err := read(t, l, p, 1, 0, 3); err != nil {
		t.Error(err)
	}
	if s := l.Stats(); s.Connects != 2 {
		t.Errorf("%d connects, want 2", s.Connects)
	}
}

// TestSerialUnplugInFlight: the adapter goes while a request is on the wire.
func TestSerialUnplugInFlight(t *testing.T) {
	l, _ := serialPeer(t, ample, func(p *peer, r request) { p.rw.Close() })
	_, err := l.Do(context.Background(), 1, modbus.WriteRegistersRequest(0, []uint16{1}))
	if !errors.Is(err, modbus.ErrNoResponse) {
		t.Errorf("error %v, want ErrNoResponse: the write may have been done", err)
	}
}

func TestSerialOpenErrors(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pt, taken := openPTY(t), openPTY(t)
	startPeer(t, taken.master, modbus.FramingRTU, answerRight)
	holder := start(t, serialBus(taken.path))
	eventually(t, "open", holder.Connected)
	tests := []struct {
		name string
		path string
		mode config.RS485Mode
		want string
	}{
		{"no such port", "/dev/serial/by-id/nothing", 0, "open /dev/serial/by-id/nothing: no such file or directory"},
		{"no port", file, 0, "not a serial port"},
		{"taken", taken.path, 0, "in use by another program or another bus"},
		{"no rts", pt.path, config.RS485RTS, "no RTS to switch"},
		{"no kernel rs485 and no rts", pt.path, config.RS485Kernel, "needs rs485: off"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := serialBus(tt.path)
			cfg.RS485.Mode = tt.mode
			var log bytes.Buffer
			l := New(cfg, slog.New(slog.NewTextHandler(&log, nil)))
			stop := run(t, l)
			_, err := l.Do(context.Background(), 1, modbus.ReadRequest(modbus.Coils, 0, 1))
			if !errors.Is(err, modbus.ErrNotConnected) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q, want not connected and %q", err, tt.want)
			}
			if l.Connected() {
				t.Error("Connected")
			}
			time.Sleep(300 * time.Millisecond) // some more tries
			stop()
			if n := strings.Count(log.String(), "\n"); n != 1 {
				t.Errorf("%d lines in the log, want one:\n%s", n, &log)
			}
		})
	}
}

// TestSerialDescriptors: both descriptors are closed in a child, and the port is
// raw whatever was set before.
func TestSerialDescriptors(t *testing.T) {
	pt := openPTY(t)
	startPeer(t, pt.master, modbus.FramingRTU, answerRight)
	l := start(t, serialBus(pt.path))
	eventually(t, "open", l.Connected)
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); to != pt.path {
			continue
		}
		n++
		info, err := os.ReadFile("/proc/self/fdinfo/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		_, flags, _ := bytes.Cut(info, []byte("flags:\t"))
		line, _, _ := bytes.Cut(flags, []byte{'\n'})
		if v, err := strconv.ParseUint(string(line), 8, 32); err != nil || v&unix.O_CLOEXEC == 0 {
			t.Errorf("descriptor %s has flags %s (%v), want close-on-exec", e.Name(), line, err)
		}
	}
	if n != 2 {
		t.Errorf("%d descriptors on the port, want 2", n)
	}
}

func TestSerialASCII(t *testing.T) {
	t.Parallel()
	pt := openPTY(t)
	var fault atomic.Value
	p := startPeer(t, pt.master, modbus.FramingASCII, func(p *peer, r request) {
		fault.Load().(func(*peer, request))(p, r)
	})
	cfg := serialBus(pt.path)
	cfg.Framing, cfg.Timeout = modbus.FramingASCII, patience
	cfg.Mode.DataBits, cfg.Mode.Parity = 7, 'E'
	l := start(t, cfg)
	steps := []struct {
		name  string
		fault func(p *peer, r request)
		want  error
	}{
		{"right", answerRight, nil},
		{"lower case", func(p *peer, r request) { p.write(bytes.ToLower(modbus.AppendASCII(nil, r.unit, right(r)))) }, nil},
		{"begun twice", func(p *peer, r request) {
			b := modbus.AppendASCII(nil, r.unit, right(r))
			p.write(append(b[:9:9], b...))
		}, nil},
		{"noise and another unit before", func(p *peer, r request) {
			p.write([]byte("\x00?\r\n"))
			p.write(modbus.AppendASCII(nil, r.unit+1, right(r)))
			answerRight(p, r)
		}, nil},
		{"in pieces", func(p *peer, r request) {
			for _, b := range cut(modbus.AppendASCII(nil, r.unit, right(r)), 11) {
				p.write(b)
				time.Sleep(15 * time.Millisecond)
			}
		}, nil},
		{"echo", func(p *peer, r request) { p.write(r.adu); answerRight(p, r) }, nil},
		{"late", func(p *peer, r request) { time.Sleep(patience + 40*time.Millisecond); answerRight(p, r) }, modbus.ErrNoResponse},
		{"right after late", answerRight, nil},
		{"exception", func(p *peer, r request) { p.reply(r, modbus.ExceptionResponse(3, modbus.ServerDeviceBusy)) }, modbus.ServerDeviceBusy},
		{"other unit", func(p *peer, r request) { p.write(modbus.AppendASCII(nil, r.unit+1, right(r))) }, modbus.ErrBadResponse},
		{"right at last", answerRight, nil},
	}
	for _, s := range steps {
		fault.Store(s.fault)
		if err := read(t, l, p, 1, 7, 6); !errors.Is(err, s.want) {
			t.Errorf("%s: %v, want %v", s.name, err, s.want)
		}
	}
	fault.Store(func(p *peer, r request) {
		b := modbus.AppendASCII(nil, r.unit, right(r))
		b[len(b)-3] ^= 1
		p.write(b)
	})
	if err := read(t, l, p, 1, 7, 6); !errors.Is(err, modbus.ErrBadResponse) || l.Stats().BadChecksum != 1 {
		t.Errorf("bad LRC: %v", err)
	}
}

// TestSerialRandomFaults: no value is ever wrong, whatever mixture of faults.
func TestSerialRandomFaults(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd, ask := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2))
	pt := openPTY(t)
	const timeout = 20 * time.Millisecond
	p := startPeer(t, pt.master, modbus.FramingRTU, func(p *peer, r request) {
		b := rtu(r.unit, right(r))
		switch rnd.IntN(24) {
		case 0: // late, but not twice the timeout, which is what the rule covers for one register
			time.Sleep(time.Duration(rnd.Int64N(int64(17 * timeout / 10))))
			if time.Since(r.at) < 17*timeout/10 {
				p.write(b)
			}
		case 1:
			b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
			p.write(b)
		case 2:
			p.write(b[:rnd.IntN(len(b))])
		case 3:
			for _, piece := range cut(b, 1+rnd.IntN(4)) {
				p.write(piece)
				time.Sleep(time.Duration(rnd.Int64N(int64(500 * time.Microsecond))))
			}
		case 4:
			p.write(append(r.adu, b...))
		case 5:
			p.write(append([]byte{byte(rnd.IntN(256)), byte(r.unit)}, b...))
		case 6:
			p.write(rtu(r.unit%3+1, right(r)))
		case 7:
			p.write(append(b, b...))
		case 8: // silent
		case 9:
			p.reply(r, modbus.ExceptionResponse(r.pdu.Function(), modbus.ServerDeviceBusy))
		default:
			p.write(b)
		}
	})
	cfg := serialBus(pt.path)
	cfg.Timeout = timeout
	l := start(t, cfg)
	good := 0
	for range 60 {
		unit, addr, n := modbus.UnitID(1+ask.IntN(3)), uint16(ask.IntN(3)), uint16(1+ask.IntN(4))
		req := modbus.ReadRequest(modbus.HoldingRegisters, addr, n)
		resp, err := l.Do(context.Background(), unit, req)
		if err == nil {
			check(t, p, unit, req, resp)
			good++
		}
	}
	s := l.Stats()
	t.Logf("%d right values, %+v", good, s)
	if good < 20 {
		t.Errorf("only %d reads came through", good)
	}
}
