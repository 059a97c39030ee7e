package line

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/modbus"
)

func TestBeginsWithin(t *testing.T) {
	const tx, unit = 0x0102, 7
	late := modbus.AppendTCP(nil, tx, unit, modbus.PDU{3, 2, 0, 9})
	for _, missing := range []int{1, 2, 3, 6, 8, 20, 40} {
		broken := modbus.AppendTCP(nil, 5, unit, append(modbus.PDU{3, 40}, make([]byte, 40)...))
		end := len(broken)
		b := append(broken[:end-missing:end-missing], late...)
		b = append(b, late...) // enough to fill the frame
		b = append(b, late...)
		b = append(b, late...)
		if !beginsWithin(b, end, tx, unit) {
			t.Errorf("%d bytes missing: not seen", missing)
		}
		if beginsWithin(b, end, tx+1, unit) || beginsWithin(b, end, tx, unit+1) {
			t.Errorf("%d bytes missing: another one seen", missing)
		}
	}
	whole := modbus.AppendTCP(nil, 5, unit, modbus.PDU{3, 2, 0, 9})
	if beginsWithin(append(bytes.Clone(whole), late...), len(whole), tx, unit) {
		t.Error("seen behind a whole frame")
	}
	if beginsWithin(whole, len(whole), 5, unit) {
		t.Error("the frame's own header seen")
	}
	var m missing
	now := time.Now()
	for i := range uint16(mostMissing + 3) {
		m.add(tx+i, unit, time.Second)
	}
	if len(m.list) != mostMissing || m.within(append(bytes.Clone(whole[:len(whole)-2]), late...), len(whole), now) {
		t.Errorf("%d remembered, want the last %d", len(m.list), mostMissing)
	}
	m.add(tx, unit, time.Second)
	b := append(bytes.Clone(whole[:len(whole)-2]), late...)
	if !m.within(b, len(whole), now) || m.within(b, len(whole), now.Add(time.Minute)) {
		t.Error("a missing answer is one for ten times the timeout")
	}
	if m.came(tx); m.within(b, len(whole), now) {
		t.Error("it has come")
	}
}

// TestTCPBrokenOffBeforeLate: a device breaks off an answer, and what fills the
// frame is the answer to a request that was given up.
func TestTCPBrokenOffBeforeLate(t *testing.T) {
	t.Parallel()
	for _, inFlight := range []int{1, 2} {
		for _, missing := range []int{1, 2, 4, 9} {
			var mu sync.Mutex
			var first *request
			d := listen(t, modbus.FramingTCP, func(p *peer, r request) {
				mu.Lock()
				defer mu.Unlock()
				if first == nil {
					first = &r
					return
				}
				a := mbap(r, right(r))
				p.write(append(a[:len(a)-missing], mbap(*first, right(*first))...))
			})
			cfg := tcpBus(d.Addr().String(), modbus.FramingTCP)
			cfg.InFlight = inFlight
			l := start(t, cfg)
			req := modbus.ReadRequest(modbus.HoldingRegisters, 0, 10)
			if _, err := l.DoTimeout(context.Background(), 1, req, 20*time.Millisecond, 0); !errors.Is(err, modbus.ErrNoResponse) {
				t.Fatalf("given up: %v", err)
			}
			req = modbus.ReadRequest(modbus.HoldingRegisters, 100, 10)
			if resp, err := l.Do(context.Background(), 1, req); err == nil {
				t.Errorf("in flight %d, %d bytes missing: WRONG VALUE % x", inFlight, missing, []byte(resp))
			}
		}
	}
}
