package simulate

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"fieldgate/internal/modbus"
)

// FaultKind is what goes wrong with one request.
type FaultKind uint8

// The faults. A request that is not executed changes nothing in the device.
const (
	Silent    FaultKind = iota + 1 // not executed, not answered: a dead device
	Mute                           // executed, but the answer is lost
	Late                           // executed, answered Delay later (1 s); with a Code: not executed, but refused so much later
	WrongID                        // answered with a transaction id that is not in use (MBAP only)
	WrongUnit                      // answered with another unit id
	Refuse                         // not executed, answered with the exception Code (6)
	CRC                            // a wrong CRC or LRC; on MBAP, which has neither, a wrong protocol id
	Partial                        // the answer breaks off somewhere
	Split                          // the answer comes in two parts, Delay apart (5 ms)
	Echo                           // the request comes back before the answer
	Noise                          // random bytes before the answer
	Drop                           // executed; the connection closes instead of an answer. A serial port vanishes and is back after Delay (1 s)
	Slow                           // the answer comes byte by byte, Delay apart (5 ms)
	Twice                          // the answer comes, and after Delay (0) again
)

var faultNames = [...]string{
	"", Silent: "silent", Mute: "mute", Late: "late", WrongID: "wrong_id", WrongUnit: "wrong_unit", Refuse: "exception",
	CRC: "crc", Partial: "partial", Split: "split", Echo: "echo", Noise: "noise", Drop: "drop", Slow: "slow", Twice: "twice",
}

// String returns the word of the plant's file.
func (k FaultKind) String() string {
	if k > 0 && int(k) < len(faultNames) {
		return faultNames[k]
	}
	return "fault?"
}

// ParseFault reads the word of the plant's file.
func ParseFault(s string) (FaultKind, error) {
	if i := slices.Index(faultNames[1:], s); i >= 0 {
		return FaultKind(i + 1), nil
	}
	return 0, fmt.Errorf("%q is not a fault; known: %s", s, strings.Join(faultNames[1:], " "))
}

// Fault says what goes wrong and when. Everything in its schedule that is not
// zero must hold; a Fault without a schedule holds always.
type Fault struct {
	Kind  FaultKind
	Delay time.Duration    // 0: the kind's own
	Code  modbus.Exception // of Refuse; 0: server device busy. Of Late; 0: none

	Probability float64 // of each request, 0 to 1; 0: all
	Nth         int     // only each nth request to the device

	// Every, From and To are a window of time: of each Every since the start,
	// only what lies between From and To. From after To goes round the end.
	// With Every 0 there is one window since the start; To 0 means no end.
	Every, From, To time.Duration
}

// Validate returns what makes no sense.
func (f Fault) Validate() error {
	switch {
	case f.Kind == 0 || int(f.Kind) >= len(faultNames):
		return fmt.Errorf("fault %d is not known", f.Kind)
	case f.Delay < 0 || f.Every < 0 || f.From < 0 || f.To < 0:
		return fmt.Errorf("times must not be negative")
	case !(f.Probability >= 0 && f.Probability <= 1):
		return fmt.Errorf("probability %v is outside 0-1", f.Probability)
	case f.Nth < 0:
		return fmt.Errorf("nth %d is negative", f.Nth)
	case f.Every > 0 && f.From == f.To:
		return fmt.Errorf("the window from %v to %v of each %v is empty", f.From, f.To, f.Every)
	case f.Every > 0 && (f.From > f.Every || f.To > f.Every):
		return fmt.Errorf("the window from %v to %v is longer than every %v", f.From, f.To, f.Every)
	case f.Every == 0 && f.To > 0 && f.To <= f.From:
		return fmt.Errorf("the window ends at %v before it begins at %v", f.To, f.From)
	}
	return nil
}

// delay returns Delay or the kind's own.
func (f Fault) delay() time.Duration {
	if f.Delay > 0 {
		return f.Delay
	}
	switch f.Kind {
	case Late, Drop:
		return time.Second
	case Split, Slow:
		return 5 * time.Millisecond
	}
	return 0
}

