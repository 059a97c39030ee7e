// Package broker is the embedded MQTT broker: listeners for TCP, TLS and
// WebSocket, users with passwords and access lists, sessions and retained
// messages that survive a restart. MQTT 3.1, 3.1.1 and 5, QoS 0 to 2.
//
// It is a Sink for the gateway's own messages, which go in by function call,
// and hands clients' messages to Handlers; it knows nothing of points or
// commands.
//
// The broker itself is mochi-mqtt. This package is what it needs around it to
// stand in a plant: listeners that survive a panic of its decoders and whose
// connections nobody ever waits for (listener, guard), decisions and
// corrections (hook), notes on the sessions (track), and a store that spares
// the flash (store). Clause numbers are those of MQTT 3.1.1 unless MQTT 5 is
// said.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"fieldgate/internal/config"
	"fieldgate/internal/flash"
	"fieldgate/internal/health"
	"fieldgate/internal/mqtt"
)

const (
	// closeTimeout is how long the clients have to leave when Run ends.
	closeTimeout = 4 * time.Second
	// drainTimeout is how long of that is for messages still on their way.
	drainTimeout = 100 * time.Millisecond
	// sysInterval is how often the $SYS topics are published, in ticks.
	sysInterval = 30
	// writesPending is how many messages may be on their way from a publisher
	// to a connection's buffer.
	writesPending = 512
	// paceEvery is after how many messages a publisher looks whether the
	// subscribers keep up.
	paceEvery = 64
	// probeTopic is where Probe publishes, probeID its subscription.
	probeTopic, probeID = "$SYS/fieldgate/probe", 1
)

// ErrClosed is returned by Deliver and Subscribe once the broker has stopped.
var ErrClosed = errors.New("broker is closed")

// Broker is the embedded broker. Its methods are safe for use by several
// goroutines.
type Broker struct {
	cfg       config.Broker
	times     times
	log       *slog.Logger
	notices   notices
	auth      *auth
	server    *mochi.Server
	listeners []*listener
	wires     wires
	tracks    tracks
	unsaved   unsaved
	store     *store // nil: nothing is kept

	started time.Time
	beat    health.Beat   // of Run
	running chan struct{} // closed by Run: clients are let in
	closed  atomic.Bool
	closing sync.Once
	conns   sync.WaitGroup

	publishing sync.RWMutex // read-locked while a message of the gateway's own is published

	backlog  atomic.Int64 // bytes to be written, of all connections
	handlers atomic.Pointer[[]*receiver]
	count    counters
	passed   atomic.Uint64 // messages published by anybody
	paced    sync.Mutex    // held by the publisher who gives way
	pacing   atomic.Bool   // there is one
	probing  chan struct{} // holds one token
	probed   atomic.Bool   // the probe's message has come

	mu   sync.Mutex
	live map[string]*guard // connected clients by id; nil: the session is being ended
}

// receiver is one Subscribe.
type receiver struct {
	filter mqtt.Filter
	handle mqtt.Handler

	mu       sync.RWMutex // read-locked while handle runs
	canceled bool
}

// call hands m over unless the subscription was canceled. It returns what
// Handler does.
func (r *receiver) call(m mqtt.Message, from mqtt.Origin) (safe <-chan struct{}) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.canceled {
		return nil
	}
	return r.handle(m, from)
}

type counters struct {
	in, delivered, dropped                                  atomic.Uint64
	bytesIn, bytesOut                                       atomic.Uint64
	connects, lost, stuck, malformed, panics, evicted       atomic.Uint64
	refusedConnects, refusedPublishes, refusedSubscriptions atomic.Uint64
	refusedRetained                                         atomic.Uint64
}

