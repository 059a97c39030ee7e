package gateway

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fieldgate/internal/bus"
	"fieldgate/internal/mqtt"
)

// kept is a sink that holds what a broker would retain, by topic.
type kept struct {
	mu sync.Mutex
	of map[string]string
}

func (k *kept) Deliver(_ context.Context, msgs ...mqtt.Message) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range msgs {
		if m.Retain {
			k.of[m.Topic] = string(m.Payload)
		}
	}
	return nil
}

// device returns the state of a device.
func (k *kept) device(name string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.of["fieldgate/s/device/"+name+"/state"]
}

// What a broker has kept of a device from before a crash is put right soon after
// the start, also of one of which nothing is known yet.
func TestStatesAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := opened(t, `
site: { id: s }
buses: { plc: { tcp: 127.0.0.1:1 } }
devices:
  a: { bus: plc, points: { x: { at: holding 0 } } }
  b: { bus: plc, unit: 2, points: { x: { at: holding 0 } } }
uplinks: { cloud: { url: mqtts://broker.example } }
`)
		broker := &kept{of: map[string]string{"fieldgate/s/device/a/state": "online", "fieldgate/s/device/b/state": "online"}}
		g.now.Load().told = map[string]mqtt.Sink{"cloud": broker}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = g.herald.run(ctx) })
		time.Sleep(readWithin - time.Millisecond)
		synctest.Wait()
		if broker.device("b") != "online" {
			t.Error("a device that may be read yet is said to be offline")
		}
		time.Sleep(time.Second)
		g.herald.device("a", bus.Online)
		time.Sleep(time.Second)
		stop()
		running.Wait()
		if a, b := broker.device("a"), broker.device("b"); a != "online" || b != "offline" {
			t.Errorf("a is %s and b %s, want online and offline", a, b)
		}

		g.herald.device("a", bus.Suspect)
		g.herald.unread() // knows less
		if s := g.herald.states; s["a"] != bus.Suspect || s["b"] != bus.Offline {
			t.Errorf("to be told: %v", s)
		}
	})
}
