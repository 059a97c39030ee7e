package broker

import (
	"log/slog"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/storage"
	"github.com/mochi-mqtt/server/v2/packets"
)

// What QoS 1 and 2 messages may take in memory, in bytes: those of one client,
// and those of one while all of them together take more than totalInflight.
const (
	maxInflight   = 8 << 20
	fairInflight  = 512 << 10
	totalInflight = 32 << 20
	// inflightCost is what one takes beside its bytes: the library keeps
	// the whole packet.
	inflightCost = 1024
	// maxInflightCount is how many of one client there may be.
	maxInflightCount = 8192
)

// track is what we note of a session beside what the library knows: the order
// of its messages, what they take, and whether it must be saved.
type track struct {
	client storage.Client
	kept   bool      // outlives its connection
	here   bool      // connected
	gone   time.Time // when the client left, unless it is here
	will   *will     // to be published if it stays away
	losing bool      // messages were dropped since the client connected last
	dirty  bool      // differs from what is stored
	order  map[uint16]noted
	next   int64
	bytes  int
	unsafe map[uint16][]<-chan struct{} // QoS 2 messages of the client's that are not safe yet
	stored map[place]uint32             // what is on disk, with checksums
}

// will is a will that waits (MQTT 5, 3.1.3.2.2).
type will struct {
	mochi.Will
	due time.Time
}

// noted is one message by packet identifier.
type noted struct {
	seq  int64
	size int
}

// place is where a record is in the store.
type place struct{ bucket, key string }

// tracks holds the sessions' notes by client id. Its zero value is empty.
type tracks struct {
	mu    sync.Mutex
	all   map[string]*track
	total int // bytes
}

// open returns the notes on a session, new ones if there are none. ts.mu is held.
func (ts *tracks) open(id string) *track {
	t := ts.all[id]
	if t == nil {
		if ts.all == nil {
			ts.all = make(map[string]*track)
		}
		t = &track{order: make(map[uint16]noted)}
		ts.all[id] = t
	}
	return t
}

// touch notes that a session has changed.
func (ts *tracks) touch(cl *mochi.Client) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t := ts.all[cl.ID]; t != nil {
		t.dirty = true
	}
}

// connected notes who is on the session now and whether it is kept. It returns
// the will that was waiting, which the client has forestalled by coming back.
func (ts *tracks) connected(cl *mochi.Client) (w *will) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.open(cl.ID)
	t.describe(cl)
	w, t.will = t.will, nil
	t.here, t.losing = true, false
	return w
}

// delay puts a will off if the session outlives the connection.
func (ts *tracks) delay(cl *mochi.Client, w mochi.Will, delay time.Duration) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.all[cl.ID]
	if t == nil || !t.kept || delay == 0 {
		return false
	}
	t.will = &will{w, time.Now().Add(delay)}
	return true
}

// wills returns those that are due, or all, and forgets them.
func (ts *tracks) wills(now time.Time, all bool) (due []*will) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for _, t := range ts.all {
		if t.will != nil && (all || !now.Before(t.will.due)) {
			due = append(due, t.will)
			t.will = nil
		}
	}
	return due
}

// expired returns the ids of the sessions that have been without a client for
// as long as they are kept, most at most.
func (ts *tracks) expired(now time.Time, most time.Duration) (ids []string) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for id, t := range ts.all {
		if t.here || !t.kept {
			continue
		}
		keep := most
		if t.client.ProtocolVersion == 5 {
			keep = min(keep, time.Duration(t.client.Properties.SessionExpiryInterval)*time.Second)
		}
		if now.Sub(t.gone) >= keep {
			ids = append(ids, id)
		}
	}
	return ids
}

// loses notes that a message to the client was dropped, and reports whether it
// is the first.
func (ts *tracks) loses(cl *mochi.Client) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.all[cl.ID]
	if t == nil || t.losing {
		return false
	}
	t.losing, t.dirty = true, true
	return true
}

