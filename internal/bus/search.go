package bus

// search finds out what a device answers of a run of neighbouring items that it
// refused to answer in one request: as few requests as the device allows, found
// by halving, and the single items that it refuses even alone.
//
// It takes for granted that what is refused stays refused when it gets longer.
// That holds for holes, for bounds inside the device and for a longest read,
// and makes the greedy way the best one: the longest run from the left, then
// the longest from there on.
//
// Ask next for a run, tell answered or refused, until next says that it is
// done. n items take about log2(n) requests a bound, and two for each item that
// is refused alone.
type search struct {
	n     int // items
	from  int // the first item not settled
	ok    int // the longest run from there that was answered, in items
	bad   int // the shortest that was refused; past the end: none
	hint  int // where the last bound was found
	fresh bool

	asked   int
	settled []run
}

// run is what the search found out about the items from up to to.
type run struct {
	from, to int
	refused  bool // then it is one item
}

// newSearch begins with n items, at least 1, that were refused together.
func newSearch(n int) *search {
	s := &search{n: n, bad: n, hint: n / 2}
	s.settle() // a single one is
	return s
}

// next returns the run to ask for; ok is false when everything is settled.
func (s *search) next() (from, to int, ok bool) {
	if s.from == s.n {
		return 0, 0, false
	}
	rest := s.n - s.from
	switch {
	case s.fresh: // nothing known yet: perhaps the rest is fine
		s.asked = rest
	case s.ok == 0:
		s.asked = min(max(s.hint, 1), s.bad-1)
	case s.ok == s.hint: // the same bound again, as with a longest read?
		s.asked = s.ok + 1
	default:
		s.asked = (s.ok + s.bad) / 2
	}
	return s.from, s.from + s.asked, true
}

// answered says that the device answered the run asked for.
func (s *search) answered() {
	s.fresh = false
	s.ok = s.asked
	s.settle()
}

// refused says that the device refused the run asked for.
func (s *search) refused() {
	s.fresh = false
	s.bad = s.asked
	if s.ok == 0 {
		s.hint = min(s.hint, s.bad/2)
	}
	s.settle()
}

// settle takes note of what is certain now.
func (s *search) settle() {
	rest := s.n - s.from
	switch {
	case s.ok == rest || s.ok > 0 && s.bad == s.ok+1:
		s.settled = append(s.settled, run{s.from, s.from + s.ok, false})
		s.from += s.ok
		s.hint = s.ok
	case s.bad == 1:
		s.settled = append(s.settled, run{s.from, s.from + 1, true})
		s.from++
		s.hint = 1
	default:
		return
	}
	s.ok, s.bad, s.fresh = 0, s.n-s.from+1, true
}

// refuseAll settles every item as refused.
func (s *search) refuseAll() {
	for ; s.from < s.n; s.from++ {
		s.settled = append(s.settled, run{s.from, s.from + 1, true})
	}
}
