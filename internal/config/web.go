package config

import "net"

// This file has all of the key web.

// Web is where figures and health are served over HTTP.
type Web struct {
	Listen string // HOST:PORT of this machine; "": nowhere
	Given  bool   // it stands in the file
}

// rawWeb is web as it stands in the file.
type rawWeb struct {
	listen string
	off    bool
	at     *node
}

func web(t *tables) value[rawWeb] {
	v := located(newObject("web", "Health (/healthz, /readyz) and metrics (/metrics) over HTTP, for this machine only.", rawWeb{},
		key("listen", func(w *rawWeb) *string { return &w.listen }, hostPort("8080", true), "HOST:PORT on a loopback address. The default may be taken by somebody else: then it is tried again.").def(webDefault).aka("url", "port", "address", "bind"),
		later[*rawWeb]("users", "Who may ask from other machines."),
		later[*rawWeb]("tls", "For other machines."),
	).value(t, "web"), func(w *rawWeb) **node { return &w.at })
	return value[rawWeb]{anyOf(schema{{"const", false}}, v.schema), func(d *decoder, n *node) (rawWeb, bool) {
		if coreType(n) == coreBool && n.Text == "false" {
			return rawWeb{off: true}, true
		}
		return v.read(d, n)
	}}
}

// webDefault is on: the address that stands nowhere in the file.
const webDefault = "127.0.0.1:8080"

func (r *resolver) web() {
	w := r.raw.web
	switch {
	case w.off:
	case !has(r.root, "web"):
		r.cfg.Web = Web{Listen: webDefault}
	case w.at != nil:
		r.in("listen")
		defer r.out()
		_, at := w.at.Get("listen")
		if host, _, err := net.SplitHostPort(w.listen); err == nil && !loopback(host) {
			r.faultf(at, "%s is open to other machines, which needs users, and web has none in this version; write 127.0.0.1:8080, and a proxy or an SSH tunnel before it", quote(w.listen))
			return
		}
		r.listen(w.listen, "web", at)
		r.cfg.Web = Web{Listen: w.listen, Given: true}
	}
}
