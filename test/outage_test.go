package test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fieldgate/internal/modbus"
	"fieldgate/internal/mqtt/mosquittotest"
	"fieldgate/test/link"
)

// meter is a device whose holding registers 0 and 1 count its polls, so that no
// value is like another.
type meter struct {
	mu   sync.Mutex
	read []time.Time // when each value was; the first is 1
}

func (m *meter) Do(_ context.Context, _ modbus.UnitID, req modbus.PDU) (modbus.PDU, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.read = append(m.read, time.Now())
	n := len(m.read)
	return modbus.PDU{req[0], 4, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, nil
}

// polls returns when each value was read.
func (m *meter) polls() []time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]time.Time(nil), m.read...)
}

// serveMeter serves a meter on TCP until the test ends.
func serveMeter(t *testing.T) (*meter, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &meter{}
	s := &modbus.Server{Endpoint: m, Units: func(modbus.UnitID) bool { return true }}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		_ = s.Serve(ctx, l, modbus.FramingTCP)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return m, l.Addr().String()
}

// newLink lays a link to a broker until the test ends.
func newLink(t *testing.T, to string) *link.Link {
	t.Helper()
	k, err := link.New(to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Cut)
	return k
}

// flip opens the link or cuts it, as the dice fall.
func flip(t *testing.T, k *link.Link, rnd *rand.Rand) {
	t.Helper()
	if rnd.IntN(2) == 0 {
		k.Cut()
	} else {
		open(t, k)
	}
}

func open(t *testing.T, k *link.Link) {
	t.Helper()
	if err := k.Open(); err != nil {
		t.Fatal(err)
	}
}

// arrival is a message of a meter as an outside subscriber got it.
type arrival struct {
	at    time.Time
	value int
	seq   uint64
}

// arrivals reads what mosquitto_sub has printed.
func arrivals(t *testing.T, sub *process) (got []arrival) {
	t.Helper()
	for line := range strings.Lines(sub.out.String()) {
		when, payload, _ := strings.Cut(strings.TrimSpace(line), " ")
		seconds, err := strconv.ParseFloat(when, 64)
		if err != nil {
			continue // not a message
		}
		var m struct {
			Value int
			Seq   uint64
		}
		if err := json.Unmarshal([]byte(payload), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		got = append(got, arrival{time.UnixMicro(int64(seconds * 1e6)), m.Value, m.Seq})
	}
	return got
}

// subscribeMeter runs mosquitto_sub for the meter's messages.
func subscribeMeter(t *testing.T, port int) *process {
	t.Helper()
	return start(t, "mosquitto_sub", "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-t", "plant/meter/n", "-q", "1", "-F", "%U %p")
}

// delay is how much longer than it should something took that sleeps for a moment
// and has a few bytes synced.
type delay struct {
	end  time.Time
	took time.Duration
}

// delays are what this machine has done to such a thing.
type delays struct {
	mu  sync.Mutex
	all []delay
}

// watchDelays notes delays, on the disk that has dir, until the test ends.
func watchDelays(t *testing.T, dir string) *delays {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "delays"))
	if err != nil {
		t.Fatal(err)
	}
	s := &delays{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		const nap = 10 * time.Millisecond
		for ctx.Err() == nil {
			begin := time.Now()
			time.Sleep(nap)
			if _, err := f.WriteAt([]byte(begin.String()), 0); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				t.Errorf("sync: %v", err)
				return
			}
			end := time.Now()
			s.mu.Lock()
			s.all = append(s.all, delay{end, end.Sub(begin) - nap})
			s.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		_ = f.Close()
	})
	return s
}

// longest returns the longest delay in the time before a moment, one included that
// was under way then.
func (s *delays) longest(before time.Time) (longest time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.all {
		if begin := one.end.Add(-one.took); begin.Before(before) && one.end.After(before.Add(-2*time.Second)) {
			longest = max(longest, one.took)
		}
	}
	return longest
}

