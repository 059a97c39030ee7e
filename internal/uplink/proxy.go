package uplink

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/net/proxy"
)

// proxyFor returns the proxy for u, nil for none: the one that is set, for
// every host, else the environment's by the customs of curl: HTTP_PROXY for ws,
// HTTPS_PROXY for wss, ALL_PROXY for all of them, none for what NO_PROXY names
// and for this machine itself. (golang.org/x/net/http/httpproxy, which does
// much of this, knows no ALL_PROXY and adds 200 kB of Unicode tables.)
func proxyFor(set string, u *url.URL) (*url.URL, error) {
	from := "proxy"
	if set == "" {
		if set, from = envProxy(u.Scheme); set == "" || unproxied(u) {
			return nil, nil
		}
		if !strings.Contains(set, "://") {
			set = "http://" + set
		}
	}
	via, err := url.Parse(set)
	if err != nil || via.Host == "" {
		return nil, &Fault{Step: StepProxy, Text: from + " is no address of a proxy", Remedy: "write http://HOST:PORT or https://HOST:PORT", Err: err, Refused: true}
	}
	return via, nil
}

// envProxy returns the proxy that the environment names for a scheme, and the
// variable it stands in.
func envProxy(scheme string) (value, name string) {
	names := []string{"ALL_PROXY"}
	switch scheme {
	case "ws":
		names = []string{"HTTP_PROXY", "ALL_PROXY"}
	case "wss":
		names = []string{"HTTPS_PROXY", "ALL_PROXY"}
	}
	for _, name := range names {
		for _, name := range []string{name, strings.ToLower(name)} {
			if value := os.Getenv(name); value != "" {
				return value, name
			}
		}
	}
	return "", ""
}

// unproxied reports whether u is reached without the environment's proxy: it is
// this machine, or NO_PROXY names it. That is a list, separated by commas, of
// "*" (everything), addresses, networks such as 10.0.0.0/8, and names, which
// hold for all below them too; each but a network may be followed by :PORT.
func unproxied(u *url.URL) bool {
	host, port := strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")), u.Port()
	addr, err := netip.ParseAddr(host)
	if addr = addr.Unmap(); host == "localhost" || err == nil && addr.IsLoopback() {
		return true
	}
	list := os.Getenv("NO_PROXY")
	if list == "" {
		list = os.Getenv("no_proxy")
	}
	for item := range strings.SplitSeq(list, ",") {
		item = strings.ToLower(strings.TrimSpace(item))
		if net, err := netip.ParsePrefix(item); err == nil {
			if net.Contains(addr) {
				return true
			}
			continue
		}
		if h, p, err := net.SplitHostPort(item); err == nil {
			if p != port {
				continue
			}
			item = h
		}
		item = strings.Trim(item, "[]")
		if a, err := netip.ParseAddr(item); err == nil {
			if a.Unmap() == addr {
				return true
			}
			continue
		}
		name := strings.TrimPrefix(strings.TrimPrefix(item, "*"), ".")
		if item == "*" || name != "" && (host == name || strings.HasSuffix(host, "."+name)) {
			return true
		}
	}
	return false
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