// parted notes that the client has left, and that its session ends with that
// if expire says so. It returns a will that waited for that.
func (ts *tracks) parted(cl *mochi.Client, expire bool) (w *will) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.all[cl.ID]
	if t == nil {
		return nil
	}
	t.describe(cl)
	if t.here {
		t.here, t.gone = false, time.Now()
	}
	if !expire {
		return nil
	}
	w, t.will = t.will, nil
	t.kept = false
	ts.total -= t.bytes
	t.bytes = 0
	clear(t.order)
	clear(t.unsafe)
	if len(t.stored) == 0 {
		delete(ts.all, cl.ID) // else the saver does it
	}
	return w
}

func (t *track) describe(cl *mochi.Client) {
	p := &cl.Properties
	t.dirty = true
	t.client = storage.Client{
		ID: cl.ID, T: storage.ClientKey, Listener: cl.Net.Listener, Username: p.Username,
		ProtocolVersion: p.ProtocolVersion, Clean: p.Clean,
		Properties: storage.ClientProperties{
			SessionExpiryInterval:     p.Props.SessionExpiryInterval,
			SessionExpiryIntervalFlag: p.Props.SessionExpiryIntervalFlag,
			RequestProblemInfo:        p.Props.RequestProblemInfo,
			RequestProblemInfoFlag:    p.Props.RequestProblemInfoFlag,
			RequestResponseInfo:       p.Props.RequestResponseInfo,
			MaximumPacketSize:         p.Props.MaximumPacketSize,
		},
	}
	t.kept = outlives(&t.client)
}

// outlives reports whether a client's session is kept when it leaves.
func outlives(c *storage.Client) bool {
	if c.ProtocolVersion == 5 {
		return c.Properties.SessionExpiryInterval > 0
	}
	return !c.Clean
}

// sizeOf is what a message that waits takes in memory.
func sizeOf(topic string, payload []byte) int { return inflightCost + len(topic) + len(payload) }

// add notes a message to the client, or a QoS 2 message of its own that has
// begun. It reports whether there is room for it.
func (ts *tracks) add(cl *mochi.Client, pk *packets.Packet) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.all[cl.ID]
	if t == nil {
		return true // it has just ended
	}
	t.dirty = true
	size := sizeOf(pk.TopicName, pk.Payload)
	old, again := t.order[pk.PacketID]
	if !again {
		if bytes := t.bytes + size; bytes > maxInflight || bytes > fairInflight && ts.total+size > totalInflight {
			return false
		}
		t.next++
		old.seq = t.next
	}
	t.note(ts, pk.PacketID, noted{old.seq, size})
	return true
}

// note sets what is known of a message. ts.mu is held.
func (t *track) note(ts *tracks, id uint16, n noted) {
	change := n.size - t.order[id].size
	t.bytes += change
	ts.total += change
	t.order[id] = n
}

