package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"fieldgate/internal/mqtt"
)

// Limits of subscribing.
const (
	// askWidth is how many SUBSCRIBE packets are sent ahead of their answers: a
	// link of 300 ms makes fifty filters 15 s one by one.
	askWidth = 16
	// askAgain is how long a filter that the broker refused rests on a connection
	// that lasts. The next connection asks for it anyway.
	askAgain = 15 * time.Minute
	// askHangups is how many connections a filter may cost.
	askHangups = 3
)

// Subscription is messages that an uplink asks its broker for. It subscribes on
// each connection, before it publishes anything.
type Subscription struct {
	Filter mqtt.Filter
	QoS    uint8        // the highest that they come with
	Handle mqtt.Handler // given each message whose topic Filter matches

	// TooLong is given, in the place of Handle, one whose packet is longer than is
	// taken: without its payload, and how many bytes that had. Nil: nobody answers it.
	TooLong func(m mqtt.Message, length int, from mqtt.Origin)
}

// Unsubscribed is a filter that the broker does not serve.
type Unsubscribed struct {
	Filter mqtt.Filter // as it was asked for
	Err    string      // why, and what to do
}

// asked is one filter and how the broker takes it.
type asked struct {
	filter  mqtt.Filter
	qos     uint8
	err     string    // why it is not served, "" if it is or was never asked for
	hangups int       // connections in a row that ended over it
	until   time.Time // not asked for before
}

// subscriber asks for the filters of an uplink. A filter that is refused never
// ends the connection, and what the broker answers to one says nothing of the
// others.
type subscriber struct {
	log     *slog.Logger
	filters []*asked
	gone    []mqtt.Filter // no longer wanted, but the broker may still send
	alone   bool          // ask for one at a time: the broker hangs up over one of them

	publish func([]Unsubscribed) // told what is not served, whenever that changes
}

// newSubscriber merges what asks for the same filter: the broker would send
// what it retains once for each.
func newSubscriber(subs []Subscription, log *slog.Logger, publish func([]Unsubscribed)) *subscriber {
	s := &subscriber{log: log, publish: publish}
	s.adopt(subs)
	return s
}

// adopt makes the filters those of subs, and returns those that are to be asked
// for: new ones, and those that shall come with more than before.
func (s *subscriber) adopt(subs []Subscription) (fresh []*asked) {
	before := s.filters
	s.filters = nil
	for _, sub := range subs {
		i := slices.IndexFunc(s.filters, func(a *asked) bool { return a.filter == sub.Filter })
		if i < 0 {
			i = len(s.filters)
			s.filters = append(s.filters, &asked{filter: sub.Filter})
		}
		s.filters[i].qos = max(s.filters[i].qos, sub.QoS)
	}
	for i, a := range s.filters {
		j := slices.IndexFunc(before, func(b *asked) bool { return b.filter == a.filter })
		if j >= 0 && before[j].qos == a.qos {
			s.filters[i] = before[j]
		} else {
			fresh = append(fresh, a)
		}
		s.gone = slices.DeleteFunc(s.gone, func(f mqtt.Filter) bool { return f == a.filter })
	}
	for _, b := range before {
		if !slices.ContainsFunc(s.filters, func(a *asked) bool { return a.filter == b.filter }) {
			s.gone = append(s.gone, b.filter)
		}
	}
	return fresh
}

// all asks for every filter of subs and waits for the answers, for at most
// patience. An error is that of the connection, or ctx's.
func (s *subscriber) all(ctx context.Context, c *Conn, subs []Subscription, patience time.Duration) error {
	s.adopt(subs)
	s.tell()
	return s.ask(ctx, c, s.filters, patience)
}

// again asks, now and then until ctx or c ends, for what was refused; and when
// there are other subscriptions, for those that are new.
func (s *subscriber) again(ctx context.Context, c *Conn, changed <-chan struct{}, subs func() []Subscription, patience time.Duration) {
	rest := time.NewTicker(askAgain)
	defer rest.Stop()
	for {
		s.giveBack(ctx, c, patience)
		select {
		case <-rest.C:
		case <-changed:
			fresh := s.adopt(subs())
			s.tell()
			if s.ask(ctx, c, fresh, patience) != nil {
				return
			}
			continue
		case <-c.Lost():
			return
		case <-ctx.Done():
			return
		}
		var refused []*asked
		for _, a := range s.filters {
			if a.err != "" {
				refused = append(refused, a)
			}
		}
		if s.ask(ctx, c, refused, patience) != nil {
			return
		}
	}
}

// giveBack has the broker send no more of what is not wanted.
func (s *subscriber) giveBack(ctx context.Context, c *Conn, patience time.Duration) {
	limit, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for len(s.gone) > 0 && c.unsubscribe(limit, s.gone[0]) == nil {
		s.gone = s.gone[1:]
	}
}

func (s *subscriber) ask(ctx context.Context, c *Conn, filters []*asked, patience time.Duration) error {
	now := time.Now()
	due := make([]*asked, 0, len(filters))
	for _, a := range filters {
		if !now.Before(a.until) {
			due = append(due, a)
		}
	}
	width := askWidth
	if s.alone {
		width = 1
	}
	for some := range slices.Chunk(due, width) {
		limit, cancel := context.WithTimeout(ctx, patience)
		err := s.some(limit, c, some)
		cancel()
		if err != nil {
			return s.ended(some, err)
		}
	}
	s.alone = false
	return nil
}

// some asks for a few filters at once.
func (s *subscriber) some(ctx context.Context, c *Conn, some []*asked) error {
	answers := make([]func(context.Context) (uint8, error), len(some))
	for i, a := range some {
		answers[i] = c.ask(a.filter, a.qos)
	}
	for i, a := range some {
		_, err := answers[i](ctx)
		var fault *Fault
		switch {
		case err == nil:
			s.granted(a)
		case errors.Is(err, context.DeadlineExceeded):
			s.refused(a, (&Fault{Step: StepSession, Text: fmt.Sprintf("the broker does not answer the subscription to %s", a.filter), Remedy: "look at its log and its load"}).Error())
		case errors.As(err, &fault) && c.wire.cause() == nil:
			s.refused(a, fault.Error())
		default:
			return err
		}
	}
	return nil
}

// ended notes that the connection has, while the broker had some to answer.
func (s *subscriber) ended(some []*asked, err error) error {
	if !isHangup(err) {
		return err
	}
	if len(some) > 1 {
		s.alone = true
	} else if a := some[0]; a.hangups < askHangups-1 {
		a.hangups++
	} else {
		a.hangups, a.until = 0, time.Now().Add(topicBan)
		s.refused(a, (&Fault{Step: StepSession, Text: fmt.Sprintf("the broker closes the connection over the subscription to %s", a.filter), Remedy: "check its access rules and limits"}).Error())
	}
	fault := *sessionFault(err)
	fault.Refused = true // the broker let us in and gave us nothing
	return &fault
}

func (s *subscriber) granted(a *asked) {
	a.hangups = 0
	if a.err == "" {
		return
	}
	a.err = ""
	s.log.Info("subscribed after all", "filter", string(a.filter))
	s.tell()
}

func (s *subscriber) refused(a *asked, why string) {
	if a.err == why {
		return
	}
	a.err = why
	s.log.Warn("not subscribed, its messages do not come", "filter", string(a.filter), "err", why)
	s.tell()
}

func (s *subscriber) tell() {
	var out []Unsubscribed
	for _, a := range s.filters {
		if a.err != "" {
			out = append(out, Unsubscribed{Filter: a.filter, Err: a.err})
		}
	}
	s.publish(out)
}
