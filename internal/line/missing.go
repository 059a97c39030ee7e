package line

import (
	"bytes"
	"encoding/binary"
	"slices"
	"time"

	"fieldgate/internal/modbus"
)

// mostMissing is how many answers are remembered to be missing.
const mostMissing = 16

// missing is the answers that may still come over an MBAP connection although
// nobody waits for them. By its transaction id none is taken for another's. But a
// device that breaks off an answer and sends a late one behind it has made one
// frame of the two, of the right length with the wrong end.
type missing struct{ list []missed }

type missed struct {
	head
	until time.Time // it comes before then, or never
}

// add notes that the answer to a request was not waited for any longer.
func (m *missing) add(tx uint16, unit modbus.UnitID, req modbus.PDU, timeout time.Duration) {
	if len(m.list) == mostMissing {
		m.list = slices.Delete(m.list, 0, 1)
	}
	m.list = append(m.list, missed{headOf(tx, unit, req), time.Now().Add(fenceTimes * timeout)})
}

// came notes that an answer has come.
func (m *missing) came(tx uint16) {
	m.list = slices.DeleteFunc(m.list, func(o missed) bool { return o.tx() == tx })
}

// within reports whether a missing answer begins in the frame b[:end].
func (m *missing) within(b []byte, end int, now time.Time) bool {
	return slices.ContainsFunc(m.list, func(o missed) bool { return now.Before(o.until) && o.within(b, end) })
}

// head is what the answer to a request begins with: header and function. A
// length of 0 is one that the request does not fix.
type head [modbus.MBAPLen + 1]byte

func headOf(tx uint16, unit modbus.UnitID, req modbus.PDU) (h head) {
	modbus.AppendTCP(h[:0], tx, unit, req[:1])
	n, _ := modbus.ResponseLen(req)
	h[5] = 0
	if n > 0 {
		h[5] = byte(1 + n)
	}
	return h
}

func (h *head) tx() uint16 { return binary.BigEndian.Uint16(h[:]) }

// within reports whether an answer with this head, or a refusal, begins behind
// the header of the frame b[:end].
func (h *head) within(b []byte, end int) bool {
	const length, function, refused = 5, 7, 0x80
	for i := modbus.MBAPLen; i < end && i+len(h) <= len(b); i++ {
		c := b[i : i+len(h)]
		if !bytes.Equal(c[:length], h[:length]) || c[6] != h[6] {
			continue
		}
		switch c[function] {
		case h[function]:
			if h[length] == 0 || c[length] == h[length] {
				return true
			}
		case h[function] | refused:
			return c[length] == 1+2
		}
	}
	return false
}
