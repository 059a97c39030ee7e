package point

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func clock(l Layout) Point {
	return reg(Datetime).with(func(p *Point) { p.Layout = l })
}

func TestDatetime(t *testing.T) {
	for _, tt := range []struct {
		name string
		p    Point
		regs []uint16
		want string
	}{
		// 2007-01-01 18:34:20 is the example of the AutoIt reference for DOS time.
		{"DOS", clock(DOS), []uint16{0x3621, 0x944A}, "2007-01-01T18:34:20Z"},
		{"DOS words swapped", clock(DOS).with(func(p *Point) { p.Order = CDAB }), []uint16{0x944A, 0x3621}, "2007-01-01T18:34:20Z"},
		{"WIN epoch", clock(WIN), []uint16{0, 0, 0, 0}, "1601-01-01T00:00:00.0000000Z"},
		{"WIN 1970", clock(WIN), []uint16{0x019D, 0xB1DE, 0xD53E, 0x8000}, "1970-01-01T00:00:00.0000000Z"},
		{"WIN 100 ns", clock(WIN), []uint16{0x019D, 0xB1DE, 0xD53E, 0x8001}, "1970-01-01T00:00:00.0000001Z"},
		{"EPOCH", clock(EPOCH), []uint16{0x65BE, 0xDD3A}, "2024-02-04T00:41:30Z"},
		{"EPOCH past 2038", clock(EPOCH), []uint16{0xFFFF, 0xFFFF}, "2106-02-07T06:28:15Z"},
		{"EPOCH little endian", clock(EPOCH).with(func(p *Point) { p.Order = DCBA }), []uint16{0x3ADD, 0xBE65}, "2024-02-04T00:41:30Z"},
		{"EPOCHMS", clock(EPOCHMS), []uint16{0, 0x018D, 0x71A2, 0xC095}, "2024-02-04T01:01:48.053Z"},
		{"DT2", clock(DT2), []uint16{0, 61}, "2000-01-01T00:01:01Z"},
		// 01/25/00 at 11:06:59.122 is the example of the PowerLogic manuals
		// (63230-300-212, table A-2).
		{"DT3", clock(DT3), []uint16{0x0119, 0x640B, 0x063B}, "2000-01-25T11:06:59Z"},
		{"DT3 with flags on the month", clock(DT3), []uint16{0xC119, 0x640B, 0x063B}, "2000-01-25T11:06:59Z"},
		{"DT4P", clock(DT4P), []uint16{0x0119, 0x640B, 0x063B, 0x007A}, "2000-01-25T11:06:59.122Z"},
		{"DT4", clock(DT4), []uint16{25, 0x0B05, 0x0E1E, 15123}, "2025-11-05T14:30:15.123Z"},
		{"DT4 with week day and summer time", clock(DT4), []uint16{0xFF19, 0xFB65, 0x8E1E, 59999}, "2025-11-05T14:30:59.999Z"},
		{"DT6", clock(DT6), []uint16{2025, 11, 5, 14, 30, 15}, "2025-11-05T14:30:15Z"},
		{"DT7", clock(DT7), []uint16{2024, 2, 29, 23, 59, 59, 999}, "2024-02-29T23:59:59.999Z"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.p.Validate(); err != nil {
				t.Fatal(err)
			}
			v, err := tt.p.Decode(tt.regs)
			if err != nil || v.String() != tt.want {
				t.Fatalf("Decode(%#x) = %q, %v, want %q", tt.regs, v, err, tt.want)
			}
			regs, err := tt.p.Encode(v)
			if err != nil {
				t.Fatal(err)
			}
			if back, err := tt.p.Decode(regs); err != nil || back != v {
				t.Errorf("Encode gives %#x, which is %s, %v", regs, back, err)
			}
			flags := strings.Contains(tt.name, " with ")
			if !flags && !slices.Equal(regs, tt.regs) {
				t.Errorf("Encode(%s) = %#x, want %#x", v, regs, tt.regs)
			}
		})
	}
}

