package test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/gateway"
	"fieldgate/internal/modbus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/simulate"
	"fieldgate/internal/uplink"
	"fieldgate/test/madeup"
)

// An emergency stop passes a line that is polled back to back and has normal
// writes waiting: it waits for one request at most, and for its own exchange.
func TestEmergencyOnBusyLine(t *testing.T) {
	t.Parallel()
	emergencies(t, 1, 40, 2*time.Second)
}

// stopLine is one line of emergencies, of five devices.
type stopLine struct {
	name  string
	stops chan time.Time // when a device has executed a stop
}

// stopLog is what is known beside of each try: what the gateway has said, and
// when the machine itself stood still.
type stopLog struct {
	mu      sync.Mutex
	answers map[string]stopAnswer // by id
	status  gateway.Status        // the newest
	stalls  []stall
}

// stopAnswer is of the acknowledgement what dates it.
type stopAnswer struct {
	ID        string    `json:"id"`
	Status    string    `json:"status"`
	Reason    string    `json:"reason"`
	Ms        int       `json:"ms"` // since the gateway had the message
	Timestamp time.Time `json:"timestamp"`
}

// stall is a time in which something that was to be woken was not.
type stall struct {
	at   time.Time
	took time.Duration
}

// take is given each message for the test.
func (l *stopLog) take(m mqtt.Message) []<-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if strings.HasPrefix(m.Topic, "fieldgate/") {
		_ = json.Unmarshal(m.Payload, &l.status) // it is looked at by people
		return nil
	}
	var a stopAnswer
	if json.Unmarshal(m.Payload, &a) == nil && a.ID != "" {
		l.answers[a.ID] = a
	}
	return nil
}

// watchMachine notes when a goroutine or a thread of this process was kept from
// running, until ctx ends.
func (l *stopLog) watchMachine(ctx context.Context, watching *sync.WaitGroup) {
	const nap, worth = time.Millisecond, 5 * time.Millisecond
	for i := range 2 {
		watching.Go(func() { // ends with ctx
			if i == 0 {
				runtime.LockOSThread() // as the simulated lines do
			}
			for ctx.Err() == nil {
				began := time.Now()
				time.Sleep(nap)
				if took := time.Since(began) - nap; took > worth {
					l.mu.Lock()
					l.stalls = append(l.stalls, stall{began, took})
					l.mu.Unlock()
				}
			}
		})
	}
}

