package config

import (
	"strings"
	"testing"
)

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
