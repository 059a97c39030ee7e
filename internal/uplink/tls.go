package uplink

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"software.sslmate.com/src/go-pkcs12"

	"fieldgate/internal/config"
)

// tlsConfig reads the files that cfg names and returns what to present to, and
// demand of, host. It is called anew for each connection, so that a renewed
// certificate is taken up by the next.
func tlsConfig(cfg config.UplinkTLS, host string) (*tls.Config, error) {
	c := &tls.Config{
		MinVersion:         max(cfg.MinVersion, tls.VersionTLS12),
		ServerName:         host,
		NextProtos:         cfg.ALPN,
		InsecureSkipVerify: cfg.Insecure,
	}
	if cfg.ServerName != "" {
		c.ServerName = cfg.ServerName
	}
	if cfg.CA != "" {
		pool, err := authorities(cfg.CA)
		if err != nil {
			return nil, &Fault{Step: StepFiles, Text: fmt.Sprintf("tls.ca: %v", err), Remedy: "write the path of a PEM or DER certificate that this user may read, or leave ca out for the system's", Err: err, Refused: true}
		}
		c.RootCAs = pool
	}
	if cfg.Cert != "" {
		cert, err := clientCertificate(cfg)
		if err != nil {
			return nil, &Fault{Step: StepFiles, Text: fmt.Sprintf("tls.cert: %v", err), Remedy: "check tls.cert, tls.key and tls.password, and that this user may read them", Err: err, Refused: true}
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

// authorities reads certificates from a PEM or DER file.
func authorities(path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if block, _ := pem.Decode(data); block != nil {
		if !pool.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("%s: no certificate in it, but a PEM block %q", path, block.Type)
		}
		return pool, nil
	}
	certs, err := x509.ParseCertificates(data)
	if err != nil || len(certs) == 0 {
		return nil, fmt.Errorf("%s: neither PEM nor DER certificates", path)
	}
	for _, cert := range certs {
		pool.AddCert(cert)
	}
	return pool, nil
}

// clientCertificate reads our certificate and its key: a PEM pair, in two
// files or one, or a PKCS#12 file.
func clientCertificate(cfg config.UplinkTLS) (tls.Certificate, error) {
	data, err := os.ReadFile(cfg.Cert)
	if err != nil {
		return tls.Certificate{}, err
	}
	if block, _ := pem.Decode(data); block == nil {
		return fromPKCS12(cfg, data)
	}
	keyPath, keyData := cfg.Cert, data
	if cfg.Key != "" {
		keyPath = cfg.Key
		if keyData, err = os.ReadFile(cfg.Key); err != nil {
			return tls.Certificate{}, err
		}
	}
	for rest := keyData; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			return tls.Certificate{}, fmt.Errorf("%s: the key is encrypted; decrypt it with \"openssl pkey\", or give certificate and key as one PKCS#12 file with tls.password", keyPath)
		}
	}
	cert, err := tls.X509KeyPair(data, keyData)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%s and %s: %w", cfg.Cert, keyPath, err)
	}
	return cert, nil
}

func fromPKCS12(cfg config.UplinkTLS, data []byte) (tls.Certificate, error) {
	password, err := cfg.Password.Read()
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("tls.password: %w", err)
	}
	key, leaf, chain, err := pkcs12.DecodeChain(data, password.Reveal())
	switch {
	case errors.Is(err, pkcs12.ErrIncorrectPassword):
		return tls.Certificate{}, fmt.Errorf("%s: tls.password is not its password", cfg.Cert)
	case err != nil:
		return tls.Certificate{}, fmt.Errorf("%s: neither PEM nor a PKCS#12 file that can be read: %w", cfg.Cert, err)
	}
	cert := tls.Certificate{PrivateKey: key, Leaf: leaf, Certificate: [][]byte{leaf.Raw}}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}
