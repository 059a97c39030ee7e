package gateway

import (
	"time"

	"fieldgate/internal/bus"
	"fieldgate/internal/clock"
	"fieldgate/internal/flash"
	"fieldgate/internal/line"
	"fieldgate/internal/point"
	"fieldgate/internal/publish"
	"fieldgate/internal/queue"
	"fieldgate/internal/uplink"
)

// Status is how the gateway is doing. As JSON it is what the topic …/stats
// carries. Durations are in milliseconds or seconds, as the names say; counters
// count since the start and only grow.
type Status struct {
	Time    time.Time               `json:"timestamp"`
	Clock   ClockStatus             `json:"clock"`
	Version string                  `json:"version"`
	Uptime  int64                   `json:"uptime_s"`
	Buses   map[string]BusStatus    `json:"buses"`
	Uplinks map[string]UplinkStatus `json:"uplinks"`
	Broker  *BrokerStatus           `json:"broker,omitempty"`
	Servers map[string]ServerStatus `json:"servers,omitempty"` // by where they listen
	Publish PublishStatus           `json:"publish"`
	Command *CommandStatus          `json:"commands,omitempty"`
	Audit   *AuditStatus            `json:"audit,omitempty"`
	Virtual *VirtualStatus          `json:"virtual,omitempty"`
	Flash   FlashStatus             `json:"flash"`

	EventsDropped uint64 `json:"events_dropped"` // that were not published on …/event

	Alarms []AlarmStatus `json:"alarms"` // that are raised

	// Warnings stand as long as the configuration is what it is: a password in
	// it, a connection that is not encrypted.
	Warnings []string `json:"warnings,omitempty"`
}

// ClockStatus says how far the times can be believed.
type ClockStatus struct {
	State string `json:"state"` // unsynced, set, synchronised; see docs/time.md
	Steps uint64 `json:"steps"` // times it was set while it was believed
}

// BusStatus is one line and its devices.
type BusStatus struct {
	Connected bool                    `json:"connected"`
	Load      float64                 `json:"load_percent"` // share of the time since the start that requests took
	Error     string                  `json:"error,omitempty"`
	Diagnosis string                  `json:"diagnosis,omitempty"`
	Counters  string                  `json:"counters"` // T requests, R responses, E errors
	count     bus.Counters            // the same and more, for Metrics
	Frames    FrameStatus             `json:"frames"`
	Devices   map[string]DeviceStatus `json:"devices"`
}

// FrameStatus counts bytes on the wire and what was not taken for an answer.
type FrameStatus struct {
	Sent        uint64 `json:"sent_bytes"`
	Received    uint64 `json:"received_bytes"`
	Connects    uint64 `json:"connects"`
	Timeouts    uint64 `json:"timeouts"`
	Late        uint64 `json:"late"`
	Foreign     uint64 `json:"foreign"` // of another unit, id or request
	BadChecksum uint64 `json:"bad_checksum"`
	Damaged     uint64 `json:"damaged"` // cut short, noise, bad header
}

// DeviceStatus is one device.
type DeviceStatus struct {
	State     string  `json:"state"`
	Since     *string `json:"since,omitempty"`
	Error     string  `json:"last_error,omitempty"`
	Answer    float64 `json:"answer_ms"` // average time to an answer
	AnswerP99 float64 `json:"answer_p99_ms"`
	Polls     uint64  `json:"polls"`
	Failed    uint64  `json:"polls_failed"`
	Missed    uint64  `json:"polls_missed"` // left out because the wire was busy
	Counters  string  `json:"counters"`
	Refused   int     `json:"points_refused,omitempty"` // points the device does not have
}

// UplinkStatus is one upstream broker and its queue.
type UplinkStatus struct {
	Status   string  `json:"status"`
	URL      string  `json:"url,omitempty"`
	TLS      string  `json:"tls,omitempty"`
	Since    *string `json:"since,omitempty"`
	Error    string  `json:"last_error,omitempty"`
	Queued   int     `json:"queued"`
	Bytes    int64   `json:"queued_bytes"`
	Age      float64 `json:"queued_age_s"`
	Acked    uint64  `json:"acknowledged"`
	Dropped  uint64  `json:"dropped"`               // the queue was full
	Expired  uint64  `json:"expired"`               // older than max_age
	Damaged  uint64  `json:"damaged"`               // could not be read from the queue's file
	File     string  `json:"queue_fault,omitempty"` // why the queue's file takes nothing
	Refused  uint64  `json:"refused"`               // by the broker
	Connects uint64  `json:"connects"`

	Certificates []CertificateStatus `json:"certificates,omitempty"` // of the connection, or the last one
	ChainLength  int                 `json:"chain_length,omitempty"` // of the broker's certificate
	Unsubscribed []FilterStatus      `json:"unsubscribed,omitempty"` // the broker refuses these
	Bridge       *BridgeStatus       `json:"bridge,omitempty"`
}

