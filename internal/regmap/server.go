package regmap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/health"
	"fieldgate/internal/line"
	"fieldgate/internal/modbus"
	"fieldgate/internal/quick"
	"fieldgate/internal/socket"
)

// Server is a Map on its socket or serial port.
type Server struct {
	cfg    config.Server // without the map
	m      atomic.Pointer[Map]
	modbus *modbus.Server
	log    *slog.Logger
	l      net.Listener   // TCP
	pc     net.PacketConn // UDP
	beat   health.Beat    // of what takes clients
}

var _ modbus.Quick = (*Server)(nil)

// How long a serial port that cannot be opened is left alone before the next
// try.
const (
	reopenFirst = 100 * time.Millisecond
	reopenLast  = 2 * time.Second
)

// Listen puts m on the address of cfg, from which it was made. A serial port is
// opened by Run, as often as it takes. Close ends what is not run.
func Listen(cfg config.Server, m *Map, log *slog.Logger) (*Server, error) {
	s := newServer(cfg, m, log)
	var absent bool
	var err error
	switch cfg.Kind {
	case config.TCP:
		s.l, absent, err = socket.Listen(cfg.Address)
	case config.UDP:
		s.pc, absent, err = socket.ListenPacket(cfg.Address)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", cfg.Name, err)
	}
	if absent {
		log.Warn("the address is not on this machine, it is served once it is", "address", cfg.Address)
	}
	return s, nil
}

func newServer(cfg config.Server, m *Map, log *slog.Logger) *Server {
	s := &Server{cfg: wire(cfg), log: log}
	s.m.Store(m)
	s.modbus = &modbus.Server{
		Endpoint: s, Units: func(u modbus.UnitID) bool { return s.m.Load().Units(u) }, Default: cfg.Unit, Allow: cfg.Allow,
		Knows:      func(u modbus.UnitID, req modbus.PDU) bool { return s.m.Load().Knows(u, req) },
		MaxClients: cfg.MaxClients, Idle: cfg.Idle, Log: log,
	}
	return s
}

// wire returns what a Server itself has of its settings.
func wire(cfg config.Server) config.Server {
	cfg.Writes, cfg.Map, cfg.Pass, cfg.PassWrites = false, nil, nil, config.PassWrites{}
	return cfg
}

// Serves reports whether the settings differ from the server's in the map alone,
// so that Change is enough.
func (s *Server) Serves(cfg config.Server) bool { return reflect.DeepEqual(s.cfg, wire(cfg)) }

// At reports whether a server with the settings cfg would need the socket of s.
func (s *Server) At(cfg config.Server) bool {
	return s.cfg.Kind == cfg.Kind && s.cfg.Address == cfg.Address && !strings.HasSuffix(cfg.Address, ":0")
}

// Change puts another map in place of the server's. Clients stay connected, and
// a request is answered by the one or the other.
func (s *Server) Change(m *Map) { s.m.Store(m) }

// Succeed is Listen for a server with other settings at the same address: it
// takes over the socket of s, which must end before it is run.
func (s *Server) Succeed(cfg config.Server, m *Map, log *slog.Logger) (*Server, error) {
	next := newServer(cfg, m, log)
	var err error
	switch {
	case s.l != nil:
		next.l, err = socket.Again(s.l)
	case s.pc != nil:
		next.pc, err = socket.AgainPacket(s.pc)
	}
	if err != nil {
		return nil, fmt.Errorf("take over %s: %w", cfg.Name, err)
	}
	return next, nil
}

// Do implements modbus.Endpoint.
func (s *Server) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	return s.m.Load().Do(ctx, unit, req)
}

// Quick implements modbus.Quick.
func (s *Server) Quick(unit modbus.UnitID, req modbus.PDU) bool { return s.m.Load().Quick(unit, req) }

// AppendQuick implements modbus.Quick.
func (s *Server) AppendQuick(ctx context.Context, dst []byte, unit modbus.UnitID, req modbus.PDU) ([]byte, error) {
	m := s.m.Load()
	if !m.Quick(unit, req) {
		return nil, modbus.ServerDeviceBusy // by the map before this it was
	}
	return m.AppendQuick(ctx, dst, unit, req)
}

