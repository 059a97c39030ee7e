package main

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

func cmdModbusPDU(ctx context.Context, a *app, args []string) error {
	f := newFlags("modbus pdu", "URL HEX... [OPTION...]", `
Sends one request, given as the hexadecimal bytes of its PDU (function code and
data, without address and checksum), and explains the answer.

  fieldgate modbus pdu tcp://10.0.0.10 03 0000 0002      read two holding registers
  fieldgate modbus pdu tcp://10.0.0.10 07                exception status
  fieldgate modbus pdu rtu:///dev/ttyUSB0 08 0000 A5A5   diagnostics: echo
  fieldgate modbus pdu rtu:///dev/ttyUSB0 08 000B 0000   diagnostics: bus message count
  fieldgate modbus pdu rtu:///dev/ttyUSB0 0B             comm event counter
  fieldgate modbus pdu rtu:///dev/ttyUSB0 0C             comm event log
  fieldgate modbus pdu tcp://10.0.0.10 11                server id
  fieldgate modbus pdu tcp://10.0.0.10 2B 0E 01 00       identification: vendor, product, revision
  fieldgate modbus pdu tcp://10.0.0.10 41 01 02          a vendor's own function

What breaks the specification is not sent.`)
	var p peer
	p.flags(f)
	asJSON := f.Bool("json", false, "print a JSON object")
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	url, rest, err := takeURL(rest)
	if err != nil {
		return err
	}
	req, err := parseHex(strings.Join(rest, ""))
	if err != nil {
		return err
	}
	if len(req) == 0 {
		return usagef("the bytes of the request are missing, such as 03 0000 0002")
	}
	if err := modbus.CheckRequest(req); err != nil {
		return badConfig(err)
	}
	w, err := p.open(ctx, a, url)
	if err != nil {
		return err
	}
	defer w.stop()
	resp, err := w.Do(ctx, w.unit, req)
	var refused modbus.Exception
	if err != nil && !errors.As(err, &refused) {
		return w.failed(err, "%v", modbus.PDU(req).Function())
	}
	if err != nil {
		resp = modbus.ExceptionResponse(modbus.PDU(req).Function(), refused)
	}
	facts := explain(req, resp)
	if *asJSON {
		out := pduResult{Request: hex.EncodeToString(req), Response: hex.EncodeToString(resp), Facts: facts}
		if jsonErr := json.NewEncoder(a.stdout).Encode(out); jsonErr != nil {
			return jsonErr
		}
	} else {
		fmt.Fprintf(a.stdout, "> % x  %v\n< % x\n", req, modbus.PDU(req).Function(), []byte(resp))
		for _, fact := range facts {
			fmt.Fprintf(a.stdout, "%s  %s\n", fact.Name, fact.Text)
		}
	}
	if err != nil {
		return w.failed(err, "%v", modbus.PDU(req).Function())
	}
	return nil
}

// pduResult is what "modbus pdu --json" prints.
type pduResult struct {
	Request  string `json:"request"`
	Response string `json:"response"`
	Facts    []fact `json:"facts"`
}

// fact is one thing that an answer says.
type fact struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// parseHex reads hexadecimal digits, with 0x in front or not.
func parseHex(s string) ([]byte, error) {
	digits := strings.NewReplacer("0x", "", "0X", "", " ", "", ":", "", ",", "").Replace(s)
	b, err := hex.DecodeString(digits)
	if err != nil {
		return nil, usagef("%q is not hexadecimal bytes, two digits each", s)
	}
	return b, nil
}

// explain says in words what resp, a checked response to req, means. It says
// nothing of functions it does not know.
func explain(req, resp modbus.PDU) []fact {
	if resp.Function() != req.Function() {
		return []fact{{"refused", modbus.Exception(resp[1]).Error()}}
	}
	switch req.Function() {
	case modbus.ReadCoils, modbus.ReadDiscreteInputs, modbus.ReadHoldingRegisters, modbus.ReadInputRegisters, modbus.ReadWriteRegisters:
		t, addr, _, _ := req.Span()
		var facts []fact
		for i, v := range modbus.Registers(req, resp) {
			at := addr + uint16(i)
			facts = append(facts, fact{fmt.Sprintf("%s (%s)", point.FormatAddress(t, at), point.Modicon(t, at)), strconv.Itoa(int(v))})
		}
		return facts
	case modbus.WriteSingleCoil, modbus.WriteSingleRegister, modbus.WriteMultipleCoils, modbus.WriteMultipleRegisters, modbus.MaskWriteRegister:
		t, addr, n, _ := req.Span()
		return []fact{{"written", fmt.Sprintf("%s+%d", point.FormatAddress(t, addr), n)}}
	case modbus.ReadExceptionStatus:
		return []fact{{"exception status outputs 7-0", fmt.Sprintf("%08b", resp[1])}}
	case modbus.Diagnostics:
		return explainDiagnostics(resp)
	case modbus.GetCommEventCounter:
		return []fact{{"status", busy(resp[1:])}, {"events", word(resp[3:])}}
	case modbus.GetCommEventLog:
		facts := []fact{{"status", busy(resp[2:])}, {"events", word(resp[4:])}, {"messages", word(resp[6:])}}
		for _, e := range resp[8:] {
			facts = append(facts, fact{fmt.Sprintf("event %02x", e), commEvent(e)})
		}
		return facts
	case modbus.ReportServerID:
		return explainServerID(resp[2:])
	case modbus.ReadFIFOQueue:
		facts := []fact{{"registers in the queue", word(resp[3:])}}
		for b := resp[5:]; len(b) >= 2; b = b[2:] {
			facts = append(facts, fact{"value", word(b)})
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
func explainDiagnostics(resp modbus.PDU) []fact {
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
		return []fact{{fmt.Sprintf("sub-function %d", sub), hex.EncodeToString(resp[3:])}}
	case sub == 0:
		return []fact{{name, hex.EncodeToString(resp[3:])}}
	case sub == 2:
		return []fact{{name, fmt.Sprintf("%016b", binary.BigEndian.Uint16(resp[3:]))}}
	case sub >= 11 && sub <= 18:
		return []fact{{name, word(resp[3:])}}
	}
	return []fact{{name, "done"}}
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
func explainServerID(data []byte) []fact {
	facts := []fact{{"server id", hex.EncodeToString(data)}}
	if text := printable(data); text != "" {
		facts = append(facts, fact{"as text", text})
	}
	for i, c := range data {
		if i > 0 && (c == 0xFF || c == 0x00) { // the first such byte behind the id
			state := map[byte]string{0xFF: "on", 0x00: "off"}[c]
			return append(facts, fact{"run indicator", fmt.Sprintf("%s, if it is byte %d", state, i)})
		}
	}
	return facts
}

// explainDeviceID lists the objects of function 43/14 (APP 6.21).
func explainDeviceID(resp modbus.PDU) []fact {
	var facts []fact
	for b := resp[7:]; len(b) >= 2 && len(b) >= 2+int(b[1]); b = b[2+int(b[1]):] {
		o := modbus.Object{ID: b[0], Value: b[2 : 2+int(b[1])]}
		facts = append(facts, fact{o.Name(), objectText(o)})
	}
	if resp[4] != 0 {
		facts = append(facts, fact{"more follows", fmt.Sprintf("ask again from object %02x", resp[5])})
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
