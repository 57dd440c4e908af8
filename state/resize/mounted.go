package resize

import (
	"fmt"
	"io"
	"os"

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
