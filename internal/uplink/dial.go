package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"

	"fieldgate/internal/config"
	"fieldgate/internal/quick"
)

// ParseURL reads a broker's address, mqtt:// mqtts:// ws:// or wss://, and
// fills in what may be left out: the port (1883, 8883, 80, 443) and the path of
// a WebSocket (/mqtt).
func ParseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("url %q: %w", text, errors.Unwrap(err))
	}
	ports := map[string]string{"mqtt": "1883", "mqtts": "8883", "ws": "80", "wss": "443"}
	port, ok := ports[u.Scheme]
	switch {
	case !ok:
		return nil, fmt.Errorf("url %q: a broker's url begins with mqtt://, mqtts://, ws:// or wss://", text)
	case u.Hostname() == "":
		return nil, fmt.Errorf("url %q: no host in it; write %s://HOST:%s", text, u.Scheme, port)
	}
	if strings.Contains(u.Hostname(), ":") && u.Host[0] != '[' {
		return nil, fmt.Errorf("url %q: an IPv6 address stands in brackets; write %s://[::1]:%s", text, u.Scheme, port)
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
	if socket := u.Scheme == "ws" || u.Scheme == "wss"; socket && (u.Path == "" || u.Path == "/") {
		u.Path = "/mqtt"
	} else if !socket && strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("url %q: only ws:// and wss:// have a path", text)
	}
	return u, nil
}

// dial opens the byte stream that u names: TCP, through a proxy where one is
// set, with TLS and WebSocket as the scheme says. ctx and timeout bound it as a
// whole. passed, unless it is nil, is called after each step with what there is by
// then. The errors are *Fault.
func dial(ctx context.Context, cfg config.Uplink, u *url.URL, timeout time.Duration, passed func(Step, stream)) (stream, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if passed == nil {
		passed = func(Step, stream) {}
	}
	via, err := proxyFor(cfg.Proxy, u)
	if err != nil {
		return stream{}, err
	}
	conn, err := dialTCP(ctx, cfg, u, via, timeout)
	if err != nil {
		return stream{}, err
	}
	if via == nil {
		passed(StepTCP, stream{Conn: conn, tcp: conn})
	} else {
		passed(StepProxy, stream{Conn: conn, tcp: conn})
	}
	// Whatever waits in the handshakes below ends with ctx.
	s := stream{Conn: conn, tcp: conn}
	stop := context.AfterFunc(ctx, func() { _ = s.tcp.SetDeadline(longAgo) })
	defer stop()
	if u.Scheme == "mqtts" || u.Scheme == "wss" {
		secure, own, err := handshake(ctx, cfg, u, conn, timeout)
		if err != nil {
			_ = conn.Close()
			return stream{}, err
		}
		state := secure.ConnectionState()
		s.Conn, s.tls, s.own = secure, &state, own
		passed(StepTLS, s)
	}
	if u.Scheme == "ws" || u.Scheme == "wss" {
		if s.Conn, err = upgrade(ctx, u, s.Conn, timeout); err != nil {
			_ = conn.Close()
			return stream{}, err
		}
		passed(StepWebSocket, s)
	}
	if !stop() {
		_ = conn.Close() // it has a deadline in the past by now, or will have
		return stream{}, dialFault(ctx.Err(), "broker", u.Host, timeout)
	}
	return s, nil
}

// stream is an open byte stream to a broker.
type stream struct {
	net.Conn                      // what MQTT is spoken on
	tcp      net.Conn             // what it is made of: TCP, to the broker or the proxy
	tls      *tls.ConnectionState // nil without TLS to the broker
	own      *x509.Certificate    // nil without a client certificate
}

// handshake returns the connection and the certificate that we have for it, nil
// without one.
func handshake(ctx context.Context, cfg config.Uplink, u *url.URL, conn net.Conn, timeout time.Duration) (*tls.Conn, *x509.Certificate, error) {
	c, err := tlsConfig(cfg.TLS, u.Hostname())
	if err != nil {
		return nil, nil, err
	}
	if u.Scheme == "wss" && len(c.NextProtos) == 0 {
		c.NextProtos = []string{"http/1.1"} // a server that prefers HTTP/2 could not upgrade
	}
	secure := tls.Client(conn, c)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, nil, tlsFault(err, c.ServerName, timeout)
	}
	if len(c.Certificates) > 0 {
		return secure, c.Certificates[0].Leaf, nil
	}
	return secure, nil, nil
}

