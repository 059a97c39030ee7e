package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt"
	"fieldgate/internal/point"
	"fieldgate/internal/uplink"
)

func cmdMQTT(ctx context.Context, a *app, args []string) error {
	f := newFlags("mqtt", "COMMAND BROKER [ARGUMENT...]", `
Speaks MQTT directly to a broker, without a gateway.

  fieldgate mqtt sub mqtt://127.0.0.1 '#'
  fieldgate mqtt pub mqtts://broker.example plant/setpoint 55
  fieldgate mqtt test mqtts://broker.example

BROKER is a URL, or the name of an uplink in the configuration (-c FILE), whose
addresses, user, password and certificates are then used:

  mqtt://HOST:PORT                 TCP; the port is 1883 by default
  mqtts://HOST:PORT                TLS; 8883
  ws://HOST:PORT/PATH              WebSocket; 80, /mqtt
  wss://HOST:PORT/PATH             WebSocket over TLS; 443, /mqtt

A user and a password can stand in the URL, mqtt://USER:PASSWORD@HOST, where
other users of this machine can see them; better are --user with
--password-file, or the password in the environment as MQTT_PASSWORD.`)
	return f.group(ctx, a, []command{
		{"pub", "publish messages", cmdMQTTPub},
		{"sub", "print the messages that arrive", cmdMQTTSub},
		{"test", "try a broker step by step", cmdMQTTTest},
	}, args)
}

// passwordEnv is the variable that a password is taken from when no option
// names another place.
const passwordEnv = "MQTT_PASSWORD"

// brokerPeer holds the options of everything that talks to a broker.
type brokerPeer struct {
	user, passwordFile, clientID, proxy       string
	ca, cert, key, certPassword, server, alpn string
	insecure                                  bool
	timeout                                   time.Duration
	qos                                       int

	asUplink bool // keep the client id of an uplink that is known by it
}

func (p *brokerPeer) flags(f *flags, qos int) {
	f.IntVar(&p.qos, "qos", qos, "quality of service `N`: 0, 1 or 2")
	p.wayFlags(f)
}

// wayFlags are the options that say how to reach the broker.
func (p *brokerPeer) wayFlags(f *flags) {
	f.StringVar(&p.user, "user", "", "user `NAME`")
	f.StringVar(&p.passwordFile, "password-file", "", "read the password from `FILE` (default: $"+passwordEnv+")")
	f.StringVar(&p.clientID, "client-id", "", "client `ID` (default: one of its own each time)")
	f.StringVar(&p.ca, "ca", "", "certificate `FILE` of the authority, PEM or DER (default: the system's)")
	f.StringVar(&p.cert, "cert", "", "our certificate `FILE`: PEM, or PKCS#12 with its key")
	f.StringVar(&p.key, "key", "", "key `FILE` of the certificate, PEM")
	f.StringVar(&p.certPassword, "cert-password-file", "", "read the password of a PKCS#12 file from `FILE`")
	f.StringVar(&p.server, "server-name", "", "the certificate is for `NAME`, not for the host of the URL")
	f.StringVar(&p.alpn, "alpn", "", "TLS application protocol `NAME`, such as x-amzn-mqtt-ca")
	f.BoolVar(&p.insecure, "insecure", false, "do not verify the broker's certificate")
	f.StringVar(&p.proxy, "proxy", "", "`URL` of an HTTP(S) or SOCKS5 proxy (default: the environment's)")
	f.DurationVar(&p.timeout, "timeout", 10*time.Second, "`TIME` to wait for the broker")
}

