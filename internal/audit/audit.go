// Package audit keeps the record of who wrote what and what came of it: only
// ever appended to, each record chained to the one before by its hash, in files
// of JSON lines in a folder of its own. It decides nothing and writes no
// register; whoever does calls Append first and goes by its answer.
//
// A record ends with its own hash, the SHA-256 of its line up to there, and
// names the hash of the record before it. So no record can be changed, taken
// out, put in or moved without Verify naming the place, and the last hash, which
// goes out with every published record, stands for all before it. The file
// "head" holds the last number and hash, so that a missing end is seen too. Who
// can write the folder can make up a whole new chain: against that only a hash
// that was published elsewhere helps.
//
// What the log has to say of itself (a line cut by a power failure, damage,
// records that found no room, old files removed) it writes as records whose
// Event is Self. Nothing is repaired in silence.
//
// The types are Log, Record and Report.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"fieldgate/internal/clock"
)

// ErrNotRecorded is wrapped by every error of Append: the record is not on disk
// for certain, and what it announces must not happen.
var ErrNotRecorded = errors.New("not recorded")

// Events that have a meaning here or in command; others may be used freely.
const (
	Accepted = "accepted" // a write was taken on: it stands here before the register is written
	Result   = "result"   // what came of it
	Refused  = "refused"  // it was not taken on
	Self     = "audit"    // the log speaks of itself; Status is one of the words below
)

// The Status of a record whose Event is Self; Reason says more.
const (
	Torn       = "torn"       // an unfinished last line was cut off: what it began to say was never promised
	Damaged    = "damaged"    // what stood in the file cannot be read; it was left as it is
	Missing    = "missing"    // records that were written are not there
	Replaced   = "replaced"   // the last record is not the one that was written
	Unrecorded = "unrecorded" // records were not taken because the disk took none
	Removed    = "removed"    // the oldest files went, by the bound; Value is the last number in them
)

// Record is one event. Texts longer than MaxText are cut short.
type Record struct {
	Seq  uint64    // rises by one, restarts included; from 1. Given by Append
	Time time.Time // to the millisecond, UTC; the time of Append if zero

	// Unset says that the clock was not set when Time was told. Given by Append.
	Unset bool

	Event    string // never empty
	ID       string // of the command
	By       string // user or client
	Via      string // name of the uplink, or local, modbus, cli
	Point    string // device.point
	Value    string // wanted, or written
	Previous string // what the point was before
	Status   string // written, verified, rejected, failed, unknown
	Reason   string // in words
	Ms       int64  // what it took, in milliseconds

	Prev string // hash of the record before; 64 zeros for the first. Given by Append
	Hash string // of this one. Given by Append
}

// MaxText is the longest text of a record, in bytes. A longer one loses its end
// and says so with "…".
const MaxText = 1024

const (
	hashLen = 2 * sha256.Size
	// maxLine is more than a line can take: ten texts of MaxText, of which each
	// byte may be six in JSON.
	maxLine = 80 << 10

	timeFormat = "2006-01-02T15:04:05.000Z"
	unsynced   = "unsynced"
)

// start is what the first record of all names as the hash before it.
var start = strings.Repeat("0", hashLen)

// What stands around a record's own hash, at the end of its line.
const (
	beforeHash = `,"hash":"`
	afterHash  = `"}`
)

// form is a record as it stands in the file. Its order is that of the line.
type form struct {
	Seq       uint64 `json:"seq"`
	Timestamp string `json:"timestamp"`
	Clock     string `json:"time,omitempty"` // unsynced, as in payloads
	Event     string `json:"event"`
	ID        string `json:"id,omitempty"`
	By        string `json:"by,omitempty"`
	Via       string `json:"via,omitempty"`
	Point     string `json:"point,omitempty"`
	Value     string `json:"value,omitempty"`
	Previous  string `json:"previous,omitempty"`
	Status    string `json:"status,omitempty"`
	Reason    string `json:"reason,omitempty"`
	Ms        int64  `json:"ms,omitempty"`
	Prev      string `json:"prev"`
	Hash      string `json:"hash,omitempty"`
}

// body returns the line of r up to its own hash.
func (r *Record) body() []byte {
	state := ""
	if r.Unset {
		state = unsynced
	}
	text, err := json.Marshal(form{
		Seq: r.Seq, Timestamp: r.Time.UTC().Format(timeFormat), Clock: state, Event: r.Event, ID: r.ID, By: r.By, Via: r.Via, Point: r.Point,
		Value: r.Value, Previous: r.Previous, Status: r.Status, Reason: r.Reason, Ms: r.Ms, Prev: r.Prev,
	})
	if err != nil {
		panic(err) // texts and numbers can always be written
	}
	return text[:len(text)-1]
}

// JSON returns r as it stands in the file, without the end of the line.
func (r Record) JSON() []byte {
	line := append(r.body(), beforeHash...)
	line = append(line, r.Hash...)
	return append(line, afterHash...)
}

// seal gives r its place behind the record at p, and returns its own.
func (r *Record) seal(p place) place {
	r.Seq, r.Prev = p.seq+1, p.hash
	r.Hash = hash(r.body())
	return place{r.Seq, r.Hash}
}

// place is where a chain stands: the number and the hash of a record.
type place struct {
	seq  uint64
	hash string
}

