package seed

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The parts of a copy, for who brings it to the disk by a protocol of its own.

// Tree makes the directory name in to, a copy of the directory from, and does not
// sync it.
func Tree(from, to *os.File, name string) error {
	s := seeder{checkpoint: func(string) error { return nil }}
	if err := s.build(int(to.Fd()), name, from); err != nil {
		return fmt.Errorf("cannot copy %s: %w", from.Name(), err)
	}
	return nil
}

// Entry copies what name is in the directory from, and all that it holds, to the
// directory to.
func Entry(from, to *os.File, name string) error {
	s := seeder{root: int(to.Fd()), links: map[inode]string{}, checkpoint: func(string) error { return nil }}
	if err := s.copyEntry(int(from.Fd()), int(to.Fd()), "", name, 0); err != nil {
		return fmt.Errorf("cannot copy %w", err)
	}
	return nil
}

// Attributes gives the file or directory to owner, mode, extended attributes and
// times of from.
func Attributes(from, to *os.File) error {
	st, err := fstat(int(from.Fd()))
	if err != nil {
		return err
	}
	return fdAttributes(int(from.Fd()), int(to.Fd()), from.Name(), st)
}

// Remove removes name in dir, and all that it holds, however deep; a missing one is no
// error. What an interrupted call leaves another one removes.
func Remove(dir *os.File, name string) error {
	return removeAll(int(dir.Fd()), name)
}

// MakeDir makes a directory that nobody else can enter, and opens it.
func MakeDir(dir *os.File, name string) (*os.File, error) {
	fd, err := makeDir(int(dir.Fd()), name)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), dir.Name()+"/"+name), nil
}

// Attribute reads one extended attribute of a small value; "" when there is none.
func Attribute(of *os.File, name string) (string, error) {
	value := make([]byte, 256)
	n, err := unix.Fgetxattr(int(of.Fd()), name, value)
	switch err {
	case nil:
		return string(value[:n]), nil
	case unix.ENODATA, unix.ENOTSUP, unix.ERANGE: // none, or none of ours
		return "", nil
	}
	return "", fmt.Errorf("cannot read extended attribute %s of %s: %w", name, of.Name(), err)
}