// killedGateway kills the real program at random moments, with the link up or
// down, and looks from outside at what arrives: every value once, those that
// come again told by seq, in order; and lost only what was read within a commit
// interval before a kill.
//
// A value is read here and enters the queue there, and the kill is from here: what
// the machine does to both meanwhile is measured, and is not the queue's. (What the
// queue promises from the moment of entry on, TestCommitInterval of package queue
// measures.) The longest case is a file that is made: the value wakes up the bus and
// the publisher on its way, and the file takes seven syncs. A gateway that is just
// starting has more to do than wake up; for how long it was kept from it, before the
// value entered and before it was written, the polls show, which do not wait for it.
func killedGateway(t *testing.T, kills int) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	const (
		commit = 100 * time.Millisecond
		waits  = 9
		end    = time.Second // before the last stop nobody waits for what was read
	)
	m, addr := serveMeter(t)
	broker := mosquittotest.Start(t, mosquittotest.Options{Lines: []string{"max_queued_messages 0"}})
	sub := subscribeMeter(t, broker.Port)
	k := newLink(t, broker.Addr())
	dir := t.TempDir()
	machine := watchDelays(t, dir)
	path := filepath.Join(dir, "fieldgate.yaml")
	yaml := fmt.Sprintf(`
site: { id: plant }
buses: { plc: { tcp: "%s" } }
devices: { meter: { bus: plc, every: 10ms, points: { n: { at: holding 0, type: uint32 } } } }
publish: [ { when: each, fields: [seq] } ]
uplinks: { cloud: { url: "mqtt://%s", queue: { commit: %v } } }
`, addr, k.Addr(), commit)
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	var killed, gone []time.Time // what is read between the two is of the process killed
	for range kills {
		flip(t, k, rnd)
		gw := start(t, binary, "-c", path, "run", "--data", filepath.Join(dir, "data"))
		// Often in the first moments, in which the file is read and made.
		time.Sleep(time.Duration(rnd.IntN([]int{150, 800, 3000}[rnd.IntN(3)])) * time.Millisecond)
		if rnd.IntN(3) == 0 {
			flip(t, k, rnd)
			time.Sleep(time.Duration(rnd.IntN(500)) * time.Millisecond)
		}
		killed = append(killed, time.Now())
		_ = gw.cmd.Process.Kill()
		<-gw.done
		gone = append(gone, time.Now())
	}
	open(t, k)
	gw := start(t, binary, "-c", path, "run", "--data", filepath.Join(dir, "data"))
	before := len(m.polls())
	eventually(t, "polled again", func() bool { return len(m.polls()) > before+50 })
	stopped := time.Now()
	if code, took := gw.stop(); code != 0 || took > 10*time.Second {
		t.Errorf("exit code %d after %v", code, took)
	}
	polls := m.polls()
	eventually(t, "the last values arrive", func() bool {
		got := arrivals(t, sub)
		return len(got) > 0 && polls[got[len(got)-1].value-1].After(stopped.Add(-end))
	})

	have := make(map[int]uint64)
	bySeq := make(map[uint64]int)
	last, repeats := 0, 0
	for _, a := range arrivals(t, sub) {
		if v, ok := bySeq[a.seq]; ok && v != a.value {
			t.Fatalf("seq %d says %d and %d", a.seq, v, a.value)
		}
		if _, again := bySeq[a.seq]; again {
			repeats++
			continue
		}
		if a.value <= last {
			t.Fatalf("value %d came after %d, and was not there before", a.value, last)
		}
		bySeq[a.seq], have[a.value], last = a.value, a.seq, a.value
	}
	lost, over := 0, 0
	var oldest, longest time.Duration
	for i, at := range polls {
		if _, ok := have[i+1]; ok || at.After(stopped.Add(-end)) {
			continue
		}
		lost++
		k, _ := slices.BinarySearchFunc(gone, at, time.Time.Compare)
		if k == len(gone) {
			t.Fatalf("value %d, read at %v, is lost after the last kill", i+1, at)
		}
		age, delay, still := killed[k].Sub(at), machine.longest(killed[k]), standstill(polls, gone[:k], killed[k])
		oldest, longest = max(oldest, age), max(longest, delay)
		if limit := commit + waits*delay + 2*still; age > limit && over < 5 {
			over++
			t.Errorf("value %d, read %v before a kill, is lost; want at most %v: the longest sync about then took %v, no poll came for %v", i+1, age, limit, delay, still)
		}
	}
	t.Logf("%d kills, %d values read, %d arrived, %d lost that were read %v before a kill or later, %d repeats; the longest sync about a kill took %v",
		kills, len(polls), len(have), lost, oldest, repeats, longest)
	if len(have) < len(polls)/3 {
		t.Errorf("only %d of %d values arrived", len(have), len(polls))
	}
}

