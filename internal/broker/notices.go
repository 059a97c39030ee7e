package broker

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// notices logs what clients do, but never more than a few lines a minute: a
// client in a loop must not fill the disk. What is left out is counted and
// told with the next line. Its zero value is ready.
type notices struct {
	mu     sync.Mutex
	tokens float64
	last   time.Time
	silent int
}

const (
	noticeBurst = 20
	noticeEvery = 3 * time.Second
)

func (n *notices) log(log *slog.Logger, level slog.Level, msg string, args ...any) {
	now := time.Now()
	n.mu.Lock()
	if n.last.IsZero() {
		n.tokens = noticeBurst
	} else {
		n.tokens = min(noticeBurst, n.tokens+now.Sub(n.last).Seconds()/noticeEvery.Seconds())
	}
	n.last = now
	if n.tokens < 1 {
		n.silent++
		n.mu.Unlock()
		return
	}
	n.tokens--
	silent := n.silent
	n.silent = 0
	n.mu.Unlock()
	if silent > 0 {
		args = append(args, "notices left out", silent)
	}
	log.Log(context.Background(), level, msg, args...)
}

// errorsOnly passes on what the library calls an error; the rest of what it
// says is one line per packet or less than we say ourselves.
type errorsOnly struct{ slog.Handler }

func (h errorsOnly) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelError && h.Handler.Enabled(ctx, level)
}

func (h errorsOnly) WithAttrs(attrs []slog.Attr) slog.Handler {
	return errorsOnly{h.Handler.WithAttrs(attrs)}
}

func (h errorsOnly) WithGroup(name string) slog.Handler { return errorsOnly{h.Handler.WithGroup(name)} }
