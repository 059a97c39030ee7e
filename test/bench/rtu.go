package main

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/goburrow/modbus"

	"fieldgate/internal/config"
	ours "fieldgate/internal/modbus"
	"fieldgate/internal/simulate"
)

const rtuAbout = `
Five devices share a pseudo-terminal that carries bytes no faster than a UART of that baud rate would; each read is 20
holding registers. The limit is what the wire itself allows: 8 characters of request, 45 of response, and two silences of 3.5
characters (1.75 ms above 19200 baud); the devices answer at once. "Silence broken" counts requests that began before 3.5
characters of silence. The peers poll the same simulated line in the same run: a loop over goburrow/modbus as its README shows
it, and a loop over libmodbus in C.`

const deadAbout = `
As above, but one of the five devices is silent from the start (timeout 500 ms), and returns later. The limit is that of the
line; counted are the reads of the four others, from five seconds after the start.`

const (
	rtuDevices   = 5
	rtuRegisters = 20
)

// serialLine is a simulated serial line with five devices.
func serialLine(mode config.SerialMode, faults map[int][]simulate.Fault) (*simulate.Plant, *simulate.Bus) {
	bus := &simulate.Bus{Name: "line", Kind: config.Serial, Framing: ours.FramingRTU, Mode: mode}
	for i := range rtuDevices {
		bus.Devices = append(bus.Devices, simulate.New(simulate.Settings{
			Name: fmt.Sprintf("d%d", i+1), Unit: ours.UnitID(i + 1), Fill: true, Faults: faults[i],
		}))
	}
	return &simulate.Plant{Buses: []*simulate.Bus{bus}}, bus
}

// cycle is the least time that one read takes on the wire.
func cycle(mode config.SerialMode) time.Duration {
	silence := 35 * mode.CharTime() / 10
	if mode.Baud > 19200 {
		silence = 1750 * time.Microsecond
	}
	return (8+5+2*rtuRegisters)*mode.CharTime() + 2*silence
}

// rtuConfig polls the five devices as fast as the line allows.
func rtuConfig(path string, mode config.SerialMode) string {
	var points []string
	for i := range rtuRegisters {
		points = append(points, fmt.Sprintf("p%d: { at: holding %d }", i, i))
	}
	return fmt.Sprintf(`
site: { id: bench }
buses: { line: { serial: %s, mode: %s, timeout: 500ms } }
devices: { "d{unit}": { bus: line, unit: 1-%d, every: 0s, points: { %s } } }
publish: [ { topic: "{site}/{device}", payload: batch, when: each } ]
broker: { listen: ["mqtt://127.0.0.1:0"], anonymous: true, persist: false }
`, path, mode, rtuDevices, strings.Join(points, ", "))
}

func mode(baud int, parity byte) config.SerialMode {
	return config.SerialMode{Baud: baud, DataBits: 8, Parity: parity, StopBits: 1}
}

// requests returns how many requests the devices have seen, but those of skip.
func requests(bus *simulate.Bus, skip int) (n int) {
	for i, d := range bus.Devices {
		if i != skip {
			n += d.Requests()
		}
	}
	return n
}

// measure counts the reads of a line during a while.
func measure(ctx context.Context, bus *simulate.Bus, m config.SerialMode, skip int, d time.Duration) (share, broken float64, err error) {
	n, s, begin := requests(bus, skip), bus.Stats(), time.Now()
	if err := pause(ctx, d); err != nil {
		return 0, 0, err
	}
	took := time.Since(begin)
	n = requests(bus, skip) - n
	e := bus.Stats()
	return float64(n) * cycle(m).Seconds() / took.Seconds(),
		float64(e.SilenceBroken-s.SilenceBroken) / float64(max(e.Requests-s.Requests, 1)), nil
}

func percent(f float64) string { return fmt.Sprintf("%.1f %%", 100*f) }

func benchRTU(ctx context.Context, b *bench) ([]row, error) {
	var rows []row
	for _, c := range []struct {
		mode   config.SerialMode
		target float64
		warm   time.Duration
		long   time.Duration
	}{
		{mode(9600, 'N'), 0.97, 2 * time.Second, 15 * time.Second},
		{mode(9600, 'E'), 0.97, 2 * time.Second, 15 * time.Second},
		{mode(115200, 'N'), 0.95, 2 * time.Second, 10 * time.Second},
		{mode(115200, 'E'), 0.95, 2 * time.Second, 10 * time.Second},
	} {
		p, bus := serialLine(c.mode, nil)
		stop, err := plant(p)
		if err != nil {
			return nil, err
		}
		gw, err := b.gateway(rtuConfig(bus.Addr(), c.mode))
		if err != nil {
			return nil, err
		}
		if err := pause(ctx, c.warm); err != nil {
			return nil, err
		}
		share, broken, err := measure(ctx, bus, c.mode, -1, c.long)
		if err == nil {
			err = gw.alive()
		}
		gw.stop()
		if err := stop(); err != nil {
			return nil, err
		}
		if err != nil {
			return nil, err
		}
		rows = append(rows,
			row{c.mode.String() + ": share of the limit", percent(share), "≥ " + percent(c.target), share >= c.target},
			row{c.mode.String() + ": silence broken", percent(broken), "< 1 %", broken < 0.01})
	}
	for _, peer := range []struct {
		name string
		run  func(path string, m config.SerialMode) error
	}{
		{"goburrow/modbus loop", pollGoburrow},
		{"libmodbus loop", b.pollLibmodbus},
	} {
		m := mode(115200, 'N')
		p, bus := serialLine(m, nil)
		stop, err := plant(p)
		if err != nil {
			return nil, err
		}
		done := make(chan error, 1)
		go func() { done <- peer.run(bus.Addr(), m) }() // runs for six seconds
		if err := pause(ctx, time.Second); err != nil {
			return nil, err
		}
		share, broken, err := measure(ctx, bus, m, -1, 4*time.Second)
		if err != nil {
			return nil, err
		}
		if err := <-done; err != nil {
			return nil, err
		}
		if err := stop(); err != nil {
			return nil, err
		}
		rows = append(rows, row{m.String() + ": " + peer.name + ", share of the limit", percent(share), "", true},
			row{m.String() + ": " + peer.name + ", silence broken", percent(broken), "", true})
	}
	return rows, nil
}

