package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"fieldgate/internal/config/yamltree"
	"fieldgate/internal/point"
)

// This file has the forms of value of the MQTT side: topics, filters, URLs,
// secrets, conditions.

// Placeholders of the topics and names that have any.
var (
	rulePlaceholders   = []string{"site", "bus", "device", "point", "unit", "type", "tag.NAME", "UnitID", "Address", "Name", "Value"}
	statusPlaceholders = []string{"site"}
	clientPlaceholders = []string{"site", "name"}
)

// template is a topic, or another text, with placeholders in braces.
func template(what string, known []string, topic bool) value[string] {
	v := text(what)
	return value[string]{v.schema, func(d *decoder, n *node) (string, bool) {
		s, ok := d.text(n, what)
		if !ok {
			return "", false
		}
		for _, wrong := range checkTemplate(s, known, topic) {
			d.faultf(n, "%s", wrong)
			ok = false
		}
		return s, ok
	}}
}

// checkTemplate returns what is wrong with a text with placeholders.
func checkTemplate(s string, known []string, topic bool) []string {
	var wrong []string
	for rest := s; rest != ""; {
		i := strings.IndexAny(rest, "{}+#")
		if i < 0 {
			break
		}
		c := rest[i]
		rest = rest[i+1:]
		if c == '+' || c == '#' {
			if topic {
				wrong = append(wrong, fmt.Sprintf("%q is a wildcard, and nothing can be published on those; write another character", c))
				topic = false // said once
			}
			continue
		}
		name, after, closed := strings.Cut(rest, "}")
		if c == '}' || !closed {
			return append(wrong, fmt.Sprintf("%s has a brace without its other half; write placeholders like {%s}", quote(s), known[0]))
		}
		rest = after
		tag, isTag := strings.CutPrefix(name, "tag.")
		if slices.Contains(known, name) && name != "tag.NAME" || isTag && tag != "" && slices.Contains(known, "tag.NAME") {
			continue
		}
		wrong = append(wrong, fmt.Sprintf("%q is not a placeholder; %s", "{"+name+"}", suggestPlaceholder(name, known)))
	}
	return wrong
}

func suggestPlaceholder(name string, known []string) string {
	if near := nearest(name, known); near != "" && near != "tag.NAME" {
		return "did you mean {" + near + "}?"
	}
	return "known: {" + strings.Join(known, "} {") + "}"
}

// checkFilter returns what is wrong with a topic filter, "" for nothing.
func checkFilter(s string) string {
	for rest, more := s, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		switch {
		case level == "#" && more:
			return "# must be the last level; write what comes before it"
		case len(level) > 1 && strings.ContainsAny(level, "+#"):
			return "+ and # must each be a level of its own, as in a/+/b and a/#"
		}
	}
	return ""
}

// filter is a topic filter.
func filter() value[string] {
	v := text("a topic filter such as plant/#")
	return value[string]{v.schema, func(d *decoder, n *node) (string, bool) {
		s, ok := v.read(d, n)
		if wrong := checkFilter(s); ok && wrong != "" {
			d.faultf(n, "%s is not a topic filter: %s", quote(s), wrong)
			return "", false
		}
		return s, ok
	}}
}

// glob is a pattern over device.point.
func glob() value[string] {
	v := text("a pattern over device.point, such as boiler.*")
	return value[string]{v.schema, func(d *decoder, n *node) (string, bool) {
		s, ok := v.read(d, n)
		if ok && !strings.ContainsAny(s, ".*?") {
			d.faultf(n, "%s fits no point, whose names are device.point; write %s.*", quote(s), s)
			return "", false
		}
		return s, ok
	}}
}

// siteID is the name of the gateway, a level of its topics.
func siteID() value[string] {
	v := text("a name for this gateway")
	return value[string]{v.schema, func(d *decoder, n *node) (string, bool) {
		s, ok := v.read(d, n)
		if i := strings.IndexAny(s, "+#/{}"); ok && i >= 0 {
			d.faultf(n, "%q cannot be part of it, because it becomes a level of topics; write another character", s[i:i+1])
			return "", false
		}
		return s, ok
	}}
}

// payload is the form of a message.
func payload() value[Payload] {
	v := enum(word[Payload]{"json", JSON}, word[Payload]{"raw", Raw}, word[Payload]{"full", Full}, word[Payload]{"batch", Batch})
	return value[Payload]{v.schema, func(d *decoder, n *node) (Payload, bool) {
		if n.Kind == yamltree.Map && has(n, "template") {
			d.shapef(n, "template is not in this version yet; write json, raw, full or batch")
			return 0, false
		}
		return v.read(d, n)
	}}
}

