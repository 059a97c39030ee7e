package test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"fieldgate/internal/mqtt/mosquittotest"
)

// The list of subscriptions (S31): each is confirmed by the broker, one that it
// refuses raises an alarm and keeps no other from being served.
func TestSubscriptionRefused(t *testing.T) {
	t.Parallel()
	const plugin = "/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so"
	if _, err := os.Stat(plugin); err != nil {
		t.Skip("mosquitto's own access lists refuse no subscription, and its plugin is not there: ", err)
	}
	rules := `{"defaultACLAccess":{"publishClientSend":true,"publishClientReceive":true,"subscribe":true,"unsubscribe":true},
		"clients":[],"anonymousGroup":"any","groups":[{"groupname":"any","roles":[{"rolename":"any"}]}],
		"roles":[{"rolename":"any","acls":[{"acltype":"subscribePattern","topic":"secret/#","allow":false}]}]}`
	file := filepath.Join(t.TempDir(), "security.json")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	up := mosquittotest.Start(t, mosquittotest.Options{Lines: []string{"plugin " + plugin, "plugin_opt_config_file " + file}})
	sub := watch(t, up.Port, "plant/alarms/#", "+/+/ack")
	gw := startGateway(t, fmt.Sprintf(`
site: { id: plant }
devices: { tank: { points: { level: { write: { max: 100 } } } } }
uplinks: { cloud: { url: "%s" } }
commands:
  - { topic: "set/{point}", write: "tank.{point}" }
  - { topic: "secret/#", event: secret }
`, up.URL()))
	const topic = "plant/alarms/critical"
	sub.wait("the alarm", func() bool { return sub.last(topic) != "" })
	stamp := regexp.MustCompile(`"timestamp":"[^"]*"`)
	want := `{"alarm":"subscription_refused.cloud","state":"raised","severity":"critical","value":1,` +
		`"reason":"what is sent there does not arrive here: session: the broker refuses the subscription to secret/#; check the broker's access rules","timestamp":"T"}`
	if got := stamp.ReplaceAllString(sub.last(topic), `"timestamp":"T"`); got != want {
		t.Errorf("alarm\n got %s\nwant %s", got, want)
	}
	start(t, "mosquitto_pub", "-p", fmt.Sprint(up.Port), "-t", "set/level", "-m", "5", "-q", "1")
	sub.wait("the answer", func() bool { return strings.Contains(sub.last("set/level/ack"), `"verified"`) })
	gw.wantLine("alarm raised", "subscription_refused.cloud")
}
