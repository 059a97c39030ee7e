package broker

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"fieldgate/internal/config"
	"fieldgate/internal/flash"
	"fieldgate/internal/mqtt"
	"fieldgate/test/testlog"
)

func kept() config.Broker {
	cfg := everybody()
	cfg.Persist = true
	return cfg
}

// What is kept is there again after a restart: sessions with their
// subscriptions, what waits for them in its order, retained messages.
func TestRestart(t *testing.T) {
	for _, version := range []byte{4, 5} {
		t.Run(fmt.Sprint("MQTT ", version), func(t *testing.T) {
			dir := t.TempDir()
			b := run(t, kept(), dir)
			p := connect(t, b.addr(), hello{id: "kept", version: version, keep: true})
			p.subscribe(2, "q/#", "$share/g/s")
			connect(t, b.addr(), hello{id: "clean", version: version}).subscribe(1, "q/#")
			pub := connect(t, b.addr(), hello{id: "pub"})
			pub.publish("r/client", "1", 1, true)
			pub.publish("r/cleared", "1", 1, true)
			pub.publish("r/cleared", "", 1, true)
			b.deliver(t, "r/ours", "2", 0, true)
			b.deliver(t, "q/0", "not acknowledged", 1, false)
			if r := p.parse(p.read()); r.topic != "q/0" {
				t.Fatalf("got %v", r)
			}
			b.deliver(t, "q/1", "half way", 2, false)
			half := p.parse(p.read())
			p.ack(0x50, half.id)
			if head, _ := p.read(); head != 0x62 {
				t.Fatal("no PUBREL")
			}
			_ = p.conn.Close()
			wait(t, "it has gone", func() bool { return b.Stats().Clients == 2 })
			for i := 2; i < 60; i++ {
				b.deliver(t, fmt.Sprint("q/", i), strings.Repeat("x", i), uint8(1+i%2), false)
			}
			b.stop()

			b = run(t, kept(), dir)
			if st := b.Stats(); st.Sessions != 1 || st.Subscriptions != 2 || st.Retained < 2 || st.StoreError != "" || !st.Saved {
				t.Errorf("stats %+v", st)
			}
			p = connect(t, b.addr(), hello{id: "kept", version: version, keep: true})
			if !p.session {
				t.Error("no session")
			}
			for i := range 60 {
				head, body := p.read()
				if i == 1 { // the PUBREL of the one half way
					if head != 0x62 || int(body[0])<<8|int(body[1]) != int(half.id) {
						t.Fatalf("%#x % x instead of the PUBREL for %d", head, body, half.id)
					}
					p.ack(0x70, half.id)
					continue
				}
				r := p.parse(head, body)
				if r.topic != fmt.Sprint("q/", i) || !r.dup || i > 1 && len(r.payload) != i {
					t.Fatalf("message %d is %v", i, r)
				}
				if r.qos == 1 {
					p.ack(0x40, r.id)
				}
			}
			q := connect(t, b.addr(), hello{id: "q"})
			q.subscribe(1, "r/#")
			got := map[string]string{}
			for range 2 {
				r := q.take()
				got[r.topic] = r.payload
			}
			if want := map[string]string{"r/client": "1", "r/ours": "2"}; !maps.Equal(got, want) {
				t.Errorf("retained %v", got)
			}
			q.ping()
			if connect(t, b.addr(), hello{id: "clean"}).session {
				t.Error("a session that was not to be kept")
			}
		})
	}
}

// A QoS 2 message that a client began before the restart is not taken twice.
func TestRestartAmidQoS2(t *testing.T) {
	dir := t.TempDir()
	b := run(t, kept(), dir)
	p := connect(t, b.addr(), hello{id: "p", keep: true})
	p.publish("t", "once", 2, false)
	_ = p.conn.Close()
	b.stop()
	b = run(t, kept(), dir)
	s := connect(t, b.addr(), hello{id: "s"})
	s.subscribe(0, "t")
	p = connect(t, b.addr(), hello{id: "p", keep: true})
	for { // the PUBREC once more, by itself or as the answer
		head, _ := p.read()
		if head == 0x50 {
			break
		}
	}
	p.write(publishPacket(4, "t", "once", 2, false, 7))
	if head, _ := p.read(); head != 0x50 {
		t.Errorf("%#x instead of a PUBREC", head)
	}
	b.deliver(t, "t", "end", 0, false)
	if r := s.take(); r.payload != "end" {
		t.Errorf("got %v", r)
	}
}

