package uplink

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
)

// Passage is one step of a Test.
type Passage struct {
	Step  Step
	Took  time.Duration // since the end of the step before
	Text  string        // what was found
	Fault *Fault        // why it failed; nil: it did not

	Certs []Certificate // of StepTLS
	Chain int           // length of the broker's chain
}

// receivePatience is how long a broker may take to pass on what it has
// acknowledged.
const receivePatience = 3 * time.Second

// errNotPassedOn is wrapped by the fault of a broker that acknowledges a message
// and drops it.
var errNotPassedOn = errors.New("the message did not come back")

// Test connects to the broker at rawURL as an uplink with the rest of cfg does,
// subscribes to topic, publishes a message there and waits for it to come back.
// Each wait is at most as long as the connect timeout. Without a topic it stops once it
// is connected. It only publishes where the broker passes nothing on (NoStatus),
// or keeps our session, of which a test changes nothing. tell is given each step as it ends. Test returns the first *Fault, or ctx's
// error.
func Test(ctx context.Context, cfg config.Uplink, rawURL, topic string, tell func(Passage)) error {
	if cfg.ConnectTimeout <= 0 {
		cfg.ConnectTimeout = connectTimeout
	}
	t := &test{cfg: cfg, tell: tell, began: time.Now()}
	c, err := t.connect(ctx, rawURL)
	if err != nil || c == nil {
		return err
	}
	defer c.Close()
	if topic == "" {
		return nil
	}
	first := error(nil)
	subscribed := false
	if !cfg.NoStatus && cfg.CleanSession {
		first = t.try(ctx, StepSubscribe, "the broker did not answer the subscription to "+topic, func(ctx context.Context) (string, error) {
			qos, err := c.Subscribe(ctx, mqtt.Filter(topic), 1)
			return fmt.Sprintf("%s, QoS %d", topic, qos), err
		})
		subscribed = first == nil
	}
	if c.Err() != nil || ctx.Err() != nil {
		return errors.Join(first, ctx.Err())
	}
	payload := "fieldgate mqtt test " + rand.Text()
	err = t.try(ctx, StepPublish, "the broker did not acknowledge a message on "+topic, func(ctx context.Context) (string, error) {
		return topic + ", acknowledged (PUBACK)", c.Publish(ctx, mqtt.Message{Topic: topic, Payload: []byte(payload), QoS: 1})
	})
	if first == nil {
		first = err
	}
	if err != nil || !subscribed {
		return first
	}
	if t.cfg.ConnectTimeout > receivePatience {
		t.cfg.ConnectTimeout = receivePatience // it is there by now, or never
	}
	return t.try(ctx, StepReceive, "", func(ctx context.Context) (string, error) {
		for {
			select {
			case got := <-t.came:
				if got == payload {
					return "the message came back", nil
				}
			case <-c.Lost():
				return "", c.Err()
			case <-ctx.Done():
				return "", &Fault{
					Step: StepReceive, Text: "the broker acknowledged the message and did not pass it on", Err: errNotPassedOn,
					Remedy: fmt.Sprintf("its access rules drop what they refuse; let this user publish on and subscribe to %s, or test another by --topic", topic),
				}
			}
		}
	})
}

// test is a Test under way.
type test struct {
	cfg   config.Uplink
	tell  func(Passage)
	began time.Time // of the step
	came  chan string
}

// passed tells of a step that went well.
func (t *test) passed(p Passage) {
	p.Took = time.Since(t.began)
	t.tell(p)
	t.began = time.Now()
}

// failed tells of a step that did not, and returns its fault.
func (t *test) failed(err error) error {
	var f *Fault
	if !errors.As(err, &f) {
		return err // ctx has ended
	}
	p := Passage{Step: f.Step, Fault: f}
	var bad *tls.CertificateVerificationError
	if errors.As(f.Err, &bad) { // what is wrong with a certificate is best seen in it
		p.Certs, p.Chain = certificates(&tls.ConnectionState{PeerCertificates: bad.UnverifiedCertificates}, nil)
	}
	t.passed(p)
	return f
}

