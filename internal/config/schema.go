package config

import (
	"bytes"
	"encoding/json"
)

// schema is a JSON Schema, or a part of one, whose members keep their order.
type schema []member

type member struct {
	key   string
	value any
}

// MarshalJSON implements json.Marshaler.
func (s schema) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range s {
		if i > 0 {
			b.WriteByte(',')
		}
		key, err := json.Marshal(m.key)
		if err != nil {
			return nil, err
		}
		value, err := marshal(m.value)
		if err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// marshal is json.Marshal without HTML's escapes.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// anyOf is the schema of what fits one of several.
func anyOf(of ...schema) schema { return schema{{"anyOf", of}} }

// pattern is the schema of text that fits a regular expression.
func pattern(re string) schema { return schema{{"type", "string"}, {"pattern", re}} }

// integers is the schema of the whole numbers from least to most.
func integers(least, most int) schema {
	return schema{{"type", "integer"}, {"minimum", least}, {"maximum", most}}
}

// Schema returns the JSON Schema (draft 2020-12) of a configuration file,
// indented. It is made from the tables that Load decodes by, so it names the
// same keys, kinds of values and defaults. What needs more than one value to be
// told - a bus that is not there, a unit id used twice - only Load finds.
func Schema() []byte {
	t := newTables()
	s := schema{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"$id", "https://fieldgate.example/fieldgate.schema.json"},
		{"title", "Fieldgate configuration"},
	}
	s = append(s, t.root.schema()...)
	defs := schema{}
	for _, d := range t.defs {
		defs = append(defs, member{d.name, d.form.schema()})
	}
	s = append(s, member{"$defs", defs})
	text, err := marshal(s)
	if err != nil {
		panic("config: the schema cannot be written: " + err.Error()) // its values are all ours
	}
	var b bytes.Buffer
	if err := json.Indent(&b, text, "", "  "); err != nil {
		panic("config: the schema cannot be written: " + err.Error())
	}
	b.WriteByte('\n')
	return b.Bytes()
}
