package probe

import (
	"context"
	"errors"
	"time"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Search is a search for the units of a bus: every id from First to Last is
// asked for one register or bit. Who answers, an exception included, is there,
// and is then asked who it is.
type Search struct {
	First, Last modbus.UnitID
	Table       modbus.Table
	Address     uint16
	Pause       time.Duration // between two requests
}

// Found is a unit that answered a Search.
type Found struct {
	Unit     modbus.UnitID
	Answer   string // "ok", the exception, or what was wrong with the answer
	Identity []Fact // who it says it is; nil if it does not say
}

// Run searches behind ep and calls each for every unit found, as they come. It
// returns the first error: an Error where there is no wire, that of each, or
// ctx's. An id that nobody has costs as long as ep waits for an answer.
func (s Search) Run(ctx context.Context, ep modbus.Endpoint, each func(Found) error) error {
	for id := int(s.First); id <= int(s.Last); id++ { // an int, because a UnitID goes from 255 to 0
		if id > int(s.First) {
			if err := pause(ctx, s.Pause); err != nil {
				return err
			}
		}
		found, there, err := s.ask(ctx, Unit{ep, modbus.UnitID(id)})
		if err != nil {
			return err
		}
		if !there {
			continue
		}
		if err := each(found); err != nil {
			return err
		}
	}
	return nil
}

// ask looks whether a unit is there.
func (s Search) ask(ctx context.Context, u Unit) (found Found, there bool, err error) {
	found = Found{Unit: u.ID, Answer: "ok"}
	_, err = u.read(ctx, s.Table, s.Address, 1)
	var refused modbus.Exception
	switch {
	case errors.Is(err, modbus.ErrNotConnected), err != nil && ctx.Err() != nil:
		return found, false, s.failed(u, err)
	case errors.Is(err, modbus.ErrBadResponse):
		found.Answer = err.Error() // someone is there, or two with one id
		return found, true, nil
	case err != nil && Unanswered(err):
		return found, false, nil
	case errors.As(err, &refused):
		found.Answer = refused.Error()
	case err != nil:
		return found, false, s.failed(u, err)
	}
	found.Identity, err = u.Identify(ctx, s.Pause)
	return found, err == nil, err
}

func (s Search) failed(u Unit, err error) error {
	return &Error{u.ID, modbus.ReadRequest(s.Table, s.Address, 1).Function(), "read " + point.FormatAddress(s.Table, s.Address), err}
}

// Identify asks the unit who it is, by function 43/14 and, if it does not know
// that, 17, with a pause before each request. Not every device knows; that is no
// error, and leaves the facts nil. The error is ctx's.
func (u Unit) Identify(ctx context.Context, before time.Duration) ([]Fact, error) {
	var facts []Fact
	add := func(name, text string) {
		if text != "" {
			facts = append(facts, Fact{name, text})
		}
	}
	if err := pause(ctx, before); err != nil {
		return nil, err
	}
	objects, err := modbus.ReadDeviceID(ctx, u.Endpoint, u.ID, modbus.BasicID)
	for _, o := range objects {
		add(o.Name(), objectText(o))
	}
	if err == nil || ctx.Err() != nil {
		return facts, ctx.Err()
	}
	if err := pause(ctx, before); err != nil {
		return nil, err
	}
	if resp, err := modbus.Do(ctx, u.Endpoint, u.ID, modbus.ServerIDRequest()); err == nil {
		add("server id", printable(resp[2:]))
	}
	return facts, ctx.Err()
}

// Blocks of values that Scan asks for.
const (
	firstBlock   = 16
	longestBlock = 64 // a shorter step back than the largest read when it is refused
)

// mostSilent is how many requests may stay without an answer before the first
// one comes. Some devices are silent about registers they lack; one that never
// said anything is not there.
const mostSilent = 3

// Scan reads count values like p that follow one another, the first of them p,
// and calls each for those that the unit has, as they come. It reads in blocks:
// twice as long after a success, half as long after a refusal, so that long gaps
// cost one request a value and whole areas a few. Between two requests it waits
// for between. It returns the first error: that of Fits, an Error, that of each,
// or ctx's. That the unit has none of the values is no error.
func (u Unit) Scan(ctx context.Context, p point.Point, count int, between time.Duration, each func(Reading) error) error {
	if err := Fits(p, count); err != nil {
		return err
	}
	size := p.Words()
	block, answered, silent := firstBlock, false, 0
	for asked := 0; count > 0; asked++ {
		if asked > 0 {
			if err := pause(ctx, between); err != nil {
				return err
			}
		}
		block = max(1, min(block, longestBlock, count, p.Table.MaxRead()/size))
		regs, err := u.read(ctx, p.Table, p.Address, block*size)
		switch {
		case err == nil:
			answered, silent = true, 0
			for _, r := range decodeAll(p, regs) {
				if err := each(r); err != nil {
					return err
				}
			}
			p.Address += uint16(block * size)
			count -= block
			block *= 2
			continue
		case errors.Is(err, modbus.ErrNoResponse):
			if silent++; !answered && silent == mostSilent {
				return u.readFailed(p.Table, p.Address, block*size, err)
			}
		case missing(err), errors.Is(err, modbus.ServerDeviceFailure):
			answered, silent = true, 0
		default:
			return u.readFailed(p.Table, p.Address, block*size, err)
		}
		if block == 1 {
			p.Address += uint16(size)
			count--
		}
		block /= 2
	}
	return nil
}
