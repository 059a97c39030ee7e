package uplink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/queue"
)

// Limits of one connection.
const (
	// Width is how many PUBLISH packets with QoS 1 and 2 may be in flight.
	// Measured to mosquitto on loopback, CPU per message: 16 4.3 µs, 64 4.1,
	// 256 2.2; AWS takes 100.
	Width = 64

	// exactWidth is how many of them may have QoS 2. mosquitto keeps state for 20
	// (max_inflight_messages); it completes the flow of any more, and loses them.
	exactWidth = 16

	// pingPatience is the longest time that a ping's answer is waited for.
	pingPatience = 30 * time.Second

	connectTimeout = 10 * time.Second // where the configuration has none
	writePatience  = 10 * time.Second // for one write, see wire
	goodbye        = time.Second      // for DISCONNECT to be written

	// MaxPacket is the longest packet taken from a broker. Of a longer message only
	// the topic is: it is no command for a gateway.
	MaxPacket = 1 << 20

	writeMost = 64 << 10 // packets are gathered up to here for one write
)

// ConnOptions is what a Conn does beside what the configuration says.
type ConnOptions struct {
	Will    *mqtt.Message       // published by the broker if we vanish; nil: none
	Handler Handler             // nil: what comes is dropped
	TooLong TooLong             // nil: what is too long is dropped, and not acknowledged
	Acked   func(seqs []uint64) // queue entries that were acknowledged; called from the reader, keeps nothing
	Width   int                 // messages in flight; 0: the constant
	Sure    bool                // send what has QoS 0 with QoS 1

	MaxPacket int // longest packet taken; 0: the constant
}

// TooLong is given, in the place of Handler, a message whose packet is longer than
// is taken: without its payload, and how many bytes that had.
type TooLong func(m mqtt.Message, length int)

// Handler is given each message that a Conn receives, one at a time. While it
// blocks nothing more is received, and nothing that was sent is acknowledged. A
// message with QoS 1 or 2 is acknowledged once all channels it returns are
// closed, those before it first.
type Handler func(m mqtt.Message) (safe []<-chan struct{})

// ConnState is what a connection turned out to be.
type ConnState struct {
	Word    string // Connected, Connected (TLS), Connected (WS), Connected (WSS)
	Version string // "TLS 1.3", "" without
	Cipher  string // as RFC 8446 and 5246 call it, "" without TLS

	Certs []Certificate // with TLS: the broker's, one of its authorities if that ends before, ours
	Chain int           // length of the broker's chain
}

// Conn is one connection to one broker, from CONNECT to its end. It never
// reconnects and never sends twice: what it sent without an acknowledgement is
// for its successor. It is safe for use by several goroutines.
//
// paho speaks the protocol but for PUBLISH: CONNECT, keep-alive, SUBSCRIBE, what
// comes in, the middle of QoS 2. PUBLISH packets are written here, as many at a
// time as there are, and their acknowledgements taken by wire. Through paho's
// own Publish a message costs 8-14 µs in place of 2-4; it may block for the
// write timeout after the connection is gone, and its tokens complete for
// messages that nobody has acknowledged.
type Conn struct {
	State ConnState // does not change

	url      *url.URL
	patience time.Duration // to open such a connection
	silence  time.Duration // on the link, after which it counts as dead; 0: none

	client  paho.Client
	wire    *wire
	win     *window
	inbox   *inbox
	handler Handler
	tooLong TooLong
	acked   func([]uint64)
	seqs    []uint64 // of the reader
	qosMin  uint8
	qosMax  uint8 // 1 where QoS 2 would not be safe
	askMost uint8 // highest QoS to subscribe with

	noRetain bool      // send nothing with the retain flag
	renewAt  time.Time // when the login has to be renewed; zero: never

	serving sync.WaitGroup

	closing  atomic.Bool   // Close was called
	pahoGone chan struct{} // closed when paho has given the connection up
	pahoErr  error         // why it did; read after pahoGone

	send sync.Mutex // orders packet identifiers and writes
	out  []byte
}

// Connect opens a connection to the broker at rawURL, which ParseURL must take,
// with the rest of cfg (its own URLs and queue are not looked at). It returns
// once the broker has accepted it. An error is a *Fault, or ctx's.
func Connect(ctx context.Context, cfg config.Uplink, rawURL string, o ConnOptions) (*Conn, error) {
	u, err := ParseURL(rawURL)
	if err != nil {
		return nil, &Fault{Step: StepFiles, Text: err.Error(), Err: err, Refused: true}
	}
	if cfg.ConnectTimeout <= 0 {
		cfg.ConnectTimeout = connectTimeout
	}
	login, err := loginFor(cfg, u.Hostname(), time.Now())
	if err != nil {
		return nil, secretFault(err)
	}
	stream, err := dial(ctx, cfg, u, cfg.ConnectTimeout, nil)
	if err != nil {
		return nil, orStopped(ctx, err)
	}
	return greeted(ctx, cfg, u, login, stream, o)
}

