// Package sinktest is the contract of mqtt.Sink as one test suite, run by
// every package that has a Sink.
package sinktest

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/mqtt"
)

// Patience is how long Peer.Received waits for messages before it fails the
// test; a sink delivers to its other end well within it.
const Patience = 10 * time.Second

// Peer is one Sink with its other end in view.
type Peer struct {
	Sink mqtt.Sink

	// Received waits until n messages have come out of the other end since the
	// last call, and returns them in order. It fails the test after Patience.
	Received func(t *testing.T, n int) []mqtt.Message

	// Close shuts the sink down; after it Deliver must fail. Nil leaves that
	// part of the contract to the package itself.
	Close func() error

	// KeepsFlags says that QoS and Retain can be seen at the other end as they
	// were delivered. A broker's subscribers do not see Retain (clause 3.3.1.3).
	KeepsFlags bool
}

// Run holds a Sink to its contract. open makes a fresh one for each part and
// registers its own cleanup with t. Topics used are all below "sinktest/".
func Run(t *testing.T, open func(t *testing.T) Peer) {
	t.Run("order and bytes are kept", func(t *testing.T) {
		p := open(t)
		var want []mqtt.Message
		for i := range 500 {
			want = append(want, mqtt.Message{
				Topic:   fmt.Sprintf("sinktest/order/%d", i%7),
				Payload: bytes.Repeat([]byte{byte(i), 0, 0xFF}, i%50),
				QoS:     uint8(i % 2),
			})
		}
		for rest := want; len(rest) > 0; {
			n := min(1+len(rest)%13, len(rest))
			deliver(t, p, rest[:n]...)
			rest = rest[n:]
		}
		same(t, p, p.Received(t, len(want)), want)
	})

	t.Run("flags", func(t *testing.T) {
		p := open(t)
		var want []mqtt.Message
		for qos := range uint8(3) {
			for _, retain := range []bool{false, true} {
				want = append(want, mqtt.Message{Topic: "sinktest/flags", Payload: []byte{qos}, QoS: qos, Retain: retain})
			}
		}
		deliver(t, p, want...)
		same(t, p, p.Received(t, len(want)), want)
	})

	t.Run("messages and payloads are the caller's again", func(t *testing.T) {
		p := open(t)
		var want []mqtt.Message
		buf := make([]byte, 4)
		msgs := make([]mqtt.Message, 2)
		for i := range 100 {
			for k := range msgs {
				payload := buf[2*k : 2*k+2]
				payload[0], payload[1] = byte(i), byte(k)
				msgs[k] = mqtt.Message{Topic: fmt.Sprintf("sinktest/again/%d", k), Payload: payload, QoS: uint8(k), Retain: i%10 == 0}
				m := msgs[k]
				m.Payload = bytes.Clone(payload)
				want = append(want, m)
			}
			deliver(t, p, msgs...)
			clear(msgs)
			clear(buf)
		}
		same(t, p, p.Received(t, len(want)), want)
	})

	t.Run("nothing to deliver", func(t *testing.T) {
		p := open(t)
		deliver(t, p)
		one := mqtt.Message{Topic: "sinktest/one"}
		deliver(t, p, one)
		same(t, p, p.Received(t, 1), []mqtt.Message{one})
	})

	t.Run("an invalid message is named and the others taken", func(t *testing.T) {
		p := open(t)
		good := []mqtt.Message{{Topic: "sinktest/good", Payload: []byte("1")}, {Topic: "sinktest/good", Payload: []byte("2")}}
		for _, bad := range []mqtt.Message{
			{Topic: ""},
			{Topic: "sinktest/+"},
			{Topic: "sinktest/#"},
			{Topic: "sinktest/\x00"},
			{Topic: "sinktest/\xff"},
			{Topic: "sinktest/qos", QoS: 3},
		} {
			err := p.Sink.Deliver(t.Context(), good[0], bad, good[1])
			if !errors.Is(err, mqtt.ErrInvalid) {
				t.Errorf("Deliver with %+v among others = %v, want an error that wraps mqtt.ErrInvalid", bad, err)
			}
			same(t, p, p.Received(t, 2), good)
		}
	})

	t.Run("several goroutines", func(t *testing.T) {
		p := open(t)
		const writers, each = 8, 100
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					err := p.Sink.Deliver(t.Context(), mqtt.Message{Topic: fmt.Sprintf("sinktest/w%d", w), Payload: []byte{byte(i)}})
					if err != nil {
						t.Errorf("Deliver = %v", err)
						return
					}
				}
			})
		}
		wg.Wait()
		next := map[string]byte{}
		for _, m := range p.Received(t, writers*each) {
			if len(m.Payload) != 1 || m.Payload[0] != next[m.Topic] {
				t.Fatalf("%s: got payload %v, want [%d]: order of one caller is not kept", m.Topic, m.Payload, next[m.Topic])
			}
			next[m.Topic]++
		}
	})

	t.Run("nobody at the other end does not hold it up", func(t *testing.T) {
		p := open(t)
		start := time.Now()
		for i := range 2000 {
			deliver(t, p, mqtt.Message{Topic: "sinktest/flood", Payload: []byte(fmt.Sprint(i)), QoS: 1})
		}
		if d := time.Since(start); d > Patience/2 {
			t.Errorf("2000 messages took %v", d)
		}
	})

	t.Run("closed", func(t *testing.T) {
		p := open(t)
		if p.Close == nil {
			return
		}
		if err := p.Close(); err != nil {
			t.Fatalf("Close = %v", err)
		}
		if err := p.Sink.Deliver(t.Context(), mqtt.Message{Topic: "sinktest/late"}); err == nil {
			t.Error("Deliver after Close = nil, want an error")
		}
	})
}

func deliver(t *testing.T, p Peer, msgs ...mqtt.Message) {
	t.Helper()
	if err := p.Sink.Deliver(t.Context(), msgs...); err != nil {
		t.Fatalf("Deliver(%d messages) = %v", len(msgs), err)
	}
}

// same compares got with want, without the flags unless the peer keeps them.
func same(t *testing.T, p Peer, got, want []mqtt.Message) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("got %d messages, want %d", len(got), len(want))
	}
	for i := range got {
		g, w := got[i], want[i]
		if !p.KeepsFlags {
			w.QoS, w.Retain = g.QoS, g.Retain
		}
		if g.Topic != w.Topic || !bytes.Equal(g.Payload, w.Payload) || g.QoS != w.QoS || g.Retain != w.Retain {
			t.Fatalf("message %d: got %+v, want %+v", i, g, w)
		}
	}
}
