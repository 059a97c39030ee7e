package config

import (
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"fieldgate/internal/config/yamltree"
)

// This file resolves the MQTT side: uplinks, the embedded broker, rules.

func (r *resolver) uplinks() {
	clients := make(map[string]string)
	for i := range r.raw.uplinks {
		u := &r.raw.uplinks[i]
		r.place("uplinks."+u.name, u.key)
		r.in(u.name)
		if u.name == Local {
			r.faultf(u.key, "local is the embedded broker's name; write another")
		}
		up := u.is.Uplink
		up.Name = u.name
		if u.ok {
			r.uplink(u, &up)
			for _, url := range up.URLs {
				client := up.ClientID + "\n" + url
				if other, used := clients[client]; used && other != u.name {
					r.keyFault(u.at, "client_id", "uplink %s is %s at %s too, and a broker disconnects one of two clients with the same id; write another client_id", other, up.ClientID, url)
					break
				}
				clients[client] = u.name
			}
		}
		r.out()
		r.cfg.Uplinks = append(r.cfg.Uplinks, up)
	}
}

// uplink resolves one uplink. The path is at it.
func (r *resolver) uplink(u *named[rawUplink], up *Uplink) {
	up.ClientID = r.fillIn(up.ClientID, u.name)
	_, at := u.at.Get("url")
	encrypted := false
	for _, url := range u.is.urls {
		if url == nil {
			continue
		}
		is, _ := schemeOf(url.Scheme)
		encrypted = encrypted || is.tls
		if !is.tls && !loopback(url.Hostname()) {
			r.in("url")
			r.warnf(at, "%s is not encrypted: anyone on the way can read and change what is sent; better write %ss", url.Scheme+"://"+url.Host, url.Scheme)
			r.out()
		}
		up.URLs = append(up.URLs, url.String())
	}
	if _, at := u.at.Get("password"); at != nil {
		r.place("uplinks."+u.name+".password", at)
	}
	r.azureSAS(u, up, encrypted)
	if up.Username == "" && !up.Password.IsZero() {
		r.keyFault(u.at, "password", "stands without username, which MQTT 3.1.1 forbids; add username")
	}
	_, m := u.at.Get("tls")
	if m == nil || m.Kind != yamltree.Map {
		return
	}
	if !encrypted && len(up.URLs) > 0 {
		r.keyFault(u.at, "tls", "no url is encrypted, so this has no effect; write mqtts:// or wss://, or remove it")
		return
	}
	r.in("tls")
	defer r.out()
	c := up.TLS
	if c.Insecure {
		r.warnf(m, "insecure: the broker's certificate is not checked, so anyone on the way can be the broker")
	}
	switch ext := strings.ToLower(filepath.Ext(c.Cert)); {
	case c.Cert == "" && c.Key != "":
		r.keyFault(m, "key", "stands without cert; add cert")
	case c.Cert == "" && !c.Password.IsZero():
		r.keyFault(m, "password", "is that of a PKCS#12 file, and there is none; add cert")
	case (ext == ".p12" || ext == ".pfx") && c.Key != "":
		r.keyFault(m, "key", "a PKCS#12 file holds its key; remove this")
	case (ext == ".pem" || ext == ".crt" || c.Key != "") && !c.Password.IsZero():
		r.keyFault(m, "password", "is only for PKCS#12 files (.p12, .pfx); remove it")
	}
}

