// Package socket opens listening sockets, and hands one from the part of the
// process that has it to the one that takes its place: the address is never free in
// between, and clients that connect meanwhile wait for the successor.
package socket

import (
	"errors"
	"fmt"
	"net"
)

// Again returns another listener on the socket of l, which may be closed then.
// What was set for the connections that l accepts is not taken over.
func Again(l net.Listener) (net.Listener, error) {
	t, ok := l.(*net.TCPListener)
	if !ok {
		return nil, fmt.Errorf("%T is no TCP listener", l)
	}
	f, err := t.File()
	if err != nil {
		return nil, err
	}
	next, err := net.FileListener(f)
	return next, errors.Join(err, f.Close())
}

// AgainPacket is Again for a socket of datagrams.
func AgainPacket(c net.PacketConn) (net.PacketConn, error) {
	u, ok := c.(*net.UDPConn)
	if !ok {
		return nil, fmt.Errorf("%T is no UDP socket", c)
	}
	f, err := u.File()
	if err != nil {
		return nil, err
	}
	next, err := net.FilePacketConn(f)
	return next, errors.Join(err, f.Close())
}
