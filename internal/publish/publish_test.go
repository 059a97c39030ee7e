package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/pipeline"
	"fieldgate/internal/point"
)

// recorder is a sink that keeps what it is given, and when.
type recorder struct {
	mu    sync.Mutex
	start time.Time
	got   []delivered
	calls int
	err   error
}

type delivered struct {
	at time.Duration
	mqtt.Message
}

func (r *recorder) Deliver(ctx context.Context, msgs ...mqtt.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	r.calls++
	for _, m := range msgs {
		m.Payload = slices.Clone(m.Payload) // its memory is used again
		r.got = append(r.got, delivered{time.Since(r.start), m})
	}
	return r.err
}

// lines returns what was delivered: time, topic, payload.
func (r *recorder) lines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, d := range r.got {
		out = append(out, fmt.Sprintf("%v %s %s", d.at, d.Topic, d.Payload))
	}
	return out
}

// works is a running pipeline and publisher inside a synctest bubble.
type works struct {
	t     *testing.T
	line  *pipeline.Pipeline
	feed  *pipeline.Feed
	pub   *Publisher
	sink  *recorder
	log   *strings.Builder
	stop  context.CancelFunc
	ended chan error
}

func start(t *testing.T, rules []config.Rule, devices []config.Device) *works {
	w := &works{t: t, line: pipeline.New(), sink: &recorder{start: time.Now()}, log: new(strings.Builder), ended: make(chan error, 1)}
	w.run(site, rules, devices, map[string]mqtt.Sink{"cloud": w.sink}, 16)
	return w
}

// newPublisher returns the Publisher of a configuration.
func newPublisher(site config.Site, rules []config.Rule, devices []config.Device, sinks map[string]mqtt.Sink, log *slog.Logger) *Publisher {
	topics, _ := Topics(site, rules, devices)
	return New(topics, devices, sinks, log)
}

func (w *works) run(site config.Site, rules []config.Rule, devices []config.Device, sinks map[string]mqtt.Sink, depth int) {
	w.feed = w.line.Subscribe("publish", depth)
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	w.pub = newPublisher(site, rules, devices, sinks, log)
	ctx, cancel := context.WithCancel(w.t.Context())
	w.stop = cancel
	go func() { w.ended <- w.pub.Run(ctx, w.feed) }() // ends with cancel or the feed
	synctest.Wait()
}

// emit emits one poll: points of the device "d" with their values as text; ""
// is a failed reading.
func (w *works) emit(values ...string) {
	batch := make([]point.Sample, 0, len(values)/2)
	for i := 0; i < len(values); i += 2 {
		s := point.Sample{ID: point.ID("d." + values[i]), Time: time.Now().UTC()}
		if text := strings.TrimSuffix(values[i+1], "?"); text == "" {
			s.Quality = point.Bad
		} else {
			s.Value = point.ParseValue(text)
			if text != values[i+1] {
				s.Quality = point.Uncertain
			}
		}
		batch = append(batch, s)
	}
	w.line.Emit(batch)
	synctest.Wait()
}

// end stops the publisher and returns everything delivered.
func (w *works) end() []string {
	w.stop()
	if err := <-w.ended; err != nil {
		w.t.Errorf("Run: %v", err)
	}
	return w.sink.lines()
}

// device is "d" with points that are read at the given interval.
func device(every time.Duration, names ...string) config.Device {
	d := config.Device{Name: "d", Bus: "b", Unit: 1}
	for i, n := range names {
		d.Points = append(d.Points, point.Point{ID: point.ID("d." + n), Table: modbus.HoldingRegisters, Address: uint16(i), Every: point.Interval(every)})
	}
	return d
}

func raw(w config.When) config.Rule {
	return config.Rule{Points: []string{"*"}, Topic: "{point}", Payload: config.Raw, When: w}
}

func width(text string) point.Decimal {
	d, err := point.ParseDecimal(text)
	if err != nil {
		panic(err)
	}
	return d
}

// at is one poll of a play: the seconds since its beginning and the points read.
type at struct {
	second float64
	values []string
}

