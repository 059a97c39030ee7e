package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"
)

// errHelp: the help was asked for and has been printed.
var errHelp = errors.New("help printed")

// flags is one command's options. Unlike the plain flag package it takes
// options after arguments too, and negative numbers as arguments.
type flags struct {
	flag.FlagSet
	name, usage, help string
	details           func(io.Writer) // printed below the options
}

// newFlags starts the options of the command "fieldgate NAME". usage is what
// follows the name; help is text that teaches by example, printed by -h.
func newFlags(name, usage, help string) *flags {
	f := &flags{name: name, usage: usage, help: help}
	f.Init(name, flag.ContinueOnError)
	f.SetOutput(io.Discard) // parse reports; the package's own print would repeat it
	return f
}

// parse reads args and returns the arguments that are no options. It prints
// the help and returns errHelp when that is asked for.
func (f *flags) parse(a *app, args []string) ([]string, error) {
	var opts, rest []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			rest = append(rest, args...)
			args = nil
		case !strings.HasPrefix(arg, "-") || arg == "-" || negativeNumber(arg):
			rest = append(rest, arg)
		default:
			opts = append(opts, arg)
			if f.takesValue(arg) && len(args) > 0 {
				opts = append(opts, args[0])
				args = args[1:]
			}
		}
	}
	return rest, f.parseOptions(a, opts)
}

// parseLeading reads the options before the first argument and returns the rest.
func (f *flags) parseLeading(a *app, args []string) ([]string, error) {
	err := f.parseOptions(a, args)
	if err != nil && errors.Is(err, errHelp) {
		return nil, exitError{code: exitDone}
	}
	return f.Args(), err
}

func (f *flags) parseOptions(a *app, opts []string) error {
	err := f.Parse(opts)
	if errors.Is(err, flag.ErrHelp) {
		f.print(a.stdout)
		return errHelp
	}
	if err != nil {
		return usagef("%s; \"%s -h\" explains it", f.complaint(err), f.full())
	}
	return nil
}

// complaint says in our words what the flag package finds wrong.
func (f *flags) complaint(err error) string {
	text := strings.ReplaceAll(err.Error(), "flag provided but not defined", "unknown option")
	quoted, rest, ok := strings.Cut(strings.TrimPrefix(text, "invalid value "), " for flag -")
	name, why, _ := strings.Cut(rest, ": ")
	if !ok || why != "parse error" {
		return text
	}
	if v, ok := f.Lookup(name).Value.(flag.Getter); ok {
		switch v.Get().(type) {
		case time.Duration:
			why = "is not a time; write one such as 300ms, 10s or 5m"
		case int, uint, int64, uint64:
			why = "is not a whole number"
		}
	}
	return fmt.Sprintf("--%s: %s %s", name, quoted, why)
}

func (f *flags) full() string { return strings.TrimSpace("fieldgate " + f.name) }

// takesValue reports whether the option arg, as written, is followed by its value.
func (f *flags) takesValue(arg string) bool {
	name := strings.TrimLeft(arg, "-")
	if strings.Contains(name, "=") {
		return false
	}
	opt := f.Lookup(name)
	if opt == nil {
		return false
	}
	b, ok := opt.Value.(interface{ IsBoolFlag() bool })
	return !ok || !b.IsBoolFlag()
}

func negativeNumber(s string) bool {
	return len(s) > 1 && s[0] == '-' && (s[1] >= '0' && s[1] <= '9' || s[1] == '.')
}

func (f *flags) print(w io.Writer) {
	fmt.Fprintln(w, strings.TrimSpace("Usage: "+f.full()+" "+f.usage))
	if f.help != "" {
		fmt.Fprintf(w, "\n%s\n", strings.Trim(f.help, "\n"))
	}
	left := func(o *flag.Flag) string {
		name, _ := flag.UnquoteUsage(o)
		if len(o.Name) > 1 {
			return strings.TrimSpace("--" + o.Name + " " + name)
		}
		return strings.TrimSpace("-" + o.Name + " " + name)
	}
	width := 0
	f.VisitAll(func(o *flag.Flag) { width = max(width, len(left(o))) })
	if width > 0 {
		fmt.Fprintln(w, "\nOptions:")
	}
	f.VisitAll(func(o *flag.Flag) {
		_, text := flag.UnquoteUsage(o)
		if o.DefValue != "" && o.DefValue != "false" && o.DefValue != "0" && o.DefValue != "0s" {
			text += " (default " + o.DefValue + ")"
		}
		fmt.Fprintf(w, "  %-*s  %s\n", width, left(o), text)
	})
	if f.details != nil {
		fmt.Fprintln(w)
		f.details(w)
	}
}

// notNegative is the fault of the option --for with a time below zero.
func notNegative(limit time.Duration) error {
	if limit < 0 {
		return usagef("--for: %s is below zero; write one such as 10s or 5m", limit)
	}
	return nil
}
