package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"fieldgate/internal/gateway"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/pipeline"
	"fieldgate/internal/point"
	"fieldgate/internal/uplink"
)

// demoMessage is one message that the embedded broker carried.
type demoMessage struct{ topic, payload string }

// demoTap hands messages to the view and drops what the view is too slow for.
func demoTap(to chan<- demoMessage) uplink.Handler {
	return func(m mqtt.Message) []<-chan struct{} {
		select {
		case to <- demoMessage{m.Topic, string(m.Payload)}:
		default:
		}
		return nil
	}
}

// view draws the demo: on a terminal a page that is redrawn, elsewhere lines.
type view struct {
	demo  *demo
	out   io.Writer
	begin time.Time

	last     map[point.ID]point.Sample
	samples  int
	messages int
	recent   []demoMessage // newest last
}

const (
	redraw = 500 * time.Millisecond
	recent = 6 // messages shown
)

func newView(d *demo, w io.Writer) *view {
	return &view{demo: d, out: w, begin: time.Now(), last: make(map[point.ID]point.Sample)}
}

func (v *view) run(ctx context.Context, feed *pipeline.Feed, messages <-chan demoMessage) error {
	_, _, page := terminal(v.out)
	if page {
		fmt.Fprint(v.out, "\x1b[?25l\x1b[2J") // no cursor, an empty page
		defer fmt.Fprint(v.out, "\x1b[?25h\n")
	} else {
		watch, write := v.demo.hints()
		fmt.Fprintf(v.out, "fieldgate demo: 5 simulated devices, broker on %s\nWatch it from another terminal: %s\nWrite a setpoint: %s\nThe configuration: %s\n",
			v.demo.broker, watch, write, v.demo.config)
	}
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	states := make(map[string]string)
	for {
		select {
		case <-ctx.Done():
			if !page {
				fmt.Fprintf(v.out, "%d samples, %d messages in %s\n", v.samples, v.messages, time.Since(v.begin).Round(time.Second))
			}
			return nil
		case b := <-feed.C():
			v.samples += len(b.Samples)
			for _, s := range b.Samples {
				v.last[s.ID] = s
			}
		case m := <-messages:
			v.messages++
			v.recent = append(v.recent, m)
			if len(v.recent) > recent {
				v.recent = v.recent[1:]
			}
			if page {
				continue
			}
			if _, err := fmt.Fprintf(v.out, "%s %s\n", m.topic, m.payload); err != nil {
				return err
			}
		case <-tick.C:
			if page {
				if _, err := v.out.Write(v.page()); err != nil {
					return err
				}
			} else {
				v.changes(states)
			}
		}
	}
}

// changes prints the devices whose state is another than before.
func (v *view) changes(states map[string]string) {
	for name, b := range v.demo.gateway.Status().Buses {
		for device, d := range b.Devices {
			if states[device] != d.State {
				states[device] = d.State
				fmt.Fprintln(v.out, strings.TrimSpace(fmt.Sprintf("# %s: %s is %s %s", name, device, d.State, fault(d))))
			}
		}
	}
}

// fault is what is wrong with a device now: an online one may remember a fault
// that is over.
func fault(d gateway.DeviceStatus) string {
	if d.State == "online" {
		return ""
	}
	return d.Error
}

// page draws the whole page, as much of it as the terminal has room for.
func (v *view) page() []byte {
	width, height, _ := terminal(v.out)
	var p bytes.Buffer
	line := func(format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		fmt.Fprintf(&p, "%s\x1b[K\n", cut(text, width))
	}
	s := v.demo.gateway.Status()
	up := time.Since(v.begin)
	line("fieldgate demo   up %s   %d samples (%.0f/s)   %d messages (%.0f/s)   Ctrl-C ends it",
		up.Round(time.Second), v.samples, float64(v.samples)/up.Seconds(), v.messages, float64(v.messages)/up.Seconds())
	watch, write := v.demo.hints()
	line("watch it:  %s", watch)
	line("write:     %s", write)
	line("config:    %s", v.demo.config)
	line("")
	line("%-9s %-9s %5s  %-9s %-8s %8s %8s  %s", "BUS", "", "LOAD", "DEVICE", "STATE", "ANSWER", "POLLS", "LAST ERROR")
	for _, name := range slices.Sorted(maps.Keys(s.Buses)) {
		b := s.Buses[name]
		link := "connected"
		if !b.Connected {
			link = "down"
		}
		first := fmt.Sprintf("%-9s %-9s %4.0f%%", name, link, b.Load)
		for _, device := range slices.Sorted(maps.Keys(b.Devices)) {
			d := b.Devices[device]
			line("%-25s  %-9s %-8s %6.1fms %8d  %s", first, device, d.State, d.Answer, d.Polls, fault(d))
			first = ""
		}
	}
	line("")
	line("%-22s %22s %-6s %-9s %s", "POINT", "VALUE", "", "QUALITY", "AGE")
	room := height - strings.Count(p.String(), "\n") - recent - 3
	for i, id := range v.demo.order {
		if i >= room && height > 0 {
			line("... %d more", len(v.demo.order)-i)
			break
		}
		sample, seen := v.last[id]
		if !seen {
			line("%-22s %22s", id, "-")
			continue
		}
		line("%-22s %22s %-6s %-9s %s", id, shown(sample.Value), v.demo.units[id], sample.Quality, since(sample.Time))
	}
	line("")
	line("MESSAGES")
	for _, m := range v.recent {
		line("%s %s", m.topic, m.payload)
	}
	return append([]byte("\x1b[H"), append(fit(p.Bytes(), height), "\x1b[J"...)...)
}

// shown is a value as JSON has it, but for the quotes: true rather than 1.
func shown(v point.Value) string {
	if b, ok := v.Bool(); ok {
		return strconv.FormatBool(b)
	}
	return v.String()
}

// fit keeps the first lines of a page, as many as the terminal has, and ends the
// last one without a line feed, which would make the terminal scroll.
func fit(page []byte, height int) []byte {
	lines := bytes.SplitAfter(bytes.TrimSuffix(page, []byte("\n")), []byte("\n"))
	if height > 0 && len(lines) > height {
		lines = lines[:height]
	}
	return bytes.TrimSuffix(bytes.Join(lines, nil), []byte("\n"))
}

// cut keeps the first columns of a line. Every character shown takes one.
func cut(s string, columns int) string {
	if columns <= 0 {
		return s
	}
	n := 0
	for i := range s {
		if n == columns {
			return s[:i]
		}
		n++
	}
	return s
}
