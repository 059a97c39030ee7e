package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/gateway"
	"fieldgate/internal/point"
)

func cmdCheck(_ context.Context, a *app, args []string) error {
	f := newFlags("check", "[-c FILE] [-v] [--json] [FILE]", `
Reads the configuration as "run" does and says what is wrong, all of it at
once, a line each, with the place and what to write instead:

  $ fieldgate check -c plant.yaml
  plant.yaml:4:12: buses.line1.timout: is not a key of a bus; did you mean timeout?

Exit code 0: it can run; there may be warnings. 2: it cannot.`)
	f.StringVar(&a.config, "c", a.config, "configuration `FILE`")
	verbose := f.Bool("v", false, "print what was understood")
	asJSON := f.Bool("json", false, "print one JSON object")
	if err := configArg(f, a, args); err != nil {
		return err
	}
	cfg, topics, err := gateway.LoadLayer(a.config, gateway.Layer(dataPath("")))
	var faults config.Faults
	if err != nil && !errors.As(err, &faults) {
		return badConfig(err)
	}
	var warnings []config.Fault
	if cfg != nil {
		faults, warnings = gateway.Check(cfg, topics, time.Now())
	}
	if *asJSON {
		err = printCheckJSON(a.stdout, cfg, faults, warnings)
	} else {
		err = printCheck(a, cfg, faults, warnings, *verbose)
	}
	if err == nil && len(faults) > 0 {
		err = exitError{code: exitUsage}
	}
	return err
}

// configArg parses the options of a command that takes the configuration's
// file as its only argument, or by -c.
func configArg(f *flags, a *app, args []string) error {
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	switch len(rest) {
	case 0:
	case 1:
		a.config = rest[0]
	default:
		return usagef("%s takes one FILE; \"fieldgate %s -h\" explains it", f.name, f.name)
	}
	return nil
}

func printCheck(a *app, cfg *config.Config, faults config.Faults, warnings []config.Fault, verbose bool) error {
	for _, fault := range faults {
		fmt.Fprintln(a.stderr, fault.Error())
	}
	for _, w := range warnings {
		w.Text = "warning: " + w.Text
		fmt.Fprintln(a.stderr, w.Error())
	}
	if cfg == nil {
		return nil
	}
	if verbose {
		if err := printConfig(a.stdout, cfg); err != nil {
			return err
		}
	}
	if len(faults) > 0 {
		return nil
	}
	points := 0
	for _, d := range cfg.Devices {
		points += len(d.Points)
	}
	_, err := fmt.Fprintf(a.stdout, "%s: good: %s, %s, %s, %s%s\n", a.config,
		count(len(cfg.Buses), "bus", "buses"), count(len(cfg.Devices), "device", "devices"), count(points, "point", "points"),
		count(len(cfg.Uplinks), "uplink", "uplinks"), withBroker(cfg)+withServers(cfg))
	return err
}

func withBroker(cfg *config.Config) string {
	if cfg.Broker == nil {
		return ""
	}
	return ", the embedded broker"
}

func withServers(cfg *config.Config) string {
	if len(cfg.Servers) == 0 {
		return ""
	}
	return ", " + count(len(cfg.Servers), "modbus server", "modbus servers")
}

