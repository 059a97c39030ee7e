package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fieldgate/internal/modbus"
	"fieldgate/internal/simulate"
)

// bus is devices that are silent for as long as a line would wait when nobody
// has the unit id.
type bus struct {
	simulate.Devices
	timeout time.Duration
}

func (b bus) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	resp, err := b.Devices.Do(ctx, unit, req)
	if errors.Is(err, modbus.ErrNoResponse) {
		time.Sleep(b.timeout)
	}
	return resp, err
}

// searched returns a function for Search.Run, and what it was called with:
// "1 ok Acme X100, 2 ok".
func searched() (each func(Found) error, got func() string) {
	var texts []string
	return func(f Found) error {
			text := fmt.Sprintf("%d %s", f.Unit, f.Answer)
			for _, fact := range f.Identity {
				text += fmt.Sprintf(" (%s: %s)", fact.Name, fact.Text)
			}
			texts = append(texts, text)
			return nil
		}, func() string {
			return strings.Join(texts, ", ")
		}
}

// TestSearch finds every kind of unit, at the pace that was asked for.
func TestSearch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout, between, latency = 300 * time.Millisecond, 20 * time.Millisecond, 5 * time.Millisecond
		known := device(2, 4, 0)
		known.Identity.Objects = []modbus.Object{{ID: 0, Value: []byte("Acme")}, {ID: 1, Value: []byte("X100")}, {ID: 2, Value: []byte{0xFF, 1}}}
		old := device(4, 4, 0)
		old.Identity.ServerID = []byte("ACME-1")
		elsewhere := device(5, 4, 100) // refuses the register that is asked for
		elsewhere.Identity = known.Identity
		broken := device(7, 4, 0)
		broken.Faults = []simulate.Fault{{Kind: simulate.CRC}}
		anonymous := device(255, 4, 0)
		var devices simulate.Devices
		for _, s := range []simulate.Settings{known, old, elsewhere, broken, anonymous} {
			s.Latency = latency
			devices = append(devices, simulate.New(s))
		}
		ep := &tap{next: bus{devices, timeout}}
		each, got := searched()
		start := time.Now()
		s := Search{First: 1, Last: 255, Table: modbus.HoldingRegisters, Address: 2, Pause: between}
		if err := s.Run(t.Context(), ep, each); err != nil {
			t.Fatal(err)
		}
		want := strings.Join([]string{
			"2 ok (vendor name: Acme) (product code: X100) (revision: ff01)",
			"4 ok (server id: ACME-1)",
			"5 simulate: device5: exception 2: illegal data address (vendor name: Acme) (product code: X100) (revision: ff01)",
			"7 simulate: device7: bad response",
			"255 ok",
		}, ", ")
		want = strings.ReplaceAll(want, "simulate: device5: ", "") // only the exception is told
		if got() != want {
			t.Errorf("found %s\nwant  %s", got(), want)
		}
		if ep.least() != between {
			t.Errorf("%v between two requests, want %v", ep.least(), between)
		}
		// One request an id; one more to 2 and 5, and two to 4 and 255.
		requests := 255 + 1 + 1 + 2 + 2
		answers := 255 - 250 + 6
		if want := time.Duration(requests-1)*between + time.Duration(answers)*latency + 250*timeout; len(ep.reqs) != requests || time.Since(start) != want {
			t.Errorf("%d requests in %v, want %d in %v", len(ep.reqs), time.Since(start), requests, want)
		}
	})
}

