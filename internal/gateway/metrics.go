package gateway

import (
	"maps"
	"os"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"fieldgate/internal/alarm"
	"fieldgate/internal/bus"
	"fieldgate/internal/clock"
	"fieldgate/internal/flash"
	"fieldgate/internal/metrics"
)

// Metrics returns what Status says, and how the process is doing, in the text
// format of Prometheus. It may be called at any time.
func (g *Gateway) Metrics() []byte {
	var w metrics.Writer
	s := g.Status()
	writeGateway(&w, s)
	writeAlarms(&w, g.siren.board.All())
	writeBuses(&w, s.Buses)
	writeUplinks(&w, s.Uplinks)
	writeFlash(&w, s.Flash)
	if s.Broker != nil {
		writeBroker(&w, *s.Broker)
	}
	writeServers(&w, s.Servers)
	if s.Command != nil {
		writeCommands(&w, *s.Command)
	}
	if s.Audit != nil {
		writeFigures(&w, only(*s.Audit), auditFigures)
	}
	writeFigures(&w, only(s.Publish), publishFigures)
	writeProcess(&w)
	return w.Bytes()
}

// figure is a family that has one sample for each thing a P points to. All pointers
// share one copy of the code that is generic over them.
type figure[P any] struct {
	name string
	kind metrics.Kind
	help string
	of   func(P) float64
}

// labelled is a thing with its labels.
type labelled[P any] struct {
	of     P
	labels []metrics.Label
}

// only is the one T there is.
func only[T any](t T) []labelled[*T] { return []labelled[*T]{{of: &t}} }

// named is the members of m, by name, each with its name as the label.
func named[T any](label string, m map[string]T) []labelled[*T] {
	list := make([]labelled[*T], 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		t := m[name]
		list = append(list, labelled[*T]{&t, []metrics.Label{{Name: label, Value: name}}})
	}
	return list
}

func writeFigures[P any](w *metrics.Writer, list []labelled[P], figures []figure[P]) {
	for _, f := range figures {
		w.Family(f.name, f.kind, f.help)
		for _, l := range list {
			w.Sample(f.of(l.of), l.labels...)
		}
	}
}

// total is one figure of a part of which there is one.
type total struct {
	name string // without what all of them begin and end with
	help string
	n    float64
}

// writeTotals writes families of one sample each.
func writeTotals(w *metrics.Writer, prefix, suffix string, kind metrics.Kind, totals []total) {
	for _, t := range totals {
		w.Family(prefix+t.name+suffix, kind, t.help)
		w.Sample(t.n)
	}
}

// writeStates writes a family with a sample for every word, 1 for the one that
// is so.
func writeStates[P any](w *metrics.Writer, list []labelled[P], words []string, is func(P) string) {
	for _, l := range list {
		for _, word := range words {
			w.Bool(is(l.of) == word, append(slices.Clone(l.labels), metrics.Label{Name: "state", Value: word})...)
		}
	}
}

// truth is 1 for true.
func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func writeGateway(w *metrics.Writer, s Status) {
	w.Family("fieldgate_info", metrics.Gauge, "The version that runs.")
	w.Sample(1, metrics.Label{Name: "version", Value: s.Version})
	w.Family("fieldgate_uptime_seconds", metrics.Gauge, "Since the start.")
	w.Sample(float64(s.Uptime))
	w.Family("fieldgate_clock_state", metrics.Gauge, "How far the times can be believed.")
	writeStates(w, only(s.Clock), []string{clock.Unset.String(), clock.Set.String(), clock.Synced.String()}, func(c *ClockStatus) string { return c.State })
	w.Family("fieldgate_clock_steps_total", metrics.Counter, "Times the clock was set while it was believed.")
	w.Sample(float64(s.Clock.Steps))
	w.Family("fieldgate_warnings", metrics.Gauge, "Standing warnings of the configuration.")
	w.Sample(float64(len(s.Warnings)))
	w.Family("fieldgate_events_dropped_total", metrics.Counter, "Events that were not published.")
	w.Sample(float64(s.EventsDropped))
}

