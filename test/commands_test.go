package test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/audit"
	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/mqtt/mosquittotest"
	"fieldgate/internal/simulate"
	"fieldgate/internal/uplink"
	"fieldgate/test/madeup"
)

// commander sends commands, each with an id and a value of its own, until each is
// answered; it sends again, with the same id, what got no answer.
type commander struct {
	mu      sync.Mutex
	next    int
	open    map[string]int    // not answered yet: id and value
	answers map[string]string // first status by id
	other   []string          // answers that differ from the first
}

func newCommander() *commander {
	return &commander{open: make(map[string]int), answers: make(map[string]string)}
}

// take is given each message on the topic of the answers.
func (c *commander) take(m mqtt.Message) []<-chan struct{} {
	var a struct{ ID, Status, Reason string }
	if json.Unmarshal(m.Payload, &a) != nil || a.ID == "" {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.Status == "rejected" && (strings.HasPrefix(a.Reason, "busy") || a.Reason == "the gateway is stopping") {
		return nil // it was not taken on, and may be asked for again
	}
	delete(c.open, a.ID)
	if first, known := c.answers[a.ID]; known && first != a.Status {
		c.other = append(c.other, fmt.Sprintf("%s: %s, then %s: %s", a.ID, first, a.Status, a.Reason))
	} else if !known {
		c.answers[a.ID] = a.Status
	}
	return nil
}

// message returns the next command, or one that was sent and has no answer.
func (c *commander) message(again bool) (m mqtt.Message, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := 0
	if again {
		for _, v = range c.open {
			break
		}
		if v == 0 {
			return m, false
		}
	} else {
		c.next++
		v = c.next
		c.open["job-"+strconv.Itoa(v)] = v
	}
	return mqtt.Message{Topic: "cmd/" + strconv.Itoa(1+v%2), Payload: fmt.Appendf(nil, `{"id":"job-%d","value":%d}`, v, v), QoS: 1}, true
}

// connect opens a connection that gets the answers.
func (c *commander) connect(ctx context.Context, url string) *uplink.Conn {
	cfg := config.Uplink{ClientID: "commander", CleanSession: true, Keepalive: time.Minute, ConnectTimeout: time.Second}
	for ctx.Err() == nil {
		conn, err := uplink.Connect(ctx, cfg, url, uplink.ConnOptions{Handler: c.take})
		if err != nil {
			time.Sleep(10 * time.Millisecond) // who listens there is being started
			continue
		}
		if _, err := conn.Subscribe(ctx, "cmd/+/ack", 1); err == nil {
			return conn
		}
		conn.Close()
	}
	return nil
}

// send sends for a while, or until the connection ends.
func (c *commander) send(ctx context.Context, url string, rng *rand.Rand, pause time.Duration) {
	conn := c.connect(ctx, url)
	if conn == nil {
		return
	}
	defer conn.Close()
	for ctx.Err() == nil && conn.Err() == nil {
		if m, ok := c.message(rng.IntN(3) == 0); ok {
			limit, cancel := context.WithTimeout(ctx, time.Second)
			_ = conn.Publish(limit, m) // if that fails, it has no answer
			cancel()
		}
		time.Sleep(pause)
	}
}

// finish sends what has no answer again until everything has one. It gives up when
// patience has passed without any.
func (c *commander) finish(t *testing.T, url string) {
	t.Helper()
	conn := c.connect(t.Context(), url)
	if conn == nil {
		t.Fatal("nobody listens")
	}
	defer conn.Close()
	for open, began := c.unanswered(), time.Now(); open > 0; time.Sleep(10 * time.Millisecond) {
		if now := c.unanswered(); now < open {
			open, began = now, time.Now()
		}
		if m, more := c.message(true); more {
			if err := conn.Publish(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			if time.Since(began) > patience {
				t.Fatalf("no answer to %d commands, such as %s", open, m.Payload)
			}
		}
	}
}

func (c *commander) unanswered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}

// twin is two devices that note what is written to them.
func twin(t *testing.T) (addr string, written func() map[uint16]int) {
	t.Helper()
	var mu sync.Mutex
	counts := make(map[uint16]int)
	bus := &simulate.Bus{Name: "plc", Kind: config.TCP, Framing: modbus.FramingTCP, Address: "127.0.0.1:0"}
	for unit := modbus.UnitID(1); unit <= 2; unit++ {
		bus.Devices = append(bus.Devices, simulate.New(simulate.Settings{
			Name: fmt.Sprint("d", unit), Unit: unit, Latency: 3 * time.Millisecond,
			OnWrite: func(w simulate.Write) {
				mu.Lock()
				defer mu.Unlock()
				counts[w.Values[0]]++
			},
		}))
	}
	plant := &simulate.Plant{Buses: []*simulate.Bus{bus}}
	madeup.Run(t, plant)
	return bus.Addr(), func() map[uint16]int {
		mu.Lock()
		defer mu.Unlock()
		copied := make(map[uint16]int, len(counts))
		for v, n := range counts {
			copied[v] = n
		}
		return copied
	}
}

const commandYAML = `
site: { id: gw1 }
buses: { plc: { tcp: "%s" } }
devices: { "d{unit}": { bus: plc, unit: 1-2, every: 200ms, points: { v: { at: holding 0, write: {} } } } }
%s
publish: [ { points: "none.*" } ]
commands: [ { topic: "cmd/{unit}", write: "*.v", need_id: true } ]
`

// judge holds what was answered against what the devices and the record say: no
// command was executed twice, none called done that was not.
func (c *commander) judge(t *testing.T, written map[uint16]int, dir string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	count := make(map[string]int)
	for id, status := range c.answers {
		count[status]++
		v, _ := strconv.Atoi(id[len("job-"):])
		n := written[uint16(v)]
		done := status == "written" || status == "verified"
		switch {
		case n > 1:
			t.Errorf("%s was executed %d times", id, n)
		case done && n == 0:
			t.Errorf("%s was answered %s and not executed", id, status)
		case (status == "rejected" || status == "failed") && n > 0:
			t.Errorf("%s was answered %s and executed", id, status)
		}
	}
	for _, text := range c.other {
		t.Errorf("two answers to %s", text)
	}
	if count["verified"] == 0 {
		t.Error("nothing was done")
	}
	t.Logf("%d commands, %d writes, answers %v", c.next, len(written), count)
	recorded := make(map[string]bool)
	if err := audit.Read(dir, func(r audit.Record) error {
		if r.Event == audit.Accepted {
			recorded[r.Value] = true
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	for v := range written {
		if !recorded[strconv.Itoa(int(v))] {
			t.Errorf("%d was written and is not in the record", v)
		}
	}
	if r, err := audit.Verify(dir); err != nil || len(r.Breaks) > 0 {
		t.Errorf("audit: %+v %v", r, err)
	}
}

// killCommands kills the gateway at random moments while commands come.
//
// Each start reads what is recorded, and each command has a value of its own in
// 16 bits: some hundred kills are better several runs.
func killCommands(t *testing.T, rounds int) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	addr, written := twin(t)
	local := freePort(t)
	dir := t.TempDir()
	cfg := writeFile(t, "fieldgate.yaml", fmt.Sprintf(commandYAML, addr, fmt.Sprintf(`broker: { listen: "mqtt://127.0.0.1:%d", anonymous: true }`, local)))
	url := fmt.Sprintf("mqtt://127.0.0.1:%d", local)
	c := newCommander()
	var gw *process
	run := func() {
		gw = start(t, binary, "-c", cfg, "run", "--data", dir)
		gw.log.waitFor(t, "msg=started")
	}
	for range rounds {
		run()
		ctx, cancel := context.WithCancel(t.Context())
		var sending sync.WaitGroup
		dice := rand.New(rand.NewPCG(rng.Uint64(), 0))
		sending.Go(func() { c.send(ctx, url, dice, 2*time.Millisecond) }) // ends with ctx
		// The moments are the point of the test. It takes a while to connect.
		for before, began := c.sent(), time.Now(); c.sent() == before; {
			if time.Since(began) > patience {
				t.Fatalf("nothing could be sent for %v", patience)
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(300*time.Millisecond + time.Duration(rng.IntN(300))*time.Millisecond)
		if err := gw.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-gw.done
		cancel()
		sending.Wait()
	}
	run()
	c.finish(t, url)
	c.judge(t, written(), dir)
	if code, _ := gw.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func (c *commander) sent() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next
}

// TestKillWhileCommanding is the short form of the figure in the soak test.
func TestKillWhileCommanding(t *testing.T) {
	t.Parallel()
	killCommands(t, 3)
}

// Broker, gateway and link are restarted in every order with commands in flight:
// each is answered in the end, none is done twice. Before each restart commands
// are answered again, so that what is cut is a way that works, and some that were
// sent have no answer yet.
func TestCommandsOverRestarts(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	addr, written := twin(t)
	up := mosquittotest.Start(t, mosquittotest.Options{})
	wire := newLink(t, up.Addr())
	dir := t.TempDir()
	cfg := writeFile(t, "fieldgate.yaml", fmt.Sprintf(commandYAML, addr, fmt.Sprintf(`uplinks: { cloud: { url: "mqtt://%s" } }`, wire.Addr())))
	url := "mqtt://" + up.Addr()
	c := newCommander()
	gw := start(t, binary, "-c", cfg, "run", "--data", dir)
	restart := map[rune]func(){
		'g': func() {
			gw.stop()
			gw = start(t, binary, "-c", cfg, "run", "--data", dir)
			gw.log.waitFor(t, "msg=started")
		},
		'l': func() {
			wire.Cut()
			time.Sleep(50 * time.Millisecond)
			open(t, wire)
		},
		'b': func() {
			up.Kill()
			up.Restart()
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	sending.Go(func() { // ends with ctx
		for ctx.Err() == nil {
			c.send(ctx, url, rng, 5*time.Millisecond)
		}
	})
	inFlight := 0
	for _, order := range []string{"glb", "gbl", "lgb", "lbg", "bgl", "blg"} {
		for _, what := range order {
			inFlight += c.busy(t)
			restart[what]()
		}
	}
	c.busy(t)
	cancel()
	sending.Wait()
	t.Logf("%d commands were in flight at 18 restarts", inFlight)
	c.finish(t, url)
	c.judge(t, written(), dir)
}

// busy returns once ten commands that were sent from now on have an answer,
// and others have none: how many.
func (c *commander) busy(t *testing.T) (open int) {
	t.Helper()
	from := c.sent()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		open = 0
		for _, v := range c.open {
			if v > from {
				open++
			}
		}
		answered := c.next - from - open
		c.mu.Unlock()
		if answered >= 10 && open > 0 {
			return open
		}
		if time.Since(began) > patience {
			t.Fatalf("of what was sent for %v, %d commands are answered and %d are not", patience, answered, open)
		}
	}
}