// count returns a number with its noun.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// printConfig prints what was understood, every address in both spellings.
func printConfig(w io.Writer, cfg *config.Config) error {
	fmt.Fprintf(w, "site %s\n", cfg.Site.ID)
	for _, b := range cfg.Buses {
		fmt.Fprintf(w, "\nbus %s: %s%s\n", b.Name, gateway.WireName(b), atOnceText(b.InFlight))
		for _, d := range cfg.Devices {
			if d.Bus != b.Name {
				continue
			}
			fmt.Fprintf(w, "  device %s: unit %d, timeout %s, retries %d\n", d.Name, d.Unit, config.FormatDuration(d.Timeout), d.Retries)
			t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			for i := range d.Points {
				printPoint(t, &d.Points[i])
			}
			if err := t.Flush(); err != nil {
				return err
			}
		}
	}
	if err := printVirtual(w, cfg.Devices); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for i, r := range cfg.Publish {
		fmt.Fprintf(w, "publish[%d]: %s on %s: %s\n", i, strings.Join(r.Points, " "), r.Topic, ruleText(r))
	}
	for _, u := range cfg.Uplinks {
		fmt.Fprintf(w, "uplink %s: %s as %s\n", u.Name, strings.Join(u.URLs, " or "), u.ClientID)
		for _, r := range u.Bridge {
			fmt.Fprintf(w, "  bridge: %s\n", bridgeText(r))
		}
	}
	if b := cfg.Broker; b != nil {
		for _, l := range b.Listen {
			fmt.Fprintf(w, "broker: %s://%s%s\n", l.Scheme, l.Address, l.Path)
		}
	}
	if err := printCommands(w, cfg.Commands); err != nil {
		return err
	}
	if err := printServers(w, cfg.Servers); err != nil {
		return err
	}
	fmt.Fprintf(w, "status: %s every %s\n", cfg.Status.Topic, config.FormatDuration(cfg.Status.Every))
	if cfg.Web.Listen != "" {
		fmt.Fprintf(w, "web: %s\n", cfg.Web.Listen)
	}
	_, err := fmt.Fprintln(w)
	return err
}

// bridgeText says what a bridge rule carries.
func bridgeText(r config.BridgeRule) string {
	arrow := "◀"
	switch {
	case r.In && r.Out:
		arrow = "◀▶"
	case r.Out:
		arrow = "▶"
	}
	text := fmt.Sprintf("local %s %s upstream %s, QoS %d at most", r.Local(), arrow, r.Remote(), r.QoS)
	if r.DropRetain {
		text += ", never retained"
	}
	if r.Fast {
		text += ", acknowledged before it is safe"
	}
	return text
}

// atOnceText says how many requests are on their way at once, if not one.
func atOnceText(inFlight int) string {
	switch inFlight {
	case 1:
		return ""
	case config.InFlightAuto:
		return ", in_flight auto"
	}
	return fmt.Sprintf(", in_flight %d", inFlight)
}

// ruleText says in which form, when and whither a rule publishes.
func ruleText(r config.Rule) string {
	form := map[config.Payload]string{config.JSON: "json", config.Raw: "raw", config.Full: "full", config.Batch: "batch"}[r.Payload]
	for _, f := range r.Fields {
		form += " +" + string(f)
	}
	parts := []string{form}
	switch when := r.When; {
	case r.Every > 0:
		parts = append(parts, "every "+config.FormatDuration(r.Every))
	case when.Each:
		parts = append(parts, "each poll")
	default:
		change := "on any change"
		if !when.AnyChange {
			change = "on a change of more than " + when.Band.String()
			if when.Percent {
				change += " %"
			}
		}
		parts = append(parts, change)
		if when.AtLeast > 0 {
			parts = append(parts, "at least every "+config.FormatDuration(when.AtLeast))
		}
		if when.AtMost > 0 {
			parts = append(parts, "at most every "+config.FormatDuration(when.AtMost))
		}
	}
	parts = append(parts, fmt.Sprintf("QoS %d", r.QoS))
	if r.Retain {
		parts = append(parts, "retained")
	}
	if r.BadNull {
		parts = append(parts, "null for a failed read")
	}
	if r.To != nil {
		parts = append(parts, "to "+strings.Join(r.To, " "))
	}
	return strings.Join(parts, ", ")
}

