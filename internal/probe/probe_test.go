package probe

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

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
	"fieldgate/internal/simulate"
)

// device makes a simulated device with n constant registers from each of the
// addresses on; it refuses all others. Register a holds a.
func device(unit modbus.UnitID, n int, from ...uint16) simulate.Settings {
	s := simulate.Settings{Name: fmt.Sprintf("device%d", unit), Unit: unit, Strict: true}
	for _, addr := range from {
		for i := range uint16(n) {
			at := addr + i
			s.Points = append(s.Points, simulate.Point{
				Point: point.Point{ID: point.ID(fmt.Sprintf("%s.r%d", s.Name, at)), Table: modbus.HoldingRegisters, Address: at},
				Value: point.IntValue(int64(at)),
			})
		}
	}
	return s
}

// tap is an Endpoint that notes what goes through it. Its instead, if there is
// one, may answer in the next one's place.
type tap struct {
	next    modbus.Endpoint
	instead func(n int, req modbus.PDU) (resp modbus.PDU, err error, done bool) // n counts from 1

	mu   sync.Mutex
	reqs []modbus.PDU
	at   []time.Time // when they came
	end  []time.Time // when they were answered
}

func (l *tap) Do(ctx context.Context, unit modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	l.mu.Lock()
	l.reqs, l.at = append(l.reqs, slices.Clone(req)), append(l.at, time.Now())
	n := len(l.reqs)
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.end = append(l.end, time.Now())
		l.mu.Unlock()
	}()
	if l.instead != nil {
		if resp, err, done := l.instead(n, req); done {
			return resp, err
		}
	}
	return l.next.Do(ctx, unit, req)
}

// asked lists the requests as hexadecimal.
func (l *tap) asked() string {
	texts := make([]string, len(l.reqs))
	for i, r := range l.reqs {
		texts[i] = fmt.Sprintf("%x", []byte(r))
	}
	return strings.Join(texts, " ")
}

// least returns the shortest time between an answer and the next request.
func (l *tap) least() time.Duration {
	least := time.Hour
	for i := 1; i < len(l.at); i++ {
		least = min(least, l.at[i].Sub(l.end[i-1]))
	}
	return least
}

func holding(addr uint16, typ string) point.Point {
	p := point.Point{Table: modbus.HoldingRegisters, Address: addr}
	var err error
	if p.Type, p.Length, p.Layout, err = point.ParseType(typ); err != nil {
		panic(err)
	}
	return p
}

// collect returns a function for Read and Scan, and what it was called with:
// "10=10 11=11".
func collect() (each func(Reading) error, got func() string) {
	var texts []string
	return func(r Reading) error {
			texts = append(texts, fmt.Sprintf("%d=%v%s", r.Point.Address, r.Value, r.Reason))
			return nil
		}, func() string {
			return strings.Join(texts, " ")
		}
}

func TestError(t *testing.T) {
	silent := simulate.New(simulate.Settings{Unit: 7, Faults: []simulate.Fault{{Kind: simulate.Silent}}})
	_, err := Unit{silent, 7}.ReadSome(t.Context(), modbus.HoldingRegisters, 3, 2)
	var request *Error
	if !errors.As(err, &request) || request.Unit != 7 || request.Function != modbus.ReadHoldingRegisters || request.What != "read holding 3+2" {
		t.Errorf("error %#v", err)
	}
	if want := "unit 7: read holding 3+2: "; !strings.HasPrefix(err.Error(), want) || !errors.Is(err, modbus.ErrNoResponse) {
		t.Errorf("error %q does not begin with %q, or does not wrap ErrNoResponse", err, want)
	}
}

func TestUnanswered(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{modbus.ErrNoResponse, true},
		{modbus.ErrBadResponse, true},
		{modbus.ErrNotConnected, true},
		{modbus.GatewayPathUnavailable, true},
		{modbus.GatewayTargetNoResponse, true},
		{modbus.IllegalDataAddress, false},
		{modbus.ServerDeviceBusy, false},
		{modbus.ErrInvalidRequest, false},
		{context.Canceled, false},
		{nil, false},
	} {
		if got := Unanswered(tt.err); got != tt.want {
			t.Errorf("Unanswered(%v) = %v", tt.err, got)
		}
		if tt.err != nil && Unanswered(&Error{Err: fmt.Errorf("line: %w", tt.err)}) != tt.want {
			t.Errorf("Unanswered of an Error with %v is not %v", tt.err, tt.want)
		}
	}
}

func TestRead(t *testing.T) {
	for _, tt := range []struct {
		name  string
		p     point.Point
		count int
		got   string
		asked string
	}{
		{"one", holding(10, "uint16"), 1, "10=10", "03000a0001"},
		{"several", holding(10, "uint16"), 3, "10=10 11=11 12=12", "03000a0003"},
		{"wide", holding(10, "uint32"), 2, "10=655371 12=786445", "03000a0004"},
		{"no value", holding(10, "bcd16"), 1, "10=a BCD digit is above 9", "03000a0001"},
		{"the last one", holding(65535, "uint16"), 1, "65535=65535", "03ffff0001"},
		{"bits", point.Point{Table: modbus.Coils, Address: 3, Type: point.Bool}, 2, "3=0 4=0", "0100030002"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := device(1, 20, 0)
			s.Points = append(s.Points, device(1, 1, 65535).Points...)
			s.Strict = false
			ep := &tap{next: simulate.New(s)}
			each, got := collect()
			if err := (Unit{ep, 1}).Read(t.Context(), tt.p, tt.count, each); err != nil {
				t.Fatal(err)
			}
			if text := got(); text != tt.got || ep.asked() != tt.asked {
				t.Errorf("read %q by %s, want %q by %s", text, ep.asked(), tt.got, tt.asked)
			}
		})
	}
}