func (r *resolver) broker() {
	raw := r.raw.broker
	if raw == nil {
		return
	}
	key, _ := r.root.Get("broker")
	r.place("broker", key)
	b := raw.Broker
	urls := raw.listen
	at := raw.at
	_, listenAt := at.Get("listen")
	if listenAt == nil {
		listenAt = at
	}
	needTLS, open := false, ""
	for _, u := range urls {
		if u == nil {
			continue
		}
		is, _ := schemeOf(u.Scheme)
		needTLS = needTLS || is.tls
		if !loopback(u.Hostname()) {
			open = u.Scheme + "://" + u.Host
		}
		b.Listen = append(b.Listen, BrokerListener{Scheme: u.Scheme, Address: u.Host, Path: requestPath(u)})
		r.in("listen")
		r.listen(u.Host, "the broker", listenAt)
		r.out()
	}
	if needTLS && !has(at, "tls") {
		r.keyFault(at, "listen", "mqtts:// and wss:// need a certificate; add tls: {cert: PATH, key: PATH}")
	}
	if !needTLS && has(at, "tls") && len(b.Listen) > 0 {
		r.keyFault(at, "tls", "no listener is encrypted, so this has no effect; write mqtts:// or wss://, or remove it")
	}
	switch {
	case b.Anonymous && open != "" && !raw.lan:
		r.keyFault(at, "anonymous", "everyone who reaches %s could publish and subscribe; add users, listen on 127.0.0.1, or write anonymous_lan: true", open)
	case b.Anonymous && open != "":
		r.in("anonymous_lan")
		k, _ := at.Get("anonymous_lan")
		r.warnf(k, "everyone who reaches %s may publish and subscribe", open)
		r.out()
	case raw.lan && !b.Anonymous:
		r.keyFault(at, "anonymous_lan", "has no effect without anonymous: true; remove it")
	case !b.Anonymous && len(b.Users) == 0:
		r.warnf(at, "nobody can connect: there are no users, and anonymous is false")
	}
	r.users(at)
	r.cfg.Broker = &b
}

// users reports users of the embedded broker with the same name.
func (r *resolver) users(broker *node) {
	_, list := broker.Get("users")
	if list == nil || list.Kind != yamltree.List {
		return
	}
	r.in("users")
	seen := make(map[string]*node)
	i := 0
	for user := range list.Items {
		if _, name := user.Get("name"); name != nil && name.Kind == yamltree.Scalar {
			if other := seen[name.Text]; other != nil {
				r.path = append(r.path, step{index: i}, step{key: "name"})
				r.faultf(name, "there is a user %s already (%s); write another name", quote(name.Text), r.set.Place(other))
				r.path = r.path[:len(r.path)-2]
			}
			seen[name.Text] = name
		}
		i++
	}
	r.out()
}

// requestPath returns the path of a WebSocket URL, with its query.
func requestPath(u *url.URL) string {
	if u.Path == "" {
		return ""
	}
	return u.RequestURI()
}

func (r *resolver) publish() {
	known := make([]string, 0, len(r.cfg.Uplinks)+1)
	for _, u := range r.cfg.Uplinks {
		known = append(known, u.Name)
	}
	if r.cfg.Broker != nil {
		known = append(known, Local)
	}
	_, list := r.root.Get("publish")
	for i := range r.raw.publish {
		rule := r.raw.publish[i].Rule
		if list != nil {
			r.path = append(r.path, step{index: i})
			r.rule(&rule, r.raw.publish[i].at, known)
			r.out()
		}
		r.cfg.Publish = append(r.cfg.Publish, rule)
	}
}

// rule checks one rule. The path is at it.
func (r *resolver) rule(rule *Rule, m *node, known []string) {
	path := r.at()
	r.place(path, m)
	if m.Kind != yamltree.Map {
		return
	}
	for k, v := range m.Entries {
		r.place(path+"."+k.Text, v)
	}
	if has(m, "every") {
		if has(m, "when") {
			r.keyFault(m, "every", "stands beside when, and a rule is either timed or on change; remove one of them")
		}
		rule.When = When{}
	}
	_, to := m.Get("to")
	for i, name := range rule.To {
		if name == "" || slices.Contains(known, name) {
			continue
		}
		at := to
		r.in("to")
		if to.Kind == yamltree.List {
			r.path = append(r.path, step{index: i})
			j := 0
			for item := range to.Items {
				if j == i {
					at = item
				}
				j++
			}
		}
		if name == Local {
			r.missingf(at, "local is the embedded broker, and there is none; add broker: {}")
		} else {
			r.missingf(at, "there is no uplink %s; %s", quote(name), Suggest(name, known))
		}
		if to.Kind == yamltree.List {
			r.out()
		}
		r.out()
	}
}
