package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// as returns a context of a client.
func as(t *testing.T, client string) context.Context {
	return modbus.WithClient(t.Context(), client)
}

// A request of somebody else reaches any unit, and its failure is no device's.
func TestPassReachesAnyUnit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 7).baud(19200)
		w.turnaround = 2 * time.Millisecond
		r := start(t, serialBus(19200), []config.Device{dev("a", 1, registers(0, 2, second)...)}, w)
		time.Sleep(100 * time.Millisecond)
		r.take()
		resp, err := modbus.Do(as(t, "tool"), r.bus, 7, modbus.ReadRequest(modbus.HoldingRegisters, 5, 2))
		if err != nil || fmt.Sprintf("% x", []byte(resp)) != "03 04 03 ed 03 ee" {
			t.Errorf("% x, %v", []byte(resp), err)
		}
		if _, err := modbus.Do(as(t, "tool"), r.bus, 7, modbus.WriteRegisterRequest(5, 42)); err != nil {
			t.Error(err)
		}
		w.set(func() {
			w.units[1].refuse = func(_ modbus.Table, addr, _ int) modbus.Exception {
				if addr >= 100 {
					return modbus.IllegalDataAddress
				}
				return 0
			}
		})
		if _, err := modbus.ReadRegisters(as(t, "tool"), r.bus, 1, modbus.HoldingRegisters, 100, 1); !errors.Is(err, modbus.IllegalDataAddress) {
			t.Error(err)
		}
		for _, unit := range []modbus.UnitID{9, 9, 9} { // nobody there
			begun := time.Now()
			if _, err := modbus.ReadRegisters(as(t, "tool"), r.bus, unit, modbus.HoldingRegisters, 0, 1); !errors.Is(err, modbus.ErrNoResponse) {
				t.Error(err)
			}
			if took := time.Since(begun); took < 500*time.Millisecond || took > 700*time.Millisecond {
				t.Errorf("given up after %v", took)
			}
		}
		w.set(func() { w.units[1].silent = func(_ modbus.Table, addr, _ int) bool { return addr >= 100 } })
		if _, err := modbus.ReadRegisters(as(t, "tool"), r.bus, 1, modbus.HoldingRegisters, 100, 1); !errors.Is(err, modbus.ErrNoResponse) {
			t.Error(err)
		}
		if states, logged := r.take(); states != nil || logged != nil {
			t.Errorf("states %v, log %v", states, logged)
		}
		if d := r.device("a"); d.State != Online || d.Counters.Errors != 0 {
			t.Errorf("%+v", d)
		}
		if s := r.bus.Status(); s.Passed != 7 {
			t.Errorf("%d passed", s.Passed)
		}
	})
}

// Requests of others take turns with polls on a line read back to back, clients
// with each other; our writes go before them.
func TestPassIsFair(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2, 3).baud(19200)
		w.turnaround = 2 * time.Millisecond
		d := dev("a", 1, append(registers(0, 2, point.Fastest), writable(every(holding(50, point.Uint16), point.Never), 0))...)
		r := start(t, serialBus(19200), []config.Device{d}, w)
		time.Sleep(time.Second)
		begun := time.Since(w.started)
		var all sync.WaitGroup
		for i := range 12 { // one client with many connections, and one with one
			client := modbus.UnitID(2)
			if i == 11 {
				client = 3
			}
			all.Go(func() {
				for range 5 {
					if _, err := modbus.ReadRegisters(as(t, fmt.Sprint(client)), r.bus, client, modbus.HoldingRegisters, 0, 1); err != nil {
						t.Error(err)
					}
				}
			})
		}
		time.Sleep(10 * time.Millisecond)
		if err := r.bus.Write(t.Context(), d.Points[2].ID, point.IntValue(1)); err != nil {
			t.Error(err)
		}
		all.Wait()
		var order strings.Builder
		for _, q := range w.requests(begun) {
			switch {
			case q.req.Function().Writes():
				order.WriteByte('w')
			case q.unit == 1:
				order.WriteByte('.')
			default:
				order.WriteByte('0' + byte(q.unit))
			}
		}
		got := order.String()
		if i := strings.IndexByte(got, 'w'); i < 0 || i > 4 {
			t.Errorf("the write waited: %s", got)
		}
		got = strings.Replace(got, "w", "", 1)
		if !strings.Contains(got, "3.2.3.2.3.2.3.2.3.2.2.") || strings.Contains(got, "22") || strings.Contains(got, "23") {
			t.Errorf("turns: %s", got)
		}
	})
}

