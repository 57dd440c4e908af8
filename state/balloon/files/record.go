package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/layout"
)

// ReadRecord returns the record of the volume from dir, the root of the state
// partition, and the slot that it is in. A file that is none, or none at all, is an
// empty record: then everything is reserved.
func ReadRecord(dir *os.File, volume string) (r balloon.Record, slot int) {
	f, err := openAt(dir, layout.GivenBack, unix.O_RDONLY)
	if err != nil {
		return balloon.Latest(nil, volume)
	}
	defer f.Close()
	b := make([]byte, balloon.FileBytes)
	n, _ := f.ReadAt(b, 0)
	return balloon.Latest(b[:n], volume)
}

// OpenRecord opens the record in dir for writing, and makes an empty one with all its
// blocks where there is none: later, when there is something to give back, there may
// be no room for it.
func OpenRecord(dir *os.File) (*os.File, error) {
	f, err := openRecord(dir, layout.GivenBack, 0)
	if err == nil {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink == 1 && st.Size == balloon.FileBytes {
			return f, nil
		}
		f.Close()
	} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ELOOP) {
		return nil, err
	}
	const fresh = layout.GivenBack + ".new"
	if err := unix.Unlinkat(int(dir.Fd()), fresh, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("cannot make %s: %w", layout.GivenBack, err)
	}
	if f, err = openRecord(dir, fresh, unix.O_CREAT|unix.O_EXCL); err != nil {
		return nil, err
	}
	_ = ChangeFlags(f, NoCopy, 0) // of btrfs: a full one takes it then
	if err = unix.Fallocate(int(f.Fd()), 0, 0, balloon.FileBytes); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = unix.Renameat(int(dir.Fd()), fresh, int(dir.Fd()), layout.GivenBack)
	}
	if err == nil {
		err = dir.Sync()
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot make %s: %w", layout.GivenBack, errors.Join(err, unix.Unlinkat(int(dir.Fd()), fresh, 0)))
	}
	return f, nil
}

// WriteRecord keeps which ranges of the volume's image are given back, on stable storage
// when it returns. A file system that is full takes it: it is written in place, the older
// of two copies first.
func WriteRecord(dir *os.File, volume string, given []balloon.Range) error {
	f, err := OpenRecord(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	r, slot := ReadRecord(dir, volume)
	b, err := balloon.Record{Serial: r.Serial + 1, Volume: volume, Given: balloon.Join(given)}.Encode()
	if err == nil {
		_, err = f.WriteAt(b, int64(1-slot)*balloon.SlotBytes)
	}
	if err == nil {
		err = f.Sync()
	}
	if now, _ := ReadRecord(dir, volume); err == nil && now.Serial != r.Serial+1 {
		err = errors.New("it does not read as it was written")
	}
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", layout.GivenBack, err)
	}
	return nil
}

func openRecord(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK|flags, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
