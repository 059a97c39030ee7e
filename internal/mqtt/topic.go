package mqtt

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxTopic is the longest topic name or filter in bytes (clause 4.7.3).
const MaxTopic = 65535

// ValidTopic returns nil if a message may be published on topic, else an error
// that wraps ErrInvalid and says why. Beside what clause 4.7 forbids (empty,
// too long, wildcards, NUL, ill-formed UTF-8) it refuses the control characters
// and non-characters of clause 1.5.3: brokers may close the connection on them,
// and mosquitto does. A topic may begin with "$" (AWS, $aws/...).
func ValidTopic(topic string) error {
	if err := validText(topic); err != nil {
		return fmt.Errorf("%w topic %s: %w", ErrInvalid, quote(topic), err)
	}
	if i := strings.IndexAny(topic, "+#"); i >= 0 {
		return fmt.Errorf("%w topic %s: a topic to publish on holds no wildcard, this has %q", ErrInvalid, quote(topic), topic[i:i+1])
	}
	return nil
}

// ValidFilter returns nil if a client may subscribe to filter, else an error
// that wraps ErrInvalid and says why: all of ValidTopic but the wildcards, which
// must stand alone between slashes, "#" at the end only (clause 4.7.1).
func ValidFilter(filter string) error {
	if err := validText(filter); err != nil {
		return fmt.Errorf("%w filter %s: %w", ErrInvalid, quote(filter), err)
	}
	for rest, more := filter, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		switch {
		case level == "#" && more:
			return fmt.Errorf(`%w filter %s: "#" must be the last level`, ErrInvalid, quote(filter))
		case level != "#" && strings.Contains(level, "#"):
			return fmt.Errorf(`%w filter %s: "#" must be a level of its own, as in "a/#"`, ErrInvalid, quote(filter))
		case level != "+" && strings.Contains(level, "+"):
			return fmt.Errorf(`%w filter %s: "+" must be a level of its own, as in "a/+/b"`, ErrInvalid, quote(filter))
		}
	}
	return nil
}

// textError is what is wrong with a UTF-8 string of the protocol.
type textError string

func (e textError) Error() string { return string(e) }

// validText checks what topics and filters have in common.
func validText(s string) error {
	if s == "" {
		return textError("it is empty")
	}
	if len(s) > MaxTopic {
		return textError(fmt.Sprintf("it is %d bytes long, at most %d", len(s), MaxTopic))
	}
	plain := true
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c >= 0x7F {
			plain = false
			break
		}
	}
	if plain {
		return nil // nearly every topic: no decoding
	}
	for i, r := range s {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return textError(fmt.Sprintf("byte %d is not UTF-8", i))
			}
		}
		if r == 0 {
			return textError(fmt.Sprintf("byte %d is NUL", i))
		}
		if unfit(r) {
			return textError(fmt.Sprintf("%U at byte %d is a control or non-character, which brokers refuse", r, i))
		}
	}
	return nil
}

// unfit reports whether clause 1.5.3 lets a receiver close the connection over r.
func unfit(r rune) bool {
	return r < 0x20 || r >= 0x7F && r <= 0x9F || // control characters
		r >= 0xFDD0 && r <= 0xFDEF || r&0xFFFE == 0xFFFE // non-characters
}

// quote shows s in an error, cut where nobody would read on.
func quote(s string) string {
	const most = 200
	if len(s) > most {
		return fmt.Sprintf("%.*q...", most, s)
	}
	return fmt.Sprintf("%q", s)
}

// CleanSegment makes a value fit to stand in a topic as (a part of) one level:
// each "+", "#", "/", NUL, control or non-character and each byte that is not
// UTF-8 becomes "_". A value that is fit already is returned as it is.
func CleanSegment(value string) string {
	clean := func(r rune) rune {
		if r == '+' || r == '#' || r == '/' || unfit(r) {
			return '_'
		}
		return r
	}
	if utf8.ValidString(value) {
		return strings.Map(clean, value)
	}
	var b strings.Builder
	for i, r := range value {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(value[i:]); n == 1 {
				r = '_'
			}
		}
		b.WriteRune(clean(r))
	}
	return b.String()
}

// Filter is a topic filter, valid by ValidFilter.
type Filter string

// Match reports whether a message published on topic reaches a subscription to
// f (clause 4.7): "+" stands for one level, which may be empty, "#" for what
// is left, its parent included; neither stands for a first level that begins
// with "$" (clause 4.7.2). It allocates nothing. A filter that ValidFilter
// refuses matches no valid topic.
func (f Filter) Match(topic string) bool {
	filter := string(f)
	if filter == "" || topic == "" {
		return false
	}
	if topic[0] == '$' && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	for {
		fl, frest, fmore := strings.Cut(filter, "/")
		if fl == "#" {
			return !fmore
		}
		tl, trest, tmore := strings.Cut(topic, "/")
		if fl != "+" && fl != tl {
			return false
		}
		switch {
		case fmore && tmore:
			filter, topic = frest, trest
		case fmore:
			return frest == "#" // "a/#" matches "a"
		default:
			return !tmore
		}
	}
}
