// Package mbpoll runs mbpoll, Debian's Modbus client, which is made with
// libmodbus and none of ours.
package mbpoll

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// patience bounds one run; mbpoll itself waits a second for an answer.
const patience = 20 * time.Second

// Run asks once, as its arguments say, and returns the values that it prints,
// none for a write. The error is what it says of an exception or of no answer, such
// as "Read output (holding) register failed: Illegal data address".
func Run(args ...string) (values []string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "mbpoll", append([]string{"-1", "-q"}, args...)...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, errors.New("mbpoll is missing; install the Debian package mbpoll")
	}
	if err != nil {
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "failed: ") {
				return nil, errors.New(strings.TrimSpace(line))
			}
		}
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if at, value, ok := strings.Cut(strings.TrimSpace(line), "]:"); ok && strings.HasPrefix(at, "[") {
			values = append(values, strings.TrimSpace(value))
		}
	}
	return values, nil
}

// Must is Run where anything but an answer ends the test.
func Must(t testing.TB, args ...string) []string {
	t.Helper()
	values, err := Run(args...)
	if err != nil {
		t.Fatalf("mbpoll %s: %v", strings.Join(args, " "), err)
	}
	return values
}
