package judge

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A device that somebody else has open is still there after the unmount, and a copy of
// the image could be mistaken for it.
func TestDetachWaits(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	tool(t, "truncate", "-s", "1M", image)
	device, err := attach(image)
	if err != nil {
		t.Fatal(err)
	}
	held, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	const open = 300 * time.Millisecond
	began := time.Now()
	time.AfterFunc(open, func() { held.Close() })
	if err := detach(device); err != nil || time.Since(began) < open {
		t.Errorf("detach() = %v after %s, want it to wait %s", err, time.Since(began), open)
	}
}