func TestSearchEnds(t *testing.T) {
	s := Search{First: 1, Last: 3, Table: modbus.InputRegisters, Address: 9}
	t.Run("no wire", func(t *testing.T) {
		ep := &tap{instead: once(1, nil, modbus.ErrNotConnected)}
		each, got := searched()
		err := s.Run(t.Context(), ep, each)
		var request *Error
		if !errors.As(err, &request) || err.Error() != "unit 1: read input 9: not connected" || request.Function != modbus.ReadInputRegisters || got() != "" {
			t.Errorf("found %q, %v", got(), err)
		}
	})
	t.Run("an invalid request", func(t *testing.T) {
		ep := &tap{instead: once(1, nil, modbus.ErrInvalidRequest)}
		if err := s.Run(t.Context(), ep, nil); !errors.Is(err, modbus.ErrInvalidRequest) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("enough", func(t *testing.T) {
		enough := errors.New("enough")
		ep := &tap{next: simulate.New(simulate.Settings{})}
		if err := s.Run(t.Context(), ep, func(Found) error { return enough }); err != enough || len(ep.reqs) != 3 {
			t.Errorf("error %v after %d requests", err, len(ep.reqs))
		}
	})
	t.Run("stopped", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			// While waiting for an answer, then in each of the pauses.
			for _, at := range []time.Duration{50 * time.Millisecond, 120 * time.Millisecond, 320 * time.Millisecond, 520 * time.Millisecond} {
				ctx, cancel := context.WithTimeout(t.Context(), at)
				ep := &tap{next: simulate.New(simulate.Settings{Latency: 100 * time.Millisecond})}
				each, _ := searched()
				s.Pause = 100 * time.Millisecond
				start := time.Now()
				if err := s.Run(ctx, ep, each); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != at {
					t.Errorf("stopped after %v, at %v with %v", at, time.Since(start), err)
				}
				cancel()
			}
		})
	})
}

// TestScan finds what is there, with few requests.
func TestScan(t *testing.T) {
	for _, tt := range []struct {
		name     string
		from     []uint16 // eight registers each
		typ      string
		addr     uint16
		count    int
		got      string
		requests int
	}{
		{"all", []uint16{0, 8}, "uint16", 4, 6, "4=4 5=5 6=6 7=7 8=8 9=9", 1},
		{"none", []uint16{0}, "uint16", 100, 20, "", 24},
		{"the last ones", []uint16{65528}, "uint16", 65526, 10, "65528=65528 65529=65529 65530=65530 65531=65531 65532=65532 65533=65533 65534=65534 65535=65535", 9},
		{"two islands", []uint16{4, 30}, "uint16", 0, 60,
			"4=4 5=5 6=6 7=7 8=8 9=9 10=10 11=11 30=30 31=31 32=32 33=33 34=34 35=35 36=36 37=37", 64},
		{"whole values only", []uint16{4}, "uint32", 1, 6, "5=327686 7=458760 9=589834", 7},
		{"wider than what is left", []uint16{4}, "float64", 4, 3, "4=5.5632e-309 8=1.1126650000000003e-308", 6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ep := &tap{next: simulate.New(device(1, 8, tt.from...))}
			each, got := collect()
			if err := (Unit{ep, 1}).Scan(t.Context(), holding(tt.addr, tt.typ), tt.count, 0, each); err != nil {
				t.Fatal(err)
			}
			if tt.typ == "float64" { // which values does not matter
				tt.got = got()
				if n := strings.Count(tt.got, "="); n != 2 {
					t.Errorf("%d values, want 2", n)
				}
			}
			if got() != tt.got || len(ep.reqs) > tt.requests {
				t.Errorf("found %q with %d requests, want %q with %d at most\n%s", got(), len(ep.reqs), tt.got, tt.requests, ep.asked())
			}
		})
	}
}

// TestScanBlocks: whole areas cost few requests, and a device with a limit of its
// own is met.
func TestScanBlocks(t *testing.T) {
	for _, tt := range []struct{ limit, requests int }{{0, 17}, {10, 249}} {
		s := device(1, 1000, 0)
		s.MaxRegs = tt.limit
		ep := &tap{next: simulate.New(s)}
		next := uint16(0)
		err := Unit{ep, 1}.Scan(t.Context(), holding(0, "uint16"), 1000, 0, func(r Reading) error {
			if r.Point.Address != next || r.Raw[0] != next {
				t.Errorf("register %d holds %v, want %d", r.Point.Address, r.Raw, next)
			}
			next++
			return nil
		})
		if err != nil || next != 1000 || len(ep.reqs) > tt.requests {
			t.Errorf("limit %d: %d registers with %d requests, %v, want 1000 with %d", tt.limit, next, len(ep.reqs), err, tt.requests)
		}
	}
}

