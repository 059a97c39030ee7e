package gateway

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"fieldgate/internal/alarm"
	"fieldgate/internal/clock"
	"fieldgate/internal/config"
	"fieldgate/internal/health"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
	"fieldgate/internal/queue"
)

// Times of the alarms that the gateway raises itself.
const (
	alarmHold = time.Minute      // a condition is over that long before its alarm is
	alarmLook = 10 * time.Second // how often conditions are looked at that nobody tells of
)

// A certificate is spoken of at these days left. It must get a day more for the
// alarm to be over, so that the clock alone clears nothing.
const (
	certMonth = 30
	certWeek  = 7
)

// ofQueue is the alarms that are over when a queue says so.
var ofQueue = []string{queue.Full, queue.Expired, queue.Damaged, queue.FileFault}

// siren raises the alarms of the gateway itself and publishes their changes.
type siren struct {
	gateway *Gateway
	board   *alarm.Board
	say     func(context.Context, mqtt.Message)
	news    chan struct{} // holds one token when there may be something to say
	beat    health.Beat
}

func newSiren(g *Gateway) *siren {
	s := &siren{gateway: g, board: alarm.New(alarmHold), news: make(chan struct{}, 1)}
	s.say = s.urgent
	return s
}

// reload takes note that the assembly next is in the place of was: what a
// configuration itself is an alarm for is raised as long as it is what it is, and
// an uplink that is gone has no alarms, and a queue that is gone none of its own.
func (s *siren) reload(was, next *assembly) {
	now := time.Now()
	for _, w := range next.ways {
		urls := w.cfg.Unencrypted()
		s.hold(now, len(urls) > 0, alarm.Condition{
			Name: "unencrypted." + w.name, Severity: alarm.Warning,
			Reason: strings.Join(urls, ", ") + ": anyone on the way can read and change what is sent",
		})
		s.hold(now, w.cfg.TLS.Insecure, alarm.Condition{
			Name: "insecure." + w.name, Severity: alarm.Warning,
			Reason: "the broker's certificate is not checked, so anyone on the way can be the broker",
		})
	}
	for _, w := range was.ways {
		another := next.way(w.name).queue
		if another == w.queue {
			continue
		}
		for _, a := range s.board.All() {
			// Nobody would say that they are over. The queue in its place says what is so still.
			if kind, of, _ := strings.Cut(a.Name, "."); of == w.name && (another == nil || slices.Contains(ofQueue, kind)) {
				s.board.Clear(now, a.Name, a.Value)
			}
		}
	}
	s.look(now)
	s.wake()
}

// alarmTopic is where alarms are published, but for the severity.
func alarmTopic(site config.Site) string { return site.ID + "/alarms/" }

// queueEvent takes an event of the queue of an uplink.
func (s *siren) queueEvent(uplink string, e queue.Event) {
	c := alarm.Condition{Name: e.Kind + "." + uplink, Severity: alarm.Critical}
	switch e.Kind {
	case queue.Full:
		c.Reason = "the queue is full, messages are lost"
	case queue.Expired:
		c.Reason = "messages are older than max_age and are lost"
	case queue.Damaged:
		c.Reason = "messages in the queue's file cannot be read and are lost"
	case queue.FileFault:
		c.Severity, c.Reason = alarm.Warning, "the queue's file takes nothing, messages stay in memory: "+e.Reason
	case queue.PutAside:
		c.Reason = fmt.Sprintf("the queue's file was damaged, what was in it is lost: %s; it is now %s", e.Reason, e.File)
	}
	if e.Lost > 0 {
		c.Value = point.IntValue(int64(e.Lost))
	}
	if e.Over {
		s.board.Clear(time.Now(), c.Name, c.Value)
	} else {
		s.board.Raise(time.Now(), c)
	}
	s.wake()
}

