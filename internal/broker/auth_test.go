package broker

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
)

func TestParseHash(t *testing.T) {
	good := HashPassword("x")
	for _, tt := range []struct{ name, hash, fails string }{
		{"ours", good, ""},
		{"plain text", "secret", "is not an argon2id hash"},
		{"empty", "", "is not an argon2id hash"},
		{"another kind", strings.Replace(good, "argon2id", "argon2i", 1), "is not an argon2id hash"},
		{"bcrypt", "$2b$10$abcdefghijklmnopqrstuv", "is not an argon2id hash"},
		{"another version", strings.Replace(good, "v=19", "v=16", 1), "version"},
		{"too much memory", strings.Replace(good, "m=12288", "m=16385", 1), "at most 16384"},
		{"no memory", strings.Replace(good, "m=12288", "m=0", 1), "at least 8"},
		{"memory beyond 32 bits", strings.Replace(good, "m=12288", "m=99999999999", 1), "settings"},
		{"no pass", strings.Replace(good, "t=3", "t=0", 1), "passes"},
		{"a thousand passes", strings.Replace(good, "t=3", "t=1000", 1), "passes"},
		{"no lane", strings.Replace(good, "p=1", "p=0", 1), "lanes"},
		{"settings missing", strings.Replace(good, "m=12288,t=3,p=1", "", 1), "settings"},
		{"no base64", good[:len(good)-2] + "!!", "salt or key"},
		{"short key", good[:len(good)-30], "salt or key"},
		{"key missing", good[:strings.LastIndexByte(good, '$')+1], "key of 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseHash(tt.hash)
			if tt.fails == "" && err != nil || tt.fails != "" && (err == nil || !strings.Contains(err.Error(), strings.Split(tt.fails, " or ")[0])) {
				t.Errorf("parseHash(%q) = %v, want %q", tt.hash, err, tt.fails)
			}
		})
	}
}

func FuzzParseHash(f *testing.F) {
	f.Add(HashPassword("x"))
	f.Fuzz(func(t *testing.T, s string) {
		h, err := parseHash(s)
		if err == nil && (h.memory > maxArgonMemory || h.time > 10 || h.threads > 4) {
			t.Errorf("%q asks for %+v", s, h)
		}
	})
}

func TestCovers(t *testing.T) {
	for _, tt := range []struct {
		outer, inner string
		want         bool
	}{
		{"#", "#", true}, {"#", "a/b", true}, {"#", "+/b/#", true}, {"#", "$SYS/x", false}, {"$SYS/#", "$SYS/x", true},
		{"$SYS/#", "#", false}, {"+/x", "$SYS/x", false}, {"a/#", "a", true}, {"a/#", "a/#", true}, {"a/#", "a/+/c", true},
		{"a/#", "#", false}, {"a/#", "ab", false}, {"a/+", "a/b", true}, {"a/+", "a/+", true}, {"a/+", "a/#", false},
		{"a/+", "a", false}, {"a/+", "a/b/c", false}, {"a/+/c", "a/b/c", true}, {"a/b", "a/b", true}, {"a/b", "a/+", false},
		{"+/#", "a", true}, {"+", "a", true}, {"+", "+", true}, {"+", "/", false}, {"+/+", "/", true}, {"/+", "/a", true},
	} {
		if got := covers(tt.outer, tt.inner); got != tt.want {
			t.Errorf("covers(%q, %q) = %t", tt.outer, tt.inner, got)
		}
	}
}

// A filter that is covered matches nothing that the covering one does not; and
// what covers says of a topic is what Match says.
func TestCoversLaw(t *testing.T) {
	level := rapid.SampledFrom([]string{"a", "b", "+", "", "$a"})
	filter := rapid.Custom(func(t *rapid.T) string {
		levels := rapid.SliceOfN(level, 1, 4).Draw(t, "levels")
		if rapid.Bool().Draw(t, "hash") {
			levels = append(levels, "#")
		}
		return strings.Join(levels, "/")
	})
	topic := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "", "$a"}), 1, 5).Draw(t, "levels"), "/")
	})
	rapid.Check(t, func(t *rapid.T) {
		outer, inner, name := filter.Draw(t, "outer"), filter.Draw(t, "inner"), topic.Draw(t, "topic")
		if name == "" {
			return
		}
		if covers(outer, inner) && mqtt.Filter(inner).Match(name) && !mqtt.Filter(outer).Match(name) {
			t.Fatalf("%q is said to cover %q, but %q matches only the latter", outer, inner, name)
		}
		if covers(outer, name) != mqtt.Filter(outer).Match(name) {
			t.Fatalf("covers(%q, %q) differs from Match", outer, name)
		}
	})
}