// TestScanSilent: some devices are silent about what they lack; one that never
// answers is not there.
func TestScanSilent(t *testing.T) {
	shy := simulate.New(device(1, 4, 0, 40))
	ep := &tap{next: endpoint(func(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
		resp, err := shy.Do(ctx, unit, req)
		if errors.Is(err, modbus.IllegalDataAddress) {
			err = modbus.ErrNoResponse
		}
		return resp, err
	})}
	each, got := collect()
	if err := (Unit{ep, 1}).Scan(t.Context(), holding(0, "uint16"), 50, 0, each); err != nil || got() != "0=0 1=1 2=2 3=3 40=40 41=41 42=42 43=43" {
		t.Errorf("found %q, %v", got(), err)
	}
	ep.reqs = nil
	err := Unit{ep, 1}.Scan(t.Context(), holding(100, "uint16"), 50, 0, each)
	if !errors.Is(err, modbus.ErrNoResponse) || err.Error() != "unit 1: read holding 100+4: no response" || len(ep.reqs) != 3 {
		t.Errorf("a device that is not there: %v after %d requests", err, len(ep.reqs))
	}
}

type endpoint func(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error)

func (e endpoint) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	return e(ctx, unit, req)
}

func TestScanEnds(t *testing.T) {
	d := simulate.New(device(1, 8, 0))
	for _, refused := range []error{modbus.ServerDeviceBusy, modbus.IllegalFunction, modbus.ErrBadResponse, modbus.ErrNotConnected} {
		each, got := collect()
		err := Unit{&tap{next: d, instead: once(2, nil, refused)}, 1}.Scan(t.Context(), holding(0, "uint16"), 20, 0, each)
		var request *Error
		if !errors.Is(err, refused) || !errors.As(err, &request) || request.What != "read holding 0+8" || got() != "" {
			t.Errorf("%v: %v, found %q", refused, err, got())
		}
	}
	// A register that makes the device fail is one that it lacks.
	each, got := collect()
	if err := (Unit{&tap{next: d, instead: once(1, nil, modbus.ServerDeviceFailure)}, 1}).Scan(t.Context(), holding(0, "uint16"), 2, 0, each); err != nil || got() != "0=0 1=1" {
		t.Errorf("after exception 4: found %q, %v", got(), err)
	}
	enough := errors.New("enough")
	if err := (Unit{d, 1}).Scan(t.Context(), holding(0, "uint16"), 4, 0, func(Reading) error { return enough }); err != enough {
		t.Errorf("error %v, want that of each", err)
	}
}

func TestScanPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const between = 20 * time.Millisecond
		s := device(1, 8, 0, 100)
		s.Latency = 5 * time.Millisecond
		ep := &tap{next: simulate.New(s)}
		each, _ := collect()
		start := time.Now()
		if err := (Unit{ep, 1}).Scan(t.Context(), holding(0, "uint16"), 120, between, each); err != nil {
			t.Fatal(err)
		}
		n := len(ep.reqs)
		if want := time.Duration(n)*s.Latency + time.Duration(n-1)*between; ep.least() != between || time.Since(start) != want {
			t.Errorf("%d requests in %v with %v between two, want %v with %v", n, time.Since(start), ep.least(), want, between)
		}
		ctx, cancel := context.WithTimeout(t.Context(), s.Latency+between/2)
		defer cancel()
		start = time.Now()
		if err := (Unit{ep, 1}).Scan(ctx, holding(0, "uint16"), 120, between, each); err != context.DeadlineExceeded || time.Since(start) != s.Latency+between/2 {
			t.Errorf("stopped in a pause after %v with %v", time.Since(start), err)
		}
	})
}
