// Package group runs a set of named parts together: started in order, stopped
// in the reverse order, each with the context as its only way to stop.
//
// The type to know is Group. A part is a name and a function; what a part does
// with its world (retry for ever, log once) is its own affair.
package group

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"
)

// Run is the body of a part. It returns soon after ctx ends, nil when it
// stopped because of that. An error before that means the process had better
// start afresh.
type Run func(ctx context.Context) error

// Group runs parts. Its zero value is not usable; see New. Start and Stop are
// for one goroutine, the assembly's.
type Group struct {
	log *slog.Logger

	parts  []*part // in the order they were started
	failed chan error
	once   sync.Once
}

type part struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{} // closed when the part has returned
}

// New returns an empty group.
func New(log *slog.Logger) *Group {
	return &Group{log: log, failed: make(chan error, 1)}
}

// Start runs a part in its own goroutine until Stop. The order of the calls is
// the order of the start; the stop goes the other way round.
func (g *Group) Start(name string, run Run) {
	ctx, cancel := context.WithCancel(context.Background())
	p := &part{name: name, cancel: cancel, done: make(chan struct{})}
	g.parts = append(g.parts, p)
	go func() { // ends when run returns
		defer close(p.done)
		if err := guard(ctx, run); err != nil {
			g.fail(fmt.Errorf("%s: %w", name, err))
		} else if ctx.Err() == nil {
			g.fail(fmt.Errorf("%s: ended by itself", name))
		}
	}()
}

// guard turns a panic of a part into an error with its stack, so that the
// other parts are still stopped in order: what is queued reaches the disk.
func guard(ctx context.Context, run Run) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return run(ctx)
}

func (g *Group) fail(err error) {
	g.once.Do(func() { g.failed <- err })
}

// Failed delivers the first error of a part, at most one.
func (g *Group) Failed() <-chan error { return g.failed }

// grace is what a part still gets when those before it used up the time.
const grace = 200 * time.Millisecond

// Stop stops every part, the last started first, each one gone before the next
// is told. When limit has passed, the parts left get only a moment each, and
// those that do not use it are left behind: the error names them.
func (g *Group) Stop(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	var errs []error
	for i := len(g.parts) - 1; i >= 0; i-- {
		p := g.parts[i]
		p.cancel()
		wait := time.NewTimer(max(time.Until(deadline), grace))
		select {
		case <-p.done:
			g.log.Debug("stopped", "part", p.name)
		case <-wait.C:
			errs = append(errs, fmt.Errorf("%s did not stop in time", p.name))
		}
		wait.Stop()
	}
	g.parts = nil
	return errors.Join(errs...)
}