func printPoint(w io.Writer, p *point.Point) {
	name := p.TypeName()
	switch {
	case p.BitCount == 1:
		name = fmt.Sprintf("bit %d", p.FirstBit)
	case p.BitCount > 1:
		name = fmt.Sprintf("bits %d-%d", p.FirstBit, p.FirstBit+p.BitCount-1)
	case p.Words() > 1 && p.Order != point.ABCD:
		name += " " + p.Order.String()
	}
	scale := scaleText(p)
	access := ""
	if p.Write != nil {
		access = ", may be written"
	}
	fmt.Fprintf(w, "    %s\t%s\t(%s)\t%s%s\t%s%s\n", p.ID, point.FormatAddress(p.Table, p.Address), point.Modicon(p.Table, p.Address),
		name, scale, everyText(gateway.IntervalName(p.Every)), access)
}

// scaleText says what is done to a raw value, and its unit.
func scaleText(p *point.Point) string {
	scale := ""
	if one := (point.Decimal{Mant: 1}); p.Scale != one && !p.Scale.IsZero() {
		scale += " × " + p.Scale.String()
	}
	if offset := p.Offset.String(); !p.Offset.IsZero() {
		if positive, negative := strings.CutPrefix(offset, "-"); negative {
			scale += " - " + positive
		} else {
			scale += " + " + offset
		}
	}
	if p.Unit != "" {
		scale += " " + p.Unit
	}
	return scale
}

// printVirtual prints the devices without a bus, and what sets their points.
func printVirtual(w io.Writer, devices []config.Device) error {
	heading := "\nin memory\n"
	for i := range devices {
		d := &devices[i]
		if !d.Virtual() {
			continue
		}
		fmt.Fprintf(w, "%s  device %s\n", heading, d.Name)
		heading = ""
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for j := range d.Points {
			p, s := &d.Points[j], d.Sources[j]
			var set []string
			if !s.Initial.IsZero() {
				set = append(set, "at first "+s.Initial.String())
			}
			if s.Topic != "" {
				from := fmt.Sprintf("from %q of %s", s.Topic, strings.Join(s.From, " "))
				if s.Stale > 0 {
					from += ", for " + config.FormatDuration(s.Stale)
				}
				set = append(set, from)
			}
			if s.Keep {
				set = append(set, "kept")
			}
			if p.Write != nil {
				set = append(set, "may be written")
			}
			fmt.Fprintf(t, "    %s\t%s%s\t%s\n", p.ID, p.TypeName(), scaleText(p), strings.Join(set, ", "))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// everyText says how often: every 1s, once, never, as fast as possible.
func everyText(interval string) string {
	switch interval {
	case "once", "never":
		return interval
	case "0s":
		return "as fast as possible"
	}
	return "every " + interval
}

// checkResult is what check --json prints.
type checkResult struct {
	OK       bool        `json:"ok"`
	Faults   []jsonFault `json:"faults"`
	Warnings []jsonFault `json:"warnings"`
	Buses    int         `json:"buses,omitempty"`
	Devices  int         `json:"devices,omitempty"`
	Points   int         `json:"points,omitempty"`
	Uplinks  int         `json:"uplinks,omitempty"`
	Servers  int         `json:"servers,omitempty"`
}

type jsonFault struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Path   string `json:"path,omitempty"`
	Text   string `json:"text"`
}

func printCheckJSON(w io.Writer, cfg *config.Config, faults, warnings []config.Fault) error {
	list := func(faults []config.Fault) []jsonFault {
		out := make([]jsonFault, len(faults))
		for i, f := range faults {
			out[i] = jsonFault{f.File, f.Line, f.Col, f.Path, f.Text}
		}
		return out
	}
	r := checkResult{OK: len(faults) == 0, Faults: list(faults), Warnings: list(warnings)}
	if cfg != nil {
		r.Buses, r.Devices, r.Uplinks, r.Servers = len(cfg.Buses), len(cfg.Devices), len(cfg.Uplinks), len(cfg.Servers)
		for _, d := range cfg.Devices {
			r.Points += len(d.Points)
		}
	}
	return printJSON(w, r)
}

// printJSON prints a value on one line.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
