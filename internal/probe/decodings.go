package probe

import (
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Decodings returns every way to read regs, at most 125 registers of t from addr
// on, that gives a value, the shortest types first. It leaves out what is only
// noise: floats that are NaN, BCD with a digit above 9, dates before 2010 or
// after 2039, text that cannot be printed, and an order that shows the same as
// an earlier one.
func Decodings(t modbus.Table, addr uint16, regs []uint16) []Reading {
	if len(regs) == 0 {
		return nil
	}
	var all []Reading
	try := func(p point.Point, orders ...point.Order) {
		p.Table, p.Address = t, addr
		seen := map[point.Value]bool{}
		for _, p.Order = range orders {
			n := p.Words()
			if n > len(regs) {
				return
			}
			r := decode(p, regs[:n])
			if r.Reason != "" || seen[r.Value] || !likely(r) {
				continue
			}
			seen[r.Value] = true
			all = append(all, r)
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

// likely leaves out dates far from today and text that is not printable.
func likely(r Reading) bool {
	text := r.Value.String()
	switch r.Point.Type {
	case point.Datetime:
		return text >= "2010" && text < "2040"
	case point.String:
		return text != "" && printable([]byte(text)) == text
	}
	return true
}
