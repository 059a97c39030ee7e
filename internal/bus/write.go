package bus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// ErrUnknownPoint is what Write and Read say of a point that is on no bus.
var ErrUnknownPoint = errors.New("unknown point")

// Write writes v to a point and returns when the device has answered: nil, once
// it has confirmed the write. It goes before all reads and waits only for the
// request on the wire and for earlier writes; a point with Write.Emergency
// passes those as well, and ends one for its device that takes several requests
// and has not sent them all. To an offline device it is sent like to any other.
//
// The function is that of Write.Function, else 5 for a coil, 6 for one register
// and 16 for several; 6 writes several one by one. A bit field, or half of a
// register, is written by function 22, and where the device does not know that,
// by reading the register, changing the bits and writing it back with nothing
// of ours in between. A device with the broadcast unit is written to without an
// answer: nil says that the write was sent.
//
// An error that wraps modbus.ErrNoResponse means that the write was sent and
// its outcome is unknown: no answer, a damaged one, a device that still works
// on it, or ctx ended meanwhile. Write repeats nothing then. After any other
// error the device did not take the value: an error of point.CheckWrite, an
// Exception (a busy device, exception 6, has been asked again for about two
// seconds), modbus.ErrNotConnected, or ctx's error before the write was sent.
// If several registers are written one by one, a failure half-way says so.
//
// From the call on until the write has ended, no value read of the registers it
// touches is emitted, nor later any whose request was sent before its end: the
// old value does not come back.
func (b *Bus) Write(ctx context.Context, id point.ID, v point.Value) error {
	at, err := b.find(id)
	if err != nil {
		return fmt.Errorf("bus %s: write %s: %w", b.cfg.Name, id, err)
	}
	w, err := newWrite(at, v)
	if err != nil {
		return b.writeError(at, err)
	}
	w.gone = ctx.Done()
	if w.emergency && b.hurrier != nil {
		b.hurrier.Hurry(1)
		defer b.hurrier.Hurry(-1)
	}
	if err := b.send(w); err != nil {
		return b.writeError(at, err)
	}
	select {
	case err = <-w.done:
	case <-ctx.Done():
		err = context.Cause(ctx)
		if !w.state.CompareAndSwap(writeQueued, writeCancelled) && w.state.Load() != writeCancelled {
			err = fmt.Errorf("%w: %w", modbus.ErrNoResponse, err)
		}
	}
	if errors.Is(err, errGivenUp) {
		err = context.Cause(ctx)
	}
	if err != nil {
		return b.writeError(at, err)
	}
	return nil
}

// errGivenUp is what becomes of a write that the bus has found given up.
var errGivenUp = errors.New("given up")

func (b *Bus) writeError(at place, err error) error {
	pt := &at.d.points[at.i]
	return fmt.Errorf("bus %s: unit %d: write %s (%s): %w", b.cfg.Name, at.d.cfg.Unit, pt.ID, point.FormatAddress(pt.Table, pt.Address), err)
}

// readBackFor is how long after its write a read of a point goes before others
// on demand: whoever has written waits for it.
const readBackFor = 2 * time.Second

// The states of a write, which its caller and Run's goroutine agree on.
const (
	writeQueued int32 = iota
	writeCancelled
	writeStarted
)

// write is a write on its way. It belongs to Run's goroutine, but for state.
type write struct {
	d         *device
	point     int
	emergency bool
	state     atomic.Int32
	gone      <-chan struct{} // closed when its caller has given it up
	done      chan error      // has room for the outcome

	reqs []modbus.PDU // what is to be sent, one after the other
	n    int          // answered of them

	// A write of some bits of a register.
	mask, value uint16 // mask is 0xFFFF for a whole register
	modify      bool   // reqs are a read and, once it is answered, the write

	touched []place // what it fences
	at      instant // not before
	busy    int
	out     bool
}

