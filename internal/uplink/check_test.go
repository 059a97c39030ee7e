package uplink

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"fieldgate/internal/config"
	"fieldgate/internal/mqtt/mosquittotest"
)

func TestCheckFiles(t *testing.T) {
	certs := mosquittotest.NewCerts(t)
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	long := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(365 * 24 * time.Hour) }
	cert, key := certs.Issue(t, "gw1", long)
	oldCert, oldKey := certs.Issue(t, "gw2", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	pair, err := clientCertificate(config.UplinkTLS{Cert: cert, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	der, err := pkcs12.Modern.Encode(pair.PrivateKey, pair.Leaf, nil, "s3cret")
	if err != nil {
		t.Fatal(err)
	}
	bundle := file("gw1.p12", der)
	garbage := file("garbage.pem", []byte("hello"))
	keyOnly, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	notCA := file("ca.pem", keyOnly)
	password := func(s string) config.SecretSource { return config.SecretSource{Plain: config.NewSecret(s)} }

	tests := []struct {
		name     string
		tls      config.UplinkTLS
		clientID string
		want     string // of the only finding; "": none
		warning  bool
	}{
		{"nothing", config.UplinkTLS{}, "gw1", "", false},
		{"all good", config.UplinkTLS{CA: certs.CA, Cert: cert, Key: key}, "gw1", "", false},
		{"authority in DER, bundle", config.UplinkTLS{CA: certs.CADER, Cert: bundle, Password: password("s3cret")}, "GW1", "", false},
		{"no authority", config.UplinkTLS{CA: notCA}, "gw1", `tls.ca: ` + notCA + `: no certificate in it, but a PEM block "EC PRIVATE KEY"`, false},
		{"garbage", config.UplinkTLS{CA: garbage}, "gw1", "neither PEM nor DER", false},
		{"no key", config.UplinkTLS{Cert: cert}, "gw1", "tls.cert: ", false},
		{"wrong key", config.UplinkTLS{Cert: cert, Key: oldKey}, "gw1", "private key does not match", false},
		{"wrong password", config.UplinkTLS{Cert: bundle, Password: password("x")}, "gw1", "tls.password is not its password", false},
		{"password of the service", config.UplinkTLS{Cert: bundle, Password: config.SecretSource{Env: "FIELDGATE_NOT_SET"}}, "gw1", "tls.cert: not looked into: ", true},
		{"ended", config.UplinkTLS{Cert: oldCert, Key: oldKey}, "gw2", "tls.cert: the certificate ended on ", true},
		{"soon to end", config.UplinkTLS{Cert: certs.ClientCert, Key: certs.ClientKey}, "client", "in 0 days; renew it", true},
		{"another's", config.UplinkTLS{Cert: cert, Key: key}, "plant1", `the certificate is that of "gw1", and client_id is "plant1"`, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			found := CheckFiles(config.Uplink{ClientID: tt.clientID, TLS: tt.tls}, time.Now())
			if tt.want == "" {
				if len(found) > 0 {
					t.Errorf("found %+v", found)
				}
				return
			}
			if len(found) != 1 || !strings.Contains(found[0].Key+": "+found[0].Text, tt.want) || found[0].Warning != tt.warning {
				t.Errorf("found %+v, want one: %s", found, tt.want)
			}
		})
	}
	early := CheckFiles(config.Uplink{ClientID: "gw1", TLS: config.UplinkTLS{Cert: cert, Key: key}}, time.Now().Add(-48*time.Hour))
	if len(early) != 1 || !strings.Contains(early[0].Text, "look at this machine's clock") {
		t.Errorf("before its time: %+v", early)
	}
}
