package yamltree

import "strings"

// maxRepairs is how often a text that is not YAML is read again without what
// was wrong.
const maxRepairs = 24

// read reads a text. The scanner stops at the first thing that is not YAML; so
// that one slip does not hide all other faults, what is wrong is blanked out
// and the rest read again.
func (s *Set) read(id uint16, src *source) (*Node, []Error) {
	root, errs, slip := scan(s, id, src, src.text)
	if slip == nil {
		return root, errs
	}
	var all []Error
	r := repair{src: src, text: []byte(src.text), tried: make(map[int]bool)}
	for range maxRepairs {
		report, again := r.mend(slip)
		all = append(all, report...)
		if !again {
			break
		}
		if root, errs, slip = scan(s, id, src, string(r.text)); slip == nil {
			return root, append(all, errs...)
		}
	}
	return nil, all
}

// repair is a text from which what is not YAML is blanked out, bit by bit. Its
// length and its lines stay.
type repair struct {
	src   *source
	text  []byte
	tabs  bool         // are spaces now
	tried map[int]bool // sections by their first line; true: all of it is blank
}

// mend blanks out what slip is about. It returns the errors to report and
// whether it is worth reading again. The second error in one section is most
// likely a consequence of the first, and is not reported.
func (r *repair) mend(slip *slip) (report []Error, again bool) {
	if slip.all {
		return []Error{{r.src.place(slip.off), slip.text}}, false
	}
	if !r.tabs {
		r.tabs = true
		if tabs := r.src.tabs(); len(tabs) > 0 {
			for _, start := range r.src.lineStarts() {
				for i := int(start); i < len(r.text) && (r.text[i] == ' ' || r.text[i] == '\t'); i++ {
					r.text[i] = ' '
				}
			}
			to := 0 // the end of the section found last
			for _, tab := range tabs {
				if line := tab.Place.Line - 1; line >= to {
					var from int
					from, to = r.section(line)
					r.tried[from] = false
				}
			}
			return tabs, true
		}
	}
	place := r.src.place(slip.off)
	report = []Error{{place, slip.text}}
	first := place.Line - 1
	from, to := r.section(first)
	whole, before := r.tried[from]
	switch {
	case whole:
		return nil, false
	case before:
		r.tried[from] = true
		r.blank(from, to)
		return nil, true
	}
	r.tried[from] = false
	r.blank(first, max(first+1, min(r.src.place(slip.at).Line, to)))
	return report, true
}

// section returns the lines, from 0, of the top-level key that a line belongs
// to, the last one excluded.
func (r *repair) section(line int) (from, to int) {
	starts := r.src.lineStarts()
	head := func(i int) bool {
		if int(starts[i]) >= len(r.src.text) {
			return false
		}
		switch r.src.text[starts[i]] {
		case ' ', '\t', '\r', '\n', '#', '-', ']', '}':
			return false
		}
		return true
	}
	for from = line; from > 0 && !head(from); from-- {
	}
	for to = line + 1; to < len(starts) && !head(to); to++ {
	}
	return from, to
}

// blank fills lines with spaces.
func (r *repair) blank(from, to int) {
	starts := r.src.lineStarts()
	end := len(r.text)
	if to < len(starts) {
		end = int(starts[to])
	}
	for i := int(starts[from]); i < end; i++ {
		if r.text[i] != '\n' && r.text[i] != '\r' {
			r.text[i] = ' '
		}
	}
}

// tabs returns an error for each line whose indentation has a tab, the first
// mostErrors.
func (src *source) tabs() []Error {
	var errs []Error
	for i, start := range src.lineStarts() {
		if len(errs) == mostErrors {
			break
		}
		rest := src.text[start:]
		indent := rest[:len(rest)-len(strings.TrimLeft(rest, " \t"))]
		tab := strings.IndexByte(indent, '\t')
		if tab < 0 || len(rest) == len(indent) || strings.ContainsRune("\r\n#", rune(rest[len(indent)])) {
			continue
		}
		errs = append(errs, Error{Place{src.name, i + 1, tab + 1}, "a tab in the indentation, which YAML forbids; write spaces"})
	}
	return errs
}
