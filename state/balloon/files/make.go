package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/layout"
)

// LeastBytes is how small a balloon gets where there is little room.
const LeastBytes = 1 << 20

const (
	// holdParts is in about how many balloons all free space is taken: each holds as well
	// what happens to lie between the holes.
	holdParts = 512
	leastHold = 16 << 20
)

// MakeDir opens the folder of balloons, and makes it.
func MakeDir(root *os.File) (*os.File, error) {
	for _, name := range []string{layout.Private, layout.Balloons} {
		if err := unix.Mkdirat(int(root.Fd()), name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("cannot make the folder of balloons: %w", err)
		}
	}
	return OpenDir(root)
}

// LastNumber is the highest that names a balloon in their folder, or 0.
func LastNumber(dir *os.File) (last int, err error) {
	names, err := dir.Readdirnames(-1)
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			last = max(last, n)
		}
	}
	return last, err
}

// Name is the name of a balloon of that number.
func Name(number int) string { return fmt.Sprintf("%08d", number) }

// Create makes an empty file of that number.
func Create(dir *os.File, number int) (*os.File, error) {
	name := Name(number)
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot make a balloon: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Allocate takes size bytes, or the half of it and so on where there is no room.
func Allocate(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		if err == nil {
			return nil
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if size /= 2; !errors.Is(err, unix.ENOSPC) || size < LeastBytes {
			return err
		}
		size = size / balloon.BlockSize * balloon.BlockSize
		if err := f.Truncate(0); err != nil {
			return err
		}
	}
}

// Hold takes all that is free in the file system of root, of end bytes, into balloons, for
// nobody can choose the place of one, and lets go of those without any block in holes, which
// are in order. For that moment the file system is full. What somebody else gets first, or is
// less than LeastBytes, stays in use.
func Hold(ctx context.Context, root *os.File, end int64, holes []balloon.Range) error {
	dir, err := MakeDir(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	last, err := LastNumber(dir)
	var fs unix.Statfs_t
	if err == nil {
		err = unix.Fstatfs(int(root.Fd()), &fs)
	}
	size := max(int64(fs.Bavail)*fs.Bsize/holdParts, leastHold) / balloon.BlockSize * balloon.BlockSize
	var others []string
	for err == nil {
		if err = ctx.Err(); err == nil {
			last++
			var kept bool
			if kept, err = hold(dir, last, size, end, holes); !kept {
				others = append(others, Name(last))
			}
		}
	}
	if errors.Is(err, unix.ENOSPC) {
		err = nil
	}
	for _, name := range others {
		_ = unix.Unlinkat(int(dir.Fd()), name, 0) // what stays, the next resize lets go of
	}
	return errors.Join(err, unix.Syncfs(int(root.Fd())))
}

// hold makes a balloon of size bytes, or of less, and tells whether it has blocks in holes.
func hold(dir *os.File, number int, size, end int64, holes []balloon.Range) (kept bool, err error) {
	f, err := Create(dir, number)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if err := Allocate(f, size); err != nil {
		return false, err
	}
	b, err := Look(f, end)
	if err != nil || len(balloon.Both(b.Held, holes)) == 0 {
		return false, err
	}
	return true, ChangeFlags(f, Immutable|NoDump, 0)
}
