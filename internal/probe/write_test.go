package probe

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
	"fieldgate/internal/simulate"
)

// TestEncode: what is written, as the request that carries it.
func TestEncode(t *testing.T) {
	coil := point.Point{Table: modbus.Coils, Address: 3, Type: point.Bool}
	bit := holding(4, "uint16")
	bit.Type, bit.FirstBit, bit.BitCount = point.Bool, 7, 1
	scaled := holding(4, "int16")
	scaled.Scale = point.Decimal{Mant: 1, Exp: -1}
	many := func(n int) string { return strings.TrimSpace(strings.Repeat("1 ", n)) }
	for _, tt := range []struct {
		name     string
		p        point.Point
		values   string
		function modbus.FunctionCode
		want     string // the request, or the error
	}{
		{"one register", holding(4, "uint16"), "17", 0, "0600040011"},
		{"several registers", holding(4, "uint16"), "1 2", 0, "100004000204" + "00010002"},
		{"a wide value", holding(4, "float32"), "42.5", 0, "100004000204" + "422a0000"},
		{"a scaled value", scaled, "-5.5", 0, "060004ffc9"},
		{"one coil", coil, "on", 0, "050003ff00"},
		{"several coils", coil, "on off 1", 0, "0f0003000301" + "05"},
		{"function 16 for one", holding(4, "uint16"), "17", 16, "100004000102" + "0011"},
		{"function 15 for one", coil, "off", 15, "0f0003000101" + "00"},
		{"the last address", holding(65535, "uint16"), "1", 0, "06ffff0001"},
		{"as many as fit", holding(0, "uint16"), many(123), 0, "100000007bf6" + strings.Repeat("0001", 123)},

		{"too large", holding(4, "uint16"), "70000", 0, "70000 is outside 0 to 65535 (uint16)"},
		{"the second is too large", holding(4, "uint16"), "1 70000", 0, "70000 is outside 0 to 65535 (uint16)"},
		{"no number", holding(4, "uint16"), "fast", 0, `"fast" is not a number`},
		{"read only", point.Point{Table: modbus.InputRegisters}, "1", 0, "write: input 0 can only be read"},
		{"function 6 for several", holding(4, "uint16"), "1 2", 6, "function 6 writes one value, not 2"},
		{"function 5 for several", coil, "1 0", 5, "function 5 writes one value, not 2"},
		{"function 5 for a register", holding(4, "uint16"), "1", 5, "write: function 5 does not write holding registers; write 6 or 16"},
		{"function 7", holding(4, "uint16"), "1", 7, "write: function 7 does not write holding registers; write 6 or 16"},
		{"function 6 for a wide value", holding(4, "float32"), "1", 6, "write: function 6 writes one register, float32 has 2"},
		{"several bits", bit, "on off", 0, ErrPart.Error()},
		{"too many", holding(0, "uint16"), many(124), 0, "one request writes 123 at most, not 124"},
		{"past the end", holding(65535, "uint16"), "1 2", 0, "2 from holding 65535 on end past address 65535"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, err := Encode(tt.p, strings.Fields(tt.values), tt.function)
			got := fmt.Sprint(err)
			if err == nil {
				req := v.request(v.regs)
				got = fmt.Sprintf("%x", []byte(req))
				if err := modbus.CheckRequest(req); err != nil {
					t.Error(err)
				}
			}
			if got != tt.want {
				t.Errorf("Encode = %s, want %s", got, tt.want)
			}
		})
	}
	if _, err := Encode(bit, []string{"on", "off"}, 0); !errors.Is(err, ErrPart) {
		t.Errorf("two bits: %v, want ErrPart", err)
	}
}

// once makes a device do something else on the nth request.
func once(nth int, resp modbus.PDU, err error) func(int, modbus.PDU) (modbus.PDU, error, bool) {
	return func(n int, _ modbus.PDU) (modbus.PDU, error, bool) { return resp, err, n == nth }
}

