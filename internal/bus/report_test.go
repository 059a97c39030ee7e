package bus

import (
	"slices"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/modbus"
)

// A device that answers each poll with an exception that is no refusal is online
// and gives no value: the log says so once.
func TestFailingDeviceIsReportedOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWire(1)
		w.units[1].refuse = func(modbus.Table, int, int) modbus.Exception { return modbus.ServerDeviceFailure }
		r := start(t, tcpBus(1), []config.Device{dev("d", 1, registers(0, 3, second)...)}, w)
		time.Sleep(time.Hour)
		states, logged := r.take()
		if !slices.Equal(states, []string{"d online"}) {
			t.Errorf("states %q", states)
		}
		if len(logged) != 2 || !strings.HasPrefix(logged[1], "device answers, but not with values") || !strings.Contains(logged[1], "exception 4") {
			t.Errorf("log %q, want: online, and what it answers", logged)
		}
		if d := r.device("d"); d.Polls.Failed < 3500 || !strings.Contains(d.Error, "exception 4") {
			t.Errorf("%+v", d)
		}
	})
}
