package gateway

import (
	"fmt"

	"fieldgate/internal/config"
	"fieldgate/internal/publish"
)

// Load reads the configuration at path as config.Load does, and also holds the
// rules against the points: two points on one topic is a fault, a pattern that
// finds nothing a warning. The topics that come of that are for Open and
// MakePlan. Everything that runs or checks a configuration comes through here,
// so "check" and "run" never disagree.
func Load(path string) (*config.Config, []publish.Topic, error) {
	cfg, err := config.Load(path)
	if err != nil {
		return nil, nil, err
	}
	var faults config.Faults
	topics, found := publish.Topics(cfg.Site, cfg.Publish, cfg.Devices)
	for _, f := range found {
		placed := cfg.Fault(fmt.Sprintf("publish[%d].%s", f.Rule, f.Key), f.Text)
		if f.Warning {
			cfg.Warnings = append(cfg.Warnings, placed)
		} else {
			faults = append(faults, placed)
		}
	}
	if len(faults) > 0 {
		return nil, nil, faults
	}
	return cfg, topics, nil
}
