package regmap

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/internal/modbus"
)

// 0.0.0.0 is IPv4 alone, [::] and no host are both; and a datagram is answered from
// the address it was sent to, whichever of the machine's that is.
func TestEverywhere(t *testing.T) {
	v6, err := net.Listen("tcp6", "[::1]:0")
	if err == nil {
		v6.Close()
	}
	for _, row := range []struct {
		listen string
		six    bool // it listens on IPv6 too
	}{
		{"0.0.0.0:0", false}, {"[::]:0", true}, {":0", true},
	} {
		if row.six && v6 == nil {
			t.Logf("no IPv6 here: %v", err)
			continue
		}
		for _, protocol := range []string{"tcp", "udp"} {
			s, _ := startServer(t, "listen: '"+protocol+"://"+row.listen+"', allow: [127.0.0.0/8, '::1']")
			_, port, err := net.SplitHostPort(s.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.9.8.7", "::1"} {
				want := host != "::1" || row.six
				if host == "::1" && v6 == nil {
					continue
				}
				if got := answersAt(t, protocol, net.JoinHostPort(host, port)); got != want {
					t.Errorf("%s://%s asked at %s: answers %v, want %v", protocol, row.listen, host, got, want)
				}
			}
		}
	}
}

// A datagram to everyone is answered, though nobody has the address that it went to.
func TestEverywhereBroadcast(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", "[::]:0"} {
		s, _ := startServer(t, "listen: 'udp://"+listen+"', allow: 127.0.0.0/8")
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		everyone := &net.UDPAddr{IP: net.IPv4(127, 255, 255, 255), Port: s.Addr().(*net.UDPAddr).Port}
		if _, err := c.WriteTo(modbus.AppendTCP(nil, 1, 7, modbus.ReadRequest(modbus.HoldingRegisters, 1, 1)), everyone); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, modbus.MaxTCP)
		if n, from, err := c.ReadFrom(buf); err != nil || n != modbus.MBAPLen+4 {
			t.Errorf("%s: %d bytes from %v, %v", listen, n, from, err)
		}
	}
}

// An address that the machine does not have yet is waited for; one that is taken is
// an error as ever.
func TestAddressNotThereYet(t *testing.T) {
	for _, listen := range []string{"tcp://192.0.2.1:1502", "udp://192.0.2.1:1502", "tcp://[2001:db8::1]:1502", "udp://[2001:db8::1]:1502"} {
		cfg, memory := conformServer(t, "listen: '"+listen+"', allow: 192.0.2.0/24")
		var log bytes.Buffer
		m := New(cfg, memory.Image(), memory.Gate(), modbus.Identity{}, slog.New(slog.DiscardHandler))
		s, err := Listen(cfg, m, slog.New(slog.NewTextHandler(&log, nil)))
		if errors.Is(err, unix.EAFNOSUPPORT) {
			t.Logf("no IPv6 here: %v", err)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", listen, err)
			continue
		}
		if !strings.HasSuffix(listen, s.Addr().String()) || !strings.Contains(log.String(), "it is served once it is") {
			t.Errorf("%s: listens on %v; log:\n%s", listen, s.Addr(), &log)
		}
		if s, err := Listen(cfg, m, slog.New(slog.DiscardHandler)); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%s a second time: %v, %v", listen, s, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// answersAt reports whether a client of an address gets its answer, for a socket of
// datagrams from there.
func answersAt(t *testing.T, protocol, address string) bool {
	t.Helper()
	c, err := net.Dial(protocol, address)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(modbus.AppendTCP(nil, 1, 7, modbus.ReadRequest(modbus.HoldingRegisters, 1, 1))); err != nil {
		return false
	}
	buf := make([]byte, modbus.MaxTCP)
	n, err := c.Read(buf)
	return err == nil && n == modbus.MBAPLen+4
}
