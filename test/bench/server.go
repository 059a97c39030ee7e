package main

import (
	"bytes"
	"context"
	"fmt"
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

const serverAbout = `
Requests a second to a Modbus TCP server with 10,000 holding registers: ours, in a gateway that polls those 10,000 registers once
a second from a simulated device, a point each; and libmodbus's (test/peers/server.c), which has them in an array. The load is the
same program for all (test/peers/load.c): each client reads 10 or 125 registers somewhere, takes the answer and asks again at once.
Nine turns of a second each, one after the other; the ratio is the median of the turns'. The load, the server and the simulated
device share the machine's processors. Processor time is that of the server's process a request. The floor is a program in C
(test/peers/answer.c) that takes each request with one system call and answers it with another, the same whatever was asked, with
one thread or two: so much is had by a server that does nothing, beside a load that needs as long for a request as it does.
Tried by hand and left: with the load in two processes, and each connection served where its packets arrive (SO_INCOMING_CPU), two
threads in C reach 2.0 to 2.2 × libmodbus, our server with two goroutines 1.3 ×, bound to a processor each 1.4 ×. But two that are
asked without a pause leave none of two processors to the polling, so that one goroutine answers all clients of a listener.`

const serverRegisters = 10_000

// serverConfig polls registers from a device and serves them under the same
// numbers.
func serverConfig(device string, port int) string {
	var s strings.Builder
	fmt.Fprintf(&s, "site: { id: bench }\nbuses: { plc: { tcp: \"%s\" } }\ndevices:\n  d:\n    bus: plc\n    every: 1s\n    points:\n", device)
	for i := range serverRegisters {
		fmt.Fprintf(&s, "      p%d: { at: holding %d }\n", i, i)
	}
	fmt.Fprintf(&s, "servers:\n  - listen: tcp://127.0.0.1:%d\n    map:\n", port)
	for i := range serverRegisters {
		fmt.Fprintf(&s, "      holding %d: d.p%d\n", i, i)
	}
	return s.String()
}

func benchServer(ctx context.Context, b *bench) ([]row, error) {
	p := &simulate.Plant{Buses: []*simulate.Bus{{
		Name: "plc", Kind: config.TCP, Address: "127.0.0.1:0",
		Devices: simulate.Devices{simulate.New(simulate.Settings{Name: "d", Unit: modbus.UnitID(1), Fill: true})},
	}}}
	stop, err := plant(p)
	if err != nil {
		return nil, err
	}
	defer stop()
	ours, err := freePort()
	if err != nil {
		return nil, err
	}
	theirs, err := freePort()
	if err != nil {
		return nil, err
	}
	gw, err := b.gateway(serverConfig(p.Buses[0].Addr(), ours))
	if err != nil {
		return nil, err
	}
	defer gw.stop()
	peer, err := start(nil, filepath.Join(b.dir, "server"), "tcp", strconv.Itoa(theirs), strconv.Itoa(serverRegisters))
	if err != nil {
		return nil, err
	}
	defer peer.stop()
	for _, port := range []int{ours, theirs} {
		if err := dialled(port); err != nil {
			return nil, fmt.Errorf("%w: %s", err, gw.log.String())
		}
	}
	if err := pause(ctx, 3*time.Second); err != nil { // every register was read
		return nil, err
	}
	servers := []served{{"ours", ours, gw}, {"libmodbus", theirs, peer}}
	for threads := 1; threads <= 2; threads++ {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		p, err := start(nil, filepath.Join(b.dir, "answer"), strconv.Itoa(port), strconv.Itoa(threads))
		if err != nil {
			return nil, err
		}
		defer p.stop()
		if err := dialled(port); err != nil {
			return nil, err
		}
		servers = append(servers, served{fmt.Sprintf("the floor, threads: %d", threads), port, p})
	}
	var rows []row
	for _, c := range []serverCase{
		{"one client, 10 registers a read", 1, 10, 1, 0.9},
		{"one client, 125 registers a read", 1, 125, 1, 0.9},
		{"32 clients, 10 registers a read", 32, 10, 1, 2},
		{"32 clients, 125 registers a read", 32, 125, 1, 0},
		{"32 clients, 10 registers a read, 4 requests at once", 32, 10, 4, 2},
	} {
		among := servers
		if c.clients == 1 || c.depth > 1 {
			among = servers[:2] // nothing is missed there, and the floor takes one request at a time
		}
		fresh, err := b.compare(ctx, c, among)
		if err != nil {
			return nil, err
		}
		rows = append(rows, fresh...)
	}
	return rows, gw.alive()
}

// served is a server that is measured.
type served struct {
	what string
	port int
	p    *process
}

// serverCase is a load, and how much of libmodbus's rate ours shall reach; 0: it
// is only measured.
type serverCase struct {
	what                  string
	clients, count, depth int
	target                float64
}

// compare puts the same load on each server in turns: ours, libmodbus's, which is
// the measure, and others.
func (b *bench) compare(ctx context.Context, c serverCase, servers []served) ([]row, error) {
	const turns = 9
	ratios, rates := make([][]float64, len(servers)), make([][]float64, len(servers))
	spent, asked := make([]time.Duration, len(servers)), make([]float64, len(servers))
	for turn := range turns {
		for i, s := range servers {
			before, err := s.p.cpu()
			if err != nil {
				return nil, err
			}
			n, seconds, err := b.load(ctx, s.port, c.clients, c.count, c.depth)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", c.what, s.what, err)
			}
			after, err := s.p.cpu()
			if err != nil {
				return nil, err
			}
			rates[i] = append(rates[i], n/seconds)
			spent[i] += after - before
			asked[i] += n
		}
		for i := range servers {
			ratios[i] = append(ratios[i], rates[i][turn]/rates[1][turn])
		}
	}
	each := func(i int) float64 { return spent[i].Seconds() * 1e6 / asked[i] }
	var rows []row
	for i, s := range servers {
		if i == 1 {
			continue
		}
		ratio := median(ratios[i])
		r := row{what: c.what, measured: fmt.Sprintf("%.2f × (%.0f and %.0f requests/s, %.1f and %.1f µs each)",
			ratio, median(rates[i]), median(rates[1]), each(i), each(1)), ok: true}
		switch {
		case i > 1:
			r.what += ": " + s.what
		case c.target > 0:
			r.target, r.ok = fmt.Sprintf("≥ %.1f × libmodbus", c.target), ratio >= c.target
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// median returns the median of some figures.
func median(of []float64) float64 {
	of = slices.Clone(of)
	slices.Sort(of)
	return of[len(of)/2]
}

// load asks a server for a second and returns how many requests were answered.
func (b *bench) load(ctx context.Context, port, clients, count, depth int) (requests, seconds float64, err error) {
	cmd := exec.CommandContext(ctx, filepath.Join(b.dir, "load"), strconv.Itoa(port), strconv.Itoa(clients), strconv.Itoa(count),
		strconv.Itoa(serverRegisters), "1", strconv.Itoa(depth))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return 0, 0, fmt.Errorf("load: %w: %s", err, out.String())
	}
	var failures int
	if _, err := fmt.Sscan(out.String(), &requests, &failures, &seconds); err != nil || failures > 0 || requests == 0 {
		return 0, 0, fmt.Errorf("load says %q: %v", out.String(), err)
	}
	return requests, seconds, nil
}