// change is when a value counts as changed.
type change struct {
	any     bool
	band    point.Decimal
	percent bool
}

func changeOf() value[change] {
	const want = "any, a dead band such as 0.2, or one in percent such as 1%"
	s := anyOf(schema{{"const", "any"}}, schema{{"type", "number"}, {"minimum", 0}}, pattern(`^[0-9]+(\.[0-9]+)?%$`))
	return value[change]{s, func(d *decoder, n *node) (change, bool) {
		s, ok := d.scalar(n, want)
		if !ok {
			return change{}, false
		}
		if s == "any" {
			return change{any: true}, true
		}
		c := change{}
		if number, percent := strings.CutSuffix(s, "%"); percent {
			digits, rest := span(number)
			if strings.HasPrefix(rest, ".") && len(rest) > 1 {
				_, rest = span(rest[1:])
			}
			v, err := point.ParseDecimal(number)
			if err != nil || rest != "" || digits == 0 {
				d.shapef(n, "%s is not a dead band; write %s", quote(s), want)
				return change{}, false
			}
			c = change{band: v, percent: true}
		} else {
			v, ok := d.decimal(n, want)
			if !ok {
				return change{}, false
			}
			c = change{band: v}
		}
		if c.band.Mant < 0 {
			d.shapef(n, "%s is below 0; write %s", s, want)
			return change{}, false
		}
		if c.band.IsZero() {
			c = change{any: true}
		}
		return c, true
	}}
}

// condition is which samples are published, as it is written.
type condition struct {
	change  change
	atLeast time.Duration
	atMost  time.Duration
}

// maxWait is the longest time between two messages that can be asked for.
const maxWait = 366 * 24 * time.Hour

func whenOf(t *tables) value[When] {
	form := newObject("when", "Which samples of a point are published.", condition{},
		key("change", func(c *condition) *change { return &c.change }, changeOf(), "any change, or a dead band: 0.2 in the point's own unit, or 1% of the value published last.").def("any").aka("deadband", "delta"),
		key("at_least", func(c *condition) *time.Duration { return &c.atLeast }, duration(0, maxWait), "Heartbeat: publish after this time although nothing changed; 0 = never. Default: 5m, or at_most if that is longer.").def("5m").aka("heartbeat", "max_interval"),
		key("at_most", func(c *condition) *time.Duration { return &c.atMost }, duration(0, maxWait), "Least time between two messages of one point.").def("0s").aka("min_interval", "throttle"),
	).value(t, "when")
	return value[When]{anyOf(schema{{"const", "each"}}, form.schema), func(d *decoder, n *node) (When, bool) {
		if isWord(n, "each") {
			return When{Each: true}, true
		}
		if n.Kind != yamltree.Map {
			d.wrongKind(n, "each, or a map such as {change: 0.2, at_least: 5m}", "")
			return When{}, false
		}
		c, ok := form.read(d, n)
		if !has(n, "at_least") {
			c.atLeast = max(c.atLeast, c.atMost)
		}
		if c.atLeast > 0 && c.atMost > c.atLeast {
			d.faultf(n, "at_most %s would hold back the heartbeat at_least %s; write a shorter at_most", FormatDuration(c.atMost), FormatDuration(c.atLeast))
			ok = false
		}
		return When{AnyChange: c.change.any, Band: c.change.band, Percent: c.change.percent, AtLeast: c.atLeast, AtMost: c.atMost}, ok
	}}
}

// bad is what becomes of a failed read.
func bad() value[bool] {
	return value[bool]{schema{{"enum", []any{nil, "nothing"}}}, func(d *decoder, n *node) (bool, bool) {
		switch {
		case n.IsNull() && n.Text == "null":
			return true, true
		case isWord(n, "nothing"):
			return false, true
		case n.IsNull():
			d.faultf(n, "is empty; write null or nothing")
		default:
			d.shapef(n, "does not say what becomes of a failed read; write null (publish null with its quality) or nothing")
		}
		return false, false
	}}
}

// scheme is what is known of a URL's scheme.
type scheme struct {
	name   string
	tls    bool
	socket bool // WebSocket
	port   string
}

var schemes = []scheme{
	{"mqtt", false, false, "1883"}, {"mqtts", true, false, "8883"},
	{"ws", false, true, "80"}, {"wss", true, true, "443"},
}

// schemeWords are what others call those.
var schemeWords = map[string]string{"tcp": "mqtt", "ssl": "mqtts", "tls": "mqtts", "http": "ws", "https": "wss", "mqtt+ssl": "mqtts", "mqtt+tls": "mqtts"}

// socketPath is where a broker's WebSocket usually is.
const socketPath = "/mqtt"

