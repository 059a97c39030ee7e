// Package smalldisk gives a test a folder with a file system of its own, which can
// be filled, and mounted anew to be read only.
package smalldisk

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Run runs what test does with a folder whose file system, in memory, is of size
// bytes. Who may not mount does it in a name space of his own: a process that runs
// this test only.
func Run(t *testing.T, size int, test func(t *testing.T, dir string)) {
	t.Helper()
	const unshared = "FIELDGATE_TEST_UNSHARED"
	dir := t.TempDir()
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size))
	if err == nil {
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		test(t, dir)
		return
	}
	if os.Getenv(unshared) != "" {
		t.Fatalf("mount in a name space of our own: %v", err)
	}
	cmd := exec.Command("unshare", "-Urm", os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), unshared+"=1")
	if out, uerr := cmd.CombinedOutput(); uerr != nil {
		t.Fatalf("this test mounts a small file system: run it as root, or where user name spaces are allowed\n%v; %v\n%s", err, uerr, out)
	}
}
