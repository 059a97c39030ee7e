// Package uplink is the client to one MQTT broker upstream: it keeps a
// connection (TCP, TLS, WebSocket, through a proxy), sends what waits in its
// queue, and takes a message out of the queue only when the broker has
// acknowledged it. It stores nothing and turns no points into messages.
//
// The types are Uplink, which reconnects for ever, and Conn, a single
// connection, which the command line uses too. A Fault says in words why there
// is none.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/health"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/queue"
)

// Limits of an uplink.
const (
	// ackPatience is how long messages may be in flight without any of them
	// being acknowledged, beside the time that their bytes need on the slowest
	// link. A broker that accepts and never acknowledges costs no longer.
	ackPatience = 20 * time.Second

	// stopPatience is how long Run goes on sending after its context has ended.
	stopPatience = 5 * time.Second
)

// stateRefusals is how many connections in a row may end over the message that
// says we are online, before it is left out for the time called topicBan.
const stateRefusals = 3

// Status is how an uplink stands.
type Status struct {
	Connected bool
	Word      string    // Connecting, Connected, Connected (TLS), Connected (WS), Connected (WSS), Stopped
	Since     time.Time // of Word
	URL       string    // of the broker connected to, without user and password
	Version   string    // of TLS, "TLS 1.3"
	Cipher    string
	InFlight  int // sent and not acknowledged

	// Certs are those of the connection, or of the last one that there was; Chain
	// is the length of the broker's chain. Neither changes once returned.
	Certs []Certificate
	Chain int

	Err   string    // the last fault, with what to do; kept while connected
	ErrAt time.Time // when; zero: there was none

	Connects uint64 // connections made
	Acked    uint64 // messages acknowledged, or with QoS 0 written
	Refused  uint64 // messages given up because the broker hangs up over them

	Unsubscribed []Unsubscribed // filters that the broker refuses; never changed once returned
}

// Uplink is the client to one broker. Make it with New.
type Uplink struct {
	// OnSend is told what is about to be sent, before it is. It must not block,
	// keeps nothing, may be nil, and is set before Run.
	OnSend func([]queue.Entry)

	cfg         config.Uplink
	q           *queue.Queue
	will, birth mqtt.Message
	subs        atomic.Pointer[[]Subscription]
	subsChanged chan struct{} // holds a token when subs is new

	ackPatience, stopPatience time.Duration
	lookEvery, lookAgain      time.Duration
	calm                      time.Duration

	// Of Run alone.
	log        *slog.Logger
	news       news
	backoff    backoff
	quarrel    quarrel
	subscriber *subscriber
	certNews   certNews
	stateFails int       // connections in a row that ended over the birth
	noState    time.Time // neither will nor birth until then
	longAgain  time.Time // a message that is too long is not logged before; of who receives

	acked, refused, connects atomic.Uint64

	beat, sending health.Beat // of Run and of pump

	mu           sync.Mutex
	status       Status
	unsubscribed []Unsubscribed
	conn         *Conn // nil while there is none
}

// New returns the uplink for cfg that sends what is in q. The broker publishes
// will when the gateway vanishes, and the uplink itself when it stops; birth is
// published first on each connection. Both have the same topic, an empty one
// means neither. What the broker sends goes to each of subs whose filter
// matches; replies go into q. Nothing happens before Run.
func New(cfg config.Uplink, q *queue.Queue, will, birth mqtt.Message, subs []Subscription, log *slog.Logger) *Uplink {
	u := &Uplink{
		cfg:          cfg,
		q:            q,
		will:         will,
		birth:        birth,
		subsChanged:  make(chan struct{}, 1),
		ackPatience:  ackPatience,
		stopPatience: stopPatience,
		lookEvery:    lookEvery,
		lookAgain:    lookAgain,
		calm:         calm,
		log:          log,
		backoff:      backoff{least: waitLeast, most: waitMost},
		news:         news{log: log},
		certNews:     certNews{log: log},
		status:       Status{Word: "Connecting", Since: time.Now()},
	}
	u.subs.Store(&subs)
	u.subscriber = newSubscriber(subs, log, u.setUnsubscribed)
	return u
}

