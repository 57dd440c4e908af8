package btrfs

import (
	"fmt"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// iocResize is BTRFS_IOC_RESIZE of include/uapi/linux/btrfs.h:
// _IOW(0x94, 3, struct btrfs_ioctl_vol_args).
const iocResize = 0x50009403

// Resize gives the mounted file system that fd lies on (its root directory, say)
// size bytes of its device, a multiple of 4096, more or fewer than now. It returns when
// the transaction is on the disk. Shrinking moves what lies beyond the end first;
// unix.ENOSPC when there is no place for it, and the size is the old one then.
// unix.EBUSY: a balance runs, or another resize.
func Resize(fd int, device, size uint64) error {
	// struct btrfs_ioctl_vol_args: a file descriptor, which is not used, and a text.
	var args [4096]byte
	name := append(strconv.AppendUint(args[8:8], device, 10), ':')
	strconv.AppendUint(name, size, 10)
	if err := ioctl(fd, iocResize, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("cannot give btrfs %d bytes: %w", size, err)
	}
	return nil
}

// ioctl returns unix.EBUSY for BTRFS_ERROR_DEV_EXCL_RUN_IN_PROGRESS, which comes as a
// result.
func ioctl(fd int, request uintptr, args unsafe.Pointer) error {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(args))
	if errno != 0 {
		return errno
	}
	if r != 0 {
		return unix.EBUSY
	}
	return nil
}
