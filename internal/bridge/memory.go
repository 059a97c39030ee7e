package bridge

import (
	"hash/maphash"
	"sync"
	"time"
)

// MQTT 3.1.1 carries no mark by which a message could be known that has been
// here before. So it is known by topic and payload, for as long as it takes to
// come back, and with care: two messages may be equal and both be meant.
const (
	// window is how long after it was sent, or published, a message may come back.
	window = 10 * time.Second
	// passesMost is how often other clients than the first may publish the same
	// within the window before that is taken for a loop, and passesUnknown how
	// often any may if it is not known who was the first.
	passesMost    = 4
	passesUnknown = 50
	// mostTraces bounds the memory, twice: when a drain or a burst fills it, the
	// oldest are forgotten before their time.
	mostTraces = 8192
	// mostWaiting bounds the topics whose state is on its way.
	mostWaiting = 20_000
)

// trace is what is known of one topic and payload.
type trace struct {
	client string    // who published it here first
	known  bool      // that is known
	at     time.Time // when; or when it was sent, which may be long after
	passes int       // how often others published it since

	sent   time.Time
	echoes int // how often it was sent and has not come back
}

// memory is what went out lately, by topic and payload at the uplink's broker.
// It is safe for use by several goroutines.
type memory struct {
	seed maphash.Seed

	mu         sync.Mutex
	young, old map[uint64]*trace
	began      time.Time          // of young
	state      map[uint64]pending // of topics
	tidied     time.Time          // when state was looked through
}

// pending is the newest retained message of a topic that goes out.
type pending struct {
	key  uint64
	sent time.Time // zero: it waits
}

func newMemory() *memory {
	return &memory{seed: maphash.MakeSeed(), young: make(map[uint64]*trace), state: make(map[uint64]pending)}
}

// key is a hash of topic and payload.
func (m *memory) key(topic string, payload []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(m.seed)
	_, _ = h.WriteString(topic)
	_ = h.WriteByte(0) // no topic holds it
	_, _ = h.Write(payload)
	return h.Sum64()
}

// find returns the trace of key, nil if there is none. m.mu is held.
func (m *memory) find(key uint64) *trace {
	t := m.young[key]
	if t == nil {
		if t = m.old[key]; t != nil {
			m.young[key] = t
		}
	}
	return t
}

// open returns the trace of key, a new one if there is none. m.mu is held.
func (m *memory) open(key uint64, now time.Time) *trace {
	if t := m.find(key); t != nil {
		return t
	}
	if len(m.young) >= mostTraces || now.Sub(m.began) > window {
		m.old, m.young, m.began = m.young, make(map[uint64]*trace), now
	}
	t := new(trace)
	m.young[key] = t
	return t
}

// published notes that a local client has published a message which is to go
// out, and reports whether it has come round: the same has been published
// within the window by other clients than the first, more often than they would
// by themselves. A client that repeats itself, and one that takes over from
// another, are no loop; a loop that takes some seconds a turn is not recognised.
func (m *memory) published(key uint64, client string, now time.Time) (loop bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.open(key, now)
	if t.at.IsZero() || now.Sub(t.at) > window || t.known && t.client == client {
		t.client, t.known, t.at, t.passes = client, true, now, 0
		return false
	}
	t.passes++
	if t.known {
		return t.passes > passesMost
	}
	return t.passes > passesUnknown
}

// sent notes that a message is sent, and with echoes that it will come back. Of
// one that has waited long nobody knows any more who published it.
func (m *memory) sent(key uint64, echoes bool, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.open(key, now)
	if now.Sub(t.at) > window {
		t.client, t.known, t.passes = "", false, 0
	}
	if t.passes == 0 {
		t.at = now
	}
	if now.Sub(t.sent) > window {
		t.echoes = 0
	}
	t.sent = now
	if echoes {
		t.echoes++
	}
}

// echo reports whether a message that has come is one that was sent. It says so
// once for each time that it was.
func (m *memory) echo(key uint64, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.find(key)
	if t == nil || t.echoes == 0 || now.Sub(t.sent) > window {
		return false
	}
	t.echoes--
	return true
}

// waits notes that a retained message for a topic is on its way.
func (m *memory) waits(topic string, key uint64, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := maphash.String(m.seed, topic)
	if _, has := m.state[h]; !has && len(m.state) >= mostWaiting && !m.tidy(now) {
		return
	}
	m.state[h] = pending{key: key}
}

// tidy forgets the topics whose state was sent long ago, and reports whether
// there is room now. It looks once in a window. m.mu is held.
func (m *memory) tidy(now time.Time) bool {
	if now.Sub(m.tidied) <= window {
		return false
	}
	m.tidied = now
	for topic, p := range m.state {
		if !p.sent.IsZero() && now.Sub(p.sent) > window {
			delete(m.state, topic)
		}
	}
	return len(m.state) < mostWaiting
}

// waitsNot notes that a retained message is sent.
func (m *memory) waitsNot(topic string, key uint64, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := maphash.String(m.seed, topic)
	if p, ok := m.state[h]; ok && p.key == key {
		m.state[h] = pending{key, now}
	}
}

// newer reports whether a retained message for a topic is on its way, or was
// just now, so that what the other broker had retained before is of no interest.
func (m *memory) newer(topic string, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.state[maphash.String(m.seed, topic)]
	return ok && (p.sent.IsZero() || now.Sub(p.sent) <= window)
}