// Subscribe puts other subscriptions in place of those of New. A connection goes
// on: the broker is asked for filters that are new, and those that are gone are
// given back. Each message goes to the old ones or the new ones.
func (u *Uplink) Subscribe(subs []Subscription) {
	u.subs.Store(&subs)
	select {
	case u.subsChanged <- struct{}{}:
	default:
	}
}

// Run keeps the uplink connected and sends. When ctx ends it sends what is
// left in the queue, for at most five seconds, says that the gateway is
// offline, disconnects and returns nil. Without a connection it returns at once.
func (u *Uplink) Run(ctx context.Context) error {
	defer u.beat.Stops()
	for ctx.Err() == nil {
		u.beat.Works()
		u.setStatus(Status{Word: "Connecting"})
		lasted, err := u.live(ctx)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, errRenew) {
			continue
		}
		fault := u.failed(err, lasted)
		pause := u.backoff.next(time.Now(), fault.Refused && !u.onItsWay(fault))
		u.beat.Rests(pause)
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
		}
	}
	u.setStatus(Status{Word: "Stopped"})
	return nil
}

// Overdue returns for how long the uplink has been owing its next step: what
// waits for the network has its limits. Minutes mean that it hangs; a broker that
// is away or does not answer is no reason.
func (u *Uplink) Overdue() time.Duration { return max(u.beat.Overdue(), u.sending.Overdue()) }

// onItsWay reports whether what looks like a refusal is more likely a broker
// that is away: it has let us in before, and now the connection ends instead of
// an answer. So does that to a balancer with nothing behind it, or to a broker
// that is still starting.
func (u *Uplink) onItsWay(f *Fault) bool {
	return u.connects.Load() > 0 && f.Step != StepSession && isHangup(f)
}

// Status returns how the uplink stands now.
func (u *Uplink) Status() Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.status
	s.Acked, s.Refused, s.Connects = u.acked.Load(), u.refused.Load(), u.connects.Load()
	s.Unsubscribed = u.unsubscribed
	if u.conn != nil {
		s.InFlight = u.conn.win.flight().n
	}
	return s
}

// Connected reports whether the uplink is connected now.
func (u *Uplink) Connected() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.status.Connected
}

// setStatus changes the words; the last fault stays, and what certificates there
// were.
func (u *Uplink) setStatus(s Status) Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	s.Err, s.ErrAt = u.status.Err, u.status.ErrAt
	if !s.Connected {
		s.Certs, s.Chain = u.status.Certs, u.status.Chain
	}
	if s.Since = u.status.Since; s.Word != u.status.Word || s.URL != u.status.URL {
		s.Since = time.Now()
	}
	u.status = s
	return s
}

func (u *Uplink) setCerts(certs []Certificate) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status.Certs = certs
}

func (u *Uplink) setUnsubscribed(l []Unsubscribed) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.unsubscribed = l
}

func (u *Uplink) setConn(c *Conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.conn = c
}

// failed notes why there is no connection, any more or yet.
func (u *Uplink) failed(err error, lasted time.Duration) *Fault {
	fault := sessionFault(err)
	if fault.Step == StepSession && isHangup(fault) && u.news.short >= 2 && fault.Remedy == "" {
		f := *fault
		f.Text += " again and again"
		f.Remedy = fmt.Sprintf("does another client use the client id %q, or does the broker refuse a message?", u.cfg.ClientID)
		fault = &f
	}
	u.news.failed(fault, lasted)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status.Err, u.status.ErrAt = fault.Error(), time.Now()
	return fault
}

