package quick

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"
)

// pair returns the two ends of a connection, both quick.
func pair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	a, b = Conn(a), Conn(b)
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

// TestConn holds a quick connection to all that package net promises of one:
// deadlines, use by several goroutines, closing meanwhile.
func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (a, b net.Conn, stop func(), err error) {
		a, b = pair(t)
		return a, b, func() {
			a.Close()
			b.Close()
		}, nil
	})
}

// What does not fit into the kernel's buffers waits for room.
func TestMuch(t *testing.T) {
	a, b := pair(t)
	much := make([]byte, 32<<20)
	for i := range much {
		much[i] = byte(rand.Uint32())
	}
	done := make(chan error, 1)
	go func() {
		n, err := a.Write(much)
		if n != len(much) {
			t.Errorf("%d bytes written", n)
		}
		a.Close()
		done <- err
	}()
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, much) {
		t.Errorf("%d bytes read, %v; want the %d that were written", len(got), err, len(much))
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The errors are those of package net.
func TestErrors(t *testing.T) {
	want := func(what string, err error, op string, is error) {
		t.Helper()
		var e *net.OpError
		if !errors.As(err, &e) || e.Op != op || !errors.Is(err, is) || e.Addr == nil {
			t.Errorf("%s: %v, want %s: %v", what, err, op, is)
		}
	}
	a, b := pair(t)
	a.SetReadDeadline(time.Now().Add(time.Millisecond))
	n, err := a.Read(make([]byte, 1))
	want("deadline", err, "read", os.ErrDeadlineExceeded)
	if e := net.Error(nil); n != 0 || !errors.As(err, &e) || !e.Timeout() {
		t.Errorf("%d bytes, %v; want a timeout", n, err)
	}
	a.SetReadDeadline(time.Time{})
	b.(*conn).CloseWrite()
	if n, err := a.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the other end has said all: %d bytes, %v", n, err)
	}
	b.(*conn).SetLinger(0)
	b.Close()
	_, err = io.Copy(a, bytes.NewReader(make([]byte, 1<<20)))
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write to a connection that was reset: %v", err)
	}
	a.Close()
	_, err = a.Read(make([]byte, 1))
	want("closed", err, "read", net.ErrClosed)
	_, err = a.Write(make([]byte, 1))
	want("closed", err, "write", net.ErrClosed)
	if n, err := a.Write(nil); n != 0 || err == nil {
		t.Errorf("nothing, to a closed connection: %d, %v", n, err)
	}
}

// What has no descriptor stays what it is.
func TestNoSocket(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if Conn(a) != a {
		t.Error("a pipe was wrapped")
	}
	c, _ := pair(t)
	if Conn(c) != c {
		t.Error("a quick connection was wrapped again")
	}
	if _, err := c.(syscall.Conn).SyscallConn(); err != nil {
		t.Error(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	gone, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	if _, err := Conn(gone).Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed connection: %v", err)
	}
}

func TestAllocatesNothing(t *testing.T) {
	a, b := pair(t)
	buf := make([]byte, 64)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := a.Write(buf[:12]); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(b, buf[:12]); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkPingPong(b *testing.B) {
	for _, quick := range []bool{false, true} {
		name := "net"
		if quick {
			name = "quick"
		}
		b.Run(name, func(b *testing.B) {
			here, there := pair(b)
			if !quick {
				here, there = here.(*conn).TCPConn, there.(*conn).TCPConn
			}
			go func() { // ends when there is closed
				buf := make([]byte, 12)
				for {
					if _, err := io.ReadFull(there, buf); err != nil {
						return
					}
					if _, err := there.Write(buf); err != nil {
						return
					}
				}
			}()
			buf := make([]byte, 12)
			for b.Loop() {
				if _, err := here.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(here, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