// Who may no longer see something after a change of the configuration does not
// find it in the session.
func TestRestartWithOtherRights(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := plant()
	cfg.Persist = true
	b := run(t, cfg, dir)
	for _, u := range []string{"hmi", "all"} {
		p := connect(t, b.addr(), hello{id: u, keep: true, user: u, password: u + "'s"})
		p.subscribe(1, "plant/a", "plant/b")
		p.disconnect()
	}
	wait(t, "they have gone", func() bool { return b.Stats().Clients == 0 })
	b.deliver(t, "plant/a", "a", 1, false)
	b.deliver(t, "plant/b", "b", 1, false)
	b.stop()
	hmi := cfg.Users[0]
	hmi.Subscribe = []string{"plant/b"}
	cfg.Users = []config.User{hmi}
	for range 2 {
		b = run(t, cfg, dir)
		if st := b.Stats(); st.Sessions != 1 || st.Subscriptions != 1 {
			t.Errorf("stats %+v", st)
		}
		b.stop()
	}
	b = run(t, cfg, dir)
	p := connect(t, b.addr(), hello{id: "hmi", keep: true, user: "hmi", password: "hmi's"})
	if r := p.take(); r.topic != "plant/b" {
		t.Errorf("got %v", r)
	}
	p.ping()
}

// saved returns what is in the file of a broker that is not running.
func saved(t *testing.T, dir string) map[string]map[string][]byte {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(dir, storeFile), 0o600, boltOptions())
	if err != nil {
		t.Fatal(err)
	}
	all, bad, err := readAll(db, new(flash.Ledger))
	if err != nil || bad > 0 {
		t.Fatalf("%v, %d bad records", err, bad)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return all
}

// A power cut loses at most two ticks of what clients did; the file of that
// moment is good.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	dir, later := t.TempDir(), t.TempDir()
	b := run(t, kept(), dir)
	p := connect(t, b.addr(), hello{id: "p", keep: true})
	p.subscribe(1, "q")
	p.disconnect()
	pub := connect(t, b.addr(), hello{id: "pub"})
	pub.publish("q", "1", 1, true)
	time.Sleep(5 * testTimes().tick / 2) // the promise is about time
	cut, err := os.ReadFile(filepath.Join(dir, storeFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(later, storeFile), cut, 0o600); err != nil {
		t.Fatal(err)
	}
	b2 := run(t, kept(), later)
	p = connect(t, b2.addr(), hello{id: "p", keep: true})
	if r := p.take(); r.payload != "1" {
		t.Errorf("got %v", r)
	}
	p.subscribe(0, "q")
	if r := p.take(); r.payload != "1" || !r.retain {
		t.Errorf("got %v", r)
	}
}

// When nothing has changed, or only what the gateway itself retains, nothing is
// written: flash wears.
func TestNothingIsWritten(t *testing.T) {
	dir := t.TempDir()
	limits := usualTimes()
	limits.tick = time.Hour // save is called here only
	b := runTimes(t, kept(), dir, limits)
	p := connect(t, b.addr(), hello{id: "p", keep: true})
	p.subscribe(1, "#")
	p.ping()
	b.deliver(t, "t", "first", 1, true)
	p.take()
	p.ping()
	b.save(time.Now(), false)
	txid := func() int64 {
		st := b.store.db.Stats()
		return st.TxStats.GetWrite()
	}
	before := txid()
	for i := range 100 {
		b.deliver(t, "t", fmt.Sprint(i), 1, true)
		p.take()
		p.ping() // acknowledged: nothing waits
		b.save(time.Now(), false)
	}
	if got := txid(); got != before {
		t.Errorf("%d writes", got-before)
	}
	b.save(time.Now().Add(2*ownSave), false)
	if txid() == before {
		t.Error("the gateway's retained message is never written")
	}
	before = txid()
	b.deliver(t, "t", "100", 1, true)
	p.take()
	p.ping()
	b.save(time.Now().Add(time.Second), false)
	if txid() != before {
		t.Error("written at once")
	}
	b.stop()
	if all := saved(t, dir); len(all[retainedBucket]) != 1 || len(all[clientBucket]) != 1 || len(all[subBucket]) != 1 || len(all[inflightBucket]) != 0 {
		t.Errorf("the file holds %d %d %d %d", len(all[retainedBucket]), len(all[clientBucket]), len(all[subBucket]), len(all[inflightBucket]))
	}
}

