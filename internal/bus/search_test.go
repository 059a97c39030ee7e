package bus

import (
	"math/bits"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// settle lets a search ask a device that answers a run of items if and only if
// ok says so, and returns the requests it took.
func settle(s *search, ok func(from, to int) bool) (requests int) {
	for {
		from, to, more := s.next()
		if !more {
			return requests
		}
		requests++
		if ok(from, to) {
			s.answered()
		} else {
			s.refused()
		}
	}
}

func TestSearch(t *testing.T) {
	tests := []struct {
		name     string
		n        int
		ok       func(from, to int) bool
		want     []run
		requests int // at most
	}{
		{"one item", 1, func(from, to int) bool { return false }, []run{{0, 1, true}}, 0},
		{"one hole", 8, func(from, to int) bool { return from >= 3 || to <= 3 }, []run{{0, 3, false}, {3, 8, false}}, 4},
		{"one bad item", 100, func(from, to int) bool { return from > 40 || to <= 40 }, []run{{0, 40, false}, {40, 41, true}, {41, 100, false}}, 18},
		{"at most 20", 100, func(from, to int) bool { return to-from <= 20 }, []run{{0, 20, false}, {20, 40, false}, {40, 60, false}, {60, 80, false}, {80, 100, false}}, 18},
		{"nothing", 50, func(from, to int) bool { return false }, nil, 105},
		{"only alone", 20, func(from, to int) bool { return to-from == 1 }, nil, 61},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSearch(tt.n)
			requests := settle(s, tt.ok)
			if tt.want != nil && !slices.Equal(s.settled, tt.want) {
				t.Errorf("settled %v, want %v", s.settled, tt.want)
			}
			if requests > tt.requests {
				t.Errorf("%d requests, want at most %d", requests, tt.requests)
			}
		})
	}
}

// Whatever a device refuses, the search ends with the fewest runs that it
// answers, every item settled once, and only those refused that it refuses.
func TestSearchFindsTheFewestRuns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 60).Draw(t, "n")
		bad := make([]bool, n)
		bound := make([]bool, n) // nothing may be read across the front of this item
		for i := range n {
			bad[i] = rapid.IntRange(0, 9).Draw(t, "bad") == 0
			bound[i] = rapid.IntRange(0, 9).Draw(t, "bound") == 0
		}
		longest := rapid.IntRange(1, n).Draw(t, "longest")
		ok := func(from, to int) bool {
			return to-from <= longest && !slices.Contains(bad[from:to], true) && !slices.Contains(bound[from+1:to], true)
		}
		if ok(0, n) {
			return // a search begins with a refusal
		}
		s := newSearch(n)
		requests := settle(s, ok)

		var want []run
		for from := 0; from < n; {
			if bad[from] {
				want = append(want, run{from, from + 1, true})
				from++
				continue
			}
			to := from + 1
			for to < n && ok(from, to+1) {
				to++
			}
			want = append(want, run{from, to, false})
			from = to
		}
		if !slices.Equal(s.settled, want) {
			t.Fatalf("settled %v, want %v", s.settled, want)
		}
		if most := len(want) * (4 + bits.Len(uint(n))); requests > most {
			t.Fatalf("%d requests for %d runs of %d items, want at most %d", requests, len(want), n, most)
		}
	})
}
