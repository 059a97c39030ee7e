package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"fieldgate/internal/config"
)

// Step is how far a connection has come.
type Step string

// The steps of a connection, in order.
const (
	StepFiles     Step = "files" // secrets, certificates and keys are read
	StepDNS       Step = "dns"
	StepTCP       Step = "tcp"
	StepProxy     Step = "proxy"
	StepTLS       Step = "tls"
	StepWebSocket Step = "websocket"
	StepConnect   Step = "connect" // CONNECT is sent, CONNACK awaited
	StepSession   Step = "session" // connected
)

// Steps of a Test beyond those.
const (
	StepSubscribe Step = "subscribe" // SUBSCRIBE is sent, SUBACK awaited
	StepPublish   Step = "publish"   // PUBLISH is sent, PUBACK awaited
	StepReceive   Step = "receive"   // what was published comes back
)

// Fault is why a connection was not made or did not last: the step it failed
// at, in words, and what to do about it. The words do not change from try to
// try, so that a log can tell news from repetition.
type Fault struct {
	Step   Step
	Text   string // what is wrong
	Remedy string // what to do; "" where there is nothing but to wait
	Err    error  // cause, may be nil

	// Refused: the other side (or a file of ours) said no. Trying again at
	// once is of no use, as it may be with a network that is down.
	Refused bool
}

// Error implements error: "tls: what is wrong; what to do".
func (f *Fault) Error() string {
	s := string(f.Step) + ": " + f.Text
	if f.Remedy != "" {
		s += "; " + f.Remedy
	}
	return s
}

// Unwrap returns the cause.
func (f *Fault) Unwrap() error { return f.Err }

// ByBroker reports whether the broker itself answered, with a no: to CONNECT or
// to a subscription, or in silence to a message. All other faults are of the way
// there, or of silence.
func (f *Fault) ByBroker() bool {
	var r refusal
	return errors.As(f.Err, &r) || errors.Is(f.Err, ErrSubscriptionRefused) || errors.Is(f.Err, errNotPassedOn)
}

// errProtocol is wrapped by errors that say a broker broke the protocol.
var errProtocol = errors.New("protocol error")

// refusal is the return code of a CONNACK, never 0 (clause 3.2.2.3).
type refusal byte

func (r refusal) Error() string { return fmt.Sprintf("CONNACK with return code %d", byte(r)) }

// dialFault explains why no TCP connection to addr came to be. who names the
// other end: "broker" or "proxy".
func dialFault(err error, who, addr string, timeout time.Duration) *Fault {
	f := &Fault{Step: StepTCP, Err: err}
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		f.Step, f.Text, f.Remedy = StepDNS, fmt.Sprintf("no such host: %s", dns.Name), "check the name, and the DNS server of this machine"
	case errors.As(err, &dns):
		f.Step, f.Text, f.Remedy = StepDNS, fmt.Sprintf("no answer from DNS for %s", dns.Name), "check the network and the DNS server of this machine"
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Text, f.Remedy = fmt.Sprintf("connection refused by %s", addr), fmt.Sprintf("is the %s running, and is this its port?", who)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		f.Text, f.Remedy = fmt.Sprintf("no route to %s", addr), "check cable, address and gateway of this machine"
	case isTimeout(err):
		f.Text, f.Remedy = fmt.Sprintf("no answer from %s within %v", addr, timeout), "check the address, and firewalls on the way"
	default:
		f.Text = fmt.Sprintf("cannot connect to %s: %v", addr, bare(err))
	}
	return f
}

// tlsFault explains a failed handshake with host.
func tlsFault(err error, host string, timeout time.Duration) *Fault {
	f := &Fault{Step: StepTLS, Err: err, Refused: true}
	var (
		unknown  x509.UnknownAuthorityError
		name     x509.HostnameError
		invalid  x509.CertificateInvalidError
		noTLS    tls.RecordHeaderError
		verifier *tls.CertificateVerificationError
	)
	switch {
	case errors.As(err, &unknown):
		f.Text = "the broker's certificate is signed by an authority this machine does not know"
		f.Remedy = "give the authority's certificate as tls.ca"
		if unknown.Cert != nil {
			f.Text += fmt.Sprintf(" (issuer %q)", unknown.Cert.Issuer)
		}
	case errors.As(err, &name):
		f.Text = fmt.Sprintf("the broker's certificate is not for %s: %v", host, name)
		f.Remedy = "use the name in the certificate, in the url or as tls.server_name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		f.Text = fmt.Sprintf("the broker's certificate is valid from %s to %s, and this machine's clock is outside of that", day(invalid.Cert.NotBefore), day(invalid.Cert.NotAfter))
		f.Remedy = "renew it, or set the clock"
	case errors.As(err, &verifier):
		f.Text = fmt.Sprintf("the broker's certificate is not good: %v", verifier.Err)
	case errors.As(err, &noTLS):
		f.Text = "the other end does not speak TLS"
		f.Remedy = "is this the port for TLS (8883, 443)? without TLS the url begins with mqtt:// or ws://"
	case alertOf(err) != "":
		f.Text, f.Remedy = alertText(alertOf(err))
	case isTimeout(err):
		f.Text, f.Remedy, f.Refused = fmt.Sprintf("the handshake took longer than %v", timeout), "is this the port for TLS?", false
	case isHangup(err):
		f.Text, f.Remedy = "the other end closed the connection during the handshake", "is this the port for TLS, and does the broker want a client certificate (tls.cert)?"
	default:
		f.Text = bare(err).Error()
	}
	return f
}