func writeAlarms(w *metrics.Writer, all []alarm.Alarm) {
	list := make([]labelled[*alarm.Alarm], len(all))
	for i := range all {
		a := &all[i]
		list[i] = labelled[*alarm.Alarm]{a, []metrics.Label{{Name: "alarm", Value: a.Name}, {Name: "severity", Value: a.Severity.String()}}}
	}
	writeFigures(w, list, []figure[*alarm.Alarm]{
		{"fieldgate_alarm_raised", metrics.Gauge, "1 while the alarm is raised.", func(a *alarm.Alarm) float64 { return truth(a.Raised) }},
		{"fieldgate_alarm_raises_total", metrics.Counter, "Times the alarm was raised.", func(a *alarm.Alarm) float64 { return float64(a.Count) }},
	})
}

func writeBuses(w *metrics.Writer, buses map[string]BusStatus) {
	writeFigures(w, named("bus", buses), []figure[*BusStatus]{
		{"fieldgate_bus_connected", metrics.Gauge, "1 while the port or connection is open.", func(b *BusStatus) float64 { return truth(b.Connected) }},
		{"fieldgate_bus_load_ratio", metrics.Gauge, "Share of the time since the start that requests took.", func(b *BusStatus) float64 { return b.Load / 100 }},
		{"fieldgate_bus_requests_total", metrics.Counter, "Requests sent.", func(b *BusStatus) float64 { return float64(b.count.Requests) }},
		{"fieldgate_bus_responses_total", metrics.Counter, "Responses that gave what was asked for.", func(b *BusStatus) float64 { return float64(b.count.Responses) }},
		{"fieldgate_bus_exceptions_total", metrics.Counter, "Requests that a device refused.", func(b *BusStatus) float64 { return float64(b.count.Exceptions) }},
		{"fieldgate_bus_timeouts_total", metrics.Counter, "Requests without an answer.", func(b *BusStatus) float64 { return float64(b.count.Silent) }},
		{"fieldgate_bus_damaged_total", metrics.Counter, "Requests whose answer was damaged or not theirs.", func(b *BusStatus) float64 { return float64(b.count.Damaged) }},
		{"fieldgate_bus_sent_bytes_total", metrics.Counter, "Bytes sent.", func(b *BusStatus) float64 { return float64(b.Frames.Sent) }},
		{"fieldgate_bus_received_bytes_total", metrics.Counter, "Bytes received.", func(b *BusStatus) float64 { return float64(b.Frames.Received) }},
		{"fieldgate_bus_connects_total", metrics.Counter, "Times the port or connection was opened.", func(b *BusStatus) float64 { return float64(b.Frames.Connects) }},
		{"fieldgate_bus_late_frames_total", metrics.Counter, "Answers that came too late.", func(b *BusStatus) float64 { return float64(b.Frames.Late) }},
		{"fieldgate_bus_foreign_frames_total", metrics.Counter, "Frames of another unit, id or request.", func(b *BusStatus) float64 { return float64(b.Frames.Foreign) }},
		{"fieldgate_bus_bad_checksum_frames_total", metrics.Counter, "Frames with a wrong checksum.", func(b *BusStatus) float64 { return float64(b.Frames.BadChecksum) }},
		{"fieldgate_bus_damaged_frames_total", metrics.Counter, "Frames cut short, noise, bad headers.", func(b *BusStatus) float64 { return float64(b.Frames.Damaged) }},
	})
	var devices []labelled[*DeviceStatus]
	for _, b := range named("bus", buses) {
		for _, d := range named("device", b.of.Devices) {
			devices = append(devices, labelled[*DeviceStatus]{d.of, append(slices.Clone(b.labels), d.labels...)})
		}
	}
	w.Family("fieldgate_device_state", metrics.Gauge, "State of the device.")
	writeStates(w, devices, []string{bus.Unknown.String(), bus.Online.String(), bus.Suspect.String(), bus.Offline.String()}, func(d *DeviceStatus) string { return d.State })
	writeFigures(w, devices, []figure[*DeviceStatus]{
		{"fieldgate_device_polls_total", metrics.Counter, "Polls begun.", func(d *DeviceStatus) float64 { return float64(d.Polls) }},
		{"fieldgate_device_polls_failed_total", metrics.Counter, "Polls that did not get all they asked for.", func(d *DeviceStatus) float64 { return float64(d.Failed) }},
		{"fieldgate_device_polls_missed_total", metrics.Counter, "Polls left out because the wire was busy.", func(d *DeviceStatus) float64 { return float64(d.Missed) }},
		{"fieldgate_device_answer_seconds", metrics.Gauge, "Average time to an answer.", func(d *DeviceStatus) float64 { return d.Answer / 1000 }},
		{"fieldgate_device_answer_p99_seconds", metrics.Gauge, "Time within which 99 of 100 answers came.", func(d *DeviceStatus) float64 { return d.AnswerP99 / 1000 }},
		{"fieldgate_device_points_refused", metrics.Gauge, "Points that the device does not have.", func(d *DeviceStatus) float64 { return float64(d.Refused) }},
	})
}

