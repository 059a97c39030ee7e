package child

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A child outlives the thread that asked for it, as threads of simulated serial
// lines end while programs of other tests run.
func TestThreadEnds(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	thread, started := make(chan int), make(chan error, 1)
	var begin func()
	begin = func() { // ends at once, and its thread with it
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() { // the first thread, which never ends
			other := make(chan struct{})
			go func() { // ends as begin does
				defer close(other)
				begin()
			}()
			<-other
			return
		}
		started <- Start(cmd)
		thread <- unix.Gettid()
	}
	go begin() // ends as it says
	id := <-thread
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	task := fmt.Sprintf("/proc/self/task/%d", id)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(task); errors.Is(err, fs.ErrNotExist) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("thread %d has not ended", id)
		}
	}
	// What the kernel sends with the thread's end is there by now.
	if _, err := in.Write([]byte("still here\n")); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "still here\n" {
		t.Errorf("the child says %q, %v", line, err)
	}
}