// greeted makes a Conn of a stream that is open: it sends CONNECT and waits for
// the broker to accept it.
func greeted(ctx context.Context, cfg config.Uplink, u *url.URL, login login, stream stream, o ConnOptions) (*Conn, error) {
	if o.Width == 0 {
		o.Width = Width
	}
	if o.MaxPacket == 0 {
		o.MaxPacket = MaxPacket
	}
	c := &Conn{
		State:    describe(u, stream),
		url:      u,
		patience: cfg.ConnectTimeout,
		silence:  silence(cfg.Keepalive),
		wire:     newWire(stream, o.MaxPacket, writePatience),
		win:      newWindow(o.Width),
		inbox:    newInbox(),
		handler:  o.Handler,
		tooLong:  o.TooLong,
		acked:    o.Acked,
		qosMax:   2,
		askMost:  2,
		noRetain: cfg.NoRetain,
		renewAt:  login.renewAt(time.Now()),
		pahoGone: make(chan struct{}),
	}
	if o.Sure {
		c.qosMin = 1
	}
	if !cfg.CleanSession {
		// The broker may hold half of a QoS 2 flow of an earlier connection and
		// would take a new message with the same identifier for a repetition
		// (clause 4.3.3). QoS 1 has no such memory.
		c.qosMax = 1
	}
	if cfg.MaxQoS > 0 {
		c.qosMax, c.askMost = min(c.qosMax, cfg.MaxQoS), min(c.askMost, cfg.MaxQoS)
	}
	c.wire.onAcks = c.onAcks
	c.wire.hurry = func() bool { return c.win.flight().exact > 0 }
	c.client = paho.NewClient(c.options(cfg, u, login, o))
	token := c.client.Connect()
	select {
	case <-token.Done():
	case <-ctx.Done():
		_ = c.wire.Close() // makes the token complete
		<-token.Done()
	}
	if err := token.Error(); err != nil {
		if cause := c.wire.cause(); cause != nil {
			err = cause
		}
		_ = c.wire.Close()
		return nil, orStopped(ctx, connectFault(err, cfg, u.Scheme))
	}
	c.serving.Go(c.acknowledge) // both end with the wire; Close waits for them
	c.serving.Go(c.listen)
	return c, nil
}

// orStopped returns ctx's error once ctx has ended, else err.
func orStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (c *Conn) options(cfg config.Uplink, u *url.URL, login login, o ConnOptions) *paho.ClientOptions {
	p := paho.NewClientOptions()
	p.Servers = []*url.URL{{Scheme: u.Scheme, Host: u.Host}}
	p.SetClientID(cfg.ClientID)
	p.SetUsername(login.user)
	p.SetPassword(login.password.Reveal())
	p.SetProtocolVersion(4) // else a refused login is tried twice
	p.SetCleanSession(cfg.CleanSession)
	p.SetKeepAlive(cfg.Keepalive)
	p.SetPingTimeout(math.MaxInt64) // see listen
	p.SetConnectTimeout(cfg.ConnectTimeout)
	p.SetWriteTimeout(writePatience) // for SUBSCRIBE to be taken
	p.SetAutoReconnect(false)
	p.SetConnectRetry(false)
	p.SetOrderMatters(true)
	p.SetAutoAckDisabled(true) // see inbox
	p.SetStore(noStore{})
	p.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) { return c.wire, nil })
	p.SetConnectionLostHandler(func(_ paho.Client, err error) {
		c.pahoErr = err
		close(c.pahoGone)
	})
	p.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) {
		c.arrived(mqtt.Message{Topic: m.Topic(), Payload: m.Payload(), QoS: m.Qos(), Retain: m.Retained()}, m.MessageID(), m.Duplicate())
	})
	if w := o.Will; w != nil {
		p.SetBinaryWill(w.Topic, w.Payload, min(w.QoS, c.qosMax), w.Retain && !cfg.NoRetain)
	}
	return p
}

// describe gives the status words of SPEC "uplink".
func describe(u *url.URL, made stream) ConnState {
	var s ConnState
	switch u.Scheme {
	case "mqtts":
		s.Word = "Connected (TLS)"
	case "ws":
		s.Word = "Connected (WS)"
	case "wss":
		s.Word = "Connected (WSS)"
	default:
		s.Word = "Connected"
	}
	if state := made.tls; state != nil {
		s.Version, s.Cipher = tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite)
		s.Certs, s.Chain = certificates(state, made.own)
	}
	return s
}