// plant has two users; making hashes takes time, so they are made once.
var plantUsers = sync.OnceValue(func() []config.User {
	return []config.User{
		{Name: "hmi", Password: HashPassword("hmi's"), Publish: []string{"cmd/+/set"}, Subscribe: []string{"plant/#", "cmd/+/ack"}},
		{Name: "all", Password: HashPassword("all's"), Publish: []string{"#"}, Subscribe: []string{"#"}},
	}
})

func plant() config.Broker {
	cfg := everybody()
	cfg.Anonymous, cfg.Users = false, plantUsers()
	return cfg
}

func TestLogin(t *testing.T) {
	b := run(t, plant(), "")
	for _, tt := range []struct {
		name string
		h    hello
		code byte
	}{
		{"right", hello{user: "hmi", password: "hmi's"}, 0},
		{"right again", hello{user: "hmi", password: "hmi's"}, 0},
		{"right, MQTT 5", hello{version: 5, user: "hmi", password: "hmi's"}, 0},
		{"wrong password", hello{user: "hmi", password: "all's"}, 4},
		{"wrong again", hello{user: "hmi", password: "all's"}, 4},
		{"wrong, MQTT 5", hello{version: 5, user: "hmi", password: "x"}, 0x86},
		{"empty password", hello{user: "hmi"}, 4},
		{"unknown", hello{user: "nobody", password: "hmi's"}, 4},
		{"no name", hello{}, 4},
		{"reserved id", hello{id: "inline", user: "hmi", password: "hmi's"}, 2},
		{"reserved id, MQTT 5", hello{version: 5, id: "local", user: "hmi", password: "hmi's"}, 0x85},
		{"long id", hello{id: strings.Repeat("x", 300), user: "hmi", password: "hmi's"}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.h.id == "" {
				tt.h.id = "c"
			}
			p, code := try(t, dial(t, b.addr()), tt.h)
			if code != tt.code {
				t.Errorf("code %#x, want %#x", code, tt.code)
			}
			if code != 0 {
				p.closed()
			}
		})
	}
	if st := b.Stats(); st.RefusedConnects != 9 || st.Connects != 3 {
		t.Errorf("stats %+v", st)
	}
	if log := b.log.String(); strings.Contains(log, "all's") || strings.Contains(log, "hmi's") {
		t.Error("a password is logged")
	}
}

func TestAnonymous(t *testing.T) {
	t.Run("beside users", func(t *testing.T) {
		cfg := plant()
		cfg.Anonymous = true
		b := run(t, cfg, "")
		connect(t, b.addr(), hello{id: "a"})
		connect(t, b.addr(), hello{id: "b", user: "hmi", password: "hmi's"})
		if _, code := try(t, dial(t, b.addr()), hello{id: "c", user: "hmi", password: "x"}); code != 4 {
			t.Errorf("wrong password: code %d", code)
		}
		if _, code := try(t, dial(t, b.addr()), hello{id: "c", user: "nobody", password: "x"}); code != 4 {
			t.Errorf("unknown name: code %d", code)
		}
	})
	t.Run("without users any name will do", func(t *testing.T) {
		b := run(t, everybody(), "")
		connect(t, b.addr(), hello{id: "a", user: "dashboard", password: "x"})
		connect(t, b.addr(), hello{id: "b", user: "dashboard", password: ""})
	})
}

// A storm of reconnects costs one check of the password, and a storm of wrong
// ones as well.
func TestReconnectStorm(t *testing.T) {
	a, err := newAuth(plantUsers(), false)
	if err != nil {
		t.Fatal(err)
	}
	one := time.Now()
	if a.check("hmi", "hmi's", time.Now().Add(patience)) == nil {
		t.Fatal("refused")
	}
	took := time.Since(one)
	for _, password := range []string{"hmi's", "wrong"} {
		var wg sync.WaitGroup
		start := time.Now()
		for range 200 {
			wg.Go(func() {
				if acc := a.check("hmi", password, time.Now().Add(patience)); (acc != nil) != (password == "hmi's") {
					t.Errorf("password %q: %v", password, acc)
				}
			})
		}
		wg.Wait()
		if d := time.Since(start); d > 20*took {
			t.Errorf("200 checks of %q took %v, one takes %v", password, d, took)
		}
	}
	if a.check("all", "not in time", time.Now()) != nil {
		t.Error("let in")
	}
}

