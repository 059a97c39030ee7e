package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

func cmdModbusScan(ctx context.Context, a *app, args []string) error {
	f := newFlags("modbus scan", "units|regs URL ...", `
Finds what is there, at a pace that leaves the bus usable for others.

  fieldgate modbus scan units URL        the unit ids that answer, and who they are
  fieldgate modbus scan regs URL ADDRESS COUNT
                                         the registers that a unit has`)
	if len(args) > 0 {
		list := []command{{"units", "", cmdModbusScanUnits}, {"regs", "", cmdModbusScanRegs}}
		if !strings.HasPrefix(args[0], "-") {
			return dispatch(ctx, a, "fieldgate modbus scan", list, args)
		}
	}
	if _, err := f.parse(a, args); err != nil {
		return err
	}
	return usagef("scan what? write \"scan units URL\" or \"scan regs URL ADDRESS COUNT\"")
}

// pace waits between two requests of a scan.
func pace(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// unitFound is one unit that answered a scan.
type unitFound struct {
	Unit   int               `json:"unit"`
	Answer string            `json:"answer"` // to the probe: "ok" or the exception
	ID     map[string]string `json:"id,omitempty"`
	id     []string          // the same in the device's order, for people
}

func cmdModbusScanUnits(ctx context.Context, a *app, args []string) error {
	f := newFlags("modbus scan units", "URL [FIRST-LAST] [OPTION...]", `
Asks every unit id (1-247 by default) for one register. Who answers, an
exception included, is there, and is then asked who it is (functions 43/14 and
17). Prints the units, then a start for the configuration.

  fieldgate modbus scan units "rtu:///dev/ttyUSB0?mode=9600-8N1"
  fieldgate modbus scan units rtu:///dev/ttyUSB0 1-32 --timeout 100ms
  fieldgate modbus scan units tcp://10.0.0.10 1-10 --probe "input 0"

An id that nobody has costs one --timeout. On a serial line a wrong baud rate or
parity looks like an empty bus.`)
	p := peer{unit: 1}
	f.DurationVar(&p.timeout, "timeout", 300*time.Millisecond, "`TIME` to wait for an answer")
	f.BoolVar(&p.trace, "trace", false, "show the bytes on the wire, on standard error")
	pause := f.Duration("pause", 20*time.Millisecond, "`TIME` between two requests")
	probe := f.String("probe", "holding 0", "the `ADDRESS` that is read")
	asJSON := f.Bool("json", false, "print a JSON object a unit")
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	url, rest, err := takeURL(rest)
	if err != nil {
		return err
	}
	first, last := 1, 247
	if len(rest) > 0 {
		if first, last, err = parseUnits(rest[0]); err != nil {
			return err
		}
	}
	if len(rest) > 1 {
		return usagef("%q is one argument too many", rest[1])
	}
	t, addr, err := point.ParseAddress(*probe)
	if err != nil {
		return usagef("--probe %w", err)
	}
	w, err := p.open(ctx, a, url)
	if err != nil {
		return err
	}
	defer w.stop()
	n := last - first + 1
	fmt.Fprintf(a.stderr, "asking %d units for %s: %s at most\n", n, point.FormatAddress(t, addr),
		(time.Duration(n)*(p.timeout+*pause) + time.Second).Truncate(time.Second))
	var found []unitFound
	for unit := first; unit <= last; unit++ {
		if unit > first {
			if err := pace(ctx, *pause); err != nil {
				return err
			}
		}
		w.unit = modbus.UnitID(unit)
		_, err := modbus.ReadRegisters(ctx, w, w.unit, t, addr, 1)
		u := unitFound{Unit: unit, Answer: "ok"}
		var refused modbus.Exception
		switch {
		case errors.Is(err, modbus.ErrNotConnected), ctx.Err() != nil:
			return w.failed(err, "read %s", point.FormatAddress(t, addr))
		case errors.Is(err, modbus.ErrBadResponse):
			u.Answer = err.Error() // someone is there, or two with one id
		case err != nil && unanswered(err):
			continue
		case errors.As(err, &refused):
			u.Answer = refused.Error()
		case err != nil:
			return w.failed(err, "read %s", point.FormatAddress(t, addr))
		}
		if u.Answer == "ok" || refused != 0 {
			if err := u.identify(ctx, w, *pause); err != nil {
				return err
			}
		}
		found = append(found, u)
		if err := u.print(a.stdout, *asJSON); err != nil {
			return err
		}
	}
	switch {
	case len(found) == 0:
		return noPeer(fmt.Errorf("no unit of %d-%d answered at %s", first, last, url))
	case *asJSON:
		return nil
	case len(found) == n && n > 8 && w.bus.Framing == modbus.FramingTCP:
		fmt.Fprintln(a.stderr, "every unit answered: this is probably one device that does not look at the unit id")
		found = found[:1]
	}
	fmt.Fprintf(a.stdout, "\n%s\ndevices:\n", busYAML(w.bus))
	for _, u := range found {
		fmt.Fprintf(a.stdout, "  unit%d: { bus: bus1, unit: %d, points: {} }", u.Unit, u.Unit)
		if len(u.id) > 0 {
			fmt.Fprintf(a.stdout, " # %s", strings.Join(u.id, ", "))
		}
		fmt.Fprintln(a.stdout)
	}
	return nil
}

// parseUnits reads "1-32" or "7".
func parseUnits(s string) (first, last int, err error) {
	from, to, several := strings.Cut(s, "-")
	if !several {
		to = from
	}
	first, err1 := strconv.Atoi(from)
	last, err2 := strconv.Atoi(to)
	if err1 != nil || err2 != nil || first < 1 || last > 255 || first > last {
		return 0, 0, usagef("%q is no range of unit ids; write 1-32, within 1-255", s)
	}
	return first, last, nil
}

// identify asks the unit who it is. Not every device knows.
func (u *unitFound) identify(ctx context.Context, w *wire, pause time.Duration) error {
	u.ID = map[string]string{}
	add := func(name, text string) {
		if text != "" {
			u.ID[name] = text
			u.id = append(u.id, text)
		}
	}
	if err := pace(ctx, pause); err != nil {
		return err
	}
	objects, err := modbus.ReadDeviceID(ctx, w, w.unit, modbus.BasicID)
	for _, o := range objects {
		add(o.Name(), objectText(o))
	}
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	if err := pace(ctx, pause); err != nil {
		return err
	}
	if resp, err := w.Do(ctx, w.unit, modbus.ServerIDRequest()); err == nil {
		add("server id", printable(resp[2:]))
	}
	return ctx.Err()
}

func (u *unitFound) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(u)
	}
	line := fmt.Sprintf("unit %d  %s", u.Unit, u.Answer)
	if len(u.id) > 0 {
		line += "  " + strings.Join(u.id, ", ")
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

// busYAML returns the bus as the configuration has it.
func busYAML(b config.Bus) string {
	var s strings.Builder
	fmt.Fprintf(&s, "buses:\n  bus1: { %s: %s", b.Kind, strconv.Quote(b.Address))
	if b.Kind == config.Serial {
		fmt.Fprintf(&s, ", mode: %d-%d%c%d", b.Mode.Baud, b.Mode.DataBits, b.Mode.Parity, b.Mode.StopBits)
	}
	if usual := b.Kind != config.Serial; usual != (b.Framing == modbus.FramingTCP) || b.Framing == modbus.FramingASCII {
		fmt.Fprintf(&s, ", framing: %s", b.Framing)
	}
	s.WriteString(" }")
	return s.String()
}

func cmdModbusScanRegs(ctx context.Context, a *app, args []string) error {
	f := newFlags("modbus scan regs", "URL ADDRESS COUNT [OPTION...]", `
Finds out which of COUNT registers (or bits) from ADDRESS on a unit has, prints
those with their values, then a device for the configuration.

  fieldgate modbus scan regs tcp://10.0.0.10 holding 0 200
  fieldgate modbus scan regs tcp://10.0.0.10 30001 100 --unit 3 --type int16
  fieldgate modbus scan regs tcp://10.0.0.10 holding 0 200 --yaml > device.yaml

With a type of several registers COUNT still counts registers; they are then
asked for in whole values.`)
	var p peer
	var l layout
	p.flags(f)
	l.flags(f)
	pause := f.Duration("pause", 20*time.Millisecond, "`TIME` between two requests")
	asJSON := f.Bool("json", false, "print a JSON object a value")
	onlyYAML := f.Bool("yaml", false, "print the configuration only")
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	url, rest, err := takeURL(rest)
	if err != nil {
		return err
	}
	t, addr, rest, err := l.takeAddress(rest)
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		return usagef("the number of registers is missing; write it after the address")
	}
	count, err := takeCount(rest, "registers")
	if err != nil {
		return err
	}
	pt, err := l.point(t, addr)
	if err != nil {
		return err
	}
	if count < pt.Words() {
		return usagef("%d registers are less than one %s, which has %d", count, pt.TypeName(), pt.Words())
	}
	if int(addr)+count > 1<<16 {
		return usagef("%d registers from %s on end past address 65535", count, point.FormatAddress(t, addr))
	}
	w, err := p.open(ctx, a, url)
	if err != nil {
		return err
	}
	defer w.stop()
	var found []point.Point
	var values []reading
	err = w.scan(ctx, pt, count/pt.Words(), *pause, func(p point.Point, regs []uint16) error {
		r, err := l.read(p, regs)
		if err != nil {
			return err
		}
		found, values = append(found, p), append(values, r)
		if *onlyYAML {
			return nil
		}
		return r.print(a.stdout, *asJSON)
	})
	switch {
	case err != nil:
		return err
	case len(found) == 0:
		return fmt.Errorf("unit %d has none of the registers %s+%d", w.unit, point.FormatAddress(t, addr), count)
	case *asJSON:
		return nil
	case !*onlyYAML:
		fmt.Fprintln(a.stdout)
	}
	fmt.Fprintf(a.stdout, "%s\ndevices:\n  device1:\n    bus: bus1\n    unit: %d\n", busYAML(w.bus), w.unit)
	if l.base != 0 {
		fmt.Fprintf(a.stdout, "    base: %d\n", l.base)
	}
	fmt.Fprintln(a.stdout, "    points:")
	for i, p := range found {
		shown := values[i].Value.String()
		switch {
		case values[i].Reason != "":
			shown = "no value"
		case values[i].Value.Kind() == point.KindText:
			shown = strconv.Quote(shown)
		}
		number := int(p.Address) + int(l.base)
		fmt.Fprintf(a.stdout, "      %s_%d: %s # %s\n", p.Table, number, pointYAML(p, fmt.Sprintf("%s %d", p.Table, number)), shown)
	}
	return nil
}

