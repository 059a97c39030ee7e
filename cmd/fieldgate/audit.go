package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"fieldgate/internal/audit"
	"fieldgate/internal/point"
)

func cmdAudit(ctx context.Context, a *app, args []string) error {
	f := newFlags("audit", "COMMAND [--data DIR] [ARGUMENT...]", `
Who wrote that register? Every write that was asked for stands in a record on
disk, with who asked and what came of it. It can be read while the gateway runs.

  fieldgate audit ls --since 24h --point 'boiler.*'
  fieldgate audit verify
  fieldgate audit export --format csv writes.csv`)
	return f.group(ctx, a, []command{
		{"ls", "print the record, or what of it is asked for", cmdAuditLs},
		{"verify", "check that nothing was changed, taken out or put in", cmdAuditVerify},
		{"export", "write it to a file, as JSON lines or CSV", cmdAuditExport},
	}, args)
}

// auditRead is what all that prints records is asked: where they are, and which.
type auditRead struct {
	data, since, glob *string
}

func (r *auditRead) flags(f *flags) {
	r.data = dataFlag(f)
	r.since = f.String("since", "", "only what is no older than `TIME`: 30m, 24h, 7d, 2025-11-05 or 2025-11-05T14:30:00Z")
	r.glob = f.String("point", "*", "only points that fit `GLOB`, such as 'boiler.*'")
}

// dataFlag is the option for the data directory of whoever only reads there.
func dataFlag(f *flags) *string {
	return f.String("data", "", "the gateway's data `DIR` (default $STATE_DIRECTORY, else /var/lib/fieldgate)")
}

// each calls do for every record that is asked for.
func (r *auditRead) each(do func(audit.Record) error) error {
	since, err := parseSince(*r.since, time.Now())
	if err != nil {
		return err
	}
	glob, all := point.ParseGlob(*r.glob), *r.glob == "*"
	dir, err := existingDir(*r.data)
	if err != nil {
		return err
	}
	return audit.ReadSince(dir, since, func(rec audit.Record) error {
		if all || glob.Match(point.ID(rec.Point)) {
			return do(rec)
		}
		return nil
	})
}

// existingDir returns the data directory, which must be there.
func existingDir(dir string) (string, error) {
	dir = dataPath(dir)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return "", fmt.Errorf("there is no data directory %s; name the gateway's with --data DIR", dir)
	}
	return dir, nil
}

// parseSince reads a point in time, or a span before now.
func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, format := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(format, text); err == nil {
			return t, nil
		}
	}
	hours := text
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n < 100_000 {
			hours = strconv.Itoa(24*n) + "h"
		}
	}
	d, err := time.ParseDuration(hours)
	if err != nil || d < 0 {
		return time.Time{}, usagef("--since: %q is not a time; write one such as 30m, 24h, 7d, 2025-11-05 or 2025-11-05T14:30:00Z", text)
	}
	return now.Add(-d), nil
}

func cmdAuditLs(_ context.Context, a *app, args []string) error {
	f := newFlags("audit ls", "[--data DIR] [--since TIME] [--point GLOB] [--json]", `
Prints the record, a line each, the oldest first: time, number, event, the
point with the value wanted and the one before, who and by which way, what
came of it.

  fieldgate audit ls --since 24h --point 'boiler.*'
  fieldgate audit ls --json | jq 'select(.by == "hmi")'

With --json the lines are those of the file, hashes included.`)
	var r auditRead
	r.flags(f)
	asJSON := f.Bool("json", false, "print a JSON object a line")
	if err := noArgs(f, a, args); err != nil {
		return err
	}
	w := bufio.NewWriter(a.stdout)
	err := r.each(func(rec audit.Record) (err error) {
		if *asJSON {
			_, err = w.Write(append(rec.JSON(), '\n'))
		} else {
			_, err = fmt.Fprintln(w, auditLine(rec))
		}
		return err
	})
	return errors.Join(err, w.Flush())
}

