package point

import (
	"fmt"
	"time"
)

// words returns the number of registers of a datetime.
func (l Layout) words() int {
	switch l {
	case DOS, EPOCH, DT2:
		return 2
	case DT3:
		return 3
	case DT6:
		return 6
	case DT7:
		return 7
	}
	return 4
}

// count reports whether the layout is one number rather than fields, so that
// order and invalid patterns apply.
func (l Layout) count() bool { return l <= DT2 }

// format is the RFC 3339 form that shows exactly what the layout resolves.
func (l Layout) format() string {
	switch l {
	case WIN:
		return "2006-01-02T15:04:05.0000000Z07:00"
	case EPOCHMS, DT4, DT4P, DT7:
		return timestamp
	}
	return "2006-01-02T15:04:05Z07:00"
}

// timestamp is RFC 3339 with milliseconds.
const timestamp = "2006-01-02T15:04:05.000Z07:00"

// Timestamp returns t as every time of ours is written: RFC 3339 in UTC with
// milliseconds, 2025-11-05T14:30:15.123Z.
func Timestamp(t time.Time) string { return t.UTC().Format(timestamp) }

// Offsets of other epochs from 1970, in seconds.
const (
	unix1601 = -11644473600
	unix2000 = 946684800
)

// The first second that RFC 3339 cannot write any more: the year 10000.
const unix10000 = 253402300800

// decodeClock reads a datetime; ok is false for what is no date.
func (p *Point) decodeClock(regs []uint16) (t time.Time, ok bool) {
	if p.Layout.count() {
		n := join(regs, p.Order)
		switch p.Layout {
		case DOS:
			sec := int(n&31) * 2
			return date(1980+int(n>>25&127), int(n>>21&15), int(n>>16&31), int(n>>11&31), int(n>>5&63), sec, 0)
		case WIN:
			sec := int64(n/1e7) + unix1601
			return time.Unix(sec, int64(n%1e7)*100).UTC(), sec < unix10000
		case EPOCHMS:
			sec := int64(n / 1000)
			return time.Unix(sec, int64(n%1000)*1e6).UTC(), sec < unix10000
		case EPOCH:
			return time.Unix(int64(n), 0).UTC(), true
		}
		return time.Unix(int64(n)+unix2000, 0).UTC(), true // DT2
	}
	hi := func(i int) int { return int(regs[i] >> 8) }
	lo := func(i int) int { return int(regs[i] & 0xFF) }
	switch p.Layout {
	case DT3:
		return date(1900+hi(1), hi(0)&0x3F, lo(0), lo(1), hi(2), lo(2), 0)
	case DT4P:
		return date(1900+hi(1), hi(0)&0x3F, lo(0), lo(1), hi(2), lo(2), int(regs[3]))
	case DT4:
		if lo(2)&0x80 != 0 {
			return time.Time{}, false
		}
		ms := int(regs[3])
		return date(2000+lo(0)&0x7F, hi(1)&15, lo(1)&31, hi(2)&31, lo(2)&63, ms/1000, ms%1000)
	case DT6:
		return date(int(regs[0]), int(regs[1]), int(regs[2]), int(regs[3]), int(regs[4]), int(regs[5]), 0)
	}
	return date(int(regs[0]), int(regs[1]), int(regs[2]), int(regs[3]), int(regs[4]), int(regs[5]), int(regs[6]))
}

// date is time.Date that refuses what time.Date would carry over. Years below
// 1900 are no clock's: DT6 and DT7 have four digits.
func date(year, month, day, hour, minute, sec, ms int) (time.Time, bool) {
	if year < 1900 || year > 9999 || month < 1 || month > 12 || day < 1 || hour > 23 || minute > 59 || sec > 59 || ms > 999 {
		return time.Time{}, false
	}
	t := time.Date(year, time.Month(month), day, hour, minute, sec, ms*1e6, time.UTC)
	return t, t.Day() == day
}

// encodeClock is the inverse of decodeClock; what is finer than the layout
// resolves is cut off.
func (p *Point) encodeClock(t time.Time) ([]uint16, error) {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, sec := t.Clock()
	ms := t.Nanosecond() / 1e6
	outside := func(first, last string) error {
		return fmt.Errorf("%s is outside %s to %s (%s)", t.Format(p.Layout.format()), first, last, p.TypeName())
	}
	bytes := func(hi, lo int) uint16 { return uint16(hi<<8 | lo) }
	switch p.Layout {
	case DOS:
		if year < 1980 || year > 2107 {
			return nil, outside("1980", "2107")
		}
		n := uint64(year-1980)<<25 | uint64(month)<<21 | uint64(day)<<16 | uint64(hour)<<11 | uint64(minute)<<5 | uint64(sec/2)
		return split(n, 2, p.Order), nil
	case WIN:
		if t.Unix() < unix1601 {
			return nil, outside("1601", "9999")
		}
		return split(uint64(t.Unix()-unix1601)*1e7+uint64(t.Nanosecond()/100), 4, p.Order), nil
	case EPOCHMS:
		if t.Unix() < 0 {
			return nil, outside("1970", "9999")
		}
		return split(uint64(t.UnixMilli()), 4, p.Order), nil
	case EPOCH, DT2:
		n, first, last := t.Unix(), "1970-01-01", "2106-02-07"
		if p.Layout == DT2 {
			n, first, last = n-unix2000, "2000-01-01", "2136-02-07"
		}
		if n < 0 || n >= 1<<32 {
			return nil, outside(first, last)
		}
		return split(uint64(n), 2, p.Order), nil
	case DT3, DT4P:
		if year < 1900 || year > 2155 {
			return nil, outside("1900", "2155")
		}
		regs := []uint16{bytes(int(month), day), bytes(year-1900, hour), bytes(minute, sec)}
		if p.Layout == DT4P {
			regs = append(regs, uint16(ms))
		}
		return regs, nil
	case DT4:
		if year < 2000 || year > 2127 {
			return nil, outside("2000", "2127")
		}
		return []uint16{uint16(year - 2000), bytes(int(month), day), bytes(hour, minute), uint16(sec*1000 + ms)}, nil
	}
	if year < 1900 || year > 9999 {
		return nil, outside("1900", "9999")
	}
	regs := []uint16{uint16(year), uint16(month), uint16(day), uint16(hour), uint16(minute), uint16(sec)}
	if p.Layout == DT7 {
		regs = append(regs, uint16(ms))
	}
	return regs, nil
}