func TestWhen(t *testing.T) {
	const second = time.Second
	poll := func(s float64, values ...string) at { return at{s, values} }
	change := config.When{AnyChange: true}
	batch := func(w config.When) config.Rule {
		return config.Rule{Points: []string{"*"}, Topic: "{device}", Payload: config.Batch, When: w}
	}
	null := func(r config.Rule) config.Rule { r.BadNull = true; return r }
	every := func(r config.Rule, d time.Duration) config.Rule { r.Every = d; return r }
	// Bubbles begin at midnight UTC, 2000-01-01.
	stamp := func(s float64) string {
		return fmt.Sprintf(`"timestamp":"%s"`, time.Unix(946684800, 0).Add(time.Duration(s*1e9)).UTC().Format("2006-01-02T15:04:05.000Z"))
	}
	for _, c := range []struct {
		name  string
		rule  config.Rule
		every time.Duration // of the points
		until float64       // seconds
		polls []at
		want  []string
	}{
		{"change any", raw(change), second, 10, []at{poll(0, "x", "1"), poll(1, "x", "1"), poll(2, "x", "2"), poll(3, "x", "2.0"), poll(4, "x", "2.5"), poll(5, "x", "text"), poll(6, "x", "text")},
			[]string{"0s x 1", "2s x 2", "4s x 2.5", "5s x text"}},
		{"nothing said of it is any change", raw(config.When{}), second, 10, []at{poll(0, "x", "1"), poll(1, "x", "1"), poll(2, "x", "2")}, []string{"0s x 1", "2s x 2"}},
		{"change of quality", raw(change), second, 10, []at{poll(0, "x", "1"), poll(1, "x", "1?"), poll(2, "x", "1?"), poll(3, "x", "1")}, []string{"0s x 1", "1s x 1", "3s x 1"}},
		{"points by themselves", raw(change), second, 10, []at{poll(0, "x", "1", "y", "1"), poll(1, "x", "2", "y", "1"), poll(2, "y", "2"), poll(3, "x", "2")},
			[]string{"0s x 1", "0s y 1", "1s x 2", "2s y 2"}},
		{"each", raw(config.When{Each: true}), second, 10, []at{poll(0, "x", "1"), poll(1, "x", "1"), poll(2, "x", ""), poll(3, "x", "1")}, []string{"0s x 1", "1s x 1", "3s x 1"}},

		{"dead band", raw(config.When{Band: width("0.5")}), second, 10,
			[]at{poll(0, "x", "20"), poll(1, "x", "20.5"), poll(2, "x", "19.5"), poll(3, "x", "20.6"), poll(4, "x", "20.2"), poll(5, "x", "20")}, []string{"0s x 20", "3s x 20.6", "5s x 20"}},
		{"dead band and slow drift", raw(config.When{Band: width("0.5")}), second, 10,
			[]at{poll(0, "x", "20"), poll(1, "x", "20.2"), poll(2, "x", "20.4"), poll(3, "x", "20.6"), poll(4, "x", "20.8"), poll(5, "x", "21"), poll(6, "x", "21.2")}, []string{"0s x 20", "3s x 20.6", "6s x 21.2"}},
		{"dead band in percent", raw(config.When{Band: width("1"), Percent: true}), second, 10,
			[]at{poll(0, "x", "200"), poll(1, "x", "202"), poll(2, "x", "202.1"), poll(3, "x", "200.1"), poll(4, "x", "200")}, []string{"0s x 200", "2s x 202.1", "4s x 200"}},
		{"dead band and quality", raw(config.When{Band: width("5")}), second, 10, []at{poll(0, "x", "20"), poll(1, "x", "21?"), poll(2, "x", "22?")}, []string{"0s x 20", "1s x 21"}},
		{"dead band and text", raw(config.When{Band: width("5")}), second, 10, []at{poll(0, "x", "on"), poll(1, "x", "off"), poll(2, "x", "off")}, []string{"0s x on", "1s x off"}},

		{"bad publishes nothing", raw(change), second, 10, []at{poll(0, "x", ""), poll(1, "x", "1"), poll(2, "x", ""), poll(3, "x", "")}, []string{"1s x 1"}},
		{"back from bad", raw(change), second, 10, []at{poll(0, "x", "1"), poll(1, "x", ""), poll(2, "x", "1"), poll(3, "x", "1")}, []string{"0s x 1", "2s x 1"}},
		{"back from bad within a dead band", raw(config.When{Band: width("5")}), second, 10, []at{poll(0, "x", "1"), poll(1, "x", ""), poll(2, "x", "2")}, []string{"0s x 1", "2s x 2"}},
		{"bad null", null(raw(change)), second, 10, []at{poll(0, "x", ""), poll(1, "x", "1"), poll(2, "x", ""), poll(3, "x", ""), poll(4, "x", "1")}, []string{"0s x null", "1s x 1", "2s x null", "4s x 1"}},

		{"heartbeat by a reading", raw(config.When{AnyChange: true, AtLeast: 10 * second}), second, 25, func() (polls []at) {
			for i := range 25 {
				polls = append(polls, poll(float64(i), "x", "1"))
			}
			return polls
		}(), []string{"0s x 1", "9s x 1", "18s x 1"}},
		{"heartbeat without a reading", raw(config.When{AnyChange: true, AtLeast: 10 * second}), 0, 35, []at{poll(0, "x", "1"), poll(14, "x", "2")},
			[]string{"0s x 1", "10s x 1", "14s x 2", "24s x 2", "34s x 2"}},
		{"heartbeat of a slow point", raw(config.When{AnyChange: true, AtLeast: 10 * second}), 60 * second, 35, []at{poll(0, "x", "1")}, []string{"0s x 1", "10s x 1", "20s x 1", "30s x 1"}},
		{"heartbeat of a slow point, read early", raw(config.When{AnyChange: true, AtLeast: 10 * second}), 60 * second, 12, []at{poll(0, "x", "1"), poll(2, "x", "1")}, []string{"0s x 1", "10s x 1"}},
		{"no heartbeat of what is bad", raw(config.When{AnyChange: true, AtLeast: 10 * second}), 0, 60, []at{poll(0, "x", "1"), poll(5, "x", ""), poll(40, "x", "1")}, []string{"0s x 1", "40s x 1", "50s x 1", "1m0s x 1"}},
		{"heartbeat of null", null(raw(config.When{AnyChange: true, AtLeast: 10 * second})), 0, 15, []at{poll(0, "x", "")}, []string{"0s x null", "10s x null"}},
		{"heartbeats due about the same time go together", raw(config.When{AnyChange: true, AtLeast: 64 * second}), 0, 100,
			[]at{poll(0, "x", "1"), poll(0.9, "y", "1"), poll(2, "z", "1")}, []string{"0s x 1", "900ms y 1", "2s z 1", "1m4s x 1", "1m4s y 1", "1m6s z 1"}},
		{"each has a heartbeat too", raw(config.When{Each: true, AtLeast: 10 * second}), 0, 15, []at{poll(0, "x", "1")}, []string{"0s x 1", "10s x 1"}},

		{"gap", raw(config.When{AnyChange: true, AtMost: 3200 * time.Millisecond}), second, 20, []at{poll(0, "x", "1"), poll(1, "x", "2"), poll(2, "x", "3"), poll(8, "x", "4")},
			[]string{"0s x 1", "3.2s x 3", "8s x 4"}},
		{"gap counts from the held message", raw(config.When{AnyChange: true, AtMost: 3200 * time.Millisecond}), second, 20, []at{poll(0, "x", "1"), poll(1, "x", "2"), poll(4, "x", "3"), poll(5, "x", "4")},
			[]string{"0s x 1", "3.2s x 2", "6.4s x 4"}},
		{"gap, and back to what was said", raw(config.When{AnyChange: true, AtMost: 3200 * time.Millisecond}), second, 20, []at{poll(0, "x", "1"), poll(1, "x", "2"), poll(2, "x", "1"), poll(5, "x", "3")},
			[]string{"0s x 1", "5s x 3"}},
		{"gap, then bad", raw(config.When{AnyChange: true, AtMost: 3200 * time.Millisecond}), second, 20, []at{poll(0, "x", "1"), poll(1, "x", "2"), poll(2, "x", "")}, []string{"0s x 1", "3.2s x 2"}},
		{"gap, bad and back", raw(config.When{AnyChange: true, AtMost: 3200 * time.Millisecond}), second, 20, []at{poll(0, "x", "1"), poll(1, "x", ""), poll(2, "x", "1"), poll(3, "x", "1")}, []string{"0s x 1", "3.2s x 1"}},
		{"gap of each", raw(config.When{Each: true, AtMost: 3200 * time.Millisecond}), second, 20, []at{poll(0, "x", "1"), poll(1, "x", "1"), poll(2, "x", "1"), poll(9, "x", "1")}, []string{"0s x 1", "3.2s x 1", "9s x 1"}},
		{"gap with a dead band", raw(config.When{Band: width("5"), AtMost: 3200 * time.Millisecond}), second, 20, []at{poll(0, "x", "0"), poll(1, "x", "10"), poll(2, "x", "4")}, []string{"0s x 0"}},
		{"gaps of points by themselves", raw(config.When{AnyChange: true, AtMost: 3200 * time.Millisecond}), second, 20, []at{poll(0, "x", "1"), poll(1, "y", "1"), poll(2, "x", "2", "y", "2")},
			[]string{"0s x 1", "1s y 1", "3.2s x 2", "4.2s y 2"}},
		{"gap, heartbeat in it", raw(config.When{AnyChange: true, AtMost: 3200 * time.Millisecond, AtLeast: 2 * second}), 0, 5, []at{poll(0, "x", "1")}, []string{"0s x 1", "3.2s x 1"}},
		{"held back at the end", raw(config.When{AnyChange: true, AtMost: time.Hour}), second, 5, []at{poll(0, "x", "1", "y", "1"), poll(1, "x", "2"), poll(2, "x", "3"), poll(3, "y", "2"), poll(4, "y", "1")}, []string{"0s x 1", "0s y 1", "5s x 3"}},

		{"batch says the whole poll", batch(change), second, 10, []at{poll(0, "x", "1", "y", "1"), poll(1, "x", "1", "y", "2"), poll(2, "x", "1", "y", "2"), poll(3, "z", "1")},
			[]string{`0s d {` + stamp(0) + `,"x":1,"y":1}`, `1s d {` + stamp(1) + `,"x":1,"y":2}`, `3s d {` + stamp(3) + `,"z":1}`}},
		{"batch says each once", batch(change), second, 10, []at{poll(0, "x", "1", "x", "2")}, []string{`0s d {` + stamp(0) + `,"x":2}`}},
		{"batch without what is bad", batch(change), second, 10, []at{poll(0, "x", "1", "y", ""), poll(1, "x", "", "y", ""), poll(2, "x", "1", "y", "")},
			[]string{`0s d {` + stamp(0) + `,"x":1}`, `2s d {` + stamp(2) + `,"x":1}`}},
		{"batch with null", null(batch(change)), second, 10, []at{poll(0, "x", "1", "y", "2"), poll(1, "x", "1", "y", ""), poll(2, "x", "1", "y", "")},
			[]string{`0s d {` + stamp(0) + `,"x":1,"y":2}`, `1s d {` + stamp(1) + `,"x":1,"y":null,"quality":{"y":"bad"}}`}},
		{"batch, a band for each point", batch(config.When{Band: width("5")}), second, 10, []at{poll(0, "x", "0", "y", "0"), poll(1, "x", "4", "y", "4"), poll(2, "x", "4", "y", "6"), poll(3, "x", "6", "y", "6"), poll(4, "x", "10", "y", "6")},
			[]string{`0s d {` + stamp(0) + `,"x":0,"y":0}`, `2s d {` + stamp(2) + `,"x":4,"y":6}`, `4s d {` + stamp(4) + `,"x":10,"y":6}`}},
		{"batch heartbeat by a reading", batch(config.When{AnyChange: true, AtLeast: 10 * second}), second, 10, []at{poll(0, "x", "1", "y", "1"), poll(9, "x", "1", "y", "1"), poll(10, "x", "1", "y", "1")},
			[]string{`0s d {` + stamp(0) + `,"x":1,"y":1}`, `9s d {` + stamp(9) + `,"x":1,"y":1}`}},
		{"batch heartbeat without a reading", batch(config.When{AnyChange: true, AtLeast: 10 * second}), 0, 15, []at{poll(0, "x", "1", "y", "1", "z", ""), poll(4, "y", "2")},
			[]string{`0s d {` + stamp(0) + `,"x":1,"y":1}`, `4s d {` + stamp(4) + `,"y":2}`, `10s d {` + stamp(0) + `,"x":1}`, `14s d {` + stamp(4) + `,"y":2}`}},
		{"batch gap", batch(config.When{AnyChange: true, AtMost: 3200 * time.Millisecond}), second, 10, []at{poll(0, "x", "1", "y", "1"), poll(1, "x", "2", "y", "1"), poll(2, "z", "1")},
			[]string{`0s d {` + stamp(0) + `,"x":1,"y":1}`, `3.2s d {` + stamp(2) + `,"x":2,"y":1,"z":1}`}},
		{"batch gap, and back to what was said", batch(config.When{AnyChange: true, AtMost: 3200 * time.Millisecond}), second, 10,
			[]at{poll(0, "x", "1", "y", "1"), poll(1, "x", "2", "y", "1"), poll(2, "x", "1", "y", "1"), poll(5, "x", "1", "y", "2")},
			[]string{`0s d {` + stamp(0) + `,"x":1,"y":1}`, `5s d {` + stamp(5) + `,"x":1,"y":2}`}},

		{"batch gap keeps what an idle poll does not mention", batch(config.When{AnyChange: true, AtMost: 3200 * time.Millisecond}), second, 10,
			[]at{poll(0, "x", "1", "y", "1"), poll(1, "x", "2"), poll(2, "y", "1")}, []string{`0s d {` + stamp(0) + `,"x":1,"y":1}`, `3.2s d {` + stamp(2) + `,"x":2,"y":1}`}},
		{"batch gap without news leaves nothing behind", batch(config.When{AnyChange: true, AtMost: 3200 * time.Millisecond}), second, 10,
			[]at{poll(0, "x", "1", "y", "1"), poll(1, "x", "2"), poll(2, "x", "1"), poll(5, "z", "1")}, []string{`0s d {` + stamp(0) + `,"x":1,"y":1}`, `5s d {` + stamp(5) + `,"z":1}`}},

		{"timed", every(raw(change), 5*second), second, 16, []at{poll(1, "x", "1"), poll(2, "x", "2"), poll(6, "x", "3"), poll(7, "y", "4")},
			[]string{"5s x 2", "10s x 3", "10s y 4", "15s x 3", "15s y 4"}},
		{"timed, bad", every(raw(change), 5*second), second, 16, []at{poll(1, "x", "1"), poll(6, "x", ""), poll(11, "x", "1")}, []string{"5s x 1", "15s x 1"}},
		{"timed, bad null", null(every(raw(change), 5*second)), second, 11, []at{poll(1, "x", "1"), poll(6, "x", "")}, []string{"5s x 1", "10s x null"}},
		{"timed with its own time", every(config.Rule{Points: []string{"*"}, Topic: "{point}"}, 5*second), second, 6, []at{poll(1, "x", "1")}, []string{`5s x {"value":1,` + stamp(1) + `}`}},
		{"timed batch", every(batch(change), 5*second), second, 11, []at{poll(1, "y", "1"), poll(2, "x", "2"), poll(6, "z", "")},
			[]string{`5s d {` + stamp(2) + `,"x":2,"y":1}`, `10s d {` + stamp(2) + `,"x":2,"y":1}`}},
		{"timed takes no part in when", every(raw(config.When{Each: true, AtLeast: second, AtMost: time.Hour}), 5*second), second, 6, []at{poll(1, "x", "1"), poll(2, "x", "2")}, []string{"5s x 2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, []config.Rule{c.rule}, []config.Device{device(c.every, "x", "y", "z")})
				begin := time.Now()
				for _, p := range c.polls {
					time.Sleep(time.Until(begin.Add(time.Duration(p.second * 1e9))))
					w.emit(p.values...)
				}
				time.Sleep(time.Until(begin.Add(time.Duration(c.until * 1e9))))
				synctest.Wait()
				if got := w.end(); !slices.Equal(got, c.want) {
					t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
				}
			})
		})
	}
}