const peerSeconds = 6

func pollGoburrow(path string, m config.SerialMode) error {
	h := modbus.NewRTUClientHandler(path)
	h.BaudRate, h.DataBits, h.Parity, h.StopBits = m.Baud, m.DataBits, string(m.Parity), m.StopBits
	h.Timeout = 500 * time.Millisecond
	if err := h.Connect(); err != nil {
		return err
	}
	defer h.Close()
	client := modbus.NewClient(h)
	for end := time.Now().Add(peerSeconds * time.Second); time.Now().Before(end); {
		for unit := range rtuDevices {
			h.SlaveId = byte(unit + 1)
			_, _ = client.ReadHoldingRegisters(0, rtuRegisters) // its failures show in the count
		}
	}
	return nil
}

func (b *bench) pollLibmodbus(path string, m config.SerialMode) error {
	args := []string{"rtu", path, strconv.Itoa(m.Baud), strconv.Itoa(rtuRegisters), strconv.Itoa(peerSeconds)}
	for unit := range rtuDevices {
		args = append(args, strconv.Itoa(unit+1))
	}
	return command(filepath.Join(b.dir, "poll"), args...)
}

func benchDead(ctx context.Context, b *bench) ([]row, error) {
	const (
		settle = 5 * time.Second
		long   = 10 * time.Second
		back   = settle + long + time.Second // since the plant started
		dead   = 4
	)
	var rows []row
	for _, c := range []struct {
		mode   config.SerialMode
		target float64
	}{
		{mode(9600, 'N'), 0.95},
		{mode(115200, 'N'), 0.90},
	} {
		p, bus := serialLine(c.mode, map[int][]simulate.Fault{dead: {{Kind: simulate.Silent, To: back}}})
		stop, err := plant(p)
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		gw, err := b.gateway(rtuConfig(bus.Addr(), c.mode))
		if err != nil {
			return nil, err
		}
		if err := pause(ctx, settle); err != nil {
			return nil, err
		}
		share, broken, err := measure(ctx, bus, c.mode, dead, long)
		if err != nil {
			return nil, err
		}
		// It is read again when its requests come as often as its neighbours'.
		if err := pause(ctx, time.Until(begin.Add(back))); err != nil {
			return nil, err
		}
		returned, err := readAgain(ctx, bus, dead, begin.Add(back))
		if err == nil {
			err = gw.alive()
		}
		gw.stop()
		if err := stop(); err != nil {
			return nil, err
		}
		if err != nil {
			return nil, err
		}
		name := c.mode.String()
		rows = append(rows,
			row{name + ": the four others' share of the limit", percent(share), "≥ " + percent(c.target), share >= c.target},
			row{name + ": silence broken", percent(broken), "< 1 %", broken < 0.01},
			row{name + ": read again after its return", fmt.Sprintf("%.1f s", returned.Seconds()), "≤ 10 s", returned <= 10*time.Second})
	}
	return rows, nil
}

// readAgain returns how long after back the device was polled as often as a
// neighbour for half a second.
func readAgain(ctx context.Context, bus *simulate.Bus, device int, back time.Time) (time.Duration, error) {
	const look = 500 * time.Millisecond
	for time.Since(back) < 60*time.Second {
		began := time.Now()
		n, other := bus.Devices[device].Requests(), bus.Devices[0].Requests()
		if err := pause(ctx, look); err != nil {
			return 0, err
		}
		if got, want := bus.Devices[device].Requests()-n, bus.Devices[0].Requests()-other; got > 0 && got >= want-1 {
			return began.Sub(back), nil
		}
	}
	return 0, fmt.Errorf("unit %d is not read again a minute after its return", device+1)
}

// fields splits what the libmodbus loop prints: reads, failures, seconds.
func fields(out []byte) (reads, failures int, seconds float64, err error) {
	_, err = fmt.Fscan(bytes.NewReader(out), &reads, &failures, &seconds)
	return reads, failures, seconds, err
}
