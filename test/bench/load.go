package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/simulate"
)

const loadAbout = `
100 simulated TCP devices, each on a connection of its own, 100 holding registers each, polled once a second; every value is
published upstream to mosquitto at each poll, with a mosquitto_sub that takes it all. Processor time is that of the gateway's
process, user and system, over 30 s, divided by the points read. Jitter is how far the time between two messages of a device,
by the time stamps in them, is from a second. The floor is a program in C that writes the same requests to the same devices and
reads the answers, all those of a half second together, and does nothing else.`

const memoryAbout = `
Resident memory (VmRSS) after ten seconds of polling once a second and publishing upstream, every point spelled out in the
configuration; the highest ever (VmHWM) beside it. Idle is a gateway with the embedded broker and one device that is not there.`

const startAbout = `
From starting the program to mosquitto_sub, which is subscribed upstream, printing the first value; the median of nine starts.
"Spelled out" lists all 10,000 points one by one; "shared" gives each device the same list by a YAML alias.`

const (
	loadDevices = 100
	loadPoints  = 100
)

// fleet is n simulated TCP devices, each with a server of its own.
func fleet(n int) *simulate.Plant {
	p := new(simulate.Plant)
	for i := range n {
		p.Buses = append(p.Buses, &simulate.Bus{
			Name: fmt.Sprintf("b%d", i), Kind: config.TCP, Address: "127.0.0.1:0",
			Devices: simulate.Devices{simulate.New(simulate.Settings{Name: fmt.Sprintf("d%d", i), Unit: modbus.UnitID(1), Fill: true})},
		})
	}
	return p
}

// fleetConfig polls a fleet. alias shares one list of points between devices.
func fleetConfig(p *simulate.Plant, points int, alias bool, publish string, port int) string {
	var s strings.Builder
	s.WriteString("site: { id: bench }\nbuses:\n")
	for _, b := range p.Buses {
		fmt.Fprintf(&s, "  %s: { tcp: \"%s\" }\n", b.Name, b.Addr())
	}
	s.WriteString("devices:\n")
	for i, b := range p.Buses {
		fmt.Fprintf(&s, "  d%d:\n    bus: %s\n    every: 1s\n", i, b.Name)
		if alias && i > 0 {
			s.WriteString("    points: *points\n")
			continue
		}
		s.WriteString("    points:")
		if alias {
			s.WriteString(" &points")
		}
		s.WriteByte('\n')
		for n := range points {
			fmt.Fprintf(&s, "      p%d: { at: holding %d }\n", n, n)
		}
	}
	fmt.Fprintf(&s, "publish: [ %s ]\nuplinks: { up: { url: \"mqtt://127.0.0.1:%d\" } }\n", publish, port)
	return s.String()
}

const (
	batchRule = `{ topic: "{site}/{device}", payload: batch, when: each, qos: 0 }`
	pointRule = `{ topic: "{site}/{device}/{point}", payload: json, when: each, qos: 0 }`
)

