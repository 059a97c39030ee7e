package config

import (
	"encoding/base64"
	"time"
)

// This file has the keys for upstream brokers that are not quite MQTT brokers:
// AWS IoT Core, Azure IoT Hub and the like.

// AzureSAS is how an uplink logs in to an Azure IoT Hub: by tokens that it makes
// from the device's key, each good for a while.
type AzureSAS struct {
	Key SecretSource  // the device's primary or secondary key, base64
	TTL time.Duration // of a token; the next one is made before it ends
}

func azureSAS(t *tables, pw value[SecretSource]) value[AzureSAS] {
	return newObject("azure_sas", "Shared access tokens for an Azure IoT Hub, made from the device's key. client_id is the device's id.", AzureSAS{},
		key("key", func(a *AzureSAS) *SecretSource { return &a.Key }, pw, "The device's key, base64 as the portal shows it: {file: PATH}, {env: NAME}, {credential: NAME}, or in plain text, which raises a standing warning.").must().hide().aka("shared_access_key", "primary_key"),
		key("ttl", func(a *AzureSAS) *time.Duration { return &a.TTL }, duration(5*time.Minute, maxWait), "How long a token is good for. Shortly before its end the uplink connects with another.").def("1h").aka("lifetime", "expiry"),
	).value(t, "azure_sas")
}

// inverse is a boolean that is kept the other way round, so that the zero value
// of what it is kept in is the default.
func inverse() value[bool] {
	v := boolean()
	return value[bool]{v.schema, func(d *decoder, n *node) (bool, bool) {
		got, ok := v.read(d, n)
		return !got, ok
	}}
}

// maxQoS is the highest quality of service that a broker takes.
func maxQoS() value[uint8] {
	v := integer(1, 2)
	return value[uint8]{v.schema, func(d *decoder, n *node) (uint8, bool) {
		got, ok := v.read(d, n)
		return uint8(got), ok
	}}
}

// azureSAS resolves what the keys of an Azure IoT Hub have to do with others.
func (r *resolver) azureSAS(u *named[rawUplink], up *Uplink, encrypted bool) {
	if up.AzureSAS == nil {
		return
	}
	if !up.Password.IsZero() {
		r.keyFault(u.at, "password", "stands beside azure_sas, which makes the password; remove one of them")
	}
	if !encrypted && len(up.URLs) > 0 {
		r.keyFault(u.at, "azure_sas", "an Azure IoT Hub takes encrypted connections only; write url: mqtts://NAME.azure-devices.net")
	}
	if key := up.AzureSAS.Key.Plain; !key.IsZero() {
		if _, err := base64.StdEncoding.DecodeString(key.Reveal()); err != nil {
			r.keyFault(u.at, "azure_sas", "the key is not base64; copy it from the device's page in the portal")
		}
	}
}
