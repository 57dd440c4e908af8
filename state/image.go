package state

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon/files"
)

// OpenImage opens encrypted.img in the directory dir for reading and writing
// and locks it. The state partition's file system is anybody's: whatever is
// not a plain file with one name is refused, before any byte of it is read.
// Errors: ErrNoImage, ErrNotImage, ErrInUse.
func OpenImage(dir *os.File) (*os.File, error) { return openLocked(dir, unix.O_RDWR) }

func openLocked(dir *os.File, access uint64) (*os.File, error) {
	f, err := openImage(dir, access)
	if err != nil {
		return nil, err
	}
	if err := lockImage(f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openImage opens the file if it is one that this program makes; access is
// unix.O_RDONLY or O_RDWR.
func openImage(dir *os.File, access uint64) (*os.File, error) {
	fd, err := unix.Openat2(int(dir.Fd()), Placed(dir, ImageName), &unix.OpenHow{
		// O_NONBLOCK so that a FIFO cannot hold up the boot.
		Flags:   access | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("cannot open %s: %w", ImageName, ErrNoImage)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("cannot open %s: %w: %w", ImageName, ErrNotImage, err)
	case err != nil:
		return nil, fmt.Errorf("cannot open %s: %w", ImageName, err)
	}
	f := os.NewFile(uintptr(fd), ImageName)
	if err := checkImage(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func checkImage(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("cannot inspect %s: %w", ImageName, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("cannot use %s of type %#o: %w", ImageName, st.Mode&unix.S_IFMT, ErrNotImage)
	}
	if st.Nlink != 1 {
		return fmt.Errorf("cannot use %s with %d names: %w", ImageName, st.Nlink, ErrNotImage)
	}
	return nil
}

// lockImage takes the flock that cryptsetup honours too, without waiting.
func lockImage(f *os.File, how int) error {
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		return fmt.Errorf("cannot lock %s: %w: %w", ImageName, ErrInUse, err)
	}
	return nil
}

// unlockImage gives the lock up. The loop device keeps the open file, and with it
// the lock, for as long as the machine runs: everybody who wants to change the
// header then would wait for ever.
func unlockImage(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
		return fmt.Errorf("cannot unlock %s: %w", ImageName, err)
	}
	return nil
}

// Exists tells whether anything of that name is in dir; a link is not followed.
func Exists(dir *os.File, name string) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}

// OpenShared opens encrypted.img of a machine that runs, for who reserves room for it
// or gives some back. It takes no lock: the header, which the lock is for, is not
// changed. On a state partition that is read-only the file is, too. Errors: ErrNoImage, ErrNotImage.
func OpenShared(dir *os.File) (*os.File, error) {
	f, err := openImage(dir, unix.O_RDWR)
	if errors.Is(err, unix.EROFS) {
		f, err = openImage(dir, unix.O_RDONLY)
	}
	return f, err
}

// Reserve allocates n bytes of the file from byte at; for what is allocated already it
// costs nothing. ErrNoRoom when the outer file system is full; then a part may be
// allocated. No extent of it reaches over a border of Unit: so each unit comes back.
func Reserve(f *os.File, at, n int64) (err error) {
	unit, end := Unit(f), at+n
	for at < end && err == nil {
		next := end
		if unit > BlockSize {
			next = min(end, (at/unit+1)*unit)
		}
		if err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, at, next-at); errors.Is(err, unix.EINTR) {
			err = nil
		} else {
			at = next
		}
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("cannot reserve %d MiB for %s: %w: %w", n>>20, ImageName, ErrNoRoom, err)
	}
	if err != nil {
		return fmt.Errorf("cannot reserve %d MiB for %s: %w", n>>20, ImageName, err)
	}
	return nil
}

// Release gives back what is allocated of the file from byte start to before byte end:
// what was in it is lost. Where Unit is more than a block, parts of units do not come back.
func Release(f *os.File, start, end int64) error {
	if start >= end {
		return nil
	}
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, start, end-start)
	for errors.Is(err, unix.EINTR) {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, start, end-start)
	}
	if err != nil {
		return fmt.Errorf("cannot release %d MiB of %s: %w", (end-start)>>20, ImageName, err)
	}
	return nil
}

// flag asks dump(8) and the like to leave the file alone: they would write its
// apparent size. A file system without the flag does without it. btrfs is to write
// in place, which has to be said as long as the file is empty.
func flag(f *os.File) error {
	flags := uint32(files.NoDump)
	if OuterFilesystem(f) == Btrfs {
		flags |= files.NoCopy
	}
	err := files.ChangeFlags(f, flags, 0)
	if err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("cannot set the flags of %s: %w", ImageName, err)
	}
	return nil
}

// allocated tells how many bytes the outer file system holds for the file.
func allocated(f *os.File) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("cannot inspect %s: %w", ImageName, err)
	}
	return st.Blocks * 512, nil
}

// freeIn tells how many bytes the file system of dir has left for us.
func freeIn(dir *os.File) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &fs); err != nil {
		return 0, fmt.Errorf("cannot measure the state partition: %w", err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

// sizeOf is the size of the file system of dir.
func sizeOf(dir *os.File) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &fs); err != nil {
		return 0, fmt.Errorf("cannot measure the state partition: %w", err)
	}
	return int64(fs.Blocks) * fs.Bsize, nil
}
