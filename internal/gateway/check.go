package gateway

import (
	"fmt"
	"strings"
	"time"

	"fieldgate/internal/config"
	"fieldgate/internal/publish"
	"fieldgate/internal/uplink"
)

// Check looks at what Open leaves to its parts, because it may change while they
// run: the files that the configuration names, as they are at the time now, and
// whether the buses can carry what is asked of them. The warnings include those
// of the configuration itself. Both are in the order of the file.
func Check(cfg *config.Config, topics []publish.Topic, now time.Time) (faults, warnings []config.Fault) {
	warnings = append(warnings, cfg.Warnings...)
	faults = cfg.CheckFiles()
	said := make(map[string]bool, len(faults))
	for _, f := range faults {
		said[f.Path] = true
	}
	for _, u := range cfg.Uplinks {
		path, secret := "uplinks."+u.Name+".password", u.Password
		if u.AzureSAS != nil {
			path, secret = "uplinks."+u.Name+".azure_sas.key", u.AzureSAS.Key
		}
		switch password, err := secret.Read(); {
		case secret.IsZero() || said[path+".file"]:
		case err != nil: // the service has another environment, and credentials
			warnings = append(warnings, cfg.Fault(path, fmt.Sprintf("cannot be read here (%s); see that the service has it", strings.TrimPrefix(err.Error(), "secret: "))))
		case password.IsZero():
			faults = append(faults, cfg.Fault(path, "is empty where it is read from; write it there"))
		}
		for _, found := range uplink.CheckFiles(u, now) {
			path := "uplinks." + u.Name + "." + found.Key
			switch f := cfg.Fault(path, found.Text); {
			case found.Warning:
				warnings = append(warnings, f)
			case !said[path] && !said[strings.Replace(path, "tls.cert", "tls.key", 1)] && !said[strings.Replace(path, "tls.cert", "tls.password.file", 1)]:
				faults = append(faults, f)
			}
		}
	}
	for _, b := range MakePlan(cfg, topics).Buses {
		if b.Load > 100 {
			warnings = append(warnings, cfg.Fault("buses."+b.Name, fmt.Sprintf("polling its devices takes %.0f %% of its time, so polls will be left out; \"fieldgate plan\" shows what takes how long", b.Load)))
		}
	}
	cfg.Sort(faults)
	cfg.Sort(warnings)
	return faults, warnings
}
