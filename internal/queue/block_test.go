package queue

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"fieldgate/internal/config"
	"fieldgate/internal/flash"
	"fieldgate/internal/mqtt"
)

// value is a key and a value of the file.
type value struct{ key, value []byte }

func packed(t testing.TB, puts []put) (all []value) {
	t.Helper()
	var p packer
	if err := p.pack(puts, func(k, v []byte) error {
		all = append(all, value{k, v})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestBlocks packs records of all sizes, with gaps between their numbers, and
// unpacks what is left from some number on.
func TestBlocks(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 8))
	for range 300 {
		var puts []put
		seq := rnd.Uint64N(1 << 40)
		for range 1 + rnd.IntN(400) {
			seq += 1 + rnd.Uint64N(1<<rnd.IntN(13))
			record := make([]byte, recordHeader+rnd.IntN(1<<rnd.IntN(14)))
			for i := range record[min(len(record), 100):] { // begins with zeros, ends with noise
				record[100+i] = byte(rnd.Uint32())
			}
			puts = append(puts, put{seq, append(make([]byte, crcBytes), record...)})
		}
		values := packed(t, puts)
		from := puts[rnd.IntN(len(puts))].seq + rnd.Uint64N(2)
		want := puts
		for len(want) > 0 && want[0].seq < from {
			want = want[1:]
		}
		var u unpacker
		var before []byte
		for _, v := range values {
			if bytes.Compare(before, v.key) >= 0 {
				t.Fatalf("key %x after %x", v.key, before)
			}
			before = v.key
			u.unpack(v.key, v.value, from, func(seq uint64, record []byte, ok bool) {
				if len(want) == 0 || !ok || seq != want[0].seq || !bytes.Equal(record, want[0].bytes[crcBytes:]) {
					t.Fatalf("record %d of %d bytes, ok %t", seq, len(record), ok)
				}
				if seq > last(v.key, v.value) {
					t.Fatalf("record %d, the last is to be %d", seq, last(v.key, v.value))
				}
				want = want[1:]
			})
		}
		if len(want) > 0 {
			t.Fatalf("%d records are missing", len(want))
		}
	}
}

// TestDamagedBlock tells each of its records as lost, and none as there.
func TestDamagedBlock(t *testing.T) {
	t.Parallel()
	var puts []put
	for i := range uint64(30) {
		puts = append(puts, put{100 + i, append(make([]byte, crcBytes), fmt.Appendf(nil, "record number %d", i)...)})
	}
	v := packed(t, puts)[0]
	var u unpacker
	for at := range v.value {
		bad := bytes.Clone(v.value)
		bad[at] ^= 0x40
		lost := 0
		u.unpack(v.key, bad, 110, func(seq uint64, record []byte, ok bool) {
			if ok {
				t.Fatalf("byte %d is wrong, and record %d is %q", at, seq, record)
			}
			lost++
		})
		if at > crcBytes+4 && lost != 20 || at < crcBytes && lost != 20 {
			t.Errorf("byte %d is wrong: %d records lost, want 20", at, lost)
		}
	}
	// One that says it holds none has lost some all the same.
	bad, lost := bytes.Clone(v.value), 0
	clear(bad[crcBytes+1 : crcBytes+3])
	u.unpack(v.key, bad, 0, func(uint64, []byte, bool) { lost++ })
	if lost != 1 {
		t.Errorf("no records in it: %d lost, want 1", lost)
	}
}

// TestFileOfRecords reads a file as it was before there were blocks: a value for
// each message.
func TestFileOfRecords(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const n, done = 1000, 3
	f, err := writeFile(filepath.Join(dir, fileName("cloud")), new(flash.Ledger), func(b *bolt.Bucket) error {
		c := newChunk(1, 1<<20, new(spares))
		for i := range n {
			c.add(msg(i), taking{wall: time.Now()})
		}
		for i, r := range c.records {
			key, value := binary.BigEndian.AppendUint64(nil, uint64(i+done)), c.bytes[r.off:r.off+r.len]
			seal(key, value)
			if err := b.Put(key, value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f.close()
	r := start(t, dir, config.Queue{Commit: soon})
	deliver(t, r.Queue, msg(n), msg(n+1))
	numbered(t, r.all(n/2), 0)
	r.sync()
	r.end()
	if sums, err := Files(dir); err != nil || sums[0].Messages != n/2+2 || sums[0].Damaged != 0 {
		t.Errorf("Files = %+v, %v", sums, err)
	}
	r = start(t, dir, config.Queue{Commit: soon})
	numbered(t, r.all(n/2+2), n/2)
}

// TestNumbersGoOn kills a queue whose file holds, in one block, messages that are
// done and messages that are not, and then only such as are done: none comes again,
// and new ones come after what is there.
func TestNumbersGoOn(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir(), config.Queue{Commit: soon})
	for i := range 30 {
		deliver(t, r.Queue, msg(i))
	}
	r.sync()
	numbered(t, r.all(20), 0)
	forgotten := func(r *running, messages int) string {
		dir := ""
		eventually(t, "forgotten", func() bool {
			dir = r.snapshot()
			sums, err := Files(dir)
			return err == nil && sums[0].Messages == messages
		})
		return dir
	}
	r = start(t, forgotten(r, 10), config.Queue{Commit: soon})
	deliver(t, r.Queue, msg(30))
	numbered(t, r.all(11), 20)
	r = start(t, forgotten(r, 0), config.Queue{Commit: soon})
	deliver(t, r.Queue, msg(31))
	r.sync()
	r = start(t, r.snapshot(), config.Queue{Commit: soon})
	entries, err := r.Next(t.Context(), 5)
	if err != nil || len(entries) != 1 || string(entries[0].Payload) != "31" || entries[0].Seq < 30 {
		t.Errorf("Next = %+v, %v", entries, err)
	}
}

// Values come from a file that anything may have happened to.
func FuzzUnpack(f *testing.F) {
	var puts []put
	for i := range uint64(40) {
		puts = append(puts, put{100 + 3*i, append(make([]byte, crcBytes), strings.Repeat("record", int(i))...)})
	}
	puts[0].bytes = append(puts[0].bytes, 1)
	for _, v := range packed(f, puts) {
		f.Add(v.value, uint64(120))
	}
	f.Fuzz(func(t *testing.T, v []byte, from uint64) {
		key := binary.BigEndian.AppendUint64(nil, 100)
		if len(v) > crcBytes {
			seal(key, v) // else nothing is looked at
		}
		var u unpacker
		before, n := uint64(0), 0
		u.unpack(key, v, from, func(seq uint64, record []byte, ok bool) {
			if n++; ok && (seq < from || seq < before || len(record) == 0 || len(record) > inflateMost*len(v)) {
				t.Errorf("record %d after %d, of %d bytes", seq, before, len(record))
			}
			before = seq
		})
		if n > 1<<16 {
			t.Errorf("%d records", n)
		}
	})
}

// BenchmarkCommit is a second of an outage: a thousand messages to the file.
func BenchmarkCommit(b *testing.B) {
	r := start(b, b.TempDir(), config.Queue{Commit: time.Hour, MaxBytes: 64 << 20})
	for b.Loop() {
		for i := range 1000 {
			deliver(b, r.Queue, mqtt.Message{Topic: "gw1/boiler1/temp", Payload: fmt.Appendf(nil, `{"value":%d,"timestamp":"2025-11-05T14:30:15.123Z"}`, i), QoS: 1})
		}
		r.sync()
	}
}

// BenchmarkFromFile takes a backlog out of the file.
func BenchmarkFromFile(b *testing.B) {
	const n = 100_000
	dir := b.TempDir()
	r := start(b, dir, config.Queue{Commit: time.Hour, MaxBytes: 64 << 20})
	for i := range n {
		deliver(b, r.Queue, mqtt.Message{Topic: "gw1/boiler1/temp", Payload: fmt.Appendf(nil, `{"value":%d,"timestamp":"2025-11-05T14:30:15.123Z"}`, i), QoS: 1})
	}
	r.sync()
	for b.Loop() {
		b.StopTimer()
		r := start(b, r.snapshot(), config.Queue{Commit: time.Hour, MaxBytes: 64 << 20})
		b.StartTimer()
		for left := n; left > 0; {
			seqs := next(b, r.Queue, min(64, left))
			left -= len(seqs)
			done(b, r.Queue, seqs...)
		}
		b.StopTimer()
		r.end()
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/msg")
}
