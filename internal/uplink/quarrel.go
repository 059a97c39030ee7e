package uplink

import (
	"time"

	"fieldgate/internal/queue"
)

// Limits of a quarrel with a broker about a message.
const (
	strikesMost = 3         // connections that one message may cost before it is given up
	topicFaults = 2         // messages given up on one topic before the topic is
	topicBan    = time.Hour // how long nothing is sent on such a topic
	topicsMost  = 1000      // topics remembered
	untakenMost = 64        // messages given up in a row of a broker that takes none

	// calm is how long a connection must last before a message is sent that the
	// next hang-up is the last for; at least calmTrips times what an acknowledgement
	// takes.
	calm      = 2 * time.Second
	calmTrips = 16
)

// quarrel finds the message over which a broker hangs up: MQTT 3.1.1 gives it
// no other way to refuse a topic (an access rule) or a payload (too long).
// Without it such a message would be sent, for ever, first on each connection,
// and nothing behind it would arrive.
//
// It looks at connections that proved themselves (their birth was
// acknowledged, so messages can arrive) and that the broker then closed. One on
// which it had acknowledged nothing, or several short ones in a row, make a
// suspicion: on the next ones messages go one at a time, and with QoS 1 at
// least. Whichever is alone in flight when the broker hangs up three times is
// given up, counted and logged. A link that is cut again and again looks the
// same, but it does not wait for the message: so the last time the connection
// must last for a while first, and one that does not clears the message.
//
// A broker that takes nothing at all, neither birth nor messages, is more likely
// ill than particular: no topic is given up for it, and after untakenMost messages
// the rest is kept.
type quarrel struct {
	alone   int // messages still to be sent one at a time; 0: no suspicion
	short   int // short connections in a row
	suspect uint64
	strikes int
	untaken int // messages given up since the broker took one
	topics  map[string]*refusedTopic
}

type refusedTopic struct {
	faults int
	until  time.Time // nothing is sent on it until then
}

// width returns how many messages may be in flight on the next connection.
func (q *quarrel) width() int {
	if q.alone > 0 {
		return 1
	}
	return Width
}

// ended notes the end of a connection that had proved itself: how long it
// lasted, whether it was the broker who ended it, whether the birth was
// acknowledged, how many messages were and how many were in flight, and the last
// one sent. It reports whether that last message is to be given up.
func (q *quarrel) ended(now time.Time, lasted time.Duration, hangup, birth bool, acked, inFlight int, last queue.Entry) (giveUp bool) {
	if birth || acked > 0 {
		q.untaken = 0
	}
	wasAlone := q.alone > 0
	q.alone = max(0, q.alone-acked)
	if !hangup || lasted >= healthy {
		q.short = 0
		return false
	}
	q.short++
	if inFlight > 0 && acked == 0 || q.short >= strikesMost {
		q.alone = 2 * Width // past all that were in flight
	}
	if !wasAlone || inFlight == 0 {
		q.strikes = 0
		return false
	}
	if q.suspect != last.Seq {
		q.suspect, q.strikes = last.Seq, 0
	}
	if q.strikes++; q.strikes < strikesMost {
		return false
	}
	q.strikes = 0
	switch {
	case q.untaken == untakenMost:
		return false
	case q.untaken > 0:
		q.untaken++
		q.short = 0
		return true
	}
	q.untaken++
	if q.topics == nil || len(q.topics) >= topicsMost {
		q.topics = make(map[string]*refusedTopic)
	}
	t := q.topics[last.Topic]
	if t == nil {
		t = &refusedTopic{}
		q.topics[last.Topic] = t
	}
	q.short = 0
	if t.faults++; t.faults >= topicFaults {
		t.until = now.Add(topicBan)
	}
	return true
}

// banned reports whether nothing is to be sent on topic now.
func (q *quarrel) banned(topic string, now time.Time) bool {
	t := q.topics[topic]
	return t != nil && now.Before(t.until)
}