// live makes one connection and returns when it has ended: how long it lasted
// since it proved itself, and why it ended, nil if ctx has.
func (u *Uplink) live(ctx context.Context) (lasted time.Duration, err error) {
	files := newFiles(u.cfg) // before they are read
	c, shown, err := u.connect(ctx)
	if err != nil {
		return 0, err
	}
	u.connects.Add(1)
	u.setConn(c)
	defer u.setConn(nil)
	defer u.q.Rewind()
	defer c.Close()
	subs := *u.subs.Load()
	u.beat.Rests(time.Duration(1+len(subs)) * u.ackPatience)
	// A command that the broker has for us is asked for before anything goes up,
	// so that whoever reads our birth can rely on being heard.
	if err := u.subscriber.all(ctx, c, subs, u.ackPatience); err != nil {
		return 0, err
	}
	asked, birth := time.Now(), u.stateTopic()
	if err := u.greet(ctx, c); err != nil {
		return 0, err
	}
	trip := time.Since(asked)
	u.q.Rewind() // what comes from now on is live, what waits is back-fill
	start := time.Now()
	s := u.setStatus(Status{Connected: true, Word: c.State.Word, URL: shown, Version: c.State.Version, Cipher: c.State.Cipher, Certs: c.State.Certs, Chain: c.State.Chain})
	u.news.connected(s)
	last, err := u.serve(ctx, c, files, max(u.calm, calmTrips*trip), func() {
		u.backoff.reset()
		u.news.lasting(s)
	})
	lasted = time.Since(start)
	if err != nil && !errors.Is(err, errRenew) {
		u.judge(c, birth, lasted, last, err)
	}
	return lasted, err
}

// connect tries the URLs in order and returns the first connection.
func (u *Uplink) connect(ctx context.Context) (*Conn, string, error) {
	o := ConnOptions{
		Handler: u.receive,
		TooLong: u.tooLong,
		Acked: func(seqs []uint64) {
			u.acked.Add(uint64(len(seqs)))
			_ = u.q.Done(seqs...) // fails only for a queue that is closed
		},
		Width: u.quarrel.width(),
		Sure:  u.quarrel.width() == 1,
	}
	if u.stateTopic() {
		o.Will = &u.will
	}
	var texts []string
	worst := &Fault{}
	for _, raw := range u.cfg.URLs {
		u.beat.Rests(2 * max(u.cfg.ConnectTimeout, connectTimeout)) // to dial, and to greet
		c, err := Connect(ctx, u.cfg, raw, o)
		if err == nil {
			return c, show(raw), nil
		}
		if ctx.Err() != nil {
			return nil, "", ctx.Err()
		}
		fault := sessionFault(err)
		texts = append(texts, fmt.Sprintf("%s: %s", show(raw), fault.Text))
		if len(texts) == 1 || fault.Refused && !worst.Refused {
			worst = fault
		}
	}
	if len(texts) > 1 {
		f := *worst
		f.Text = strings.Join(texts, ", ")
		worst = &f
	}
	return nil, "", worst
}

// show returns raw without user and password.
func show(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "?"
	}
	u.User = nil
	return u.String()
}

// receive hands m to whom it is for. A broker that keeps our session may send
// what nobody asks for any more: that is done with at once.
func (u *Uplink) receive(m mqtt.Message) (safe []<-chan struct{}) {
	from := mqtt.Origin{Via: u.cfg.Name, Reply: u.reply}
	for _, s := range *u.subs.Load() {
		if !s.Filter.Match(m.Topic) {
			continue
		}
		if done := s.Handle(m, from); done != nil {
			safe = append(safe, done)
		}
	}
	return safe
}

// tooLong tells whom it may concern that a message is not taken because of its
// length.
func (u *Uplink) tooLong(m mqtt.Message, length int) {
	if now := time.Now(); now.After(u.longAgain) {
		u.longAgain = now.Add(longPause)
		u.log.Warn("message not taken, its packet is too long", "topic", m.Topic, "payload", length, "most", MaxPacket)
	}
	from := mqtt.Origin{Via: u.cfg.Name, Reply: u.reply}
	for _, s := range *u.subs.Load() {
		if s.TooLong != nil && s.Filter.Match(m.Topic) {
			s.TooLong(m, length, from)
		}
	}
}

