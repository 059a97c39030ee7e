package line

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/modbus"
)

// What is said of a wire, event by event: S said, - not.
func TestNews(t *testing.T) {
	for _, test := range []struct {
		name   string
		events string // o opened, f and g two reasons why not, u lost without use, a answered
		said   string
	}{
		{"good", "o", "S"},
		{"away, and back", "ofoffo", "SSSS-S"},
		{"two reasons take turns", "fgfgfgo", "SS----S"},
		{"opens and closes", "ououououou", "SS--------"},
		{"opens, closes, is refused", "ouofouofou", "SS-S------"},
		{"opens and closes, then answers", "ouououoaof", "SS-----S-S"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var n news
			var said strings.Builder
			for _, e := range test.events {
				var say bool
				switch e {
				case 'o':
					say = n.opened()
				case 'f', 'g':
					say = n.failed(string(e))
				case 'u':
					say = n.useless("closed")
				case 'a':
					n.doubted = false
					say = n.opened()
				}
				said.WriteByte("-S"[btoi(say)])
			}
			if said.String() != test.said {
				t.Errorf("events %s: said %s, want %s", test.events, said.String(), test.said)
			}
		})
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A peer that takes each connection and closes it is reported once, however
// often it is tried; when it answers, that is said.
func TestCloserIsReportedOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	closed := make(chan struct{}, 100)
	go func() { // ends with the listener
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if n < 4 {
				c.Close()
				closed <- struct{}{}
				continue
			}
			defer c.Close()
			in := make([]byte, 12)
			if _, err := c.Read(in); err == nil {
				_, _ = c.Write(modbus.AppendTCP(nil, uint16(in[0])<<8|uint16(in[1]), 1, modbus.PDU{3, 2, 0, 17}))
			}
		}
	}()
	var log bytes.Buffer
	wire := New(tcpBus(l.Addr().String(), modbus.FramingTCP), slog.New(slog.NewTextHandler(&log, nil)))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		_ = wire.Run(ctx)
	}()
	for range 4 {
		<-closed
	}
	for {
		if _, err := wire.Do(ctx, 1, modbus.ReadRequest(modbus.HoldingRegisters, 0, 1)); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("the device was never read")
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	var said []string
	for line := range strings.Lines(log.String()) {
		_, msg, _ := strings.Cut(line, "msg=")
		msg, _, _ = strings.Cut(msg, " address")
		said = append(said, msg)
	}
	if want := `"line open" "line not open, trying again" "line open"`; strings.Join(said, " ") != want {
		t.Errorf("the log says %s, want %s", said, want)
	}
}