// standstill returns for how long no value was read by the process of a kill; those
// before are gone.
func standstill(polls, gone []time.Time, kill time.Time) (longest time.Duration) {
	to, _ := slices.BinarySearchFunc(polls, kill, time.Time.Compare)
	next := kill
	for i := to - 1; i >= 0; i-- {
		if len(gone) > 0 && polls[i].Before(gone[len(gone)-1]) {
			break // of a process before
		}
		longest = max(longest, next.Sub(polls[i]))
		next = polls[i]
	}
	return longest
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func TestKilledGateway(t *testing.T) {
	t.Parallel()
	killedGateway(t, 6)
}

// TestBadDisk runs the real program on a disk that takes four seconds for each
// sync, one that fails, and one that is full: polling, the local broker and the
// uplink go on as if nothing were, and the gateway stops in time.
func TestBadDisk(t *testing.T) {
	for _, tt := range []struct {
		name   string
		inject []string // strace's; nil: a small file system
		event  string   // on …/event
	}{
		{"slow", []string{"fsync,fdatasync:delay_exit=4s"}, ""},
		{"failing", []string{"fsync,fdatasync:error=EIO", "pwrite64:error=EIO"}, `"event":"queue_file","state":"begins","uplink":"cloud","reason":`},
		{"full", nil, `"event":"queue_file","state":"begins","uplink":"cloud","reason":`},
		{"read-only", nil, `"event":"queue_file","state":"begins","uplink":"cloud","reason":`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			data := filepath.Join(dir, "data")
			if err := os.Mkdir(data, 0o700); err != nil {
				t.Fatal(err)
			}
			command := []string{binary}
			if tt.inject == nil {
				if err := unix.Mount("tmpfs", data, "tmpfs", 0, "size=4096"); err != nil {
					t.Skipf("no file system of our own: %v", err)
				}
				t.Cleanup(func() { _ = unix.Unmount(data, unix.MNT_DETACH) })
				if tt.name == "read-only" {
					if err := unix.Mount("", data, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
						t.Fatal(err)
					}
				}
			} else {
				command = tracer(t, tt.inject)
			}
			m, addr := serveMeter(t)
			upstream := mosquittotest.Start(t, mosquittotest.Options{})
			k := newLink(t, upstream.Addr())
			k.Cut()
			port := freePort(t)
			path := filepath.Join(dir, "fieldgate.yaml")
			if err := os.WriteFile(path, fmt.Appendf(nil, `
site: { id: plant }
buses: { plc: { tcp: "%s" } }
devices: { meter: { bus: plc, every: 50ms, points: { n: { at: holding 0, type: uint32 } } } }
publish: [ { when: each, fields: [seq] } ]
uplinks: { cloud: { url: "mqtt://%s", queue: { commit: 200ms } } }
broker: { listen: ["mqtt://127.0.0.1:%d"], anonymous: true }
`, addr, k.Addr(), port), 0o600); err != nil {
				t.Fatal(err)
			}
			// Upstream, where the event waits for the link: at the local broker it is
			// said before anybody can have subscribed.
			events := upstream.Subscribe([]string{"fieldgate/plant/event"})
			up := subscribeMeter(t, upstream.Port)
			eventually(t, "subscribed upstream", func() bool { return strings.Contains(upstream.Output(), " 1 plant/meter/n\n") })
			gw := start(t, command[0], append(command[1:], "-c", path, "run", "--data", data)...)
			t.Cleanup(func() { // strace would leave it alone
				select {
				case <-gw.done: // its number may be another process's by now
				default:
					_ = syscall.Kill(gatewayPid(t, gw), syscall.SIGKILL)
				}
			})
			gw.log.waitFor(t, "msg=started")
			eventually(t, "polled", func() bool { return len(m.polls()) > 0 })
			local := subscribeMeter(t, port)
			eventually(t, "a message of the local broker", func() bool { return len(arrivals(t, local)) > 0 })
			if tt.event != "" {
				gw.log.waitFor(t, "queue file takes nothing")
			}

			time.Sleep(4 * time.Second) // as long as the slowest sync
			open(t, k)
			away := len(m.polls())
			eventually(t, "what waited arrives", func() bool { got := arrivals(t, up); return len(got) > away })
			time.Sleep(2 * time.Second)

			// The system may keep the process until the disk has answered; the
			// gateway itself is through in time.
			begin := time.Now()
			_ = syscall.Kill(gatewayPid(t, gw), syscall.SIGTERM)
			gw.log.waitFor(t, "msg=stopped")
			if took := time.Since(begin); took > 11*time.Second {
				t.Errorf("it stopped after %v", took)
			}

			evenly(t, "polls", m.polls())
			got := arrivals(t, local)
			times := make([]time.Time, len(got))
			for i, a := range got {
				times[i] = a.at
			}
			evenly(t, "messages of the local broker", times)
			complete(t, arrivals(t, up), away)
			if tt.event != "" {
				events.Until(func(m mosquittotest.Received) bool { return strings.Contains(m.Payload, tt.event) })
				if log := gw.log.String(); tt.name == "read-only" && (strings.Count(log, "queue file takes nothing") != 1 || strings.Contains(log, "takes messages again")) {
					t.Errorf("the disk was read-only all the time; log:\n%s", log)
				}
			}
		})
	}
}

