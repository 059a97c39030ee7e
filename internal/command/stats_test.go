package command

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/mqtt"
)

// Each refusal is counted by the kind of check, each outcome with its time, an
// emergency's apart.
func TestFigures(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		const level = "cmd/boiler/level"
		d.plant.delay["boiler"] = 2 * time.Second
		d.want(level, `{"value":5,"id":"a"}`, `"verified"`)
		d.want(level, `{"value":6,"id":"a"}`, `was used before`)
		d.want(level, `{"value":`, `"rejected"`)
		d.want(level, `-30000`, `"rejected"`)
		d.want(level, fmt.Sprintf(`{"value":5,"timestamp":"%s"}`, stamp(time.Now().Add(-time.Hour))), `"rejected"`)
		d.sendAs(mqtt.Origin{Via: "cloud"}, mqtt.Message{Topic: level, Payload: []byte("5"), Retain: true})
		time.Sleep(time.Second)
		d.take()
		d.want("emergency/stop", "EMERGENCY_STOP", "STOPPED")
		s := d.Stats()
		want := map[string]uint64{"id": 1, "message": 1, "value": 1, "time": 1, "retained": 1}
		maps.DeleteFunc(s.RejectedBy, func(_ string, n uint64) bool { return n == 0 })
		if !maps.Equal(s.RejectedBy, want) || s.Rejected != 5 {
			t.Errorf("rejected %d by %v, want %v", s.Rejected, s.RejectedBy, want)
		}
		for lane, d := range map[string]Durations{"usual": s.Usual, "emergency": s.Emergency} {
			if d.Count != 1 || d.Sum < 2*time.Second || d.Sum > 30*time.Second || d.Most != d.Sum {
				t.Errorf("%s: %+v", lane, d)
			}
		}
	})
}

// What an emergency has overtaken is counted as that.
func TestOvertakenIsCounted(t *testing.T) {
	bubble(t, testCommands, nil, func(t *testing.T, d *desk) {
		d.plant.delay["boiler"] = 2 * time.Second
		d.send("cmd/boiler/level", "1")
		d.send("cmd/boiler/level", "2")
		time.Sleep(time.Second)
		d.send("emergency/stop", "EMERGENCY_STOP")
		time.Sleep(time.Minute)
		if got := strings.Join(d.take(), "\n"); !strings.Contains(got, errOvertaken.Error()) {
			t.Fatalf("answered %s", got)
		}
		if n := d.Stats().RejectedBy["overtaken"]; n == 0 {
			t.Errorf("rejected by %v", d.Stats().RejectedBy)
		}
	})
}
