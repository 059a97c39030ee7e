package main

import (
	"bytes"
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// steadyGC is the gateway's GOGC once it runs. Its heap is small and what it
// throws away little: at 10,000 points and messages a second, collecting at a fifth
// above what is live costs 1 µs a message; with batches it is hardly to be measured.
const steadyGC = 20

// The collector rests during the start: reading a configuration makes much
// garbage once, and a collection would only delay the first values. The rest
// ends startLasts after everything runs, when most devices have had their first
// polls. Before that, restGC puts the first collection at 64 MiB, which takes
// some 20,000 points (GOGC counts from 4 MiB at least), and those after it come
// at the usual pace, busyGC.
const (
	startLasts = 2 * time.Second
	restGC     = 1600
	busyGC     = 100
)

// quickStart lets the collector rest. What it returns is to be called when
// everything runs: it waits until the start is over and settles, or returns
// early when ctx ends.
func quickStart() (settleLater func(ctx context.Context)) {
	debug.SetGCPercent(restGC)
	var mu sync.Mutex
	settled := false
	set := func(percent int, last bool) {
		mu.Lock()
		defer mu.Unlock()
		if !settled {
			settled = last
			debug.SetGCPercent(percent)
		}
	}
	type garbage struct{ _ *byte }
	runtime.AddCleanup(new(garbage), func(int) { set(busyGC, false) }, 0) // after the first collection
	return func(ctx context.Context) {
		over := time.NewTimer(startLasts)
		defer over.Stop()
		select {
		case <-over.C:
			set(steadyGC, true)
			settle()
		case <-ctx.Done():
		}
	}
}

// settle gives back the memory that only the start needed: garbage, and the
// pages of the program itself. The kernel maps sixteen pages around each one that
// is touched; those in use come back from the page cache at their next use.
func settle() {
	debug.FreeOSMemory()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return // no /proc: the pages stay, nothing else
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	for line := range bytes.Lines(maps) {
		// 00400000-00966000 r-xp 00000000 fe:00 1234    /usr/bin/fieldgate
		f := strings.Fields(string(line))
		if len(f) < 6 || f[5] != self || f[1] != "r-xp" && f[1] != "r--p" {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		begin, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 != nil || err2 != nil {
			continue
		}
		// A private mapping of a file that is never written: dropping its pages
		// loses nothing (madvise(2), MADV_DONTNEED).
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(begin), uintptr(end-begin), unix.MADV_DONTNEED)
	}
}
