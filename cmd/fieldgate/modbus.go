package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/line"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// modbusCommands are the words after "fieldgate modbus".
func modbusCommands() []command {
	return []command{
		{"read", "read values from a device", cmdModbusRead},
		{"write", "write values to a device and read them back", cmdModbusWrite},
		{"scan", "find the units on a bus, or the registers of a unit", cmdModbusScan},
		{"pdu", "send one raw request and explain the answer", cmdModbusPDU},
		{"decode", "show registers in every type and order, to find the right one", cmdModbusDecode},
	}
}

func cmdModbus(ctx context.Context, a *app, args []string) error {
	f := newFlags("modbus", "COMMAND URL [ARGUMENT...]", `
Speaks Modbus directly to a device, without a configuration or a gateway.

  fieldgate modbus read tcp://10.0.0.10 holding 0 4
  fieldgate modbus scan units "rtu:///dev/ttyUSB0?mode=9600-8N1"

URL names the wire:

  tcp://HOST:PORT                           Modbus TCP; the port is 502 by default
  rtu:///dev/ttyUSB0?mode=9600-8N1          a serial line, RTU; 19200-8E1 by default
  ascii:///dev/ttyUSB0?mode=9600-7E1        a serial line, ASCII
  rtu+tcp://HOST:PORT                       RTU frames through a serial server
  udp://HOST:PORT                           Modbus TCP frames in UDP`)
	f.details = func(w io.Writer) {
		fmt.Fprintln(w, "Commands:")
		for _, c := range modbusCommands() {
			fmt.Fprintf(w, "  %-7s %s\n", c.name, c.brief)
		}
		fmt.Fprint(w, "\n\"fieldgate modbus COMMAND -h\" explains a command by example.\n")
	}
	args, err := f.parseLeading(a, args)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		f.print(a.stderr)
		return exitError{code: exitUsage}
	}
	return dispatch(ctx, a, "fieldgate modbus", modbusCommands(), args)
}

// peer holds the options of everything that talks to a device.
type peer struct {
	unit    uint
	timeout time.Duration
	trace   bool
}

func (p *peer) flags(f *flags) {
	f.UintVar(&p.unit, "unit", 1, "`ID` of the unit, 0-255")
	f.DurationVar(&p.timeout, "timeout", 0, "`TIME` to wait for an answer, such as 300ms (default 1s, or what the URL says)")
	f.BoolVar(&p.trace, "trace", false, "show the bytes on the wire, on standard error")
}

