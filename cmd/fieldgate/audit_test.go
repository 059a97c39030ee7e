package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/audit"
)

// TestAudit runs the scripts of testdata/audit in a folder with the data
// directories good (four records), changed (the second one was), cut (the last
// one is gone), torn (the last line has no end) and fresh (no record yet).
func TestAudit(t *testing.T) {
	for _, path := range scripts(t, "testdata/audit/*.txt") {
		t.Run(nameOf(path), func(t *testing.T) {
			t.Chdir(t.TempDir())
			auditDirs(t)
			script{run: inProcessWith, tidy: func(output string) string { return strings.ReplaceAll(output, "\r\n", "\n") }}.check(t, path)
		})
	}
}

// What docs/audit.md shows is what the commands print.
func TestAuditDocs(t *testing.T) {
	script, err := os.ReadFile("testdata/audit/audit.txt")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := 0
	for _, block := range strings.Split(string(page), "```\n") {
		if !strings.HasPrefix(block, "$ ") {
			continue
		}
		shown++
		if !strings.Contains(string(script), strings.ReplaceAll(block, "$ fieldgate ", "$ ")) {
			t.Errorf("docs/audit.md shows what no script prints:\n%s", block)
		}
	}
	if shown < 4 {
		t.Errorf("%d blocks found in docs/audit.md", shown)
	}
}

// auditDirs makes the data directories of the scripts.
func auditDirs(t *testing.T) {
	t.Helper()
	at := time.Date(2025, 11, 5, 14, 30, 15, 123e6, time.UTC)
	records := []audit.Record{
		{Time: at, Event: audit.Accepted, ID: "a1", By: "hmi", Via: "local", Point: "boiler.setpoint", Value: "75.5", Previous: "70"},
		{Time: at.Add(12 * time.Millisecond), Event: audit.Result, ID: "a1", By: "hmi", Via: "local", Point: "boiler.setpoint", Value: "75.5", Previous: "70", Status: "verified", Ms: 12},
		{Time: at.Add(time.Hour), Event: audit.Refused, ID: "=1+1", By: "cloud", Via: "cloud", Point: "pump.run", Value: "on", Status: "rejected", Reason: `the message is retained: it may be old, or "meant" for nobody`},
		{Time: at.AddDate(0, 0, 1), Event: "broadcast", Via: "cloud", Reason: "stop\x1b[2J all"},
	}
	if err := os.Mkdir("fresh", 0o750); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"good", "changed", "cut", "torn"} {
		l, err := audit.Open(dir, audit.Options{}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if _, err := l.Append(context.Background(), r); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "audit", "audit-000001.jsonl")
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		switch dir {
		case "changed":
			text = bytes.Replace(text, []byte(`"id":"a1","by":"hmi"`), []byte(`"id":"a1","by":"you"`), 1)
		case "cut":
			text = text[:bytes.LastIndexByte(text[:len(text)-1], '\n')+1]
		case "torn":
			text = append(text, `{"seq":5,"timestamp":"2025`...)
		}
		if err := os.WriteFile(file, text, 0o640); err != nil {
			t.Fatal(err)
		}
	}
}

func TestParseSince(t *testing.T) {
	now := time.Date(2025, 11, 5, 14, 30, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"":                     {},
		"30m":                  now.Add(-30 * time.Minute),
		"24h":                  now.AddDate(0, 0, -1),
		"7d":                   now.AddDate(0, 0, -7),
		"0s":                   now,
		"2025-11-05":           now.Truncate(24 * time.Hour),
		"2025-11-05T14:30:00Z": now,
	} {
		if got, err := parseSince(in, now); err != nil || !got.Equal(want) {
			t.Errorf("parseSince(%q) = %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"yesterday", "-1h", "d", "1.5d", "999999999999d", "7", "2025-13-01"} {
		if got, err := parseSince(in, now); err == nil {
			t.Errorf("parseSince(%q) = %v", in, got)
		}
	}
}
