package command

import (
	"strconv"
	"strings"
	"time"

	"fieldgate/internal/clock"
	"fieldgate/internal/point"
)

// answer is what the sender of an order is told.
type answer struct {
	id     string
	by     string
	point  string      // "": of several, or it is not known
	value  point.Value // what was asked for, where no outcome says it
	result Result
}

// by returns who is named in an answer: the user, or where it came from.
func by(user, via string) string {
	if user != "" {
		return user
	}
	return via
}

// json returns the acknowledgement of SPEC: {"id":…,"status":…,"point":…,
// "value":…,"previous":…,"reason":…,"by":…,"ms":…,"timestamp":…}. What is not
// known is left out. The outcomes of several writes stand in "writes".
func (a answer) json(clk *clock.Clock) (payload []byte, stamp uint32) {
	b := []byte{'{'}
	if a.id != "" && !strings.HasPrefix(a.id, dated) {
		b = append(point.AppendJSONString(append(b, `"id":`...), a.id), ',')
	}
	b = point.AppendJSONString(append(b, `"status":`...), string(a.result.Status))
	out := Outcome{Point: point.ID(a.point), Value: a.value}
	if len(a.result.Writes) == 1 {
		out = a.result.Writes[0]
	}
	out.Reason = a.result.Reason
	b = out.append(b)
	if len(a.result.Writes) > 1 {
		b = append(b, `,"writes":[`...)
		for i, w := range a.result.Writes {
			if i > 0 {
				b = append(b, ',')
			}
			b = point.AppendJSONString(append(b, `{"status":`...), string(w.Status))
			b = append(w.append(b), '}')
		}
		b = append(b, ']')
	}
	b = point.AppendJSONString(append(b, `,"by":`...), a.by)
	b = strconv.AppendInt(append(b, `,"ms":`...), a.result.Took.Milliseconds(), 10)
	return clk.Dated(append(point.AppendJSONString(append(b, `,"timestamp":`...), point.Timestamp(clk.Day(time.Now()))), '}'))
}

// append appends the members that one write has.
func (o Outcome) append(b []byte) []byte {
	if o.Point != "" {
		b = point.AppendJSONString(append(b, `,"point":`...), string(o.Point))
	}
	if !o.Value.IsZero() {
		b = o.Value.AppendJSON(append(b, `,"value":`...))
	}
	if !o.Previous.IsZero() {
		b = o.Previous.AppendJSON(append(b, `,"previous":`...))
	}
	if o.Reason != "" {
		b = point.AppendJSONString(append(b, `,"reason":`...), o.Reason)
	}
	return b
}
