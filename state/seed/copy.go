package seed

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/state/layout"
)

// copyDir fills dst, which exists, from src and then gives it src's attributes
// (times last: filling changes them). path is dst's below the copy's root, and
// empty or ends with a slash.
func (s *seeder) copyDir(src, dst int, path string, st unix.Stat_t, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%q: %w", path, ErrTooDeep)
	}
	list, err := names(src)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	for _, name := range list {
		if err := s.copyEntry(src, dst, path, name, depth); err != nil {
			return err
		}
	}
	s.stats.Entries++
	return fdAttributes(src, dst, path, st)
}

// copyEntry copies what name is in src to dst.
func (s *seeder) copyEntry(src, dst int, path, name string, depth int) error {
	if err := s.checkpoint(path + name); err != nil {
		return err
	}
	// O_PATH does not open a device or wait for a FIFO's writer, and everything
	// later is about the very file that was looked at.
	fd, err := unix.Openat(src, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%q: cannot open: %w", path+name, err)
	}
	defer unix.Close(fd)
	st, err := fstat(fd)
	if err != nil {
		return fmt.Errorf("%q: %w", path+name, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return s.copySubdir(src, dst, path, name, st, depth)
	}
	id := inode{uint64(st.Dev), st.Ino}
	if first, ok := s.links[id]; ok {
		// Below root every directory is one that we made: no symlinks.
		if err := unix.Linkat(s.root, first, dst, name, 0); err != nil {
			return fmt.Errorf("%q: cannot link: %w", path+name, err)
		}
		s.stats.Entries++
		return nil
	}
	if st.Nlink > 1 {
		s.links[id] = path + name
	}
	s.stats.Entries++
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		return s.copyFile(src, dst, path, name, st)
	}
	if err := makeNode(fd, dst, name, st); err != nil {
		return fmt.Errorf("%q: %w", path+name, err)
	}
	return nodeAttributes(fd, dst, path, name, st)
}

func (s *seeder) copySubdir(src, dst int, path, name string, st unix.Stat_t, depth int) error {
	from, err := openDir(src, name)
	if err != nil {
		return fmt.Errorf("%q: cannot open: %w", path+name, err)
	}
	defer unix.Close(from)
	to, err := makeDir(dst, name)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	defer unix.Close(to)
	return s.copyDir(from, to, path+name+"/", st, depth+1)
}

func (s *seeder) copyFile(src, dst int, path, name string, st unix.Stat_t) error {
	from, err := openFile(src, name, unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("%q: cannot open: %w", path+name, err)
	}
	defer from.Close()
	to, err := openFile(dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return fmt.Errorf("%q: cannot make: %w", path+name, err)
	}
	defer to.Close()
	n, err := io.Copy(to, from)
	if err != nil {
		return fmt.Errorf("%q: cannot copy: %w", path+name, err)
	}
	if n != st.Size {
		return fmt.Errorf("%q: has %d bytes, want %d: %w", path+name, n, st.Size, io.ErrUnexpectedEOF)
	}
	s.stats.Bytes += n
	if err := fdAttributes(int(from.Fd()), int(to.Fd()), path+name, st); err != nil {
		return err
	}
	if err := to.Close(); err != nil {
		return fmt.Errorf("%q: cannot close: %w", path+name, err)
	}
	return nil
}

func openFile(dir int, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// makeNode makes a symlink, device node, FIFO or socket like the one that fd
// (O_PATH) is.
func makeNode(fd, dst int, name string, st unix.Stat_t) error {
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", target)
		if err != nil {
			return fmt.Errorf("cannot read symlink: %w", err)
		}
		if err := unix.Symlinkat(string(target[:n]), dst, name); err != nil {
			return fmt.Errorf("cannot make symlink: %w", err)
		}
		return nil
	}
	if err := unix.Mknodat(dst, name, st.Mode&unix.S_IFMT|0o600, int(st.Rdev)); err != nil {
		return fmt.Errorf("cannot make node: %w", err)
	}
	return nil
}