// evenly checks that what should happen every 50 ms did not stand still.
func evenly(t *testing.T, what string, times []time.Time) {
	t.Helper()
	if len(times) < 60 {
		t.Errorf("%d %s, want more than 60", len(times), what)
	}
	for i := 1; i < len(times); i++ {
		if d := times[i].Sub(times[i-1]); d > 1500*time.Millisecond {
			t.Errorf("%s: %v between two", what, d)
		}
	}
}

// complete checks that values up to n arrived in order, from the first on.
func complete(t *testing.T, got []arrival, n int) {
	t.Helper()
	want := 1
	for _, a := range got {
		if a.value > want {
			t.Fatalf("value %d arrived where %d was to come", a.value, want)
		}
		want = max(want, a.value+1)
	}
	if want <= n {
		t.Errorf("values up to %d arrived, want at least %d", want-1, n)
	}
}

// tracer returns the command line that runs the program with faults injected
// into its system calls.
func tracer(t *testing.T, inject []string) []string {
	t.Helper()
	args := []string{"strace", "-f", "-qq", "--seccomp-bpf", "-e", "signal=none", "-o", "/dev/null"}
	if out, err := exec.Command(args[0], append(args[1:], "true")...).CombinedOutput(); err != nil {
		if strings.Contains(string(out), "not permitted") {
			t.Skipf("strace may not trace here: %s", out)
		}
		t.Fatalf("strace (Debian's package strace): %v\n%s", err, out)
	}
	for _, i := range inject {
		calls, _, _ := strings.Cut(i, ":")
		args = append(args, "-e", "trace="+calls, "-e", "inject="+i)
	}
	return append(args, binary)
}

// gatewayPid returns the process of the program, which may run under strace.
func gatewayPid(t *testing.T, p *process) int {
	t.Helper()
	pid := p.cmd.Process.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return pid // it has ended
	}
	if child, err := strconv.Atoi(strings.TrimSpace(string(children))); err == nil {
		return child
	}
	return pid
}