// longPause is how often it is logged at most that a message is too long.
const longPause = 10 * time.Second

func (u *Uplink) reply(m mqtt.Message) {
	// It answers for something that was done: no power cut may take it.
	if err := u.q.DeliverNow(context.Background(), m); err != nil {
		u.log.Error("reply is lost", "topic", m.Topic, "err", err)
	}
}

// stateTopic reports whether will and birth are to be published.
func (u *Uplink) stateTopic() bool {
	return u.birth.Topic != "" && !u.cfg.NoStatus && !time.Now().Before(u.noState)
}

// greet publishes the birth and waits for its acknowledgement. So a connection
// counts only once a message has arrived on it.
func (u *Uplink) greet(ctx context.Context, c *Conn) error {
	if !u.stateTopic() {
		return nil
	}
	limit, cancel := context.WithTimeout(ctx, u.ackPatience)
	defer cancel()
	birth := u.birth
	birth.QoS = max(1, birth.QoS)
	err := c.Publish(limit, birth)
	switch {
	case err == nil:
		u.stateFails = 0
	case ctx.Err() != nil:
		u.goodbye(c) // the broker may have told everybody that we are online
	case errors.Is(err, context.DeadlineExceeded):
		return u.unanswered(1)
	case isHangup(err):
		if u.stateFails++; u.stateFails == stateRefusals {
			u.stateFails = 0
			u.noState = time.Now().Add(topicBan)
			u.log.Error("broker closes the connection over the state topic, going on without", "topic", birth.Topic)
		}
		fault := *sessionFault(err)
		fault.Refused = true // the broker let us in and took nothing
		return &fault
	}
	return err
}

func (u *Uplink) unanswered(n int) *Fault {
	return &Fault{
		Step:    StepSession,
		Text:    fmt.Sprintf("the broker accepts messages and does not acknowledge them within %v", u.ackPatience),
		Remedy:  "look at its log and its load",
		Err:     fmt.Errorf("%d messages unacknowledged", n),
		Refused: true,
	}
}

// serve sends on c until the connection has ended (why), ctx has (nil), or what
// c was made with has changed (errRenew). It returns the entry that was sent last
// if messages go one at a time. One that may be given up next waits for calm. lasting is
// called once c has lasted for the time called healthy.
func (u *Uplink) serve(ctx context.Context, c *Conn, files *files, calm time.Duration, lasting func()) (last queue.Entry, err error) {
	var beside sync.WaitGroup
	defer beside.Wait()
	sending, cancel := context.WithCancel(ctx)
	defer cancel()
	renew, hold := make(chan struct{}, 1), make(chan struct{})
	beside.Go(func() { // both end with c, or with sending
		u.subscriber.again(sending, c, u.subsChanged, func() []Subscription { return *u.subs.Load() }, u.ackPatience)
	})
	beside.Go(func() { u.care(sending, c, files, renew) })
	pumped := make(chan struct{})
	go func() { // ends with c, with hold, or with sending once nothing is left
		defer close(pumped)
		if u.quarrel.strikes == strikesMost-1 {
			rest(sending, c, calm)
		}
		last = u.pump(sending, c, hold)
	}()

	look := u.ackPatience / 4
	watch := time.NewTicker(look)
	defer watch.Stop()
	proof := time.NewTimer(healthy)
	defer proof.Stop()
	stopping := ctx.Done()
	var deadline <-chan time.Time
	var idle <-chan struct{} // what stopping waits for: first the sender, then the window
	renewing := false
	defer u.beat.Works()
	for {
		u.beat.Rests(look)
		select {
		case <-c.Lost():
			u.beat.Works()
			cancel()
			<-pumped
			return last, c.Err()
		case <-proof.C:
			lasting()
		case <-watch.C:
			f := c.win.flight()
			if f.still > u.ackPatience+time.Duration(f.bytes)*time.Second/slowest {
				c.abort(u.unanswered(f.n))
			}
		case <-stopping:
			stopping, idle = nil, pumped
			t := time.NewTimer(u.stopPatience)
			defer t.Stop()
			deadline = t.C
		case <-renew:
			renewing, idle = true, pumped
			close(hold)
			cancel()
			t := time.NewTimer(drainPatience)
			defer t.Stop()
			deadline = t.C
		case <-idle:
			if c.win.flight().n > 0 {
				idle = c.win.idle
				continue
			}
			if renewing && ctx.Err() == nil {
				return last, errRenew
			}
			u.goodbye(c)
			return last, nil
		case <-deadline:
			if renewing && ctx.Err() == nil {
				<-pumped
				return last, errRenew // the next connection sends again what is in flight
			}
			c.abort(&Fault{Step: StepSession, Text: fmt.Sprintf("not all was sent within %v of the stop", u.stopPatience)})
		}
	}
}