// CertificateStatus is a certificate that an uplink is connected with.
type CertificateStatus struct {
	Whose       string  `json:"whose"` // broker; authority: one that signed the broker's and ends first; own
	Subject     string  `json:"subject"`
	Issuer      string  `json:"issuer"`
	Fingerprint string  `json:"fingerprint"` // SHA-256
	Ends        *string `json:"ends"`
	DaysLeft    int     `json:"days_left"` // below 0: it has ended
}

// FilterStatus is a topic filter that an upstream broker does not serve.
type FilterStatus struct {
	Filter string `json:"filter"`
	Error  string `json:"error"`
}

// BrokerStatus is the embedded broker.
type BrokerStatus struct {
	Clients       int   `json:"clients"`  // connected
	Sessions      int   `json:"sessions"` // connected, or kept for a client that is away
	Subscriptions int   `json:"subscriptions"`
	Retained      int   `json:"retained"`
	BacklogBytes  int64 `json:"backlog_bytes"` // on their way to clients

	In        uint64 `json:"messages_in"`        // from clients
	Delivered uint64 `json:"messages_delivered"` // from the gateway itself
	Out       uint64 `json:"messages_out"`       // to clients
	BytesIn   uint64 `json:"received_bytes"`
	BytesOut  uint64 `json:"sent_bytes"`
	Dropped   uint64 `json:"dropped"` // a client did not keep up

	Connects  uint64 `json:"connects"`
	Lost      uint64 `json:"lost"`      // connections that ended without a DISCONNECT
	Stuck     uint64 `json:"stuck"`     // of those: cut off because they did not read
	Malformed uint64 `json:"malformed"` // connections ended over what MQTT forbids
	Panics    uint64 `json:"panics"`    // of those: packets that caused a panic
	Evicted   uint64 `json:"evicted"`   // connections that made room before they said CONNECT

	RefusedConnects      uint64 `json:"refused_connects"`
	RefusedPublishes     uint64 `json:"refused_publishes"`
	RefusedSubscriptions uint64 `json:"refused_subscriptions"`
	RefusedRetained      uint64 `json:"refused_retained"` // passed on, but not retained

	Saved      bool   `json:"saved"` // sessions and retained messages go to disk
	StoreError string `json:"store_error,omitempty"`
}

// VirtualStatus is the points in memory.
type VirtualStatus struct {
	Points int    `json:"points"`
	Bad    int    `json:"bad"`             // without a value that counts
	Error  string `json:"error,omitempty"` // why values are not saved
}

// AuditStatus is the record of who wrote what.
type AuditStatus struct {
	Seq        uint64 `json:"seq"`        // of the last record of all
	Records    uint64 `json:"records"`    // since the start
	Unrecorded uint64 `json:"unrecorded"` // not taken because the disk took none
	Error      string `json:"error,omitempty"`
}

// FlashStatus is what was written to the disk.
type FlashStatus struct {
	All    flash.Report            `json:"all"`
	Queues map[string]flash.Report `json:"queues"` // by uplink
	Broker *flash.Report           `json:"broker,omitempty"`
	Audit  *flash.Report           `json:"audit,omitempty"`

	Virtual *flash.Report `json:"virtual,omitempty"` // the values that are kept
}

// PublishStatus is what the rules made of the samples.
type PublishStatus struct {
	Samples  uint64 `json:"samples"`
	Messages uint64 `json:"messages"`
	Bytes    uint64 `json:"payload_bytes"`
	Dropped  uint64 `json:"dropped_samples"` // publishing was slower than the field
}

