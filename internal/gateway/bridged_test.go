package gateway

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/mqtt/mosquittotest"
	"fieldgate/internal/point"
	"fieldgate/internal/uplink"
)

// What comes in by a bridge is not local: neither commands nor settings nor points
// that take only what local clients publish take it, retained or not, and not when it
// is asked for again after a start or a reload.
func TestBridgedIsNotLocal(t *testing.T) {
	t.Parallel()
	up := mosquittotest.Start(t, mosquittotest.Options{})
	text := fmt.Sprintf(`
site: { id: s }
devices: { v: { points: { a: { initial: 1, write: {} }, b: { initial: 1, write: {} }, c: { initial: 1, write: {} }, d: { initial: 1, from: { topic: cloud/d, uplink: local } } } } }
uplinks: { cloud: { url: "mqtt://127.0.0.1:%d", bridge: [ { in: "config/#" }, { in: "cmd/#" }, { in: "cloud/#" } ] } }
broker: { listen: mqtt://127.0.0.1:0, anonymous: true }
settings: { from: local, allow: status, confirm: 1s }
commands: [ { topic: cmd/a, write: v.a, from: local }, { topic: cmd/b, write: v.b, from: local, retained: restore } MORE ]
web: false
`, up.Port)
	with := func(more string) string { return strings.Replace(text, "MORE", more, 1) }
	a := follow(t, t.TempDir(), with(""))
	_, got := a.client("watch", "config/#", "cmd/#", "cloud/#")
	r := a.reloading
	r.until("the uplink is connected", func() bool { return a.now.Load().way("cloud").uplink.Connected() })
	far, err := uplink.Connect(t.Context(), config.Uplink{ClientID: "far", Keepalive: time.Minute, ConnectTimeout: 20 * time.Second}, up.URL(), uplink.ConnOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	for topic, payload := range map[string]string{
		"config/s/update": `{"id":"x","set":{"status.every":"5s"}}`, "cmd/a": "7", "cmd/b": "7", "cmd/c": "7", "cloud/d": "7",
	} {
		for _, retain := range []bool{false, true} {
			if err := far.Publish(t.Context(), mqtt.Message{Topic: topic, Payload: []byte(payload), QoS: 1, Retain: retain}); err != nil {
				t.Fatal(err)
			}
		}
	}
	hold := func(when string) {
		t.Helper()
		for _, id := range []point.ID{"v.a", "v.b", "v.c", "v.d"} {
			if s, err := a.plant.Read(t.Context(), id); err != nil || s[0].Value != point.Float64Value(1) {
				t.Errorf("%s: %s is %v, %v", when, id, s, err)
			}
		}
		if a.now.Load().status.Every.String() != "1m0s" {
			t.Errorf("%s: a setting has changed", when)
		}
		for _, m := range got() {
			if strings.HasSuffix(m.Topic, "/ack") {
				t.Errorf("%s: %s %s", when, m.Topic, m.Payload)
			}
		}
	}
	r.until("all has come in", func() bool { return a.Status().Uplinks["cloud"].Bridge.In >= 10 })
	hold("when it came in")

	// What the broker keeps of it is not local with the next start either.
	a.stop()
	a = follow(t, a.dir, with(""))
	r = a.reloading
	kept := a.now.Load().broker.Broker
	for _, topic := range []string{"config/s/update", "cmd/a", "cmd/b", "cmd/c", "cloud/d"} {
		r.until(topic+" is retained", func() bool { _, ok := kept.Retained(topic); return ok })
	}
	c, watch := a.client("watch", "config/#", "cmd/#", "cloud/#")
	got = watch
	hold("after a start")
	if err := os.WriteFile(a.path, []byte(with(", { topic: cmd/c, write: v.c, from: local, retained: restore }")), 0o600); err != nil {
		t.Fatal(err)
	}
	a.reload()
	hold("after a reload")

	// The same of a local client is.
	for _, topic := range []string{"cmd/a", "cmd/b", "cmd/c"} {
		if err := c.Publish(t.Context(), mqtt.Message{Topic: topic, Payload: []byte("5"), QoS: 1}); err != nil {
			t.Fatal(err)
		}
		r.until(topic+" is done", func() bool { return said(got, topic+"/ack", `"verified"`) })
	}
	if acks := got(); slices.ContainsFunc(acks, func(m mqtt.Message) bool { return strings.Contains(string(m.Payload), "rejected") }) {
		t.Errorf("%v", acks)
	}
}
