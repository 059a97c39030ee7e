package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"fieldgate/internal/config/yamltree"
)

// Load reads the configuration in the file at path and in conf.d/*.yaml beside
// it, in the order of their names. Maps are merged by key; a key that stands
// twice is a fault. An error is a Faults: everything that is wrong, each with
// its place.
//
// Files that the configuration names - certificates, passwords - are not
// opened: they may come and go. CheckFiles looks at them.
func Load(path string) (*Config, error) { return LoadLayer(path, "") }

// read reads the main file and those of conf.d.
func (l *loader) read(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return Faults{{File: path, Text: readFault(err)}}
	}
	l.add(path, text)
	l.sums.Files = sum(0, "", text)
	dir := filepath.Join(filepath.Dir(path), "conf.d")
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.broken(dir, readFault(err))
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), "."), e.IsDir():
		case strings.HasSuffix(e.Name(), ".yaml"):
			text, err := os.ReadFile(name)
			if err != nil {
				l.broken(name, readFault(err))
				continue
			}
			l.add(name, text)
			l.sums.Files = sum(l.sums.Files, e.Name(), text)
		case strings.HasSuffix(e.Name(), ".yml"):
			l.d.warnings = append(l.d.warnings, found{Fault: Fault{File: name, Text: "is not read; rename it to end in .yaml, or remove it"}})
		}
	}
	return nil
}

// readFault says why a file cannot be read, without the path, which stands
// before it.
func readFault(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no such file; \"fieldgate init -o FILE\" writes one to start from, -c FILE names another"
	case errors.Is(err, fs.ErrPermission):
		return "it may not be read by this user; change its owner or mode"
	}
	return fmt.Sprintf("it cannot be read: %v", err)
}

// LoadBytes is Load for a text that stands in no file, or is not to be taken
// from there. name stands for it in faults; relative paths in the text count
// from name's folder. There is no conf.d.
func LoadBytes(name string, text []byte) (*Config, error) {
	l := newLoader()
	l.add(name, text)
	return l.finish()
}

// loader reads files and joins them to one tree.
type loader struct {
	d    decoder
	root *node // nil as long as nothing has been read
	sums Sums
}

func newLoader() *loader {
	return &loader{d: decoder{set: new(yamltree.Set), files: make(map[string]int), words: make(map[string]string)}}
}

// broken files a fault of a whole file.
func (l *loader) broken(name, text string) {
	l.d.files[name] = len(l.d.files)
	l.d.partial = true
	l.d.found = append(l.d.found, found{Fault: Fault{File: name, Text: text}})
}

// add reads one more file.
func (l *loader) add(name string, text []byte) {
	d := &l.d
	d.files[name] = len(d.files)
	root, errs := d.set.Parse(name, text)
	d.partial = d.partial || len(errs) > 0
	for _, e := range errs {
		d.found = append(d.found, found{Fault: Fault{e.Place.File, e.Place.Line, e.Place.Col, "", printable(e.Text)}})
	}
	switch {
	case root == nil || root.IsNull():
		return
	case root.Kind != yamltree.Map:
		d.shapef(root, "is not a configuration, which is a map; write keys such as buses: and devices:")
		return
	case l.root == nil:
		l.root = root
		return
	}
	var clashes []yamltree.Clash
	l.root, clashes = d.set.Merge(l.root, root)
	for _, c := range clashes {
		d.path = d.path[:0]
		for _, key := range c.Path {
			d.in(key)
		}
		d.faultf(c.B, "is given twice, first at %s; keep one", d.set.Place(c.A))
	}
	d.path = d.path[:0]
}

// finish turns the tree into a configuration.
func (l *loader) finish() (*Config, error) {
	d := &l.d
	var cfg *Config
	if l.root == nil {
		if len(d.found) == 0 {
			for name, i := range d.files {
				if i == 0 {
					l.d.found = append(l.d.found, found{Fault: Fault{File: name, Line: 1, Col: 1, Text: "there is nothing in it; \"fieldgate init\" prints a configuration to start from"}})
				}
			}
		}
	} else {
		t := newTables()
		raw := t.root.zero
		t.root.fill(d, l.root, &raw)
		r := resolver{decoder: d, tables: t, root: l.root, raw: &raw}
		cfg = r.resolve()
	}
	if len(d.found) > 0 {
		return nil, Faults(d.sorted(d.found))
	}
	cfg.Warnings = d.sorted(d.warnings)
	cfg.order, cfg.Sums = d.files, l.sums
	for _, f := range d.depends {
		p := d.set.Place(f.at)
		cfg.files = append(cfg.files, namedFile{f.path, Fault{p.File, p.Line, p.Col, strings.Clone(f.where), ""}})
	}
	return cfg, nil
}

// namedFile is a file that the configuration names, and where it does.
type namedFile struct {
	path  string
	place Fault // without text
}

// CheckFiles returns a fault for each file that the configuration names -
// certificates, keys, passwords - and this process cannot read now.
func (c *Config) CheckFiles() []Fault {
	var faults []Fault
	for _, f := range c.files {
		fault := f.place
		switch err := readable(f.path); {
		case err == nil:
			continue
		case errors.Is(err, errNoFile):
			fault.Text = fmt.Sprintf("%s is not a file; write the path of one", f.path)
		case errors.Is(err, fs.ErrNotExist):
			fault.Text = fmt.Sprintf("there is no file %s; put it there, or write another path", f.path)
		case errors.Is(err, fs.ErrPermission):
			fault.Text = fmt.Sprintf("%s may not be read by this user; change its owner or mode", f.path)
		default:
			fault.Text = fmt.Sprintf("%s cannot be read: %v", f.path, err)
		}
		faults = append(faults, fault)
	}
	return faults
}

var errNoFile = errors.New("not a regular file")

// readable reports why a file cannot be read.
func readable(path string) error {
	info, err := os.Stat(path) // first, because to open a pipe may take for ever
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errNoFile
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

// Sort puts faults in the order of their places: the main file first, then
// those of conf.d by name.
func (c *Config) Sort(faults []Fault) { sortFaults(faults, c.order) }

// Fault returns a fault with the place of path in the file, for those who find
// it later than Load: publish[0].topic, buses.line1, uplinks.cloud. Where the
// last keys of the path are not in the file, the place is that of what is.
func (c *Config) Fault(path, text string) Fault {
	for p := path; ; {
		if f, ok := c.places[p]; ok {
			f.Path, f.Text = path, text
			return f
		}
		for _, named := range c.files {
			if named.place.Path == p {
				f := named.place
				f.Path, f.Text = path, text
				return f
			}
		}
		if p == "" {
			return Fault{File: c.file, Path: path, Text: text}
		}
		p = p[:max(0, strings.LastIndexAny(p, ".["))]
	}
}
