package gateway

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"fieldgate/internal/config"
	"fieldgate/internal/flash"
	"fieldgate/internal/publish"
)

// Files of the settings that were changed from afar, in the data directory.
const (
	layerFile = "settings.yaml"
	trialFile = "settings.trial.yaml" // from before a change is accepted until its sender has the last answer
)

// Source is where a gateway has its configuration from: the file at a path, and
// the settings that were changed from afar. It is safe for use by several
// goroutines.
//
// A change is staged in a file of its own, and Load takes that while the change is
// on trial. It is kept by writing the layer anew, in one step, with its last answer
// in the head; it is dropped by writing that answer into the head of its own file.
// The file of the trial goes once the answer is recorded and given, so that a
// process that ends between any two of these steps leaves behind what was decided,
// and what is still to be said.
type Source struct {
	path, dir string
	step      func(string) // of tests: called before each step that outlives the process; nil: none

	work sync.Mutex // see Hold

	mu      sync.Mutex
	trial   *trial // that Load takes; nil: the layer
	untried loaded // what was loaded last during the trial, without it
	left    *head  // of a trial that an earlier process has left behind
}

// head stands in the first line of a file of settings.
type head struct {
	request
	Before string          `json:"before,omitempty"` // sum of the layer that there was when it was staged; "": none
	Answer json.RawMessage `json:"answer,omitempty"` // the last answer to the request, once it is decided
}

// trial is a layer that is tried.
type trial struct {
	head
	body   []byte // settings by key, as JSON
	text   []byte // of its file
	before []byte // text of the layer's file; nil: there was none
}

// loaded is a configuration as Load returns it.
type loaded struct {
	cfg    *config.Config
	topics []publish.Topic
}

// Hold keeps others from Load until release is called: what was loaded is at work,
// or given up, before somebody loads the next, so that the newest is the last.
func (s *Source) Hold() (release func()) {
	s.work.Lock()
	return s.work.Unlock
}

// NewSource returns the configuration at path with the settings in the data
// directory dir. A change that was on trial when an earlier process ended is not
// among them.
func NewSource(path, dir string) (*Source, error) {
	s := &Source{path: path, dir: dir}
	text, err := read(s.trialPath())
	if err == nil && text != nil {
		var h head
		if h, err = headOf(text); err == nil && h.ID != "" {
			s.left = &h
			return s, nil
		}
		err = s.settle() // somebody has written it by hand: nobody waits for an answer
	}
	if err != nil {
		return s, fmt.Errorf("%s: %w", trialFile, err)
	}
	return s, nil
}

// read returns the text of a file, nil if there is none.
func read(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && text == nil {
		text = []byte{}
	}
	return text, err
}

// headOf reads the head of a file of settings.
func headOf(text []byte) (h head, err error) {
	line, _, _ := bytes.Cut(text, []byte{'\n'})
	line, ok := bytes.CutPrefix(line, []byte{'#'})
	if !ok {
		return h, errors.New("it has no head")
	}
	return h, json.Unmarshal(line, &h)
}

// sumOf tells one text of a layer's file from another, and from none.
func sumOf(text []byte) string {
	if text == nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}

// Layer returns the file of settings that were changed from afar.
func Layer(dir string) string { return filepath.Join(dir, layerFile) }

func (s *Source) trialPath() string { return filepath.Join(s.dir, trialFile) }

// Load loads the configuration with the settings from afar, see LoadLayer. Those on
// trial must fit it, else the trial is over.
func (s *Source) Load() (*config.Config, []publish.Topic, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trial == nil {
		return LoadLayer(s.path, Layer(s.dir))
	}
	cfg, topics, err := LoadLayer(s.path, Layer(s.dir))
	if err != nil {
		return nil, nil, err // that of the file on site
	}
	s.untried = loaded{cfg, topics} // if the trial fails
	tried, topics, err := loadLayer(s.path, s.trialPath())
	if err != nil {
		s.trial = nil
		return s.untried.cfg, s.untried.topics, nil
	}
	return tried, topics, nil
}

// without returns the configuration without the trial that has ended, as it is on
// disk: if that is good, and its file the one that is at work by sums. Else it is
// what was loaded last with that file, or before.
func (s *Source) without(before loaded, sums config.Sums) (l loaded, fresh bool) {
	cfg, topics, err := s.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil && cfg.Sums.Files == sums.Files:
		return loaded{cfg, topics}, true
	case s.untried.cfg != nil && s.untried.cfg.Sums.Files == sums.Files:
		return s.untried, false
	}
	return before, false
}

