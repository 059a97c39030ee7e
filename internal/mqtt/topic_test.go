package mqtt_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"fieldgate/internal/mqtt"
	"fieldgate/internal/mqtt/mosquittotest"
)

func TestMatch(t *testing.T) {
	// The examples of clause 4.7, and the corners around them.
	for _, row := range []struct {
		filter, topic string
		want          bool
	}{
		{"sport/tennis/player1/#", "sport/tennis/player1", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/ranking", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true},
		{"sport/tennis/player1/#", "sport/tennis/player12", false},
		{"sport/#", "sport", true},
		{"#", "sport", true},
		{"#", "/", true},
		{"sport/tennis/+", "sport/tennis/player1", true},
		{"sport/tennis/+", "sport/tennis/player1/ranking", false},
		{"sport/+", "sport", false},
		{"sport/+", "sport/", true},
		{"+/+", "/finance", true},
		{"/+", "/finance", true},
		{"+", "/finance", false},
		{"+", "", false},
		{"", "", false},
		{"", "a", false},
		{"#", "$SYS/broker", false},
		{"+/monitor/Clients", "$SYS/monitor/Clients", false},
		{"$SYS/#", "$SYS/", true},
		{"$SYS/#", "$SYS", true},
		{"$SYS/monitor/+", "$SYS/monitor/Clients", true},
		{"+/#", "a", true},
		{"+/#", "$a", false},
		{"a/+/#", "a", false},
		{"a/+/#", "a/b", true},
		{"a/+/b", "a//b", true},
		{"a//b", "a//b", true},
		{"a//b", "a/b", false},
		{"a/", "a", false},
		{"a", "a/", false},
		{"A", "a", false},
		{"a/$b", "a/$b", true},
		{"+/$b", "a/$b", true},
		{"a/#", "a/$b", true},
		// Filters that are none.
		{"a/#/b", "a/x/b", false},
		{"a#", "a", false},
		{"a+", "a", false},
	} {
		if got := mqtt.Filter(row.filter).Match(row.topic); got != row.want {
			t.Errorf("Filter(%q).Match(%q) = %v, want %v", row.filter, row.topic, got, row.want)
		}
	}
}

// reference is clause 4.7 written once more, plainly.
func reference(filter, topic string) bool {
	f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
	if strings.HasPrefix(topic, "$") && (f[0] == "+" || f[0] == "#") {
		return false
	}
	for i, level := range f {
		if level == "#" {
			return true
		}
		if i >= len(t) || level != "+" && level != t[i] {
			return false
		}
		if i == len(t)-1 && i == len(f)-2 && f[i+1] == "#" {
			return true
		}
	}
	return len(f) == len(t)
}

func FuzzMatch(f *testing.F) {
	f.Add("a/+/b/#", "a/x/b")
	f.Add("#", "$SYS/x")
	f.Add("+//+", "//")
	f.Fuzz(func(t *testing.T, filter, topic string) {
		if mqtt.ValidFilter(filter) != nil || mqtt.ValidTopic(topic) != nil {
			_ = mqtt.Filter(filter).Match(topic) // any answer, no panic
			return
		}
		if got, want := mqtt.Filter(filter).Match(topic), reference(filter, topic); got != want {
			t.Errorf("Filter(%q).Match(%q) = %v, want %v", filter, topic, got, want)
		}
		if mqtt.ValidTopic(filter) == nil && mqtt.Filter(filter).Match(topic) != (filter == topic) {
			t.Errorf("filter %q without wildcards must match itself only, not %q", filter, topic)
		}
	})
}

func TestMatchAllocatesNothing(t *testing.T) {
	f := mqtt.Filter("plant/+/line/#")
	if n := testing.AllocsPerRun(100, func() { _ = f.Match("plant/a/line/1/temp") }); n != 0 {
		t.Errorf("Match allocates %v times", n)
	}
	if n := testing.AllocsPerRun(100, func() { _ = mqtt.ValidTopic("plant/a/line/1/temp") }); n != 0 {
		t.Errorf("ValidTopic allocates %v times", n)
	}
}

func TestValid(t *testing.T) {
	long := strings.Repeat("x", mqtt.MaxTopic)
	for _, row := range []struct {
		s             string
		topic, filter string // part of the error, "" for valid
	}{
		{"a", "", ""},
		{"/", "", ""},
		{"a//b", "", ""},
		{" ", "", ""},
		{"größe/°C", "", ""},
		{"a/\uFFFD", "", ""}, // the replacement character itself is well-formed
		{"$aws/things/x/shadow/update", "", ""},
		{"$share/g/a/+", "wildcard", ""},
		{long, "", ""},
		{long + "x", "65536 bytes", "65536 bytes"},
		{"", "empty", "empty"},
		{"a\x00b", "byte 1 is NUL", "byte 1 is NUL"},
		{"a\xff", "byte 1 is not UTF-8", "byte 1 is not UTF-8"},
		{"\xed\xa0\x80", "not UTF-8", "not UTF-8"}, // a surrogate
		{"\xc0\x80", "not UTF-8", "not UTF-8"},     // overlong NUL
		{"a\tb", "U+0009", "U+0009"},
		{"a\u0085", "U+0085", "U+0085"},
		{"a\uFFFF", "U+FFFF", "U+FFFF"},
		{"a\uFDD0", "U+FDD0", "U+FDD0"},
		{"a\U0001FFFE", "U+1FFFE", "U+1FFFE"},
		{"#", "wildcard", ""},
		{"+", "wildcard", ""},
		{"a/#", "wildcard", ""},
		{"+/a/+/#", "wildcard", ""},
		{"a/#/b", "wildcard", "last level"},
		{"a#", "wildcard", "level of its own"},
		{"a/b#", "wildcard", "level of its own"},
		{"#a", "wildcard", "level of its own"},
		{"a+/b", "wildcard", "level of its own"},
		{"+a", "wildcard", "level of its own"},
		{"++", "wildcard", "level of its own"},
	} {
		check := func(what string, err error, want string) {
			t.Helper()
			if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || !errors.Is(err, mqtt.ErrInvalid)) {
				t.Errorf("%s(%.40q) = %v, want an error with %q", what, row.s, err, want)
			}
		}
		check("ValidTopic", mqtt.ValidTopic(row.s), row.topic)
		check("ValidFilter", mqtt.ValidFilter(row.s), row.filter)
	}
}

