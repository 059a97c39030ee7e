package gateway

import (
	"time"

	"fieldgate/internal/command"
	"fieldgate/internal/metrics"
)

// CommandStatus is what became of commands, and of the writes of PLCs and our
// own, since the start.
type CommandStatus struct {
	Received   uint64            `json:"received"`
	Accepted   uint64            `json:"accepted"`
	Duplicates uint64            `json:"duplicates"` // answered with the first answer
	Written    uint64            `json:"written"`
	Verified   uint64            `json:"verified"`
	Unchanged  uint64            `json:"unchanged"` // of the verified: the device showed the value already
	Rejected   uint64            `json:"rejected"`
	RejectedBy map[string]uint64 `json:"rejected_by"` // the kind of check
	Failed     uint64            `json:"failed"`
	Unknown    uint64            `json:"unknown"`
	Events     uint64            `json:"events"`     // to the event log
	Unrecorded uint64            `json:"unrecorded"` // that the disk did not take
	Waiting    int               `json:"waiting"`    // now

	Usual     DurationStatus `json:"usual"`
	Emergency DurationStatus `json:"emergency"`
}

// DurationStatus is how long the commands of one kind took that were let through,
// from their arrival to their outcome.
type DurationStatus struct {
	Count   uint64  `json:"count"`
	Average float64 `json:"average_ms"`
	Most    float64 `json:"most_ms"`

	sum time.Duration
}

func durationStatus(d command.Durations) DurationStatus {
	s := DurationStatus{Count: d.Count, Most: milliseconds(d.Most), sum: d.Sum}
	if d.Count > 0 {
		s.Average = milliseconds(d.Sum / time.Duration(d.Count))
	}
	return s
}

func commandStatus(s command.Stats) *CommandStatus {
	return &CommandStatus{
		Received: s.Received, Accepted: s.Accepted, Duplicates: s.Duplicates,
		Written: s.Written, Verified: s.Verified, Unchanged: s.Unchanged,
		Rejected: s.Rejected, RejectedBy: s.RejectedBy, Failed: s.Failed, Unknown: s.Unknown,
		Events: s.Events, Unrecorded: s.Unrecorded, Waiting: s.Waiting,
		Usual: durationStatus(s.Usual), Emergency: durationStatus(s.Emergency),
	}
}

func writeCommands(w *metrics.Writer, c CommandStatus) {
	writeFigures(w, only(c), []figure[CommandStatus]{
		{"fieldgate_command_received_total", metrics.Counter, "Commands, writes of PLCs and our own.", func(c CommandStatus) float64 { return float64(c.Received) }},
		{"fieldgate_command_accepted_total", metrics.Counter, "Of them, let through by the checks.", func(c CommandStatus) float64 { return float64(c.Accepted) }},
		{"fieldgate_command_duplicates_total", metrics.Counter, "Commands whose id was seen before, answered with the first answer.", func(c CommandStatus) float64 { return float64(c.Duplicates) }},
		{"fieldgate_command_unchanged_total", metrics.Counter, "Commands not written because the device showed the value already.", func(c CommandStatus) float64 { return float64(c.Unchanged) }},
		{"fieldgate_command_events_total", metrics.Counter, "Messages to the event log.", func(c CommandStatus) float64 { return float64(c.Events) }},
		{"fieldgate_command_unrecorded_total", metrics.Counter, "Emergencies and outcomes that the disk did not take.", func(c CommandStatus) float64 { return float64(c.Unrecorded) }},
		{"fieldgate_command_waiting", metrics.Gauge, "Commands under way.", func(c CommandStatus) float64 { return float64(c.Waiting) }},
	})
	w.Family("fieldgate_command_outcomes_total", metrics.Counter, "What became of commands; see rejected for those that a check has refused.")
	for _, o := range named("outcome", map[string]uint64{"written": c.Written, "verified": c.Verified, "failed": c.Failed, "unknown": c.Unknown}) {
		w.Sample(float64(o.of), o.labels...)
	}
	w.Family("fieldgate_command_rejected_total", metrics.Counter, "Commands that a check has refused, by its kind.")
	for _, r := range named("check", c.RejectedBy) {
		w.Sample(float64(r.of), r.labels...)
	}
	lanes := named("lane", map[string]DurationStatus{"usual": c.Usual, "emergency": c.Emergency})
	w.Family("fieldgate_command_duration_seconds", metrics.Summary, "Time from the arrival of a command that was let through to its outcome.")
	for _, l := range lanes {
		w.Sum(l.of.Count, l.of.sum.Seconds(), l.labels...)
	}
	writeFigures(w, lanes, []figure[DurationStatus]{
		{"fieldgate_command_duration_max_seconds", metrics.Gauge, "The longest of them.", func(d DurationStatus) float64 { return d.Most / 1000 }},
	})
}
