package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
)

const (
	// maxClientID is in bytes, maxLevels of a topic or filter.
	maxClientID = 256
	maxLevels   = 128
	// maxSubscriptions is how many filters one session may have.
	maxSubscriptions = 1000
	// maxRetained is how many topics clients may have messages retained on.
	maxRetained = 20_000
	// maxKeepalive is the longest that the library counts without overflow, in
	// seconds; minKeepalive the shortest that is held against a client.
	maxKeepalive, minKeepalive = 43690, 5
)

// refusedTopic stands for a topic that nobody may publish on: the library
// forgets to answer for some of those, but not for what the ACL refuses.
const refusedTopic = "\x00"

// hook is our part in what the library does: who may come in and do what, what
// is handed to the gateway, what is kept.
type hook struct {
	mochi.HookBase
	b *Broker
}

// ID names the hook.
func (h *hook) ID() string { return "fieldgate" }

// Provides lists what the hook wants to be asked.
func (h *hook) Provides(b byte) bool {
	switch b {
	case mochi.OnConnect, mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnSessionEstablished, mochi.OnDisconnect,
		mochi.OnPacketRead, mochi.OnPacketEncode, mochi.OnPacketProcessed, mochi.OnSubscribe, mochi.OnSubscribed, mochi.OnUnsubscribed,
		mochi.OnPublish, mochi.OnPublished, mochi.OnPublishDropped, mochi.OnRetainPublished, mochi.OnRetainMessage,
		mochi.OnQosPublish, mochi.OnQosComplete, mochi.OnQosDropped, mochi.OnWill, mochi.OnWillSent:
		return true
	}
	return false
}

// guardOf returns the connection of a client, the last one if it is away; nil
// for the gateway's own client and for one that was loaded from disk.
func guardOf(cl *mochi.Client) *guard {
	g, _ := cl.Net.Conn.(*guard)
	return g
}

// account returns what the client may do; nil: nothing.
func (b *Broker) account(cl *mochi.Client) *account {
	if g := guardOf(cl); g != nil {
		return g.account
	}
	return b.auth.account(string(cl.Properties.Username))
}

// refusal is a CONNECT that was answered with no.
type refusal struct {
	code packets.Code
	what string
}

func (r refusal) Error() string { return r.code.Reason + ": " + r.what }

// OnConnect decides on a CONNECT and sends the answer if it is no. When it
// returns nil the client id is this connection's alone.
func (h *hook) OnConnect(cl *mochi.Client, pk packets.Packet) error {
	g := guardOf(cl)
	r := h.b.admit(g, cl, &pk)
	if r.what == "" {
		r = h.b.claim(g, cl)
	}
	if r.what == "" {
		return nil
	}
	h.b.count.refusedConnects.Add(1)
	code := r.code
	if cl.Properties.ProtocolVersion < 5 {
		code = v3Code(code)
	}
	_ = h.b.server.SendConnack(cl, code, false, nil)
	return r
}

// v3Code is the return code of table 3.1 for a reason code of MQTT 5.
func v3Code(code packets.Code) packets.Code {
	n := byte(5) // not authorized
	switch code {
	case packets.ErrClientIdentifierNotValid:
		n = 2
	case packets.ErrServerBusy, packets.ErrServerShuttingDown:
		n = 3
	case packets.ErrBadUsernameOrPassword:
		n = 4
	}
	return packets.Code{Code: n}
}

// admit checks who the client is and what it asks for. A refusal without words
// is none.
func (b *Broker) admit(g *guard, cl *mochi.Client, pk *packets.Packet) (no refusal) {
	switch {
	case b.closed.Load():
		return refusal{packets.ErrServerShuttingDown, "the gateway is stopping"}
	case cl.ID == mochi.InlineClientId, cl.ID == mochi.LocalListener, len(cl.ID) > maxClientID:
		return refusal{packets.ErrClientIdentifierNotValid, fmt.Sprintf("client id %.40q", cl.ID)}
	case pk.Properties.AuthenticationMethod != "":
		return refusal{packets.ErrBadAuthenticationMethod, "authentication method " + pk.Properties.AuthenticationMethod}
	}
	name := string(pk.Connect.Username)
	acc := b.auth.check(name, string(pk.Connect.Password), g.wire.accepted.Add(g.wire.times.connect))
	if acc == nil {
		return refusal{packets.ErrBadUsernameOrPassword, fmt.Sprintf("user %.40q", name)}
	}
	// The library does not ask the ACL about wills.
	if pk.Connect.WillFlag {
		topic := pk.Connect.WillTopic
		if err := checkTopic(topic); err != nil {
			return refusal{packets.ErrTopicNameInvalid, "will: " + err.Error()}
		}
		if !acc.mayPublish(topic) {
			b.count.refusedPublishes.Add(1)
			return refusal{packets.ErrNotAuthorized, fmt.Sprintf("will: may not publish on %.80q", topic)}
		}
	}
	g.account = acc
	if ours := uint16(b.cfg.KeepaliveMax / time.Second); cl.Properties.ProtocolVersion == 5 &&
		(pk.Connect.Keepalive == 0 || pk.Connect.Keepalive > ours) {
		cl.State.Keepalive, cl.State.ServerKeepalive = ours, true
	}
	return refusal{}
}

