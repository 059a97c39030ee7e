package line

import (
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
	tx    uint16
	unit  modbus.UnitID
	until time.Time // it comes before then, or never
}

// add notes that the answer to a request was not waited for any longer.
func (m *missing) add(tx uint16, unit modbus.UnitID, timeout time.Duration) {
	if len(m.list) == mostMissing {
		m.list = slices.Delete(m.list, 0, 1)
	}
	m.list = append(m.list, missed{tx, unit, time.Now().Add(fenceTimes * timeout)})
}

// came notes that an answer has come.
func (m *missing) came(tx uint16) {
	m.list = slices.DeleteFunc(m.list, func(o missed) bool { return o.tx == tx })
}

// within reports whether a missing answer begins in the frame b[:end].
func (m *missing) within(b []byte, end int, now time.Time) bool {
	return slices.ContainsFunc(m.list, func(o missed) bool { return now.Before(o.until) && beginsWithin(b, end, o.tx, o.unit) })
}

// beginsWithin reports whether a frame with this id and unit begins behind the
// header of the frame b[:end]. As much of its own header as b has must fit, and
// that must be more than the id.
func beginsWithin(b []byte, end int, tx uint16, unit modbus.UnitID) bool {
	const enough = 4
	var head [modbus.MBAPLen]byte
	binary.BigEndian.PutUint16(head[:], tx)
	head[6] = byte(unit)
	const length = 5 // of the frame: any
	for i := modbus.MBAPLen; i < end && i+enough <= len(b); i++ {
		same := 0
		for same < len(head) && i+same < len(b) && (b[i+same] == head[same] || same == length) {
			same++
		}
		if same == len(head) || i+same == len(b) {
			return true
		}
	}
	return false
}
