package modbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"fieldgate/test/mbpoll"
)

// patience bounds what should happen at once.
const patience = 30 * time.Second

// serve starts s on a fresh listener and stops it with the test.
func serve(t *testing.T, s *Server, f Framing) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(ctx context.Context) error { return s.Serve(ctx, l, f) })
	return l.Addr().String()
}

// run runs f until the test ends, and fails the test if it then returns an error
// or does not return.
func run(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("serve does not return")
		}
	})
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// expect sends each part by itself and expects exactly want back.
func expect(t *testing.T, c net.Conn, want []byte, parts ...[]byte) {
	t.Helper()
	for _, p := range parts {
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("% x is answered % x, %v; want % x", parts, got, err, want)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("% x is answered % x, want % x", parts, got, want)
	}
}

// expectClosed holds that the peer closes without sending anything.
func expectClosed(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Errorf("read %d bytes, %v; want a closed connection", n, err)
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func TestServerTCP(t *testing.T) {
	m := newMemory(200)
	m.set(HoldingRegisters, 0, 11, 22, 33)
	s := &Server{Endpoint: m}
	c := dial(t, serve(t, s, FramingTCP))
	read := ReadRequest(HoldingRegisters, 0, 2)
	req1, resp1 := AppendTCP(nil, 1, 1, read), AppendTCP(nil, 1, 1, PDU{3, 4, 0, 11, 0, 22})
	req2, resp2 := AppendTCP(nil, 2, 9, WriteRegisterRequest(0, 5)), AppendTCP(nil, 2, 9, WriteRegisterRequest(0, 5))
	req3, resp3 := AppendTCP(nil, 3, 1, read), AppendTCP(nil, 3, 1, PDU{3, 4, 0, 5, 0, 22})

	t.Run("joined frames are answered in order", func(t *testing.T) {
		expect(t, c, join(resp1, resp2, resp3), join(req1, req2, req3))
		m.set(HoldingRegisters, 0, 11)
	})
	t.Run("split frames", func(t *testing.T) {
		for i := 1; i < len(req1); i++ {
			expect(t, c, resp1, req1[:i], req1[i:])
		}
	})
	t.Run("joined and split", func(t *testing.T) {
		all := join(req1, req2, req3)
		for i := 1; i < len(all); i++ {
			expect(t, c, join(resp1, resp2, resp3), all[:i], all[i:])
			m.set(HoldingRegisters, 0, 11)
		}
	})
	t.Run("exceptions", func(t *testing.T) {
		for req, want := range map[string]string{
			"63":                     "E3 01", // unknown function
			"83 00":                  "83 01",
			"03 00C7 0002":           "83 02", // outside the map
			"03 FFFF 0002":           "83 02",
			"03 0000 0000":           "83 03",
			"03 0000 007E":           "83 03",
			"03 0000 0001 00":        "83 03",
			"05 0000 1234":           "85 03",
			"0F 0000 0009 01 FF":     "8F 03",
			"10 0000 0002 02 0000":   "90 03",
			"17 0000 0001 0000 0001": "97 03",
		} {
			expect(t, c, AppendTCP(nil, 4, 1, unhexed(t, want)), AppendTCP(nil, 4, 1, unhexed(t, req)))
		}
	})
	if st := s.Stats(); st.Clients != 1 || st.Accepted != 1 || st.Exceptions != 11 || st.BadFrames != 0 || st.Requests < 100 {
		t.Errorf("%+v", st)
	}
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// TestServerTCPLies: after a header that cannot be, nothing says where the next
// frame begins.
func TestServerTCPLies(t *testing.T) {
	s := &Server{Endpoint: newMemory(10)}
	addr := serve(t, s, FramingTCP)
	lies := [][]byte{
		{0, 1, 0, 1, 0, 6, 1, 3, 0, 0, 0, 1},
		{0, 1, 0, 0, 0, 0, 1, 3, 0, 0, 0, 1},
		{0, 1, 0, 0, 0, 1, 1, 3, 0, 0, 0, 1},
		{0, 1, 0, 0, 0, 255, 1, 3, 0, 0, 0, 1},
		{0, 1, 0, 0, 255, 255, 1, 3, 0, 0, 0, 1},
		[]byte("GET / HTTP/1.1\r\n\r\n"),
	}
	for _, lie := range lies {
		c := dial(t, addr)
		if _, err := c.Write(lie); err != nil {
			t.Fatal(err)
		}
		expectClosed(t, c)
	}
	if st := s.Stats(); st.BadFrames != uint64(len(lies)) || st.Requests != 0 {
		t.Errorf("%+v", st)
	}
}

func TestServerErrorsOfTheEndpoint(t *testing.T) {
	for _, c := range []struct {
		resp PDU
		err  error
		want Exception
	}{
		{nil, ServerDeviceBusy, ServerDeviceBusy},
		{nil, fmt.Errorf("line1: %w", ErrNoResponse), GatewayTargetNoResponse},
		{nil, fmt.Errorf("line1: %w", ErrNotConnected), GatewayPathUnavailable},
		{nil, errors.New("boom"), ServerDeviceFailure},
		{nil, nil, ServerDeviceFailure},                   // no answer, no error
		{PDU{3, 2, 0}, nil, ServerDeviceFailure},          // not what was asked
		{make(PDU, 300), nil, ServerDeviceFailure},        // longer than a PDU can be
		{PDU{0x83, 4}, nil, ServerDeviceFailure},          // an exception as a PDU
		{PDU{0x83, 0x20}, nil, Exception(0x20)},           // a vendor's own
		{PDU{4, 2, 0, 0}, nil, ServerDeviceFailure},       // another function
		{PDU{3, 4, 0, 0, 0, 0}, nil, ServerDeviceFailure}, // another quantity
	} {
		s := &Server{Endpoint: endpointFunc(func(context.Context, UnitID, PDU) (PDU, error) { return c.resp, c.err })}
		got := s.answer(context.Background(), new(tally), 1, ReadRequest(HoldingRegisters, 0, 1))
		if want := (PDU{0x83, byte(c.want)}); !bytes.Equal(got, want) {
			t.Errorf("% x, %v is answered % x, want % x", c.resp, c.err, got, want)
		}
	}
}

func TestServerUnits(t *testing.T) {
	var asked []UnitID
	var log bytes.Buffer
	s := &Server{
		Log: slog.New(slog.NewTextHandler(&log, nil)),
		Endpoint: endpointFunc(func(_ context.Context, unit UnitID, req PDU) (PDU, error) {
			asked = append(asked, unit)
			if unit == Broadcast {
				return nil, nil
			}
			return req, nil
		}),
		Units:   func(u UnitID) bool { return u == 5 || u == 6 },
		Default: 5,
	}
	write := WriteRegisterRequest(1, 2)
	c := dial(t, serve(t, s, FramingTCP))
	for _, unit := range []UnitID{5, 6, 0, 255} {
		expect(t, c, AppendTCP(nil, 1, unit, write), AppendTCP(nil, 1, unit, write))
	}
	for range 2 {
		expect(t, c, AppendTCP(nil, 1, 7, PDU{0x86, 0x0B}), AppendTCP(nil, 1, 7, write))
	}
	if n := strings.Count(log.String(), `msg="asked for a unit that is not here" client=127.0.0.1 unit=7`); n != 1 {
		t.Errorf("logged %d times:\n%s", n, &log)
	}
	if want := []UnitID{5, 6, 5, 5}; !equalUnits(asked, want) {
		t.Errorf("the endpoint was asked for %v, want %v", asked, want)
	}

	asked = nil
	for _, f := range []Framing{FramingRTU, FramingASCII} {
		c = dial(t, serve(t, s, f))
		// Units 7, 0 and 255 get no answer, a broadcast is executed, and a
		// broadcast that reads is not: the one answer is unit 6's.
		expect(t, c, f.Append(nil, 0, 6, write), join(
			f.Append(nil, 0, 7, write), f.Append(nil, 0, 255, write), f.Append(nil, 0, Broadcast, write),
			f.Append(nil, 0, Broadcast, ReadRequest(Coils, 0, 1)), f.Append(nil, 0, 6, write)))
	}
	if want := []UnitID{0, 6, 0, 6}; !equalUnits(asked, want) {
		t.Errorf("the endpoint was asked for %v, want %v", asked, want)
	}

	// A broadcast that the Endpoint takes for one has no answer on TCP either.
	pass := &Server{Endpoint: s.Endpoint}
	c = dial(t, serve(t, pass, FramingTCP))
	expect(t, c, AppendTCP(nil, 2, 6, write), AppendTCP(nil, 1, Broadcast, write), AppendTCP(nil, 2, 6, write))
}

func equalUnits(a, b []UnitID) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

func TestServerLimits(t *testing.T) {
	t.Run("clients", func(t *testing.T) {
		s := &Server{Endpoint: newMemory(10), MaxClients: 2}
		addr := serve(t, s, FramingTCP)
		req, resp := AppendTCP(nil, 1, 1, ReadRequest(Coils, 0, 1)), AppendTCP(nil, 1, 1, PDU{1, 1, 0})
		a, b := dial(t, addr), dial(t, addr)
		expect(t, a, resp, req)
		expect(t, b, resp, req)
		expectClosed(t, dial(t, addr))
		if st := s.Stats(); st.Refused != 1 || st.Clients != 2 {
			t.Errorf("%+v", st)
		}
		a.Close()
		for s.Stats().Clients != 1 {
			time.Sleep(time.Millisecond)
		}
		expect(t, dial(t, addr), resp, req)
	})
	t.Run("allow", func(t *testing.T) {
		var log bytes.Buffer
		s := &Server{
			Endpoint: newMemory(10), Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			Log: slog.New(slog.NewTextHandler(&log, nil)),
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- s.Serve(ctx, l, FramingTCP) }()
		for range 3 {
			expectClosed(t, dial(t, l.Addr().String()))
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if st := s.Stats(); st.Refused != 3 || st.Accepted != 0 {
			t.Errorf("%+v", st)
		}
		if n := strings.Count(log.String(), "client refused"); n != 1 {
			t.Errorf("%d lines for three refusals in a row, want one:\n%s", n, &log)
		}
	})
	t.Run("allowed addresses", func(t *testing.T) {
		s := &Server{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}
		for addr, want := range map[string]bool{
			"127.0.0.1:502": true, "[::ffff:127.0.0.1]:502": true, "[fd00::1%eth0]:502": true,
			"10.0.0.1:502": false, "[::1]:502": false,
		} {
			if got := s.allowed(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))); got != want {
				t.Errorf("%s: allowed %v, want %v", addr, got, want)
			}
		}
		if s.allowed(&net.UnixAddr{Name: "/x", Net: "unix"}) {
			t.Error("an address that is none is allowed")
		}
	})
	t.Run("idle", func(t *testing.T) {
		s := &Server{Endpoint: newMemory(10), Idle: 30 * time.Millisecond}
		addr := serve(t, s, FramingTCP)
		expectClosed(t, dial(t, addr))
		half := dial(t, addr)
		half.Write([]byte{0, 1, 0, 0, 0, 6, 1})
		expectClosed(t, half)
	})
}

// TestServerStops: clients, and requests that wait for a device, do not hold up
// the end.
func TestServerStops(t *testing.T) {
	asked := make(chan struct{})
	s := &Server{Idle: -1, Endpoint: endpointFunc(func(ctx context.Context, _ UnitID, _ PDU) (PDU, error) {
		close(asked)
		<-ctx.Done()
		return nil, ctx.Err()
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l, FramingTCP) }()
	idle, busy := dial(t, l.Addr().String()), dial(t, l.Addr().String())
	if _, err := busy.Write(AppendTCP(nil, 1, 1, ReadRequest(Coils, 0, 1))); err != nil {
		t.Fatal(err)
	}
	<-asked
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("Serve does not return")
	}
	expectClosed(t, idle)
	expectClosed(t, busy)
	if n := s.Stats().Clients; n != 0 {
		t.Errorf("%d clients are left", n)
	}

	l, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := s.Serve(context.Background(), l, FramingTCP); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a listener closed by somebody else: %v", err)
	}
}

