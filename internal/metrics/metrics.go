// Package metrics writes figures in the text format of Prometheus (version
// 0.0.4). It holds none: whoever is asked for figures writes them from what it
// knows at that moment, family by family.
//
// The type is Writer. Names have base units (seconds, bytes, ratios from 0 to 1)
// and, for counters, the ending _total.
package metrics

import (
	"math"
	"strconv"
	"strings"
)

// ContentType is that of what Writer writes.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Kind is what a family is.
type Kind string

// The kinds. A counter only grows, but for a restart. A summary is how many there
// were and their sum.
const (
	Counter Kind = "counter"
	Gauge   Kind = "gauge"
	Summary Kind = "summary"
)

// Label is one label of a sample.
type Label struct{ Name, Value string }

// Writer collects families. The zero value is ready.
type Writer struct {
	buf    []byte
	family string
	help   string // of a family that has no sample yet
	kind   Kind
}

// Family begins a family. All samples up to the next are of it. A family
// without samples is not written.
func (w *Writer) Family(name string, kind Kind, help string) {
	w.family, w.kind, w.help = name, kind, help
}

// Sample writes one figure of the family. No two of a family may have the same
// labels.
func (w *Writer) Sample(v float64, labels ...Label) { w.sample("", v, labels) }

// Sum writes a summary's sample: how many there were, and their sum.
func (w *Writer) Sum(n uint64, sum float64, labels ...Label) {
	w.sample("_sum", sum, labels)
	w.sample("_count", float64(n), labels)
}

func (w *Writer) sample(ending string, v float64, labels []Label) {
	if w.help != "" {
		w.buf = append(append(append(append(w.buf, "# HELP "...), w.family...), ' '), helpEscapes.Replace(w.help)...)
		w.buf = append(append(append(append(w.buf, "\n# TYPE "...), w.family...), ' '), w.kind...)
		w.buf = append(w.buf, '\n')
		w.help = ""
	}
	w.buf = append(append(w.buf, w.family...), ending...)
	for i, l := range labels {
		if i == 0 {
			w.buf = append(w.buf, '{')
		} else {
			w.buf = append(w.buf, ',')
		}
		w.buf = append(append(append(w.buf, l.Name...), `="`...), labelEscapes.Replace(l.Value)...)
		w.buf = append(w.buf, '"')
	}
	if len(labels) > 0 {
		w.buf = append(w.buf, '}')
	}
	w.buf = append(w.buf, ' ')
	switch {
	case math.IsInf(v, 1):
		w.buf = append(w.buf, "+Inf"...)
	case math.IsInf(v, -1):
		w.buf = append(w.buf, "-Inf"...)
	default: // NaN is written as the format wants it
		w.buf = strconv.AppendFloat(w.buf, v, 'g', -1, 64)
	}
	w.buf = append(w.buf, '\n')
}

// Bool writes 1 or 0.
func (w *Writer) Bool(v bool, labels ...Label) {
	if v {
		w.Sample(1, labels...)
	} else {
		w.Sample(0, labels...)
	}
}

// Bytes returns what was written. It is valid until the next use of w.
func (w *Writer) Bytes() []byte { return w.buf }

var (
	helpEscapes  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	labelEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)
