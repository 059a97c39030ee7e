package uplink

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"fieldgate/internal/config"
)

const (
	// lookEvery is how often the files of an uplink are looked at: one stat each.
	lookEvery = 10 * time.Second
	// lookAgain is how often the broker is asked for the certificate that it has
	// now, while the one that it showed comes to its end.
	lookAgain = 24 * time.Hour
	// drainPatience is how long a connection that is given up in good order waits
	// for the acknowledgements of what was sent.
	drainPatience = 5 * time.Second
)

// errRenew ends a connection that is to be followed by another at once.
var errRenew = errors.New("connecting anew")

// files watches the certificates, keys and passwords of one uplink. It believes
// a change once the files have rested from one look to the next, for who
// replaces a certificate and its key replaces one after the other.
type files struct {
	paths  []string
	used   []stamp // of the files that sum is of
	latest []stamp // of the last look
	sum    [sha256.Size]byte
}

// stamp tells one state of a file from another without reading it.
type stamp struct {
	size         int64
	inode        uint64
	mtime, ctime int64
}

// newFiles remembers what the files that cfg names hold now.
func newFiles(cfg config.Uplink) *files {
	f := &files{}
	azureKey := ""
	if cfg.AzureSAS != nil {
		azureKey = cfg.AzureSAS.Key.Path()
	}
	for _, p := range []string{cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key, cfg.TLS.Password.Path(), cfg.Password.Path(), azureKey} {
		if p != "" {
			f.paths = append(f.paths, p)
		}
	}
	f.used = f.stamps()
	f.latest, f.sum = f.used, f.read()
	return f
}

// changed reports whether the files hold something else than they did when it
// last said so.
func (f *files) changed() bool {
	before := f.latest
	f.latest = f.stamps()
	if slices.Equal(f.latest, f.used) || !slices.Equal(f.latest, before) {
		return false
	}
	f.used = f.latest
	sum := f.read()
	if sum == f.sum {
		return false
	}
	f.sum = sum
	return true
}

// stamps looks at all files. One that is not there has the zero stamp.
func (f *files) stamps() []stamp {
	all := make([]stamp, len(f.paths))
	for i, p := range f.paths {
		info, err := os.Stat(p)
		if err != nil {
			continue
		}
		all[i] = stamp{size: info.Size(), mtime: info.ModTime().UnixNano()}
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			all[i].inode, all[i].ctime = s.Ino, s.Ctim.Nano()
		}
	}
	return all
}

// read digests what the files hold.
func (f *files) read() [sha256.Size]byte {
	all := sha256.New()
	for _, p := range f.paths {
		data, _ := os.ReadFile(p) // what cannot be read counts as empty
		_ = binary.Write(all, binary.BigEndian, int64(len(data)))
		_, _ = all.Write(data)
	}
	return [sha256.Size]byte(all.Sum(nil))
}

// usable returns why a connection could not be made with the files as they are.
func usable(cfg config.Uplink) error {
	if _, err := loginFor(cfg, "", time.Now()); err != nil {
		return err
	}
	c, err := tlsConfig(cfg.TLS, "")
	if err != nil {
		return err
	}
	for _, cert := range c.Certificates {
		if leaf := cert.Leaf; leaf != nil && time.Now().After(leaf.NotAfter) {
			return fmt.Errorf("%s: the certificate ended on %s", cfg.TLS.Cert, day(leaf.NotAfter))
		}
	}
	return nil
}

// care looks after what c was made with until c or ctx ends. It asks for another
// connection, once, when files have changed or the login comes to its end.
func (u *Uplink) care(ctx context.Context, c *Conn, f *files, renew chan<- struct{}) {
	look := time.NewTicker(u.lookEvery)
	defer look.Stop()
	certs := c.State.Certs
	asked := time.Now()
	for {
		if u.certNews.look(certs, time.Now()) > certGood && time.Since(asked) >= u.lookAgain {
			asked = time.Now()
			if now := u.shown(ctx, c); now != nil {
				certs = now
				u.setCerts(certs)
			}
		}
		select {
		case <-look.C:
		case <-c.Lost():
			return
		case <-ctx.Done():
			return
		}
		if !c.renewAt.IsZero() && time.Now().After(c.renewAt) {
			u.log.Debug("token comes to its end, connecting with another")
			renew <- struct{}{}
			return
		}
		if !f.changed() {
			continue
		}
		if err := usable(u.cfg); err != nil {
			u.log.Warn("changed files cannot be used, the connection stays", "err", err)
			continue
		}
		u.log.Info("certificate or password files have changed, connecting anew")
		renew <- struct{}{}
		return
	}
}