// layer reads the settings that were changed from afar: the text of their file,
// nil if there is none, and by key.
func (s *Source) layer() (text []byte, settings map[string]json.RawMessage, err error) {
	settings = make(map[string]json.RawMessage)
	if text, err = read(Layer(s.dir)); err != nil || text == nil {
		return text, settings, err
	}
	body := text
	for len(body) > 0 && body[0] == '#' {
		_, body, _ = bytes.Cut(body, []byte{'\n'})
	}
	return text, settings, json.Unmarshal(body, &settings)
}

// bodyOf writes settings as they stand in a file.
func bodyOf(settings map[string]json.RawMessage) ([]byte, error) {
	b := []byte{'{'}
	for i, key := range slices.Sorted(maps.Keys(settings)) {
		if i > 0 {
			b = append(b, ',')
		}
		name, err := json.Marshal(key)
		if err != nil {
			return nil, err
		}
		b = append(append(append(append(b, "\n  "...), name...), ": "...), settings[key]...)
	}
	return append(b, "\n}\n"...), nil
}

// textOf returns the text of a file of settings.
func textOf(h *head, body []byte) ([]byte, error) {
	line, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	b := append(append([]byte{'#'}, line...), "\n# What was changed from afar. The gateway writes this file; to take all of it back, remove it.\n"...)
	return append(b, body...), nil
}

// at is called before each step that outlives the process.
func (s *Source) at(step string) {
	if s.step != nil {
		s.step(step)
	}
}

// stage writes a layer that is to be tried, with the request that it comes from;
// before is the text of the layer that there is. From then on Load takes it.
func (s *Source) stage(r *request, body, before []byte) (*head, error) {
	t := &trial{head: head{request: *r, Before: sumOf(before)}, body: body, before: before}
	var err error
	if t.text, err = textOf(&t.head, body); err != nil {
		return nil, err
	}
	s.at("stage")
	if err := flash.WriteFile(s.trialPath(), t.text, nil); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trial, s.untried = t, loaded{}
	return &t.head, nil
}

// unfit is why a trial is over that Load could not put over the file on site.
const unfit = "it does not fit the configuration that was reloaded"

// edited says what somebody on site has done to the files during the trial; "" if
// nothing.
func (s *Source) edited() string {
	s.mu.Lock()
	t := s.trial
	s.mu.Unlock()
	if t == nil {
		return unfit
	}
	for _, f := range []struct {
		path string
		want []byte
	}{{Layer(s.dir), t.before}, {s.trialPath(), t.text}} {
		is, err := read(f.path)
		switch {
		case err != nil || bytes.Equal(is, f.want) && (is == nil) == (f.want == nil):
		case is == nil:
			return filepath.Base(f.path) + " was removed on site"
		default:
			return filepath.Base(f.path) + " was edited on site"
		}
	}
	return ""
}

// keep makes the layer on trial the layer, and notes the answer to its request. After
// an error the layer is what it was, and Load takes that, as it does after drop.
func (s *Source) keep(answer []byte) error {
	if what := s.edited(); what != "" {
		return errors.New(what)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trial == nil { // since
		return errors.New(unfit)
	}
	h := s.trial.head
	h.Answer = answer
	text, err := textOf(&h, s.trial.body)
	if err != nil {
		return err
	}
	s.at("keep")
	if err := flash.WriteFile(Layer(s.dir), text, nil); err != nil {
		return errors.Join(err, s.putBack())
	}
	s.trial, s.untried = nil, loaded{}
	return nil
}

// putBack writes the layer of before the trial, if another one has come in its
// place.
func (s *Source) putBack() error {
	is, err := read(Layer(s.dir))
	if err != nil || sumOf(is) == s.trial.Before {
		return err
	}
	if s.trial.before == nil {
		return os.Remove(Layer(s.dir))
	}
	return flash.WriteFile(Layer(s.dir), s.trial.before, nil)
}

// drop ends a trial: Load takes the layer again.
func (s *Source) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trial = nil
}

// note notes the answer to the request of a trial that has failed.
func (s *Source) note(h *head, answer []byte) error {
	h.Answer = answer
	text, err := textOf(h, []byte("{}\n"))
	if err != nil {
		return err
	}
	s.at("note")
	return flash.WriteFile(s.trialPath(), text, nil)
}

// settle takes away the file of a trial.
func (s *Source) settle() error {
	s.at("settle")
	s.mu.Lock()
	s.untried = loaded{}
	s.mu.Unlock()
	if err := os.Remove(s.trialPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return flash.SyncFolder(s.dir)
}

// outcome returns what was to be answered to a trial that an earlier process has left
// behind: by the layer it was kept in, or by its own file; nil if nothing was decided.
func (s *Source) outcome(h *head) []byte {
	text, err := read(Layer(s.dir))
	if err != nil || text == nil || h.Answer != nil {
		return h.Answer
	}
	if l, err := headOf(text); err == nil && l.ID == h.ID && l.Before == h.Before {
		return l.Answer
	}
	return nil
}
