package flash

import (
	"errors"
	"os"
	"path/filepath"
)

// WriteFile puts text into the file at path so that a power cut leaves all of it
// there or what was there before: under another name, synced, renamed, the folder
// synced. It is entered in l; nil: in none.
func WriteFile(path string, text []byte, l *Ledger) error {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	if l != nil {
		page := int64(os.Getpagesize())
		l.Add((int64(len(text))+page-1)/page*page, 2)
	}
	return SyncFolder(filepath.Dir(path))
}

// SyncFolder makes what was made, renamed or removed in a folder last.
func SyncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