func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run(t, kept(), dir)
	if _, err := Listen(kept(), dir, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("Listen = %v", err)
	}
	if _, err := Listen(kept(), filepath.Join(dir, "nowhere"), slog.New(slog.DiscardHandler)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Listen = %v", err)
	}
}

// filled makes a store with something in it and returns its bytes.
func filled(t testing.TB) []byte {
	t.Helper()
	dir := t.TempDir()
	s, err := openStore(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c := make(change)
		for i := range 200 {
			c.set(retainedBucket, fmt.Sprint("topic/", i), bytes.Repeat([]byte{byte(i)}, 100))
		}
		if err := s.commit(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, storeFile))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Whatever became of the file, the store opens: with all that is good in it, or
// anew with the damaged one moved aside.
func TestDamagedFile(t *testing.T) {
	good := filled(t)
	page := os.Getpagesize()
	damage := map[string]func(b []byte) []byte{
		"empty":              func([]byte) []byte { return nil },
		"one byte":           func(b []byte) []byte { return b[:1] },
		"text":               func([]byte) []byte { return []byte(strings.Repeat("not a database\n", 5000)) },
		"zeros":              func(b []byte) []byte { return make([]byte, len(b)) },
		"both meta pages":    func(b []byte) []byte { clear(b[:2*page]); return b },
		"first meta page":    func(b []byte) []byte { clear(b[:page]); return b },
		"second meta page":   func(b []byte) []byte { clear(b[page : 2*page]); return b },
		"all but meta pages": func(b []byte) []byte { clear(b[2*page:]); return b },
		"a record":           func(b []byte) []byte { b[bytes.Index(b, bytes.Repeat([]byte{7}, 100))+5] ^= 1; return b },
	}
	for n := 0; n < len(good); n += 7999 {
		damage[fmt.Sprint("cut at ", n)] = func(b []byte) []byte { return b[:n] }
	}
	for n := 0; n < len(good); n += 2503 {
		damage[fmt.Sprint("noise at ", n)] = func(b []byte) []byte {
			for i := range 16 {
				b[min(n+i, len(b)-1)] ^= byte(0xA5 + i)
			}
			return b
		}
	}
	for name, harm := range damage {
		t.Run(name, func(t *testing.T) {
			log := &testlog.Log{}
			dir := t.TempDir()
			path := filepath.Join(dir, storeFile)
			if err := os.WriteFile(path, harm(bytes.Clone(good)), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := openStore(dir, slog.New(slog.NewTextHandler(log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			found := s.take(retainedBucket)
			for key, record := range found {
				var i int
				if _, err := fmt.Sscanf(key, "topic/%d", &i); err != nil || !bytes.Equal(record, bytes.Repeat([]byte{byte(i)}, 100)) {
					t.Errorf("%q has become %q", key, record)
				}
			}
			_, err = os.Stat(path + ".damaged")
			moved := err == nil
			if len(found) != 200 && log.String() == "" {
				t.Errorf("%d records, moved %t, and nothing is logged", len(found), moved)
			}
			// It takes records again.
			if err := s.commit(change{clientBucket: {"x": []byte("1")}}); err != nil && !errors.As(err, new(panicked)) {
				t.Fatal(err)
			}
			if s.isNew() {
				if err := s.commit(change{clientBucket: {"x": []byte("1")}}); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
			if s, err = openStore(dir, slog.New(slog.DiscardHandler)); err != nil || string(s.take(clientBucket)["x"]) != "1" {
				t.Errorf("opened again: %v", err)
			}
			_ = s.close()
		})
	}
}

// A file that is damaged while the broker runs is made anew from what is in
// memory.
func TestDamagedWhileRunning(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := run(t, kept(), dir)
	pub := connect(t, b.addr(), hello{id: "pub"})
	for i := range 300 {
		pub.publish(fmt.Sprint("r/", i), strings.Repeat("x", 100), 1, true)
	}
	b.stop()
	b = run(t, kept(), dir)
	f, err := os.OpenFile(filepath.Join(dir, storeFile), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, _ := f.Stat()
	_, _ = f.WriteAt(bytes.Repeat([]byte{0xFF}, int(info.Size())-2*os.Getpagesize()), int64(2*os.Getpagesize()))
	_ = f.Close()
	pub = connect(t, b.addr(), hello{id: "pub"})
	pub.publish("r/new", "y", 1, true)
	wait(t, "the broker has noticed", func() bool { return strings.Contains(b.log.String(), "moved aside") })
	wait(t, "it saves again", func() bool { return b.Stats().StoreError == "" })
	b.stop()
	if n := len(saved(t, dir)[retainedBucket]); n != 301 {
		t.Errorf("%d retained messages in the new file", n)
	}
}

// While the disk takes nothing the broker goes on; what waited is written when
// it does again.
func TestDiskThatFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := run(t, kept(), dir)
	connect(t, first.addr(), hello{id: "pub"}).publish("r", "0", 1, true)
	first.stop() // there is a file now
	b := run(t, kept(), dir)
	if err := b.store.db.Close(); err != nil { // commits fail
		t.Fatal(err)
	}
	pub := connect(t, b.addr(), hello{id: "pub"})
	pub.publish("r", "1", 1, true)
	wait(t, "it is told", func() bool { return b.Stats().StoreError != "" })
	pub.publish("r", "2", 1, true)
	if n := strings.Count(b.log.String(), "are not saved"); n != 1 {
		t.Errorf("%d lines about it", n)
	}
	b.stop()
	if !strings.Contains(b.log.String(), "not saved") {
		t.Error("nothing is logged")
	}
}

func TestCompact(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	s, err := openStore(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	large := make(change)
	for i := range 100 {
		large.set(retainedBucket, fmt.Sprint(i), make([]byte, 100_000))
	}
	large.set(clientBucket, "stays", []byte("1"))
	if err := s.commit(large); err != nil {
		t.Fatal(err)
	}
	if wrote := s.ledger.Report().Total.Bytes; wrote < 10_000_000 || wrote > 11_000_000 {
		t.Errorf("the ledger has %d bytes after ten million were written", wrote)
	}
	for key := range large[retainedBucket] {
		large.set(retainedBucket, key, nil)
	}
	if err := s.commit(large); err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	size := func() int64 {
		info, err := os.Stat(filepath.Join(dir, storeFile))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	if size() < 10_000_000 {
		t.Fatalf("%d bytes", size())
	}
	if s, err = openStore(dir, log); err != nil {
		t.Fatal(err)
	}
	if size() > 100_000 || string(s.take(clientBucket)["stays"]) != "1" {
		t.Errorf("%d bytes", size())
	}
	if err := s.commit(change{clientBucket: {"new": []byte("1")}}); err != nil {
		t.Error(err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
}

// FuzzRecords loads whatever is in the records of a file: the broker starts,
// and is healthy.
func FuzzRecords(f *testing.F) {
	f.Add("p", []byte(`{"id":"p","username":"","protocolVersion":4}`), "a/#", []byte(`{"client":"p","filter":"a/#","qos":1}`),
		[]byte(`{"client":"p","topic_name":"a/b","payload":"eA==","fixedheader":{"type":3,"qos":1},"packet_id":1}`))
	f.Add("p", []byte(`{"id":"p","protocolVersion":5,"properties":{"sessionExpiryInterval":60}}`), "#", []byte(`{"client":"p","filter":"#"}`),
		[]byte(`{"fixedheader":{"type":6},"packet_id":1,"client":"p"}`))
	f.Fuzz(func(t *testing.T, id string, client []byte, filter string, sub, message []byte) {
		dir := t.TempDir()
		c := change{}
		put := func(bucket, key string, record []byte) {
			if key != "" && len(key) < maxKey && record != nil {
				c.set(bucket, key, record)
			}
		}
		put(clientBucket, id, client)
		put(subBucket, id+"\x00"+filter, sub)
		put(inflightBucket, inflightKey(id, 1), message)
		put(retainedBucket, filter, message)
		if err := writeFile(filepath.Join(dir, storeFile), c, new(flash.Ledger)); err != nil {
			t.Fatal(err)
		}
		b, err := Listen(kept(), dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		_ = b.Deliver(t.Context(), mqtt.Message{Topic: "a/b", QoS: 1, Payload: []byte("x")})
		if err := b.Probe(t.Context()); err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
}
