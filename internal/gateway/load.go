package gateway

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"fieldgate/internal/config"
	"fieldgate/internal/point"
	"fieldgate/internal/publish"
)

// Load reads the configuration at path as config.Load does, and also holds the
// rules against the points: two points on one topic is a fault, a pattern that
// finds nothing a warning. The topics that come of that are for Open and
// MakePlan. Everything that runs or checks a configuration comes through here,
// so "check" and "run" never disagree.
func Load(path string) (*config.Config, []publish.Topic, error) { return loadLayer(path, "") }

// LoadLayer is Load with the settings that were changed from afar, in the file at
// layer. Those that do not fit the configuration any more are left out, all of
// them, with a warning: a gateway starts whatever was sent to it.
func LoadLayer(path, layer string) (*config.Config, []publish.Topic, error) {
	cfg, topics, with := loadLayer(path, layer)
	if with == nil {
		return cfg, topics, nil
	}
	cfg, topics, err := loadLayer(path, "")
	if err != nil {
		return nil, nil, err
	}
	var faults config.Faults
	if errors.As(with, &faults) {
		with = faults[0]
	}
	cfg.Warnings = append(cfg.Warnings, config.Fault{File: layer, Text: "what was changed from afar does not fit the configuration and is not at work: " + with.Error()})
	return cfg, topics, nil
}

func loadLayer(path, layer string) (*config.Config, []publish.Topic, error) {
	return checked(config.LoadLayer(path, layer))
}

// loadOver is loadLayer with the text of the file at layer, which need not be there.
func loadOver(path, layer string, text []byte) (*config.Config, []publish.Topic, error) {
	return checked(config.LoadOver(path, layer, text))
}

// checked holds the rules of a configuration that was read against its points.
func checked(cfg *config.Config, err error) (*config.Config, []publish.Topic, error) {
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
	faults = append(faults, ownTopics(cfg, topics)...)
	faults = append(faults, echoes(cfg, topics)...)
	faults = append(faults, fedBack(cfg, topics)...)
	if len(faults) > 0 {
		cfg.Sort(faults)
		return nil, nil, faults
	}
	return cfg, topics, nil
}

// ownTopics returns a fault for each rule that would publish where the gateway
// says how it is itself.
func ownTopics(cfg *config.Config, topics []publish.Topic) []config.Fault {
	var faults []config.Fault
	said := -1
	for i := range topics {
		t := &topics[i]
		if t.Rule == said {
			continue
		}
		if strings.HasPrefix(t.Name, alarmTopic(cfg.Site)) {
			said = t.Rule
			faults = append(faults, cfg.Fault(fmt.Sprintf("publish[%d].topic", t.Rule),
				fmt.Sprintf("%s would be published on %q, where alarms are; write another topic", t.Points()[0], t.Name)))
			continue
		}
		rest, below := strings.CutPrefix(t.Name, cfg.Status.Topic+"/")
		if !below {
			continue
		}
		if rest == "state" || rest == "stats" || rest == "event" || strings.HasPrefix(rest, "device/") && strings.HasSuffix(rest, "/state") {
			said = t.Rule
			faults = append(faults, cfg.Fault(fmt.Sprintf("publish[%d].topic", t.Rule),
				fmt.Sprintf("%s would be published on %q, where the gateway says how it is itself; write another topic, or another status.topic", t.Points()[0], t.Name)))
		}
	}
	return faults
}

// fedBack returns a fault for each point in memory that its own messages would
// set: an uplink's broker sends them back, and so on for ever. The embedded
// broker does not.
func fedBack(cfg *config.Config, topics []publish.Topic) []config.Fault {
	sources := make(map[point.ID]*config.Virtual)
	names := make(map[string]bool)
	for i := range cfg.Devices {
		for j := range cfg.Devices[i].Sources {
			if s := &cfg.Devices[i].Sources[j]; s.Topic != "" {
				sources[cfg.Devices[i].Points[j].ID], names[s.Topic] = s, true
			}
		}
	}
	var faults []config.Fault
	for i := range topics {
		t := &topics[i]
		if !names[t.Name] {
			continue
		}
		to := cfg.Publish[t.Rule].To
		for _, id := range t.Points() {
			s := sources[id]
			if s == nil || s.Topic != t.Name {
				continue
			}
			for _, from := range s.From {
				if from != config.Local && (len(to) == 0 || slices.Contains(to, from)) {
					faults = append(faults, cfg.Fault("devices."+id.Device(), fmt.Sprintf("%s is set by %q and published there, so uplink %s would bring its own messages back; write another topic for one of the two", id, t.Name, from)))
					break
				}
			}
		}
	}
	return faults
}
