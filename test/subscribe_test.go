package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"fieldgate/internal/mqtt/mosquittotest"
)

// The list of subscriptions (S31): the broker confirms each; one that it refuses
// raises an alarm and keeps no other from being served. What is added and taken
// away by a reload is asked for and given back on the same connection. What is
// seen stands in testdata/subscriptions.txt.
func TestSubscriptions(t *testing.T) {
	t.Parallel()
	const plugin = "/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so"
	if _, err := os.Stat(plugin); err != nil {
		t.Skip("mosquitto's own access lists refuse no subscription, and its plugin is not there: ", err)
	}
	rules := `{"defaultACLAccess":{"publishClientSend":true,"publishClientReceive":true,"subscribe":true,"unsubscribe":true},
		"clients":[],"anonymousGroup":"any","groups":[{"groupname":"any","roles":[{"rolename":"any"}]}],
		"roles":[{"rolename":"any","acls":[{"acltype":"subscribePattern","topic":"secret/#","allow":false}]}]}`
	up := mosquittotest.Start(t, mosquittotest.Options{Lines: []string{"plugin " + plugin, "plugin_opt_config_file " + writeFile(t, "security.json", rules)}})
	story := newTranscript(t)
	story.add("The list of subscriptions (S31), between the gateway and a broker that refuses\nsecret/#: > is what the gateway sends, < what it gets.")
	sub := watch(t, up.Port, "plant/alarms/critical", "fieldgate/plant/event", "+/+/ack")
	said := 0
	// news adds what the gateway has published since, once done has come.
	news := func(done string) {
		t.Helper()
		sub.wait(done, func() bool {
			for _, m := range sub.messages()[said:] {
				if strings.Contains(m.topic+" "+m.payload, done) {
					return true
				}
			}
			return false
		})
		for _, m := range sub.messages()[said:] {
			said++
			if m.topic != "fieldgate/plant/event" || strings.Contains(m.payload, `"event":"alert"`) {
				story.add("pub %s %s", m.topic, m.payload)
			}
		}
	}
	send := func(topic, payload string) {
		t.Helper()
		story.add("sub %s %s", topic, payload)
		if err := execute("mosquitto_pub", "-p", strconv.Itoa(up.Port), "-q", "1", "-t", topic, "-m", payload); err != nil {
			t.Fatal(err)
		}
	}

	wire := story.subscriptions(up.Addr())
	path := filepath.Join(t.TempDir(), "fieldgate.yaml")
	configure := func(commands ...string) {
		t.Helper()
		story.add("\ncommands: [ %s ]", strings.Join(commands, ", "))
		text := fmt.Sprintf(`
site: { id: plant }
devices: { tank: { points: { level: { write: { max: 100 } } } } }
uplinks: { cloud: { url: "mqtt://%s" } }
publish: [ { points: "none.*" } ]
commands: [ %s ]
web: false
`, wire, strings.Join(commands, ", "))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	const level, secret, alerts = `{ topic: "set/{point}", write: "tank.{point}" }`, `{ topic: "secret/#", event: secret }`, `{ topic: "alerts/#", event: alert }`
	configure(level, secret)
	gw := start(t, binary, "-c", path, "run", "--data", filepath.Join(filepath.Dir(path), "data"))
	news("subscription_refused")
	send("set/level", "5")
	news("set/level/ack {")

	reload := func(commands ...string) {
		t.Helper()
		configure(commands...)
		if err := gw.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	reload(level, alerts)
	story.await("UNSUBACK", 1)
	send("alerts/storm", "secure the roof")
	news("secure the roof")

	reload(alerts)
	story.await("UNSUBACK", 2)
	send("set/level", "6") // nobody answers
	send("alerts/storm", "it is over")
	news("it is over")
	if code, _ := gw.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	story.check("testdata/subscriptions.txt")
}