func (s *siren) wake() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// look holds what nobody tells of against the board.
func (s *siren) look(now time.Time) {
	g, at := s.gateway, s.gateway.now.Load()
	s.hold(now, g.clock.State() == clock.Unset, alarm.Condition{
		Name: "clock_unsynced", Severity: alarm.Warning,
		Reason: "the clock has not been set, times may be wrong",
	})
	fault := ""
	if b := at.broker.Broker; b != nil {
		fault = b.Stats().StoreError
	}
	s.hold(now, fault != "", alarm.Condition{
		Name: "broker_store", Severity: alarm.Warning,
		Reason: "sessions and retained messages of the broker are in memory only: " + fault,
	})
	if at.audit != nil {
		at.audit.Again()
		a := at.audit.Stats()
		s.hold(now, a.Fault != "", alarm.Condition{
			Name: "audit_disk", Severity: alarm.Critical,
			Reason: "who writes what cannot be recorded, so writes are refused: " + a.Fault,
		})
		s.hold(now, a.Suspect != "", alarm.Condition{
			Name: "audit_suspect", Severity: alarm.Critical,
			Reason: "the record of who wrote what is not as it was written: " + a.Suspect,
		})
	}
	fault = g.plant.virtual.Status().Fault
	s.hold(now, fault != "", alarm.Condition{
		Name: "kept_values", Severity: alarm.Warning,
		Reason: "values of virtual points are not saved: " + fault,
	})
	for _, w := range at.ways {
		refused := w.uplink.Status().Unsubscribed
		c := alarm.Condition{Name: "subscription_refused." + w.name, Severity: alarm.Critical, Value: point.IntValue(int64(len(refused)))}
		if len(refused) > 0 {
			c.Reason = "what is sent there does not arrive here: " + refused[0].Err
		}
		s.hold(now, len(refused) > 0, c)
	}
	if g.clock.State() == clock.Unset {
		return // no day is known, so no days left either
	}
	for _, w := range at.ways {
		cert, days, ok := w.uplink.Status().CertDaysLeft(g.clock.Day(now))
		if !ok {
			continue // not connected yet, or without TLS
		}
		s.certificate(now, w.name, days, fmt.Sprintf("the certificate of the %s (%s) ends on %s; renew it", cert.Whose, cert.Subject, cert.NotAfter.UTC().Format(time.DateOnly)))
	}
}

// certificate takes the days left of the certificate of an uplink that ends
// first.
func (s *siren) certificate(now time.Time, uplink string, days int, reason string) {
	for _, a := range []struct {
		days     int
		severity alarm.Severity
	}{{certMonth, alarm.Warning}, {certWeek, alarm.Critical}} {
		name, value := fmt.Sprintf("certificate_%d_days.%s", a.days, uplink), point.IntValue(int64(days))
		switch {
		case days < a.days:
			s.board.Raise(now, alarm.Condition{Name: name, Severity: a.severity, Value: value, Reason: reason})
		case days > a.days:
			s.board.Clear(now, name, value)
		}
	}
}

func (s *siren) hold(now time.Time, is bool, c alarm.Condition) {
	if is {
		s.board.Raise(now, c)
	} else {
		s.board.Clear(now, c.Name, c.Value)
	}
}

// run publishes the changes of alarms until ctx ends.
func (s *siren) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer s.beat.Stops()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.news:
		case <-timer.C:
		}
		s.beat.Works()
		next := s.step(ctx, time.Now())
		timer.Reset(next)
		s.beat.Rests(next)
	}
}

// step looks, publishes what has changed, and returns when to do so again.
func (s *siren) step(ctx context.Context, now time.Time) time.Duration {
	s.look(now)
	changed, next := s.board.Step(now)
	for _, a := range changed {
		s.publish(ctx, a)
	}
	if next == 0 || next > alarmLook {
		return alarmLook
	}
	return next
}

// publish says a change of an alarm, in the log too.
func (s *siren) publish(ctx context.Context, a alarm.Alarm) {
	g := s.gateway
	if a.Raised {
		g.log.Warn("alarm raised", "alarm", a.Name, "severity", a.Severity.String(), "value", a.Value.String(), "reason", a.Reason)
	} else {
		g.log.Info("alarm cleared", "alarm", a.Name, "value", a.Value.String())
	}
	s.say(ctx, g.dated(mqtt.Message{
		Topic: g.now.Load().alarms + a.Severity.String(), QoS: 1,
		Payload: a.Payload(point.Timestamp(g.clock.Day(a.Since))),
	}))
}

// urgent sends m everywhere; the queues of the uplinks write it to their files
// at once.
func (s *siren) urgent(ctx context.Context, m mqtt.Message) {
	for name := range s.gateway.now.Load().told {
		if err := s.gateway.deliver(ctx, name, m, (*queue.Queue).DeliverNow); err != nil {
			s.gateway.log.Debug("alarm not delivered", "to", name, "topic", m.Topic, "err", err)
		}
	}
}

// AlarmStatus is an alarm that is raised.
type AlarmStatus struct {
	Name     string  `json:"alarm"`
	Severity string  `json:"severity"`
	Reason   string  `json:"reason,omitempty"`
	Since    *string `json:"since"`
}

// status returns the alarms that are raised.
func (s *siren) status() []AlarmStatus {
	raised := []AlarmStatus{}
	for _, a := range s.board.All() {
		if a.Raised {
			raised = append(raised, AlarmStatus{a.Name, a.Severity.String(), a.Reason, timestamp(s.gateway.clock, a.Since)})
		}
	}
	return raised
}
