package btrfs

import "encoding/binary"

// struct btrfs_ioctl_search_args of include/uapi/linux/btrfs.h: a key, then room for
// the items that are found, each behind a header.
const (
	searchBytes  = 4096
	searchFound  = 64 // nr_items: how many are wanted, and how many there are
	searchItems  = 104
	headerBytes  = 32
	headerOffset = 16
	headerLength = 28
)

// Trees, types of items and their fields (btrfs_tree.h).
const (
	rootTree   = 1   // BTRFS_ROOT_TREE_OBJECTID
	rootItem   = 132 // BTRFS_ROOT_ITEM_KEY
	fileExtent = 108 // BTRFS_EXTENT_DATA_KEY

	rootLastSnapshot = 200 // struct btrfs_root_item
	extentKind       = 20  // struct btrfs_file_extent_item; 0 is data in the item itself
	extentDisk       = 21
	extentBytes      = 45
)

func putU64(b []byte, v uint64) { binary.LittleEndian.PutUint64(b, v) }

// field is a number at a place of an item, 0 where that is too short.
func field(item []byte, at int) uint64 {
	if len(item) < at+8 {
		return 0
	}
	return binary.LittleEndian.Uint64(item[at:])
}

// results calls do for the items that were found, and returns the last one's offset.
func results(args []byte, do func(offset uint64, item []byte)) (last uint64, found bool) {
	b := args[searchItems:]
	for n := uint32(field(args, searchFound)); n > 0 && len(b) >= headerBytes; n-- {
		length := field(b, headerLength-4) >> 32
		last, found = field(b, headerOffset), true
		if b = b[headerBytes:]; length > uint64(len(b)) {
			break
		}
		do(last, b[:length])
		b = b[length:]
	}
	return last, found
}

// olderThan is how many bytes of a file lie in an extent on the disk that the file has
// since that transaction or an earlier one.
func olderThan(transaction uint64, item []byte) int64 {
	if len(item) < extentBytes+8 || item[extentKind] == 0 || field(item, extentDisk) == 0 || field(item, 0) > transaction {
		return 0
	}
	return int64(field(item, extentBytes))
}
