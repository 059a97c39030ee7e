package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"fieldgate/internal/config"
	"fieldgate/internal/gateway"
	"fieldgate/internal/systemd"
)

// reloader puts the configuration file to work anew whenever the gateway is sent
// SIGHUP.
type reloader struct {
	source   *gateway.Source
	gateway  *gateway.Gateway
	notify   *systemd.Notifier
	log      *slog.Logger
	level    *slog.LevelVar
	fixed    bool // the command line has set the level
	format   string
	hangups  <-chan os.Signal
	terminal bool // we have been started at one
}

// catchHangups takes SIGHUP over from main, which ends a command with it.
func catchHangups() (hangups <-chan os.Signal, terminal bool) {
	terminal = !signal.Ignored(syscall.SIGHUP) && haveTerminal() // not under nohup
	c := make(chan os.Signal, 1)
	signal.Reset(syscall.SIGHUP)
	signal.Notify(c, syscall.SIGHUP)
	return c, terminal
}

// haveTerminal reports whether this process has a terminal that controls it.
func haveTerminal() bool {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

// run reloads until ctx ends. A terminal that is closed is no wish for a reload:
// then stop is called.
func (r *reloader) run(ctx context.Context, stop func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.hangups:
		}
		if r.terminal && !haveTerminal() {
			stop()
			return
		}
		r.notify.Reloading()
		r.reload(ctx)
		r.notify.Ready(r.gateway.Summary())
	}
}

// reload reads the file and puts it to work, or says what is wrong with it and
// changes nothing.
func (r *reloader) reload(ctx context.Context) {
	defer r.source.Hold()()
	cfg, topics, err := r.source.Load()
	var faults config.Faults
	if errors.As(err, &faults) {
		for _, f := range faults {
			r.log.Error("configuration", "fault", f.Error())
		}
		r.log.Error("not reloaded, the configuration before stays at work", "faults", len(faults))
		return
	}
	if err != nil {
		r.log.Error("not reloaded, the configuration before stays at work", "err", err)
		return
	}
	changes, err := r.gateway.Reload(ctx, cfg, topics)
	if err != nil {
		r.log.Error("not reloaded, the configuration before stays at work", "err", err)
		return
	}
	for _, w := range cfg.Warnings {
		r.log.Warn("configuration", "warning", w.Error())
	}
	if !r.fixed {
		r.level.Set(cfg.Log.Level)
	}
	if cfg.Log.Format != r.format {
		r.log.Warn("log.format is another one after the next start")
	}
	r.log.Info("reloaded", "changes", changes.String())
	settle()
}
