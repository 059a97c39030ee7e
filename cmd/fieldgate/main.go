// Command fieldgate is the gateway and all its tools in one program: one file
// here per subcommand, each of which reads its arguments, calls the package
// that does the work and prints. There is no logic here.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"fieldgate/internal/config"
)

// Exit codes (SPEC 3).
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2 // bad config or usage
	exitNoGate = 3 // no connection to the running gateway
	exitNoPeer = 4 // a Modbus or MQTT peer did not answer
)

// app is what every subcommand is given: where it reads and prints, and the
// options that stand before the command.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	config         string // -c
}

// command is one word of the command line.
type command struct {
	name  string
	brief string // one line for the overview
	run   func(ctx context.Context, a *app, args []string) error
}

// commands lists every subcommand in the order of the overview.
func commands() []command {
	return []command{
		{"run", "run the gateway", cmdRun},
		{"demo", "see it work: a simulated plant, the gateway, a live view", cmdDemo},
		{"init", "write a commented configuration to start from", cmdInit},
		{"check", "say what is wrong with a configuration, line by line", cmdCheck},
		{"plan", "the requests, bus load and messages that come of a configuration", cmdPlan},
		{"schema", "print the JSON Schema of the configuration", cmdSchema},
		{"audit", "who wrote what: ls, verify, export", cmdAudit},
		{"queue", "what waits for an uplink: ls, export, purge", cmdQueue},
		{"modbus", "speak Modbus directly: read, write, scan, pdu, decode, serve", cmdModbus},
		{"mqtt", "speak MQTT directly: pub, sub, test", cmdMQTT},
		{"simulate", "Modbus devices with waveforms and faults, TCP and serial", cmdSimulate},
		{"passwd", "hash a password for a user of the embedded broker", cmdPasswd},
		{"version", "print the version", cmdVersion},
	}
}

// exitError carries an exit code to main. A nil err prints nothing more.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

// usagef is a fault in the command line: exit code 2.
func usagef(format string, args ...any) error {
	return exitError{exitUsage, fmt.Errorf(format, args...)}
}

// badConfig is a configuration that cannot be used: exit code 2.
func badConfig(err error) error { return exitError{exitUsage, err} }

// noPeer is a Modbus or MQTT peer that did not answer: exit code 4.
func noPeer(err error) error { return exitError{exitNoPeer, err} }

func main() {
	// A reader that has had enough ("demo --json | head") is an error of Write,
	// and not the end of the process: there may be something to clear up.
	signal.Ignore(syscall.SIGPIPE)
	// The first signal ends the context and so asks everything to stop; a
	// second one finds the default action restored and ends the process.
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		ends = append(ends, syscall.SIGHUP) // the terminal is gone: clear up, say goodbye
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	go func() {
		<-ctx.Done()
		stop()
	}()
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	os.Exit(a.main(ctx, os.Args[1:]))
}

// main runs one command line and returns its exit code.
func (a *app) main(ctx context.Context, args []string) int {
	err := a.dispatch(ctx, args)
	if err == nil || nobodyReads(err) {
		return exitDone
	}
	code := exitFailed
	var e exitError
	if errors.As(err, &e) {
		code = e.code
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(a.stderr, "fieldgate:", text)
	}
	return code
}

// nobodyReads reports whether err says that whoever read our output is gone.
func nobodyReads(err error) bool {
	var p *fs.PathError
	return errors.As(err, &p) && p.Path == os.Stdout.Name() && errors.Is(p.Err, syscall.EPIPE)
}

func (a *app) dispatch(ctx context.Context, args []string) error {
	f := newFlags("", "[-c FILE] COMMAND [ARGUMENT...]", "")
	f.StringVar(&a.config, "c", "/etc/fieldgate/fieldgate.yaml", "configuration `FILE`")
	version := f.Bool("version", false, "print the version, as the command does")
	f.details = overview
	args, err := f.parseLeading(a, args)
	if err != nil {
		return err
	}
	if *version {
		args = append([]string{"version"}, args...)
	}
	if len(args) == 0 {
		f.print(a.stderr)
		return exitError{code: exitUsage}
	}
	if args[0] == "help" {
		if len(args) == 1 {
			f.print(a.stdout)
			return nil
		}
		args = append(args[1:], "-h")
	}
	return dispatch(ctx, a, "fieldgate", commands(), args)
}

// dispatch runs the command that args[0] names.
func dispatch(ctx context.Context, a *app, prefix string, list []command, args []string) error {
	names := make([]string, len(list))
	for i, c := range list {
		if c.name == args[0] {
			err := c.run(ctx, a, args[1:])
			if errors.Is(err, errHelp) {
				return nil
			}
			return err
		}
		names[i] = c.name
	}
	return usagef("%q is not a command of %s; %s", args[0], prefix, config.Suggest(args[0], names))
}

// group is a command that has commands of its own, list: it prints its help, or
// runs the one that args name.
func (f *flags) group(ctx context.Context, a *app, list []command, args []string) error {
	f.details = func(w io.Writer) {
		listCommands(w, list)
		fmt.Fprintf(w, "\n\"%s COMMAND -h\" explains a command by example.\n", f.full())
	}
	args, err := f.parseLeading(a, args)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		f.print(a.stderr)
		return exitError{code: exitUsage}
	}
	return dispatch(ctx, a, f.full(), list, args)
}

func listCommands(w io.Writer, list []command) {
	width := 0
	for _, c := range list {
		width = max(width, len(c.name))
	}
	fmt.Fprintln(w, "Commands:")
	for _, c := range list {
		fmt.Fprintf(w, "  %-*s  %s\n", width, c.name, c.brief)
	}
}

func overview(w io.Writer) {
	listCommands(w, commands())
	fmt.Fprint(w, `
"fieldgate COMMAND -h" explains a command by example. To see it work without
any hardware: fieldgate demo

Exit codes: 0 done, 1 failed, 2 bad config or usage, 3 no connection to the
running gateway, 4 a Modbus or MQTT peer did not answer.
`)
}
