package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/line"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
	"fieldgate/internal/probe"
)

func cmdModbus(ctx context.Context, a *app, args []string) error {
	f := newFlags("modbus", "COMMAND URL [ARGUMENT...]", `
Speaks Modbus directly to a device, without a configuration or a gateway.

  fieldgate modbus read tcp://10.0.0.10 holding 0 4
  fieldgate modbus scan units "rtu:///dev/ttyUSB0?mode=9600-8N1"

URL names the wire:

  tcp://HOST:PORT                           Modbus TCP; the port is 502 by default
  rtu:///dev/ttyUSB0?mode=9600-8N1          a serial line, RTU; 19200-8E1 by default
  ascii:///dev/ttyUSB0?mode=9600-7E1        a serial line, ASCII
  rtu+tcp://HOST:PORT                       RTU frames through a serial server; ascii+tcp:// too
  udp://HOST:PORT                           Modbus TCP frames in UDP; rtu+udp:// and ascii+udp:// too`)
	return f.group(ctx, a, []command{
		{"read", "read values from a device", cmdModbusRead},
		{"write", "write values to a device and read them back", cmdModbusWrite},
		{"scan", "find the units on a bus, or the registers of a unit", cmdModbusScan},
		{"pdu", "send one raw request and explain the answer", cmdModbusPDU},
		{"decode", "show registers in every type and order, to find the right one", cmdModbusDecode},
		{"serve", "be a device, to try a PLC or a client with", cmdModbusServe},
	}, args)
}

// peer holds the options of everything that talks to a device.
type peer struct {
	unit    uint
	timeout time.Duration
	trace   bool
	search  bool // silence is no news: most of what is asked for is not there
}

func (p *peer) flags(f *flags) {
	f.UintVar(&p.unit, "unit", 1, "`ID` of the unit, 0-255")
	f.DurationVar(&p.timeout, "timeout", 0, "`TIME` to wait for an answer, such as 300ms (default 1s, or what the URL says)")
	f.BoolVar(&p.trace, "trace", false, "show the bytes on the wire, on standard error")
}

// wire is an open way to one unit.
type wire struct {
	unit probe.Unit
	bus  config.Bus
	stop func() // closes the wire and waits for its end
}

