package queue

import "net/url"

// fileName returns the name of the file of the uplink called name.
func fileName(name string) string { return "queue-" + url.PathEscape(name) + ".db" }
