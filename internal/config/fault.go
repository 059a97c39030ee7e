package config

import (
	"fmt"
	"strings"
)

// Fault is one thing wrong with a configuration, and where.
type Fault struct {
	File      string
	Line, Col int    // from 1; 0: the fault has no place in a file
	Path      string // buses.line1.mode; "" for the file as a whole
	Text      string // what is wrong; what to write
}

// Error implements error: FILE:LINE:COL: path: what is wrong; what to write.
func (f Fault) Error() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", f.Line, f.Col)
	}
	if f.Path != "" {
		b.WriteString(": " + f.Path)
	}
	b.WriteString(": " + f.Text)
	return b.String()
}

// Faults is everything wrong with a configuration, sorted by place: the main
// file first, then those of conf.d by name.
type Faults []Fault

// Error implements error: one line for each fault.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find a single Fault.
func (fs Faults) Unwrap() []error {
	errs := make([]error, len(fs))
	for i, f := range fs {
		errs[i] = f
	}
	return errs
}
