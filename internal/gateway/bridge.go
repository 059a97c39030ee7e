package gateway

import (
	"fmt"
	"reflect"
	"slices"

	"fieldgate/internal/bridge"
	"fieldgate/internal/config"
	"fieldgate/internal/group"
	"fieldgate/internal/queue"
	"fieldgate/internal/uplink"
)

// wayOf returns the uplink c with its queue, from next's and was's broker those of
// was if they have the same settings. A queue whose file takes nothing keeps those
// that it has.
func (g *Gateway) wayOf(cfg *config.Config, c config.Uplink, next, was *assembly) (way, error) {
	old := was.way(c.Name)
	if old.queue != nil && old.cfg.Queue != c.Queue {
		if fault := old.queue.Stats().Fault; fault != "" { // what is only in memory would be lost with it
			g.log.Warn("the queue keeps its settings until its file takes messages again; reload then", "uplink", c.Name, "fault", fault)
			c.Queue = old.cfg.Queue // which the next reload compares
		}
	}
	w := way{cfg: c, name: c.Name, state: cfg.Status.Topic + "/state"}
	if len(c.Bridge) > 0 {
		for _, u := range cfg.Uplinks {
			w.peers = append(w.peers, u.ClientID)
		}
	}
	if old.uplink != nil && reflect.DeepEqual(old.cfg, c) && old.state == w.state && slices.Equal(old.peers, w.peers) &&
		(old.bridge == nil || was.broker.Broker == next.broker.Broker) {
		return old, nil
	}
	if w.queue, w.queuePart = old.queue, old.queuePart; old.queue == nil || old.cfg.Queue != c.Queue {
		q, err := queue.Open(g.dir, c.Name, c.Queue, part(g.log, "queue", c.Name))
		if err != nil {
			return w, fmt.Errorf("queue %s: %w", c.Name, err)
		}
		q.Clock = g.clock
		tell := g.herald.queueEvent(c.Name)
		q.OnEvent = func(e queue.Event) {
			tell(e)
			g.siren.queueEvent(c.Name, e)
		}
		w.queue, w.queuePart = q, group.NewPart("queue "+c.Name, q.Run)
	}
	w.uplink = uplink.New(c, w.queue, stateMessage(w.state, offline), stateMessage(w.state, online), nil, part(g.log, "uplink", c.Name))
	w.uplinkPart = group.NewPart("uplink "+c.Name, w.uplink.Run)
	if len(c.Bridge) > 0 {
		w.bridge = bridge.New(c, cfg.Status.Topic, w.peers, next.broker.Broker, w.queue, part(g.log, "bridge", c.Name))
		w.uplink.OnSend, w.bridge.Connected = w.bridge.Sent, w.uplink.Connected
	}
	return w, nil
}

// way returns the uplink of a name, none of it set if there is none.
func (a *assembly) way(name string) way {
	for _, w := range a.ways {
		if w.name == name {
			return w
		}
	}
	return way{}
}

// BridgeStatus is what the bridge rules of an uplink have carried.
type BridgeStatus struct {
	Out     uint64 `json:"out"`
	In      uint64 `json:"in"`
	Echoes  uint64 `json:"echoes"`  // came back from where they were sent, left out
	Looped  uint64 `json:"looped"`  // came round by another bridge, left out
	Refused uint64 `json:"refused"` // no room in the queue, and the client was told
	Ignored uint64 `json:"ignored"` // the gateway's own state, and what was known
}

// bridgeStatus returns nil for an uplink without a bridge.
func bridgeStatus(br *bridge.Bridge) *BridgeStatus {
	if br == nil {
		return nil
	}
	s := BridgeStatus(br.Stats())
	return &s
}
