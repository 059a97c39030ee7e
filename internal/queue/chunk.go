package queue

import (
	"encoding/binary"
	"time"

	"fieldgate/internal/clock"
	"fieldgate/internal/mqtt"
)

// A message waits as one record of bytes in a chunk, not as Go values of its
// own: a backlog of a million messages is then some thousand pieces of memory
// without a pointer in them, which the garbage collector need not walk, and
// what goes to the file is there as it is.
//
//	crc     4 bytes  room for the checksum that the file wants; not part of the record
//	flags   1 byte   QoS in bits 0-1, retain in bit 2, unsynced in bit 3
//	time    6 bytes  big endian, Unix milliseconds at which it was taken
//	topic   2 bytes  length, then the topic
//	payload          the rest, but for
//	stamp   14 bytes if unsynced: the clock that told the time (boot 4, zero 6),
//	                 and where the payload tells one (4, 0: nowhere)
const (
	recordHeader = 1 + 6 + 2
	stampBytes   = 4 + 6 + 4

	flagRetain   = 1 << 2
	flagUnsynced = 1 << 3
)

const (
	chunkBytes = 16 << 10 // a chunk is closed when the next record does not fit
	chunkSpan  = 1 << 10  // and covers no more sequence numbers than this

	// overhead is what a message costs beside its topic and payload, counted
	// against max_bytes: the record's header and its place in the index or file.
	overhead = 40
)

// size is what m counts against max_bytes.
func size(m mqtt.Message) int64 { return int64(len(m.Topic)) + int64(len(m.Payload)) + overhead }

// state is where a record stands.
type state uint8

const (
	waiting state = iota // not handed out since the last Rewind
	handed               // handed out by Next, not done
	gone                 // done, dropped, expired or never there
)

// record is the place of one message in its chunk.
type record struct {
	at    time.Duration // when it was taken, on the queue's monotonic clock
	off   uint32        // of its crc
	len   uint32        // crc included
	state state
	extra uint8 // bytes of it that count against no bound: the stamp
}

// chunk holds messages with consecutive sequence numbers. Its bytes are
// written once and not changed (but for the crc, which only the file looks at)
// until all its messages are gone, so an Entry may point into them. A chunk whose messages are all in the
// file may be away: its bytes and records are given back, and read again when
// it is its turn.
type chunk struct {
	first uint64 // sequence number of records[0]
	n     int    // sequence numbers it covers
	live  int    // messages in it that are not gone
	size  int64  // what they count against max_bytes
	out   int    // messages in it that are handed out

	oldest, newest time.Duration // when the first and the last of it were taken

	away    bool
	records []record // nil while away
	bytes   []byte   // nil while away
	done    []bool   // while away: which of the n are gone; nil if none was
	lent    bool     // somebody may look at bytes even when nothing is left
}

// spare is the memory of a chunk of which nothing is left.
type spare struct {
	bytes   []byte
	records []record
}

// spares are kept for the next chunks, the one used last at the end: what many
// devices say at once takes several, and half a second later as many again.
type spares []spare

// sparesMost bounds them. A hundred devices with a batch of 1 kB each, polled in
// two start slots a second, take four.
const sparesMost = 8

// newChunk returns an empty chunk with room for need bytes, in spare memory if
// there is any.
func newChunk(first uint64, need int, s *spares) *chunk {
	c := &chunk{first: first}
	if n := len(*s); n > 0 && need <= chunkBytes {
		last := &(*s)[n-1]
		c.bytes, c.records, *last = last.bytes, last.records, spare{}
		*s = (*s)[:n-1]
		return c
	}
	c.bytes = make([]byte, 0, max(chunkBytes, need))
	return c
}

// memory is what the chunk takes while it is not away.
func (c *chunk) memory() int64 {
	const perRecord = 24
	return int64(cap(c.bytes)) + int64(cap(c.records))*perRecord
}

// end is the sequence number after the last that the chunk covers.
func (c *chunk) end() uint64 { return c.first + uint64(c.n) }

// need is the room that m takes in a chunk.
func need(m mqtt.Message) int {
	return crcBytes + recordHeader + len(m.Topic) + len(m.Payload) + stampBytes
}

// fits reports whether m has room in the chunk.
func (c *chunk) fits(m mqtt.Message) bool {
	return len(c.bytes)+need(m) <= cap(c.bytes) && c.n < chunkSpan
}

// add appends m, which must fit.
func (c *chunk) add(m mqtt.Message, t taking) {
	off := len(c.bytes)
	flags := m.QoS
	if m.Retain {
		flags |= flagRetain
	}
	if t.unsynced {
		flags |= flagUnsynced
	}
	b := append(c.bytes, 0, 0, 0, 0, flags)
	b = appendMillis(b, t.wall.UnixMilli())
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Topic)))
	b = append(b, m.Topic...)
	b = append(b, m.Payload...)
	r := record{at: t.at, off: uint32(off)}
	if t.unsynced {
		b = binary.BigEndian.AppendUint32(b, t.stamp.Boot)
		b = appendMillis(b, t.stamp.Zero)
		b = binary.BigEndian.AppendUint32(b, m.Stamp)
		r.extra = stampBytes
	}
	c.bytes = b
	r.len = uint32(len(b) - off)
	c.append(r)
}

