package publish

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
)

var (
	site   = config.Site{ID: "HOSTNAME", Tags: map[string]string{"plant": "north", "line": "0"}}
	tenth  = point.Decimal{Mant: 1, Exp: -1}
	readAt = time.Date(2025, 11, 5, 14, 30, 15, 123_999_999, time.UTC)
)

// boiler is a device with one point of several sorts.
func boiler() config.Device {
	in := func(name string, addr uint16, typ point.Type, unit string) point.Point {
		return point.Point{ID: point.ID("boiler." + name), Table: modbus.InputRegisters, Address: addr, Type: typ, Unit: unit, Every: point.Interval(time.Second)}
	}
	temp := in("temp", 0, point.Int16, "°C")
	temp.Scale = tenth
	temp.Tags = map[string]string{"line": "7", "a\"b": "c/d"}
	high := in("energy", 10000, point.Uint64, "kWh")
	high.Order = point.CDAB
	pump := point.Point{ID: "boiler.pump", Table: modbus.Coils, Address: 0, Type: point.Bool}
	mode := point.Point{ID: "boiler.status.mode", Table: modbus.HoldingRegisters, Address: 4, Type: point.String, Length: 8, Order: point.BADC}
	flow := in("flow", 20, point.Float32, "m3/h")
	flow.Order, flow.Offset = point.DCBA, point.Decimal{Mant: -5, Exp: -1}
	return config.Device{Name: "boiler", Bus: "plc", Unit: 3, Points: []point.Point{temp, high, pump, mode, flow}}
}

// read returns a Good sample of the boiler.
func read(name string, v point.Value) point.Sample {
	return point.Sample{ID: point.ID("boiler." + name), Value: v, Time: readAt}
}

func bad(name string) point.Sample {
	return point.Sample{ID: point.ID("boiler." + name), Quality: point.Bad, Time: readAt}
}

func uncertain(s point.Sample) point.Sample {
	s.Quality = point.Uncertain
	return s
}

func decimal(text string) point.Value {
	d, err := point.ParseDecimal(text)
	if err != nil {
		panic(err)
	}
	return point.DecimalValue(d)
}

// topicOf returns the topic that has all the points, of a rule without faults.
func topicOf(t *testing.T, rule config.Rule, devices []config.Device, ids ...point.ID) *Topic {
	t.Helper()
	if rule.Points == nil {
		rule.Points = []string{"*"}
	}
	topics, faults := Topics(site, []config.Rule{rule}, devices)
	for _, f := range faults {
		t.Errorf("fault: %v", f)
	}
	for i := range topics {
		has := topics[i].Points()
		all := true
		for _, id := range ids {
			one := false
			for _, h := range has {
				one = one || h == id
			}
			all = all && one
		}
		if all {
			return &topics[i]
		}
	}
	t.Fatalf("no topic has %v", ids)
	return nil
}

func TestSmallestConfig(t *testing.T) {
	rule := config.Rule{Points: []string{"*"}, Topic: "{site}/{device}/{point}", When: config.When{AnyChange: true, AtLeast: 5 * time.Minute}, QoS: 1}
	topic := topicOf(t, rule, []config.Device{boiler()}, "boiler.temp")
	got, ok := topic.Render(1, read("temp", decimal("25.4")))
	want := mqtt.Message{Topic: "HOSTNAME/boiler/temp", Payload: []byte(`{"value":25.4,"timestamp":"2025-11-05T14:30:15.123Z","unit":"°C"}`), QoS: 1}
	if !ok || got.Topic != want.Topic || string(got.Payload) != string(want.Payload) || got.QoS != want.QoS || got.Retain {
		t.Errorf("got %v %s %s, want %s %s", ok, got.Topic, got.Payload, want.Topic, want.Payload)
	}
}