// Every rule sees every point; each has its own idea of when.
func TestSeveralRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := []config.Rule{
			{Points: []string{"d.x", "*.y"}, Topic: "a/{point}", Payload: config.Raw, QoS: 2, Retain: true},
			{Points: []string{"d.y"}, Topic: "b/{point}", Payload: config.Raw, When: config.When{Each: true}},
			{Points: []string{"none"}, Topic: "c", Payload: config.Raw},
		}
		w := start(t, rules, []config.Device{device(time.Second, "x", "y", "z")})
		w.emit("x", "1", "y", "1", "z", "1")
		w.emit("x", "1", "y", "1", "z", "2")
		want := []string{"0s a/x 1", "0s a/y 1", "0s b/y 1", "0s b/y 1"}
		if got := w.end(); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		for _, m := range w.sink.got {
			if first := strings.HasPrefix(m.Topic, "a/"); m.Retain != first || m.QoS == 2 != first {
				t.Errorf("%s: QoS %d, retain %v", m.Topic, m.QoS, m.Retain)
			}
		}
	})
}

func TestDestinations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &works{t: t, line: pipeline.New(), sink: new(recorder), log: new(strings.Builder), ended: make(chan error, 1)}
		sinks := map[string]*recorder{"cloud": {}, "backup": {}, config.Local: {}}
		as := make(map[string]mqtt.Sink)
		for n, s := range sinks {
			as[n] = s
		}
		w.run(site, []config.Rule{
			{Points: []string{"d.x"}, Topic: "all", Payload: config.Raw},
			{Points: []string{"d.x"}, Topic: "some", Payload: config.Raw, To: []string{"cloud", config.Local}},
			{Points: []string{"d.x"}, Topic: "unknown", Payload: config.Raw, To: []string{"elsewhere"}},
		}, []config.Device{device(time.Second, "x")}, as, 16)
		w.emit("x", "1")
		w.end()
		for name, want := range map[string]string{"cloud": "all some", config.Local: "all some", "backup": "all"} {
			var topics []string
			for _, m := range sinks[name].got {
				topics = append(topics, m.Topic)
			}
			if got := strings.Join(topics, " "); got != want || sinks[name].calls != 1 {
				t.Errorf("%s got %q in %d deliveries, want %q in one", name, got, sinks[name].calls, want)
			}
		}
	})
}

