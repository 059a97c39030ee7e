package systemd

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
)

// UnderJournal reports whether standard error goes to the journal
// (systemd.exec(5), $JOURNAL_STREAM).
func UnderJournal() bool { return os.Getenv("JOURNAL_STREAM") != "" }

// JournalHandler writes one line a record with the priority prefix that the
// journal reads (sd-daemon(3)) and without a time, which the journal has.
type JournalHandler struct {
	mu   *sync.Mutex
	out  io.Writer
	buf  *bytes.Buffer
	text slog.Handler
}

// NewJournalHandler returns a handler that writes to w what is at least level.
func NewJournalHandler(w io.Writer, level slog.Leveler) *JournalHandler {
	buf := new(bytes.Buffer)
	text := slog.NewTextHandler(buf, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
				return slog.Attr{}
			}
			return a
		},
	})
	return &JournalHandler{mu: new(sync.Mutex), out: w, buf: buf, text: text}
}

// Enabled implements slog.Handler.
func (h *JournalHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.text.Enabled(ctx, l)
}

// Handle implements slog.Handler.
func (h *JournalHandler) Handle(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf.Reset()
	h.buf.WriteByte('<')
	h.buf.WriteString(strconv.Itoa(priority(r.Level)))
	h.buf.WriteByte('>')
	if err := h.text.Handle(ctx, r); err != nil {
		return err
	}
	_, err := h.out.Write(h.buf.Bytes())
	return err
}

// WithAttrs implements slog.Handler.
func (h *JournalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.text = h.text.WithAttrs(attrs)
	return &c
}

// WithGroup implements slog.Handler.
func (h *JournalHandler) WithGroup(name string) slog.Handler {
	c := *h
	c.text = h.text.WithGroup(name)
	return &c
}

// priority maps a level to a syslog priority.
func priority(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}
