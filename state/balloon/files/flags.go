package files

import (
	"os"

	"golang.org/x/sys/unix"
)

// Flags of a file (uapi/linux/fs.h).
const (
	Immutable = 0x10 // FS_IMMUTABLE_FL
	NoDump    = 0x40 // FS_NODUMP_FL
	// NoCopy is FS_NOCOW_FL: btrfs writes in place. It can be given to an empty file, and
	// to a folder for those that are made in it.
	NoCopy = 0x800000
)

// Flags are those of a file.
func Flags(f *os.File) (uint32, error) {
	return unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
}

// ChangeFlags sets some flags of a file and clears others.
func ChangeFlags(f *os.File, set, clear uint32) error {
	flags, err := Flags(f)
	if err == nil && flags&^clear|set != flags {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags&^clear|set))
	}
	return err
}
