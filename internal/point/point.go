// Package point defines what flows through the gateway - a Sample, one Value
// of one point at one time - and turns registers into values and back. It is
// pure: no clock, no wire, no configuration file.
//
// Point says where a value lives in a device and how it is encoded there;
// Decode and Encode are exact inverses of each other.
package point

import (
	"strings"
	"time"

	"fieldgate/internal/modbus"
)

// ID names a point everywhere and for life: "device.point". A device name
// holds no dot; a point name may ("boiler.status.fault").
type ID string

// Device returns the part before the first dot.
func (id ID) Device() string {
	d, _, _ := strings.Cut(string(id), ".")
	return d
}

// Name returns the part after the first dot, the point's name in its device.
func (id ID) Name() string {
	_, n, _ := strings.Cut(string(id), ".")
	return n
}

// Quality says how far a sample may be trusted.
type Quality uint8

// Good is a value read as asked. Uncertain is a value that may not belong
// together with its group. Bad carries no value: the read failed, or the
// device said "no value".
const (
	Good Quality = iota
	Uncertain
	Bad
)

// String returns good, uncertain or bad.
func (q Quality) String() string {
	switch q {
	case Good:
		return "good"
	case Uncertain:
		return "uncertain"
	}
	return "bad"
}

// Sample is one value of one point. It is what flows up from the field.
type Sample struct {
	ID      ID
	Value   Value // the zero Value when Quality is Bad
	Quality Quality

	// Time is when the response arrived, with its monotonic reading (time.Now
	// has one, UTC and Round take it away): the time of day is not known for sure
	// until it is told. A Time without one is a time of day that is known, as of a
	// sample that was kept over a restart.
	Time time.Time
}

// Interval is how often a point is read: a positive duration, or one of the
// constants.
type Interval time.Duration

// Special intervals.
const (
	Fastest Interval = 0  // as fast as the bus allows
	Once    Interval = -1 // once after each start
	Never   Interval = -2 // only when asked
)

// Type is how a value is laid out in registers.
type Type uint8

// The types of SPEC "point". Bool is the only type of the bit tables; on a
// register it needs BitCount 1.
const (
	Uint16 Type = iota // the default for registers
	Bool
	Int8  // one half of a register, see Point.LowByte
	Uint8 // one half of a register, see Point.LowByte
	Int16
	Int32
	Uint32
	Int64
	Uint64
	Float16
	Float32
	Float64
	BCD16
	BCD32
	String   // Length registers, two characters each
	Bytes    // Length registers, shown as hexadecimal text
	Datetime // Layout says how
)

// Order is the order of bytes and words in values wider than a register, by
// the usual letters: A is the most significant byte. For 64 bits the same rule
// goes over four words: CDAB has the least significant word first. Values of
// one register are not touched. In strings and bytes, DCBA and BADC exchange
// the two bytes of each register, and the registers stay in sequence: a device
// that swaps the words of its floats does not scramble its name.
type Order uint8

// The four orders.
const (
	ABCD Order = iota // big endian, what the Modbus specification has
	DCBA              // little endian
	CDAB              // words swapped
	BADC              // bytes swapped in each word
)

// Layout is the register layout of a Datetime.
type Layout uint8

// The layouts of SPEC "point" (type datetime). DOS to DT2 are one number over
// their registers, to which Order applies; the others are fields at fixed
// places, to which it does not. The number in a name is that of its registers.
//
// A device's clock is taken to show UTC. A register set that is no date (all
// zero before the clock was set, a month 13) is ErrInvalid.
const (
	// DOS is the time stamp of MS-DOS in 32 bits: year-1980 (7 bits), month (4),
	// day (5), hour (5), minute (6), second/2 (5). Odd seconds are written as
	// the even second before.
	DOS Layout = iota
	// WIN is the FILETIME of Windows in 64 bits: steps of 100 ns since
	// 1601-01-01.
	WIN
	// EPOCH is 32 bits of unsigned seconds since 1970-01-01.
	EPOCH
	// EPOCHMS is 64 bits of milliseconds since 1970-01-01.
	EPOCHMS
	// DT2 is 32 bits of unsigned seconds since 2000-01-01.
	DT2
	// DT3 is the three-register format of PowerLogic and Micrologic devices:
	// month (high byte, whose top two bits are flags) and day, year-1900 and
	// hour, minute and second.
	DT3
	// DT4 is the format of IEC 870-5-4 (Schneider's TI081), used by most newer
	// meters: year-2000 (7 bits); month (bits 8-11) and day (0-4); hour (8-12),
	// bit 7 "time is invalid" and minute (0-5); millisecond of the minute,
	// 0-59999. Day of the week and summer time are ignored and written as 0.
	DT4
	// DT4P is DT3 and a fourth register with the millisecond, 0-999.
	DT4P
	// DT6 is one register each: year (four digits), month, day, hour, minute,
	// second.
	DT6
	// DT7 is DT6 and a seventh register with the millisecond, 0-999.
	DT7
)

// MapEntry is one pair of a value map: this raw number is that text. A raw
// number that the map does not name is read as its decimal digits, "7", so that
// a mapped point is text always; such a number cannot be written (CheckWrite).
type MapEntry struct {
	Raw  int64
	Text string
}

// Point says where a value lives in its device, how it is encoded there and
// how often it is wanted. It is a setting: made by config, never changed.
type Point struct {
	ID      ID
	Table   modbus.Table
	Address uint16 // zero-based protocol address
	Type    Type
	Length  uint16 // registers of a String or Bytes; ignored otherwise
	Layout  Layout // of a Datetime
	Order   Order
	LowByte bool // Int8 and Uint8: the low half of the register, not the high

	// FirstBit and BitCount cut a bit field out of a register, least
	// significant bit 0. BitCount 0 means the whole register.
	FirstBit, BitCount uint8

	// Value = raw × Scale + Offset in decimal arithmetic, rounded to Decimals
	// places when Round is set. A zero Scale means 1.
	Scale, Offset Decimal
	Round         bool
	Decimals      int8

	Map     []MapEntry // raw number ⇄ text, sorted by Raw; nil for none
	Invalid []uint64   // raw patterns, as wide as the type, that mean "no value"

	Unit  string // engineering unit, "°C"
	Label string
	Tags  map[string]string

	Every Interval
	Group string // points of one group of a device are read in one request
	Write *Write // nil: read only
}

// Write says how a point may be written. The zero value of each field means
// what the comment says; config fills in the defaults.
type Write struct {
	Min, Max, Step *Decimal // engineering values; nil: no limit
	Only           []Value  // nil: any
	Verify         bool     // read back after the write
	SkipIfEqual    bool
	Emergency      bool                // passes every other request of its bus
	RateEvery      time.Duration       // least time between writes, 0: none
	Budget         int                 // writes a day, 0: unlimited
	Function       modbus.FunctionCode // 5, 6, 15 or 16; 0: by type and width
	OnLoss         Value               // written when every uplink that may command the point is lost; none: it is left as it is
	Reassert       time.Duration       // how often a commanded value is written again while its command is valid, 0: never
}
