package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"fieldgate/internal/audit"
	"fieldgate/internal/clock"
	"fieldgate/internal/command"
	"fieldgate/internal/config"
	"fieldgate/internal/group"
	"fieldgate/internal/modbus"
	"fieldgate/internal/point"
	"fieldgate/internal/regmap"
)

// serversOf makes the maps of the Modbus servers, and those servers that was does
// not have with the same settings. It returns what it has made in case of an error,
// too.
func (g *Gateway) serversOf(servers []config.Server, was *assembly) (made []server, err error) {
	if len(servers) == 0 {
		return nil, nil
	}
	g.pipeline.SetStages(g.image)
	g.image.Show(servers, g.pipeline.Last)
	gate := regmap.Gate{
		Write: g.plcWrites,
		Pause: func(device, by string, d time.Duration) error {
			g.log.Info("a client asks for a pause", "client", by, "device", device, "for", d)
			return g.plant.set().Pause(device, d)
		},
		Paused: func(device string) time.Duration { return g.plant.set().Paused(device) },
		Bus:    func(name string) modbus.Endpoint { return passage{g.plant, name} },
		Record: g.passedWrite,
	}
	id := identity(g.version)
	for _, c := range servers {
		log := part(g.log, "server", c.Name)
		old := was.server(c)
		s := server{serves: old.serves}
		if s.serves == nil || !s.serves.Is(c) { // else what was asked for in vain stays known
			s.serves = regmap.New(c, g.image, gate, id, log)
		}
		switch {
		case old.Server != nil && old.Serves(c):
			s.Server, s.part = old.Server, old.part
		case old.Server != nil:
			s.Server, err = old.Succeed(c, s.serves, log)
		default:
			s.Server, err = regmap.Listen(c, s.serves, log)
		}
		if err != nil {
			return made, fmt.Errorf("server %s: %w", c.Name, err)
		}
		if s.part == nil {
			s.part = group.NewPart("server "+c.Name, s.Run)
		}
		made = append(made, s)
	}
	return made, nil
}

// server returns the server with the settings c, or the one whose place that takes:
// at the same address in another framing. None of it is set if there is neither.
func (a *assembly) server(c config.Server) (found server) {
	for _, s := range a.servers {
		switch {
		case s.Name() == c.Name:
			return s
		case s.At(c):
			found = s
		}
	}
	return found
}

// plcWrites does what a PLC asks for by the same way as every command: checked,
// recorded, written, read back. Several writes are one order.
func (g *Gateway) plcWrites(ctx context.Context, by string, writes []regmap.Write) error {
	o := command.Order{By: by, Via: "modbus"}
	for _, w := range writes {
		o.Writes = append(o.Writes, command.Write{Point: w.ID, Value: w.Value})
	}
	err := g.now.Load().desk.Do(ctx, o).Err()
	if errors.Is(err, command.ErrRejected) {
		return fmt.Errorf("%w: %w", regmap.ErrRefused, err)
	}
	return err
}

// passedWrite records a write that a client of a server sends on to a bus as it
// is: the request's bytes, before they go, and that it failed.
func (g *Gateway) passedWrite(ctx context.Context, p regmap.Passage) error {
	r := audit.Record{Event: "passed", By: p.By, Via: "modbus", Value: fmt.Sprintf("% x", []byte(p.Request))}
	if r.Point = fmt.Sprintf("%s unit %d", p.Bus, p.Unit); p.Err != nil {
		r.Status, r.Reason = string(command.Failed), p.Err.Error()
		if errors.Is(p.Err, modbus.ErrNoResponse) || errors.Is(p.Err, modbus.ErrBadResponse) {
			r.Status = string(command.Unknown)
		}
	}
	_, err := g.now.Load().audit.Append(ctx, r)
	return err
}

// passesWrites reports whether clients of servers may write to a bus directly.
func passesWrites(servers []config.Server) bool {
	return slices.ContainsFunc(servers, func(s config.Server) bool { return s.PassWrites.All || len(s.PassWrites.Spans) > 0 })
}

