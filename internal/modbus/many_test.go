package modbus

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// patient answers reads at once, and anything else when it is told to.
type patient struct {
	*memory
	asked, let chan struct{}
	reads      atomic.Uint64
}

func (p *patient) Do(ctx context.Context, unit UnitID, req PDU) (PDU, error) {
	if req.Function().Writes() {
		p.asked <- struct{}{}
		select {
		case <-p.let:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return p.memory.Do(ctx, unit, req)
}

func (p *patient) AppendQuick(ctx context.Context, dst []byte, unit UnitID, req PDU) ([]byte, error) {
	p.reads.Add(1)
	return p.memory.AppendQuick(ctx, dst, unit, req)
}

// together has the clients of a server share a goroutine, on one processor too.
func together(t *testing.T) {
	if n := runtime.GOMAXPROCS(0); n == 1 {
		runtime.GOMAXPROCS(2)
		t.Cleanup(func() { runtime.GOMAXPROCS(n) })
	}
}

func newPatient() *patient {
	return &patient{memory: newMemory(200), asked: make(chan struct{}), let: make(chan struct{})}
}

// What takes long holds up who asked it, whose later requests wait for it, and
// nobody else.
func TestManySlowRequest(t *testing.T) {
	together(t)
	p := newPatient()
	addr := serve(t, &Server{Endpoint: p}, FramingTCP)
	a, b := dial(t, addr), dial(t, addr)
	read := AppendTCP(nil, 7, 1, ReadRequest(HoldingRegisters, 5, 1))
	write := AppendTCP(nil, 8, 1, WriteRegisterRequest(5, 99))
	was, is := AppendTCP(nil, 7, 1, PDU{3, 2, 0, 0}), AppendTCP(nil, 7, 1, PDU{3, 2, 0, 99})
	expect(t, a, was, append(append(append(read[:len(read):len(read)], write...), read...), read[:5]...))
	<-p.asked
	for range 10 {
		expect(t, b, was, read)
	}
	p.let <- struct{}{}
	expect(t, a, append(write, is...))
	expect(t, a, is, read[5:])
}

// A client that takes no answers is read no further, and loses none of them when
// it does.
func TestManyUntaken(t *testing.T) {
	together(t)
	p := newPatient()
	s := &Server{Endpoint: p}
	addr := serve(t, s, FramingTCP)
	c := dial(t, addr)
	req, resp := AppendTCP(nil, 1, 1, ReadRequest(HoldingRegisters, 0, 125)), 9+250
	const requests = 60_000
	sent := make(chan error, 1)
	go func() { // ends when all are sent, or the test fails
		for range requests {
			if _, err := c.Write(req); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for before := uint64(0); before == 0 || p.reads.Load() != before; time.Sleep(100 * time.Millisecond) {
		before = p.reads.Load()
	}
	if n := p.reads.Load(); n == requests {
		t.Fatal("nothing is stuck: the test shows nothing")
	}
	if n, err := io.CopyN(io.Discard, c, int64(requests*resp)); err != nil {
		t.Fatalf("%d bytes of answers, %v; want %d", n, err, requests*resp)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	expect(t, c, AppendTCP(nil, 2, 1, PDU{1, 1, 0}), AppendTCP(nil, 2, 1, ReadRequest(Coils, 0, 1)))
}

// A client may say that it has asked all, and is answered still.
func TestManyHalfClosed(t *testing.T) {
	together(t)
	s := &Server{Endpoint: newPatient()}
	addr := serve(t, s, FramingTCP)
	for range 50 {
		c := dial(t, addr)
		c.Write(AppendTCP(nil, 2, 1, ReadRequest(Coils, 0, 1)))
		c.(*net.TCPConn).CloseWrite()
		got, err := io.ReadAll(c)
		if err != nil || len(got) != 10 {
			t.Fatalf("% x, %v", got, err)
		}
		c.Close()
	}
	for s.Stats().Clients > 0 {
		time.Sleep(time.Millisecond)
	}
}

// The end waits for nobody, whatever each is at.
func TestManyStop(t *testing.T) {
	together(t)
	before := runtime.NumGoroutine()
	p := newPatient()
	s := &Server{Endpoint: p}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l, FramingTCP) }() // ends with ctx
	idle, busy, half := dial(t, l.Addr().String()), dial(t, l.Addr().String()), dial(t, l.Addr().String())
	half.Write([]byte{0, 1, 0, 0})
	busy.Write(AppendTCP(nil, 1, 1, WriteCoilRequest(0, true)))
	<-p.asked
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("Serve does not return")
	}
	for _, c := range []net.Conn{idle, busy, half} {
		expectClosed(t, c)
	}
	if st := s.Stats(); st.Clients != 0 || s.Clients()[0].Connections != 0 {
		t.Errorf("%+v, %+v", st, s.Clients())
	}
	for end := time.Now().Add(patience); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

// A request is silence no more than an answer that took long.
func TestManyIdle(t *testing.T) {
	together(t)
	p := newPatient()
	addr := serve(t, &Server{Endpoint: p, Idle: 300 * time.Millisecond}, FramingTCP)
	c, mute := dial(t, addr), dial(t, addr)
	c.Write(AppendTCP(nil, 1, 1, WriteCoilRequest(0, true)))
	<-p.asked
	expectClosed(t, mute)
	time.Sleep(100 * time.Millisecond)
	p.let <- struct{}{}
	expect(t, c, AppendTCP(nil, 1, 1, WriteCoilRequest(0, true)))
	expectClosed(t, c)
}

// An answer that does not come shows, as nobody else is answered meanwhile; one
// that nobody asks for does not.
func TestManyOverdue(t *testing.T) {
	together(t)
	e := &stuck{asked: make(chan bool), let: make(chan bool)}
	s := &Server{Endpoint: e}
	addr := serve(t, s, FramingTCP)
	if owes := s.Overdue(); owes != 0 {
		t.Errorf("owes since %v before the first client", owes)
	}
	c := dial(t, addr)
	for range 3 {
		c.Write(AppendTCP(nil, 1, 1, ReadRequest(HoldingRegisters, 0, 1)))
		<-e.asked
		time.Sleep(20 * time.Millisecond)
		if owes := s.Overdue(); owes < 10*time.Millisecond {
			t.Errorf("owes since %v while an answer does not come", owes)
		}
		e.let <- true
		expect(t, c, AppendTCP(nil, 1, 1, PDU{3, 2, 0, 1}))
		for end := time.Now().Add(patience); s.Overdue() > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("owes since %v while nobody asks", s.Overdue())
			}
		}
	}
}

// stuck is constant, but answers when it is told to.
type stuck struct {
	constant
	asked, let chan bool
}

func (s *stuck) AppendQuick(ctx context.Context, dst []byte, unit UnitID, req PDU) ([]byte, error) {
	s.asked <- true
	<-s.let
	return s.constant.AppendQuick(ctx, dst, unit, req)
}

// Requests that are answered at once cost no memory.
func TestManyAllocatesNothing(t *testing.T) {
	together(t)
	s := &Server{Endpoint: constant{}}
	m := s.many(FramingTCP)
	c := &session{tally: s.tallies.get("x"), since: time.Now()}
	in := AppendTCP(nil, 1, 1, ReadRequest(HoldingRegisters, 0, 1))
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		if n, out, _, err := m.answer(context.Background(), c, in, now); n != len(in) || len(out) != 11 || err != nil {
			t.Fatal(n, out, err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// constant holds one register.
type constant struct{}

func (constant) Do(context.Context, UnitID, PDU) (PDU, error) { return nil, errors.New("not asked") }
func (constant) Quick(UnitID, PDU) bool                       { return true }
func (constant) AppendQuick(_ context.Context, dst []byte, _ UnitID, _ PDU) ([]byte, error) {
	return append(dst, 3, 2, 0, 1), nil
}
