package broker

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// times are the broker's; tests have shorter ones.
type times struct {
	// tick is how often sessions are looked after and what has changed is
	// saved: a power cut loses at most two ticks.
	tick time.Duration
	// connect is for all that comes before the session: TLS handshake,
	// WebSocket upgrade, CONNECT, the check of the password.
	connect time.Duration
	// write is for each writeChunk bytes to be taken by the network.
	write time.Duration
	// goodbye is for what is left to write when a connection is closed.
	goodbye time.Duration
}

func usualTimes() times {
	return times{tick: time.Second, connect: 10 * time.Second, write: 5 * time.Second, goodbye: time.Second}
}

// writeChunk is what a client must take within times.write, in bytes.
const writeChunk = 16 << 10

// What may wait to be written, in bytes. From fullBacklog for one connection,
// or fairBacklog while all together hold more than totalBacklog, its client's
// packets are left unread and the messages to it wait in the library's queue,
// which drops what is too much. maxBacklog is for what comes all the same.
const (
	fullBacklog  = 1 << 20
	fairBacklog  = 128 << 10
	totalBacklog = 32 << 20
	maxBacklog   = 4 << 20
)

var (
	errSlow  = errors.New("it does not keep up with what is written to it")
	errTaken = errors.New("taken over by a newer connection with the same client id")
	errPanic = errors.New("panic")
)

// wire is an accepted TCP connection. It counts its bytes, and once it carries
// MQTT only its guard sets deadlines: the HTTP server, TLS and the WebSocket
// library would overwrite them.
type wire struct {
	net.Conn
	count    *counters
	times    times
	accepted time.Time
	from     string // the address that counts as one peer
	guarded  atomic.Bool
	once     sync.Once
	over     func(*wire)
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.count.bytesIn.Add(uint64(n))
	return n, err
}

func (w *wire) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.count.bytesOut.Add(uint64(n))
	return n, err
}

func (w *wire) Close() error {
	err := w.Conn.Close()
	w.once.Do(func() { w.over(w) })
	return err
}

func (w *wire) SetDeadline(t time.Time) error {
	return errors.Join(w.SetReadDeadline(t), w.SetWriteDeadline(t))
}

func (w *wire) SetReadDeadline(t time.Time) error {
	if w.guarded.Load() {
		return nil
	}
	return w.Conn.SetReadDeadline(t)
}

func (w *wire) SetWriteDeadline(t time.Time) error {
	if w.guarded.Load() {
		return nil
	}
	return w.Conn.SetWriteDeadline(t)
}

// guard is the net.Conn that the library is given for a client. Its Write
// never waits: it queues, and a goroutine of the guard writes. So neither a
// publisher, nor our own publish, nor a takeover waits for a client that does
// not read - the library writes while it holds the lock that every publish to
// that client needs. A client who takes nothing for times.write is cut off.
type guard struct {
	wire   *wire
	stream io.ReadWriteCloser // TCP, TLS or WebSocket
	total  *atomic.Int64      // bytes that wait in all guards

	wake chan struct{} // holds one token: there is work for the writer
	done chan struct{} // closed when the connection is over: writer and reader have returned
	dead chan struct{} // closed when nothing more will be written

	client  atomic.Pointer[mochi.Client] // set when its CONNECT was accepted
	account *account                     // set before that
	flow    flow

	willDelay time.Duration

	// The reading goroutine's own.
	subID   uint16            // of the SUBSCRIBE or UNSUBSCRIBE under way
	will    mochi.Will        // as the CONNECT brought it
	refused string            // the topic that refusedTopic stands for
	told    string            // the topic of the last refusal that was logged
	parted  bool              // the library has finished with the client
	renewed []string          // filters of the last SUBSCRIBE that it had before
	refusal byte              // QoS of the message under way if it is refused; 0: it is not
	waits   []<-chan struct{} // what the acknowledgement under way waits for

	// Messages that the library has queued for the client, and those it has
	// encoded since; stuckAt is where the encoder was when it did not go on.
	offered, encoded, stuckAt atomic.Int64

	held atomic.Bool // a goroutine of the client is in makeRoom

	mu     sync.Mutex
	room   *sync.Cond // queue has become shorter, or the guard is closed
	queue  []byte
	acks   []heldAck // in the order of the messages, maxHeld at most but for those sent again
	closed bool      // Close was called, or the wire is dead
	cause  error
	once   sync.Once // closes dead
}

