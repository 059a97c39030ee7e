package regmap

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// everywhere is a UDP socket that listens on all addresses of the machine and
// answers from that which was asked. Left to itself the kernel takes the address of
// the way back, and a client that waits for the other one drops the answer.
type everywhere struct {
	*net.UDPConn
	control []byte // of ReadFrom, which one goroutine calls
}

// caller is who asked.
type caller struct {
	*net.UDPAddr
	asked []byte // the control message that has the answer sent from where he asked; nil: none
}

// answersFromThere returns c, or an everywhere where that is needed.
func answersFromThere(c net.PacketConn) (net.PacketConn, error) {
	u, ok := c.(*net.UDPConn)
	if !ok || !u.LocalAddr().(*net.UDPAddr).IP.IsUnspecified() {
		return c, nil
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		switch {
		case err != nil:
			failed = err
		case domain == unix.AF_INET:
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		default: // of IPv4, too, with the addresses mapped
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return nil, fmt.Errorf("socket options of %v: %w", u.LocalAddr(), err)
	}
	return &everywhere{u, make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))}, nil
}

// ReadFrom implements net.PacketConn. The address is a caller.
func (u *everywhere) ReadFrom(p []byte) (int, net.Addr, error) {
	n, control, _, from, err := u.ReadMsgUDP(p, u.control)
	if err != nil {
		return n, nil, err
	}
	return n, caller{from, answerFrom(u.control[:control])}, nil
}

// WriteTo implements net.PacketConn; to is a caller.
func (u *everywhere) WriteTo(p []byte, to net.Addr) (int, error) {
	c := to.(caller)
	n, _, err := u.WriteMsgUDP(p, c.asked, c.UDPAddr)
	if err != nil && c.asked != nil { // that of a broadcast is nobody's, as of IPv4 on [::]
		return u.UDPConn.WriteTo(p, c.UDPAddr)
	}
	return n, err
}

// answerFrom turns the control message of a datagram, which says where it was sent
// to, into that for the answer. Nil: the kernel shall choose.
func answerFrom(b []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(b)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			var to unix.Inet4Pktinfo
			copy(to.Spec_dst[:], m.Data[4:8]) // behind the interface; ours, also of a datagram to everyone
			return unix.PktInfo4(&to)
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			var to unix.Inet6Pktinfo
			copy(to.Addr[:], m.Data)
			switch a := netip.AddrFrom16(to.Addr); {
			case a.IsMulticast():
				return nil
			case a.IsLinkLocalUnicast(): // which is one of an interface only
				to.Ifindex = binary.NativeEndian.Uint32(m.Data[16:])
			}
			return unix.PktInfo6(&to)
		}
	}
	return nil
}