func newWrite(at place, v point.Value) (*write, error) {
	pt := &at.d.points[at.i]
	if err := pt.CheckWrite(v); err != nil {
		return nil, err
	}
	if !pt.Table.Writable() {
		return nil, fmt.Errorf("the %s table is read only", pt.Table)
	}
	regs, err := pt.Encode(v)
	if err != nil {
		return nil, err
	}
	w := &write{
		d: at.d, point: at.i, emergency: pt.Write.Emergency,
		done: make(chan error, 1), mask: pt.EncodeMask(),
	}
	f, addr := pt.Write.Function, pt.Address
	switch {
	case pt.Table == modbus.Coils && f == modbus.WriteMultipleCoils:
		w.reqs = []modbus.PDU{modbus.WriteCoilsRequest(addr, []bool{regs[0] != 0})}
	case pt.Table == modbus.Coils:
		w.reqs = []modbus.PDU{modbus.WriteCoilRequest(addr, regs[0] != 0)}
	case w.mask != 0xFFFF:
		w.value = regs[0]
		w.reqs = []modbus.PDU{modbus.MaskWriteRequest(addr, ^w.mask, w.value)}
		if f != 0 && !at.d.broadcast {
			w.readModifyWrite(pt)
		}
	case f == modbus.WriteSingleRegister || f == 0 && len(regs) == 1:
		for i, r := range regs {
			w.reqs = append(w.reqs, modbus.WriteRegisterRequest(addr+uint16(i), r))
		}
	case len(regs) > modbus.MaxWriteRegisters:
		return nil, fmt.Errorf("%d registers are more than the %d of one write", len(regs), modbus.MaxWriteRegisters)
	default:
		w.reqs = []modbus.PDU{modbus.WriteRegistersRequest(addr, regs)}
	}
	return w, nil
}

// readModifyWrite makes w read the register before it is written.
func (w *write) readModifyWrite(pt *point.Point) {
	w.modify = true
	w.n = 0
	w.reqs = []modbus.PDU{modbus.ReadRequest(pt.Table, pt.Address, 1), nil}
}

// modified fills in the write that follows the read.
func (w *write) modified(pt *point.Point, resp modbus.PDU) {
	v := binary.BigEndian.Uint16(resp[2:])&^w.mask | w.value
	if pt.Write.Function == modbus.WriteMultipleRegisters {
		w.reqs[1] = modbus.WriteRegistersRequest(pt.Address, []uint16{v})
	} else {
		w.reqs[1] = modbus.WriteRegisterRequest(pt.Address, v)
	}
}

// admit takes the write on: from now on it is fenced.
func (w *write) admit(b *Bus) {
	pt := &w.d.points[w.point]
	if w.d.noMask && w.mask != 0xFFFF && !w.modify {
		w.readModifyWrite(pt)
	}
	start, end := int(pt.Address), int(pt.Address)+pt.Words()
	devices := []*device{w.d}
	if w.d.broadcast {
		devices = b.devices
	}
	w.touched = fenceOff(devices, pt.Table, start, end)
	b.writes = append(b.writes, w)
}

// give ends a write at the end of the bus.
func (w *write) give(err error) {
	if w.n > 0 && !w.modify {
		err = w.partly(context.Canceled) // not ErrStopped: some of it was sent
	}
	w.done <- err
}

// partly adds to an error that some registers have been written.
func (w *write) partly(err error) error {
	if w.n == 0 || w.modify {
		return err
	}
	return fmt.Errorf("only %d of %d registers written: %w", w.n, len(w.reqs), err)
}

// fencedOff reports whether a value of point i that was asked for at tick sent
// may be older than a write.
func (d *device) fencedOff(i int, sent uint64) bool {
	if d.writes == 0 && (sent > d.fenced || d.fence == nil) {
		return false
	}
	return d.writing[i] > 0 || sent < d.fence[i]
}

