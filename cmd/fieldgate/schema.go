package main

import (
	"context"

	"fieldgate/internal/config"
)

func cmdSchema(_ context.Context, a *app, args []string) error {
	f := newFlags("schema", "", `
Prints the JSON Schema of the configuration, for editors that complete and
check while one types:

  fieldgate schema > fieldgate.schema.json

and as the first line of the configuration, for VS Code and others:

  # yaml-language-server: $schema=./fieldgate.schema.json`)
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return usagef("schema takes no arguments")
	}
	_, err = a.stdout.Write(config.Schema())
	return err
}
