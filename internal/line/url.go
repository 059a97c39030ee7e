package line

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
)

// defaultPort is the port registered for Modbus.
const defaultPort = "502"

// scheme is a kind of wire that a URL can name.
type scheme struct {
	name    string
	kind    config.BusKind
	framing modbus.Framing
}

func schemes() []scheme {
	return []scheme{
		{"tcp", config.TCP, modbus.FramingTCP},
		{"udp", config.UDP, modbus.FramingTCP},
		{"rtu", config.Serial, modbus.FramingRTU},
		{"ascii", config.Serial, modbus.FramingASCII},
		{"rtu+tcp", config.TCP, modbus.FramingRTU},
		{"ascii+tcp", config.TCP, modbus.FramingASCII},
		{"rtu+udp", config.UDP, modbus.FramingRTU},
		{"ascii+udp", config.UDP, modbus.FramingASCII},
	}
}

// ParseURL reads the one-line form of a bus that the command line takes:
//
//	tcp://HOST:PORT          udp://HOST:PORT        MBAP; port 502 when left out
//	rtu:///dev/ttyUSB0       ascii:///dev/ttyUSB0   a serial port
//	rtu+tcp://HOST:PORT      ascii+tcp, rtu+udp, ascii+udp
//
// with the settings of a bus behind a question mark, as in ?mode=9600-8N1:
// timeout, connect_timeout, gap, settle and in_flight, and for serial ports mode
// and rs485. What is not given has the default of the configuration. The bus is
// named after its address.
func ParseURL(s string) (config.Bus, error) { return parseURL(s, 1) }

// ParseListenURL is ParseURL for an address to listen on: the port may be 0, for
// any that is free.
func ParseListenURL(s string) (config.Bus, error) { return parseURL(s, 0) }

func parseURL(s string, leastPort int) (config.Bus, error) {
	u, err := url.Parse(s)
	if host, port, split := strings.Cut(s, ":"); split && host != "" && port != "" && strings.Trim(port, "0123456789") == "" {
		return config.Bus{}, fmt.Errorf("%q has no scheme; write tcp://%s", s, s)
	}
	if err != nil {
		return config.Bus{}, fmt.Errorf("%q is no URL: %w", s, errors.Unwrap(err))
	}
	all := schemes()
	i := slices.IndexFunc(all, func(k scheme) bool { return k.name == u.Scheme })
	if i < 0 {
		names := make([]string, len(all))
		for i, k := range all {
			names[i] = k.name
		}
		return config.Bus{}, fmt.Errorf("%q has no known scheme; write tcp://HOST:PORT or rtu:///dev/ttyUSB0 (known: %s)", s, strings.Join(names, " "))
	}
	b := config.Bus{
		Kind:           all[i].kind,
		Framing:        all[i].framing,
		Timeout:        time.Second,
		ConnectTimeout: 5 * time.Second,
		Gap:            config.GapAuto,
		InFlight:       1,
		Retries:        1,
	}
	if b.Kind == config.Serial {
		b.Mode = config.SerialMode{Baud: 19200, DataBits: 8, Parity: 'E', StopBits: 1}
	}
	if b.Address, err = address(u, b.Kind, leastPort); err != nil {
		return config.Bus{}, fmt.Errorf("%s: %w", s, err)
	}
	b.Name = b.Address
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return config.Bus{}, fmt.Errorf("%s: %w", s, err)
	}
	for key, values := range query {
		if len(values) > 1 {
			return config.Bus{}, fmt.Errorf("%s: %s is given twice", s, key)
		}
		if err := setting(&b, key, values[0]); err != nil {
			return config.Bus{}, fmt.Errorf("%s: %s: %w", s, key, err)
		}
	}
	return b, nil
}

// address returns the port's path or HOST:PORT.
func address(u *url.URL, k config.BusKind, leastPort int) (string, error) {
	if u.User != nil || u.Fragment != "" {
		return "", errors.New("a user or a fragment does not belong here")
	}
	if k == config.Serial {
		if u.Host != "" || u.Path == "" || u.Path == "/" {
			return "", fmt.Errorf("the path of a serial port has three slashes before it; write %s:///dev/ttyUSB0", u.Scheme)
		}
		return u.Path, nil
	}
	if u.Hostname() == "" || u.Path != "" && u.Path != "/" {
		return "", fmt.Errorf("want a host and a port and nothing behind; write %s://HOST:PORT", u.Scheme)
	}
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	if n, err := strconv.Atoi(port); err != nil || n < leastPort || n > 65535 {
		return "", fmt.Errorf("port %s is outside %d-65535", port, leastPort)
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// setting applies one setting of the query.
func setting(b *config.Bus, key, value string) (err error) {
	serial := b.Kind == config.Serial
	switch {
	case key == "timeout":
		b.Timeout, err = duration(value, time.Millisecond)
	case key == "connect_timeout":
		b.ConnectTimeout, err = duration(value, time.Millisecond)
	case key == "gap":
		b.Gap, err = duration(value, 0)
	case key == "settle":
		b.Settle, err = duration(value, 0)
	case key == "in_flight" && value == "auto":
		b.InFlight = config.InFlightAuto
	case key == "in_flight":
		b.InFlight, err = strconv.Atoi(value)
		if err != nil || b.InFlight < 1 || b.InFlight > mostInFlight {
			return fmt.Errorf("%q is neither 1-%d nor auto", value, mostInFlight)
		}
	case key == "mode" && serial:
		b.Mode, err = config.ParseMode(value)
	case key == "rs485" && serial:
		switch value {
		case "off":
			b.RS485.Mode = config.RS485Off
		case "kernel":
			b.RS485.Mode = config.RS485Kernel
		case "rts":
			b.RS485.Mode = config.RS485RTS
		default:
			return fmt.Errorf("%q is not off, kernel or rts", value)
		}
	case key == "mode" || key == "rs485":
		return errors.New("only a serial port has that")
	default:
		return errors.New("unknown; known: timeout connect_timeout gap settle in_flight mode rs485")
	}
	return err
}

func duration(s string, least time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < least {
		return 0, fmt.Errorf("%q is not a duration of at least %v; write 300ms or 1s", s, least)
	}
	return d, nil
}
