package publish

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/pipeline"
	"fieldgate/internal/point"
)

var update = flag.Bool("update", false, "write the output into the page")

const page = "../../docs/topics-and-payloads.md"

// block is a fenced block of the page.
type block struct {
	info string
	text []string
	line int // of the first line of text, from 0
}

func blocks(lines []string) []block {
	var all []block
	var b *block
	for i, l := range lines {
		switch {
		case b == nil && strings.HasPrefix(l, "```"):
			b = &block{info: strings.TrimPrefix(l, "```"), line: i + 1}
		case b != nil && l == "```":
			all = append(all, *b)
			b = nil
		case b != nil:
			b.text = append(b.text, l)
		}
	}
	return all
}

// TestPage keeps docs/topics-and-payloads.md true. Its first yaml block is the
// plant; the block "readings" is what is read there; each further yaml block is
// a list of rules, and the block after it what these publish. -update writes
// the latter.
func TestPage(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	var plant, readings []string
	var rules *block
	examples := 0
	out := slices.Clone(lines)
	shift := 0
	for _, b := range blocks(lines) {
		switch {
		case b.info == "yaml" && plant == nil:
			plant = b.text
		case b.info == "yaml":
			rules = &b
		case b.info == "text" && readings == nil:
			readings = b.text
		case b.info == "text" && rules != nil:
			examples++
			got := published(t, plant, rules.text, readings)
			if !slices.Equal(got, b.text) && !*update {
				t.Errorf("%s:%d: the rules\n%s\npublish\n%s\nand the page says\n%s", page, b.line+1,
					strings.Join(rules.text, "\n"), strings.Join(got, "\n"), strings.Join(b.text, "\n"))
			}
			at := b.line + shift
			out = slices.Replace(out, at, at+len(b.text), got...)
			shift += len(got) - len(b.text)
			rules = nil
		}
	}
	if examples < 10 {
		t.Errorf("the page has %d examples with output; has its form changed?", examples)
	}
	if *update {
		if err := os.WriteFile(page, []byte(strings.Join(out, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// published returns what the rules publish of the readings: time, topic,
// payload; or what is wrong with them.
func published(t *testing.T, plant, rules, readings []string) (lines []string) {
	t.Helper()
	cfg, err := config.LoadBytes("fieldgate.yaml", []byte(strings.Join(slices.Concat(plant, rules, []string{""}), "\n")))
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(rules, "\n"))
	}
	if _, faults := Topics(cfg.Site, cfg.Publish, cfg.Devices); len(faults) > 0 {
		for _, f := range faults {
			lines = append(lines, f.Error())
		}
		return lines
	}
	synctest.Test(t, func(t *testing.T) {
		first := parseReading(t, readings[0])
		time.Sleep(time.Until(first.at.Truncate(time.Second)))
		w := &works{t: t, line: pipeline.New(), sink: &recorder{start: time.Now()}, log: new(strings.Builder), ended: make(chan error, 1)}
		sinks := make(map[string]mqtt.Sink)
		for _, u := range cfg.Uplinks {
			sinks[u.Name] = w.sink
		}
		if cfg.Broker != nil {
			for name := range sinks {
				sinks[name] = named{name, w.sink}
			}
			sinks[config.Local] = named{config.Local, w.sink}
		}
		begin := time.Now()
		w.run(cfg.Site, cfg.Publish, cfg.Devices, sinks, 16)
		for _, l := range readings {
			r := parseReading(t, l)
			time.Sleep(time.Until(r.at))
			w.line.Emit(r.samples)
			synctest.Wait()
		}
		time.Sleep(12 * time.Second) // as the page says
		w.end()
		for _, m := range w.sink.got {
			lines = append(lines, fmt.Sprintf("%s  %s  %s", begin.Add(m.at).UTC().Format("15:04:05.000"), m.Topic, m.Payload))
		}
	})
	return lines
}

// named is a sink that shows its name before the topic.
type named struct {
	name string
	*recorder
}

func (n named) Deliver(ctx context.Context, msgs ...mqtt.Message) error {
	msgs = slices.Clone(msgs)
	for i := range msgs {
		msgs[i].Topic = fmt.Sprintf("%-5s  %s", n.name, msgs[i].Topic)
	}
	return n.recorder.Deliver(ctx, msgs...)
}

// lineRead is one line of the readings: 14:30:15.123 boiler.temp=25.4, where -
// is a reading that failed.
type lineRead struct {
	at      time.Time
	samples []point.Sample
}

func parseReading(t *testing.T, line string) lineRead {
	t.Helper()
	words := strings.Fields(line)
	clock, err := time.Parse("15:04:05.000", words[0])
	if err != nil {
		t.Fatal(err)
	}
	r := lineRead{at: clock.AddDate(2025, 10, 4)}
	for _, w := range words[1:] {
		id, v, ok := strings.Cut(w, "=")
		if !ok {
			t.Fatalf("reading %q", w)
		}
		s := point.Sample{ID: point.ID(id), Time: r.at}
		if v == "-" {
			s.Quality = point.Bad
		} else {
			s.Value = point.ParseValue(v)
		}
		r.samples = append(r.samples, s)
	}
	return r
}