func writeUplinks(w *metrics.Writer, uplinks map[string]UplinkStatus) {
	list := named("uplink", uplinks)
	writeFigures(w, list, []figure[*UplinkStatus]{
		{"fieldgate_uplink_connected", metrics.Gauge, "1 while the broker upstream is connected.", func(u *UplinkStatus) float64 { return truth(strings.HasPrefix(u.Status, "Connected")) }},
		{"fieldgate_uplink_connects_total", metrics.Counter, "Connections made.", func(u *UplinkStatus) float64 { return float64(u.Connects) }},
		{"fieldgate_uplink_acknowledged_total", metrics.Counter, "Messages that the broker has acknowledged.", func(u *UplinkStatus) float64 { return float64(u.Acked) }},
		{"fieldgate_uplink_refused_total", metrics.Counter, "Messages that the broker does not take.", func(u *UplinkStatus) float64 { return float64(u.Refused) }},
		{"fieldgate_queue_messages", metrics.Gauge, "Messages that wait for the uplink.", func(u *UplinkStatus) float64 { return float64(u.Queued) }},
		{"fieldgate_queue_bytes", metrics.Gauge, "What they count against max_bytes.", func(u *UplinkStatus) float64 { return float64(u.Bytes) }},
		{"fieldgate_queue_oldest_age_seconds", metrics.Gauge, "Age of the oldest message that waits.", func(u *UplinkStatus) float64 { return u.Age }},
		{"fieldgate_queue_dropped_total", metrics.Counter, "Messages lost because the queue was full.", func(u *UplinkStatus) float64 { return float64(u.Dropped) }},
		{"fieldgate_queue_expired_total", metrics.Counter, "Messages lost because they were older than max_age.", func(u *UplinkStatus) float64 { return float64(u.Expired) }},
		{"fieldgate_queue_damaged_total", metrics.Counter, "Messages lost because the queue's file could not be read.", func(u *UplinkStatus) float64 { return float64(u.Damaged) }},
		{"fieldgate_queue_file_fault", metrics.Gauge, "1 while the queue's file takes nothing.", func(u *UplinkStatus) float64 { return truth(u.File != "") }},
	})
	var bridges []labelled[*BridgeStatus]
	for _, u := range list {
		if b := u.of.Bridge; b != nil {
			bridges = append(bridges, labelled[*BridgeStatus]{b, u.labels})
		}
	}
	writeFigures(w, bridges, []figure[*BridgeStatus]{
		{"fieldgate_bridge_out_total", metrics.Counter, "Messages taken upstream.", func(b *BridgeStatus) float64 { return float64(b.Out) }},
		{"fieldgate_bridge_in_total", metrics.Counter, "Messages taken from upstream.", func(b *BridgeStatus) float64 { return float64(b.In) }},
		{"fieldgate_bridge_looped_total", metrics.Counter, "Messages that came round by another bridge, left out.", func(b *BridgeStatus) float64 { return float64(b.Looped) }},
		{"fieldgate_bridge_refused_total", metrics.Counter, "Messages that the queue had no room for.", func(b *BridgeStatus) float64 { return float64(b.Refused) }},
	})
	w.Family("fieldgate_uplink_certificate_days_left", metrics.Gauge, "Whole days until a certificate of the connection ends; below 0: it has.")
	for _, u := range list {
		for _, c := range u.of.Certificates {
			w.Sample(float64(c.DaysLeft), append(slices.Clone(u.labels), metrics.Label{Name: "whose", Value: c.Whose})...)
		}
	}
}

