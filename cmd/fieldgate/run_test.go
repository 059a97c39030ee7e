package main

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/modbus"
)

// Text and JSON say the same: times in UTC, durations with their unit, words
// rather than their numbers.
func TestLogFormats(t *testing.T) {
	record := slog.NewRecord(time.Date(2025, 11, 5, 15, 30, 15, 120e6, time.FixedZone("CET", 3600)), slog.LevelWarn, "device offline", 0)
	record.Add("unit", modbus.UnitID(7), "table", modbus.HoldingRegisters, "after", 1500*time.Millisecond, "err", errors.New("no response"))
	for format, want := range map[string]string{
		"text": `time=2025-11-05T14:30:15.120Z level=WARN msg="device offline" unit=7 table=holding after=1.5s err="no response"`,
		"json": `{"time":"2025-11-05T14:30:15.120Z","level":"WARN","msg":"device offline","unit":7,"table":"holding","after":"1.5s","err":"no response"}`,
	} {
		var out strings.Builder
		if err := newLog(&out, format, slog.LevelInfo).Handler().Handle(t.Context(), record); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); !strings.HasPrefix(got, want) {
			t.Errorf("%s is\n%s\nwant\n%s", format, got, want)
		}
	}
}
