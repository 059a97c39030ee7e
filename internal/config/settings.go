package config

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"fieldgate/internal/config/yamltree"
)

// This file is what may be changed from afar: the key settings, and the layer,
// a file that the gateway itself writes, with the settings that were.

// Settings says who may change the configuration by messages, and what of it.
type Settings struct {
	Topic   string
	Ack     string        // where it is answered
	From    []string      // names of uplinks, Local; never empty
	Users   []string      // of the embedded broker; nil: any
	Allow   []string      // patterns over keys, see Refuses
	Confirm time.Duration // how long a change is on trial
}

type rawSettings struct {
	Settings
	at *node
}

func settings(t *tables) value[*rawSettings] {
	return pointer(located(newObject("settings", "What may be changed by messages. A change is checked, tried, and taken back if the gateway does worse with it.", rawSettings{},
		key("topic", func(s *rawSettings) *string { return &s.Topic }, template("a topic", statusPlaceholders, true), "Where changes come.").def(`"config/{site}/update"`),
		key("ack", func(s *rawSettings) *string { return &s.Ack }, template("a topic", statusPlaceholders, true), "Where they are answered. Default: the topic with /ack.").aka("answer"),
		key("from", func(s *rawSettings) *[]string { return &s.From }, oneOrList(text("the name of an uplink, or local"), "names of uplinks, or local"), "Who may send them: names of uplinks; local is the embedded broker.").must().aka("uplink", "source"),
		key("users", func(s *rawSettings) *[]string { return &s.Users }, oneOrList(text("a user of the embedded broker"), "users of the embedded broker"), "Users of the embedded broker who may. Default: all of them."),
		key("allow", func(s *rawSettings) *[]string { return &s.Allow }, oneOrList(settingPattern(), "patterns over keys, such as devices.*.every"), "What they may change: keys with dots between them, * for any one, and all that is below them. Secrets, users, addresses, where points are, what may be written and by whom, and settings itself must be named in full.").must(),
		key("confirm", func(s *rawSettings) *time.Duration { return &s.Confirm }, duration(time.Second, time.Hour), "How long a change is on trial: uplinks and devices must be as well as before at its end.").def("2m").aka("timeout"),
	).value(t, "settings"), func(s *rawSettings) **node { return &s.at }))
}

// settingPattern is a pattern of Settings.Allow.
func settingPattern() value[string] {
	v := text("a pattern over keys, such as devices.*.every")
	return value[string]{v.schema, func(d *decoder, n *node) (string, bool) {
		s, ok := v.read(d, n)
		if first, _, _ := strings.Cut(s, "."); ok && first == "*" {
			d.faultf(n, "%s would allow everything; write the sections, such as devices.*", quote(s))
			return "", false
		}
		return s, ok
	}}
}

// settingsKey resolves who may change what. The path is at settings.
func (r *resolver) settingsKey() {
	raw := r.raw.settings
	if raw == nil || raw.at == nil || raw.at.Kind != yamltree.Map {
		return
	}
	s := raw.Settings
	s.Topic = r.fillIn(s.Topic, "")
	if s.Ack = r.fillIn(s.Ack, ""); s.Ack == "" {
		s.Ack = s.Topic + "/ack"
	}
	var known []string
	for _, u := range r.cfg.Uplinks {
		known = append(known, u.Name)
	}
	if r.cfg.Broker != nil {
		known = append(known, Local)
	}
	_, from := raw.at.Get("from")
	for _, name := range s.From {
		if name != "" && !slices.Contains(known, name) {
			r.in("from")
			r.missingf(from, "there is no uplink %s, nor a broker of that name; %s", quote(name), Suggest(name, known))
			r.out()
		}
	}
	if s.Ack == s.Topic {
		r.keyFault(raw.at, "ack", "is where the changes come; write another topic")
	}
	r.cfg.Settings = &s
}

// guarded is what a pattern must name in full to allow it: who may write and read
// what, and where a value comes from and a write goes. Whoever may move a point may
// write any register by it.
var guarded = []string{
	"settings", "commands", "command_rules", "servers", "web", "broker.users", "broker.anonymous", "broker.anonymous_lan", "broker.listen",
	"buses.*.serial", "buses.*.tcp", "buses.*.udp", "buses.*.listen",
	"devices.*.bus", "devices.*.unit", "devices.*.base", "devices.*.order", "devices.*.setup", "devices.*.profile",
	"devices.*.points.*.write", "devices.*.points.*.at", "devices.*.points.*.type", "devices.*.points.*.order", "devices.*.points.*.byte",
	"devices.*.points.*.bit", "devices.*.points.*.bits", "devices.*.points.*.scale", "devices.*.points.*.offset", "devices.*.points.*.decimals",
	"devices.*.points.*.map", "devices.*.points.*.from", "devices.*.points.*.initial",
	"uplinks.*.url", "uplinks.*.username", "uplinks.*.bridge",
}

// secrets are what is never shown, and guarded as well. The address of a proxy may
// hold a password.
var secrets = []string{"uplinks.*.password", "uplinks.*.azure_sas", "uplinks.*.proxy", "uplinks.*.tls", "broker.users", "broker.tls"}

// covers reports whether a pattern is of a key or of one above it: * stands for
// any one key.
func covers(pattern, path []string) bool {
	if len(pattern) > len(path) {
		return false
	}
	for i, p := range pattern {
		if p != "*" && p != path[i] {
			return false
		}
	}
	return true
}

// touches reports whether a key is, holds, or is part of what a pattern means.
func touches(pattern, path []string) bool {
	n := min(len(pattern), len(path))
	return covers(pattern[:n], path[:n])
}

