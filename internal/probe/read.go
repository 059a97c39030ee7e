package probe

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Reading is one value as it was read.
type Reading struct {
	Point  point.Point // where it lies and how
	Raw    []uint16    // its registers, Point.Words() of them; bits are 0 or 1
	Value  point.Value
	Reason string // why there is no Value, "" when there is one
}

// decode makes a Reading of a point's registers, of which there are enough.
func decode(p point.Point, regs []uint16) Reading {
	v, err := p.Decode(regs)
	r := Reading{Point: p, Raw: regs, Value: v}
	if err != nil {
		r.Reason = strings.TrimPrefix(err.Error(), point.ErrInvalid.Error()+": ")
	}
	return r
}

// decodeAll makes Readings of the registers of values that follow one another,
// the first of them p.
func decodeAll(p point.Point, regs []uint16) []Reading {
	size := p.Words()
	all := make([]Reading, 0, len(regs)/size)
	for chunk := range slices.Chunk(regs, size) {
		all = append(all, decode(p, chunk))
		p.Address += uint16(size)
	}
	return all
}

// Fits returns an error if count values like p that follow one another, the
// first of them p, end past address 65535.
func Fits(p point.Point, count int) error {
	if count > (1<<16-int(p.Address))/p.Words() {
		return fmt.Errorf("%d values from %s on end past address 65535", count, point.FormatAddress(p.Table, p.Address))
	}
	return nil
}

// Read reads count values like p that follow one another, the first of them p,
// in as few requests as they fit into, and calls each for every one in order,
// as they come. It returns the first error: that of Fits, an Error, or that of
// each.
func (u Unit) Read(ctx context.Context, p point.Point, count int, each func(Reading) error) error {
	if err := Fits(p, count); err != nil {
		return err
	}
	size := p.Words()
	most := p.Table.MaxRead() / size
	for count > 0 {
		n := min(count, most)
		regs, err := u.read(ctx, p.Table, p.Address, n*size)
		if err != nil {
			return u.readFailed(p.Table, p.Address, n*size, err)
		}
		for _, r := range decodeAll(p, regs) {
			if err := each(r); err != nil {
				return err
			}
		}
		p.Address += uint16(n * size)
		count -= n
	}
	return nil
}

// ReadSome reads count registers from addr on, at most 125, or as many of the
// first ones as the device has. A device that lacks the first one too, or that
// does not answer, is an Error.
func (u Unit) ReadSome(ctx context.Context, t modbus.Table, addr uint16, count int) ([]uint16, error) {
	count = min(count, modbus.MaxReadRegisters, 1<<16-int(addr))
	for {
		regs, err := u.read(ctx, t, addr, count)
		switch {
		case err == nil:
			return regs, nil
		case count == 1 || !missing(err):
			return nil, u.readFailed(t, addr, count, err)
		}
		count--
	}
}
