package line

import (
	"errors"
	"testing"
	"time"

	"fieldgate/internal/modbus"
)

// An operator reads a time that makes sense, whatever was learned of a device.
func TestNoResponseSaysHowLong(t *testing.T) {
	for _, c := range []struct {
		patience time.Duration
		want     string
	}{
		{time.Second, "no response within 1s"},
		{49449159 * time.Nanosecond, "no response within 49.4ms"},
		{197796636 * time.Nanosecond, "no response within 197.8ms"},
		{25 * time.Millisecond, "no response within 25ms"},
	} {
		err := noResponse(c.patience)
		if err.Error() != c.want || !errors.Is(err, modbus.ErrNoResponse) {
			t.Errorf("%v: %q, want %q", c.patience, err, c.want)
		}
	}
}