// without makes a device that does not know a function.
func without(f modbus.FunctionCode) func(int, modbus.PDU) (modbus.PDU, error, bool) {
	return func(_ int, req modbus.PDU) (modbus.PDU, error, bool) {
		return nil, modbus.IllegalFunction, req.Function() == f
	}
}

// TestWrite: everything that can become of a write, and what goes over the wire
// for it.
func TestWrite(t *testing.T) {
	bit := holding(10, "uint16")
	bit.Type, bit.FirstBit, bit.BitCount = point.Bool, 8, 1 // register 10 holds 10
	low := holding(10, "uint8")
	low.LowByte = true
	for _, tt := range []struct {
		name    string
		p       point.Point
		values  string
		blind   bool // no read back
		instead func(int, modbus.PDU) (modbus.PDU, error, bool)
		outcome Outcome
		shown   string
		err     string
		asked   string
		is      int64 // what the device's register 10 holds in the end
	}{
		{"verified", holding(10, "uint16"), "17", false, nil,
			Verified, "10=17", "", "06000a0011 03000a0001", 17},
		{"several verified", holding(10, "uint16"), "17 18", false, nil,
			Verified, "10=17 11=18", "", "10000a00020400110012 03000a0002", 17},
		{"not read back", holding(10, "uint16"), "17", true, nil,
			Written, "10=17", "", "06000a0011", 17},
		{"the device shows another value", holding(10, "uint16"), "17", false, once(1, modbus.PDU{6, 0, 10, 0, 17}, nil),
			Differs, "10=10", "", "06000a0011 03000a0001", 10},
		{"not read back, the device keeps its value", holding(10, "uint16"), "17", true, once(1, modbus.PDU{6, 0, 10, 0, 17}, nil),
			Written, "10=17", "", "06000a0011", 10},
		{"the read back fails", holding(10, "uint16"), "17", false, once(2, nil, modbus.ErrNoResponse),
			Written, "", "unit 1: read holding 10+1: no response", "06000a0011 03000a0001", 17},
		{"refused", holding(10, "uint16"), "17", false, once(1, nil, modbus.ServerDeviceBusy),
			Failed, "", "unit 1: write holding 10+1: exception 6: server device busy", "06000a0011", 10},
		{"no wire", holding(10, "uint16"), "17", false, once(1, nil, modbus.ErrNotConnected),
			Failed, "", "unit 1: write holding 10+1: not connected", "06000a0011", 10},
		{"not done, and no answer", holding(10, "uint16"), "17", false, once(1, nil, modbus.ErrNoResponse),
			Unknown, "", "unit 1: write holding 10+1: no response", "06000a0011 03000a0001", 10},
		{"damaged answer, not read back", holding(10, "uint16"), "17", true, once(1, nil, modbus.ErrBadResponse),
			Unknown, "", "unit 1: write holding 10+1: bad response", "06000a0011", 10},
		{"no answer, and the value was that already", holding(10, "uint16"), "10", false, once(1, nil, modbus.ErrNoResponse),
			Verified, "10=10", "unit 1: write holding 10+1: no response", "06000a000a 03000a0001", 10},
		{"one bit", bit, "on", false, nil,
			Verified, "10=1", "", "16000afeff0100 03000a0001", 0x10A},
		{"one bit, without function 22", bit, "on", false, without(modbus.MaskWriteRegister),
			Verified, "10=1", "", "16000afeff0100 03000a0001 06000a010a 03000a0001", 0x10A},
		{"low byte, without function 22", low, "200", false, without(modbus.MaskWriteRegister),
			Verified, "10=200", "", "16000aff0000c8 03000a0001 06000a00c8 03000a0001", 200},
		{"one bit, refused", bit, "on", false, once(1, nil, modbus.IllegalDataAddress),
			Failed, "", "unit 1: write holding 10+1: exception 2: illegal data address", "16000afeff0100", 10},
		{"an answer to something else", holding(10, "uint16"), "17", true, once(1, modbus.PDU{6, 0, 11, 0, 17}, nil),
			Unknown, "", "unit 1: write holding 10+1: bad response: write single register: echo 06 00 0b 00 11, want 06 00 0a 00 11", "06000a0011", 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := simulate.New(device(1, 20, 0))
			ep := &tap{next: d, instead: tt.instead}
			v, err := Encode(tt.p, strings.Fields(tt.values), 0)
			if err != nil {
				t.Fatal(err)
			}
			r := Unit{ep, 1}.Write(t.Context(), v, !tt.blind)
			each, shown := collect()
			for _, s := range r.Shown {
				_ = each(s) // which never fails
			}
			text := ""
			var request *Error
			if r.Err != nil {
				text = r.Err.Error()
				if !errors.As(r.Err, &request) {
					t.Errorf("error %v is no Error", r.Err)
				}
			}
			if r.Outcome != tt.outcome || shown() != tt.shown || text != tt.err {
				t.Errorf("outcome %d, shown %q, error %q, want %d, %q, %q", r.Outcome, shown(), text, tt.outcome, tt.shown, tt.err)
			}
			if ep.asked() != tt.asked {
				t.Errorf("asked %s, want %s", ep.asked(), tt.asked)
			}
			if is, err := d.Value("r10"); err != nil || is != point.IntValue(tt.is) {
				t.Errorf("the device holds %v, %v, want %d", is, err, tt.is)
			}
		})
	}
}

