package quick

import (
	"io"
	"net"
	"testing"
	"time"
)

// One goroutine echoes what comes on several connections, ticks when it should
// and ends when it is told to.
func TestPoller(t *testing.T) {
	p, err := NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	ticks, done := make(chan bool, 100), make(chan bool)
	go func() { // ends with Close
		defer close(done)
		p.Run(func(now time.Time) time.Time {
			ticks <- true
			return now.Add(time.Hour)
		})
	}()
	<-ticks
	p.Tick()
	<-ticks
	var clients []net.Conn
	var sockets []*Socket
	for range 3 {
		client, server := pair(t)
		var s *Socket
		s = p.Take(server, func(time.Time) {
			var b [16]byte
			switch n, err := s.Read(b[:]); err {
			case nil:
				s.Write(b[:n])
			case io.EOF:
				s.Close()
			}
		})
		if s == nil {
			t.Fatal("a connection was not taken")
		}
		clients, sockets = append(clients, client), append(sockets, s)
		if err := s.Watch(Input); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		for _, c := range clients {
			c.SetDeadline(time.Now().Add(10 * time.Second))
			c.Write([]byte("hello"))
		}
		for _, c := range clients {
			b := make([]byte, 5)
			if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
				t.Fatalf("%q, %v", b, err)
			}
		}
	}
	sockets[0].Shutdown()
	if n, err := clients[0].Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v after Shutdown", n, err)
	}
	sockets[1].Watch(Nothing)
	clients[1].Write([]byte("x"))
	clients[1].SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := clients[1].Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("%d, %v from a socket that is not watched", n, err)
	}
	p.Close()
	<-done
	for _, s := range sockets {
		s.Close()
		s.Close()
	}
	if _, err := sockets[2].Read(make([]byte, 1)); err != net.ErrClosed {
		t.Errorf("read of a closed socket: %v", err)
	}
	if err := sockets[2].Watch(Input); err != net.ErrClosed {
		t.Errorf("watch of a closed socket: %v", err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if p.Take(a, nil) != nil {
		t.Error("a pipe was taken")
	}
}