// open checks the options and starts the wire that url names. The wire is
// opened in the background; the first request waits for it.
func (p *peer) open(ctx context.Context, a *app, url string) (*wire, error) {
	if p.unit > 255 {
		return nil, usagef("--unit %d is outside 0-255", p.unit)
	}
	if p.timeout < 0 {
		return nil, usagef("--timeout %s is not above 0", p.timeout)
	}
	bus, err := line.ParseURL(url)
	if err != nil {
		return nil, usagef("%w", err)
	}
	if p.timeout > 0 {
		bus.Timeout = p.timeout
	}
	l := line.New(bus, slog.New(slog.DiscardHandler))
	if p.search {
		l.KeepSilent()
	}
	if p.trace {
		l.SetTrace(func(dir byte, b []byte, at time.Time) {
			fmt.Fprintf(a.stderr, "%s %c % x\n", at.Format("15:04:05.000"), dir, b)
		})
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { // ends when stop cancels ctx
		defer close(done)
		l.Run(ctx) // its errors are told to the requests
	}()
	stop := func() {
		cancel()
		<-done
	}
	return &wire{probe.Unit{Endpoint: l, ID: modbus.UnitID(p.unit)}, bus, stop}, nil
}

// failed gives the error of a request its place, a way on and its exit code.
// Other errors stay as they are.
func (w *wire) failed(err error) error {
	var request *probe.Error
	if !errors.As(err, &request) {
		return err
	}
	err = fmt.Errorf("%s: %w", w.bus.Address, err)
	if errors.Is(err, modbus.IllegalDataAddress) {
		err = fmt.Errorf("%w; \"fieldgate modbus scan regs\" finds the addresses that exist", err)
	}
	switch {
	case probe.Unanswered(err):
		return noPeer(err)
	case errors.Is(err, modbus.ErrInvalidRequest):
		return badConfig(err)
	}
	return err
}

// layout holds the options that say how values lie in registers.
type layout struct {
	typ, order, scale, offset, decimals, bit string
	low                                      bool
	base                                     uint
}

func (l *layout) flags(f *flags) {
	f.StringVar(&l.typ, "type", "", "`TYPE` of the values: uint16 int16 float32 string(8) … (default uint16; bool for bits)")
	f.StringVar(&l.order, "order", "ABCD", "byte `ORDER`: ABCD, DCBA, CDAB (words swapped) or BADC")
	f.StringVar(&l.scale, "scale", "", "value = raw × `SCALE` + offset")
	f.StringVar(&l.offset, "offset", "", "value = raw × scale + `OFFSET`")
	f.StringVar(&l.decimals, "decimals", "", "round to `N` places")
	f.StringVar(&l.bit, "bit", "", "one bit `N` (0-15) of each register")
	f.BoolVar(&l.low, "low", false, "int8 and uint8: the low byte of the register, not the high one")
	f.UintVar(&l.base, "base", 0, "the number of the first register in \"holding `N`\": 0 or 1")
}

// point makes a point at an address.
func (l *layout) point(t modbus.Table, addr uint16) (p point.Point, err error) {
	p = point.Point{Table: t, Address: addr, LowByte: l.low}
	if l.order != "" {
		if p.Order, err = point.ParseOrder(l.order); err != nil {
			return p, usagef("--order %w", err)
		}
	}
	switch {
	case l.typ != "":
		if p.Type, p.Length, p.Layout, err = point.ParseType(l.typ); err != nil {
			return p, usagef("--type %w", err)
		}
	case t.Bits() || l.bit != "":
		p.Type = point.Bool
	}
	if l.bit != "" {
		n, err := strconv.ParseUint(l.bit, 10, 8)
		if err != nil || n > 15 {
			return p, usagef("--bit %s is outside 0-15", l.bit)
		}
		p.FirstBit, p.BitCount = uint8(n), 1
	}
	for _, d := range []struct {
		name, text string
		to         *point.Decimal
	}{{"scale", l.scale, &p.Scale}, {"offset", l.offset, &p.Offset}} {
		if d.text != "" {
			if *d.to, err = point.ParseDecimal(d.text); err != nil {
				return p, usagef("--%s %w", d.name, err)
			}
		}
	}
	if l.scale != "" && p.Scale.IsZero() {
		return p, usagef("--scale 0 would make every value the same")
	}
	if l.decimals != "" {
		n, err := strconv.ParseInt(l.decimals, 10, 8)
		if err != nil {
			return p, usagef("--decimals %q is not a number of places", l.decimals)
		}
		p.Round, p.Decimals = true, int8(n)
	}
	if err := p.Validate(); err != nil {
		return p, badConfig(err)
	}
	return p, nil
}

// parseURL reads args, whose first argument is a URL.
func (f *flags) parseURL(a *app, args []string) (url string, rest []string, err error) {
	rest, err = f.parse(a, args)
	if err != nil {
		return "", nil, err
	}
	if len(rest) == 0 {
		return "", nil, usagef("a URL is missing, such as tcp://10.0.0.10:502 or rtu:///dev/ttyUSB0?mode=9600-8N1")
	}
	return rest[0], rest[1:], nil
}

// target reads args, whose first arguments are a URL and an address.
func (l *layout) target(f *flags, a *app, args []string) (url string, t modbus.Table, addr uint16, rest []string, err error) {
	url, rest, err = f.parseURL(a, args)
	if err != nil {
		return "", 0, 0, nil, err
	}
	t, addr, rest, err = l.takeAddress(rest)
	return url, t, addr, rest, err
}

// takeAddress reads an address off the front of args: "holding" "0", "holding
// 0" in one, or "40001".
func (l *layout) takeAddress(args []string) (t modbus.Table, addr uint16, rest []string, err error) {
	if l.base > 1 {
		return 0, 0, nil, usagef("--base %d is neither 0 nor 1", l.base)
	}
	if len(args) == 0 {
		return 0, 0, nil, usagef("an address is missing; write holding 0, input 0, coil 0, discrete 0 or a Modicon number such as 40001")
	}
	text, rest := args[0], args[1:]
	if _, err := point.ParseTable(text); err == nil && len(rest) > 0 {
		text, rest = text+" "+rest[0], rest[1:]
	}
	t, addr, err = point.ParseAddressBase(text, uint16(l.base))
	if err != nil {
		return 0, 0, nil, badConfig(err)
	}
	return t, addr, rest, nil
}

// takeCount reads the optional number of things from args; nothing may follow.
func takeCount(args []string, what string) (int, error) {
	switch len(args) {
	case 0:
		return 1, nil
	case 1:
		n, err := strconv.Atoi(args[0])
		if err != nil || n < 1 {
			return 0, usagef("%q is not a number of %s, 1 or more", args[0], what)
		}
		return n, nil
	}
	return 0, usagef("%q is one argument too many; after the address comes the number of %s", args[1], what)
}

// name returns the address as it is printed: "holding 0 (40001)".
func (l *layout) name(t modbus.Table, addr uint16) string {
	return fmt.Sprintf("%s %d (%s)", t, int(addr)+int(l.base), point.Modicon(t, addr))
}

// print prints one value, on one line: "holding 0 (40001)  17".
func (l *layout) print(w io.Writer, r probe.Reading, asJSON bool) error {
	at, modicon := fmt.Sprintf("%s %d", r.Point.Table, int(r.Point.Address)+int(l.base)), point.Modicon(r.Point.Table, r.Point.Address)
	if asJSON {
		return json.NewEncoder(w).Encode(struct {
			Address string      `json:"address"`
			Modicon string      `json:"modicon"`
			Value   point.Value `json:"value"`
			Raw     []uint16    `json:"raw"`
			Reason  string      `json:"reason,omitempty"` // why there is no value
		}{at, modicon, r.Value, r.Raw, r.Reason})
	}
	text := r.Value.String()
	if r.Reason != "" {
		text = "no value (" + r.Reason + ")"
	}
	_, err := fmt.Fprintf(w, "%s (%s)  %s\n", at, modicon, text)
	return err
}

func cmdModbusRead(ctx context.Context, a *app, args []string) error {
	f := newFlags("modbus read", "URL ADDRESS [COUNT] [OPTION...]", `
Reads COUNT values (1 by default) and prints one a line.

  fieldgate modbus read tcp://10.0.0.10 holding 0 4
  fieldgate modbus read tcp://10.0.0.10 30001 --type int16 --scale 0.1 --unit 2
  fieldgate modbus read "rtu:///dev/ttyUSB0?mode=9600-8N1" input 8 --type float32 --order CDAB
  fieldgate modbus read tcp://10.0.0.10 coil 0 16 --json

ADDRESS is "holding 0", "input 0x1F", "coil 3" or "discrete 9", numbered from
zero (or from --base), or a Modicon number: 40001 is holding 0. If the values
look wrong, "fieldgate modbus decode" shows them in every type and order.`)
	var p peer
	var l layout
	p.flags(f)
	l.flags(f)
	asJSON := f.Bool("json", false, "print a JSON object a value")
	url, t, addr, rest, err := l.target(f, a, args)
	if err != nil {
		return err
	}
	count, err := takeCount(rest, "values")
	if err != nil {
		return err
	}
	pt, err := l.point(t, addr)
	if err != nil {
		return err
	}
	if err := probe.Fits(pt, count); err != nil {
		return badConfig(err)
	}
	w, err := p.open(ctx, a, url)
	if err != nil {
		return err
	}
	defer w.stop()
	return w.failed(w.unit.Read(ctx, pt, count, func(r probe.Reading) error {
		return l.print(a.stdout, r, *asJSON)
	}))
}

func cmdModbusWrite(ctx context.Context, a *app, args []string) error {
	f := newFlags("modbus write", "URL ADDRESS VALUE... [OPTION...]", `
Writes values, one after the other from ADDRESS on, reads them back and prints
what the device then shows. A value that the type cannot hold is not sent.

  fieldgate modbus write tcp://10.0.0.10 holding 0 17
  fieldgate modbus write tcp://10.0.0.10 holding 8 42.5 --type float32
  fieldgate modbus write tcp://10.0.0.10 40011 -5.5 --type int16 --scale 0.1
  fieldgate modbus write tcp://10.0.0.10 coil 3 on
  fieldgate modbus write tcp://10.0.0.10 holding 4 on --bit 7

Function 5 or 6 writes one coil or register, 15 or 16 several. One bit or half
of a register is written by function 22, or, where the device lacks that, by
reading the register and writing it back.`)
	var p peer
	var l layout
	p.flags(f)
	l.flags(f)
	function := f.String("function", "auto", "function `CODE`: 5, 6, 15 or 16, if the device takes only that")
	noVerify := f.Bool("no-verify", false, "do not read back: for commands that reset themselves")
	asJSON := f.Bool("json", false, "print a JSON object a value")
	url, t, addr, values, err := l.target(f, a, args)
	if err != nil {
		return err
	}
	if len(values) == 0 {
		return usagef("a value is missing; write it after the address")
	}
	pt, err := l.point(t, addr)
	if err != nil {
		return err
	}
	code, known := map[string]modbus.FunctionCode{"auto": 0, "5": 5, "6": 6, "15": 15, "16": 16}[*function]
	if !known {
		return usagef("--function %s is not auto, 5, 6, 15 or 16", *function)
	}
	encoded, err := probe.Encode(pt, values, code)
	if errors.Is(err, probe.ErrPart) {
		return usagef("with --bit, int8 or uint8 one value is written at a time")
	}
	if err != nil {
		return badConfig(err)
	}
	w, err := p.open(ctx, a, url)
	if err != nil {
		return err
	}
	defer w.stop()
	result := w.unit.Write(ctx, encoded, !*noVerify)
	err = w.failed(result.Err)
	switch result.Outcome {
	case probe.Failed:
		return w.failed(otherFunction(result.Err))
	case probe.Unknown:
		if *noVerify {
			return err
		}
		return noPeer(fmt.Errorf("%w; it is unknown whether the device did it", err))
	case probe.Written:
		if err != nil {
			return fmt.Errorf("written, but %w", err)
		}
	case probe.Verified:
		if err != nil {
			fmt.Fprintf(a.stderr, "fieldgate: %v; but the device shows what was written\n", err)
		}
	}
	for _, r := range result.Shown {
		if err := l.print(a.stdout, r, *asJSON); err != nil {
			return err
		}
	}
	if result.Outcome == probe.Differs {
		return fmt.Errorf("%s: unit %d: %s: the device took %s but shows another value", w.bus.Address, w.unit.ID, l.name(t, addr), strings.Join(values, " "))
	}
	return nil
}

// otherFunction names a way on if a unit does not know the function of a write.
func otherFunction(err error) error {
	var request *probe.Error
	if errors.As(err, &request) && request.Function.Writes() && errors.Is(err, modbus.IllegalFunction) {
		return fmt.Errorf("%w; another --function may do", err)
	}
	return err
}