func TestPayloads(t *testing.T) {
	const each = "{site}/{device}/{point}"
	all := []config.Field{config.FieldTags, config.FieldPoint, config.FieldDevice, config.FieldSeq, config.FieldQuality}
	const at = `"timestamp":"2025-11-05T14:30:15.123Z"`
	for _, c := range []struct {
		name    string
		rule    config.Rule
		samples []point.Sample
		want    string // "": no message
	}{
		{"raw number", config.Rule{Topic: each, Payload: config.Raw}, []point.Sample{read("temp", decimal("25.4"))}, `25.4`},
		{"raw whole", config.Rule{Topic: each, Payload: config.Raw}, []point.Sample{read("temp", decimal("25.0"))}, `25`},
		{"raw float32", config.Rule{Topic: each, Payload: config.Raw}, []point.Sample{read("flow", point.Float32Value(25.4))}, `25.4`},
		{"raw largest", config.Rule{Topic: each, Payload: config.Raw}, []point.Sample{read("energy", point.UintValue(math.MaxUint64))}, `18446744073709551615`},
		{"raw coil", config.Rule{Topic: each, Payload: config.Raw}, []point.Sample{read("pump", point.BoolValue(true))}, `1`},
		{"raw text", config.Rule{Topic: each, Payload: config.Raw}, []point.Sample{read("status.mode", point.TextValue(`a "b"`))}, `a "b"`},
		{"raw bad", config.Rule{Topic: each, Payload: config.Raw}, []point.Sample{bad("temp")}, ``},
		{"raw bad null", config.Rule{Topic: each, Payload: config.Raw, BadNull: true}, []point.Sample{bad("temp")}, `null`},

		{"json", config.Rule{Topic: each}, []point.Sample{read("temp", decimal("-0.1"))}, `{"value":-0.1,` + at + `,"unit":"°C"}`},
		{"json without unit", config.Rule{Topic: each}, []point.Sample{read("pump", point.BoolValue(true))}, `{"value":true,` + at + `}`},
		{"json text", config.Rule{Topic: each}, []point.Sample{read("status.mode", point.TextValue("a\"\n\x01ü\xff"))}, `{"value":"a\"\n\u0001ü\ufffd",` + at + `}`},
		{"json NaN", config.Rule{Topic: each}, []point.Sample{read("flow", point.Float32Value(float32(math.NaN())))}, `{"value":null,` + at + `,"unit":"m3/h"}`},
		{"json largest", config.Rule{Topic: each}, []point.Sample{read("energy", point.UintValue(math.MaxUint64))}, `{"value":18446744073709551615,` + at + `,"unit":"kWh"}`},
		{"json uncertain", config.Rule{Topic: each}, []point.Sample{uncertain(read("pump", point.BoolValue(false)))}, `{"value":false,` + at + `}`},
		{"json quality", config.Rule{Topic: each, Fields: []config.Field{config.FieldQuality}}, []point.Sample{uncertain(read("temp", decimal("1")))},
			`{"value":1,` + at + `,"unit":"°C","quality":"uncertain"}`},
		{"json seq", config.Rule{Topic: each, Fields: []config.Field{config.FieldSeq}}, []point.Sample{read("pump", point.BoolValue(true))},
			`{"value":true,` + at + `,"seq":1762353015123}`},
		{"json all fields", config.Rule{Topic: each, Fields: all}, []point.Sample{read("temp", decimal("25.4"))},
			`{"value":25.4,` + at + `,"unit":"°C","quality":"good","seq":1762353015123,"device":"boiler","point":"temp","tags":{"a\"b":"c/d","line":"7","plant":"north"}}`},
		{"json bad", config.Rule{Topic: each}, []point.Sample{bad("temp")}, ``},
		{"json bad null", config.Rule{Topic: each, BadNull: true}, []point.Sample{bad("temp")}, `{"value":null,` + at + `,"unit":"°C","quality":"bad"}`},
		{"json bad with a value in it", config.Rule{Topic: each, BadNull: true}, []point.Sample{{ID: "boiler.pump", Value: point.IntValue(7), Quality: point.Bad, Time: readAt}},
			`{"value":null,` + at + `,"quality":"bad"}`},
		{"json of many says the first", config.Rule{Topic: each}, []point.Sample{bad("pump"), read("flow", point.IntValue(1)), read("pump", point.BoolValue(true))}, `{"value":true,` + at + `}`},
		{"json of a stranger", config.Rule{Topic: each}, []point.Sample{read("other", point.IntValue(1))}, ``},
		{"json of nothing", config.Rule{Topic: each}, nil, ``},

		{"full", config.Rule{Topic: each, Payload: config.Full}, []point.Sample{read("temp", decimal("25.4"))},
			`{"RegName":"temp","RegAddress":300001,"RegUnitID":3,"RegGain":0.1,"RegOffset":0,"RegType":"INT16","RegByteSwap":"ABCD_BE","RegValue":"25.4","OneBased":true,"HasError":false}`},
		{"full coil", config.Rule{Topic: each, Payload: config.Full}, []point.Sample{read("pump", point.BoolValue(true))},
			`{"RegName":"pump","RegAddress":1,"RegUnitID":3,"RegGain":1,"RegOffset":0,"RegType":"BIT","RegByteSwap":"ABCD_BE","RegValue":"1","OneBased":true,"HasError":false}`},
		{"full far address", config.Rule{Topic: each, Payload: config.Full}, []point.Sample{read("energy", point.IntValue(5))},
			`{"RegName":"energy","RegAddress":310001,"RegUnitID":3,"RegGain":1,"RegOffset":0,"RegType":"UINT64","RegByteSwap":"CDAB_LEBS","RegValue":"5","OneBased":true,"HasError":false}`},
		{"full text", config.Rule{Topic: each, Payload: config.Full}, []point.Sample{read("status.mode", point.TextValue(`a"b`))},
			`{"RegName":"status.mode","RegAddress":400005,"RegUnitID":3,"RegGain":1,"RegOffset":0,"RegType":"STRING","RegByteSwap":"BADC_BEBS","RegValue":"a\"b","OneBased":true,"HasError":false}`},
		{"full offset", config.Rule{Topic: each, Payload: config.Full}, []point.Sample{read("flow", point.Float32Value(0.5))},
			`{"RegName":"flow","RegAddress":300021,"RegUnitID":3,"RegGain":1,"RegOffset":-0.5,"RegType":"FLOAT32","RegByteSwap":"DCBA_LE","RegValue":"0.5","OneBased":true,"HasError":false}`},
		{"full bad null", config.Rule{Topic: each, Payload: config.Full, BadNull: true}, []point.Sample{bad("pump")},
			`{"RegName":"pump","RegAddress":1,"RegUnitID":3,"RegGain":1,"RegOffset":0,"RegType":"BIT","RegByteSwap":"ABCD_BE","RegValue":null,"OneBased":true,"HasError":true}`},

		{"batch", config.Rule{Topic: "{site}/{device}", Payload: config.Batch}, []point.Sample{read("temp", decimal("25.4")), read("status.mode", point.TextValue("auto"))},
			`{` + at + `,"temp":25.4,"status.mode":"auto"}`},
		{"batch on a fixed topic", config.Rule{Topic: "data/json", Payload: config.Batch}, []point.Sample{read("temp", decimal("25.4")), read("pump", point.BoolValue(false))},
			`{` + at + `,"boiler.temp":25.4,"boiler.pump":false}`},
		{"batch time is the newest", config.Rule{Topic: "{device}", Payload: config.Batch},
			[]point.Sample{read("temp", decimal("1")), {ID: "boiler.pump", Value: point.BoolValue(true), Time: readAt.Add(time.Second)}, {ID: "boiler.flow", Value: point.IntValue(2), Time: readAt.Add(-time.Hour)}},
			`{"timestamp":"2025-11-05T14:30:16.123Z","temp":1,"pump":true,"flow":2}`},
		{"batch leaves out what is bad", config.Rule{Topic: "{device}", Payload: config.Batch}, []point.Sample{bad("temp"), read("pump", point.BoolValue(true))}, `{` + at + `,"pump":true}`},
		{"batch all bad", config.Rule{Topic: "{device}", Payload: config.Batch}, []point.Sample{bad("temp"), bad("pump")}, ``},
		{"batch bad null", config.Rule{Topic: "{device}", Payload: config.Batch, BadNull: true}, []point.Sample{bad("temp"), read("pump", point.BoolValue(true)), bad("flow")},
			`{` + at + `,"temp":null,"pump":true,"flow":null,"quality":{"temp":"bad","flow":"bad"}}`},
		{"batch uncertain", config.Rule{Topic: "{device}", Payload: config.Batch}, []point.Sample{uncertain(read("temp", decimal("1")))}, `{` + at + `,"temp":1}`},
		{"batch quality and seq", config.Rule{Topic: "{device}", Payload: config.Batch, Fields: []config.Field{config.FieldSeq, config.FieldQuality}},
			[]point.Sample{read("pump", point.BoolValue(true)), uncertain(read("temp", decimal("1")))},
			`{` + at + `,"pump":true,"temp":1,"quality":{"temp":"uncertain"},"seq":1762353015123}`},
		{"batch all good with quality", config.Rule{Topic: "{device}", Payload: config.Batch, Fields: []config.Field{config.FieldQuality}}, []point.Sample{read("pump", point.BoolValue(true))},
			`{` + at + `,"pump":true}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var ids []point.ID
			for _, s := range c.samples {
				ids = append(ids, s.ID)
			}
			if c.rule.Payload != config.Batch && len(ids) > 1 {
				ids = ids[:1]
			}
			if len(ids) > 0 && ids[0] == "boiler.other" {
				ids = nil
			}
			topic := topicOf(t, c.rule, []config.Device{boiler()}, ids...)
			msg, ok := topic.Render(1762353015123, c.samples...)
			if ok != (c.want != "") || string(msg.Payload) != c.want {
				t.Fatalf("got %v\n%s\nwant\n%s", ok, msg.Payload, c.want)
			}
			if ok && c.rule.Payload != config.Raw && !json.Valid(msg.Payload) {
				t.Errorf("not JSON: %s", msg.Payload)
			}
			again, _ := topic.Render(1762353015123, c.samples...)
			if string(again.Payload) != string(msg.Payload) || again.Topic != msg.Topic {
				t.Errorf("second time %s", again.Payload)
			}
		})
	}
}

func TestNoTags(t *testing.T) {
	rule := config.Rule{Points: []string{"boiler.pump"}, Topic: "t", Fields: []config.Field{config.FieldTags, config.FieldPoint}}
	topics, _ := Topics(config.Site{}, []config.Rule{rule}, []config.Device{boiler()})
	msg, _ := topics[0].Render(1, read("pump", point.BoolValue(true)))
	const want = `{"value":true,"timestamp":"2025-11-05T14:30:15.123Z","point":"pump"}`
	if string(msg.Payload) != want {
		t.Errorf("got %s, want %s", msg.Payload, want)
	}
}

func TestBatchKeys(t *testing.T) {
	dev := func(name string, points ...string) config.Device {
		d := config.Device{Name: name, Bus: "b", Unit: 1}
		for i, p := range points {
			d.Points = append(d.Points, point.Point{ID: point.ID(name + "." + p), Table: modbus.HoldingRegisters, Address: uint16(i)})
		}
		return d
	}
	for _, c := range []struct {
		name    string
		topic   string
		devices []config.Device
		want    string
	}{
		{"topic names the device", "{device}", []config.Device{dev("a", "x", "y")}, `{"x":0,"y":1}`},
		{"topic names site and bus only", "{site}/{bus}", []config.Device{dev("a", "x"), dev("b", "x")}, `{"a.x":0,"b.x":1}`},
		{"names the batch has itself", "{device}", []config.Device{dev("a", "timestamp", "seq", "quality", "x")}, `{"a.timestamp":0,"a.seq":1,"a.quality":2,"x":3}`},
		{"a name that would be taken by then", "{device}", []config.Device{dev("a", "a.a.seq", "a.seq", "seq", "a.x")}, `{"a.a.a.seq":0,"a.a.seq":1,"a.seq":2,"a.x":3}`},
		{"devices that look the same in a topic", "{device}", []config.Device{dev("a+b", "x"), dev("a#b", "x")}, `{"a+b.x":0,"a#b.x":1}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var ids []point.ID
			var samples []point.Sample
			for _, d := range c.devices {
				for _, p := range d.Points {
					samples = append(samples, point.Sample{ID: p.ID, Value: point.IntValue(int64(len(ids))), Time: readAt})
					ids = append(ids, p.ID)
				}
			}
			topic := topicOf(t, config.Rule{Topic: c.topic, Payload: config.Batch}, c.devices, ids...)
			msg, _ := topic.Render(1, samples...)
			want := `{"timestamp":"2025-11-05T14:30:15.123Z",` + c.want[1:]
			if string(msg.Payload) != want {
				t.Errorf("got %s, want %s", msg.Payload, want)
			}
		})
	}
}