// try runs one step on a connection. silence is what is wrong when it has not
// ended in time.
func (t *test) try(ctx context.Context, step Step, silence string, do func(context.Context) (string, error)) error {
	limit, cancel := context.WithTimeout(ctx, t.cfg.ConnectTimeout)
	defer cancel()
	t.began = time.Now()
	text, err := do(limit)
	switch {
	case err == nil:
		t.passed(Passage{Step: step, Text: text})
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return t.failed(&Fault{Step: step, Text: fmt.Sprintf("%s within %v", silence, t.cfg.ConnectTimeout), Remedy: "look at its log and its load", Err: err})
	}
	f := *sessionFault(err)
	f.Step = step
	if isHangup(err) && f.Remedy == "" {
		f.Remedy = "many brokers do so over a topic that they do not allow; check its access rules, or test another by --topic"
	}
	return t.failed(&f)
}

// connect goes the way of Connect and dial, and tells of each step.
func (t *test) connect(ctx context.Context, rawURL string) (*Conn, error) {
	u, err := ParseURL(rawURL)
	if err != nil {
		return nil, t.failed(&Fault{Step: StepFiles, Text: err.Error(), Err: err, Refused: true})
	}
	login, err := loginFor(t.cfg, u.Hostname(), time.Now())
	if err != nil {
		return nil, t.failed(secretFault(err))
	}
	if u.Scheme == "mqtts" || u.Scheme == "wss" {
		if _, err := tlsConfig(t.cfg.TLS, u.Hostname()); err != nil {
			return nil, t.failed(err)
		}
	}
	if err := t.resolve(ctx, u); err != nil {
		return nil, t.failed(orStopped(ctx, err))
	}
	made, err := dial(ctx, t.cfg, u, t.cfg.ConnectTimeout, func(step Step, s stream) {
		p := Passage{Step: step}
		switch step {
		case StepTCP:
			p.Text = s.tcp.RemoteAddr().String()
		case StepProxy:
			p.Text = fmt.Sprintf("%s through %s", u.Host, s.tcp.RemoteAddr())
		case StepTLS:
			p.Text = tls.VersionName(s.tls.Version) + " " + tls.CipherSuiteName(s.tls.CipherSuite)
			p.Certs, p.Chain = certificates(s.tls, s.own)
		case StepWebSocket:
			p.Text = u.Path
		}
		t.passed(p)
	})
	if err != nil {
		return nil, t.failed(orStopped(ctx, err))
	}
	t.came = make(chan string, 16)
	var safe []<-chan struct{}
	if !t.cfg.CleanSession {
		safe = append(safe, make(chan struct{})) // what the broker kept for the gateway is not ours to acknowledge
	}
	c, err := greeted(ctx, t.cfg, u, login, made, ConnOptions{Handler: func(m mqtt.Message) []<-chan struct{} {
		select {
		case t.came <- string(m.Payload):
		default: // not ours: ours comes alone
		}
		return safe
	}})
	if err != nil {
		return nil, t.failed(err)
	}
	t.passed(Passage{Step: StepConnect, Text: fmt.Sprintf("accepted as %s", t.cfg.ClientID)})
	return c, nil
}

// resolve looks up the broker's name. With a proxy that is the proxy's task.
func (t *test) resolve(ctx context.Context, u *url.URL) error {
	via, err := proxyFor(t.cfg.Proxy, u)
	if err != nil || via != nil {
		return err
	}
	if _, err := netip.ParseAddr(u.Hostname()); err == nil {
		return nil
	}
	limit, cancel := context.WithTimeout(ctx, t.cfg.ConnectTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupHost(limit, u.Hostname())
	if err != nil {
		return dialFault(err, "broker", u.Host, t.cfg.ConnectTimeout)
	}
	t.passed(Passage{Step: StepDNS, Text: fmt.Sprintf("%s is %s", u.Hostname(), strings.Join(addrs, ", "))})
	return nil
}