func writeFlash(w *metrics.Writer, f FlashStatus) {
	list := named("uplink", f.Queues)
	for i := range list {
		list[i].labels = []metrics.Label{{Name: "writer", Value: "queue." + list[i].labels[0].Value}}
	}
	for name, r := range map[string]*flash.Report{"audit": f.Audit, "broker": f.Broker, "virtual": f.Virtual} {
		if r != nil {
			list = append(list, labelled[*flash.Report]{r, []metrics.Label{{Name: "writer", Value: name}}})
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].labels[0].Value < list[j].labels[0].Value })
	writeFigures(w, list, []figure[*flash.Report]{
		{"fieldgate_flash_written_bytes_total", metrics.Counter, "Bytes written to the disk.", func(r *flash.Report) float64 { return float64(r.Total.Bytes) }},
		{"fieldgate_flash_syncs_total", metrics.Counter, "Times the disk was asked to finish.", func(r *flash.Report) float64 { return float64(r.Total.Syncs) }},
		{"fieldgate_flash_written_last_hour_bytes", metrics.Gauge, "Bytes written in the last hour.", func(r *flash.Report) float64 { return float64(r.Hour.Bytes) }},
		{"fieldgate_flash_syncs_last_hour", metrics.Gauge, "Syncs in the last hour.", func(r *flash.Report) float64 { return float64(r.Hour.Syncs) }},
		{"fieldgate_flash_written_last_day_bytes", metrics.Gauge, "Bytes written in the last day.", func(r *flash.Report) float64 { return float64(r.Day.Bytes) }},
		{"fieldgate_flash_syncs_last_day", metrics.Gauge, "Syncs in the last day.", func(r *flash.Report) float64 { return float64(r.Day.Syncs) }},
	})
}

func writeBroker(w *metrics.Writer, b BrokerStatus) {
	writeTotals(w, "fieldgate_broker_", "_total", metrics.Counter, []total{
		{"messages_in", "Messages from clients.", float64(b.In)},
		{"messages_delivered", "Messages from the gateway itself.", float64(b.Delivered)},
		{"messages_out", "Messages to clients.", float64(b.Out)},
		{"received_bytes", "Bytes from clients.", float64(b.BytesIn)},
		{"sent_bytes", "Bytes to clients.", float64(b.BytesOut)},
		{"dropped", "Messages that a client did not keep up with.", float64(b.Dropped)},
		{"connects", "Connections made.", float64(b.Connects)},
		{"lost_connections", "Connections that ended without a DISCONNECT.", float64(b.Lost)},
		{"stuck_connections", "Connections cut off because the client did not read.", float64(b.Stuck)},
		{"malformed_connections", "Connections ended over what MQTT forbids.", float64(b.Malformed)},
		{"panics", "Packets that caused a panic.", float64(b.Panics)},
		{"evicted_connections", "Connections that made room before they said CONNECT.", float64(b.Evicted)},
		{"refused_connects", "CONNECTs refused.", float64(b.RefusedConnects)},
		{"refused_publishes", "Publishes refused.", float64(b.RefusedPublishes)},
		{"refused_subscriptions", "Subscriptions refused.", float64(b.RefusedSubscriptions)},
		{"refused_retained", "Messages passed on, but not retained.", float64(b.RefusedRetained)},
	})
	writeTotals(w, "fieldgate_broker_", "", metrics.Gauge, []total{
		{"clients", "Clients connected.", float64(b.Clients)},
		{"sessions", "Sessions, of clients connected or away.", float64(b.Sessions)},
		{"subscriptions", "Subscriptions.", float64(b.Subscriptions)},
		{"retained_messages", "Messages retained.", float64(b.Retained)},
		{"backlog_bytes", "Bytes on their way to clients.", float64(b.BacklogBytes)},
		{"saved", "1 while sessions and retained messages go to disk.", truth(b.Saved)},
	})
}

