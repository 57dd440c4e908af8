package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// A file on the ESP is exchanged for a new one that was written beside it, by
// renameat2(RENAME_EXCHANGE), which vfat has since Linux 6.0. A plain rename
// would free the old file's blocks in the same breath, and FAT has no journal.

// errSharedFile: the leftover of an exchange shares blocks with the file that is
// in its place; deleting it would free them.
var errSharedFile = errors.New("the EFI system partition needs fsck.vfat")

// exchange gives a new file its name and the old one, if there is any, the new
// one's.
func exchange(temp, path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return os.Rename(temp, path)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("cannot exchange %s: %w", path, err)
	}
	return nil
}

// dropLeftover deletes what a power cut left of a write or of an exchange. A cut
// in an exchange can leave both names with the same blocks; deleting one would
// free the other's: errSharedFile.
func dropLeftover(temp, path string) error {
	left, err := os.Open(temp)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer left.Close()
	now, err := os.Open(path)
	if err == nil {
		defer now.Close()
		if sameBlocks(left, now) {
			return fmt.Errorf("cannot delete %s, which a power cut left: %w", temp, errSharedFile)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Remove(temp)
}

// fibmap is FIBMAP of linux/fs.h: which block of the device holds a block of
// the file; here always the first.
const fibmap = 1

// sameBlocks says that two files begin in the same block. Of a file system that
// does not tell, only two names of one file do; FAT has none such, and tells.
func sameBlocks(a, b *os.File) bool {
	infoA, errA := a.Stat()
	infoB, errB := b.Stat()
	if errA == nil && errB == nil && os.SameFile(infoA, infoB) {
		return true
	}
	x, errA := unix.IoctlGetInt(int(a.Fd()), fibmap)
	y, errB := unix.IoctlGetInt(int(b.Fd()), fibmap)
	return errA == nil && errB == nil && x != 0 && x == y
}

// removeIfThere deletes a file that may be gone already.
func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