// The words of Modbus Monitor XPF for types and orders, where it has one.
func TestFullTypes(t *testing.T) {
	for _, c := range []struct {
		p    point.Point
		want string
	}{
		{point.Point{Type: point.Bool}, "BIT"},
		{point.Point{Type: point.Uint16}, "UINT16"},
		{point.Point{Type: point.Int64}, "INT64"},
		{point.Point{Type: point.Float32}, "FLOAT32"},
		{point.Point{Type: point.Float64}, "DOUBLE64"},
		{point.Point{Type: point.Bytes, Length: 4}, "HEX"},
		{point.Point{Type: point.String, Length: 4}, "STRING"},
		{point.Point{Type: point.Datetime, Layout: point.DT4}, "DATETIME"},
		{point.Point{Type: point.BCD16}, "BCD16"},
	} {
		if got := xpfType(&c.p); got != c.want {
			t.Errorf("%s is %s, want %s", c.p.TypeName(), got, c.want)
		}
	}
}

func TestVirtualPointInFull(t *testing.T) {
	d := config.Device{Name: "memory", Points: []point.Point{{ID: "memory.x"}}}
	topic := topicOf(t, config.Rule{Topic: "x", Payload: config.Full}, []config.Device{d}, "memory.x")
	msg, _ := topic.Render(1, point.Sample{ID: "memory.x", Value: point.IntValue(1)})
	const want = `{"RegName":"x","RegAddress":null,"RegUnitID":null,"RegGain":1,"RegOffset":0,"RegType":"UINT16","RegByteSwap":"ABCD_BE","RegValue":"1","OneBased":true,"HasError":false}`
	if string(msg.Payload) != want {
		t.Errorf("got %s, want %s", msg.Payload, want)
	}
}

