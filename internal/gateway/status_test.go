package gateway

import (
	"encoding/json"
	"regexp"
	"testing"
)

// What goes out on the topic …/stats has one kind of name throughout.
func TestStatusNames(t *testing.T) {
	since := "2025-11-05T14:30:15.123Z"
	text, err := json.Marshal(Status{
		Buses: map[string]BusStatus{"plc": {
			Error: "x", Diagnosis: "x",
			Devices: map[string]DeviceStatus{"boiler": {Since: &since, Error: "x", Refused: 1}},
		}},
		Uplinks: map[string]UplinkStatus{"cloud": {URL: "x", TLS: "x", Since: &since, Error: "x"}},
		Broker:  &BrokerStatus{StoreError: "x"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	count := 0
	var walk func(any)
	walk = func(v any) {
		m, ok := v.(map[string]any)
		if !ok {
			return
		}
		for k, inner := range m {
			if count++; !name.MatchString(k) {
				t.Errorf("%q is not a name like the others", k)
			}
			walk(inner)
		}
	}
	walk(tree)
	if count < 60 {
		t.Errorf("%d names in %s, want more than 60", count, text)
	}
}
