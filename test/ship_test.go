package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fieldgate/internal/simulate"
)

// All examples are good, the made-up plants among them.
func TestExamples(t *testing.T) {
	examples, err := filepath.Glob("../configs/*.yaml")
	if err != nil || len(examples) < 5 {
		t.Fatalf("examples %v, %v", examples, err)
	}
	for _, path := range examples {
		if strings.HasPrefix(filepath.Base(path), "simulate-") {
			if _, err := simulate.Load(path); err != nil {
				t.Error(err)
			}
			continue
		}
		stdout, stderr, code := run(t, "-c", path, "check")
		if code != 0 || !strings.HasPrefix(stdout, path+": good: ") {
			t.Errorf("%s: exit code %d, %s%s", path, code, stdout, stderr)
		}
		if _, stderr, code := run(t, "-c", path, "plan"); code != 0 {
			t.Errorf("%s: plan: exit code %d, %s", path, code, stderr)
		}
	}
}

// What "init" writes can be checked and run as it is.
func TestInitIsGood(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fieldgate.yaml")
	if _, stderr, code := run(t, "init", "-o", path); code != 0 {
		t.Fatalf("init: exit code %d, %s", code, stderr)
	}
	if stdout, stderr, code := run(t, "-c", path, "check"); code != 0 {
		t.Errorf("check: exit code %d, %s%s", code, stdout, stderr)
	}
}

// The installation below a root folder: everything is where systemd looks for
// it, the configuration is one that runs, and one that is there is kept.
func TestInstall(t *testing.T) {
	for _, test := range []struct {
		name   string
		script []string // BINARY and ROOT are filled in
		more   []string
	}{
		{"scripts/install", []string{"../scripts/install", "BINARY", "ROOT"}, nil},
		{"firmware/prepare-card", []string{"../firmware/prepare-card", "ROOT", "BINARY"}, []string{"etc/systemd/journald.conf.d/fieldgate.conf"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
				t.Fatal(err)
			}
			install := func() {
				args := strings.Split(strings.NewReplacer("BINARY", binary, "ROOT", root).Replace(strings.Join(test.script, "\n")), "\n")
				if err := execute(args[0], args[1:]...); err != nil {
					t.Fatal(err)
				}
			}
			install()
			for _, file := range append([]string{
				"usr/bin/fieldgate", "etc/fieldgate/fieldgate.yaml", "lib/systemd/system/fieldgate.service",
				"usr/lib/sysusers.d/fieldgate.conf", "usr/lib/udev/rules.d/60-fieldgate-serial.rules",
				"usr/share/fieldgate/fieldgate.schema.json",
			}, test.more...) {
				if info, err := os.Stat(filepath.Join(root, file)); err != nil || info.Size() == 0 {
					t.Errorf("%s: %v", file, err)
				}
			}
			if to, err := os.Readlink(filepath.Join(root, "etc/systemd/system/multi-user.target.wants/fieldgate.service")); err != nil || to != "/lib/systemd/system/fieldgate.service" {
				t.Errorf("the service is not enabled: %q, %v", to, err)
			}
			config := filepath.Join(root, "etc/fieldgate/fieldgate.yaml")
			out, err := exec.Command(filepath.Join(root, "usr/bin/fieldgate"), "-c", config, "check").CombinedOutput()
			if err != nil {
				t.Errorf("the configuration that is installed: %v\n%s", err, out)
			}
			if err := os.WriteFile(config, []byte("# mine\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			install()
			if kept := readFile(t, config); kept != "# mine\n" {
				t.Errorf("the operator's configuration was replaced by %q", kept)
			}
		})
	}
	if err := execute("../firmware/prepare-card", "/", binary); err == nil || !strings.Contains(err.Error(), "not the mounted root of a card") {
		t.Errorf("prepare-card on this machine's own root: %v", err)
	}
}

// The release binaries link without cgo, and are no larger than promised. Those
// for ARM run: version, and the demonstration, with its serial line, 32-bit
// arithmetic and all, under an emulator.
func TestReleaseBuilds(t *testing.T) {
	const most = 12_000_000
	for _, target := range []struct {
		arch, arm string
		emulator  string // "": this machine
		demo      bool
	}{
		{arch: "amd64", demo: true},
		{arch: "arm", arm: "6", emulator: "qemu-arm-static", demo: true},
		{arch: "arm", arm: "7", emulator: "qemu-arm-static"},
		{arch: "arm64", emulator: "qemu-aarch64-static", demo: true},
		{arch: "riscv64", emulator: "qemu-riscv64-static"},
	} {
		t.Run(target.arch+target.arm, func(t *testing.T) {
			t.Parallel()
			out := filepath.Join(t.TempDir(), "fieldgate")
			// Other packages measure time while this compiles.
			build := exec.Command("nice", "-n", "19", "../scripts/build", out, "v1-test")
			build.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+target.arch, "GOARM="+target.arm)
			if text, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			info, err := os.Stat(out)
			if err != nil {
				t.Fatal(err)
			}
			if info.Size() > most {
				t.Errorf("%d bytes, want at most %d", info.Size(), most)
			}
			program := []string{out}
			if target.emulator != "" {
				if _, err := exec.LookPath(target.emulator); err != nil {
					t.Fatal("qemu-user-static is not installed: apt-get install qemu-user-static")
				}
				program = []string{target.emulator, out}
			}
			version := start(t, program[0], append(program[1:], "version")...)
			version.wantEnd(0)
			if got := version.out.String(); !strings.HasPrefix(got, "fieldgate v1-test (go") || !strings.Contains(got, fmt.Sprintf("linux/%s)", target.arch)) {
				t.Errorf("version: %q", got)
			}
			if !target.demo {
				return
			}
			p := startDemo(t, program, "--for", "4s", "--json")
			p.wantEnd(0)
			wantAllPoints(t, demoSamples(t, p.out.String()))
			if p.log.String() != "" {
				t.Errorf("it logs %q", p.log.String())
			}
		})
	}
}