func newGuard(w *wire, stream io.ReadWriteCloser, total *atomic.Int64) *guard {
	w.guarded.Store(true)
	_ = w.Conn.SetDeadline(w.accepted.Add(w.times.connect))
	g := &guard{
		wire: w, stream: stream, total: total,
		wake: make(chan struct{}, 1), done: make(chan struct{}), dead: make(chan struct{}),
	}
	g.room = sync.NewCond(&g.mu)
	g.stuckAt.Store(-1)
	return g
}

func (g *guard) Read(p []byte) (int, error) { return g.stream.Read(p) }

// Write queues p, which is one packet. It fails once the connection is closed or
// its queue is full.
func (g *guard) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return 0, net.ErrClosed
	}
	if len(g.queue) > maxBacklog {
		g.cut(errSlow)
		return 0, errSlow
	}
	if kind := p[0] >> 4; (kind == packets.Puback || kind == packets.Pubrec) && g.hold(p) {
		g.wakeUp()
		return len(p), nil
	}
	g.total.Add(int64(len(p)))
	g.queue = append(g.queue, p...)
	g.wakeUp()
	return len(p), nil
}

// full reports whether too much waits to be written. g.mu is held.
func (g *guard) full() bool {
	n := len(g.queue)
	return n > fullBacklog || n > fairBacklog && g.total.Load() > totalBacklog
}

// makeRoom waits while too much is to be written, until the client has taken
// some or is cut off. It is for the goroutines of this client only.
func (g *guard) makeRoom() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.full() && !g.closed {
		g.held.Store(true)
		g.room.Wait()
	}
	g.held.Store(false)
}

func (g *guard) wakeUp() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// Close ends the connection: nothing more is read or taken, and what is queued
// is written if the client takes it within times.goodbye.
func (g *guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	now := time.Now()
	_ = g.wire.Conn.SetReadDeadline(now)
	_ = g.wire.Conn.SetWriteDeadline(now.Add(g.wire.times.goodbye))
	g.wakeUp()
	g.room.Broadcast()
	return nil
}

// kill ends the connection at once.
func (g *guard) kill(cause error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cut(cause)
}

// cut does it. g.mu is held.
func (g *guard) cut(cause error) {
	if g.cause == nil {
		g.cause = cause
	}
	g.closed = true
	g.once.Do(func() { close(g.dead) })
	_ = g.wire.Close() // the wire itself: TLS would wait to say goodbye
	g.wakeUp()
	g.room.Broadcast()
}

// reason returns why we ended the connection, nil if we did not.
func (g *guard) reason() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cause
}

// write is the guard's writer. It ends when the guard is closed and what was
// queued is written or given up; acknowledgements that are not safe by then are
// never sent.
func (g *guard) write() {
	var buf []byte
	for {
		g.mu.Lock()
		safe := g.letOut()
		buf, g.queue = g.queue, buf[:0]
		g.room.Broadcast()
		closed, cut := g.closed, g.cause != nil
		g.mu.Unlock()
		if cut {
			g.total.Add(-int64(len(buf)))
			return
		}
		if len(buf) == 0 && closed {
			_ = g.stream.Close() // TLS says goodbye; the deadline is set
			g.kill(nil)
			return
		}
		if len(buf) == 0 {
			select {
			case <-g.wake: // Close and cut wake it as well
			case <-safe:
			}
			continue
		}
		err := g.flush(buf)
		g.total.Add(-int64(len(buf)))
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				err = fmt.Errorf("%w: %w", errSlow, err)
			}
			g.kill(err)
			continue // to give up what came meanwhile
		}
		if cap(buf) > 4*writeChunk {
			buf = nil // a burst is over
		}
	}
}