// userTimeout is how long sent data may stay unacknowledged by the other end's
// TCP before the kernel gives the connection up, if the keep-alive is not
// shorter. Without it a dead link is noticed only by a keep-alive ping.
const userTimeout = 20 * time.Second

// unsentMost is how many bytes may wait in the kernel before they are sent. It
// would take megabytes, which on a slow link is minutes: a ping behind them comes
// too late, and messages with QoS 0 count as sent that may never leave.
const unsentMost = 64 << 10

// dialTCP connects to the host of u, through the proxy via unless it is nil.
func dialTCP(ctx context.Context, cfg config.Uplink, u, via *url.URL, timeout time.Duration) (net.Conn, error) {
	patience := userTimeout
	if cfg.Keepalive > 0 {
		patience = min(patience, cfg.Keepalive*3/2)
	}
	d := &net.Dialer{
		KeepAlive: -1, // MQTT pings keep the connection alive
		Control: func(_, _ string, c syscall.RawConn) error {
			var errs error
			err := c.Control(func(fd uintptr) {
				errs = errors.Join(
					unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(patience.Milliseconds())),
					unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentMost),
				)
			})
			return errors.Join(err, errs)
		},
	}
	if via == nil {
		conn, err := d.DialContext(ctx, "tcp", u.Host)
		if err != nil {
			return nil, dialFault(err, "broker", u.Host, timeout)
		}
		return quick.Conn(conn), nil
	}
	return dialProxy(ctx, d, via, u.Host, timeout)
}

// upgrade makes a WebSocket of conn (clause 6).
func upgrade(ctx context.Context, u *url.URL, conn net.Conn, timeout time.Duration) (net.Conn, error) {
	given := func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	d := websocket.Dialer{
		NetDialContext:    given,
		NetDialTLSContext: given,
		Subprotocols:      []string{"mqtt"},
	}
	target := *u
	target.User = nil
	ws, answer, err := d.DialContext(ctx, target.String(), nil)
	if err == nil {
		return &socket{Conn: ws}, nil
	}
	f := &Fault{Step: StepWebSocket, Err: err, Refused: true}
	switch {
	case answer != nil && answer.StatusCode == http.StatusNotFound:
		f.Text, f.Remedy = fmt.Sprintf("the server has no %s", u.Path), "check the path in the url; many brokers use /mqtt or /ws"
	case answer != nil:
		f.Text, f.Remedy = fmt.Sprintf("the server answers %s", answer.Status), "is this the broker's port for WebSocket, and the path right?"
	case isTimeout(err):
		f.Text, f.Remedy, f.Refused = fmt.Sprintf("the server did not answer within %v", timeout), "is this the broker's port for WebSocket?", false
	case isHangup(err):
		f.Text, f.Remedy = "the server closed the connection instead of an answer", "is this the broker's port for WebSocket?"
	default:
		f.Text, f.Remedy = bare(err).Error(), "is this the broker's port for WebSocket?"
	}
	return nil, f
}

// socket is a WebSocket as a stream of bytes; where its messages begin and end
// means nothing to MQTT (clause 6).
type socket struct {
	*websocket.Conn
	msg io.Reader // rest of the message being read
}

func (s *socket) Read(p []byte) (int, error) {
	for {
		if s.msg == nil {
			kind, msg, err := s.NextReader()
			if err != nil {
				var closed *websocket.CloseError
				if errors.As(err, &closed) {
					err = fmt.Errorf("websocket closed with code %d: %w", closed.Code, io.EOF)
				}
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, fmt.Errorf("%w: the broker sent text on the WebSocket", errProtocol)
			}
			s.msg = msg
		}
		n, err := s.msg.Read(p)
		if errors.Is(err, io.EOF) {
			s.msg, err = nil, nil
			if n == 0 {
				continue
			}
		}
		return n, err
	}
}

func (s *socket) Write(p []byte) (int, error) {
	if err := s.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *socket) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}
