package resize

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
)

// superblockTries is how often a superblock is read that the kernel changes just then.
const superblockTries = 20

// mounted is a file system on a device, of whichever type.
type mounted struct {
	root   *os.File
	device string
}

func (m mounted) usage() (free, used int64, err error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(m.root.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("cannot measure the volume: %w", err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks-st.Bfree) * st.Bsize, nil
}

func (m mounted) sync() error {
	if err := unix.Syncfs(int(m.root.Fd())); err != nil {
		return fmt.Errorf("cannot sync the volume: %w", err)
	}
	return nil
}

// readSuperblock reads the superblock of a mounted file system from its device, opened
// with these flags. While the kernel changes it, it may be torn for a moment: then it is
// read again.
func readSuperblock[T any](device string, flags int, read func(io.ReaderAt) (T, error), torn error) (sb T, err error) {
	f, err := os.OpenFile(device, os.O_RDONLY|flags, 0)
	if err != nil {
		return sb, fmt.Errorf("cannot read the volume's superblock: %w", err)
	}
	defer f.Close()
	for try := 0; ; try++ {
		if sb, err = read(aligned{f}); try == superblockTries || !errors.Is(err, torn) {
			return sb, err
		}
		time.Sleep(time.Millisecond)
	}
}

// aligned reads what lies in one block of a device as that block, as O_DIRECT wants it.
type aligned struct{ f *os.File }

func (a aligned) ReadAt(p []byte, off int64) (int, error) {
	in := off % balloon.BlockSize
	if in+int64(len(p)) > balloon.BlockSize {
		return 0, io.EOF
	}
	b, err := unix.Mmap(-1, 0, balloon.BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(b)
	n, err := a.f.ReadAt(b, off-in)
	if n < len(b) {
		return 0, err
	}
	return copy(p, b[in:]), nil
}