// flush writes buf. However much it is, the client only has to take a chunk
// within each times.write.
func (g *guard) flush(buf []byte) error {
	for chunk := range slices.Chunk(buf, writeChunk) {
		g.mu.Lock()
		if !g.closed {
			_ = g.wire.Conn.SetWriteDeadline(time.Now().Add(g.wire.times.write))
		}
		g.mu.Unlock()
		if _, err := g.stream.Write(chunk); err != nil {
			return err
		}
	}
	return nil
}

// How many messages may be between a publisher and the encoder of a client
// before the publisher gives way, and how many then. The library drops what
// is above writesPending.
const (
	highPending = writesPending / 2
	lowPending  = writesPending / 8
)

func (g *guard) pending() int64 { return g.offered.Load() - g.encoded.Load() }

// catchUp gives the library's encoder for this client its turn, until it has
// few messages left. It waits for the processor only, and not long: when the
// client holds the encoder up, by acknowledgements that do not come or by not
// reading, nobody else waits for that. own says that the caller is the client's
// own reader, which waits for the latter.
func (g *guard) catchUp(own bool) {
	const patience = 50 * time.Millisecond
	last := g.encoded.Load()
	if last == g.stuckAt.Load() {
		return // it has not moved since it was waited for in vain
	}
	moved := time.Now()
	for turns := 0; g.offered.Load()-last > lowPending && !g.flow.full(); turns++ {
		held := g.held.Load()
		select {
		case <-g.dead:
			return
		default:
		}
		switch {
		case held && !own:
			return
		case held:
			time.Sleep(time.Millisecond)
			moved = time.Now()
		case turns < 10:
			runtime.Gosched()
		default:
			time.Sleep(50 * time.Microsecond)
		}
		if now := g.encoded.Load(); now != last {
			last, moved = now, time.Now()
		} else if time.Since(moved) > patience {
			g.stuckAt.Store(last)
			return
		}
	}
}

// LocalAddr is the broker's address.
func (g *guard) LocalAddr() net.Addr { return g.wire.LocalAddr() }

// RemoteAddr is the client's address.
func (g *guard) RemoteAddr() net.Addr { return g.wire.RemoteAddr() }

// SetDeadline is how the library holds the client to its keep-alive: it is
// about reading only, and not before the CONNECT is accepted.
func (g *guard) SetDeadline(t time.Time) error { return g.SetReadDeadline(t) }

// SetReadDeadline is SetDeadline.
func (g *guard) SetReadDeadline(t time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.client.Load() == nil {
		return nil
	}
	return g.wire.Conn.SetReadDeadline(t)
}

// SetWriteDeadline does nothing: Write does not wait.
func (g *guard) SetWriteDeadline(time.Time) error { return nil }

// flow keeps a client's Receive Maximum (MQTT 5, 3.3.4). The library is not
// told of it, because its own way can lock up the broker.
type flow struct {
	mu     sync.Mutex
	window int // 0: no limit
	open   map[uint16]struct{}
	freed  chan struct{} // holds one token: a place came free
}

func (f *flow) setWindow(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.window, f.open, f.freed = n, make(map[uint16]struct{}), make(chan struct{}, 1)
}

// enter takes a place for the message id, if there is one or it has one. Else it
// waits for one if wait says so, until dead; false says that it has none.
func (f *flow) enter(id uint16, wait bool, dead <-chan struct{}) bool {
	for {
		f.mu.Lock()
		_, again := f.open[id]
		ok := f.window == 0 || again || len(f.open) < f.window
		if ok && f.window > 0 {
			f.open[id] = struct{}{}
		}
		f.mu.Unlock()
		if ok || !wait {
			return ok
		}
		select {
		case <-f.freed:
		case <-dead:
			return false
		}
	}
}

// leave gives the place of the message id back.
func (f *flow) leave(id uint16) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.window == 0 {
		return
	}
	delete(f.open, id)
	select {
	case f.freed <- struct{}{}:
	default:
	}
}

// full reports whether there is no place.
func (f *flow) full() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.window > 0 && len(f.open) >= f.window
}