func writeServers(w *metrics.Writer, servers map[string]ServerStatus) {
	writeFigures(w, named("server", servers), []figure[*ServerStatus]{
		{"fieldgate_server_clients", metrics.Gauge, "Clients connected.", func(s *ServerStatus) float64 { return float64(s.Clients) }},
		{"fieldgate_server_connects_total", metrics.Counter, "Connections taken.", func(s *ServerStatus) float64 { return float64(s.Accepted) }},
		{"fieldgate_server_refused_connects_total", metrics.Counter, "Connections turned away.", func(s *ServerStatus) float64 { return float64(s.Refused) }},
		{"fieldgate_server_requests_total", metrics.Counter, "Requests answered.", func(s *ServerStatus) float64 { return float64(s.Requests) }},
		{"fieldgate_server_exceptions_total", metrics.Counter, "Of them, with an exception.", func(s *ServerStatus) float64 { return float64(s.Exceptions) }},
		{"fieldgate_server_bad_frames_total", metrics.Counter, "Frames that were no requests.", func(s *ServerStatus) float64 { return float64(s.BadFrames) }},
	})
}

var auditFigures = []figure[*AuditStatus]{
	{"fieldgate_audit_records_total", metrics.Counter, "Records of who wrote what.", func(a *AuditStatus) float64 { return float64(a.Records) }},
	{"fieldgate_audit_unrecorded_total", metrics.Counter, "Records that the disk did not take.", func(a *AuditStatus) float64 { return float64(a.Unrecorded) }},
}

var publishFigures = []figure[*PublishStatus]{
	{"fieldgate_publish_samples_total", metrics.Counter, "Samples that the rules have looked at.", func(p *PublishStatus) float64 { return float64(p.Samples) }},
	{"fieldgate_publish_messages_total", metrics.Counter, "Messages made of them.", func(p *PublishStatus) float64 { return float64(p.Messages) }},
	{"fieldgate_publish_payload_bytes_total", metrics.Counter, "Bytes of their payloads.", func(p *PublishStatus) float64 { return float64(p.Bytes) }},
	{"fieldgate_publish_dropped_samples_total", metrics.Counter, "Samples lost because publishing was slower than the field.", func(p *PublishStatus) float64 { return float64(p.Dropped) }},
}

// writeProcess writes what the kernel says of the process; what it does not say is
// left out.
func writeProcess(w *metrics.Writer) {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) == nil {
		w.Family("fieldgate_process_cpu_seconds_total", metrics.Counter, "Processor time, user and system.")
		w.Sample(float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9)
	}
	if text, err := os.ReadFile("/proc/self/statm"); err == nil { // size, resident, … in pages
		if f := strings.Fields(string(text)); len(f) > 1 {
			if pages, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				w.Family("fieldgate_process_resident_memory_bytes", metrics.Gauge, "Memory in use.")
				w.Sample(float64(pages) * float64(os.Getpagesize()))
			}
		}
	}
	if files, err := os.ReadDir("/proc/self/fd"); err == nil {
		w.Family("fieldgate_process_open_fds", metrics.Gauge, "Open files and connections.")
		w.Sample(float64(len(files)))
	}
	w.Family("fieldgate_process_goroutines", metrics.Gauge, "Goroutines.")
	w.Sample(float64(runtime.NumGoroutine()))
}
