// Package group runs a set of named parts together: started in order, stopped
// in the reverse order, each with the context as its only way to stop.
//
// The types to know are Group, and Part, which is a name and a function; what a
// part does with its world (retry for ever, log once) is its own affair. Which
// parts run may change: those that stay notice nothing.
package group

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// Run is the body of a part. It returns soon after ctx ends, nil when it
// stopped because of that. An error before that means the process had better
// start afresh.
type Run func(ctx context.Context) error

// Part is what a Group runs. Make it with NewPart; it runs once.
type Part struct {
	name   string
	run    Run
	cancel context.CancelFunc // nil: not started
	done   chan struct{}      // closed when the part has returned
}

// NewPart returns a part that does nothing yet.
func NewPart(name string, run Run) *Part { return &Part{name: name, run: run} }

// Name returns the part's name.
func (p *Part) Name() string { return p.name }

// Group runs parts. Its zero value is not usable; see New. Start and Stop are
// for one goroutine at a time, the assembly's.
type Group struct {
	log *slog.Logger

	parts  []*Part // that run, in the order in which they are to be stopped, last first
	failed chan error
	once   sync.Once
}

// New returns an empty group.
func New(log *slog.Logger) *Group {
	return &Group{log: log, failed: make(chan error, 1)}
}

// Start starts those of parts that do not run, in their order, each in its own
// goroutine until Stop. All that run must be among parts: the stop goes through
// them the other way round.
func (g *Group) Start(parts ...*Part) {
	g.parts = slices.Clone(parts)
	for _, p := range parts {
		if p.cancel == nil {
			g.start(p)
		}
	}
}

func (g *Group) start(p *Part) {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel, p.done = cancel, make(chan struct{})
	go func() { // ends when run returns
		defer close(p.done)
		if err := guard(ctx, p.run); err != nil {
			g.fail(fmt.Errorf("%s: %w", p.name, err))
		} else if ctx.Err() == nil {
			g.fail(fmt.Errorf("%s: ended by itself", p.name))
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

// Stop stops every part that is not among those to keep, the last first, each
// one gone before the next is told. When limit has passed, or ctx has ended, the
// parts left get only a moment each, and those that do not use it are left
// behind: the error names them.
func (g *Group) Stop(ctx context.Context, limit time.Duration, keep ...*Part) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var errs []error
	var kept []*Part
	for _, p := range slices.Backward(g.parts) {
		if slices.Contains(keep, p) {
			kept = append(kept, p)
			continue
		}
		p.cancel()
		if p.wait(ctx) {
			g.log.Debug("stopped", "part", p.name)
		} else {
			errs = append(errs, fmt.Errorf("%s did not stop in time", p.name))
		}
	}
	slices.Reverse(kept)
	g.parts = kept
	return errors.Join(errs...)
}

// wait waits until the part has ended, or ctx and then the grace.
func (p *Part) wait(ctx context.Context) bool {
	select {
	case <-p.done:
		return true
	case <-ctx.Done():
	}
	last := time.NewTimer(grace)
	defer last.Stop()
	select {
	case <-p.done:
		return true
	case <-last.C:
		return false
	}
}