func schemeOf(name string) (scheme, bool) {
	for _, s := range schemes {
		if s.name == name {
			return s, true
		}
	}
	return scheme{}, false
}

const urlPattern = `^(mqtt|mqtts|ws|wss)://[^/@ ]`

// brokerURL is an address of a broker: mqtt:// mqtts:// ws:// wss://. Port and
// path are filled in; listen is for addresses of our own.
func brokerURL(listen bool) value[*url.URL] {
	return value[*url.URL]{pattern(urlPattern), func(d *decoder, n *node) (*url.URL, bool) {
		s, ok := d.text(n, "a URL such as mqtt://broker.example:1883")
		if !ok {
			return nil, false
		}
		u, err := parseBrokerURL(s, listen)
		if err != nil {
			name, rest, _ := strings.Cut(s, "://")
			if _, known := schemeOf(name); known && rest != "" && !strings.ContainsAny(rest[:1], "/@ ") {
				d.faultf(n, "%v", err)
			} else {
				d.shapef(n, "%v", err)
			}
			return nil, false
		}
		return u, true
	}}
}

func parseBrokerURL(s string, listen bool) (*url.URL, error) {
	name, rest, ok := strings.Cut(s, "://")
	if !ok {
		s = hideUser(s)
		return nil, fmt.Errorf("%s is not a URL; write mqtt://%s or mqtts://%s", quote(s), s, s)
	}
	if _, known := schemeOf(name); !known {
		if is, ok := schemeWords[strings.ToLower(name)]; ok {
			return nil, fmt.Errorf("the scheme %s is called %s here; write %s://%s", name, is, is, hideUser(rest))
		}
		return nil, fmt.Errorf("the scheme %s is not known; write mqtt, mqtts, ws or wss", quote(name))
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("%s is not a URL; write it like %s://broker.example:1883", quote(hideUser(s)), name)
	}
	is, _ := schemeOf(u.Scheme)
	if u.User != nil {
		return nil, fmt.Errorf("%s has a user in it; write username: and password: beside it", quote(hideUser(s)))
	}
	if u.Fragment != "" || u.RawFragment != "" || strings.HasSuffix(s, "#") || u.RawQuery != "" && !is.socket {
		return nil, fmt.Errorf("%s has a ? or # in it; remove that", quote(hideUser(s)))
	}
	if !is.socket && u.Path != "" && u.Path != "/" {
		return nil, fmt.Errorf("%s has a path, which only ws:// and wss:// have; write %s://%s", quote(s), u.Scheme, u.Host)
	}
	if u.Port() == "" && !strings.HasSuffix(u.Host, ":") {
		u.Host += ":" + is.port
	}
	if wrong, _ := checkHostPort(u.Host, is.port, listen); wrong != "" {
		return nil, errors.New(wrong)
	}
	switch {
	case !is.socket:
		u.Path = ""
	case u.Path == "":
		u.Path = socketPath
	}
	return u, nil
}

// hideUser cuts what stands before an @ out of a URL, with or without scheme,
// because it may be a password.
func hideUser(s string) string {
	i := strings.LastIndexByte(s, '@')
	if i < 0 {
		return s
	}
	scheme := ""
	if j := strings.Index(s, "://"); j >= 0 && j < i {
		scheme = s[:j+3]
	}
	return scheme + hidden + s[i:]
}

