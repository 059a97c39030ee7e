package queue

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/flash"
	"fieldgate/internal/mqtt"
)

func TestOffline(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	begin := time.Now().Truncate(time.Millisecond)
	r := start(t, dir, config.Queue{Commit: soon})
	const n = 3000
	for i := range n {
		deliver(t, r.Queue, msg(i))
	}
	deliver(t, r.Queue, mqtt.Message{Topic: "größe", Payload: []byte{0xFF, 0}, QoS: 2, Retain: true})
	r.sync()
	bytes := r.Stats().Bytes

	// It is in use.
	if _, err := Files(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("Files beside a gateway = %v", err)
	}
	if _, err := Export(dir, "cloud", func(Entry) error { return nil }); !errors.Is(err, ErrLocked) {
		t.Errorf("Export beside a gateway = %v", err)
	}
	if err := Purge(dir, "cloud"); !errors.Is(err, ErrLocked) {
		t.Errorf("Purge beside a gateway = %v", err)
	}
	r.end()

	if err := os.WriteFile(filepath.Join(dir, fileName("a/b")), []byte("no queue at all"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := Files(dir)
	if err != nil || len(all) != 2 {
		t.Fatalf("Files = %+v, %v", all, err)
	}
	if s := all[0]; s.Uplink != "a/b" || !errors.Is(s.Fault, ErrCorrupt) || s.Size != 15 {
		t.Errorf("the damaged file is %+v", s)
	}
	s := all[1]
	if s.Uplink != "cloud" || s.Messages != n+1 || s.Bytes != bytes || s.Damaged != 0 || s.Fault != nil || s.Size < s.Bytes/10 ||
		s.Oldest.Before(begin) || s.Newest.Before(s.Oldest) || s.Newest.After(time.Now()) {
		t.Errorf("%+v, want %d messages of %d bytes, taken just now", s, n+1, bytes)
	}

	i := 0
	damaged, err := Export(dir, "cloud", func(e Entry) error {
		want := mqtt.Message{Topic: "größe", Payload: []byte{0xFF, 0}, QoS: 2, Retain: true}
		if i < n {
			want = msg(i)
		}
		if i++; e.Seq != uint64(i) || fmt.Sprint(e.Message) != fmt.Sprint(want) {
			t.Fatalf("message %d is %+v, want %+v", i, e, want)
		}
		return nil
	})
	if i != n+1 || damaged != 0 || err != nil {
		t.Errorf("Export gave %d messages, %d damaged, %v", i, damaged, err)
	}
	if _, err := Export(dir, "cloud", func(Entry) error { return fs.ErrClosed }); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Export = %v, want the error of the call", err)
	}
	if _, err := Export(dir, "other", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Export of a queue that is not there = %v", err)
	}

	// The gateway that waits for the lock while the file is deleted makes a new one.
	held, err := openFile(filepath.Join(dir, fileName("cloud")), new(flash.Ledger), func(uint64, []byte, bool) {})
	if err != nil {
		t.Fatal(err)
	}
	r = start(t, dir, config.Queue{Commit: soon})
	deliver(t, r.Queue, msg(7))
	time.Sleep(100 * time.Millisecond)
	if err := os.Remove(r.file()); err != nil { // as Purge does, with the lock
		t.Fatal(err)
	}
	held.close()
	r.sync()
	numbered(t, r.all(1), 7)
	r.end()

	if err := Purge(dir, "cloud"); err != nil {
		t.Fatal(err)
	}
	if err := Purge(dir, "cloud"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Purge again = %v", err)
	}
	if all, err := Files(dir); err != nil || len(all) != 1 || all[0].Uplink != "a/b" {
		t.Errorf("after Purge: %+v, %v", all, err)
	}
}
