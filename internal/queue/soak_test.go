//go:build soak

package queue

import "testing"

// TestSoak is the long form of the crash tests: 200 kills, thousands of images.
func TestSoak(t *testing.T) {
	*long = true
	t.Run("DamagedFile", TestDamagedFile)
	t.Run("CrashImages", TestCrashImages)
	t.Run("Killed", TestKilled)
	t.Run("FileAgainstModel", TestFileAgainstModel)
	t.Run("DayOfOutage", TestDayOfOutage)
	t.Run("RecordedImages", TestRecordedImages)
}
