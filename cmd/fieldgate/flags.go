package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
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
		return usagef("%s; \"%s -h\" explains it", strings.ReplaceAll(err.Error(), "flag provided but not defined", "unknown option"), f.full())
	}
	return nil
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
	fmt.Fprintf(w, "Usage: %s %s\n", f.full(), f.usage)
	if f.help != "" {
		fmt.Fprintf(w, "\n%s\n", strings.Trim(f.help, "\n"))
	}
	first := true
	f.VisitAll(func(o *flag.Flag) {
		if first {
			fmt.Fprintln(w, "\nOptions:")
			first = false
		}
		name, text := flag.UnquoteUsage(o)
		left := "-" + o.Name
		if len(o.Name) > 1 {
			left = "--" + o.Name
		}
		if name != "" {
			left += " " + name
		}
		if o.DefValue != "" && o.DefValue != "false" && o.DefValue != "0" && o.DefValue != "0s" {
			text += " (default " + o.DefValue + ")"
		}
		fmt.Fprintf(w, "  %-18s %s\n", left, text)
	})
	if f.details != nil {
		fmt.Fprintln(w)
		f.details(w)
	}
}

// didYouMean names the known words, the nearest first when there is one.
func didYouMean(word string, known []string) string {
	for _, k := range known {
		if strings.HasPrefix(k, word) || strings.HasPrefix(word, k) {
			return fmt.Sprintf("did you mean %q?", k)
		}
	}
	return "known: " + strings.Join(known, " ")
}
