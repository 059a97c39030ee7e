package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
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
		if regs, err = w.readSome(ctx, t, addr, count); err != nil {
			return err
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
	guesses := decodings(t, addr, regs)
	if *asJSON {
		out := json.NewEncoder(a.stdout)
		for _, g := range guesses {
			if err := out.Encode(struct {
				Type  string      `json:"type"`
				Order string      `json:"order"`
				Value point.Value `json:"value"`
				Point string      `json:"point"`
			}{g.p.TypeName(), g.p.Order.String(), g.v, pointYAML(g.p, where)}); err != nil {
				return err
			}
		}
		return nil
	}
	if at != "" {
		fmt.Fprintf(a.stdout, "%s  %04x\n\n", at, regs)
	}
	out := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, g := range guesses {
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\n", g.p.TypeName(), g.p.Order, g.v, pointYAML(g.p, where))
	}
	return out.Flush()
}

// readSome reads count registers, or as many of the first ones as the device
// has.
func (w *wire) readSome(ctx context.Context, t modbus.Table, addr uint16, count int) ([]uint16, error) {
	count = min(count, modbus.MaxReadRegisters, 1<<16-int(addr))
	for {
		regs, err := modbus.ReadRegisters(ctx, w, w.unit, t, addr, uint16(count))
		switch {
		case err == nil:
			return regs, nil
		case count == 1 || !missing(err):
			return nil, w.failed(err, "read %s+%d", point.FormatAddress(t, addr), count)
		}
		count--
	}
}

// missing reports whether a device refuses a read because it lacks some of the
// registers.
func missing(err error) bool {
	return errors.Is(err, modbus.IllegalDataAddress) || errors.Is(err, modbus.IllegalDataValue)
}

// guess is one way to read registers.
type guess struct {
	p point.Point
	v point.Value
}

// decodings returns every way to read regs that gives a value, the shortest
// types first.
func decodings(t modbus.Table, addr uint16, regs []uint16) []guess {
	var all []guess
	try := func(p point.Point, orders ...point.Order) {
		p.Table, p.Address = t, addr
		seen := map[point.Value]bool{}
		for _, p.Order = range orders {
			n := p.Words()
			if n > len(regs) {
				return
			}
			v, err := p.Decode(regs[:n])
			if err != nil || seen[v] || !likely(p, v) {
				continue
			}
			seen[v] = true
			all = append(all, guess{p, v})
		}
	}
	every := []point.Order{point.ABCD, point.DCBA, point.CDAB, point.BADC}
	for _, t := range []point.Type{point.Uint16, point.Int16, point.BCD16, point.Float16, point.Uint8, point.Int8} {
		try(point.Point{Type: t}, point.ABCD)
	}
	try(point.Point{Type: point.Uint8, LowByte: true}, point.ABCD)
	try(point.Point{Type: point.Int8, LowByte: true}, point.ABCD)
	for _, t := range []point.Type{point.Uint32, point.Int32, point.Float32, point.BCD32, point.Uint64, point.Int64, point.Float64} {
		try(point.Point{Type: t}, every...)
	}
	for l := point.DOS; l <= point.DT7; l++ {
		p := point.Point{Type: point.Datetime, Layout: l}
		if l <= point.DT2 { // one number, to which the order applies
			try(p, every...)
		} else {
			try(p, point.ABCD)
		}
	}
	try(point.Point{Type: point.String, Length: uint16(len(regs))}, point.ABCD, point.BADC)
	try(point.Point{Type: point.Bytes, Length: uint16(len(regs))}, point.ABCD)
	return all
}

// likely leaves out what is only noise: dates far from today and text that is
// not printable.
func likely(p point.Point, v point.Value) bool {
	text := v.String()
	switch p.Type {
	case point.Datetime:
		return text >= "2010" && text < "2040"
	case point.String:
		return text != "" && printable([]byte(text)) == text
	}
	return true
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
