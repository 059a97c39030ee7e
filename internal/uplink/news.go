package uplink

import (
	"log/slog"
	"time"
)

// newsMost bounds how many different faults are logged before the uplink is
// connected again.
const newsMost = 20

// news logs what changes about an uplink, once. A fault that is only repeated
// is not news, nor are the ups and downs of a connection that does not last.
type news struct {
	log   *slog.Logger
	up    bool            // logged as connected, and nothing since
	told  map[string]bool // faults logged since it was
	short int             // connections in a row that did not last
}

// connected notes a connection that has proved itself. One that follows another
// in good order is no news.
func (n *news) connected(s Status) {
	if n.short < 2 && !n.up {
		n.tellConnected(s)
	}
}

// lasting notes that a connection has lasted for the time called healthy.
func (n *news) lasting(s Status) {
	n.short = 0
	if !n.up {
		n.tellConnected(s)
	}
}

func (n *news) tellConnected(s Status) {
	args := []any{"url", s.URL, "as", s.Word}
	if s.Version != "" {
		args = append(args, "tls", s.Version, "cipher", s.Cipher)
	}
	if len(s.Certs) > 0 {
		c := s.Certs[0]
		args = append(args, "certificate", c.Subject, "issuer", c.Issuer, "fingerprint", c.Fingerprint, "chain", s.Chain, "ends", day(c.NotAfter))
	}
	n.log.Info("uplink connected", args...)
	n.up, n.told = true, nil
}

// failed notes a try to connect that failed, or the end of a connection that
// lasted for a while.
func (n *news) failed(err error, lasted time.Duration) {
	n.up = false
	switch {
	case lasted >= healthy:
		n.short = 0
	case lasted > 0:
		n.short++
	}
	text := err.Error()
	if n.told[text] || len(n.told) >= newsMost {
		return
	}
	if n.told == nil {
		n.told = make(map[string]bool)
	}
	n.told[text] = true
	n.log.Warn("uplink not connected, messages wait", "err", text)
}
