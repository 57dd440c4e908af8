package resize

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockWait is how long another resizer is waited for, which works in steps.
const lockWait = 5 * time.Second

// lock keeps other resizers out: with unix.LOCK_EX, or with LOCK_SH, which others may have as
// well. Errors: ErrBusy.
func lock(path string, how int) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock: %w", err)
	}
	for end := time.Now().Add(lockWait); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if wait := errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR); !wait || time.Now().After(end) {
			f.Close()
			if wait {
				err = fmt.Errorf("%w: %w", ErrBusy, err)
			}
			return nil, fmt.Errorf("cannot lock %s: %w", path, err)
		}
	}
}
