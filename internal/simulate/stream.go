package simulate

import (
	"bufio"
	"bytes"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/internal/modbus"
)

// Excess is what a TCP device does with more requests at once than it can take.
type Excess uint8

// What has been seen of real devices.
const (
	Queue  Excess = iota // answers them later, one after the other
	Ignore               // forgets them
	Close                // closes the connection
	Mix                  // answers with the transaction id of the request before
)

var excessNames = [...]string{Queue: "queue", Ignore: "ignore", Close: "close", Mix: "mix"}

// errClosed ends a connection on purpose.
var errClosed = errors.New("closed by the simulated device")

// serveTCP accepts connections until ctx ends.
func (b *Bus) serveTCP(ctx context.Context, l net.Listener) error {
	var open sync.WaitGroup
	defer open.Wait()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("simulate: bus %s: accept: %w", b.Name, err)
		}
		if n := b.counters.clients.Add(1); b.MaxClients > 0 && n > int64(b.MaxClients) {
			b.counters.clients.Add(-1)
			conn.Close()
			continue
		}
		open.Go(func() { // ends when the client leaves or ctx ends
			defer b.counters.clients.Add(-1)
			b.serveConn(ctx, conn)
		})
	}
}

// serveConn answers one connection.
func (b *Bus) serveConn(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	box := newOutbox(b, func(p []byte, _ net.Addr) error {
		_, err := conn.Write(p)
		return err
	}, cancel)
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel()
	sending.Go(func() { box.run(ctx) }) // ends with ctx
	in := bufio.NewReaderSize(conn, modbus.MaxASCII)
	for {
		if err := b.stepConn(in, box); err != nil {
			return
		}
	}
}

// stepConn reads one request and has it answered.
func (b *Bus) stepConn(in *bufio.Reader, box *outbox) error {
	n, err := b.peekFrame(in)
	if err != nil {
		return err
	}
	adu, err := in.Peek(n)
	if err != nil {
		return err
	}
	b.counters.bytesIn.Add(uint64(n))
	b.trace("received", adu)
	if b.Framing == modbus.FramingTCP {
		tx, unit, req, err := modbus.DecodeTCP(adu)
		if err != nil {
			return err
		}
		err = box.request(b, tx, unit, req, adu, nil)
		if err != nil {
			return err
		}
	} else if unit, req, err := b.decode(adu); err != nil {
		// Nothing tells where the next frame begins; what came with this one
		// is the best guess.
		b.counters.badFrames.Add(1)
		n = in.Buffered()
	} else if err := box.request(b, 0, unit, req, adu, nil); err != nil {
		return err
	}
	_, err = in.Discard(n)
	return err
}

// peekFrame waits for a whole request and returns its length.
func (b *Bus) peekFrame(in *bufio.Reader) (int, error) {
	switch b.Framing {
	case modbus.FramingTCP:
		hdr, err := in.Peek(modbus.MBAPLen)
		if err != nil {
			return 0, err
		}
		_, n, _, err := modbus.ParseMBAP(hdr)
		if err != nil {
			b.counters.badFrames.Add(1)
			return 0, err
		}
		return modbus.MBAPLen + n, nil
	case modbus.FramingASCII:
		for n := 1; ; n++ {
			line, err := in.Peek(n)
			if err != nil {
				return 0, err
			}
			if line[n-1] == '\n' {
				return n, nil
			}
		}
	}
	for n := modbus.MinRTU; ; {
		prefix, err := in.Peek(n)
		if err != nil {
			return 0, err
		}
		want, known := modbus.RTURequestLen(prefix)
		switch {
		case known:
			return want, nil
		case want > 0:
			n = want
		case modbus.CRC16(prefix) == 0:
			return n, nil
		case n == modbus.MaxRTU:
			b.counters.badFrames.Add(1)
			return 0, errClosed
		default:
			n++
		}
	}
}

