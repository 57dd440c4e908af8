package btrfs

import (
	"encoding/binary"
	"fmt"
	"unsafe"
)

// iocSpaceInfo is BTRFS_IOC_SPACE_INFO of include/uapi/linux/btrfs.h:
// _IOWR(0x94, 20, struct btrfs_ioctl_space_args).
const iocSpaceInfo = 0xc0109414

// DataChunks tells how many bytes of the device chunks of data have in the mounted file
// system that fd lies on, and how many of those are used.
func DataChunks(fd int) (total, used int64, err error) {
	const (
		slots     = 32 // types of chunks: more than there are
		head      = 16 // struct btrfs_ioctl_space_args
		entry     = 24 // struct btrfs_ioctl_space_info
		data      = 1 << 0
		twoCopies = 1<<4 | 1<<5 // RAID1, DUP
	)
	le := binary.LittleEndian
	var args [head + slots*entry]byte
	le.PutUint64(args[:], slots)
	if err := ioctl(fd, iocSpaceInfo, unsafe.Pointer(&args)); err != nil {
		return 0, 0, fmt.Errorf("cannot look at the chunks of btrfs: %w", err)
	}
	for i := range min(le.Uint64(args[8:]), slots) {
		e := args[head+i*entry:]
		flags, n := le.Uint64(e), int64(1)
		if flags&twoCopies != 0 {
			n = 2
		}
		if flags&data != 0 {
			total += n * int64(le.Uint64(e[8:]))
			used += n * int64(le.Uint64(e[16:]))
		}
	}
	return total, used, nil
}
