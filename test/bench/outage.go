package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"fieldgate/internal/simulate"
	"fieldgate/test/link"
)

const outageAbout = `
Ten simulated TCP devices of 100 points, read every second: 1,000 points a second, one message of some 70 bytes a point (topic and
JSON; 90 with the field seq), QoS 1, told apart by their time stamps. A relay between the gateway and mosquitto is closed for 20 s and opened again; a mosquitto_sub that stays connected
takes what arrives. Bytes written are those of the flash ledger in …/stats. "Read and lost" are messages whose value was read and
that never arrived. The outage with kill -9 has the gateway killed half-way and started again at once, with the uplink still away.
The drain is of a backlog in the file, 10,000 points a second for 20 s, by a gateway that has nothing else to do.`

const (
	outageDevices = 10
	outageLong    = 20 * time.Second
	outageRule    = `{ topic: "{site}/{device}/{point}", when: each }`
	outageSeqRule = `{ topic: "{site}/{device}/{point}", when: each, fields: [seq] }`
)

// outage is a plant, a gateway, a link and a broker, and what has arrived.
type outage struct {
	b      *bench
	plant  *simulate.Plant
	link   *link.Link
	broker *process
	sub    *subscriber // of the values
	stats  *subscriber
	gw     *process
	config string
	data   string

	stopPlant func() error
	got       []received
}

func (b *bench) newOutage(devices int, rule string) (o *outage, err error) {
	o = &outage{b: b, plant: fleet(devices)}
	var port int
	if o.broker, port, err = b.mosquitto(); err != nil {
		return nil, err
	}
	if o.sub, err = subscribe(port, "bench"); err != nil {
		return nil, err
	}
	if o.stats, err = subscribe(port, "fieldgate/bench"); err != nil {
		return nil, err
	}
	if o.link, err = link.New(net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err != nil {
		return nil, err
	}
	if o.stopPlant, err = plant(o.plant); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "outage-")
	if err != nil {
		return nil, err
	}
	o.config, o.data = filepath.Join(dir, "fieldgate.yaml"), filepath.Join(dir, "data")
	_, via, err := net.SplitHostPort(o.link.Addr())
	if err != nil {
		return nil, err
	}
	relay, err := strconv.Atoi(via)
	if err != nil {
		return nil, err
	}
	yaml := fleetConfig(o.plant, loadPoints, true, rule, relay) + "status: { every: 5s }\n"
	return o, os.WriteFile(o.config, []byte(yaml), 0o600)
}

func (o *outage) start() (err error) {
	o.gw, err = start(nil, o.b.binary, "-c", o.config, "run", "--data", o.data)
	return err
}

func (o *outage) end() error {
	o.gw.stop()
	o.sub.stop()
	o.stats.stop()
	o.link.Cut()
	o.broker.stop()
	return o.stopPlant()
}