// Stats is a look at the broker. Counters begin at 0 when the process does.
type Stats struct {
	Clients       int // connected
	Sessions      int // connected, or kept for a client that is away
	Subscriptions int
	Retained      int
	BacklogBytes  int64 // on their way to clients

	In        uint64 // messages from clients
	Delivered uint64 // messages from the gateway itself
	Out       uint64 // messages to clients
	BytesIn   uint64 // on the wire
	BytesOut  uint64
	Dropped   uint64 // messages that a client did not get because too much waited for it

	Connects  uint64
	Lost      uint64 // connections that ended without a DISCONNECT
	Stuck     uint64 // of those: cut off because they did not read
	Malformed uint64 // connections ended over what MQTT forbids
	Panics    uint64 // of those: packets that caused a panic
	Evicted   uint64 // connections that made room for others before they said CONNECT

	RefusedConnects      uint64 // wrong password, client id, will, too many clients
	RefusedPublishes     uint64 // by the access list
	RefusedSubscriptions uint64 // by the access list, or no filter
	RefusedRetained      uint64 // passed on, but not retained: there are too many

	Saved      bool   // sessions and retained messages go to disk
	StoreError string // why they do not at present; "": they do
}

// Listen opens the listeners of cfg and, if cfg says persist, the file
// broker.db in the folder dir. Nobody is served before Run. A damaged file is
// moved aside and logged, and the broker starts empty; a listener that cannot
// be opened is an error that names it.
func Listen(cfg config.Broker, dir string, log *slog.Logger) (*Broker, error) {
	return listen(cfg, dir, log, usualTimes())
}

func listen(cfg config.Broker, dir string, log *slog.Logger, times times) (*Broker, error) {
	b, err := bind(cfg, log, times, nil)
	if err != nil {
		return nil, err
	}
	if err := b.begin(dir); err != nil {
		return nil, err
	}
	return b, nil
}

// Succeed is Listen for a broker that takes the place of b: listeners at an
// address of b are b's. It has no file yet, and is not to be used before Begin;
// Close ends it without.
func (b *Broker) Succeed(cfg config.Broker, log *slog.Logger) (*Broker, error) {
	return bind(cfg, log, b.times, b)
}

// Begin makes the broker ready for use once the one before has ended: its
// sessions and retained messages are loaded. After an error it is closed.
func (b *Broker) Begin(dir string) error { return b.begin(dir) }

// begin is Listen without the listeners, which are open. After an error the
// broker is closed.
func (b *Broker) begin(dir string) (err error) {
	defer func() {
		if err != nil {
			b.closed.Store(true) // who has it already is told so
			b.closeListeners()
		}
	}()
	if b.cfg.Persist {
		if b.store, err = openStore(dir, b.log); err != nil {
			return err
		}
	}
	if err := b.serve(); err != nil {
		return errors.Join(err, b.store.close())
	}
	return nil
}

// bind makes a broker and opens its listeners; those that before has are taken
// over.
func bind(cfg config.Broker, log *slog.Logger, times times, before *Broker) (*Broker, error) {
	if cfg.MaxClients <= 0 {
		cfg.MaxClients = 64
	}
	if cfg.MaxPacket <= 0 {
		cfg.MaxPacket = 256 << 10
	}
	if cfg.KeepaliveMax <= 0 {
		cfg.KeepaliveMax = time.Minute
	}
	cfg.KeepaliveMax = min(max(cfg.KeepaliveMax, minKeepalive*time.Second), maxKeepalive*time.Second)
	cfg.SessionExpiry = min(max(cfg.SessionExpiry, 0), math.MaxUint32*time.Second)
	b := &Broker{
		cfg: cfg, log: log, times: times,
		started: time.Now(),
		running: make(chan struct{}),
		probing: make(chan struct{}, 1),
		live:    make(map[string]*guard),
	}
	b.handlers.Store(&[]*receiver{})
	var err error
	if b.auth, err = newAuth(cfg.Users, cfg.Anonymous); err != nil {
		return nil, err
	}
	if err := b.open(before); err != nil {
		return nil, err
	}
	return b, nil
}

