package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"fieldgate/internal/broker"
)

func cmdPasswd(ctx context.Context, a *app, args []string) error {
	f := newFlags("passwd", "", `
Reads a password and prints its argon2id hash, for a user of the embedded
broker. On a terminal it asks twice and shows nothing; else it reads one line:

  fieldgate passwd
  printf '%s\n' "$SECRET" | fieldgate passwd

  broker:
    users:
      - name: hmi
        password: $argon2id$v=19$m=12288,t=3,p=1$...
        publish: ["plant/+/set"]
        subscribe: ["plant/#"]`)
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return usagef("passwd takes no arguments: a password on the command line is seen by every user of this machine")
	}
	password, err := readPassword(ctx, a)
	if err != nil {
		return err
	}
	if password == "" {
		return errors.New("the password is empty")
	}
	_, err = fmt.Fprintln(a.stdout, broker.HashPassword(password))
	return err
}

// readPassword asks for a password on a terminal, else reads a line.
func readPassword(ctx context.Context, a *app) (string, error) {
	if tty, ok := a.stdin.(*os.File); ok && term.IsTerminal(int(tty.Fd())) {
		first, err := ask(ctx, a, tty, "Password: ")
		if err != nil {
			return "", err
		}
		again, err := ask(ctx, a, tty, "Once more: ")
		if err != nil {
			return "", err
		}
		if first != again {
			return "", errors.New("the two are not the same")
		}
		return first, nil
	}
	line, err := bufio.NewReader(a.stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("password: %w", err)
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// ask reads a line without showing it. When ctx ends first, the terminal is as
// it was before.
func ask(ctx context.Context, a *app, tty *os.File, prompt string) (string, error) {
	fd := int(tty.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("password: %w", err)
	}
	fmt.Fprint(a.stderr, prompt)
	defer fmt.Fprintln(a.stderr)
	type answer struct {
		password []byte
		err      error
	}
	got := make(chan answer, 1)
	go func() { // ends with the line, or with the process
		password, err := term.ReadPassword(fd)
		got <- answer{password, err}
	}()
	select {
	case r := <-got:
		if r.err != nil {
			return "", fmt.Errorf("password: %w", r.err)
		}
		return string(r.password), nil
	case <-ctx.Done():
		return "", errors.Join(errors.New("interrupted"), term.Restore(fd, before))
	}
}
