package state

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/btrfs"
	"sealroot/state/layout"
)

// The outer file system, that of the state partition, is ext4 or btrfs. What btrfs does
// in another way is here:
//
// It writes elsewhere than before, which needs new room at each write. So the file has
// the flag that has it written in place. A snapshot, or a second file with the same
// extents, ends that for all that it has: so the file lies in a subvolume of its own,
// which no snapshot of the rest has in it, and CopiedOnWrite looks at each boot.
//
// It frees an extent as a whole, once nothing refers to any part of it. So what is
// reserved has no extent that reaches over a border of a Unit, and whole units are
// given back.

// ErrCopied: parts of encrypted.img are not written in place.
var ErrCopied = errors.New("a snapshot has made the state partition write it elsewhere")

// copyUnit is Unit of btrfs: small enough for what ext4 gives back in pieces, and so
// large that a terabyte needs not more than some 100 MB of metadata.
const copyUnit = 4 << 20

// OuterFilesystem is the type of the file system that f lies on, ext4 for any but btrfs.
func OuterFilesystem(f *os.File) Filesystem {
	var fs unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &fs) == nil && fs.Type == unix.BTRFS_SUPER_MAGIC {
		return Btrfs
	}
	return Ext4
}

// Unit is in what units, in bytes, the file system of f takes back what a file of it
// holds: a power of two.
func Unit(f *os.File) int64 {
	if OuterFilesystem(f) == Btrfs {
		return copyUnit
	}
	return BlockSize
}

// Placed is the path of a file that lies where encrypted.img does, below the root
// directory of the state partition.
func Placed(dir *os.File, name string) string {
	if OuterFilesystem(dir) == Btrfs {
		return layout.ImageSubvolume + "/" + name
	}
	return name
}

// HasImage tells whether anything with the name of encrypted.img is where it lies.
func HasImage(dir *os.File) (bool, error) { return Exists(dir, Placed(dir, ImageName)) }

// makePlace makes the subvolume. One that a cut has left is used, and so is a plain
// directory: what a snapshot has of it CopiedOnWrite finds.
func makePlace(dir *os.File) error {
	if OuterFilesystem(dir) != Btrfs {
		return nil
	}
	err := btrfs.CreateSubvolume(int(dir.Fd()), layout.ImageSubvolume)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// InPlace tells whether encrypted.img has the flag by which btrfs writes it in place.
func InPlace(image *os.File) (bool, error) {
	flags, err := files.Flags(image)
	if err != nil {
		return false, fmt.Errorf("cannot inspect %s: %w", ImageName, err)
	}
	return flags&files.NoCopy != 0, nil
}

// CopiedOnWrite lists the bytes of encrypted.img before byte end that the outer file
// system writes elsewhere, once or always: for them nothing is reserved.
func CopiedOnWrite(image *os.File, end int64) ([]balloon.Range, error) {
	if OuterFilesystem(image) != Btrfs {
		return nil, nil
	}
	if flagged, err := InPlace(image); err != nil {
		return nil, err
	} else if !flagged {
		return []balloon.Range{{Start: 0, End: end}}, nil
	}
	list, err := files.Shared(image, 0, end)
	if err != nil {
		return nil, err
	}
	err = btrfs.OlderThanSnapshot(int(image.Fd()), func(start, bytes int64) {
		list = append(list, balloon.Range{Start: start, End: start + bytes})
	})
	return balloon.Within(list, 0, end), err
}
