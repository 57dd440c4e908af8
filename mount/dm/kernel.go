package dm

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/anatol/devmapper.go"
	"golang.org/x/sys/unix"
)

// kernel is the part of the device mapper that Control uses; tests put a
// recorder there.
type kernel interface {
	Create(name, uuid string) error
	Load(name string, flags uint32, table devmapper.Table) error
	Resume(name string) error
	Remove(name string) error
	Info(name string) (*devmapper.DeviceInfo, error)
	Status(name string, flags uint32) ([]Status, error)
	// Swap resumes a device. A table that was loaded takes the place of the one in use:
	// the kernel suspends the device, exchanges them and resumes it in this one call.
	Swap(name string) error
	// Clear drops a table that was loaded and is not in use.
	Clear(name string) error
}

// ioctls is the kernel's device mapper, through devmapper.go where it has the
// call.
type ioctls struct{}

func (ioctls) Create(name, uuid string) error { return devmapper.Create(name, uuid) }
func (ioctls) Load(name string, flags uint32, table devmapper.Table) error {
	return devmapper.Load(name, flags, table)
}
func (ioctls) Resume(name string) error                        { return devmapper.Resume(name) }
func (ioctls) Remove(name string) error                        { return devmapper.Remove(name) }
func (ioctls) Info(name string) (*devmapper.DeviceInfo, error) { return devmapper.InfoByName(name) }

// Swap is DM_DEV_SUSPEND with flags that devmapper.go does not pass: the file system on
// the device is not frozen, which only snapshots are in need of, and so nothing waits
// but for requests that are under way (cryptsetup lib/libdevmapper.c does the same).
func (ioctls) Swap(name string) error {
	return call("DM_DEV_SUSPEND", unix.DM_DEV_SUSPEND, name, unix.DM_SKIP_LOCKFS_FLAG|unix.DM_NOFLUSH_FLAG)
}

// Clear is not in devmapper.go: DM_TABLE_CLEAR.
func (ioctls) Clear(name string) error { return call("DM_TABLE_CLEAR", unix.DM_TABLE_CLEAR, name, 0) }

// call is an ioctl that has nothing but flags to say.
func call(what string, request uintptr, name string, flags uint32) error {
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	h := unix.DmIoctl{Version: [3]uint32{4, 0, 0}, Data_size: unix.SizeofDmIoctl, Data_start: unix.SizeofDmIoctl, Flags: flags}
	copy(h.Name[:unix.DM_NAME_LEN-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), request, uintptr(unsafe.Pointer(&h))); errno != 0 {
		return fmt.Errorf("%s: %w", what, errno)
	}
	return nil
}

// Status is not in devmapper.go: DM_TABLE_STATUS. The buffer grows until the
// answer fits.
func (ioctls) Status(name string, flags uint32) ([]Status, error) {
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for size := 4096; size <= 1<<20; size *= 4 {
		buf := make([]byte, size)
		h := (*unix.DmIoctl)(unsafe.Pointer(&buf[0]))
		h.Version = [3]uint32{4, 0, 0}
		h.Data_size = uint32(size)
		h.Data_start = unix.SizeofDmIoctl
		h.Flags = flags
		copy(h.Name[:unix.DM_NAME_LEN-1], name)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), unix.DM_TABLE_STATUS, uintptr(unsafe.Pointer(h)))
		runtime.KeepAlive(buf)
		if errno != 0 {
			return nil, fmt.Errorf("DM_TABLE_STATUS: %w", errno)
		}
		if h.Flags&unix.DM_BUFFER_FULL_FLAG == 0 {
			return parseStatus(buf, int(h.Data_start), int(h.Target_count))
		}
	}
	return nil, errors.New("DM_TABLE_STATUS: the answer is too long")
}