// A sink in trouble is said once, and harms nobody else.
func TestSinkErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &works{t: t, line: pipeline.New(), sink: new(recorder), log: new(strings.Builder), ended: make(chan error, 1)}
		broken := &recorder{err: errors.New("queue cloud: closed")}
		w.run(site, []config.Rule{raw(config.When{Each: true})}, []config.Device{device(time.Second, "x")}, map[string]mqtt.Sink{"cloud": broken, "local": w.sink}, 16)
		poll := func(n int) {
			for range n {
				w.emit("x", "1")
				time.Sleep(time.Second)
			}
		}
		poll(10)
		broken.mu.Lock()
		broken.err = nil
		broken.mu.Unlock()
		poll(100)
		if got := len(w.end()); got != 110 {
			t.Errorf("the sound sink got %d messages, want 110", got)
		}
		want := "level=ERROR msg=\"messages refused\" to=cloud messages=1 err=\"queue cloud: closed\"\n" +
			"level=INFO msg=\"messages taken again\" to=cloud refused=10\n"
		if got := w.log.String(); got != want {
			t.Errorf("log\n%swant\n%s", got, want)
		}
		s := w.pub.Stats()
		if s.Samples != 110 || s.Messages != 110 || s.Bytes != 110 || s.Unknown != 0 ||
			!slices.Equal(s.Sinks, []SinkStats{{"cloud", 100, 10}, {"local", 110, 0}}) {
			t.Errorf("Stats = %+v", s)
		}
	})
}