// Name returns where the server listens, as the configuration has it.
func (s *Server) Name() string { return s.cfg.Name }

// Addr returns the address it listens on, nil on a serial port.
func (s *Server) Addr() net.Addr {
	switch {
	case s.l != nil:
		return s.l.Addr()
	case s.pc != nil:
		return s.pc.LocalAddr()
	}
	return nil
}

// Close ends a server that will not be run.
func (s *Server) Close() error {
	switch {
	case s.l != nil:
		return s.l.Close()
	case s.pc != nil:
		return s.pc.Close()
	}
	return nil
}

// Run answers until ctx ends, then returns nil. An error means that the socket
// is broken. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	defer s.beat.Stops()
	switch {
	case s.l != nil:
		s.log.Info("modbus server listens", "address", s.l.Addr().String(), "points", s.m.Load().len())
		return s.modbus.Serve(ctx, quickListener{s.l, &s.beat}, s.cfg.Framing)
	case s.pc != nil:
		pc, err := answersFromThere(s.pc)
		if err != nil {
			return errors.Join(err, s.pc.Close())
		}
		s.log.Info("modbus server listens", "address", s.pc.LocalAddr().String(), "points", s.m.Load().len())
		return s.modbus.ServeUDP(ctx, datagrams{pc, &s.beat}, s.cfg.Framing)
	}
	s.runSerial(ctx)
	return nil
}

// runSerial keeps the port open until ctx ends.
func (s *Server) runSerial(ctx context.Context) {
	ctx = modbus.WithClient(ctx, s.cfg.Name)
	bus := config.Bus{Name: s.cfg.Name, Kind: config.Serial, Address: s.cfg.Address, Framing: s.cfg.Framing, Mode: s.cfg.Mode, RS485: s.cfg.RS485}
	wait, told := reopenFirst, ""
	for ctx.Err() == nil {
		s.beat.Works()
		port, err := line.OpenPort(bus, s.log)
		if err == nil {
			s.log.Info("modbus server listens", "address", s.cfg.Name, "mode", s.cfg.Mode.String(), "points", s.m.Load().len())
			wait, told = reopenFirst, ""
			s.beat.Waits() // for requests
			err = s.modbus.ServeSerial(ctx, port, s.cfg.Framing, nil, s.cfg.Mode.CharTime())
		}
		if err != nil && err.Error() != told {
			told = err.Error()
			s.log.Warn("serial port not open", "address", s.cfg.Address, "err", err)
		}
		s.beat.Rests(wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, reopenLast)
	}
}

// Overdue returns for how long the server has been owing its next step: to wait
// for the next client or datagram, to open its port, or to answer a read. What
// other requests wait for is another part's.
func (s *Server) Overdue() time.Duration { return max(s.beat.Overdue(), s.modbus.Overdue()) }

// Stats is what a server saw.
type Stats struct {
	modbus.ServerStats
	ByClient []modbus.ClientStats // by name
	Unmapped []Unmapped
	More     uint64 // requests for what is not in the map beyond those
}

// Stats returns the counts. It is safe to call at any time.
func (s *Server) Stats() Stats {
	st := Stats{ServerStats: s.modbus.Stats(), ByClient: s.modbus.Clients()}
	st.Unmapped, st.More = s.m.Load().Unmapped()
	return st
}

// quickListener makes the connections of clients cheap to use.
type quickListener struct {
	net.Listener
	beat *health.Beat
}

// Accept implements net.Listener.
func (l quickListener) Accept() (net.Conn, error) {
	l.beat.Waits()
	c, err := l.Listener.Accept()
	l.beat.Works()
	if err != nil {
		return nil, err
	}
	if t, ok := c.(*net.TCPConn); ok {
		// Half-open connections of hosts that are gone are found by keep-alive. One
		// that cannot be set so is gone already.
		_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3})
	}
	return quick.Conn(c), nil
}

// datagrams notes when the next one is waited for.
type datagrams struct {
	net.PacketConn
	beat *health.Beat
}

// ReadFrom implements net.PacketConn.
func (d datagrams) ReadFrom(p []byte) (int, net.Addr, error) {
	d.beat.Waits()
	defer d.beat.Works()
	return d.PacketConn.ReadFrom(p)
}
