package uplink

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/queue"
	"fieldgate/test/testlog"
)

// patience is how long a test waits for what should come at once.
const patience = 30 * time.Second

// settings are those of an uplink to url.
func settings(urls ...string) config.Uplink {
	return config.Uplink{
		Name:           "cloud",
		URLs:           urls,
		ClientID:       "gw1-cloud",
		Keepalive:      60 * time.Second,
		ConnectTimeout: 5 * time.Second,
		CleanSession:   true,
	}
}

// rig is an uplink that runs, with its queue.
type rig struct {
	*Uplink
	q    *queue.Queue
	log  *testlog.Log
	stop func() // ends Run and waits for it
}

var (
	offline = mqtt.Message{Topic: "fieldgate/gw1/state", Payload: []byte("offline"), QoS: 1, Retain: true}
	online  = mqtt.Message{Topic: "fieldgate/gw1/state", Payload: []byte("online"), QoS: 1, Retain: true}
)

// run starts an uplink; change may alter it before. It is stopped with the test.
func run(t testing.TB, cfg config.Uplink, change func(*Uplink)) *rig {
	t.Helper()
	return runIn(t, "", cfg, change)
}

// runIn is run with the queue's file in dir.
func runIn(t testing.TB, dir string, cfg config.Uplink, change func(*Uplink)) *rig {
	t.Helper()
	r := &rig{log: &testlog.Log{}}
	log := slog.New(slog.NewTextHandler(r.log, nil))
	q, err := queue.Open(dir, cfg.Name, cfg.Queue, log)
	if err != nil {
		t.Fatal(err)
	}
	r.q = q
	keeping, keep := context.WithCancel(context.Background())
	var keeper sync.WaitGroup
	keeper.Go(func() { _ = q.Run(keeping) }) // ended by stop
	r.Uplink = New(cfg, q, offline, online, nil, log)
	if change != nil {
		change(r.Uplink)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { // ended by stop
		defer close(ended)
		if err := r.Run(ctx); err != nil {
			t.Errorf("Run = %v", err)
		}
	}()
	r.stop = func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("Run does not return")
		}
		keep()
		keeper.Wait()
	}
	t.Cleanup(func() {
		r.stop()
		_ = q.Close()
		if t.Failed() {
			t.Logf("queue %+v, status %+v, log:\n%s", r.q.Stats(), r.Status(), r.log)
		}
	})
	return r
}

// subscribe gives an uplink that does not run yet its subscriptions.
func subscribe(u *Uplink, subs ...Subscription) {
	u.subs.Store(&subs)
	u.subscriber = newSubscriber(subs, u.log, u.setUnsubscribed)
}

// publish puts messages n to m-1 into the queue, numbered, over three topics.
func (r *rig) publish(t testing.TB, n, m int, qos uint8) {
	t.Helper()
	for i := n; i < m; i++ {
		err := r.q.Deliver(t.Context(), mqtt.Message{Topic: fmt.Sprintf("gw1/p%d", i%3), Payload: []byte(strconv.Itoa(i)), QoS: qos})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (r *rig) connected(t testing.TB) {
	t.Helper()
	eventually(t, "connected", func() bool { return r.Status().Connected })
}

func (r *rig) drained(t testing.TB) {
	t.Helper()
	eventually(t, "queue empty", func() bool { return r.q.Stats().Messages == 0 })
}

// listen opens a port for a test's own peer and closes it with the test.
func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// x509Certificate keeps the tables of tests short.
type x509Certificate = x509.Certificate

// loopback is the address that test brokers listen on.
var loopback = []net.IP{net.IPv4(127, 0, 0, 1)}

// webServer runs a web server that is no broker and returns its address.
func webServer(t testing.TB) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) })
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}
