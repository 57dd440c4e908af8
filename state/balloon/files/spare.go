package files

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A file system without a free inode takes no new file, however many bytes are free in it:
// so a few empty ones wait in the folder of balloons, under names that are no number.
const (
	spares      = 8
	sparePrefix = ".spare-"
)

func isSpare(name string) bool { return strings.HasPrefix(name, sparePrefix) }

func spareName(n int) string { return fmt.Sprint(sparePrefix, n) }

func create(dir *os.File, name string) (int, error) {
	return unix.Openat(int(dir.Fd()), name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
}

// Stock makes the spare files of the folder of balloons that are not there, as far as inodes
// are free.
func Stock(dir *os.File) {
	for n := range spares {
		if fd, err := create(dir, spareName(n)); err == nil {
			unix.Close(fd)
		}
	}
}

// HasSpare tells whether Create works without a free inode.
func HasSpare(dir *os.File) bool {
	for n := range spares {
		if unix.Faccessat(int(dir.Fd()), spareName(n), unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return true
		}
	}
	return false
}

// useSpare gives a spare file that name, if there is one, and no file that has it.
func useSpare(dir *os.File, name string) bool {
	for n := range spares {
		if unix.Renameat2(int(dir.Fd()), spareName(n), int(dir.Fd()), name, unix.RENAME_NOREPLACE) == nil {
			return true
		}
	}
	return false
}