// checkEvery is how often paho looks whether it is time for a ping.
func checkEvery(keepalive time.Duration) time.Duration {
	if keepalive > 10*time.Second {
		return 5 * time.Second
	}
	return keepalive / 4
}

// silence is how long a link with such a keep-alive may bring nothing: paho
// pings after that time, as soon as it looks, and an answer may take half as long
// again, which is when the broker gives us up (clause 3.1.2.10).
func silence(keepalive time.Duration) time.Duration {
	return keepalive + checkEvery(keepalive) + min(keepalive/2, pingPatience)
}

// listen ends a connection on which nothing has come for too long. paho would
// ask for the answer to its ping alone; here whatever comes is a sign of life,
// and what waits to be sent before the ping has its time.
func (c *Conn) listen() {
	if c.silence == 0 {
		return
	}
	look := time.NewTicker(c.silence / 16)
	defer look.Stop()
	for {
		select {
		case <-look.C:
		case <-c.Lost():
			return
		}
		before := time.Duration(min(c.wire.unsent(), unsentMost)) * time.Second / slowest
		if c.wire.silent() > c.silence+before {
			c.abort(&Fault{Step: StepSession, Text: fmt.Sprintf("the link is dead: nothing comes from the broker for %v, not even the answer to a ping", c.silence)})
			return
		}
	}
}

// onAcks is called by the reader.
func (c *Conn) onAcks(acks []ack) {
	c.seqs = c.win.ack(acks, c.seqs[:0])
	if len(c.seqs) > 0 && c.acked != nil {
		c.acked(c.seqs)
	}
}

// Lost is closed when the connection has ended; Err then says why.
func (c *Conn) Lost() <-chan struct{} { return c.wire.lost }

// Err returns why the connection ended, as a *Fault, or nil while it has not.
func (c *Conn) Err() error {
	err := c.wire.cause()
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, net.ErrClosed):
		return sessionFault(err)
	case c.closing.Load():
		return &Fault{Step: StepSession, Text: "the connection was closed", Err: err}
	}
	// paho closed it, and is about to say why.
	select {
	case <-c.pahoGone:
	case <-time.After(goodbye):
		return sessionFault(err)
	}
	return sessionFault(c.pahoErr)
}

// abort ends the connection because of err, without a DISCONNECT: the broker
// publishes the will.
func (c *Conn) abort(err error) { c.wire.end(err) }

// waitRoom waits until there is room in the window and returns how many messages
// may be sent; it fails once the connection has ended. It does not wait for more
// room than one: many brokers hold back acknowledgements (Nagle's algorithm)
// until they hear from us, which without anything to send takes 40 ms.
func (c *Conn) waitRoom() (int, error) {
	for {
		if n := c.win.free(); n > 0 {
			return n, nil
		}
		select {
		case <-c.win.room:
		case <-c.Lost():
			return 0, c.Err()
		}
	}
}

// sendAll writes entries as PUBLISH packets, in order and in as few writes as
// may be. No more of them may have QoS 1 or 2 than waitRoom said. It appends
// to sent the sequence numbers of those with QoS 0 that were written: for them
// that is all there will be.
func (c *Conn) sendAll(entries []queue.Entry, sent []uint64) ([]uint64, error) {
	c.send.Lock()
	defer c.send.Unlock()
	flushed := 0 // entries[:flushed] are written
	flush := func(n int) error {
		if err := c.flush(); err != nil {
			return err
		}
		for ; flushed < n; flushed++ {
			if c.qos(entries[flushed].Message) == 0 {
				sent = append(sent, entries[flushed].Seq)
			}
		}
		return nil
	}
	for i := range entries {
		if c.qos(entries[i].Message) == 2 && !c.win.exactRoom() {
			if err := flush(i); err != nil {
				return sent, err
			}
			if err := c.waitExact(); err != nil {
				return sent, err
			}
		}
		c.put(entries[i].Message, entries[i].Seq, nil)
		if len(c.out) >= writeMost {
			if err := flush(i + 1); err != nil {
				return sent, err
			}
		}
	}
	err := flush(len(entries))
	return sent, err
}

// waitExact waits until messages with QoS 2 may be sent again.
func (c *Conn) waitExact() error {
	for !c.win.exactRoom() {
		select {
		case <-c.win.room:
		case <-c.Lost():
			return c.Err()
		}
	}
	return nil
}

// qos is the QoS that m is sent with.
func (c *Conn) qos(m mqtt.Message) uint8 { return min(max(m.QoS, c.qosMin), c.qosMax) }

