package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
	"fieldgate/internal/probe"
)

func cmdModbusDecode(ctx context.Context, a *app, args []string) error {
	f := newFlags("modbus decode", "HEX... | URL ADDRESS [COUNT] [OPTION...]", `
Shows registers in every type and order, each with what to write for a point in
the configuration. Look for the line whose value you expect.

  fieldgate modbus decode 41CB 3333
  fieldgate modbus decode tcp://10.0.0.10 holding 0
  fieldgate modbus decode tcp://10.0.0.10 40101 8 --unit 3

HEX are the registers as the device sends them, four digits each. From a device
COUNT registers are read (4 by default, fewer where the device has fewer).
Types that hold no value there are left out: a float that is NaN, a date before
2010 or after 2040, text that cannot be printed.`)
	var p peer
	var l layout
	p.flags(f)
	f.UintVar(&l.base, "base", 0, "the number of the first register in \"holding `N`\": 0 or 1")
	asJSON := f.Bool("json", false, "print a JSON object a line")
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		return usagef("registers are missing: hexadecimal such as 41CB 3333, or a URL and an address")
	}
	var regs []uint16
	t, addr, at := modbus.HoldingRegisters, uint16(0), ""
	if strings.Contains(rest[0], "://") {
		url, rest := rest[0], rest[1:]
		if t, addr, rest, err = l.takeAddress(rest); err != nil {
			return err
		}
		if t.Bits() {
			return usagef("a %s is one bit; there is nothing to decode", t)
		}
		count := 4
		if len(rest) > 0 {
			if count, err = takeCount(rest, "registers"); err != nil {
				return err
			}
		}
		w, err := p.open(ctx, a, url)
		if err != nil {
			return err
		}
		defer w.stop()
		if regs, err = w.unit.ReadSome(ctx, t, addr, count); err != nil {
			return w.failed(err)
		}
		at = l.name(t, addr)
	} else {
		b, err := parseHex(strings.Join(rest, ""))
		if err != nil {
			return err
		}
		if len(b)%2 != 0 || len(b) > 2*modbus.MaxReadRegisters {
			return usagef("%d bytes are no registers: those have two bytes, four digits, each", len(b))
		}
		for ; len(b) > 0; b = b[2:] {
			regs = append(regs, binary.BigEndian.Uint16(b))
		}
	}
	where := "" // of the point; a Modicon number does not depend on the device's base
	switch {
	case at != "" && l.base == 0:
		where = point.FormatAddress(t, addr)
	case at != "":
		where = point.Modicon(t, addr)
	}
	decodings := probe.Decodings(t, addr, regs)
	if *asJSON {
		out := json.NewEncoder(a.stdout)
		for _, r := range decodings {
			if err := out.Encode(struct {
				Type  string      `json:"type"`
				Order string      `json:"order"`
				Value point.Value `json:"value"`
				Point string      `json:"point"`
			}{r.Point.TypeName(), r.Point.Order.String(), r.Value, pointYAML(r.Point, where)}); err != nil {
				return err
			}
		}
		return nil
	}
	if at != "" {
		fmt.Fprintf(a.stdout, "%s  %04x\n\n", at, regs)
	}
	out := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range decodings {
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\n", r.Point.TypeName(), r.Point.Order, r.Value, pointYAML(r.Point, where))
	}
	return out.Flush()
}

// pointYAML returns the settings of p as a YAML flow map, with the address at
// unless that is "".
func pointYAML(p point.Point, at string) string {
	var s strings.Builder
	s.WriteString("{ ")
	if at != "" {
		s.WriteString("at: " + at + ", ")
	}
	s.WriteString("type: " + p.TypeName())
	if p.BitCount == 1 {
		fmt.Fprintf(&s, ", bit: %d", p.FirstBit)
	}
	if p.LowByte {
		s.WriteString(", byte: low")
	}
	if p.Order != point.ABCD {
		s.WriteString(", order: " + p.Order.String())
	}
	if !p.Scale.IsZero() {
		s.WriteString(", scale: " + p.Scale.String())
	}
	if !p.Offset.IsZero() {
		s.WriteString(", offset: " + p.Offset.String())
	}
	if p.Round {
		fmt.Fprintf(&s, ", decimals: %d", p.Decimals)
	}
	s.WriteString(" }")
	return s.String()
}