// appendMillis appends 6 bytes, big endian; times before 1970 are 1970.
func appendMillis(b []byte, ms int64) []byte {
	ms = max(0, ms)
	b = binary.BigEndian.AppendUint16(b, uint16(ms>>32))
	return binary.BigEndian.AppendUint32(b, uint32(ms))
}

func millis(b []byte) int64 {
	return int64(binary.BigEndian.Uint16(b))<<32 | int64(binary.BigEndian.Uint32(b[2:]))
}

// append takes in a record that is in bytes already and is not gone.
func (c *chunk) append(r record) {
	c.records = append(c.records, r)
	c.n = len(c.records)
	if c.live == 0 {
		c.oldest = r.at
	}
	c.newest = r.at
	c.live++
	c.size += r.size()
}

// size is what the record counts against max_bytes.
func (r record) size() int64 {
	return int64(r.len) - int64(r.extra) - crcBytes - recordHeader + overhead
}

// wellFormed reports whether b is a record as add writes it.
func wellFormed(b []byte) bool {
	return len(b) >= recordHeader && len(b) >= recordHeader+int(binary.BigEndian.Uint16(b[7:]))+extra(b) &&
		b[0]&3 <= 2 && b[0]>>4 == 0
}

// extra is how many bytes of the record b are its stamp.
func extra(b []byte) int {
	if b[0]&flagUnsynced != 0 {
		return stampBytes
	}
	return 0
}

// wallTime is when the record b was taken.
func wallTime(b []byte) time.Time { return time.UnixMilli(millis(b[1:])).UTC() }

// stampOf returns the clock that told the times of the record b, and the place of
// one in its payload; ok is false if that clock was set.
func stampOf(b []byte) (s clock.Stamp, at int, ok bool) {
	if extra(b) == 0 {
		return s, 0, false
	}
	b = b[len(b)-stampBytes:]
	return clock.Stamp{Boot: binary.BigEndian.Uint32(b), Zero: millis(b[4:])}, int(binary.BigEndian.Uint32(b[10:])), true
}

// entry reads record i. Its payload points into the chunk, unless a time in it
// can be put right now.
func (c *chunk) entry(i int, clk *clock.Clock) Entry {
	r := c.records[i]
	return decode(c.first+uint64(i), c.bytes[r.off+crcBytes:r.off+r.len:r.off+r.len], clk)
}

// decode reads the record b, which is well-formed.
func decode(seq uint64, b []byte, clk *clock.Clock) Entry {
	n := int(binary.BigEndian.Uint16(b[7:]))
	end := len(b) - extra(b)
	e := Entry{
		Seq:  seq,
		Time: wallTime(b),
		Message: mqtt.Message{
			Topic:   string(b[recordHeader : recordHeader+n]),
			Payload: b[recordHeader+n : end : end],
			QoS:     b[0] & 3,
			Retain:  b[0]&flagRetain != 0,
		},
	}
	if s, at, ok := stampOf(b); ok {
		e.Stamp = uint32(at)
		if later, known := clk.Shift(s); known {
			e.Time = e.Time.Add(later)
			if e.Payload, ok = clock.Restamp(e.Payload, at, later); ok {
				e.Stamp = 0
			}
		}
	}
	return e
}

// putAway gives the chunk's memory back; all that is live must be in the file,
// and nothing handed out.
func (c *chunk) putAway() {
	if c.live < c.n {
		c.done = make([]bool, c.n)
		for i, r := range c.records {
			c.done[i] = r.state == gone
		}
	}
	c.away, c.records, c.bytes = true, nil, nil
}

// fetched is what load has read for a chunk that is away.
type fetched struct {
	records []record
	bytes   []byte
}

// take appends a record that was read from the file; gaps are gone.
func (f *fetched) take(first, seq uint64, b []byte, at time.Duration) {
	for uint64(len(f.records)) < seq-first {
		f.records = append(f.records, record{state: gone})
	}
	off := len(f.bytes)
	f.bytes = append(f.bytes, 0, 0, 0, 0)
	f.bytes = append(f.bytes, b...)
	f.records = append(f.records, record{at: at, off: uint32(off), len: uint32(len(f.bytes) - off), extra: uint8(extra(b))})
}

// bringBack ends away with what was read. It returns how many messages, and
// how much of what they counted, are missing.
func (c *chunk) bringBack(f fetched) (lost int, lostSize int64) {
	for len(f.records) < c.n {
		f.records = append(f.records, record{state: gone})
	}
	live, size := 0, int64(0)
	for i := range f.records {
		r := &f.records[i]
		if c.done != nil && c.done[i] {
			r.state = gone
		}
		if r.state != gone {
			r.at = min(max(r.at, c.oldest), c.newest)
			live++
			size += r.size()
		}
	}
	lost, lostSize = c.live-live, c.size-size
	c.live, c.size = live, size
	c.away, c.records, c.bytes, c.done = false, f.records, f.bytes, nil
	return lost, lostSize
}
