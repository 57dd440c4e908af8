package blockdev

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Forget writes out and drops what the kernel keeps in memory of the device, so
// that the next read comes from the medium (BLKFLSBUF, block/ioctl.c).
func (d *Device) Forget() error {
	if err := unix.IoctlSetInt(int(d.file.Fd()), unix.BLKFLSBUF, 0); err != nil {
		return fmt.Errorf("cannot drop %s from memory: BLKFLSBUF: %w", d.Name(), err)
	}
	return nil
}
