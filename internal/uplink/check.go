package uplink

import (
	"fmt"
	"strings"
	"time"

	"fieldgate/internal/config"
)

// Finding is what a look at an uplink's files has to say.
type Finding struct {
	Key     string // tls.ca, tls.cert
	Text    string // what is wrong; what to do
	Warning bool   // it may work all the same
}

// certWarning is how long before its end a certificate is spoken of.
const certWarning = 30 * 24 * time.Hour

// CheckFiles reads the certificates and keys that an uplink names, as each
// connection does, and returns what is wrong with them at the time now. It does
// not connect. A PKCS#12 file whose password this process has no access to (a
// systemd credential, a variable of the service) is left alone.
func CheckFiles(cfg config.Uplink, now time.Time) []Finding {
	var found []Finding
	if cfg.TLS.CA != "" {
		if _, err := authorities(cfg.TLS.CA); err != nil {
			found = append(found, Finding{Key: "tls.ca", Text: err.Error() + "; write the path of a PEM or DER certificate, or leave ca out for the system's"})
		}
	}
	if cfg.TLS.Cert == "" {
		return found
	}
	if _, err := cfg.TLS.Password.Read(); err != nil {
		return append(found, Finding{Key: "tls.cert", Warning: true, Text: fmt.Sprintf("not looked into: %v", err)})
	}
	cert, err := clientCertificate(cfg.TLS)
	if err != nil {
		return append(found, Finding{Key: "tls.cert", Text: err.Error()})
	}
	leaf := cert.Leaf
	if leaf == nil {
		return append(found, Finding{Key: "tls.cert", Text: "there is no certificate in it"})
	}
	warn := func(format string, args ...any) {
		found = append(found, Finding{Key: "tls.cert", Warning: true, Text: fmt.Sprintf(format, args...)})
	}
	const date = time.DateOnly
	switch left := leaf.NotAfter.Sub(now); {
	case left <= 0:
		warn("the certificate ended on %s; renew it", leaf.NotAfter.UTC().Format(date))
	case left < certWarning:
		warn("the certificate ends on %s, in %d days; renew it", leaf.NotAfter.UTC().Format(date), int(left/(24*time.Hour)))
	case now.Before(leaf.NotBefore):
		warn("the certificate is valid from %s on; look at this machine's clock", leaf.NotBefore.UTC().Format(date))
	}
	// Several brokers let a client in only under its certificate's name.
	if cn := leaf.Subject.CommonName; cn != "" && !strings.EqualFold(cn, cfg.ClientID) {
		warn("the certificate is that of %q, and client_id is %q; brokers that want both the same will refuse it", cn, cfg.ClientID)
	}
	return found
}
