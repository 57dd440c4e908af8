// Package tooltest runs the tools of others that judge what tests make.
package tooltest

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// busyFor is how long Run waits for a device or mount that is busy.
const busyFor = time.Minute

// Run runs a tool, which must succeed, and returns what it writes. What is busy is tried
// again: tests of other packages run at the same time, and a mount namespace that one of
// them makes has a copy of each mount for as long as it is there, and keeps its device.
func Run(t *testing.T, name string, args ...string) string {
	t.Helper()
	for end := time.Now().Add(busyFor); ; time.Sleep(200 * time.Millisecond) {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err == nil {
			return string(out)
		}
		if !bytes.Contains(out, []byte("busy")) || time.Now().After(end) {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
	}
}
