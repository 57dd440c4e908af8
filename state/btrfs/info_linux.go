package btrfs

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctls of include/uapi/linux/btrfs.h.
const (
	iocDevInfo = 0xd000941e // BTRFS_IOC_DEV_INFO, _IOWR(0x94, 30, struct btrfs_ioctl_dev_info_args)
	iocFSInfo  = 0x8400941f // BTRFS_IOC_FS_INFO, _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)
	iocBalance = 0xc4009420 // BTRFS_IOC_BALANCE_V2, _IOWR(0x94, 32, struct btrfs_ioctl_balance_args)
)

// Info is what the kernel has in memory of a mounted file system.
type Info struct {
	UUID      [16]byte
	Devices   uint64
	DeviceID  uint64 // of the last device, for Resize
	Bytes     int64  // of that device that the file system spans
	Allocated int64  // bytes of it that chunks have
}

// ReadInfo asks the kernel about the mounted file system that fd lies on.
func ReadInfo(fd int) (Info, error) {
	le := binary.LittleEndian
	var fs [1024]byte
	if err := ioctl(fd, iocFSInfo, unsafe.Pointer(&fs)); err != nil {
		return Info{}, fmt.Errorf("cannot look at btrfs: %w", err)
	}
	i := Info{DeviceID: le.Uint64(fs[:]), Devices: le.Uint64(fs[8:]), UUID: [16]byte(fs[16:])}
	var dev [4096]byte
	le.PutUint64(dev[:], i.DeviceID)
	if err := ioctl(fd, iocDevInfo, unsafe.Pointer(&dev)); err != nil {
		return Info{}, fmt.Errorf("cannot look at the device of btrfs: %w", err)
	}
	i.Allocated, i.Bytes = int64(le.Uint64(dev[24:])), int64(le.Uint64(dev[32:]))
	return i, nil
}

// Compact moves what is in one chunk of data of which at most percent are in use to
// where there is room, and frees the chunk; nothing when there is no such chunk. Errors:
// unix.ENOSPC, and unix.EBUSY when a balance runs, or a resize.
func Compact(fd int, percent uint64) error {
	const (
		ofData     = 1      // BTRFS_BALANCE_DATA
		byUsage    = 1 << 1 // BTRFS_BALANCE_ARGS_USAGE
		limited    = 1 << 5 // BTRFS_BALANCE_ARGS_LIMIT
		dataArgs   = 16     // struct btrfs_balance_args, packed
		usageAt    = dataArgs + 8
		flagsAt    = dataArgs + 64
		limitAt    = dataArgs + 72
		sizeOfArgs = 1024
	)
	le := binary.LittleEndian
	var args [sizeOfArgs]byte
	le.PutUint64(args[:], ofData)
	le.PutUint64(args[usageAt:], percent)
	le.PutUint64(args[flagsAt:], byUsage|limited)
	le.PutUint64(args[limitAt:], 1)
	err := ioctl(fd, iocBalance, unsafe.Pointer(&args))
	if err == unix.EINPROGRESS || err == unix.EAGAIN || err == unix.ETXTBSY {
		err = unix.EBUSY
	}
	if err != nil {
		return fmt.Errorf("cannot compact btrfs: %w", err)
	}
	return nil
}
