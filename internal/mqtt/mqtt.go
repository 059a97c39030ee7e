// Package mqtt holds what the MQTT side of the gateway agrees on: the message,
// who takes messages, and the rules for topic names and filters. It connects
// to nothing; uplink and broker do.
package mqtt

import "context"

// Message is one MQTT application message. Whoever is handed a Message may
// keep it but must not change the bytes of Payload.
type Message struct {
	Topic   string
	Payload []byte
	QoS     uint8 // 0, 1 or 2
	Retain  bool
}

// Sink takes messages for delivery: a queue in front of an uplink, or the
// embedded broker.
//
// Deliver takes msgs in order and returns once the sink answers for them. It
// never waits for a network peer. It keeps no reference to the msgs slice; it
// may keep the payloads.
type Sink interface {
	Deliver(ctx context.Context, msgs ...Message) error
}

// Handler receives a message from a broker. It must not block: it is called
// from the connection's own reader. reply publishes an answer to where the
// message came from. msg.Payload is the handler's to keep.
type Handler func(msg Message, reply func(Message))