// Points that no rule or no device has cost nothing but a count.
func TestUnknownPoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, []config.Rule{{Points: []string{"d.x"}, Topic: "t", Payload: config.Raw}}, []config.Device{device(time.Second, "x", "y")})
		w.emit("stranger", "1", "y", "1", "x", "1")
		w.emit("stranger", "2")
		if got := w.end(); !slices.Equal(got, []string{"0s t 1"}) {
			t.Errorf("got %v", got)
		}
		if s := w.pub.Stats(); s.Unknown != 2 || s.Samples != 4 {
			t.Errorf("Stats = %+v, want 2 of 4 unknown", s)
		}
	})
}

// What the feed holds when Run is told to stop is still delivered.
func TestStopDeliversWhatWasRead(t *testing.T) {
	const polls = 3000
	for _, way := range []string{"context", "feed", "both"} {
		t.Run(way, func(t *testing.T) {
			line, sink := pipeline.New(), new(recorder)
			feed := line.Subscribe("publish", polls)
			p := newPublisher(site, []config.Rule{raw(config.When{Each: true})}, []config.Device{device(0, "x")}, map[string]mqtt.Sink{"cloud": sink}, slog.New(slog.DiscardHandler))
			for i := range polls {
				line.Emit([]point.Sample{{ID: "d.x", Value: point.IntValue(int64(i))}})
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if way != "feed" {
				cancel()
			}
			if way != "context" {
				feed.Close()
			}
			if err := p.Run(ctx, feed); err != nil {
				t.Fatal(err)
			}
			if len(sink.got) != polls {
				t.Fatalf("%d messages, want %d", len(sink.got), polls)
			}
			for i, m := range sink.got {
				if string(m.Payload) != fmt.Sprint(i) {
					t.Fatalf("message %d is %s", i, m.Payload)
				}
			}
			if sink.calls > polls/100 {
				t.Errorf("%d deliveries for what waited already, want few", sink.calls)
			}
		})
	}
}

// gate is a sink that blocks until it is opened.
type gate chan struct{}

func (g gate) Deliver(context.Context, ...mqtt.Message) error {
	<-g
	return nil
}

func TestBehindTheField(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &works{t: t, line: pipeline.New(), sink: new(recorder), log: new(strings.Builder), ended: make(chan error, 1)}
		g := make(gate)
		w.run(site, []config.Rule{raw(config.When{Each: true})}, []config.Device{device(time.Second, "x")}, map[string]mqtt.Sink{"cloud": g}, 2)
		for range 10 { // one is being delivered, two wait, seven are lost
			w.emit("x", "1")
		}
		close(g)
		synctest.Wait()
		w.emit("x", "1")
		time.Sleep(quietAfter)
		w.emit("x", "1")
		w.end()
		want := "level=ERROR msg=\"publishing is slower than the field, oldest samples dropped\" batches=7 samples=7\n" +
			"level=INFO msg=\"publishing keeps up again\" batches=7 samples=7\n"
		if got := w.log.String(); got != want {
			t.Errorf("log\n%swant\n%s", got, want)
		}
	})
}

