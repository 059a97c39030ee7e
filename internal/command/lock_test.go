package command

import (
	"strings"
	"testing"
	"time"
)

// A key on site locks out all but emergencies, also what was let through before
// it was turned; what cannot be seen counts as turned. The lock itself may be
// written.
func TestLock(t *testing.T) {
	bubble(t, testCommands+"command_rules: { lock: pump-3.speed }\n", nil, func(t *testing.T, d *desk) {
		turn := func(on bool) { d.want("cmd/pump-3/speed", map[bool]string{true: "1", false: "0"}[on], `"verified"`) }
		d.want("cmd/boiler/level", "5", "it cannot be seen whether pump-3.speed locks it on site")
		turn(false)
		d.want("cmd/boiler/level", `{"value":5,"id":"a"}`, `"verified"`)
		turn(true)
		d.want("cmd/boiler/level", `{"value":6,"id":"b"}`, `"rejected","point":"boiler.level","reason":"locked on site by pump-3.speed"`)
		d.want("recipe", `{"temp":50,"level":5,"mode":1}`, "locked on site by pump-3.speed")
		d.want("emergency/stop", "EMERGENCY_STOP", "STOPPED")
		turn(false)
		d.want("cmd/boiler/level", `{"value":6,"id":"b"}`, "locked on site by pump-3.speed") // the first answer
		d.want("cmd/boiler/level", `{"value":6,"id":"c"}`, `"verified"`)

		// Turned in the middle of a recipe, it stops there: nothing is restored.
		d.plant.delay["boiler"] = 10 * time.Second
		d.send("recipe", `{"temp":50,"level":8,"mode":1}`)
		for !strings.Contains(strings.Join(d.plant.writes(), " "), "boiler.setpoint=50") {
			time.Sleep(time.Second)
		}
		turn(true)
		time.Sleep(5 * time.Minute)
		if got := d.take(); len(got) != 1 || !strings.Contains(got[0], `"status":"failed","reason":"boiler.level: not written: locked on site by pump-3.speed; 1 of 3 written before"`) {
			t.Errorf("answered %q", got)
		}
		d.plant.delay["boiler"] = 0
		turn(false)

		// While its device is not polled nobody sees whether it is turned.
		d.want("cmd/boiler/level", `{"value":7,"id":"d"}`, `"verified"`)
		d.plant.mu.Lock()
		d.plant.paused = true
		d.plant.mu.Unlock()
		time.Sleep(time.Minute)
		d.want("cmd/boiler/level", `{"value":8,"id":"e"}`, "it cannot be seen whether pump-3.speed locks it on site")
		agree(t, d)
	})
}