// settings turns a broker as written, and the options, into those of an uplink.
func (p *brokerPeer) settings(a *app, broker string) (config.Uplink, error) {
	if p.qos < 0 || p.qos > 2 {
		return config.Uplink{}, usagef("--qos %d is not 0, 1 or 2", p.qos)
	}
	if p.timeout <= 0 {
		return config.Uplink{}, usagef("--timeout %s is not above 0", p.timeout)
	}
	cfg := config.Uplink{Keepalive: time.Minute}
	if strings.Contains(broker, "://") {
		u, err := uplink.ParseURL(broker)
		if err != nil {
			return cfg, badConfig(err)
		}
		if u.User != nil {
			cfg.Username = u.User.Username()
			if password, ok := u.User.Password(); ok {
				cfg.Password.Plain = config.NewSecret(password)
			}
			u.User = nil
		}
		cfg.URLs = []string{u.String()}
		if _, ok := os.LookupEnv(passwordEnv); ok && cfg.Password.IsZero() {
			cfg.Password.Env = passwordEnv
		}
	} else {
		var err error
		if cfg, err = namedUplink(a.config, broker); err != nil {
			return cfg, err
		}
	}
	// Not the gateway's own id, if there is a choice: two clients with one id throw
	// each other out. Brokers that know us by our key or certificate leave none.
	if known := cfg.AzureSAS != nil || cfg.TLS.Cert != ""; !p.asUplink || !known || p.clientID != "" {
		cfg.CleanSession = true
		cfg.ClientID = p.clientID
		if cfg.ClientID == "" {
			cfg.ClientID = "fieldgate-cli-" + strconv.FormatUint(rand.Uint64(), 36)
		}
	}
	cfg.ConnectTimeout = p.timeout
	override(&cfg.Username, p.user)
	override(&cfg.Proxy, p.proxy)
	override(&cfg.TLS.CA, p.ca)
	override(&cfg.TLS.ServerName, p.server)
	if p.cert != "" {
		cfg.TLS.Cert, cfg.TLS.Key, cfg.TLS.Password = p.cert, p.key, config.SecretSource{File: p.certPassword}
	} else if p.key != "" || p.certPassword != "" {
		return cfg, usagef("--key and --cert-password-file need --cert")
	}
	if p.passwordFile != "" {
		cfg.Password = config.SecretSource{File: p.passwordFile}
	}
	if p.alpn != "" {
		cfg.TLS.ALPN = []string{p.alpn}
	}
	cfg.TLS.Insecure = cfg.TLS.Insecure || p.insecure
	return cfg, nil
}

func override(to *string, with string) {
	if with != "" {
		*to = with
	}
}

// namedUplink returns the uplink called name in the configuration at path.
func namedUplink(path, name string) (config.Uplink, error) {
	cfg, err := config.Load(path)
	if err != nil {
		return config.Uplink{}, usagef("%q is no URL such as mqtt://HOST, so it should be an uplink in %s: %w", name, path, err)
	}
	var names []string
	for _, u := range cfg.Uplinks {
		if u.Name == name {
			return u, nil
		}
		names = append(names, u.Name)
	}
	return config.Uplink{}, usagef("%q is neither a URL such as mqtt://HOST nor an uplink in %s; %s", name, path, config.Suggest(name, names))
}

// connect opens a connection to the first of the broker's addresses that
// takes one.
func (p *brokerPeer) connect(ctx context.Context, a *app, broker string, handler uplink.Handler) (*uplink.Conn, error) {
	cfg, err := p.settings(a, broker)
	if err != nil {
		return nil, err
	}
	o := uplink.ConnOptions{Handler: handler, MaxPacket: 64 << 20, TooLong: func(m mqtt.Message, length int) {
		fmt.Fprintf(a.stderr, "%s: a message of %d bytes is not shown\n", m.Topic, length)
	}}
	var conn *uplink.Conn
	for _, url := range cfg.URLs {
		if conn, err = uplink.Connect(ctx, cfg, url, o); err == nil {
			return conn, nil
		}
		err = fmt.Errorf("%s: %w", url, err)
	}
	return nil, brokerFailed(err)
}

// brokerFailed gives an error of a broker its exit code: 1 where the broker
// itself said no, 2 for files of ours, else 4.
func brokerFailed(err error) error {
	var fault *uplink.Fault
	switch {
	case err == nil, !errors.As(err, &fault):
		return err
	case fault.Step == uplink.StepFiles:
		return badConfig(err)
	case fault.ByBroker():
		return err
	}
	return noPeer(err)
}

