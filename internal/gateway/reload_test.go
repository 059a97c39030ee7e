package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/group"
	"fieldgate/internal/modbus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
	"fieldgate/internal/publish"
	"fieldgate/internal/queue"
	"fieldgate/internal/uplink"
	"fieldgate/test/smalldisk"
	"fieldgate/test/testlog"
)

// counting is a device whose registers all show the number of the read.
type counting struct{ reads atomic.Uint32 }

func (c *counting) Do(_ context.Context, _ modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	return modbus.Answer(req, c, modbus.Identity{})
}

func (c *counting) Read(_ modbus.Table, _ uint16, dst []uint16) error {
	n := c.reads.Add(1)
	for i := range dst {
		dst[i] = uint16(n >> (16 * ((i + 1) % 2)))
	}
	return nil
}

func (c *counting) Write(modbus.Table, uint16, []uint16) error { return nil }

// plc serves a device until the test ends and returns its address.
func plc(t *testing.T, device modbus.Endpoint) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- (&modbus.Server{Endpoint: device}).Serve(ctx, l, modbus.FramingTCP) }() // ends with stop
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// reloading is a gateway at work that a test reloads.
type reloading struct {
	*Gateway
	t   *testing.T
	dir string
	log *testlog.Log
}

// load is Load of a text.
func load(t *testing.T, text string) (*config.Config, []publish.Topic) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fieldgate.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, topics, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return cfg, topics
}

// running runs a gateway until the test ends.
func running(t *testing.T, text string) *reloading {
	t.Helper()
	return runningIn(t, t.TempDir(), text)
}

// runningIn is running with a data directory.
func runningIn(t *testing.T, dir, text string) *reloading {
	t.Helper()
	r := &reloading{t: t, dir: dir, log: new(testlog.Log)}
	cfg, topics := load(t, text)
	g, err := Open(cfg, topics, r.dir, "test", slog.New(slog.NewTextHandler(r.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	r.Gateway = g
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- g.Run(ctx, func() { close(ready) }) }() // ends with stop
	<-ready
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", r.log)
		}
	})
	return r
}

// to reloads, and holds what was done against what it should be.
func (r *reloading) to(text, want string) {
	r.t.Helper()
	cfg, topics := load(r.t, text)
	did, err := r.Reload(r.t.Context(), cfg, topics)
	if err != nil || did.String() != want {
		r.t.Errorf("did %v (%v), want %s", did, err, want)
	}
}

func (r *reloading) until(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within 30s", what)
		}
	}
}