// Payloads are whole and right however many there are, and however long, although
// the publisher uses their memory again.
func TestManyLongPayloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names := make([]string, 300)
		for i := range names {
			names[i] = fmt.Sprintf("p%d", i)
		}
		w := start(t, []config.Rule{raw(config.When{Each: true})}, []config.Device{device(time.Second, names...)})
		var want []string
		for round := range 3 {
			var poll []string
			for i, n := range names {
				text := strings.Repeat(fmt.Sprintf("%d-%d ", round, i), 1+i%40)
				if i%100 == 7 {
					text = strings.Repeat(text, 500)
				}
				poll = append(poll, n, text)
				want = append(want, text)
			}
			w.emit(poll...)
		}
		w.end()
		for i, m := range w.sink.got {
			if string(m.Payload) != want[i] {
				t.Fatalf("message %d is %q, want %q", i, m.Payload, want[i])
			}
		}
		if len(w.sink.got) != len(want) {
			t.Errorf("%d messages, want %d", len(w.sink.got), len(want))
		}
	})
}

// Numbers go up by one for each message of a topic, and never back, not even
// after a restart.
func TestSeq(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rule := config.Rule{Points: []string{"*"}, Topic: "{point}", Fields: []config.Field{config.FieldSeq}, When: config.When{Each: true}}
		last := make(map[string]uint64)
		for boot := range 3 {
			w := start(t, []config.Rule{rule}, []config.Device{device(time.Second, "x", "y")})
			for range 5 {
				w.emit("x", "1", "y", "1")
				w.emit("y", "1")
			}
			w.end()
			first := make(map[string]bool)
			for _, m := range w.sink.got {
				_, text, _ := strings.Cut(string(m.Payload), `"seq":`)
				var n uint64
				fmt.Sscan(strings.TrimSuffix(text, "}"), &n)
				if !first[m.Topic] && boot > 0 && n <= last[m.Topic] || first[m.Topic] && n != last[m.Topic]+1 {
					t.Errorf("boot %d: %s went from %d to %d", boot, m.Topic, last[m.Topic], n)
				}
				first[m.Topic], last[m.Topic] = true, n
			}
			time.Sleep(time.Second)
		}
	})
}