// scan reads count values like p that follow one another and calls each for
// those that exist. It reads in blocks: twice as long after a success, half as
// long after a refusal, so that long gaps cost one request a value and whole
// areas a few.
func (w *wire) scan(ctx context.Context, p point.Point, count int, pause time.Duration, each func(point.Point, []uint16) error) error {
	const longest = 64 // values; a shorter step back than the largest read when it is refused
	size := p.Words()
	block, answered, silent := min(16, count), false, 0
	for asked := 0; count > 0; asked++ {
		if asked > 0 {
			if err := pace(ctx, pause); err != nil {
				return err
			}
		}
		block = max(1, min(block, longest, count, p.Table.MaxRead()/size))
		regs, err := modbus.ReadRegisters(ctx, w, w.unit, p.Table, p.Address, uint16(block*size))
		switch {
		case err == nil:
			answered, silent = true, 0
			for i := 0; i < block; i++ {
				if err := each(p, regs[i*size:(i+1)*size]); err != nil {
					return err
				}
				p.Address += uint16(size)
			}
			count -= block
			block *= 2
			continue
		case errors.Is(err, modbus.ErrNoResponse):
			// Some devices are silent about registers they lack. One that never
			// said anything is not there.
			if silent++; !answered && silent == 3 {
				return w.failed(err, "read %s+%d", point.FormatAddress(p.Table, p.Address), block*size)
			}
		case missing(err), errors.Is(err, modbus.ServerDeviceFailure):
			answered, silent = true, 0
		default:
			return w.failed(err, "read %s+%d", point.FormatAddress(p.Table, p.Address), block*size)
		}
		if block == 1 {
			p.Address += uint16(size)
			count--
		}
		block /= 2
	}
	return nil
}