// client connects to the embedded broker.
func (r *reloading) client(id string, filters ...string) (*uplink.Conn, func() []mqtt.Message) {
	r.t.Helper()
	var mu sync.Mutex
	var got []mqtt.Message
	b := r.now.Load().broker.Broker
	addr := b.Addrs()[0].String()
	for _, bus := range r.Status().Buses {
		for name := range bus.Devices {
			// The library reads what is retained for a new subscriber without a lock.
			r.until("its state is retained", func() bool {
				_, ok := b.Retained("fieldgate/s/device/" + name + "/state")
				return ok
			})
		}
	}
	c, err := uplink.Connect(r.t.Context(), config.Uplink{ClientID: id, Keepalive: time.Minute, ConnectTimeout: 20 * time.Second}, "mqtt://"+addr, uplink.ConnOptions{
		Handler: func(m mqtt.Message) []<-chan struct{} {
			mu.Lock()
			defer mu.Unlock()
			m.Payload = bytes.Clone(m.Payload)
			got = append(got, m)
			return nil
		},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	for _, f := range filters {
		if _, err := c.Subscribe(r.t.Context(), mqtt.Filter(f), 1); err != nil {
			r.t.Fatal(err)
		}
	}
	return c, func() []mqtt.Message {
		mu.Lock()
		defer mu.Unlock()
		return append([]mqtt.Message(nil), got...)
	}
}

// said reports whether a message has come.
func said(got func() []mqtt.Message, topic, part string) bool {
	for _, m := range got() {
		if m.Topic == topic && strings.Contains(string(m.Payload), part) {
			return true
		}
	}
	return false
}

// What has not changed is not touched: the very same parts run on.
func TestReloadTouchesWhatHasChanged(t *testing.T) {
	t.Parallel()
	a, b := plc(t, new(counting)), plc(t, new(counting))
	const text = `
site: { id: s }
buses: { a: { tcp: A }, b: { tcp: B } }
devices:
  x: { bus: a, every: 20ms, points: { p: { at: holding 0, type: uint32 } } }
  y: { bus: b, every: EVERY, points: { p: { at: holding 0, type: uint32 } } }
  v: { points: { held: { initial: 5, write: {} } } }
uplinks: { cloud: { url: "mqtt://127.0.0.1:1" } }
broker: { listen: mqtt://127.0.0.1:0, anonymous: true }
servers: [ { listen: tcp://127.0.0.1:0, map: { "400001": { point: y.p, type: uint32 } } } ]
commands: [ { topic: set, write: v.held } ]
web: false
`
	with := func(pairs ...string) string {
		return strings.NewReplacer(append(pairs, "A }", a+" }", "B }", b+" }", "EVERY", "20ms")...).Replace(text)
	}
	r := running(t, with())
	c, got := r.client("sub", "#")
	server := r.now.Load().servers[0].Server
	r.until("all is read", func() bool { return said(got, "s/x/p", "value") && said(got, "s/y/p", "value") })
	if err := r.plant.Write(t.Context(), "v.held", point.IntValue(7)); err != nil {
		t.Fatal(err)
	}

	unmapped := func() (asked int) {
		list, _ := r.now.Load().servers[0].serves.Unmapped()
		return len(list)
	}
	if _, err := server.Do(t.Context(), 1, modbus.ReadRequest(modbus.HoldingRegisters, 9, 1)); err == nil || unmapped() != 1 {
		t.Errorf("asked in vain: %v; %d noted", err, unmapped())
	}
	r.to(with(), "nothing")
	r.to(with("held: { initial: 5", "held: { initial: 6"), "nothing")
	if unmapped() != 1 {
		t.Error("what was asked for in vain is forgotten, though the map is the same")
	}
	r.to(with(`"400001": {`, `"400009": v.held, "400001": {`), "changed server tcp://127.0.0.1:0")
	if unmapped() != 0 {
		t.Error("what was asked for in vain is remembered with another map")
	}
	r.to(with(), "changed server tcp://127.0.0.1:0")
	r.to(with("EVERY", "10ms"), "replaced line b, bus b")
	if r.now.Load().servers[0].Server != server {
		t.Error("the server is another one, because a point that it shows is read at another interval")
	}
	r.to(with("EVERY", "10ms", "uplinks: {", `uplinks: { other: { url: "mqtt://127.0.0.1:1" },`), "started queue other, uplink other")
	if s := r.Status(); len(s.Uplinks) != 2 {
		t.Errorf("uplinks: %v", s.Uplinks)
	}
	r.to(with("EVERY", "10ms"), "stopped queue other, uplink other")
	if _, err := os.Stat(filepath.Join(r.dir, "queue-other.db")); err != nil {
		t.Errorf("the queue of the uplink that is gone: %v", err)
	}

	// A bus that is gone takes its points along; what shows them must go, too.
	gone := strings.Replace(strings.Replace(with(), "  y: { bus: b, every: 20ms, points: { p: { at: holding 0, type: uint32 } } }\n", "", 1), "point: y.p", "point: x.p", 1)
	gone = strings.Replace(gone, ", b: { tcp: "+b+" }", "", 1)
	r.to(gone, "changed server tcp://127.0.0.1:0; stopped line b, bus b")
	if _, ok := r.pipeline.Last("y.p"); ok {
		t.Error("a point that is gone has a value")
	}
	r.until("its device is said to be offline", func() bool { return said(got, "fieldgate/s/device/y/state", "offline") })
	r.until("the server shows the other point", func() bool {
		resp, err := server.Do(t.Context(), 1, modbus.ReadRequest(modbus.HoldingRegisters, 0, 2))
		return err == nil && len(resp) == 6
	})

	// What is held in memory stays, and so does who listens.
	if s, err := r.plant.Read(t.Context(), "v.held"); err != nil || s[0].Value != point.Float64Value(7) {
		t.Errorf("v.held = %v, %v", s, err)
	}
	before := len(got())
	r.until("the subscriber is still served", func() bool { return len(got()) > before })
	select {
	case <-c.Lost():
		t.Errorf("the subscriber lost its connection: %v", c.Err())
	default:
	}
}

// A server in another framing takes the port of the one before: nobody else could.
func TestReloadOfAServersFraming(t *testing.T) {
	t.Parallel()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	with := func(scheme string) string {
		return "site: { id: s }\ndevices: { v: { points: { x: { type: uint16, initial: 5 } } } }\nweb: false\nservers: [ { listen: \"" + scheme + "://" + addr + "\", map: { 40001: v.x } } ]\n"
	}
	r := running(t, with("tcp"))
	for _, row := range []struct {
		scheme  string
		framing modbus.Framing
		change  string
	}{
		{"rtu+tcp", modbus.FramingRTU, "started server rtu+tcp://" + addr + "; stopped server tcp://" + addr},
		{"ascii+tcp", modbus.FramingASCII, "started server ascii+tcp://" + addr + "; stopped server rtu+tcp://" + addr},
		{"tcp", modbus.FramingTCP, "started server tcp://" + addr + "; stopped server ascii+tcp://" + addr},
	} {
		r.to(with(row.scheme), row.change)
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Write(row.framing.Append(nil, 1, 1, modbus.ReadRequest(modbus.HoldingRegisters, 0, 1))); err != nil {
			t.Fatal(err)
		}
		want := row.framing.Append(nil, 1, 1, modbus.PDU{3, 2, 0, 5})
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: % x, %v; want % x", row.scheme, got, err, want)
		}
		c.Close()
	}
}

// A port that cannot be had leaves all as it was.
func TestReloadIsAllOrNothing(t *testing.T) {
	t.Parallel()
	addr := plc(t, new(counting))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	text := "site: { id: s }\nbuses: { a: { tcp: " + addr + " } }\ndevices: { x: { bus: a, every: 20ms, points: { p: { at: holding 0 } } } }\nbroker: { listen: mqtt://127.0.0.1:0, anonymous: true }\nweb: false\n"
	r := running(t, text)
	was := r.now.Load()
	for name, more := range map[string]string{
		"server": "servers: [ { listen: tcp://127.0.0.1:0, map: { 40001: x.p } }, { listen: \"tcp://" + taken.Addr().String() + "\", map: { 40001: x.p } } ]\nuplinks: { other: { url: \"mqtt://127.0.0.1:1\" } }\n",
		"broker": "",
	} {
		bad := strings.Replace(text, "every: 20ms", "every: 10ms", 1) + more
		if name == "broker" {
			bad = strings.Replace(bad, "mqtt://127.0.0.1:0", "mqtt://"+taken.Addr().String(), 1)
		}
		cfg, topics := load(t, bad)
		if _, err := r.Reload(t.Context(), cfg, topics); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("%s: %v", name, err)
		}
		if r.now.Load() != was {
			t.Errorf("%s: something was put in place", name)
		}
		polls := r.Status().Buses["a"].Devices["x"].Polls
		r.until("polling goes on", func() bool { return r.Status().Buses["a"].Devices["x"].Polls > polls })
	}
}

