package socket

import (
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The successor serves who connected before it began, and the address stays
// taken.
func TestAgain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	next, err := Again(l)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if next.Addr().String() != l.Addr().String() {
		t.Errorf("listens on %v, want %v", next.Addr(), l.Addr())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", next.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	served, err := next.Accept()
	if err != nil {
		t.Fatal(err)
	}
	served.Close()
	if other, err := net.Listen("tcp", next.Addr().String()); err == nil {
		other.Close()
		t.Error("the address is free")
	}
}

func TestAgainPacket(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	next, err := AgainPacket(c)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	c.Close()
	from, err := net.Dial("udp", next.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	if _, err := from.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := next.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, _, err := next.ReadFrom(make([]byte, 8)); n != 1 || err != nil {
		t.Errorf("ReadFrom = %d, %v", n, err)
	}
}

// A port that is taken is an error, also at an address that is absent.
func TestListenTwice(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "192.0.2.1:1502"} {
		l, absent, err := Listen(address)
		if err != nil || absent != (address == "192.0.2.1:1502") {
			t.Fatalf("%s: absent %v, %v", address, absent, err)
		}
		defer l.Close()
		if l, _, err := Listen(l.Addr().String()); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%s a second time: %v, %v", address, l, err)
		}
	}
}
