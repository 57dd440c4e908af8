package sharing

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Writes tells of writes to file systems while nobody looks (fanotify(7)). It is
// armed only while it is waited for, so that what is written otherwise costs
// nothing. Writes through mmap do not wake it: its caller looks again all the same.
type Writes struct {
	fd   int
	dirs []string
}

// WatchWrites prepares for the file systems of these folders. Without fanotify in
// the kernel it fails, and time alone must do.
func WatchWrites(dirs ...string) (*Writes, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_REPORT_FID, unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("cannot watch for writes: %w", err)
	}
	w := &Writes{fd: fd, dirs: dirs}
	if err := w.arm(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, w.disarm()
}

// Close ends it.
func (w *Writes) Close() error { return unix.Close(w.fd) }

func (w *Writes) arm() error {
	for _, dir := range w.dirs {
		err := unix.FanotifyMark(w.fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_MODIFY, unix.AT_FDCWD, dir)
		if err != nil {
			return fmt.Errorf("cannot watch for writes in %s: %w", dir, err)
		}
	}
	return nil
}

// disarm takes the marks away and forgets what was told.
func (w *Writes) disarm() error {
	if err := unix.FanotifyMark(w.fd, unix.FAN_MARK_FLUSH|unix.FAN_MARK_FILESYSTEM, 0, unix.AT_FDCWD, "/"); err != nil {
		return fmt.Errorf("cannot stop watching for writes: %w", err)
	}
	var buf [4096]byte
	for {
		if n, err := unix.Read(w.fd, buf[:]); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil || n == 0 {
			return nil // EAGAIN: nothing more
		}
	}
}

// Wait returns after this time, or at the first write, or when stop can be read.
func (w *Writes) Wait(d time.Duration, stop int) error {
	if err := w.arm(); err != nil {
		return err
	}
	return errors.Join(poll(d, w.fd, stop), w.disarm())
}

// poll waits for one of the descriptors to be readable, or for the time to pass. One
// thread does that in one call: the runtime's timers would wake more.
func poll(d time.Duration, fds ...int) error {
	var set []unix.PollFd
	for _, fd := range fds {
		set = append(set, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	for end := time.Now().Add(d); ; {
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		_, err := unix.Poll(set, int((left+time.Millisecond-1)/time.Millisecond))
		if !errors.Is(err, unix.EINTR) {
			if err != nil {
				return fmt.Errorf("cannot wait: %w", err)
			}
			return nil
		}
	}
}

// Waiter is Service.Wait for the running machine. writes may be nil.
func Waiter(writes *Writes) func(ctx context.Context, d time.Duration, quiet bool) error {
	return func(ctx context.Context, d time.Duration, quiet bool) error {
		var ends [2]int
		if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
			return fmt.Errorf("cannot wait: %w", err)
		}
		// The end of the context closes the writing end, which wakes the poll.
		stop := context.AfterFunc(ctx, func() { unix.Close(ends[1]) })
		var err error
		if quiet && writes != nil {
			err = writes.Wait(d, ends[0])
		} else {
			err = poll(d, ends[0])
		}
		if stop() {
			unix.Close(ends[1])
		}
		return errors.Join(err, unix.Close(ends[0]), ctx.Err())
	}
}
