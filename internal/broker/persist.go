package broker

import (
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/storage"
	"github.com/mochi-mqtt/server/v2/packets"
)

// ownSave is how long a retained message of the gateway itself may stay
// unsaved: it is published again after a restart anyway, and flash wears. Those
// of clients are saved with the next tick.
const ownSave = 5 * time.Minute

// unsaved is the topics whose retained message may differ from what is stored,
// and when each must be saved. Its zero value is empty.
type unsaved struct {
	mu     sync.Mutex
	due    map[string]time.Time
	expiry map[string]int64 // topics of messages that expire: when, Unix seconds

	stored map[string]uint32 // the saver's own: checksums of what is on disk
}

func (u *unsaved) add(topic string, due time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.due == nil {
		u.due = make(map[string]time.Time)
	}
	if old, ok := u.due[topic]; !ok {
		u.due[strings.Clone(topic)] = due // it may be cut from a packet
	} else if due.Before(old) {
		u.due[topic] = due
	}
}

// take returns the topics that are due, or all, and forgets them.
func (u *unsaved) take(now time.Time, all bool) (topics []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for topic, due := range u.due {
		if all || !now.Before(due) {
			topics = append(topics, topic)
			delete(u.due, topic)
		}
	}
	return topics
}

// expires notes that the message retained on topic expires.
func (u *unsaved) expires(topic string, at int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.expiry == nil {
		u.expiry = make(map[string]int64)
	}
	u.expiry[strings.Clone(topic)] = at
}

// expired returns the topics whose message expires by now, and forgets them.
func (u *unsaved) expired(now int64) (topics []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for topic, at := range u.expiry {
		if at <= now {
			topics = append(topics, topic)
			delete(u.expiry, topic)
		}
	}
	return topics
}

// OnRetainMessage notes a topic to be saved.
func (h *hook) OnRetainMessage(cl *mochi.Client, pk packets.Packet, _ int64) {
	if pk.Expiry > 0 {
		h.b.unsaved.expires(pk.TopicName, pk.Expiry)
	}
	if h.b.store == nil || !savable(pk.TopicName) {
		return
	}
	due := time.Now()
	if cl.Net.Inline {
		due = due.Add(ownSave)
	}
	h.b.unsaved.add(pk.TopicName, due)
}

// savable reports whether what is retained on topic belongs on disk.
func savable(topic string) bool { return !strings.HasPrefix(topic, "$") && len(topic) <= maxKey }

// dropRetained deletes the retained messages that have expired.
func (b *Broker) dropRetained(now time.Time) {
	for _, topic := range b.unsaved.expired(now.Unix()) {
		pk, ok := b.server.Topics.Retained.Get(topic)
		if !ok || pk.Expiry == 0 || pk.Expiry > now.Unix() {
			continue // replaced by another
		}
		b.server.Topics.RetainMessage(packets.Packet{TopicName: topic})
		if b.store != nil && savable(topic) {
			b.unsaved.add(topic, now)
		}
	}
}

// save writes what has changed in one transaction, and nothing if nothing has.
// all includes what need not be saved yet.
func (b *Broker) save(now time.Time, all bool) {
	if b.store == nil || !all && !b.store.ready(now) {
		return
	}
	c := make(change)
	topics := b.unsaved.take(now, all)
	retained := b.retainedChanges(c, topics)
	sessions := b.tracks.changes(b.server, c)
	if b.store.commit(c) == nil {
		for topic, sum := range retained {
			if b.unsaved.stored[topic] = sum; sum == 0 {
				delete(b.unsaved.stored, topic)
			}
		}
		b.tracks.saved(sessions)
		return
	}
	for _, topic := range topics {
		b.unsaved.add(topic, now)
	}
	b.tracks.again(sessions)
	if b.store.isNew() {
		b.forgetStored(now)
	}
}

// forgetStored makes everything unsaved: the file has been begun anew.
func (b *Broker) forgetStored(now time.Time) {
	b.unsaved.stored = make(map[string]uint32)
	for topic := range b.server.Topics.Retained.GetAll() {
		if savable(topic) {
			b.unsaved.add(topic, now)
		}
	}
	b.tracks.mu.Lock()
	defer b.tracks.mu.Unlock()
	for _, t := range b.tracks.all {
		t.stored, t.dirty = nil, true
	}
}

// retainedChanges adds to c what differs of the retained messages on topics and
// returns the new checksums.
func (b *Broker) retainedChanges(c change, topics []string) map[string]uint32 {
	sums := make(map[string]uint32)
	for _, topic := range topics {
		old := b.unsaved.stored[topic]
		pk, ok := b.server.Topics.Retained.Get(topic)
		if !ok {
			if old != 0 {
				c.set(retainedBucket, topic, nil)
				sums[topic] = 0
			}
			continue
		}
		record := messageRecord(&pk, "", 0)
		if sum := checksum(record); sum != old {
			c.set(retainedBucket, topic, record)
			sums[topic] = sum
		}
	}
	return sums
}

