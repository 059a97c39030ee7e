package queue

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// What is written for an outage is mostly the same again: the topics, the names in
// the payloads, most digits of a time. So messages that go to the file together
// are deflated together, some forty to a block, which is a value of the file. A
// block is small, since bbolt writes the page with the last one again at each
// commit, and since what is damaged is lost as a whole.
//
// A value begins with the CRC-32C of its key and of what follows (4 bytes, big
// endian). What follows is a record (see chunk.go), whose number is the key, or a
// block:
//
//	kind    1 byte   0x10, which is no record's flags
//	count   2 bytes  big endian: records in it
//	span    2 bytes  big endian: from the key to the number of the last
//	size    4 bytes  big endian: of the rest when it is inflated
//	rest             deflated: for each record its number less the one before, or
//	                 the key, and its length (both varints), and the record
//
// Files of before there were blocks have records only, and are read as ever.
const (
	crcBytes    = 4
	blockHeader = 1 + 2 + 2 + 4
	kindBlock   = 0x10

	blockBytes  = 4 << 10 // a block is closed when the next record does not fit
	blockSpan   = 1 << 10 // and covers no more sequence numbers than this
	plainBytes  = 256     // a single record up to this long is not deflated
	inflateMost = 1032    // times its length is the most that deflate can stand for
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(key, rest []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, rest)
}

// sound reports whether a value has the right checksum.
func sound(key, value []byte) bool {
	return len(value) > crcBytes && checksum(key, value[crcBytes:]) == binary.BigEndian.Uint32(value)
}

// seal fills in the checksum of a value.
func seal(key, value []byte) {
	binary.BigEndian.PutUint32(value, checksum(key, value[crcBytes:]))
}

// put is one record on its way to the file: crcBytes of room, then the record.
type put struct {
	seq   uint64
	bytes []byte
}

// packer makes values of records. The zero value is ready; it takes a megabyte
// once there is something to deflate.
type packer struct {
	raw     []byte
	deflate *flate.Writer
	out     bytes.Buffer
}

// pack calls each with the values for puts, which rise in number. Key and value
// stay valid and belong to each; a value may be the bytes of its put.
func (p *packer) pack(puts []put, each func(key, value []byte) error) error {
	for len(puts) > 0 {
		n, size := 0, 0
		for n < len(puts) && (n == 0 || size+len(puts[n].bytes) <= blockBytes && puts[n].seq-puts[0].seq < blockSpan) {
			size += len(puts[n].bytes)
			n++
		}
		key := binary.BigEndian.AppendUint64(nil, puts[0].seq)
		value := puts[0].bytes
		if n > 1 || size > plainBytes {
			var err error
			if value, err = p.block(puts[:n]); err != nil {
				return err
			}
		}
		seal(key, value)
		if err := each(key, value); err != nil {
			return err
		}
		puts = puts[n:]
	}
	return nil
}

// block returns the block of puts, without its checksum.
func (p *packer) block(puts []put) ([]byte, error) {
	first, before := puts[0].seq, puts[0].seq
	p.raw = p.raw[:0]
	for _, put := range puts {
		p.raw = binary.AppendUvarint(p.raw, put.seq-before)
		p.raw = binary.AppendUvarint(p.raw, uint64(len(put.bytes)-crcBytes))
		p.raw = append(p.raw, put.bytes[crcBytes:]...)
		before = put.seq
	}
	head := [crcBytes + blockHeader]byte{crcBytes: kindBlock}
	binary.BigEndian.PutUint16(head[crcBytes+1:], uint16(len(puts)))
	binary.BigEndian.PutUint16(head[crcBytes+3:], uint16(before-first))
	binary.BigEndian.PutUint32(head[crcBytes+5:], uint32(len(p.raw)))
	p.out.Reset()
	p.out.Write(head[:])
	if p.deflate == nil {
		var err error
		if p.deflate, err = flate.NewWriter(&p.out, flate.BestSpeed); err != nil {
			return nil, err
		}
	} else {
		p.deflate.Reset(&p.out)
	}
	_, err := p.deflate.Write(p.raw)
	if err = errors.Join(err, p.deflate.Close()); err != nil {
		return nil, err
	}
	return bytes.Clone(p.out.Bytes()), nil
}

// last returns the number of the last record in a value, as far as the value can
// be believed.
func last(key, value []byte) uint64 {
	seq := binary.BigEndian.Uint64(key)
	if isBlock(value) {
		seq += uint64(binary.BigEndian.Uint16(value[crcBytes+3:]))
	}
	return seq
}

func isBlock(value []byte) bool {
	return len(value) >= crcBytes+blockHeader && value[crcBytes] == kindBlock
}

// unpacker reads values. The zero value is ready.
type unpacker struct {
	raw     []byte
	in      bytes.Reader
	inflate io.ReadCloser
}

// unpack calls each for the records of a value from number from on, in order; a
// record is valid during the call. What cannot be read is told once for each
// record, as far as that is known, with ok false.
func (u *unpacker) unpack(key, value []byte, from uint64, each func(seq uint64, record []byte, ok bool)) {
	first := binary.BigEndian.Uint64(key)
	if !isBlock(value) {
		if first >= from {
			each(first, value[min(crcBytes, len(value)):], sound(key, value))
		}
		return
	}
	count, raw := uint64(binary.BigEndian.Uint16(value[crcBytes+1:])), []byte(nil)
	if sound(key, value) {
		raw = u.open(value[crcBytes+blockHeader:], binary.BigEndian.Uint32(value[crcBytes+5:]))
	} else if count == 0 || count > blockBytes/recordHeader {
		count = 1
	}
	seq := first
	for i := range count {
		var record []byte
		if raw != nil {
			var step uint64
			step, record, raw = nextRecord(raw)
			seq += step
		}
		if record == nil { // this one, and all after it
			for seq = max(first+i, from); seq < first+count; seq++ {
				each(seq, nil, false)
			}
			return
		}
		if seq >= from {
			each(seq, record, true)
		}
	}
}

// open inflates the rest of a block to size bytes; nil if it does not.
func (u *unpacker) open(rest []byte, size uint32) []byte {
	if uint64(size) > inflateMost*uint64(len(rest)) {
		return nil
	}
	u.in.Reset(rest)
	if u.inflate == nil {
		u.inflate = flate.NewReader(&u.in)
	} else if err := u.inflate.(flate.Resetter).Reset(&u.in, nil); err != nil {
		return nil
	}
	if uint64(cap(u.raw)) < uint64(size) {
		u.raw = make([]byte, size)
	}
	u.raw = u.raw[:size]
	if _, err := io.ReadFull(u.inflate, u.raw); err != nil {
		return nil
	}
	return u.raw
}

// nextRecord splits the first record off raw; it is nil if there is none.
func nextRecord(raw []byte) (step uint64, record, rest []byte) {
	step, n := binary.Uvarint(raw)
	if n <= 0 || step > blockSpan {
		return 0, nil, nil
	}
	length, m := binary.Uvarint(raw[n:])
	if m <= 0 || length == 0 || length > uint64(len(raw)-n-m) {
		return 0, nil, nil
	}
	from := n + m
	to := from + int(length)
	return step, raw[from:to:to], raw[to:]
}