// Ticks keep to the wall clock: whole multiples in UTC, whatever the moment of
// the start.
func TestTicksAreAligned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(7*time.Minute + 13*time.Second)
		w := start(t, []config.Rule{{Points: []string{"*"}, Topic: "t", Payload: config.Raw, Every: 15 * time.Minute}}, []config.Device{device(time.Second, "x")})
		w.emit("x", "1")
		time.Sleep(time.Hour)
		want := []string{"7m47s t 1", "22m47s t 1", "37m47s t 1", "52m47s t 1"}
		if got := w.end(); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// The clock may be set while the publisher runs: forward past a tick, or back.
func TestTickWhenTheClockIsSet(t *testing.T) {
	p := newPublisher(site, []config.Rule{{Points: []string{"*"}, Topic: "t", Payload: config.Raw, Every: time.Hour}}, []config.Device{device(time.Second, "x")}, nil, slog.New(slog.DiscardHandler))
	r := p.rules[0]
	p.units[0].read, p.units[0].known = reading{value: point.IntValue(1)}, true
	midnight := time.Date(2025, 11, 5, 0, 0, 0, 0, time.UTC)
	r.tick = midnight.Add(time.Hour)
	for _, c := range []struct {
		name string
		now  time.Time
		sent int
		tick time.Time
	}{
		{"before", midnight.Add(30 * time.Minute), 0, midnight.Add(time.Hour)},
		{"just before", midnight.Add(time.Hour - 1), 0, midnight.Add(time.Hour)},
		{"on time", midnight.Add(time.Hour), 1, midnight.Add(2 * time.Hour)},
		{"again at once", midnight.Add(time.Hour + 1), 0, midnight.Add(2 * time.Hour)},
		{"set back by a day", midnight.Add(-24*time.Hour + time.Minute), 0, midnight.Add(-23 * time.Hour)},
		{"set forward by two weeks", midnight.Add(14*24*time.Hour + time.Minute), 1, midnight.Add(14*24*time.Hour + time.Hour)},
		{"from then on", midnight.Add(14*24*time.Hour + time.Hour), 1, midnight.Add(14*24*time.Hour + 2*time.Hour)},
	} {
		p.out = p.out[:0]
		p.checkTick(c.now, 0, r)
		if len(p.out) != c.sent || !r.tick.Equal(c.tick) {
			t.Errorf("%s: %d messages, next at %v; want %d, %v", c.name, len(p.out), r.tick, c.sent, c.tick)
		}
	}
}

// How long the publisher may sleep.
func TestNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			name string
			rule config.Rule
			bad  bool // the second reading
			want time.Duration
		}{
			{"nothing to wait for", raw(config.When{AnyChange: true}), false, time.Hour},
			{"a timed rule looks at the wall clock", config.Rule{Points: []string{"*"}, Topic: "t", Every: 24 * time.Hour}, false, time.Minute},
			{"a heartbeat", raw(config.When{AnyChange: true, AtLeast: 64 * time.Second}), false, 64 * time.Second},
			{"a heartbeat of what is bad", raw(config.When{AnyChange: true, AtLeast: 64 * time.Second}), true, time.Hour},
			{"a heartbeat that a gap holds back", raw(config.When{AnyChange: true, AtLeast: 64 * time.Second, AtMost: time.Hour}), false, time.Second},
		} {
			p := newPublisher(site, []config.Rule{c.rule}, []config.Device{device(0, "x")}, nil, slog.New(slog.DiscardHandler))
			p.look(p.now(), &p.units[0], &point.Sample{ID: "d.x", Value: point.IntValue(1)})
			if c.bad {
				p.look(p.now(), &p.units[0], &point.Sample{ID: "d.x", Quality: point.Bad})
			}
			time.Sleep(64 * time.Second)
			p.wake(time.Now())
			if got := p.next(time.Now()); got != c.want {
				t.Errorf("%s: sleeps for %v, want %v", c.name, got, c.want)
			}
		}
	})
}