// Other settings of the broker drop its clients, and nothing else: sessions,
// retained messages and the port stay.
func TestReloadOfTheBroker(t *testing.T) {
	t.Parallel()
	addr := plc(t, new(counting))
	text := "site: { id: s }\nbuses: { a: { tcp: " + addr + " } }\ndevices: { x: { bus: a, every: 20ms, points: { p: { at: holding 0 } } } }\nbroker: { listen: mqtt://127.0.0.1:0, anonymous: true, max_clients: 5 }\npublish: [ { when: each } ]\nweb: false\n"
	r := running(t, text)
	at := r.now.Load().broker.Addrs()[0].String()
	c, got := r.client("first", "s/#")
	r.until("it is served", func() bool { return said(got, "s/x/p", "value") })
	r.to(strings.Replace(text, "max_clients: 5", "max_clients: 6", 1), "replaced broker")
	select {
	case <-c.Lost():
	case <-time.After(20 * time.Second):
		t.Error("the client of the broker before is still connected")
	}
	if now := r.now.Load().broker.Addrs()[0].String(); now != at {
		t.Errorf("listens on %s, before on %s", now, at)
	}
	_, got = r.client("second", "fieldgate/s/state", "s/#")
	r.until("it is served again", func() bool { return said(got, "s/x/p", "value") && said(got, "fieldgate/s/state", "online") })
	r.to(strings.Replace(text, "broker: {", "broker: { listen: mqtt://127.0.0.1:0, anonymous: true }\nlog: {} #", 1), "replaced broker")
	r.to(strings.Replace(text, "broker: {", "log: {} #", 1), "stopped broker")
}

