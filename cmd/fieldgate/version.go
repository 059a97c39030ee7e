package main

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by the linker: the nearest tag and commit.
var version = ""

func cmdVersion(_ context.Context, a *app, args []string) error {
	f := newFlags("version", "[--json]", "Prints the version, the commit it was built from and the Go release.")
	asJSON := f.Bool("json", false, "print a JSON object")
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return usagef("version takes no arguments")
	}
	v := programVersion()
	if *asJSON {
		return json.NewEncoder(a.stdout).Encode(map[string]string{
			"version": v, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
		})
	}
	_, err = fmt.Fprintf(a.stdout, "fieldgate %s (%s %s/%s)\n", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// programVersion is the linker's version, else what the build recorded.
func programVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return s.Value[:12]
			}
		}
	}
	return "unknown"
}