// wire is an open way to one unit.
type wire struct {
	*line.Line
	bus  config.Bus
	unit modbus.UnitID
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
	w := &wire{Line: line.New(bus, slog.New(slog.DiscardHandler)), bus: bus, unit: modbus.UnitID(p.unit)}
	if p.trace {
		w.SetTrace(func(dir byte, b []byte, at time.Time) {
			fmt.Fprintf(a.stderr, "%s %c % x\n", at.Format("15:04:05.000"), dir, b)
		})
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { // ends when stop cancels ctx
		defer close(done)
		w.Run(ctx) // its errors are told to the requests
	}()
	w.stop = func() {
		cancel()
		<-done
	}
	return w, nil
}

// failed gives an error of a request its place and its exit code.
func (w *wire) failed(err error, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	var refused modbus.Exception
	if errors.As(err, &refused) && refused == modbus.IllegalDataAddress {
		err = fmt.Errorf("%w; \"fieldgate modbus scan regs\" finds the addresses that exist", err)
	}
	err = fmt.Errorf("%s: unit %d: %s: %w", w.bus.Address, w.unit, text, err)
	switch {
	case unanswered(err):
		return noPeer(err)
	case errors.Is(err, modbus.ErrInvalidRequest):
		return badConfig(err)
	}
	return err
}

// unanswered reports whether err means that the device itself gave no answer.
func unanswered(err error) bool {
	var refused modbus.Exception
	if errors.As(err, &refused) {
		return refused == modbus.GatewayPathUnavailable || refused == modbus.GatewayTargetNoResponse
	}
	return errors.Is(err, modbus.ErrNoResponse) || errors.Is(err, modbus.ErrNotConnected) || errors.Is(err, modbus.ErrBadResponse)
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

// reading is one value as it was read.
type reading struct {
	Address string      `json:"address"`
	Modicon string      `json:"modicon"`
	Value   point.Value `json:"value"`
	Raw     []uint16    `json:"raw"`
	Reason  string      `json:"reason,omitempty"` // why there is no value
}

// read makes a reading of registers.
func (l *layout) read(p point.Point, regs []uint16) (reading, error) {
	r := reading{
		Address: fmt.Sprintf("%s %d", p.Table, int(p.Address)+int(l.base)),
		Modicon: point.Modicon(p.Table, p.Address),
		Raw:     regs,
	}
	v, err := p.Decode(regs)
	if err != nil && !errors.Is(err, point.ErrInvalid) {
		return r, err
	}
	if r.Value = v; err != nil {
		r.Reason = strings.TrimPrefix(err.Error(), point.ErrInvalid.Error()+": ")
	}
	return r, nil
}

// print prints one line: "holding 0 (40001)  17".
func (r reading) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	text := r.Value.String()
	if r.Reason != "" {
		text = "no value (" + r.Reason + ")"
	}
	_, err := fmt.Fprintf(w, "%s (%s)  %s\n", r.Address, r.Modicon, text)
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
	count, err := takeCount(rest, "values")
	if err != nil {
		return err
	}
	pt, err := l.point(t, addr)
	if err != nil {
		return err
	}
	w, err := p.open(ctx, a, url)
	if err != nil {
		return err
	}
	defer w.stop()
	return w.readValues(ctx, pt, count, func(p point.Point, regs []uint16) error {
		r, err := l.read(p, regs)
		if err != nil {
			return err
		}
		return r.print(a.stdout, *asJSON)
	})
}

// takeURL takes the URL off the front of args.
func takeURL(args []string) (url string, rest []string, err error) {
	if len(args) == 0 {
		return "", nil, usagef("a URL is missing, such as tcp://10.0.0.10:502 or rtu:///dev/ttyUSB0?mode=9600-8N1")
	}
	return args[0], args[1:], nil
}

// readValues reads count values like p that follow one another, in as few
// requests as they fit into, and calls each for every one.
func (w *wire) readValues(ctx context.Context, p point.Point, count int, each func(point.Point, []uint16) error) error {
	size := p.Words()
	if end := int(p.Address) + count*size; end > 1<<16 {
		return usagef("%d values from %s on end past address 65535", count, point.FormatAddress(p.Table, p.Address))
	}
	most := p.Table.MaxRead() / size
	for count > 0 {
		n := min(count, most)
		regs, err := modbus.ReadRegisters(ctx, w, w.unit, p.Table, p.Address, uint16(n*size))
		if err != nil {
			return w.failed(err, "read %s+%d", point.FormatAddress(p.Table, p.Address), n*size)
		}
		for chunk := range slices.Chunk(regs, size) {
			if err := each(p, chunk); err != nil {
				return err
			}
			p.Address += uint16(size)
		}
		count -= n
	}
	return nil
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
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	url, rest, err := takeURL(rest)
	if err != nil {
		return err
	}
	t, addr, values, err := l.takeAddress(rest)
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
	job, err := newWriteJob(pt, values, *function)
	if err != nil {
		return err
	}
	w, err := p.open(ctx, a, url)
	if err != nil {
		return err
	}
	defer w.stop()
	if err := job.send(ctx, w); err != nil {
		// Whether the device did it can be seen.
		if unanswered(err) && !*noVerify && !errors.Is(err, modbus.ErrNotConnected) {
			if shown, readErr := job.readBack(ctx, w); readErr == nil && job.same(shown) {
				fmt.Fprintf(a.stderr, "fieldgate: %v; but the device shows what was written\n", err)
				return job.print(a.stdout, &l, shown, *asJSON)
			}
			return noPeer(fmt.Errorf("%w; it is unknown whether the device did it", err))
		}
		return err
	}
	broadcast := w.unit == modbus.Broadcast && w.bus.Framing != modbus.FramingTCP
	if *noVerify || broadcast {
		return job.print(a.stdout, &l, job.regs, *asJSON)
	}
	shown, err := job.readBack(ctx, w)
	if err != nil {
		return fmt.Errorf("written, but %w", err)
	}
	if err := job.print(a.stdout, &l, shown, *asJSON); err != nil {
		return err
	}
	if !job.same(shown) {
		return fmt.Errorf("%s: unit %d: %s: the device took %s but shows another value", w.bus.Address, w.unit, l.name(t, addr), strings.Join(values, " "))
	}
	return nil
}

// writeJob is the values of one "modbus write", ready for the wire.
type writeJob struct {
	pt       point.Point
	regs     []uint16
	function modbus.FunctionCode
}

// newWriteJob encodes values and chooses the function.
func newWriteJob(pt point.Point, values []string, function string) (*writeJob, error) {
	j := &writeJob{pt: pt}
	for _, text := range values {
		regs, err := pt.Encode(pt.Parse(text))
		if err != nil {
			return nil, badConfig(err)
		}
		j.regs = append(j.regs, regs...)
	}
	several := len(j.regs) > 1
	switch function {
	case "auto":
		switch {
		case pt.Table == modbus.Coils && several:
			j.function = modbus.WriteMultipleCoils
		case pt.Table == modbus.Coils:
			j.function = modbus.WriteSingleCoil
		case several:
			j.function = modbus.WriteMultipleRegisters
		default:
			j.function = modbus.WriteSingleRegister
		}
	case "5", "6", "15", "16":
		n, _ := strconv.Atoi(function)
		j.function = modbus.FunctionCode(n)
	default:
		return nil, usagef("--function %s is not auto, 5, 6, 15 or 16", function)
	}
	pt.Write = &point.Write{Function: j.function}
	if err := pt.Validate(); err != nil {
		return nil, badConfig(err)
	}
	single := j.function == modbus.WriteSingleCoil || j.function == modbus.WriteSingleRegister
	switch {
	case single && several:
		return nil, usagef("function %d writes one value, not %d", j.function, len(j.regs))
	case j.masked() && several:
		return nil, usagef("with --bit, int8 or uint8 one value is written at a time")
	case len(j.regs) > pt.Table.MaxWrite():
		return nil, usagef("one request writes %d at most, not %d", pt.Table.MaxWrite(), len(j.regs))
	case int(pt.Address)+len(j.regs) > 1<<16:
		return nil, usagef("%d from %s on end past address 65535", len(j.regs), point.FormatAddress(pt.Table, pt.Address))
	}
	return j, nil
}

// masked reports whether only a part of a register is written.
func (j *writeJob) masked() bool { return j.pt.EncodeMask() != 0xFFFF }

// send writes the values.
func (j *writeJob) send(ctx context.Context, w *wire) error {
	addr, mask := j.pt.Address, j.pt.EncodeMask()
	if j.masked() {
		err := modbus.MaskWrite(ctx, w, w.unit, addr, ^mask, j.regs[0])
		if !errors.Is(err, modbus.IllegalFunction) {
			return j.failed(w, err)
		}
		old, err := modbus.ReadRegisters(ctx, w, w.unit, j.pt.Table, addr, 1)
		if err != nil {
			return w.failed(err, "read %s", point.FormatAddress(j.pt.Table, addr))
		}
		return j.failed(w, j.sendRegisters(ctx, w, []uint16{old[0]&^mask | j.regs[0]}))
	}
	return j.failed(w, j.sendRegisters(ctx, w, j.regs))
}

func (j *writeJob) sendRegisters(ctx context.Context, w *wire, regs []uint16) error {
	addr := j.pt.Address
	switch j.function {
	case modbus.WriteSingleCoil:
		return modbus.WriteCoil(ctx, w, w.unit, addr, regs[0] != 0)
	case modbus.WriteMultipleCoils:
		on := make([]bool, len(regs))
		for i, r := range regs {
			on[i] = r != 0
		}
		return modbus.WriteCoils(ctx, w, w.unit, addr, on)
	case modbus.WriteSingleRegister:
		return modbus.WriteRegister(ctx, w, w.unit, addr, regs[0])
	}
	return modbus.WriteRegisters(ctx, w, w.unit, addr, regs)
}

func (j *writeJob) failed(w *wire, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, modbus.IllegalFunction) {
		err = fmt.Errorf("%w; another --function may do", err)
	}
	return w.failed(err, "write %s+%d", point.FormatAddress(j.pt.Table, j.pt.Address), len(j.regs))
}

// readBack reads what the device shows after the write.
func (j *writeJob) readBack(ctx context.Context, w *wire) ([]uint16, error) {
	var shown []uint16
	err := w.readValues(ctx, j.pt, len(j.regs)/j.pt.Words(), func(_ point.Point, regs []uint16) error {
		shown = append(shown, regs...)
		return nil
	})
	return shown, err
}

// same reports whether shown is what was written.
func (j *writeJob) same(shown []uint16) bool {
	mask := j.pt.EncodeMask()
	return slices.EqualFunc(j.regs, shown, func(a, b uint16) bool { return a&mask == b&mask })
}

func (j *writeJob) print(out io.Writer, l *layout, regs []uint16, asJSON bool) error {
	p := j.pt
	for chunk := range slices.Chunk(regs, p.Words()) {
		r, err := l.read(p, chunk)
		if err != nil {
			return err
		}
		if err := r.print(out, asJSON); err != nil {
			return err
		}
		p.Address += uint16(p.Words())
	}
	return nil
}
