package uplink

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"
	"golang.org/x/sys/unix"

	"fieldgate/internal/config"
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
// whole. The errors are *Fault.
func dial(ctx context.Context, cfg config.Uplink, u *url.URL, timeout time.Duration) (stream, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := dialTCP(ctx, cfg, u, timeout)
	if err != nil {
		return stream{}, err
	}
	// Whatever waits in the handshakes below ends with ctx.
	s := stream{Conn: conn, tcp: conn}
	stop := context.AfterFunc(ctx, func() { _ = s.tcp.SetDeadline(longAgo) })
	defer stop()
	if u.Scheme == "mqtts" || u.Scheme == "wss" {
		secure, err := handshake(ctx, cfg, u, conn, timeout)
		if err != nil {
			_ = conn.Close()
			return stream{}, err
		}
		state := secure.ConnectionState()
		s.Conn, s.tls = secure, &state
	}
	if u.Scheme == "ws" || u.Scheme == "wss" {
		if s.Conn, err = upgrade(ctx, u, s.Conn, timeout); err != nil {
			_ = conn.Close()
			return stream{}, err
		}
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
}

func handshake(ctx context.Context, cfg config.Uplink, u *url.URL, conn net.Conn, timeout time.Duration) (*tls.Conn, error) {
	c, err := tlsConfig(cfg.TLS, u.Hostname())
	if err != nil {
		return nil, err
	}
	if u.Scheme == "wss" && len(c.NextProtos) == 0 {
		c.NextProtos = []string{"http/1.1"} // a server that prefers HTTP/2 could not upgrade
	}
	secure := tls.Client(conn, c)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, tlsFault(err, c.ServerName, timeout)
	}
	return secure, nil
}

// userTimeout is how long sent data may stay unacknowledged by the other end's
// TCP before the kernel gives the connection up. Without it a dead link is
// noticed only by a keep-alive ping.
const userTimeout = 20 * time.Second

func dialTCP(ctx context.Context, cfg config.Uplink, u *url.URL, timeout time.Duration) (net.Conn, error) {
	d := &net.Dialer{
		KeepAlive: -1, // MQTT pings keep the connection alive
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			if cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
			}); cerr != nil {
				return cerr
			}
			return err
		},
	}
	via, err := proxyFor(cfg.Proxy, u)
	if err != nil {
		return nil, err
	}
	if via == nil {
		conn, err := d.DialContext(ctx, "tcp", u.Host)
		if err != nil {
			return nil, dialFault(err, "broker", u.Host, timeout)
		}
		return conn, nil
	}
	return dialProxy(ctx, d, via, u.Host, timeout)
}

// proxyFor returns the proxy for u, nil for none: the one that is set, for
// every host, else the environment's by the customs of curl: HTTP_PROXY for ws,
// HTTPS_PROXY for wss, ALL_PROXY for mqtt and mqtts, none for what NO_PROXY
// names and for this machine itself.
func proxyFor(set string, u *url.URL) (*url.URL, error) {
	if set != "" {
		via, err := url.Parse(set)
		if err != nil || via.Host == "" {
			return nil, &Fault{Step: StepProxy, Text: fmt.Sprintf("%q is no address of a proxy", set), Remedy: "write http://HOST:PORT or https://HOST:PORT", Err: err, Refused: true}
		}
		return via, nil
	}
	env := httpproxy.FromEnvironment()
	as := url.URL{Scheme: "https", Host: u.Host}
	switch u.Scheme {
	case "ws":
		as.Scheme = "http"
	case "mqtt", "mqtts":
		all := os.Getenv("ALL_PROXY")
		if all == "" {
			all = os.Getenv("all_proxy")
		}
		env.HTTPProxy, env.HTTPSProxy = all, all
	}
	via, err := env.ProxyFunc()(&as)
	if err != nil {
		return nil, &Fault{Step: StepProxy, Text: fmt.Sprintf("the environment's proxy: %v", err), Remedy: "check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY, or set proxy", Err: err, Refused: true}
	}
	return via, nil
}

