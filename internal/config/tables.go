package config

import (
	"log/slog"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// This file is the description of the configuration: every key, with its form,
// its default and what it is for. Decoding, suggestions and the JSON Schema
// all follow it. What the sections have to do with each other is in resolve.go,
// devices.go and brokers.go.

// tables is the whole description.
type tables struct {
	root    *object[rawConfig]
	point   *object[rawPoint] // of a device on a bus
	virtual *object[rawPoint]
	defs    []definition
}

// definition is a part of the JSON Schema with a name.
type definition struct {
	name string
	form *form
}

// define names a part of the JSON Schema and returns what refers to it.
func (t *tables) define(name string, o *form) schema {
	t.defs = append(t.defs, definition{name, o})
	return schema{{"$ref", "#/$defs/" + name}}
}

// The raw sections are what stands in the file, defaults filled in, before one
// section is held against another.
type (
	rawConfig struct {
		site    rawSite
		buses   []named[rawBus]
		devices []named[rawDevice]
		publish []rawRule
		uplinks []named[rawUplink]
		broker  *rawBroker
		servers []rawServer
		status  Status
		web     rawWeb
		log     Log

		settings     *rawSettings
		commands     []rawCommand
		commandRules CommandRules
	}
	rawSite struct {
		id   string
		tags map[string]string
	}
	rawBus struct {
		Bus
		serial, tcp, udp, listen string
		framing                  framing
	}
	rawDevice struct {
		bus     string
		unit    []unitRange
		every   every
		timeout time.Duration // unsetDuration: the bus's
		retries int           // -1: the bus's
		gap     time.Duration
		order   point.Order
		block   blocks
		holes   int
		base    int
		backoff timeSpan
		setup   []rawSetting
		points  *node
	}
	rawPoint struct {
		at       place
		kind     pointType
		order    point.Order
		half     string
		bit      int
		bits     []named[bitField]
		scale    point.Decimal
		offset   point.Decimal
		decimals int
		vmap     []point.MapEntry
		unit     string
		label    string
		tags     map[string]string
		every    point.Interval
		group    string
		invalid  []raw
		write    *point.Write

		// Of virtual devices.
		initial *node
		from    *rawFrom
		stale   time.Duration
		keep    bool
	}
	rawRule struct {
		Rule
		at *node
	}
	rawUplink struct {
		Uplink
		urls   []*url.URL
		bridge []rawBridge
	}
	rawBroker struct {
		Broker
		at     *node
		listen []*url.URL
		lan    bool
	}
)

// framing is a framing that may not be given.
type framing struct {
	is    modbus.Framing
	given bool
}

const unsetDuration time.Duration = -2

// located is a value that remembers where it stands.
func located[T any](v value[T], at func(*T) **node) value[T] {
	read := v.read
	return value[T]{v.schema, func(d *decoder, n *node) (T, bool) {
		got, ok := read(d, n)
		*at(&got) = n
		return got, ok
	}}
}

// pointer is a value that may be absent.
func pointer[T any](v value[T]) value[*T] {
	read := v.read
	return value[*T]{v.schema, func(d *decoder, n *node) (*T, bool) {
		got, ok := read(d, n)
		return &got, ok
	}}
}

// orNone is a value that is the zero value after a fault, rather than the
// default, which would be held against other settings.
func orNone[T any](v value[T]) value[T] {
	return value[T]{v.schema, func(d *decoder, n *node) (T, bool) {
		got, ok := v.read(d, n)
		if !ok {
			var none T
			got = none
		}
		return got, true
	}}
}

// newTables returns the description of the configuration.
func newTables() *tables {
	t := new(tables)
	site := newObject("site", "This gateway.", rawSite{},
		key("id", func(s *rawSite) *string { return &s.id }, siteID(), "Name of this gateway, {site} in topics. Default: the host name.").aka("name"),
		key("tags", func(s *rawSite) *map[string]string { return &s.tags }, tags(), "Texts for {tag.NAME} in topics, where the point has none."),
	).value(t, "site")
	bus := newBus(t)
	device := newDevice(t)
	rule := located(newRule(t), func(r *rawRule) **node { return &r.at })
	uplink := newUplink(t)
	broker := pointer(located(newBroker(t), func(b *rawBroker) **node { return &b.at }))
	status := newObject("status", "What the gateway says of itself.", Status{},
		key("topic", func(s *Status) *string { return &s.Topic }, template("a topic", statusPlaceholders, true), "Where: TOPIC/state and more below it.").def(`"fieldgate/{site}"`),
		key("every", func(s *Status) *time.Duration { return &s.Every }, duration(time.Second, 24*time.Hour), "How often the figures are published on TOPIC/stats.").def("60s").aka("interval"),
	).value(t, "status")
	log := newObject("log", "The log.", Log{},
		key("level", func(l *Log) *slog.Level { return &l.Level }, enum(
			word[slog.Level]{"debug", slog.LevelDebug}, word[slog.Level]{"info", slog.LevelInfo},
			word[slog.Level]{"warn", slog.LevelWarn}, word[slog.Level]{"error", slog.LevelError}), "Least level that is written.").def("info"),
		key("format", func(l *Log) *string { return &l.Format }, enum(same("auto", "text", "json", "journal")...), "auto: for the journal under systemd, else text.").def("auto"),
	).value(t, "log")
	t.root = newObject("the configuration", "A configuration of Fieldgate.", rawConfig{},
		key("site", func(c *rawConfig) *rawSite { return &c.site }, site, "This gateway: id and tags.").def("{}"),
		key("buses", func(c *rawConfig) *[]named[rawBus] { return &c.buses }, names(bus, "buses"), "Serial lines and connections, by name.").aka("bus", "lines", "ports", "connections", "channels"),
		key("devices", func(c *rawConfig) *[]named[rawDevice] { return &c.devices }, devices(device), "Devices on those buses, by name.").aka("slaves", "nodes", "units"),
		key("publish", func(c *rawConfig) *[]rawRule { return &c.publish }, list(rule, "rules"), "How points become messages. Default: one rule for every point, each on its own topic {site}/{device}/{point}, as JSON, on change and at least every 5 minutes.").def("[{}]").aka("rules", "topics"),
		key("uplinks", func(c *rawConfig) *[]named[rawUplink] { return &c.uplinks }, names(uplink, "uplinks"), "Upstream MQTT brokers, by name.").aka("brokers", "cloud", "upstreams", "uplink", "mqtt"),
		key("broker", func(c *rawConfig) **rawBroker { return &c.broker }, broker, "The embedded MQTT broker. Default: none.").aka("local"),
		key("status", func(c *rawConfig) *Status { return &c.status }, status, "What the gateway says of itself.").def("{}"),
		key("web", func(c *rawConfig) *rawWeb { return &c.web }, web(t), "Health and metrics over HTTP; false: none. Default: on 127.0.0.1:8080.").aka("http", "metrics", "prometheus", "dashboard", "api"),
		key("log", func(c *rawConfig) *Log { return &c.log }, log, "The log.").def("{}").aka("logging", "logger"),
		key("commands", func(c *rawConfig) *[]rawCommand { return &c.commands }, list(located(newCommand(t), func(c *rawCommand) **node { return &c.at }), "commands"), "Messages that ask for a write, a read or a note.").aka("subscriptions", "subscribe"),
		key("command_rules", func(c *rawConfig) *CommandRules { return &c.commandRules }, newCommandRules(t), "Rules for all commands.").def("{}"),
		key("settings", func(c *rawConfig) **rawSettings { return &c.settings }, settings(t), "What may be changed by messages. Default: nothing.").aka("remote", "update"),
		later[*rawConfig]("alarms", "Limits and their messages."),
		key("servers", func(c *rawConfig) *[]rawServer { return &c.servers }, list(located(newServer(t), func(s *rawServer) **node { return &s.at }), "servers"), "Modbus servers for local PLCs.").aka("server", "slave", "modbus_server"),
		later[*rawConfig]("tests", "Golden cases."),
	)
	return t
}

const (
	maxTimeout = 10 * time.Minute
	maxGap     = time.Minute
	maxRetries = 10
)

func newBus(t *tables) value[rawBus] {
	o := newObject("a bus", "A serial line or a connection: exactly one of serial, tcp, udp and listen.", rawBus{Bus: Bus{Gap: GapAuto}},
		key("serial", func(b *rawBus) *string { return &b.serial }, serialPath(), "Serial port, best by its path in /dev/serial/by-id.").aka("port", "device", "tty"),
		key("tcp", func(b *rawBus) *string { return &b.tcp }, hostPort("502", false), "HOST:PORT to connect to.").aka("host", "address", "ip", "url"),
		key("udp", func(b *rawBus) *string { return &b.udp }, hostPort("502", false), "HOST:PORT to send to."),
		key("listen", func(b *rawBus) *string { return &b.listen }, hostPort("5020", true), "HOST:PORT that the device dials in to."),
		key("framing", func(b *rawBus) *framing { return &b.framing }, enum(
			word[framing]{"rtu", framing{modbus.FramingRTU, true}}, word[framing]{"ascii", framing{modbus.FramingASCII, true}}, word[framing]{"tcp", framing{modbus.FramingTCP, true}}),
			"How requests are wrapped; tcp is MBAP. Default: rtu for serial and listen, tcp for tcp and udp.").aka("protocol", "transport"),
		key("mode", func(b *rawBus) *SerialMode { return &b.Mode }, serialMode(), "Baud, data bits, parity and stop bits of a serial line.").def("19200-8E1").aka("baud", "baudrate", "baud_rate", "parity", "speed"),
		key("rs485", func(b *rawBus) *RS485Mode { return &b.RS485.Mode }, enum(
			word[RS485Mode]{"off", RS485Off}, word[RS485Mode]{"kernel", RS485Kernel}, word[RS485Mode]{"rts", RS485RTS}),
			"Who switches the transmitter: the adapter itself (off), the kernel (TIOCSRS485), or Fieldgate by RTS.").def("off"),
		key("rts_invert", func(b *rawBus) *bool { return &b.RS485.Invert }, boolean(), "RTS is low while sending.").def("false"),
		key("delay_before", func(b *rawBus) *time.Duration { return &b.RS485.DelayBefore }, duration(0, time.Second), "From switching the transmitter on to the first byte.").def("0s"),
		key("delay_after", func(b *rawBus) *time.Duration { return &b.RS485.DelayAfter }, duration(0, time.Second), "From the last byte to switching the transmitter off.").def("0s"),
		key("timeout", func(b *rawBus) *time.Duration { return &b.Timeout }, duration(time.Millisecond, maxTimeout), "From the request's last byte to the response's first.").def("1s").aka("response_timeout"),
		key("connect_timeout", func(b *rawBus) *time.Duration { return &b.ConnectTimeout }, duration(10*time.Millisecond, maxTimeout), "How long a connection may take to open (tcp).").def("5s"),
		key("gap", func(b *rawBus) *time.Duration { return &b.Gap }, duration(0, maxGap), "Least silence before a request. Default: 3.5 characters on serial lines, else 0.").aka("delay", "pause", "interframe", "silent_interval"),
		key("settle", func(b *rawBus) *time.Duration { return &b.Settle }, duration(0, maxTimeout), "Wait after the port or connection opened.").def("0s"),
		key("in_flight", func(b *rawBus) *int { return &b.InFlight }, or("auto", InFlightAuto, integer(1, 16)), "Transactions at once on one TCP connection, 1 to 16; auto: more while the device answers each id rightly, 1 at its first slip.").def("1").aka("pipeline", "window", "max_in_flight"),
		key("retries", func(b *rawBus) *int { return &b.Retries }, integer(0, maxRetries), "Repeats of a read within one poll. A write is never repeated in silence.").def("1").aka("retry"),
	)
	o.extra = schema{{"oneOf", []schema{{{"required", []string{"serial"}}}, {{"required", []string{"tcp"}}}, {{"required", []string{"udp"}}}, {{"required", []string{"listen"}}}}}}
	return o.value(t, "bus")
}

// devices is a map from names, in which {unit} may stand, to devices.
func devices(v value[rawDevice]) value[[]named[rawDevice]] {
	all := names(v, "devices")
	const first, inner = `([\p{L}\p{N}_]|\{unit\})`, `([\p{L}\p{M}\p{N}_ -]|\{unit\})`
	const last = `([\p{L}\p{M}\p{N}_-]|\{unit\})`
	for i, m := range all.schema {
		if m.key == "propertyNames" {
			all.schema[i].value = schema{{"pattern", "^" + first + "(" + inner + "*" + last + ")?$"}, {"maxLength", maxName}}
		}
	}
	read := v.read
	return value[[]named[rawDevice]]{all.schema, func(d *decoder, n *node) ([]named[rawDevice], bool) {
		return readNames(d, n, read, "devices", goodDeviceName)
	}}
}

func newDevice(t *tables) value[rawDevice] {
	t.point = newPoint(t)
	virtual := *t.point
	at := *virtual.keys[0]
	at.required = false
	virtual.keys = slices.Clone(virtual.keys)
	virtual.keys[0] = &at
	t.virtual = &virtual
	pt := t.virtual.value(t, "point")
	points := value[*node]{
		schema{{"type", "object"}, {"propertyNames", schema{{"pattern", "^" + nameWord + `(\.` + nameWord + ")*$"}, {"maxLength", maxName}}}, {"additionalProperties", pt.schema}},
		func(_ *decoder, n *node) (*node, bool) { return n, true },
	}
	o := newObject("a device", "One unit id on a bus, or several of the same kind; or, without a bus, values that live in memory.", rawDevice{timeout: unsetDuration, retries: -1, gap: GapAuto},
		key("bus", func(v *rawDevice) *string { return &v.bus }, text("the name of a bus"), "The bus that it is on. Default: none; the device is virtual, its values live in memory.").aka("line", "port", "connection"),
		key("unit", func(v *rawDevice) *[]unitRange { return &v.unit }, orNone(unitIDs()), `Unit id; or several, 1-4 or "1,3,8-9", with {unit} in the device's name: then one device each.`).def("1").aka("slave", "slave_id", "unit_id", "id", "address", "slaveid", "station"),
		key("points", func(v *rawDevice) **node { return &v.points }, points, "The device's values, by name.").must().aka("registers", "tags", "values", "signals"),
		key("every", func(v *rawDevice) *every { return &v.every }, deviceEvery(), "Poll interval; 0s = as fast as the bus allows; a map {group: interval} for points with a group, 1s for the others; once, never.").def("1s").aka("interval", "poll", "poll_interval", "period", "scan", "rate"),
		key("timeout", func(v *rawDevice) *time.Duration { return &v.timeout }, duration(time.Millisecond, maxTimeout), "As of the bus, whose it is by default.").aka("response_timeout"),
		key("retries", func(v *rawDevice) *int { return &v.retries }, integer(0, maxRetries), "As of the bus, whose it is by default.").aka("retry"),
		key("gap", func(v *rawDevice) *time.Duration { return &v.gap }, duration(0, maxGap), "As of the bus, whose it is by default.").aka("delay", "pause"),
		key("order", func(v *rawDevice) *point.Order { return &v.order }, order(), "Order of bytes and words in values wider than a register: ABCD big endian, DCBA little endian, CDAB words swapped, BADC bytes swapped.").def("ABCD").aka("byte_order", "word_order", "endian", "swap", "byteswap"),
		key("max_block", func(v *rawDevice) *blocks { return &v.block }, maxBlock(t), "Longest read in registers, or {registers: N, bits: N}.").def("125").aka("max_registers", "max_read"),
		key("holes", func(v *rawDevice) *int { return &v.holes }, or("auto", HolesAuto, integer(0, modbus.MaxReadRegisters-1)), "Registers that may be read without being asked for, to save a request; 0 = never; auto = when that is faster.").def("auto").aka("max_gap", "max_hole"),
		key("base", func(v *rawDevice) *int { return &v.base }, integer(0, 1), "1: the numbers in \"holding N\" count from one.").def("0").aka("one_based", "zero_based", "offset"),
		key("backoff", func(v *rawDevice) *timeSpan { return &v.backoff }, durations(10*time.Millisecond, 24*time.Hour), "How seldom a device that does not answer is tried, at first and in the end.").def("5s..5m"),
		key("setup", func(v *rawDevice) *[]rawSetting { return &v.setup }, setup(t), "Values that the device is given whenever it comes back: a list of {point or at, value}.").aka("init", "initialize"),
		later[*rawDevice]("profile", "A register map from the library."),
	)
	address := schema{{"properties", schema{{"points", schema{{"additionalProperties", schema{{"required", []string{"at"}}}}}}}}}
	o.extra = schema{{"if", schema{{"required", []string{"bus"}}}}, {"then", address}}
	return o.value(t, "device")
}

func newPoint(t *tables) *object[rawPoint] {
	write := newObject("write", "How the point may be written. Without it, it is read only.", point.Write{},
		key("min", func(w *point.Write) **point.Decimal { return &w.Min }, optionalDecimal(), "Least value."),
		key("max", func(w *point.Write) **point.Decimal { return &w.Max }, optionalDecimal(), "Greatest value."),
		key("step", func(w *point.Write) **point.Decimal { return &w.Step }, optionalDecimal(), "Values are multiples of it, counted from min."),
		key("only", func(w *point.Write) *[]point.Value { return &w.Only }, list(anyValue(), "values"), "The only values allowed.").aka("enum", "values", "allowed"),
		key("verify", func(w *point.Write) *bool { return &w.Verify }, boolean(), "Read back after the write.").def("true").aka("readback"),
		key("skip_if_equal", func(w *point.Write) *bool { return &w.SkipIfEqual }, boolean(), "Do not write what is there already.").def("true"),
		key("priority", func(w *point.Write) *bool { return &w.Emergency }, enum(word[bool]{"normal", false}, word[bool]{"emergency", true}), "emergency: passes every other request of its bus.").def("normal"),
		key("rate", func(w *point.Write) *time.Duration { return &w.RateEvery }, rate(), "How often it may be written, such as 1/s."),
		key("budget", func(w *point.Write) *int { return &w.Budget }, budget(), "How often it may be written in a day, such as 200/day."),
		key("function", func(w *point.Write) *modbus.FunctionCode { return &w.Function }, writeFunction(), "Function code: 5 or 15 for coils, 6 or 16 for registers; auto: by type.").def("auto").aka("function_code", "fc"),
		key("on_uplink_loss", func(w *point.Write) *point.Value { return &w.OnLoss }, lossValue(), "hold, or the value that is written when every uplink that may command the point is lost.").def("hold").aka("failsafe", "fallback"),
		key("reassert", func(w *point.Write) *time.Duration { return &w.Reassert }, duration(100*time.Millisecond, 24*time.Hour), "How often a commanded value is written again while its command is valid."),
	).value(t, "write")
	zero := rawPoint{order: unsetOrder, bit: -1, decimals: -1, every: unsetInterval}
	o := newObject("a point", "One named value of a device.", zero,
		key("at", func(p *rawPoint) *place { return &p.at }, address(), "Where: holding 0, input 0x1F, coil 3, discrete 9 (protocol addresses, from zero), or a Modicon number of five or six digits: 40001 = 400001 = holding 0, \"00001\" (in quotes) = coil 0.").must().aka("address", "addr", "register", "reg", "location"),
		key("type", func(p *rawPoint) *pointType { return &p.kind }, typeOf(), "How the value is laid out. Default: bool in coils and discrete inputs, uint16 in registers. string(N) and bytes(N) count registers.").aka("datatype", "data_type", "format"),
		key("order", func(p *rawPoint) *point.Order { return &p.order }, order(), "As of the device, whose it is by default.").aka("byte_order", "word_order", "endian", "swap", "byteswap"),
		key("byte", func(p *rawPoint) *string { return &p.half }, enum(same("high", "low")...), "Which half of the register an int8 or uint8 is. Default: high."),
		key("bit", func(p *rawPoint) *int { return &p.bit }, integer(0, 15), "One bit of a register, as a boolean; 0 is the least significant.").aka("bitmask", "mask"),
		key("bits", func(p *rawPoint) *[]named[bitField] { return &p.bits }, bitFields(), "Several fields of a register: {fault: 0, mode: 4-6} makes the points NAME.fault and NAME.mode."),
		key("scale", func(p *rawPoint) *point.Decimal { return &p.scale }, decimal(), "value = raw × scale + offset, in decimal arithmetic.").def("1").aka("gain", "factor", "multiplier", "slope", "multiply"),
		key("offset", func(p *rawPoint) *point.Decimal { return &p.offset }, decimal(), "value = raw × scale + offset, in decimal arithmetic.").def("0").aka("add"),
		key("decimals", func(p *rawPoint) *int { return &p.decimals }, integer(0, 15), "Round to so many places. Default: what scale and offset give.").aka("precision", "round", "digits"),
		key("map", func(p *rawPoint) *[]point.MapEntry { return &p.vmap }, valueMap(), "Texts for raw numbers: {0: stopped, 1: running}. Writes take the text.").aka("enum", "states", "mapping", "values"),
		key("unit", func(p *rawPoint) *string { return &p.unit }, text("an engineering unit such as °C"), "Engineering unit.").aka("units", "uom"),
		key("label", func(p *rawPoint) *string { return &p.label }, text("a text"), "What a person calls it.").aka("description", "name", "title", "comment"),
		key("tags", func(p *rawPoint) *map[string]string { return &p.tags }, tags(), "Texts for {tag.NAME} in topics, and for payloads."),
		key("every", func(p *rawPoint) *point.Interval { return &p.every }, interval(), "As of the device, whose it is by default.").aka("interval", "poll", "period", "scan", "rate"),
		key("group", func(p *rawPoint) *string { return &p.group }, text("the name of a group"), "Points of one group are read together in one request, or marked uncertain."),
		key("invalid", func(p *rawPoint) *[]raw { return &p.invalid }, rawValues(), "Raw values that mean \"no value\": [0x8000]. Of a float -9999 is the number, 0x7FC00000 its bits.").aka("nan", "error_value"),
		key("write", func(p *rawPoint) **point.Write { return &p.write }, pointer(write), "How the point may be written; {} = without limits. Default: read only.").aka("writable", "rw", "access", "readonly"),
	)
	o.add(&o.zero, virtualKeys(t)...)
	return o
}

func newRule(t *tables) value[rawRule] {
	fields := make([]word[Field], 0, 5)
	for _, f := range []Field{FieldQuality, FieldSeq, FieldDevice, FieldPoint, FieldTags} {
		fields = append(fields, word[Field]{string(f), f})
	}
	return newObject("a rule", "How some points become messages.", rawRule{},
		key("points", func(r *rawRule) *[]string { return &r.Points }, oneOrList(glob(), "patterns"), "Patterns over device.point; * stands for any characters.").def(`"*"`).aka("point", "match", "select"),
		key("topic", func(r *rawRule) *string { return &r.Topic }, template("a topic", rulePlaceholders, true), "Placeholders: {site} {bus} {device} {point} {unit} {type} {tag.NAME} {UnitID} {Address} {Name} {Value}.").def(`"{site}/{device}/{point}"`),
		key("payload", func(r *rawRule) *Payload { return &r.Payload }, payload(), "raw: the bare value. json: value, timestamp and unit. full: a record with every detail. batch: all points that share the topic in one object.").def("json").aka("format"),
		key("fields", func(r *rawRule) *[]Field { return &r.Fields }, list(enum(fields...), "fields"), "More members for a json payload."),
		key("when", func(r *rawRule) *When { return &r.When }, whenOf(t), "each: every poll; or on change.").def("{change: any, at_least: 5m}").aka("on", "trigger"),
		key("every", func(r *rawRule) *time.Duration { return &r.Every }, duration(10*time.Millisecond, maxWait), "Timed, instead of when.").aka("interval", "period"),
		key("qos", func(r *rawRule) *uint8 { return &r.QoS }, qos(), "MQTT quality of service.").def("1"),
		key("retain", func(r *rawRule) *bool { return &r.Retain }, boolean(), "The broker keeps the last message for later subscribers.").def("false"),
		key("to", func(r *rawRule) *[]string { return &r.To }, oneOrList(text("the name of an uplink, or local"), "names of uplinks, or local"), "Names of uplinks; local is the embedded broker. Default: all of them.").aka("uplink", "uplinks", "broker"),
		key("bad", func(r *rawRule) *bool { return &r.BadNull }, bad(), "What a failed read publishes: null (with its quality), or nothing.").def("nothing"),
		later[*rawRule]("aggregate", "Averages and the like over an interval."),
	).value(t, "rule")
}

func qos() value[uint8] {
	v := integer(0, 2)
	return value[uint8]{v.schema, func(d *decoder, n *node) (uint8, bool) {
		got, ok := v.read(d, n)
		return uint8(got), ok
	}}
}

func newUplink(t *tables) value[rawUplink] {
	pw := secret(t)
	tlsForm := newObject("tls", "What the uplink presents and trusts.", UplinkTLS{},
		key("ca", func(c *UplinkTLS) *string { return &c.CA }, path(), "Certificates of the authorities to trust, PEM or DER. Default: the system's.").aka("cafile", "ca_file", "ca_cert"),
		key("cert", func(c *UplinkTLS) *string { return &c.Cert }, path(), "Our certificate: PEM, with key beside it or in the same file; or one PKCS#12 file (.p12, .pfx), with password.").aka("certfile", "cert_file", "pfx", "p12"),
		key("key", func(c *UplinkTLS) *string { return &c.Key }, path(), "The key of our certificate, PEM.").aka("keyfile", "key_file"),
		key("password", func(c *UplinkTLS) *SecretSource { return &c.Password }, pw, "Password of the PKCS#12 file.").hide(),
		key("server_name", func(c *UplinkTLS) *string { return &c.ServerName }, text("a host name"), "Name that the broker's certificate must have. Default: the URL's host.").aka("sni"),
		key("alpn", func(c *UplinkTLS) *[]string { return &c.ALPN }, list(text("a protocol name"), "protocol names"), "Protocols to offer, such as x-amzn-mqtt-ca."),
		key("min", func(c *UplinkTLS) *uint16 { return &c.MinVersion }, tlsVersion(), "Least version of TLS.").def("1.2").aka("min_version"),
		key("insecure", func(c *UplinkTLS) *bool { return &c.Insecure }, boolean(), "Do not check the broker's certificate. Raises a standing warning.").def("false").aka("skip_verify", "insecure_skip_verify"),
	)
	tlsValue := tlsForm.value(t, "uplink_tls")
	queueForm := newObject("queue", "What waits for the uplink while it is away.", Queue{},
		key("max_bytes", func(q *Queue) *int64 { return &q.MaxBytes }, size(64<<10, 1<<40), "Most it may hold.").def("256MiB").aka("max_size", "size", "limit"),
		key("max_age", func(q *Queue) *time.Duration { return &q.MaxAge }, duration(time.Second, 10*maxWait), "Older messages are dropped.").def("30d"),
		key("when_full", func(q *Queue) *bool { return &q.DropNewest }, enum(word[bool]{"drop_oldest", false}, word[bool]{"drop_newest", true}), "Which messages go when it is full.").def("drop_oldest"),
		key("commit", func(q *Queue) *time.Duration { return &q.Commit }, duration(0, time.Minute), "What a power cut may lose at most; 0: nothing accepted, at the cost of a write to disk each.").def("1s"),
		key("order", func(q *Queue) *bool { return &q.LiveFirst }, enum(word[bool]{"in_order", false}, word[bool]{"live_first", true}), "live_first: after an outage new messages go before old ones.").def("in_order"),
		key("rate", func(q *Queue) *int64 { return &q.Rate }, size(0, math.MaxInt64/4), "Most bytes a second of what has waited; 0: no limit.").def("0"),
	)
	queueValue := queueForm.value(t, "queue")
	zero := rawUplink{Uplink: Uplink{TLS: tlsForm.zero, Queue: queueForm.zero}}
	return newObject("an uplink", "An upstream MQTT broker.", zero,
		key("url", func(u *rawUplink) *[]*url.URL { return &u.urls }, oneOrList(brokerURL(false), "URLs"), "mqtt:// mqtts:// ws:// or wss://HOST[:PORT][/PATH]; a list is tried in order. The path of ws is /mqtt by default.").must().aka("host", "server", "address", "broker", "uri", "urls"),
		key("client_id", func(u *rawUplink) *string { return &u.ClientID }, template("a client id", clientPlaceholders, false), "Must be unique at the broker.").def(`"{site}-{name}"`).aka("clientid", "id"),
		key("username", func(u *rawUplink) *string { return &u.Username }, text("a user name"), "User.").aka("user", "login"),
		key("password", func(u *rawUplink) *SecretSource { return &u.Password }, pw, "Password: {file: PATH}, {env: NAME}, {credential: NAME}, or in plain text, which raises a standing warning.").hide().aka("pass", "secret"),
		key("keepalive", func(u *rawUplink) *time.Duration { return &u.Keepalive }, duration(5*time.Second, 65535*time.Second), "Longest silence before a ping.").def("60s").aka("keep_alive"),
		key("connect_timeout", func(u *rawUplink) *time.Duration { return &u.ConnectTimeout }, duration(100*time.Millisecond, maxTimeout), "How long connecting may take.").def("10s").aka("timeout"),
		key("clean_session", func(u *rawUplink) *bool { return &u.CleanSession }, boolean(), "false: the broker keeps commands for us while we are away.").def("true").aka("clean", "clean_start"),
		key("proxy", func(u *rawUplink) *string { return &u.Proxy }, proxyURL(), "http://, https:// or socks5://HOST:PORT. Default: from the environment (HTTPS_PROXY, NO_PROXY)."),
		key("azure_sas", func(u *rawUplink) **AzureSAS { return &u.AzureSAS }, pointer(azureSAS(t, pw)), "Shared access tokens for an Azure IoT Hub, in place of password; username is made too. Default: none.").hide(),
		key("retain", func(u *rawUplink) *bool { return &u.NoRetain }, inverse(), "false: no message asks this broker to retain it, for brokers that hang up over that.").def("true"),
		key("max_qos", func(u *rawUplink) *uint8 { return &u.MaxQoS }, maxQoS(), "1: what has QoS 2 goes with QoS 1, for brokers that take no more.").def("2"),
		key("status", func(u *rawUplink) *bool { return &u.NoStatus }, inverse(), "false: neither will nor birth nor any other topic of status goes there, for brokers that take only topics of their own.").def("true"),
		key("tls", func(u *rawUplink) *UplinkTLS { return &u.TLS }, tlsValue, "For mqtts:// and wss://.").aka("ssl"),
		key("queue", func(u *rawUplink) *Queue { return &u.Queue }, queueValue, "What waits while the uplink is away.").aka("buffer", "store"),
		bridgeKey(t),
	).value(t, "uplink")
}

func newBroker(t *tables) value[rawBroker] {
	tlsValue := newObject("tls", "For mqtts:// and wss:// listeners.", BrokerTLS{},
		key("cert", func(c *BrokerTLS) *string { return &c.Cert }, path(), "Certificate, PEM.").must().aka("certfile", "cert_file"),
		key("key", func(c *BrokerTLS) *string { return &c.Key }, path(), "Its key, PEM.").must().aka("keyfile", "key_file"),
		key("client_ca", func(c *BrokerTLS) *string { return &c.ClientCA }, path(), "Clients must have a certificate from one of these authorities, PEM.").aka("ca", "cafile"),
	).value(t, "broker_tls")
	user := newObject("a user", "Who may connect, and to what.", User{},
		key("name", func(u *User) *string { return &u.Name }, text("a user name"), "User name.").must().aka("username", "user"),
		key("password", func(u *User) *string { return &u.Password }, passwordHash(), "argon2id hash, as \"fieldgate passwd\" prints it.").must().hide().aka("hash"),
		key("publish", func(u *User) *[]string { return &u.Publish }, list(filter(), "topic filters"), "Filters of the topics it may publish on. Default: none.").aka("write"),
		key("subscribe", func(u *User) *[]string { return &u.Subscribe }, list(filter(), "topic filters"), "Filters it may subscribe to. Default: none.").aka("read"),
	).value(t, "user")
	return newObject("the broker", "The embedded MQTT broker.", rawBroker{},
		key("listen", func(b *rawBroker) *[]*url.URL { return &b.listen }, oneOrList(brokerURL(true), "URLs"), "mqtt:// mqtts:// ws:// or wss://HOST:PORT.").def("[mqtt://127.0.0.1:1883]").aka("url", "port", "address", "listeners"),
		key("tls", func(b *rawBroker) *BrokerTLS { return &b.TLS }, tlsValue, "For mqtts:// and wss://.").aka("ssl"),
		key("users", func(b *rawBroker) *[]User { return &b.Users }, list(user, "users"), "Who may connect.").aka("user", "auth", "accounts"),
		key("anonymous", func(b *rawBroker) *bool { return &b.Anonymous }, boolean(), "Anyone may connect, publish and subscribe; only on loopback addresses.").def("false").aka("allow_anonymous"),
		key("anonymous_lan", func(b *rawBroker) *bool { return &b.lan }, boolean(), "Allows anonymous on other addresses too.").def("false"),
		key("persist", func(b *rawBroker) *bool { return &b.Persist }, boolean(), "Keep retained messages and sessions over a restart.").def("true").aka("persistence"),
		key("max_clients", func(b *rawBroker) *int { return &b.MaxClients }, integer(1, 10000), "Most clients at once.").def("64").aka("max_connections"),
		key("max_packet", func(b *rawBroker) *int { return &b.MaxPacket }, packetSize(), "Longest packet.").def("256KiB").aka("max_packet_size"),
		key("keepalive_max", func(b *rawBroker) *time.Duration { return &b.KeepaliveMax }, duration(5*time.Second, 43690*time.Second), "Longest keep-alive a client gets.").def("60s"),
		key("session_expiry", func(b *rawBroker) *time.Duration { return &b.SessionExpiry }, duration(0, 10*maxWait), "How long the session of a client that is away is kept.").def("7d"),
	).value(t, "broker")
}

func packetSize() value[int] {
	v := size(1<<10, 256<<20)
	return value[int]{v.schema, func(d *decoder, n *node) (int, bool) {
		got, ok := v.read(d, n)
		return int(got), ok
	}}
}

// goodDeviceName is goodName for names in which {unit} may stand.
func goodDeviceName(s string) string {
	if strings.Contains(s, ".") {
		return "may not hold a dot, which stands between device and point; write _ or -"
	}
	return goodName(expandName(s, 1))
}

// goodPointName is goodName for names in which dots may stand.
func goodPointName(s string) string {
	for part := range strings.SplitSeq(s, ".") {
		if wrong := goodName(part); wrong != "" {
			return wrong
		}
	}
	if len(s) > maxName {
		return goodName(s)
	}
	return ""
}
