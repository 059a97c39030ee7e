package gateway

import (
	"context"
	"encoding/json"
	"time"

	"fieldgate/internal/audit"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
	"fieldgate/internal/queue"
)

// eventsMost is how many events may wait to be published: the oldest goes, and
// is counted.
const eventsMost = 256

// event is a message on …/event (SPEC 4).
type event struct {
	Event  string `json:"event"`
	State  string `json:"state,omitempty"` // begins or ends; "" for what has no end
	Uplink string `json:"uplink,omitempty"`
	Lost   uint64 `json:"lost,omitempty"` // messages: so far, or at the end in all
	Reason string `json:"reason,omitempty"`
	File   string `json:"file,omitempty"`
	Time   string `json:"timestamp"`
}

// queueEvent returns what takes the events of the queue of an uplink.
func (h *herald) queueEvent(uplink string) func(queue.Event) {
	return func(e queue.Event) {
		state := "begins"
		switch {
		case e.Kind == queue.PutAside:
			state = ""
		case e.Over:
			state = "ends"
		}
		h.event(event{Event: e.Kind, State: state, Uplink: uplink, Lost: e.Lost, Reason: e.Reason, File: e.File})
	}
}

// event notes that something has happened now. It never blocks.
func (h *herald) event(e event) {
	e.Time = point.Timestamp(h.gateway.clock.Day(time.Now()))
	payload, err := json.Marshal(e)
	if err != nil {
		h.gateway.log.Error("write event", "err", err)
		return
	}
	h.say(h.gateway.dated(mqtt.Message{Payload: payload}))
}

// record publishes a record of the audit log as it stands in the file, with its
// hash. It never blocks.
func (h *herald) record(r audit.Record) { h.say(mqtt.Message{Payload: r.JSON()}) }

// say has an event published.
func (h *herald) say(m mqtt.Message) {
	m.Topic, m.QoS = h.gateway.now.Load().status.Topic+"/event", 1
	h.mu.Lock()
	if len(h.events) == eventsMost {
		h.events = h.events[1:]
		h.unsaid++
	}
	h.events = append(h.events, m)
	h.mu.Unlock()
	h.wake()
}

// eventsDropped returns how many events found no room to wait.
func (h *herald) eventsDropped() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.unsaid
}

// dated returns m, whose payload ends with a time that was told just now, as it
// is to be published: it says if the clock is not set.
func (g *Gateway) dated(m mqtt.Message) mqtt.Message {
	m.Payload, m.Stamp = g.clock.Dated(m.Payload)
	return m
}

// tell publishes the events that wait.
func (h *herald) tell(ctx context.Context) {
	h.mu.Lock()
	events := h.events
	h.events = nil
	h.mu.Unlock()
	for _, m := range events {
		h.all(ctx, m)
	}
}