func hash(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// parse reads a line. sound is false for one that is a record but does not give
// the hash that it says.
func parse(line []byte) (r Record, sound bool, err error) {
	var f form
	if err := json.Unmarshal(line, &f); err != nil {
		return r, false, err
	}
	at, err := time.Parse(timeFormat, f.Timestamp)
	switch {
	case err != nil:
		return r, false, fmt.Errorf("timestamp %q is none", cut(f.Timestamp))
	case f.Seq == 0 || f.Event == "" || len(f.Prev) != hashLen || len(f.Hash) != hashLen:
		return r, false, errors.New("seq, event, prev or hash is missing")
	}
	r = Record{
		Seq: f.Seq, Time: at, Unset: f.Clock == unsynced, Event: f.Event, ID: f.ID, By: f.By, Via: f.Via, Point: f.Point,
		Value: f.Value, Previous: f.Previous, Status: f.Status, Reason: f.Reason, Ms: f.Ms, Prev: f.Prev, Hash: f.Hash,
	}
	body, ok := bytes.CutSuffix(line, []byte(beforeHash+r.Hash+afterHash))
	return r, ok && hash(body) == r.Hash, nil
}

// quick reads a line that stands as Append writes it and has no escapes in it,
// without a look at its hash: a start reads up to a hundred thousand. ok is false for
// any other line, which may be a record all the same.
func quick(line []byte) (r Record, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"seq":`))
	if !ok || !utf8.Valid(rest) {
		return r, false
	}
	seq, rest, ok := number(rest)
	if !ok || seq == 0 {
		return r, false
	}
	r.Seq = seq
	var stamp, state string
	for _, f := range []struct {
		key string // as it stands before the value
		to  *string
	}{
		{`,"timestamp":"`, &stamp}, {`,"time":"`, &state}, {`,"event":"`, &r.Event}, {`,"id":"`, &r.ID}, {`,"by":"`, &r.By},
		{`,"via":"`, &r.Via}, {`,"point":"`, &r.Point}, {`,"value":"`, &r.Value}, {`,"previous":"`, &r.Previous},
		{`,"status":"`, &r.Status}, {`,"reason":"`, &r.Reason},
	} {
		if rest, ok = member(rest, f.key, f.to); !ok {
			return r, false
		}
	}
	if after, has := bytes.CutPrefix(rest, []byte(`,"ms":`)); has {
		var ms uint64
		if ms, rest, ok = number(after); !ok || ms > math.MaxInt64 {
			return r, false
		}
		r.Ms = int64(ms)
	}
	if rest, ok = member(rest, `,"prev":"`, &r.Prev); !ok {
		return r, false
	}
	if rest, ok = member(rest, beforeHash, &r.Hash); !ok || string(rest) != "}" {
		return r, false
	}
	var err error
	r.Time, err = time.Parse(timeFormat, stamp)
	r.Unset = state == unsynced
	return r, err == nil && r.Event != "" && len(r.Prev) == hashLen && len(r.Hash) == hashLen
}

// number takes a whole number from the beginning of text.
func number(text []byte) (n uint64, rest []byte, ok bool) {
	end := 0
	for end < len(text) && text[end] >= '0' && text[end] <= '9' {
		end++
	}
	if end > 1 && text[0] == '0' {
		return 0, text, false
	}
	n, err := strconv.ParseUint(string(text[:end]), 10, 64)
	return n, text[end:], err == nil
}

// member takes a text from the beginning of line, if its key stands there. ok is
// false for one that cannot be taken as it stands.
func member(line []byte, key string, to *string) (rest []byte, ok bool) {
	text, found := bytes.CutPrefix(line, []byte(key))
	if !found {
		return line, true
	}
	for i, c := range text {
		switch {
		case c == '"':
			*to = string(text[:i])
			return text[i+1:], true
		case c == '\\' || c < ' ':
			return line, false
		}
	}
	return line, false
}

// glance returns the place of a sound record and the hash that it names before
// it, without reading the rest of its line: a start looks at thousands.
func glance(line []byte) (p place, before string, ok bool) {
	const (
		begin = `{"seq":`
		prev  = `,"prev":"`
		quote = `"`
	)
	text, ok := bytes.CutSuffix(line, []byte(afterHash))
	end := len(text) - hashLen
	if !ok || end < 0 {
		return place{}, "", false
	}
	p.hash = string(text[end:])
	body, ok := bytes.CutSuffix(text[:end], []byte(beforeHash))
	if !ok || hash(body) != p.hash {
		return place{}, "", false
	}
	// What has its own hash was written by JSON: number first, hash before last.
	text, ok = bytes.CutSuffix(body, []byte(quote))
	if end = len(text) - hashLen; !ok || end < 0 || !bytes.HasSuffix(text[:end], []byte(prev)) {
		return place{}, "", false
	}
	before = string(text[end:])
	digits, ok := bytes.CutPrefix(body, []byte(begin))
	n := bytes.IndexByte(digits, ',')
	if !ok || n < 0 {
		return place{}, "", false
	}
	seq, err := strconv.ParseUint(string(digits[:n]), 10, 64)
	p.seq = seq
	return p, before, err == nil && seq > 0
}

// tidy returns r as it can be written: with a time, by a clock that knows
// whether it is set, and texts that are valid and not too long.
func (r Record) tidy(c *clock.Clock) Record {
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	ns, set := c.At(r.Time)
	r.Unset = !set
	r.Time = time.Unix(0, ns).UTC().Truncate(time.Millisecond)
	for _, text := range []*string{&r.Event, &r.ID, &r.By, &r.Via, &r.Point, &r.Value, &r.Previous, &r.Status, &r.Reason} {
		*text = cut(*text)
	}
	return r
}

// cut returns text, valid as UTF-8 and no longer than MaxText.
func cut(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	const more = "…"
	if len(text) <= MaxText {
		return text
	}
	end := MaxText - len(more)
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + more
}
