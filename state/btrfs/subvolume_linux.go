package btrfs

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctls of include/uapi/linux/btrfs.h.
const (
	iocCreate = 0x5000940e // BTRFS_IOC_SUBVOL_CREATE, _IOW(0x94, 14, struct btrfs_ioctl_vol_args)
	iocSearch = 0xd0009411 // BTRFS_IOC_TREE_SEARCH, _IOWR(0x94, 17, struct btrfs_ioctl_search_args)
	iocLookup = 0xd0009412 // BTRFS_IOC_INO_LOOKUP, _IOWR(0x94, 18, struct btrfs_ioctl_ino_lookup_args)
)

// firstInode is that of the root directory of each subvolume.
const firstInode = 256

// CreateSubvolume makes an empty subvolume in the directory dir. Errors: unix.EEXIST.
func CreateSubvolume(dir int, name string) error {
	var args [4096]byte // struct btrfs_ioctl_vol_args
	copy(args[8:len(args)-1], name)
	if err := ioctl(dir, iocCreate, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("cannot make subvolume %s: %w", name, err)
	}
	return nil
}

// OlderThanSnapshot calls do for each piece of a file, in its order, that it has since
// before the last snapshot was made of its subvolume, whether that is there still or not:
// the next write there goes elsewhere, and the kernel looks no further
// (can_nocow_file_extent of fs/btrfs/inode.c).
func OlderThanSnapshot(file int, do func(start, bytes int64)) error {
	var st unix.Stat_t
	var args [searchBytes]byte // struct btrfs_ioctl_ino_lookup_args
	putU64(args[8:], firstInode)
	err := unix.Fstat(file, &st)
	if err == nil {
		err = ioctl(file, iocLookup, unsafe.Pointer(&args))
	}
	var last uint64
	if err == nil {
		err = search(file, &args, rootTree, field(args[:], 0), rootItem, func(_ uint64, item []byte) { last = max(last, field(item, rootLastSnapshot)) })
	}
	if err == nil && last > 0 {
		err = search(file, &args, 0, st.Ino, fileExtent, func(at uint64, item []byte) {
			if n := olderThan(last, item); n > 0 {
				do(int64(at), n)
			}
		})
	}
	if err != nil {
		return fmt.Errorf("cannot look for snapshots of a file: %w", err)
	}
	return nil
}

// search calls do for all items of an object and type in a tree; 0 is the one that fd
// lies in. What was written to a file and is not on the disk yet it does not find.
func search(fd int, args *[searchBytes]byte, tree, object, kind uint64, do func(offset uint64, item []byte)) error {
	for next := uint64(0); ; {
		const most = ^uint64(0)
		for i, v := range [...]uint64{tree, object, object, next, most, 0, most, kind | kind<<32, most >> 32} {
			putU64(args[8*i:], v)
		}
		if err := ioctl(fd, iocSearch, unsafe.Pointer(args)); err != nil {
			return err
		}
		last, found := results(args[:], do)
		if next = last + 1; !found || next == 0 {
			return nil
		}
	}
}