// serve starts the library's server. Its listeners let nobody in before Run.
func (b *Broker) serve() error {
	caps := mochi.NewDefaultServerCapabilities()
	caps.MaximumClients = math.MaxInt64 // claim counts them
	caps.MaximumPacketSize = uint32(b.cfg.MaxPacket)
	caps.MaximumClientWritesPending = writesPending
	caps.MaximumMessageExpiryInterval = 0                                         // else retained messages go after a day
	caps.MaximumSessionExpiryInterval = uint32(b.cfg.SessionExpiry / time.Second) // what CONNACK says
	caps.MaximumInflight = maxInflightCount
	caps.TopicAliasMaximum = 0 // the ACL is asked before an alias is resolved
	caps.Compatibilities.NoInheritedPropertiesOnAck = true
	b.server = mochi.New(&mochi.Options{
		Capabilities: caps,
		InlineClient: true,
		// The guard gathers what is written; the library would hold packets
		// back while the next one waits for its place in the flow.
		ClientNetWriteBufferSize: 1,
		Logger:                   slog.New(errorsOnly{b.log.Handler()}),
	})
	if err := b.server.AddHook(&hook{b: b}, nil); err != nil {
		return err
	}
	for _, l := range b.listeners {
		l.prepare()
		if err := b.server.AddListener(l); err != nil {
			return fmt.Errorf("listen %s: %w", l.url(), err)
		}
	}
	b.load()
	if err := b.server.Subscribe(probeTopic, probeID, func(*mochi.Client, packets.Subscription, packets.Packet) {
		b.probed.Store(true)
	}); err != nil {
		return err
	}
	b.pulse(time.Now(), true)
	// Not Serve: it starts a loop that copies every retained message and every
	// message that waits once a second. pulse does what the loop is for.
	b.server.Listeners.ServeAll(b.server.EstablishConnection)
	return nil
}

// Addrs returns the addresses the broker listens on, in the order of the
// configuration.
func (b *Broker) Addrs() []net.Addr {
	addrs := make([]net.Addr, len(b.listeners))
	for i, l := range b.listeners {
		addrs[i] = l.net.Addr()
	}
	return addrs
}

// Run serves clients until ctx ends, then lets them go: what is written to
// those that read arrives, wills are published, and all that is kept is
// committed to disk. It returns nil within closeTimeout, a second, and a commit.
// It may be called once.
func (b *Broker) Run(ctx context.Context) error {
	close(b.running)
	t := time.NewTicker(b.times.tick)
	defer t.Stop()
	defer b.beat.Stops()
	for n := 0; ; {
		b.beat.Rests(b.times.tick)
		select {
		case <-ctx.Done():
			return b.Close()
		case now := <-t.C:
			n++
			b.pulse(now, n%sysInterval == 0)
			b.save(now, false)
		}
	}
}

// Overdue returns for how long Run has been owing its next tick; more than some
// seconds means that it hangs, or that the disk does.
func (b *Broker) Overdue() time.Duration { return b.beat.Overdue() }

// enter counts a connection in, unless the broker is closed.
func (b *Broker) enter() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed.Load() {
		return false
	}
	b.conns.Add(1)
	return true
}

// pulse is one tick: what has expired goes, wills that are due are published;
// seldom also says how the broker is on the $SYS topics.
func (b *Broker) pulse(now time.Time, seldom bool) {
	for _, id := range b.tracks.expired(now, b.cfg.SessionExpiry) {
		b.endAway(id)
	}
	for _, w := range b.tracks.wills(now, false) {
		b.publishWill(&w.Will)
	}
	b.dropRetained(now)
	if !seldom {
		return
	}
	for _, cl := range b.server.Clients.GetAll() {
		cl.ClearExpiredInflights(now.Unix(), 0)
	}
	st := b.Stats()
	for _, v := range []struct {
		topic string
		value any
	}{
		{"version", "mochi " + mochi.Version},
		{"uptime", int64(now.Sub(b.started) / time.Second)},
		{"clients/connected", st.Clients},
		{"clients/total", st.Sessions},
		{"subscriptions/count", st.Subscriptions},
		{"messages/received", st.In},
		{"messages/sent", st.Out},
		{"messages/dropped", st.Dropped},
		{"load/bytes/received", st.BytesIn},
		{"load/bytes/sent", st.BytesOut},
	} {
		if err := b.server.Publish("$SYS/broker/"+v.topic, fmt.Append(nil, v.value), true, 0); err != nil {
			b.log.Error("$SYS not published", "topic", v.topic, "err", err)
		}
	}
}

