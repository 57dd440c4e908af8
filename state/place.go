package state

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/state/btrfs"
	"sealroot/state/ext4"
	"sealroot/state/layout"
)

// ErrNotEmpty: where the state partition would be there is something already.
var ErrNotEmpty = errors.New("there is something already")

// LeastPartition is the size in bytes from which on PID 1 adds a state partition with
// that file system, for a volume with file system inner: what layout.LeastPartition says,
// and a round number at least.
func (f Filesystem) LeastPartition(inner Filesystem) int64 {
	least := int64(256 << 20)
	if f == Btrfs {
		least *= 2
	}
	return max(least, layout.LeastPartition(string(inner), string(f), 0))
}

// placesLooked is how many MiB of a place are looked at, each at its beginning:
// there partitions of others began, when there were some.
const placesLooked = 256

// signature is what a file system or the like has at a fixed place.
type signature struct {
	offset int64
	magic  string
	what   string
}

// signatures are those of blkid(8) that a disk of a machine may have held.
var signatures = [...]signature{
	// magic, clean; or with errors: two bytes alone would be found in noise
	{1080, "\x53\xef\x01\x00", "ext2, ext3 or ext4"},
	{1080, "\x53\xef\x00\x00", "ext2, ext3 or ext4"},
	{1080, "\x53\xef\x02\x00", "ext2, ext3 or ext4"},
	{1080, "\x53\xef\x03\x00", "ext2, ext3 or ext4"},
	{0, "XFSB", "XFS"},
	{65600, "_BHRfS_M", "Btrfs"},
	{1024, "\x10\x20\xf5\xf2", "F2FS"},
	{0, "LUKS\xba\xbe", "LUKS"},
	{536, "LVM2 001", "LVM"},
	{4096, "\xfc\x4e\x2b\xa9", "a RAID"},
	{4086, "SWAPSPACE2", "swap"},
	{0, "hsqs", "squashfs"},
	{1024, "\xe2\xe1\xf5\xe0", "EROFS"},
	{3, "NTFS    ", "NTFS"},
	{3, "EXFAT   ", "exFAT"},
	{54, "FAT", "FAT"},
	{82, "FAT32   ", "FAT"},
	{32769, "CD001", "ISO 9660"},
	{0, "verity\x00\x00", "a hash tree"},
}

// in tells whether the signature is at its place behind byte at of r, of which
// head is the beginning.
func (s signature) in(r io.ReaderAt, at int64, head []byte) bool {
	end := s.offset + int64(len(s.magic))
	if end <= int64(len(head)) {
		return string(head[s.offset:end]) == s.magic
	}
	far := make([]byte, len(s.magic))
	n, _ := r.ReadAt(far, at+s.offset) // what cannot be read is not found
	return n == len(far) && string(far) == s.magic
}

// CheckPlace looks for the signatures of file systems and the like in the place of
// a new state partition, size bytes of r from byte start on. ErrNotEmpty when there is one: the disk holds something
// that its partition table does not tell of. A guard against mistakes: what has
// another signature, or begins elsewhere, is not found.
func CheckPlace(r io.ReaderAt, start, size int64) error {
	head := make([]byte, 4096)
	for at := start; at < start+min(placesLooked<<20, size); at += 1 << 20 {
		if n, err := r.ReadAt(head, at); n < len(head) {
			return fmt.Errorf("cannot look at the free space of the disk: %w", err)
		}
		for _, s := range signatures {
			if s.in(r, at, head) {
				return fmt.Errorf("cannot add a state partition: %w: %s at MiB %d of the free space", ErrNotEmpty, s.what, (at-start)>>20)
			}
		}
	}
	return nil
}

// CheckUnmounted looks at a partition on which WriteFilesystem was begun. It returns
// nil where the file system was not mounted since: its superblock is the template's,
// or there is none yet. ErrNotEmpty where there is another, or the copy that one has
// once it was grown: whatever is wrong with it, it may hold something.
func CheckUnmounted(r io.ReaderAt) error {
	head := make([]byte, 4096)
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, int64(len(head))), head); err != nil {
		return fmt.Errorf("it cannot be read: %w", err)
	}
	if unused, err := ext4.Unused(head); unused || err != nil {
		return err
	}
	for _, at := range [...]int64{64 << 10, 64 << 20} { // and its first mirror
		unused, err := btrfs.Unused(r, at)
		switch {
		case errors.Is(err, btrfs.ErrNotBtrfs):
		case err != nil:
			return fmt.Errorf("it cannot be read: %w", err)
		case !unused:
			return fmt.Errorf("%w: Btrfs", ErrNotEmpty)
		case at < 64<<20:
			return nil
		}
	}
	for _, s := range signatures {
		if s.in(r, 0, head) {
			return fmt.Errorf("%w: %s", ErrNotEmpty, s.what)
		}
	}
	if there, err := ext4.BackupSuperblock(r); err != nil {
		return err
	} else if there {
		return fmt.Errorf("%w: ext4 without its first superblock", ErrNotEmpty)
	}
	return nil
}

// GrowOuter grows the mounted file system of the state partition, whose root is
// dir, to size bytes. It is done when everything is on stable storage.
func GrowOuter(dir *os.File, size int64) error {
	if err := OuterFilesystem(dir).grow(dir, size/BlockSize*BlockSize); err != nil {
		return fmt.Errorf("cannot grow the file system of the state partition: %w", err)
	}
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("cannot sync the state partition: %w", err)
	}
	return nil
}
