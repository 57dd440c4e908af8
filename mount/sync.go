package mount

import (
	"time"

	"golang.org/x/sys/unix"
)

// SyncWithin writes all file systems out, and waits for that no longer than limit: a
// stuck disk must not keep a machine from ending.
func SyncWithin(limit time.Duration) {
	done := make(chan struct{})
	go func() {
		unix.Sync()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(limit):
	}
}