// nextWrite returns the write's request to make now, or when there is one.
func (b *Bus) nextWrite(now instant) (*op, instant) {
	wake := never
	if len(b.writes) == 0 {
		return nil, wake
	}
	for _, emergency := range []bool{true, false} {
		var ahead []*device // those with an earlier write waiting
		for _, w := range slices.Clone(b.writes) {
			if w.emergency != emergency {
				continue
			}
			behind := slices.Contains(ahead, w.d)
			ahead = append(ahead, w.d)
			switch {
			case w.out || behind || w.d.writer != nil && w.d.writer != w && (!emergency || w.d.writer.out):
			case w.at > now:
				wake = min(wake, w.at)
			case w.givenUp() && w.state.CompareAndSwap(writeQueued, writeCancelled):
				// Its caller may not have come to say so yet, and what was given up
				// for an emergency must not go behind it.
				b.endWrite(w, errGivenUp)
			case !w.state.CompareAndSwap(writeQueued, writeStarted) && w.state.Load() == writeCancelled:
				b.endWrite(w, nil) // nobody waits for it
			default:
				if other := w.d.writer; other != nil && other != w {
					b.endWrite(other, other.overtaken())
				}
				w.out = true
				w.d.writer = w
				o := b.newOp(w.d, w.reqs[w.n])
				o.write = w
				return o, 0
			}
		}
	}
	return nil, wake
}

// givenUp reports whether nobody waits for the write any more.
func (w *write) givenUp() bool {
	select {
	case <-w.gone:
		return true
	default:
		return false
	}
}

// overtaken is what becomes of a write that has been sent in part when an
// emergency for its device comes: what is left of it would be newer than the
// emergency, and bits that were read before it would undo it.
func (w *write) overtaken() error {
	if w.modify {
		return errors.New("not sent, an emergency write came before")
	}
	return w.partly(fmt.Errorf("%w: an emergency write came between", modbus.ErrNoResponse))
}

// finishWrite takes the outcome of a write's request.
func (b *Bus) finishWrite(o *op, now instant) {
	w := o.write
	pt := &w.d.points[w.point]
	w.out = false
	reading := w.modify && w.n == 0
	switch {
	case o.err == nil:
		if reading {
			w.modified(pt, o.resp)
		}
		if w.n++; w.n == len(w.reqs) {
			b.endWrite(w, nil)
		}
	case errors.Is(o.err, modbus.IllegalFunction) && o.req.Function() == modbus.MaskWriteRegister:
		w.d.noMask = true
		w.readModifyWrite(pt)
	case errors.Is(o.err, modbus.ServerDeviceBusy) && w.busy < busyTries:
		w.at = now + busyDelay(w.busy)
		w.busy++
		if w.modify {
			w.n = 0 // the register may change meanwhile
		}
		if w.n == 0 {
			w.d.writer = nil           // while an emergency must find, and end, one sent in part
			w.state.Store(writeQueued) // nothing was written yet
		}
	case reading:
		// Nothing was written, so the error must not look as if it might.
		b.endWrite(w, fmt.Errorf("not sent, because its register could not be read: %v", o.err))
	default:
		err := w.partly(o.err)
		if unknownOutcome(o.err) && !errors.Is(err, modbus.ErrNoResponse) {
			err = fmt.Errorf("%w: %w", modbus.ErrNoResponse, err)
		}
		b.endWrite(w, err)
	}
}

// unknownOutcome reports whether a write that ended with err may have been done.
func unknownOutcome(err error) bool {
	return !errors.Is(err, modbus.ErrNotConnected) && !errors.Is(err, modbus.ErrInvalidRequest) &&
		(!isAnswer(err) || errors.Is(err, modbus.Acknowledge)) && !errors.Is(err, modbus.GatewayPathUnavailable)
}

// endWrite lifts the fence for what is asked for from now on, and tells the
// writer.
func (b *Bus) endWrite(w *write, err error) {
	b.lift(w.touched)
	if w.state.Load() == writeStarted {
		if w.d.written == nil {
			w.d.written = make(map[int]instant)
		}
		w.d.written[w.point] = b.now() + readBackFor
	}
	if w.d.writer == w {
		w.d.writer = nil
	}
	b.writes = slices.DeleteFunc(b.writes, func(o *write) bool { return o == w })
	if w.state.Load() == writeStarted {
		b.noteWrite(err)
	}
	w.done <- err
}