// Close closes a broker that is not run; Run does it itself. It may be called
// again.
func (b *Broker) Close() (err error) {
	b.closing.Do(func() {
		b.publishing.Lock()
		b.mu.Lock()
		b.closed.Store(true)
		b.mu.Unlock()
		b.publishing.Unlock()
		b.closeListeners()
		if b.server == nil { // Begin was not called
			return
		}
		b.wires.close(false)
		over := make(chan struct{})
		go func() { // ends with the last connection
			b.conns.Wait()
			close(over)
		}()
		// Only then the server: it waits for its clients without a limit.
		if err = b.letGo(over); err == nil {
			err = b.server.Close()
		}
		for _, w := range b.tracks.wills(time.Now(), true) {
			b.publishWill(&w.Will)
		}
		b.save(time.Now(), true)
		err = errors.Join(err, b.store.close())
	})
	return err
}

// letGo ends all clients until over is closed: first those that have got all
// that was for them, soon the others.
func (b *Broker) letGo(over <-chan struct{}) error {
	start := time.Now()
	for {
		patient := time.Since(start) < drainTimeout
		b.mu.Lock()
		for _, g := range b.live {
			if g == nil || patient && (g.pending() > 0 || g.owes()) && !g.held.Load() && !g.flow.full() {
				continue
			}
			cl := g.client.Load()
			if cl.Properties.ProtocolVersion == 5 {
				_ = b.server.DisconnectClient(cl, packets.ErrServerShuttingDown)
			}
			cl.Stop(packets.ErrServerShuttingDown)
		}
		b.mu.Unlock()
		switch late := time.Since(start); {
		case late > closeTimeout+time.Second:
			return errors.New("clients do not let go")
		case late > closeTimeout:
			b.wires.close(true)
		}
		select {
		case <-over:
			return nil
		case <-time.After(time.Millisecond):
		}
	}
}

// Deliver publishes msgs in order as the gateway's own, whatever the access
// lists say. It waits for no subscriber: one who does not keep up loses
// messages, or is cut off. A message that mqtt.Message.Check refuses is left
// out and named in the error. Neither the slice nor the payloads are kept.
// After Run or Close the error is ErrClosed.
func (b *Broker) Deliver(_ context.Context, msgs ...mqtt.Message) error {
	var errs []error
	for i := range msgs {
		switch err := b.publish(&msgs[i]); {
		case errors.Is(err, ErrClosed):
			return errors.Join(append(errs, err)...)
		case err != nil:
			errs = append(errs, err)
			continue
		}
		b.count.delivered.Add(1)
		b.pace()
	}
	return errors.Join(errs...)
}

// publish is Deliver of one message. Close waits for it: what was taken is in the
// sessions that are saved.
func (b *Broker) publish(m *mqtt.Message) error {
	b.publishing.RLock()
	defer b.publishing.RUnlock()
	if b.closed.Load() {
		return ErrClosed
	}
	if err := m.Check(); err != nil {
		return err
	}
	return b.server.Publish(m.Topic, m.Payload, m.Retain, m.QoS)
}

// pace gives way to the encoders that have fallen behind in a burst, so that
// they need not drop any of it. It is called after each message and looks at
// every paceEvery-th, and while another publisher gives way.
func (b *Broker) pace() {
	if b.passed.Add(1)%paceEvery != 0 && !b.pacing.Load() {
		return
	}
	b.paced.Lock()
	defer b.paced.Unlock()
	b.pacing.Store(true)
	defer b.pacing.Store(false)
	var behind []*guard
	b.mu.Lock()
	for _, g := range b.live {
		if g != nil && g.pending() > highPending {
			behind = append(behind, g)
		}
	}
	b.mu.Unlock()
	for _, g := range behind {
		g.catchUp(false)
	}
}

// Retained returns the payload of the message that is retained on topic, and
// whether there is one. It is not to be changed.
func (b *Broker) Retained(topic string) (payload []byte, ok bool) {
	if b.closed.Load() {
		return nil, false // or never begun
	}
	pk, ok := b.server.Topics.Retained.Get(topic)
	return pk.Payload, ok
}

