package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/line"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
	"fieldgate/internal/regmap"
)

func cmdModbusServe(ctx context.Context, a *app, args []string) error {
	f := newFlags("modbus serve", "URL ADDRESS VALUE... [ADDRESS VALUE...] [OPTION...]", `
Serves values for a PLC or a Modbus client to be tried with, and prints what is
written to them, until Ctrl-C. No configuration and no gateway is needed.

  fieldgate modbus serve tcp://127.0.0.1:1502 holding 0 1 2 3
  fieldgate modbus serve tcp://0.0.0.0:502 input 0 25.4 -3 coil 0 1 0 1 --type int16 --scale 0.1
  fieldgate modbus serve "rtu:///dev/ttyUSB0?mode=9600-8N1" 40001 12.5 --type float32 --unit 7
  fieldgate modbus serve -c plant.yaml

Values stand one after the other from their address on; another table begins
another run. Everything that stands in a writable table may be written. With -c
the servers of a configuration are served, so that a PLC's program can be tried
before the plant is there: every point begins with 0.`)
	var l layout
	f.StringVar(&l.typ, "type", "", "`TYPE` of the values in registers: uint16 int16 float32 string(8) … (default uint16)")
	f.StringVar(&l.order, "order", "ABCD", "byte `ORDER`: ABCD, DCBA, CDAB (words swapped) or BADC")
	f.StringVar(&l.scale, "scale", "", "value = raw × `SCALE` + offset")
	f.StringVar(&l.offset, "offset", "", "value = raw × scale + `OFFSET`")
	f.UintVar(&l.base, "base", 0, "the number of the first register in \"holding `N`\": 0 or 1")
	unit := f.Uint("unit", 1, "`ID` of the unit, 1-255; 0 = any")
	file := f.String("c", "", "serve what the `FILE` says under servers")
	limit := f.Duration("for", 0, "end after `DURATION`, such as 10s")
	asJSON := f.Bool("json", false, "print a JSON object a line")
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	if *unit > 255 || *limit < 0 {
		return usagef("--unit is 0 to 255, --for is above 0; \"fieldgate modbus serve -h\" explains it")
	}
	var servers []config.Server
	values := make(map[point.ID]point.Value)
	switch {
	case *file != "" && len(rest) > 0:
		return usagef("%q is one argument too many: -c serves what the file says", rest[0])
	case *file != "":
		a.config = *file
		cfg, _, err := loadConfig(a)
		if err != nil {
			return err
		}
		if servers = cfg.Servers; len(servers) == 0 {
			return badConfig(fmt.Errorf("%s: there are no servers: in it", *file))
		}
	case len(rest) == 0:
		return usagef("a URL is missing; \"fieldgate modbus serve -h\" explains it")
	default:
		s, err := l.served(rest[0], rest[1:], values)
		if err != nil {
			return err
		}
		s.Unit = modbus.UnitID(*unit)
		servers = []config.Server{s}
	}
	memory := regmap.NewMemory(servers)
	for id, v := range values {
		memory.Set(id, v)
	}
	out := served{w: a.stdout, asJSON: *asJSON}
	memory.OnWrite = out.write
	if *limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *limit)
		defer cancel()
	}
	return serveMaps(ctx, a, servers, memory, &out)
}

