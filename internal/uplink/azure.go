package uplink

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"fieldgate/internal/config"
)

// azureVersion is the version of the IoT Hub's interface that the user name asks
// for: the newest that is no preview.
const azureVersion = "2021-04-12"

// login is what CONNECT says of us.
type login struct {
	user     string
	password config.Secret
	ends     time.Time // of the password, which the broker then no longer takes; zero: never
}

// loginFor reads the secrets of cfg, or makes them, for a broker on host.
func loginFor(cfg config.Uplink, host string, now time.Time) (login, error) {
	if cfg.AzureSAS == nil {
		password, err := cfg.Password.Read()
		return login{user: cfg.Username, password: password}, err
	}
	secret, err := cfg.AzureSAS.Key.Read()
	if err != nil {
		return login{}, err
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(secret.Reveal()))
	if err != nil || len(key) == 0 {
		return login{}, errors.New("azure_sas: the key is not base64, as the portal shows it on the device's page")
	}
	l := login{user: cfg.Username, ends: now.Add(cfg.AzureSAS.TTL)}
	if l.user == "" {
		l.user = fmt.Sprintf("%s/%s/?api-version=%s", host, cfg.ClientID, azureVersion)
	}
	l.password = config.NewSecret(sasToken(key, host+"/devices/"+cfg.ClientID, l.ends))
	return l, nil
}

// secretFault explains why there is no password.
func secretFault(err error) *Fault {
	return &Fault{Step: StepFiles, Text: err.Error(), Remedy: "check where it is read from, and that this user may read it", Err: err, Refused: true}
}

// sasToken returns a shared access token for resource, good until ends.
func sasToken(key []byte, resource string, ends time.Time) string {
	sr := url.QueryEscape(resource)
	mac := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(mac, "%s\n%d", sr, ends.Unix())
	sig := base64.StdEncoding.EncodeToString(mac.Sum(nil))
	return fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%d", sr, url.QueryEscape(sig), ends.Unix())
}

// renewAt is when a password that was made at now is replaced: with a tenth of
// its time left, or five minutes if that is less.
func (l login) renewAt(now time.Time) time.Time {
	if l.ends.IsZero() {
		return time.Time{}
	}
	return l.ends.Add(-min(l.ends.Sub(now)/10, 5*time.Minute))
}
