package state

import (
	"errors"
	"io"
	"os"

	"sealroot/state/btrfs"
	"sealroot/state/ext4"
)

// Filesystem is a type of file system that is made here, as mount(8) knows it.
type Filesystem string

// The types.
const (
	Ext4  Filesystem = "ext4"
	Btrfs Filesystem = "btrfs"
)

// MountOptions are those of a volume with such a file system. nodiscard: nothing
// inside may give back what is reserved outside, and btrfs would by default.
func (f Filesystem) MountOptions() []string {
	if f == Btrfs {
		return []string{"nodiscard", "subvolid=5"} // the whole of it, whatever is its default subvolume
	}
	return []string{"nodiscard", "errors=remount-ro"}
}

// NoReplay is the mount option by which a read-only mount leaves the journal alone.
func (f Filesystem) NoReplay() string {
	if f == Btrfs {
		return "rescue=nologreplay"
	}
	return "noload"
}

// Superblock is what counts of the superblock of either type.
type Superblock struct {
	Type  Filesystem
	Bytes int64 // that the file system spans
	// Clean: unmounted cleanly, or each transaction is. Errors: marked as damaged.
	Clean, Errors bool
	NeedsRecovery bool // the next mount replays a journal, which may hold another size
}

// NeedsCheck tells whether a file system is looked at before it is mounted: the
// kernel found errors, or nothing makes good that it was not unmounted. A journal
// that has to be replayed is the kernel's own business.
func (s Superblock) NeedsCheck() bool { return s.Errors || !s.Clean && !s.NeedsRecovery }

// ReadSuperblock reads the superblock of a file system, whichever it is. Errors:
// ext4.ErrNotExt4 and btrfs.ErrNotBtrfs for neither, ext4.ErrSuperblock,
// btrfs.ErrSuperblock; any other is the device's.
func ReadSuperblock(r io.ReaderAt) (Superblock, error) {
	e, err := ext4.ReadSuperblock(r)
	if err == nil {
		return Superblock{Ext4, int64(e.Bytes()), e.Clean, e.Errors, e.NeedsRecovery}, nil
	}
	if !errors.Is(err, ext4.ErrNotExt4) {
		return Superblock{}, err
	}
	b, berr := btrfs.ReadSuperblock(r)
	if errors.Is(berr, btrfs.ErrNotBtrfs) {
		berr = errors.Join(err, berr)
	}
	if berr != nil {
		return Superblock{}, berr
	}
	return Superblock{Type: Btrfs, Bytes: b.Bytes, Clean: true, Errors: b.Errors}, nil
}

// Mend makes a superblock valid again that a power cut tore, and says so, whichever
// type it is of.
func Mend(d btrfs.Disk, size int64) (bool, error) {
	if mended, err := ext4.Mend(d, size); mended || err != nil {
		return mended, err
	}
	if _, err := ext4.ReadSuperblock(d); !errors.Is(err, ext4.ErrNotExt4) {
		return false, nil
	}
	return btrfs.Mend(d, size)
}

// grow lets the mounted file system of which root is the root directory span size bytes.
func (f Filesystem) grow(root *os.File, size int64) error {
	if f == Btrfs {
		return btrfs.Resize(int(root.Fd()), 1, uint64(size)) // the template has device 1
	}
	return ext4.Resize(int(root.Fd()), uint64(size)/BlockSize)
}

// WriteFilesystem writes the template of a file system, under an identity of its
// own, and is done when it is on stable storage.
func WriteFilesystem(d interface {
	io.WriterAt
	Sync() error
}, f Filesystem, random io.Reader) error {
	var err error
	if f == Btrfs {
		err = btrfs.WriteTemplate(d, random)
	} else {
		err = writeExt4(d, random)
	}
	if err != nil {
		return err
	}
	// The template went through the device's page cache. Pages that are still
	// dirty when the file system is mounted would be written later, over what
	// its journal wrote past that cache.
	return d.Sync()
}

func writeExt4(w io.WriterAt, random io.Reader) error {
	var uuid, seed [16]byte
	for _, b := range [][]byte{uuid[:], seed[:]} {
		if _, err := io.ReadFull(random, b); err != nil {
			return err
		}
	}
	uuid[6], uuid[8] = uuid[6]&0x0f|0x40, uuid[8]&0x3f|0x80
	return ext4.WriteTemplate(w, uuid, seed)
}
