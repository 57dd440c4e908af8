package sharing

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Writes tells of writes to file systems, and of files that are made there, while nobody looks
// (fanotify(7)). It is
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
		err := unix.FanotifyMark(w.fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_MODIFY|unix.FAN_CREATE|unix.FAN_ONDIR, unix.AT_FDCWD, dir)
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
	drain(w.fd)
	return nil
}

// Device tells when another program has had a block device open for writing, as
// resize2fs has before it asks the kernel: by inotify(7), always armed, for the service
// only reads it.
type Device struct{ fd int }

// WatchDevice watches a device by its node.
func WatchDevice(node string) (*Device, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot watch a device: %w", err)
	}
	if _, err := unix.InotifyAddWatch(fd, node, unix.IN_CLOSE_WRITE); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot watch %s: %w", node, err), unix.Close(fd))
	}
	return &Device{fd}, nil
}

// Close ends it.
func (d *Device) Close() error { return unix.Close(d.fd) }

// DeviceOf is the node of the device with the file system at dir; "" for btrfs, which
// has none that stat(2) knows, and which no program resizes through its device.
func DeviceOf(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("cannot inspect %s: %w", dir, err)
	}
	if unix.Major(st.Dev) == 0 {
		return "", nil
	}
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return "", fmt.Errorf("cannot find the device of %s: %w", dir, err)
	}
	return filepath.Join("/dev", filepath.Base(link)), nil
}

// drain forgets what can be read of a descriptor that does not block.
func drain(fd int) {
	var buf [4096]byte
	for {
		if n, err := unix.Read(fd, buf[:]); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil || n == 0 {
			return // EAGAIN: nothing more
		}
	}
}

// poll waits for one of the descriptors to be readable, and says which, or -1 when the
// time has passed. One thread does that in one call: the runtime's timers would wake
// more.
func poll(d time.Duration, fds ...int) (int, error) {
	var set []unix.PollFd
	for _, fd := range fds {
		set = append(set, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	for end := time.Now().Add(d); ; {
		left := time.Until(end)
		if left <= 0 {
			return -1, nil
		}
		n, err := unix.Poll(set, int((left+time.Millisecond-1)/time.Millisecond))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return -1, fmt.Errorf("cannot wait: %w", err)
		}
		if n > 0 {
			for _, f := range set {
				if f.Revents != 0 {
					return int(f.Fd), nil
				}
			}
		}
	}
}

// settle is for how long whoever has had the device is given to go on: resize2fs asks
// the kernel some 0.2 s later. It also bounds how often the device wakes.
const settle = 250 * time.Millisecond

// Waiter is Service.Wait for the running machine; either may be nil.
func Waiter(writes *Writes, device *Device) func(ctx context.Context, next, idle time.Duration) (touched bool, err error) {
	return func(ctx context.Context, next, idle time.Duration) (bool, error) {
		var ends [2]int
		if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
			return false, fmt.Errorf("cannot wait: %w", err)
		}
		// The end of the context closes the writing end, which wakes the poll.
		stop := context.AfterFunc(ctx, func() { unix.Close(ends[1]) })
		touched, err := wait(writes, device, ends[0], next, idle)
		if stop() {
			unix.Close(ends[1])
		}
		return touched, errors.Join(err, unix.Close(ends[0]), ctx.Err())
	}
}

func wait(writes *Writes, device *Device, stop int, next, idle time.Duration) (touched bool, err error) {
	fds := []int{stop}
	if device != nil {
		fds = append(fds, device.fd)
		defer drain(device.fd)
	}
	ended := func(fd int, err error) (bool, error) {
		if err != nil || device == nil || fd != device.fd {
			return false, err
		}
		_, err = poll(settle, stop)
		return true, err
	}
	if idle > 0 && writes != nil {
		if err := writes.arm(); err != nil {
			return false, err
		}
		fd, err := poll(idle, append(fds, writes.fd)...)
		if err := errors.Join(err, writes.disarm()); err != nil || fd != writes.fd {
			return ended(fd, err)
		}
	}
	return ended(poll(next, fds...))
}