func TestServerRTUOverTCP(t *testing.T) {
	m := newMemory(100)
	m.set(HoldingRegisters, 0, 11)
	s := &Server{Endpoint: m}
	addr := serve(t, s, FramingRTU)
	c := dial(t, addr)
	req, resp := AppendRTU(nil, 1, ReadRequest(HoldingRegisters, 0, 1)), AppendRTU(nil, 1, PDU{3, 2, 0, 11})
	write, wrote := AppendRTU(nil, 2, WriteRegistersRequest(5, []uint16{1, 2, 3})), AppendRTU(nil, 2, PDU{16, 0, 5, 0, 3})
	all := join(req, write, req)
	for i := 1; i < len(all); i++ {
		expect(t, c, join(resp, wrote, resp), all[:i], all[i:])
	}
	unknown := AppendRTU(nil, 1, PDU{0x63, 1, 2, 3})
	for i := 1; i < len(unknown); i++ {
		expect(t, c, AppendRTU(nil, 1, PDU{0xE3, 1}), unknown[:i], unknown[i:])
	}
	loop := AppendRTU(nil, 1, DiagnosticsRequest(0, 1, 2, 3))
	expect(t, c, loop, loop)
	expect(t, c, AppendRTU(nil, 1, PDU{0x83, 2}), AppendRTU(nil, 1, ReadRequest(HoldingRegisters, 99, 2)))

	req[7] ^= 1
	if _, err := c.Write(req); err != nil {
		t.Fatal(err)
	}
	expectClosed(t, c)
	endless := dial(t, addr)
	if _, err := endless.Write(append([]byte{1, 0x63}, bytes.Repeat([]byte{0x55}, 300)...)); err != nil {
		t.Fatal(err)
	}
	expectClosed(t, endless)
	if st := s.Stats(); st.BadFrames != 2 {
		t.Errorf("%+v", st)
	}
}

