package checks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// ImageName is the name that a Failure of Image has.
const ImageName = "image"

// errUnread: dm-verity answers a block that does not match as a disk answers one
// that it cannot read; the kernel log says which it was.
var errUnread = errors.New("a block does not match the hash tree, or cannot be read")

// Mapped is the device node of a device-mapper device, by the folder /sys/block: without
// udev there is none in /dev/mapper.
func Mapped(block, name string) (string, error) {
	files, err := filepath.Glob(filepath.Join(block, "dm-*", "dm", "name"))
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(text)) == name {
			return "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(file))), nil
		}
	}
	return "", errors.Join(err, fmt.Errorf("there is no device %s", name))
}

// Image reads a whole device, the root or a layer behind dm-verity, so that every block of
// it is compared with the hash tree, at the lowest I/O priority that still makes
// progress on a busy disk: the idle class may starve (BFQ), and a good image
// would run into boot.commit_deadline. A block that cannot be had is a *Failure. add is told of the bytes read.
func Image(ctx context.Context, device string, add func(int64)) error {
	done := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine, and its priority with it.
		runtime.LockOSThread()
		done <- readLow(ctx, device, add)
	}()
	return <-done
}

// The lowest level of the best-effort class of ioprio_set(2), which x/sys does
// not name.
const (
	ioprioWhoProcess = 1
	ioprioLow        = 2<<13 | 7
)

func readLow(ctx context.Context, device string, add func(int64)) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, 0, ioprioLow); errno != 0 {
		return fmt.Errorf("cannot lower the I/O priority: %w", errno)
	}
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for at := int64(0); ; {
		if ctx.Err() != nil {
			return fmt.Errorf("cannot finish check %s: %w", ImageName, context.Cause(ctx))
		}
		n, err := f.ReadAt(buf, at)
		at += int64(n)
		add(int64(n))
		// What was read is not needed twice.
		_ = unix.Fadvise(int(f.Fd()), 0, at, unix.FADV_DONTNEED)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, unix.EIO):
			return &Failure{Name: ImageName, Why: errUnread, Last: fmt.Sprintf("at byte %d of %s", at, device)}
		case err != nil:
			return fmt.Errorf("cannot read %s: %w", device, err)
		}
	}
}
