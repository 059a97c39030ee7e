package line

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"fieldgate/internal/modbus"

	"golang.org/x/sys/unix"
)

// pacedEnv makes the test binary a device on a line of that many baud.
const pacedEnv = "FIELDGATE_TEST_PACED_DEVICE"

func TestMain(m *testing.M) {
	if baud, err := strconv.Atoi(os.Getenv(pacedEnv)); err == nil {
		pacedDevice(3, baud)
		return
	}
	os.Exit(m.Run())
}

// pacedDevice answers reads on the master of a pty at the pace of a line: the
// answer is there when the request, a silence of 3.5 characters and the answer
// itself would have passed. It ends when the line is closed, and prints how many
// requests came before 3.5 characters of silence.
func pacedDevice(fd, baud int) {
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	_ = unix.SetNonblock(fd, false)
	char, gap := 11*time.Second/time.Duration(baud), modbus.ClientSilence(baud)
	broken := 0
	defer func() { fmt.Println(broken) }()
	var last time.Time
	buf := make([]byte, 256)
	for {
		var adu []byte
		var first time.Time
		for len(adu) < 8 {
			n, err := unix.Read(fd, buf)
			if err != nil || n == 0 {
				return
			}
			if first.IsZero() {
				first = time.Now()
			}
			adu = append(adu, buf[:n]...)
		}
		if !last.IsZero() && first.Sub(last) < gap {
			broken++
		}
		answer := modbus.AppendRTU(nil, modbus.UnitID(adu[0]), right(request{pdu: modbus.PDU(adu[1:6])}))
		at := first.Add(time.Duration(len(adu)+len(answer))*char + gap)
		for d := time.Until(at); d > 0; d = time.Until(at) {
			if d > spin {
				ts := unix.NsecToTimespec(int64(d - spin))
				_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil)
			}
		}
		last = time.Now()
		if _, err := unix.Write(fd, answer); err != nil {
			return
		}
	}
}

// BenchmarkRTU reads 20 registers back to back. It says how much of what the
// line could carry that is - a read takes two silences and 53 characters of 11
// bits - and what it costs this process.
func BenchmarkRTU(b *testing.B) {
	for _, baud := range []int{9600, 115200} {
		b.Run(fmt.Sprint(baud), func(b *testing.B) {
			pt := openPTY(b)
			cfg := serialBus(pt.path)
			cfg.Mode.Baud = baud
			cfg.Timeout = 2 * time.Second
			l := New(cfg, quietLog(b))
			stop := run(b, l)
			eventually(b, "open", l.Connected)
			device := exec.Command(os.Args[0])
			device.Env = append(os.Environ(), pacedEnv+"="+strconv.Itoa(baud))
			device.ExtraFiles = []*os.File{pt.master}
			var out bytes.Buffer
			device.Stdout, device.Stderr = &out, os.Stderr
			if err := device.Start(); err != nil {
				b.Fatal(err)
			}
			req := modbus.ReadRequest(modbus.HoldingRegisters, 0, 20)
			ctx := context.Background()
			if _, err := l.Do(ctx, 1, req); err != nil {
				b.Fatal(err)
			}
			var before, after unix.Rusage
			_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
			for b.Loop() {
				if _, err := l.Do(ctx, 1, req); err != nil {
					b.Fatal(err)
				}
			}
			_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
			stop()
			if err := device.Wait(); err != nil {
				b.Fatal(err)
			}
			broken, err := strconv.Atoi(strings.TrimSpace(out.String()))
			if err != nil {
				b.Fatal(err)
			}
			cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			limit := 53*11*time.Second/time.Duration(baud) + 2*modbus.ClientSilence(baud)
			b.ReportMetric(100*float64(limit)*float64(b.N)/float64(b.Elapsed()), "%line")
			b.ReportMetric(100*float64(broken)/float64(b.N), "%broken")
			b.ReportMetric(float64(cpu)/1e3/float64(b.N), "µs-cpu/op")
		})
	}
}
