package flash

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	l := new(Ledger)
	for _, text := range []string{"one", "another", ""} {
		if err := WriteFile(path, []byte(text), l); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("%q, %v, want %q", got, err, text)
		}
	}
	if f := l.Report().Total; f.Syncs != 6 || f.Bytes != int64(2*os.Getpagesize()) {
		t.Errorf("ledger %+v", f)
	}

	// What cannot be put in place leaves nothing, and what was there stays.
	full := filepath.Join(dir, "folder")
	if err := os.MkdirAll(filepath.Join(full, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(full, []byte("text"), nil); err == nil {
		t.Error("a folder is replaced by a file")
	}
	if err := WriteFile(filepath.Join(dir, "none", "f"), nil, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*.new")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}