func benchLoad(ctx context.Context, b *bench) ([]row, error) {
	const long = 30 * time.Second
	var rows []row
	for _, c := range []struct {
		name, rule string
		messages   int // a device and second
		target     time.Duration
		jitter     bool
	}{
		{"one batch message a device and poll", batchRule, 1, 600 * time.Nanosecond, true},
		{"one batch message a device and poll, QoS 1", strings.Replace(batchRule, "qos: 0", "qos: 1", 1), 1, 600 * time.Nanosecond, false},
		{"one message a point", pointRule, loadPoints, 5 * time.Microsecond, false},
	} {
		up, port, err := b.mosquitto()
		if err != nil {
			return nil, err
		}
		sub, err := subscribe(port, "bench")
		if err != nil {
			return nil, err
		}
		p := fleet(loadDevices)
		stop, err := plant(p)
		if err != nil {
			return nil, err
		}
		gw, err := b.gateway(fleetConfig(p, loadPoints, true, c.rule, port))
		if err != nil {
			return nil, err
		}
		if err := pause(ctx, 3*time.Second); err != nil {
			return nil, err
		}
		drain(sub.messages)
		before, err := gw.cpu()
		if err != nil {
			return nil, err
		}
		polls, begin := polled(p), time.Now()
		var got []received
		for timer := time.After(long); ; {
			var m received
			select {
			case m = <-sub.messages:
				got = append(got, m)
				continue
			case <-timer:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			break
		}
		took := time.Since(begin)
		polls = polled(p) - polls
		after, err := gw.cpu()
		if err == nil {
			err = gw.alive()
		}
		gw.stop()
		sub.stop()
		up.stop()
		if e := stop(); err == nil {
			err = e
		}
		if err != nil {
			return nil, err
		}
		perPoint := (after - before) / time.Duration(polls*loadPoints)
		expected := loadDevices * int(math.Round(took.Seconds()))
		// One poll of each device may fall on either side of the measurement's ends.
		complete := polls >= expected-loadDevices && len(got) >= (expected-loadDevices)*c.messages
		rows = append(rows,
			row{c.name + ": processor time a point", fmt.Sprintf("%.2f µs", float64(perPoint)/1000), fmt.Sprintf("≤ %v", c.target), perPoint <= c.target},
			row{c.name + ": polls and messages in 30 s", fmt.Sprintf("%d and %d", polls, len(got)), fmt.Sprintf("%d and %d", expected, expected*c.messages), complete})
		if c.jitter {
			p99 := jitter(got)
			rows = append(rows, row{c.name + ": p99 of the jitter", fmt.Sprintf("%.1f ms", p99), "≤ 5 ms", p99 <= 5})
		}
	}
	us, err := floor(ctx, b)
	if err != nil {
		return nil, err
	}
	return append(rows, row{"the floor, requests and answers alone: processor time a point", fmt.Sprintf("%.2f µs", us/loadPoints), "", true}), nil
}

// floor returns what the kernel takes for a poll, in microseconds of processor
// time.
func floor(ctx context.Context, b *bench) (us float64, err error) {
	p := fleet(loadDevices)
	stop, err := plant(p)
	if err != nil {
		return 0, err
	}
	args := []string{"10"}
	for _, bus := range p.Buses {
		_, port, err := net.SplitHostPort(bus.Addr())
		if err != nil {
			return 0, errors.Join(err, stop())
		}
		args = append(args, port)
	}
	out, err := exec.CommandContext(ctx, filepath.Join(b.dir, "floor"), args...).Output()
	if err = errors.Join(err, stop()); err != nil {
		return 0, fmt.Errorf("floor: %w", err)
	}
	return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
}

func polled(p *simulate.Plant) (n int) {
	for _, b := range p.Buses {
		n += b.Devices[0].Requests()
	}
	return n
}

func drain(c chan received) {
	for {
		select {
		case <-c:
		default:
			return
		}
	}
}

// jitter returns the 99th percentile of how far two batches of a device are
// from a second apart, in milliseconds.
func jitter(messages []received) float64 {
	last := make(map[string]time.Time)
	var off []float64
	for _, m := range messages {
		var batch struct{ Timestamp time.Time }
		if err := json.Unmarshal(m.payload, &batch); err != nil {
			continue // the count of messages shows what is missing
		}
		if before, ok := last[m.topic]; ok {
			off = append(off, math.Abs(float64(batch.Timestamp.Sub(before)-time.Second)/1e6))
		}
		last[m.topic] = batch.Timestamp
	}
	if len(off) == 0 {
		return math.Inf(1)
	}
	slices.Sort(off)
	return off[len(off)*99/100]
}

func benchMemory(ctx context.Context, b *bench) ([]row, error) {
	up, port, err := b.mosquitto()
	if err != nil {
		return nil, err
	}
	defer up.stop()
	var rows []row
	measure := func(name, yaml string, target float64) error {
		gw, err := b.gateway(yaml)
		if err != nil {
			return err
		}
		defer gw.stop()
		if err := pause(ctx, 10*time.Second); err != nil {
			return err
		}
		if err := gw.alive(); err != nil {
			return err
		}
		rss, err := gw.memory("VmRSS")
		if err != nil {
			return err
		}
		peak, err := gw.memory("VmHWM")
		if err != nil {
			return err
		}
		rows = append(rows, row{name, fmt.Sprintf("%.1f MiB (highest %.1f)", rss, peak), fmt.Sprintf("≤ %.0f MiB", target), rss <= target})
		return nil
	}
	for _, c := range []struct {
		devices int
		target  float64
	}{{10, 16}, {100, 24}} {
		p := fleet(c.devices)
		stop, err := plant(p)
		if err != nil {
			return nil, err
		}
		err = measure(fmt.Sprintf("%d points", c.devices*loadPoints), fleetConfig(p, loadPoints, false, pointRule, port), c.target)
		if e := stop(); err == nil {
			err = e
		}
		if err != nil {
			return nil, err
		}
	}
	if err := measure("idle", `
site: { id: bench }
buses: { plc: { tcp: "127.0.0.1:1" } }
devices: { d: { bus: plc, points: { p: { at: holding 0 } } } }
broker: { listen: ["mqtt://127.0.0.1:0"], anonymous: true }
`, 10); err != nil {
		return nil, err
	}
	info, err := os.Stat(b.binary)
	if err != nil {
		return nil, err
	}
	size := float64(info.Size()) / 1e6
	return append(rows, row{"the program, stripped", fmt.Sprintf("%.1f MB", size), "≤ 12 MB", size <= 12}), nil
}

func benchStart(ctx context.Context, b *bench) ([]row, error) {
	const tries = 9
	up, port, err := b.mosquitto()
	if err != nil {
		return nil, err
	}
	defer up.stop()
	sub, err := subscribe(port, "bench")
	if err != nil {
		return nil, err
	}
	defer sub.stop()
	var rows []row
	for _, c := range []struct {
		name            string
		devices, points int
		alias           bool
	}{
		{"one point", 1, 1, false},
		{"10,000 points, shared", loadDevices, loadPoints, true},
		{"10,000 points, spelled out", loadDevices, loadPoints, false},
	} {
		p := fleet(c.devices)
		stop, err := plant(p)
		if err != nil {
			return nil, err
		}
		yaml := fleetConfig(p, c.points, c.alias, pointRule, port)
		var took []float64
		for range tries {
			drain(sub.messages)
			begin := time.Now()
			gw, err := b.gateway(yaml)
			if err != nil {
				return nil, err
			}
			select {
			case m := <-sub.messages:
				took = append(took, m.at.Sub(begin).Seconds()*1000)
			case <-time.After(20 * time.Second):
				gw.stop()
				return nil, fmt.Errorf("no value after 20 s: %s", gw.log.String())
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			gw.stop()
			if err := pause(ctx, 300*time.Millisecond); err != nil { // what is under way arrives
				return nil, err
			}
		}
		if err := stop(); err != nil {
			return nil, err
		}
		slices.Sort(took)
		median := took[len(took)/2]
		rows = append(rows, row{c.name, fmt.Sprintf("%.0f ms (%.0f to %.0f)", median, took[0], took[len(took)-1]), "≤ 50 ms", median <= 50})
	}
	return rows, nil
}