// changes adds to c what differs of the sessions that were touched and returns
// what will be on disk of each then.
func (ts *tracks) changes(server *mochi.Server, c change) map[string]map[place]uint32 {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	after := make(map[string]map[place]uint32)
	for id, t := range ts.all {
		if !t.dirty {
			continue
		}
		t.dirty = false
		want := make(map[place]uint32)
		put := func(bucket, key string, record []byte) {
			if len(key) > maxKey || record == nil {
				return
			}
			at, sum := place{bucket, key}, checksum(record)
			if t.stored[at] != sum {
				c.set(bucket, key, record)
			}
			want[at] = sum
		}
		if cl, ok := server.Clients.Get(id); ok && t.kept {
			put(clientBucket, id, t.record())
			for filter, sub := range cl.State.Subscriptions.GetAll() {
				put(subBucket, id+"\x00"+filter, subRecord(id, &sub))
			}
			for _, pk := range cl.State.Inflight.GetAll(false) {
				if t.notSafe(pk.PacketID) != nil {
					t.dirty = true // until it is
					continue
				}
				if n, ok := t.order[pk.PacketID]; ok {
					put(inflightBucket, inflightKey(id, pk.PacketID), messageRecord(&pk, id, n.seq))
				}
			}
		}
		for at := range t.stored {
			if _, ok := want[at]; !ok {
				c.set(at.bucket, at.key, nil)
			}
		}
		after[id] = want
	}
	return after
}

// saved notes what is on disk now, and drops the notes on sessions that ended.
func (ts *tracks) saved(after map[string]map[place]uint32) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for id, stored := range after {
		t := ts.all[id]
		if t == nil {
			continue
		}
		t.stored = stored
		if len(stored) == 0 && !t.kept && !t.here {
			delete(ts.all, id)
		}
	}
}

// again touches the sessions that could not be saved.
func (ts *tracks) again(after map[string]map[place]uint32) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for id := range after {
		if t := ts.all[id]; t != nil {
			t.dirty = true
		}
	}
}

// checksum is never 0, which stands for nothing.
func checksum(record []byte) uint32 {
	return max(1, crc32.Checksum(record, crc32.MakeTable(crc32.Castagnoli)))
}

func inflightKey(id string, packet uint16) string {
	return string(binary.BigEndian.AppendUint16([]byte(id+"\x00"), packet))
}

// savedClient is the record of a session.
type savedClient struct {
	storage.Client
	Gone int64 `json:"gone,omitempty"` // when the client left, Unix seconds; 0: it was there
}

func (t *track) record() []byte {
	c := savedClient{Client: t.client}
	if !t.here {
		c.Gone = t.gone.Unix()
	}
	record, _ := json.Marshal(c) // plain strings and numbers: cannot fail
	return record
}

func subRecord(id string, sub *packets.Subscription) []byte {
	record, _ := json.Marshal(storage.Subscription{
		T: storage.SubscriptionKey, Client: id, Filter: sub.Filter, Identifier: sub.Identifier, Qos: sub.Qos,
		RetainHandling: sub.RetainHandling, RetainAsPublished: sub.RetainAsPublished, NoLocal: sub.NoLocal,
	})
	return record
}

// messageRecord is a retained message, or with the client's id one that waits
// for it: Created is its place in the order then.
func messageRecord(pk *packets.Packet, id string, seq int64) []byte {
	m := storage.Message{
		T: storage.RetainedKey, Client: id, Origin: pk.Origin, TopicName: pk.TopicName, Payload: pk.Payload,
		FixedHeader: pk.FixedHeader, Created: pk.Created, PacketID: pk.PacketID,
		Properties: storage.MessageProperties{
			CorrelationData:        pk.Properties.CorrelationData,
			SubscriptionIdentifier: pk.Properties.SubscriptionIdentifier,
			User:                   pk.Properties.User,
			ContentType:            pk.Properties.ContentType,
			ResponseTopic:          pk.Properties.ResponseTopic,
			MessageExpiryInterval:  pk.Properties.MessageExpiryInterval,
			PayloadFormat:          pk.Properties.PayloadFormat,
			PayloadFormatFlag:      pk.Properties.PayloadFormatFlag,
		},
	}
	if id != "" {
		m.T, m.Created = storage.InflightKey, seq
	}
	record, _ := json.Marshal(m)
	return record
}

// load fills the server with what is on disk and still good.
func (b *Broker) load() {
	b.unsaved.stored = make(map[string]uint32)
	if b.store == nil {
		return
	}
	b.tracks.mu.Lock()
	sessions := b.loadClients()
	b.loadSubscriptions()
	b.loadInflight()
	b.tracks.mu.Unlock()
	retained := b.loadRetained()
	if sessions+retained > 0 {
		b.log.Info("sessions and retained messages loaded", "sessions", sessions, "retained", retained)
	}
}

