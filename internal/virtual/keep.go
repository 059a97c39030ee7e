package virtual

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"fieldgate/internal/flash"
	"fieldgate/internal/point"
)

// fileName is the file in the data directory: a JSON object with the values and
// their checksum.
const fileName = "virtual.json"

// saveAgain is how soon a file that could not be written is tried again.
const saveAgain = 30 * time.Second

// kept is the file.
type kept struct {
	CRC    string          `json:"crc32c"` // of the bytes of Values, hexadecimal
	Values json.RawMessage `json:"values"` // point → value
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) string { return fmt.Sprintf("%08x", crc32.Checksum(b, castagnoli)) }

// load gives points what was kept. A file that cannot be used is put aside; one
// that cannot be read is left, and points have their initial values.
func (s *Set) load(now time.Time) {
	_ = os.Remove(s.path + ".new") // of a process that ended while it wrote it
	text, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		s.log.Error("kept values cannot be read", "err", err)
		return
	}
	values, err := decodeKept(text)
	if err != nil {
		aside := s.path + ".damaged"
		if rerr := os.Rename(s.path, aside); rerr != nil {
			err = errors.Join(err, rerr)
		}
		s.log.Error("file of kept values is damaged and was put aside", "err", err, "file", aside)
		return
	}
	for id, raw := range values {
		c := s.of[point.ID(id)]
		if c == nil || !c.source.Keep {
			continue // of another configuration
		}
		m := message{object: map[string]json.RawMessage{"": raw}}
		v, none, err := m.value(&c.point, "")
		if err == nil && !none && c.point.Write != nil {
			err = c.point.CheckWrite(v)
		}
		if err == nil && !none {
			v, err = c.point.Hold(v)
		}
		if err != nil || none {
			s.log.Warn("kept value does not fit its point any more", "point", id, "err", err)
			continue
		}
		c.sample, c.kept = point.Sample{ID: c.point.ID, Value: v, Quality: point.Good, Time: now}, v
		if c.source.Stale > 0 { // it is not known how old it is
			c.sample.Quality, c.until = point.Uncertain, now.Add(c.source.Stale)
		}
	}
}

// decodeKept reads the file.
func decodeKept(text []byte) (map[string]json.RawMessage, error) {
	var k kept
	if err := json.Unmarshal(text, &k); err != nil {
		return nil, err
	}
	if sum := checksum(k.Values); sum != k.CRC {
		return nil, fmt.Errorf("checksum %s, want %q", sum, k.CRC)
	}
	var values map[string]json.RawMessage
	if err := json.Unmarshal(k.Values, &values); err != nil {
		return nil, err
	}
	return values, nil
}

// encodeKept makes the file of the points that have something to keep. The lock
// is held.
func (s *Set) encodeKept() []byte {
	values := make(map[string]point.Value)
	for _, c := range s.cells {
		if c.source.Keep && !c.kept.IsZero() {
			values[string(c.point.ID)] = c.kept
		}
	}
	b := []byte{'{'}
	for i, id := range slices.Sorted(maps.Keys(values)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(point.AppendJSONString(b, id), ':')
		b = values[id].AppendJSON(b)
	}
	b = append(b, '}')
	text := append([]byte(`{"crc32c":"`+checksum(b)+`","values":`), b...)
	return append(text, "}\n"...)
}

// save writes the file if it is not as it should be.
func (s *Set) save(last bool) {
	s.mu.Lock()
	wanted, path := !s.writeBy.IsZero(), s.path
	text := s.encodeKept()
	s.writeBy = time.Time{}
	s.mu.Unlock()
	if !wanted || path == "" {
		return
	}
	err := flash.WriteFile(path, text, &s.ledger)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		if s.fault != "" {
			s.log.Info("kept values are saved again", "file", path)
		}
		s.fault = ""
		return
	}
	if s.fault == "" || last {
		s.log.Error("kept values are not saved", "err", err)
	}
	s.fault = err.Error()
	if s.writeBy.IsZero() {
		s.writeBy = time.Now()
	}
	s.writeBy = s.writeBy.Add(saveAgain)
	s.rouse(s.writeBy)
}
