package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"fieldgate/internal/bus"
	"fieldgate/internal/config"
	"fieldgate/internal/line"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
	"fieldgate/internal/simulate"
)

const tcpAbout = `
In flight: a simulated device that answers after a latency and takes 16 requests at once; 32 reads that cannot be joined,
repeated as fast as possible, with in_flight 16 against in_flight 1. Bare loop: one client reads 20 holding registers from a
server made with libmodbus as fast as it can, our line and bus against a loop over libmodbus in C, in turns; the ratio is the
median of the pairs.`

func benchTCP(ctx context.Context, b *bench) ([]row, error) {
	var rows []row
	for _, c := range []struct {
		latency time.Duration
		target  float64
	}{{10 * time.Millisecond, 8}, {time.Millisecond, 5}} {
		one, err := b.tcpRate(ctx, c.latency, 1)
		if err != nil {
			return nil, err
		}
		many, err := b.tcpRate(ctx, c.latency, 16)
		if err != nil {
			return nil, err
		}
		ratio := many / one
		rows = append(rows, row{
			fmt.Sprintf("%v of latency: in_flight 16 against 1 (%.0f and %.0f reads/s)", c.latency, many, one),
			fmt.Sprintf("%.1f ×", ratio), fmt.Sprintf("≥ %.0f ×", c.target), ratio >= c.target,
		})
	}
	ratios, mine, theirs, err := b.bareLoop(ctx)
	if err != nil {
		return nil, err
	}
	slices.Sort(ratios)
	ratio := ratios[len(ratios)/2]
	return append(rows, row{
		fmt.Sprintf("in_flight 1 against a bare libmodbus loop (%.0f and %.0f reads/s)", mine, theirs),
		percent(ratio), "≥ 95 %", ratio >= 0.95,
	}), nil
}

// tcpRate returns how many reads a second the gateway makes of a device.
func (b *bench) tcpRate(ctx context.Context, latency time.Duration, inFlight int) (float64, error) {
	device := simulate.New(simulate.Settings{Name: "d", Unit: 1, Fill: true, Latency: latency})
	p := &simulate.Plant{Buses: []*simulate.Bus{{
		Name: "plc", Kind: config.TCP, Address: "127.0.0.1:0", Devices: simulate.Devices{device}, InFlight: 16,
	}}}
	stop, err := plant(p)
	if err != nil {
		return 0, err
	}
	var points []string
	for i := range 32 {
		points = append(points, fmt.Sprintf("p%d: { at: holding %d }", i, i*1000))
	}
	gw, err := b.gateway(fmt.Sprintf(`
site: { id: bench }
buses: { plc: { tcp: "%s", in_flight: %d } }
devices: { d: { bus: plc, every: 0s, points: { %s } } }
publish: [ { topic: "{site}/{device}", payload: batch, when: each } ]
broker: { listen: ["mqtt://127.0.0.1:0"], anonymous: true, persist: false }
`, p.Buses[0].Addr(), inFlight, strings.Join(points, ", ")))
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, time.Second); err != nil {
		return 0, err
	}
	n, begin := device.Requests(), time.Now()
	if err := pause(ctx, 4*time.Second); err != nil {
		return 0, err
	}
	rate := float64(device.Requests()-n) / time.Since(begin).Seconds()
	err = gw.alive()
	gw.stop()
	if e := stop(); err == nil {
		err = e
	}
	return rate, err
}

// bareLoop compares our client with a loop over libmodbus, pair by pair.
func (b *bench) bareLoop(ctx context.Context) (ratios []float64, mine, theirs float64, err error) {
	const (
		pairs   = 7
		seconds = 2
		count   = 20
	)
	port, err := freePort()
	if err != nil {
		return nil, 0, 0, err
	}
	server, err := start(nil, filepath.Join(b.dir, "server"), "tcp", strconv.Itoa(port))
	if err != nil {
		return nil, 0, 0, err
	}
	defer server.stop()
	if err := dialled(port); err != nil {
		return nil, 0, 0, err
	}
	for range pairs {
		if mine, err = pollOurs(ctx, port, count, seconds*time.Second); err != nil {
			return nil, 0, 0, err
		}
		out, err := exec.CommandContext(ctx, filepath.Join(b.dir, "poll"), "tcp", strconv.Itoa(port), strconv.Itoa(count), strconv.Itoa(seconds)).Output()
		if err != nil {
			return nil, 0, 0, err
		}
		reads, failures, took, err := fields(out)
		if err != nil || failures > 0 {
			return nil, 0, 0, fmt.Errorf("libmodbus loop: %d failures: %w", failures, err)
		}
		theirs = float64(reads) / took
		ratios = append(ratios, mine/theirs)
	}
	return ratios, mine, theirs, nil
}

// pollOurs polls a server with line and bus and returns the reads a second.
func pollOurs(ctx context.Context, port, count int, d time.Duration) (float64, error) {
	cfg := config.Bus{
		Name: "plc", Kind: config.TCP, Address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		Timeout: time.Second, ConnectTimeout: 5 * time.Second, Gap: config.GapAuto, InFlight: 1, Retries: 1,
	}
	device := config.Device{
		Name: "d", Bus: "plc", Unit: 1, Timeout: time.Second, Retries: 1, Gap: config.GapAuto,
		MaxRegs: 125, MaxBits: 2000, Holes: config.HolesAuto, BackoffMin: 5 * time.Second, BackoffMax: 5 * time.Minute,
	}
	for i := range count {
		device.Points = append(device.Points, point.Point{
			ID: point.ID(fmt.Sprintf("d.p%d", i)), Table: modbus.HoldingRegisters, Address: uint16(i), Every: point.Fastest,
		})
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	var reads, bad atomic.Int64
	l := line.New(cfg, log)
	poll := bus.New(cfg, []config.Device{device}, l, func(batch []point.Sample) {
		if batch[0].Quality == point.Good {
			reads.Add(1)
		} else {
			bad.Add(1)
		}
	}, log)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 2)
	go func() { done <- l.Run(ctx) }()    // ends with ctx
	go func() { done <- poll.Run(ctx) }() // ends with ctx
	err := pause(ctx, 200*time.Millisecond)
	n, begin := reads.Load(), time.Now()
	if err == nil {
		err = pause(ctx, d)
	}
	rate := float64(reads.Load()-n) / time.Since(begin).Seconds()
	cancel()
	<-done
	<-done
	if err == nil && bad.Load() > 0 {
		err = fmt.Errorf("%d reads of the libmodbus server failed", bad.Load())
	}
	return rate, err
}