// Between the steps of a write of ours nothing goes to its device, and what a
// write of somebody else touches is not emitted as it was before.
func TestPassAndWrites(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		w.turnaround = 5 * time.Millisecond
		d := dev("a", 1, append(registers(0, 4, point.Fastest), writable(every(bit(20, 4, 1), point.Never), 6))...)
		cfg := tcpBus(4)
		r := start(t, cfg, []config.Device{d}, w)
		time.Sleep(time.Second)
		for n := range uint16(50) {
			before := time.Since(w.started) + 1 // what is emitted at this very moment may come first
			if _, err := modbus.Do(as(t, "tool"), r.bus, 1, modbus.WriteRegisterRequest(2, n)); err != nil {
				t.Fatal(err)
			}
			ended := time.Since(w.started)
			time.Sleep(30 * time.Millisecond)
			for _, b := range r.since(before) {
				for _, s := range b.samples {
					if s.ID == d.Points[2].ID && (b.at < ended || !point.Equal(s.Value, point.IntValue(int64(n)))) {
						t.Fatalf("%v emitted at %v, the write of %d ended at %v", s.Value, b.at, n, ended)
					}
				}
			}
		}
		begun := time.Since(w.started)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for range 10 {
					if _, err := modbus.Do(as(t, "tool"), r.bus, 1, modbus.WriteRegisterRequest(20, 0xFF)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for range 10 {
			if err := r.bus.Write(t.Context(), d.Points[4].ID, point.BoolValue(true)); err != nil {
				t.Error(err)
			}
		}
		all.Wait()
		reading := false
		for _, q := range w.requests(begun) {
			tt, addr, _, _ := q.req.Span()
			if tt != modbus.HoldingRegisters || addr != 20 {
				continue
			}
			if reading && fmt.Sprintf("% x", []byte(q.req)) != "06 00 14 00 ff" && q.req.Function() != modbus.WriteSingleRegister {
				t.Errorf("between read and write back: % x", []byte(q.req))
			}
			reading = q.req.Function() == modbus.ReadHoldingRegisters
		}
	})
}

