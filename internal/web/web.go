// Package web serves over HTTP how the gateway is doing: /healthz (the process
// is alive and moves), /readyz (it has read every device at least once, or
// tried) and /metrics. It knows no part of the gateway; it is given functions
// to ask. API, page and events are not here yet.
//
// It listens on a loopback address only. An address that is taken, by another
// gateway on the same machine perhaps, stops nothing: it is tried again.
//
// The type is Server.
package web

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/netutil"

	"fieldgate/internal/metrics"
)

// Limits of a server that answers from memory.
const (
	retryEvery = 30 * time.Second // to listen
	slowest    = 10 * time.Second // for a request, and for its answer
	headerMost = 8 << 10
	connsMost  = 32 // at once; more wait
)

// Answers is what a Server asks the gateway. The functions are called by many
// goroutines and must not block.
type Answers struct {
	Healthy func() error  // nil: everything moves; else what does not
	Ready   func() error  // nil: ready; else what is waited for
	Metrics func() []byte // in the form of package metrics; ours after the call
}

// Server serves one address. Make one with New.
type Server struct {
	address string
	asked   bool // somebody asked for this address
	log     *slog.Logger
	http    *http.Server
	retry   time.Duration
}

// New returns a server for HOST:PORT. given says that the address was chosen by
// somebody, so that it is worth a warning if it cannot be had.
func New(address string, given bool, a Answers, log *slog.Logger) *Server {
	s := &Server{address: address, asked: given, log: log, retry: retryEvery, http: &http.Server{
		Handler:           http.HandlerFunc(a.serve),
		ReadHeaderTimeout: slowest,
		ReadTimeout:       slowest,
		WriteTimeout:      slowest,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    headerMost,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
	}}
	s.http.Protocols.SetHTTP1(true)
	return s
}

// verdict answers "ok", or 503 and what is wrong.
func verdict(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(err.Error() + "\n"))
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

// serve answers one request.
func (a Answers) serve(w http.ResponseWriter, r *http.Request) {
	if !local(r.Host) {
		http.Error(w, "this address is for this machine only; ask for it by 127.0.0.1 or localhost", http.StatusMisdirectedRequest)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET is answered here", http.StatusMethodNotAllowed)
		return
	}
	switch r.URL.Path {
	case "/healthz":
		verdict(w, a.Healthy())
	case "/readyz":
		verdict(w, a.Ready())
	case "/metrics":
		w.Header().Set("Content-Type", metrics.ContentType)
		_, _ = w.Write(a.Metrics()) // whoever asked may be gone
	default:
		http.Error(w, "not found; there are /healthz, /readyz and /metrics", http.StatusNotFound)
	}
}

// local reports whether the Host of a request is this machine. Others are
// refused: a web page somewhere may have its name point to 127.0.0.1 and have a
// visitor's browser ask us.
func local(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Run serves until ctx ends. An address that cannot be had is tried again until
// it can; that is logged once, and so is its end.
func (s *Server) Run(ctx context.Context) error {
	failed := false
	for ctx.Err() == nil {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", s.address)
		if err == nil {
			if failed {
				s.log.Info("listening at last", "address", s.address)
			}
			failed = false
			if err = s.serve(ctx, netutil.LimitListener(l, connsMost)); err == nil {
				return nil
			}
		}
		if !failed && ctx.Err() == nil {
			failed = true
			level := slog.LevelInfo
			if s.asked {
				level = slog.LevelWarn
			}
			s.log.Log(ctx, level, "health and metrics cannot be served, trying again", "address", s.address, "err", err)
		}
		wait := time.NewTimer(s.retry)
		select {
		case <-wait.C:
		case <-ctx.Done():
		}
		wait.Stop()
	}
	return nil
}

// serve serves l until ctx ends (nil) or l fails.
func (s *Server) serve(ctx context.Context, l net.Listener) error {
	ended := make(chan error, 1)
	go func() { ended <- s.http.Serve(l) }() // ends with Close, or when l fails
	select {
	case err := <-ended:
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return err
	case <-ctx.Done():
		_ = s.http.Close() // answers take microseconds; nobody is waited for
		<-ended
		return nil
	}
}