// identity is what our servers say of themselves (functions 17 and 43/14).
func identity(version string) modbus.Identity {
	return modbus.Identity{
		ServerID: []byte("Fieldgate " + version),
		Objects: []modbus.Object{
			{ID: 0, Value: []byte("Fieldgate")},
			{ID: 1, Value: []byte("fieldgate")},
			{ID: 2, Value: []byte(version)},
		},
	}
}

// ServerStatus is one Modbus server of ours.
type ServerStatus struct {
	Address    string         `json:"address,omitempty"` // it listens on
	Clients    int            `json:"clients"`           // connected
	Accepted   uint64         `json:"connects"`
	Refused    uint64         `json:"refused"` // connections turned away
	Evicted    uint64         `json:"evicted"` // connections that made room for others
	Requests   uint64         `json:"requests"`
	Exceptions uint64         `json:"exceptions"`
	BadFrames  uint64         `json:"bad_frames"`
	ByClient   []ClientStatus `json:"by_client,omitempty"`

	// Unmapped is what clients asked for and the map does not have.
	Unmapped     []UnmappedStatus `json:"unmapped,omitempty"`
	MoreUnmapped uint64           `json:"more_unmapped,omitempty"` // beyond those listed
}

// ClientStatus is one host, or serial port, and what it asked for.
type ClientStatus struct {
	Client      string                         `json:"client"`
	Connections int                            `json:"connections"`
	Since       *string                        `json:"since,omitempty"`
	Last        *string                        `json:"last,omitempty"`
	BytesIn     uint64                         `json:"received_bytes"`
	BytesOut    uint64                         `json:"sent_bytes"`
	BadFrames   uint64                         `json:"bad_frames,omitempty"`
	Functions   map[modbus.FunctionCode]uint64 `json:"functions,omitempty"`  // by code, 0: others
	Exceptions  map[modbus.Exception]uint64    `json:"exceptions,omitempty"` // by code, 0: others
}

// maxUnmapped is how many of those the status lists: it goes up the uplinks every
// minute.
const maxUnmapped = 32

// UnmappedStatus is a request for what the map does not have.
type UnmappedStatus struct {
	Function uint8   `json:"function"`
	Address  string  `json:"address"` // 40001
	Count    int     `json:"count"`
	Cut      bool    `json:"part_of_a_value,omitempty"`
	Client   string  `json:"client"` // the last who asked
	Times    uint64  `json:"times"`
	Last     *string `json:"last,omitempty"`
}

func serverStatus(clk *clock.Clock, s *regmap.Server) ServerStatus {
	st := s.Stats()
	is := ServerStatus{
		Clients: st.Clients, Accepted: st.Accepted, Refused: st.Refused, Evicted: st.Evicted,
		Requests: st.Requests, Exceptions: st.Exceptions, BadFrames: st.BadFrames, MoreUnmapped: st.More,
	}
	if a := s.Addr(); a != nil {
		is.Address = a.String()
	}
	for _, c := range st.ByClient {
		is.ByClient = append(is.ByClient, ClientStatus{
			Client: c.Client, Connections: c.Connections, Since: timestamp(clk, c.Since), Last: timestamp(clk, c.Last),
			BytesIn: c.BytesIn, BytesOut: c.BytesOut, BadFrames: c.BadFrames, Functions: c.Functions, Exceptions: c.Exceptions,
		})
	}
	if beyond := len(st.Unmapped) - maxUnmapped; beyond > 0 {
		st.Unmapped = st.Unmapped[:maxUnmapped]
		is.MoreUnmapped += uint64(beyond)
	}
	for _, u := range st.Unmapped {
		is.Unmapped = append(is.Unmapped, UnmappedStatus{
			Function: uint8(u.Function), Address: point.Modicon(u.Table, u.Address), Count: u.Count,
			Cut: u.Cut, Client: u.Client, Times: u.Times, Last: timestamp(clk, u.Last),
		})
	}
	return is
}

// passedTo returns the buses that servers hand requests on to.
func passedTo(servers []config.Server) map[string]bool {
	buses := make(map[string]bool)
	for _, s := range servers {
		for _, p := range s.Pass {
			buses[p.Bus] = true
		}
	}
	return buses
}