func TestCheck(t *testing.T) {
	for _, row := range []struct {
		name string
		msg  mqtt.Message
		want string
	}{
		{"empty payload", mqtt.Message{Topic: "a"}, ""},
		{"QoS 2", mqtt.Message{Topic: "a", QoS: 2}, ""},
		{"QoS 3", mqtt.Message{Topic: "a", QoS: 3}, "QoS 3"},
		{"no topic", mqtt.Message{}, "empty"},
		{"too long", mqtt.Message{Topic: "a", Payload: make([]byte, mqtt.MaxPayload+1)}, "at most"},
	} {
		err := row.msg.Check()
		if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: Check() = %v, want %q", row.name, err, row.want)
		}
	}
}

func TestCleanSegment(t *testing.T) {
	for _, row := range [][2]string{
		{"boiler", "boiler"},
		{"", ""},
		{"a/b", "a_b"},
		{"a+b#c\x00d", "a_b_c_d"},
		{"°C", "°C"},
		{"m³/h", "m³_h"},
		{"a\xffb", "a_b"},
		{"a\xff/\tb", "a___b"},
		{"\uFFFD", "\uFFFD"},
		{"$SYS", "$SYS"},
	} {
		if got := mqtt.CleanSegment(row[0]); got != row[1] {
			t.Errorf("CleanSegment(%q) = %q, want %q", row[0], got, row[1])
		}
	}
}

func FuzzCleanSegment(f *testing.F) {
	f.Add("a/b+c#\x00\xff")
	f.Fuzz(func(t *testing.T, value string) {
		got := mqtt.CleanSegment(value)
		if utf8.RuneCountInString(got) != utf8.RuneCountInString(value) {
			t.Errorf("CleanSegment(%q) = %q: another number of characters", value, got)
		}
		if mqtt.CleanSegment(got) != got {
			t.Errorf("CleanSegment(%q) = %q is not clean", value, got)
		}
		if len(got) > 60000 {
			return
		}
		if topic := "x/" + got + "/y"; mqtt.ValidTopic(topic) != nil || strings.Count(topic, "/") != 2 {
			t.Errorf("CleanSegment(%q) = %q does not fit in one level", value, got)
		}
	})
}

