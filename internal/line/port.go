package line

import (
	"io"
	"log/slog"
	"time"

	"fieldgate/internal/config"
)

// OpenPort opens the serial port of cfg for a server, which answers on it and
// keeps its silences itself: mode, lock, transmitter switching and all else are
// as of a Line's port. Write returns when the bytes are on their way, or, where
// we switch the transmitter, have left. Close ends a running Read.
func OpenPort(cfg config.Bus, log *slog.Logger) (io.ReadWriteCloser, error) {
	t, err := openTTY(cfg)
	if err != nil {
		return nil, err
	}
	t.tell(cfg.Address, log)
	if err := t.file.SetReadDeadline(time.Time{}); err != nil {
		t.close()
		return nil, err
	}
	return port{t}, nil
}

// port is an open serial port as io has it.
type port struct{ *tty }

// Read implements io.Reader.
func (p port) Read(b []byte) (int, error) { return p.tty.file.Read(b) }

// Write implements io.Writer.
func (p port) Write(b []byte) (int, error) {
	if _, err := p.tty.write(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close implements io.Closer.
func (p port) Close() error {
	p.tty.close()
	return nil
}
