package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a lock that another program holds is looked at again.
const lockPoll = 50 * time.Millisecond

// OpenHeader opens encrypted.img of a machine that runs, for its LUKS2 header
// alone: write takes the lock that nobody else may have, else one that readers
// share, as cryptsetup does. It waits for the lock until ctx ends. Closing the file
// gives the lock up. Errors: ErrNoImage, ErrNotImage, ErrInUse.
func OpenHeader(ctx context.Context, dir *os.File, write bool) (*os.File, error) {
	access, how := uint64(unix.O_RDONLY), unix.LOCK_SH
	if write {
		access, how = unix.O_RDWR, unix.LOCK_EX
	}
	f, err := openImage(dir, access)
	if err != nil {
		return nil, err
	}
	for {
		err := lockImage(f, how)
		if err == nil {
			return f, nil
		}
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
			select {
			case <-time.After(lockPoll):
				continue
			case <-ctx.Done():
				err = fmt.Errorf("%w, another program holds it: %w", err, ctx.Err())
			}
		}
		f.Close()
		return nil, err
	}
}