// decode takes a whole frame of the framings without transaction ids.
func (b *Bus) decode(adu []byte) (modbus.UnitID, modbus.PDU, error) {
	if b.Framing == modbus.FramingASCII {
		if i := bytes.LastIndexByte(adu, ':'); i > 0 {
			adu = adu[i:]
		}
		return modbus.DecodeASCII(adu)
	}
	return modbus.DecodeRTU(adu)
}

// serveUDP answers datagrams until ctx ends.
func (b *Bus) serveUDP(ctx context.Context, pc net.PacketConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, func() { pc.Close() })()
	box := newOutbox(b, func(p []byte, to net.Addr) error {
		_, err := pc.WriteTo(p, to)
		return err
	}, func() {}) // there is no connection to close
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel()
	sending.Go(func() { box.run(ctx) }) // ends with ctx
	buf := make([]byte, 1024)
	for {
		n, from, err := pc.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("simulate: bus %s: read: %w", b.Name, err)
		}
		b.counters.bytesIn.Add(uint64(n))
		adu := buf[:n]
		b.trace("received", adu)
		var tx uint16
		var unit modbus.UnitID
		var req modbus.PDU
		if b.Framing == modbus.FramingTCP {
			tx, unit, req, err = modbus.DecodeTCP(adu)
		} else {
			unit, req, err = b.decode(adu)
		}
		if err != nil {
			b.counters.badFrames.Add(1)
			continue
		}
		// An error would close a connection, which there is none of.
		_ = box.request(b, tx, unit, req, adu, from)
	}
}

// outgoing is an answer that waits for its time.
type outgoing struct {
	due  time.Time // of the first part
	seq  uint64
	to   net.Addr
	what reply
}

// outbox sends the answers of one connection, or one UDP socket, at their times.
type outbox struct {
	bus   *Bus
	write func([]byte, net.Addr) error
	hang  func() // closes the connection
	wake  chan struct{}

	mu      sync.Mutex
	waiting outHeap
	sending bool
	seq     uint64
	slots   []time.Time // when each of the requests that may run at once is done
	lastTx  uint16
}

func newOutbox(b *Bus, write func([]byte, net.Addr) error, hang func()) *outbox {
	n := b.InFlight
	if n == 0 {
		n = DefaultInFlight
	}
	if b.Framing != modbus.FramingTCP {
		n = 1 // nothing tells answers apart
	}
	return &outbox{bus: b, write: write, hang: hang, wake: make(chan struct{}, 1), slots: make([]time.Time, n)}
}

// request has one request answered. An error ends the connection.
func (o *outbox) request(b *Bus, tx uint16, unit modbus.UnitID, req modbus.PDU, adu []byte, from net.Addr) error {
	b.counters.requests.Add(1)
	now := time.Now()
	o.mu.Lock()
	slot := 0
	for i, free := range o.slots {
		if free.Before(o.slots[slot]) {
			slot = i
		}
	}
	begin := now
	previous := o.lastTx
	o.lastTx = tx
	if o.slots[slot].After(now) {
		switch b.Excess {
		case Queue:
			begin = o.slots[slot]
		case Ignore:
			o.mu.Unlock()
			return nil
		case Close:
			o.mu.Unlock()
			return errClosed
		case Mix:
			tx = previous
		}
	}
	o.mu.Unlock() // a device may be shared, and takes its own lock

	what := b.answer(tx, unit, req, adu)
	if len(what.parts) == 0 {
		return nil
	}
	due := begin.Add(what.parts[0].after)
	o.mu.Lock()
	done := due
	for _, p := range what.parts[1:] {
		done = done.Add(p.after)
	}
	o.slots[slot] = done
	atOnce := len(what.parts) == 1 && !what.drop && !due.After(now) && len(o.waiting) == 0 && !o.sending
	if !atOnce {
		o.seq++
		heap.Push(&o.waiting, outgoing{due, o.seq, from, what})
	}
	o.mu.Unlock()
	if atOnce {
		return o.send(what.parts[0].bytes, from)
	}
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return nil
}

