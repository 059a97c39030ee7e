// Package port finds ports for programs that tests and benchmarks run and that
// have to be told theirs.
//
// A port that the system gave to a listener which is closed again may be
// anybody's a moment later: the next connection on this machine, of another test
// or of its broker, is given one too. Those of this package are below all that
// the system gives (ip_local_port_range, from 32768 on by default), so they stay
// free until the program listens, and while it is restarted.
package port

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
)

// What ports are taken from.
const (
	first = 15000
	count = 15000
	// apart is how far the ports of one process are from those of the next: more
	// than one needs.
	apart = 331
)

// given is how many ports this process has been given.
var given atomic.Int64

// Free returns a port of 127.0.0.1 on which nobody listens, and another one each
// time. It may be called by several goroutines at once.
func Free() (int, error) {
	var err error
	for range count {
		n := first + int((int64(os.Getpid())*apart+given.Add(1))%count)
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", n)); err == nil {
			return n, l.Close()
		}
	}
	return 0, fmt.Errorf("find a free port: %w", err)
}