func (f Fault) code() modbus.Exception {
	if f.Code == 0 {
		return modbus.ServerDeviceBusy
	}
	return f.Code
}

// holds reports whether the fault strikes the nth request (from 1) that comes a
// time since the start. It draws from random only if that decides.
func (f Fault) holds(n int, since time.Duration, random *rand.Rand) bool {
	if !f.inWindow(since) || f.Nth > 0 && n%f.Nth != 0 {
		return false
	}
	return f.Probability == 0 || random.Float64() < f.Probability
}

func (f Fault) inWindow(since time.Duration) bool {
	if f.Every == 0 {
		return since >= f.From && (f.To == 0 || since < f.To)
	}
	since %= f.Every
	if f.From < f.To {
		return since >= f.From && since < f.To
	}
	return since >= f.From || since < f.To
}

// strike returns the first of faults that holds, or nil.
func strike(faults []Fault, n int, since time.Duration, random *rand.Rand) *Fault {
	for i := range faults {
		if faults[i].holds(n, since, random) {
			return &faults[i]
		}
	}
	return nil
}

// part is bytes of an answer that are sent together, after a pause.
type part struct {
	after time.Duration // since the part before, or since the request
	bytes []byte
	echo  bool // it was heard while the request was sent, not after it
}

// reply is all that a device sends for one request. No parts is silence.
type reply struct {
	parts []part
	drop  bool          // then the connection closes
	back  time.Duration // a serial port that dropped is back after so long
}

// frame wraps the answer to one request, with what a fault makes of it. f is nil
// for an answer without fault; adu is the request as it came.
func (f *Fault) frame(framing modbus.Framing, tx uint16, unit modbus.UnitID, resp modbus.PDU, adu []byte, latency time.Duration, random *rand.Rand) reply {
	if f == nil {
		return reply{parts: []part{{after: latency, bytes: framing.Append(nil, tx, unit, resp)}}}
	}
	switch f.Kind {
	case WrongID:
		const far = 1 << 12 // from all that a client may have on their way
		tx += far + uint16(random.IntN(1<<16-2*far))
	case WrongUnit:
		unit++
	case Drop:
		return reply{parts: []part{{after: latency}}, drop: true, back: f.delay()}
	case Late:
		latency += f.delay()
	}
	b := framing.Append(nil, tx, unit, resp)
	answer := []part{{after: latency, bytes: b}}
	switch f.Kind {
	case Silent, Mute:
		answer = nil
	case CRC:
		spoil(framing, b)
	case Partial:
		answer[0].bytes = b[:1+random.IntN(len(b)-1)]
	case Split:
		cut := 1 + random.IntN(len(b)-1)
		answer = []part{{after: latency, bytes: b[:cut]}, {after: f.delay(), bytes: b[cut:]}}
	case Echo:
		answer = []part{{bytes: slices.Clone(adu), echo: true}, {after: latency, bytes: b}}
	case Noise:
		noise := make([]byte, 1+random.IntN(8))
		for i := range noise {
			noise[i] = byte(random.Uint32())
		}
		answer[0].bytes = append(noise, b...)
	case Slow:
		answer = nil
		for i := range b {
			answer = append(answer, part{after: latency, bytes: b[i : i+1]})
			latency = f.delay()
		}
	case Twice:
		answer = append(answer, part{after: f.delay(), bytes: b})
	}
	return reply{parts: answer}
}

// spoil makes a frame wrong in what guards it.
func spoil(framing modbus.Framing, b []byte) {
	switch framing {
	case modbus.FramingTCP:
		b[3] ^= 0x01
	case modbus.FramingRTU:
		b[len(b)-1] ^= 0x55
	case modbus.FramingASCII:
		// Another hexadecimal digit in place of the last one of the LRC.
		const digits = "0123456789ABCDEF"
		i := len(b) - 3
		b[i] = digits[(strings.IndexByte(digits, b[i])+1)%len(digits)]
	}
}
