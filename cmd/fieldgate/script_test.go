package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what the commands print into testdata")

// script is how the command lines of a file in testdata are run: each stands
// after "$ ", what is typed after "< ", the standard output below, standard error
// after "! ", an exit code other than 0 after "? ". Lines that begin with "#" are
// for readers. After a change that is meant, -update writes what is printed now;
// it is read in review.
type script struct {
	run  func(stdin string, args []string) (stdout, stderr string, code int)
	fill func(command string) string // puts in what words stand for; nil: nothing
	tidy func(output string) string  // takes out what differs from run to run; nil: nothing
}

// scripts returns the paths of scripts, which hold wherever a test goes.
func scripts(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scripts %s: %v", pattern, err)
	}
	for i := range paths {
		if paths[i], err = filepath.Abs(paths[i]); err != nil {
			t.Fatal(err)
		}
	}
	return paths
}

// nameOf is what a script is called.
func nameOf(path string) string { return strings.TrimSuffix(filepath.Base(path), ".txt") }

// check runs the script of a file and compares all that is printed with it.
func (s script) check(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if s.fill == nil {
		s.fill = func(command string) string { return command }
	}
	if s.tidy == nil {
		s.tidy = func(output string) string { return output }
	}
	var got strings.Builder
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "#") {
			got.WriteString(line + "\n")
		}
		command, ok := strings.CutPrefix(line, "$ ")
		if !ok {
			continue
		}
		typed, isTyped := strings.CutPrefix(lines[i+1], "< ") // a file ends with a newline
		if !isTyped {
			typed = ""
		}
		stdout, stderr, code := s.run(typed+"\n", splitWords(s.fill(command)))
		fmt.Fprintf(&got, "$ %s\n", command)
		if isTyped {
			fmt.Fprintf(&got, "< %s\n", typed)
		}
		for line := range strings.Lines(stderr) {
			stdout += "! " + line
		}
		got.WriteString(s.tidy(stdout))
		if code != 0 {
			fmt.Fprintf(&got, "? %d\n", code)
		}
	}
	if *update {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got.String() != string(text) {
		t.Errorf("%s: output differs; run with -update and read the change\n--- got\n%s\n--- want\n%s", filepath.Base(path), got.String(), text)
	}
}

// splitWords splits a command line at spaces; double quotes hold a word together.
func splitWords(s string) []string {
	var words []string
	for i, part := range strings.Split(s, `"`) {
		if i%2 == 1 {
			words = append(words, part)
		} else {
			words = append(words, strings.Fields(part)...)
		}
	}
	return words
}
