package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"fieldgate/internal/config"
	ours "fieldgate/internal/modbus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/simulate"
	"fieldgate/internal/uplink"
)

const commandsAbout = `
From the publish of a command at the embedded broker to the moment at which the device executes it, on a line of 9600 baud that
is polled back to back: five devices, each read is 20 registers. A command is checked and recorded on disk before it is written.
The limit is what the wire allows: a command comes at a random moment of an exchange of 63 ms and waits for its end, and its own
request takes 12 ms: half of the first and the second at p50, nearly both at p99. An emergency neither waits for the disk nor
for other writes.`

// commandLine runs the program on such a line and returns what publishes there.
func (b *bench) commandLine(ctx context.Context, dead bool, executed func(simulate.Write)) (conn *uplink.Conn, stop func() error, err error) {
	m := mode(9600, 'N')
	faults := make(map[int][]simulate.Fault)
	if dead {
		faults[rtuDevices-1] = []simulate.Fault{{Kind: simulate.Silent}}
	}
	bus := &simulate.Bus{Name: "line", Kind: config.Serial, Framing: ours.FramingRTU, Mode: m}
	for i := range rtuDevices {
		bus.Devices = append(bus.Devices, simulate.New(simulate.Settings{
			Name: fmt.Sprintf("d%d", i+1), Unit: ours.UnitID(i + 1), Fill: true, Faults: faults[i], OnWrite: executed,
		}))
	}
	stopPlant, err := plant(&simulate.Plant{Buses: []*simulate.Bus{bus}})
	if err != nil {
		return nil, nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, nil, err
	}
	points := "stop: { at: coil 0, every: never, write: { priority: emergency } }"
	for i := range rtuRegisters {
		points += fmt.Sprintf(", p%d: { at: holding %d, write: { skip_if_equal: false } }", i, i)
	}
	gw, err := b.gateway(fmt.Sprintf(`
site: { id: bench }
buses: { line: { serial: %s, mode: %s, timeout: 500ms } }
devices: { "d{unit}": { bus: line, unit: 1-%d, every: 0s, points: { %s } } }
publish: [ { topic: "{site}/{device}", payload: batch, when: each } ]
broker: { listen: ["mqtt://127.0.0.1:%d"], anonymous: true, persist: false }
commands:
  - { topic: "set/{unit}", write: "*.p0" }
  - { topic: "stop/{unit}", match: STOP, write: { "*.stop": 1 } }
`, bus.Addr(), m, rtuDevices, points, port))
	if err != nil {
		return nil, nil, err
	}
	stop = func() error {
		err := gw.alive()
		gw.stop()
		if e := stopPlant(); err == nil {
			err = e
		}
		return err
	}
	// A dead device has been found so by then.
	if err := pause(ctx, 5*time.Second); err != nil {
		return nil, nil, err
	}
	cfg := config.Uplink{ClientID: "bench", CleanSession: true, Keepalive: time.Minute, ConnectTimeout: 5 * time.Second}
	conn, err = uplink.Connect(ctx, cfg, fmt.Sprintf("mqtt://127.0.0.1:%d", port), uplink.ConnOptions{})
	return conn, stop, err
}

// timeCommands publishes commands one after the other, at random moments of the
// line's cycle, and returns how long each took, the shortest first.
func timeCommands(ctx context.Context, conn *uplink.Conn, n, devices int, topic string, payload func(i int) string, executed chan time.Time) ([]time.Duration, error) {
	var took []time.Duration
	for i := range n {
		// The read-back is over by then, and the line in the middle of some poll.
		if err := pause(ctx, 100*time.Millisecond+rand.N(200*time.Millisecond)); err != nil {
			return nil, err
		}
		began := time.Now()
		if err := conn.Publish(ctx, mqtt.Message{Topic: topic + strconv.Itoa(1+i%devices), Payload: []byte(payload(i)), QoS: 1}); err != nil {
			return nil, err
		}
		select {
		case at := <-executed:
			took = append(took, at.Sub(began))
		case <-time.After(10 * time.Second):
			return nil, fmt.Errorf("%s%d: not executed after 10 s", topic, 1+i%devices)
		}
	}
	slices.Sort(took)
	return took, nil
}

func benchCommands(ctx context.Context, b *bench) ([]row, error) {
	const (
		tries   = 120
		p50most = 55 * time.Millisecond
		p99most = 90 * time.Millisecond
	)
	var rows []row
	for _, c := range []struct {
		name    string
		dead    bool
		devices int
	}{{"five devices", false, rtuDevices}, {"one of five dead", true, rtuDevices - 1}} {
		executed := make(chan time.Time, 1)
		conn, stop, err := b.commandLine(ctx, c.dead, func(w simulate.Write) { executed <- w.Time })
		if err != nil {
			return nil, err
		}
		took, err := timeCommands(ctx, conn, tries, c.devices, "set/", func(i int) string { return strconv.Itoa(i) }, executed)
		var stops []time.Duration
		if err == nil {
			stops, err = timeCommands(ctx, conn, tries, c.devices, "stop/", func(int) string { return "STOP" }, executed)
		}
		conn.Close()
		if e := stop(); err == nil {
			err = e
		}
		if err != nil {
			return nil, err
		}
		p50, p99 := took[tries/2], took[tries*99/100]
		ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }
		rows = append(rows,
			row{c.name + ": command to device, p50", ms(p50), "≤ " + ms(p50most), p50 <= p50most},
			row{c.name + ": command to device, p99", ms(p99), "≤ " + ms(p99most), p99 <= p99most},
			row{c.name + ": emergency stop to device, p50", ms(stops[tries/2]), "", true},
			row{c.name + ": emergency stop to device, the longest", ms(stops[tries-1]), "", true})
	}
	return rows, nil
}
