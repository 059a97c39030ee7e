package config

import (
	"bytes"
	"encoding/json"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"fieldgate/internal/config/yamltree"
)

// compile returns the JSON Schema, ready to judge.
func compile(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	if err := c.AddResource("fieldgate.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("fieldgate.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asJSON returns a YAML text as a JSON Schema sees it.
func asJSON(t *testing.T, text string) any {
	t.Helper()
	n, errs := new(yamltree.Set).Parse("x", []byte(text))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return plainValue(n)
}

// validate returns what the schema has against a value of encoding/json's kind.
func validate(t *testing.T, s *jsonschema.Schema, v any) error {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(doc)
}

// examples returns the texts of all examples.
func examples(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("../../configs/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	texts := make(map[string]string, len(files))
	for _, f := range files {
		if strings.HasPrefix(filepath.Base(f), "simulate") {
			continue // a plant, not a configuration
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		texts[filepath.Base(f)] = string(text)
	}
	return texts
}

// The schema that ships is the one that is printed.
func TestSchemaFile(t *testing.T) {
	golden(t, "../../configs/fieldgate.schema.json", string(Schema()))
}

// Every example loads, fits the schema and has no warning that it does not
// speak of.
func TestExamples(t *testing.T) {
	schema := compile(t)
	for name, text := range examples(t) {
		cfg, err := Load(filepath.Join("../../configs", name))
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		if err := validate(t, schema, asJSON(t, text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, f := range cfg.CheckFiles() {
			t.Errorf("%v", f)
		}
		for _, w := range cfg.Warnings {
			if !strings.Contains(text, "# warns: ") {
				t.Errorf("%s warns: %v", name, w)
			}
		}
	}
}

// Every key of the table stands in the complete example, live or commented out.
func TestCompleteExample(t *testing.T) {
	text := examples(t)["complete.yaml"]
	var schema struct {
		Properties map[string]json.RawMessage
		Defs       map[string]struct{ Properties map[string]json.RawMessage } `json:"$defs"`
	}
	if err := json.Unmarshal(Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	check := func(where string, props map[string]json.RawMessage) {
		for key, prop := range props {
			if strings.Contains(string(prop), "Not in this version yet") {
				continue
			}
			found := false
			for _, line := range strings.Split(text, "\n") {
				for _, before := range []string{" ", "{", "# ", ", "} {
					found = found || strings.HasPrefix(line, key+":") || strings.Contains(line, before+key+":")
				}
			}
			if !found {
				t.Errorf("complete.yaml does not show %s of %s", key, where)
			}
		}
	}
	check("the configuration", schema.Properties)
	for name, def := range schema.Defs {
		check(name, def.Properties)
	}
}

// bases are what mutations start from, beside the examples.
func bases(t *testing.T) []any {
	var all []any
	texts := examples(t)
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		all = append(all, asJSON(t, texts[name]))
	}
	return all
}

// values are what mutations put in places where it may not belong.
var values = []any{
	nil, true, false, 0, 1, -1, 2, 5, 15, 16, 250, 300, 40001, 70000, 100, 1.5, 0.2, 1e-3, "", "x", "auto", "any", "each", "once", "never", "off", "null", "nothing",
	"0", "1", "1s", "0s", "5m", "1.5h", "5x", "-1s", "1s..5m", "5s", "30d", "64KiB", "10", "1/s", "5/10m", "200/day", "1.5%", "%", "1-4", "1,3,8-9", "300-301", "4-6", "16",
	"rtu", "tcp", "ABCD", "int16", "float32", "string(8)", "string(0)", "datetime(DT4)", "bool", "holding 0", "coil 3", "input 0x1F", "40001", "00001", "500001", "holding",
	"9600-8N1", "300-7E2", "921600-8M1", "110-7S2", "19200-8X1", "/dev/x", "dev/x", "10.0.0.1:502", "10.0.0.1", ":502", "[::1]:502", "h:99999", "a b", "{site}/{device}/{point}", "a/+", "{x}", "boiler.*", "local",
	"mqtt://h", "wss://h:1/x", "tcp://h", "http://p:1", "1.2", "json", "raw", "info", "high", "normal", "5", "Ünï", "a.b", "a/b", "m-{unit}",
	[]any{}, []any{1}, []any{"x"}, []any{"mqtt://h"}, map[string]any{}, map[string]any{"x": 1}, map[string]any{"env": "X"}, map[string]any{"env": "X", "file": "y"},
	map[string]any{"change": "any"}, map[string]any{"0": "a"}, map[string]any{"a": "1s"}, map[string]any{"registers": 5},
}

// mutate changes one thing somewhere in a value and returns it.
func mutate(rng *rand.Rand, v any, keys []string) any {
	pick := func() any { return clone(values[rng.IntN(len(values))]) }
	switch v := v.(type) {
	case map[string]any:
		names := slices.Sorted(maps.Keys(v))
		if len(names) == 0 || rng.IntN(12) == 0 {
			v[keys[rng.IntN(len(keys))]] = pick()
			return v
		}
		name := names[rng.IntN(len(names))]
		switch rng.IntN(24) {
		case 0:
			delete(v, name)
		case 1:
			v[keys[rng.IntN(len(keys))]] = v[name]
			delete(v, name)
		case 2:
			return pick()
		default:
			v[name] = mutate(rng, v[name], keys)
		}
		return v
	case []any:
		if len(v) > 0 && rng.IntN(8) > 0 {
			i := rng.IntN(len(v))
			v[i] = mutate(rng, v[i], keys)
			return v
		}
	}
	return pick()
}

// clone copies a value of encoding/json's kind.
func clone(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[k] = clone(e)
		}
		return m
	case []any:
		l := make([]any, len(v))
		for i, e := range v {
			l[i] = clone(e)
		}
		return l
	}
	return v
}

// What the schema refuses, Load refuses; and what Load refuses for its form,
// the schema does, over random mutations of all examples.
func TestSchemaAgrees(t *testing.T) {
	schema := compile(t)
	starts := bases(t)
	keys := []string{"x", "0", "1", "a.b", "{unit}", "a b "}
	var doc struct {
		Properties map[string]any
		Defs       map[string]struct{ Properties map[string]any } `json:"$defs"`
	}
	if err := json.Unmarshal(Schema(), &doc); err != nil {
		t.Fatal(err)
	}
	keys = append(keys, slices.Sorted(maps.Keys(doc.Properties))...)
	for _, name := range slices.Sorted(maps.Keys(doc.Defs)) {
		keys = append(keys, slices.Sorted(maps.Keys(doc.Defs[name].Properties))...)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	const rounds = 1200
	refused := 0
	for range rounds {
		v := clone(starts[rng.IntN(len(starts))])
		for range 1 + rng.IntN(2) {
			v = mutate(rng, v, keys)
		}
		if !agree(t, schema, v) {
			refused++
		}
		if t.Failed() {
			return
		}
	}
	if refused < rounds/10 || refused > rounds*9/10 {
		t.Errorf("%d of %d refused: the mutations prove little", refused, rounds)
	}
}

// agree fails the test unless the schema and Load agree on a value; it returns
// whether they take it.
func agree(t *testing.T, schema *jsonschema.Schema, v any) bool {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) == "null" {
		return true // an empty file, of which the schema has nothing to say
	}
	l := newLoader()
	l.add("x", text)
	_, _ = l.finish()
	var shape *found
	for i := range l.d.found {
		if l.d.found[i].shape {
			shape = &l.d.found[i]
		}
	}
	refusal := validate(t, schema, v)
	switch {
	case refusal == nil && shape != nil:
		t.Errorf("Load refuses what the schema takes: %v\n%s", shape, text)
	case refusal != nil && shape == nil:
		t.Errorf("Load takes what the schema refuses: %v\nother faults: %v\n%s", refusal, l.d.found, text)
	}
	return refusal == nil
}
