// Package link is the way to a broker, which a test or a benchmark closes and
// opens: a TCP relay on loopback. While it is closed connections are refused, as
// by a machine on which no broker runs.
package link

import (
	"fmt"
	"io"
	"net"
	"sync"

	"fieldgate/test/port"
)

// Link relays connections to one address. Make it with New.
type Link struct {
	to, addr string

	mu    sync.Mutex
	l     net.Listener // nil: closed
	conns []net.Conn
}

// New returns an open link to the address to, HOST:PORT.
func New(to string) (*Link, error) {
	n, err := port.Free() // which nobody takes while the link is closed
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", n))
	if err != nil {
		return nil, err
	}
	k := &Link{to: to, addr: l.Addr().String(), l: l}
	go k.accept(l) // ends with Cut
	return k, nil
}

// Addr returns the address to connect to.
func (k *Link) Addr() string { return k.addr }

// Cut closes the link and every connection on it.
func (k *Link) Cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.l != nil {
		_ = k.l.Close()
		k.l = nil
	}
	for _, c := range k.conns {
		_ = c.Close()
	}
	k.conns = nil
}

// Open opens the link again.
func (k *Link) Open() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.l != nil {
		return nil
	}
	l, err := net.Listen("tcp", k.addr)
	if err != nil {
		return err
	}
	k.l = l
	go k.accept(l) // ends with Cut
	return nil
}

func (k *Link) accept(l net.Listener) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", k.to)
		if err != nil || !k.take(l, in, out) {
			_ = in.Close()
			if err == nil {
				_ = out.Close()
			}
			continue
		}
		for _, c := range [][2]net.Conn{{in, out}, {out, in}} {
			go func() { // ends with either of the two
				_, _ = io.Copy(c[0], c[1])
				_, _ = c[0].Close(), c[1].Close()
			}()
		}
	}
}

// take reports whether l is still what the link listens on, and remembers the
// connections if so.
func (k *Link) take(l net.Listener, conns ...net.Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.l != l {
		return false
	}
	k.conns = append(k.conns, conns...)
	return true
}
