package blockdev

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// AddPartition tells the kernel of one more partition of the whole disk d, start
// and size in bytes (BLKPG, include/uapi/linux/blkpg.h). Others may be in use. The
// node is there when it returns, where devtmpfs makes the nodes.
func (d *Device) AddPartition(number int, start, size int64) error {
	part := unix.BlkpgPartition{Start: start, Length: size, Pno: int32(number)}
	arg := unix.BlkpgIoctlArg{Op: unix.BLKPG_ADD_PARTITION, Datalen: int32(unsafe.Sizeof(part)), Data: (*byte)(unsafe.Pointer(&part))}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.file.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg)))
	runtime.KeepAlive(&part)
	if errno != 0 {
		return fmt.Errorf("cannot tell the kernel of partition %d of %s: %w", number, d.Name(), errno)
	}
	return nil
}