// hold notes that a record is on disk. What is not wanted any more is deleted
// with the next save.
func (t *track) hold(bucket, key string, record []byte) {
	if t.stored == nil {
		t.stored = make(map[place]uint32)
	}
	t.stored[place{bucket, key}] = checksum(record)
	t.dirty = true
}

// loadClients loads the sessions whose users still exist. tracks.mu is held,
// here and in those below.
func (b *Broker) loadClients() (n int) {
	now := time.Now()
	for id, record := range b.store.take(clientBucket) {
		t := b.tracks.open(id)
		t.hold(clientBucket, id, record)
		var c savedClient
		if json.Unmarshal(record, &c) != nil || c.ID != id || !outlives(&c.Client) || b.auth.account(string(c.Username)) == nil {
			continue
		}
		cl := b.server.NewClient(nil, c.Listener, id, false)
		cl.Properties.Username = c.Username
		cl.Properties.Clean = c.Clean
		cl.Properties.ProtocolVersion = c.ProtocolVersion
		cl.Properties.Props.SessionExpiryInterval = c.Properties.SessionExpiryInterval
		cl.Properties.Props.SessionExpiryIntervalFlag = c.Properties.SessionExpiryIntervalFlag
		cl.Stop(packets.ErrServerShuttingDown)
		b.server.Clients.Add(cl)
		t.client, t.kept, t.gone = c.Client, true, now
		// The clock may have been wrong then, or be so now.
		if away := now.Sub(time.Unix(c.Gone, 0)); c.Gone > 0 && away > 0 {
			t.gone = now.Add(-away)
		}
		n++
	}
	return n
}

// loadSubscriptions loads those that the access lists still allow.
func (b *Broker) loadSubscriptions() {
	for key, record := range b.store.take(subBucket) {
		id, filter, _ := strings.Cut(key, "\x00")
		t := b.tracks.open(id)
		t.hold(subBucket, key, record)
		var s storage.Subscription
		cl, ok := b.server.Clients.Get(id)
		if !ok || !t.kept || json.Unmarshal(record, &s) != nil || s.Client != id || s.Filter != filter || s.Qos > 2 ||
			checkFilter(unshared(filter)) != nil || !b.account(cl).maySubscribe(unshared(filter)) {
			continue
		}
		sub := packets.Subscription{
			Filter: filter, Qos: s.Qos, Identifier: s.Identifier,
			RetainHandling: s.RetainHandling, RetainAsPublished: s.RetainAsPublished, NoLocal: s.NoLocal,
		}
		b.server.Topics.Subscribe(id, sub)
		cl.State.Subscriptions.Add(filter, sub)
		atomic.AddInt64(&b.server.Info.Subscriptions, 1)
	}
}

// loadInflight loads the messages that their clients may still get.
func (b *Broker) loadInflight() {
	for key, record := range b.store.take(inflightBucket) {
		id, _, _ := strings.Cut(key, "\x00")
		t := b.tracks.open(id)
		t.hold(inflightBucket, key, record)
		var m storage.Message
		cl, ok := b.server.Clients.Get(id)
		if !ok || !t.kept || json.Unmarshal(record, &m) != nil || inflightKey(m.Client, m.PacketID) != key || m.FixedHeader.Qos > 2 {
			continue
		}
		switch m.FixedHeader.Type {
		case packets.Publish:
			if m.FixedHeader.Qos == 0 || checkTopic(m.TopicName) != nil || !b.account(cl).maySubscribe(m.TopicName) {
				continue
			}
		case packets.Pubrec, packets.Pubrel:
		default:
			continue
		}
		t.note(&b.tracks, m.PacketID, noted{m.Created, sizeOf(m.TopicName, m.Payload)})
		t.next = max(t.next, m.Created)
		cl.State.Inflight.Set(m.ToPacket())
		atomic.AddInt64(&b.server.Info.Inflight, 1)
	}
}

// loadRetained loads the messages that have not expired.
func (b *Broker) loadRetained() (n int) {
	now := time.Now()
	for topic, record := range b.store.take(retainedBucket) {
		b.unsaved.stored[topic] = checksum(record)
		var m storage.Message
		if json.Unmarshal(record, &m) != nil || m.TopicName != topic || checkTopic(topic) != nil || m.FixedHeader.Qos > 2 || len(m.Payload) == 0 {
			b.unsaved.add(topic, now)
			continue
		}
		pk := m.ToPacket()
		if every := int64(m.Properties.MessageExpiryInterval); every > 0 {
			if pk.Expiry = m.Created + every; pk.Expiry <= now.Unix() {
				b.unsaved.add(topic, now)
				continue
			}
			pk.ProtocolVersion = 5
			b.unsaved.expires(topic, pk.Expiry)
		}
		b.server.Topics.RetainMessage(pk)
		n++
	}
	atomic.StoreInt64(&b.server.Info.Retained, int64(n))
	return n
}
