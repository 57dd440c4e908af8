package mount

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrNotInitramfs means that a directory is not on a file system in memory, or
// is the present root: its files are not for deletion.
var ErrNotInitramfs = errors.New("not an initramfs")

// maxDepth bounds the recursion; an initramfs is not nearly as deep.
const maxDepth = 64

// FreeInitramfs deletes everything below the directory root, which must be on
// a ramfs or tmpfs and not be the present root directory. Other file systems
// mounted below it are left alone. What cannot be deleted is passed over and
// named in the error.
func FreeInitramfs(root *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(root.Fd()), &fs); err != nil {
		return fmt.Errorf("cannot look at %s: %w", root.Name(), err)
	}
	if fs.Type != unix.RAMFS_MAGIC && fs.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("cannot free %s: %w: file system type %#x", root.Name(), ErrNotInitramfs, fs.Type)
	}
	var st, now unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return fmt.Errorf("cannot look at %s: %w", root.Name(), err)
	}
	if err := unix.Stat("/", &now); err != nil {
		return fmt.Errorf("cannot look at /: %w", err)
	}
	if st.Dev == now.Dev {
		return fmt.Errorf("cannot free %s: %w: it is the present root", root.Name(), ErrNotInitramfs)
	}
	return freeDir(int(root.Fd()), ".", st.Dev, 0)
}

// freeDir empties a directory by file descriptor: names are looked up one by
// one in their directory, links are deleted and not followed.
func freeDir(parent int, name string, dev uint64, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("cannot free %s: too deep", name)
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", name, err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("cannot list %s: %w", name, err)
	}
	var errs []error
	for _, n := range names {
		errs = append(errs, freeEntry(fd, n, dev, depth))
	}
	return errors.Join(errs...)
}

func freeEntry(dir int, name string, dev uint64, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("cannot look at %s: %w", name, err)
	}
	if st.Dev != dev {
		return nil
	}
	flags := 0
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := freeDir(dir, name, dev, depth+1); err != nil {
			return err
		}
		flags = unix.AT_REMOVEDIR
	}
	err := unix.Unlinkat(dir, name, flags)
	// A directory that holds a mount of another file system stays.
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot delete %s: %w", name, err)
	}
	return nil
}