func TestValueInTopic(t *testing.T) {
	rule := config.Rule{Topic: "{Value}/of/{Name}={Value}", Payload: config.Raw, BadNull: true}
	for _, c := range []struct {
		sample point.Sample
		want   string
	}{
		{read("temp", decimal("25.4")), "25.4/of/temp=25.4"},
		{read("pump", point.BoolValue(true)), "1/of/pump=1"},
		{read("status.mode", point.TextValue("a/b+c#d\x00\xff")), "a_b_c_d__/of/status.mode=a_b_c_d__"},
		{read("status.mode", point.TextValue("")), "_/of/status.mode=_"},
		{read("status.mode", point.TextValue("$SYS")), "_SYS/of/status.mode=$SYS"},
		{bad("temp"), "null/of/temp=null"},
	} {
		topic := topicOf(t, rule, []config.Device{boiler()}, c.sample.ID)
		if !strings.Contains(topic.Name, "{Value}") {
			t.Errorf("Name = %q, want {Value} left in it", topic.Name)
		}
		msg, _ := topic.Render(1, c.sample)
		if msg.Topic != c.want {
			t.Errorf("topic %q, want %q", msg.Topic, c.want)
		}
		if err := mqtt.ValidTopic(msg.Topic); err != nil {
			t.Error(err)
		}
	}
}

