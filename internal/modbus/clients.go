package modbus

import (
	"context"
	"net"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// maxTallies is how many clients a Server remembers the counts of; when more
// come, those go that are not connected and were silent longest.
const maxTallies = 64

type clientKey struct{}

// WithClient returns a context that says on whose behalf requests are made: the
// host of a connection, or the name of a serial port.
func WithClient(ctx context.Context, client string) context.Context {
	return context.WithValue(ctx, clientKey{}, client)
}

// Client returns who makes the request that ctx belongs to, "" when nobody said
// so. A Server says so to its Endpoint.
func Client(ctx context.Context) string {
	client, _ := ctx.Value(clientKey{}).(string)
	return client
}

// ClientStats counts what came from one client: from all connections of one
// host, or from one serial port.
type ClientStats struct {
	Client      string    // host, or name of the port
	Connections int       // now
	Since       time.Time // of its first connection or request
	Last        time.Time // of its newest request; zero: none yet

	BytesIn, BytesOut uint64                  // on the wire
	BadFrames         uint64                  // that were not taken: checksum, header, length
	Functions         map[FunctionCode]uint64 // requests; those above 43 under 0
	Exceptions        map[Exception]uint64    // answers; those above 11 under 0
}

// Requests returns how many requests came.
func (c ClientStats) Requests() (n uint64) {
	for _, k := range c.Functions {
		n += k
	}
	return n
}

// tally is the live form of ClientStats.
type tally struct {
	client     string
	since      time.Time
	conns      atomic.Int64
	last       atomic.Int64 // when its newest request came, nanoseconds after since; 0: none yet
	in, out    atomic.Uint64
	bad        atomic.Uint64
	functions  [int(EncapsulatedInterface) + 1]atomic.Uint64
	exceptions [int(GatewayTargetNoResponse) + 1]atomic.Uint64
}

// function is where requests of f are counted.
func (t *tally) function(f FunctionCode) int {
	if int(f) >= len(t.functions) {
		return 0
	}
	return int(f)
}

func (t *tally) exception(e Exception) {
	if int(e) >= len(t.exceptions) {
		e = 0
	}
	t.exceptions[e].Add(1)
}

// came notes a whole frame of n bytes. The times are those of the monotonic
// clock, which nobody sets.
func (t *tally) came(n int, now time.Time) {
	t.last.Store(max(int64(now.Sub(t.since)), 1))
	t.in.Add(uint64(n))
}

// heard returns when it was heard last.
func (t *tally) heard() time.Time { return t.since.Add(time.Duration(t.last.Load())) }

func (t *tally) stats() ClientStats {
	c := ClientStats{
		Client: t.client, Connections: int(t.conns.Load()), Since: t.since,
		BytesIn: t.in.Load(), BytesOut: t.out.Load(), BadFrames: t.bad.Load(),
		Functions: make(map[FunctionCode]uint64), Exceptions: make(map[Exception]uint64),
	}
	if at := t.last.Load(); at != 0 {
		c.Last = t.since.Add(time.Duration(at))
	}
	for f := range t.functions {
		if n := t.functions[f].Load(); n > 0 {
			c.Functions[FunctionCode(f)] = n
		}
	}
	for e := range t.exceptions {
		if n := t.exceptions[e].Load(); n > 0 {
			c.Exceptions[Exception(e)] = n
		}
	}
	return c
}

// tallies is the clients a Server remembers. The zero value is ready.
type tallies struct {
	mu sync.Mutex
	of map[string]*tally
}

// get returns the tally of a client.
func (t *tallies) get(client string) *tally {
	t.mu.Lock()
	defer t.mu.Unlock()
	if known := t.of[client]; known != nil {
		return known
	}
	if t.of == nil {
		t.of = make(map[string]*tally)
	}
	if len(t.of) >= maxTallies {
		var oldest *tally
		for _, k := range t.of {
			if k.conns.Load() == 0 && (oldest == nil || k.heard().Before(oldest.heard())) {
				oldest = k
			}
		}
		if oldest == nil {
			return &tally{client: client, since: time.Now()} // counted for nobody
		}
		delete(t.of, oldest.client)
	}
	fresh := &tally{client: client, since: time.Now()}
	t.of[client] = fresh
	return fresh
}

func (t *tallies) stats() []ClientStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]ClientStats, 0, len(t.of))
	for _, k := range t.of {
		all = append(all, k.stats())
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Client < all[j].Client })
	return all
}

// hostOf returns the host of an address, without port and zone.
func hostOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}

// session is one connection of a client.
type session struct {
	conn   net.Conn // nil: it is one of many
	from   net.Addr
	hangUp func() // ends the connection, whoever serves it
	tally  *tally
	since  time.Time
	last   atomic.Int64 // when its newest whole request came, nanoseconds after since; 0: none yet

	one // of many
}

// How long a connection may say nothing before another may take its place when
// there is no room: one that never asked anything, and one that did.
const (
	mute  = time.Second
	quiet = 30 * time.Second
)

// sessions is the connections of a Server. The zero value is ready.
type sessions struct {
	mu  sync.Mutex
	all map[*session]struct{}
}

// enter counts a connection in, of which there may be limit. When there is no
// room, the one that has been silent for longest makes some, if it was silent for
// long enough: half-open connections and scanners must not shut out a client that
// comes back. It returns false when nobody goes.
func (s *sessions) enter(c *session, limit int) (entered bool, instead *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[*session]struct{})
	}
	if len(s.all) >= limit {
		var longest time.Duration
		for k := range s.all {
			silent, enough := c.since.Sub(k.since), mute
			if at := k.last.Load(); at != 0 {
				silent, enough = silent-time.Duration(at), quiet
			}
			if silent >= enough && (instead == nil || silent > longest) {
				instead, longest = k, silent
			}
		}
		if instead == nil {
			return false, nil
		}
		delete(s.all, instead)
	}
	s.all[c] = struct{}{}
	return true, instead
}

// came notes a whole frame of n bytes.
func (c *session) came(n int, now time.Time) {
	c.last.Store(max(int64(now.Sub(c.since)), 1))
	c.tally.came(n, now)
}

// silence returns for how long no whole frame has come; there was one.
func (c *session) silence() time.Duration {
	return time.Since(c.since) - time.Duration(c.last.Load())
}

func (s *sessions) leave(c *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, c)
}

func (s *sessions) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}
