package main

import "context"

func cmdRun(ctx context.Context, a *app, args []string) error {
	f := newFlags("run", "[-c FILE] [--data DIR]", "")
	_, err := f.parse(a, args)
	return err
}
