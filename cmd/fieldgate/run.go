package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/internal/config"
	"fieldgate/internal/gateway"
	"fieldgate/internal/point"
	"fieldgate/internal/publish"
	"fieldgate/internal/systemd"
)

func cmdRun(ctx context.Context, a *app, args []string) error {
	f := newFlags("run", "[-c FILE] [--data DIR] [--log-level LEVEL]", `
Runs the gateway until it is told to stop (SIGTERM or Ctrl-C).

  fieldgate -c plant.yaml run --data /tmp/plant

It polls at once, also when no broker can be reached. Errors in the
configuration are printed, one a line, and end it with exit code 2.

SIGHUP has it read the configuration again and change over to it; what has
not changed there is not touched. One that is no good changes nothing.`)
	f.StringVar(&a.config, "c", a.config, "configuration `FILE`")
	data := f.String("data", "", "`DIR` for what must survive a restart (default $STATE_DIRECTORY, else /var/lib/fieldgate)")
	level := f.String("log-level", "", "least `LEVEL` that is logged: debug, info, warn or error; overrides the configuration's log.level")
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return usagef("run takes no arguments, only options; \"fieldgate run -h\" explains it")
	}
	hangups, terminal := catchHangups()
	debug.SetTraceback("crash") // a panic ends by a signal: exit code 2 is a bad configuration
	settleLater := quickStart()
	cfg, topics, err := loadConfig(a)
	if err != nil {
		return err
	}
	if *level != "" {
		if err := cfg.Log.Level.UnmarshalText([]byte(*level)); err != nil {
			return usagef("--log-level %s: write debug, info, warn or error", *level)
		}
	}
	least := new(slog.LevelVar)
	least.Set(cfg.Log.Level)
	log := newLog(a.stderr, cfg.Log.Format, least)
	dir, err := dataDir(*data)
	if err != nil {
		return err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	source, err := gateway.NewSource(a.config, dir)
	if err != nil {
		log.Error("settings", "err", err)
	}
	if cfg.Settings != nil {
		if cfg, topics, err = source.Load(); err != nil {
			return badConfig(err) // the file has changed since
		}
		if *level == "" {
			least.Set(cfg.Log.Level)
		}
	}
	for _, w := range cfg.Warnings {
		log.Warn("configuration", "warning", w.Error())
	}
	g, err := gateway.Open(cfg, topics, dir, programVersion(), log)
	if err != nil {
		return err
	}
	g.Follow(source)
	notify := systemd.New(log)
	log.Info("started", "version", programVersion(), "site", cfg.Site.ID,
		"buses", len(cfg.Buses), "devices", len(cfg.Devices), "uplinks", len(cfg.Uplinks))
	reload := reloader{
		source: source, gateway: g, notify: notify, log: log, level: least, fixed: *level != "", format: cfg.Log.Format,
		hangups: hangups, terminal: terminal,
	}
	cfg, topics = nil, nil // what only the start needs
	ctx, stop := context.WithCancel(ctx)
	var settling sync.WaitGroup
	err = g.Run(ctx, func() {
		notify.Ready("running")
		settling.Go(func() { notify.Watch(ctx, g.Healthy, g.Summary) }) // ends with ctx
		settling.Go(func() { settleLater(ctx) })                        // ends with ctx
		settling.Go(func() { reload.run(ctx, stop) })                   // ends with ctx
	})
	stop()
	settling.Wait()
	notify.Stopping()
	log.Info("stopped")
	return err
}

// loadConfig reads the configuration named by -c. Its faults go to standard
// error, one a line, as they are: FILE:LINE:COL: path: what; what to write.
func loadConfig(a *app) (*config.Config, []publish.Topic, error) {
	cfg, topics, err := gateway.Load(a.config)
	if err == nil {
		return cfg, topics, nil
	}
	var faults config.Faults
	if errors.As(err, &faults) {
		fmt.Fprintln(a.stderr, faults.Error())
		return nil, nil, exitError{code: exitUsage}
	}
	return nil, nil, badConfig(err)
}

// dataDir returns the folder for what must survive a restart, made if need be. A
// folder that cannot be written because of the disk will do; one that this user
// may not write is an error.
func dataDir(dir string) (string, error) {
	dir = dataPath(dir)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", fmt.Errorf("data directory: %w; name another with --data DIR", err)
	}
	probe, err := os.CreateTemp(dir, ".probe*")
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EIO) {
		// A disk that fails is no reason not to poll, and a restart would not
		// mend it: each part says what it cannot keep, and raises its alarm.
		return filepath.Clean(dir), nil
	}
	if err != nil {
		return "", fmt.Errorf("data directory is not writable: %w; name another with --data DIR", err)
	}
	err = probe.Close()
	return filepath.Clean(dir), errors.Join(err, os.Remove(probe.Name()))
}

// lockDir makes the data directory dir ours until the folder that it returns is
// closed: two gateways in it would be one client of each broker twice, and share
// their clock and queues. One that is just ending is waited for, 2 s at most.
// The lock is on the folder itself and leaves no file behind.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return f, nil // a file system without locks keeps no gateway from running
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("data directory %s: another gateway runs in it; stop that, or name another with --data DIR", dir), f.Close())
		}
	}
}

// dataPath returns the data directory that an option names, or its default.
func dataPath(dir string) string {
	if dir == "" {
		// systemd names several with colons between them; ours is the first.
		dir, _, _ = strings.Cut(os.Getenv("STATE_DIRECTORY"), ":")
	}
	if dir == "" {
		dir = "/var/lib/fieldgate"
	}
	return dir
}

func newLog(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: logAttr}
	switch {
	case format == "json":
		return slog.New(slog.NewJSONHandler(w, opts))
	case format == "journal", format == "auto" && systemd.UnderJournal():
		return slog.New(systemd.NewJournalHandler(w, level))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// logAttr writes times as all times of ours are written, and what JSON would
// show as a bare number as the text log shows it: 1.5s rather than 1500000000,
// holding rather than 4.
func logAttr(_ []string, a slog.Attr) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindTime:
		a.Value = slog.StringValue(point.Timestamp(a.Value.Time()))
	case slog.KindDuration:
		a.Value = slog.StringValue(a.Value.Duration().String())
	case slog.KindAny:
		if s, ok := a.Value.Any().(fmt.Stringer); ok && a.Key != slog.LevelKey {
			a.Value = slog.StringValue(s.String())
		}
	}
	return a
}
