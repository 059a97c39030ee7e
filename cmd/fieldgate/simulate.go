package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
	"fieldgate/internal/simulate"
)

func cmdSimulate(ctx context.Context, a *app, args []string) error {
	f := newFlags("simulate", "FILE [OPTION...]", `
Made-up Modbus devices, on TCP, UDP and serial lines as slow as real ones: values
that move in waves, registers that can be written, and every fault on schedule.
Prints where each bus is, serves until Ctrl-C, then says what it saw.

  fieldgate simulate configs/simulate-plant.yaml
  fieldgate simulate plant.yaml --trace        the bytes on the wire
  fieldgate simulate plant.yaml --for 1m --json

A smallest FILE:

  buses:   { plc: { tcp: 127.0.0.1:1502 } }
  devices: { press: { bus: plc, points: { force: { at: 40001, type: float32, wave: sine, min: 0, max: 250 } } } }

Waves:  constant linear sine triangle square impulse parabola exponential random_walk count clock
Faults: silent mute late wrong_id wrong_unit exception crc partial split echo noise drop slow twice
configs/simulate-plant.yaml shows and explains them.`)
	limit := f.Duration("for", 0, "end after `DURATION`, such as 10s")
	asJSON := f.Bool("json", false, "print a JSON object a bus, at the start and at the end")
	trace := f.Bool("trace", false, "show the bytes on the wire, on standard error")
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return usagef("simulate takes one FILE; \"fieldgate simulate -h\" explains it")
	}
	if err := notNegative(*limit); err != nil {
		return err
	}
	plant, err := simulate.Load(rest[0])
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return exitError{exitUsage, err}
	}
	if fault := (config.Fault{}); errors.As(err, &fault) {
		fmt.Fprintln(a.stderr, err) // FILE:LINE:COL: …, one a line, as check prints them
		return exitError{code: exitUsage}
	}
	if err != nil {
		return badConfig(err)
	}
	level := slog.LevelInfo
	if *trace {
		level = slog.LevelDebug
	}
	plant.Log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
	if err := plant.Listen(); err != nil {
		return err
	}
	if *asJSON {
		err = plantJSON(a.stdout, plant, false)
	} else {
		err = plantText(a.stdout, plant)
	}
	if err != nil {
		plant.Close()
		return err
	}
	if *limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *limit)
		defer cancel()
	}
	if err := plant.Run(ctx); err != nil {
		return err
	}
	if *asJSON {
		return plantJSON(a.stdout, plant, true)
	}
	return plantSummary(a.stdout, plant)
}

// plantText says where each bus is and how to look at it.
func plantText(w io.Writer, plant *simulate.Plant) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, b := range plant.Buses {
		devices := make([]string, len(b.Devices))
		for i, d := range b.Devices {
			devices[i] = fmt.Sprintf("%s (%d)", d.Name(), d.Unit())
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", b.Name, busURL(b), strings.Join(devices, ", "))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, b := range plant.Buses {
		if len(b.Devices) == 0 || len(b.Devices[0].Points()) == 0 {
			continue
		}
		d, p := b.Devices[0], b.Devices[0].Points()[0]
		_, err := fmt.Fprintf(w, "try:  fieldgate modbus read '%s' --unit %d %s --type '%s'%s\n",
			busURL(b), d.Unit(), point.FormatAddress(p.Table, p.Address), p.TypeName(), layoutOptions(&p))
		return err
	}
	return nil
}

// layoutOptions are the options of the modbus commands for what a point has
// besides its type.
func layoutOptions(p *point.Point) (text string) {
	if p.Words() > 1 && p.Order != point.ABCD {
		text += " --order " + p.Order.String()
	}
	if one := (point.Decimal{Mant: 1}); p.Scale != one && !p.Scale.IsZero() {
		text += " --scale " + p.Scale.String()
	}
	if !p.Offset.IsZero() {
		text += " --offset " + p.Offset.String()
	}
	return text
}

// busURL is the URL that the modbus commands take for a bus.
func busURL(b *simulate.Bus) string {
	scheme := b.Kind.String()
	if b.Framing != modbus.FramingTCP {
		scheme = b.Framing.String() + "+" + scheme
	}
	if b.Kind == config.Serial {
		return b.Framing.String() + "://" + b.Addr() + "?mode=" + b.Mode.String()
	}
	return scheme + "://" + b.Addr()
}

// plantSummary says what each bus saw.
func plantSummary(w io.Writer, plant *simulate.Plant) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, b := range plant.Buses {
		s := b.Stats()
		fmt.Fprintf(t, "%s\t%s\t%s", b.Name, count(int(s.Requests), "request", "requests"), count(int(s.BadFrames), "bad frame", "bad frames"))
		if b.Kind == config.Serial {
			fmt.Fprintf(t, "\tsilence broken before %d", s.SilenceBroken)
		}
		fmt.Fprintln(t)
		for _, d := range b.Devices {
			fmt.Fprintf(t, "  %s\t%s", d.Name(), count(d.Requests(), "request", "requests"))
			if last, all := d.Writes(); all > 0 {
				l := last[len(last)-1]
				fmt.Fprintf(t, "\t%s, the last: %s = %v", count(all, "write", "writes"), point.FormatAddress(l.Table, l.Address), l.Values)
			}
			fmt.Fprintln(t)
		}
	}
	return t.Flush()
}

// plantJSON prints one object a bus: where it is, or with seen what it saw.
func plantJSON(w io.Writer, plant *simulate.Plant, seen bool) error {
	type device struct {
		Name     string        `json:"name"`
		Unit     modbus.UnitID `json:"unit"`
		Requests int           `json:"requests"`
		Writes   int           `json:"writes"`
	}
	type bus struct {
		Time          string   `json:"timestamp"`
		Bus           string   `json:"bus"`
		URL           string   `json:"url,omitempty"`
		Seed          uint64   `json:"seed,omitempty"`
		Requests      uint64   `json:"requests"`
		BadFrames     uint64   `json:"bad_frames"`
		SilenceBroken uint64   `json:"silence_broken"`
		BytesIn       uint64   `json:"bytes_in"`
		BytesOut      uint64   `json:"bytes_out"`
		Devices       []device `json:"devices"`
	}
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	for _, b := range plant.Buses {
		s := b.Stats()
		o := bus{
			Time: point.Timestamp(time.Now()), Bus: b.Name, Devices: []device{},
			Requests: s.Requests, BadFrames: s.BadFrames, SilenceBroken: s.SilenceBroken, BytesIn: s.BytesIn, BytesOut: s.BytesOut,
		}
		if !seen {
			o.URL, o.Seed = busURL(b), plant.Seed
		}
		for _, d := range b.Devices {
			_, writes := d.Writes()
			o.Devices = append(o.Devices, device{d.Name(), d.Unit(), d.Requests(), writes})
		}
		if err := out.Encode(o); err != nil {
			return err
		}
	}
	return nil
}
