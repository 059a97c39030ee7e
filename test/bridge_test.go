package test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/mqtt/mosquittotest"
	"fieldgate/internal/uplink"
)

// machine is a client of the embedded broker that publishes one message after
// the other, each until it is acknowledged.
type machine struct {
	name  string
	qos   uint8
	acked int
}

// publish publishes on topic out/NAME until ctx ends.
func (m *machine) publish(ctx context.Context, url string) {
	cfg := config.Uplink{ClientID: m.name, CleanSession: true, Keepalive: time.Minute, ConnectTimeout: time.Second}
	for ctx.Err() == nil {
		c, err := uplink.Connect(ctx, cfg, url, uplink.ConnOptions{})
		if err != nil {
			time.Sleep(10 * time.Millisecond) // the gateway is being started
			continue
		}
		for c.Publish(ctx, mqtt.Message{Topic: "out/" + m.name, Payload: fmt.Appendf(nil, "%d", m.acked), QoS: m.qos}) == nil {
			m.acked++
		}
		c.Close()
	}
}

// killLoop kills the gateway while machines publish and the uplink comes and
// goes. Nothing that was acknowledged is lost.
func killLoop(t *testing.T, rounds int) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	up := mosquittotest.Start(t, mosquittotest.Options{Lines: []string{"max_queued_messages 0"}}) // else it drops some in a drain
	// With QoS 2 mosquitto gives its subscriber messages of both QoS in another
	// order than it got them, when there are many.
	sub := up.Subscribe([]string{"cloud/#"}, "-q", "1")
	wire := newLink(t, up.Addr())
	local := freePort(t)
	dir := t.TempDir()
	cfg := writeFile(t, "fieldgate.yaml", fmt.Sprintf(`
site: { id: gw1 }
uplinks: { cloud: { url: "mqtt://%s", queue: { commit: 1s }, bridge: [{ out: "#", local_prefix: out/, remote_prefix: cloud/, qos: 2 }] } }
broker: { listen: "mqtt://127.0.0.1:%d", anonymous: true }
`, wire.Addr(), local))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var machines []*machine
	var publishing sync.WaitGroup
	for i := range 6 {
		m := &machine{name: fmt.Sprint("machine", i), qos: 1 + uint8(i%2)}
		machines = append(machines, m)
		publishing.Go(func() { m.publish(ctx, fmt.Sprintf("mqtt://127.0.0.1:%d", local)) })
	}
	for i := range rounds {
		flip(t, wire, rng)
		gw := start(t, binary, "-c", cfg, "run", "--data", dir)
		gw.log.waitFor(t, "msg=started")
		life := time.Duration(rng.IntN(400)) * time.Millisecond
		time.Sleep(life / 2) // the moments are the point of the test
		if rng.IntN(2) == 0 {
			flip(t, wire, rng)
		}
		time.Sleep(life / 2)
		if i == rounds-1 {
			cancel()
			publishing.Wait()
		}
		_ = gw.cmd.Process.Kill()
		<-gw.done
	}
	open(t, wire)
	gw := start(t, binary, "-c", cfg, "run", "--data", dir)
	gw.log.waitFor(t, "msg=started")
	total, missing := 0, make(map[string]bool)
	for _, m := range machines {
		total += m.acked
		for n := range m.acked {
			missing[fmt.Sprintf("cloud/%s %d", m.name, n)] = true
		}
	}
	if total == 0 {
		t.Fatal("nothing was acknowledged")
	}
	next := make(map[string]int) // what comes first of each machine comes in order
	twice := 0
	sub.Until(func(r mosquittotest.Received) bool {
		delete(missing, r.Topic+" "+r.Payload)
		switch n := next[r.Topic]; {
		case r.Payload == fmt.Sprint(n):
			next[r.Topic]++
		case len(r.Payload) > len(fmt.Sprint(n)) || len(r.Payload) == len(fmt.Sprint(n)) && r.Payload > fmt.Sprint(n):
			t.Fatalf("%s: %s came before %d", r.Topic, r.Payload, n)
		default:
			twice++
		}
		return len(missing) == 0
	})
	t.Logf("%d messages acknowledged over %d kills, 0 lost, %d came twice", total, rounds, twice)
}

func TestKillWhileBridging(t *testing.T) {
	t.Parallel()
	killLoop(t, 4)
}

// mosquitto_pub publishes by the embedded broker's access list; what it refuses
// does not go up, what it takes arrives.
func TestBridgeKeepsToTheACL(t *testing.T) {
	t.Parallel()
	up := mosquittotest.Start(t, mosquittotest.Options{})
	sub := up.Subscribe([]string{"#"})
	local := freePort(t)
	gw := startGateway(t, fmt.Sprintf(`
site: { id: gw1 }
uplinks: { cloud: { url: "%s", bridge: [{ both: "#" }] } }
publish: [{ to: local }]
broker:
  listen: "mqtt://127.0.0.1:%d"
  users:
    - { name: plc, password: "$argon2id$v=19$m=12288,t=3,p=1$Q2Ozec0JtzAox6pqC+kW/A$UsyrzJuM4wRRZWKbclkAbk/KDwqk2UtQLvuPlKwDre8", publish: [m/#], subscribe: [m/+] }
`, up.URL(), local))
	gw.log.waitFor(t, "uplink connected")
	pub := func(topic, qos, payload string) error {
		args := []string{"-h", "127.0.0.1", "-p", fmt.Sprint(local), "-u", "plc", "-P", "secret", "-t", topic, "-q", qos, "-m", payload}
		out, err := exec.Command("mosquitto_pub", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	_ = pub("secret", "1", "no")
	for i, qos := range []string{"0", "1", "2"} {
		if err := pub("m/a", qos, fmt.Sprint(i)); err != nil {
			t.Error(err)
		}
	}
	var got []string
	for len(got) < 3 {
		if r := sub.Next(1)[0]; !strings.HasPrefix(r.Topic, "fieldgate/") {
			got = append(got, r.Topic+"="+r.Payload)
		}
	}
	if want := "m/a=0 m/a=1 m/a=2"; strings.Join(got, " ") != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
