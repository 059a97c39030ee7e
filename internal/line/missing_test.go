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

func TestMissing(t *testing.T) {
	const tx, unit = 0x0102, 7
	req := modbus.ReadRequest(modbus.HoldingRegisters, 0, 1)
	want, other, elsewhere := headOf(tx, unit, req), headOf(tx+1, unit, req), headOf(tx, unit+1, req)
	longer := headOf(tx, unit, modbus.ReadRequest(modbus.HoldingRegisters, 0, 2))
	unknown := headOf(tx, unit, modbus.ServerIDRequest())
	for _, answer := range []modbus.PDU{{3, 2, 0, 9}, {0x83, 2}} {
		late := modbus.AppendTCP(nil, tx, unit, answer)
		for _, missing := range []int{1, 2, 3, 6, 8, 20, 40} {
			broken := modbus.AppendTCP(nil, 5, unit, append(modbus.PDU{3, 40}, make([]byte, 40)...))
			end := len(broken)
			b := append(broken[:end-missing:end-missing], bytes.Repeat(late, 5)...) // enough to fill the frame
			if !want.within(b, end) {
				t.Errorf("%d bytes missing: not seen", missing)
			}
			if other.within(b, end) || elsewhere.within(b, end) || unknown.within(b, end) || longer.within(b, end) != (answer[0] > 0x80) {
				t.Errorf("%d bytes missing: another one seen", missing)
			}
		}
	}
	late := modbus.AppendTCP(nil, tx, unit, modbus.PDU{3, 2, 0, 9})
	whole := modbus.AppendTCP(nil, 5, unit, modbus.PDU{3, 2, 0, 9})
	if want.within(append(bytes.Clone(whole), late...), len(whole)) {
		t.Error("seen behind a whole frame")
	}
	if own := headOf(5, unit, req); own.within(whole, len(whole)) {
		t.Error("the frame's own header seen")
	}
	// What looks like a header as far as it goes, but is all of the answer.
	zero := modbus.AppendTCP(nil, 5, unit, modbus.PDU{3, 4, 0, 0, 0, 5})
	if like := headOf(0x0304, unit, req); like.within(zero, len(zero)) {
		t.Error("values taken for a header")
	}
	b := append(bytes.Clone(whole[:len(whole)-2]), late...)
	var m missing
	now := time.Now()
	m.add(tx, unit, req, time.Second)
	for i := range uint16(mostMissing) {
		m.add(tx+1+i, unit, req, time.Second)
	}
	if len(m.list) != mostMissing || m.within(b, len(whole), now) {
		t.Errorf("%d remembered, want the last %d", len(m.list), mostMissing)
	}
	m.add(tx, unit, req, time.Second)
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