// What the gateway says while one broker takes the place of another is not lost to
// a client whose session outlives that, and keeps its order.
func TestNothingIsLostBetweenBrokers(t *testing.T) {
	t.Parallel()
	text := "site: { id: s }\nbroker: { listen: mqtt://127.0.0.1:0, anonymous: true, max_clients: CLIENTS }\nweb: false\n"
	with := func(i int) string { return strings.Replace(text, "CLIENTS", strconv.Itoa(8+i), 1) }
	r := running(t, with(0))
	got := make(map[string]bool)
	var mu sync.Mutex
	c := uplink.ConnOptions{Handler: func(m mqtt.Message) []<-chan struct{} {
		mu.Lock()
		defer mu.Unlock()
		got[string(m.Payload)] = true
		return nil
	}}
	addr := "mqtt://" + r.now.Load().broker.Addrs()[0].String()
	connect := func() *uplink.Conn {
		t.Helper()
		conn, err := uplink.Connect(t.Context(), config.Uplink{ClientID: "c", Keepalive: time.Minute, ConnectTimeout: 20 * time.Second}, addr, c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(conn.Close)
		if _, err := conn.Subscribe(t.Context(), "said", 1); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	connect()
	n := 0
	for i := 1; i <= 5; i++ {
		ended := make(chan struct{})
		go func() { // ends with the reload
			defer close(ended)
			r.to(with(i), "replaced broker")
		}()
		for over := false; !over; n++ {
			select {
			case <-ended:
				over = true
			default:
			}
			r.answer(config.Local, mqtt.Message{Topic: "said", Payload: []byte(strconv.Itoa(n)), QoS: 1})
			time.Sleep(200 * time.Microsecond)
		}
		connect()
	}
	r.until("all has come", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(got) == n
	})
	if strings.Contains(r.log.String(), "is lost") || strings.Contains(r.log.String(), "are lost") {
		t.Error("something is lost")
	}
}

// Commands go on while everything else changes: one that is being done is
// answered, an id stays known, and what is new is asked for at once.
func TestReloadOfCommands(t *testing.T) {
	t.Parallel()
	text := "site: { id: s }\ndevices: { v: { points: { a: { write: {} }, b: { write: {} } } } }\nbroker: { listen: mqtt://127.0.0.1:0, anonymous: true }\ncommands: [ { topic: set/a, structured: [v.a] }, OTHER ]\nweb: false\n"
	r := running(t, strings.Replace(text, ", OTHER", "", 1))
	c, got := r.client("c", "+/+/ack")
	send := func(topic, payload string) {
		t.Helper()
		if err := c.Publish(t.Context(), mqtt.Message{Topic: topic, Payload: []byte(payload), QoS: 1}); err != nil {
			t.Fatal(err)
		}
	}
	send("set/a", `{"id":"one","point":"v.a","value":1}`)
	r.until("it is done", func() bool { return said(got, "set/a/ack", `"one","status":"verified"`) })
	r.to(strings.Replace(text, "OTHER", "{ topic: set/b, structured: [v.b] }", 1), "nothing")
	send("set/b", `{"id":"two","point":"v.b","value":2}`)
	r.until("the new command is taken", func() bool { return said(got, "set/b/ack", `"two","status":"verified"`) })
	send("set/a", `{"id":"one","point":"v.a","value":3}`)
	r.until("the id is known", func() bool { return said(got, "set/a/ack", `was used before`) })
	r.to(strings.Replace(text, "{ topic: set/a, structured: [v.a] }, OTHER", "{ topic: set/b, structured: [v.b] }", 1), "nothing")
	n := len(got())
	send("set/a", `{"id":"three","point":"v.a","value":4}`)
	send("set/b", `{"id":"four","point":"v.b","value":5}`)
	r.until("the other is still taken", func() bool { return said(got, "set/b/ack", `"four","status":"verified"`) })
	for _, m := range got()[n:] {
		if m.Topic == "set/a/ack" {
			t.Errorf("a command that is gone is answered: %s", m.Payload)
		}
	}
}

// Twenty reloads under a thousand points a second: what was read of a bus that
// is not touched is published whole, once, in order; and one that is replaced
// goes on where it was.
func TestNothingIsLostByReloads(t *testing.T) {
	t.Parallel()
	still, other := new(counting), new(counting)
	a, b := plc(t, still), plc(t, other)
	var points []string
	for i := range 50 {
		points = append(points, fmt.Sprintf("p%d: { at: holding %d, type: uint32 }", i, 2*i))
	}
	text := `
site: { id: s }
buses: { a: { tcp: "` + a + `" }, b: { tcp: "` + b + `" } }
devices:
  x: { bus: a, every: 50ms, points: { ` + strings.Join(points, ", ") + ` } }
  y: { bus: b, every: EVERY, points: { p: { at: holding 0, type: uint32 } } }
publish: [ { points: x.*, payload: raw, when: each, to: [cloud] }, { points: y.*, payload: raw, when: each MORE } ]
uplinks: { cloud: { url: "mqtt://127.0.0.1:1", queue: { commit: 1m, max_bytes: QUEUE } } OTHER }
broker: { listen: mqtt://127.0.0.1:0, anonymous: true, max_clients: CLIENTS }
web: false
`
	version := func(i int) string {
		other, more := "", ""
		if i%3 == 1 {
			other = `, other: { url: "mqtt://127.0.0.1:1" }`
		}
		if i%4 == 1 {
			more = `, retain: true`
		}
		return strings.NewReplacer("EVERY", strconv.Itoa(20+i%2)+"ms", "OTHER", other, "MORE", more, "CLIENTS", strconv.Itoa(10+i/5), "QUEUE", strconv.Itoa(64+i/10)+"MiB").Replace(text)
	}
	r := running(t, version(0))
	r.until("it is read", func() bool { return still.reads.Load() > 5 })
	for i := 1; i <= 20; i++ {
		cfg, topics := load(t, version(i))
		if _, err := r.Reload(t.Context(), cfg, topics); err != nil {
			t.Fatal(err)
		}
		seen := other.reads.Load()
		r.until("the replaced bus is read", func() bool { return other.reads.Load() > seen })
	}
	total := still.reads.Load()
	next := make(map[string]uint64)
	q := r.now.Load().ways[0].queue
	for done := false; !done; {
		entries, err := q.Next(t.Context(), 4096)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			n, err := strconv.ParseUint(string(e.Payload), 10, 64)
			if !strings.HasPrefix(e.Topic, "s/x/") || err != nil {
				continue // what the gateway says of itself
			}
			if want := max(next[e.Topic], 1); n != want {
				t.Fatalf("%s: %d after %d", e.Topic, n, want-1)
			}
			next[e.Topic] = n + 1
		}
		done = len(next) == 50
		for _, n := range next {
			done = done && n > uint64(total)-1 // the last may be on its way
		}
		if err := q.Done(seqs(entries)...); err != nil {
			t.Fatal(err)
		}
	}
	if s := r.Status(); s.Publish.Dropped > 0 || s.Uplinks["cloud"].Dropped > 0 {
		t.Errorf("dropped: %+v, %+v", s.Publish, s.Uplinks["cloud"])
	}
	t.Logf("%d readings of 50 points", total)
}

