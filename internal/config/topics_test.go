package config_test

import (
	"slices"
	"strings"
	"testing"

	"fieldgate/internal/config"
	"fieldgate/internal/publish"
)

// publish puts the values into topics and config checks them first: both know
// the same placeholders.
func TestPlaceholders(t *testing.T) {
	const devices = `
buses: { b: { tcp: 10.0.0.1:502 } }
devices: { d: { bus: b, points: { p: { at: 40001, tags: { NAME: x } } } } }
broker: { anonymous: true }
`
	// What publish knows stands in its fault.
	_, faults := publish.Topics(config.Site{ID: "s"}, []config.Rule{{Points: []string{"*"}, Topic: "{zzz}"}}, nil)
	if len(faults) == 0 {
		t.Fatal("publish takes {zzz}")
	}
	var known []string
	for rest := faults[0].Text; ; {
		_, after, ok := strings.Cut(rest, "{")
		if !ok {
			break
		}
		name, after, _ := strings.Cut(after, "}")
		if name != "zzz" {
			known = append(known, name)
		}
		rest = after
	}
	if !slices.Contains(known, "site") || len(known) < 10 {
		t.Fatalf("publish knows %q", known)
	}
	for _, name := range known {
		cfg, err := config.LoadBytes("f", []byte(devices+"publish: [{ topic: \"a/{"+name+"}\" }]"))
		if err != nil {
			t.Errorf("config does not know {%s}: %v", name, err)
			continue
		}
		if _, faults := publish.Topics(cfg.Site, cfg.Publish, cfg.Devices); len(faults) > 0 {
			t.Errorf("{%s}: %v", name, faults)
		}
	}
	_, err := config.LoadBytes("f", []byte(devices+`publish: [{ topic: "{?}" }]`))
	if err == nil {
		t.Fatal("config takes {?}")
	}
	for _, name := range known {
		if !strings.Contains(err.Error(), "{"+name+"}") {
			t.Errorf("config does not name {%s}: %v", name, err)
		}
	}
	if got := strings.Count(err.Error(), "{") - 1; got != len(known) {
		t.Errorf("config names %d placeholders, publish %d: %v", got, len(known), err)
	}
}