// take collects what arrives until ok says yes, or for as long as limit.
func (o *outage) take(ctx context.Context, limit time.Duration, ok func() bool) error {
	over := time.After(limit)
	for !ok() {
		select {
		case m := <-o.sub.messages:
			o.got = append(o.got, m)
		case <-over:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func never() bool { return false }

// reading is a message of a point.
type reading struct{ Timestamp time.Time }

// account is what became of the messages of an outage.
type account struct {
	distinct, repeats, reordered int
	gap                          time.Duration // longest between two readings of a point
	first, caughtUp              time.Duration // after the link was opened: the first message, and the last that was read before
}

func (o *outage) account(opened time.Time) account {
	var a account
	type point struct {
		seen map[int64]bool
		last reading
	}
	points := make(map[string]*point)
	for _, m := range o.got {
		var r reading
		if err := json.Unmarshal(m.payload, &r); err != nil {
			continue // none of ours; what is missing shows
		}
		if after := m.at.Sub(opened); after > 0 {
			if a.first == 0 {
				a.first = after
			}
			if r.Timestamp.Before(opened) {
				a.caughtUp = after
			}
		}
		p := points[m.topic]
		if p == nil {
			p = &point{seen: make(map[int64]bool)}
			points[m.topic] = p
		}
		id := r.Timestamp.UnixNano()
		if p.seen[id] {
			a.repeats++
			continue
		}
		p.seen[id] = true
		a.distinct++
		if r.Timestamp.Before(p.last.Timestamp) {
			a.reordered++
			continue
		}
		if !p.last.Timestamp.IsZero() {
			a.gap = max(a.gap, r.Timestamp.Sub(p.last.Timestamp))
		}
		p.last = r
	}
	return a
}

// written returns what the ledger of the queues says, by the newest …/stats.
func (o *outage) written(ctx context.Context) (bytes int64, err error) {
	drain(o.stats.messages)
	for {
		select {
		case m := <-o.stats.messages:
			var s struct {
				Flash struct {
					All struct{ Total struct{ Bytes int64 } }
				}
			}
			if m.topic != "fieldgate/bench/stats" {
				continue
			}
			return s.Flash.All.Total.Bytes, json.Unmarshal(m.payload, &s)
		case <-time.After(10 * time.Second):
			return 0, fmt.Errorf("no stats within 10 s: %s", o.gw.log.String())
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func benchOutage(ctx context.Context, b *bench) (rows []row, err error) {
	for _, kind := range []struct {
		name   string
		rule   string
		killed bool
	}{
		{"outage of 20 s", outageRule, false},
		{"outage of 20 s, with seq", outageSeqRule, false},
		{"outage of 20 s with kill -9", outageRule, true},
	} {
		more, err := b.oneOutage(ctx, kind.name, kind.rule, kind.killed)
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	drain, err := b.drainRate(ctx)
	if err != nil {
		return nil, err
	}
	return append(rows, drain), nil
}

func (b *bench) oneOutage(ctx context.Context, name, rule string, killed bool) (rows []row, err error) {
	o, err := b.newOutage(outageDevices, rule)
	if err != nil {
		return nil, err
	}
	if err := o.start(); err != nil {
		return nil, err
	}
	defer func() {
		if e := o.end(); err == nil {
			err = e
		}
	}()
	const online = 10 * time.Second
	if err := o.take(ctx, online, never); err != nil {
		return nil, err
	}
	if !killed {
		bytes, err := o.written(ctx)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row{"before the " + name + ": bytes written in 10 s online", strconv.FormatInt(bytes, 10), "0", bytes == 0})
	}
	o.link.Cut()
	if err := o.take(ctx, outageLong/2, never); err != nil {
		return nil, err
	}
	if killed {
		_ = o.gw.cmd.Process.Signal(syscall.SIGKILL)
		<-o.gw.done
		if err := o.start(); err != nil {
			return nil, err
		}
	}
	if err := o.take(ctx, outageLong/2, never); err != nil {
		return nil, err
	}
	opened := time.Now()
	if err := o.link.Open(); err != nil {
		return nil, err
	}
	if err := o.take(ctx, 6*time.Second, never); err != nil {
		return nil, err
	}
	if err := o.gw.alive(); err != nil {
		return nil, err
	}
	bytes, err := o.written(ctx)
	if err != nil {
		return nil, err
	}
	o.gw.stop()
	if err := o.take(ctx, time.Second, never); err != nil {
		return nil, err
	}
	a := o.account(opened)
	lost := polled(o.plant)*loadPoints - a.distinct
	perSecond := outageDevices * loadPoints
	least := 0
	if killed {
		least = perSecond // of a commit interval
	}
	rows = append(rows,
		row{name + ": read and lost, of " + strconv.Itoa(polled(o.plant)*loadPoints), strconv.Itoa(lost), fmt.Sprintf("≤ %d", least), lost <= least},
		row{name + ": out of order", strconv.Itoa(a.reordered), "0", a.reordered == 0},
		row{name + ": repeats", strconv.Itoa(a.repeats), "≤ 64", a.repeats <= 64},
		row{name + ": first message after the uplink is back", fmt.Sprintf("%.2f s", a.first.Seconds()), "≤ 1 s", a.first <= time.Second},
		row{name + ": from then until all that waited has arrived", fmt.Sprintf("%.2f s", (a.caughtUp - a.first).Seconds()), "≤ 2 s", a.caughtUp-a.first <= 2*time.Second},
		row{name + ": longest between two readings of a point, read every second", fmt.Sprintf("%.2f s", a.gap.Seconds()), "", true})
	if !killed {
		perPoint := float64(bytes) / float64(outageLong/time.Second) / float64(perSecond)
		rows = append(rows, row{name + ": bytes written a point, drain included", fmt.Sprintf("%.0f", perPoint), "≤ 150", perPoint <= 150})
	}
	return rows, nil
}

// drainRate measures how fast a backlog in the file goes to mosquitto.
func (b *bench) drainRate(ctx context.Context) (r row, err error) {
	o, err := b.newOutage(loadDevices, outageRule)
	if err != nil {
		return row{}, err
	}
	defer func() {
		if e := o.end(); err == nil {
			err = e
		}
	}()
	o.link.Cut()
	if err := o.start(); err != nil {
		return row{}, err
	}
	if err := pause(ctx, outageLong); err != nil {
		return row{}, err
	}
	o.gw.stop()
	// The same uplink, and nothing to read.
	_, relay, err := net.SplitHostPort(o.link.Addr())
	if err != nil {
		return row{}, err
	}
	yaml := fmt.Sprintf("site: { id: bench }\nuplinks: { up: { url: \"mqtt://127.0.0.1:%s\" } }\n", relay)
	if err := os.WriteFile(o.config, []byte(yaml), 0o600); err != nil {
		return row{}, err
	}
	if err := o.link.Open(); err != nil {
		return row{}, err
	}
	drain(o.sub.messages)
	if err := o.start(); err != nil {
		return row{}, err
	}
	want := polled(o.plant) * loadPoints
	if err := o.take(ctx, 30*time.Second, func() bool { return len(o.got) >= want }); err != nil {
		return row{}, err
	}
	if len(o.got) < 2 {
		return row{}, fmt.Errorf("%d messages: %s", len(o.got), o.gw.log.String())
	}
	rate := float64(len(o.got)) / o.got[len(o.got)-1].at.Sub(o.got[0].at).Seconds()
	return row{fmt.Sprintf("drain of %d messages from the file, QoS 1: messages a second", len(o.got)), fmt.Sprintf("%.0f", rate), "≥ 25000", rate >= 25_000}, nil
}