// put appends m to what the next flush writes.
func (c *Conn) put(m mqtt.Message, seq uint64, wait chan struct{}) {
	qos := c.qos(m)
	var id uint16
	if qos > 0 {
		s := slot{seq: seq, bytes: len(m.Topic) + len(m.Payload), ends: puback, wait: wait}
		if qos == 2 {
			s.ends = pubcomp
		}
		id = c.win.take(s)
	}
	m.Retain = m.Retain && !c.noRetain
	c.out = appendPublish(c.out, m, qos, id)
}

func (c *Conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.wire.Write(c.out)
	if c.out = c.out[:0]; cap(c.out) > 4*writeMost {
		c.out = nil // one large message is no reason to keep as much for ever
	}
	if err != nil {
		return c.Err() // the connection may have ended before, and for a better reason
	}
	return nil
}

// Publish sends m and waits until the broker has acknowledged it (QoS 1, 2) or
// it is written (QoS 0). When ctx ends first, or the connection, it is not
// known whether the broker has m.
func (c *Conn) Publish(ctx context.Context, m mqtt.Message) error {
	if err := m.Check(); err != nil {
		return err
	}
	var wait chan struct{}
	if c.qos(m) > 0 {
		if _, err := c.waitRoom(); err != nil {
			return err
		}
		wait = make(chan struct{})
	}
	if err := c.sendOne(m, wait); err != nil || wait == nil {
		return err
	}
	select {
	case <-wait:
		return nil
	case <-c.Lost():
		return c.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Conn) sendOne(m mqtt.Message, wait chan struct{}) error {
	c.send.Lock()
	defer c.send.Unlock()
	if c.qos(m) == 2 {
		if err := c.waitExact(); err != nil {
			return err
		}
	}
	c.put(m, 0, wait)
	return c.flush()
}

// ErrSubscriptionRefused is wrapped by the error for a filter that the broker
// does not let us subscribe to.
var ErrSubscriptionRefused = errors.New("the broker refuses the subscription")

// Subscribe asks for the messages of filter and waits for the answer: the QoS
// that the broker grants.
func (c *Conn) Subscribe(ctx context.Context, filter mqtt.Filter, qos uint8) (uint8, error) {
	return c.ask(filter, qos)(ctx)
}

// ask sends a SUBSCRIBE for filter and returns what waits for its answer.
func (c *Conn) ask(filter mqtt.Filter, qos uint8) (answer func(context.Context) (uint8, error)) {
	if err := mqtt.ValidFilter(string(filter)); err != nil {
		return func(context.Context) (uint8, error) { return 0, err }
	}
	token := c.client.Subscribe(string(filter), min(qos, c.askMost), nil).(*paho.SubscribeToken)
	return func(ctx context.Context) (uint8, error) {
		select {
		case <-token.Done(): // though ctx may have ended over another answer
		default:
			select {
			case <-token.Done():
			case <-c.Lost():
				return 0, c.Err()
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		for _, granted := range token.Result() { // one filter, one answer
			if granted > 2 {
				return 0, &Fault{Step: StepSession, Text: fmt.Sprintf("%v to %s", ErrSubscriptionRefused, filter), Remedy: "check the broker's access rules", Err: ErrSubscriptionRefused, Refused: true}
			}
			return granted, nil
		}
		if c.wire.cause() != nil {
			return 0, c.Err() // paho's token has completed over it
		}
		return 0, &Fault{Step: StepSession, Text: fmt.Sprintf("subscribe to %s: %v", filter, token.Error()), Err: token.Error()}
	}
}

// unsubscribe asks the broker to send no more of what filter matches, and waits
// for its answer. Its messages may still be on their way.
func (c *Conn) unsubscribe(ctx context.Context, filter mqtt.Filter) error {
	token := c.client.Unsubscribe(string(filter))
	select {
	case <-token.Done():
		return token.Error()
	case <-c.Lost():
		return c.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close says goodbye (DISCONNECT, so that no will is published) and returns
// when the connection and all that served it have ended, within a second. It
// does not wait for acknowledgements. It may be called for a connection that
// is lost.
func (c *Conn) Close() {
	c.closing.Store(true)
	c.client.Disconnect(uint(goodbye.Milliseconds()))
	_ = c.wire.Close()
	c.serving.Wait()
}

// noStore keeps nothing: a Conn never sends twice, see queue.
type noStore struct{}

func (noStore) Open()                             {}
func (noStore) Put(string, packets.ControlPacket) {}
func (noStore) Get(string) packets.ControlPacket  { return nil }
func (noStore) All() []string                     { return nil }
func (noStore) Del(string)                        {}
func (noStore) Close()                            {}
func (noStore) Reset()                            {}
