package uplink

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Whose a certificate is.
const (
	WhoseBroker    = "broker"
	WhoseAuthority = "authority" // one that signed the broker's and ends before it
	WhoseOwn       = "own"
)

// Certificate is one that a connection was made with.
type Certificate struct {
	Whose           string    // one of the words above
	Subject, Issuer string    // as in RFC 4514: CN=...,O=...
	Fingerprint     string    // SHA-256, as openssl prints it
	NotAfter        time.Time // it is good until then
}

// DaysLeft returns how many whole days the certificate is still good for at the
// time now, below 0 once it has ended.
func (c Certificate) DaysLeft(now time.Time) int {
	const day = 24 * time.Hour
	left := c.NotAfter.Sub(now)
	if left < 0 {
		left -= day - 1 // rounds down
	}
	return int(left / day)
}

// CertDaysLeft returns the certificate that ends first and its days left at the
// time now; ok is false without any.
func (s Status) CertDaysLeft(now time.Time) (c Certificate, days int, ok bool) {
	for i, each := range s.Certs {
		if i == 0 || each.NotAfter.Before(c.NotAfter) {
			c = each
		}
	}
	return c, c.DaysLeft(now), len(s.Certs) > 0
}

func newCertificate(whose string, c *x509.Certificate) Certificate {
	var hex []string
	for _, b := range sha256.Sum256(c.Raw) {
		hex = append(hex, fmt.Sprintf("%02X", b))
	}
	return Certificate{
		Whose: whose, Subject: c.Subject.String(), Issuer: c.Issuer.String(),
		Fingerprint: strings.Join(hex, ":"), NotAfter: c.NotAfter,
	}
}

// certificates returns those of a connection, the broker's first, and the length
// of the broker's chain: up to the authority that we trust, or as it was sent
// where nobody checked. own is nil without a client certificate.
func certificates(state *tls.ConnectionState, own *x509.Certificate) (certs []Certificate, chain int) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return nil, 0
	}
	leaf := state.PeerCertificates[0]
	certs = append(certs, newCertificate(WhoseBroker, leaf))
	chain = len(state.PeerCertificates)
	var ends *x509.Certificate // first of the chain that lasts longest
	for _, c := range state.VerifiedChains {
		first := c[0]
		for _, cert := range c {
			if cert.NotAfter.Before(first.NotAfter) {
				first = cert
			}
		}
		if ends == nil || first.NotAfter.After(ends.NotAfter) {
			ends, chain = first, len(c)
		}
	}
	if ends != nil && ends.NotAfter.Before(leaf.NotAfter) {
		certs = append(certs, newCertificate(WhoseAuthority, ends))
	}
	if own != nil {
		certs = append(certs, newCertificate(WhoseOwn, own))
	}
	return certs, chain
}

// certAge is how urgent the end of a certificate is.
type certAge uint8

const (
	certGood   certAge = iota
	certMonth          // ends within 30 days
	certWeek           // within 7
	certsEnded         // has ended
)

func ageOf(c Certificate, now time.Time) certAge {
	switch left := c.DaysLeft(now); {
	case left < 0:
		return certsEnded
	case left < 7:
		return certWeek
	case left < 30:
		return certMonth
	}
	return certGood
}

// certNews warns of certificates that end, each once for 30 days, 7 days and its
// end.
type certNews struct {
	log  *slog.Logger
	told map[string]certAge // by fingerprint, of the certificates of now
}

// look returns the most urgent age of what is not our own.
func (n *certNews) look(certs []Certificate, now time.Time) (theirs certAge) {
	told := make(map[string]certAge, len(certs))
	for _, c := range certs {
		age := ageOf(c, now)
		if c.Whose != WhoseOwn {
			theirs = max(theirs, age)
		}
		told[c.Fingerprint] = max(age, n.told[c.Fingerprint])
		if age <= n.told[c.Fingerprint] {
			continue
		}
		n.log.Warn("certificate ends, renew it", "whose", c.Whose, "subject", c.Subject, "ends", day(c.NotAfter), "days_left", c.DaysLeft(now))
	}
	n.told = told
	return theirs
}

// shown asks the broker for the certificates that it has now, by a handshake
// that nothing follows: those of a connection that has lasted for months may
// have been renewed since. It returns nil when that fails.
func (u *Uplink) shown(ctx context.Context, c *Conn) []Certificate {
	s, err := dial(ctx, u.cfg, c.url, c.patience, nil)
	if err != nil {
		return nil
	}
	_ = s.Close()
	certs, _ := certificates(s.tls, s.own)
	return certs
}
