package bus

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// wireFake is a wire with devices that keeps time like a real one, in a
// synctest bubble. Unlike a real one it can be made to fail.
type wireFake struct {
	char       time.Duration // one character; 0: no time
	gap        time.Duration // before each frame
	turnaround time.Duration
	inFlight   int // what InFlight says

	mu      sync.Mutex
	units   map[modbus.UnitID]*unitFake
	down    bool
	log     []request
	under   int // requests under way
	most    int // of them at once
	started time.Time
}

// unitFake is one device: registers that hold their own address plus 1000
// unless they were written, and whatever ails it.
type unitFake struct {
	regs map[modbus.Table]map[uint16]uint16

	dead    bool
	slow    time.Duration                                             // more turn-around
	refuse  func(t modbus.Table, addr, n int) modbus.Exception        // 0: answer
	silent  func(t modbus.Table, addr, n int) bool                    // no answer to these
	before  func(req modbus.PDU) (modbus.PDU, error)                  // nil, nil: go on
	after   func(req modbus.PDU, resp modbus.PDU) (modbus.PDU, error) // has the last word
	onReads func(t modbus.Table, addr uint16, dst []uint16) (ok bool) // live values
}

// request is what the wire remembers.
type request struct {
	at   time.Duration
	unit modbus.UnitID
	req  modbus.PDU
	err  error
}

func newWire(units ...modbus.UnitID) *wireFake {
	w := &wireFake{units: make(map[modbus.UnitID]*unitFake), started: time.Now()}
	for _, u := range units {
		w.units[u] = &unitFake{regs: make(map[modbus.Table]map[uint16]uint16)}
	}
	return w
}

// baud makes the wire a serial line, 8N1.
func (w *wireFake) baud(baud int) *wireFake {
	w.char = 10 * time.Second / time.Duration(baud)
	w.gap = modbus.ClientSilence(baud)
	return w
}

func (w *wireFake) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *wireFake) InFlight() int { return w.inFlight }

func (w *wireFake) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	return w.DoTimeout(ctx, unit, req, time.Second, config.GapAuto)
}

func (w *wireFake) DoTimeout(ctx context.Context, unit modbus.UnitID, req modbus.PDU, timeout, gap time.Duration) (resp modbus.PDU, err error) {
	w.mu.Lock()
	u, down := w.units[unit], w.down
	n := len(w.log)
	w.log = append(w.log, request{at: time.Since(w.started), unit: unit, req: req})
	w.under++
	w.most = max(w.most, w.under)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.under--
		w.log[n].err = err
	}()
	if down {
		return nil, fmt.Errorf("%w: the cable is out", modbus.ErrNotConnected)
	}
	wait := func(d time.Duration) bool {
		if d <= 0 {
			return ctx.Err() == nil
		}
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
	if !wait(w.gap + time.Duration(len(req)+3)*w.char) {
		return nil, fmt.Errorf("%w: %w", modbus.ErrNoResponse, ctx.Err())
	}
	silence := func() (modbus.PDU, error) {
		if !wait(timeout) {
			return nil, fmt.Errorf("%w: %w", modbus.ErrNoResponse, ctx.Err())
		}
		return nil, fmt.Errorf("%w within %v", modbus.ErrNoResponse, timeout)
	}
	if unit == modbus.Broadcast {
		for _, u := range w.units {
			u.answer(w, req)
		}
		return nil, nil
	}
	if u == nil {
		return silence()
	}
	w.mu.Lock()
	dead, turn := u.dead, w.turnaround+u.slow
	w.mu.Unlock()
	if dead || turn > timeout {
		return silence()
	}
	if !wait(turn) {
		return nil, fmt.Errorf("%w: %w", modbus.ErrNoResponse, ctx.Err())
	}
	resp, err = u.answer(w, req)
	if err == modbus.ErrNoResponse {
		return silence()
	}
	if !wait(w.gap + time.Duration(len(resp)+3)*w.char) {
		return nil, fmt.Errorf("%w: %w", modbus.ErrNoResponse, ctx.Err())
	}
	return resp, err
}

func (u *unitFake) answer(w *wireFake, req modbus.PDU) (modbus.PDU, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if u.before != nil {
		if resp, err := u.before(req); resp != nil || err != nil {
			return resp, err
		}
	}
	if t, addr, n, ok := req.Span(); ok {
		if u.silent != nil && u.silent(t, int(addr), n) {
			return nil, modbus.ErrNoResponse
		}
		if u.refuse != nil {
			if e := u.refuse(t, int(addr), n); e != 0 {
				return nil, e
			}
		}
	}
	resp, err := modbus.Answer(req, u, modbus.Identity{})
	if u.after != nil {
		return u.after(req, resp)
	}
	return resp, err
}

// Read and Write are modbus.Memory; the wire is locked.
func (u *unitFake) Read(t modbus.Table, addr uint16, dst []uint16) error {
	if u.onReads != nil && u.onReads(t, addr, dst) {
		return nil
	}
	for i := range dst {
		v, ok := u.regs[t][addr+uint16(i)]
		if !ok && !t.Bits() {
			v = addr + uint16(i) + 1000
		}
		dst[i] = v
	}
	return nil
}

