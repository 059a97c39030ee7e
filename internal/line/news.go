package line

// newsMost bounds how many different reasons are logged before the wire is open.
const newsMost = 20

// news decides what the log says of a wire: that it is open, and why it is not,
// each once. A wire that is lost and open again at once is not news. One that
// opens and is lost again without any use to anybody is said to be not open, and
// said to be open only when a device has answered over it.
type news struct {
	up      bool            // said to be open, and nothing since
	told    map[string]bool // why not, since it was
	doubted bool            // it was opened and lost without any use
}

// opened reports whether it is to be said that the wire is open.
func (n *news) opened() bool {
	if n.up || n.doubted {
		return false
	}
	n.up, n.told = true, nil
	return true
}

// failed reports whether it is to be said why the wire cannot be opened.
func (n *news) failed(why string) bool {
	n.up = false
	if n.told[why] || len(n.told) >= newsMost {
		return false
	}
	if n.told == nil {
		n.told = make(map[string]bool)
	}
	n.told[why] = true
	return true
}

// useless reports whether it is to be said why the wire, which was open, was
// lost without any use.
func (n *news) useless(why string) bool {
	if n.doubted {
		return false
	}
	n.doubted = true
	return n.failed(why)
}