// TestWriteMuted: a device that executes the write and loses the answer.
func TestWriteMuted(t *testing.T) {
	s := device(1, 20, 0)
	s.Faults = []simulate.Fault{{Kind: simulate.Mute, Nth: 2}}
	u := Unit{simulate.New(s), 1}
	v, err := Encode(holding(10, "uint16"), []string{"17"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if r := u.Write(t.Context(), v, true); r.Outcome != Written { // the second request is the read back
		t.Errorf("outcome %d, %v", r.Outcome, r.Err)
	}
	if _, err := u.ReadSome(t.Context(), modbus.HoldingRegisters, 10, 1); err != nil {
		t.Error(err)
	}
	if r := u.Write(t.Context(), v, true); r.Outcome != Verified || !errors.Is(r.Err, modbus.ErrNoResponse) || len(r.Shown) != 1 || r.Shown[0].Raw[0] != 17 {
		t.Errorf("outcome %d, shown %v, error %v", r.Outcome, r.Shown, r.Err)
	}
}

// TestWriteBroadcast: every device does it, and none is asked.
func TestWriteBroadcast(t *testing.T) {
	devices := simulate.Devices{simulate.New(device(1, 20, 0)), simulate.New(device(2, 20, 0))}
	for _, tt := range []struct {
		values, shown, asked string
	}{
		{"17", "10=17", "06000a0011"},
		{"18 19", "10=18 11=19", "10000a00020400120013"},
	} {
		ep := &tap{next: devices}
		v, err := Encode(holding(10, "uint16"), strings.Fields(tt.values), 0)
		if err != nil {
			t.Fatal(err)
		}
		r := Unit{ep, modbus.Broadcast}.Write(t.Context(), v, true)
		each, shown := collect()
		for _, s := range r.Shown {
			_ = each(s) // which never fails
		}
		if r.Outcome != Written || r.Err != nil || shown() != tt.shown || ep.asked() != tt.asked {
			t.Errorf("outcome %d, %v, shown %q, asked %s", r.Outcome, r.Err, shown(), ep.asked())
		}
		for _, d := range devices {
			if v, err := d.Value("r10"); err != nil || fmt.Sprintf("10=%v", v) != strings.Fields(tt.shown)[0] {
				t.Errorf("%s holds %v, %v", d.Name(), v, err)
			}
		}
	}
}