func seqs(entries []queue.Entry) (seqs []uint64) {
	for _, e := range entries {
		seqs = append(seqs, e.Seq)
	}
	return seqs
}

// What a queue holds in memory only, since its file takes nothing, is not lost by a
// reload that gives it other settings: those wait until it takes messages again.
func TestReloadKeepsAFaultyQueue(t *testing.T) {
	t.Parallel()
	smalldisk.Run(t, 4<<20, func(t *testing.T, dir string) {
		ballast, err := os.Create(filepath.Join(dir, "ballast"))
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = ballast.Write(make([]byte, 4096))
		}
		if err := ballast.Close(); err != nil {
			t.Fatal(err)
		}
		text := `
site: { id: s }
uplinks: { cloud: { url: "mqtt://127.0.0.1:1", status: false, keepalive: 60s, queue: { commit: 10ms, max_bytes: 1MiB } } }
web: false
`
		r := runningIn(t, dir, text)
		q := r.now.Load().way("cloud").queue
		const n = 100
		for i := range n {
			if err := q.Deliver(t.Context(), mqtt.Message{Topic: "t", Payload: []byte(strconv.Itoa(i)), QoS: 1}); err != nil {
				t.Fatal(err)
			}
		}
		r.until("the file takes nothing", func() bool { return q.Stats().Fault != "" })
		other := strings.Replace(text, "1MiB", "2MiB", 1)
		r.to(other, "nothing")
		r.to(strings.Replace(other, "60s", "50s", 1), "replaced uplink cloud")
		if w := r.now.Load().way("cloud"); w.queue != q || q.Stats().Messages != n || !strings.Contains(r.log.String(), "the queue keeps its settings") {
			t.Errorf("the queue is another one: %t; %d messages", w.queue != q, q.Stats().Messages)
		}
		if err := os.Remove(ballast.Name()); err != nil {
			t.Fatal(err)
		}
		r.until("the file takes messages", func() bool { return q.Stats().Fault == "" })
		r.to(strings.Replace(other, "60s", "50s", 1), "replaced queue cloud, uplink cloud")
		next := r.now.Load().way("cloud").queue
		for i := 0; i < n; {
			entries, err := next.Next(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if string(e.Payload) != strconv.Itoa(i) {
					t.Fatalf("%s where %d was to come", e.Payload, i)
				}
				i++
			}
		}
	})
}

