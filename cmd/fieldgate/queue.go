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
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"golang.org/x/term"

	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
	"fieldgate/internal/queue"
)

func cmdQueue(ctx context.Context, a *app, args []string) error {
	f := newFlags("queue", "COMMAND [--data DIR] [ARGUMENT...]", `
Looks at the messages that wait for an uplink in the data directory of a gateway
that is stopped. (While it runs, …/stats says what waits.)

  fieldgate queue ls
  fieldgate queue export cloud --topic 'plant/#' > waiting.jsonl
  fieldgate queue purge cloud`)
	return f.group(ctx, a, []command{
		{"ls", "what waits for each uplink", cmdQueueLs},
		{"export", "print what waits for an uplink, as JSON lines", cmdQueueExport},
		{"purge", "delete what waits for an uplink", cmdQueuePurge},
	}, args)
}

// queueError says what is wrong with the queue of an uplink in dir.
func queueError(dir, uplink string, err error) error {
	switch {
	case errors.Is(err, queue.ErrLocked):
		return exitError{exitNoGate, fmt.Errorf("%w; the gateway runs: stop it first, its topic …/stats says what waits meanwhile", err)}
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("nothing waits for an uplink %q in %s; \"fieldgate queue ls\" shows for which", uplink, dir)
	case errors.Is(err, queue.ErrCorrupt):
		return fmt.Errorf("%w; at its start the gateway puts it aside and goes on with an empty one", err)
	}
	return err
}

// waiting is a line of "queue ls".
type waiting struct {
	Uplink   string `json:"uplink"`
	Messages int    `json:"messages"`
	Bytes    int64  `json:"bytes"`
	Oldest   string `json:"oldest,omitempty"`
	Newest   string `json:"newest,omitempty"`
	Size     int64  `json:"file_bytes"`
	Damaged  int    `json:"damaged,omitempty"`
	Error    string `json:"error,omitempty"`
	File     string `json:"file"`
}

func cmdQueueLs(_ context.Context, a *app, args []string) error {
	f := newFlags("queue ls", "[--data DIR] [--json]", `
Lists what waits for each uplink: messages, the bytes that they count against
max_bytes, when the first and the last of them were taken, and the size of the
file, which may be larger than what is in it.

  fieldgate queue ls --data /var/lib/fieldgate`)
	data := dataFlag(f)
	asJSON := f.Bool("json", false, "print a JSON object for each uplink, one a line")
	dir, _, err := queueArgs(f, a, args, data, 0)
	if err != nil {
		return err
	}
	files, err := queue.Files(dir)
	if err != nil {
		return queueError(dir, "", err)
	}
	list := make([]waiting, len(files))
	for i, s := range files {
		list[i] = waiting{Uplink: s.Uplink, Messages: s.Messages, Bytes: s.Bytes, Size: s.Size, Damaged: s.Damaged, File: s.Path}
		if s.Messages > 0 {
			list[i].Oldest, list[i].Newest = point.Timestamp(s.Oldest), point.Timestamp(s.Newest)
		}
		if s.Fault != nil {
			list[i].Error = s.Fault.Error()
		}
	}
	if *asJSON {
		for _, w := range list {
			if err := printJSON(a.stdout, w); err != nil {
				return err
			}
		}
		return nil
	}
	if len(list) == 0 {
		_, err := fmt.Fprintf(a.stdout, "nothing waits for any uplink in %s\n", dir)
		return err
	}
	return printWaiting(a.stdout, list)
}

func printWaiting(w io.Writer, list []waiting) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "UPLINK\tMESSAGES\tBYTES\tOLDEST\tNEWEST\tFILE")
	for _, q := range list {
		if q.Error != "" {
			fmt.Fprintf(t, "%s\t-\t-\t-\t-\t%d, %s\n", q.Uplink, q.Size, q.Error)
			continue
		}
		oldest, newest := q.Oldest, q.Newest
		if q.Messages == 0 {
			oldest, newest = "-", "-"
		}
		note := ""
		if q.Damaged > 0 {
			note = fmt.Sprintf(", and %s that cannot be read", count(q.Damaged, "message", "messages"))
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%s\t%d%s\n", q.Uplink, q.Messages, q.Bytes, oldest, newest, q.Size, note)
	}
	return t.Flush()
}

// exported is a line of "queue export".
type exported struct {
	Seq     uint64  `json:"seq"`
	Time    string  `json:"time"`
	Topic   string  `json:"topic"`
	Payload *string `json:"payload,omitempty"`
	Base64  []byte  `json:"payload_base64,omitempty"`
	QoS     uint8   `json:"qos"`
	Retain  bool    `json:"retain"`
}