// When all places are taken, a client that has fewer than another gets one of that
// one's: half of them each, where two want as many as they can have.
func TestPassPlacesAreShared(t *testing.T) {
	bubble(t, func(t *testing.T) {
		cfg := tcpBus(2)
		cfg.Timeout = time.Minute
		r := start(t, cfg, nil, newWire())
		tool, other := make(chan error, 100), make(chan error, 100)
		ask := func(name string, times int, results chan error) {
			for range times {
				go func() { // ends with its answer
					_, err := modbus.ReadRegisters(as(t, name), r.bus, 9, modbus.HoldingRegisters, 0, 1)
					results <- err
				}()
			}
			synctest.Wait()
		}
		refused := func(name string, results chan error, want int) {
			t.Helper()
			if len(results) != want {
				t.Errorf("%d requests of %s have ended, want %d", len(results), name, want)
			}
			for range len(results) {
				if err := <-results; !errors.Is(err, modbus.ServerDeviceBusy) {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		ask("tool", cfg.InFlight, tool) // those are on the wire
		ask("tool", maxPasses, tool)
		refused("tool", tool, 0)
		ask("tool", 3, tool)
		refused("tool", tool, 3)
		ask("other", maxPasses, other)
		refused("tool", tool, maxPasses/2)
		refused("other", other, maxPasses/2)
		time.Sleep(passPatience)
		synctest.Wait()
		refused("tool", tool, maxPasses/2)
		refused("other", other, maxPasses/2)
		r.stop()
	})
}

// What cannot be sent in time is refused as busy, and so is what comes when there
// is a queue already; a client that leaves frees its place.
func TestPassIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire()
		cfg := serialBus(19200)
		cfg.Timeout = time.Minute
		r := start(t, cfg, nil, w)
		ask := func(ctx context.Context) error {
			_, err := modbus.ReadRegisters(ctx, r.bus, 9, modbus.HoldingRegisters, 0, 1)
			return err
		}
		results := make(chan error, 100)
		for range 1 + maxPasses {
			go func() { results <- ask(as(t, "tool")) }() // ends with its answer
		}
		synctest.Wait()
		if err := ask(as(t, "other")); !errors.Is(err, modbus.ServerDeviceBusy) {
			t.Errorf("one too many: %v", err)
		}
		time.Sleep(passPatience)
		synctest.Wait()
		busy := 0
		for range maxPasses {
			if errors.Is(<-results, modbus.ServerDeviceBusy) {
				busy++
			}
		}
		if busy != maxPasses {
			t.Errorf("%d of %d were told it is busy", busy, maxPasses)
		}
		ctx, cancel := context.WithCancel(as(t, "tool"))
		go func() { results <- ask(ctx) }() // ends with ctx
		synctest.Wait()
		cancel()
		if err := <-results; !errors.Is(err, context.Canceled) || errors.Is(err, modbus.ErrNoResponse) {
			t.Errorf("a client that left: %v", err)
		}
		time.Sleep(time.Minute)
		if err := <-results; !errors.Is(err, modbus.ErrNoResponse) {
			t.Errorf("the one on the wire: %v", err)
		}
		w.set(func() { w.down = true })
		for range 3 {
			if err := ask(as(t, "tool")); !errors.Is(err, modbus.ErrNotConnected) {
				t.Errorf("without a wire: %v", err)
			}
		}
		r.stop()
		if err := ask(as(t, "tool")); !errors.Is(err, context.Canceled) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// While the polling of a device pauses, nothing is polled but the others, and
// nothing is said of its state.
func TestPause(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1, 2)
		w.turnaround = 5 * time.Millisecond
		a := dev("a", 1, append(registers(0, 2, point.Interval(100*time.Millisecond)), writable(every(holding(50, point.Uint16), point.Never), 0))...)
		b := dev("b", 2, registers(0, 2, point.Interval(100*time.Millisecond))...)
		r := start(t, tcpBus(1), []config.Device{a, b}, w)
		time.Sleep(time.Second)
		r.take()
		if err := r.bus.Pause("x", time.Minute); err == nil {
			t.Error("an unknown device pauses")
		}
		if err := r.bus.Pause("a", time.Minute); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		begun := time.Since(w.started)
		w.set(func() { w.units[1].dead = true })
		time.Sleep(30 * time.Second)
		if got := r.bus.Paused("a"); got < 29*time.Second || got > 30*time.Second {
			t.Errorf("%v left", got)
		}
		if n := r.good(begun); n["a"] != 0 || n["b"] < 500 {
			t.Errorf("read meanwhile: %v", n)
		}
		if slices.ContainsFunc(w.requests(begun), func(q request) bool { return q.unit == 1 }) {
			t.Error("it was asked")
		}
		w.set(func() { w.units[1].dead = false })
		if err := r.bus.Write(t.Context(), a.Points[2].ID, point.IntValue(1)); err != nil {
			t.Errorf("a write meanwhile: %v", err)
		}
		time.Sleep(31 * time.Second)
		if n := r.good(begun); n["a"] < 10 || r.bus.Paused("a") != 0 {
			t.Errorf("afterwards: %v, %v left", n, r.bus.Paused("a"))
		}
		if states, logged := r.take(); states != nil || len(logged) != 2 || !strings.Contains(logged[0], "polling pauses") || !strings.Contains(logged[1], "polling goes on") {
			t.Errorf("states %v, log %q", states, logged)
		}
		if err := r.bus.Pause("a", time.Hour); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := r.bus.Pause("a", 0); err != nil {
			t.Fatal(err)
		}
		again := time.Since(w.started)
		time.Sleep(time.Second)
		if n := r.good(again); n["a"] < 10 {
			t.Errorf("after an end before its time: %v", n)
		}
	})
}
