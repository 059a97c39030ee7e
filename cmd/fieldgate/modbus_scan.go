package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
	"fieldgate/internal/probe"
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
	p := peer{unit: 1, search: true}
	f.DurationVar(&p.timeout, "timeout", 300*time.Millisecond, "`TIME` to wait for an answer")
	f.BoolVar(&p.trace, "trace", false, "show the bytes on the wire, on standard error")
	pause := f.Duration("pause", 20*time.Millisecond, "`TIME` between two requests")
	probed := f.String("probe", "holding 0", "the `ADDRESS` that is read")
	asJSON := f.Bool("json", false, "print a JSON object a unit")
	url, rest, err := f.parseURL(a, args)
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
	t, addr, err := point.ParseAddress(*probed)
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
	var found []probe.Found
	search := probe.Search{First: modbus.UnitID(first), Last: modbus.UnitID(last), Table: t, Address: addr, Pause: *pause}
	err = search.Run(ctx, w.unit.Endpoint, func(u probe.Found) error {
		found = append(found, u)
		return printUnit(a.stdout, u, *asJSON)
	})
	switch {
	case err != nil:
		return w.failed(err)
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
		if len(u.Identity) > 0 {
			fmt.Fprintf(a.stdout, " # %s", identityText(u))
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

// identityText is who a unit says it is, in its own order.
func identityText(u probe.Found) string {
	texts := make([]string, len(u.Identity))
	for i, fact := range u.Identity {
		texts[i] = fact.Text
	}
	return strings.Join(texts, ", ")
}

func printUnit(w io.Writer, u probe.Found, asJSON bool) error {
	if asJSON {
		identity := make(map[string]string, len(u.Identity))
		for _, fact := range u.Identity {
			identity[fact.Name] = fact.Text
		}
		return json.NewEncoder(w).Encode(struct {
			Unit   modbus.UnitID     `json:"unit"`
			Answer string            `json:"answer"` // "ok" or the exception
			ID     map[string]string `json:"id,omitempty"`
		}{u.Unit, u.Answer, identity})
	}
	line := fmt.Sprintf("unit %d  %s", u.Unit, u.Answer)
	if len(u.Identity) > 0 {
		line += "  " + identityText(u)
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

// busYAML returns the bus as the configuration has it.
func busYAML(b config.Bus) string {
	var s strings.Builder
	fmt.Fprintf(&s, "buses:\n  bus1: { %s: %s", b.Kind, strconv.Quote(b.Address))
	if b.Kind == config.Serial {
		s.WriteString(", mode: " + b.Mode.String())
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
	p := peer{search: true}
	var l layout
	p.flags(f)
	l.flags(f)
	pause := f.Duration("pause", 20*time.Millisecond, "`TIME` between two requests")
	asJSON := f.Bool("json", false, "print a JSON object a value")
	onlyYAML := f.Bool("yaml", false, "print the configuration only")
	url, t, addr, rest, err := l.target(f, a, args)
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
	if count > 1<<16-int(addr) {
		return usagef("%d registers from %s on end past address 65535", count, point.FormatAddress(t, addr))
	}
	w, err := p.open(ctx, a, url)
	if err != nil {
		return err
	}
	defer w.stop()
	var found []probe.Reading
	err = w.unit.Scan(ctx, pt, count/pt.Words(), *pause, func(r probe.Reading) error {
		found = append(found, r)
		if *onlyYAML {
			return nil
		}
		return l.print(a.stdout, r, *asJSON)
	})
	switch {
	case err != nil:
		return w.failed(err)
	case len(found) == 0:
		return fmt.Errorf("unit %d has none of the registers %s+%d", w.unit.ID, point.FormatAddress(t, addr), count)
	case *asJSON:
		return nil
	case !*onlyYAML:
		fmt.Fprintln(a.stdout)
	}
	fmt.Fprintf(a.stdout, "%s\ndevices:\n  device1:\n    bus: bus1\n    unit: %d\n", busYAML(w.bus), w.unit.ID)
	if l.base != 0 {
		fmt.Fprintf(a.stdout, "    base: %d\n", l.base)
	}
	fmt.Fprintln(a.stdout, "    points:")
	for _, r := range found {
		shown := r.Value.String()
		switch {
		case r.Reason != "":
			shown = "no value"
		case r.Value.Kind() == point.KindText:
			shown = strconv.Quote(shown)
		}
		number := int(r.Point.Address) + int(l.base)
		fmt.Fprintf(a.stdout, "      %s_%d: %s # %s\n", t, number, pointYAML(r.Point, fmt.Sprintf("%s %d", t, number)), shown)
	}
	return nil
}
