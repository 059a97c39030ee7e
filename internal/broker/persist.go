package broker

import (
	"encoding/binary"
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
	mu  sync.Mutex
	due map[string]time.Time

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

// OnRetainMessage notes a topic to be saved.
func (h *hook) OnRetainMessage(cl *mochi.Client, pk packets.Packet, _ int64) {
	if h.b.store == nil || strings.HasPrefix(pk.TopicName, "$") || len(pk.TopicName) > maxKey {
		return
	}
	due := time.Now()
	if cl.Net.Inline {
		due = due.Add(ownSave)
	}
	h.b.unsaved.add(pk.TopicName, due)
}

// OnRetainedExpired notes a topic to be deleted.
func (h *hook) OnRetainedExpired(topic string) {
	if h.b.store != nil {
		h.b.unsaved.add(topic, time.Now())
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
		if !strings.HasPrefix(topic, "$") && len(topic) <= maxKey {
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
			put(clientBucket, id, clientRecord(&t.client))
			for filter, sub := range cl.State.Subscriptions.GetAll() {
				put(subBucket, id+"\x00"+filter, subRecord(id, &sub))
			}
			for _, pk := range cl.State.Inflight.GetAll(false) {
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

func clientRecord(c *storage.Client) []byte {
	record, _ := c.MarshalBinary() // plain strings and numbers: cannot fail
	return record
}

func subRecord(id string, sub *packets.Subscription) []byte {
	record, _ := storage.Subscription{
		T: storage.SubscriptionKey, Client: id, Filter: sub.Filter, Identifier: sub.Identifier, Qos: sub.Qos,
		RetainHandling: sub.RetainHandling, RetainAsPublished: sub.RetainAsPublished, NoLocal: sub.NoLocal,
	}.MarshalBinary()
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
	record, _ := m.MarshalBinary()
	return record
}

// StoredClients returns the sessions on disk whose users still exist.
func (h *hook) StoredClients() ([]storage.Client, error) {
	ts := &h.b.tracks
	var list []storage.Client
	for id, record := range h.b.store.take(clientBucket) {
		t := ts.open(id)
		t.hold(clientBucket, id, record)
		var c storage.Client
		if c.UnmarshalBinary(record) != nil || c.ID != id || !outlives(&c) || h.b.auth.account(string(c.Username)) == nil {
			continue // deleted with the next save
		}
		t.client, t.kept = c, true
		list = append(list, c)
	}
	return list, nil
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

// StoredSubscriptions returns those on disk that the access lists still allow.
func (h *hook) StoredSubscriptions() ([]storage.Subscription, error) {
	var list []storage.Subscription
	for key, record := range h.b.store.take(subBucket) {
		id, filter, _ := strings.Cut(key, "\x00")
		t := h.b.tracks.open(id)
		t.hold(subBucket, key, record)
		var sub storage.Subscription
		if !t.kept || sub.UnmarshalBinary(record) != nil || sub.Client != id || sub.Filter != filter || sub.Qos > 2 ||
			checkFilter(unshared(filter)) != nil || !h.b.auth.account(string(t.client.Username)).maySubscribe(unshared(filter)) {
			continue
		}
		list = append(list, sub)
	}
	return list, nil
}

// StoredInflightMessages returns those on disk that their clients may still get.
func (h *hook) StoredInflightMessages() ([]storage.Message, error) {
	ts := &h.b.tracks
	var list []storage.Message
	for key, record := range h.b.store.take(inflightBucket) {
		id, _, _ := strings.Cut(key, "\x00")
		t := ts.open(id)
		t.hold(inflightBucket, key, record)
		var m storage.Message
		if !t.kept || m.UnmarshalBinary(record) != nil || inflightKey(m.Client, m.PacketID) != key || m.FixedHeader.Qos > 2 {
			continue
		}
		if m.FixedHeader.Type == packets.Publish && !h.b.auth.account(string(t.client.Username)).maySubscribe(m.TopicName) {
			continue
		}
		t.note(ts, m.PacketID, noted{m.Created, sizeOf(m.TopicName, m.Payload)})
		t.next = max(t.next, m.Created)
		list = append(list, m)
	}
	return list, nil
}

// StoredRetainedMessages returns those on disk that have not expired.
func (h *hook) StoredRetainedMessages() ([]storage.Message, error) {
	now := time.Now()
	h.b.unsaved.stored = make(map[string]uint32)
	var list []storage.Message
	for topic, record := range h.b.store.take(retainedBucket) {
		h.b.unsaved.stored[topic] = checksum(record)
		var m storage.Message
		if m.UnmarshalBinary(record) != nil || m.TopicName != topic || checkTopic(topic) != nil ||
			m.Properties.MessageExpiryInterval > 0 && now.Unix() > expiryOf(&m) {
			h.b.unsaved.add(topic, now)
			continue
		}
		list = append(list, m)
	}
	return list, nil
}

func expiryOf(m *storage.Message) int64 {
	return m.Created + int64(m.Properties.MessageExpiryInterval)
}

// loaded puts right what the library leaves out when it loads.
func (b *Broker) loaded() {
	info := b.server.Info
	for _, cl := range b.server.Clients.GetAll() {
		atomic.AddInt64(&info.Subscriptions, int64(cl.State.Subscriptions.Len()))
		atomic.AddInt64(&info.Inflight, int64(cl.State.Inflight.Len()))
	}
	retained := 0
	for topic, pk := range b.server.Topics.Retained.GetAll() {
		if strings.HasPrefix(topic, "$") {
			continue
		}
		retained++
		if n := pk.Properties.MessageExpiryInterval; n > 0 {
			pk.ProtocolVersion, pk.Expiry = 5, pk.Created+int64(n)
			b.server.Topics.Retained.Add(topic, pk)
		}
	}
	if n := b.server.Clients.Len() - 1; n+retained > 0 {
		b.log.Info("sessions and retained messages loaded", "sessions", n, "retained", retained)
	}
}