// loopback reports whether a host is this one.
func loopback(host string) bool {
	if strings.EqualFold(strings.TrimSuffix(host, "."), "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// proxyURL is the URL of a proxy.
func proxyURL() value[string] {
	return value[string]{pattern(`^(http|https|socks5|socks5h)://[^/]`), func(d *decoder, n *node) (string, bool) {
		s, ok := d.text(n, "the URL of a proxy")
		if !ok {
			return "", false
		}
		name, rest, _ := strings.Cut(s, "://")
		if !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, name) || rest == "" || rest[0] == '/' {
			d.shapef(n, "%s is not the URL of a proxy; write it like http://proxy.example:3128", quote(hideUser(s)))
			return "", false
		}
		u, err := url.Parse(s)
		if err != nil || u.Hostname() == "" {
			d.faultf(n, "%s is not the URL of a proxy; write it like http://proxy.example:3128", quote(hideUser(s)))
			return "", false
		}
		if _, has := u.User.Password(); has {
			d.warnf(n, "has a password in it, which stands here for everyone to read; better set HTTPS_PROXY in the service's environment")
		}
		return s, true
	}}
}

// secretForm is a secret's source as it is written.
type secretForm struct{ file, env, credential string }

func secret(t *tables) value[SecretSource] {
	form := newObject("a password", "Where a secret is read from: one of a file, a variable of the environment, a credential of systemd.", secretForm{},
		key("file", func(s *secretForm) *string { return &s.file }, path(), "File; a line break at its end is cut off."),
		key("env", func(s *secretForm) *string { return &s.env }, text("the name of a variable"), "Variable of the environment."),
		key("credential", func(s *secretForm) *string { return &s.credential }, text("the name of a credential"), "Credential of systemd (LoadCredential= in the unit)."),
	)
	form.extra = schema{{"minProperties", 1}, {"maxProperties", 1}}
	v := form.value(t, "secret")
	plain := schema{{"type", "string"}, {"minLength", 1}}
	return value[SecretSource]{anyOf(plain, v.schema), func(d *decoder, n *node) (SecretSource, bool) {
		if n.Kind == yamltree.Map {
			f, ok := v.read(d, n)
			if n.Len() != 1 && ok {
				d.shapef(n, "write exactly one of file, env and credential")
				ok = false
			}
			if strings.ContainsAny(f.credential, "/\\") {
				_, at := n.Get("credential")
				d.faultf(at, "a credential is a name, not a path; write file: for a path")
				ok = false
			}
			return SecretSource{File: f.file, Env: f.env, Credential: f.credential}, ok
		}
		// Not by way of text: its faults show what stands there.
		const want = "{file: PATH}, {env: NAME} or {credential: NAME}"
		switch {
		case n.Kind != yamltree.Scalar || n.IsNull():
			d.wrongKind(n, want, "")
			return SecretSource{}, false
		case coreType(n) != coreText:
			d.shapef(n, "is a number or a boolean to YAML; put it in quotes, or better write %s", want)
			return SecretSource{}, false
		case n.Text == "":
			d.shapef(n, "is empty; write %s, or remove the key", want)
			return SecretSource{}, false
		}
		d.warnf(n, "stands here for everyone to read; better write %s", want)
		return SecretSource{Plain: NewSecret(strings.Clone(n.Text))}, true
	}}
}

// path is the path of a file. One that is not absolute counts from the folder
// of the file that it stands in.
func path() value[string] {
	v := text("the path of a file")
	return value[string]{v.schema, func(d *decoder, n *node) (string, bool) {
		s, ok := v.read(d, n)
		if !ok {
			return "", false
		}
		if !filepath.IsAbs(s) {
			s = filepath.Join(filepath.Dir(d.set.Name(n)), s)
		}
		d.depends = append(d.depends, file{s, n, d.at()})
		return s, true
	}}
}

// tlsVersion is the least version of TLS.
func tlsVersion() value[uint16] {
	return value[uint16]{schema{{"enum", []any{1.2, 1.3, "1.2", "1.3"}}}, func(d *decoder, n *node) (uint16, bool) {
		switch {
		case isWord(n, "1.2"):
			return tls.VersionTLS12, true
		case isWord(n, "1.3"):
			return tls.VersionTLS13, true
		}
		if _, ok := d.scalar(n, "1.2 or 1.3"); ok {
			d.shapef(n, "%s is not a version of TLS that is safe; write 1.2 or 1.3", quote(n.Text))
		}
		return 0, false
	}}
}

// passwordHash is a hash as "fieldgate passwd" prints it. Faults do not show
// what stands there, which may be the password itself.
func passwordHash() value[string] {
	const want = "its argon2id hash, which \"fieldgate passwd\" prints"
	return value[string]{pattern(`^\$argon2id\$v=19\$m=[0-9]+,t=[0-9]+,p=[0-9]+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+$`), func(d *decoder, n *node) (string, bool) {
		if n.Kind != yamltree.Scalar || n.IsNull() {
			d.wrongKind(n, want, "")
			return "", false
		}
		if !goodHash(n.Text) {
			d.shapef(n, "is not a password's hash; write %s", want)
			return "", false
		}
		return strings.Clone(n.Text), true
	}}
}

// goodHash reports whether s has the form of an argon2id hash.
func goodHash(s string) bool {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v=19" {
		return false
	}
	params := strings.Split(parts[3], ",")
	if len(params) != 3 {
		return false
	}
	for i, prefix := range []string{"m=", "t=", "p="} {
		number, ok := strings.CutPrefix(params[i], prefix)
		if digits, rest := span(number); !ok || digits == 0 || rest != "" {
			return false
		}
	}
	for _, part := range parts[4:] {
		if part == "" || strings.IndexFunc(part, func(r rune) bool {
			return r >= utf8.RuneSelf || !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '+' && r != '/'
		}) >= 0 {
			return false
		}
	}
	return true
}
