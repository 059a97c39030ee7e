package gateway

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/bus"
	"fieldgate/internal/modbus"
)

// zeros is a device whose registers are all 0.
type zeros struct{}

func (zeros) Do(_ context.Context, _ modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	return modbus.Answer(req, zeros{}, modbus.Identity{})
}

func (zeros) Read(modbus.Table, uint16, []uint16) error  { return nil }
func (zeros) Write(modbus.Table, uint16, []uint16) error { return nil }

// One bus that hangs is found (F10), and nothing else is held up by it.
func TestStalledBusIsFound(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = (&modbus.Server{Endpoint: zeros{}}).Serve(ctx, l, modbus.FramingTCP) })
	g := toRun(t, t.TempDir(), strings.ReplaceAll(`
site: { id: s }
buses: { stalled: { tcp: PLC }, well: { tcp: PLC } }
devices:
  a: { bus: stalled, every: 20ms, points: { x: { at: holding 0 } } }
  b: { bus: well, every: 20ms, points: { x: { at: holding 0, write: {} } } }
  m: { points: { y: { type: bool, initial: false } } }
uplinks: { cloud: { url: "mqtt://127.0.0.1:1" } }
broker: { listen: mqtt://127.0.0.1:0, anonymous: true }
servers: [ { listen: tcp://127.0.0.1:0, map: { "40001": b.x } } ]
web: false
`, "PLC", l.Addr().String()))
	hold := make(chan struct{})
	g.now.Load().wires[0].bus.OnState = func(string, bus.State) { <-hold }
	running.Go(func() { _ = g.Run(ctx, func() {}) })
	owed := func(name string) time.Duration {
		for _, m := range g.moving() {
			if m.name == name {
				return m.part.Overdue()
			}
		}
		t.Fatalf("no part %s", name)
		return 0
	}
	polls := func() uint64 { return g.Status().Buses["well"].Devices["b"].Polls }
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within 30s", what)
			}
		}
	}
	until("the bus is seen to hang", func() bool { return owed("bus stalled") > 500*time.Millisecond })
	seen := polls()
	until("the other goes on", func() bool { return polls() > seen+5 })
	for _, m := range g.moving() {
		if m.name != "bus stalled" && m.part.Overdue() > 500*time.Millisecond+owed("bus stalled")/2 {
			t.Errorf("%s owes its next step for %v", m.name, m.part.Overdue())
		}
	}
	if err := g.Healthy(); err != nil { // not yet
		t.Error(err)
	}
	if got, want := g.Summary(), "2/2 buses, 2/2 devices, 0/1 uplinks"; !strings.HasPrefix(got, want) {
		t.Errorf("the summary is %q, want %q", got, want)
	}
	close(hold)
	until("it is seen to go on", func() bool { return owed("bus stalled") == 0 })
	stop()
	running.Wait()
	for _, m := range g.moving() {
		if owes := m.part.Overdue(); owes != 0 {
			t.Errorf("%s has ended and owes since %v", m.name, owes)
		}
	}
}

// The error of Healthy names what hangs, and for how long.
func TestHealthyNamesWhatHangs(t *testing.T) {
	g := opened(t, "site: { id: s }\nuplinks: { cloud: { url: mqtts://broker.example } }\n")
	g.herald.beat.Rests(-time.Hour)
	g.siren.beat.Rests(-stuckSlow + time.Second)
	if got, want := fmt.Sprint(g.Healthy()), "status has not moved for 1h0m0s"; got != want {
		t.Errorf("Healthy = %q, want %q", got, want)
	}
}
