package modbus

import (
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener whose connections are pipes, so that time may be made up.
type pipes struct{ conns chan net.Conn }

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// When all places are taken, who has been silent longest makes room: at once
// half-open connections, later those that fell silent; who is heard stays.
func TestServerMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{Endpoint: newMemory(10), MaxClients: 3}
		ctx, cancel := context.WithCancel(context.Background())
		l := pipes{make(chan net.Conn)}
		done := make(chan error)
		go func() { done <- s.Serve(ctx, l, FramingTCP) }() // ends with ctx
		open := func() net.Conn {
			ours, theirs := net.Pipe()
			l.conns <- theirs
			synctest.Wait()
			return ours
		}
		req, resp := AppendTCP(nil, 1, 1, ReadRequest(Coils, 0, 1)), AppendTCP(nil, 1, 1, PDU{1, 1, 0})
		plc, half, slow := open(), open(), open()
		expect(t, plc, resp, req)
		expect(t, slow, resp, req)
		expectClosed(t, open()) // nobody was silent for long
		time.Sleep(mute)
		expect(t, plc, resp, req)
		for range 100 { // half-open ones only take each other's place
			half2 := open()
			expectClosed(t, half)
			half = half2
			time.Sleep(mute)
			expect(t, plc, resp, req)
			expect(t, slow, resp, req)
		}
		time.Sleep(quiet)
		expect(t, plc, resp, req)
		back := open()
		expectClosed(t, half) // first: it was silent for longer than slow
		expect(t, back, resp, req)
		back = open()
		expectClosed(t, slow)
		expect(t, back, resp, req)
		if st := s.Stats(); st.Evicted != 102 || st.Refused != 1 || st.Clients != 3 {
			t.Errorf("%+v", st)
		}
		cancel()
		close(l.conns)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestServerCountsClients(t *testing.T) {
	s := &Server{Endpoint: newMemory(10)}
	addr := serve(t, s, FramingTCP)
	c := dial(t, addr)
	expect(t, c, AppendTCP(nil, 1, 1, PDU{1, 1, 0}), AppendTCP(nil, 1, 1, ReadRequest(Coils, 0, 1)))
	expect(t, c, AppendTCP(nil, 2, 1, PDU{0x83, 2}), AppendTCP(nil, 2, 1, ReadRequest(HoldingRegisters, 9, 2)))
	expect(t, c, AppendTCP(nil, 3, 1, PDU{0xE3, 1}), AppendTCP(nil, 3, 1, PDU{0x63}))
	lie := dial(t, addr)
	if _, err := lie.Write([]byte{0, 1, 0, 9, 0, 6, 1}); err != nil {
		t.Fatal(err)
	}
	expectClosed(t, lie)
	all := s.Clients()
	if len(all) != 1 {
		t.Fatalf("%+v", all)
	}
	got := all[0]
	if got.Client != "127.0.0.1" || got.Connections != 1 || got.BytesIn != 12+12+8 || got.BytesOut != 10+9+9 || got.BadFrames != 1 ||
		got.Requests() != 3 || got.Functions[ReadCoils] != 1 || got.Functions[ReadHoldingRegisters] != 1 || got.Functions[0] != 1 ||
		got.Exceptions[IllegalDataAddress] != 1 || got.Exceptions[IllegalFunction] != 1 || got.Last.IsZero() {
		t.Errorf("%+v", got)
	}
}

// What is remembered of clients has an end; those that are connected stay.
func TestTalliesAreBounded(t *testing.T) {
	var all tallies
	here := all.get("here")
	here.conns.Add(1)
	for i := range 3 * maxTallies {
		all.get(strings.Repeat("x", i+1)).came(1, time.Now())
	}
	if n := len(all.stats()); n != maxTallies {
		t.Errorf("%d clients are remembered, want %d", n, maxTallies)
	}
	if all.get("here") != here {
		t.Error("a client that is connected was forgotten")
	}
}

// Who asks is known to the Endpoint.
func TestServerSaysWhoAsks(t *testing.T) {
	var who string
	s := &Server{Endpoint: endpointFunc(func(ctx context.Context, _ UnitID, _ PDU) (PDU, error) {
		who = Client(ctx)
		return PDU{1, 1, 0}, nil
	})}
	expect(t, dial(t, serve(t, s, FramingTCP)), AppendTCP(nil, 1, 1, PDU{1, 1, 0}), AppendTCP(nil, 1, 1, ReadRequest(Coils, 0, 1)))
	if who != "127.0.0.1" {
		t.Errorf("asked by %q", who)
	}
}

// A UDP client whose request waits for a device does not hold up another; its own
// requests are answered in order, and more than a few are not kept.
func TestServerUDPClientsApart(t *testing.T) {
	hold := make(chan struct{})
	s := &Server{Endpoint: endpointFunc(func(_ context.Context, unit UnitID, _ PDU) (PDU, error) {
		if unit == 9 {
			<-hold
		}
		return PDU{1, 1, byte(unit)}, nil
	})}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(ctx context.Context) error { return s.ServeUDP(ctx, pc, FramingTCP) })
	dial := func() net.Conn {
		c, err := net.Dial("udp", pc.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		return c
	}
	req := func(tx uint16, unit UnitID) []byte { return AppendTCP(nil, tx, unit, ReadRequest(Coils, 0, 1)) }
	slow, quick := dial(), dial()
	if _, err := slow.Write(req(0, 9)); err != nil {
		t.Fatal(err)
	}
	for tx := range uint16(20) {
		if _, err := slow.Write(req(tx+1, 1)); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, quick, AppendTCP(nil, 7, 2, PDU{1, 1, 2}), req(7, 2))
	for s.Stats().Refused < 20-maxDatagrams {
		time.Sleep(time.Millisecond)
	}
	close(hold)
	buf := make([]byte, 300)
	for tx := range uint16(1 + maxDatagrams) {
		n, err := slow.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if got, _, _, err := DecodeTCP(buf[:n]); err != nil || got != tx {
			t.Errorf("answer %d has id %d, %v", tx, got, err)
		}
	}
}
