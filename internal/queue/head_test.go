package queue

import (
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"fieldgate/internal/config"
	"fieldgate/internal/flash"
)

// setHead changes the head in a file that nobody uses.
func setHead(t *testing.T, path string, change func(uint64) uint64) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte(bucketName))
		return b.SetSequence(change(b.Sequence()))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedHead opens files whose head has a flipped bit: no message is lost, none
// comes twice, and the head is right again after the next commit.
func TestDamagedHead(t *testing.T) {
	t.Parallel()
	for _, bit := range []int{13, 40, 62, 63} {
		dir := t.TempDir()
		r := start(t, dir, config.Queue{Commit: time.Hour})
		const n = 3000
		for i := range n {
			deliver(t, r.Queue, msg(i))
		}
		r.sync()
		r.end()
		setHead(t, r.file(), func(head uint64) uint64 { return head | 1<<bit })

		if sums, err := Files(dir); err != nil || len(sums) != 1 || sums[0].Messages != n || sums[0].Damaged != 0 {
			t.Errorf("bit %d: Files = %+v, %v", bit, sums, err)
		}
		var got []string
		damaged, err := Export(dir, "cloud", func(e Entry) error {
			got = append(got, string(e.Payload))
			return nil
		})
		if err != nil || damaged != 0 || len(got) != n {
			t.Fatalf("bit %d: Export gave %d messages, %d damaged, %v", bit, len(got), damaged, err)
		}
		numbered(t, got, 0)

		r = start(t, dir, config.Queue{Commit: soon})
		deliver(t, r.Queue, msg(n), msg(n+1))
		numbered(t, r.all(n/2), 0) // they are done, and not to come again
		if s := r.Stats(); s.Found != n || s.Damaged != 0 {
			t.Errorf("bit %d: Stats = %+v", bit, s)
		}
		r.sync()
		r.end()
		f, err := openFile(filepath.Join(dir, fileName("cloud")), new(flash.Ledger), nil)
		if err != nil {
			t.Fatal(err)
		}
		head := f.head
		f.close()
		if head != n/2+1 {
			t.Errorf("bit %d: the head is %d after a commit, want %d", bit, head, n/2+1)
		}
		r = start(t, dir, config.Queue{Commit: soon})
		numbered(t, r.all(n/2+2), n/2)
		r.end()
	}
}