// alertOf returns what the other end said to end TLS ("tls: bad certificate"),
// or "" if err is nothing of the kind.
func alertOf(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return op.Err.Error()
	}
	return ""
}

// alertText explains what the broker said to end TLS.
func alertText(alert string) (text, remedy string) {
	text = fmt.Sprintf("the broker refused the handshake: %s", alert)
	switch alert {
	case "tls: certificate required":
		return "the broker wants a client certificate", "give it as tls.cert and tls.key"
	case "tls: expired certificate":
		return "the broker says that our client certificate has expired", "renew tls.cert, or set the broker's clock"
	case "tls: bad certificate", "tls: unsupported certificate", "tls: revoked certificate", "tls: unknown certificate", "tls: unknown certificate authority", "tls: access denied":
		return fmt.Sprintf("the broker does not accept our client certificate: %s", alert), "check tls.cert, and that the broker knows who signed it"
	case "tls: handshake failure":
		remedy = "it may want a client certificate (tls.cert and tls.key)"
	case "tls: protocol version not supported":
		remedy = "it speaks no TLS version that tls.min allows"
	case "tls: unrecognized name":
		remedy = "check the host in the url, and tls.server_name"
	case "tls: no application protocol":
		remedy = "check tls.alpn"
	}
	return text, remedy
}

// connectFault explains why CONNECT was not accepted.
func connectFault(err error, cfg config.Uplink, scheme string) *Fault {
	f := &Fault{Step: StepConnect, Err: err, Refused: true}
	var r refusal
	switch {
	case errors.As(err, &r):
		switch r {
		case 1:
			f.Text, f.Remedy = "the broker does not speak MQTT 3.1.1", "enable that version on it"
		case 2:
			f.Text, f.Remedy = fmt.Sprintf("the broker does not accept the client id %q", cfg.ClientID), "set client_id to one it allows; some want the common name of the client certificate"
		case 3:
			f.Text, f.Refused = "the broker is there, but says that MQTT is unavailable", false
		case 4:
			f.Text, f.Remedy = "user name or password are wrong", "check username and password"
		case 5:
			f.Text, f.Remedy = "the broker does not let us in", "check username, password, client_id and the broker's access rules"
			if cfg.AzureSAS != nil {
				f.Remedy = "check azure_sas.key, that client_id is the device's id, and the clock of this machine"
			}
		default:
			f.Text = fmt.Sprintf("the broker answered with the unknown return code %d", byte(r))
		}
	case alertOf(err) != "": // TLS 1.3: a client certificate is judged after the handshake
		f.Step = StepTLS
		f.Text, f.Remedy = alertText(alertOf(err))
	case errors.Is(err, errProtocol):
		f.Text, f.Remedy = bare(err).Error(), "is this the port of an MQTT broker?"
	case isTimeout(err):
		f.Text, f.Remedy, f.Refused = fmt.Sprintf("no answer to CONNECT within %v", cfg.ConnectTimeout), "is this the port of an MQTT broker?", false
	case isHangup(err):
		f.Text = "the other end closed the connection instead of an answer to CONNECT"
		f.Remedy = "check client_id, username and password"
		switch {
		case scheme == "mqtt":
			f.Remedy += "; is this a port for TLS (mqtts://)?"
		case scheme == "ws":
		case cfg.TLS.Cert == "":
			f.Remedy += "; does the broker want a client certificate (tls.cert)?"
		default:
			f.Remedy += "; does the broker know who signed our client certificate (tls.cert)?"
		}
	default:
		f.Text = bare(err).Error()
	}
	return f
}

// sessionFault explains the end of a connection that was up.
func sessionFault(err error) *Fault {
	var f *Fault
	if errors.As(err, &f) {
		return f
	}
	f = &Fault{Step: StepSession, Err: err}
	switch {
	case errors.Is(err, errProtocol):
		f.Text, f.Refused = bare(err).Error(), true
	case errors.Is(err, syscall.ETIMEDOUT), isTimeout(err):
		f.Text = "the link is dead: what was sent did not arrive"
	case isHangup(err):
		f.Text = "the broker closed the connection"
	default:
		f.Text = bare(err).Error()
	}
	return f
}

// isHangup reports whether the other end closed the connection.
func isHangup(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &n) && n.Timeout()
}

// bare takes off what package net puts around a cause: addresses with a port
// of ours that is another one each time.
func bare(err error) error {
	for {
		var op *net.OpError
		if !errors.As(err, &op) {
			return err
		}
		err = op.Err
	}
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02") }
