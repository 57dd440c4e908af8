package machine

import (
	"errors"
	"fmt"
	"io"

	"sealroot/sealroot/bootset"
	"sealroot/sealroot/install"
)

// window is a part of a partition, from byte at on.
type window struct {
	install.Partition
	at, size int64
}

// newWindow shows bytes at to end of a partition, which it closes when it has
// not so many.
func newWindow(p install.Partition, at, end int64) (install.Partition, error) {
	if end > p.Size() || at >= end {
		return nil, errors.Join(fmt.Errorf("cannot use a partition of %d bytes: root.verity.tree_at_mib has the hash tree behind it or at its end: %w",
			p.Size(), bootset.ErrRefused), p.Close())
	}
	return window{p, at, end - at}, nil
}

// Size is the size of the window in bytes.
func (w window) Size() int64 { return w.size }

// ReadAt reads from the window.
func (w window) ReadAt(b []byte, off int64) (int, error) {
	return io.NewSectionReader(w.Partition, w.at, w.size).ReadAt(b, off)
}

// WriteAt writes into the window.
func (w window) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off > w.size-int64(len(b)) {
		return 0, fmt.Errorf("cannot write %d bytes at %d of %d: %w", len(b), off, w.size, io.ErrShortWrite)
	}
	return w.Partition.WriteAt(b, w.at+off)
}