func TestDatetimeInvalid(t *testing.T) {
	for _, tt := range []struct {
		name string
		p    Point
		regs []uint16
	}{
		{"DOS zero", clock(DOS), []uint16{0, 0}},
		{"DOS 60 seconds", clock(DOS), []uint16{0x3621, 0x945E}},
		{"DT3 zero", clock(DT3), []uint16{0, 0, 0}},
		{"DT3 31 April", clock(DT3), []uint16{0x041F, 0x7D00, 0}},
		{"DT4 zero", clock(DT4), []uint16{0, 0, 0, 0}},
		{"DT4 said to be invalid", clock(DT4), []uint16{25, 0x0B05, 0x0E9E, 15123}},
		{"DT4 60 s", clock(DT4), []uint16{25, 0x0B05, 0x0E1E, 60000}},
		{"DT4P 1000 ms", clock(DT4P), []uint16{0x0119, 0x640B, 0x063B, 1000}},
		{"DT6 two-digit year", clock(DT6), []uint16{25, 11, 5, 14, 30, 15}},
		{"DT6 29 February", clock(DT6), []uint16{2025, 2, 29, 0, 0, 0}},
		{"DT7 hour 24", clock(DT7), []uint16{2025, 2, 28, 24, 0, 0, 0}},
		{"WIN past 9999", clock(WIN), []uint16{0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF}},
		{"EPOCHMS past 9999", clock(EPOCHMS), []uint16{0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if v, err := tt.p.Decode(tt.regs); !errors.Is(err, ErrInvalid) {
				t.Errorf("Decode(%#x) = %q, %v, want ErrInvalid", tt.regs, v, err)
			}
		})
	}
}

func TestDatetimeEncode(t *testing.T) {
	for _, tt := range []struct {
		l     Layout
		in    string
		want  []uint16
		wrong string
	}{
		{DT6, "2025-11-05T15:30:15+01:00", []uint16{2025, 11, 5, 14, 30, 15}, ""},
		{DT6, "2025-11-05T14:30:15.999Z", []uint16{2025, 11, 5, 14, 30, 15}, ""},
		{DOS, "2025-11-05T14:30:15Z", []uint16{0x5B65, 0x73C7}, ""},
		{DOS, "1979-12-31T23:59:59Z", nil, "1979-12-31T23:59:59Z is outside 1980 to 2107 (datetime(DOS))"},
		{WIN, "1600-12-31T23:59:59Z", nil, "is outside 1601 to 9999 (datetime(WIN))"},
		{EPOCH, "1969-12-31T23:59:59Z", nil, "is outside 1970-01-01 to 2106-02-07"},
		{EPOCH, "2106-02-07T06:28:16Z", nil, "is outside 1970-01-01 to 2106-02-07"},
		{EPOCHMS, "1969-12-31T23:59:59Z", nil, "is outside 1970 to 9999"},
		{DT2, "1999-12-31T23:59:59Z", nil, "is outside 2000-01-01 to 2136-02-07"},
		{DT3, "1899-12-31T23:59:59Z", nil, "is outside 1900 to 2155"},
		{DT4, "1999-12-31T23:59:59Z", nil, "is outside 2000 to 2127"},
		{DT6, "1899-12-31T23:59:59Z", nil, "is outside 1900 to 9999"},
		{DT6, "2025-11-05 14:30:15", nil, "is not a date and time; write 2025-11-05T14:30:15Z"},
	} {
		got, err := clock(tt.l).Encode(TextValue(tt.in))
		if tt.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), tt.wrong) {
				t.Errorf("%s: Encode(%s) = %#x, %v, want %q", tt.l, tt.in, got, err, tt.wrong)
			}
			continue
		}
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: Encode(%s) = %#x, %v, want %#x", tt.l, tt.in, got, err, tt.want)
		}
	}
	if _, err := clock(EPOCH).with(func(p *Point) { p.Invalid = []uint64{0} }).Encode(TextValue("1970-01-01T00:00:00Z")); err == nil || !strings.Contains(err.Error(), "no value") {
		t.Errorf("the pattern of no value: %v", err)
	}
}

func TestTimestamp(t *testing.T) {
	at := time.Date(2025, 11, 5, 15, 30, 15, 120_999_999, time.FixedZone("CET", 3600))
	if got, want := Timestamp(at), "2025-11-05T14:30:15.120Z"; got != want {
		t.Errorf("Timestamp(%v) = %s, want %s", at, got, want)
	}
}