func TestServerASCIIOverTCP(t *testing.T) {
	m := newMemory(100)
	m.set(HoldingRegisters, 0, 11)
	s := &Server{Endpoint: m}
	c := dial(t, serve(t, s, FramingASCII))
	req, resp := AppendASCII(nil, 1, ReadRequest(HoldingRegisters, 0, 1)), AppendASCII(nil, 1, PDU{3, 2, 0, 11})
	for i := 1; i < len(req); i++ {
		expect(t, c, resp, req[:i], req[i:])
	}
	wrong := bytes.Clone(req)
	wrong[3] ^= 1
	expect(t, c, join(resp, resp), wrong, req, []byte("noise:0103"), bytes.ToLower(req))
	if st := s.Stats(); st.BadFrames != 1 {
		t.Errorf("%+v", st)
	}
	if _, err := c.Write(bytes.Repeat([]byte{'0'}, 600)); err != nil {
		t.Fatal(err)
	}
	expectClosed(t, c)
}

func TestServerUDP(t *testing.T) {
	m := newMemory(100)
	m.set(HoldingRegisters, 0, 11)
	listenAs := func(s *Server, f Framing) net.Conn {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		run(t, func(ctx context.Context) error { return s.ServeUDP(ctx, pc, f) })
		c, err := net.Dial("udp", pc.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		return c
	}
	listen := func(s *Server) net.Conn { return listenAs(s, FramingTCP) }
	s := &Server{Endpoint: m}
	c := listen(s)
	req, resp := AppendTCP(nil, 1, 1, ReadRequest(HoldingRegisters, 0, 1)), AppendTCP(nil, 1, 1, PDU{3, 2, 0, 11})
	// What is no frame gets no answer: the only one is the right one's.
	expect(t, c, resp, req[:5], req[:len(req)-1], append(bytes.Clone(req), 0), make([]byte, 400), req)
	if st := s.Stats(); st.BadFrames != 4 || st.Requests != 1 {
		t.Errorf("%+v", st)
	}

	// The frames of a serial line, with its rules: who is not meant says nothing.
	units := &Server{Endpoint: m, Units: func(u UnitID) bool { return u == 1 }}
	for _, f := range []Framing{FramingRTU, FramingASCII} {
		c := listenAs(units, f)
		ask, answer := f.Append(nil, 0, 1, ReadRequest(HoldingRegisters, 0, 1)), f.Append(nil, 0, 1, PDU{3, 2, 0, 11})
		expect(t, c, answer, req, f.Append(nil, 0, 2, ReadRequest(HoldingRegisters, 0, 1)),
			f.Append(nil, 0, Broadcast, WriteRegisterRequest(5, 1)), append(bytes.Clone(ask), ask...), ask[:len(ask)-1], ask)
	}

	barred := &Server{Endpoint: m, Allow: []netip.Prefix{}}
	c = listen(barred)
	if _, err := c.Write(req); err != nil {
		t.Fatal(err)
	}
	for barred.Stats().Refused != 1 {
		time.Sleep(time.Millisecond)
	}
	if st := barred.Stats(); st.Requests != 0 {
		t.Errorf("%+v", st)
	}

	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc.Close()
	if err := s.ServeUDP(context.Background(), pc, FramingTCP); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a socket closed by somebody else: %v", err)
	}
}

