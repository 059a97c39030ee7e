package bus_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/bus"
	"fieldgate/internal/config"
	"fieldgate/internal/line"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
	"fieldgate/internal/simulate"
)

// Real lines, with simulated devices at their other end that do everything wrong
// at times: what is emitted as good is right, all of it is read, written values
// stay, and the device that is away for a while comes back.
func TestRealLines(t *testing.T) {
	const away = 1200 * time.Millisecond
	faults := func(more ...simulate.Fault) []simulate.Fault {
		return append(more,
			simulate.Fault{Kind: simulate.CRC, Probability: 0.01},
			simulate.Fault{Kind: simulate.Silent, Probability: 0.01},
			simulate.Fault{Kind: simulate.Late, Probability: 0.01, Delay: 40 * time.Millisecond},
			simulate.Fault{Kind: simulate.Refuse, Probability: 0.01},
			simulate.Fault{Kind: simulate.WrongUnit, Probability: 0.01},
			simulate.Fault{Kind: simulate.Split, Probability: 0.01},
			simulate.Fault{Kind: simulate.Twice, Probability: 0.01},
		)
	}
	devices := func() simulate.Devices {
		return simulate.Devices{
			simulate.New(simulate.Settings{Name: "d1", Unit: 1, Fill: true, Seed: 1, Faults: faults()}),
			simulate.New(simulate.Settings{Name: "d2", Unit: 2, Fill: true, Seed: 2, Holes: []simulate.Span{{Table: modbus.HoldingRegisters, Address: 7, Count: 3}}}),
			simulate.New(simulate.Settings{Name: "d3", Unit: 3, Fill: true, Seed: 3, Faults: faults(simulate.Fault{Kind: simulate.Silent, To: away})}),
		}
	}
	for _, tt := range []struct {
		name string
		sim  *simulate.Bus
		cfg  config.Bus
	}{
		{
			"rtu", &simulate.Bus{Kind: config.Serial, Framing: modbus.FramingRTU, Mode: config.SerialMode{Baud: 115200, DataBits: 8, Parity: 'N', StopBits: 1}},
			config.Bus{Kind: config.Serial, Framing: modbus.FramingRTU, InFlight: 1},
		},
		{"tcp, in turn", &simulate.Bus{Kind: config.TCP, Address: "127.0.0.1:0"}, config.Bus{Kind: config.TCP, InFlight: 1}},
		{"tcp, in flight", &simulate.Bus{Kind: config.TCP, Address: "127.0.0.1:0"}, config.Bus{Kind: config.TCP, InFlight: 8}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.sim.Name, tt.sim.Devices = "bus", devices()
			plant := &simulate.Plant{Buses: []*simulate.Bus{tt.sim}}
			if err := plant.Listen(); err != nil {
				t.Fatal(err)
			}
			cfg := tt.cfg
			cfg.Name, cfg.Address, cfg.Mode = "bus", tt.sim.Addr(), tt.sim.Mode
			cfg.Timeout, cfg.ConnectTimeout, cfg.Gap, cfg.Retries = 100*time.Millisecond, time.Second, config.GapAuto, 1
			unit := make(map[point.ID]modbus.UnitID)
			where := make(map[point.ID]point.Point)
			var devices []config.Device
			for u := modbus.UnitID(1); u <= 3; u++ {
				d := config.Device{
					Name: fmt.Sprint("d", u), Unit: u, Timeout: cfg.Timeout, Retries: 1, Gap: config.GapAuto,
					MaxRegs: 125, MaxBits: 2000, Holes: config.HolesAuto, BackoffMin: 300 * time.Millisecond, BackoffMax: time.Minute,
				}
				for _, addr := range []uint16{0, 1, 2, 5, 12, 14, 300} {
					for _, table := range []modbus.Table{modbus.HoldingRegisters, modbus.InputRegisters} {
						p := point.Point{ID: point.ID(fmt.Sprintf("d%d.%v%d", u, table, addr)), Table: table, Address: addr, Type: point.Uint16}
						d.Points = append(d.Points, p)
						unit[p.ID], where[p.ID] = u, p
					}
				}
				w := point.Point{ID: point.ID(fmt.Sprintf("d%d.w", u)), Table: modbus.HoldingRegisters, Address: 400, Type: point.Uint32, Write: &point.Write{}}
				d.Points = append(d.Points, w)
				devices = append(devices, d)
			}

			var mu sync.Mutex
			good := make(map[point.ID]int)
			written := make(map[point.ID]int64)
			emit := func(samples []point.Sample) {
				mu.Lock()
				defer mu.Unlock()
				for _, s := range samples {
					if s.Time == s.Time.Round(0) {
						t.Errorf("%v has no monotonic reading", s)
					}
					if s.Quality != point.Good {
						continue
					}
					good[s.ID]++
					v, _ := s.Value.Int64()
					if p, ok := where[s.ID]; ok {
						if want := simulate.Pattern(unit[s.ID], p.Table, p.Address); v != int64(want) {
							t.Errorf("%v, want %d", s, want)
						}
					} else if last := written[s.ID]; last > 0 && v < last {
						t.Errorf("%v after %d was written", s, last)
					}
				}
			}
			log := slog.New(slog.DiscardHandler)
			l := line.New(cfg, log)
			b := bus.New(cfg, devices, l, emit, log)
			ctx, cancel := context.WithCancel(context.Background())
			var all sync.WaitGroup
			for _, run := range []func(context.Context) error{plant.Run, l.Run, b.Run} {
				all.Go(func() {
					if err := run(ctx); err != nil {
						t.Error(err)
					}
				})
			}
			stop := sync.OnceFunc(func() {
				cancel()
				all.Wait()
			})
			defer stop()

			confirmed := 0
			begin := time.Now()
			for n := int64(1); time.Since(begin) < 2500*time.Millisecond || confirmed < 20; n++ {
				if time.Since(begin) > time.Minute {
					t.Fatalf("only %d writes were confirmed", confirmed)
				}
				for u := range 2 {
					id := point.ID(fmt.Sprintf("d%d.w", u+1))
					if b.Write(ctx, id, point.IntValue(n)) == nil {
						mu.Lock()
						written[id] = n
						mu.Unlock()
						confirmed++
					}
				}
				time.Sleep(10 * time.Millisecond)
			}
			// The device that was away is read again soon.
			deadline := time.Now().Add(30 * time.Second)
			for {
				mu.Lock()
				missing := 0
				for id := range where {
					if good[id] == 0 {
						missing++
					}
				}
				mu.Unlock()
				if missing == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%d points were never read: %+v", missing, b.Status())
				}
				time.Sleep(5 * time.Millisecond)
			}
			stop()
			s := b.Status()
			if d := s.Devices[1]; d.Refused != nil || !d.Split {
				t.Errorf("d2: refused %q, split %v", d.Refused, d.Split)
			}
			if s.Counters.Requests < 100 || s.Counters.Errors == 0 {
				t.Errorf("counters %+v", s.Counters)
			}
		})
	}
}