func TestClock(t *testing.T) {
	berlin := time.FixedZone("CET", 3600)
	var c teller
	for _, row := range []struct {
		at   time.Time
		want string
	}{
		{time.Date(2025, 11, 5, 14, 30, 15, 0, time.UTC), "2025-11-05T14:30:15.000Z"},
		{time.Date(2025, 11, 5, 14, 30, 15, 999_999_999, time.UTC), "2025-11-05T14:30:15.999Z"},
		{time.Date(2025, 11, 5, 15, 30, 15, 7_000_000, berlin), "2025-11-05T14:30:15.007Z"},
		{time.Date(2025, 11, 5, 14, 30, 16, 50_000_000, time.UTC), "2025-11-05T14:30:16.050Z"},
		{time.Date(2025, 12, 31, 23, 59, 59, 1_000_000, time.UTC), "2025-12-31T23:59:59.001Z"},
		{time.Unix(0, 0), "1970-01-01T00:00:00.000Z"},
		{time.Unix(0, -1), "1969-12-31T23:59:59.999Z"},
		{time.Time{}, "0001-01-01T00:00:00.000Z"},
	} {
		if got := string(c.append(nil, told{ms: row.at.UnixMilli()})); got != row.want+`"` {
			t.Errorf("%v is written %s, want %s", row.at, got, row.want)
		}
		if _, err := time.Parse(time.RFC3339Nano, row.want); err != nil {
			t.Error(err)
		}
	}
}

