package probe

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

func TestDecodings(t *testing.T) {
	for _, tt := range []struct {
		name string
		regs []uint16
		want []string // among others
		not  []string // beginnings
	}{
		{"a float32", []uint16{0x41CB, 0x3333},
			[]string{"float32 ABCD 25.4", "uint16 ABCD 16843", "int8 low -53", "uint32 CDAB 858997195", "bytes(2) ABCD 41cb3333"},
			[]string{"bcd", "string", "float64", "datetime(EPOCH)"}},
		{"a float32 with its words swapped", []uint16{0x3333, 0x41CB}, []string{"float32 CDAB 25.4"}, nil},
		{"text", []uint16{0x4669, 0x656C, 0x6467, 0x6174, 0x6500}, []string{"string(5) ABCD Fieldgate", "string(5) BADC iFlegdta", "bcd16 ABCD 4669"}, nil},
		{"a time", []uint16{0x690B, 0x5FC7}, []string{"datetime(EPOCH) ABCD 2025-11-05T14:31:35Z"}, nil},
		{"a long time", []uint16{2025, 11, 5, 14, 30, 15}, []string{"datetime(DT6) ABCD 2025-11-05T14:30:15Z"}, nil},
		{"NaN", []uint16{0x7FC0, 0}, []string{"uint16 ABCD 32704"}, []string{"float32 ABCD", "bcd16"}},
		{"all the same", []uint16{0, 0}, []string{"uint32 ABCD 0"}, []string{"uint32 DCBA", "uint32 CDAB", "uint32 BADC", "datetime", "string"}},
		{"one register", []uint16{0x1234}, []string{"bcd16 ABCD 1234", "uint8 ABCD 18", "uint8 low 52"}, []string{"uint32", "datetime"}},
		{"none", nil, nil, []string{""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, r := range Decodings(modbus.InputRegisters, 7, tt.regs) {
				order := r.Point.Order.String()
				if r.Point.LowByte {
					order = "low"
				}
				got = append(got, fmt.Sprintf("%s %s %s", r.Point.TypeName(), order, r.Value))
				if r.Point.Table != modbus.InputRegisters || r.Point.Address != 7 || r.Reason != "" {
					t.Errorf("%+v", r)
				}
			}
			for _, want := range tt.want {
				if !slices.Contains(got, want) {
					t.Errorf("no %q", want)
				}
			}
			for _, not := range tt.not {
				if i := slices.IndexFunc(got, func(s string) bool { return strings.HasPrefix(s, not) }); i >= 0 {
					t.Errorf("unlikely: %q", got[i])
				}
			}
			if t.Failed() {
				t.Log("got\n" + strings.Join(got, "\n"))
			}
		})
	}
}

// FuzzDecodings: every decoding is a point that a configuration can have, and
// gives that value.
func FuzzDecodings(f *testing.F) {
	f.Add([]byte{0x41, 0xCB, 0x33, 0x33})
	f.Add([]byte("Fieldgate gateway"))
	f.Add([]byte{7, 0xE9, 0, 11, 0, 5, 0, 14, 0, 30, 0, 15, 1, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		var regs []uint16
		for ; len(b) >= 2 && len(regs) < modbus.MaxReadRegisters; b = b[2:] {
			regs = append(regs, uint16(b[0])<<8|uint16(b[1]))
		}
		for _, r := range Decodings(modbus.HoldingRegisters, 0, regs) {
			if err := r.Point.Validate(); err != nil {
				t.Errorf("%s: %v", r.Point.TypeName(), err)
			}
			v, err := r.Point.Decode(r.Raw)
			if err != nil || v != r.Value || v.IsZero() {
				t.Errorf("%s %s: %v, %v, then %v", r.Point.TypeName(), r.Point.Order, r.Value, err, v)
			}
			if typ, length, layout, err := point.ParseType(r.Point.TypeName()); err != nil || typ != r.Point.Type || length != r.Point.Length || layout != r.Point.Layout {
				t.Errorf("%s is no type: %v", r.Point.TypeName(), err)
			}
		}
	})
}
