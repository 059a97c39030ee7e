package gateway

import (
	"fmt"

	"fieldgate/internal/bridge"
	"fieldgate/internal/config"
	"fieldgate/internal/queue"
)

// bridgeOf returns the bridge of the uplink c, nil if it has no rules.
func (g *Gateway) bridgeOf(cfg *config.Config, c config.Uplink, q *queue.Queue) (*bridge.Bridge, error) {
	if len(c.Bridge) == 0 {
		return nil, nil
	}
	clients := make([]string, 0, len(cfg.Uplinks))
	for _, u := range cfg.Uplinks {
		clients = append(clients, u.ClientID)
	}
	br, err := bridge.Open(c, cfg.Status.Topic, clients, g.broker, q, part(g.log, "bridge", c.Name))
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", c.Name, err)
	}
	return br, nil
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
