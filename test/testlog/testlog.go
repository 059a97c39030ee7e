// Package testlog is a log that a test reads while it is written.
//
// The type is Log.
package testlog

import (
	"bytes"
	"sync"
)

// Log collects what is written to it. The zero value is ready; it is safe for use
// by several goroutines.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns what was written so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
