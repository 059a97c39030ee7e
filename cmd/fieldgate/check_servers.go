package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// printServers prints what each Modbus server shows where.
func printServers(w io.Writer, servers []config.Server) error {
	for _, s := range servers {
		unit := fmt.Sprintf("unit %d", s.Unit)
		if s.Unit == 0 {
			unit = "any unit"
		}
		fmt.Fprintf(w, "server %s: %s%s%s\n", s.Name, unit, serialText(s), writesText(s.Writes))
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for i := range s.Map {
			e := &s.Map[i]
			p := &e.Point
			fmt.Fprintf(t, "  %s (%s)\t%s\n", point.FormatAddress(p.Table, p.Address), point.Modicon(p.Table, p.Address), entryText(e, s.Writes))
		}
		if err := t.Flush(); err != nil {
			return err
		}
		for _, p := range s.Pass {
			units := fmt.Sprintf("unit %d", p.From)
			if p.From != p.To {
				units = fmt.Sprintf("units %d to %d", p.From, p.To)
			}
			fmt.Fprintf(w, "  %s: to bus %s%s\n", units, p.Bus, passText(s.PassWrites))
		}
	}
	return nil
}

func serialText(s config.Server) string {
	if s.Kind != config.Serial {
		return ""
	}
	return fmt.Sprintf(", %s %s", s.Framing, s.Mode)
}

func writesText(writes bool) string {
	if writes {
		return ", may be written"
	}
	return ", read only"
}

// entryText says what stands at a place of a map.
func entryText(e *config.Entry, writes bool) string {
	p := &e.Point
	switch e.Show {
	case config.ShowPause:
		return fmt.Sprintf("pause of %s, uint16", e.Device)
	case config.ShowStatus:
		return fmt.Sprintf("status of %s, %s", p.ID, p.TypeName())
	case config.ShowAge:
		return fmt.Sprintf("age of %s, %s", p.ID, p.TypeName())
	}
	text := fmt.Sprintf("%s, %s", p.ID, p.TypeName())
	if p.Ordered() && p.Order != point.ABCD {
		text += " " + point.OrderNames()[p.Order]
	}
	if !p.Scale.IsZero() && p.Scale != (point.Decimal{Mant: 1}) {
		text += ", scale " + p.Scale.String()
	}
	if !p.Offset.IsZero() {
		text += ", offset " + p.Offset.String()
	}
	if e.StaleAfter > 0 {
		text += ", stale after " + config.FormatDuration(e.StaleAfter)
	}
	switch e.Stale {
	case config.StaleLast:
		text += ": last"
	case config.StaleZero:
		text += ": zero"
	case config.StaleValue:
		text += fmt.Sprintf(": %#x", e.Pattern)
	}
	if writes && e.Writable {
		text += ", write"
	}
	return text
}

// passText says which writes go on to a bus.
func passText(w config.PassWrites) string {
	switch {
	case w.All:
		return ", writes too"
	case len(w.Spans) == 0:
		return ", reads only"
	}
	spans := make([]string, len(w.Spans))
	for i, s := range w.Spans {
		spans[i] = spanText(s.Table, s.From, s.To)
	}
	return ", writes to " + strings.Join(spans, ", ")
}

func spanText(t modbus.Table, from, to uint16) string {
	if from == to {
		return point.FormatAddress(t, from)
	}
	return fmt.Sprintf("%s-%d", point.FormatAddress(t, from), to)
}
