package gateway

import (
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
	trialFile = "settings.trial.yaml" // while a change is on trial; found at a start it was not confirmed
)

// Source is where a gateway has its configuration from: the file at a path, and
// the settings that were changed from afar. It is safe for use by several
// goroutines.
type Source struct {
	path, dir string

	work sync.Mutex // see Hold

	mu     sync.Mutex
	onTry  bool     // the layer is that of a trial
	cutOff *request // whose trial an earlier process has left behind
}

// Hold keeps others from Load until release is called: what was loaded is at work,
// or given up, before somebody loads the next, so that the newest is the last.
func (s *Source) Hold() (release func()) {
	s.work.Lock()
	return s.work.Unlock
}

// NewSource returns the configuration at path with the settings in the data
// directory dir. A change that was on trial when an earlier process ended is
// taken back.
func NewSource(path, dir string) (*Source, error) {
	s := &Source{path: path, dir: dir}
	text, err := os.ReadFile(s.trial())
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("a change of settings from afar is not taken back: %w", err)
	}
	s.cutOff = new(request)
	if line, ok := firstLine(text); !ok || json.Unmarshal(line, s.cutOff) != nil {
		s.cutOff = new(request) // it was cut while it was written: nobody was told of it
	}
	if err := errors.Join(os.Remove(s.trial()), flash.SyncFolder(dir)); err != nil {
		return s, fmt.Errorf("a change of settings from afar is not taken back: %w", err)
	}
	return s, nil
}

// firstLine returns the comment in the first line.
func firstLine(text []byte) ([]byte, bool) {
	for i, c := range text {
		if c == '\n' && i > 1 && text[0] == '#' {
			return text[1:i], true
		}
	}
	return nil, false
}

// Layer returns the file of settings that were changed from afar.
func Layer(dir string) string { return filepath.Join(dir, layerFile) }

// Load loads the configuration with the settings from afar, see LoadLayer; those
// on trial must fit it.
func (s *Source) Load() (*config.Config, []publish.Topic, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.onTry {
		return loadLayer(s.path, s.trial())
	}
	return LoadLayer(s.path, Layer(s.dir))
}

// layer reads the settings that were changed from afar, by key.
func (s *Source) layer() (map[string]json.RawMessage, error) {
	text, err := os.ReadFile(Layer(s.dir))
	if errors.Is(err, fs.ErrNotExist) {
		return make(map[string]json.RawMessage), nil
	}
	if err != nil {
		return nil, err
	}
	layer := make(map[string]json.RawMessage)
	for len(text) > 0 && text[0] == '#' {
		_, text, _ = cutLine(text)
	}
	return layer, json.Unmarshal(text, &layer)
}

func cutLine(text []byte) (line, rest []byte, ok bool) {
	if i := slices.Index(text, '\n'); i >= 0 {
		return text[:i], text[i+1:], true
	}
	return text, nil, false
}

// stage writes a layer that is to be tried, with the request that it comes from.
// From then on Load takes it.
func (s *Source) stage(r request, layer map[string]json.RawMessage) error {
	head, err := json.Marshal(r)
	if err != nil {
		return err
	}
	b := append(append([]byte{'#'}, head...), "\n# What was changed from afar. The gateway writes this file; to take all of it back, remove it.\n{"...)
	for i, key := range slices.Sorted(maps.Keys(layer)) {
		if i > 0 {
			b = append(b, ',')
		}
		name, err := json.Marshal(key)
		if err != nil {
			return err
		}
		b = append(append(append(append(b, "\n  "...), name...), ": "...), layer[key]...)
	}
	b = append(b, "\n}\n"...)
	if err := flash.WriteFile(s.trial(), b, nil); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onTry = true
	return nil
}

// trial is the file of a layer on trial.
func (s *Source) trial() string { return filepath.Join(s.dir, trialFile) }

// end ends a trial: its layer is the layer from now on, or gone.
func (s *Source) end(keep bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onTry = false
	if !keep {
		return errors.Join(os.Remove(s.trial()), flash.SyncFolder(s.dir))
	}
	return errors.Join(os.Rename(s.trial(), Layer(s.dir)), flash.SyncFolder(s.dir))
}
