package config

import "fmt"

// Fault is one thing wrong with a configuration, and where.
type Fault struct {
	File      string
	Line, Col int    // from 1; 0: the fault has no place in a file
	Path      string // buses.line1.mode
	Text      string // what is wrong; what to write
}

// Error implements error: FILE:LINE:COL: path: what is wrong; what to write.
func (f Fault) Error() string {
	if f.Line == 0 {
		return fmt.Sprintf("%s: %s: %s", f.File, f.Path, f.Text)
	}
	return fmt.Sprintf("%s:%d:%d: %s: %s", f.File, f.Line, f.Col, f.Path, f.Text)
}