func cmdQueueExport(ctx context.Context, a *app, args []string) error {
	f := newFlags("queue export", "UPLINK [--data DIR] [--topic FILTER]", `
Prints what waits for an uplink, oldest first, a JSON object a line. It stays
where it is. A payload that is not UTF-8 is "payload_base64".

  fieldgate queue export cloud > waiting.jsonl
  fieldgate queue export cloud --topic 'plant/boiler/+'

"time" is when the message was taken, "seq" its place in the queue.`)
	data := dataFlag(f)
	topic := f.String("topic", "#", "only topics that match `FILTER`, such as 'plant/#'")
	dir, uplink, err := queueArgs(f, a, args, data, 1)
	if err != nil {
		return err
	}
	if err := mqtt.ValidFilter(*topic); err != nil {
		return usagef("--topic: %w", err)
	}
	filter, all := mqtt.Filter(*topic), *topic == "#"
	out := bufio.NewWriter(a.stdout)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	damaged, err := queue.Export(dir, uplink, func(e queue.Entry) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !all && !filter.Match(e.Topic) {
			return nil
		}
		line := exported{Seq: e.Seq, Time: point.Timestamp(e.Time), Topic: e.Topic, QoS: e.QoS, Retain: e.Retain}
		if utf8.Valid(e.Payload) {
			text := string(e.Payload)
			line.Payload = &text
		} else {
			line.Base64 = e.Payload
		}
		return enc.Encode(line)
	})
	if err := errors.Join(queueError(dir, uplink, err), out.Flush()); err != nil {
		return err
	}
	if damaged > 0 {
		return fmt.Errorf("%s cannot be read", count(damaged, "message", "messages"))
	}
	return nil
}

func cmdQueuePurge(ctx context.Context, a *app, args []string) error {
	f := newFlags("queue purge", "UPLINK [--data DIR] [--yes]", `
Deletes what waits for an uplink, and nothing else. It asks first.

  fieldgate queue purge cloud
  fieldgate queue purge cloud --yes`)
	data := dataFlag(f)
	yes := f.Bool("yes", false, "do not ask")
	dir, uplink, err := queueArgs(f, a, args, data, 1)
	if err != nil {
		return err
	}
	messages := 0
	damaged, err := queue.Export(dir, uplink, func(queue.Entry) error {
		messages++
		return ctx.Err()
	})
	if err != nil && !errors.Is(err, queue.ErrCorrupt) {
		return queueError(dir, uplink, err)
	}
	what := count(messages+damaged, "message", "messages")
	if err != nil {
		what = "a damaged file"
	}
	if !*yes {
		if sure, err := confirm(ctx, a, fmt.Sprintf("Delete %s for %s? [y/N] ", what, uplink)); err != nil || !sure {
			return errors.Join(err, errors.New("nothing is deleted; --yes deletes without asking"))
		}
	}
	if err := queue.Purge(dir, uplink); err != nil {
		return queueError(dir, uplink, err)
	}
	_, err = fmt.Fprintf(a.stdout, "deleted %s for %s\n", what, uplink)
	return err
}

// confirm asks a question on standard error and reports whether the next line
// of standard input says yes.
func confirm(ctx context.Context, a *app, question string) (bool, error) {
	fmt.Fprint(a.stderr, question)
	if tty, ok := a.stdin.(*os.File); !ok || !term.IsTerminal(int(tty.Fd())) {
		fmt.Fprintln(a.stderr) // nobody's Return ends the line
	}
	answer := make(chan string, 1)
	go func() { // ends with the line, or with the process
		line, _ := bufio.NewReader(a.stdin).ReadString('\n') // nothing is no yes
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case line := <-answer:
		return line == "y" || line == "yes", nil
	case <-ctx.Done():
		return false, errors.New("interrupted")
	}
}

// queueArgs reads the command line: the data directory, and as many arguments
// (0, or 1: the uplink) as the command takes.
func queueArgs(f *flags, a *app, args []string, data *string, n int) (dir, uplink string, err error) {
	rest, err := f.parse(a, args)
	if err != nil {
		return "", "", err
	}
	switch {
	case n == 0 && len(rest) > 0:
		return "", "", usagef("%s takes no arguments, only options; \"fieldgate %s -h\" explains it", f.name, f.name)
	case n == 1 && len(rest) != 1:
		return "", "", usagef("%s takes the name of one uplink; \"fieldgate %s -h\" explains it", f.name, f.name)
	case n == 1:
		uplink = rest[0]
	}
	dir, err = existingDir(*data)
	return dir, uplink, err
}
