package btrfs

import (
	"fmt"
	"unsafe"
)

// ioctls of include/uapi/linux/btrfs.h.
const (
	iocStartSync = 0x80089418 // BTRFS_IOC_START_SYNC, _IOR(0x94, 24, __u64)
	iocWaitSync  = 0x40089416 // BTRFS_IOC_WAIT_SYNC, _IOW(0x94, 22, __u64)
)

// Commit ends the transaction of the mounted file system that fd lies on, and waits for it:
// what was freed before may be used again then, and statfs(2) counts it. Unlike syncfs(2)
// it does not write what programs have written and is in memory only: of a writer that goes
// on there may be more and more of that.
func Commit(fd int) error {
	var transaction uint64
	if err := ioctl(fd, iocStartSync, unsafe.Pointer(&transaction)); err != nil {
		return fmt.Errorf("cannot end the transaction of btrfs: %w", err)
	}
	if err := ioctl(fd, iocWaitSync, unsafe.Pointer(&transaction)); err != nil {
		return fmt.Errorf("cannot wait for the transaction of btrfs: %w", err)
	}
	return nil
}
