package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"fieldgate/internal/config"
	"fieldgate/internal/gateway"
	"fieldgate/internal/pipeline"
	"fieldgate/internal/point"
	"fieldgate/internal/simulate"
	"fieldgate/internal/uplink"
)

//go:embed demo.yaml
var demoConfig string

func cmdDemo(ctx context.Context, a *app, args []string) error {
	f := newFlags("demo", "[--for DURATION] [--json] [--keep DIR]", `
Shows the main job with no hardware and no root: a simulated plant - three
devices on an RTU line, two on TCP, one that dies now and then - the gateway,
its broker, and a live view. Ctrl-C ends it.

  fieldgate demo
  fieldgate demo --for 10s --json | head     a JSON object a sample
  fieldgate demo --keep /tmp/demo            keep the configuration to play with`)
	limit := f.Duration("for", 0, "end after `DURATION`, such as 10s")
	asJSON := f.Bool("json", false, "print each sample as a JSON object")
	keep := f.String("keep", "", "write the configuration into `DIR` and leave it there")
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return usagef("demo takes only options; \"fieldgate demo -h\" explains it")
	}
	if err := notNegative(*limit); err != nil {
		return err
	}
	if *limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *limit)
		defer cancel()
	}
	d, err := newDemo(a, *keep)
	if err != nil {
		return err
	}
	defer d.close()
	return d.run(ctx, a, *asJSON)
}

// demo is a simulated plant and a gateway that polls it.
type demo struct {
	dir     string
	temp    bool // dir goes at the end
	config  string
	plant   *simulate.Plant
	gateway *gateway.Gateway
	broker  string // HOST:PORT
	units   map[point.ID]string
	order   []point.ID
}

func newDemo(a *app, keep string) (d *demo, err error) {
	d = &demo{dir: keep, units: make(map[point.ID]string)}
	if keep == "" {
		if d.dir, err = os.MkdirTemp("", "fieldgate-demo-"); err != nil {
			return nil, err
		}
		d.temp = true
	} else if err := os.MkdirAll(keep, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	d.plant = simulate.Demo(1)
	d.plant.Bus("line1").Address = filepath.Join(d.dir, "line1")
	if err := d.plant.Listen(); err != nil {
		return nil, err
	}
	// The usual port of MQTT, else any; another program may take one between our
	// look at it and the broker's.
	for _, addr := range []string{"127.0.0.1:1883", "127.0.0.1:0", "127.0.0.1:0"} {
		if err = d.open(a, addr); !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return d, err
}

// open makes the gateway, with its broker on addr.
func (d *demo) open(a *app, addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	d.broker = l.Addr().String()
	if err := l.Close(); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	text := strings.NewReplacer(
		"$LINE1", d.plant.Bus("line1").Addr(),
		"$CHILLER", d.plant.Bus("chiller").Addr(),
		"$METER", d.plant.Bus("meter").Addr(),
		"$BROKER", d.broker,
	).Replace(demoConfig)
	d.config = filepath.Join(d.dir, "fieldgate.yaml")
	if err := os.WriteFile(d.config, []byte(text), 0o644); err != nil {
		return err
	}
	cfg, topics, err := gateway.Load(d.config)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	if d.gateway, err = gateway.Open(cfg, topics, d.dir, programVersion(), log); err != nil {
		return err
	}
	for _, dev := range cfg.Devices {
		for _, p := range dev.Points {
			d.units[p.ID] = p.Unit
			d.order = append(d.order, p.ID)
		}
	}
	return nil
}

func (d *demo) close() {
	if d.plant != nil {
		d.plant.Close()
	}
	if d.temp {
		_ = os.RemoveAll(d.dir) // nothing of worth is in it
	}
}

// run runs plant and gateway, and the view in the caller's goroutine, until
// ctx ends or one of them fails.
func (d *demo) run(ctx context.Context, a *app, asJSON bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	plant, field := context.WithCancel(context.Background())
	defer field()
	feed := d.gateway.Pipeline().Subscribe("demo", 256)

	plantDone := make(chan error, 1)
	go func() { // ends with plant
		err := d.plant.Run(plant)
		cancel()
		plantDone <- err
	}()
	gatewayDone := make(chan error, 1)
	go func() { // ends with ctx
		err := d.gateway.Run(ctx, func() {})
		cancel()
		gatewayDone <- err
	}()

	var err error
	if asJSON {
		err = d.printSamples(ctx, a.stdout, feed)
	} else {
		err = d.view(ctx, a.stdout, feed)
	}
	cancel()
	err = errors.Join(err, <-gatewayDone)
	field() // the devices outlive the gateway, as in a plant
	return errors.Join(err, <-plantDone)
}

// view shows the demo until ctx ends. The messages it shows are what a client of
// the embedded broker is sent.
func (d *demo) view(ctx context.Context, w io.Writer, feed *pipeline.Feed) error {
	messages := make(chan demoMessage, 256)
	conn, err := uplink.Connect(ctx, config.Uplink{ClientID: "fieldgate-demo-view", Keepalive: time.Minute, CleanSession: true},
		"mqtt://"+d.broker, uplink.ConnOptions{Handler: demoTap(messages)})
	if err == nil {
		defer conn.Close()
		_, err = conn.Subscribe(ctx, "#", 0)
	}
	if err != nil {
		return err
	}
	return newView(d, w).run(ctx, feed, messages)
}

// printSamples prints one JSON object a sample.
func (d *demo) printSamples(ctx context.Context, w io.Writer, feed *pipeline.Feed) error {
	type sample struct {
		Time    string          `json:"timestamp"`
		Point   point.ID        `json:"point"`
		Value   json.RawMessage `json:"value"`
		Quality string          `json:"quality"`
		Unit    string          `json:"unit,omitempty"`
	}
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	for {
		select {
		case <-ctx.Done():
			return nil
		case b := <-feed.C():
			for _, s := range b.Samples {
				if err := out.Encode(sample{
					Time:  point.Timestamp(s.Time),
					Point: s.ID, Value: s.Value.AppendJSON(nil), Quality: s.Quality.String(), Unit: d.units[s.ID],
				}); err != nil {
					return nil // the reader has had enough
				}
			}
		}
	}
}

// terminal returns the size of w if it is a terminal.
func terminal(w io.Writer) (width, height int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, 0, false
	}
	width, height, err := term.GetSize(int(f.Fd()))
	return width, height, err == nil
}

// hints says how to look at the demo from outside, and how to write a setpoint.
func (d *demo) hints() (watch, write string) {
	host, port, _ := net.SplitHostPort(d.broker)
	return fmt.Sprintf("mosquitto_sub -h %s -p %s -v -t '#'", host, port),
		fmt.Sprintf("mosquitto_pub -h %s -p %s -t demo/cmd/boiler/setpoint -m 75", host, port)
}

// since prints how long ago something was, in the view's few columns.
func since(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return time.Since(t).Truncate(100 * time.Millisecond).String()
}