// IsSecret reports whether the value of a key is not to be shown.
func IsSecret(path string) bool {
	return slices.ContainsFunc(secrets, func(p string) bool { return touches(strings.Split(p, "."), strings.Split(path, ".")) })
}

// Refuses says why a key may not be changed from afar; "": it may.
func (s *Settings) Refuses(path string) string {
	keys := strings.Split(path, ".")
	if slices.Contains(keys, "") || slices.Contains(keys, "<<") {
		return "is no key; write keys with dots between them, such as devices.boiler.every"
	}
	var allowed [][]string
	for _, a := range s.Allow {
		if pattern := strings.Split(a, "."); covers(pattern, keys) {
			allowed = append(allowed, pattern)
		}
	}
	if allowed == nil {
		return "is not allowed by settings.allow of this gateway"
	}
	for _, g := range slices.Concat(guarded, secrets) {
		guard := strings.Split(g, ".")
		if !touches(guard, keys) {
			continue
		}
		named := func(pattern []string) bool {
			if len(pattern) < len(guard) {
				return false
			}
			for i, g := range guard {
				if g != "*" && pattern[i] != g {
					return false
				}
			}
			return true
		}
		if !slices.ContainsFunc(allowed, named) {
			return "is or holds " + g + ", which settings.allow of this gateway does not name"
		}
	}
	return ""
}

// layer puts the settings that were changed from afar, which stand in the file at
// path, over those of the configuration.
func (l *loader) layer(path string) {
	if path == "" || l.root == nil || l.root.Kind != yamltree.Map {
		return
	}
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		l.d.files[path] = len(l.d.files)
		l.d.warnings = append(l.d.warnings, found{Fault: Fault{File: path, Text: "what was changed from afar is not at work: " + readFault(err)}})
	default:
		l.over(path, text)
	}
}

// over puts the settings in text, which stands for the file at path, over those of
// the configuration. What settings: does not allow stays as it is.
func (l *loader) over(path string, text []byte) {
	d := &l.d
	if l.root == nil || l.root.Kind != yamltree.Map {
		return
	}
	warn := func(key *node, path, text string) {
		f := Fault{File: d.set.Place(key).File, Line: d.set.Place(key).Line, Col: d.set.Place(key).Col, Path: printable(path), Text: text}
		d.warnings = append(d.warnings, found{Fault: f})
	}
	d.files[path] = len(d.files)
	l.sums.Layer = sum(0, "", text[len(comments(text)):])
	_, at := l.root.Get("settings")
	if at == nil {
		d.warnings = append(d.warnings, found{Fault: Fault{File: path, Text: "what was changed from afar is not at work, since settings: is not in the configuration; remove the file, or add settings:"}})
		return
	}
	root, errs := d.set.Parse(path, text)
	for _, e := range errs {
		d.found = append(d.found, found{Fault: Fault{e.Place.File, e.Place.Line, e.Place.Col, "", printable(e.Text)}})
	}
	if root == nil || root.Kind != yamltree.Map {
		return
	}
	var s Settings
	switch _, allow := at.Get("allow"); {
	case allow == nil:
	case allow.Kind == yamltree.List:
		for n := range allow.Items {
			s.Allow = append(s.Allow, n.Text)
		}
	default:
		s.Allow = []string{allow.Text}
	}
	for k, v := range root.Entries {
		if why := s.Refuses(k.Text); why != "" {
			warn(k, k.Text, why+", so that it is as it stands in the configuration")
			continue
		}
		warn(k, k.Text, "was changed from afar")
		l.root = d.set.Put(l.root, strings.Split(k.Text, "."), k, v)
	}
}

// comments returns the comments before all else in a text.
func comments(text []byte) []byte {
	n := 0
	for n < len(text) && text[n] == '#' {
		end := bytes.IndexByte(text[n:], '\n')
		if end < 0 {
			return text
		}
		n += end + 1
	}
	return text[:n]
}

// Sums tell whether what a configuration was read from has changed since. They mean
// nothing to another process.
type Sums struct {
	Files uint64 // the file, and those of conf.d
	Layer uint64 // what was changed from afar, but for comments before it; 0: nothing was
}

var sumSeed = maphash.MakeSeed()

// sum goes on from the sum of what was before with one more file.
func sum(before uint64, name string, text []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(sumSeed)
	for _, b := range [][]byte{binary.LittleEndian.AppendUint64(nil, before), []byte(name), {0}, text} {
		_, _ = h.Write(b) // never fails
	}
	return max(h.Sum64(), 1)
}

// LoadLayer is Load with the settings that were changed from afar, which stand in
// the file at layer, if there is one.
func LoadLayer(path, layer string) (*Config, error) {
	l := newLoader()
	if err := l.read(path); err != nil {
		return nil, err
	}
	l.layer(layer)
	return l.finish()
}

// LoadOver is LoadLayer with what the file at layer is to hold: it need not be there.
func LoadOver(path, layer string, text []byte) (*Config, error) {
	l := newLoader()
	if err := l.read(path); err != nil {
		return nil, err
	}
	l.over(layer, text)
	return l.finish()
}

// Values returns what stands at keys, in the configuration at path with settings
// that were changed from afar, the text of such a file: as YAML in one line, *** for
// what is secret. What is not given is not there.
func Values(path string, layer []byte, keys []string) (map[string]string, error) {
	l := newLoader()
	if err := l.read(path); err != nil {
		return nil, err
	}
	l.over("", layer)
	values := make(map[string]string)
	for _, key := range keys {
		n := l.root.Find(strings.Split(key, "."))
		switch {
		case n == nil:
		case IsSecret(key):
			values[key] = hidden
		case n.Kind == yamltree.Scalar:
			values[key] = n.Text // without quotes
		default:
			values[key] = string(n.AppendFlow(nil))
		}
	}
	return values, nil
}
