package test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"fieldgate/internal/audit"
	"fieldgate/internal/bus"
	"fieldgate/internal/command"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
	"fieldgate/internal/regmap"
)

// This file is what stories need of package gateway for values in memory and
// Modbus servers: what is written where, and by which gate.

// Write is that of command.Field.
func (s *story) Write(ctx context.Context, id point.ID, v point.Value) error {
	if s.virtual.Has(id) {
		return s.virtual.Write(ctx, id, v)
	}
	return s.buses.Write(ctx, id, v)
}

// Read is that of command.Field, for points that are all on a bus, or all in
// memory.
func (s *story) Read(ctx context.Context, ids ...point.ID) ([]point.Sample, error) {
	if s.virtual.Has(ids[0]) {
		return s.virtual.Read(ctx, ids...)
	}
	return s.buses.Read(ctx, ids...)
}

// serve runs the Modbus servers, until close is called.
func (s *story) serve(image *regmap.Image, buses []*bus.Bus, log *slog.Logger) (closeAll func()) {
	ctx, end := context.WithCancel(context.Background())
	var running sync.WaitGroup
	gate := regmap.Gate{
		Write: func(ctx context.Context, by string, writes []regmap.Write) error {
			o := command.Order{By: by, Via: "modbus"}
			for _, w := range writes {
				o.Writes = append(o.Writes, command.Write{Point: w.ID, Value: w.Value})
			}
			err := s.desk.Do(ctx, o).Err()
			if errors.Is(err, command.ErrRejected) {
				return fmt.Errorf("%w: %w", regmap.ErrRefused, err)
			}
			return err
		},
		Pause:  func(device, _ string, d time.Duration) error { return s.buses.Pause(device, d) },
		Paused: s.buses.Paused,
		Bus: func(name string) modbus.Endpoint {
			for _, b := range buses {
				if b.Name() == name {
					return b
				}
			}
			return nil
		},
		Record: func(_ context.Context, p regmap.Passage) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.records = append(s.records, recordText(audit.Record{
				Event: "passed", By: p.By, Via: "modbus", Point: fmt.Sprintf("%s unit %d", p.Bus, p.Unit), Value: fmt.Sprintf("% x", []byte(p.Request)),
			}))
			return nil
		},
	}
	for _, c := range s.cfg.Servers {
		server, err := regmap.Listen(c, regmap.New(c, image, gate, modbus.Identity{}, log), log)
		if err != nil {
			s.t.Fatal(err)
		}
		running.Go(func() { _ = server.Run(ctx) }) // ends with ctx
		if s.plc != nil {
			continue
		}
		if s.plc, err = net.Dial("tcp", server.Addr().String()); err != nil {
			s.t.Fatal(err)
		}
	}
	return func() {
		if s.plc != nil {
			s.plc.Close()
		}
		end()
		running.Wait()
	}
}

// ask sends what a PLC asks to our server: the unit id and a PDU, in hexadecimal
// digits.
func (s *story) ask(words []string) (failed string) {
	b, err := hex.DecodeString(strings.Join(words, ""))
	if err != nil || len(b) < 2 {
		s.t.Fatalf("%q is no unit and PDU in hexadecimal digits", words)
	}
	show := func(dir byte, pdu modbus.PDU) {
		text := fmt.Sprintf("plc%c %02x %s", dir, b[0], printPDU(dir, pdu))
		if note := noteOf(dir, 0, pdu, nil); dir == '<' && note != "" {
			text = fmt.Sprintf("%-36s %s", text, note)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.open != nil && len(s.open.lines) > 1 {
			s.endExchange()
		}
		s.wire = append(s.wire, text)
	}
	show('>', b[1:])
	if err := s.plc.SetDeadline(time.Now().Add(storyPatience)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.plc.Write(modbus.AppendTCP(nil, 1, modbus.UnitID(b[0]), b[1:])); err != nil {
		return err.Error()
	}
	buf := make([]byte, modbus.MaxTCP)
	n, err := s.plc.Read(buf)
	if err != nil {
		return err.Error()
	}
	_, _, pdu, err := modbus.DecodeTCP(buf[:n])
	if err != nil {
		return err.Error()
	}
	show('<', pdu)
	return ""
}