// served makes a server of the arguments; values takes what its points begin with.
func (l *layout) served(url string, args []string, values map[point.ID]point.Value) (config.Server, error) {
	bus, err := line.ParseListenURL(url)
	if err != nil {
		return config.Server{}, usagef("%w", err)
	}
	s := config.Server{
		Name: url, Kind: bus.Kind, Address: bus.Address, Framing: bus.Framing, Mode: bus.Mode, RS485: bus.RS485,
		Unit: 1, MaxClients: 32, Idle: time.Minute, Writes: true,
	}
	taken := make(map[string]bool)
	for len(args) > 0 {
		t, addr, rest, err := l.takeAddress(args)
		if err != nil {
			return s, err
		}
		if len(rest) == 0 {
			return s, usagef("a value is missing; write it after the address")
		}
		args = rest
		for next := int(addr); len(args) > 0; args = args[1:] {
			if _, err := point.ParseTable(args[0]); err == nil {
				break // another run
			}
			of := *l
			if t.Bits() {
				of.typ, of.scale, of.offset = "", "", "" // those are of the registers
			}
			if next > 65535 {
				return s, badConfig(fmt.Errorf("%s: the values go on past %s", args[0], point.FormatAddress(t, 65535)))
			}
			p, err := of.point(t, uint16(next))
			if err != nil {
				return s, err
			}
			p.ID = point.ID(point.FormatAddress(t, uint16(next)))
			v := p.Parse(args[0])
			if _, err := p.Encode(v); err != nil {
				return s, badConfig(fmt.Errorf("%s: %w", p.ID, err))
			}
			for i := range p.Words() {
				word := point.FormatAddress(t, uint16(next+i))
				if taken[word] {
					return s, badConfig(fmt.Errorf("%s is given twice", word))
				}
				taken[word] = true
			}
			values[p.ID] = v
			s.Map = append(s.Map, config.Entry{Point: p, Writable: t.Writable()})
			next += p.Words()
		}
	}
	if len(s.Map) == 0 {
		return s, usagef("an address is missing; write holding 0 17, for example")
	}
	return s, nil
}

// serveMaps serves until ctx ends.
func serveMaps(ctx context.Context, a *app, servers []config.Server, memory *regmap.Memory, out *served) error {
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	id := modbus.Identity{ServerID: []byte("Fieldgate " + programVersion()), Objects: []modbus.Object{
		{ID: 0, Value: []byte("Fieldgate")}, {ID: 1, Value: []byte("fieldgate")}, {ID: 2, Value: []byte(programVersion())},
	}}
	all := make([]*regmap.Server, 0, len(servers))
	for _, c := range servers {
		s, err := regmap.Listen(c, regmap.New(c, memory.Image(), memory.Gate(), id, log), log)
		if err != nil {
			for _, s := range all {
				err = errors.Join(err, s.Close())
			}
			return err
		}
		all = append(all, s)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var serving sync.WaitGroup
	failed := make(chan error, len(all))
	for i, s := range all {
		serving.Go(func() { // ends with ctx
			if err := s.Run(ctx); err != nil {
				failed <- err
				cancel()
			}
		})
		out.serving(servers[i], s)
	}
	serving.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return out.err
	}
}

// served prints what happens. Its methods may be called by several goroutines.
type served struct {
	mu     sync.Mutex
	w      io.Writer
	asJSON bool
	err    error // of w
}

// line prints what json.Marshal, or as it the caller, has made.
func (o *served) line(text []byte, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		_, err = fmt.Fprintf(o.w, "%s\n", text)
	}
	if o.err == nil {
		o.err = err
	}
}

func (o *served) serving(c config.Server, s *regmap.Server) {
	at := c.Address
	if a := s.Addr(); a != nil {
		at = a.String()
	}
	scheme := c.Kind.String()
	switch {
	case c.Kind == config.Serial:
		scheme = c.Framing.String()
		at += "?mode=" + c.Mode.String()
	case c.Framing != modbus.FramingTCP:
		scheme = c.Framing.String() + "+" + scheme
	}
	url := scheme + "://" + at
	text := fmt.Sprintf("serving %s  unit %d, %d values", url, c.Unit, len(c.Map))
	if len(c.Map) > 0 {
		p := c.Map[0].Point
		text += fmt.Sprintf("\ntry:  fieldgate modbus read '%s' --unit %d %s --type '%s'", url, max(c.Unit, 1), point.FormatAddress(p.Table, p.Address), p.TypeName())
	}
	if !o.asJSON {
		o.line([]byte(text), nil)
		return
	}
	o.line(json.Marshal(struct {
		URL    string        `json:"url"`
		Unit   modbus.UnitID `json:"unit"`
		Values int           `json:"values"`
	}{url, c.Unit, len(c.Map)}))
}

func (o *served) write(by string, w regmap.Write) {
	if !o.asJSON {
		o.line(fmt.Appendf(nil, "%s  %s  by %s", w.ID, w.Value, by), nil)
		return
	}
	o.line(json.Marshal(struct {
		Time  string      `json:"timestamp"`
		Point point.ID    `json:"point"`
		Value point.Value `json:"value"`
		By    string      `json:"by"`
	}{point.Timestamp(time.Now()), w.ID, w.Value, by}))
}