// dialProxy connects to addr through via: HTTP or HTTPS with CONNECT, SOCKS 5.
func dialProxy(ctx context.Context, d *net.Dialer, via *url.URL, addr string, timeout time.Duration) (net.Conn, error) {
	ports := map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}
	port, ok := ports[via.Scheme]
	if !ok {
		return nil, &Fault{Step: StepProxy, Text: fmt.Sprintf("%q is no kind of proxy that is known", via.Scheme), Remedy: "write http://HOST:PORT or https://HOST:PORT", Refused: true}
	}
	host := via.Host
	if via.Port() == "" {
		host = net.JoinHostPort(via.Hostname(), port)
	}
	if strings.HasPrefix(via.Scheme, "socks5") {
		return dialSOCKS(ctx, d, via, host, addr, timeout)
	}
	conn, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, dialFault(err, "proxy", host, timeout)
	}
	raw := conn
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(longAgo) })
	defer stop()
	if via.Scheme == "https" {
		secure := tls.Client(conn, &tls.Config{ServerName: via.Hostname()})
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, &Fault{Step: StepProxy, Text: fmt.Sprintf("TLS with proxy %s: %v", host, bare(err)), Err: err, Refused: !isTimeout(err)}
		}
		conn = secure
	}
	err = connectThrough(conn, via, host, addr, timeout)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	if !stop() {
		_ = conn.Close()
		return nil, dialFault(ctx.Err(), "proxy", host, timeout)
	}
	return conn, nil
}

// longAgo is a deadline that ends whatever waits.
var longAgo = time.Unix(1, 0)

// connectThrough asks the HTTP proxy at the other end of conn for addr.
func connectThrough(conn net.Conn, via *url.URL, host, addr string, timeout time.Duration) error {
	failed := func(err error) error {
		if isTimeout(err) {
			return &Fault{Step: StepProxy, Text: fmt.Sprintf("proxy %s did not reach %s within %v", host, addr, timeout), Remedy: "check the broker's address, and what the proxy allows", Err: err}
		}
		return &Fault{Step: StepProxy, Text: fmt.Sprintf("proxy %s: %v", host, bare(err)), Remedy: "is this an HTTP proxy?", Err: err, Refused: true}
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: addr}, Host: addr, Header: http.Header{}}
	if user := via.User; user != nil {
		password, _ := user.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return failed(err)
	}
	in := bufio.NewReader(io.LimitReader(conn, 16<<10)) // or a stranger could send headers for ever
	answer, err := http.ReadResponse(in, req)
	if err != nil {
		return failed(err)
	}
	if answer.StatusCode != http.StatusOK {
		f := &Fault{Step: StepProxy, Text: fmt.Sprintf("proxy %s answers %s for %s", host, answer.Status, addr), Remedy: "check what the proxy allows", Refused: true}
		switch answer.StatusCode {
		case http.StatusProxyAuthRequired:
			f.Remedy = "write the proxy as http://USER:PASSWORD@HOST:PORT"
		case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			f.Remedy, f.Refused = "the proxy cannot reach the broker", false
		}
		return f
	}
	if in.Buffered() > 0 { // no broker speaks first
		return &Fault{Step: StepProxy, Text: fmt.Sprintf("proxy %s sends more than an answer", host), Remedy: "is this an HTTP proxy?", Refused: true}
	}
	return nil
}

func dialSOCKS(ctx context.Context, d *net.Dialer, via *url.URL, host, addr string, timeout time.Duration) (net.Conn, error) {
	var auth *proxy.Auth
	if user := via.User; user != nil {
		password, _ := user.Password()
		auth = &proxy.Auth{User: user.Username(), Password: password}
	}
	s, err := proxy.SOCKS5("tcp", host, auth, d)
	if err != nil {
		return nil, &Fault{Step: StepProxy, Text: fmt.Sprintf("proxy %s: %v", host, err), Err: err, Refused: true}
	}
	conn, err := s.(proxy.ContextDialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, &Fault{Step: StepProxy, Text: fmt.Sprintf("proxy %s: %v", host, bare(err)), Remedy: "is the proxy running, and does it allow the broker?", Err: err}
	}
	return conn, nil
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