// noArgs parses a command line that may hold options only.
func noArgs(f *flags, a *app, args []string) error {
	rest, err := f.parse(a, args)
	if err == nil && len(rest) > 0 {
		err = usagef("%s takes no arguments, only options; \"%s -h\" explains it", f.name, f.full())
	}
	return err
}

// auditLine is a record for people.
func auditLine(r audit.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %-6d %-8s", point.Timestamp(r.Time), r.Seq, plain(r.Event))
	if r.Status != "" {
		b.WriteString("  " + plain(r.Status))
	}
	if r.Point != "" {
		b.WriteString("  " + plain(r.Point))
	}
	if r.Value != "" {
		b.WriteString(" = " + plain(r.Value))
	}
	if r.Previous != "" {
		b.WriteString(" (was " + plain(r.Previous) + ")")
	}
	if r.By != "" {
		b.WriteString("  by " + plain(r.By))
	}
	if r.Via != "" && r.Via != r.By {
		b.WriteString("  via " + plain(r.Via))
	}
	if r.ID != "" {
		b.WriteString("  id " + plain(r.ID))
	}
	if r.Ms != 0 {
		fmt.Fprintf(&b, "  %d ms", r.Ms)
	}
	if r.Reason != "" {
		b.WriteString(": " + plain(r.Reason))
	}
	return b.String()
}

// plain returns text as it is, quoted if it would do something to a terminal.
func plain(text string) string {
	if strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return strconv.Quote(text)
	}
	return text
}

func cmdAuditVerify(_ context.Context, a *app, args []string) error {
	f := newFlags("audit verify", "[--data DIR] [--has HASH] [--json]", `
Reads the whole record and checks each link of its chain. Every place at which
something was changed, taken out, put in or moved is named, a line each, with
exit code 1.

  fieldgate audit verify
  fieldgate audit verify --has 5b1e0c...

A record names the hash of the one before, so the last hash stands for all of
them. Each record goes out on fieldgate/SITE/event with its hash: --has tells
whether the record that was seen there is still in the chain.`)
	data := dataFlag(f)
	has := f.String("has", "", "also look for the record with this `HASH`")
	asJSON := f.Bool("json", false, "print one JSON object")
	if err := noArgs(f, a, args); err != nil {
		return err
	}
	dir, err := existingDir(*data)
	if err != nil {
		return err
	}
	report, err := audit.Verify(dir)
	if err != nil {
		return err
	}
	if *has != "" {
		found := false
		err := audit.Read(dir, func(r audit.Record) error {
			found = found || r.Hash == *has
			return nil
		})
		switch {
		case err != nil && !errors.Is(err, audit.ErrUnreadable):
			return err
		case !found:
			report.Breaks = append(report.Breaks, audit.Break{File: "audit", What: "no record has the hash " + *has})
		}
	}
	if *asJSON {
		err = printVerifyJSON(a.stdout, report)
	} else {
		err = printVerify(a.stdout, report)
	}
	if n := len(report.Breaks) + report.More; err == nil && n > 0 {
		err = exitError{exitFailed, fmt.Errorf("the chain does not hold: %s", count(n, "break", "breaks"))}
	}
	return err
}

