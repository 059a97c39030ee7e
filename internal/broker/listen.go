package broker

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"github.com/mochi-mqtt/server/v2/listeners"
	"golang.org/x/sys/unix"

	"fieldgate/internal/config"
	"fieldgate/internal/socket"
)

// How many connections may be without a session at a time: in all, and from
// one address. The oldest makes room for a new one, so that a flood of them
// keeps nobody out who says CONNECT at once.
const (
	maxPending     = 64
	maxPendingFrom = 32
)

// listener is one address of the broker: plain TCP, TLS, or WebSocket over
// either. It is the library's listeners.Listener.
type listener struct {
	b    *Broker
	cfg  config.BrokerListener
	tls  *tls.Config // nil: none
	net  net.Listener
	http *http.Server // of ws and wss

	establish listeners.EstablishFn
	done      chan struct{} // closed by Close
	served    chan struct{} // closed when Serve has returned
	once      sync.Once
}

func (l *listener) url() string { return l.cfg.Scheme + "://" + l.cfg.Address + l.cfg.Path }

// ID is the listener's URL: no two can listen on the same.
func (l *listener) ID() string { return l.url() }

// Address is where it listens.
func (l *listener) Address() string { return l.net.Addr().String() }

// Protocol is mqtt, mqtts, ws or wss.
func (l *listener) Protocol() string { return l.cfg.Scheme }

// Init has nothing to do: the listener is open, so that its errors came early.
func (l *listener) Init(*slog.Logger) error { return nil }

// open makes the listeners of the configuration, on the sockets of before where
// it has the same addresses; none stays open after an error.
func (b *Broker) open(before *Broker) (err error) {
	defer func() {
		if err != nil {
			b.closeListeners()
		}
	}()
	if len(b.cfg.Listen) == 0 {
		return errors.New("listen: no listener is configured")
	}
	for _, cfg := range b.cfg.Listen {
		l := &listener{b: b, cfg: cfg, done: make(chan struct{}), served: make(chan struct{})}
		switch cfg.Scheme {
		case "mqtts", "wss":
			if l.tls, err = tlsConfig(b.cfg.TLS, b.log); err != nil {
				return fmt.Errorf("listen %s: %w", l.url(), err)
			}
		case "mqtt", "ws":
		default:
			return fmt.Errorf("listen %s: unknown scheme, want mqtt, mqtts, ws or wss", l.url())
		}
		absent := false
		if had := before.at(cfg.Address); had != nil {
			l.net, err = socket.Again(had)
		} else {
			l.net, absent, err = socket.Listen(cfg.Address)
		}
		if err != nil {
			return fmt.Errorf("listen %s: %w%s", l.url(), err, remedy(err))
		}
		if absent {
			b.log.Warn("the address is not on this machine, it is served once it is", "listen", l.url())
		}
		b.listeners = append(b.listeners, l)
	}
	return nil
}

// at returns the listener that was opened for an address, nil if there is none.
func (b *Broker) at(address string) net.Listener {
	if b == nil {
		return nil
	}
	for _, l := range b.listeners {
		if l.cfg.Address == address {
			return l.net
		}
	}
	return nil
}

// watch has TCP find out that the peer of a connection has vanished, whatever
// keep-alive it asks for.
func (b *Broker) watch(c net.Conn) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	idle := b.cfg.KeepaliveMax / 2
	// Errors are those of a connection that is gone already.
	_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: max(idle, time.Second), Interval: max(idle/3, time.Second), Count: 3})
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		// Data that stays unacknowledged; without it the connection is only found
		// dead later.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(b.cfg.KeepaliveMax/time.Millisecond))
	})
}

// remedy says what to do about an address that cannot be had.
func remedy(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return " (another program has it, perhaps another broker: stop that or choose another port)"
	case errors.Is(err, syscall.EACCES):
		return " (ports below 1024 need the capability CAP_NET_BIND_SERVICE)"
	}
	return ""
}

func (b *Broker) closeListeners() {
	for _, l := range b.listeners {
		l.shut()
	}
}

func (l *listener) shut() {
	l.once.Do(func() {
		close(l.done)
		_ = l.net.Close()
		if l.http != nil {
			_ = l.http.Close()
		}
	})
}

// Close stops listening and lets closer end the clients.
func (l *listener) Close(closer listeners.CloseFn) {
	l.shut()
	<-l.served
	closer(l.ID())
}