func TestACL(t *testing.T) {
	b := run(t, plant(), "")
	all := connect(t, b.addr(), hello{id: "all", user: "all", password: "all's"})
	all.subscribe(2, "#")
	hmi := func(version byte) *peer {
		return connect(t, b.addr(), hello{id: "hmi", version: version, user: "hmi", password: "hmi's"})
	}

	t.Run("subscribe", func(t *testing.T) {
		filters := []string{"plant/#", "plant/+/x", "#", "+/x", "cmd/a/ack", "cmd/#", "$SYS/#", "$share/g/plant/a", "$share/g/cmd/#", "plant", "$share/g", "a#"}
		if got, want := fmt.Sprintf("%x", hmi(4).subscribe(1, filters...)), "010180800180800180018080"; got != want {
			t.Errorf("MQTT 3.1.1: %s, want %s", got, want)
		}
		if got, want := fmt.Sprintf("%x", hmi(5).subscribe(1, filters...)), "010187870187870187018f8f"; got != want {
			t.Errorf("MQTT 5: %s, want %s", got, want)
		}
	})
	t.Run("publish", func(t *testing.T) {
		p := hmi(5)
		for _, tt := range []struct {
			topic string
			code  byte
		}{
			{"cmd/a/set", 0}, {"cmd/a/b/set", 0x87}, {"plant/x", 0x87}, {"$SYS/x", 0x87}, {"$share/x", 0x87},
			{strings.Repeat("/", 200), 0x87}, {"control\x01", 0x87},
		} {
			for qos := byte(0); qos <= 2; qos++ {
				code := p.publish(tt.topic, "1", qos, false)
				if qos > 0 && code != tt.code {
					t.Errorf("%q QoS %d: code %#x, want %#x", tt.topic, qos, code, tt.code)
				}
				if qos == 2 && code == 0 {
					p.ack(0x62, 7)
					if head, _ := p.read(); head != 0x70 {
						t.Errorf("%#x instead of a PUBCOMP", head)
					}
				}
				if tt.code == 0 {
					if r := all.parse(all.read()); r.topic != tt.topic || r.qos != qos {
						t.Errorf("got %v", r)
					} else if qos == 1 {
						all.ack(0x40, r.id)
					}
				}
			}
		}
		p.ping()
	})
	t.Run("MQTT 3.1.1 has no code for it", func(t *testing.T) {
		p := hmi(4)
		p.publish("plant/x", "1", 0, false)
		p.ping()
		p.write(publishPacket(4, "plant/x", "1", 1, false, 1))
		if head, body := p.closed(); head != 0 {
			t.Errorf("packet %#x % x before the connection was closed, want none", head, body)
		}
	})
	t.Run("nothing refused has arrived", func(t *testing.T) {
		b.deliver(t, "end", "", 0, false)
		if r := all.parse(all.read()); r.topic != "end" {
			t.Errorf("got %v", r)
		}
	})
	if st := b.Stats(); st.RefusedPublishes != 6*3+2 || st.RefusedSubscriptions != 2*7 {
		t.Errorf("stats %+v", st)
	}
	if log := b.log.String(); !strings.Contains(log, "publish refused") || !strings.Contains(log, "subscription refused") {
		t.Error("nothing is logged")
	}
}

// The library does not ask the ACL about wills.
func TestACLOfWills(t *testing.T) {
	b := run(t, plant(), "")
	for _, tt := range []struct {
		topic  string
		v4, v5 byte
	}{
		{"cmd/a/set", 0, 0}, {"plant/x", 5, 0x87}, {"#", 5, 0x90}, {"cmd/+/set", 5, 0x90}, {"$SYS/x", 5, 0x87}, {"x\x01", 5, 0x90},
	} {
		for version, want := range map[byte]byte{4: tt.v4, 5: tt.v5} {
			h := hello{id: "w", version: version, user: "hmi", password: "hmi's", will: &mqtt.Message{Topic: tt.topic, Payload: []byte("x"), Retain: true}}
			p, code := try(t, dial(t, b.addr()), h)
			if code != want {
				t.Errorf("%q MQTT %d: code %#x, want %#x", tt.topic, version, code, want)
			}
			_ = p.conn.Close()
		}
	}
	wait(t, "one will is retained", func() bool { _, ok := b.server.Topics.Retained.Get("cmd/a/set"); return ok })
	for _, topic := range []string{"plant/x", "#", "cmd/+/set", "$SYS/x"} {
		if _, ok := b.server.Topics.Retained.Get(topic); ok {
			t.Errorf("%q is retained", topic)
		}
	}
}

// A client id with the session behind it belongs to the user who made it.
func TestClientIDOfAnotherUser(t *testing.T) {
	b := run(t, plant(), "")
	p := connect(t, b.addr(), hello{id: "shared", keep: true, user: "all", password: "all's"})
	p.subscribe(1, "secret")
	if _, code := try(t, dial(t, b.addr()), hello{id: "shared", user: "hmi", password: "hmi's"}); code != 2 {
		t.Errorf("code %d while the owner is there", code)
	}
	p.ping()
	p.disconnect()
	wait(t, "it has left", func() bool { return b.Stats().Clients == 0 })
	b.deliver(t, "secret", "for all's eyes", 1, false)
	q := connect(t, b.addr(), hello{id: "shared", keep: true, user: "hmi", password: "hmi's"})
	if q.session {
		t.Error("the session is another's")
	}
	q.ping() // the next packet is not the secret
	if st := b.Stats(); st.Subscriptions != 0 || st.Sessions != 1 {
		t.Errorf("stats %+v", st)
	}
}
