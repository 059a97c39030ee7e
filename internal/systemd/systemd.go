// Package systemd tells the service manager how the gateway is doing
// (sd_notify): ready, a status line, stopping. Outside systemd every call does
// nothing.
package systemd

import (
	"log/slog"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
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

// Status replaces the line that "systemctl status" shows.
func (n *Notifier) Status(status string) { n.send("STATUS=" + oneLine(status)) }

// Stopping says that the gateway has begun to stop.
func (n *Notifier) Stopping() { n.send(daemon.SdNotifyStopping) }

func (n *Notifier) send(lines ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		n.log.Debug("notify systemd", "err", err)
	}
}

// oneLine keeps a status from being read as further assignments.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", " ") }