// answer has the device that is meant answer.
func (b *Bus) answer(tx uint16, unit modbus.UnitID, req modbus.PDU, adu []byte) reply {
	d := b.Devices.find(unit)
	if b.Framing != modbus.FramingTCP {
		if unit == modbus.Broadcast {
			for _, d := range b.Devices {
				d.reply(b.Framing, 0, unit, req, adu, true)
			}
		}
		if d == nil || unit == modbus.Broadcast {
			return reply{}
		}
		return d.reply(b.Framing, 0, unit, req, adu, false)
	}
	if d == nil && (unit == 0 || unit == 255) && len(b.Devices) > 0 {
		d = b.Devices[0] // "the device at this address" (APP 4.1)
	}
	if d == nil {
		resp := modbus.ExceptionResponse(req.Function(), modbus.GatewayTargetNoResponse)
		return reply{parts: []part{{bytes: modbus.AppendTCP(nil, tx, unit, resp)}}}
	}
	return d.reply(b.Framing, tx, unit, req, adu, false)
}

func (o *outbox) send(p []byte, to net.Addr) error {
	o.bus.counters.bytesOut.Add(uint64(len(p)))
	o.bus.trace("sent", p)
	return o.write(p, to)
}

// run sends what is due until ctx ends.
func (o *outbox) run(ctx context.Context) {
	for ctx.Err() == nil {
		o.mu.Lock()
		var next outgoing
		empty := len(o.waiting) == 0
		if !empty {
			next = o.waiting[0]
		}
		o.mu.Unlock()
		if empty {
			select {
			case <-o.wake:
			case <-ctx.Done():
			}
			continue
		}
		if !sleepUntil(ctx, next.due, o.wake) {
			continue // perhaps something is due earlier now
		}
		o.mu.Lock()
		next = heap.Pop(&o.waiting).(outgoing)
		o.sending = true
		o.mu.Unlock()
		o.play(ctx, next)
		o.mu.Lock()
		o.sending = false
		o.mu.Unlock()
	}
}

// play sends the parts of one answer, whose first is due now.
func (o *outbox) play(ctx context.Context, out outgoing) {
	at := out.due
	parts := out.what.parts
	for i, p := range parts {
		if i > 0 && p.after > 0 {
			at = at.Add(p.after)
			for ctx.Err() == nil && !sleepUntil(ctx, at, nil) {
			}
		}
		if out.to == nil && i+1 < len(parts) && parts[i+1].after == 0 { // a stream, not datagrams
			parts[i+1].bytes = slices.Concat(p.bytes, parts[i+1].bytes) // they come together
			continue
		}
		if len(p.bytes) > 0 && (ctx.Err() != nil || o.send(p.bytes, out.to) != nil) {
			o.hang()
			return
		}
	}
	if out.what.drop {
		o.hang()
	}
}

// sleepUntil returns true at an instant, to some tens of microseconds, or false
// when ctx ends or wake is ready before.
func sleepUntil(ctx context.Context, at time.Time, wake <-chan struct{}) bool {
	// The runtime's timers are late by a millisecond and more: they take the
	// long part, and the kernel's the rest.
	const rest = 2 * time.Millisecond
	if d := time.Until(at) - rest; d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-wake:
			return false
		case <-ctx.Done():
			return false
		}
	}
	for d := time.Until(at); d > 0; d = time.Until(at) {
		ts := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&ts, nil) // a signal ends it early, and the loop goes on
	}
	return true
}

// outHeap is answers by time, and those of one time in order.
type outHeap []outgoing

func (h outHeap) Len() int { return len(h) }
func (h outHeap) Less(i, j int) bool {
	if c := h[i].due.Compare(h[j].due); c != 0 {
		return c < 0
	}
	return h[i].seq < h[j].seq
}
func (h outHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *outHeap) Push(x any)   { *h = append(*h, x.(outgoing)) }
func (h *outHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
