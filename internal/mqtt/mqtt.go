// Package mqtt holds what the MQTT side of the gateway agrees on: the message,
// who takes messages, and the rules for topic names and filters. It connects
// to nothing; uplink and broker do.
//
// Clause numbers are those of MQTT 3.1.1 (OASIS, 29 October 2014).
package mqtt

import (
	"context"
	"errors"
	"fmt"
)

// Message is one MQTT application message. Whoever is handed a Message may
// keep it but must not change the bytes of Payload.
type Message struct {
	Topic   string
	Payload []byte
	QoS     uint8 // 0, 1 or 2
	Retain  bool

	// Stamp, if not 0, is the place in Payload of a time that was told while the
	// clock was not set, in the form that clock.Restamp puts right.
	Stamp uint32
}

// MaxPayload is the longest payload of a message: what is left of the longest
// packet (clause 2.2.3) after the longest topic.
const MaxPayload = 268_435_455 - 2 - MaxTopic - 2

// ErrInvalid is wrapped by every error that says a message, topic or filter
// breaks the protocol and will never be delivered.
var ErrInvalid = errors.New("invalid")

// Check returns an error that wraps ErrInvalid for a message which no broker
// would take: a topic that ValidTopic refuses, a QoS above 2, a payload longer
// than MaxPayload. An empty payload is valid.
func (m Message) Check() error {
	if err := ValidTopic(m.Topic); err != nil {
		return err
	}
	if m.QoS > 2 {
		return fmt.Errorf("%w message for topic %q: QoS %d, want 0, 1 or 2", ErrInvalid, m.Topic, m.QoS)
	}
	if len(m.Payload) > MaxPayload {
		return fmt.Errorf("%w message for topic %q: payload of %d bytes, at most %d", ErrInvalid, m.Topic, len(m.Payload), MaxPayload)
	}
	return nil
}

// Sink takes messages for delivery: a queue in front of an uplink, or the
// embedded broker.
//
// Deliver takes msgs in order and returns once the sink answers for them. It
// never waits for a network peer. It keeps neither the msgs slice nor a payload:
// their memory is used again. A message that Check refuses is left out and named in
// the error, which wraps ErrInvalid; the others are taken all the same. A sink
// that is closed takes nothing and says so. It is safe for use by several
// goroutines. Package sinktest holds every Sink to this.
type Sink interface {
	Deliver(ctx context.Context, msgs ...Message) error
}

// Origin is where a message came from, and the way back.
type Origin struct {
	Via    string        // name of the uplink, or "local" for the embedded broker
	User   string        // at the embedded broker; "" for an anonymous client, and upstream
	Client string        // client id at the embedded broker, "" upstream
	Kept   bool          // its sender asked the embedded broker to retain it; Message.Retain is true only for one that was retained before
	Reply  func(Message) // publishes an answer there; it never blocks

	// Refuse tells the sender that its message is not taken: in MQTT 5 by the
	// reason code "quota exceeded", before by ending its connection, and not at
	// all with QoS 0. After the Handler has returned, as long as safe is not
	// closed, it says that the message is lost: the connection is ended, so that
	// it is sent again. It is nil where there is nobody to be told.
	Refuse func()
}

// Handler receives a message from a broker. It must not block: it is called
// from the connection's own reader. msg.Payload is the handler's to keep.
//
// safe is nil, or closed once the message can be acknowledged to its sender:
// it is on disk, or done with. Until then no PUBACK or PUBREC is sent for it.
type Handler func(msg Message, from Origin) (safe <-chan struct{})
