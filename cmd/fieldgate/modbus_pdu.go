package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"fieldgate/internal/modbus"
	"fieldgate/internal/probe"
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
	url, rest, err := f.parseURL(a, args)
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
	resp, err := w.unit.Ask(ctx, req)
	if err != nil && resp == nil {
		return w.failed(err)
	}
	facts := probe.Explain(req, resp)
	if *asJSON {
		if err := json.NewEncoder(a.stdout).Encode(struct {
			Request  string       `json:"request"`
			Response string       `json:"response"`
			Facts    []probe.Fact `json:"facts"`
		}{hex.EncodeToString(req), hex.EncodeToString(resp), facts}); err != nil {
			return err
		}
		return w.failed(err)
	}
	fmt.Fprintf(a.stdout, "> % x  %v\n", req, modbus.PDU(req).Function())
	if len(resp) > 0 {
		fmt.Fprintf(a.stdout, "< % x\n", []byte(resp))
	}
	for _, fact := range facts {
		fmt.Fprintf(a.stdout, "%s  %s\n", fact.Name, fact.Text)
	}
	return w.failed(err)
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
