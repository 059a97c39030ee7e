package probe

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"fieldgate/internal/modbus"
	"fieldgate/internal/simulate"
)

func TestExplain(t *testing.T) {
	for _, tt := range []struct{ name, req, resp, want string }{
		{"registers", "03 0063 0002", "03 04 0007 FFFF", "holding 99 (40100): 7; holding 100 (40101): 65535"},
		{"input registers", "04 0000 0001", "04 02 0102", "input 0 (30001): 258"},
		{"coils", "01 0000 0003", "01 01 05", "coil 0 (00001): 1; coil 1 (00002): 0; coil 2 (00003): 1"},
		{"written and read", "17 0000 0001 0005 0001 02 0007", "17 02 0003", "holding 0 (40001): 3"},
		{"a write", "10 0004 0002 04 0001 0002", "10 0004 0002", "written: holding 4+2"},
		{"a mask write", "16 0004 FFFF 0000", "16 0004 FFFF 0000", "written: holding 4+1"},
		{"refused", "03 01F4 0001", "83 02", "refused: exception 2: illegal data address"},
		{"exception status", "07", "07 12", "exception status outputs 7-0: 00010010"},
		{"echo", "08 0000 A5A5", "08 0000 A5A5", "echo: a5a5"},
		{"diagnostic register", "08 0002 0000", "08 0002 8001", "diagnostic register: 1000000000000001"},
		{"a counter", "08 000B 0000", "08 000B 002A", "bus messages: 42"},
		{"a command", "08 000A 0000", "08 000A 0000", "counters cleared: done"},
		{"an unknown sub-function", "08 0100 0000", "08 0100 BEEF", "sub-function 256: beef"},
		{"event counter", "0B", "0B FFFF 0108", "status: busy with an earlier command; events: 264"},
		{"event log", "0C", "0C 09 0000 0108 0121 C2 61 04", "status: ready; events: 264; messages: 289; event c2: received, communication error, broadcast; event 61: sent, exception 1-3, listen only mode; event 04: entered listen only mode"},
		{"server id", "11", "11 07 41434D452D31 FF", "server id: 41434d452d31ff; as text: ACME-1; run indicator: on, if it is byte 6"},
		{"server id off", "11", "11 02 0100", "server id: 0100; run indicator: off, if it is byte 1"},
		{"fifo", "18 0000", "18 0006 0002 01B8 1284", "registers in the queue: 2; value: 440; value: 4740"},
		{"identification", "2B 0E 01 00", "2B 0E 01 83 FF 02 02 00 04 41636D65 01 02 FF01", "vendor name: Acme; product code: ff01; more follows: ask again from object 02"},
		{"another interface", "2B 0D 00", "2B 0D 00", ""},
		{"a vendor's function", "41 0102", "41 090807", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, resp := unhex(t, tt.req), unhex(t, tt.resp)
			var refused modbus.Exception
			if err := modbus.CheckResponse(req, resp); err != nil && !errors.As(err, &refused) {
				t.Fatal(err)
			}
			var got []string
			for _, f := range Explain(req, resp) {
				got = append(got, f.Name+": "+f.Text)
			}
			if text := strings.Join(got, "; "); text != tt.want {
				t.Errorf("Explain = %s\nwant      %s", text, tt.want)
			}
		})
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAsk(t *testing.T) {
	u := Unit{simulate.New(device(1, 4, 0)), 1}
	for _, tt := range []struct{ req, resp, err string }{
		{"03 0001 0002", "030400010002", "<nil>"},
		{"03 0005 0001", "8302", "unit 1: read holding registers: simulate: device1: exception 2: illegal data address"},
		{"42", "c201", "unit 1: function 66: simulate: device1: exception 1: illegal function"},
		{"03 0000 007E", "", "unit 1: read holding registers: invalid request: read holding registers: quantity 126 is outside 1-125"},
	} {
		req := modbus.PDU(unhex(t, tt.req))
		resp, err := u.Ask(t.Context(), req)
		if hex.EncodeToString(resp) != tt.resp || fmt.Sprint(err) != tt.err {
			t.Errorf("Ask(%s) = %x, %v, want %s, %s", tt.req, []byte(resp), err, tt.resp, tt.err)
		}
		var request *Error
		if err != nil && (!errors.As(err, &request) || request.Function != req.Function()) {
			t.Errorf("Ask(%s): error %#v", tt.req, err)
		}
	}
}

// TestAskBroadcast: what no unit answers can be explained too.
func TestAskBroadcast(t *testing.T) {
	d := simulate.New(device(1, 4, 0))
	req := modbus.WriteRegisterRequest(1, 17)
	resp, err := Unit{d, modbus.Broadcast}.Ask(t.Context(), req)
	if err != nil || len(resp) > 0 {
		t.Fatalf("Ask = %x, %v", []byte(resp), err)
	}
	if facts := Explain(req, resp); len(facts) != 1 || facts[0].Name != "broadcast" {
		t.Errorf("Explain = %v", facts)
	}
	if v, err := d.Value("r1"); err != nil || v.String() != "17" {
		t.Errorf("the device holds %v, %v", v, err)
	}
}

func TestCommEvent(t *testing.T) {
	for e, want := range map[byte]string{
		0x00: "communication restarted", 0x04: "entered listen only mode", 0x01: "unknown",
		0x80: "received", 0xD2: "received, communication error, character overrun, broadcast",
		0x40: "sent", 0x7F: "sent, exception 1-3, exception 4, exception 5-6, exception 7, write timeout, listen only mode",
	} {
		if got := commEvent(e); got != want {
			t.Errorf("commEvent(%#x) = %q, want %q", e, got, want)
		}
	}
}

// FuzzExplain: no answer that passes the checks makes Explain fail.
func FuzzExplain(f *testing.F) {
	f.Add([]byte{12}, []byte{12, 9, 0xFF, 0xFF, 1, 8, 1, 0x21, 0xC2, 0x61, 0x04})
	f.Add([]byte{43, 14, 1, 0}, []byte{43, 14, 1, 1, 0, 0, 1, 0, 2, 'A', 'B'})
	f.Add([]byte{17}, []byte{17, 3, 'X', 0, 0xFF})
	f.Add([]byte{8, 0, 2, 0, 0}, []byte{8, 0, 2, 1, 2})
	f.Add([]byte{24, 0, 1}, []byte{24, 0, 4, 0, 1, 1, 2})
	f.Add([]byte{3, 0, 0, 0, 1}, []byte{0x83, 2})
	f.Fuzz(func(t *testing.T, req, resp []byte) {
		var refused modbus.Exception
		if modbus.CheckRequest(req) != nil {
			return
		}
		if err := modbus.CheckResponse(req, resp); err != nil && !errors.As(err, &refused) {
			return
		}
		Explain(slices.Clone(req), slices.Clone(resp))
	})
}
