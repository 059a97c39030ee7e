// Package child starts the programs that tests and benchmarks run beside
// themselves. Such a program ends with the process that started it, however that
// ends: a test that is killed leaves nothing behind.
package child

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// A birth is a program to be started, and where to say how that went.
type birth struct {
	cmd *exec.Cmd
	err chan<- error
}

// births leads to the thread that starts all programs. The kernel kills a child
// when the thread that started it ends, not the process (prctl(2),
// PR_SET_PDEATHSIG), and threads do end: the one of a simulated serial line with
// the line. So one thread starts all and does nothing else.
var births = sync.OnceValue(func() chan<- birth {
	c := make(chan birth)
	go func() { // ends with the process
		runtime.LockOSThread()
		for b := range c {
			b.err <- b.cmd.Start()
		}
	}()
	return c
})

// Start is cmd.Start for a program that is killed when this process ends. It
// sets cmd.SysProcAttr.Pdeathsig and leaves other attributes as they are. It may
// be called by several goroutines at once.
func Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	err := make(chan error)
	births() <- birth{cmd, err}
	return <-err
}
