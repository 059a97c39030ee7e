package queue

import (
	"encoding/binary"
	"time"

	"fieldgate/internal/mqtt"
)

// A message waits as one record of bytes in a chunk, not as Go values of its
// own: a backlog of a million messages is then some thousand pieces of memory
// without a pointer in them, which the garbage collector need not walk.
//
//	flags   1 byte   QoS in bits 0-1, retain in bit 2
//	time    8 bytes  big endian, Unix nanoseconds at which it was taken
//	topic   2 bytes  length, then the topic
//	payload          the rest
const recordHeader = 1 + 8 + 2

const (
	chunkBytes = 16 << 10 // a chunk is closed when the next record does not fit

	// overhead is what a message costs beside its topic and payload, counted
	// against max_bytes: the record's header and its place in the index.
	overhead = 40
)

// size is what m counts against max_bytes.
func size(m mqtt.Message) int64 { return int64(len(m.Topic)) + int64(len(m.Payload)) + overhead }

// state is where a record stands.
type state uint8

const (
	waiting state = iota // not handed out since the last Rewind
	handed               // handed out by Next, not done
	gone                 // done, dropped or expired
)

// record is the place of one message in its chunk.
type record struct {
	at    time.Duration // when it was taken, on the queue's monotonic clock
	off   uint32
	len   uint32
	state state
}

// chunk holds messages with consecutive sequence numbers. Its bytes are
// written once and never changed, so an Entry may point into them.
type chunk struct {
	first   uint64 // sequence number of records[0]
	records []record
	bytes   []byte
	live    int // records that are not gone
}

// newChunk returns a chunk with room for a record of need bytes, and for about
// as many records as there are in the one before.
func newChunk(first uint64, need, records int) *chunk {
	return &chunk{first: first, bytes: make([]byte, 0, max(chunkBytes, need)), records: make([]record, 0, records+records/8)}
}

// fits reports whether m has room in the chunk.
func (c *chunk) fits(m mqtt.Message) bool {
	return len(c.bytes)+recordHeader+len(m.Topic)+len(m.Payload) <= cap(c.bytes)
}

// add appends m, which must fit.
func (c *chunk) add(m mqtt.Message, wall time.Time, at time.Duration) {
	off := len(c.bytes)
	flags := m.QoS
	if m.Retain {
		flags |= 1 << 2
	}
	b := append(c.bytes, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(wall.UnixNano()))
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Topic)))
	b = append(b, m.Topic...)
	b = append(b, m.Payload...)
	c.bytes = b
	c.records = append(c.records, record{at: at, off: uint32(off), len: uint32(len(b) - off)})
	c.live++
}

// entry reads record i. Its payload points into the chunk.
func (c *chunk) entry(i int) Entry {
	r := c.records[i]
	b := c.bytes[r.off : r.off+r.len : r.off+r.len]
	n := int(binary.BigEndian.Uint16(b[9:]))
	return Entry{
		Seq:  c.first + uint64(i),
		Time: time.Unix(0, int64(binary.BigEndian.Uint64(b[1:]))).UTC(),
		Message: mqtt.Message{
			Topic:   string(b[recordHeader : recordHeader+n]),
			Payload: b[recordHeader+n:],
			QoS:     b[0] & 3,
			Retain:  b[0]&(1<<2) != 0,
		},
	}
}

// size is what record i counts against max_bytes.
func (c *chunk) size(i int) int64 { return int64(c.records[i].len) - recordHeader + overhead }
