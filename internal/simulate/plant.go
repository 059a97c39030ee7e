package simulate

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
)

// DefaultInFlight is how many requests a TCP bus takes at once unless it says
// otherwise.
const DefaultInFlight = 16

// Bus is one serial line, TCP server or UDP socket, and the devices behind it.
type Bus struct {
	Name string
	Kind config.BusKind // Serial, TCP or UDP

	// Address is HOST:PORT to listen on; port 0 takes a free one. Of a Serial
	// bus it is the path of a symbolic link to the pseudo-terminal, "" for none.
	Address string
	Framing modbus.Framing
	Devices Devices // with different unit ids

	// Of a Serial bus.
	Mode          config.SerialMode // how slow it is; a zero Baud: as fast as the pseudo-terminal
	StrictSilence bool              // ignore requests that broke the silence of 3.5 characters
	Lump          int               // characters that become readable together; 0: 14, as of a usual UART
	Echo          bool              // the gateway hears itself, as with many two-wire adapters

	// Of a TCP bus.
	InFlight   int    // requests at once on one connection; 0: 16. RTU and ASCII take one
	Excess     Excess // what happens to more
	MaxClients int    // more connections are closed at once; 0: no limit

	log      *slog.Logger // set by Run
	mu       sync.Mutex
	addr     string // what a gateway opens
	listener net.Listener
	packets  net.PacketConn
	pty      pty
	counters struct {
		clients                                                         atomic.Int64
		requests, badFrames, silenceBroken, overruns, bytesIn, bytesOut atomic.Uint64
	}
}

// BusStats counts what a bus saw since it was opened.
type BusStats struct {
	Clients       int    // TCP connections now
	Requests      uint64 // whole ones, for any unit
	BadFrames     uint64 // wrong CRC, LRC or length, or broken off
	SilenceBroken uint64 // requests of a serial bus less than 3.5 characters after what was on the wire before
	Overruns      uint64 // bytes of a serial bus that nobody read in time
	BytesIn       uint64
	BytesOut      uint64
}

// Stats returns the counts. It is safe to call at any time.
func (b *Bus) Stats() BusStats {
	c := &b.counters
	return BusStats{
		Clients: int(c.clients.Load()), Requests: c.requests.Load(), BadFrames: c.badFrames.Load(),
		SilenceBroken: c.silenceBroken.Load(), Overruns: c.overruns.Load(),
		BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(),
	}
}

// Addr returns what a gateway opens, once the plant listens: HOST:PORT, or the
// path of the link, or of the pseudo-terminal where there is none; "" while a
// serial port is gone.
func (b *Bus) Addr() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.addr
}

// validate returns what makes no sense.
func (b *Bus) validate() error {
	units := map[modbus.UnitID]string{}
	for _, d := range b.Devices {
		if other, twice := units[d.Unit()]; twice {
			return fmt.Errorf("devices %s and %s both have unit id %d", other, d.Name(), d.Unit())
		}
		units[d.Unit()] = d.Name()
		if err := d.settings.Validate(); err != nil {
			return fmt.Errorf("device %s: %w", d.Name(), err)
		}
		for _, f := range d.settings.Faults {
			if f.Kind == WrongID && b.Framing != modbus.FramingTCP {
				return fmt.Errorf("device %s: fault %v: %v frames have no transaction id", d.Name(), f.Kind, b.Framing)
			}
		}
	}
	switch {
	case b.Kind != config.Serial && b.Kind != config.TCP && b.Kind != config.UDP:
		return fmt.Errorf("a bus is serial, tcp or udp, not %v", b.Kind)
	case b.Kind == config.Serial && b.Framing == modbus.FramingTCP:
		return errors.New("a serial bus needs the framing rtu or ascii")
	case b.Kind == config.Serial && b.Mode.Baud < 0 || b.Lump < 0 || b.InFlight < 0 || b.MaxClients < 0:
		return errors.New("numbers must not be negative")
	}
	return nil
}

// open makes the bus reachable.
func (b *Bus) open() (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.Kind {
	case config.TCP:
		if b.listener, err = net.Listen("tcp", b.Address); err != nil {
			return fmt.Errorf("simulate: bus %s: %w", b.Name, err)
		}
		b.addr = b.listener.Addr().String()
	case config.UDP:
		if b.packets, err = net.ListenPacket("udp", b.Address); err != nil {
			return fmt.Errorf("simulate: bus %s: %w", b.Name, err)
		}
		b.addr = b.packets.LocalAddr().String()
	case config.Serial:
		b.pty, err = b.plugLocked()
	}
	return err
}

// plug makes a new pseudo-terminal under the bus's link.
func (b *Bus) plug() (pty, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.plugLocked()
}