// fdAttributes gives a file or directory dst the attributes of src. Order
// matters: chown clears setuid bits and file capabilities, and everything
// changes the times.
func fdAttributes(src, dst int, path string, st unix.Stat_t) error {
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("%q: cannot change owner: %w", path, err)
	}
	if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
		return fmt.Errorf("%q: cannot change mode: %w", path, err)
	}
	err := copyXattrs(xattrs{
		list: func(b []byte) (int, error) { return unix.Flistxattr(src, b) },
		get:  func(name string, b []byte) (int, error) { return unix.Fgetxattr(src, name, b) },
		set:  func(name string, b []byte) error { return unix.Fsetxattr(dst, name, b, 0) },
	})
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	// utimensat(2) with an empty path and AT_EMPTY_PATH needs Linux 5.8.
	if err := unix.UtimesNanoAt(dst, "", times(st), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("%q: cannot change times: %w", path, err)
	}
	return nil
}

// nodeAttributes does the same for what cannot be opened: src is an O_PATH
// descriptor, dst/name the new node.
func nodeAttributes(src, dst int, path, name string, st unix.Stat_t) error {
	if err := unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%q: cannot change owner: %w", path+name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK { // a symlink has no mode
		if err := unix.Fchmodat(dst, name, st.Mode&0o7777, 0); err != nil {
			return fmt.Errorf("%q: cannot change mode: %w", path+name, err)
		}
	}
	made, err := unix.Openat(dst, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%q: cannot open: %w", path+name, err)
	}
	defer unix.Close(made)
	// The magic link leads to the node itself, a symlink included.
	from, to := fmt.Sprintf("/proc/self/fd/%d", src), fmt.Sprintf("/proc/self/fd/%d", made)
	err = copyXattrs(xattrs{
		list: func(b []byte) (int, error) { return unix.Listxattr(from, b) },
		get:  func(name string, b []byte) (int, error) { return unix.Getxattr(from, name, b) },
		set:  func(name string, b []byte) error { return unix.Setxattr(to, name, b, 0) },
	})
	if err != nil {
		return fmt.Errorf("%q: %w", path+name, err)
	}
	if err := unix.UtimesNanoAt(dst, name, times(st), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%q: cannot change times: %w", path+name, err)
	}
	return nil
}

func times(st unix.Stat_t) []unix.Timespec { return []unix.Timespec{st.Atim, st.Mtim} }

// xattrs reaches the extended attributes of a source and its copy.
type xattrs struct {
	list func(b []byte) (int, error)
	get  func(name string, b []byte) (int, error)
	set  func(name string, b []byte) error
}

// xattrBytes is XATTR_LIST_MAX and XATTR_SIZE_MAX of include/uapi/linux/limits.h.
const xattrBytes = 64 << 10

// copyXattrs copies all but those of an overlay, which mean something only in
// the layer they were made in, and whose an upper layer is.
func copyXattrs(x xattrs) error {
	buf := make([]byte, xattrBytes)
	n, err := x.list(buf)
	switch {
	case errors.Is(err, unix.ENOTSUP): // the source's file system has none
		return nil
	case err != nil:
		return fmt.Errorf("cannot list extended attributes: %w", err)
	}
	var value []byte
	for name := range bytes.SplitSeq(bytes.TrimSuffix(buf[:n], []byte{0}), []byte{0}) {
		key := string(name)
		if key == "" || strings.HasPrefix(key, "trusted.overlay.") || key == layout.EtcOwner {
			continue
		}
		if value == nil {
			value = make([]byte, xattrBytes)
		}
		n, err := x.get(key, value)
		if err != nil {
			return fmt.Errorf("cannot read extended attribute %q: %w", key, err)
		}
		if err := x.set(key, value[:n]); err != nil {
			return fmt.Errorf("cannot write extended attribute %q: %w", key, err)
		}
	}
	return nil
}
