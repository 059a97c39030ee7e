package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/broker"
	"fieldgate/internal/config"
	"fieldgate/internal/flash"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/mqtt/mosquittotest"
	"fieldgate/internal/queue"
	"fieldgate/internal/uplink"
	"fieldgate/test/testlog"
)

const patience = 20 * time.Second

// site is a gateway as far as a bridge sees it: its broker, and one uplink.
type site struct {
	t      testing.TB
	name   string
	log    *testlog.Log
	broker *broker.Broker
	queue  *queue.Queue
	uplink *uplink.Uplink
	bridge *Bridge
	served sync.Once
	parts  sync.WaitGroup
	ctx    context.Context
}

// open starts the embedded broker of a site. It ends with the test.
func open(t testing.TB, name string) *site {
	t.Helper()
	s := &site{t: t, name: name, log: &testlog.Log{}}
	cfg := config.Broker{Listen: []config.BrokerListener{{Scheme: "mqtt", Address: "127.0.0.1:0"}}, Anonymous: true}
	b, err := broker.Listen(cfg, t.TempDir(), slog.New(slog.NewTextHandler(s.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	s.broker = b
	ctx, cancel := context.WithCancel(context.Background())
	s.ctx = ctx
	t.Cleanup(func() {
		cancel()
		s.parts.Wait()
		if s.queue != nil {
			_ = s.queue.Close()
		}
		if t.Failed() {
			t.Logf("%s, log:\n%s", name, s.log)
		}
	})
	return s
}

func (s *site) url() string { return "mqtt://" + s.broker.Addrs()[0].String() }

// bridgeTo starts the uplink of a site, with rules, and its broker.
func (s *site) bridgeTo(url string, q config.Queue, rules ...config.BridgeRule) {
	s.t.Helper()
	c := config.Uplink{
		Name: "cloud", URLs: []string{url}, ClientID: s.name + "-cloud", CleanSession: true,
		Keepalive: 60 * time.Second, ConnectTimeout: 5 * time.Second, Queue: q, Bridge: rules,
	}
	log := slog.New(slog.NewTextHandler(s.log, nil))
	var err error
	if s.queue, err = queue.Open(s.t.TempDir(), c.Name, q, log); err != nil {
		s.t.Fatal(err)
	}
	s.bridge = New(c, "fieldgate/"+s.name, []string{c.ClientID}, s.broker, s.queue, log)
	for _, sub := range s.bridge.Local() {
		if _, err := s.broker.Subscribe(sub.Filter, sub.Handle); err != nil {
			s.t.Fatal(err)
		}
	}
	s.uplink = uplink.New(c, s.queue, mqtt.Message{}, mqtt.Message{}, s.bridge.Subscriptions(), log)
	s.uplink.OnSend, s.bridge.Connected = s.bridge.Sent, s.uplink.Connected
	s.serve()
	s.parts.Go(func() { _ = s.queue.Run(s.ctx) })
	s.parts.Go(func() { _ = s.uplink.Run(s.ctx) })
}

// serve lets clients in.
func (s *site) serve() {
	s.served.Do(func() { s.parts.Go(func() { _ = s.broker.Run(s.ctx) }) })
}

func (s *site) connected() {
	s.t.Helper()
	eventually(s.t, "the uplink is connected", s.uplink.Connected)
}

// client connects to the site's broker.
func (s *site) client(id string) *uplink.Conn { s.t.Helper(); return connect(s.t, s.url(), id, nil) }

func connect(t testing.TB, url, id string, handle func(mqtt.Message)) *uplink.Conn {
	t.Helper()
	o := uplink.ConnOptions{}
	if handle != nil {
		o.Handler = func(m mqtt.Message) []<-chan struct{} { handle(m); return nil }
	}
	c, err := uplink.Connect(t.Context(), config.Uplink{ClientID: id, CleanSession: true, Keepalive: time.Minute, ConnectTimeout: 5 * time.Second}, url, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// inbox is what a client was sent.
type inbox chan mqtt.Message

// listen subscribes at the site's broker.
func (s *site) listen(filter string) inbox {
	s.t.Helper()
	in := make(inbox, 10_000)
	c := connect(s.t, s.url(), "listener", func(m mqtt.Message) { in <- m })
	if _, err := c.Subscribe(s.t.Context(), mqtt.Filter(filter), 2); err != nil {
		s.t.Fatal(err)
	}
	return in
}

func (in inbox) next(t *testing.T) string {
	t.Helper()
	select {
	case m := <-in:
		return show(m)
	case <-time.After(patience):
		t.Fatal("no message")
	}
	return ""
}

func show(m mqtt.Message) string {
	return fmt.Sprintf("%s=%s q%d retain=%t", m.Topic, m.Payload, m.QoS, m.Retain)
}

func showed(r mosquittotest.Received) string {
	return fmt.Sprintf("%s=%s q%d retain=%t", r.Topic, r.Payload, r.QoS, r.Retain == 1)
}

func publish(t testing.TB, c *uplink.Conn, topic, payload string, qos uint8, retain bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.Publish(ctx, mqtt.Message{Topic: topic, Payload: []byte(payload), QoS: qos, Retain: retain}); err != nil {
		t.Fatalf("publish %s: %v", payload, err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

func check(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// What local clients publish goes up under its other name, and costs no write
// while the uplink is well.
func TestOut(t *testing.T) {
	t.Parallel()
	up := mosquittotest.Start(t, mosquittotest.Options{})
	sub := up.Subscribe([]string{"#"})
	s := open(t, "gw1")
	s.bridgeTo(up.URL(), config.Queue{Commit: time.Minute},
		config.BridgeRule{Out: true, Filter: "m/#", RemotePrefix: "plant/", QoS: 1},
		config.BridgeRule{Out: true, Filter: "+", LocalPrefix: "in/", RemotePrefix: "out/", QoS: 2, DropRetain: true})
	s.connected()
	c := s.client("plc")
	publish(t, c, "m", "0", 0, false)
	publish(t, c, "other", "x", 1, false)
	publish(t, c, "m/a", "1", 1, false)
	publish(t, c, "m/b/c", "2", 2, true)
	publish(t, c, "in/d", "3", 2, true)
	for _, want := range []string{"plant/m=0 q0", "plant/m/a=1 q1", "plant/m/b/c=2 q1", "out/d=3 q2"} {
		check(t, showed(sub.Next(1)[0]), want+" retain=false")
	}
	late := up.Subscribe([]string{"out/#", "plant/#"})
	check(t, showed(late.Next(1)[0]), "plant/m/b/c=2 q1 retain=true")
	for i := range 500 {
		publish(t, c, "m/a", fmt.Sprint(i), 1, false)
	}
	if f := s.queue.Stats().Flash.Total; f != (flash.Figures{}) {
		t.Errorf("written: %+v", f)
	}
	if st := s.bridge.Stats(); st != (Stats{Out: 504}) {
		t.Errorf("stats %+v", st)
	}
}

// What the uplink's broker has for us goes to local clients.
func TestIn(t *testing.T) {
	t.Parallel()
	up := mosquittotest.Start(t, mosquittotest.Options{Persistent: true})
	far := connect(t, up.URL(), "far", nil)
	publish(t, far, "plant/cmd/kept", "old", 1, true)
	publish(t, far, "fieldgate/gw1/state", "offline", 1, true)
	s := open(t, "gw1")
	s.bridgeTo(up.URL(), config.Queue{Commit: time.Minute},
		config.BridgeRule{In: true, Filter: "cmd/#", RemotePrefix: "plant/", QoS: 1},
		config.BridgeRule{In: true, Filter: "info", LocalPrefix: "from/cloud/", QoS: 0, DropRetain: true},
		config.BridgeRule{In: true, Filter: "#", RemotePrefix: "fieldgate/", LocalPrefix: "fieldgate/", QoS: 1})
	s.connected()
	eventually(t, "the retained message is there", func() bool { p, _ := s.broker.Retained("cmd/kept"); return string(p) == "old" })
	in := s.listen("#")
	check(t, in.next(t), "cmd/kept=old q1 retain=true")
	publish(t, far, "plant/cmd/a", "1", 2, false)
	publish(t, far, "info", "2", 1, true)
	publish(t, far, "plant/cmd/kept", "new", 1, true)
	for _, want := range []string{"cmd/a=1 q1", "from/cloud/info=2 q0", "cmd/kept=new q1"} {
		check(t, in.next(t), want+" retain=false")
	}
	// The state that is kept here is the newer one, though MQTT 3.1.1 does not
	// say that it is retained.
	if p, _ := s.broker.Retained("cmd/kept"); string(p) != "new" {
		t.Errorf("retained: %s", p)
	}
	if _, ok := s.broker.Retained("from/cloud/info"); ok {
		t.Error("retained in spite of the rule")
	}
	// After a reconnect the broker sends what it retains once more; nobody needs
	// to hear it again.
	before := s.uplink.Status().Connects
	up.Stop()
	up.Restart()
	eventually(t, "connected again", func() bool { return s.uplink.Status().Connects > before && s.uplink.Connected() })
	far = connect(t, up.URL(), "far", nil)
	publish(t, far, "plant/cmd/a", "end", 1, false)
	check(t, in.next(t), "cmd/a=end q1 retain=false")
	if _, ok := s.broker.Retained("fieldgate/gw1/state"); ok {
		t.Error("the gateway's own state came from upstream")
	}
}

// With both, what was sent does not come back, and what is meant does.
func TestBoth(t *testing.T) {
	t.Parallel()
	up := mosquittotest.Start(t, mosquittotest.Options{})
	sub := up.Subscribe([]string{"#"})
	s := open(t, "gw1")
	s.bridgeTo(up.URL(), config.Queue{Commit: time.Minute}, config.BridgeRule{In: true, Out: true, Filter: "set/#", RemotePrefix: "far/", QoS: 1})
	s.connected()
	in := s.listen("#")
	c, far := s.client("panel"), connect(t, up.URL(), "far", nil)
	for i := range 50 {
		publish(t, c, "set/light", "toggle", 1, false)
		check(t, in.next(t), "set/light=toggle q1 retain=false")
		check(t, showed(sub.Next(1)[0]), "far/set/light=toggle q1 retain=false")
		eventually(t, "the echo is known", func() bool { return s.bridge.Stats().Echoes == uint64(i+1) })
		publish(t, far, "far/set/light", "toggle", 1, false) // the same, but meant
		check(t, in.next(t), "set/light=toggle q1 retain=false")
		check(t, showed(sub.Next(1)[0]), "far/set/light=toggle q1 retain=false")
	}
	eventually(t, "all is counted", func() bool { return s.bridge.Stats() == Stats{Out: 50, In: 50, Echoes: 50} })
}

// State that a local client has changed while the uplink was away is not
// overwritten by what was retained upstream before.
func TestNewerStateWins(t *testing.T) {
	t.Parallel()
	up := mosquittotest.Start(t, mosquittotest.Options{Persistent: true})
	far := connect(t, up.URL(), "far", nil)
	s := open(t, "gw1")
	s.bridgeTo(up.URL(), config.Queue{Commit: time.Minute}, config.BridgeRule{In: true, Out: true, Filter: "set/#", QoS: 1})
	s.connected()
	publish(t, far, "set/a", "old", 1, true)
	publish(t, far, "set/b", "old", 1, true)
	c := s.client("panel")
	in := s.listen("set/+")
	before := s.uplink.Status().Connects
	up.Stop()
	eventually(t, "away", func() bool { return !s.uplink.Connected() })
	for len(in) > 0 {
		<-in
	}
	publish(t, c, "set/a", "new", 1, true)
	check(t, in.next(t), "set/a=new q1 retain=false")
	up.Restart()
	eventually(t, "connected again", func() bool { return s.uplink.Status().Connects > before && s.uplink.Connected() })
	eventually(t, "all is sent", func() bool { return s.queue.Stats().Messages == 0 })
	late := up.Subscribe([]string{"set/a"})
	check(t, showed(late.Next(1)[0]), "set/a=new q1 retain=true")
	if p, _ := s.broker.Retained("set/a"); string(p) != "new" {
		t.Errorf("retained here: %s", p)
	}
	for len(in) > 0 {
		if m := <-in; m.Topic == "set/a" {
			t.Errorf("got %s", show(m))
		}
	}
}

// While the uplink is away clients are acknowledged once their messages are on
// disk; many share one write. Later all of them arrive, each client's in order.
func TestAway(t *testing.T) {
	t.Parallel()
	up := mosquittotest.Start(t, mosquittotest.Options{Persistent: true})
	// Its session outlives the broker. With QoS 2 mosquitto gives it messages of
	// both QoS in another order than it got them, now and then.
	sub := up.Subscribe([]string{"#"}, "-c", "-q", "1")
	s := open(t, "gw1")
	s.bridgeTo(up.URL(), config.Queue{Commit: time.Hour}, config.BridgeRule{Out: true, Filter: "#", QoS: 2})
	s.connected()
	up.Stop()
	eventually(t, "away", func() bool { return !s.uplink.Connected() })
	const clients, each = 8, 100
	first := s.client("first")
	publish(t, first, "first", "0", 1, false) // the file is made
	before := s.queue.Stats().Flash.Total.Syncs
	var all sync.WaitGroup
	for i := range clients {
		c := s.client(fmt.Sprint("client", i))
		all.Go(func() {
			var window sync.WaitGroup
			for j := range each {
				topic, qos := fmt.Sprint("from/", i), uint8(1+i%2)
				if j%10 == 0 {
					window.Wait()
				}
				done := make(chan struct{})
				window.Go(func() {
					close(done) // the order of a window is not the test's concern
					if err := c.Publish(t.Context(), mqtt.Message{Topic: topic, Payload: fmt.Appendf(nil, "%d", j/10), QoS: qos}); err != nil {
						t.Errorf("publish: %v", err)
					}
				})
				<-done
			}
			window.Wait()
		})
	}
	all.Wait()
	if n := s.queue.Stats().Flash.Total.Syncs - before; n > clients*each/4 {
		t.Errorf("%d syncs for %d messages", n, clients*each)
	}
	up.Restart()
	last := make(map[string]string)
	count := 0
	for count < clients*each {
		for _, r := range sub.Next(1) {
			if r.Topic == "first" {
				continue
			}
			count++
			if len(r.Payload) < len(last[r.Topic]) || len(r.Payload) == len(last[r.Topic]) && r.Payload < last[r.Topic] {
				t.Fatalf("%s: %s after %s", r.Topic, r.Payload, last[r.Topic])
			}
			last[r.Topic] = r.Payload
		}
	}
}

// What clients have had retained goes up when the gateway starts, if the rule
// keeps that.
func TestRetainedAtStart(t *testing.T) {
	t.Parallel()
	up := mosquittotest.Start(t, mosquittotest.Options{})
	sub := up.Subscribe([]string{"#"})
	s := open(t, "gw1")
	s.serve()
	c := s.client("plc")
	publish(t, c, "a/kept", "1", 1, true)
	publish(t, c, "b/kept", "2", 1, true)
	publish(t, c, "a/live", "3", 1, false)
	if err := s.broker.Deliver(t.Context(), mqtt.Message{Topic: "a/ours", Payload: []byte("4"), QoS: 1, Retain: true}); err != nil {
		t.Fatal(err)
	}
	s.bridgeTo(up.URL(), config.Queue{Commit: time.Minute},
		config.BridgeRule{Out: true, Filter: "a/#", QoS: 1}, config.BridgeRule{Out: true, Filter: "b/#", QoS: 1, DropRetain: true})
	s.connected()
	check(t, showed(sub.Next(1)[0]), "a/kept=1 q1 retain=false")
	publish(t, c, "b/end", "5", 1, true)
	check(t, showed(sub.Next(1)[0]), "b/end=5 q1 retain=false")
	late := up.Subscribe([]string{"#"})
	check(t, showed(late.Next(1)[0]), "a/kept=1 q1 retain=true")
}

// fast does not wait for the disk.
func TestFast(t *testing.T) {
	t.Parallel()
	s := open(t, "gw1")
	s.bridgeTo("mqtt://127.0.0.1:1", config.Queue{Commit: time.Hour}, config.BridgeRule{Out: true, Filter: "#", QoS: 1, Fast: true})
	c := s.client("plc")
	for i := range 100 {
		publish(t, c, "t", fmt.Sprint(i), 1+uint8(i)%2, false)
	}
	if st := s.queue.Stats(); st.Flash.Total != (flash.Figures{}) || st.Messages != 100 {
		t.Errorf("stats %+v", st)
	}
}

// A message for which the queue has no room is not acknowledged.
func TestFull(t *testing.T) {
	t.Parallel()
	s := open(t, "gw1")
	s.bridgeTo("mqtt://127.0.0.1:1", config.Queue{Commit: time.Hour, MaxBytes: 1000, DropNewest: true}, config.BridgeRule{Out: true, Filter: "#", QoS: 1})
	c := s.client("plc")
	taken := 0
	for ; ; taken++ {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := c.Publish(ctx, mqtt.Message{Topic: "t", Payload: []byte("x"), QoS: 1})
		timeout := ctx.Err()
		cancel()
		if timeout != nil || taken > 100 {
			t.Fatalf("message %d: %v", taken, err)
		}
		if err != nil {
			break // the connection is cut
		}
	}
	if st := s.bridge.Stats(); st.Refused != 1 || st.Out != uint64(taken) || s.queue.Stats().Messages != taken {
		t.Errorf("%d taken, stats %+v", taken, st)
	}
}

// Two gateways that carry the same topics to and from one broker hear of each
// other's messages, once.
func TestTwoGateways(t *testing.T) {
	t.Parallel()
	up := mosquittotest.Start(t, mosquittotest.Options{})
	rule := config.BridgeRule{In: true, Out: true, Filter: "shared/#", QoS: 1}
	a, b := open(t, "a"), open(t, "b")
	a.bridgeTo(up.URL(), config.Queue{Commit: time.Minute}, rule)
	b.bridgeTo(up.URL(), config.Queue{Commit: time.Minute}, rule)
	a.connected()
	b.connected()
	atA, atB := a.listen("#"), b.listen("#")
	plcA, plcB := a.client("plc"), b.client("plc")
	for i := range 20 {
		text := fmt.Sprintf("shared/x=%d q1 retain=false", i/2)
		publish(t, []*uplink.Conn{plcA, plcB}[i%2], "shared/x", fmt.Sprint(i/2), 1, false)
		check(t, atA.next(t), text)
		check(t, atB.next(t), text)
	}
	want := Stats{Out: 10, In: 10, Echoes: 10}
	eventually(t, "the echoes are known", func() bool { return a.bridge.Stats() == want && b.bridge.Stats() == want })
}

// Two gateways that are each other's uplink stop what goes round.
func TestRing(t *testing.T) {
	t.Parallel()
	a, b := open(t, "a"), open(t, "b")
	rule := config.BridgeRule{Out: true, Filter: "#", QoS: 1}
	// Each waits for the other to acknowledge the same message, until its patience ends.
	a.bridgeTo(b.url(), config.Queue{Commit: 20 * time.Millisecond}, rule)
	b.bridgeTo(a.url(), config.Queue{Commit: 20 * time.Millisecond}, rule)
	a.connected()
	b.connected()
	in := a.listen("#")
	c := a.client("plc")
	for i := range 20 {
		publish(t, c, "t", fmt.Sprint(i), 1, false)
	}
	eventually(t, "it stops", func() bool { return a.bridge.Stats().Looped+b.bridge.Stats().Looped == 20 })
	publish(t, a.client("end"), "end", "end", 0, false)
	n := 0
	for !strings.HasPrefix(in.next(t), "end=") {
		n++
	}
	if n < 20 || n > 20*(2+passesMost) {
		t.Errorf("20 messages came %d times", n)
	}
	if log := a.log.String() + b.log.String(); !strings.Contains(log, "messages go round by way of another bridge") {
		t.Errorf("nothing is said")
	}
}

// An uplink that leads back to the gateway's own broker carries nothing.
func TestSelf(t *testing.T) {
	t.Parallel()
	s := open(t, "gw1")
	s.bridgeTo(s.url(), config.Queue{Commit: time.Minute}, config.BridgeRule{Out: true, Filter: "#", QoS: 1})
	s.connected()
	publish(t, s.client("plc"), "t", "x", 1, false)
	eventually(t, "it is known", func() bool { return s.bridge.Stats() == Stats{Out: 1, Looped: 1} })
}

// An upstream broker that accepts and never acknowledges holds up nobody but
// those whose messages it has, and those only until they are on disk.
func TestStuckUpstream(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var conns sync.WaitGroup
	defer conns.Wait()
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte{0x20, 2, 0, 0}) // CONNACK, and nothing else ever
			t.Cleanup(func() { _ = c.Close() })
		}
	}()
	s := open(t, "gw1")
	s.bridgeTo("mqtt://"+l.Addr().String(), config.Queue{Commit: time.Second}, config.BridgeRule{Out: true, Filter: "up/#", QoS: 1})
	s.connected()
	in := s.listen("#")
	other := s.client("other")
	begin := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		publish(t, s.client("plc"), "up/a", "1", 1, false)
	}()
	check(t, in.next(t), "up/a=1 q1 retain=false") // before the PUBACK
	publish(t, other, "local", "2", 1, false)
	check(t, in.next(t), "local=2 q1 retain=false")
	<-done
	if took := time.Since(begin); took < 500*time.Millisecond {
		t.Errorf("acknowledged after %v, before the uplink had its time", took)
	}
	if f := s.queue.Stats().Flash.Total; f.Syncs == 0 {
		t.Error("acknowledged without being on disk")
	}
}