// Serve takes connections from the broker's Run until Close.
func (l *listener) Serve(establish listeners.EstablishFn) {
	defer close(l.served)
	select {
	case <-l.b.running:
	case <-l.done:
		return
	}
	l.establish = establish
	if l.http != nil {
		_ = l.http.Serve(acceptor{l}) // nothing but Close ends it
		return
	}
	for {
		w, err := l.accept()
		if err != nil {
			return
		}
		if !l.b.enter() {
			_ = w.Close()
			return
		}
		go func() { // ends with the connection; letGo waits for it
			defer l.b.conns.Done()
			l.serve(w)
		}()
	}
}

// prepare makes what Serve needs; it is not in Serve because Close may come first.
func (l *listener) prepare() {
	if l.cfg.Scheme != "ws" && l.cfg.Scheme != "wss" {
		return
	}
	l.http = &http.Server{
		Handler:           http.HandlerFunc(l.upgrade),
		ReadHeaderTimeout: l.b.times.connect,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(l.b.log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
	}
	l.http.Protocols.SetHTTP1(true)
	l.http.SetKeepAlivesEnabled(false)
}

// acceptor is the net.Listener of the HTTP server.
type acceptor struct{ l *listener }

func (a acceptor) Accept() (net.Conn, error) {
	w, err := a.l.accept()
	if err != nil {
		return nil, err
	}
	if a.l.tls != nil {
		return tls.Server(w, a.l.tls), nil
	}
	return w, nil
}

func (a acceptor) Close() error   { return nil }
func (a acceptor) Addr() net.Addr { return a.l.net.Addr() }

// accept takes one connection. It fails only when the listener is closed:
// when the system is short of something it waits and tries again.
func (l *listener) accept() (*wire, error) {
	for {
		c, err := l.net.Accept()
		if err == nil {
			l.b.watch(c)
			w := &wire{
				Conn: c, count: &l.b.count, times: l.b.times, accepted: time.Now(),
				from: origin(c.RemoteAddr()), over: l.b.wires.remove,
			}
			_ = c.SetDeadline(w.accepted.Add(w.times.connect))
			if old := l.b.wires.add(w); old != nil {
				l.b.count.evicted.Add(1)
				l.b.notices.log(l.b.log, slog.LevelWarn, "too many connections without a CONNECT, the oldest is closed",
					"listener", l.url(), "remote", old.RemoteAddr().String())
				_ = old.Close()
			}
			return w, nil
		}
		select {
		case <-l.done:
			return nil, err
		default:
		}
		l.b.notices.log(l.b.log, slog.LevelError, "cannot take connections", "listener", l.url(), "err", err)
		select {
		case <-l.done:
			return nil, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// origin is the address that counts as one: an IPv4 address, an IPv6 network.
func origin(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}

// serve takes an accepted connection of mqtt or mqtts through its life.
func (l *listener) serve(w *wire) {
	if l.tls == nil {
		l.live(w, w)
		return
	}
	c := tls.Server(w, l.tls)
	if err := c.Handshake(); err != nil { // accept set the deadline
		l.b.notices.log(l.b.log, slog.LevelWarn, "TLS handshake failed", "listener", l.url(), "remote", w.RemoteAddr().String(), "err", err)
		_ = w.Close()
		return
	}
	l.live(w, c)
}

// live hands a connection to the library and clears up after it. A panic of
// the library - one truncated packet is enough - ends this connection only.
func (l *listener) live(w *wire, stream io.ReadWriteCloser) {
	g := newGuard(w, stream, &l.b.backlog)
	written := make(chan struct{})
	go func() { // ends after Close or kill
		defer close(written)
		g.write()
	}()
	err := func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				l.b.count.panics.Add(1)
				err = fmt.Errorf("%w: %v", errPanic, p)
				remote := w.RemoteAddr().String()
				l.b.notices.log(l.b.log, slog.LevelWarn, "a packet caused a panic, its connection is closed", "remote", remote, "panic", fmt.Sprint(p))
				l.b.log.Debug("stack of the panic", "remote", remote, "stack", string(debug.Stack()))
			}
		}()
		return l.establish(l.ID(), g)
	}()
	_ = g.Close()
	<-written
	l.b.ended(g, err)
	close(g.done)
}

// upgrade is the HTTP handler of ws and wss.
func (l *listener) upgrade(rw http.ResponseWriter, r *http.Request) {
	if r.URL.Path != l.cfg.Path {
		http.NotFound(rw, r)
		return
	}
	up := websocket.Upgrader{
		HandshakeTimeout: l.b.times.connect,
		Subprotocols:     []string{"mqtt", "mqttv3.1"},
		CheckOrigin:      sameHost,
		ReadBufferSize:   2048,
		WriteBufferSize:  2048,
	}
	ws, err := up.Upgrade(rw, r, nil)
	if err != nil {
		return // it has answered
	}
	under := ws.NetConn()
	if c, ok := under.(*tls.Conn); ok {
		under = c.NetConn()
	}
	w, ok := under.(*wire)
	if !ok || !l.b.enter() {
		_ = ws.Close()
		return
	}
	defer l.b.conns.Done()
	ws.SetReadLimit(int64(l.b.cfg.MaxPacket) + 64<<10)
	l.live(w, &wsStream{ws: ws})
}

// sameHost lets browsers in only from pages of this host, on any port: the
// gateway's own page has another one.
func sameHost(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true // no browser
	}
	u, err := url.Parse(origin)
	if err != nil {
		return false
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.EqualFold(u.Hostname(), strings.Trim(host, "[]"))
}

// wsStream is the bytes in the binary messages of a WebSocket (clause 6): a
// packet may span messages, and a message hold several.
type wsStream struct {
	ws *websocket.Conn
	r  io.Reader // the message being read
}

func (s *wsStream) Read(p []byte) (int, error) {
	for {
		if s.r == nil {
			kind, r, err := s.ws.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errors.New("text message on a WebSocket: MQTT needs binary (clause 6)")
			}
			s.r = r
		}
		n, err := s.r.Read(p)
		if err == io.EOF {
			s.r = nil
			if n == 0 {
				continue
			}
			err = nil
		}
		return n, err
	}
}

