// Command bench measures the figures that Fieldgate promises and writes them,
// with a description of the machine, to docs/performance.md.
//
//	go run ./test/bench -out docs/performance.md     (make bench)
//	go run ./test/bench -only rtu                    one section, to the screen
//
// Everything is measured against a limit that follows from the wire or against
// a peer in the same run: machines are noisy, ratios are not. It runs the
// program that make build left in bin/ against simulated devices in this
// process, with mosquitto as the broker upstream.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// row is one figure.
type row struct {
	what     string
	measured string
	target   string // "" where there is none
	ok       bool
}

// section is a group of figures.
type section struct {
	name  string // for -only
	title string
	about string
	run   func(ctx context.Context, b *bench) ([]row, error)
}

// bench is what the sections share.
type bench struct {
	dir    string // temporary
	binary string
}

func sections() []section {
	return []section{
		{"rtu", "A serial line, read back to back", rtuAbout, benchRTU},
		{"dead", "The same line with one device of five dead", deadAbout, benchDead},
		{"tcp", "Modbus TCP", tcpAbout, benchTCP},
		{"server", "Our Modbus server beside libmodbus's", serverAbout, benchServer},
		{"load", "100 TCP devices of 100 points, read every second", loadAbout, benchLoad},
		{"queue", "An uplink that is away for 20 s", outageAbout, benchOutage},
		{"commands", "Commands on a busy serial line", commandsAbout, benchCommands},
		{"memory", "Memory and size", memoryAbout, benchMemory},
		{"start", "From exec to the first value", startAbout, benchStart},
	}
}

func main() {
	out := flag.String("out", "", "write the report to `FILE`")
	only := flag.String("only", "", "run the section of this `NAME` alone")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *out, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out, only string) error {
	dir, err := os.MkdirTemp("", "fieldgate-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary, err := filepath.Abs("bin/fieldgate")
	if err != nil {
		return err
	}
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("%w; run make build first", err)
	}
	b := &bench{dir: dir, binary: binary}
	for _, peer := range []string{"server", "poll", "load", "floor", "answer"} {
		if err := command("gcc", "-std=c11", "-O2", "-D_DEFAULT_SOURCE", "-o", filepath.Join(dir, peer),
			"test/peers/"+peer+".c", "-I/usr/include/modbus", "-lmodbus"); err != nil {
			return err
		}
	}
	var report bytes.Buffer
	report.WriteString(preface(b))
	missed := 0
	for _, s := range sections() {
		if only != "" && s.name != only {
			continue
		}
		begin := time.Now()
		rows, err := s.run(ctx, b)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		fmt.Fprintf(&report, "\n## %s\n\n%s\n\n| what | measured | target |\n|---|---|---|\n", s.title, strings.TrimSpace(s.about))
		fmt.Printf("%s (%.0f s)\n", s.title, time.Since(begin).Seconds())
		for _, r := range rows {
			target := r.target
			if target != "" && !r.ok {
				target += " **missed**"
				missed++
			}
			fmt.Fprintf(&report, "| %s | %s | %s |\n", r.what, r.measured, target)
			fmt.Printf("  %-72s %-26s %s\n", r.what, r.measured, target)
		}
	}
	if out != "" && only == "" {
		if err := os.WriteFile(out, report.Bytes(), 0o644); err != nil {
			return err
		}
	}
	if missed > 0 {
		return fmt.Errorf("%d figures missed their target", missed)
	}
	return nil
}

func preface(b *bench) string {
	version, err := exec.Command(b.binary, "version").Output()
	if err != nil {
		version = []byte(err.Error())
	}
	return fmt.Sprintf(`# What Fieldgate costs, and how fast it is

Measured by `+"`make bench`"+` on %s: %s, %d cores, Linux, %s. The program: %s.
The simulated devices, the peers and mosquitto ran on the same machine. A target that was missed says so.
`, time.Now().UTC().Format("2006-01-02"), cpuName(), runtime.NumCPU(), runtime.Version(), strings.TrimSpace(string(version)))
}

func cpuName() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}
