package probe

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// Ask makes one request of any kind. When the unit refuses it, the exception
// response comes with the Error; with any other error, and to a broadcast, there
// is no response.
func (u Unit) Ask(ctx context.Context, req modbus.PDU) (modbus.PDU, error) {
	resp, err := modbus.Do(ctx, u.Endpoint, u.ID, req)
	if err == nil {
		return resp, nil
	}
	var refused modbus.Exception
	if errors.As(err, &refused) {
		resp = modbus.ExceptionResponse(req.Function(), refused)
	}
	return resp, &Error{u.ID, req.Function(), req.Function().String(), err}
}

// Fact is one thing that an answer says.
type Fact struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// Explain says in words what resp, a checked response to req, means; an empty
// one is that to a broadcast. It says nothing of functions it does not know.
// Clauses are those of the application protocol (APP), see package modbus.
func Explain(req, resp modbus.PDU) []Fact {
	if len(resp) == 0 {
		return []Fact{{"broadcast", "sent to every unit; none answers"}}
	}
	if resp.Function() != req.Function() {
		return []Fact{{"refused", modbus.Exception(resp[1]).Error()}}
	}
	switch req.Function() {
	case modbus.ReadCoils, modbus.ReadDiscreteInputs, modbus.ReadHoldingRegisters, modbus.ReadInputRegisters, modbus.ReadWriteRegisters:
		t, addr, _, _ := req.Span()
		var facts []Fact
		for i, v := range modbus.Registers(req, resp) {
			at := addr + uint16(i)
			facts = append(facts, Fact{fmt.Sprintf("%s (%s)", point.FormatAddress(t, at), point.Modicon(t, at)), strconv.Itoa(int(v))})
		}
		return facts
	case modbus.WriteSingleCoil, modbus.WriteSingleRegister, modbus.WriteMultipleCoils, modbus.WriteMultipleRegisters, modbus.MaskWriteRegister:
		t, addr, n, _ := req.Span()
		return []Fact{{"written", fmt.Sprintf("%s+%d", point.FormatAddress(t, addr), n)}}
	case modbus.ReadExceptionStatus:
		return []Fact{{"exception status outputs 7-0", fmt.Sprintf("%08b", resp[1])}}
	case modbus.Diagnostics:
		return explainDiagnostics(resp)
	case modbus.GetCommEventCounter:
		return []Fact{{"status", busy(resp[1:])}, {"events", word(resp[3:])}}
	case modbus.GetCommEventLog:
		facts := []Fact{{"status", busy(resp[2:])}, {"events", word(resp[4:])}, {"messages", word(resp[6:])}}
		for _, e := range resp[8:] {
			facts = append(facts, Fact{fmt.Sprintf("event %02x", e), commEvent(e)})
		}
		return facts
	case modbus.ReportServerID:
		return explainServerID(resp[2:])
	case modbus.ReadFIFOQueue:
		facts := []Fact{{"registers in the queue", word(resp[3:])}}
		for b := resp[5:]; len(b) >= 2; b = b[2:] {
			facts = append(facts, Fact{"value", word(b)})
		}
		return facts
	case modbus.EncapsulatedInterface:
		if req[1] == modbus.ReadDeviceIdentification {
			return explainDeviceID(resp)
		}
	}
	return nil
}

func word(b []byte) string { return strconv.Itoa(int(binary.BigEndian.Uint16(b))) }

// busy reads the status word of functions 11 and 12 (APP 6.9).
func busy(b []byte) string {
	if binary.BigEndian.Uint16(b) == 0xFFFF {
		return "busy with an earlier command"
	}
	return "ready"
}

// explainDiagnostics names the sub-function (APP 6.8.1).
func explainDiagnostics(resp modbus.PDU) []Fact {
	sub := binary.BigEndian.Uint16(resp[1:])
	names := map[uint16]string{
		0: "echo", 1: "communications restarted", 2: "diagnostic register", 3: "ASCII delimiter changed", 4: "listen only mode",
		10: "counters cleared", 11: "bus messages", 12: "bus communication errors (CRC)", 13: "exceptions sent",
		14: "messages for this unit", 15: "messages without an answer", 16: "answers NAK", 17: "answers busy",
		18: "character overruns", 20: "overrun counter cleared",
	}
	name, known := names[sub]
	switch {
	case !known:
		return []Fact{{fmt.Sprintf("sub-function %d", sub), hex.EncodeToString(resp[3:])}}
	case sub == 0:
		return []Fact{{name, hex.EncodeToString(resp[3:])}}
	case sub == 2:
		return []Fact{{name, fmt.Sprintf("%016b", binary.BigEndian.Uint16(resp[3:]))}}
	case sub >= 11 && sub <= 18:
		return []Fact{{name, word(resp[3:])}}
	}
	return []Fact{{name, "done"}}
}

// commEvent explains one byte of the event log (APP 6.10).
func commEvent(e byte) string {
	var what []string
	add := func(bit byte, text string) {
		if e&bit != 0 {
			what = append(what, text)
		}
	}
	switch {
	case e&0x80 != 0:
		what = append(what, "received")
		add(0x02, "communication error")
		add(0x10, "character overrun")
		add(0x20, "listen only mode")
		add(0x40, "broadcast")
	case e&0x40 != 0:
		what = append(what, "sent")
		add(0x01, "exception 1-3")
		add(0x02, "exception 4")
		add(0x04, "exception 5-6")
		add(0x08, "exception 7")
		add(0x10, "write timeout")
		add(0x20, "listen only mode")
	case e == 0x04:
		return "entered listen only mode"
	case e == 0x00:
		return "communication restarted"
	default:
		return "unknown"
	}
	return strings.Join(what, ", ")
}

// explainServerID shows what function 17 answers; only the device's manual
// says where its parts end (APP 6.13).
func explainServerID(data []byte) []Fact {
	facts := []Fact{{"server id", hex.EncodeToString(data)}}
	if text := printable(data); text != "" {
		facts = append(facts, Fact{"as text", text})
	}
	for i, c := range data {
		if i > 0 && (c == 0xFF || c == 0x00) { // the first such byte behind the id
			state := map[byte]string{0xFF: "on", 0x00: "off"}[c]
			return append(facts, Fact{"run indicator", fmt.Sprintf("%s, if it is byte %d", state, i)})
		}
	}
	return facts
}

// explainDeviceID lists the objects of function 43/14 (APP 6.21).
func explainDeviceID(resp modbus.PDU) []Fact {
	var facts []Fact
	for b := resp[7:]; len(b) >= 2 && len(b) >= 2+int(b[1]); b = b[2+int(b[1]):] {
		o := modbus.Object{ID: b[0], Value: b[2 : 2+int(b[1])]}
		facts = append(facts, Fact{o.Name(), objectText(o)})
	}
	if resp[4] != 0 {
		facts = append(facts, Fact{"more follows", fmt.Sprintf("ask again from object %02x", resp[5])})
	}
	return facts
}

// objectText shows an object as text if it is that, else in hexadecimal.
func objectText(o modbus.Object) string {
	if text := printable(o.Value); len(text) == len(o.Value) {
		return text
	}
	return hex.EncodeToString(o.Value)
}

// printable returns the printable ASCII characters of b.
func printable(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		if c >= 0x20 && c < 0x7F {
			s.WriteByte(c)
		}
	}
	return strings.TrimSpace(s.String())
}
