package gateway

import (
	"maps"
	"slices"
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
	writeTotals(w, "fieldgate_command_", "_total", metrics.Counter, []total{
		{"received", "Commands, writes of PLCs and our own.", float64(c.Received)},
		{"accepted", "Of them, let through by the checks.", float64(c.Accepted)},
		{"duplicates", "Commands whose id was seen before, answered with the first answer.", float64(c.Duplicates)},
		{"unchanged", "Commands not written because the device showed the value already.", float64(c.Unchanged)},
		{"events", "Messages to the event log.", float64(c.Events)},
		{"unrecorded", "Emergencies and outcomes that the disk did not take.", float64(c.Unrecorded)},
	})
	w.Family("fieldgate_command_waiting", metrics.Gauge, "Commands under way.")
	w.Sample(float64(c.Waiting))
	w.Family("fieldgate_command_outcomes_total", metrics.Counter, "What became of commands; see rejected for those that a check has refused.")
	label := func(name, value string) metrics.Label { return metrics.Label{Name: name, Value: value} }
	w.Sample(float64(c.Failed), label("outcome", "failed"))
	w.Sample(float64(c.Unknown), label("outcome", "unknown"))
	w.Sample(float64(c.Verified), label("outcome", "verified"))
	w.Sample(float64(c.Written), label("outcome", "written"))
	w.Family("fieldgate_command_rejected_total", metrics.Counter, "Commands that a check has refused, by its kind.")
	for _, check := range slices.Sorted(maps.Keys(c.RejectedBy)) {
		w.Sample(float64(c.RejectedBy[check]), label("check", check))
	}
	usual, emergency := label("lane", "usual"), label("lane", "emergency")
	w.Family("fieldgate_command_duration_seconds", metrics.Summary, "Time from the arrival of a command that was let through to its outcome.")
	w.Sum(c.Emergency.Count, c.Emergency.sum.Seconds(), emergency)
	w.Sum(c.Usual.Count, c.Usual.sum.Seconds(), usual)
	w.Family("fieldgate_command_duration_max_seconds", metrics.Gauge, "The longest of them.")
	w.Sample(c.Emergency.Most/1000, emergency)
	w.Sample(c.Usual.Most/1000, usual)
}