// Status returns how the gateway is doing now. It may be called at any time.
func (g *Gateway) Status() Status {
	a := g.now.Load()
	s := Status{
		Time:    g.clock.Day(time.Now()).Truncate(time.Millisecond),
		Clock:   ClockStatus{State: g.clock.State().String(), Steps: g.clock.Steps()},
		Version: g.version,
		Uptime:  int64(time.Since(g.start) / time.Second),
		Buses:   make(map[string]BusStatus, len(a.wires)),
		Uplinks: make(map[string]UplinkStatus, len(a.ways)),
		Publish: publishStatus(a.publish.Stats()),
		Flash:   FlashStatus{Queues: make(map[string]flash.Report, len(a.ways))},

		Alarms:   g.siren.status(),
		Warnings: a.warnings,
	}
	_, s.Publish.Dropped = a.publish.feed.Dropped()
	for _, w := range a.wires {
		s.Buses[w.name] = busStatus(g.clock, w.bus.Status(), w.bus.Diagnosis(), w.line.Stats())
	}
	for _, w := range a.ways {
		q := w.queue.Stats()
		u := uplinkStatus(g.clock, w.uplink.Status(), q)
		u.Bridge = bridgeStatus(w.bridge)
		s.Uplinks[w.name] = u
		s.Flash.Queues[w.name] = q.Flash
		s.Flash.All = s.Flash.All.Add(q.Flash)
	}
	if v := g.plant.virtual.Status(); v.Points > 0 {
		s.Virtual = &VirtualStatus{v.Points, v.Bad, v.Fault}
		s.Flash.Virtual = &v.Flash
		s.Flash.All = s.Flash.All.Add(v.Flash)
	}
	s.EventsDropped = g.herald.eventsDropped()
	if a.desk.Desk != nil {
		s.Command = commandStatus(a.desk.Stats())
	}
	if a.audit != nil {
		l := a.audit.Stats()
		s.Audit = &AuditStatus{l.Seq, l.Records, l.Unrecorded, l.Fault}
		s.Flash.Audit = &l.Flash
		s.Flash.All = s.Flash.All.Add(l.Flash)
	}
	if len(a.servers) > 0 {
		s.Servers = make(map[string]ServerStatus, len(a.servers))
	}
	for _, m := range a.servers {
		s.Servers[m.Name()] = serverStatus(g.clock, m.Server)
	}
	if local := a.broker.Broker; local != nil {
		b := BrokerStatus(local.Stats()) // the same figures under their JSON names
		s.Broker = &b
		f := local.Flash()
		s.Flash.Broker = &f
		s.Flash.All = s.Flash.All.Add(f)
	}
	return s
}

func publishStatus(p publish.Stats) PublishStatus {
	return PublishStatus{Samples: p.Samples, Messages: p.Messages, Bytes: p.Bytes}
}

func busStatus(clk *clock.Clock, b bus.Status, diagnosis string, l line.Stats) BusStatus {
	s := BusStatus{
		Connected: b.Connected,
		Error:     b.Error,
		Diagnosis: diagnosis,
		Counters:  b.Counters.String(),
		count:     b.Counters,
		Frames: FrameStatus{
			Sent: l.BytesSent, Received: l.BytesReceived, Connects: l.Connects,
			Timeouts: l.Timeouts, Late: l.Late, BadChecksum: l.BadChecksum,
			Foreign: l.WrongUnit + l.WrongAnswer + l.UnknownID,
			Damaged: l.Partial + l.Noise + l.BadHeader,
		},
		Devices: make(map[string]DeviceStatus, len(b.Devices)),
	}
	if b.Up > 0 {
		s.Load = round(100 * b.Busy.Seconds() / b.Up.Seconds())
	}
	for _, d := range b.Devices {
		s.Devices[d.Name] = DeviceStatus{
			State: d.State.String(), Since: timestamp(clk, d.Since), Error: d.Error,
			Answer: milliseconds(d.Answer.Avg), AnswerP99: milliseconds(d.Answer.P99),
			Polls: d.Polls.Begun, Failed: d.Polls.Failed, Missed: d.Polls.Missed,
			Counters: d.Counters.String(), Refused: len(d.Refused),
		}
	}
	return s
}

func uplinkStatus(clk *clock.Clock, u uplink.Status, q queue.Stats) UplinkStatus {
	s := UplinkStatus{
		Status: u.Word, URL: u.URL, Since: timestamp(clk, u.Since), Error: u.Err,
		Queued: q.Messages, Bytes: q.Bytes, Age: round(q.Age.Seconds()),
		Acked: u.Acked, Dropped: q.Dropped, Expired: q.Expired, Damaged: q.Damaged, File: q.Fault, Refused: u.Refused, Connects: u.Connects,
	}
	if u.Version != "" {
		s.TLS = u.Version + " " + u.Cipher
	}
	for _, c := range u.Certs {
		s.Certificates = append(s.Certificates, CertificateStatus{
			Whose: c.Whose, Subject: c.Subject, Issuer: c.Issuer, Fingerprint: c.Fingerprint,
			Ends: timestamp(clk, c.NotAfter), DaysLeft: c.DaysLeft(clk.Day(time.Now())),
		})
	}
	s.ChainLength = u.Chain
	for _, f := range u.Unsubscribed {
		s.Unsubscribed = append(s.Unsubscribed, FilterStatus{string(f.Filter), f.Err})
	}
	return s
}

// timestamp returns the time of day at t as text, nil for no time.
func timestamp(clk *clock.Clock, t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := point.Timestamp(clk.Day(t))
	return &s
}

func milliseconds(d time.Duration) float64 { return round(d.Seconds() * 1000) }

// round keeps two decimals: more would be noise.
func round(f float64) float64 { return float64(int64(f*100+0.5)) / 100 }