// claim makes the client id g's alone: a connection that has it is ended and
// waited for, because the library may else clear up after it in the new one.
func (b *Broker) claim(g *guard, cl *mochi.Client) (no refusal) {
	g.client.Store(cl)
	for {
		b.mu.Lock()
		old, taken := b.live[cl.ID]
		switch {
		case taken && old == nil: // its session is being ended this moment
			b.mu.Unlock()
			time.Sleep(time.Millisecond)
			continue
		case !taken && len(b.live) >= b.cfg.MaxClients:
			b.mu.Unlock()
			g.client.Store(nil)
			return refusal{packets.ErrServerBusy, fmt.Sprintf("%d clients are connected", b.cfg.MaxClients)}
		case !taken:
			b.live[cl.ID] = g
			b.mu.Unlock()
			b.wires.settle(g.wire)
			b.prepareSession(cl, g)
			return refusal{}
		}
		b.mu.Unlock()
		if old.account.name != g.account.name {
			g.client.Store(nil)
			return refusal{packets.ErrClientIdentifierNotValid, fmt.Sprintf("client id %.40q is another user's", cl.ID)}
		}
		oldClient := old.client.Load()
		if oldClient.Properties.ProtocolVersion == 5 {
			_ = b.server.DisconnectClient(oldClient, packets.ErrSessionTakenOver)
		}
		oldClient.Stop(errTaken)
		select {
		case <-old.done:
		case <-time.After(takeoverTimeout):
			old.kill(errTaken)
			<-old.done
		}
	}
}

// takeoverTimeout is how long a connection that is taken over may take to hear of it.
const takeoverTimeout = 200 * time.Millisecond

// OnConnectAuthenticate is whether OnConnect said yes.
func (h *hook) OnConnectAuthenticate(cl *mochi.Client, _ packets.Packet) bool {
	g := guardOf(cl)
	return g != nil && g.client.Load() == cl
}

// OnACLCheck decides on a publish, a subscription, and each message before a
// client gets it.
func (h *hook) OnACLCheck(cl *mochi.Client, topic string, write bool) bool {
	acc := h.b.account(cl)
	if acc == nil {
		return false
	}
	if !write {
		if !acc.maySubscribe(unshared(topic)) {
			return false
		}
		// For a message this means that it is queued now, unless too many wait.
		if g := guardOf(cl); g != nil && cl.State.Inflight.Len() < maxInflightCount {
			g.offered.Add(1)
		}
		return true
	}
	if topic != refusedTopic && acc.mayPublish(topic) {
		return true
	}
	g := guardOf(cl)
	if topic == refusedTopic {
		topic = g.refused
	}
	h.b.count.refusedPublishes.Add(1)
	if topic != g.told { // one that goes on trying is told once
		g.told = strings.Clone(topic)
		h.b.notices.log(h.b.log, slog.LevelWarn, "publish refused", "client", cl.ID, "user", acc.name, "topic", topic)
	}
	return false
}

// OnPacketRead looks at each packet of a client before the library does.
func (h *hook) OnPacketRead(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	g := guardOf(cl)
	switch pk.FixedHeader.Type {
	case packets.Connect:
		if g.client.Load() != nil {
			break // a second one; the library ends it
		}
		readConnect(g, &pk)
	case packets.Publish:
		g.waits, g.refusal = nil, 0
		if pk.TopicName != "" && (strings.HasPrefix(pk.TopicName, "$") || checkTopic(pk.TopicName) != nil) {
			g.refused, pk.TopicName = pk.TopicName, refusedTopic
		}
	case packets.Puback, packets.Pubcomp:
		g.flow.leave(pk.PacketID)
	case packets.Pubrec:
		if pk.ReasonCode >= packets.ErrUnspecifiedError.Code {
			g.flow.leave(pk.PacketID)
		}
	case packets.Subscribe, packets.Unsubscribe:
		// The library takes the identifiers of client and broker for one set
		// and would refuse this one if a message to the client has it.
		if pk.PacketID != 0 {
			g.subID, pk.PacketID, pk.FixedHeader.Qos = pk.PacketID, 0, 0
		}
	}
	return pk, nil
}

