package command

import (
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/point"
)

// book is what a Desk has of one configuration. It does not change, but for
// losses, which are of the goroutine that watches the uplinks.
type book struct {
	commands []config.Command
	rules    config.CommandRules
	kept     []string                    // uplinks whose broker keeps messages
	points   map[point.ID]*place         // those that may be written, or that commands read
	held     []*place                    // those whose values are written again
	setups   map[string][]config.Setting // by device
	losses   []lossPoint
	lockAge  time.Duration // a lock that was read longer ago cannot be seen; 0: any age
}

// A lock that is polled is believed for a few of its intervals, and some time in
// which its bus has other things to do. A device whose polling is paused shows
// what it showed before.
const (
	lockPolls    = 3
	lockPatience = 10 * time.Second
)

// Change makes the Desk work by another configuration; the arguments are those
// of Options. What is waiting or being done goes on as it was checked, ids and
// their answers are still known, and what was written on this day counts.
// Subscriptions are to be asked for anew. It is not for two goroutines at once.
func (d *Desk) Change(devices []config.Device, commands []config.Command, rules config.CommandRules, kept []string) {
	b := &book{
		commands: commands, rules: rules, kept: kept,
		points: make(map[point.ID]*place), setups: make(map[string][]config.Setting),
	}
	var before map[point.ID]*place
	if was := d.book.Load(); was != nil {
		before = was.points
	}
	targets := make(map[point.ID]bool)
	for i := range commands {
		for _, t := range commands[i].Targets {
			targets[t.Point] = true
		}
	}
	for i := range devices {
		dev := &devices[i]
		if len(dev.Setup) > 0 {
			b.setups[dev.Name] = dev.Setup
		}
		for j := range dev.Points {
			p := &dev.Points[j]
			if p.ID == rules.Lock && dev.Bus != "" && p.Every >= 0 {
				b.lockAge = lockPolls*time.Duration(p.Every) + lockPatience
			}
			if p.Write == nil && !targets[p.ID] {
				continue
			}
			pl := &place{point: p, device: dev, account: new(account)}
			if was := before[p.ID]; was != nil {
				pl.account = was.account
			}
			b.points[p.ID] = pl
			if p.Write != nil && p.Write.Reassert > 0 {
				b.held = append(b.held, pl)
			}
			if p.Write != nil && !p.Write.OnLoss.IsZero() {
				b.losses = append(b.losses, lossOf(pl, commands))
			}
		}
	}
	d.book.Store(b)
	select {
	case d.turned <- struct{}{}:
	default:
	}
}

// inherit goes on with the losses of the book before.
func (b *book) inherit(before *book) {
	for i := range b.losses {
		l := &b.losses[i]
		for _, was := range before.losses {
			if was.place.point.ID == l.place.point.ID && was.value == l.value {
				l.done, l.next, l.busy = was.done, was.next, was.busy
			}
		}
	}
}