func (s *wsStream) Write(p []byte) (int, error) {
	if err := s.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *wsStream) Close() error {
	_ = s.ws.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
	return s.ws.Close()
}

// wires knows the connections that are open. Its zero value is empty.
type wires struct {
	mu      sync.Mutex
	all     map[*wire]struct{}
	pending []*wire // without a session, the oldest first
}

// add takes w in and returns the one that must make room for it, if any.
func (ws *wires) add(w *wire) (old *wire) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.all == nil {
		ws.all = make(map[*wire]struct{})
	}
	ws.all[w] = struct{}{}
	same := 0
	for _, p := range ws.pending {
		if p.from == w.from {
			same++
		}
	}
	first := -1
	switch {
	case same >= maxPendingFrom:
		first = slices.IndexFunc(ws.pending, func(p *wire) bool { return p.from == w.from })
	case len(ws.pending) >= maxPending:
		first = 0
	}
	if first >= 0 {
		old = ws.pending[first]
		ws.pending = slices.Delete(ws.pending, first, first+1)
	}
	ws.pending = append(ws.pending, w)
	return old
}

// settle notes that w has a session.
func (ws *wires) settle(w *wire) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if i := slices.Index(ws.pending, w); i >= 0 {
		ws.pending = slices.Delete(ws.pending, i, i+1)
	}
}

func (ws *wires) remove(w *wire) {
	ws.settle(w)
	ws.mu.Lock()
	defer ws.mu.Unlock()
	delete(ws.all, w)
}

// close ends the connections without a session, or all.
func (ws *wires) close(all bool) {
	ws.mu.Lock()
	list := slices.Clone(ws.pending)
	if all {
		for w := range ws.all {
			list = append(list, w)
		}
	}
	ws.mu.Unlock()
	for _, w := range list {
		_ = w.Close()
	}
}

// tlsConfig makes the TLS settings of a listener. The certificate is read again
// when its file changes, so that a renewed one is taken up by the next client.
func tlsConfig(cfg config.BrokerTLS, log *slog.Logger) (*tls.Config, error) {
	k := &keeper{cfg: cfg, log: log}
	if _, err := k.certificate(nil); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: k.certificate}
	if cfg.ClientCA != "" {
		pem, err := os.ReadFile(cfg.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("tls: client_ca: %w", err)
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls: client_ca: %s holds no certificate in PEM", cfg.ClientCA)
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c, nil
}

// keeper holds the certificate of a listener.
type keeper struct {
	cfg config.BrokerTLS
	log *slog.Logger

	mu    sync.Mutex
	cert  *tls.Certificate
	mtime [2]time.Time
}

func (k *keeper) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	mtime := [2]time.Time{modified(k.cfg.Cert), modified(k.cfg.Key)}
	if k.cert != nil && mtime == k.mtime {
		return k.cert, nil
	}
	cert, err := tls.LoadX509KeyPair(k.cfg.Cert, k.cfg.Key)
	if err != nil {
		if k.cert == nil {
			return nil, err
		}
		k.log.Error("changed certificate not taken, the old one stays", "cert", k.cfg.Cert, "err", err)
		cert = *k.cert
	}
	k.mtime = mtime // tried once for each change
	k.cert = &cert
	return k.cert, nil
}

func modified(path string) time.Time {
	info, err := os.Stat(path)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}