// Heartbeats of ten thousand points that are not read again: each in time, and
// few deliveries, which is few wake-ups.
func TestManyHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const atLeast = 5 * time.Minute
		devices := plant(100, 100)
		for i := range devices {
			for j := range devices[i].Points {
				devices[i].Points[j].Every = point.Once
			}
		}
		rule := config.Rule{Points: []string{"*"}, Topic: "{device}/{point}", Payload: config.Raw, When: config.When{AnyChange: true, AtLeast: atLeast}}
		w := start(t, []config.Rule{rule}, devices)
		r := rand.New(rand.NewPCG(1, 2))
		for _, d := range devices { // a hundred moments within five minutes
			var batch []point.Sample
			for _, p := range d.Points {
				batch = append(batch, point.Sample{ID: p.ID, Value: point.IntValue(1)})
			}
			time.Sleep(time.Duration(r.Int64N(int64(atLeast / 50))))
			w.line.Emit(batch)
			synctest.Wait()
		}
		w.sink.mu.Lock()
		w.sink.calls = 0
		w.sink.mu.Unlock()
		time.Sleep(time.Hour)
		w.end()
		last := make(map[string]time.Duration)
		for _, m := range w.sink.got {
			if before, ok := last[m.Topic]; ok && m.at-before > atLeast+time.Millisecond {
				t.Fatalf("%s: %v between two messages", m.Topic, m.at-before)
			}
			last[m.Topic] = m.at
		}
		if len(last) != 10000 {
			t.Errorf("%d topics, want 10000", len(last))
		}
		// Twelve rounds of at most 64 slots, and ten steps of 1024 messages.
		if max := 12 * (64 + 10); w.sink.calls > max {
			t.Errorf("%d deliveries in an hour, want at most %d", w.sink.calls, max)
		}
	})
}

// What was published last is never further from what was read last than the
// band, and nothing is published that is not.
func TestBandHidesNoMoreThanTheBand(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mant, exp, percent := rapid.Int64Range(1, 50).Draw(t, "width"), int8(rapid.IntRange(-3, 1).Draw(t, "exp")), rapid.Bool().Draw(t, "percent")
		band := point.Decimal{Mant: mant, Exp: exp}
		gap := time.Duration(rapid.IntRange(0, 3).Draw(t, "gap")) * time.Second
		payload := rapid.SampledFrom([]config.Payload{config.Raw, config.Batch}).Draw(t, "payload")
		rule := config.Rule{Points: []string{"*"}, Topic: "{device}", Payload: payload, When: config.When{Band: band, Percent: percent, AtMost: gap}}
		p := newPublisher(site, []config.Rule{rule}, []config.Device{device(time.Second, "x")}, nil, slog.New(slog.DiscardHandler))
		line := pipeline.New()
		feed := line.Subscribe("p", 1)

		var published point.Value
		var when moment
		value := int64(rapid.IntRange(-1000, 1000).Draw(t, "start"))
		for step := range rapid.IntRange(1, 60).Draw(t, "steps") {
			now := time.Duration(step) * 700 * time.Millisecond
			value += int64(rapid.IntRange(-60, 60).Draw(t, "by"))
			read := point.DecimalValue(point.Decimal{Mant: value, Exp: -2})
			line.Emit([]point.Sample{{ID: "d.x", Value: read}})
			p.out = p.out[:0]
			p.wake(p.start.Add(now))
			woken := len(p.out)
			p.take(now, <-feed.C())
			if len(p.out) > 1 && gap > 0 {
				t.Fatalf("step %d: two messages at once", step)
			}
			if len(p.out) > 0 {
				if published != (point.Value{}) && gap > 0 && now-when < gap {
					t.Fatalf("step %d: messages %v apart, gap %v", step, now-when, gap)
				}
				if woken == 0 && published != (point.Value{}) && !beyond(read, published, band, percent) {
					t.Fatalf("step %d: %v published again as %v", step, published, read)
				}
				published, when = p.units[0].said, now
			}
			if gap == 0 || now-when >= gap {
				if beyond(read, published, band, percent) {
					diff := new(big.Rat).Sub(rat(read), rat(published))
					t.Fatalf("step %d: %v hidden behind %v, %s apart", step, read, published, diff.FloatString(3))
				}
			}
		}
	})
}
