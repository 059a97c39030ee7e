package clock

import "time"

// Layout is how times stand in payloads: UTC, to the millisecond, always of the
// same length.
const Layout = "2006-01-02T15:04:05.000Z"

// Unsynced is the member that follows a time in a JSON payload which was told
// while the clock was Unset: "timestamp":"1970-01-01T00:00:15.000Z","time":"unsynced".
const Unsynced = `,"time":"unsynced"`

// Dated marks a payload of JSON whose last member is a time that was told just
// now: as long as the clock is Unset, Unsynced follows it, and stamp is the place
// of the time, as Restamp wants it. Else it returns payload and 0.
func (c *Clock) Dated(payload []byte) (_ []byte, stamp uint32) {
	if c.State() != Unset {
		return payload, 0
	}
	at := len(payload) - len(Layout) - len(`"}`)
	return append(payload[:len(payload)-1], Unsynced+"}"...), uint32(at)
}

// Restamp returns payload with the time that stands at a place in it put right,
// and Unsynced, which must follow the time's closing quote, taken out. ok is
// false, and payload as it was, if that is not what stands there. payload itself
// is not changed.
func Restamp(payload []byte, at int, later time.Duration) (_ []byte, ok bool) {
	if at <= 0 || at > len(payload)-len(Layout) {
		return payload, false
	}
	end := at + len(Layout)
	told, err := time.Parse(Layout, string(payload[at:end]))
	if err != nil {
		return payload, false
	}
	const mark = `"` + Unsynced
	if len(payload) < end+len(mark) || string(payload[end:end+len(mark)]) != mark {
		return payload, false
	}
	text := told.Add(later).AppendFormat(nil, Layout)
	if len(text) != len(Layout) {
		return payload, false
	}
	out := make([]byte, 0, len(payload)-len(Unsynced))
	out = append(out, payload[:at]...)
	out = append(out, text...)
	out = append(out, '"')
	return append(out, payload[end+len(mark):]...), true
}