// rest waits for calm, or until c or ctx ends.
func rest(ctx context.Context, c *Conn, calm time.Duration) {
	over := time.NewTimer(calm)
	defer over.Stop()
	select {
	case <-over.C:
	case <-c.Lost():
	case <-ctx.Done():
	}
}

// pump sends what is in the queue until c has ended or hold is closed, or ctx has
// ended and the queue is empty. Who closes hold ends ctx too. It returns the entry
// sent last if messages go one at a time.
func (u *Uplink) pump(ctx context.Context, c *Conn, hold <-chan struct{}) (last queue.Entry) {
	var written []uint64
	defer u.sending.Stops()
	for {
		u.sending.Waits() // for the broker, then for messages
		n, err := c.waitRoom()
		if err != nil {
			return last
		}
		entries, err := u.q.Next(ctx, n)
		u.sending.Works()
		if err != nil {
			return last // ctx has ended and nothing is left, or the queue is closed
		}
		select {
		case <-hold:
			return last
		case <-c.Lost():
			return last // what is not sent cannot be why
		default:
		}
		if entries = u.withoutBanned(entries); len(entries) == 0 {
			continue
		}
		if len(c.win.slots) == 1 {
			last = entries[0]
		}
		if u.OnSend != nil {
			u.OnSend(entries)
		}
		u.sending.Waits() // for the network, within its limits
		written, err = c.sendAll(entries, written[:0])
		u.sending.Works()
		if len(written) > 0 {
			u.acked.Add(uint64(len(written)))
			_ = u.q.Done(written...) // fails only for a queue that is closed
		}
		if err != nil {
			return last
		}
	}
}

// withoutBanned takes out of the queue what nobody upstream would take.
func (u *Uplink) withoutBanned(entries []queue.Entry) []queue.Entry {
	if len(u.quarrel.topics) == 0 {
		return entries
	}
	now := time.Now()
	left := entries[:0]
	for _, e := range entries {
		if u.quarrel.banned(e.Topic, now) {
			u.refused.Add(1)
			_ = u.q.Done(e.Seq)
			continue
		}
		left = append(left, e)
	}
	return left
}

// judge asks whether c ended over the message sent last, and gives it up if so.
// birth says whether the broker took the birth on it.
func (u *Uplink) judge(c *Conn, birth bool, lasted time.Duration, last queue.Entry, err error) {
	f := c.win.flight()
	if !u.quarrel.ended(time.Now(), lasted, isHangup(err), birth, f.acked, f.n, last) {
		return
	}
	u.refused.Add(1)
	_ = u.q.Done(last.Seq)
	u.log.Error("message given up, the broker closes the connection over it", "topic", last.Topic, "bytes", len(last.Payload))
}

// goodbye says that the gateway is offline, as the broker would if it vanished.
func (u *Uplink) goodbye(c *Conn) {
	if !u.stateTopic() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	will := u.will
	will.QoS = max(1, will.QoS)
	if err := c.Publish(ctx, will); err != nil {
		c.abort(err) // without a DISCONNECT the broker says so itself
	}
}
