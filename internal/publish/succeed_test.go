package publish

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
)

// succeed puts another Publisher in place of the one at work, as a reload does.
func (w *works) succeed(rules []config.Rule, devices []config.Device, sinks map[string]mqtt.Sink) {
	old, feed := w.pub, w.feed
	w.feed = feed.Succeed()
	w.pub = newPublisher(site, rules, devices, sinks, slog.New(slog.NewTextHandler(io.Discard, nil)))
	w.pub.Succeed(old, w.line)
	if err := <-w.ended; err != nil { // its feed has ended
		w.t.Errorf("Run: %v", err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	w.stop = cancel
	pub, next := w.pub, w.feed
	go func() { w.ended <- pub.Run(ctx, next) }() // ends with cancel
	synctest.Wait()
}

// What a rule has said and knows stays so over a reload: nothing is said again
// but what is new, a heartbeat goes on, numbers rise.
func TestSucceed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		change := raw(config.When{AnyChange: true, AtLeast: 10 * time.Second})
		devices := []config.Device{device(0, "x", "y")}
		w := start(t, []config.Rule{change}, devices)
		sinks := map[string]mqtt.Sink{"cloud": w.sink}
		w.emit("x", "1", "y", "2")
		time.Sleep(time.Second)
		w.succeed([]config.Rule{change}, devices, sinks)
		w.succeed([]config.Rule{change}, devices, sinks) // which has not seen a sample
		w.emit("x", "1", "y", "3")
		time.Sleep(time.Second)
		// Another rule says its points at once, and another one nothing again.
		each := config.Rule{Points: []string{"d.y"}, Topic: "other/{point}", Payload: config.JSON, Fields: []config.Field{config.FieldSeq}, When: config.When{AnyChange: true}}
		w.succeed([]config.Rule{change, each}, devices, sinks)
		time.Sleep(8500 * time.Millisecond)
		synctest.Wait()
		// An uplink that is new is told, and the others once more.
		sinks["second"] = &recorder{start: time.Now()}
		w.succeed([]config.Rule{change}, devices[:1], sinks)
		got := w.end()
		got = slices.DeleteFunc(got, func(s string) bool { return strings.Contains(s, "other/") })
		want := []string{"0s x 1", "0s y 2", "1s y 3", "10s x 1", "10.5s x 1", "10.5s y 3"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		var other []string
		for _, m := range w.sink.got {
			if m.Topic == "other/y" {
				other = append(other, string(m.Payload))
			}
		}
		var first struct {
			Value int
			Seq   uint64
		}
		if len(other) != 1 || json.Unmarshal([]byte(other[0]), &first) != nil || first.Value != 3 {
			t.Errorf("the new rule says %q", other)
		}
		if s := w.pub.Stats(); s.Messages != 7 || s.Samples != 4 {
			t.Errorf("Stats: %+v", s)
		}
	})
}

// Numbers of a topic rise by one, and those of a new topic begin above all.
func TestNumbersGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rule := func(topic string) config.Rule {
			return config.Rule{Points: []string{"*"}, Topic: topic, Fields: []config.Field{config.FieldSeq}, When: config.When{Each: true}}
		}
		devices := []config.Device{device(time.Second, "x")}
		w := start(t, []config.Rule{rule("a")}, devices)
		w.emit("x", "1")
		w.emit("x", "2")
		w.succeed([]config.Rule{rule("a")}, devices, map[string]mqtt.Sink{"cloud": w.sink})
		w.emit("x", "3")
		w.succeed([]config.Rule{rule("b")}, devices, map[string]mqtt.Sink{"cloud": w.sink})
		w.end()
		var last uint64
		for i, m := range w.sink.got {
			var v struct{ Seq uint64 }
			if err := json.Unmarshal(m.Payload, &v); err != nil {
				t.Fatal(err)
			}
			if i > 0 && v.Seq != last+1 {
				t.Errorf("message %d has the number %d, the one before %d", i, v.Seq, last)
			}
			last = v.Seq
		}
		if len(w.sink.got) != 4 {
			t.Errorf("%d messages", len(w.sink.got))
		}
	})
}