func TestServerAgainstMbpollTCP(t *testing.T) {
	m := newMemory(2000)
	_, port, err := net.SplitHostPort(serve(t, &Server{Endpoint: m}, FramingTCP))
	if err != nil {
		t.Fatal(err)
	}
	mbpollSession(t, m, "127.0.0.1", "-m", "tcp", "-p", port)
}

// mbpollSession reads and writes every table with mbpoll.
func mbpollSession(t *testing.T, m *memory, target string, args ...string) {
	t.Helper()
	poll := func(table Table, addr, n int, values ...string) []string {
		t.Helper()
		kind := map[Table]string{Coils: "0", DiscreteInputs: "1", InputRegisters: "3", HoldingRegisters: "4"}[table]
		a := append([]string{"-0", "-a", "1", "-t", kind, "-r", strconv.Itoa(addr)}, args...)
		if len(values) == 0 {
			a = append(a, "-c", strconv.Itoa(n))
		}
		return mbpoll.Must(t, append(append(a, target), values...)...)
	}
	want := map[Table][]string{}
	for _, table := range []Table{Coils, DiscreteInputs, InputRegisters, HoldingRegisters} {
		for i := range 100 {
			v := uint16(i * 300)
			if table.Bits() {
				v = uint16(i * i / 3 % 2)
			}
			m.set(table, uint16(10+i), v)
			want[table] = append(want[table], strconv.Itoa(int(v)))
		}
		got := poll(table, 10, 100)
		if fmt.Sprint(got) != fmt.Sprint(want[table]) {
			t.Errorf("mbpoll reads %v\n%v, want\n%v", table, got, want[table])
		}
	}
	poll(HoldingRegisters, 20, 0, "4711")
	poll(HoldingRegisters, 30, 0, "1", "2", "3")
	poll(Coils, 20, 0, "1")
	poll(Coils, 30, 0, "1", "0", "1")
	for _, c := range []struct {
		table Table
		addr  uint16
		want  []uint16
	}{
		{HoldingRegisters, 20, []uint16{4711}}, {HoldingRegisters, 30, []uint16{1, 2, 3}},
		{Coils, 20, []uint16{1}}, {Coils, 30, []uint16{1, 0, 1}},
	} {
		for i, v := range c.want {
			if got := m.get(c.table, c.addr+uint16(i)); got != v {
				t.Errorf("after mbpoll wrote, %v %d is %d, want %d", c.table, int(c.addr)+i, got, v)
			}
		}
	}
}

