package regmap

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
)

// maxUnmapped is how many different requests a server remembers that asked for
// what its map does not have.
const maxUnmapped = 256

// Unmapped is a request that asked for what the map does not have: what to add
// to it, or what the PLC's program has wrong.
type Unmapped struct {
	Function    modbus.FunctionCode
	Table       modbus.Table
	Address     uint16 // zero-based
	Count       int
	Cut         bool   // it begins or ends within a value
	Client      string // the last who asked
	Times       uint64
	First, Last time.Time
}

// unmapped remembers such requests. The zero value is ready.
type unmapped struct {
	mu   sync.Mutex
	list []Unmapped // in the order in which they came first
	more uint64     // requests beyond maxUnmapped different ones
}

// note remembers a request, and logs it when it is the first of its kind.
func (u *unmapped) note(log *slog.Logger, is Unmapped) {
	now := time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range u.list {
		k := &u.list[i]
		if k.Function == is.Function && k.Table == is.Table && k.Address == is.Address && k.Count == is.Count {
			k.Client, k.Last = is.Client, now
			k.Times++
			return
		}
	}
	if len(u.list) >= maxUnmapped {
		u.more++
		return
	}
	is.Times, is.First, is.Last = 1, now, now
	u.list = append(u.list, is)
	msg := "asked for what is not in the map"
	if is.Cut {
		msg = "asked for a part of a value"
	}
	log.Info(msg, "client", is.Client, "function", is.Function.String(),
		"address", point.FormatAddress(is.Table, is.Address), "count", is.Count)
	if len(u.list) == maxUnmapped {
		log.Info("more requests for what is not in the map are only counted")
	}
}

// Unmapped returns the requests that asked for what is not in the map, each
// once, in the order in which they came first; more counts those that came when
// there were 256 different ones.
func (m *Map) Unmapped() (list []Unmapped, more uint64) {
	m.ask.mu.Lock()
	defer m.ask.mu.Unlock()
	return slices.Clone(m.ask.list), m.ask.more
}