func cmdMQTTPub(ctx context.Context, a *app, args []string) error {
	f := newFlags("mqtt pub", "BROKER TOPIC [PAYLOAD]", `
Publishes a message and waits until the broker has it.

  fieldgate mqtt pub mqtt://127.0.0.1 plant/boiler/setpoint 75.5
  fieldgate mqtt pub mqtt://127.0.0.1 plant/mode '{"value":"auto"}' --retain
  fieldgate mqtt pub mqtt://127.0.0.1 plant/mode --empty --retain       clear what is retained
  fieldgate mqtt pub mqtts://broker.example photo --file cam.jpg --user me --password-file pw
  sensors | fieldgate mqtt pub mqtt://127.0.0.1 plant/raw --lines       a message a line
  fieldgate mqtt pub -c plant.yaml cloud plant/test hello               as the uplink "cloud"

BROKER is a URL (mqtt:// mqtts:// ws:// wss://) or the name of an uplink.
Exit code 0: the broker has acknowledged every message (with --qos 0: it was
sent). 4: it did not answer.`)
	var p brokerPeer
	p.flags(f, 1)
	f.StringVar(&a.config, "c", a.config, "configuration `FILE`, for an uplink's name")
	retain := f.Bool("retain", false, "the broker keeps it for later subscribers")
	file := f.String("file", "", "the payload is what `FILE` holds (- for standard input)")
	lines := f.Bool("lines", false, "each line of standard input is a message")
	empty := f.Bool("empty", false, "the payload is empty")
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	sources := len(rest) - 2
	for _, set := range []bool{*file != "", *lines, *empty} {
		if set {
			sources++
		}
	}
	switch {
	case len(rest) < 2:
		return usagef("mqtt pub wants a broker and a topic, such as: fieldgate mqtt pub mqtt://127.0.0.1 plant/test hello")
	case sources == 0:
		return usagef("the payload is missing; give it after the topic, or by --file, --lines or --empty")
	case sources > 1:
		return usagef("give one payload: after the topic, or by --file, --lines or --empty; quote what has spaces")
	}
	m := mqtt.Message{Topic: rest[1], QoS: uint8(p.qos), Retain: *retain}
	if err := m.Check(); err != nil && p.qos >= 0 && p.qos <= 2 {
		return badConfig(err)
	}
	switch {
	case *file == "-":
		m.Payload, err = io.ReadAll(a.stdin)
	case *file != "":
		m.Payload, err = os.ReadFile(*file)
	case len(rest) == 3:
		m.Payload = []byte(rest[2])
	}
	if err != nil {
		return err
	}
	conn, err := p.connect(ctx, a, rest[0], nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	if !*lines {
		return p.publish(ctx, conn, m)
	}
	in := bufio.NewScanner(a.stdin)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		m.Payload = in.Bytes()
		if err := p.publish(ctx, conn, m); err != nil {
			return err
		}
	}
	return in.Err()
}

// publish waits for the acknowledgement of m no longer than --timeout.
func (p *brokerPeer) publish(ctx context.Context, conn *uplink.Conn, m mqtt.Message) error {
	limit, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	err := conn.Publish(limit, m)
	if errors.Is(err, context.DeadlineExceeded) {
		return noPeer(fmt.Errorf("publish on %s: not acknowledged within %v", m.Topic, p.timeout))
	}
	if err != nil {
		return brokerFailed(fmt.Errorf("publish on %s: %w", m.Topic, err))
	}
	return nil
}

