package test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fieldgate/internal/mqtt/mosquittotest"
)

// SIGHUP has the file read again: what has changed is replaced, the uplink and a
// subscriber of the local broker stay connected, and a file that is no good
// changes nothing. The service manager is told.
func TestReload(t *testing.T) {
	t.Parallel()
	upstream := mosquittotest.Start(t, mosquittotest.Options{})
	sub := upstream.Subscribe([]string{"plant/#"})
	device, local := libmodbus(t), freePort(t)
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	told := func() string {
		t.Helper()
		if err := manager.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 512)
		n, err := manager.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}

	text := fmt.Sprintf(`
site: { id: plant }
buses: { plc: { tcp: 127.0.0.1:%d } }
devices: { press: { bus: plc, every: 100ms, points: { h10: { at: holding 10 }, MORE } } }
publish: [ { payload: raw, when: each } ]
uplinks: { cloud: { url: "mqtt://127.0.0.1:%d" } }
broker: { listen: ["mqtt://127.0.0.1:%d"], anonymous: true }
web: false
`, device, upstream.Port, local)
	dir := t.TempDir()
	path := filepath.Join(dir, "fieldgate.yaml")
	write := func(old, new string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(strings.Replace(text, old, new, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(", MORE", "")
	p := startIn(t, []string{"NOTIFY_SOCKET=" + manager.LocalAddr().String()}, binary, "-c", path, "run", "--data", filepath.Join(dir, "data"))
	p.log.waitFor(t, "msg=started")
	if got := told(); !strings.HasPrefix(got, "READY=1") {
		t.Errorf("told %q", got)
	}
	atBroker := start(t, "mosquitto_sub", "-h", "127.0.0.1", "-p", strconv.Itoa(local), "-t", "plant/#", "-v")
	atBroker.out.waitFor(t, "plant/press/h10 31\n")
	byTopic(t, sub, "plant/press/h10")

	reload := func(says string) {
		t.Helper()
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		p.log.waitFor(t, says)
		if got := told(); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
			t.Errorf("told %q", got)
		}
		if got := told(); !strings.HasPrefix(got, "READY=1\nSTATUS=") {
			t.Errorf("told %q", got)
		}
	}
	write("MORE", "h11: { at: holding 11 }")
	reload(`changes="replaced line plc, bus plc"`)
	atBroker.out.waitFor(t, "plant/press/h11 ")
	byTopic(t, sub, "plant/press/h11")

	write("MORE", "h12: { at: holding 12, tpye: int16 }, h13: { at: 13 }")
	reload("not reloaded, the configuration before stays at work")
	for _, fault := range []string{"tpye", "devices.press.points.h13.at"} {
		if !strings.Contains(p.log.String(), fault) {
			t.Errorf("the log does not have the fault %q", fault)
		}
	}
	write("MORE", "h12: { at: holding 12 }")
	reload(`changes="replaced line plc, bus plc"`)
	atBroker.out.waitFor(t, "plant/press/h12 ")

	if n := strings.Count(upstream.Output(), "as plant-cloud"); n != 1 {
		t.Errorf("the uplink has connected %d times", n)
	}
	select {
	case <-atBroker.done:
		t.Error("the subscriber of the local broker has ended")
	default:
	}
	if strings.Contains(p.log.String(), "client lost") {
		t.Error("the local broker has lost a client")
	}
	if code, _ := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
