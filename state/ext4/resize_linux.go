package ext4

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// iocResizeFS is EXT4_IOC_RESIZE_FS of include/uapi/linux/ext4.h:
// _IOW('f', 16, __u64).
const iocResizeFS = 0x40086610

// Resize grows the mounted file system that fd lies on (its root directory,
// say) to blocks blocks of its own block size. It returns when the new size is
// in the journal; syncfs makes it last. Growing to the present size is no
// error, shrinking is (the kernel answers EINVAL).
func Resize(fd int, blocks uint64) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), iocResizeFS, uintptr(unsafe.Pointer(&blocks)))
	if errno != 0 {
		return fmt.Errorf("cannot grow ext4 to %d blocks: %w", blocks, errno)
	}
	return nil
}