func printVerify(w io.Writer, r audit.Report) error {
	var b strings.Builder
	for _, at := range r.Breaks {
		fmt.Fprintln(&b, at)
	}
	if r.More > 0 {
		fmt.Fprintf(&b, "and %d more\n", r.More)
	}
	if r.Unfinished {
		b.WriteString("the last line has no end: it is being written, or was cut by a power failure\n")
	}
	if r.Records == 0 {
		b.WriteString("no records\n")
	} else {
		fmt.Fprintf(&b, "%s in %s: %d to %d, %s to %s\n", count(int(r.Records), "record", "records"), count(r.Files, "file", "files"),
			r.First, r.Last, point.Timestamp(r.From), point.Timestamp(r.To))
	}
	if r.Removed > 0 {
		fmt.Fprintf(&b, "records up to %d went with the oldest files\n", r.Removed)
	}
	if r.Records > 0 {
		fmt.Fprintf(&b, "last hash %s\n", r.Head)
	}
	if r.Records > 0 && len(r.Breaks) == 0 {
		b.WriteString("the chain holds\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func printVerifyJSON(w io.Writer, r audit.Report) error {
	type place struct {
		File string `json:"file"`
		Line int    `json:"line,omitempty"`
		Seq  uint64 `json:"seq,omitempty"`
		Text string `json:"text"`
	}
	out := struct {
		OK         bool    `json:"ok"`
		Records    uint64  `json:"records"`
		Files      int     `json:"files"`
		First      uint64  `json:"first"`
		Last       uint64  `json:"last"`
		Removed    uint64  `json:"removed"`
		Unfinished bool    `json:"unfinished"`
		Hash       string  `json:"hash"`
		Breaks     []place `json:"breaks"`
		More       int     `json:"more_breaks"`
	}{len(r.Breaks) == 0, r.Records, r.Files, r.First, r.Last, r.Removed, r.Unfinished, r.Head, []place{}, r.More}
	for _, b := range r.Breaks {
		out.Breaks = append(out.Breaks, place{b.File, b.Line, b.Seq, b.What})
	}
	return json.NewEncoder(w).Encode(out)
}

func cmdAuditExport(_ context.Context, a *app, args []string) error {
	f := newFlags("audit export", "[--data DIR] [--since TIME] [--point GLOB] [--format FORMAT] FILE", `
Writes the record to FILE, which must not exist, or to standard output (-).

  fieldgate audit export --format csv writes.csv
  fieldgate audit export - | ssh archive 'cat > plant1.jsonl'

As JSON lines it is what stands in the files, so that hashes can be checked
elsewhere; CSV begins with a line of names.`)
	var r auditRead
	r.flags(f)
	format := f.String("format", "jsonl", "`FORMAT`: jsonl or csv")
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return usagef("audit export takes one argument, the file, or - for standard output; \"%s -h\" explains it", f.full())
	}
	if *format != "jsonl" && *format != "csv" {
		return usagef("--format %s: write jsonl or csv", *format)
	}
	if rest[0] == "-" {
		return r.export(a.stdout, *format)
	}
	file, err := os.OpenFile(rest[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists and is not overwritten; remove it, or write to another file", rest[0])
	}
	if err != nil {
		return err
	}
	err = errors.Join(r.export(file, *format), file.Close())
	if err != nil && !errors.Is(err, audit.ErrUnreadable) {
		err = errors.Join(err, os.Remove(rest[0])) // half of it is worse than none
	}
	return err
}

func (r *auditRead) export(to io.Writer, format string) error {
	w := bufio.NewWriter(to)
	if format == "csv" {
		fmt.Fprint(w, "seq,timestamp,event,id,by,via,point,value,previous,status,reason,ms,prev,hash\r\n") // Flush says what went wrong
	}
	err := r.each(func(rec audit.Record) (err error) {
		if format == "csv" {
			_, err = w.WriteString(auditCSV(rec))
		} else {
			_, err = w.Write(append(rec.JSON(), '\n'))
		}
		return err
	})
	return errors.Join(err, w.Flush())
}

// auditCSV is a record as a line of RFC 4180. A text that a spreadsheet would
// take for a formula, and which may come from anyone, gets an apostrophe.
func auditCSV(r audit.Record) string {
	fields := []string{
		strconv.FormatUint(r.Seq, 10), point.Timestamp(r.Time), r.Event, r.ID, r.By, r.Via, r.Point,
		r.Value, r.Previous, r.Status, r.Reason, strconv.FormatInt(r.Ms, 10), r.Prev, r.Hash,
	}
	for i, text := range fields {
		if text != "" && strings.ContainsRune("=+-@\t\r", rune(text[0])) {
			if _, err := strconv.ParseFloat(text, 64); err != nil {
				text = "'" + text
			}
		}
		if strings.ContainsAny(text, "\",\r\n") {
			text = `"` + strings.ReplaceAll(text, `"`, `""`) + `"`
		}
		fields[i] = text
	}
	return strings.Join(fields, ",") + "\r\n"
}
