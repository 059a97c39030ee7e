package socket

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen opens a TCP listener at an address, host:port. A port that another
// process has is an error. An address that is not on this machine is none, since a
// network that comes up late, or has no cable yet, must not keep the rest from its
// work: absent is then true, and clients are served once it is there.
//
// 0.0.0.0 is IPv4 alone, which Go itself takes for both; [::] and no host are both.
func Listen(address string) (l net.Listener, absent bool, err error) {
	absent, err = patient(func(lc *net.ListenConfig) (err error) {
		l, err = lc.Listen(context.Background(), network("tcp", address), address) // only names are waited for
		return err
	})
	return l, absent, err
}

// ListenPacket is Listen for a UDP socket.
func ListenPacket(address string) (c net.PacketConn, absent bool, err error) {
	absent, err = patient(func(lc *net.ListenConfig) (err error) {
		c, err = lc.ListenPacket(context.Background(), network("udp", address), address)
		return err
	})
	return c, absent, err
}

// patient opens a socket, also at an address that is absent.
func patient(open func(*net.ListenConfig) error) (absent bool, err error) {
	err = open(new(net.ListenConfig))
	if !errors.Is(err, unix.EADDRNOTAVAIL) {
		return false, err
	}
	err = open(&net.ListenConfig{Control: freeBind})
	return err == nil, err
}

// network returns the network to listen in for an address.
func network(protocol, address string) string {
	if a, err := netip.ParseAddrPort(address); err == nil && a.Addr() == netip.IPv4Unspecified() {
		return protocol + "4"
	}
	return protocol
}

// freeBind has a socket take an address that is not on this machine, or not yet.
func freeBind(network, _ string, raw syscall.RawConn) (err error) {
	level, option := unix.IPPROTO_IP, unix.IP_FREEBIND
	if strings.HasSuffix(network, "6") {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
	}
	failed := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) })
	return errors.Join(failed, err)
}