func (u *unitFake) Write(t modbus.Table, addr uint16, src []uint16) error {
	if u.regs[t] == nil {
		u.regs[t] = make(map[uint16]uint16)
	}
	for i, v := range src {
		u.regs[t][addr+uint16(i)] = v
	}
	return nil
}

// requests returns what went over the wire from a time on.
func (w *wireFake) requests(from time.Duration) []request {
	w.mu.Lock()
	defer w.mu.Unlock()
	i, _ := slices.BinarySearchFunc(w.log, from, func(r request, t time.Duration) int { return int(r.at - t) })
	return slices.Clone(w.log[i:])
}

// rig is a bus at work on a fake wire.
type rig struct {
	t    *testing.T
	bus  *Bus
	wire *wireFake
	stop func()

	mu      sync.Mutex
	batches []batch
	states  []string
	logged  []string
}

type batch struct {
	at      time.Duration // since the rig was made
	samples []point.Sample
}

// Handle and its like make a rig a slog.Handler that keeps the messages.
func (r *rig) Enabled(context.Context, slog.Level) bool { return true }
func (r *rig) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *rig) WithGroup(string) slog.Handler            { return r }
func (r *rig) Handle(_ context.Context, rec slog.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := rec.Message
	rec.Attrs(func(a slog.Attr) bool {
		s += " " + a.String()
		return true
	})
	r.logged = append(r.logged, s)
	return nil
}

// start runs a bus of devices on the wire until the test's bubble ends or stop.
func start(t *testing.T, cfg config.Bus, devices []config.Device, w *wireFake) *rig {
	t.Helper()
	r := &rig{t: t, wire: w}
	begun := time.Now()
	w.started = begun
	emit := func(samples []point.Sample) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.batches = append(r.batches, batch{time.Since(begun), slices.Clone(samples)})
	}
	r.bus = New(cfg, devices, w, emit, slog.New(r))
	r.bus.OnState = func(device string, s State) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.states = append(r.states, device+" "+s.String())
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := r.bus.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		<-ended
	})
	t.Cleanup(r.stop)
	return r
}

// since returns the batches emitted from a time on.
func (r *rig) since(from time.Duration) []batch {
	r.mu.Lock()
	defer r.mu.Unlock()
	var bs []batch
	for _, b := range r.batches {
		if b.at >= from {
			bs = append(bs, b)
		}
	}
	return bs
}

// good counts the good samples of each device from a time on.
func (r *rig) good(from time.Duration) map[string]int {
	n := make(map[string]int)
	for _, b := range r.since(from) {
		for _, s := range b.samples {
			if s.Quality != point.Bad {
				n[s.ID.Device()]++
			}
		}
	}
	return n
}

// last returns the newest sample of each point.
func (r *rig) last() map[point.ID]point.Sample {
	m := make(map[point.ID]point.Sample)
	for _, b := range r.since(0) {
		for _, s := range b.samples {
			m[s.ID] = s
		}
	}
	return m
}

func (r *rig) take() (states, logged []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	states, logged = r.states, r.logged
	r.states, r.logged = nil, nil
	return states, logged
}

func (r *rig) device(name string) DeviceStatus {
	for _, d := range r.bus.Status().Devices {
		if d.Name == name {
			return d
		}
	}
	r.t.Fatalf("no device %s", name)
	return DeviceStatus{}
}

// bubble runs a test in a bubble of its own time.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// serialBus is a serial bus, 8N1.
func serialBus(baud int) config.Bus {
	return config.Bus{
		Name: "line1", Kind: config.Serial, Framing: modbus.FramingRTU,
		Mode:    config.SerialMode{Baud: baud, DataBits: 8, Parity: 'N', StopBits: 1},
		Timeout: 500 * time.Millisecond, Gap: config.GapAuto, InFlight: 1, Retries: 1,
	}
}

func tcpBus(inFlight int) config.Bus {
	return config.Bus{
		Name: "plc", Kind: config.TCP, Timeout: 500 * time.Millisecond, ConnectTimeout: 5 * time.Second,
		Gap: config.GapAuto, InFlight: inFlight, Retries: 1,
	}
}

// device is a device with points, every one of them named after its place.
func dev(name string, unit modbus.UnitID, points ...point.Point) config.Device {
	d := config.Device{
		Name: name, Unit: unit, Timeout: 500 * time.Millisecond, Retries: 1, Gap: config.GapAuto,
		MaxRegs: 125, MaxBits: 2000, Holes: config.HolesAuto,
		BackoffMin: 5 * time.Second, BackoffMax: 5 * time.Minute,
		Points: slices.Clone(points),
	}
	for i := range d.Points {
		p := &d.Points[i]
		p.ID = point.ID(fmt.Sprintf("%s.%c%d", name, p.Table.String()[0], p.Address))
	}
	return d
}

// registers are n holding registers from addr on.
func registers(addr, n int, e point.Interval) []point.Point {
	var ps []point.Point
	for i := range n {
		ps = append(ps, every(holding(uint16(addr+i), point.Uint16), e))
	}
	return ps
}

const second = point.Interval(time.Second)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))
