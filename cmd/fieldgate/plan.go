package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"fieldgate/internal/gateway"
)

func cmdPlan(_ context.Context, a *app, args []string) error {
	f := newFlags("plan", "[-c FILE] [--json] [FILE]", `
Shows what a configuration comes to before it goes live: every request on each
bus with the milliseconds it takes there, the load of the bus, and the messages
and bytes that each broker gets in a day.

  fieldgate plan -c plant.yaml
  fieldgate plan plant.yaml --json

The requests are exactly those that "run" sends to devices that answer. Times
are exact for the characters on a serial line; a device is taken to think for
5 ms, a network to need 1 ms.`)
	f.StringVar(&a.config, "c", a.config, "configuration `FILE`")
	asJSON := f.Bool("json", false, "print one JSON object")
	if err := configArg(f, a, args); err != nil {
		return err
	}
	cfg, topics, err := loadConfig(a)
	if err != nil {
		return err
	}
	plan := gateway.MakePlan(cfg, topics)
	if *asJSON {
		return printJSON(a.stdout, plan)
	}
	return printPlan(a.stdout, plan)
}

func printPlan(w io.Writer, p gateway.Plan) error {
	for _, b := range p.Buses {
		fmt.Fprintf(w, "bus %s: %s, %s, %s\n", b.Name, b.Wire, count(b.Devices, "device", "devices"), count(b.Points, "point", "points"))
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, r := range b.Requests {
			span := fmt.Sprint(r.Address)
			if r.Count > 1 {
				span = fmt.Sprintf("%d-%d", r.Address, int(r.Address)+int(r.Count)-1)
			}
			fmt.Fprintf(t, "  %s\tunit %d\t%s %s\t%s\t%s\t%.1f ms\n", r.Device, r.Unit, r.Table, span,
				count(len(r.Points), "point", "points"), everyText(r.Every), r.MS)
		}
		if err := t.Flush(); err != nil {
			return err
		}
		for _, c := range b.Cycles {
			fmt.Fprintf(w, "  %s: %s, %.1f ms\n", everyText(c.Every), count(c.Requests, "request", "requests"), c.MS)
		}
		fmt.Fprintf(w, "  load %.1f %%%s\n\n", b.Load, loadNote(b))
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight) // one space stands inside of numbers
	fmt.Fprintln(t, "a day of\tmessages, least\tmost\tbytes, least\tmost\t")
	for _, o := range p.Outlets {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t\n", o.Name, thousands(o.Least.Messages), thousands(o.Most.Messages), bytesText(o.Least.Bytes), bytesText(o.Most.Bytes))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if p.Memory > 0 {
		fmt.Fprintf(w, "without the messages of %s in memory: nobody knows how often they are set\n", count(p.Memory, "point", "points"))
	}
	_, err := fmt.Fprintln(w, "least: nothing changes; most: everything changes with every poll; without TCP and TLS")
	return err
}

// loadNote says what a bus's load means.
func loadNote(b gateway.BusPlan) string {
	switch {
	case b.Load > 100:
		return ": more than the bus can carry, polls will be left out; poll less often, or spread the devices over more buses"
	case b.Load > 80:
		return ": little is left for writes and repeats"
	case b.Endless:
		return ", and what is left for points that are read as fast as the bus allows"
	}
	return ""
}

// thousands prints a number with a space at each third digit.
func thousands(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	var b strings.Builder
	for i, c := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteByte(' ')
		}
		b.WriteRune(c)
	}
	return b.String()
}

// bytesText prints a number of bytes with three digits.
func bytesText(v float64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	i := 0
	for v >= 1000 && i < len(units)-1 {
		v /= 1000
		i++
	}
	if i == 0 || v >= 100 {
		return fmt.Sprintf("%.0f %s", v, units[i])
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}