// Changes names what was done.
func TestChanges(t *testing.T) {
	part := func(name string) *group.Part { return group.NewPart(name, nil) }
	a, b := part("bus a"), part("bus b")
	got := changes([]*group.Part{a, b, part("publish"), part("web")}, []*group.Part{a, part("bus b"), part("publish"), part("bus c")})
	if want := "started bus c; replaced bus b; stopped web"; got.String() != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// holdingDevice is a device that keeps what is written.
type holdingDevice struct {
	mu   sync.Mutex
	regs [8]uint16
}

func (h *holdingDevice) Do(_ context.Context, _ modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	return modbus.Answer(req, h, modbus.Identity{})
}

func (h *holdingDevice) Read(_ modbus.Table, addr uint16, dst []uint16) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	copy(dst, h.regs[addr:])
	return nil
}

func (h *holdingDevice) Write(_ modbus.Table, addr uint16, src []uint16) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	copy(h.regs[addr:], src)
	return nil
}

// A command for a bus that is just being replaced waits for the new one: each is
// done, seen done, and answered.
func TestCommandsOfABusThatIsReplaced(t *testing.T) {
	t.Parallel()
	text := "site: { id: s }\nbuses: { a: { tcp: " + plc(t, new(holdingDevice)) + " } }\ndevices: { x: { bus: a, every: EVERY, points: { p: { at: holding 0, write: {} } } } }\nbroker: { listen: mqtt://127.0.0.1:0, anonymous: true }\ncommands: [ { topic: set, structured: [x.p] } ]\nweb: false\n"
	r := running(t, strings.Replace(text, "EVERY", "20ms", 1))
	c, got := r.client("c", "set/ack")
	for i := range 10 {
		for j := range 3 {
			payload := fmt.Sprintf(`{"id":"%d-%d","point":"x.p","value":%d}`, i, j, 10*i+j)
			if err := c.Publish(t.Context(), mqtt.Message{Topic: "set", Payload: []byte(payload), QoS: 1}); err != nil {
				t.Fatal(err)
			}
		}
		r.to(strings.Replace(text, "EVERY", strconv.Itoa(21+i)+"ms", 1), "replaced line a, bus a")
	}
	r.until("all are answered", func() bool { return len(got()) >= 30 })
	for _, m := range got() {
		if !strings.Contains(string(m.Payload), `"status":"verified"`) {
			t.Errorf("%s", m.Payload)
		}
	}
}

// A reload does not keep a gateway from stopping.
func TestReloadEndsWithRun(t *testing.T) {
	const text = "site: { id: s }\nuplinks: { u: { url: \"mqtt://127.0.0.1:1\" } }\nweb: false\n"
	g := toRun(t, t.TempDir(), text)
	ctx, stop := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- g.Run(ctx, func() { close(ready) }) }() // ends with stop
	<-ready
	g.turn <- struct{}{} // a part that goes, and takes its time
	g.parts.Start(append(g.list(g.now.Load().ways, g.now.Load()), group.NewPart("slow", func(ctx context.Context) error {
		<-ctx.Done()
		stop()
		time.Sleep(5 * time.Second)
		return nil
	}))...)
	<-g.turn
	cfg, topics := load(t, text)
	began := time.Now()
	if _, err := g.Reload(context.Background(), cfg, topics); err != nil {
		t.Error(err)
	}
	if slow := time.Since(began); slow > 3*time.Second {
		t.Errorf("the reload took %v after the gateway was to stop", slow)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := g.Reload(context.Background(), cfg, topics); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a reload afterwards: %v", err)
	}
}
