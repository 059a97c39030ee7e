package config

import "net/url"

// Unencrypted returns the URLs of u on which anyone on the way can read and
// change what is sent: those of another host without TLS.
func (u Uplink) Unencrypted() (urls []string) {
	for _, text := range u.URLs {
		at, err := url.Parse(text)
		if err != nil {
			continue // Load has refused it
		}
		if is, _ := schemeOf(at.Scheme); !is.tls && !loopback(at.Hostname()) {
			urls = append(urls, at.Scheme+"://"+at.Host)
		}
	}
	return urls
}
