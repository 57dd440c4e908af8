package files

import (
	"errors"
	"fmt"
	"os"

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

// Create makes an empty file of that number: of a spare one (Stock) where the file system
// has no inode left. Without any the error is ENOSPC.
func Create(dir *os.File, number int) (*os.File, error) {
	name := fmt.Sprintf("%08d", number)
	fd, err := create(dir, name)
	if errors.Is(err, unix.ENOSPC) && useSpare(dir, name) {
		fd, err = unix.Openat(int(dir.Fd()), name, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make a balloon: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Hold takes all that is free in the file system of root, of end bytes, into balloons, for
// nobody can choose the place of one, and lets go of those without any block in holes, which
// are in order. For that moment the file system is full. What somebody else gets first, or is
// less than LeastBytes, stays in use. It is the caller who syncs.
func Hold(root *os.File, end int64, holes []balloon.Range) error {
	dir, err := MakeDir(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(root.Fd()), &fs); err != nil {
		return err
	}
	size := max(int64(fs.Bavail)*fs.Bsize/holdParts, leastHold) / balloon.BlockSize * balloon.BlockSize
	var others []string
	for number := 1; size >= LeastBytes; number++ {
		other, herr := hold(dir, number, size, end, holes)
		if other != "" {
			others = append(others, other)
		}
		if errors.Is(herr, unix.ENOSPC) {
			size = size / 2 / balloon.BlockSize * balloon.BlockSize
		} else if herr != nil && !errors.Is(herr, unix.EEXIST) && !errors.Is(herr, unix.EINTR) {
			err = herr
			break
		}
	}
	for _, name := range others {
		_ = unix.Unlinkat(int(dir.Fd()), name, 0) // what stays, the next resize lets go of
	}
	return err
}

// hold makes a balloon of size bytes, and returns its name where it has no blocks in
// holes.
func hold(dir *os.File, number int, size, end int64, holes []balloon.Range) (other string, err error) {
	f, err := Create(dir, number)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		_ = f.Truncate(0) // or it keeps what there was
		return f.Name(), err
	}
	b, err := Look(f, end)
	if err != nil || len(balloon.Both(b.Held, holes)) == 0 {
		return f.Name(), err
	}
	return "", ChangeFlags(f, Immutable|NoDump, 0)
}