// TestReadMany: what no request holds comes in order, in as few as possible.
func TestReadMany(t *testing.T) {
	s := device(1, 300, 0)
	ep := &tap{next: simulate.New(s)}
	next := uint16(0)
	err := Unit{ep, 1}.Read(t.Context(), holding(0, "uint64"), 75, func(r Reading) error {
		if r.Point.Address != next || len(r.Raw) != 4 || r.Raw[0] != next || r.Raw[3] != next+3 {
			t.Errorf("reading %d of %v, want registers from %d on", r.Point.Address, r.Raw, next)
		}
		next += 4
		return nil
	})
	if want := "030000007c 03007c007c 0300f80034"; err != nil || next != 300 || ep.asked() != want {
		t.Errorf("read up to %d by %s, %v, want 300 by %s", next, ep.asked(), err, want)
	}
}

func TestReadEnds(t *testing.T) {
	ep := &tap{next: simulate.New(device(1, 130, 0))}
	u := Unit{ep, 1}
	enough := errors.New("enough")
	n := 0
	if err := u.Read(t.Context(), holding(0, "uint16"), 130, func(Reading) error { n++; return enough }); err != enough || n != 1 || len(ep.reqs) != 1 {
		t.Errorf("error %v after %d readings by %s", err, n, ep.asked())
	}
	// What was read before a refusal has been given.
	each, got := collect()
	err := u.Read(t.Context(), holding(100, "uint16"), 130, each)
	if !errors.Is(err, modbus.IllegalDataAddress) || err.Error() != "unit 1: read holding 100+125: simulate: device1: exception 2: illegal data address" || got() != "" {
		t.Errorf("read %q, %v", got(), err)
	}
}

func TestFits(t *testing.T) {
	for _, tt := range []struct {
		addr  uint16
		typ   string
		count int
		fits  bool
	}{
		{0, "uint16", 65536, true},
		{0, "uint16", 65537, false},
		{65535, "uint16", 1, true},
		{65535, "uint16", 2, false},
		{65534, "float32", 1, true},
		{65533, "float32", 2, false},
		{0, "float32", 1<<62 + 1, false}, // twice that is 2
		{0, "uint16", 1<<63 - 1, false},
	} {
		err := Fits(holding(tt.addr, tt.typ), tt.count)
		if (err == nil) != tt.fits {
			t.Errorf("Fits(%s at %d, %d) = %v", tt.typ, tt.addr, tt.count, err)
		}
		if tt.fits {
			continue
		}
		ep := &tap{}
		if err := (Unit{ep, 1}).Read(t.Context(), holding(tt.addr, tt.typ), tt.count, nil); err == nil || len(ep.reqs) > 0 {
			t.Errorf("Read of %d %s at %d: %v", tt.count, tt.typ, tt.addr, err)
		}
		if err := (Unit{ep, 1}).Scan(t.Context(), holding(tt.addr, tt.typ), tt.count, 0, nil); err == nil || len(ep.reqs) > 0 {
			t.Errorf("Scan of %d %s at %d: %v", tt.count, tt.typ, tt.addr, err)
		}
	}
}

func TestReadSome(t *testing.T) {
	u := Unit{simulate.New(device(1, 4, 0, 65534)), 1}
	for _, tt := range []struct {
		addr  uint16
		count int
		n     int // 0: refused
	}{
		{0, 4, 4}, {0, 1, 1}, {0, 9, 4}, {3, 4, 1}, {0, 1000, 4}, {65534, 9, 2}, {4, 4, 0},
	} {
		regs, err := u.ReadSome(t.Context(), modbus.HoldingRegisters, tt.addr, tt.count)
		if len(regs) != tt.n || (err == nil) != (tt.n > 0) {
			t.Errorf("ReadSome(%d, %d) = %v, %v, want %d registers", tt.addr, tt.count, regs, err, tt.n)
		}
		if tt.n == 0 && err.Error() != "unit 1: read holding 4+1: simulate: device1: exception 2: illegal data address" {
			t.Errorf("ReadSome(%d, %d): %v", tt.addr, tt.count, err)
		}
	}
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, tt := range []struct {
			d    time.Duration
			took time.Duration
			err  error
		}{
			{0, 0, nil},
			{-time.Second, 0, nil},
			{300 * time.Millisecond, 300 * time.Millisecond, nil},
			{time.Minute, 700 * time.Millisecond, context.DeadlineExceeded},
			{0, 0, context.DeadlineExceeded},
		} {
			start := time.Now()
			if err := pause(ctx, tt.d); err != tt.err || time.Since(start) != tt.took {
				t.Errorf("pause(%v) took %v, %v, want %v, %v", tt.d, time.Since(start), err, tt.took, tt.err)
			}
		}
	})
}
