package line

import (
	"strings"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
)

func TestParseURL(t *testing.T) {
	base := config.Bus{Timeout: time.Second, ConnectTimeout: 5 * time.Second, Gap: config.GapAuto, InFlight: 1, Retries: 1}
	bus := func(change func(*config.Bus)) config.Bus {
		b := base
		change(&b)
		b.Name = b.Address
		return b
	}
	port := config.SerialMode{Baud: 19200, DataBits: 8, Parity: 'E', StopBits: 1}
	tests := []struct {
		url  string
		want config.Bus
	}{
		{"tcp://10.0.0.10:1502", bus(func(b *config.Bus) { b.Kind, b.Address = config.TCP, "10.0.0.10:1502" })},
		{"tcp://plc.example", bus(func(b *config.Bus) { b.Kind, b.Address = config.TCP, "plc.example:502" })},
		{"tcp://[fe80::1%25eth0]:502/", bus(func(b *config.Bus) { b.Kind, b.Address = config.TCP, "[fe80::1%eth0]:502" })},
		{"TCP://10.0.0.10", bus(func(b *config.Bus) { b.Kind, b.Address = config.TCP, "10.0.0.10:502" })},
		{"udp://10.0.0.10:502?timeout=300ms", bus(func(b *config.Bus) {
			b.Kind, b.Address, b.Timeout = config.UDP, "10.0.0.10:502", 300*time.Millisecond
		})},
		{"rtu+tcp://10.0.0.10:4001?in_flight=auto&gap=5ms&settle=1s&connect_timeout=2s", bus(func(b *config.Bus) {
			b.Kind, b.Address, b.Framing = config.TCP, "10.0.0.10:4001", modbus.FramingRTU
			b.InFlight, b.Gap, b.Settle, b.ConnectTimeout = config.InFlightAuto, 5*time.Millisecond, time.Second, 2*time.Second
		})},
		{"ascii+tcp://h:1", bus(func(b *config.Bus) { b.Kind, b.Address, b.Framing = config.TCP, "h:1", modbus.FramingASCII })},
		{"tcp://h?in_flight=16", bus(func(b *config.Bus) { b.Kind, b.Address, b.InFlight = config.TCP, "h:502", 16 })},
		{"rtu:///dev/ttyUSB0", bus(func(b *config.Bus) {
			b.Kind, b.Address, b.Framing, b.Mode = config.Serial, "/dev/ttyUSB0", modbus.FramingRTU, port
		})},
		{"rtu:///dev/ttyUSB0?mode=9600-8N1&rs485=kernel", bus(func(b *config.Bus) {
			b.Kind, b.Address, b.Framing = config.Serial, "/dev/ttyUSB0", modbus.FramingRTU
			b.Mode = config.SerialMode{Baud: 9600, DataBits: 8, Parity: 'N', StopBits: 1}
			b.RS485.Mode = config.RS485Kernel
		})},
		{"ascii:///dev/serial/by-id/usb-FTDI_x-if00", bus(func(b *config.Bus) {
			b.Kind, b.Address, b.Framing, b.Mode = config.Serial, "/dev/serial/by-id/usb-FTDI_x-if00", modbus.FramingASCII, port
		})},
	}
	for _, tt := range tests {
		got, err := ParseURL(tt.url)
		if err != nil {
			t.Errorf("%s: %v", tt.url, err)
		} else if got != tt.want {
			t.Errorf("%s:\n got %+v\nwant %+v", tt.url, got, tt.want)
		}
	}
}

func TestParseURLErrors(t *testing.T) {
	tests := []struct{ url, want string }{
		{"", "no known scheme"},
		{"10.0.0.10:502", `"10.0.0.10:502" has no scheme; write tcp://10.0.0.10:502`},
		{"plc:502", `"plc:502" has no scheme; write tcp://plc:502`},
		{"/dev/ttyUSB0", "rtu:///dev/ttyUSB0"},
		{"http://10.0.0.10", "known: tcp udp rtu ascii"},
		{"tcp://", "tcp://HOST:PORT"},
		{"tcp:///dev/ttyUSB0", "tcp://HOST:PORT"},
		{"tcp://h/unit/1", "nothing behind"},
		{"tcp://h:0", "outside 1-65535"},
		{"tcp://h:65536", "outside 1-65535"},
		{"tcp://u@h", "user"},
		{"tcp://h#1", "fragment"},
		{"rtu://dev/ttyUSB0", "three slashes"},
		{"rtu:///", "three slashes"},
		{"rtu:///dev/ttyUSB0?mode=9600", "not a serial mode"},
		{"rtu:///dev/ttyUSB0?rs485=yes", "not off, kernel or rts"},
		{"tcp://h?mode=9600-8N1", "only a serial port"},
		{"tcp://h?timeout=0s", "not a duration"},
		{"tcp://h?gap=-1s", "not a duration"},
		{"tcp://h?in_flight=17", "neither 1-16 nor auto"},
		{"tcp://h?timeout=1s&timeout=2s", "given twice"},
		{"tcp://h?baud=9600", "unknown; known: timeout"},
		{"tcp://h?timeout=%zz", "timeout"},
	}
	for _, tt := range tests {
		if b, err := ParseURL(tt.url); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s = %+v, %v, want an error with %q", tt.url, b, err, tt.want)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("rtu+tcp://10.0.0.10:4001?in_flight=auto")
	f.Add("rtu:///dev/ttyUSB0?mode=9600-8N1")
	f.Fuzz(func(t *testing.T, s string) {
		b, err := ParseURL(s)
		if err == nil && (b.Address == "" || b.Timeout <= 0 || b.Kind == 0) {
			t.Errorf("%q = %+v", s, b)
		}
	})
}
