package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"fieldgate/internal/config"
)

//go:embed presets/*.yaml
var presetFiles embed.FS

// presets are the configurations to start from, the first by default.
var presets = []string{"plain", "demo", "hivemq", "emqx", "mosquitto", "aws", "azure", "thingsboard"}

func cmdInit(_ context.Context, a *app, args []string) error {
	f := newFlags("init", "[--preset NAME] [-o FILE]", `
Prints a commented configuration to start from, or writes it to a file that
does not exist yet.

  fieldgate init > plant.yaml
  fieldgate init --preset hivemq -o plant.yaml

Presets:
  plain        a device on TCP, an uplink, the embedded broker
  demo         the devices that "fieldgate simulate configs/simulate-plant.yaml" makes up
  hivemq       an uplink to HiveMQ Cloud, or a HiveMQ of your own
  emqx         the same of EMQX
  mosquitto    a mosquitto of your own
  aws          AWS IoT Core: client certificate, port 443
  azure        Azure IoT Hub: tokens made from the device's key
  thingsboard  telemetry of ThingsBoard: access token`)
	preset := f.String("preset", presets[0], "`NAME` of what to start from: "+strings.Join(presets, ", "))
	out := f.String("o", "", "write to `FILE`, which must not exist")
	rest, err := f.parse(a, args)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return usagef("init takes only options; did you mean -o %s?", rest[0])
	}
	text, err := presetFiles.ReadFile("presets/" + *preset + ".yaml")
	if err != nil {
		return usagef("there is no preset %q; %s", *preset, config.Suggest(*preset, presets))
	}
	if *out == "" || *out == "-" {
		_, err = a.stdout.Write(text)
		return err
	}
	file, err := os.OpenFile(*out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists and is not overwritten; remove it, or write to another file", *out)
	}
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "wrote %s; edit it, then: fieldgate check -c %s\n", *out, *out)
	return err
}