// readConnect takes out of a CONNECT what the library does not do well.
func readConnect(g *guard, pk *packets.Packet) {
	p := &pk.Properties
	// A topic alias is good only if the message that brought it has arrived;
	// the library uses it after a drop and in another connection too.
	p.TopicAliasMaximum = 0
	// With a Receive Maximum it can lock itself up: flow does that part.
	g.flow.setWindow(int(p.ReceiveMaximum))
	p.ReceiveMaximum = 0
	// The library forgets to retain a will that waits: tracks do that part.
	w := &pk.Connect.WillProperties
	g.willDelay = time.Duration(min(w.WillDelayInterval, p.SessionExpiryInterval)) * time.Second
	w.WillDelayInterval = 0
	if len(pk.Connect.Password) == 0 {
		pk.Connect.PasswordFlag = false // an empty password is one (clause 3.1.3.5)
	}
	if k := &pk.Connect.Keepalive; *k > 0 {
		*k = min(max(*k, minKeepalive), maxKeepalive)
	}
}

// checkTopic refuses what is no topic, and one of more levels than any plant has.
func checkTopic(topic string) error {
	if n := strings.Count(topic, "/") + 1; n > maxLevels {
		return fmt.Errorf("topic of %d levels, at most %d", n, maxLevels)
	}
	return mqtt.ValidTopic(topic)
}

func checkFilter(filter string) error {
	if n := strings.Count(filter, "/") + 1; n > maxLevels {
		return fmt.Errorf("filter of %d levels, at most %d", n, maxLevels)
	}
	return mqtt.ValidFilter(filter)
}

// OnPacketEncode looks at each packet to a client.
func (h *hook) OnPacketEncode(cl *mochi.Client, pk packets.Packet) packets.Packet {
	g := guardOf(cl)
	if g == nil {
		return pk
	}
	switch pk.FixedHeader.Type {
	case packets.Connack:
		pk.Properties.MaximumPacketSize = uint32(h.b.cfg.MaxPacket)
	case packets.Disconnect:
		if cl.Properties.ProtocolVersion < 5 {
			// DISCONNECT is for clients alone in MQTT 3 (clause 3.14), and some
			// take it for a broken protocol. What has no type is not sent.
			pk.FixedHeader.Type = packets.Reserved
		}
	case packets.Suback, packets.Unsuback:
		pk.PacketID = g.subID
		g.makeRoom()
	case packets.Puback, packets.Pubrec:
		g.makeRoom()
		return h.acknowledge(cl, g, pk)
	case packets.Pubrel, packets.Pubcomp, packets.Pingresp:
		g.makeRoom()
	case packets.Publish:
		g.makeRoom()
		if !pk.FixedHeader.Dup { // what is sent again was not queued
			g.encoded.Add(1)
		}
		if pk.FixedHeader.Qos > 0 {
			// What is sent again is written by the client's own reader, which
			// must not wait for what it is to read.
			g.flow.enter(pk.PacketID, !pk.FixedHeader.Dup, g.dead)
		}
	}
	return pk
}

// OnSubscribe spoils filters that are none: the library answers for an empty
// one, but would take "a/b+".
func (h *hook) OnSubscribe(cl *mochi.Client, pk packets.Packet) packets.Packet {
	room := maxSubscriptions - cl.State.Subscriptions.Len()
	var renewed []string
	for i := range pk.Filters {
		f := &pk.Filters[i].Filter
		err := checkFilter(unshared(*f))
		if _, has := cl.State.Subscriptions.Get(*f); has {
			renewed = append(renewed, *f)
		} else if room--; err == nil && room < 0 {
			err = fmt.Errorf("more than %d subscriptions", maxSubscriptions)
		}
		if err != nil {
			h.b.notices.log(h.b.log, slog.LevelWarn, "subscription refused", "client", cl.ID, "filter", *f, "err", err)
			*f = ""
		}
	}
	if g := guardOf(cl); g != nil {
		g.renewed = renewed
	}
	return pk
}

// OnPacketProcessed sends a new subscriber of "a/#" what is retained on "a"
// (clause 4.7.1.2); the library begins one level below.
func (h *hook) OnPacketProcessed(cl *mochi.Client, pk packets.Packet, err error) {
	g := guardOf(cl)
	if err != nil || g == nil || pk.FixedHeader.Type != packets.Subscribe {
		return
	}
	for _, sub := range pk.Filters {
		parent, ok := strings.CutSuffix(sub.Filter, "/#")
		_, taken := cl.State.Subscriptions.Get(sub.Filter)
		if !ok || !taken || mochi.IsSharedFilter(sub.Filter) ||
			sub.RetainHandling == 2 || sub.RetainHandling == 1 && slices.Contains(g.renewed, sub.Filter) {
			continue
		}
		for _, m := range h.b.server.Topics.Messages(parent) {
			h.sendRetained(cl, g, &m, &sub)
		}
	}
}

