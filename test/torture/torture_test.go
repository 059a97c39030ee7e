// Package torture is the proof that no value is ever wrong: real lines and buses
// against simulated devices that delay, split, corrupt, repeat, swap and lose
// answers at random, over every kind of wire, with every word of every answer
// compared with what the device held at that time.
//
// What counts as wrong: a sample with a value that its point did not have, in
// this device, between its request and its answer; a value older than one that
// was given out before; a value from before a write that was reported as done; a
// write reported as done that the device did not execute, or reported as refused
// or not sent that it did; and one that it executed twice.
//
// "make soak" runs the same a million polls long.
package torture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fieldgate/internal/bus"
	"fieldgate/internal/config"
	"fieldgate/internal/line"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
	"fieldgate/internal/simulate"
)

// TestTorture is the short form of TestSoakTorture.
func TestTorture(t *testing.T) { torture(t, wires(), 20_000, 60*time.Second) }

// seed returns the seed of everything random, which FIELDGATE_SEED sets.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := rand.Uint64()
	if text := os.Getenv("FIELDGATE_SEED"); text != "" {
		var err error
		if s, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("FIELDGATE_SEED: %v", err)
		}
	}
	t.Logf("FIELDGATE_SEED=%d", s)
	return s
}

// torture runs wires until polls reads have been answered with values, each wire
// its share of them.
func torture(t *testing.T, wires []wire, polls int, limit time.Duration) {
	random := rand.New(rand.NewPCG(seed(t), 0))
	plant, targets := build(wires, t.TempDir(), random)
	if err := plant.Listen(); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.LoadBytes("torture.yaml", []byte(configuration(wires, plant, targets)))
	if err != nil {
		plant.Close()
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { // ends with ctx
		if err := plant.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	runs := make([]*run, len(wires))
	total := 0
	for _, w := range wires {
		total += w.share
	}
	var busy sync.WaitGroup
	for i, w := range wires {
		r := newRun(t, w, cfg, targets[i], polls*w.share/total, random.Uint64())
		runs[i] = r
		busy.Go(func() { r.play(ctx, limit) })
	}
	begin := time.Now()
	busy.Wait()
	var sum tally
	for _, r := range runs {
		r.report(t)
		sum.add(&r.tally)
	}
	t.Logf("%v in %v", &sum, time.Since(begin).Round(time.Millisecond))
}

// tally counts what became of requests.
type tally struct {
	reads, values, failed         atomic.Int64 // requests that read, those answered with values, the others
	samples, bad, asked           atomic.Int64 // samples emitted, those without a value, reads on demand
	writes, done, unknown, denied atomic.Int64
	wrong                         atomic.Int64
}

func (c *tally) add(o *tally) {
	c.reads.Add(o.reads.Load())
	c.values.Add(o.values.Load())
	c.failed.Add(o.failed.Load())
	c.samples.Add(o.samples.Load())
	c.bad.Add(o.bad.Load())
	c.asked.Add(o.asked.Load())
	c.writes.Add(o.writes.Load())
	c.done.Add(o.done.Load())
	c.unknown.Add(o.unknown.Load())
	c.denied.Add(o.denied.Load())
	c.wrong.Add(o.wrong.Load())
}

func (c *tally) String() string {
	return fmt.Sprintf("%d polls (%d failed, %d on demand), %d samples (%d bad), %d writes (%d done, %d unknown, %d refused or not sent), %d WRONG",
		c.reads.Load(), c.failed.Load(), c.asked.Load(), c.samples.Load(), c.bad.Load(),
		c.writes.Load(), c.done.Load(), c.unknown.Load(), c.denied.Load(), c.wrong.Load())
}

// run is one wire under torture.
type run struct {
	wire
	tally
	t       *testing.T
	line    *line.Line
	bus     *bus.Bus
	targets []*target
	byUnit  map[modbus.UnitID]*target
	seed    uint64
	quota   int64
	took    time.Duration
	met     chan struct{} // closed when quota is
	urge    chan struct{} // a token now and then: somebody is to write or to ask
	log     *journal
}

// urges is how many polls there are for each write and each read on demand. After
// a lost answer the next request is mostly a poll, then, and the next poll of
// the same shape.
const urges = 25

func newRun(t *testing.T, w wire, cfg *config.Config, targets []*target, quota int, seed uint64) *run {
	r := &run{
		wire: w, t: t, targets: targets, byUnit: make(map[modbus.UnitID]*target),
		seed: seed, quota: int64(quota), met: make(chan struct{}), urge: make(chan struct{}), log: new(journal),
	}
	for _, d := range targets {
		r.byUnit[d.Unit()] = d
	}
	var devices []config.Device
	for _, d := range cfg.Devices {
		if d.Bus == w.name {
			devices = append(devices, d)
		}
	}
	i := slices.IndexFunc(cfg.Buses, func(b config.Bus) bool { return b.Name == w.name })
	log := slog.New(slog.DiscardHandler)
	r.line = line.New(cfg.Buses[i], log)
	r.line.SetTrace(r.log.note)
	r.bus = bus.New(cfg.Buses[i], devices, witness{r}, r.emit, log)
	return r
}

// play polls and writes until the quota is met.
func (r *run) play(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, d := range r.targets {
		if err := d.wind(ctx); err != nil {
			r.t.Error(err)
			return
		}
	}
	var all sync.WaitGroup
	all.Go(func() { _ = r.line.Run(ctx) }) // ends with ctx
	all.Go(func() { _ = r.bus.Run(ctx) })  // ends with ctx
	for i, d := range r.targets {
		random := rand.New(rand.NewPCG(r.seed, uint64(i)))
		all.Go(func() { r.write(ctx, d, random) }) // ends with ctx
	}
	random := rand.New(rand.NewPCG(r.seed, 99))
	all.Go(func() { r.ask(ctx, random) }) // ends with ctx
	begin := time.Now()
	select {
	case <-r.met:
		r.took = time.Since(begin)
	case <-ctx.Done():
		r.t.Errorf("%s: only %d of %d polls in %v\n%s", r.name, r.values.Load(), r.quota, limit, r.log.tail())
	}
	cancel()
	all.Wait()
}

// wind reads each counter once, which begins it.
func (t *target) wind(ctx context.Context) error {
	for i, f := range t.fields {
		if f.kind != counter {
			continue
		}
		for t.count(i) != f.low {
			_, _ = t.Do(ctx, t.Unit(), modbus.ReadRequest(f.table, f.addr, uint16(f.words)))
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		t.last[i] = f.low
	}
	return nil
}

// wrong reports a lie, with what was on the wire before it.
func (r *run) wrongf(format string, args ...any) {
	if r.wrong.Add(1) <= 3 {
		r.t.Errorf("%s: WRONG: %s\n%s", r.name, fmt.Sprintf(format, args...), r.log.tail())
	}
}

// witness is the line with every answer compared with the truth.
type witness struct{ *run }

func (w witness) InFlight() int { return w.line.InFlight() }

func (w witness) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	return w.DoTimeout(ctx, unit, req, 0, config.GapAuto)
}

func (w witness) DoTimeout(ctx context.Context, unit modbus.UnitID, req modbus.PDU, timeout, gap time.Duration) (modbus.PDU, error) {
	table, addr, n, reads := span(req)
	if !reads {
		return w.line.DoTimeout(ctx, unit, req, timeout, gap)
	}
	d := w.byUnit[unit]
	before := d.before(table, addr, n)
	resp, err := w.line.DoTimeout(ctx, unit, req, timeout, gap)
	if w.reads.Add(1)%urges == 0 {
		select {
		case w.urge <- struct{}{}:
		default:
		}
	}
	if err != nil {
		w.failed.Add(1)
		return resp, err
	}
	if err := d.check(table, addr, modbus.AppendValues(nil, req, resp), before); err != nil {
		w.wrongf("unit %d: % x answered by % x: %v", unit, []byte(req), []byte(resp), err)
	}
	if w.values.Add(1) == w.quota {
		close(w.met)
	}
	return resp, nil
}

// span returns what a request reads.
func span(req modbus.PDU) (t modbus.Table, addr uint16, n int, reads bool) {
	switch req.Function() {
	case modbus.ReadCoils:
		t = modbus.Coils
	case modbus.ReadDiscreteInputs:
		t = modbus.DiscreteInputs
	case modbus.ReadHoldingRegisters:
		t = modbus.HoldingRegisters
	case modbus.ReadInputRegisters:
		t = modbus.InputRegisters
	default:
		return 0, 0, 0, false
	}
	return t, uint16(req[1])<<8 | uint16(req[2]), int(req[3])<<8 | int(req[4]), true
}

// emit compares what the gateway's other half would be given.
func (r *run) emit(batch []point.Sample) {
	for _, s := range batch {
		d := r.target(s.ID)
		r.samples.Add(1)
		if s.Quality != point.Good {
			r.bad.Add(1)
			if !s.Value.IsZero() {
				r.wrongf("bad, but with a value: %v", s)
			}
			continue
		}
		if err := d.sample(s); err != nil {
			r.wrongf("%v: %v", s, err)
		}
	}
}

func (r *run) target(id point.ID) *target {
	for _, d := range r.targets {
		if id.Device() == d.name {
			return d
		}
	}
	return nil
}

// sample compares a good sample with the truth and with the samples before it.
func (t *target) sample(s point.Sample) error {
	i := t.byID[s.ID]
	f := t.fields[i]
	v, ok := number(s.Value)
	if !ok {
		return errors.New("no number")
	}
	switch f.kind {
	case static:
		if want := simulate.Pattern(t.Unit(), f.table, f.addr); v != uint64(want) {
			return fmt.Errorf("it is always %d", want)
		}
	case counter:
		if !f.newer(v, t.last[i], t.count(i)) {
			if t.atOnce(i, v, t.last[i]) {
				return nil
			}
			return fmt.Errorf("older than %d, which was emitted before", t.last[i])
		}
		t.last[i] = v
	case written:
		t.mu.Lock()
		from := t.floor[i]
		t.mu.Unlock()
		if f.bits != "" {
			v <<= 4
		}
		if !t.had(i, v, from) {
			return errors.New("from before a write that was reported as done")
		}
	}
	return nil
}

func number(v point.Value) (uint64, bool) {
	if on, ok := v.Bool(); ok {
		if on {
			return 1, true
		}
		return 0, true
	}
	return v.Uint64()
}

// ask reads points on demand.
func (r *run) ask(ctx context.Context, random *rand.Rand) {
	for r.urged(ctx) {
		d := r.targets[random.IntN(len(r.targets))]
		var ids []point.ID
		for range 1 + random.IntN(4) {
			ids = append(ids, d.fields[random.IntN(len(d.fields))].id(d.name))
		}
		r.asked.Add(1)
		limited, cancel := context.WithTimeout(ctx, time.Duration(random.IntN(400))*time.Millisecond)
		samples, _ := r.bus.Read(limited, ids...)
		cancel()
		for n, s := range samples {
			if s.ID != ids[n] {
				r.wrongf("asked for %v, given %v", ids[n], s)
			}
		}
	}
}

// write writes to a device, one thing after the other, and holds what is said of
// each write against what the device has executed.
func (r *run) write(ctx context.Context, d *target, random *rand.Rand) {
	next := make([]uint64, len(d.fields))
	refused := make(map[int][]uint64)
	for r.urged(ctx) {
		i := random.IntN(len(d.fields))
		for d.fields[i].kind != written {
			i = random.IntN(len(d.fields))
		}
		f := d.fields[i]
		next[i]++
		raw, v := next[i], point.UintValue(next[i])
		switch {
		case f.table.Bits():
			raw &= 1
			v = point.BoolValue(raw == 1)
		case f.bits != "":
			raw = raw & 0xFF << 4
			v = point.UintValue(raw >> 4)
		case f.words == 1:
			raw &= 0xFFFF
			v = point.UintValue(raw)
		}
		d.mu.Lock()
		from := len(d.history[i])
		d.mu.Unlock()
		limited, cancel := context.WithTimeout(ctx, time.Duration(5+random.IntN(2000))*time.Millisecond)
		err := r.bus.Write(limited, f.id(d.name), v)
		cancel()
		r.writes.Add(1)
		d.mu.Lock()
		at, times := 0, 0
		for n, h := range d.history[i][from:] {
			if h == raw {
				at = from + n
				times++
			}
		}
		if err == nil && times > 0 {
			d.floor[i] = at
		}
		d.mu.Unlock()
		switch {
		case err == nil:
			if r.done.Add(1); times != 1 {
				r.wrongf("%s: write of %v reported as done, executed %d times", f.id(d.name), v, times)
			}
		case errors.Is(err, modbus.ErrNoResponse):
			if r.unknown.Add(1); times > 1 {
				r.wrongf("%s: write of %v executed %d times: %v", f.id(d.name), v, times, err)
			}
		default:
			if r.denied.Add(1); times > 0 {
				r.wrongf("%s: write of %v executed %d times, but: %v", f.id(d.name), v, times, err)
			}
			refused[i] = append(refused[i], raw)
		}
	}
	// Not later, either.
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, values := range refused {
		if d.fields[i].bits != "" || d.fields[i].table.Bits() {
			continue // they come round again
		}
		for _, v := range values {
			if n := slices.Index(d.history[i], v); n >= 0 {
				r.wrongf("%s: %d was reported as refused or not sent, and written all the same", d.fields[i].id(d.name), v)
			}
		}
	}
}

// urged waits for the next turn.
func (r *run) urged(ctx context.Context) bool {
	select {
	case <-r.urge:
		return true
	case <-ctx.Done():
		return false
	}
}

// report says what came of a wire, and fails where some of it did not take part.
func (r *run) report(t *testing.T) {
	s := r.line.Stats()
	t.Logf("%-11s in %5.1f s %v; on the wire %d requests (%d fences), %d answers, %d timeouts, late %d, wrong id %d, wrong unit %d, wrong answer %d, checksum %d, header %d, partial %d, noise %d, echoes %d, connects %d, in flight %d",
		r.name, r.took.Seconds(), &r.tally, s.Requests, s.Fences, s.Responses, s.Timeouts, s.Late, s.UnknownID, s.WrongUnit, s.WrongAnswer, s.BadChecksum,
		s.BadHeader, s.Partial, s.Noise, s.Echoes, s.Connects, r.line.InFlight())
	// Over all devices of the wire: where nearly every answer is late, one of
	// them may be away for most of a short run.
	read := 0
	for _, d := range r.targets {
		for i, f := range d.fields {
			if f.kind == counter && d.last[i] != f.low {
				read++
			}
		}
	}
	if read < 3 {
		t.Errorf("%s: only %d counters of its %d devices were ever read", r.name, read, len(r.targets))
	}
}

// journal keeps the last frames on a wire.
type journal struct {
	mu    sync.Mutex
	last  [60]frame
	count int
}

type frame struct {
	dir  byte
	n    int
	b    [48]byte
	when time.Time
}

func (j *journal) note(dir byte, b []byte, at time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f := &j.last[j.count%len(j.last)]
	f.dir, f.when = dir, at
	f.n = copy(f.b[:], b)
	j.count++
}

func (j *journal) tail() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var s string
	for i := max(j.count-len(j.last), 0); i < j.count; i++ {
		f := &j.last[i%len(j.last)]
		s += fmt.Sprintf("  %s %c % x\n", f.when.Format("05.000000"), f.dir, f.b[:f.n])
	}
	return s
}
