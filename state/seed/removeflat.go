package seed

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// removeAll removes name and everything below it; a missing one is no error.
func removeAll(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return nameError("unlink", name, err)
	}
	return removeFlat(dir, name)
}

// removeFlat removes a directory of dir with all below it, however deep somebody has
// made that: a directory is renamed to the top before its parent goes, so that two
// are open at any time. What an interrupted call leaves another one removes. Of
// several errors it returns the first, having removed the rest.
func removeFlat(dir int, name string) error {
	top, err := openBelow(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(top)
	var first error
	for n := 0; ; {
		names, err := someNames(top)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			break
		}
		left := 0
		for _, name := range names {
			if err := removeLevel(top, name, &n); err != nil {
				if left++; first == nil {
					first = err
				}
			}
		}
		if left == len(names) {
			return first
		}
	}
	return removeDir(dir, name)
}

// removeLevel removes one name of top; the directories in it become names of top. n
// counts those.
func removeLevel(top int, name string, n *int) error {
	err := unix.Unlinkat(top, name, 0)
	if !errors.Is(err, unix.EISDIR) {
		return nameError("unlink", name, err)
	}
	sub, err := openBelow(top, name)
	if err != nil {
		return err
	}
	defer unix.Close(sub)
	for {
		names, err := someNames(sub)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			return removeDir(top, name)
		}
		for _, below := range names {
			err := unix.Unlinkat(sub, below, 0)
			for errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EEXIST) {
				*n++
				err = unix.Renameat2(sub, below, top, strconv.Itoa(*n), unix.RENAME_NOREPLACE)
			}
			if err != nil {
				return nameError("remove", below, err)
			}
		}
	}
}

func openBelow(dir int, name string) (int, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	return fd, nameError("open", name, err)
}

func removeDir(dir int, name string) error {
	return nameError("rmdir", name, unix.Unlinkat(dir, name, unix.AT_REMOVEDIR))
}

// nameError is nil for nil.
func nameError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cannot %s %.200q: %w", op, name, err)
}

// someNames lists at most 1000 names of a directory, by a reading position of its own.
func someNames(dir int) ([]string, error) {
	fd, err := openBelow(dir, ".")
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close()
	names, err := f.Readdirnames(1000)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return names, err
}