func cmdMQTTSub(ctx context.Context, a *app, args []string) error {
	f := newFlags("mqtt sub", "BROKER FILTER...", `
Prints the messages that arrive, topic and payload, until it is stopped.

  fieldgate mqtt sub mqtt://127.0.0.1 '#'                     everything
  fieldgate mqtt sub mqtt://127.0.0.1 'plant/+/temp' 'alarm/#'
  fieldgate mqtt sub mqtt://127.0.0.1 plant/mode --count 1    the next one, or what is retained
  fieldgate mqtt sub wss://broker.example/mqtt '#' --for 1m --json
  fieldgate mqtt sub -c plant.yaml cloud 'plant/#'            as the uplink "cloud"

BROKER is a URL (mqtt:// mqtts:// ws:// wss://) or the name of an uplink.
A payload that is no printable text is shown in quotes with escapes. With
--json a message is {"topic":…,"payload":…,"qos":…,"retain":…,"timestamp":…};
a payload that is not UTF-8 is "payload_base64".
Exit code 4: the broker did not answer or closed the connection, or fewer
than --count messages came within --for.`)
	var p brokerPeer
	p.flags(f, 0)
	f.StringVar(&a.config, "c", a.config, "configuration `FILE`, for an uplink's name")
	asJSON := f.Bool("json", false, "print a JSON object a message")
	count := f.Int("count", 0, "stop after `N` messages")
	span := f.Duration("for", 0, "stop after `TIME`")
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	switch {
	case len(rest) < 2:
		return usagef("mqtt sub wants a broker and a filter, such as: fieldgate mqtt sub mqtt://127.0.0.1 '#'")
	case *count < 0 || *span < 0:
		return usagef("--count and --for are above 0")
	}
	for _, filter := range rest[1:] {
		if err := mqtt.ValidFilter(filter); err != nil {
			return badConfig(err)
		}
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	arrived := make(chan mqtt.Message, 1024)
	conn, err := p.connect(ctx, a, rest[0], func(m mqtt.Message) []<-chan struct{} {
		select {
		case arrived <- m: // a reader that is slow holds up the broker, not our memory
		case <-ctx.Done():
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer func() {
		cancel() // first: the handler must not hold up the end of the connection
		conn.Close()
	}()
	for _, filter := range rest[1:] {
		if err := p.subscribe(ctx, conn, mqtt.Filter(filter)); err != nil {
			return err
		}
	}
	return printMessages(ctx, a.stdout, conn, arrived, *asJSON, *count, *span)
}

func (p *brokerPeer) subscribe(ctx context.Context, conn *uplink.Conn, filter mqtt.Filter) error {
	limit, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	_, err := conn.Subscribe(limit, filter, uint8(p.qos))
	if errors.Is(err, context.DeadlineExceeded) {
		return noPeer(fmt.Errorf("subscribe to %s: no answer within %v", filter, p.timeout))
	}
	return brokerFailed(err)
}

// printMessages prints what arrives until ctx or the connection ends, count
// messages have been printed, or span is over; 0 for either is no limit.
func printMessages(ctx context.Context, w io.Writer, conn *uplink.Conn, arrived <-chan mqtt.Message, asJSON bool, count int, span time.Duration) error {
	out := bufio.NewWriter(w)
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	var over <-chan time.Time
	if span > 0 {
		t := time.NewTimer(span)
		defer t.Stop()
		over = t.C
	}
	for printed := 0; count == 0 || printed < count; {
		select {
		case m := <-arrived:
			printed++
			if err := printMessage(out, encoder, m, asJSON); err != nil {
				return nil // the reader has had enough
			}
			continue
		default:
		}
		if err := out.Flush(); err != nil {
			return nil
		}
		select {
		case m := <-arrived:
			printed++
			if err := printMessage(out, encoder, m, asJSON); err != nil {
				return nil
			}
		case <-conn.Lost():
			conn.Close() // when it returns, all that was read has arrived
			for len(arrived) > 0 && (count == 0 || printed < count) {
				printed++
				_ = printMessage(out, encoder, <-arrived, asJSON)
			}
			_ = out.Flush()
			return brokerFailed(conn.Err())
		case <-over:
			if printed < count {
				return noPeer(fmt.Errorf("%d of %d messages came within %v", printed, count, span))
			}
			return nil
		case <-ctx.Done():
			return nil
		}
	}
	return out.Flush()
}

func printMessage(w io.Writer, encoder *json.Encoder, m mqtt.Message, asJSON bool) error {
	if asJSON {
		line := struct {
			Topic   string  `json:"topic"`
			Payload *string `json:"payload,omitempty"`
			Base64  []byte  `json:"payload_base64,omitempty"`
			QoS     uint8   `json:"qos"`
			Retain  bool    `json:"retain"`
			Time    string  `json:"timestamp"`
		}{Topic: m.Topic, QoS: m.QoS, Retain: m.Retain, Time: point.Timestamp(time.Now())}
		if utf8.Valid(m.Payload) {
			text := string(m.Payload)
			line.Payload = &text
		} else {
			line.Base64 = m.Payload
		}
		return encoder.Encode(line)
	}
	text := string(m.Payload)
	if !fitsLine(text) {
		text = strconv.Quote(text)
	}
	_, err := fmt.Fprintf(w, "%s %s\n", m.Topic, text)
	return err
}

// fitsLine reports whether s can stand in a line of a terminal as it is.
func fitsLine(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) && r != '\t' {
			return false
		}
	}
	return true
}