// sendRetained sends a retained message from the client's own goroutine.
func (h *hook) sendRetained(cl *mochi.Client, g *guard, m *packets.Packet, sub *packets.Subscription) {
	out := m.Copy(false)
	out.FixedHeader.Qos = min(out.FixedHeader.Qos, sub.Qos)
	if sub.Identifier > 0 {
		out.Properties.SubscriptionIdentifier = []int{sub.Identifier}
	}
	if out.FixedHeader.Qos > 0 {
		id, err := cl.NextPacketID()
		if err != nil || !g.flow.enter(uint16(id), false, nil) {
			out.FixedHeader.Qos = 0 // its acknowledgements are read by this goroutine
		} else {
			out.PacketID = uint16(id)
			if cl.State.Inflight.Set(out) {
				atomic.AddInt64(&h.b.server.Info.Inflight, 1)
				h.OnQosPublish(cl, out, out.Created, 0)
			}
		}
	}
	g.offered.Add(1)
	_ = cl.WritePacket(out) // fails only when the client is gone
}

// OnSubscribed counts what was refused.
func (h *hook) OnSubscribed(cl *mochi.Client, pk packets.Packet, codes []byte) {
	for i, code := range codes {
		if code < packets.ErrUnspecifiedError.Code {
			if g := guardOf(cl); g != nil {
				g.offered.Add(-1) // OnACLCheck took the filter for a message
			}
			continue
		}
		h.b.count.refusedSubscriptions.Add(1)
		if f := pk.Filters[i].Filter; f != "" {
			h.b.notices.log(h.b.log, slog.LevelWarn, "subscription refused", "client", cl.ID, "filter", f,
				"err", "not allowed to user "+string(cl.Properties.Username))
		}
	}
	h.b.tracks.touch(cl)
}

// OnUnsubscribed notes the change.
func (h *hook) OnUnsubscribed(cl *mochi.Client, _ packets.Packet) { h.b.tracks.touch(cl) }

// OnPublish hands a client's message to the gateway before anybody else gets
// it, and before it is acknowledged. It waits for nothing.
func (h *hook) OnPublish(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	if cl.Net.Inline {
		return pk, nil
	}
	h.b.count.in.Add(1)
	if err := h.receive(cl, &pk); err != nil {
		return pk, err
	}
	if pk.FixedHeader.Retain && len(pk.Payload) > 0 && h.b.server.Topics.Retained.Len() >= maxRetained {
		if _, has := h.b.server.Topics.Retained.Get(pk.TopicName); !has {
			pk.FixedHeader.Retain = false
			h.b.count.refusedRetained.Add(1)
			h.b.notices.log(h.b.log, slog.LevelWarn, "message not retained: there are too many", "client", cl.ID, "topic", pk.TopicName)
		}
	}
	return pk, nil
}

// OnWill puts off a will that is to wait. The library then publishes nothing,
// on no topic.
func (h *hook) OnWill(cl *mochi.Client, w mochi.Will) (mochi.Will, error) {
	if g := guardOf(cl); g != nil && h.b.tracks.delay(cl, w, g.willDelay) {
		return mochi.Will{}, nil
	}
	return w, nil
}

// OnWillSent hands out a will, which does not come by OnPublish.
func (h *hook) OnWillSent(cl *mochi.Client, pk packets.Packet) { h.b.handOut(&pk, h.b.origin(cl)) }

// origin is the origin of cl's messages; cl may be nil.
func (b *Broker) origin(cl *mochi.Client) mqtt.Origin {
	o := mqtt.Origin{Via: config.Local, Reply: b.reply}
	if cl != nil {
		o.User, o.Client = string(cl.Properties.Username), cl.ID
	}
	return o
}

// OnPublishDropped is a message that a client did not get because too much
// waits for it already.
func (h *hook) OnPublishDropped(cl *mochi.Client, _ packets.Packet) {
	if g := guardOf(cl); g != nil {
		g.offered.Add(-1)
	}
	h.b.dropped(cl, true)
	h.b.tracks.touch(cl) // the library does not say which one it was
}

// OnPublished gives way to the encoders of the subscribers now and then.
func (h *hook) OnPublished(cl *mochi.Client, _ packets.Packet) {
	if !cl.Net.Inline { // Deliver does it itself
		h.b.pace()
	}
}

