package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Sums tell one text from another, wherever it stands, and not one comment of a layer
// from another.
func TestSums(t *testing.T) {
	const base = "site: { id: s }\nbroker: { anonymous: true }\nsettings: { from: local, allow: status }\n"
	sums := func(files map[string]string) Sums {
		t.Helper()
		dir := write(t, files)
		cfg, err := LoadLayer(filepath.Join(dir, "fieldgate.yaml"), filepath.Join(dir, "layer"))
		if err != nil {
			t.Fatal(err)
		}
		return cfg.Sums
	}
	was := sums(map[string]string{"fieldgate.yaml": base})
	if was.Files == 0 || was.Layer != 0 {
		t.Errorf("%+v", was)
	}
	for name, c := range map[string]struct {
		files        map[string]string
		files1, with bool // another sum of the files; a layer
	}{
		"the same":       {map[string]string{"fieldgate.yaml": base}, false, false},
		"a space":        {map[string]string{"fieldgate.yaml": base + " "}, true, false},
		"one more file":  {map[string]string{"fieldgate.yaml": base, "conf.d/a.yaml": "log: { level: debug }"}, true, false},
		"an empty file":  {map[string]string{"fieldgate.yaml": base, "conf.d/a.yaml": ""}, true, false},
		"no conf.d file": {map[string]string{"fieldgate.yaml": base, "conf.d/a.txt": "x"}, false, false},
		"a layer":        {map[string]string{"fieldgate.yaml": base, "layer": "{}"}, false, true},
	} {
		if is := sums(c.files); (is.Files != was.Files) != c.files1 || (is.Layer != 0) != c.with {
			t.Errorf("%s: %+v, before %+v", name, is, was)
		}
	}
	one := sums(map[string]string{"fieldgate.yaml": base, "layer": "#{}\n# x\n{\"status.every\": \"5s\"}\n"})
	if is := sums(map[string]string{"fieldgate.yaml": base, "layer": "#y\n{\"status.every\": \"5s\"}\n"}); is != one {
		t.Errorf("another comment: %+v, before %+v", is, one)
	}
	if is := sums(map[string]string{"fieldgate.yaml": base, "layer": "{\"status.every\": \"6s\"}\n"}); is == one {
		t.Errorf("another setting: %+v", is)
	}
	path := filepath.Join(write(t, map[string]string{"fieldgate.yaml": base}), "fieldgate.yaml")
	over, err := LoadOver(path, "none", []byte("{\"status.every\": \"5s\"}\n"))
	if err != nil || over.Sums != one || over.Status.Every.String() != "5s" {
		t.Errorf("%+v, %v, want %+v", over.Sums, err, one)
	}
	if _, err := os.Stat("none"); err == nil {
		t.Error("the file is there")
	}
}

// What decides where a write goes is allowed only by its name.
func TestSettingsRefuses(t *testing.T) {
	wide := &Settings{Allow: []string{"devices.*", "buses", "uplinks.*"}}
	for _, key := range []string{
		"uplinks.u.bridge", "uplinks.u.proxy", "uplinks.u", "buses.b.tcp", "buses.b.serial", "buses.b.udp", "buses.b.listen", "buses.b", "devices.d",
		"devices.d.setup", "devices.d.bus", "devices.d.unit", "devices.d.base", "devices.d.order", "devices.d.points", "devices.d.points.p",
		"devices.d.points.p.at", "devices.d.points.p.scale", "devices.d.points.p.map", "devices.d.points.p.from", "devices.d.points.p.initial", "devices.d.points.p.write.max",
	} {
		if why := wide.Refuses(key); !strings.HasPrefix(why, "is or holds ") {
			t.Errorf("%s: %q", key, why)
		}
	}
	for _, key := range []string{"devices.d.every", "devices.d.timeout", "devices.d.points.p.label", "buses.b.gap", "uplinks.u.keepalive"} {
		if why := wide.Refuses(key); why != "" {
			t.Errorf("%s %s", key, why)
		}
	}
	named := &Settings{Allow: []string{"devices.*.points.*.at", "devices.d.setup", "buses.*.tcp"}}
	for _, key := range []string{"devices.d.points.p.at", "devices.d.setup", "buses.b.tcp"} {
		if why := named.Refuses(key); why != "" {
			t.Errorf("%s %s", key, why)
		}
	}
	if !IsSecret("uplinks.u.proxy") || IsSecret("uplinks.u.url") {
		t.Error("a proxy's address is secret, since its password is in it")
	}
}