// explain says which part of a try took how long.
func (l *stopLog) explain(line, id string, began, stopped time.Time) string {
	for limit := time.Now().Add(5 * time.Second); time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		l.mu.Lock()
		_, ok := l.answers[id]
		l.mu.Unlock()
		if ok {
			break
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	if a, ok := l.answers[id]; ok {
		taken := a.Timestamp.Add(-time.Duration(a.Ms) * time.Millisecond)
		fmt.Fprintf(&b, "%v to the gateway, %v in it and on the wire; it answered %s after %d ms %s; ",
			taken.Sub(began).Round(time.Millisecond), stopped.Sub(taken).Round(time.Millisecond), a.Status, a.Ms, a.Reason)
	} else {
		b.WriteString("the gateway has not answered; ")
	}
	for _, s := range l.stalls {
		if s.at.Before(stopped) && s.at.Add(s.took).After(began) {
			fmt.Fprintf(&b, "the machine stood still for %v, %v after the message; ", s.took.Round(time.Millisecond), s.at.Sub(began).Round(time.Millisecond))
		}
	}
	s := l.status.Buses[line].Frames
	fmt.Fprintf(&b, "on the line so far: %d timeouts, %d late answers, %d bad ones", s.Timeouts, s.Late, s.BadChecksum)
	return b.String()
}

// emergencies stops devices so many times on each of some lines. slack is what
// the operating system, and who else is on this machine, may add to what the
// wire takes.
func emergencies(t *testing.T, lines, tries int, slack time.Duration) {
	mode := config.SerialMode{Baud: 9600, DataBits: 8, Parity: 'N', StopBits: 1}
	plant := &simulate.Plant{}
	var all []stopLine
	for n := range lines {
		l := stopLine{fmt.Sprint("line", n+1), make(chan time.Time, 1)}
		bus := &simulate.Bus{Name: l.name, Kind: config.Serial, Framing: modbus.FramingRTU, Mode: mode}
		for unit := modbus.UnitID(1); unit <= 5; unit++ {
			bus.Devices = append(bus.Devices, simulate.New(simulate.Settings{
				Name: fmt.Sprint(l.name, "-d", unit), Unit: unit, Fill: true,
				OnWrite: func(w simulate.Write) {
					if w.Table == modbus.Coils {
						l.stops <- w.Time
					}
				},
			}))
		}
		plant.Buses = append(plant.Buses, bus)
		all = append(all, l)
	}
	madeup.Run(t, plant)

	points, buses, devices, commands := "", "", "", ""
	for i := range 20 {
		points += fmt.Sprintf("p%d: { at: holding %d, write: { skip_if_equal: false } }, ", i, i)
	}
	for n, l := range all {
		buses += fmt.Sprintf("%s: { serial: %s, mode: 9600-8N1, timeout: 500ms }, ", l.name, plant.Buses[n].Addr())
		devices += fmt.Sprintf(`  "%s-d{unit}": { bus: %s, unit: 1-5, every: 0s, points: { %s stop: { at: coil 0, every: never, write: { priority: emergency } } } }`+"\n", l.name, l.name, points)
		commands += fmt.Sprintf(`  - { topic: "stop/%s/{unit}", match: STOP, write: { "%s-*.stop": 1 } }
  - { topic: "set/%s/{unit}/{point}", write: "%s-*.{point}", priority: normal }
`, l.name, l.name, l.name, l.name)
	}
	port := freePort(t)
	gw := startGateway(t, fmt.Sprintf(`
site: { id: gw1 }
buses: { %s }
devices:
%s
broker: { listen: "mqtt://127.0.0.1:%d", anonymous: true }
publish: [ { points: "none.*" } ]
status: { every: 1s }
commands:
%s`, buses, devices, port, commands))
	for _, l := range all {
		gw.log.wait(t, l.name+" online", func(text string) bool { return strings.Contains(text, "device="+l.name+"-d5") })
	}

	log := &stopLog{answers: make(map[string]stopAnswer)}
	conn, err := uplink.Connect(t.Context(), config.Uplink{ClientID: "commander", CleanSession: true, Keepalive: time.Minute, ConnectTimeout: patience},
		fmt.Sprintf("mqtt://127.0.0.1:%d", port), uplink.ConnOptions{Handler: log.take})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, filter := range []mqtt.Filter{"stop/+/+/ack", "fieldgate/gw1/stats"} {
		if _, err := conn.Subscribe(t.Context(), filter, 1); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var watching sync.WaitGroup
	log.watchMachine(ctx, &watching)

	// A read of 20 registers and a write with its answer, with their silences
	// (docs/safety.md).
	char := mode.CharTime()
	worst := (8+45)*char + 2*35*char/10 + (8+8)*char + 2*35*char/10
	var stopping sync.WaitGroup
	for _, l := range all {
		stopping.Go(func() { // ends after its tries
			most := l.stop(t, conn, log, tries, worst, slack)
			t.Logf("%s: worst case %v by the wire; the longest of %d tries took %v", l.name, worst, tries, most)
		})
	}
	stopping.Wait()
	cancel()
	watching.Wait()
	log.mu.Lock()
	defer log.mu.Unlock()
	var longest time.Duration
	for _, s := range log.stalls {
		longest = max(longest, s.took)
	}
	t.Logf("the machine stood still %d times for more than 5 ms, at most %v", len(log.stalls), longest)
}

// stop makes the tries of one line and returns how long the longest took.
func (l stopLine) stop(t *testing.T, conn *uplink.Conn, log *stopLog, tries int, worst, slack time.Duration) (most time.Duration) {
	for i := range tries {
		unit := 1 + i%5
		if i%4 == 0 { // normal writes that wait
			for k := range 3 {
				_ = conn.Publish(t.Context(), mqtt.Message{Topic: fmt.Sprintf("set/%s/%d/p%d", l.name, unit, k), Payload: strconv.AppendInt(nil, int64(i), 10), QoS: 1})
			}
		}
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		id := fmt.Sprint(l.name, "-", i)
		began := time.Now()
		if err := conn.Publish(t.Context(), mqtt.Message{Topic: fmt.Sprintf("stop/%s/%d", l.name, unit), Payload: fmt.Appendf(nil, `{"value":"STOP","id":"%s"}`, id), QoS: 1}); err != nil {
			t.Error(err)
			return most
		}
		select {
		case at := <-l.stops:
			took := at.Sub(began)
			if most = max(most, took); took > worst+slack {
				t.Errorf("%s, try %d: stopped after %v, the worst case by the wire is %v: %s", l.name, i, took, worst, log.explain(l.name, id, began, at))
			}
		case <-time.After(patience):
			t.Errorf("%s, try %d: never stopped", l.name, i)
			return most
		}
	}
	return most
}