// Subscribe calls handle with each message that a client publishes, by itself
// or by its will, on a topic that filter matches; and first, with Retain set and
// no client, with the messages of clients that are retained for it. The client
// is sent its acknowledgement once what handle returns is closed; its next
// messages are taken meanwhile, maxHeld at most. The gateway's own messages are
// not handed out. handle runs in the client's goroutine, for several clients at
// once, and must not block; its reply publishes as Deliver does. cancel, which
// handle must not call, waits for calls under way; none begins after it. The
// error wraps mqtt.ErrInvalid for a filter that is none.
func (b *Broker) Subscribe(filter mqtt.Filter, handle mqtt.Handler) (cancel func(), err error) {
	if err := mqtt.ValidFilter(string(filter)); err != nil {
		return nil, err
	}
	if b.closed.Load() {
		return nil, ErrClosed
	}
	r := &receiver{filter: filter, handle: handle}
	b.change(func(rs []*receiver) []*receiver { return append(rs, r) })
	for topic, pk := range b.server.Topics.Retained.GetAll() {
		if pk.Origin != mochi.InlineClientId && filter.Match(topic) {
			r.call(mqtt.Message{Topic: topic, Payload: slices.Clone(pk.Payload), QoS: pk.FixedHeader.Qos, Retain: true}, b.origin(nil))
		}
	}
	return func() {
		b.change(func(rs []*receiver) []*receiver {
			return slices.DeleteFunc(rs, func(o *receiver) bool { return o == r })
		})
		r.mu.Lock()
		defer r.mu.Unlock()
		r.canceled = true
	}, nil
}

// change replaces the receivers by what f makes of a copy of them.
func (b *Broker) change(f func([]*receiver) []*receiver) {
	b.mu.Lock()
	defer b.mu.Unlock()
	rs := f(slices.Clone(*b.handlers.Load()))
	b.handlers.Store(&rs)
}

func (b *Broker) reply(m mqtt.Message) {
	if err := b.Deliver(context.Background(), m); err != nil {
		b.log.Warn("reply not published", "topic", m.Topic, "err", err)
	}
}

// Stats returns the broker's figures.
func (b *Broker) Stats() Stats {
	n, info := &b.count, b.server.Info
	b.mu.Lock()
	clients := len(b.live)
	b.mu.Unlock()
	st := Stats{
		Clients:              clients,
		Sessions:             b.server.Clients.Len() - 1, // the gateway's own
		Subscriptions:        int(atomic.LoadInt64(&info.Subscriptions)),
		Retained:             b.server.Topics.Retained.Len(),
		BacklogBytes:         b.backlog.Load(),
		In:                   n.in.Load(),
		Delivered:            n.delivered.Load(),
		Out:                  uint64(atomic.LoadInt64(&info.MessagesSent)),
		BytesIn:              n.bytesIn.Load(),
		BytesOut:             n.bytesOut.Load(),
		Dropped:              n.dropped.Load() + uint64(atomic.LoadInt64(&info.InflightDropped)),
		Connects:             n.connects.Load(),
		Lost:                 n.lost.Load(),
		Stuck:                n.stuck.Load(),
		Malformed:            n.malformed.Load(),
		Panics:               n.panics.Load(),
		Evicted:              n.evicted.Load(),
		RefusedConnects:      n.refusedConnects.Load(),
		RefusedPublishes:     n.refusedPublishes.Load(),
		RefusedSubscriptions: n.refusedSubscriptions.Load(),
		RefusedRetained:      n.refusedRetained.Load(),
		Saved:                b.store != nil,
	}
	if b.store != nil {
		st.StoreError = b.store.trouble()
	}
	return st
}

// Flash returns what was written to the disk for sessions and retained messages.
func (b *Broker) Flash() flash.Report {
	if b.store == nil {
		return flash.Report{}
	}
	return b.store.ledger.Report()
}

// Probe publishes a message inside the broker, waits until it has come, and
// looks whether any client's lock is stuck, all before ctx ends: the watchdog's
// question whether the broker is alive.
func (b *Broker) Probe(ctx context.Context) error {
	select {
	case b.probing <- struct{}{}:
	default:
		return errors.New("the probe before has not come back")
	}
	over := make(chan error, 1)
	go func() { // ends when the library's locks are free; there is one at most
		b.probed.Store(false)
		err := b.server.Publish(probeTopic, nil, false, 0)
		for _, cl := range b.server.Clients.GetAll() {
			cl.State.Inflight.Len()
		}
		if err == nil && !b.probed.Load() {
			err = errors.New("the message has not come")
		}
		<-b.probing
		over <- err
	}()
	select {
	case err := <-over:
		return err
	case <-ctx.Done():
		return fmt.Errorf("no answer from the broker: %w", ctx.Err())
	}
}