func (b *Bus) plugLocked() (pty, error) {
	p, err := openPTY()
	if err != nil {
		return pty{}, fmt.Errorf("simulate: bus %s: %w", b.Name, err)
	}
	b.addr = p.path
	if b.Address == "" {
		return p, nil
	}
	if err := linkTo(p.path, b.Address); err != nil {
		p.close()
		return pty{}, fmt.Errorf("simulate: bus %s: %w", b.Name, err)
	}
	b.addr = b.Address
	return p, nil
}

// unplug takes a pseudo-terminal away. The link goes first: the number of a
// closed one is soon somebody else's.
func (b *Bus) unplug(p pty) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addr = ""
	defer p.close()
	if b.Address == "" {
		return nil
	}
	if err := unlink(p.path, b.Address); err != nil {
		return fmt.Errorf("simulate: bus %s: %w", b.Name, err)
	}
	return nil
}

// shut closes what open opened and run has not taken over.
func (b *Bus) shut() {
	if b.listener != nil {
		b.listener.Close()
	}
	if b.packets != nil {
		b.packets.Close()
	}
	if b.pty.path != "" {
		_ = b.unplug(b.pty) // nobody could do anything about it
		b.pty = pty{}
	}
}

// run serves the bus until ctx ends.
func (b *Bus) run(ctx context.Context) error {
	switch b.Kind {
	case config.TCP:
		return b.serveTCP(ctx, b.listener)
	case config.UDP:
		return b.serveUDP(ctx, b.packets)
	}
	l := &serialLine{bus: b, pty: b.pty, plugged: true, lump: b.Lump}
	if l.lump == 0 {
		l.lump = fifo
	}
	if b.Mode.Baud > 0 {
		l.char = b.Mode.CharTime()
		if b.Framing == modbus.FramingRTU {
			l.silence = modbus.Silence(l.char)
		}
	}
	return l.run(ctx)
}

// trace logs bytes on the wire at level debug.
func (b *Bus) trace(what string, p []byte) {
	if b.log.Enabled(context.Background(), slog.LevelDebug) {
		b.log.Debug(what, "hex", hex.EncodeToString(p))
	}
}

// Plant is buses with devices. Make one with its fields, by Load or by Demo.
type Plant struct {
	Buses []*Bus
	Seed  uint64       // what Load seeded the devices with; printed at the start
	Log   *slog.Logger // nil: none

	open bool
}

// Listen opens all buses, so that Addr of each is known. Close or Run must
// follow.
func (p *Plant) Listen() error {
	for i, b := range p.Buses {
		err := b.validate()
		if err != nil {
			err = fmt.Errorf("simulate: bus %s: %w", b.Name, err)
		} else {
			err = b.open()
		}
		if err != nil {
			for _, earlier := range p.Buses[:i] {
				earlier.shut()
			}
			return err
		}
	}
	p.open = true
	return nil
}

// Run serves all buses until ctx ends; then it closes them and returns nil. It
// calls Listen unless that was done. The devices' clocks begin at 0 now. When
// one bus fails all end, and Run returns why. A plant runs once.
func (p *Plant) Run(ctx context.Context) error {
	if !p.open {
		if err := p.Listen(); err != nil {
			return err
		}
	}
	p.open = false // the buses close what they serve
	log := p.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if p.Seed != 0 {
		log.Info("simulated plant starts", "seed", p.Seed)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	now := time.Now()
	errs := make(chan error, len(p.Buses))
	for _, b := range p.Buses {
		for _, d := range b.Devices {
			d.restart(now)
		}
		b.log = log.With("bus", b.Name)
		go func() { errs <- b.run(ctx) }() // ends with ctx; waited for below
	}
	var all error
	for range p.Buses {
		if err := <-errs; err != nil {
			all = errors.Join(all, err)
			cancel()
		}
	}
	return all
}

// Close closes what Listen opened when Run is not to follow. After Run it does
// nothing.
func (p *Plant) Close() {
	if !p.open {
		return
	}
	for _, b := range p.Buses {
		b.shut()
	}
}

// Bus returns the bus of a name, or nil.
func (p *Plant) Bus(name string) *Bus {
	for _, b := range p.Buses {
		if b.Name == name {
			return b
		}
	}
	return nil
}

// Devices returns the devices of all buses.
func (p *Plant) Devices() Devices {
	var all Devices
	for _, b := range p.Buses {
		all = append(all, b.Devices...)
	}
	return all
}

// Device returns the device of a name, or nil.
func (p *Plant) Device(name string) *Device {
	for _, d := range p.Devices() {
		if d.Name() == name {
			return d
		}
	}
	return nil
}