// TestMatchAgreesWithMosquitto subscribes to every filter and publishes on
// every topic at a real broker: Match must say who gets what.
func TestMatchAgreesWithMosquitto(t *testing.T) {
	filters := []string{"#", "+", "/", "/+", "+/+", "+/#", "a", "a/", "a/#", "a/+", "a/+/b", "a//b", "a/+/#", "+/a/#", "/#", "$x/#", "$x/+", "+/b", "°/+"}
	topics := []string{"a", "/", "/a", "a/", "a/b", "a/x/b", "a//b", "a/b/c/d", "//", "b/a", "b/a/c", "$x", "$x/a", "$x/a/b", "a/$x", "a/ ", "°/µ", "x/b"}
	b := mosquittotest.Start(t, mosquittotest.Options{})
	subs := make([]*mosquittotest.Subscriber, len(filters))
	var wg sync.WaitGroup
	for i, f := range filters {
		wg.Go(func() { subs[i] = b.Subscribe([]string{f, "$end"}) })
	}
	wg.Wait()
	for _, topic := range append(topics, "$end") {
		out, err := exec.Command("mosquitto_pub", "-p", strconv.Itoa(b.Port), "-q", "1", "-t", topic, "-m", "x").CombinedOutput()
		if err != nil {
			t.Fatalf("mosquitto_pub -t %q: %v: %s", topic, err, out)
		}
	}
	for i, f := range filters {
		var got, want []string
		for _, m := range subs[i].Until(func(m mosquittotest.Received) bool { return m.Topic == "$end" }) {
			got = append(got, m.Topic)
		}
		for _, topic := range topics {
			if mqtt.Filter(f).Match(topic) {
				want = append(want, topic)
			}
		}
		if want = append(want, "$end"); !slices.Equal(got, want) {
			t.Errorf("filter %q: mosquitto delivers %q, Match says %q", f, got, want)
		}
	}
}

// TestValidAgreesWithMosquitto offers topics and filters to a real broker as
// bytes on the wire: what Valid lets through must not cost the connection.
func TestValidAgreesWithMosquitto(t *testing.T) {
	b := mosquittotest.Start(t, mosquittotest.Options{})
	texts := []string{
		"a", "/", " ", "a b", "°C", "\U0001F600", "a/\uFFFD", "\uFEFF", "", "\x00", "a\x00b", "a\xff", "\xed\xa0\x80", "\xc0\x80",
		"a\tb", "a\x7f", "a\u0085", "a\uFFFF", "a\uFDD0", "a\U0001FFFE", "#", "+", "a/#", "a/+/b", "a/#/b", "a#", "a+", "#a", "+a",
	}
	for _, s := range texts {
		if taken, valid := offer(t, b, 0x32, s), mqtt.ValidTopic(s) == nil; taken != valid {
			t.Errorf("publish on %q: mosquitto takes it: %v, ValidTopic: %v", s, taken, mqtt.ValidTopic(s))
		}
		if taken, valid := offer(t, b, 0x82, s), mqtt.ValidFilter(s) == nil; taken != valid {
			t.Errorf("subscribe to %q: mosquitto takes it: %v, ValidFilter: %v", s, taken, mqtt.ValidFilter(s))
		}
	}
}

// offer sends a PUBLISH (0x32) or SUBSCRIBE (0x82) with text as its topic and
// reports whether the broker acknowledges it rather than hang up.
func offer(t *testing.T, b *mosquittotest.Broker, kind byte, text string) bool {
	t.Helper()
	conn, err := net.Dial("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	field := binary.BigEndian.AppendUint16(nil, uint16(len(text)))
	field = append(field, text...)
	var body []byte
	if kind == 0x32 {
		body = append(field, 0, 1, 'x') // packet id, payload
	} else {
		body = append([]byte{0, 1}, field...)
		body = append(body, 0) // QoS
	}
	packet := append([]byte{kind, byte(len(body))}, body...)
	connect := []byte("\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01i")
	if _, err := conn.Write(append(connect, packet...)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 6)
	if _, err := io.ReadFull(conn, answer); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(err.Error(), "reset") {
			return false
		}
		t.Fatal(fmt.Errorf("%q: %w", text, err))
	}
	return answer[4] == 0x40 || answer[4] == 0x90
}
