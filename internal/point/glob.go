package point

import "strings"

// Glob is a compiled pattern over device.point: * stands for any run of
// characters, dots included, and ? for any one byte; everything else stands
// for itself. The zero Glob matches nothing but the empty ID.
type Glob struct {
	pattern string
	shape   globShape
	fixed   string // what Match compares with, by shape
}

// globShape names the patterns that need no search.
type globShape uint8

const (
	globLiteral globShape = iota
	globAll               // *
	globPrefix            // boiler.*
	globSuffix            // *.temp
	globAny               // the rest
)

// ParseGlob compiles pattern. Every text is a pattern.
func ParseGlob(pattern string) Glob {
	g := Glob{pattern: pattern, shape: globAny, fixed: pattern}
	switch first := strings.IndexAny(pattern, "*?"); {
	case first < 0:
		g.shape = globLiteral
	case pattern == "*":
		g.shape = globAll
	case pattern[first] == '*' && first == len(pattern)-1:
		g.shape, g.fixed = globPrefix, pattern[:first]
	case pattern[0] == '*' && !strings.ContainsAny(pattern[1:], "*?"):
		g.shape, g.fixed = globSuffix, pattern[1:]
	}
	return g
}

// String returns the pattern.
func (g Glob) String() string { return g.pattern }

// Literal reports whether the pattern names one point, without * and ?.
func (g Glob) Literal() bool { return g.shape == globLiteral }

// Match reports whether the whole of id fits the pattern. It does not allocate.
func (g Glob) Match(id ID) bool {
	switch g.shape {
	case globLiteral:
		return string(id) == g.fixed
	case globAll:
		return true
	case globPrefix:
		return strings.HasPrefix(string(id), g.fixed)
	case globSuffix:
		return strings.HasSuffix(string(id), g.fixed)
	}
	return matchGlob(g.pattern, string(id))
}

// matchGlob goes back to the last * only, so it takes at most
// len(pattern) × len(s) steps.
func matchGlob(pattern, s string) bool {
	p, i := 0, 0
	star, from := -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			from++
			p, i = star+1, from
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