// FuzzServerStream sends any bytes over a connection in each framing: the server
// must survive, and what it answers must be whole frames.
func FuzzServerStream(f *testing.F) {
	for _, e := range examples {
		for framing := FramingTCP; framing <= FramingASCII; framing++ {
			f.Add(byte(framing), byte(3), framing.Append(framing.Append(nil, 1, 1, e.req), 2, 0, e.req))
		}
	}
	f.Fuzz(func(t *testing.T, framing, cut byte, b []byte) {
		fr := Framing(framing % 3)
		ours, theirs := net.Pipe()
		s := &Server{Endpoint: newMemory(100)}
		served := make(chan struct{})
		go func() { // ends when ours is closed
			defer close(served)
			s.serve(context.Background(), &session{conn: theirs, from: theirs.RemoteAddr(), since: time.Now()}, fr)
		}()
		go func() { // ends with the bytes, or when the server hangs up
			defer ours.Close()
			k := min(int(cut), len(b))
			ours.Write(b[:k])
			ours.Write(b[k:])
		}()
		got, _ := io.ReadAll(ours)
		<-served
		for len(got) > 0 {
			n := len(got)
			switch fr {
			case FramingTCP:
				_, pdu, _, err := ParseMBAP(got)
				if err != nil {
					t.Fatalf("% x", got)
				}
				n = MBAPLen + pdu
			case FramingASCII:
				n = bytes.IndexByte(got, '\n') + 1
			case FramingRTU:
				return // the frames of several answers cannot be told apart
			}
			decodeOne(t, fr, got[:n])
			got = got[n:]
		}
	})
}