// Whatever a device, a name or a unit holds: every payload but raw is JSON
// without a key twice, every topic may be published on.
func FuzzRender(f *testing.F) {
	f.Add("temp", "°C", "auto", int64(254), int8(-1), 25.4, uint8(0), uint8(0), uint8(31))
	f.Add("a.b", "\xff\"", "\x00\\/+#", int64(math.MinInt64), int8(-128), math.Inf(1), uint8(3), uint8(2), uint8(0))
	f.Add("timestamp", "", "", int64(0), int8(127), math.NaN(), uint8(2), uint8(1), uint8(3))
	f.Fuzz(func(t *testing.T, name, unit, text string, mant int64, exp int8, float float64, payload, quality, fields uint8) {
		// A device name holds no dot. What the file says is UTF-8; what a
		// device says may be anything.
		name, unit = strings.ToValidUTF8(name, "?"), strings.ToValidUTF8(unit, "?")
		file := strings.ToValidUTF8(text, "?")
		d := config.Device{Name: "dev", Bus: "b" + file, Unit: 1}
		for i, v := range []string{name, name + "2", unit} {
			id := point.ID("dev." + v)
			if i == 2 && (v == name || v == name+"2") {
				break
			}
			d.Points = append(d.Points, point.Point{ID: id, Table: modbus.Table(i + 1), Unit: unit, Tags: map[string]string{file: name, unit: file}, Offset: point.Decimal{Mant: mant, Exp: exp}})
		}
		rule := config.Rule{Points: []string{"*"}, Topic: "x/{tag.t}/{bus}/{point}/{Value}", Payload: config.Payload(payload % 4), BadNull: true}
		if rule.Payload == config.Batch {
			rule.Topic = "x/{tag.t}/{device}"
		}
		all := []config.Field{config.FieldQuality, config.FieldSeq, config.FieldDevice, config.FieldPoint, config.FieldTags}
		for i, field := range all {
			if fields>>i&1 == 1 && (rule.Payload == config.JSON || rule.Payload == config.Batch && i < 2) {
				rule.Fields = append(rule.Fields, field)
			}
		}
		topics, faults := Topics(config.Site{ID: file, Tags: map[string]string{"t": file}}, []config.Rule{rule}, []config.Device{d})
		for _, fault := range faults {
			if fault.OtherRule != 0 || fault.Points[0] == "" && len(text)+len(name)+len(unit) < 1000 {
				// Two names may look the same in a topic; nothing else is wrong.
				t.Errorf("fault: %v", fault)
			}
		}
		values := []point.Value{point.TextValue(text), point.DecimalValue(point.Decimal{Mant: mant, Exp: exp}), point.Float64Value(float), point.Float32Value(float32(float)), point.UintValue(uint64(mant)), point.BoolValue(mant > 0), {}}
		for _, topic := range topics {
			var samples []point.Sample
			for i, id := range topic.Points() {
				samples = append(samples, point.Sample{ID: id, Value: values[(i+int(quality))%len(values)], Quality: point.Quality(quality % 3), Time: readAt.Add(time.Duration(mant))})
			}
			msg, ok := topic.Render(uint64(mant), samples...)
			if !ok {
				t.Fatalf("no message for %v", samples)
			}
			if err := mqtt.ValidTopic(msg.Topic); err != nil {
				t.Errorf("%v", err)
			}
			if rule.Payload != config.Raw {
				if err := soundJSON(msg.Payload); err != nil {
					t.Errorf("%v: %s", err, msg.Payload)
				}
			}
		}
	})
}

// soundJSON returns nil if b is one JSON object in valid UTF-8 in which no
// object has a key twice.
func soundJSON(b []byte) error {
	if !utf8.Valid(b) {
		return fmt.Errorf("not UTF-8")
	}
	if !json.Valid(b) {
		return fmt.Errorf("not JSON")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	var object func() error
	object = func() error {
		seen := make(map[string]bool)
		for d.More() {
			k, err := d.Token()
			if err != nil {
				return err
			}
			if seen[k.(string)] {
				return fmt.Errorf("key %q twice", k)
			}
			seen[k.(string)] = true
			v, err := d.Token()
			if err != nil {
				return err
			}
			if v == json.Delim('{') {
				if err := object(); err != nil {
					return err
				}
			}
		}
		_, err := d.Token()
		return err
	}
	if first, err := d.Token(); err != nil || first != json.Delim('{') {
		return fmt.Errorf("not an object")
	}
	return object()
}
