//go:build soak

package queue

import (
	"os"
	"os/exec"
	"testing"
)

// TestSoak is the long form of the crash tests, 200 kills, thousands of images, and
// the day of outage, beside one another.
func TestSoak(t *testing.T) {
	*long = true
	t.Run("DayOfOutage", func(t *testing.T) {
		t.Parallel()
		// In a process of its own: it is about its memory, and the time it takes.
		cmd := exec.Command(os.Args[0], "-test.run=^TestDayOfOutage$", "-test.v", "-test.timeout=1h", "-long")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		} else {
			t.Logf("%s", out)
		}
	})
	t.Run("RecordedImages", TestRecordedImages)
	t.Run("CrashImages", TestCrashImages)
	t.Run("Killed", TestKilled)
	t.Run("DamagedFile", TestDamagedFile)
	t.Run("FileAgainstModel", TestFileAgainstModel)
}