// OnRetainPublished holds back the retained messages of a new subscription
// until the client has taken some of those before: they may be many more than
// the library queues. It runs in that client's own goroutine.
func (h *hook) OnRetainPublished(cl *mochi.Client, _ packets.Packet) {
	g := guardOf(cl)
	if g == nil {
		return
	}
	if g.pending() > highPending {
		g.catchUp(true)
	}
}

// OnSessionEstablished notes that a client is in.
func (h *hook) OnSessionEstablished(cl *mochi.Client, _ packets.Packet) {
	h.b.count.connects.Add(1)
	if g := guardOf(cl); g != nil {
		g.will = cl.Properties.Will
	}
	h.b.log.Debug("client connected", "client", cl.ID, "user", string(cl.Properties.Username), "remote", cl.Net.Remote,
		"listener", cl.Net.Listener, "version", cl.Properties.ProtocolVersion)
}

// OnDisconnect notes that a client is gone.
func (h *hook) OnDisconnect(cl *mochi.Client, err error, expire bool) {
	g := guardOf(cl)
	if g == nil {
		return // loaded from disk
	}
	g.parted = true
	// The library forgets the will of a client that is stopped between two of
	// its packets.
	if err == nil && errors.Is(cl.StopCause(), errTaken) && g.will.Flag == 1 && !h.b.tracks.delay(cl, g.will, g.willDelay) {
		h.b.publishWill(&g.will)
	}
	h.b.tracks.parted(cl, expire)
}

// ended is called once for each connection, when it is over and the library is
// done with it, with what the library says of it.
func (b *Broker) ended(g *guard, err error) {
	cl := g.client.Load()
	cause := g.reason()
	if cause == nil && err != nil && cl != nil {
		cause = cl.StopCause()
	}
	if cause != nil {
		err = cause
	}
	if cl == nil {
		b.logRefused(g, err)
		return
	}
	if !g.parted { // a panic, or it went before its CONNACK
		b.clearUp(cl, g)
	}
	b.mu.Lock()
	if b.live[cl.ID] == g {
		delete(b.live, cl.ID)
	}
	b.mu.Unlock()
	level, msg := slog.LevelInfo, "client lost"
	switch {
	case err == nil, b.closed.Load():
		b.log.Debug("client disconnected", "client", cl.ID, "remote", cl.Net.Remote)
		return
	case errors.Is(err, errTaken), errors.Is(err, packets.ErrSessionTakenOver):
		msg = "client has a newer connection"
	case errors.Is(err, errSlow):
		b.count.stuck.Add(1)
		level, msg = slog.LevelWarn, "client cut off"
	case errors.Is(err, errFull):
		level, msg = slog.LevelWarn, "client cut off"
	case malformed(err):
		b.count.malformed.Add(1)
		level, msg = slog.LevelWarn, "client broke the protocol"
	}
	b.count.lost.Add(1)
	b.notices.log(b.log, level, msg, "client", cl.ID, "remote", cl.Net.Remote, "err", err)
}

// malformed reports whether a connection ended over what MQTT forbids.
func malformed(err error) bool {
	var code packets.Code
	return errors.Is(err, errPanic) || errors.As(err, &code) && code != packets.ErrNotAuthorized
}

// clearUp is what the library does when a client disconnects, for one that it
// could not finish with.
func (b *Broker) clearUp(cl *mochi.Client, g *guard) {
	cl.Stop(errPanic)
	if w := &cl.Properties.Will; w.Flag == 1 {
		w.Flag = 0
		if !b.tracks.delay(cl, *w, g.willDelay) {
			b.publishWill(w)
		}
	}
	v5 := cl.Properties.ProtocolVersion == 5
	if v5 && cl.Properties.Props.SessionExpiryInterval == 0 || !v5 && cl.Properties.Clean {
		b.end(cl)
		return
	}
	b.tracks.parted(cl, false)
}

// logRefused logs a connection that came to nothing. One that only looked
// whether somebody listens is no news.
func (b *Broker) logRefused(g *guard, err error) {
	var r refusal
	remote := g.RemoteAddr().String()
	switch {
	case errors.As(err, &r):
		b.notices.log(b.log, slog.LevelWarn, "client refused", "remote", remote, "err", err)
	case malformed(err):
		b.count.malformed.Add(1)
		b.notices.log(b.log, slog.LevelWarn, "a connection did not begin with a good CONNECT", "remote", remote, "err", err)
	default:
		b.log.Debug("connection without a CONNECT", "remote", remote, "err", err)
	}
}