// done notes that a message is out of the way.
func (ts *tracks) done(cl *mochi.Client, id uint16) {
	if cl.IsTakenOver() {
		return // what it had is the newer connection's
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.all[cl.ID]
	if t == nil {
		return
	}
	if _, ok := t.order[id]; ok {
		t.note(ts, id, noted{})
		delete(t.order, id)
		delete(t.unsafe, id)
		t.dirty = true
	}
}

// sort puts the session's messages in the order they came: the library sends
// them again sorted by the last 16 bits of Created, so that becomes their rank.
func (ts *tracks) sort(cl *mochi.Client) {
	all := cl.State.Inflight.GetAll(false)
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.open(cl.ID)
	sort.SliceStable(all, func(i, j int) bool {
		return t.order[all[i].PacketID].seq < t.order[all[j].PacketID].seq
	})
	// What was dropped on its way to a slow client is not among them any more,
	// and the library does not say which that was.
	ts.total -= t.bytes
	t.bytes, t.next = 0, int64(len(all))
	clear(t.order)
	for i := range all {
		pk := &all[i]
		pk.Created = int64(i)
		t.note(ts, pk.PacketID, noted{int64(i), sizeOf(pk.TopicName, pk.Payload)})
		cl.State.Inflight.Set(*pk)
	}
}

// prepareSession makes an earlier session of the client ready to be taken up:
// one of another user is ended, the messages of the client's own are put in
// order. The session that was away for longest makes room if there are too many.
func (b *Broker) prepareSession(cl *mochi.Client, g *guard) {
	old, ok := b.server.Clients.Get(cl.ID)
	switch {
	case ok && string(old.Properties.Username) != g.account.name && !g.account.all:
		b.end(old)
	case ok:
		b.tracks.sort(old)
	case b.server.Clients.Len() > 4*b.cfg.MaxClients:
		b.endOldest()
	}
	if w := b.tracks.connected(cl); w != nil && cl.Properties.Clean {
		b.publishWill(&w.Will) // its session ends all the same
	}
}

// end ends a session without a client; the library would keep its subscriptions
// and messages for ever.
func (b *Broker) end(cl *mochi.Client) {
	b.server.UnsubscribeClient(cl)
	cl.ClearInflights()
	b.server.Clients.Delete(cl.ID)
	if w := b.tracks.parted(cl, true); w != nil {
		b.publishWill(&w.Will)
	}
}

// endOldest ends the session that has been without a client for longest.
func (b *Broker) endOldest() {
	if id := b.tracks.oldest(); id != "" && b.endAway(id) {
		b.notices.log(b.log, slog.LevelWarn, "too many sessions are kept, the oldest is ended", "client", id)
	}
}

// endAway ends the session of a client that is away, unless it has come back.
func (b *Broker) endAway(id string) bool {
	b.mu.Lock()
	_, here := b.live[id]
	cl, ok := b.server.Clients.Get(id)
	if ok = ok && !here; ok {
		b.live[id] = nil // claim waits
	}
	b.mu.Unlock()
	if !ok {
		return false
	}
	b.end(cl)
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.live, id)
	return true
}

// oldest returns the session that has been without a client for longest.
func (ts *tracks) oldest() (id string) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for other, t := range ts.all {
		if !t.here && t.kept && (id == "" || t.gone.Before(ts.all[id].gone)) {
			id = other
		}
	}
	return id
}

// publishWill publishes a will whose client may be gone.
func (b *Broker) publishWill(w *mochi.Will) {
	if err := b.server.Publish(w.TopicName, w.Payload, w.Retain, w.Qos); err != nil {
		b.log.Error("will not published", "topic", w.TopicName, "err", err)
		return
	}
	b.handOut(&packets.Packet{TopicName: w.TopicName, Payload: w.Payload, FixedHeader: packets.FixedHeader{Qos: w.Qos, Retain: w.Retain}}, b.origin(nil))
}

// OnQosPublish notes a message that waits for an acknowledgement. One for
// which there is no room is sent, if the client is there, but not kept.
func (h *hook) OnQosPublish(cl *mochi.Client, pk packets.Packet, _ int64, _ int) {
	if pk.FixedHeader.Type == packets.Puback {
		return // over in a moment
	}
	if h.b.tracks.add(cl, &pk) {
		return
	}
	if cl.State.Inflight.Delete(pk.PacketID) {
		atomic.AddInt64(&h.b.server.Info.Inflight, -1)
	}
	h.b.dropped(cl, cl.Closed())
}

// dropped counts a message that a client does not get, or only at most once if
// lost is false, and tells it once for each connection.
func (b *Broker) dropped(cl *mochi.Client, lost bool) {
	if lost {
		b.count.dropped.Add(1)
	}
	if b.tracks.loses(cl) {
		b.notices.log(b.log, slog.LevelWarn, "too much waits for a client, newer messages are dropped", "client", cl.ID,
			"connected", !cl.Closed())
	}
}

// OnQosComplete notes that a message has been acknowledged.
func (h *hook) OnQosComplete(cl *mochi.Client, pk packets.Packet) { h.b.tracks.done(cl, pk.PacketID) }

// OnQosDropped notes that a message has been given up.
func (h *hook) OnQosDropped(cl *mochi.Client, pk packets.Packet) { h.b.tracks.done(cl, pk.PacketID) }
