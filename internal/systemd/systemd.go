// Package systemd tells the service manager how the gateway is doing
// (sd_notify): ready, reloading, a status line, alive, stopping. Outside systemd
// every call does nothing.
package systemd

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// Notifier speaks to the service manager. Its zero value is not usable; see New.
type Notifier struct {
	log *slog.Logger
}

// New returns a Notifier for the socket that systemd named in the environment.
func New(log *slog.Logger) *Notifier { return &Notifier{log: log} }

// Ready says that start-up is complete: configuration applied, listeners open.
// It does not wait for an uplink, which may be down for days.
func (n *Notifier) Ready(status string) { n.send(daemon.SdNotifyReady, "STATUS="+oneLine(status)) }

// Reloading says that the configuration is being read anew. Ready must follow,
// also when it is no good.
func (n *Notifier) Reloading() {
	// Only clock_gettime(CLOCK_MONOTONIC) is what systemd holds it against.
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		n.log.Debug("notify systemd", "err", err)
		return
	}
	n.send(daemon.SdNotifyReloading, "MONOTONIC_USEC="+strconv.FormatInt(now.Nano()/1000, 10))
}

// Status replaces the line that "systemctl status" shows.
func (n *Notifier) Status(status string) { n.send("STATUS=" + oneLine(status)) }

// Watch feeds the service manager's watchdog until ctx ends, three times in the
// time that the unit allows (WatchdogSec), as long as healthy returns nil. The
// error of healthy becomes the status line and is logged once: the manager ends
// and starts us when it has not been fed for that long. status is the status line
// meanwhile. Both are called by Watch alone; one that does not return is a reason
// not to feed, too. Without a watchdog Watch returns at once.
func (n *Notifier) Watch(ctx context.Context, healthy func() error, status func() string) {
	allowed, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		n.log.Warn("no watchdog", "err", err)
	}
	if err != nil || allowed <= 0 {
		return
	}
	tick := time.NewTicker(allowed / 3)
	defer tick.Stop()
	stuck := false
	for {
		if err := healthy(); err != nil {
			if !stuck {
				n.log.Error("the watchdog is not fed any more", "err", err)
			}
			stuck = true
			n.Status("stuck: " + err.Error())
		} else {
			if stuck {
				n.log.Info("the watchdog is fed again")
			}
			stuck = false
			n.send(daemon.SdNotifyWatchdog, "STATUS="+oneLine(status()))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Stopping says that the gateway has begun to stop.
func (n *Notifier) Stopping() { n.send(daemon.SdNotifyStopping) }

func (n *Notifier) send(lines ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		n.log.Debug("notify systemd", "err", err)
	}
}

// oneLine keeps a status from being read as further assignments.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", " ") }
