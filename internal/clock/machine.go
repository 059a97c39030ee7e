package clock

import (
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine returns the clock of this machine.
func Machine() Source { return machine{root: "/", board: isBoard()}.source() }

// machine is where the files of a machine are; tests have their own.
type machine struct {
	root  string
	board bool // of a kind that may have no clock that runs without power
	sync  func() bool
}

// isBoard reports whether a machine without a hardware clock is one whose clock
// stops without power. A PC always has one; where none can be seen there, the
// machine is virtual or we are in a container, and the time is the host's.
func isBoard() bool { return runtime.GOARCH != "amd64" && runtime.GOARCH != "386" }

func (m machine) source() Source {
	if m.sync == nil {
		m.sync = kernelSynced
	}
	return Source{
		Now: func() (day, moment time.Time) {
			now := time.Now()
			return now, now
		},
		Vouch: m.vouch,
		Boot:  m.boot(),
		Up:    upAt,
	}
}

// kernelSynced asks the kernel whether a time service has set the clock.
// Where that may not be asked, the answer is no.
func kernelSynced() bool {
	var t unix.Timex // Modes 0: nothing is changed
	_, err := unix.Adjtimex(&t)
	return err == nil && t.Status&unix.STA_UNSYNC == 0
}

// upAt returns how long the machine had been up at the moment, by the clock that
// moments are of.
func upAt(moment time.Time) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano()) - time.Since(moment)
}

// boot returns a number for this start of the machine, 0 if there is none.
func (m machine) boot() uint32 {
	id, err := os.ReadFile(filepath.Join(m.root, "proc/sys/kernel/random/boot_id"))
	if err != nil {
		return 0
	}
	return crc32.ChecksumIEEE([]byte(strings.TrimSpace(string(id))))
}

// rtcSlack is how far a hardware clock may be off: it may run on local time.
const rtcSlack = 25 * time.Hour

func (m machine) vouch(day time.Time) (synced bool, doubt string) {
	if day.Before(Epoch) {
		return false, "it says " + day.UTC().Format(time.DateOnly)
	}
	if m.sync() {
		return true, ""
	}
	if _, err := os.Stat(filepath.Join(m.root, "run/systemd/timesync/synchronized")); err == nil {
		return true, ""
	}
	clocks, _ := filepath.Glob(filepath.Join(m.root, "sys/class/rtc/rtc*/since_epoch")) // the pattern is good
	for _, path := range clocks {
		text, err := os.ReadFile(path)
		if err != nil {
			doubt = "the hardware clock cannot be read"
			continue
		}
		sec, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			doubt = "the hardware clock cannot be read"
			continue
		}
		if rtc := time.Unix(sec, 0); day.Sub(rtc).Abs() > rtcSlack {
			doubt = fmt.Sprintf("the hardware clock says %s, the system %s", rtc.UTC().Format(time.DateOnly), day.UTC().Format(time.DateOnly))
			continue
		}
		return false, ""
	}
	if len(clocks) == 0 && m.board {
		doubt = "the board has no hardware clock, and no time service has set it yet"
	}
	return false, doubt
}
