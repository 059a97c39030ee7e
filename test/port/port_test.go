package port

import (
	"fmt"
	"net"
	"testing"
)

func TestFree(t *testing.T) {
	seen := make(map[int]bool)
	for range 20 {
		n, err := Free()
		if err != nil {
			t.Fatal(err)
		}
		if seen[n] || n < first || n >= first+count {
			t.Errorf("port %d", n)
		}
		seen[n] = true
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", n))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
}

// A port that is taken is passed over.
func TestTaken(t *testing.T) {
	n, err := Free()
	if err != nil {
		t.Fatal(err)
	}
	next := n + 1 // unless it is the last
	if next == first+count {
		next = first
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", next))
	if err != nil {
		t.Skip("somebody else has it: ", err)
	}
	defer l.Close()
	if n, err := Free(); err != nil || n == next {
		t.Errorf("Free() = %d, %v", n, err)
	}
}
