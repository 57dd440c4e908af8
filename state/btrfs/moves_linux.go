package btrfs

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctls of include/uapi/linux/btrfs.h.
const (
	iocScrubProgress   = 0xc400941d // BTRFS_IOC_SCRUB_PROGRESS, _IOWR(0x94, 29, struct btrfs_ioctl_scrub_args)
	iocBalanceProgress = 0x84009422 // BTRFS_IOC_BALANCE_PROGRESS, _IOR(0x94, 34, struct btrfs_ioctl_balance_args)
)

// Moves tells whether a scrub or a balance runs on the mounted file system that fd lies
// on. Either has one block group at a time read-only: what would be written in place
// there is written elsewhere.
func Moves(fd int) (bool, error) {
	i, err := ReadInfo(fd)
	if err != nil {
		return false, err
	}
	le := binary.LittleEndian
	var scrub, balance [1024]byte
	le.PutUint64(scrub[:], i.DeviceID)
	switch err := ioctl(fd, iocScrubProgress, unsafe.Pointer(&scrub)); err {
	case nil:
		return true, nil
	case unix.ENOTCONN: // none
	default:
		return false, fmt.Errorf("cannot ask btrfs for a scrub: %w", err)
	}
	switch err := ioctl(fd, iocBalanceProgress, unsafe.Pointer(&balance)); err {
	case nil:
		const state, running = 8, 1
		return le.Uint64(balance[state:])&running != 0, nil // or it pauses
	case unix.ENOTCONN:
		return false, nil
	default:
		return false, fmt.Errorf("cannot ask btrfs for a balance: %w", err)
	}
}
